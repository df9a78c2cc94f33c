"""Different optimizers for different leaves, and leaves that stay as they are."""

import difflib
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PartitionState,
)

from fdl import paths
from fdl.optim.leafwise import stateless
from fdl.optim.mask import Mask, masked
from fdl.optim.options import as_transformation

REST = "rest"


def partition(
    transforms: Mapping[Any, GradientTransformation],
    param_labels: Any = None,
    *,
    rest: GradientTransformation | None = None,
) -> GradientTransformationExtraArgs:
    """An optimizer for each part of the tree.

    Args:
      transforms: by path pattern, `{"**/w": adamw(1e-3), "**/b": sgd(0.1)}`, or tuple of patterns;
        with param_labels, by label.
      param_labels: as in optax, a pytree of labels with the structure of params or a prefix of it,
        or a function of params that gives one. None: the keys of transforms are path patterns.
      rest: for the leaves that no pattern picks, or whose label is not in transforms.

    Returns:
      A transformation with state `optax.PartitionState`: key -> the state of its part; that of
      `rest` under "rest".

    Raises:
      ValueError: a pattern that matches nothing, with the nearest paths; a leaf that two patterns
        pick, or none and there is no rest.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = partition({"**/b": sgd(1.0)}, rest=sgd(0.5))
      >>> params = {"dense": {"b": jnp.ones(1), "w": jnp.ones(1)}}
      >>> optimizer.update(params, optimizer.init(params))[0]
      {'dense': {'b': Array([-1.], dtype=float32), 'w': Array([-0.5], dtype=float32)}}

    Source: `optax.partition`, known as `multi_transform` before; patterns and rest are fdl's.
    """
    parts = {key: as_transformation("partition", each) for key, each in transforms.items()}
    if rest is not None:
        if REST in parts:
            raise ValueError(f"partition: expected no key {REST!r} beside rest, got one; rename it")
        parts[REST] = as_transformation("partition", rest)

    def split(tree: Any) -> dict[Hashable, Any]:
        """key -> its transformation, for the leaves of this tree that are its own."""
        # By number, because a tuple of patterns is no leaf.
        labels = _numbered(list(transforms), param_labels, rest is not None, tree)
        return {
            key: masked(each, jax.tree.map(lambda label, own=number: label == own, labels))
            for number, (key, each) in enumerate(parts.items())
        }

    def init(params: Any) -> PartitionState:
        return PartitionState({key: each.init(params) for key, each in split(params).items()})

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PartitionState]:
        states = {}
        for key, each in split(updates).items():
            own = state.inner_states[key]
            updates, states[key] = each.update(updates, own, params, **extra_args)
        return updates, PartitionState(states)

    return GradientTransformationExtraArgs(init, update)


def freeze(mask: Mask) -> GradientTransformationExtraArgs:
    """Leaves that stay as they are: their updates become 0.

    It goes last in a chain. To keep no state for them either, give the others to `masked` or
    `partition`.

    Args:
      mask: what to freeze, as in `masked`: a path pattern, several, a pytree of bool or a function.

    Returns:
      A transformation whose state is that of `optax.freeze`.

    Raises:
      ValueError: a pattern that matches nothing; the message lists the nearest paths.

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer, params = chain(sgd(1.0), freeze("w")), {"b": jnp.ones(1), "w": jnp.ones(1)}
      >>> optimizer.update(params, optimizer.init(params))[0]
      {'b': Array([-1.], dtype=float32), 'w': Array([0.], dtype=float32)}

    Source: `optax.freeze`.
    """
    return masked(set_to_zero(), mask)


def set_to_zero() -> GradientTransformationExtraArgs:
    """All updates 0, whatever comes.

    Example:
      >>> set_to_zero().update(jnp.array([3.0, jnp.nan]), set_to_zero().init(None))[0]
      Array([0., 0.], dtype=float32)
    """
    return stateless("set_to_zero", jnp.zeros_like)


def _numbered(keys: list[Any], param_labels: Any, has_rest: bool, tree: Any) -> Any:
    """At each leaf the number of its key; that after the last is the rest's."""
    if param_labels is None:
        return _by_pattern(keys, has_rest, tree)
    labels = param_labels(tree) if callable(param_labels) else param_labels
    for path, label in paths.leaves(labels).items():
        if label not in keys and not has_rest:
            near = difflib.get_close_matches(str(label), map(str, keys), n=3, cutoff=0.0)
            raise ValueError(
                f"partition: expected a label of transforms at {path!r}, got {label!r}; the "
                f"nearest are {', '.join(map(repr, near)) or 'none'}, or give rest"
            )
    return jax.tree.map(lambda label: keys.index(label) if label in keys else len(keys), labels)


def _by_pattern(keys: list[Any], has_rest: bool, tree: Any) -> Any:
    """The number of the key whose pattern picks each leaf, and no other does."""
    picked: dict[str, int] = {}
    leaves = paths.leaves(tree)
    for number, key in enumerate(keys):
        for path in paths.pick(leaves, [key] if isinstance(key, str) else key):
            if path in picked:
                raise ValueError(
                    f"partition: expected one pattern for {path!r}, got {keys[picked[path]]!r} and "
                    f"{key!r}; make one of them narrower"
                )
            picked[path] = number
    left = next((path for path in leaves if path not in picked), None)
    if left is not None and not has_rest:
        raise ValueError(
            f"partition: expected a pattern for every leaf, got none for {left!r}; "
            "add one, or give rest"
        )
    return jax.tree_util.tree_map_with_path(
        lambda keypath, _: picked.get(paths.path_of(keypath), len(keys)), tree
    )
