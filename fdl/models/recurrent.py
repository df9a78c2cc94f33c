"""Recurrent networks: a classifier of sequences of tokens."""

from typing import Any

from fdl.checks import check_count, check_number, is_zero, named_in_errors
from fdl.core.layer import Layer
from fdl.core.networks import chain
from fdl.layers import bidirectional, dense, dropout, embedding, lstm_cell, recurrent


@named_in_errors
def lstm_classifier(
    count: int,
    features: int,
    classes: int,
    *,
    depth: int = 1,
    both_ways: bool = False,
    dropout_rate: float = 0.0,
) -> Layer:
    """A classifier of sequences: an embedding, LSTM layers, and a dense layer on the last output.

    Args:
      count: V, the number of different tokens.
      features: the width of the embedding and of each LSTM.
      classes: the number of classes.
      depth: the number of LSTM layers, >= 1.
      both_ways: True makes each LSTM `bidirectional`.
      dropout_rate: the rate of the dropout before each LSTM and before the dense layer, in [0, 1].
        With 0, there are no dropout layers.

    Returns:
      A layer from ids [B, T] to logits [B, classes]. Optional extra input: `lengths`, integers
      [B], the number of tokens of each sequence without padding; ids after these tokens are not
      read. The biases of the forget gates are initialized to 1.

    Raises:
      ValueError: a number or the rate is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = lstm_classifier(100, 16, 3, both_ways=True)
      >>> ids = jnp.zeros((2, 7), jnp.int32)
      >>> params, state = model.init(jax.random.key(0), ids)
      >>> model.apply(params, state, ids, lengths=jnp.array([7, 3]))[0].shape
      (2, 3)

    Source: Graves and Schmidhuber 2005, "Framewise phoneme classification with bidirectional LSTM".
    """
    depth = check_count("lstm_classifier", "depth", depth, "pass the number of LSTM layers")
    remedy = "pass 0.1 to drop 10 %"
    check_number("lstm_classifier", "dropout_rate", dropout_rate, "[0, 1]", remedy)
    cell = lstm_cell(features, forget_bias=1.0)
    over_time = bidirectional if both_ways else recurrent
    layers: list[Any] = [embedding(count, features)]
    for number in range(depth):
        if not is_zero(dropout_rate):
            layers.append(dropout(dropout_rate))
        layers.append(over_time(cell, returns="last" if number == depth - 1 else "sequence"))
    if not is_zero(dropout_rate):
        layers.append(dropout(dropout_rate))
    return chain(*layers, dense(classes), name="lstm_classifier")
