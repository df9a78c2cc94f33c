"""What happens to an input before its first weights: its scale and its shape."""

import math
from typing import Any

import jax.numpy as jnp

from fdl.layer import Layer, function
from fdl.layers.cache import at_once


def rescale(scale: float, offset: float = 0.0, *, dtype: Any = jnp.float32) -> Layer:
    """y = x * scale + offset, as floating point.

    Put it first in a network that reads images: the data stay uint8 in memory, which is four times
    smaller and faster to draw batches from.

    Args:
      scale: 1 / 255 takes 8-bit pixels to [0, 1].
      offset: added afterwards.
      dtype: of y.

    Returns:
      A layer from x [...] of any real dtype to y [...].

    Example:
      >>> y, _ = rescale(1 / 255).apply({}, {}, jnp.array([0, 255], jnp.uint8))
      >>> y
      Array([0., 1.], dtype=float32)
    """
    return function(lambda x: jnp.asarray(x, dtype) * scale + offset, "rescale")


def flatten() -> Layer:
    """All axes but the first made one.

    Returns:
      A layer from x [B, ...] to y [B, D].

    Example:
      >>> flatten().apply({}, {}, jnp.ones((2, 28, 28, 1)))[0].shape
      (2, 784)
    """
    return at_once(function(lambda x: x.reshape(x.shape[0], math.prod(x.shape[1:])), "flatten"))
