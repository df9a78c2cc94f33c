"""Transposed convolution: the way back through a convolution, from its outputs to its inputs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.initializers import Initializer, lecun_normal, zeros
from fdl.initializers.shape import Shared
from fdl.layer import Layer, Params, State, subkey
from fdl.layers.any_rank import one_for_all_axes
from fdl.layers.cache import at_once
from fdl.layers.conv import check_features
from fdl.layers.convolve import convolve_transposed
from fdl.layers.images import as_images, check_images
from fdl.layers.window import (
    Edges,
    Padding,
    Window,
    check_padding,
    check_sizes,
    for_each_axis,
)
from fdl.paths import PathError


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
    """The gradient of a convolution by its input: each x[p] adds x[p] w to the window at p.

    y[p * stride + t * dilation - low, f] = b[f] + sum over p, t, c of x[p, c] w[t, f, c]

    Args:
      features: F, how many outputs at each place, >= 1.
      kernel_size: as many numbers as there are spatial axes, or an integer for all, as of `conv`.
      stride: from one window to the next on y, so that y is about so many times larger than x.
      padding: that of the convolution. "SAME" makes size * stride outputs, "VALID" all that any
        window reaches, (size - 1) * stride + max(extent, stride) with extent = (kernel - 1) *
        dilation + 1; both as TensorFlow, Keras and Flax. An integer, or an integer or a pair for
        each axis, is torch's, and leaves out so many outputs at either end.
      output_padding: torch's: so many more outputs at the high end, below stride or dilation;
        with a padding of integers or pairs.
      dilation: from one element of the kernel to the next on y.
      groups: G. Features of one part come from channels of the same part.
      bias: whether to add b.
      w_init: initializer of w [*kernel_size, F / G, C], the kernel of the convolution from F to C.
        It draws [*kernel_size, C / G, F], and its fan_in is what feeds an output here: the
        product of that shape but F, over the strides.
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *outputs, F].

    Raises:
      ValueError: a number out of range, a padding of no known name.
      PathError: as `conv`.

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
    check_features("conv_transpose", features, groups)
    more = _check_output_padding(output_padding, padding, strides, dilations)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, len(kernel), groups=groups)
        # An output is reached by one in `stride` of the elements of the kernel, along each axis.
        shape = Shared((*kernel, x.shape[-1] // groups, features), 1 / math.prod(strides))
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
        window = _window(name, images.shape[1:-1], kernel, strides, edges, more, dilations, groups)
        y = convolve_transposed(images, params["w"], window)
        y = y.reshape(*x.shape[: -len(kernel) - 1], *y.shape[1:])
        return (y + params["b"] if bias else y), state

    return at_once(Layer(name, init, apply))


def _window(
    layer: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Edges,
    more: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Window:
    """The window of the convolution that makes `sizes` windows on what is wanted here."""
    rank = len(kernel)
    found = ((0, 0),) * rank if isinstance(padding, str) else padding
    input, edges = [], []
    extents = Window(sizes, kernel, stride, found, dilation).extent
    each = zip(sizes, extents, stride, found, more, strict=True)
    for n, extent, s, (low, high), extra in each:
        if padding == "SAME":
            total = max(extent - s, 0)
            low, high = total // 2, total - total // 2
        reach = (n - 1) * s + (max(extent, s) if isinstance(padding, str) else extent)
        input.append(reach - low - high + extra)
        edges.append((low, high - extra))
    if min(input) < 1:
        raise PathError(
            f"expected x whose outputs are more than the padding leaves out, got {list(sizes)} "
            f"and padding {list(found)}; pad less",
            layer=layer,
        )
    return Window(tuple(input), kernel, stride, tuple(edges), dilation, groups)


def _check_output_padding(
    output_padding: Any, padding: Padding, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    more = (output_padding,) * len(stride) if isinstance(output_padding, int) else output_padding
    right = isinstance(more, Sequence) and len(more) == len(stride)
    if not right or not all(
        0 <= n < max(s, d) for n, s, d in zip(more, stride, dilation, strict=True)
    ):
        raise ValueError(
            "conv_transpose: expected output_padding from 0 to below stride or dilation, one for "
            f"each of {len(stride)} axes, got {output_padding!r}; 0 is the smallest that fits"
        )
    if any(more) and isinstance(padding, str):
        raise ValueError(
            "conv_transpose: expected output_padding with a padding of integers or pairs, got "
            f"padding {padding!r}, which fixes the size; pad by integers, or leave it out"
        )
    return tuple(more)
