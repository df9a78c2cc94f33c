"""The laws that every optimizer of fdl keeps, for an optimizer of your own.

The tests of fdl run the same functions over every optimizer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import GradientTransformation

from fdl import paths
from fdl.checks import described
from fdl.debug.layer_laws import NEAR, assert_equal, findings, require, stacked
from fdl.debug.sanity import Report
from fdl.optim.chaining import apply_updates
from fdl.train.checks import check_optimizer as is_optimizer

STEPS, LONG = 3, 99
SHAPES = {"a": (3, 4), "b": (4,), "c": (), "d": (2, 2, 3)}
Point = tuple[Any, Any]
"""Parameters, and the state of the optimizer."""


def check_optimizer(make: Callable[[], GradientTransformation]) -> Report:
    """Runs the laws of optimizers on an optimizer of your own.

    The optimizer minimizes a smooth loss of four small float32 arrays.

    - compiled: three steps in a compiled `jax.lax.scan` are three steps of Python.
    - vmap: three runs at once are three runs, one after the other.
    - dtypes: updates have the structure, shapes and dtypes of the parameters, and the new state has
      those of the old one, for parameters in float32 and in bfloat16.
    - arguments: a step does not change the arrays that it gets.
    - resumed: another optimizer from `make`, with a copy of the parameters and the state, goes on
      with the same bits.
    - order: the names of the parameters, and so their order, do not matter.
    - empty: a parameter without elements gives no error, and changes nothing of the others.
    - descends: 99 steps decrease the loss.

    Args:
      make: a function without arguments that makes the optimizer, for example
        `lambda: fdl.adam(0.01)`.

    Returns:
      A `Report` with a `Finding` for each law; `report.wrong` lists the laws that are broken.

    Raises:
      TypeError: make is not a function that makes an optimizer.
      Exception: what the optimizer itself raises at its first step.

    Example:
      >>> import optax
      >>> from fdl.optim import chain, scale_by_adam
      >>> check_optimizer(lambda: chain(scale_by_adam(), optax.scale(0.01))).wrong
      ['descends']

    Source: the protocol of `optax.GradientTransformation`; `sklearn.utils.estimator_checks`, which
    makes the laws of its estimators public.
    """
    if isinstance(make, GradientTransformation) or not callable(make):
        raise TypeError(
            f"check_optimizer: expected a function that makes an optimizer, got {described(make)}; "
            "pass lambda: fdl.adam(0.01), for example"
        )
    is_optimizer("check_optimizer", make())
    trial = OptimizerTrial(make)
    trial.eager  # noqa: B018  # raises what the optimizer raises
    return Report(findings(OPTIMIZER_LAWS, _REMEDIES, trial))


class OptimizerTrial:
    """An optimizer with what its laws need. Each program is compiled once for all laws.

    Args:
      make: makes the optimizer.
      start: makes the optimizer's parameters of plain parameters, such as
        `optax.LookaheadParams.init_synced`.
      shapes: the shapes of the parameters by name.
    """

    def __init__(
        self,
        make: Callable[[], GradientTransformation],
        start: Callable[[Any], Any] = lambda params: params,
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    ):
        self.make, self.start, self.shapes = make, start, shapes
        self.optimizer = optax.with_extra_args_support(make())
        self.begun = self.begin(self.drawn(0))
        self.targets = [self.drawn(seed) for seed in range(1, 1 + STEPS)]
        self.traces = 0
        self.runs = jax.jit(self.scanned)

    def drawn(self, seed: int, dtype: Any = np.float32) -> Any:
        """Random arrays of the shapes."""
        draw = np.random.default_rng(seed).standard_normal
        return {name: jnp.asarray(draw(shape), dtype) for name, shape in self.shapes.items()}

    def begin(self, plain: Any) -> Point:
        """The optimizer's parameters, made of plain ones, and its first state."""
        params = self.start(plain)
        return params, self.optimizer.init(params)

    def updates(self, at: Point, target: Any) -> tuple[Any, Any]:
        """(updates, new state) of one step towards a target."""
        params, state = at
        loss = functools.partial(distance, target=target)
        value, gradient = jax.value_and_grad(loss)(plain(params))
        return self.optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )

    def step(self, at: Point, target: Any) -> Point:
        """One step towards a target."""
        updates, state = self.updates(at, target)
        return apply_updates(at[0], updates), state

    def scanned(self, at: Point, targets: Any) -> Point:
        """One step for each target, in a scan; `runs` is this function, compiled."""
        self.traces += 1
        return jax.lax.scan(lambda at, target: (self.step(at, target), None), at, targets)[0]

    @functools.cached_property
    def eager(self) -> Point:
        """The steps themselves, which are not compiled."""
        return functools.reduce(self.step, self.targets, self.begun)


# The laws. Each raises an AssertionError if the optimizer breaks it.


def compiled_is_eager(trial: OptimizerTrial) -> None:
    """Steps in a compiled scan are steps of Python, and are compiled once."""
    targets = stacked(trial.targets)
    end = trial.runs(trial.begun, targets)
    assert_equal(end, trial.eager, **NEAR)
    traces = trial.traces
    trial.runs(end, targets)
    require(trial.traces == traces, "after its first steps, a run was compiled again")


def vmap_is_a_loop(trial: OptimizerTrial) -> None:
    """Runs at once are the runs one after the other."""
    starts = [trial.begin(trial.drawn(seed)) for seed in range(3)]
    targets = [[trial.drawn(10 * seed + step) for step in range(STEPS)] for seed in range(1, 4)]
    alone = [trial.runs(*each) for each in zip(starts, map(stacked, targets), strict=True)]
    together = jax.jit(jax.vmap(trial.scanned))(stacked(starts), stacked(map(stacked, targets)))
    assert_equal(together, stacked(alone), **NEAR)


def dtypes_are_kept(trial: OptimizerTrial) -> None:
    """Updates are of the parameters' kind, and a new state of the old one's."""
    for dtype in (np.float32, jnp.bfloat16):
        params, state = at = trial.begin(trial.drawn(0, dtype))
        updates, new = trial.updates(at, trial.drawn(1, dtype))
        for what, found, expected in (("updates", updates, params), ("state", new, state)):
            found, expected = _kinds(found), _kinds(expected)
            apart = [f"{path} {kind}" for path, kind in found.items() if expected.get(path) != kind]
            apart += [f"no {path}" for path in expected if path not in found]
            require(not apart, f"{what} of {jnp.dtype(dtype)} parameters: {', '.join(apart)}")


def arguments_are_kept(trial: OptimizerTrial) -> None:
    """A step does not change its arguments."""
    before = jax.tree.map(np.array, trial.begun)
    ids = [id(leaf) for leaf in jax.tree.leaves(trial.begun)]
    trial.step(trial.begun, trial.targets[0])
    assert_equal(jax.tree.map(np.array, trial.begun), before)
    same = [id(leaf) for leaf in jax.tree.leaves(trial.begun)] == ids
    require(same, "the parameters or the state have other arrays")


def resumed_is_uninterrupted(trial: OptimizerTrial) -> None:
    """Nothing but the parameters and the state is remembered from step to step."""
    first, *rest = trial.targets
    middle = jax.tree.map(jnp.asarray, trial.step(trial.begun, first))
    whole = functools.reduce(trial.step, rest, middle)
    again = OptimizerTrial(trial.make, trial.start, trial.shapes)
    copied = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), middle)
    assert_equal(functools.reduce(again.step, rest, copied), whole)


def order_does_not_matter(trial: OptimizerTrial) -> None:
    """The same parameters under names that sort the other way round give the same updates."""
    names = {name: f"z{9 - place}" for place, name in enumerate(sorted(trial.shapes))}

    def renamed(tree: Any) -> Any:
        return {names[name]: leaf for name, leaf in tree.items()}

    at, other = trial.begun, trial.begin(renamed(trial.drawn(0)))
    for target in trial.targets:
        at, other = trial.step(at, target), trial.step(other, renamed(target))
    assert_equal(plain(other[0]), renamed(plain(at[0])), **NEAR)


def empty_changes_nothing(trial: OptimizerTrial) -> None:
    """A parameter without elements changes nothing of the others."""
    nothing = {"e": jnp.zeros((0, 3), jnp.float32)}
    at = trial.begin(trial.drawn(0) | nothing)
    for target in trial.targets:
        at = trial.step(at, target | nothing)
    found = {name: leaf for name, leaf in plain(at[0]).items() if name in trial.shapes}
    assert_equal(found, plain(trial.eager[0]), **NEAR)


def steps_descend(trial: OptimizerTrial) -> None:
    """Many steps towards one target decrease the distance."""
    target = trial.targets[0]
    targets, end = stacked([target] * STEPS), trial.begun
    for _ in range(LONG // STEPS):
        end = trial.runs(end, targets)
    before, after = (float(distance(plain(at[0]), target)) for at in (trial.begun, end))
    require(after < before, f"the loss was {before:.3g}, and {after:.3g} after {LONG} steps")


OPTIMIZER_LAWS: dict[str, Callable[[OptimizerTrial], None]] = {
    "compiled": compiled_is_eager,
    "vmap": vmap_is_a_loop,
    "dtypes": dtypes_are_kept,
    "arguments": arguments_are_kept,
    "resumed": resumed_is_uninterrupted,
    "order": order_does_not_matter,
    "empty": empty_changes_nothing,
    "descends": steps_descend,
}
_TRACED = "use jax.numpy, and no Python or NumPy code that depends on values"
_REMEDIES = {
    "compiled": _TRACED,
    "vmap": _TRACED,
    "dtypes": "cast updates to the dtypes of the parameters, and a new state to those of the old",
    "arguments": "return new arrays and dicts, and do not change those that were passed",
    "resumed": "keep everything that changes in the state, and nothing in the optimizer",
    "order": "treat parameters by what they are, and not by their names or order",
    "empty": "divide by max(1, size), and take no maximum of an array without elements",
    "descends": "return updates to add, such as -rate * gradient; or choose a smaller rate",
}


def distance(params: Any, target: Any) -> jax.Array:
    """A smooth loss: how far parameters are from a target, in float32."""
    return sum(
        (
            jnp.sum(jnp.log(jnp.cosh((leaf - target[name]).astype(jnp.float32))))
            for name, leaf in params.items()
        ),
        jnp.zeros(()),
    )


def plain(params: Any) -> Any:
    """The parameters at which gradients are taken: of pairs (fast, slow), the fast ones."""
    return getattr(params, "fast", params)


def _kinds(tree: Any) -> dict[str, str]:
    """Path -> the dtype and shape of the leaf, in words."""
    return {path: str(jax.typeof(leaf)) for path, leaf in paths.leaves(tree).items()}
