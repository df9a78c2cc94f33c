"""Adam and its relatives.

In the formulas, g is the gradient, m and v are its first and second moment, m^ and v^ are these
moments after bias correction (see `adam`), and t is the step, which starts at 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformationExtraArgs,
    ScaleByAdamState,
    ScaleByAmsgradState,
    ScaleByBeliefState,
)

from fdl.checks import named_in_errors
from fdl.ops.numerics import bounded
from fdl.optim.chaining import chain
from fdl.optim.checks import check_fractions, check_least, check_momenta
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import filled, leafwise
from fdl.optim.moments import corrected, correction, first_moment
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def adam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam: steps along the mean gradient, divided by the root of the mean squared gradient.

        m = b1 m + (1 - b1) g,     m^ = m / (1 - b1^t)
        v = b2 v + (1 - b2) g^2,   v^ = v / (1 - b2^t)
        W -= learning_rate * m^ / (sqrt(v^ + eps_root) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root. To differentiate through the optimizer, it must be > 0.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      nesterov: True computes m^ as in `nadam`.

    Returns:
      A transformation with the same state as `optax.adam`.

    Raises:
      ValueError: the rate or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = adam(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1. Gives the same results as optax and
    torch, except in half precision and for gradients beyond 1.3e19 (see `fdl.optim`). Keras adds
    eps before the bias correction (see the sentence before section 2.1 of the paper).
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


@named_in_errors
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam with decoupled weight decay: W -= learning_rate * (Adam's step + weight_decay * W).

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      weight_decay: >= 0, or a schedule.
      mask: which leaves to decay; see `masked`. `"**/w"` excludes norms and biases.
      nesterov: True computes m^ as in `nadam`, which gives `nadamw`.

    Returns:
      A transformation with the same state as `optax.adamw`.

    Raises:
      ValueError: the rate, the decay or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = adamw(0.5, weight_decay=0.01), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.51, 0.51]

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay multiplied by
    the learning rate, as in optax and torch. The paper multiplies the decay only by the schedule.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def scale_by_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `adam`: m^ / (sqrt(v^ + eps_root) + eps).

    `adam` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByAdamState(count, mu, nu)`.

    Example:
      >>> transform = scale_by_adam()
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([ 1., -1.], dtype=float32)
    """
    check_momenta("scale_by_adam", b1=b1)
    check_fractions("scale_by_adam", b2=b2)
    check_least("scale_by_adam", eps=eps, eps_root=eps_root)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        first, c2 = first_moment(b1, t, nesterov), correction(b2, t)

        def rule(g: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            return first(m, g) / (jnp.sqrt(corrected(v, c2) + eps_root) + eps), m, v

        return rule

    slots = {"mu": filled(dtype=mu_dtype), "nu": filled()}
    return leafwise("scale_by_adam", at_step, ScaleByAdamState, slots, counted=True)


@named_in_errors
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_maximum: bool = False,
) -> GradientTransformationExtraArgs:
    """AMSGrad: Adam, but m^ is divided by the root of the largest second moment so far.

        v_max = max(v_max, v^),     W -= learning_rate * m^ / (sqrt(v_max + eps_root) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      bias_correction_mu: True makes m^ = m / (1 - b1^t), False m^ = m.
      bias_correction_nu: True makes v^ = v / (1 - b2^t), False v^ = v.
      correct_maximum: False computes the maximum of v^. True computes the maximum of v and then
        corrects its bias, as torch and Keras do.

    Returns:
      A transformation with the same state as `optax.amsgrad`.

    Raises:
      ValueError: the rate or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = amsgrad(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Reddi, Kale and Kumar 2018, arXiv 1904.09237, algorithm 2, which has no bias
    correction. By default, as in optax, the maximum is computed after the bias correction; torch
    and Keras compute it before. v_max never falls, so one huge gradient makes all later steps tiny.
    """
    direction = scale_by_amsgrad(
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        bias_correction_mu,
        bias_correction_nu,
        correct_maximum=correct_maximum,
    )
    return chain(direction, scale_by_learning_rate(learning_rate))


def scale_by_amsgrad(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    correct_maximum: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `amsgrad`: m^ / (sqrt(v_max + eps_root) + eps).

    `amsgrad` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`.

    Example:
      >>> transform = scale_by_amsgrad()
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([ 1., -1.], dtype=float32)
    """
    check_momenta("scale_by_amsgrad", b1=b1)
    check_fractions("scale_by_amsgrad", b2=b2)
    check_least("scale_by_amsgrad", eps=eps, eps_root=eps_root)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        c1, c2 = correction(b1, t), correction(b2, t)
        v_hat = (lambda v: corrected(v, c2)) if bias_correction_nu else lambda v: v
        before, after = (lambda v: v, v_hat) if correct_maximum else (v_hat, lambda v: v)

        def rule(g: Any, m: Any, v: Any, largest: Any) -> Any:
            g, square = bounded(g)
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            largest = jnp.maximum(largest, before(v))
            m_hat = corrected(m, c1) if bias_correction_mu else m
            return m_hat / (jnp.sqrt(after(largest) + eps_root) + eps), m, v, largest

        return rule

    slots = {"mu": filled(dtype=mu_dtype), "nu": filled(), "nu_max": filled()}
    return leafwise("scale_by_amsgrad", at_step, ScaleByAmsgradState, slots, counted=True)


@named_in_errors
def adamax(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformationExtraArgs:
    """AdaMax: Adam, but m^ is divided by u, a decaying maximum of |g|, instead of the root of v.

        u = max(b2 u, |g| + eps),     W -= learning_rate * m^ / u

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of u that each step keeps.
      eps: >= 0, added to |g|.

    Returns:
      A transformation with the same state as `optax.adamax`.

    Raises:
      ValueError: the rate or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = adamax(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 2, which has no eps; optax and torch add
    eps to |g|.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def scale_by_adamax(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformationExtraArgs:
    """The direction of `adamax`: m^ / u.

    `adamax` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByAdamState(count, mu, nu)`, where nu is u.

    Example:
      >>> transform = scale_by_adamax()
      >>> transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))[0].round(3)
      Array([ 1., -1.], dtype=float32)
    """
    check_momenta("scale_by_adamax", b1=b1)
    check_fractions("scale_by_adamax", b2=b2)
    check_least("scale_by_adamax", eps=eps)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        c1 = correction(b1, t)

        def rule(g: Any, m: Any, u: Any) -> Any:
            m = (1 - b1) * g + b1 * m
            u = jnp.maximum(jnp.abs(g) + eps, b2 * u)
            return corrected(m, c1) / u, m, u

        return rule

    slots = {"mu": filled(), "nu": filled()}
    return leafwise("scale_by_adamax", at_step, ScaleByAdamState, slots, counted=True)


@named_in_errors
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """AdaBelief: Adam, but m^ is divided by the root of s, the mean of (g - m)^2.

        s = b2 s + (1 - b2) (g - m)^2 + eps_root,     s^ = s / (1 - b2^t)
        W -= learning_rate * m^ / (sqrt(s^) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of s that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added to s at every step.
      nesterov: True computes m^ as in `nadam`, False as in `adam`.

    Returns:
      A transformation with the same state as `optax.adabelief`.

    Raises:
      ValueError: the rate or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = adabelief(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.556, 0.556]

    Source: Zhuang et al. 2020, arXiv 2010.07468, algorithm 2. Gives the same results as optax.
    """
    direction = scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov)
    return chain(direction, scale_by_learning_rate(learning_rate))


def scale_by_belief(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `adabelief`: m^ / (sqrt(s^) + eps).

    `adabelief` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByBeliefState(count, mu, nu)`, where nu is s.

    Example:
      >>> transform = scale_by_belief()
      >>> updates, _ = transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [1.111, -1.111]
    """
    check_momenta("scale_by_belief", b1=b1)
    check_fractions("scale_by_belief", b2=b2)
    check_least("scale_by_belief", eps=eps, eps_root=eps_root)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        first, c2 = first_moment(b1, t, nesterov), correction(b2, t)

        def rule(g: Any, m: Any, s: Any) -> Any:
            g, _ = bounded(g)
            m = (1 - b1) * g + b1 * m
            s = (1 - b2) * bounded(g - m)[1] + b2 * s + eps_root
            return first(m, g) / (jnp.sqrt(corrected(s, c2)) + eps), m, s

        return rule

    slots = {"mu": filled(), "nu": filled()}
    return leafwise("scale_by_belief", at_step, ScaleByBeliefState, slots, counted=True)


@named_in_errors
def nadam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    momentum_decay: float | None = None,
) -> GradientTransformationExtraArgs:
    """NAdam: Adam with Nesterov's momentum, which uses the newest gradient twice, in m and in m^.

        m^ = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)

    Everything else is the same as in `adam`.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      nesterov: False computes m^ as in `adam`.
      momentum_decay: psi >= 0. In m^, b1 then depends on the step: c_t = b1 (1 - 0.96^(psi t) / 2).
        The term with g uses c_t in place of b1, and the term with m uses c_(t+1). b1^t becomes the
        product c_1 c_2 ... c_t. The paper has psi = 0.004. None means that b1 stays constant, as in
        optax. With nesterov=False, momentum_decay is not used.

    Returns:
      A transformation with the same state as `optax.nadam`. With momentum_decay, the state also
      holds the product of all momenta so far.

    Raises:
      ValueError: the rate, an eps or momentum_decay is negative or not finite; b1 or b2 is out of
        range.

    Example:
      >>> optimizer, w = nadam(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.737, 0.737]

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2. The
    schedule of the momentum is also in torch and Keras, but not in optax.
    """
    direction = _direction(b1, b2, eps, eps_root, mu_dtype, nesterov, momentum_decay)
    return chain(direction, scale_by_learning_rate(learning_rate))


@named_in_errors
def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = True,
    momentum_decay: float | None = None,
) -> GradientTransformationExtraArgs:
    """NAdamW: `nadam` with decoupled weight decay.

    `nadam` and `adamw` describe the arguments and the errors.

    Returns:
      A transformation with the same state as `optax.nadamw`. With momentum_decay, the state also
      holds the product of all momenta so far.

    Example:
      >>> optimizer, w = nadamw(0.5, weight_decay=0.01), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.747, 0.747]

    Source: Dozat 2016, algorithm 2; Loshchilov and Hutter 2019, algorithm 2. Gives the same results
    as optax, and with momentum_decay=0.004 the same as
    `torch.optim.NAdam(decoupled_weight_decay=True)`.
    """
    return chain(
        _direction(b1, b2, eps, eps_root, mu_dtype, nesterov, momentum_decay),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _direction(
    b1: float,
    b2: float,
    eps: float,
    eps_root: float,
    mu_dtype: Any,
    nesterov: bool,
    momentum_decay: float | None,
) -> GradientTransformationExtraArgs:
    if momentum_decay is None or not nesterov:
        return scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return scale_by_scheduled_nadam(b1, b2, eps, eps_root, mu_dtype, momentum_decay)


class ScheduledNadamState(NamedTuple):
    """The fields of `optax.ScaleByAdamState`, and the product of all momenta so far."""

    count: Any
    product: Any
    mu: Any
    nu: Any


def scale_by_scheduled_nadam(
    b1: float, b2: float, eps: float, eps_root: float, mu_dtype: Any, momentum_decay: float
) -> GradientTransformationExtraArgs:
    """The direction of `nadam` with the paper's schedule of the momentum."""
    check_momenta("nadam", b1=b1)
    check_fractions("nadam", b2=b2)
    check_least("nadam", eps=eps, eps_root=eps_root, momentum_decay=momentum_decay)

    def momentum(t: Any) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (momentum_decay * t))

    def at_step(t: jax.Array) -> Callable[..., Any]:
        b1_now, b1_next, c2 = momentum(t), momentum(t + 1), correction(b2, t)

        def rule(g: Any, product: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            product = product * b1_now
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            m_hat = b1_next * m / (1 - product * b1_next) + (1 - b1_now) * g / (1 - product)
            return m_hat / (jnp.sqrt(corrected(v, c2) + eps_root) + eps), product, m, v

        return rule

    slots = {"product": lambda p: jnp.ones(()), "mu": filled(dtype=mu_dtype), "nu": filled()}
    return leafwise("nadam", at_step, ScheduledNadamState, slots, counted=True)


@named_in_errors
def radam(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """RAdam: Adam, but m^ is divided by the root of v only after v has averaged enough gradients.

        rho_inf = 2 / (1 - b2) - 1,     rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
        W -= learning_rate * r m^ / (sqrt(v^ + eps_root) + eps)     if rho >= threshold
        W -= learning_rate * m^                                     otherwise

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root.
      threshold: >= 4, the smallest rho at which m^ is divided by the root of v. rho is roughly the
        number of gradients that v averages over.
      nesterov: True computes m^ as in `nadam`, False as in `adam`.

    Returns:
      A transformation with the same state as `optax.radam`.

    Raises:
      ValueError: the rate or an eps is negative or not finite; b1 or b2 is out of range; threshold
        is below 4.

    Example:
      >>> optimizer, w = radam(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.05, 3.5]

    Source: Liu et al. 2020, arXiv 1908.03265, algorithm 2, which has no eps and divides by the root
    of v if rho > 4. The default is the same as in optax, rho >= 5; torch divides if rho > 5. In
    float32, gradients are clipped to 1.3e19 even in steps that do not divide by the root of v,
    because v must stay finite.
    """
    direction = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov)
    return chain(direction, scale_by_learning_rate(learning_rate))


def scale_by_radam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """The direction of `radam`: r m^ / (sqrt(v^ + eps_root) + eps), or m^ if rho < threshold.

    `radam` describes the arguments and the errors.

    Returns:
      A transformation with state `optax.ScaleByAdamState(count, mu, nu)`.

    Example:
      >>> transform = scale_by_radam()
      >>> updates, _ = transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [0.1, -7.0]
    """
    check_momenta("scale_by_radam", b1=b1)
    check_fractions("scale_by_radam", b2=b2)
    check_least("scale_by_radam", eps=eps, eps_root=eps_root)
    check_least("scale_by_radam", 4, threshold=threshold)  # below 4, r can be imaginary
    rho_inf = 2.0 / (1.0 - b2) - 1.0

    def at_step(t: jax.Array) -> Callable[..., Any]:
        first, c2, b2t = first_moment(b1, t, nesterov), correction(b2, t), b2**t
        rho = rho_inf - 2 * t * b2t / (1 - b2t)
        adapts = rho >= threshold
        squared = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
        # Where r is not used, the root of 1 is computed. The root of a negative number would make
        # the gradient NaN, even there.
        r = jnp.sqrt(jnp.where(adapts, squared, 1.0))

        def rule(g: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            m_hat = first(m, g)
            adapted = r.astype(m.dtype) * m_hat / (jnp.sqrt(corrected(v, c2) + eps_root) + eps)
            return jnp.where(adapts, adapted, m_hat), m, v

        return rule

    slots = {"mu": filled(), "nu": filled()}
    return leafwise("scale_by_radam", at_step, ScaleByAdamState, slots, counted=True)
