"""What a dtype cannot hold: half precision inside an optimizer, and finite numbers' squares.

Whatever the dtype of the parameters, moments, sums and norms are kept and computed in float32 or
wider; only what leaves an optimizer is rounded to the dtype of the gradients, once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.numerics import largest, power_of_two, wide


def wide_inside(update: Callable[..., Any]) -> Callable[..., Any]:
    """An `update` that works on float32 or wider, whatever the dtype of the gradients.

    Its updates are narrowed to the dtypes of the gradients, and its state keeps its own, also where
    a transformation inside is optax's. Without half precision nothing is added to the program.

    Example:
      >>> def mean_with_60000(updates, state, params=None, **extra_args):
      ...     return jax.tree.map(lambda u: (u + 60000.0) / 2, updates), state
      >>> float(wide_inside(mean_with_60000)(jnp.float16(60000.0), ())[0])
      60000.0
    """

    @functools.wraps(update)
    def outer(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not any(map(is_half, jax.tree.leaves(updates))):
            return update(updates, state, params, **extra_args)
        new, new_state = update(widened_tree(updates), state, params, **extra_args)
        return cast_like(new, updates), cast_like(new_state, state)

    return outer


def is_half(x: Any) -> bool:
    """Whether x has fewer bits than float32.

    Example:
      >>> is_half(jnp.ones(1, jnp.bfloat16)), is_half(jnp.ones(1)), is_half(jnp.arange(2))
      (True, False, False)
    """
    dtype = getattr(x, "dtype", jnp.float32)
    return jnp.issubdtype(dtype, jnp.inexact) and wide(dtype) != dtype


def widened_tree(tree: Any) -> Any:
    """Half precision as float32, and all else as it is.

    Example:
      >>> widened_tree({"w": jnp.ones(1, jnp.bfloat16), "n": jnp.arange(2)})
      {'n': Array([0, 1], dtype=int32), 'w': Array([1.], dtype=float32)}
    """
    return jax.tree.map(_widened, tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Each leaf in the dtype of the other tree's; a tree of another structure as it is.

    Example:
      >>> cast_like({"w": jnp.float32(2.0)}, {"w": jnp.float16(0)})
      {'w': Array(2., dtype=float16)}
    """
    structure: Any = jax.tree.structure(tree)  # mypy knows no methods of a PyTreeDef
    if structure != jax.tree.structure(like):
        return tree
    return jax.tree.map(lambda x, old: narrowed(x, jnp.result_type(old)), tree, like)


def narrowed(x: Any, dtype: Any) -> jax.Array:
    """x in another dtype; a finite number beyond its range becomes its largest one.

    Example:
      >>> narrowed(jnp.array([1e6, -jnp.inf]), jnp.float16).tolist()
      [65504.0, -inf]
    """
    have = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(have, jnp.floating):
        limits = jnp.finfo(dtype)
        if limits.max < jnp.finfo(have).max:
            most = jnp.asarray(limits.max, have)
            x = jnp.where(jnp.isinf(x), x, jnp.clip(x, -most, most))
    return jnp.asarray(x, dtype)


def bounded(g: Any, terms: int = 1) -> tuple[jax.Array, jax.Array]:
    """g and |g|^2, both held where the sum of `terms` such squares stays finite.

    Without the bound one finite gradient can make a second moment infinite, which ends the training
    of its weight. In float32 the bound is 1.3e19 for one term. NaN passes, and an infinity in g.

    The square is of g as it came, and held by itself: computed from the first result, it would have
    XLA write that out on a CPU, and RMSProp take twice the time.

    Example:
      >>> bounded(jnp.array([3e20, 1e19, -jnp.inf]))[0]
      Array([1.3043818e+19, 1.0000000e+19,          -inf], dtype=float32)
    """
    most = float(jnp.finfo(g.dtype).max) / (2 * terms)
    limit = math.sqrt(most)
    square = jnp.minimum(squared_size(g), most)
    if not jnp.iscomplexobj(g):
        return jnp.where(jnp.isinf(g), g, jnp.clip(g, -limit, limit)), square
    beyond = jnp.isfinite(g) & (jnp.abs(g) > limit)
    scale = power_of_two(jnp.maximum(jnp.abs(g.real), jnp.abs(g.imag)))
    direction = jnp.where(beyond, g / scale.astype(g.dtype), 1)
    return jnp.where(beyond, direction / jnp.abs(direction).astype(g.dtype) * limit, g), square


def squared_size(g: jax.Array) -> jax.Array:
    """|g|^2, a real number for a complex g.

    Example:
      >>> squared_size(jnp.array([3.0, 3j + 4]))
      Array([ 9., 25.], dtype=float32)
    """
    g = jnp.asarray(g)  # NumPy warns where the square overflows.
    return jnp.real(g.conj() * g) if jnp.iscomplexobj(g) else g * g


def shortened(g: Any) -> jax.Array:
    """g, the whole array divided by a power of two where its largest element is beyond 2^50.

    For rules that sum products of elements, and must keep their ratios.

    Example:
      >>> shortened(jnp.array([2.0**60, 2.0])).tolist(), shortened(jnp.ones(1)).tolist()
      ([1125899906842624.0, 0.001953125], [1.0])
    """
    most = 2.0**50
    size = power_of_two(largest(g))
    return jnp.where(size > most, g / (size / most).astype(g.dtype), g)


def saturated(x: Any, *given: Any) -> jax.Array:
    """x, held at the largest number where it is infinite though all that was given is finite.

    Example:
      >>> big = jnp.array([3e38, jnp.inf])
      >>> saturated(big + big, big)
      Array([3.4028235e+38,           inf], dtype=float32)
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(*(saturated(part, *given) for part in (x.real, x.imag)))
    finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, given))
    most = float(jnp.finfo(x.dtype).max)
    return jnp.where(finite, jnp.clip(x, -most, most), x)


def _widened(x: Any) -> Any:
    return jnp.asarray(x, wide(x.dtype)) if is_half(x) else x
