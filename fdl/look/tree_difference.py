"""The largest difference between two sets of parameters."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fdl import paths


class Difference(NamedTuple):
    """Where two pytrees differ most.

    Args:
      path: the path of the leaf with the largest absolute difference; "" if the trees are equal.
      absolute: that difference; infinite if one value is NaN and the other is not.
      ulps: the largest difference of any two elements in units in the last place: the number of
        steps from one floating point number to the other, which near zero can be many; of integers
        the difference.
    """

    path: str
    absolute: float
    ulps: int


def difference(a: Any, b: Any) -> Difference:
    """The largest differences between two pytrees of the same structure.

    Args:
      a: a pytree of arrays; real and imaginary parts of complex numbers are compared separately.
      b: a pytree with the same structure, shapes and dtypes.

    Returns:
      Difference(path, absolute, ulps). It is ("", 0.0, 0) if and only if all values are equal bit
      for bit, where 0 equals -0 and NaN equals NaN.

    Raises:
      ValueError: different paths, shapes or dtypes; the message names the first.

    Example:
      >>> difference({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 2.0000002])})
      Difference(path='w', absolute=2.384185791015625e-07, ulps=1)

    Source: Goldberg 1991, "What every computer scientist should know about floating-point
    arithmetic", section 1.2, for units in the last place.
    """
    left, right = paths.leaves(a), paths.leaves(b)
    for path in sorted({*left, *right}):
        kinds = [_kind(each.get(path)) for each in (left, right)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"difference: expected the same arrays in both trees, got {kinds[0]} and "
                f"{kinds[1]} at {paths.quoted(path)}; compare parameters of one model"
            )
    apart = {path: _absolute(left[path], right[path]) for path in left}
    path = max(apart, key=lambda each: apart[each], default="")
    ulps = max((_ulps(left[each], right[each]) for each in left), default=0)
    return Difference(path if apart.get(path) else "", apart.get(path, 0.0), ulps)


def _kind(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{jnp.result_type(leaf)} {list(np.shape(leaf))}"


def _absolute(a: Any, b: Any) -> float:
    """The largest |a - b|, infinite if only one of them is NaN."""
    a, b = _exact(_parts(a)), _exact(_parts(b))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
    same = (a == b) | ((a != a) & (b != b))  # inf - inf is NaN
    gap = np.where(same, 0.0, np.where(gap != gap, np.inf, gap))
    return float(gap.max(initial=0.0))


def _ulps(a: Any, b: Any) -> int:
    gap = np.abs(_place(_parts(a)) - _place(_parts(b)))
    return int(gap.max(initial=0))


def _place(x: np.ndarray) -> np.ndarray:
    """The place of each float among all floats: its bits as an integer, mirrored if negative."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _exact(x)
    x = np.where(x != x, np.full_like(x, np.nan), x)  # NaN has many bit patterns
    bits = _exact(x.view(f"i{x.dtype.itemsize}"))
    lowest = -(2 ** (8 * x.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)


def _exact(x: np.ndarray) -> np.ndarray:
    """x in a dtype that holds the difference of any two integers, or of any two narrow floats."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(np.float64)
    return x.astype(object if x.dtype.itemsize == 8 else np.int64)


def _parts(x: Any) -> np.ndarray:
    """x as real numbers: of complex ones, the real and imaginary parts."""
    x = np.ascontiguousarray(x)
    return x.view(x.real.dtype) if np.iscomplexobj(x) else x
