"""Losses, their float64 formulas and optax's."""

import functools
import math

import jax
import numpy as np
import optax
import scipy.special

import fdl
from registry.cases import LossCase

CLASS_WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0])


def _picked(values, labels):
    return np.take_along_axis(values, labels[..., None], -1)[..., 0]


def _nats(logits):
    return -scipy.special.log_softmax(logits, axis=-1)


def _softmax_cross_entropy(logits, labels):
    return _picked(_nats(logits), labels)


def _log_chances(rng, rows, classes, size):
    return -_nats(size * rng.standard_normal((rows, classes))), rng.integers(0, classes, rows)


def _some_left_out(rng, rows, classes, size):
    """Labels of which a third does not count; the first one does."""
    labels = rng.integers(0, classes, rows)
    labels[1::3] = -100
    return size * rng.standard_normal((rows, classes)), labels


def _ignoring(logits, labels):
    return np.where(labels < 0, 0, _softmax_cross_entropy(logits, np.maximum(labels, 0)))


def _smoothed_and_weighted(logits, labels):
    chances = 0.8 * np.eye(5)[labels] + 0.2 / 5
    return (chances * CLASS_WEIGHT * _nats(logits)).sum(-1)


def _sigmoid_cross_entropy(logits, targets, weight=1.0):
    log, log_not = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    return -(weight * targets * log + (1 - targets) * log_not)


def _sigmoid_focal(logits, targets, gamma=2.0, alpha=None):
    chance = scipy.special.expit(np.where(targets == 1, logits, -logits))
    nats = _sigmoid_cross_entropy(logits, targets)
    weight = 1 if alpha is None else np.where(targets == 1, alpha, 1 - alpha)
    return weight * (1 - chance) ** gamma * nats


def _softmax_focal(logits, labels, gamma=2.0):
    nats = _softmax_cross_entropy(logits, labels)
    return nats * (-np.expm1(-nats)) ** gamma


def _multiclass_hinge(scores, labels):
    own = np.eye(scores.shape[-1], dtype=bool)[labels]
    return np.maximum(0, 1 + np.where(own, -np.inf, scores).max(-1) - _picked(scores, labels))


def _huber(predictions, targets, delta=1.0):
    error = np.abs(predictions - targets)
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


def _log_cosh(predictions, targets):
    error = np.abs(predictions - targets)
    return np.logaddexp(error, -error) - math.log(2)


def _quantile(predictions, targets, level=0.5):
    error = targets - predictions
    return np.maximum(level * error, (level - 1) * error)


def _of_two(rng, rows, classes, size):
    # Variances between 1/4 and 4: the small ones would ask for more than float32 has.
    predictions = np.stack([size * rng.standard_normal(rows), rng.uniform(-1.4, 1.4, rows)], -1)
    return predictions, size * rng.standard_normal(rows)


def _gaussian_nll(predictions, targets, epsilon=1e-6):
    log_variance = np.logaddexp(predictions[..., 1], math.log(epsilon))
    error = targets - predictions[..., 0]
    return (math.log(2 * math.pi) + log_variance + error**2 * np.exp(-log_variance)) / 2


def _poisson_nll(predictions, targets):
    low = np.minimum(predictions, 60)
    rate = np.exp(low) * (1 + predictions - low)
    return rate - targets * predictions + scipy.special.gammaln(targets + 1)


def _dice(logits, targets, smooth=1.0):
    chances = scipy.special.expit(logits)
    both = 2 * (chances * targets).sum(-1) + smooth
    return 1 - both / (chances.sum(-1) + targets.sum(-1) + smooth)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-8)


def _cosine_distance(predictions, targets):
    return 1 - (_unit(predictions) * _unit(targets)).sum(-1)


def _pairs(rng, rows, classes, size):
    a = rng.standard_normal((rows, classes))
    # Some nearer than the margin, some farther.
    b = a + rng.standard_normal((rows, classes)) * np.linspace(0.2, 2, rows)[:, None]
    return a, b, np.arange(rows) % 2


def _contrastive(a, b, same, margin=1.0):
    distance = np.linalg.norm(a - b, axis=-1)
    return np.where(same == 1, distance**2, np.maximum(0, margin - distance) ** 2) / 2


def _triples(rng, rows, classes, size):
    return tuple(rng.standard_normal((rows, classes)) for _ in range(3))


def _triplet(anchor, positive, negative, margin=1.0):
    near, far = (np.linalg.norm(anchor - other, axis=-1) for other in (positive, negative))
    return np.maximum(0, near - far + margin)


def _two_views(rng, rows, classes, size):
    a = rng.standard_normal((rows, classes))
    return a, a + 0.7 * rng.standard_normal((rows, classes))


def _info_nce(queries, keys, temperature=0.07):
    scores = _unit(queries) @ _unit(keys).T / temperature
    return np.diagonal(_nats(scores))


def _sigmoid_contrastive(a, b, scale=10.0, bias=-10.0):
    own = np.eye(len(a))
    return _sigmoid_cross_entropy(scale * _unit(a) @ _unit(b).T + bias, own).sum(-1)


def _texts(rng, rows, classes, size):
    """Texts of 0 to 3 letters, some with a letter twice in a row."""
    labels = rng.integers(1, classes, (rows, 3))
    labels[: rows // 2, 1] = labels[: rows // 2, 0]
    labels[np.arange(3) >= (np.arange(rows) % 4)[:, None]] = -1
    return size * rng.standard_normal((rows, 6, classes)), labels, 6 - np.arange(rows) % 2


def _ctc(logits, labels, lengths, blank=0):
    """Graves et al. 2006, one text and one state at a time."""
    if logits.ndim > 2:
        rows = zip(logits, labels, lengths, strict=True)
        return np.array([_ctc(*row, blank=blank) for row in rows])
    says = -_nats(logits)[: int(lengths)]
    letters = [int(each) for each in labels if each >= 0]
    states = [blank, *(state for letter in letters for state in (letter, blank))]
    at = np.full(len(states), -np.inf)
    at[0] = 0.0
    for frame in says:
        before, at = at, np.full(len(states), -np.inf)
        for i, state in enumerate(states):
            come = [before[i], before[i - 1] if i else -np.inf]
            if i > 1 and state != blank and state != states[i - 2]:
                come.append(before[i - 2])
            at[i] = scipy.special.logsumexp(come) + frame[state]
    return -scipy.special.logsumexp(at[-2:])


def _tokens(rng, rows, classes, size):
    hidden, w = rng.standard_normal((rows, 4)), size * rng.standard_normal((4, classes)) / 2
    return hidden, w, rng.integers(0, classes, rows)


LOSSES = {
    "softmax_cross_entropy": LossCase(
        fdl.softmax_cross_entropy,
        "labels",
        _softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "softmax_cross_entropy_smoothed_and_weighted": LossCase(
        functools.partial(fdl.softmax_cross_entropy, smoothing=0.2, class_weight=CLASS_WEIGHT),
        "labels",
        _smoothed_and_weighted,
    ),
    "softmax_cross_entropy_ignoring": LossCase(
        fdl.softmax_cross_entropy(ignore_index=-100),
        _some_left_out,
        _ignoring,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; one class ",
    ),
    "categorical_nll": LossCase(
        functools.partial(fdl.categorical_nll, class_weight=CLASS_WEIGHT),
        _log_chances,
        lambda logs, labels: -CLASS_WEIGHT[labels] * _picked(logs, labels),
        lowest=-math.inf,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; one class ",
    ),
    "soft_cross_entropy": LossCase(
        fdl.soft_cross_entropy,
        "distributions",
        lambda logits, targets: (targets * _nats(logits)).sum(-1),
        optax.softmax_cross_entropy,
    ),
    "kl_divergence": LossCase(
        fdl.kl_divergence,
        "distributions",
        lambda logits, targets: (targets * _nats(logits) - scipy.special.entr(targets)).sum(-1),
        lambda logits, targets: optax.kl_divergence(jax.nn.log_softmax(logits), targets),
        lowest=-1e-6,
    ),
    "sigmoid_cross_entropy": LossCase(
        fdl.sigmoid_cross_entropy,
        "chances",
        _sigmoid_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
    ),
    "sigmoid_cross_entropy_weighted": LossCase(
        functools.partial(fdl.sigmoid_cross_entropy, positive_weight=CLASS_WEIGHT),
        "chances",
        functools.partial(_sigmoid_cross_entropy, weight=CLASS_WEIGHT),
    ),
    "sigmoid_focal": LossCase(
        functools.partial(fdl.sigmoid_focal, gamma=1.5, alpha=0.3),
        "zero or one",
        functools.partial(_sigmoid_focal, gamma=1.5, alpha=0.3),
        functools.partial(optax.sigmoid_focal_loss, gamma=1.5, alpha=0.3),
    ),
    "sigmoid_focal_as_it_comes": LossCase(
        fdl.sigmoid_focal, "zero or one", _sigmoid_focal, optax.sigmoid_focal_loss
    ),
    "softmax_focal": LossCase(fdl.softmax_focal, "labels", _softmax_focal),
    "softmax_focal_half": LossCase(
        functools.partial(fdl.softmax_focal, gamma=0.5),
        "labels",
        functools.partial(_softmax_focal, gamma=0.5),
    ),
    "hinge": LossCase(fdl.hinge, "signs", lambda s, t: np.maximum(0, 1 - s * t), optax.hinge_loss),
    "multiclass_hinge": LossCase(
        fdl.multiclass_hinge, "labels", _multiclass_hinge, optax.losses.multiclass_hinge_loss
    ),
    "squared_error": LossCase(
        fdl.squared_error, "numbers", lambda p, t: (p - t) ** 2, optax.squared_error, moved=(0, 1)
    ),
    "absolute_error": LossCase(
        fdl.absolute_error, "numbers", lambda p, t: np.abs(p - t), moved=(0, 1)
    ),
    "huber": LossCase(
        functools.partial(fdl.huber, delta=1.7),
        "numbers",
        functools.partial(_huber, delta=1.7),
        functools.partial(optax.huber_loss, delta=1.7),
        moved=(0, 1),
    ),
    "log_cosh": LossCase(fdl.log_cosh, "numbers", _log_cosh, optax.log_cosh, lowest=-1e-6),
    "quantile": LossCase(
        functools.partial(fdl.quantile, level=0.85),
        "numbers",
        functools.partial(_quantile, level=0.85),
    ),
    "gaussian_nll": LossCase(
        fdl.gaussian_nll,
        _of_two,
        _gaussian_nll,
        lowest=-math.inf,
        told=r"expected predictions \[5, 2\] for targets \[5\], got \[6, 2\]; a mean and a ",
        near=3e-6,
    ),
    "poisson_nll": LossCase(fdl.poisson_nll, "counts", _poisson_nll, lowest=-1e-6),
    "dice": LossCase(
        functools.partial(fdl.dice, smooth=0.5),
        "chances",
        functools.partial(_dice, smooth=0.5),
    ),
    "cosine_distance": LossCase(
        fdl.cosine_distance,
        "numbers",
        _cosine_distance,
        functools.partial(optax.cosine_distance, epsilon=1e-8),
        moved=(0, 1),
        lowest=-1e-6,
    ),
    "contrastive": LossCase(
        functools.partial(fdl.contrastive, margin=1.5),
        _pairs,
        functools.partial(_contrastive, margin=1.5),
        moved=(0, 1),
        told=r"expected same \[6\] for pairs of \[6, 5\], got \[5\]; one number for each pair",
    ),
    "triplet": LossCase(
        functools.partial(fdl.triplet, margin=1.5),
        _triples,
        functools.partial(_triplet, margin=1.5),
        moved=(0, 1, 2),
        near=4e-3,  # the difference of two distances of 20,000, each to the nearest 0.002
    ),
    "info_nce": LossCase(
        functools.partial(fdl.info_nce, temperature=0.3),
        _two_views,
        functools.partial(_info_nce, temperature=0.3),
        moved=(0, 1),
        alone=False,
    ),
    "sigmoid_contrastive": LossCase(
        functools.partial(fdl.sigmoid_contrastive, scale=5.0, bias=-3.0),
        _two_views,
        functools.partial(_sigmoid_contrastive, scale=5.0, bias=-3.0),
        moved=(0, 1),
        alone=False,
    ),
    "ctc": LossCase(
        lambda logits, labels, lengths, **more: fdl.ctc(logits, labels, lengths=lengths, **more),
        _texts,
        _ctc,
        told=r"expected integer lengths \[6\] for logits \[6, 6, 5\], got int32 \[5\]; a number of "
        r"frames for ",
    ),
    "linear_cross_entropy": LossCase(
        functools.partial(fdl.linear_cross_entropy, chunk=4),
        _tokens,
        lambda hidden, w, labels: _softmax_cross_entropy(hidden @ w, labels),
        moved=(0, 1),
        shared=(1,),
        told=r"expected integer labels \[6\] for hidden \[6, 4\], got int32 \[5\]; one class ",
        near=1e-5,
    ),
    "z_loss": LossCase(
        fdl.z_loss,
        lambda rng, rows, classes, size: (size * rng.standard_normal((rows, classes)),),
        lambda logits: scipy.special.logsumexp(logits, -1) ** 2,
        told="",
    ),
}
