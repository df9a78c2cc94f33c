"""fan_in and fan_out, and checks of the key, shape and dtype that an initializer gets."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from fdl.checks import check_key
from fdl.paths import PathError
from fdl.typing import Key


class Shared(tuple[int, ...]):
    """The shape of weights, if each output uses only some of them, as in a transposed convolution.

    Args:
      shape: `[*receptive_field, in, out]`.
      share: the share of the weights that an output uses, averaged over outputs, in (0, 1].
    """

    share: float

    def __new__(cls, shape: Iterable[int], share: float) -> "Shared":
        """A tuple with one more attribute."""
        made = super().__new__(cls, shape)
        made.share = share
        return made

    # A `Shared` may be a static argument of jax.jit, so it must not equal a plain tuple.
    def __eq__(self, other: object) -> bool:
        """True if shape and share are equal."""
        return isinstance(other, Shared) and self.share == other.share and super().__eq__(other)

    def __hash__(self) -> int:
        """The hash of shape and share."""
        return hash((tuple(self), self.share))


def fans(shape: Sequence[int], who: str = "fans") -> tuple[float, float]:
    """fan_in, the number of inputs of one output, and fan_out, the number of outputs of one input.

    Args:
      shape: `[*receptive_field, in, out]`, a tuple or a `Shared`.
      who: the name of the initializer, for error messages.

    Returns:
      (fan_in, fan_out).

    Raises:
      PathError: the shape has fewer than two dimensions, or it is not a shape.

    Example:
      >>> fans((3, 3, 16, 32))
      (144, 288)
    """
    share = shape.share if isinstance(shape, Shared) else 1
    shape = sizes(shape, who)
    if len(shape) < 2:
        raise PathError(
            f"expected weights [..., in, out], got shape {shape}, which has no fan_in and fan_out; "
            "use zeros, normal or uniform",
            layer=who,
        )
    field = math.prod(shape[:-2])
    return shape[-2] * field * share, shape[-1] * field


def need_key(key: Key | None, who: str) -> Key:
    """Returns the key. Raises an error if it is None or not a random key."""
    if key is None:
        raise PathError("expected a random key, got None; pass jax.random.key(seed)", layer=who)
    check_key(key, who)
    return key


def sizes(shape: Any, who: str) -> tuple[int, ...]:
    """The shape as a tuple.

    Raises:
      PathError: the argument is not a sequence of integers >= 0.
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
    """The dtype to draw in: float32 if dtype is narrower, because narrow draws would be biased.

    Raises:
      PathError: the argument is not a floating dtype.
    """
    if not jnp.issubdtype(need_dtype(dtype, who), jnp.inexact):
        raise PathError(
            f"expected a floating dtype, got {dtype!r}; draw float32 values, and convert them with "
            "astype",
            layer=who,
        )
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def need_dtype(dtype: Any, who: str) -> Any:
    """Checks the dtype and returns it unchanged.

    Raises:
      PathError: the argument is not a dtype.
    """
    try:
        jnp.dtype(dtype)
    except TypeError as error:
        raise PathError(
            f"expected a dtype, got {dtype!r}; pass a dtype such as jnp.float32", layer=who
        ) from error
    return dtype
