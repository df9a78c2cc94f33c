"""Draws every schedule of fdl.optim in one picture, over 115 steps.

python examples/schedules.py                        writes out/schedules.png
python examples/schedules.py --out somewhere.png    writes it there
"""

import argparse
import math
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from fdl import optim

CYCLE = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 40}

# The panels of the picture: title -> {label of a line: schedule}.
PANELS = {
    "constant_schedule": {"": optim.constant_schedule(0.5)},
    "linear_schedule": {"": optim.linear_schedule(1.0, 0.1, 70, transition_begin=15)},
    "polynomial_schedule": {
        f"power {power}": optim.polynomial_schedule(1.0, 0.0, power, 100) for power in (0.5, 2, 4)
    },
    "exponential_decay": {
        "": optim.exponential_decay(1.0, 20, 0.5),
        "staircase": optim.exponential_decay(1.0, 20, 0.5, staircase=True),
    },
    "inverse_time_decay": {"": optim.inverse_time_decay(1.0, 20, 1.0)},
    "inverse_sqrt_schedule": {"": optim.inverse_sqrt_schedule(1.0, 15)},
    "cosine_decay_schedule": {
        "": optim.cosine_decay_schedule(1.0, 100),
        "exponent 3": optim.cosine_decay_schedule(1.0, 100, exponent=3.0),
    },
    "piecewise_constant_schedule": {
        "": optim.piecewise_constant_schedule(1.0, {30: 0.5, 60: 0.5, 90: 0.2})
    },
    "piecewise_interpolate_schedule": {
        kind: optim.piecewise_interpolate_schedule(kind, 1.0, {30: 0.4, 60: 2.0, 90: 0.1})
        for kind in ("linear", "cosine")
    },
    "linear_onecycle_schedule": {"": optim.linear_onecycle_schedule(100, 1.0)},
    "cosine_onecycle_schedule": {"": optim.cosine_onecycle_schedule(100, 1.0)},
    "warmup_constant_schedule": {"": optim.warmup_constant_schedule(0.0, 1.0, 20)},
    "warmup_cosine_decay_schedule": {
        "": optim.warmup_cosine_decay_schedule(0.0, 1.0, 15, 100, end_value=0.1)
    },
    "warmup_exponential_decay_schedule": {
        "": optim.warmup_exponential_decay_schedule(0.0, 1.0, 15, 25, 0.5)
    },
    "warmup_stable_decay_schedule": {"": optim.warmup_stable_decay_schedule(0.0, 1.0, 10, 65, 25)},
    "sgdr_schedule": {"": optim.sgdr_schedule([CYCLE, {**CYCLE, "decay_steps": 70}])},
    "join_schedules": {
        "": optim.join_schedules(
            [optim.constant_schedule(0.3), optim.cosine_decay_schedule(1.0, 70)], [30]
        )
    },
}


def draw(panels=PANELS, steps=115):
    """A figure with a panel for each schedule; all panels have the same axes."""
    columns = 3
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 1.65 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True)
    counts = np.arange(steps)
    for axes, (name, lines) in zip(grid.flat, panels.items(), strict=False):
        for label, schedule in lines.items():
            axes.plot(counts, jax.vmap(schedule)(counts), label=label or None)
        axes.set_title(name, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(ylim=(0, 1.05), xlim=(0, steps - 1), yticks=[0, 0.5, 1], xticks=[0, 50, 100])
        if any(lines):
            axes.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for column, axes in enumerate(grid[-2]):
        if not grid[-1][column].get_visible():
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("step")
    return figure


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", default="out/schedules.png", help="(default: %(default)s)")
    out = Path(options.parse_args().out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(out, dpi=80)
    print(f"{sum(map(len, PANELS.values()))} lines in {len(PANELS)} panels: {out}")


if __name__ == "__main__":
    main()
