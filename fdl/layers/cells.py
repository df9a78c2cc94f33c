"""Cells: one step of a recurrent layer, from a carry and a new x to the next carry.

H is the number of features of the carry, D the number of features of x. The weights of all gates
are side by side in one matrix, in the order that the cell's docstring gives. In formulas, W x and
U h are matrix products; all other products are elementwise.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import sigmoid, tanh
from fdl.checks import check_count, check_number, is_zero
from fdl.core.layer import check_initializer, subkey
from fdl.initializers import lecun_normal, orthogonal, zeros
from fdl.ops.products import product
from fdl.ops.rank_promotion import with_free_ranks
from fdl.ops.unrolling import Recurrence, hidden
from fdl.typing import Activation, Initializer, Params

WIDTH = "pass the number of features of h"
Carry = dict[str, jax.Array]
ORTHOGONAL = orthogonal()


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One step of a recurrence, in the two parts that `recurrent` calls: `drive` and `step`.

    Args:
      name: what a recurrent layer of this cell is called by default.
      features: H, the size of each part of the carry.
      carried: names of the parts of the carry; one of them is "h", the output of the step.
      init: `(key, x) -> params`; reads only the size of the last axis of x, and the dtype of x.
      drive: `(params, x [..., D]) -> driven`, the part of a step that does not depend on the carry;
        `recurrent` computes it for all steps at once.
      step: `(params, carry, driven) -> carry`, in the dtype of the carry, which is float32 or
        wider.
      recurrence: for a step that begins with the product h @ params["hidden"]["w"], the rest of the
        step with its derivative. `recurrent` then computes the gradient of the weights as one
        product for all steps. None for any other step.
    """

    name: str
    features: int
    carried: tuple[str, ...]
    init: Callable[[Any, Any], Params]
    drive: Callable[[Params, Any], Any]
    step: Callable[[Params, Carry, Any], Carry]
    recurrence: Recurrence | None = None

    def __post_init__(self) -> None:
        for part in ("init", "drive", "step"):
            object.__setattr__(self, part, with_free_ranks(getattr(self, part)))


def simple_cell(
    features: int,
    *,
    activation: Activation = tanh,
    w_init: Initializer = lecun_normal,
    hidden_init: Initializer = ORTHOGONAL,
) -> Cell:
    """h = activation(W x + U h + b).

    Args:
      features: H, >= 1.
      activation: a function from an array to an array of the same shape.
      w_init: initializer of W.
      hidden_init: initializer of U.

    Returns:
      A cell that carries {"h"}; params {"input": {"w": [D, H], "b": [H]}, "hidden": {"w": [H, H]}}.

    Raises:
      ValueError: features < 1.

    Example:
      >>> simple_cell(3).init(jax.random.key(0), jnp.ones((1, 2)))["hidden"]["w"].shape
      (3, 3)

    Source: Elman 1990, "Finding structure in time".
    """
    features = check_count("simple_cell", "features", features, WIDTH)
    init = _affine("simple_cell", ("h",), features, w_init, hidden_init)

    def step(carry: Carry, driven: Any, hidden: Any) -> tuple[Carry, Any]:
        sums = driven + hidden
        h, slope = jax.jvp(activation, (sums,), (jnp.ones_like(sums),))
        return {"h": h}, slope

    def slopes(before: Carry, after: Carry, slope: Any) -> tuple[Any, Any, Any]:
        return slope, slope, ()

    def tangent(rest: Any, dcarry: Carry, dsums: Any) -> Carry:
        return {"h": dsums}

    recurrence = Recurrence(step, slopes, tangent)
    return _of_recurrence("simple_recurrent", features, ("h",), init, recurrence)


def lstm_cell(
    features: int,
    *,
    forget_bias: float = 0.0,
    w_init: Initializer = lecun_normal,
    hidden_init: Initializer = ORTHOGONAL,
) -> Cell:
    """c = f c + i g and h = o tanh(c); i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b).

    Each of i, f, g and o has a separate W, U and b; they are stored in this order.

    Args:
      features: H, >= 1.
      forget_bias: the initial value of b for the forget gate f; may be traced. With 1, a network
        remembers longer at the start of training.
      w_init: initializer of each W.
      hidden_init: initializer of each U.

    Returns:
      A cell that carries {"h", "c"}; params {"input": {"w": [D, 4 H], "b": [4 H]}, "hidden": {"w":
      [H, 4 H]}}. torch has two biases in place of b; b is their sum.

    Raises:
      ValueError: features < 1, or forget_bias is not a number.

    Example:
      >>> params = lstm_cell(2, forget_bias=1.0).init(jax.random.key(0), jnp.ones((1, 3)))
      >>> params["input"]["b"]
      Array([0., 0., 1., 1., 0., 0., 0., 0.], dtype=float32)

    Source: Hochreiter and Schmidhuber 1997, "Long short-term memory"; Gers, Schmidhuber and Cummins
    2000, "Learning to forget", for f; Jozefowicz, Zaremba and Sutskever 2015, "An empirical
    exploration of recurrent network architectures", for forget_bias.
    """
    features = check_count("lstm_cell", "features", features, WIDTH)
    check_number("lstm_cell", "forget_bias", forget_bias, None, "pass a number")
    affine = _affine("lstm_cell", ("i", "f", "g", "o"), features, w_init, hidden_init)

    def init(key: Any, x: Any) -> Params:
        params = affine(key, x)
        if not is_zero(forget_bias):
            forget = slice(features, 2 * features)
            params["input"]["b"] = params["input"]["b"].at[forget].set(forget_bias)
        return params

    def step(carry: Carry, driven: Any, hidden: Any) -> tuple[Carry, Any]:
        gates = jax.lax.optimization_barrier(
            _sigmoid_or_tanh(driven + hidden, features, (1, 1, 0, 1))
        )
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.lax.optimization_barrier(f * carry["c"] + i * g)
        squashed = jax.lax.optimization_barrier(tanh(c))
        return {"h": o * squashed, "c": c}, (gates, squashed)

    def slopes(before: Carry, after: Carry, saved: Any) -> tuple[Any, Any, Any]:
        gates, squashed = saved
        i, f, g, o = jnp.split(gates, 4, -1)
        by_gate = (g * i * (1 - i), before["c"] * f * (1 - f), i * (1 - g * g))
        by_sums = jnp.concatenate([*by_gate, squashed * o * (1 - o)], -1)
        return by_sums, by_sums, (f, o * (1 - squashed * squashed))

    def tangent(rest: Any, dcarry: Carry, dsums: Any) -> Carry:
        f, by_c = rest
        di, df, dg, do = jnp.split(dsums, 4, -1)
        dc = f * dcarry["c"] + di + df + dg
        return {"h": do + by_c * dc, "c": dc}

    recurrence = Recurrence(step, slopes, tangent)
    return _of_recurrence("lstm", features, ("h", "c"), init, recurrence)


def gru_cell(
    features: int,
    *,
    reset_after: bool = True,
    w_init: Initializer = lecun_normal,
    hidden_init: Initializer = ORTHOGONAL,
) -> Cell:
    """h = (1 - z) n + z h; r, z = sigmoid(W x + U h + b), n = tanh(W x + b + r (U h + b')).

    Each of r, z and n has a separate W, U and b; they are stored in this order. Only n has the
    second bias b'.

    Args:
      features: H, >= 1.
      reset_after: True multiplies U h + b' by r, as in torch, cuDNN and Keras; False computes
        n = tanh(W x + b + U (r h)), as in the paper.
      w_init: initializer of each W.
      hidden_init: initializer of each U.

    Returns:
      A cell that carries {"h"}; params {"input": {"w": [D, 3 H], "b": [3 H]}, "hidden": {"w": [H,
      3 H]}}; with reset_after, "hidden" also has "b": [H], the b' of the formula.

    Raises:
      ValueError: features < 1.

    Example:
      >>> sorted(gru_cell(2).init(jax.random.key(0), jnp.ones((1, 3)))["hidden"])
      ['b', 'w']

    Source: Cho et al. 2014, arXiv 1406.1078, equations 5 to 8, for reset_after=False; version 1 of
    that paper, and cuDNN, for reset_after=True.
    """
    features = check_count("gru_cell", "features", features, WIDTH)
    affine = _affine("gru_cell", ("r", "z", "n"), features, w_init, hidden_init)

    def init(key: Any, x: Any) -> Params:
        params = affine(key, x)
        if reset_after:
            params["hidden"]["b"] = zeros(None, (features,), x.dtype)
        return params

    return _gru_after(features, init) if reset_after else _gru_before(features, init)


def _gru_after(features: int, init: Callable[[Any, Any], Params]) -> Cell:
    """The cell of reset_after=True, with r (U h + b')."""

    def step(carry: Carry, driven: Any, hidden: Any) -> tuple[Carry, Any]:
        both = slice(0, 2 * features)
        gates = jax.lax.optimization_barrier(
            _sigmoid_or_tanh(driven[..., both] + hidden[..., both], features, (1, 1))
        )
        r, z = jnp.split(gates, 2, -1)
        again = hidden[..., 2 * features :]
        n = jax.lax.optimization_barrier(tanh(driven[..., 2 * features :] + r * again))
        return {"h": (1 - z) * n + z * carry["h"]}, (gates, n, again)

    def slopes(before: Carry, after: Carry, saved: Any) -> tuple[Any, Any, Any]:
        gates, n, again = saved
        r, z = jnp.split(gates, 2, -1)
        by_n = (1 - z) * (1 - n * n)
        by_both = [by_n * again * r * (1 - r), (before["h"] - n) * z * (1 - z)]
        by_driven, by_hidden = (jnp.concatenate([*by_both, last], -1) for last in (by_n, by_n * r))
        return by_driven, by_hidden, z

    def tangent(z: Any, dcarry: Carry, dsums: Any) -> Carry:
        dr, dz, dn = jnp.split(dsums, 3, -1)
        return {"h": dr + dz + dn + z * dcarry["h"]}

    return _of_recurrence("gru", features, ("h",), init, Recurrence(step, slopes, tangent))


def _gru_before(features: int, init: Callable[[Any, Any], Params]) -> Cell:
    """The cell of reset_after=False, with U (r h).

    The gate r is computed from a product with h, so this product and U (r h) cannot be computed as
    one.
    """

    def step(params: Params, carry: Carry, driven: Any) -> Carry:
        h, w = carry["h"], params["hidden"]["w"]
        driven = driven.astype(h.dtype)
        gates = driven[..., : 2 * features] + hidden(w[:, : 2 * features], None, h)
        r, z = jnp.split(sigmoid(gates), 2, -1)
        n = tanh(driven[..., 2 * features :] + hidden(w[:, 2 * features :], None, r * h))
        return {"h": (1 - z) * n + z * h}

    return Cell("gru", features, ("h",), init, _drive, step)


def _of_recurrence(
    name: str,
    features: int,
    carried: tuple[str, ...],
    init: Callable[[Any, Any], Params],
    recurrence: Recurrence,
) -> Cell:
    """A cell whose step is a recurrence after the product with params["hidden"]["w"]."""

    def step(params: Params, carry: Carry, driven: Any) -> Carry:
        h = carry["h"]
        after = hidden(params["hidden"]["w"], recurrent_bias(params), h)
        return recurrence.step(carry, driven.astype(h.dtype), after)[0]

    return Cell(name, features, carried, init, _drive, step, recurrence)


def recurrent_bias(params: Params) -> jax.Array | None:
    """[G * H] for G gates: zeros, then the b' of a GRU's last gate; None for cells without b'."""
    if "b" not in params["hidden"]:
        return None
    b, columns = params["hidden"]["b"], params["hidden"]["w"].shape[1]
    return jnp.concatenate([jnp.zeros(columns - len(b), b.dtype), b])


def _sigmoid_or_tanh(sums: jax.Array, features: int, sigmoids: tuple[int, ...]) -> jax.Array:
    """The sigmoid of the gates whose entry in `sigmoids` is 1, and the tanh of the other gates.

    One tanh computes all of them, because sigmoid(x) = (1 + tanh(x / 2)) / 2. On CPU, this takes
    two thirds of the time of separate functions.
    """
    scale = jnp.repeat(jnp.array([0.5 if each else 1.0 for each in sigmoids], sums.dtype), features)
    return jnp.tanh(sums * scale) * scale + (1 - scale)


def _affine(
    who: str, gates: tuple[str, ...], features: int, w_init: Initializer, hidden_init: Initializer
) -> Callable[[Any, Any], Params]:
    """The cell's `init`. It draws each gate's weights separately, with the fans of one gate."""
    check_initializer(who, "w_init", w_init)
    check_initializer(who, "hidden_init", hidden_init)

    def init(key: Any, x: Any) -> Params:
        def drawn(key: Any, init: Initializer, rows: int) -> jax.Array:
            shape = (rows, features)
            return jnp.concatenate([init(subkey(key, gate), shape, x.dtype) for gate in gates], -1)

        return {
            "input": {
                "w": drawn(subkey(key, "input"), w_init, x.shape[-1]),
                "b": zeros(None, (len(gates) * features,), x.dtype),
            },
            "hidden": {"w": drawn(subkey(key, "hidden"), hidden_init, features)},
        }

    return init


def _drive(params: Params, x: jax.Array) -> jax.Array:
    return product(x, params["input"]["w"]) + params["input"]["b"]
