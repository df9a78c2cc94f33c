"""Wide enough to sum in, and scaled so that squares neither overflow nor vanish."""

from typing import Any

import jax
import jax.numpy as jnp

Axes = int | tuple[int, ...] | None


def wide(dtype: Any) -> Any:
    """The dtype to compute and sum in: float32 or complex64 at least, wider dtypes as they are.

    Example:
      >>> wide(jnp.bfloat16), wide(jnp.float32), wide(jnp.complex64)
      (dtype('float32'), dtype('float32'), dtype('complex64'))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def widened(x: Any) -> jax.Array:
    """`x` in the dtype `wide(x.dtype)`.

    Example:
      >>> widened(jnp.ones(1, jnp.float16)).dtype
      dtype('float32')
    """
    return jnp.asarray(x, wide(jnp.result_type(x)))


def power_of_two(size: jax.Array) -> jax.Array:
    """A power of two near each size, to divide by without a rounding error.

    Args:
      size: [...], float32 or float64, >= 0: usually the largest magnitude of what is scaled.

    Returns:
      As size: 2^floor(log2(size)) within [2^-126, 2^126] (float64: 2^1022), so that both it and its
      inverse are normal numbers; 1 where size is 0, subnormal, infinite or NaN. It is a constant
      for gradients.

    Example:
      >>> power_of_two(jnp.array([3.0, 0.3, 0.0, jnp.inf])).tolist()
      [2.0, 0.25, 1.0, 1.0]
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
    """The largest magnitude over `axes`, 0 of nothing; of a complex x, of its two parts.

    Example:
      >>> float(largest(jnp.array([1.0, -3.0])))
      3.0
    """
    if jnp.iscomplexobj(x):
        x = jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag))
    return jnp.abs(x).max(axes, keepdims=keepdims, initial=0)


def norm(x: Any, axes: Axes = None, *, keepdims: bool = False) -> jax.Array:
    """sqrt(sum |x|^2), finite wherever the result itself can be represented.

    Args:
      x: [...], floating or complex.
      axes: over which the sum is taken; by default all.
      keepdims: whether they stay, with length 1.

    Returns:
      A real array, float32 or wider; its gradient is 0 where x is all 0.

    Example:
      >>> norm(jnp.array([3e20, 4e20]))
      Array(5.e+20, dtype=float32)

    Source: Blue 1978, "A portable Fortran program to find the Euclidean norm of a vector": scaled
    sums of squares; by a power of two, they round as the plain sum does.
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
    """The sum of a vector by halves, whose error grows with log2(N) and not with N.

    Args:
      x: [N].

    Returns:
      A scalar of the dtype of x.

    Example:
      >>> int(pairwise_sum(jnp.arange(11)))
      55

    Source: Higham 1993, "The accuracy of floating point summation", section 4.
    """
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        rest = x[2 * half :]
        x = jnp.concatenate([x[:half] + x[half : 2 * half], rest])
    return x.sum()
