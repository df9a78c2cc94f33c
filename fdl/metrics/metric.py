"""Metrics that accumulate: whole numbers of examples stay exact, whatever the batches.

Sums of other numbers are those of the batches, in float32, added up without further loss; values
are float32, of float64 data too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.checks import check_array
from fdl.losses.per_example import counting
from fdl.losses.shapes import precise
from fdl.ops.rank_promotion import with_free_ranks
from fdl.paths import PathError


class Metric(NamedTuple):
    """A metric over any number of batches, as four pure functions; use them in `scan` or `vmap`.

    Called as `metric(predictions, targets, weight=None)`, it gives its value of this batch alone.

    Args:
      init: `() -> state`, of nothing seen; a pytree of arrays.
      update: `(state, predictions, targets, weight=None) -> state`, a batch more; weight [B, ...]
        shaped like the first axes of the targets, by default 1. What has weight 0 counts as
        nothing, even a NaN.
      merge: `(state, state) -> state`, of what both have seen; for states of several devices.
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
        """The value of one batch."""
        return self.compute(self.update(self.init(), predictions, targets, weight))

    def __repr__(self) -> str:
        return "<Metric>"


class Sum(NamedTuple):
    """A sum in two float32 numbers, high and what it rounds off: whole numbers exact below 2^48.

    A float32 count would stand still at 2^24.

    Args:
      high: [...].
      low: [...], below half a unit in the last place of high.

    Example:
      >>> total = Sum(jnp.float32(2**24), jnp.float32(0)).plus(Sum(jnp.float32(1), jnp.float32(0)))
      >>> float(total.high), float(total.low)
      (16777216.0, 1.0)

    Source: Knuth 1997, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """

    high: Any
    low: Any

    def plus(self, other: "Sum") -> "Sum":
        """The sum of both."""
        high = self.high + other.high
        part = high - self.high
        error = (self.high - (high - part)) + (other.high - part)
        low = _finite(self.low + other.low + error)
        rounded = high + low
        return Sum(rounded, _finite(low - (rounded - high)))

    def value(self) -> Any:
        """In one number."""
        return self.high + self.low


def mean_of(f: Callable[..., jax.Array]) -> Metric:
    """The weighted mean of a per-example loss or metric.

    Args:
      f: `(predictions, targets) -> [B, ...]`; what its `ignore_index` or `where` leaves out, see
        `softmax_cross_entropy`, is not counted.

    Returns:
      Metric; 0 where nothing was counted.

    Raises:
      TypeError: a Metric, which is one already, or what is no function.

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
    """A metric whose state is sums over examples; each of them a `Sum`.

    Args:
      shapes: name -> shape of a sum.
      count: `(predictions, targets, weight or None) -> name -> sum over a batch`.
      compute: of the sums in one number each.
    """

    def init() -> dict[str, Sum]:
        return {name: as_sum(jnp.zeros(shape)) for name, shape in shapes.items()}

    def merge(a: dict[str, Sum], b: dict[str, Sum]) -> dict[str, Sum]:
        return {name: a[name].plus(b[name]) for name in a}

    def update(state: Any, predictions: Any, targets: Any, weight: Any = None) -> Any:
        counted = count(predictions, targets, weight)
        return merge(state, {name: as_sum(value) for name, value in counted.items()})

    def computed(state: dict[str, Sum]) -> Any:
        return compute({name: each.value() for name, each in state.items()})

    return with_ranks(init, update, merge, computed)


def with_ranks(
    init: Callable[..., Any],
    update: Callable[..., Any],
    merge: Callable[..., Any],
    compute: Callable[..., Any],
) -> Metric:
    """A Metric in which ranks are free."""
    return Metric(init, with_free_ranks(update), with_free_ranks(merge), with_free_ranks(compute))


def check_per_example(who: str, f: Any) -> None:
    """Raises unless `f` is a function, and not a Metric or what makes one."""
    makes = getattr(f, "__annotations__", {}).get("return") is Metric
    if isinstance(f, Metric) or makes or not callable(f):
        got = "a Metric" if isinstance(f, Metric) or makes else type(f).__name__
        raise TypeError(
            f"{who}: expected a function (predictions, targets) -> [B, ...], got {got}; pass one "
            "such as fdl.accuracy, and use a Metric as it is"
        )


def as_sum(x: jax.Array) -> Sum:
    """A number or an array as a `Sum`."""
    high = x.astype(jnp.float32)
    return Sum(high, _finite((x - high.astype(x.dtype)).astype(jnp.float32)))


def _finite(low: jax.Array) -> jax.Array:
    """What was rounded off: nothing of infinity, whose difference to itself is no number."""
    return jnp.where(jnp.isfinite(low), low, jnp.zeros_like(low))


def weights_of(name: str, shape: tuple[int, ...], weight: jax.Array | None) -> jax.Array:
    """A weight for each element: float32, or the int32 1 where all count alike.

    A float32 count of one batch would stand still at 2^24.

    Args:
      name: of who asks.
      shape: of the elements.
      weight: shaped like the first axes of them; None for 1 each.

    Raises:
      PathError: a weight that is not shaped so.
    """
    if weight is None:
        return jnp.ones(shape, jnp.int32)
    check_array(name, weight, "weights")
    if shape[: weight.ndim] != weight.shape:
        raise PathError(
            f"expected weights shaped like the first axes of {list(shape)}, got "
            f"{list(weight.shape)}; one weight for each example",
            layer=name,
        )
    dtype = jnp.int32 if weight.dtype == jnp.bool_ else jnp.float32
    weight = weight.astype(dtype).reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    return jnp.broadcast_to(weight, shape)


def weight_of_counted(
    weight: jax.Array | None, counts: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array | None:
    """The weights, and 0 for elements that do not count.

    Args:
      weight: [B, ...] or None.
      counts: bool [B, ...] or None, see `fdl.losses.per_example.counting`.
      shape: of the elements; where its first axes are not those of `counts`, all count.
    """
    if counts is None or shape[: counts.ndim] != counts.shape:
        return weight
    if weight is None:
        return counts
    if not hasattr(weight, "shape") or shape[: weight.ndim] != weight.shape:
        return weight  # which `weights_of` refuses
    axes = max(weight.ndim, counts.ndim)
    weight, counts = (x.reshape(x.shape + (1,) * (axes - x.ndim)) for x in (weight, counts))
    return jnp.where(counts, weight, jnp.zeros_like(weight))


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """sum weight * value; what has weight 0 counts as nothing, even a NaN."""
    weight = weight.astype(values.dtype)
    return jnp.where(weight == 0, 0, values * weight).sum()


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
