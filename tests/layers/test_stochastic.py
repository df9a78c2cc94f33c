"""Dropout: which elements are dropped together, how often, and the mean of the result."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled

LAYERS = {
    "spatial_dropout": LayerCase(lambda: fdl.spatial_dropout(0.4), (4, 3, 6), random=True),
    "drop_path": LayerCase(lambda: fdl.drop_path(0.4), (12, 2), random=True),
    "gaussian_dropout": LayerCase(lambda: fdl.gaussian_dropout(0.3), (3, 4), random=True),
    "alpha_dropout": LayerCase(lambda: fdl.alpha_dropout(0.4), (6, 5), random=True),
}


KEY = jax.random.key(0)
KINDS = ["spatial_dropout", "drop_path", "gaussian_dropout", "alpha_dropout"]


def drawn(layer, x, key=KEY):
    return compiled(lambda x, key: layer.apply({}, {}, x, key=key, train=True)[0])(x, key)


@pytest.mark.parametrize(
    ("kind", "together", "apart"),
    [("spatial_dropout", (1, 2), (0, 3)), ("drop_path", (1, 2, 3), (0,))],
)
def test_what_is_dropped_together(kind, together, apart):
    rate = 0.3
    x = np.float32(1 + np.random.default_rng(0).random((60, 3, 4, 50)))
    y = drawn(getattr(fdl, kind)(rate), x)
    kept = y != 0
    assert (kept.all(together) == kept.any(together)).all()
    once = kept.any(together)
    n = once.size
    assert abs(once.mean() - 0.7) < 4 * math.sqrt(rate * (1 - rate) / n)
    assert all(once.any(axis).all() and not once.all(axis).all() for axis in range(once.ndim))
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-6)
    assert len(apart) == once.ndim


def test_gaussian_dropout_has_the_moments_of_dropout():
    n, rate = 40_000, 0.3
    x = np.full(n, 2, np.float32)
    factor = drawn(fdl.gaussian_dropout(rate), x) / 2
    variance = rate / (1 - rate)
    assert abs(factor.mean() - 1) < 4 * math.sqrt(variance / n)
    assert abs(factor.var() / variance - 1) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_alpha_dropout_keeps_mean_and_variance(rate):
    n = 40_000
    x = np.float32(np.random.default_rng(1).standard_normal(n))
    y = drawn(fdl.alpha_dropout(rate), x)
    assert abs(y.mean()) < 4 / math.sqrt(n)
    assert abs(y.var() - 1) < 0.03
    # One value stands for all that were dropped: the floor of SELU, moved and scaled as the rest.
    values, counts = np.unique(y, return_counts=True)
    floor = values[counts.argmax()]
    dropped = y == floor
    assert abs(dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    slope, offset = np.polyfit(x[~dropped].astype(np.float64), y[~dropped], 1)
    low = float(jax.nn.selu(jnp.float32(-1e4)))
    np.testing.assert_allclose(slope * low + offset, floor, rtol=1e-5)


def test_alpha_dropout_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is not here: alpha dropout was not compared")
    y = drawn(fdl.alpha_dropout(0.4), np.full(200, 0.7, np.float32))
    torch.manual_seed(0)
    theirs = torch.nn.functional.alpha_dropout(torch.full((200,), 0.7), p=0.4, training=True)
    np.testing.assert_allclose(np.unique(y), np.unique(theirs.numpy()), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_happens_in_evaluation_or_at_rate_zero(kind):
    x, make = jnp.ones((3, 4)), getattr(fdl, kind)
    assert make(0.5).apply({}, {}, x)[0] is x
    assert make(0.0).apply({}, {}, x, key=KEY, train=True)[0] is x


@pytest.mark.parametrize("kind", ["dropout", "spatial_dropout", "drop_path", "alpha_dropout"])
def test_at_rate_one_all_is_zero_and_so_is_the_gradient(kind):
    x = array(np.random.default_rng(0).standard_normal((4, 3, 5)))

    def total(x, rate):
        y = getattr(fdl, kind)(rate).apply({}, {}, x, key=KEY, train=True)[0]
        return jnp.cos(y + 1).sum(), y

    for f in (jax.grad(total, has_aux=True), jax.jit(jax.grad(total, has_aux=True))):
        gradient, y = map(np.asarray, f(x, 1.0))
        assert (y == 0).all()
        assert (gradient == 0).all()
    assert np.isfinite(jax.jit(jax.grad(total, 1, has_aux=True))(x, 1.0)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, jnp.nan])
def test_a_rate_out_of_range(kind, rate):
    if rate == 1 and kind != "gaussian_dropout":
        return
    end = r"\)" if kind == "gaussian_dropout" else r"\]"
    message = rf"^{kind}: expected rate in \[0, 1{end}, got {rate}; pass 0\.1 to drop 10 %$"
    with pytest.raises(ValueError, match=message):
        getattr(fdl, kind)(rate)


def test_an_input_without_the_axes_to_drop():
    for kind, shape, x in [
        ("spatial_dropout", r"\[B, \.\.\., C\]", jnp.ones(3)),
        ("drop_path", r"\[B, \.\.\.\]", jnp.ones(())),
    ]:
        layer = getattr(fdl, kind)(0.5)
        message = (
            rf"^{kind}: expected x {shape}, got \[{3 if x.ndim else ''}\]; give x a batch axis, or "
            rf"use dropout"
        )
        for call in (layer.apply, jax.jit(layer.apply, static_argnames="train")):
            with pytest.raises(fdl.PathError, match=message):
                call({}, {}, x, key=KEY, train=True)


SEEDED_BUGS = {
    "fdl/layers/weightless.py": (
        "layers/test_stochastic.py",
        [("if training is None or not train:", "if training is None:")],
    ),
    "fdl/layers/stochastic.py": (
        "layers/test_stochastic.py test_numbers.py",
        [
            ("bernoulli(key, kept, shape)", "bernoulli(key, 1 - kept, shape)"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x / in_dtype(1 - kept, x.dtype)"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x / in_dtype(kept, x.dtype)"),
            ("None if is_zero(rate) else draw", "draw"),
            ("square_root(_or_one(kept)", "square_root(kept"),
            ("jnp.where(share == 0, 1, share)", "share"),
            ("_kept(key, rate, x, x.shape)", "_kept(key, rate, x, x.shape[-1:])"),
            ("(x.ndim - 2), x.shape[-1])", "(x.ndim - 1))"),
            ("(x.shape[0], *[1] * (x.ndim - 1))", "(1, *x.shape[1:])"),
            ("- in_dtype(dropped * floor", "+ in_dtype(dropped * floor"),
            ("(1 + dropped * floor**2)", "(1 - dropped * floor**2)"),
            ("square_root(dropped / kept)", "dropped / kept"),
        ],
    ),
}
