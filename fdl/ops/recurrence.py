"""A linear recurrence along time, as a parallel scan.

T is the length of a sequence, D its number of features. All products are elementwise.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.numerics import wide
from fdl.paths import PathError


def linear_recurrence(a: jax.Array, b: jax.Array, *, start: Any = None) -> jax.Array:
    """h[t] = a[t] h[t - 1] + b[t] in about log T parallel steps.

    Args:
      a: [..., T, D]. Where a is 0, all earlier values are dropped, even NaN and infinity.
      b: [..., T, D].
      start: h before the first step, [..., D]; by default zeros.

    Returns:
      h [..., T, D] in the dtype of b, computed in float32 or wider.

    Raises:
      PathError: the shapes of a, b and start do not fit together.

    Example:
      >>> a, b = jnp.full((3, 1), 0.5), jnp.ones((3, 1))
      >>> linear_recurrence(a, b).ravel()
      Array([1.  , 1.5 , 1.75], dtype=float32)

    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4.1; Martin and Cundy
    2017, arXiv 1709.04057, for networks.
    """
    if a.shape != b.shape or a.ndim < 2 or (start is not None and without_time(b) != start.shape):
        raise PathError(
            f"expected a and b of one shape [..., T, D] and start [..., D], got {list(a.shape)}, "
            f"{list(b.shape)} and {None if start is None else list(start.shape)}; broadcast them "
            "to these shapes",
            layer="linear_recurrence",
        )
    dtype = wide(b.dtype)
    factor, h = a.astype(dtype), b.astype(dtype)
    if start is not None:
        h = h.at[..., 0, :].add(kept(factor[..., 0, :], start.astype(dtype)))

    def join(one: Any, other: Any) -> Any:
        return kept(other[0], one[0]), kept(other[0], one[1]) + other[1]

    return jax.lax.associative_scan(join, (factor, h), axis=-2)[1].astype(b.dtype)


def kept(a: jax.Array, h: jax.Array) -> jax.Array:
    """a * h; where a is 0, the result is 0 even if h is not finite."""
    return a * jnp.where((a == 0) & ~jnp.isfinite(h), 0, h)


def without_time(x: Any) -> tuple[int, ...]:
    """The shape of x [..., T, D] without T."""
    return (*x.shape[:-2], x.shape[-1])
