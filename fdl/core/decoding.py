"""Decoding: a network gets a sequence in pieces, and remembers earlier tokens in a cache.

The cache is a nested dict of arrays, with room for a fixed number of sequences and tokens. In
decoding, each layer that looks back at earlier tokens is replaced by its incremental form
(`Layer.decoding`), which has the same parameters. All other layers stay the same, and must treat
every token separately. If a layer of fdl cannot be used in decoding, it raises an error.

    cache = start_decoding(model, params, tokens, length)
    logits, cache = decode(model, params, cache, tokens[:, :5])
    logits, cache = decode(model, params, cache, tokens[:, 5:6])

B is the number of sequences, T the number of tokens, D the number of features of a token, H the
number of heads of attention, and L the number of places in the cache.
"""

from collections.abc import Iterator
from typing import Any

import jax

from fdl import paths
from fdl.core.layer import Layer, abstract, zeros
from fdl.paths import PathError, at
from fdl.typing import Params, State

CALLED = "<called>"


def start_decoding(
    model: Layer, params: Params, x: Any, length: int, *, state: State | None = None, **inputs: Any
) -> State:
    """The empty cache of a network.

    Args:
      model: a network.
      params: the model's parameters; only shapes and dtypes are read.
      x: the model's input x, [B, T] tokens or [B, T, D]; only shape and dtype are read.
      length: L, the number of tokens of a sequence that fit in the cache.
      state: the model's state, such as running statistics; required if the model has state.
      inputs: the model's extra inputs; only shapes and dtypes are read.

    Returns:
      A nested dict with the paths of the layers, which also contains the model's state. The entry
      of an attention layer is {"position": {"count"}, "cache": {"k", "v"}}, where k and v are
      [B, L, G, K], for G heads of K features.

    Raises:
      PathError: a layer uses later tokens, or uses earlier tokens and has no incremental form; a
        layer with a cache is called twice in one pass (it would need two caches); `state` is
        missing or belongs to another model; T > L; or the model has fewer than L positions.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> tokens = jnp.array([[0, 1, 2, 1]])
      >>> params, _ = model.init(jax.random.key(0), tokens)
      >>> cache = start_decoding(model, params, tokens, 10)
      >>> cache["attention_0"]["cache"]["k"].shape
      (1, 10, 2, 4)
    """
    state = state or {}
    x, inputs = abstract((x, inputs))
    wanted = jax.eval_shape(model.init, jax.random.key(0), x, **inputs)[1]
    if set(paths.leaves(wanted)) != set(paths.leaves(state)):
        raise PathError(
            f"expected the model's state [{_keys(wanted)}], got [{_keys(state)}]; pass state=..., "
            "the state that training returned",
            layer="start_decoding",
        )
    once = _incremental(model, length, _once)
    empty = jax.eval_shape(once.init, jax.random.key(0), x, **inputs)[1]
    # One pass is traced on shapes alone, to find the dtypes that the cache has with these params.
    _, after = jax.eval_shape(
        lambda params, cache, x, inputs: once.apply(params, cache, x, **inputs),
        abstract(params),
        _overlaid(empty, abstract(state)),
        x,
        inputs,
    )
    return _overlaid(jax.tree.map(zeros, after), state)


def decode(model: Layer, params: Params, cache: State, x: Any, **inputs: Any) -> tuple[Any, State]:
    """The network's output for the next tokens, and the cache with these tokens added.

    The outputs are the same as in one pass over all tokens. One call may take one token or several.
    The cost of a new token depends only on the length of the cache. In a loop, use the cache as the
    carry of `jax.lax.scan`, or donate it to a function under `jax.jit`, which then updates it in
    place.

    Args:
      model: the network that the cache was made for.
      params: the network's parameters.
      cache: the cache from `start_decoding` or from the previous call of `decode`.
      x: the next tokens, [B, T] or [B, T, D], T >= 1.
      inputs: the model's extra inputs. A `mask` has shape [B, H, T, L]; its last axis has one entry
        for each place of the cache.

    Returns:
      (y, cache), where y is the network's output for x. If the cache has fewer than T free
      places, y is NaN, because a compiled function cannot raise an error.

    Raises:
      PathError: an input does not fit the network; T > L; or the cache was made for a different
        batch or network.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> tokens = jnp.array([[0, 1, 2, 1]])
      >>> params, state = model.init(jax.random.key(0), tokens)
      >>> cache = start_decoding(model, params, tokens, 4)
      >>> first, cache = decode(model, params, cache, tokens[:, :3])
      >>> last, cache = decode(model, params, cache, tokens[:, 3:])
      >>> whole, _ = model.apply(params, state, tokens)
      >>> bool(jnp.allclose(whole, jnp.concatenate([first, last], 1), atol=1e-5))
      True
    """
    # The length 0 has no effect: an incremental layer needs a length only to make a cache.
    return _incremental(model, 0).apply(params, cache, x, **inputs)


def _incremental(layer: Layer, length: int, wrap: Any = lambda layer: layer) -> Layer:
    """The network, with each layer that has an incremental form replaced by that form."""
    if layer.decoding is not None:
        return wrap(layer.decoding(length))
    if layer.rebuild is None:
        if hidden := next(_with_decoding(layer), None):
            raise PathError(
                "expected a layer that can be rebuilt with other children, got a layer without "
                f"rebuild that contains {hidden.name}; make it with network, or pass rebuild=... "
                "to Layer",
                layer=layer.name,
            )
        return layer
    inside = {}
    for name, child in layer.children.items():
        with at(name):
            inside[name] = _incremental(child, length, wrap)
    return layer.rebuild(inside)


def _with_decoding(layer: Layer) -> Iterator[Layer]:
    for child in layer.children.values():
        if child.decoding is not None:
            yield child
        yield from _with_decoding(child)


def _once(layer: Layer) -> Layer:
    """The same incremental layer, but a call marks the cache, and a second call then raises."""

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        if CALLED in state:
            raise PathError(
                "expected one call of the layer in a pass, got two, which would need two caches; "
                "to decode, make two layers with separate names and weights",
                layer=layer.name,
            )
        y, state = layer.apply(params, state, x, **given)
        return y, {**state, CALLED: {}} if state else state

    return Layer(layer.name, layer.init, apply, layer.inputs, required=layer.required)


def _overlaid(below: Any, above: Any) -> Any:
    """The nested dict `below`, with its leaves replaced by those of `above`.

    A leaf that `above` does not have is kept. The marks of `_once` are removed.
    """
    if not isinstance(below, dict):
        return above
    return {
        name: _overlaid(leaf, above[name]) if name in above else _overlaid(leaf, leaf)
        for name, leaf in below.items()
        if name != CALLED
    }


def _keys(tree: State) -> str:
    return ", ".join(paths.leaves(tree))
