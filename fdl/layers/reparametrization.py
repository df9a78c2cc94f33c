"""Layers whose weights are computed from parameters: normalized, or with a low-rank update.

`weight_norm`, `spectral_norm` and `low_rank` wrap a layer. The new layer has the name, inputs and
children of the layer that it wraps. In each call, the new layer first computes the weights at all
paths that match a pattern, and then calls the inner layer with them.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl import paths
from fdl.checks import check_count, check_number, in_dtype
from fdl.core.layer import Layer, as_layer, subkey
from fdl.initializers import he_uniform, normal
from fdl.ops.numerics import direction, largest, power_of_two, wide
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State

POWER = "power_iteration"


def weight_norm(layer: Layer, *, weights: str = "**/w") -> Layer:
    """w = scale * direction / |direction|: the weights of each output have a learned norm.

    Args:
      layer: any layer.
      weights: a pattern that matches the paths of the weights, each [..., out].

    Returns:
      The same layer; its params have {"direction": [..., out], "scale": [out]} in place of each
      leaf w that the pattern matches. The initial scales are 1, as in Flax; in torch they are the
      norms of the initial weights, which are also about 1 with `lecun_normal`.

    Raises:
      ValueError: `init` is called and the pattern matches no path; the message lists similar paths.

    Example:
      >>> from fdl.layers.linear import dense
      >>> params, _ = weight_norm(dense(2)).init(jax.random.key(0), jnp.ones((1, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'b': (2,), 'w': {'direction': (3, 2), 'scale': (2,)}}

    Source: Salimans and Kingma 2016, arXiv 1602.07868, equation 2.
    """

    layer = as_layer(layer, "weight_norm")

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        params, state = layer.init(key, x, **inputs)
        picked = paths.pick(paths.leaves(params), [weights])
        return _changed(params, picked, split), state

    def split(w: jax.Array, path: str) -> Params:
        # The scale starts at 1 and not at the norm of w, because the last bits of a norm differ
        # with and without jit.
        return {"direction": w, "scale": jnp.ones(w.shape[-1:], w.dtype)}

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        return layer.apply(_normalized(params), state, x, **given)

    return _wrapped(layer, init, apply, functools.partial(weight_norm, weights=weights))


def spectral_norm(layer: Layer, *, weights: str = "**/w", iterations: int = 1) -> Layer:
    """w / sigma(w), where sigma estimates the largest singular value by power iteration.

    Each iteration computes v = normalize(w u), then u = normalize(w.T v). The first iteration uses
    the u in the state. After the last one, sigma = v w u. Gradients treat u and v as constants, as
    in the paper. A pass with train=True stores the new u in the state.

    Args:
      layer: any layer.
      weights: a pattern that matches the paths of the weights; each w [..., out] is used as a
        matrix [prod(...), out].
      iterations: the number of iterations in a pass, >= 1.

    Returns:
      The same layer with the same params; its state has one more entry, {"power_iteration": {path
      of w: u [out]}}, where the levels of the path are joined by `.`.

    Raises:
      ValueError: iterations < 1, or `init` is called and the pattern matches no path.
      PathError: `init` is called and the layer already has spectral norm.

    Example:
      >>> from fdl.layers.linear import dense
      >>> layer = spectral_norm(dense(2, bias=False), iterations=30)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> w, _ = layer.apply(params, state, jnp.eye(3))
      >>> round(float(jnp.linalg.norm(w, 2)), 4)
      1.0

    Source: Miyato et al. 2018, arXiv 1802.05957, algorithm 1 and equation 12.
    """
    layer = as_layer(layer, "spectral_norm")
    iterations = check_count("spectral_norm", "iterations", iterations, "pass 1, the usual number")

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        params, state = layer.init(key, x, **inputs)
        if POWER in state:
            raise PathError(
                "expected a layer without spectral norm, got a layer that has it; call "
                "spectral_norm only once",
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
        y, inner = layer.apply(_changed(params, picked, divided), inner, x, train=train, **given)
        return y, {**inner, POWER: moved if train else state[POWER]}

    again = functools.partial(spectral_norm, weights=weights, iterations=iterations)
    return _wrapped(layer, init, apply, again)


def low_rank(
    model: Layer,
    *patterns: str,
    rank: int,
    scale: float = 1.0,
    a_init: Initializer = he_uniform,
) -> Layer:
    """The same network with weights w + scale / rank * a @ b at the paths that patterns match.

    The initial b is zero, so at first the outputs equal the model's outputs, bit for bit. In
    training, freeze the parameters `base/**`. After training, `merge_low_rank` computes parameters
    of the model itself.

    Args:
      model: any layer.
      patterns: patterns that match the paths of weights, such as `**/w` or `block/*/attn/q/w`. A
        kernel [..., out] is used as a matrix [prod(...), out].
      rank: r, the number of columns of a and of rows of b, >= 1.
      scale: alpha of the paper; may be traced. a @ b is multiplied by scale / rank, so a learning
        rate that is good for one rank is also good for other ranks.
      a_init: initializer of a [in, r]; b [r, out] is zero.

    Returns:
      A layer with the inputs and state of `model`, and params {"base": the model's params,
      "low_rank": a tree with {"a", "b"} at the path of each matched weight}.

    Raises:
      ValueError: rank < 1; no pattern is passed; or `init` is called and a pattern matches no path
        (the message lists similar paths).
      PathError: `init` is called and a matched weight has fewer than two axes.

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
    model = as_layer(model, "low_rank")
    rank = check_count("low_rank", "rank", rank, "pass the rank of a @ b, such as 8")
    check_number("low_rank", "scale", scale, None, "pass a number")
    if not patterns:
        raise ValueError(
            "low_rank: expected a pattern, got none; pass '**/w' to match all weight matrices"
        )

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        base, state = model.init(key, x, **inputs)
        return {"base": base, "low_rank": _new_updates(base, patterns, rank, a_init, key)}, state

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        return model.apply(merge_low_rank(params, scale=scale), state, x, **given)

    def again(inner: Layer) -> Layer:
        return low_rank(inner, *patterns, rank=rank, scale=scale, a_init=a_init)

    return _wrapped(model, init, apply, again)


def merge_low_rank(params: Params, *, scale: float = 1.0) -> Params:
    """Parameters of the network without `low_rank`: w + scale / rank * a @ b in place of w.

    Args:
      params: {"base": ..., "low_rank": ...}, of a `low_rank` layer.
      scale: the scale that the layer was made with.

    Returns:
      Parameters with the structure and dtypes of params["base"].

    Example:
      >>> base = {"w": jnp.ones((2, 2))}
      >>> update = {"w": {"a": jnp.ones((2, 1)), "b": jnp.array([[0.0, 3.0]])}}
      >>> merge_low_rank({"base": base, "low_rank": update}, scale=2.0)["w"]
      Array([[1., 7.],
             [1., 7.]], dtype=float32)
    """
    return _merged(params["base"], params["low_rank"], scale)


def _divided(w: jax.Array, u: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """w / sigma in the dtype of u, and the next u. If w is 0, returns 0 and the same u."""
    matrix = w.reshape(-1, w.shape[-1]).astype(u.dtype)
    matrix = matrix / power_of_two(largest(matrix))
    fixed = jax.lax.stop_gradient(matrix)
    u = jax.lax.stop_gradient(u)

    def iterated(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = direction(fixed @ u)
        new = direction(v @ fixed)
        return v, jnp.where((new == 0).all(), u, new)

    v, u = jax.lax.fori_loop(1, iterations, lambda _, found: iterated(found[1]), iterated(u))
    sigma = v @ matrix @ u
    # The code multiplies by 1 / sigma instead of dividing by sigma. `matrix` is itself a quotient,
    # and XLA would turn a / b / c into a / (b c), where b c could overflow.
    return (matrix * (1 / jnp.where(sigma == 0, 1, sigma))).reshape(w.shape), u


def _normalized(params: Any) -> Any:
    """params with the weights w in place of each dict {"direction", "scale"}."""
    if not isinstance(params, Mapping):
        return params
    if set(params) != {"direction", "scale"}:
        return {name: _normalized(value) for name, value in params.items()}
    unit = direction(params["direction"], tuple(range(params["direction"].ndim - 1)))
    return (unit * params["scale"].astype(unit.dtype)).astype(params["direction"].dtype)


def _changed(
    tree: Any, picked: list[str], change: Callable[[Any, str], Any], path: str = ""
) -> Any:
    """The tree with `change(leaf, path)` in place of the leaf at each picked path."""
    if isinstance(tree, Mapping):
        return {
            name: _changed(value, picked, change, f"{path}/{name}" if path else name)
            for name, value in tree.items()
        }
    return change(tree, path) if path in picked else tree


def _wrapped(
    layer: Layer,
    init: Callable[..., Any],
    apply: Callable[..., Any],
    again: Callable[[Layer], Layer],
) -> Layer:
    """The layer with a new init and apply; `again` wraps what its rebuild and decoding make."""
    rebuild, decoding = layer.rebuild, layer.decoding
    return dataclasses.replace(
        layer,
        init=init,
        apply=apply,
        rebuild=rebuild and (lambda others: again(rebuild(others))),
        decoding=decoding and (lambda length: again(decoding(length))),
    )


def _merged(base: Any, update: Any, scale: float) -> Any:
    if isinstance(base, Mapping):
        return {
            name: _merged(value, update[name], scale) if name in update else value
            for name, value in base.items()
        }
    a, b = update["a"], update["b"]
    return base + (in_dtype(scale, a.dtype) / a.shape[-1] * (a @ b)).reshape(base.shape).astype(
        base.dtype
    )


def _new_updates(
    base: Params, patterns: tuple[str, ...], rank: int, a_init: Initializer, key: Any
) -> Params:
    """The tree of new {"a", "b"} at the paths of the picked weights."""
    leaves = paths.leaves(base)
    tree: Params = {}
    for path in paths.pick(leaves, patterns):
        w, leaf_key = leaves[path], subkey(key, "low_rank")
        if w.ndim < 2:
            raise PathError(
                f"expected weights [..., in, out], got {list(w.shape)}; use a pattern that matches "
                "only matrices, such as '**/w'",
                path,
            )
        node = tree
        for level in path.split("/"):
            node, leaf_key = node.setdefault(level, {}), subkey(leaf_key, level)
        node["a"] = a_init(subkey(leaf_key, "a"), (w.size // w.shape[-1], rank), w.dtype)
        node["b"] = jnp.zeros((rank, w.shape[-1]), w.dtype)
    return tree
