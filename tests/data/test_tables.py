"""Tables as arrays: exact numbers, scikit-learn as an oracle, and every wrong table."""

import datetime
import re
import sys

import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from sklearn.preprocessing import StandardScaler

import fdl
from fdl.data import Columns, read_table, table

FLATS = {
    "area": [1.5, None, 4.0, 2.0],
    "city": ["Rome", None, "Oslo", "Rome"],
    "old": [True, False, None, True],
    "rooms": [1, 2, 3, 6],
    "kind": ["b", "a", "b", "b"],
}
NUMBERS = np.array(
    [
        [(1.5 - 2.5) / (3.5 / 3) ** 0.5, -2 / 3.5**0.5, 0],
        [0, -1 / 3.5**0.5, 1],
        [(4.0 - 2.5) / (3.5 / 3) ** 0.5, 0, 0],
        [(2.0 - 2.5) / (3.5 / 3) ** 0.5, 3 / 3.5**0.5, 0],
    ],
    np.float32,
)
CODES = [[2, 2], [0, 1], [1, 0], [2, 2]]
FORMS = {
    "dict": lambda folder: FLATS,
    "pandas": lambda folder: pandas.DataFrame(FLATS, index=[7, 3, 5, 1]),
    "pandas_categories": lambda folder: pandas.DataFrame(FLATS).astype({"city": "category"}),
    "polars": lambda folder: polars.DataFrame(FLATS),
    "polars_categories": lambda folder: polars.DataFrame(FLATS).with_columns(
        polars.col("city").cast(polars.Categorical), polars.col("area").fill_null(float("nan"))
    ),
    "pyarrow": lambda folder: pyarrow.table(FLATS),
    "csv": lambda folder: write_csv(folder / "flats.csv"),
    "csv_gz": lambda folder: write_csv(folder / "flats.csv.gz"),
    "parquet": lambda folder: write_parquet(folder / "flats.parquet"),
}


def write_csv(file):
    pandas.DataFrame(FLATS).to_csv(file, index=False)
    return str(file)


def write_parquet(file):
    pyarrow.parquet.write_table(pyarrow.table(FLATS), file)
    return file


def written(folder, text, name="given.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_arrays(form, tmp_path):
    data = FORMS[form](tmp_path)
    t = table(data, target="kind")
    again = t.columns.apply(data)
    for each in (t, again):
        assert each.x.keys() == {"numbers", "codes"}
        assert each.x["numbers"].dtype == np.float32 and each.x["codes"].dtype == np.int32
        np.testing.assert_allclose(each.x["numbers"], NUMBERS, rtol=1e-6)
        assert each.x["codes"].tolist() == CODES
        assert each.y.dtype == np.int32 and each.y.tolist() == [1, 0, 1, 1]
        assert each.columns == t.columns
    assert [column.labels for column in t.columns.categories] == [("Oslo", "Rome"), (False, True)]
    assert [column.missing for column in t.columns.numbers] == [True, False]


def test_scaling_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 7, (200, 3)) * [1, 1e6, 1e-5] + [0, 3, 1000]
    values[rng.random(values.shape) < 0.2] = np.nan
    t = table(pandas.DataFrame(values[:150], columns=["a", "b", "c"]))
    oracle = StandardScaler().fit(values[:150])
    np.testing.assert_allclose([c.mean for c in t.columns.numbers], oracle.mean_, rtol=1e-12)
    np.testing.assert_allclose([c.scale for c in t.columns.numbers], oracle.scale_, rtol=1e-9)
    x = t.columns.apply(pandas.DataFrame(values[150:], columns=["a", "b", "c"])).x["numbers"]
    expected = np.nan_to_num(oracle.transform(values[150:]))
    np.testing.assert_allclose(x[:, :3], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(x[:, 3:], np.isnan(values[150:]))


def test_a_constant_is_0_and_squares_may_overflow():
    t = table({"same": [0.1] * 3, "huge": [1e300, -1e300, 0.0], "tiny": [3e-300, 1e-300, 2e-300]})
    assert t.columns.numbers[0].scale == 1
    root = 1.5**0.5
    expected = [[0, root, root], [0, -root, -root], [0, 0, 0]]
    np.testing.assert_allclose(t.x["numbers"], expected, rtol=1e-6, atol=1e-6)
    assert t.columns.apply({"same": [2.1], "huge": [0], "tiny": [2e-300]}).x["numbers"][0, 0] == 2


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([1, 3, None], "int8"),
        pyarrow.array([1, 3, None], "uint64"),
        pyarrow.array([1, 3, None], "float16"),
        pyarrow.array([1, 3, None], "float32"),
        pyarrow.array([1, 3, None]).cast(pyarrow.decimal128(21, 2)),
        pandas.Series([1, 3, None], dtype="Int64"),
    ],
    ids=lambda column: str(getattr(column, "type", "pandas")),
)
def test_numbers_of_every_type(column):
    assert table({"a": column}).x["numbers"].tolist() == [[-1, 0], [1, 0], [0, 1]]


def test_another_table_is_read_by_name_with_the_numbers_of_the_first():
    columns = table(FLATS, target="kind").columns
    other = {
        "more": ["?", "?"],
        "rooms": [None, 3],
        "old": [False, None],
        "city": ["Lima", "Oslo"],
        "area": [2.5, float("nan")],
    }
    t = columns.apply(other)
    assert t.y is None
    np.testing.assert_allclose(t.x["numbers"], [[0, 0, 0], [0, 0, 1]], atol=1e-7)
    assert t.x["codes"].tolist() == [[0, 1], [1, 0]]
    nothing = columns.apply({name: [None] for name in ("area", "city", "old", "rooms")})
    assert nothing.x["numbers"].tolist() == [[0, 0, 1]] and nothing.x["codes"].tolist() == [[0, 0]]


def test_a_file_at_prediction_has_the_types_of_the_training_table(tmp_path):
    """Texts that look like numbers stay texts, and numbers that are all missing stay numbers."""
    columns = table(written(tmp_path, "a,code,b\n1,7,2\n2,x,3\n"), target="b").columns
    t = columns.apply(written(tmp_path, "code,a\n7,\n8,\n", "new.csv"))
    assert t.x["codes"].tolist() == [[1], [0]] and t.x["numbers"].tolist() == [[0], [0]]


def test_integers_as_categories_and_as_classes():
    data = {"zip": [5, None, 2**60 + 1, 5], "label": [3, 3, 8, 5]}
    for form in (data, polars.DataFrame(data)):
        t = table(form, "label", categorical=["zip", "label"])
        assert t.columns.categories[0].labels == (5, 2**60 + 1)
        assert t.x["codes"].tolist() == [[1], [0], [2], [1]] and t.x["numbers"].shape == (4, 0)
        assert t.y.tolist() == [0, 0, 2, 1]
    t = table(pandas.DataFrame({"zip": [5, None, 7]}), categorical=["zip"])  # pandas: float64
    assert t.x["codes"].tolist() == [[1], [0], [2]] and t.columns.categories[0].labels == (5, 7)
    assert t.columns.apply({"zip": [7, 6]}).x["codes"].tolist() == [[2], [0]]
    enum = pandas.DataFrame({"a": pandas.Categorical([4, 9, 4])})
    assert table(enum).x["codes"].tolist() == [[1], [2], [1]]


def test_targets_go_to_arrays_and_back():
    t = table({"a": [1, 2, 3], "price": [10.0, 20.0, 60.0]}, target="price")
    np.testing.assert_allclose(t.y, (np.array([10, 20, 60]) - 30) / (1400 / 3) ** 0.5, rtol=1e-6)
    assert t.y.dtype == np.float32
    np.testing.assert_allclose(t.columns.restore(t.y), [10, 20, 60], rtol=1e-6)
    t = table({"a": [1, 2, 3], "kind": ["v", "u", "v"]}, target="kind")
    assert t.columns.restore(np.array([[1, 0]])).tolist() == [["v", "u"]]
    assert table({"a": [1, 2]}).y is None


def test_columns_are_plain_data_that_go_through_json():
    rng = np.random.default_rng(1)
    data = {**FLATS, "odd": rng.normal(1e5, 3, 4), 'q"\n': rng.random(4), "bool": [True] * 4}
    columns = table(data, target="kind", categorical=["rooms"]).columns
    again = Columns.from_json(columns.to_json())
    assert again == columns and hash(again) == hash(columns)
    for name, array in columns.apply(data).x.items():
        np.testing.assert_array_equal(array, again.apply(data).x[name])
    assert Columns.from_json(table({"a": [1, 2]}).columns.to_json()).target is None
    assert Columns.from_json(table(FLATS, target="rooms").columns.to_json()).target.mean == 3.0


def test_pandas_and_polars_are_not_needed_for_other_tables(monkeypatch, tmp_path):
    file = write_parquet(tmp_path / "flats.parquet")
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    assert table(file).columns == table(FLATS).columns


def test_a_split_is_fitted_on_its_training_part_alone():
    of_pandas = pandas.DataFrame({"a": np.arange(40.0), "b": ["u", "v"] * 20})
    for frame in (of_pandas, polars.DataFrame(of_pandas), pyarrow.table(of_pandas)):
        train, test = fdl.data.split(frame, 0.25, seed=3, stratify=frame["b"])
        assert type(train) is type(test) is type(frame)
        t = table(train, target="b")
        a = np.asarray(train["a"])
        assert (len(a), t.columns.numbers[0].mean) == (30, a.mean())
        got = t.columns.apply(test)
        expected = (np.asarray(test["a"]) - a.mean()) / a.std()
        np.testing.assert_allclose(got.x["numbers"][:, 0], expected, rtol=1e-5, atol=1e-6)
        assert got.y.tolist().count(0) == 5


COLUMNS = table(FLATS, target="kind").columns
OTHER = "give it the type that it has in the training table"
WRONG = {
    "a_target_that_is_not_there": (
        lambda folder: table(FLATS, target="price"),
        "table: expected target among the columns 'area', 'city', 'old', 'rooms', 'kind', got "
        "'price'; check the spelling",
    ),
    "categories_that_are_not_there": (
        lambda folder: table(FLATS, categorical=["zip"]),
        "table: expected names in categorical among the columns 'area', 'city', 'old', 'rooms', "
        "'kind', got 'zip'; check the spelling",
    ),
    "short_rows": (
        lambda folder: table(written(folder, "a,b\n1,2\n3\n4,5\n6,7,8\n")),
        "table: expected 2 values in each row of '{folder}/given.csv', got 1 in row 3, '3' and 1 "
        "more such rows (the header is row 1); give each row one value for each column",
    ),
    "a_long_row": (
        lambda folder: read_table(written(folder, "a,b\n1,2,3\n")),
        "read_table: expected 2 values in each row of '{folder}/given.csv', got 3 in row 2, "
        "'1,2,3' (the header is row 1); give each row one value for each column",
    ),
    "an_empty_file": (
        lambda folder: table(written(folder, "")),
        "table: expected a file that pyarrow can read, got Empty CSV file in "
        "'{folder}/given.csv'; correct the file",
    ),
    "a_header_alone": (
        lambda folder: table(written(folder, "a,b\n")),
        "table: expected at least one row, got none below the columns 'a', 'b'; check the code "
        "that selects the rows",
    ),
    "a_name_twice": (
        lambda folder: table(written(folder, "a,b,a\n1,2,3\n")),
        "table: expected columns with different names, got more than one 'a'; rename or remove "
        "one of them",
    ),
    "another_ending": (
        lambda folder: table("flats.xls"),
        "table: expected a file whose name ends with .csv, .csv.gz or .parquet, got 'flats.xls'; "
        "read other files with pandas or polars, and pass the table",
    ),
    "a_list": (
        lambda folder: table([[1, 2]]),
        "table: expected a table of pandas, polars or pyarrow, a dict of columns, or a file, got "
        "[[1, 2]]; give each column a name",
    ),
    "columns_of_two_lengths": (
        lambda folder: table({"a": [1, 2], "b": [1]}),
        "table: expected named columns of equal length whose values have one type, got Column 1 "
        "named b expected length 2 but got length 1; correct the columns first",
    ),
    "only_missing_numbers": (
        lambda folder: table({"a": [float("nan")] * 2}),
        "table: expected values in column 'a', got only missing values; leave the column out",
    ),
    "only_missing_values": (
        lambda folder: table(written(folder, "a,b\n1,\n2,\n")),
        "table: expected values in column 'b', got only missing values; leave the column out",
    ),
    "dates": (
        lambda folder: table({"a": [datetime.date(2020, 1, 2)]}),
        "table: expected numbers, texts, categories or bools in column 'a', got date32[day]; "
        "convert the column, or leave it out",
    ),
    "infinity": (
        lambda folder: table({"a": [1.0, 2.0, -np.inf]}),
        "table: expected finite numbers in column 'a', got -inf in row 2 (1 of 3 rows); correct "
        "them, or leave them empty",
    ),
    "infinity_later": (
        lambda folder: COLUMNS.apply({**FLATS, "rooms": [1, 1e300, 1, 1]}),
        "Columns.apply: expected finite numbers in column 'rooms', got 1e+300 in row 1 (1 of 4 "
        "rows); correct them, or leave them empty",
    ),
    "fractions_as_categories": (
        lambda folder: table({"a": [1.5]}, categorical=["a"]),
        "table: expected integers as categories in column 'a', got Float value 1.500000 was "
        "truncated converting to int64; convert the column to texts",
    ),
    "a_target_with_gaps": (
        lambda folder: table({"a": [1, 2, 3], "b": ["u", None, None]}, target="b"),
        "table: expected a class of the training table in each row of the target 'b', got None in "
        "row 1 (2 of 3 rows); remove these rows, or the target column if you only want predictions",
    ),
    "a_target_of_numbers_with_gaps": (
        lambda folder: table({"a": [1, 2, 3], "b": [1, 2, None]}, target="b"),
        "table: expected a number in each row of the target 'b', got None in row 2 (1 of 3 rows); "
        "remove these rows, or the target column if you only want predictions",
    ),
    "an_unseen_class": (
        lambda folder: COLUMNS.apply({**FLATS, "kind": ["a", "a", "c", "b"]}),
        "Columns.apply: expected a class of the training table in each row of the target 'kind', "
        "got 'c' in row 2 (1 of 4 rows); remove these rows, or the target column if "
        "you only want predictions",
    ),
    "a_missing_column": (
        lambda folder: COLUMNS.apply({"area": [1.0], "rooms": [1], "towns": ["Rome"]}),
        "Columns.apply: expected the columns of the training table, got none named 'city', 'old' "
        "among 'area', 'rooms', 'towns'; add the column, with empty values if they are not known",
    ),
    "text_for_numbers": (
        lambda folder: COLUMNS.apply({**FLATS, "area": ["1", "2", "3", "4"]}),
        f"Columns.apply: expected numbers in column 'area', got string; {OTHER}",
    ),
    "numbers_for_text": (
        lambda folder: COLUMNS.apply({**FLATS, "city": [1, 2, 3, 4]}),
        f"Columns.apply: expected texts in column 'city', got int64; {OTHER}",
    ),
    "text_for_numbers_in_a_file": (
        lambda folder: COLUMNS.apply(written(folder, "area,city,old,rooms\n1,Rome,,two\n")),
        "Columns.apply: expected a file that pyarrow can read, got In CSV column #3: Row #2: CSV "
        "conversion error to double: invalid value 'two' in '{folder}/given.csv'; correct the file",
    ),
    "restored_logits": (
        lambda folder: COLUMNS.restore(np.array([[0.5, 2.0]])),
        "Columns.restore: expected integer codes in [0, 2), got float64 [1, 2] from 0.5 to 2.0; "
        "in place of logits, pass logits.argmax(-1)",
    ),
    "a_restored_code_that_is_none": (
        lambda folder: COLUMNS.restore(np.array([0, -1])),
        "Columns.restore: expected integer codes in [0, 2), got int64 [2] from -1 to 0; in "
        "place of logits, pass logits.argmax(-1)",
    ),
    "nothing_to_restore": (
        lambda folder: table({"a": [1]}).columns.restore(np.zeros(2)),
        "Columns.restore: expected columns with a target, got none; name it in table(..., "
        "target=...)",
    ),
    **{
        f"json_{number}": (
            lambda folder, text=text: Columns.from_json(text),
            "Columns.from_json: expected the text that Columns.to_json gave, got "
            f"{text!r}; save it to a file unchanged",
        )
        for number, text in enumerate(
            [
                "",
                "{}",
                "[]",
                '{"numbers": [{}], "categories": [], "target": null}',
                '{"numbers": [], "categories": [], "target": 3}',
                '{"numbers": [], "categories": [], "target": {"name": "a", "values": "?", '
                '"labels": []}}',
            ]
        )
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_raises_its_message(name, tmp_path):
    call, message = WRONG[name]
    message = message.replace("{folder}", str(tmp_path))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(tmp_path)


def test_values_of_two_types_are_refused_by_name():
    message = r"^table: expected named columns .* one type, got Could not .*'x'.* column b .*; corr"
    with pytest.raises(ValueError, match=message):
        table(pandas.DataFrame({"a": [1, 2], "b": [1, "x"]}))


def test_a_file_that_is_not_there_is_named(tmp_path):
    message = re.escape(
        f"table: expected a CSV or Parquet file, got no file at '{tmp_path}/a.csv'; check the path"
    )
    with pytest.raises(FileNotFoundError, match=f"^{message}$"):
        table(tmp_path / "a.csv")


def test_a_damaged_parquet_file_is_named(tmp_path):
    message = "^table: expected a file that pyarrow can read, got .* in '.*a.parquet'; correct the"
    with pytest.raises(ValueError, match=message):
        table(written(tmp_path, "no parquet", "a.parquet"))


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"^table: expected pyarrow, which reads tables, got none; run pip install 'fdl\[tabl"
    with pytest.raises(ImportError, match=message):
        table(FLATS)


SEEDED_BUGS = {
    "fdl/data/frames.py": (
        "data/test_tables.py",
        [
            ("preserve_index=False", "preserve_index=None"),
            ("strings_can_be_null=True", "strings_can_be_null=False"),
            ("column_types={", "column_types={} and {"),
            ("use_threads=False", "use_threads=True"),
            ('hasattr(data, "to_arrow")', "False"),
        ],
    ),
    "fdl/data/tables.py": (
        "data/test_tables.py",
        [
            ("small.std()", "small.std(ddof=1)"),
            ("not numbers.size or numbers.min() == numbers.max():", "not numbers.size:"),
            ("np.ldexp(numbers, -exponent)", "np.ldexp(numbers, 0)"),
            ("np.where(missing, np.float32(0), standard)", "standard"),
            ("found.fill_null(-1).to_numpy() + 1", "found.fill_null(0).to_numpy()"),
            ("frame[column.name]) - 1", "frame[column.name])"),
            ("tuple(sorted(found.labels))", "tuple(sorted(found.labels)[::-1])"),
            ("if column.missing", "if True"),
            ("wrong = y < 0", "wrong = y < -1"),
            ("0 <= y.min() <=", "y.min() <="),
            ("* self.target.scale + self.target.mean", "+ self.target.mean"),
        ],
    ),
}
