"""Checks of the arguments of the functions in `draw`: arrays, histories, tables and losses."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fdl.paths import quoted, shortened


def runs(histories: Any) -> dict[str, list[Mapping[str, float]]]:
    """Returns a dict, run name -> history. A single history gets the empty name."""
    named = histories if isinstance(histories, Mapping) else {"": histories}
    for name, history in named.items():
        listed = isinstance(history, list | tuple) and len(history) > 0
        if not listed or not all(isinstance(each, Mapping) and "step" in each for each in history):
            of = f" of {quoted(name)}" if name else ""
            raise ValueError(
                f"learning_curves: expected the history{of} to be a list of records with step, got "
                f"{history!r:.60}; pass result.history, where result = fdl.fit(...)"
            )
    if not named:
        raise ValueError(
            "learning_curves: expected at least one history, got none; pass result.history"
        )
    return {str(name): list(history) for name, history in named.items()}


def check_rows(rows: Mapping[str, Mapping[str, Any]], labels: Any, readouts: Any) -> None:
    """Raises unless representations, labels and readouts agree in their paths and lengths."""
    before, after = rows.values()
    if list(before) != list(after) or not before:
        raise ValueError(
            "representations: expected the same paths in before and after, got "
            f"{shortened(str(list(before)), 400)} and {shortened(str(list(after)), 400)}; call "
            "capture with the same patterns for both"
        )
    for when, found in rows.items():
        for path, h in found.items():
            if labels.ndim != 1 or len(labels) < 2 or np.shape(h)[:1] != labels.shape:
                raise ValueError(
                    "representations: expected h [N, ...] and labels [N] with N >= 2, got "
                    f"{list(np.shape(h))} at {quoted(path)} {when} training and "
                    f"{list(labels.shape)}; every example needs one row in h and one label"
                )
            finite("representations", f"h at {quoted(path)} {when} training", h)
    for when, found in readouts.items():
        strange = [path for path in found if path not in rows.get(when, {})]
        if not strange:
            continue
        raise ValueError(
            "representations: expected readouts for the paths "
            f"{shortened(str(list(before)), 400)}, got {shortened(str(strange), 400)} in "
            f"readouts[{when!r}]; leave these paths out"
        )


def projected(who: str, projection: Callable[[Any], Any], rows: np.ndarray) -> np.ndarray:
    """What a projection of the user returns for rows [N, D]: finite numbers [N, 2]."""
    plane = np.asarray(projection(rows))
    if plane.shape != (len(rows), 2) or not np.issubdtype(plane.dtype, np.floating):
        raise ValueError(
            f"{who}: expected projection to return floats [{len(rows)}, 2], got {plane.dtype} "
            f"{list(plane.shape)}; pass sklearn.manifold.TSNE().fit_transform or the like"
        )
    finite(who, "numbers from projection", plane)
    return plane


def class_names(who: str, labels: np.ndarray, names: Any) -> dict[int, str]:
    """A dict, class -> name, for all classes in labels. By default, the names are the numbers."""
    classes = np.unique(labels).tolist()
    if names is None:
        return {label: str(label) for label in classes}
    listed = isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)
    if not listed or classes[0] < 0 or classes[-1] >= len(names):
        got = f"{len(names)} names" if listed else f"{names!r:.60}"
        raise ValueError(
            f"{who}: expected class_names to be a list with a string for each class from 0 to "
            f"{classes[-1]}, got {got} for labels from {classes[0]} to {classes[-1]}; class c has "
            "the name class_names[c]"
        )
    return {label: names[label] for label in classes}


def check_mistakes(images: Any, labels: Any, predicted: Any, probabilities: Any) -> Any:
    """Checks the arguments of `mistakes`, and returns the probability of each prediction.

    Returns:
      [N], or None if `probabilities` is None.

    Raises:
      ValueError: an argument has a wrong shape or is out of range.
    """
    fits = labels.shape == predicted.shape == images.shape[:1] and images.size
    if not fits or images.ndim < 3 or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(
            "mistakes: expected images [N, H, W] or [N, H, W, K] with K 1 or 3, labels [N] and "
            f"predicted [N], got {list(images.shape)}, {list(labels.shape)} and "
            f"{list(predicted.shape)}; reshape the images, and replace logits by their argmax"
        )
    least = min(labels.min(), predicted.min())
    if least < 0:
        raise ValueError(
            f"mistakes: expected labels and predicted >= 0, got {least}; leave out examples "
            "without a class"
        )
    if probabilities is None:
        return None
    table = finite("mistakes", "probabilities", probabilities)
    classes = int(predicted.max()) + 1
    fits = table.ndim == 2 and len(table) == len(labels) and table.shape[1] >= classes
    if not fits or table.min() < 0 or table.max() > 1.001:
        span = f" from {table.min():.3g} to {table.max():.3g}" if table.size else ""
        raise ValueError(
            f"mistakes: expected probabilities [{len(labels)}, C] in [0, 1] with C >= {classes}, "
            f"got {list(table.shape)}{span}; pass fdl.softmax(logits)"
        )
    return np.take_along_axis(table, predicted[:, None].astype(int), axis=1)[:, 0]


def similarities(table: Any, rows: int, columns: int) -> np.ndarray:
    """Converts a table to an array; raises unless it is [rows, columns] with numbers in [0, 1]."""
    values = finite("similarity", "table", table)
    inside = values.size and values.min() >= 0 and values.max() <= 1.001
    if values.shape != (rows, columns) or not inside:
        span = f" from {values.min():.3g} to {values.max():.3g}" if values.size else ""
        raise ValueError(
            f"similarity: expected a table [{rows}, {columns}] in [0, 1], with a row for each name "
            f"in one and a column for each name in other, got {list(values.shape)}{span}; pass "
            "fdl.look.cka_table(one, other), list(one) and list(other)"
        )
    return values


def losses(places: Any, losses: Any) -> tuple[np.ndarray, Any]:
    """(places [P], losses [P] or [P, P]), where losses that are not finite are masked."""
    places = finite("loss_surface", "places", places)
    heights = np.ma.masked_invalid(np.asarray(losses, np.float64))
    rising = places.ndim == 1 and len(places) > 1 and (np.diff(places) > 0).all()
    if not rising or heights.shape not in (places.shape, 2 * places.shape) or heights.mask.all():
        raise ValueError(
            "loss_surface: expected rising places [P] and losses [P] or [P, P] with P >= 2 and a "
            f"finite loss, got places {list(places.shape)} and losses {list(heights.shape)}; pass "
            "both results of fdl.look.loss_line or loss_plane"
        )
    return places, heights


def finite(who: str, what: str, values: Any) -> np.ndarray:
    """Converts the values to an array; raises if a value is NaN or infinite."""
    array = np.asarray(values)
    array = array if array.dtype.kind in "biuf" else array.astype(np.float32)  # e.g. bfloat16
    if not np.isfinite(array).all():
        raise ValueError(
            f"{who}: expected finite {what}, got NaN or infinity; check whether training diverged"
        )
    return array


def integers(who: str, what: str, values: Any) -> np.ndarray:
    """Converts the values to an array; raises unless its dtype is integer or bool."""
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        raise ValueError(
            f"{who}: expected {what}, integers, got {array.dtype} {list(array.shape)}; convert the "
            "values with astype(int), or pass the argmax of logits"
        )
    return array


def counts(who: str, what: str, values: Any) -> np.ndarray:
    """Converts the values to an array of integers; floats are allowed if they are whole numbers."""
    array = np.asarray(values)
    if array.dtype.kind not in "biu" and (array == np.rint(array.astype(np.float64))).all():
        array = array.astype(np.int64)
    return integers(who, what, array)
