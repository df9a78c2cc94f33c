"""Hyperparameters that are as exact as constants, even as arguments of a compiled function.

Python computes the constant 1 - 0.999 in double precision, and JAX rounds the result once, when it
is combined with an array. But if 0.999 is a float32 array, 0.999 is rounded before the subtraction.
1 - 0.999 then has a relative error of 1.3e-5, and so has every second moment of Adam. In this
module, a hyperparameter is two float32 numbers whose sum has 48 bits (Dekker 1971).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Hyperparameter:
    """The number high + low, where |low| is at most half a unit in the last place of high.

    It behaves like a Python number. Sums, differences, products and quotients with Python numbers
    and other Hyperparameters have twice the precision of `high`. Powers and comparisons use the
    rounded number. In arithmetic with an array, the number is rounded once, to the array's dtype.

    Args:
      high: the number, rounded to float32 (float64 under `jax.enable_x64`).
      low: the rounding error of high.

    Example:
      >>> b2 = hyperparameter(0.999)
      >>> float(jnp.ones(()) * (1 - b2)), float(1 - jnp.float32(0.999))
      (0.0010000000474974513, 0.0009999871253967285)
    """

    high: Any
    low: Any

    # None tells NumPy not to compute `array + hyperparameter` itself, so that Python calls the
    # methods below.
    __array_ufunc__ = None

    def __jax_array__(self) -> jax.Array:
        # The array is weakly typed, like Python numbers, so that the result has the other operand's
        # dtype.
        high = jnp.asarray(self.high, jnp.result_type(float))
        return jnp.full(jnp.shape(high), 0.0).at[...].set(high)

    def __float__(self) -> float:
        return float(self.high) + float(self.low)

    def __bool__(self) -> bool:
        return bool(self.high != 0)

    def __neg__(self) -> "Hyperparameter":
        return Hyperparameter(-self.high, -self.low)

    def __add__(self, other: Any) -> Any:
        return _joined(self, other, jnp.add, _add)

    def __radd__(self, other: Any) -> Any:
        return _joined(other, self, jnp.add, _add)

    def __sub__(self, other: Any) -> Any:
        return _joined(self, other, jnp.subtract, lambda a, b: _add(a, -b))

    def __rsub__(self, other: Any) -> Any:
        return _joined(other, self, jnp.subtract, lambda a, b: _add(a, -b))

    def __mul__(self, other: Any) -> Any:
        return _joined(self, other, jnp.multiply, _multiply)

    def __rmul__(self, other: Any) -> Any:
        return _joined(other, self, jnp.multiply, _multiply)

    def __truediv__(self, other: Any) -> Any:
        return _joined(self, other, jnp.divide, _divide)

    def __rtruediv__(self, other: Any) -> Any:
        return _joined(other, self, jnp.divide, _divide)

    def __pow__(self, other: Any) -> Any:
        return jnp.power(_rounded(self), _rounded(other))

    def __rpow__(self, other: Any) -> Any:
        return jnp.power(_rounded(other), _rounded(self))

    def __eq__(self, other: Any) -> Any:
        return _compared(self, other, jnp.equal)

    def __ne__(self, other: Any) -> Any:
        return _compared(self, other, jnp.not_equal)

    def __lt__(self, other: Any) -> Any:
        return _compared(self, other, jnp.less)

    def __le__(self, other: Any) -> Any:
        return _compared(self, other, jnp.less_equal)

    def __gt__(self, other: Any) -> Any:
        return _compared(self, other, jnp.greater)

    def __ge__(self, other: Any) -> Any:
        return _compared(self, other, jnp.greater_equal)


def hyperparameter(value: Any, dtype: Any = None) -> Hyperparameter:
    """A number, or an array of numbers for `vmap`, as a `Hyperparameter`.

    Args:
      value: a Python number or a NumPy array, whose numbers are rounded to 48 bits; or a JAX array,
        which becomes `high`, with 0 as `low`.
      dtype: the dtype of both parts; by default float32, or float64 under `jax.enable_x64`.

    Returns:
      A `Hyperparameter`, which optimizers take in place of a number, under `vmap` too.

    Example:
      >>> both = hyperparameter(np.array([0.9, 0.999]))
      >>> jax.vmap(lambda b: jnp.ones(()) * (1 - b))(both).tolist()
      [0.10000000149011612, 0.0010000000474974513]
    """
    if isinstance(value, Hyperparameter):
        return value
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    if isinstance(value, jax.Array):
        given = jnp.asarray(value, dtype)
        return Hyperparameter(given, jnp.zeros_like(given))
    exact = np.asarray(value, np.float64)
    high = exact.astype(dtype)
    low = (exact - high.astype(np.float64)).astype(dtype)
    # The barrier hides constants from XLA, which would simplify (x + c) - c to x and so lose the
    # rounding error that `_sum` computes.
    return Hyperparameter(*jax.lax.optimization_barrier((jnp.asarray(high), jnp.asarray(low))))


def _joined(a: Any, b: Any, rounded: Callable[..., Any], exact: Callable[..., Any]) -> Any:
    if isinstance(a, jax.Array | np.ndarray) or isinstance(b, jax.Array | np.ndarray):
        return rounded(_rounded(a), _rounded(b))
    numbers = Hyperparameter | int | float | np.number
    if not isinstance(a, numbers) or not isinstance(b, numbers):
        return NotImplemented
    return exact(hyperparameter(a), hyperparameter(b))


def _compared(a: Any, b: Any, how: Callable[..., Any]) -> Any:
    return how(_rounded(a), _rounded(b))


def _rounded(x: Any) -> Any:
    return x.__jax_array__() if isinstance(x, Hyperparameter) else x


def _add(a: Hyperparameter, b: Hyperparameter) -> Hyperparameter:
    high, lost = _sum(a.high, b.high)
    return _settled(high, lost + (a.low + b.low))


def _multiply(a: Hyperparameter, b: Hyperparameter) -> Hyperparameter:
    """The product, from 12-bit halves of both numbers. Products of such halves are exact."""
    (a1, a2), (b1, b2) = _halves(a.high), _halves(b.high)
    part, first = _sum(a1 * b1, a1 * b2)
    high, second = _sum(part, a2 * b1)
    return _settled(high, first + second + a2 * b2 + (a.high * b.low + a.low * b.high))


def _divide(a: Hyperparameter, b: Hyperparameter) -> Hyperparameter:
    """The rounded quotient, corrected by its remainder divided by b."""
    first = a.high / b.high
    rest = _add(a, -_multiply(Hyperparameter(first, jnp.zeros_like(first)), b))
    return _settled(first, (rest.high + rest.low) / b.high)


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The sum and its rounding error, by Knuth's algorithm."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _settled(high: Any, low: Any) -> Hyperparameter:
    total = high + low
    return Hyperparameter(total, low - (total - high))


def _halves(x: Any) -> tuple[Any, Any]:
    # `reduce_precision` rounds x to its first half. Dekker's splitting uses products and sums
    # instead, which a compiler may fuse with later operations, so that the halves are not exact.
    exponent, mantissa = (8, 11) if x.dtype == jnp.float32 else (11, 25)
    first = jax.lax.reduce_precision(x, exponent, mantissa)
    return first, x - first
