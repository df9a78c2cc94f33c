"""Dtypes wide enough for sums, and scaling that keeps squares in range.

For parameters of any dtype, moments, sums and norms are computed in float32 or wider; only the
result is rounded, once, to the dtype of the input.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.checks import in_dtype, is_concrete_number

Axes = int | tuple[int, ...] | None


def wide(dtype: Any) -> Any:
    """The dtype for sums: float32 or complex64, or `dtype` itself if it is wider."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def widened(x: Any) -> jax.Array:
    """x in the dtype `wide(x.dtype)`."""
    return jnp.asarray(x, wide(jnp.result_type(x)))


def power_of_two(size: jax.Array) -> jax.Array:
    """A power of two near each size. Division by a power of two has no rounding error.

    Args:
      size: [...], float32 or float64, >= 0: usually the largest magnitude of an array.

    Returns:
      [...]: 2^floor(log2(size)), clipped to [2^-126, 2^126] (float64: [2^-1022, 2^1022]), so that
      the power and its inverse are normal numbers; 1 where size is 0, subnormal, infinite or NaN.
      Gradients treat the power as a constant.
    """
    size = jax.lax.stop_gradient(size)
    limits = jnp.finfo(size.dtype)
    integer = jnp.uint32 if limits.bits == 32 else jnp.uint64
    exponent_bits = integer((2**limits.nexp - 1) << limits.nmant)
    bits = jax.lax.bitcast_convert_type(size, integer) & exponent_bits
    power = jax.lax.bitcast_convert_type(bits, size.dtype)
    usable = (size >= limits.tiny) & (size <= limits.max)
    return jnp.where(usable, jnp.minimum(power, 1 / limits.tiny), jnp.ones_like(size))


def largest(x: jax.Array, axes: Axes = None, *, keepdims: bool = False) -> jax.Array:
    """The largest |x| over `axes`, or 0 if x is empty.

    For complex x, it is the largest magnitude of a real or imaginary part.
    """
    if jnp.iscomplexobj(x):
        x = jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag))
    # On CPU, two reductions of x take half as long as one reduction of |x|.
    above = x.max(axes, keepdims=keepdims, initial=0)
    return jnp.maximum(above, -x.min(axes, keepdims=keepdims, initial=0))


def norm(x: Any, axes: Axes = None, *, keepdims: bool = False) -> jax.Array:
    """sqrt(sum |x|^2), finite if the result is in the range of the dtype.

    Args:
      x: [...], floating or complex.
      axes: axes of the sum; by default all.
      keepdims: True keeps these axes, with size 1.

    Returns:
      A real array, float32 or wider. Where the norm is 0, the gradient is 0.

    Source: Blue 1978, "A portable Fortran program to find the Euclidean norm of a vector": scaled
    sums of squares. The scale is a power of two, so rounding is the same as in the plain sum.
    """
    x = widened(x)
    scale = power_of_two(largest(x, axes, keepdims=True))
    y = x / scale.astype(x.dtype)
    squares = jnp.real(y.conj() * y) if jnp.iscomplexobj(y) else jnp.square(y)
    total = squares.sum(axes, keepdims=True)
    zero = total == 0
    length = jnp.where(zero, jnp.zeros_like(total), jnp.sqrt(jnp.where(zero, 1, total))) * scale
    return length if keepdims else length.squeeze(axes)


def pairwise_sum(x: jax.Array) -> jax.Array:
    """Sums over the last axis, of 16 numbers at a time; the error grows with log N, not with N.

    Args:
      x: [..., N].

    Returns:
      [...], in the dtype of x.

    Source: Higham 1993, "The accuracy of floating point summation", section 4.
    """
    while x.shape[-1] > 1:
        parts = -(-x.shape[-1] // 16)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 16 * parts - x.shape[-1])])
        x = x.reshape(*x.shape[:-1], 16, parts).sum(-2)
    return x.sum(-1)


def direction(x: jax.Array, axes: Axes = None) -> jax.Array:
    """x divided by its norm over `axes`, in float32 or wider.

    The norm may have any size. Where it is 0, the result is 0 and the gradient is finite.
    """
    x = widened(x)
    x = x / power_of_two(largest(x, axes, keepdims=True))
    square = jnp.square(x).sum(axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square == 0, 1, square))


class Deviations(NamedTuple):
    """Numbers relative to a center near their mean: x = center + apart * unit.

    Args:
      apart: [...], within [-4, 4], except where the mask of `deviations` is False.
      mean: [..., 1], the mean of `apart`. It is usually not 0, because `center` is only near the
        mean of x.
      variance: [..., 1], the biased variance of `apart`.
      center: a number between the smallest and the largest x; gradients treat it as a constant.
      unit: a power of two; gradients treat it as a constant.
    """

    apart: jax.Array
    mean: jax.Array
    variance: jax.Array
    center: jax.Array
    unit: jax.Array

    def standard(self, epsilon: Any) -> jax.Array:
        """(x - mean) / sqrt(variance + epsilon)."""
        return (self.apart - self.mean) * _inverse_root(self.variance, epsilon, self.unit)

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of x; the variance is clipped to the dtype's largest number."""
        variance = self.variance * self.unit * self.unit
        most = float(jnp.finfo(variance.dtype).max)
        return self.center + self.mean * self.unit, jnp.minimum(variance, most)


def deviations(
    x: jax.Array,
    axes: tuple[int, ...],
    epsilon: Any,
    mask: jax.Array | None = None,
    groups: int | None = None,
) -> Deviations:
    """Deviations from the mean over `axes`, in float32 or wider.

    Args:
      x: [...], a floating dtype; it must be finite where the mask is False.
      axes: axes over which mean and variance are computed; the results keep them with size 1.
      epsilon: the number that will be added to the variance, > 0; may be traced. Squares far
        smaller than epsilon may become 0.
      mask: bool, same shape as x. Mean and variance are over the elements of x where it is True; by
        default over all elements.
      groups: None, or a divisor of the size of the last axis, which is then not in `axes`: mean and
        variance are also over each of so many groups of neighbouring channels. They are computed
        from sums over `axes`, because XLA's CPU compiler sums a few neighbouring elements slowly:
        for 4 groups of 4 channels, this takes 0.4 times as long.

    Returns:
      Deviations. For constant x, `apart` is exactly 0; no finite x overflows. With a mask that is
      False everywhere, mean and variance are 0.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation
    1.7. One pass over x computes its mean, its smallest and its largest element. A second pass
    computes the sum of `apart` and the sum of its squares.
    """
    x = widened(x)
    fixed = jax.lax.stop_gradient(x)
    mean_of = functools.partial(mean_over, axes=axes, mask=mask, groups=groups)
    low = _within(groups, jnp.min, fixed.min(axes, keepdims=True, initial=jnp.inf, where=mask))
    high = _within(groups, jnp.max, fixed.max(axes, keepdims=True, initial=-jnp.inf, where=mask))
    if mask is not None:
        nothing = low > high
        low, high = (jnp.where(nothing, 0, end) for end in (low, high))
    mean = mean_of(fixed)
    # If the sum in the mean overflows, the middle of low and high is used instead. The clip brings
    # back a mean that rounding has moved out of the range of x. The code computes with halves,
    # because high - low may overflow.
    mean = jnp.where(jnp.isfinite(mean), mean, low / 2 + high / 2)
    center = jnp.clip(mean, low, high)
    half = center / 2
    size = jnp.maximum(high / 2 - half, half - low / 2)
    unit = jnp.maximum(power_of_two(size), _least_unit(epsilon, x.dtype))
    apart = (x / 2 - half) / unit
    left = mean_of(apart)
    variance = mean_of(jnp.square(apart)) - jnp.square(left)
    return Deviations(apart, left, variance, center, 2 * unit)


def mean_over(
    x: jax.Array, axes: Axes, mask: jax.Array | None = None, groups: int | None = None
) -> jax.Array:
    """The mean of x where the mask is True, or 0 if it is False everywhere.

    The result keeps `axes` with size 1. `groups` is as in `deviations`.
    """
    if mask is None:
        return _within(groups, jnp.mean, x.mean(axes, keepdims=True))
    count = _within(groups, jnp.sum, mask.sum(axes, keepdims=True, dtype=jnp.int32))
    total = _within(groups, jnp.sum, jnp.where(mask, x, 0).sum(axes, keepdims=True))
    return total / jnp.maximum(count, 1).astype(x.dtype)


def _within(groups: int | None, reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """x with each group of channels reduced to one number, which all its channels get."""
    if groups is None:
        return x
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.broadcast_to(reduce(parts, -1, keepdims=True), parts.shape).reshape(x.shape)


def over_root_mean_square(
    x: jax.Array, axes: Axes, epsilon: Any, mask: jax.Array | None = None
) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) over `axes`, in float32 or wider.

    The mean is over the elements where the mask is True. Where the mask is False, x must be 0.
    """
    x = widened(x)
    unit = power_of_two(largest(x, axes, keepdims=True))
    unit = jnp.maximum(unit, _least_unit(epsilon, x.dtype))
    x = x / unit
    return x * _inverse_root(mean_over(jnp.square(x), axes, mask), epsilon, unit)


def _inverse_root(square: jax.Array, epsilon: Any, unit: jax.Array) -> jax.Array:
    """1 / sqrt(square + epsilon / unit^2)."""
    inverse = 1 / unit
    added = in_dtype(epsilon, square.dtype) * inverse * inverse
    return jax.lax.rsqrt(jnp.maximum(square + added, float(jnp.finfo(square.dtype).tiny)))


def _least_unit(epsilon: Any, dtype: Any) -> Any:
    """A power of two <= sqrt(epsilon). Squares of far smaller numbers are negligible to epsilon."""
    if not is_concrete_number(epsilon):
        return power_of_two(jnp.sqrt(jnp.asarray(epsilon, dtype)))
    return max(2.0 ** math.floor(math.log2(epsilon) / 2), float(jnp.finfo(dtype).tiny))


def wide_inside(update: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's `update` that computes in float32 or wider for gradients of any dtype.

    Updates are cast to the dtypes of the gradients, and the state keeps its dtypes, even if
    `update` calls transformations of optax. If no gradient has half precision, `update` is called
    without changes.
    """

    @functools.wraps(update)
    def outer(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not any(map(is_half, jax.tree.leaves(updates))):
            return update(updates, state, params, **extra_args)
        new, new_state = update(widened_tree(updates), state, params, **extra_args)
        return cast_like(new, updates), cast_like(new_state, state)

    return outer


def is_half(x: Any) -> bool:
    """True if x has a floating dtype with fewer bits than float32."""
    dtype = getattr(x, "dtype", jnp.float32)
    return jnp.issubdtype(dtype, jnp.inexact) and wide(dtype) != dtype


def widened_tree(tree: Any) -> Any:
    """The tree with half-precision leaves converted to float32."""
    return jax.tree.map(_widened, tree)


def cast_like(tree: Any, like: Any) -> Any:
    """The tree with the dtypes of the leaves of `like`; unchanged if the structures differ."""
    structure: Any = jax.tree.structure(tree)  # mypy knows no methods of a PyTreeDef
    if structure != jax.tree.structure(like):
        return tree
    return jax.tree.map(lambda x, old: narrowed(x, jnp.result_type(old)), tree, like)


def narrowed(x: Any, dtype: Any) -> jax.Array:
    """x in `dtype`, where finite numbers are clipped to the finite range of `dtype`."""
    have = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(have, jnp.floating):
        limits = jnp.finfo(dtype)
        if limits.max < jnp.finfo(have).max:
            most = jnp.asarray(limits.max, have)
            x = jnp.where(jnp.isinf(x), x, jnp.clip(x, -most, most))
    return jnp.asarray(x, dtype)


def bounded(g: Any, terms: int = 1) -> tuple[jax.Array, jax.Array]:
    """g and |g|^2, both clipped so that the sum of `terms` clipped squares is finite.

    Without the bound, one very large gradient can make a second moment infinite, and the weight
    then stops learning. In float32, the bound on |g| is 1.3e19 for one term. Elements of g that are
    NaN or infinite are not changed.

    The square is computed from the unclipped g and then clipped. If it were computed from the
    clipped g, XLA would write the clipped g to memory on a CPU, and RMSProp would take twice as
    long.
    """
    most = float(jnp.finfo(g.dtype).max) / (2 * terms)
    limit = math.sqrt(most)
    square = jnp.minimum(squared_size(g), most)
    if not jnp.iscomplexobj(g):
        return jnp.where(jnp.isinf(g), g, jnp.clip(g, -limit, limit)), square
    beyond = jnp.isfinite(g) & (jnp.abs(g) > limit)
    scale = power_of_two(jnp.maximum(jnp.abs(g.real), jnp.abs(g.imag)))
    direction = jnp.where(beyond, g / scale.astype(g.dtype), 1)
    return jnp.where(beyond, direction / jnp.abs(direction).astype(g.dtype) * limit, g), square


def squared_size(g: jax.Array) -> jax.Array:
    """|g|^2, real for a complex g."""
    g = jnp.asarray(g)  # a JAX array, because NumPy would warn about an overflow
    return jnp.real(g.conj() * g) if jnp.iscomplexobj(g) else g * g


def scaled_down(g: Any) -> jax.Array:
    """g, divided by a power of two if an element is 2^51 or larger in absolute value.

    Use it in update rules that sum products of elements of g and need only ratios of these sums.
    """
    most = 2.0**50
    size = power_of_two(largest(g))
    return jnp.where(size > most, g / (size / most).astype(g.dtype), g)


def saturated(x: Any, *given: Any) -> jax.Array:
    """x, clipped to the finite range of its dtype wherever all arrays in `given` are finite."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(*(saturated(part, *given) for part in (x.real, x.imag)))
    finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, given))
    most = float(jnp.finfo(x.dtype).max)
    return jnp.where(finite, jnp.clip(x, -most, most), x)


def _widened(x: Any) -> Any:
    return jnp.asarray(x, wide(x.dtype)) if is_half(x) else x
