"""Networks of dense layers: the multilayer perceptron and the autoencoder."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from fdl.activations import relu
from fdl.checks import check_array, check_kind, check_number, described, is_zero, named_in_errors
from fdl.core.layer import Layer, function
from fdl.core.networks import chain, network
from fdl.initializers import he_normal
from fdl.layers import dense, dropout, flatten, rescale
from fdl.paths import PathError
from fdl.typing import Activation


@named_in_errors
def mlp(
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: Activation = relu,
    dropout_rate: float = 0.0,
    scale: float | None = None,
) -> Layer:
    """A multilayer perceptron: dense, activation and dropout for each hidden width; then dense.

    Args:
      hidden: the hidden widths, such as `[64, 64, 64]` for three hidden layers.
      outputs: C, the number of outputs.
      activation: the function after each hidden dense layer.
      dropout_rate: the rate of the dropout after each activation, in [0, 1]. With 0, there are no
        dropout layers.
      scale: a number that multiplies the input, such as 1 / 255 for 8-bit images. None means no
        scaling.

    Returns:
      A layer from x [B, ...] to logits [B, C]. Hidden weights are initialized by `he_normal`,
      biases by 0.

    Raises:
      ValueError: a width or the rate is out of range.
      TypeError: hidden is not a sequence.

    Example:
      >>> import jax.numpy as jnp
      >>> model = mlp([32, 16], 10, scale=1 / 255)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 8, 8), jnp.uint8))
      >>> params["dense_0"]["w"].shape, params["dense_2"]["w"].shape
      ((64, 32), (16, 10))

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", chapter 6.
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise TypeError(
            f"mlp: expected hidden to be a list of widths, got {described(hidden)}; write "
            f"mlp([{described(hidden)}], {described(outputs)}) for one hidden layer, or mlp([], "
            f"{described(outputs)}) for none; do not pass the width of x, because init reads it "
            "from x"
        )
    check_number("mlp", "dropout_rate", dropout_rate, "[0, 1]", "pass 0.1 to drop 10 %")
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    layers.append(flatten())
    for width in hidden:
        layers += [dense(width, w_init=he_normal), activation]
        if not is_zero(dropout_rate):
            layers.append(dropout(dropout_rate))
    return chain(*layers, dense(outputs), name="mlp")


@named_in_errors
def autoencoder(
    shape: Sequence[int],
    hidden: Sequence[int],
    code: int,
    *,
    activation: Activation = relu,
) -> Layer:
    """A perceptron that encodes its input in a few numbers, and another that decodes these numbers.

    Args:
      shape: the shape of one input, without the batch axis.
      hidden: the hidden widths of the encoder. The decoder has the same widths in reverse order.
      code: the number of values that encode an input, >= 1.
      activation: the function after each hidden dense layer. It is not applied to the code or to
        the output.

    Returns:
      A layer from x [B, *shape] to [B, *shape]; its children are `encode` and `decode`.

    Raises:
      ValueError: a width is below 1, or shape is not a sequence.
      TypeError: hidden is not a sequence.
      PathError: x does not have shape [B, *shape].

    Example:
      >>> import jax.numpy as jnp
      >>> model = autoencoder((8, 8, 1), [32], 4)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
      >>> params["encode"]["dense_1"]["w"].shape
      (32, 4)
      >>> model.apply(params, {}, jnp.ones((2, 8, 8, 1)))[0].shape
      (2, 8, 8, 1)

    Source: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural
    networks"; Goodfellow, Bengio and Courville 2016, "Deep Learning", chapter 14.
    """
    remedy = "pass the shape of one input, such as (28, 28, 1)"
    check_kind("autoencoder", "shape", shape, Sequence, "a list of sizes", remedy)
    sizes = tuple(shape)

    def forward(f: Any, x: jax.Array) -> jax.Array:
        check_array("autoencoder", x)
        if x.shape[1:] != sizes:
            raise PathError(
                f"expected x {['B', *sizes]}, got {list(x.shape)}; reshape x, or pass its shape to "
                "autoencoder",
                layer="autoencoder",
            )
        return f.decode(f.encode(x))

    unflatten = function(lambda y: y.reshape(y.shape[0], *sizes), "unflatten")
    return network(
        forward,
        name="autoencoder",
        encode=mlp(hidden, code, activation=activation),
        decode=chain(
            mlp(list(hidden)[::-1], math.prod(sizes), activation=activation),
            unflatten,
            name="decode",
        ),
    )
