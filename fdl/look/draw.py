"""Pictures of training, weights, images, representations, mistakes, thresholds and losses.

Each function returns a new `matplotlib.figure.Figure` that is not registered with pyplot, so no
window opens and no global state changes. Save it with `figure.savefig("name.png")`; the endings
`.pdf` and `.svg` work too.

In the shapes, N is the number of examples and C is the number of classes. Images have H rows, W
columns and K colour channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.checks import check_count, is_count
from fdl.look import checks, figure_parts
from fdl.metrics import exact_auc, exact_average_precision, precision_recall_curve, roc_curve
from fdl.paths import quoted, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNT_REMEDY = "it is the largest number of images to draw"
SIGNED = "RdBu_r"  # a diverging colour map that colour-blind readers can tell apart


def learning_curves(histories: Any) -> "Figure":
    """The loss and the metrics over training, with a panel for each of them.

    Args:
      histories: the `history` of a result of `fit`, or a dict, run name -> history. A history is a
        list of records. A record is a dict with `step`, and with training values, validation
        values, or both. The names of validation values begin with `val_`. If all records have
        `epoch`, the x axis is epochs, otherwise steps.

    Returns:
      A figure. For one run, the training values have one colour, and the validation values have
      another. The title of a panel gives the last values. For several runs, each run has a colour,
      and the training curves are dashed.

      The y axis of the loss is logarithmic if its largest value is at least 10 times its smallest.
      The training values of the last record are not drawn if this record covers less than half as
      many steps as the record before it.

    Raises:
      ValueError: histories is not a history or a dict of histories, or a history has no records or
        no metrics.
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
    figure = figure_parts.blank("learning_curves", 5.4 * columns, 3.6 * rows + 0.4)
    lines: dict[str, Any] = {}
    for number, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, number + 1)
        figure_parts.curves(axes, runs, metric, across)
        lines |= {str(line.get_label()): line for line in axes.lines}
    both = any(name.endswith("validation") for name in lines)
    figure_parts.legend(figure, lines, together=2 if both else 1)
    return figure


def weight_images(w: Any, image_shape: Sequence[int], *, count: int = 64) -> "Figure":
    """Shows the weights of each unit of the first layer as an image, the strongest units first.

    Args:
      w: [D, F], floating: the weights of F units, where D = H * W * K.
      image_shape: (H, W) or (H, W, K), the shape of the network's input, where K is 1 or 3.
      count: the largest number of units to draw, >= 1. The units whose weights have the largest
        Euclidean norm are drawn.

    Returns:
      A figure with an image for each unit; the title of the image is the index of the unit. All
      images have the same colour scale, which is symmetric about 0. The largest 1% of the absolute
      weights can be beyond the ends of the scale. The colour of 0 is white.
      If K = 3, the channels are red, green and blue, and the colour of 0 is mid-grey.

    Raises:
      ValueError: w does not have the shape [H * W * K, F], w is not finite, or count is below 1.
    """
    w = checks.finite("weight_images", "w", w)
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else (image_shape,)
    image = len(shape) > 1 and all(map(is_count, shape)) and shape[2:] in ((), (1,), (3,))
    if not image or w.ndim != 2 or not w.size or len(w) != math.prod(shape):
        raise ValueError(
            "weight_images: expected w [H * W * K, F] and image_shape (H, W) or (H, W, K) with K 1 "
            f"or 3, got w {list(w.shape)} and {shortened(str(shape), 200)}; reshape w, or pass the "
            "shape of the network's input"
        )
    count = check_count("weight_images", "count", count, COUNT_REMEDY)
    units = np.argsort(-np.linalg.norm(w, axis=0), kind="stable")[:count]
    images = w.T[units].reshape(len(units), *shape)
    most = float(np.abs(images).max())
    limit = float(np.quantile(np.abs(images), 0.99)) or most or 1.0
    scale = {"cmap": "gray" if shape[2:] == (3,) else SIGNED, "vmin": -limit, "vmax": limit}
    shown = np.clip((images / limit + 1) / 2, 0, 1) if shape[2:] == (3,) else images
    figure = figure_parts.gallery(
        "weight_images", shown, [str(unit) for unit in units], 0.95, scale, 1.7
    )
    few = f"{len(units)} of {w.shape[1]}" if len(units) < w.shape[1] else f"{len(units)}"
    figure.suptitle(f"Weights of {few} units, the strongest first", fontsize=12)
    figure_parts.scale_bar(figure, scale, most > limit)
    return figure


def representations(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    readouts: Mapping[str, Mapping[str, float]] | None = None,
    projection: Callable[[Any], Any] | None = None,
) -> "Figure":
    """Each layer's output in a plane, before and after training.

    Args:
      before: a dict, path -> h [N, ...], from `capture` with the parameters before training. A few
        hundred examples are enough.
      after: a dict with the same paths, from `capture` with the parameters after training.
      labels: [N], integers, the class of each example. Each class is drawn in a different colour.
        If there are 13 to 96 classes, each class has a different combination of colour and marker.
      class_names: a list of strings, where class c has the name `class_names[c]`. None means that
        the name of a class is its number. If there are at most 12 classes, and no name has more
        than two letters, the names are also written in the panels, at or near the median of their
        class.
      readouts: `{"before": {path: accuracy}, "after": {path: accuracy}}`, where the accuracies are
        from `linear_readout`. They are written in the titles of the panels. None means that the
        titles have no accuracies.
      projection: a function from h [N, D], a float32 array of NumPy, to [N, 2], such as
        `sklearn.manifold.TSNE().fit_transform` or `umap.UMAP().fit_transform`. None takes the first
        two principal components.

    Returns:
      A figure with a column for each path, a row for "before training" and a row for "after
      training". Both axes of a panel have the same scale. The label of an axis gives the share
      of the variance along its component.

    Raises:
      ValueError: before and after have different paths or none, there are fewer than two labels, an
        h is not finite, an h has another length than labels, a class has no name, readouts has a
        path that is not in before, or projection does not return finite numbers [N, 2].

    Source: Alain and Bengio 2016, arXiv 1610.01644, for readouts; Pearson 1901 for components.
    """
    rows = {"before": before, "after": after}
    labels = checks.integers("representations", "labels [N]", labels)
    readouts = readouts or {}
    checks.check_rows(rows, labels, readouts)
    names = checks.class_names("representations", labels, class_names)
    width = max(2.5 * len(before), 5.0)
    figure = figure_parts.blank("representations", width + 0.4, 6.0)
    for row, (when, found) in enumerate(rows.items()):
        for column, (path, h) in enumerate(found.items()):
            axes = figure.add_subplot(2, len(before), row * len(before) + column + 1)
            figure_parts.scatter(axes, h, labels, names, projection)
            readout = readouts.get(when, {}).get(path)
            score = "" if readout is None else f"\nlinear readout {readout:.3f}"
            axes.set_title((path if len(path) <= 24 else f"…{path[-23:]}") + score, fontsize=10)
            if column == 0:
                _row_title(axes, f"{when} training")
    figure_parts.class_legend(figure, names)
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
    """The images that a classifier gets wrong; the most confident predictions come first.

    Args:
      images: [N, H, W] or [N, H, W, K], where K is 1 or 3, in any real dtype. The colour scale
        ranges from the smallest to the largest value of all images.
      labels: [N], integers >= 0, the true classes.
      predicted: [N], integers >= 0, the predicted classes.
      probabilities: [N, C] in [0, 1], for example from `softmax`. None means that the mistakes are
        drawn in the order of the data.
      class_names: a list of strings, where class c has the name `class_names[c]`. None means that
        the name of a class is its number.
      count: the largest number of images to draw, >= 1.

    Returns:
      A figure with a grid of images. The title of an image gives its true class, its predicted
      class and, if probabilities are given, the probability of the prediction. If there are no
      mistakes, the figure says so.

    Raises:
      ValueError: an array has a wrong shape or length, images or probabilities are not finite, a
        class is below 0 or has no name, a probability is outside [0, 1], or count is below 1.
    """
    images = checks.finite("mistakes", "images", images)
    labels = checks.integers("mistakes", "labels [N]", labels)
    predicted = checks.integers("mistakes", "predicted [N]", predicted)
    count = check_count("mistakes", "count", count, COUNT_REMEDY)
    confidence = checks.check_mistakes(images, labels, predicted, probabilities)
    names = checks.class_names("mistakes", np.concatenate([labels, predicted]), class_names)
    wrong = np.flatnonzero(labels != predicted)
    if confidence is not None:
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    shown = wrong[:count]
    if not len(shown):
        figure = figure_parts.blank("mistakes", 5.0, 1.5)
        figure.text(
            0.5,
            0.5,
            f"No mistakes: all {len(labels)} predictions are right",
            **figure_parts.CENTRED,
        )
        return figure
    titles = [f"true {names[labels[row]]}\nsaid {names[predicted[row]]}" for row in shown]
    if confidence is not None:
        titles = [
            f"{title}: {confidence[row]:.0%}" for title, row in zip(titles, shown, strict=True)
        ]
    low, high = float(images.min()), float(images.max())
    if images.shape[3:] == (3,):
        images = (images - low) / ((high - low) or 1)
    scale = {"cmap": "gray", "vmin": low, "vmax": high}
    longest = max(len(line) for title in titles for line in title.split("\n"))
    size = max(1.15, figure_parts.LETTER * longest + 0.1)
    figure = figure_parts.gallery("mistakes", images[shown], titles, size, scale)
    which = "" if confidence is None else ", the most confident first"
    some = f"{len(shown)} shown of " if len(shown) < len(wrong) else ""
    title = f"Mistakes: {some}{len(wrong)} in {len(labels)} predictions{which}"
    figure.suptitle(title, fontsize=12)
    return figure


def confusion(matrix: Any, class_names: Sequence[str] | None = None) -> "Figure":
    """A confusion matrix, with the mistakes in colour and the right predictions in grey.

    Args:
      matrix: [C, C], counts, for example from `confusion_matrix`. A row is a true class, and a
        column is a predicted class.
      class_names: C strings. None means that the name of a class is its number.

    Returns:
      A figure of the matrix. A count is written in its cell, and cells with a count of 0 are empty.
      The title names the most frequent mistake.

    Raises:
      ValueError: the matrix is not square, is empty or has a value that is not a count, or the
        number of names is not C.
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
            f"confusion: expected {classes} class_names, got {len(names)}; pass one name for each "
            "row of the matrix"
        )
    side = min(max(0.5 * classes, 3.0), 16.0)
    figure = figure_parts.blank("confusion", side + 1.5, side + 1.5)
    axes = figure.add_subplot()
    mistaken = np.where(np.eye(classes, dtype=bool), 0, counts)
    cell = 72 * side / classes
    figure_parts.heat_map(axes, counts, mistaken, cell)
    axes.set_xticks(range(classes), names, rotation=90 if 8 * max(map(len, names)) > cell else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    title = f"Mistakes: {mistaken.sum()} in {counts.sum()} predictions"
    if mistaken.any():
        true, guess = np.unravel_index(mistaken.argmax(), counts.shape)
        often = f"{counts[true, guess]} of {counts[true].sum()}"
        title += f"\nmost often {names[true]} is taken for {names[guess]}: {often}"
    axes.set_title(title, fontsize=11)
    return figure


def image_rows(rows: Mapping[str, Any]) -> "Figure":
    """Rows of images, one below the other, for example inputs and their reconstructions.

    Args:
      rows: a dict, name -> images [N, H, W] or [N, H, W, K], where K is 1 or 3, in any real dtype.
        All rows must have the same N. The colour scale of all rows ranges from the smallest to the
        largest value in the first row; smaller values are black, and larger values are white.

    Returns:
      A `matplotlib.figure.Figure` with N columns.

    Raises:
      ValueError: rows is not a dict or is empty, images have a wrong shape or are not finite, or
        the rows do not all have the same number of images.

    Example:
      >>> import numpy as np
      >>> figure = image_rows({"given": np.zeros((3, 8, 8)), "rebuilt": np.ones((3, 8, 8))})
      >>> len(figure.axes)
      6
    """
    if not isinstance(rows, Mapping):
        raise ValueError(
            f"image_rows: expected a dict name -> images, got a {type(rows).__name__}; pass a dict "
            "with a name for each row"
        )
    images = {
        name: checks.finite("image_rows", f"images in {quoted(name)}", row)
        for name, row in rows.items()
    }
    for name, row in images.items():
        if row.ndim not in (3, 4) or row.shape[3:] not in ((), (1,), (3,)) or not len(row):
            raise ValueError(
                f"image_rows: expected images [N, H, W] or [N, H, W, 1 or 3] in {quoted(name)}, "
                f"got {list(row.shape)}; reshape the images"
            )
    counts = {name: len(row) for name, row in images.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            "image_rows: expected rows of the same length, got "
            f"{shortened(str(counts or 'none'), 400)}; pass the same number of images in every row"
        )
    columns = next(iter(counts.values()))
    figure = figure_parts.blank("image_rows", 0.9 * columns + 1.3, len(images) + 0.2)
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


def roc_curves(scores: Any, targets: Any) -> "Figure":
    """ROC curves: the true positive rate over the false positive rate.

    Args:
      scores: [N], the logits or probabilities of one model; or a dict, model name -> [N].
      targets: [N], each 0 or 1.

    Returns:
      A figure with a curve for each model, labelled with the area under the curve. The dashed
      diagonal is the curve of a model that guesses.

    Raises:
      ValueError: scores is an empty dict, two names have the same last 31 characters, or
        `fdl.metrics.roc_curve` does not accept the scores or targets.

    Example:
      >>> figure = roc_curves(scores=[0.1, 0.4, 0.35, 0.8], targets=[0, 0, 1, 1])
      >>> figure.axes[0].get_title()
      'ROC: area 0.750'

    Source: Fawcett 2006, "An introduction to ROC analysis", section 4.
    """
    named = _by_name("roc_curves", scores)
    lines = {}
    for name, each in named.items():
        curve = roc_curve(each, targets)
        x, y = curve.false_positive_rate, curve.true_positive_rate
        lines[name] = (x, y, f"area {exact_auc(each, targets):.3f}")
    figure, axes = _square("roc_curves", "ROC", lines)
    _guessing(axes, 0.0, 1.0)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    return figure


def precision_recall_curves(scores: Any, targets: Any) -> "Figure":
    """Precision-recall curves: precision over recall.

    Args:
      scores: [N], the logits or probabilities of one model; or a dict, model name -> [N].
      targets: [N], each 0 or 1.

    Returns:
      A figure with a curve for each model, labelled with its average precision, which is the area
      under the curve. The dashed line is the precision of a model that guesses, which is the
      share of targets that are 1.

    Raises:
      ValueError: scores is an empty dict, two names have the same last 31 characters, or
        `fdl.metrics.precision_recall_curve` does not accept the scores or targets.

    Example:
      >>> scores = {"small": [0.1, 0.4, 0.35, 0.8]}
      >>> figure = precision_recall_curves(scores, targets=[0, 0, 1, 1])
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
        # By convention, the last point has precision 1. The drawn curve ends at the precision of
        # the point before it instead.
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


def similarity(table: Any, one: Sequence[str], other: Sequence[str] | None = None) -> "Figure":
    """A heat map of a table of similarities, with the number in each cell.

    Args:
      table: [L1, L2], numbers in [0, 1], for example from `fdl.look.cka_table`.
      one: L1 names of the rows, such as the paths of layers; `list(found)` for a dict `found` from
        `capture`.
      other: L2 names of the columns. None means the names of the rows.

    Returns:
      A figure of the table; darker cells are more similar. The first row is at the top.

    Raises:
      ValueError: the table does not have the shape [L1, L2], is empty, is not finite, or has a
        number outside [0, 1].

    Source: Kornblith et al. 2019, arXiv 1905.00414, figure 2.
    """
    rows = [_short(each) for each in one]
    columns = rows if other is None else [_short(each) for each in other]
    values = checks.similarities(table, len(rows), len(columns))
    cell = min(max(0.45, 3.0 / len(rows)), 14.0 / max(values.shape), 1.0)
    room = [figure_parts.LETTER * max(map(len, names)) + 0.3 for names in (rows, columns)]
    width, height = cell * len(columns) + room[0] + 1.2, cell * len(rows) + room[1] + 0.3
    figure = figure_parts.blank("similarity", width, height)
    axes = figure.add_subplot()
    figure_parts.number_map(axes, values, 72 * cell)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(axes.images[0], ax=axes, shrink=0.8, aspect=30, label="similarity")
    return figure


def loss_surface(places: Any, losses: Any) -> "Figure":
    """The loss along a line, or on a plane.

    Args:
      places: [P], rising, the places along each direction.
      losses: [P] from `fdl.look.loss_line`, or [P, P] from `fdl.look.loss_plane`. Both functions
        return the pair: `loss_surface(*loss_plane(objective, run, data))`.

    Returns:
      A figure with a curve, or with contours, in which a cross marks the parameters at the centre.
      If the largest loss is at least 10 times the smallest, the loss is on a logarithmic scale.
      Losses that are not finite are left white.

    Raises:
      ValueError: places is not [P] and rising, losses is not [P] or [P, P], fewer than two places
        are given, or no loss is finite.

    Source: Goodfellow, Vinyals and Saxe 2014, arXiv 1412.6544; Li et al. 2018, arXiv 1712.09913.
    """
    places, heights = checks.losses(places, losses)
    figure = figure_parts.blank("loss_surface", 5.6, 4.6)
    axes = figure.add_subplot()
    low, high = float(heights.min()), float(heights.max())
    wide = low > 0 and high >= 10 * low
    if heights.ndim == 1:
        figure_parts.loss_curve(axes, places, heights, wide)
    else:
        figure_parts.contours(axes, places, heights, wide)
    axes.set_title(f"loss from {low:.3g} to {high:.3g}", fontsize=11)
    return figure


def _row_title(axes: "Axes", text: str) -> None:
    """Writes a title to the left of a row of panels."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    title = axes.annotate(text, (0, 0.5), (-30, 0), **place, **figure_parts.CENTRED)
    title.set(rotation=90, fontsize=11, weight="bold")


def _by_name(who: str, scores: Any) -> dict[str, Any]:
    """A dict, shortened name of a model -> scores. A single model has the empty name."""
    named = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    if not named:
        raise ValueError(
            f"{who}: expected scores of at least one model, got none; pass a dict, model name -> "
            "scores"
        )
    if len(named) > len({_short(name) for name in named}):
        raise ValueError(
            f"{who}: expected names that differ in their last 31 characters, got {len(named)} "
            "names that do not; rename some"
        )
    return {_short(name): each for name, each in named.items()}


def _short(name: Any) -> str:
    """The name. If it has more than 32 characters, it becomes "…" and its last 31 characters."""
    return str(name) if len(str(name)) <= 32 else f"…{str(name)[-31:]}"


def _square(who: str, what: str, lines: Mapping[str, Any]) -> tuple["Figure", "Axes"]:
    """A panel whose axes range from 0 to 1, with a curve for each model.

    Args:
      who: the name of the function that the user called, for the error message.
      what: the title of the panel.
      lines: name -> (x, y, the text that gives the area under the curve).
    """
    figure = figure_parts.blank(who, 5.0, 4.9)
    axes = figure.add_subplot()
    drawn = {}
    colours = figure_parts.palette(len(lines))
    for (name, (x, y, area)), colour in zip(lines.items(), colours, strict=True):
        (drawn[f"{name}: {area}"],) = axes.plot(x, y, color=colour, linewidth=1.8, zorder=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.set_title(what, fontsize=11)
        figure_parts.legend(figure, drawn)
    else:
        name, (_, _, area) = next(iter(lines.items()))
        title = f"{what} of {name}" if name else what
        apart = ": " if len(title + area) <= 56 else "\n"
        axes.set_title(f"{title}{apart}{area}", fontsize=11)
    return figure, axes


def _guessing(axes: "Axes", low: float, high: float) -> None:
    """Draws the line of a model that guesses, and labels it near its right end."""
    axes.plot([0, 1], [low, high], color=figure_parts.QUIET, linestyle="--", linewidth=1, zorder=1)
    rising = high > low
    how: dict[str, Any] = {"ha": "right", "va": "bottom" if high < 0.1 else "top"}
    how |= {"fontsize": 9, "color": figure_parts.QUIET, "textcoords": "offset points"}
    how |= {"rotation": 45, "rotation_mode": "anchor"} if rising else {}
    shift = (4 if rising else 0, 3 if high < 0.1 else -4)
    axes.annotate("guessing", (0.98, low + 0.98 * (high - low)), shift, **how)
