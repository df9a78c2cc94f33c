"""A thread that writes checkpoints while a network trains."""

import threading
import time
from collections.abc import Callable
from typing import Any

from fdl.paths import shortened

REST = 9  # after each call, the thread rests this many times as long as the call took


class BackgroundWriter:
    """Calls `write` in a background thread.

    Of the values that wait, the thread writes the newest one and the newest one that is marked as
    important. It drops the rest. After each call the thread rests, so that it takes at most a tenth
    of a core from training.
    """

    def __init__(self, write: Callable[[Any], None]):
        self.call = write
        self.waiting: list[tuple[Any, bool]] = []
        self.changed, self.closed = threading.Condition(), False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="fdl.checkpoints", daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()
        self._raise()

    def write(self, value: Any, important: bool = False) -> None:
        """Hands a value to the thread. Raises an error if writing an earlier value failed."""
        self._raise()
        with self.changed:
            kept = [] if important else [each for each in self.waiting if each[1]]
            self.waiting = [*kept, (value, important)]
            self.changed.notify()

    def _raise(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise OSError(
                f"checkpoints: expected to write a checkpoint, got {type(error).__name__}: "
                f"{shortened(str(error), 500)}; earlier checkpoints were not changed: fix the "
                "cause, such as a full disk, and start the program again"
            ) from error

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                value, _ = self.waiting.pop(0)
            begun = time.perf_counter()
            try:
                self.call(value)
            except BaseException as error:
                self.error = error
            rest = REST * (time.perf_counter() - begun)
            with self.changed:
                self.changed.wait_for(lambda: self.closed, rest)
