"""One optimizer over a grid of rates and seeds: every member a training run, all in one program.

R learning rates, S seeds, P records of a training run.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.optim.evaluation import eval_params, has_eval_params
from fdl.ranks import free_ranks
from fdl.train.evaluate import BATCH_SIZE, looks_around, totals
from fdl.train.means import added
from fdl.train.objective import Objective
from fdl.train.program import zero_means
from fdl.train.step import Run, own, train_step
from fdl.weak_jit import weak_jit

# All share the number of the step, and the rates of one seed its batches. Where those have no axis
# of their own, a batch is drawn once for all rates.
OF_SEEDS = Run(params=0, state=0, opt_state=0, step=None, seed=0)
OF_RATES = OF_SEEDS._replace(seed=None)


class Trained(NamedTuple):
    """What a grid did.

    Args:
      run: of every member, [R, S, ...]; its step is that of all, its seeds [S].
      curves: name -> [R, S, P].
      seconds: in the steps alone, without compilation and evaluation.
      compile_seconds: of the program of the steps.
    """

    run: Run
    curves: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float


def train_grid(
    objective: Objective,
    make: Callable[[Any], GradientTransformation],
    begun: tuple[Any, Any],
    data: Any,
    validation: Any,
    *,
    rates: np.ndarray,
    seeds: np.ndarray,
    batch_size: int,
    records: np.ndarray,
) -> Trained:
    """Trains R * S members; see `compare_optimizers` for what is not said here.

    Args:
      objective: as for `fit`.
      make: rate -> optimizer.
      begun: (params, state) of every seed, stacked: [S, ...].
      data: a pytree of arrays [N, ...].
      validation: the same, or None.
      rates: [R].
      seeds: [S].
      batch_size: B.
      records: [P], rising: the steps at which a record is taken.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> trained = train_grid(
      ...     objective, sgd, (jnp.zeros(2), {}), jnp.ones(8), None, rates=np.array([0.25, 0.5]),
      ...     seeds=np.array([0, 1]), batch_size=4, records=np.array([1, 2]))
      >>> trained.curves["loss"][:, 0].tolist()
      [[1.0, 0.25], [1.0, 0.0]]
    """
    member_rates = jnp.asarray(rates)
    run = _start(make, member_rates, seeds, *begun)
    program, compile_seconds = _compiled(objective, make, batch_size, member_rates, run, data)
    evaluation = {"objective": objective, "batch_size": BATCH_SIZE, "whole": False}
    if validation is not None:
        params, state = jax.tree.map(lambda leaf: leaf[0], begun)
        if looks_around(objective, params, state, validation):
            evaluation |= {"batch_size": batch_size, "whole": True}
    rows, taken, seconds = [], 0, 0.0
    for step in records:
        before = time.perf_counter()
        run, means = jax.block_until_ready(program(member_rates, run, data, np.int32(step - taken)))
        seconds += time.perf_counter() - before
        taken = step
        row = _values(means)
        if validation is not None:
            scores = _evaluated(*_tested(run), validation, **evaluation)
            row |= {f"val_{name}": value for name, value in _values(scores).items()}
        rows.append(row)
    curves = {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}
    return Trained(run, curves, seconds, compile_seconds)


def _start(make: Any, rates: Any, seeds: Any, params: Any, state: Any) -> Run:
    """The members at step 0, their arrays [R, S, ...], each with a buffer of its own to donate."""
    over_seeds = jax.vmap(lambda rate, params: make(rate).init(params), (None, 0))
    with free_ranks():
        opt_state = jax.jit(jax.vmap(over_seeds, (0, None)))(rates, params)
    wide = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (len(rates), *leaf.shape)), (params, state)
    )
    begin, own_seeds = jnp.zeros((), jnp.uint32), jnp.asarray(seeds, jnp.uint32)
    return own(Run(wide[0], wide[1], opt_state, begin, own_seeds))


def _compiled(
    objective: Any, make: Any, batch_size: int, rates: Any, run: Run, data: Any
) -> tuple[Callable[..., Any], float]:
    """The program of a number of steps, and how long it took to make.

    Compiled ahead of time, so that it is gone from memory with the last reference to it.
    """

    @functools.partial(jax.jit, inline=True)
    def step(rate: Any, run: Run, data: Any) -> tuple[Run, dict[str, Any]]:
        # As a jitted function it is traced once for both the shapes of its result and the program.
        return train_step(objective, make(rate), run, data, batch_size)

    def steps(rate: Any, run: Run, data: Any, length: Any) -> tuple[Run, dict[str, Any]]:
        def body(_: Any, carry: Any) -> Any:
            run, means = carry
            run, new = step(rate, run, data)
            return run, added(means, new)

        none_yet = zero_means(run, *step.eval_shape(rate, run, data))
        return jax.lax.fori_loop(0, length, body, (run, none_yet))

    over_seeds = jax.vmap(steps, (None, OF_SEEDS, None, None), (OF_SEEDS, 0))
    over_rates = jax.vmap(over_seeds, (0, OF_RATES, None, None), (OF_RATES, 0))
    before = time.perf_counter()
    with free_ranks():
        lowered = jax.jit(over_rates, donate_argnums=1).lower(rates, run, data, np.int32(1))
    return lowered.compile(), time.perf_counter() - before


@weak_jit(static=["objective", "batch_size", "whole"])
def _evaluated(params: Any, state: Any, data: Any, **how: Any) -> dict[str, Any]:
    # The same shapes whatever the optimizer: compiled once for all of them.
    one = functools.partial(totals, **how)
    return jax.vmap(jax.vmap(one, (0, 0, None)), (0, 0, None))(params, state, data)


def _tested(run: Run) -> tuple[Any, Any]:
    """The parameters that are to be tested, and the network's state."""
    if not has_eval_params(run.opt_state, run.params):
        return run.params, run.state
    return jax.vmap(jax.vmap(eval_params))(run.opt_state, run.params), run.state


def _values(means: dict[str, Any]) -> dict[str, np.ndarray]:
    of_one = lambda means: {name: mean.value() for name, mean in means.items()}  # noqa: E731
    found = jax.vmap(jax.vmap(of_one))(means)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}
