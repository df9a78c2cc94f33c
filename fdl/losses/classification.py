"""Margins and focus: losses of classes other than the cross-entropies. C is the classes."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.cross_entropy import softmax_cross_entropy
from fdl.losses.per_example import per_example
from fdl.losses.shapes import (
    alike,
    bounded,
    classified,
    fixed_at_infinity,
    nan_outside,
    one_hot,
    product,
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
    """-a (1 - p)^gamma log p, where p is the probability given to what is true, in nats.

    Args:
      logits: [...], a floating dtype; stable at any size.
      targets: [...], 0 or 1. Inside a compiled program another number gives NaN; `fit` and
        `evaluate` refuse such data beforehand.
      gamma: >= 0; 0 is the cross-entropy.
      alpha: a is alpha where the target is 1 and 1 - alpha where it is 0; by default 1 in both.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], elementwise, float32 or better, >= 0.

    Raises:
      PathError: two different shapes.
      ValueError: alpha or gamma out of range.

    Example:
      >>> sigmoid_focal(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]), gamma=1.0)
      Array([0.3465736, 0.3465736], dtype=float32)

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
    """
    logits, targets = alike("sigmoid_focal", logits, targets)
    _check_gamma("sigmoid_focal", gamma)
    if alpha is not None:
        check_number(
            "sigmoid_focal", "alpha", alpha, "[0, 1]", "0.25 is the paper's, None counts both alike"
        )
    towards = jnp.where(targets == 1, logits, -logits)
    # log(1 - p) is -softplus(towards); a power of 1 - p itself has no slope where that is 0.
    missing = bounded(jax.nn.softplus(fixed_at_infinity(towards)))
    loss = jax.nn.softplus(-towards) * jnp.exp(-jnp.asarray(gamma, logits.dtype) * missing)
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
    """-(1 - p)^gamma log p, where p is softmax(logits)[label], in nats.

    Args:
      logits: [..., C], a floating dtype; stable at any size.
      labels: [...], integers in [0, C); one out of range gives NaN, as in `softmax_cross_entropy`.
      gamma: >= 0; 0 is the cross-entropy.
      ignore_index: the label that does not count, such as -100; see `softmax_cross_entropy`.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0.

    Raises:
      PathError: labels that are not integers, or not shaped as the logits without their last axis.
      ValueError: gamma out of range.

    Example:
      >>> softmax_focal(jnp.array([[0.0, 0.0]]), jnp.array([1]), gamma=1.0)
      Array([0.3465736], dtype=float32)

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4 and section 3.
    """
    logits, labels = classified("softmax_focal", logits, labels)
    _check_gamma("softmax_focal", gamma)
    nats = softmax_cross_entropy(logits, labels)
    # A power has no finite slope at 0, so the smallest number stands there.
    missing = jnp.maximum(-jnp.expm1(-fixed_at_infinity(nats)), jnp.finfo(nats.dtype).tiny)
    return nats * missing ** jnp.asarray(gamma, nats.dtype)


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
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], elementwise, float32 or better, >= 0.

    Raises:
      PathError: two different shapes.

    Example:
      >>> hinge(jnp.array([0.25, 3.0]), jnp.array([-1.0, 1.0]))
      Array([1.25, 0.  ], dtype=float32)

    Source: Cortes and Vapnik 1995, "Support-Vector Networks", section 3.
    """
    scores, targets = alike("hinge", scores, targets)
    return jnp.maximum(0, 1 - targets * scores)


@per_example
def multiclass_hinge(
    scores: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """max(0, 1 + the largest score of another class - the score of the label).

    Args:
      scores: [..., C], a floating dtype.
      labels: [...], integers in [0, C); one out of range gives NaN, as in `softmax_cross_entropy`.
      ignore_index: the label that does not count, such as -100; see `softmax_cross_entropy`.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0.

    Raises:
      PathError: labels that are not integers, or not shaped as the scores without their last axis.

    Example:
      >>> multiclass_hinge(jnp.array([[0.5, 1.0, 0.0]]), jnp.array([0]))
      Array([1.5], dtype=float32)

    Source: Crammer and Singer 2001, "On the Algorithmic Implementation of Multiclass Kernel-based
    Vector Machines", equation 2. (torch's `multi_margin_loss` is the sum over the other classes.)
    """
    scores, labels = classified("multiclass_hinge", scores, labels)
    right = one_hot(labels, scores.shape[-1])
    own = jnp.where(right, scores, 0).sum(-1)
    other = jnp.where(right, -jnp.inf, scores).max(-1)
    return nan_outside(jnp.maximum(0, 1 + other - own), labels, scores.shape[-1])


def _check_gamma(name: str, gamma: Any) -> None:
    check_number(name, "gamma", gamma, "[0, inf]", "2 is usual")
