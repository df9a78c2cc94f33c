"""Losses on lines and planes against `evaluate` and formulas, and eigenvalues of the Hessian."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fdl
from fdl.look import hessian_eigenvalues, loss_line, loss_plane
from fdl.look.loss_surface import random_direction
from tests.programs import array
from tests.toys import running_mean
from tests.trees import assert_near

RNG = np.random.default_rng(0)
DATA = (array(RNG.normal(size=(11, 3))), array(RNG.integers(0, 2, 11), np.int32))


def mixed(t, one, other):
    return jax.tree.map(lambda a, b: (1 - t) * np.asarray(a) + t * np.asarray(b), one, other)


@pytest.fixture(scope="module")
def runs():
    """An objective with a state, and two runs with different weights and statistics."""
    model = fdl.chain(running_mean(), fdl.dense(4), fdl.tanh, fdl.dropout(0.5), fdl.dense(2))
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    found = []
    for seed in (0, 1):
        params, state = model.init(jax.random.key(seed), DATA[0])
        path = next(iter(state))
        state[path]["mean"] = state[path]["mean"] + 0.5 * seed
        found.append(fdl.start(params, fdl.sgd(0.1), state=state))
    return objective, *found


# loss_line


def test_a_line_has_the_losses_of_evaluate(runs):
    objective, one, other = runs
    t, losses = loss_line(objective, one, other, DATA, points=3, batch_size=4)
    assert_near(t, [0, 0.5, 1])
    wanted = []
    for place in (0.0, 0.5, 1.0):
        params, state = (
            mixed(place, *each) for each in ((one.params, other.params), (one.state, other.state))
        )
        wanted.append(fdl.evaluate(objective, params, DATA, state=state)["loss"])
    assert_near(losses, wanted)
    assert_near(
        losses[jnp.array([0, 2])], [fdl.evaluate(objective, r, DATA)["loss"] for r in (one, other)]
    )
    assert abs(wanted[0] - wanted[2]) > 1e-3


def test_a_line_may_go_beyond_its_ends_and_have_one_state(runs):
    objective, one, other = runs
    t, losses = loss_line(objective, one.params, other.params, DATA, [-1, 0.25, 3], state=one.state)
    wanted = [
        fdl.evaluate(objective, mixed(place, one.params, other.params), DATA, state=one.state)
        for place in (-1, 0.25, 3)
    ]
    assert_near(t, [-1, 0.25, 3])
    assert_near(losses, [each["loss"] for each in wanted])


def test_weighted_examples_count_as_in_evaluate():
    objective = fdl.supervised(lambda w, x: x * w, fdl.squared_error)
    data = (array([[1.0], [2.0], [3.0]]), array([[1.0], [1.0], [9.0]]), array([1.0, 3.0, 0.0]))
    _, losses = loss_line(objective, jnp.array(0.0), jnp.array(2.0), data, 3)
    assert_near(losses, [1.0, (0 + 3) / 4, (1 + 3 * 9) / 4])


def test_an_objective_that_compares_examples_is_evaluated_in_batches():
    objective = fdl.plain(lambda w, x: w * jnp.var(x))
    x = array(RNG.normal(size=12))
    _, losses = loss_line(objective, jnp.array(1.0), jnp.array(3.0), x, 2, batch_size=12)
    assert_near(losses, np.var(x) * np.float32([1, 3]))
    pairs = loss_line(objective, jnp.array(1.0), jnp.array(3.0), x, 1, batch_size=4)[1]
    assert_near(pairs, [fdl.evaluate(objective, jnp.array(1.0), x, batch_size=4)["loss"]])


def test_a_line_under_jit_and_vmap():
    objective = fdl.plain(lambda w, x: jnp.mean((w - x) ** 2))
    x = jnp.array([1.0, 3.0])

    def losses(w):
        return loss_line(objective, jnp.array(0.0), w, x, 3)[1]

    wanted = [[5.0, 1.0, 5.0], [5.0, 2.0, 1.0]]
    assert_near(jax.jit(jax.vmap(losses))(jnp.array([4.0, 2.0])), wanted)
    # At t = 1 the loss is mean (w - x)^2, with the slope 2 (w - mean x).
    assert_near(jax.grad(lambda w: losses(w)[2])(jnp.array(4.0)), 4.0)


# loss_plane


def test_a_plane_along_given_directions_by_hand():
    objective = fdl.plain(lambda p, x: p["a"] ** 2 + 3 * p["b"][0] + 0 * jnp.mean(x))
    params = {"a": jnp.array(1.0), "b": jnp.array([2.0])}
    first = {"a": jnp.array(2.0), "b": jnp.array([0.0])}
    second = {"a": jnp.array(1.0), "b": jnp.array([-1.0])}
    t, losses = loss_plane(objective, params, jnp.ones(3), (first, second), 5, radius=0.5)
    assert_near(t, [-0.5, -0.25, 0, 0.25, 0.5])
    a, b = np.meshgrid(t, t, indexing="ij")
    assert_near(losses, (1 + 2 * a + b) ** 2 + 3 * (2 - b))
    places = jnp.array([0.0, 2.0])
    t, losses = loss_plane(objective, params, jnp.ones(3), (first, second), places)
    assert_near(losses, [[7, 9 + 0], [25 + 6, 49 + 0]])


def test_random_directions_have_the_norms_of_the_filters(runs):
    params = {
        "conv": {"w": array(RNG.normal(size=(3, 3, 2, 5)) * np.arange(5)), "b": jnp.ones(5)},
        "half": jnp.asarray(RNG.normal(size=(4, 3)), jnp.bfloat16),
    }
    made = jax.jit(lambda key: random_direction(key, params))
    first, second = (made(jax.random.key(seed)) for seed in (0, 1))
    w, d, other = (np.asarray(each["conv"]["w"], np.float64) for each in (params, first, second))
    for unit in range(5):
        assert np.sqrt((d[..., unit] ** 2).sum()) == pytest.approx(
            np.sqrt((w[..., unit] ** 2).sum()), rel=1e-5, abs=1e-7
        )
    assert not np.asarray(first["conv"]["b"]).any()
    assert first["half"].dtype == jnp.bfloat16
    unit = d[..., 1:] / np.linalg.norm(d[..., 1:])
    assert abs((unit * other[..., 1:] / np.linalg.norm(other[..., 1:])).sum()) < 0.5
    assert abs(unit.mean() * unit.size**0.5) < 4  # both signs


def test_a_random_plane_goes_through_the_parameters(runs):
    objective, run, _ = runs
    t, losses = loss_plane(objective, run, DATA, points=3, key=jax.random.key(5), radius=2)
    assert losses.shape == (3, 3)
    assert_near(t, [-2, 0, 2])
    assert_near(losses[1, 1], fdl.evaluate(objective, run, DATA)["loss"])
    keys = jax.random.split(jax.random.key(5))
    first, second = (random_direction(key, run.params) for key in keys)
    moved = jax.tree.map(lambda w, a, b: w - 2 * a + 2 * b, run.params, first, second)
    assert_near(losses[0, 2], fdl.evaluate(objective, moved, DATA, state=run.state)["loss"])
    assert len(np.unique(np.asarray(losses))) == 9


MISTAKES = {
    "loss_line: expected the same arrays in both trees, got float32 [2] and float32 [3] at 'w'; "
    "compare parameters of the same model": lambda f, x: loss_line(
        f, {"w": jnp.ones(2)}, {"w": jnp.ones(3)}, x
    ),
    "loss_line: expected points >= 1, an integer, got 0; pass the number of points, or an array of "
    "their places": lambda f, x: loss_line(f, jnp.ones(2), jnp.ones(2), x, 0),
    "loss_line: expected points [P], got [1, 2]; pass the number of points": lambda f, x: loss_line(
        f, jnp.ones(2), jnp.ones(2), x, np.ones((1, 2))
    ),
    "data: expected at least one example, got none at ''; check": lambda f, x: loss_line(
        f, jnp.ones(2), jnp.ones(2), x[:0]
    ),
    "loss_plane: expected radius > 0, got 0; 1 is usual": lambda f, x: loss_plane(
        f, jnp.ones(2), x, radius=0
    ),
    "loss_plane: expected directions as a pair of pytrees like params, got float32 [2]; pass "
    "(first, second), or leave them out": lambda f, x: loss_plane(f, jnp.ones(2), x, jnp.ones(2)),
    "loss_plane: expected the same arrays in both trees, got float32 [2] and float32 [3] at ''; "
    "compare parameters": lambda f, x: loss_plane(f, jnp.ones(2), x, (jnp.ones(2), jnp.ones(3))),
    "loss_plane: expected one random key, got 3; make it": lambda f, x: loss_plane(
        f, jnp.ones(2), x, key=3
    ),
    "hessian_eigenvalues: expected count, an int in [1, 2], got 3; pass at most the number of "
    "parameters": lambda f, x: hessian_eigenvalues(jnp.sum, jnp.ones(2), 3),
    "hessian_eigenvalues: expected iterations, an int in [2, 2], got 1; leave it out for the "
    "default": lambda f, x: hessian_eigenvalues(jnp.sum, jnp.ones(2), 2, iterations=1),
    "hessian_eigenvalues: expected one random key, got 3; make it": (
        lambda f, x: hessian_eigenvalues(jnp.sum, jnp.ones(2), 1, 3)
    ),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_told(said):
    objective = fdl.plain(lambda w, x: jnp.sum(jax.tree.leaves(w)[0]) * jnp.mean(x))
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        MISTAKES[said](objective, jnp.ones(4))


def test_an_argument_in_the_wrong_place_is_told():
    with pytest.raises(TypeError, match=r"^loss_line: expected .+, got .+; "):
        loss_line(fdl.dense(2), jnp.ones(2), jnp.ones(2), jnp.ones(4))
    with pytest.raises(TypeError, match=r"^loss_plane: expected .+, got .+; "):
        loss_plane(fdl.plain(lambda w, x: jnp.sum(w)), fdl.dense(2), jnp.ones(4))


# hessian_eigenvalues


def small_net(dtype):
    """A loss with a Hessian [26, 26], its parameters, and the eigenvalues of the dense Hessian."""
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=(10, width)).astype(dtype) for width in (3, 2))
    params = {
        "up": {"w": rng.normal(size=(3, 4)).astype(dtype), "b": np.zeros(4, dtype)},
        "down": {"w": rng.normal(size=(4, 2)).astype(dtype), "b": np.zeros(2, dtype)},
    }

    def f(p):
        hidden = jnp.tanh(x @ p["up"]["w"] + p["up"]["b"])
        return jnp.mean((hidden @ p["down"]["w"] + p["down"]["b"] - y) ** 2)

    flat, back = ravel_pytree(params)
    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda v: f(back(v))))(flat))
    return f, params, dense[np.argsort(-np.abs(dense))]


def test_eigenvalues_equal_those_of_the_dense_hessian():
    with jax.enable_x64(True):
        f, params, wanted = small_net(np.float64)
        assert (wanted < 0).any() and len(wanted) == 26
        found = jax.jit(lambda p: hessian_eigenvalues(f, p, 26))(params)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)
        few = jax.jit(lambda p: hessian_eigenvalues(f, p, 3, jax.random.key(8), iterations=16))(
            params
        )
        assert few.shape == (3,) and few.dtype == jnp.float64
        np.testing.assert_allclose(few, wanted[:3], rtol=1e-6)


def test_eigenvalues_in_float32():
    f, params, wanted = small_net(np.float32)
    assert_near(hessian_eigenvalues(f, params, 6), wanted[:6], 1e-5)


@pytest.mark.parametrize(
    "spectrum", [[5, 5, 5, -2, 1, 0, 0], [0, 0, 0, 0], [-3, 3, 3, -3], [7], [1e-12, -1e-12, 0]]
)
def test_repeated_eigenvalues_are_all_found(spectrum):
    """The basis spans an invariant subspace after few vectors, and is continued."""
    turn, _ = np.linalg.qr(RNG.normal(size=(len(spectrum),) * 2))
    matrix = turn @ np.diag(np.float64(spectrum)) @ turn.T
    with jax.enable_x64(True):
        found = jax.jit(
            lambda w: hessian_eigenvalues(lambda w: w @ matrix @ w / 2, w, len(spectrum))
        )(np.ones(len(spectrum)))
    np.testing.assert_allclose(
        np.sort(found), np.sort(spectrum), atol=1e-6 * max(map(abs, spectrum)) + 1e-30
    )
    assert (np.diff(np.abs(found)) <= 1e-9).all()


SEEDED_BUGS = {
    "fdl/look/loss_surface.py": (
        "look/test_loss_surface.py",
        [
            ("jnp.stack([1 - t, t], axis=1)", "jnp.stack([t, 1 - t], axis=1)"),
            ('indexing="ij"', 'indexing="xy"'),
            ("inputs = tuple(range(w.ndim - 1))", "inputs = tuple(range(1, w.ndim))"),
            ("if w.ndim < 2 or", "if"),
            ("return of(whole=whole)", "return of(whole=False)"),
            (
                "totals(_mixed(row, params), _mixed(row, states)",
                "totals(_mixed(row, params), states[0]",
            ),
            ("random_direction(keys[1], params)", "random_direction(keys[0], params)"),
            ("jnp.argsort(-jnp.abs(found))", "jnp.argsort(-found)"),
            (
                "beside.at[number].set(jnp.where(done, 0, length))",
                "beside.at[number].set(length + 1e-3)",
            ),
            (
                "v = v - exact(exact(basis, v), basis)",
                "v = v - 0.5 * exact(exact(basis, v), basis)",
            ),
        ],
    ),
}
