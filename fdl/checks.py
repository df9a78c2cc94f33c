"""Checks of arguments: every public function refuses a wrong one in the same words."""

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

P = ParamSpec("P")
R = TypeVar("R")


class OptionError(ValueError):
    """A wrong option: reads `who: expected ..., got ...; remedy`.

    Args:
      who: name of the function that the user called.
      what: what was expected, what came, and what to do.
    """

    def __init__(self, who: str, what: str):
        super().__init__(who, what)
        self.who, self.what = who, what

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"


def named_in_errors(factory: Callable[P, R]) -> Callable[P, R]:
    """A factory that calls other factories: their OptionErrors name this one instead."""

    @functools.wraps(factory)
    def outer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return factory(*args, **kwargs)
        except OptionError as error:
            error.who = factory.__name__
            raise

    return outer


def check_number(who: str, what: str, value: Any, interval: str | None, remedy: str) -> None:
    """Raises unless `value` is a number, or an array of numbers, in the interval.

    Args:
      who: name of the function that the user called, for the message.
      what: name of the argument, for the message.
      value: a number of Python, NumPy or JAX, or an array of them; a traced value passes.
      interval: for example "(0, 1]", or "[0, inf)" for finite numbers; None for any number.
      remedy: what to do, the end of the message.

    Raises:
      OptionError: `value` is not a number, or is outside the interval.
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
        infinite = np.isinf(numbers).any() and most == math.inf and least > -math.inf
        finite = "a finite " if infinite and interval[-1] == ")" else ""
        got = shortened(str(value), 200)
        raise OptionError(who, f"expected {finite}{_range(what, interval)}, got {got}; {remedy}")


def check_known(who: str, what: str, value: Any, interval: str, why: str) -> None:
    """`check_number` that also refuses a traced value."""
    check_number(who, what, value, interval, why)
    if not known(value):
        raise OptionError(who, f"expected {_range(what, interval)}, got {said(value)}; {why}")


def check_ordered(
    who: str,
    expected: str,
    pair: tuple[Any, Any],
    remedy: str,
    order: Callable[[Any, Any], Any] = operator.le,
) -> None:
    """Raises unless both of `pair` are numbers and `order(*pair)` is true; traced values pass."""
    bad = all(map(known, pair)) and not order(*pair)
    if bad or not all(map(is_number, pair)):
        got = f"{said(pair[0])} and {said(pair[1])}"
        raise OptionError(who, f"expected {expected}, got {got}; {remedy}")


def check_count(who: str, what: str, value: Any, remedy: str) -> int:
    """Raises unless `value` is an integer >= 1; returns it as an int.

    Args:
      who: name of the function that the user called, for the message.
      what: name of the argument, for the message.
      value: an integer of Python or NumPy, or a scalar array of integers, not traced.
      remedy: what to do, the end of the message.

    Raises:
      OptionError: `value` is something else.
    """
    value = counted(value)
    if not is_count(value):
        raise OptionError(who, f"expected {what} >= 1, an integer, got {said(value)}; {remedy}")
    return int(value)


def check_array(layer: str, x: Any, what: str = "x") -> None:
    """Raises a PathError unless x is an array: not a list, a number or None."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise PathError(
            f"expected {what} as an array, got a {type(x).__name__}; convert it with jnp.asarray",
            layer=layer,
        )


def check_floating(layer: str, x: Any) -> None:
    """Raises a PathError unless x is an array of a floating or complex dtype."""
    check_array(layer, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected x of a floating dtype, got {kind(x)}; put rescale(1 / 255) "
            "or the like in front, or convert x with astype",
            layer=layer,
        )


def check_shape(layer: str, x: Any, axes: str, remedy: str, **lengths: int) -> None:
    """Raises unless x is an array with these axes.

    Args:
      layer: name of the layer, for the message.
      x: any value.
      axes: as a docstring writes them, for example "..., H, W, C"; `...` stands for any number of
        axes, none included.
      remedy: what to do, the end of the message.
      lengths: the length of an axis by its name, for example C=64.

    Raises:
      PathError: x is not an array, or has other axes.
    """
    check_array(layer, x)
    names = expanded = axes.split(", ")
    if "..." in names:
        start = names.index("...")
        expanded = names[:start] + ["..."] * (x.ndim - len(names) + 1) + names[start + 1 :]
    fits = len(expanded) == x.ndim and all(
        lengths.get(name, length) == length for name, length in zip(expanded, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(lengths.get(name, name)) for name in names)
        raise PathError(f"expected x [{wanted}], got {list(x.shape)}; {remedy}", layer=layer)


def check_key(key: Any, layer: str = "") -> None:
    """Raises a PathError unless `key` is one random key, of either kind, or None."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if key is not None and not typed and not (dtype == jnp.uint32 and shape == (2,)):
        raise PathError(
            f"expected one random key, got {said(key)}; make it with jax.random.key(seed)",
            layer=layer,
        )


def is_number(value: Any) -> bool:
    """True if `value` is a real number (not a bool) or an array of them; it may be traced."""
    if isinstance(value, bool | int | float):
        return not isinstance(value, bool)
    if hasattr(value, "__jax_array__"):  # such as a Hyperparameter
        return True
    dtype = getattr(value, "dtype", jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def is_count(value: Any, least: int = 1) -> bool:
    """True if `value` is an int of Python or NumPy (not a bool) of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_zero(value: Any) -> bool:
    """True if `value` is 0 and not traced."""
    return known(value) and value == 0


def known(value: Any) -> bool:
    """True if `value` is one number that is not traced."""
    return _concrete(value) and np.ndim(value) == 0


def counted(value: Any) -> Any:
    """A scalar array of integers as an int, unless it is traced; other values unchanged."""
    if not isinstance(value, jax.Array | np.ndarray) or not known(value):
        return value
    return int(value) if jnp.issubdtype(value.dtype, jnp.integer) else value


def plain(value: Any) -> Any:
    """A number as a Python float, which does not change an array's dtype; traced ones unchanged."""
    return float(value) if known(value) else value


def in_dtype(value: Any, dtype: Any) -> Any:
    """An option for arithmetic with arrays of `dtype`: a Python float, or a cast traced value.

    A constant keeps the precision of Python's floats, and a traced option widens nothing.
    """
    return float(value) if known(value) else jnp.asarray(value, dtype)


def square_root(value: Any) -> Any:
    """The square root of an option: Python's of a known number, JAX's of a traced one."""
    return math.sqrt(value) if known(value) else jnp.sqrt(value)


def said(value: Any) -> str:
    """A value in a few words, for a message."""
    if type(value) in (tuple, list):
        parts = ", ".join([said(each) for each in value[:3]] + ["..."] * (len(value) > 3))
        comma = "," * (len(value) == 1 and isinstance(value, tuple))
        return f"({parts}{comma})" if isinstance(value, tuple) else f"[{parts}]"
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return kind(value)
    from_fdl = type(value).__module__.split(".")[0] == "fdl"
    if value is None or from_fdl or isinstance(value, bool | int | float | complex | str | bytes):
        return shortened(repr(value), 200)
    if isinstance(value, GradientTransformation):
        return "an optimizer"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = getattr(value, "__name__", "") if callable(value) else ""
    return f"the function {name}" if name else type(value).__name__


def kind(x: Any) -> str:
    """Dtype and shape of an array, such as "float32 [2, 3]"."""
    return f"{x.dtype} {list(x.shape)}"


def amount(tree: Any) -> str:
    """The size of a pytree in words, such as "12 numbers in 2 arrays"."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(tree)]
    arrays = f"{len(sizes)} array{'s' * (len(sizes) > 1)}"
    return f"{sum(sizes)} numbers in {arrays}" if sizes else "nothing"


def _range(what: str, interval: str | None) -> str:
    """An argument and its interval, as one would write them: eps >= 0, level in (0, 1)."""
    if interval in (None, "[-inf, inf]"):
        return f"{what}, a number"
    if interval == "(-inf, inf)":
        return f"a finite {what}"
    least, most = interval[1:-1].split(", ")
    if most == "inf":
        return f"{what} {'>=' if interval[0] == '[' else '>'} {least}"
    return f"{what} in {interval}"


def _concrete(value: Any) -> bool:
    numbers = int | float | np.number | np.ndarray | jax.Array
    return isinstance(value, numbers) and not isinstance(value, jax.core.Tracer)
