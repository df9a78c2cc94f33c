"""Margins and focus: their formulas in float64, and labels out of range."""

import functools

import jax
import numpy as np
import optax
import pytest
import scipy.special

import fdl
from tests.entry_types import LossCase
from tests.losses import oracles
from tests.programs import compiled


def _sigmoid_focal(logits, targets, gamma=2.0, alpha=None):
    chance = scipy.special.expit(np.where(targets == 1, logits, -logits))
    nats = oracles.sigmoid_cross_entropy(logits, targets)
    weight = 1 if alpha is None else np.where(targets == 1, alpha, 1 - alpha)
    return weight * (1 - chance) ** gamma * nats


def _softmax_focal(logits, labels, gamma=2.0):
    nats = oracles.softmax_cross_entropy(logits, labels)
    return nats * (-np.expm1(-nats)) ** gamma


def _multiclass_hinge(scores, labels):
    own = np.eye(scores.shape[-1], dtype=bool)[labels]
    return np.maximum(
        0, 1 + np.where(own, -np.inf, scores).max(-1) - oracles.picked(scores, labels)
    )


LOSSES = {
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
}


@pytest.mark.parametrize("name", ["softmax_focal", "multiclass_hinge"])
def test_labels_out_of_range_give_nan(name):
    loss = jax.jit(getattr(fdl, name))(np.ones((4, 3), np.float32), np.int32([0, 3, -1, 2]))
    assert np.isnan(loss).tolist() == [False, True, True, False]
    focal = jax.jit(fdl.sigmoid_focal)(np.ones(3, np.float32), np.float32([0.0, 0.5, 1.0]))
    assert np.isnan(focal).tolist() == [False, True, False]


def test_focal_loss_with_gamma_0_is_the_cross_entropy():
    logits, labels = LOSSES["softmax_focal"].data(4)
    both = compiled(
        lambda *args: (fdl.softmax_focal(*args, gamma=0.0), fdl.softmax_cross_entropy(*args))
    )
    np.testing.assert_allclose(*both(logits, labels), rtol=1e-6)
    both = compiled(
        lambda *args: (fdl.sigmoid_focal(*args, gamma=0.0), fdl.sigmoid_cross_entropy(*args))
    )
    np.testing.assert_allclose(*both(*LOSSES["sigmoid_focal"].data(4)), rtol=1e-5, atol=1e-6)


SEEDED_BUGS = {
    "fdl/losses/classification.py": (
        "losses",
        [
            ("logits.dtype) * other_nats)", "logits.dtype) * target_logits)"),
            ("bounded(jax.nn.softplus(target_logits))", "jax.nn.softplus(target_logits)"),
            ("jnp.where(jnp.isinf(nats), nats, bounded(nats) * power)", "nats * power"),
            ("bounded(nats) * power", "nats * power"),
            ("alpha, 1 - alpha)", "1 - alpha, alpha)"),
            ("-jnp.expm1(-nats)", "jnp.exp(-nats)"),
            ("jnp.where(right, -jnp.inf, scores)", "scores"),
        ],
    ),
}
