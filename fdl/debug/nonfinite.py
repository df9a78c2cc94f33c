"""Where in a training step the first NaN or infinity comes from."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.data.arrays import to_jax
from fdl.debug.bisection import bisect
from fdl.debug.predicates import not_finite
from fdl.debug.tracing import Group, Step, Value, is_floating, line_of, operations, walk
from fdl.ops.rank_promotion import free_ranks
from fdl.train.checkpointing import Checkpoints
from fdl.train.checks import check_objective_given, check_optimizer, check_run
from fdl.train.microbatches import whole
from fdl.train.run import Run
from fdl.train.step import update_weights
from fdl.typing import Batch, Objective


class Nonfinite(NamedTuple):
    """The origin of a NaN or an infinity, as found by `find_nonfinite`.

    Args:
      path: the layer in which it came up, such as "block/3/attn", or "" outside all layers. For
        the direction "optimizer", the path of the parameter, or "opt_state/" and the path of a leaf
        of the optimizer's state; "**" if several leaves get it at once. For "params", "state",
        "opt_state" and "batch", the path of a leaf of these.
      direction: the part of the step, "forward", "backward" or "optimizer"; or "params", "state",
        "opt_state" or "batch" if it was there before the step.
      step: the number of steps of the run after this step.
      operation: the operation of JAX that made it, such as "log"; "" if it was there before.
      value: "nan" or "inf".
      source: the line of code of the operation, such as "model.py:12 (attend)".
    """

    path: str
    direction: str
    step: int
    operation: str
    value: str
    source: str

    def __repr__(self) -> str:
        where = f"at {self.path}" if self.path else "outside all layers"
        made = f", by {self.operation} in {self.source}" if self.operation else ""
        return f"<Nonfinite: {self.value} in {self.direction}, {where}, step {self.step}{made}>"


class Operation(NamedTuple):
    """An operation: its path, the name of JAX's primitive, and its line of code."""

    path: str
    name: str
    source: str


class _Origin(NamedTuple):
    """Where a value that is not finite comes from.

    Args:
      number: origins are numbered in the order in which they come up.
      operation: the operation that made it, or read it, if it is a constant.
      value: "nan" or "inf".
      meant: True for an infinity that is a constant of the code, such as the -inf of a mask.
      input: the path of the input that it comes from, or "".
    """

    number: int
    operation: Operation
    value: str
    meant: bool = False
    input: str = ""


def find_nonfinite(
    objective: Objective | Checkpoints,
    run: Run | None = None,
    batch: Batch = None,
    *,
    optimizer: GradientTransformation | None = None,
) -> Nonfinite | None:
    """Finds the layer and the direction in which the first NaN or infinity of a step comes up.

    It takes the step layer by layer, also inside `repeat`, scans and recomputed layers. A layer in
    which a NaN or an infinity comes up is taken operation by operation. Each NaN and infinity is
    followed from the operation that makes it. It counts only if it reaches the loss, the state, a
    gradient or the new parameters; a NaN also counts if it reaches the optimizer's new state. An
    infinity that the code masks out does not count, and if a constant infinity, such as -inf in a
    mask, becomes NaN, the operation that makes the NaN is named.

    The paths are the names of layers, and of `jax.named_scope` in a function of your own. Without
    them, the operation and its line of code say where.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`. Or checkpoints that
        watched a `fit`: then `bisect` finds the first step after which `not_finite` is True, and
        run, batch and optimizer are not passed.
      run: the run before the step.
      batch: a pytree of arrays [B, ...], the batch of the step, for example
        `fdl.draw_batch(data, run.seed, run.step, batch_size)`.
      optimizer: from fdl or optax. None leaves out the part of the optimizer.

    Returns:
      `Nonfinite(path, direction, step, operation, value, source)`, or None if all is finite. Layers
      and operations that are computed one by one round differently from a compiled step. So a step
      that is not finite only because of a rounding error may give None.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: the objective returns a wrong value; or, for checkpoints, the run is finite at the
        last step.

    Example:
      >>> import fdl
      >>> import jax.numpy as jnp
      >>> def distance(f, x):
      ...     return jnp.sqrt(jnp.square(f.embed(x)).sum(-1, keepdims=True))
      >>> net = fdl.network(distance, embed=fdl.dense(3), name="net")
      >>> model = fdl.chain(distance=net)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> run = fdl.start(params, fdl.sgd(0.1))
      >>> objective = fdl.supervised(model, fdl.squared_error)
      >>> found = find_nonfinite(objective, run, (jnp.zeros((2, 4)), jnp.ones((2, 1))))
      >>> found.path, found.direction, found.operation  # the derivative of a root at 0
      ('distance', 'backward', 'div')

    Source: `jax_debug_nans`, which names an operation; following a value to its origin is dynamic
    taint analysis, Schwartz, Avgerinos and Brumley 2010, "All you ever wanted to know about dynamic
    taint analysis and forward symbolic execution".
    """
    if isinstance(objective, Checkpoints):
        plan = objective.plan_for("find_nonfinite")
        found = bisect(objective, not_finite)
        return find_nonfinite(plan.objective, found.before, found.batch, optimizer=plan.optimizer)
    check_objective_given("find_nonfinite", objective)
    check_run("find_nonfinite", run)
    run = getattr(run, "run", run)
    if optimizer is not None:
        check_optimizer("find_nonfinite", optimizer)
    return _before(run) or _in_step(objective, run, to_jax(batch, "find_nonfinite"), optimizer)


def _before(run: Any) -> Nonfinite | None:
    """A leaf of the run that is not finite before the step."""
    for part in ("params", "state", "opt_state"):
        for path, leaf in paths.leaves(getattr(run, part)).items():
            value = kind_of(leaf)
            # Some optimizers begin with an infinity.
            if value and not (part == "opt_state" and value != "nan"):
                return Nonfinite(path, part, int(run.step) + 1, "", value, "")
    return None


def _in_step(objective: Any, run: Any, batch: Any, optimizer: Any) -> Nonfinite | None:
    def step(run: Any, batch: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(run.seed), run.step)
        passed = whole(objective, run, batch, key)
        parts = {"forward": (passed.loss, passed.state), "backward": passed.gradients}
        if optimizer is not None:
            extra = {"value": passed.loss, "grad": passed.gradients, "value_fn": passed.loss_of}
            new = update_weights(optimizer, run, passed.gradients, **extra)
            parts["optimizer"] = {"params": new.params, "opt_state": new.opt_state}
        return parts

    follow = _Follow()
    marks: list[Any] = [None] * len(jax.tree.leaves(run))
    for path, leaf in _by_path(batch):
        value = kind_of(leaf)
        read = Operation("", "", "")
        marks.append(follow.new(read, value, input=f"batch/{path}") if value else None)
    with free_ranks():
        parts = walk(step, (run, batch), follow, marks)
    for direction in ("forward", "backward", "optimizer"):
        reached = _reached(parts.get(direction))
        if reached:
            return _named(direction, reached, int(run.step) + 1)
    return None


class _Follow:
    """A visitor of `walk` that marks each value that is not finite with its `_Origin`."""

    def __init__(self) -> None:
        self.count = 0

    def new(self, operation: Operation, value: str, **given: Any) -> _Origin:
        self.count += 1
        return _Origin(self.count, operation, value, **given)

    def __call__(self, group: Group, inputs: list[Value], arrays: list[Any]) -> list[Any]:
        kinds = [kind_of(each) for each in arrays]
        made = self._spread(inputs, lambda origin: not origin.meant)
        if any(kinds) and not made:
            read = functools.partial(self._operation, path=group.path)
            return [value.mark for value in operations(group, inputs, read)]
        return [made if kind else None for kind in kinds]

    def _operation(self, step: Step, inputs: list[Value], arrays: list[Any], path: str) -> list:
        return [self._mark(step, inputs, kind_of(each), path) for each in arrays]

    def _mark(self, step: Step, inputs: list[Value], kind: str, path: str) -> _Origin | None:
        if not kind:
            return None
        made = self._spread(inputs, lambda origin: not origin.meant)
        if made:
            return made
        operation = Operation(path, step.eqn.primitive.name, line_of(step.eqn))
        wrong = any(kind_of(each.array) for each in inputs)
        if wrong and kind == "inf":  # the infinity comes from a constant
            meant = self._spread(inputs, lambda origin: origin.meant)
            return meant or self.new(operation, kind, meant=True)
        return self.new(operation, kind)

    def _spread(self, inputs: list[Value], test: Callable[[_Origin], bool]) -> _Origin | None:
        """The first origin that passes a test, among the origins of inputs that are not finite."""
        marked = (each for each in inputs if each.mark is not None and test(each.mark))
        return min((each.mark for each in marked if kind_of(each.array)), default=None)


def kind_of(x: Any) -> str:
    """ "nan" if x has a NaN, or else "inf" if x has an infinity, or else ""."""
    if not is_floating(x):
        return ""
    x = np.asarray(x)
    return "" if np.isfinite(x).all() else "nan" if np.isnan(x).any() else "inf"


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) in JAX's order of leaves; a `Value` is a leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Value))
    return [(paths.path_of(keys), leaf) for keys, leaf in pairs]


def _reached(part: Any) -> dict[str, _Origin]:
    """path -> origin, of each result of a part of the step that is not finite."""
    found = {}
    for path, value in _by_path(part):
        kind = kind_of(value.array)
        if kind and not (path.startswith("opt_state/") and kind != "nan"):
            constant = _Origin(0, Operation("", "a constant", ""), kind, meant=True)
            found[path] = value.mark or constant
    return found


def _named(direction: str, reached: dict[str, _Origin], step: int) -> Nonfinite:
    first = min(reached.values())
    path, (_, name, source) = first.operation.path, first.operation
    if first.input:
        direction, _, path = first.input.partition("/")
    elif direction == "optimizer":
        leaves = [each for each, origin in reached.items() if origin is first]
        several = all(origin is first for origin in reached.values()) and len(leaves) > 1
        path = "**" if several else leaves[-1].removeprefix("params/")
    return Nonfinite(path, direction, step, name, first.value, source)
