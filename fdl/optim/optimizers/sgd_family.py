"""Gradient descent, with and without momentum, and optimizers that use the sign of the gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs, ScaleByLionState, ScaleByRpropState, TraceState

from fdl.checks import OptionError, check_number, check_ordered, described, is_zero, named_in_errors
from fdl.ops.numerics import saturated
from fdl.optim.chaining import chain
from fdl.optim.checks import (
    check_momenta,
    check_positive,
    check_traces,
)
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import filled, leafwise, stateless
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: float | None = None,
) -> GradientTransformationExtraArgs:
    """Gradient descent: W -= learning_rate * gradient.

    With momentum m, the step follows the trace t, a decaying sum of past gradients:

        t = gradient + m * t
        W -= learning_rate * t                     (nesterov=False)
        W -= learning_rate * (gradient + m * t)    (nesterov=True)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      momentum: m in [-1, 1]; see `trace`. None means that there is no trace.
      nesterov: True steps along gradient + m * t instead of t.
      accumulator_dtype: dtype of the trace; by default the parameters' dtype, at least float32.
      dampening: d in [0, 1): t = (1 - d) * gradient + m * t, except at the first step, where t is
        the gradient. A dampening above 0 needs a momentum that is not 0, and nesterov=False. None
        or 0 means no dampening.

    Returns:
      A transformation whose updates are added to params. It has the same state as `optax.sgd`. With
      dampening, the state also counts the steps.

    Raises:
      ValueError: the rate is negative or not finite; momentum is outside [-1, 1]; dampening is
        outside [0, 1); dampening is given, but momentum is None or 0, or nesterov is True.

    Example:
      >>> optimizer, params = sgd(0.5), {"w": jnp.ones(2)}
      >>> updates, _ = optimizer.update({"w": jnp.array([1.0, 3.0])}, optimizer.init(params))
      >>> updates["w"]
      Array([-0.5, -1.5], dtype=float32)

    Source: Robbins and Monro 1951; Polyak 1964; Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning", equations 1 to 4, with the rate outside the
    trace, as in optax and torch; in the paper the rate is inside. Dampening is as in torch.
    """
    if momentum is not None:
        check_traces("sgd", momentum=momentum)
    dampening = None if is_zero(dampening) else dampening
    if dampening is not None and (momentum is None or is_zero(momentum) or nesterov):
        raise OptionError(
            "sgd",
            "expected a momentum other than 0 and nesterov=False with dampening, got momentum "
            f"{described(momentum)} and nesterov {nesterov}; leave dampening out, or pass a "
            "momentum and nesterov=False",
        )
    direction = (
        stateless("sgd", lambda g: g)
        if momentum is None
        else trace(momentum, nesterov, accumulator_dtype, dampening=dampening)
    )
    return chain(direction, scale_by_learning_rate(learning_rate))


class DampenedTraceState(NamedTuple):
    """The fields of `optax.TraceState`, and `count`, the number of steps so far."""

    count: Any
    trace: Any


def trace(
    decay: float,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: float | None = None,
) -> GradientTransformationExtraArgs:
    """The trace of past gradients: t = gradient + decay * t.

    Args:
      decay: in [-1, 1]. With 1, t is the sum of all gradients. A negative decay helps in games of
        two players (Gidel et al. 2019, arXiv 1807.04740). optax also accepts other values, which
        can make the trace grow exponentially.
      nesterov: True returns gradient + decay * t instead of t.
      accumulator_dtype: dtype of t; by default the parameters' dtype, at least float32.
      dampening: d in [0, 1): t = (1 - d) * gradient + decay * t after the first step, as in torch.
        None means no dampening.

    Returns:
      A transformation with state `optax.TraceState(trace)`, or with dampening
      `DampenedTraceState(count, trace)`.

    Raises:
      ValueError: decay is outside [-1, 1]; dampening is outside [0, 1); at update, the gradients
        and the state have different structures.

    Example:
      >>> transform = trace(0.5)
      >>> state = transform.init(jnp.array(0.0))
      >>> first, state = transform.update(jnp.array(1.0), state)
      >>> second, state = transform.update(jnp.array(1.0), state)
      >>> float(first), float(second)
      (1.0, 1.5)

    Source: Sutskever et al. 2013, equations 1 and 3; `optax.trace`.
    """
    check_traces("trace", decay=decay)
    slots = {"trace": filled(dtype=accumulator_dtype)}

    def moved(g: Any, added: Any, t: Any) -> Any:
        new = saturated(added + decay * t, added, t)
        return saturated(g + decay * new, g, new) if nesterov else new, new

    if dampening is None:
        return leafwise("trace", lambda: lambda g, t: moved(g, g, t), TraceState, slots)
    check_number("trace", "dampening", dampening, "[0, 1)", "0 means no dampening")

    def at_step(count: jax.Array) -> Callable[..., Any]:
        return lambda g, t: moved(g, jnp.where(count == 1, g, (1 - dampening) * g), t)

    return leafwise("trace", at_step, DampenedTraceState, slots, counted=True)


@named_in_errors
def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransformationExtraArgs:
    """Sign descent: W -= learning_rate * sign(gradient).

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0. It is the size of
        each step.

    Returns:
      A transformation with the same state as `optax.sign_sgd`.

    Raises:
      ValueError: the rate is negative or not finite.

    Example:
      >>> optimizer = sign_sgd(0.5)
      >>> optimizer.update(jnp.array([3.0, -0.1, 0.0]), optimizer.init(jnp.ones(3)))[0]
      Array([-0.5,  0.5, -0. ], dtype=float32)

    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 1.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def scale_by_sign() -> GradientTransformationExtraArgs:
    """sign(gradient): -1, 0 or 1. For a complex gradient, gradient / |gradient|.

    Returns:
      A transformation without state.

    Example:
      >>> scale_by_sign().update(jnp.array([3.0, -0.1]), scale_by_sign().init(None))[0]
      Array([ 1., -1.], dtype=float32)
    """
    return stateless("scale_by_sign", jnp.sign)


@named_in_errors
def lion(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """Lion: steps along the sign of c, a mean of the gradient and its running mean m.

        c = b1 m + (1 - b1) g
        m = b2 m + (1 - b2) g
        W -= learning_rate * (sign(c) + weight_decay * W)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0. Good rates are 3
        to 10 times smaller than for AdamW.
      b1: in (-1, 1), the share of m in c.
      b2: in (-1, 1), the share of m that each step keeps.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      weight_decay: >= 0, or a schedule.
      mask: which leaves to decay; see `masked`.

    Returns:
      A transformation with the same state as `optax.lion`.

    Raises:
      ValueError: the rate or the decay is negative or not finite; b1 or b2 is outside (-1, 1).

    Example:
      >>> optimizer, w = lion(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, 7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.501, -0.499]

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2. Gives the same results as optax.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def scale_by_lion(
    b1: float = 0.9,
    b2: float = 0.99,
    mu_dtype: Any = None,
    *,
    mode: str = "hard",
    smooth_beta: float = 1.0,
) -> GradientTransformationExtraArgs:
    """The direction of `lion`: sign(c), or a smooth function like it.

    Args:
      b1: in (-1, 1), the share of m in c.
      b2: in (-1, 1), the share of m that each step keeps.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      mode: "hard" for sign(c); "smooth" for tanh(smooth_beta c); "refined" for c where |c| < 1 and
        sign(c) elsewhere.
      smooth_beta: > 0, the slope of "smooth" at 0.

    Returns:
      A transformation with state `optax.ScaleByLionState(count, mu)`.

    Raises:
      ValueError: b1 or b2 is outside (-1, 1); mode is unknown; smooth_beta is 0 or negative.

    Example:
      >>> transform = scale_by_lion()
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0]
      Array([ 1., -1.], dtype=float32)
    """
    check_momenta("scale_by_lion", b1=b1, b2=b2)
    check_positive("scale_by_lion", "1 is usual", smooth_beta=smooth_beta)
    signs: dict[str, Callable[[Any], Any]] = {
        "hard": jnp.sign,
        "smooth": lambda c: jnp.tanh(smooth_beta * c),
        "refined": lambda c: jnp.where(jnp.abs(c) < 1, c, jnp.sign(c)),
    }
    if mode not in signs:
        raise OptionError(
            "scale_by_lion",
            f"expected mode to be one of {', '.join(signs)}, got {described(mode)}; the paper uses "
            "'hard'",
        )

    def at_step(t: jax.Array) -> Callable[..., Any]:
        def rule(g: Any, m: Any) -> Any:
            c = (1 - b1) * g + b1 * m
            return signs[mode](c), (1 - b2) * g + b2 * m

        return rule

    return leafwise(
        "scale_by_lion", at_step, ScaleByLionState, {"mu": filled(dtype=mu_dtype)}, counted=True
    )


@named_in_errors
def rprop(
    learning_rate: float,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
    *,
    delayed: bool = False,
) -> GradientTransformationExtraArgs:
    """Resilient propagation: W -= size * sign(g), with a separate step size for each weight.

    Where the gradient keeps its sign, size *= eta_plus. Where the gradient changes sign, size *=
    eta_minus, and the weight does not move in this step. Rprop is made for gradients of the whole
    data set, not for noisy gradients.

    Args:
      learning_rate: the first size, >= 0; not a schedule.
      eta_minus: in (0, 1), the factor by which a step size shrinks.
      eta_plus: > 1, the factor by which a step size grows.
      min_step_size: the smallest size, >= 0.
      max_step_size: the largest size, >= min_step_size; may be infinite.
      delayed: True returns the update of the previous step, as optax 0.2.8 does, except where the
        gradient changes sign: there, the update is 0.

    Returns:
      A transformation with the same state as `optax.rprop`.

    Raises:
      ValueError: the rate is a schedule, negative or not finite; eta_minus is outside (0, 1);
        eta_plus is not above 1; min_step_size is negative or above max_step_size.

    Example:
      >>> optimizer = rprop(0.5)
      >>> state = optimizer.init(jnp.array(0.0))
      >>> first, state = optimizer.update(jnp.array(3.0), state)
      >>> second, state = optimizer.update(jnp.array(0.1), state)
      >>> round(float(first), 3), round(float(second), 3)
      (-0.5, -0.6)

    Source: Igel and Huesken 2003, "Empirical evaluation of the improved Rprop learning
    algorithms", section 2.4 (iRprop-, as in torch). Unlike here, optax returns each update one
    step late.
    """
    return chain(
        scale_by_rprop(
            learning_rate, eta_minus, eta_plus, min_step_size, max_step_size, delayed=delayed
        ),
        stateless("rprop", lambda g: -1.0 * g),
    )


def scale_by_rprop(
    learning_rate: float,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
    *,
    delayed: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `rprop`: size * sign(g), or 0 where the gradient changes sign.

    `rprop` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByRpropState(step_sizes, prev_updates)`.

    Example:
      >>> transform = scale_by_rprop(0.5)
      >>> transform.update(jnp.array([3.0, -3.0]), transform.init(jnp.ones(2)))[0]
      Array([ 0.5, -0.5], dtype=float32)
    """
    who = "scale_by_rprop"
    check_number(who, "learning_rate", learning_rate, "[0, inf)", "it is the first step size")
    check_number(who, "eta_minus", eta_minus, "(0, 1)", "0.5 is usual")
    check_number(who, "eta_plus", eta_plus, "(1, inf]", "1.2 is usual")
    check_number(who, "min_step_size", min_step_size, "[0, inf]", "it is the smallest step size")
    sizes = (min_step_size, max_step_size)
    check_ordered(
        who,
        "min_step_size <= max_step_size",
        sizes,
        "they are the smallest and the largest step size",
    )

    def at_step() -> Callable[..., Any]:
        def rule(g: Any, size: Any, last: Any) -> Any:
            agreement = jnp.sign(g) * last
            factor = jnp.where(agreement > 0, eta_plus, eta_minus)
            resized = jnp.clip(size * factor, min_step_size, max_step_size)
            size = jnp.where(agreement == 0, size, resized)
            u = jnp.where(agreement < 0, 0.0, size * jnp.sign(g))
            return jnp.where(agreement < 0, 0.0, last) if delayed else u, size, u

        return rule

    slots = {"step_sizes": filled(learning_rate), "prev_updates": filled()}
    return leafwise(who, at_step, ScaleByRpropState, slots)
