"""Where two computations that should be equal begin to differ."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.checks import check_number, described
from fdl.data.arrays import to_jax
from fdl.debug.bisection import bisect
from fdl.debug.tracing import Group, Value, is_floating, walk
from fdl.look.tree_difference import difference
from fdl.ops.rank_promotion import free_ranks
from fdl.train.checkpointing import Checkpoints
from fdl.train.checks import check_objective_given, check_optimizer, check_run
from fdl.train.hooks import Plan
from fdl.train.microbatches import whole
from fdl.train.replaying import batch_of_step
from fdl.train.run import Run
from fdl.train.step import update_weights
from fdl.typing import Batch, Objective

# The parts of a step in their order. A key of a trace is a part, "/" and a path.
BEFORE, AFTER = ("params", "state", "batch"), ("gradients", "new_state", "new_params")
DIRECTIONS = (*BEFORE, "forward", "backward", *AFTER)
# Rounding errors add up like a random walk, so that after k layers they are about sqrt(k) times as
# large as in one layer. The factor allows for the many additions inside one layer.
ROUNDINGS = 32


class Divergence(NamedTuple):
    """Where two computations begin to differ, as found by `find_divergence`.

    Args:
      path: the layer, such as "block/3/attn", or the leaf of params, state, batch or gradients.
      direction: the part of the step: "params", "state", "batch", "forward", "backward",
        "gradients", "new_state" or "new_params". It is "rounding" if two runs drifted apart, but no
        single step differs by more than rounding.
      step: how many steps the runs have taken when they differ. If they differ from the beginning,
        it is the step at which they began. None for two traces.
      found: how they differ, in words.
    """

    path: str
    direction: str
    step: int | None
    found: str

    def __repr__(self) -> str:
        where = f"at {self.path}" if self.path else "outside all layers"
        when = "" if self.step is None else f", step {self.step}"
        return f"<Divergence: {self.direction}, {where}{when}: {self.found}>"


def trace(
    objective: Objective,
    run: Run,
    batch: Batch,
    *,
    optimizer: GradientTransformation | None = None,
) -> dict[str, np.ndarray]:
    """All values of a training step that go from one layer to another, by path.

    `find_divergence` compares two traces. A trace is a dict of NumPy arrays, so it can be saved
    with `np.savez(file, **trace)`, and compared with a trace of another version or machine.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      run: the run before the step.
      batch: a pytree of arrays [B, ...].
      optimizer: from fdl or optax. None leaves out the new parameters.

    Returns:
      A dict, key -> array of floating numbers, in the order of the computation. A key is a part of
      the step and a path. The parts are params, state and batch, by the path of a leaf; forward and
      backward, by the path of the layer that made the value (path, path#1, ..., if there are
      several); then gradients, new_state and new_params, by the path of a leaf. In the scanned form
      of `repeat`, there is a key for each block.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: the objective returns a wrong value.

    Example:
      >>> import fdl
      >>> model = fdl.chain(fdl.dense(3), fdl.tanh)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> objective = fdl.supervised(model, fdl.squared_error)
      >>> run = fdl.start(params, fdl.sgd(0.1))
      >>> found = trace(objective, run, (jnp.ones((2, 4)), jnp.ones((2, 3))))
      >>> found["forward/tanh_0"].shape, found["gradients/dense_0/b"].shape
      ((2, 3), (3,))
    """
    check_objective_given("trace", objective)
    check_run("trace", run)
    if optimizer is not None:
        check_optimizer("trace", optimizer)
    run, batch = getattr(run, "run", run), to_jax(batch, "trace")

    def step(run: Any, batch: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(run.seed), run.step)
        passed = whole(objective, run, batch, key)
        parts = {"forward": {"loss": passed.loss}, "gradients": passed.gradients}
        parts["new_state"] = passed.state
        if optimizer is not None:
            extra = {"value": passed.loss, "grad": passed.gradients, "value_fn": passed.loss_of}
            new = update_weights(optimizer, run, passed.gradients, **extra)
            parts["new_params"] = new.params
        return parts

    made: dict[str, dict[str, Any]] = {name: {} for name in DIRECTIONS}
    for name, tree in zip(BEFORE, (run.params, run.state, batch), strict=True):
        made[name] = paths.leaves(tree)

    counts: Counter[tuple[int, str]] = Counter()

    def visit(group: Group, inputs: list[Value], arrays: list[Any]) -> list[None]:
        of_layers = made["backward" if group.backward else "forward"]
        for each in arrays if group.path else ():
            number = counts[id(of_layers), group.path]
            of_layers[f"{group.path}#{number}" if number else group.path] = each
            counts[id(of_layers), group.path] += 1
        return [None] * len(arrays)

    with free_ranks():
        parts = walk(step, (run, batch), visit)
    for name, part in parts.items():
        arrays = jax.tree.map(lambda x: x.array, part, is_leaf=lambda x: isinstance(x, Value))
        made[name] |= paths.leaves(arrays)
    keyed = {f"{name}/{path}": x for name, part in made.items() for path, x in part.items()}
    return {key: np.asarray(x) for key, x in keyed.items() if is_floating(x)}


def find_divergence(
    one: Mapping[str, Any] | Checkpoints,
    other: Mapping[str, Any] | Checkpoints,
    *,
    tolerance: float | None = None,
) -> Divergence | None:
    """Finds the first path at which two computations differ by more than rounding.

    - Two steps, dtypes or versions: pass two traces, see `trace`.
    - Two networks, for example one of torch and its twin: pass their outputs by path, such as
      `fdl.look.capture(model, "**")(params, state, x)` and a dict that hooks of torch have filled.
    - Two runs: pass their checkpoints. The first step at which the runs differ is found by
      bisection, and then the traces of this step are compared.

    The difference of two arrays a and b is the root mean square of a - b, divided by the larger of
    the root mean squares of a and b. In the parts gradients and backward, it is divided by the
    largest root mean square of all arrays of the part, because a gradient that should be 0 consists
    of rounding errors only.

    Args:
      one: a dict, key -> array, in the order of the computation; or checkpoints that watched a
        `fit`.
      other: the same. Keys that are only in one of the two are left out.
      tolerance: the largest relative difference that counts as rounding, > 0. With a tolerance,
        the dtypes may differ. None means that the dtypes must be equal, and that the tolerance of
        the k-th value is 32 * sqrt(k) times the rounding error of its dtype.

    Returns:
      `Divergence(path, direction, step, found)`, or None if the two do not differ.

    Raises:
      TypeError: `one` and `other` are neither two dicts nor two checkpoints.
      ValueError: two traces have no key in common; or the checkpoints did not watch a `fit`.
      OptionError: tolerance is not a number > 0.

    Example:
      >>> import fdl
      >>> x = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
      >>> models = [fdl.chain(fdl.dense(4), norm=fdl.layer_norm(epsilon=e)) for e in (1e-5, 1e-3)]
      >>> params, state = models[0].init(jax.random.key(0), x)
      >>> one, other = (fdl.look.capture(model, "**")(params, state, x) for model in models)
      >>> find_divergence(one, other).path
      'norm'
    """
    if tolerance is not None:
        check_number("find_divergence", "tolerance", tolerance, "(0, inf)", "pass 1e-2, or None")
    if isinstance(one, Checkpoints) and isinstance(other, Checkpoints):
        return _of_runs(one, other, tolerance)
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise TypeError(
            "find_divergence: expected two traces or two checkpoints, got "
            f"{described(one)} and {described(other)}; pass fdl.debug.trace(...) of both"
        )
    return _of_traces(one, other, tolerance, None)


def _of_traces(
    one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float | None, step: int | None
) -> Divergence | None:
    keys = [key for key in one if key in other]
    if not keys:
        some = ", ".join(map(paths.quoted, [*list(one)[:2], *list(other)[:2]]))
        raise ValueError(
            f"find_divergence: expected traces with a key in common, got none among {some}; rename "
            "the keys of one of them"
        )
    pairs = {key: (np.asarray(one[key]), np.asarray(other[key])) for key in keys}
    scales: dict[str, float] = {}
    for key, pair in pairs.items():
        part = _part_of(key)[0]
        if part in ("backward", "gradients"):
            scales[part] = max(scales.get(part, 0.0), *map(_size, pair))
    for number, (key, pair) in enumerate(pairs.items()):
        part, path = _part_of(key)
        found = _apart(*pair, scales.get(part, 0.0), number, tolerance)
        if found:
            return Divergence(path.partition("#")[0], part, step, found)
    return None


def _part_of(key: str) -> tuple[str, str]:
    """(part, path) of a key; the keys of `capture` and of torch have no part, they are forward."""
    part, _, path = key.partition("/")
    return (part, path) if part in DIRECTIONS else ("forward", key)


def _apart(a: Any, b: Any, scale: float, number: int, tolerance: float | None) -> str:
    """How two arrays differ beyond rounding, in words; "" if they do not."""
    if a.shape != b.shape:
        return f"shapes {list(a.shape)} and {list(b.shape)}"
    if a.dtype != b.dtype and tolerance is None:
        return f"dtypes {a.dtype} and {b.dtype}"
    if not is_floating(a):
        return "" if np.array_equal(a, b) else "different integers"
    eps = float(jnp.finfo(a.dtype).eps)
    bound = tolerance or ROUNDINGS * eps * (number + 1) ** 0.5
    a, b = (x.astype(np.complex128 if np.iscomplexobj(x) else np.float64) for x in (a, b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, a - b)
    gap = _size(apart) if np.isfinite(apart).all() else np.inf
    size = max(_size(a), _size(b), scale)
    relative = gap / size if size else gap
    if relative <= bound:
        return ""
    limit = "more than the tolerance" if tolerance else "where rounding gives"
    return f"relative difference {relative:.2g}, {limit} {bound:.1g}"


def _size(x: Any) -> float:
    """The root mean square of the finite numbers of an array; 0 if there are none."""
    x = np.abs(np.asarray(x).astype(np.complex128 if np.iscomplexobj(x) else np.float64))
    x = x[np.isfinite(x)] if not np.isfinite(x).all() else x
    largest = x.max(initial=0.0)
    return float(largest * np.sqrt(np.mean(np.square(x / largest)))) if largest else 0.0


def _of_runs(one: Checkpoints, other: Checkpoints, tolerance: float | None) -> Divergence | None:
    plans = [each.plan_for("find_divergence") for each in (one, other)]
    first = max(int(plan.run.step) for plan in plans)
    last = min(max([each.reached, *each.steps()]) for each in (one, other))
    apart = _of_traces(_before(one.at(first)), _before(other.at(first)), tolerance, first)
    if apart:
        return apart

    def bits(run: Run) -> bool:
        theirs = other.at(int(run.step))
        return bool(difference(_before(run), _before(theirs)).path)

    def beyond(run: Run) -> bool:
        theirs = _before(other.at(int(run.step)))
        return _of_traces(_before(run), theirs, tolerance, None) is not None

    # The first step that is not equal bit for bit may differ only by rounding. Then the first step
    # that differs by more is searched for.
    step = None
    for differs in (bits, beyond):
        if not differs(one.at(last)):
            break
        step = last
        if not differs(one.at(first)):
            step = bisect(one, differs, first=first, last=last).step
        apart = _at_step(one, other, plans, step, tolerance)
        if apart:
            return apart
    return None if step is None else _drift(one, other, last, tolerance)


def _at_step(
    one: Checkpoints, other: Checkpoints, plans: list[Plan], step: int, tolerance: float | None
) -> Divergence | None:
    """Compares the two traces of the step after which the runs have taken `step` steps."""
    first, second = (
        trace(
            plan.objective,
            saved.at(step - 1),
            batch_of_step(plan, step - 1),
            optimizer=plan.optimizer,
        )
        for saved, plan in zip((one, other), plans, strict=True)
    )
    return _of_traces(first, second, tolerance, step)


def _drift(
    one: Checkpoints, other: Checkpoints, last: int, tolerance: float | None
) -> Divergence | None:
    apart = _of_traces(_before(one.at(last)), _before(other.at(last)), tolerance, last)
    return apart and apart._replace(direction="rounding")


def _before(run: Run) -> dict[str, Any]:
    """The leaves of params and state, with the keys of `trace`."""
    parts = {"params": paths.leaves(run.params), "state": paths.leaves(run.state)}
    return {f"{name}/{path}": x for name, part in parts.items() for path, x in part.items()}
