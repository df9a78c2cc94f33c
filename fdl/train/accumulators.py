"""What an objective reports for a batch: means and tallies, which can be added over batches."""

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
    """A weighted mean as two sums, so that means of several batches can be added.

    Args:
      total: scalar, the sum of weight * value.
      count: scalar, the sum of the weights.
      lost: the rounding errors of total and count, so that millions of small values still count.

    Example:
      >>> float(Mean(total=6.0, count=4.0).value())
      1.5

    Source: the compensated sums of Knuth 1997, see `fdl.metrics.metric.Sum`.
    """

    total: Any
    count: Any
    lost: tuple[Any, Any] = (0.0, 0.0)

    def value(self) -> Any:
        """total / count, or 0 if count is 0."""
        total, count = self.total + self.lost[0], self.count + self.lost[1]
        return total / jnp.where(count == 0, jnp.ones_like(count), count)

    def plus(self, other: "Mean") -> "Mean":
        """The mean over both."""
        total = Sum(self.total, self.lost[0]).plus(Sum(other.total, other.lost[0]))
        count = Sum(self.count, self.lost[1]).plus(Sum(other.count, other.lost[1]))
        return Mean(total.high, count.high, (total.low, count.low))

    def nothing(self) -> "Mean":
        """The mean over no examples, in the same dtypes."""
        total, count = self.total.dtype, self.count.dtype
        lost = jnp.zeros((), total), jnp.zeros((), count)
        return Mean(jnp.zeros((), total), jnp.zeros((), count), lost)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=["metric"])
@dataclasses.dataclass(frozen=True)
class Tally:
    """What a `Metric` has counted so far; tallies of several batches can be added.

    Args:
      metric: a `fdl.metrics.Metric`.
      state: its state.
    """

    metric: Metric
    state: Any

    def value(self) -> Any:
        """The value of the metric."""
        return self.metric.compute(self.state)

    def plus(self, other: "Tally") -> "Tally":
        """The tally over both."""
        return Tally(self.metric, self.metric.merge(self.state, other.state))

    def nothing(self) -> "Tally":
        """The tally over no examples."""
        return Tally(self.metric, self.metric.init())


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["predictions", "targets", "weight"],
    meta_fields=["metric"],
)
@dataclasses.dataclass(frozen=True)
class Seen:
    """A batch that a `Metric` has still to count.

    An objective reports this and not a Tally because `evaluate` calls it with one example at a
    time: so the state of the metric is made once for a whole batch, not once for each example.

    Args:
      metric: a `fdl.metrics.Metric`.
      predictions: [B, ...].
      targets: [B, ...].
      weight: [B, ...] or None.
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
      weight: [B], or any leading part of the shape of values, >= 0; None weighs all equally. Values
        of weight 0 are ignored, even NaNs.

    Returns:
      A `Mean` in float32 or float64.

    Raises:
      PathError: a weight whose shape is not a leading part of the shape of values.

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
    """The loss and metrics that an objective reports, as means that can be added.

    Args:
      loss: scalar.
      metrics: name -> scalar, Mean, Tally or Seen.
      count: the count of the Mean that a scalar becomes.

    Returns:
      name -> Mean, Tally or Seen, the loss under "loss".
    """

    def mean(value: Any) -> Any:
        if isinstance(value, Mean | Tally | Seen):
            return value
        value = precise(value)
        return Mean(value * count, jnp.full_like(value, count))

    return {name: mean(value) for name, value in {"loss": loss, **metrics}.items()}


def tallied(means: Mapping[str, Any]) -> dict[str, Any]:
    """The means with a Tally in place of each Seen."""
    return {name: mean.tally() if isinstance(mean, Seen) else mean for name, mean in means.items()}


def added(means: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The means and tallies over both; name -> Mean or Tally, with the same names."""
    return {name: mean.plus(more[name]) for name, mean in means.items()}
