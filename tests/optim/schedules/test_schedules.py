"""Schedules against optax or a formula, at every count and at very large counts; and their laws."""

import dataclasses
import functools
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdl import optim


@dataclasses.dataclass(frozen=True)
class ScheduleCase:
    """A schedule, its arguments, and what it is compared with.

    Args:
      make: builds the schedule.
      kwargs: by name.
      end: the count after which nothing changes, or which is far along.
      oracle: the formula in float64 NumPy, `counts -> values`, where optax has no such schedule.
      falls: whether it never rises from `top` on.
      top: the count of its largest value.
    """

    make: Callable[..., Any]
    kwargs: dict[str, Any]
    end: int
    oracle: Callable[[np.ndarray], np.ndarray] | None = None
    falls: bool = True
    top: int = 0

    def ours(self):
        return self.make(**self.kwargs)

    def theirs(self):
        return getattr(optax, self.make.__name__)(**self.kwargs)


def inverse_time(t):
    return 0.4 / (1 + 0.7 * np.maximum(t - 5, 0) / 9)


def inverse_time_stairs(t):
    return 0.4 / (1 + 0.7 * (np.maximum(t - 5, 0) // 9))


def inverse_sqrt(t):
    return 0.4 * np.minimum(t / 11, np.sqrt(11 / np.maximum(t, 1)))


def stable(t):
    return np.interp(t, [0, 7, 26, 39], [0.05, 0.4, 0.4, 0.02])


def joined(library):
    parts = [library.linear_schedule(0.1, 0.3, 7), library.exponential_decay(0.2, 5, 0.7)]
    return library.join_schedules([library.constant_schedule(0.4), *parts], [6, 15])


def restarts():
    first = {"init_value": 0.1, "peak_value": 0.4, "warmup_steps": 3, "decay_steps": 17}
    then = {"init_value": 0.05, "peak_value": 0.3, "warmup_steps": 5, "decay_steps": 23}
    return [{**first, "end_value": 0.02, "exponent": 1.3}, {**then, "end_value": 0.01}, first]


def case(name, kwargs, end, **rest):
    return ScheduleCase(getattr(optim, name), kwargs, end, **rest)


CYCLE = {"transition_steps": 40, "peak_value": 0.4, "div_factor": 7.0, "final_div_factor": 30.0}
WARM = {"init_value": 0.05, "peak_value": 0.4, "warmup_steps": 11}
STEPS = {3: 0.7, 19: 0.25, 31: 0.5}
DECAY = {"init_value": 0.4, "transition_steps": 9, "decay_rate": 0.7, "transition_begin": 5}

SCHEDULES = {
    "constant_schedule": case("constant_schedule", {"value": 0.3}, 3),
    "linear_schedule": case(
        "linear_schedule",
        {"init_value": 0.4, "end_value": 0.03, "transition_steps": 29, "transition_begin": 6},
        35,
    ),
    "polynomial_schedule": case(
        "polynomial_schedule",
        {"init_value": 0.4, "end_value": 0.03, "power": 2.5, "transition_steps": 29}
        | {"transition_begin": 6},
        35,
    ),
    "polynomial_schedule_of_whole_power": case(
        "polynomial_schedule",
        {"init_value": 0.4, "end_value": 0.03, "power": 3, "transition_steps": 29},
        29,
    ),
    "exponential_decay": case("exponential_decay", {**DECAY, "end_value": 0.03}, 90),
    "exponential_decay_stairs": case("exponential_decay", {**DECAY, "staircase": True}, 90),
    "inverse_time_decay": case("inverse_time_decay", DECAY, 90, oracle=inverse_time),
    "inverse_time_decay_stairs": case(
        "inverse_time_decay", {**DECAY, "staircase": True}, 90, oracle=inverse_time_stairs
    ),
    "inverse_sqrt_schedule": case(
        "inverse_sqrt_schedule",
        {"peak_value": 0.4, "warmup_steps": 11},
        90,
        oracle=inverse_sqrt,
        top=11,
    ),
    "cosine_decay_schedule": case(
        "cosine_decay_schedule",
        {"init_value": 0.4, "decay_steps": 37, "alpha": 0.07, "exponent": 1.7},
        37,
    ),
    "piecewise_constant_schedule": case(
        "piecewise_constant_schedule", {"init_value": 0.4, "boundaries_and_scales": STEPS}, 31
    ),
    "piecewise_interpolate_schedule": case(
        "piecewise_interpolate_schedule",
        {"interpolate_type": "linear", "init_value": 0.4, "boundaries_and_scales": STEPS},
        31,
    ),
    "piecewise_interpolate_schedule_of_cosines": case(
        "piecewise_interpolate_schedule",
        {"interpolate_type": "cosine", "init_value": 0.4, "boundaries_and_scales": STEPS},
        31,
    ),
    "linear_onecycle_schedule": case(
        "linear_onecycle_schedule", {**CYCLE, "pct_start": 0.4, "pct_final": 0.7}, 40, top=16
    ),
    "cosine_onecycle_schedule": case(
        "cosine_onecycle_schedule", {**CYCLE, "pct_start": 0.4}, 40, top=16
    ),
    "join_schedules": ScheduleCase(lambda: joined(optim), {}, 90, falls=False),
    "warmup_constant_schedule": case("warmup_constant_schedule", WARM, 11, top=11),
    "warmup_cosine_decay_schedule": case(
        "warmup_cosine_decay_schedule",
        {**WARM, "decay_steps": 37, "end_value": 0.03, "exponent": 1.7},
        37,
        top=11,
    ),
    "warmup_exponential_decay_schedule": case(
        "warmup_exponential_decay_schedule",
        {**WARM, "transition_steps": 9, "decay_rate": 0.7, "transition_begin": 5}
        | {"end_value": 0.03},
        90,
        top=11,
    ),
    "warmup_stable_decay_schedule": case(
        "warmup_stable_decay_schedule",
        {**WARM, "warmup_steps": 7, "stable_steps": 19, "decay_steps": 13, "end_value": 0.02},
        39,
        oracle=stable,
        top=7,
    ),
    "sgdr_schedule": case("sgdr_schedule", {"cosine_kwargs": restarts()}, 57, falls=False),
}


LAST = np.iinfo(np.int32).max
over_schedules = pytest.mark.parametrize("name", SCHEDULES)


@functools.cache
def compiled(name):
    return jax.jit(jax.vmap(SCHEDULES[name].ours()))


def all_counts(name):
    """Beyond three times the end."""
    return np.arange(3 * SCHEDULES[name].end + 5, dtype=np.int32)


@functools.cache
def values(name):
    """At `all_counts`."""
    found = compiled(name)(all_counts(name))
    assert found.dtype == jnp.float32
    return np.asarray(found)


def theirs_of(name):
    return joined(optax) if name == "join_schedules" else SCHEDULES[name].theirs()


def exact(name, counts):
    """The schedule in float64: optax's where it has one, else the registry's formula."""
    case = SCHEDULES[name]
    if case.oracle:
        return case.oracle(np.asarray(counts, np.float64))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        theirs = theirs_of(name)
        counts = np.asarray(counts, np.int64)
        # Some schedules of optax return a constant that is not an array.
        return np.asarray(jax.jit(jax.vmap(lambda count: jnp.float64(theirs(count))))(counts))


@over_schedules
def test_a_schedule_has_the_values_of_optax_or_of_its_formula(name):
    """To one unit in the last place of the largest value, at the ends and beyond too.

    Two for the one cycle of cosines, where optax itself is 1.4 units from the float64 values.
    """
    counts, found = all_counts(name), values(name)
    if SCHEDULES[name].oracle is None:
        with jax.numpy_dtype_promotion("standard"):
            theirs = theirs_of(name)
            expected = jax.jit(jax.vmap(lambda count: jnp.float32(theirs(count))))(counts)
        ulp = np.spacing(np.abs(np.asarray(expected)).max())
        units = 2 if name == "cosine_onecycle_schedule" else 1
        np.testing.assert_allclose(found, expected, rtol=0, atol=units * ulp)
    in_float64 = exact(name, counts)
    largest = np.abs(in_float64).max()
    np.testing.assert_allclose(found, in_float64, rtol=0, atol=4e-7 * largest)


@over_schedules
def test_a_schedule_takes_every_kind_of_count(name):
    schedule, case = SCHEDULES[name].ours(), SCHEDULES[name]
    counts = np.array([0, 1, case.end // 2, case.end - 1, case.end, 3 * case.end])
    expected = values(name)[counts]
    for dtype in (np.uint32, np.int16):
        found = compiled(name)(counts.astype(dtype))
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=dtype.__name__)
    middle = schedule(int(counts[2]))
    assert (middle.shape, middle.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(middle, expected[2], rtol=1e-6)
    with jax.enable_x64(True):
        assert schedule(jnp.int32(counts[2])).dtype == jnp.float64


@over_schedules
def test_a_schedule_stays_finite_and_falls(name):
    case = SCHEDULES[name]
    near = values(name)
    assert np.isfinite(near).all() and (near >= 0).all()
    if case.falls:
        assert (np.diff(near[case.top :]) <= 1e-7).all()
        assert (np.diff(near[: case.top + 1]) >= -1e-7).all()
    # As many counts as in the test above, for one program.
    far = np.asarray(compiled(name)(np.array([LAST - 1, LAST, 2**32 - 1] * 2, np.uint32)))
    assert np.isfinite(far).all() and (far <= near[case.top]).all()
    assert far[0] == far[1] or case.end == 90


def stretched(scale):
    """Schedules of up to 2 billion steps, which float32 cannot count."""
    return {
        "linear_schedule": ((0.4, 0.03, 1000 * scale, 500 * scale), 1500),
        "polynomial_schedule": ((0.4, 0.03, 2.5, 1000 * scale, 500 * scale), 1500),
        "cosine_decay_schedule": ((0.4, 1500 * scale, 0.07), 1500),
        "warmup_constant_schedule": ((0.05, 0.4, 1500 * scale), 1500),
        "warmup_cosine_decay_schedule": ((0.05, 0.4, 300 * scale, 1500 * scale, 0.03), 1500),
        "linear_onecycle_schedule": ((1500 * scale, 0.4, 0.4, 0.7, 7.0), 1500),
        "cosine_onecycle_schedule": ((1500 * scale, 0.4, 0.4, 7.0), 1500),
    }


@pytest.mark.parametrize("name", stretched(1))
def test_large_counts_are_exact(name):
    """Neighbouring counts up to 2^31, against optax in float64: counts are not rounded."""
    args, end = stretched(1_400_000)[name]
    counts = np.array([1, 499, 500, 501, 999, 1499, 1500]) * 1_400_000
    counts = np.sort(np.concatenate([counts - 1, counts, counts + 1]))
    found = jax.jit(jax.vmap(getattr(optim, name)(*args)))(counts.astype(np.int32))
    assert counts.max() > 2**30.9 and end * 1_400_000 < LAST
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        theirs = getattr(optax, name)(*args)
        # Float counts: optax would divide integers in float32 and give NaN at the end. Not
        # compiled: XLA would multiply by the reciprocal of the length, and so give NaN as well.
        expected = jax.vmap(theirs)(counts.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * 0.4)


def test_stairs_and_joins_change_at_their_count_however_large():
    begin = 2**30 + 1
    stairs = optim.exponential_decay(1.0, 2**24 + 1, 0.5, begin, staircase=True)
    joints = optim.join_schedules([lambda c: 1.0, lambda c: 0.5], [begin])
    for schedule, at in [(stairs, begin + 2**24 + 1), (stairs, begin + 3 * 2**24 + 3)]:
        before, after = schedule(jnp.int32(at - 1)), schedule(jnp.int32(at))
        assert float(after) == 0.5 * float(before)
    assert [float(joints(jnp.int32(c))) for c in (begin - 1, begin)] == [1.0, 0.5]


def test_steps_beyond_what_the_count_holds():
    assert float(optim.linear_schedule(1.0, 0.0, 2**40)(jnp.int32(LAST))) > 0.99
    assert float(optim.linear_schedule(1.0, 0.0, 300)(jnp.uint8(255))) == pytest.approx(0.15)
    assert float(optim.join_schedules([lambda c: 1.0, lambda c: 2.0], [2**40])(5)) == 1.0


number = st.floats(0.001, 10.0)
steps = st.integers(1, 10**9)


@settings(max_examples=60, deadline=None)
@given(number, number, st.floats(0.2, 4.0), steps, st.integers(0, 10**9), st.integers(0, LAST))
def test_a_polynomial_stays_between_its_ends(init, end, power, length, begin, count):
    """It has its end values, stays between them, and is monotonic."""
    schedule = optim.polynomial_schedule(init, end, power, length, begin)
    value, later = float(schedule(count)), float(schedule(min(count + length // 7 + 1, LAST)))
    slack = 3e-7 * max(init, end)
    assert min(init, end) - slack <= value <= max(init, end) + slack
    assert (later - value) * np.sign(end - init) >= -slack
    assert float(schedule(begin)) == pytest.approx(init, rel=1e-6, abs=slack)
    assert float(schedule(begin + length)) == pytest.approx(end, rel=1e-6, abs=slack)


@settings(max_examples=40, deadline=None)
@given(number, number, st.integers(0, 10**8), steps, st.floats(0, 1), st.integers(0, LAST))
def test_a_warm_up_and_a_cosine_stay_between_their_ends(init, peak, warmup, length, share, count):
    end = share * peak
    schedule = optim.warmup_cosine_decay_schedule(init, peak, warmup, warmup + length, end)
    slack = 4e-7 * max(init, peak)
    assert min(init, end) - slack <= float(schedule(count)) <= max(init, peak) + slack
    assert float(schedule(warmup)) == pytest.approx(peak, rel=1e-6)
    assert float(schedule(warmup + length)) == pytest.approx(end, abs=slack)
    if warmup:
        assert float(schedule(0)) == pytest.approx(init, abs=slack)
    if count >= warmup:
        assert float(schedule(min(count + length // 7 + 1, LAST))) <= float(schedule(count)) + slack


FRACTIONAL = {
    "linear_schedule": (1.0, 0.1, 2.5, 1.3),
    "polynomial_schedule": (1.0, 0.1, 2.0, 7.3, 2.2),
    "cosine_decay_schedule": (1.0, 5.7, 0.1, 1.3),
    "exponential_decay": (1.0, 2.5, 0.5, 1.5, False, 0.05),
    "warmup_constant_schedule": (0.1, 1.0, 2.5),
    "warmup_cosine_decay_schedule": (0.0, 1.0, 2.5, 10.5, 0.1),
    "warmup_exponential_decay_schedule": (0.1, 1.0, 2.5, 3.5, 0.5, 1.2, True),
    "piecewise_constant_schedule": (1.0, {2.5: 0.5, 4.5: 0.3}),
    "piecewise_interpolate_schedule": ("cosine", 1.0, {2.5: 0.5, 6.5: 0.3}),
    "linear_onecycle_schedule": (12.5, 1.0),
    "cosine_onecycle_schedule": (12.5, 1.0),
}


@pytest.mark.parametrize("name", FRACTIONAL)
def test_a_fraction_of_a_step_counts_as_in_optax(name):
    """A number of steps such as 0.05 * total: the end is between two counts."""
    ours = getattr(optim, name)(*FRACTIONAL[name])
    counts = np.arange(20, dtype=np.int32)
    found = jax.jit(jax.vmap(ours))(counts)
    each = [float(ours(count)) for count in range(20)]
    with jax.numpy_dtype_promotion("standard"):
        theirs = getattr(optax, name)(*FRACTIONAL[name])
        expected = jax.jit(jax.vmap(lambda count: jnp.float32(theirs(count))))(counts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-7)
    np.testing.assert_allclose(each, expected, rtol=0, atol=1.2e-7)


def test_a_fraction_of_a_step_counts_under_vmap_and_far_along():
    def at_3(length, begin):
        return optim.linear_schedule(1.0, 0.0, length, begin)(jnp.int32(3))

    found = jax.jit(jax.vmap(at_3))(np.float32([2.5, 2.5, 4.0]), np.float32([0.5, 1.5, 0.0]))
    np.testing.assert_allclose(found, [0.0, 0.4, 0.25], atol=1e-7)
    stairs = jax.vmap(lambda t: optim.exponential_decay(1.0, t, 0.5, 0, True)(jnp.int32(5)))
    np.testing.assert_array_equal(jax.jit(stairs)(np.float32([2.5, 4.0])), [0.25, 0.5])
    # float32 cannot represent 2^24 + 1.5.
    late = optim.linear_schedule(1.0, 0.0, 2.0, 2**24 + 1.5)
    assert [float(late(jnp.int32(2**24 + n))) for n in (1, 2, 3, 4)] == [1.0, 0.75, 0.25, 0.0]


def test_a_schedule_without_a_warm_up():
    for schedule in (
        optim.warmup_constant_schedule(0.0, 0.5, 0),
        optim.warmup_cosine_decay_schedule(0.0, 0.5, 0, 10, end_value=0.5),
        optim.warmup_stable_decay_schedule(0.0, 0.5, 0, 5, 5, end_value=0.5),
    ):
        assert [float(schedule(count)) for count in (0, 1, 20)] == [0.5] * 3
    flat = optim.warmup_cosine_decay_schedule(0.5, 0.0, 2, 4)
    assert [float(flat(count)) for count in (0, 1, 2, 4)] == [0.5, 0.25, 0.0, 0.0]


def arguments_that_are_numbers(case: ScheduleCase):
    steps = {"interpolate_type", "boundaries_and_scales", "cosine_kwargs", "staircase"}
    steps |= {"pct_start", "pct_final"}
    return {
        key: value
        for key, value in case.kwargs.items()
        if key not in steps and not key.endswith(("steps", "begin"))
    }


@pytest.mark.parametrize("name", [n for n, c in SCHEDULES.items() if arguments_that_are_numbers(c)])
def test_a_schedule_is_differentiable_by_its_arguments(name):
    """The gradient by every argument, at many counts, against central differences."""
    case = SCHEDULES[name]
    numbers = arguments_that_are_numbers(case)
    counts = np.arange(2 * case.end + 5)
    weights = np.cos(counts)

    def total(numbers):
        schedule = case.make(**{**case.kwargs, **numbers})
        return (jax.vmap(schedule)(counts) * weights).sum()

    with jax.enable_x64(True):
        with_python = lambda: (jax.vmap(case.ours())(counts) * weights).sum()  # noqa: E731
        both = jax.jit(lambda numbers: (*jax.value_and_grad(total)(numbers), with_python()))
        start = {key: np.float64(value) for key, value in numbers.items()}
        value, found, expected = both(start)
        assert np.isfinite(value)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        for key, x in start.items():
            h = 1e-5 * max(1.0, float(x))
            up, down = (float(both({**start, key: x + d})[0]) for d in (h, -h))
            np.testing.assert_allclose(found[key], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)


def test_a_schedule_in_each_member():
    """Peaks and lengths may differ under vmap; each member is its solo schedule."""

    def rate(peak, warmup, length, count):
        return optim.warmup_cosine_decay_schedule(0.0, peak, warmup, length, 0.01)(count)

    peaks, warmups, lengths = jnp.array([0.1, 0.5]), jnp.array([3, 5]), jnp.array([11, 23])
    together = jax.jit(jax.vmap(rate, (0, 0, 0, None)))(peaks, warmups, lengths, jnp.int32(7))
    alone = [
        rate(float(p), int(w), int(n), 7) for p, w, n in zip(peaks, warmups, lengths, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_warm_up_shorter_than_a_step_is_over_at_step_1():
    short = optim.warmup_constant_schedule(0.25, 1.0, warmup_steps=0.5)
    assert [float(short(count)) for count in range(3)] == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("steps", [np.int32(0), np.float32(0)])
def test_a_traced_warm_up_of_no_steps_begins_at_the_peak(steps):
    def value(peak, steps, count):
        schedule = optim.warmup_cosine_decay_schedule(0.25, peak, steps, 4)
        return schedule(count), optim.warmup_constant_schedule(0.25, peak, steps)(count)

    counts, peak = np.arange(4, dtype=np.int32), np.float32(0.5)
    expected = (1 + np.cos(np.pi * counts / 4)) / 2
    both = jax.vmap(lambda *args: (value(*args), jax.jacobian(value)(*args)), (None, None, 0))
    (cosine, constant), slopes = jax.jit(both)(peak, steps, counts)
    np.testing.assert_allclose(cosine, 0.5 * expected, rtol=1e-6)
    np.testing.assert_array_equal(constant, [0.5] * 4)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], [1.0] * 4)


def test_optimizers_of_fdl_and_optax_take_a_schedule_of_fdl():
    schedule = optim.cosine_decay_schedule(0.4, 5)
    w = jnp.array([1.0, -2.0])
    for make in (optim.sgd, optax.sgd):
        optimizer = make(schedule)
        state = optimizer.init(w)
        for count in range(4):
            updates, state = optimizer.update(w, state, w)
            np.testing.assert_allclose(updates, -schedule(count) * w, rtol=1e-6)


def test_the_example_draws_every_schedule(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture of the schedules was not drawn")
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "schedules.py"))
    kinds = ("_schedule", "_decay", "join_schedules")
    assert {*example["PANELS"]} == {name for name in vars(optim) if name.endswith(kinds)}
    figure = example["draw"]()
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == list(example["PANELS"])
    drawn = figure.axes[titles.index("linear_schedule")].lines[0].get_ydata()
    np.testing.assert_allclose(drawn[[0, 15, 50, 85, 114]], [1.0, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)
    figure.savefig(tmp_path / "schedules.png", dpi=40)
    assert (tmp_path / "schedules.png").stat().st_size > 5000


# Mistakes.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.constant_schedule(float("inf")),
            "constant_schedule: expected a finite value, got inf; pass a finite number",
        ),
        (
            lambda: optim.polynomial_schedule(0.1, float("nan"), 2, 5),
            "polynomial_schedule: expected a finite end_value, got nan; pass a finite number",
        ),
        (
            lambda: optim.linear_schedule(0.1, 0.0, 0),
            "linear_schedule: expected transition_steps >= 1, got 0; pass a number of steps",
        ),
        (
            lambda: optim.exponential_decay(0.1, 5, 0.5, transition_begin=-1),
            "exponential_decay: expected transition_begin >= 0, got -1; pass a number of steps",
        ),
        (
            lambda: optim.linear_schedule(0.1, 0.0, "10"),
            "linear_schedule: expected transition_steps >= 1, got '10'; pass a number",
        ),
        (
            lambda: optim.warmup_cosine_decay_schedule(0.0, "0.1", 1, 10),
            "warmup_cosine_decay_schedule: expected a finite peak_value, got '0.1'; pass a number",
        ),
        (
            lambda: optim.warmup_cosine_decay_schedule(0.0, 0.1, 1, "10"),
            "warmup_cosine_decay_schedule: expected decay_steps >= 0, got '10'; pass a number",
        ),
        (
            lambda: optim.polynomial_schedule(0.1, 0.0, -2, 4),
            "polynomial_schedule: expected power > 0, got -2; with 1, the schedule is a straight "
            "line",
        ),
        (
            lambda: optim.cosine_decay_schedule(0.1, 4, exponent=-1.0),
            "cosine_decay_schedule: expected exponent > 0, got -1.0; with 1, the schedule is half "
            "a cosine",
        ),
        (
            lambda: optim.exponential_decay(0.1, 5, 0.5, end_value=float("nan")),
            "exponential_decay: expected a finite end_value, got nan; pass a finite number",
        ),
        (
            lambda: optim.piecewise_constant_schedule(0.1, {5: "0.5"}),
            "piecewise_constant_schedule: expected boundaries_and_scales[5] >= 0, got '0.5'; "
            "pass a "
            "number",
        ),
        (
            lambda: optim.cosine_onecycle_schedule(10, 0.1, "0.3"),
            "cosine_onecycle_schedule: expected pct_start in [0, 1], got '0.3'; pass a number",
        ),
        (
            lambda: optim.exponential_decay(0.1, 5, 0.0),
            "exponential_decay: expected decay_rate > 0, got 0.0; it is a factor; for no decay, "
            "use constant_schedule",
        ),
        (
            lambda: optim.inverse_time_decay(0.1, 5, -0.5),
            "inverse_time_decay: expected decay_rate >= 0, got -0.5; a negative value can make the "
            "schedule divide by 0",
        ),
        (
            lambda: optim.inverse_sqrt_schedule(0.1, 0),
            "inverse_sqrt_schedule: expected warmup_steps >= 1, got 0; pass a number of steps",
        ),
        (
            lambda: optim.cosine_decay_schedule(0.1, -3),
            "cosine_decay_schedule: expected decay_steps >= 1, got -3; pass a number of steps",
        ),
        (
            lambda: optim.piecewise_constant_schedule(0.1, {-1: 0.5}),
            "piecewise_constant_schedule: expected every boundary of boundaries_and_scales >= 0, "
            "got -1; pass a number of steps",
        ),
        (
            lambda: optim.piecewise_interpolate_schedule("cosine", 0.1, {5: -0.5}),
            "piecewise_interpolate_schedule: expected boundaries_and_scales[5] >= 0, got -0.5; "
            "pass a factor, such as 0.1",
        ),
        (
            lambda: optim.piecewise_interpolate_schedule("cubic", 0.1, {5: 0.5}),
            "piecewise_interpolate_schedule: expected interpolate_type 'linear' or 'cosine', got "
            "'cubic'; pass 'linear' for straight lines",
        ),
        (
            lambda: optim.linear_onecycle_schedule(10, 0.1, 0.5, 0.4),
            "linear_onecycle_schedule: expected pct_start <= pct_final, got 0.5 and 0.4; pass "
            "fractions of all steps",
        ),
        (
            lambda: optim.cosine_onecycle_schedule(10, 0.1, 1.5),
            "cosine_onecycle_schedule: expected pct_start in [0, 1], got 1.5; pass a fraction of "
            "all steps",
        ),
        (
            lambda: optim.cosine_onecycle_schedule(10, 0.1, div_factor=0.0),
            "cosine_onecycle_schedule: expected div_factor > 0, got 0.0; it is a divisor",
        ),
        (
            lambda: optim.warmup_constant_schedule(0.0, 0.1, -1),
            "warmup_constant_schedule: expected warmup_steps >= 0, got -1; pass a number of steps",
        ),
        (
            lambda: optim.warmup_cosine_decay_schedule(0.0, 0.1, 10, 10),
            "warmup_cosine_decay_schedule: expected decay_steps > warmup_steps, got 10 and 10; "
            "decay_steps includes the warm-up",
        ),
        (
            lambda: optim.warmup_stable_decay_schedule(0.0, 0.1, 10, -1, 10),
            "warmup_stable_decay_schedule: expected stable_steps >= 0, got -1; pass a number of "
            "steps",
        ),
        (
            lambda: optim.join_schedules([optim.constant_schedule(0.1)], [3]),
            "join_schedules: expected one boundary fewer than schedules, got 1 boundaries and 1 "
            "schedules; every schedule except the first starts at a boundary",
        ),
        (
            lambda: optim.join_schedules([optim.constant_schedule(0.1)] * 3, [5, 3]),
            "join_schedules: expected boundaries in ascending order, got [5, 3]; sort them "
            "together with the schedules",
        ),
        (
            lambda: optim.sgdr_schedule([]),
            "sgdr_schedule: expected at least one cycle, got none; pass [{'init_value': 0.0, "
            "'peak_value': 0.1, ...}]",
        ),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, case in SCHEDULES.items()
        for argument, value in case.kwargs.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ],
)
def test_an_error_about_an_argument_names_the_schedule_and_the_argument(name, argument):
    case = SCHEDULES[name]
    text = rf"^{case.make.__name__}: expected (a finite )?{argument}[^\n]*, got '1'; pass a number$"
    with pytest.raises(ValueError, match=text):
        case.make(**{**case.kwargs, argument: "1"})


def test_bad_arguments_raise_under_jit():
    message = "cosine_decay_schedule: expected decay_steps >= 1, got 0; pass a number of steps"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.jit(lambda c: optim.cosine_decay_schedule(0.1, 0)(c))(jnp.int32(3))


SEEDED_BUGS = {
    "fdl/optim/schedules/decay.py": (
        "optim/schedules/test_schedules.py",
        [
            ("left = jnp.maximum(1 - done, 0)", "left = jnp.maximum(1 - done**power, 0)"),
            ("(init - end) * left**power + end", "init * left**power + end"),
            ("jnp.maximum(value, end), jnp.minimum", "jnp.minimum(value, end), jnp.maximum"),
            ("t // as_count(steps, t)", "jnp.floor(fraction(t, steps))"),
            ("(1 - alpha) * cosine**exponent + alpha", "cosine**exponent + alpha"),
            ("cosine = 0.5 * (1 + ", "cosine = 0.5 * (1 - "),
            ("rise / jnp.sqrt(beyond)", "rise / beyond"),
            (
                "since(count, transition_begin, transition_steps)",
                "since(count, 0, transition_steps)",
            ),
        ],
    ),
    "fdl/optim/schedules/counting.py": (
        "optim/schedules/test_schedules.py",
        [
            ("jnp.maximum(count, whole) - whole", "count - whole"),
            ("return count >= ", "return count > "),
            ("count = jnp.asarray(count)\n    whole", "count = scalar(count)\n    whole"),
            ("scalar(elapsed), scalar(most)", "elapsed, as_count(most, elapsed)"),
            ("- scalar(begin % 1)", "- 0"),
            ("(scalar(boundary % 1) == 0)", "True"),
        ],
    ),
    "fdl/optim/schedules/piecewise.py": (
        "optim/schedules/test_schedules.py",
        [
            ("begin, start = boundary, end", "begin = boundary"),
            ("(jnp.cos(jnp.pi * part) + 1)", "(jnp.cos(jnp.pi * part) - 1)"),
            ("(div_factor * final_div_factor)", "final_div_factor"),
            ("(int(pct_final * t), 1.0 / div_factor)", "(int(pct_final * t), div_factor)"),
        ],
    ),
    "fdl/optim/schedules/warmup.py": (
        "optim/schedules/test_schedules.py",
        [
            ("scalar(later(elapsed))", "scalar(later(count))"),
            ("decay_steps - warmup_steps, alpha", "decay_steps, alpha"),
            ("@named_in_errors\ndef warmup_cosine_decay_", "def warmup_cosine_decay_"),
            ("ends.append(end)", "ends.append(cycle['decay_steps'])"),
            ("longer(warmup_steps, 1)", "warmup_steps"),
            ("join_schedules([rise, constant_schedule(peak)], [warmup_steps])", "rise"),
        ],
    ),
}
