"""Parts of the figures that `draw` makes: panels, grids, legends and colours."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.look import checks
from fdl.look.representations import principal_components

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}
BELOW: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
# Colours that readers can tell apart. Distances are measured in OKLab, a colour space in which
# distances match perception: the two closest colours are 0.18 apart. For readers without red, green
# or blue cones, the two closest colours are 0.09 apart. The first colours differ the most.
PALETTE = (
    "#3377cc",
    "#ee8811",
    "#881100",
    "#6600aa",
    "#005555",
    "#bb3399",
    "#1100ff",
    "#55aa88",
    "#dd77ff",
    "#99dd44",
    "#ee0011",
    "#eebbcc",
)
MARKS = "o^sDvPX*"  # the marker of the first 12 classes, the marker of the next 12, and so on
LETTER = 0.085  # about the width of a letter, in inches
QUIET = "0.4"  # the shade of grey of less important parts


def blank(caller: str, width: float, height: float) -> "Figure":
    """An empty figure, with its size in inches; raises ImportError if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401

        from fdl.look.notebook_figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{caller}: expected matplotlib, which draws the pictures, got none; run pip install "
            "'fdl[pictures]'"
        ) from error
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure


def curves(axes: "Axes", runs: Mapping[str, Any], metric: str, across: str) -> None:
    """Draws one metric of all runs over epochs or steps."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    kinds = {"training": metric, "validation": f"val_{metric}"}
    colours = palette(max(len(runs), 2))
    ends, seen = [], []
    for number, (name, history) in enumerate(runs.items()):
        for kind, (what, key) in enumerate(kinds.items()):
            records = [record for record in history if key in record]
            if key == metric:
                records = _without_short_end(records)
            if not records:
                continue
            x, y = ([record[name] for record in records] for name in (across, key))
            (line,) = axes.plot(x, y, color=colours[kind], label=what)
            if len(runs) > 1:
                line.set(color=colours[number], label=f"{name}, {what}")
                line.set_linestyle("-" if kind else "--")
            line.set_marker("o" if len(records) < 3 else "")
            seen += [value for value in y if math.isfinite(value)]
            ends.append((f"{y[-1]:.3g} in {what}", f"at step {records[-1]['step']:,.0f}"))
    wide = bool(seen) and min(seen) > 0 and max(seen) >= 10 * min(seen)
    if metric == "loss" and wide:
        axes.set_yscale("log")
    axes.set_title(_ending(metric, ends) if len(runs) == 1 else metric, fontsize=11)
    axes.set_xlabel("epochs" if across == "epoch" else "steps")
    axes.set_ylabel(f"{metric} (log scale)" if metric == "loss" and wide else metric)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=high - low >= 3))
    if across == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _without_short_end(records: list[Any]) -> list[Any]:
    """The records, without the last one if it is a mean over few steps and therefore noisy."""
    if len(records) < 3:
        return records
    before, last, end = (records[place]["step"] for place in (-3, -2, -1))
    return records[:-1] if end - last < (last - before) / 2 else records


def _ending(metric: str, ends: list[tuple[str, str]]) -> str:
    """The title of a panel with the curves of one run: their last values and steps."""
    if len({step for _, step in ends}) == 1:
        return f"{metric} {ends[0][1]}: {', '.join(value for value, _ in ends)}"
    title = f"{metric}: {', '.join(' '.join(end) for end in ends)}"
    return title if len(title) <= 58 else title.replace(", ", ",\n", 1)


def legend(figure: "Figure", marks: Mapping[str, Any], *, together: int = 1, **how: Any) -> None:
    """Draws a legend below all panels, with about the same number of names in each row.

    Args:
      figure: a figure that already has its final width.
      marks: name -> the matplotlib artist that the legend shows beside the name.
      together: the number of names in a group; a group stays in one row.
      how: options of `figure.legend`.
    """
    names = list(marks)
    wide = 0.5 + LETTER * max(map(len, names))
    most = max(int(figure.get_figwidth() / wide) // together, 1) * together
    rows = math.ceil(len(names) / most)
    ncols = math.ceil(len(names) / rows / together) * together
    # matplotlib fills a legend column by column, so the names are reordered to appear row by row.
    figure.set_figheight(figure.get_figheight() + 0.2 * (rows - 1))
    order = [name for column in range(ncols) for name in names[column::ncols]]
    figure.legend([marks[name] for name in order], order, ncols=ncols, **how, **BELOW)


def gallery(
    caller: str, images: Any, titles: list[str], size: float, scale: Any, wider: float = 0.2
) -> "Figure":
    """A figure with a grid of images, each about `size` inches wide and with a title above it."""
    columns = _columns(len(images))
    rows = math.ceil(len(images) / columns)
    tall = min(max(images.shape[1] / images.shape[2], 0.4), 2.5)
    lines = titles[0].count("\n") + 1
    height = (size * tall + 0.16 * lines + 0.08) * rows + 0.5
    figure = blank(caller, max(size * columns + wider, 5.0), height)
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image, **scale)
        axes.set_title(title, fontsize=9, pad=3)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
    return figure


def scale_bar(figure: "Figure", scale: Mapping[str, Any], beyond: bool) -> None:
    """Draws the colour scale of all images, with pointed ends if some weights are beyond it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
    ends = "both" if beyond else "neither"
    figure.colorbar(colours, ax=figure.axes, extend=ends, shrink=0.8, aspect=30, label="weight")


def scatter(
    axes: "Axes", h: Any, labels: np.ndarray, names: Mapping[int, str], projection: Any
) -> None:
    """Draws h in a plane, coloured by class. The plane is that of two components by default."""
    rows = np.asarray(h, np.float32).reshape(len(h), -1)
    if projection is not None:
        plane = checks.projected("representations", projection, rows)
    else:
        wide = rows if rows.shape[1] > 1 else np.concatenate([rows, np.zeros_like(rows)], axis=1)
        plane, share = map(np.asarray, principal_components(wide))
        axes.set_xlabel(f"component 1: {share[0]:.0%}", fontsize=9)
        axes.set_ylabel(f"component 2: {share[1]:.0%}", fontsize=9)
    size = min(max(4000 / len(rows), 2.0), 30.0)
    looks = _class_looks(names)
    for marker in dict.fromkeys(marker for _, marker in looks.values()):
        marked = np.isin(labels, [label for label, look in looks.items() if look[1] == marker])
        colours = [looks[label][0] for label in labels[marked].tolist()]
        style: dict[str, Any] = {"s": size, "marker": marker, "alpha": 0.8, "linewidths": 0}
        points = axes.scatter(plane[marked, 0], plane[marked, 1], c=colours, **style)
        points.set_rasterized(True)  # otherwise a viewer is slow to show a .pdf of many examples
    if len(names) <= len(PALETTE) and max(map(len, names.values())) <= 2:
        _name_classes(axes, plane, labels, names)
    axes.set_aspect("equal", "datalim")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")


def _name_classes(
    axes: "Axes", plane: np.ndarray, labels: np.ndarray, names: Mapping[int, str]
) -> None:
    """Writes each name at the median of its class, or beside the median if names would overlap."""
    from matplotlib.patheffects import withStroke

    figure: Any = axes.get_figure()
    grid = axes.get_subplotspec()
    rows, columns = (1, 1) if grid is None else grid.get_gridspec().get_geometry()
    # The approximate size of a panel in inches.
    panel = np.array([0.75 / columns, 0.7 / rows]) * figure.get_size_inches()
    unit = float((np.ptp([axes.get_xlim(), axes.get_ylim()], axis=1) / panel).max())
    middles = np.array([np.median(plane[labels == label], axis=0) for label in names])
    apart = 0.2 if max(map(len, names.values())) == 1 else 0.26
    for place, name in zip(_spread(middles / unit, apart) * unit, names.values(), strict=True):
        text = axes.text(
            float(place[0]), float(place[1]), name, fontsize=10, weight="bold", **CENTRED
        )
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _spread(places: np.ndarray, apart: float) -> np.ndarray:
    """Moves places [C, 2] until all distances are at least `apart`, in at most 200 rounds."""
    places = places.copy()
    for _ in range(200):
        still = True
        for one in range(len(places)):
            for other in range(one):
                gap = places[one] - places[other]
                distance = float(np.linalg.norm(gap))
                if distance < apart:
                    still = False
                    angle = 2.4 * one  # the direction, if two places are equal
                    away = np.array([math.cos(angle), math.sin(angle)])
                    way = gap / distance if distance > 1e-3 * apart else away
                    move = 0.51 * (apart - distance) * way
                    places[one] += move
                    places[other] -= move
        if still:
            break
    return places


def class_legend(figure: "Figure", names: Mapping[int, str]) -> None:
    """Draws a legend of the classes below all panels."""
    from matplotlib.lines import Line2D

    how: dict[str, Any] = {"linestyle": "", "markersize": 8}
    marks = {
        names[label]: Line2D([], [], color=colour, marker=marker, **how)
        for label, (colour, marker) in _class_looks(names).items()
    }
    legend(figure, marks, title="class", handletextpad=0.0)


def heat_map(axes: "Axes", counts: np.ndarray, mistaken: np.ndarray, cell: float) -> None:
    """Draws the cells of a matrix, each `cell` points wide, and the counts in a font that fits."""
    import matplotlib

    diagonal = np.eye(len(counts), dtype=bool)
    most = max(int(mistaken.max()), 1)
    cells = np.ma.masked_array(np.where(diagonal, -1, mistaken), ~diagonal & (mistaken == 0))
    shades = matplotlib.colormaps["Oranges"].with_extremes(under="0.94", bad="white")
    axes.imshow(cells, cmap=shades, vmin=0, vmax=1.2 * most)
    letters = min(10.0, 1.4 * cell / len(str(counts.max())))
    for row, column in np.argwhere(counts):
        right, count = row == column, counts[row, column]
        colour = QUIET if right else "white" if count > 0.65 * most else "black"
        axes.text(column, row, str(count), color=colour, fontsize=letters, **CENTRED)
    axes.set_xticks(np.arange(len(counts) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(counts) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.8")


def number_map(axes: "Axes", values: np.ndarray, cell: float) -> None:
    """Draws numbers in [0, 1] as cells, each `cell` points wide, and writes them in the cells."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    letters = min(9.0, cell / 2.6)
    for row, column in np.ndindex(*values.shape):
        value = float(values[row, column])
        colour = "white" if value > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", color=colour, fontsize=letters, **CENTRED)
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")


def loss_curve(axes: "Axes", places: np.ndarray, heights: np.ndarray, wide: bool) -> None:
    """Draws losses [P] between two sets of parameters; `wide` makes the scale logarithmic."""
    axes.plot(places, heights, color=PALETTE[0], linewidth=1.8)
    axes.set_yscale("log" if wide else "linear")
    axes.set_xlabel("t, from one at 0 to other at 1")
    axes.set_ylabel("loss (log scale)" if wide else "loss")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def contours(axes: "Axes", places: np.ndarray, heights: np.ndarray, wide: bool) -> None:
    """Draws the contours of heights [P, P] and their values, and marks the centre.

    `wide` puts the levels on a logarithmic scale.
    """
    from matplotlib.colors import LogNorm, Normalize

    low, high = float(heights.min()), float(heights.max())
    high = high if high > low else low + (abs(low) or 1)
    levels = np.geomspace(low, high, 13) if wide else np.linspace(low, high, 13)
    scale = (LogNorm if wide else Normalize)(low, high)
    # The first axis of heights is the first direction, which is drawn from left to right.
    axes.contourf(places, places, heights.T, levels, cmap="viridis", norm=scale)
    lines = axes.contour(places, places, heights.T, levels[1:-1], colors="white", linewidths=0.7)
    axes.clabel(lines, levels[2:-1:2], fmt="%.3g", fontsize=8)
    axes.plot(0, 0, marker="+", color="white", markersize=10, markeredgewidth=2)
    axes.set_aspect("equal")
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")


def _class_looks(names: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Class -> (colour, marker)."""
    return {
        label: (PALETTE[number % len(PALETTE)], MARKS[number // len(PALETTE) % len(MARKS)])
        for number, label in enumerate(names)
    }


def palette(count: int) -> list[Any]:
    """`count` colours. If `count` is at most 12, colour-blind readers can tell them apart too."""
    import matplotlib

    if count > len(PALETTE):
        return list(matplotlib.colormaps["turbo"](np.linspace(0, 1, count)))
    return list(PALETTE[:count])


def _columns(count: int) -> int:
    """The number of columns of a grid that is at least as wide as high and has few empty places."""
    square = min(math.ceil(math.sqrt(count)), 16)
    return min(range(square, int(1.5 * square) + 1), key=lambda columns: -count % columns)
