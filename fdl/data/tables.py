"""Tables with named columns as arrays: numbers are standardised, categories become integer codes.

N is the number of rows. F is the number of columns of numbers, and M is the number of columns among
them that had missing values in training. C is the number of columns of categories.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fdl.checks import kind
from fdl.data.frames import as_frame, listed, reason
from fdl.paths import shortened

# The kind of values in a column of categories -> their type in pyarrow.
_TYPES = {"text": "large_string", "bool": "bool", "integer": "int64"}


def table(data: Any, target: str | None = None, *, categorical: Sequence[str] = ()) -> "Table":
    """Converts a table to arrays, and learns from its columns how to convert other tables.

    A number v becomes (v - mean) / scale, where mean and scale are the mean and the standard
    deviation of the n values that are not missing (divided by n, not n - 1); the scale of a column
    of equal values is 1. A missing number becomes 0, and a column with missing numbers gets a
    second column, which is 1 where the number is missing and 0 elsewhere.

    Texts, categories and bools become codes: code i > 0 stands for the i-th of the column's sorted
    values, and 0 for a missing value. In another table, 0 also stands for a value that the training
    table does not have. (If no value is missing in training, code 0 of that column is not trained.)

    Pass only the training rows here, and pass other rows to `columns.apply`. To split a file, read
    it with `read_table`.

    Args:
      data: a table of pandas, polars or pyarrow, a dict of columns of equal length, or the path of
        a file: .csv, .csv.gz or .parquet. In a CSV file, empty cells and words such as NA, NaN and
        null are missing values.
      target: the name of the column to predict. It must have no missing values. None means that the
        table has no target.
      categorical: names of columns of integers that are categories, such as a postcode or an
        integer class in the target.

    Returns:
      A `Table` with the attributes x, y and columns.

    Raises:
      ImportError: pyarrow is not installed.
      FileNotFoundError: there is no such file.
      ValueError: a CSV file has a row with too few or too many values; a name is not among the
        columns or is there twice; all values of a column are missing; a column has infinite
        numbers, or values that are not numbers, texts, categories or bools; the target has a
        missing value; or the table has no rows.

    Example:
      >>> train = {"age": [20.0, None, 40.0], "city": ["Rome", "Oslo", None], "left": [True] * 3}
      >>> t = table(train, target="left")
      >>> t.x["numbers"].tolist(), t.x["codes"].tolist()
      ([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[2], [1], [0]])
      >>> t.columns.apply({"city": ["Oslo", "Lima"], "age": [50, 30]}).x["codes"].tolist()
      [[1], [0]]
    """
    frame = as_frame("table", data)
    names = frame.column_names
    check_names("table", names, target, categorical)
    if not frame.num_rows:
        raise ValueError(
            f"table: expected at least one row, got none below the columns {listed(names)}; check "
            "the code that selects the rows"
        )
    found = {name: seen("table", name, frame[name], name in categorical) for name in names}
    return fitted("table", found, target)._arrays("table", frame)


def check_names(
    who: str, names: Sequence[str], target: str | None, categorical: Sequence[str]
) -> None:
    """Raises unless `target` and `categorical` are among the names of the columns."""
    for name in (*categorical, *(() if target is None else (target,))):
        if name not in names:
            what = "target" if name == target else "names in categorical"
            raise ValueError(
                f"{who}: expected {what} among the columns {listed(names)}, got {name!r:.200}; "
                "check the spelling"
            )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A column of numbers, as it was in the training table.

    Args:
      name: the name of the column.
      mean: the mean of the numbers that were not missing.
      scale: their standard deviation, or 1 if it was 0.
      missing: whether numbers were missing.

    Example:
      >>> table({"age": [20, 40, None]}).columns.numbers
      (Numbers(name='age', mean=30.0, scale=10.0, missing=True),)
    """

    name: str
    mean: float
    scale: float
    missing: bool


@dataclasses.dataclass(frozen=True)
class Categories:
    """A column of categories, as it was in the training table.

    Args:
      name: the name of the column.
      values: what its values are: "text", "bool" or "integer".
      labels: its different values, sorted. As an input, labels[i] has the code i + 1, so there are
        1 + len(labels) codes. As a target, labels[i] has the code i.

    Example:
      >>> table({"zip": [9, 5, None, 9]}, categorical=["zip"]).columns.categories
      (Categories(name='zip', values='integer', labels=(5, 9)),)
    """

    name: str
    values: str
    labels: tuple[str | bool | int, ...]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What `table` learned from the columns of the training table. It is plain data.

    Args:
      numbers: the F columns of numbers, in the order of the table.
      categories: the C columns of categories, in the order of the table.
      target: the column to predict, or None.

    Example:
      >>> columns = table({"age": [20, 40], "city": ["Oslo", "Rome"]}, target="city").columns
      >>> columns.target
      Categories(name='city', values='text', labels=('Oslo', 'Rome'))
      >>> Columns.from_json(columns.to_json()) == columns
      True
    """

    numbers: tuple[Numbers, ...]
    categories: tuple[Categories, ...]
    target: Numbers | Categories | None

    def apply(self, data: Any) -> "Table":
        """Converts another table with the means, scales and codes of the training table.

        Columns are found by name, so their order does not matter. Other columns are ignored. A
        category that the training table does not have becomes code 0. A missing number becomes 0.
        Only columns that had missing numbers in training have a second column for missing numbers.

        Args:
          data: a table in any form that `table` takes.

        Returns:
          A `Table`. Its y is None if the table does not have the target.

        Raises:
          ValueError: a column is missing, or has values of another kind than in training; the
            target has a class that was unseen in training; or there is an error that `table` also
            raises.
        """
        return self._arrays("Columns.apply", as_frame("Columns.apply", data, types_of(self)))

    def restore(self, y: Any) -> np.ndarray:
        """Converts predictions back to values of the target column.

        Args:
          y: floating [N, ...] if the target is a column of numbers: predictions of the standardised
            target. Otherwise integers [N, ...], codes of classes, such as `logits.argmax(-1)`.

        Returns:
          float64 [N, ...], y * scale + mean; or labels [N, ...].

        Raises:
          ValueError: there is no target, or a code is not an integer in [0, number of classes).
        """
        if self.target is None:
            raise ValueError(
                "Columns.restore: expected columns with a target, got none; name it in table(..., "
                "target=...)"
            )
        y = np.asarray(y)
        if isinstance(self.target, Numbers):
            return y.astype(np.float64) * self.target.scale + self.target.mean
        labels = np.asarray(self.target.labels)
        if y.dtype.kind not in "iu" or (y.size and not 0 <= y.min() <= y.max() < len(labels)):
            raise ValueError(
                f"Columns.restore: expected integer codes in [0, {len(labels)}), got {kind(y)}"
                f"{_span(y)}; in place of logits, pass logits.argmax(-1)"
            )
        return labels[y]

    def to_json(self) -> str:
        """The columns as a text in JSON, from which `from_json` makes equal columns."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Columns":
        """Makes columns from the text that `to_json` gave.

        Raises:
          ValueError: the text is not from `to_json`.
        """
        try:
            given = json.loads(text)
            target = given["target"]
            columns = Columns(
                tuple(Numbers(**each) for each in given["numbers"]),
                tuple(_categories(**each) for each in given["categories"]),
                target and (_categories if "labels" in target else Numbers)(**target),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "Columns.from_json: expected the text that Columns.to_json gave, got "
                f"{shortened(repr(text), 200)}; save it to a file unchanged"
            ) from error
        return columns

    def _arrays(self, who: str, frame: Any) -> "Table":
        inputs: tuple[Numbers | Categories, ...] = (*self.numbers, *self.categories)
        absent = [column.name for column in inputs if column.name not in frame.column_names]
        if absent:
            raise ValueError(
                f"{who}: expected the columns of the training table, got none named "
                f"{listed(absent)} among {listed(frame.column_names)}; add the column, with "
                "empty values if they are not known"
            )
        parts = [_standardised(who, column, frame[column.name]) for column in self.numbers]
        values = [standard for standard, _ in parts]
        values += [
            gaps for (_, gaps), column in zip(parts, self.numbers, strict=True) if column.missing
        ]
        codes = [_codes(who, column, frame[column.name]) for column in self.categories]
        x = {
            "numbers": _joined(values, frame.num_rows, np.float32),
            "codes": _joined(codes, frame.num_rows, np.int32),
        }
        known = self.target is not None and self.target.name in frame.column_names
        return Table(x, _target(who, self.target, frame) if known else None, self)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as arrays. Pass `(t.x, t.y)` to `fit`.

    Args:
      x: a dict with two arrays. "numbers" is float32 [N, F + M]: the standardised columns, then
        for each column that had missing values in training, a column of 0 and 1 (1 is missing).
        "codes" is int32 [N, C].
      y: the target: float32 [N], standardised, if it is a column of numbers; int32 [N], the code of
        the class in [0, number of classes), if it is a column of categories; or None.
        `columns.restore` converts predictions back.
      columns: what `table` learned; `columns.apply` converts other tables in the same way.

    Example:
      >>> t = table({"height": [1.0, 3.0], "price": [10, 30]}, target="price")
      >>> t.y.tolist(), t.columns.restore(t.y).tolist()
      ([-1.0, 1.0], [10.0, 30.0])
    """

    x: dict[str, np.ndarray]
    y: np.ndarray | None
    columns: Columns


def types_of(columns: Columns) -> dict[str, str]:
    """The types that the columns must have in a CSV file, by name."""
    target = () if columns.target is None else (columns.target,)
    every: tuple[Numbers | Categories, ...] = (*columns.numbers, *columns.categories, *target)
    return {
        column.name: "double" if isinstance(column, Numbers) else _TYPES[column.values]
        for column in every
    }


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known about a column from some rows of a table.

    Args:
      values: "number"; "text", "bool" or "integer" for categories; or "missing" for no values.
      count: the number of values that are not missing.
      missing: whether values are missing.
      mean, std: the mean and standard deviation of numbers; std is exactly 0 if all are equal.
      labels: the different categories.
    """

    values: str
    count: int
    missing: bool
    mean: float = 0.0
    std: float = 0.0
    labels: frozenset[Any] = frozenset()


def seen(who: str, name: str, column: Any, categorical: bool) -> Seen:
    """Collects what `Seen` holds, from a column of pyarrow."""
    import pyarrow as pa

    values = _kind(who, name, column.type)
    if values == "number" and not categorical and not pa.types.is_dictionary(column.type):
        numbers = _numbers(who, name, column)
        _check_finite(who, name, numbers, numbers)
        here = numbers[~np.isnan(numbers)]
        return Seen("number", len(here), len(here) < len(numbers), *_moments(here))
    values = "integer" if values == "number" else values
    here = _values(who, name, column, values).drop_null()
    labels = frozenset(here.unique().to_pylist())
    return Seen(values, len(here), len(here) < len(column), labels=labels)


def _moments(numbers: np.ndarray) -> tuple[float, float]:
    """The mean and the standard deviation."""
    if not numbers.size or numbers.min() == numbers.max():
        return float(numbers[0]) if numbers.size else 0.0, 0.0
    exponent = np.frexp(np.abs(numbers).max())[1]
    small = np.ldexp(numbers, -exponent)  # exact, and squares of these numbers do not overflow
    return float(np.ldexp(small.mean(), exponent)), float(np.ldexp(small.std(), exponent))


def merged(who: str, name: str, a: Seen, b: Seen) -> Seen:
    """Combines what is known about two parts of a column."""
    missing = a.missing or b.missing
    if "missing" in (a.values, b.values):
        return dataclasses.replace(b if a.values == "missing" else a, missing=missing)
    if a.values != b.values:
        raise ValueError(
            f"{who}: expected values of one kind in column {name!r:.200}, got {a.values}s in some "
            f"rows and {b.values}s in others; convert the column in all files"
        )
    count = a.count + b.count
    share = b.count / max(count, 1)
    mean = a.mean if a.mean == b.mean else a.mean * (1 - share) + b.mean * share
    between = (b.mean / 2 - a.mean / 2) * 2 * math.sqrt(share * (1 - share))
    std = math.hypot(a.std * math.sqrt(1 - share), b.std * math.sqrt(share), between)
    return Seen(a.values, count, missing, mean, std, a.labels | b.labels)


def fitted(who: str, found: dict[str, Seen], target: str | None) -> Columns:
    """Makes `Columns` from what is known about each column."""
    columns = {name: _fitted(who, name, each) for name, each in found.items()}
    inputs = [column for name, column in columns.items() if name != target]
    return Columns(
        tuple(column for column in inputs if isinstance(column, Numbers)),
        tuple(column for column in inputs if isinstance(column, Categories)),
        None if target is None else columns[target],
    )


def _fitted(who: str, name: str, found: Seen) -> Numbers | Categories:
    if not found.count:
        raise ValueError(
            f"{who}: expected values in column {name!r:.200}, got only missing values; leave the "
            "column out"
        )
    if found.values == "number":
        return Numbers(name, found.mean, found.std or 1.0, found.missing)
    return Categories(name, found.values, tuple(sorted(found.labels)))


def _kind(who: str, name: str, given: Any) -> str:
    """The kind of values that a pyarrow type stands for: "number", "text", "bool" or "missing"."""
    from pyarrow import types

    given = given.value_type if types.is_dictionary(given) else given
    if types.is_floating(given) or types.is_integer(given) or types.is_decimal(given):
        return "number"
    if types.is_string(given) or types.is_large_string(given) or types.is_string_view(given):
        return "text"
    if types.is_boolean(given):
        return "bool"
    if types.is_null(given):
        return "missing"
    raise ValueError(
        f"{who}: expected numbers, texts, categories or bools in column {name!r:.200}, got "
        f"{given}; convert the column, or leave it out"
    )


def _numbers(who: str, name: str, column: Any) -> np.ndarray:
    """float64 [N], with NaN for missing numbers."""
    if _kind(who, name, column.type) not in ("number", "missing"):
        raise ValueError(
            f"{who}: expected numbers in column {name!r:.200}, got {column.type}; give it the type "
            "that it has in the training table"
        )
    return _decoded(column).cast("double", safe=False).to_numpy()


def _values(who: str, name: str, column: Any, values: str) -> Any:
    """The column, cast to the pyarrow type for the kind `values`; missing values are null."""
    import pyarrow as pa
    from pyarrow import compute

    found = _kind(who, name, column.type)
    if found not in ("missing", "number" if values == "integer" else values):
        raise ValueError(
            f"{who}: expected {values}s in column {name!r:.200}, got {column.type}; give it the "
            "type that it has in the training table"
        )
    column = _decoded(column)
    if pa.types.is_floating(column.type):
        gaps = compute.is_nan(column)
        column = compute.if_else(gaps, pa.scalar(None, column.type), column)
    try:
        return column.cast(_TYPES.get(values, "null"))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{who}: expected integers as categories in column {name!r:.200}, got "
            f"{reason(error)}; convert the column to texts"
        ) from error


def _decoded(column: Any) -> Any:
    import pyarrow as pa

    dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if dictionary else column


def _standardised(who: str, column: Numbers, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [N], with 0 for missing numbers; bool [N], True for missing numbers)."""
    numbers = _numbers(who, column.name, given)
    with np.errstate(over="ignore"):
        standard = ((numbers - column.mean) / column.scale).astype(np.float32)
    _check_finite(who, column.name, numbers, standard)
    missing = np.isnan(numbers)
    return np.where(missing, np.float32(0), standard), missing


def _codes(who: str, column: Categories, given: Any) -> np.ndarray:
    """int32 [N]: 1 + the index of each value in the labels, or 0 if it is missing or unseen."""
    import pyarrow as pa
    from pyarrow import compute

    labels = pa.array(column.labels, _TYPES[column.values])
    found = compute.index_in(_values(who, column.name, given, column.values), labels)
    return (found.fill_null(-1).to_numpy() + 1).astype(np.int32)


def _target(who: str, column: Any, frame: Any) -> np.ndarray:
    """The target as y: float32 [N], or int32 [N] for classes. Raises for missing or new values."""
    if isinstance(column, Numbers):
        y, wrong = _standardised(who, column, frame[column.name])
        wanted = "a number"
    else:
        y = _codes(who, column, frame[column.name]) - 1
        wrong = y < 0
        wanted = "a class of the training table"
    if wrong.any():
        row = int(wrong.argmax())
        value = frame[column.name][row].as_py()
        raise ValueError(
            f"{who}: expected {wanted} in each row of the target {column.name!r:.200}, got "
            f"{value!r:.200} in row {row} ({int(wrong.sum())} of {len(wrong)} rows); remove "
            "these rows, or the target column if you only want predictions"
        )
    return y


def _joined(columns: list[np.ndarray], rows: int, dtype: Any) -> np.ndarray:
    return np.stack(columns, 1).astype(dtype) if columns else np.empty((rows, 0), dtype)


def _categories(name: str, values: str, labels: list[Any]) -> Categories:
    """Categories from JSON; raises KeyError if `values` is not a kind of value."""
    return Categories(name, values if _TYPES[values] else "", tuple(labels))


def _check_finite(who: str, name: str, numbers: np.ndarray, results: np.ndarray) -> None:
    """Raises unless `results` are finite; the results of missing numbers may be NaN."""
    wrong = ~np.isfinite(results) & ~np.isnan(numbers)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{who}: expected finite numbers in column {name!r:.200}, got "
            f"{numbers[row]} in row {row} ({int(wrong.sum())} of {len(wrong)} rows); correct "
            "them, or leave them empty"
        )


def _span(y: np.ndarray) -> str:
    return f" from {y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else ""
