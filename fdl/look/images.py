"""Images in rows, so that those of one column can be compared."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fdl.look import given, panels
from fdl.paths import quoted, shortened

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
        name: given.finite("image_rows", f"images in {quoted(name)}", row)
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
