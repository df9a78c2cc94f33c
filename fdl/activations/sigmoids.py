"""Sigmoids, which rise from one constant to another, and functions made of sigmoids."""

import jax
import jax.numpy as jnp

from fdl.activations.rectifiers import clipped


def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic function: 1 / (1 + e^-x), between 0 and 1.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x. It does not overflow for any x.

    Example:
      >>> sigmoid(jnp.array([-1000.0, 0.0]))
      Array([0. , 0.5], dtype=float32)

    Source: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating
    errors", equation 2.
    """
    return jax.nn.sigmoid(x)


def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent: (e^x - e^-x) / (e^x + e^-x), between -1 and 1.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> tanh(jnp.array([0.0, 100.0]))
      Array([0., 1.], dtype=float32)

    Source: LeCun, Bottou, Orr and Mueller 1998, "Efficient backprop", section 4.4.
    """
    return jnp.tanh(x)


def log_sigmoid(x: jax.Array) -> jax.Array:
    """log(sigmoid(x)), computed as -softplus(-x), without underflow.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> log_sigmoid(jnp.array([-1000.0, 1000.0]))
      Array([-1000.,    -0.], dtype=float32)

    Source: `jax.nn.log_sigmoid`.
    """
    return jax.nn.log_sigmoid(x)


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """min(max(x + 3, 0), 6) / 6: a sigmoid made of three straight lines.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> hard_sigmoid(jnp.array([-4.0, 0.0, 4.0]))
      Array([0. , 0.5, 1. ], dtype=float32)

    Source: Howard et al. 2019, arXiv 1905.02244, section 5.2.
    """
    return clipped(x + 3, 0.0, 6.0) / 6


def sparse_sigmoid(x: jax.Array) -> jax.Array:
    """min(max(x + 1, 0), 2) / 2: the derivative of `sparse_plus`.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> sparse_sigmoid(jnp.array([-2.0, 0.0, 2.0]))
      Array([0. , 0.5, 1. ], dtype=float32)

    Source: Martins and Astudillo 2016, arXiv 1602.02068, equation 9 (sparsemax of two classes).
    """
    return clipped(x + 1, 0.0, 2.0) / 2


def hard_tanh(x: jax.Array) -> jax.Array:
    """min(max(x, -1), 1).

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> hard_tanh(jnp.array([-3.0, 0.5, 3.0]))
      Array([-1. ,  0.5,  1. ], dtype=float32)

    Source: Collobert 2004, "Large scale machine learning".
    """
    return clipped(x, -1.0, 1.0)


def soft_sign(x: jax.Array) -> jax.Array:
    """x / (1 + |x|): approaches -1 and 1 more slowly than tanh.

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> soft_sign(jnp.array([-1.0, 3.0]))
      Array([-0.5 ,  0.75], dtype=float32)

    Source: Bergstra et al. 2009, "Quadratic polynomials learn better image features".
    """
    most = jnp.finfo(x.dtype).max
    x = jnp.clip(x, -most, most)  # infinity / infinity would be NaN
    return x / (1 + jnp.abs(x))


def tanh_shrink(x: jax.Array) -> jax.Array:
    """x - tanh(x).

    Args:
      x: [...], a floating dtype.

    Returns:
      [...], same dtype as x.

    Example:
      >>> tanh_shrink(jnp.array([0.0, 100.0]))
      Array([ 0., 99.], dtype=float32)

    Source: `torch.nn.Tanhshrink`.
    """
    return x - jnp.tanh(x)
