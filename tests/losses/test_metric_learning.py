"""Losses of representations: their formulas in float64, and vectors of any length."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from tests.entry_types import LossCase
from tests.losses import oracles
from tests.programs import compiled


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
    return np.diagonal(oracles.nats(scores))


def _sigmoid_contrastive(a, b, scale=10.0, bias=-10.0):
    own = np.eye(len(a))
    return oracles.sigmoid_cross_entropy(scale * _unit(a) @ _unit(b).T + bias, own).sum(-1)


LOSSES = {
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
        told=r"expected same \[6\] for pairs of \[6, 5\], got \[5\]; pass one number for each pair",
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
}


def test_zero_and_equal_vectors_have_finite_slopes():
    losses = (
        lambda x: fdl.contrastive(x, x, jnp.array([0, 1, 0])),
        lambda x: fdl.triplet(x, x, x),
        lambda x: fdl.cosine_distance(x, x + 1),
        lambda x: fdl.info_nce(x, x),
        lambda x: fdl.sigmoid_contrastive(x, x),
    )

    @jax.jit
    def gradients(x):
        return [jax.grad(lambda x, loss=loss: loss(x).sum())(x) for loss in losses]

    for gradient in gradients(np.zeros((3, 4), np.float32)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [fdl.info_nce, fdl.sigmoid_contrastive])
def test_a_batch_of_nothing_has_no_losses(loss):
    nothing = np.ones((0, 3), np.float32)
    assert jax.jit(loss)(nothing, nothing).shape == (0,)
    assert jax.jit(jax.grad(lambda x: loss(x, x).sum()))(nothing).shape == (0, 3)


def test_contrastive_of_equal_and_of_distant_pairs():
    @compiled
    def every(zeros, far):
        pull = jax.hessian(lambda a: fdl.contrastive(a, zeros, jnp.array(1.0)))(zeros)
        push = jax.value_and_grad(lambda a: fdl.contrastive(a, 0 * a, jnp.array(0.0)))
        return pull, push(far), fdl.contrastive(far, far, jnp.array(2))

    pull, (loss, slope), neither = every(np.zeros(2, np.float32), np.float32([1e20, 0.0]))
    np.testing.assert_array_equal(pull, np.eye(2))
    assert loss == 0 and not slope.any()
    assert np.isnan(neither)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e20])
def test_the_cosine_distance_does_not_depend_on_lengths(size):
    a, b, size = np.float32([3.0, 4.0]), np.float32([4.0, -3.0]), np.float32(size)
    distance = compiled(fdl.cosine_distance)
    found = [distance(size * a, other) for other in (size * a, size * b, -a)]
    np.testing.assert_allclose(found, [0, 1, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e25),
        ("float32", 1e-25),
        ("bfloat16", 1e25),
        ("float64", 1e200),
        ("float64", 1e-200),
    ],
)
def test_distances_of_any_size(dtype, size):
    """The squares of these numbers overflow or underflow."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        plain = [(rng.integers(-8, 9, (4, 3)) / 8).astype(dtype) for _ in range(3)]
        exact = [np.float64(x) for x in plain]
        large = [x * np.asarray(size, dtype) for x in plain]
        unit = float(np.asarray(size, dtype))
        near, far = (np.linalg.norm(exact[0] - other, axis=-1) for other in exact[1:])
        margin = 2.0 * unit

        @compiled
        def every(plain, large):
            total = lambda *a: fdl.triplet(*a, margin=margin).sum()  # noqa: E731
            apart = fdl.contrastive(large[0], large[1], jnp.zeros(4), margin=margin)
            return (
                *jax.value_and_grad(total, (0, 1, 2))(*large),
                apart,
                fdl.cosine_distance(*large[:2]),
                [
                    [loss(*large[:2]), loss(*plain[:2])]
                    for loss in (fdl.info_nce, fdl.sigmoid_contrastive)
                ],
            )

        value, slopes, apart, distance, pairs = every(plain, large)
        np.testing.assert_allclose(value / unit, np.maximum(0, near - far + 2).sum(), rtol=1e-5)
        active = (near - far + 2 > 0)[:, None]
        to_near = active * (exact[0] - exact[1]) / near[:, None]
        to_far = active * (exact[0] - exact[2]) / far[:, None]
        bound = 8 * float(jnp.finfo(dtype).eps)
        for found, wanted in zip(slopes, (to_near - to_far, -to_near, to_far), strict=True):
            np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=bound)
        if size < 1:
            assert (apart == 0).all()  # 1e-50 is no float32, and 1e-400 no float64
        cosine = (exact[0] * exact[1]).sum(-1) / np.linalg.norm(exact[0], axis=-1)
        cosine = cosine / np.linalg.norm(exact[1], axis=-1)
        np.testing.assert_allclose(distance, 1 - cosine, atol=1e-6)
        for of_large, of_plain in pairs:
            np.testing.assert_allclose(of_large, of_plain, rtol=1e-5)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid_contrastive"])
def test_rows_that_do_not_exist_are_no_negatives_and_do_not_enter_the_mean(name):
    """As in a padded batch: the loss is that of the batch before it was padded."""
    loss, option = getattr(fdl, name), {"info_nce": "temperature", "sigmoid_contrastive": "scale"}
    a, b = map(np.array, LOSSES[name].data(3, rows=6))
    pad = ((0, 2), (0, 0))
    padded = [np.pad(x, pad, constant_values=7.0) for x in (a, b)]
    exists = np.arange(8) < 6

    def mean(number, w, a, b, **how):
        score = fdl.supervised(lambda w, x: x * w, loss(**{option[name]: number}, **how))
        return score(w, {}, (a, b), None)[0]

    w = np.linspace(0.5, 2, 5, dtype=np.float32)
    slopes = jax.jit(jax.value_and_grad(mean, (0, 1)))
    found, expected = (
        slopes(2.0, w, *args, **how) for args, how in ((padded, {"where": exists}), ((a, b), {}))
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    weighted = fdl.supervised(lambda w, x: x * w, loss(**{option[name]: 2.0}), other=loss)

    @compiled
    def scored(*batch):
        total, (_, values) = weighted(w, {}, batch, None)
        return total, values["other"].value()

    few, first = scored(a[:4], b[:4]), np.arange(6) < 4
    spoilt = np.where(first[:, None], a, np.float32(np.nan))
    for weight in first, np.where(first, np.float32(0.5), np.float32(0)):
        many = scored(spoilt, b, weight)
        np.testing.assert_allclose(many[0], few[0], rtol=1e-5)
        np.testing.assert_allclose(many[1], few[1], rtol=1e-5)
    one_less = fdl.supervised(lambda w, x: x * w, loss(where=np.arange(6) != 1))
    rows = np.array([0, 2, 3])

    @compiled
    def every(nothing, *batch):
        none = jax.value_and_grad(lambda x: loss(x, x, where=exists & False).sum())(nothing)
        return one_less(w, {}, batch, None)[0], loss(a[rows] * w, b[rows]).mean(), none

    nothing = np.full((8, 5), np.nan, np.float32)
    found, expected, (value, slope) = every(nothing, a, b, first)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert value == 0 and (slope == 0).all()


@pytest.mark.parametrize("loss", [fdl.info_nce, fdl.sigmoid_contrastive])
def test_the_message_for_a_where_that_is_not_of_the_rows(loss):
    x = np.ones((4, 3), np.float32)
    for where in x > 0, x[0] > 0, x[:, :1] > 0:
        told = (
            rf"^{loss.__name__}: expected where to have the shape of the loss, \[4\], got "
            rf"{re.escape(str(list(where.shape)))}; use jnp\.broadcast_to(\n|$)"
        )
        for call in (loss, jax.jit(loss)):
            with pytest.raises(fdl.PathError, match=told):
                call(x, x, where=where)


SEEDED_BUGS = {
    "fdl/losses/metric_learning.py": (
        "losses test_laws.py -k test_metric_learning_or_loss",
        [
            ("jnp.square(jnp.maximum(0, jnp.asarray(", "jnp.square((jnp.asarray("),
            ("jnp.where(share == 0, 0, share *", "(share *"),
            ("jnp.square(a - b).sum(-1))", "norm(a - b, -1) ** 2)"),
            ("near - far + jnp", "near - far - jnp"),
            ("/ jnp.asarray(temperature", "* jnp.asarray(temperature"),
            ("scale * scores + bias", "scale * scores - bias"),
            ("scores, -jnp.inf)", "scores, 0)"),
            ("losses.sum(-1, where=where)", "losses.sum(-1)"),
            ("(per_example, of_batches=True)", "(per_example)"),
        ],
    ),
}
