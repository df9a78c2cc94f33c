"""What every loss asks of its arguments: shapes that fit, and float32 or better to compute in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdl.paths import PathError

Loss = Callable[..., jax.Array]


def precise(x: jax.Array) -> jax.Array:
    """The same numbers in float32, or in float64 where they came so.

    Example:
      >>> precise(jnp.ones(2, jnp.bfloat16)).dtype, precise(jnp.array([True])).dtype
      (dtype('float32'), dtype('float32'))
    """
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def alike(name: str, predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Predictions and targets of one shape, both in float32 or better.

    Args:
      name: of the loss that asks.
      predictions: [...].
      targets: [...]; of a floating dtype, or whole numbers or bool.

    Raises:
      PathError: two different shapes; [B, 1] and [B] would silently broadcast to [B, B].

    Example:
      >>> alike("huber", jnp.ones((2, 1)), jnp.ones(2))
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: huber: expected targets [2, 1] as the predictions, got [2]; ...
    """
    if jnp.shape(predictions) != jnp.shape(targets):
        raise PathError(
            f"expected targets {list(jnp.shape(predictions))} as the predictions, got "
            f"{list(jnp.shape(targets))}; reshape one of them",
            layer=name,
        )
    predictions = precise(predictions)
    if jnp.issubdtype(jnp.result_type(targets), jnp.floating):
        return predictions, precise(targets)
    return predictions, jnp.asarray(targets, predictions.dtype)


def classified(name: str, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits in float32 or better, and labels in a dtype that holds any number of classes.

    Args:
      name: of the loss that asks.
      logits: [..., C].
      labels: [...], integers.

    Raises:
      PathError: labels that are not integers, or not shaped as the logits without their last axis.

    Example:
      >>> classified("softmax_focal", jnp.ones((2, 3)), jnp.zeros((2, 3), int))
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: softmax_focal: expected integer labels [2] for logits [2, 3], got ...
    """
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise PathError(
            f"expected integer labels {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}; one class number for each row of logits",
            layer=name,
        )
    return precise(logits), wide(labels)


def wide(labels: jax.Array) -> jax.Array:
    """Class numbers in a dtype that holds any number of classes.

    Example:
      >>> wide(jnp.zeros(2, jnp.uint8)).dtype
      dtype('int32')
    """
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def one_hot(labels: jax.Array, classes: int) -> jax.Array:
    """[..., C], True at the label's place; nowhere for a label out of range.

    Example:
      >>> one_hot(jnp.array([1, 3]), 2)
      Array([[False,  True],
             [False, False]], dtype=bool)
    """
    return jnp.arange(classes, dtype=labels.dtype) == labels[..., None]


def nan_outside(loss: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The loss, and NaN where the label is not in [0, classes).

    Example:
      >>> nan_outside(jnp.ones(2), jnp.array([1, 3]), 2)
      Array([ 1., nan], dtype=float32)
    """
    return jnp.where((labels >= 0) & (labels < classes), loss, jnp.full_like(loss, jnp.nan))
