"""Text as examples for a language model: pieces of one length, and the tokens that follow."""

from fractions import Fraction
from typing import Any

import numpy as np

from fdl.checks import is_number
from fdl.data.arrays import Split


def windows(ids: Any, length: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Training examples of a language model: pieces of a text, and the token after each token.

    Args:
      ids: [N], the token ids of the text.
      length: T, the number of tokens in a piece, >= 1.
      stride: tokens from the beginning of one piece to that of the next, >= 1. With 1 all pieces
        are taken, with T they do not overlap.

    Returns:
      (x, y), both [(N - T - 1) // stride + 1, T] in the dtype of ids; y[i, t] follows x[i, t] in
      the text.

    Raises:
      ValueError: ids that are not [N] with N > T, or a length or stride below 1.

    Example:
      >>> x, y = windows(np.array([3, 1, 4, 1, 5]), length=2, stride=2)
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
    """Test examples of a language model: every token of a text but the first counts once.

    Pieces overlap by half, and only the second half of a piece counts, so that its tokens are
    predicted from more than T / 2 tokens before them. The first piece counts as a whole.

    Args:
      ids: [N], the token ids of the text.
      length: T, the number of tokens in a piece, even.

    Returns:
      (x, y, weight), each [P, T]; x and y in the dtype of ids, weight float32, 1 or 0, with sum
      N - 1.

    Raises:
      ValueError: as `windows`; an odd length.

    Example:
      >>> x, y, weight = scored(np.array([3, 1, 4, 1, 5, 9]), length=2)
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
    missing = -(len(ids) - 1) % half  # fills the last piece; these tokens do not count
    filled = np.concatenate([ids, np.repeat(ids[-1:], missing)])
    x, y = windows(filled, length, half)
    weight = np.zeros(y.shape, np.float32)
    weight[:, half:] = 1
    weight[0] = 1
    weight[-1, length - missing :] = 0
    return x, y, weight


def characters(text: str, *, test: float = 0.1) -> tuple[Split, str]:
    """A text as ids of its characters, cut in two: the beginning for training, the end for testing.

    Args:
      text: a str of at least two characters.
      test: the share of the text for testing, in (0, 1).

    Returns:
      (Split(train [N], test [M]), alphabet): alphabet is the sorted characters of the text, and an
      id is a place in it; uint8 for up to 256 characters, otherwise int32.

    Raises:
      ValueError: a share out of range, or a text too short to be cut.

    Example:
      >>> split, alphabet = characters("abracadabra", test=0.3)
      >>> split.train.tolist(), alphabet
      ([0, 1, 4, 0, 2, 0, 3], 'abcdr')
    """
    alphabet = "".join(sorted(set(text)))
    share = is_number(test) and 0 < float(test) < 1
    # Exact for decimals: the float 1 - 0.8 is a little less than 0.2.
    cut = int(len(text) * (1 - Fraction(str(float(test))))) if share else 0
    if not 0 < cut < len(text):
        raise ValueError(
            f"characters: expected a test share in (0, 1) of a longer text, got {test} of "
            f"{len(text)} characters; leave at least one character on each side"
        )
    dtype = np.uint8 if len(alphabet) <= 256 else np.int32
    place = {character: number for number, character in enumerate(alphabet)}
    ids = np.fromiter((place[character] for character in text), dtype, len(text))
    return Split(ids[:cut], ids[cut:]), alphabet
