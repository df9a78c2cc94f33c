"""Schedules joined: a warm-up and what follows, and restarts.

Counts and values as in `fdl.optim.schedules`. A warm-up of 0 steps is none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import known
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
    """One schedule after the other; each counts from its own beginning.

    Args:
      schedules: fdl's, optax's, or any functions of a count.
      boundaries: the count at which each but the first begins, in ascending order.

    Returns:
      A schedule.

    Raises:
      ValueError: another number of boundaries, or boundaries that go back.

    Example:
      >>> schedule = join_schedules([constant_schedule(0.5), linear_schedule(1.0, 0.0, 4)], [2])
      >>> [float(schedule(count)) for count in range(6)]
      [0.5, 0.5, 1.0, 0.75, 0.5, 0.25]

    Source: `optax.join_schedules`, which leaves out what has no boundary.
    """
    schedules, boundaries = list(schedules), list(boundaries)
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            "join_schedules: expected one boundary less than schedules, got "
            f"{len(boundaries)} and {len(schedules)}; each but the first begins at a boundary"
        )
    if all(map(known, boundaries)) and sorted(boundaries) != boundaries:
        raise ValueError(
            f"join_schedules: expected boundaries in ascending order, got {boundaries}; "
            "sort them together with their schedules"
        )
    check_steps("join_schedules", 0, **{f"boundary {i}": b for i, b in enumerate(boundaries)})

    def schedule(count: Any) -> jax.Array:
        value = scalar(schedules[0](count))
        for boundary, following in zip(boundaries, schedules[1:], strict=True):
            elapsed = since(count, boundary)
            value = jnp.where(reached(count, boundary), scalar(following(elapsed)), value)
        return value

    return schedule


def warmup_constant_schedule(init_value: Any, peak_value: Any, warmup_steps: Any) -> Schedule:
    """A line up, and on at the peak.

    Args:
      init_value: at 0.
      peak_value: from `warmup_steps` on.
      warmup_steps: >= 0.

    Returns:
      A schedule.

    Raises:
      ValueError: values that are not finite, steps out of range.

    Example:
      >>> schedule = warmup_constant_schedule(0.0, 1.0, warmup_steps=2)
      >>> [float(schedule(count)) for count in range(4)]
      [0.0, 0.5, 1.0, 1.0]

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2. Without steps
    `optax.warmup_constant_schedule` stays at init_value.
    """
    (peak,) = numbers("warmup_constant_schedule", peak_value=peak_value)
    check_steps("warmup_constant_schedule", 0, warmup_steps=warmup_steps)
    if known(warmup_steps) and warmup_steps == 0:
        return constant_schedule(peak)
    return linear_schedule(init_value, peak, warmup_steps)


def warmup_cosine_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    decay_steps: Any,
    end_value: Any = 0.0,
    exponent: Any = 1.0,
) -> Schedule:
    """A line up, then half a cosine down.

    Args:
      init_value: at 0.
      peak_value: at `warmup_steps`.
      warmup_steps: >= 0.
      decay_steps: of the whole, the warm-up included; > warmup_steps.
      end_value: from `decay_steps` on.
      exponent: of `cosine_decay_schedule`.

    Returns:
      A schedule.

    Raises:
      ValueError: values that are not finite, steps out of range.

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
    if known(decay_steps) and known(warmup_steps) and not decay_steps > warmup_steps:
        raise ValueError(
            f"{who}: expected decay_steps > warmup_steps, got {decay_steps} and {warmup_steps}; "
            "decay_steps counts the warm-up too"
        )
    alpha = 0.0 if known(peak) and peak == 0 else end / peak
    down = cosine_decay_schedule(peak, decay_steps - warmup_steps, alpha, exponent)
    up = warmup_constant_schedule(init_value, peak, warmup_steps)
    return join_schedules([up, down], [warmup_steps])


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
    """A line up, then `exponential_decay`.

    Args:
      init_value: at 0.
      peak_value: at `warmup_steps`.
      warmup_steps: >= 0.
      transition_steps: >= 1, in which the value falls by one decay_rate.
      decay_rate: > 0.
      transition_begin: >= 0, the steps at the peak.
      staircase: change at every `transition_steps`-th step only.
      end_value: where the decay stops; None for never.

    Returns:
      A schedule.

    Raises:
      ValueError: values that are not finite, steps out of range, a decay_rate that is not positive.

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


def warmup_stable_decay_schedule(
    init_value: Any,
    peak_value: Any,
    warmup_steps: Any,
    stable_steps: Any,
    decay_steps: Any,
    end_value: Any = 0.0,
) -> Schedule:
    """A line up, a long plateau, and a short line down; the end need not be known at the start.

    Args:
      init_value: at 0.
      peak_value: from `warmup_steps` on.
      warmup_steps: >= 0.
      stable_steps: at the peak, >= 0.
      decay_steps: of the last line alone, >= 1.
      end_value: after all of them.

    Returns:
      A schedule, which optax has not.

    Raises:
      ValueError: values that are not finite, steps out of range.

    Example:
      >>> schedule = warmup_stable_decay_schedule(0.0, 1.0, 2, 3, 2)
      >>> [float(schedule(count)) for count in range(8)]
      [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al. 2024, arXiv 2404.06395, section 4, with the straight decay of Hagele et al.
    2024, arXiv 2405.18392, section 3.
    """
    who = "warmup_stable_decay_schedule"
    check_steps(who, 0, stable_steps=stable_steps)
    check_steps(who, 1, decay_steps=decay_steps)
    up = warmup_constant_schedule(init_value, peak_value, warmup_steps)
    down = linear_schedule(peak_value, end_value, decay_steps, stable_steps)
    return join_schedules([up, down], [warmup_steps])


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    """Warm restarts: one `warmup_cosine_decay_schedule` after the other.

    Args:
      cosine_kwargs: the arguments of each; `decay_steps` is the length of its cycle.

    Returns:
      A schedule.

    Raises:
      ValueError: no cycle, or what `warmup_cosine_decay_schedule` refuses.

    Example:
      >>> cycle = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": 4}
      >>> schedule = sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])
      >>> [round(float(schedule(count)), 3) for count in (0, 2, 4, 6, 8)]
      [1.0, 0.5, 0.5, 0.25, 0.0]

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, section 3; `optax.sgdr_schedule`.
    """
    cycles = [dict(each) for each in cosine_kwargs]
    ends, end = [], 0
    for cycle in cycles:
        end = end + cycle["decay_steps"]
        ends.append(end)
    return join_schedules([warmup_cosine_decay_schedule(**each) for each in cycles], ends[:-1])
