"""Recurrent layers: a cell is applied at every step of a sequence, by `jax.lax.scan`.

T is the length of a sequence, D the features of x, H those of the cell.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array
from fdl.core.combinators import parallel
from fdl.core.compilation import weak_jit
from fdl.core.inputs import check_inputs
from fdl.core.layer import Layer
from fdl.data.arrays import to_jax
from fdl.layers.cells import Carry, Cell, gru_cell, lstm_cell, simple_cell
from fdl.ops.numerics import wide
from fdl.ops.sharding import full_beside
from fdl.paths import PathError
from fdl.typing import Params, State

RETURNS = ("sequence", "last", "carry")


def recurrent(
    cell: Cell, *, reverse: bool = False, returns: str = "sequence", name: str | None = None
) -> Layer:
    """carry = step(carry, x[t]) and y[t] = carry["h"], for t = 0, 1, ...

    Several layers are a chain of them. The carry is kept in at least float32.

    Args:
      cell: the step, as `lstm_cell(64)`.
      reverse: goes from the end of each sequence to its beginning; y[t] stays beside x[t].
      returns: "sequence" is y [..., T, H]; "last" is the y of the last step alone, [..., H];
        "carry" is (y, carry), from which another layer can go on.
      name: what the layer is called in a network; by default after the cell.

    Returns:
      A layer from x [..., T, D]; params those of the cell. Extra inputs, none of which must be
      given: `lengths`, integers [...], how long each sequence is: past its end y is 0, the carry
      stays, and x is not read; one beyond T is T; `carry`, what to begin with, by default zeros:
      {"h": [..., H]}, for an LSTM also "c". Its cache in decoding is the carry, so a decoder begins
      from an encoder's when that is put in the place of its cache.

    Raises:
      ValueError: an unknown returns.
      PathError: x, lengths or a carry of the wrong shape or dtype; decoding with reverse.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = recurrent(gru_cell(4), returns="last")
      >>> x = jnp.ones((2, 5, 3))
      >>> params, state = layer.init(jax.random.key(0), x)
      >>> layer.apply(params, state, x, lengths=jnp.array([5, 2]))[0].shape
      (2, 4)

    Source: Elman 1990, "Finding structure in time".
    """
    if returns not in RETURNS:
        raise ValueError(
            f"recurrent: expected returns to be one of {', '.join(map(repr, RETURNS))}, got "
            f"{returns!r}; take 'sequence' for y of every step, 'last' for that of the last one"
        )
    return Unrolled(cell, reverse, returns, name or cell.name).layer()


def lstm(
    features: int,
    *,
    forget_bias: float = 0.0,
    reverse: bool = False,
    returns: str = "sequence",
    name: str = "lstm",
) -> Layer:
    """A recurrent layer of `lstm_cell`.

    Args:
      features: H, >= 1.
      forget_bias: what the bias of the forget gate begins with; may be traced.
      reverse, returns, name: as in `recurrent`.

    Returns:
      A layer from x [..., T, D] to [..., T, H], as `recurrent`.

    Raises:
      ValueError: features below 1, or an unknown returns.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = lstm(4, forget_bias=1.0)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `lstm_cell`.
    """
    cell = lstm_cell(features, forget_bias=forget_bias)
    return recurrent(cell, reverse=reverse, returns=returns, name=name)


def gru(
    features: int,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    returns: str = "sequence",
    name: str = "gru",
) -> Layer:
    """A recurrent layer of `gru_cell`.

    Args:
      features: H, >= 1.
      reset_after: as in `gru_cell`.
      reverse, returns, name: as in `recurrent`.

    Returns:
      A layer from x [..., T, D] to [..., T, H], as `recurrent`.

    Raises:
      ValueError: features below 1, or an unknown returns.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = gru(4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `gru_cell`.
    """
    cell = gru_cell(features, reset_after=reset_after)
    return recurrent(cell, reverse=reverse, returns=returns, name=name)


def simple_recurrent(
    features: int,
    *,
    reverse: bool = False,
    returns: str = "sequence",
    name: str = "simple_recurrent",
) -> Layer:
    """A recurrent layer of `simple_cell`: h = tanh(W x + U h + b).

    Args:
      features: H, >= 1.
      reverse, returns, name: as in `recurrent`.

    Returns:
      A layer from x [..., T, D] to [..., T, H], as `recurrent`.

    Raises:
      ValueError: features below 1, or an unknown returns.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = simple_recurrent(4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `simple_cell`.
    """
    return recurrent(simple_cell(features), reverse=reverse, returns=returns, name=name)


def bidirectional(
    cell: Cell, *, returns: str = "sequence", merge: str = "concat", name: str = "bidirectional"
) -> Layer:
    """Two layers of one kind of cell, one forward in time and one backward, merged.

    Args:
      cell: the step of both, each with weights of its own.
      returns: "sequence" or "last", as in `recurrent`: what each gives after its last step.
      merge: "concat" or "sum", as in `parallel`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to [..., T, 2 H], [..., T, H] for "sum"; params {"forward",
      "backward"}. Extra input: `lengths`, integers [...]; backward begins at each sequence's own
      end.

    Raises:
      ValueError: another returns or merge.
      PathError: as `recurrent`; in decoding, since what is backward sees later tokens.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = bidirectional(lstm_cell(4))
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 8)

    Source: Schuster and Paliwal 1997, "Bidirectional recurrent neural networks".
    """
    if returns not in ("sequence", "last"):
        raise ValueError(
            f"bidirectional: expected returns 'sequence' or 'last', got {returns!r}; for both "
            "carries, call two recurrent layers in a network"
        )
    forward = Unrolled(cell, False, returns, cell.name, begins=False)
    backward = dataclasses.replace(forward, reverse=True)
    return parallel(forward=forward.layer(), backward=backward.layer(), merge=merge, name=name)


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A cell over time.

    Args:
      cell, reverse, returns, name: as in `recurrent`.
      begins: whether it takes the extra input `carry`.
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
