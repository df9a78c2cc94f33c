"""Chaining transformations, and adding updates to the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs

from fdl.ops.numerics import wide_inside
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import different_trees
from fdl.optim.protocol import transformation


def chain(*transforms: GradientTransformation) -> GradientTransformationExtraArgs:
    """Applies transformations in order: the updates of one are the input of the next.

    Args:
      transforms: transformations of fdl or optax, in any mix.

    Returns:
      One transformation. Its state is the tuple of the states of `transforms`, as in `optax.chain`.
      Half-precision updates are passed on in float32 and rounded once at the end. optax rounds them
      after each transformation.

    Raises:
      ValueError: an argument is not a transformation; at update, the state does not have one
        part for each transformation.

    Example:
      >>> import optax
      >>> from fdl.optim import scale_by_learning_rate
      >>> halved = chain(optax.scale(0.5), scale_by_learning_rate(0.1))
      >>> updates, _ = halved.update({"w": jnp.ones(2)}, halved.init({"w": jnp.ones(2)}))
      >>> updates["w"]
      Array([-0.05, -0.05], dtype=float32)
    """
    parts = [as_transformation("chain", transform) for transform in transforms]

    def init(params: Any) -> Any:
        return tuple(part.init(params) for part in parts)

    @wide_inside
    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if len(state) != len(parts):
            raise ValueError(
                f"chain: expected a state of {len(parts)} parts, got {len(state)}; make the state "
                "with the init of this chain"
            )
        new_states = []
        for part, part_state in zip(parts, state, strict=True):
            updates, new_state = part.update(updates, part_state, params, **extra_args)
            new_states.append(new_state)
        return updates, tuple(new_states)

    return transformation(init, update)


def apply_updates(params: Any, updates: Any) -> Any:
    """W += update, for each leaf W of params.

    Args:
      params: a pytree of arrays. A leaf that is None stays None.
      updates: a pytree with the same structure and shapes as params. Where an update is None, the
        parameter does not change.

    Returns:
      The new parameters, in the dtypes of params.

    Raises:
      ValueError: params and updates have different structures or shapes. The message names the
        first path that differs.

    Example:
      >>> apply_updates({"w": jnp.ones(2)}, {"w": -jnp.ones(2)})
      {'w': Array([0., 0.], dtype=float32)}
    """

    def add(p: Any, u: Any) -> Any:
        if p is None or u is None:
            return p
        if jnp.shape(p) != jnp.shape(u):  # without this check, p + u would broadcast
            raise different_trees("apply_updates", "params", params, "updates", updates)
        return jnp.asarray(p + u, jnp.result_type(p))

    try:
        # As in optax, a bfloat16 array and a float32 array are added in float32.
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(add, params, updates, is_leaf=lambda leaf: leaf is None)
    except (ValueError, TypeError):
        raise different_trees("apply_updates", "params", params, "updates", updates) from None
