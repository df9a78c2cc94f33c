"""Tables in files: every row once an epoch, few row groups in memory, exact after any stop."""

import functools
import itertools
import json
import math
import re
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

import fdl
from fdl.data import row_groups, table, table_columns, table_source
from fdl.data.order import permutation

SIZES = [7, 7, 7, 4, 7, 7, 7, 7, 1]  # of the row groups of two files with 25 and 29 rows
N = sum(SIZES)


@functools.cache
def frame():
    rng = np.random.default_rng(3)
    area = rng.normal(3, 2, N).round(3)
    return pyarrow.table(
        {
            "row": np.arange(N),
            "area": pyarrow.array(area, mask=area < 1.5),
            "city": rng.choice(["Oslo", "Rome, old", 'the "Hague"', "two\nlines"], N),
            "old": rng.random(N) < 0.3,
            "price": rng.integers(1, 99, N),
        }
    )


def parquet(folder, rows=(0, 25, N), name="part"):
    files = []
    for number, (begin, end) in enumerate(itertools.pairwise(rows)):
        files.append(folder / f"{name}{number}.parquet")
        part = frame().slice(begin, end - begin)
        pyarrow.parquet.write_table(part, files[-1], row_group_size=7)
    return files


def csv(folder, rows=(0, 25, N)):
    files = []
    for number, (begin, end) in enumerate(itertools.pairwise(rows)):
        files.append(folder / f"part{number}.csv")
        pyarrow.csv.write_csv(frame().slice(begin, end - begin), files[-1])
    return files


@pytest.fixture(params=["parquet", "csv"])
def files(request, tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "CSV_BYTES", 200)
    return {"parquet": parquet, "csv": csv}[request.param](tmp_path)


def numbers(frame):
    return {"row": frame["row"].to_numpy(), "price": frame["price"].to_numpy()}


def in_order(sizes, window, seed, epoch):
    """The rows of an epoch, by the words of the docstring."""
    starts = np.cumsum([0, *sizes])
    groups, found = permutation(len(sizes), seed, epoch), []
    for number, begin in enumerate(range(0, len(groups), window)):
        here = [row for g in groups[begin : begin + window] for row in range(*starts[g : g + 2])]
        found += np.array(here)[permutation(len(here), seed, epoch, number)].tolist()
    return found


@pytest.mark.parametrize("window", [1, 2, 4, 20])
def test_every_row_comes_once_an_epoch_and_the_batch_is_that_of_the_step(files, window):
    source = table_source(files, numbers, window=window)
    sizes = [group.rows for group in source.groups]
    assert source.examples == N == sum(sizes) and len(sizes) > 5
    expected = np.array([in_order(sizes, window, 5, epoch) for epoch in range(4)]).reshape(-1)
    assert sorted(expected[N : 2 * N]) == list(range(N))
    steps = 4 * N // 8
    whole = source.take(np.uint32(5), range(steps), 8)
    np.testing.assert_array_equal(whole["row"], expected[: steps * 8].reshape(steps, 8))
    prices = frame()["price"].to_numpy()
    np.testing.assert_array_equal(whole["price"], prices[whole["row"]])
    for begin, end in ((20, 21), (3, 9), (0, 1), (13, steps)):
        part = source.take(5, range(begin, end), 8)
        np.testing.assert_array_equal(part["row"], whole["row"][begin:end])
    assert (source.take(6, range(6), 8)["row"] != whole["row"][:6]).mean() > 0.8
    if sizes == SIZES:
        assert sizes == [group.num_rows for file in files for group in groups_of(file)]


def groups_of(file):
    about = pyarrow.parquet.read_metadata(file)
    return [about.row_group(number) for number in range(about.num_row_groups)]


def test_no_more_row_groups_are_in_memory_than_the_window_has(files):
    living, most = [], []

    def convert(frame):
        row = frame["row"].to_numpy().copy()
        living.append(weakref.ref(row))
        most.append(sum(each() is not None for each in living))
        return row

    source = table_source(files, convert, window=2)
    for step in range(0, 30, 3):
        source.first(8)
        source.take(1, range(step, step + 3), 8)
    assert len(most) > 20 and max(most) == 2


def test_batches_of_columns_are_those_of_the_table(files):
    columns = table_columns(files, target="price")
    whole = columns.apply(frame())
    source = table_source(files, columns, window=3)
    x, y = source.take(2, range(9), 6)
    rows = np.array(in_order([group.rows for group in source.groups], 3, 2, 0)).reshape(9, 6)
    np.testing.assert_array_equal(x["numbers"], whole.x["numbers"][rows])
    np.testing.assert_array_equal(x["codes"], whole.x["codes"][rows])
    np.testing.assert_array_equal(y, whole.y[rows])
    first = source.first(9)
    assert jax.tree.map(np.shape, first) == ({"numbers": (9, 3), "codes": (9, 2)}, (9,))


def test_columns_without_a_target_give_x(tmp_path):
    columns = table({"price": [1.0, 3], "area": [1.0, 2]}).columns
    batch = table_source(parquet(tmp_path), columns).take(0, range(1), 4)
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "numbers": (1, 4, 2),
        "codes": (1, 4, 0),
    }


@pytest.mark.parametrize("how", [{"target": "city"}, {"categorical": ["price", "row"]}])
def test_columns_of_files_are_those_of_the_table(files, how):
    found, expected = table_columns(files, **how), table(frame(), **how).columns
    assert found.categories == expected.categories and found.target == expected.target
    for a, b in zip(found.numbers, expected.numbers, strict=True):
        assert (a.name, a.missing) == (b.name, b.missing)
        np.testing.assert_allclose([a.mean, a.scale], [b.mean, b.scale], rtol=1e-14)


def test_columns_of_numbers_at_the_edges(tmp_path):
    """Equal numbers, gaps in one group only, squares that overflow, kinds known late."""
    parts = [
        {"same": [0.7] * 3, "gaps": [None] * 3, "huge": [1e300, -1e300, 1e300], "late": [None] * 3},
        {"same": [0.7] * 2, "gaps": [4.0, None], "huge": [3e300, 5e300], "late": ["b", "a"]},
        {"same": [0.7], "gaps": [2.0], "huge": [-1e307], "late": ["a"]},
    ]
    files = []
    types = {"same": "double", "gaps": "double", "huge": "double"}
    for number, part in enumerate(parts):
        files.append(tmp_path / f"{number}.parquet")
        late = "string" if number else "null"
        schema = pyarrow.schema([*types.items(), ("late", getattr(pyarrow, late)())])
        pyarrow.parquet.write_table(pyarrow.table(part, schema), files[-1])
    same, gaps, huge = table_columns(files).numbers
    assert (same.mean, same.scale, same.missing) == (0.7, 1.0, False)
    assert (gaps.mean, gaps.scale, gaps.missing) == (3.0, 1.0, True)
    values = [x / 1e307 for part in parts for x in part["huge"]]
    np.testing.assert_allclose(huge.mean / 1e307, np.mean(values), rtol=1e-14)
    np.testing.assert_allclose(huge.scale / 1e307, np.std(values), rtol=1e-14)
    assert table_columns(files).categories[0].labels == ("a", "b")


def train(source, steps=25, run=None, **more):
    objective, optimizer = learner()
    run = run or fdl.start({"w": jnp.ones(3), "b": jnp.zeros(4)}, optimizer, seed=9)
    how = {"batch_size": 6, "record_every": 5, "chunk": 2} | more
    return fdl.fit(objective, optimizer, run, source, steps=steps, **how)


@functools.cache
def learner():
    def loss(params, batch):
        x, y = batch
        predicted = x["numbers"] @ params["w"] + params["b"][x["codes"][:, 0]]
        return ((predicted - y) ** 2).mean()

    return fdl.plain(loss), fdl.sgd(0.02, momentum=0.9)


def test_a_run_that_is_stopped_and_goes_on_is_the_uninterrupted_one(files, tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    columns = table_columns(files, target="price")
    # A plain loop: one step after the other, on rows that pyarrow has read at once.
    objective, optimizer = learner()
    run = fdl.start({"w": jnp.ones(3), "b": jnp.zeros(4)}, optimizer, seed=9)
    source = table_source(files, columns, window=3)
    sizes, t = [group.rows for group in source.groups], columns.apply(frame())
    rows = [row for epoch in range(3) for row in in_order(sizes, 3, 9, epoch)]
    batches = [
        jax.tree.map(lambda leaf: leaf[rows[6 * step : 6 * step + 6]], (t.x, t.y))
        for step in range(25)
    ]
    whole = fdl.fit(objective, optimizer, run, fdl.data.source(batches), steps=25, record_every=5)
    stop = lambda record, run: "enough" * (record["step"] == 10)  # noqa: E731
    saved = fdl.checkpoints(tmp_path / "runs")
    first = train(source, watch=[stop, saved])
    assert int(first.run.step) == 10
    found = train(table_source(files, columns, window=3), run=first, chunk=5)
    saved = fdl.checkpoints(tmp_path / "runs")
    start = fdl.start(first.params, optimizer)
    loaded = train(table_source(files, columns, window=3), run=saved.latest(start), watch=[saved])
    for other in (found, loaded):
        jax.tree.map(np.testing.assert_array_equal, other.run, whole.run)
    about = json.loads((tmp_path / "runs" / "25" / "about" / "metadata").read_text())["data"]
    assert (about["examples"], about["window"]) == (N, 3)
    epochs = train(source, steps=None, epochs=0.4)
    assert int(epochs.run.step) == math.ceil(0.4 * N / 6)


def test_the_fingerprint_tells_other_rows_and_windows(tmp_path):
    def about(files, **how):
        return table_source(files, numbers, **how).fingerprint()

    files = parquet(tmp_path)
    assert about(files) == about(files)
    one = parquet(tmp_path, (0, 28, N), name="other")
    others = [about(files, window=2), about(files[:1]), about(files[::-1]), about(one)]
    assert len({json.dumps(each) for each in [about(files), *others]}) == 5


def no_rows(folder):
    return parquet(folder, (0, 0))


def damaged(folder):
    file = parquet(folder)[0]
    file.write_bytes(b"PAR1" + bytes(90))
    return file


def without_column(folder):
    files = parquet(folder)
    pyarrow.parquet.write_table(frame().drop_columns(["price"]), files[1])
    return files


def ragged(folder):
    (folder / "r.csv").write_text("row,price\n1,2\n3\n")
    return folder / "r.csv"


def twice(folder):
    (folder / "t.csv").write_text("row,row\n1,2\n")
    return folder / "t.csv"


def empty(folder):
    (folder / "e.csv").write_text("")
    return folder / "e.csv"


def other_kind(folder):
    pyarrow.parquet.write_table(pyarrow.table({"row": [1.5]}), folder / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"row": ["x"]}), folder / "b.parquet")
    return [folder / "a.parquet", folder / "b.parquet"]


BAD = {
    "no file": (
        lambda folder: table_source(folder / "x.parquet", numbers),
        FileNotFoundError,
        r"^table_source: expected a CSV or Parquet file, got no file at '.*x.parquet'; check the",
    ),
    "no files": (
        lambda folder: table_source([], numbers),
        ValueError,
        r"^table_source: expected at least one row, got none in 0 files; pass files with rows$",
    ),
    "no rows": (
        lambda folder: table_columns(no_rows(folder)),
        ValueError,
        r"^table_columns: expected at least one row, got none in 1 files; pass files with rows$",
    ),
    "an ending": (
        lambda folder: table_source("table.csv.gz", numbers),
        ValueError,
        r"^table_source: expected a file whose name ends with .parquet or .csv, got 'table.csv.gz'"
        r"; unpack it, or write the table as Parquet$",
    ),
    "damaged": (
        lambda folder: table_source(damaged(folder), numbers),
        ValueError,
        r"^table_source: expected to read '.*part0.parquet', got .*; correct or replace the file$",
    ),
    "an empty file": (
        lambda folder: table_source(empty(folder), numbers),
        ValueError,
        r"^table_source: expected to read '.*e.csv', got Empty CSV file; correct or replace the",
    ),
    "a missing column": (
        lambda folder: table_source(without_column(folder), numbers),
        ValueError,
        r"^table_source: expected every file to have the columns of the first one, got no "
        r"column 'price' in '.*part1.parquet'; pass files with the same columns$",
    ),
    "a column missing for table_columns": (
        lambda folder: table_columns(without_column(folder)),
        ValueError,
        r"^table_columns: expected every file to have the columns of the first one, got no "
        r"column 'price' in '.*part1.parquet'; pass files with the same columns$",
    ),
    "a column that no file has": (
        lambda folder: table_source(parquet(folder), table({"rooms": [1, 2]}).columns),
        ValueError,
        r"^Columns.apply: expected the columns of the training table, got none named 'rooms' am",
    ),
    "a target that no file has": (
        lambda folder: table_columns(parquet(folder), target="cost"),
        ValueError,
        r"^table_columns: expected target among the columns 'row', .*, got 'cost'; check the spell",
    ),
    "ragged": (
        lambda folder: table_columns(ragged(folder)),
        ValueError,
        r"^table_columns: expected 2 values in each row of bytes 10 to 16 of '.*r.csv', got 1 in ",
    ),
    "a name twice": (
        lambda folder: table_source(twice(folder), numbers),
        ValueError,
        r"^table_source: expected columns with different names, got more than one 'row'; rename",
    ),
    "another kind": (
        lambda folder: table_columns(other_kind(folder)),
        ValueError,
        r"^table_columns: expected values of one kind in column 'row', got numbers in some rows "
        r"and texts in others; convert the column in all files$",
    ),
    "a window": (
        lambda folder: table_source(parquet(folder), numbers, window=0),
        ValueError,
        r"^table_source: expected window >= 1, an integer, got 0; it counts row groups in memory$",
    ),
    "convert": (
        lambda folder: table_source(parquet(folder), "numbers"),
        TypeError,
        r"^table_source: expected the columns of fdl.data.table, or a function of a pyarrow.Table, "
        r"got 'numbers'; pass table\(...\).columns, for example$",
    ),
    "fewer rows": (
        lambda folder: table_source(parquet(folder), lambda frame: np.ones(3)),
        ValueError,
        r"^table_source: expected arrays of 7 rows for row group 0 of '.*part0.parquet', got .*; "
        r"give one row for each row of the table$",
    ),
    "another dtype": (
        lambda folder: table_source(other_kind(folder), lambda f: np.array([len(str(f))] * 1)[:0]),
        ValueError,
        r"^table_source: expected arrays of 1 rows for row group 0",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_told_at_once(tmp_path, kind):
    call, error, told = BAD[kind]
    with pytest.raises(error, match=told):
        call(tmp_path)


def test_files_that_change_while_training_are_told(tmp_path):
    files = parquet(tmp_path)
    source = table_source(files, numbers, window=1)
    files[1].unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"^table_source: expected to read row group \d of '.*part1.parquet', got .*No such f",
    ):
        source.take(0, range(7), 8)
    files = parquet(tmp_path)
    source = table_source(files, numbers, window=1)
    pyarrow.parquet.write_table(frame(), files[1], row_group_size=6)
    with pytest.raises(
        ValueError,
        match=r"^table_source: expected 7 rows in row group \d of '.*part1.parquet', got 6, "
        r"because the file was changed; make the source again$",
    ):
        source.take(0, range(7), 8)


def test_a_group_of_another_dtype_is_told_and_named(tmp_path):
    files = parquet(tmp_path)
    large = frame().set_column(0, "row", pyarrow.array(np.arange(N) + 0.5))
    pyarrow.parquet.write_table(large, files[1])
    source = table_source(files, numbers)
    told = r"expected every row \(row group \d of '.*part1.parquet'\) to be like the first, int64"
    with pytest.raises(ValueError, match=told):
        source.take(0, range(7), 8)


def test_an_error_of_a_row_names_the_group(tmp_path):
    files = parquet(tmp_path)
    source = table_source(files, table(frame().slice(0, 25), target="city").columns)
    bad = frame().slice(0, 29).set_column(2, "city", pyarrow.array(["Lima"] * 29))
    pyarrow.parquet.write_table(bad, files[1], row_group_size=7)
    with pytest.raises(ValueError, match=r"^Columns.apply: expected a class of the tr") as caught:
        source.take(0, range(7), 8)
    assert re.match(
        rf"in row group \d of {re.escape(repr(str(files[1])))}$", caught.value.__notes__[0]
    )


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError,
        match=r"^table_source: expected pyarrow, which reads tables, got none; run pip install "
        r"'fdl\[tables\]'$",
    ):
        table_source(damaged_path(tmp_path), numbers)


def damaged_path(folder):
    (folder / "x.parquet").write_bytes(b"")
    return folder / "x.parquet"


SEEDED_BUGS = {
    "fdl/data/row_groups.py": (
        "data/test_row_groups.py",
        [
            ("permutation(len(self.groups), seed, epoch)", "permutation(len(self.groups), seed)"),
            ("seed, epoch, number)\n            self", "seed, epoch)\n            self"),
            ("if self.order[0] != (seed, epoch, number):", "if self.order[0] is None:"),
            ("self.order[1][offset : offset + most]", "self.order[1][:most]"),
            ('rows, side="right") - 1', 'rows, side="left") - 1'),
            ("rows[owner == number] - starts[number]", "rows[owner == number] % len(leaf)"),
            ("for each in groups if each in self.arrays}", "for each in self.arrays}"),
            ("(np.searchsorted(marks, ends) + quotes) % 2 == 0", "ends >= 0"),
            ("if counts != {group.rows}:", "if False:"),
            ("if self.kinds and now != self.kinds:", "if False:"),
            ("if group.rows and frame.num_rows != group.rows:", "if False:"),
            ('"window": window,', '"window": 4,'),
        ],
    ),
    "fdl/data/tables.py": (
        "data/test_row_groups.py",
        [
            ("share = b.count / max(count, 1)", "share = 0.5"),
            ("b.std * math.sqrt(share), between)", "b.std * math.sqrt(share))"),
            ("missing = a.missing or b.missing", "missing = b.missing"),
            ("a.labels | b.labels)", "b.labels)"),
            ("mean = a.mean if a.mean == b.mean else ", "mean = "),
        ],
    ),
}
