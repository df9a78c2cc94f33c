"""AdaGrad, RMSProp, AdaDelta: each weight has a step size that depends on its past gradients.

In the formulas, g is the gradient, v is a sum or a mean of g^2, and t is the step, which starts at
1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import (
    GradientTransformationExtraArgs,
    ScaleByAdaDeltaState,
    ScaleByRmsState,
    ScaleByRssState,
    ScaleByRStdDevState,
)

from fdl.checks import named_in_errors
from fdl.ops.numerics import bounded, squared_size
from fdl.optim.chaining import chain
from fdl.optim.checks import check_fractions, check_least, check_traces
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import filled, leafwise, stateless
from fdl.optim.moments import corrected, correction
from fdl.optim.optimizers.sgd_family import trace
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> GradientTransformationExtraArgs:
    """AdaGrad: steps divided by the root of the sum of all squared gradients so far.

        v = v + g^2,     W -= learning_rate * g / sqrt(v + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      initial_accumulator_value: the first value of v, >= 0.
      eps: >= 0, added inside the root.

    Returns:
      A transformation with the same state as `optax.adagrad`.

    Raises:
      ValueError: the rate, initial_accumulator_value or eps is negative or not finite.

    Example:
      >>> optimizer = adagrad(0.5, initial_accumulator_value=0.0)
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(jnp.ones(2)))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Duchi, Hazan and Singer 2011, figure 1. eps is added inside the root, as in optax; the
    paper and torch add it outside. v never falls, so one huge gradient makes all later steps tiny.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate)
    )


def scale_by_rss(
    initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> GradientTransformationExtraArgs:
    """The direction of `adagrad`: g / sqrt(v + eps), or 0 where v is 0.

    `adagrad` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByRssState(sum_of_squares)`.

    Example:
      >>> transform = scale_by_rss(0.0)
      >>> transform.update(jnp.array([0.1, 0.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([1., 0.], dtype=float32)
    """
    check_least("scale_by_rss", initial_accumulator_value=initial_accumulator_value, eps=eps)

    def at_step() -> Callable[..., Any]:
        def rule(g: Any, v: Any) -> Any:
            g, square = bounded(g)
            v = square + jnp.minimum(v, float(jnp.finfo(v.dtype).max) / 2)
            return jnp.where(v > 0, jax.lax.rsqrt(v + eps), 0.0) * g, v

        return rule

    slots = {"sum_of_squares": filled(initial_accumulator_value)}
    return leafwise("scale_by_rss", at_step, ScaleByRssState, slots)


@named_in_errors
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformationExtraArgs:
    """RMSProp: steps divided by the root of a running mean of squared gradients.

        v = decay v + (1 - decay) g^2,     W -= learning_rate * g / sqrt(v + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      decay: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added to v or to its root; see eps_in_sqrt.
      initial_scale: the first value of v, >= 0.
      eps_in_sqrt: True divides by sqrt(v + eps). False divides by sqrt(v) + eps, as torch does.
      centered: True divides by the standard deviation sqrt(v - m^2), where m is the running mean
        of g.
      momentum: in [-1, 1], the decay of a `trace` of the steps. The steps are multiplied by the
        rate before they enter the trace. None means no momentum.
      nesterov: True uses Nesterov's form of the momentum; see `trace`.
      bias_correction: True divides v and m by 1 - decay^t.

    Returns:
      A transformation with the same state as `optax.rmsprop`.

    Raises:
      ValueError: the rate, eps or initial_scale is negative or not finite; decay is outside [0, 1),
        or momentum outside [-1, 1].

    Example:
      >>> optimizer = rmsprop(0.5, decay=0.75)
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(jnp.ones(2)))[0].round(3)
      Array([-1.,  1.], dtype=float32)

    Source: Hinton 2012, "Neural networks for machine learning", lecture 6e; Graves 2013, arXiv
    1308.0850, equations 38 to 45, for the centered form. Gives the same results as optax, except
    where rounding makes the number under the root negative. This can happen at the first step with
    bias_correction. There, optax gives NaN, and fdl replaces v - m^2 by machine epsilon * v, which
    is about the rounding error of v - m^2.
    """
    if momentum is not None:
        check_traces("rmsprop", momentum=momentum)
    scale = scale_by_stddev if centered else scale_by_rms
    return chain(
        scale(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        stateless("rmsprop", lambda g: g) if momentum is None else trace(momentum, nesterov),
    )


def scale_by_rms(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `rmsprop`: g / sqrt(v + eps).

    `rmsprop` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByRmsState(nu)`. With bias_correction, the state also
      counts the steps.

    Example:
      >>> transform = scale_by_rms(0.75)
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([ 2., -2.], dtype=float32)
    """
    check_fractions("scale_by_rms", decay=decay)
    check_least("scale_by_rms", eps=eps, initial_scale=initial_scale)

    def at_step(*t: jax.Array) -> Callable[..., Any]:
        unbiased = _without_bias(decay, *t)

        def rule(g: Any, v: Any) -> Any:
            g, square = bounded(g)
            v = (1 - decay) * square + decay * v
            return _over_root(unbiased(v), eps, eps_in_sqrt) * g, v

        return rule

    make = _counted_state(optax.scale_by_rms) if bias_correction else ScaleByRmsState
    slots = {"nu": filled(initial_scale)}
    return leafwise("scale_by_rms", at_step, make, slots, counted=bias_correction)


def scale_by_stddev(
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `rmsprop` with centered=True: g / sqrt(v - m^2 + eps).

    m is the running mean of g. `rmsprop` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByRStdDevState(mu, nu)`. With bias_correction, the
      state also counts the steps.

    Example:
      >>> transform = scale_by_stddev(0.5)
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([ 2., -2.], dtype=float32)
    """
    check_fractions("scale_by_stddev", decay=decay)
    check_least("scale_by_stddev", eps=eps, initial_scale=initial_scale)

    def at_step(*t: jax.Array) -> Callable[..., Any]:
        unbiased = _without_bias(decay, *t)

        def rule(g: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            m = (1 - decay) * g + decay * m
            v = (1 - decay) * square + decay * v
            v_hat = unbiased(v)
            variance = v_hat - squared_size(unbiased(m))
            # Rounding can make the variance negative. A number of the size of this rounding error
            # then replaces it.
            known = variance + eps > 0 if eps_in_sqrt else variance >= 0
            variance = jnp.where(known, variance, jnp.finfo(v_hat.dtype).eps * v_hat)
            return _over_root(variance, eps, eps_in_sqrt) * g, m, v

        return rule

    make = _counted_state(optax.scale_by_stddev) if bias_correction else ScaleByRStdDevState
    slots = {"mu": filled(), "nu": filled(initial_scale)}
    return leafwise("scale_by_stddev", at_step, make, slots, counted=bias_correction)


@named_in_errors
def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """AdaDelta: the steps have the units of the weights, so no learning rate is needed.

        v = rho v + (1 - rho) g^2
        u = sqrt(x + eps) / sqrt(v + eps) * g
        x = rho x + (1 - rho) u^2,     W -= learning_rate * u

    v is the running mean of g^2, and x is the running mean of u^2.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0. None means 1, as
        in the paper.
      rho: in [0, 1), the share of v and of x that each step keeps.
      eps: >= 0, added to v and to x inside the roots.
      weight_decay: >= 0, or a schedule. weight_decay * W is added to the gradient (L2
        regularization).
      weight_decay_mask: which leaves to decay; see `masked`.

    Returns:
      A transformation with the same state as `optax.adadelta`.

    Raises:
      ValueError: the rate, the decay or eps is negative or not finite; rho is outside [0, 1).

    Example:
      >>> optimizer, w = adadelta(eps=0.1), jnp.ones(2)
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.1, 0.99]

    Source: Zeiler 2012, arXiv 1212.5701, algorithm 1. Unlike here, learning_rate=None in optax
    0.2.8 steps in the wrong direction, uphill. As in the paper and in optax, x averages u^2 before
    u is multiplied by the learning rate.
    """
    rate = 1.0 if learning_rate is None else learning_rate
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(rate),
    )


def scale_by_adadelta(rho: float = 0.9, eps: float = 1e-6) -> GradientTransformationExtraArgs:
    """The direction u of `adadelta`.

    `adadelta` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByAdaDeltaState(e_g, e_x)`, which holds v and x.

    Example:
      >>> transform = scale_by_adadelta(eps=0.1)
      >>> updates, _ = transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [0.1, -0.99]
    """
    check_fractions("scale_by_adadelta", rho=rho)
    check_least("scale_by_adadelta", eps=eps)

    def at_step() -> Callable[..., Any]:
        def rule(g: Any, v: Any, x: Any) -> Any:
            g, square = bounded(g)
            v = (1 - rho) * square + rho * v
            u = (jnp.sqrt(x + eps) / jnp.sqrt(v + eps)) * g
            return u, v, (1 - rho) * u**2 + rho * x

        return rule

    slots = {"e_g": filled(), "e_x": filled()}
    return leafwise("scale_by_adadelta", at_step, ScaleByAdaDeltaState, slots)


def _without_bias(decay: float, *t: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function that corrects the bias of a moment at step t. Without t, it changes nothing."""
    if not t:
        return lambda moment: moment
    total_weight = correction(decay, *t)
    return lambda moment: corrected(moment, total_weight)


def _over_root(v: jax.Array, eps: float, eps_in_sqrt: bool) -> jax.Array:
    return jax.lax.rsqrt(v + eps) if eps_in_sqrt else 1 / (jnp.sqrt(v) + eps)


def _counted_state(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes the state that an optax transformation has with bias_correction=True.

    This state also has a count. optax has no public name for its type.
    """
    return lambda **fields: type(theirs(bias_correction=True).init(()))(**fields)
