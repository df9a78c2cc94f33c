"""Data that do not fit into memory: memory-mapped arrays, functions of the step, and iterables.

K steps, B examples in a batch.
"""

import functools
import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from fdl import paths
from fdl.checks import described, kind
from fdl.data.arrays import as_arrays, fingerprint, length
from fdl.data.order import stream
from fdl.typing import Batch


def source(data: Batch | Callable[[int], Batch] | Iterable[Batch]) -> "Source":
    """Data for `fit` that are read piece by piece while a network trains.

    The next batches are read and copied to the device in a background thread.

    Args:
      data: one of these:

        - a pytree of arrays [N, ...], some of them memory-mapped (`np.load(file, mmap_mode="r")`).
          Only the rows of each batch are read, in the order that `fit` takes for arrays in memory,
          so a run gives the same bits. `fit` also takes such a pytree itself.
        - a function `step -> batch`, where a batch is a pytree of arrays [B, ...].
        - an iterable of batches, such as a generator, or a loader of torch or Grain. If it can be
          iterated again, training goes on with it from its beginning when it ends.

    Returns:
      A source. With rows and with a function, a run that is stopped and continued is the
      uninterrupted one. With an iterable it is not, because its position is not known.

    Raises:
      TypeError: data is none of these.

    Example:
      >>> import fdl
      >>> draw = lambda step: np.random.default_rng(step).normal(size=(4, 2)).astype("float32")
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run = fdl.start(np.zeros(2, "float32"), fdl.sgd(0.1))
      >>> result = fdl.fit(objective, fdl.sgd(0.1), run, source(draw), steps=3)
      >>> int(result.run.step)
      3
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, tuple | dict | np.ndarray | jax.Array):
        return Rows(data)
    if callable(data):
        return OfSteps(data)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return Batches(data)
    raise TypeError(
        "source: expected arrays, a function step -> batch, or an iterable of batches, got "
        f"{described(data)}; pass a generator, for example"
    )


def mapped(data: Any) -> Any:
    """A source of the data if an array in them is memory-mapped; otherwise the data."""
    if isinstance(data, Source):
        return data
    return Rows(data) if any(_is_mapped(leaf) for leaf in jax.tree.leaves(data)) else data


def _is_mapped(leaf: Any) -> bool:
    return _file_of(leaf) is not None


def _file_of(leaf: Any) -> np.memmap | None:
    """The memory-mapped array of which an array is a view, or which it is itself."""
    found = None
    while isinstance(leaf, np.ndarray):
        found = leaf if isinstance(leaf, np.memmap) else found
        leaf = leaf.base
    return found


def _advise(leaf: Any, advice: str) -> None:
    """Tells the system how a memory-mapped file is read, where it can be told."""
    file = _file_of(leaf)
    # The pages of a private copy ("c") hold what the user wrote, so they must stay.
    if file is not None and file.mode != "c" and hasattr(mmap, advice):
        mapping: Any = getattr(file, "_mmap")  # noqa: B009  # NumPy's types do not name it
        mapping.madvise(getattr(mmap, advice))


class Source:
    """Base class of sources.

    Attributes:
      examples: N, the number of examples; None if it is not known.
      exact: whether a batch is a function of the seed and the step.
    """

    examples: int | None = None
    exact = True

    def first(self, batch_size: int) -> Batch:
        """A batch from which the shapes and dtypes are read."""
        raise NotImplementedError

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The batches of consecutive steps, a pytree of arrays [K, B, ...]."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What tells this source from others, for a checkpoint."""
        return {"source": repr(self)}


class Rows(Source):
    """Arrays [N, ...] of which only the rows of each batch are read."""

    def __init__(self, data: Batch):
        self.data = as_arrays(data)
        self.examples = length(data)
        for leaf in jax.tree.leaves(self.data):
            _advise(leaf, "MADV_RANDOM")  # the system shall not read the rows around a row

    def __repr__(self) -> str:
        return f"source of {self.examples} rows"

    def first(self, batch_size: int) -> Batch:
        """The first rows."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[:batch_size]), self.data)

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The rows that `draw_batch` gives for these steps."""
        numbers = np.arange(steps.start, steps.stop, dtype=np.uint32)
        rows = np.asarray(_orders(seed, numbers, batch_size, self.examples))
        shape = rows.shape
        batches = jax.tree.map(
            lambda leaf: np.asarray(leaf[rows.reshape(-1)]).reshape(*shape, *leaf.shape[1:]),
            self.data,
        )
        for leaf in jax.tree.leaves(self.data):
            _advise(leaf, "MADV_DONTNEED")  # else the pages count as memory of this process
        return batches

    def fingerprint(self) -> dict[str, Any]:
        """As for arrays in memory."""
        return fingerprint(self.data)


class OfSteps(Source):
    """A function `step -> batch`."""

    def __init__(self, f: Callable[[int], Batch]):
        self.f = f

    def __repr__(self) -> str:
        return f"source of {described(self.f)}"

    def first(self, batch_size: int) -> Batch:
        """The batch of step 0."""
        return as_arrays(self.f(0))

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The batches of these steps."""
        return _stacked([as_arrays(self.f(step)) for step in steps])


class Batches(Source):
    """An iterable of batches."""

    exact = False

    def __init__(self, batches: Iterable[Batch]):
        self.batches = batches
        self.left: Iterator[Batch] | None = None

    def __repr__(self) -> str:
        return f"source of a {type(self.batches).__name__}"

    def first(self, batch_size: int) -> Batch:
        """The first batch, which is also the first that `take` gives."""
        batch = self._next()
        self.left = itertools.chain([batch], self.left or ())
        return batch

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The next batches."""
        return _stacked([self._next() for _ in steps])

    def _next(self) -> Batch:
        if self.left is None:
            self.left = iter(self.batches)
        try:
            return as_arrays(next(self.left))
        except StopIteration:
            pass
        again = iter(self.batches)
        try:
            if again is self.batches:
                raise StopIteration
            self.left = again
            return as_arrays(next(again))
        except StopIteration:
            raise ValueError(
                f"source: expected another batch, got the end of a {type(self.batches).__name__}; "
                "pass an iterable that goes on, or that can be iterated again"
            ) from None


def _stacked(batches: list[Batch]) -> Batch:
    """The batches as arrays [K, B, ...]; raises unless all have the same shapes and dtypes."""
    first = _kinds(batches[0])
    for batch in batches[1:]:
        if _kinds(batch) != first:
            raise different(first, _kinds(batch))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def different(first: dict[str, str], other: dict[str, str]) -> ValueError:
    """The error that a batch has not the shapes and dtypes of the first one."""
    path = next(path for path in {**first, **other} if first.get(path) != other.get(path))
    return ValueError(
        f"source: expected every batch to be like the first, {first.get(path, 'nothing')} at "
        f"{path!r}, got {other.get(path, 'nothing')}; drop or pad the batches that differ"
    )


def _kinds(batch: Batch) -> dict[str, str]:
    return {path: kind(leaf) for path, leaf in paths.leaves(batch).items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _orders(seed: Any, steps: Any, batch_size: int, examples: int) -> jax.Array:
    return jax.vmap(lambda step: stream(seed, step, batch_size, examples))(steps)
