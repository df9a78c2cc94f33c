"""What happens to an input before its first weights: its scale and its shape."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_number, in_dtype
from fdl.layer import Layer, function
from fdl.layers.cache import at_once


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
        check_number("rescale", f"a number {what}", value, lambda value: True, "1 / 255 is usual")

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
