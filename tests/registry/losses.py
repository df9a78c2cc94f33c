"""Losses, their float64 formulas and optax's."""

import numpy as np
import optax
import scipy.special

import fdl
from registry.cases import LossCase


def _softmax_cross_entropy(logits, labels):
    chances = scipy.special.log_softmax(logits, axis=-1)
    return -np.take_along_axis(chances, labels[..., None], -1)[..., 0]


def _sigmoid_cross_entropy(logits, targets):
    log, log_not = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    return -(targets * log + (1 - targets) * log_not)


LOSSES = {
    "softmax_cross_entropy": LossCase(
        fdl.softmax_cross_entropy,
        "labels",
        _softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "sigmoid_cross_entropy": LossCase(
        fdl.sigmoid_cross_entropy,
        "chances",
        _sigmoid_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
    ),
    "squared_error": LossCase(
        fdl.squared_error, "numbers", lambda p, t: (p - t) ** 2, optax.squared_error
    ),
}
