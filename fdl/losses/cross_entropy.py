"""Cross-entropies, in nats. C is the number of classes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_number
from fdl.losses.per_example import per_example
from fdl.losses.shapes import bounded, logits_and_labels, nan_outside, one_hot, product, same_shape
from fdl.paths import PathError


@per_example
def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float | jax.Array = 0.0,
    class_weight: jax.Array | Sequence[float] | None = None,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """-log softmax(logits)[label], in nats.

    With smoothing or class_weight, the loss is -sum_c v_c q_c log softmax(logits)_c. Here v_c is
    the weight of class c. q_c is 1 - smoothing + smoothing / C for the label, and smoothing / C for
    every other class.

    Args:
      logits: [..., C], a floating dtype. Large values do not overflow.
      labels: [...], integers in [0, C). A label outside this range gives NaN. `fit` and `evaluate`
        check the data before they start, and raise an error for such a label.
      smoothing: in [0, 1), the part of the label's probability that is spread evenly over all
        classes.
      class_weight: [C], >= 0, the weight of each class; by default 1. The mean of `supervised`
        divides the sum of the losses by the number of examples. Unlike here, torch divides it by
        the sum of the labels' class weights. To get torch's mean, do not pass class_weight, but
        pass (x, y, weight) as the batch, where weight is the class weight of each label.
      ignore_index: the label to leave out, such as -100 in torch. Where the label has this value,
        loss and gradient are 0. `supervised(model, softmax_cross_entropy(ignore_index=-100))`
        leaves these elements out of the mean of the loss and of the means of the metrics. But if
        the loss is wrapped in another function, such as a lambda, `supervised` cannot see the
        option, and the zeros enter the means. In this case, put the weight `labels != -100` into
        the batch. To set options, call the loss with options only, without a lambda:
        `softmax_cross_entropy(ignore_index=-100, smoothing=0.1)`.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0.

    Raises:
      PathError: labels are not integers, their shape is not logits.shape[:-1], or the shape of
        class_weight is not [C].
      ValueError: smoothing or a class weight is out of range.

    Example:
      >>> softmax_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([0.6931472], dtype=float32)

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.3; for
    smoothing, section 7 of Szegedy et al. 2016, "Rethinking the Inception Architecture".
    """
    logits, labels = logits_and_labels("softmax_cross_entropy", logits, labels)
    remedy = "pass a number such as 0.1, or 0 for no smoothing"
    check_number("softmax_cross_entropy", "smoothing", smoothing, "[0, 1)", remedy)
    classes = logits.shape[-1]
    right = one_hot(labels, classes)
    weights = _weights("softmax_cross_entropy", class_weight, logits)
    if not isinstance(smoothing, jax.core.Tracer) and smoothing == 0:
        nats = product(jnp.where(right, weights, 0).sum(-1), _label_nats(right, logits))
    else:
        share = jnp.asarray(smoothing, logits.dtype)
        smoothed = jnp.where(right, 1 - share + share / classes, share / classes)
        nats = _expected_nats(smoothed * weights, logits)
    return nan_outside(nats, labels, classes)


@per_example
def categorical_nll(
    log_probs: jax.Array,
    labels: jax.Array,
    *,
    class_weight: jax.Array | Sequence[float] | None = None,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """-v_label * log_probs[label], in nats: the cross-entropy of log-probabilities.

    v_label is the class weight of the label.

    Args:
      log_probs: [..., C], log-probabilities, such as the output of `log_softmax`; a floating
        dtype. This function does not normalize them; for logits, use `softmax_cross_entropy`.
      labels: [...], integers in [0, C); a label outside this range gives NaN.
      class_weight: [C], >= 0, the weight of each class; by default 1. See
        `softmax_cross_entropy`.
      ignore_index: the label to leave out, such as -100; see `softmax_cross_entropy`.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider; infinite where the label has probability 0.

    Raises:
      PathError: labels are not integers, their shape is not log_probs.shape[:-1], or the shape
        of class_weight is not [C].
      ValueError: a class weight is out of range.

    Example:
      >>> categorical_nll(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0]))
      Array([1.3862944], dtype=float32)

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 5.5; torch's `NLLLoss`.
    """
    log_probs, labels = logits_and_labels("categorical_nll", log_probs, labels)
    right = one_hot(labels, log_probs.shape[-1])
    weights = _weights("categorical_nll", class_weight, log_probs)
    nats = -jnp.where(right, log_probs, 0).sum(-1)
    nats = product(jnp.where(right, weights, 0).sum(-1), nats)
    return nan_outside(nats, labels, log_probs.shape[-1])


@per_example
def soft_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """-sum_c target_c log softmax(logits)_c, in nats, for targets that are probabilities.

    Args:
      logits: [..., C], a floating dtype. Large values do not overflow.
      targets: [..., C], probabilities: >= 0, with sum 1 over the classes.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> soft_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([[0.3, 0.7]]))
      Array([0.6931472], dtype=float32)

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section
    2. (optax calls it `softmax_cross_entropy`.)
    """
    logits, targets = same_shape("soft_cross_entropy", logits, targets, axes=1)
    return _expected_nats(targets, logits)


@per_example
def kl_divergence(
    logits: jax.Array,
    targets: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """sum_c target_c (log target_c - log softmax(logits)_c), in nats.

    Args:
      logits: [..., C], a floating dtype. They may be log-probabilities.
      targets: [..., C], probabilities: >= 0, with sum 1 over the classes. 0 log 0 is taken as 0.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider; >= 0 up to rounding.

    Raises:
      PathError: the arguments differ in shape.

    Example:
      >>> kl_divergence(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[0.0, 1.0]]))
      Array([0.6931472], dtype=float32)

    Source: Kullback and Leibler 1951, "On Information and Sufficiency", equation 2.4.
    """
    logits, targets = same_shape("kl_divergence", logits, targets, axes=1)
    some = targets > 0
    nats = jnp.log(jnp.where(some, targets, 1)) + jnp.where(some, nats_of_all(logits), 0)
    return jnp.where(some, targets * nats, 0).sum(-1)


@per_example
def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    positive_weight: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """-target * log sigmoid(logit) - (1 - target) * log(1 - sigmoid(logit)), in nats.

    Args:
      logits: [...], a floating dtype. Large values do not overflow.
      targets: [...], in [0, 1].
      positive_weight: >= 0, a number or an array that broadcasts to [...]. The first term, the
        loss of targets of 1, is multiplied by this weight; the second term is not.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], elementwise, float32 or wider, >= 0.

    Raises:
      PathError: the arguments differ in shape, or positive_weight does not broadcast to this shape.
      ValueError: positive_weight is out of range.

    Example:
      >>> sigmoid_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1.0, 1.0]))
      Array([0.6931472, 0.       ], dtype=float32)

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.2.
    """
    logits, targets = same_shape("sigmoid_cross_entropy", logits, targets)
    remedy = "pass a weight above 1 if targets of 1 are rare"
    weight = _weight(
        "sigmoid_cross_entropy", "positive_weight", positive_weight, logits.dtype, remedy
    )
    if jnp.broadcast_shapes(weight.shape, logits.shape) != logits.shape:
        raise PathError(
            f"expected positive_weight to broadcast to {list(logits.shape)}, got "
            f"{list(weight.shape)}; pass one number, or one for each class",
            layer="sigmoid_cross_entropy",
        )
    right = product(targets * weight, jax.nn.softplus(-logits))
    return right + product(1 - targets, jax.nn.softplus(logits))


def _expected_nats(probabilities: jax.Array, logits: jax.Array) -> jax.Array:
    return product(probabilities, nats_of_all(logits)).sum(-1)


def _label_nats(right: jax.Array, logits: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], computed so that it stays accurate where it is near 0.

    The loss equals log(1 + sum over c of e^(z_c - z_label)), where z are the logits and c runs over
    the classes other than the label. To avoid overflow, the largest exponential is factored out.
    """
    label_logit = jnp.where(right, logits, 0).sum(-1, keepdims=True)
    others = jnp.where(right, -jnp.inf, logits)
    top = jax.lax.stop_gradient(others.max(-1, keepdims=True))
    # If the label's logit is -inf, the loss is infinite. Its gradient is defined as the limit of
    # the gradient while the label's logit falls towards -inf.
    never = label_logit == -jnp.inf
    behind = top + bounded(label_logit) - jax.lax.stop_gradient(bounded(label_logit))
    ahead = others - jnp.where(never, behind, label_logit)
    most = jax.lax.stop_gradient(jnp.maximum(ahead.max(-1, keepdims=True), 0))
    total = jnp.exp(bounded(ahead) - bounded(most)).sum(-1, keepdims=True)
    nats = most + jnp.log1p(jnp.where(never, -1, jnp.expm1(-most)) + total)
    return (nats + jnp.where(never, jnp.inf, 0))[..., 0]


def nats_of_all(logits: jax.Array) -> jax.Array:
    """-log softmax(logits), [..., C]. A logit of -inf gives inf; a row of only -inf gives NaN.

    If k logits of a row are +inf, each of them gives log k, and all other logits give inf.
    """
    most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    logits = jnp.where(logits == jnp.inf, bounded(logits) - bounded(most), logits - most)
    return jnp.log(jnp.exp(logits).sum(-1, keepdims=True)) - logits


def _weights(
    name: str, class_weight: jax.Array | Sequence[float] | None, logits: jax.Array
) -> jax.Array:
    if class_weight is None:
        return jnp.ones(logits.shape[-1:], logits.dtype)
    remedy = "pass weights >= 0; a weight of 0 ignores a class"
    weights = _weight(name, "class_weight", class_weight, logits.dtype, remedy)
    if weights.shape != logits.shape[-1:]:
        raise PathError(
            f"expected class weights {list(logits.shape[-1:])} for logits {list(logits.shape)}, "
            f"got {list(weights.shape)}; pass one weight for each class",
            layer=name,
        )
    return weights


def _weight(name: str, what: str, value: Any, dtype: Any, remedy: str) -> jax.Array:
    numbers = value if isinstance(value, jax.Array) else np.asarray(value)
    check_number(name, what, numbers, "[0, inf]", remedy)
    return jnp.asarray(value, dtype)
