"""Loss scaling: small gradients survive float16, an overflow is skipped, the scale follows."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl import optim

SCALED = {"initial": 2.0**10, "period": 3, "factor": 4.0}


def test_the_scale_follows_the_gradients():
    """By hand: it grows after 3 finite steps in a row, and shrinks at each that is not."""
    optimizer, w = optim.dynamic_loss_scale(fdl.sgd(0.5, 0.9), **SCALED), np.float32([1.0, 2.0])
    update = jax.jit(optimizer.update)
    state, scales, skipped = optimizer.init(w), [], []
    inner = state.inner_state
    gradients = [1, 1, 1, 1, np.nan, 1, 1, np.inf, -np.inf, 1, 1, 1, 1, 1, 1]
    for gradient in gradients:
        updates, state = update(np.float32([gradient, 1.0]), state, w)
        scales.append(float(optim.loss_scale(state)))
        if not np.isfinite(gradient):
            np.testing.assert_array_equal(updates, 0)
            skipped.append(state.inner_state)
    up, down = 4.0, 0.25
    factors = [1, 1, up, 1, down, 1, 1, down, down, 1, 1, up, 1, 1, up]
    assert scales == list(2.0**10 * np.cumprod(factors))
    finite = [g for g in gradients if np.isfinite(g)]
    plain_update, state_of_plain = jax.jit(fdl.sgd(0.5, 0.9).update), inner
    for gradient in finite:
        updates, state_of_plain = plain_update(np.float32([gradient, 1.0]), state_of_plain, w)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, state_of_plain)


def test_the_scale_stays_a_power_of_two_in_range():
    optimizer, w = optim.dynamic_loss_scale(fdl.sgd(0.1), period=1), jnp.array(1.0)
    step = jax.jit(lambda g, state: optimizer.update(g, state, w)[1])
    for gradient, end in ((1.0, 2.0**64), (np.nan, 2.0**-24)):
        state = optimizer.init(w)
        for _ in range(70):
            state = step(jnp.float32(gradient), state)
        assert float(optim.loss_scale(state)) == end


def test_the_scale_is_found_in_any_optimizer():
    w = jnp.ones(2)
    inner = optim.dynamic_loss_scale(fdl.adam(0.1), initial=8.0)
    for optimizer in (
        inner,
        optim.chain(optim.clip_by_global_norm(1.0), inner),
        optax.chain(optax.clip(1.0), inner),
        optim.accumulate(inner, 2),
    ):
        assert float(optim.loss_scale(optimizer.init(w))) == 8.0
    assert optim.loss_scale(fdl.adam(0.1).init(w)) is None


@functools.cache
def tiny(dtype, scaled=False, microbatch=None, rate=1e9, batch=4):
    """The weight after a step of a network whose gradient is 3e-9, from a weight of 0."""
    model = fdl.compute_in(fdl.dense(1, bias=False, w_init=fdl.initializers.zeros), dtype)
    loss = lambda y_pred, y: 1e-5 * (y_pred - y)[:, 0]  # noqa: E731
    optimizer = fdl.sgd(rate)
    optimizer = optim.dynamic_loss_scale(optimizer) if scaled else optimizer
    x = np.full((batch, 1), 3e-4, np.float32)
    objective = fdl.supervised(model, loss)

    @jax.jit
    def after(key):
        params, state = model.init(key, x)
        run = fdl.start(params, optimizer, state=state)
        run, means = fdl.train_step(objective, optimizer, run, (x, x), batch, microbatch)
        return run.params["w"], means["loss"].value()

    w, value = after(jax.random.key(0))
    return float(np.asarray(w)[0, 0]), float(value)


@pytest.mark.parametrize("microbatch", [None, 2])
def test_a_small_gradient_survives_float16_with_a_scale(microbatch):
    exact, loss = tiny("float32")
    assert exact == pytest.approx(-3.0, rel=1e-4)
    assert tiny("float16", microbatch=microbatch)[0] == 0.0
    found, found_loss = tiny("float16", scaled=True, microbatch=microbatch)
    assert found == pytest.approx(exact, rel=2e-3)
    assert found_loss == pytest.approx(loss, rel=2e-3)  # the loss is not multiplied


@pytest.mark.parametrize("microbatch", [None, 3, 12])
def test_in_float32_a_power_of_two_changes_no_bit(microbatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)).astype("float32"), rng.integers(0, 3, 40)
    model = fdl.chain(fdl.dense(8), fdl.batch_norm(), fdl.tanh, fdl.dense(3))
    params, state = jax.jit(model.init)(jax.random.key(0), x)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    results = []
    for optimizer in (fdl.adam(0.01), optim.dynamic_loss_scale(fdl.adam(0.01), **SCALED)):
        run = fdl.start(params, optimizer, state=state)
        how = {"batch_size": 12, "steps": 10, "microbatch": microbatch}
        results.append(fdl.fit(objective, optimizer, run, (x, y), **how))
    for part in ("params", "state"):
        pair = (getattr(result.run, part) for result in results)
        jax.tree.map(np.testing.assert_array_equal, *pair)
    assert results[0].history[-1]["loss"] == results[1].history[-1]["loss"]


@pytest.mark.parametrize("microbatch", [None, 2])
def test_the_optimizer_gets_the_loss_without_the_scale(microbatch):
    def update(updates, state, params=None, *, value, **_):
        return updates, value

    notes = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    optimizer = optim.dynamic_loss_scale(notes, **SCALED)
    objective = fdl.plain(lambda w, x: ((w - x) ** 2).mean())
    run, _ = fdl.train_step(
        objective, optimizer, fdl.start(jnp.array(1.0), optimizer), jnp.full(4, 3.0), 4, microbatch
    )
    assert float(run.opt_state.inner_state) == 4.0


def test_float16_recovers_from_an_overflow():
    """Two batches are 6e4 times as large. Their steps are skipped, and no other."""
    right = np.array([[1.0], [-2.0], [0.5], [3.0]])

    def batch(step):
        x = np.random.default_rng(step).standard_normal((16, 4)).astype("float32")
        return x * (6e4 if step in (7, 8) else 1), (x @ right).astype("float32")

    model = fdl.compute_in(fdl.dense(1), "float16")
    objective = fdl.supervised(model, fdl.squared_error)
    optimizer = optim.dynamic_loss_scale(fdl.adam(0.05), initial=16.0, period=50)
    params, state = jax.jit(model.init)(jax.random.key(0), batch(0)[0])
    run = fdl.start(params, optimizer, state=state)
    result = fdl.fit(objective, optimizer, run, fdl.data.source(batch), steps=300)
    scale, adam = result.run.opt_state.scale, result.run.opt_state.inner_state[0]
    assert result.reason == "done" and int(adam.count) == 298
    assert float(scale) == 16 / 4 * 2**5  # the first step after them is 9: 291 = 5 * 50 + 41
    np.testing.assert_allclose(result.run.params["w"], right, atol=0.01)


def test_a_run_with_a_scale_continues_bit_for_bit():
    x = np.random.default_rng(0).standard_normal((16, 3)).astype("float32")
    model = fdl.compute_in(fdl.dense(1), "float16")
    optimizer = optim.dynamic_loss_scale(fdl.sgd(0.1), initial=1.0, period=2)
    objective = fdl.supervised(model, fdl.squared_error)
    params, state = jax.jit(model.init)(jax.random.key(0), x)
    run = fdl.start(params, optimizer, state=state)
    how = {"data": (x, x[:, :1]), "batch_size": 4}
    whole = fdl.fit(objective, optimizer, run, steps=7, **how)
    half = fdl.fit(objective, optimizer, run, steps=3, **how)
    again = fdl.fit(objective, optimizer, half, steps=7, **how)
    jax.tree.map(np.testing.assert_array_equal, whole.run, again.run)
    assert float(optim.loss_scale(whole.run.opt_state)) == 2.0**3


def test_errors():
    for given, told in (
        ({"initial": 0.0}, "expected initial > 0, got 0.0; 2.0**15 is usual"),
        ({"period": 0}, "expected period >= 1, got 0; 2000 is usual"),
        ({"factor": 1.0}, "expected factor > 1, got 1.0; 2 doubles and halves the scale"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'dynamic_loss_scale: {told}')}"):
            optim.dynamic_loss_scale(fdl.sgd(0.1), **given)
    with pytest.raises(ValueError, match=r"^dynamic_loss_scale: expected a transformation, got"):
        optim.dynamic_loss_scale(0.1)


SEEDED_BUGS = {
    "fdl/optim/wrappers/loss_scaling.py": (
        "optim/wrappers/test_loss_scaling.py",
        [
            ("grows = finite & (steps >= period)", "grows = finite"),
            ("state.scale / factor)", "state.scale)"),
            ("jnp.where(finite & ~grows, steps, 0)", "steps"),
            ("step_if(finite, step,", "step_if(finite | True, step,"),
        ],
    ),
    "fdl/train/microbatches.py": (
        "optim/wrappers/test_loss_scaling.py",
        [
            ("return widened(loss) * scale", "return widened(loss) / scale"),
            ("return value, jax.tree.map", "return (value[0] * 2, value[1]), jax.tree.map"),
            ("_value_and_grad(of_piece, scale)", "_value_and_grad(of_piece, None)"),
        ],
    ),
}
