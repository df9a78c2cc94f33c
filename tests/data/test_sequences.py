"""padded and buckets: every item is where it was, and nothing else is marked."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdl
from fdl.data import buckets, padded

texts = st.lists(st.lists(st.integers(-9, 9), max_size=7), min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(0, 3))
def test_padded_keeps_every_item_and_marks_it(sequences, more):
    longest = max(map(len, sequences))
    p = padded(sequences, longest + more)
    assert p.x.shape == p.mask.shape == (len(sequences), longest + more)
    assert [row[mask].tolist() for row, mask in zip(p.x, p.mask, strict=True)] == sequences
    assert not p.x[~p.mask].any()
    assert p.lengths.dtype == np.int32 and p.lengths.tolist() == [*map(len, sequences)]
    assert padded(sequences).x.shape[1] == longest


def test_axes_and_dtypes_are_those_of_the_sequences():
    p = padded([np.ones((2, 3), np.float16), np.full((1, 3), 2, np.float16), []])
    assert p.x.shape == (3, 2, 3) and p.x.dtype == np.float16
    assert p.x[1].tolist() == [[2, 2, 2], [0, 0, 0]] and p.lengths.tolist() == [2, 1, 0]
    assert padded([np.array([1], np.uint8), jnp.array([3, 4], np.int16)]).x.dtype == np.int16
    assert padded([np.array([1, 2], np.uint8), []]).x.dtype == np.uint8


def test_a_recurrent_layer_reads_padded_sequences_as_single_ones():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, 3)).astype(np.float32) for length in (2, 4)]
    layer = fdl.lstm(5, returns="last")
    params, _ = layer.init(jax.random.key(0), sequences[0])
    x, lengths = padded(sequences)
    together, _ = layer.apply(params, {}, x, lengths=lengths)
    for row, each in zip(together, sequences, strict=True):
        np.testing.assert_allclose(row, layer.apply(params, {}, each)[0], rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(texts, st.lists(st.integers(1, 6), max_size=4))
def test_buckets_hold_each_sequence_once_where_it_just_fits(sequences, limits):
    limits = [*limits, 7]
    groups = buckets(sequences, limits)
    assert sorted(np.concatenate(list(groups.values())).tolist()) == [*range(len(sequences))]
    for limit, rows in groups.items():
        assert rows.dtype == np.int32 and rows.tolist() == sorted(rows.tolist())
        for row in rows:
            assert limit == min(each for each in limits if each >= len(sequences[row]))


WRONG = {
    "a_longer_sequence": (
        lambda: padded([[1], [1, 2, 3]], 2),
        "padded: expected sequences of at most 2 items, got 3 in sequence 1; shorten it, or pass a "
        "larger length",
    ),
    "no_sequence": (
        lambda: padded([]),
        "padded: expected at least one sequence with items, got none among 0; pass arrays [T, ...]",
    ),
    "empty_sequences": (
        lambda: padded([[], []]),
        "padded: expected at least one sequence with items, got none among 2; pass arrays [T, ...]",
    ),
    "other_axes": (
        lambda: padded([np.ones((2, 3)), np.ones((2, 2))]),
        "padded: expected sequences [T, 3], got float64 [2, 2] as sequence 1; give all sequences "
        "the same axes after the first",
    ),
    "numbers": (
        lambda: padded(np.arange(3)),
        "padded: expected sequences [T], got int64 [] as sequence 0; give all sequences the same "
        "axes after the first",
    ),
    "no_length": (
        lambda: padded([[1]], 0),
        "padded: expected length >= 1, an integer, got 0; pass the number of items of the longest "
        "sequence, or more",
    ),
    "too_long_for_all_buckets": (
        lambda: buckets([[1, 2, 3]], [2, 1]),
        "buckets: expected sequences of at most 2 items, got 3; add a larger length",
    ),
    "no_bucket": (
        lambda: buckets([[1, 2, 3]], []),
        "buckets: expected sequences of at most 0 items, got 3; add a larger length",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_raises_its_message(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


SEEDED_BUGS = {
    "fdl/data/sequences.py": (
        "data/test_sequences.py",
        [
            ("row[: len(each)] = each", "row[-len(each) :] = each"),
            ("< self.lengths[:, None]", "<= self.lengths[:, None]"),
            ("else like[:0]", "else each"),
            ("np.searchsorted(limits, sizes)", 'np.searchsorted(limits, sizes, side="right")'),
            ("limits = np.unique(", "limits = np.array("),
        ],
    ),
}
