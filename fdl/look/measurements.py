"""Measures of units, gradients and updates, and what else `record` measures on a few examples."""

import functools
from typing import Any

import jax
import numpy as np

from fdl import paths
from fdl.data.arrays import to_jax
from fdl.data.order import permutation
from fdl.look.tree_difference import check_same_arrays
from fdl.ops.numerics import wide
from fdl.ops.rank_promotion import free_ranks
from fdl.optim.tree_vectors import sizes
from fdl.train.checks import check_objective_given, check_run
from fdl.train.microbatches import whole
from fdl.train.run import Run
from fdl.typing import Batch, Objective

RIDGE = 1e-2  # the weight decay of the readout, for standardised features
# The largest number of features in the readout. It is small, so that one thread is enough for the
# products.
COMBINATIONS = 40
# Multiplications in a product that OpenBLAS computes with a single thread. Its other threads would
# keep a core busy for some time after a larger product, and training would be slower.
SINGLE_THREAD = 200_000
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
        weights = mixing(h.shape[1]).astype(h.dtype)
        parts = min(len(h), -(-h.size * COMBINATIONS // SINGLE_THREAD))
        h = np.concatenate([rows @ weights for rows in np.array_split(h, parts)])
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


def dead_and_saturated(h: Any) -> tuple[float, float]:
    """The shares of dead and of saturated units of a layer.

    A unit is a channel: the mean of h over all axes except the first and the last. A unit is dead
    if its output is the same for all examples, up to rounding. A unit that is not dead is saturated
    if at least 95 % of its outputs are near an end of the range of the layer. The range is from the
    lowest to the highest output of all units, and near means within 1 % of the length of the range.

    Args:
      h: [N, ..., U], the output of a layer for N examples, for example from `capture`; in any real
        dtype. [N] is read as one unit.

    Returns:
      (dead, saturated), each in [0, 1]. Both are NaN if an output is not finite.

    Raises:
      ValueError: h has no rows.

    Example:
      >>> h = np.array([[0.0, 0.3, -1.0], [0.0, 0.9, 1.0], [0.0, 0.6, 1.0]])
      >>> [round(share, 2) for share in dead_and_saturated(h)]
      [0.33, 0.33]

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", section 3, for saturation; Lu et al. 2019, arXiv 1903.06733, for dead units.
    """
    h = np.asarray(h)
    if h.ndim < 1 or not h.size:
        raise ValueError(
            f"dead_and_saturated: expected h [N, ..., U] with N >= 1, got {list(h.shape)}; pass "
            "one row for each example"
        )
    units = units_of(h)
    if not np.isfinite(units).all():
        return float("nan"), float("nan")
    low, high = units.min(), units.max()
    dead = units.max(0) - units.min(0) <= 1e-6 * max(abs(low), abs(high))
    near = AT_AN_END * (high - low)
    ends = ((units <= low + near) | (units >= high - near)).mean(0) >= MOSTLY
    return float(dead.mean()), float((ends & ~dead).mean())


def units_of(h: Any) -> Any:
    """[N, U]: the mean of h [N, ..., U] over its middle axes; h is an array of NumPy or JAX."""
    h = h.reshape(len(h), -1, h.shape[-1] if h.ndim > 1 else 1)
    return h.astype(wide(h.dtype)).mean(1)


def gradient_sizes(objective: Objective, run: Run, batch: Batch) -> dict[str, Any]:
    """The norm of the gradient of each parameter, as the next step of training would compute it.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `fdl.supervised`, or from `fdl.plain` for a loss of your own. It is called in training mode,
        with the key of the next step.
      run: from `fdl.start`, or `result.run` of `fdl.fit`.
      batch: a pytree of arrays [B, ...], as the objective takes it.

    Returns:
      A dict, path of a parameter -> Euclidean norm of its gradient, a scalar array, float32 or
      wider. Works under `jit` and `vmap`.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: the objective returns a wrong value.

    Example:
      >>> import fdl, jax.numpy as jnp
      >>> objective = fdl.plain(lambda p, x: jnp.mean(p["w"] @ x) + p["b"])
      >>> run = fdl.start({"w": jnp.ones(2), "b": jnp.array(0.0)}, fdl.sgd(0.1))
      >>> sizes = gradient_sizes(objective, run, jnp.array([3.0, 4.0]))
      >>> {path: float(size) for path, size in sizes.items()}
      {'b': 1.0, 'w': 5.0}

    Source: Glorot and Bengio 2010, section 4.2.1, for gradients compared between layers.
    """
    check_objective_given("gradient_sizes", objective)
    check_run("gradient_sizes", run)
    run = getattr(run, "run", run)
    batch = to_jax(batch, "gradient_sizes", "batch")
    key = jax.random.fold_in(jax.random.key(run.seed), run.step)
    with free_ranks():
        gradients = whole(objective, run, batch, key).gradients
    return {path: size.value for path, size in paths.leaves(sizes(gradients)[0]).items()}


def update_sizes(before: Any, after: Any) -> dict[str, float]:
    """How far each parameter moved, relative to its size: |after - before| / |before|.

    About 0.001 for a step is usual. If it is far larger or smaller in one layer, look at the
    learning rate and the initialization there.

    Args:
      before: a pytree of arrays, or a run or a result of `fit`, whose params are taken.
      after: the same, after one or more steps, with the same paths and shapes.

    Returns:
      A dict, path -> ratio of Euclidean norms; NaN where the norm before is 0.

    Raises:
      ValueError: the paths, shapes or dtypes of before and after differ.

    Example:
      >>> update_sizes({"w": np.array([3.0, 4.0])}, {"w": np.array([3.0, 6.5])})
      {'w': 0.5}

    Source: Karpathy 2016, CS231n notes, "Learning", section "Ratio of weights:updates".
    """
    old, new = (paths.leaves(getattr(each, "params", each)) for each in (before, after))
    check_same_arrays("update_sizes", old, new)
    with paths.traced_in("update_sizes"):
        return {path: relative_change(np.asarray(old[path]), np.asarray(new[path])) for path in old}


def relative_change(old: np.ndarray, now: np.ndarray) -> float:
    """|now - old| / |old|, in Euclidean norms of any size; NaN if |old| is 0."""
    old, now = (each.astype(wide(each.dtype)) for each in (old, now))
    most = max(np.abs(old).max(initial=0), np.abs(now).max(initial=0))
    unit = np.ldexp(old.dtype.type(1), np.frexp(most)[1] - 1)  # exact in a division
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN
        old, now = old / unit, now / unit
        size = np.linalg.norm(old)
        return float(np.linalg.norm(now - old) / size) if size else float("nan")


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
