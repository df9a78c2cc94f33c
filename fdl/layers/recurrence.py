"""Recurrent layers: a cell is applied at every step of a sequence, by `jax.lax.scan`.

T is the length of a sequence, D the number of features of x, H the number of features of the cell.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import OptionError, check_array, described, named_in_errors
from fdl.core.combinators import parallel
from fdl.core.compilation import weak_jit
from fdl.core.inputs import check_inputs
from fdl.core.layer import Layer
from fdl.data.arrays import to_jax
from fdl.layers.cells import Carry, Cell, gru_cell, lstm_cell, recurrent_bias, simple_cell
from fdl.ops.numerics import wide
from fdl.ops.sharding import full_beside
from fdl.ops.unrolling import unrolled
from fdl.paths import PathError
from fdl.typing import Params, State

RETURNS = ("sequence", "last", "carry")


def recurrent(
    cell: Cell, *, reverse: bool = False, returns: str = "sequence", name: str | None = None
) -> Layer:
    """carry = step(carry, x[t]) and y[t] = carry["h"], for t = 0, 1, ...

    To stack several of these layers, use `chain`. The carry is float32 or wider.

    Args:
      cell: the step, such as `lstm_cell(64)`.
      reverse: whether to read each sequence from its end to its beginning; in both
        cases, y[t] is the output at x[t].
      returns: "sequence" returns y [..., T, H]; "last" returns y of the last step, [..., H];
        "carry" returns (y, carry), and another layer can continue from this carry.
      name: what the layer is called in a network; by default the name of the cell.

    Returns:
      A layer from x [..., T, D]; its params are the params of the cell. It has two optional extra
      inputs. `lengths`, integers [...], are the lengths of the sequences. Beyond the end of a
      sequence, y is 0, the carry does not change and x is not read. A length above T counts as T.
      `carry` is the initial carry, by default zeros: {"h": [..., H]}, and for an LSTM also "c". In
      decoding, the cache is the carry. To start a decoder from an encoder, replace the cache with
      the carry of the encoder.

    Raises:
      TypeError: cell is not a cell.
      ValueError: returns is unknown.
      PathError: x, lengths or carry has the wrong shape or dtype; or the layer is used in decoding
        and reverse is True.

    Example:
      >>> layer = recurrent(gru_cell(4), returns="last")
      >>> x = jnp.ones((2, 5, 3))
      >>> params, state = layer.init(jax.random.key(0), x)
      >>> layer.apply(params, state, x, lengths=jnp.array([5, 2]))[0].shape
      (2, 4)

    Source: Elman 1990, "Finding structure in time".
    """
    _check_cell("recurrent", cell)
    if returns not in RETURNS:
        raise OptionError(
            "recurrent",
            f"expected returns to be one of {', '.join(map(repr, RETURNS))}, got "
            f"{returns!r}; pass 'sequence' for y of every step, 'last' for y of the last step",
        )
    return _Recurrent(cell, reverse, returns, name or cell.name).layer()


@named_in_errors
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
      forget_bias: the initial bias of the forget gate; may be traced.
      reverse, returns, name: as in `recurrent`.

    Returns:
      The layer that `recurrent` makes of this cell, from x [..., T, D]; y is [..., T, H] with
      returns="sequence".

    Raises:
      ValueError: features < 1, forget_bias is not a number, or returns is unknown.

    Example:
      >>> layer = lstm(4, forget_bias=1.0)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `lstm_cell`.
    """
    cell = lstm_cell(features, forget_bias=forget_bias)
    return recurrent(cell, reverse=reverse, returns=returns, name=name)


@named_in_errors
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
      The layer that `recurrent` makes of this cell, from x [..., T, D]; y is [..., T, H] with
      returns="sequence".

    Raises:
      ValueError: features < 1, or returns is unknown.

    Example:
      >>> layer = gru(4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `gru_cell`.
    """
    cell = gru_cell(features, reset_after=reset_after)
    return recurrent(cell, reverse=reverse, returns=returns, name=name)


@named_in_errors
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
      The layer that `recurrent` makes of this cell, from x [..., T, D]; y is [..., T, H] with
      returns="sequence".

    Raises:
      ValueError: features < 1, or returns is unknown.

    Example:
      >>> layer = simple_recurrent(4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 4)

    Source: see `simple_cell`.
    """
    return recurrent(simple_cell(features), reverse=reverse, returns=returns, name=name)


@named_in_errors
def bidirectional(
    cell: Cell, *, returns: str = "sequence", merge: str = "concat", name: str = "bidirectional"
) -> Layer:
    """Two recurrent layers, one forward in time and one backward, whose outputs are merged.

    Args:
      cell: the step of both layers, which have separate weights.
      returns: "sequence" or "last", as in `recurrent`. With "last", the backward layer returns its
        y at t = 0, which is its last step.
      merge: "concat" or "sum", as in `parallel`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y [..., T, 2 H], or [..., T, H] if merge is "sum"; y has no axis
      T if returns is "last". The params are {"forward", "backward"}. Optional extra input:
      `lengths`, integers [...]; the backward layer begins at the end of each sequence.

    Raises:
      TypeError: cell is not a cell.
      ValueError: returns or merge is unknown.
      PathError: as in `recurrent`; or the layer is used in decoding. The backward layer needs later
        tokens, which are not known in decoding.

    Example:
      >>> layer = bidirectional(lstm_cell(4))
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 3)))[0].shape
      (2, 5, 8)

    Source: Schuster and Paliwal 1997, "Bidirectional recurrent neural networks".
    """
    _check_cell("bidirectional", cell)
    if returns not in ("sequence", "last"):
        raise OptionError(
            "bidirectional",
            f"expected returns 'sequence' or 'last', got {returns!r}; to get the carries, call two "
            "recurrent layers in a network",
        )
    forward = _Recurrent(cell, False, returns, cell.name, takes_carry=False)
    backward = dataclasses.replace(forward, reverse=True)
    return parallel(forward=forward.layer(), backward=backward.layer(), merge=merge, name=name)


def _check_cell(who: str, cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(
            f"{who}: expected a cell, got {described(cell)}; pass lstm_cell(64) or the like"
        )


@dataclasses.dataclass(frozen=True)
class _Recurrent:
    """The layer of `recurrent`; `takes_carry` says whether it has the extra input `carry`."""

    cell: Cell
    reverse: bool
    returns: str
    name: str
    takes_carry: bool = True

    def layer(self) -> Layer:
        inputs = ("lengths", "carry") if self.takes_carry else ("lengths",)
        return Layer(self.name, self.init, self.apply, inputs, decoding=self.decoding)

    def decoding(self, length: int) -> Layer:
        """The incremental form. Its cache is the carry, so `length` has no effect on its size."""
        if self.reverse:
            raise PathError(
                "expected a layer with reverse=False in decoding, got reverse=True, whose outputs "
                "depend on later tokens; use layers that read forward only",
                layer=self.name,
            )
        return Layer(self.name, self.init_decoding, self.apply_decoding, inputs=())

    def init_decoding(self, key: Any, x: Any) -> tuple[Params, State]:
        """The parameters, and zeros as the cache."""
        return self.init(key, x)[0], self.start(x)

    def apply_decoding(
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        **given: Any,
    ) -> tuple[Any, State]:
        """A pass that starts from the cache and returns the new carry as the cache."""
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
        """The initial carry: zeros, or the carry that was passed."""
        shape, dtype, parts = (*x.shape[:-2], self.cell.features), wide(x.dtype), self.cell.carried
        if carry is None:
            zeros = full_beside(x, x.ndim - 2, (self.cell.features,), 0, dtype)
            return dict.fromkeys(parts, zeros)
        named = isinstance(carry, Mapping)
        shapes = {part: jnp.shape(leaf) for part, leaf in carry.items()} if named else {}
        if shapes != dict.fromkeys(parts, shape):
            got = ", ".join(f"{part} {list(found)}" for part, found in shapes.items())
            raise PathError(
                f"expected a carry of {' and '.join(parts)}, each {list(shape)}, got "
                f"{got or ('nothing' if named else 'an array')}; pass the carry from a layer with "
                "returns='carry', or leave it out",
                layer=self.name,
            )
        return {part: carry[part].astype(dtype) for part in parts}

    def alive(self, x: Any, lengths: Any) -> Any:
        """Bool [T, ..., 1], True for steps before the end of a sequence; None without lengths."""
        if lengths is None:
            return None
        lengths = to_jax(lengths, self.name, "lengths")
        if not jnp.issubdtype(lengths.dtype, jnp.integer) or lengths.shape != x.shape[:-2]:
            raise PathError(
                f"expected integer lengths {list(x.shape[:-2])} for x {list(x.shape)}, got "
                f"{lengths.dtype} {list(lengths.shape)}; pass the number of steps of each sequence",
                layer=self.name,
            )
        steps = jnp.arange(x.shape[-2], dtype=jnp.int32).reshape(-1, *[1] * (lengths.ndim + 1))
        return steps < lengths[..., None].astype(jnp.int32)

    def unroll(self, params: Params, x: Any, carry: Carry, alive: Any) -> tuple[jax.Array, Carry]:
        """y [..., T, H] in the dtype of x, and the carry after the last step."""
        return _unroll(params, x, carry, alive, cell=self.cell, reverse=self.reverse)

    def returned(self, y: jax.Array, carry: Carry) -> Any:
        if self.returns == "carry":
            return y, carry
        return y if self.returns == "sequence" else carry["h"].astype(y.dtype)

    def check(self, x: Any, params: Any) -> None:
        """Raises unless x is a floating sequence whose last axis fits the cell's weights."""
        check_array(self.name, x)
        rows = params["input"]["w"].shape[0] if params and "input" in params else None
        if (
            x.ndim < 2
            or not jnp.issubdtype(x.dtype, jnp.floating)
            or rows not in (None, x.shape[-1])
        ):
            raise PathError(
                f"expected x [..., T, {rows or 'D'}] of a floating dtype, got {x.dtype} "
                f"{list(x.shape)}; give x one row of features for each step, for example with an "
                "embedding",
                layer=self.name,
            )


@weak_jit(static=["cell", "reverse"], inline=True)
def _unroll(
    params: Params, x: Any, carry: Carry, alive: Any, *, cell: Cell, reverse: bool
) -> tuple[jax.Array, Carry]:
    """The scan over steps. Without this jit, every eager call would compile the scan again."""

    def step(carry: Carry, at_this_step: Any) -> tuple[Carry, jax.Array]:
        driven, alive = at_this_step
        new = cell.step(params, carry, driven)
        if alive is None:
            return new, new["h"]
        kept = {part: jnp.where(alive, new[part], carry[part]) for part in new}
        return kept, jnp.where(alive, new["h"], 0)

    x_by_time = jnp.moveaxis(x, -2, 0)
    if alive is not None:
        # Beyond the end of a sequence, x is set to 0, so that a NaN there cannot reach a gradient.
        x_by_time = jnp.where(alive, x_by_time, 0)
    driven = cell.drive(params, x_by_time)
    if cell.recurrence is None:
        carry, y = jax.lax.scan(step, carry, (driven, alive), reverse=reverse)
    else:
        driven = driven.astype(carry["h"].dtype)
        w, b = params["hidden"]["w"], recurrent_bias(params)
        carries, carry = unrolled(cell.recurrence, reverse, w, b, driven, carry, alive)
        y = carries["h"] if alive is None else jnp.where(alive, carries["h"], 0)
    return jnp.moveaxis(y.astype(x.dtype), 0, -2), carry
