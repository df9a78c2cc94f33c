"""Losses of numbers: regression errors and negative log-likelihoods."""

import math

import jax
import jax.numpy as jnp

from fdl.checks import check_number
from fdl.losses.per_example import per_example
from fdl.losses.shapes import magnitude, precise, product, real, same_shape
from fdl.paths import PathError

# Above this log-rate, `poisson_nll` replaces exp by its tangent. e^60 is larger than any count, but
# so small that products with it do not overflow float32.
LARGEST_LOG_RATE = 60.0


@per_example
def squared_error(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """(prediction - target)^2.

    Args:
      predictions: [...].
      targets: [...].
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0. Equal to `optax.squared_error`, and
      twice `optax.l2_loss`.

    Raises:
      PathError: the arguments differ in shape: [B, 1] and [B] would silently broadcast to [B, B].

    Example:
      >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
      Array([0., 4.], dtype=float32)
    """
    predictions, targets = same_shape("squared_error", predictions, targets)
    return jnp.square(predictions - targets)


@per_example
def absolute_error(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """|prediction - target|.

    Args:
      predictions: [...].
      targets: [...].
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0. The gradient is 0 where the error is 0.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> absolute_error(jnp.array([1.0, 3.0]), jnp.array([1.5, 1.0]))
      Array([0.5, 2. ], dtype=float32)
    """
    predictions, targets = same_shape("absolute_error", predictions, targets)
    return magnitude(predictions - targets)


@per_example
def huber(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    delta: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), with e = prediction - target.

    Args:
      predictions: [...].
      targets: [...].
      delta: > 0, the error at which the parabola becomes a straight line. With infinity, the loss
        is always e^2 / 2.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.
      ValueError: delta is out of range.

    Example:
      >>> huber(jnp.array([1.0, 4.0]), jnp.array([0.5, 1.0]))
      Array([0.125, 2.5  ], dtype=float32)

    Source: Huber 1964, "Robust Estimation of a Location Parameter", section 1.
    """
    predictions, targets = same_shape("huber", predictions, targets)
    check_number("huber", "delta", delta, "(0, inf]", "pass 1, the usual value")
    error = predictions - targets
    delta = jnp.asarray(delta, error.dtype)
    far = magnitude(error) > delta
    # The parabola and the line are computed separately. In one formula that adds both, rounding
    # would cancel the slope for large delta.
    near, slope = jnp.where(far, 0, error), jnp.where(far, delta, 0)
    return jnp.where(far, slope * (magnitude(error) - slope / 2), jnp.square(near) / 2)


@per_example
def log_cosh(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """log cosh(prediction - target): a parabola near 0, straight lines far from it.

    Args:
      predictions: [...]. Large values do not overflow.
      targets: [...].
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> [round(float(each), 3) for each in log_cosh(jnp.array([1.0, 1e4]), jnp.zeros(2))]
      [0.434, 9999.307]

    Source: Chen, Chen and Wang 2019, "Log Hyperbolic Cosine Loss Improves Variational
    Auto-Encoder", equation 8.
    """
    predictions, targets = same_shape("log_cosh", predictions, targets)
    error = magnitude(predictions - targets)
    far = error > 1
    # cosh e = 1 + 2 sinh(e / 2)^2. This form has no cancellation near 0.
    near = jnp.log1p(2 * jnp.square(jnp.sinh(jnp.where(far, 0, error) / 2)))
    return jnp.where(far, error + jnp.log1p(jnp.exp(-2 * error)) - math.log(2), near)


@per_example
def quantile(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    level: float | jax.Array = 0.5,
    where: jax.Array | None = None,
) -> jax.Array:
    """level * e where e > 0, else (level - 1) * e, with e = target - prediction.

    The prediction with the smallest mean loss is the quantile of the targets at `level`. For
    level 0.9, nine in ten targets lie below this prediction.

    Args:
      predictions: [...].
      targets: [...].
      level: in (0, 1); 0.5 is the median.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.
      ValueError: level is out of range.

    Example:
      >>> quantile(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]), level=0.75)
      Array([0.75, 0.25], dtype=float32)

    Source: Koenker and Bassett 1978, "Regression Quantiles", section 3.
    """
    predictions, targets = same_shape("quantile", predictions, targets)
    check_number("quantile", "level", level, "(0, 1)", "pass 0.5 for the median")
    error, level = targets - predictions, jnp.asarray(level, predictions.dtype)
    return jnp.where(error > 0, level * error, (level - 1) * error)


@per_example
def gaussian_nll(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    epsilon: float | jax.Array = 1e-6,
    where: jax.Array | None = None,
) -> jax.Array:
    """(log(2 pi v) + (target - mean)^2 / v) / 2, with v = exp(log_variance) + epsilon, in nats.

    Args:
      predictions: [..., 2]: the mean, then the log of the variance.
      targets: [...].
      epsilon: > 0, the smallest variance. With 0, a perfect fit could have a loss of -infinity.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider. The loss is negative where the density is above 1.

    Raises:
      PathError: the shape of the predictions is not (*targets.shape, 2).
      ValueError: epsilon is out of range.

    Example:
      >>> round(float(gaussian_nll(jnp.array([3.0, 0.0]), jnp.array(4.0))), 3)
      1.419

    Source: Nix and Weigend 1994, "Estimating the Mean and Variance of the Target Probability
    Distribution", equation 4.
    """
    predictions = real("gaussian_nll", predictions, "predictions")
    targets = real("gaussian_nll", targets, "targets")
    remedy = "pass the smallest variance, such as 1e-6"
    check_number("gaussian_nll", "epsilon", epsilon, "(0, inf]", remedy)
    if jnp.shape(predictions) != (*jnp.shape(targets), 2):
        raise PathError(
            f"expected predictions {[*jnp.shape(targets), 2]} for targets "
            f"{list(jnp.shape(targets))}, got {list(jnp.shape(predictions))}; pass a mean and "
            "a log-variance for each target",
            layer="gaussian_nll",
        )
    predictions, targets = precise(predictions), precise(targets)
    log_variance = jnp.logaddexp(
        predictions[..., 1], jnp.log(jnp.asarray(epsilon, predictions.dtype))
    )
    score = (targets - predictions[..., 0]) * jnp.exp(-log_variance / 2)
    return (math.log(2 * math.pi) + log_variance + jnp.square(score)) / 2


@per_example
def poisson_nll(
    predictions: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """rate - target * log_rate + log(target!), in nats, with rate = exp(log_rate).

    Args:
      predictions: [...], log_rate. Where log_rate > 60, exp is replaced by its tangent at 60, so
        that loss and gradient stay finite.
      targets: [...], counts >= 0.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider. For integer targets it is >= 0 up to rounding.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> round(float(poisson_nll(jnp.log(2.0), jnp.array(3.0))), 3)
      1.712

    Source: McCullagh and Nelder 1989, "Generalized Linear Models", section 6.2. (log(target!) is
    exact; torch's `poisson_nll_loss(full=True)` approximates it.)
    """
    predictions, targets = same_shape("poisson_nll", predictions, targets)
    far = predictions > LARGEST_LOG_RATE
    near = jnp.where(far, 0, predictions)
    # Written as one product, (largest - targets) * x, because largest * x - targets * x could be
    # inf - inf.
    largest = jnp.exp(jnp.asarray(LARGEST_LOG_RATE, predictions.dtype))
    slope = (largest - targets) * jnp.where(far, predictions, 0)
    tangent = largest * (1 - LARGEST_LOG_RATE) + slope
    curve = jnp.exp(near) - product(targets, near)
    return jnp.where(far, tangent, curve) + jax.scipy.special.gammaln(targets + 1)
