"""Hooks: functions that `fit` calls on the host at each record, for example to write a log.

    fit(..., watch=[fdl.progress(), fdl.log("run.jsonl"), fdl.early_stop("val_loss", 5)])

A hook is any function `(record, run)` that returns None, or a text that says why training should
stop. A hook that needs more than that is an `Observer`.
"""

import contextlib
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from fdl import paths
from fdl.checks import amount, check_count, check_number, described
from fdl.train.checks import check_mode
from fdl.train.evaluation import params_and_state
from fdl.train.run import Run, speaks
from fdl.typing import Batch, Objective

Record = dict[str, float]


class Plan(NamedTuple):
    """What `fit` or `sweep` is about to do. Each `Observer` gets it before the first step.

    Args:
      objective, optimizer, batch_size, microbatch: the arguments of `fit`.
      data: arrays [N, ...], or a source.
      sample: the data, or the first batch of a source.
      examples: N; None if it is not known.
      run: the run before the first step.
      last: the step at which training ends.
      record_every: the number of steps from one record to the next.
      names: the names of the values in each record.
      settings: in a sweep, the settings of hyper-parameters. `optimizer` is then the optimizer of
        the first setting, and `run` holds all members. None in `fit`.
    """

    objective: Objective
    optimizer: Any
    data: Any
    sample: Batch
    examples: int | None
    batch_size: int
    run: Run
    last: int
    record_every: int
    names: tuple[str, ...] = ()
    settings: list[dict[str, float]] | None = None
    microbatch: int | None = None


class Observer:
    """Base class of hooks that need more than a record and a run. Its methods do nothing.

    `fit` calls `recall`, then `begin`, then `advance` after each chunk of steps. At each record it
    calls the hook itself, and `save` after all hooks were called. At the end it calls `end`, even
    if an error ended training.

    Example:
      >>> import fdl
      >>> class Slowest(Observer):
      ...     seconds = 0.0
      ...     def __call__(self, record, run):
      ...         self.seconds = max(self.seconds, record["seconds"])
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run, slowest = fdl.start(np.float32(0), fdl.sgd(0.1)), Slowest()
      >>> _ = fdl.fit(objective, fdl.sgd(0.1), run, np.ones(8, "float32"), steps=2, watch=[slowest])
      >>> slowest.seconds > 0
      True
    """

    monitor: str | None = None
    """The name of a value that must be in each record; None if no value is required."""

    writes: bool = False
    """True if the hook only prints or writes files. Only the first process then calls the hook."""

    @property
    def name(self) -> str:
        """The name under which a checkpoint keeps what `remember` returns."""
        return " ".join(filter(None, (type(self).__name__, self.monitor)))

    def recall(self, memory: dict[str, Any], run: Run) -> None:
        """Continues from what `remember` returned, or forgets everything if `memory` is `{}`.

        Args:
          memory: a dict, path -> array or number.
          run: the run before the first step.
        """

    def resume(self, run: Run) -> Any:
        """Called by a sweep before it begins; returns a `Result` from which to continue, or None.

        Args:
          run: the run at step 0, with all members.
        """
        return None

    def begin(self, plan: Plan) -> str | None:
        """Called before the first step; may return a reason not to train."""

    def advance(self, step: int, means: dict[str, Any]) -> None:
        """Called after each chunk of steps, with the means over the steps since the last record."""

    def __call__(self, record: Record, run: Run) -> str | None:
        """Called at each record; may return a reason to stop."""

    def remember(self) -> dict[str, Any]:
        """What the hook needs to continue, as a dict, path -> array or number."""
        return {}

    def save(self, result: Any) -> None:
        """Called at each record after all hooks, unless `fit` found numbers that are not finite.

        Args:
          result: the `Result` so far; its reason is "" if training goes on.
        """

    def end(self) -> None:
        """Called when training ends."""


class _Plain(Observer):
    """An Observer made from a hook that is a plain function."""

    def __init__(self, f: Callable[[Record, Run], str | None]):
        self.f = f

    def __call__(self, record: Record, run: Run) -> str | None:
        return self.f(record, run)


class Hooks:
    """All hooks of one `fit`. If a hook raises, training ends and the run and history are kept.

    Args:
      watch: the argument of `fit` or `sweep`.
      who: the name of the function, for error messages.

    Attributes:
      reason: the first reason to stop that a hook returned, or "".
      failed: the first error in a hook, in the data or in the validation, as text; or "".

    Raises:
      TypeError: `watch` is not a sequence of functions.
    """

    def __init__(self, watch: Any, who: str = "fit"):
        self.who = who
        listed = isinstance(watch, Iterable) and not isinstance(watch, str | dict)
        hooks = list(watch) if listed else [watch]
        for hook in hooks:
            if not listed or isinstance(hook, type) or not callable(hook):
                raise TypeError(
                    f"{who}: expected watch to be a list of hooks, functions (record, run) -> "
                    f"None, got {described(hook)}; pass watch=[fdl.progress()], for example"
                )
        self.observers = [hook if isinstance(hook, Observer) else _Plain(hook) for hook in hooks]
        self.reason = self.failed = ""
        self.given = bool(self.observers)

    def __bool__(self) -> bool:
        return self.given

    @contextlib.contextmanager
    def watching(self, plan: Plan, memories: dict[str, dict[str, Any]]) -> Iterator[None]:
        """Calls `recall` and `begin` of all hooks before the `with` block, and `end` after it.

        Errors before the first step are raised, because nothing is lost then.

        Args:
          plan: what `fit` is about to do.
          memories: what `memories` returned when the run was last stopped.
        """
        for observer in self.observers:
            if observer.monitor is not None and observer.monitor not in plan.names:
                raise ValueError(
                    f"{self.who}: expected {described(observer)} to watch one of "
                    f"{', '.join(plan.names)}, got {observer.monitor!r}; choose one of these, add "
                    "the metric to the objective, or pass validation data for names that begin "
                    "with val_"
                )
        if not speaks(plan.run):
            self.observers = [each for each in self.observers if not each.writes]
        named = self._named()
        begun: list[Observer] = []
        try:
            for name, observer in named.items():
                observer.recall(memories.get(name, {}), plan.run)
                self.reason = self.reason or observer.begin(plan) or ""
                begun.append(observer)
            yield
        finally:
            for observer in begun:
                with self.keeping_the_run():
                    observer.end()

    def resume(self, run: Run) -> Any:
        """The `Result` from which a sweep continues, from the first hook that has one; or None."""
        found = (observer.resume(run) for observer in self.observers)
        return next((result for result in found if result is not None), None)

    def _named(self) -> dict[str, Observer]:
        """The hooks by their names; hooks with the same name are numbered."""
        named: dict[str, Observer] = {}
        for observer in self.observers:
            name, number = observer.name, 2
            while name in named:
                name, number = f"{observer.name} {number}", number + 1
            named[name] = observer
        return named

    def advance(self, step: int, means: dict[str, Any]) -> None:
        """Calls `advance` of all hooks."""
        for observer in self.observers:
            with self.keeping_the_run():
                observer.advance(step, means)

    def record(self, record: Record, run: Run) -> None:
        """Calls all hooks with a record."""
        for observer in self.observers:
            with self.keeping_the_run():
                reason = observer(dict(record), run)
                if reason is not None and not isinstance(reason, str):
                    raise TypeError(
                        f"{self.who}: expected a hook to return None, or a reason to stop as text, "
                        f"got {described(reason)}; to stop, return 'target reached', for example"
                    )
                self.reason = self.reason or reason or ""

    def memories(self) -> dict[str, dict[str, Any]]:
        """What each hook needs to continue, by the hook's name."""
        return {
            name: memory
            for name, observer in self._named().items()
            if (memory := dict(observer.remember()))
        }

    def save(self, result: Any) -> None:
        """Calls `save` of all hooks."""
        for observer in self.observers:
            with self.keeping_the_run():
                observer.save(result)

    @contextlib.contextmanager
    def keeping_the_run(self, unless: bool = False) -> Iterator[None]:
        """Turns an error in the `with` block into a reason to stop, and warns with its traceback.

        If `unless` is True, the error is raised instead, because no training would be lost.
        """
        try:
            yield
        except Exception as error:
            if unless:
                raise
            self.failed = self.failed or f"failed: {type(error).__name__}"
            warnings.warn(
                f"{self.who}: expected no error from the data, the evaluation and the hooks, got "
                f"{type(error).__name__}: {error}; training ended, and the result has the run and "
                "the history\n" + "".join(traceback.format_exception(error)),
                stacklevel=4,
            )


def early_stop(
    monitor: str = "val_loss",
    patience: int = 5,
    *,
    min_delta: float = 0.0,
    mode: Literal["min", "max"] = "min",
) -> "EarlyStop":
    """A hook that stops training when a value no longer gets better.

    Args:
      monitor: the name of a value in the records, such as "val_loss" or "loss".
      patience: training stops after this many records in a row without a better value, an int >= 1.
      min_delta: a value is better only if it is better than the best one by more than this, >= 0.
      mode: "min" if smaller values are better, "max" if larger values are better. NaN and infinity
        are never better.

    Returns:
      A hook for `fit(..., watch=[...])`. It goes on counting when `fit` continues a `Result` or a
      checkpoint, and starts anew when `fit` begins with a `Run`.

    Raises:
      OptionError: patience or min_delta is out of range.
      ValueError: mode is neither "min" nor "max". `fit` raises it if no record has the value.

    Example:
      >>> stop = early_stop("val_accuracy", patience=2, mode="max")
      >>> [stop({"step": step, "val_accuracy": 0.9}, None) for step in range(3)]
      [None, None, 'no better val_accuracy for 2 records']

    Source: section 7.8, algorithm 7.1 of Goodfellow, Bengio and Courville 2016, "Deep Learning".
    """
    check_mode("early_stop", mode)
    check_number("early_stop", "min_delta", min_delta, "[0, inf)", "use 0 for any improvement")
    remedy = "pass the number of records without a better value before training stops"
    patience = check_count("early_stop", "patience", patience, remedy)
    return EarlyStop(monitor, patience, float(min_delta), mode)


class EarlyStop(Observer):
    """What `early_stop` returns.

    Args:
      monitor, patience, min_delta, mode: the arguments of `early_stop`.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str):
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.sign = 1 if mode == "min" else -1
        self.recall({}, None)

    def __repr__(self) -> str:
        return f"early_stop({self.monitor!r}, patience={self.patience})"

    def recall(self, memory: dict[str, Any], run: Any) -> None:
        """Continues from the best value and the number of records after it."""
        self.best = float(memory.get("best", np.inf))  # times `sign`, so smaller is better
        self.worse = int(memory.get("worse", 0))

    def remember(self) -> dict[str, Any]:
        """The best value and the number of records after it."""
        return {"best": self.best, "worse": self.worse}

    def begin(self, plan: Plan) -> str | None:
        """The reason to stop, if an earlier `fit` has already used up the patience."""
        return self._reason()

    def __call__(self, record: Record, run: Any) -> str | None:
        """Compares the value with the best one."""
        value = self.sign * record[self.monitor or ""]
        better = np.isfinite(value) and value < self.best - self.min_delta
        self.best, self.worse = (value, 0) if better else (self.best, self.worse + 1)
        return self._reason()

    def _reason(self) -> str | None:
        out = self.worse >= self.patience
        return f"no better {self.monitor} for {self.worse} records" if out else None


def keep_best(monitor: str = "val_loss", *, mode: Literal["min", "max"] = "min") -> "KeepBest":
    """A hook that keeps the parameters at the record with the best value.

    Args:
      monitor: the name of a value in the records, such as "val_loss".
      mode: "min" if smaller values are better, "max" if larger values are better. NaN and infinity
        are never better.

    Returns:
      A hook for `fit(..., watch=[...])`, with the attributes step, value, params and state.
      `evaluate` and `predict` take it in place of params. It keeps its values when `fit` continues
      a `Result` or a checkpoint, and starts anew when `fit` begins with a `Run`.

    Raises:
      ValueError: mode is neither "min" nor "max". `fit` raises it if no record has the value.

    Example:
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run, ones = fdl.start(np.float32(0), fdl.sgd(0.6)), np.ones(8, "float32")
      >>> best, how = keep_best(), {"steps": 3, "record_every": 1, "validation": ones}
      >>> _ = fdl.fit(objective, fdl.sgd(0.6), run, ones, watch=[best], **how)
      >>> best.step, round(best.value, 6)
      (3, 6.4e-05)
    """
    check_mode("keep_best", mode)
    return KeepBest(monitor, mode)


class KeepBest(Observer):
    """What `keep_best` returns.

    Args:
      monitor, mode: the arguments of `keep_best`.
    """

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.recall({}, None)

    def __repr__(self) -> str:
        kept = "nothing yet" if self.step is None else f"{self.value:.4g} at step {self.step}"
        params = f"; params: {amount(self._params)}" if self.step is not None else ""
        return f"<keep_best({self.monitor!r}): {kept}{params}>"

    def recall(self, memory: dict[str, Any], run: Any) -> None:
        """Continues from the best record of an earlier run, whose trees have the same paths."""
        self.step: int | None = None
        self.value: float | None = None
        self._params = self._state = None
        if memory:
            self.step, self.value = int(memory["step"]), float(memory["value"])
            self._params = _taken(memory, "params", run.params)
            self._state = _taken(memory, "state", run.state)

    def remember(self) -> dict[str, Any]:
        """The best record as numbers and arrays by path."""
        if self.step is None:
            return {}
        kept = {"step": self.step, "value": self.value}
        return kept | _put("params", self._params) | _put("state", self._state)

    def __call__(self, record: Record, run: Run) -> None:
        """Keeps the parameters if the value is the best one so far."""
        value = record[self.monitor or ""]
        best = np.inf if self.value is None else self.sign * self.value
        if np.isfinite(value) and self.sign * value < best:
            self.step, self.value = int(record["step"]), value
            self._params, self._state = params_and_state(run)

    @property
    def params(self) -> Any:
        """The parameters that `fdl.optim.eval_params` gave at the best record."""
        return self._known(self._params)

    @property
    def state(self) -> Any:
        """The state of the network at the best record."""
        return self._known(self._state)

    def _known(self, tree: Any) -> Any:
        if self.step is None:
            raise ValueError(
                f"keep_best: expected a record with a finite {self.monitor}, got none; train "
                "first, with this hook in watch=[...]"
            )
        return tree


def _put(name: str, tree: Any) -> dict[str, Any]:
    return {f"{name}/{path}": leaf for path, leaf in paths.leaves(tree).items()}


def _taken(memory: dict[str, Any], name: str, like: Any) -> Any:
    """The tree that `_put` wrote under a name, in the structure of `like`."""
    begin = f"{name}/"
    found = {path[len(begin) :]: leaf for path, leaf in memory.items() if path.startswith(begin)}
    return paths.tree(found, like)


def log(file: str | os.PathLike[str]) -> "Log":
    """A hook that appends each record to a file, as a line of JSON.

    If the file cannot be written in the middle of training, the hook warns once, and writes the
    missing lines with a later record. If a run is killed and continued from a checkpoint, the file
    has the records after the checkpoint twice. Use the last line of each step.

    Args:
      file: path of the file; its folder must exist.

    Returns:
      A hook for `fit(..., watch=[...])`.

    Raises:
      TypeError: file is not a path.
      OSError: `fit` raises it before the first step if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write = log(f"{folder}/run.jsonl")
      ...     write({"step": 10, "loss": 0.5}, None)
      ...     Path(folder, "run.jsonl").read_text()
      '{"step": 10, "loss": 0.5}\\n'
    """
    if not isinstance(file, str | os.PathLike):
        raise TypeError(
            f"log: expected the path of a file, got {described(file)}; pass 'history.jsonl', for "
            "example"
        )
    return Log(file)


class Log(Observer):
    """What `log` returns.

    Args:
      file: path of the file.
    """

    writes = True

    def __init__(self, file: str | os.PathLike[str]):
        self.file, self.waiting = file, ""

    def __repr__(self) -> str:
        return f"log({str(self.file)!r})"

    def begin(self, plan: Plan) -> None:
        """Raises unless the file can be written."""
        self.waiting = ""
        try:
            self._append()
        except OSError as error:
            raise type(error)(
                error.errno,
                f"log: expected a file that can be written, got {error.strerror}; make its folder, "
                "or choose another file",
                str(self.file),
            ) from error

    def __call__(self, record: Record, run: Any) -> None:
        """Appends the record. Only the first of several failures in a row warns."""
        warned = bool(self.waiting)
        self.waiting += json.dumps(record) + "\n"
        try:
            self._append()
        except OSError as error:
            if not warned:
                warnings.warn(
                    f"log: expected a file that can be written, got {error.strerror} for "
                    f"{self.file}; training continues, and the records are in the history",
                    stacklevel=5,
                )

    def _append(self) -> None:
        """Appends the lines that are not yet written to the file, either all or none of them."""
        with open(self.file, "ab", buffering=0) as file:
            size = file.tell()
            rest = self.waiting.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):  # /dev/full, for example, has no size
                    file.truncate(size)
                raise
        self.waiting = ""
