"""Pictures of training, weights, images, representations, mistakes and thresholds.

Every function returns a `matplotlib.figure.Figure`, which belongs to nobody else: no window opens
and no global state changes. Save it with `figure.savefig("name.png")`; `.pdf` and `.svg` work too.

N examples, C classes; images of H rows, W columns and K colour channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.checks import check_count, is_count
from fdl.look import checks, panels
from fdl.metrics import (
    exact_auc,
    exact_average_precision,
    precision_recall_curve,
    roc_curve,
)
from fdl.paths import quoted, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = "it is how many images are drawn at most"
SIGNED = "RdBu_r"  # diverging, and safe for colour-blind eyes; so is Oranges


def learning_curves(histories: Any) -> "Figure":
    """The loss and each metric over training, in a panel of its own; several runs overlaid.

    Args:
      histories: the `history` of a result of `fit`, or a dict of such by the name of the run. Each
        record is a dict with `step` (and `epoch`, which is then the x axis), and of each metric the
        training value, the validation value under `val_...`, or both.

    Returns:
      A figure. Of one run, colours tell training from validation, and the titles say where they
      end; of several, colours tell the runs, and training is dashed. The loss is on a log scale if
      it spans a factor of 10 or more. A training value is the mean over the steps since the record
      before: that of a last record of less than half as many steps as the one before is left out.

    Raises:
      ValueError: something that is not a history, or holds no records or no metric.
    """
    runs = checks.runs(histories)
    records = [record for history in runs.values() for record in history]
    known = dict.fromkeys(name.removeprefix("val_") for record in records for name in record)
    metrics = [name for name in known if name not in ("step", "epoch", "seconds")]
    metrics.sort(key=lambda name: name != "loss")
    if not metrics:
        raise ValueError(
            "learning_curves: expected records with a metric such as loss, got "
            f"{shortened(str(list(known)), 400)}; pass result.history"
        )
    across = "epoch" if all("epoch" in record for record in records) else "step"
    columns = min(len(metrics), 3)
    rows = math.ceil(len(metrics) / columns)
    figure = panels.blank("learning_curves", 5.4 * columns, 3.6 * rows + 0.4)
    lines: dict[str, Any] = {}
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, number + 1)
        panels.curves(axes, runs, metric, across)
        lines |= {str(line.get_label()): line for line in axes.lines}
    both = any(name.endswith("validation") for name in lines)
    panels.legend(figure, lines, together=2 if both else 1)
    return figure


def weight_images(w: Any, image_shape: Sequence[int], *, count: int = 64) -> "Figure":
    """What each unit of the first layer looks for: its weights as an image, the strongest first.

    Args:
      w: [D, F], floating: the weights of F units, D = H * W * K.
      image_shape: (H, W) or (H, W, K) of the network's input, K 1 or 3.
      count: how many units at most, >= 1: those whose weights have the largest Euclidean norm.

    Returns:
      A figure: an image for each unit, its number above it, all on one symmetric scale, on which
      white is 0. The largest hundredth of the weights shown may lie beyond its ends. With K = 3 the
      channels are mixed as colours, and mid-grey is 0.

    Raises:
      ValueError: a w that does not hold such images or is not finite; a count below 1.
    """
    w = checks.finite("weight_images", "w", w)
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else (image_shape,)
    image = len(shape) > 1 and all(map(is_count, shape)) and shape[2:] in ((), (1,), (3,))
    if not image or w.ndim != 2 or not w.size or len(w) != math.prod(shape):
        raise ValueError(
            "weight_images: expected w [H * W * K, F] and image_shape (H, W) or (H, W, K) with K 1 "
            f"or 3, got w {list(w.shape)} and {shortened(str(shape), 200)}; reshape "
            "w, or give the shape of the input"
        )
    count = check_count("weight_images", "count", count, MOST)
    units = np.argsort(-np.linalg.norm(w, axis=0), kind="stable")[:count]
    images = w.T[units].reshape(len(units), *shape)
    most = float(np.abs(images).max())
    limit = float(np.quantile(np.abs(images), 0.99)) or most or 1.0
    scale = {"cmap": "gray" if shape[2:] == (3,) else SIGNED, "vmin": -limit, "vmax": limit}
    shown = np.clip((images / limit + 1) / 2, 0, 1) if shape[2:] == (3,) else images
    figure = panels.gallery("weight_images", shown, [str(unit) for unit in units], 0.95, scale, 1.7)
    few = f"{len(units)} of {w.shape[1]}" if len(units) < w.shape[1] else f"{len(units)}"
    figure.suptitle(f"Weights of {few} units, the strongest first", fontsize=12)
    panels.scale_bar(figure, scale, most > limit)
    return figure


def representations(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    readouts: Mapping[str, Mapping[str, float]] | None = None,
) -> "Figure":
    """Where each layer puts the examples, before and after training: two principal components.

    Args:
      before: path -> h [N, ...], as `capture` gives them for the parameters before training; a few
        hundred examples show most.
      after: the same paths for the parameters after training.
      labels: [N], integers: the class of each example, which is its colour (with more than 12
        classes, its colour and its mark).
      class_names: a text for each class, by its number; by default the numbers. Short ones stand
        in the panels, too: each at the median of its class, or as near as there is room.
      readouts: `{"before": {path: accuracy}, "after": {path: accuracy}}` of `linear_readout`, to
        stand above the layers that have one.

    Returns:
      A figure: a column for each path, a row before and a row after training. Axes have the same
      unit in both directions, and say which share of the variance they hold.

    Raises:
      ValueError: other paths after than before, an h that is not finite or has not a row for each
        label, a class without a name, or readouts of anything else.

    Source: Alain and Bengio 2016, arXiv 1610.01644, for readouts; Pearson 1901 for components.
    """
    rows = {"before": before, "after": after}
    labels = checks.integers("representations", "labels [N]", labels)
    readouts = readouts or {}
    checks.check_rows(rows, labels, readouts)
    names = checks.class_names("representations", labels, class_names)
    width = max(2.5 * len(before), 5.0)
    figure = panels.blank("representations", width + 0.4, 6.0)
    for row, (when, found) in enumerate(rows.items()):
        for column, (path, h) in enumerate(found.items()):
            axes = figure.add_subplot(2, len(before), row * len(before) + column + 1)
            panels.scatter(axes, h, labels, names)
            readout = readouts.get(when, {}).get(path)
            said = "" if readout is None else f"\nlinear readout {readout:.3f}"
            axes.set_title((path if len(path) <= 24 else f"…{path[-23:]}") + said, fontsize=10)
            if column == 0:
                _row_title(axes, f"{when} training")
    panels.class_legend(figure, names)
    return figure


def mistakes(
    images: Any,
    labels: Any,
    predicted: Any,
    *,
    probabilities: Any = None,
    class_names: Sequence[str] | None = None,
    count: int = 36,
) -> "Figure":
    """The images that a classifier takes for something else, the most confident mistakes first.

    Args:
      images: [N, H, W] or [N, H, W, K], K 1 or 3, any real dtype; shown from their smallest to
        their largest value.
      labels: [N], integers: the true classes.
      predicted: [N], integers: the classes that the network says.
      probabilities: [N, C], in [0, 1], of all classes, as `softmax` gives; without it the order is
        that of the data.
      class_names: a text for each class, by its number; by default the numbers.
      count: how many images at most, >= 1.

    Returns:
      A figure: a grid of images, above each its true and its predicted class, and how probable the
      network thought it. If every prediction is right, a figure that says so.

    Raises:
      ValueError: arrays of other shapes or lengths; a class below 0 or without a name;
        probabilities outside [0, 1]; a count below 1.
    """
    images = checks.finite("mistakes", "images", images)
    labels = checks.integers("mistakes", "labels [N]", labels)
    predicted = checks.integers("mistakes", "predicted [N]", predicted)
    count = check_count("mistakes", "count", count, MOST)
    confidence = checks.check_mistakes(images, labels, predicted, probabilities)
    names = checks.class_names("mistakes", np.concatenate([labels, predicted]), class_names)
    wrong = np.flatnonzero(labels != predicted)
    if confidence is not None:
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    shown = wrong[:count]
    if not len(shown):
        figure = panels.blank("mistakes", 5.0, 1.5)
        figure.text(
            0.5, 0.5, f"No mistakes: all {len(labels)} predictions are right", **panels.CENTRED
        )
        return figure
    said = [f"true {names[labels[each]]}\nsaid {names[predicted[each]]}" for each in shown]
    if confidence is not None:
        said = [f"{text}: {confidence[each]:.0%}" for text, each in zip(said, shown, strict=True)]
    low, high = float(images.min()), float(images.max())
    if images.shape[3:] == (3,):
        images = (images - low) / ((high - low) or 1)
    scale = {"cmap": "gray", "vmin": low, "vmax": high}
    longest = max(len(line) for text in said for line in text.split("\n"))
    size = max(1.15, panels.LETTER * longest + 0.1)
    figure = panels.gallery("mistakes", images[shown], said, size, scale)
    which = "" if confidence is None else ", the most confident first"
    some = f"{len(shown)} shown of " if len(shown) < len(wrong) else ""
    title = f"Mistakes: {some}{len(wrong)} in {len(labels)} predictions{which}"
    figure.suptitle(title, fontsize=12)
    return figure


def confusion(matrix: Any, class_names: Sequence[str] | None = None) -> "Figure":
    """Which class is taken for which, the mistakes in colour and the right answers in grey.

    Args:
      matrix: [C, C], whole counts, as `confusion_matrix` gives; row: the true class, column: the
        prediction.
      class_names: C texts; by default the numbers.

    Returns:
      A figure: the matrix with its counts written in, zeros left empty.

    Raises:
      ValueError: a matrix that is not square, not of counts or empty; not one name for each class.
    """
    counts = checks.counts("confusion", "a matrix [C, C] of counts", matrix)
    if counts.ndim != 2 or not counts.size or len(counts.T) != len(counts) or counts.min() < 0:
        raise ValueError(
            f"confusion: expected a matrix [C, C] of counts >= 0, got {list(counts.shape)}"
            f"{f' with {counts.min()}' if counts.size else ''}; use fdl.confusion_matrix"
        )
    classes = len(counts)
    names = [str(each) for each in (range(classes) if class_names is None else class_names)]
    if len(names) != classes:
        raise ValueError(
            f"confusion: expected {classes} class_names, got {len(names)}; give one for each row"
        )
    side = min(max(0.5 * classes, 3.0), 16.0)
    figure = panels.blank("confusion", side + 1.5, side + 1.5)
    axes = figure.add_subplot()
    mistaken = np.where(np.eye(classes, dtype=bool), 0, counts)
    cell = 72 * side / classes
    panels.heat_map(axes, counts, mistaken, cell)
    axes.set_xticks(range(classes), names, rotation=90 if 8 * max(map(len, names)) > cell else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    title = f"Mistakes: {mistaken.sum()} in {counts.sum()} predictions"
    if mistaken.any():
        true, said = np.unravel_index(mistaken.argmax(), counts.shape)
        often = f"{counts[true, said]} of {counts[true].sum()}"
        title += f"\nmost often {names[true]} is taken for {names[said]}: {often}"
    axes.set_title(title, fontsize=11)
    return figure


def _row_title(axes: Any, text: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    title = axes.annotate(text, (0, 0.5), (-30, 0), **place, **panels.CENTRED)
    title.set(rotation=90, fontsize=11, weight="bold")


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_rows(rows: Mapping[str, Any]) -> "Figure":
    """Rows of images under each other: an image, and what became of it.

    Args:
      rows: name -> images [N, H, W] or [N, H, W, K], K 1 or 3, of any real dtype; the same N in
        every row, and values in one unit: all rows are shown on the scale of the first, from its
        smallest to its largest value; what lies beyond is black or white.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ValueError: no rows or no dict, images of another shape, or rows of different lengths.

    Example:
      >>> import numpy as np
      >>> figure = image_rows({"given": np.zeros((3, 8, 8)), "rebuilt": np.ones((3, 8, 8))})
      >>> len(figure.axes)
      6
    """
    if not isinstance(rows, Mapping):
        raise ValueError(
            f"image_rows: expected a dict name -> images, got a {type(rows).__name__}; "
            "name each row"
        )
    images = {
        name: checks.finite("image_rows", f"images in {quoted(name)}", row)
        for name, row in rows.items()
    }
    for name, row in images.items():
        if row.ndim not in (3, 4) or row.shape[3:] not in ((), (1,), (3,)) or not len(row):
            raise ValueError(
                f"image_rows: expected images [N, H, W] or [N, H, W, 1 or 3] in {quoted(name)}, "
                f"got {list(row.shape)}; reshape them"
            )
    counts = {name: len(row) for name, row in images.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"image_rows: expected rows of one length, got "
            f"{shortened(str(counts or 'none'), 400)}; every column is one "
            "image and what became of it"
        )
    columns = next(iter(counts.values()))
    figure = panels.blank("image_rows", 0.9 * columns + 1.3, len(images) + 0.2)
    first = next(iter(images.values()))
    low, high = float(first.min()), float(first.max())
    for number, (name, row) in enumerate(images.items()):
        shown = np.clip((row - low) / ((high - low) or 1), 0, 1)
        for column in range(columns):
            axes = figure.add_subplot(len(images), columns, number * columns + column + 1)
            axes.imshow(shown[column], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


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
