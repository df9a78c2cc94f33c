"""Convolutions and their transposes: the same weighted sum over every window of an image.

[..., *spatial, C] is any number of images with 1 to 3 spatial axes and C channels. F is the number
of features, G the number of groups.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import as_int, check_count, is_count, named_in_errors
from fdl.core.any_spatial_axes import one_for_all_axes
from fdl.core.decoding_cache import at_once, sliding
from fdl.core.layer import Layer, subkey
from fdl.core.networks import chain
from fdl.initializers import lecun_normal, zeros
from fdl.initializers.fan_counts import Shared
from fdl.ops.convolution import convolve, convolve_transposed
from fdl.ops.windows_and_padding import (
    NAMES,
    Edges,
    Padding,
    Window,
    as_images,
    check_images,
    check_padding,
    check_sizes,
    fit,
    for_each_axis,
)
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State


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

    The kernel is not flipped: this is a cross-correlation, as in all deep-learning libraries. `low`
    is the number of elements that the padding adds before the first element of x.

    Args:
      features: F, the number of outputs at each position, >= 1.
      kernel_size: one size for each spatial axis: (3, 3) for images, (3,) for sequences, (3, 3, 3)
        for volumes. An integer is the size for all axes; x is then [B, *spatial, C], and every axis
        between the first and the last is spatial.
      stride: the step from one window to the next; an integer for all axes, or one for each.
      padding: "SAME" adds as many zeros as ceil(size / stride) windows need; half of them, rounded
        down, are before the first element (as in XLA, TensorFlow and Keras; torch has "same" only
        for stride 1). "VALID" pads nothing. "CAUSAL", for one axis, puts all padding before the
        first element. "CIRCULAR", "REFLECT" and "EDGE" repeat elements of the image, as torch does
        with padding="same" and padding_mode "circular", "reflect" and "replicate". An integer p
        adds p zeros at both ends, as in torch. A tuple has an integer or a pair (low, high) for
        each axis.
      dilation: the step on the image from one element of the kernel to the next; an integer for all
        axes, or one for each.
      groups: G. Features and channels are divided into G parts; each part of the features reads
        only the matching part of the channels.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, C / G, F]. Its fan_out, the number of outputs that one
        input reaches, is prod(kernel_size) * F / (G * prod(strides)).
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, F]; params {"w", "b"}, with the dtype
      of the x that is passed to `init`.

    Raises:
      ValueError: an option is out of range, padding has an unknown name, or F is not a multiple of
        G.
      PathError: x is not [..., *spatial, C], has an integer dtype or is smaller than one window; or
        C is not a multiple of G, or does not fit w.

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
    _check_features("conv", features, groups)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, len(kernel), groups=groups)
        reached = 1 / (groups * math.prod(strides))
        shape = Shared((*kernel, x.shape[-1] // groups, features), outputs=reached)
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
        weights: dict[str, Any] = {"bias": bias, "w_init": w_init, "b_init": b_init, "name": name}
        return conv(features, kernel, padding="VALID", dilation=dilations, groups=groups, **weights)

    layer = Layer(name, init, apply)
    return _with_decoding(layer, kernel, strides, dilations, edges, without_padding)


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
    """A separate convolution of each channel: `conv` with as many groups as channels.

    Args:
      kernel_size, stride, padding, dilation: as in `conv`.
      multiplier: M, the number of features for each channel, >= 1; feature c * M + m is computed
        from channel c.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, 1, C * M].
      b_init: initializer of b [C * M].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, C * M]; params {"w", "b"}.

    Raises:
      ValueError, PathError: as in `conv`.

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
        "depthwise_conv", "multiplier", multiplier, "pass the number of outputs of each channel"
    )
    windows: dict[str, Any] = {
        "stride": for_each_axis("depthwise_conv", "stride", stride, len(kernel)),
        "dilation": for_each_axis("depthwise_conv", "dilation", dilation, len(kernel)),
        "padding": check_padding("depthwise_conv", padding, len(kernel)),
    }
    weights: dict[str, Any] = {"bias": bias, "w_init": w_init, "b_init": b_init, "name": name}

    def of(channels: int) -> Layer:
        return conv(channels * multiplier, kernel, groups=channels, **windows, **weights)

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
            kernel, multiplier=multiplier, padding="VALID", dilation=dilation, **weights
        )

    layer = Layer(name, init, apply)
    return _with_decoding(layer, kernel, **windows, without_padding=without_padding)


@named_in_errors
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
    """A depthwise convolution, then a dense layer at each position.

    Args:
      features: F, the number of outputs at each position, >= 1.
      kernel_size, stride, padding, dilation, multiplier: as in `depthwise_conv`.
      bias: whether the dense layer adds b. The depthwise convolution has no bias.
      w_init: initializer of both w, the depthwise and the pointwise one.
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, F]; params {"depthwise": {"w"},
      "pointwise": {"w", "b"}}.

    Raises:
      ValueError, PathError: as in `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = separable_conv(16, (3, 3))
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 5)))
      >>> jax.tree.map(jnp.shape, params)["pointwise"]
      {'b': (16,), 'w': (1, 1, 5, 16)}

    Source: Chollet 2017, "Xception", arXiv 1610.02357, section 2.
    """
    windows: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    pointwise_size: int | tuple[int, ...] = 1
    if not is_count(as_int(kernel_size)):
        pointwise_size = (1,) * len(check_sizes("separable_conv", "kernel_size", kernel_size))
    return chain(
        depthwise=depthwise_conv(
            kernel_size, multiplier=multiplier, **windows, bias=False, w_init=w_init
        ),
        pointwise=conv(features, pointwise_size, bias=bias, w_init=w_init, b_init=b_init),
        name=name,
    )


@one_for_all_axes("kernel_size")
def conv_transpose(
    features: int,
    kernel_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = "SAME",
    output_padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "conv_transpose",
) -> Layer:
    """The gradient of a convolution with respect to its input: adds x[p] w to window p of y.

    y[q, f] = b[f] + the sum of x[p, c] w[t, f, c] over all c, and over all p and t for which
    p * stride + t * dilation - low = q. `low` is the padding before the first element of y.

    Args:
      features: F, the number of outputs at each position, >= 1.
      kernel_size: one size for each spatial axis, or an integer for all, as in `conv`.
      stride: the step from one window to the next on y, so y is about `stride` times larger than x.
      padding: the padding of the convolution from y to x. "SAME" makes size * stride outputs;
        "VALID" makes all outputs that a window reaches: (size - 1) * stride + max(extent, stride),
        where extent = (kernel - 1) * dilation + 1. Both are the same as in TensorFlow, Keras and
        Flax. Integers or pairs, as in `conv`, are the numbers of outputs that are removed at the
        two ends, as in torch.
      output_padding: the number of outputs that are added at the high end, as in torch; less than
        the larger of stride and dilation. Allowed only if padding is integers or pairs.
      dilation: the step on y from one element of the kernel to the next.
      groups: G. Features and channels are divided into G parts; each part of the features reads
        only the matching part of the channels.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, F / G, C], the kernel of the convolution from y to x.
        It draws an array [*kernel_size, C / G, F], which is then rearranged. Its fan_in, the number
        of inputs that reach one output, is prod(kernel_size) * C / (G * prod(strides)). Its
        fan_out, the number of outputs that one input reaches, is prod(kernel_size) * F / G.
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *outputs, F]; params {"w", "b"}.

    Raises:
      ValueError: an option is out of range, or padding has an unknown name.
      PathError: as in `conv`; or padding removes all outputs of an axis.

    Example:
      >>> layer = conv_transpose(8, (4, 4), stride=2)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((4, 7, 7, 16)))
      >>> y, state = layer.apply(params, state, jnp.ones((4, 7, 7, 16)))
      >>> params["w"].shape, y.shape
      ((4, 4, 8, 16), (4, 14, 14, 8))

    Source: Dumoulin and Visin 2016, arXiv 1603.07285, section 4; Zeiler et al. 2010,
    "Deconvolutional networks".
    """
    kernel = check_sizes("conv_transpose", "kernel_size", kernel_size)
    strides = for_each_axis("conv_transpose", "stride", stride, len(kernel))
    dilations = for_each_axis("conv_transpose", "dilation", dilation, len(kernel))
    edges = check_padding("conv_transpose", padding, len(kernel), ("SAME", "VALID"))
    _check_features("conv_transpose", features, groups)
    extra = _check_output_padding(output_padding, padding, strides, dilations)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, len(kernel), groups=groups)
        # fan_in is divided by prod(strides), because along each axis, only one in `stride` elements
        # of the kernel reaches a given output.
        read = 1 / math.prod(strides)
        shape = Shared((*kernel, x.shape[-1] // groups, features), read, 1 / groups)
        w = w_init(subkey(key, "w"), shape, x.dtype).reshape(*shape[:-1], groups, -1)
        params = {"w": jnp.swapaxes(w, -1, -3).reshape(*kernel, features // groups, -1)}
        if bias:
            params["b"] = b_init(subkey(key, "b"), (features,), x.dtype)
        return params, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        check_images(name, x, len(kernel), channels=params["w"].shape[-1])
        images = as_images(x, len(kernel))
        window = _window(name, images.shape[1:-1], kernel, strides, edges, extra, dilations, groups)
        y = convolve_transposed(images, params["w"], window)
        y = y.reshape(*x.shape[: -len(kernel) - 1], *y.shape[1:])
        return (y + params["b"] if bias else y), state

    return at_once(Layer(name, init, apply))


def _check_features(layer: str, features: int, groups: int) -> None:
    """Raises unless both are integers >= 1, and features is a multiple of groups."""
    check_count(layer, "features", features, "pass the number of outputs")
    if not is_count(groups) or features % groups:
        raise ValueError(
            f"{layer}: expected groups, an integer divisor of {features} features, got {groups}; "
            "choose a common divisor of the features and of the channels of x"
        )


def _with_decoding(
    layer: Layer,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Edges,
    without_padding: Callable[[], Layer],
) -> Layer:
    """Gives the layer its form for decoding, which depends on its window.

    A layer that computes each output from the one element at its position is returned unchanged. A
    layer with one spatial axis whose windows end at the position of the output gets an incremental
    form. Any other layer cannot be used in decoding.
    """
    extent = Window(kernel, kernel, stride, ((0, 0),) * len(kernel), dilation).extent
    unpadded = padding in NAMES or not any(map(any, padding))
    if {*extent, *stride} == {1} and unpadded:
        return layer
    before = extent[0] - 1
    if stride == (1,) and padding in ("CAUSAL", ((before, 0),)):
        return dataclasses.replace(
            layer, decoding=lambda length: sliding(without_padding(), before)
        )
    return at_once(layer)


def _window(
    layer: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Edges,
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Window:
    """The window of the convolution from y to x, where x has the spatial axes `sizes`."""
    rank = len(kernel)
    found = ((0, 0),) * rank if isinstance(padding, str) else padding
    input, edges = [], []
    extents = Window(sizes, kernel, stride, found, dilation).extent
    axes = zip(sizes, extents, stride, found, output_padding, strict=True)
    for n, extent, s, (low, high), extra in axes:
        if padding == "SAME":
            total = max(extent - s, 0)
            low, high = total // 2, total - total // 2
        reach = (n - 1) * s + (max(extent, s) if isinstance(padding, str) else extent)
        input.append(reach - low - high + extra)
        edges.append((low, high - extra))
    if min(input) < 1:
        raise PathError(
            f"expected at least one output along each axis, got none for sizes {list(sizes)} and "
            f"padding {list(found)}; pad less",
            layer=layer,
        )
    return Window(tuple(input), kernel, stride, tuple(edges), dilation, groups)


def _check_output_padding(
    output_padding: Any, padding: Padding, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    more = (output_padding,) * len(stride) if isinstance(output_padding, int) else output_padding
    right = isinstance(more, Sequence) and len(more) == len(stride)
    if not right or not all(
        is_count(n, least=0) and n < max(s, d)
        for n, s, d in zip(more, stride, dilation, strict=True)
    ):
        raise ValueError(
            "conv_transpose: expected output_padding >= 0 and less than the larger of stride and "
            f"dilation, for each of {len(stride)} axes, got {output_padding!r}; pass 0 for the "
            "smallest output"
        )
    if any(more) and isinstance(padding, str):
        raise ValueError(
            "conv_transpose: expected a padding of integers or pairs with output_padding, got "
            f"padding {padding!r}; pass integers as padding, or leave output_padding out"
        )
    return tuple(more)
