"""The dense layer: every output is a weighted sum of every input."""

from typing import Any

import jax

from fdl.arguments import check_count, check_floating
from fdl.initializers import Initializer, lecun_normal, zeros
from fdl.layer import Layer, Params, State, subkey
from fdl.paths import PathError


def dense(
    features: int,
    *,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "dense",
) -> Layer:
    """y = dot(x, w) + b; with `relu` after it, the vocabulary's relu(dot(W, input) + b).

    Args:
      features: F, how many outputs, >= 1.
      bias: whether to add b.
      w_init: initializer of w [D, F].
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., F]; params {"w": [D, F], "b": [F]} in the dtype of the x
      that `init` sees.

    Raises:
      ValueError: features below 1.
      PathError: x without a feature axis, of another D than w, or of an integer dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = dense(2)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((8, 3)))
      >>> y, state = layer.apply(params, state, jnp.ones((8, 3)))
      >>> y.shape
      (8, 2)

    Source: Rosenblatt 1958; Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.1.
    """
    features = check_count("dense", "features", features, "say how many outputs there are")

    def init(key: Any, x: Any) -> tuple[Params, State]:
        _check(name, x, None)
        params = {"w": w_init(subkey(key, "w"), (x.shape[-1], features), x.dtype)}
        if bias:
            params["b"] = b_init(subkey(key, "b"), (features,), x.dtype)
        return params, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        _check(name, x, params["w"])
        y = x @ params["w"]
        return (y + params["b"] if bias else y), state

    return Layer(name, init, apply)


def _check(name: str, x: Any, w: Any) -> None:
    check_floating(name, x)
    width = "D" if w is None else str(w.shape[0])
    if x.ndim < 1 or (w is not None and x.shape[-1] != w.shape[0]):
        remedy = "flatten x" if x.ndim > 2 else "give x that width, or make new params with init"
        raise PathError(f"expected x [..., {width}], got {list(x.shape)}; {remedy}", layer=name)
