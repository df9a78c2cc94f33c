"""Normalization: each vector, group of channels, or channel to mean 0 and variance 1.

B is the batch, C (or D) the features, which are the last axis.
"""

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_count, check_floating, check_number, in_dtype, said
from fdl.core.cache import at_once
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
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each vector by itself.

    Args:
      axes: over which mean and variance are taken, counted from the last: -1 for each vector, (-3,
        -2, -1) for each image.
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale, of the sizes of the axes: [D].
      bias_init: initializer of bias, of the same shape.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D], "bias": [D]}.
      Over other axes than the last it reads a sequence as a whole, and has the extra input `mask`,
      which need not be given: bool of x's shape, any axis of which may be 1; only where it is True
      does x count and is it read, elsewhere y is 0.

    Raises:
      ValueError: an epsilon that is not above 0, or axes that are not below 0 or not distinct.
      PathError: x without a feature axis, of another D, or of an integer dtype.

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
    drawn = (scale_init if scale else None, bias_init if bias else None)

    def standard(x: Any, mask: Any = None) -> jax.Array:
        return deviations(x, over, epsilon, mask).standard(epsilon)

    return _over(name, over, drawn, standard)


def rms_norm(
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    scale: bool = True,
    scale_init: Initializer = ones,
    name: str = "rms_norm",
) -> Layer:
    """y = x / sqrt(mean(x^2) + epsilon) * scale: a layer norm that leaves the mean alone.

    Args:
      axes: over which the mean is taken, as of `layer_norm`.
      epsilon: added to the mean square, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      scale_init: initializer of scale, of the sizes of the axes: [D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D]}; `mask` as of
      `layer_norm`.

    Raises:
      ValueError: as `layer_norm`.
      PathError: x without a feature axis, of another D, or of an integer dtype.

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
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each example and group of channels.

    Args:
      groups: G, into how many groups of C / G neighbouring channels; 1 <= G, a divisor of C.
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C], the same dtype; params {"scale": [C],
      "bias": [C]}. Extra input, which need not be given: `mask`, bool of x's shape, any axis of
      which may be 1; only where it is True does x count and is it read, elsewhere y is 0.

    Raises:
      ValueError: groups below 1, or an epsilon that is not above 0.
      PathError: a C that the groups do not divide; x as for `batch_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = group_norm(2)
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)

    Source: Wu and He 2018, arXiv 1803.08494, equation 7.
    """
    check_epsilon("group_norm", epsilon)
    groups = check_count("group_norm", "groups", groups, "1 takes all channels together")
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 2, groups)

    def standard(x: Any, mask: Any) -> jax.Array:
        shape = (*x.shape[:-1], groups, x.shape[-1] // groups)
        within = None if mask is None else mask.reshape(shape)
        over = (*range(1, x.ndim - 1), x.ndim)
        return (
            deviations(x.reshape(shape), over, epsilon, within).standard(epsilon).reshape(x.shape)
        )

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
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each example and channel.

    Args:
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale (torch's default is not to).
      bias: whether to add a learned bias (torch's default is not to).
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C], at least one axis between, to y of the same shape and dtype;
      params {"scale": [C], "bias": [C]}. Extra input: `mask`, as of `group_norm`.

    Raises:
      ValueError: an epsilon that is not above 0.
      PathError: x without an axis between B and C; x as for `batch_norm`.

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


def _over(
    name: str,
    axes: tuple[int, ...],
    drawn: tuple[Initializer | None, Initializer | None],
    standard: Callable[..., jax.Array],
) -> Layer:
    """A norm over the last axes; over more than the very last it has a mask, and no cache."""
    affine = Affine(name, *drawn, axes=-axes[0], features=axes)
    return affine.layer(standard) if axes == (-1,) else at_once(affine.masked_layer(standard))


def _check_axes(who: str, axes: Any) -> tuple[int, ...]:
    """The axes in their order, each below 0."""
    each = tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    right = each and all(isinstance(axis, Integral) and int(axis) < 0 for axis in each)
    if not right or len(set(each)) < len(each):
        raise ValueError(
            f"{who}: expected axes below 0, counted from the last and each once, got {said(axes)}; "
            "write -1 for each vector, or (-3, -2, -1) for each image"
        )
    return tuple(sorted(map(int, each)))


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
        "batch_norm", "momentum", momentum, "[0, 1]", "0.9 averages over about the last ten batches"
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


def check_epsilon(who: str, epsilon: Any) -> None:
    """Refuses an epsilon that would let a constant input divide by zero."""
    check_number(who, "epsilon", epsilon, "(0, inf]", "a constant input would give NaN")


@dataclasses.dataclass(frozen=True)
class Affine:
    """y * scale + bias, with what a norm asks of its input.

    Args:
      name: the norm's.
      scale_init: initializer of scale [C]; None for no scale.
      bias_init: initializer of bias [C]; None for no bias.
      axes: how many axes x has at least.
      groups: what C is a multiple of.
      features: the axes of x that scale and bias have, counted from the last.
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
        """The layer without state and mask, of `standard(x)`, the standard scores of x."""

        def apply(
            params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            return self.apply(params, standard(x), x.dtype), state

        return Layer(self.name, lambda key, x: (self.init(key, x), {}), apply)

    def masked_layer(self, standard: Callable[[Any, Any], jax.Array]) -> Layer:
        """The layer without state of `standard(x, mask)`, with the extra input `mask`."""

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
        """{"scale": [C], "bias": [C]}, or those of the two that are wanted."""
        self.check(x, {})
        made = {"scale": self.scale_init, "bias": self.bias_init}
        return {
            leaf: init(subkey(key, leaf), self.sizes(x), x.dtype)
            for leaf, init in made.items()
            if init is not None
        }

    def apply(self, params: Params, y: jax.Array, dtype: Any, mask: Any = None) -> jax.Array:
        """The last operations, in the dtype of y, and the result in `dtype`, 0 where masked."""
        axes = range(self.features[0], 0)
        shape = [y.shape[axis] if axis in self.features else 1 for axis in axes]
        if self.scale_init is not None:
            y = y * params["scale"].astype(y.dtype).reshape(shape)
        if self.bias_init is not None:
            y = y + params["bias"].astype(y.dtype).reshape(shape)
        return (y if mask is None else jnp.where(mask, y, 0)).astype(dtype)

    def sizes(self, x: Any) -> tuple[int, ...]:
        """The sizes of those axes that scale and bias have."""
        return tuple(x.shape[axis] for axis in self.features)

    def masked(self, x: Any, mask: Any) -> tuple[Any, Any]:
        """x with 0 where the mask is False, so that nothing there is read, and the whole mask."""
        self.check_mask(x, mask)
        if mask is None:
            return x, None
        mask = jnp.broadcast_to(mask, x.shape)
        return jnp.where(mask, x, 0), mask

    def check_mask(self, x: Any, mask: Any) -> None:
        """Refuses what is no bool for the places of x."""
        if mask is None:
            return
        check_array(self.name, mask, "mask")
        fits = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=False))
        if mask.dtype != bool or mask.ndim != x.ndim or not fits:
            raise PathError(
                f"expected mask bool {list(x.shape)}, or 1 for any of the numbers, got "
                f"{mask.dtype} {list(mask.shape)}; one of places alone is mask[..., None]; beside "
                "attention, whose mask is another, call both in a network",
                layer=self.name,
            )

    def check(self, x: Any, known: dict[str, Any]) -> None:
        """Refuses an x that the norm cannot take; `known` are arrays of [C] made before."""
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
                f"expected channels in {self.groups} groups of one size, got {x.shape[-1]} "
                f"channels of x {list(x.shape)}; choose groups that divide them",
                layer=self.name,
            )

    def wanted(self, made: tuple[int, ...] | None) -> str:
        """The shape of x, in the language of the docstrings."""
        if self.features == (-1,):
            shape = ["...", "B, ...", "B, ..., T"][self.axes - 1]
            return f"{shape}, {made[0] if made else 'C'}"
        sizes = dict(zip(self.features, made or ["N"] * len(self.features), strict=True))
        return ", ".join(["...", *(str(sizes.get(axis, "N")) for axis in range(-self.axes, 0))])
