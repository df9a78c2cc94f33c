"""What a person sees while a network trains: a bar in a terminal, else about 20 lines."""

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
        self.every = (last - step) / PRINTED
        self.printed = step
        if not wanted:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console()
        if self.console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[seen]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=self.console)
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
        """Moves the bar to a step, with the loss and metrics since the last record."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step, seen=_numbers(values(means)))

    def record(self, record: dict[str, float]) -> None:
        """Prints a record, where there is no bar to show it; of many records, some."""
        far = record["step"] >= min(self.printed + self.every, self.last)
        if self.console is not None and self.bar is None and far:
            self.printed = int(record["step"])
            rest = {name: value for name, value in record.items() if name != "seconds"}
            step, epoch = rest.pop("step"), rest.pop("epoch")
            line = f"step {step:6.0f}  epoch {epoch:5.1f}  {_numbers(rest)}"
            self.console.print(line, highlight=False, soft_wrap=True)


def _numbers(named: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in named.items())
