"""Regression metrics. They accumulate a count, a mean and a sum of squared deviations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.losses.per_example import counting
from fdl.losses.shapes import precise, same_shape
from fdl.metrics.metric import (
    Metric,
    Sum,
    as_sum,
    check_per_example,
    ratio,
    weight_of_counted,
    weighted_sum,
    weights_of,
    with_ranks,
)
from fdl.ops.numerics import largest, power_of_two
from fdl.typing import Loss


def statistics_of(f: Loss) -> Metric:
    """The mean and the variance of a per-example loss or metric.

    Args:
      f: `(predictions, targets) -> [B, ...]`.

    Returns:
      Metric. Its value is {"mean": scalar, "variance": scalar}. The variance is the weighted mean
      of the squared deviations from the mean.

    Raises:
      TypeError: f is already a Metric, or it is not a function.

    Example:
      >>> from fdl.losses import squared_error
      >>> metric = statistics_of(squared_error)
      >>> state = metric.update(metric.init(), jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
      >>> metric.compute(state)["variance"]
      Array(2.25, dtype=float32)

    Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", equations 2.1.
    """
    check_per_example("statistics_of", f)

    def update(state: Moments, predictions: Any, targets: Any, weight: Any = None) -> Moments:
        values = f(predictions, targets)
        weight = weight_of_counted(weight, counting(f, targets), values.shape)
        return state.plus(moments("statistics_of", values, weight))

    def compute(state: Moments) -> dict[str, jax.Array]:
        mean_square = ratio(state.squares.total.value(), state.n.value())
        variance = mean_square * state.squares.unit * state.squares.unit
        return {"mean": state.mean.value(), "variance": variance}

    return with_ranks(no_moments, update, lambda a, b: a.plus(b), compute)


def r2() -> Metric:
    """1 - sum (target - prediction)^2 / sum (target - mean target)^2.

    Returns:
      Metric whose inputs are predictions [...] and targets [...]; the sums are over all elements.
      If all targets are equal, its value is 1 for perfect predictions and 0 for all others.

    Raises:
      PathError: `update` gets predictions and targets of different shapes.

    Example:
      >>> metric = r2()
      >>> predictions, targets = jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
      >>> state = metric.update(metric.init(), predictions, targets)
      >>> float(metric.compute(state))
      0.5

    Source: Draper and Smith 1998, "Applied Regression Analysis", section 1.3.
    """

    def init() -> tuple[Moments, Squares]:
        return no_moments(), no_moments().squares

    def update(state: Any, predictions: Any, targets: Any, weight: Any = None) -> Any:
        predictions, targets = same_shape("r2", predictions, targets)
        residual = squares_of(targets - predictions, weights_of("r2", targets.shape, weight))
        return merge(state, (moments("r2", targets, weight), residual))

    def merge(a: Any, b: Any) -> Any:
        return a[0].plus(b[0]), a[1].plus(b[1])

    def compute(state: tuple[Moments, Squares]) -> jax.Array:
        (_, _, total), residual = state
        constant = jnp.where(residual.total.value() == 0, 1.0, 0.0)
        return jnp.where(total.total.value() == 0, constant, 1 - residual.over(total))

    return with_ranks(init, update, merge, compute)


class Squares(NamedTuple):
    """A sum of squares, stored as total * unit^2 so that it neither overflows nor underflows.

    Args:
      total: the sum of the squares of number / unit, as a `Sum`.
      unit: a power of two near the largest absolute value among the numbers.
    """

    total: Sum
    unit: jax.Array

    def plus(self, other: "Squares") -> "Squares":
        """The sum of the two sums."""
        unit = jnp.maximum(self.unit, other.unit)
        return Squares(self.within(unit).plus(other.within(unit)), unit)

    def within(self, unit: jax.Array) -> Sum:
        """The total in a larger unit, such that total * unit^2 stays the same."""
        factor = self.unit / unit
        return Sum(self.total.high * factor * factor, self.total.low * factor * factor)

    def over(self, other: "Squares") -> jax.Array:
        """This sum divided by the other sum, or 0 where the other sum is 0."""
        factor = self.unit / other.unit
        return ratio(self.total.value(), other.total.value()) * factor * factor

    def value(self) -> jax.Array:
        """The sum as one number."""
        return self.total.value() * self.unit * self.unit


class Moments(NamedTuple):
    """The count and the mean of some numbers, and the sum of squared deviations from the mean.

    The variance is not computed as mean(x^2) - mean(x)^2, because this difference loses digits: for
    the numbers 10,000.0 and 10,000.1 it loses all of them in float32.

    Args:
      n: the sum of the weights, as a `Sum`.
      mean: the weighted mean, as a `Sum`.
      squares: the weighted sum of squared deviations, as `Squares`.

    Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", equations 2.1. If `other` holds one number, `plus` is the formula of
    Welford 1962.
    """

    n: Sum
    mean: Sum
    squares: Squares

    def plus(self, other: "Moments") -> "Moments":
        """The moments of the numbers of both arguments together."""
        n = self.n.plus(other.n)
        minus_mean = Sum(-self.mean.high, -self.mean.low)
        delta = other.mean.plus(minus_mean)
        share = ratio(other.n.value(), n.value())
        between = squares_of(delta.value(), self.n.value() * share)
        return Moments(
            n,
            self.mean.plus(Sum(delta.high * share, delta.low * share)),
            self.squares.plus(other.squares).plus(between),
        )


def no_moments() -> Moments:
    """The moments of an empty set of numbers."""
    nothing = as_sum(jnp.zeros(()))
    return Moments(nothing, nothing, squares_of(jnp.zeros(()), jnp.zeros(())))


def squares_of(values: jax.Array, weight: jax.Array) -> Squares:
    """The sum of weight * value^2 over all elements."""
    size = largest(jnp.where(weight == 0, 0, values))
    smallest = float(jnp.finfo(jnp.float32).tiny)
    unit = jnp.where(size == 0, smallest, jnp.maximum(power_of_two(size), smallest))
    total = weighted_sum(jnp.square(values / unit), weight)
    return Squares(as_sum(total), unit.astype(jnp.float32))


def moments(name: str, values: jax.Array, weight: jax.Array | None) -> Moments:
    """The moments of one batch: first its mean, then the deviations from it."""
    values = precise(values)
    weight = weights_of(name, values.shape, weight)
    count = weight.sum()

    def mean_of(values: jax.Array) -> jax.Array:
        unit = power_of_two(largest(jnp.where(weight == 0, 0, values)))
        return ratio(weighted_sum(values / unit, weight), count.astype(values.dtype)) * unit

    mean = mean_of(values)
    # `error`, the mean of the deviations, is the rounding error of `mean`. A mean far from 0 has a
    # large rounding error, so `error` is added to the mean and subtracted from the deviations.
    deviations = values - mean
    error = mean_of(deviations)
    squares = squares_of(deviations - error, weight)
    return Moments(as_sum(count), as_sum(mean).plus(as_sum(error)), squares)
