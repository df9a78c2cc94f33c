"""Optimizers that look at more than one number at a time: adafactor, muon, sam.

optax is the first oracle, step by step and free-running in float64; a NumPy loop written from the
papers the second; laws the third.
"""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from optax.contrib import MuonDimensionNumbers

import fdl
from fdl import optim
from tests.oracles.optimizers import ORACLES
from tests.programs import array, in_one_program
from tests.toys import halving
from tests.trees import assert_equal, kinds, stacked


def numbers(seed, dtype=jnp.float32):
    """Matrices of both orientations, leaves of more axes, equal axes, and leaves of fewer axes."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: array(rng.standard_normal(shape), dtype)  # noqa: E731
    layer = {"v": draw(3, 7), "k": draw(2, 4, 3), "tie": draw(4, 4)}
    return {"w": draw(6, 4), "layer": layer, "b": draw(4), "s": draw()}


def leaves_for(name, seed, dtype=jnp.float32):
    """With leaves of nothing, for which dimension numbers have no name."""
    extra = {} if "folded" in name else {"none": None, "empty": {}}
    return {**numbers(seed, dtype), **extra}


def scaled(size, tree):
    return jax.tree.map(lambda leaf: np.float32(size) * np.asarray(leaf), tree)


def slope(params, i=0):
    return jax.tree.map(lambda w: (jnp.sin(3 * w + i) * (i + 1)).astype(w.dtype), params)


def axes(params):
    """Dimension numbers of every kind."""
    layer = {
        "v": MuonDimensionNumbers(1, 0),
        "k": MuonDimensionNumbers((-1, 0), 1),
        "tie": None,
    }
    whole = {"w": MuonDimensionNumbers(), "layer": layer, "b": None, "s": None}
    return {name: whole[name] for name in params}


FACTORED = {
    "learning_rate": halving,
    "min_dim_size_to_factor": 3,
    "decay_rate": 0.7,
    "decay_offset": -3,
    "clipping_threshold": 0.6,
    "momentum": 0.8,
    "weight_decay_rate": 0.02,
    "eps": 1e-3,
    "weight_decay_mask": lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree),
}
MUON = {
    "learning_rate": halving,
    "beta": 0.8,
    "eps": 1e-3,
    "weight_decay": 0.03,
    "adam_b1": 0.7,
    "adam_b2": 0.9,
    "adam_eps_root": 1e-4,
    "adam_weight_decay": 0.02,
}
FOLDED = {
    "ns_coeffs": "dion",
    "preconditioning": "schatten",
    "consistent_rms": 0.3,
    "adam_learning_rate": 0.02,
    "muon_weight_dimension_numbers": axes,
}
ROWS = ((3.9, -6.3, 2.6), (2.8, -3.0, 1.2))


def sams(opaque, reset):
    """fdl's and optax's, around an ascent that has a state and reads the parameters."""
    ours = optim.chain(optim.normalize(), optim.add_decayed_weights(0.3), fdl.sgd(0.07, 0.9))
    theirs = optax.chain(contrib.normalize(), optax.add_decayed_weights(0.3), optax.sgd(0.07, 0.9))
    return (
        optim.sam(optim.adam(halving, b1=0.8), ours, 3, reset, opaque),
        contrib.sam(optax.adam(halving, b1=0.8), theirs, 3, reset, opaque),
    )


PAIRS = {
    "adafactor": lambda: (optim.adafactor(**FACTORED), optax.adafactor(**FACTORED)),
    "adafactor_whole": lambda: (
        optim.adafactor(factored=False, multiply_by_parameter_scale=False, clipping_threshold=None),
        optax.adafactor(factored=False, multiply_by_parameter_scale=False, clipping_threshold=None),
    ),
    "muon": lambda: (optim.muon(**MUON), contrib.muon(**MUON)),
    "muon_slow": lambda: (
        optim.muon(**{**MUON, "learning_rate": 0.003}),
        contrib.muon(**{**MUON, "learning_rate": 0.003}),
    ),
    "muon_adam": lambda: (
        optim.muon(**MUON, nesterov=False, adaptive=True, preconditioning="aol", ns_steps=3),
        contrib.muon(**MUON, nesterov=False, adaptive=True, preconditioning="aol", ns_steps=3),
    ),
    "muon_folded": lambda: (optim.muon(**MUON, **FOLDED), contrib.muon(**MUON, **FOLDED)),
    "muon_spectral": lambda: (
        optim.muon(**MUON, preconditioning="spectral", ns_coeffs=ROWS),
        contrib.muon(**MUON, preconditioning="spectral", ns_coeffs=ROWS),
    ),
    "sam": lambda: sams(False, True),
    "sam_kept": lambda: sams(False, False),
    "sam_opaque": lambda: sams(True, True),
    "sam_opaque_kept": lambda: sams(True, False),
}
over_pairs = pytest.mark.parametrize("name", PAIRS)
SOME = ["adafactor", "muon", "muon_folded", "sam", "sam_opaque"]


TRACES = collections.Counter()


@functools.cache
def pair(name):
    """(fdl's, optax's), each with its update compiled, given the gradient function of sam.

    fdl's is compiled under strict promotion everywhere, so that all tests share it.
    """
    ours, theirs = PAIRS[name]()

    @jax.jit
    def update(gradient, state, params):
        TRACES[name, params["w"].dtype.name] += 1
        return ours.update(gradient, state, params, grad_fn=slope)

    def strictly(*args):
        with jax.numpy_dtype_promotion("strict"):
            return update(*args)

    their_update = optax.with_extra_args_support(theirs).update
    return (
        (ours.init, strictly),
        (theirs.init, jax.jit(functools.partial(their_update, grad_fn=slope))),
    )


def assert_ulps(found, expected, most):
    """Equal dtypes, and each leaf within so many units in the last place of its largest value."""
    right = fdl.paths.leaves(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path, x in fdl.paths.leaves(found).items():
        x, y = np.asarray(x), np.asarray(right[path])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), path
        if np.issubdtype(x.dtype, np.integer):
            np.testing.assert_array_equal(x, y, err_msg=path)
        else:
            unit = np.finfo(x.dtype).eps * np.abs(y).max(initial=0)
            assert np.abs(x - y).max(initial=0) <= most * unit, path


@over_pairs
def test_updates_and_states_are_optaxs(name, standard_promotion):
    """60 steps, each from the same state, each state given to the other side in turn."""
    (init, ours), (their_init, theirs) = pair(name)
    params = leaves_for(name, 0)
    state = init(params)
    assert_equal(state, their_init(params))
    rng = np.random.default_rng(1)
    for step in range(60):
        size = 10.0 ** rng.integers(-4, 4)
        gradient = scaled(size, leaves_for(name, step + 1))
        updates, mine = ours(gradient, state, params)
        expected, other = theirs(gradient, state, params)
        assert_ulps(updates, expected, 8)
        assert_ulps(mine, other, 8)
        state = mine if step % 2 else other
        if "sam" in name:
            params = fdl.apply_updates(params, expected)


def network(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def start_of_network():
    rng = np.random.default_rng(3)
    shapes = {"w": (5, 6), "b": (6,), "v": (6, 3)}
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}


def loss_of(params):
    rng = np.random.default_rng(4)
    x, y = jnp.asarray(rng.standard_normal((12, 5))), jnp.asarray(rng.standard_normal((12, 3)))
    return jnp.mean((network(params, x) - y) ** 2)


def path_of(optimizer, steps, start=None):
    """Parameters after every step in float64, from the same start, each by its own gradients."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        params, state = carry
        grad_fn = lambda params, i: jax.grad(loss_of)(params)  # noqa: E731
        gradient = grad_fn(params, 0)
        updates, state = optimizer.update(gradient, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jax.tree.map(jnp.asarray, start_of_network())
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[1])(start)


# Five steps of the standard iteration multiply a small singular value by 487, so that muon's runs
# part at a large rate: optax's own, begun one ULP beside itself, ends as far away as fdl's.
@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("muon", "muon_folded")])
def test_500_steps_in_float64_are_optaxs(name, standard_promotion):
    with jax.enable_x64(True):
        ours, theirs = (path_of(each, 500) for each in PAIRS[name]())
        for leaf, start in start_of_network().items():
            there = np.asarray(theirs[leaf]) - start
            apart = np.abs(np.asarray(ours[leaf]) - start - there).max()
            assert apart <= 1e-8 * np.abs(there).max(), leaf


ORACLE_RATE = 0.05
ORACLE_CASES = {
    "adafactor": {
        "learning_rate": ORACLE_RATE,
        "min_dim_size_to_factor": 4,
        "decay_rate": 0.7,
        "decay_offset": -3,
        "clipping_threshold": 0.6,
        "momentum": 0.8,
        "weight_decay_rate": 0.02,
        "eps": 1e-3,
    },
    "muon": {
        "learning_rate": ORACLE_RATE,
        "beta": 0.8,
        "eps": 1e-3,
        "weight_decay": 0.03,
        "adam_b1": 0.7,
        "adam_b2": 0.9,
        "adam_eps_root": 1e-4,
        "adam_weight_decay": 0.02,
        "adam_learning_rate": 0.03,
        "preconditioning": "schatten",
        "adaptive": True,
    },
}


def distance(optimizer, oracle, steps=40):
    """The largest distance from the oracle along its path, as a part of the displacement."""
    gradient = jax.jit(jax.grad(loss_of))
    oracle.init(start_of_network())
    params, found = start_of_network(), jax.tree.map(np.asarray, path_of(optimizer, steps))
    worst = 0.0
    for step in range(steps):
        params = oracle.step(jax.tree.map(np.asarray, gradient(params)))
        for leaf, w in params.items():
            there = w - start_of_network()[leaf]
            apart = np.abs(found[leaf][step] - start_of_network()[leaf] - there).max()
            worst = max(worst, apart / np.abs(there).max())
    return worst


@pytest.mark.parametrize("name", ORACLE_CASES)
def test_the_paper_in_numpy(name, standard_promotion):
    kwargs = ORACLE_CASES[name]
    with jax.enable_x64(True):
        apart = distance(getattr(optim, name)(**kwargs), ORACLES[name](**kwargs))
    # optax and fdl compute adafactor's decay, 1 - t^-0.7, in float32.
    assert apart < (1e-6 if name == "adafactor" else 1e-10)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_muon_leaves_matrices_of_nothing_alone(preconditioning):
    """They raised ZeroDivisionError."""
    shapes = {"none": (0, 3), "thin": (3, 0), "one": (1, 1)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    optimizer = fdl.muon(0.5, preconditioning=preconditioning, adam_weight_decay=0.0)
    updates, _ = jax.jit(lambda: optimizer.update(params, optimizer.init(params), params))()
    assert updates["none"].shape == (0, 3) and updates["thin"].shape == (3, 0)
    assert -0.7 < float(np.asarray(updates["one"])[0, 0]) < -0.3


def test_the_factors_of_the_paper_in_numpy():
    """With the decay in float64 nothing is left between the two."""
    kwargs = {"decay_rate": 0.7, "eps": 1e-3, "min_dim_size_to_factor": 4}
    with jax.enable_x64(True):
        optimizer = optim.chain(
            optim.scale_by_factored_rms(
                *(True, 0.7, -2, 4, 1e-3),
                decay_rate_fn=lambda count, rate: 1 - (count + 1.0) ** -rate,
            ),
            optim.scale_by_learning_rate(0.05),
        )
        oracle = ORACLES["adafactor"](
            learning_rate=0.05,
            decay_offset=-2,
            multiply_by_parameter_scale=False,
            clipping_threshold=None,
            **kwargs,
        )
        assert distance(optimizer, oracle) < 1e-10


def test_the_ascent_of_the_paper_in_numpy(standard_promotion):
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss_of))
        oracle = ORACLES["sam"](
            optimizer=ORACLES["sgd"](learning_rate=0.1, momentum=0.7),
            gradient_function=lambda params, i: jax.tree.map(np.asarray, gradient(params)),
            rho=0.06,
        )
        ascent = optim.chain(optim.normalize(), fdl.sgd(0.06))
        opaque = optim.sam(fdl.sgd(0.1, 0.7), ascent, opaque_mode=True)
        assert distance(opaque, oracle) < 1e-10
        transparent = path_of(optim.sam(fdl.sgd(0.1, 0.7), ascent), 40)
        every_second = jax.tree.map(lambda path: np.asarray(path)[1::2], transparent)
        assert_equal(every_second, path_of(opaque, 20), rtol=1e-10)


# Laws.


@pytest.mark.parametrize("name", SOME)
def test_compiled_scanned_and_batched_it_is_a_loop(name):
    (init, update), _ = pair(name)
    gradients = [leaves_for(name, seed) for seed in range(1, 5)]

    def step(params, state, gradient):
        updates, state = update(gradient, state, params)
        return fdl.apply_updates(params, updates), state

    looped = leaves_for(name, 0), init(leaves_for(name, 0))
    for gradient in gradients:
        looped = step(*looped, gradient)
    assert TRACES[name, "float32"] == 1

    def run(params):
        carry = params, init(params)
        return jax.lax.scan(lambda c, g: (step(*c, g), None), carry, stacked(gradients))[0]

    near = {"rtol": 2e-4, "atol": 2e-5}
    assert_equal(jax.jit(run)(leaves_for(name, 0)), looped, **near)
    both = jax.jit(jax.vmap(run))(stacked([leaves_for(name, 0), leaves_for(name, 9)]))
    assert_equal(jax.tree.map(lambda leaf: np.asarray(leaf)[0], both), looped, **near)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_dtypes_and_trees_are_kept(name, dtype):
    if dtype == "complex64":
        name = {"adafactor": "adafactor_whole"}.get(name, name)
    (init, update), _ = pair(name)
    params, gradient = leaves_for(name, 0, dtype), leaves_for(name, 1, dtype)
    state = init(params)
    updates, new_state = update(gradient, state, params)
    assert kinds(updates) == kinds(params)
    assert kinds(new_state) == kinds(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["adafactor_whole", "muon"])
def test_complex_parameters_move_as_in_optax(name, standard_promotion):
    (init, ours), (_, theirs) = pair(name)

    def draw(seed):
        parts = leaves_for(name, seed), leaves_for(name, seed + 7)
        return jax.tree.map(lambda a, b: np.asarray(a) + 1j * np.asarray(b), *parts)

    params, gradient = draw(0), draw(1)
    assert params["w"].dtype == np.complex64
    state = init(params)
    assert_ulps(ours(gradient, state, params)[0], theirs(gradient, state, params)[0], 8)


@pytest.mark.parametrize("name", ["adafactor", "muon", "sam_opaque"])
def test_a_gradient_of_zero_moves_nothing(name):
    kwargs = {"adafactor": {}, "muon": {"weight_decay": 0.0, "adam_weight_decay": 0.0}}
    if name == "sam_opaque":
        optimizer = PAIRS[name]()[0]
    else:
        optimizer = getattr(optim, name)(learning_rate=0.1, **kwargs[name])
    params = numbers(0)
    zero = jax.tree.map(np.zeros_like, params)
    state = optimizer.init(params)
    update = jax.jit(functools.partial(optimizer.update, grad_fn=lambda params, i: zero))
    updates, _ = update(zero, state, params)
    assert_equal(jax.tree.map(np.abs, updates), zero)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_the_scale_of_the_gradients_does_not_matter(name):
    kwargs = {"adafactor": {"eps": 0.0}, "muon": {"eps": 0.0}}[name]
    optimizer, params = getattr(optim, name)(0.1, **kwargs), numbers(0)
    runs, update = [], jax.jit(optimizer.update)
    for size in (1.0, 1024.0):
        state = optimizer.init(params)
        for seed in range(1, 4):
            updates, state = update(scaled(size, numbers(seed)), state, params)
        runs.append(updates)
    assert_equal(*runs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", "muon", "sam"])
def test_a_run_is_differentiable_by_its_rate(name):
    def make(rate):
        if name == "sam":
            return optim.sam(fdl.sgd(rate, 0.5), optim.chain(optim.normalize(), fdl.sgd(0.1)))
        return getattr(optim, name)(rate)

    with jax.enable_x64(True):
        errors = fdl.check_gradient(
            in_one_program(
                lambda rate: loss_of(jax.tree.map(lambda p: p[-1], path_of(make(rate), 6)))
            ),
            jnp.float64(0.03),
            tolerance=1e-6,
        )
        assert errors[""] < 1e-6


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_many_rates_at_once(name):
    with jax.enable_x64(True):
        rates = jnp.array([0.01, 0.1, 0.03])
        ends = jax.jit(jax.vmap(lambda rate: path_of(getattr(optim, name)(rate), 30)))(rates)
        alone = path_of(getattr(optim, name)(0.1), 30)
        second = jax.tree.map(lambda leaf: np.asarray(leaf)[1], ends)
        assert_equal(second, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optaxs_wrappers_take_it(name, standard_promotion):
    params = numbers(0)
    theirs = {"adafactor": optax.adafactor, "muon": contrib.muon}[name]
    static = {"muon": ("ns_steps", "ns_coeffs"), "adafactor": ("min_dim_size_to_factor",)}[name]

    def end(make, wrap):
        optimizer = wrap(make)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for seed in range(1, 5):
            updates, state = update(numbers(seed), state, params)
        return updates

    for wrap in (
        lambda make: optax.inject_hyperparams(make, static)(learning_rate=0.1),
        lambda make: optax.masked(make(0.1), lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree)),
        lambda make: optax.MultiSteps(make(halving), every_k_schedule=2),
    ):
        assert_ulps(end(getattr(optim, name), wrap), end(theirs, wrap), 8)


def test_an_orthogonalized_matrix_has_singular_values_near_1():
    x = np.random.default_rng(0).standard_normal((2, 20, 12)).astype(np.float32)
    names = ("frobenius", "spectral", "aol", "schatten")
    every = jax.jit(lambda x: [optim.orthogonalize(x, preconditioning=name) for name in names])
    for preconditioning, u in zip(names, every(x), strict=True):
        values = np.linalg.svd(u, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3, preconditioning
        if preconditioning != "aol":  # which scales rows, and so turns
            u_x, _, v_x = (np.asarray(part) for part in np.linalg.svd(x, full_matrices=False))
            along = np.diagonal(u_x.mT @ np.asarray(u) @ v_x.mT, axis1=-2, axis2=-1)
            np.testing.assert_allclose(np.sort(along), np.sort(values), rtol=1e-3)


def test_parameters_near_zero_move_by_a_thousandth():
    g, optimizer = np.float32([3.0, -0.1]), optim.adafactor(0.5)
    first = jax.jit(lambda w: optimizer.update(g, optimizer.init(w), w)[0])
    for w in (0.0, 1e-5):
        updates = first(np.full(2, w, np.float32))
        np.testing.assert_allclose(updates, [-0.0005, 0.0005], rtol=1e-5)


@pytest.mark.parametrize("rate", [0.8, 2.0])
def test_before_its_offset_adafactor_keeps_nothing_and_from_it_on_is_optax(rate):
    transform = optim.scale_by_factored_rms(decay_rate=rate, step_offset=3)
    theirs = optax.scale_by_factored_rms(decay_rate=rate, step_offset=3)
    one, other = (jax.jit(each.update) for each in (transform, theirs))
    gradients = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    state = transform.init(gradients[0])
    for count, g in enumerate(gradients):
        before = state
        u, state = one(g, state, g)
        if count <= 3:
            np.testing.assert_allclose(u, np.sign(g), rtol=1e-6)
        if count >= 3:
            assert_equal((u, state.v), (lambda found: (found[0], found[1].v))(other(g, before, g)))


def test_a_gradient_of_zero_has_no_direction():
    zero = {"w": array([0.0, 0.0]), "s": array(0.0)}
    assert_equal(jax.jit(optim.normalize().update)(zero, optax.EmptyState())[0], zero)


def test_the_last_coefficients_are_taken_if_there_are_too_many():
    x, rows = numbers(0)["w"], (*ROWS, (2.0, -1.5, 0.5))
    last = optim.scale_by_muon(rows[1:], 5)
    several = optim.scale_by_muon(rows, 2)
    found = jax.jit(lambda: [each.update(x, each.init(x)) for each in (several, last)])()
    assert_equal(*found)


def test_sam_of_period_1_is_its_optimizer():
    params, adam = numbers(0), optim.adam(0.1)
    adam_update = jax.jit(adam.update)
    for opaque in (False, True):
        optimizer = optim.sam(adam, fdl.sgd(0.3), 1, opaque_mode=opaque)
        update = jax.jit(functools.partial(optimizer.update, grad_fn=slope))
        state, alone = optimizer.init(params), adam.init(params)
        moving = params
        for seed in range(1, 4):
            expected, alone = adam_update(numbers(seed), alone, moving)
            updates, state = update(numbers(seed), state, moving)
            assert_equal(updates, expected, rtol=1e-6, atol=1e-6)
            moving = fdl.apply_updates(moving, updates)


def test_a_training_loop_gives_sam_what_it_needs():
    """In `fit`, an opaque step is one of the paper: down by the gradient at w + rho g / |g|."""
    target = jnp.array([[3.0, -1.0]])
    start = jnp.array([1.0, 2.0])
    objective = fdl.plain(lambda w, batch: jnp.sum(jnp.array([1.0, 4.0]) * (w - batch[0]) ** 2))
    optimizer = optim.sam(
        fdl.sgd(0.1), optim.chain(optim.normalize(), fdl.sgd(0.25)), opaque_mode=True
    )
    run = fdl.fit(
        objective, optimizer, fdl.start(start, optimizer), target, batch_size=1, steps=2
    ).run
    w = np.array([1.0, 2.0])
    for _ in range(2):
        gradient = lambda w: np.array([2.0, 8.0]) * (w - np.array([3.0, -1.0]))  # noqa: E731
        w = w - 0.1 * gradient(w + 0.25 * gradient(w) / np.linalg.norm(gradient(w)))
    np.testing.assert_allclose(run.params, w, rtol=1e-5)


# Mistakes.


def assert_refused(message):
    return pytest.raises(ValueError, match="^" + re.escape(message) + r"(\n|$)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.muon(0.1, preconditioning="none"),
            "muon: expected preconditioning to be one of frobenius, spectral, aol, schatten, got "
            "'none'; leave it out for 'frobenius'",
        ),
        (
            lambda: optim.muon(0.1, "polar"),
            "muon: expected ns_coeffs as numbers or 'standard' or 'dion', got 'polar'; leave it "
            "out to use 'standard'",
        ),
        (
            lambda: optim.muon(0.1, (1.0, 2.0)),
            "muon: expected ns_coeffs as (a, b, c) or one such row per iteration, got shape [2]; "
            "pass the three coefficients of a x + b x^3 + c x^5",
        ),
        (
            lambda: optim.muon(0.1, ns_steps=0),
            "muon: expected ns_steps >= 1, got 0; 5 is usual",
        ),
        (
            lambda: optim.muon(0.1, beta=1.0),
            "muon: expected beta in (-1, 1), got 1.0; it is the fraction of the old value that "
            "each step keeps",
        ),
        (
            lambda: optim.scale_by_factored_rms(min_dim_size_to_factor=0),
            "scale_by_factored_rms: expected min_dim_size_to_factor >= 1, got 0; to store all of "
            "v, pass factored=False",
        ),
        (
            lambda: optim.adafactor(clipping_threshold=0.0),
            "adafactor: expected clipping_threshold > 0, got 0.0; it is the largest size that is "
            "not clipped",
        ),
        (
            lambda: optim.adafactor(-0.1),
            "adafactor: expected learning_rate >= 0, got -0.1; the update is already subtracted; "
            "pass a positive rate",
        ),
        (
            lambda: optim.adafactor(0.1, momentum=1.0),
            "adafactor: expected momentum in (-1, 1), got 1.0; it is the fraction of the old value "
            "that each step keeps",
        ),
        (
            lambda: optim.sam(fdl.sgd(0.1), fdl.sgd(0.1), sync_period=0),
            "sam: expected sync_period >= 1, got 0; the paper uses 2",
        ),
    ],
)
def test_bad_options_raise(make, message):
    with assert_refused(message):
        make()


def test_leaves_that_are_not_matrices_raise():
    optimizer = optim.scale_by_muon()
    message = (
        "scale_by_muon: expected a matrix at 'layer/k', got shape [2, 4, 3]; name its axes with "
        "optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)"
    )
    with assert_refused(message):
        jax.jit(optimizer.init)({"layer": {"k": jnp.ones((2, 4, 3))}})
    for numbers_of, text in [
        (MuonDimensionNumbers(0, 0), "(0, 0)"),
        (MuonDimensionNumbers(0, 2), "(0, 2)"),
        (MuonDimensionNumbers((), 1), "((), 1)"),
    ]:
        message = (
            "scale_by_muon: expected reduction and output axes of shape [2, 4] at 'w', without "
            f"repeats, got {text}; pass None for a leaf that is not a matrix"
        )
        with assert_refused(message):
            optim.muon(0.1, muon_weight_dimension_numbers=numbers_of).init({"w": jnp.ones((2, 4))})


def test_missing_arguments_of_an_update_raise():
    w = np.ones((2, 2), np.float32)
    for name, optimizer in [
        ("scale_by_param_block_rms", optim.adafactor(0.1)),
        ("sam", optim.sam(fdl.sgd(0.1), fdl.sgd(0.1))),
        ("sam", optim.sam(fdl.sgd(0.1), fdl.sgd(0.1), opaque_mode=True)),
    ]:
        message = f"{name}: expected the parameters, got None; call update(updates, state, params)"
        with assert_refused(message):
            jax.jit(optimizer.update)(w, optimizer.init(w))
    message = (
        "sam: expected grad_fn or value_fn in opaque mode, got neither; call "
        "update(updates, state, params, grad_fn=lambda params, i: ...)"
    )
    with assert_refused(message):
        jax.jit(optimizer.update)(w, optimizer.init(w), w)


@pytest.mark.parametrize(
    ("name", "where"), [("adafactor", "scale_by_factored_rms"), ("muon", "scale_by_muon")]
)
def test_a_state_of_other_parameters_raises(name, where):
    optimizer = getattr(optim, name)(0.1)
    state = optimizer.init({"v": jnp.ones((2, 3))})
    w = {"w": jnp.ones((2, 3))}
    with pytest.raises(
        ValueError, match=rf"^{where}: expected the same tree in updates and state.*'v'"
    ):
        optimizer.update(w, state, w)
    with pytest.raises(ValueError, match=r"expected parameters of a floating dtype, got int32 at "):
        optimizer.init({"w": jnp.ones((2, 3), jnp.int32)})


SEEDED_BUGS = {
    "fdl/optim/optimizers/adafactor_family.py": (
        "optim/optimizers/test_matrix_optimizers.py",
        [
            ("square.mean(columns)", "square.mean(rows)"),
            ("r.mean(rows - (rows > columns)", "r.mean(rows - (rows < columns)"),
            ("jnp.asarray(count + 1, ", "jnp.asarray(count + 2, "),
            ("jnp.maximum(jnp.asarray(count + 1, jnp.float32), 1)", "jnp.float32(count + 1)"),
            ("square = square + epsilon", "pass"),
            ("ema(momentum, False", "ema(momentum, True"),
            ('check_momenta("adafactor", momentum=momentum)', "pass"),
            ("jnp.maximum(rms.value, min_scale)", "rms.value"),
        ],
    ),
    "fdl/optim/optimizers/muon_family.py": (
        "optim/optimizers/test_matrix_optimizers.py",
        [
            ("(1 - beta) * g + beta * m", "g + beta * m"),
            ("first_moment(beta, t, nesterov)", "first_moment(beta, t, False)"),
            ("jnp.sum(m_hat.conj() * u) * u", "jnp.sum(m.conj() * u) * u"),
            ("fan_out / max(fan_in, 1)", "fan_in / max(fan_out, 1)"),
            ("rows[-ns_steps:]", "rows[:ns_steps]"),
            ("transpose(place)", "transpose(self.order)"),
            ("Fold(shape, tuple(positive[:split])", "Fold(shape, tuple(positive[-split:])"),
        ],
    ),
    "fdl/ops/newton_schulz.py": (
        "optim/optimizers/test_matrix_optimizers.py",
        [
            ("c * gram @ gram", "c * gram"),
            ("keepdims=True) + eps / power", "keepdims=True)"),
            ("else gram * s**2", "else gram * s"),
            ("rows[0]), rows[1:]", "rows[0]), rows"),
        ],
    ),
    "fdl/optim/optimizers/sam_family.py": (
        "optim/optimizers/test_matrix_optimizers.py",
        [
            ("start - w + u, -e)", "start - w + u, e)"),
            ("start - w + u, -e)", "u, -e)"),
            ("jnp.where(norm.part > 0, norm.part, jnp.ones_like(norm.part))", "norm.part"),
            ("if reset_state else up_state", "if reset_state else state.adv_state"),
            ("up.update(updates, up_state, point", "up.update(updates, up_state, params"),
            ("updates = gradient_at(point, i)", "updates = gradient_at(point, 0)"),
        ],
    ),
}
