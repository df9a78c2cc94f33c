"""Objectives that mix the examples of a batch in training: `mixup` and `cutmix`.

A mixed example has two targets. Its loss is the mean of the losses for the two targets, each
weighted by the share of its example. So any loss per example and any kind of target can be used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_concrete_number, check_shape, described, kind
from fdl.core.layer import subkey
from fdl.data import length
from fdl.ops.numerics import wide
from fdl.paths import PathError, quoted
from fdl.train.accumulators import added, tallied
from fdl.train.batches import unpack, without_ignored
from fdl.train.objective import Supervised
from fdl.typing import Array, Key

Mixture = Callable[[Key, Any, Array, Array], tuple[Any, Array]]
"""A function `(key, x, partner, share) -> (mixed x, share)`.

x is a pytree of arrays [B, ...]. partner [B] is the row with which each row is mixed. share [B] is
the part of each mixed row that comes from the row itself.
"""


def mixup(objective: Supervised, alpha: float = 0.2) -> Supervised:
    """In training, each example is a weighted mean of two examples of the batch.

    x' = l x_i + (1 - l) x_j,  loss = l loss(y_pred, y_i) + (1 - l) loss(y_pred, y_j)

    l is drawn from Beta(alpha, alpha) for each example i. j is another example of the batch, drawn
    so that each example is the j of exactly one i. Metrics are weighted like the loss, so the
    best possible training accuracy is below 1. In evaluation, examples are not mixed, and the
    result is that of `objective`.

    Args:
      objective: from `supervised`. In training, the batch must not contain extra inputs of the
        model, because only x and y are mixed. If the batch has weights, each of the two losses
        counts with the weight of its target, and examples of weight 0 are not mixed into others.
      alpha: a number > 0. The smaller it is, the more often l is near 0 or 1.

    Returns:
      An objective for `fit`, `sweep` and `evaluate`. x must have a floating dtype, or be uint8, in
      which case the mixed x is rounded. Examples are only mixed within a microbatch.

    Raises:
      TypeError: the objective is not from `supervised`, or it already mixes examples.
      ValueError: alpha is not a finite number > 0.
      PathError: raised by the objective in training if x has another dtype, or the batch has extra
        inputs.

    Example:
      >>> import fdl
      >>> mixed = mixup(fdl.supervised(lambda w, x: w * x, fdl.squared_error), alpha=0.4)
      >>> batch = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])
      >>> float(mixed(1.0, {}, batch, None)[0])
      0.0
      >>> bool(mixed(1.0, {}, batch, jax.random.key(0))[0] > 0)
      True

    Source: Zhang et al. 2018, arXiv 1710.09412, section 2. The authors' code draws one l for the
    whole batch.
    """
    return _mixed("mixup", objective, alpha, _blended)


def cutmix(objective: Supervised, alpha: float = 1.0) -> Supervised:
    """In training, a rectangle of each image is replaced by the same part of another image.

    The rectangle has the height H sqrt(1 - l) and the width W sqrt(1 - l), with l from Beta(alpha,
    alpha). Its centre is uniform in the image, and what lies beyond the image is cut off.

    loss = s loss(y_pred, y_i) + (1 - s) loss(y_pred, y_j)

    s is the share of the pixels of image i that are not replaced. j is the image from which the
    rectangle comes.

    Args:
      objective: as in `mixup`; x is [B, H, W, C], of any dtype.
      alpha: a number > 0. 1 draws l uniformly.

    Returns:
      An objective, as in `mixup`.

    Raises:
      TypeError, ValueError: as in `mixup`.
      PathError: raised by the objective in training if x is not [B, H, W, C], or the batch has
        extra inputs.

    Example:
      >>> import fdl
      >>> objective = fdl.supervised(lambda w, x: w * x.mean((1, 2, 3)), fdl.squared_error)
      >>> cutmix(objective) == cutmix(objective)
      True

    Source: Yun et al. 2019, arXiv 1905.04899, algorithm A1, which draws one l and one rectangle for
    the whole batch.
    """
    return _mixed("cutmix", objective, alpha, _pasted)


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class Mixed(Supervised):
    """What `mixup` and `cutmix` return.

    Args:
      who: "mixup" or "cutmix".
      alpha: the parameter of the Beta distribution.
      mixture: the function that mixes x.
    """

    who: str
    alpha: float
    mixture: Mixture

    def __repr__(self) -> str:
        return f"<{self.who} of alpha {self.alpha:g} of {super().__repr__()}>"

    def report(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, Any]:
        """Like `Supervised.report`; in training, with mixed examples."""
        if key is None:
            return super().report(params, state, batch, key)
        x, y, weight, inputs = unpack(batch)
        if inputs:
            raise PathError(
                "expected a batch of x, y and perhaps weight, got the extra input "
                f"{quoted(next(iter(inputs)))}, which would belong to one of two mixed examples; "
                "leave it out, or use the objective without mixing",
                layer=self.who,
            )
        weight = None if weight is None else jnp.asarray(weight)
        x, y, _ = without_ignored(x, y, {}, weight)
        rows = length((x, y, weight))
        keys = jax.random.split(subkey(key, self.who), 3)
        partner = _partners(keys[0], rows, weight)
        share = _beta(keys[1], self.alpha, rows)
        x, share = self.mixture(keys[2], x, partner, share)
        y_pred, state = self.forward(params, state, x, key)
        other_y, other_weight = jax.tree.map(lambda leaf: jnp.asarray(leaf)[partner], (y, weight))
        own = self.score(y_pred, y, _weighted(weight, share))
        other = self.score(y_pred, other_y, _weighted(other_weight, 1 - share))
        return added(tallied(own), tallied(other)), y_pred, state


def _mixed(who: str, objective: Any, alpha: Any, mixture: Mixture) -> Mixed:
    if not isinstance(objective, Supervised) or isinstance(objective, Mixed):
        twice = isinstance(objective, Mixed)
        remedy = "mix the batch in one way only" if twice else "pass fdl.supervised(model, loss)"
        raise TypeError(
            f"{who}: expected an objective of fdl.supervised, got {described(objective)}; {remedy}"
        )
    check_concrete_number(who, "alpha", alpha, "(0, inf)", "pass 0.2 or 1.0")
    given = {field.name: getattr(objective, field.name) for field in dataclasses.fields(Supervised)}
    return Mixed(**given, who=who, alpha=float(alpha), mixture=mixture)


def _partners(key: Key, rows: int, weight: Array | None) -> Array:
    """The row with which each row is mixed, int32 [B]: the next one in a random cycle of all rows.

    A row of weight 0 is its own partner, and the partner of no other row. A single row is its own
    partner.
    """
    order = jax.random.uniform(key, (rows,), jnp.float32)
    count: Any = rows
    if weight is not None:
        used = weight.astype(bool).reshape(rows, -1).any(1)
        order, count = jnp.where(used, order, 2), used.sum(dtype=jnp.int32)
    cycle = jnp.argsort(order)
    places = jnp.arange(rows, dtype=jnp.int32)
    following = jnp.where(places + 1 < count, places + 1, 0)
    following = jnp.where(places < count, following, places)
    return jnp.zeros(rows, jnp.int32).at[cycle].set(cycle[following])


def _beta(key: Key, alpha: float, rows: int) -> Array:
    """Numbers [B] from Beta(alpha, alpha), float32: 1/2 + t / (2 sqrt(2 alpha + t^2)).

    t is from Student's distribution with 2 alpha degrees of freedom. Unlike `jax.random.beta`, this
    needs no loop: on CPU, it compiles in a fifth of the time, and 128 rows take a seventh of the
    time.

    Source: Bailey 1994, "Polar generation of random variates with the t-distribution", for t;
    Devroye 1986, "Non-uniform random variate generation", chapter IX, for the symmetric beta.
    """
    u, v = jax.random.uniform(key, (2, rows), jnp.float32)
    cosine = jnp.cos(2 * jnp.pi * v)
    squared = jnp.expm1(-jnp.log(u) / alpha) * cosine**2  # t^2 / (2 alpha), which may be infinite
    return 0.5 + 0.5 * jnp.sign(cosine) / jnp.sqrt(1 + 1 / squared)


def _blended(key: Key, x: Any, partner: Array, share: Array) -> tuple[Any, Array]:
    """share x_i + (1 - share) x_j, where j is the partner of row i."""

    def blend(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.uint8:
            raise PathError(
                f"expected x of a floating dtype or uint8, got {kind(leaf)}; numbers of another "
                "dtype, such as ids, have no weighted mean: leave mixup out",
                layer="mixup",
            )
        dtype = wide(leaf.dtype)
        own = share.astype(dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
        one, other = leaf.astype(dtype), leaf[partner].astype(dtype)
        mean = own * one + (1 - own) * other
        return (jnp.round(mean) if leaf.dtype == jnp.uint8 else mean).astype(leaf.dtype)

    return jax.tree.map(blend, x), share


def _pasted(key: Key, x: Any, partner: Array, share: Array) -> tuple[Any, Array]:
    """x_i with a rectangle of its partner x_j, and the share of the pixels of x_i that are left."""
    check_shape("cutmix", x, "B, H, W, C", "pass images with a channel axis")
    x = jnp.asarray(x)
    height, width = x.shape[1:3]
    size = jnp.sqrt(1 - share)

    def ends(key: Key, n: int) -> tuple[Array, Array]:
        centre = n * jax.random.uniform(key, share.shape, jnp.float32)
        low, high = (centre + half * n * size for half in (-0.5, 0.5))
        return jnp.round(jnp.clip(low, 0, n)), jnp.round(jnp.clip(high, 0, n))

    keys = jax.random.split(key)
    (top, bottom), (left, right) = ends(keys[0], height), ends(keys[1], width)
    inside = _between(top, bottom, height)[:, :, None] & _between(left, right, width)[:, None]
    mixed = jnp.where(inside[..., None], x[partner], x)
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _between(low: Array, high: Array, n: int) -> Array:
    """bool [B, n], True at the positions low <= position < high."""
    position = jnp.arange(n, dtype=low.dtype)
    return (position >= low[:, None]) & (position < high[:, None])


def _weighted(weight: Array | None, share: Array) -> Array:
    """The weights [B, ...] times the shares [B]."""
    if weight is None:
        return share
    dtype = wide(weight.dtype)
    return weight.astype(dtype) * share.astype(dtype).reshape(-1, *(1,) * (weight.ndim - 1))
