"""Layers without weights that change the scale or the shape of their input.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fdl.checks import check_count, check_number, in_dtype
from fdl.core.any_spatial_axes import one_for_all_axes
from fdl.core.decoding_cache import at_once
from fdl.core.layer import Layer, function
from fdl.layers.weightless import on_images
from fdl.ops.pooling import exact
from fdl.ops.windows_and_padding import as_images, check_sizes
from fdl.paths import PathError

FACTOR = "pass a factor such as 2, for blocks of 2 x 2 pixels"


def rescale(scale: float, offset: float = 0.0, *, dtype: Any = jnp.float32) -> Layer:
    """y = x * scale + offset, in floating point.

    Use it as the first layer of a network for images, so that the data can stay uint8 in memory.
    The data then take a quarter of the space of float32, and batches are drawn faster.

    Args:
      scale: the number by which x is multiplied; may be traced. With 1 / 255, 8-bit pixels become
        numbers in [0, 1].
      offset: the number that is added; may be traced.
      dtype: the dtype of y, a floating dtype.

    Returns:
      A layer from x [...] of any real dtype to y [...].

    Raises:
      ValueError: scale or offset is not a number.

    Example:
      >>> y, _ = rescale(1 / 255).apply({}, {}, jnp.array([0, 255], jnp.uint8))
      >>> y
      Array([0., 1.], dtype=float32)
    """
    for what, value in {"scale": scale, "offset": offset}.items():
        check_number("rescale", what, value, None, "pass a number")

    def of(x: Any) -> jax.Array:
        return jnp.asarray(x, dtype) * in_dtype(scale, dtype) + in_dtype(offset, dtype)

    return function(of, "rescale")


def flatten() -> Layer:
    """Merges all axes except the first into one.

    Returns:
      A layer from x [B, ...] to y [B, D].

    Example:
      >>> flatten().apply({}, {}, jnp.ones((2, 28, 28, 1)))[0].shape
      (2, 784)
    """
    return at_once(function(lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])), "flatten"))


@one_for_all_axes("scale")
def upsample(
    scale: int | tuple[int, ...],
    *,
    method: Literal["nearest", "linear"] = "nearest",
    name: str = "upsample",
) -> Layer:
    """Enlarges images: repeats each element `scale` times, or interpolates between elements.

    Args:
      scale: for each spatial axis, the integer >= 1 by which its size is multiplied; or one integer
        for all axes, as in `conv`.
      method: "nearest" repeats elements. "linear" interpolates along each axis (bilinear on
        images): output i is x at position (i + 1/2) / scale - 1/2, and x is constant beyond its
        first and last element. Both methods give the same result as in Keras. In torch, they are
        mode="nearest", and mode="bilinear" with align_corners=False.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *(spatial * scale), C]; no params, no state.

    Raises:
      ValueError: scale is out of range, or method is unknown.
      PathError: x is not [..., *spatial, C] or has an integer dtype.

    Example:
      >>> upsample((2,)).apply({}, {}, jnp.array([[[1.0], [3.0]]]))[0].ravel()
      Array([1., 1., 3., 3.], dtype=float32)
      >>> upsample((2,), method="linear").apply({}, {}, jnp.array([[[1.0], [3.0]]]))[0].ravel()
      Array([1. , 1.5, 2.5, 3. ], dtype=float32)

    Source: torch.nn.Upsample.
    """
    scales = check_sizes("upsample", "scale", scale)
    if method not in ("nearest", "linear"):
        raise ValueError(
            f"upsample: expected method nearest or linear, got {method!r}; for other methods, use "
            "jax.image.resize"
        )

    def of(x: jax.Array) -> jax.Array:
        y = as_images(x, len(scales))
        for axis, times in enumerate(scales, 1):
            if method == "nearest":
                repeated = jnp.broadcast_to(
                    jnp.expand_dims(y, axis + 1),
                    (*y.shape[: axis + 1], times, *y.shape[axis + 1 :]),
                )
                y = jax.lax.collapse(repeated, axis, axis + 2)
            else:
                y = _interpolated(exact(y), axis, times)
        return y.reshape(*x.shape[: -len(scales) - 1], *y.shape[1:]).astype(x.dtype)

    return on_images(name, len(scales), of)


def pixel_shuffle(factor: int, *, name: str = "pixel_shuffle") -> Layer:
    """y[r h + i, r w + j, c] = x[h, w, (c r + i) r + j], r = factor: channels become pixels.

    Args:
      factor: r, by which height and width are multiplied, >= 1.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C r^2] to y [..., r H, r W, C], with the channels in the same order
      as in torch; no params, no state.

    Raises:
      ValueError: factor < 1.
      PathError: x is not [..., H, W, C r^2], or has an integer dtype.

    Example:
      >>> pixel_shuffle(2).apply({}, {}, jnp.arange(4.0).reshape(1, 1, 4))[0][..., 0]
      Array([[0., 1.],
             [2., 3.]], dtype=float32)

    Source: Shi et al. 2016, arXiv 1609.05158, equation 4.
    """
    factor = check_count("pixel_shuffle", "factor", factor, FACTOR)

    def of(x: jax.Array) -> jax.Array:
        *lead, height, width, channels = x.shape
        x = x.reshape(*lead, height, width, channels // factor**2, factor, factor)
        x = jnp.moveaxis(x, (-2, -1), (-4, -2))
        x = jax.lax.collapse(x, x.ndim - 3, x.ndim - 1)
        return jax.lax.collapse(x, x.ndim - 4, x.ndim - 2)

    return on_images(name, 2, of, groups=factor**2)


def pixel_unshuffle(factor: int, *, name: str = "pixel_unshuffle") -> Layer:
    """The inverse of `pixel_shuffle`: pixels become channels.

    Args:
      factor: r, by which height and width are divided, >= 1.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., r H, r W, C] to y [..., H, W, C r^2]; no params, no state.

    Raises:
      ValueError: factor < 1.
      PathError: x is not [..., r H, r W, C], or has an integer dtype.

    Example:
      >>> pixel_unshuffle(2).apply({}, {}, jnp.arange(4.0).reshape(2, 2, 1))[0].ravel()
      Array([0., 1., 2., 3.], dtype=float32)

    Source: Shi et al. 2016, arXiv 1609.05158, equation 4.
    """
    factor = check_count("pixel_unshuffle", "factor", factor, FACTOR)

    def of(x: jax.Array) -> jax.Array:
        *lead, height, width, channels = x.shape
        if height % factor or width % factor:
            raise PathError(
                f"expected x [..., H, W, C] with H and W multiples of {factor}, got "
                f"{list(x.shape)}; pad or crop x",
                layer=name,
            )
        x = x.reshape(*lead, height // factor, factor, width // factor, factor, channels)
        return jax.lax.collapse(jnp.moveaxis(x, (-4, -2), (-2, -1)), x.ndim - 3)

    return on_images(name, 2, of)


def _interpolated(x: jax.Array, axis: int, times: int) -> jax.Array:
    """Linear interpolation along one axis; x is constant beyond its first and last element."""
    n = x.shape[axis]
    ends = [jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1)]
    x = jnp.concatenate([ends[0], x, ends[1]], axis)

    def shifted(by: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, 1 + by, 1 + by + n, axis=axis)

    outputs = []
    for number in range(times):
        position = (number + 0.5) / times - 0.5
        before = math.floor(position)
        share = position - before
        y = shifted(before)
        outputs.append((1 - share) * y + share * shifted(before + 1) if share else y)
    return jax.lax.collapse(jnp.stack(outputs, axis + 1), axis, axis + 2)
