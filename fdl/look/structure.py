"""A table of the layers of a network, and the number of layers with weights."""

import math
from typing import Any

import jax
import numpy as np

from fdl import paths
from fdl.core.layer import Layer, abstract, as_layer
from fdl.data.arrays import as_arrays
from fdl.look.cost import bill, check_shaped, named
from fdl.look.notebook_table import Table, aligned
from fdl.look.representations import capture, layer_paths


def summary(model: Layer, x: Any, *, costs: bool = False, **inputs: Any) -> Table:
    """A table of the layers of a network: path, output shape and number of parameters.

    Args:
      model: a network.
      x: the input of the network: an array, a `jax.ShapeDtypeStruct`, or a pytree of these. Only
        shapes and dtypes are used.
      costs: True adds three columns of `bill`: the FLOPs of the forward and of the backward pass in
        training, and the bytes that are kept between the two passes.
      inputs: the model's extra inputs, by name.

    Returns:
      Text with a line for each layer and a line of totals. A notebook shows it without `print`.

    Raises:
      PathError: the model cannot take x.

    Example:
      >>> from fdl.models import mlp
      >>> print(summary(mlp([5], 3), jax.ShapeDtypeStruct((2, 4), "float32")))
      path       output  parameters
      flatten_0  [2, 4]           0
      dense_0    [2, 5]          25  b [5], w [4, 5]
      relu_0     [2, 5]           0
      dense_1    [2, 3]          18  b [3], w [5, 3]
      43 parameters (172 bytes) in 2 layers with weights
    """
    model = as_layer(model)
    check_shaped("summary", x)
    costly = bill(model, x, **inputs).layers if costs else {}
    model = named(model)
    x, inputs = abstract(as_arrays((x, inputs)))
    params, state = jax.eval_shape(model.init, jax.random.key(0), x, **inputs)
    look = capture(model, "**")
    outputs = jax.eval_shape(
        lambda params, state, x, inputs: look(params, state, x, **inputs), params, state, x, inputs
    )
    arrays = paths.leaves(params)
    names = ("forward FLOPs", "backward FLOPs", "kept bytes") if costs else ()
    rows = [("path", "output", "parameters", *names, "")]
    for path in layer_paths(model):
        inside = {name: leaf for name, leaf in arrays.items() if name.startswith(f"{path}/")}
        direct = [
            f"{name.rpartition('/')[2]} {list(leaf.shape)}"
            for name, leaf in inside.items()
            if name.rpartition("/")[0] == path
        ]
        shapes = " ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(outputs.get(path, ())))
        numbers = (f"{number:,}" for number in costly.get(path, ())[1:])
        rows.append((path, shapes, f"{_size(inside):,}", *numbers, ", ".join(direct)))
    front = aligned([row[:-1] for row in rows], left=2)
    lines = [f"{text}  {row[-1]}".rstrip() for text, row in zip(front, rows, strict=True)]
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays.values())
    layers = f"{depth(params)} layer{'s' * (depth(params) != 1)} with weights"
    lines.append(f"{_size(arrays):,} parameters ({size:,} bytes) in {layers}")
    return Table("\n".join(lines))


def depth(params: Any) -> int:
    """The number of layers with weights.

    Args:
      params: a pytree of arrays. Each node that has arrays directly below it is counted as a layer.

    Returns:
      The number of these nodes, an int.

    Example:
      >>> depth({"dense_0": {"w": 1.0, "b": 0.0}, "dense_1": {"w": 1.0, "b": 0.0}})
      2

    Source: Chollet 2021, "Deep Learning with Python", section 1.1.4, the depth of a model.
    """
    return len({path.rpartition("/")[0] for path in paths.leaves(params)})


def _size(arrays: dict[str, Any]) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in arrays.values())
