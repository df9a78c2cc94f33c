"""Splits rows for training and testing, and repeats rows of rare classes.

N is the number of rows.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fdl.checks import check_concrete_number, check_count, described
from fdl.data.arrays import Split, length


def split(data: Any, test: float = 0.2, *, seed: int = 0, stratify: Any = None) -> Split:
    """Divides the rows at random into two parts, one for training and one for testing.

    Args:
      data: a pytree of arrays [N, ...], such as `(x, y)`, or of tables of pandas, polars or
        pyarrow.
      test: the fraction of the rows for testing, in (0, 1).
      seed: an int >= 0, which determines the parts.
      stratify: labels [N] (integers, texts or bools) of a few classes. Each class is divided
        separately, so that both parts have about the same fractions of the classes. Of each class,
        the number of rows for testing differs by at most 1 from `test` times the size of the class.
        None divides all rows together.

    Returns:
      `Split(train, test)` with the structure of data. The rows keep their order. round(test * N)
      rows are for testing.

    Raises:
      ValueError: test is outside (0, 1), a part would be empty, or stratify does not have one label
        for each row.

    Example:
      >>> train, test = split(np.arange(10), 0.3)
      >>> len(train), len(test), sorted([*train, *test]) == list(range(10))
      (7, 3, True)
    """
    check_concrete_number("split", "test", test, "(0, 1)", "pass the fraction of rows for testing")
    rows = length(data)
    here = held_out(_classes("split", stratify, rows), test, np.random.default_rng(seed))
    if not 0 < len(here) < rows:
        raise ValueError(
            f"split: expected rows for both parts, got {rows - len(here)} for training and "
            f"{len(here)} for testing; pass more rows or another fraction"
        )
    return _divided(data, np.isin(np.arange(rows), here))


def folds(data: Any, k: int, *, seed: int = 0, stratify: Any = None) -> Iterator[Split]:
    """Divides the rows at random into k parts for cross-validation; each part is the test set once.

    Args:
      data: as in `split`.
      k: the number of parts, an int in [2, N].
      seed: an int >= 0, which determines the parts.
      stratify: labels [N], as in `split`. The numbers of rows of a class in two parts differ by at
        most 1.

    Returns:
      An iterator of k `Split(train, test)`: each row is in `test` of exactly one of them. The sizes
      of two parts differ by at most 1. The rows keep their order.

    Raises:
      ValueError: k is out of range, or stratify does not have one label for each row.

    Example:
      >>> [test.tolist() for _, test in folds(np.arange(5), 2, seed=1)]
      [[1, 3, 4], [0, 2]]
    """
    rows = length(data)
    k = check_count("folds", "k", k, "pass the number of parts")
    if not 2 <= k <= rows:
        raise ValueError(
            f"folds: expected k in [2, number of rows], got {k} for {rows} rows; each part needs "
            "at least one row"
        )
    part = np.empty(rows, int)
    part[_shuffled(_classes("folds", stratify, rows), np.random.default_rng(seed))] = (
        np.arange(rows) % k
    )
    return (_divided(data, part == number) for number in range(k))


def balanced_rows(labels: Any, *, seed: int = 0) -> np.ndarray:
    """Rows in which all classes are equally frequent: rows of the smaller classes are repeated.

    Train on `(x[rows], y[rows])`, or on `fdl.data.source(data, rows=rows)`. An epoch of `fit` then
    has each of these rows exactly once, and a batch still depends only on (seed, step).

    Args:
      labels: [N], integers, texts or bools.
      seed: an int >= 0. It determines which rows of a class come once more than others.

    Returns:
      int32 [K * n] for K classes, where n is the size of the largest class. Each class has n of
      these rows. The counts of two rows of a class differ by at most 1.

    Raises:
      ValueError: labels is not one array of labels.

    Example:
      >>> sorted(balanced_rows(np.array([7, 7, 7, 5])).tolist())
      [0, 1, 2, 3, 3, 3]
    """
    classes, rng = _numbered("balanced_rows", labels, np.size(labels)), np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(classes == each)) for each in np.unique(classes)]
    most = max(map(len, parts))
    return np.concatenate([np.resize(part, most) for part in parts]).astype(np.int32)


def weighted_rows(weights: Any, rows: int | None = None, *, seed: int = 0) -> np.ndarray:
    """Repeats each row in proportion to its weight, rounded to a whole number.

    Train on these rows as on those of `balanced_rows`. To weight the loss of each example instead,
    pass `(x, y, weight)` to `fit`.

    Args:
      weights: [N], numbers >= 0, at least one of them above 0.
      rows: M, the number of rows to return, >= 1. None means N.
      seed: an int >= 0. It determines which rows come once more than others.

    Returns:
      int32 [M], sorted. Row i comes M * weights[i] / sum(weights) times, rounded down or up at
      random, so that the expected number is exact.

    Raises:
      ValueError: a weight is negative or not finite, all weights are 0, or rows < 1.

    Example:
      >>> weighted_rows([2.0, 0.0, 1.0, 1.0], 8).tolist()
      [0, 0, 0, 0, 2, 2, 3, 3]

    Source: Baker 1987, "Reducing bias and inefficiency in the selection algorithm" (stochastic
    universal sampling).
    """
    weights = np.asarray(weights, np.float64)
    fits = weights.ndim == 1 and np.isfinite(weights).all() and (weights >= 0).all()
    if not fits or not weights.any():
        raise ValueError(
            "weighted_rows: expected weights [N], finite numbers >= 0 that are not all 0, got "
            f"{list(weights.shape)} with values {_range(weights)}; weight 0 leaves a row out"
        )
    count = len(weights) if rows is None else rows
    count = check_count("weighted_rows", "rows", count, "say how many rows to draw")
    total = np.cumsum(weights / weights.max())
    marks = (np.arange(count) + np.random.default_rng(seed).random()) / count * total[-1]
    # Rounding may move the last of the marks up to total[-1]. It then belongs to the last row whose
    # weight is not 0.
    last = np.flatnonzero(weights)[-1]
    return np.minimum(np.searchsorted(total, marks, side="right"), last).astype(np.int32)


def held_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The rows for testing: about `fraction` of the rows of each class, chosen at random."""
    parts, taken, seen = [], 0, 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        seen += len(rows)
        share = round(fraction * seen) - taken
        taken += share
        parts.append(rows[:share])
    return np.concatenate(parts)


def _shuffled(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All rows, in random order in each class, one class after the other."""
    rows = rng.permutation(len(classes))
    return rows[np.argsort(classes[rows], kind="stable")]


def _classes(who: str, labels: Any, rows: int) -> np.ndarray:
    """int [N], the index of the class of each row; all 0 if labels is None."""
    return np.zeros(rows, int) if labels is None else _numbered(who, labels, rows)


def _numbered(who: str, labels: Any, rows: int) -> np.ndarray:
    given = np.asarray(labels)
    try:
        names, classes = np.unique(given, return_inverse=True)
    except TypeError:  # text and missing values cannot be sorted together; this raises below
        names = np.empty(0)
    if given.ndim != 1 or len(given) != rows or not names.size:
        raise ValueError(
            f"{who}: expected labels [N] of one type with N = {max(rows, 1)}, got "
            f"{described(labels)}; pass one label for each row, and replace missing values"
        )
    return classes


def _divided(data: Any, test: np.ndarray) -> Split:
    """The rows where `test` is False, and those where it is True."""

    def of(rows: np.ndarray) -> Any:
        return jax.tree.map(lambda leaf: _taken(leaf, rows), data)

    return Split(of(np.flatnonzero(~test)), of(np.flatnonzero(test)))


def _taken(leaf: Any, rows: np.ndarray) -> Any:
    if hasattr(leaf, "iloc"):
        return leaf.iloc[rows]
    return leaf.take(rows) if type(leaf).__module__.startswith("pyarrow") else leaf[rows]


def _range(weights: np.ndarray) -> str:
    return f"from {weights.min()} to {weights.max()}" if weights.size else "none"
