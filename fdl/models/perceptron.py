"""Networks of dense layers: the multilayer perceptron, and the autoencoder made of two of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fdl.activations import relu
from fdl.checks import check_array, is_zero, said
from fdl.core.layer import Layer, function
from fdl.core.networks import chain, network
from fdl.initializers import he_normal
from fdl.layers import dense, dropout, flatten, rescale
from fdl.paths import PathError


def mlp(
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = relu,
    dropout_rate: float = 0.0,
    scale: float | None = None,
) -> Layer:
    """A multilayer perceptron: [dense, activation, dropout] for each hidden width, then a dense.

    Args:
      hidden: the widths; their number plus one is the depth, so `[64] * 3` gives depth 4.
      outputs: C, how many numbers it predicts.
      activation: between the dense layers.
      dropout_rate: after each activation, in [0, 1]; 0 leaves the layers out.
      scale: multiplies the input first, as 1 / 255 for 8-bit images; None leaves that out.

    Returns:
      A layer from x [B, ...] to logits [B, C]. Hidden weights begin He-normal, biases at 0.

    Raises:
      ValueError: a width or a rate out of range.

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
            f"mlp: expected hidden as a list of widths, got {said(hidden)}; write "
            f"mlp([{said(hidden)}], {said(outputs)}) for one hidden layer, mlp([], "
            f"{said(outputs)}) for none; the width of x is read off x"
        )
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    layers.append(flatten())
    for width in hidden:
        layers += [dense(width, w_init=he_normal), activation]
        if not is_zero(dropout_rate):
            layers.append(dropout(dropout_rate))
    return chain(*layers, dense(outputs), name="mlp")


def autoencoder(
    shape: Sequence[int],
    hidden: Sequence[int],
    code: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = relu,
) -> Layer:
    """A perceptron that says its input in a few numbers, and another that draws it again from them.

    Args:
      shape: of one input, without the batch.
      hidden: the widths on the way in; on the way out they are passed in reverse.
      code: how many numbers are between the two, >= 1.
      activation: between the dense layers; none on the code and the output.

    Returns:
      A layer from x [B, *shape] to the same shape; its two children are `encode` and `decode`.

    Raises:
      ValueError: a width below 1.
      PathError: x of another shape.

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
    own = tuple(shape)

    def forward(f: Any, x: jax.Array) -> jax.Array:
        check_array("autoencoder", x)
        if x.shape[1:] != own:
            raise PathError(
                f"expected x {['B', *own]}, got {list(x.shape)}; reshape x, or make the model for "
                "its shape",
                layer="autoencoder",
            )
        return f.decode(f.encode(x))

    back = function(lambda y: y.reshape(y.shape[0], *own), "unflatten")
    return network(
        forward,
        name="autoencoder",
        encode=mlp(hidden, code, activation=activation),
        decode=chain(
            mlp(list(hidden)[::-1], math.prod(own), activation=activation), back, name="decode"
        ),
    )
