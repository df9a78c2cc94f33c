"""Evaluation and prediction: exact for any number of examples and any batch size."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.data import check_data, length
from fdl.layer import Layer
from fdl.train.means import Mean, Seen, Tally, added, as_means, tallied
from fdl.train.objective import Objective
from fdl.weak_jit import weak_jit

BATCH_SIZE = 256


def evaluate(
    objective: Objective, params: Any, data: Any, *, state: Any = None, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """The loss and the metrics over data, every example counted once.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`; called with key None. It
        sees each example as a batch of one, so the result does not depend on batch_size.
      params: a pytree.
      data: a pytree of arrays [N, ...].
      state: of a network that has any.
      batch_size: how many examples at once, >= 1; a matter of memory and speed alone.

    Returns:
      name -> mean; the loss under `loss`.

    Raises:
      ValueError: data that are empty, of different lengths, not finite, or out of the loss's range.
      PathError: data that the model cannot take.

    Example:
      >>> from fdl.train.objective import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(objective, 1.0, jnp.array([0.0, 2.0, 4.0]))["loss"].__round__(3)
      3.667
    """
    own_state = {} if state is None else state
    check_objective(objective, params, own_state, data)
    means = totals(params, own_state, data, objective=objective, batch_size=batch_size)
    return values(means)


def predict(
    model: Layer | Any, params: Any, x: Any, *, state: Any = None, batch_size: int = BATCH_SIZE
) -> Any:
    """The outputs of a network for any number of inputs.

    Args:
      model: a Layer, or a plain function `(params, x) -> y`.
      params: its parameters.
      x: a pytree of arrays [N, ...].
      state: of a network that has any.
      batch_size: how many at once, >= 1.

    Returns:
      y, a pytree of arrays [N, ...].

    Raises:
      ValueError: no input, or arrays of different lengths.
      PathError: an input that the model cannot take.

    Example:
      >>> predict(lambda w, x: w * x, 2.0, jnp.array([[1.0], [2.0], [3.0]]), batch_size=2)
      Array([[2.],
             [4.],
             [6.]], dtype=float32)
    """
    length(x)
    _positive("predict", batch_size)
    return _outputs(params, {} if state is None else state, x, model=model, batch_size=batch_size)


def check_objective(objective: Objective, params: Any, state: Any, data: Any) -> int:
    """Refuses data that an objective cannot take; gives N. See `evaluate` for what is raised.

    Example:
      >>> check_objective(lambda *given: None, {}, {}, jnp.ones((3, 2)))
      3
    """
    examples = check_data(data)
    if hasattr(objective, "check"):
        objective.check(params, state, data)
    return examples


@weak_jit(static=["objective", "batch_size"])
def totals(
    params: Any, state: Any, data: Any, *, objective: Objective, batch_size: int
) -> dict[str, Any]:
    """The program behind `evaluate`: name -> Mean or Tally over all of data.

    Example:
      >>> from fdl.train.objective import plain
      >>> objective = plain(lambda w, batch: jnp.mean(w * batch))
      >>> means = totals(2.0, {}, jnp.arange(5.0), objective=objective, batch_size=2)
      >>> float(means["loss"].total), float(means["loss"].count)
      (20.0, 5.0)
    """
    _positive("evaluate", batch_size)

    def one(example: Any) -> dict[str, Any]:
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        loss, (_, metrics) = objective(params, state, batch, None)
        return as_means(loss, metrics)

    def add(tallies: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, Mean]]:
        """A batch counted by the metrics, and the means of each of its examples."""
        each = jax.vmap(one)(batch)
        new = tallied({name: _joined(each.pop(name)) for name in tallies})
        return added(tallies, new), each

    examples = length(data)
    size = min(batch_size, examples)
    whole = examples // size * size
    tallies = _no_tallies(one, data)
    batches = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), data)
    tallies, each = jax.lax.scan(add, tallies, batches)
    each = jax.tree.map(jnp.ravel, each)
    if whole < examples:
        tallies, last = add(tallies, jax.tree.map(lambda x: x[whole:], data))
        each = jax.tree.map(lambda *parts: jnp.concatenate(parts), each, last)
    # The means are added at the end, in an order that does not depend on the batches.
    return {**jax.tree.map(jnp.sum, each), **tallies}


def _no_tallies(one: Any, data: Any) -> dict[str, Any]:
    """The tallies of nothing, for the metrics among what an example reports."""
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    means = jax.eval_shape(lambda row: tallied(one(row)), row)
    return {name: mean.nothing() for name, mean in means.items() if isinstance(mean, Tally)}


def _joined(each: Seen) -> Seen:
    """Many batches of one as one batch of many."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), each)


def values(means: dict[str, Any]) -> dict[str, float]:
    """The means as Python numbers.

    Example:
      >>> values({"loss": Mean(jnp.float32(3), jnp.float32(2))})
      {'loss': 1.5}
    """

    def number(mean: Any) -> float:
        if not isinstance(mean, Mean):
            return float(mean.value())
        total, count = float(mean.total), float(mean.count)
        return total / count if count else 0.0

    return {name: number(mean) for name, mean in means.items()}


@weak_jit(static=["model", "batch_size"])
def _outputs(params: Any, state: Any, x: Any, *, model: Any, batch_size: int) -> Any:
    def one(example: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], example)
        if isinstance(model, Layer):
            y, _ = model.apply(params, state, batch)
        else:
            y = model(params, batch)
        return jax.tree.map(lambda leaf: leaf[0], y)

    return jax.lax.map(one, x, batch_size=min(batch_size, length(x)))


def _positive(who: str, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(
            f"{who}: expected batch_size >= 1, got {batch_size}; say how many examples go at once"
        )
