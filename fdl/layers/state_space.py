"""Layers that compute a linear recurrence, whose steps can be computed in parallel.

T is the length of a sequence, D the number of its features. All products are elementwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.activations import sigmoid, softplus
from fdl.checks import named_in_errors
from fdl.core.layer import Layer, subkey
from fdl.core.networks import network
from fdl.data.arrays import to_jax
from fdl.initializers.fan_counts import need_key
from fdl.layers.linear import dense
from fdl.ops.numerics import wide
from fdl.ops.recurrence import linear_recurrence, without_time
from fdl.paths import PathError
from fdl.typing import Params, State

# c in equation 3 of the paper that `rg_lru` names.
POWER = 8.0
# The initial decay of a feature is drawn from a table of 1,024 values. For these, a^c goes from 0.9
# to 0.999, where a = sigmoid(decay). NumPy computes the table, because XLA rounds a logarithm
# differently in different compiled functions.
RATES = np.linspace(0.9, 0.999, 1024) ** (1 / POWER)
DECAYS = np.log(RATES / (1 - RATES))


@named_in_errors
def rg_lru(features: int, *, name: str = "rg_lru") -> Layer:
    """h[t] = a^(c r) h[t - 1] + sqrt(1 - a^(2 c r)) (i x[t]), r, i = sigmoid(dense(x[t])), c = 8.

    The real-gated linear recurrent unit: each feature decays at a learned rate a = sigmoid(decay),
    the gate r scales the decay at each step, and the square root keeps h about as large as x.

    Args:
      features: D, the number of features of x and of h, >= 1.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to h [..., T, D]; params {"recurrence_gate": {"w", "b"},
      "input_gate": {"w", "b"}, "memory": {"decay": [D]}}. The initial a^c is between 0.9 and 0.999.
      Optional extra input: `segments`, integers [..., T]; where it changes, h restarts from 0. In
      decoding the cache is h.

    Raises:
      ValueError: features < 1.
      PathError: the last axis of x does not have size D, or segments does not fit x.

    Example:
      >>> layer = rg_lru(4)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 4)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 4)))[0].shape
      (2, 5, 4)

    Source: De et al. 2024, arXiv 2402.19427, equations 1 to 4 and section 2.4.
    """

    def forward(f: Any, x: Any, *, segments: Any = None) -> Any:
        if x.ndim < 2 or x.shape[-1] != features:
            raise PathError(
                f"expected x [..., T, {features}], got {list(x.shape)}; add dense({features}) "
                "before this layer, or pass the number of features of x as features",
                layer=name,
            )
        return f.memory((x, f.recurrence_gate(x), f.input_gate(x)), segments=segments)

    return network(
        forward,
        name=name,
        recurrence_gate=dense(features),
        input_gate=dense(features),
        memory=_memory(),
    )


def _memory() -> Layer:
    """The recurrence: a layer from (x, r, i) to h, where r and i are gates before the sigmoid."""

    def init(key: Any, x: Any, *, segments: Any = None) -> tuple[Params, State]:
        decay_key = need_key(subkey(key, "decay"), "memory")
        which = jax.random.randint(decay_key, x[0].shape[-1:], 0, len(DECAYS), jnp.int32)
        return {"decay": jnp.asarray(DECAYS, x[0].dtype)[which]}, {}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        segments: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        a, b = _gated(params, *x)
        if segments is not None:
            a = jnp.where(_begins(x[0], segments), 0, a)
        return linear_recurrence(a, b).astype(x[0].dtype), state

    return Layer("memory", init, apply, decoding=lambda length: _incremental_memory(init))


def _incremental_memory(init_memory: Callable[..., tuple[Params, State]]) -> Layer:
    """The form of `_memory` for decoding, whose cache is h."""

    def init(key: Any, x: Any, *, segments: Any = None) -> tuple[Params, State]:
        h = jnp.zeros(without_time(x[0]), wide(x[0].dtype))
        return init_memory(key, x)[0], {"h": h}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        segments: Any = None,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        if segments is not None:
            raise PathError(
                "expected no segments in decoding, got some; call start_decoding again for each "
                "sequence",
                layer="memory",
            )
        h = linear_recurrence(*_gated(params, *x), start=state["h"])
        return h.astype(x[0].dtype), {"h": h[..., -1, :]}

    return Layer("memory", init, apply)


def _gated(params: Params, x: Any, r: Any, i: Any) -> tuple[jax.Array, jax.Array]:
    """a^(c r) and sqrt(1 - a^(2 c r)) (i x), in float32 or wider.

    In these formulas, r and i are the sigmoids of the arguments r and i.
    """
    dtype = wide(x.dtype)
    decay, x, r, i = (each.astype(dtype) for each in (params["decay"], x, r, i))
    log_a = -POWER * sigmoid(r) * softplus(-decay)
    # If r is 0, the number under the root is 0, and the derivative of the root would be infinite.
    # So that number is raised to at least `tiny`, the dtype's smallest normal number.
    rest = jnp.maximum(-jnp.expm1(2 * log_a), float(jnp.finfo(dtype).tiny))
    return jnp.exp(log_a), jnp.sqrt(rest) * (sigmoid(i) * x)


def _begins(x: Any, segments: Any) -> jax.Array:
    """Bool [..., T, 1], True for the first step of each segment."""
    segments = to_jax(segments, "memory", "segments")
    if segments.shape != x.shape[:-1] or not jnp.issubdtype(segments.dtype, jnp.integer):
        raise PathError(
            f"expected integer segments {list(x.shape[:-1])}, got {segments.dtype} "
            f"{list(segments.shape)}; pass one segment number for each step",
            layer="memory",
        )
    changes = segments[..., 1:] != segments[..., :-1]
    return jnp.concatenate([jnp.ones_like(changes[..., :1]), changes], -1)[..., None]
