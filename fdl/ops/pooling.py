"""Sliding windows along one axis: the largest element and the sum of each window.

Windows have k elements and stride s. The axis is split into blocks of s elements, and window p
begins with block p. So element q * s + r of window p is element r of block p + q. The code then
combines elements that are contiguous in memory, in the forward and in the backward pass. If it used
strided slices, the backward pass would write k arrays with zeros between the numbers.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

# Up to this number of elements are combined one by one, which on CPU is twice as fast as a
# reduction. For more elements, a reduction is faster. For hundreds of elements, code that combines
# them one by one takes minutes to compile.
FEW = 3


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def largest(x: jax.Array, axis: int, k: int, s: int) -> jax.Array:
    """The largest element of every window. The first of equal elements gets the gradient.

    The derivative is written below for two reasons: the backward pass of XLA's maximum over windows
    takes 10 to 40 times as long on CPU, and `jnp.max` splits the gradient among equal elements.
    """
    parts = (_reduced(jnp.maximum, jnp.max, part, axis + 1) for part in _blocks(x, axis, k, s))
    return functools.reduce(jnp.maximum, parts)


@largest.defjvp
def _(axis: int, k: int, s: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    y = largest(x, axis, k, s)
    found, change = jnp.zeros(y.shape, bool), jnp.zeros((), t.dtype)
    for seen, moved in zip(_blocks(x, axis, k, s), _blocks(t, axis, k, s), strict=True):
        hits = (seen == jnp.expand_dims(y, axis + 1)) & ~jnp.expand_dims(found, axis + 1)
        picked = jnp.where(_first(hits, axis + 1), moved, jnp.zeros((), t.dtype))
        change = change + picked.sum(axis + 1)
        found = found | _reduced(jnp.logical_or, jnp.any, hits, axis + 1)
    return y, change


def total(x: jax.Array, axis: int, k: int, s: int) -> jax.Array:
    """The sum of every window."""
    return functools.reduce(jnp.add, (part.sum(axis + 1) for part in _blocks(x, axis, k, s)))


def dilated(
    pool: Callable[[jax.Array, int, int, int], jax.Array],
    x: jax.Array,
    axis: int,
    k: int,
    s: int,
    d: int,
) -> jax.Array:
    """`largest` or `total` of windows with dilation d.

    x is split into d sequences, each made of every d-th element. In these sequences, the windows
    have no dilation. All windows of the sequences are computed, with stride 1, and then every s-th
    window is selected.
    """
    if d == 1 or k == 1:
        return pool(x, axis, k, s)
    size, windows = x.shape[axis], x.shape[axis] - (k - 1) * d
    length = -(-size // d)
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (0, length * d - size, 0)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
    x = pool(x.reshape(*x.shape[:axis], length, d, *x.shape[axis + 1 :]), axis, k, 1)
    x = jax.lax.collapse(x, axis, axis + 2)
    return jax.lax.slice_in_dim(x, 0, windows, s, axis)


def exact(x: jax.Array) -> jax.Array:
    """x in float32, or in its dtype if that is wider."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def _blocks(x: jax.Array, axis: int, k: int, s: int) -> Iterator[jax.Array]:
    """For q = 0, 1, ...: elements q * s to min(q * s + s, k) - 1 of every window.

    Each part is [..., windows, elements, ...], for x [..., n, ...].
    """
    windows, parts = (x.shape[axis] - k) // s + 1, -(-k // s)
    size = (windows + parts - 1) * s
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (0, size - x.shape[axis], 0)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
    x = x.reshape(*x.shape[:axis], windows + parts - 1, s, *x.shape[axis + 1 :])
    for q in range(parts):
        part = jax.lax.slice_in_dim(x, q, q + windows, axis=axis)
        yield jax.lax.slice_in_dim(part, 0, min(s, k - q * s), axis=axis + 1)


def _reduced(
    pair: Callable[[Any, Any], jax.Array], whole: Callable[..., jax.Array], x: jax.Array, axis: int
) -> jax.Array:
    """Reduces an axis: by `pair`, element by element, or by `whole` for more than FEW elements."""
    if x.shape[axis] > FEW:
        return whole(x, axis)
    return functools.reduce(pair, _elements(x, axis))


def _first(hits: jax.Array, axis: int) -> jax.Array:
    """True only at the first True along an axis."""
    n = hits.shape[axis]
    if n > FEW:
        places = jax.lax.broadcasted_iota(jnp.int32, hits.shape, axis)
        return places == jnp.where(hits, places, n).min(axis, keepdims=True)
    free, firsts = jnp.bool_(True), []
    for each in _elements(hits, axis):
        firsts.append(each & free)
        free = free & ~each
    return jnp.stack(firsts, axis)


def _elements(x: jax.Array, axis: int) -> Iterator[jax.Array]:
    return (jax.lax.index_in_dim(x, place, axis, keepdims=False) for place in range(x.shape[axis]))
