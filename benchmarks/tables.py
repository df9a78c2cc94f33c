"""Writes RESULTS.md and the ratios of the README from results/*.json, so no number is typed."""

import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the table of optimizers in tests

from tests.optim.optimizers.test_optimizers import OPTIMIZERS

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- begin: benchmarks/tables.py -->", "<!-- end -->"


def main() -> None:
    RESULTS.write_text(results())
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{ratios()}{END}{after}")


def ratios() -> str:
    """The README's comparison with its peers."""
    rows = load("peers")["rows"]
    step = {row["library"]: row["times_fdl"] for row in rows if row["width"] == 512}
    small = {row["library"]: row["times_fdl"] for row in rows if row["width"] == 32}
    lenet = {row["library"]: row["times_fdl"] for row in load("convolution")["steps"]}
    lines = [
        "| network | torch | Flax Linen | Equinox |",
        "|---|---|---|---|",
        f"| a perceptron 784-32-32-10 | {small['torch']:.2f} | {small['Flax Linen']:.2f} | "
        f"{small['Equinox']:.2f} |",
        f"| a perceptron 784-512-512-10 | {step['torch']:.2f} | {step['Flax Linen']:.2f} | "
        f"{step['Equinox']:.2f} |",
        f"| a LeNet-like convolution network | {lenet['torch']:.2f} | {lenet['Flax Linen']:.2f} | "
        "not measured |",
    ]
    return (
        "\n".join([f"Time of a training step, divided by fdl's, on {machine()}:", "", *lines])
        + "\n"
    )


def machine() -> str:
    on = load("fit_overhead")["machine"]
    return (
        f"{on['cores']} cores of an {on['processor']}, no accelerator, jax {on['jax']}, Python "
        f"{on['python']}"
    )


def results() -> str:
    """The whole page."""
    parts = [
        "# Measured",
        "`python benchmarks/tables.py` writes this page from the files in `benchmarks/results/`, "
        f"which the scripts named below write. The machine: {machine()}. Times vary by a few "
        "percent from run to run, so the tables show ratios of times within one run. If a program "
        "is compared with itself, the ratio shows the noise.",
        section("Accuracy", accuracy()),
        section("The compiled loop", overhead()),
        section("Other libraries", peers()),
        section("Optimizers", optimizers()),
        section("Convolution and pooling", convolutions()),
        section("Sweeps", sweeps()),
        section("Matrix products", products()),
        section("Depth", depth()),
        section("Decoding", decoding()),
        section("Import", imports()),
    ]
    return "\n\n".join(parts) + "\n"


def section(title, text):
    return f"## {title}\n\n{text}"


def accuracy():
    digits, mnist = load("accuracy_digits"), load("accuracy_mnist")
    return (
        f"Test accuracy (`benchmarks/accuracy.py`): digits {digits['mean_accuracy']:.4f}, the mean "
        f"of {len(digits['rows'])} seeds, each with its own split; MNIST "
        f"{mnist['mean_accuracy']:.4f}, the mean of {len(mnist['rows'])} seeds, with a "
        f"784-512-512-10 network and dropout, after {mnist['rows'][0]['epochs']} epochs. Keras's "
        f"example of the same network reports {mnist['stated_elsewhere']:.4f}."
    )


def overhead():
    found = load("fit_overhead")
    lines = [
        "`fit` compared with a hand-written `jit` of `lax.scan` over the same steps, for a "
        f"784-H-10 network on MNIST, batch {found['batch_size']} (`benchmarks/fit_overhead.py`, "
        f"median of {found['rows'][0]['pairs']} interleaved pairs):",
        "",
        "| program | H | time / hand-written loop | quartiles | us per step |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['program']} | {row['width']} | {row['ratio']:.3f} | {row['quartiles']} | "
            f"{row['us_per_step']:.0f} |"
        )
    return "\n".join(lines)


def sweeps():
    found = load("sweeps")
    lines = [
        f"The time of a sweep of {found['members']} networks (8 rates, 8 seeds, {found['steps']} "
        "steps), divided by the time of as many calls of `fit`, one after the other, whose program "
        'is already compiled (`benchmarks/sweeps.py`). The column "steps" compares the training '
        'steps alone. The column "whole call" compares the first call of the sweep, with '
        "compilation and validation, with the calls of `fit` with validation.",
        "",
        "| network | steps | whole call | us per step of a member | us per step alone |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['network']} | {row['steps_ratio']:.2f} | {row['all_ratio']:.2f} | "
            f"{row['us_per_member_step']:.0f} | {row['solo_us']:.0f} |"
        )
    return "\n".join(lines)


def products():
    lines = [
        "The gradient of x @ w with respect to w, for x with three axes. fdl merges the first two "
        "axes. The ratio is the CPU time with merged axes, divided by the CPU time with three axes "
        "(`benchmarks/products.py`):",
        "",
        "| x | w | merged / three axes | merged, GFLOP/s | three axes, GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for row in load("products")["rows"]:
        lines.append(
            f"| {row['x']} | {row['w']} | {row['ratio']:.2f} | {row['merged_gflops']:.0f} | "
            f"{row['three_axes_gflops']:.0f} |"
        )
    return "\n".join(lines)


def peers():
    found = load("peers")
    versions = ", ".join(f"{name} {each}" for name, each in found["versions"].items() if each)
    lines = [
        f"A 784-H-H-10 network on MNIST, batch {found['batch_size']}, SGD with momentum; each "
        f"library runs the loop of its own guide (`benchmarks/peers.py`; {versions}):",
        "",
        "| library | H | us per step | time / fdl |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['library']} | {row['width']} | {row['us_per_step']:.0f} | "
            f"{row['times_fdl']:.2f} |"
        )
    return "\n".join(lines)


def optimizers():
    found = load("optimizers")
    lines = [
        f"A step of each optimizer, divided by the same step of optax, on {found['parameters']:,} "
        f"parameters in {found['leaves']} leaves (`benchmarks/optimizers.py`, median of "
        f"{found['rows'][0]['pairs']} interleaved pairs; memory: temporary and output bytes; "
        "compilation: the time to trace, lower and compile):",
        "",
        "| optimizer | time | quartiles | against itself | memory | compilation |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {with_options(row['optimizer'])} | {row['time']:.3f} | {row['quartiles']} | "
            f"{row['against_itself']:.3f} | {row['memory']:.3f} | {row['compilation']:.2f} |"
        )
    return "\n".join(lines)


def with_options(name):
    """A case of the table in words: the optimizer, and which of its options are on or off."""
    usual = {"learning_rate", "b1", "b2", "eps", "beta", "decay", "rho"}
    options = getattr(OPTIMIZERS[name].ours, "keywords", {})
    said = [key if value else f"no {key}" for key, value in options.items() if key not in usual]
    return ", ".join([re.sub("_[0-9]+$", "", name), *(each.replace("_", " ") for each in said)])


def depth():
    rows = load("depth_repeat")["rows"]
    lines = [
        "A stack of transformer blocks of width 128, made by `repeat` (`benchmarks/depth.py "
        "repeat`): the time of compilation, the time of a training step inside `lax.scan`, and "
        "this time divided by that of the unrolled form at the same depth and size (the median of "
        "interleaved pairs):",
        "",
        "| form | depth | size | compilation, s of all cores | ms per step | time / unrolled |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['program']} | {row['depth']} | {row['size']} | {row['compile_cpu_s']:.1f} | "
            f"{row['step_ms']:.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def decoding():
    found = load("decoding")
    lines = [
        f"The time of one more token in decoding, for a GPT of {found['blocks']} blocks of width "
        f"{found['width']} (`benchmarks/decoding.py`): with the cache, and with a pass over all "
        "tokens. The last column is the largest difference between the two results, divided by the "
        "largest value:",
        "",
        "| tokens before | us with the cache | us with a full pass | largest difference |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['length']} | {row['us_a_token']:.0f} | {row['us_full_pass']:.0f} | "
            f"{row['largest_error']:.0e} |"
        )
    return "\n".join(lines)


def convolutions():
    found = load("convolution")
    lines = [
        "Convolution and pooling on CPU, in float32 (`benchmarks/convolution.py`): the time of a "
        "pass inside `lax.scan`, where training runs; this time divided by that of the same pass "
        "outside of `lax.scan`; and the time of XLA's own convolution and gradients inside "
        "`lax.scan`, divided by fdl's:",
        "",
        "| form | pass | ms | inside / outside | XLA's own |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        own = "none" if row["xla_over_fdl"] is None else f"{row['xla_over_fdl']:.1f}"
        lines.append(
            f"| {row['form']} | {row['way']} | {row['ms']:.2f} | "
            f"{row['inside_over_outside']:.2f} | {own} |"
        )
    lines += [
        "",
        f"A training step of a LeNet-like network on {found['batch_size']} images of 28 x 28, with "
        "Adam. fdl runs inside a scan, and the others run in the loops that their users write. The "
        "numbers are medians of interleaved rounds. The time of torch, and so its ratio, varies "
        "most from run to run:",
        "",
        "| library | ms per step | time / fdl |",
        "|---|---|---|",
    ]
    for row in found["steps"]:
        lines.append(f"| {row['library']} | {row['ms_per_step']:.0f} | {row['times_fdl']:.2f} |")
    return "\n".join(lines)


def imports():
    rows = {row["program"]: row for row in load("import_time")["rows"]}
    return (
        f"`import fdl` adds {rows['import jax, fdl']['ms_beyond_jax']:.0f} ms to `import jax`; "
        f"{rows['import jax, optax']['ms_beyond_jax']:.0f} ms of this are optax "
        "(`benchmarks/import_time.py`)."
    )


def load(name):
    return json.loads((HERE / "results" / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
