"""Sweeps: trains with many settings of hyper-parameters and many seeds, in one compiled program.

R settings, S seeds, P records of a training run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_count, check_number
from fdl.data.arrays import to_jax
from fdl.train.checks import check_mode, check_objective_given, last_step
from fdl.train.evaluation import BATCH_SIZE, check_objective, mixes_examples
from fdl.train.hooks import Hooks, Plan
from fdl.train.loop import BATCH_SIZE_REMEDY
from fdl.train.members import Make, started
from fdl.train.objective import Supervised
from fdl.train.run import Run
from fdl.train.sweep_arguments import (
    KEEP,
    Options,
    checked_rungs,
    checked_seeds,
    listed_settings,
    params_and_state_of,
)
from fdl.train.tournament import Judge, Tournament
from fdl.typing import Batch, Hook, Objective, Params, State


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
      best: the index of the best setting. Settings that stopped at a rung, and settings with a
        member that diverged, are not considered. None if no setting is left.
      run: one run that holds all members at their last steps. params, state and opt_state have
        arrays [R, S, ...]; step is a scalar, and seed is [S].
      stopped: [R], the step at which each setting stopped: a rung, or the last step of the sweep.
      steps_to_target: [R, S], the step of the first record that met the target, or infinity if no
        record did. None if there is no target.
      seconds_per_step: the time per step of one member, in seconds: the time to train all members,
        divided by the sum of their numbers of steps.
      compile_seconds: the time to trace and compile the training code, in seconds; almost 0 if an
        earlier sweep has compiled it.
      reason: why training ended, as in `Result`.
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
    reason: str = "done"

    def __repr__(self) -> str:
        best = None if self.best is None else _short(self.settings[self.best])
        return (
            f"<Sweep of {len(self.settings)} settings and {len(self.seeds)} seeds, "
            f"{int(self.steps[-1])} steps; best: {best} by {self.monitor}>"
        )

    @property
    def rates(self) -> np.ndarray:
        """The learning rates of the settings, [R].

        Raises:
          ValueError: the settings have no learning_rate.
        """
        if "learning_rate" not in self.settings[0]:
            raise ValueError(
                f"rates: expected settings with learning_rate, got {', '.join(self.settings[0])}; "
                "read `settings` instead"
            )
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
          ValueError: setting is None, and there is no best setting.
        """
        if setting is None and self.best is None:
            raise ValueError(
                "member: expected a setting that did not diverge, got none; try smaller rates"
            )
        at = (self.best if setting is None else setting), seed
        parts = (self.run.params, self.run.state, self.run.opt_state)
        params, state, opt_state = jax.tree.map(lambda leaf: leaf[at], parts)
        # The step is that of the member, whose setting may have stopped at a rung.
        return Run(params, state, opt_state, jnp.uint32(self.stopped[at[0]]), self.run.seed[seed])

    def members(self, setting: int | None = None) -> list[Run]:
        """The runs of all seeds of a setting, for `fdl.ensemble`.

        Args:
          setting: index of the setting, in [0, R). None means the best one.

        Raises:
          ValueError: setting is None, and there is no best setting.
        """
        return [self.member(setting, seed) for seed in range(len(self.seeds))]


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
    watch: Sequence[Hook] = (),
) -> Sweep:
    """Trains a network with each setting of hyper-parameters and each seed, all at once.

    Each of these networks is a member of the sweep. The parameters of a member are the ones that
    `fit` would give, beginning with `start(params, make(**setting), seed=seed)`. A member that
    diverges does not affect the others.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      init: a function seed -> (params, state), for example
        `lambda seed: model.init(jax.random.key(seed), x)`. With `lambda seed: (params, {})`, all
        seeds begin with the same parameters.
      make: a function of named hyper-parameters that gives an optimizer, for example `fdl.adamw`.
        `make` gets traced scalars: arrays whose values Python code cannot read. The program is
        compiled once for each `make`.
      settings: either a dict, name -> list of values, and each combination of values is a setting;
        or a list of settings, each a dict, name -> value. Random settings are such a list:
        `[{"learning_rate": 10 ** rng.uniform(-4, 0)} for _ in range(20)]`.
      data: a pytree of arrays [N, ...].
      seeds: S different integers in [0, 2**32). A seed determines the initial parameters, the
        batches and all random numbers.
      batch_size: B, an int >= 1.
      epochs: the number of passes over the data, > 0. Training takes ceil(epochs * N / B) steps.
      steps: the number of steps, an int >= 1. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. It is evaluated at each record, with
        the parameters that `fdl.optim.eval_params` gives.
      record_every: the number of steps from one record to the next. None means one epoch. There is
        also a record at each rung and at the last step.
      monitor: the name of the metric that decides which setting is best: the best one has the best
        value at the last record, averaged over seeds. The validation metric is used; if there
        are no validation data, the training metric is used.
      mode: "min" if smaller values of the monitored metric are better, "max" if larger values are
        better.
      target: a value of the monitored metric, or None. The result then says how many steps each
        member needed to reach it.
      rungs: increasing steps at which only the best settings go on; the others stop (successive
        halving). The members that go on are packed together, so that later steps cost less.
      keep: the share of the settings that go past each rung, in (0, 1); at least one setting
        does.
      watch: hooks, as in `fit`. At each record they get a record and a run. The record has the
        values of the best setting (averaged over the seeds), the hyper-parameters of this setting,
        and `settings_left`, the number of settings still in training. The run holds all members,
        like `Sweep.run`. With `fdl.checkpoints(folder)`, a sweep that was stopped continues when
        the program is started again.

    Returns:
      A `Sweep`. Ctrl-C or SIGTERM ends training at the next record, and `sweep` returns as usual.

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
    options = Options(
        seeds=seeds,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        validation=validation,
        record_every=record_every,
        monitor=monitor,
        mode=mode,
        target=target,
        rungs=rungs,
        keep=keep,
        watch=watch,
    )
    return swept("sweep", objective, init, make, settings, data, options)


def swept(
    who: str,
    objective: Objective,
    init: Callable[[int], tuple[Params, State]],
    make: Make,
    settings: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
    data: Batch,
    options: Options,
) -> Sweep:
    """Checks the arguments of `sweep`, and trains; errors name the function `who`."""
    check_objective_given(who, objective)
    listed, seeds = listed_settings(who, settings), checked_seeds(who, options.seeds)
    check_mode(who, options.mode)
    check_number(who, "keep", options.keep, "(0, 1)", "1 / 3 keeps a third of the settings")
    batch_size = check_count(who, "batch_size", options.batch_size, BATCH_SIZE_REMEDY)
    every = options.record_every
    if every is not None:
        every = check_count(who, "record_every", every, "leave it out for one record an epoch")
    hooks, begun = Hooks(options.watch, who), [params_and_state_of(who, init, x) for x in seeds]
    examples = check_objective(objective, *begun[0], data)
    validation = options.validation
    if validation is not None:
        check_objective(objective, *begun[0], validation)
    last = last_step(who, examples, batch_size, options.epochs, options.steps)
    if last < 1:
        raise ValueError(f"{who}: expected at least one step, got none; give more epochs or steps")
    rungs = checked_rungs(who, options.rungs, last)
    data = to_jax(data, who)
    if isinstance(objective, Supervised):
        # This raises if the model's output for an example depends on the rest of the batch.
        mixes_examples(objective, *begun[0], data, batch_size)
    validation = to_jax(validation, who, "validation data")
    validation = _validation(objective, begun[0], validation, batch_size)
    every = every or math.ceil(examples / batch_size)
    watched = options.monitor if not validation else f"val_{options.monitor}"
    judge = Judge(who, watched, options.mode, options.target)
    plan = Plan(
        objective=objective,
        optimizer=make(**listed[0]),
        data=data,
        sample=data,
        examples=examples,
        batch_size=batch_size,
        run=_members(make, listed, begun, seeds),
        last=last,
        record_every=every,
        settings=listed,
    )
    return _trained(plan, make, validation, hooks, judge, dict.fromkeys(rungs, options.keep))


def _members(
    make: Make,
    settings: list[dict[str, float]],
    begun: list[tuple[Params, State]],
    seeds: Sequence[int],
) -> Run:
    """The run of all members at step 0, [R, S, ...]."""
    columns = {name: jnp.asarray([each[name] for each in settings]) for name in settings[0]}
    return started(columns, begun, np.asarray(seeds), make=make)


def _trained(
    plan: Plan,
    make: Make,
    validation: dict[str, Any],
    hooks: Hooks,
    judge: Judge,
    rungs: dict[int, float],
) -> Sweep:
    """Trains as planned, from a checkpoint if a hook has one."""
    records = np.unique([*range(plan.record_every, plan.last, plan.record_every), *rungs])
    records = np.unique([*records, plan.last])
    tournament = Tournament(plan, make, validation, records, rungs, judge)
    if hooks:
        tournament.plan = plan._replace(names=tournament.names())
        found = hooks.resume(plan.run)
        if found is not None:
            tournament.resume(found)
    reason = tournament.train(hooks)
    if not tournament.rows:
        raise ValueError(
            f"{judge.who}: expected hooks that let the sweep begin, got the reason {reason!r} to "
            "stop before the first step; see the `begin` of your hooks"
        )
    curves, steps = tournament.curves(), records[: len(tournament.rows)]
    taken_steps = max(tournament.taken_steps, 1)
    return Sweep(
        settings=tournament.settings,
        seeds=np.asarray(plan.run.seed),
        steps=steps,
        curves=curves,
        monitor=judge.watched,
        best=judge.best(curves),
        run=tournament.everyone(),
        stopped=np.minimum(tournament.stopped, steps[-1]),
        steps_to_target=judge.steps_to_target(curves, steps),
        seconds_per_step=tournament.seconds / taken_steps,
        compile_seconds=tournament.compile_seconds,
        reason=reason,
    )


def _validation(
    objective: Objective, begun: tuple[Any, Any], validation: Any, batch_size: int
) -> dict[str, Any]:
    """The arguments of `evaluated` for validation data; {} if there are none."""
    if validation is None:
        return {}
    whole = mixes_examples(objective, *begun, validation, batch_size)
    size = batch_size if whole else BATCH_SIZE
    return {"data": validation, "objective": objective, "batch_size": size, "whole": whole}


def _short(setting: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in setting.items())
