"""Focal and hinge losses for classification. C is the number of classes."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.cross_entropy import softmax_cross_entropy
from fdl.losses.per_example import per_example
from fdl.losses.shapes import (
    bounded,
    logits_and_labels,
    nan_outside,
    one_hot,
    product,
    same_shape,
)


@per_example
def sigmoid_focal(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma: float | jax.Array = 2.0,
    alpha: float | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """-a (1 - p)^gamma log p, in nats, where p is the predicted probability of the target.

    The weight a is set by alpha.

    Args:
      logits: [...], a floating dtype. Large values do not overflow.
      targets: [...], 0 or 1. Any other value gives NaN. `fit` and `evaluate` check the data
        before they start, and raise an error for other values.
      gamma: the exponent, >= 0. With gamma 0, the loss is the weight a times the cross-entropy.
      alpha: in [0, 1]. The weight a is alpha where the target is 1, and 1 - alpha where it is 0.
        None means that the weight a is 1.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.
      ValueError: alpha or gamma is out of range.

    Example:
      >>> sigmoid_focal(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]), gamma=1.0)
      Array([0.3465736, 0.3465736], dtype=float32)

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
    """
    logits, targets = same_shape("sigmoid_focal", logits, targets)
    _check_gamma("sigmoid_focal", gamma)
    if alpha is not None:
        check_number("sigmoid_focal", "alpha", alpha, "[0, 1]", "pass 0.25, or None for no weights")
    target_logits = jnp.where(targets == 1, logits, -logits)
    # (1 - p)^gamma is computed from log(1 - p) = -softplus(target_logits), because the power has no
    # finite slope at p = 1 for gamma < 1.
    other_nats = bounded(jax.nn.softplus(target_logits))
    power = jnp.exp(-jnp.asarray(gamma, logits.dtype) * other_nats)
    loss = _focused(jax.nn.softplus(-target_logits), power)
    if alpha is not None:
        alpha = jnp.asarray(alpha, loss.dtype)
        loss = product(jnp.where(targets == 1, alpha, 1 - alpha), loss)
    return jnp.where((targets == 0) | (targets == 1), loss, jnp.nan)


@per_example
def softmax_focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    gamma: float | jax.Array = 2.0,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """-(1 - p)^gamma log p, in nats, where p is softmax(logits)[label].

    Args:
      logits: [..., C], a floating dtype. Large values do not overflow.
      labels: [...], integers in [0, C); a label outside this range gives NaN.
      gamma: the exponent, >= 0. With gamma 0 the loss is the cross-entropy.
      ignore_index: the label to leave out, such as -100; see `softmax_cross_entropy`.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0.

    Raises:
      PathError: labels are not integers, or their shape is not logits.shape[:-1].
      ValueError: gamma is out of range.

    Example:
      >>> softmax_focal(jnp.array([[0.0, 0.0]]), jnp.array([1]), gamma=1.0)
      Array([0.3465736], dtype=float32)

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4 and section 3.
    """
    logits, labels = logits_and_labels("softmax_focal", logits, labels)
    _check_gamma("softmax_focal", gamma)
    nats = softmax_cross_entropy(logits, labels)
    # If gamma < 1, the power has an infinite slope at 0. So its base is kept above 0.
    other = jnp.maximum(-jnp.expm1(-nats), jnp.finfo(nats.dtype).tiny)
    return _focused(nats, other ** jnp.asarray(gamma, nats.dtype))


@per_example
def hinge(
    scores: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """max(0, 1 - target * score).

    Args:
      scores: [...], a floating dtype.
      targets: [...], -1 or 1.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> hinge(jnp.array([0.25, 3.0]), jnp.array([-1.0, 1.0]))
      Array([1.25, 0.  ], dtype=float32)

    Source: Cortes and Vapnik 1995, "Support-Vector Networks", section 3.
    """
    scores, targets = same_shape("hinge", scores, targets)
    return jnp.maximum(0, 1 - targets * scores)


@per_example
def multiclass_hinge(
    scores: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """max(0, 1 + (largest score among the other classes) - (score of the label)).

    Args:
      scores: [..., C], a floating dtype.
      labels: [...], integers in [0, C); a label outside this range gives NaN.
      ignore_index: the label to leave out, such as -100; see `softmax_cross_entropy`.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0.

    Raises:
      PathError: labels are not integers, or their shape is not scores.shape[:-1].

    Example:
      >>> multiclass_hinge(jnp.array([[0.5, 1.0, 0.0]]), jnp.array([0]))
      Array([1.5], dtype=float32)

    Source: Crammer and Singer 2001, "On the Algorithmic Implementation of Multiclass Kernel-based
    Vector Machines", equation 2. (torch's `multi_margin_loss` sums over the other
    classes instead of taking their maximum.)
    """
    scores, labels = logits_and_labels("multiclass_hinge", scores, labels)
    right = one_hot(labels, scores.shape[-1])
    label_score = jnp.where(right, scores, 0).sum(-1)
    other_score = jnp.where(right, -jnp.inf, scores).max(-1)
    return nan_outside(jnp.maximum(0, 1 + other_score - label_score), labels, scores.shape[-1])


def _focused(nats: jax.Array, power: jax.Array) -> jax.Array:
    """nats * power. Where nats are infinite, p is 0, and the power is 1 with slope 0."""
    return jnp.where(jnp.isinf(nats), nats, bounded(nats) * power)


def _check_gamma(name: str, gamma: Any) -> None:
    check_number(name, "gamma", gamma, "[0, inf]", "pass 2, the usual value")
