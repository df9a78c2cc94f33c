"""What every function refuses among its arguments: what is no size, number, array or key."""

import functools
import math
import operator
from collections.abc import Callable
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.paths import PathError, shortened


class OptionError(ValueError):
    """An option that cannot be meant.

    Args:
      who: the function that was called.
      what: what was expected, what came, and what to do.
    """

    def __init__(self, who: str, what: str):
        super().__init__(f"{who}: {what}")
        self.what = what


P = ParamSpec("P")
R = TypeVar("R")


def named_in_errors(factory: Callable[P, R]) -> Callable[P, R]:
    """A factory made of others; an error about an option names this one, which the user called."""

    @functools.wraps(factory)
    def outer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return factory(*args, **kwargs)
        except OptionError as error:
            raise OptionError(factory.__name__, error.what) from None

    return outer


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


def check_number(who: str, what: str, value: Any, interval: str | None, remedy: str) -> None:
    """Raises unless `value` is a number in the interval, or an array of such; traced values pass.

    Args:
      who: the function that was called, for the message.
      what: the argument's name, for the message.
      value: what came: a number of Python, NumPy or JAX, traced or not, or an array of them.
      interval: such as "(0, 1]" or "[0, inf)", which leaves out infinity; None for any number.
      remedy: what to do, the end of the message.

    Raises:
      OptionError: says what came.
    """
    if not is_number(value):
        got = said(value)
        raise OptionError(who, f"expected {_range(what, interval)}, got {got}; pass a number")
    numbers = np.asarray(value) if _concrete(value) else np.empty(0)
    if interval is None or not numbers.size:
        return
    least, most = map(float, interval[1:-1].split(","))
    above = numbers >= least if interval[0] == "[" else numbers > least
    below = numbers <= most if interval[-1] == "]" else numbers < most
    if not np.all(above & below):
        finite = "a finite " if np.isinf(numbers).any() and interval[-1] == ")" else ""
        got = shortened(str(value), 200)
        raise OptionError(who, f"expected {finite}{_range(what, interval)}, got {got}; {remedy}")


def _range(what: str, interval: str | None) -> str:
    """An argument and its interval, as one would write them: eps >= 0, level in (0, 1)."""
    if interval is None or "(-inf, inf)" in interval:
        return f"{what}, a number"
    least, most = interval[1:-1].split(", ")
    if most == "inf":
        return f"{what} {'>=' if interval[0] == '[' else '>'} {least}"
    return f"{what} in {interval}"


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
    """Raises unless `order(*pair)` holds of two numbers; traced ones pass."""
    bad = all(map(known, pair)) and not order(*pair)
    if bad or not all(map(is_number, pair)):
        got = f"{said(pair[0])} and {said(pair[1])}"
        raise OptionError(who, f"expected {expected}, got {got}; {remedy}")


def check_known(who: str, what: str, value: Any, interval: str, why: str) -> None:
    """`check_number` of an option without whose value no program can be made: traced ones raise."""
    check_number(who, what, value, interval, why)
    if not known(value):
        raise OptionError(who, f"expected {_range(what, interval)}, got {said(value)}; {why}")


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
