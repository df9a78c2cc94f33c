"""split, folds and rows that repeat: every row where it belongs, and classes in proportion."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from fdl.data import balanced_rows, folds, split, stream, weighted_rows

classes = st.lists(st.sampled_from("aabbbcd"), min_size=8, max_size=60).map(np.array)
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(classes, st.floats(0.2, 0.8), seeds)
def test_a_split_has_each_row_once_and_classes_in_proportion(labels, fraction, seed):
    rows = np.arange(len(labels))
    for stratify in (None, labels):
        data = {"x": np.stack([rows, rows], 1), "y": rows}
        train, test = split(data, fraction, seed=seed, stratify=stratify)
        assert sorted([*train["y"].tolist(), *test["y"].tolist()]) == rows.tolist()
        assert len(test["y"]) == round(fraction * len(rows))
        for part in (train, test):
            np.testing.assert_array_equal(part["x"][:, 1], part["y"])
            assert (np.diff(part["y"]) > 0).all()
    for each in set(labels.tolist()):
        wanted = fraction * (labels == each).sum()
        assert abs((labels[test["x"][:, 0]] == each).sum() - wanted) <= 1


def test_a_split_is_the_same_for_a_seed_and_another_for_another():
    rows = jnp.arange(100)
    first, again, other = (split(rows, 0.3, seed=seed).test for seed in (5, 5, 6))
    assert isinstance(first, jax.Array)
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_every_row_is_as_likely_to_be_tested():
    count = np.zeros(10)
    for seed in range(2000):
        count[split(np.arange(10), 0.3, seed=seed).test] += 1
    assert abs(count - 600).max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


@settings(max_examples=60, deadline=None)
@given(classes, st.integers(2, 8), seeds)
def test_folds_test_each_row_once_and_classes_in_proportion(labels, k, seed):
    rows = np.arange(len(labels))
    for stratify in (None, labels):
        parts = list(folds((rows, labels), k, seed=seed, stratify=stratify))
        assert len(parts) == k
        assert sorted(np.concatenate([test[0] for _, test in parts])) == rows.tolist()
        for train, test in parts:
            assert sorted([*train[0], *test[0]]) == rows.tolist()
            np.testing.assert_array_equal(labels[test[0]], test[1])
        assert np.ptp([len(test[0]) for _, test in parts]) <= 1
    for each in set(labels.tolist()):
        assert np.ptp([(test[1] == each).sum() for _, test in parts]) <= 1


def test_folds_have_the_classes_that_those_of_scikit_learn_have():
    labels = np.repeat([3, 1, 2], [25, 10, 15])
    ours = [np.bincount(labels[test]) for _, test in folds(np.arange(50), 5, stratify=labels)]
    oracle = StratifiedKFold(5).split(np.zeros(50), labels)
    assert [each.tolist() for each in ours] == [
        np.bincount(labels[test]).tolist() for _, test in oracle
    ]


@settings(max_examples=40, deadline=None)
@given(classes, seeds)
def test_balanced_rows_have_each_class_equally_often(labels, seed):
    rows = balanced_rows(labels, seed=seed)
    assert rows.dtype == np.int32
    sizes = np.unique(labels, return_counts=True)[1]
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [max(sizes)] * len(sizes)
    times = np.bincount(rows, minlength=len(labels))
    for each in set(labels.tolist()):
        assert np.ptp(times[labels == each]) <= 1


def test_an_epoch_of_balanced_rows_is_balanced():
    labels = np.repeat([0, 1], [90, 10])
    y = labels[balanced_rows(labels)]
    drawn = np.concatenate([y[stream(1, step, 20, len(y))] for step in range(9)])
    assert np.bincount(drawn).tolist() == [90, 90]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 0.3, 2.5, 1e-9, 1.5e308]), min_size=1, max_size=20),
    st.integers(1, 300),
    seeds,
)
def test_weighted_rows_come_as_often_as_their_weight_says(weights, count, seed):
    weights = np.array(weights)
    if not weights.any():
        return
    rows = weighted_rows(weights, count, seed=seed)
    assert rows.dtype == np.int32 and len(rows) == count
    times = np.bincount(rows, minlength=len(weights))
    wanted = count * (weights / weights.max()) / (weights / weights.max()).sum()
    assert (abs(times - wanted) < 1 + 1e-9).all()
    assert (times[weights == 0] == 0).all()


def test_weighted_rows_have_the_right_expectation():
    weights = np.array([0.5, 1.7, 0.0, 3.1])
    drawn = [weighted_rows(weights, seed=seed) for seed in range(3000)]
    share = np.bincount(np.concatenate(drawn)) / (3000 * 4)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.01)


LABELS = "pass one label for each row, and replace missing values"
WRONG = {
    "no_test_rows": (
        lambda: split(np.ones(3), 0.1),
        "split: expected rows for both parts, got 3 for training and 0 for testing; pass more "
        "rows or another fraction",
    ),
    "a_fraction_above_1": (
        lambda: split(np.ones(3), 1.5),
        "split: expected test in (0, 1), got 1.5; pass the fraction of rows for testing",
    ),
    "labels_of_other_rows": (
        lambda: split(np.ones(3), 0.5, stratify=np.ones(2)),
        f"split: expected labels [N] of one type with N = 3, got float64 [2]; {LABELS}",
    ),
    "labels_with_gaps": (
        lambda: folds(np.ones(3), 2, stratify=np.array(["a", None, "b"], object)),
        f"folds: expected labels [N] of one type with N = 3, got object [3]; {LABELS}",
    ),
    "one_fold": (
        lambda: folds(np.ones(3), 1),
        "folds: expected k in [2, number of rows], got 1 for 3 rows; each part needs at least one "
        "row",
    ),
    "more_folds_than_rows": (
        lambda: folds(np.ones(3), 4),
        "folds: expected k in [2, number of rows], got 4 for 3 rows; each part needs at least one "
        "row",
    ),
    "no_labels": (
        lambda: balanced_rows([]),
        f"balanced_rows: expected labels [N] of one type with N = 1, got []; {LABELS}",
    ),
    "labels_of_none": (
        lambda: balanced_rows(None),
        f"balanced_rows: expected labels [N] of one type with N = 1, got None; {LABELS}",
    ),
    "a_negative_weight": (
        lambda: weighted_rows([1, -1]),
        "weighted_rows: expected weights [N], finite numbers >= 0 that are not all 0, got [2] "
        "with values from -1.0 to 1.0; weight 0 leaves a row out",
    ),
    "no_weight": (
        lambda: weighted_rows([0, 0]),
        "weighted_rows: expected weights [N], finite numbers >= 0 that are not all 0, got [2] "
        "with values from 0.0 to 0.0; weight 0 leaves a row out",
    ),
    "no_rows": (
        lambda: weighted_rows([1], 0),
        "weighted_rows: expected rows >= 1, an integer, got 0; say how many rows to draw",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_raises_its_message(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


SEEDED_BUGS = {
    "fdl/data/splitting.py": (
        "data/test_splitting.py",
        [
            ("share = round(fraction * seen) - taken", "share = int(fraction * len(rows))"),
            ("rows = rng.permutation(np.flatnonzero", "rows = (np.flatnonzero"),
            ("rows[np.argsort(classes[rows], kind=", "rows or rows[np.argsort(classes, kind="),
            ("return Split(of(np.flatnonzero(~test)), ", "return Split(of(np.flatnonzero(test)), "),
            ("np.resize(part, most)", "np.resize(part, len(part))"),
            ("most = max(", "most = min("),
            (".random()) / count", ".random() * 0) / count"),
            ("weights / weights.max()", "weights"),
        ],
    ),
}
