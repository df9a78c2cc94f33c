"""Taking out the representation after any layer."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fdl import paths
from fdl.arguments import said
from fdl.layer import Layer, Params, State, as_layer

# What a tapped layer adds to the state it gives back. Values leave a network only by being
# returned, so `jit`, `grad`, `vmap` and `scan` work on a tapped network as on any other.
OUTPUTS = "<outputs>"


def capture(model: Layer, *patterns: str) -> Callable[..., dict[str, Any]]:
    """The representations after chosen layers, as a pure function of parameters and input.

    Args:
      model: a network.
      patterns: which layers, by path: `dense_0`, `encoder/*`, `**` for all.

    Returns:
      `(params, state, x, *, key=None, train=False, **inputs) -> {path: output}`. A layer that is
      called more than once gives `path`, `path#1`, and so on.

    Raises:
      ValueError: no pattern, one that is no text, or one that matches no layer; the message lists
        the nearest paths.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fdl.models import mlp
      >>> model = mlp([5], 3)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> seen = capture(model, "dense_*")(params, state, jnp.ones((2, 4)))
      >>> {path: h.shape for path, h in seen.items()}
      {'dense_0': (2, 5), 'dense_1': (2, 3)}
    """
    model = as_layer(model)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"capture: expected patterns as texts, got {said(pattern)}; pass each by itself, "
                "as in capture(model, 'dense_0', 'dense_1')"
            )
    if not patterns:
        raise ValueError("capture: expected a pattern, got none; pass '**' for every layer")
    order = layer_paths(model)
    wanted = paths.pick(order, patterns)
    tapped = _tap(model, "", frozenset(wanted))

    def look(params: Params, state: State, x: Any, **given: Any) -> dict[str, Any]:
        _, after = tapped.apply(params, state, x, **given)
        found = {}
        for path in wanted:
            node = after
            for level in path.split("/"):
                node = node.get(level, {})
            for number, output in enumerate(node.get(OUTPUTS, ())):
                found[f"{path}#{number}" if number else path] = output
        return found

    return look


def layer_paths(model: Layer) -> list[str]:
    """The paths of all layers inside a network, in the order in which they were given.

    Args:
      model: a network.

    Example:
      >>> from fdl.models import mlp
      >>> layer_paths(mlp([5], 3))
      ['flatten_0', 'dense_0', 'relu_0', 'dense_1']
    """
    found = []
    for name, child in model.children.items():
        found += [name, *(f"{name}/{inner}" for inner in layer_paths(child))]
    return found


def _tap(layer: Layer, path: str, wanted: frozenset[str]) -> Layer:
    """The same layer, with every wanted one inside giving back its outputs too."""
    above = f"{path}/" if path else ""
    # Only where something inside is wanted: a scanned `repeat` is rebuilt unrolled.
    if layer.rebuild is not None and any(each.startswith(above) for each in wanted):
        inside = {name: _tap(child, above + name, wanted) for name, child in layer.children.items()}
        layer = layer.rebuild(inside)
    if path not in wanted:
        return layer

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        own = {name: value for name, value in state.items() if name != OUTPUTS}
        y, own = layer.apply(params, own, x, **given)
        return y, {**own, OUTPUTS: (*state.get(OUTPUTS, ()), y)}

    return dataclasses.replace(layer, apply=apply, rebuild=None)
