"""Caches: what a layer remembers from one decoding step to the next.

A layer that looks back at earlier tokens has an incremental form (`Layer.decoding`). It computes
the same function with the same parameters, but gets only the next tokens and finds the earlier
ones in its cache. The cache is the state of the incremental form: `init` makes an empty cache, and
`apply` takes a cache and returns y and the new cache.

T is the number of new tokens, L the number of tokens that fit in the cache, and G the number of
heads. C, D and F are numbers of features, as are K (of a key) and V (of a value).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fdl.core.layer import Layer
from fdl.paths import PathError
from fdl.typing import Params, State


def position(*, name: str = "position") -> Layer:
    """A layer that counts earlier tokens.

    Returns:
      A layer from x [..., T, D] to the number of tokens before x, an int32 scalar. Each call adds T
      to its state {"count": []}.
    """

    def init(key: Any, x: Any) -> tuple[Params, State]:
        return {}, {"count": jnp.zeros((), jnp.int32)}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        return state["count"], {"count": state["count"] + x.shape[-2]}

    return Layer(name, init, apply)


def key_value_cache(length: int, *, name: str = "cache") -> Layer:
    """A layer that writes keys and values to its cache, and returns the whole cache.

    Args:
      length: L, the number of tokens that fit in the cache.
      name: name of the layer in a network.

    Returns:
      A layer from (k [..., T, G, K], v [..., T, G, V], start) to (k [..., L, G, K],
      v [..., L, G, V], fits), where `start` is the index of the first new token. The returned k and
      v are also the layer's state. `fits` is False if the new tokens do not fit in the cache; the
      caller must then make its outputs NaN, because a compiled function cannot raise an error.

    Raises:
      PathError: T > L, or k differs from the cache in batch shape, number of heads or number of
        features.
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
    """The same layer, marked as one that needs the whole sequence: decoding raises a PathError."""

    def decoding(length: int) -> Layer:
        raise PathError(
            "expected a layer that can decode with a cache, got one that needs the whole sequence; "
            "use causal attention, a recurrent layer or conv(padding='CAUSAL') instead, or, if "
            "each token is an image, wrap the layer in batch_apply",
            layer=layer.name,
        )

    return dataclasses.replace(layer, decoding=decoding)


def sliding(layer: Layer, before: int) -> Layer:
    """The incremental form of a layer with a sliding window: it remembers the last elements of x.

    Args:
      layer: a layer from x [..., before + T, C] to y [..., T, F], without state.
      before: number of elements in a window before its last one.

    Returns:
      A layer from x [..., T, C] to y [..., T, F]; it uses zeros for the elements before the start
      of the sequence. Its state {"before": [..., before, C]} holds the last elements of x.

    Raises:
      PathError: x has a different batch shape or C than the cache.
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
                "call start_decoding with an x of this batch",
                layer=layer.name,
            )
        seen = jnp.concatenate([old.astype(x.dtype), x], -2)
        y, _ = layer.apply(params, {}, seen)
        return y, {"before": seen[..., x.shape[-2] :, :]}

    return Layer(layer.name, init, apply)


def with_position_count(layer: Layer, length: int, most: int | None = None) -> Layer:
    """The incremental form of a layer with positions: each call continues at the next position.

    Args:
      layer: a layer with the extra input `positions`, integers [..., T], and no state.
      length: L, the number of tokens that fit in the caches of the network.
      most: number of positions that the layer has; None means no limit.

    Returns:
      A layer. Each call adds T to its state {"count": []}.

    Raises:
      PathError: L > most, and no positions are passed.
    """
    count = position()

    def init(key: Any, x: Any, *, positions: Any = None) -> tuple[Params, State]:
        if most is not None and length > most and positions is None:
            raise PathError(
                f"expected a length of at most {most}, the number of positions of the layer, got "
                f"{length}; decode fewer tokens, or make the layer with a larger length",
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
            f"{list(k.shape)}; call start_decoding with an x of this batch, and a length for all "
            "tokens",
            layer=name,
        )
