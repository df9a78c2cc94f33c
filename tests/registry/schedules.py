"""Schedules beside optax's, or beside the formula in float64, all options away from defaults."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from fdl import optim


@dataclasses.dataclass(frozen=True)
class ScheduleCase:
    """A schedule, its arguments, and what it is held against.

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
