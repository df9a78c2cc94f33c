"""What every loss asks of its arguments: shapes that fit, and float32 or better to compute in."""

from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array
from fdl.paths import PathError


def precise(x: jax.Array) -> jax.Array:
    """The same numbers in float32, or in float64 where they came so."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def real(name: str, x: Any, what: str) -> jax.Array:
    """An array of real numbers; a single number is one too.

    Raises:
      PathError: a list, None or text, or complex numbers.
    """
    if not isinstance(x, Number):
        check_array(name, x, what)
    if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
        raise PathError(
            f"expected real {what}, got {jnp.result_type(x)}; score the real and the imaginary "
            "part, or the distance",
            layer=name,
        )
    return jnp.asarray(x)


def magnitude(x: jax.Array) -> jax.Array:
    """|x|, with the slope 0 at 0: that of `jnp.abs` is 1 there."""
    return jnp.maximum(x, -x)


def product(chances: jax.Array, nats: jax.Array) -> jax.Array:
    """chances * nats, and 0 where infinitely many nats have no chance."""
    return chances * jnp.where((chances == 0) & jnp.isinf(nats), 0, nats)


@jax.custom_jvp
def bounded(x: jax.Array) -> jax.Array:
    """x, with the largest finite number for infinity, and the slope of x itself.

    For what is added to infinity, or multiplied by a slope of 0, and so would give NaN.
    """
    most = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -most, most)


@bounded.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return bounded(*primals), tangents[0]


def fixed_at_infinity(x: jax.Array) -> jax.Array:
    """x, with a slope of 0 where it is infinite, for a factor whose slope there is 0 * inf."""
    return jnp.where(jnp.isinf(x), jax.lax.stop_gradient(x), x)


def alike(
    name: str, predictions: jax.Array, targets: jax.Array, axes: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Predictions and targets of one shape, both in float32 or better.

    Args:
      name: of the loss that asks.
      predictions: [...].
      targets: [...]; of a floating dtype, or whole numbers or bool.
      axes: how many axes they have at least.

    Raises:
      PathError: no arrays of real numbers, or two different shapes; [B, 1] and [B] would silently
        broadcast to [B, B].
    """
    predictions = real(name, predictions, "predictions")
    targets = real(name, targets, "targets")
    if predictions.shape != targets.shape:
        raise PathError(
            f"expected targets {list(predictions.shape)} as the predictions, got "
            f"{list(targets.shape)}; reshape one of them",
            layer=name,
        )
    if predictions.ndim < axes:
        raise PathError(
            "expected predictions with an axis of numbers that belong together, got a single one; "
            "give arrays [..., D]",
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
    """
    logits, labels = real(name, logits, "logits"), real(name, labels, "labels")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise PathError(
            f"expected logits [..., C] with C >= 1, got {list(logits.shape)}; give a number for "
            "each class",
            layer=name,
        )
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise PathError(
            f"expected integer labels {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}; one class number for each row of logits",
            layer=name,
        )
    return precise(logits), wide_labels(labels)


def wide_labels(labels: jax.Array) -> jax.Array:
    """Class numbers in a dtype that holds any number of classes."""
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def one_hot(labels: jax.Array, classes: int) -> jax.Array:
    """[..., C], True at the label's place; nowhere for a label out of range."""
    return jnp.arange(classes, dtype=labels.dtype) == labels[..., None]


def nan_outside(loss: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The loss, and NaN where the label is not in [0, classes)."""
    return jnp.where((labels >= 0) & (labels < classes), loss, jnp.full_like(loss, jnp.nan))
