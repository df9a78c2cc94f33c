"""Scores of attention: how much queries attend to keys, and which keys they see.

The letters in the shapes are explained in `fdl.ops.attention`.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.numerics import wide

# The score of a hidden key. It is finite, so that a row without visible keys has a finite maximum
# and finite gradients.
UNSEEN = -1e38


class Queries(NamedTuple):
    """Queries q [..., T, H, K], places [T] (indices in the sequence), segments [..., T] or None."""

    q: jax.Array
    place: jax.Array
    segments: jax.Array | None


class Keys(NamedTuple):
    """Keys k [..., S, G, K], values v [..., S, G, V]; places [S] and segments as in Queries."""

    k: jax.Array
    v: jax.Array
    place: jax.Array
    segments: jax.Array | None

    def mixed(self, weights: jax.Array) -> jax.Array:
        """Sums of the values with weights [..., H, T, S]; the result is [..., T, H, V]."""
        *lead, h, t, s = weights.shape
        g, dtype = self.v.shape[-2], wide(self.v.dtype)
        weights = weights.astype(self.v.dtype)
        if g == h:  # with one more axis, XLA on CPU would copy the operands: a fifth slower
            return jnp.einsum(
                "...hts,...shv->...thv", weights, self.v, preferred_element_type=dtype
            )
        shared = weights.reshape(*lead, g, h // g, t, s)
        mixed = jnp.einsum("...grts,...sgv->...tgrv", shared, self.v, preferred_element_type=dtype)
        return mixed.reshape(*mixed.shape[:-3], h, mixed.shape[-1])


class Pairs(NamedTuple):
    """Mask and bias for pairs of a query and a key, [..., H, T, S]; any axis may have size 1.

    Args:
      mask: bool, True where the query sees the key. None means that queries see all keys.
      bias: added to the score; minus infinity hides the key, like False in the mask. None means no
        bias.
    """

    mask: jax.Array | None
    bias: jax.Array | None

    def seen(self) -> jax.Array | None:
        """True where mask and bias let a query see a key; None if there is neither."""
        if self.bias is None:
            return self.mask
        shown = self.bias != -jnp.inf
        return shown if self.mask is None else self.mask & shown


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["slopes", "soft_cap", "scale"],
    meta_fields=["causal", "window", "count", "alike"],
)
@dataclasses.dataclass(frozen=True)
class Scoring:
    """Computes scores, for all queries and keys or for a block of them.

    Args:
      causal, window: as in `dot_product_attention`.
      count: number of real keys, without padding; None if there is no padding.
      slopes, soft_cap: as in `dot_product_attention`: [H] and a scalar, or None.
      scale: a scalar; None means 1 / sqrt(K).
      alike: True applies no scale, cap, slopes or bias, so that equal keys have equal scores. A
        bias of minus infinity still hides keys.
    """

    causal: bool
    window: int | None
    count: int | None
    slopes: Any = None
    soft_cap: Any = None
    scale: Any = None
    alike: bool = False

    def __call__(self, queries: Queries, keys: Keys, pairs: Pairs) -> jax.Array:
        """Scores [..., H, T, S], UNSEEN for hidden keys."""
        scores = self.products(queries.q, keys.k)
        if not self.alike:
            ahead = keys.place - queries.place[:, None]
            scores = self.moved(scores, ahead, queries.q.shape[-1], pairs.bias)
        seen = self.seen(queries, keys, pairs)
        return scores if seen is None else jnp.where(seen, scores, UNSEEN)

    def products(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """q k^T for each head, [..., H, T, S]."""
        *lead, t, h, features = q.shape
        (s, g), dtype = k.shape[-3:-1], wide(q.dtype)
        if g == h:
            return jnp.einsum("...thk,...shk->...hts", q, k, preferred_element_type=dtype)
        q = q.reshape(*lead, t, g, h // g, features)
        scores = jnp.einsum("...tgrk,...sgk->...grts", q, k, preferred_element_type=dtype)
        return scores.reshape(*scores.shape[:-4], h, t, s)

    def moved(
        self, scores: jax.Array, ahead: jax.Array, features: int, bias: jax.Array | None
    ) -> jax.Array:
        """The scores q k^T after scale, soft cap, slopes and bias, in this order."""
        if self.scale is None:
            scores = scores / math.sqrt(max(features, 1))
        else:
            scores = scores * jnp.asarray(self.scale, scores.dtype)
        if self.soft_cap is not None:
            cap = jnp.asarray(self.soft_cap, scores.dtype)
            scores = cap * jnp.tanh(scores / cap)
        if self.slopes is not None:
            fall = jnp.asarray(self.slopes, scores.dtype)[:, None, None]
            scores = scores - fall * jnp.abs(ahead).astype(scores.dtype)
        return scores if bias is None else scores + bias.astype(scores.dtype)

    def seen(self, queries: Queries, keys: Keys, pairs: Pairs) -> jax.Array | None:
        """True where a query sees a key; broadcasts to [..., H, T, S]. None if all see all."""
        ahead = keys.place - queries.place[:, None]
        rules = [pairs.seen()]
        if self.count is not None:
            rules.append(keys.place < self.count)
        if self.causal:
            rules.append(ahead <= 0)
        if self.window is not None:
            rules.append(jnp.abs(ahead) < self.window)
        if queries.segments is not None and keys.segments is not None:
            same = queries.segments[..., :, None] == keys.segments[..., None, :]
            rules.append(same[..., None, :, :])
        known = [rule for rule in rules if rule is not None]
        return functools.reduce(jnp.logical_and, known) if known else None

    def reaches(self, queries: Queries, keys: Keys) -> Any:
        """False if causal and window hide all these keys from all these queries, else True."""
        reached: Any = True
        if self.causal:
            reached = keys.place[0] <= queries.place[-1]
        if self.window is not None:
            after = keys.place[-1] > queries.place[0] - self.window
            reached = reached & after & (keys.place[0] < queries.place[-1] + self.window)
        return reached


def exponentials(
    queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring
) -> tuple[jax.Array, jax.Array]:
    """The largest score of each query, and e^(score - largest), which is 0 for hidden keys.

    Returns:
      (largest [..., H, T], exponentials [..., H, T, S]).
    """
    scores = scoring(queries, keys, pairs)
    largest = jax.lax.stop_gradient(scores.max(-1))
    # A query that sees no key has only scores UNSEEN. Minus 0, their exponentials are 0.
    start = jnp.where(largest == UNSEEN, 0, largest)
    return largest, jnp.exp(scores - start[..., None])
