"""A tree of arrays taken as one long vector; its length is `clipping.global_norm`."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.optim.clipping import wide


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

    def one(x: Any, y: Any) -> jax.Array:
        x, y = wide(x), wide(y)
        highest = jax.lax.Precision.HIGHEST
        return jnp.real(jnp.tensordot(x.conj(), y, x.ndim, precision=highest))

    products = jax.tree.leaves(jax.tree.map(one, a, b))
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(sum(products), jnp.result_type(jnp.float32, *products))


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
