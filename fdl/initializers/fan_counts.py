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
    """The shape of weights in a layer where one output or one input uses only some of the weights.

    In a convolution along one axis with stride 2, an input element is in only half of the windows
    that could reach it. In such a transposed convolution, an output uses only half of the weights.

    Args:
      shape: `[*receptive_field, in, out]`.
      inputs: each output has weights [*receptive_field, in], and uses this share of them on
        average, in (0, 1]. fan_in is multiplied by this share.
      outputs: each input has weights [*receptive_field, out], and uses this share of them on
        average, in (0, 1]. fan_out is multiplied by this share.
    """

    inputs: float
    outputs: float

    def __new__(cls, shape: Iterable[int], inputs: float = 1, outputs: float = 1) -> "Shared":
        """A tuple with two more attributes."""
        made = super().__new__(cls, shape)
        made.inputs, made.outputs = inputs, outputs
        return made

    # A `Shared` may be a static argument of jax.jit, so shapes with different fans must differ.
    def __eq__(self, other: object) -> bool:
        """True if the shapes are equal and the shares are equal; a plain tuple has the shares 1."""
        same = (self.inputs, self.outputs) == _shares(other)
        return same and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """The opposite of `==`; the `!=` of tuple would compare only the elements."""
        return not self == other

    def __hash__(self) -> int:
        """The hash of the shape; equal values have equal hashes."""
        return hash(tuple(self))


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
    inputs, outputs = _shares(shape)
    shape = sizes(shape, who)
    if len(shape) < 2:
        raise PathError(
            f"expected weights [..., in, out], got shape {shape}, which has no fan_in and fan_out; "
            "use zeros, normal or uniform",
            layer=who,
        )
    field = math.prod(shape[:-2])
    return shape[-2] * field * inputs, shape[-1] * field * outputs


def _shares(shape: Any) -> tuple[float, float]:
    return (shape.inputs, shape.outputs) if isinstance(shape, Shared) else (1, 1)


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
    """The dtype to draw in: float32 if dtype is narrower, because narrower draws would be biased.

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
