"""Functions for schedules: exact arithmetic with numbers of steps, and checks of arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_number, is_concrete_number


def since(count: Any, begin: Any, most: Any = None) -> jax.Array:
    """The number of steps since `begin`, clipped to [0, most].

    Whole numbers of steps are subtracted as integers in the dtype of the count, so the result is
    exact. A count below `begin` is first raised to `begin`, so an unsigned count does not wrap
    around. If `begin` is not whole, its fractional part is then subtracted in floating point. The
    upper limit `most` is also applied in floating point. None means no upper limit.
    """
    count = jnp.asarray(count)
    whole = as_count(begin, count)
    elapsed = jnp.maximum(count, whole) - whole
    if _is_integer(count) and not is_whole(begin):
        elapsed = jnp.maximum(scalar(elapsed) - scalar(begin % 1), 0)
    return elapsed if most is None else jnp.minimum(scalar(elapsed), scalar(most))


def reached(count: Any, boundary: Any) -> jax.Array:
    """True if the count is at the boundary or after it."""
    count = jnp.asarray(count)
    whole = as_count(boundary, count)
    if _is_integer(count) and not is_whole(boundary):
        return (count > whole) | ((count == whole) & (scalar(boundary % 1) == 0))
    return count >= whole


def fraction(part: jax.Array, whole: Any) -> jax.Array:
    """Returns part / whole, computed in floating point."""
    return scalar(part) / scalar(whole)


def scalar(value: Any) -> jax.Array:
    """A float32 scalar, or float64 under `jax.enable_x64`."""
    return jnp.asarray(value, jnp.result_type(float))


def numbers(who: str, **values: Any) -> list[Any]:
    """Converts Python and NumPy scalars to Python numbers, and JAX arrays to float32 scalars.

    Under `jax.enable_x64`, the scalars are float64. Python numbers are not converted to float32,
    because arithmetic between Python numbers is in double precision, as in optax.

    Raises:
      OptionError: a value is not a number, or is not finite. A traced number passes without a
        check of its value.
    """
    for name, value in values.items():
        check_number(who, name, value, "(-inf, inf)", "pass a finite number")
    plain = [x.item() if isinstance(x, np.generic) else x for x in values.values()]
    return [x if isinstance(x, int | float) else scalar(x) for x in plain]


def check_steps(who: str, least: int, **steps: Any) -> None:
    """Raises unless each number of steps is finite and at least `least`.

    Traced numbers are not checked.
    """
    for name, value in steps.items():
        check_number(who, name, value, f"[{least}, inf)", "pass a number of steps")


def as_count(steps: Any, count: jax.Array) -> jax.Array:
    """A number of steps in the dtype of the count, at most the largest value of that dtype."""
    if _is_integer(count) and is_concrete_number(steps):
        steps = min(steps, np.iinfo(count.dtype).max)
    return jnp.asarray(steps, count.dtype)


def is_whole(steps: Any) -> bool:
    """True if the value or the dtype of a number of steps shows that it is whole."""
    return bool(steps % 1 == 0) if is_concrete_number(steps) else _is_integer(steps)


def _is_integer(steps: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(steps), jnp.integer)
