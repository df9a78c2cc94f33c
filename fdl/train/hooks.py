"""What `fit` does between two chunks of steps: it records, logs, shows progress, and may stop.

A chunk is a number of steps that one call of a compiled function takes.
"""

import contextlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from fdl import paths
from fdl.checks import amount, described
from fdl.core.layer import abstract
from fdl.train.evaluation import params_and_state, values
from fdl.train.run import Run, copied

# How long a chunk should take. Each call of a compiled function allocates new memory, tens of
# megabytes for a large network; with chunks of 0.25 seconds, this took a sixth of the CPU time.
# Longer chunks delay the reaction to Ctrl-C.
CHUNK_SECONDS = 1.0
PRINTED_LINES = 20  # about how many records are printed if there is no terminal for a progress bar


class Best(NamedTuple):
    """The parameters at the record with the best value of the monitored metric.

    Args:
      step: the step of this record.
      value: the value of the monitored metric in this record, a finite number.
      params: a pytree, the parameters that `fdl.optim.eval_params` gave at this record.
      state: a pytree, the network's state at this record.
    """

    step: int
    value: float
    params: Any
    state: Any

    def __repr__(self) -> str:
        return f"<Best {self.value:.4g} at step {self.step}; params: {amount(self.params)}>"


class Unfinished(NamedTuple):
    """What the next call of `fit` needs, besides the run, to continue as if training never stopped.

    A record is due if its step is a multiple of `record_every`.

    Args:
      means: the means over the steps since the last record that was due.
      records: the number of records up to and including the last one that was due.
      best: the parameters at the best of these records; None if there is none.
      worse: the number of these records after the best one.
    """

    means: Any
    records: int
    best: Best | None
    worse: int

    def __repr__(self) -> str:
        counts = f"{self.records} records, {self.worse} not better"
        return f"<Unfinished after {counts}; means of {', '.join(self.means)}; best: {self.best}>"


class Recorder:
    """Stores the history, the log, the best parameters and the reason to stop training.

    See `fit` for the arguments.
    """

    def __init__(self, monitor: str, mode: str, patience: int | None, log: Any):
        self.monitor = f"val_{monitor}"
        self.sign = 1 if mode == "min" else -1
        self.patience = patience
        self.log = Log(log)
        self.begun = time.perf_counter()
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None
        self.reason = ""
        self.worse = 0

    def resume(self, before: Any, means: Any) -> Any:
        """Continues from an earlier result.

        Args:
          before: a Result of `fit`, or None to begin without one.
          means: the means over zero steps, all of them 0.

        Returns:
          The means that `before` stored, over the steps since its last due record; `means` if
          `before` is None, or if the stored means have different names, shapes or dtypes.
        """
        if before is None:
            return means
        unfinished = before.unfinished
        self.history = before.history[: unfinished.records]
        self.best, self.worse = unfinished.best, unfinished.worse
        if before.history:
            self.begun -= before.history[-1]["seconds"]
        alike = abstract(unfinished.means) == abstract(means)
        return copied(unfinished.means) if alike else means

    def unfinished(self, means: Any) -> Unfinished:
        """What a later call of `fit` needs; `means` are over the steps since the last record."""
        return Unfinished(means, len(self.history), self.best, self.worse)

    def add(self, record: dict[str, float], run: Run) -> dict[str, float]:
        """Adds a record to the history and the log; if it is the best, copies the parameters.

        Returns:
          The record, with the entry "seconds" added.
        """
        record = record | {"seconds": time.perf_counter() - self.begun}
        self.history.append(record)
        self.log.write(json.dumps(record) + "\n")
        if self.monitor not in record:
            return record
        value = self.sign * record[self.monitor]
        # NaN and infinity are never better. The first finite value is always better.
        if np.isfinite(value) and (self.best is None or value < self.sign * self.best.value):
            step, value = int(record["step"]), record[self.monitor]
            self.best = Best(step, value, *copied(params_and_state(run)))
            self.worse = 0
        else:
            self.worse += 1
        return record

    def stop_if_needed(self, run: Run, finite: bool, interrupted: bool, due: bool) -> None:
        """Sets the reason to stop, if there is one.

        Args:
          run: the run after a chunk.
          finite: False if a parameter or a number in the state is not finite.
          interrupted: True if Ctrl-C was pressed.
          due: True if the record at this step is due. Only then can patience end training.
        """
        if self.reason:
            return
        if not finite:
            self.reason = "not finite"
            warnings.warn(
                f"fit: expected finite parameters and state, got {_not_finite(run)} by step "
                f"{int(run.step)}; training ended there: try a smaller learning rate, or "
                "fdl.optim.apply_if_finite around the optimizer",
                stacklevel=3,
            )
        elif interrupted:
            self.reason = "interrupted"
        elif due and self.patience is not None and self.worse >= self.patience:
            self.reason = f"no better for {self.worse} records"

    @contextlib.contextmanager
    def keeping_the_run(self) -> Iterator[None]:
        """If the block raises, warns and stops training with the error as the reason."""
        try:
            yield
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.reason = f"failed: {type(error).__name__}"
        warnings.warn(
            f"fit: expected to evaluate and record, got {type(error).__name__}: {error}; training "
            "ended there, with the run and the history as they were",
            stacklevel=3,
        )


def _not_finite(run: Run) -> str:
    """Describes the first parameter or state value that is not finite, with its path."""
    for part in ("params", "state"):
        for path, leaf in paths.leaves(getattr(run, part)).items():
            if jax.numpy.issubdtype(leaf.dtype, np.inexact):
                values = np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64)
                bad = values[~np.isfinite(values)]
                if bad.size:
                    return f"{bad.flat[0]} at {'/'.join(filter(None, (part, path)))!r}"
    return "values in between that were not"


class Log:
    """A log file of JSON lines. If the file cannot be written, `Log` raises; later, it warns.

    Args:
      file: path of the log file; None means that there is no log.

    Raises:
      ValueError: `file` is not a path.
      OSError: the file cannot be written.
    """

    def __init__(self, file: Any):
        if file is not None and not isinstance(file, str | os.PathLike):
            raise ValueError(
                f"fit: expected log to be the path of a file, got {described(file)}; "
                "pass log='history.jsonl' or the like"
            )
        self.file = file
        self.waiting = ""
        try:
            self.append()
        except OSError as error:
            raise type(error)(
                error.errno,
                f"fit: expected a log that can be written, got {error.strerror}; "
                "make its folder, or choose another",
                str(file),
            ) from error

    def write(self, line: str) -> None:
        """Appends a line to the log.

        If this fails, the line is saved and written together with the next line. Only the first of
        several failures in a row warns.
        """
        warned = bool(self.waiting)
        self.waiting += line
        try:
            self.append()
        except OSError as error:
            if not warned:
                warnings.warn(
                    f"fit: expected a log that can be written, got {error.strerror} for "
                    f"{self.file}; training goes on, and the records are in the history",
                    stacklevel=4,
                )

    def append(self) -> None:
        """Appends the lines that are not yet written to the file, either all or none of them."""
        if self.file is not None:
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


class Progress:
    """Shows how far training is, with the loss and metrics of the latest steps.

    Args:
      wanted: True shows progress. False shows nothing and does not import rich.
      step: the step at which training begins.
      last: the step at which training ends.
    """

    def __init__(self, wanted: bool, step: int, last: int):
        self.bar: Any = None
        self.console: Any = None
        self.last = last
        self.validated: dict[str, float] = {}
        self.every = (last - step) / PRINTED_LINES
        self.printed = step
        if not wanted:
            return
        from rich.console import Console

        self.console = Console()
        if self.console.is_terminal:
            self.bar = _bar(self.console)
            self.task = self.bar.add_task("training", total=last, completed=step, seen="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, step: int, means: dict[str, Any]) -> None:
        """Moves the bar to a step, and shows values below it.

        The values are the loss and metrics since the last record, and the validation values of the
        last record.
        """
        if self.bar is not None:
            seen = _numbers(values(means) | self.validated)
            self.bar.update(self.task, completed=step, seen=seen)

    def record(self, record: dict[str, float]) -> None:
        """Shows a record in the bar. Without a bar, prints only about `PRINTED_LINES` records."""
        self.validated = {name: value for name, value in record.items() if name.startswith("val_")}
        if self.bar is not None:
            self.bar.update(self.task, seen=_numbers(_training(record) | self.validated))
        far = record["step"] >= min(self.printed + self.every, self.last)
        if self.console is not None and self.bar is None and far:
            self.printed = int(record["step"])
            seen = _numbers(_training(record) | self.validated)
            line = f"step {record['step']:6.0f}  epoch {record['epoch']:5.1f}  {seen}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _bar(console: Any) -> Any:
    """A progress bar with the values in lines below it, so that many values do not hide the bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Bar(Bars):
        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            yield from (Text(task.fields["seen"]) for task in self.tasks if task.fields["seen"])

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console)


def _training(record: dict[str, float]) -> dict[str, float]:
    """The training loss and metrics of a record, without its validation values."""
    rest = ("step", "epoch", "seconds")
    return {
        name: value
        for name, value in record.items()
        if name not in rest and not name.startswith("val_")
    }


def _numbers(named: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())


class Pace:
    """The number of steps in the next chunk.

    It is `chunk`, or if `chunk` is None, the number of steps that take about CHUNK_SECONDS.
    """

    def __init__(self, chunk: int | None):
        self.fixed = chunk
        self.length = chunk or 1
        self.warm = False

    def time(self, length: int, program: Callable[..., Any], *args: Any) -> Any:
        """Runs a chunk of `length` steps; sets the number of steps of the next chunk by its time.

        Returns:
          The result of `program(*args)`.
        """
        begun = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = time.perf_counter() - begun
        if self.fixed is None and self.warm:
            # The next chunk has at most ten times as many steps. The reason is that a short chunk
            # spends most of its time on the call itself, so its time says little about a step.
            self.length = max(1, min(int(CHUNK_SECONDS / seconds * length), 10 * length))
        elif self.fixed is None:
            self.warm = True  # The time of the first chunk is mostly compilation.
        return result


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True if Ctrl-C was pressed once in the block.

    A second Ctrl-C raises KeyboardInterrupt. In a thread other than the main thread the function
    always returns False, because only the main thread receives signals.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)
