"""Where a token stands, told to attention: rotated queries and keys, and scores that fall."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.arguments import check_array, check_known
from fdl.data.arrays import to_jax
from fdl.ops.numerics import wide
from fdl.paths import PathError
from fdl.ranks import free_ranks

# A base is not traced: frequencies are computed in float64 before there is a program.
USUAL_BASE = "10000 is usual; pass a number that is known when the program is made"


def rotary(
    x: jax.Array, positions: Any, *, base: float = 10000.0, interleaved: bool = False
) -> jax.Array:
    """Rotary positions: pairs of features turned by an angle that grows with the position.

    Pair i of K / 2 turns by positions * base^(-2 i / K), so that the product of a query and a key
    depends on how far apart they stand. Angles are right to about 1e-6 at any position.

    Args:
      x: queries or keys [..., T, H, K], K even.
      positions: [..., T], numbers; for one sequence after another `jnp.arange(T)`.
      base: > 0, not traced; the larger, the slower the last pairs turn.
      interleaved: pairs are features (2i, 2i + 1), as in the paper and GPT-J; else (i, i + K / 2),
        as in Llama.

    Returns:
      [..., T, H, K], in x's dtype.

    Raises:
      ValueError: a base out of range.
      PathError: K odd, or positions that do not fit x.

    Example:
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
      >>> rotary(x, jnp.array([math.pi / 2])).round(3).ravel()
      Array([-0.,  1.], dtype=float32)

    Source: Su et al. 2021, arXiv 2104.09864, equations 14, 15 and 34.
    """
    check_known("rotary", "a base > 0", base, lambda base: base > 0, USUAL_BASE)
    positions = to_jax(positions, "rotary", "positions")
    check_array("rotary", x)
    places = (1,) * (x.ndim - 2 - positions.ndim) + positions.shape
    alike = all(n in (1, m) for n, m in zip(places[:-1], x.shape[:-3], strict=False))
    if x.ndim < 3 or x.shape[-1] % 2 or places[-1:] != x.shape[-3:-2] or not alike:
        raise PathError(
            "expected x [..., T, H, K] with K even and positions [..., T], got x "
            f"{list(x.shape)} and positions {list(positions.shape)}; give heads an even number of "
            "features, and every token a position",
            layer="rotary",
        )
    with free_ranks():
        return _turned(x, positions, float(base), bool(interleaved))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slopes of ALiBi: how much each head's scores fall with every step of distance.

    2^(-8 / H), 2^(-16 / H), ..., 2^-8 for H a power of two; otherwise those of the power of two
    below H, and then every other one of twice that power.

    Args:
      heads: H, >= 1.

    Returns:
      H numbers.

    Example:
      >>> alibi_slopes(4)
      (0.25, 0.0625, 0.015625, 0.00390625)

    Source: Press, Smith and Lewis 2021, arXiv 2108.12409, section 3; other H: the authors' code.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return (*slopes, *between[: heads - below])


def angles(positions: jax.Array, count: int, base: float, dtype: Any) -> jax.Array:
    """positions / base^(i / count) up to whole turns, however far.

    Args:
      positions: [...], integers or floating.
      count: how many frequencies, i = 0, 1, ...
      base: > 0.
      dtype: float32 or float64.

    Returns:
      [..., count], in `dtype`.

    Example:
      >>> far = angles(jnp.array([2**24 + 1]), 1, 10_000.0, jnp.float32)
      >>> abs(float(jnp.sin(far)[0, 0]) - math.sin(2**24 + 1)) < 1e-6
      True
    """
    # A float32 product would be wrong by 0.01 already at position 100,000. Here a frequency is a
    # number of turns in fixed point, 2**-32 to the unit: that product drops whole turns by
    # overflowing, exactly, and what the rounding of the frequency left over is small.
    turns = base ** -(np.arange(count) / count) / (2 * math.pi) % 1
    fixed = np.rint(turns * 2**32)
    part, whole = jnp.zeros((), dtype), positions[..., None]
    if jnp.issubdtype(whole.dtype, jnp.floating):
        whole = jnp.floor(positions.astype(dtype))[..., None]
        part = (positions.astype(dtype)[..., None] - whole) * jnp.asarray(turns, dtype)
        # Exact at every step, and within int32: what becomes of a float past it is not said.
        number = jax.lax.rem(whole, jnp.full_like(whole, 2.0**32))
        number = number - 2.0**32 * (
            (number >= 2.0**31).astype(dtype) - (number < -(2.0**31)).astype(dtype)
        )
        number = number.astype(jnp.int32).astype(jnp.uint32)
    else:
        number = whole.astype(jnp.uint32)
    wrapped = number * jnp.asarray(fixed % 2**32, jnp.uint32)
    part = part + jax.lax.bitcast_convert_type(wrapped, jnp.int32).astype(dtype) * 2.0**-32
    rest = jnp.asarray(turns - fixed / 2**32, dtype)
    return (2 * math.pi) * (part + whole.astype(dtype) * rest)


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _turned(x: jax.Array, positions: jax.Array, base: float, interleaved: bool) -> jax.Array:
    pairs = x.shape[-1] // 2
    dtype = wide(x.dtype)
    turned_by = angles(positions[..., None], pairs, base, dtype)
    cos, sin = jnp.cos(turned_by), jnp.sin(turned_by)
    if interleaved:
        first, second = x[..., 0::2].astype(dtype), x[..., 1::2].astype(dtype)
    else:
        first, second = x[..., :pairs].astype(dtype), x[..., pairs:].astype(dtype)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        return jnp.stack(turned, -1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(turned, -1).astype(x.dtype)
