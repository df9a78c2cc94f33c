"""Batch norm: each channel to mean 0 and variance 1 over the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.initializers import Initializer, ones, zeros
from fdl.layer import Layer, Params, State
from fdl.layers.standardize import Affine, check_epsilon
from fdl.ops.numerics import deviations, wide, widened
from fdl.paths import PathError


def batch_norm(
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "batch_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each channel over the batch.

    In training, mean and variance are those of this batch, over all axes but the last, and the
    running ones in `state` move: running = momentum * running + (1 - momentum) * batch. Otherwise
    the running ones are used. The mean is a plain reduction over array axes, so where the batch is
    sharded XLA makes it the mean over all devices, and no axis needs a name.

    Args:
      momentum: the weight of the old statistics, in [0, 1]; torch's is one minus this.
      epsilon: added to the variance, > 0.
      unbiased: whether the running variance takes n / (n - 1) of the batch's, as torch has it.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C]; `zeros` starts a residual branch as nothing.
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C], the same dtype; params {"scale": [C],
      "bias": [C]}; state {"mean": [C], "variance": [C]} in float32 or wider. A variance that its
      dtype cannot hold is the largest number there instead, so that evaluation stays finite.

    Raises:
      ValueError: a momentum or an epsilon out of range.
      PathError: x without a batch axis, of another C, or of an integer dtype; in training, x with
        one value for each channel, whose variance says nothing.

    Example:
      >>> layer = batch_norm()
      >>> x = jnp.array([[1.0], [3.0]])
      >>> params, state = layer.init(jax.random.key(0), x)
      >>> y, state = layer.apply(params, state, x, train=True)
      >>> y.round(3).ravel(), state["mean"].round(3)
      (Array([-1.,  1.], dtype=float32), Array([0.2], dtype=float32))

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1; the running average as Flax and
    Keras have it.
    """
    check_epsilon("batch_norm", epsilon)
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"batch_norm: expected a momentum in [0, 1], the weight of the old, got {momentum}; "
            "0.9 averages over about the last ten batches"
        )
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 2)

    def init(key: Any, x: Any) -> tuple[Params, State]:
        params, shape, dtype = affine.init(key, x), x.shape[-1:], wide(x.dtype)
        return params, {"mean": jnp.zeros(shape, dtype), "variance": jnp.ones(shape, dtype)}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        affine.check(x, {**params, "mean": state["mean"]})
        if not train:
            return affine.apply(params, _shifted(x, state, epsilon), x.dtype), state
        count = _values_of_a_channel(name, x)
        batch = deviations(x, tuple(range(x.ndim - 1)), epsilon)
        mean, variance = (each.ravel() for each in batch.moments())
        if unbiased:
            most = float(jnp.finfo(variance.dtype).max)
            variance = jnp.minimum(variance * (count / (count - 1)), most)
        state = {
            "mean": _running(momentum, state["mean"], mean),
            "variance": _running(momentum, state["variance"], variance),
        }
        return affine.apply(params, batch.standard(epsilon), x.dtype), state

    return Layer(name, init, apply)


def _shifted(x: Any, state: State, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon), by halves: x - mean may overflow."""
    apart = widened(x) / 2 - state["mean"] / 2
    return apart * (2 * jax.lax.rsqrt(state["variance"] + epsilon))


def _running(momentum: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return momentum * old + (1 - momentum) * new.astype(old.dtype)


def _values_of_a_channel(name: str, x: Any) -> int:
    count = x.size // max(x.shape[-1], 1)
    if count < 2:
        raise PathError(
            f"expected at least 2 values for each channel in training, got x {list(x.shape)}, "
            "whose variance would be 0; give a larger batch, or take layer_norm or group_norm",
            layer=name,
        )
    return count
