"""How optimizers are put together, and how their updates reach the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs

from fdl.ops.numerics import wide_inside
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import different_trees
from fdl.optim.protocol import transformation


def chain(*transforms: GradientTransformation) -> GradientTransformationExtraArgs:
    """Transformations one after the other: the updates of each go into the next.

    Args:
      transforms: fdl's or optax's, mixed as you like.

    Returns:
      One transformation; its state is the tuple of theirs, as optax's `chain` has it. Gradients in
      half precision go through in float32, and the end is rounded once; in optax's each piece
      rounds.

    Raises:
      ValueError: what is no transformation; a state of another length.

    Example:
      >>> import optax
      >>> from fdl.optim import scale_by_learning_rate
      >>> halved = chain(optax.scale(0.5), scale_by_learning_rate(0.1))
      >>> updates, _ = halved.update({"w": jnp.ones(2)}, halved.init({"w": jnp.ones(2)}))
      >>> updates["w"]
      Array([-0.05, -0.05], dtype=float32)
    """
    parts = [as_transformation("chain", each) for each in transforms]

    def init(params: Any) -> Any:
        return tuple(each.init(params) for each in parts)

    @wide_inside
    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if len(state) != len(parts):
            raise ValueError(
                f"chain: expected a state of {len(parts)} parts, got {len(state)}; "
                "make it with this chain's init"
            )
        new_state = []
        for each, own in zip(parts, state, strict=True):
            updates, own = each.update(updates, own, params, **extra_args)
            new_state.append(own)
        return updates, tuple(new_state)

    return transformation(init, update)


def apply_updates(params: Any, updates: Any) -> Any:
    """W += update, for every leaf.

    Args:
      params: a pytree of arrays; None leaves stay.
      updates: as params; where one is None, the parameter stays.

    Returns:
      As params, each leaf in its own dtype.

    Raises:
      ValueError: two different trees, or shapes; names the first path that differs.

    Example:
      >>> apply_updates({"w": jnp.ones(2)}, {"w": -jnp.ones(2)})
      {'w': Array([0., 0.], dtype=float32)}
    """

    def add(p: Any, u: Any) -> Any:
        if p is None or u is None:
            return p
        if jnp.shape(p) != jnp.shape(u):  # which could be added, and would reshape the parameter
            raise different_trees("apply_updates", "params", params, "updates", updates)
        return jnp.asarray(p + u, jnp.result_type(p))

    try:
        # A bfloat16 and a float32 are added in float32, as optax does.
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(add, params, updates, is_leaf=lambda leaf: leaf is None)
    except (ValueError, TypeError):
        raise different_trees("apply_updates", "params", params, "updates", updates) from None
