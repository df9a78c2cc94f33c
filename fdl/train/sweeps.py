"""Sweeps: an optimizer over a grid of learning rates and seeds, as one compiled program.

R learning rates, S seeds, P records of a training run.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl.checks import check_count, counted, is_count, is_number, said
from fdl.core.compilation import weak_jit
from fdl.data.arrays import to_jax
from fdl.ops.rank_promotion import free_ranks
from fdl.optim.lifting import check_params
from fdl.optim.wrappers.evaluation_params import eval_params, has_eval_params
from fdl.train.accumulators import added
from fdl.train.checks import check_mode, check_objective_given
from fdl.train.evaluation import BATCH_SIZE, check_objective, mixes_examples, totals
from fdl.train.loop import BATCH_SIZE_REMEDY, last_step
from fdl.train.program import zero_means
from fdl.train.run import Run, copied
from fdl.train.step import train_step
from fdl.typing import Objective

Make = Callable[[Any], GradientTransformation]
"""`rate -> optimizer`."""

# The axes of `vmap`. All networks share the step, and all rates share the seed, so a batch is drawn
# once for all rates.
OF_SEEDS = Run(params=0, state=0, opt_state=0, step=None, seed=0)
OF_RATES = OF_SEEDS._replace(seed=None)


class Comparison(NamedTuple):
    """How one optimizer trained at each learning rate from each seed.

    Args:
      rates: [R], float64, rising.
      seeds: [S].
      steps: [P], the step of each record.
      curves: name -> [R, S, P]: the training loss and metrics, as means since the record before,
        and the validation loss and metrics under `val_...`. Not finite if a network diverged.
      monitor: the name of the curve that decided which rate is best.
      best: the index of the best rate; None if at every rate some seed diverged.
      steps_to_target: [R, S], the step of the first record that met the target, infinite if none
        did; None without a target.
      seconds_per_step: seconds for one step of one network, with all R * S trained at once.
      compile_seconds: seconds for tracing and compiling the program.
    """

    rates: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    monitor: str
    best: int | None
    steps_to_target: np.ndarray | None
    seconds_per_step: float
    compile_seconds: float

    def __repr__(self) -> str:
        best = None if self.best is None else float(f"{self.rates[self.best]:.4g}")
        return (
            f"<Comparison of {len(self.rates)} rates and {len(self.seeds)} seeds, "
            f"{int(self.steps[-1])} steps; best rate: {best} by {self.monitor}>"
        )

    def final(self, name: str) -> np.ndarray:
        """The last values of a curve, [R, S]."""
        return self.curves[name][..., -1]

    def diverged(self) -> np.ndarray:
        """Whether a network ended with a loss or metric that is not finite, bool [R, S]."""
        return ~_finite(self.curves)


class Trained(NamedTuple):
    """What `train_grid` returns.

    Args:
      run: one run of all networks: params, state and opt_state [R, S, ...], step [], seed [S].
      curves: name -> [R, S, P].
      seconds: for the steps, without compilation and evaluation.
      compile_seconds: for tracing and compiling the program of the steps.
    """

    run: Run
    curves: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float


def compare_optimizers(
    objective: Objective,
    init: Callable[[int], tuple[Any, Any]],
    data: Any,
    optimizers: Mapping[str, Make],
    *,
    rates: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    validation: Any = None,
    record_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    target: float | None = None,
) -> dict[str, Comparison]:
    """Trains with each optimizer at each learning rate from each seed.

    All R * S networks of an optimizer train at once, in one compiled program. Each gets the
    parameters that `fit` would give from `start(params, make(rate), seed=seed)`; one that diverges
    does not change the others.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, as `supervised` makes
        it.
      init: seed -> (params, state), such as `lambda seed: model.init(jax.random.key(seed), x)`.
        With `lambda seed: (params, {})` all seeds begin with the same parameters.
      data: a pytree of arrays [N, ...].
      optimizers: name -> function of the rate, such as `fdl.adam` or
        `lambda rate: optax.sgd(rate, momentum=0.9)`. The rate is a traced scalar.
      rates: R numbers > 0, rising; a constant ratio between them is best.
      seeds: S different integers in [0, 2**32), of the parameters, the batches and all random
        numbers.
      batch_size: B, an int >= 1.
      epochs: passes over the data, >= 0: ceil(epochs * N / B) steps.
      steps: number of steps. Pass either epochs or steps.
      validation: data like `data`, evaluated at every record with the parameters that
        `fdl.optim.eval_params` gives.
      record_every: steps from one record to the next; None is one epoch.
      monitor: the metric that decides which rate is best, by its last value, averaged over seeds:
        of the validation data, or of training if there are none.
      mode: "min" if smaller values of the monitor are better, "max" if larger ones are.
      target: a value of the monitor; the steps until it is met are counted.

    Returns:
      name -> `Comparison`. `fdl.look.comparison_table` prints it, `fdl.look.rate_sensitivity` and
      `fdl.look.best_curves` draw it. Warns if the best rate is the smallest or the largest, because
      a better one may lie outside the grid.

    Raises:
      TypeError: an argument in the wrong place.
      ValueError: arguments or data that cannot be trained on.
      PathError: data that the model cannot take, with the path of the layer.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> found = compare_optimizers(
      ...     objective, init=lambda seed: (jnp.array(0.0), {}), data=jnp.ones(8),
      ...     optimizers={"sgd": sgd}, rates=[0.1, 0.5, 2.0], seeds=[0], batch_size=4, steps=4)
      >>> float(found["sgd"].rates[found["sgd"].best]), found["sgd"].diverged().tolist()
      (0.5, [[False], [False], [False]])

    Source: section 11.4 of Goodfellow, Bengio and Courville 2016, "Deep Learning", for the grid;
    Schmidt, Schneider and Hennig 2021, arXiv 2007.01547, for comparing by tuned rates and seeds.
    """
    check_objective_given("compare_optimizers", objective)
    _check_grid(optimizers, rates, seeds, mode)
    batch_size = check_count("compare_optimizers", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    if record_every is not None:
        remedy = "leave it out for one record an epoch"
        record_every = check_count("compare_optimizers", "record_every", record_every, remedy)
    begun = [_params_and_state(init, int(seed)) for seed in seeds]
    examples = check_objective(objective, *begun[0], data)
    if validation is not None:
        check_objective(objective, *begun[0], validation)
    last = last_step("compare_optimizers", examples, batch_size, epochs, steps)
    if last < 1:
        raise ValueError(
            "compare_optimizers: expected at least one step, got none; give more epochs or steps"
        )
    every = record_every or math.ceil(examples / batch_size)
    settings: dict[str, Any] = {
        "rates": np.asarray(rates, np.float64),
        "seeds": np.asarray(seeds),
        "batch_size": batch_size,
        "records": np.unique([*range(every, last, every), last]),
    }
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    data = to_jax(data, "compare_optimizers")
    validation = to_jax(validation, "compare_optimizers", "validation data")
    watched = monitor if validation is None else f"val_{monitor}"
    found = {}
    for name, make in optimizers.items():
        trained = train_grid(objective, make, stacked, data, validation, **settings)
        found[name] = _judged(trained, watched, mode, target, settings)
        _warn_at_the_edge(name, found[name])
    return found


def _check_grid(optimizers: Any, rates: Any, seeds: Any, mode: str) -> None:
    listed = isinstance(rates, Iterable) and all(map(is_number, rates))
    grid = np.asarray(rates if listed else [], np.float64)
    fine = grid.ndim == 1 and grid.size and np.isfinite(grid).all() and (grid > 0).all()
    if not fine or not (np.diff(grid) > 0).all():
        raise ValueError(
            f"compare_optimizers: expected rates [R], > 0 and rising, got {said(rates)}; "
            "np.geomspace(1e-4, 1, 9) is a wide grid to begin with"
        )
    listed = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    whole = [counted(seed) for seed in seeds] if listed else []
    whole_fine = all(is_count(seed, least=0) and seed < 2**32 for seed in whole)
    if not whole or not whole_fine or len(set(whole)) < len(whole):
        raise ValueError(
            f"compare_optimizers: expected different seeds in [0, 2**32), got {said(seeds)}; "
            "give range(3) or the like"
        )
    makers = isinstance(optimizers, Mapping)
    wrong = [make for make in optimizers.values() if not callable(make)] if makers else [optimizers]
    if wrong:
        raise TypeError(
            "compare_optimizers: expected optimizers as name -> a function of the rate, got "
            f"{said(wrong[0])}; pass {{'adam': fdl.adam}}, or a function such as lambda rate: "
            "fdl.sgd(rate, momentum=0.9)"
        )
    if not optimizers:
        raise ValueError(
            "compare_optimizers: expected at least one optimizer, got none; "
            "pass {'adam': fdl.adam} or the like"
        )
    check_mode("compare_optimizers", mode)


def _params_and_state(init: Callable[[int], tuple[Any, Any]], seed: int) -> tuple[Any, Any]:
    """(params, state) of `init(seed)`, checked."""
    if not callable(init):
        raise ValueError(
            f"compare_optimizers: expected init to be a function seed -> (params, state), got "
            f"{type(init).__name__}; for parameters of your own: lambda seed: (params, {{}})"
        )
    pair = init(seed)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(
            f"compare_optimizers: expected init to give (params, state), got "
            f"{type(pair).__name__}; the state of a network without any is {{}}"
        )
    check_params("compare_optimizers", pair[0])
    return pair


def train_grid(
    objective: Objective,
    make: Make,
    begun: tuple[Any, Any],
    data: Any,
    validation: Any,
    *,
    rates: np.ndarray,
    seeds: np.ndarray,
    batch_size: int,
    records: np.ndarray,
) -> Trained:
    """Trains the R * S networks of one optimizer; see `compare_optimizers`.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      make: rate -> optimizer.
      begun: (params, state) at step 0, stacked over seeds: [S, ...].
      data: a pytree of arrays [N, ...].
      validation: data like `data`, or None.
      rates: [R].
      seeds: [S].
      batch_size: B.
      records: [P], rising: the steps at which a record is made.
    """
    member_rates = jnp.asarray(rates)
    run = _start(make, member_rates, seeds, *begun)
    program, compile_seconds = _compiled(objective, make, batch_size, member_rates, run, data)
    evaluation = {"objective": objective, "batch_size": BATCH_SIZE, "whole": False}
    if validation is not None:
        params, state = jax.tree.map(lambda leaf: leaf[0], begun)
        if mixes_examples(objective, params, state, validation):
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
    """The networks at step 0, in arrays [R, S, ...] that the program may overwrite."""
    over_seeds = jax.vmap(lambda rate, params: make(rate).init(params), (None, 0))
    with free_ranks():
        opt_state = jax.jit(jax.vmap(over_seeds, (0, None)))(rates, params)
    wide = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (len(rates), *leaf.shape)), (params, state)
    )
    step, seed = jnp.zeros((), jnp.uint32), jnp.asarray(seeds, jnp.uint32)
    return copied(Run(wide[0], wide[1], opt_state, step, seed))


def _compiled(
    objective: Any, make: Any, batch_size: int, rates: Any, run: Run, data: Any
) -> tuple[Callable[..., Any], float]:
    """(the program of a number of steps, the seconds that its compilation took).

    Compiled ahead of time, so that it leaves the memory with the last reference to it.
    """

    @functools.partial(jax.jit, inline=True)
    def step(rate: Any, run: Run, data: Any) -> tuple[Run, dict[str, Any]]:
        # Jitted, so that `eval_shape` and the program share one trace.
        return train_step(objective, make(rate), run, data, batch_size)

    def steps(rate: Any, run: Run, data: Any, length: Any) -> tuple[Run, dict[str, Any]]:
        def body(_: Any, carry: Any) -> Any:
            run, means = carry
            run, new = step(rate, run, data)
            return run, added(means, new)

        zeros = zero_means(run, *step.eval_shape(rate, run, data))
        return jax.lax.fori_loop(0, length, body, (run, zeros))

    over_seeds = jax.vmap(steps, (None, OF_SEEDS, None, None), (OF_SEEDS, 0))
    over_rates = jax.vmap(over_seeds, (0, OF_RATES, None, None), (OF_RATES, 0))
    before = time.perf_counter()
    with free_ranks():
        lowered = jax.jit(over_rates, donate_argnums=1).lower(rates, run, data, np.int32(1))
    return lowered.compile(), time.perf_counter() - before


@weak_jit(static=["objective", "batch_size", "whole"])
def _evaluated(params: Any, state: Any, data: Any, **settings: Any) -> dict[str, Any]:
    """`totals` of all networks; compiled once for all optimizers, whose params have one shape."""
    one = functools.partial(totals, **settings)
    return jax.vmap(jax.vmap(one, (0, 0, None)), (0, 0, None))(params, state, data)


def _tested(run: Run) -> tuple[Any, Any]:
    """(params, state) to evaluate, as `fdl.optim.eval_params` gives them."""
    if not has_eval_params(run.opt_state, run.params):
        return run.params, run.state
    return jax.vmap(jax.vmap(eval_params))(run.opt_state, run.params), run.state


def _values(means: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values [R, S] of means [R, S], by name."""
    of_one = lambda means: {name: mean.value() for name, mean in means.items()}  # noqa: E731
    found = jax.vmap(jax.vmap(of_one))(means)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def _judged(
    trained: Trained, watched: str, mode: str, target: float | None, settings: dict[str, Any]
) -> Comparison:
    """The Comparison: the best rate, and the steps to the target, from the curves."""
    rates, seeds, records = (settings[name] for name in ("rates", "seeds", "records"))
    if watched not in trained.curves:
        known = ", ".join(name.removeprefix("val_") for name in trained.curves)
        raise ValueError(
            f"compare_optimizers: expected monitor among {known}, got "
            f"{watched.removeprefix('val_')!r}; "
            "take one of these, or add the metric to the objective"
        )
    sign = 1 if mode == "min" else -1
    curve = sign * trained.curves[watched]
    score = curve[..., -1].mean(1)
    score = np.where(_finite(trained.curves).all(1), score, np.inf)
    best = int(score.argmin()) if np.isfinite(score).any() else None
    met = None
    if target is not None:
        reached = curve <= sign * target
        met = np.where(reached.any(-1), records[reached.argmax(-1)], np.inf)
    pace = trained.seconds / (int(records[-1]) * len(rates) * len(seeds))
    return Comparison(
        rates, seeds, records, trained.curves, watched, best, met, pace, trained.compile_seconds
    )


def _finite(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether a network ended with finite values in all curves, bool [R, S]."""
    ends = np.stack([curve[..., -1] for curve in curves.values()])
    return np.asarray(np.isfinite(ends).all(0))


def _warn_at_the_edge(name: str, found: Comparison) -> None:
    """Warns if the best rate is the smallest or the largest of the grid."""
    edges = {0: "smallest", len(found.rates) - 1: "largest"}
    if len(found.rates) > 1 and found.best in edges:
        warnings.warn(
            f"compare_optimizers: expected the best rate of {name} inside the grid, got "
            f"{found.rates[found.best]:.3g}, its {edges[found.best]}; a better one may lie beyond",
            stacklevel=3,
        )
