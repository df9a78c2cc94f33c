"""Chunks: the number of steps in one call of the compiled program, and signals between calls."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# How long a chunk should take. Each call of a compiled function allocates new memory, tens of
# megabytes for a large network. With chunks of 0.25 seconds, the allocations took a sixth of the
# CPU time. With chunks of more than a second, the reaction to Ctrl-C would come later.
CHUNK_SECONDS = 1.0

# If the process gets one of these signals, training stops, and this text is the reason.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Pace:
    """The number of steps in the next chunk.

    The number is `chunk`. If `chunk` is None, it is the number of steps that take about
    CHUNK_SECONDS.
    """

    def __init__(self, chunk: int | None):
        self.fixed = chunk
        self.length = chunk or 1
        self.warm = False

    def time(self, length: int, program: Callable[..., Any], *args: Any) -> Any:
        """Runs a chunk of `length` steps, measures its time, and sets the next chunk's length.

        Returns:
          The result of `program(*args)`.
        """
        begun = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = time.perf_counter() - begun
        if self.fixed is None and self.warm:
            # The next chunk has at most ten times as many steps as this one. A short chunk spends
            # most of its time on the call itself, so its time says little about the time of a step.
            self.length = max(1, min(int(CHUNK_SECONDS / seconds * length), 10 * length))
        elif self.fixed is None:
            self.warm = True  # The first chunk sets no length: most of its time is compilation.
        return result


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], str]]:
    """Yields a function that says whether the process got a signal inside the `with` block.

    The function returns "interrupted" if the first signal was SIGINT (Ctrl-C), "terminated" if it
    was SIGTERM, and "" if there was no signal. A SIGINT after any earlier SIGINT or SIGTERM raises
    KeyboardInterrupt. A handler for SIGTERM that the user has set is called too. Only the main
    thread receives signals, so in another thread the function always returns "".
    """
    noted: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before: dict[Any, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: Any) -> None:
        if noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.append(SIGNALS[signal.Signals(number)])
        if number == signal.SIGTERM and callable(before[signal.SIGTERM]):
            before[signal.SIGTERM](number, frame)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: noted[0] if noted else ""
    finally:
        for number, handler in before.items():
            if handler is not None:  # a handler that was not set from Python cannot be set again
                signal.signal(number, handler)
