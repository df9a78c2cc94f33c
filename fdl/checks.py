"""What every function refuses among its arguments: what is no size, number, array or key."""

import math
import operator
from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.paths import PathError, shortened


def check_count(layer: str, what: str, value: Any, remedy: str) -> int:
    """A size as an int; refuses what is no integer of 1 or more.

    Args:
      layer: the factory's name, for the message.
      what: the argument's name.
      value: what came; integers of NumPy are integers, and so are known scalars of JAX.
      remedy: what to do.

    Raises:
      ValueError: says what came.
    """
    value = counted(value)
    if not is_count(value):
        raise ValueError(f"{layer}: expected {what} >= 1, an integer, got {said(value)}; {remedy}")
    return int(value)


def counted(value: Any) -> Any:
    """The integer in a known scalar array of integers; anything else as it came."""
    if not isinstance(value, jax.Array | np.ndarray) or not known(value):
        return value
    return int(value) if jnp.issubdtype(value.dtype, jnp.integer) else value


def said(value: Any) -> str:
    """What a value is, in a few words for a message."""
    if type(value) in (tuple, list):
        parts = ", ".join([said(each) for each in value[:3]] + ["..."] * (len(value) > 3))
        comma = "," * (len(value) == 1 and isinstance(value, tuple))
        return f"({parts}{comma})" if isinstance(value, tuple) else f"[{parts}]"
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    own = type(value).__module__.split(".")[0] == "fdl"
    if value is None or own or isinstance(value, bool | int | float | complex | str | bytes):
        return shortened(repr(value), 200)
    if isinstance(value, GradientTransformation):
        return "an optimizer"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    named = getattr(value, "__name__", "") if callable(value) else ""
    return f"the function {named}" if named else type(value).__name__


def amount(tree: Any) -> str:
    """How much a pytree holds, for the text of a value that has it."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(tree)]
    arrays = f"{len(sizes)} array{'s' * (len(sizes) > 1)}"
    return f"{sum(sizes)} numbers in {arrays}" if sizes else "nothing"


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer, Python's or NumPy's, of at least so much; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_array(layer: str, x: Any, what: str = "x") -> None:
    """Refuses a list, a number or None in the place of an array.

    Raises:
      PathError: says what came.
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
    """
    check_array(layer, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected x of a floating dtype, got {x.dtype} {list(x.shape)}; put rescale(1 / 255) "
            "or the like in front, or convert x with astype",
            layer=layer,
        )


def check_number(
    where: str, expected: str, value: Any, fits: Callable[[Any], Any], remedy: str
) -> None:
    """Refuses what is no number, and one that is known and does not fit; an array if one does not.

    Args:
      where: the factory's name, for the message.
      expected: the argument's name and its range, for the message.
      value: what came: a number of Python, NumPy or JAX, traced or not, or an array of them.
      fits: whether a number is in the range, an interval; NaN is in none.
      remedy: what to do.

    Raises:
      ValueError: says what came.
    """
    if not is_number(value):
        raise ValueError(f"{where}: expected {expected}, got {said(value)}; pass a number")
    numbers = np.asarray(value) if _concrete(value) else np.empty(0)
    if numbers.size and not (fits(numbers.min()) and fits(numbers.max())):
        raise ValueError(
            f"{where}: expected {expected}, got {shortened(str(value), 200)}; {remedy}"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a real number, or an array of them, traced or not; True is none."""
    if isinstance(value, bool | int | float):
        return not isinstance(value, bool)
    if hasattr(value, "__jax_array__"):  # such as a Hyperparameter
        return True
    dtype = getattr(value, "dtype", jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def known(value: Any) -> bool:
    """Whether a number can be looked at now: not under `vmap`, nor as a leaf of the state."""
    return _concrete(value) and np.ndim(value) == 0


def plain(value: Any) -> Any:
    """A number as Python's, which leaves an array's dtype as it is; a traced one as it came."""
    return float(value) if known(value) else value


def in_dtype(value: Any, dtype: Any) -> Any:
    """An option as it meets arrays of a dtype: a known number is Python's, a traced one is cast.

    So a constant is as exact as Python's numbers are, and a traced option widens nothing.
    """
    return float(value) if known(value) else jnp.asarray(value, dtype)


def is_zero(value: Any) -> bool:
    """Whether an option is known to be 0; a traced one is not."""
    return known(value) and value == 0


def square_root(value: Any) -> Any:
    """The root of an option: Python's of a known number, JAX's of a traced one."""
    return math.sqrt(value) if known(value) else jnp.sqrt(value)


def check_ordered(
    who: str,
    expected: str,
    pair: tuple[Any, Any],
    remedy: str,
    order: Callable[[Any, Any], Any] = operator.le,
) -> None:
    """Refuses two numbers that are known to be out of order; traced ones pass.

    Raises:
      ValueError: says both.
    """
    bad = all(map(known, pair)) and not order(*pair)
    if bad or not all(map(is_number, pair)):
        raise ValueError(
            f"{who}: expected {expected}, got {said(pair[0])} and {said(pair[1])}; {remedy}"
        )


def check_known(who: str, expected: str, value: Any, fits: Callable[[Any], Any], why: str) -> None:
    """Refuses an option that is traced, where a program cannot be made without its value.

    Args:
      who, expected, value, fits: as of `check_number`.
      why: why a traced one will not do, and what to pass; it ends the message of either error.

    Raises:
      ValueError: says what came.
    """
    check_number(who, expected, value, fits, why)
    if not known(value):
        raise ValueError(f"{who}: expected {expected}, got {said(value)}; {why}")


def check_key(key: Any, layer: str = "") -> None:
    """Refuses what is neither one random key nor None.

    Args:
      key: anything.
      layer: the name of the layer that was given it, for the message.

    Raises:
      PathError: says what came.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if key is not None and not typed and not (dtype == jnp.uint32 and shape == (2,)):
        raise PathError(
            f"expected one random key, got {said(key)}; make it with jax.random.key(seed)",
            layer=layer,
        )


def _concrete(value: Any) -> bool:
    numbers = int | float | np.number | np.ndarray | jax.Array
    return isinstance(value, numbers) and not isinstance(value, jax.core.Tracer)
