"""Convolutions in blocks: several neighbouring results are computed as one with more features.

First, convolutions with few features. XLA's CPU compiler computes products of matrices fast if
their rows have 32 or more elements, and slowly if the rows are shorter. With F features, a row has
F elements. So `size` neighbouring results along the last spatial axis are computed as one result
with size * F features. It sees a block of size * stride neighbouring pixels, and the next blocks as
far as its windows reach. The kernel of blocks contains the kernel `size` times, each time further
along, and zeros elsewhere. The zeros are multiplied in vain, which costs less than the short rows.
For a 5 x 5 kernel from 1 to 6 channels, the forward pass takes a fifth of the time that it takes
without blocks.

Second, convolutions of spread images, with stride - 1 zeros between their elements, such as the
gradient with respect to the input of a convolution with strides. Neighbouring results see different
elements of the kernel beside the zeros. A block of `stride` results along each axis sees the same
elements of the image; the kernel of blocks has the elements that each result sees.

benchmarks/convolution.py measures both. Letters mean the same as in convolution.py.
"""

import dataclasses
import functools
import math

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
    """A power of two up to MOST; 1 for windows of one pixel, with gaps, or further apart than wide.

    In the other cases, most of a kernel of blocks would be zeros.
    """
    if not max(2, window.stride[-1]) <= window.kernel[-1] or window.dilation[-1] > 1:
        return 1
    size = min(2, window.output[-1])
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


def to_kernel(dw: jax.Array, window: Window, size: int) -> jax.Array:
    """The transpose of `of_kernel`."""
    step, extent = window.stride[-1], window.extent[-1]
    channels, features = dw.shape[-2] // (size * step), dw.shape[-1] // size
    width = dw.shape[-3] * size * step
    every = dw.reshape(*dw.shape[:-3], width, channels, size, features)

    def seen(result: int) -> jax.Array:
        start, axis = result * step, every.ndim - 4
        place = every[..., result, :]
        return jax.lax.slice_in_dim(place, start, start + extent, window.dilation[-1], axis)

    return functools.reduce(jnp.add, map(seen, range(size)))


def is_fast_on_spread(w: jax.Array, window: Window, spread: tuple[int, ...]) -> bool:
    """Whether blocks are faster: with few features or on three axes, and few zeros in the kernel.

    From 16 channels to 32 features, with a 3 x 3 kernel and stride 2, the gradient with respect to
    the image takes half of the time; from 32 to 64, it would take 1.2 times as long.
    """
    seen = zip(_seen(window, spread), spread, window.kernel, strict=True)
    shares = [(last - first + 1) * step / size for (first, last), step, size in seen]
    few = w.shape[-1] <= WIDE // 2 or len(spread) > 2
    return max(shares) <= 1 or (few and max(shares) <= 2)


def _seen(window: Window, spread: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, last) of each axis: block q sees the elements q + first, ..., q + last."""
    each = zip(window.padding, window.extent, spread, strict=True)
    return [(-(low // step), (extent + step - 2 - low) // step) for (low, _), extent, step in each]


def of_spread(w: jax.Array, window: Window, spread: tuple[int, ...]) -> tuple[jax.Array, Window]:
    """(kernel [..., C, spread * F], window) on the image without its spread - 1 zeros.

    Along an axis, result p = spread * q + r of the spread image sees element i of the image with
    element t of the kernel if p + t = spread * i + low.
    """
    kernel, inputs, padding = [], [], []
    for axis, (first, last) in enumerate(_seen(window, spread)):
        step, dilation, extent = spread[axis], window.dilation[axis], window.extent[axis]
        low = window.padding[axis][0]
        taps, length = last - first + 1, (last - first) * step + 1

        def seen(result: int, w: jax.Array = w, axis: int = axis) -> jax.Array:
            start = step * first + low - result
            edges = [(0, 0, 0)] * w.ndim
            edges[axis] = (-start, start + length - extent, dilation - 1)
            w = jax.lax.pad(w, jnp.zeros((), w.dtype), edges)
            return jax.lax.slice_in_dim(w, 0, length, step, axis)

        w = jnp.stack([seen(result) for result in range(step)], axis=-1)
        kernel.append(taps)
        inputs.append((window.input[axis] - 1) // step + 1)
        blocks = -(-window.output[axis] // step)
        padding.append((-first, blocks + taps - 1 - inputs[-1] + first))
    rank = len(kernel)
    w = jnp.moveaxis(w, rank + 1, -1)
    ones = (1,) * rank
    fitted = Window(tuple(inputs), tuple(kernel), ones, tuple(padding), ones)
    return w.reshape(*kernel, w.shape[rank], -1), fitted


def to_spread_results(y: jax.Array, window: Window, spread: tuple[int, ...]) -> jax.Array:
    """y [N, *blocks, spread * F] as [N, *output, F]."""
    rank, blocks = len(spread), y.shape[1:-1]
    y = y.reshape(*y.shape[:-1], *spread, y.shape[-1] // math.prod(spread))
    pairs = [axis for place in range(1, rank + 1) for axis in (place, place + rank)]
    y = y.transpose(0, *pairs, y.ndim - 1)
    y = y.reshape(y.shape[0], *(n * s for n, s in zip(blocks, spread, strict=True)), y.shape[-1])
    return jax.lax.slice(y, (0,) * y.ndim, (y.shape[0], *window.output, y.shape[-1]))
