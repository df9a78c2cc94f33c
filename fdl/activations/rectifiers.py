"""Rectifiers: `relu`, which is max(x, 0), and its variants; and two functions that shrink x.

As in torch, the slope at a corner is the slope of the constant side. If no side is constant, it is
the slope of the left side. Options are numbers, or arrays that broadcast to x; they may be traced.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_number
from fdl.options import options_first


def relu(x: jax.Array) -> jax.Array:
    """The rectifier: max(x, 0), with gradient 0 at 0.

    Args:
      x: [...], a real dtype.

    Returns:
      [...], same dtype as x. NaN stays NaN.

    Example:
      >>> relu(jnp.array([-2.0, 0.0, 3.0]))
      Array([0., 0., 3.], dtype=float32)

    Source: Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines".
    """
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6).

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> relu6(jnp.array([-1.0, 3.0, 9.0]))
      Array([0., 3., 6.], dtype=float32)

    Source: Krizhevsky 2010, "Convolutional deep belief networks on CIFAR-10".
    """
    return clipped(x, 0.0, 6.0)


def squared_relu(x: jax.Array) -> jax.Array:
    """max(x, 0)^2.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> squared_relu(jnp.array([-2.0, 3.0]))
      Array([0., 9.], dtype=float32)

    Source: So et al. 2021, arXiv 2109.08668, section 3.
    """
    return jnp.square(relu(x))


@options_first
def leaky_relu(x: jax.Array, *, negative_slope: jax.Array | float = 0.01) -> jax.Array:
    """x where x > 0, else negative_slope * x.

    The layer `prelu` learns the slope; the layer `rrelu` draws it at random.

    Args:
      x: [...], a floating dtype.
      negative_slope: the slope for x <= 0: a number, or an array that broadcasts to x; may be
        traced.

    Returns:
      [...], same dtype as x.

    Raises:
      ValueError: negative_slope is not a number.

    Example:
      >>> leaky_relu(jnp.array([-2.0, 3.0]), negative_slope=0.5)
      Array([-1.,  3.], dtype=float32)

    Source: Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural network
    acoustic models".
    """
    return jnp.where(x <= 0, like(x, "leaky_relu", "negative_slope", negative_slope) * x, x)


@options_first
def elu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """x where x > 0, else alpha * (e^x - 1).

    Args:
      x: [...], a floating dtype.
      alpha: the result tends to -alpha as x tends to -infinity; may be traced.

    Returns:
      [...], same dtype as x.

    Raises:
      PathError: x is not an array.
      ValueError: alpha is not a number.

    Example:
      >>> elu(jnp.array([-100.0, 3.0]))
      Array([-1.,  3.], dtype=float32)

    Source: Clevert, Unterthiner and Hochreiter 2015, arXiv 1511.07289, equation 16.
    """
    return jax.nn.elu(x, like(x, "elu", "alpha", alpha))


@options_first
def celu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """x where x > 0, else alpha * (e^(x / alpha) - 1): an ELU with a continuous slope.

    Args:
      x: [...], a floating dtype.
      alpha: the result tends to -alpha as x tends to -infinity; may be traced.

    Returns:
      [...], same dtype as x.

    Raises:
      PathError: x is not an array.
      ValueError: alpha is not a number.

    Example:
      >>> celu(jnp.array([-100.0, 3.0]), alpha=2.0)
      Array([-2.,  3.], dtype=float32)

    Source: Barron 2017, arXiv 1704.07483, equation 2.
    """
    return jax.nn.celu(x, like(x, "celu", "alpha", alpha))


def selu(x: jax.Array) -> jax.Array:
    """1.0507 * elu(x, alpha=1.6733).

    In a deep network, selu keeps the means of activations near 0 and their variances near 1.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> selu(jnp.array([-100.0, 1.0])).round(2)
      Array([-1.76,  1.05], dtype=float32)

    Source: Klambauer et al. 2017, arXiv 1706.02515, equation 2.
    """
    return jax.nn.selu(x)


@options_first
def threshold(x: jax.Array, *, level: float, value: float) -> jax.Array:
    """x where x > level, else `value`.

    Args:
      x: [...], a floating dtype.
      level: the threshold; may be traced.
      value: the result where x <= level; may be traced.

    Returns:
      [...], same dtype as x.

    Raises:
      PathError: x is not an array.
      ValueError: level or value is not a number.

    Example:
      >>> threshold(jnp.array([1.0, 3.0]), level=2.0, value=-5.0)
      Array([-5.,  3.], dtype=float32)

    Source: `torch.nn.functional.threshold`. With level=0 and value=0 it is `relu`.
    """
    other = jnp.full_like(x, like(x, "threshold", "value", value))
    return jnp.where(x <= like(x, "threshold", "level", level), other, x)


@options_first
def hard_shrink(x: jax.Array, *, level: float = 0.5) -> jax.Array:
    """0 where |x| <= level, else x.

    Args:
      x: [...], a floating dtype.
      level: the largest |x| that becomes 0; may be traced.

    Returns:
      [...], same dtype as x.

    Raises:
      ValueError: level is not a number.

    Example:
      >>> hard_shrink(jnp.array([-2.0, 0.3, 0.7]))
      Array([-2. ,  0. ,  0.7], dtype=float32)

    Source: Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", section 2.
    """
    return jnp.where(jnp.abs(x) <= like(x, "hard_shrink", "level", level), jnp.zeros_like(x), x)


@options_first
def soft_shrink(x: jax.Array, *, level: float = 0.5) -> jax.Array:
    """x moved towards 0 by `level`; 0 where |x| <= level.

    Args:
      x: [...], a floating dtype.
      level: the distance by which x is moved, >= 0; may be traced.

    Returns:
      [...], same dtype as x.

    Raises:
      PathError: x is not an array.
      ValueError: level is not a number.

    Example:
      >>> soft_shrink(jnp.array([-2.0, 0.3, 1.5]))
      Array([-1.5,  0. ,  1. ], dtype=float32)

    Source: Donoho 1995, "De-noising by soft-thresholding", equation 1.
    """
    size = like(x, "soft_shrink", "level", level)
    return jnp.where(jnp.abs(x) <= size, jnp.zeros_like(x), x - size * jnp.sign(x))


def like(x: jax.Array, who: str, what: str, option: Any) -> jax.Array:
    """Converts an option to the dtype of x, so that a NumPy number does not widen the result.

    If x has an integer dtype, the option becomes float32.

    Raises:
      PathError: x is not an array.
      ValueError: the option is not a number. The message names the activation and the option.
    """
    check_array(who, x)
    check_number(who, what, option, None, "pass a number")
    return jnp.asarray(option, x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32)


def clipped(x: jax.Array, low: float, high: float) -> jax.Array:
    """min(max(x, low), high), with slope 0 at both corners.

    Source: Collobert 2004, "Large scale machine learning", with low = -1 and high = 1.
    """
    below = jnp.where(x >= high, jnp.full_like(x, high), x)
    return jnp.where(x <= low, jnp.full_like(x, low), below)
