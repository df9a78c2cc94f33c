"""Gradient descent, plain, with momentum, and with Nesterov's; and steps by the sign alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs, ScaleByLionState, ScaleByRpropState, TraceState

from fdl.checks import check_number, check_ordered, known, named_in_errors, said
from fdl.ops.numerics import saturated
from fdl.optim.chaining import chain
from fdl.optim.checks import (
    check_fractions,
    check_momenta,
    check_positive,
    check_rate,
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

    With momentum m, the trace t of past gradients takes the gradient's place:

        t = gradient + m * t
        W -= learning_rate * t                     (momentum)
        W -= learning_rate * (gradient + m * t)    (Nesterov)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      momentum: m in [-1, 1], or None for no trace at all; see `trace`.
      nesterov: take the step as seen from where momentum leads.
      accumulator_dtype: of the trace; by default the parameters', float32 at least.
      dampening: d in [0, 1), which makes the trace t = (1 - d) * gradient + m * t, but for the
        first gradient, which is taken whole. It needs a momentum other than 0, without nesterov;
        None or 0 for none.

    Returns:
      A transformation whose updates are to be added; the state is that of `optax.sgd`, and has a
      count besides if there is a dampening.

    Raises:
      ValueError: a rate that is negative or not finite; momentum outside [-1, 1]; dampening outside
        [0, 1), without momentum or with nesterov.

    Example:
      >>> optimizer, params = sgd(0.5), {"w": jnp.ones(2)}
      >>> updates, _ = optimizer.update({"w": jnp.array([1.0, 3.0])}, optimizer.init(params))
      >>> updates["w"]
      Array([-0.5, -1.5], dtype=float32)

    Source: Robbins and Monro 1951; Polyak 1964; Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning", equations 1 to 4, with the rate outside the
    trace, as optax and torch have it (the paper puts it inside). Dampening is torch's.
    """
    dampening = None if _is_zero(dampening) else dampening
    if dampening is not None and (momentum is None or _is_zero(momentum) or nesterov):
        raise ValueError(
            f"sgd: expected a momentum, without nesterov, for dampening, got momentum "
            f"{said(momentum)} and nesterov {nesterov}; leave dampening out"
        )
    direction = (
        stateless("sgd", lambda g: g)
        if momentum is None
        else trace(momentum, nesterov, accumulator_dtype, dampening=dampening)
    )
    return chain(direction, scale_by_learning_rate(learning_rate))


def _is_zero(value: Any) -> bool:
    return known(value) and bool(value == 0)


class DampenedTraceState(NamedTuple):
    """As `optax.TraceState`, and the number of gradients so far."""

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
      decay: in [-1, 1]. 1 adds all gradients up; a negative one, which turns against the last step,
        serves two players (Gidel et al. 2019, arXiv 1807.04740). Beyond 1, where optax lets it
        grow, a trace has no bound.
      nesterov: give gradient + decay * t instead of t.
      accumulator_dtype: of t; by default the parameters', float32 at least.
      dampening: d in [0, 1): t = (1 - d) * gradient + decay * t after the first gradient, as torch.

    Returns:
      A transformation with state `optax.TraceState(trace)`, or with dampening
      `DampenedTraceState(count, trace)`.

    Raises:
      ValueError: decay outside [-1, 1]; dampening outside [0, 1); gradients of another tree than
        the state's.

    Example:
      >>> transform = trace(0.5)
      >>> state = transform.init(jnp.array(0.0))
      >>> first, state = transform.update(jnp.array(1.0), state)
      >>> second, state = transform.update(jnp.array(1.0), state)
      >>> float(first), float(second)
      (1.0, 1.5)

    Source: Sutskever et al. 2013, equations 1 and 3; `optax.trace`.
    """
    check_number("trace", "decay (momentum)", decay, "[-1, 1]", "beyond 1 the trace has no bound")
    slots = {"trace": filled(dtype=accumulator_dtype)}

    def moved(g: Any, share: Any, t: Any) -> Any:
        new = saturated(share + decay * t, share, t)
        return saturated(g + decay * new, g, new) if nesterov else new, new

    if dampening is None:
        return leafwise("trace", lambda: lambda g, t: moved(g, g, t), TraceState, slots)
    check_fractions("trace", dampening=dampening)

    def at_step(count: jax.Array) -> Callable[..., Any]:
        return lambda g, t: moved(g, jnp.where(count == 1, g, (1 - dampening) * g), t)

    return leafwise("trace", at_step, DampenedTraceState, slots, counted=True)


@named_in_errors
def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransformationExtraArgs:
    """Steps of one size by the sign: W -= learning_rate * sign(gradient).

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`; the size of every step.

    Returns:
      A transformation; the state is that of `optax.sign_sgd`.

    Raises:
      ValueError: a rate that is negative or not finite.

    Example:
      >>> optimizer = sign_sgd(0.5)
      >>> optimizer.update(jnp.array([3.0, -0.1, 0.0]), optimizer.init(jnp.ones(3)))[0]
      Array([-0.5,  0.5, -0. ], dtype=float32)

    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 1.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def scale_by_sign() -> GradientTransformationExtraArgs:
    """sign(gradient): -1, 0 or 1; for a complex one, gradient / |gradient|.

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
    """Lion: the sign of a momentum, which itself moves more slowly.

        c = b1 m + (1 - b1) g
        m = b2 m + (1 - b2) g
        W -= learning_rate * (sign(c) + weight_decay * W)

    Args:
      learning_rate: >= 0, or a schedule; 3 to 10 times smaller than for AdamW.
      b1: in (-1, 1), of the step.
      b2: in (-1, 1), of the momentum.
      mu_dtype: of m; by default the parameters', float32 at least.
      weight_decay: >= 0, or a schedule.
      mask: what to decay; see `masked`.

    Returns:
      A transformation; the state is that of `optax.lion`.

    Raises:
      ValueError: a rate or decay that is negative or not finite; b1 or b2 outside (-1, 1).

    Example:
      >>> optimizer, w = lion(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, 7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.501, -0.499]

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2. The same in optax.
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
    """The direction of `lion`, whose arguments these are; c is its momentum as of this step.

    Args:
      b1: in (-1, 1), of the step.
      b2: in (-1, 1), of the momentum.
      mu_dtype: of m; by default the parameters', float32 at least.
      mode: "hard", sign(c); "smooth", tanh(smooth_beta c); or "refined", c itself where it is
        shorter than 1, else sign(c).
      smooth_beta: > 0, how steep the smooth one is at 0.

    Returns:
      A transformation with state `optax.ScaleByLionState(count, mu)`.

    Raises:
      ValueError: b1 or b2 outside (-1, 1); a mode that does not exist; a smooth_beta out of range.

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
        raise ValueError(
            f"scale_by_lion: expected a mode of {', '.join(signs)}, got {said(mode)}; take 'hard', "
            "the paper's"
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
    """Resilient propagation: every weight has a step size of its own, grown or cut by signs.

    Where the gradient keeps its sign, size *= eta_plus; where it turns, size *= eta_minus, and the
    weight rests for that step. W -= size * sign(g). For whole batches, not for noisy gradients.

    Args:
      learning_rate: the first size, >= 0.
      eta_minus: in (0, 1).
      eta_plus: > 1.
      min_step_size: the smallest size, >= 0.
      max_step_size: the largest, >= min_step_size; may be infinite.
      delayed: emit the update of the step before, as optax 0.2.8 does.

    Returns:
      A transformation; the state is that of `optax.rprop`.

    Raises:
      ValueError: a rate that is negative or not finite; factors on the wrong side of 1; sizes that
        are negative, or in the wrong order.

    Example:
      >>> optimizer = rprop(0.5)
      >>> state = optimizer.init(jnp.array(0.0))
      >>> first, state = optimizer.update(jnp.array(3.0), state)
      >>> second, state = optimizer.update(jnp.array(0.1), state)
      >>> round(float(first), 3), round(float(second), 3)
      (-0.5, -0.6)

    Source: Igel and Huesken 2003, "Empirical evaluation of the improved Rprop learning
    algorithms", section 2.4 (iRprop-, as torch). optax emits each update one step late.
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
    """size * sign(g) of `rprop`, uphill.

    Example:
      >>> transform = scale_by_rprop(0.5)
      >>> transform.update(jnp.array([3.0, -3.0]), transform.init(jnp.ones(2)))[0]
      Array([ 0.5, -0.5], dtype=float32)
    """
    check_rate("rprop", learning_rate)
    check_number("rprop", "eta_minus", eta_minus, "(0, 1)", "0.5 is usual")
    check_number("rprop", "eta_plus", eta_plus, "(1, inf]", "1.2 is usual")
    check_number("rprop", "min_step_size", min_step_size, "[0, inf]", "it bounds every step")
    sizes = (min_step_size, max_step_size)
    check_ordered("rprop", "min_step_size <= max_step_size", sizes, "they bound every step")

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
    return leafwise("scale_by_rprop", at_step, ScaleByRpropState, slots)
