"""Schedules that join other schedules: a warm-up and a decay, and warm restarts.

The docstring of `fdl.optim.schedules.decay` describes counts and values. With warmup_steps=0, there
is no warm-up.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import OptionError, check_kind, check_ordered, is_concrete_number, named_in_errors
from fdl.optim.schedules.counting import check_steps, numbers, reached, scalar, since
from fdl.optim.schedules.decay import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
)
from fdl.typing import Schedule


def join_schedules(
    schedules: Sequence[Callable[[Any], Any]], boundaries: Sequence[Any]
) -> Schedule:
    """Runs schedules one after the other. Each schedule gets a count that starts at 0.

    Args:
      schedules: a sequence of schedules of fdl or optax, or of any functions of a count.
      boundaries: the counts at which the second and later schedules start, in ascending order.

    Returns:
      A schedule.

    Raises:
      ValueError: the number of boundaries is not one less than the number of schedules; a boundary
        is negative; the boundaries are not in ascending order.

    Example:
      >>> schedule = join_schedules([constant_schedule(0.5), linear_schedule(1.0, 0.0, 4)], [2])
      >>> [float(schedule(count)) for count in range(6)]
      [0.5, 0.5, 1.0, 0.75, 0.5, 0.25]

    Source: `optax.join_schedules`. Unlike here, optax ignores schedules without a boundary.
    """
    example = "pass join_schedules([first, second], [1000])"
    check_kind("join_schedules", "schedules", schedules, Iterable, "a list of schedules", example)
    check_kind("join_schedules", "boundaries", boundaries, Iterable, "a list of steps", example)
    schedules, boundaries = list(schedules), list(boundaries)
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise OptionError(
            "join_schedules",
            f"expected one boundary fewer than schedules, got {len(boundaries)} boundaries and "
            f"{len(schedules)} schedules; every schedule except the first starts at a boundary",
        )
    if all(map(is_concrete_number, boundaries)) and sorted(boundaries) != boundaries:
        raise OptionError(
            "join_schedules",
            f"expected boundaries in ascending order, got {boundaries}; sort them together with "
            "the schedules",
        )
    names = {f"boundaries[{i}]": boundary for i, boundary in enumerate(boundaries)}
    check_steps("join_schedules", 0, **names)

    def schedule(count: Any) -> jax.Array:
        value = scalar(schedules[0](count))
        for boundary, later in zip(boundaries, schedules[1:], strict=True):
            elapsed = since(count, boundary)
            value = jnp.where(reached(count, boundary), scalar(later(elapsed)), value)
        return value

    return schedule


@named_in_errors
def warmup_constant_schedule(init_value: Any, peak_value: Any, warmup_steps: Any) -> Schedule:
    """Linear warm-up, then constant at the peak.

    Args:
      init_value: the value at count 0.
      peak_value: the value at count = warmup_steps and later.
      warmup_steps: >= 0, the number of steps of the warm-up.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps are out of range.

    Example:
      >>> schedule = warmup_constant_schedule(0.0, 1.0, warmup_steps=2)
      >>> [float(schedule(count)) for count in range(4)]
      [0.0, 0.5, 1.0, 1.0]

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2. Unlike here,
    `optax.warmup_constant_schedule` stays at init_value if warmup_steps is 0.
    """
    (peak,) = numbers("warmup_constant_schedule", peak_value=peak_value)
    check_steps("warmup_constant_schedule", 0, warmup_steps=warmup_steps)
    # The rise takes at least a step, so that it never divides by 0. From warmup_steps on, its value
    # is not used.
    longer = max if is_concrete_number(warmup_steps) else jnp.maximum
    rise = linear_schedule(init_value, peak, longer(warmup_steps, 1))
    return join_schedules([rise, constant_schedule(peak)], [warmup_steps])


@named_in_errors
def warmup_cosine_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    decay_steps: Any,
    end_value: Any = 0.0,
    exponent: Any = 1.0,
) -> Schedule:
    """Linear warm-up, then half a cosine down.

    Args:
      init_value: the value at count 0.
      peak_value: the value at count = warmup_steps.
      warmup_steps: >= 0, the number of steps of the warm-up.
      decay_steps: > warmup_steps, the number of steps of the whole schedule, including the warm-up.
      end_value: the value at count = decay_steps and later. If peak_value is 0, end_value is not
        used, and this value is 0.
      exponent: > 0; see `cosine_decay_schedule`.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps are out of range.

    Example:
      >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, 2, 6, end_value=0.5)
      >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 4, 6)]
      [0.0, 0.5, 1.0, 0.75, 0.5]

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, after the warm-up of Goyal et
    al. 2017; `optax.warmup_cosine_decay_schedule`.
    """
    who = "warmup_cosine_decay_schedule"
    peak, end = numbers(who, peak_value=peak_value, end_value=end_value)
    check_steps(who, 0, warmup_steps=warmup_steps, decay_steps=decay_steps)
    pair, remedy = (decay_steps, warmup_steps), "decay_steps includes the warm-up"
    check_ordered(who, "decay_steps > warmup_steps", pair, remedy, operator.gt)
    alpha = 0.0 if is_concrete_number(peak) and peak == 0 else end / peak
    down = cosine_decay_schedule(peak, decay_steps - warmup_steps, alpha, exponent)
    up = warmup_constant_schedule(init_value, peak, warmup_steps)
    return join_schedules([up, down], [warmup_steps])


@named_in_errors
def warmup_exponential_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: Any = 0,
    staircase: bool = False,
    end_value: Any = None,
) -> Schedule:
    """Linear warm-up, then `exponential_decay`.

    Args:
      init_value: the value at count 0.
      peak_value: the value at count = warmup_steps.
      warmup_steps: >= 0, the number of steps of the warm-up.
      transition_steps: >= 1, the number of steps in which the value is multiplied by decay_rate.
      decay_rate: > 0, the factor by which the value changes in `transition_steps` steps.
      transition_begin: >= 0, the number of steps at the peak.
      staircase: True changes the value only once every `transition_steps` steps.
      end_value: the value at which the decay stops; see `exponential_decay`. None means no bound.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps are out of range; decay_rate is 0 or negative.

    Example:
      >>> schedule = warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5)
      >>> [float(schedule(count)) for count in range(5)]
      [0.0, 0.5, 1.0, 0.5, 0.25]

    Source: `optax.warmup_exponential_decay_schedule`.
    """
    up = warmup_constant_schedule(init_value, peak_value, warmup_steps)
    down = exponential_decay(
        peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    return join_schedules([up, down], [warmup_steps])


@named_in_errors
def warmup_stable_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    stable_steps: Any,
    decay_steps: Any,
    end_value: Any = 0.0,
) -> Schedule:
    """Linear warm-up, a long plateau, and a short linear decay (WSD).

    Args:
      init_value: the value at count 0.
      peak_value: the value at count = warmup_steps and during the plateau.
      warmup_steps: >= 0, the number of steps of the warm-up.
      stable_steps: >= 0, the number of steps of the plateau.
      decay_steps: >= 1, the number of steps of the decay.
      end_value: the value after the decay.

    Returns:
      A schedule. It is not in optax.

    Raises:
      ValueError: a value is not finite; steps are out of range.

    Example:
      >>> schedule = warmup_stable_decay_schedule(0.0, 1.0, 2, 3, 2)
      >>> [float(schedule(count)) for count in range(8)]
      [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al. 2024, arXiv 2404.06395, section 4, with the linear decay of Hagele et al.
    2024, arXiv 2405.18392, section 3.
    """
    who = "warmup_stable_decay_schedule"
    check_steps(who, 0, stable_steps=stable_steps)
    check_steps(who, 1, decay_steps=decay_steps)
    up = warmup_constant_schedule(init_value, peak_value, warmup_steps)
    down = linear_schedule(peak_value, end_value, decay_steps, stable_steps)
    return join_schedules([up, down], [warmup_steps])


@named_in_errors
def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    """Warm restarts: one `warmup_cosine_decay_schedule` after the other.

    Args:
      cosine_kwargs: for each cycle, a dict of the arguments of `warmup_cosine_decay_schedule`. The
        argument `decay_steps` is the number of steps of the cycle.

    Returns:
      A schedule.

    Raises:
      ValueError: cosine_kwargs is empty; an argument of a cycle is out of range.

    Example:
      >>> cycle = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": 4}
      >>> schedule = sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])
      >>> [round(float(schedule(count)), 3) for count in (0, 2, 4, 6, 8)]
      [1.0, 0.5, 0.5, 0.25, 0.0]

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, section 3; `optax.sgdr_schedule`.
    """
    form, example = "a list of dicts", "pass [{'init_value': 0.0, 'peak_value': 0.1, ...}]"
    check_kind("sgdr_schedule", "cosine_kwargs", cosine_kwargs, Iterable, form, example)
    cosine_kwargs = list(cosine_kwargs)
    if not cosine_kwargs:
        raise OptionError("sgdr_schedule", f"expected at least one cycle, got none; {example}")
    for kwargs in cosine_kwargs:
        check_kind("sgdr_schedule", "each entry of cosine_kwargs", kwargs, Mapping, form, example)
        if "decay_steps" not in kwargs:
            raise OptionError(
                "sgdr_schedule",
                f"expected decay_steps in each cycle, got {', '.join(map(str, kwargs)) or 'none'}; "
                "add the number of steps of the cycle",
            )
    cycles = [dict(kwargs) for kwargs in cosine_kwargs]
    ends, end = [], 0
    for cycle in cycles:
        end = end + cycle["decay_steps"]
        ends.append(end)
    return join_schedules([warmup_cosine_decay_schedule(**cycle) for cycle in cycles], ends[:-1])
