"""A tree of arrays taken as one long vector: inner products, lengths, sums."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.optim.leafwise import squared_size


def dot(a: Any, b: Any) -> jax.Array:
    """Re <a, b>, the sum over all leaves of conj(a) b, in at least float32.

    Args:
      a: a tree of arrays.
      b: of the same structure and shapes.

    Example:
      >>> a, b = {"w": jnp.array([1.0, 2.0]), "b": 3.0}, {"w": jnp.array([1.0, -1.0]), "b": 2.0}
      >>> float(dot(a, b))
      5.0
    """
    highest = jax.lax.Precision.HIGHEST

    def one(x: Any, y: Any) -> jax.Array:
        x, y = wide(x), wide(y)
        return jnp.real(jnp.tensordot(x.conj(), y, x.ndim, precision=highest))

    return total(jax.tree.map(one, a, b))


def length(a: Any) -> jax.Array:
    """The root of the sum of |a|^2 over all leaves, in at least float32.

    Example:
      >>> float(length({"w": jnp.array([2.0, 3.0]), "b": 6.0}))
      7.0
    """
    return jnp.sqrt(total(jax.tree.map(lambda x: squared_size(wide(x)).sum(), a)))


def add_scaled(a: Any, scale: Any, b: Any) -> Any:
    """a + scale * b, each leaf in the dtype of a's.

    Example:
      >>> add_scaled(jnp.ones(2), 0.5, jnp.array([2.0, 4.0]))
      Array([2., 3.], dtype=float32)
    """

    def one(x: Any, y: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(x + scale * y, jnp.result_type(x))

    return jax.tree.map(one, a, b)


def wide(x: Any) -> jax.Array:
    """x in float32, complex64 or wider.

    Example:
      >>> wide(jnp.ones(1, jnp.bfloat16)).dtype, wide(jnp.ones(1, jnp.complex64)).dtype
      (dtype('float32'), dtype('complex64'))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def total(numbers: Any) -> jax.Array:
    """The sum of a tree of scalars; 0 of none.

    Example:
      >>> float(total({"a": jnp.float32(1.0), "b": jnp.float32(2.0)}))
      3.0
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(sum(jax.tree.leaves(numbers), start=jnp.zeros((), jnp.float32)))
