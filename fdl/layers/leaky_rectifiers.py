"""Rectifiers with a learned or random negative slope.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import leaky_relu
from fdl.checks import check_floating, check_number, check_ordered
from fdl.core.layer import Layer
from fdl.layers.weightless import weightless
from fdl.paths import PathError
from fdl.typing import Array, Key, Params, State


def prelu(*, each_channel: bool = False, slope: float = 0.25, name: str = "prelu") -> Layer:
    """y = x for x > 0, and y = a * x otherwise, where the slope a is learned.

    Exclude the slope a from weight decay, which would move it towards 0, the slope of relu for
    x < 0.

    Args:
      each_channel: True gives each channel a separate slope, as in the paper. With False, all
        channels share one slope.
      slope: the initial value of the slope a; may be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., C] to y of the same shape and dtype; params {"slope": []}, or
      {"slope": [C]} with each_channel. At x = 0, the derivative with respect to x is the
      slope a.

    Raises:
      ValueError: slope is not a number.
      PathError: x has an integer dtype, or its C differs from the C of params["slope"].

    Example:
      >>> layer = prelu(slope=0.5)
      >>> params, state = layer.init(jax.random.key(0), jnp.array([-2.0, 3.0]))
      >>> layer.apply(params, state, jnp.array([-2.0, 3.0]))[0]
      Array([-1.,  3.], dtype=float32)

    Source: He et al. 2015, arXiv 1502.01852, equation 1. The default slope of Flax is 0.01.
    """
    check_number("prelu", "slope", slope, None, "pass a number")

    def init(key: Any, x: Any) -> tuple[Params, State]:
        check_floating(name, x)
        return {"slope": jnp.full(x.shape[-1:] if each_channel else (), slope, x.dtype)}, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        check_floating(name, x)
        a = params["slope"]
        if each_channel and x.shape[-1:] != a.shape:
            raise PathError(
                f"expected x [..., {a.shape[0]}], got {list(x.shape)}; give x that many channels, "
                "or make new params with init",
                layer=name,
            )
        return leaky_relu(x, negative_slope=a.astype(x.dtype)), state

    return Layer(name, init, apply)


def rrelu(lower: float = 1 / 8, upper: float = 1 / 3, *, name: str = "rrelu") -> Layer:
    """y = x for x > 0, else y = a * x, where training draws a new slope a for each element.

    Outside training, the slope a is the mean (lower + upper) / 2.

    Args:
      lower, upper: the slope a is drawn uniformly from [lower, upper), where 0 <= lower <= upper;
        both may be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [...] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: lower > upper, lower < 0, or one of them is not a number.
      PathError: no key is passed in training.

    Example:
      >>> rrelu(0.0, 1.0).apply({}, {}, jnp.array([-2.0, 3.0]))[0]
      Array([-1.,  3.], dtype=float32)

    Source: Xu et al. 2015, arXiv 1505.00853, section 2.4. x is multiplied by the slope a, as in
    torch; the paper divides x by a.
    """
    remedy = "pass the smallest and the largest slope for x < 0"
    check_number("rrelu", "lower", lower, "[0, inf]", remedy)
    check_ordered("rrelu", "lower <= upper", (lower, upper), remedy)

    def mean(x: Array) -> Array:
        return leaky_relu(x, negative_slope=(lower + upper) / 2)

    def draw(key: Key, x: Array) -> Array:
        a = jax.random.uniform(key, x.shape, jnp.float32, lower, upper)
        return leaky_relu(x, negative_slope=a.astype(x.dtype))

    return weightless(name, mean, training=draw)
