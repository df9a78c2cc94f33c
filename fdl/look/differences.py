"""How far two sets of parameters are apart."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fdl import paths


class Difference(NamedTuple):
    """Where two pytrees differ most.

    Args:
      path: of the leaf with the largest difference in absolute terms; "" if they are equal.
      absolute: that difference; infinite where one is NaN and the other is not.
      ulps: the largest difference of any element in units in the last place, the number of floating
        point numbers from one to the other; a tiny value near zero can be many of them away. Of
        integers, how many they are apart.
    """

    path: str
    absolute: float
    ulps: int


def difference(a: Any, b: Any) -> Difference:
    """The largest differences between two pytrees of one structure.

    Args:
      a: a pytree of arrays; of complex ones the real and imaginary parts are compared.
      b: the same structure, shapes and dtypes.

    Returns:
      Difference(path, absolute, ulps); ("", 0.0, 0) exactly where all bits agree (0 and -0 count as
      equal, and so do NaN and NaN).

    Raises:
      ValueError: different paths, shapes or dtypes; names the first.

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
    """The largest |a - b|, infinite where one of them alone is no number."""
    a, b = _exact(_parts(a)), _exact(_parts(b))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
    same = (a == b) | ((a != a) & (b != b))  # inf - inf is NaN
    gap = np.where(same, 0.0, np.where(gap != gap, np.inf, gap))
    return float(gap.max(initial=0.0))


def _ulps(a: Any, b: Any) -> int:
    gap = np.abs(_rank(_parts(a)) - _rank(_parts(b)))
    return int(gap.max(initial=0))


def _rank(x: np.ndarray) -> np.ndarray:
    """Floats in order have bit patterns in order, once those of negative ones are mirrored."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _exact(x)
    x = np.where(x != x, np.full_like(x, np.nan), x)  # NaN has many bit patterns
    bits = _exact(x.view(f"i{x.dtype.itemsize}"))
    lowest = -(2 ** (8 * x.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)


def _exact(x: np.ndarray) -> np.ndarray:
    """In a dtype that holds any difference of two integers, and of two narrow floats."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(np.float64)
    return x.astype(object if x.dtype.itemsize == 8 else np.int64)


def _parts(x: Any) -> np.ndarray:
    """The real and the imaginary parts of complex numbers; real ones as they are."""
    x = np.ascontiguousarray(x)
    return x.view(x.real.dtype) if np.iscomplexobj(x) else x
