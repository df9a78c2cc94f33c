"""Ranking metrics: whether positive examples (target 1) have higher scores than negative ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdl.losses.shapes import same_shape
from fdl.metrics.metric import Metric, ratio, summed, weights_of
from fdl.paths import shortened

# Scores are counted in bins, one bin for each bfloat16 number, except in [1/2, 1). There, only 128
# bfloat16 numbers exist, too few for probabilities near 1. So a score s in [1/2, 1) is binned by
# 1 - s, rounded to bfloat16. 1 - s is between 2^-24 and 1/2, so NEAR_ONE bins are enough.
# HALF and ONE are the ranks of 1/2 and 1, as `_rank` gives them.
HALF, ONE = 0xBF00, 0xBF80
NEAR_ONE = 24 * 128
BINS = 2**16 + NEAR_ONE - (ONE - HALF)


def auc() -> Metric:
    """The area under the ROC curve.

    It is the share of pairs of a positive and a negative example in which the positive example has
    the higher score. A pair with equal scores adds 1/2.

    The metric accumulates a histogram of the scores, rounded to bfloat16. So the value does not
    depend on the split into batches, and scores may have any magnitude. Because of the rounding,
    two different scores can be treated as equal if their relative difference is below 1/128. For
    scores between 1/2 and 1, the relative difference of 1 - score counts instead. `exact_auc` does
    not round, but needs all scores at once.

    Returns:
      Metric whose inputs are scores [...], logits or probabilities, and targets [...], 0 or 1. Its
      value is NaN if all targets are equal, a score is NaN, or a target is not 0 or 1.

    Raises:
      PathError: `update` gets scores and targets of different shapes.

    Example:
      >>> metric = auc()
      >>> scores, targets = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
      >>> float(metric.compute(metric.update(metric.init(), scores, targets)))
      0.75

    Source: Hanley and McNeil 1982, "The Meaning and Use of the Area under a Receiver Operating
    Characteristic (ROC) Curve".
    """

    def compute(true: jax.Array, false: jax.Array) -> jax.Array:
        true, false = true / true.sum(), false / false.sum()
        lower = jnp.cumsum(false) - false / 2
        return (true * lower).sum()

    return _of_histograms("auc", compute)


def average_precision() -> Metric:
    """The area under the precision-recall curve: sum_n (R_n - R_(n-1)) P_n over falling thresholds.

    P_n is the precision and R_n the recall at threshold n. The value is also the mean, over all
    positive examples, of the precision among the examples with the same score or a higher one. With
    random scores, the value is about the share of positives. Scores are rounded as in `auc`.

    Returns:
      Metric whose inputs are scores [...], logits or probabilities, and targets [...], 0 or 1. Its
      value is NaN if there are no positives, a score is NaN, or a target is not 0 or 1.

    Raises:
      PathError: `update` gets scores and targets of different shapes.

    Example:
      >>> scores, targets = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
      >>> round(float(average_precision()(scores, targets)), 4)
      0.8333

    Source: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", section
    8.4.
    """

    def compute(true: jax.Array, false: jax.Array) -> jax.Array:
        above, wrong = jnp.cumsum(true[::-1]), jnp.cumsum(false[::-1])
        return (true[::-1] / true.sum() * ratio(above, above + wrong)).sum()

    return _of_histograms("average_precision", compute)


def exact_auc(scores: ArrayLike, targets: ArrayLike) -> float:
    """The area under the ROC curve of all scores at once, without rounding scores.

    Args:
      scores: [N].
      targets: [N], 0 or 1.

    Returns:
      A number in [0, 1]. Computed in NumPy: not for use under jit.

    Raises:
      ValueError: scores or targets are not [N], a score is NaN or not a number, a target is not 0
        or 1, or all targets are equal.

    Example:
      >>> exact_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      0.75

    Source: Mann and Whitney 1947, "On a Test of Whether one of Two Random Variables is
    Stochastically Larger than the Other".
    """
    scores, targets = _checked("exact_auc", scores, targets)
    _, place = np.unique(scores, return_inverse=True)
    true, false = (np.bincount(place, targets == kind) for kind in (1, 0))
    lower = np.cumsum(false) - false / 2
    return float((true * lower).sum() / true.sum() / false.sum())


def exact_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """The area under the precision-recall curve of all scores at once, without rounding scores.

    Args:
      scores: [N].
      targets: [N], 0 or 1.

    Returns:
      A number in (0, 1]; see `average_precision`. Computed in NumPy: not for use under jit.

    Raises:
      ValueError: scores or targets are not [N], a score is NaN or not a number, a target is not 0
        or 1, or all targets are equal.

    Example:
      >>> round(exact_average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
      0.8333

    Source: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", section
    8.4.
    """
    scores, targets = _checked("exact_average_precision", scores, targets)
    curve = precision_recall_curve(scores, targets)
    return float(-(np.diff(curve.recall) * curve.precision[:-1]).sum())


class RocCurve(NamedTuple):
    """Points of a ROC curve. At the first point, no example is predicted positive.

    At the last point, all examples are predicted positive. T is the number of different scores.

    Args:
      false_positive_rate: [T + 1], float64, rising from 0 to 1: the share of the negative examples
        that are predicted positive.
      true_positive_rate: [T + 1], float64, rising from 0 to 1: the share of the positive examples
        that are predicted positive.
      thresholds: [T + 1], falling; the first is infinity. A score >= the threshold predicts
        positive.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


class PrecisionRecallCurve(NamedTuple):
    """Points of a precision-recall curve. At the first point, all examples are predicted positive.

    At the last point, no example is predicted positive. T is the number of different scores.

    Args:
      precision: [T + 1], float64. The last one is set to 1, because there are no predicted
        positives.
      recall: [T + 1], float64, falling from 1 to 0.
      thresholds: [T], rising. A score >= the threshold predicts positive.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def roc_curve(scores: ArrayLike, targets: ArrayLike) -> RocCurve:
    """The rates of true and false positives at every threshold; `fdl.look.roc_curves` draws them.

    Args:
      scores: [N]; T is the number of different scores.
      targets: [N], 0 or 1.

    Returns:
      RocCurve, with the same points as scikit-learn's `roc_curve(drop_intermediate=False)`.
      Computed in NumPy: not for use under jit.

    Raises:
      ValueError: scores or targets are not [N], a score is NaN or not a number, a target is not 0
        or 1, or all targets are equal.

    Example:
      >>> curve = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()
      ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])

    Source: Fawcett 2006, "An introduction to ROC analysis", algorithm 1.
    """
    true, false, thresholds = _at_thresholds("roc_curve", scores, targets)
    rates = [np.concatenate([[0.0], count / count[-1]]) for count in (false, true)]
    return RocCurve(rates[0], rates[1], np.concatenate([[np.inf], thresholds]))


def precision_recall_curve(scores: ArrayLike, targets: ArrayLike) -> PrecisionRecallCurve:
    """Precision and recall at every threshold; `fdl.look.precision_recall_curves` draws them.

    Args:
      scores: [N]; T is the number of different scores.
      targets: [N], 0 or 1.

    Returns:
      PrecisionRecallCurve, with the same points as scikit-learn's `precision_recall_curve`.
      Computed in NumPy: not for use under jit.

    Raises:
      ValueError: scores or targets are not [N], a score is NaN or not a number, a target is not 0
        or 1, or all targets are equal.

    Example:
      >>> curve = precision_recall_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      >>> curve.recall.tolist(), curve.thresholds.tolist()
      ([1.0, 1.0, 0.5, 0.5, 0.0], [0.1, 0.35, 0.4, 0.8])

    Source: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", section
    8.4.
    """
    true, false, thresholds = _at_thresholds("precision_recall_curve", scores, targets)
    precision = np.concatenate([(true / (true + false))[::-1], [1.0]])
    recall = np.concatenate([(true / true[-1])[::-1], [0.0]])
    return PrecisionRecallCurve(precision, recall, thresholds[::-1])


def _at_thresholds(name: str, scores: Any, targets: Any) -> tuple[Any, Any, np.ndarray]:
    """(positives, negatives, thresholds): counts of scores >= each threshold; thresholds fall."""
    scores, targets = _checked(name, scores, targets)
    values, place = np.unique(scores, return_inverse=True)
    true, false = (np.cumsum(np.bincount(place, targets == kind)[::-1]) for kind in (1, 0))
    return true, false, values[::-1]


def _checked(name: str, scores: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ValueError(
            f"{name}: expected scores [N] and targets [N], got {list(scores.shape)} and "
            f"{list(targets.shape)}; pass the scores of one class"
        )
    if scores.dtype.kind not in "biu" and not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected scores that are numbers, got {scores.dtype!s:.60}; pass the outputs "
            "of the model"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{name}: expected scores that are numbers, got NaN; check whether training diverged"
        )
    values = np.unique(targets).tolist()
    if set(values) != {0, 1}:
        raise ValueError(
            f"{name}: expected the targets 0 and 1, got "
            f"{shortened(str(values[:5]), 200)}; pass examples of both classes, with target 1 for "
            "the class that should have larger scores"
        )
    return scores, targets


def _of_histograms(name: str, value: Callable[[jax.Array, jax.Array], jax.Array]) -> Metric:
    """A metric of two histograms [BINS]: the scores of positives and the scores of negatives."""

    def count(scores: jax.Array, targets: jax.Array, weight: Any) -> dict[str, jax.Array]:
        scores, targets = same_shape(name, scores, targets)
        weight = weights_of(name, scores.shape, weight)
        valid = ((targets == 0) | (targets == 1)) & ~jnp.isnan(scores)
        place, nothing = _bin(scores), jnp.zeros(BINS, weight.dtype)
        sums = {
            kind: nothing.at[place].add(jnp.where(targets == target, weight, nothing[0]))
            for kind, target in (("true", 1), ("false", 0))
        }
        return {**sums, "invalid": (~valid & (weight != 0)).sum()}

    def compute(sums: dict[str, jax.Array]) -> jax.Array:
        return jnp.where(sums["invalid"] > 0, jnp.nan, value(sums["true"], sums["false"]))

    return summed({"true": (BINS,), "false": (BINS,), "invalid": ()}, count, compute)


def _bin(scores: jax.Array) -> jax.Array:
    """The bin of a score: an integer in [0, BINS) that rises with the score."""
    scores = jnp.where(scores == 0, 0, scores).astype(jnp.float32)  # -0.0 gets the bin of 0.0
    place = _rank(scores)
    more = NEAR_ONE - (ONE - HALF)
    near = HALF + (HALF - _rank(1 - scores))
    return jnp.where(place < HALF, place, jnp.where(place < ONE, near, place + more))


def _rank(scores: jax.Array) -> jax.Array:
    """Rounds a score towards 0 to bfloat16; returns its rank among all bfloat16 numbers."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    return (ordered >> jnp.uint32(16)).astype(jnp.int32)
