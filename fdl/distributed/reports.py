"""What a layout costs: bytes on each device, and what the devices send each other in a step."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.data.arrays import to_jax
from fdl.distributed.collectives import Collective, collectives
from fdl.train.program import one_step
from fdl.train.result import Result
from fdl.train.run import Run, beside
from fdl.typing import Batch, Objective


class Report(NamedTuple):
    """What a training step of a run costs on each device.

    Args:
      params: bytes of the parameters.
      optimizer: bytes of the optimizer's state.
      activations: bytes of everything else that a step needs at its peak, such as activations and
        gradients, as the compiler counts them.
      collectives: what the devices send each other in a step, the largest total first.
      whole: a dict, path -> bytes, the largest first. It lists the parameters that are whole on
        every device, although one of their axes could be split over all devices.
    """

    params: int
    optimizer: int
    activations: int
    collectives: list[Collective]
    whole: dict[str, int]

    def __repr__(self) -> str:
        lines = [
            f"{name:12} {size:>14,} bytes on each device"
            for name, size in zip(self._fields[:3], self[:3], strict=True)
        ]
        lines += [
            f"{each.kind:20} {each.times:4} x {each.bytes:>12,} bytes among {each.devices} devices"
            for each in self.collectives
        ]
        if self.whole:
            most = ", ".join(f"{path} {size:,}" for path, size in [*self.whole.items()][:5])
            lines.append(f"whole on every device: {most} bytes")
        return "\n".join(lines)

    def sent(self, kind: str | None = None) -> int:
        """The bytes of all collectives of a step, or only of the collectives of one kind."""
        return sum(c.bytes * c.times for c in self.collectives if kind in (None, c.kind))


def report(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run | Result,
    data: Batch,
    *,
    batch_size: int = 128,
    microbatch: int | None = None,
) -> Report:
    """What a training step costs on each device, read from the compiled program. No step is taken.

    Args:
      objective, optimizer, data, batch_size, microbatch: as in `fit`; data are arrays.
      run: a run from `place`, or a result of `fit`.

    Returns:
      A `Report`; its text is a table.

    Raises:
      As `fit` does.

    Example:
      >>> import fdl, jax.numpy as jnp
      >>> from fdl.distributed import data_parallel, mesh, place
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run = place(fdl.start(jnp.zeros(6), fdl.sgd(0.1)), data_parallel(mesh(data=1)))
      >>> found = report(objective, fdl.sgd(0.1), run, jnp.ones((8, 6)), batch_size=4)
      >>> found.params, found.collectives
      (24, [])
    """
    now = run.run if isinstance(run, Result) else run
    data = beside(to_jax(data, "report"), now)
    settings: dict[str, Any] = {"objective": objective, "optimizer": optimizer}
    settings |= {"batch_size": batch_size, "microbatch": microbatch}
    program = one_step.lower(now, data, **settings).compile()
    memory = program.memory_analysis()
    return Report(
        params=_bytes(now.params),
        optimizer=_bytes(now.opt_state),
        activations=memory.temp_size_in_bytes,
        collectives=collectives(program.as_text()),
        whole=_whole(now),
    )


def _bytes(tree: Any) -> int:
    """The bytes of the arrays of a tree on one device."""
    return sum(_of_one(leaf) for leaf in jax.tree.leaves(tree))


def _of_one(leaf: Any) -> int:
    if not isinstance(leaf, jax.Array):
        return int(np.asarray(leaf).nbytes)
    part = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(part) * leaf.nbytes // max(leaf.size, 1)


def _whole(run: Run) -> dict[str, int]:
    if run.layout is None:
        return {}
    devices = run.layout.mesh.size
    found = {
        path: leaf.nbytes
        for path, leaf in paths.leaves(run.params).items()
        if leaf.sharding.is_fully_replicated and any(size % devices == 0 for size in leaf.shape)
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1])) if devices > 1 else {}
