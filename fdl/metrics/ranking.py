"""Metrics of order: whether what is true gets the higher score."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdl.losses.shapes import alike
from fdl.metrics.metric import Metric, summed, weights_of

# The bfloat16 numbers, and those of [1/2, 1) once more: by their distance from 1, which may be as
# small as 2^-24, in place of the 128 that they are themselves.
HALF, ONE = 0xBF00, 0xBF80
NEAR_ONE = 24 * 128
BINS = 2**16 + NEAR_ONE - (ONE - HALF)


def auc() -> Metric:
    """The area under the ROC curve: how often a true example has the higher score; ties half.

    Accumulated in a histogram over the upper 16 bits of a float32, which are a bfloat16: it is
    exact over any batching, for scores of any size, but two scores closer than 1 in 128 may count
    as tied; two between 1/2 and 1 only where their distances from 1 are as close. `exact_auc` is
    exact in that too, of all scores at once.

    Returns:
      Metric of scores [...] (logits or probabilities) and targets [...] that are 0 or 1. NaN where
      there is only one kind, a score is NaN, or a target is another number.

    Example:
      >>> metric = auc()
      >>> scores, targets = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
      >>> float(metric.compute(metric.update(metric.init(), scores, targets)))
      0.75

    Source: Hanley and McNeil 1982, "The Meaning and Use of the Area under a Receiver Operating
    Characteristic (ROC) Curve".
    """

    def count(scores: jax.Array, targets: jax.Array, weight: Any) -> dict[str, jax.Array]:
        scores, targets = alike("auc", scores, targets)
        weight = weights_of("auc", scores.shape, weight)
        known = ((targets == 0) | (targets == 1)) & ~jnp.isnan(scores)
        place, nothing = _bin(scores), jnp.zeros(BINS, weight.dtype)
        sums = {
            name: nothing.at[place].add(jnp.where(targets == kind, weight, nothing[0]))
            for name, kind in (("true", 1), ("false", 0))
        }
        return {**sums, "unknown": (~known & (weight != 0)).sum()}

    def compute(sums: dict[str, jax.Array]) -> jax.Array:
        true, false = (sums[name] / sums[name].sum() for name in ("true", "false"))
        lower = jnp.cumsum(false) - false / 2
        return jnp.where(sums["unknown"] > 0, jnp.nan, (true * lower).sum())

    return summed({"true": (BINS,), "false": (BINS,), "unknown": ()}, count, compute)


def exact_auc(scores: ArrayLike, targets: ArrayLike) -> float:
    """The area under the ROC curve of all scores at once, exact to the last tie.

    Args:
      scores: [N].
      targets: [N], 0 or 1.

    Returns:
      In [0, 1]. NumPy, not for use under jit.

    Raises:
      ValueError: different shapes, a NaN, targets other than 0 and 1, or only one kind of them.

    Example:
      >>> exact_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      0.75

    Source: Mann and Whitney 1947, "On a Test of Whether one of Two Random Variables is
    Stochastically Larger than the Other".
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ValueError(
            f"exact_auc: expected scores [N] and targets [N], got {list(scores.shape)} and "
            f"{list(targets.shape)}; take the scores of one class"
        )
    if np.isnan(scores).any():
        raise ValueError(
            "exact_auc: expected scores that are numbers, got NaN; see where training diverged"
        )
    if set(np.unique(targets).tolist()) != {0, 1}:
        raise ValueError(
            f"exact_auc: expected targets of both 0 and 1, got {np.unique(targets).tolist()[:5]}; "
            "give examples of both classes, 1 for the one with the larger scores"
        )
    _, place = np.unique(scores, return_inverse=True)
    true, false = (np.bincount(place, targets == kind) for kind in (1, 0))
    lower = np.cumsum(false) - false / 2
    return float((true * lower).sum() / true.sum() / false.sum())


def _bin(scores: jax.Array) -> jax.Array:
    """The place of a score among all bins, in their order."""
    scores = jnp.where(scores == 0, 0, scores).astype(jnp.float32)  # one zero, without a sign
    place = _rank(scores)
    more = NEAR_ONE - (ONE - HALF)
    near = HALF + (HALF - _rank(1 - scores))
    return jnp.where(place < HALF, place, jnp.where(place < ONE, near, place + more))


def _rank(scores: jax.Array) -> jax.Array:
    """The place of a score among all bfloat16 numbers, in their order."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return (ordered >> jnp.uint32(16)).astype(jnp.int32)
