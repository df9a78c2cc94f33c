"""A cell over time, by `jax.lax.scan`: what every recurrent layer is made of.

T is the length of a sequence, D the features of x, H those of the cell.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_array
from fdl.checks import check_inputs
from fdl.data.arrays import to_jax
from fdl.layer import Layer, Params, State
from fdl.layers.cells import Carry, Cell
from fdl.layers.spread import full_beside
from fdl.ops.numerics import wide
from fdl.paths import PathError
from fdl.weak_jit import weak_jit


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A cell over time.

    Args:
      cell, reverse, returns, name: as in `recurrent`.
      begins: whether it takes the extra input `carry`.

    Example:
      >>> from fdl.layers.cells import simple_cell
      >>> Unrolled(simple_cell(2), False, "last", "encoder").layer().inputs
      ('lengths', 'carry')
    """

    cell: Cell
    reverse: bool
    returns: str
    name: str
    begins: bool = True

    def layer(self) -> Layer:
        """The layer that `recurrent` gives."""
        inputs = ("lengths", "carry") if self.begins else ("lengths",)
        return Layer(self.name, self.init, self.apply, inputs, decoding=self.decoding)

    def decoding(self, length: int) -> Layer:
        """Its twin for decoding, whose cache is the carry, whatever the length."""
        if self.reverse:
            raise PathError(
                "expected a layer that goes forward in time, got one with reverse, whose answers "
                "for earlier tokens depend on later ones; such a network cannot go on from a cache",
                layer=self.name,
            )
        return Layer(self.name, self.begin, self.go_on, inputs=())

    def begin(self, key: Any, x: Any) -> tuple[Params, State]:
        """The parameters, and a carry of zeros as the cache."""
        return self.init(key, x)[0], self.start(x)

    def go_on(
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        **given: Any,
    ) -> tuple[Any, State]:
        """A pass that begins at the cache, and gives the carry back in its place."""
        check_inputs(self.name, (), (), given)
        self.check(x, params)
        y, carry = self.unroll(params, x, self.start(x, state), None)
        return self.returned(y, carry), carry

    def init(self, key: Any, x: Any, **given: Any) -> tuple[Params, State]:
        """The parameters of the cell."""
        self.check(x, None)
        return self.cell.init(key, x), {}

    def apply(
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        lengths: Any = None,
        carry: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[Any, State]:
        """A pass over whole sequences."""
        self.check(x, params)
        alive = self.alive(x, lengths)
        return self.returned(*self.unroll(params, x, self.start(x, carry), alive)), state

    def start(self, x: Any, carry: Any = None) -> Carry:
        """What to begin with: zeros, or the carry that was given."""
        shape, dtype, parts = (*x.shape[:-2], self.cell.features), wide(x.dtype), self.cell.carried
        named = isinstance(carry, Mapping)
        if carry is None:
            zeros = full_beside(x, x.ndim - 2, (self.cell.features,), 0, dtype)
            return dict.fromkeys(parts, zeros)
        came = {part: jnp.shape(leaf) for part, leaf in carry.items()} if named else {}
        if came != dict.fromkeys(parts, shape):
            said = ", ".join(f"{part} {list(own)}" for part, own in came.items())
            raise PathError(
                f"expected a carry of {' and '.join(parts)}, each {list(shape)}, got "
                f"{said or ('nothing' if named else 'an array')}; take that of a "
                "layer with returns='carry', or leave it out",
                layer=self.name,
            )
        return {part: carry[part].astype(dtype) for part in parts}

    def alive(self, x: Any, lengths: Any) -> Any:
        """Which steps are within their sequence, [T, ..., 1]; None where all are."""
        if lengths is None:
            return None
        lengths = to_jax(lengths, self.name, "lengths")
        if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != x.shape[:-2]:
            raise PathError(
                f"expected integer lengths {list(x.shape[:-2])} for x {list(x.shape)}, got "
                f"{lengths.dtype} {list(lengths.shape)}; say how many steps each sequence has",
                layer=self.name,
            )
        steps = jnp.arange(x.shape[-2], dtype=jnp.int32).reshape(-1, *[1] * (lengths.ndim + 1))
        return steps < lengths[..., None].astype(jnp.int32)

    def unroll(self, params: Params, x: Any, carry: Carry, alive: Any) -> tuple[jax.Array, Carry]:
        """(y [..., T, H] in the dtype of x, the carry after the last step)."""
        return _unroll(params, x, carry, alive, cell=self.cell, reverse=self.reverse)

    def returned(self, y: jax.Array, carry: Carry) -> Any:
        """What `returns` asks for."""
        if self.returns == "carry":
            return y, carry
        return y if self.returns == "sequence" else carry["h"].astype(y.dtype)

    def check(self, x: Any, params: Any) -> None:
        """Refuses an x that is no sequence of this cell's."""
        check_array(self.name, x)
        rows = params["input"]["w"].shape[0] if params and "input" in params else None
        if (
            x.ndim < 2
            or not jnp.issubdtype(x.dtype, jnp.floating)
            or rows not in (None, x.shape[-1])
        ):
            raise PathError(
                f"expected x [..., T, {rows or 'D'}] of a floating dtype, got {x.dtype} "
                f"{list(x.shape)}; give one row of features for every step, as an embedding does",
                layer=self.name,
            )


@weak_jit(static=["cell", "reverse"], inline=True)
def _unroll(
    params: Params, x: Any, carry: Carry, alive: Any, *, cell: Cell, reverse: bool
) -> tuple[jax.Array, Carry]:
    """A program of its own, since a scan outside of `jax.jit` is compiled again at every call."""

    def step(carry: Carry, now: Any) -> tuple[Carry, jax.Array]:
        driven, alive = now
        new = cell.step(params, carry, driven)
        if alive is None:
            return new, new["h"]
        kept = {part: jnp.where(alive, new[part], carry[part]) for part in new}
        return kept, jnp.where(alive, new["h"], 0)

    x_by_time = jnp.moveaxis(x, -2, 0)
    if alive is not None:
        # So that not even NaN past the end reaches a gradient.
        x_by_time = jnp.where(alive, x_by_time, 0)
    driven = cell.drive(params, x_by_time)
    carry, y = jax.lax.scan(step, carry, (driven, alive), reverse=reverse)
    return jnp.moveaxis(y.astype(x.dtype), 0, -2), carry
