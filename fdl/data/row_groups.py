"""Tables in files that do not fit into memory. A few row groups at a time are read and shuffled."""

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fdl.checks import check_count, described
from fdl.data.arrays import as_arrays, fingerprint
from fdl.data.frames import as_frame, get_pyarrow, listed, read_csv, reason
from fdl.data.order import permutation
from fdl.data.streaming import Source, different, kinds_of
from fdl.data.tables import Columns, Seen, check_names, fitted, merged, seen, types_of
from fdl.typing import Batch

CSV_BYTES = 16 * 2**20  # about how many bytes of a CSV file make a row group

Files = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def table_source(
    files: Files, convert: Columns | Callable[[Any], Batch], *, window: int = 4
) -> "RowGroups":
    """A source of rows from table files. Only a few row groups are in memory at the same time.

    A row group is a part of a file: one of the row groups of a Parquet file, or about 16 MB of a
    CSV file. In each epoch, the row groups of all files come in a new random order. Then the first
    `window` groups are shuffled together, then the next `window` groups, and so on. So every row
    comes exactly once in an epoch, but rows of one group stay close together. If all groups fit
    into the window, all rows are shuffled together. The batch of a step depends only on the seed
    and the step, so a run can be stopped and continued.

    A CSV file is read completely here, to find its row groups and to count their rows.

    Args:
      files: the path of a .parquet or .csv file, or a list of paths, whose tables have the same
        columns.
      convert: the columns that `table` or `table_columns` learned; or a function that converts a
        `pyarrow.Table` of n rows to a pytree of arrays [n, ...]. It is called once for each row
        group that is read.
      window: the number of row groups whose arrays are in memory at the same time, an int >= 1.

    Returns:
      A source for `fit`. If `convert` is columns, a batch is `(x, y)`, as in a `Table`, or only x
      if there is no target.

    Raises:
      TypeError: convert is neither columns nor a function.
      OptionError: window is out of range.
      ImportError: pyarrow is not installed.
      FileNotFoundError: there is no such file.
      ValueError: a file is damaged; no file has rows; the files do not have the same columns; or
        `convert` does not return one row for each row of the table. If `convert` raises an error, a
        note that names the row group is added to the error.

    Example:
      >>> import pathlib, tempfile
      >>> import fdl
      >>> file = pathlib.Path(tempfile.mkdtemp(), "people.csv")
      >>> _ = file.write_text("age,height\\n31,1.8\\n,1.6\\n20,1.7\\n")
      >>> columns = table_columns(file, target="height")
      >>> source = table_source(file, columns)
      >>> source.examples
      3
      >>> x, y = source.take(seed=0, steps=range(2), batch_size=3)
      >>> x["numbers"].shape, y.shape
      ((2, 3, 2), (2, 3))
    """
    who = "table_source"
    window = check_count(who, "window", window, "it counts row groups in memory")
    if not isinstance(convert, Columns) and not callable(convert):
        raise TypeError(
            f"{who}: expected the columns of fdl.data.table, or a function of a pyarrow.Table, got "
            f"{described(convert)}; pass table(...).columns, for example"
        )
    groups = _groups(who, files)
    names = groups[0].names
    types: dict[str, Any] = {}
    if isinstance(convert, Columns):
        types = types_of(convert)
        names, convert = [name for name in names if name in types], _arrays(convert)
    elif isinstance(groups[0].place, tuple):  # in CSV files, the first group decides the types
        schema = _read(who, groups[0], names, {}).schema
        types = {field.name: field.type for field in schema if str(field.type) != "null"}
    for group in groups:
        absent = [name for name in names if name not in group.names]
        if absent:
            raise ValueError(
                f"{who}: expected every file to have the columns of the first one, got no column "
                f"{listed(absent)} in {group.file!r}; pass files with the same columns"
            )
    read = functools.partial(_read, who, names=names, types=types)
    return RowGroups(groups, read, convert, window)


def table_columns(
    files: Files, target: str | None = None, *, categorical: Sequence[str] = ()
) -> Columns:
    """Learns the columns as `table` does, from files that do not fit into memory.

    The row groups are read one after the other. A CSV file is read before that too, to find its row
    groups. Means and standard deviations differ from those of `table` only by rounding. Whether a
    column of a CSV file has numbers, texts or bools is decided by the first row group that has a
    value in this column.

    Args:
      files: as for `table_source`.
      target, categorical: as for `table`.

    Returns:
      The columns, for `table_source` or `columns.apply`.

    Raises:
      ImportError, FileNotFoundError, ValueError: in the same cases as `table_source` and `table`.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp(), "people.csv")
      >>> _ = file.write_text("age,city\\n31,Oslo\\n,Rome\\n29,Oslo\\n")
      >>> table_columns(file, target="city").numbers
      (Numbers(name='age', mean=30.0, scale=1.0, missing=True),)
    """
    who = "table_columns"
    groups = _groups(who, files)
    check_names(who, groups[0].names, target, categorical)
    found: dict[str, Seen] = {}
    for group in groups:
        known = {name: _TYPES[each.values] for name, each in found.items()}
        types = {name: alias for name, alias in known.items() if alias}
        frame = _read(who, group, groups[0].names, types)
        for name in groups[0].names:
            if name not in frame.column_names:
                raise ValueError(
                    f"{who}: expected every file to have the columns of the first one, got no "
                    f"column {name!r:.200} in {group.file!r}; pass files with the same columns"
                )
            part = seen(who, name, frame[name], name in categorical)
            found[name] = merged(who, name, found[name], part) if name in found else part
    return fitted(who, found, target)


_TYPES = {
    "number": "double",
    "text": "large_string",
    "bool": "bool",
    "integer": "int64",
    "missing": "",
}


class RowGroups(Source):
    """What `table_source` returns.

    Args:
      groups: the row groups of all files.
      read: reads a row group as a table of pyarrow.
      convert: converts such a table to arrays.
      window: the number of row groups whose arrays are in memory at the same time.
    """

    examples: int

    def __init__(
        self,
        groups: list["Group"],
        read: Callable[["Group"], Any],
        convert: Callable[[Any], Batch],
        window: int,
    ):
        self.groups, self.read, self.convert, self.window = groups, read, convert, window
        self.sizes = np.array([group.rows for group in groups])
        self.examples = int(self.sizes.sum())
        self.arrays: dict[int, Batch] = {}  # row groups that are in memory, by number
        self.order: tuple[Any, np.ndarray] = (None, np.empty(0, int))  # a window, and its rows
        self.kinds: dict[str, str] = {}
        self.kinds = kinds_of(_rows(self._group(0), slice(1)))
        self.about = fingerprint(self._group(0)) | {
            "examples": self.examples,
            "sha256_of_row_groups": hashlib.sha256(self.sizes.astype("<i8").tobytes()).hexdigest(),
            "window": window,
        }

    def __repr__(self) -> str:
        return f"source of {self.examples} rows in {len(self.groups)} row groups"

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the first row group, with the sizes of all row groups."""
        return self.about

    def first(self, batch_size: int) -> Batch:
        """Rows of the first row group."""
        self._keep([0])
        return _rows(self._group(0), np.arange(batch_size) % self.sizes[0])

    def take(self, seed: Any, steps: range, batch_size: int) -> Batch:
        """The batches of consecutive steps, from one window after the other."""
        begin, end, parts = steps.start * batch_size, steps.stop * batch_size, []
        while begin < end:
            parts.append(self._part(int(seed), begin, end - begin))
            begin += len(jax.tree.leaves(parts[-1])[0])
        shape = (len(steps), batch_size)
        return jax.tree.map(
            lambda *leaves: np.concatenate(leaves).reshape(*shape, *leaves[0].shape[1:]), *parts
        )

    def _part(self, seed: int, begin: int, most: int) -> Batch:
        """Up to `most` rows from position `begin`, but none after the end of its window."""
        epoch, offset = divmod(begin, self.examples)
        groups = permutation(len(self.groups), seed, epoch)
        ends = np.cumsum(self.sizes[groups])[self.window - 1 :: self.window]
        number = int(np.searchsorted(ends, offset, side="right"))
        offset -= int(ends[number - 1]) if number else 0
        here = groups[number * self.window : (number + 1) * self.window].tolist()
        sizes = self.sizes[here]
        if self.order[0] != (seed, epoch, number):
            order = permutation(int(sizes.sum()), seed, epoch, number)
            self.order = (seed, epoch, number), order
        rows = self.order[1][offset : offset + most]
        self._keep(here)
        return _gathered([self._group(each) for each in here], sizes, rows)

    def _keep(self, groups: list[int]) -> None:
        """Forgets the arrays of all other row groups."""
        self.arrays = {each: self.arrays[each] for each in groups if each in self.arrays}

    def _group(self, number: int) -> Batch:
        """The arrays of a row group, from memory if they are there."""
        if number not in self.arrays:
            group = self.groups[number]
            frame = self.read(group)
            try:
                batch = as_arrays(self.convert(frame))
            except Exception as error:
                error.add_note(f"in {group.name}")
                raise
            counts = {len(leaf) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
            if counts != {group.rows}:
                raise ValueError(
                    f"table_source: expected arrays of {group.rows} rows for {group.name}, got "
                    f"{described(batch)}; give one row for each row of the table"
                )
            now = kinds_of(_rows(batch, slice(1)))
            if self.kinds and now != self.kinds:
                raise different(self.kinds, now, f"row ({group.name})")
            self.arrays[number] = batch
        return self.arrays[number]


def _gathered(groups: list[Batch], sizes: np.ndarray, rows: np.ndarray) -> Batch:
    """The given rows of the groups; rows are numbered from the first group to the last."""
    starts = np.cumsum(sizes) - sizes
    owner = np.searchsorted(starts, rows, side="right") - 1

    def gather(*leaves: Any) -> np.ndarray:
        out = np.empty((len(rows), *leaves[0].shape[1:]), leaves[0].dtype)
        for number, leaf in enumerate(leaves):
            out[owner == number] = leaf[rows[owner == number] - starts[number]]
        return out

    return jax.tree.map(gather, *groups)


def _rows(batch: Batch, rows: Any) -> Batch:
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), batch)


def _arrays(columns: Columns) -> Callable[[Any], Batch]:
    """A function that converts a table of pyarrow to arrays, by `columns.apply`."""

    def convert(frame: Any) -> Batch:
        found = columns.apply(frame)
        return found.x if found.y is None else (found.x, found.y)

    return convert


class Group(NamedTuple):
    """A row group.

    Args:
      file: its file.
      rows: the number of its rows.
      names: the names of the columns of the file.
      place: the number of the group in a Parquet file, or its (begin, end) in bytes in a CSV file.
      header: the first line of a CSV file.
    """

    file: str
    rows: int
    names: list[str]
    place: int | tuple[int, int]
    header: bytes = b""

    @property
    def name(self) -> str:
        """What the group is, for error messages."""
        if isinstance(self.place, int):
            return f"row group {self.place} of {self.file!r}"
        return f"bytes {self.place[0]} to {self.place[1]} of {self.file!r}"


def _groups(who: str, files: Files) -> list[Group]:
    """The row groups of all files that have rows."""
    several = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: list[Group] = []
    for file in [os.fspath(each) for each in several]:
        name = file.lower()
        if not name.endswith((".parquet", ".csv")):
            raise ValueError(
                f"{who}: expected a file whose name ends with .parquet or .csv, got {file!r}; "
                "unpack it, or write the table as Parquet"
            )
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"{who}: expected a CSV or Parquet file, got no file at {file!r}; check the path"
            )
        find = _groups_of_parquet if name.endswith(".parquet") else _groups_of_csv
        found += [group for group in find(who, file) if group.rows]
    if not found:
        raise ValueError(
            f"{who}: expected at least one row, got none in {len(several)} files; pass files "
            "with rows"
        )
    return found


def _groups_of_parquet(who: str, file: str) -> list[Group]:
    with _errors(who, repr(file)):
        from pyarrow import parquet

        about = parquet.read_metadata(file)
        names = as_frame(who, about.schema.to_arrow_schema().empty_table()).column_names
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
    return [Group(file, rows, names, number) for number, rows in enumerate(sizes)]


def _groups_of_csv(who: str, file: str) -> list[Group]:
    """Cuts a CSV file at the ends of rows, about every CSV_BYTES bytes."""
    cuts: list[int] = []
    at = quotes = 0
    with open(file, "rb") as stream:
        while block := stream.read(CSV_BYTES):
            content = np.frombuffer(block, np.uint8)
            ends, marks = np.flatnonzero(content == 10), np.flatnonzero(content == 34)
            # Only line breaks that are not between two quotation marks are ends of rows. An even
            # number of quotation marks is before such a line break.
            ends = ends[(np.searchsorted(marks, ends) + quotes) % 2 == 0] + at + 1
            cuts += [*ends[: not cuts].tolist(), *ends[-1:].tolist()]
            at, quotes = at + len(block), quotes + len(marks)
        cuts = list(dict.fromkeys([*cuts, at]))
        stream.seek(0)
        header = stream.read(cuts[0])
    with _errors(who, repr(file)):
        names = as_frame(who, _parsed(who, repr(file), header, {}, None)).column_names
    found = []
    for begin, end in itertools.pairwise(cuts):
        group = Group(file, 0, names, (begin, end), header)
        found.append(group._replace(rows=_read(who, group, names[:1], {}).num_rows))
    return found


def _read(who: str, group: Group, names: list[str], types: dict[str, Any]) -> Any:
    """Reads columns of a row group as a table of pyarrow; columns of a CSV file get `types`."""
    names = [name for name in names if name in group.names]
    with _errors(who, group.name):
        if isinstance(group.place, int):
            from pyarrow import parquet

            with parquet.ParquetFile(group.file) as file:
                frame = file.read_row_group(group.place, columns=names)
        else:
            with open(group.file, "rb") as stream:
                stream.seek(group.place[0])
                block = stream.read(group.place[1] - group.place[0])
            frame = _parsed(who, group.name, group.header + block, types, names)
    if group.rows and frame.num_rows != group.rows:
        raise ValueError(
            f"{who}: expected {group.rows} rows in {group.name}, got {frame.num_rows}, because the "
            "file was changed; make the source again"
        )
    return frame


def _parsed(who: str, named: str, text: bytes, types: Any, names: list[str] | None) -> Any:
    pa = get_pyarrow(who)
    return read_csv(pa, who, named, pa.BufferReader(text), types, names)


@contextlib.contextmanager
def _errors(who: str, named: str) -> Iterator[None]:
    """Names the file in errors of pyarrow and of the system."""
    pa = get_pyarrow(who)
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise (FileNotFoundError if missing else ValueError)(
            f"{who}: expected to read {named}, got {reason(error)}; correct or replace the file"
        ) from error
