"""Layers whose weights are learned in another form: by length and direction, or at spectral norm 1.

Both wrap any layer and keep its name, its inputs and what is inside. They change the parameters
before the layer sees them, at the paths that patterns pick.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl import paths
from fdl.arguments import check_count
from fdl.initializers import normal
from fdl.layer import Layer, Params, State, subkey
from fdl.ops.numerics import direction, largest, power_of_two, wide
from fdl.paths import PathError

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
      >>> from fdl.layers.dense import dense
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
      >>> from fdl.layers.dense import dense
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
