"""The time that `import fdl` adds to `import jax`, and how much of it is optax."""

import re
import subprocess
import sys

import measure

RUNS = 5


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    jax_alone = set(self_times("import jax"))
    rows = []
    for what in ("import jax, optax", "import jax, fdl"):
        totals = []
        for _ in range(runs):
            times = self_times(what)
            totals.append(sum(own for name, own in times.items() if name not in jax_alone) / 1000)
        rows.append({"program": what, "ms_beyond_jax": min(totals), "median_ms": median(totals)})
    measure.report("import_time", rows, runs=runs, counted="self times of modules jax lacks")


def self_times(statement):
    """The time of each module alone, in microseconds, from `python -X importtime`."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", text, re.MULTILINE)
    return {name: int(own) for own, name in lines}


def median(values):
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
