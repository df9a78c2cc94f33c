"""Attention in blocks of queries and keys, so that not all scores are in memory at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.attention_scores import UNSEEN, Keys, Pairs, Queries, Scoring, exponentials
from fdl.ops.numerics import wide
from fdl.ops.sharding import full_beside

# For each field of Queries, Keys and Softmax, the axis that is split into blocks.
QUERY_AXES = (-3, -1, -1)
KEY_AXES = (-3, -3, -1, -1)
SOFTMAX_AXES = (-1, -1, -3)


class Softmax(NamedTuple):
    """The softmax of every query over some of the keys.

    `largest` [..., H, T] is the largest score. `total` [..., H, T] is the sum of the exponentials
    e^(score - largest), and `mixed` [..., T, H, V] the sum of these exponentials times the values.
    """

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array

    def answer(self) -> jax.Array:
        """The weighted mean of the values, [..., T, H, V]; 0 for a query that sees no key."""
        return self.mixed / _of_rows(jnp.where(self.total == 0, 1, self.total))

    def beside(self, largest: jax.Array) -> "Softmax":
        """The same softmax with another `largest`, so its exponentials are e^(score - largest)."""
        kept = jnp.exp(self.largest - largest)
        return Softmax(largest, self.total * kept, self.mixed * _of_rows(kept))

    def joined(self, other: "Softmax") -> "Softmax":
        """The softmax over the keys of both."""
        largest = jnp.maximum(self.largest, other.largest)
        a, b = self.beside(largest), other.beside(largest)
        return Softmax(largest, a.total + b.total, a.mixed + b.mixed)


@functools.partial(jax.jit, static_argnames="chunk", inline=True)
def in_blocks(
    queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring, chunk: int
) -> jax.Array:
    """Attention, computed block by block, with a running softmax over the blocks of keys.

    Args:
      queries: q [..., T, H, K], with the indices and segments of the queries.
      keys: k [..., S, G, K] and v [..., S, G, V], with the indices and segments of the keys.
      pairs: mask and bias, each None or [..., H, T, S], where any axis may have size 1.
      scoring: computes the scores.
      chunk: the number of queries, and of keys, in a block.

    Returns:
      y [..., T, H, V], in float32 or wider.

    Source: Rabe and Staats 2021, arXiv 2112.05682, section 3.
    """
    y = _by_blocks(queries, keys, pairs, scoring, chunk, Softmax.answer)
    return _joined(y, -3, queries.q.shape[-3])


def softmax(
    queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring, chunk: int | None
) -> Softmax:
    """The softmax over the keys, all at once or, with a chunk, block by block."""
    if chunk is None:
        return _softmax(queries, keys, pairs, scoring)
    blocks = _by_blocks(queries, keys, pairs, scoring, chunk, lambda done: done, skips=False)
    count = queries.q.shape[-3]
    return Softmax(*(_joined(x, a, count) for x, a in zip(blocks, SOFTMAX_AXES, strict=True)))


def _by_blocks(
    queries: Queries,
    keys: Keys,
    pairs: Pairs,
    scoring: Scoring,
    chunk: int,
    ends: Callable[[Softmax], Any],
    skips: bool = True,
) -> Any:
    """Applies `ends` to the softmax of each block of queries, and stacks the results on axis 0.

    With `skips`, a block of queries does not compute scores for a block of keys that `scoring`
    hides from all of its queries.
    """
    t, h = queries.q.shape[-3:-1]
    rows, columns = min(chunk, t), min(chunk, keys.k.shape[-3])
    key_blocks = Keys(*(_split(x, axis, columns) for x, axis in zip(keys, KEY_AXES, strict=True)))

    # Both functions below are checkpoints. Without the inner one, the backward pass of a block of
    # queries would store its weights for all keys at once. Without the outer one, the forward pass
    # would store the running softmax of every block of queries after every block of keys.
    @jax.checkpoint
    def of_queries(block: tuple[Queries, Pairs]) -> Any:
        queries, row_pairs = block
        row = _either(row_pairs, pairs)

        @jax.checkpoint
        def step(so_far: Softmax, block: tuple[Keys, Pairs]) -> tuple[Softmax, None]:
            keys, block_pairs = block
            here = _either(block_pairs, row)
            reached = scoring.reaches(queries, keys) if skips else True
            if reached is True:
                return so_far.joined(_softmax(queries, keys, here, scoring)), None
            more = jax.lax.cond(
                reached,
                lambda: so_far.joined(_softmax(queries, keys, here, scoring)),
                lambda: so_far,
            )
            return more, None

        lead = jnp.broadcast_shapes(queries.q.shape[:-3], keys.k.shape[:-3])
        dtype = wide(queries.q.dtype)
        whole = jnp.broadcast_to(queries.q, (*lead, *queries.q.shape[-3:]))
        begin = functools.partial(full_beside, whole, len(lead), dtype=dtype)
        none_yet = Softmax(
            begin((h, rows), UNSEEN),
            begin((h, rows), 0),
            begin((rows, h, keys.v.shape[-1]), 0),
        )
        done, _ = jax.lax.scan(step, none_yet, (key_blocks, _split_pairs(row, -1, columns)))
        return ends(done)

    blocks = Queries(*(_split(x, axis, rows) for x, axis in zip(queries, QUERY_AXES, strict=True)))
    return jax.lax.map(of_queries, (blocks, _split_pairs(pairs, -2, rows)))


def _softmax(queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring) -> Softmax:
    largest, parts = exponentials(queries, keys, pairs, scoring)
    return Softmax(largest, parts.sum(-1), keys.mixed(parts))


def _of_rows(x: jax.Array) -> jax.Array:
    """x [..., H, T] as [..., T, H, 1]."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def _split_pairs(pairs: Pairs, axis: int, size: int) -> Pairs:
    """`_split` of mask and bias. An array with size 1 along this axis becomes None instead."""
    cut = (None if x is None or x.shape[axis] == 1 else _split(x, axis, size) for x in pairs)
    return Pairs(*cut)


def _either(block: Pairs, whole: Pairs) -> Pairs:
    """The mask and the bias of a block; for an array that was not split, the whole array."""
    return Pairs(*(y if x is None else x for x, y in zip(block, whole, strict=True)))


def _split(x: Any, axis: int, size: int) -> Any:
    """Splits an axis into blocks of `size`, and pads the last block. The blocks become axis 0."""
    if x is None:
        return None
    x, axis = padded(x, axis, size), x.ndim + axis
    x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def padded(x: Any, axis: int, size: int) -> Any:
    """x, with an axis padded to a multiple of `size`; None stays None."""
    if x is None or not x.shape[axis] % size:
        return x
    missing = -x.shape[axis] % size
    if jnp.issubdtype(x.dtype, jnp.integer) and x.ndim == 1:
        # The indices continue, so that padding has larger indices than real keys.
        return jnp.concatenate([x, x[-1] + 1 + jnp.arange(missing, dtype=x.dtype)])
    return jnp.pad(x, [(0, missing if i == x.ndim + axis else 0) for i in range(x.ndim)])


def _joined(blocks: jax.Array, axis: int, count: int) -> jax.Array:
    """The inverse of `_split`: the first `count` elements of an axis that was split."""
    x = jnp.moveaxis(blocks, 0, axis - 1)
    x = jax.lax.collapse(x, x.ndim + axis - 1, x.ndim + axis + 1)
    return jax.lax.slice_in_dim(x, 0, count, axis=x.ndim + axis)
