"""Attention in blocks of queries and keys, which never holds all scores."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.attention_scores import UNSEEN, Keys, Pairs, Queries, Scoring
from fdl.ops.numerics import wide
from fdl.ops.sharding import full_beside


@functools.partial(jax.jit, static_argnames="chunk", inline=True)
def in_blocks(
    queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring, chunk: int
) -> jax.Array:
    """Query block by query block, and each with a running softmax over blocks of keys.

    Args:
      queries: with q [..., T, H, K].
      keys: with k [..., S, G, K] and v [..., S, G, V].
      pairs: mask and bias, [..., H, T, S] both, any axis of which may be 1, or None.
      scoring: what says how much they attend to each other.
      chunk: the size of a block.

    Returns:
      y [..., T, H, V], in at least float32.

    Source: Rabe and Staats 2021, arXiv 2112.05682, section 3.
    """
    t, h = queries.q.shape[-3:-1]
    rows, columns = min(chunk, t), min(chunk, scoring.count)
    key_blocks = Keys(*(_split(x, axis, columns) for x, axis in zip(keys, KEY_AXES, strict=True)))

    # Both are recomputed in the backward pass: without the inner checkpoint a block of queries
    # would keep its weights for all keys, without the outer one every block of queries would.
    @jax.checkpoint
    def of_queries(block: tuple[Queries, Pairs]) -> jax.Array:
        queries, own = block
        row = _either(own, pairs)

        @jax.checkpoint
        def step(so_far: _SoFar, block: tuple[Keys, Pairs]) -> tuple[_SoFar, None]:
            keys, own = block
            here = _either(own, row)
            reached = scoring.reaches(queries, keys)
            if reached is True:
                return _and(so_far, queries, keys, here, scoring), None
            more = jax.lax.cond(
                reached, lambda: _and(so_far, queries, keys, here, scoring), lambda: so_far
            )
            return more, None

        lead = jnp.broadcast_shapes(queries.q.shape[:-3], keys.k.shape[:-3])
        dtype = wide(queries.q.dtype)
        whole = jnp.broadcast_to(queries.q, (*lead, *queries.q.shape[-3:]))
        begin = functools.partial(full_beside, whole, len(lead), dtype=dtype)
        none_yet = _SoFar(
            begin((h, rows), UNSEEN),
            begin((h, rows), 0),
            begin((rows, h, keys.v.shape[-1]), 0),
        )
        done, _ = jax.lax.scan(step, none_yet, (key_blocks, _split_pairs(row, -1, columns)))
        return done.mixed / _of_rows(jnp.where(done.total == 0, 1, done.total))

    blocks = Queries(*(_split(x, axis, rows) for x, axis in zip(queries, QUERY_AXES, strict=True)))
    y = jax.lax.map(of_queries, (blocks, _split_pairs(pairs, -2, rows)))
    y = jnp.moveaxis(y, 0, -4)
    return jax.lax.collapse(y, y.ndim - 4, y.ndim - 2)[..., :t, :, :]


QUERY_AXES = (-3, -1, -1)
KEY_AXES = (-3, -3, -1, -1)


class _SoFar(NamedTuple):
    """The softmax over the keys so far, of every query.

    Largest score and sum of exponentials [..., H, T], mixed values [..., T, H, V], both as if the
    largest score were 0.
    """

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array


def _and(so_far: _SoFar, queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring) -> _SoFar:
    scores, seen = scoring(queries, keys, pairs)
    largest = jnp.maximum(so_far.largest, jax.lax.stop_gradient(scores.max(-1)))
    kept = jnp.exp(so_far.largest - largest)
    parts = jnp.where(seen, jnp.exp(scores - largest[..., None]), 0)
    return _SoFar(
        largest,
        so_far.total * kept + parts.sum(-1),
        so_far.mixed * _of_rows(kept) + keys.mixed(parts),
    )


def _of_rows(x: jax.Array) -> jax.Array:
    """[..., H, T] as [..., T, H, 1]."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def _split_pairs(pairs: Pairs, axis: int, size: int) -> Pairs:
    """None too for an array of length 1, which broadcasts: every block then takes all of it."""
    cut = (None if x is None or x.shape[axis] == 1 else _split(x, axis, size) for x in pairs)
    return Pairs(*cut)


def _either(own: Pairs, whole: Pairs) -> Pairs:
    """What a block has of its own, else the whole."""
    return Pairs(*(y if x is None else x for x, y in zip(own, whole, strict=True)))


def _split(x: Any, axis: int, size: int) -> Any:
    """An axis in blocks of `size`, the last one padded; the blocks stand in front."""
    if x is None:
        return None
    axis = x.ndim + axis
    number = -(-x.shape[axis] // size)
    missing = number * size - x.shape[axis]
    if missing and jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 1:
        # Indices go on counting, so that what stands in for a key is past the real ones.
        x = jnp.concatenate([x, x[-1] + 1 + jnp.arange(missing, dtype=x.dtype)])
    elif missing:
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], number, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)
