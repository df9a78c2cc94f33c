"""What every function refuses: a size that is no integer, an array that is none."""

from numbers import Integral
from typing import Any

import jax.numpy as jnp

from fdl.paths import PathError


def check_count(layer: str, what: str, value: Any, remedy: str) -> int:
    """A size as an int; refuses what is no integer of 1 or more.

    Args:
      layer: the factory's name, for the message.
      what: the argument's name.
      value: what came; integers of NumPy are integers.
      remedy: what to do.

    Raises:
      ValueError: says what came.

    Example:
      >>> check_count("dense", "features", 4.0, "say how many outputs there are")
      Traceback (most recent call last):
      ...
      ValueError: dense: expected features >= 1, an integer, got 4.0; say how many outputs there are
    """
    if not is_count(value):
        raise ValueError(f"{layer}: expected {what} >= 1, an integer, got {value!r}; {remedy}")
    return int(value)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer, Python's or NumPy's, of at least so much; True is none.

    Example:
      >>> is_count(3), is_count(3.0), is_count(True), is_count(0)
      (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_array(layer: str, x: Any, what: str = "x") -> None:
    """Refuses a list, a number or None in the place of an array.

    Raises:
      PathError: says what came.

    Example:
      >>> check_array("dense", [1.0, 2.0])
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: dense: expected x as an array, got a list; convert it with jnp.asarray
    """
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise PathError(
            f"expected {what} as an array, got a {type(x).__name__}; convert it with jnp.asarray",
            layer=layer,
        )


def check_floating(layer: str, x: Any) -> None:
    """Refuses an x that is not an array of a floating dtype.

    Raises:
      PathError: says what came.

    Example:
      >>> check_floating("dense", jnp.ones((2, 3), jnp.uint8))
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: dense: expected x of a floating dtype, got uint8 [2, 3]; put
        rescale(1 / 255) or the like in front, or convert x with astype
    """
    check_array(layer, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected x of a floating dtype, got {x.dtype} {list(x.shape)}; put rescale(1 / 255) "
            "or the like in front, or convert x with astype",
            layer=layer,
        )
