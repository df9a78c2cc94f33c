"""Decoding: a network that is given its tokens piece by piece, and remembers the earlier ones.

What it remembers is a value, the cache, made for a batch and a length. Each layer that looks back
at earlier tokens brings its own twin for decoding (`Layer.decoding`); they take its place wherever
it stands, and everything else in the network stays what it is. So any network decodes whose other
layers treat each token by itself, by the same parameters; those of fdl that do not, refuse:

    cache = start_decoding(model, params, tokens, length)
    logits, cache = decode(model, params, cache, tokens[:, :5])
    logits, cache = decode(model, params, cache, tokens[:, 5:6])

The letters: B sequences, T tokens, L places in the cache.
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
    """The cache of a network that has seen nothing yet.

    Args:
      model: a network.
      params: its parameters; only shapes and dtypes are read.
      x: what it will be given first, [B, T] tokens or [B, T, D]; only shape and dtype are read.
      length: L, how many tokens of each sequence there is room for.
      state: the model's own state, if it has any, such as running statistics.
      inputs: the model's extra inputs; only shapes and dtypes are read.

    Returns:
      A nested dict by the paths of the layers, as state is: for attention {"position": {"count"},
      "cache": {"k", "v"}}, k and v [B, L, G, K]; beside it the model's own state.

    Raises:
      PathError: a layer that sees later tokens, or others and has no cache; one that is called
        twice in a pass (it would need two caches); a state that is not the model's; T > L; an L
        beyond the positions that the model knows.

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
    own = jax.eval_shape(model.init, jax.random.key(0), x, **inputs)[1]
    if set(paths.leaves(own)) != set(paths.leaves(state)):
        raise PathError(
            f"expected the model's state [{_keys(own)}], got [{_keys(state)}]; pass "
            "state=..., as training left it",
            layer="start_decoding",
        )
    once = _continuing(model, length, _once)
    empty = jax.eval_shape(once.init, jax.random.key(0), x, **inputs)[1]
    # A pass, of shapes only, tells what dtype these params give the cache.
    _, after = jax.eval_shape(
        lambda params, cache, x, inputs: once.apply(params, cache, x, **inputs),
        abstract(params),
        _overlaid(empty, abstract(state)),
        x,
        inputs,
    )
    return _overlaid(jax.tree.map(zeros, after), state)


def decode(model: Layer, params: Params, cache: State, x: Any, **inputs: Any) -> tuple[Any, State]:
    """The network's answer for further tokens, and the cache that remembers them too.

    The same numbers as a pass over all tokens would give at these places, one by one or many at
    once, at a cost for each new token that grows with the length of the cache alone. In a loop,
    carry the cache through `jax.lax.scan`, or donate it to `jax.jit`; then it is updated in place.

    Args:
      model: the network that the cache was made for.
      params: its parameters.
      cache: of `start_decoding`, or the last call's.
      x: the next tokens, [B, T] or [B, T, D], T >= 1.
      inputs: the model's extra inputs. A `mask` is over the places of the cache, [B, H, T, L].

    Returns:
      (y, cache), y as the network gives it. Past the length of the cache y is NaN, since a compiled
      program cannot raise.

    Raises:
      PathError: what the network cannot take, or a cache of another batch or network.

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
    # The length is read off the cache; a twin needs it only to make one.
    return _continuing(model, 0).apply(params, cache, x, **inputs)


def _continuing(layer: Layer, length: int, wrap: Any = lambda twin: twin) -> Layer:
    """The network with a twin in place of each layer that has one."""
    if layer.decoding is not None:
        return wrap(layer.decoding(length))
    if layer.rebuild is None:
        if hidden := next(_with_twins(layer), None):
            raise PathError(
                "expected a layer that can be rebuilt with other children, got one without rebuild "
                f"around {hidden.name}; give it one, as network does",
                layer=layer.name,
            )
        return layer
    inside = {}
    for name, child in layer.children.items():
        with at(name):
            inside[name] = _continuing(child, length, wrap)
    return layer.rebuild(inside)


def _with_twins(layer: Layer) -> Iterator[Layer]:
    for child in layer.children.values():
        if child.decoding is not None:
            yield child
        yield from _with_twins(child)


def _once(twin: Layer) -> Layer:
    """The same twin, which leaves a sign in its cache and refuses to run where one is."""

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        if CALLED in state:
            raise PathError(
                "expected one call in a pass, got two; layers that share weights need a cache "
                "each, so give them names and weights of their own to decode",
                layer=twin.name,
            )
        y, state = twin.apply(params, state, x, **given)
        return y, {**state, CALLED: {}} if state else state

    return Layer(twin.name, twin.init, apply, twin.inputs, required=twin.required)


def _overlaid(below: Any, above: Any) -> Any:
    """Nested dicts, the leaves of `above` over those of `below`; signs left out."""
    if not isinstance(below, dict):
        return above
    return {
        name: _overlaid(leaf, above[name]) if name in above else _overlaid(leaf, leaf)
        for name, leaf in below.items()
        if name != CALLED
    }


def _keys(tree: State) -> str:
    return ", ".join(paths.leaves(tree))
