"""What a classifier of yes and no does at every threshold, drawn. N examples."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.look import panels
from fdl.metrics import (
    exact_auc,
    exact_average_precision,
    precision_recall_curve,
    roc_curve,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def roc_curves(scores: Any, targets: Any) -> "Figure":
    """How many of the true are found, over how many of the false are taken for true.

    Args:
      scores: [N], logits or probabilities of one model; or a dict of such by the name of a model.
      targets: [N], 0 or 1.

    Returns:
      A figure: a curve for each model, with its area; guessing is the dashed diagonal.

    Raises:
      ValueError: no scores; scores or targets that `fdl.metrics.roc_curve` refuses.

    Example:
      >>> figure = roc_curves([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
      >>> figure.axes[0].get_title()
      'ROC: area 0.750'

    Source: Fawcett 2006, "An introduction to ROC analysis", section 4.
    """
    named = _by_name("roc_curves", scores)
    lines = {}
    for name, each in named.items():
        curve = roc_curve(each, targets)
        place = curve.false_positive_rate, curve.true_positive_rate
        lines[name] = (*place, f"area {exact_auc(each, targets):.3f}")
    figure, axes = _square("roc_curves", "ROC", lines)
    _guessing(axes, 0.0, 1.0)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    return figure


def precision_recall_curves(scores: Any, targets: Any) -> "Figure":
    """How many of those taken for true are, over how many of the true are found.

    Args:
      scores: [N], logits or probabilities of one model; or a dict of such by the name of a model.
      targets: [N], 0 or 1.

    Returns:
      A figure: a curve for each model, with its average precision, which is its area; guessing is
      dashed, at the share of true examples.

    Raises:
      ValueError: no scores; scores or targets that `fdl.metrics.precision_recall_curve` refuses.

    Example:
      >>> figure = precision_recall_curves({"small": [0.1, 0.4, 0.35, 0.8]}, [0, 0, 1, 1])
      >>> figure.axes[0].get_title()
      'Precision and recall of small: average precision 0.833'

    Source: Davis and Goadrich 2006, "The Relationship Between Precision-Recall and ROC Curves",
    section 2.
    """
    named = _by_name("precision_recall_curves", scores)
    lines = {}
    for name, each in named.items():
        curve = precision_recall_curve(each, targets)
        average = exact_average_precision(each, targets)
        # The last point, a precision of 1 of nothing, is by convention: the step before goes on.
        heights = np.append(curve.precision[:-1], curve.precision[-2])
        lines[name] = (curve.recall, heights, f"average precision {average:.3f}")
    figure, axes = _square("precision_recall_curves", "Precision and recall", lines)
    for line in axes.lines:
        line.set_drawstyle("steps-post")
    share = float(np.mean(np.asarray(targets) == 1))
    _guessing(axes, share, share)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    return figure


def _by_name(who: str, scores: Any) -> dict[str, Any]:
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    if not named:
        raise ValueError(f"{who}: expected scores of at least one model, got none; name each")
    if len(named) > len({_short(name) for name in named}):
        raise ValueError(f"{who}: expected names that end differently, got {len(named)}; mend them")
    return {_short(name): each for name, each in named.items()}


def _short(name: Any) -> str:
    return str(name) if len(str(name)) <= 32 else f"…{str(name)[-31:]}"


def _guessing(axes: "Axes", low: float, high: float) -> None:
    """The line of a model that knows nothing, named below its right end."""
    axes.plot([0, 1], [low, high], color=panels.QUIET, linestyle="--", linewidth=1, zorder=1)
    rising = high > low
    how: dict[str, Any] = {"ha": "right", "va": "bottom" if high < 0.1 else "top"}
    how |= {"fontsize": 9, "color": panels.QUIET, "textcoords": "offset points"}
    how |= {"rotation": 45, "rotation_mode": "anchor"} if rising else {}
    shift = (4 if rising else 0, 3 if high < 0.1 else -4)
    axes.annotate("guessing", (0.98, low + 0.98 * (high - low)), shift, **how)


def _square(who: str, what: str, lines: Mapping[str, Any]) -> tuple["Figure", "Axes"]:
    """A panel from 0 to 1 with the lines, which are (x, y, what they come to) by name."""
    figure = panels.blank(who, 5.0, 4.9)
    axes = figure.add_subplot()
    drawn = {}
    for (name, (x, y, area)), colour in zip(
        lines.items(), panels.palette(len(lines)), strict=False
    ):
        (drawn[f"{name}: {area}"],) = axes.plot(x, y, color=colour, linewidth=1.8, zorder=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.set_title(what, fontsize=11)
        panels.legend(figure, drawn)
    else:
        name, (_, _, area) = next(iter(lines.items()))
        title = f"{what} of {name}" if name else what
        apart = ": " if len(title + area) <= 56 else "\n"
        axes.set_title(f"{title}{apart}{area}", fontsize=11)
    return figure, axes
