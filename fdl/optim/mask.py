"""Some leaves and not others: what part of a tree a transformation sees."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    MaskedNode,
    MaskedState,
)

from fdl import paths
from fdl.optim.options import as_transformation

Mask = str | Sequence[str] | Callable[[Any], Any] | Any


def masked(inner: GradientTransformation, mask: Mask) -> GradientTransformationExtraArgs:
    """A transformation for some leaves; the updates of the others pass unchanged.

    Args:
      inner: fdl's or optax's.
      mask: one path pattern or a tuple of them (`"**/w"`; see `fdl.paths`), or, as in optax, a
        pytree of bool with the structure of params or a prefix of it, or a function of params that
        gives one.

    Returns:
      A transformation with state `optax.MaskedState(inner_state)`, which holds nothing for the
      leaves that are left out.

    Raises:
      ValueError: what is no mask; a pattern that matches nothing, with the nearest paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.optim import sgd
      >>> only_w, params = masked(sgd(1.0), "w"), {"b": jnp.ones(1), "w": jnp.ones(1)}
      >>> only_w.update(params, only_w.init(params))[0]
      {'b': Array([1.], dtype=float32), 'w': Array([-1.], dtype=float32)}
    """
    inner = as_transformation("masked", inner)
    _check_mask(mask)

    def init(params: Any) -> MaskedState:
        return MaskedState(inner.init(cut(params, mask_of(mask, params))))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MaskedState]:
        wanted = mask_of(mask, updates)
        part = None if params is None else cut(params, wanted)
        new, inner_state = inner.update(cut(updates, wanted), state.inner_state, part, **extra_args)
        updates = jax.tree.map(
            lambda keep, mine, other: mine if keep else other, wanted, new, updates
        )
        return updates, MaskedState(inner_state)

    return GradientTransformationExtraArgs(init, update)


def mask_of(mask: Mask, tree: Any) -> Any:
    """The mask as a pytree of bool: patterns and functions applied to a tree.

    Example:
      >>> mask_of("*/w", {"dense": {"b": 0.0, "w": 1.0}})
      {'dense': {'b': False, 'w': True}}
    """
    if isinstance(mask, str):
        return paths.select(tree, mask)
    if isinstance(mask, tuple | list) and mask and all(isinstance(each, str) for each in mask):
        return paths.select(tree, *mask)
    return mask(tree) if callable(mask) else mask


def cut(tree: Any, mask: Any) -> Any:
    """The tree with `optax.MaskedNode()`, which has no leaves, where the mask is False.

    Example:
      >>> cut({"b": 0.0, "w": 1.0}, {"b": False, "w": True})
      {'b': MaskedNode(), 'w': 1.0}
    """
    return jax.tree.map(lambda keep, part: part if keep else MaskedNode(), mask, tree)


def _check_mask(mask: Any) -> None:
    leaves = [None] if mask is None else jax.tree.leaves(mask)
    kinds = str | bool | np.bool_
    if not callable(mask) and not all(isinstance(leaf, kinds) for leaf in leaves):
        raise ValueError(
            f"masked: expected path patterns, a pytree of bool or a function of params, got "
            f"{mask!r:.60}; give '**/w' for all weights"
        )
