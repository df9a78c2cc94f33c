"""Gives new arrays the sharding that JAX needs in their type, on meshes and in `jax.shard_map`.

Most operations of JAX give their result the sharding of the operands. Arrays that a layer creates,
such as initial zeros, and results of fdl's primitives need the functions of this module.
"""

from collections.abc import Callable, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

EXPERT = "expert"  # the mesh axis over which experts are split


def full_beside(
    x: jax.Array, axes: int, shape: tuple[int, ...], value: float, dtype: Any
) -> jax.Array:
    """An array filled with `value`, whose first axes are sharded like the first axes of x.

    Args:
      x: [...]; its values are not used.
      axes: number of leading axes of x that are also the leading axes of the result.
      shape: sizes of the result's remaining axes.
      value: value of every element.
      dtype: dtype of the result.

    Returns:
      [*x.shape[:axes], *shape].
    """
    front = jnp.full_like(jnp.sum(x, tuple(range(axes, x.ndim))), value, dtype)
    return jnp.broadcast_to(
        jnp.expand_dims(front, range(axes, axes + len(shape))), front.shape + shape
    )


def by_batch(
    form: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, w: jax.Array
) -> jax.Array:
    """form(x, w) with the sharding of x, for a primitive that has no rule for shardings.

    Args:
      form: a function from x [N, ...] and w to y [N, ...], where y has as many axes as x.
      x: an array that is sharded along its first axis, or not at all.
      w: an array that is the same on every device.

    Returns:
      y, sharded like x. The compiler chooses the shardings inside `form`.
    """
    axes = _varying(x) | _varying(w)
    x, w = varying(x, axes), varying(w, axes)
    spec = sharding_beside(x, 1, x.ndim - 1)
    return form(x, w) if spec is None else jax.sharding.auto_axes(form, out_sharding=spec)(x, w)


def sharding_beside(x: jax.Array, axes: int, more: int) -> PartitionSpec | None:
    """The sharding of an array whose first axes are those of x; None without an explicit mesh.

    Args:
      x: [...].
      axes: number of leading axes of x that are also the leading axes of the array.
      more: number of the array's remaining axes, which are not sharded.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return None
    return PartitionSpec(*jax.typeof(x).sharding.spec[:axes], *(None,) * more)


def rows(w: jax.Array, ids: jax.Array) -> jax.Array:
    """w[ids]; an id out of range gives NaN.

    Args:
      w: [V, ...].
      ids: [...], integers.

    Returns:
      [*ids.shape, ...], in the dtype of w.
    """
    return w.at[ids].get(
        mode="fill",
        fill_value=jnp.nan,
        wrap_negative_indices=False,
        out_sharding=sharding_beside(ids, ids.ndim, w.ndim - 1),
    )


def typed_like(a: Any, shape: tuple[int, ...]) -> Any:
    """The abstract value `a` with a new shape, unsharded, and varying over the same mesh axes."""
    whole = a.sharding.update(spec=PartitionSpec(*(None,) * len(shape)))
    return a.update(shape=shape, sharding=whole)


def varying(x: jax.Array, axes: Set[str]) -> jax.Array:
    """x with a type that says that x varies over the mesh axes `axes`, inside `jax.shard_map`."""
    return jax.lax.pcast(x, tuple(axes - _varying(x)), to="varying")


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes along which x differs between devices, inside `jax.shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def over_experts(x: jax.Array, axis: int, cut: bool) -> jax.Array:
    """x, with one axis split over the mesh axis `expert`, or kept whole on every device.

    If another axis of x was split over `expert` before, the devices exchange parts: an all-to-all.
    Without this mesh axis, or if its size does not divide the size of the axis of x, x is returned
    unchanged.

    Args:
      x: an array, in a program that is traced on a mesh; see `Layout.on_mesh`.
      axis: the axis of the experts.
      cut: True splits the axis, so that each device has some of the experts. False keeps the axis
        whole, so that each device has a part of the data of all experts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if EXPERT not in mesh.auto_axes or x.shape[axis] % mesh.shape[EXPERT]:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = EXPERT if cut else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """x on the devices of a sharding.

    With several processes, all of them call `put` with the same x, or with an array that is already
    split over the processes. Each process stores only the parts for its own devices.

    Args:
      x: an array of NumPy or JAX, a number, or a random key.
      sharding: the sharding of the result.
    """
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return jax.device_put(x, sharding)
    if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        # The data of a key have one more axis, which is not sharded.
        numbers = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(x))
    # NumPy arrays are copied, because the user may change them later. Nothing is compiled.
    whole = np.array(x, jnp.result_type(x), copy=not isinstance(x, jax.Array) or None)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def on_host(x: Any) -> np.ndarray:
    """x as a NumPy array. If its parts are on several processes, all of them must call this."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def own_rows(x: Any) -> Any:
    """The rows of x that this process holds, if x is split over processes; otherwise x itself."""
    if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
        return x
    if x.is_fully_addressable or x.is_fully_replicated:
        return x
    parts = {str(part.index): np.asarray(part.data) for part in x.addressable_shards}
    return np.concatenate([*parts.values()])
