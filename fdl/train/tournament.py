"""The training loop of a sweep.

The loop trains all members up to the next record. Some records are rungs: there, only the best
settings go on, and the others stop.

R settings, S seeds, P records.
"""

import itertools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import decimal
from fdl.train.chunks import signals_noted
from fdl.train.hooks import Hooks, Plan, Record
from fdl.train.members import (
    Make,
    evaluated,
    joined,
    settings_first,
    settings_inside,
    taken,
    values_of_members,
)
from fdl.train.program import advance_members
from fdl.train.result import Result, Unfinished
from fdl.train.run import Run

Curves = dict[str, np.ndarray]  # name -> [R, S, P]


class Judge(NamedTuple):
    """What decides which members are better.

    Args:
      who: the name of the function that the user called, for error messages.
      watched: the name of a curve.
      mode: "min" or "max".
      target: a value of the curve, or None.
    """

    who: str
    watched: str
    mode: str
    target: float | None

    def curve(self, curves: Curves) -> np.ndarray:
        """The watched curve, [R, S, P], negated if mode is "max", so that smaller is better."""
        if self.watched not in curves:
            known = ", ".join(name.removeprefix("val_") for name in curves)
            raise ValueError(
                f"{self.who}: expected monitor among {known}, got "
                f"{self.watched.removeprefix('val_')!r}; "
                "choose one of these, or add the metric to the objective"
            )
        return curves[self.watched] * (1 if self.mode == "min" else -1)

    def scores(self, curves: Curves) -> np.ndarray:
        """The mean over seeds at the last record, [R]; infinity if one of the seeds diverged."""
        ends = np.stack([curve[..., -1] for curve in curves.values()])
        mean = self.curve(curves)[..., -1].mean(1)
        return np.where(np.isfinite(ends).all((0, 2)), mean, np.inf)

    def best(self, curves: Curves) -> int | None:
        """The setting with the best score; None if every setting has a seed that diverged."""
        scores = self.scores(curves)
        return int(scores.argmin()) if np.isfinite(scores).any() else None

    def steps_to_target(self, curves: Curves, steps: np.ndarray) -> np.ndarray | None:
        """The step of the first record that met the target, [R, S]; infinity if none did."""
        if self.target is None:
            return None
        reached = self.curve(curves) <= self.target * (1 if self.mode == "min" else -1)
        return np.where(reached.any(-1), steps[reached.argmax(-1)], np.inf)


class Tournament:
    """The members of a sweep in training: those that are left, and those that have stopped.

    Args:
      plan: what the sweep is about to do; `plan.run` holds all members, [R, S, ...].
      make: gives the optimizer of a setting.
      validation: the arguments with which `evaluated` evaluates the members; {} without validation
        data.
      records: [P], the steps of the records.
      rungs: a dict, step -> the share of the settings that go on after it.
      judge: decides which settings go on.
    """

    def __init__(
        self,
        plan: Plan,
        make: Make,
        validation: dict[str, Any],
        records: np.ndarray,
        rungs: dict[int, float],
        judge: Judge,
    ):
        self.plan, self.records = plan, [int(each) for each in records]
        self.validation = validation
        self.rungs, self.judge = rungs, judge
        self.settings = plan.settings or []
        columns = {name: [each[name] for each in self.settings] for name in self.settings[0]}
        self.columns = {name: jnp.asarray(column) for name, column in columns.items()}
        self.how = {"objective": plan.objective, "make": make, "batch_size": plan.batch_size}
        self.run, self.left = settings_inside(plan.run), np.arange(len(self.settings))
        self.parts: list[tuple[np.ndarray, Run]] = []  # settings that have stopped, their members
        self.stopped = np.full(len(self.settings), self.records[-1])
        self.rows: list[dict[str, np.ndarray]] = []
        self.seconds = self.compile_seconds = 0.0
        self.taken_steps = 0
        self.begun = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.memories: dict[str, Any] = {}

    def names(self) -> tuple[str, ...]:
        """The names of the values in a record for hooks."""
        _, means = advance_members.eval_shape(*self._args(0), **self.how)
        scores = [f"val_{name}" for name in jax.eval_shape(self._validate)]
        return ("step", "settings_left", *self.columns, *means, *scores, "seconds")

    def resume(self, result: Result) -> None:
        """Continues from a checkpoint, in which the run holds all members, [R, S, ...]."""
        steps = [int(record["step"]) for record in result.history]
        if steps != self.records[: len(steps)]:
            raise ValueError(
                f"{self.judge.who}: expected a checkpoint with records at steps "
                f"{self.records[: len(steps)]}, got {steps}; pass the epochs, record_every and "
                "rungs of the checkpoint, or choose another folder"
            )
        self.run, self.memories = settings_inside(result.run), result.unfinished.memories
        self.plan, self.history = self.plan._replace(run=result.run), result.history
        for record in result.history:
            curves: Any = record["curves"]
            self.rows.append({name: np.asarray(row) for name, row in curves.items()})
            self._cut(int(record["step"]))
        self.begun -= result.history[-1]["seconds"]

    def train(self, hooks: Hooks) -> str:
        """Trains to the last record, or until there is a reason to stop; returns the reason."""
        with signals_noted() as signalled, hooks.watching(self.plan, self.memories):
            reason, compiled_for = hooks.reason, 0
            for done, step in itertools.pairwise([0, *self.records][len(self.rows) :]):
                if reason:
                    break
                if len(self.left) != compiled_for:
                    # Both programs are compiled at the same time. `_advance(0)` waits for the
                    # first one, and takes no step.
                    before = time.perf_counter()
                    advance_members.compile_ahead(*self._args(0), **self.how)
                    if self.validation:
                        evaluated.compile_ahead(self.run, **self.validation)
                    self.compile_seconds += time.perf_counter() - before + self._advance(0)[1]
                    compiled_for = len(self.left)
                self._train_to_record(done, step)
                self._cut(step)
                reason = signalled() or "done" * (step == self.records[-1])
                reason = self._report(hooks, step, reason) if hooks else reason
        return hooks.failed or reason or "done"

    def _advance(self, length: int) -> tuple[dict[str, Any], float]:
        """Takes steps; returns the means of these steps, and the time that they took."""
        before = time.perf_counter()
        run_and_means = advance_members(*self._args(length), **self.how)
        self.run, means = jax.block_until_ready(run_and_means)
        return means, time.perf_counter() - before

    def _args(self, length: int) -> tuple[Any, ...]:
        return self.run, self.columns, self.plan.data, np.int32(length)

    def _train_to_record(self, done: int, step: int) -> None:
        means, spent = self._advance(step - done)
        self.seconds += spent
        self.taken_steps += len(self.left) * self.plan.run.seed.size * (step - done)
        row = self._row(means)
        scores = self._row(self._validate())
        self.rows.append(row | {f"val_{name}": value for name, value in scores.items()})

    def _validate(self) -> dict[str, Any]:
        return evaluated(self.run, **self.validation) if self.validation else {}

    def _row(self, means: dict[str, Any]) -> dict[str, np.ndarray]:
        """The values of the means of all members, name -> [R, S]; NaN for settings that stopped."""
        row = {}
        for name, value in values_of_members(means).items():
            row[name] = np.full((len(self.settings), len(value)), np.nan)
            row[name][self.left] = np.asarray(value, np.float64).T
        return row

    def _cut(self, step: int) -> None:
        """If the step is a rung, keeps only the best of the settings that are left."""
        if step not in self.rungs:
            return
        scores = self.judge.scores(self.curves())[self.left]
        order = scores.argsort(kind="stable")
        count = max(1, math.ceil(decimal(self.rungs[step]) * len(scores)))
        on, out = np.sort(order[:count]), np.sort(order[count:])
        self.parts.append((self.left[out], taken(self.run, out)))
        self.stopped[self.left[out]] = step
        self.run, self.left = taken(self.run, on), self.left[on]
        self.columns = {name: column[on] for name, column in self.columns.items()}

    def curves(self) -> Curves:
        """The curves up to the last record."""
        return {name: np.stack([row[name] for row in self.rows], -1) for name in self.rows[0]}

    def everyone(self) -> Run:
        """One run with all members, [R, S, ...]; its step is that of the settings that are left."""
        if not self.parts:
            return settings_first(self.run)
        places, runs = zip(*self.parts, (self.left, self.run), strict=True)
        return settings_first(joined(runs, np.concatenate(places).argsort()))

    def _report(self, hooks: Hooks, step: int, reason: str) -> str:
        """Calls the hooks with a record and all members; returns the reason to stop, or ""."""
        run, record = self.everyone(), self._record(step)
        latest = {name: row.tolist() for name, row in self.rows[-1].items()}
        self.history = [*self.history, record | {"curves": latest}]
        hooks.record(record, run)
        reason = hooks.failed or reason or hooks.reason
        unfinished = Unfinished({}, len(self.history), hooks.memories())
        hooks.save(Result(run, self.history, reason, unfinished))
        return hooks.failed or reason

    def _record(self, step: int) -> Record:
        """The best setting at the last record, and the means of its values over the seeds."""
        scores = self.judge.scores(self.curves())
        best = int(self.left[scores[self.left].argmin()])
        record = {"step": step, "settings_left": len(self.left), **self.settings[best]}
        record |= {name: float(row[best].mean()) for name, row in self.rows[-1].items()}
        return record | {"seconds": time.perf_counter() - self.begun}
