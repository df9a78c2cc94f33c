"""One step of the training loop, and the one value that a training run is.

    1  draw a batch of x and y          draw_batch
    2  forward pass: y_pred             Supervised.forward
    3  loss: how far y_pred is from y   Supervised.score
    4  update all weights               update_weights, which counts the step

`train_step` composes the four; 2 and 3 are inside the objective, which `jax.grad` takes whole.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation, with_extra_args_support

from fdl.checks import amount, check_count, is_count, known, said
from fdl.data import length, stream
from fdl.data.arrays import to_jax
from fdl.ops.rank_promotion import free_ranks
from fdl.optim import apply_updates
from fdl.optim.lifting import check_params
from fdl.paths import shortened
from fdl.train.checks import (
    check_objective_given,
    check_opt_state,
    check_optimizer,
    check_params_given,
    check_run,
    check_state_given,
)
from fdl.train.objective import report_of
from fdl.train.reports import as_means, tallied
from fdl.typing import Objective


class Run(NamedTuple):
    """All of a training run in one pytree; there is nothing else to save.

    Args:
      params: what the optimizer moves.
      state: what a training forward pass moves; `{}` if nothing.
      opt_state: the optimizer's.
      step: uint32 scalar, how many steps were taken.
      seed: uint32 scalar; every batch and every random bit of a step is a function of both.
    """

    params: Any
    state: Any
    opt_state: Any
    step: Any
    seed: Any

    def __repr__(self) -> str:
        step, seed = (int(x) if known(x) else said(x) for x in (self.step, self.seed))
        parts = (f"{part}: {amount(getattr(self, part))}" for part in self._fields[:3])
        return f"<Run at step {step} of seed {seed}; {', '.join(parts)}>"


def start(
    params: Any, optimizer: GradientTransformation, *, state: Any = None, seed: Any = 0
) -> Run:
    """A run at step 0.

    Args:
      params: a pytree of floating arrays, of `Layer.init` or anyone's own.
      optimizer: fdl's or optax's.
      state: of `Layer.init`, if there is any.
      seed: an integer in [0, 2**32), also as a scalar array: that of another run, or traced.

    Raises:
      ValueError: an integer parameter, with its path; a seed that is not an integer in range.

    Example:
      >>> from fdl.optim import sgd
      >>> int(start({"w": jnp.ones(3)}, sgd(0.1)).step)
      0
    """
    check_params_given("start", params)
    check_optimizer("start", optimizer)
    check_params("start", params)
    state = {} if state is None else state
    check_state_given("start", state)
    step = jnp.zeros((), jnp.uint32)
    with free_ranks():
        opt_state = optimizer.init(params)
    return Run(params, state, opt_state, step, _seed("start", seed))


def draw_batch(data: Any, seed: Any, step: Any, batch_size: int) -> Any:
    """Step 1 of the training loop: draw a batch, a function of (seed, step) alone.

    Args:
      data: a pytree of arrays [N, ...].
      seed: uint32 scalar.
      step: uint32 scalar.
      batch_size: B, a Python number.

    Returns:
      As data, each leaf [B, ...]: see `fdl.data.stream` for which rows.

    Example:
      >>> sorted(draw_batch(jnp.arange(4), 0, 0, 4).tolist())
      [0, 1, 2, 3]
    """
    batch_size = check_count("draw_batch", "batch_size", batch_size, "say how many examples")
    data = to_jax(data, "draw_batch")
    with free_ranks():
        rows = stream(seed, step, batch_size, length(data))
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)


def update_weights(
    optimizer: GradientTransformation, run: Run, gradients: Any, **extra_args: Any
) -> Run:
    """Step 4: move all weights so that the loss on this batch falls slightly, and count the step.

    Args:
      optimizer: fdl's or optax's.
      run: the parameters, the optimizer's state and the step are read.
      gradients: as run.params.
      extra_args: handed to the optimizer, if it takes any.

    Returns:
      The run one step on, with new parameters and optimizer state, so that `draw_batch` gives the
      next batch. The network's state is not the optimizer's: `run._replace(state=...)`.

    Example:
      >>> from fdl.optim import sgd
      >>> run = start(jnp.array(1.0), sgd(0.1))
      >>> float(update_weights(sgd(0.1), run, jnp.array(2.0)).params)
      0.800000011920929
      >>> int(update_weights(sgd(0.1), run, jnp.array(2.0)).step)
      1
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


def train_step(
    objective: Objective, optimizer: GradientTransformation, run: Run, data: Any, batch_size: int
) -> tuple[Run, dict[str, Any]]:
    """One step: draw a batch, forward pass, loss, update. Pure; jit, scan, vmap and grad it freely.

    Where the loss is not finite, the state stays as it was. What becomes of the parameters is up to
    the optimizer: see `fdl.optim.apply_if_finite`.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      optimizer: fdl's or optax's.
      run: where training stands.
      data: a pytree of arrays [N, ...].
      batch_size: B, a Python number.

    Returns:
      (the run one step on, the loss and metrics of the batch before the update).

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train.objective import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> run = start(jnp.array(0.0), sgd(0.5))
      >>> run, means = train_step(objective, sgd(0.5), run, jnp.ones(8), 4)
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
    state = _unless_spoilt(loss, state, run.state)
    run = update_weights(
        optimizer,
        run,
        gradients,
        value=loss,
        grad=gradients,
        value_fn=lambda params: loss_of(params)[0],
    )
    return run._replace(state=state), tallied(as_means(loss, metrics))


def _unless_spoilt(loss: Any, state: Any, before: Any) -> Any:
    """The new state, or the one before where the loss is not finite.

    An optimizer can leave out a bad batch; running statistics with a NaN in them never recover.
    """
    kinds = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (state, before)]
    if kinds[0] != kinds[1]:
        return state  # `fit` will name the leaf.
    sound = jnp.isfinite(loss)
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), state, before)


def _seed(who: str, seed: Any) -> jax.Array:
    """A seed as a uint32 scalar; a traced one is taken as it is."""
    if isinstance(seed, jax.core.Tracer):
        if jnp.issubdtype(seed.dtype, jnp.integer) and seed.shape == ():
            return seed.astype(jnp.uint32)
    elif isinstance(seed, jax.Array | np.ndarray) and seed.shape == ():
        seed = seed.item()
    if not is_count(seed, least=0) or seed >= 2**32:
        raise ValueError(
            f"{who}: expected a seed, an integer in [0, 2**32), got {shortened(repr(seed), 200)}; "
            "take it modulo 2**32"
        )
    return jnp.uint32(seed)


def own(tree: Any) -> Any:
    """A copy of every array, for a program that will overwrite its arguments."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf.copy()
        leaf = jnp.asarray(leaf)
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(copy, tree)
