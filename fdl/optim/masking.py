"""Masks, which select the leaves of a tree that a transformation sees."""

import functools
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
from fdl.checks import OptionError
from fdl.optim.checks import as_transformation
from fdl.optim.protocol import is_placeholder, transformation
from fdl.typing import Mask


def masked(
    inner: GradientTransformation, mask: Mask, *, mask_compatible_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Applies a transformation to some leaves. The updates of all other leaves pass unchanged.

    Args:
      inner: a transformation of fdl or optax.
      mask: which leaves `inner` sees: a path pattern such as `"**/w"` (see `fdl.paths`), or a tuple
        of path patterns. As in optax, it can also be a pytree of bool, or a function that takes
        params and returns such a pytree; in `update`, the function gets the updates instead of
        params. The pytree has the structure of params; one bool may also stand for a whole subtree.
        If a pytree of bool can itself be called, it is not called.
      mask_compatible_extra_args: True also masks the extra arguments of `update` that have the
        structure of the updates, such as `grad`.

    Returns:
      A transformation with state `optax.MaskedState(inner_state)`. The inner state holds no arrays
      for leaves outside the mask.

    Raises:
      ValueError: `inner` is not a transformation; `mask` is not a mask or does not fit the
        parameters; a pattern matches nothing (the message lists the nearest paths).

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
        if is_placeholder(params):
            return MaskedState(inner.init(params))
        return MaskedState(inner.init(cut(params, mask_of(mask, params))))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MaskedState]:
        wanted = mask_of(mask, updates)
        structure: Any = jax.tree.structure(updates)  # mypy does not know its methods
        part = None if params is None else cut(params, wanted)
        if mask_compatible_extra_args:
            extra_args = {
                name: cut(value, wanted) if jax.tree.structure(value) == structure else value
                for name, value in extra_args.items()
            }
        new, inner_state = inner.update(cut(updates, wanted), state.inner_state, part, **extra_args)
        updates = jax.tree.map(
            lambda keep, changed, old: changed if keep else old, wanted, new, updates
        )
        return updates, MaskedState(inner_state)

    return transformation(init, update)


def mask_of(mask: Mask, tree: Any) -> Any:
    """Turns a mask of any kind into a pytree of bool for this tree."""
    if isinstance(mask, str):
        return paths.select(tree, mask)
    if (
        isinstance(mask, tuple | list)
        and mask
        and all(isinstance(pattern, str) for pattern in mask)
    ):
        return paths.select(tree, *mask)
    function: Any = mask
    return function(tree) if is_function(mask) else mask


def is_function(value: Any) -> bool:
    """True if a mask (or labels) is a function of the parameters, False if it is a pytree.

    An object can be a function and a pytree at the same time, such as a module of Equinox. It is
    treated as a pytree if its leaves are bools or labels.
    """
    if isinstance(value, functools.partial):  # such as jax.tree_util.Partial
        return True
    leaves, arrays = jax.tree.leaves(value), jax.Array | np.ndarray
    labels = leaves and not any(callable(leaf) or isinstance(leaf, arrays) for leaf in leaves)
    return callable(value) and not labels


def cut(tree: Any, mask: Any) -> Any:
    """Replaces the parts of a tree where the mask is False by `optax.MaskedNode()`.

    A MaskedNode has no leaves.
    """
    check_prefix("masked", "a mask", mask, tree)
    return jax.tree.map(lambda keep, part: part if keep else MaskedNode(), mask, tree)


def check_prefix(who: str, what: str, prefix: Any, tree: Any) -> None:
    """Raises unless `prefix` has the structure of the tree or of its upper levels.

    Raises:
      ValueError: `prefix` does not fit the tree. The message names the first path that differs.
    """
    try:
        jax.tree.map(lambda leaf, part: None, prefix, tree)
    except (ValueError, TypeError):
        raise ValueError(
            f"{who}: expected {what} with the structure of params or of its upper levels, got "
            f"{_difference(prefix, tree)}; make it with jax.tree.map over params"
        ) from None


def _difference(prefix: Any, tree: Any) -> str:
    """The first place where a prefix does not fit a tree, as text."""
    given, expected = paths.leaves(prefix), paths.leaves(tree)
    levels: set[str] = set()
    for path in expected:
        names = path.split("/")
        above = {"/".join(names[:depth]) for depth in range(len(names) + 1)}
        if above.isdisjoint(given):
            return f"no entry for {paths.shortened(repr(path), 200)}"
        levels |= above
    unknown = next((path for path in given if path not in levels), None)
    if unknown is None:
        return "containers of other types"
    return f"an entry for {paths.shortened(repr(unknown), 200)}, which is not in params"


def _check_mask(mask: Any) -> None:
    leaves = [None] if mask is None else jax.tree.leaves(mask)
    kinds = str | bool | np.bool_
    if not is_function(mask) and not all(isinstance(leaf, kinds) for leaf in leaves):
        raise OptionError(
            "masked",
            "expected a mask of path patterns, a pytree of bool or a function of params, got "
            f"{mask!r:.60}; pass '**/w' to select all weights",
        )
