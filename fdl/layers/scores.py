"""How much queries attend to keys: scores, and which of them count."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.numerics import wide

# The score of what must not be seen: below any other, and finite, so that a row with nothing to see
# has a finite maximum and finite gradients.
UNSEEN = -1e38


class Queries(NamedTuple):
    """Queries q [..., T, H, K], their places [T] and their segments [..., T] or None."""

    q: jax.Array
    place: jax.Array
    segments: jax.Array | None


class Keys(NamedTuple):
    """Keys k [..., S, G, K] and values, their places [S] and their segments [..., S] or None."""

    k: jax.Array
    v: jax.Array
    place: jax.Array
    segments: jax.Array | None

    def mixed(self, weights: jax.Array) -> jax.Array:
        """The values mixed by weights [..., H, T, S] to [..., T, H, V]."""
        *lead, h, t, s = weights.shape
        g = self.v.shape[-2]
        shared = weights.reshape(*lead, g, h // g, t, s).astype(self.v.dtype)
        mixed = jnp.einsum(
            "...grts,...sgv->...tgrv", shared, self.v, preferred_element_type=wide(self.v.dtype)
        )
        return mixed.reshape(*mixed.shape[:-3], h, mixed.shape[-1])


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How much queries attend to keys, for all of them or for a block; `count` keys are real."""

    causal: bool
    window: int | None
    slopes: tuple[float, ...]
    soft_cap: float | None
    count: int

    def __call__(
        self, queries: Queries, keys: Keys, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Scores [..., H, T, S], UNSEEN where they do not count, and where they do, a bool.

        The latter broadcasts to the shape of the former.
        """
        *lead, t, h, features = queries.q.shape
        s, g = keys.k.shape[-3:-1]
        shared = queries.q.reshape(*lead, t, g, h // g, features)
        scores = jnp.einsum(
            "...tgrk,...sgk->...grts",
            shared,
            keys.k,
            preferred_element_type=wide(shared.dtype),
        )
        scores = scores.reshape(*scores.shape[:-4], h, t, s) / math.sqrt(max(features, 1))
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        if self.slopes:
            ahead = keys.place - queries.place[:, None]
            fall = jnp.asarray(self.slopes, scores.dtype)[:, None, None]
            scores = scores - fall * jnp.abs(ahead).astype(scores.dtype)
        seen = self.seen(queries, keys, mask)
        return jnp.where(seen, scores, UNSEEN), seen

    def seen(self, queries: Queries, keys: Keys, mask: jax.Array | None) -> jax.Array:
        """Which keys each query sees, broadcast to [..., H, T, S]."""
        ahead = keys.place - queries.place[:, None]
        seen = keys.place < self.count
        if self.causal:
            seen = seen & (ahead <= 0)
        if self.window is not None:
            seen = seen & (jnp.abs(ahead) < self.window)
        if queries.segments is not None and keys.segments is not None:
            same = queries.segments[..., :, None] == keys.segments[..., None, :]
            seen = seen & same[..., None, :, :]
        return seen if mask is None else seen & mask

    def reaches(self, queries: Queries, keys: Keys) -> Any:
        """Whether any of these queries could see any of these keys, by their places."""
        reached: Any = True
        if self.causal:
            reached = keys.place[0] <= queries.place[-1]
        if self.window is not None:
            after = keys.place[-1] > queries.place[0] - self.window
            reached = reached & after & (keys.place[0] < queries.place[-1] + self.window)
        return reached
