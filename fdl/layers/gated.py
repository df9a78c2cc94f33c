"""Gated units, and the two dense layers of a transformer's block."""

from collections.abc import Callable

import jax

from fdl.activations import gelu, silu
from fdl.arguments import is_zero
from fdl.layer import Layer
from fdl.layers.dense import dense
from fdl.layers.dropout import dropout
from fdl.network import chain, network


def gated(
    features: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = silu,
    bias: bool = True,
    name: str = "gated",
) -> Layer:
    """y = activation(gate(x)) * value(x), with gate and value two dense layers.

    With `sigmoid` it is GLU, with `silu` SwiGLU, with `gelu` GEGLU, with `relu` ReGLU, with
    `identity` the bilinear unit.

    Args:
      features: F, how many outputs, >= 1.
      activation: of the gate.
      bias: whether both dense layers add one.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., F]; params {"gate": {"w", "b"}, "value": {"w", "b"}}.

    Raises:
      ValueError: features below 1.
      PathError: as `dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> params, _ = gated(4, bias=False).init(jax.random.key(0), jnp.ones((2, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'gate': {'w': (3, 4)}, 'value': {'w': (3, 4)}}

    Source: Dauphin et al. 2016, arXiv 1612.08083, equation 1; Shazeer 2020, arXiv 2002.05202,
    equation 5.
    """
    return network(
        lambda f, x: activation(f.gate(x)) * f.value(x),
        gate=dense(features, bias=bias),
        value=dense(features, bias=bias),
        name=name,
    )


def feed_forward(
    features: int,
    *,
    hidden: int,
    activation: Callable[[jax.Array], jax.Array] = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
    name: str = "feed_forward",
) -> Layer:
    """y = down(activation(up(x))), each position by itself: a transformer's part beside attention.

    Args:
      features: D, the width of the result, and of x where a residual goes around.
      hidden: the width between, >= 1; the papers take 4 D, or 8 D / 3 with a gate.
      activation: between the two.
      gate: whether up and activation are together `gated`: with silu that is Llama's SwiGLU.
      bias: whether the dense layers add one.
      dropout_rate: of the result, in [0, 1]; 0 leaves the layer out. May be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to [..., D]; params {"up": ..., "down": {"w", "b"}}.

    Raises:
      ValueError: a width or a rate out of range.
      PathError: as `dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = feed_forward(8, hidden=32)
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((2, 5, 8)))
      >>> params["up"]["w"].shape, params["down"]["w"].shape
      ((8, 32), (32, 8))

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 2; Shazeer 2020, arXiv 2002.05202,
    equation 6.
    """
    down = dense(features, bias=bias)
    last = {"drop": dropout(dropout_rate)} if not is_zero(dropout_rate) else {}
    if gate:
        up = gated(hidden, activation=activation, bias=bias)
        return chain(name=name, up=up, down=down, **last)
    return chain(name=name, up=dense(hidden, bias=bias), activation=activation, down=down, **last)
