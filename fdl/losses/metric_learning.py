"""Losses of representations: what belongs together comes close. B is the batch, D the width."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.cross_entropy import sigmoid_cross_entropy, softmax_cross_entropy
from fdl.losses.per_example import per_example
from fdl.losses.shapes import alike, real
from fdl.ops.numerics import direction, norm
from fdl.paths import PathError


@per_example
def cosine_distance(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """1 - prediction . target / (|prediction| |target|).

    Args:
      predictions: [..., D].
      targets: [..., D].
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, in [0, 2] but for rounding; 1 where one of them is 0.

    Raises:
      PathError: two different shapes.

    Example:
      >>> cosine_distance(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[-2.0, 0.0], [1.0, 1.0]]))
      Array([2., 1.], dtype=float32)

    Source: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", equation
    6.10.
    """
    predictions, targets = alike("cosine_distance", predictions, targets, axes=1)
    return 1 - (direction(predictions, -1) * direction(targets, -1)).sum(-1)


@per_example
def contrastive(
    a: jax.Array,
    b: jax.Array,
    same: jax.Array,
    *,
    margin: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """same d^2 / 2 + (1 - same) max(0, margin - d)^2 / 2, with d = |a - b|.

    Args:
      a: [..., D], one of each pair.
      b: [..., D], the other.
      same: [...], 1 for pairs that belong together and 0 for others; bool, integer or floating. A
        number outside [0, 1] gives NaN.
      margin: > 0, how far apart others need to be.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0. Others that coincide have the slope 0.

    Raises:
      PathError: shapes that do not fit.
      ValueError: margin out of range.

    Example:
      >>> contrastive(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([True, False]))
      Array([0. , 0.5], dtype=float32)

    Source: Hadsell, Chopra and LeCun 2006, "Dimensionality Reduction by Learning an Invariant
    Mapping", equation 4.
    """
    a, b = alike("contrastive", a, b, axes=1)
    same = real("contrastive", same, "same")
    _check_margin("contrastive", margin)
    if a.shape[:-1] != same.shape:
        raise PathError(
            f"expected same {list(a.shape[:-1])} for pairs of {list(a.shape)}, got "
            f"{list(same.shape)}; one number for each pair",
            layer="contrastive",
        )
    together = jnp.asarray(same, a.dtype)
    apart = jnp.square(jnp.maximum(0, jnp.asarray(margin, a.dtype) - norm(a - b, -1)))
    close = jnp.where(together == 0, 0, together * jnp.square(a - b).sum(-1))
    loss = (close + (1 - together) * apart) / 2
    return jnp.where((together >= 0) & (together <= 1), loss, jnp.nan)


@per_example
def triplet(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    margin: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """max(0, |anchor - positive| - |anchor - negative| + margin).

    Args:
      anchor: [..., D].
      positive: [..., D], what belongs to the anchor.
      negative: [..., D], what does not.
      margin: > 0.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0. The distances are not squared (FaceNet's are).

    Raises:
      PathError: shapes that differ.
      ValueError: margin out of range.

    Example:
      >>> triplet(jnp.array([0.0]), jnp.array([1.0]), jnp.array([-4.0]), margin=3.5)
      Array(0.5, dtype=float32)

    Source: Balntas et al. 2016, "Learning Local Feature Descriptors with Triplets", section 2.2;
    torch's `triplet_margin_loss` with eps 0.
    """
    _check_margin("triplet", margin)
    near, far = (
        norm(jnp.subtract(*alike("triplet", anchor, other, axes=1)), -1)
        for other in (positive, negative)
    )
    return jnp.maximum(0, near - far + jnp.asarray(margin, near.dtype))


@per_example
def info_nce(
    queries: jax.Array, keys: jax.Array, *, temperature: float | jax.Array = 0.07
) -> jax.Array:
    """-log softmax(cos(query_i, key_j) / temperature over j)[i], in nats.

    The keys of the other rows are what a query must tell its own from, so this is a loss of a
    batch: `evaluate`, which sees one example at a time, has nothing to tell it from and gives 0.
    CLIP's loss is the mean of this and of it with queries and keys exchanged.

    Args:
      queries: [B, D].
      keys: [B, D]; row i belongs to query i.
      temperature: > 0; a number, or a scalar array that is learned.

    Returns:
      [B], float32 or better, >= 0.

    Raises:
      PathError: two different shapes, or other than [B, D].
      ValueError: temperature out of range.

    Example:
      >>> [round(float(nats), 3) for nats in info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0)]
      [0.313, 0.313]

    Source: van den Oord, Li and Vinyals 2018, "Representation Learning with Contrastive Predictive
    Coding", equation 4; the cosine and the temperature are Wu et al.'s 2018, equation 2.
    """
    scores = _cosines("info_nce", queries, keys)
    check_number("info_nce", "temperature", temperature, "(0, inf]", "0.07 is usual")
    scores = scores / jnp.asarray(temperature, scores.dtype)
    return softmax_cross_entropy(scores, jnp.arange(len(scores)))


@per_example
def sigmoid_contrastive(
    a: jax.Array,
    b: jax.Array,
    *,
    scale: float | jax.Array = 10.0,
    bias: float | jax.Array = -10.0,
) -> jax.Array:
    """-sum_j log sigmoid(z_ij (scale * cos(a_i, b_j) + bias)), z_ij = 1 where i = j, else -1.

    A loss of a batch, as `info_nce`; but every pair is judged by itself.

    Args:
      a: [B, D].
      b: [B, D]; row i belongs to row i of a.
      scale: > 0; a number, or a scalar array that is learned.
      bias: likewise; the paper begins at 10 and -10.

    Returns:
      [B], float32 or better, >= 0; the mean over B is the paper's loss.

    Raises:
      PathError: two different shapes, or other than [B, D].
      ValueError: scale out of range.

    Example:
      >>> [round(float(nats), 3) for nats in sigmoid_contrastive(jnp.eye(2), jnp.eye(2), bias=0.0)]
      [0.693, 0.693]

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2.
    """
    scores = _cosines("sigmoid_contrastive", a, b)
    check_number("sigmoid_contrastive", "scale", scale, "(0, inf]", "the paper begins at 10")
    scale, bias = jnp.asarray(scale, scores.dtype), jnp.asarray(bias, scores.dtype)
    own = jnp.eye(len(scores), dtype=scores.dtype)
    return sigmoid_cross_entropy(scale * scores + bias, own).sum(-1)


def _cosines(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """[B, B], the cosine of each row of a with each row of b."""
    a, b = alike(name, a, b)
    if a.ndim != 2:
        raise PathError(
            f"expected two arrays [B, D], got {list(a.shape)}; one row for each example", layer=name
        )
    return direction(a, -1) @ direction(b, -1).T


def _check_margin(name: str, margin: Any) -> None:
    check_number(name, "margin", margin, "(0, inf]", "1 is usual")
