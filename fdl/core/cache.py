"""What a layer remembers from one decoding step to the next.

A layer that looks back at earlier tokens has a twin for decoding (`Layer.decoding`), which is the
same function of the same parameters, and continues where its cache ends. The twin's cache stands
where another layer has its state: made by `init`, passed to `apply`, returned beside y.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fdl.core.layer import Layer
from fdl.paths import PathError
from fdl.typing import Params, State


def position(*, name: str = "position") -> Layer:
    """How many tokens came before these.

    Returns:
      A layer from x [..., T, D] to a scalar int32; its state {"count": []} goes up by T.
    """

    def init(key: Any, x: Any) -> tuple[Params, State]:
        return {}, {"count": jnp.zeros((), jnp.int32)}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        return state["count"], {"count": state["count"] + x.shape[-2]}

    return Layer(name, init, apply)


def key_value_cache(length: int, *, name: str = "cache") -> Layer:
    """All keys and values so far, with room for those to come.

    Args:
      length: L, how many tokens there is room for.
      name: what the layer is called in a network.

    Returns:
      A layer from (k [..., T, G, K], v [..., T, G, V], start), the index of the first of these
      tokens, to (k [..., L, G, K], v [..., L, G, V], fits), of which the first two are also its
      state. `fits` is False once there was no room for a token: a compiled program cannot raise,
      and an answer from there on must not pass for one.

    Raises:
      PathError: more tokens in one step than there is room for; another batch than the cache's.
    """

    def init(key: Any, x: Any) -> tuple[Params, State]:
        def room(x: Any) -> jax.Array:
            return jnp.zeros((*x.shape[:-3], length, *x.shape[-2:]), x.dtype)

        return {}, {"k": room(x[0]), "v": room(x[1])}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], State]:
        k, v, start = x
        _check(name, k, state["k"])
        fits = jnp.asarray(start + k.shape[-3] <= state["k"].shape[-3])
        new = {"k": _written(state["k"], k, start), "v": _written(state["v"], v, start)}
        return (new["k"].astype(k.dtype), new["v"].astype(v.dtype), fits), new

    return Layer(name, init, apply)


def at_once(layer: Layer) -> Layer:
    """The same layer, which reads a sequence as a whole, and so refuses to be decoded.

    Raises:
      PathError: in decoding.
    """

    def decoding(length: int) -> Layer:
        raise PathError(
            "expected a layer that can go on from a cache, got one that reads a sequence as a "
            "whole; take causal attention, a recurrent layer or conv(padding='CAUSAL') in its "
            "place, or, where each token is an image, put batch_apply around",
            layer=layer.name,
        )

    return dataclasses.replace(layer, decoding=decoding)


def sliding(layer: Layer, before: int) -> Layer:
    """A layer of windows on a sequence that remembers what the next window sees.

    Args:
      layer: from x [..., before + T, C] to y [..., T, F], without state.
      before: how many elements a window sees before its last one.

    Returns:
      A layer from x [..., T, C] to y [..., T, F], zeros before the first x; its state {"before":
      [..., before, C]} holds the last elements.

    Raises:
      PathError: another batch than the cache's.
    """

    def init(key: Any, x: Any) -> tuple[Params, State]:
        params, _ = layer.init(key, x)
        return params, {"before": jnp.zeros((*x.shape[:-2], before, x.shape[-1]), x.dtype)}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[Any, State]:
        old = state["before"]
        if (*x.shape[:-2], x.shape[-1]) != (*old.shape[:-2], old.shape[-1]):
            raise PathError(
                f"expected x {[*old.shape[:-2], 'T', old.shape[-1]]}, got {list(x.shape)}; "
                "start_decoding with this batch",
                layer=layer.name,
            )
        seen = jnp.concatenate([old.astype(x.dtype), x], -2)
        y, _ = layer.apply(params, {}, seen)
        return y, {"before": seen[..., x.shape[-2] :, :]}

    return Layer(layer.name, init, apply)


def counted(layer: Layer, length: int, most: int | None = None) -> Layer:
    """A layer of positions that goes on counting where it stopped.

    Args:
      layer: one with the extra input `positions`, integers [..., T], and no state.
      length: L, how many tokens there is room for in the caches of the network.
      most: how many positions the layer knows; None for all.

    Returns:
      Its twin for decoding; its state {"count": []} goes up by T.

    Raises:
      PathError: L > most, unless the positions are given.
    """
    count = position()

    def init(key: Any, x: Any, *, positions: Any = None) -> tuple[Params, State]:
        if most is not None and length > most and positions is None:
            raise PathError(
                f"expected at most {most} tokens, as many as the layer has positions, got room for "
                f"{length}; go on for fewer, or make the layer with a larger length",
                layer=layer.name,
            )
        return layer.init(key, x)[0], count.init(key, x)[1]

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        positions: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[Any, State]:
        start, state = count.apply({}, state, x)
        if positions is None:
            positions = start + jnp.arange(x.shape[-2], dtype=jnp.int32)
        return layer.apply(params, {}, x, positions=positions)[0], state

    return Layer(layer.name, init, apply)


def _written(old: jax.Array, new: jax.Array, start: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, old.ndim - 3)


def _check(name: str, k: jax.Array, old: jax.Array) -> None:
    same = k.shape[:-3] == old.shape[:-3] and k.shape[-2:] == old.shape[-2:]
    if not same or k.shape[-3] > old.shape[-3]:
        *lead, length, heads, features = old.shape
        raise PathError(
            f"expected keys {[*lead, 'T', heads, features]} with T <= {length}, got "
            f"{list(k.shape)}; start_decoding with this batch, and a length for all tokens",
            layer=name,
        )
