"""Rank promotion, as in x @ w + b, is always allowed inside fdl."""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def free_ranks() -> contextlib.AbstractContextManager[None]:
    """A context in which arrays of different ranks may be added, even if the user forbids it.

    If the user's settings already allow it, the context does nothing, so JAX does not compile any
    function again.
    """
    # getattr, because only some versions of JAX declare the types of their settings.
    free = getattr(jax.config, "jax_numpy_rank_promotion", None) == "allow"
    return contextlib.nullcontext() if free else jax.numpy_rank_promotion("allow")


def with_free_ranks(f: Callable[P, R]) -> Callable[P, R]:
    """A function that calls f inside `free_ranks`."""

    @functools.wraps(f)
    def free(*args: P.args, **given: P.kwargs) -> R:
        with free_ranks():
            return f(*args, **given)

    return free
