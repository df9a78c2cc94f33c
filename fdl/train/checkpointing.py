"""Checkpoints: a hook that saves whole runs in a folder, and loads them bit for bit."""

import contextlib
import importlib.metadata
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from optax import GradientTransformation

from fdl.checks import check_count, check_uint32, described
from fdl.data.arrays import fingerprint
from fdl.data.streaming import Source
from fdl.optim.description import description
from fdl.paths import shortened
from fdl.train.background_writer import REST, BackgroundWriter
from fdl.train.checkpoint_files import package, read, write
from fdl.train.checks import check_mode, check_run
from fdl.train.hooks import Observer, Plan
from fdl.train.loop import NOT_FINITE
from fdl.train.processes import of_any, of_the_first
from fdl.train.replaying import check_exact, owned, plan_of, replayed
from fdl.train.result import Result
from fdl.train.run import Run, many, speaks
from fdl.typing import Batch, Objective
from fdl.version import __version__

DELETED = ".deleted"  # the end of the name of a folder that is being deleted
LOCK = ".lock"  # a file in each folder of checkpoints; the process that writes there locks it


def checkpoints(
    folder: str | os.PathLike[str],
    *,
    keep: int | None = 3,
    best: str | None = None,
    mode: Literal["min", "max"] = "min",
    every: int = 1,
) -> "Checkpoints":
    """A hook that saves the whole run in a folder, so that a killed program can continue.

    Saving happens in a background thread and does not delay training. After each save the thread
    rests nine times as long as the save took, so it takes a tenth of a core at most. If a save is
    due in the meantime, it waits. If several saves wait, the newest of them is written, and the one
    with the best value of `best`; the rest are skipped. The run at the end of training is always
    written, unless an error or numbers that are not finite ended training.

    If the run is laid out over several processes, all of them see the same folder, and each writes
    and reads only its own parts of the arrays. Training waits for these saves. After each of them,
    no save is due for nine times as long as it took.

    Args:
      folder: path of the folder, which is created if it does not exist. Use one folder for each
        run.
      keep: the number of newest checkpoints to keep, an int >= 1. Older ones are deleted. None
        keeps all checkpoints.
      best: the name of a value in the records, such as "val_loss". The checkpoint with the best
        value is kept too. None keeps only the newest ones.
      mode: "min" if smaller values of `best` are better, "max" if larger values are better.
      every: a checkpoint is saved at every `every`-th record, an int >= 1.

    Returns:
      A hook for `fit(..., watch=[...])`, with two methods that give runs:

      - `latest(run)`: the newest run in the folder, or `run` if there is none. A program that is
        written as in the example continues when it is started again. Its result is bit-identical to
        that of a program that was never interrupted.
      - `at(step)`: the run at any step, computed again from the last checkpoint that is not later.

    Raises:
      ImportError: the package orbax-checkpoint is not installed.
      OptionError: keep or every is out of range.
      ValueError: mode is neither "min" nor "max". `fit` raises it if no record has the value
        `best`; if the folder holds anything other than checkpoints, or checkpoints of a later step;
        or if another process writes to it.
      OSError: `fit` raises it if the folder cannot be created or written.

    Example:
      >>> import tempfile
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> data, optimizer = np.ones(8, "float32"), fdl.sgd(0.1)
      >>> run = fdl.start(np.float32(0), optimizer)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     saved = checkpoints(folder)
      ...     first = fdl.fit(objective, optimizer, run, data, steps=2, watch=[saved])
      ...     second = fdl.fit(
      ...         objective, optimizer, saved.latest(run), data, steps=4, watch=[saved])
      >>> whole = fdl.fit(objective, optimizer, run, data, steps=4)
      >>> bool(second.run.params == whole.run.params)
      True
    """
    package()
    check_mode("checkpoints", mode)
    if keep is not None:
        keep = check_count("checkpoints", "keep", keep, "at least the newest checkpoint is kept")
    every = check_count("checkpoints", "every", every, "1 saves at each record")
    return Checkpoints(Path(folder), keep, best, mode, every)


class Checkpoints(Observer):
    """What `checkpoints` returns.

    Args:
      folder, keep, best, mode, every: the arguments of `checkpoints`.
    """

    def __init__(self, folder: Path, keep: int | None, best: str | None, mode: str, every: int):
        self.folder, self.keep, self.monitor, self.every = folder, keep, best, every
        self.sign = 1 if mode == "min" else -1
        self.about: dict[str, Any] = {}  # the result of `_about` for the run in training
        self.found: dict[str, Any] = {}  # the same for the checkpoint that `latest` loaded
        self.plan: Plan | None = None  # the plan with which `at` repeats steps
        self.reached = 0  # the last step of the run in training
        self.closing = contextlib.ExitStack()
        self.writer: BackgroundWriter | None = None
        self.rested = 0.0  # the time at which a run on several processes may be saved again

    def __repr__(self) -> str:
        return f"checkpoints({str(self.folder)!r})"

    def steps(self) -> list[int]:
        """The steps of the checkpoints in the folder, in increasing order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(each.name) for each in self.folder.iterdir() if each.name.isdecimal())

    def latest(self, run: Run | Result) -> Run | Result:
        """The newest run in the folder, or `run` if there is none.

        Args:
          run: a run from `start`, with the same optimizer and the same shapes. Its values are
            not used.

        Returns:
          The Result that `fit` would have returned if training had ended at the checkpoint; or
          `run` if the folder has no checkpoint.

        Raises:
          ValueError: the checkpoint is damaged, was made by a newer version of fdl, or does not fit
            the run. In the last case, the message lists the paths that do not fit.
        """
        check_run("latest", run)
        like = run.run if isinstance(run, Result) else run
        newest = max(self.steps(), default=-1)
        newest = of_the_first(like, newest)
        if newest < 0:
            return run
        self.found, result = read(self.folder / str(newest), like)
        return result

    def resume(self, run: Run) -> Run | Result | None:
        """The newest run in the folder, from which a sweep continues; None if there is none."""
        return self.latest(run) if self.steps() else None

    def at(self, step: int) -> Run:
        """The run at any step, equal bit for bit to the run at that step of training.

        The run is computed again, without hooks and records: `at` loads the last checkpoint at or
        before that step, and repeats the steps from there. If the run with which the last `fit`
        began is at least as near to that step, `at` repeats the steps from that run.

        `at` repeats the steps with the arguments of the last `fit` that had this hook in `watch`.
        So the data and the first run of that `fit` stay in memory as long as this hook. In a new
        process, call `replaying` first.

        Args:
          step: an int in [0, 2**32). A step after the end of training gives the run that more
            training would have given.

        Returns:
          The run after that many steps.

        Raises:
          OptionError: step is out of range.
          ValueError: no `fit` has had this hook in `watch`; the batches are not a function of the
            step, because the data are an iterable; no run at or before the step is known; or the
            checkpoint is damaged, does not fit, or is of a run with another seed.

        Example:
          >>> import tempfile
          >>> import fdl
          >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
          >>> data, optimizer = np.arange(8, dtype="float32"), fdl.sgd(0.1)
          >>> run, how = fdl.start(0.0, optimizer), {"batch_size": 2}
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     saved = checkpoints(folder)
          ...     _ = fdl.fit(objective, optimizer, run, data, steps=40, watch=[saved], **how)
          ...     found = saved.at(33)
          >>> stopped = fdl.fit(objective, optimizer, run, data, steps=33, **how)
          >>> bool(found.params == stopped.run.params)
          True
        """
        plan = self.plan_for("at")
        step = int(check_uint32("at", "a step", step, "pass a step of the run"))
        begun = int(plan.run.step)
        saved = max((each for each in self.steps() if each <= step), default=-1)
        if saved <= begun <= step:
            return replayed(plan, plan.run, step)
        if saved < 0:
            raise ValueError(
                f"at: expected a step >= {min([begun, *self.steps()])}, the first that is known, "
                f"got {step}; pass the run of step 0 to saved.replaying(...), or keep more "
                "checkpoints"
            )
        return replayed(plan, self._read(saved, plan), step)

    def replaying(
        self,
        objective: Objective,
        optimizer: GradientTransformation,
        run: Run | Result,
        data: Batch,
        *,
        batch_size: int = 128,
        microbatch: int | None = None,
    ) -> "Checkpoints":
        """Sets the arguments with which `at` repeats steps, and returns this hook.

        This is needed only in a process in which no `fit` has had this hook in `watch`.

        Args:
          objective, optimizer, data, batch_size, microbatch: the arguments of the `fit` that made
            the checkpoints.
          run: the run with which that `fit` began, from `start`. For a step before the first
            checkpoint, `at` repeats the steps from this run.

        Returns:
          This hook. `replaying` warns if the arguments differ from those of the newest checkpoint.

        Raises:
          As `fit` and `at` do.

        Example:
          >>> import tempfile
          >>> import fdl
          >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
          >>> data, optimizer = np.arange(8, dtype="float32"), fdl.sgd(0.1)
          >>> run = fdl.start(np.float32(0), optimizer)
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     saved = checkpoints(folder)
          ...     saved = saved.replaying(objective, optimizer, run, data, batch_size=2)
          ...     found = saved.at(5)
          >>> int(found.step)
          5
        """
        check_exact("replaying", data)
        plan = plan_of(objective, optimizer, run, data, batch_size, microbatch)
        self.about = _about(plan)
        for newest in self.steps()[-1:]:
            self._read(newest, plan)
        self.plan, self.reached = plan, plan.last
        return self

    def plan_for(self, who: str) -> Plan:
        """The plan with which `at` repeats steps; raises if it is missing or cannot be repeated."""
        if self.plan is None:
            raise ValueError(
                f"{who}: expected checkpoints that watched a fit in this process, got {self!r}; "
                "call saved.replaying(objective, optimizer, run, data, batch_size=...) "
                "with the arguments of the fit that made them"
            )
        check_exact(who, self.plan.data)
        return self.plan

    def _read(self, step: int, plan: Plan) -> Run:
        """Loads the run of a checkpoint; raises or warns if it does not fit the plan."""
        found, result = read(self.folder / str(step), plan.run)
        if found["seed"] != int(plan.run.seed):
            raise ValueError(
                f"checkpoints: expected a run of seed {found['seed']}, which made the checkpoint "
                f"of step {step}, got one of seed {int(plan.run.seed)}; pass the run with which "
                "training began"
            )
        # A replay makes no records, so another `record_every` makes no difference.
        _warn_of_differences(found | {"record_every": plan.record_every}, self.about, stacklevel=4)
        run: Run = result.run
        return run

    def begin(self, plan: Plan) -> None:
        """Locks the folder, and compares the plan with the checkpoint that was loaded."""
        self.end()
        self.writer, told = None, ""
        try:
            if speaks(plan.run):
                self._open(plan)
        except Exception as error:
            told = str(error)
            raise
        finally:
            told = of_any(plan.run, told)
        if told:
            raise ValueError(
                f"checkpoints: expected a folder that the first process can use, got its error "
                f"{told!r}; see the output of that process"
            )
        if many(plan.run):
            self.about = _about(plan)
            self.manager = self.closing.enter_context(_manager(self.folder, alone=False))
        self.reached = int(plan.run.step)
        # A sweep leaves no plan, because `at` cannot replay a sweep.
        self.plan = plan._replace(run=owned(plan.run)) if plan.settings is None else None

    def _open(self, plan: Plan) -> None:
        self.closing.enter_context(_only_writer(self.folder))
        try:
            self._check_newest(int(plan.run.step))
            self.about = _about(plan)
            if self.found:
                _warn_of_differences(self.found, self.about, stacklevel=7)
            for gone in self.folder.glob(f".*{DELETED}"):
                shutil.rmtree(gone)
            if not many(plan.run):
                self.manager = self.closing.enter_context(_manager(self.folder))
                self.writer = self.closing.enter_context(BackgroundWriter(self._write))
        except BaseException:
            self.end()
            raise

    def advance(self, step: int, means: dict[str, Any]) -> None:
        """Notes the step, which may be the last one."""
        self.reached = step

    def _check_newest(self, step: int) -> None:
        newest = max(self.steps(), default=0)
        if newest > step:
            raise ValueError(
                f"checkpoints: expected a run at step {newest} or later, because {self.folder} has "
                f"a checkpoint of that step, got one at step {step}; pass saved.latest(run) to "
                "continue, or choose another folder for a new run"
            )

    def save(self, result: Result) -> None:
        """Hands the run to the background thread if a checkpoint is due."""
        due = len(result.history) % self.every == 0
        if (due or result.reason) and result.reason != NOT_FINITE:
            goodness = self._goodness(result)
            now = goodness.get(int(result.run.step), -np.inf)
            important = -np.inf < now == max(goodness.values())
            if self.writer is not None:
                self.writer.write(result, important)
                return
            begun = time.monotonic()
            wanted = important or bool(result.reason) or begun >= self.rested
            if of_the_first(result.run, wanted):
                self._write(result)
                self.rested = time.monotonic() + REST * (time.monotonic() - begun)

    def _goodness(self, result: Result) -> dict[int, float]:
        """A dict, step of each record -> how good its value is (larger is better).

        A value that is missing or not finite is as good as -infinity.
        """
        values = {int(record["step"]): record.get(self.monitor or "") for record in result.history}
        return {
            step: -self.sign * value if value is not None and np.isfinite(value) else -np.inf
            for step, value in values.items()
        }

    def _write(self, result: Result) -> None:
        """Saves a run and deletes old checkpoints; in the background thread if there is one."""
        step = int(result.run.step)
        if not (self.folder / LOCK).exists():
            raise FileNotFoundError(
                f"checkpoints: expected the folder {self.folder}, got none; it was removed or "
                "unmounted during training: create it again"
            )
        if of_the_first(result.run, step not in self.steps()):
            write(self.manager, result, self.about)
        if not speaks(result.run):
            return
        steps, goodness = self.steps(), self._goodness(result)
        best = max(steps, key=lambda step: goodness.get(step, -np.inf))
        older = steps[: -self.keep] if self.keep else []
        for old in {*older} - {best} if self.monitor else older:
            self._delete(old)

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; it is renamed first, so that a kill leaves no incomplete one."""
        gone = self.folder / f".{step}{DELETED}"
        (self.folder / str(step)).rename(gone)
        shutil.rmtree(gone)

    def end(self) -> None:
        """Waits for the last save, and unlocks the folder."""
        self.closing.close()


def _manager(folder: Path, alone: bool = True) -> Any:
    """Orbax's manager of the folder, for this process alone or for all processes together."""
    ocp = package()
    of_one = {"active_processes": {jax.process_index()}, "barrier_sync_key_prefix": "fdl"}
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(**of_one if alone else {}),
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Creates and locks the folder; raises if it has other files or another process locked it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / LOCK).exists() and any(folder.iterdir()):
            found = min(each.name for each in folder.iterdir())
            raise ValueError(
                f"checkpoints: expected an empty folder or a folder of checkpoints, got {folder} "
                f"with {found!r} in it; choose another folder"
            )
        lock = open(folder / LOCK, "ab")  # noqa: SIM115
    except OSError as error:
        raise type(error)(
            error.errno,
            f"checkpoints: expected a folder to write to, got {error.strerror}; choose another",
            str(folder),
        ) from error
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"checkpoints: expected a folder that no other program uses, got {folder}, to "
                "which another program writes; wait until that program ends, or choose another "
                "folder"
            ) from error
        yield


def _about(plan: Plan) -> dict[str, Any]:
    """What a checkpoint says about the program that made it."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {
        "seed": np.asarray(plan.run.seed).tolist(),
        "versions": {"fdl": __version__, **versions},
        "platform": jax.default_backend(),
        "data": _data(plan.data),
        "batch_size": plan.batch_size,
        "microbatch": plan.microbatch,
        "record_every": plan.record_every,
        "objective": described(plan.objective),
        "optimizer": description(plan.optimizer),
        "settings": plan.settings,
    }


def _data(data: Any) -> dict[str, Any]:
    """The fingerprint of the data; warns if a continued run would not see the same batches."""
    if not isinstance(data, Source):
        return fingerprint(data)
    if not data.exact:
        warnings.warn(
            f"checkpoints: expected data whose batch is a function of the step, got a {data!r}; "
            "a continued run gets other batches: pass fdl.data.source(f) with f(step) -> batch, or "
            "an iterable whose iterators have get_state and set_state",
            stacklevel=7,
        )
    return data.fingerprint()


def _warn_of_differences(found: dict[str, Any], now: dict[str, Any], stacklevel: int) -> None:
    """Warns if a checkpoint was made with other data, settings or versions."""
    results = {
        "data": "the examples in a batch",
        "batch_size": "the examples in a batch",
        "microbatch": "the rounding and the random numbers of a step",
        "record_every": "the steps of the records",
        "objective": "the loss",
        "optimizer": "the updates",
        "settings": "the updates",
        "versions": "the rounding",
        "platform": "the rounding",
    }
    for name, result in results.items():
        if name in found and found[name] != now[name]:
            warnings.warn(
                f"checkpoints: expected the {name} with which the run began, "
                f"{shortened(str(found[name]), 400)}, got {shortened(str(now[name]), 400)}; "
                f"compared with an uninterrupted run, {result} may differ",
                stacklevel=stacklevel,
            )
