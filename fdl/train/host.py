"""What the host does between two chunks of steps: history, log, best parameters, pace, Ctrl-C."""

import contextlib
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from fdl.train.step import Run, own

CHUNK_SECONDS = 0.25


class Best(NamedTuple):
    """The parameters at the record with the best value of the monitored metric.

    Args:
      step: how many steps they had been trained.
      value: of the metric.
      params: a pytree.
      state: a pytree.
    """

    step: int
    value: float
    params: Any
    state: Any


class Host:
    """History, log, best parameters and the reason to stop; see `fit` for the arguments.

    Raises:
      OSError: a log that cannot be written.
    """

    def __init__(self, monitor: str, mode: str, patience: int | None, chunk: int | None, log: Any):
        self.monitor = f"val_{monitor}"
        self.sign = 1 if mode == "min" else -1
        self.patience = patience
        self.log = log
        self.pace = Pace(chunk)
        self.begun = time.perf_counter()
        self.history: list[dict[str, float]] = []
        self.best: Best | None = None
        self.reason = ""
        self.worse = 0
        try:
            self.write("")
        except OSError as error:
            raise type(error)(
                error.errno,
                f"fit: expected a log that can be written, got {error.strerror}; "
                "make its folder, or choose another",
                str(log),
            ) from error

    def take(self, record: dict[str, float], run: Run) -> dict[str, float]:
        """Adds a record to the history and the log, and keeps the run's parameters if best."""
        record = record | {"seconds": time.perf_counter() - self.begun}
        self.history.append(record)
        self.write(json.dumps(record) + "\n")
        known = [name.removeprefix("val_") for name in record if name.startswith("val_")]
        if not known:
            return record
        if self.monitor not in record:
            raise ValueError(
                f"fit: expected monitor among {', '.join(known)}, got {self.monitor[4:]!r}; "
                "take one of these, or add the metric to the objective"
            )
        value = record[self.monitor]
        if self.best is None or self.sign * value < self.sign * self.best.value:
            self.best = Best(int(record["step"]), value, *own((run.params, run.state)))
            self.worse = 0
        else:
            self.worse += 1
        return record

    def stop_if_needed(self, step: int, loss: float, interrupted: bool) -> None:
        """Sets the reason to stop, if there is one by now."""
        if not math.isfinite(loss):
            self.reason = "not finite"
            warnings.warn(
                f"fit: expected a finite loss, got {loss} by step {step}; training ended there: "
                "try a smaller learning rate",
                stacklevel=3,
            )
        elif interrupted:
            self.reason = "interrupted"
        elif self.patience is not None and self.worse >= self.patience:
            self.reason = f"no better for {self.worse} records"

    def write(self, line: str) -> None:
        """Appends to the log, if there is one."""
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(line)


class Pace:
    """How many steps the next chunk has: a fixed number, or about CHUNK_SECONDS of them."""

    def __init__(self, chunk: int | None):
        self.fixed = chunk
        self.length = chunk or 1
        self.warm = False

    def time(self, length: int, program: Callable[..., Any], *args: Any) -> Any:
        """Runs a chunk, and from its time sets the length of the next."""
        begun = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = time.perf_counter() - begun
        if self.fixed is None and self.warm:
            # At most tenfold at once: a short first chunk is mostly the call itself.
            self.length = max(1, min(int(CHUNK_SECONDS / seconds * length), 10 * length))
        elif self.fixed is None:
            self.warm = True  # The first chunk was compiled, which says nothing of its pace.
        return result


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C a flag that is read between chunks; the second one raises.

    Example:
      >>> with interruptible() as interrupted:
      ...     interrupted()
      False
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
