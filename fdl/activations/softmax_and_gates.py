"""Activations of a whole vector: class probabilities, standardization, and gates.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import jax
import jax.numpy as jnp

from fdl.activations.sigmoids import sigmoid
from fdl.activations.smooth import gelu, silu
from fdl.checks import check_number
from fdl.ops.numerics import deviations, widened
from fdl.ops.rank_promotion import free_ranks
from fdl.options import options_first
from fdl.paths import PathError
from fdl.typing import Activation


@options_first
def softmax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """e^x / sum e^x: the probabilities of classes.

    Args:
      x: [..., C], a floating dtype.
      axis: the axis of the classes.

    Returns:
      [..., C], same dtype as x. The sum along `axis` is 1.

    Example:
      >>> softmax(jnp.array([1000.0, 1000.0]))
      Array([0.5, 0.5], dtype=float32)

    Source: Bridle 1990, "Probabilistic interpretation of feedforward network outputs".
    """
    return jax.nn.softmax(x, axis=axis)


@options_first
def log_softmax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """log(softmax(x)), without underflow.

    Args:
      x: [..., C], a floating dtype.
      axis: the axis of the classes.

    Returns:
      [..., C], same dtype as x.

    Example:
      >>> log_softmax(jnp.array([0.0, -1000.0]))
      Array([    0., -1000.], dtype=float32)

    Source: `jax.nn.log_softmax`.
    """
    return jax.nn.log_softmax(x, axis=axis)


@options_first
def softmin(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """softmax(-x): the smallest x gets the largest probability.

    Args:
      x: [..., C], a floating dtype.
      axis: the axis of the classes.

    Returns:
      [..., C], same dtype as x. The sum along `axis` is 1.

    Example:
      >>> softmin(jnp.array([1000.0, 1000.0]))
      Array([0.5, 0.5], dtype=float32)

    Source: `torch.nn.Softmin`.
    """
    return jax.nn.softmax(-x, axis=axis)


@options_first
def sparsemax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """The vector of probabilities that is nearest to x. Many of them are exactly 0.

    p = max(x - tau, 0), where tau is chosen so that the sum of p is 1.

    Args:
      x: [..., C], a floating dtype.
      axis: the axis of the classes.

    Returns:
      p, [..., C], same dtype as x. The sum along `axis` is 1.

    Example:
      >>> sparsemax(jnp.array([0.0, 0.5, 1000.0]))
      Array([0., 0., 1.], dtype=float32)

    Source: Martins and Astudillo 2016, arXiv 1602.02068, algorithm 1 and proposition 2.
    """
    exact = widened(x)
    # Adding a constant to x does not change the result. The maximum is subtracted so that the
    # largest z is 0, and the cumulative sums below do not become large.
    z = exact - jax.lax.stop_gradient(exact.max(axis, keepdims=True))
    count = z.shape[axis]
    falling = jax.lax.stop_gradient(jnp.flip(jnp.sort(jnp.moveaxis(z, axis, -1), axis=-1), -1))
    ranks = jnp.arange(1, count + 1).astype(z.dtype)
    with free_ranks():
        inside = (1 + ranks * falling > jnp.cumsum(falling, -1)).sum(-1, keepdims=True)
    smallest = jnp.moveaxis(jnp.take_along_axis(falling, jnp.maximum(inside - 1, 0), -1), -1, axis)
    support = z >= smallest
    total = jnp.where(support, z, jnp.zeros_like(z)).sum(axis, keepdims=True)
    tau = (total - 1) / support.sum(axis, keepdims=True).astype(z.dtype)
    shown = support | jnp.isnan(z)
    return jnp.where(shown, z - tau, jnp.zeros_like(z)).astype(x.dtype)


@options_first
def standardize(x: jax.Array, *, axis: int = -1, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) along one axis: `layer_norm` without scale and bias.

    Args:
      x: [..., D], a floating dtype. Mean and variance are computed in float32 or wider.
      axis: the axis over which mean and variance are computed.
      epsilon: a number > 0 that is added to the variance; may be traced.

    Returns:
      [..., D], same dtype as x.

    Raises:
      ValueError: epsilon is not above 0.

    Example:
      >>> standardize(jnp.array([1.0, 3.0])).round(3)
      Array([-1.,  1.], dtype=float32)

    Source: Ba, Kiros and Hinton 2016, arXiv 1607.06450, equation 3. `jax.nn.standardize` computes
    the variance as mean(x^2) - mean(x)^2, which loses digits if the mean is large; this function
    averages the squared deviations.
    """
    remedy = "pass a number such as 1e-5; with 0, a constant x would give NaN"
    check_number("standardize", "epsilon", epsilon, "(0, inf]", remedy)
    return deviations(x, (axis,), epsilon).standard(epsilon).astype(x.dtype)


def glu(x: jax.Array) -> jax.Array:
    """The first half of x times the sigmoid of the second half; maps [..., 2 C] to [..., C].

    Args:
      x: [..., 2 C], a floating dtype.

    Returns:
      [..., C], same dtype as x.

    Raises:
      PathError: the last axis of x has an odd size, or x has no axes.

    Example:
      >>> glu(jnp.array([6.0, 0.0]))
      Array([3.], dtype=float32)

    Source: Dauphin et al. 2016, arXiv 1612.08083, equation 1. The halves are in the same
    order as in torch and jax.nn.
    """
    return _halves("glu", x, sigmoid)


def swiglu(x: jax.Array) -> jax.Array:
    """The first half of x times the silu of the second half; maps [..., 2 C] to [..., C].

    Args:
      x: [..., 2 C], a floating dtype.

    Returns:
      [..., C], same dtype as x.

    Raises:
      PathError: the last axis of x has an odd size, or x has no axes.

    Example:
      >>> swiglu(jnp.array([6.0, 0.0]))
      Array([0.], dtype=float32)

    Source: Shazeer 2020, arXiv 2002.05202, equation 5.
    """
    return _halves("swiglu", x, silu)


def geglu(x: jax.Array) -> jax.Array:
    """The first half of x times the gelu of the second half; maps [..., 2 C] to [..., C].

    Args:
      x: [..., 2 C], a floating dtype.

    Returns:
      [..., C], same dtype as x.

    Raises:
      PathError: the last axis of x has an odd size, or x has no axes.

    Example:
      >>> geglu(jnp.array([6.0, 0.0]))
      Array([0.], dtype=float32)

    Source: Shazeer 2020, arXiv 2002.05202, equation 5.
    """
    return _halves("geglu", x, gelu)


def _halves(name: str, x: jax.Array, gate: Activation) -> jax.Array:
    """Splits the last axis in halves a and b, and returns a * gate(b)."""
    if x.ndim < 1 or x.shape[-1] % 2:
        raise PathError(
            f"expected x [..., 2 C], got {list(x.shape)}; give x an even number of features, half "
            "for the value and half for the gate",
            layer=name,
        )
    value, opening = jnp.split(x, 2, -1)
    return value * gate(opening)
