"""Decoding: a network that is given its tokens piece by piece, and remembers the earlier ones.

What it remembers is a value, the cache, made for a batch and a length. Each layer that looks back
at earlier tokens brings its own twin for decoding (`Layer.decoding`); they take its place wherever
it stands, and everything else in the network stays what it is. So any network decodes whose other
layers treat each token by itself, by the same parameters; those of fdl that do not, refuse:

    cache = start_decoding(model, params, tokens, length)
    logits, cache = decode(model, params, cache, tokens[:, :5])
    logits, cache = decode(model, params, cache, tokens[:, 5:6])

The letters: B sequences, T tokens, C kinds of them.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fdl import paths
from fdl.arguments import check_array, check_number, is_count
from fdl.layer import Layer, Params, State, abstract, check_key, zeros
from fdl.paths import PathError, at

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
        *(abstract(params), _overlaid(empty, abstract(state)), x, inputs),
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


def generate(
    model: Layer,
    params: Params,
    tokens: jax.Array,
    steps: int,
    *,
    key: Any = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    state: State | None = None,
    **inputs: Any,
) -> jax.Array:
    """Goes on from the given tokens, each new one drawn from the network's answer to all before.

    Args:
      model: a network from tokens [B, T] to logits [B, T, C].
      params: its parameters.
      tokens: integers [B, T], what to go on from, T >= 1.
      steps: how many tokens to add, >= 1.
      key: a random key; None takes the likeliest token every time.
      temperature: > 0, divides the logits: below 1 keeps to likely tokens, above 1 is freer. A
        traced one cannot be checked.
      top_k: draws only among so many of the likeliest, of equal ones the first; None among all.
      state: the model's own state, if it has any.
      inputs: the model's extra inputs, the same at every step.

    Returns:
      [B, T + steps], in the dtype of `tokens`. One program, compiled once for each model, shape
      and number of steps.

    Raises:
      ValueError: steps or top_k below 1, a temperature not above 0, or no token to go on from.
      PathError: what the network cannot take; see `start_decoding`. A key that is none.

    Example:
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> generate(model, params, jnp.array([[0, 1]]), 4, key=jax.random.key(1)).shape
      (1, 6)
    """
    if not is_count(steps) or not (top_k is None or is_count(top_k)):
        raise ValueError(
            f"generate: expected steps >= 1 and top_k >= 1 or None, got steps {steps} and top_k "
            f"{top_k}; steps is how many tokens to add, and top_k=None draws among all"
        )
    check_array("generate", tokens, "tokens")
    integers = jnp.issubdtype(tokens.dtype, jnp.integer)
    if tokens.ndim != 2 or not tokens.shape[1] or not integers:
        raise ValueError(
            f"generate: expected integer tokens [B, T] with T >= 1, got {tokens.dtype} "
            f"{list(tokens.shape)}; begin with at least one token"
        )
    check_key(key, "generate")
    check_number(
        *("generate", "a temperature > 0", temperature),
        *(lambda t: t > 0, "key=None takes the likeliest token every time"),
    )
    heat = jnp.asarray(temperature, jnp.float32)
    return _generate(model, params, state or {}, tokens, steps, key, heat, top_k, inputs)


@functools.partial(jax.jit, static_argnames=("model", "steps", "top_k"))
def _generate(
    model: Layer,
    params: Params,
    state: State,
    tokens: jax.Array,
    steps: int,
    key: Any,
    temperature: jax.Array,
    top_k: int | None,
    inputs: Any,
) -> jax.Array:
    def pick(logits: jax.Array, step: Any) -> jax.Array:
        last = logits[:, -1]
        if key is None:
            return last.argmax(-1).astype(tokens.dtype)
        last = last.astype(jnp.float32) / temperature
        if top_k is not None and top_k < last.shape[-1]:
            values, kept = jax.lax.top_k(last, top_k)
            none = jnp.full_like(last, -jnp.inf)
            last = jnp.put_along_axis(none, kept, values, axis=-1, inplace=False)
        return jax.random.categorical(jax.random.fold_in(key, step), last).astype(tokens.dtype)

    def step(carry: tuple[jax.Array, State], number: jax.Array) -> Any:
        token, cache = carry
        logits, cache = decode(model, params, cache, token[:, None], **inputs)
        token = pick(logits, number)
        return (token, cache), token

    # The last token is drawn and not read, so it needs no place.
    length = tokens.shape[1] + steps - 1
    cache = start_decoding(model, params, tokens, length, state=state, **inputs)
    logits, cache = decode(model, params, cache, tokens, **inputs)
    first = pick(logits, 0)
    _, others = jax.lax.scan(step, (first, cache), jnp.arange(1, steps, dtype=jnp.int32))
    return jnp.concatenate([tokens, first[:, None], others.T], 1)


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
