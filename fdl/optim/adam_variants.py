"""Three that change one thing about Adam: its second moment.

In the formulas g is the gradient, m and v its first and second moment, t the step from 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformationExtraArgs,
    ScaleByAdamState,
    ScaleByAmsgradState,
    ScaleByBeliefState,
)

from fdl.optim.adam import corrected, correction, first_moment
from fdl.optim.combine import chain
from fdl.optim.leafwise import filled, leafwise
from fdl.optim.options import check_fractions, check_least, check_momenta
from fdl.optim.rate import ScalarOrSchedule, scale_by_learning_rate
from fdl.optim.width import bounded


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
    """Adam whose steps never grow back: the largest second moment so far takes v's place.

        v_max = max(v_max, v^),     W -= learning_rate * m^ / (sqrt(v_max + eps_root) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of v.
      eps: >= 0, outside the root.
      eps_root: >= 0, inside it.
      mu_dtype: of m; by default the parameters', float32 at least.
      bias_correction_mu: m^ is m / (1 - b1^t), else m.
      bias_correction_nu: v^ is v / (1 - b2^t), else v.
      correct_maximum: the maximum is taken of v, and corrected afterwards, as in torch and Keras.

    Returns:
      A transformation; the state is that of `optax.amsgrad`.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = amsgrad(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Reddi, Kale and Kumar 2018, arXiv 1904.09237, algorithm 2, which corrects no bias. optax
    takes the maximum after the correction, torch and Keras before. v_max never falls: one huge
    gradient makes all later steps tiny.
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
    """The direction of `amsgrad`.

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


def adamax(
    learning_rate: ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformationExtraArgs:
    """Adam with the largest recent gradient in the place of the root of v.

        u = max(b2 u, |g| + eps),     W -= learning_rate * m^ / u

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of u.
      eps: >= 0.

    Returns:
      A transformation; the state is that of `optax.adamax`.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = adamax(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 2, which has no eps; optax and torch add
    it to |g|.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def scale_by_adamax(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> GradientTransformationExtraArgs:
    """The direction of `adamax`.

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


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """Adam that steps far where gradients are as expected, by their variance around m.

        s = b2 s + (1 - b2) (g - m)^2 + eps_root,     W -= learning_rate * m^ / (sqrt(s^) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of s.
      eps: >= 0, outside the root.
      eps_root: >= 0, added to s at every step.
      nesterov: the momentum of `nadam`.

    Returns:
      A transformation; the state is that of `optax.adabelief`.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = adabelief(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.556, 0.556]

    Source: Zhuang et al. 2020, arXiv 2010.07468, algorithm 2. The same in optax.
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
    """The direction of `adabelief`.

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
