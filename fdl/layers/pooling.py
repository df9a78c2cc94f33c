"""Pooling: every window of an image becomes one number, for each channel.

[..., *spatial, C] is any number of images with 1 to 3 spatial axes and C channels. Images are
pooled along one axis after another, which gives the result of pooling along all axes at once; a
3 x 3 window then takes 3 + 3 steps instead of 9.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.core.any_spatial_axes import one_for_all_axes
from fdl.core.layer import Layer
from fdl.layers.weightless import on_images
from fdl.ops.pooling import dilated, exact, largest, total
from fdl.ops.windows_and_padding import (
    Padding,
    Window,
    as_images,
    check_padding,
    check_sizes,
    fit,
    for_each_axis,
)
from fdl.paths import PathError

PADDINGS = ("SAME", "VALID")

Pool = Callable[[jax.Array, Window], jax.Array]


@one_for_all_axes("window")
def max_pool(
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    dilation: int | tuple[int, ...] = 1,
    name: str = "max_pool",
) -> Layer:
    """y[p] = max over t of x[p * stride + t * dilation - low], for positions t in the window.

    `low` is the number of elements that the padding adds before the first element of x. If the
    maximum occurs several times in a window, its first occurrence in row-major order gets the
    gradient, as in torch.

    Args:
      window: one size for each spatial axis. An integer is the size for all axes; x is then [B,
        *spatial, C], and every axis between the first and the last is spatial.
      stride: the step from one window to the next, an integer for all axes, or one for each. None
        means that the step is the size of the window, so that windows do not overlap.
      padding: "VALID" or "SAME"; one integer for all axes; or a tuple with an integer or a pair for
        each axis, as in `conv`. The added elements are minus infinity.
      dilation: the step on the image from one element of the window to the next, an integer for all
        axes, or one for each. If all elements of a dilated window are padding, y is minus infinity,
        as in torch.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, C]; no params, no state.

    Raises:
      ValueError: an option is out of range, or padding has an unknown name.
      PathError: x is not [..., *spatial, C], has an integer dtype, or is smaller than one window.

    Example:
      >>> x = jnp.array([1.0, 3.0, 2.0, 0.0]).reshape(1, 4, 1)
      >>> max_pool((2,)).apply({}, {}, x)[0].ravel()
      Array([3., 2.], dtype=float32)

    Source: Ranzato et al. 2007, "Unsupervised learning of invariant feature hierarchies".
    """
    return _pooling(name, "max_pool", window, stride, padding, dilation, _largest_of_windows)


@one_for_all_axes("window")
def average_pool(
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    dilation: int | tuple[int, ...] = 1,
    count_padding: bool = False,
    name: str = "average_pool",
) -> Layer:
    """y[p] = mean over t of x[p * stride + t * dilation - low], for positions t in the window.

    `low` is the number of elements that the padding adds before the first element of x. The sum is
    computed in float32 or wider.

    Args:
      window, stride, padding, dilation: as in `max_pool`, but the added elements are 0.
      count_padding: True divides by the size of the window, as in torch; False divides by the
        number of elements that are not padding.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *windows, C]; no params, no state.

    Raises:
      ValueError, PathError: as in `max_pool`.

    Example:
      >>> x = jnp.array([1.0, 3.0, 2.0]).reshape(1, 3, 1)
      >>> average_pool((2,), padding="SAME").apply({}, {}, x)[0].ravel()
      Array([2., 2.], dtype=float32)

    Source: LeCun et al. 1989, "Handwritten digit recognition with a back-propagation network".
    """
    mean = functools.partial(_mean_of_windows, count_padding=count_padding)
    return _pooling(name, "average_pool", window, stride, padding, dilation, mean)


def global_max_pool(*, name: str = "global_max_pool") -> Layer:
    """y[b, c] = the largest element of channel c. The first of equal elements gets the gradient.

    Args:
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, *spatial, C] to y [B, C]; no params, no state.

    Raises:
      PathError: x has no spatial axis, a spatial axis of size 0, or an integer dtype.

    Example:
      >>> global_max_pool().apply({}, {}, jnp.arange(12.0).reshape(1, 2, 3, 2))[0]
      Array([[10., 11.]], dtype=float32)

    Source: Oquab et al. 2015, "Is object localization for free?", section 3.
    """
    return _over_all(name, lambda x: largest(x, 1, x.shape[1], x.shape[1])[:, 0])


def global_average_pool(*, name: str = "global_average_pool") -> Layer:
    """y[b, c] = the mean of channel c over all positions, computed in float32 or wider.

    Args:
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, *spatial, C] to y [B, C]; no params, no state.

    Raises:
      PathError: x has no spatial axis, a spatial axis of size 0, or an integer dtype.

    Example:
      >>> global_average_pool().apply({}, {}, jnp.arange(12.0).reshape(1, 2, 3, 2))[0]
      Array([[5., 6.]], dtype=float32)

    Source: Lin, Chen and Yan 2013, "Network in network", arXiv 1312.4400, section 3.2.
    """
    return _over_all(name, lambda x: (exact(x).sum(1) / x.shape[1]).astype(x.dtype))


@one_for_all_axes("sizes")
def adaptive_max_pool(sizes: int | tuple[int, ...], *, name: str = "adaptive_max_pool") -> Layer:
    """The maximum of each window, for a fixed number of windows in images of any size.

    Along an axis of n elements, window i of `size` windows begins at floor(i * n / size) and ends
    before ceil((i + 1) * n / size).

    Args:
      sizes: the number of windows along each spatial axis; or an integer for all axes, as in
        `max_pool`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *sizes, C]; no params, no state.

    Raises:
      ValueError: a size is < 1.
      PathError: x is not [..., *spatial, C], has an integer dtype, or has a spatial axis of size 0.

    Example:
      >>> adaptive_max_pool((2,)).apply({}, {}, jnp.arange(5.0).reshape(1, 5, 1))[0].ravel()
      Array([2., 4.], dtype=float32)

    Source: torch.nn.AdaptiveMaxPool2d; He et al. 2014, arXiv 1406.4729, section 2.2.
    """
    return _adaptive(name, "adaptive_max_pool", sizes, _largest_of_parts)


@one_for_all_axes("sizes")
def adaptive_average_pool(
    sizes: int | tuple[int, ...], *, name: str = "adaptive_average_pool"
) -> Layer:
    """The mean of each window of `adaptive_max_pool`, computed in float32 or wider.

    Args:
      sizes: the number of windows along each spatial axis; or an integer for all axes, as in
        `max_pool`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *sizes, C]; no params, no state.

    Raises:
      ValueError, PathError: as in `adaptive_max_pool`.

    Example:
      >>> adaptive_average_pool((2,)).apply({}, {}, jnp.arange(5.0).reshape(1, 5, 1))[0].ravel()
      Array([1., 3.], dtype=float32)

    Source: torch.nn.AdaptiveAvgPool2d.
    """
    return _adaptive(name, "adaptive_average_pool", sizes, _mean_of_parts)


def _pooling(
    name: str,
    who: str,
    window: Any,
    stride: Any,
    padding: Padding,
    dilation: Any,
    pool: Pool,
) -> Layer:
    kernel = check_sizes(who, "window", window)
    strides = kernel if stride is None else for_each_axis(who, "stride", stride, len(kernel))
    dilations = for_each_axis(who, "dilation", dilation, len(kernel))
    edges = check_padding(who, padding, len(kernel), PADDINGS)
    if not isinstance(edges, str) and any(max(e) >= k for e, k in zip(edges, kernel, strict=True)):
        raise ValueError(
            f"{who}: expected a padding smaller than the window {kernel}, got {padding!r}; pad "
            "less, so that every window contains an element of x"
        )

    def of(x: jax.Array) -> jax.Array:
        images = as_images(x, len(kernel))
        images, window = fit(name, images, kernel, strides, edges, dilations)
        y = pool(images, window)
        return y.reshape(*x.shape[: -len(kernel) - 1], *y.shape[1:])

    return on_images(name, len(kernel), of)


def _over_all(name: str, pool: Callable[[jax.Array], jax.Array]) -> Layer:
    """A layer for images that applies `pool`, a function from [B, positions, C] to [B, C]."""

    def of(x: jax.Array) -> jax.Array:
        _check_elements(name, x, x.shape[1:-1])
        return pool(jax.lax.collapse(x, 1, x.ndim - 1))

    return on_images(name, 1, of, lead=1)


def _adaptive(
    name: str, who: str, sizes: Any, pool: Callable[[jax.Array, int, int], jax.Array]
) -> Layer:
    wanted = check_sizes(who, "sizes", sizes)

    def of(x: jax.Array) -> jax.Array:
        images = exact(as_images(x, len(wanted)))
        _check_elements(name, x, images.shape[1:-1])
        for axis, size in reversed(list(enumerate(wanted, 1))):
            images = pool(images, axis, size)
        return images.reshape(*x.shape[: -len(wanted) - 1], *images.shape[1:]).astype(x.dtype)

    return on_images(name, len(wanted), of)


def _check_elements(name: str, x: jax.Array, spatial: tuple[int, ...]) -> None:
    if 0 in spatial:
        raise PathError(
            f"expected an image of one or more elements, got {list(x.shape)}; pass images that are "
            "not empty, because the mean and the maximum need at least one element",
            layer=name,
        )


def _largest_of_windows(x: jax.Array, window: Window) -> jax.Array:
    # The last axis is pooled first. So if the maximum occurs several times, its first occurrence in
    # row-major order gets the gradient.
    for axis in reversed(range(len(window.kernel))):
        x = _padded(x, axis, window, -jnp.inf)
        k, s, d = (each[axis] for each in (window.kernel, window.stride, window.dilation))
        x = dilated(largest, x, axis + 1, k, s, d)
    return x


def _mean_of_windows(x: jax.Array, window: Window, count_padding: bool) -> jax.Array:
    y = exact(x)
    sizes = zip(window.kernel, window.stride, window.dilation, strict=True)
    for axis, (k, s, d) in enumerate(sizes):
        y = dilated(total, _padded(y, axis, window, 0), axis + 1, k, s, d)
        inside = np.pad(np.ones(window.input[axis]), window.padding[axis], constant_values=0)
        starts = range(0, s * window.output[axis], s)
        counts = np.array([k if count_padding else inside[i : i + k * d : d].sum() for i in starts])
        share = jnp.asarray(1 / np.maximum(counts, 1), y.dtype)
        y = y * share.reshape(-1, *(1,) * (y.ndim - axis - 2))
    return y.astype(x.dtype)


def _padded(x: jax.Array, axis: int, window: Window, value: float) -> jax.Array:
    edges = [(0, 0, 0)] * x.ndim
    edges[axis + 1] = (*window.padding[axis], 0)
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), edges) if any(edges[axis + 1]) else x


def _parts(n: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) of each of `size` windows on n elements."""
    return [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]


def _largest_of_parts(x: jax.Array, axis: int, size: int) -> jax.Array:
    parts = [
        largest(jax.lax.slice_in_dim(x, start, end, axis=axis), axis, end - start, end - start)
        for start, end in _parts(x.shape[axis], size)
    ]
    return jnp.concatenate(parts, axis)


def _mean_of_parts(x: jax.Array, axis: int, size: int) -> jax.Array:
    parts = [
        jax.lax.slice_in_dim(x, start, end, axis=axis).sum(axis) / (end - start)
        for start, end in _parts(x.shape[axis], size)
    ]
    return jnp.stack(parts, axis)
