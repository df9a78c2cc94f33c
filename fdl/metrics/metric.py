"""Metrics that accumulate over batches.

Counts of examples are exact for any split into batches. Other sums are computed in float32 or wider
within a batch. Adding the sums of several batches causes almost no further rounding. The value of
a metric is float32, also for float64 data.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.checks import check_array, fitting
from fdl.losses.per_example import counting
from fdl.losses.shapes import precise
from fdl.ops.rank_promotion import with_free_ranks
from fdl.paths import PathError
from fdl.typing import Loss


class Metric(NamedTuple):
    """A metric over any number of batches: four pure functions, which work in `scan` and `vmap`.

    `metric(predictions, targets, weight=None)` is the value of the metric for a single batch.

    Args:
      init: `() -> state`. Returns the state before the first batch, a pytree of arrays.
      update: `(state, predictions, targets, weight=None) -> state`. Adds a batch. The
        weights have the first axes of the per-example values, such as [B]; by default all are 1.
        Elements of weight 0 are ignored, even if they are NaN.
      merge: `(state, state) -> state`. Returns the state for the batches of both states together.
        Use it for states from several devices.
      compute: `state -> value`.

    Example:
      >>> from fdl.metrics.classification import accuracy
      >>> metric = mean_of(accuracy)
      >>> state = metric.init()
      >>> for labels in ([0, 1], [1, 1]):
      ...     state = metric.update(state, jnp.eye(2), jnp.array(labels))
      >>> float(metric.compute(state)), float(metric(jnp.eye(2), jnp.array([0, 1])))
      (0.75, 1.0)
    """

    init: Callable[[], Any]
    update: Callable[..., Any]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], Any]

    def __call__(self, predictions: Any, targets: Any, weight: Any = None) -> Any:
        """The value for one batch."""
        return self.compute(self.update(self.init(), predictions, targets, weight))

    def __repr__(self) -> str:
        return "<Metric>"


class Sum(NamedTuple):
    """A sum stored as two float32 numbers, `high` and its rounding error `low`.

    Sums of integers are exact below 2^48. A count in a single float32 number would stop growing at
    2^24.

    Args:
      high: [...], the sum rounded to float32.
      low: [...], the rounding error of high, at most half a unit in the last place of high.

    Example:
      >>> total = Sum(jnp.float32(2**24), jnp.float32(0)).plus(Sum(jnp.float32(1), jnp.float32(0)))
      >>> float(total.high), float(total.low)
      (16777216.0, 1.0)

    Source: Knuth 1997, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """

    high: Any
    low: Any

    def plus(self, other: "Sum") -> "Sum":
        """The sum of the two sums."""
        high = self.high + other.high
        part = high - self.high
        error = (self.high - (high - part)) + (other.high - part)
        low = _finite(self.low + other.low + error)
        rounded = high + low
        return Sum(rounded, _finite(low - (rounded - high)))

    def value(self) -> Any:
        """The sum as one number."""
        return self.high + self.low


def mean_of(f: Loss) -> Metric:
    """The weighted mean of a per-example loss or metric.

    Args:
      f: `(predictions, targets) -> [B, ...]`. Elements that f leaves out by its `ignore_index` or
        `where` do not enter the mean; see `softmax_cross_entropy`.

    Returns:
      Metric. Its value is 0 if the weights sum to 0.

    Raises:
      TypeError: f is already a Metric, or it is not a function.

    Example: see `Metric`.
    """
    check_per_example("mean_of", f)

    def count(predictions: Any, targets: Any, weight: Any) -> dict[str, jax.Array]:
        values = precise(f(predictions, targets))
        weight = weight_of_counted(weight, counting(f, targets), values.shape)
        weight = weights_of("mean_of", values.shape, weight)
        return {"total": weighted_sum(values, weight), "count": weight.sum()}

    return summed(
        {"total": (), "count": ()}, count, lambda sums: ratio(sums["total"], sums["count"])
    )


def summed(
    shapes: Mapping[str, tuple[int, ...]],
    count: Callable[..., dict[str, jax.Array]],
    compute: Callable[[dict[str, jax.Array]], Any],
) -> Metric:
    """A metric whose state is a dict of `Sum`s over examples.

    Args:
      shapes: dict from the name of each sum to its shape.
      count: `(predictions, targets, weight) -> {name: sum over a batch}`; weight may be None.
      compute: `{name: sum over all batches} -> value`.
    """

    def init() -> dict[str, Sum]:
        return {name: as_sum(jnp.zeros(shape)) for name, shape in shapes.items()}

    def merge(a: dict[str, Sum], b: dict[str, Sum]) -> dict[str, Sum]:
        return {name: a[name].plus(b[name]) for name in a}

    def update(state: Any, predictions: Any, targets: Any, weight: Any = None) -> Any:
        counted = count(predictions, targets, weight)
        return merge(state, {name: as_sum(value) for name, value in counted.items()})

    def computed(state: dict[str, Sum]) -> Any:
        return compute({name: total.value() for name, total in state.items()})

    return with_ranks(init, update, merge, computed)


def with_ranks(
    init: Callable[..., Any],
    update: Callable[..., Any],
    merge: Callable[..., Any],
    compute: Callable[..., Any],
) -> Metric:
    """Makes a Metric from functions that may combine arrays of different ranks."""

    def checked(state: Any, predictions: Any, targets: Any, weight: Any = None) -> Any:
        given = {"predictions": predictions, "targets": targets, "weight": weight}
        return update(state, *(fitting("update", what, x) for what, x in given.items()))

    return Metric(init, with_free_ranks(checked), with_free_ranks(merge), with_free_ranks(compute))


def check_per_example(who: str, f: Any) -> None:
    """Raises unless f is a function. A Metric, or a function that returns a Metric, is refused."""
    makes = getattr(f, "__annotations__", {}).get("return") is Metric
    if isinstance(f, Metric) or makes or not callable(f):
        got = "a Metric" if isinstance(f, Metric) or makes else type(f).__name__
        raise TypeError(
            f"{who}: expected a function (predictions, targets) -> [B, ...], got {got}; pass a "
            "function such as fdl.accuracy, or use the Metric directly"
        )


def as_sum(x: jax.Array) -> Sum:
    """An array as a `Sum`."""
    high = x.astype(jnp.float32)
    return Sum(high, _finite((x - high.astype(x.dtype)).astype(jnp.float32)))


def _finite(low: jax.Array) -> jax.Array:
    """`low`, or 0 where it is not finite. (The rounding error of an infinite sum is inf - inf.)"""
    return jnp.where(jnp.isfinite(low), low, jnp.zeros_like(low))


def weights_of(name: str, shape: tuple[int, ...], weight: jax.Array | None) -> jax.Array:
    """The weight of each value: int32 if weight is None or bool, otherwise float32.

    Counts use int32, because a count in float32 would stop growing at 2^24 within a batch.

    Args:
      name: the name of the metric, for error messages.
      shape: the shape of the array of values.
      weight: an array whose shape is the first axes of `shape`. None means weight 1.

    Raises:
      PathError: the shape of weight is not the first axes of `shape`.
    """
    if weight is None:
        return jnp.ones(shape, jnp.int32)
    check_array(name, weight, "weights")
    if shape[: weight.ndim] != weight.shape:
        raise PathError(
            f"expected weights with the shape of the first axes of {list(shape)}, got "
            f"{list(weight.shape)}; pass one weight for each example",
            layer=name,
        )
    dtype = jnp.int32 if weight.dtype == jnp.bool_ else jnp.float32
    weight = weight.astype(dtype).reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    return jnp.broadcast_to(weight, shape)


def weight_of_counted(
    weight: jax.Array | None, counts: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array | None:
    """The weights, replaced by 0 for elements that are left out.

    Args:
      weight: [B, ...] or None.
      counts: bool [B, ...], False for elements that are left out. None means that no element is
        left out. See `fdl.losses.per_example.counting`. This argument is ignored if its shape is
        not the first axes of `shape`.
      shape: the shape of the array of values.
    """
    if counts is None or shape[: counts.ndim] != counts.shape:
        return weight
    if weight is None:
        return counts
    if not hasattr(weight, "shape") or shape[: weight.ndim] != weight.shape:
        return weight  # `weights_of` will raise an error for this weight
    axes = max(weight.ndim, counts.ndim)
    weight, counts = (x.reshape(x.shape + (1,) * (axes - x.ndim)) for x in (weight, counts))
    return jnp.where(counts, weight, jnp.zeros_like(weight))


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum of weight * value. Elements of weight 0 are ignored, even if they are NaN."""
    weight = weight.astype(values.dtype)
    return jnp.where(weight == 0, 0, values * weight).sum()


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, or 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
