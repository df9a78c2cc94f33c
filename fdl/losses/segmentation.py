"""Losses of regions: how far two sets of pixels overlap."""

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.per_example import per_example
from fdl.losses.shapes import alike
from fdl.paths import PathError


@per_example
def dice(
    logits: jax.Array,
    targets: jax.Array,
    *,
    axis: int | tuple[int, ...] = -1,
    smooth: float | jax.Array = 1.0,
) -> jax.Array:
    """1 - (2 sum p t + smooth) / (sum p + sum t + smooth), with p = sigmoid(logits).

    Args:
      logits: [...], a floating dtype.
      targets: [...], in [0, 1].
      axis: what is summed over, the pixels: `axis=(1, 2)` for images [B, H, W, K].
      smooth: > 0; two empty regions overlap fully.

    Returns:
      The shape without `axis`, float32 or better, in [0, 1].

    Raises:
      PathError: two different shapes.
      ValueError: smooth out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> dice(jnp.array([[100.0, -100.0]]), jnp.array([[0.0, 1.0]]), smooth=2.0)
      Array([0.5], dtype=float32)

    Source: Milletari, Navab and Ahmadi 2016, "V-Net", section 3, with p and t in the denominator as
    they are and not squared. (optax's `dice_loss` has half of `smooth` at the same place.)
    """
    logits, targets = alike("dice", logits, targets, axes=1)
    known = f"it is an axis of {list(logits.shape)}, or a tuple of them"
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(a, int) and -logits.ndim <= a < logits.ndim for a in axes):
        raise PathError(f"expected axis in the predictions, got {axis!r}; {known}", layer="dice")
    empty = "1 is usual; two empty regions are to overlap fully"
    check_number("dice", "smooth", smooth, "(0, inf]", empty)
    # Never below 0: both sums are taken of what is missing, not of a difference near 1.
    chances, misses = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    apart = (chances * (1 - targets) + misses * targets).sum(axis)
    smallest = jnp.asarray(smooth, apart.dtype)
    return apart / (chances.sum(axis) + targets.sum(axis) + smallest)
