"""Adam with Nesterov's momentum, in which the newest gradient counts once more.

In the formulas g is the gradient, m and v its first and second moment, t the step from 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs

from fdl.optim.adam import corrected, correction, scale_by_adam
from fdl.optim.combine import chain
from fdl.optim.leafwise import filled, leafwise
from fdl.optim.mask import Mask
from fdl.optim.options import check_fractions, check_least, check_momenta
from fdl.optim.rate import ScalarOrSchedule, add_decayed_weights, scale_by_learning_rate
from fdl.optim.width import bounded


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
    """Adam with Nesterov's momentum, in which the newest gradient counts once more.

        m^ = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t),     the rest as `adam`

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of v.
      eps: >= 0, outside the root.
      eps_root: >= 0, inside it.
      mu_dtype: of m; by default the parameters', float32 at least.
      nesterov: False makes it `adam`.
      momentum_decay: psi >= 0; the paper's momentum b1 (1 - 0.96^(psi t) / 2), psi = 0.004, takes
        the place of b1 in m^. None keeps b1, as optax does.

    Returns:
      A transformation; the state is that of `optax.nadam`, with the product of the momenta besides
      if they change.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = nadam(0.5), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.737, 0.737]

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2. torch and Keras
    have the schedule of the momentum, optax has not.
    """
    direction = _direction(b1, b2, eps, eps_root, mu_dtype, nesterov, momentum_decay)
    return chain(direction, scale_by_learning_rate(learning_rate))


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
    """`adamw` with the momentum of `nadam`; arguments, returns and errors as there.

    Example:
      >>> optimizer, w = nadamw(0.5, weight_decay=0.01), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.747, 0.747]

    Source: Dozat 2016, algorithm 2; Loshchilov and Hutter 2019, algorithm 2. The same in optax, and
    with momentum_decay=0.004 in torch's `NAdam(decoupled_weight_decay=True)`.
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
    """As `optax.ScaleByAdamState`, and the product of all momenta so far."""

    count: Any
    product: Any
    mu: Any
    nu: Any


def scale_by_scheduled_nadam(
    b1: float, b2: float, eps: float, eps_root: float, mu_dtype: Any, momentum_decay: float
) -> GradientTransformationExtraArgs:
    """The direction of `nadam` with the paper's schedule of the momentum.

    Example:
      >>> transform = scale_by_scheduled_nadam(0.9, 0.999, 1e-8, 0.0, None, 0.004)
      >>> updates, _ = transform.update(jnp.array([0.1, -7.0]), transform.init(jnp.ones(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [1.056, -1.056]
    """
    check_momenta("nadam", b1=b1)
    check_fractions("nadam", b2=b2)
    check_least("nadam", eps=eps, eps_root=eps_root, momentum_decay=momentum_decay)

    def momentum(t: Any) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (momentum_decay * t))

    def at_step(t: jax.Array) -> Callable[..., Any]:
        now, following, c2 = momentum(t), momentum(t + 1), correction(b2, t)

        def rule(g: Any, product: Any, m: Any, v: Any) -> Any:
            g, square = bounded(g)
            product = product * now
            m = (1 - b1) * g + b1 * m
            v = (1 - b2) * square + b2 * v
            m_hat = following * m / (1 - product * following) + (1 - now) * g / (1 - product)
            return m_hat / (jnp.sqrt(corrected(v, c2) + eps_root) + eps), product, m, v

        return rule

    slots = {"product": lambda p: jnp.ones(()), "mu": filled(dtype=mu_dtype), "nu": filled()}
    return leafwise("scale_by_nadam", at_step, ScheduledNadamState, slots, counted=True)
