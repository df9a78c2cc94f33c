"""A hook that shows how far training is: a bar in a terminal, or printed lines."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from fdl.train.evaluation import values
from fdl.train.hooks import Observer, Plan, Record

MUCH = 0.2  # the share of time above which lines say that training waits for the data
PRINTED_LINES = 20  # about how many records are printed if there is no terminal for a progress bar


def progress() -> "Progress":
    """A hook that shows how far training is, with the loss and metrics of the latest steps.

    In a terminal it shows a bar; otherwise it prints about 20 of the records. If the output cannot
    be written (a closed pipe, a full disk), it warns and shows nothing more.

    Returns:
      A hook for `fit(..., watch=[...])`.

    Example:
      >>> progress()
      progress()
    """
    return Progress()


class Progress(Observer):
    """What `progress` returns."""

    writes = True

    def __repr__(self) -> str:
        return "progress()"

    def begin(self, plan: Plan) -> None:
        """Starts the bar, or prepares to print lines if there is no terminal."""
        from rich.console import Console

        self.bar: Any = None
        self.console: Any = Console()
        self.last = plan.last
        self.validated: Record = {}
        step = int(plan.run.step)
        self.every = (self.last - step) / PRINTED_LINES
        self.printed = step
        with self._kept_from_training():
            if self.console.is_terminal:
                self.bar = _bar(self.console)
                self.task = self.bar.add_task("training", total=self.last, completed=step, seen="")
                self.bar.start()

    def end(self) -> None:
        """Stops the bar."""
        with self._kept_from_training():
            if self.bar is not None:
                self.bar.stop()

    @contextlib.contextmanager
    def _kept_from_training(self) -> Iterator[None]:
        """If the `with` block raises an error, warns, and shows nothing from then on."""
        try:
            yield
        except (Exception, SystemExit) as error:  # rich exits if nobody reads the pipe any more
            bar, self.bar, self.console = self.bar, None, None
            with contextlib.suppress(Exception, SystemExit):
                if bar is not None:
                    bar.stop()
            closed = isinstance(error, SystemExit)
            got = "a closed pipe" if closed else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"fit: expected an output that can be written, got {got}; training continues "
                "without showing progress",
                stacklevel=7,
            )

    def advance(self, step: int, means: dict[str, Any]) -> None:
        """Moves the bar to a step, and shows values below the bar.

        The values are the loss and metrics since the last record, and the validation values of the
        last record.
        """
        if self.bar is not None:
            seen = _numbers(values(means) | self.validated)
            with self._kept_from_training():
                self.bar.update(self.task, completed=step, seen=seen)

    def __call__(self, record: Record, run: Any) -> None:
        """Shows a record in the bar. Without a bar, prints only about `PRINTED_LINES` records."""
        self.validated = {name: value for name, value in record.items() if name.startswith("val_")}
        seen = _numbers(_training(record) | self.validated) + _bottleneck(record)
        far = record["step"] >= min(self.printed + self.every, self.last)
        with self._kept_from_training():
            if self.bar is not None:
                self.bar.update(self.task, completed=record["step"], seen=seen)
            elif self.console is not None and far:
                self.printed = int(record["step"])
                epoch = f"epoch {record['epoch']:5.1f}  " if "epoch" in record else ""
                line = f"step {record['step']:6.0f}  {epoch}{seen}"
                self.console.print(line, highlight=False, soft_wrap=True)


def _bottleneck(record: Record) -> str:
    """A text that says that training waits for the data; "" if it seldom waits."""
    waiting = record.get("waiting", 0.0)
    return f"  waits for the data {waiting:.0%} of the time" if waiting > MUCH else ""


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
    rest = ("step", "epoch", "seconds", "learning_rate", "waiting")
    return {
        name: value
        for name, value in record.items()
        if name not in rest and not name.startswith("val_")
    }


def _numbers(named: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())
