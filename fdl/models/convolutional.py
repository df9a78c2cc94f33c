"""Convolutional networks: LeNet and ResNet."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fdl.activations import relu
from fdl.checks import described, is_count, named_in_errors
from fdl.core.combinators import parallel
from fdl.core.layer import Layer
from fdl.core.networks import chain
from fdl.initializers import he_normal
from fdl.layers import (
    batch_norm,
    conv,
    dense,
    flatten,
    global_average_pool,
    max_pool,
    rescale,
)

_Normed = Callable[..., list[Layer]]


@named_in_errors
def lenet(classes: int, *, scale: float | None = None) -> Layer:
    """Two convolutions, a max pooling and two dense layers, for small images.

    The layers are: conv 3 x 3 with 32 channels, relu, conv 3 x 3 with 64 channels, relu, max_pool
    2 x 2, flatten, dense to 128, relu, dense to the classes.

    Args:
      classes: the number of classes, >= 1.
      scale: a number that multiplies the input, such as 1 / 255 for 8-bit images. None means no
        scaling.

    Returns:
      A layer from x [B, H, W, C] to logits [B, classes]. Weights before a relu are initialized by
      `he_normal`, biases by 0.

    Raises:
      ValueError: classes is below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> params, _ = lenet(10).init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
      >>> params["conv_1"]["w"].shape, params["dense_0"]["w"].shape
      ((3, 3, 32, 64), (12544, 128))

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section
    II. Here it has relu, max pooling and more features, as in the examples of Keras and PyTorch.
    """
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    for features in (32, 64):
        layers += [conv(features, (3, 3), w_init=he_normal), relu]
    layers += [max_pool((2, 2)), flatten(), dense(128, w_init=he_normal), relu, dense(classes)]
    return chain(*layers, name="lenet")


@named_in_errors
def resnet(
    classes: int,
    depth: int | Sequence[int] = 20,
    *,
    width: int = 16,
    block: str = "basic",
    stem: str = "small",
    norm: Layer | None = None,
    symmetric_padding: bool = False,
    scale: float | None = None,
) -> Layer:
    """A residual network for images, made of stages.

    The network begins with a stem, which is a convolution and a few more layers. The stages follow;
    each is made of blocks. The first stage has `width` channels. Each later stage halves the height
    and the width of the image, and doubles the number of channels. At the end, the mean over the
    image is followed by a dense layer.

    Args:
      classes: C, the number of classes.
      depth: either a sequence, the number of blocks of each stage, such as (3, 4, 6, 3); or, only
        with block="basic", an integer 6 n + 2, such as 8, 14, 20, 32, 44, 56 or 110. The integer is
        the number of layers of the paper's network for small images, which has three stages of n
        basic blocks.
      width: the number of channels of the first stage.
      block: "basic", "bottleneck" or "bottleneck_v1". A "basic" block has two convolutions, both
        3 x 3. A "bottleneck" block has three convolutions: 1 x 1, 3 x 3 and 1 x 1. The last one,
        and so the output of the block, has four times as many channels. Where a stage halves the
        image, the 3 x 3 convolution of its first block has stride 2 (v1.5, as in torchvision). In
        "bottleneck_v1", the first 1 x 1 convolution has stride 2 instead, as in the paper.
      stem: "small" is one 3 x 3 convolution. "large", for large images, is a 7 x 7 convolution with
        stride 2, then a 3 x 3 max pooling with stride 2.
      norm: the layer after each convolution; by default `fdl.batch_norm()`.
      symmetric_padding: True pads each side of the image by s // 2 for a window of size s, as in
        torch. False pads like padding="SAME" of `conv`. The two differ only at stride 2.
      scale: a number that multiplies the input, such as 1 / 255 for 8-bit images. None means no
        scaling.

    Returns:
      A layer from x [B, H, W, channels] to logits [B, C]. Its state holds the running statistics of
      the norms. The shortcut of a block that changes the shape is a 1 x 1 convolution (option B of
      the paper).

    Raises:
      ValueError: block or stem is unknown; depth does not have one of the two forms above; classes
        or width is below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model = resnet(10, 8, width=4)
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> sorted(params)[:4]
      ['batch_norm_0', 'conv_0', 'dense_0', 'stage_0']
      >>> resnet_18 = resnet(1000, (2, 2, 2, 2), width=64, stem="large")
      >>> resnet_50 = resnet(
      ...     1000, (3, 4, 6, 3), width=64, block="bottleneck", stem="large", symmetric_padding=True
      ... )

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, table 1 and section 4.2; option B is in
    section 4.1. For the stride of v1.5: Goyal et al. 2017, arXiv 1706.02677, section 5.1.
    """
    for what, value, choices in (
        ("block", block, tuple(_BLOCKS)),
        ("stem", stem, ("small", "large")),
    ):
        if value not in choices:
            raise ValueError(
                f"resnet: expected {what} to be one of {', '.join(map(repr, choices))}, got "
                f"{described(value)}; leave it out for {choices[0]!r}"
            )
    normed = functools.partial(_normed, norm or batch_norm(), symmetric_padding)
    layers: list[Any] = [] if scale is None else [rescale(scale)]
    if stem == "small":
        layers += [*normed(width, 3), relu]
    else:
        padding: Any = 1 if symmetric_padding else "SAME"
        layers += [*normed(width, 7, 2), relu, max_pool((3, 3), stride=2, padding=padding)]
    channels = width
    for number, blocks in enumerate(_stages(depth, block)):
        features = width * 2**number
        members = []
        for stride in (2 if number else 1, *(1,) * (blocks - 1)):
            inside, after = _BLOCKS[block](normed, features, stride)
            changes = stride > 1 or after != channels
            members.append(_block(inside, normed(after, 1, stride) if changes else []))
            channels = after
        layers.append(chain(*members, name="stage"))
    return chain(*layers, global_average_pool(), dense(classes), name="resnet")


def _stages(depth: Any, block: str) -> tuple[int, ...]:
    """The number of blocks of each stage."""
    if isinstance(depth, Sequence) and depth and all(map(is_count, depth)):
        return tuple(map(int, depth))
    if not is_count(depth) or block != "basic":
        raise ValueError(
            "resnet: expected depth to be the number of blocks of each stage, integers >= 1, got "
            f"{described(depth)}; pass (3, 4, 6, 3) for a ResNet-50, or block='basic' and a depth "
            "such as 20"
        )
    blocks = max(1, (depth - 2) // 6)
    if depth != 6 * blocks + 2:
        raise ValueError(
            f"resnet: expected depth 6 n + 2 with n >= 1, got {depth}; pass {6 * blocks + 2} or "
            f"{6 * blocks + 8}"
        )
    return (blocks,) * 3


def _normed(
    norm: Layer, symmetric_padding: bool, features: int, size: int, stride: int = 1
) -> list[Layer]:
    """The layers of a convolution without bias, followed by a norm."""
    padding: Any = size // 2 if symmetric_padding else "SAME"
    window: dict[str, Any] = {"stride": stride, "padding": padding}
    return [conv(features, (size, size), **window, bias=False, w_init=he_normal), norm]


def _block(inside: list[Any], shortcut: list[Layer]) -> Layer:
    """A layer x -> relu(shortcut(x) + inside(x)). An empty shortcut returns x itself."""
    both: dict[str, Any] = {
        "inside": chain(*inside, name="inside"),
        "shortcut": chain(*shortcut, name="shortcut"),
    }
    return chain(parallel(**both), relu, name="block")


def _basic(normed: _Normed, features: int, stride: int) -> tuple[list[Any], int]:
    """(The layers of a block without its shortcut, the number of its output channels)."""
    return [*normed(features, 3, stride), relu, *normed(features, 3)], features


def _bottleneck(
    normed: _Normed, features: int, stride: int, first: int = 1
) -> tuple[list[Any], int]:
    reduce, look, widen = (features, 1, first), (features, 3, stride // first), (4 * features, 1)
    return [*normed(*reduce), relu, *normed(*look), relu, *normed(*widen)], 4 * features


def _bottleneck_v1(normed: _Normed, features: int, stride: int) -> tuple[list[Any], int]:
    return _bottleneck(normed, features, stride, first=stride)


_BLOCKS = {"basic": _basic, "bottleneck": _bottleneck, "bottleneck_v1": _bottleneck_v1}
