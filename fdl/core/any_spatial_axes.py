"""Lets a layer take one integer as the size of its window along all spatial axes of x."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax

from fdl.checks import as_int, check_array, is_count
from fdl.core.layer import Layer
from fdl.ops.windows_and_padding import AXES
from fdl.paths import PathError
from fdl.typing import Params, State

P = ParamSpec("P")


def one_for_all_axes(what: str) -> Callable[[Callable[P, Layer]], Callable[P, Layer]]:
    """Decorates a layer's factory, so that its argument `what` may be one integer for all axes.

    The factory itself needs a tuple with one integer for each spatial axis of x. If the decorated
    factory gets one integer, the layer takes x [B, *spatial, C] with one batch axis and 1 to 3
    spatial axes.

    Args:
      what: name of the argument, such as "kernel_size".

    Raises:
      PathError: raised by the layer if x does not have one batch axis and 1 to 3 spatial axes, or
        if the kernels in params are for a different number of spatial axes.
    """

    def decorated(factory: Callable[P, Layer]) -> Callable[P, Layer]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def made(*args: P.args, **given: P.kwargs) -> Layer:
            try:
                bound = signature.bind(*args, **given)
            except TypeError:
                return factory(*args, **given)  # raises an error that names the factory
            size = as_int(bound.arguments.get(what))
            if not is_count(size):
                return factory(*args, **given)

            def make(rank: int) -> Layer:
                bound.arguments[what] = (int(size),) * rank
                return factory(*bound.args, **bound.kwargs)

            return _of_any_rank(f"{what} {size}", make)

        return made

    return decorated


def _of_any_rank(size: str, make: Callable[[int], Layer]) -> Layer:
    """A layer that calls the layer `make(rank)`, where rank is the number of x's spatial axes."""
    made, errors = {}, {}
    for rank in AXES:
        try:
            made[rank] = make(rank)
        except ValueError as error:  # for example, stride=(2, 2) fits only two axes
            errors[rank] = error
    if not made:
        raise errors[2]

    def of(rank: int) -> Layer:
        return made[rank] if rank in made else make(rank)

    layer = _chosen(made[min(made)].name, size, of)
    if all(each.decoding is None for each in made.values()):
        return layer

    def decoding(length: int) -> Layer:
        def incremental(rank: int) -> Layer:
            one = of(rank)
            return one if one.decoding is None else one.decoding(length)

        return _chosen(layer.name, size, incremental)

    return Layer(layer.name, layer.init, layer.apply, decoding=decoding)


def _chosen(name: str, size: str, of: Callable[[int], Layer]) -> Layer:
    def init(key: Any, x: Any) -> tuple[Params, State]:
        return of(_rank(name, size, x)).init(key, x)

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Any, State]:
        rank = _rank(name, size, x)
        kernels = {leaf.ndim - 2 for leaf in jax.tree.leaves(params) if leaf.ndim > 2}
        if kernels and rank not in kernels:
            raise PathError(
                f"expected x [B, {AXES[min(kernels)]}, C], the axes that params were made for, got "
                f"{list(x.shape)}; give x these axes, or make new params with init",
                layer=name,
            )
        return of(rank).apply(params, state, x)

    return Layer(name, init, apply)


def _rank(name: str, size: str, x: Any) -> int:
    check_array(name, x)
    if x.ndim - 2 not in AXES:
        raise PathError(
            f"expected x [B, *spatial, C] with 1 to 3 spatial axes for {size}, got "
            f"{list(x.shape)}; give x one batch axis, or pass one integer for each spatial axis, "
            "such as (3, 3)",
            layer=name,
        )
    return x.ndim - 2
