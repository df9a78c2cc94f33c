"""What an initializer is, and what it reads off the shape of the weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fdl.paths import PathError

Initializer = Callable[..., jax.Array]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many inputs feed one output, and how many outputs one input feeds.

    Args:
      shape: `[*receptive_field, in, out]`.

    Returns:
      (fan_in, fan_out).

    Raises:
      PathError: fewer than two dimensions.

    Example:
      >>> fans((3, 3, 16, 32))
      (144, 288)
    """
    if len(shape) < 2:
        raise PathError(
            f"expected weights [..., in, out], got shape {tuple(shape)}, which has no fans; "
            "use zeros, normal or uniform here"
        )
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def need_key(key: Any) -> Any:
    """The key, or an error that says how to make one.

    Example:
      >>> need_key(None)
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: expected a random key, got None; pass jax.random.key(seed)
    """
    if key is None:
        raise PathError("expected a random key, got None; pass jax.random.key(seed)")
    return key
