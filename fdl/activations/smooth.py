"""Smooth rectifiers: near 0 for x far below 0, near x for x far above 0; and `identity`.

Except for `hard_silu`, they have no corner.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import math

import jax
import jax.numpy as jnp

from fdl.activations.rectifiers import like
from fdl.activations.sigmoids import hard_sigmoid, sigmoid
from fdl.checks import check_floating
from fdl.ops.numerics import widened
from fdl.options import options_first

# For |x| > FAR, `squareplus` uses |x| in place of sqrt(x^2 + b). In float32 they are equal, and x^2
# could overflow.
FAR = 2.0**40


@options_first
def gelu(x: jax.Array, *, approximate: bool = True) -> jax.Array:
    """The Gaussian error linear unit: x * P(Z < x), with Z standard normal.

    Args:
      x: [...], a floating dtype.
      approximate: True uses the paper's approximation by tanh; False computes the exact function.

    Returns:
      [...], same dtype as x.

    Raises:
      PathError: x is not an array, or has an integer dtype.

    Example:
      >>> gelu(jnp.array([0.0, 1.0])).round(3)
      Array([0.   , 0.841], dtype=float32)

    Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
    """
    check_floating("gelu", x)
    y = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    if not approximate:
        return _at_infinity(x, jax.nn.gelu(y, approximate=False).astype(x.dtype))
    # The code computes sigmoid(2 u) in place of the paper's (1 + tanh u) / 2. They are equal, but
    # the sigmoid has no cancellation for u < 0. x is clipped to [-12, 12], beyond which the sigmoid
    # is 0 or 1 in float32. Without the clip, the gradient would be NaN for a huge x: the sigmoid's
    # slope of 0 times the infinite slope of the cube.
    near = jnp.clip(y, -12, 12)
    share = sigmoid(2 * math.sqrt(2 / math.pi) * (near + 0.044715 * near**3))
    return _at_infinity(x, (y * share).astype(x.dtype))


def silu(x: jax.Array) -> jax.Array:
    """The sigmoid linear unit, also called swish: x * sigmoid(x).

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> silu(jnp.array([0.0, 1.0])).round(3)
      Array([0.   , 0.731], dtype=float32)

    Source: Hendrycks and Gimpel 2016, arXiv 1606.08415; Elfwing et al. 2017, arXiv 1702.03118.
    """
    return _at_infinity(x, x * sigmoid(x))


def hard_silu(x: jax.Array) -> jax.Array:
    """x * hard_sigmoid(x), also called hard swish.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> hard_silu(jnp.array([-4.0, 3.0]))
      Array([-0.,  3.], dtype=float32)

    Source: Howard et al. 2019, arXiv 1905.02244, section 5.2.
    """
    return _at_infinity(x, x * hard_sigmoid(x))


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x)).

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> mish(jnp.array([0.0, 100.0]))
      Array([  0., 100.], dtype=float32)

    Source: Misra 2019, arXiv 1908.08681, equation 1.
    """
    return _at_infinity(x, x * jnp.tanh(softplus(x)))


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + e^x), without overflow.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> softplus(jnp.array([-1000.0, 1000.0]))
      Array([   0., 1000.], dtype=float32)

    Source: Dugas et al. 2001, "Incorporating second-order functional knowledge for better option
    pricing".
    """
    return jax.nn.softplus(x)


@options_first
def squareplus(x: jax.Array, *, b: float = 4.0) -> jax.Array:
    """(x + sqrt(x^2 + b)) / 2: a softplus without exponentials.

    Args:
      x: [...], a floating dtype.
      b: a number >= 0; may be traced. The result at x = 0 is sqrt(b) / 2.

    Returns:
      [...], same dtype as x.

    Raises:
      ValueError: b is not a number.
      PathError: x is not an array, or has an integer dtype.

    Example:
      >>> squareplus(jnp.array([-1e4, 0.0]))
      Array([1.e-04, 1.e+00], dtype=float32)

    Source: Barron 2021, arXiv 2112.11687, equation 1.
    """
    # For x far below 0, the formula of the docstring loses all digits: at -1e4 it would give 0. So
    # the code computes the equal max(x, 0) + b / 2 / (|x| + sqrt(x^2 + b)).
    # |x| is computed as max(x, -x), whose slope at 0 is 0 in JAX; the slope of jnp.abs at 0 is 1.
    check_floating("squareplus", x)
    y = widened(x)
    size, constant = jnp.maximum(y, -y), like(y, "squareplus", "b", b)
    root = jnp.where(size > FAR, size, jnp.sqrt(jnp.square(jnp.minimum(size, FAR)) + constant))
    return (jnp.maximum(y, 0) + constant / 2 / (size + root)).astype(x.dtype)


def sparse_plus(x: jax.Array) -> jax.Array:
    """0 for x <= -1, x for x >= 1, else (x + 1)^2 / 4: an approximation of softplus.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> sparse_plus(jnp.array([-2.0, 0.0, 2.0]))
      Array([0.  , 0.25, 2.  ], dtype=float32)

    Source: Martins and Astudillo 2016, arXiv 1602.02068, equation 14, for two classes.
    """
    between = jnp.where(x >= 1, x, jnp.square(jnp.clip(x, -1, 1) + 1) / 4)
    return jnp.where(x <= -1, jnp.zeros_like(x), between)


def identity(x: jax.Array) -> jax.Array:
    """x itself. Use it where an activation is required but none is wanted.

    Args:
      x: any array.

    Returns:
      x.

    Example:
      >>> identity(jnp.array([2.0]))
      Array([2.], dtype=float32)
    """
    return x


def _at_infinity(x: jax.Array, y: jax.Array) -> jax.Array:
    """y, but 0 where x is -inf, because there the formula gives -inf * 0, which is NaN."""
    return jnp.where(jnp.isneginf(x), jnp.zeros_like(y), y)
