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

    Every optimizer of fdl is made here, so that all work under `jax_numpy_rank_promotion="raise"`.
    """
    return GradientTransformationExtraArgs(with_free_ranks(init), with_free_ranks(update))


def is_placeholder(params: Any) -> bool:
    """True if `optax.tree_utils.tree_map_params` called `init`, to find parameters in the state.

    It passes a tree without leaves, which no mask fits.
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
