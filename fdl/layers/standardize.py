"""What the norms share: the learned scale and bias after, and the checks of their arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_array, check_floating, check_number
from fdl.initializers import Initializer
from fdl.layer import Layer, Params, State, check_initializer, subkey
from fdl.paths import PathError


def check_epsilon(who: str, epsilon: Any) -> None:
    """Refuses an epsilon that would let a constant input divide by zero.

    Example:
      >>> check_epsilon("layer_norm", 0.0)
      Traceback (most recent call last):
      ...
      ValueError: layer_norm: expected an epsilon > 0, got 0.0; a constant input would give NaN
    """
    check_number(who, "an epsilon > 0", epsilon, lambda e: e > 0, "a constant input would give NaN")


@dataclasses.dataclass(frozen=True)
class Affine:
    """y * scale + bias, with what a norm asks of its input.

    Args:
      name: the norm's.
      scale_init: initializer of scale [C]; None for no scale.
      bias_init: initializer of bias [C]; None for no bias.
      axes: how many axes x has at least.
      groups: what C is a multiple of.
      features: the axes of x that scale and bias have, counted from the last.
    """

    name: str
    scale_init: Initializer | None
    bias_init: Initializer | None
    axes: int
    groups: int = 1
    features: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        check_initializer(self.name, "scale_init", self.scale_init)
        check_initializer(self.name, "bias_init", self.bias_init)

    def layer(self, standard: Callable[[Any], jax.Array]) -> Layer:
        """The layer without state and mask, of `standard(x)`, the standard scores of x."""

        def apply(
            params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            return self.apply(params, standard(x), x.dtype), state

        return Layer(self.name, lambda key, x: (self.init(key, x), {}), apply)

    def masked_layer(self, standard: Callable[[Any, Any], jax.Array]) -> Layer:
        """The layer without state of `standard(x, mask)`, with the extra input `mask`."""

        def init(key: Any, x: Any, *, mask: Any = None) -> tuple[Params, State]:
            self.check_mask(x, mask)
            return self.init(key, x), {}

        def apply(
            params: Params,
            state: State,
            x: Any,
            *,
            mask: Any = None,
            key: Any = None,
            train: bool = False,
        ) -> tuple[jax.Array, State]:
            self.check(x, params)
            seen, mask = self.masked(x, mask)
            return self.apply(params, standard(seen, mask), x.dtype, mask), state

        return Layer(self.name, init, apply)

    def init(self, key: Any, x: Any) -> Params:
        """{"scale": [C], "bias": [C]}, or those of the two that are wanted."""
        self.check(x, {})
        made = {"scale": self.scale_init, "bias": self.bias_init}
        return {
            leaf: init(subkey(key, leaf), self.sizes(x), x.dtype)
            for leaf, init in made.items()
            if init is not None
        }

    def apply(self, params: Params, y: jax.Array, dtype: Any, mask: Any = None) -> jax.Array:
        """The last operations, in the dtype of y, and the result in `dtype`, 0 where masked."""
        axes = range(self.features[0], 0)
        shape = [y.shape[axis] if axis in self.features else 1 for axis in axes]
        if self.scale_init is not None:
            y = y * params["scale"].astype(y.dtype).reshape(shape)
        if self.bias_init is not None:
            y = y + params["bias"].astype(y.dtype).reshape(shape)
        return (y if mask is None else jnp.where(mask, y, 0)).astype(dtype)

    def sizes(self, x: Any) -> tuple[int, ...]:
        """The sizes of those axes that scale and bias have."""
        return tuple(x.shape[axis] for axis in self.features)

    def masked(self, x: Any, mask: Any) -> tuple[Any, Any]:
        """x with 0 where the mask is False, so that nothing there is read, and the whole mask."""
        self.check_mask(x, mask)
        if mask is None:
            return x, None
        mask = jnp.broadcast_to(mask, x.shape)
        return jnp.where(mask, x, 0), mask

    def check_mask(self, x: Any, mask: Any) -> None:
        """Refuses what is no bool for the places of x."""
        if mask is None:
            return
        check_array(self.name, mask, "mask")
        fits = all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=False))
        if mask.dtype != bool or mask.ndim != x.ndim or not fits:
            raise PathError(
                f"expected mask bool {list(x.shape)}, or 1 for any of the numbers, got "
                f"{mask.dtype} {list(mask.shape)}; one of places alone is mask[..., None]; beside "
                "attention, whose mask is another, call both in a network",
                layer=self.name,
            )

    def check(self, x: Any, known: dict[str, Any]) -> None:
        """Refuses an x that the norm cannot take; `known` are arrays of [C] made before."""
        check_floating(self.name, x)
        made = next(iter(known.values())).shape if known else None
        if x.ndim < self.axes or (known and self.sizes(x) != made):
            new = ", or make new params with init" if known else ""
            raise PathError(
                f"expected x [{self.wanted(made)}], got {list(x.shape)}; give x that shape{new}",
                layer=self.name,
            )
        if x.shape[-1] % self.groups:
            raise PathError(
                f"expected channels in {self.groups} groups of one size, got {x.shape[-1]} "
                f"channels of x {list(x.shape)}; choose groups that divide them",
                layer=self.name,
            )

    def wanted(self, made: tuple[int, ...] | None) -> str:
        """The shape of x, in the language of the docstrings."""
        if self.features == (-1,):
            shape = ["...", "B, ...", "B, ..., T"][self.axes - 1]
            return f"{shape}, {made[0] if made else 'C'}"
        sizes = dict(zip(self.features, made or ["N"] * len(self.features), strict=True))
        return ", ".join(["...", *(str(sizes.get(axis, "N")) for axis in range(-self.axes, 0))])
