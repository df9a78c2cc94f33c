"""Gives data to the compiled chunks: arrays as they are, or stacks of batches, read by a thread."""

import itertools
import queue
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fdl.data.arrays import aligned, to_jax
from fdl.data.streaming import Source, different, kinds_of
from fdl.train.batches import batch_of
from fdl.train.hooks import Plan
from fdl.train.run import Stacked

STACK_BYTES = 64 * 2**20  # about the most memory that a stack of batches may take
MOST_STEPS = 256  # the most steps that a stack may have
PIECE_BYTES = 2 * 2**20  # about the most memory that is read from a source at once
AHEAD = 2  # how many stacks are read ahead


def steps_in_stack(batch: Any, most: int | None) -> int:
    """K, the number of batches in a stack, one for each step."""
    return most or max(1, min(MOST_STEPS, STACK_BYTES // _bytes_of(batch)))


def _bytes_of(batch: Any) -> int:
    return max(1, sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch)))


class InMemory:
    """Arrays, from which the compiled steps draw their batches."""

    def __init__(self, data: Any):
        self.data = data
        self.position: dict[str, Any] = {}

    def __enter__(self) -> "InMemory":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def get(self) -> Any:
        """The data for the next chunk."""
        return self.data

    def report(self) -> dict[str, float]:
        """Values to add to a record: none for arrays."""
        return {}


class Ahead:
    """Stacks of the batches of a source, read ahead by a thread.

    Args:
      source: where the batches come from.
      plan: the plan of this call of `fit`. A chunk never goes past the step of a record.
      size: K, the number of steps in a stack. Every stack has room for K steps, even if its chunk
        is shorter.
      position: where the source starts, as `Source.position` returns it; {} is its beginning.

    Attributes:
      position: where the source was after the stack that `get` returned last. The thread may have
        read further.
    """

    def __init__(self, source: Source, plan: Plan, size: int, position: dict[str, Any]):
        self.source, self.plan, self.size = source, plan, size
        layout = plan.run.layout
        self.own = None if layout is None else layout.own(plan.batch_size)
        self.like = plan.sample if self.own is None else batch_of(len(self.own), plan.sample)
        self.piece = max(1, min(size, PIECE_BYTES // _bytes_of(plan.sample)))
        # The memory of a few stacks is reused, because allocating new memory takes longer than
        # copying a batch. Besides the stacks in the queue, one is in training and one is being
        # read.
        self.memory = itertools.cycle([self._empty() for _ in range(AHEAD + 2)])
        self.position = position
        self.ready: queue.Queue[Any] = queue.Queue(AHEAD)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._read, name="fdl.source", daemon=True)
        self.waited = 0.0
        self.since = time.perf_counter()

    def __enter__(self) -> "Ahead":
        self.source.seek(self.position)
        step = int(self.plan.run.step)
        if step and not self.position and self.source.position():
            warnings.warn(
                f"fit: expected the position of the {self.source!r} at step {step}, got a run "
                "without it, so the source starts from its beginning; pass the whole Result of the "
                "earlier fit to continue it",
                stacklevel=4,
            )
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closed.set()
        while self.thread.is_alive():
            # This makes room in the queue, because the thread may wait for room. The thread then
            # checks `closed`, and ends.
            try:
                self.ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def get(self) -> Any:
        """The stack for the next chunk; raises what the source raised."""
        begun = time.perf_counter()
        found = self.ready.get()
        self.waited += time.perf_counter() - begun
        if isinstance(found, BaseException):
            raise found
        stack, self.position = found
        return stack

    def report(self) -> dict[str, float]:
        """The share of the time, since the last report, that training waited for the source."""
        now = time.perf_counter()
        share = self.waited / max(now - self.since, 1e-9)
        self.waited, self.since = 0.0, now
        return {"waiting": min(share, 1.0)}

    def _read(self) -> None:
        try:
            for steps in self._chunks():
                if self.closed.is_set():
                    return
                self.ready.put((self._stack(steps), self.source.position()))
        except BaseException as error:
            self.ready.put(error)

    def _chunks(self) -> Iterator[range]:
        step = int(self.plan.run.step)
        while step < self.plan.last:
            until = (step // self.plan.record_every + 1) * self.plan.record_every
            end = min(self.plan.last, until, step + self.size)
            yield range(step, end)
            step = end

    def _empty(self) -> Any:
        """Uninitialized arrays [K, C, ...], for the C examples that this process holds."""
        return jax.tree.map(lambda x: aligned((self.size, *x.shape), x.dtype), self.like)

    def _stack(self, steps: range) -> Stacked:
        stack = next(self.memory)
        for begin in range(steps.start, steps.stop, self.piece):
            piece = range(begin, min(begin + self.piece, steps.stop))
            batches = self._checked(self._taken(piece))
            rows = slice(piece.start - steps.start, piece.stop - steps.start)
            jax.tree.map(lambda memory, leaf: memory.__setitem__(rows, leaf), stack, batches)
        # Waits until the stack is copied to the device, because the memory of the stack is used
        # again. On CPU nothing is copied.
        batches = jax.block_until_ready(self._put(stack))
        return Stacked(batches, np.uint32(steps.start))

    def _taken(self, steps: range) -> Any:
        """The batches of the source; on several devices, only the examples of this process."""
        seed, batch_size = self.plan.run.seed, self.plan.batch_size
        if self.own is None:
            return self.source.take(seed, steps, batch_size)
        # The seed is passed as a NumPy array, because only the training thread may compute with an
        # array on several devices.
        return self.source.take_part(np.asarray(seed), steps, batch_size, self.own)

    def _put(self, stack: Any) -> Any:
        layout = self.plan.run.layout
        if layout is None:
            return jax.device_put(stack)
        return layout.put_stack(stack, self.plan.batch_size)

    def _checked(self, batches: Any) -> Any:
        """The batches in the dtypes of the sample; raises if their structure or shapes differ."""
        leaves, first_leaves = jax.tree.leaves(batches), jax.tree.leaves(self.like)
        of_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        if not of_numpy or [x.dtype for x in leaves] != [x.dtype for x in first_leaves]:
            batches = to_jax(batches, "fit")
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
        found, first = kinds_of(one), kinds_of(self.like)
        if found != first:
            raise different(first, found)
        return batches
