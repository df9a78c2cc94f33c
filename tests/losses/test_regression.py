"""Losses of numbers: their formulas in float64, and errors of any size."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import fdl
from tests.entry_types import LossCase
from tests.programs import array, compiled


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


LOSSES = {
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
        told=r"expected predictions \[5, 2\] for targets \[5\], got \[6, 2\]; pass a mean and ",
        near=3e-6,
    ),
    "poisson_nll": LossCase(fdl.poisson_nll, "counts", _poisson_nll, lowest=-1e-6),
}


def test_the_quantile_minimizes_its_loss():
    targets = np.float32(np.random.default_rng(0).gumbel(size=1001))
    total = lambda q: fdl.losses.quantile(jnp.full_like(targets, q), targets, level=0.8).sum()  # noqa: E731
    candidates = np.sort(targets)
    best = candidates[compiled(jax.vmap(total))(candidates).argmin()]
    assert best == np.quantile(targets, 0.8, method="inverted_cdf")


def test_likelihoods_match_scipy():
    mean, log_variance, seen = 0.7, -0.4, np.float32([-1.0, 0.5, 2.0])
    found = jax.jit(fdl.losses.gaussian_nll)(np.float32([[mean, log_variance]] * 3), seen)
    expected = -scipy.stats.norm(mean, math.exp(log_variance / 2)).logpdf(seen)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    counts = np.float32([0.0, 3.0, 11.0])
    found = jax.jit(fdl.losses.poisson_nll)(np.log(np.full(3, 2.5, np.float32)), counts)
    np.testing.assert_allclose(found, -scipy.stats.poisson(2.5).logpmf(counts), rtol=1e-5)


def test_poisson_nll_is_linear_in_large_log_rates():
    both = jax.jit(jax.value_and_grad(fdl.poisson_nll))
    found = both(np.float32(100.0), np.float32(3.0))
    np.testing.assert_allclose(found, (41 * math.exp(60), math.exp(60)), rtol=1e-5)


@pytest.mark.parametrize("delta", [1e-3, 1.0, 2.7, 1e6])
def test_the_slope_of_huber_is_the_clipped_error(delta):
    error = np.float32([-3e4, -2.0, -1e-3, 0.0, 1e-7, 0.01, 2.7, 5e6])
    slope = jax.jit(jax.grad(lambda e: fdl.huber(e, 0 * e, delta=delta).sum()))(error)
    np.testing.assert_allclose(slope, np.clip(error, -delta, delta), rtol=1e-6)


def test_log_cosh_is_accurate_to_the_last_digits_at_any_size():
    error = np.array([1e-15, 1e-4, 1e-3, 0.3, 0.999, 1.001, 5.0, 80.0, -200.0, -3e38], np.float32)
    wide = np.abs(error.astype(np.float64))
    near = np.log1p(2 * np.sinh(np.minimum(wide, 20) / 2) ** 2)
    exact = np.where(wide > 20, wide - np.log(2), near)
    values, slope = compiled(jax.vmap(jax.value_and_grad(fdl.log_cosh)))(error, 0 * error)
    np.testing.assert_allclose(values, exact, rtol=1e-6)
    np.testing.assert_allclose(slope, np.tanh(error.astype(np.float64)), rtol=1e-6)


def test_the_slope_of_huber_at_an_infinite_error_is_delta():
    slope = jax.jit(jax.grad(lambda x: fdl.huber(x, np.float32(0), delta=2.0)))
    assert slope(np.float32(np.inf)) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_huber_with_infinite_delta_is_the_parabola(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = array([2.0, -3.0, 0.0], dtype)
        for delta in (jnp.inf, np.float64(np.inf), 1e30):
            both = jax.value_and_grad(
                lambda x, d=delta: fdl.huber(x, jnp.zeros_like(x), delta=d).sum()
            )
            for call in (both, jax.jit(both)):
                loss, slope = call(x)
                assert (loss, slope.tolist()) == (6.5, [2, -3, 0])


def test_gaussian_nll_of_a_far_target_and_a_large_variance():
    predictions = np.float32([[1e25, 115.0], [-3e30, 140.0]])
    loss, slope = jax.jit(jax.value_and_grad(lambda p: fdl.gaussian_nll(p, jnp.zeros(2)).sum()))(
        predictions
    )
    mean, log_variance = np.asarray(predictions, np.float64).T
    square = mean**2 * np.exp(-log_variance)
    np.testing.assert_allclose(
        loss, (np.log(2 * np.pi) + log_variance + square).sum() / 2, rtol=1e-5
    )
    exact = np.stack([mean * np.exp(-log_variance), (1 - square) / 2], -1)
    np.testing.assert_allclose(slope, exact, rtol=1e-4)


SEEDED_BUGS = {
    "fdl/losses/regression.py": (
        "losses test_laws.py -k test_regression_or_loss",
        [
            ("jnp.square(predictions - targets)", "jnp.square(predictions - targets) / 2"),
            ("slope * (magnitude", "(magnitude"),
            (
                "jnp.where(far, 0, error), jnp.where(far, delta, 0)",
                "error, jnp.where(far, delta, 0)",
            ),
            ("jnp.where(far, delta, 0)", "delta"),
            ("jnp.square(score)", "score"),
            ("jnp.exp(-log_variance / 2)", "jnp.exp(-log_variance)"),
            ("return magnitude(predictions", "return jnp.abs(predictions"),
            ("jnp.where(far, error + jnp.log1p(jnp.exp(-2 * error)) - math.log(2), near)", "near"),
            ("far = error > 1", "far = error > 0"),
            ("error, level = targets - predictions", "error, level = predictions - targets"),
            ("largest * (1 - LARGEST_LOG_RATE) + slope", "slope"),
            ("product(targets, near)", "targets * near"),
            ("+ jax.scipy.special.gammaln(targets + 1)", ""),
        ],
    ),
}
