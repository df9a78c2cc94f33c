"""Layers that change the scale or the shape of their input, and learn nothing."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fdl.checks import check_count, check_number, in_dtype
from fdl.core.any_rank import one_for_all_axes
from fdl.core.cache import at_once
from fdl.core.layer import Layer, function
from fdl.ops.pooling import exact
from fdl.ops.windows import as_images, check_images, check_sizes
from fdl.paths import PathError
from fdl.typing import Params, State


def rescale(scale: float, offset: float = 0.0, *, dtype: Any = jnp.float32) -> Layer:
    """y = x * scale + offset, as floating point.

    Put it first in a network that reads images: the data stay uint8 in memory, which is four times
    smaller and faster to draw batches from.

    Args:
      scale: 1 / 255 takes 8-bit pixels to [0, 1]; may be traced.
      offset: added afterwards; may be traced.
      dtype: of y.

    Returns:
      A layer from x [...] of any real dtype to y [...].

    Raises:
      ValueError: a scale or an offset that is no number.

    Example:
      >>> y, _ = rescale(1 / 255).apply({}, {}, jnp.array([0, 255], jnp.uint8))
      >>> y
      Array([0., 1.], dtype=float32)
    """
    for what, value in {"scale": scale, "offset": offset}.items():
        check_number("rescale", what, value, None, "1 / 255 is usual")

    def of(x: Any) -> jax.Array:
        return jnp.asarray(x, dtype) * in_dtype(scale, dtype) + in_dtype(offset, dtype)

    return function(of, "rescale")


def flatten() -> Layer:
    """All axes but the first made one.

    Returns:
      A layer from x [B, ...] to y [B, D].

    Example:
      >>> flatten().apply({}, {}, jnp.ones((2, 28, 28, 1)))[0].shape
      (2, 784)
    """
    return at_once(function(lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])), "flatten"))


FACTOR = "2 trades 2 x 2 pixels for 4 channels"


@one_for_all_axes("scale")
def upsample(
    scale: int | tuple[int, ...],
    *,
    method: Literal["nearest", "linear"] = "nearest",
    name: str = "upsample",
) -> Layer:
    """Every element `scale` times, or interpolated between the centres of the elements.

    Args:
      scale: how many times larger, for each spatial axis, or an integer for all, as of `conv`.
      method: "nearest" repeats; "linear" interpolates along each axis (on images: bilinear), output
        i standing at (i + 1/2) / scale - 1/2 and constant beyond the outer centres; these are
        torch's nearest and bilinear with align_corners=False, and Keras's.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., *spatial, C] to y [..., *(spatial * scale), C]; no params, no state.

    Raises:
      ValueError: a scale out of range, an unknown method.
      PathError: x without these axes, or of an integer dtype.

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
            f"upsample: expected method nearest or linear, got {method!r}; "
            "jax.image.resize knows others"
        )

    def of(x: jax.Array) -> jax.Array:
        y = as_images(x, len(scales))
        for axis, times in enumerate(scales, 1):
            if method == "nearest":
                many = jnp.broadcast_to(
                    jnp.expand_dims(y, axis + 1),
                    (*y.shape[: axis + 1], times, *y.shape[axis + 1 :]),
                )
                y = jax.lax.collapse(many, axis, axis + 2)
            else:
                y = _interpolated(exact(y), axis, times)
        return y.reshape(*x.shape[: -len(scales) - 1], *y.shape[1:]).astype(x.dtype)

    return _layer(name, len(scales), of)


def pixel_shuffle(factor: int, *, name: str = "pixel_shuffle") -> Layer:
    """y[r h + i, r w + j, c] = x[h, w, (c r + i) r + j], with r the factor: channels become places.

    Args:
      factor: r, how many times larger, >= 1.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C r^2] to y [..., r H, r W, C], channels in torch's order; no
      params, no state.

    Raises:
      ValueError: a factor below 1.
      PathError: x without these axes, of an integer dtype, or of channels that r^2 does not divide.

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

    return _layer(name, 2, of, groups=factor**2)


def pixel_unshuffle(factor: int, *, name: str = "pixel_unshuffle") -> Layer:
    """The inverse of `pixel_shuffle`: places become channels.

    Args:
      factor: r, how many times smaller, >= 1.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., r H, r W, C] to y [..., H, W, C r^2]; no params, no state.

    Raises:
      ValueError: a factor below 1.
      PathError: x without these axes, of an integer dtype, or of sizes that r does not divide.

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

    return _layer(name, 2, of)


def _layer(name: str, rank: int, of: Callable[[jax.Array], jax.Array], groups: int = 1) -> Layer:
    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_images(name, x, rank, groups=groups)
        return {}, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        check_images(name, x, rank, groups=groups)
        return of(x), state

    return at_once(Layer(name, init, apply))


def _interpolated(x: jax.Array, axis: int, times: int) -> jax.Array:
    """Each output is a mixture of the two inputs around it; at either end, of one with itself."""
    n = x.shape[axis]
    ends = [jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1)]
    x = jnp.concatenate([ends[0], x, ends[1]], axis)

    def beside(places: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, 1 + places, 1 + places + n, axis=axis)

    outputs = []
    for number in range(times):
        place = (number + 0.5) / times - 0.5
        before = math.floor(place)
        share = place - before
        y = beside(before)
        outputs.append((1 - share) * y + share * beside(before + 1) if share else y)
    return jax.lax.collapse(jnp.stack(outputs, axis + 1), axis, axis + 2)
