"""Rectified Adam, which waits until its second moment can be trusted.

In the formulas g is the gradient, m and v its first and second moment, t the step from 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs, ScaleByAdamState

from fdl.optim.adam import corrected, correction, first_moment
from fdl.optim.combine import chain
from fdl.optim.leafwise import filled, leafwise
from fdl.optim.options import check_fractions, check_least, check_momenta
from fdl.optim.rate import ScalarOrSchedule, scale_by_learning_rate
from fdl.optim.width import bounded


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
    """Adam that waits until v has seen enough: momentum alone in the first steps.

        rho_inf = 2 / (1 - b2) - 1,     rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
        W -= learning_rate * r m^ / (sqrt(v^ + eps_root) + eps)     if rho >= threshold
        W -= learning_rate * m^                                     otherwise

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of v.
      eps: >= 0, outside the root.
      eps_root: >= 0, inside it.
      threshold: how many steps v must stand for, >= 4.
      nesterov: the momentum of `nadam`.

    Returns:
      A transformation; the state is that of `optax.radam`.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = radam(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.05, 3.5]

    Source: Liu et al. 2020, arXiv 1908.03265, algorithm 2, which adapts where rho > 4 and has no
    eps; optax where rho >= 5, torch where rho > 5. Also where momentum moves alone, g is held
    within 1.3e19 (float32), for the steps after it.
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
    """The direction of `radam`.

    Example:
      >>> transform = scale_by_radam()
      >>> updates, _ = transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [0.1, -7.0]
    """
    check_momenta("scale_by_radam", b1=b1)
    check_fractions("scale_by_radam", b2=b2)
    check_least("scale_by_radam", eps=eps, eps_root=eps_root)
    check_least("scale_by_radam", 4, threshold=threshold)  # at fewer, r is no number
    rho_inf = 2.0 / (1.0 - b2) - 1.0

    def at_step(t: jax.Array) -> Callable[..., Any]:
        first, c2, b2t = first_moment(b1, t, nesterov), correction(b2, t), b2**t
        rho = rho_inf - 2 * t * b2t / (1 - b2t)
        trusted = rho >= threshold
        squared = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
        # Of a negative number the root has no gradient, not even where nothing depends on it.
        r = jnp.sqrt(jnp.where(trusted, squared, 1.0))

        def rule(g: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            m_hat = first(m, g)
            adapted = r.astype(m.dtype) * m_hat / (jnp.sqrt(corrected(v, c2) + eps_root) + eps)
            return jnp.where(trusted, adapted, m_hat), m, v

        return rule

    slots = {"mu": filled(), "nu": filled()}
    return leafwise("scale_by_radam", at_step, ScaleByAdamState, slots, counted=True)
