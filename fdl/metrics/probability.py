"""Metrics of predicted probabilities: perplexity, bits per byte, calibration."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_count
from fdl.losses.cross_entropy import softmax_cross_entropy
from fdl.losses.shapes import precise
from fdl.metrics.classification import class_numbers, predicted_class
from fdl.metrics.metric import Metric, ratio, summed, weighted_sum, weights_of


def perplexity() -> Metric:
    """exp(mean cross-entropy): the number of equally likely classes with the same uncertainty.

    Returns:
      Metric whose inputs are logits [..., C] and integer labels [...].

    Raises:
      PathError: `update` gets labels that are not integers or whose shape is not logits.shape[:-1],
        or C is 1.

    Example:
      >>> metric = perplexity()
      >>> state = metric.update(metric.init(), jnp.zeros((2, 4)), jnp.array([0, 3]))
      >>> round(float(metric.compute(state)), 4)
      4.0

    Source: Jelinek, Mercer, Bahl and Baker 1977, "Perplexity - a measure of the difficulty of
    speech recognition tasks".
    """

    def count(logits: jax.Array, labels: jax.Array, weight: Any) -> dict[str, jax.Array]:
        labels = class_numbers("perplexity", logits, labels)
        nats = softmax_cross_entropy(logits, labels)
        weight = weights_of("perplexity", labels.shape, weight)
        return {"nats": weighted_sum(nats, weight), "count": weight.sum()}

    return summed(
        {"nats": (), "count": ()}, count, lambda sums: jnp.exp(ratio(sums["nats"], sums["count"]))
    )


def bits_per_byte(bytes_of: jax.Array) -> Metric:
    """The total cross-entropy in bits, divided by the number of bytes.

    Use it to compare models with different vocabularies.

    Args:
      bytes_of: [C], the number of bytes of each token. If every token is a byte, pass ones.

    Returns:
      Metric whose inputs are logits [..., C] and integer labels [...].

    Raises:
      PathError: `update` gets logits whose number of classes is not C.

    Example:
      >>> metric = bits_per_byte(jnp.array([1, 3, 1, 1]))
      >>> state = metric.update(metric.init(), jnp.zeros((2, 4)), jnp.array([0, 1]))
      >>> float(metric.compute(state))  # 4 bits for 4 bytes
      1.0

    Source: Gao et al. 2020, "The Pile", section 3.1.
    """

    def count(logits: jax.Array, labels: jax.Array, weight: Any) -> dict[str, jax.Array]:
        labels = class_numbers("bits_per_byte", logits, labels, len(bytes_of))
        weight = weights_of("bits_per_byte", labels.shape, weight)
        nats = softmax_cross_entropy(logits, labels)
        lengths = jnp.asarray(bytes_of, jnp.float32)[labels]
        return {"nats": weighted_sum(nats, weight), "bytes": weighted_sum(lengths, weight)}

    return summed(
        {"nats": (), "bytes": ()},
        count,
        lambda sums: ratio(sums["nats"], sums["bytes"]) / math.log(2),
    )


def calibration_error(bins: int = 15) -> Metric:
    """The expected calibration error: the mean of |confidence - accuracy| over bins of confidence.

    The confidence of an example is the probability of its predicted class. Bin m = 1, ..., bins
    holds the examples whose confidence is in ((m - 1) / bins, m / bins]. The confidence of a bin is
    the mean over its examples. In the mean over bins, a bin is weighted by its number of examples.

    Args:
      bins: the number of bins, >= 1.

    Returns:
      Metric whose inputs are logits [..., C] and integer labels [...]. Its value is in
      [0, 1].

    Raises:
      ValueError: bins is below 1.

    Example:
      >>> metric = calibration_error()
      >>> logits = jnp.log(jnp.array([[0.75, 0.25]] * 4))
      >>> state = metric.update(metric.init(), logits, jnp.array([0, 0, 1, 1]))
      >>> round(float(metric.compute(state)), 4)
      0.25

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    bins = check_count("calibration_error", "bins", bins, "pass 15, the usual number")

    def count(logits: jax.Array, labels: jax.Array, weight: Any) -> dict[str, jax.Array]:
        labels = class_numbers("calibration_error", logits, labels)
        weight = weights_of("calibration_error", labels.shape, weight).ravel()
        confidence = jax.nn.softmax(precise(logits)).max(-1).astype(jnp.float32).ravel()
        right = (predicted_class(logits).astype(labels.dtype) == labels).ravel()
        place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        nothing = jnp.zeros(bins, weight.dtype)
        sums = {
            "count": nothing.at[place].add(weight),
            "right": nothing.at[place].add(jnp.where(right, weight, nothing[0])),
        }
        part = jnp.where(weight == 0, 0, weight.astype(confidence.dtype) * confidence)
        return {**sums, "confidence": jnp.zeros(bins, confidence.dtype).at[place].add(part)}

    def compute(sums: dict[str, jax.Array]) -> jax.Array:
        return ratio(jnp.abs(sums["confidence"] - sums["right"]).sum(), sums["count"].sum())

    return summed({"count": (bins,), "confidence": (bins,), "right": (bins,)}, count, compute)
