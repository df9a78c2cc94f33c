"""What every benchmark needs: paired timings, facts about the machine, JSON files and tables."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def paired(
    first: Callable[[], Any],
    second: Callable[[], Any],
    pairs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Times two programs in turn: A, B, then B, A, and so on, after one warm-up of each program.

    With `clock=time.process_time`, a time is the processor time of all cores, which other programs
    on the machine disturb less. Both callables must wait for their results.

    Returns the median and the quartiles of the ratios A / B of all pairs, and the best time of each
    program in seconds.
    """
    first(), second()
    ratios, times_a, times_b = [], [], []
    for number in range(pairs):
        if number % 2:
            b, a = seconds(second, clock), seconds(first, clock)
        else:
            a, b = seconds(first, clock), seconds(second, clock)
        ratios.append(a / b)
        times_a.append(a)
        times_b.append(b)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": median,
        "ratio_low": low,
        "ratio_high": high,
        "seconds": min(times_a),
        "seconds_other": min(times_b),
        "pairs": pairs,
    }


def seconds(program: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The time of one call in seconds."""
    begun = clock()
    program()
    return clock() - begun


GENERATION = ("cpu family", "model", "CPU part")  # lines of /proc/cpuinfo, on x86 and on ARM


class OthersBusy:
    """A context that measures how many cores the other programs of the machine keep busy.

    `cores` is read from /proc/stat, and is 0 on systems without that file.
    """

    cores = 0.0

    def __enter__(self) -> "OthersBusy":
        self.begun, self.own, self.all = time.perf_counter(), time.process_time(), _busy_seconds()
        return self

    def __exit__(self, *_: Any) -> None:
        passed = time.perf_counter() - self.begun
        others = _busy_seconds() - self.all - (time.process_time() - self.own)
        self.cores = max(0.0, others / passed)


def _busy_seconds() -> float:
    """The seconds in which a core of the machine was not idle, summed over the cores."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """The machine and the versions of the software."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        # Processors of one name may be of different generations.
        "generation": " ".join(f"{part} {facts[part]}" for part in GENERATION if part in facts),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def report(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Prints rows as a table, and writes rows, facts and machine to results/name.json."""
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[i]) for row in [columns, *cells]) for i in range(len(columns))]
    for row in [columns, ["-" * width for width in widths], *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), **facts, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"on {machine()}; written to results/{name}.json")


def arguments(text: str) -> argparse.ArgumentParser:
    """A parser with the first line of a module's docstring as its description."""
    return argparse.ArgumentParser(description=text.splitlines()[0])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
