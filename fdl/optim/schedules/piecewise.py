"""Piecewise schedules: constants, straight lines, half cosines, and the one-cycle schedules.

The docstring of `fdl.optim.schedules.decay` describes counts and values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import OptionError, check_kind, check_number, check_ordered
from fdl.optim.checks import check_positive
from fdl.optim.schedules.counting import check_steps, fraction, numbers, reached, scalar, since
from fdl.typing import Schedule

# Interpolation functions (start, end, fraction of the way) -> value. The operations are in the same
# order as in optax, so that results are equal bit for bit.
BETWEEN = {
    "linear": lambda start, end, part: (end - start) * part + start,
    "cosine": lambda start, end, part: end + (start - end) / 2.0 * (jnp.cos(jnp.pi * part) + 1),
}


def piecewise_constant_schedule(
    init_value: Any, boundaries_and_scales: Mapping[int, Any] | None = None
) -> Schedule:
    """Constant pieces: at each boundary the value is multiplied by the scale of that boundary.

    Args:
      init_value: the value before the first boundary.
      boundaries_and_scales: boundary -> scale. The boundary is a count >= 0; the scale is a number
        >= 0. At that count and later, the value is multiplied by the scale. None means no
        boundaries.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; a boundary or a scale is negative.

    Example:
      >>> schedule = piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.5})
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]

    Source: `optax.piecewise_constant_schedule`.
    """
    who = "piecewise_constant_schedule"
    (init,) = numbers(who, init_value=init_value)
    pieces = _pieces(who, boundaries_and_scales)

    def schedule(count: Any) -> jax.Array:
        value = scalar(init)
        for boundary, scale in pieces:
            value = jnp.where(reached(count, boundary), scalar(scale) * value, value)
        return value

    return schedule


def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Any, boundaries_and_scales: Mapping[int, Any] | None = None
) -> Schedule:
    """Like `piecewise_constant_schedule`, but with lines or half cosines instead of jumps.

    Args:
      interpolate_type: "linear" or "cosine".
      init_value: the value at count 0.
      boundaries_and_scales: boundary -> scale. The boundary is a count >= 0; the scale is a number
        >= 0. The value at a boundary is the scale times the value at the previous boundary. At the
        first boundary, it is the scale times init_value. None means no boundaries.

    Returns:
      A schedule.

    Raises:
      ValueError: interpolate_type is unknown; a value is not finite; a boundary or a scale is
        negative.

    Example:
      >>> schedule = piecewise_interpolate_schedule("linear", 1.0, {2: 0.5, 4: 2.0})
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 0.75, 0.5, 0.75, 1.0, 1.0]

    Source: `optax.piecewise_interpolate_schedule`.
    """
    who = "piecewise_interpolate_schedule"
    if interpolate_type not in BETWEEN:
        raise OptionError(
            who,
            f"expected interpolate_type 'linear' or 'cosine', got {interpolate_type!r}; pass "
            "'linear' for straight lines",
        )
    (init,) = numbers(who, init_value=init_value)
    return _interpolated(interpolate_type, init, _pieces(who, boundaries_and_scales))


def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Any,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """One cycle of three straight lines: up to the peak, back to the first value, and below it.

    Args:
      transition_steps: T >= 1, the number of steps of the three lines together.
      peak_value: the value at count = pct_start * T, rounded down.
      pct_start: in [0, 1], the fraction of T in which the value rises.
      pct_final: in [pct_start, 1]. The first value is reached again at count = pct_final * T,
        rounded down.
      div_factor: > 0, the peak value divided by the first value.
      final_div_factor: > 0, the first value divided by the last value.

    Returns:
      A schedule.

    Raises:
      ValueError: peak_value is not finite; transition_steps, pct_start, pct_final, div_factor or
        final_div_factor is out of range.

    Example:
      >>> schedule = linear_onecycle_schedule(10, 1.0, 0.4, 0.8, 4.0, 2.0)
      >>> [round(float(schedule(count)), 4) for count in (0, 2, 4, 8, 10)]
      [0.25, 0.625, 1.0, 0.25, 0.125]

    Source: Smith and Topin 2018, arXiv 1708.07120, section 2; `optax.linear_onecycle_schedule`.
    """
    who, t = "linear_onecycle_schedule", transition_steps
    fractions = {"pct_start": pct_start, "pct_final": pct_final}
    (peak,) = _cycle(who, t, peak_value, fractions, div_factor, final_div_factor)
    pieces = [
        (int(pct_start * t), div_factor),
        (int(pct_final * t), 1.0 / div_factor),
        (t, 1.0 / final_div_factor),
    ]
    return _interpolated("linear", peak / div_factor, pieces)


def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Any,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """One cycle of two half cosines: up to the peak, and down to nearly 0.

    Args:
      transition_steps: T >= 1, the number of steps of the two half cosines together.
      peak_value: the value at count = pct_start * T, rounded down.
      pct_start: in [0, 1], the fraction of T in which the value rises.
      div_factor: > 0, the peak value divided by the first value.
      final_div_factor: > 0, the first value divided by the last value.

    Returns:
      A schedule.

    Raises:
      ValueError: peak_value is not finite; transition_steps, pct_start, div_factor or
        final_div_factor is out of range.

    Example:
      >>> schedule = cosine_onecycle_schedule(10, 1.0, 0.4, 4.0, 2.0)
      >>> [round(float(schedule(count)), 4) for count in (0, 2, 4, 10)]
      [0.25, 0.625, 1.0, 0.125]

    Source: Smith and Topin 2018, arXiv 1708.07120, with cosines as in torch;
    `optax.cosine_onecycle_schedule`.
    """
    who, t = "cosine_onecycle_schedule", transition_steps
    fractions = {"pct_start": pct_start}
    (peak,) = _cycle(who, t, peak_value, fractions, div_factor, final_div_factor)
    pieces = [(int(pct_start * t), div_factor), (int(t), 1.0 / (div_factor * final_div_factor))]
    return _interpolated("cosine", peak / div_factor, pieces)


def _interpolated(kind: str, init: Any, pieces: Sequence[tuple[int, Any]]) -> Schedule:
    def schedule(count: Any) -> jax.Array:
        begin, start = 0, scalar(init)
        value = start
        for boundary, scale in pieces:
            end, length = start * scalar(scale), max(boundary - begin, 1)
            part = fraction(since(count, begin, length), length)
            value = jnp.where(reached(count, begin), BETWEEN[kind](start, end, part), value)
            value = jnp.where(reached(count, boundary), end, value)
            begin, start = boundary, end
        return value

    return schedule


def _pieces(who: str, boundaries: Mapping[int, Any] | None) -> list[tuple[int, Any]]:
    example = "pass {1000: 0.1} to multiply by 0.1 at step 1000"
    kinds = (Mapping, type(None))
    check_kind(who, "boundaries_and_scales", boundaries, kinds, "a dict, step -> number", example)
    for boundary, scale in (boundaries or {}).items():
        check_steps(who, 0, **{"every boundary of boundaries_and_scales": boundary})
        name, remedy = f"boundaries_and_scales[{boundary}]", "pass a factor, such as 0.1"
        check_number(who, name, scale, "[0, inf)", remedy)
    return sorted((boundaries or {}).items())


def _cycle(
    who: str, steps: int, peak: Any, fractions: dict[str, float], div: float, final_div: float
) -> list[Any]:
    """Checks all arguments of a one-cycle schedule and returns the list [peak]."""
    check_steps(who, 1, transition_steps=steps)
    remedy = "pass a fraction of all steps"
    for name, value in fractions.items():
        check_number(who, name, value, "[0, 1]", remedy)
    if len(fractions) == 2:
        pair = (fractions["pct_start"], fractions["pct_final"])
        check_ordered(who, "pct_start <= pct_final", pair, "pass fractions of all steps")
    check_positive(who, "it is a divisor", div_factor=div, final_div_factor=final_div)
    return numbers(who, peak_value=peak)
