"""Independent values: normal, cut off, uniform, and scaled by how many inputs a unit has."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fdl.initializers.shape import Initializer, fans, need_key


def normal(stddev: float = 0.01) -> Initializer:
    """Independent normal values of mean 0.

    Args:
      stddev: their standard deviation, >= 0.

    Example:
      >>> normal(0.1)(jax.random.key(0), (3, 2)).shape
      (3, 2)
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return _normal(need_key(key), tuple(shape), jnp.dtype(dtype), float(stddev))

    return init


def uniform(limit: float = 0.01) -> Initializer:
    """Independent values, uniform between -limit and limit; their variance is limit**2 / 3.

    Args:
      limit: > 0.

    Example:
      >>> bool(abs(uniform(0.1)(jax.random.key(0), (100,))).max() <= 0.1)
      True
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(need_key(key), shape, dtype, -limit, limit)

    return init


def truncated_normal(stddev: float = 0.01, lower: float = -2.0, upper: float = 2.0) -> Initializer:
    """Independent values of a normal distribution of mean 0 whose ends are cut off.

    Args:
      stddev: of the whole distribution, >= 0; what is left of it has less (0.88 of it by default).
      lower: where it is cut, in standard deviations.
      upper: where it is cut, in standard deviations, > lower.

    Raises:
      ValueError: lower not below upper.

    Example:
      >>> w = truncated_normal(0.1)(jax.random.key(0), (1000,))
      >>> bool(abs(w).max() <= 0.2)
      True

    The same in `jax.nn.initializers.truncated_normal`.
    """
    if not lower < upper:
        raise ValueError(
            f"truncated_normal: expected lower < upper, got {lower} and {upper}; "
            "give the smaller one first"
        )

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return _truncated(need_key(key), tuple(shape), jnp.dtype(dtype), stddev, lower, upper)

    return init


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg"],
    distribution: Literal["normal", "uniform"],
) -> Initializer:
    """Independent values of mean 0 and variance scale / fan.

    Args:
      scale: > 0.
      mode: which fan: inputs, outputs, or the mean of both.
      distribution: the full normal distribution (not a truncated one), or the uniform.

    Raises:
      PathError: a shape of fewer than two dimensions, which has no fans; no key.
      ValueError: an unknown mode or distribution.

    Example:
      >>> w = variance_scaling(1.0, "fan_in", "normal")(jax.random.key(0), (400, 300))
      >>> round(float(w.var() * 400), 1)
      1.0

    Source: Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852, equations 10 and 14.
    """
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(
            f"variance_scaling: expected mode fan_in, fan_out or fan_avg, got {mode!r}; fan_in "
            "keeps the variance of activations, fan_out that of gradients"
        )
    if distribution not in ("normal", "uniform"):
        raise ValueError(
            f"variance_scaling: expected distribution normal or uniform, got {distribution!r}; "
            "for a normal one without tails, use truncated_normal"
        )

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        variance = scale / max(fan, 1)
        if distribution == "normal":
            return normal(math.sqrt(variance))(key, shape, dtype)
        return uniform(math.sqrt(3 * variance))(key, shape, dtype)

    return init


glorot_normal = variance_scaling(1.0, "fan_avg", "normal")
glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
he_normal = variance_scaling(2.0, "fan_in", "normal")
he_uniform = variance_scaling(2.0, "fan_in", "uniform")
lecun_normal = variance_scaling(1.0, "fan_in", "normal")
lecun_uniform = variance_scaling(1.0, "fan_in", "uniform")


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: Any, shape: tuple[int, ...], dtype: Any, stddev: float) -> jax.Array:
    # One program, so that XLA rounds alike whether or not a larger program is around it.
    return stddev * jax.random.normal(key, shape, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _truncated(
    key: Any, shape: tuple[int, ...], dtype: Any, stddev: float, lower: float, upper: float
) -> jax.Array:
    return stddev * jax.random.truncated_normal(key, lower, upper, shape, dtype)
