"""Layouts that are derived from the paths and shapes of a model's parameters."""

from typing import Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fdl import paths
from fdl.distributed.layouts import BATCH, Layout, layout
from fdl.ops.sharding import EXPERT

Shapes = dict[str, tuple[int, ...]]
_COLUMNS = PartitionSpec(None, "model")


def data_parallel(mesh: Mesh) -> Layout:
    """Every device holds all parameters, and a part of each batch.

    In a step, each device computes the gradient of its examples, and one all-reduce for each
    parameter adds these gradients.

    Args:
      mesh: from `fdl.distributed.mesh`, with an axis `data`.

    Returns:
      A layout, for `place`.

    Example:
      >>> from fdl.distributed import mesh
      >>> data_parallel(mesh(data=1))
      <Layout on data=1: no rules>
    """
    return layout(mesh, {})


def fsdp(mesh: Mesh, params: Any, *, beside: Layout | None = None) -> Layout:
    """Every device holds a part of each parameter, and a part of each batch.

    Each layer's parameters are gathered when the layer needs them. So each device stores only a
    part of the parameters, gradients and optimizer state: 1/8 of them if there are 8 devices. Each
    parameter is split along one axis: the longest one whose size is divisible by the number of
    devices. A parameter without such an axis is stored whole on every device.

    Args:
      mesh: from `fdl.distributed.mesh`, with an axis `data`.
      params: the parameters, or their shapes, or a run.
      beside: another layout on this mesh to combine with, such as one of `tensor_parallel`. For
        each parameter, `fsdp` then splits an axis that `beside` does not split. None means that
        parameters are split only over `data`.

    Returns:
      A layout, for `place`.

    Raises:
      ValueError: the mesh has no axis `data`.

    Example:
      >>> from fdl.distributed import mesh
      >>> import jax.numpy as jnp
      >>> fsdp(mesh(data=1), {"w": jnp.ones((3, 8))})
      <Layout on data=1: 'w': P(None, 'data')>

    Source: Rajbhandari et al. 2019, "ZeRO", arXiv 1910.02054, stage 3; Zhao et al. 2023, "PyTorch
    FSDP", arXiv 2304.11277.
    """
    check_axis("fsdp", mesh, BATCH)
    parts = mesh.shape[BATCH]
    rules = {}
    for path, shape in _shapes(params).items():
        spec = list(beside.spec(path)) if beside else []
        spec += [None] * (len(shape) - len(spec))
        free = [axis for axis, size in enumerate(shape) if not spec[axis] and size % parts == 0]
        if free:
            spec[max(free, key=shape.__getitem__)] = BATCH
        rules[path] = PartitionSpec(*spec)
    return layout(mesh, rules, batch=beside.batch if beside else None)


def tensor_parallel(mesh: Mesh, params: Any) -> Layout:
    """The devices along the mesh axis `model` share the work of each pair of dense layers.

    The first layer of a pair is split by columns and the second by rows, so that a pair needs one
    all-reduce. Pairs are found by their paths:

    - `q`, `k`, `v` and `out` of an attention layer, whose heads are split;
    - `up` (or its `gate` and `value`) and `down` of a feed-forward layer;
    - `dense_0` and `dense_1`, `dense_2` and `dense_3` and so on of a chain.

    An embedding `embed` is split by rows, so that each device holds some of the ids, and a last
    layer `head` by columns. A pair whose sizes the mesh axis does not divide is whole on every
    device, as are all other parameters.

    Args:
      mesh: from `fdl.distributed.mesh`, with an axis `model`. Its size should divide the number of
        heads; otherwise the result is the same, but with more communication.
      params: the parameters, or their shapes, or a run.

    Returns:
      A layout, for `place`.

    Raises:
      ValueError: the mesh has no axis `model`, or this axis can split no pair, no `embed` and no
        `head`.

    Example:
      >>> import fdl, jax
      >>> from fdl.distributed import mesh
      >>> params, _ = fdl.mlp([8], 4).init(jax.random.key(0), jax.numpy.ones((1, 3)))
      >>> list(tensor_parallel(mesh(model=1), params).spec("dense_0/w"))
      [None, 'model']

    Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3.
    """
    check_axis("tensor_parallel", mesh, "model")
    shapes = _shapes(params)
    rules: dict[str, PartitionSpec] = {}
    for columns, row in _pairs(shapes):
        found = _column_rules(columns, shapes) | _row_rules(row, shapes)
        if all(_divides(mesh, shapes[path], spec) for path, spec in found.items()):
            rules |= found
    for path, shape in shapes.items():
        for end, spec in (("embed/w", PartitionSpec("model", None)), ("head/w", _COLUMNS)):
            alone = f"/{path}".endswith(f"/{end}") and len(shape) == 2 and path not in rules
            if alone and _divides(mesh, shape, spec):
                rules[path] = spec
    if not rules:
        raise ValueError(
            f"tensor_parallel: expected pairs of layers whose width {mesh.shape['model']} devices "
            f"can share, got none among {', '.join(map(paths.quoted, list(shapes)[:5]))}; write "
            "rules with fdl.distributed.layout"
        )
    return layout(mesh, rules)


def expert_parallel(mesh: Mesh, params: Any, *, beside: Layout | None = None) -> Layout:
    """The devices along the mesh axis `expert` share the experts of each `mixture_of_experts`.

    Of E experts, each of the n devices holds E / n. It also holds a part of each batch: batches are
    split over `expert` too. In the forward pass, the devices send each token to the devices of its
    experts, and the outputs back: two all-to-alls for each layer, and two more in the backward
    pass. All other parameters are whole on every device, and so are the experts of a layer if n
    does not divide E.

    Args:
      mesh: from `fdl.distributed.mesh`, with an axis `expert`.
      params: the parameters, or their shapes, or a run.
      beside: another layout on this mesh to combine with, such as that of `tensor_parallel`, which
        says how the other parameters are split. To also split everything over `data`, write
        `fsdp(mesh, params, beside=expert_parallel(mesh, params))`.

    Returns:
      A layout, for `place`.

    Raises:
      ValueError: the mesh has no axis `expert`, or params have no experts whose number n divides.

    Example:
      >>> import fdl, jax
      >>> from fdl.distributed import mesh
      >>> layer = fdl.mixture_of_experts(fdl.dense(3), 4)
      >>> params, _ = layer.init(jax.random.key(0), jax.numpy.ones((2, 5, 8)))
      >>> layout = expert_parallel(mesh(data=1, expert=1), params)
      >>> layout.spec("experts/w"), layout.spec("router/w"), layout.batch
      (P('expert',), P(), ('data', 'expert'))

    Source: Lepikhin et al. 2020, "GShard", arXiv 2006.16668, section 3.2.
    """
    check_axis("expert_parallel", mesh, EXPERT)
    spec, shapes = PartitionSpec(EXPERT), _shapes(params)
    experts = [path for path in shapes if paths.matches("**/experts/**", path)]
    rules = {path: spec for path in experts if _divides(mesh, shapes[path], spec)}
    if not rules:
        raise ValueError(
            f"expert_parallel: expected a mixture_of_experts whose experts {mesh.shape[EXPERT]} "
            f"devices can share, got none among {', '.join(map(paths.quoted, list(shapes)[:5]))}; "
            "choose a number of experts that is a multiple of the number of devices"
        )
    rest = dict(beside.rules) if beside else {}
    batch = beside.batch if beside else tuple(name for name in (BATCH,) if name in mesh.axis_names)
    return layout(mesh, rules | rest, batch=(*batch, EXPERT))


def _shapes(params: Any) -> Shapes:
    params = getattr(params, "params", params)
    return {path: np.shape(leaf) for path, leaf in paths.leaves(params).items()}


def check_axis(who: str, mesh: Mesh, name: str) -> None:
    """Raises unless a mesh has an axis."""
    if name not in mesh.axis_names:
        raise ValueError(
            f"{who}: expected a mesh with an axis {name!r}, got one with "
            f"{', '.join(map(repr, mesh.axis_names))}; use fdl.distributed.mesh({name}=...)"
        )


def _pairs(shapes: Shapes) -> list[tuple[list[str], str]]:
    """(paths of layers to split by columns, path of the layer to split by rows) of each pair."""
    children: dict[str, list[str]] = {}
    for path, shape in shapes.items():
        *above, last = path.split("/")
        if last == "w" and len(shape) == 2 and above:
            children.setdefault("".join(f"{name}/" for name in above[:-1]), []).append(above[-1])
    found = []
    for parent, names in children.items():
        if {"q", "k", "v", "out"} <= {*names}:
            found.append(([f"{parent}{name}" for name in "qkv"], f"{parent}out"))
        elif "down" in names:
            gated = [f"{parent}up/{name}" for name in ("gate", "value")]
            ups = [f"{parent}up"] if "up" in names else gated
            if all(f"{up}/w" in shapes for up in ups):
                found.append((ups, f"{parent}down"))
        else:
            found += _of_chain(parent, names, shapes)
    return found


def _of_chain(parent: str, names: list[str], shapes: Shapes) -> list[tuple[list[str], str]]:
    """The pairs in a chain dense_0, dense_1, ...; the first layer of a pair feeds the second."""
    found, last = [], ""
    for name in names:
        path = f"{parent}{name}"
        if not name.startswith("dense_"):
            continue
        if last and shapes[f"{last}/w"][1] == shapes[f"{path}/w"][0]:
            found.append(([last], path))
            last = ""
        else:
            last = path
    return found


def _column_rules(layers: list[str], shapes: Shapes) -> dict[str, PartitionSpec]:
    rules = {f"{layer}/w": _COLUMNS for layer in layers}
    biases = [f"{layer}/b" for layer in layers if f"{layer}/b" in shapes]
    return rules | {path: PartitionSpec("model") for path in biases}


def _row_rules(layer: str, shapes: Shapes) -> dict[str, PartitionSpec]:
    return {f"{layer}/w": PartitionSpec("model", None)}


def _divides(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec) -> bool:
    return all(
        size % mesh.shape[name] == 0 for size, name in zip(shape, spec, strict=False) if name
    )
