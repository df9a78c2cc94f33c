"""The examples that a recorded run looks at, and what the page shows of them."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import kind as kind_of
from fdl.data.arrays import to_jax
from fdl.look.checks import class_names as names_of_classes
from fdl.look.measurements import spaced

PIXELS = 16  # the longest side of a heat map, in pixels
SURFACE = 32  # the side of the decision surface, in points
THUMBNAIL = 28  # the longest side of a thumbnail, in pixels


class Chosen(NamedTuple):
    """The chosen examples.

    Args:
      x: the inputs, [N, ...].
      labels: int32 [N], all 0 if there are no classes.
      places: int32 [N], the indices of the chosen examples among all examples.
      names: the names of the classes.
      kind: "plane", "image" or "other".
    """

    x: jax.Array
    labels: np.ndarray
    places: np.ndarray
    names: list[str]
    kind: str

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.names)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the page shows of the examples."""
        x = np.asarray(self.x)
        shown = {"labels": self.labels, "places": self.places}
        if self.kind == "image":
            shown["thumbnails"] = grey(x, THUMBNAIL)
        if self.kind == "plane":
            shown["plane"] = x.astype(np.float32)
        return shown

    def about(self) -> dict[str, Any]:
        """What identifies the examples, for `about.json`."""
        digest = hashlib.sha256(np.ascontiguousarray(np.asarray(self.x)).tobytes())
        digest.update(self.labels.tobytes())
        side = list(grey(np.asarray(self.x[:1]), PIXELS).shape[1:])
        return {
            "examples": {"sha256": digest.hexdigest(), "count": len(self.labels)},
            "classes": self.names,
            "kind": self.kind,
            "pixels": [PIXELS, PIXELS] if self.kind == "plane" else side,
            "bounds": self.bounds() if self.kind == "plane" else None,
        }

    def bounds(self) -> tuple[float, float, float]:
        """The square of the plane that is shown: (x and y of its centre, half of its side)."""
        x = np.asarray(self.x, np.float64)
        low, high = x.min(0), x.max(0)
        middle = (low + high) / 2
        return float(middle[0]), float(middle[1]), float((high - low).max() * 0.55 or 1.0)

    def pixels(self) -> np.ndarray:
        """Small grey images as rows [N, P] of values in [0, 1], minus the mean over examples."""
        small = grey(np.asarray(self.x), PIXELS).reshape(len(self.x), -1) / np.float32(255)
        return small - small.mean(0)

    def grid(self) -> np.ndarray:
        """Inputs [SURFACE ** 2, 2] that cover the plane, from the top left, row by row.

        They have the dtype of x.
        """
        a, b, half = self.bounds()
        ticks = (np.arange(SURFACE) + 0.5) / SURFACE * 2 - 1
        down, right = np.meshgrid(-ticks, ticks, indexing="ij")
        points = np.stack([a + half * right.ravel(), b + half * down.ravel()], 1)
        return points.astype(self.x.dtype)


def chosen(x: Any, y: Any, most: int, class_names: Sequence[str] | None) -> Chosen:
    """Chooses evenly spaced examples, and checks x and y."""
    x = to_jax(x, "record", "x")
    if not hasattr(x, "ndim") or x.ndim < 1 or len(x) < 2:
        got = f"{list(x.shape)}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ValueError(
            f"record: expected x [N, ...] with N >= 2, one array, got {got}; pass the inputs of a "
            "few hundred examples"
        )
    labels = np.zeros(len(x), np.int32) if y is None else np.asarray(y)
    fits = labels.shape == (len(x),) and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0:
        raise ValueError(
            f"record: expected y as class numbers [{len(x)}], integers >= 0, got "
            f"{labels.min() if fits else kind_of(labels)}; pass y=None if there are no classes"
        )
    places = spaced(len(x), most)
    names = [str(each) for each in range(int(labels.max()) + 1)]
    if class_names is not None:
        named = names_of_classes("record", labels, class_names)
        names = [named.get(number, name) for number, name in enumerate(names)]
    kind = "image" if x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3)) else "other"
    kind = "plane" if x.shape[1:] == (2,) and jnp.issubdtype(x.dtype, jnp.floating) else kind
    if kind == "image" and min(x.shape[1:3]) < 4:
        kind = "other"
    return Chosen(x[places], labels[places].astype(np.int32), places.astype(np.int32), names, kind)


def grey(x: np.ndarray, most: int) -> np.ndarray:
    """Images [N, H, W] or [N, H, W, K] as uint8 [N, h, w], with sides of at most `most` pixels.

    Other arrays give zeros [N, 1, 1].
    """
    if x.ndim not in (3, 4):
        return np.zeros((len(x), 1, 1), np.uint8)
    x = x.astype(np.float32)
    x = x.mean(-1) if x.ndim == 4 else x
    step = -(-max(x.shape[1:]) // most)
    down, right = (min(step, side) for side in x.shape[1:])
    high, wide = x.shape[1] // down, x.shape[2] // right
    x = x[:, : high * down, : wide * right].reshape(len(x), high, down, wide, right).mean((2, 4))
    low, top = x.min(), x.max()
    return np.rint((x - low) / ((top - low) or 1) * 255).astype(np.uint8)
