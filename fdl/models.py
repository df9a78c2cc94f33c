"""Ready networks, made only of the public names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fdl.activations import relu
from fdl.initializers import he_normal
from fdl.layer import Layer
from fdl.layers import conv, dense, dropout, flatten, max_pool, rescale
from fdl.network import chain


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
      dropout_rate: after each activation, in [0, 1); 0 leaves the layers out.
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
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    layers.append(flatten())
    for width in hidden:
        layers += [dense(width, w_init=he_normal), activation]
        if dropout_rate:
            layers.append(dropout(dropout_rate))
    return chain(*layers, dense(outputs), name="mlp")


def lenet(classes: int, *, scale: float | None = None) -> Layer:
    """Two convolutions, a pooling and two dense layers, for small images.

    conv 3 x 3 x 32, relu, conv 3 x 3 x 64, relu, max_pool 2, flatten, dense 128, relu, dense.

    Args:
      classes: how many.
      scale: multiplies the input first, as 1 / 255 for 8-bit images; None leaves that out.

    Returns:
      A layer from x [B, H, W, C] to logits [B, classes]. Weights before a relu begin He-normal,
      biases at 0.

    Raises:
      ValueError: classes below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> params, _ = lenet(10).init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
      >>> params["conv_1"]["w"].shape, params["dense_0"]["w"].shape
      ((3, 3, 32, 64), (12544, 128))

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section
    II; with relu, max pooling and more features, as the examples of Keras and PyTorch have it.
    """
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    for features in (32, 64):
        layers += [conv(features, (3, 3), w_init=he_normal), relu]
    layers += [max_pool((2, 2)), flatten(), dense(128, w_init=he_normal), relu, dense(classes)]
    return chain(*layers, name="lenet")
