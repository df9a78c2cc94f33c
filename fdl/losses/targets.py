"""Checks before training that all targets are in the range that the loss accepts."""

import functools
from typing import Any

import jax
import numpy as np

from fdl.losses import classification, cross_entropy, regression, segmentation, sequence
from fdl.losses.per_example import counting
from fdl.typing import Loss


def check_targets(loss: Loss, predictions: Any, targets: Any, weight: Any = None) -> None:
    """Raises an error for targets that a loss cannot score. Not for use under jit.

    Args:
      loss: a loss of fdl, or a `functools.partial` of one. For any other function, and for a loss
        that accepts all targets, nothing is checked.
      predictions: [..., C], an array or a `jax.ShapeDtypeStruct`.
      targets: a concrete array.
      weight: [...], numbers whose axes are the first axes of the targets. Targets of weight 0 are
        not checked. None means that all targets are checked.

    Raises:
      ValueError: a target is out of range, or `ignore_index` and `where` leave out all targets. For
        a target out of range, the message names the loss, the range, and the first such target with
        its row.

    Example:
      >>> import jax.numpy as jnp
      >>> check_targets(cross_entropy.softmax_cross_entropy, jnp.ones((2, 3)), np.array([0, 3]))
      Traceback (most recent call last):
      ...
      ValueError: softmax_cross_entropy: expected labels in [0, 3), got 3 at row 1; ...
    """
    with jax.ensure_compile_time_eval():
        counts = counting(loss, np.asarray(targets))
    while isinstance(loss, functools.partial):
        loss = loss.func
    check = CHECKS.get(loss)
    if check is None:
        return
    targets = np.asarray(targets)
    wrong, expected, remedy = check(predictions, targets)
    if counts is not None and not isinstance(counts, jax.core.Tracer):
        if targets.size and not np.any(counts):
            raise ValueError(
                f"{loss.__name__}: expected at least one target that is not ignored, got none "
                f"among targets {list(targets.shape)}; check ignore_index and where"
            )
        wrong = wrong & np.asarray(counts) if wrong.shape == counts.shape else wrong
    if weight is not None and wrong.shape[: np.ndim(weight)] == np.shape(weight):
        # The axes of weight are the first axes of the targets, but NumPy aligns last axes. So both
        # arrays are transposed.
        wrong = (wrong.T & (np.asarray(weight) != 0).T).T
    if wrong.any():
        row = tuple(int(place) for place in np.argwhere(wrong)[0])
        raise ValueError(
            f"{loss.__name__}: expected {expected}, got {targets[row]} at row {row[0]}; {remedy}"
        )


def _labels(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    if not predictions.shape or targets.dtype.kind not in "iu":
        return np.zeros(0), "", ""  # for these, the loss itself raises an error
    classes = predictions.shape[-1]
    return (
        (targets < 0) | (targets >= classes),
        f"labels in [0, {classes})",
        "give the last layer one output for each class, correct the labels, or pass the label to "
        "ignore as ignore_index",
    )


def _texts(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    classes = predictions.shape[-1]
    gap = np.zeros(targets.shape, bool)
    gap[..., 1:] = (targets[..., 1:] >= 0) & (targets[..., :-1] < 0)
    return (
        (targets < -1) | (targets >= classes) | gap,
        f"labels in [0, {classes}), then -1 as padding",
        "give the last layer one output for each class, or correct the labels",
    )


def _probabilities(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    remedy = "rescale the targets to [0, 1], for example a mask of 0 and 255 by 1 / 255"
    return (targets < 0) | (targets > 1), "targets in [0, 1]", remedy


def _distributions(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    # The sum is allowed to differ from 1 by 0.01, as when probabilities were rounded to bfloat16.
    error = np.abs(targets.astype(np.float64).sum(-1, keepdims=True) - 1)
    return (
        (targets < 0) | (error > 0.01),
        "targets >= 0 that sum to 1 over the classes",
        "divide the targets by their sum over the classes",
    )


def _zero_or_one(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return (targets != 0) & (targets != 1), "targets 0 or 1", "round the targets to 0 or 1"


def _signs(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return np.abs(targets) != 1, "targets -1 or 1", "for targets 0 and 1, pass 2 * target - 1"


def _counts(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return targets < 0, "targets >= 0", "pass counts, which cannot be negative"


CHECKS = {
    classification.hinge: _signs,
    classification.multiclass_hinge: _labels,
    classification.sigmoid_focal: _zero_or_one,
    classification.softmax_focal: _labels,
    cross_entropy.categorical_nll: _labels,
    cross_entropy.kl_divergence: _distributions,
    cross_entropy.sigmoid_cross_entropy: _probabilities,
    cross_entropy.soft_cross_entropy: _distributions,
    cross_entropy.softmax_cross_entropy: _labels,
    regression.poisson_nll: _counts,
    segmentation.dice: _probabilities,
    sequence.ctc: _texts,
}
