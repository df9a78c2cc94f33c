"""Convolutions with few features, as convolutions of blocks of neighbouring pixels with more.

XLA's CPU compiler writes products of matrices whose rows have 32 or more elements well, and shorter
ones badly. With F features, a row has F elements. So `size` neighbouring results along the last
spatial axis are computed as one result with size * F features. It sees a block of size * stride
neighbouring pixels, and the next blocks as far as its windows reach. The kernel of blocks contains
the kernel `size` times, each time further along, and zeros elsewhere. The zeros are multiplied in
vain, which costs less than the short rows. For a 5 x 5 kernel from 1 to 6 channels, the forward
pass takes a fifth of the time (benchmarks/convolution.py). Letters mean the same as in
convolution.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.windows_and_padding import Window

WIDE = 32  # elements of a row for which products are fast
MOST = 8  # results in a block
FEW = 4  # channels of images, such as colors


def size_of_blocks(window: Window, channels: int, features: int) -> int:
    """The number of results in a block of a convolution; 1 where blocks would not be faster."""
    few = (channels <= FEW and features < WIDE) or max(channels, features) <= WIDE // 2
    return _size(window, channels, features) if few else 1


def size_for_kernel(window: Window, channels: int, features: int) -> int:
    """The same for the gradient with respect to the kernel."""
    few = features < WIDE and (channels <= FEW or window.kernel[-1] >= 5)
    return _size(window, channels, features) if few else 1


def _size(window: Window, channels: int, features: int) -> int:
    """A power of two from 2 to MOST, or 1 for a single result or windows of one pixel."""
    if window.output[-1] == 1 or window.kernel[-1] == 1:
        return 1
    size = 2
    while 2 * size <= min(MOST, WIDE // max(channels, features), window.output[-1]):
        size *= 2
    return size


def of_window(window: Window, size: int) -> Window:
    """The window on `of_image`, with `of_kernel` as its kernel."""
    step = size * window.stride[-1]
    reach = -(-((size - 1) * window.stride[-1] + window.extent[-1]) // step)
    blocks = -(-window.output[-1] // size) + reach - 1
    return dataclasses.replace(
        window,
        input=(*window.input[:-1], blocks),
        kernel=(*window.kernel[:-1], reach),
        stride=(*window.stride[:-1], 1),
        padding=(*window.padding[:-1], (0, 0)),
        dilation=(*window.dilation[:-1], 1),
    )


def of_image(x: jax.Array, window: Window, size: int) -> jax.Array:
    """x [N, ..., W, C] with its padding along W, as [N, ..., blocks, size * stride * C]."""
    step, low = size * window.stride[-1], window.padding[-1][0]
    blocks = of_window(window, size).input[-1]
    edges = [(0, 0, 0)] * x.ndim
    edges[-2] = (low, blocks * step - x.shape[-2] - low, 0)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
    return x.reshape(*x.shape[:-2], blocks, step * x.shape[-1])


def of_kernel(w: jax.Array, window: Window, size: int) -> jax.Array:
    """w [*kernel, C, F] as [..., reach, size * stride * C, size * F]."""
    stride, dilation = window.stride[-1], window.dilation[-1]
    reach = of_window(window, size).kernel[-1]
    width = reach * size * stride
    edges = [(0, 0, 0)] * w.ndim

    def placed(result: int) -> jax.Array:
        start = result * stride
        edges[-3] = (start, width - start - window.extent[-1], dilation - 1)
        return jax.lax.pad(w, jnp.zeros((), w.dtype), edges)

    every = jnp.stack([placed(result) for result in range(size)], axis=-2)
    return every.reshape(*w.shape[:-3], reach, size * stride * w.shape[-2], size * w.shape[-1])


def to_results(y: jax.Array, window: Window, size: int) -> jax.Array:
    """y [N, ..., blocks, size * F] as [N, ..., W, F], without the results beyond the last one."""
    y = y.reshape(*y.shape[:-2], y.shape[-2] * size, y.shape[-1] // size)
    return jax.lax.slice_in_dim(y, 0, window.output[-1], axis=y.ndim - 2)


def of_errors(dy: jax.Array, window: Window, size: int) -> jax.Array:
    """The transpose of `to_results`."""
    blocks = -(-window.output[-1] // size)
    edges = [(0, 0, 0)] * dy.ndim
    edges[-2] = (0, blocks * size - dy.shape[-2], 0)
    dy = jax.lax.pad(dy, jnp.zeros((), dy.dtype), edges)
    return dy.reshape(*dy.shape[:-2], blocks, size * dy.shape[-1])


def to_kernel(dw: jax.Array, like: Any, window: Window, size: int) -> jax.Array:
    """The transpose of `of_kernel`; `like` has the shape and dtype of w."""
    form = functools.partial(of_kernel, window=window, size=size)
    (found,) = jax.linear_transpose(form, like)(dw)
    return found
