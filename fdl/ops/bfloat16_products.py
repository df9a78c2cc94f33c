"""Products of two matrices in bfloat16, in a form that is fast on CPU.

XLA's CPU compiler converts the operands to float32, and multiplies those. It multiplies bfloat16
itself, in half of the time, if the result is float32, and both matrices lie in memory row by row
with the summed axis of the first one last. The primitive of this module writes products and their
gradients in that form; benchmarks/products.py measures them. Sums are in float32 in both forms, so
the results are equal, except for the order of the sums. On other platforms, the primitive is
`jax.lax.dot_general`.

In a jaxpr on CPU, these products are no `dot_general`. So a policy of `jax.checkpoint` that keeps
the results of `dot_general` does not keep theirs, and they are computed again.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from fdl.ops.primitives import bilinear
from fdl.ops.sharding import by_batch

# The axes of a and b that are summed over. Gradients of these three forms have these forms again.
PLAIN, BY_TRANSPOSE, OF_TRANSPOSE = (1, 0), (1, 1), (0, 0)  # a b, a b^T and a^T b
Summed = tuple[int, int]


def product_in_bfloat16(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b for a [M, K] and b [K, N] in bfloat16; bfloat16 [M, N]."""
    return by_batch(lambda a, b: _product.bind(a, b, summed=PLAIN), a, b)


def _anywhere(a: jax.Array, b: jax.Array, summed: Summed) -> jax.Array:
    return jax.lax.dot_general(a, b, (((summed[0],), (summed[1],)), ((), ())))


def _on_cpu(a: jax.Array, b: jax.Array, summed: Summed) -> jax.Array:
    if summed == OF_TRANSPOSE:
        # The smaller matrix is transposed. The barrier keeps XLA from undoing that.
        if a.shape[1] > b.shape[1]:
            return jax.lax.optimization_barrier(_on_cpu(b, a, summed)).T
        a = a.T
    wide: Any = jnp.float32
    dimensions = (((1,), (summed[1],)), ((), ()))
    y = jax.lax.dot_general(_by_rows(a), _by_rows(b), dimensions, preferred_element_type=wide)
    return y.astype(a.dtype)


def _by_rows(a: jax.Array) -> jax.Array:
    """The same matrix, which lies in memory row by row.

    XLA may choose another order for a matrix that it computes, and then cannot multiply it: the
    program would fail with "Unsupported element type".
    """
    return jax.lax.optimization_barrier(a.reshape(-1)).reshape(a.shape)


def _shape(a: Any, b: Any, summed: Summed) -> tuple[int, ...]:
    return a.shape[1 - summed[0]], b.shape[1 - summed[1]]


def _batch(operands: Any, axes: Any, summed: Summed) -> tuple[jax.Array, int]:
    """The rule for `vmap`: more rows if only a is batched, else a product of batches by XLA."""
    (a, b), (axis, other) = operands, axes
    if other is None and summed != OF_TRANSPOSE:
        a = jnp.moveaxis(a, axis, 0)
        y = _product.bind(a.reshape(-1, a.shape[-1]), b, summed=summed)
        return y.reshape(*a.shape[:2], -1), 0
    return jax.vmap(lambda a, b: _anywhere(a, b, summed), axes)(a, b), 0


_product = bilinear("product_in_bfloat16", _anywhere, _on_cpu, _shape, _batch)


def _of_first(dy: jax.Array, a: Any, b: jax.Array, *, summed: Summed) -> jax.Array:
    """From the gradient with respect to the product to the gradient with respect to a."""
    if summed == OF_TRANSPOSE:
        return _product.bind(b, dy, summed=BY_TRANSPOSE)
    return _product.bind(dy, b, summed=BY_TRANSPOSE if summed == PLAIN else PLAIN)


def _of_second(dy: jax.Array, a: jax.Array, b: Any, *, summed: Summed) -> jax.Array:
    """The same for b."""
    if summed == BY_TRANSPOSE:
        return _product.bind(dy, a, summed=OF_TRANSPOSE)
    return _product.bind(a, dy, summed=OF_TRANSPOSE if summed == PLAIN else PLAIN)


ad.defbilinear(_product, _of_first, _of_second)
