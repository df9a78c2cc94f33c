"""Images made larger: repeated, interpolated, or taken out of channels; and back into channels."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fdl.layer import Layer, Params, State
from fdl.layers.images import as_images, check_images
from fdl.layers.pool_axis import weighted_sums
from fdl.layers.window import check_sizes
from fdl.paths import PathError


def upsample(
    scale: tuple[int, ...],
    *,
    method: Literal["nearest", "linear"] = "nearest",
    name: str = "upsample",
) -> Layer:
    """Every element `scale` times, or interpolated between the centres of the elements.

    Args:
      scale: how many times larger, for each spatial axis.
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
                y = many.reshape(*y.shape[:axis], -1, *y.shape[axis + 1 :])
            else:
                y = weighted_sums(y, _between_centres(y.shape[axis], times), axis)
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
    _check_factor("pixel_shuffle", factor)

    def of(x: jax.Array) -> jax.Array:
        *lead, height, width, channels = x.shape
        x = x.reshape(-1, height, width, channels // factor**2, factor, factor)
        x = x.transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(*lead, height * factor, width * factor, channels // factor**2)

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
    _check_factor("pixel_unshuffle", factor)

    def of(x: jax.Array) -> jax.Array:
        *lead, height, width, channels = x.shape
        if height % factor or width % factor:
            raise PathError(
                f"expected x [..., H, W, C] with H and W multiples of {factor}, got "
                f"{list(x.shape)}; pad or crop x",
                layer=name,
            )
        x = x.reshape(-1, height // factor, factor, width // factor, factor, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(*lead, height // factor, width // factor, channels * factor**2)

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

    return Layer(name, init, apply)


def _between_centres(n: int, times: int) -> np.ndarray:
    """Weights [n, n * times]: each output is a mixture of the two inputs around it."""
    place = np.clip((np.arange(n * times) + 0.5) / times - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(np.arange(n)[:, None] - place))


def _check_factor(layer: str, factor: int) -> None:
    if factor < 1:
        raise ValueError(
            f"{layer}: expected factor >= 1, got {factor}; 2 trades 2 x 2 pixels for 4 channels"
        )
