"""Shows results of `compare_optimizers` as a table, or as a figure with a panel per optimizer.

In the shapes, R is the number of learning rates, S is the number of seeds, and P is the number of
records of a training run.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.look import figure_parts
from fdl.look.notebook_table import Table
from fdl.train import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEHIND: dict[str, Any] = {"color": "0.85", "linewidth": 0.9, "zorder": 1}


def comparison_table(found: Mapping[str, Sweep]) -> Table:
    """A table with a line for each optimizer at its best learning rate.

    Args:
      found: name -> `Sweep`, from `fdl.compare_optimizers`.

    Returns:
      Text with these columns:

      - the best learning rate
      - the loss and each metric at the last record (of the validation data if there are any), as
        mean ± standard deviation over seeds
      - the mean number of steps to the target; or, if some seeds did not reach it, the number of
        seeds that did. This column is missing if there is no target.
      - the number of networks that diverged, over all rates and seeds
      - microseconds per step

    Raises:
      ValueError: found is not a result of `fdl.compare_optimizers`, or is empty.

    Example:
      >>> curves = {"loss": np.array([[[3.0, 2.0]], [[3.0, 0.5]], [[3.0, np.nan]]])}
      >>> settings = [{"learning_rate": rate} for rate in (0.1, 1.0, 10.0)]
      >>> tried = Sweep(
      ...     settings, seeds=np.array([0]), steps=np.array([5, 10]), curves=curves,
      ...     monitor="loss", best=1, run=None, stopped=np.full(3, 10),
      ...     steps_to_target=np.array([[np.inf], [10.0], [np.inf]]),
      ...     seconds_per_step=2e-5, compile_seconds=1.5)
      >>> print(comparison_table({"sgd": tried}))
      optimizer  best rate  loss  steps to target  diverged  us/step
      sgd                1   0.5               10    1 of 3       20
    """
    _check_found("comparison_table", found)
    rows = [{"optimizer": name, **_row(each)} for name, each in found.items()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first, *rest = widths
    lines = [
        "  ".join(
            [row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], rest, strict=True))]
        )
        for row in cells
    ]
    return Table("\n".join(lines))


def rate_sensitivity(found: Mapping[str, Sweep]) -> "Figure":
    """The monitored loss or metric of each optimizer at the last record, over the learning rate.

    Args:
      found: name -> `Sweep`, from `fdl.compare_optimizers`.

    Returns:
      A figure with a panel for each optimizer, which also shows the lines of all other optimizers
      in grey. The line is the mean over seeds, and the band around it ranges from the smallest to
      the largest value. A ring marks the best rate. A cross at the edge of the panel marks a rate
      whose mean is outside the panel, or at which the value of a seed is not finite.

    Raises:
      ValueError: found is not a result of `fdl.compare_optimizers`, or is empty.

    Example:
      >>> curves = {"loss": np.array([[[3.0, 2.0]], [[3.0, 0.5]], [[3.0, np.nan]]])}
      >>> settings = [{"learning_rate": rate} for rate in (0.1, 1.0, 10.0)]
      >>> tried = Sweep(
      ...     settings, seeds=np.array([0]), steps=np.array([5, 10]), curves=curves,
      ...     monitor="loss", best=1, run=None, stopped=np.full(3, 10), steps_to_target=None,
      ...     seconds_per_step=2e-5, compile_seconds=1.5)
      >>> rate_sensitivity({"sgd": tried}).axes[0].get_title()
      'sgd\\n0.5 at rate 1'

    Source: Schmidt, Schneider and Hennig 2021, arXiv 2007.01547, which treats tuning as part of the
    cost of an optimizer.
    """
    _check_found("rate_sensitivity", found)
    ends = {name: each.final(each.monitor) for name, each in found.items()}
    scale = _Scale(found, np.concatenate([end.mean(1) for end in ends.values()]))

    def draw(axes: "Axes", name: str, each: Sweep, colour: Any) -> None:
        _band(axes, each.rates, ends[name], colour)
        lost = ~np.isfinite(ends[name]).all(1) | scale.beyond(ends[name].mean(1))
        if lost.any():
            (crosses,) = axes.plot(each.rates[lost], np.full(lost.sum(), scale.worst), color=colour)
            crosses.set(marker="x", linestyle="", clip_on=False)
        if each.best is not None:
            (ring,) = axes.plot(each.rates[each.best], ends[name][each.best].mean(), color=colour)
            ring.set(marker="o", markersize=9, fillstyle="none")
        axes.set_xscale("log")

    behind = {name: (each.rates, ends[name].mean(1)) for name, each in found.items()}
    figure = _small_multiples("rate_sensitivity", found, behind, draw, scale)
    figure.supxlabel("learning rate", fontsize=11)
    return figure


def best_curves(found: Mapping[str, Sweep]) -> "Figure":
    """The monitored loss or metric of each optimizer over training, at its best learning rate.

    Args:
      found: name -> `Sweep`, from `fdl.compare_optimizers`.

    Returns:
      A figure with a panel for each optimizer, which also shows the lines of all other optimizers
      in grey. The line is the mean over seeds, and the band around it ranges from the smallest to
      the largest value. If an optimizer diverged at all rates, its panel says so.

    Raises:
      ValueError: found is not a result of `fdl.compare_optimizers`, or is empty.

    Example:
      >>> curves = {"loss": np.array([[[3.0, 2.0]], [[3.0, 0.5]]])}
      >>> settings = [{"learning_rate": rate} for rate in (0.1, 1.0)]
      >>> tried = Sweep(
      ...     settings, seeds=np.array([0]), steps=np.array([5, 10]), curves=curves,
      ...     monitor="loss", best=1, run=None, stopped=np.full(2, 10), steps_to_target=None,
      ...     seconds_per_step=2e-5, compile_seconds=1.5)
      >>> best_curves({"sgd": tried}).axes[0].lines[0].get_xydata().tolist()
      [[5.0, 3.0], [10.0, 0.5]]
    """
    _check_found("best_curves", found)
    best = {
        name: each.curves[each.monitor][each.best].T  # [P, S]
        for name, each in found.items()
        if each.best is not None
    }
    values = np.concatenate([curve.mean(1) for curve in best.values()] or [np.ones(1)])
    scale = _Scale(found, values)

    def draw(axes: "Axes", name: str, each: Sweep, colour: Any) -> None:
        if name in best:
            _band(axes, each.steps, best[name], colour)
        else:
            place = {"transform": axes.transAxes, **figure_parts.CENTRED}
            axes.text(0.5, 0.5, "diverged at every rate", **place)

    behind = {name: (found[name].steps, curve.mean(1)) for name, curve in best.items()}
    figure = _small_multiples("best_curves", found, behind, draw, scale)
    figure.supxlabel("steps", fontsize=11)
    return figure


class _Scale:
    """The y axis of all panels. A loss is drawn up to about twice its value at the first record."""

    def __init__(self, found: Mapping[str, Sweep], values: np.ndarray):
        self.name = next(iter(found.values())).monitor
        # The values at the first record and the smallest rate, where a network has learned little.
        begun = np.array([each.curves[each.monitor][0, :, 0].mean() for each in found.values()])
        values = values[np.isfinite(values)]
        self.loss = self.name.removeprefix("val_") == "loss"
        low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
        if self.loss:
            high = min(high, 2 * np.max(begun, initial=low, where=np.isfinite(begun)))
        self.log = bool(self.loss and low > 0 and high >= 10 * low)
        room = 0.05 * (math.log(high / low) if self.log else high - low or 1.0)
        self.low, self.high = (
            (low * math.exp(-room), high * math.exp(room))
            if self.log
            else (low - room, high + room)
        )
        self.worst = self.high if self.loss else self.low

    def beyond(self, values: np.ndarray) -> np.ndarray:
        return (values > self.high) | (values < self.low)

    def set(self, axes: "Axes") -> None:
        axes.set_yscale("log" if self.log else "linear")
        axes.set_ylim(self.low, self.high)


def _small_multiples(
    caller: str,
    found: Mapping[str, Sweep],
    behind: Mapping[str, Any],
    draw: Callable[..., None],
    scale: _Scale,
) -> "Figure":
    """A figure with a panel for each optimizer.

    `draw` draws the line of one optimizer. Behind this line, the lines of all other optimizers are
    drawn in grey; `behind` is a dict of the lines of all optimizers, name -> (x, y).
    """
    columns = min(len(found), 4)
    rows = math.ceil(len(found) / columns)
    figure = figure_parts.blank(caller, max(2.8 * columns, 4.5) + 0.4, 2.3 * rows + 0.6)
    first = None
    for place, (name, each) in enumerate(found.items()):
        first = axes = figure.add_subplot(rows, columns, place + 1, sharex=first, sharey=first)
        draw(axes, name, each, "C0")
        for other, line in behind.items():
            if other != name:
                axes.plot(*line, **BEHIND)
        scale.set(axes)
        axes.set_title(_title(name, each), fontsize=10, pad=9)  # pad keeps it above the crosses
        axes.grid(color="0.93")
        below, left = place + columns >= len(found), place % columns == 0
        axes.tick_params(labelsize=8, labelbottom=below, labelleft=left)
        axes.spines[["top", "right"]].set_visible(False)
    label = scale.name.replace("val_", "validation ") + " (log scale)" * scale.log
    figure.supylabel(label, fontsize=11)
    return figure


def _band(axes: "Axes", x: Any, values: np.ndarray, colour: Any) -> None:
    """Draws values [R or P, S]: a line of their mean over seeds, and a band of their range."""
    axes.plot(x, values.mean(-1), color=colour, zorder=3)
    axes.fill_between(x, values.min(-1), values.max(-1), color=colour, alpha=0.25, linewidth=0)


def _title(name: str, each: Sweep) -> str:
    if each.best is None:
        return f"{name}\ndiverged"
    end = each.final(each.monitor)[each.best].mean()
    return f"{name}\n{end:.3g} at rate {each.rates[each.best]:.2g}"


def _row(each: Sweep) -> dict[str, str]:
    """The row of an optimizer in the table: column -> cell."""
    validated = each.monitor.startswith("val_")
    names = [name for name in each.curves if name.startswith("val_") == validated]
    names.sort(key=lambda name: name.removeprefix("val_") != "loss")
    row = {"best rate": "none" if each.best is None else f"{each.rates[each.best]:.3g}"}
    for name in names:
        cell = "diverged"
        if each.best is not None:
            ends = each.final(name)[each.best]
            cell = f"{ends.mean():.3g}"
            cell += f" ± {ends.std(ddof=1):.2g}" if len(ends) > 1 else ""
        row[name] = cell
    if each.steps_to_target is not None:
        met = np.full(1, np.inf) if each.best is None else each.steps_to_target[each.best]
        reached = np.isfinite(met)
        row["steps to target"] = (
            f"{met.mean():.0f}" if reached.all() else f"{reached.sum()} of {len(each.seeds)} seeds"
        )
    lost = each.diverged()
    row["diverged"] = f"{lost.sum()} of {lost.size}" if lost.any() else "none"
    return row | {"us/step": f"{each.seconds_per_step * 1e6:.3g}"}


def _check_found(caller: str, found: Mapping[str, Sweep]) -> None:
    named = isinstance(found, Mapping) and len(found) > 0
    if not named or not all(isinstance(each, Sweep) for each in found.values()):
        raise ValueError(
            f"{caller}: expected the result of fdl.compare_optimizers, got {found!r:.60}; pass a "
            "dict, name -> Sweep, with at least one entry"
        )
