"""Many networks that train at once: the axes of their arrays, and their compiled program.

There are R settings of hyper-parameters and S seeds, and R * S members, one for each pair.

An array of all members has two more axes than the array of one member: the axis of the seeds is
the first, and the axis of the settings is before the member's last axis. For example, the weights
[D, H] of a dense layer become [S, D, R, H]. Members with the same seed see the same batch. With
this order of axes, all products of the batch with their weights are one product with a matrix
[D, R * H]. The gradients of their weights are one product too, and no axis has to be moved.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation

from fdl.core.compilation import weak_jit
from fdl.optim.wrappers.evaluation_params import eval_params, has_eval_params
from fdl.train.evaluation import totals
from fdl.train.run import Run

Make = Callable[..., GradientTransformation]
"""A function of named hyper-parameters that gives an optimizer."""

# The mapped axes of a Run, for `vmap` over the seeds. None means that all members share the value.
OF_SEEDS = Run(params=0, state=0, opt_state=0, step=None, seed=0)


def _settings_axes(tree: Any) -> Any:
    """The axis of the settings of each array, for arrays without the axis of the seeds."""
    return jax.tree.map(lambda leaf: max(leaf.ndim - 2, 0), tree)


def _of_settings(run: Run) -> Run:
    """The mapped axes of a run of one seed, for `vmap` over the settings."""
    params, state, opt_state = map(_settings_axes, (run.params, run.state, run.opt_state))
    return Run(params, state, opt_state, step=None, seed=None)


@weak_jit(static=["make"], once=True)
def started(settings: Any, begun: Sequence[tuple[Any, Any]], seeds: Any, *, make: Make) -> Run:
    """The members at step 0, with the axes [R, S, ...] in front of the axes of a member.

    Args:
      settings: a dict, name -> [R].
      begun: (params, state) of each of the S seeds.
      seeds: [S].
      make: gives the optimizer of a setting.
    """
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)

    def one(setting: Any, params: Any, state: Any) -> Any:
        return params, state, make(**setting).init(params)

    of_a_setting = jax.vmap(one, (None, 0, 0))
    params, state, opt_state = jax.vmap(of_a_setting, (0, None, None))(settings, params, state)
    step, seeds = jnp.zeros((), jnp.uint32), jnp.asarray(seeds, jnp.uint32)
    return Run(params, state, opt_state, step, seeds)


def over_members(f: Callable[[Any, Run], Any], settings: Any, run: Run) -> tuple[Run, Any]:
    """Applies `f(setting, run) -> (run, values)` to all members; the values are [S, R]."""

    def of_a_seed(run: Run) -> Any:
        axes = _of_settings(run)
        return jax.vmap(f, (0, axes), (axes, 0))(settings, run)

    return jax.vmap(of_a_seed, (OF_SEEDS,), (OF_SEEDS, 0))(run)


@weak_jit(static=["objective", "batch_size", "whole"])
def evaluated(run: Run, data: Any, **how: Any) -> dict[str, Any]:
    """The means, [S, R], of all members over a data set; `how` is as in `totals`."""

    def one(params: Any, state: Any, opt_state: Any) -> dict[str, Any]:
        if has_eval_params(opt_state, params):
            params = eval_params(opt_state, params)
        return totals(params, state, data, **how)

    def of_a_seed(*parts: Any) -> Any:
        return jax.vmap(one, _settings_axes(parts))(*parts)

    return jax.vmap(of_a_seed)(run.params, run.state, run.opt_state)


@jax.jit
def values_of_members(means: dict[str, Any]) -> dict[str, Any]:
    """The values, [S, R], of the means of all members."""
    of_one = lambda means: {name: mean.value() for name, mean in means.items()}  # noqa: E731
    return jax.vmap(jax.vmap(of_one))(means) if means else {}


# Each function below is compiled as a whole. Otherwise JAX would compile each operation for each
# shape of array, which takes longer than a small sweep.


@jax.jit
def taken(run: Run, places: Any) -> Run:
    """The members of the settings at `places`, integers [R]."""
    return _over_arrays(lambda leaf, axis: jnp.take(leaf, places, axis), run)


@jax.jit
def joined(runs: Sequence[Run], order: Any) -> Run:
    """One run with the members of all runs, whose settings are sorted by `order`, integers [R].

    The step of the result is that of the last run in `runs`.
    """
    parts = [(run.params, run.state, run.opt_state) for run in runs]
    join = lambda *leaves: jnp.concatenate(leaves, _axis(leaves[0]))  # noqa: E731
    params, state, opt_state = jax.tree.map(join, *parts)
    return taken(Run(params, state, opt_state, runs[-1].step, runs[-1].seed), order)


@jax.jit
def settings_first(run: Run) -> Run:
    """The run with arrays [R, S, ...]: the axes of settings and seeds, then those of a member."""
    return _over_arrays(lambda leaf, axis: jnp.moveaxis(leaf, axis, 0), run)


@weak_jit(once=True)
def settings_inside(run: Run) -> Run:
    """The inverse of `settings_first`."""
    return _over_arrays(lambda leaf, axis: jnp.moveaxis(leaf, 0, axis), run)


def _over_arrays(f: Callable[[Any, int], Any], run: Run) -> Run:
    """Applies `f(array, axis of the settings)` to all arrays that differ between settings."""
    parts = (run.params, run.state, run.opt_state)
    params, state, opt_state = jax.tree.map(lambda leaf: f(leaf, _axis(leaf)), parts)
    # Copies, because `advance_members` overwrites the arrays that it gets.
    return Run(params, state, opt_state, run.step.copy(), run.seed.copy())


def _axis(leaf: Any) -> int:
    """The axis of the settings of an array of all members."""
    return 1 + max(leaf.ndim - 3, 0)
