"""Sweeps: trains with an optimizer at each rate and seed of a grid, in one compiled function.

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

from fdl.checks import as_int, check_count, described, is_count, is_number
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
"""A function `rate -> optimizer`."""

# The mapped axes of a Run in `vmap`: None means that all networks share the value. The step is
# shared by all networks. The seed is shared by all rates, so each batch is drawn only once for
# all rates.
OF_SEEDS = Run(params=0, state=0, opt_state=0, step=None, seed=0)
OF_RATES = OF_SEEDS._replace(seed=None)


class Comparison(NamedTuple):
    """The training curves of one optimizer, for each learning rate and each seed.

    Args:
      rates: [R], the learning rates, float64, in increasing order.
      seeds: [S], the seeds.
      steps: [P], the step of each record.
      curves: a dict, name -> [R, S, P], of the training loss and metrics, and of the validation
        loss and metrics, whose names begin with `val_`. A training value is the mean over the steps
        since the previous record. The values of a network that diverged are not finite.
      monitor: the name of the curve that decides which rate is best.
      best: the index of the best rate. None if, at each rate, the networks of one or more seeds
        diverged.
      steps_to_target: [R, S], the step of the first record that met the target, or infinity if no
        record did. None if there is no target.
      seconds_per_step: the time to train all R * S networks at once, divided by R * S and by the
        number of steps.
      compile_seconds: the time to trace and compile the training code, in seconds.
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
        """The values of a curve at the last record, [R, S]."""
        return self.curves[name][..., -1]

    def diverged(self) -> np.ndarray:
        """bool [R, S], True if a loss or metric of the network is not finite at the last record."""
        return ~_finite(self.curves)


class Trained(NamedTuple):
    """What `train_grid` returns.

    Args:
      run: one run that contains all networks. params, state and opt_state have arrays [R, S, ...];
        step is a scalar, and seed is [S].
      curves: a dict, name -> [R, S, P].
      seconds: the time of the training steps in seconds, without compilation and evaluation.
      compile_seconds: the time to trace and compile the training code, in seconds.
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
    """Trains a network with each optimizer, at each learning rate and with each seed.

    All R * S networks of an optimizer are trained at once, by one compiled function. The final
    parameters of each network are the ones that `fit` would give, beginning with
    `start(params, make(rate), seed=seed)`, where make is the entry in `optimizers`. A network that
    diverges does not affect the rest.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      init: a function seed -> (params, state), for example
        `lambda seed: model.init(jax.random.key(seed), x)`. With `lambda seed: (params, {})`, all
        seeds begin with the same parameters.
      data: a pytree of arrays [N, ...].
      optimizers: a dict, name -> function that makes an optimizer from a learning rate, for example
        `fdl.adam` or `lambda rate: optax.sgd(rate, momentum=0.9)`. The rate is a traced scalar.
      rates: R learning rates > 0 in increasing order. It is best if the ratio of neighbouring rates
        is constant.
      seeds: S different integers in [0, 2**32). A seed determines the initial parameters, the
        batches and all random numbers.
      batch_size: B, an int >= 1.
      epochs: the number of passes over the data, >= 0, which is ceil(epochs * N / B) steps.
      steps: the number of steps. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. It is evaluated at each record, with
        the parameters that `fdl.optim.eval_params` gives.
      record_every: the number of steps from one record to the next. None means one epoch.
      monitor: the name of the metric that decides which rate is best: the best rate has the best
        value at the last record, averaged over seeds. The validation metric is used; if there
        are no validation data, the training metric is used.
      mode: "min" if smaller values of the monitored metric are better, "max" if larger values are
        better.
      target: a value of the monitored metric, or None. The results then say how many steps each
        network needed to reach it.

    Returns:
      A dict, name -> `Comparison`. `fdl.look.comparison_table` makes a table of it, and
      `fdl.look.rate_sensitivity` and `fdl.look.best_curves` draw it. `compare_optimizers` warns if
      the best rate is the smallest or the largest one, because a better rate may be outside the
      grid.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: an argument is wrong, or the data cannot be trained on.
      PathError: the model cannot take the data; the message gives the path of the layer.

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
            f"compare_optimizers: expected rates [R], > 0 and rising, got {described(rates)}; "
            "np.geomspace(1e-4, 1, 9) is a wide grid to begin with"
        )
    listed = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    whole = [as_int(seed) for seed in seeds] if listed else []
    whole_fine = all(is_count(seed, least=0) and seed < 2**32 for seed in whole)
    if not whole or not whole_fine or len(set(whole)) < len(whole):
        raise ValueError(
            f"compare_optimizers: expected different seeds in [0, 2**32), got {described(seeds)}; "
            "give range(3) or the like"
        )
    makers = isinstance(optimizers, Mapping)
    wrong = [make for make in optimizers.values() if not callable(make)] if makers else [optimizers]
    if wrong:
        raise TypeError(
            "compare_optimizers: expected optimizers as name -> a function of the rate, got "
            f"{described(wrong[0])}; pass {{'adam': fdl.adam}}, or a function such as lambda rate: "
            "fdl.sgd(rate, momentum=0.9)"
        )
    if not optimizers:
        raise ValueError(
            "compare_optimizers: expected at least one optimizer, got none; "
            "pass {'adam': fdl.adam} or the like"
        )
    check_mode("compare_optimizers", mode)


def _params_and_state(init: Callable[[int], tuple[Any, Any]], seed: int) -> tuple[Any, Any]:
    """Calls `init(seed)`, and checks that it returns (params, state)."""
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
      make: a function rate -> optimizer.
      begun: (params, state) at step 0, where each array has a leading axis of seeds: [S, ...].
      data: a pytree of arrays [N, ...].
      validation: data with the structure of `data`, or None.
      rates: [R].
      seeds: [S].
      batch_size: B.
      records: [P], the steps at which a record is made, in increasing order.
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
    """The networks at step 0, in new arrays [R, S, ...], which the compiled code may overwrite."""
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
    """Compiles the training of all networks for a number of steps.

    It is compiled ahead of time. So its memory is freed when the compiled function is no longer
    referenced.

    Returns:
      (the compiled function, the time that compiling took in seconds).
    """

    @functools.partial(jax.jit, inline=True)
    def step(rate: Any, run: Run, data: Any) -> tuple[Run, dict[str, Any]]:
        # This is jitted so that it is traced only once for `eval_shape` and `steps`.
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
    """`totals` of all networks. It is compiled once for all optimizers.

    This works because the parameters have the same shapes with all optimizers.
    """
    one = functools.partial(totals, **settings)
    return jax.vmap(jax.vmap(one, (0, 0, None)), (0, 0, None))(params, state, data)


def _tested(run: Run) -> tuple[Any, Any]:
    """(params, state) with which the networks are evaluated; params are from `eval_params`."""
    if not has_eval_params(run.opt_state, run.params):
        return run.params, run.state
    return jax.vmap(jax.vmap(eval_params))(run.opt_state, run.params), run.state


def _values(means: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of the means of all networks: name -> float64 [R, S]."""
    of_one = lambda means: {name: mean.value() for name, mean in means.items()}  # noqa: E731
    found = jax.vmap(jax.vmap(of_one))(means)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def _judged(
    trained: Trained, watched: str, mode: str, target: float | None, settings: dict[str, Any]
) -> Comparison:
    """Finds the best rate and the steps to the target in the curves, and makes the Comparison."""
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
    """bool [R, S], True if all curves of the network are finite at the last record."""
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
