"""Makes optimizers in optax's protocol, and recognizes optax's placeholder for params.

`optax.tree_utils.tree_map_params` passes this placeholder to `init` instead of params.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax
from optax import GradientTransformationExtraArgs

from fdl.ops.rank_promotion import with_free_ranks


def transformation(
    init: Callable[..., Any], update: Callable[..., Any]
) -> GradientTransformationExtraArgs:
    """Makes an `optax.GradientTransformationExtraArgs` from its two functions.

    Both functions can broadcast arrays of different ranks, even under the setting
    `jax_numpy_rank_promotion="raise"`. Every optimizer of fdl is made here, so that all of them
    work under this setting.
    """
    return GradientTransformationExtraArgs(with_free_ranks(init), with_free_ranks(update))


def is_placeholder(params: Any) -> bool:
    """True if `params` is the placeholder that `optax.tree_utils.tree_map_params` passes to `init`.

    optax makes this call to find out which parts of the state belong to parameters. The
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
