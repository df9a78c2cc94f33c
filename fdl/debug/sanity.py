"""The checks to run before a long training run, as one table."""

import dataclasses
import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.checks import check_count
from fdl.core.compilation import weak_jit
from fdl.data import length
from fdl.data.arrays import to_jax
from fdl.debug.nonfinite import find_nonfinite
from fdl.debug.tracing import is_floating
from fdl.look.notebook_table import aligned
from fdl.look.tree_difference import difference
from fdl.ops.rank_promotion import free_ranks
from fdl.train.accumulators import as_means, tallied
from fdl.train.batches import unpack
from fdl.train.checks import check_objective_given, check_optimizer, check_run
from fdl.train.evaluation import check_objective, mixes_examples, values
from fdl.train.loop import fit
from fdl.train.microbatches import whole
from fdl.train.objective import Supervised, report_of
from fdl.train.run import Run
from fdl.typing import Batch, Objective

OK, WRONG, UNKNOWN = "ok", "WRONG", "not known"
SAME = 0.01  # the fraction of the test set that may also be in the training set
FRACTIONS = ("accuracy", "auc", "f1", "precision", "recall", "iou", "dice")


class Finding(NamedTuple):
    """One line of a `Report`.

    Args:
      name: the name of the check.
      verdict: "ok", "WRONG" or "not known".
      found: what was found.
      remedy: what to do; "" if nothing is wrong.
    """

    name: str
    verdict: str
    found: str
    remedy: str = ""


class Report(NamedTuple):
    """What `check` and `check_layer` return. Its `repr` is a table.

    Args:
      findings: a `Finding` for each check.
    """

    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[str]:
        """The names of the checks that found something wrong."""
        return [each.name for each in self.findings if each.verdict == WRONG]

    def __repr__(self) -> str:
        return "\n".join(line.rstrip() for line in aligned(self.findings, left=4))


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What the checks get.

    Args:
      few: a batch of B random examples of data.
      steps: the number of steps for which networks are trained.
    """

    objective: Any
    optimizer: Any
    run: Run
    data: Any
    test: Any
    few: Any
    steps: int

    @functools.cached_property
    def trained(self) -> Run:
        """The run after training on the few examples alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks themselves say what is wrong
            how: dict[str, Any] = {"batch_size": length(self.few), "steps": self.steps}
            return fit(self.objective, self.optimizer, self.run, self.few, **how).run

    @functools.cached_property
    def passed(self) -> Callable[[Run], Any]:
        """A compiled function: run -> the loss and the gradients of the few examples."""
        program = jax.jit(lambda run, few: _passed(self.objective, run, few))
        return lambda run: program(run, self.few)

    def means(self, run: Run, data: Any) -> dict[str, float]:
        """The loss and metrics of data in evaluation."""
        return values(_means(run, data, objective=self.objective))

    def predicted(self) -> tuple[Any, Any, Any]:
        """(y_pred, y, weight) of the few examples; three Nones without a `supervised` objective."""
        if not isinstance(self.objective, Supervised):
            return None, None, None
        x, y, weight, inputs = unpack(self.few)
        return _forward(self.run, x, inputs, objective=self.objective), y, weight


@weak_jit(static=["objective"])
def _means(run: Run, data: Any, *, objective: Any) -> dict[str, Any]:
    loss, _, metrics = report_of(objective, run.params, run.state, data, None)
    return tallied(as_means(loss, metrics, float(length(data))))


@weak_jit(static=["objective"])
def _forward(run: Run, x: Any, inputs: Any, *, objective: Any) -> Any:
    return objective.forward(run.params, run.state, x, None, **inputs)[0]


def _passed(objective: Any, run: Run, few: Any) -> dict[str, Any]:
    passed = whole(objective, run, few, jax.random.key(0))
    return {"loss": passed.loss, "gradients": passed.gradients}


def _setup(
    objective: Any, optimizer: Any, run: Run, data: Any, test: Any, batch_size: int, steps: int
) -> _Setup:
    rows = np.random.default_rng(0).permutation(length(data))
    few = _taken(data, rows[:batch_size])
    return _Setup(objective, optimizer, run, data, test, few, steps)


def check(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run,
    data: Batch,
    *,
    test: Batch | None = None,
    batch_size: int = 32,
    steps: int = 200,
) -> Report:
    """Runs the checks that find the usual mistakes before a long training run.

    - labels: they are in the range of the loss, or of the outputs of the network.
    - inputs: the mean and the spread of each feature of floating inputs are not far from 0 and 1.
    - overlap: of the inputs of test, the share that is also in data is at most 1% plus twice the
      share that is expected by chance.
    - finite: the loss, the gradients and the update of a batch are finite; see `find_nonfinite`.
    - loss at start: it is at most 3 times the loss of predicting 0, which is log(C) for softmax
      cross-entropy with C classes.
    - metrics: they are finite, fractions such as an accuracy are in [0, 1], and an accuracy agrees
      with the loss.
    - determinism: a step gives the same bits when it is traced and taken again.
    - leakage: the loss of an example does not depend on other examples of its batch, in evaluation.
    - one batch: training on one batch halves its loss.
    - gradients: no parameter has a gradient of 0 both at the start and after training on one batch.
    - shuffled labels: after training on one batch, the loss is much higher when the labels of the
      batch are shuffled. Otherwise, the network sees the label, or ignores x.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`. If it is not from
        `supervised`, "labels" only checks that the objective accepts the data, "loss at start" only
        that the loss is finite, and "inputs" is not known. If data are not (x, y), (x, y, weight)
        or a dict with x and y, "shuffled labels" is not known.
      optimizer: from fdl or optax, as for the long run.
      run: the run at its start.
      data: a pytree of arrays [N, ...], N >= 2.
      test: data of the same structure for the test, or None.
      batch_size: B, the number of examples of the one batch, an int >= 1. The checks
        "leakage" and "shuffled labels" need at least 2.
      steps: the number of training steps on the one batch, an int >= 1.

    Returns:
      A `Report`; `report.wrong` lists the names of the checks that found something.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: batch_size or steps is below 1.

    Example:
      >>> import fdl
      >>> x = np.random.default_rng(0).standard_normal((128, 4)).astype("float32")
      >>> y = (x[:, 0] > 0).astype("int32")
      >>> model = fdl.dense(2, w_init=fdl.initializers.normal(100.0))
      >>> params, state = model.init(jax.random.key(0), x)
      >>> objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
      >>> optimizer = fdl.adam(0.3)
      >>> check(objective, optimizer, fdl.start(params, optimizer, state=state), (x, y)).wrong
      ['loss at start']

    Source: Karpathy 2019, "A recipe for training neural networks".
    """
    check_objective_given("check", objective)
    check_optimizer("check", optimizer)
    check_run("check", run)
    batch_size = check_count("check", "batch_size", batch_size, "32 examples are enough")
    steps = check_count("check", "steps", steps, "200 steps are enough for most networks")
    run = getattr(run, "run", run)
    data, test = to_jax(data, "check"), None if test is None else to_jax(test, "check", "test")
    setup = _setup(objective, optimizer, run, data, test, batch_size, steps)
    return Report(tuple(_finding(name, f, setup) for name, f in _CHECKS.items()))


def _finding(name: str, f: Callable[[_Setup], Any], setup: _Setup) -> Finding:
    """What a check found. A ValueError or TypeError becomes a finding."""
    try:
        with free_ranks():
            return Finding(name, *f(setup))
    except (ValueError, TypeError) as error:
        found, _, remedy = str(error).splitlines()[0].partition("; ")
        return Finding(name, WRONG, found, remedy)


def _labels(setup: _Setup) -> Any:
    check_objective(setup.objective, setup.run.params, setup.run.state, setup.data)
    y_pred, y, _ = setup.predicted()
    if y is None or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        return (OK, "the objective accepts the data")
    whole_y = np.asarray(unpack(setup.data)[1])
    classes = y_pred.shape[-1] if y_pred.ndim == y.ndim + 1 else None
    low, high = whole_y.min(), whole_y.max()
    if classes is None or (low >= 0 and high < classes):
        return (OK, f"integers from {low} to {high}")
    if low < 0 and not (whole_y >= classes).any():
        return (UNKNOWN, f"integers from {low} to {high}; are negative ones ignored?")
    remedy = "give the last layer one output for each class, or correct the labels"
    return (WRONG, f"integers from {low} to {high} for {classes} outputs", remedy)


def _inputs(setup: _Setup) -> Any:
    if not isinstance(setup.objective, Supervised):
        return (UNKNOWN, "the objective is not from supervised")
    for path, leaf in paths.leaves(unpack(setup.data)[0]).items():
        if not is_floating(leaf) or leaf.ndim < 2:
            continue
        rows = np.asarray(leaf[:10_000], np.float64).reshape(-1, leaf.shape[-1])
        worst = np.maximum(np.abs(rows.mean(0)), rows.std(0))
        feature = int(worst.argmax())
        if not worst.max() <= 10:
            mean, spread = rows.mean(0)[feature], rows.std(0)[feature]
            where = f"feature {feature}" + (f" of {path}" if path else "")
            remedy = "subtract the mean of the training set, and divide by its spread"
            return (WRONG, f"{where} has mean {mean:.3g} and spread {spread:.3g}", remedy)
        if worst.max() < 0.01:
            remedy = "divide by the spread of the training set"
            return (WRONG, f"the largest mean or spread of a feature is {worst.max():.2g}", remedy)
    return (OK, "no mean or spread of floating inputs is above 10, and not all are below 0.01")


def _overlap(setup: _Setup) -> Any:
    if setup.test is None:
        return (UNKNOWN, "no test data was passed")
    of_train, of_test = (
        [row.tobytes() for row in _flat(_inputs_of(data))] for data in (setup.data, setup.test)
    )
    known = Counter(of_train)
    same = sum(row in known for row in of_test)
    found = f"{same} of {len(of_test)} examples of test are in data"
    # In a table of a few integers, new examples are often equal to old ones.
    by_chance = sum(known[row] > 1 for row in of_train) / len(of_train)
    if same > (SAME + 2 * by_chance) * len(of_test):
        return (WRONG, found, "remove them from one of the two, or split the data again")
    return (OK, found)


def _finite(setup: _Setup) -> Any:
    found = find_nonfinite(setup.objective, setup.run, setup.few, optimizer=setup.optimizer)
    if found is None:
        return (OK, "loss, gradients and update of a batch")
    remedy = "change the operation or its inputs so that the result is finite"
    return (WRONG, repr(found)[1:-1], remedy)


def _loss_at_start(setup: _Setup) -> Any:
    loss = setup.means(setup.run, setup.few)["loss"]
    if not isinstance(setup.objective, Supervised):
        return (OK if math.isfinite(loss) else WRONG, f"{loss:.4g}")
    y_pred, y, weight = setup.predicted()
    zero = jax.tree.map(jnp.zeros_like, y_pred)
    expected = float(setup.objective.score(zero, y, weight)["loss"].value())
    found = f"{loss:.4g}; predicting 0 gives {expected:.4g}"
    if loss <= 3 * abs(expected) + 1e-3:
        return (OK, found)
    return (WRONG, found, "make the initial weights of the last layer smaller, or normalise x")


def _metrics(setup: _Setup) -> Any:
    before, after = (setup.means(run, setup.few) for run in (setup.run, setup.trained))
    names = [name for name in before if name != "loss"]
    for name in names:
        fraction = any(each in name.lower() for each in FRACTIONS)
        for value in (before[name], after[name]):
            if not math.isfinite(value) or (fraction and not 0 <= value <= 1):
                return (WRONG, f"{name} is {value:.4g}", "correct the function of this metric")
        learned = after["loss"] < 0.2 * before["loss"]
        if "accuracy" in name.lower() and learned and after[name] <= 0.5:
            found = f"{name} is {after[name]:.3g} after the loss of a batch fell to "
            remedy = "correct the function of this metric: its arguments are (y_pred, y)"
            return (WRONG, f"{found}{after['loss'] / before['loss']:.0%}", remedy)
    return (OK, ", ".join(f"{name} {before[name]:.3g}" for name in names) or "there are none")


def _determinism(setup: _Setup) -> Any:
    # Another function, so that JAX traces again: random numbers of NumPy are constants of a trace.
    again = jax.jit(lambda run, few: _passed(setup.objective, run, few))
    apart = difference(setup.passed(setup.run), again(setup.run, setup.few))
    if not apart.path:
        return (OK, "the gradients have the same bits when a step is repeated")
    remedy = "draw random numbers with jax.random and the key of the step, and change no globals"
    return (WRONG, f"the gradients differ by {apart.absolute:.2g} at {apart.path}", remedy)


def _leakage(setup: _Setup) -> Any:
    run, few = setup.run, setup.few
    if not mixes_examples(setup.objective, run.params, run.state, few):
        return (OK, "the loss of an example depends on that example alone")
    if getattr(getattr(setup.objective, "loss", None), "of_batches", False):
        return (OK, "the loss compares the examples of a batch, as it should")
    found = "the loss of an example depends on other examples of its batch"
    return (WRONG, found, "look for a reshape, a mean or a softmax over axis 0")


def _one_batch(setup: _Setup) -> Any:
    before, after = (setup.means(run, setup.few)["loss"] for run in (setup.run, setup.trained))
    found = f"loss {before:.4g} became {after:.4g} in {setup.steps} steps on one batch"
    if before - after >= 0.5 * abs(before):
        return (OK, found)
    remedy = "try other learning rates; then look at targets, gradients and the last activation"
    return (WRONG, found, remedy)


def _gradients(setup: _Setup) -> Any:
    both = [paths.leaves(setup.passed(run)["gradients"]) for run in (setup.run, setup.trained)]
    dead = [path for path in both[0] if not any(np.asarray(of[path]).any() for of in both)]
    if not dead:
        return (OK, f"none of {len(both[0])} parameters has a gradient of 0")
    several = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    remedy = "use the layer in forward, and look for a saturated or dead activation after it"
    return (WRONG, f"the gradient is 0 at {', '.join(dead[:3])}{several}", remedy)


def _shuffled(setup: _Setup) -> Any:
    try:
        _, y, _, _ = unpack(setup.few)
    except ValueError:
        return (UNKNOWN, "the data are not (x, y), (x, y, weight) or a dict with x and y")
    wrong = _with_y(setup.few, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), y))
    if not difference(wrong, setup.few).path:
        return (UNKNOWN, "all labels of the batch are the same")
    start, right = (setup.means(run, setup.few)["loss"] for run in (setup.run, setup.trained))
    if start - right < 0.5 * abs(start):
        return (UNKNOWN, "nothing was learned from one batch")
    shuffled = setup.means(setup.trained, wrong)["loss"]
    found = f"loss {right:.4g} of the learned batch, {shuffled:.4g} with shuffled labels"
    integers = all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(y))
    # On shuffled labels, a confident classifier is far worse than chance. The loss of a regression
    # at the start says little, because the targets may be far from 0.
    if shuffled > (0.5 * abs(start) if integers else 2 * right):
        return (OK, found)
    remedy = "the network sees the label, or it makes no use of x: look at what forward reads"
    return (WRONG, found, remedy)


_CHECKS: dict[str, Callable[[_Setup], Any]] = {
    "labels": _labels,
    "inputs": _inputs,
    "overlap": _overlap,
    "finite": _finite,
    "loss at start": _loss_at_start,
    "metrics": _metrics,
    "determinism": _determinism,
    "leakage": _leakage,
    "one batch": _one_batch,
    "gradients": _gradients,
    "shuffled labels": _shuffled,
}


def _taken(data: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows.astype(np.int32)], data)


def _with_y(data: Any, y: Any) -> Any:
    return {**data, "y": y} if isinstance(data, Mapping) else (data[0], y, *data[2:])


def _inputs_of(data: Any) -> Any:
    """x of data for `supervised`; all of any other data."""
    try:
        return unpack(data)[0]
    except ValueError:
        return data


def _flat(x: Any) -> np.ndarray:
    """The bytes of each example, as rows."""
    parts = [np.ascontiguousarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)]
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)
