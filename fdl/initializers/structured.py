"""Structured weights: constants, orthogonal and identity matrices, and sparse matrices.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_count, check_number, decimal, is_concrete_number, named_in_errors
from fdl.initializers.distributions import normal, program
from fdl.initializers.fan_counts import drawn_in, fans, need_dtype, need_key, sizes
from fdl.paths import PathError
from fdl.typing import Initializer, Key


def zeros(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """All zeros.

    Args:
      key: a random key or None; it is not used.
      shape: a sequence of integers >= 0.
      dtype: the dtype of the result.

    Returns:
      An array of this shape and dtype.

    Raises:
      PathError: shape is not a sequence of integers >= 0, or dtype is not a dtype.

    Example:
      >>> zeros(None, (2,))
      Array([0., 0.], dtype=float32)
    """
    return jnp.zeros(sizes(shape, "zeros"), need_dtype(dtype, "zeros"))


def ones(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """All ones.

    Args:
      key: a random key or None; it is not used.
      shape: a sequence of integers >= 0.
      dtype: the dtype of the result.

    Returns:
      An array of this shape and dtype.

    Raises:
      PathError: shape is not a sequence of integers >= 0, or dtype is not a dtype.

    Example:
      >>> ones(None, (2,))
      Array([1., 1.], dtype=float32)
    """
    return jnp.ones(sizes(shape, "ones"), need_dtype(dtype, "ones"))


def constant(value: float) -> Initializer:
    """An array filled with one value. The key is not used and may be None.

    Args:
      value: a number; may be traced.

    Returns:
      An initializer.

    Raises:
      ValueError: value is not a number.

    Example:
      >>> constant(0.5)(None, (2,))
      Array([0.5, 0.5], dtype=float32)
    """
    check_number("constant", "value", value, None, "pass a number")

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.full(sizes(shape, "constant"), value, need_dtype(dtype, "constant"))

    return init


def orthogonal(scale: float = 1.0) -> Initializer:
    """A random matrix with orthonormal rows or columns, whichever are fewer, times `scale`.

    Args:
      scale: the norm that each of these rows or columns gets, finite and > 0; may be traced.

    Returns:
      An initializer. It treats weights of shape `[..., out]` as a matrix `[prod(...), out]`.

    Raises:
      ValueError: scale is out of range.
      PathError: the shape has fewer than two dimensions, or the key is None.

    Example:
      >>> w = orthogonal()(jax.random.key(0), (4, 2))
      >>> (w.T @ w).round(3) + 0.0
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    Source: Saxe, McClelland and Ganguli 2013, arXiv 1312.6120; Mezzadri 2006, math-ph/0609050,
    section 5: the columns of q from a QR decomposition are multiplied by the signs of the diagonal
    of r, which makes the distribution of the matrix uniform.
    """
    remedy = "pass the norm that each row or column gets, such as 1"
    check_number("orthogonal", "scale", scale, "(0, inf)", remedy)
    draw = program(_orthogonal, scale)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fans(shape, "orthogonal")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        square = (max(rows, columns), min(rows, columns))
        exact = drawn_in(dtype, "orthogonal")
        q = draw(need_key(key, "orthogonal"), square, exact)
        return (q if rows >= columns else q.T).reshape(shape).astype(dtype)

    return init


@named_in_errors
def delta_orthogonal(scale: float = 1.0) -> Initializer:
    """A convolution kernel that is an orthogonal matrix at its center and 0 elsewhere.

    With scale 1, stride 1 and no bias, the norm of an image then stays the same through any number
    of convolutions.

    Args:
      scale: finite and > 0; may be traced. It multiplies the matrix.

    Returns:
      An initializer for shapes `[*spatial, in, out]` with in <= out.

    Raises:
      ValueError: scale is out of range.
      PathError: the shape has no spatial axes, in > out, or the key is None.

    Example:
      >>> w = delta_orthogonal()(jax.random.key(0), (3, 3, 2, 4))
      >>> (w[1, 1] @ w[1, 1].T).round(3) + 0.0, float(abs(w[0]).max())
      (Array([[1., 0.],
             [0., 1.]], dtype=float32), 0.0)

    Source: Xiao et al. 2018, arXiv 1806.05393, algorithm 1.
    """
    matrix = orthogonal(scale)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        *field, inputs, outputs = shape = _kernel("delta_orthogonal", shape)
        if inputs > outputs:
            raise PathError(
                f"expected weights [*spatial, in, out] with in <= out, got shape {tuple(shape)}; "
                "use at least as many outputs as inputs",
                layer="delta_orthogonal",
            )
        center = matrix(key, (inputs, outputs), dtype)
        return jnp.zeros(shape, dtype).at[_center(field)].set(center)

    return init


def dirac(groups: int = 1) -> Initializer:
    """A convolution kernel that copies its input.

    At the center, the weight from channel i to channel i is 1. All other weights are 0.

    Args:
      groups: the number of groups of the convolution, >= 1. Each group copies its channels.

    Returns:
      An initializer for shapes `[*spatial, in, out]`, where `in` is the number of inputs of one
      group. If the numbers of inputs and outputs of a group differ, the weights of the extra
      channels are 0.

    Raises:
      ValueError: groups is below 1.
      PathError: the shape has no spatial axes, or `out` is not a multiple of groups.

    Example:
      >>> w = dirac()(None, (3, 2, 2))
      >>> w[1]
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    Source: Zagoruyko and Komodakis 2017, arXiv 1706.00388; `torch.nn.init.dirac_`.
    """
    remedy = "pass the number of groups of the convolution"
    groups = check_count("dirac", "groups", groups, remedy)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        *field, inputs, outputs = shape = _kernel("dirac", shape)
        dtype = need_dtype(dtype, "dirac")
        if outputs % groups:
            raise PathError(
                f"expected groups to divide the {outputs} outputs, got {groups}; {remedy}",
                layer="dirac",
            )
        one = jnp.tile(jnp.eye(inputs, outputs // groups, dtype=dtype), (1, groups))
        return jnp.zeros(shape, dtype).at[_center(field)].set(one)

    return init


def identity(scale: float = 1.0) -> Initializer:
    """The identity matrix times `scale`, padded with 0 if in and out differ. The key may be None.

    Args:
      scale: finite; may be traced.

    Returns:
      An initializer.

    Raises:
      ValueError: scale is not finite.
      PathError: the shape is not [in, out].

    Example:
      >>> identity(0.5)(None, (2, 3))
      Array([[0.5, 0. , 0. ],
             [0. , 0.5, 0. ]], dtype=float32)

    Source: Le, Jaitly and Hinton 2015, arXiv 1504.00941, section 3, for recurrent weights.
    """
    _check_factor("identity", "scale", scale)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        shape, dtype = sizes(shape, "identity"), need_dtype(dtype, "identity")
        if len(shape) != 2:
            raise PathError(
                f"expected weights [in, out], got shape {shape}; for convolutions, use dirac",
                layer="identity",
            )
        return jnp.asarray(scale, dtype) * jnp.eye(*shape, dtype=dtype)

    return init


@named_in_errors
def sparse(share: float, stddev: float = 0.01) -> Initializer:
    """Weights from a normal distribution, some of them set to 0: an output uses only some inputs.

    Args:
      share: the share of zeros in each column, in [0, 1); may be traced. The number of zeros is
        rounded up.
      stddev: the standard deviation of the other weights, finite and >= 0; may be traced.

    Returns:
      An initializer.

    Raises:
      ValueError: share or stddev is out of range.
      PathError: the shape is not [in, out], or the key is None.

    Example:
      >>> w = sparse(0.75)(jax.random.key(0), (8, 5))
      >>> (w != 0).sum(0).tolist()
      [2, 2, 2, 2, 2]

    Source: Martens 2010, "Deep learning via Hessian-free optimization", section 5;
    `torch.nn.init.sparse_`.
    """
    check_number("sparse", "share", share, "[0, 1)", "pass the share of zeros, such as 0.9")
    draw = normal(stddev)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        shape = sizes(shape, "sparse")
        if len(shape) != 2:
            raise PathError(
                f"expected weights [in, out], got shape {shape}; for other shapes, use normal",
                layer="sparse",
            )
        values, order = jax.random.split(need_key(key, "sparse"))
        w = draw(values, shape, dtype)
        rank = jax.random.uniform(order, shape).argsort(0)
        if is_concrete_number(share):
            is_zero = rank < math.ceil(decimal(share) * shape[0])
        else:
            is_zero = rank < jnp.ceil(share * shape[0]).astype(rank.dtype)
        return jnp.where(is_zero, jnp.zeros_like(w), w)

    return init


def scaled(initializer: Initializer, factor: float) -> Initializer:
    """The values of another initializer, times a factor.

    Use it for the last weights of a residual branch. With factor 0, the branch is 0 before
    training. A transformer of L layers has 2 L residual branches. With factor 1 / sqrt(2 L), the
    sum of all branches has, before training, the variance of a single branch without the factor.

    Args:
      initializer: any initializer.
      factor: finite; may be traced.

    Returns:
      An initializer. Its values have the shape and dtype of the other initializer's values.

    Raises:
      ValueError: factor is not finite.

    Example:
      >>> scaled(ones, 0.5)(None, (2,))
      Array([0.5, 0.5], dtype=float32)

    Source: Radford et al. 2019, GPT-2, section 2.3; Goyal et al. 2017, arXiv 1706.02677, section
    5.1, for factor 0.
    """
    _check_factor("scaled", "factor", factor)

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        w = initializer(key, shape, dtype)
        return jnp.asarray(factor, w.dtype) * w

    return init


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _orthogonal(key: Key, shape: tuple[int, ...], dtype: Any, scale: Any) -> jax.Array:
    q, r = jnp.linalg.qr(jax.random.normal(key, shape, dtype))
    return scale * (q * jnp.sign(jnp.diagonal(r))[None])


def _check_factor(who: str, name: str, value: Any) -> None:
    check_number(who, name, value, "(-inf, inf)", "pass a number that multiplies the weights")


def _kernel(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    shape = sizes(shape, name)
    if len(shape) < 3:
        raise PathError(
            f"expected the weights of a convolution [*spatial, in, out], got shape {shape}; "
            "for other weights use orthogonal or identity",
            layer=name,
        )
    return shape


def _center(field: Sequence[int]) -> tuple[int, ...]:
    return tuple(size // 2 for size in field)
