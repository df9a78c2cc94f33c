"""Trains the same networks in fdl and in other libraries, in turn, and writes the tables.

    python -m benchmarks                                   everything; an hour or two
    python -m benchmarks --work lstm gru --peers fdl torch --rounds 3
    python -m benchmarks --quick                           checks that it runs; writes no tables
    python -m benchmarks --list

Each form of a library runs in a process of its own, written as the library's documentation
recommends (peers/), with the same data, shapes, batch and optimizer (work.py). All processes of a
workload exist at the same time, but only one trains at a time: in each round, they train one after
the other. fdl runs in two processes, so that its ratio to itself shows the noise. The workload
mnist-start is different: it times processes from their start, so only one exists at a time, and fdl
has no second one. Libraries that are not installed, and workloads that a library cannot do, are
listed.
"""

import argparse
import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import peers
from benchmarks.work import WORK, mnist_test
from benchmarks.worker import STARTED

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers"
QUICK = HERE.parent / "out" / "benchmarks"
TIMEOUT = 900.0  # seconds until an answer; torch.compile takes long
SECOND = "again"  # the form of fdl's second process
JAX_CACHE = "JAX_COMPILATION_CACHE_DIR"
KEEP_ALL = {  # what `fdl.use_compilation_cache` sets, for every library
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class Program(NamedTuple):
    """A library in one of its forms."""

    peer: peers.Peer
    form: str

    def __str__(self) -> str:
        return f"{self.peer.title}, {self.form}" if self.form else self.peer.title


class Process:
    """A worker (see worker.py)."""

    def __init__(self, program: Program, work: str, folder: Path, **more: str):
        environment = {key: value for key, value in os.environ.items() if key != JAX_CACHE}
        environment |= {
            "KERAS_BACKEND": "jax",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share an accelerator
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        }
        form = "" if program.form == SECOND else program.form
        command = [sys.executable, "-m", "benchmarks.worker", program.peer.name, form, work]
        self.errors = (folder / f"{program}.txt").open("w+")
        environment |= more | {STARTED: str(time.time())}
        self.process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
            bufsize=1,
        )

    def answer(self) -> dict[str, Any]:
        """The next answer; {"failed": why} if there is none."""
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.process.kill()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or ["nothing"]
        return {"failed": said[-1] if ready else f"no answer in {TIMEOUT:.0f} s"}

    def ask(self, steps: int) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def main() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    given = options()
    found = peers.found()
    if given.list:
        print("workloads:", *WORK, "\nlibraries:", *found)
        return
    programs, left_out = chosen(found, given)
    folder = QUICK if given.quick else RESULTS
    for name in given.work or WORK:
        with tempfile.TemporaryDirectory() as scratch:
            entry = measured(name, programs, given, Path(scratch))
        entry["left_out"] = left_out | entry["left_out"]
        show(name, entry)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")
    print(f"written to {folder}")
    if not given.quick:
        from benchmarks import picture, tables

        picture.main()  # first, because the page shows it
        tables.main()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=WORK, metavar="WORK", help="workloads")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="fdl torch, or torch:compiled")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each program in a round")
    parser.add_argument("--quick", action="store_true", help="2 short rounds, first forms only")
    parser.add_argument("--list", action="store_true", help="the names of workloads and peers")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = min(given.rounds, 2), 0.1
    return given


def chosen(found: dict[str, peers.Peer], given: argparse.Namespace):
    """(the programs, {a library that is left out: the reason})."""
    programs, left_out = [], {}
    for name in given.peers or found:
        name, _, form = name.partition(":")
        if name not in found:
            raise SystemExit(f"benchmarks: expected a peer, got {name!r}; --list names them")
        peer = found[name]
        if peer.missing:
            left_out[peer.title] = f"not installed: {', '.join(peer.missing)}"
            continue
        forms = (form,) if form else peer.forms[: 1 if given.quick else None]
        programs += [Program(peer, form) for form in forms]
        if name == peers.FIRST:
            programs.append(Program(peer, SECOND))
    return programs, left_out


def measured(name: str, programs: list[Program], given: argparse.Namespace, scratch: Path):
    """The content of results/peers/NAME.json."""
    from benchmarks import measure

    work = WORK[name]
    for part, array in zip("xy", work.data(np.random.default_rng(0)), strict=True):
        np.save(scratch / f"{part}.npy", array)
    form = starts if work.kind == "start" else rounds
    rows, left_out, versions = form(name, programs, given, scratch)
    facts = {"machine": measure.machine(), "versions": versions, "rounds": given.rounds}
    facts |= {key: getattr(work, key) for key in ("kind", "batch", "dtype", "optimizer")}
    return facts | {"rows": rows, "left_out": left_out}


def rounds(name: str, programs: list[Program], given: argparse.Namespace, scratch: Path):
    """Times training steps after the first ones, in interleaved rounds."""
    living, begun, left_out, times = {}, {}, {}, {}

    def lost(program, said):
        left_out[str(program)] = said.get("lacks") or f"failed: {said.get('failed')}"
        living.pop(program).end()

    for program in programs:
        living[program] = Process(program, name, scratch)
        begun[program] = said = living[program].answer()
        if "ms" not in said:
            lost(program, said)
    # A second measurement, because the first may include a late compilation.
    for program in list(living):
        said = living[program].ask(count(begun[program]["ms"], given.seconds / 4))
        if "ms" in said:
            begun[program]["ms"] = said["ms"]
    for number in range(given.rounds):
        order = list(living)
        for program in order[number % len(order) :] + order[: number % len(order)]:
            said = living[program].ask(count(begun[program]["ms"], given.seconds))
            if "ms" not in said:
                lost(program, said)
                continue
            times.setdefault(program, []).append(said["ms"])
    rows = []
    for program in list(living):
        end = living[program].ask(0)
        living[program].end()
        rows.append(row_of(program, times, begun[program] | end))
    return rows, left_out, merged(begun.values())


def row_of(program: Program, times: dict[Program, list[float]], facts: dict[str, Any]):
    mine = times[program]
    low, median, high = map(float, np.quantile(mine, (0.25, 0.5, 0.75)))
    kept = ("first_step_s", "first_loss", "loss", "peak_mb", "device_peak_mb")
    return {
        "library": program.peer.title,
        "form": program.form,
        "ms": median,
        "ms_low": low,
        "ms_high": high,
        "times_fdl": against_first(times, mine),
        **{key: facts.get(key) for key in kept},
    }


def starts(name: str, programs: list[Program], given: argparse.Namespace, scratch: Path):
    """Times processes from their start to a target accuracy, in interleaved rounds."""
    for part, array in zip("xy", mnist_test(), strict=True):
        np.save(scratch / f"test_{part}.npy", array)
    times: dict[tuple[Program, str], list[float]] = {}
    facts, left_out = {}, {}
    programs = [program for program in programs if program.form != SECOND]
    for number in range(given.rounds):
        for program in programs[number % len(programs) :] + programs[: number % len(programs)]:
            if str(program) in left_out:
                continue
            cache = scratch / f"cache {program} {number}"
            caches = {JAX_CACHE: str(cache), **KEEP_ALL}
            for state in ("cold", "warm")[: 2 if "jax" in loaded_by(program.peer) else 1]:
                process = Process(program, name, scratch, **caches)
                said = process.answer()
                process.end()
                if "seconds" not in said:
                    why = said.get("lacks") or f"failed: {said.get('failed')}"
                    left_out[str(program)] = why
                    break
                facts[program] = said
                times.setdefault((program, state), []).append(said["seconds"])
    rows = []
    for program in facts:
        row = {"library": program.peer.title, "form": program.form}
        for state in ("cold", "warm"):
            # A program without a cache starts in the same way each time.
            mine = times.get((program, state)) or times[program, "cold"]
            firsts = {key[0]: seconds for key, seconds in times.items() if key[1] == state}
            row |= {f"{state}_s": statistics.median(mine), f"{state}_low": min(mine)}
            row |= {f"{state}_high": max(mine)}
            row |= {f"{state}_times_fdl": against_first(firsts, mine)}
        rows.append(row | {key: facts[program][key] for key in ("steps", "accuracy", "peak_mb")})
    return rows, left_out, merged(facts.values())


def loaded_by(peer: peers.Peer) -> tuple[str, ...]:
    return ("jax", *peer.needs) if {"flax", "equinox", "haiku"} & {*peer.needs} else peer.needs


def against_first(times: dict[Program, list[float]], mine: list[float]) -> float | None:
    """The median over the rounds of `mine` divided by the times of fdl's first process."""
    first = next((p for p in times if p.peer.name == peers.FIRST and p.form != SECOND), None)
    if first is None:
        return None
    pairs = zip(mine, times[first], strict=False)
    return statistics.median(one / other for one, other in pairs)


def count(ms: float, seconds: float) -> int:
    """The number of steps that take about `seconds` seconds, at `ms` for each step."""
    return max(1, round(seconds / (ms / 1e3)))


def merged(facts: Any) -> dict[str, str]:
    versions: dict[str, str] = {}
    for each in facts:
        versions |= each.get("versions", {})
    return versions


def show(name: str, entry: dict[str, Any]) -> None:
    """Prints a table of one workload."""
    columns = {
        "ms": ("ms", "ms_low", "ms_high", "times_fdl", "first_step_s", "first_loss", "loss"),
        "cold_s": ("cold_s", "warm_s", "cold_times_fdl", "warm_times_fdl", "steps", "accuracy"),
    }
    print(f"\n{name}")
    for row in entry["rows"]:
        wanted = (*columns["ms" if "ms" in row else "cold_s"], "peak_mb")
        numbers = [f"{key} {row[key]:.4g}" for key in wanted if row.get(key) is not None]
        print(f"  {row['library']} {row['form']}".ljust(24), "  ".join(numbers), flush=True)
    for program, why in entry["left_out"].items():
        print(f"  {program}: left out, {why}")


if __name__ == "__main__":
    main()
