"""What is refused among arguments: numbers out of range, and what is no number or no key."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.paths import PathError


def check_number(
    where: str, expected: str, value: Any, fits: Callable[[Any], Any], remedy: str
) -> None:
    """Refuses what is no number, and a number that is known and does not fit.

    Args:
      where: the factory's name, for the message.
      expected: the argument's name and its range, for the message.
      value: what came: a number of Python, NumPy or JAX, traced or not.
      fits: whether a number is in the range; NaN is in none.
      remedy: what to do.

    Raises:
      ValueError: says what came.

    Example:
      >>> check_number("normal", "stddev >= 0", -1.0, lambda s: s >= 0, "it is a width")
      Traceback (most recent call last):
      ...
      ValueError: normal: expected stddev >= 0, got -1.0; it is a width
    """
    if not is_number(value):
        raise ValueError(f"{where}: expected {expected}, got {value!r}; pass a number")
    if known(value) and not fits(value):
        raise ValueError(f"{where}: expected {expected}, got {value}; {remedy}")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, or an array of them, traced or not; True is none.

    Example:
      >>> is_number(0.1), is_number(np.int8(1)), is_number(jnp.ones(())), is_number("1")
      (True, True, True, False)
    """
    if isinstance(value, bool | int | float):
        return not isinstance(value, bool)
    if hasattr(value, "__jax_array__"):  # such as a Hyperparameter
        return True
    dtype = getattr(value, "dtype", jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def known(value: Any) -> bool:
    """Whether a number can be looked at now: not under `vmap`, nor as a leaf of the state.

    Example:
      >>> known(0.1), known(None)
      (True, False)
    """
    numbers = int | float | np.number | np.ndarray | jax.Array
    concrete = isinstance(value, numbers) and not isinstance(value, jax.core.Tracer)
    return concrete and np.ndim(value) == 0


def plain(value: Any) -> Any:
    """A number as Python's, which leaves an array's dtype as it is; a traced one as it came.

    Example:
      >>> plain(np.float64(0.5)), plain(jnp.float32(0.5)), plain(2)
      (0.5, 0.5, 2.0)
    """
    return float(value) if known(value) else value


def check_key(key: Any, layer: str = "") -> None:
    """Refuses what is neither one random key nor None.

    Args:
      key: anything.
      layer: the name of the layer that was given it, for the message.

    Raises:
      PathError: says what came.

    Example:
      >>> check_key(0)
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: expected one random key, got 0; make it with jax.random.key(seed)
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if key is not None and not typed and not (dtype == jnp.uint32 and shape == (2,)):
        said = repr(key) if dtype is None else f"{dtype} {list(shape or ())}"
        raise PathError(
            f"expected one random key, got {said}; make it with jax.random.key(seed)", layer=layer
        )
