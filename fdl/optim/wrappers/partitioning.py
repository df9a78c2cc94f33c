"""Different optimizers for different leaves, and leaves that stay as they are."""

import difflib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    PartitionState,
)

from fdl import paths
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import stateless
from fdl.optim.masking import check_prefix, is_function, masked
from fdl.optim.protocol import is_placeholder, transformation
from fdl.typing import Mask

REST = "rest"


def partition(
    transforms: Mapping[Any, GradientTransformation],
    param_labels: Any = None,
    *,
    rest: GradientTransformation | None = None,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformationExtraArgs:
    """An optimizer for each part of the tree.

    Args:
      transforms: by path pattern, `{"**/w": adamw(1e-3), "**/b": sgd(0.1)}`, or tuple of patterns;
        with param_labels, by label.
      param_labels: as in optax, a pytree of labels with the structure of params or a prefix of it,
        or a function of params that gives one. A module whose leaves are labels is read, also where
        it can be called. None: the keys of transforms are path patterns.
      rest: for the leaves that no pattern picks, or whose label is not in transforms.
      mask_compatible_extra_args: as in `masked`.

    Returns:
      A transformation with state `optax.PartitionState`: key -> the state of its part; that of
      `rest` under "rest". A tuple of patterns stands there joined by commas, `"**/b, **/scale"`.

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
    keys = list(transforms)
    parts = [as_transformation("partition", each) for each in transforms.values()]
    if rest is not None:
        if REST in keys:
            raise ValueError(f"partition: expected no key {REST!r} beside rest, got one; rename it")
        parts.append(as_transformation("partition", rest))
    names = _sortable([*keys, REST] if rest is not None else keys)

    def split(tree: Any) -> dict[Hashable, Any]:
        """name -> its transformation, for the leaves of this tree that are its own."""
        if is_placeholder(tree):
            return {name: masked(each, True) for name, each in zip(names, parts, strict=True)}
        # By number, because a tuple of patterns is no leaf.
        labels = _numbered(keys, param_labels, rest is not None, tree)

        def own(number: int) -> Callable[[Any], Any]:
            return lambda _: jax.tree.map(lambda label: label == number, labels)

        return {
            name: masked(each, own(number), mask_compatible_extra_args=mask_compatible_extra_args)
            for number, (name, each) in enumerate(zip(names, parts, strict=True))
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

    return transformation(init, update)


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


def _sortable(keys: list[Any]) -> list[Any]:
    """The keys as names that JAX can sort in a dict: as they are, if it can sort those."""
    names = [", ".join(key) if isinstance(key, tuple) else key for key in keys]
    try:
        sorted(names)
    except TypeError:
        names = [name if isinstance(name, str) else repr(name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError(
            f"partition: expected keys that are told apart by their text, got "
            f"{_short(keys)}; rename one"
        )
    return names


def _numbered(keys: list[Any], param_labels: Any, has_rest: bool, tree: Any) -> Any:
    """At each leaf the number of its key; that after the last is the rest's."""
    if param_labels is None:
        return _by_pattern(keys, has_rest, tree)
    labels = param_labels(tree) if is_function(param_labels) else param_labels
    check_prefix("partition", "labels", labels, tree)
    for path, label in paths.leaves(labels).items():
        if label not in keys and not has_rest:
            said = paths.shortened(str(label), 200)
            near = difflib.get_close_matches(said, map(str, keys), n=3, cutoff=0.0)
            raise ValueError(
                f"partition: expected a label of transforms at {_short(path)}, got "
                f"{_short(label)}; the nearest are {', '.join(map(_short, near)) or 'none'}, or "
                "give rest"
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
                    f"partition: expected one pattern for {_short(path)}, got "
                    f"{_short(keys[picked[path]])} and {_short(key)}; make one of them narrower"
                )
            picked[path] = number
    left = next((path for path in leaves if path not in picked), None)
    if left is not None and not has_rest:
        raise ValueError(
            f"partition: expected a pattern for every leaf, got none for {_short(left)}; "
            "add one, or give rest"
        )
    return jax.tree_util.tree_map_with_path(
        lambda keypath, _: picked.get(paths.path_of(keypath), len(keys)), tree
    )


def _short(value: Any) -> str:
    return paths.shortened(repr(value), 200)
