"""Finds the largest difference between two pytrees, for example two sets of parameters."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fdl import paths


class Difference(NamedTuple):
    """Where two pytrees differ most.

    Args:
      path: the path of the leaf with the largest absolute difference, or "" if the trees are equal.
      absolute: the largest absolute difference of two elements. It is infinite if one element is
        NaN and the other one is not.
      ulps: the largest difference of two elements in units in the last place. It may be in another
        leaf than the largest absolute difference. Neighbouring floating-point numbers differ by 1
        unit, so near zero, even a small difference can be many units. For integers, the number of
        units is their difference.
    """

    path: str
    absolute: float
    ulps: int


def difference(a: Any, b: Any) -> Difference:
    """The largest difference between two pytrees of the same structure, and where it is.

    Args:
      a: a pytree of arrays. The real and imaginary parts of complex numbers are compared
        separately.
      b: a pytree with the structure, shapes and dtypes of a.

    Returns:
      Difference(path, absolute, ulps). It is ("", 0.0, 0) if and only if all elements are equal,
      where 0 equals -0 and NaN equals NaN.

    Raises:
      ValueError: the paths, shapes or dtypes of a and b differ; the message names the first
        difference.

    Example:
      >>> difference({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 2.0000002])})
      Difference(path='w', absolute=2.384185791015625e-07, ulps=1)

    Source: Goldberg 1991, "What every computer scientist should know about floating-point
    arithmetic", section 1.2, for units in the last place.
    """
    left, right = paths.leaves(a), paths.leaves(b)
    check_same_arrays("difference", left, right)
    apart = {path: _absolute(left[path], right[path]) for path in left}
    path = max(apart, key=lambda each: apart[each], default="")
    ulps = max((_ulps(left[each], right[each]) for each in left), default=0)
    return Difference(path if apart.get(path) else "", apart.get(path, 0.0), ulps)


def check_same_arrays(who: str, left: dict[str, Any], right: dict[str, Any]) -> None:
    """Raises unless two dicts, path -> array, have the same paths, shapes and dtypes."""
    for path in sorted({*left, *right}):
        kinds = [_kind(each.get(path)) for each in (left, right)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{who}: expected the same arrays in both trees, got {kinds[0]} and "
                f"{kinds[1]} at {paths.quoted(path)}; compare parameters of the same model"
            )


def _kind(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{jnp.result_type(leaf)} {list(np.shape(leaf))}"


def _absolute(a: Any, b: Any) -> float:
    """The largest |a - b|. It is infinite if an element is NaN in only one of a and b."""
    a, b = _exact(_parts(a)), _exact(_parts(b))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
    same = (a == b) | ((a != a) & (b != b))  # needed because inf - inf is NaN, not 0
    gap = np.where(same, 0.0, np.where(gap != gap, np.inf, gap))
    return float(gap.max(initial=0.0))


def _ulps(a: Any, b: Any) -> int:
    gap = np.abs(_place(_parts(a)) - _place(_parts(b)))
    return int(gap.max(initial=0))


def _place(x: np.ndarray) -> np.ndarray:
    """The position of each float in the sorted list of all floats, with 0 at position 0.

    For a positive float, this is the integer with the same bits. A negative float has minus the
    position of its absolute value. An integer is returned unchanged.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _exact(x)
    x = np.where(x != x, np.full_like(x, np.nan), x)  # many bit patterns mean NaN; use only one
    bits = _exact(x.view(f"i{x.dtype.itemsize}"))
    lowest = -(2 ** (8 * x.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)


def _exact(x: np.ndarray) -> np.ndarray:
    """Converts x to a dtype in which the difference of two integers is exact.

    Floats become float64, so the difference of two floats is rounded to float64.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(np.float64)
    return x.astype(object if x.dtype.itemsize == 8 else np.int64)


def _parts(x: Any) -> np.ndarray:
    """x as an array of real numbers; a complex number becomes its real and its imaginary part."""
    x = np.ascontiguousarray(x)
    return x.view(x.real.dtype) if np.iscomplexobj(x) else x
