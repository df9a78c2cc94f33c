"""Chunks: the number of steps in one call of the compiled program, and signals between calls."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# How long a chunk should take. Each call of a compiled function allocates new memory, tens of
# megabytes for a large network; with chunks of 0.25 seconds, this took a sixth of the CPU time.
# Longer chunks delay the reaction to Ctrl-C.
CHUNK_SECONDS = 1.0

# The reason to stop after each signal.
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Pace:
    """The number of steps in the next chunk.

    It is `chunk`, or if `chunk` is None, the number of steps that take about CHUNK_SECONDS.
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
            # At most ten times as many steps, because a short chunk spends most of its time on the
            # call itself, so its time says little about a step.
            self.length = max(1, min(int(CHUNK_SECONDS / seconds * length), 10 * length))
        elif self.fixed is None:
            self.warm = True  # The time of the first chunk is mostly compilation.
        return result


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], str]]:
    """Yields a function that gives the reason to stop if the process got a signal in the block.

    The function returns "interrupted" after SIGINT (Ctrl-C), "terminated" after SIGTERM, and "" if
    there was no signal. A second SIGINT raises KeyboardInterrupt. A handler for SIGTERM that the
    user has set is also called. Only the main thread receives signals, so in another thread the
    function always returns "".
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
