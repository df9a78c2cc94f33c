"""LARS and LAMB, for very large batches: each leaf's step is proportional to its weights' norm."""

from typing import Any

import jax.numpy as jnp
from optax import EmptyState, GradientTransformationExtraArgs

from fdl.checks import named_in_errors
from fdl.optim.chaining import chain
from fdl.optim.checks import check_least, check_positive, check_traces
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import need_params, per_leaf
from fdl.optim.masking import masked
from fdl.optim.optimizers.adam_family import scale_by_adam
from fdl.optim.optimizers.sgd_family import trace
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import sizes
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """LARS: momentum, where each leaf's gradient is scaled to a fraction of its weights' norm.

        g = g + weight_decay * W
        t = learning_rate * trust_coefficient * |W| / (|g| + eps) * g + momentum * t,     W -= t

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      weight_decay: >= 0, or a schedule.
      weight_decay_mask: which leaves to decay; see `masked`.
      trust_coefficient: > 0, the norm of the scaled gradient, divided by |W|.
      eps: >= 0, added to |g|.
      trust_ratio_mask: which leaves to scale, usually all except norms and biases; see `masked`.
      momentum: in [-1, 1]; see `trace`.
      nesterov: True uses Nesterov's form of the momentum; see `trace`.

    Returns:
      A transformation with the same state as `optax.lars`.

    Raises:
      ValueError: the rate, the decay or eps is negative or not finite; trust_coefficient is 0 or
        negative; momentum is outside [-1, 1].

    Example:
      >>> optimizer, w = lars(0.5, trust_coefficient=0.1), jnp.array([3.0, 4.0])
      >>> optimizer.update(jnp.array([0.0, 7.0]), optimizer.init(w), w)[0].round(3)
      Array([ 0.  , -0.25], dtype=float32)

    Source: You, Gitman and Ginsburg 2017, arXiv 1708.03888, algorithm 1. Gives the same
    results as optax.
    """
    check_traces("lars", momentum=momentum)
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(0.0, trust_coefficient, eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


@named_in_errors
def lamb(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """LAMB: Adam, where each leaf's step is scaled to the norm of its weights.

        u = m^ / (sqrt(v^ + eps_root) + eps) + weight_decay * W
        W -= learning_rate * |W| / |u| * u

    with m^ and v^ as in `adam`.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      eps: >= 0, added outside the root.
      eps_root: >= 0, added inside the root.
      weight_decay: >= 0, or a schedule.
      mask: which leaves to decay; see `masked`.

    Returns:
      A transformation with the same state as `optax.lamb`.

    Raises:
      ValueError: the rate, the decay or an eps is negative or not finite; b1 or b2 is out of range.

    Example:
      >>> optimizer, w = lamb(0.5), jnp.array([3.0, 4.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)[0].round(2)
      Array([-1.77,  1.77], dtype=float32)

    Source: You et al. 2020, arXiv 1904.00962, algorithm 2, with phi(z) = z. Gives the same results
    as optax.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def scale_by_trust_ratio(
    min_norm: float = 0.0, trust_coefficient: float = 1.0, eps: float = 0.0
) -> GradientTransformationExtraArgs:
    """Scales the update u of each leaf: u * trust_coefficient * |W| / (|u| + eps).

    If |W| or |u| is 0, and min_norm is 0 too, u does not change.

    Args:
      min_norm: >= 0. If |W| or |u| is smaller than min_norm, min_norm is used instead.
      trust_coefficient: > 0, the norm of the scaled u, divided by |W|.
      eps: >= 0, added to |u|.

    Returns:
      A transformation that needs params; its state is empty.

    Raises:
      ValueError: trust_coefficient is 0 or negative; min_norm or eps is negative or not finite.

    Example:
      >>> transform, w = scale_by_trust_ratio(), jnp.array([3.0, 4.0])
      >>> transform.update(jnp.array([0.0, 0.1]), transform.init(w), w)[0]
      Array([0., 5.], dtype=float32)

    Source: You, Gitman and Ginsburg 2017, equation 6.
    """
    who = "scale_by_trust_ratio"
    check_positive(
        who, "pass the length of a step as a fraction of |W|", trust_coefficient=trust_coefficient
    )
    check_least(who, min_norm=min_norm, eps=eps)

    def rule(u: Any, _: Any, u_size: Any, w_size: Any) -> Any:
        u_norm, w_norm = (
            jnp.maximum(size.part, min_norm / size.power) for size in (u_size, w_size)
        )
        ratio = trust_coefficient * w_norm / (u_norm + eps / u_size.power)
        zero = (w_norm == 0) | (u_norm == 0)
        scaled = u_size.of(u) * ratio.astype(u.dtype) * w_size.power.astype(u.dtype)
        return (jnp.where(zero, u, scaled),)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        others = {"params": need_params(who, params)}
        u_sizes, w_sizes = sizes(updates, params)
        others |= {"sizes of updates": u_sizes, "sizes of params": w_sizes}
        return per_leaf(who, rule, updates, others)[0], state

    return transformation(lambda params: EmptyState(), update)
