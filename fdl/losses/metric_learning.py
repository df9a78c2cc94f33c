"""Losses that pull matching representations together.

B is the batch size, D the length of a vector.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.cross_entropy import sigmoid_cross_entropy, softmax_cross_entropy
from fdl.losses.per_example import check_where, per_example
from fdl.losses.shapes import real, same_shape
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
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, in [0, 2] up to rounding; 1 where a vector is all zeros.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> cosine_distance(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[-2.0, 0.0], [1.0, 1.0]]))
      Array([2., 1.], dtype=float32)

    Source: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", equation
    6.10.
    """
    predictions, targets = same_shape("cosine_distance", predictions, targets, axes=1)
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
    """same * d^2 / 2 + (1 - same) * max(0, margin - d)^2 / 2, with d = |a - b|.

    Args:
      a: [..., D], the first vector of each pair.
      b: [..., D], the second vector of each pair.
      same: [...], bool, integer or floating: 1 for pairs that match, 0 for pairs that do not. A
        number outside [0, 1] gives NaN.
      margin: > 0. A pair that does not match has loss 0 if its distance is margin or more.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0. Where a equals b, the gradient is 0.

    Raises:
      PathError: a and b differ in shape, or the shape of same is not a.shape[:-1].
      ValueError: margin is out of range.

    Example:
      >>> contrastive(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([True, False]))
      Array([0. , 0.5], dtype=float32)

    Source: Hadsell, Chopra and LeCun 2006, "Dimensionality Reduction by Learning an Invariant
    Mapping", equation 4.
    """
    a, b = same_shape("contrastive", a, b, axes=1)
    same = real("contrastive", same, "same")
    _check_margin("contrastive", margin)
    if a.shape[:-1] != same.shape:
        raise PathError(
            f"expected same {list(a.shape[:-1])} for pairs of {list(a.shape)}, got "
            f"{list(same.shape)}; pass one number for each pair",
            layer="contrastive",
        )
    share = jnp.asarray(same, a.dtype)
    apart = jnp.square(jnp.maximum(0, jnp.asarray(margin, a.dtype) - norm(a - b, -1)))
    close = jnp.where(share == 0, 0, share * jnp.square(a - b).sum(-1))
    loss = (close + (1 - share) * apart) / 2
    return jnp.where((share >= 0) & (share <= 1), loss, jnp.nan)


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
      positive: [..., D], a vector that matches the anchor.
      negative: [..., D], a vector that does not match the anchor.
      margin: > 0. The loss is 0 if the negative is farther from the anchor than the positive by
        margin or more.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0. The distances are not squared, unlike in FaceNet.

    Raises:
      PathError: the arguments differ in shape.
      ValueError: margin is out of range.

    Example:
      >>> triplet(jnp.array([0.0]), jnp.array([1.0]), jnp.array([-4.0]), margin=3.5)
      Array(0.5, dtype=float32)

    Source: Balntas et al. 2016, "Learning Local Feature Descriptors with Triplets and Shallow
    Convolutional Neural Networks", section 2.2; torch's `triplet_margin_loss` with eps 0.
    """
    _check_margin("triplet", margin)
    near, far = (
        norm(jnp.subtract(*same_shape("triplet", anchor, other, axes=1)), -1)
        for other in (positive, negative)
    )
    return jnp.maximum(0, near - far + jnp.asarray(margin, near.dtype))


@functools.partial(per_example, of_batches=True)
def info_nce(
    queries: jax.Array,
    keys: jax.Array,
    *,
    temperature: float | jax.Array = 0.07,
    where: jax.Array | None = None,
) -> jax.Array:
    """-log softmax over j of (cos(query_i, key_j) / temperature), taken at j = i, in nats.

    For each query, the keys of the batch are the classes, and the matching key is the label. So the
    loss depends on the whole batch, and the value from `fdl.evaluate` depends on batch_size. The
    loss of CLIP is the mean of info_nce(a, b) and info_nce(b, a).

    Args:
      queries: [B, D].
      keys: [B, D]. Row i is the key that matches query i.
      temperature: > 0; a number, or a learned scalar array.
      where: bool [B], by default all True. Where it is False, the row is left out: its loss and
        gradient are 0, and no other query is compared with its key. NaNs in this row have no
        effect.

    Returns:
      [B], float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape, or do not have two axes, or where is not [B].
      ValueError: temperature is out of range.

    Example:
      >>> [round(float(nats), 3) for nats in info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0)]
      [0.313, 0.313]

    Source: van den Oord, Li and Vinyals 2018, "Representation Learning with Contrastive Predictive
    Coding", equation 4; the cosine and the temperature are from Wu et al. 2018,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", equation 2.
    """
    scores = _cosines("info_nce", queries, keys)
    check_number("info_nce", "temperature", temperature, "(0, inf]", "pass 0.07, the usual value")
    scores = scores / jnp.asarray(temperature, scores.dtype)
    if not len(scores):
        return scores.sum(-1)
    if where is not None:
        check_where("info_nce", where, scores.shape[:1])
        scores = jnp.where(where, scores, -jnp.inf)
    return softmax_cross_entropy(scores, jnp.arange(len(scores)))


@functools.partial(per_example, of_batches=True)
def sigmoid_contrastive(
    a: jax.Array,
    b: jax.Array,
    *,
    scale: float | jax.Array = 10.0,
    bias: float | jax.Array = -10.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """-sum_j log sigmoid(z_ij (scale * cos(a_i, b_j) + bias)), where z_ij = 1 if i = j, else -1.

    Like `info_nce`, this loss needs a batch, but each pair (i, j) is scored independently.

    Args:
      a: [B, D].
      b: [B, D]. Row i of b matches row i of a.
      scale: > 0; a number, or a learned scalar array.
      bias: a number, or a learned scalar array. (The paper starts with scale 10 and bias -10.)
      where: bool [B], by default all True. Where it is False, the row is left out: its loss and
        gradient are 0, and no other row is compared with it. NaNs in this row have no effect.

    Returns:
      [B], float32 or wider, >= 0. The mean over B is the loss of the paper.

    Raises:
      PathError: the arguments differ in shape, or do not have two axes, or where is not [B].
      ValueError: scale is out of range.

    Example:
      >>> [round(float(nats), 3) for nats in sigmoid_contrastive(jnp.eye(2), jnp.eye(2), bias=0.0)]
      [0.693, 0.693]

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2.
    """
    scores = _cosines("sigmoid_contrastive", a, b)
    check_number("sigmoid_contrastive", "scale", scale, "(0, inf]", "pass 10, the usual value")
    scale, bias = jnp.asarray(scale, scores.dtype), jnp.asarray(bias, scores.dtype)
    matches = jnp.eye(len(scores), dtype=scores.dtype)
    losses = sigmoid_cross_entropy(scale * scores + bias, matches)
    if where is not None:
        check_where("sigmoid_contrastive", where, scores.shape[:1])
    return losses.sum(-1, where=where)


def _cosines(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """[B, B], the cosine of every row of a with every row of b."""
    a, b = same_shape(name, a, b)
    if a.ndim != 2:
        raise PathError(
            f"expected two arrays [B, D], got {list(a.shape)}; pass one row for each example",
            layer=name,
        )
    return direction(a, -1) @ direction(b, -1).T


def _check_margin(name: str, margin: Any) -> None:
    check_number(name, "margin", margin, "(0, inf]", "pass 1, the usual value")
