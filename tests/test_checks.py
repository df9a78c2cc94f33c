"""Checks of arguments: what passes, and the whole message of what does not."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.checks import OptionError, check_number, check_shape, named_in_errors

X = np.ones((2, 5, 6, 3))


@pytest.mark.parametrize(
    ("axes", "lengths"),
    [
        ("...", {}),
        ("B, H, W, C", {}),
        ("..., C", {"C": 3}),
        ("B, ..., C", {"B": 2, "C": 3}),
        ("..., H, W, C", {"H": 5, "W": 6}),
        ("B, H, W, C, ...", {"W": 6}),
        ("..., B, H, W, C", {"B": 2}),
    ],
)
def test_a_shape_with_these_axes_passes(axes, lengths):
    assert check_shape("layer", X, axes, "reshape x", **lengths) is None


@pytest.mark.parametrize(
    ("axes", "lengths", "wanted"),
    [
        ("H, W, C", {}, "H, W, C"),
        ("..., A, B, H, W, C", {}, "..., A, B, H, W, C"),
        ("..., C", {"C": 4}, "..., 4"),
        ("B, ..., C", {"B": 3}, "3, ..., C"),
        ("..., H, W, C", {"H": 6, "W": 6}, "..., 6, 6, C"),
        ("B, H, W, C, ...", {"B": 5}, "5, H, W, C, ..."),
    ],
)
def test_a_shape_with_other_axes_is_refused(axes, lengths, wanted):
    message = re.escape(f"layer: expected x [{wanted}], got [2, 5, 6, 3]; reshape x")
    with pytest.raises(fdl.PathError, match=f"^{message}$"):
        check_shape("layer", X, axes, "reshape x", **lengths)


def test_a_list_has_no_shape():
    message = r"^layer: expected x to be an array, got a list; convert it with jnp\.asarray$"
    with pytest.raises(fdl.PathError, match=message):
        check_shape("layer", [1.0], "..., C", "reshape x")


@pytest.mark.parametrize(
    ("interval", "good", "bad"),
    [
        ("(0, 1)", [0.5, np.array([0.1, 0.9])], [0, 1, np.array([0.5, 1.0])]),
        ("[0, 1]", [0, 1.0, jnp.float32(1)], [-0.1, 1.1, float("nan")]),
        ("[0, inf)", [0, 1e30], [float("inf"), -1e-8]),
        ("(0, inf]", [1e-30, float("inf")], [0.0]),
        (None, [float("nan"), -3], []),
    ],
)
def test_a_number_lies_in_its_interval(interval, good, bad):
    for value in good:
        check_number("f", "eps", value, interval, "try 1")
        jax.jit(lambda value: check_number("f", "eps", value, interval, "try 1"))(value)
    for value in bad:
        with pytest.raises(OptionError, match=r"^f: expected .*eps.*, got .*; try 1$"):
            check_number("f", "eps", value, interval, "try 1")
    for value in (True, None, "1", 1j):
        with pytest.raises(OptionError, match=r"^f: expected eps.*, got .*; pass a number$"):
            check_number("f", "eps", value, interval, "try 1")


def test_infinity_is_named_where_it_is_excluded():
    with pytest.raises(OptionError, match=r"^f: expected a finite eps >= 0, got inf; try 1$"):
        check_number("f", "eps", float("inf"), "[0, inf)", "try 1")
    with pytest.raises(OptionError, match=r"^f: expected eps >= 0, got -1; try 1$"):
        check_number("f", "eps", -1, "[0, inf)", "try 1")
    with pytest.raises(OptionError, match=r"^f: expected eps > 0, got -inf; try 1$"):
        check_number("f", "eps", float("-inf"), "(0, inf]", "try 1")


def test_an_error_names_the_factory_that_was_called():
    def inner(eps):
        check_number("inner", "eps", eps, "(0, inf]", "try 1")
        return eps

    @named_in_errors
    def outer(eps):
        return inner(eps)

    assert (outer(2), outer.__name__) == (2, "outer")
    with pytest.raises(OptionError, match=r"^outer: expected eps > 0, got 0; try 1$") as caught:
        outer(0)
    assert (caught.value.who, caught.value.what) == ("outer", "expected eps > 0, got 0; try 1")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


SEEDED_BUGS = {
    "fdl/checks.py": (
        "test_checks.py",
        [
            ("error.who = factory.__name__", "pass"),
            ("if not np.all(above & below)", "if not np.any(above & below)"),
            ("numbers <= most if", "numbers < most if"),
            ('and interval[-1] == ")" else', "else"),
            ("lengths.get(name, length) == length", "True"),
            ("len(expanded) == x.ndim and all", "all"),
            ("names[start + 1 :]", "names[start:]"),
        ],
    ),
}
