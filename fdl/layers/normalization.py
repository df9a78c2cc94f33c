"""Normalization: vectors, channels or groups of channels get mean 0 and variance 1.

B is the number of examples in a batch. C, also called D, is the number of features, the size of the
last axis.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import (
    OptionError,
    check_array,
    check_count,
    check_floating,
    check_number,
    described,
    in_dtype,
)
from fdl.core.decoding_cache import at_once
from fdl.core.layer import Layer, check_initializer, subkey
from fdl.initializers import ones, zeros
from fdl.ops.numerics import Deviations, deviations, over_root_mean_square, wide, widened
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State


def layer_norm(
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "layer_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias for each vector separately.

    Args:
      axes: the axes over which mean and variance are computed, as negative numbers: -1 normalizes
        each vector, and (-3, -2, -1) normalizes each image.
      epsilon: a number that is added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale; its shape is the sizes of `axes`, [D] by default.
      bias_init: initializer of bias, which has the same shape as scale.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D] of the same dtype; params {"scale": [D], "bias": [D]}.
      If `axes` contains an axis other than the last, the layer reads a sequence as a whole, so it
      cannot be used in decoding. In this case, it has the optional extra input `mask`: bool, same
      shape as x, where any axis may have size 1. Where the mask is False, x is not read and y is 0.

    Raises:
      ValueError: epsilon <= 0, or axes are not negative or not distinct.
      PathError: x has an integer dtype or no feature axis, or its D differs from the D of scale.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = layer_norm()
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([[-1.,  1.],
             [-1.,  1.]], dtype=float32)

    Source: Ba, Kiros and Hinton 2016, arXiv 1607.06450, equation 4.
    """
    check_epsilon("layer_norm", epsilon)
    over = _check_axes("layer_norm", axes)
    initializers = (scale_init if scale else None, bias_init if bias else None)

    def standard(x: Any, mask: Any = None) -> jax.Array:
        return deviations(x, over, epsilon, mask).standard(epsilon)

    return _over(name, over, initializers, standard)


def rms_norm(
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    scale: bool = True,
    scale_init: Initializer = ones,
    name: str = "rms_norm",
) -> Layer:
    """y = x / sqrt(mean(x^2) + epsilon) * scale: a layer norm that does not subtract the mean.

    Args:
      axes: the axes over which the mean is computed, as in `layer_norm`.
      epsilon: a number that is added to the mean square, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      scale_init: initializer of scale; its shape is the sizes of `axes`, [D] by default.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D] of the same dtype; params {"scale": [D]}. The extra
      input `mask` is as in `layer_norm`.

    Raises:
      ValueError, PathError: as in `layer_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = rms_norm()
      >>> x = jnp.array([3.0, 3.0, -3.0])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([ 1.,  1., -1.], dtype=float32)

    Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    check_epsilon("rms_norm", epsilon)
    over = _check_axes("rms_norm", axes)

    def standard(x: Any, mask: Any = None) -> jax.Array:
        return over_root_mean_square(x, over, epsilon, mask)

    return _over(name, over, (scale_init if scale else None, None), standard)


def group_norm(
    groups: int,
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "group_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias for groups of channels.

    Mean and variance are computed separately for each example and each group.

    Args:
      groups: G, the number of groups, >= 1, a divisor of C. A group is C / G neighbouring channels.
      epsilon: a number that is added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C] of the same dtype; params {"scale": [C],
      "bias": [C]}. Optional extra input: `mask`, bool, same shape as x, where any axis may have
      size 1. Where the mask is False, x is not read and y is 0.

    Raises:
      ValueError: groups < 1, or epsilon <= 0.
      PathError: x has an integer dtype or no batch axis; or C is not a multiple of groups, or
        differs from the C of scale.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = group_norm(2)
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)

    Source: Wu and He 2018, arXiv 1803.08494, equation 7.
    """
    check_epsilon("group_norm", epsilon)
    groups = check_count(
        "group_norm", "groups", groups, "pass 1 to normalize all channels together"
    )
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 2, groups)

    def standard(x: Any, mask: Any) -> jax.Array:
        over = tuple(range(1, x.ndim - 1))
        return deviations(x, over, epsilon, mask, groups).standard(epsilon)

    return at_once(affine.masked_layer(standard))


def instance_norm(
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "instance_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias for each example and channel.

    Args:
      epsilon: a number that is added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale. (By default, torch does not.)
      bias: whether to add a learned bias. (By default, torch does not.)
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C], with at least one axis between B and C, to y of the same shape and
      dtype; params {"scale": [C], "bias": [C]}. Optional extra input: `mask`, as in `group_norm`.

    Raises:
      ValueError: epsilon <= 0.
      PathError: x has an integer dtype or no axis between B and C, or its C differs from the C of
        scale.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = instance_norm()
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3).ravel()
      Array([-1.,  1., -1.,  1.], dtype=float32)

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022, equation 4.
    """
    check_epsilon("instance_norm", epsilon)
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 3)

    def standard(x: Any, mask: Any) -> jax.Array:
        return deviations(x, tuple(range(1, x.ndim - 1)), epsilon, mask).standard(epsilon)

    return at_once(affine.masked_layer(standard))


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
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel, over the batch.

    In training, mean and variance are computed from the batch, over all axes except the last, and
    the running statistics in `state` are updated: running = momentum * running + (1 - momentum) *
    batch. A batch without examples, or with a mask that is False everywhere, does not change the
    running statistics. Outside training, mean and variance are the running statistics. If the batch
    is sharded over devices, mean and variance are computed over all devices. No axis name is
    needed: a reduction along an array's axis includes the parts of the array on all devices.

    Args:
      momentum: the weight of the old running statistics, in [0, 1]; may be traced. The momentum of
        torch is 1 - momentum.
      epsilon: a number that is added to the variance, > 0; may be traced.
      unbiased: True updates the running variance with n / (n - 1) times the variance of the batch,
        as in torch, where n is the number of values for each channel.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C]; with `zeros`, the output of a residual branch starts at
        zero.
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C] of the same dtype; params {"scale": [C],
      "bias": [C]}; state {"mean": [C], "variance": [C]} in float32 or wider. A variance beyond the
      range of its dtype is stored as the dtype's largest number, so that evaluation stays finite.
      Optional extra input: `mask`, bool, same shape as x, where any axis may have size 1. Where the
      mask is False, x is not read and y is 0.

    Raises:
      ValueError: momentum or epsilon is out of range.
      PathError: x has an integer dtype or no batch axis, or its C differs from the C of scale; or,
        in training, x has only one value for each channel, so that its variance is 0.

    Example:
      >>> layer = batch_norm()
      >>> x = jnp.array([[1.0], [3.0]])
      >>> params, state = layer.init(jax.random.key(0), x)
      >>> y, state = layer.apply(params, state, x, train=True)
      >>> y.round(3).ravel(), state["mean"].round(3)
      (Array([-1.,  1.], dtype=float32), Array([0.2], dtype=float32))

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1; the running average as in Flax
    and Keras.
    """
    check_epsilon("batch_norm", epsilon)
    remedy = "pass 0.9 to average over about ten batches"
    check_number("batch_norm", "momentum", momentum, "[0, 1]", remedy)
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
        count = _values_per_channel(name, x) if mask is None else mask.sum(over, dtype=jnp.int32)
        batch = deviations(seen, over, epsilon, mask)
        y = affine.apply(params, batch.standard(epsilon), x.dtype, mask)
        return y, _moved(state, batch, count, momentum, unbiased)

    return Layer(name, init, apply)


def _over(
    name: str,
    axes: tuple[int, ...],
    initializers: tuple[Initializer | None, Initializer | None],
    standard: Callable[..., jax.Array],
) -> Layer:
    """A norm over `axes`. With an axis other than the last, it has a mask and cannot decode."""
    affine = Affine(name, *initializers, axes=-axes[0], features=axes)
    return affine.layer(standard) if axes == (-1,) else at_once(affine.masked_layer(standard))


def _check_axes(who: str, axes: Any) -> tuple[int, ...]:
    """The axes as a sorted tuple; raises unless they are negative and distinct."""
    found = tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    negative = found and all(isinstance(axis, Integral) and int(axis) < 0 for axis in found)
    if not negative or len(set(found)) < len(found):
        raise OptionError(
            who,
            f"expected axes to be negative and distinct, got {described(axes)}; pass -1 to "
            "normalize each vector, or (-3, -2, -1) to normalize each image",
        )
    return tuple(sorted(map(int, found)))


def _shifted(x: Any, state: State, epsilon: Any) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon), from x / 2 and mean / 2: x - mean could overflow."""
    half = widened(x) / 2 - state["mean"] / 2
    variance = state["variance"]
    return half * (2 * jax.lax.rsqrt(variance + in_dtype(epsilon, variance.dtype)))


def _moved(state: State, batch: Deviations, count: Any, momentum: Any, unbiased: bool) -> State:
    """The running statistics after a batch. `count` is the number of values for each channel.

    `count` is an int, or, with a mask, an array [C].
    """
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
    return {name: jnp.where(count > 0, new[name], state[name]) for name in new}


def _running(momentum: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    momentum = in_dtype(momentum, old.dtype)
    return momentum * old + (1 - momentum) * new.astype(old.dtype)


def _over_one_less(count: Any, dtype: Any) -> Any:
    """count / (count - 1), but finite for a count below 2, where the variance is 0."""
    if isinstance(count, jax.Array):
        return (jnp.maximum(count, 2) / jnp.maximum(count - 1, 1)).astype(dtype)
    return count / (count - 1)


def _values_per_channel(name: str, x: Any) -> int:
    count = x.size // max(x.shape[-1], 1)
    if count < 2:
        raise PathError(
            f"expected at least 2 values for each channel in training, got x {list(x.shape)}, "
            "whose variance would be 0; use a larger batch, or use layer_norm or group_norm",
            layer=name,
        )
    return count


def check_epsilon(who: str, epsilon: Any) -> None:
    """Raises unless epsilon > 0."""
    remedy = "pass a number such as 1e-5; with 0, a constant input would give NaN"
    check_number(who, "epsilon", epsilon, "(0, inf]", remedy)


@dataclasses.dataclass(frozen=True)
class Affine:
    """y * scale + bias, and the checks of a norm's input.

    Args:
      name: the name of the norm.
      scale_init: initializer of scale [C]; None means no scale.
      bias_init: initializer of bias [C]; None means no bias.
      axes: the minimum number of axes of x.
      groups: a number that must divide C.
      features: axes of x, as negative numbers; their sizes are the shape of scale and bias.
    """

    name: str
    scale_init: Initializer | None
    bias_init: Initializer | None
    axes: int
    groups: int = 1
    features: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        check_initializer(self.name, "scale_init", self.scale_init)
        check_initializer(self.name, "bias_init", self.bias_init)

    def layer(self, standard: Callable[[Any], jax.Array]) -> Layer:
        """The stateless layer whose normalized x is `standard(x)`."""

        def apply(
            params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            return self.apply(params, standard(x), x.dtype), state

        return Layer(self.name, lambda key, x: (self.init(key, x), {}), apply)

    def masked_layer(self, standard: Callable[[Any, Any], jax.Array]) -> Layer:
        """The stateless layer whose normalized x is `standard(x, mask)`; `mask` is an input."""

        def init(key: Any, x: Any, *, mask: Any = None) -> tuple[Params, State]:
            self.check_mask(x, mask)
            return self.init(key, x), {}

        def apply(
            params: Params,
            state: State,
            x: Any,
            *,
            mask: Any = None,
            key: Any = None,
            train: bool = False,
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            seen, mask = self.masked(x, mask)
            return self.apply(params, standard(seen, mask), x.dtype, mask), state

        return Layer(self.name, init, apply)

    def init(self, key: Any, x: Any) -> Params:
        """{"scale": [C], "bias": [C]}, without a parameter whose initializer is None."""
        self.check(x, {})
        initializers = {"scale": self.scale_init, "bias": self.bias_init}
        return {
            leaf: init(subkey(key, leaf), self.sizes(x), x.dtype)
            for leaf, init in initializers.items()
            if init is not None
        }

    def apply(self, params: Params, y: jax.Array, dtype: Any, mask: Any = None) -> jax.Array:
        """y * scale + bias, computed in the dtype of y, cast to `dtype`; 0 where mask is False."""
        axes = range(self.features[0], 0)
        shape = [y.shape[axis] if axis in self.features else 1 for axis in axes]
        if self.scale_init is not None:
            y = y * params["scale"].astype(y.dtype).reshape(shape)
        if self.bias_init is not None:
            y = y + params["bias"].astype(y.dtype).reshape(shape)
        return (y if mask is None else jnp.where(mask, y, 0)).astype(dtype)

    def sizes(self, x: Any) -> tuple[int, ...]:
        """The shape of scale and bias."""
        return tuple(x.shape[axis] for axis in self.features)

    def masked(self, x: Any, mask: Any) -> tuple[Any, Any]:
        """x with 0 where the mask is False, and the mask broadcast to the shape of x."""
        self.check_mask(x, mask)
        if mask is None:
            return x, None
        mask = jnp.broadcast_to(mask, x.shape)
        return jnp.where(mask, x, 0), mask

    def check_mask(self, x: Any, mask: Any) -> None:
        """Raises unless the mask is None, or is bool and broadcasts to the shape of x."""
        if mask is None:
            return
        check_array(self.name, mask, "mask")
        fits = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=False))
        if mask.dtype != bool or mask.ndim != x.ndim or not fits:
            raise PathError(
                f"expected mask to be bool {list(x.shape)}, where any axis may have size 1, got "
                f"{mask.dtype} {list(mask.shape)}; if the mask has no channel axis, pass "
                "mask[..., None]; all layers of a chain get the same mask: if another one needs a "
                "different mask, write a network that passes each layer its own",
                layer=self.name,
            )

    def check(self, x: Any, known: dict[str, Any]) -> None:
        """Raises unless x has the shape that the norm takes, and fits the parameters `known`."""
        check_floating(self.name, x)
        made = next(iter(known.values())).shape if known else None
        if x.ndim < self.axes or (known and self.sizes(x) != made):
            new = ", or make new params with init" if known else ""
            raise PathError(
                f"expected x [{self.wanted(made)}], got {list(x.shape)}; give x that shape{new}",
                layer=self.name,
            )
        if x.shape[-1] % self.groups:
            raise PathError(
                f"expected a number of channels that is a multiple of {self.groups} groups, got "
                f"{x.shape[-1]} channels of x {list(x.shape)}; choose groups as a divisor of "
                f"{x.shape[-1]}",
                layer=self.name,
            )

    def wanted(self, made: tuple[int, ...] | None) -> str:
        """The shape that x must have, as in the docstrings."""
        if self.features == (-1,):
            shape = ["...", "B, ...", "B, ..., T"][self.axes - 1]
            return f"{shape}, {made[0] if made else 'C'}"
        sizes = dict(zip(self.features, made or ["N"] * len(self.features), strict=True))
        return ", ".join(["...", *(str(sizes.get(axis, "N")) for axis in range(-self.axes, 0))])
