"""Compares each optimizer of fdl with the same one of optax, on a small classifier of digits.

The hyper-parameters are those of the tests, and differ from their defaults.
"""

import statistics
import sys
import time
from pathlib import Path

import jax

import fdl

sys.path.append(str(Path(__file__).parents[1]))  # for the table of optimizers in tests

from tests.optim import against_optax as against
from tests.optim.optimizers.test_optimizers import OPTIMIZERS

PAIRS = 15
COLUMNS = "update, ULPs", "float32", "one ULP more", "float64", "time"


def show(names=None):
    """Explains the columns, and prints a line for each test case with a twin in optax.

    `names` selects optimizers or test cases; None means all.
    """
    cases = {name: case for name, case in OPTIMIZERS.items() if case.theirs is not None}
    kinds = {name: name.rstrip("0123456789").rstrip("_") for name in cases}
    unknown = set(names or []) - {*cases, *kinds.values()}
    if unknown:
        raise SystemExit(
            f"--optimizers: expected names from the tests, got {', '.join(sorted(unknown))}; "
            f"choose from {', '.join(dict.fromkeys(kinds.values()))}"
        )
    print(
        f"{against.STEPS} steps of a small network on digits, with options that are not defaults\n"
        "  update, ULPs  largest difference between the updates of fdl and optax, for the same\n"
        "                parameters, gradients and state, in units in the last place of the\n"
        "                largest value\n"
        "  float32       difference between the total displacements of the parameters in a run\n"
        "                of fdl and a run of optax, divided by the length of the displacement\n"
        "  one ULP more  the same for two runs of optax that start one ULP apart\n"
        "  float64       the same as float32, but in float64, and with tanh instead of ReLU\n"
        f"  time          of a training step, divided by optax's; the median of {PAIRS} pairs\n"
    )
    width = max(map(len, cases))
    print(" " * width + "".join(f"{column:>14}" for column in COLUMNS))
    for name, case in cases.items():
        if not names or name in names or kinds[name] in names:
            row = "".join(f"{each:14.3g}" for each in measured(name, case))
            print(f"{name:{width}}{row}", flush=True)


def measured(name, case):
    """The values of the five columns."""
    pair = against.pair_of(name, case)
    ours, theirs = ({name: each} for each in pair[:2])
    problem = against.digits()
    start = {name: case.start(problem.params)}
    ulps, _ = against.update_distances({name: pair}, problem)[name]
    mine, other = (against.displacements(each, problem) for each in (ours, theirs))
    there = other(start)
    free = against.displacement_distance(mine(start), there)
    chaos = against.displacement_distance(other(against.nudged(start)), there)
    ratio = time_ratio(lambda: mine(start), lambda: other(start))
    with jax.enable_x64(True):
        problem = against.digits(fdl.tanh, "float64")
        start = {name: case.start(problem.params)}
        ends = [against.displacements(each, problem)(start) for each in (ours, theirs)]
        smooth = against.displacement_distance(*ends)
    return ulps, free, chaos, smooth, ratio


def time_ratio(first, second):
    """The median of time of `first` / time of `second`, over pairs of runs in alternating order."""
    ratios = []
    for number in range(PAIRS):
        pair = [first, second][:: -1 if number % 2 else 1]
        seconds = {program: seconds_of(program) for program in pair}
        ratios.append(seconds[first] / seconds[second])
    return statistics.median(ratios)


def seconds_of(program):
    begun = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - begun
