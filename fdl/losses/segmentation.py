"""Losses for regions of images, which measure how much two sets of pixels overlap."""

import functools

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.per_example import per_example
from fdl.losses.shapes import same_shape
from fdl.paths import PathError


@functools.partial(per_example, of_regions=True)
def dice(
    logits: jax.Array,
    targets: jax.Array,
    *,
    axis: int | tuple[int, ...] = -1,
    smooth: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """1 - (2 sum p t + smooth) / (sum p + sum t + smooth), p = sigmoid(logits), t = targets.

    Args:
      logits: [...], a floating dtype.
      targets: [...], in [0, 1].
      axis: an axis or a tuple of axes to sum over, the axes of the pixels. For images [B, H, W, K],
        use `axis=(1, 2)`.
      smooth: > 0. It makes the loss 0 if both regions are empty.
      where: bool, the shape of the arguments or their first axes, such as [B, H, W] for images
        [B, H, W, K]; by default all True. Where it is False, the pixel does not enter the sums, and
        NaNs in it have no effect. A region in which no pixel counts has loss 0.

    Returns:
      Shape of the arguments without `axis`, float32 or wider, in [0, 1].

    Raises:
      PathError: the arguments differ in shape, axis is not an axis of them, or where does not fit.
      ValueError: smooth is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> dice(jnp.array([[100.0, -100.0]]), jnp.array([[0.0, 1.0]]), smooth=2.0)
      Array([0.5], dtype=float32)

    Source: Milletari, Navab and Ahmadi 2016, "V-Net", section 3, but p and t are not squared in
    the denominator. (optax's `dice_loss(smooth=s)` is `dice(smooth=2 * s)`.)
    """
    logits, targets = same_shape("dice", logits, targets, axes=1)
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(a, int) and -logits.ndim <= a < logits.ndim for a in axes):
        raise PathError(
            f"expected axis to be an axis of predictions {list(logits.shape)}, got {axis!r}; pass "
            "an axis or a tuple of axes",
            layer="dice",
        )
    check_number("dice", "smooth", smooth, "(0, inf]", "pass 1, the usual value")
    counts = None if where is None else _counts(where, logits.shape)
    # The numerator is a sum of misses, each >= 0, so the loss is never negative. In the form
    # 1 - ratio, rounding could make it negative.
    probabilities, misses = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    missed = (probabilities * (1 - targets) + misses * targets).sum(axis, where=counts)
    smallest = jnp.asarray(smooth, missed.dtype)
    sizes = [each.sum(axis, where=counts) for each in (probabilities, targets)]
    return missed / (sizes[0] + sizes[1] + smallest)


def _counts(where: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`where`, with as many axes as the arguments. The new axes have length 1."""
    if shape[: where.ndim] != where.shape:
        raise PathError(
            f"expected where to have the shape of the predictions, {list(shape)}, or its first "
            f"axes, got {list(where.shape)}; pass True for the pixels that count",
            layer="dice",
        )
    return where.reshape(where.shape + (1,) * (len(shape) - where.ndim))
