"""The page of `fdl.look.replay`: frames per second in headless Chromium, size, cost of recording.

A network of four hidden layers learns two spirals. At 101 steps, `record` keeps the output of every
layer for all examples. The page then plays in headless Chromium, which draws without a GPU.
"""

import shutil
import tempfile
import time
from pathlib import Path

import jax
import measure
import numpy as np

import fdl

SIZES = {"1400 x 900": (1400, 900), "390 x 844": (390, 844)}
EXAMPLES = {"300": 300, "10,000": 10_000}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long the page plays")
    options = parser.parse_args()
    rows = []
    for name, examples in EXAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            page = recorded(Path(folder), examples)
            for size, (width, height) in SIZES.items():
                found = played(page, width, height, options.seconds)
                megabytes = page.stat().st_size / 1e6
                rows.append({"points": name, "window": size, "megabytes": megabytes, **found})
    measure.report("replay", rows, cost=[cost(8_000, pairs=3), cost(24_000, pairs=3)])


def spirals(examples):
    """Points [N, 2] on two spirals, and labels [N]."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, examples).astype(np.int32)
    angle = 9 * np.sqrt(rng.random(examples))
    x = np.stack([np.cos(angle + np.pi * y), np.sin(angle + np.pi * y)], 1) * angle[:, None] / 9
    return (x + rng.normal(0, 0.02, x.shape)).astype(np.float32), y


def problem(examples, width=16):
    x, y = spirals(examples)
    hidden = {f"hidden_{n}": fdl.chain(fdl.dense(width), fdl.tanh) for n in range(4)}
    model = fdl.chain(**hidden, output=fdl.dense(2))
    params, _ = model.init(jax.random.key(0), x)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.adam(0.01)
    return model, objective, optimizer, fdl.start(params, optimizer), (x, y)


def recorded(folder, examples):
    """The page of a run: a piece before the first step, and one at each of 100 records."""
    model, objective, optimizer, run, (x, y) = problem(examples)
    hook = fdl.look.record(folder / "run", model, x, y, every=1, examples=examples)
    how = {"batch_size": 128, "steps": 1000, "record_every": 10, "watch": [hook]}
    fdl.fit(objective, optimizer, run, (x, y), **how)
    return fdl.look.replay(folder / "run", folder / "run.html", pieces=101)


def cost(steps, pairs):
    """What `record` costs by default, as a fraction of the time of a run of `steps` steps.

    `own` is the time that the recorder itself measures at the records, the largest of all runs.
    `more` is the extra time of a run with the recorder, including the compilation of its programs:
    the median of the pairs of runs, with the quartiles `low` and `high`. `seconds` is the median
    time of a run without it.
    """
    model, objective, optimizer, run, (x, y) = problem(10_000, 256)
    how = {"batch_size": 128, "steps": steps, "record_every": steps // 100}
    own, without, more = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + pairs):
            hook, times = fdl.look.record(f"{folder}/{number}", model, x, y), []
            for watch in ([], [hook]):
                begun = time.perf_counter()
                fdl.fit(objective, optimizer, run, (x, y), watch=watch, **how)
                times.append(time.perf_counter() - begun)
            own.append(hook.spent / times[1])
            without.append(times[0])
            more.append(times[1] / times[0] - 1)
    # The first pair also compiles the training steps.
    low, median, high = np.quantile(more[1:], [0.25, 0.5, 0.75])
    spread = {"more": float(median), "low": float(low), "high": float(high)}
    return {"seconds": float(np.median(without[1:])), "own": max(own), **spread}


def played(page, width, height, seconds):
    """Frames per second while the page plays: the mean, and the slowest tenth of the frames."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path)
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.goto(f"file://{page}")
        shown.wait_for_timeout(500)
        shown.evaluate(
            """() => {
              window.times = [];
              const note = (time) => { window.times.push(time); requestAnimationFrame(note); };
              document.getElementById("play").click();
              requestAnimationFrame(note);
            }"""
        )
        shown.wait_for_timeout(1000 * seconds)
        times = np.diff(shown.evaluate("window.times"))
        browser.close()
    return {"fps": 1000 / float(np.mean(times)), "slow_fps": 1000 / float(np.quantile(times, 0.9))}


if __name__ == "__main__":
    main()
