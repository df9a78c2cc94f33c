"""Sweeps: trains with many settings of hyper-parameters and many seeds, in one compiled program.

R settings, S seeds, P records of a training run.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_count, check_number, decimal
from fdl.data.arrays import to_jax
from fdl.train.checks import check_mode, check_objective_given
from fdl.train.evaluation import BATCH_SIZE, check_objective, mixes_examples
from fdl.train.loop import BATCH_SIZE_REMEDY, last_step
from fdl.train.members import (
    Make,
    advance_members,
    evaluated,
    joined,
    settings_first,
    started,
    taken,
)
from fdl.train.objective import Supervised
from fdl.train.run import Run
from fdl.train.sweep_arguments import (
    check_seeds,
    checked_rungs,
    listed_settings,
    params_and_state_of,
)
from fdl.typing import Objective

KEEP = 1 / 3  # the share of the settings that go past a rung


class Sweep(NamedTuple):
    """The members of a sweep: their training curves, and their parameters.

    Args:
      settings: R dicts, name -> value of a hyper-parameter.
      seeds: [S], the seeds.
      steps: [P], the step of each record.
      curves: a dict, name -> [R, S, P], of the training loss and metrics, and of the validation
        loss and metrics, whose names begin with `val_`. A training value is the mean over the steps
        since the previous record. The values of a member that diverged are not finite; those after
        the step at which a setting stopped are NaN.
      monitor: the name of the curve that decides which setting is best.
      best: the index of the best setting that was trained to the end. None if, with each of them,
        the members of one or more seeds diverged.
      run: one run that holds all members at their last steps. params, state and opt_state have
        arrays [R, S, ...]; step is a scalar, and seed is [S].
      stopped: [R], the step at which each setting stopped; it is the last step without rungs.
      steps_to_target: [R, S], the step of the first record that met the target, or infinity if no
        record did. None if there is no target.
      seconds_per_step: the time to train all members at once, divided by the number of steps that
        all members took together.
      compile_seconds: the time to trace and compile the training code, in seconds; 0 if an earlier
        sweep has compiled it.
    """

    settings: list[dict[str, float]]
    seeds: np.ndarray
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    monitor: str
    best: int | None
    run: Run
    stopped: np.ndarray
    steps_to_target: np.ndarray | None
    seconds_per_step: float
    compile_seconds: float

    def __repr__(self) -> str:
        best = None if self.best is None else _short(self.settings[self.best])
        return (
            f"<Sweep of {len(self.settings)} settings and {len(self.seeds)} seeds, "
            f"{int(self.steps[-1])} steps; best: {best} by {self.monitor}>"
        )

    @property
    def rates(self) -> np.ndarray:
        """The learning rates of the settings, [R]."""
        return np.array([setting["learning_rate"] for setting in self.settings])

    def final(self, name: str) -> np.ndarray:
        """The values of a curve at the last record of each setting, [R, S]."""
        last = np.searchsorted(self.steps, self.stopped)
        return self.curves[name][np.arange(len(last)), :, last]

    def diverged(self) -> np.ndarray:
        """bool [R, S], True if a loss or metric of the member is not finite at its last record."""
        finite = np.isfinite([self.final(name) for name in self.curves])
        return np.asarray(~finite.all(0))

    def member(self, setting: int | None = None, seed: int = 0) -> Run:
        """The run of one member, which `evaluate`, `predict` and `fit` take.

        Args:
          setting: index of the setting, in [0, R). None means the best one.
          seed: index of the seed, in [0, S).

        Raises:
          ValueError: setting is None, and each setting diverged.
        """
        if setting is None and self.best is None:
            raise ValueError(
                "member: expected a setting that did not diverge, got none; sweep smaller rates"
            )
        at = (self.best if setting is None else setting), seed
        parts = (self.run.params, self.run.state, self.run.opt_state)
        params, state, opt_state = jax.tree.map(lambda leaf: leaf[at], parts)
        # The step is that of the member, whose setting may have stopped at a rung.
        return Run(params, state, opt_state, jnp.uint32(self.stopped[at[0]]), self.run.seed[seed])


def sweep(
    objective: Objective,
    init: Callable[[int], tuple[Any, Any]],
    make: Make,
    settings: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
    data: Any,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    validation: Any = None,
    record_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    target: float | None = None,
    rungs: Sequence[int] = (),
    keep: float = KEEP,
) -> Sweep:
    """Trains a network with each setting of hyper-parameters and each seed, all at once.

    The parameters of each member are the ones that `fit` would give, beginning with
    `start(params, make(**setting), seed=seed)`. A member that diverges does not affect the others.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      init: a function seed -> (params, state), for example
        `lambda seed: model.init(jax.random.key(seed), x)`. With `lambda seed: (params, {})`, all
        seeds begin with the same parameters.
      make: a function of named hyper-parameters that gives an optimizer, for example `fdl.adamw`.
        It gets traced scalars. The program is compiled once for each `make`.
      settings: either a dict, name -> list of values, of which each combination is a setting; or a
        list of settings, each a dict, name -> value. Random settings are such a list:
        `[{"learning_rate": 10 ** rng.uniform(-4, 0)} for _ in range(20)]`.
      data: a pytree of arrays [N, ...].
      seeds: S different integers in [0, 2**32). A seed determines the initial parameters, the
        batches and all random numbers.
      batch_size: B, an int >= 1.
      epochs: the number of passes over the data, >= 0, which is ceil(epochs * N / B) steps.
      steps: the number of steps. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. It is evaluated at each record, with
        the parameters that `fdl.optim.eval_params` gives.
      record_every: the number of steps from one record to the next. None means one epoch.
      monitor: the name of the metric that decides which setting is best: the best one has the best
        value at the last record, averaged over seeds. The validation metric is used; if there
        are no validation data, the training metric is used.
      mode: "min" if smaller values of the monitored metric are better, "max" if larger values are
        better.
      target: a value of the monitored metric, or None. The result then says how many steps each
        member needed to reach it.
      rungs: rising steps at which only the best settings go on; the others stop (successive
        halving). The members that go on are packed together, so that later steps cost less.
      keep: the share of the settings that go past each rung, in (0, 1); at least one does.

    Returns:
      A `Sweep`.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: an argument is wrong, or the data cannot be trained on.
      PathError: the model cannot take the data; the message gives the path of the layer.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> found = sweep(
      ...     objective, lambda seed: (jnp.array(0.0), {}), sgd,
      ...     {"learning_rate": [0.1, 0.4], "momentum": [0.0, 0.5]}, jnp.ones(8),
      ...     seeds=[0], batch_size=4, steps=4)
      >>> found.settings[found.best], float(found.member().params).__round__(3)
      ({'learning_rate': 0.4, 'momentum': 0.0}, 0.998)

    Source: Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar 2018, "Hyperband", arXiv 1603.06560,
    algorithm 1, for the rungs (successive halving).
    """
    return swept("sweep", **locals())


def swept(who: str, **given: Any) -> Sweep:
    """Checks the arguments of `sweep`, and trains; errors name the function `who`."""
    objective, seeds, validation = (given[name] for name in ("objective", "seeds", "validation"))
    check_objective_given(who, objective)
    settings = listed_settings(who, given["settings"])
    check_seeds(who, seeds)
    check_mode(who, given["mode"])
    check_number(who, "keep", given["keep"], "(0, 1)", "1 / 3 keeps every third setting")
    batch_size = check_count(who, "batch_size", given["batch_size"], BATCH_SIZE_REMEDY)
    every = given["record_every"]
    if every is not None:
        every = check_count(who, "record_every", every, "leave it out for one record an epoch")
    begun = [params_and_state_of(who, given["init"], int(seed)) for seed in seeds]
    examples = check_objective(objective, *begun[0], given["data"])
    if validation is not None:
        check_objective(objective, *begun[0], validation)
    last = last_step(who, examples, batch_size, given["epochs"], given["steps"])
    if last < 1:
        raise ValueError(f"{who}: expected at least one step, got none; give more epochs or steps")
    rungs = checked_rungs(who, given["rungs"], last)
    every = every or math.ceil(examples / batch_size)
    data = to_jax(given["data"], who)
    if isinstance(objective, Supervised):
        mixes_examples(objective, *begun[0], data, batch_size)  # raises if its model does
    validation = to_jax(validation, who, "validation data")
    validate = _validation(objective, begun[0], validation, batch_size)
    watched = given["monitor"] if validation is None else f"val_{given['monitor']}"
    return _train(
        objective,
        given["make"],
        settings,
        begun,
        data,
        validate,
        seeds=np.asarray(seeds),
        batch_size=batch_size,
        records=np.unique([*range(every, last, every), *rungs, last]),
        rungs=dict.fromkeys(rungs, given["keep"]),
        judge=_Judge(who, watched, given["mode"], given["target"]),
    )


class _Judge(NamedTuple):
    """What decides which members are better; errors name the function `who`."""

    who: str
    watched: str
    mode: str
    target: float | None

    def curve(self, curves: dict[str, np.ndarray]) -> np.ndarray:
        """The watched curve, [R, S, P], where smaller values are better."""
        if self.watched not in curves:
            known = ", ".join(name.removeprefix("val_") for name in curves)
            raise ValueError(
                f"{self.who}: expected monitor among {known}, got "
                f"{self.watched.removeprefix('val_')!r}; "
                "take one of these, or add the metric to the objective"
            )
        return curves[self.watched] * (1 if self.mode == "min" else -1)

    def scores(self, curves: dict[str, np.ndarray]) -> np.ndarray:
        """The mean over seeds at the last record, [R]; infinity if one of them diverged."""
        ends = np.stack([curve[..., -1] for curve in curves.values()])
        mean = self.curve(curves)[..., -1].mean(1)
        return np.where(np.isfinite(ends).all((0, 2)), mean, np.inf)

    def best(self, curves: dict[str, np.ndarray]) -> int | None:
        """The setting with the best score; None if a seed of each setting diverged."""
        scores = self.scores(curves)
        return int(scores.argmin()) if np.isfinite(scores).any() else None

    def steps_to_target(
        self, curves: dict[str, np.ndarray], steps: np.ndarray
    ) -> np.ndarray | None:
        if self.target is None:
            return None
        reached = self.curve(curves) <= self.target * (1 if self.mode == "min" else -1)
        return np.where(reached.any(-1), steps[reached.argmax(-1)], np.inf)


def _train(
    objective: Objective,
    make: Make,
    settings: list[dict[str, float]],
    begun: list[tuple[Any, Any]],
    data: Any,
    validate: Callable[[Run], dict[str, Any]],
    *,
    seeds: np.ndarray,
    batch_size: int,
    records: np.ndarray,
    rungs: dict[int, float],
    judge: _Judge,
) -> Sweep:
    """Trains all members from one record to the next, and stops settings at the rungs."""
    columns = {name: jnp.asarray([each[name] for each in settings]) for name in settings[0]}
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    how = {"objective": objective, "make": make, "batch_size": batch_size}
    run = started(columns, params, state, seeds, make=make)
    left, parts = np.arange(len(settings)), dict[int, Run]()
    stopped = np.full(len(settings), records[-1])
    rows: list[dict[str, np.ndarray]] = []
    taken_steps, seconds, compile_seconds = 0, 0.0, 0.0
    for done, step in itertools.pairwise([0, *map(int, records)]):
        if not rows or done in rungs:
            # Zero steps: this compiles the program for this number of members.
            (run, _), spent = _timed(advance_members, run, columns, data, np.int32(0), **how)
            compile_seconds += spent
        length = np.int32(step - done)
        (run, means), spent = _timed(advance_members, run, columns, data, length, **how)
        seconds += spent
        taken_steps += len(left) * len(seeds) * int(length)
        rows.append(_row(means, left, len(settings)))
        scores = _row(validate(run), left, len(settings))
        rows[-1] |= {f"val_{name}": value for name, value in scores.items()}
        if step in rungs:
            on, out = _cut(judge.scores(_stacked(rows))[left], rungs[step])
            parts |= {int(left[place]): taken(run, [place]) for place in out}
            stopped[left[out]] = step
            run, left = taken(run, on), left[on]
            columns = {name: column[on] for name, column in columns.items()}
    curves = _stacked(rows)
    return Sweep(
        settings=settings,
        seeds=seeds,
        steps=records,
        curves=curves,
        monitor=judge.watched,
        best=judge.best(curves),
        run=_all_members(parts, run, left),
        stopped=stopped,
        steps_to_target=judge.steps_to_target(curves, records),
        seconds_per_step=seconds / taken_steps,
        compile_seconds=compile_seconds,
    )


def _validation(
    objective: Objective, begun: tuple[Any, Any], validation: Any, batch_size: int
) -> Callable[[Run], dict[str, Any]]:
    """A function that evaluates all members on the validation data; it gives {} without data."""
    if validation is None:
        return lambda run: {}
    whole = mixes_examples(objective, *begun, validation, batch_size)
    size = batch_size if whole else BATCH_SIZE
    how = {"objective": objective, "batch_size": size, "whole": whole}
    return functools.partial(evaluated, data=validation, **how)


def _all_members(parts: dict[int, Run], run: Run, left: np.ndarray) -> Run:
    """The members of all settings: those that stopped, in `parts`, and those that are left."""
    parts = parts | {int(place): taken(run, [at]) for at, place in enumerate(left)}
    return settings_first(joined([parts[place] for place in sorted(parts)]))


def _cut(scores: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The places of the smallest scores, a share of them but at least one, and of the others."""
    order = scores.argsort(kind="stable")
    count = max(1, math.ceil(decimal(share) * len(scores)))
    return np.sort(order[:count]), np.sort(order[count:])


def _timed(f: Callable[..., Any], *args: Any, **given: Any) -> tuple[Any, float]:
    """(the result of f, the time that it took in seconds)."""
    before = time.perf_counter()
    result = jax.block_until_ready(f(*args, **given))
    return result, time.perf_counter() - before


def _row(means: dict[str, Any], left: np.ndarray, settings: int) -> dict[str, np.ndarray]:
    """The values of the means of all members, name -> [R, S]; NaN where a setting has stopped."""
    of_one = lambda means: {name: mean.value() for name, mean in means.items()}  # noqa: E731
    row = {}
    found = jax.vmap(jax.vmap(of_one))(means) if means else {}
    for name, value in found.items():
        row[name] = np.full((settings, len(value)), np.nan)
        row[name][left] = np.asarray(value, np.float64).T
    return row


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}


def _short(setting: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in setting.items())
