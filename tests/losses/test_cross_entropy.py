"""Cross-entropies: their formulas in float64, and infinite, small and weighted cases."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import fdl
from tests.entry_types import LossCase
from tests.losses import oracles
from tests.programs import compiled


def _log_probs(rng, rows, classes, size):
    return -oracles.nats(size * rng.standard_normal((rows, classes))), rng.integers(
        0, classes, rows
    )


def _some_left_out(rng, rows, classes, size):
    """Labels of which a third is -100; the first one is not."""
    labels = rng.integers(0, classes, rows)
    labels[1::3] = -100
    return size * rng.standard_normal((rows, classes)), labels


def _ignoring(logits, labels):
    return np.where(labels < 0, 0, oracles.softmax_cross_entropy(logits, np.maximum(labels, 0)))


def _smoothed_and_weighted(logits, labels):
    chances = 0.8 * np.eye(5)[labels] + 0.2 / 5
    return (chances * oracles.CLASS_WEIGHT * oracles.nats(logits)).sum(-1)


LOSSES = {
    "softmax_cross_entropy": LossCase(
        fdl.softmax_cross_entropy,
        "labels",
        oracles.softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "softmax_cross_entropy_smoothed_and_weighted": LossCase(
        functools.partial(
            fdl.softmax_cross_entropy, smoothing=0.2, class_weight=oracles.CLASS_WEIGHT
        ),
        "labels",
        _smoothed_and_weighted,
    ),
    "softmax_cross_entropy_ignoring": LossCase(
        fdl.softmax_cross_entropy(ignore_index=-100),
        _some_left_out,
        _ignoring,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; pass one label ",
    ),
    "categorical_nll": LossCase(
        functools.partial(fdl.categorical_nll, class_weight=oracles.CLASS_WEIGHT),
        _log_probs,
        lambda logs, labels: -oracles.CLASS_WEIGHT[labels] * oracles.picked(logs, labels),
        lowest=-math.inf,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; pass one label ",
    ),
    "soft_cross_entropy": LossCase(
        fdl.soft_cross_entropy,
        "distributions",
        lambda logits, targets: (targets * oracles.nats(logits)).sum(-1),
        optax.softmax_cross_entropy,
    ),
    "kl_divergence": LossCase(
        fdl.kl_divergence,
        "distributions",
        lambda logits, targets: (targets * oracles.nats(logits) - scipy.special.entr(targets)).sum(
            -1
        ),
        lambda logits, targets: optax.kl_divergence(jax.nn.log_softmax(logits), targets),
        lowest=-1e-6,
    ),
    "sigmoid_cross_entropy": LossCase(
        fdl.sigmoid_cross_entropy,
        "chances",
        oracles.sigmoid_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
    ),
    "sigmoid_cross_entropy_weighted": LossCase(
        functools.partial(fdl.sigmoid_cross_entropy, positive_weight=oracles.CLASS_WEIGHT),
        "chances",
        functools.partial(oracles.sigmoid_cross_entropy, weight=oracles.CLASS_WEIGHT),
    ),
}


@functools.cache
def value_and_slope(loss):
    """Of the sum over examples, in one program."""
    return compiled(jax.value_and_grad(lambda *args: loss(*args).sum()))


def test_smoothing_matches_soft_targets():
    logits, labels = LOSSES["softmax_cross_entropy"].data(2)
    smoothed = compiled(fdl.softmax_cross_entropy(smoothing=0.3))(logits, labels)
    targets = np.float32(0.7 * np.eye(5)[np.asarray(labels)] + 0.3 / 5)
    expected = compiled(fdl.soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)


def test_the_logit_of_a_class_of_probability_0_may_be_minus_infinity():
    logits = np.float32([[0.5, -np.inf, 1.0]])
    for loss, target in [
        (fdl.softmax_cross_entropy, np.int32([0])),
        (fdl.soft_cross_entropy, np.float32([[1.0, 0.0, 0.0]])),
        (fdl.kl_divergence, np.float32([[1.0, 0.0, 0.0]])),
    ]:
        value, gradient = value_and_slope(loss)(logits, target)
        assert float(value) == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-6)
        assert np.isfinite(gradient).all()


def test_the_gradient_of_the_targets_of_kl_divergence():
    """For a class of probability 0, where the slope of t log t is infinite, it is taken as 0."""
    logits, targets = np.float32([[1.0, 2.0, -1.0]]), np.float32([[0.0, 0.4, 0.6]])
    gradient = compiled(jax.grad(lambda t: fdl.kl_divergence(logits, t).sum()))(targets)
    logs = np.array([1.0, 2.0, -1.0]) - np.log(np.exp([1.0, 2.0, -1.0]).sum())
    exact = [0, math.log(0.4) + 1 - logs[1], math.log(0.6) + 1 - logs[2]]
    np.testing.assert_allclose(gradient[0], exact, rtol=1e-6)


@compiled
def nats_and_slopes(logits, labels):
    """Of each example."""

    def total(logits):
        values = fdl.softmax_cross_entropy(logits, labels)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(logits)
    return values, gradient


def test_a_small_cross_entropy_is_accurate_to_the_last_digits():
    logits = np.array([[17.0, 0.0, 5.0], [40.0, 0.0, 1.0], [3.0, 2.0, 3.0], [-1e4, 1e4, 0.0]])
    gaps = logits - logits[:, :1]
    most = gaps.max(-1)
    exact = most + np.log1p(np.exp(gaps - most[:, None]).sum(-1) - 1)
    exact[:2] = np.log1p(np.exp(gaps[:2, 1:]).sum(-1))
    labels = np.zeros(4, np.int32)
    narrow = logits.astype(np.float32)
    value, gradient = nats_and_slopes(narrow, labels)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    chances = np.exp(gaps[:2, 1:]) / (1 + np.exp(gaps[:2, 1:]).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient[:2, 1:], chances, rtol=1e-6)
    np.testing.assert_allclose(gradient[:2, 0], -chances.sum(-1), rtol=1e-6)


def test_a_label_of_probability_0_has_an_infinite_loss_and_finite_slopes():
    logits = np.float32([[0.0, -np.inf, 1.0], [np.inf, 0.0, 1.0]])
    value, gradient = nats_and_slopes(logits, np.int32([1, 0]))
    np.testing.assert_array_equal(value, [np.inf, 0.0])
    assert np.isfinite(gradient).all()


def test_the_second_derivative_of_a_cross_entropy_where_all_logits_are_equal():
    hessian = jax.jit(jax.hessian(lambda z: fdl.softmax_cross_entropy(z, jnp.array(1))))
    hessian = hessian(np.zeros(3, np.float32))
    np.testing.assert_allclose(hessian, np.eye(3) / 3 - 1 / 9, atol=1e-6)


def test_the_gradient_of_soft_targets():
    targets = np.float32([0.5, 0.5, 0.0])
    logits = np.float32([0.0, 1.0, -2.0])
    slopes, of_kl = (
        compiled(jax.grad(f, (0, 1))) for f in (fdl.soft_cross_entropy, fdl.kl_divergence)
    )
    _, by_target = slopes(logits, targets)
    np.testing.assert_allclose(by_target, -scipy.special.log_softmax(logits), rtol=1e-6)
    never = np.float32([0.0, 1.0, -np.inf])
    for each in (*slopes(never, targets), *of_kl(never, targets)):
        assert np.isfinite(each).all()


def test_class_weights_without_smoothing_multiply_the_loss():
    logits, labels = np.float32([[0.5, -2.0, 1.0], [3.0, 0.0, -1.0]]), np.int32([2, 0])
    weight = np.float32([0.25, 1.0, 4.0])
    expected = weight[labels] * nats_and_slopes(logits, labels)[0]
    got = compiled(fdl.softmax_cross_entropy(class_weight=weight))(logits, labels)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    traced = jax.jit(functools.partial(fdl.softmax_cross_entropy, class_weight=weight))
    np.testing.assert_allclose(traced(logits, labels, smoothing=0.0), expected, rtol=1e-6)


def test_a_log_probability_of_minus_infinity_costs_infinity_unless_its_weight_is_0():
    logs, labels = np.float32([[0.0, -np.inf], [-np.inf, 0.0]]), np.int32([1, 1])
    loss, slope = value_and_slope(fdl.categorical_nll)(logs, labels)
    assert loss == np.inf and slope.tolist() == [[0, -1], [0, -1]]
    weighted = compiled(fdl.categorical_nll(class_weight=[1.0, 0.0]))
    assert weighted(logs, labels).tolist() == [0, 0]
    assert np.isnan(compiled(fdl.categorical_nll)(logs, np.int32([2, -1]))).all()


SEEDED_BUGS = {
    "fdl/losses/cross_entropy.py": (
        "losses test_numbers.py test_laws.py -k loss_or_entropy_or_numbers",
        [
            ("jax.lax.stop_gradient(logits.max(-1, keepdims=True))", "0 * logits.max()"),
            ("product(1 - targets, jax.nn.softplus(logits))", "jax.nn.softplus(logits)"),
            ("product(1 - targets, jax", "((1 - targets) * jax"),
            ("jnp.expm1(-most)) + total)", "jnp.exp(-most) - 1) + total)"),
            ("jnp.where(never, behind, label_logit)", "label_logit"),
            ("bounded(ahead) - bounded(most)", "ahead - most"),
            ("bounded(logits) - bounded(most), logits - most", "logits - most, logits - most"),
            ("jnp.where(some, nats_of_all(logits), 0)", "nats_of_all(logits)"),
            ("if jnp.broadcast_shapes(weight.shape, logits.shape) != logits.shape:", "if False:"),
            ("1 - share + share / classes", "1 - share"),
            ("_expected_nats(smoothed * weights", "_expected_nats(smoothed"),
            ("product(jnp.where(right, weights, 0).sum(-1), ", "("),
            ("jnp.where(some, targets, 1)", "targets"),
        ],
    ),
}
