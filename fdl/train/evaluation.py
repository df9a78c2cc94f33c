"""Evaluation and prediction, with results that do not depend on the batch size."""

import functools
import operator
import re
from collections.abc import Callable
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
from fdl.ops.sharding import on_host, own_rows
from fdl.optim.wrappers.evaluation_params import eval_params, has_eval_params
from fdl.paths import PathError, traced_in
from fdl.train.accumulators import (
    Mean,
    Seen,
    Tally,
    added,
    as_means,
    joined,
    split,
    tallied,
)
from fdl.train.batches import batch_of
from fdl.train.checks import (
    check_model,
    check_objective_given,
    check_params_given,
    check_params_of_layer,
)
from fdl.train.objective import report_of
from fdl.typing import Objective

BATCH_SIZE = 256
COMPARED = 16  # the most examples that `mixes_examples` evaluates together and one by one
BATCH_SIZE_REMEDY = "pass the number of examples to evaluate at once"


def evaluate(
    objective: Objective, params: Any, data: Any, *, state: Any = None, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """The mean loss and metrics over a data set. Works under `jax.jit`.

    Each example is evaluated exactly once, as a batch of one, so the result does not depend on
    batch_size.

    The exception is an objective that compares the examples of a batch, such as one with
    `info_nce`. It is evaluated on batches of batch_size examples (the last batch may be smaller),
    so its result depends on batch_size. To find out whether an objective is of this kind,
    `evaluate` draws at most 16 examples at random, and evaluates them both in one batch and one by
    one.

    Under `jit`, `grad` and `vmap`, the values that this comparison needs are not yet known. Then
    both ways of evaluation are compiled, and one is chosen at run time. Checks that need values are
    skipped.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`; key is None.
      params: a pytree of arrays; or a run, a result of `fit`, or a hook from `keep_best`. The last
        three contain a state, and their parameters are those that `fdl.optim.eval_params` gives.
      data: a pytree of arrays [N, ...], N >= 1.
      state: the network's state. None means the state that `params` contains, or `{}` if it
        contains none.
      batch_size: the number of examples that are evaluated at once, an int >= 1. Larger values need
        more memory and may be faster.

    Returns:
      A dict, name -> mean, where the loss has the name "loss". The means are Python floats, or
      scalar arrays under `jit`, `grad` and `vmap`.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: data is empty, has arrays of different lengths, or has numbers that are not
        finite; or a target is out of the range that the loss allows.
      PathError: the model cannot take the data.

    Example:
      >>> from fdl.train.objective import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> evaluate(objective, 1.0, jnp.array([0.0, 2.0, 4.0]))["loss"].__round__(3)
      3.667
    """
    check_objective_given("evaluate", objective)
    batch_size = check_count("evaluate", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    layout = layout_of(params)
    params, state = params_and_state(params, state)
    check_params_given("evaluate", params)
    check_objective(objective, params, state, data)
    data = to_jax(data, "evaluate")
    data = data if layout is None else layout.put_everywhere(data)
    settings = {"objective": objective, "batch_size": batch_size, "layout": layout}
    of = functools.partial(totals, params, state, data, **settings)
    whole = mixes_examples(objective, params, state, data, batch_size)
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
    """The outputs of a network in evaluation (not training), for any number of examples.

    Each example is passed to the network as a batch of one, so the result does not depend on
    batch_size.

    Args:
      model: a Layer, or a function `(params, x, **inputs) -> y`.
      params: a pytree of arrays; or a run, a result of `fit`, or a hook from `keep_best`, as in
        `evaluate`.
      x: a pytree of arrays [N, ...], N >= 1.
      state: the network's state. None means the state that `params` contains, or `{}` if it
        contains none.
      batch_size: the number of examples that are computed at once, an int >= 1.
      inputs: the model's extra inputs by name, pytrees of arrays [N, ...].

    Returns:
      y, a pytree of arrays [N, ...].

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: x is empty, or has arrays of different lengths.
      PathError: the model cannot take x or an extra input.

    Example:
      >>> predict(lambda w, x: w * x, 2.0, jnp.array([[1.0], [2.0], [3.0]]), batch_size=2)
      Array([[2.],
             [4.],
             [6.]], dtype=float32)
    """
    check_model("predict", model)
    batch_size = check_count("predict", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    layout = layout_of(params)
    params, state = params_and_state(params, state)
    check_params_given("predict", params)
    check_params_of_layer("predict", model, params)
    length({"x": x, **inputs} if inputs else x)
    x = to_jax(x, "predict", "x")
    inputs = {name: to_jax(value, "predict", name) for name, value in inputs.items()}
    examples = (x, inputs) if layout is None else layout.put_everywhere((x, inputs))
    settings = {"model": model, "batch_size": batch_size, "layout": layout}
    return _outputs(params, state, examples, **settings)


def params_and_state(params: Any, state: Any = None) -> tuple[Any, Any]:
    """(params, state) with which a network is evaluated.

    Args:
      params: a pytree of arrays; or a run, a result of `fit`, or a hook from `keep_best`, which
        have the attributes `params` and `state`.
      state: the network's state. None means `params.state`, or `{}` if `params` is a pytree of
        arrays.
    """
    if hasattr(params, "params") and hasattr(params, "state"):
        state = params.state if state is None else state
        run, opt_state = params, getattr(params, "opt_state", ())
        params = params.params
        if has_eval_params(opt_state, params):
            of_members = np.ndim(getattr(run, "seed", 0)) > 0  # a sweep: [settings, seeds, ...]
            params = (_eval_params_of_members if of_members else _eval_params)(opt_state, params)
    return params, {} if state is None else state


def layout_of(params: Any) -> Any:
    """The layout of a run, or of a result of `fit`, over several devices; None on one device."""
    run = getattr(params, "run", params)
    # Arrays of newer versions of JAX have a `layout` too, which is another thing.
    return None if isinstance(run, jax.Array) else getattr(run, "layout", None)


_eval_params = jax.jit(eval_params)
_eval_params_of_members = jax.jit(jax.vmap(jax.vmap(eval_params)))


def check_objective(objective: Objective, params: Any, state: Any, data: Any) -> int:
    """Returns N, the number of examples; raises as `evaluate` does if the data is wrong."""
    data = arrays.as_arrays(data)
    without_ignored = getattr(objective, "without_ignored", lambda data: data)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(data)):
        examples = length(data)
    else:
        with jax.ensure_compile_time_eval():  # so that constant data is also checked inside `jit`
            examples = check_data(without_ignored(data))
    if hasattr(objective, "check"):
        objective.check(params, state, jax.tree.map(own_rows, data))
    return examples


def mixes_examples(
    objective: Objective, params: Any, state: Any, data: Any, batch_size: int = BATCH_SIZE
) -> Any:
    """Whether an objective compares the examples of a batch.

    An objective does so if its means for a few examples in one batch differ from its means for
    batches of one.
    The examples are drawn at random, because neighbours may be alike. For example, neighbours in
    sorted data have the same label, so a loss over pairs of different labels would be 0 in one
    batch and also 0 in batches of one.

    Args:
      objective, params, state: as in `evaluate`.
      data: a pytree of JAX arrays [N, ...].
      batch_size: the number of examples that fit into memory at once. At most that many are
        compared, but at least two.

    Returns:
      A bool. Under `jit`, `grad` and `vmap`, the values are not yet known. The result is then a
      traced bool, and nothing is raised.

    Raises:
      PathError: the objective is from `supervised`, and its model's output for an example depends
        on the rest of the batch, or its loss broadcasts predictions against targets.
    """
    examples = length(data)
    if examples < 2:
        return False
    count = min(COMPARED, max(batch_size, 2), examples)
    rows = np.random.default_rng(0).choice(examples, count, replace=False).astype(np.int32)
    try:
        few = _taken(data, rows)
        together, alone = _together_and_alone(params, state, few, objective=objective)
    except (ValueError, TypeError, ArithmeticError):
        # The objective may need at least two examples, so it counts as one that compares them. An
        # error with another cause is raised again when the objective is evaluated.
        return True
    rounding = functools.partial(_rounding, objective, params, state, few)
    (means, outputs), (means_alone, outputs_alone) = together, alone
    for path, output in paths.leaves(outputs).items():
        other = paths.leaves(outputs_alone)[path]
        if isinstance(output, jax.core.Tracer):
            continue
        if _differ(output, other, rounding):
            output, other = (on_host(each).astype(np.float64) for each in (output, other))
            at = np.unravel_index(np.argmax(_distance(output, other)), output.shape)
            raise PathError(
                f"expected the output for an example to depend on that example alone, got "
                f"{output[at]:.4g} in a batch and {other[at]:.4g} alone at "
                f"{[int(rows[at[0]]), *map(int, at[1:])]}; the model uses the batch axis as "
                "another axis: add the missing axis to x, for example x[..., None]",
                layer="supervised",
            )
    differ = [_differ(means[name], means_alone[name], rounding) for name in means]
    if any(each is True for each in differ) and hasattr(objective, "check_pairing"):
        objective.check_pairing(outputs, few)
    return functools.reduce(operator.or_, differ, False)


def _rounding(objective: Objective, params: Any, state: Any, few: Any, inside: bool) -> float:
    """The largest rounding error among the dtypes of the inputs.

    With `inside`, the half-precision values inside the model count too, as in `compute_in`. Finding
    them costs another trace.
    """
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves((params, few))} | {jnp.float32}
    if inside:
        computation = functools.partial(_means_and_outputs, objective)
        text = str(jax.make_jaxpr(computation)(params, state, few))
        names = {"bf16": jnp.bfloat16, "f16": jnp.float16}
        dtypes |= {names[name] for name in re.findall(r"\b(bf16|f16)\[", text)}
    return max(float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating))


def _differ(a: Any, b: Any, rounding: Callable[..., float]) -> Any:
    """Whether two arrays differ by more than sqrt(rounding) times their largest absolute value."""
    found = _differ_by(a, b, rounding(inside=False))
    return found if found is False else _differ_by(a, b, rounding(inside=True))


def _differ_by(a: Any, b: Any, rounding: float) -> Any:
    traced = isinstance(a, jax.core.Tracer)
    if not traced:
        a, b = on_host(a).astype(np.float64), on_host(b).astype(np.float64)
    xp: Any = jnp if traced else np
    sizes = [xp.where(xp.isfinite(each), xp.abs(each), 0).max(initial=0) for each in (a, b)]
    differ = _distance(a, b, xp).max(initial=0) > rounding**0.5 * xp.maximum(*sizes)
    return differ if traced else bool(differ)


def _distance(a: Any, b: Any, xp: Any = np) -> Any:
    """|a - b|; infinity where only one of the two is finite, and 0 where neither is."""
    one, other = xp.isfinite(a), xp.isfinite(b)
    a, b = (xp.where(one & other, each, 0) for each in (a, b))
    return xp.where(one == other, xp.abs(a - b), xp.inf)


def _taken(data: Any, rows: np.ndarray) -> Any:
    """The examples at `rows`, integers [n].

    They are taken outside the program that evaluates them. So that program serves training data and
    validation data of any number of examples.
    """
    return jax.tree.map(functools.partial(_rows, rows=rows), data)


def _rows(leaf: Any, rows: np.ndarray) -> Any:
    """leaf[rows]; in the memory of a CPU, NumPy takes them, so that nothing is compiled."""
    leaf = jnp.asarray(leaf)
    here = not isinstance(leaf, jax.core.Tracer) and {d.platform for d in leaf.devices()} == {"cpu"}
    if here and leaf.is_fully_replicated and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jax.device_put(np.asarray(leaf)[rows], leaf.sharding if leaf.committed else None)
    return _rows_on_devices(leaf, rows)


@jax.jit
def _rows_on_devices(leaf: Any, rows: Any) -> Any:
    return leaf[rows]


@weak_jit(static=["objective"], once=True)
def _together_and_alone(params: Any, state: Any, few: Any, *, objective: Objective) -> Any:
    """Evaluates n examples in one batch, and in n batches of one.

    Returns:
      Two pairs (means by name, outputs [n, ...]).
    """
    report = functools.partial(_means_and_outputs, objective, params, state)
    together = report(few)
    alone = jax.lax.map(report, jax.tree.map(lambda leaf: leaf[:, None], few))
    sums = {name: jax.tree.map(jnp.sum, mean) for name, mean in alone[0].items()}
    outputs = jax.tree.map(lambda leaf: leaf[:, 0], alone[1])
    return (_values(together[0]), together[1]), (_values(sums), outputs)


def _values(means: dict[str, Mean]) -> dict[str, Any]:
    return {name: mean.value() for name, mean in means.items()}


def _means_and_outputs(
    objective: Objective, params: Any, state: Any, batch: Any
) -> tuple[dict[str, Mean], list[Any]]:
    """The means that an objective reports for a batch, and the outputs of the model.

    There are no outputs if the objective does not report them. Metrics of type Seen or Tally are
    left out, because they never depend on how examples are put into batches.
    """
    if hasattr(objective, "report"):
        means, outputs, _ = objective.report(params, state, batch, None)
    else:
        loss, _, metrics = report_of(objective, params, state, batch, None)
        means, outputs = as_means(loss, metrics), ()
    means = {name: mean for name, mean in means.items() if isinstance(mean, Mean)}
    floating = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)]
    return means, [y for y in floating if y.ndim and y.shape[0] == length(batch)]


@weak_jit(static=["objective", "batch_size", "whole"])
def totals(
    params: Any,
    state: Any,
    data: Any,
    *,
    objective: Objective,
    batch_size: int,
    whole: bool = False,
    layout: Any = None,
) -> dict[str, Any]:
    """The compiled part of `evaluate`: name -> Mean or Tally over all examples.

    Args:
      params, state, data, objective, batch_size: as in `evaluate`.
      whole: True calls the objective with batches of batch_size examples. False calls it with one
        example at a time.
      layout: how the examples are split over several devices; None on one device.
    """

    def report(batch: Any) -> dict[str, Any]:
        loss, _, metrics = report_of(objective, params, state, batch, None)
        return as_means(loss, metrics, float(length(batch)))

    def add(tallies: dict[str, Any], rows: Any) -> tuple[dict[str, Any], dict[str, Mean]]:
        """(the tallies after these rows, the means of each call of the objective)."""
        rows = rows if layout is None else layout.spread(rows)
        size = 1 if not whole else length(rows)
        batches = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
        means = jax.vmap(report)(batches)
        new = tallied({name: _joined(means.pop(name)) for name in tallies})
        return added(tallies, new), means

    examples = length(data)
    size = min(batch_size, examples)
    full, rest = examples // size * size, examples % size
    tallies = _empty_tallies(report, data, size if whole else 1)

    def part(start: Any, size: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)

    # The last batch may be smaller. If examples do not depend on each other, it has the same size,
    # and the results that the batch before it already gave are dropped: so the program contains the
    # network only once.
    alike = rest > 0 and not (whole or tallies)
    starts = jnp.minimum(jnp.arange(full // size + alike) * size, examples - size)
    tallies, means = jax.lax.scan(lambda sums, start: add(sums, part(start, size)), tallies, starts)
    means = jax.tree.map(jnp.ravel, means)
    if alike:
        means = jax.tree.map(lambda x: jnp.concatenate([x[:full], x[x.size - rest :]]), means)
    elif rest:
        tallies, last = add(tallies, part(full, rest))
        means = jax.tree.map(lambda *parts: jnp.concatenate(parts), means, last)
    # The means are added here, in an order that does not depend on batch_size, and all of them
    # together, because each addition would be another piece of code to compile.
    sums = {kind: jax.tree.map(pairwise_sum, mean) for kind, mean in joined(means).items()}
    return {**split(sums, like=means), **tallies}


def _empty_tallies(report: Any, data: Any, size: int) -> dict[str, Any]:
    """The tallies over zero examples, for each Metric that the objective reports."""
    batch = batch_of(size, data)
    means = jax.eval_shape(lambda batch: tallied(report(batch)), batch)
    return {name: mean.nothing() for name, mean in means.items() if isinstance(mean, Tally)}


def _joined(batches: Seen) -> Seen:
    """Joins P batches, arrays [P, B, ...], into one batch, arrays [P * B, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)


def values(means: dict[str, Any]) -> dict[str, Any]:
    """The values of the means and tallies: Python floats, or scalar arrays if they are traced."""

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
def _outputs(
    params: Any, state: Any, examples: Any, *, model: Any, batch_size: int, layout: Any
) -> Any:
    """The compiled part of `predict`; `examples` is the pair (x, inputs)."""

    def one(example: Any) -> Any:
        x, inputs = jax.tree.map(lambda leaf: leaf[None], example)
        if isinstance(model, Layer):
            y, _ = model.apply(params, state, x, **inputs)
        else:
            y = model(params, x, **inputs, **key_and_train(model, None, False))
        return jax.tree.map(lambda leaf: leaf[0], y)

    with traced_in("predict"):
        y = jax.lax.map(one, examples, batch_size=min(batch_size, length(examples)))
        return y if layout is None else layout.everywhere(y)
