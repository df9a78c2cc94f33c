"""Text as examples: which pieces there are, and that every character is scored once."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdl
from fdl.data import characters, scored, windows


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 60),
    length=st.integers(1, 20),
    stride=st.integers(1, 25),
    seed=st.integers(0, 9),
)
def test_windows_are_pieces_of_the_text_and_what_follows(count, length, stride, seed):
    ids = np.random.default_rng(seed).integers(0, 250, count).astype(np.uint8)
    if count <= length:
        with pytest.raises(
            ValueError, match=rf"^windows: expected ids \[N\] with N > {length}, got "
        ):
            windows(ids, length, stride)
        return
    x, y = windows(ids, length, stride)
    assert x.shape == y.shape == ((count - length - 1) // stride + 1, length)
    assert x.dtype == y.dtype == np.uint8
    for i in range(len(x)):
        begin = i * stride
        np.testing.assert_array_equal(x[i], ids[begin : begin + length])
        np.testing.assert_array_equal(y[i], ids[begin + 1 : begin + 1 + length])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(30, 90), half=st.integers(1, 14))
def test_every_character_but_the_first_is_scored_once_and_with_a_past(count, half):
    ids = np.arange(count)
    x, y, weight = scored(ids, 2 * half)
    assert sorted(y[weight > 0].tolist()) == list(range(1, count))
    assert (y[weight > 0] == x[weight > 0] + 1).all()
    past = np.arange(2 * half) >= half
    assert (weight[1:, ~past] == 0).all()
    assert weight.dtype == np.float32


def test_the_shortest_text_that_is_scored():
    _, y, weight = scored(np.arange(6), 8)
    assert y[weight > 0].tolist() == [1, 2, 3, 4, 5]


def test_a_text_as_numbers():
    split, alphabet = characters("hello, world", test=0.25)
    assert alphabet == " ,dehlorw"
    assert "".join(alphabet[i] for i in [*split.train, *split.test]) == "hello, world"
    assert split.train.dtype == np.uint8 and len(split.test) == 3
    many = "".join(chr(1000 + number) for number in range(300))
    assert characters(many)[0].train.dtype == np.int32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: windows(np.arange(9), 0),
            "windows: expected length >= 1 and stride >= 1, integers, got 0 and 1; both are ",
        ),
        (
            lambda: windows(np.ones((3, 3)), 1),
            "windows: expected ids [N] with N > 1, got [3, 3]; pass a longer text",
        ),
        (
            lambda: scored(np.arange(9), 3),
            "scored: expected an even length, got 3; pass an even number, such as 4",
        ),
        (
            lambda: windows(np.arange(9), 2.5),
            "windows: expected length >= 1 and stride >= 1, integers, got 2.5 and 1; both are",
        ),
        (
            lambda: windows(np.arange(9), 2, 1.5),
            "windows: expected length >= 1 and stride >= 1, integers, got 2 and 1.5; both are",
        ),
        (
            lambda: scored(np.arange(5), 8),
            "scored: expected ids [N] with N > 5, got [5]; pass a longer text or a shorter length",
        ),
        (
            lambda: scored(np.ones((9, 3)), 8),
            "scored: expected ids [N] with N > 5, got [9, 3]; pass a longer text or a shorter ",
        ),
        (lambda: scored(np.arange(9), 2.0), "scored: expected length >= 1, an integer, got 2.0; "),
        (
            lambda: characters("abc", test=1.5),
            "characters: expected a test fraction in (0, 1) with ",
        ),
        (
            lambda: characters("a"),
            "characters: expected a test fraction in (0, 1) with characters left for both parts, "
            "got 0.1 of 1 character",
        ),
    ],
)
def test_a_wrong_argument_raises(wrong, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        wrong()


def test_a_small_gpt_learns_a_small_text():
    """A text that repeats is learned by heart, from its very windows, by fit."""
    import jax

    split, alphabet = characters("to be or not to be, that is the question. " * 12)
    model = fdl.gpt(len(alphabet), 16, layers=1, heads=2, features=16)
    x, y = windows(split.train, 16)
    params, _ = model.init(jax.random.key(0), x[:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    optimizer = fdl.adamw(0.01)
    result = fdl.fit(
        objective, optimizer, fdl.start(params, optimizer), (x, y), batch_size=16, steps=150
    )
    loss = fdl.evaluate(objective, result.run.params, scored(split.test, 16))["loss"]
    assert loss < 0.5 < fdl.evaluate(objective, params, scored(split.test, 16))["loss"]
