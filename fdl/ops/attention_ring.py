"""Attention over a sequence that is split over devices, which pass their keys around in a ring.

n is the number of devices of the ring, numbered from 0. Device i has queries i T / n to
(i + 1) T / n - 1 and, at first, the i-th part of the keys and values. In each of n steps, every
device reads the keys that it has. Between two steps, device i passes them to device i + 1, and the
last device passes them to device 0.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fdl.ops.attention_blocks import KEY_AXES, QUERY_AXES, Softmax, padded, softmax
from fdl.ops.attention_scores import Keys, Pairs, Queries, Scoring
from fdl.ops.numerics import cast_like, wide
from fdl.ops.sharding import varying


class Ring(NamedTuple):
    """Where the parts of a sequence are.

    Args:
      mesh: the devices.
      axis: the mesh axis over which sequences are split.
      chunk: the number of queries, and of keys, in a block on one device; None means all of them.
    """

    mesh: Mesh
    axis: str
    chunk: int | None


@functools.partial(jax.jit, static_argnames="ring", inline=True)
def in_ring(queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring, ring: Ring) -> jax.Array:
    """Attention in which each device computes the outputs of its own queries.

    Args:
      queries, keys, pairs, scoring: as in `in_blocks`.
      ring: the devices.

    Returns:
      y [..., T, H, V], in float32 or wider, split along T.

    Source: Liu, Zaharia and Abbeel 2023, arXiv 2310.01889, section 3 and algorithm 1.
    """
    count, n = queries.q.shape[-3], ring.mesh.shape[ring.axis]
    # Each device gets whole blocks of keys. Otherwise, `softmax` would pad the last block with
    # indices that belong to keys of the next device.
    part = -(-keys.k.shape[-3] // n)
    columns = n * min(ring.chunk or part, part)
    queries = Queries(*(padded(x, a, n) for x, a in zip(queries, QUERY_AXES, strict=True)))
    keys = Keys(*(padded(x, a, columns) for x, a in zip(keys, KEY_AXES, strict=True)))
    pairs = Pairs(*(_padded_pair(_padded_pair(x, -2, n), -1, columns) for x in pairs))
    scoring = jax.tree.map(lambda x: jnp.asarray(x, wide(queries.q.dtype)), scoring)
    cut = functools.partial(_cut, ring.axis)
    rows = tuple(None if x is None or x.shape[-2] == 1 else -2 for x in pairs)
    specs = (cut(queries, QUERY_AXES), cut(keys, KEY_AXES), cut(pairs, rows), PartitionSpec())
    y = jax.shard_map(
        functools.partial(_on_a_device, ring),
        mesh=ring.mesh,
        in_specs=specs,
        out_specs=PartitionSpec(*(None,) * (queries.q.ndim - 3), ring.axis),
        axis_names={ring.axis},
    )(queries, keys, pairs, scoring)
    return jax.lax.slice_in_dim(y, 0, count, axis=y.ndim - 3)


def _padded_pair(x: Any, axis: int, size: int) -> Any:
    return x if x is None or x.shape[axis] == 1 else padded(x, axis, size)


def _cut(name: str, arrays: Sequence[Any], axes: Sequence[int | None]) -> Any:
    """Specs that split one axis of each array over the mesh axis `name`; None splits no axis."""
    specs = (
        PartitionSpec() if x is None or a is None else PartitionSpec(*(None,) * (x.ndim + a), name)
        for x, a in zip(arrays, axes, strict=True)
    )
    return type(arrays)(*specs)


def _on_a_device(ring: Ring, *args: Any) -> jax.Array:
    # An input that is the same on all devices gets a gradient from each device. With `varying`, JAX
    # adds these gradients.
    return _attended(ring, *jax.tree.map(lambda x: varying(x, {ring.axis}), args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attended(
    ring: Ring, queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring
) -> jax.Array:
    return _forward(ring, queries, keys, pairs, scoring)[0]


def _forward(
    ring: Ring, queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring
) -> tuple[jax.Array, Any]:
    def read(keys: Keys) -> Softmax:
        return softmax(queries, keys, _columns(pairs, keys), scoring, ring.chunk)

    def step(carry: tuple[Softmax, Keys], _: None) -> tuple[tuple[Softmax, Keys], None]:
        so_far, keys = carry
        keys = _passed_on(keys, ring)
        return (so_far.joined(read(keys)), keys), None

    turns = ring.mesh.shape[ring.axis] - 1
    (done, _), _ = jax.lax.scan(step, (read(keys), keys), length=turns)
    return done.answer(), (queries, keys, pairs, scoring, done)


def _backward(ring: Ring, saved: Any, dy: jax.Array) -> Any:
    """The gradients. The keys go around once more, and their gradients go with them.

    So the forward pass does not have to save the keys of other devices. With the `largest` of all
    keys, `total` and `mixed` are sums over the parts of the keys, so each step computes the
    gradients of one part alone.
    """
    *given, done = saved
    (d_done,) = jax.vjp(Softmax.answer, done)[1](dy)

    def step(carry: tuple[Any, Keys], _: None) -> tuple[tuple[Any, Keys], None]:
        so_far, keys = carry
        now = [given[0], keys, *given[2:]]

        def sums(floats: Any) -> tuple[jax.Array, jax.Array]:
            queries, keys, pairs, scoring = _with(floats, now)
            found = softmax(queries, keys, _columns(pairs, keys), scoring, ring.chunk)
            return found.beside(done.largest)[1:]

        (more,) = jax.vjp(sums, _floats(now))[1](d_done[1:])
        d = jax.tree.map(lambda a, b: a + b.astype(a.dtype), so_far, more)
        d[1], keys = _passed_on((d[1], keys), ring)
        return (d, keys), None

    floats = _floats(given)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, wide(x.dtype)), floats)
    (d, _), _ = jax.lax.scan(step, (zeros, given[1]), length=ring.mesh.shape[ring.axis])
    return tuple(cast_like(d, floats))


_attended.defvjp(_forward, _backward)


def _passed_on(tree: Any, ring: Ring) -> Any:
    n = ring.mesh.shape[ring.axis]
    to_the_next = [(i, (i + 1) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axis, to_the_next), tree)


def _columns(pairs: Pairs, keys: Keys) -> Pairs:
    """The columns of mask and bias that belong to `keys`; `pairs` has the columns of all keys."""
    start, count = keys.place[0], keys.place.shape[0]
    columns = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, -1)  # noqa: E731
    return Pairs(*(x if x is None or x.shape[-1] == 1 else columns(x) for x in pairs))


def _floats(tree: Any) -> Any:
    """The tree, with None in place of arrays that have no gradient."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)


def _with(floats: Any, tree: Any) -> Any:
    """The tree, with each array replaced by the array of `floats`, unless that is None."""
    either = lambda new, old: old if new is None else new  # noqa: E731
    return jax.tree.map(either, floats, tree, is_leaf=lambda x: x is None)
