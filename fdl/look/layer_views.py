"""The compiled part of `record`: what is taken from a network for a few chosen examples.

A piece is what is recorded at one step.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import described, is_number
from fdl.core.compilation import weak_jit
from fdl.core.layer import Layer
from fdl.look.chosen_examples import SURFACE, Chosen
from fdl.look.measurements import spaced, units_of
from fdl.look.representations import capture, layer_paths
from fdl.ops.numerics import wide
from fdl.typing import Params, State

INPUT = "(input)"  # the path of the input of the network
# The largest numbers of:
FEATURES = 256  # features of a layer that the projection and the readout use
LAYERS, WEIGHTS = 24, 24  # layers, and arrays of weights
UNITS = 64  # heat maps in a piece
SIDE = 32  # rows and columns of an image of weights
SAMPLE = 4096  # weights of an array from which its speed is computed
STRIP = 32  # examples whose activations are kept


def view_of(
    model: Any, patterns: list[str], some: Chosen, params: Params, state: State, before: Any
) -> tuple[Callable[[Params, State], dict[str, Any]], dict[str, Any]]:
    """A compiled function (params, state) -> the arrays of a piece, and their description.

    The description is a dict for `about.json`.

    Args:
      model, patterns: the arguments `model` and `layers` of `record`.
      some: the chosen examples.
      params, state: the network is run once with these, to find its layers.
      before: the description from an earlier session, whose layers are used; or None.
    """
    look = _looking(model, patterns)
    outputs = _outputs(look, params, state, some.x)
    first = {INPUT: some.x, **outputs}
    order = layer_paths(model) if isinstance(model, Layer) and model.children else list(outputs)
    layers = _layers(first) if before is None else [each["path"] for each in before["layers"]]
    missing = [path for path in layers if path not in first]
    if missing:
        raise ValueError(
            f"record: expected the layer {missing[0]!r} of the recording that is continued, got "
            f"layers {', '.join(outputs)}; choose another folder for another model"
        )
    count = max(1, min(8, UNITS // len(layers)))
    weights = _weights(params, order)
    grid = some.grid() if some.kind == "plane" else None
    pixels = some.pixels() if some.kind == "image" else None

    def view(params: Params, state: State, x: Any, grid: Any, pixels: Any) -> dict[str, Any]:
        found, y = look(params, state, x)
        found, surface, maps = {INPUT: x, **found}, jnp.zeros(0), dict.fromkeys(layers)
        if grid is not None:
            maps, y_grid = look(params, state, grid)
            maps, surface = {INPUT: grid, **maps}, _surface(y_grid)
        arrays = paths.leaves(params)
        return {
            "layers": {path: _of_layer(found[path], maps[path], pixels, count) for path in layers},
            "predicted": _predicted(y, some.classes),
            "images": [_image(arrays[path]) for path in weights],
            "samples": [_sample(arrays[path]) for path in weights],
            "surface": surface,
        }

    # Few examples run through this program, so its compilation takes longer than its calls.
    program, given = weak_jit(once=True)(view), (some.x, grid, pixels)
    program.compile_ahead(params, state, *given)
    made = program.eval_shape(params, state, *given)
    in_order = {path: made["layers"][path] for path in layers}  # `eval_shape` sorted them
    about = {**some.about(), **_about(in_order, made["images"], weights, order, count)}
    return lambda params, state: program(params, state, *given), about


def _about(
    layers: dict[str, Any], images: list[Any], weights: dict[str, Any], order: list[str], count: int
) -> dict[str, Any]:
    """The layers and the weights of a recording, for `about.json`.

    Args:
      layers: path -> the shapes of what the compiled function returns.
      images: the shapes of the images of weights.
      weights: path -> shape.
      order: the paths of all layers, in the order of the network.
      count: the most units of a layer that are shown.
    """
    shown = [
        {
            "path": path,
            "order": _place(path.partition("#")[0], order),
            "shown": spaced(layer["units"].shape[1], count).tolist(),
            **{name: list(layer[name].shape) for name in ("units", "heat", "activations")},
        }
        for path, layer in layers.items()
    ]
    drawn = [
        {"path": path, "shape": list(shape), "image": list(image.shape), "order": home}
        for (path, shape), image, home in zip(
            weights.items(), images, [_home(path, order) for path in weights], strict=True
        )
    ]
    return {"layers": shown, "weights": drawn}


def _looking(model: Any, patterns: list[str]) -> Callable[..., tuple[dict[str, Any], Any]]:
    """A function (params, state, x) -> ({path: output}, output of the model)."""
    if not isinstance(model, Layer):

        def plain(params: Params, state: State, x: Any) -> tuple[dict[str, Any], Any]:
            found = _arrays(model(params, state, x), len(x))
            return found, list(found.values())[-1]

        return plain
    if not layer_paths(model):  # a single layer

        def single(params: Params, state: State, x: Any) -> tuple[dict[str, Any], Any]:
            y, _ = model.apply(params, state, x)
            return {model.name: y}, y

        return single
    look = capture(model, *patterns)

    def whole(params: Params, state: State, x: Any) -> tuple[dict[str, Any], Any]:
        y, _ = model.apply(params, state, x)
        return _arrays(look(params, state, x), len(x)), y

    return whole


def _arrays(outputs: Any, length: int) -> dict[str, Any]:
    """The outputs that are one array [N, ...] of numbers."""
    if not isinstance(outputs, dict) or not outputs:
        raise ValueError(
            "record: expected model to be a network, or a function (params, state, x) -> {path: "
            f"output}}, got {described(outputs)} from it; return a dict of arrays [N, ...]"
        )
    fine = {
        path: h
        for path, h in outputs.items()
        if hasattr(h, "dtype") and h.shape[:1] == (length,) and (is_number(h) or h.dtype == bool)
    }
    if not fine:
        raise ValueError(
            f"record: expected an output [{length}, ...] of at least one layer, got none in "
            f"{', '.join(outputs)}; choose layers whose outputs have the examples as first axis"
        )
    return fine


def _outputs(look: Any, params: Params, state: State, x: Any) -> dict[str, Any]:
    """The outputs of all layers in the order of the network; `jit` alone would sort them."""
    order: list[str] = []

    def ordered(params: Params, state: State, x: Any) -> dict[str, Any]:
        found, _ = look(params, state, x)
        order[:] = found
        return found

    outputs = weak_jit(once=True)(ordered)(params, state, x)
    return {path: outputs[path] for path in order}


def _layers(outputs: dict[str, Any]) -> list[str]:
    """The paths of the layers to keep, at most LAYERS, evenly spaced.

    A layer is left out if its output is a positive multiple of the output of the layer before it.
    """
    kept: list[str] = []
    before: np.ndarray = np.zeros((0, 0), np.float32)
    for path, h in outputs.items():
        values = np.asarray(h, np.float32).reshape(len(h), -1)
        values = values / (np.abs(values).max() or 1)
        same = values.shape == before.shape and np.allclose(values, before, rtol=0, atol=1e-6)
        if not same:
            kept.append(path)
        before = values
    return [kept[place] for place in spaced(len(kept), LAYERS)]


def _weights(params: Params, order: list[str]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of at most WEIGHTS arrays with two or more axes, in the order of the layers."""
    found = {path: np.shape(leaf) for path, leaf in paths.leaves(params).items()}
    kept = sorted((path for path in found if len(found[path]) > 1), key=lambda p: _home(p, order))
    return {kept[place]: found[kept[place]] for place in spaced(len(kept), WEIGHTS)} if kept else {}


def _home(path: str, order: list[str]) -> int:
    """The place of the innermost layer that an array of weights belongs to; -1 if there is none."""
    while path := path.rpartition("/")[0]:
        if path in order:
            return _place(path, order)
    return -1


def _place(path: str, order: list[str]) -> int:
    return order.index(path) if path in order else -1


def _of_layer(h: Any, on_grid: Any, pixels: Any, count: int) -> dict[str, Any]:
    """What a piece needs of a layer whose output is h [N, ...].

    The heat map of a unit is its output over the plane, or, for images, the covariance of its
    output with each pixel.
    """
    units = units_of(h)
    few = spaced(units.shape[1], count)
    heat = jnp.zeros((len(few), 0))
    if on_grid is not None:
        maps = units_of(on_grid)[:, few].T.reshape(len(few), SURFACE, SURFACE)
        heat = maps[:, ::2, ::2].reshape(len(few), -1)
    if pixels is not None:
        heat = (units[:, few] - units[:, few].mean(0)).T @ pixels.astype(units.dtype) / len(units)
    rows = h.reshape(len(h), -1)
    features = rows[:, spaced(rows.shape[1], FEATURES)].astype(units.dtype)
    strip = units[spaced(len(units), STRIP)][:, few].T
    return {"features": features, "units": units, "heat": heat, "activations": strip}


def _predicted(y: Any, classes: int) -> Any:
    """The predicted class [N]; -1 if the output has no number for each class."""
    y = y.reshape(len(y), -1)
    if y.shape[1] == 1 and classes == 2:
        return (y[:, 0] > 0).astype(jnp.int32)
    if y.shape[1] < max(classes, 2):
        return jnp.full(len(y), -1, jnp.int32)
    return y.argmax(1).astype(jnp.int32)


def _surface(y: Any) -> Any:
    """[2, P]: at each point of the grid, the class with the largest output, and its lead.

    The lead is tanh(d / 2), where d is the largest output minus the second largest.
    """
    y = y.reshape(len(y), -1).astype(wide(y.dtype))
    y = jnp.concatenate([-y / 2, y / 2], 1) if y.shape[1] == 1 else y
    top = jnp.sort(y, 1)
    return jnp.stack([y.argmax(1).astype(y.dtype), jnp.tanh((top[:, -1] - top[:, -2]) / 2)])


def _image(w: Any) -> Any:
    """w [..., Out] as a matrix of at most SIDE rows and columns, evenly spaced."""
    w = w.reshape(-1, w.shape[-1])
    return w[spaced(len(w), SIDE)][:, spaced(w.shape[1], SIDE)].astype(wide(w.dtype))


def _sample(w: Any) -> Any:
    return w.ravel()[spaced(w.size, SAMPLE)].astype(wide(w.dtype))
