"""Gradients through training: against central differences and closed forms, and their memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl


@functools.cache
def problem(dtype="float32"):
    """A small tanh network and its data."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 3)).astype(dtype)
    y = np.sin(x @ rng.standard_normal((3, 2))).astype(dtype)
    model = fdl.mlp([6], 2, activation=fdl.tanh)
    objective = fdl.supervised(model, fdl.squared_error)
    params, state = model.init(jax.random.key(0), x[:1])
    return objective, params, state, (x[:32], y[:32]), (x[32:], y[32:])


def momentum(learning_rate, momentum):
    return fdl.sgd(learning_rate, momentum=momentum)


MAKES = {
    "momentum": (momentum, {"learning_rate": 0.05, "momentum": 0.8}),
    "adam": (fdl.adam, {"learning_rate": 0.01, "b1": 0.8}),
    "schedule": (
        lambda rates: fdl.sgd(lambda count: rates[count // 50]),
        {"rates": np.array([0.05, 0.04, 0.03, 0.02])},
    ),
    "average": (
        lambda learning_rate, decay: fdl.optim.chain(
            fdl.sgd(learning_rate), fdl.optim.params_ema(decay)
        ),
        {"learning_rate": 0.05, "decay": 0.9},
    ),
}


@pytest.mark.parametrize("kind", MAKES)
def test_the_gradient_through_200_steps_is_the_central_difference(kind, standard_promotion):
    """The derivative of b1^count by b1 is JAX's, and does not pass strict promotion."""
    make, settings = MAKES[kind]
    with jax.enable_x64(True):
        objective, params, state, data, validation = problem("float64")
        settings = jax.tree.map(jnp.asarray, settings)
        run = fdl.start(params, make(**settings), state=state)
        after = jax.jit(
            fdl.outcome(objective, make, run, data, validation, steps=200, batch_size=8)
        )
        found = jax.jit(jax.grad(after))(settings)
        for name, value in settings.items():
            for at in np.ndindex(np.shape(value)):
                step = jnp.zeros_like(value).at[at].set(1e-5)
                up, down = (after(settings | {name: value + sign * step}) for sign in (1, -1))
                slope = (up - down) / 2e-5
                assert found[name][at] == pytest.approx(float(slope), rel=1e-3)


def test_the_loss_is_that_of_fit():
    objective, params, state, data, validation = problem()
    optimizer = momentum(0.05, 0.8)
    run = fdl.start(params, optimizer, state=state, seed=7)
    after = fdl.outcome(objective, momentum, run, data, validation, steps=30, batch_size=8)
    result = fdl.fit(objective, optimizer, run, data, batch_size=8, steps=30)
    expected = fdl.evaluate(objective, result, validation)["loss"]
    found = after({"learning_rate": 0.05, "momentum": 0.8})
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_by_the_weights_of_examples():
    """One step of gradient descent on a line; by hand, with weights that are not all 1."""
    objective = fdl.supervised(lambda w, x: w * x, fdl.squared_error)
    x, y = jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0])
    run = fdl.start(jnp.array(0.5), fdl.sgd(0.1))
    after = fdl.outcome(
        *(objective, fdl.sgd, run, (x, y), (jnp.array([1.0]), jnp.array([0.0]))),
        **{"steps": 1, "batch_size": 2},
    )

    def by_hand(weights):
        slope = (weights * 2 * (0.5 * x - y) * x).sum() / weights.sum()
        return (0.5 - 0.1 * slope) ** 2

    weights = jnp.array([1.0, 3.0])
    found = jax.grad(lambda weights: after({"learning_rate": 0.1}, weights))(weights)
    np.testing.assert_allclose(found, jax.grad(by_hand)(weights), rtol=1e-5)


def test_memory_grows_with_the_root_of_the_steps():
    objective, params, state, data, validation = problem()
    run = fdl.start(params, fdl.sgd(0.1, momentum=0.9), state=state)

    def memory(steps):
        after = fdl.outcome(objective, momentum, run, data, validation, steps=steps, batch_size=8)
        settings = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
        compiled = jax.jit(jax.grad(after)).lower(settings).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(400) <= 2.2 * memory(100)


MISTAKES = {
    "settings": (
        lambda after: after(0.1),
        r"outcome: expected settings as a dict, name -> number, got 0.1; pass",
    ),
    "weights": (
        lambda after: after({"learning_rate": 0.1}, jnp.ones(8)),
        r"outcome: expected data \(x, y\) or a dict when weights are passed, got .*; leave the",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_told(kind):
    call, told = MISTAKES[kind]
    objective = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
    run = fdl.start(jnp.array(0.0), fdl.sgd(0.1))
    after = fdl.outcome(objective, fdl.sgd, run, jnp.ones(8), jnp.ones(8), steps=1, batch_size=4)
    with pytest.raises(TypeError, match="^" + told):
        call(after)
    with pytest.raises(ValueError, match=r"^outcome: expected steps >= 1, an integer, got 0; say"):
        fdl.outcome(objective, fdl.sgd, run, jnp.ones(8), jnp.ones(8), steps=0)


SEEDED_BUGS = {
    "fdl/train/hypergradients.py": (
        "train/test_hypergradients.py",
        [
            ("run, None, steps // size)", "run, None, size)"),
            ("rest(run) if steps % size else run", "run"),
            (
                "segment = jax.checkpoint(lambda run, _: _scanned(step, run, size))",
                "segment = lambda run, _: _scanned(lambda run: step(run), run, size)",
            ),
            ("params = eval_params(end.opt_state, params)", "pass"),
            ("return (*data[:2], weights)", "return data"),
        ],
    ),
}
