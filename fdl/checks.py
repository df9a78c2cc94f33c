"""Checks of arguments, so that all public functions report a wrong argument in the same words.

A traced value stands for an array inside a function that JAX transforms, for example with `jax.jit`
or `jax.grad`. Its shape and dtype are known, but its numbers may not be, so no check reads them.
"""

import functools
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.paths import PathError, shortened

P = ParamSpec("P")
R = TypeVar("R")
_CHECKED_AT_ONCE = 1 << 16  # the number of elements that are checked at a time


class OptionError(ValueError):
    """An option has a wrong value. The text is `who: expected ..., got ...; remedy`.

    Args:
      who: the name of the function that the user called.
      what: the rest of the text: what was expected, what was given instead, and what to do.
    """

    def __init__(self, who: str, what: str):
        super().__init__(who, what)
        self.who, self.what = who, what

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"


def named_in_errors(factory: Callable[P, R]) -> Callable[P, R]:
    """A decorator that makes errors name the decorated factory, and not the factories it calls.

    A factory is a function that makes a layer or an optimizer, for example. If an inner factory
    raises an OptionError, the error names the decorated factory instead.
    """

    @functools.wraps(factory)
    def outer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return factory(*args, **kwargs)
        except OptionError as error:
            error.who = factory.__name__
            raise

    return outer


def floating_dtype(who: str, dtype: Any, remedy: str) -> Any:
    """Returns `dtype` as a NumPy dtype; raises an OptionError unless it is a floating dtype."""
    try:
        found = jnp.dtype(dtype) if dtype is not None else None
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        got = described(dtype) if found is None else found
        raise OptionError(who, f"expected a floating dtype, got {got}; {remedy}")
    return found


def check_kind(who: str, what: str, value: Any, kinds: Any, form: str, remedy: str) -> None:
    """Raises unless `value` is an instance of `kinds`. A string always raises.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the name of the argument, for the error message.
      value: the value to check.
      kinds: a type, or a tuple of types.
      form: what is expected, for the error message.
      remedy: the end of the error message, which says what to do.

    Raises:
      OptionError: `value` is not an instance of `kinds`, or is a string.
    """
    if not isinstance(value, kinds) or isinstance(value, str):
        raise OptionError(who, f"expected {what} as {form}, got {described(value)}; {remedy}")


def check_number(who: str, what: str, value: Any, interval: str | None, remedy: str) -> None:
    """Raises unless `value` is a number in the interval, or an array of such numbers.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the name of the argument, for the error message.
      value: the value to check. The range of a traced value is not checked.
      interval: for example "(0, 1]", or "[0, inf)" for finite numbers >= 0. None means that all
        numbers are allowed.
      remedy: the end of the error message for a number outside the interval, which says what to do.

    Raises:
      OptionError: `value` is not a number or an array of numbers, or is outside the interval.
    """
    if not is_number(value):
        got = described(value)
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


def check_concrete_number(who: str, what: str, value: Any, interval: str, remedy: str) -> None:
    """Like `check_number`, but also raises if `value` is an array with axes or is traced."""
    check_number(who, what, value, interval, remedy)
    if not is_concrete_number(value):
        raise OptionError(
            who, f"expected {_range(what, interval)}, got {described(value)}; {remedy}"
        )


def check_ordered(
    who: str,
    expected: str,
    pair: tuple[Any, Any],
    remedy: str,
    order: Callable[[Any, Any], Any] = operator.le,
) -> None:
    """Raises unless `pair` is two numbers in order. Traced numbers and arrays are not compared."""
    bad = all(map(is_concrete_number, pair)) and not order(*pair)
    if bad or not all(map(is_number, pair)):
        got = f"{described(pair[0])} and {described(pair[1])}"
        raise OptionError(who, f"expected {expected}, got {got}; {remedy}")


def check_count(who: str, what: str, value: Any, remedy: str) -> int:
    """Raises unless `value` is an integer >= 1; returns it as an int.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the name of the argument, for the error message.
      value: the value to check. It may be an int, a NumPy integer, or a scalar array of an integer
        dtype. A traced array raises an error.
      remedy: the end of the error message, which says what to do.

    Raises:
      OptionError: `value` is not such an integer, or it is less than 1.
    """
    value = as_int(value)
    if not is_count(value):
        raise OptionError(
            who, f"expected {what} >= 1, an integer, got {described(value)}; {remedy}"
        )
    return int(value)


def check_uint32(who: str, what: str, value: Any, remedy: str) -> jax.Array:
    """Raises unless `value` is an integer in [0, 2**32); returns it as a uint32 scalar.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the argument in words, for the error message, such as "a seed".
      value: the value to check: an int, or a scalar array of an integer dtype. The range of a
        traced array is not checked.
      remedy: the end of the error message, which says what to do.

    Raises:
      OptionError: `value` is not such an integer.
    """
    if isinstance(value, jax.core.Tracer):
        if jnp.issubdtype(value.dtype, jnp.integer) and value.shape == ():
            return value.astype(jnp.uint32)
    elif isinstance(value, jax.Array | np.ndarray) and value.shape == ():
        value = value.item()
    if not is_count(value, least=0) or value >= 2**32:
        got = shortened(repr(value), 200)
        raise OptionError(who, f"expected {what}, an integer in [0, 2**32), got {got}; {remedy}")
    return jnp.uint32(value)


def fitting(who: str, what: str, x: Any) -> Any:
    """Raises if x is a NumPy array with a number that overflows when JAX converts the array.

    By default, JAX silently converts 64-bit numbers to 32 bits, so 2**32 + 5 would become 5.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the name of the argument, for the error message.
      x: any value.

    Returns:
      A JAX array, if x is a NumPy array of numbers whose dtype JAX would convert. Otherwise x,
      unchanged.

    Raises:
      PathError: a number would overflow; the message gives its index.
    """
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind not in "iufc":
        return x
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype == x.dtype:
        return x
    x = np.asarray(x)
    at = _first_changed(x, dtype)
    if at is not None:
        raise PathError(
            f"expected {what} that {dtype} can hold, got {x[at]} at {list(at)} of {kind(x)}; use "
            "smaller numbers, or enable 64 bits with jax.config.update('jax_enable_x64', True)",
            layer=who,
        )
    return jnp.asarray(x)


def check_array(layer: str, x: Any, what: str = "x") -> None:
    """Raises a PathError unless x is an array. Lists, Python numbers and None are not arrays."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        several = "pass one of its arrays, or " if isinstance(x, tuple) else ""
        raise PathError(
            f"expected {what} to be an array, got a {type(x).__name__}; {several}convert it with "
            "jnp.asarray",
            layer=layer,
        )


def check_floating(layer: str, x: Any) -> None:
    """Raises a PathError unless x is an array of a floating or complex dtype."""
    check_array(layer, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected x of a floating dtype, got {kind(x)}; convert x with "
            "x.astype(jnp.float32), or use rescale(1 / 255) as the first layer",
            layer=layer,
        )


def check_shape(layer: str, x: Any, axes: str, remedy: str, **lengths: int) -> None:
    """Raises unless x is an array with the given axes.

    Args:
      layer: the name of the layer, for the error message.
      x: the value to check.
      axes: the names of the axes, as a docstring writes them, for example "..., H, W, C". `...`
        stands for zero or more axes.
      remedy: the end of the error message, which says what to do.
      lengths: the required length of an axis, by the name of the axis, for example C=64. An axis
        without an entry may have any length.

    Raises:
      PathError: x is not an array, or has a wrong number of axes, or an axis has a wrong length.
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
    """Raises a PathError unless `key` is None or one random key.

    The key may be from `jax.random.key`, or from the older `jax.random.PRNGKey`.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if key is not None and not typed and not (dtype == jnp.uint32 and shape == (2,)):
        raise PathError(
            f"expected one random key, got {described(key)}; make it with jax.random.key(seed)",
            layer=layer,
        )


def is_number(value: Any) -> bool:
    """True if `value` is a real number or an array of real numbers, traced or not.

    A bool is not a number.
    """
    if isinstance(value, bool | int | float):
        return not isinstance(value, bool)
    if hasattr(value, "__jax_array__"):  # for example a Hyperparameter
        return True
    dtype = getattr(value, "dtype", jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def is_count(value: Any, least: int = 1) -> bool:
    """True if `value` is an int of Python or NumPy, not a bool, and not less than `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_zero(value: Any) -> bool:
    """True if `value` is the number 0 and is not traced."""
    return is_concrete_number(value) and value == 0


def is_concrete_number(value: Any) -> bool:
    """True if `value` is a single number and is not traced."""
    return _concrete(value) and np.ndim(value) == 0


def as_int(value: Any) -> Any:
    """Converts a scalar array of an integer dtype to an int.

    Any other value is returned unchanged, and so is a traced array.
    """
    if not isinstance(value, jax.Array | np.ndarray) or not is_concrete_number(value):
        return value
    return int(value) if jnp.issubdtype(value.dtype, jnp.integer) else value


def plain(value: Any) -> Any:
    """Converts a number to a Python float; returns a traced number or an array unchanged.

    In arithmetic with an array, a Python float does not change the array's dtype.
    """
    return float(value) if is_concrete_number(value) else value


def in_dtype(value: Any, dtype: Any) -> Any:
    """Converts an option for arithmetic with arrays of `dtype`.

    A traced number, or an array with axes, is cast to `dtype`, so that the result of the arithmetic
    has `dtype`. Any other number becomes a Python float: it keeps its precision, and the result has
    `dtype` too.
    """
    return float(value) if is_concrete_number(value) else jnp.asarray(value, dtype)


def decimal(value: Any) -> Fraction:
    """The exact value of a number's shortest decimal notation; the number must not be traced.

    For example, the float 0.07 becomes 7/100, and 7/100 * 100 is exactly 7. In floats, 0.07 * 100
    is 7.000000000000001, which would be rounded up to 8.
    """
    return Fraction(str(np.asarray(value)[()]))


def square_root(value: Any) -> Any:
    """The square root of an option: a Python float, or a JAX array if the option is traced."""
    return math.sqrt(value) if is_concrete_number(value) else jnp.sqrt(value)


def described(value: Any) -> str:
    """Describes a value in a few words, for an error message."""
    if type(value) in (tuple, list):
        parts = ", ".join([described(each) for each in value[:3]] + ["..."] * (len(value) > 3))
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
    """The dtype and shape of an array as text, such as "float32 [2, 3]"."""
    return f"{x.dtype} {list(x.shape)}"


def amount(tree: Any) -> str:
    """The size of a pytree as text, such as "12 numbers in 2 arrays"."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(tree)]
    arrays = f"{len(sizes)} array{'s' * (len(sizes) > 1)}"
    return f"{sum(sizes)} numbers in {arrays}" if sizes else "nothing"


def _range(what: str, interval: str | None) -> str:
    """An argument and its interval as text, such as "eps >= 0" or "level in (0, 1)"."""
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


def _first_changed(array: np.ndarray, dtype: Any) -> tuple[int, ...] | None:
    """The index of the first value that would overflow in a narrower dtype, or None."""
    seen = 0
    iterate: Any = np.nditer  # Any, because NumPy's type stubs lack the flag "contig"
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for chunk in iterate(
        array, flags, ["readonly", "contig"], order="C", buffersize=_CHECKED_AT_ONCE
    ):
        with np.errstate(over="ignore"):
            narrow = chunk.astype(dtype)
        if np.issubdtype(dtype, np.integer):
            changed = narrow != chunk
        else:
            real = chunk.real.dtype
            changed = np.isfinite(chunk.view(real)) & np.isinf(narrow.view(narrow.real.dtype))
            changed = changed.reshape(len(chunk), -1).any(1)
        if changed.any():
            return tuple(map(int, np.unravel_index(seen + int(changed.argmax()), array.shape)))
        seen += len(chunk)
    return None
