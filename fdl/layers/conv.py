"""Convolution: every output is a weighted sum of a small window of the image, the same for all.

[..., *spatial, C] is any number of images with 1 to 3 spatial axes and C channels. F is the number
of features, G of groups.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from fdl.arguments import check_count, counted, is_count
from fdl.initializers import Initializer, lecun_normal, zeros
from fdl.layer import Layer, Params, State, subkey
from fdl.layers.any_rank import one_for_all_axes
from fdl.layers.cache import at_once, sliding
from fdl.layers.convolve import convolve
from fdl.layers.images import as_images, check_images, fit
from fdl.layers.window import (
    NAMES,
    Edges,
    Padding,
    Window,
    check_padding,
    check_sizes,
    for_each_axis,
)
from fdl.network import chain


@one_for_all_axes("kernel_size")
def conv(
    features: int,
    kernel_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "conv",
) -> Layer:
    """y[p, f] = b[f] + sum over t, c of x[p * stride + t * dilation - low, c] w[t, c, f].

    The kernel is not turned round (it is a cross-correlation, as in all libraries).

    Args:
      features: F, how many outputs at each place, >= 1.
      kernel_size: (3, 3) for images, (3,) for sequences, (3, 3, 3) for volumes: as many numbers as
        there are spatial axes. An integer is for all of them: x is then [B, *spatial, C], and each
        axis between the first and the last is spatial.
      stride: from one window to the next; an integer for all axes, or one for each.
      padding: "SAME" makes ceil(size / stride) windows with low = total // 2 (XLA's, TensorFlow's
        and Keras's meaning; torch's "same" is the case of stride 1). "VALID" is none. "CAUSAL", for
        one axis, puts all of it before the first element. "CIRCULAR", "REFLECT" and "EDGE" surround
        the image with its own elements, as torch's padding_mode circular, reflect and replicate
        with padding "same". An integer p is torch's: p zeros at either end. Or an integer or a pair
        (low, high) for each axis.
      dilation: from one element of the kernel to the next on the image.
      groups: G. Features fall into G parts, each of which sees one of G parts of the channels.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, C / G, F].
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, F]; params {"w", "b"} in the dtype of
      the x that `init` sees.

    Raises:
      ValueError: a number out of range, a padding of no known name, features G does not divide.
      PathError: x without these axes, of another C than w, of a C that G does not divide, of an
        integer dtype, or smaller than one window.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = conv(8, (3, 3), stride=2)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((4, 28, 28, 1)))
      >>> y, state = layer.apply(params, state, jnp.ones((4, 28, 28, 1)))
      >>> params["w"].shape, y.shape
      ((3, 3, 1, 8), (4, 14, 14, 8))

    Source: LeCun et al. 1989, "Backpropagation applied to handwritten zip code recognition";
    Dumoulin and Visin 2016, arXiv 1603.07285.
    """
    kernel = check_sizes("conv", "kernel_size", kernel_size)
    strides = for_each_axis("conv", "stride", stride, len(kernel))
    dilations = for_each_axis("conv", "dilation", dilation, len(kernel))
    edges = check_padding("conv", padding, len(kernel))
    check_features("conv", features, groups)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, len(kernel), groups=groups)
        shape = (*kernel, x.shape[-1] // groups, features)
        params = {"w": w_init(subkey(key, "w"), shape, x.dtype)}
        if bias:
            params["b"] = b_init(subkey(key, "b"), (features,), x.dtype)
        return params, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        w = params["w"]
        check_images(name, x, len(kernel), channels=w.shape[-2] * groups)
        images, window = fit(
            name, as_images(x, len(kernel)), kernel, strides, edges, dilations, groups
        )
        y = convolve(images, w, window)
        y = y.reshape(*x.shape[: -len(kernel) - 1], *y.shape[1:])
        return (y + params["b"] if bias else y), state

    def without_padding() -> Layer:
        own: dict[str, Any] = {"bias": bias, "w_init": w_init, "b_init": b_init, "name": name}
        return conv(features, kernel, padding="VALID", dilation=dilations, groups=groups, **own)

    layer = Layer(name, init, apply)
    return _decoded(layer, kernel, strides, dilations, edges, without_padding)


@one_for_all_axes("kernel_size")
def depthwise_conv(
    kernel_size: int | tuple[int, ...],
    *,
    multiplier: int = 1,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "depthwise_conv",
) -> Layer:
    """A convolution of every channel by itself: `conv` with as many groups as channels.

    Args:
      kernel_size, stride, padding, dilation: as of `conv`.
      multiplier: M, how many features each channel gives; feature c * M + m is of channel c.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, 1, C * M].
      b_init: initializer of b [C * M].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, C * M].

    Raises:
      ValueError, PathError: as `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = depthwise_conv((3, 3), multiplier=2)
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 5)))
      >>> params["w"].shape
      (3, 3, 1, 10)

    Source: Chollet 2017, "Xception", arXiv 1610.02357, section 2.
    """
    kernel = check_sizes("depthwise_conv", "kernel_size", kernel_size)
    multiplier = check_count(
        "depthwise_conv", "multiplier", multiplier, "say how many outputs each channel has"
    )
    windows: dict[str, Any] = {
        "stride": for_each_axis("depthwise_conv", "stride", stride, len(kernel)),
        "dilation": for_each_axis("depthwise_conv", "dilation", dilation, len(kernel)),
        "padding": check_padding("depthwise_conv", padding, len(kernel)),
    }
    own: dict[str, Any] = {"bias": bias, "w_init": w_init, "b_init": b_init, "name": name}

    def of(channels: int) -> Layer:
        return conv(channels * multiplier, kernel, groups=channels, **windows, **own)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, len(kernel))
        return of(x.shape[-1]).init(key, x)

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        channels = params["w"].shape[-1] // multiplier
        check_images(name, x, len(kernel), channels=channels)
        return of(channels).apply(params, state, x)

    def without_padding() -> Layer:
        return depthwise_conv(
            kernel, multiplier=multiplier, padding="VALID", dilation=dilation, **own
        )

    layer = Layer(name, init, apply)
    return _decoded(layer, kernel, **windows, without_padding=without_padding)


def separable_conv(
    features: int,
    kernel_size: int | tuple[int, ...],
    *,
    multiplier: int = 1,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    dilation: int | tuple[int, ...] = 1,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "separable_conv",
) -> Layer:
    """A depthwise convolution, then a mixture of its features at each place.

    Args:
      features: F, how many outputs at each place.
      kernel_size, stride, padding, dilation, multiplier: as of `depthwise_conv`.
      bias: whether the mixture adds b; between the two there is none.
      w_init: initializer of both kernels.
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, F]; params {"depthwise": {"w"},
      "pointwise": {"w", "b"}}.

    Raises:
      ValueError, PathError: as `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = separable_conv(16, (3, 3))
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 5)))
      >>> jax.tree.map(jnp.shape, params)["pointwise"]
      {'b': (16,), 'w': (1, 1, 5, 16)}

    Source: Chollet 2017, "Xception", arXiv 1610.02357, section 2.
    """
    windows: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    one: int | tuple[int, ...] = 1
    if not is_count(counted(kernel_size)):
        one = (1,) * len(check_sizes("separable_conv", "kernel_size", kernel_size))
    return chain(
        depthwise=depthwise_conv(
            kernel_size, multiplier=multiplier, **windows, bias=False, w_init=w_init
        ),
        pointwise=conv(features, one, bias=bias, w_init=w_init, b_init=b_init),
        name=name,
    )


def check_features(layer: str, features: int, groups: int) -> None:
    """Refuses features that do not fall into groups.

    Example:
      >>> check_features("conv", 8, 3)
      Traceback (most recent call last):
      ...
      ValueError: conv: expected groups >= 1 that divide the 8 features, got 3; ...
    """
    check_count(layer, "features", features, "say how many outputs there are")
    if not is_count(groups) or features % groups:
        raise ValueError(
            f"{layer}: expected groups >= 1 that divide the {features} features, got {groups}; "
            "take a common divisor of the channels of x and the features"
        )


def _decoded(
    layer: Layer,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Edges,
    without_padding: Callable[[], Layer],
) -> Layer:
    """With its twin for decoding, if no window sees what comes after its place."""
    extent = Window(kernel, kernel, stride, ((0, 0),) * len(kernel), dilation).extent
    each_by_itself = padding in NAMES or not any(map(any, padding))
    if {*extent, *stride} == {1} and each_by_itself:
        return layer
    before = extent[0] - 1
    if stride == (1,) and padding in ("CAUSAL", ((before, 0),)):
        return dataclasses.replace(layer, decoding=lambda room: sliding(without_padding(), before))
    return at_once(layer)
