"""One library with one workload, in a process of its own; `python -m benchmarks` starts it.

    python -m benchmarks.worker PEER FORM WORK FOLDER

FOLDER has the arrays x.npy and y.npy. The process answers in lines of JSON: first, facts about the
first steps; then, for each number that it reads, the time of a step, measured over that many steps;
after the number 0, its peak memory. For a workload of the kind "start", FOLDER also has test_x.npy
and test_y.npy, and the process reads no numbers and answers in one line.
"""

import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.work import WORK

STARTED = "BENCHMARK_STARTED"  # the environment variable for time.time() at the start
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "equinox", "dm-haiku", "keras", "torch")
# Steps between two checks of the accuracy. With one check after each pass over the data, luck would
# decide whether a library needs a whole pass more.
STEPS_TO_CHECK = 100


def main() -> None:
    name, form, work_name, folder = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**facts) -> None:
        answers.write(json.dumps(facts) + "\n")

    peer, work = peers.found()[name], WORK[work_name]
    try:
        answer(**serve(peer, form, work, Path(folder), answer))
    except peers.Lacks as error:
        answer(lacks=str(error))
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        raise


def serve(peer, form, work, folder, answer):
    module = peer.load()
    if work.network not in module.NETWORKS:
        raise peers.Lacks(f"no network {work.network!r}")
    begin = getattr(module, "sweep" if work.kind == "sweep" else "training", None)
    if begin is None:
        raise peers.Lacks("no way to train many networks at once")
    x, y = (np.load(folder / f"{part}.npy") for part in "xy")
    session = begin(work, x, y, form)
    if work.kind == "start":
        return until_target(session, work, folder)
    first = session.steps(1)
    facts = {"first_step_s": since_start(), "first_loss": first.loss}
    block = session.steps(work.checked)
    answer(**facts, loss=block.loss, ms=timed(session, 2), versions=versions(), device=device())
    for line in sys.stdin:
        count = int(line)
        if not count:
            break
        answer(ms=timed(session, count))
    return {"peak_mb": peak_mb(), "device_peak_mb": device_peak_mb()}


def timed(session, count) -> float:
    """Milliseconds for each step."""
    begun = time.perf_counter()
    block = session.steps(count)
    seconds = time.perf_counter() - begun if block.seconds is None else block.seconds
    return seconds / (block.steps or count) * 1e3


def until_target(session, work, folder):
    test = [np.load(folder / f"test_{part}.npy") for part in "xy"]
    steps, accuracy = 0, 0.0
    while accuracy < work.target and steps < 40 * STEPS_TO_CHECK:
        session.steps(STEPS_TO_CHECK)
        steps += STEPS_TO_CHECK
        accuracy = float(session.accuracy(*test))
    return {
        "seconds": since_start(),
        "steps": steps,
        "accuracy": accuracy,
        "peak_mb": peak_mb(),
        "versions": versions(),
        "device": device(),
    }


def since_start() -> float:
    return time.time() - float(os.environ[STARTED])


def versions() -> dict[str, str]:
    """The versions of those packages in PACKAGES, and of scikit-learn, that are imported."""
    names = {"dm-haiku": "haiku"}
    used = [name for name in (*PACKAGES, "scikit-learn") if _imported(names.get(name, name))]
    return {name: metadata.version(name) for name in used}


def _imported(name: str) -> bool:
    return {"scikit-learn": "sklearn"}.get(name, name) in sys.modules


def device() -> str:
    if "jax" in sys.modules:
        return sys.modules["jax"].devices()[0].device_kind
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.get_device_name()
    return "cpu"


def peak_mb() -> float:
    """The largest resident memory of this process, in MiB.

    The kernel's own high-water mark comes first: `ru_maxrss` of a child also counts the memory of
    the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def device_peak_mb() -> float | None:
    """The largest memory on the accelerator in MiB, or None if JAX or torch does not report it."""
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats() or {}
        return stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return None


if __name__ == "__main__":
    main()
