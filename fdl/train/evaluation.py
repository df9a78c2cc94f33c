"""Evaluation and prediction: exact for any number of examples and any batch size."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import check_count
from fdl.core.compilation import weak_jit
from fdl.core.layer import Layer, key_and_train
from fdl.data import arrays, check_data, length
from fdl.data.arrays import to_jax
from fdl.ops.numerics import pairwise_sum
from fdl.optim.wrappers.evaluation import eval_params, has_eval_params
from fdl.paths import PathError, traced_in
from fdl.train.checks import (
    check_model,
    check_objective_given,
    check_params_given,
    check_params_of_layer,
)
from fdl.train.objective import report_of
from fdl.train.reports import Mean, Seen, Tally, added, as_means, tallied
from fdl.typing import Objective

BATCH_SIZE = 256
AT_ONCE = "say how many examples go at once"


def evaluate(
    objective: Objective, params: Any, data: Any, *, state: Any = None, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """The loss and the metrics over data, every example counted once; under `jax.jit` too.

    Each example is evaluated as a batch of one, so the result does not depend on batch_size. An
    objective whose examples look at each other, such as one with `info_nce`, would then see nothing
    to compare: it is evaluated by whole batches of batch_size, the last of which may be smaller,
    and its result does depend on that size. The first two examples, together and alone, tell which.

    Under `jit`, `grad` or `vmap`, where values are not known yet, both ways are compiled and the
    program takes the one that is right; what needs values is not checked.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`; called with key None.
      params: a pytree; or a run, a result of `fit` or its best, which bring their state along and
        stand for the parameters that their optimizer wants tested, see `fdl.optim.eval_params`.
      data: a pytree of arrays [N, ...].
      state: of a network that has any.
      batch_size: how many examples at once, >= 1; for most objectives a matter of memory and speed.

    Returns:
      name -> mean, a Python float, or a scalar under a transformation; the loss under `loss`.

    Raises:
      ValueError: data that are empty, of different lengths, not finite, or out of the loss's range.
      PathError: data that the model cannot take.

    Example:
      >>> from fdl.train.objective import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(objective, 1.0, jnp.array([0.0, 2.0, 4.0]))["loss"].__round__(3)
      3.667
    """
    check_objective_given("evaluate", objective)
    batch_size = check_count("evaluate", "batch_size", batch_size, AT_ONCE)
    params, state = params_and_state(params, state)
    check_params_given("evaluate", params)
    check_objective(objective, params, state, data)
    data = to_jax(data, "evaluate")
    settings = {"objective": objective, "batch_size": batch_size}
    of = functools.partial(totals, params, state, data, **settings)
    whole = looks_around(objective, params, state, data)
    if isinstance(whole, jax.core.Tracer):
        return values(jax.lax.cond(whole, lambda: of(whole=True), lambda: of(whole=False)))
    return values(of(whole=whole))


def predict(
    model: Layer | Any,
    params: Any,
    x: Any,
    *,
    state: Any = None,
    batch_size: int = BATCH_SIZE,
    **inputs: Any,
) -> Any:
    """The outputs of a network for any number of inputs.

    Args:
      model: a Layer, or a plain function `(params, x, **inputs) -> y`.
      params: its parameters; or a run, a result of `fit` or its best, as for `evaluate`.
      x: a pytree of arrays [N, ...].
      state: of a network that has any.
      batch_size: how many at once, >= 1.
      inputs: the model's extra inputs by name, pytrees of arrays [N, ...].

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
    check_model("predict", model)
    batch_size = check_count("predict", "batch_size", batch_size, AT_ONCE)
    params, state = params_and_state(params, state)
    check_params_given("predict", params)
    check_params_of_layer("predict", model, params)
    length({"x": x, **inputs} if inputs else x)
    x = to_jax(x, "predict", "x")
    inputs = {name: to_jax(value, "predict", name) for name, value in inputs.items()}
    return _outputs(params, state, (x, inputs), model=model, batch_size=batch_size)


def params_and_state(params: Any, state: Any = None) -> tuple[Any, Any]:
    """The parameters and the state to evaluate, of a run or of the two by themselves.

    Args:
      params: a pytree, or a value with `params` and `state`: a run, a result, its best.
      state: beside a pytree of params; `{}` if None.
    """
    if hasattr(params, "params") and hasattr(params, "state"):
        state = params.state if state is None else state
        opt_state = getattr(params, "opt_state", ())
        params = params.params
        if has_eval_params(opt_state, params):
            params = _eval_params(opt_state, params)
    return params, {} if state is None else state


_eval_params = jax.jit(eval_params)


def check_objective(objective: Objective, params: Any, state: Any, data: Any) -> int:
    """Refuses data that an objective cannot take; gives N. See `evaluate` for what is raised."""
    data = arrays.as_arrays(data)
    spared = getattr(objective, "spared", lambda data: data)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(data)):
        examples = length(data)
    else:
        with jax.ensure_compile_time_eval():  # known values can be looked at inside a jit, too
            examples = check_data(spared(data))
    if hasattr(objective, "check"):
        objective.check(params, state, data)
    return examples


def looks_around(objective: Objective, params: Any, state: Any, data: Any) -> Any:
    """Whether what an objective reports of two examples is more than the mean over each of them.

    A traced bool where values are not known yet; then nothing is raised.

    Args:
      objective, params, state: as for `evaluate`.
      data: a pytree of JAX's arrays [N, ...]; the first two rows are looked at.

    Raises:
      PathError: the model of a `supervised` objective gives an example another output where there
        is another one beside it.
    """
    if length(data) < 2:
        return False
    pair = jax.tree.map(lambda leaf: leaf[:2], data)
    try:
        together, alone = _together_and_alone(params, state, pair, objective=objective)
    except (ValueError, TypeError, ArithmeticError):
        # It may need two examples to say anything at all; another mistake will come up again.
        return True
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves((params, pair))} | {jnp.float32}
    rounding = max(float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating))
    (means, outputs), (alone_means, alone_outputs) = together, alone
    for path, output in paths.leaves(outputs).items():
        other = paths.leaves(alone_outputs)[path]
        if isinstance(output, jax.core.Tracer):
            continue
        if _differ(output, other, rounding):
            at = np.unravel_index(np.nanargmax(np.abs(output - other)), output.shape)
            raise PathError(
                f"expected the output for an example to depend on that example alone, got "
                f"{float(output[at]):.4g} beside another one and {float(other[at]):.4g} without "
                f"at {[int(each) for each in at]}; the model takes the axis of the batch for one "
                "of its own: give x the axis that is missing, such as x[..., None]",
                layer="supervised",
            )
    differ = [_differ(means[name], alone_means[name], rounding) for name in means]
    return functools.reduce(operator.or_, differ, False)


def _differ(a: Any, b: Any, rounding: float) -> Any:
    """Whether two arrays differ by more than rounding, in the units of their largest number."""
    if isinstance(a, jax.core.Tracer):
        size = jnp.maximum(jnp.abs(a).max(), jnp.abs(b).max())
        return jnp.abs(a - b).max() > rounding**0.5 * size
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    return bool(np.abs(a - b).max(initial=0) > rounding**0.5 * size)


@weak_jit(static=["objective"])
def _together_and_alone(params: Any, state: Any, pair: Any, *, objective: Objective) -> Any:
    """(means by name, outputs [2, ...]) of two examples in one batch; and of each in its own."""
    look = functools.partial(_look, objective, params, state)
    together = look(pair)
    alone = jax.lax.map(look, jax.tree.map(lambda leaf: leaf[:, None], pair))
    sums = {name: jax.tree.map(jnp.sum, mean) for name, mean in alone[0].items()}
    outputs = jax.tree.map(lambda leaf: leaf[:, 0], alone[1])
    return (_values(together[0]), together[1]), (_values(sums), outputs)


def _values(means: dict[str, Mean]) -> dict[str, Any]:
    return {name: mean.value() for name, mean in means.items()}


def _look(
    objective: Objective, params: Any, state: Any, batch: Any
) -> tuple[dict[str, Mean], list[Any]]:
    """The means that are reported of a batch, and the outputs of the model, if it is known.

    Metrics that count examples one by one say nothing of how they look at each other.
    """
    if hasattr(objective, "look"):
        means, outputs, _ = objective.look(params, state, batch, None)
    else:
        loss, _, metrics = report_of(objective, params, state, batch, None)
        means, outputs = as_means(loss, metrics), ()
    known = {name: mean for name, mean in means.items() if isinstance(mean, Mean)}
    floating = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)]
    return known, [y for y in floating if y.ndim and y.shape[0] == length(batch)]


@weak_jit(static=["objective", "batch_size", "whole"])
def totals(
    params: Any,
    state: Any,
    data: Any,
    *,
    objective: Objective,
    batch_size: int,
    whole: bool = False,
) -> dict[str, Any]:
    """The program behind `evaluate`: name -> Mean or Tally over all of data.

    Args:
      params, state, data, objective, batch_size: as for `evaluate`.
      whole: whether the objective sees whole batches, and not one example at a time.
    """

    def look(batch: Any) -> dict[str, Any]:
        loss, _, metrics = report_of(objective, params, state, batch, None)
        return as_means(loss, metrics, float(length(batch)))

    def add(tallies: dict[str, Any], rows: Any) -> tuple[dict[str, Any], dict[str, Mean]]:
        """Rows counted by the metrics, and the means of each of the batches that they make."""
        seen = 1 if not whole else length(rows)
        batches = jax.tree.map(lambda leaf: leaf.reshape(-1, seen, *leaf.shape[1:]), rows)
        each = jax.vmap(look)(batches)
        new = tallied({name: _joined(each.pop(name)) for name in tallies})
        return added(tallies, new), each

    examples = length(data)
    size = min(batch_size, examples)
    full = examples // size * size
    tallies = _no_tallies(look, data, size if whole else 1)
    rows = jax.tree.map(lambda x: x[:full].reshape(-1, size, *x.shape[1:]), data)
    tallies, each = jax.lax.scan(add, tallies, rows)
    each = jax.tree.map(jnp.ravel, each)
    if full < examples:
        tallies, last = add(tallies, jax.tree.map(lambda x: x[full:], data))
        each = jax.tree.map(lambda *parts: jnp.concatenate(parts), each, last)
    # The means are added at the end, in an order that does not depend on the batches.
    return {**jax.tree.map(pairwise_sum, each), **tallies}


def _no_tallies(look: Any, data: Any, seen: int) -> dict[str, Any]:
    """The tallies of nothing, for the metrics among what is reported of a batch."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seen, *x.shape[1:]), x.dtype), data)
    means = jax.eval_shape(lambda batch: tallied(look(batch)), batch)
    return {name: mean.nothing() for name, mean in means.items() if isinstance(mean, Tally)}


def _joined(each: Seen) -> Seen:
    """Many batches as one batch of many."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), each)


def values(means: dict[str, Any]) -> dict[str, Any]:
    """The means as Python numbers, or as scalars where they are traced."""

    def number(mean: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(mean)):
            return mean.value()
        if not isinstance(mean, Mean):
            return float(mean.value())
        total, count = float(mean.total), float(mean.count)
        total, count = total + float(mean.lost[0]), count + float(mean.lost[1])
        return total / count if count else 0.0

    return {name: number(mean) for name, mean in means.items()}


@weak_jit(static=["model", "batch_size"])
def _outputs(params: Any, state: Any, given: Any, *, model: Any, batch_size: int) -> Any:
    def one(example: Any) -> Any:
        x, inputs = jax.tree.map(lambda leaf: leaf[None], example)
        if isinstance(model, Layer):
            y, _ = model.apply(params, state, x, **inputs)
        else:
            y = model(params, x, **inputs, **key_and_train(model, None, False))
        return jax.tree.map(lambda leaf: leaf[0], y)

    with traced_in("predict"):
        return jax.lax.map(one, given, batch_size=min(batch_size, length(given)))
