"""Dropout: elements, channels or whole examples are set to 0 at random in training.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_number, in_dtype, is_concrete_number, is_zero, square_root
from fdl.core.layer import Layer
from fdl.layers.weightless import weightless
from fdl.ops.numerics import wide
from fdl.paths import PathError
from fdl.typing import Array, Key


def dropout(rate: float, *, name: str = "dropout") -> Layer:
    """Sets each element to 0 with probability `rate` in training, and scales up the rest.

    In training y = x * mask / (1 - rate), which does not change the mean; otherwise y = x.

    Args:
      rate: probability of dropping, in [0, 1]; may be traced. If rate is 1, y is 0.
      name: what the layer is called in a network.

    Returns:
      A layer from x [...] to y [...] of the same dtype; no params, no state.

    Raises:
      ValueError: rate is outside [0, 1].
      PathError: no key is passed in training.

    Example:
      >>> y, _ = dropout(0.5).apply({}, {}, jnp.ones(4), key=jax.random.key(0), train=True)
      >>> sorted(set(y.tolist())) in ([0.0], [2.0], [0.0, 2.0])
      True

    Source: Srivastava et al. 2014, "Dropout", section 4, in its inverted form (section 10).
    """
    return _random("dropout", rate, name, lambda key, x: _kept(key, rate, x, x.shape))


def spatial_dropout(rate: float, *, name: str = "spatial_dropout") -> Layer:
    """Sets whole channels of an example to 0 with probability `rate` in training.

    Neighbouring pixels of a channel are nearly equal, so dropping single pixels has little effect.

    Args:
      rate: probability of dropping, in [0, 1]; may be traced. Channels that are not dropped are
        divided by 1 - rate. If rate is 1, y is 0.
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: rate is outside [0, 1].
      PathError: in training, no key is passed, or x has fewer than two axes.

    Example:
      >>> x = jnp.ones((2, 3, 3, 4))
      >>> y, _ = spatial_dropout(0.5).apply({}, {}, x, key=jax.random.key(0), train=True)
      >>> bool((y == y[:, :1, :1]).all())
      True

    Source: Tompson et al. 2014, arXiv 1411.4280, section 3.2.
    """

    def draw(key: Key, x: Array) -> Array:
        _check_axes(name, x, 2, "[B, ..., C]")
        return _kept(key, rate, x, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]))

    return _random("spatial_dropout", rate, name, draw)


def drop_path(rate: float, *, name: str = "drop_path") -> Layer:
    """Sets whole examples to 0 with probability `rate` in training: stochastic depth.

    At the end of a residual branch, it makes the block the identity for the dropped examples.

    Args:
      rate: probability of dropping, in [0, 1]; may be traced. Examples that are not dropped are
        divided by 1 - rate. If rate is 1, y is 0.
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ...] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: rate is outside [0, 1].
      PathError: in training, no key is passed, or x has no batch axis.

    Example:
      >>> x = jnp.ones((4, 3, 2))
      >>> y, _ = drop_path(0.5).apply({}, {}, x, key=jax.random.key(0), train=True)
      >>> bool((y == y[:, :1, :1]).all())
      True

    Source: Huang et al. 2016, arXiv 1603.09382, section 3, which, unlike here, scales in
    evaluation and not in training; Larsson et al. 2016, arXiv 1605.07648, for the name.
    """

    def draw(key: Key, x: Array) -> Array:
        _check_axes(name, x, 1, "[B, ...]")
        return _kept(key, rate, x, (x.shape[0], *[1] * (x.ndim - 1)))

    return _random("drop_path", rate, name, draw)


def gaussian_dropout(rate: float, *, name: str = "gaussian_dropout") -> Layer:
    """Multiplies each element by a normally distributed random number of mean 1 in training.

    The variance of that number is rate / (1 - rate), as for `dropout` at the same rate.

    Args:
      rate: a number in [0, 1); may be traced. At rate 1, the variance would be infinite.
      name: what the layer is called in a network.

    Returns:
      A layer from x [...] to y [...] of the same dtype; no params, no state.

    Raises:
      ValueError: rate is outside [0, 1).
      PathError: no key is passed in training.

    Example:
      >>> y, _ = gaussian_dropout(0.2).apply(
      ...     {}, {}, jnp.ones(10_000), key=jax.random.key(0), train=True)
      >>> round(float(y.mean()), 1), round(float(y.std()), 1)
      (1.0, 0.5)

    Source: Srivastava et al. 2014, "Dropout", section 10.
    """

    def draw(key: Key, x: Array) -> Array:
        dtype = wide(x.dtype)
        dropped, kept = _shares(rate)
        spread = in_dtype(square_root(dropped / kept), dtype)
        factor = 1 + spread * jax.random.normal(key, x.shape, dtype)
        return (x.astype(dtype) * factor).astype(x.dtype)

    return _random("gaussian_dropout", rate, name, draw, interval="[0, 1)")


def alpha_dropout(rate: float, *, name: str = "alpha_dropout") -> Layer:
    """Sets elements to the lower limit of SELU in training, and keeps mean 0 and variance 1.

    In training y = a * z + b. With probability `rate`, z is -1.7581, else it is x. The numbers a
    and b are chosen so that y has mean 0 and variance 1 if x has mean 0 and variance 1.

    Args:
      rate: probability of dropping, in [0, 1]; may be traced. If rate is 1, y is 0.
      name: what the layer is called in a network.

    Returns:
      A layer from x [...] to y [...] of the same dtype; no params, no state.

    Raises:
      ValueError: rate is outside [0, 1].
      PathError: no key is passed in training.

    Example:
      >>> x = jax.random.normal(jax.random.key(1), (10_000,))
      >>> y, _ = alpha_dropout(0.3).apply({}, {}, x, key=jax.random.key(0), train=True)
      >>> abs(round(float(y.mean()), 1)), round(float(y.std()), 1)
      (0.0, 1.0)

    Source: Klambauer et al. 2017, arXiv 1706.02515, section "New dropout technique".
    """
    # floor is selu(-infinity), which is -scale * alpha.
    floor = -1.0507009873554805 * 1.6732632423543772

    def draw(key: Key, x: Array) -> Array:
        dropped, kept = _shares(rate)
        keep = jax.random.bernoulli(key, kept, x.shape)
        # At rate 1, y is (floor - floor) * a. `_or_one` keeps a finite, so that y is 0.
        a = 1 / square_root(_or_one(kept) * (1 + dropped * floor**2))
        centered = jnp.where(keep, x, jnp.full_like(x, floor)) - in_dtype(dropped * floor, x.dtype)
        return in_dtype(a, x.dtype) * centered

    return _random("alpha_dropout", rate, name, draw)


def _random(
    who: str, rate: Any, name: str, draw: Callable[[Key, Array], Array], *, interval: str = "[0, 1]"
) -> Layer:
    """A layer that is `draw(key, x)` in training, and the identity otherwise."""
    check_number(who, "rate", rate, interval, "pass 0.1 to drop 10 %")
    return weightless(name, lambda x: x, training=None if is_zero(rate) else draw)


def _kept(key: Key, rate: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """x / (1 - rate) where a random mask of `shape` is True, and 0 elsewhere."""
    _, kept = _shares(rate)
    keep = jax.random.bernoulli(key, kept, shape)
    return jnp.where(keep, x / in_dtype(_or_one(kept), x.dtype), jnp.zeros_like(x))


def _shares(rate: Any) -> tuple[Any, Any]:
    """The probabilities (dropped, kept); Python numbers if the rate is one untraced number."""
    dropped = in_dtype(rate, jnp.result_type(float))
    return dropped, 1 - dropped


def _or_one(share: Any) -> Any:
    """The share, or 1 if the share is 0, so that it can be a divisor."""
    return (share or 1.0) if is_concrete_number(share) else jnp.where(share == 0, 1, share)


def _check_axes(name: str, x: Array, axes: int, shape: str) -> None:
    if x.ndim < axes:
        raise PathError(
            f"expected x {shape}, got {list(x.shape)}; give x a batch axis, or use dropout",
            layer=name,
        )
