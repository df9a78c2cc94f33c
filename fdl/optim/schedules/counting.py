"""What schedules are made of: steps counted as integers, and numbers that are one scalar."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_number, known


def since(count: Any, begin: Any, most: Any = None) -> jax.Array:
    """The steps since `begin`, at least 0 and at most `most`.

    Whole steps are counted exactly, in the dtype of the count. Nothing is subtracted that is
    larger: an unsigned count must not wrap. Of a `begin` between two steps the rest is taken off in
    floating point, and so is `most` kept to: rounding never puts it in another order.
    """
    count = jnp.asarray(count)
    whole = as_count(begin, count)
    elapsed = jnp.maximum(count, whole) - whole
    if _is_integer(count) and not is_whole(begin):
        elapsed = jnp.maximum(scalar(elapsed) - scalar(begin % 1), 0)
    return elapsed if most is None else jnp.minimum(scalar(elapsed), scalar(most))


def reached(count: Any, boundary: Any) -> jax.Array:
    """Whether the count has come to a boundary."""
    count = jnp.asarray(count)
    whole = as_count(boundary, count)
    if _is_integer(count) and not is_whole(boundary):
        return (count > whole) | ((count == whole) & (scalar(boundary % 1) == 0))
    return count >= whole


def fraction(part: jax.Array, whole: Any) -> jax.Array:
    """part / whole in floating point."""
    return scalar(part) / scalar(whole)


def scalar(value: Any) -> jax.Array:
    """A float32, or what stands for it under `jax.enable_x64`."""
    return jnp.asarray(value, jnp.result_type(float))


def numbers(who: str, **values: Any) -> list[Any]:
    """Python's numbers as they are, and everything else as an array of one dtype.

    Python's numbers are joined in double precision before they meet an array, as optax does it.

    Raises:
      ValueError: what is no number, or known and not finite.
    """
    for name, value in values.items():
        check_number(who, name, value, "(-inf, inf)", "a schedule gives it to every step")
    plain = [each.item() if isinstance(each, np.generic) else each for each in values.values()]
    return [each if isinstance(each, int | float) else scalar(each) for each in plain]


def check_steps(who: str, least: int, **steps: Any) -> None:
    """Refuses numbers of steps that are known to be too small."""
    for name, value in steps.items():
        check_number(who, name, value, f"[{least}, inf)", "it is a number of steps")


def as_count(steps: Any, count: jax.Array) -> jax.Array:
    """Steps in the dtype of the count: whole ones, or the most that it holds, never passed."""
    if _is_integer(count) and known(steps):
        steps = min(steps, np.iinfo(count.dtype).max)
    return jnp.asarray(steps, count.dtype)


def is_whole(steps: Any) -> bool:
    """Whether a number of steps is known to be whole, by its value or by its dtype."""
    return bool(steps % 1 == 0) if known(steps) else _is_integer(steps)


def _is_integer(steps: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(steps), jnp.integer)
