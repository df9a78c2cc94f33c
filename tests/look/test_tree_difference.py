"""The distance of two sets of parameters, in absolute terms and in units in the last place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdl.look import Difference, difference

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_equal_trees_are_zero_apart():
    tree = {"w": jnp.array([1.0, -2.0]), "empty": jnp.zeros((0, 3))}
    assert difference(tree, jax.tree.map(jnp.copy, tree)) == Difference("", 0.0, 0)
    assert difference({}, {}) == Difference("", 0.0, 0)


@given(floats, st.integers(1, 50))
def test_ulps_count_the_floats_between(start, count):
    x = np.float32(start)
    y = x
    for _ in range(count):
        if y < np.finfo(np.float32).max:
            y = np.nextafter(y, np.float32(np.inf))
    if y < np.finfo(np.float32).max:
        assert difference({"w": x}, {"w": y}).ulps == count
        assert difference({"w": y}, {"w": x}).ulps == count


def test_the_leaf_that_differs_most_is_named():
    a = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(10.0)}
    b = {"x": jnp.array([1.0, 2.5]), "y": jnp.array(9.75)}
    assert difference(a, b) == Difference("x", 0.5, 2**21)


def test_zero_and_minus_zero_and_the_smallest_numbers():
    smallest = np.float32(1e-45)
    assert difference({"w": np.float32(0.0)}, {"w": np.float32(-0.0)}).ulps == 0
    assert difference({"w": smallest}, {"w": -smallest}).ulps == 2


def test_other_widths():
    for dtype in (np.float64, np.float16, jnp.bfloat16):
        a = np.asarray(1, dtype)
        b = np.nextafter(a, np.asarray(2, dtype)) if dtype != jnp.bfloat16 else a + a / 128
        assert difference({"w": a}, {"w": np.asarray(b, dtype)}).ulps == 1
    assert difference({"w": np.float64(-1e300)}, {"w": np.float64(1e300)}).ulps > 2**62


@pytest.mark.parametrize(
    ("a", "b", "absolute", "ulps"),
    [
        ([1.0, np.nan], [1.0, 2.0], np.inf, 0x7FC00000 - 0x40000000),
        ([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf], 0.0, 0),
        ([np.inf, 1.0], [np.inf, 1.5], 0.5, 2**22),
        ([np.inf], [-np.inf], np.inf, 2 * 0x7F800000),
        (np.complex64([1 + 1j]), np.complex64([1 + 9j]), 8.0, (3 << 23) + 2**20),
        (np.complex64(complex(np.nan, 1)), np.complex64(complex(np.nan, 2)), 1.0, 2**23),
        (np.uint8([1]), np.uint8([255]), 254.0, 254),
        (np.int64([2**62]), np.int64([2**62 + 1]), 1.0, 1),
        ([True, False], [True, True], 1.0, 1),
    ],
)
def test_no_difference_is_hidden(a, b, absolute, ulps):
    a, b = (x if isinstance(x, np.ndarray | np.generic) else jnp.asarray(x) for x in (a, b))
    expected = Difference("z" if absolute else "", absolute, ulps)
    others = {"a": jnp.ones(2), "zz": jnp.array([jnp.inf, 1.0])}
    assert difference({**others, "z": a}, {**others, "z": b}) == expected
    assert difference({**others, "z": b}, {**others, "z": a}) == expected


def test_other_trees_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^difference: expected the same arrays in both trees, got float32 \[2\] and nothing "
        r"at 'w'; compare",
    ):
        difference({"w": jnp.ones(2)}, {})
    with pytest.raises(ValueError, match=r"got float32 \[2\] and float32 \[3\] at 'w'"):
        difference({"w": jnp.ones(2)}, {"w": jnp.ones(3)})


SEEDED_BUGS = {
    "fdl/look/tree_difference.py": (
        "look/test_tree_difference.py",
        [
            ("np.where(bits < 0, lowest - bits, bits)", "bits"),
            ("max(apart, key", "min(apart, key"),
            ("np.where(same, 0.0, np.where(gap != gap, np.inf, gap))", "gap"),
            ("x.view(x.real.dtype) if np.iscomplexobj(x) else x", "x.real"),
        ],
    ),
}
