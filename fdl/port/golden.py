"""Golden outputs: a few inputs and outputs that are kept beside weights, and checked at loading."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import described
from fdl.core import Layer
from fdl.data.arrays import to_jax

PREFIX = "<golden>/"  # the names of golden arrays in a file begin with this
X, Y, LAYERS = f"{PREFIX}x", f"{PREFIX}y", f"{PREFIX}layers/"
KEPT = 256  # how many numbers of the output of each layer are kept; x and y are kept whole


def golden_arrays(who: str, tree: Any, golden: Any) -> dict[str, jax.Array]:
    """The golden inputs, outputs and samples of all layers' outputs, by their names in a file.

    Args:
      who: the name of the function that the user called, for the error message.
      tree: params, a dict of params and state, or a run.
      golden: (model, x).

    Raises:
      TypeError: golden is not a model and an array.
      ValueError: the outputs could not show a fault, because there are none, or all are 0, or one
        is not finite.
    """
    pair = golden if isinstance(golden, tuple) and len(golden) == 2 else (None, None)
    model, x = pair
    if not isinstance(model, Layer) or not hasattr(x, "shape"):
        raise TypeError(
            f"{who}: expected golden to be (model, x), a layer and an array, got "
            f"{described(golden)}; pass the model of these weights and a few inputs, or leave "
            "golden out"
        )
    x = to_jax(x, who, "the golden inputs")
    found = _outputs(tree, model, x)
    y = [np.asarray(found[name], np.complex128) for name in _names_of_y(found)]
    numbers = np.concatenate([np.zeros(0), *map(np.ravel, y)])
    if not np.any(numbers) or not np.isfinite(numbers).all():
        got = "none" if not numbers.size else "0 everywhere"
        got = got if np.isfinite(numbers).all() else "some that are not finite"
        raise ValueError(
            f"{who}: expected golden outputs that are finite and not all 0, got {got}; pass a few "
            "usual inputs"
        )
    return {X: x} | found


def check_golden(
    file: str | os.PathLike[str], kept: Mapping[str, Any], tree: Any, model: Any
) -> None:
    """Raises unless the model computes the golden outputs of the file from its golden inputs.

    Args:
      file: the path of the file, for the error message.
      kept: the golden arrays, by their names in the file.
      tree: the weights that were loaded, in the form in which they were saved.
      model: the model of these weights.

    Raises:
      TypeError: model is not a layer.
      ValueError: the file has no golden outputs, or the model computes others; the message names
        the first layer that differs.
    """
    from fdl.debug.divergence import find_divergence

    if not isinstance(model, Layer):
        raise TypeError(
            f"load_weights: expected golden to be a model, got {described(model)}; pass the model "
            "of these weights, or leave golden out"
        )
    if X not in kept:
        raise ValueError(
            f"{file}: expected golden outputs beside the weights, got none; save the weights with "
            "save_weights(..., golden=(model, x)), or load them without golden"
        )
    found = _outputs(tree, model, jnp.asarray(kept[X]))
    wanted, got = _names_of_y(kept), _names_of_y(found)
    if wanted != got:
        raise ValueError(
            f"{file}: expected the outputs {_listed(wanted)} of the model, which were saved beside "
            f"the weights, got {_listed(got)}; load the weights into the model that they were "
            "saved from"
        )
    # A key of a trace begins with the part of the step, here "forward".
    pair = [
        {f"forward/{name.removeprefix(LAYERS)}": np.asarray(arrays[name]) for name in found}
        for arrays in ({**found, **kept}, found)
    ]
    apart = find_divergence(*pair)
    if apart:
        # The name of an output of the whole model begins with Y.
        at = "of the model" if apart.path.startswith(Y) else f"of the layer {apart.path!r}"
        raise ValueError(
            f"{file}: expected the golden outputs that were saved beside the weights, got others. "
            f"The first that differs is the output {at}: {apart.found}; load the weights into the "
            "model that they were saved from, with the same options"
        )


def _names_of_y(found: Mapping[str, Any]) -> list[str]:
    """The names of the arrays of the model's own output."""
    return sorted(name for name in found if name == Y or name.startswith(f"{Y}/"))


def _listed(names: list[str]) -> str:
    return ", ".join(name.removeprefix(PREFIX) for name in names) or "none"


def layer_outputs(model: Layer, params: Any, state: Any, x: Any) -> dict[str, Any]:
    """The arrays of the outputs of all layers by path, an inner layer before the one around it."""
    from fdl.look.representations import capture, layer_paths

    order = layer_paths(model)
    found = capture(model, "**")(params, state, x) if order else {}
    ends = {path: max(n for n, p in enumerate(order) if _inside(p, path)) for path in order}

    def rank(name: str) -> tuple[int, int]:
        path = name.partition("#")[0]
        return ends[path], -path.count("/")

    return _flat({name: found[name] for name in sorted(found, key=rank)})


def _outputs(tree: Any, model: Layer, x: jax.Array) -> dict[str, jax.Array]:
    """Samples of the outputs of all layers, then y, by their names in a file."""

    def outputs(tree: Any, x: jax.Array) -> tuple[list[Any], Any]:
        params, state = _parts(tree)
        layers = layer_outputs(model, params, state, x)
        names.extend(f"{LAYERS}{name}" for name in layers)
        return [_sample(leaf) for leaf in layers.values()], model.apply(params, state, x)[0]

    names: list[str] = []
    with jax.default_matmul_precision("highest"):  # the same on accelerators, as far as possible
        # jit sorts the keys of a dict, so the layers are a list.
        layers, y = jax.jit(outputs)(tree, x)
    return dict(zip(names, layers, strict=True)) | _flat({Y: y})


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}/")


def _flat(named: Mapping[str, Any]) -> dict[str, Any]:
    """Each leaf by its name; the leaves of an output that is a tree get their paths as well."""
    found = {}
    for name, tree in named.items():
        for path, leaf in paths.leaves(tree).items():
            found[f"{name}/{path}" if path else name] = leaf
    return found


def _sample(leaf: jax.Array) -> jax.Array:
    """At most KEPT numbers of an array, evenly spaced."""
    flat = leaf.reshape(-1)
    rows = np.linspace(0, max(flat.size - 1, 0), KEPT).astype(int)
    return flat[np.unique(rows)] if flat.size > KEPT else flat


def _parts(tree: Any) -> tuple[Any, Any]:
    """(params, state) of a run, of a dict of both, or of params alone."""
    if isinstance(tree, Mapping) and set(tree) == {"params", "state"}:
        return tree["params"], tree["state"]
    if hasattr(tree, "params") and hasattr(tree, "state"):
        return tree.params, tree.state
    return tree, {}
