"""optax's protocol: the type of every optimizer, and the placeholder that optax passes to init."""

import functools
from collections.abc import Callable
from typing import Any

import optax
from optax import GradientTransformationExtraArgs

from fdl.ops.rank_promotion import with_free_ranks


def transformation(
    init: Callable[..., Any], update: Callable[..., Any]
) -> GradientTransformationExtraArgs:
    """An `optax.GradientTransformationExtraArgs` that may broadcast arrays of different ranks.

    Every optimizer of fdl is made by this function, so that all of them work under
    `jax_numpy_rank_promotion="raise"`.
    """
    return GradientTransformationExtraArgs(with_free_ranks(init), with_free_ranks(update))


def is_placeholder(params: Any) -> bool:
    """True if `params` is the placeholder that `optax.tree_utils.tree_map_params` passes to `init`.

    optax calls `init` in this way to find out which parts of the state belong to parameters. The
    placeholder is a tree without leaves. So masks, which have the structure of the params, cannot
    be applied to it.
    """
    return isinstance(params, _placeholder_type())


@functools.cache
def _placeholder_type() -> type:
    """The type of optax's placeholder, which has no public name."""
    seen: list[type] = []

    def init(params: Any) -> None:
        seen.append(type(params))

    optax.tree_utils.tree_map_params(init, lambda leaf: leaf, None)
    return seen[0]
