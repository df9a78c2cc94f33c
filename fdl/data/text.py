"""Text as examples for a language model: pieces of equal length, and the token after each token."""

from typing import Any

import numpy as np

from fdl.checks import check_count, decimal, described, is_count, is_number
from fdl.data.arrays import Split


def windows(ids: Any, length: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Training examples of a language model: pieces of a text, and the next token of each token.

    Args:
      ids: [N], the token ids of the text.
      length: T, the number of tokens in a piece, >= 1.
      stride: the distance in tokens between the starts of two neighbouring pieces, >= 1. With
        stride 1, pieces start at neighbouring tokens; with stride T, pieces do not overlap.

    Returns:
      (x, y), both [(N - T - 1) // stride + 1, T] in the dtype of ids. y[i, t] is the token after
      x[i, t] in the text.

    Raises:
      ValueError: ids is not one-dimensional, N <= T, or length or stride is below 1.

    Example:
      >>> x, y = windows(np.array([3, 1, 4, 1, 5]), length=2, stride=2)
      >>> x.tolist(), y.tolist()
      ([[3, 1], [4, 1]], [[1, 4], [1, 5]])
    """
    ids = np.asarray(ids)
    if not (is_count(length) and is_count(stride)):
        raise ValueError(
            "windows: expected length >= 1 and stride >= 1, integers, got "
            f"{described(length)} and {described(stride)}; both are numbers of tokens"
        )
    _check_ids("windows", ids, length)
    pieces = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::stride]
    return np.ascontiguousarray(pieces[:, :-1]), np.ascontiguousarray(pieces[:, 1:])


def scored(ids: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test examples of a language model: each token except the first has weight 1 exactly once.

    Each piece overlaps the piece before it by half. In the first piece, both halves have weight 1.
    In every other piece, only the second half has weight 1, so that each of its scored tokens is
    predicted from more than T / 2 tokens before it.

    Args:
      ids: [N], the token ids of the text.
      length: T, the number of tokens in a piece, an even number.

    Returns:
      (x, y, weight), each [P, T], where P is the number of pieces. x and y are in the dtype of ids.
      weight is float32, each value is 1 or 0, and their sum is N - 1.

    Raises:
      ValueError: length is odd, ids is not one-dimensional, or the text is too short for one piece.

    Example:
      >>> x, y, weight = scored(np.array([3, 1, 4, 1, 5, 9]), length=2)
      >>> y[weight > 0].tolist()
      [1, 4, 1, 5, 9]
    """
    ids, length = np.asarray(ids), check_count("scored", "length", length, "it counts tokens")
    if length % 2:
        raise ValueError(
            f"scored: expected an even length, got {length}; pass an even number, such as "
            f"{length + 1}"
        )
    half = length // 2
    _check_ids("scored", ids, half + 1)
    # The number of padding tokens at the end of the last piece. These tokens have weight 0.
    missing = -(len(ids) - 1) % half
    filled = np.concatenate([ids, np.repeat(ids[-1:], missing)])
    x, y = windows(filled, length, half)
    weight = np.zeros(y.shape, np.float32)
    weight[:, half:] = 1
    weight[0] = 1
    weight[-1, length - missing :] = 0
    return x, y, weight


def characters(text: str, *, test: float = 0.1) -> tuple[Split, str]:
    """Converts a text to ids of characters; the beginning is for training, the end is for testing.

    Args:
      text: a str of at least two characters.
      test: the fraction of the text that is for testing, in (0, 1).

    Returns:
      (Split(train [N], test [M]), alphabet). alphabet is a str of the sorted characters of the
      text, and the id of a character is its index in alphabet. The ids are uint8 if alphabet has at
      most 256 characters, and int32 otherwise.

    Raises:
      ValueError: test is out of range, or the text is so short that one of the parts is empty.

    Example:
      >>> split, alphabet = characters("abracadabra", test=0.3)
      >>> split.train.tolist(), alphabet
      ([0, 1, 4, 0, 2, 0, 3], 'abcdr')
    """
    alphabet = "".join(sorted(set(text)))
    share = is_number(test) and 0 < float(test) < 1
    cut = int(len(text) * (1 - decimal(test))) if share else 0
    if not 0 < cut < len(text):
        raise ValueError(
            "characters: expected a test fraction in (0, 1) with characters left for both parts, "
            f"got {test} of {len(text)} characters; pass a longer text or another fraction"
        )
    dtype = np.uint8 if len(alphabet) <= 256 else np.int32
    place = {character: number for number, character in enumerate(alphabet)}
    ids = np.fromiter((place[character] for character in text), dtype, len(text))
    return Split(ids[:cut], ids[cut:]), alphabet


def _check_ids(who: str, ids: np.ndarray, least: int) -> None:
    if ids.ndim != 1 or len(ids) <= least:
        raise ValueError(
            f"{who}: expected ids [N] with N > {least}, got {list(ids.shape)}; pass a longer text "
            "or a shorter length"
        )
