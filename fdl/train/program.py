"""One program of many steps: what `fit` compiles."""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation

from fdl import paths
from fdl.core.compilation import weak_jit
from fdl.train.reports import added
from fdl.train.step import Run, train_step
from fdl.typing import Objective


@weak_jit(static=["objective", "optimizer", "batch_size"], donate=["run", "means"])
def advance(
    run: Run,
    means: dict[str, Any],
    data: Any,
    length: Any,
    *,
    objective: Objective,
    optimizer: GradientTransformation,
    batch_size: int,
) -> tuple[Run, dict[str, Any], jax.Array]:
    """The program behind `fit`: `length` steps, whose loss and metrics are added to `means`.

    `run` and `means` are overwritten; give copies of what is still needed. The third result is
    whether all parameters and the state are finite.
    """

    def body(_: Any, carry: Any) -> Any:
        run, means = carry
        run, new = one_step(
            run, data, objective=objective, optimizer=optimizer, batch_size=batch_size
        )
        return run, added(means, new)

    run, means = jax.lax.fori_loop(0, length, body, (run, means))
    return run, means, _sound((run.params, run.state))


def _sound(tree: Any) -> jax.Array:
    floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floating], bool).all()


@weak_jit(static=["objective", "optimizer", "batch_size"], inline=True)
def one_step(
    run: Run, data: Any, *, objective: Any, optimizer: Any, batch_size: int
) -> tuple[Run, dict[str, Any]]:
    """`train_step` as a part of `advance`: traced once for the shapes of its result and for it."""
    return train_step(objective, optimizer, run, data, batch_size)


def zero_means(run: Any, after: Any, means: Any) -> Any:
    """Zeros to add the means of steps to, if a step gives back a run like the one it was given.

    Args:
      run: before a step.
      after: the shapes of the run after it.
      means: the shapes of what it reports.

    Raises:
      PathError: a leaf of another shape or dtype after the step, or none.
    """
    given, given_back = paths.leaves(run), paths.leaves(after)
    for path in sorted({*given, *given_back}):
        had, got = given.get(path), given_back.get(path)
        if had is None or got is None or (had.shape, had.dtype) != (got.shape, got.dtype):
            raise paths.PathError(
                f"expected a step to leave {_said(had)}, got {_said(got)}; the objective must give "
                "back the state in the tree, shapes and dtypes in which it came",
                path,
            )
    return {name: mean.nothing() for name, mean in means.items()}


def _said(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"
