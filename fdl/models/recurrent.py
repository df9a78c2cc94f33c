"""A network of recurrent layers: the classifier of sequences."""

from typing import Any

from fdl.checks import check_count, is_zero
from fdl.core.layer import Layer
from fdl.core.networks import chain
from fdl.layers import bidirectional, dense, dropout, embedding, lstm_cell, recurrent


def lstm_classifier(
    count: int,
    features: int,
    classes: int,
    *,
    depth: int = 1,
    both_ways: bool = False,
    dropout_rate: float = 0.0,
) -> Layer:
    """An embedding, recurrent layers, and a dense layer on what the last one ends with.

    Args:
      count: V, how many kinds of tokens.
      features: of the embedding and of each LSTM.
      classes: how many.
      depth: how many recurrent layers, >= 1.
      both_ways: each is `bidirectional`.
      dropout_rate: before each recurrent layer and before the last dense one, in [0, 1]; 0 leaves
        the layers out.

    Returns:
      A layer from ids [B, T] to logits [B, classes]. Extra input: `lengths`, integers [B], if the
      sequences are padded; what is past an end is not read. Forget biases begin at 1.

    Raises:
      ValueError: a number below 1, or a rate out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = lstm_classifier(100, 16, 3, both_ways=True)
      >>> ids = jnp.zeros((2, 7), jnp.int32)
      >>> params, state = model.init(jax.random.key(0), ids)
      >>> model.apply(params, state, ids, lengths=jnp.array([7, 3]))[0].shape
      (2, 3)

    Source: Graves and Schmidhuber 2005, "Framewise phoneme classification with bidirectional LSTM".
    """
    depth = check_count("lstm_classifier", "depth", depth, "say how many LSTMs to stack")
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
