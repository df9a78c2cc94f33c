"""One step of the training loop.

    1  draw a batch of x and y          draw_batch
    2  forward pass: y_pred             Supervised.forward
    3  loss: how far y_pred is from y   Supervised.score
    4  update all weights               update_weights, which also increments run.step

`train_step` does all four. Parts 2 and 3 are inside the objective, because `jax.grad` needs them in
one function.
"""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, with_extra_args_support

from fdl.checks import check_count
from fdl.ops.rank_promotion import free_ranks
from fdl.optim import apply_updates
from fdl.train.checks import check_objective_given, check_opt_state, check_optimizer, check_run
from fdl.train.microbatches import in_pieces, whole
from fdl.train.run import Run, draw_batch, laid_out
from fdl.typing import Array, Batch, Objective


def train_step(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run,
    data: Batch,
    batch_size: int,
    microbatch: int | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Takes one training step: draws a batch, computes the loss, and updates the weights.

    This is a pure function; jit, scan, vmap and grad can transform it.

    If the loss is not finite, the state is not changed. Whether the parameters change in this case
    depends on the optimizer; see `fdl.optim.apply_if_finite`.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      optimizer: from fdl or optax. If its update takes keyword arguments, it gets value, grad and
        value_fn.
      run: the run before the step.
      data: a pytree of arrays [N, ...].
      batch_size: B, an int >= 1.
      microbatch: a divisor of B. The gradient is then computed for that many examples at a time,
        which needs less memory. The loss and the gradient are those of the whole batch; but batch
        norm sees one microbatch at a time, and random numbers differ. None means all B examples at
        once.

    Returns:
      (run, means). run is the run after the step. means is a dict, name -> `Mean` or `Tally`, of
      the loss and metrics of the batch, computed before the update.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: batch_size is below 1, microbatch does not divide it, the objective returns a
        wrong value, or the run was started with a different optimizer.

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
    if run.layout is not None:
        batch = run.layout.cut(batch)
    key = jax.random.fold_in(jax.random.key(run.seed), run.step)
    with free_ranks():
        if microbatch is None:
            passed = whole(objective, run, batch, key)
        else:
            microbatch = check_microbatch("train_step", microbatch, batch_size)
            passed = in_pieces(objective, run, batch, key, microbatch)
    state = _state_if_finite(passed.loss, passed.state, run.state)
    run = update_weights(
        optimizer,
        run,
        passed.gradients,
        value=passed.loss,
        grad=passed.gradients,
        value_fn=passed.loss_of,
    )
    return laid_out(run._replace(state=state), passed.means)


def check_microbatch(who: str, microbatch: Any, batch_size: int) -> int:
    """Raises unless `microbatch` is a divisor of the batch size; returns it as an int."""
    remedy = "leave it out to compute the gradient of the whole batch at once"
    microbatch = check_count(who, "microbatch", microbatch, remedy)
    if batch_size % microbatch:
        raise ValueError(
            f"{who}: expected a microbatch that divides the batch of {batch_size}, got "
            f"{microbatch}; every microbatch needs the same number of examples"
        )
    return microbatch


def update_weights(
    optimizer: GradientTransformation, run: Run, gradients: Any, **extra_args: Any
) -> Run:
    """Step 4 of the training loop: updates all weights, and increments `run.step`.

    The update changes the weights so that the loss on the batch becomes slightly smaller.

    Args:
      optimizer: from fdl or optax.
      run: the run before the update.
      gradients: a pytree with the structure and shapes of run.params.
      extra_args: keyword arguments for the optimizer's update; ignored if it takes none.

    Returns:
      The run with new params, a new opt_state, and step increased by 1. `run.state` is unchanged;
      set a new state with `run._replace(state=...)`.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: the run was started with a different optimizer.

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
    params = apply_updates(run.params, updates)
    return run._replace(params=params, opt_state=opt_state, step=step)


def _state_if_finite(loss: Array, state: Any, before: Any) -> Any:
    """The new state if the loss is finite, otherwise the state before the step.

    Running statistics never recover from a NaN. The parameters need no such check here, because an
    optimizer can skip an update that is not finite.
    """
    kinds = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (state, before)]
    if kinds[0] != kinds[1]:
        return state  # `fit` raises an error with the path of the leaf that changed its shape
    finite = jnp.isfinite(loss)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, before)
