"""What the processes of a run on many hosts agree on, so that all of them take the same steps.

Each process runs the same program. A compiled step waits for all of them, so they must call the
same steps in the same order. On one process, these functions have no effect.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fdl.data.arrays import fingerprint
from fdl.data.streaming import Source
from fdl.optim.description import description
from fdl.train.hooks import Plan
from fdl.train.run import Run, many

LONGEST = 240  # the largest number of bytes in a text that the processes exchange


def lists_of_all(run: Run, lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Joins the lists of all processes by name; on one process, `lists` itself.

    All processes have the same names. The lists contain only what JSON can.
    """
    if not many(run):
        return lists
    text = json.dumps(lists).encode()
    longest = int(_of_all(np.int32(len(text))).max())
    texts = _of_all(np.frombuffer(text.ljust(longest), np.uint8))
    found = [json.loads(bytes(each)) for each in texts]
    return {name: [each for one in found for each in one[name]] for name in lists}


def of_the_first(run: Run, number: int) -> int:
    """The `number` of the first process; if the run is on one process only, `number` itself."""
    return int(_of_all(np.int32(number))[0]) if many(run) else number


def of_any(run: Run, text: str) -> str:
    """The first non-empty text of all processes, at most 240 bytes; on one process, `text`."""
    if not many(run):
        return text
    given = text.encode()[:LONGEST]
    texts = _of_all(np.frombuffer(given.ljust(LONGEST, b"\0"), np.uint8))
    found = [bytes(each).rstrip(b"\0").decode(errors="ignore") for each in texts]
    return next(filter(None, found), "")


def check_same_plan(plan: Plan) -> None:
    """Raises unless all processes of the run have the same plan."""
    if not many(plan.run):
        return
    data = plan.data
    named = {
        "step": int(plan.run.step),
        "seed": int(plan.run.seed),
        "last step": plan.last,
        "batch_size": plan.batch_size,
        "microbatch": plan.microbatch,
        "record_every": plan.record_every,
        "optimizer": description(plan.optimizer),
        "names of the values": plan.names,
        "layout": plan.run.layout,
        "data": data.fingerprint() if isinstance(data, Source) else fingerprint(data),
    }
    digests = [hashlib.sha256(repr(value).encode()).digest()[:8] for value in named.values()]
    found = _of_all(np.frombuffer(b"".join(digests), np.uint32).reshape(len(named), 2))
    for number, (name, value) in enumerate(named.items()):
        other = [process for process, each in enumerate(found) if (each != found[0])[number].any()]
        if other:
            raise ValueError(
                f"fit: expected the same {name} on all {len(found)} processes, got different "
                f"ones on processes 0 and {other[0]} (here: {repr(value)[:200]}); start every "
                "process with the same program, data and checkpoints"
            )


@contextlib.contextmanager
def deaths_explained() -> Iterator[None]:
    """If a computation fails, adds a note to the error that another process may have died."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            error.add_note(
                f"fit: expected all {jax.process_count()} processes to take the step, got this "
                "error; if another process died, see its output, and start all of them again: with "
                "fdl.checkpoints, they continue"
            )
        raise


def _of_all(value: Any) -> np.ndarray:
    """The values of all P processes, [P, ...]."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))
