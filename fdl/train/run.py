"""A training run as one value, and the batch that each step of a run draws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.checks import (
    amount,
    check_count,
    check_uint32,
    described,
    is_concrete_number,
    named_in_errors,
)
from fdl.data import length, stream
from fdl.data.arrays import to_jax
from fdl.ops.rank_promotion import free_ranks
from fdl.optim.lifting import check_params
from fdl.train.checks import check_optimizer, check_params_given, check_state_given
from fdl.typing import Batch


class Run(NamedTuple):
    """A training run as one pytree. Saving this pytree saves all that is needed to continue.

    Args:
      params: a pytree of floating arrays, which the optimizer updates.
      state: a pytree of arrays that a forward pass in training updates, such as running statistics.
        It is `{}` if the network has no state.
      opt_state: the optimizer's state.
      step: uint32 scalar, the number of steps taken.
      seed: uint32 scalar. The batch and all random numbers of a step are a function of (seed,
        step).
      layout: how the arrays are split over several devices, from `fdl.distributed.place`; None on
        one device. It contains no arrays, and a checkpoint does not save it.

    Example:
      >>> from fdl.optim import sgd
      >>> run = start({"w": jnp.ones(3)}, sgd(0.1), seed=7)
      >>> int(run.step), int(run.seed), run.state
      (0, 7, {})
    """

    params: Any
    state: Any
    opt_state: Any
    step: Any
    seed: Any
    layout: Any = None

    def __repr__(self) -> str:
        step, seed = (
            int(x) if is_concrete_number(x) else described(x) for x in (self.step, self.seed)
        )
        parts = (f"{part}: {amount(getattr(self, part))}" for part in self._fields[:3])
        return f"<Run at step {step} of seed {seed}; {', '.join(parts)}>"


def start(
    params: Any, optimizer: GradientTransformation, *, state: Any = None, seed: Any = 0
) -> Run:
    """Makes a new run, at step 0.

    Args:
      params: a pytree of floating arrays, for example from `Layer.init`.
      optimizer: from fdl or optax.
      state: a pytree of arrays, for example from `Layer.init`. None means `{}`.
      seed: an int in [0, 2**32), or a scalar integer array, which may be traced.

    Returns:
      A `Run` whose opt_state is `optimizer.init(params)`.

    Raises:
      TypeError: an argument is in the wrong place, for example a layer in place of params.
      ValueError: a parameter is an integer (the message gives its path), or the seed is not an
        integer in [0, 2**32).

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
    seed = check_uint32("start", "a seed", seed, "take it modulo 2**32")
    return Run(params, state, opt_state, step, seed)


class Stacked(NamedTuple):
    """The batches of consecutive steps, from which `draw_batch` takes the batch of a step.

    Args:
      batches: a pytree of arrays [K, B, ...].
      first: uint32 scalar, the step of the first batch.
    """

    batches: Any
    first: Any


@named_in_errors
def draw_batch(data: Batch, seed: Any, step: Any, batch_size: int) -> Batch:
    """Step 1 of the training loop: draws the batch of a step, which depends only on (seed, step).

    Args:
      data: a pytree of arrays [N, ...].
      seed: an int in [0, 2**32), or a scalar integer array.
      step: an int in [0, 2**32), or a scalar integer array; the first step is 0.
      batch_size: B, an int >= 1.

    Returns:
      A pytree with the structure of data and arrays [B, ...]: the examples at the indices that
      `fdl.data.stream` gives.

    Raises:
      ValueError: batch_size is not an int >= 1, seed or step is out of range, or
        `fdl.data.length(data)` raises.

    Example:
      >>> sorted(draw_batch(jnp.arange(4), seed=0, step=0, batch_size=4).tolist())
      [0, 1, 2, 3]
    """
    if isinstance(data, Stacked):
        at = jnp.asarray(step, jnp.uint32) - data.first
        pick = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, 0, keepdims=False)  # noqa: E731
        return jax.tree.map(pick, data.batches)
    batch_size = check_count("draw_batch", "batch_size", batch_size, "say how many examples")
    data = to_jax(data, "draw_batch")
    with free_ranks():
        rows = stream(seed, step, batch_size, length(data))
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), data)


def many(run: Run) -> bool:
    """Whether a run is laid out over the devices of several processes."""
    return run.layout is not None and jax.process_count() > 1


def speaks(run: Run) -> bool:
    """Whether this process prints and writes files for a run: the first of its processes."""
    return not many(run) or jax.process_index() == 0


def laid_out(run: Run, means: Any) -> tuple[Run, Any]:
    """In a compiled program: the run in its layout, and the means on every device."""
    if run.layout is None:
        return run, means
    return run.layout.keep(run), run.layout.everywhere(means)


def beside(tree: Any, run: Run) -> Any:
    """Puts arrays on every device of a run; returns them unchanged if the run is on one device."""
    return tree if run.layout is None else run.layout.put_everywhere(tree)


def copied(tree: Any) -> Any:
    """Copies all arrays to new JAX arrays, for a compiled function that overwrites its inputs."""
    return jax.tree.map(_copied, tree)


def _copied(leaf: Any) -> jax.Array:
    """A copy of one array, without a weak type."""
    if not isinstance(leaf, jax.Array):
        return jax.device_put(np.array(leaf))
    if leaf.weak_type or not leaf.is_fully_addressable:
        return _computed(leaf)
    return jax.device_put(leaf, may_alias=False)  # no program for each shape, unlike `jnp.array`


@jax.jit
def _computed(leaf: jax.Array) -> jax.Array:
    return jnp.array(leaf, dtype=leaf.dtype, copy=True)
