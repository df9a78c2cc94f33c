"""One step of the training loop.

    1  draw a batch of x and y          draw_batch
    2  forward pass: y_pred             Supervised.forward
    3  loss: how far y_pred is from y   Supervised.score
    4  update all weights               update_weights, which counts the step

`train_step` does all four; 2 and 3 are inside the objective, because `jax.grad` needs them as one
function.
"""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, with_extra_args_support

from fdl.ops.rank_promotion import free_ranks
from fdl.optim import apply_updates
from fdl.train.accumulators import as_means, tallied
from fdl.train.checks import check_objective_given, check_opt_state, check_optimizer, check_run
from fdl.train.objective import report_of
from fdl.train.run import Run, draw_batch
from fdl.typing import Array, Batch, Objective


def train_step(
    objective: Objective, optimizer: GradientTransformation, run: Run, data: Batch, batch_size: int
) -> tuple[Run, dict[str, Any]]:
    """One step: draw a batch, forward pass, loss, update. Pure; jit, scan, vmap and grad it freely.

    If the loss is not finite, the state stays as it was. Whether the parameters move is up to the
    optimizer: see `fdl.optim.apply_if_finite`.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      optimizer: from fdl or optax; it gets the keyword arguments value, grad and value_fn if it
        takes any.
      run: the run before the step.
      data: a pytree of arrays [N, ...].
      batch_size: B, an int >= 1.

    Returns:
      (run, means): the run one step on; and the loss and metrics of the batch before the update,
      name -> `Mean` or `Tally`.

    Raises:
      TypeError: an argument in the wrong place.
      ValueError: a batch_size below 1, an objective that gives something else, or a run of another
        optimizer.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain, start
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> run = start(jnp.array(0.0), sgd(0.5))
      >>> run, means = train_step(objective, sgd(0.5), run, data=jnp.ones(8), batch_size=4)
      >>> float(means["loss"].value()), float(run.params)
      (1.0, 1.0)

    Source: Chollet 2021, "Deep Learning with Python", section 2.4, the training loop.
    """
    check_objective_given("train_step", objective)
    check_optimizer("train_step", optimizer)
    check_run("train_step", run)
    batch = draw_batch(data, run.seed, run.step, batch_size)
    key = jax.random.fold_in(jax.random.key(run.seed), run.step)

    def loss_of(params: Any) -> Any:
        loss, state, metrics = report_of(objective, params, run.state, batch, key)
        return loss, (state, metrics)

    with free_ranks():
        (loss, (state, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(run.params)
    state = _state_if_finite(loss, state, run.state)
    run = update_weights(
        optimizer,
        run,
        gradients,
        value=loss,
        grad=gradients,
        value_fn=lambda params: loss_of(params)[0],
    )
    return run._replace(state=state), tallied(as_means(loss, metrics))


def update_weights(
    optimizer: GradientTransformation, run: Run, gradients: Any, **extra_args: Any
) -> Run:
    """Step 4: move all weights so that the loss on this batch falls slightly, and count the step.

    Args:
      optimizer: from fdl or optax.
      run: the run before the update.
      gradients: a pytree like run.params.
      extra_args: keyword arguments for the optimizer, if it takes any; otherwise ignored.

    Returns:
      The run one step on, with new params and opt_state. Its state is unchanged: set a new one with
      `run._replace(state=...)`.

    Raises:
      TypeError: an argument in the wrong place.
      ValueError: a run of another optimizer.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import start
      >>> run = start(jnp.array(1.0), sgd(0.1))
      >>> run = update_weights(sgd(0.1), run, gradients=jnp.array(2.0))
      >>> float(run.params), int(run.step)
      (0.800000011920929, 1)
    """
    check_optimizer("update_weights", optimizer)
    check_run("update_weights", run)
    update = with_extra_args_support(optimizer).update
    try:
        with free_ranks():
            updates, opt_state = update(gradients, run.opt_state, run.params, **extra_args)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        check_opt_state("update_weights", optimizer, run.params, run.opt_state)
        raise
    step = run.step + jnp.uint32(1)
    return Run(apply_updates(run.params, updates), run.state, opt_state, step, run.seed)


def _state_if_finite(loss: Array, state: Any, before: Any) -> Any:
    """The new state, or the one before the step if the loss is not finite.

    The optimizer can skip a bad batch, but running statistics never recover from a NaN.
    """
    kinds = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (state, before)]
    if kinds[0] != kinds[1]:
        return state  # `fit` raises with the leaf's path.
    finite = jnp.isfinite(loss)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, before)
