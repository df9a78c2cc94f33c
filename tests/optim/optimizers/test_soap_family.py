"""SOAP: a NumPy loop written from the paper and the authors' code, and laws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl import optim
from tests.oracles.optimizers import ORACLES
from tests.programs import array
from tests.trees import assert_equal, kinds, stacked

# Square, and a vector of two: the first factor's eigenvectors are then unique up to their sign.
SHAPES = {"w": (4, 4), "k": (3, 3, 3), "b": (2,), "s": ()}


def numbers(seed, dtype=None, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: array(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


CASES = {
    "authors": {},
    # The first gradient is diagonal in its own basis: what is beside the diagonal is rounding, and
    # a small eps would make steps of it.
    "paper": {"skip_first": False, "eps": 1e-2},
    "options": {
        "b1": 0.8,
        "b2": 0.9,
        "shampoo_beta": 0.7,
        "eps": 1e-2,
        "precondition_frequency": 3,
        "precondition_1d": True,
        "normalize_grads": True,
        "correct_bias": False,
        "skip_first": False,
        "weight_decay": 0.1,
        "mask": lambda tree: {name: name != "b" for name in tree},
    },
    "short": {"max_precond_dim": 3, "precondition_frequency": 1, "eps": 1e-3},
}


def distance(kwargs, steps=25):
    """The largest distance from the oracle along its path, as a part of the displacement."""
    kwargs = {"learning_rate": 0.03, "weight_decay": 0.0, **kwargs}
    optimizer = optim.soap(**kwargs)
    oracle = ORACLES["soap"](**kwargs, decay_after=False)
    start = numbers(0)
    oracle.init(jax.tree.map(np.asarray, start))
    gradients = [numbers(seed + 1) for seed in range(steps)]

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = fdl.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda g: jax.lax.scan(step, (start, optimizer.init(start)), g)[1])
    path = jax.tree.map(np.asarray, run(stacked(gradients)))
    worst = 0.0
    for i, gradient in enumerate(gradients):
        expected = oracle.step(jax.tree.map(np.asarray, gradient))
        for name, w in expected.items():
            there = w - np.asarray(start[name])
            apart = np.abs(path[name][i] - np.asarray(start[name]) - there).max()
            worst = max(worst, apart / max(np.abs(there).max(), 1e-3))
    return worst


@pytest.mark.parametrize("case", CASES)
def test_the_paper_in_numpy(case):
    with jax.enable_x64(True):
        assert distance(CASES[case]) < 1e-9


def test_the_first_gradient_moves_nothing_unless_asked():
    w, g = numbers(0), numbers(1)
    for skip in (True, False):
        optimizer = optim.soap(0.1, weight_decay=0.0, skip_first=skip)
        updates, state = jax.jit(optimizer.update)(g, optimizer.init(w), w)
        assert all(np.any(u) != skip for u in jax.tree.leaves(updates))
        assert int(state[0].count) == 1
        m = np.asarray(g["w"])
        np.testing.assert_allclose(state[0].factors["w"][0], 0.05 * m @ m.T, rtol=1e-4)


def test_bases_are_orthogonal_and_change_every_k_steps():
    transform = optim.scale_by_soap(precondition_frequency=3)
    state, update = transform.init(numbers(0)), jax.jit(transform.update)
    changed, before = [], None
    for seed in range(8):
        _, state = update(numbers(seed + 1), state)
        q = np.asarray(state.bases["w"][0])
        np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-5)
        changed.append(before is None or bool((q != before).any()))
        before = q
    assert changed == [True, False, False, True, False, False, True, False]
    assert state.bases["b"] == (None,) and state.bases["s"] == ()


def test_it_turns_with_its_gradients():
    """Rotated parameters and gradients give rotated steps."""
    with jax.enable_x64(True):
        draw = lambda seed: np.asarray(numbers(seed)["w"])  # noqa: E731
        turn = np.linalg.qr(draw(5))[0]
        transform = optim.scale_by_soap(precondition_frequency=2)
        update, ends = jax.jit(transform.update), []
        for rotate in (lambda g: g, lambda g: turn @ g):
            state = transform.init(draw(0))
            for seed in range(6):
                u, state = update(rotate(draw(seed + 1)), state)
            ends.append(np.asarray(u))
        np.testing.assert_allclose(turn @ ends[0], ends[1], rtol=1e-8)


# Laws.


def test_compiled_scanned_and_batched_it_is_a_loop():
    optimizer = optim.soap(0.1, precondition_frequency=2)
    traces = []

    def step(params, state, gradient):
        traces.append(1)
        updates, state = optimizer.update(gradient, state, params)
        return fdl.apply_updates(params, updates), state

    compiled, gradients = jax.jit(step), [numbers(seed) for seed in range(1, 6)]
    looped = numbers(0), optimizer.init(numbers(0))
    for gradient in gradients:
        looped = compiled(*looped, gradient)
    assert len(traces) == 1

    def run(params):
        carry = params, optimizer.init(params)
        return jax.lax.scan(lambda c, g: (step(*c, g), None), carry, stacked(gradients))[0]

    both = jax.jit(jax.vmap(run))(stacked([numbers(0), numbers(9)]))
    assert_equal(jax.jit(run)(numbers(0))[0], looped[0], rtol=1e-3, atol=1e-4)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], both[0])
    assert_equal(first, looped[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_dtypes_and_trees_are_kept(dtype):
    optimizer = optim.soap(0.1, skip_first=False, precondition_frequency=1)
    empty = {"none": None, "empty": {}}
    params, gradient = {**numbers(0, dtype), **empty}, {**numbers(1, dtype), **empty}
    state = optimizer.init(params)
    updates, new = jax.jit(optimizer.update)(gradient, state, params)
    assert kinds(updates) == kinds(params) and kinds(new) == kinds(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, new)))
    assert new[0].nu["w"].dtype == jnp.float32


def test_a_gradient_of_zero_moves_nothing():
    optimizer, w = optim.soap(0.1, weight_decay=0.0, skip_first=False), numbers(0)
    zero = jax.tree.map(np.zeros_like, w)
    updates, state = jax.jit(optimizer.update)(zero, optimizer.init(w), w)
    assert_equal(jax.tree.map(np.abs, updates), zero)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_run_has_a_gradient_by_its_rate():
    """Finite, though eigenvectors of equal eigenvalues have none; bases count as constants."""

    def end(rate):
        optimizer, w = optim.soap(rate), numbers(0)
        state = optimizer.init(w)
        for seed in range(3):
            g = jax.tree.map(lambda w, h: jnp.sin(w) + h, w, numbers(seed + 1))
            updates, state = optimizer.update(g, state, w)
            w = fdl.apply_updates(w, updates)
        return (w["w"] ** 2).sum()

    slope = jax.jit(jax.grad(end))(0.1)
    assert np.isfinite(slope) and slope != 0


# Mistakes.


def test_mistakes_raise():
    for make, message in [
        (
            lambda: optim.soap(precondition_frequency=0),
            "soap: expected precondition_frequency >= 1, got 0; 10 is usual",
        ),
        (
            lambda: optim.soap(shampoo_beta=1.0),
            "soap: expected shampoo_beta in [0, 1), got 1.0; it is the fraction of the old value "
            "that each step keeps",
        ),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            make()
    optimizer, w = optim.soap(), {"w": np.ones((2, 2), np.float32)}
    update = jax.jit(optimizer.update)
    with pytest.raises(
        ValueError,
        match=r"^scale_by_soap: expected the same tree in updates and state.mu, got 'v' only in "
        r"state.mu",
    ):
        update(w, optimizer.init({"v": np.ones((2, 2), np.float32)}), w)
    with pytest.raises(
        ValueError,
        match=r"^scale_by_soap: expected the same shape in updates and state.mu at 'w', got \[2, "
        r"2\] ",
    ):
        update(w, optimizer.init({"w": np.ones((2, 3), np.float32)}), w)
    with pytest.raises(ValueError, match=r"^add_decayed_weights: expected the parameters, got N"):
        update(w, optimizer.init(w))


SEEDED_BUGS = {
    "fdl/optim/optimizers/soap_family.py": (
        "optim/optimizers/test_soap_family.py",
        [
            ("+ (1 - beta) * gram(axis)", "+ gram(axis)"),
            ("squared_size(rotate(g, bases))", "squared_size(g)"),
            ("bases, back=True)", "bases)"),
            ("(jnp.sqrt(v) + self.eps)", "jnp.sqrt(v + self.eps)"),
            ("jnp.sqrt(1 - self.b2**t) / (1", "(1 - self.b2**t) / (1"),
            ("(_sorted, _turned)", "((lambda v, L, q: v), _turned)"),
            ("jnp.argsort(-jnp.real(", "jnp.argsort(jnp.real("),
            ("~skipped & (t % k", "~skipped & (count % k"),
            ("(1 - self.b1) * g + self.b1 * m", "g + self.b1 * m"),
        ],
    ),
}
