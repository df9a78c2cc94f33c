"""Sequences of different lengths as one array.

N is the number of sequences, and T is the length to which they are padded.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fdl.checks import check_count, kind


class Padded(NamedTuple):
    """Sequences as one array, with their lengths.

    Args:
      x: [N, T, ...], where x[i, :lengths[i]] is sequence i, and the rest is 0.
      lengths: int32 [N].

    Example:
      >>> Padded(np.array([[5, 6], [7, 0]]), np.array([2, 1])).mask.tolist()
      [[True, True], [True, False]]
    """

    x: np.ndarray
    lengths: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool [N, T], True where x is from a sequence."""
        return np.arange(self.x.shape[1]) < self.lengths[:, None]


def padded(sequences: Sequence[Any], length: int | None = None) -> Padded:
    """Joins sequences of different lengths to one array: shorter ones are padded with 0.

    Pass the lengths to recurrent layers as an extra input. Pass the mask, in float32, to
    `supervised` as the weight of each token in the loss.

    Args:
      sequences: N arrays [T_i, ...], N >= 1, whose other axes are equal. A list of numbers is an
        array too.
      length: T >= 1, at least the length of the longest sequence. None means that length.

    Returns:
      `Padded(x, lengths)`: x is [N, T, ...] in the common dtype of the sequences, and lengths is
      int32 [N]. The attribute mask is bool [N, T].

    Raises:
      ValueError: there is no sequence or only empty ones, a sequence is longer than length, or the
        other axes differ.

    Example:
      >>> x, lengths = padded([[3, 1, 4], [1], [5, 9]])
      >>> x.tolist(), lengths.tolist()
      ([[3, 1, 4], [1, 0, 0], [5, 9, 0]], [3, 1, 2])
    """
    arrays = _arrays("padded", sequences)
    lengths = np.array([len(each) for each in arrays], np.int32)
    length = int(lengths.max()) if length is None else length
    remedy = "pass the number of items of the longest sequence, or more"
    length = check_count("padded", "length", length, remedy)
    if lengths.max() > length:
        at = int(lengths.argmax())
        raise ValueError(
            f"padded: expected sequences of at most {length} items, got {lengths[at]} in sequence "
            f"{at}; shorten it, or pass a larger length"
        )
    x = np.zeros((len(arrays), length, *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, each in zip(x, arrays, strict=True):
        row[: len(each)] = each
    return Padded(x, lengths)


def buckets(sequences: Sequence[Any], lengths: Sequence[int]) -> dict[int, np.ndarray]:
    """Groups sequences by length, so that short ones are not padded to the length of the longest.

    Args:
      sequences: N arrays [T_i, ...], or lists.
      lengths: the lengths to which the groups will be padded, ints >= 1.

    Returns:
      A dict, length -> int32 [n]: the indices, in rising order, of the n sequences for which this
      length is the smallest that fits. Groups without sequences are left out.

    Raises:
      OptionError: a length is not an int >= 1.
      ValueError: a sequence is longer than all lengths, or lengths is empty.

    Example:
      >>> texts = [[3, 1, 4], [1], [5, 9]]
      >>> groups = buckets(texts, [2, 4])
      >>> {length: rows.tolist() for length, rows in groups.items()}
      {2: [1, 2], 4: [0]}
      >>> padded([texts[row] for row in groups[2]], length=2).x.tolist()
      [[1, 0], [5, 9]]
    """
    limits = np.unique([check_count("buckets", "lengths", each, "pass ints") for each in lengths])
    sizes = np.array([len(each) for each in sequences], int)
    if not limits.size or sizes.max(initial=0) > limits[-1]:
        raise ValueError(
            f"buckets: expected sequences of at most {max(lengths, default=0)} items, got "
            f"{sizes.max(initial=0)}; add a larger length"
        )
    group = np.searchsorted(limits, sizes)
    return {
        int(limits[each]): np.flatnonzero(group == each).astype(np.int32)
        for each in np.unique(group)
    }


def _arrays(who: str, sequences: Sequence[Any]) -> list[np.ndarray]:
    """The sequences as arrays with the same axes after the first. Empty ones get these axes too."""
    arrays = [np.asarray(each) for each in sequences]
    full = [each for each in arrays if each.size]
    if not full:
        raise ValueError(
            f"{who}: expected at least one sequence with items, got none among {len(arrays)}; pass "
            "arrays [T, ...]"
        )
    like = full[0]
    axes = ", ".join(map(str, ("T", *like.shape[1:])))
    for at, each in enumerate(arrays):
        if each.size and (each.ndim == 0 or each.shape[1:] != like.shape[1:]):
            raise ValueError(
                f"{who}: expected sequences [{axes}], got {kind(each)} as sequence "
                f"{at}; give all sequences the same axes after the first"
            )
    return [each if each.size else like[:0] for each in arrays]
