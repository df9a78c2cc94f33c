"""Mixture of experts: many layers of one kind, a few of which are chosen for each token.

T is the number of tokens of a sequence, D the number of features of a token, E the number of
experts, C the number of tokens that an expert has room for, F the number of features of the result.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, decimal, described, is_concrete_number, is_count
from fdl.core.layer import Layer, as_layer, subkey
from fdl.core.networks import network
from fdl.layers.linear import dense
from fdl.ops.numerics import wide
from fdl.ops.sharding import over_experts
from fdl.paths import PathError
from fdl.typing import Params, State


def mixture_of_experts(
    expert: Any,
    count: int,
    *,
    top_k: int = 2,
    capacity_factor: float | None = 1.25,
    name: str = "mixture_of_experts",
) -> Layer:
    """y[t] = sum of p[t, e] expert_e(x[t]) over the k experts e with the largest p[t, e].

    p = softmax(router(x)) is the probability of each expert for each token.

    For k > 1, the p of the chosen experts are divided by their sum. Each sequence is routed
    independently. An expert accepts tokens until it is full: first all tokens that have it as their
    first choice, in order of time, then those that have it as their second choice, and so on. For
    a token that an expert does not accept, this expert adds zero to y, so put a residual around
    this layer. If k > 1, y can depend on later tokens: first choices come before second choices, so
    the first choice of a later token can displace the second choice of an earlier token. For a
    strictly causal network, pass capacity_factor=None.

    Args:
      expert: a layer from [..., D] to [..., F], such as `feed_forward(64, hidden=256)`.
      count: E >= 1, the number of experts. Each expert has its own weights.
      top_k: k, the number of experts for each token, 1 to E.
      capacity_factor: a number > 0. An expert has room for C = ceil(capacity_factor * k * T / E)
        tokens of a sequence, but for at most T. The factor must not be traced, because C is the
        size of an array. None gives every expert room for all tokens, and so does infinity.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y [..., T, F]; params {"router": {"w": [D, E]}, "experts": the
      experts' params, stacked along a new first axis [E, ...]}. `capture` finds the router's logits
      at the path `router`; pass them to `load_balance`, and add the result to the loss. In
      decoding, every expert has room for all tokens.

    Raises:
      ValueError: count, top_k or capacity_factor is out of range.
      PathError: x has no token axis.

    Example:
      >>> layer = mixture_of_experts(dense(3), 4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 8)))
      >>> params["experts"]["w"].shape, params["router"]["w"].shape
      ((4, 8, 3), (8, 4))
      >>> layer.apply(params, state, jnp.ones((2, 5, 8)))[0].shape
      (2, 5, 3)

    Source: Shazeer et al. 2017, arXiv 1701.06538, equations 1 and 3, without noise; capacity and
    k = 1: Fedus et al. 2021, arXiv 2101.03961, equations 2 and 3; the order: Lepikhin et al. 2020,
    arXiv 2006.16668, algorithm 1.
    """
    has_room = capacity_factor is None or (
        is_concrete_number(capacity_factor) and capacity_factor > 0
    )
    if not (is_count(count) and is_count(top_k)) or top_k > count or not has_room:
        raise ValueError(
            f"mixture_of_experts: expected count >= 1, top_k from 1 to count and capacity_factor "
            f"> 0 or None, got {described(count)}, {described(top_k)} and "
            f"{described(capacity_factor)}; pass top_k=2 for two experts for each token, and "
            "capacity_factor=None to give every expert room for all tokens"
        )

    # A factor of E or more gives every expert room for all tokens.
    factor = decimal(count if capacity_factor is None else min(capacity_factor, count))

    def forward(f: Any, x: Any) -> Any:
        check_array(name, x)
        if x.ndim < 2:
            raise PathError(
                f"expected x [..., T, D], got {list(x.shape)}; give x one row of features for each "
                "token",
                layer=name,
            )
        room = min(x.shape[-2], math.ceil(factor * top_k * x.shape[-2] / count))
        weights, slots = _routed(f.router(x), top_k, room)
        sent = over_experts(_dispatched(x, slots, (count, room)), -3, cut=False)
        y = f.experts(over_experts(jnp.moveaxis(sent, -3, 0), 0, cut=True))
        y = jnp.moveaxis(over_experts(y, 0, cut=True), 0, -3)
        return _combined(over_experts(y, -3, cut=False), weights, slots)

    layer = network(
        forward, name=name, router=dense(count, bias=False), experts=_stacked(expert, count)
    )
    return dataclasses.replace(
        layer,
        decoding=lambda length: mixture_of_experts(
            expert, count, top_k=top_k, capacity_factor=None, name=name
        ),
    )


def load_balance(logits: jax.Array, *, top_k: int = 2) -> jax.Array:
    """E * sum over experts of f[e] P[e]: 1 if tokens are spread evenly over the experts.

    f[e] is the share of expert e among the choices of all tokens, and P[e] is the mean probability
    of expert e over all tokens. If all tokens choose the same experts, the value is up to
    E / top_k. Only P has a gradient.

    Args:
      logits: the router's logits, [..., T, E].
      top_k: the number of choices of each token, 1 to E.

    Returns:
      One number for each sequence, [...], float32 or wider; add about 0.01 times the mean of these
      numbers to the loss.

    Raises:
      PathError: logits has fewer than two axes, or top_k is not from 1 to E.

    Example:
      >>> load_balance(jnp.array([[9.0, 0.0], [0.0, 9.0]]), top_k=1)
      Array(1., dtype=float32)

    Source: Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6.
    """
    if logits.ndim < 2 or not 1 <= top_k <= logits.shape[-1]:
        raise PathError(
            f"expected logits [..., T, E] and top_k from 1 to E, got {list(logits.shape)} and "
            f"{top_k}; pass the output of the router, and the top_k of the layer",
            layer="load_balance",
        )
    logits = logits.astype(wide(logits.dtype))
    choices = jax.nn.one_hot(jax.lax.top_k(logits, top_k)[1], logits.shape[-1], dtype=logits.dtype)
    share = choices.mean((-3, -2))
    return logits.shape[-1] * (share * jax.nn.softmax(logits).mean(-2)).sum(-1)


def _routed(logits: jax.Array, top_k: int, room: int) -> tuple[jax.Array, jax.Array]:
    """The weights and the slots of each token's choices, both [..., T, k].

    A slot is expert * room + place, where place is the number of earlier choices of this expert. If
    an expert is full, the slot of the choice is E * room, which is larger than the index of any
    slot.
    """
    probs = jax.nn.softmax(logits.astype(wide(logits.dtype)))
    weights, chosen = jax.lax.top_k(probs, top_k)
    if top_k > 1:
        weights = weights / weights.sum(-1, keepdims=True)
    # choices is [..., k, T, E]. Counting along the merged axes k and T puts all first choices
    # before all second choices.
    choices = jax.nn.one_hot(chosen.swapaxes(-1, -2), logits.shape[-1], dtype=jnp.int32)
    *lead, k, tokens, experts = choices.shape
    queue = choices.reshape(*lead, k * tokens, experts)
    place = ((jnp.cumsum(queue, -2) - queue) * queue).sum(-1, dtype=jnp.int32)
    place = place.reshape(*lead, k, tokens).swapaxes(-1, -2)
    return weights, jnp.where(place < room, chosen * room + place, experts * room)


def _dispatched(x: jax.Array, slots: jax.Array, sizes: tuple[int, int]) -> jax.Array:
    """x [..., T, D] as [..., E, room, D]: each token in its slots, and 0 in empty slots."""
    *lead, tokens, features = x.shape

    def of_sequence(x: jax.Array, slots: jax.Array) -> jax.Array:
        token = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], slots.shape)
        empty = jnp.full(math.prod(sizes), tokens, jnp.int32)
        return x.at[empty.at[slots].set(token, mode="drop")].get(mode="fill", fill_value=0)

    return _vmapped(len(lead), of_sequence)(x, slots).reshape(*lead, *sizes, features)


def _combined(y: jax.Array, weights: jax.Array, slots: jax.Array) -> jax.Array:
    """[..., T, F]: the weighted sum of y [..., E, room, F] over the slots of each token."""

    def of_sequence(y: jax.Array, weights: jax.Array, slots: jax.Array) -> jax.Array:
        held = y.at[slots].get(mode="fill", fill_value=0)
        return (weights[..., None] * held.astype(weights.dtype)).sum(-2).astype(y.dtype)

    *lead, experts, room, features = y.shape
    flat = y.reshape(*lead, experts * room, features)
    return _vmapped(len(lead), of_sequence)(flat, weights, slots)


def _vmapped(axes: int, f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """f, mapped by `jax.vmap` over the first `axes` axes."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


def _stacked(expert: Any, count: int) -> Layer:
    """`count` layers of one kind, from x [E, ...] to y [E, ...], with stacked weights."""
    inner = as_layer(expert)

    def keys(key: Any) -> Any:
        names = [str(number) for number in range(count)]
        return None if key is None else jnp.stack([subkey(key, name) for name in names])

    def init(key: Any, x: Any) -> tuple[Params, State]:
        x_of_one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return jax.vmap(lambda key: inner.init(key, x_of_one), axis_size=count)(keys(key))

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Any, State]:
        def one(params: Params, state: State, x: Any, key: Any) -> tuple[Any, State]:
            return inner.apply(params, state, x, key=key, train=train)

        return jax.vmap(one)(params, state, x, keys(key))

    return Layer(inner.name, init, apply)
