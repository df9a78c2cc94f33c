"""Batch norm: each channel to mean 0 and variance 1 over the batch."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_number, in_dtype
from fdl.initializers import Initializer, ones, zeros
from fdl.layer import Layer, Params, State
from fdl.layers.standardize import Affine, check_epsilon
from fdl.ops.numerics import Deviations, deviations, wide, widened
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
    running ones in `state` move: running = momentum * running + (1 - momentum) * batch. A batch
    that is empty, or masked as a whole, moves nothing. Outside training the running ones are used.
    The mean is a plain reduction over array axes, so where the batch is sharded XLA makes it the
    mean over all devices, and no axis needs a name.

    Args:
      momentum: the weight of the old statistics, in [0, 1]; torch's is one minus this.
      epsilon: added to the variance, > 0. Both may be traced.
      unbiased: whether the running variance takes n / (n - 1) of the batch's, as torch has it.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C]; `zeros` starts a residual branch as nothing.
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C], the same dtype; params {"scale": [C],
      "bias": [C]}; state {"mean": [C], "variance": [C]} in float32 or wider. A variance that its
      dtype cannot hold is the largest number there instead, so that evaluation stays finite. Extra
      input, which need not be given: `mask`, bool of x's shape, any axis of which may be 1; only
      where it is True does x count and is it read, elsewhere y is 0.

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
    check_number(
        "batch_norm",
        "a momentum in [0, 1], the weight of the old",
        momentum,
        lambda momentum: 0 <= momentum <= 1,
        "0.9 averages over about the last ten batches",
    )
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 2)

    def init(key: Any, x: Any, *, mask: Any = None) -> tuple[Params, State]:
        affine.check_mask(x, mask)
        params, shape, dtype = affine.init(key, x), x.shape[-1:], wide(x.dtype)
        return params, {"mean": jnp.zeros(shape, dtype), "variance": jnp.ones(shape, dtype)}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        mask: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        affine.check(x, {**params, "mean": state["mean"]})
        seen, mask = affine.masked(x, mask)
        if not train or x.size == 0:
            return affine.apply(params, _shifted(seen, state, epsilon), x.dtype, mask), state
        over = tuple(range(x.ndim - 1))
        count = _values_of_a_channel(name, x) if mask is None else mask.sum(over, dtype=jnp.int32)
        batch = deviations(seen, over, epsilon, mask)
        y = affine.apply(params, batch.standard(epsilon), x.dtype, mask)
        return y, _moved(state, batch, count, momentum, unbiased)

    return Layer(name, init, apply)


def _shifted(x: Any, state: State, epsilon: Any) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon), by halves: x - mean may overflow."""
    apart = widened(x) / 2 - state["mean"] / 2
    variance = state["variance"]
    return apart * (2 * jax.lax.rsqrt(variance + in_dtype(epsilon, variance.dtype)))


def _moved(state: State, batch: Deviations, count: Any, momentum: Any, unbiased: bool) -> State:
    """The running statistics after a batch of `count` values of each channel, [C] under a mask."""
    mean, variance = (each.ravel() for each in batch.moments())
    if unbiased:
        most = float(jnp.finfo(variance.dtype).max)
        variance = jnp.minimum(variance * _over_one_less(count, variance.dtype), most)
    new = {
        "mean": _running(momentum, state["mean"], mean),
        "variance": _running(momentum, state["variance"], variance),
    }
    if not isinstance(count, jax.Array):
        return new
    return {each: jnp.where(count > 0, new[each], state[each]) for each in new}


def _running(momentum: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    momentum = in_dtype(momentum, old.dtype)
    return momentum * old + (1 - momentum) * new.astype(old.dtype)


def _over_one_less(count: Any, dtype: Any) -> Any:
    """count / (count - 1); something finite for fewer than two values, whose variance is 0."""
    if isinstance(count, jax.Array):
        return (jnp.maximum(count, 2) / jnp.maximum(count - 1, 1)).astype(dtype)
    return count / (count - 1)


def _values_of_a_channel(name: str, x: Any) -> int:
    count = x.size // max(x.shape[-1], 1)
    if count < 2:
        raise PathError(
            f"expected at least 2 values for each channel in training, got x {list(x.shape)}, "
            "whose variance would be 0; give a larger batch, or take layer_norm or group_norm",
            layer=name,
        )
    return count
