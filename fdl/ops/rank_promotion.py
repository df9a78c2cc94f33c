"""Rank promotion is free in fdl: x @ w + b is the vocabulary's own expression."""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def free_ranks() -> contextlib.AbstractContextManager[None]:
    """Lets fdl's own code add arrays of different ranks where the user's settings forbid it.

    Where they do not, this changes nothing, and no program is compiled anew for it.
    """
    # getattr, since only some of JAX's versions declare the types of their switches.
    free = getattr(jax.config, "jax_numpy_rank_promotion", None) == "allow"
    return contextlib.nullcontext() if free else jax.numpy_rank_promotion("allow")


def with_free_ranks(f: Callable[P, R]) -> Callable[P, R]:
    """A function that runs within `free_ranks`."""

    @functools.wraps(f)
    def free(*args: P.args, **given: P.kwargs) -> R:
        with free_ranks():
            return f(*args, **given)

    return free
