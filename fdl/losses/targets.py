"""Which targets each loss can score; looks at values, on the host, before anything is trained."""

import functools
from typing import Any

import jax
import numpy as np

from fdl.losses import classification, cross_entropy, regression, segmentation, sequence
from fdl.losses.per_example import counting
from fdl.typing import Loss


def check_targets(loss: Loss, predictions: Any, targets: Any) -> None:
    """Refuses targets that a loss of this room cannot score. Looks at values, so not under jit.

    Args:
      loss: one of this room's, or a partial of it; nothing is known of others, and nothing checked.
      predictions: [..., C], an array or a `jax.ShapeDtypeStruct`.
      targets: a concrete array.

    Raises:
      ValueError: names the loss, the range, the first offender and its row.

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
    wrong, said, remedy = check(predictions, targets)
    if counts is not None and not isinstance(counts, jax.core.Tracer):
        if targets.size and not np.any(counts):
            raise ValueError(
                f"{loss.__name__}: expected a target that counts, got none among "
                f"{list(targets.shape)}; see its ignore_index and where"
            )
        wrong = wrong & np.asarray(counts) if wrong.shape == counts.shape else wrong
    if wrong.any():
        row = tuple(int(each) for each in np.argwhere(wrong)[0])
        raise ValueError(
            f"{loss.__name__}: expected {said}, got {targets[row]} at row {row[0]}; {remedy}"
        )


def _labels(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    if not predictions.shape or targets.dtype.kind not in "iu":
        return np.zeros(0), "", ""  # the loss itself says what is wrong with these
    classes = predictions.shape[-1]
    return (
        (targets < 0) | (targets >= classes),
        f"labels in [0, {classes})",
        "give the last layer as many outputs as there are classes, mend the labels, or name the "
        "one that does not count by ignore_index",
    )


def _texts(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    classes = predictions.shape[-1]
    hole = np.zeros(targets.shape, bool)
    hole[..., 1:] = (targets[..., 1:] >= 0) & (targets[..., :-1] < 0)
    return (
        (targets < -1) | (targets >= classes) | hole,
        f"labels in [0, {classes}), and -1 only behind them",
        "give the last layer as many outputs as there are classes, or mend the labels",
    )


def _chances(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return (targets < 0) | (targets > 1), "targets in [0, 1]", "divide by the largest value"


def _distributions(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    # Chances that were rounded to bfloat16 may miss 1 by a little.
    apart = np.abs(targets.astype(np.float64).sum(-1, keepdims=True) - 1)
    return (
        (targets < 0) | (apart > 0.01),
        "targets >= 0 that sum to 1 over the classes",
        "divide by their sum",
    )


def _yes_or_no(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return (targets != 0) & (targets != 1), "targets 0 or 1", "round them"


def _signs(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return np.abs(targets) != 1, "targets -1 or 1", "take 2 * target - 1 of 0 and 1"


def _counts(predictions: Any, targets: np.ndarray) -> tuple[np.ndarray, str, str]:
    return targets < 0, "targets >= 0", "counts cannot be negative"


CHECKS = {
    classification.hinge: _signs,
    classification.multiclass_hinge: _labels,
    classification.sigmoid_focal: _yes_or_no,
    classification.softmax_focal: _labels,
    cross_entropy.categorical_nll: _labels,
    cross_entropy.kl_divergence: _distributions,
    cross_entropy.sigmoid_cross_entropy: _chances,
    cross_entropy.soft_cross_entropy: _distributions,
    cross_entropy.softmax_cross_entropy: _labels,
    regression.poisson_nll: _counts,
    segmentation.dice: _chances,
    sequence.ctc: _texts,
}
