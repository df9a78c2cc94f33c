"""Predicates for `bisect`: functions of a run that are False at first, and True later."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.train.checks import check_objective_given, check_run
from fdl.train.evaluation import evaluate
from fdl.train.run import Run
from fdl.typing import Batch, Objective


def not_finite(run: Run) -> bool:
    """Whether the params or the state of a run have a NaN or an infinity, or opt_state has a NaN.

    An infinity in opt_state does not count, because some optimizers begin with one.

    Args:
      run: a run, or a result of `fit`.

    Returns:
      A bool.

    Raises:
      TypeError: run is neither.

    Example:
      >>> import fdl
      >>> run = fdl.start(jnp.array([0.5, jnp.nan]), fdl.sgd(0.1))
      >>> not_finite(run), not_finite(run._replace(params=jnp.zeros(2)))
      (True, False)
    """
    check_run("not_finite", run)
    run = getattr(run, "run", run)
    return _any(jnp.isnan, run) or _any(jnp.isinf, (run.params, run.state))


def _any(test: Callable[[Any], jax.Array], tree: Any) -> bool:
    """Whether a floating number in the tree passes the test. Keys and integers are ignored."""
    floating = lambda x: jnp.issubdtype(getattr(x, "dtype", jnp.float32), jnp.inexact)  # noqa: E731
    return any(bool(test(leaf).any()) for leaf in jax.tree.leaves(tree) if floating(leaf))


def loss_above(
    objective: Objective, data: Batch, limit: float, *, name: str = "loss"
) -> Callable[[Run], bool]:
    """A predicate: whether the loss of a run is above a limit, or is NaN.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      data: a pytree of arrays [N, ...], on which `fdl.evaluate` computes the loss.
      limit: a number.
      name: "loss", or the name of a metric of the objective.

    Returns:
      A function `run -> bool`.

    Raises:
      TypeError: objective is not an objective.
      OptionError: limit is not a number.
      ValueError: data or name is wrong; the returned function raises it.

    Example:
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> far = loss_above(objective, jnp.ones(4), 0.25)
      >>> [far(fdl.start(jnp.float32(w), fdl.sgd(0.1))) for w in (0.4, 0.6, jnp.nan)]
      [True, False, True]
    """
    check_objective_given("loss_above", objective)
    check_number("loss_above", "limit", limit, "[-inf, inf]", "pass the largest loss to accept")

    def above(run: Run) -> bool:
        found = evaluate(objective, run, data)
        if name not in found:
            raise ValueError(
                f"loss_above: expected name to be one of {', '.join(found)}, got {name!r}; choose "
                "one of these, or add the metric to the objective"
            )
        return math.isnan(found[name]) or found[name] > limit

    return above
