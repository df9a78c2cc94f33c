"""Embeddings: a learned vector for each of V ids, and vectors that say where in a sequence.

B is the batch, T the length of a sequence, D the features, V the number of ids.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_array, check_count, check_known
from fdl.data.arrays import to_jax
from fdl.initializers import Initializer, normal
from fdl.layer import Layer, Params, State, check_initializer, subkey
from fdl.layers.cache import counted
from fdl.layers.positions import USUAL_BASE, angles
from fdl.layers.spread import rows
from fdl.ops.numerics import wide
from fdl.paths import PathError

SMALL = normal(0.02)


def embedding(
    count: int,
    features: int,
    *,
    w_init: Initializer | None = None,
    dtype: Any = jnp.float32,
    name: str = "embedding",
) -> Layer:
    """y = w[id] for integer ids; the scores x @ w.T of every id for floating vectors.

    Called on ids it looks up their vectors; called on vectors it does the transposed map, from a
    vector to a score for each id. A child called twice shares its weights, so a network whose
    output is tied to its input calls one embedding first and last.

    Args:
      count: V, how many ids, >= 1.
      features: D, >= 1.
      w_init: initializer of w [V, D]; by default normal with standard deviation 1 / sqrt(D), which
        makes vectors of length about 1.
      dtype: of w, since ids have none to take over.
      name: what the layer is called in a network.

    Returns:
      A layer from ids [...] to [..., D], and from vectors [..., D] to scores [..., V]; params
      {"w": [V, D]}. An id outside [0, V) gives NaN and moves no weights; a negative id does not
      count from the end.

    Raises:
      ValueError: count or features below 1.
      PathError: vectors of another D than w; ids of NumPy that do not fit 32 bits.

    Example:
      >>> from fdl.network import network
      >>> model = network(lambda f, ids: f.embed(jnp.tanh(f.embed(ids))), embed=embedding(50, 8))
      >>> params, _ = model.init(jax.random.key(0), jnp.array([3, 1, 4]))
      >>> params["embed"]["w"].shape, model.apply(params, {}, jnp.array([3, 1, 4]))[0].shape
      ((50, 8), (3, 50))

    Source: Bengio et al. 2003, "A neural probabilistic language model"; Press and Wolf 2016,
    arXiv 1608.05859, for the tied output.
    """
    count = check_count("embedding", "count", count, "say how many ids there are")
    features = check_count("embedding", "features", features, "say how many numbers stand for one")
    check_initializer("embedding", "w_init", w_init)
    make = normal(features**-0.5) if w_init is None else w_init

    def init(key: Any, x: Any) -> tuple[Params, State]:
        return {"w": make(subkey(key, "w"), (count, features), dtype)}, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        w = params["w"]
        check_array(name, x)
        x = to_jax(x, name, "x")
        if jnp.issubdtype(x.dtype, jnp.integer):
            return rows(w, x), state
        if not jnp.issubdtype(x.dtype, jnp.inexact) or x.shape[-1:] != w.shape[1:]:
            raise PathError(
                f"expected integer ids, or vectors [..., {w.shape[1]}], got {x.dtype} "
                f"{list(x.shape)}; convert ids with astype(int), or give vectors that width",
                layer=name,
            )
        return x @ w.T, state

    return Layer(name, init, apply)


def learned_positions(
    length: int, *, w_init: Initializer = SMALL, name: str = "learned_positions"
) -> Layer:
    """y[t] = x[t] + w[position of t]: a learned vector for each place of a sequence.

    Args:
      length: the longest sequence, >= 1.
      w_init: initializer of w [length, D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to the same; params {"w": [length, D]}. Its extra input
      `positions`, integers [T] or [..., T], says where each element stands, 0 to T - 1 if it is not
      given; a position outside [0, length) gives NaN.

    Raises:
      ValueError: a length below 1.
      PathError: a sequence longer than `length`; x or positions of another shape or dtype.

    Example:
      >>> layer = learned_positions(16)
      >>> params, _ = layer.init(jax.random.key(0), jnp.zeros((2, 3, 4)))
      >>> late, _ = layer.apply(params, {}, jnp.zeros((1, 4)), positions=jnp.array([7]))
      >>> bool((late == params["w"][7]).all())
      True

    Source: Gehring et al. 2017, arXiv 1705.03122, section 3.1; Radford et al. 2019, GPT-2,
    for the standard deviation of 0.02.
    """
    longest = "give that of the longest sequence"
    length = check_count("learned_positions", "length", length, longest)

    def init(key: Any, x: Any, *, positions: Any = None) -> tuple[Params, State]:
        _check_sequence(name, x, positions, length)
        return {"w": w_init(subkey(key, "w"), (length, x.shape[-1]), x.dtype)}, {}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        positions: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        _check_sequence(name, x, positions, length, params["w"].shape[1])
        if positions is None:
            return x + params["w"][: x.shape[-2]], state
        return x + rows(params["w"], to_jax(positions, name, "positions")), state

    layer = Layer(name, init, apply)
    return dataclasses.replace(layer, decoding=lambda room: counted(layer, room, length))


def sinusoidal_positions(*, base: float = 10_000.0, name: str = "sinusoidal_positions") -> Layer:
    """y[t] = x[t] + p(position of t), p alternating sines and cosines of falling frequencies.

    p[2i] = sin(position / base^(2i / D)) and p[2i + 1] = cos(position / base^(2i / D)).

    Args:
      base: > 1, not traced; the slowest wave is almost 2 pi * base long.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to the same, without params. Its extra input `positions`, integers
      [T] or [..., T] in [0, 2**31), says where each element stands, 0 to T - 1 if it is not given.

    Raises:
      ValueError: a base that is not above 1.
      PathError: an odd D; x or positions of another shape or dtype.

    Example:
      >>> y, _ = sinusoidal_positions().apply({}, {}, jnp.zeros((2, 2)))
      >>> [round(float(wave), 2) for wave in y[1]]
      [0.84, 0.54]

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """
    check_known("sinusoidal_positions", "a base > 1", base, lambda base: base > 1, USUAL_BASE)
    base = float(base)

    def init(key: Any, x: Any, *, positions: Any = None) -> tuple[Params, State]:
        _check_sequence(name, x, positions)
        if x.shape[-1] % 2:
            raise PathError(
                f"expected x [..., T, D] with an even D, got {list(x.shape)}; a sine and a cosine "
                "take two features",
                layer=name,
            )
        return {}, {}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        positions: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        init(None, x, positions=positions)
        where = jnp.arange(x.shape[-2]) if positions is None else positions
        where = to_jax(where, name, "positions")
        turned = angles(where, x.shape[-1] // 2, base, wide(x.dtype))
        waves = jnp.stack([jnp.sin(turned), jnp.cos(turned)], -1)
        waves = waves.reshape(*where.shape, x.shape[-1])
        return (x.astype(waves.dtype) + waves).astype(x.dtype), state

    layer = Layer(name, init, apply)
    return dataclasses.replace(layer, decoding=lambda room: counted(layer, room))


def _check_sequence(
    name: str, x: Any, positions: Any, length: int | None = None, width: int | None = None
) -> None:
    check_array(name, x)
    fits = x.ndim >= 2 and (width is None or x.shape[-1] == width)
    if not fits or not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected floating x [..., T, {width or 'D'}], got {x.dtype} {list(x.shape)}; put an "
            "embedding or a dense layer in front",
            layer=name,
        )
    if positions is None:
        if length is not None and x.shape[-2] > length:
            raise PathError(
                f"expected at most {length} elements, got x {list(x.shape)}; shorten the sequence, "
                "or make the layer with a larger length",
                layer=name,
            )
    elif not jnp.issubdtype(positions.dtype, jnp.integer) or (
        positions.shape != x.shape[:-1][-max(positions.ndim, 1) :]
    ):
        raise PathError(
            f"expected integer positions [{x.shape[-2]}] or {list(x.shape[:-1])} for x "
            f"{list(x.shape)}, got {positions.dtype} {list(positions.shape)}; one for each element",
            layer=name,
        )
