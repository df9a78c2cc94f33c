"""What `record` measures on the outputs of a layer: NumPy on a few hundred examples."""

import functools

import numpy as np

from fdl.data.order import permutation

RIDGE = 1e-2  # the weight decay of the readout, for standardised features
# The largest number of features in the readout. It is small, so that one thread is enough for the
# products.
COMBINATIONS = 40
AT_AN_END = 0.01  # an output is at an end of its range if it is within this share of the range
MOSTLY = 0.95  # a unit is saturated if this share of its outputs is at an end


def plane(h: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Projects h [N, D] to a plane of large variance that turns little from piece to piece.

    Without `before`, the plane is that of the first two principal components. Otherwise, two steps
    of orthogonal iteration begin at `before`. Each step multiplies the basis by the covariance, and
    replaces the product by the nearest orthonormal basis, so that points move smoothly and do not
    flip.

    Args:
      h: [N, D], float.
      before: [D, 2], the orthonormal basis of the previous piece; or None.

    Returns:
      (coordinates [N, 2], basis [D, 2], share of the variance in the plane). The coordinates are
      divided by the largest distance from the mean. They are NaN if h is not finite.
    """
    basis = np.zeros((h.shape[1], 2), np.float32) if before is None else before
    if not np.isfinite(h).all():
        return np.full((len(h), 2), np.nan, np.float32), basis, float("nan")
    rows = h / (np.abs(h).max() or 1)
    rows = rows - rows.mean(0)
    rows = rows / (np.abs(rows).max() or 1)
    if not basis.any():
        _, vectors = np.linalg.eigh(rows.T @ rows)
        basis[:, : vectors.shape[1]] = vectors[:, ::-1][:, :2]
        heaviest = np.abs(basis).argmax(0)
        basis = basis * np.where(basis[heaviest, [0, 1]] < 0, -1, 1)
    else:
        for _ in range(2):
            basis = _nearest_orthonormal(rows.T @ (rows @ basis), basis)
    flat = rows @ basis
    total = np.square(rows).sum()
    radius = np.sqrt(np.square(flat).sum(1).max()) or 1
    return flat / radius, basis, float(np.square(flat).sum() / total) if total else 0.0


def _nearest_orthonormal(moved: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The polar factor of `moved` [D, 2]; `before` if `moved` does not span a plane."""
    left, sizes, right = np.linalg.svd(moved, full_matrices=False)
    if len(sizes) < 2 or sizes[1] <= 1e-6 * sizes[0]:
        return before
    return left @ right


def readout(h: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """The accuracy of a linear readout of h [N, D], fitted to one half of the examples.

    The accuracy is measured on the other half. It is NaN if h is not finite.

    The readout is ridge regression from standardised features to one-hot labels, because the closed
    form is far cheaper than the softmax regression of `linear_readout`. If D > 40, the features are
    first replaced by 40 random combinations, which are the same at all steps.
    """
    if not np.isfinite(h).all():
        return float("nan")
    order = permutation(len(h), 0)
    fitted, tested = order[: len(h) // 2], order[len(h) // 2 :]
    h = h / (np.abs(h).max() or 1)
    if h.shape[1] > COMBINATIONS:
        h = h @ mixing(h.shape[1]).astype(h.dtype)
    mean, spread = h[fitted].mean(0), h[fitted].std(0)
    spread = np.where(spread > 1e-6, spread, np.inf)
    a, b = (h[fitted] - mean) / spread, (h[tested] - mean) / spread
    goal = np.eye(classes, dtype=h.dtype)[labels[fitted]]
    decay = RIDGE * len(a) * np.eye(a.shape[1], dtype=h.dtype)
    w = np.linalg.solve(a.T @ a + decay, a.T @ (goal - goal.mean(0)))
    return float(((b @ w + goal.mean(0)).argmax(1) == labels[tested]).mean())


@functools.cache
def mixing(features: int) -> np.ndarray:
    """The weights [D, 40] of the random combinations."""
    return np.random.default_rng(0).normal(size=(features, COMBINATIONS))


def dead_and_saturated(units: np.ndarray) -> tuple[float, float]:
    """The shares of dead and of saturated units of a layer.

    A unit is dead if its output is the same for all examples, up to rounding. A unit that is not
    dead is saturated if at least 95 % of its outputs are near an end of the range of the layer. The
    range is from the lowest to the highest output of all units, and near means within 1 % of the
    length of the range. Both shares are NaN if an output is not finite.

    Args:
      units: [N, U], the output of each unit for each example.
    """
    if not np.isfinite(units).all():
        return float("nan"), float("nan")
    low, high = units.min(), units.max()
    dead = units.max(0) - units.min(0) <= 1e-6 * max(abs(low), abs(high))
    near = AT_AN_END * (high - low)
    ends = ((units <= low + near) | (units >= high - near)).mean(0) >= MOSTLY
    return float(dead.mean()), float((ends & ~dead).mean())


def scaled(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values as int8 in [-127, 127], and the scale by which to multiply them.

    -128 stands for NaN and for infinities.
    """
    fine = np.isfinite(values)
    scale = float(np.abs(values, where=fine, out=np.zeros_like(values)).max(initial=0)) / 127 or 1.0
    with np.errstate(invalid="ignore"):
        return np.where(fine, np.rint(values / scale), -128).astype(np.int8), scale


def spaced(length: int, most: int) -> np.ndarray:
    """At most `most` indices below `length`, evenly spaced, from the first to the last."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))
