"""Attention in blocks of queries and keys, so that not all scores are in memory at once."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.attention_scores import UNSEEN, Keys, Pairs, Queries, Scoring
from fdl.ops.numerics import wide
from fdl.ops.sharding import full_beside

# For each field of Queries and of Keys, the axis that is split into blocks.
QUERY_AXES = (-3, -1, -1)
KEY_AXES = (-3, -3, -1, -1)


@functools.partial(jax.jit, static_argnames="chunk", inline=True)
def in_blocks(
    queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring, chunk: int
) -> jax.Array:
    """Attention, computed block by block, with a running softmax over the blocks of keys.

    Args:
      queries: q [..., T, H, K], and the indices of the queries.
      keys: k [..., S, G, K] and v [..., S, G, V], and the indices of the keys.
      pairs: mask and bias, each [..., H, T, S], where any axis may have size 1, or None.
      scoring: computes the scores.
      chunk: size of a block.

    Returns:
      y [..., T, H, V], in float32 or wider.

    Source: Rabe and Staats 2021, arXiv 2112.05682, section 3.
    """
    t, h = queries.q.shape[-3:-1]
    rows, columns = min(chunk, t), min(chunk, scoring.count)
    key_blocks = Keys(*(_split(x, axis, columns) for x, axis in zip(keys, KEY_AXES, strict=True)))

    # Both functions below are checkpoints, so the backward pass recomputes them. Without the inner
    # one, the forward pass would store the weights of one block of queries for all keys; without
    # the outer one, it would store the weights of all blocks of queries.
    @jax.checkpoint
    def of_queries(block: tuple[Queries, Pairs]) -> jax.Array:
        queries, row_pairs = block
        row = _either(row_pairs, pairs)

        @jax.checkpoint
        def step(so_far: _SoFar, block: tuple[Keys, Pairs]) -> tuple[_SoFar, None]:
            keys, block_pairs = block
            here = _either(block_pairs, row)
            reached = scoring.reaches(queries, keys)
            if reached is True:
                return _updated(so_far, queries, keys, here, scoring), None
            more = jax.lax.cond(
                reached, lambda: _updated(so_far, queries, keys, here, scoring), lambda: so_far
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


class _SoFar(NamedTuple):
    """The softmax of every query over the blocks of keys that were already read.

    `largest` [..., H, T] is the largest score. `total` [..., H, T] is the sum of the exponentials
    e^(score - largest), and `mixed` [..., T, H, V] the sum of these exponentials times the values.
    """

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array


def _updated(
    so_far: _SoFar, queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring
) -> _SoFar:
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
    """x [..., H, T] as [..., T, H, 1]."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def _split_pairs(pairs: Pairs, axis: int, size: int) -> Pairs:
    """`_split` of mask and bias. An array whose axis has size 1 is not split, but becomes None."""
    cut = (None if x is None or x.shape[axis] == 1 else _split(x, axis, size) for x in pairs)
    return Pairs(*cut)


def _either(block: Pairs, whole: Pairs) -> Pairs:
    """The mask and the bias of a block; for an array that was not split, the whole array."""
    return Pairs(*(y if x is None else x for x, y in zip(block, whole, strict=True)))


def _split(x: Any, axis: int, size: int) -> Any:
    """Splits an axis into blocks of `size`, and pads the last block. The blocks become axis 0."""
    if x is None:
        return None
    axis = x.ndim + axis
    number = -(-x.shape[axis] // size)
    missing = number * size - x.shape[axis]
    if missing and jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 1:
        # The indices continue, so that padding has larger indices than real keys.
        x = jnp.concatenate([x, x[-1] + 1 + jnp.arange(missing, dtype=x.dtype)])
    elif missing:
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], number, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)
