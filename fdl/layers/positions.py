"""Where a token stands, told to attention: rotated queries and keys, and scores that fall."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.arguments import check_array
from fdl.ops.numerics import wide
from fdl.paths import PathError


def rotary(
    x: jax.Array, positions: Any, *, base: float = 10000.0, interleaved: bool = False
) -> jax.Array:
    """Rotary positions: pairs of features turned by an angle that grows with the position.

    Pair i of K / 2 turns by positions * base^(-2 i / K), so that the product of a query and a key
    depends on how far apart they stand. Angles are computed in at least float32.

    Args:
      x: queries or keys [..., T, H, K], K even.
      positions: [..., T], numbers; for one sequence after another `jnp.arange(T)`.
      base: > 0; the larger, the slower the last pairs turn.
      interleaved: pairs are features (2i, 2i + 1), as in the paper and GPT-J; else (i, i + K / 2),
        as in Llama.

    Returns:
      [..., T, H, K], in x's dtype.

    Raises:
      PathError: K odd, or positions that do not fit x.

    Example:
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
      >>> rotary(x, jnp.array([math.pi / 2])).round(3).ravel()
      Array([-0.,  1.], dtype=float32)

    Source: Su et al. 2021, arXiv 2104.09864, equations 14, 15 and 34.
    """
    positions = jnp.asarray(positions)
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


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _turned(x: jax.Array, positions: jax.Array, base: float, interleaved: bool) -> jax.Array:
    pairs = x.shape[-1] // 2
    dtype = wide(x.dtype)
    # From NumPy, so that the frequencies are right to the last bit of either width.
    frequencies = jnp.asarray(base ** (-np.arange(pairs) / pairs), dtype)
    angles = positions.astype(dtype)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if interleaved:
        first, second = x[..., 0::2].astype(dtype), x[..., 1::2].astype(dtype)
    else:
        first, second = x[..., :pairs].astype(dtype), x[..., pairs:].astype(dtype)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        return jnp.stack(turned, -1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(turned, -1).astype(x.dtype)
