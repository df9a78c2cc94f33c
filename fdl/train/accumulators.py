"""The loss and metrics that an objective reports for a batch, as values that can be added.

A `Mean` is the mean of a loss or metric. A `Tally` is the state of a `Metric`. The `Mean`s or
`Tally`s of several batches can be added, which gives the mean or metric over all their examples.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.losses.shapes import precise
from fdl.metrics import Metric
from fdl.metrics.metric import Sum, weighted_sum, weights_of


class Mean(NamedTuple):
    """A weighted mean, stored as two sums, so that the means of several batches can be added.

    Args:
      total: scalar, the sum of weight * value.
      count: scalar, the sum of the weights.
      lost: the rounding errors of total and of count. They are added at the end, so that a sum of
        millions of small values stays accurate.

    Example:
      >>> float(Mean(total=6.0, count=4.0).value())
      1.5

    Source: the compensated sums of Knuth 1997; see `fdl.metrics.metric.Sum`.
    """

    total: Any
    count: Any
    lost: tuple[Any, Any] = (0.0, 0.0)

    def value(self) -> Any:
        """total / count, or 0 if count is 0."""
        total, count = self.total + self.lost[0], self.count + self.lost[1]
        return total / jnp.where(count == 0, jnp.ones_like(count), count)

    def plus(self, other: "Mean") -> "Mean":
        """The mean over the examples of both means."""
        total = Sum(self.total, self.lost[0]).plus(Sum(other.total, other.lost[0]))
        count = Sum(self.count, self.lost[1]).plus(Sum(other.count, other.lost[1]))
        return Mean(total.high, count.high, (total.low, count.low))

    def nothing(self) -> "Mean":
        """An empty mean, with total 0 and count 0, in the dtypes of this mean."""
        total, count = self.total.dtype, self.count.dtype
        lost = jnp.zeros((), total), jnp.zeros((), count)
        return Mean(jnp.zeros((), total), jnp.zeros((), count), lost)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=["metric"])
@dataclasses.dataclass(frozen=True)
class Tally:
    """The state of a `Metric` after some batches; the tallies of several batches can be added.

    Args:
      metric: a `fdl.metrics.Metric`.
      state: the state of the metric.

    Example:
      >>> from fdl.metrics import auc
      >>> y, score = jnp.array([0, 1]), jnp.array([[0.2, 0.9], [0.8, 0.6]])
      >>> metric = auc()
      >>> one, other = (Tally(metric, metric.update(metric.init(), s, y)) for s in score)
      >>> float(one.value()), float(one.plus(other).value())
      (1.0, 0.75)
    """

    metric: Metric
    state: Any

    def value(self) -> Any:
        """The value of the metric."""
        return self.metric.compute(self.state)

    def plus(self, other: "Tally") -> "Tally":
        """The tally over the examples of both tallies."""
        return Tally(self.metric, self.metric.merge(self.state, other.state))

    def nothing(self) -> "Tally":
        """The tally over zero examples."""
        return Tally(self.metric, self.metric.init())


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["predictions", "targets", "weight"],
    meta_fields=["metric"],
)
@dataclasses.dataclass(frozen=True)
class Seen:
    """A batch that is not yet in the state of a `Metric`; `tally` converts it to a Tally.

    `evaluate` calls the objective with one example at a time. So the objective reports a Seen, and
    `evaluate` makes one Tally from the Seens of a whole batch. This is faster than one Tally for
    each example.

    Args:
      metric: a `fdl.metrics.Metric`.
      predictions: [B, ...].
      targets: [B, ...].
      weight: [B, ...], or None if all examples have the same weight.

    Example:
      >>> from fdl.metrics import auc
      >>> float(Seen(auc(), jnp.array([0.2, 0.9, 0.3]), jnp.array([0, 1, 1])).value())
      1.0
    """

    metric: Metric
    predictions: Any
    targets: Any
    weight: Any = None

    def tally(self) -> Tally:
        """The tally of this batch."""
        batch = (self.predictions, self.targets, self.weight)
        return Tally(self.metric, self.metric.update(self.metric.init(), *batch))

    def value(self) -> Any:
        """The value of the metric for this batch alone."""
        return self.tally().value()


def weighted_mean(values: jax.Array, weight: jax.Array | None = None) -> Mean:
    """The mean over examples: sum weight * value / sum weight.

    Args:
      values: [B, ...], a loss or metric for each example.
      weight: numbers >= 0. Its shape is [B] or more generally `values.shape[:k]` for some k. None
        means that all values have the same weight. Values of weight 0 are ignored, even if they are
        NaN.

    Returns:
      A `Mean` in float32 or float64.

    Raises:
      PathError: the shape of weight is not `values.shape[:k]` for any k.

    Example:
      >>> mean = weighted_mean(jnp.array([1.0, 3.0]), weight=jnp.array([3.0, 1.0]))
      >>> float(mean.value())
      1.5
    """
    values = precise(values)
    if weight is None:
        return Mean(values.sum(), jnp.asarray(values.size, values.dtype))
    weight = weights_of("weighted_mean", values.shape, weight).astype(values.dtype)
    return Mean(weighted_sum(values, weight), weight.sum())


def as_means(loss: Any, metrics: Mapping[str, Any], count: float = 1.0) -> dict[str, Any]:
    """Makes a `Mean` of each scalar among the loss and metrics that an objective reports.

    Args:
      loss: scalar.
      metrics: name -> scalar, Mean, Tally or Seen.
      count: the number of examples over which each scalar is a mean.

    Returns:
      name -> Mean, Tally or Seen. The loss has the name "loss".
    """

    def mean(value: Any) -> Any:
        if isinstance(value, Mean | Tally | Seen):
            return value
        value = precise(value)
        return Mean(value * count, jnp.full_like(value, count))

    return {name: mean(value) for name, value in {"loss": loss, **metrics}.items()}


def tallied(means: Mapping[str, Any]) -> dict[str, Any]:
    """Converts each Seen to a Tally; returns Means and Tallies unchanged."""
    return {name: mean.tally() if isinstance(mean, Seen) else mean for name, mean in means.items()}


def added(means: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Adds each Mean or Tally of `more` to the one of the same name in `means`."""
    return {name: mean.plus(more[name]) for name, mean in means.items()}


def joined(means: Mapping[str, Any]) -> dict[str, Any]:
    """Joins all Means of the same dtypes into one Mean of vectors.

    This saves time, because a compiled program adds a vector as fast as a scalar. Adding two means
    one after the other took a tenth of the time of a small network's step.

    Args:
      means: a dict, name -> Mean or Tally.

    Returns:
      A dict with a Mean of vectors [K] for each group of K Means of the same dtypes, and with the
      Tallies, unchanged.
    """
    groups: dict[str, list[Mean]] = {}
    for mean in means.values():
        if isinstance(mean, Mean):
            groups.setdefault(_kind(mean), []).append(_as_arrays(mean))
    vectors = {
        kind: jax.tree.map(lambda *parts: jnp.stack(parts), *group)
        for kind, group in groups.items()
    }
    return vectors | {name: x for name, x in means.items() if not isinstance(x, Mean)}


def split(vectors: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `joined`, for means with the names and dtypes of `like`."""
    seen: dict[str, int] = {}
    means = {}
    for name, mean in like.items():
        if not isinstance(mean, Mean):
            means[name] = vectors[name]
            continue
        kind = _kind(mean)
        place = seen[kind] = seen.get(kind, -1) + 1
        means[name] = jax.tree.map(lambda x, at=place: x[at], vectors[kind])
    return means


def _kind(mean: Mean) -> str:
    return f"{jnp.result_type(mean.total)} {jnp.result_type(mean.count)}"


def _as_arrays(mean: Mean) -> Mean:
    """The mean with `lost` in the dtypes of the sums."""
    total, count = jnp.asarray(mean.total), jnp.asarray(mean.count)
    lost = jnp.asarray(mean.lost[0], total.dtype), jnp.asarray(mean.lost[1], count.dtype)
    return Mean(total, count, lost)
