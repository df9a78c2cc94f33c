"""Converts all kinds of tables to tables of pyarrow, so that there is one way to read a column."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fdl.checks import described
from fdl.data.arrays import MOST_NAMED
from fdl.paths import shortened


def read_table(file: str | os.PathLike[str]) -> Any:
    """Reads a CSV or Parquet file as `table` does, to split its rows before they are converted.

    Args:
      file: the path of a file: .csv, .csv.gz or .parquet.

    Returns:
      A `pyarrow.Table`, which `split`, `folds` and `table` take.

    Raises:
      ImportError: pyarrow is not installed.
      FileNotFoundError: there is no such file.
      ValueError: the name has another ending, pyarrow cannot read the file, or a row of a CSV file
        has too few or too many values.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp(), "people.csv")
      >>> _ = file.write_text("age,city\\n31,Oslo\\n,Rome\\n")
      >>> read_table(file)["age"].to_pylist()
      [31, None]
    """
    return _read("read_table", os.fspath(file), None)


def get_pyarrow(who: str) -> Any:
    """The package pyarrow; raises if it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f"{who}: expected pyarrow, which reads tables, got none; run pip install 'fdl[tables]'"
        ) from error
    return pyarrow


def as_frame(who: str, data: Any, types: dict[str, str] | None = None) -> Any:
    """Converts data to a `pyarrow.Table`; `types` are the types of columns of a CSV file."""
    pa = get_pyarrow(who)
    if isinstance(data, str | os.PathLike):
        frame = _read(who, os.fspath(data), types)
    elif not isinstance(data, Mapping) and not hasattr(data, "__arrow_c_stream__"):
        raise ValueError(
            f"{who}: expected a table of pandas, polars or pyarrow, a dict of columns, or a file, "
            f"got {described(data)}; give each column a name"
        )
    else:
        try:
            if type(data).__module__.startswith("pandas"):
                frame = pa.Table.from_pandas(data, preserve_index=False)
            else:  # polars' `to_arrow` gives columns of types that pyarrow can compare and cast
                frame = data.to_arrow() if hasattr(data, "to_arrow") else pa.table(data)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{who}: expected named columns of equal length whose values have one type, got "
                f"{reason(error)}; correct the columns first"
            ) from error
    names = frame.column_names
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"{who}: expected columns with different names, got more than one {listed(twice)}; "
            "rename or remove one of them"
        )
    return frame


def _read(who: str, file: str, types: dict[str, str] | None) -> Any:
    """Reads a file; `types` maps columns of a CSV file to the types that they must have."""
    pa = get_pyarrow(who)
    name = file.lower()
    if not name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(
            f"{who}: expected a file whose name ends with .csv, .csv.gz or .parquet, got {file!r}; "
            "read other files with pandas or polars, and pass the table"
        )
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"{who}: expected a CSV or Parquet file, got no file at {file!r}; check the path"
        )
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet

            return pyarrow.parquet.read_table(file)
        return read_csv(pa, who, repr(file), file, types)
    except pa.ArrowException as error:
        raise ValueError(
            f"{who}: expected a file that pyarrow can read, got {reason(error)} in {file!r}; "
            "correct the file"
        ) from error


def read_csv(
    pa: Any, who: str, named: str, file: Any, types: Any, names: Sequence[str] | None = None
) -> Any:
    """Reads a CSV file or a buffer. `named` is its name in error messages.

    `names` are the columns to read; None reads all columns.
    """
    import pyarrow.csv as csv

    ragged: list[Any] = []

    def keep(row: Any) -> str:
        ragged.append(row)
        return "skip"

    frame = csv.read_csv(
        file,
        read_options=csv.ReadOptions(use_threads=False),  # else errors have no row numbers
        parse_options=csv.ParseOptions(invalid_row_handler=keep),
        convert_options=csv.ConvertOptions(
            strings_can_be_null=True,
            column_types={name: _type(pa, each) for name, each in (types or {}).items()},
            include_columns=names,
        ),
    )
    if ragged:
        row = ragged[0]
        more = f" and {len(ragged) - 1} more such rows" if len(ragged) > 1 else ""
        raise ValueError(
            f"{who}: expected {row.expected_columns} values in each row of {named}, got "
            f"{row.actual_columns} in row {row.number}, {row.text!r:.100}{more} (the header is row "
            "1); give each row one value for each column"
        )
    return frame


def _type(pa: Any, given: Any) -> Any:
    return pa.type_for_alias(given) if isinstance(given, str) else given


def listed(names: Sequence[str]) -> str:
    """Names as text, at most 8 of them."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(f"{name!r:.60}" for name in names[:MOST_NAMED]) + more


def reason(error: BaseException) -> str:
    """The words of an error, in one line of at most 300 characters."""
    return shortened(" ".join(" ".join(map(str, error.args)).split()), 300)
