"""optax's protocol: what every optimizer is, and what stands in the place of parameters."""

import functools
from collections.abc import Callable
from typing import Any

import optax
from optax import GradientTransformationExtraArgs

from fdl.ops.rank_promotion import with_free_ranks


def transformation(
    init: Callable[..., Any], update: Callable[..., Any]
) -> GradientTransformationExtraArgs:
    """`optax.GradientTransformationExtraArgs` whose functions may join arrays of different ranks.

    Every optimizer of fdl is made here, so that it works where the user's settings forbid that.
    """
    return GradientTransformationExtraArgs(with_free_ranks(init), with_free_ranks(update))


def is_placeholder(params: Any) -> bool:
    """Whether `optax.tree_utils.tree_map_params` asks where in a state the parameters stand.

    It calls `init` with a tree that has no leaves, to which no mask fits.
    """
    return isinstance(params, _placeholder_type())


@functools.cache
def _placeholder_type() -> type:
    """optax's type of it, which has no public name."""
    seen: list[type] = []

    def init(params: Any) -> None:
        seen.append(type(params))

    optax.tree_utils.tree_map_params(init, lambda leaf: leaf, None)
    return seen[0]
