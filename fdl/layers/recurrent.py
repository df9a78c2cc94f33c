"""Recurrent layers: a cell goes over a sequence, each step given what the last one left.

T is the length of a sequence, D the features of x, H those of the cell.
"""

import dataclasses

from fdl.combinators import parallel
from fdl.layer import Layer
from fdl.layers.cells import Cell, gru_cell, lstm_cell, simple_cell
from fdl.layers.unroll import Unrolled

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
