"""Embeddings: vectors for ids, and vectors or rotations for positions in a sequence.

T is the length of a sequence, D the number of features, V the number of ids. H is the number of
heads, K the number of features of a head.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_array, check_concrete_number, check_count, described, is_count
from fdl.core.decoding_cache import with_position_count
from fdl.core.layer import Layer, check_initializer, subkey
from fdl.data.arrays import to_jax
from fdl.initializers import normal
from fdl.ops.numerics import wide
from fdl.ops.products import product
from fdl.ops.rank_promotion import free_ranks
from fdl.ops.sharding import rows
from fdl.options import options_first
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State

SMALL = normal(0.02)
# Frequencies are computed in float64 by NumPy, so a base cannot be traced.
USUAL_BASE = "pass a Python number such as 10000"


def embedding(
    count: int,
    features: int,
    *,
    w_init: Initializer | None = None,
    dtype: Any = jnp.float32,
    name: str = "embedding",
) -> Layer:
    """y = w[id] for integer ids, and y = x @ w.T, the scores of all ids, for floating vectors x.

    Both directions use the same w, so a language model with tied weights calls one embedding twice:
    first with ids and last with vectors.

    Args:
      count: V, the number of ids, >= 1.
      features: D, >= 1.
      w_init: initializer of w [V, D]; by default normal with standard deviation 1 / sqrt(D), so
        that the norm of a vector is about 1.
      dtype: the dtype of w. (In other layers, w has the dtype of x, but here x holds integers.)
      name: what the layer is called in a network.

    Returns:
      A layer from ids [...] to [..., D], and from vectors [..., D] to scores [..., V]; params
      {"w": [V, D]}. An id outside [0, V) gives NaN and has no gradient; this includes negative ids,
      which are not indices from the end.

    Raises:
      ValueError: count or features < 1.
      PathError: x is neither integers nor vectors [..., D], or NumPy ids do not fit in 32 bits.

    Example:
      >>> from fdl.core.networks import network
      >>> model = network(lambda f, ids: f.embed(jnp.tanh(f.embed(ids))), embed=embedding(50, 8))
      >>> params, _ = model.init(jax.random.key(0), jnp.array([3, 1, 4]))
      >>> params["embed"]["w"].shape, model.apply(params, {}, jnp.array([3, 1, 4]))[0].shape
      ((50, 8), (3, 50))

    Source: Bengio et al. 2003, "A neural probabilistic language model"; Press and Wolf 2016,
    arXiv 1608.05859, for tied weights.
    """
    count = check_count("embedding", "count", count, "pass the number of ids")
    features = check_count("embedding", "features", features, "pass the length of each vector")
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
                f"{list(x.shape)}; convert ids with astype(int), or pass vectors of this width",
                layer=name,
            )
        return product(x, w.T), state

    return Layer(name, init, apply)


def learned_positions(
    length: int, *, w_init: Initializer = SMALL, name: str = "learned_positions"
) -> Layer:
    """y[t] = x[t] + w[positions[t]]: adds a learned vector for each position of a sequence.

    Args:
      length: the number of positions that have a vector, >= 1.
      w_init: initializer of w [length, D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y of the same shape; params {"w": [length, D]}. Optional extra
      input: `positions`, integers [T] or [..., T], by default 0 to T - 1. A position outside
      [0, length) gives NaN.

    Raises:
      ValueError: length < 1.
      PathError: x or positions has the wrong shape or dtype; or no positions are passed, and the
        sequence is longer than `length`.

    Example:
      >>> layer = learned_positions(16)
      >>> params, _ = layer.init(jax.random.key(0), jnp.zeros((2, 3, 4)))
      >>> late, _ = layer.apply(params, {}, jnp.zeros((1, 4)), positions=jnp.array([7]))
      >>> bool((late == params["w"][7]).all())
      True

    Source: Gehring et al. 2017, arXiv 1705.03122, section 3.1; Radford et al. 2019, GPT-2,
    for the standard deviation of 0.02.
    """
    remedy = "pass the length of the longest sequence"
    length = check_count("learned_positions", "length", length, remedy)

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
    return dataclasses.replace(
        layer, decoding=lambda room: with_position_count(layer, room, length)
    )


def sinusoidal_positions(*, base: float = 10_000.0, name: str = "sinusoidal_positions") -> Layer:
    """y[t] = x[t] + p(positions[t]): adds sines and cosines of decreasing frequencies.

    Feature 2i of p is sin(position / base^(2i / D)). Feature 2i + 1 is the cosine of the same
    angle.

    Args:
      base: > 1; it must not be traced. The longest wavelength is 2 pi * base^(1 - 2 / D).
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y of the same shape; no params, no state. Optional extra input:
      `positions`, integers [T] or [..., T] in [0, 2**31), by default 0 to T - 1.

    Raises:
      ValueError: base <= 1.
      PathError: D is odd; x or positions has the wrong shape or dtype.

    Example:
      >>> y, _ = sinusoidal_positions().apply({}, {}, jnp.zeros((2, 2)))
      >>> [round(float(wave), 2) for wave in y[1]]
      [0.84, 0.54]

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    """
    check_concrete_number("sinusoidal_positions", "base", base, "(1, inf]", USUAL_BASE)
    base = float(base)

    def init(key: Any, x: Any, *, positions: Any = None) -> tuple[Params, State]:
        _check_sequence(name, x, positions)
        if x.shape[-1] % 2:
            raise PathError(
                f"expected x [..., T, D] with an even D, got {list(x.shape)}; use an even number "
                "of features, one for the sine and one for the cosine of each frequency",
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
        phases = angles(where, _frequencies(x.shape[-1] // 2, base), wide(x.dtype))
        waves = jnp.stack([jnp.sin(phases), jnp.cos(phases)], -1)
        waves = waves.reshape(*where.shape, x.shape[-1])
        return (x.astype(waves.dtype) + waves).astype(x.dtype), state

    layer = Layer(name, init, apply)
    return dataclasses.replace(layer, decoding=lambda room: with_position_count(layer, room))


@options_first
def rotary(
    x: jax.Array,
    positions: Any,
    *,
    base: float = 10000.0,
    features: int | None = None,
    interleaved: bool = False,
) -> jax.Array:
    """Rotary positions: rotates pairs of features by angles proportional to the position.

    The first R features are rotated in R / 2 pairs, i = 0, 1, ...; pair i is rotated by the angle
    position * base^(-2 i / R). The product of a rotated query and a rotated key then depends on the
    distance between their positions, but not on the positions themselves. The error of the angles
    is about 1e-6 at any position.

    Args:
      x: queries or keys [..., T, H, K].
      positions: [..., T], integers or floating; for a whole sequence `jnp.arange(T)`.
      base: > 0; it must not be traced. A larger base rotates the last pairs more slowly.
      features: R, an even number <= K: the first R of the K features are rotated; by default all K.
      interleaved: True pairs features (2i, 2i + 1), as in the paper and GPT-J; False pairs
        (i, i + R / 2), as in Llama.

    Returns:
      [..., T, H, K], in x's dtype.

    Raises:
      ValueError: base is out of range; features is odd or < 2.
      PathError: K < R, or K is odd and features is None, or positions do not fit x.

    Example:
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
      >>> rotary(x, jnp.array([math.pi / 2])).round(3).ravel()
      Array([-0.,  1.], dtype=float32)

    Source: Su et al. 2021, arXiv 2104.09864, equations 14, 15 and 34; with features < K:
    Black et al. 2022, arXiv 2204.06745, section 2.1.
    """
    check_concrete_number("rotary", "base", base, "(0, inf]", USUAL_BASE)
    if features is not None and (not is_count(features, 2) or features % 2):
        raise ValueError(
            f"rotary: expected features to be even and >= 2, got {described(features)}; leave it "
            "out to rotate all features"
        )
    positions = to_jax(positions, "rotary", "positions")
    _check_rotated("rotary", x, positions, features)
    frequencies = _frequencies((features or x.shape[-1]) // 2, float(base))
    return rotary_by_frequencies(x, positions, frequencies, bool(interleaved))


def rotary_by_frequencies(
    x: jax.Array, positions: jax.Array, frequencies: tuple[float, ...], interleaved: bool = False
) -> jax.Array:
    """`rotary` by the angles position * frequencies[i]; the arguments are not checked."""
    with free_ranks():
        return _by_frequencies(x, positions, frequencies, interleaved)


@options_first
def rotary_by_tables(
    x: jax.Array, positions: Any, *, cos: Any, sin: Any, interleaved: bool = False
) -> jax.Array:
    """`rotary` with tables of cosines and sines, for angles from a different formula.

    Pair i is rotated by the angle whose cosine is cos[position, i] and whose sine is sin[position,
    i]. Models that change the angles for longer sequences need this (Llama 3.1, YaRN). If cos and
    sin are multiplied by a number, the rotated features are multiplied by this number too.

    Args:
      x: queries or keys [..., T, H, K].
      positions: [..., T], integers in [0, L).
      cos: [L, R / 2], R <= K; the first R of the K features are rotated.
      sin: [L, R / 2].
      interleaved: as in `rotary`.

    Returns:
      [..., T, H, K], in x's dtype; NaN at a position outside the tables.

    Raises:
      PathError: cos and sin are not [L, R / 2], R > K, positions do not fit x, or positions are not
        integers.

    Example:
      >>> angles = jnp.arange(16.0)[:, None] * jnp.array([1.0, 0.1, 0.01])
      >>> turn = rotary_by_tables(cos=jnp.cos(angles), sin=jnp.sin(angles))
      >>> turn(jnp.ones((5, 2, 8)), jnp.arange(5)).shape
      (5, 2, 8)

    Source: Su et al. 2021, arXiv 2104.09864, equation 34; Peng et al. 2023, arXiv 2309.00071.
    """
    positions = to_jax(positions, "rotary_by_tables", "positions")
    cos, sin = to_jax(cos, "rotary_by_tables", "cos"), to_jax(sin, "rotary_by_tables", "sin")
    integers = jnp.issubdtype(positions.dtype, jnp.integer)
    if cos.ndim != 2 or cos.shape != sin.shape or not integers:
        raise PathError(
            "expected cos and sin [L, R / 2] and integer positions, got cos "
            f"{list(cos.shape)}, sin {list(sin.shape)} and positions {positions.dtype}; pass "
            "tables with one row for each position and one column for each pair of features",
            layer="rotary_by_tables",
        )
    _check_rotated("rotary_by_tables", x, positions, 2 * cos.shape[-1])
    with free_ranks():
        return _by_tables(x, positions, cos, sin, bool(interleaved))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slopes of ALiBi: for each head, how much its scores decrease per token of distance.

    If H is a power of two, the slopes are 2^(-8 / H), 2^(-16 / H), ..., 2^-8. Otherwise, let P be
    the largest power of two below H: the first P slopes are the slopes for P heads, and the other
    H - P are the first, third, fifth, ... of the slopes for 2 P heads.

    Args:
      heads: H, >= 1.

    Returns:
      H numbers.

    Source: Press, Smith and Lewis 2021, arXiv 2108.12409, section 3; the authors' code for an H
    that is not a power of two.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    between = [2 ** (-4 * i / below) for i in range(1, 2 * below + 1, 2)]
    return (*slopes, *between[: heads - below])


def _frequencies(count: int, base: float) -> tuple[float, ...]:
    """base^(-i / count) for i = 0 to count - 1."""
    return tuple(base ** -(np.arange(count) / count))


def angles(positions: jax.Array, frequencies: tuple[float, ...], dtype: Any) -> jax.Array:
    """positions * frequencies, modulo 2 pi, accurate at any position.

    Args:
      positions: [...], integers or floating.
      frequencies: F numbers.
      dtype: float32 or float64.

    Returns:
      [..., F], in `dtype`.
    """
    # In float32, the product of position and frequency would be wrong by 0.01 at position 100,000.
    # So a frequency is an integer: the turns per position, in units of 2**-32 turns. The product of
    # this integer and an integer position overflows, that is, it is taken modulo 2**32. This drops
    # whole turns exactly. `rest` is the error of rounding the frequency to an integer; its product
    # with the position is small, and is added in floating point.
    turns = np.asarray(frequencies) / (2 * math.pi) % 1
    fixed = np.rint(turns * 2**32)
    part, whole = jnp.zeros((), dtype), positions[..., None]
    if jnp.issubdtype(whole.dtype, jnp.floating):
        whole = jnp.floor(positions.astype(dtype))[..., None]
        part = (positions.astype(dtype)[..., None] - whole) * jnp.asarray(turns, dtype)
        # `number` is `whole` modulo 2**32, moved into the range of int32, because the cast of a
        # float outside that range is undefined. The remainder and the subtraction are exact.
        number = jax.lax.rem(whole, jnp.full_like(whole, 2.0**32))
        number = number - 2.0**32 * (
            (number >= 2.0**31).astype(dtype) - (number < -(2.0**31)).astype(dtype)
        )
        number = number.astype(jnp.int32).astype(jnp.uint32)
    else:
        number = whole.astype(jnp.uint32)
    wrapped = number * jnp.asarray(fixed % 2**32, jnp.uint32)
    part = part + jax.lax.bitcast_convert_type(wrapped, jnp.int32).astype(dtype) * 2.0**-32
    rest = jnp.asarray(turns - fixed / 2**32, dtype)
    return (2 * math.pi) * (part + whole.astype(dtype) * rest)


def _check_sequence(
    name: str, x: Any, positions: Any, length: int | None = None, width: int | None = None
) -> None:
    check_array(name, x)
    fits = x.ndim >= 2 and (width is None or x.shape[-1] == width)
    if not fits or not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected floating x [..., T, {width or 'D'}], got {x.dtype} {list(x.shape)}; add an "
            "embedding or a dense layer before this layer",
            layer=name,
        )
    if positions is None:
        if length is not None and x.shape[-2] > length:
            raise PathError(
                f"expected at most {length} positions, got x {list(x.shape)}; shorten the "
                "sequence, or make the layer with a larger length",
                layer=name,
            )
        return
    check_array(name, positions, "positions")
    fits = positions.shape == x.shape[:-1][-max(positions.ndim, 1) :]
    if not fits or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise PathError(
            f"expected integer positions [{x.shape[-2]}] or {list(x.shape[:-1])} for x "
            f"{list(x.shape)}, got {positions.dtype} {list(positions.shape)}; pass one position "
            "for each element",
            layer=name,
        )


def _check_rotated(name: str, x: Any, positions: jax.Array, features: int | None) -> None:
    check_array(name, x)
    places = (1,) * (x.ndim - 2 - positions.ndim) + positions.shape
    alike = all(n in (1, m) for n, m in zip(places[:-1], x.shape[:-3], strict=False))
    fits = x.ndim >= 3 and (x.shape[-1] % 2 == 0 if features is None else x.shape[-1] >= features)
    if not fits or places[-1:] != x.shape[-3:-2] or not alike:
        width = "K even" if features is None else f"K >= {features}"
        remedy = "an even number of" if features is None else f"{features} or more"
        raise PathError(
            f"expected x [..., T, H, K] with {width} and positions [..., T], got x "
            f"{list(x.shape)} and positions {list(positions.shape)}; use heads with {remedy} "
            "features, and pass one position for each token",
            layer=name,
        )


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _by_frequencies(
    x: jax.Array, positions: jax.Array, frequencies: tuple[float, ...], interleaved: bool
) -> jax.Array:
    turns = angles(positions[..., None], frequencies, wide(x.dtype))
    return _rotated(x, jnp.cos(turns), jnp.sin(turns), interleaved)


@functools.partial(jax.jit, static_argnums=4, inline=True)
def _by_tables(
    x: jax.Array, positions: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool
) -> jax.Array:
    dtype = wide(x.dtype)
    cos, sin = (rows(table, positions)[..., None, :].astype(dtype) for table in (cos, sin))
    return _rotated(x, cos, sin, interleaved)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    """x with its first R features rotated in pairs; cos and sin are [..., T, 1, R / 2]."""
    pairs, dtype = cos.shape[-1], cos.dtype
    rotary_part, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        first, second = rotary_part[..., 0::2].astype(dtype), rotary_part[..., 1::2].astype(dtype)
    else:
        first, second = (
            rotary_part[..., :pairs].astype(dtype),
            rotary_part[..., pairs:].astype(dtype),
        )
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        rotated = [jnp.stack(rotated, -1).reshape(rotary_part.shape)]
    return jnp.concatenate([part.astype(x.dtype) for part in rotated] + [rest], -1)
