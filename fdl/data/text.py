"""Text as examples: pieces of one length, each with the characters that follow."""

from fractions import Fraction
from typing import Any

import numpy as np

from fdl.checks import is_number
from fdl.data.arrays import Split


def windows(ids: Any, length: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of a text, and the same pieces one place later: what a language model learns from.

    Args:
      ids: [N], one number for each token of the text.
      length: T, how many tokens in a piece, >= 1.
      stride: how far each piece begins after the one before, >= 1. At 1 every piece is there, at
        T the pieces do not overlap.

    Returns:
      (x, y), both [(N - T - 1) // stride + 1, T] in the dtype of ids; y[i, t] comes after x[i, t].

    Raises:
      ValueError: ids that are not a sequence of more than T, or a length or stride below 1.

    Example:
      >>> x, y = windows(np.array([3, 1, 4, 1, 5]), 2, stride=2)
      >>> x.tolist(), y.tolist()
      ([[3, 1], [4, 1]], [[1, 4], [1, 5]])
    """
    ids = np.asarray(ids)
    if length < 1 or stride < 1:
        raise ValueError(
            f"windows: expected length >= 1 and stride >= 1, got {length} and {stride}; "
            "both count tokens"
        )
    if ids.ndim != 1 or len(ids) <= length:
        raise ValueError(
            f"windows: expected ids [N] with N > {length}, got {list(ids.shape)}; give a longer "
            "text, or a shorter length"
        )
    pieces = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::stride]
    return np.ascontiguousarray(pieces[:, :-1]), np.ascontiguousarray(pieces[:, 1:])


def scored(ids: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A whole text to be tested on: every token but the first counts once, with a past to look at.

    Pieces overlap by half; the first half of each but the first only serves as the past of the
    second.

    Args:
      ids: [N], one number for each token of the text.
      length: T, an even number of tokens in a piece.

    Returns:
      (x, y, weight), each [P, T]; the weights, float32, are 1 or 0, and N - 1 in all.

    Raises:
      ValueError: as `windows`; a length that is odd.

    Example:
      >>> x, y, weight = scored(np.array([3, 1, 4, 1, 5, 9]), 2)
      >>> y[weight > 0].tolist()
      [1, 4, 1, 5, 9]
    """
    ids = np.asarray(ids)
    if length % 2:
        raise ValueError(
            f"scored: expected an even length, got {length}; "
            f"take {length + 1}, half of which is past"
        )
    half = length // 2
    missing = -(len(ids) - 1) % half  # the last piece is filled up with what does not count
    filled = np.concatenate([ids, np.repeat(ids[-1:], missing)])
    x, y = windows(filled, length, half)
    weight = np.zeros(y.shape, np.float32)
    weight[:, half:] = 1
    weight[0] = 1
    weight[-1, length - missing :] = 0
    return x, y, weight


def characters(text: str, *, test: float = 0.1) -> tuple[Split, str]:
    """A text as numbers, cut in two: the beginning to learn from, the end to be tested on.

    Args:
      text: at least two characters.
      test: the share of the end, in (0, 1).

    Returns:
      (Split(train [N], test [M]), alphabet): the number of a character is its place in the
      alphabet, which is sorted; uint8 if that suffices, else int32.

    Raises:
      ValueError: a share out of range, or a text too short to be cut.

    Example:
      >>> split, alphabet = characters("abracadabra", test=0.3)
      >>> split.train.tolist(), alphabet
      ([0, 1, 4, 0, 2, 0, 3], 'abcdr')
    """
    alphabet = "".join(sorted(set(text)))
    known = is_number(test) and 0 < float(test) < 1
    # As a person writes it: 1 - 0.8 is a little less than 0.2.
    cut = int(len(text) * (1 - Fraction(str(float(test))))) if known else 0
    if not 0 < cut < len(text):
        raise ValueError(
            f"characters: expected a test share in (0, 1) of a longer text, got {test} of "
            f"{len(text)} characters; leave at least one character on each side"
        )
    dtype = np.uint8 if len(alphabet) <= 256 else np.int32
    place = {character: number for number, character in enumerate(alphabet)}
    ids = np.fromiter((place[character] for character in text), dtype, len(text))
    return Split(ids[:cut], ids[cut:]), alphabet
