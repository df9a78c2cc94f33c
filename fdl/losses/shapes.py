"""Checks of shapes and dtypes, and numerical helpers, shared by the losses."""

from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array
from fdl.paths import PathError


def precise(x: jax.Array) -> jax.Array:
    """x converted to float32, except that float64 stays float64."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def real(name: str, x: Any, what: str) -> jax.Array:
    """x as an array of real numbers.

    Raises:
      PathError: x is not an array or a number (for example a list or None), or x is complex.
    """
    if not isinstance(x, Number):
        check_array(name, x, what)
    if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
        raise PathError(
            f"expected real {what}, got {jnp.result_type(x)}; pass the real part, the imaginary "
            "part or the absolute value",
            layer=name,
        )
    return jnp.asarray(x)


def magnitude(x: jax.Array) -> jax.Array:
    """|x|. The slope at 0 is 0; the slope of `jnp.abs` at 0 is 1."""
    return jnp.maximum(x, -x)


def product(weights: jax.Array, nats: jax.Array) -> jax.Array:
    """weights * nats, where 0 * inf is taken as 0."""
    return weights * jnp.where((weights == 0) & jnp.isinf(nats), 0, nats)


@jax.custom_jvp
def bounded(x: jax.Array) -> jax.Array:
    """x, where inf becomes the dtype's largest finite number, and -inf becomes minus that number.

    The slope is 1 everywhere. Use it where inf - inf or 0 * inf would give NaN in
    the forward pass.
    """
    most = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -most, most)


@bounded.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return bounded(*primals), tangents[0]


def same_shape(
    name: str, predictions: jax.Array, targets: jax.Array, axes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Checks that predictions and targets have one shape; returns both in float32 or wider.

    Args:
      name: the name of the loss, for error messages.
      predictions: [...].
      targets: [...], floating, integer or bool.
      axes: the smallest number of axes that predictions may have.

    Raises:
      PathError: an argument is not an array of real numbers, or the shapes differ: [B, 1] and [B]
        would otherwise broadcast to [B, B].
    """
    predictions = real(name, predictions, "predictions")
    targets = real(name, targets, "targets")
    if predictions.shape != targets.shape:
        raise PathError(
            f"expected targets with the shape of the predictions, {list(predictions.shape)}, got "
            f"{list(targets.shape)}; reshape one of them",
            layer=name,
        )
    if predictions.ndim < axes:
        raise PathError(
            f"expected predictions [..., D], got {list(predictions.shape)}; pass arrays with an "
            "axis of features",
            layer=name,
        )
    predictions = precise(predictions)
    if jnp.issubdtype(jnp.result_type(targets), jnp.floating):
        return predictions, precise(targets)
    return predictions, jnp.asarray(targets, predictions.dtype)


def logits_and_labels(
    name: str, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits in float32 or wider, and labels as in `wide_labels`.

    Args:
      name: the name of the loss, for error messages.
      logits: [..., C].
      labels: [...], integers.

    Raises:
      PathError: labels are not integers, or their shape is not logits.shape[:-1].
    """
    logits, labels = real(name, logits, "logits"), real(name, labels, "labels")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise PathError(
            f"expected logits [..., C] with C >= 1, got {list(logits.shape)}; pass one logit for "
            "each class",
            layer=name,
        )
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise PathError(
            f"expected integer labels {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}; pass one label for each row of logits",
            layer=name,
        )
    return precise(logits), wide_labels(labels)


def wide_labels(labels: jax.Array) -> jax.Array:
    """Labels in 32 bits or more. The number of classes might not fit in 8 or 16 bits."""
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def one_hot(labels: jax.Array, classes: int) -> jax.Array:
    """bool [..., C], True at the label. For a label out of range, all are False."""
    return jnp.arange(classes, dtype=labels.dtype) == labels[..., None]


def nan_outside(loss: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The loss, replaced by NaN where the label is not in [0, classes)."""
    return jnp.where((labels >= 0) & (labels < classes), loss, jnp.full_like(loss, jnp.nan))
