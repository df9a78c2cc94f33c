"""Arrays whose types say how they lie on devices: on explicit meshes, and inside `jax.shard_map`.

Most operations of JAX hand such types on by themselves. Here is what those layers need that begin
from zeros of their own, or that are primitives of their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec


def full_beside(
    x: jax.Array, axes: int, shape: tuple[int, ...], value: float, dtype: Any
) -> jax.Array:
    """One value, lying on devices as the first axes of x do.

    Args:
      x: [...]; its numbers are not read.
      axes: how many axes of x are those of the result.
      shape: of the result's other axes.
      value: of every element.
      dtype: of the result.

    Returns:
      [*x.shape[:axes], *shape].
    """
    each = jnp.full_like(jnp.sum(x, tuple(range(axes, x.ndim))), value, dtype)
    return jnp.broadcast_to(
        jnp.expand_dims(each, range(axes, axes + len(shape))), each.shape + shape
    )


def by_batch(
    form: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, w: jax.Array
) -> jax.Array:
    """form(x, w), a batch like x, where `form` is a primitive that knows nothing of such types.

    Args:
      form: from x [N, ...] and w to y [N, ...], with as many axes as x.
      x: cut along its first axis, or not at all.
      w: the same on every device.

    Returns:
      y, cut as x is. What happens inside is left to the compiler.
    """
    axes = _varying(x) | _varying(w)
    x, w = (jax.lax.pcast(a, tuple(axes - _varying(a)), to="varying") for a in (x, w))
    cut = sharding_beside(x, 1, x.ndim - 1)
    return form(x, w) if cut is None else jax.sharding.auto_axes(form, out_sharding=cut)(x, w)


def sharding_beside(x: jax.Array, axes: int, more: int) -> PartitionSpec | None:
    """How an array lies on an explicit mesh whose first axes are those of x; None on no such mesh.

    Args:
      x: [...].
      axes: how many axes of x are those of the result.
      more: how many others the result has, which are not cut.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return None
    return PartitionSpec(*jax.typeof(x).sharding.spec[:axes], *(None,) * more)


def rows(w: jax.Array, ids: jax.Array) -> jax.Array:
    """w[ids], with NaN for an id that is none.

    Args:
      w: [V, ...].
      ids: [...], integers.

    Returns:
      [..., ...], the dtype of w.
    """
    return w.at[ids].get(
        mode="fill",
        fill_value=jnp.nan,
        wrap_negative_indices=False,
        out_sharding=sharding_beside(ids, ids.ndim, w.ndim - 1),
    )


def typed_like(a: Any, shape: tuple[int, ...]) -> Any:
    """The abstract value of another shape that varies over devices as `a` does."""
    whole = a.sharding.update(spec=PartitionSpec(*(None,) * len(shape)))
    return a.update(shape=shape, sharding=whole)


def _varying(x: jax.Array) -> frozenset[str]:
    """The axes of the devices over which x differs, inside `jax.shard_map`."""
    return jax.typeof(x).manual_axis_type.varying
