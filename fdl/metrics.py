"""Metrics: what people read, as the loss is what the optimizer reads; per example, like losses."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdl.losses.shapes import wide
from fdl.paths import PathError


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest logit is the label's, else 0.

    Args:
      logits: [..., C].
      labels: [...], integers in [0, C).

    Returns:
      [...], float32; of equal largest logits the first one counts. A row with a NaN counts as 0.

    Raises:
      PathError: labels not shaped as the logits without their last axis.

    Example:
      >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
      Array([1., 0.], dtype=float32)
    """
    if logits.shape[:-1] != labels.shape:
        raise PathError(
            f"expected labels {list(logits.shape[:-1])} for logits {list(logits.shape)}, got "
            f"{list(labels.shape)}; one class number for each row of logits",
            layer="accuracy",
        )
    labels = wide(labels)
    right = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return (right & ~jnp.isnan(logits).any(-1)).astype(jnp.float32)


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, classes: int) -> np.ndarray:
    """How often each class was taken for each.

    Args:
      predicted: [N], integers in [0, classes).
      labels: [N], integers in [0, classes).
      classes: C.

    Returns:
      [C, C], int64; row: the label, column: the prediction. NumPy, not for use under jit.

    Raises:
      ValueError: different lengths, or a class out of range.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 1, 0], 2)
      array([[1, 1],
             [0, 1]])
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or predicted.ndim != 1:
        raise ValueError(
            f"confusion_matrix: expected predicted [N] and labels [N], got "
            f"{list(predicted.shape)} and {list(labels.shape)}; take the argmax of logits first"
        )
    both = np.concatenate([predicted, labels])
    if both.size and (both.min() < 0 or both.max() >= classes):
        raise ValueError(
            f"confusion_matrix: expected classes in [0, {classes}), got {both.min()} to "
            f"{both.max()}; raise classes or mend the labels"
        )
    cells = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    counts = np.bincount(cells, minlength=classes**2)
    return counts.reshape(classes, classes)
