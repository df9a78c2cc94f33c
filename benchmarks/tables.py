"""Writes RESULTS.md and the ratios of the README from results/*.json, so no number is typed."""

import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the tables of optimizers and of workloads

from benchmarks.work import WORK
from tests.optim.optimizers.test_optimizers import OPTIMIZERS

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- begin: benchmarks/tables.py -->", "<!-- end -->"


def main() -> None:
    RESULTS.write_text(results())
    measured = ratios()
    if measured is None:
        return
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{measured}{END}{after}")


def ratios() -> str | None:
    """The README's comparison of fdl with other libraries; None until it is measured."""
    networks = {
        "perceptron-32": "a perceptron 784-32-32-10",
        "perceptron-512": "a perceptron 784-512-512-10",
        "lenet": "a LeNet-like convolution network",
    }
    entries = peers_of("training")
    if not networks.keys() <= entries.keys():
        return None
    shown = ("torch", "Flax Linen", "Equinox")
    lines = [f"| network | {' | '.join(shown)} |", "|---|---|---|---|"]
    for name, network in networks.items():
        fastest = fastest_forms(entries[name])
        cells = [ratio_or_dash(fastest.get(library)) for library in shown]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    on = described(entries["lenet"]["machine"])
    return "\n".join([f"Time of a training step, divided by fdl's, on {on}:", "", *lines]) + "\n"


def machine() -> str:
    return described(load("fit_overhead")["machine"])


def described(on) -> str:
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
        "percent from run to run, so the tables show ratios of times within one run. Tables were "
        "measured on processors of different generations, so compare times within a table only. If "
        "a program is compared with itself, the ratio shows the noise.",
        section("Accuracy", accuracy()),
        section("The compiled loop", overhead()),
        section("Other libraries", peers()),
        section("Optimizers", optimizers()),
        section("Convolution and pooling", convolutions()),
        section("Sweeps", sweeps()),
        section("Layers", layers()),
        section("Matrix products", products()),
        section("Depth", depth()),
        section("Decoding", decoding()),
        section("Import", imports()),
        section("The page of a recorded run", replay()),
    ]
    return "\n\n".join(parts) + "\n"


def replay():
    found = load("replay")
    lines = [
        "A run of 100 records of a network with four hidden layers, as a page of `fdl.look.replay` "
        "that plays in headless Chromium without a GPU (`benchmarks/replay.py`; it needs "
        "Playwright and Chromium). Every point is shown after each of the layers. The slowest "
        "tenth of the frames comes at the last rate or below it:",
        "",
        "| points | window | page, MB | frames per second | slowest tenth |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['points']} | {row['window']} | {row['megabytes']:.1f} | {row['fps']:.0f} | "
            f"{row['slow_fps']:.0f} |"
        )
    text = [
        f"At its default cadence, `record` spends {each['own']:.1%} of the time of a run of "
        f"{each['seconds']:.0f} s at the records, by its own clock; the run took "
        f"{each['more']:.0%} longer with it (quartiles {each['low']:.0%} to {each['high']:.0%}), "
        "with the compilation of its programs."
        for each in found["cost"]
    ]
    return "\n".join([*lines, "", " ".join(text)])


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
    parts = ("value", "gradient by x", "gradient by w")
    lines = [
        "x @ w, as layers compute it (`fdl/ops/products.py`): CPU time divided by that of "
        "`jnp.matmul` with the same arrays, and in brackets billions of operations in a second of "
        "CPU time (`benchmarks/products.py`):",
        "",
        f"| x | w | dtype | {' | '.join(parts)} |",
        "|---|---|---|---|---|---|",
    ]
    for row in load("products")["rows"]:
        cells = (f"{row[part]:.2f} ({row[f'{part}, GFLOP/s']:.0f})" for part in parts)
        lines.append(f"| {row['x']} | {row['w']} | {row['dtype']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def layers():
    found = load("layers")
    lines = [
        "A step of one layer: forward pass, gradients with respect to weights and input, and an "
        "update of both; the time of fdl, in a compiled loop, divided by that of torch "
        f"{found['torch']}, eager (`benchmarks/layers.py`, median of interleaved pairs):",
        "",
        "| layer | x | fdl / torch | quartiles | fdl, ms |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(found["rows"], key=lambda row: row["ratio"]):
        lines.append(
            f"| {row['layer']} | {row['x']} | {row['ratio']:.2f} | {row['low']:.2f} to "
            f"{row['high']:.2f} | {row['ms']:.3g} |"
        )
    return "\n".join(lines)


def peers():
    """Time, memory and losses of fdl and of other libraries."""
    entries, starts = peers_of("training", "sweep"), peers_of("start")
    if not entries and not starts:
        return "Not measured yet: `python -m benchmarks` measures it."
    versions = {}
    for entry in (*entries.values(), *starts.values()):
        versions |= entry["versions"]
    lines = [
        "`python -m benchmarks` trains the same networks (`benchmarks/work.py`), each library in a "
        "process of its own and written as its documentation recommends (`benchmarks/peers/`), in "
        "interleaved rounds: "
        f"{', '.join(f'{name} {each}' for name, each in sorted(versions.items()))}. Of the forms "
        "of torch (eager, channels last, compiled), the summary shows the fastest.",
    ]
    if (RESULTS.parent / "peers.png").exists():
        lines += ["", "![The time of a step of each library, divided by fdl's](peers.png)"]
    lines += ["", *summary(entries)] if entries else []
    lines += ["", *of_starts(starts)] if starts else []
    lines += ["", *details(entries)] if entries else []
    missing = left_out(entries | starts)
    return "\n".join([*lines, *([""] if missing else []), *missing])


def summary(entries):
    """A row for each workload, and a column for each library: the time of a step over fdl's."""
    libraries = list(dict.fromkeys(lib for e in entries.values() for lib in fastest_forms(e)))
    others = [library for library in libraries if library != "fdl"]
    lines = [
        "Time of a step, divided by fdl's; and fdl's time divided by that of the fastest other "
        "library. The column `fdl` compares two processes of fdl, which shows the noise:",
        "",
        f"| workload | fdl, ms | fdl | {' | '.join(others)} | fdl / fastest |",
        "|---" * (len(others) + 4) + "|",
    ]
    for name, entry in entries.items():
        fastest = fastest_forms(entry)
        again = next((row for row in entry["rows"] if row["form"] == "again"), None)
        cells = [ratio_or_dash(again), *(ratio_or_dash(fastest.get(lib)) for lib in others)]
        found = [fastest[library]["times_fdl"] for library in others if library in fastest]
        best = f"{1 / min(found):.2f}" if found else "-"
        ms = significant(fastest["fdl"]["ms"])
        lines.append(f"| {name} | {ms} | {' | '.join(cells)} | {best} |")
    return lines


def of_starts(entries):
    lines = [
        "From the start of a process to a test accuracy of 97 % on MNIST (784-512-10), with "
        "imports, compilation and evaluation; cold and warm: without and with the programs in "
        "JAX's compilation cache:",
        "",
        "| library | cold, s | warm, s | cold / fdl | warm / fdl | steps | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for entry in entries.values() for row in entry["rows"]):
        lines.append(
            f"| {title(row)} | {row['cold_s']:.2f} | {row['warm_s']:.2f} | "
            f"{row['cold_times_fdl']:.2f} | {row['warm_times_fdl']:.2f} | {row['steps']} | "
            f"{row['peak_mb']:.0f} |"
        )
    return lines


def details(entries):
    lines = [
        "All programs. First step: from the start of the process to the end of its first step. "
        "Losses: of the first step, and the mean of the steps after it:",
        "",
        "| workload | library | ms per step | quartiles | first step, s | peak MB | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        for row in entry["rows"]:
            quartiles = f"{significant(row['ms_low'])} to {significant(row['ms_high'])}"
            lines.append(
                f"| {name} | {title(row)} | {significant(row['ms'])} | {quartiles} | "
                f"{row['first_step_s']:.1f} | {row['peak_mb']:.0f} | {row['first_loss']:.3g}, "
                f"{row['loss']:.3g} |"
            )
    return lines


def left_out(entries):
    """The missing programs and the reasons, each pair once, with its workloads."""
    reasons = {}
    for name, entry in entries.items():
        for program, why in entry["left_out"].items():
            reasons.setdefault((program, why), []).append(name)
    if not reasons:
        return []
    return ["Left out:", ""] + [
        f"- {program}: {why} ({', '.join(names)})" for (program, why), names in reasons.items()
    ]


def peers_of(*kinds):
    """What `python -m benchmarks` measured, by workload, in the order of WORK."""
    files = {file.stem: file for file in (HERE / "results" / "peers").glob("*.json")}
    found = {name: json.loads(files[name].read_text()) for name in WORK if name in files}
    return {name: entry for name, entry in found.items() if entry["kind"] in kinds}


def fastest_forms(entry):
    """The row of each library, in its fastest form."""
    fastest = {}
    for row in entry["rows"]:
        held = fastest.get(row["library"])
        if row["form"] != "again" and (held is None or row["ms"] < held["ms"]):
            fastest[row["library"]] = row
    return fastest


def title(row):
    return f"{row['library']}, {row['form']}" if row["form"] else row["library"]


def ratio_or_dash(row):
    return "-" if row is None else f"{row['times_fdl']:.2f}"


def significant(ms):
    """Three digits, without an exponent."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


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
        "| tokens | us with the cache | us with a full pass | largest difference |",
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
