"""Estimates the time of a training step on a cluster, for several presets, without running it.

n chips share a batch of B examples.
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from optax import GradientTransformation

from fdl.checks import check_count
from fdl.core.layer import Layer
from fdl.data import length
from fdl.distributed.presets import tensor_parallel
from fdl.look.cost import Bill, bill
from fdl.paths import leaves


class Cluster(NamedTuple):
    """Chips of one kind, in groups with fast links.

    Args:
      chips: n, the number of chips.
      flops: floating-point operations per second of one chip.
      memory: bytes of memory of one chip.
      memory_speed: bytes per second that a chip reads or writes in its memory.
      link_speed: bytes per second that a chip sends to others in its group.
      network_speed: bytes per second that a chip sends to other groups.
      group: the number of chips in a group.
      efficiency: the share of these speeds that programs reach, in (0, 1].
    """

    chips: int
    flops: float
    memory: float
    memory_speed: float
    link_speed: float
    network_speed: float
    group: int = 8
    efficiency: float = 0.5


# NVIDIA's data sheets: dense bfloat16, and one direction of NVLink and of the network card.
H100 = Cluster(8, 989e12, 80e9, 3.35e12, 450e9, 50e9)
A100 = Cluster(8, 312e12, 80e9, 2.04e12, 300e9, 25e9)


class Choice(NamedTuple):
    """A preset on a mesh, and the time and memory that a step needs.

    Args:
      preset: "data_parallel", "fsdp", "tensor_parallel" or "fsdp beside tensor_parallel".
      axes: the axes of the mesh, name -> size.
      seconds: the estimated time of a step.
      parts: the estimated seconds of "compute", of "memory" traffic, of "data" (the exchange of
        parameters and gradients) and of "model" (the exchange of activations).
      memory: the bytes of memory that a step needs on each chip.
      fits: True if a chip has that much memory.
    """

    preset: str
    axes: dict[str, int]
    seconds: float
    parts: dict[str, float]
    memory: int
    fits: bool

    @property
    def bottleneck(self) -> str:
        """The part that takes the most time."""
        return max(self.parts, key=self.parts.__getitem__)


def recommend(
    model: Layer,
    x: Any,
    optimizer: GradientTransformation,
    *,
    cluster: Cluster,
    batch_size: int,
    **inputs: Any,
) -> list[Choice]:
    """Presets that share a training step among the chips of a cluster, the fastest one first.

    Computation, memory traffic, and the exchange of parameters and gradients run at the same time.
    The exchange of activations does not overlap with them. So the time of a step is

        max(compute, memory, data) + model

    An all-reduce of S bytes over n chips sends 2 S (n - 1) / n bytes from each chip; an all-gather
    or a reduce-scatter sends half of that. The latency of messages is left out, so small networks
    on many chips are slower than the estimate.

    Args:
      model: a layer.
      x: some examples [b, ...], or their shape and dtype. Nothing is computed.
      optimizer: from fdl or optax.
      cluster: the chips, for example `fdl.distributed.H100._replace(chips=64)`.
      batch_size: B, the number of examples in a step, on all chips together.
      inputs: the model's extra inputs by name, as for `fdl.look.bill`.

    Returns:
      A list of `Choice`s; those that do not fit into memory come last.

    Raises:
      OptionError: batch_size is not an int >= 1.
      ValueError: no preset can share the batch among the chips.
      Any error of `fdl.look.bill`.

    Example:
      >>> import fdl, jax.numpy as jnp
      >>> model, x, optimizer = fdl.mlp([4096, 4096], 10), jnp.ones((1, 784)), fdl.adam(1e-3)
      >>> best, *others = recommend(model, x, optimizer, cluster=H100, batch_size=2**16)
      >>> best.preset, best.axes, best.bottleneck, best.fits
      ('data_parallel', {'data': 8}, 'compute', True)

    Source: Rajbhandari et al. 2019, arXiv 1910.02054, section 7, for the bytes of data parallel
    training and fsdp; Narayanan et al. 2021, arXiv 2104.04473, section 3.2, for tensor parallel.
    """
    remedy = "pass the number of examples on all chips together"
    batch_size = check_count("recommend", "batch_size", batch_size, remedy)
    cost = bill(model, x, optimizer, **inputs)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x, **inputs)
    share = batch_size / length(x)
    found = []
    for size in range(1, min(cluster.group, cluster.chips) + 1):
        rows = cluster.chips // size
        if cluster.chips % size == 0 and batch_size % rows == 0:
            try:
                pairs = _Pairs(0, 0) if size == 1 else _pairs(cost, params, size)
            except ValueError:  # no pair of layers has a width that `size` chips can share
                continue
            for cut in (False, True):
                found.append(_choice(cost, share, cluster, rows, size, pairs, cut))
    if not found:
        raise ValueError(
            f"recommend: expected a batch that {cluster.chips} chips can share, got {batch_size} "
            "examples; choose a multiple of the number of chips"
        )
    return sorted(found, key=lambda choice: (not choice.fits, choice.seconds))


class _Pairs(NamedTuple):
    """Bytes of the parameters that tensor parallelism splits, and of the outputs to all-reduce."""

    cut: int
    outputs: int


def _pairs(cost: Bill, params: Any, size: int) -> _Pairs:
    """The `_Pairs` for tensor parallelism over `size` chips and the examples of the bill."""
    mesh: Any = AbstractMesh((size,), ("model",))  # without devices: only the rules are read
    layout = tensor_parallel(mesh, params)
    shapes, cut, outputs = leaves(params), 0, 0
    for path, spec in layout.rules:
        leaf = shapes[path]
        cut += leaf.size * leaf.dtype.itemsize
        layer = cost.layers.get(path.removesuffix("/w"))
        if spec == PartitionSpec("model", None) and layer is not None:
            tokens = layer.forward_flops // (2 * leaf.size)
            outputs += tokens * leaf.shape[1] * leaf.dtype.itemsize
    return _Pairs(cut, outputs)


def _choice(
    cost: Bill, share: float, cluster: Cluster, rows: int, size: int, pairs: _Pairs, cut: bool
) -> Choice:
    """The estimate for a mesh data=rows, model=size; `cut` is True if fsdp splits parameters."""
    whole = cost.parameter_bytes
    held = whole - pairs.cut + pairs.cut / size
    state = cost.optimizer_bytes * held / max(whole, 1)
    kept = cost.total.kept_bytes * share / (rows * size)
    parts = rows if cut else 1
    flops = (cost.total.forward_flops + cost.total.backward_flops) * share
    fast = cluster.link_speed
    between = fast if cluster.chips <= cluster.group else cluster.network_speed
    # Two all-gathers and a reduce-scatter, or one all-reduce.
    sent = (3 if cut else 2) * held * (rows - 1) / rows
    added = 4 * pairs.outputs * share / rows * (size - 1) / size  # two all-reduces
    speeds = {
        "compute": (flops / cluster.chips, cluster.flops),
        "memory": (2 * held + 2 * (held + state) / parts + 2 * kept, cluster.memory_speed),
        "data": (sent, between),
        "model": (added, fast),
    }
    seconds = {name: each / speed / cluster.efficiency for name, (each, speed) in speeds.items()}
    memory = int((2 * held + state) / parts + kept)
    names = [name for name, used in (("fsdp", cut), ("tensor_parallel", size > 1)) if used]
    return Choice(
        preset=" beside ".join(names) or "data_parallel",
        axes={"data": rows} | ({"model": size} if size > 1 else {}),
        seconds=max(seconds["compute"], seconds["memory"], seconds["data"]) + seconds["model"],
        parts=seconds,
        memory=memory,
        fits=memory <= cluster.memory,
    )
