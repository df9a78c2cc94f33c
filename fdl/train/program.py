"""Compiled functions that take many training steps of one run, or of all members of a sweep."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation

from fdl import paths
from fdl.core.compilation import weak_jit
from fdl.train.accumulators import added, joined, split
from fdl.train.members import Make, over_members
from fdl.train.run import Run, laid_out
from fdl.train.step import train_step
from fdl.typing import Objective


@weak_jit(static=["objective", "optimizer", "batch_size", "microbatch"], donate=["run", "means"])
def advance(
    run: Run,
    means: dict[str, Any],
    data: Any,
    length: Any,
    *,
    objective: Objective,
    optimizer: GradientTransformation,
    batch_size: int,
    microbatch: int | None = None,
) -> tuple[Run, dict[str, Any], jax.Array]:
    """Takes `length` training steps, and adds their loss and metrics to `means`.

    The memory of `run` and `means` is reused for the results. If you still need these arguments
    afterwards, pass copies.

    Returns:
      (run, means, finite). finite is True if all numbers in the params and the state are finite.
    """

    how = {"objective": objective, "optimizer": optimizer}
    how |= {"batch_size": batch_size, "microbatch": microbatch}
    run, means = _repeated(lambda run: one_step(run, data, **how), run, means, length)
    return run, means, _all_finite((run.params, run.state))


@weak_jit(static=["objective", "make", "batch_size"], donate=["run"])
def advance_members(
    run: Run,
    settings: Any,
    data: Any,
    length: Any,
    *,
    objective: Objective,
    make: Make,
    batch_size: int,
) -> tuple[Run, dict[str, Any]]:
    """Takes `length` training steps of all members of a sweep.

    The memory of `run` is reused for the result, as in `advance`.

    Args:
      run: all members, with axes as in `fdl.train.members`.
      settings: a dict, name -> [R], the hyper-parameters of R settings.

    Returns:
      (run, means). run holds all members after these steps. means is a dict, name -> `Mean` or
      `Tally`, whose arrays begin with the axes [S, R], for S seeds and R settings.
    """

    @jax.jit
    def step(setting: Any, run: Run, data: Any) -> tuple[Run, dict[str, Any]]:
        # This is jitted so that `eval_shape` and the loop share one trace.
        return train_step(objective, make(**setting), run, data, batch_size)

    def steps(setting: Any, run: Run) -> tuple[Run, dict[str, Any]]:
        zeros = zero_means(run, *step.eval_shape(setting, run, data))
        return _repeated(lambda run: step(setting, run, data), run, zeros, length)

    return over_members(steps, settings, run)


def _repeated(
    step: Callable[[Run], tuple[Run, dict[str, Any]]], run: Run, means: Any, length: Any
) -> tuple[Run, dict[str, Any]]:
    """Takes `length` steps, and adds their means to `means`."""

    def body(_: Any, carry: Any) -> Any:
        run, sums = carry
        run, new = step(run)
        return run, added(sums, joined(new))

    run, sums = jax.lax.fori_loop(0, length, body, (run, joined(means)))
    # Inside the loop, the compiler may split arrays over more devices than the layout says. So the
    # run is put back into its layout, and the means are put on every device.
    return laid_out(run, split(sums, like=means))


def _all_finite(tree: Any) -> jax.Array:
    floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floating], bool).all()


@weak_jit(static=["objective", "optimizer", "batch_size", "microbatch"], inline=True)
def one_step(
    run: Run,
    data: Any,
    *,
    objective: Any,
    optimizer: Any,
    batch_size: int,
    microbatch: int | None = None,
) -> tuple[Run, dict[str, Any]]:
    """`train_step`, jitted so that `eval_shape` and `advance` share one trace."""
    return train_step(objective, optimizer, run, data, batch_size, microbatch)


def zero_means(run: Any, after: Any, means: Any) -> Any:
    """Empty means, with sum 0 and count 0, to which the means of training steps are added.

    Args:
      run: the run before a step.
      after: the shapes and dtypes of the run after the step.
      means: the shapes and dtypes of the means that the step reports.

    Raises:
      PathError: the step adds or removes a leaf of the run, or changes its shape or dtype.
    """
    leaves_before, leaves_after = paths.leaves(run), paths.leaves(after)
    for path in sorted({*leaves_before, *leaves_after}):
        old, new = leaves_before.get(path), leaves_after.get(path)
        if old is None or new is None or _kind(old) != _kind(new):
            raise paths.PathError(
                f"expected {_kind(old)} after a step, got {_kind(new)}; the objective must "
                "return the state with the structure, shapes and dtypes that it got",
                path,
            )
    return {name: mean.nothing() for name, mean in means.items()}


def _kind(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{jnp.result_type(leaf)} {list(jnp.shape(leaf))}"
