"""Classification metrics. C is the number of classes.

tp, fp, tn and fn are the numbers of true positives, false positives, true negatives and false
negatives.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdl.checks import as_int, check_count, check_number, described, is_count
from fdl.losses.per_example import per_example
from fdl.losses.shapes import logits_and_labels, one_hot, same_shape
from fdl.metrics.metric import Metric, ratio, summed, weights_of
from fdl.paths import PathError


@per_example
def accuracy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """1 where the class with the largest logit is the label, else 0.

    Args:
      logits: [..., C], C >= 2. For one logit per example, use `binary_accuracy`.
      labels: [...], integers in [0, C).
      ignore_index: the label to leave out, such as -100. In `supervised`, the `ignore_index` of the
        loss also applies to the metrics.
      where: bool [...]. Where it is False, the value is 0.

    Returns:
      [...], float32. If several classes share the largest logit, the first of them is the
      prediction. A row with a NaN gives 0.

    Raises:
      PathError: labels are not integers, their shape is not logits.shape[:-1], or C is 1.

    Example:
      >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
      Array([1., 0.], dtype=float32)
    """
    labels = class_numbers("accuracy", logits, labels)
    return (predicted_class(logits).astype(labels.dtype) == labels).astype(jnp.float32)


@per_example
def binary_accuracy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    threshold: float | jax.Array = 0.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """1 where the prediction, logit > threshold, agrees with the target, else 0.

    Args:
      logits: [...], one logit per example.
      targets: [...], 0 or 1; any other target gives 0.
      threshold: a logit above the threshold predicts 1. Use 0 for logits, 0.5 for probabilities.
      where: bool [...]. Where it is False, the value is 0.

    Returns:
      [...], float32. A logit of NaN gives 0.

    Raises:
      PathError: the arguments differ in shape.
      ValueError: threshold is not a number.

    Example:
      >>> binary_accuracy(jnp.array([[2.0], [-1.0], [0.5]]), jnp.array([[1], [1], [0]]))[:, 0]
      Array([1., 0., 0.], dtype=float32)
    """
    logits, targets = same_shape("binary_accuracy", logits, targets)
    above = logits > _threshold("binary_accuracy", threshold, logits.dtype)
    right = jnp.where(targets == 1, above, ~above & (targets == 0) & ~jnp.isnan(logits))
    return right.astype(jnp.float32)


@per_example
def top_k(
    logits: jax.Array,
    labels: jax.Array,
    *,
    k: int | jax.Array = 5,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """1 where the logit at the label is among the k largest, else 0.

    Args:
      logits: [..., C], C >= 2.
      labels: [...], integers in [0, C).
      k: an integer in [1, C]; may be traced. With k = 1, the value is `accuracy`.
      ignore_index: the label to leave out, such as -100; see `accuracy`.
      where: bool [...]. Where it is False, the value is 0.

    Returns:
      [...], float32. Among equal logits, the first ranks highest. A row with a NaN gives 0.

    Raises:
      PathError: labels are not integers, their shape is not logits.shape[:-1], C is 1, or k is out
        of range.

    Example:
      >>> top_k(jnp.array([[0.1, 0.9, 0.5], [0.8, 0.2, 0.1]]), jnp.array([2, 2]), k=2)
      Array([1., 0.], dtype=float32)
    """
    labels = class_numbers("top_k", logits, labels)
    k = as_int(k)
    traced = isinstance(k, jax.core.Tracer) and jnp.issubdtype(k.dtype, jnp.integer)
    if not traced and not (is_count(k) and k <= logits.shape[-1]):
        raise PathError(
            f"expected k in [1, {logits.shape[-1]}], got {described(k)}; pass the number of "
            "guesses",
            layer="top_k",
        )
    right = one_hot(labels, logits.shape[-1])
    label_logit = jnp.where(right, logits, jnp.zeros_like(logits)).sum(-1, keepdims=True)
    earlier = jnp.arange(logits.shape[-1], dtype=labels.dtype) < labels[..., None]
    ahead = (logits > label_logit) | ((logits == label_logit) & earlier)
    valid = right.any(-1) & ~jnp.isnan(logits).any(-1)
    return (valid & (ahead.sum(-1) < jnp.asarray(k, jnp.int32))).astype(jnp.float32)


def precision(
    average: str, classes: int = 0, *, threshold: float | jax.Array | None = None
) -> Metric:
    """The share of predicted positives that are actually positive: tp / (tp + fp).

    Args:
      average: "binary", "macro" or "micro". "binary" is for logits [...] and targets [...]: a logit
        above the threshold predicts 1, and a target other than 1 is treated as 0. "macro" and
        "micro" are for logits [..., C] and integer labels [...]. "macro" computes the score of each
        class, and takes the mean over the classes that occur in labels or predictions. "micro" sums
        the counts tp, fp, ... over all classes, and computes one score from the sums.
      classes: C, >= 2. Pass it only with "macro" and "micro".
      threshold: pass it only with "binary"; by default 0, for logits. For probabilities, use 0.5.

    Returns:
      Metric. Its value is 0 if nothing was predicted positive.

    Raises:
      ValueError: average is unknown, or does not allow the given classes or threshold.

    Example:
      >>> metric = precision("binary")
      >>> state = metric.update(metric.init(), jnp.array([1.0, 2.0, -1.0]), jnp.array([1, 0, 1]))
      >>> float(metric.compute(state))
      0.5

    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7.
    """
    return _of_hits(
        "precision",
        average,
        classes,
        threshold,
        lambda right, predicted, true, all: ratio(right, predicted),
    )


def recall(average: str, classes: int = 0, *, threshold: float | jax.Array | None = None) -> Metric:
    """The share of actual positives that are predicted positive: tp / (tp + fn).

    Args:
      average: as in `precision`.
      classes: C, >= 2. Pass it only with "macro" and "micro".
      threshold: pass it only with "binary"; by default 0, for logits.

    Returns:
      Metric. Its value is 0 if there are no actual positives.

    Raises:
      ValueError: average is unknown, or does not allow the given classes or threshold.

    Example:
      >>> metric = recall("macro", classes=2)
      >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> float(metric.compute(metric.update(metric.init(), logits, jnp.array([0, 0, 1]))))
      0.75

    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7.
    """
    return _of_hits(
        "recall",
        average,
        classes,
        threshold,
        lambda right, predicted, true, all: ratio(right, true),
    )


def specificity(
    average: str, classes: int = 0, *, threshold: float | jax.Array | None = None
) -> Metric:
    """The share of actual negatives that are predicted negative: tn / (tn + fp).

    Args:
      average: as in `precision`.
      classes: C, >= 2. Pass it only with "macro" and "micro".
      threshold: pass it only with "binary"; by default 0, for logits.

    Returns:
      Metric. Its value is 0 if there are no actual negatives.

    Raises:
      ValueError: average is unknown, or does not allow the given classes or threshold.

    Example:
      >>> metric = specificity("binary")
      >>> float(metric(jnp.array([1.0, -2.0, -1.0]), jnp.array([0, 0, 1])))
      0.5

    Source: Yerushalmy 1947, "Statistical Problems in Assessing Methods of Medical Diagnosis".
    """
    return _of_hits(
        "specificity",
        average,
        classes,
        threshold,
        lambda right, predicted, true, all: ratio(all - predicted - true + right, all - true),
    )


def f1(average: str, classes: int = 0, *, threshold: float | jax.Array | None = None) -> Metric:
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    Args:
      average: as in `precision`.
      classes: C, >= 2. Pass it only with "macro" and "micro".
      threshold: pass it only with "binary"; by default 0, for logits.

    Returns:
      Metric. Its value is 0 if there are no true positives.

    Raises:
      ValueError: average is unknown, or does not allow the given classes or threshold.

    Example:
      >>> metric = f1("binary")
      >>> state = metric.update(metric.init(), jnp.array([1.0, 2.0, -1.0]), jnp.array([1, 0, 0]))
      >>> round(float(metric.compute(state)), 3)
      0.667

    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7.
    """
    return _of_hits(
        "f1",
        average,
        classes,
        threshold,
        lambda right, predicted, true, all: ratio(2 * right, predicted + true),
    )


def confusion(classes: int) -> Metric:
    """How often each label was predicted as each class: `confusion_matrix` over many batches.

    Args:
      classes: C, >= 2.

    Returns:
      Metric whose inputs are logits [..., C] and integer labels [...]. Its value is
      [C, C], float32: rows are labels, columns are predictions. Logits with a NaN and labels out of
      range are not counted.

    Raises:
      ValueError: classes is below 2.
      PathError: `update` gets logits whose number of classes is not C.

    Example:
      >>> metric = confusion(2)
      >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> metric.compute(metric.update(metric.init(), logits, jnp.array([0, 0, 1])))
      Array([[1., 1.],
             [0., 1.]], dtype=float32)
    """

    classes = check_count("confusion", "classes", classes, "pass the number of classes")
    check_number("confusion", "classes", classes, "[2, inf)", "use two or more classes")

    def count(logits: jax.Array, labels: jax.Array, weight: Any) -> dict[str, jax.Array]:
        labels = class_numbers("confusion", logits, labels, classes)
        weight = weights_of("confusion", labels.shape, weight)
        outside = jnp.asarray(classes, labels.dtype)
        columns = predicted_class(logits).astype(labels.dtype)
        rows, columns = (jnp.where(i < 0, outside, i) for i in (labels, columns))
        cells = jnp.zeros((classes, classes), weight.dtype)
        return {"cells": cells.at[rows, columns].add(weight, mode="drop")}

    return summed({"cells": (classes, classes)}, count, lambda sums: sums["cells"])


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, classes: int) -> np.ndarray:
    """How often each label was predicted as each class.

    Args:
      predicted: [N], integers in [0, classes).
      labels: [N], integers in [0, classes).
      classes: C.

    Returns:
      [C, C], int64: rows are labels, columns are predictions. Computed in NumPy: not for use
      under jit.

    Raises:
      ValueError: the lengths differ, or a number is not an integer in [0, classes).

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 1, 0], 2)
      array([[1, 1],
             [0, 1]])
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or predicted.ndim != 1:
        raise ValueError(
            f"confusion_matrix: expected predicted [N] and labels [N], got "
            f"{list(predicted.shape)} and {list(labels.shape)}; take the argmax of logits first"
        )
    both = np.concatenate([predicted, labels])
    if both.size and both.dtype.kind not in "iu":
        raise ValueError(
            f"confusion_matrix: expected integers, got {predicted.dtype} and {labels.dtype}; take "
            "the argmax of logits first"
        )
    if both.size and (both.min() < 0 or both.max() >= classes):
        raise ValueError(
            f"confusion_matrix: expected classes in [0, {classes}), got {both.min()} to "
            f"{both.max()}; increase classes, or correct the labels"
        )
    cells = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    counts = np.bincount(cells, minlength=classes**2)
    return counts.reshape(classes, classes)


def class_numbers(
    name: str, logits: jax.Array, labels: jax.Array, classes: int | None = None
) -> jax.Array:
    """Checks shapes, and returns the labels in 32 bits or more.

    The number of classes might not fit in 8 or 16 bits.

    Args:
      name: the name of the metric, for error messages.
      logits: [..., C].
      labels: [...], integers.
      classes: C; None if it is not known in advance.
    """
    if jnp.shape(logits)[-1:] == (1,):
        raise PathError(
            f"expected logits [..., C] for 2 or more classes, got {list(logits.shape)}; for "
            "one logit per example, use fdl.metrics.binary_accuracy or average 'binary', or pass "
            "jnp.concatenate([0 * logits, logits], -1)",
            layer=name,
        )
    _, labels = logits_and_labels(name, logits, labels)
    if classes not in (None, logits.shape[-1]):
        raise PathError(
            f"expected logits [..., {classes}], got {list(logits.shape)}; pass the model's number "
            "of classes to the metric",
            layer=name,
        )
    return labels


def predicted_class(logits: jax.Array) -> jax.Array:
    """The index of the first largest logit, int32 [...]; -1 where a row of logits has a NaN."""
    place = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isnan(logits).any(-1), -1, place)


def _threshold(name: str, threshold: Any, dtype: Any) -> jax.Array:
    remedy = "use 0 for logits, 0.5 for probabilities"
    check_number(name, "threshold", threshold, "[-inf, inf]", remedy)
    return jnp.asarray(threshold, dtype)


def _of_hits(
    name: str,
    average: str,
    classes: int,
    threshold: float | jax.Array | None,
    score: Callable[..., jax.Array],
) -> Metric:
    """A metric of four counts [C]: right = tp, predicted = tp + fp, true = tp + fn, all = total."""
    _check_average(name, average, classes, threshold)

    def count(predictions: jax.Array, targets: jax.Array, weight: Any) -> dict[str, jax.Array]:
        if average == "binary":
            predictions, targets = same_shape(name, predictions, targets)
            above = jnp.asarray(0.0 if threshold is None else threshold, predictions.dtype)
            yes, true = (predictions > above)[..., None], (targets == 1)[..., None]
        else:
            labels = class_numbers(name, predictions, targets, classes)
            yes, true = (one_hot(i, classes) for i in (predicted_class(predictions), labels))
        weight = weights_of(name, targets.shape, weight)[..., None]
        return {
            key: jnp.where(hit, weight, jnp.zeros_like(weight)).reshape(-1, hit.shape[-1]).sum(0)
            for key, hit in {
                "right": yes & true,
                "predicted": yes,
                "true": true,
                "all": jnp.ones_like(true),
            }.items()
        }

    def compute(sums: dict[str, jax.Array]) -> jax.Array:
        if average != "macro":
            return score(**{key: value.sum() for key, value in sums.items()})
        occurs = sums["predicted"] + sums["true"] > 0
        return ratio(jnp.where(occurs, score(**sums), 0).sum(), occurs.astype(jnp.float32).sum())

    shape = (max(classes, 1),)
    return summed(dict.fromkeys(("right", "predicted", "true", "all"), shape), count, compute)


def _check_average(name: str, average: str, classes: int, threshold: Any) -> None:
    if not isinstance(average, str) or average not in ("binary", "macro", "micro"):
        remedy = (
            "pass 'macro' to weight all classes equally, 'micro' to weight all examples equally"
        )
        if hasattr(average, "shape"):
            remedy = f"write {name}('binary')(scores, targets)"
        raise ValueError(
            f"{name}: expected average 'binary', 'macro' or 'micro', got {described(average)}; "
            f"{remedy}"
        )
    if not is_count(classes, 0) or classes == 1 or (average == "binary") != (classes == 0):
        remedy = (
            "pass classes=2 or more with 'macro' or 'micro'"
            if classes in (0, 1)
            else "pass an integer >= 2 with 'macro' or 'micro', or leave classes out with 'binary'"
        )
        raise ValueError(
            f"{name}: expected classes for 'macro' and 'micro' and none for 'binary', got "
            f"{described(classes)} for {average!r}; {remedy}"
        )
    if threshold is not None and average != "binary":
        raise ValueError(
            f"{name}: expected no threshold for {average!r}, where the largest logit is the "
            f"prediction, got {described(threshold)}; leave threshold out"
        )
    _threshold(name, 0.0 if threshold is None else threshold, jnp.float32)
