"""What the pictures of `draw` are made of: panels, grids and legends."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.look.measure import principal_components

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}
BELOW: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
QUIET = "0.4"  # the grey of what is there to be looked up, not to be looked at


def blank(caller: str, width: float, height: float) -> "Figure":
    """An empty figure, in inches; the one place that says what to install.

    Example:
      >>> blank("confusion", 4.0, 3.0).get_size_inches().tolist()
      [4.0, 3.0]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{caller}: expected matplotlib, which draws, got none; pip install 'fdl[pictures]'"
        ) from error
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure


def curves(axes: "Axes", runs: Mapping[str, Any], metric: str, across: str) -> None:
    """One metric of every run over epochs or steps.

    Example:
      >>> axes = blank("curves", 4.0, 3.0).add_subplot()
      >>> curves(axes, {"": [{"step": 1, "loss": 2.0}]}, "loss", "step")
      >>> axes.lines[0].get_xydata().tolist()
      [[1.0, 2.0]]
    """
    from matplotlib.ticker import MaxNLocator

    kinds = {"training": metric, "validation": f"val_{metric}"}
    colours = _palette(max(len(runs), 2))
    ends, seen = [], []
    for number, (name, history) in enumerate(runs.items()):
        for kind, (what, key) in enumerate(kinds.items()):
            points = [(record[across], record[key]) for record in history if key in record]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            (line,) = axes.plot(x, y, color=colours[kind], label=what)
            if len(runs) > 1:
                line.set(color=colours[number], label=f"{name}, {what}")
                line.set_linestyle("-" if kind else "--")
            line.set_marker("o" if len(points) < 3 else "")
            seen += [value for value in y if math.isfinite(value)]
            ends.append(f"{y[-1]:.3g} in {what}")
    wide = bool(seen) and min(seen) > 0 and max(seen) >= 10 * min(seen)
    if metric == "loss" and wide:
        axes.set_yscale("log")
    title = f"{metric}: at the end {', '.join(ends)}" if len(runs) == 1 else metric
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epochs" if across == "epoch" else "steps")
    axes.set_ylabel(f"{metric} (log scale)" if metric == "loss" and wide else metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def gallery(
    caller: str, images: Any, said: list[str], size: float, scale: Any, wider: float = 0.2
) -> "Figure":
    """A grid of images, each about `size` inches wide, with a line or more of text above it.

    Example:
      >>> made = gallery("mistakes", np.zeros((5, 2, 3)), list("abcde"), 1.0, {"cmap": "gray"})
      >>> [axes.get_title() for axes in made.axes]
      ['a', 'b', 'c', 'd', 'e']
    """
    columns = _columns(len(images))
    rows = math.ceil(len(images) / columns)
    tall = min(max(images.shape[1] / images.shape[2], 0.4), 2.5)
    lines = said[0].count("\n") + 1
    height = (size * tall + 0.16 * lines + 0.08) * rows + 0.5
    figure = blank(caller, max(size * columns + wider, 5.0), height)
    for place, (image, text) in enumerate(zip(images, said, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image, **scale)
        axes.set_title(text, fontsize=9, pad=3)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
    return figure


def scale_bar(figure: "Figure", scale: Mapping[str, Any], beyond: bool) -> None:
    """The scale that all images share; with pointed ends if some weights are beyond it.

    Example:
      >>> made = blank("weights", 4.0, 3.0)
      >>> _ = made.add_subplot()
      >>> scale_bar(made, {"vmin": -1, "vmax": 1, "cmap": "gray"}, True)
      >>> made.axes[1].get_ylabel()
      'weight'
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(scale["vmin"], scale["vmax"]), scale["cmap"])
    ends = "both" if beyond else "neither"
    figure.colorbar(colours, ax=figure.axes, extend=ends, shrink=0.8, aspect=30, label="weight")


def scatter(axes: "Axes", h: Any, labels: np.ndarray) -> None:
    """The plane of the two principal components, coloured by class.

    Example:
      >>> axes = blank("scatter", 4.0, 3.0).add_subplot()
      >>> scatter(axes, np.eye(2), np.array([0, 7]))
      >>> axes.get_xlabel(), [text.get_text() for text in axes.texts]
      ('component 1: 100%', ['0', '7'])
    """
    from matplotlib.patheffects import withStroke

    rows = np.asarray(h, np.float32).reshape(len(h), -1)
    if rows.shape[1] == 1:
        rows = np.concatenate([rows, np.zeros_like(rows)], axis=1)
    plane, share = map(np.asarray, principal_components(rows))
    size = min(max(4000 / len(rows), 2.0), 30.0)
    colours = _class_colours(labels)
    each = [colours[label] for label in labels.tolist()]
    points = axes.scatter(plane[:, 0], plane[:, 1], c=each, s=size, alpha=0.7, linewidths=0)
    points.set_rasterized(True)  # Else a .pdf of many examples is slow to show.
    for label in colours if len(colours) <= 10 else ():
        x, y = np.median(plane[labels == label], axis=0)
        name = axes.text(x, y, str(label), fontsize=10, weight="bold", **CENTRED)
        name.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.set_aspect("equal", "datalim")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"component 1: {share[0]:.0%}", fontsize=9)
    axes.set_ylabel(f"component 2: {share[1]:.0%}", fontsize=9)
    axes.spines[:].set_color("0.8")


def class_legend(figure: "Figure", labels: np.ndarray, columns: int) -> None:
    """A mark in its colour and a name for each class, below all panels.

    Example:
      >>> made = blank("legend", 4.0, 3.0)
      >>> class_legend(made, np.array([3, 3]), 10)
      >>> made.legends[0].texts[0].get_text()
      '3'
    """
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 8}
    colours = _class_colours(labels)
    marks = [Line2D([], [], color=colour, **look) for colour in colours.values()]
    ncols, names = min(len(marks), columns), [str(label) for label in colours]
    figure.legend(marks, names, title="class", ncols=ncols, handletextpad=0.0, **BELOW)


def heat_map(axes: "Axes", counts: np.ndarray, mistaken: np.ndarray, cell: float) -> None:
    """The cells, each `cell` points wide, and their counts in letters that fit.

    Example:
      >>> axes = blank("confusion", 4.0, 3.0).add_subplot()
      >>> heat_map(axes, np.array([[3, 1], [0, 2]]), np.array([[0, 1], [0, 0]]), 30.0)
      >>> [text.get_text() for text in axes.texts]
      ['3', '1', '2']
    """
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


def _class_colours(labels: np.ndarray) -> dict[int, Any]:
    classes = np.unique(labels).tolist()
    return dict(zip(classes, _palette(len(classes)), strict=True))


def _palette(count: int) -> list[Any]:
    """As many colours; up to 10 of them can be told apart by colour-blind eyes."""
    import matplotlib

    if count > 10:
        return list(matplotlib.colormaps["turbo"](np.linspace(0, 1, count)))
    return list(matplotlib.color_sequences["petroff10"][:count])


def _columns(count: int) -> int:
    """How many columns make a grid at least as wide as high, with few places left empty."""
    square = min(math.ceil(math.sqrt(count)), 16)
    return min(range(square, int(1.5 * square) + 1), key=lambda columns: -count % columns)
