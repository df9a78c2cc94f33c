"""Networks of convolutions: LeNet's form, and the residual networks of small images."""

from typing import Any

from fdl.activations import relu
from fdl.arguments import is_count
from fdl.combinators import parallel
from fdl.initializers import he_normal
from fdl.layer import Layer
from fdl.layers import (
    batch_norm,
    conv,
    dense,
    flatten,
    global_average_pool,
    max_pool,
    rescale,
)
from fdl.network import chain


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
      >>> import jax
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


def resnet(classes: int, depth: int = 20, *, width: int = 16, scale: float | None = None) -> Layer:
    """A residual network for small images: three stages of blocks, each stage half as large.

    A convolution, then `(depth - 2) / 6` blocks of two convolutions at each of three sizes, of
    width, 2 * width and 4 * width channels; then the mean over the image, and a dense layer.

    Args:
      classes: C.
      depth: how many layers have weights, 6 n + 2: 8, 14, 20, 32, 44, 56, 110, ...
      width: channels of the first stage.
      scale: multiplies the input first, as 1 / 255 for 8-bit images; None leaves that out.

    Returns:
      A layer from x [B, H, W, channels] to logits [B, C], with running statistics in its state.
      Where a stage begins, the shortcut is a convolution of 1 x 1 with stride 2 (option B).

    Raises:
      ValueError: a depth of another form.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model = resnet(10, 8, width=4)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> sorted(params)[:4]
      ['batch_norm_0', 'conv_0', 'dense_0', 'stage_0']

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2; option B of section 4.1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if not is_count(depth) or blocks < 1 or rest:
        raise ValueError(
            f"resnet: expected a depth of 6 n + 2 with n >= 1, got {depth}; take "
            f"{6 * max(blocks, 1) + 2} or {6 * max(blocks, 0) + 8}"
        )
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    layers += [*_normed(width), relu]
    for stage in range(3):
        features = width * 2**stage
        first = _block(features, stride=2 if stage else 1, changes=stage > 0)
        others = [_block(features) for _ in range(blocks - 1)]
        layers.append(chain(first, *others, name="stage"))
    return chain(*layers, global_average_pool(), dense(classes), name="resnet")


def _normed(features: int, size: int = 3, stride: int = 1) -> list[Layer]:
    return [
        conv(features, (size, size), stride=stride, bias=False, w_init=he_normal),
        batch_norm(),
    ]


def _block(features: int, stride: int = 1, changes: bool = False) -> Layer:
    """relu(shortcut(x) + f(x)); the shortcut is x itself where the shape stays."""
    inside = chain(*_normed(features, stride=stride), relu, *_normed(features), name="inside")
    shortcut = chain(*_normed(features, 1, stride)) if changes else chain(name="shortcut")
    return chain(parallel(inside=inside, shortcut=shortcut), relu, name="block")
