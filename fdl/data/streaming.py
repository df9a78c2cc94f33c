"""Data that do not fit into memory: memory-mapped arrays, examples by index, iterables.

K is the number of steps, B the number of examples in a batch, N the number of all examples.
"""

import abc
import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from fdl import paths
from fdl.checks import described, kind
from fdl.data.arrays import as_arrays, fingerprint, is_list_of_numbers, length
from fdl.data.order import stream
from fdl.typing import Batch


def source(data: Batch | Callable[[int], Batch] | Iterable[Batch], *, rows: Any = None) -> "Source":
    """Data for `fit` that are read piece by piece while a network trains.

    The next batches are read and copied to the device in a background thread.

    Args:
      data: one of these:

        - a pytree of arrays [N, ...], some of them memory-mapped (`np.load(file, mmap_mode="r")`).
          Only the rows of each batch are read. They are the same rows as for arrays in memory, so a
          run gives the same bits. Such a pytree can also be passed to `fit` directly.
        - a data set with a length, whose items `data[i]` are single examples, such as a `Dataset`
          of torch or of Hugging Face, or a `MapDataset` of Grain that is neither batched nor
          repeated. The examples are read in the same order as the rows of arrays.
        - a function `step -> batch`, where a batch is a pytree of arrays [B, ...].
        - an iterable of batches, such as a list, a generator, or a loader of torch or Grain. When
          it ends, it is iterated again from the start, if possible.
        - a source, for example from `fdl.data.images`, to choose rows of it.
      rows: integers [M] in [0, N), the rows to train on, if data are arrays, a data set or a source
        of one of them. An epoch has each of these rows exactly once. Pass the rows of a
        split, or those of `balanced_rows` or `weighted_rows`. None means all.

    Returns:
      A source. A run that is stopped and continued gives the same bits as an uninterrupted run,
      except with an iterable whose position cannot be saved. The position can be saved if the
      iterator has the methods `get_state` and `set_state`, as the iterators of Grain have, and if
      its state is bytes or can be written as JSON. To continue from this position, pass the whole
      `Result`, or what a checkpoint gives, to `fit`.

    Raises:
      TypeError: data is none of these.
      ValueError: there is no example; rows are not integers in [0, N); or rows are passed with
        data from which single examples cannot be read.

    Example:
      >>> import fdl
      >>> draw = lambda step: np.random.default_rng(step).normal(size=(4, 2)).astype("float32")
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run = fdl.start(np.zeros(2, "float32"), fdl.sgd(0.1))
      >>> result = fdl.fit(objective, fdl.sgd(0.1), run, source(draw), steps=3)
      >>> int(result.run.step)
      3
    """
    found = _source(data)
    return found if rows is None else Chosen(found, rows)


def _source(data: Any) -> "Source":
    if isinstance(data, Source):
        return data
    if isinstance(data, tuple | dict) or hasattr(data, "__array__"):
        return Rows(data)
    if isinstance(data, str | bytes | os.PathLike):
        raise TypeError(
            f"source: expected data, got {described(data)}; read tables in files with "
            "fdl.data.table_source, and folders of images with fdl.data.images"
        )
    if not isinstance(data, list) and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return Examples(data)
    if callable(data):
        return OfSteps(data)
    if isinstance(data, Iterable):
        return Batches(data)
    raise TypeError(
        "source: expected arrays, a function step -> batch, or an iterable of batches, got "
        f"{described(data)}; pass a generator, for example"
    )


def mapped(data: Any) -> Any:
    """A source of the data if one of their arrays is memory-mapped; otherwise the data."""
    if isinstance(data, Source):
        return data
    return Rows(data) if any(_is_mapped(leaf) for leaf in jax.tree.leaves(data)) else data


def _is_mapped(leaf: Any) -> bool:
    return _file_of(leaf) is not None


def _file_of(leaf: Any) -> np.memmap | None:
    """The memory-mapped array behind an array (itself, or one that it is a view of), or None."""
    found = None
    while isinstance(leaf, np.ndarray):
        found = leaf if isinstance(leaf, np.memmap) else found
        leaf = leaf.base
    return found


def _advise(leaf: Any, advice: str) -> None:
    """Tells the operating system how a memory-mapped file will be read, if it supports this."""
    file = _file_of(leaf)
    # The pages of a private copy ("c") hold what the user wrote, so they must stay.
    if file is not None and file.mode != "c" and hasattr(mmap, advice):
        mapping: Any = getattr(file, "_mmap")  # noqa: B009  # NumPy's types do not name it
        mapping.madvise(getattr(mmap, advice))


class Source(abc.ABC):
    """Base class of sources.

    Attributes:
      examples: N, the number of examples; None if it is not known.
    """

    examples: int | None = None

    @property
    def exact(self) -> bool:
        """Whether a continued run gets the same batches as an uninterrupted one."""
        return True

    @abc.abstractmethod
    def first(self, batch_size: int) -> Batch:
        """A batch from which the shapes and dtypes are read."""

    @abc.abstractmethod
    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The batches of consecutive steps, a pytree of arrays [K, B, ...]."""

    def take_part(self, seed: Any, steps: range, batch_size: int, part: np.ndarray) -> Batch:
        """The batches of `take`, reduced to the examples at the indices `part` [C]: [K, C, ...].

        Each of several processes takes its own part. A source that cannot make only a part of a
        batch makes the whole batch in every process.
        """
        return jax.tree.map(lambda leaf: leaf[:, part], self.take(seed, steps, batch_size))

    def position(self) -> dict[str, np.ndarray]:
        """Where the source is after `take`, if the next batch depends on that; otherwise {}."""
        return {}

    def seek(self, position: dict[str, np.ndarray]) -> None:  # noqa: B027  # most have no position
        """Goes to a position; {} is the beginning."""

    def fingerprint(self) -> dict[str, Any]:
        """Identifies the data of this source, for a checkpoint."""
        return {"source": repr(self)}


class ByRow(Source):
    """Base class of sources that can read any rows, in any order."""

    examples: int

    def read(self, rows: Any = None) -> Batch:
        """Reads examples into memory, for example for `fit(..., validation=...)`.

        Args:
          rows: integers [M] in [0, N). None means all rows.

        Returns:
          A pytree of arrays [M, ...].
        """
        return self._read(np.arange(self.examples) if rows is None else np.asarray(rows))

    @abc.abstractmethod
    def _read(self, rows: np.ndarray) -> Batch:
        """The examples at these rows, a pytree of arrays [M, ...]."""

    def first(self, batch_size: int) -> Batch:
        """The first rows."""
        return self._read(np.arange(batch_size) % self.examples)

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The rows that `draw_batch` gives for these steps."""
        return self.take_part(seed, steps, batch_size, np.arange(batch_size))

    def take_part(self, seed: Any, steps: range, batch_size: int, part: np.ndarray) -> Batch:
        """Reads only the rows of this part of each batch."""
        numbers = np.arange(steps.start, steps.stop, dtype=np.uint32)
        rows = np.asarray(_orders(seed, numbers, batch_size, self.examples))[:, part]
        batches = self._read(rows.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), batches)


class Rows(ByRow):
    """Arrays [N, ...] of which only the rows of each batch are read."""

    def __init__(self, data: Batch):
        self.data = as_arrays(data)
        self.examples = length(data)
        for leaf in jax.tree.leaves(self.data):
            _advise(leaf, "MADV_RANDOM")  # so that the system does not read the rows around a row

    def __repr__(self) -> str:
        return f"source of {self.examples} rows"

    def _read(self, rows: np.ndarray) -> Batch:
        examples = jax.tree.map(lambda leaf: np.asarray(leaf[rows]), self.data)
        for leaf in jax.tree.leaves(self.data):
            _advise(leaf, "MADV_DONTNEED")  # otherwise the pages count as memory of this process
        return examples

    def fingerprint(self) -> dict[str, Any]:
        """As for arrays in memory."""
        return fingerprint(self.data)


class Examples(ByRow):
    """A data set whose items are single examples."""

    def __init__(self, data: Any):
        self.data, self.examples = data, len(data)
        if not self.examples:
            raise ValueError(
                f"source: expected at least one example, got none in a {type(data).__name__}; "
                "check the code that makes the data set"
            )

    def __repr__(self) -> str:
        return f"source of {self.examples} examples of a {type(self.data).__name__}"

    def _read(self, rows: np.ndarray) -> Batch:
        items = [self.data[row] for row in rows.tolist()]
        batch = _collated(items)
        if batch is not None:
            return batch
        # The examples are not alike. This slower way finds out why, for the error message.
        parts = [self._example(*pair) for pair in zip(rows.tolist(), items, strict=True)]
        return _stacked(parts, "example")

    def _example(self, row: int, item: Any) -> Batch:
        leaves, structure = jax.tree.flatten(item, is_leaf=_is_list)
        if not leaves:
            raise ValueError(
                f"source: expected an example with arrays or numbers, got {described(item)} at "
                f"index {row} of a {type(self.data).__name__}; leave that example out"
            )
        arrays = [np.asarray(leaf) if isinstance(leaf, list) else leaf for leaf in leaves]
        return as_arrays(jax.tree.unflatten(structure, arrays))


def _collated(items: list[Any]) -> Batch | None:
    """Single examples as arrays [B, ...]; None if two differ in structure, shape or dtype."""
    flat = [jax.tree.flatten(item, is_leaf=_is_list) for item in items]
    structure: Any = flat[0][1]
    if any(each != structure for _, each in flat):
        return None
    try:
        columns = [
            [np.asarray(leaf) for leaf in column]
            for column in zip(*[leaves for leaves, _ in flat], strict=True)
        ]
    except (TypeError, ValueError):
        return None
    if {len({(leaf.shape, leaf.dtype) for leaf in column}) for column in columns} != {1}:
        return None
    return as_arrays(jax.tree.unflatten(structure, [np.stack(column) for column in columns]))


def _is_list(node: Any) -> bool:
    return isinstance(node, list) and is_list_of_numbers(node)


class Chosen(ByRow):
    """Some rows of a source, perhaps repeated."""

    def __init__(self, source: Source, rows: Any):
        if not isinstance(source, ByRow):
            raise ValueError(
                f"source: expected rows only for arrays and data sets, got rows for a {source!r}; "
                "leave out rows"
            )
        self.source, self.rows = source, np.asarray(rows)
        fits = self.rows.ndim == 1 and self.rows.size and self.rows.dtype.kind in "iu"
        if not fits or not 0 <= self.rows.min() <= self.rows.max() < source.examples:
            span = f" from {self.rows.min()} to {self.rows.max()}" if fits else ""
            raise ValueError(
                f"source: expected rows [M], integers in [0, {source.examples}), got "
                f"{kind(self.rows)}{span}; in place of a mask, pass np.flatnonzero(mask)"
            )
        self.examples = len(self.rows)

    def __repr__(self) -> str:
        return f"{self.examples} rows of a {self.source!r}"

    def _read(self, rows: np.ndarray) -> Batch:
        return self.source.read(self.rows[rows])

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the whole source, and a hash of the rows."""
        rows = hashlib.sha256(self.rows.astype(np.int64).tobytes()).hexdigest()
        return self.source.fingerprint() | {"sha256_of_rows": rows}


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
    """An iterable of batches. A run continues exactly if the iterator's position can be saved."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches = batches
        self.left: Iterator[Batch] | None = None
        self.peeked: list[Batch] = []  # a batch that `first` has read, and `take` will return
        # An iterator can go back only to a saved position, so its position is saved now. Any other
        # iterable makes a new iterator.
        self.begin = _position(batches) if isinstance(batches, Iterator) else {}

    def __repr__(self) -> str:
        return f"source of a {type(self.batches).__name__}"

    @property
    def exact(self) -> bool:
        """Whether the position of the iterator can be saved."""
        return bool(self.position())

    def first(self, batch_size: int) -> Batch:
        """The next batch, which is also the first that the next `take` gives."""
        if not self.peeked:
            self.peeked = [self._next()]
        return self.peeked[0]

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The next batches."""
        return _stacked([self.peeked.pop() if self.peeked else self._next() for _ in steps])

    def position(self) -> dict[str, np.ndarray]:
        """The state of the iterator, after the last batch that was read."""
        return _position(self._iterator())

    def seek(self, position: dict[str, np.ndarray]) -> None:
        """Sets the state of the iterator, if it has one."""
        if not self.exact:
            return
        self.peeked = []
        if position or self.begin:
            iterator: Any = self._iterator()
            iterator.set_state(_state(position or self.begin))
        else:
            self.left = None

    def _iterator(self) -> Iterator[Batch]:
        if self.left is None:
            self.left = iter(self.batches)
        return self.left

    def _next(self) -> Batch:
        try:
            return as_arrays(next(self._iterator()))
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
                "pass an iterable that does not end, or that can be iterated again"
            ) from None


def _position(iterator: Any) -> dict[str, np.ndarray]:
    """The state of an iterator as an array of bytes; {} if it has no state that can be saved."""
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        return {}
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {"bytes": np.frombuffer(state, np.uint8)}
    try:
        return {"json": np.frombuffer(json.dumps(state).encode(), np.uint8)}
    except (TypeError, ValueError):
        return {}


def _state(position: dict[str, np.ndarray]) -> Any:
    """The inverse of `_position`."""
    ((form, content),) = position.items()
    return content.tobytes() if form == "bytes" else json.loads(content.tobytes())


def _stacked(parts: list[Batch], what: str = "batch") -> Batch:
    """Batches as arrays [K, B, ...], or examples as arrays [B, ...].

    Raises:
      ValueError: two of them have different shapes or dtypes.
    """
    first = kinds_of(parts[0])
    for part in parts[1:]:
        if kinds_of(part) != first:
            raise different(first, kinds_of(part), what)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def different(first: dict[str, str], other: dict[str, str], what: str = "batch") -> ValueError:
    """The error for a batch or an example whose shapes or dtypes are not those of the first."""
    path = next(path for path in {**first, **other} if first.get(path) != other.get(path))
    return ValueError(
        f"source: expected every {what} to be like the first, {first.get(path, 'nothing')} at "
        f"{path!r}, got {other.get(path, 'nothing')}; drop or pad those that differ"
    )


def kinds_of(batch: Batch) -> dict[str, str]:
    """dtype and shape of each array, by path."""
    return {path: kind(leaf) for path, leaf in paths.leaves(batch).items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _orders(seed: Any, steps: Any, batch_size: int, examples: int) -> jax.Array:
    return jax.vmap(lambda step: stream(seed, step, batch_size, examples))(steps)
