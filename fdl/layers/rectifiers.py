"""Rectifiers whose slope below 0 is no number of the user's: it is learned, or drawn at random."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import leaky_relu
from fdl.checks import check_floating, check_number, check_ordered
from fdl.core.layer import Layer, check_training_key
from fdl.paths import PathError
from fdl.typing import Params, State


def prelu(*, each_channel: bool = False, slope: float = 0.25, name: str = "prelu") -> Layer:
    """y = x above 0 and a * x below, where a is learned.

    Leave a out of weight decay, which would draw it to the slope of a relu.

    Args:
      each_channel: each channel has an a of its own, as in the paper; else all share one.
      slope: what a begins with; may be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., C] to y, the same shape and dtype; params {"slope": []}, or [C] with
      each_channel. At 0 the derivative by x is a.

    Raises:
      ValueError: a slope that is no number.
      PathError: an x of another C.

    Example:
      >>> layer = prelu(slope=0.5)
      >>> params, state = layer.init(jax.random.key(0), jnp.array([-2.0, 3.0]))
      >>> layer.apply(params, state, jnp.array([-2.0, 3.0]))[0]
      Array([-1.,  3.], dtype=float32)

    Source: He et al. 2015, arXiv 1502.01852, equation 1. Flax begins with 0.01.
    """
    check_number("prelu", "slope", slope, None, "0.25 is the paper's")

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
    """y = x above 0 and a * x below, where a is drawn anew for each element in training.

    Outside of training a is the mean, (lower + upper) / 2.

    Args:
      lower, upper: a is uniform in [lower, upper), 0 <= lower <= upper; both may be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [...] to y, the same shape and dtype; no params, no state.

    Raises:
      ValueError: lower and upper out of order, or below 0.
      PathError: no key in training.

    Example:
      >>> rrelu(0.0, 1.0).apply({}, {}, jnp.array([-2.0, 3.0]))[0]
      Array([-1.,  3.], dtype=float32)

    Source: Xu et al. 2015, arXiv 1505.00853, section 2.4, with the slopes that torch multiplies by
    where the paper divides.
    """
    ends = (lower, upper)
    remedy = "these are the slopes below 0, from the smallest to the largest"
    check_number("rrelu", "lower", lower, "[0, inf]", remedy)
    check_ordered("rrelu", "lower <= upper", ends, remedy)

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        if not train:
            return leaky_relu(x, negative_slope=(lower + upper) / 2), state
        check_training_key(key, name)
        a = jax.random.uniform(key, x.shape, jnp.float32, lower, upper)
        return leaky_relu(x, negative_slope=a.astype(x.dtype)), state

    return Layer(name, lambda key, x: ({}, {}), apply)
