"""Different optimizers for different leaves, and frozen leaves."""

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
from fdl.checks import OptionError, check_kind, named_in_errors
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
    """Applies different optimizers to different parts of the tree.

    Args:
      transforms: a dict from path patterns to optimizers, such as
        `{"**/w": adamw(1e-3), "**/b": sgd(0.1)}`. A key can also be a tuple of path patterns. If
        param_labels is given, the keys are labels instead.
      param_labels: as in optax, a pytree of labels, or a function `params -> such a pytree`. The
        pytree has the structure of params; one label may also stand for a whole subtree. If a
        pytree of labels can itself be called, it is not called. None means that the keys of
        transforms are path patterns.
      rest: the optimizer of all leaves that match no pattern, or whose label is not in transforms.
        None means that there must be no such leaves.
      mask_compatible_extra_args: as in `masked`.

    Returns:
      A transformation with state `optax.PartitionState`, which maps each key of transforms to the
      state of its optimizer, and "rest" to the state of `rest`. A key that is a tuple of patterns
      becomes one string with commas, such as `"**/b, **/scale"`.

    Raises:
      ValueError: transforms is not a dict, or a value in it is not a transformation; a key is
        "rest" although `rest` is given; two keys become the same string, such as ("a", "b") and
        "a, b". At init or update, a pattern matches nothing (the message lists the nearest paths),
        two patterns match the same leaf, a leaf has no optimizer, or the labels do not fit.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = partition({"**/b": sgd(1.0)}, rest=sgd(0.5))
      >>> params = {"dense": {"b": jnp.ones(1), "w": jnp.ones(1)}}
      >>> optimizer.update(params, optimizer.init(params))[0]
      {'dense': {'b': Array([-1.], dtype=float32), 'w': Array([-0.5], dtype=float32)}}

    Source: `optax.partition`, formerly `multi_transform`; patterns and rest are new in fdl.
    """
    keys, parts = _keys_and_parts(transforms)
    if rest is not None:
        if REST in keys:
            raise OptionError(
                "partition",
                f"expected no key {REST!r} in transforms if `rest` is given, got one; rename this "
                "key",
            )
        parts.append(as_transformation("partition", rest))
    names = _sortable([*keys, REST] if rest is not None else keys)

    def split(tree: Any) -> dict[Hashable, Any]:
        """name -> the transformation with this name, masked so that it sees only its own leaves."""
        if is_placeholder(tree):
            return {name: masked(part, True) for name, part in zip(names, parts, strict=True)}
        # These labels are indices of keys, not the keys: a key can be a tuple, which JAX would take
        # for a subtree, not a leaf.
        labels = _numbered(keys, param_labels, rest is not None, tree)

        def mask(number: int) -> Callable[[Any], Any]:
            return lambda _: jax.tree.map(lambda label: label == number, labels)

        return {
            name: masked(part, mask(number), mask_compatible_extra_args=mask_compatible_extra_args)
            for number, (name, part) in enumerate(zip(names, parts, strict=True))
        }

    def init(params: Any) -> PartitionState:
        return PartitionState({key: part.init(params) for key, part in split(params).items()})

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PartitionState]:
        states = {}
        for key, part in split(updates).items():
            part_state = state.inner_states[key]
            updates, states[key] = part.update(updates, part_state, params, **extra_args)
        return updates, PartitionState(states)

    return transformation(init, update)


@named_in_errors
def freeze(mask: Mask) -> GradientTransformationExtraArgs:
    """Freezes leaves: their updates become 0.

    Put it last in a chain. The optimizer before it still holds a state for the frozen leaves. To
    save that memory, also put the optimizer into `masked`, so that it sees only the other leaves.
    Or use `partition` in place of the chain, with `set_to_zero` for the frozen leaves.

    Args:
      mask: which leaves to freeze, as in `masked`: path patterns, a pytree of bool or a function.

    Returns:
      A transformation with the same state as `optax.freeze`.

    Raises:
      ValueError: `mask` is not a mask; at init or update, a pattern matches nothing (the message
        lists the nearest paths).

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer, params = chain(sgd(1.0), freeze("w")), {"b": jnp.ones(1), "w": jnp.ones(1)}
      >>> optimizer.update(params, optimizer.init(params))[0]
      {'b': Array([-1.], dtype=float32), 'w': Array([0.], dtype=float32)}

    Source: `optax.freeze`.
    """
    return masked(set_to_zero(), mask)


def set_to_zero() -> GradientTransformationExtraArgs:
    """Replaces all updates by 0, even where they are NaN.

    Returns:
      A transformation without state.

    Example:
      >>> set_to_zero().update(jnp.array([3.0, jnp.nan]), set_to_zero().init(None))[0]
      Array([0., 0.], dtype=float32)
    """
    return stateless("set_to_zero", jnp.zeros_like)


def _sortable(keys: list[Any]) -> list[Any]:
    """The keys as names that JAX can sort.

    Tuples are joined to strings. Other keys stay as they are if the names can then be sorted;
    otherwise, every key that is not a string is replaced by its repr.
    """
    names = [", ".join(key) if isinstance(key, tuple) else key for key in keys]
    try:
        sorted(names)
    except TypeError:
        names = [name if isinstance(name, str) else repr(name) for name in names]
    if len(set(names)) < len(names):
        raise OptionError(
            "partition",
            f"expected keys with different texts, got {_short(keys)}; rename one of them",
        )
    return names


def _numbered(keys: list[Any], param_labels: Any, has_rest: bool, tree: Any) -> Any:
    """For each leaf the index of its key in `keys`. The index len(keys) stands for `rest`."""
    if param_labels is None:
        return _by_pattern(keys, has_rest, tree)
    labels = param_labels(tree) if is_function(param_labels) else param_labels
    check_prefix("partition", "labels", labels, tree)
    for path, label in paths.leaves(labels).items():
        if label not in keys and not has_rest:
            text = paths.shortened(str(label), 200)
            near = difflib.get_close_matches(text, map(str, keys), n=3, cutoff=0.0)
            raise ValueError(
                f"partition: expected the label at {_short(path)} to be a key of transforms, got "
                f"{_short(label)}; the nearest keys are {', '.join(map(_short, near)) or 'none'}; "
                "use one of the keys, or pass rest"
            )
    return jax.tree.map(lambda label: keys.index(label) if label in keys else len(keys), labels)


def _by_pattern(keys: list[Any], has_rest: bool, tree: Any) -> Any:
    """For each leaf the index of the one key that matches it, or len(keys) for `rest`."""
    picked: dict[str, int] = {}
    leaves = paths.leaves(tree)
    for number, key in enumerate(keys):
        for path in paths.pick(leaves, [key] if isinstance(key, str) else key):
            if path in picked:
                raise ValueError(
                    f"partition: expected one pattern for {_short(path)}, got "
                    f"{_short(keys[picked[path]])} and {_short(key)}; make one of them match fewer "
                    "leaves"
                )
            picked[path] = number
    left = next((path for path in leaves if path not in picked), None)
    if left is not None and not has_rest:
        raise ValueError(
            f"partition: expected a pattern for every leaf, got none for {_short(left)}; add a "
            "pattern for it, or pass rest"
        )
    return jax.tree_util.tree_map_with_path(
        lambda keypath, _: picked.get(paths.path_of(keypath), len(keys)), tree
    )


def _short(value: Any) -> str:
    return paths.shortened(repr(value), 200)


def _keys_and_parts(transforms: Any) -> tuple[list[Any], list[Any]]:
    """The keys and the transformations of a dict. Raises unless `transforms` is a dict."""
    form, example = "a dict, pattern -> optimizer", "pass {'**/b': fdl.sgd(0.1)}, for example"
    check_kind("partition", "transforms", transforms, Mapping, form, example)
    return list(transforms), [as_transformation("partition", each) for each in transforms.values()]
