"""Draws each library's time of a step divided by fdl's: `python -m benchmarks.picture`."""

from pathlib import Path

from benchmarks import tables

FILE = Path(__file__).parent / "peers.png"
MARKS = "osDv^<>ph"


def main() -> None:
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    entries = tables.peers_of("training", "sweep")
    if entries:
        drawn(entries).savefig(FILE, dpi=150)
        print(f"drawn to {FILE}")


def drawn(entries):
    """A line for each workload, with a mark for each library at its time divided by fdl's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure((8, 0.34 * len(entries) + 1.6), layout="constrained")
    axes = figure.subplots()
    fastest = [tables.fastest_forms(entry) for entry in entries.values()]
    libraries = sorted({library for each in fastest for library in each} - {"fdl"})
    for library, mark in zip(libraries, MARKS, strict=False):
        points = [
            (each[library]["times_fdl"], line)
            for line, each in enumerate(fastest)
            if library in each
        ]
        axes.plot(*zip(*points, strict=True), mark, label=library, markersize=6, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(entries)), entries)
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of a step, divided by fdl's; to the right of the line, fdl is faster")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


if __name__ == "__main__":
    main()
