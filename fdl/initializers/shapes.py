"""What an initializer is, and what it reads off the shape of the weights."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from fdl.checks import check_key
from fdl.paths import PathError


class Shared(tuple[int, ...]):
    """The shape of weights of which an output is fed by a share only, as with a stride on outputs.

    Args:
      shape: `[*receptive_field, in, out]`.
      share: of an output's weights, the mean over outputs.
    """

    share: float

    def __new__(cls, shape: Iterable[int], share: float) -> "Shared":
        """A tuple with one attribute more."""
        made = super().__new__(cls, shape)
        made.share = share
        return made

    # As a static argument of jax.jit it must not pass for a plain tuple.
    def __eq__(self, other: object) -> bool:
        """Whether shape and share are the same."""
        return isinstance(other, Shared) and self.share == other.share and super().__eq__(other)

    def __hash__(self) -> int:
        """Of both."""
        return hash((tuple(self), self.share))


def fans(shape: Sequence[int], who: str = "fans") -> tuple[float, float]:
    """How many inputs feed one output, and how many outputs one input feeds.

    Args:
      shape: `[*receptive_field, in, out]`, or that `Shared`.
      who: the initializer's name, for the message.

    Returns:
      (fan_in, fan_out).

    Raises:
      PathError: fewer than two dimensions, or no shape.

    Example:
      >>> fans((3, 3, 16, 32))
      (144, 288)
    """
    share = shape.share if isinstance(shape, Shared) else 1
    shape = sizes(shape, who)
    if len(shape) < 2:
        raise PathError(
            f"expected weights [..., in, out], got shape {shape}, which has no fans; "
            "use zeros, normal or uniform here",
            layer=who,
        )
    field = math.prod(shape[:-2])
    return shape[-2] * field * share, shape[-1] * field


def need_key(key: Any, who: str) -> Any:
    """The key, or an error that says how to make one."""
    if key is None:
        raise PathError("expected a random key, got None; pass jax.random.key(seed)", layer=who)
    check_key(key, who)
    return key


def sizes(shape: Any, who: str) -> tuple[int, ...]:
    """The shape as a tuple.

    Raises:
      PathError: what is no sequence of integers of at least 0.
    """
    found = tuple(shape) if isinstance(shape, Iterable) else (None,)
    if not all(isinstance(size, Integral) and int(size) >= 0 for size in found):
        raise PathError(
            f"expected a shape, a sequence of integers >= 0, got {shape!r}; pass a tuple such as "
            "(4, 3)",
            layer=who,
        )
    return tuple(map(int, found))


def drawn_in(dtype: Any, who: str) -> Any:
    """The dtype to draw in: float32 for narrower ones, whose few values would be drawn unevenly.

    Raises:
      PathError: a dtype that is not floating, or is none.
    """
    if not jnp.issubdtype(need_dtype(dtype, who), jnp.inexact):
        raise PathError(
            f"expected a floating dtype, got {dtype!r}; draw in float32, and convert with astype",
            layer=who,
        )
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def need_dtype(dtype: Any, who: str) -> Any:
    """The dtype as it came.

    Raises:
      PathError: what is none.
    """
    try:
        jnp.dtype(dtype)
    except TypeError as error:
        raise PathError(
            f"expected a dtype, got {dtype!r}; pass one such as jnp.float32", layer=who
        ) from error
    return dtype
