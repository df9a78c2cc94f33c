"""Layers whose weights are computed from other parameters: by length and direction, by low rank.

`weight_norm` and `spectral_norm` wrap a layer and keep its name, its inputs and its children; they
change the parameters at the paths that patterns pick before the layer sees them. `low_rank` is a
function of parameters alone: `w` becomes `w + scale / rank * a @ b`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl import paths
from fdl.checks import check_count, check_number, in_dtype
from fdl.core.layer import Layer, subkey
from fdl.initializers import he_uniform, normal
from fdl.ops.numerics import direction, largest, power_of_two, wide
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State

POWER = "power_iteration"


def weight_norm(layer: Layer, *, weights: str = "**/w") -> Layer:
    """w = scale * direction / |direction|, each output's weights with a learned length of its own.

    Args:
      layer: any layer.
      weights: which leaves, as a pattern; each `[..., out]`.

    Returns:
      The same layer whose params have {"direction": [..., out], "scale": [out]} in place of each
      such leaf. Scales begin at 1, as in Flax (torch takes the lengths of the drawn weights); about
      1 is also the length that `lecun_normal` draws.

    Raises:
      ValueError: at init, a pattern that matches nothing; the message lists the nearest paths.

    Example:
      >>> from fdl.layers.linear import dense
      >>> params, _ = weight_norm(dense(2)).init(jax.random.key(0), jnp.ones((1, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'b': (2,), 'w': {'direction': (3, 2), 'scale': (2,)}}

    Source: Salimans and Kingma 2016, arXiv 1602.07868, equation 2.
    """

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        params, state = layer.init(key, x, **inputs)
        picked = paths.pick(paths.leaves(params), [weights])
        return _at(params, picked, lambda w, path: {"direction": w, "scale": ones_of(w)}), state

    def ones_of(w: jax.Array) -> jax.Array:
        # Not the length of w: its last bits would depend on the program that draws it.
        return jnp.ones(w.shape[-1:], w.dtype)

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        return layer.apply(_rescaled(params), state, x, **given)

    return _wrapped(layer, init, apply, lambda inner: weight_norm(inner, weights=weights))


def spectral_norm(layer: Layer, *, weights: str = "**/w", iterations: int = 1) -> Layer:
    """w / sigma(w), sigma an estimate of the largest singular value, by power iteration.

    v = normalize(w u) and u = normalize(w.T v), `iterations` times from the u of the state, then
    sigma = v w u. Gradients take u and v as constants, as the paper does. A training pass keeps the
    new u.

    Args:
      layer: any layer.
      weights: which leaves, as a pattern; each `[..., out]` is taken as a matrix [prod(...), out].
      iterations: >= 1 in a pass.

    Returns:
      The same layer with the same params; its state has beside its own {"power_iteration": {path
      of w: u [out]}}, levels of the path joined by `.`.

    Raises:
      ValueError: iterations below 1; at init, a pattern that matches nothing.
      PathError: at init, a layer that is wrapped so already.

    Example:
      >>> from fdl.layers.linear import dense
      >>> layer = spectral_norm(dense(2, bias=False), iterations=30)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> w, _ = layer.apply(params, state, jnp.eye(3))
      >>> round(float(jnp.linalg.norm(w, 2)), 4)
      1.0

    Source: Miyato et al. 2018, arXiv 1802.05957, algorithm 1 and equation 12.
    """
    iterations = check_count("spectral_norm", "iterations", iterations, "1 is usual")

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        params, state = layer.init(key, x, **inputs)
        if POWER in state:
            raise PathError(
                "expected a layer without spectral norm, got one that has it; wrap it once",
                layer=layer.name,
            )
        leaves = paths.leaves(params)
        start = {
            path.replace("/", "."): normal(1.0)(
                subkey(subkey(key, POWER), path), leaves[path].shape[-1:], wide(leaves[path].dtype)
            )
            for path in paths.pick(leaves, [weights])
        }
        return params, {**state, POWER: start}

    def apply(
        params: Params, state: State, x: Any, *, train: bool = False, **given: Any
    ) -> tuple[Any, State]:
        inner = {name: value for name, value in state.items() if name != POWER}
        moved = {}

        def divided(w: jax.Array, path: str) -> jax.Array:
            name = path.replace("/", ".")
            unit, moved[name] = _divided(w, state[POWER][name], iterations)
            return unit.astype(w.dtype)

        picked = paths.pick(paths.leaves(params), [weights])
        y, inner = layer.apply(_at(params, picked, divided), inner, x, train=train, **given)
        return y, {**inner, POWER: moved if train else state[POWER]}

    return _wrapped(
        layer,
        init,
        apply,
        lambda inner: spectral_norm(inner, weights=weights, iterations=iterations),
    )


def _divided(w: jax.Array, u: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """w / sigma, in the units of u, and the u after; 0 for 0, whose u stays as it is."""
    matrix = w.reshape(-1, w.shape[-1]).astype(u.dtype)
    matrix = matrix / power_of_two(largest(matrix))
    fixed = jax.lax.stop_gradient(matrix)
    u = jax.lax.stop_gradient(u)
    v = u
    for _ in range(iterations):
        v = direction(fixed @ u)
        new = direction(v @ fixed)
        u = jnp.where((new == 0).all(), u, new)
    sigma = v @ matrix @ u
    # Not a quotient: XLA makes of a / b / c a quotient by b c, which may overflow.
    return (matrix * (1 / jnp.where(sigma == 0, 1, sigma))).reshape(w.shape), u


def _rescaled(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    if set(params) != {"direction", "scale"}:
        return {name: _rescaled(value) for name, value in params.items()}
    unit = direction(params["direction"], tuple(range(params["direction"].ndim - 1)))
    return (unit * params["scale"].astype(unit.dtype)).astype(params["direction"].dtype)


def _at(tree: Any, picked: list[str], change: Callable[[Any, str], Any], path: str = "") -> Any:
    """The tree with `change(leaf, path)` at the picked paths, its names in their order."""
    if isinstance(tree, Mapping):
        return {
            name: _at(value, picked, change, f"{path}/{name}" if path else name)
            for name, value in tree.items()
        }
    return change(tree, path) if path in picked else tree


def _wrapped(
    layer: Layer,
    init: Callable[..., Any],
    apply: Callable[..., Any],
    again: Callable[[Layer], Layer],
) -> Layer:
    rebuild, twin = layer.rebuild, layer.decoding
    return dataclasses.replace(
        layer,
        init=init,
        apply=apply,
        rebuild=rebuild and (lambda others: again(rebuild(others))),
        decoding=twin and (lambda length: again(twin(length))),
    )


def low_rank(
    model: Layer,
    *patterns: str,
    rank: int,
    scale: float = 1.0,
    a_init: Initializer = he_uniform,
) -> Layer:
    """The same network, whose chosen weights are w + scale / rank * a @ b.

    b begins at zero, so that the adapted network is at first the network itself, bit for bit. Train
    `low_rank/**` and freeze `base/**`; `merge_low_rank` makes plain parameters again.

    Args:
      model: any layer.
      patterns: which weights, by path: `**/w`, `block/*/attn/q/w`. A kernel `[..., out]` is taken
        as the matrix `[prod(...), out]`.
      rank: r, the width between a and b, >= 1.
      scale: of what is added; it is divided by the rank, so that a rate found for one rank serves
        another (the paper's alpha). May be traced.
      a_init: initializer of a [in, r]; b [r, out] is zero.

    Returns:
      A layer with the inputs and state of `model`, and params {"base": those of model,
      "low_rank": a tree of {"a", "b"} at the paths of the chosen weights}.

    Raises:
      ValueError: a rank below 1; no pattern; at init, a pattern that matches no weights, with the
        nearest paths.
      PathError: at init, a chosen leaf that is no matrix.

    Example:
      >>> import jax
      >>> from fdl.layers import dense
      >>> from fdl.core.networks import chain
      >>> model = low_rank(chain(dense(6), dense(4)), "dense_1/w", rank=2)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> jax.tree.map(jnp.shape, params["low_rank"])
      {'dense_1': {'w': {'a': (6, 2), 'b': (2, 4)}}}

    Source: Hu et al. 2021, arXiv 2106.09685, equation 3 and section 4.1.
    """
    rank = check_count("low_rank", "rank", rank, "it is the width between a and b, as 8")
    check_number("low_rank", "scale", scale, None, "1 is usual")
    if not patterns:
        raise ValueError(
            "low_rank: expected a pattern, got none; pass '**/w' for every weight matrix"
        )

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        base, state = model.init(key, x, **inputs)
        return {"base": base, "low_rank": _started(base, patterns, rank, a_init, key)}, state

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        return model.apply(merge_low_rank(params, scale=scale), state, x, **given)

    def again(inner: Layer) -> Layer:
        return low_rank(inner, *patterns, rank=rank, scale=scale, a_init=a_init)

    rebuild, twin = model.rebuild, model.decoding
    return dataclasses.replace(
        model,
        init=init,
        apply=apply,
        rebuild=rebuild and (lambda others: again(rebuild(others))),
        decoding=twin and (lambda length: again(twin(length))),
    )


def merge_low_rank(params: Params, *, scale: float = 1.0) -> Params:
    """Plain parameters of the network itself, with what was learned beside them added in.

    Args:
      params: {"base": ..., "low_rank": ...}, of a `low_rank` layer.
      scale: the one that the layer was made with.

    Returns:
      Parameters in the structure and the dtypes of params["base"].

    Example:
      >>> base = {"w": jnp.ones((2, 2))}
      >>> beside = {"w": {"a": jnp.ones((2, 1)), "b": jnp.array([[0.0, 3.0]])}}
      >>> merge_low_rank({"base": base, "low_rank": beside}, scale=2.0)["w"]
      Array([[1., 7.],
             [1., 7.]], dtype=float32)
    """
    return _merged(params["base"], params["low_rank"], scale)


def _merged(base: Any, beside: Any, scale: float) -> Any:
    if isinstance(base, Mapping):
        return {
            name: _merged(value, beside[name], scale) if name in beside else value
            for name, value in base.items()
        }
    a, b = beside["a"], beside["b"]
    return base + (in_dtype(scale, a.dtype) / a.shape[-1] * (a @ b)).reshape(base.shape).astype(
        base.dtype
    )


def _started(
    base: Params, patterns: tuple[str, ...], rank: int, a_init: Initializer, key: Any
) -> Params:
    leaves = paths.leaves(base)
    tree: Params = {}
    for path in paths.pick(leaves, patterns):
        w, own = leaves[path], subkey(key, "low_rank")
        if w.ndim < 2:
            raise PathError(
                f"expected weights [..., in, out], got {list(w.shape)}; choose matrices, as '**/w'",
                path,
            )
        node = tree
        for level in path.split("/"):
            node, own = node.setdefault(level, {}), subkey(own, level)
        node["a"] = a_init(subkey(own, "a"), (w.size // w.shape[-1], rank), w.dtype)
        node["b"] = jnp.zeros((rank, w.shape[-1]), w.dtype)
    return tree
