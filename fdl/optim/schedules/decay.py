"""Schedules that decay. A schedule is a pure function `count -> value of a hyper-parameter`.

The count is the number of steps taken. It starts at 0 and is an integer of any dtype, traced or
not. The value is a scalar. A schedule can replace any learning rate.

A number of steps in an argument does not have to be whole, for example 0.05 * total. A whole number
of steps is subtracted from the count exactly, as an integer, before any division. In the formulas,
T is transition_steps or decay_steps, and t is count - transition_begin, clipped to [0, T].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.optim.checks import check_positive
from fdl.optim.schedules.counting import (
    as_count,
    check_steps,
    fraction,
    is_whole,
    numbers,
    scalar,
    since,
)
from fdl.typing import Schedule


def constant_schedule(value: Any) -> Schedule:
    """The same value at every step.

    Args:
      value: any number.

    Returns:
      A schedule.

    Raises:
      ValueError: the value is not finite.

    Example:
      >>> float(constant_schedule(0.5)(1000))
      0.5

    Source: `optax.constant_schedule`. Unlike here, optax returns the value unchanged, in its own
    type.
    """
    (value,) = numbers("constant_schedule", value=value)
    return lambda count: scalar(value)


def linear_schedule(
    init_value: Any, end_value: Any, transition_steps: Any, transition_begin: Any = 0
) -> Schedule:
    """A straight line: init + t / T (end - init).

    Args:
      init_value: the value before and at `transition_begin`.
      end_value: the value at count transition_begin + T and later.
      transition_steps: T >= 1, the number of steps from init_value to end_value.
      transition_begin: >= 0, the count at which the value starts to change.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps are out of range.

    Example:
      >>> schedule = linear_schedule(1.0, 0.0, transition_steps=4)
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    Source: `optax.linear_schedule`. Unlike here, optax accepts T <= 0 and then stays at
    init_value.
    """
    ends, steps = (init_value, end_value), (transition_steps, transition_begin)
    return _polynomial("linear_schedule", ends, 1, steps)


def polynomial_schedule(
    init_value: Any, end_value: Any, power: Any, transition_steps: Any, transition_begin: Any = 0
) -> Schedule:
    """A power of the remaining fraction of the steps: end + (init - end) (1 - t / T)^power.

    Args:
      init_value: the value before and at `transition_begin`.
      end_value: the value at count transition_begin + T and later.
      power: > 0. With 1, the curve is a straight line; with 2, it starts steep and ends flat.
      transition_steps: T >= 1, the number of steps from init_value to end_value.
      transition_begin: >= 0, the count at which the value starts to change.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps or power are out of range.

    Example:
      >>> schedule = polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)
      >>> [float(schedule(count)) for count in range(6)]
      [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]

    Source: `optax.polynomial_schedule`. Unlike here, optax accepts T <= 0 and then stays at
    init_value.
    """
    ends, steps = (init_value, end_value), (transition_steps, transition_begin)
    return _polynomial("polynomial_schedule", ends, power, steps)


def exponential_decay(
    init_value: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: Any = 0,
    staircase: bool = False,
    end_value: Any = None,
) -> Schedule:
    """Exponential decay: init * decay_rate^(t / T).

    Args:
      init_value: the value before and at `transition_begin`.
      transition_steps: T >= 1. In this schedule, t can become larger than T.
      decay_rate: > 0, the factor by which the value changes in T steps. 0 raises an error, because
        it would make the value 0 after the first step. Unlike here, optax treats 0 as no decay; for
        no decay, use `constant_schedule`.
      transition_begin: >= 0, the count at which the value starts to change.
      staircase: True changes the value only once every T steps.
      end_value: the value at which the decay stops, or the growth if decay_rate is above 1. None
        means no bound. If decay_rate is 1, the value is min(init_value, end_value) at every count.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps are out of range; decay_rate is 0 or negative.

    Example:
      >>> schedule = exponential_decay(1.0, transition_steps=2, decay_rate=0.25, end_value=0.1)
      >>> [round(float(schedule(count)), 4) for count in range(5)]
      [1.0, 0.5, 0.25, 0.125, 0.1]

    Source: `optax.exponential_decay`. Unlike here, optax accepts T <= 0 and decay_rate=0, and then
    stays at init_value.
    """
    elapsed = _periods("exponential_decay", transition_steps, transition_begin, staircase)
    init, rate = numbers("exponential_decay", init_value=init_value, decay_rate=decay_rate)
    remedy = "it is a factor; for no decay, use constant_schedule"
    check_number("exponential_decay", "decay_rate", decay_rate, "(0, inf]", remedy)
    if end_value is not None:
        numbers("exponential_decay", end_value=end_value)

    def schedule(count: Any) -> jax.Array:
        value = init * jnp.power(scalar(rate), elapsed(count))
        if end_value is None:
            return scalar(value)
        end = scalar(end_value)
        return jnp.where(jnp.asarray(rate < 1), jnp.maximum(value, end), jnp.minimum(value, end))

    return schedule


def inverse_time_decay(
    init_value: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: Any = 0,
    staircase: bool = False,
) -> Schedule:
    """Inverse time decay: init / (1 + decay_rate * t / T).

    Args:
      init_value: the value before and at `transition_begin`.
      transition_steps: T >= 1. In this schedule, t can become larger than T.
      decay_rate: >= 0.
      transition_begin: >= 0, the count at which the value starts to change.
      staircase: True changes the value only once every T steps.

    Returns:
      A schedule. It is not in optax.

    Raises:
      ValueError: a value is not finite; steps are out of range; decay_rate is negative.

    Example:
      >>> schedule = inverse_time_decay(1.0, transition_steps=2, decay_rate=1.0)
      >>> [round(float(schedule(count)), 4) for count in (0, 2, 6)]
      [1.0, 0.5, 0.25]

    Source: Bottou 2012, "Stochastic gradient descent tricks", section 5.2, with the
    arguments of `exponential_decay`.
    """
    elapsed = _periods("inverse_time_decay", transition_steps, transition_begin, staircase)
    init, rate = numbers("inverse_time_decay", init_value=init_value, decay_rate=decay_rate)
    remedy = "a negative value can make the schedule divide by 0"
    check_number("inverse_time_decay", "decay_rate", decay_rate, "[0, inf]", remedy)
    return lambda count: scalar(init / (1 + rate * elapsed(count)))


def inverse_sqrt_schedule(peak_value: Any, warmup_steps: Any) -> Schedule:
    """Linear warm-up, then inverse square root: peak * min(count / warmup, sqrt(warmup / count)).

    Args:
      peak_value: the value at count = warmup_steps.
      warmup_steps: >= 1, the number of steps of the warm-up.

    Returns:
      A schedule. It is not in optax.

    Raises:
      ValueError: peak_value is not finite; warmup_steps is below 1.

    Example:
      >>> schedule = inverse_sqrt_schedule(1.0, warmup_steps=4)
      >>> [float(schedule(count)) for count in (0, 2, 4, 16)]
      [0.0, 0.5, 1.0, 0.5]

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 3, whose peak is
    (d_model * warmup_steps)^(-1/2).
    """
    (peak,) = numbers("inverse_sqrt_schedule", peak_value=peak_value)
    check_steps("inverse_sqrt_schedule", 1, warmup_steps=warmup_steps)

    def schedule(count: Any) -> jax.Array:
        rise = fraction(since(count, 0, warmup_steps), warmup_steps)
        beyond = jnp.maximum(fraction(since(count, 0), warmup_steps), 1)
        return scalar(peak * rise / jnp.sqrt(beyond))

    return schedule


def cosine_decay_schedule(
    init_value: Any, decay_steps: Any, alpha: Any = 0.0, exponent: Any = 1.0
) -> Schedule:
    """Half a cosine: init * (alpha + (1 - alpha) ((1 + cos(pi t / T)) / 2)^exponent).

    Args:
      init_value: the value at count 0.
      decay_steps: T >= 1, the number of steps after which the value is constant.
      alpha: the last value, divided by init_value.
      exponent: > 0. With an exponent above 1 the value falls sooner.

    Returns:
      A schedule.

    Raises:
      ValueError: a value is not finite; steps or exponent are out of range.

    Example:
      >>> schedule = cosine_decay_schedule(1.0, decay_steps=4, alpha=0.5)
      >>> [round(float(schedule(count)), 3) for count in (0, 2, 4, 5)]
      [1.0, 0.75, 0.5, 0.5]

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5; `optax.cosine_decay_schedule`.
    """
    who = "cosine_decay_schedule"
    init, alpha, exponent = numbers(who, init_value=init_value, alpha=alpha, exponent=exponent)
    check_steps(who, 1, decay_steps=decay_steps)
    check_positive(who, "with 1, the schedule is half a cosine", exponent=exponent)

    def schedule(count: Any) -> jax.Array:
        angle = fraction(jnp.pi * scalar(since(count, 0, decay_steps)), decay_steps)
        cosine = 0.5 * (1 + jnp.cos(angle))
        return scalar(init * ((1 - alpha) * cosine**exponent + alpha))

    return schedule


def _polynomial(who: str, ends: tuple[Any, Any], power: Any, steps: tuple[Any, Any]) -> Schedule:
    init, end, power = numbers(who, init_value=ends[0], end_value=ends[1], power=power)
    check_positive(who, "with 1, the schedule is a straight line", power=power)
    transition_steps, transition_begin = steps
    check_steps(who, 1, transition_steps=transition_steps)
    check_steps(who, 0, transition_begin=transition_begin)

    def schedule(count: Any) -> jax.Array:
        done = fraction(since(count, transition_begin, transition_steps), transition_steps)
        # Rounding can make `done` larger than 1. The maximum keeps `left` from being negative,
        # because a power of a negative number can be NaN.
        left = jnp.maximum(1 - done, 0)
        return scalar((init - end) * left**power + end)

    return schedule


def _periods(who: str, steps: Any, begin: Any, staircase: bool) -> Callable[[Any], jax.Array]:
    """count -> t / T, rounded down for a staircase.

    The staircase of whole numbers of steps is computed exactly, by integer division.
    """
    check_steps(who, 1, transition_steps=steps)
    check_steps(who, 0, transition_begin=begin)

    def elapsed(count: Any) -> jax.Array:
        t = since(count, begin)
        if not staircase:
            return fraction(t, steps)
        exact = is_whole(steps) and jnp.issubdtype(t.dtype, jnp.integer)
        return scalar(t // as_count(steps, t) if exact else jnp.floor(fraction(t, steps)))

    return elapsed
