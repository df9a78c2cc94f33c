"""`weightless`: makes a layer that has neither parameters nor state."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fdl.core.decoding_cache import at_once
from fdl.core.layer import Layer, check_training_key
from fdl.ops.windows_and_padding import check_images
from fdl.typing import Key, Params, State


def weightless(
    name: str,
    f: Callable[[Any], Any],
    *,
    training: Callable[[Key, Any], Any] | None = None,
    check: Callable[[Any], None] = lambda x: None,
) -> Layer:
    """A layer y = f(x), or, in training, y = training(key, x) if `training` is passed.

    Args:
      name: what the layer is called in a network.
      f: a pure function of x.
      training: `(key, x) -> y`, where key is the random key of the pass; None means f in training
        too.
      check: a function that raises if x has the wrong shape or dtype; `init` and `apply` call it.
    """

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check(x)
        return {}, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Any, State]:
        check(x)
        if training is None or not train:
            return f(x), state
        check_training_key(key, name)
        return training(key, x), state

    return Layer(name, init, apply)


def on_images(
    name: str, rank: int, f: Callable[[jax.Array], jax.Array], *, groups: int = 1, lead: int = 0
) -> Layer:
    """`weightless` for images with `rank` spatial axes; `groups`, `lead` as in `check_images`."""
    check = functools.partial(check_images, name, rank=rank, groups=groups, lead=lead)
    return at_once(weightless(name, f, check=check))
