"""stream: every example once an epoch, any step by itself, no overflow, and even orders."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import fdl
from fdl.data.order import RANKED_BELOW, _window, bijection, permutation, stream

# (N, B): one row, B > N, B = N, B divides N, B does not; both kinds of order and their border.
SIZES = [
    *[(1, 1), (1, 5), (2, 3), (5, 5), (7, 3), (12, 4), (10, 64), (127, 16), (128, 7), (129, 129)],
    *[(211, 50), (256, 300), (500, 96)],
]
# The chance that a right stream exceeds a bound; with fixed seeds it happens now or never.
RARE = 1e-6

seeds = st.integers(0, 2**32 - 1)


@functools.cache
def compiled(examples, batch_size, steps):
    """`(seed, first step) -> [steps, B]`, compiled, with seed and step traced."""

    def rows(seed, first):
        numbers = first + jnp.arange(steps, dtype=jnp.uint32)
        return jax.vmap(lambda step: stream(seed, step, batch_size, examples))(numbers)

    return jax.jit(rows)


def epochs(examples, batch_size, seed, first, count=2):
    """The first `count` whole epochs after a step, [count, N]."""
    steps = -(-(count + 1) * examples // batch_size) + 1
    rows = compiled(examples, batch_size, steps)(np.uint32(seed), np.uint32(first))
    skip = -first * batch_size % examples
    return np.asarray(rows).ravel()[skip:][: count * examples].reshape(count, examples)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SIZES), seeds, st.integers(0, 2**32 - 2000))
def test_every_example_comes_exactly_once_an_epoch(sizes, seed, first):
    """From any step on, also where step * B needs far more than 32 bits."""
    found = epochs(*sizes, seed, first)
    np.testing.assert_array_equal(np.sort(found, axis=1), [np.arange(sizes[0])] * 2)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SIZES), seeds, st.integers(0, 2**31), st.integers(0, 3))
def test_a_step_drawn_alone_is_the_one_of_the_sequence(sizes, seed, first, offset):
    examples, batch_size = sizes
    sequence = compiled(examples, batch_size, 4)(np.uint32(seed), np.uint32(first))
    alone = compiled(examples, batch_size, 1)(np.uint32(seed), np.uint32(first + offset))
    np.testing.assert_array_equal(alone[0], sequence[offset])
    assert alone.dtype == jnp.int32 and alone.shape == (1, batch_size)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SIZES), seeds, st.integers(0, 1000))
def test_the_batch_size_cuts_the_stream_and_changes_nothing_else(sizes, seed, epoch):
    """Batches are windows: the same positions hold the same examples, whatever B."""
    examples, batch_size = sizes
    one = epochs(examples, batch_size, seed, epoch * examples, count=1)
    other = epochs(examples, examples, seed, epoch * batch_size, count=1)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("examples", [20, 127, 128, 500])
def test_another_epoch_and_another_seed_are_another_order(examples):
    orders = {tuple(row) for seed in range(3) for row in epochs(examples, examples, seed, 0, 4)}
    assert len(orders) == 12
    again = epochs(examples, examples, 0, 0, 4)
    np.testing.assert_array_equal(again, epochs(examples, examples, 0, 0, 4))
    # Two unrelated orders agree at about one position.
    first, second = again[:2]
    assert (first == second).sum() < 8
    assert (first == np.arange(examples)).sum() < 8


def test_the_border_between_both_kinds_of_order_is_where_it_is_tested():
    assert RANKED_BELOW == 128


def triple32(x):
    """In whole numbers of Python."""
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 14


@pytest.mark.parametrize("keys", [(), (0,), (7, 2**32 - 1), (2**32 + 7, 2**40, 5)])
def test_a_permutation_is_that_of_hashes_in_whole_numbers(keys):
    key = len(keys)
    for each in keys:
        key = (triple32(key) + each) % 2**32
        key = triple32(key)
    hashes = [triple32(key ^ triple32((key + index) % 2**32)) for index in range(400)]
    assert permutation(400, *keys).tolist() == sorted(range(400), key=hashes.__getitem__)
    assert permutation(1, *keys).tolist() == [0] and permutation(0, *keys).tolist() == []


def test_permutations_are_even():
    """All 24 orders of 4, and the place of each of 50, over 2,400 keys."""
    counts = np.zeros(24)
    orders = {order: number for number, order in enumerate(itertools.permutations(range(4)))}
    for each in range(2400):
        counts[orders[tuple(permutation(4, each, 3).tolist())]] += 1
    assert scipy.stats.chisquare(counts).pvalue > RARE
    first = np.bincount([permutation(50, 1, each)[0] for each in range(2400)], minlength=50)
    assert scipy.stats.chisquare(first).pvalue > RARE


# 32 bits.


def windows(steps, batch_size, examples):
    epoch, offset = _window(jnp.asarray(np.array(steps, np.uint32)), batch_size, examples)
    return np.asarray(epoch).tolist(), np.asarray(offset).tolist()


def by_hand(steps, batch_size, examples):
    return (
        [step * batch_size // examples % 2**32 for step in steps],
        [step * batch_size % examples for step in steps],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3),
    st.integers(1, 2**20),
    st.one_of(st.integers(1, 300), st.integers(1, 2**30)),
)
def test_windows_are_those_of_whole_numbers(steps, batch_size, examples):
    assert windows(steps, batch_size, examples) == by_hand(steps, batch_size, examples)


@pytest.mark.parametrize("examples", [1, 2, 1347, 60_000, 2**20, 2**20 + 1, 2**30 - 1, 2**30])
@pytest.mark.parametrize("batch_size", [1, 3, 4096, 2**30])
def test_windows_at_the_corners(batch_size, examples):
    steps = [0, 1, 524_287, 524_288, 524_289, 2**31 - 1, 2**31, 2**32 - 1]
    assert windows(steps, batch_size, examples) == by_hand(steps, batch_size, examples)


def test_the_step_at_which_a_product_of_32_bits_would_start_again():
    rows = jax.jit(lambda step: stream(0, step, 4096, 5000))
    late, early = rows(np.uint32(524_288 * 2)), rows(np.uint32(0))
    assert (late == early).mean() < 0.01
    # Position 2**32 is offset 2**32 % 5000 of its epoch: the epoch ends where it should.
    left = 5000 - 524_288 * 2 * 4096 % 5000
    after = np.concatenate([late, rows(np.uint32(524_288 * 2 + 1)), rows(np.uint32(1_048_578))])
    assert sorted(after[left : left + 5000].tolist()) == list(range(5000))


@pytest.mark.parametrize("examples", [2**30, 10**9 + 7])
def test_very_many_examples(examples):
    rows = np.asarray(jax.jit(lambda step: stream(3, step, 2000, examples))(np.uint32(2**32 - 1)))
    assert len(set(rows.tolist())) == 2000
    assert rows.min() >= 0 and rows.max() < examples
    assert scipy.stats.kstest(rows / examples, "uniform").pvalue > RARE


# Evenness.


def assert_even(counts, expected):
    """Chi-square of counts against one expected number, two-sided: too even is wrong as well."""
    counts = np.asarray(counts)
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    low, high = scipy.stats.chi2.ppf([RARE, 1 - RARE], freedom)
    assert low < statistic < high, (statistic, freedom)


def orders(seed, examples, count):
    """The first `count` epochs of a stream, [count, N]."""
    return np.asarray(compiled(examples, examples, count)(np.uint32(seed), np.uint32(0)))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("examples", [2, 3, 4])
def test_every_order_of_a_few_is_equally_likely(examples, seed):
    found = [tuple(row) for row in orders(seed, examples, 4800).tolist()]
    possible = list(itertools.permutations(range(examples)))
    assert_even([found.count(each) for each in possible], 4800 / math.factorial(examples))


@pytest.mark.parametrize("examples", [3, 4])
def test_every_order_is_equally_likely_over_seeds(examples):
    draw = jax.jit(jax.vmap(lambda seed: stream(seed, np.uint32(0), examples, examples)))
    found = [tuple(row) for row in draw(jnp.arange(4800, dtype=jnp.uint32)).tolist()]
    possible = list(itertools.permutations(range(examples)))
    assert_even([found.count(each) for each in possible], 4800 / math.factorial(examples))


@pytest.mark.parametrize("examples", [20, 127, 128, 331])
def test_every_example_comes_equally_often_at_every_place(examples):
    """Place by example in 10 x 10 fields, and the distance from one row to the next."""
    count = 3000
    found = orders(7, examples, count)
    place = np.broadcast_to(np.arange(examples) * 10 // examples, found.shape)
    table = np.zeros((10, 10))
    np.add.at(table, (place, found * 10 // examples), 1)
    size = np.bincount(np.arange(examples) * 10 // examples)
    expected = count * np.outer(size, size) / examples
    # A permutation fixes all sums of rows and columns: (10 - 1)^2 free numbers, and a variance
    # that is N / (N - 1) times that of independent draws.
    statistic = ((table - expected) ** 2 / expected).sum() * (examples - 1) / examples
    low, high = scipy.stats.chi2.ppf([RARE, 1 - RARE], 81)
    assert low < statistic < high
    # Pairs at non-overlapping places; every distance but 0 is equally likely.
    pairs = found[:, : examples // 2 * 2].reshape(count, -1, 2)
    distance = (pairs[..., 1] - pairs[..., 0]) % examples
    counts = np.bincount(distance.ravel(), minlength=examples)
    assert counts[0] == 0
    assert_even(counts[1:], counts.sum() / (examples - 1))


@pytest.mark.parametrize("examples", [20, 300])
def test_two_epochs_and_two_seeds_are_unrelated(examples):
    """How many rows agree between two orders: 1 in the mean, with variance 1, as by chance."""
    for a, b in [
        (orders(1, examples, 2000)[:-1], orders(1, examples, 2000)[1:]),
        (orders(1, examples, 2000), orders(2, examples, 2000)),
    ]:
        agree = (a == b).sum(1)
        assert abs(agree.mean() - 1) < 5 / math.sqrt(len(agree))
        assert abs(agree.var() - 1) < 0.35


# Use inside other programs.


def test_stream_under_jit_vmap_and_scan_with_seed_and_step_traced():
    many = jnp.arange(3, dtype=jnp.uint32) + 5
    eager = jnp.stack([stream(seed, 9, 4, 11) for seed in (5, 6, 7)])
    by_vmap = jax.jit(jax.vmap(lambda seed: stream(seed, jnp.uint32(9), 4, 11)))(many)
    np.testing.assert_array_equal(by_vmap, eager)
    assert len({tuple(row) for row in eager.tolist()}) == 3
    big = jax.vmap(lambda seed, step: stream(seed, step, 4, 300))(many, many)
    alone = [compiled(300, 4, 1)(seed, seed)[0] for seed in many]
    np.testing.assert_array_equal(big, jnp.stack(alone))

    def body(step, _):
        return step + 1, stream(jnp.uint32(5), step, 4, 300)

    _, scanned = jax.lax.scan(body, jnp.uint32(0), None, 6)
    np.testing.assert_array_equal(scanned, compiled(300, 4, 6)(np.uint32(5), np.uint32(0)))


@pytest.mark.parametrize(
    ("batch_size", "examples"),
    [(0, 5), (-1, 5), (4, 0), (4, -2), (4, 2**30 + 1), (2.5, 5), (4, 5.5), (True, 5)],
)
def test_sizes_out_of_range_are_refused(batch_size, examples):
    with pytest.raises(
        ValueError,
        match=r"^stream: expected batch_size >= 1 and 1 to 2\*\*30 examples, got "
        rf"{batch_size} and {examples}; examples is the number of rows in the data$",
    ):
        stream(0, 0, batch_size, examples)


@pytest.mark.parametrize("wrong", [-1, 2**32, 1.0, 0.5, True, np.int64(-1), np.float32(2), None])
def test_seeds_and_steps_are_integers_of_32_bits(wrong):
    got = re.escape(f"in [0, 2**32), got {wrong!r}")
    with pytest.raises(ValueError, match=rf"^stream: expected a seed, an integer {got}; take it"):
        stream(wrong, 0, 4, 5)
    with pytest.raises(ValueError, match=rf"^draw_batch: expected a step, an integer {got}; the f"):
        fdl.draw_batch(jnp.arange(5), 0, wrong, 4)


@pytest.mark.parametrize("kind", [int, np.uint64, np.int8, jnp.int32, jnp.uint32])
def test_a_seed_and_a_step_may_be_integers_of_any_kind(kind):
    np.testing.assert_array_equal(stream(kind(3), kind(7), 4, 9), stream(3, 7, 4, 9))


@pytest.mark.parametrize("examples", [128, 131, 144, 255, 257, 361, 1000])
def test_a_bijection_is_one_to_one_for_every_key(examples):
    index = jnp.arange(examples, dtype=jnp.uint32)
    order = jax.jit(jax.vmap(lambda s, e: bijection(s, e + 0 * index, index, examples)))
    many = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    found = np.sort(np.asarray(order(many, many[::-1])), axis=1)
    np.testing.assert_array_equal(found, [np.arange(examples)] * 4)


SEEDED_BUGS = {
    "fdl/checks.py": (
        "data/test_order.py",
        [
            ("value = value.item()", "pass"),
            ("is_count(value, least=0) or value >= 2**32", "is_count(value, least=0)"),
        ],
    ),
    "fdl/data/order.py": (
        "data/test_order.py",
        [
            ("for shift in range(0, 32, bits)", "for shift in range(0, 16, bits)"),
            ("% 2**32) + epochs + more", "% 2**32) + epochs"),
            ("% 2**32) + epochs + more", "% 2**32) + more"),
            ("epoch + more, position", "epoch, position"),
            ("epoch + more, position", "more, position"),
            ("more = (position >= examples)", "more = (position > examples)"),
            ("if batch_size <= examples:", "if True:"),
            ("offset + jnp.arange(batch_size", "offset + 1 + jnp.arange(batch_size"),
            ("ROUNDS = 8", "ROUNDS = 2"),
            ("(hashes < own)", "(hashes <= own)"),
            ("32 - examples.bit_length()", "33 - examples.bit_length()"),
        ],
    ),
}
