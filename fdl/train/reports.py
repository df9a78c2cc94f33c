"""What is reported of a batch: means and tallies, which can be added up over batches."""

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
    """A mean that can still be added to: the sum of weighted values, and of the weights.

    Args:
      total: scalar.
      count: scalar.
      lost: what rounding has cut off total and count, so that millions of small values still count.

    Example:
      >>> float(Mean(6.0, 4.0).value())
      1.5

    Source: the sums are those of Knuth 1997, see `fdl.metrics.metric.Sum`.
    """

    total: Any
    count: Any
    lost: tuple[Any, Any] = (0.0, 0.0)

    def value(self) -> Any:
        """total / count, and 0 where nothing was counted."""
        total, count = self.total + self.lost[0], self.count + self.lost[1]
        return total / jnp.where(count == 0, jnp.ones_like(count), count)

    def plus(self, other: "Mean") -> "Mean":
        """The mean of both."""
        total = Sum(self.total, self.lost[0]).plus(Sum(other.total, other.lost[0]))
        count = Sum(self.count, self.lost[1]).plus(Sum(other.count, other.lost[1]))
        return Mean(total.high, count.high, (total.low, count.low))

    def nothing(self) -> "Mean":
        """The mean of nothing, in the same dtypes."""
        total, count = self.total.dtype, self.count.dtype
        lost = jnp.zeros((), total), jnp.zeros((), count)
        return Mean(jnp.zeros((), total), jnp.zeros((), count), lost)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=["metric"])
@dataclasses.dataclass(frozen=True)
class Tally:
    """What a `Metric` has seen so far; to be added to, as a Mean.

    Args:
      metric: a `fdl.metrics.Metric`.
      state: its state.
    """

    metric: Metric
    state: Any

    def value(self) -> Any:
        """What the metric computes of it."""
        return self.metric.compute(self.state)

    def plus(self, other: "Tally") -> "Tally":
        """The tally of both."""
        return Tally(self.metric, self.metric.merge(self.state, other.state))

    def nothing(self) -> "Tally":
        """The tally of nothing."""
        return Tally(self.metric, self.metric.init())


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["predictions", "targets", "weight"],
    meta_fields=["metric"],
)
@dataclasses.dataclass(frozen=True)
class Seen:
    """A batch that a `Metric` is yet to count.

    An objective reports this and not a Tally, because `evaluate` runs it on one example at a time:
    the state of a metric is made once for a batch of them, and not for each.

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
        """The batch, counted."""
        batch = (self.predictions, self.targets, self.weight)
        return Tally(self.metric, self.metric.update(self.metric.init(), *batch))

    def value(self) -> Any:
        """What the metric computes of this batch alone."""
        return self.tally().value()


def weighted_mean(values: jax.Array, weight: jax.Array | None = None) -> Mean:
    """The one place where a mean over examples is taken.

    Args:
      values: [B, ...], a loss or metric for each example.
      weight: [B], or any leading part of the shape of values, >= 0; by default 1 for each. What has
        weight 0 counts as nothing, even a NaN.

    Returns:
      Mean, in float32 or better.

    Raises:
      PathError: a weight that is not shaped like the first axes of the values.

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])).value())
      1.5
    """
    values = precise(values)
    if weight is None:
        return Mean(values.sum(), jnp.asarray(values.size, values.dtype))
    weight = weights_of("weighted_mean", values.shape, weight).astype(values.dtype)
    return Mean(weighted_sum(values, weight), weight.sum())


def as_means(loss: Any, metrics: Mapping[str, Any], count: float = 1.0) -> dict[str, Any]:
    """What an objective reports, as means that can be added up.

    Args:
      loss: scalar.
      metrics: name -> scalar, Mean, Tally or Seen.
      count: how much a plain scalar counts.

    Returns:
      name -> Mean, Tally or Seen; the loss among them.
    """

    def mean(value: Any) -> Any:
        if isinstance(value, Mean | Tally | Seen):
            return value
        value = precise(value)
        return Mean(value * count, jnp.full_like(value, count))

    return {name: mean(value) for name, value in {"loss": loss, **metrics}.items()}


def tallied(means: Mapping[str, Any]) -> dict[str, Any]:
    """The same with every batch counted."""
    return {n: mean.tally() if isinstance(mean, Seen) else mean for n, mean in means.items()}


def added(means: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The means and tallies of both.

    Args:
      means: name -> Mean or Tally.
      more: the same names.
    """
    return {name: mean.plus(more[name]) for name, mean in means.items()}
