"""What a person sees while a network trains: a bar in a terminal, else about 20 lines."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from fdl.train.evaluate import values

PRINTED = 20


class Progress:
    """Shows how far training is, with the loss and metrics of the latest steps.

    Args:
      wanted: False shows nothing, and imports nothing.
      step: where training begins.
      last: where it will end.

    Example:
      >>> from fdl.train.means import Mean
      >>> with Progress(False, 0, 10) as bar:
      ...     bar.show(5, {"loss": Mean(5.0, 5.0)})
    """

    def __init__(self, wanted: bool, step: int, last: int):
        self.bar: Any = None
        self.console: Any = None
        self.last = last
        self.validated: dict[str, float] = {}
        self.every = (last - step) / PRINTED
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
        """Moves the bar to a step, with the loss and metrics since the last record.

        Beside them stand those of the validation data, at the last record.
        """
        if self.bar is not None:
            seen = _numbers(values(means) | self.validated)
            self.bar.update(self.task, completed=step, seen=seen)

    def record(self, record: dict[str, float]) -> None:
        """Prints a record, where there is no bar to show it; of many records, some."""
        self.validated = {name: each for name, each in record.items() if name.startswith("val_")}
        if self.bar is not None:
            self.bar.update(self.task, seen=_numbers(_training(record) | self.validated))
        far = record["step"] >= min(self.printed + self.every, self.last)
        if self.console is not None and self.bar is None and far:
            self.printed = int(record["step"])
            seen = _numbers(_training(record) | self.validated)
            line = f"step {record['step']:6.0f}  epoch {record['epoch']:5.1f}  {seen}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _bar(console: Any) -> Any:
    """A bar with what was seen in lines of its own: of many metrics, none pushes the bar away."""
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
    rest = ("step", "epoch", "seconds")
    return {
        name: value
        for name, value in record.items()
        if name not in rest and not name.startswith("val_")
    }


def _numbers(named: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())
