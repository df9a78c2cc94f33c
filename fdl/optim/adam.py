"""Adam, and Adam with decoupled weight decay.

In the formulas g is the gradient, m and v its first and second moment, t the step from 1.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs, ScaleByAdamState

from fdl.optim.combine import chain
from fdl.optim.leafwise import filled, leafwise
from fdl.optim.mask import Mask
from fdl.optim.options import check_fractions, check_least, check_momenta
from fdl.optim.rate import ScalarOrSchedule, add_decayed_weights, scale_by_learning_rate
from fdl.optim.width import bounded


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
    """Adam: a step of about one size in each direction, from two moments of the gradient.

        m = b1 m + (1 - b1) g,     m^ = m / (1 - b1^t)
        v = b2 v + (1 - b2) g^2,   v^ = v / (1 - b2^t)
        W -= learning_rate * m^ / (sqrt(v^ + eps_root) + eps)

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of v.
      eps: >= 0, outside the root.
      eps_root: >= 0, inside it; needed to differentiate through the optimizer.
      mu_dtype: of m; by default the parameters', float32 at least.
      nesterov: as `nadam`.

    Returns:
      A transformation; the state is that of `optax.adam`.

    Raises:
      ValueError: a rate or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = adam(0.5), jnp.array([2.0, -2.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w))[0].round(3)
      Array([-0.5,  0.5], dtype=float32)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1. The same in optax and torch, but for
    half precision and gradients beyond 1.3e19, see `fdl.optim`; Keras applies eps before the bias
    correction (the sentence before section 2.1).
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


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
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), of v.
      eps: >= 0, outside the root.
      eps_root: >= 0, inside it.
      mu_dtype: of m; by default the parameters', float32 at least.
      weight_decay: >= 0, or a schedule.
      mask: what to decay; `"**/w"` leaves norms and biases alone; see `masked`.
      nesterov: as `nadamw`.

    Returns:
      A transformation; the state is that of `optax.adamw`.

    Raises:
      ValueError: a rate, decay or eps that is negative or not finite; b1 or b2 out of range.

    Example:
      >>> optimizer, w = adamw(0.5, weight_decay=0.01), jnp.array([2.0, -2.0])
      >>> updates, _ = optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.51, 0.51]

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay times the
    whole learning rate, as optax and torch have it (the paper: times the schedule alone).
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


def first_moment(b1: float, t: jax.Array, nesterov: bool = False) -> Callable[..., jax.Array]:
    """m^ as a function of (m, g): Kingma's m / (1 - b1^t), or Dozat's.

    Example:
      >>> float(first_moment(0.5, jnp.float32(1))(jnp.array(1.0), None))
      2.0
    """
    c1 = correction(b1, t)
    if not nesterov:
        return lambda m, g: corrected(m, c1)
    c1_next = correction(b1, t + 1)
    return lambda m, g: b1 * corrected(m, c1_next) + (1 - b1) * corrected(g, c1)


@functools.partial(jax.jit, inline=True)
def correction(decay: float, t: jax.Array) -> jax.Array:
    """1 - decay^t, what is missing from a moment that began at 0.

    Compiled by itself, so that its rounding is the same in and outside of a larger program: at
    decay = 0.999 and t = 1 nearly all digits of it are rounding.

    Example:
      >>> float(correction(0.5, jnp.float32(2)))
      0.75
    """
    return 1 - decay**t


def corrected(moment: jax.Array, missing: jax.Array) -> jax.Array:
    """A moment without its bias: moment / (1 - decay^t).

    The divisor is computed in float32 or better and only then narrowed: decay^t would round to 1 in
    bfloat16, and the quotient would not be finite.

    Example:
      >>> float(corrected(jnp.array(1.0), correction(0.5, jnp.float32(1))))
      2.0
    """
    return moment / missing.astype(moment.dtype)
