"""The loss after training as a differentiable function of the hyper-parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fdl.checks import check_count, described
from fdl.data.arrays import to_jax
from fdl.ops.rank_promotion import free_ranks
from fdl.optim.wrappers.evaluation_params import eval_params, has_eval_params
from fdl.train.checks import check_objective_given, check_run
from fdl.train.evaluation import check_objective
from fdl.train.members import Make
from fdl.train.objective import report_of
from fdl.train.run import Run
from fdl.train.step import train_step
from fdl.typing import Batch, Objective


def outcome(
    objective: Objective,
    make: Make,
    run: Run,
    data: Batch,
    validation: Batch,
    *,
    steps: int,
    batch_size: int = 128,
) -> Callable[..., jax.Array]:
    """A function `hyper-parameters -> validation loss` that trains a network when it is called.

    The function is pure, so `jax.grad` of it gives the gradient of the validation loss with respect
    to the hyper-parameters, through all steps of training. `jit` and `vmap` work on it too.

    For the gradient, the steps are computed again, in about sqrt(steps) segments, so that the
    memory grows only with sqrt(steps).

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      make: a function of named hyper-parameters that gives an optimizer, for example `fdl.adam`, or
        `lambda logs: fdl.sgd(lambda count: jnp.exp(logs[count // 10]))` for a schedule.
      run: the run before the first step, from `start` with any optimizer that `make` gives.
      data: a pytree of arrays [N, ...].
      validation: data with the structure of `data`, which go through the network as one batch.
      steps: the number of steps, an int >= 1.
      batch_size: B, an int >= 1.

    Returns:
      A function `after(settings, weights=None)` that gives a scalar:

      - settings: a dict, name -> number or array, which `make` gets as keyword arguments.
      - weights: [N], a weight >= 0 for each example. These weights replace those of the data. The
        data must then be `(x, y)`, `(x, y, weight)` or a dict.

    Raises:
      TypeError: an argument is in the wrong place; or settings is not a dict.
      ValueError: an argument is wrong, or the data cannot be trained on.
      PathError: the model cannot take the data; the message gives the path of the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain, start
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> run = start(jnp.array(0.0), sgd(0.1))
      >>> after = outcome(objective, sgd, run, jnp.ones(8), jnp.ones(8), steps=1, batch_size=4)
      >>> slope = jax.grad(after)({"learning_rate": 0.1})
      >>> round(float(slope["learning_rate"]), 4)  # the derivative of (1 - 2 rate)^2
      -3.2

    Source: Maclaurin, Duvenaud and Adams 2015, "Gradient-based Hyperparameter Optimization through
    Reversible Learning", arXiv 1502.03492; Chen, Xu, Zhang and Guestrin 2016, "Training Deep Nets
    with Sublinear Memory Cost", arXiv 1604.06174, for the segments.
    """
    check_objective_given("outcome", objective)
    check_run("outcome", run)
    run = getattr(run, "run", run)
    check_objective(objective, run.params, run.state, data)
    check_objective(objective, run.params, run.state, validation)
    data, validation = to_jax(data, "outcome"), to_jax(validation, "outcome", "validation data")
    steps = check_count("outcome", "steps", steps, "say how many steps to train")
    batch_size = check_count("outcome", "batch_size", batch_size, "say how many examples per step")

    def after(settings: Mapping[str, Any], weights: Any = None) -> jax.Array:
        if not isinstance(settings, Mapping):
            raise TypeError(
                f"outcome: expected settings as a dict, name -> number, got {described(settings)}; "
                "pass {'learning_rate': 0.1}, for example"
            )
        optimizer = make(**settings)
        examples = data if weights is None else _weighted(data, weights)
        step = lambda run: train_step(objective, optimizer, run, examples, batch_size)[0]  # noqa: E731
        with free_ranks():
            end = _repeated(step, run, steps)
            params = end.params
            if has_eval_params(end.opt_state, params):
                params = eval_params(end.opt_state, params)
            return report_of(objective, params, end.state, validation, None)[0]

    return after


def _repeated(step: Callable[[Run], Run], run: Run, steps: int) -> Run:
    """Applies `step` in about sqrt(steps) segments; only the run before each segment is kept."""
    size = math.isqrt(steps)
    segment = jax.checkpoint(lambda run, _: _scanned(step, run, size))
    run, _ = jax.lax.scan(segment, run, None, steps // size)
    rest = jax.checkpoint(lambda run: _scanned(step, run, steps % size)[0])
    return rest(run) if steps % size else run


def _scanned(step: Callable[[Run], Run], run: Run, steps: int) -> tuple[Run, None]:
    return jax.lax.scan(lambda run, _: (jax.checkpoint(step)(run), None), run, None, steps)


def _weighted(data: Batch, weights: Any) -> Batch:
    """The data with a weight for each example."""
    if isinstance(data, Mapping):
        return {**data, "weight": weights}
    if isinstance(data, tuple) and len(data) in (2, 3):
        return (*data[:2], weights)
    raise TypeError(
        f"outcome: expected data (x, y) or a dict when weights are passed, got {described(data)}; "
        "leave the weights out, or pass the targets too"
    )
