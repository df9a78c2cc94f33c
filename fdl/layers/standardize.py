"""What the norms share: the learned scale and bias after, and the checks of their arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from fdl.arguments import check_floating
from fdl.initializers import Initializer
from fdl.layer import Layer, Params, State, check_initializer, subkey
from fdl.paths import PathError


def check_epsilon(who: str, epsilon: float) -> None:
    """Refuses an epsilon that would let a constant input divide by zero.

    Example:
      >>> check_epsilon("layer_norm", 0.0)
      Traceback (most recent call last):
      ...
      ValueError: layer_norm: expected an epsilon > 0, got 0.0; a constant input would give NaN
    """
    if not epsilon > 0:
        raise ValueError(
            f"{who}: expected an epsilon > 0, got {epsilon}; a constant input would give NaN"
        )


@dataclasses.dataclass(frozen=True)
class Affine:
    """y * scale + bias, with what a norm asks of its input.

    Args:
      name: the norm's.
      scale_init: initializer of scale [C]; None for no scale.
      bias_init: initializer of bias [C]; None for no bias.
      axes: how many axes x has at least.
      groups: what C is a multiple of.
    """

    name: str
    scale_init: Initializer | None
    bias_init: Initializer | None
    axes: int
    groups: int = 1

    def __post_init__(self) -> None:
        check_initializer(self.name, "scale_init", self.scale_init)
        check_initializer(self.name, "bias_init", self.bias_init)

    def layer(self, forward: Callable[[Params, Any], jax.Array]) -> Layer:
        """The layer without state whose pass is `forward(params, x)`, its input checked."""

        def apply(
            params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            return forward(params, x), state

        return Layer(self.name, lambda key, x: (self.init(key, x), {}), apply)

    def init(self, key: Any, x: Any) -> Params:
        """{"scale": [C], "bias": [C]}, or those of the two that are wanted."""
        self.check(x, {})
        made = {"scale": self.scale_init, "bias": self.bias_init}
        return {
            leaf: init(subkey(key, leaf), x.shape[-1:], x.dtype)
            for leaf, init in made.items()
            if init is not None
        }

    def apply(self, params: Params, y: jax.Array, dtype: Any) -> jax.Array:
        """The last two operations, in the dtype of y, and the result in `dtype`."""
        if self.scale_init is not None:
            y = y * params["scale"].astype(y.dtype)
        if self.bias_init is not None:
            y = y + params["bias"].astype(y.dtype)
        return y.astype(dtype)

    def check(self, x: Any, known: dict[str, Any]) -> None:
        """Refuses an x that the norm cannot take; `known` are arrays of [C] made before."""
        shape = ["...", "B, ...", "B, ..., T"][self.axes - 1]
        width = "C" if not known else str(next(iter(known.values())).shape[-1])
        check_floating(self.name, x)
        if x.ndim < self.axes or (known and x.shape[-1] != int(width)):
            new = ", or make new params with init" if known else ""
            raise PathError(
                f"expected x [{shape}, {width}], got {list(x.shape)}; give x that shape{new}",
                layer=self.name,
            )
        if x.shape[-1] % self.groups:
            raise PathError(
                f"expected channels in {self.groups} groups of one size, got {x.shape[-1]} "
                f"channels of x {list(x.shape)}; choose groups that divide them",
                layer=self.name,
            )
