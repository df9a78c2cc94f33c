"""Data are a pytree of arrays with one leading length: `(x, y)`, or a dict of your own names."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fdl import paths


class Split(NamedTuple):
    """A data set in two parts, one to learn from and one to be tested on.

    Args:
      train: a pytree of arrays, as `(x, y)`.
      test: the same with other rows.

    Example:
      >>> split = Split(train=(np.ones((3, 2)), np.ones(3)), test=(np.ones((1, 2)), np.ones(1)))
      >>> length(split.train)
      3
    """

    train: Any
    test: Any


def length(data: Any) -> int:
    """N, how many examples there are.

    Args:
      data: a pytree of arrays [N, ...].

    Raises:
      ValueError: no arrays, no examples, or arrays of different lengths; names their paths.

    Example:
      >>> length({"x": np.ones((5, 2)), "y": np.ones(5)})
      5
    """
    lengths = {path: np.shape(leaf)[:1] for path, leaf in paths.leaves(data).items()}
    if not lengths:
        raise ValueError(
            "data: expected a pytree of arrays [N, ...], got no array at all; "
            "pass (x, y) or the like"
        )
    for path, each in lengths.items():
        if each != next(iter(lengths.values())) or not each:
            said = ", ".join(f"{path!r}: {list(np.shape(leaf))}" for path, leaf in _named(data))
            raise ValueError(
                f"data: expected arrays of one length [N, ...], got {said}; "
                "every example needs a row in each"
            )
        if each == (0,):
            raise ValueError(
                f"data: expected at least one example, got none at {path!r}; "
                "look at what chose the rows"
            )
    return next(iter(lengths.values()))[0]


def check_data(data: Any) -> int:
    """Looks through data once, before anything is trained on them.

    Args:
      data: a pytree of arrays [N, ...].

    Returns:
      N.

    Raises:
      ValueError: as `length`; also for a NaN or an infinity, with its path, row and count.

    Example:
      >>> check_data((np.array([1.0, np.nan]), np.array([0, 1])))
      Traceback (most recent call last):
      ...
      ValueError: data at '0': expected finite numbers, got nan at row 1 (1 of 2 rows ...
    """
    examples = length(data)
    for path, leaf in _named(data):
        # A finite sum has finite terms; one that overflows leaves it to the slower look. The sum of
        # a JAX array is taken where it is.
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        with np.errstate(over="ignore", invalid="ignore"):
            if not jax.numpy.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf.sum()):
                continue
        leaf = np.asarray(leaf)
        bad = ~np.isfinite(leaf.reshape(examples, -1)).all(1)
        if bad.any():
            row = int(np.argmax(bad))
            value = leaf[row][~np.isfinite(leaf[row])].flat[0]
            raise ValueError(
                f"data at {path!r}: expected finite numbers, got {value} at row {row} "
                f"({int(bad.sum())} of {examples} rows have such); drop or mend those rows"
            )
    return examples


def _named(data: Any) -> list[tuple[str, Any]]:
    return list(paths.leaves(data).items())
