"""Half precision, and squares that overflow float32: every optimizer, and norms.

The laws run over `DEFAULTS`: optimizers with the hyper-parameters that users leave alone, because a
large eps would hide what is looked for here.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl import optim
from tests.oracles.optimizers import ORACLES
from tests.programs import array
from tests.registry import DEFAULTS, OPTIMIZERS
from tests.trees import assert_equal, kinds

over_defaults = pytest.mark.parametrize("name", DEFAULTS)
HALVES = {"half": jnp.float16, "brain": jnp.bfloat16}
over_halves = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
MIXED = {**HALVES, "single": jnp.float32}

# Of full rank, for muon and soap, and exact in bfloat16.
PATTERN = np.array([[1.0, 0.5, -1.0], [0.25, -2.0, 1.0]], np.float32)
WEIGHTS = np.array([[1.0, -0.5, 2.0], [0.25, 1.5, -3.0]], np.float32)
STEPS = 6001


@pytest.fixture(autouse=True)
def standard(standard_promotion):
    """optax fails under strict promotion."""


def finite(tree):
    leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(tree))
    return all(np.isfinite(np.asarray(x, np.complex128)).all() for x in leaves)


def cast(tree, dtypes):
    """By NumPy, each leaf in the dtype under its name."""
    return {name: np.asarray(leaf).astype(dtypes[name]) for name, leaf in tree.items()}


@functools.cache
def path(name):
    """(params, gradients of many steps) -> (all updates at weights that stay, the last state)."""
    case = DEFAULTS[name]
    optimizer = case.ours()

    def run(params, gradients):
        params = case.start(params)
        dtypes = jax.tree.map(lambda gradient: gradient.dtype, gradients)

        def step(state, gradient):
            updates, state = optimizer.update(read_as(dtypes, gradient), state, params)
            return state, bits_of(getattr(updates, "fast", updates))

        state, updates = jax.lax.scan(step, optimizer.init(params), bits_of(gradients))
        return read_as(dtypes, updates), state

    return jax.jit(run)


def bits_of(tree):
    """Integers, because XLA copies all steps of a scan in half precision at each step."""
    return jax.tree.map(lambda x: x.view(f"uint{8 * x.dtype.itemsize}"), tree)


def read_as(dtypes, tree):
    return jax.tree.map(lambda dtype, x: x.view(dtype), dtypes, tree)


def gradients_of(sizes):
    sizes = np.asarray(sizes, np.float64)[:, None, None]
    largest = float(np.finfo(np.float32).max)
    return np.clip(sizes * PATTERN, -largest, largest).astype(np.float32)


def test_every_optimizer_has_defaults():
    tail = r"(_\d+|_schedule|_(True|False)|_(of|with|without)_.*)$"
    names = {re.sub(tail, "", name) for name in OPTIMIZERS}
    assert names | {"adafactor", "lbfgs", "sam", "soap"} <= {n.split()[0] for n in DEFAULTS}


@pytest.mark.parametrize(
    "name",
    [  # Schedule-Free computes x from y and z by a difference, which enlarges roundings.
        pytest.param(name, marks=[pytest.mark.bits] if "schedule_free" in name else [])
        for name in DEFAULTS
    ],
)
def test_half_precision_is_float32_rounded_once(name):
    """A gradient of 0, then 1,000 of 1, then 5,000 of 0.01; three dtypes side by side.

    The oracle is the run in float32, whose gradients are those that the narrow dtypes can hold.
    """
    plain = gradients_of(np.repeat([0.0, 1.0, 0.01], [1, 1000, 5000]))
    gradients = cast(dict.fromkeys(MIXED, plain), MIXED)
    params = cast(dict.fromkeys(MIXED, WEIGHTS), MIXED)
    single = dict.fromkeys(MIXED, np.float32)
    updates, state = path(name)(params, gradients)
    exact, wide_state = path(name)(cast(params, single), cast(gradients, single))
    for part, dtype in MIXED.items():
        assert updates[part].dtype == dtype
        near = 2 * float(jnp.finfo(dtype).eps)
        found, expected = (np.asarray(x[part], np.float32) for x in (updates, exact))
        assert np.isfinite(found).all()
        least = float(jnp.finfo(dtype).smallest_normal)
        np.testing.assert_allclose(found, expected, rtol=near, atol=least, err_msg=part)
    if name != "sam":  # which keeps the parameters themselves
        assert_equal(kinds(state), kinds(wide_state))
    assert finite(state)


@over_defaults
def test_no_finite_gradient_ends_training(name):
    """Every extreme value, with both signs, between ordinary gradients; the weights keep moving."""
    sizes = np.ones(STEPS)
    for number, size in enumerate((1e-30, 1e-20, 1e20, 3e20, 3e38)):
        at = 3 + 1000 * number
        sizes[[at, at + 10, at + 11]] = size, -size, size
    single = dict.fromkeys(MIXED, np.float32)
    params = cast(dict.fromkeys(MIXED, WEIGHTS), single)
    updates, state = path(name)(params, dict.fromkeys(MIXED, gradients_of(sizes)))
    assert finite(updates) and finite(state)
    # The step of adamax is now the gradient / (3e38 e^-2), which is too small for float32.
    assert name == "adamax" or all(np.any(leaf[-100:] != 0) for leaf in updates.values())


# Optimizers whose first step is a formula without bounds; no wrappers.
ORACLE_OF = [n for n in DEFAULTS if n in ORACLES and n not in ("radam", "soap", "sam", "lookahead")]


@functools.cache
def first_updates(name):
    optimizer = DEFAULTS[name].ours()
    return jax.jit(lambda gradient, w: optimizer.update(gradient, optimizer.init(w), w)[0])


@pytest.mark.parametrize("name", ORACLE_OF)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 3e20, 1.5e38])
def test_the_first_step_is_that_of_float64(name, size):
    """Against NumPy in float64, which can hold the square of 3e20."""
    rate = {} if name == "adadelta" else {"learning_rate": 0.1}
    oracle = ORACLES[name](**rate)
    params, gradient = {"w": WEIGHTS}, {"w": gradients_of([size])[0]}
    oracle.init(params)
    expected = oracle.step(gradient)["w"] - WEIGHTS
    updates = first_updates(name)(gradient, params)
    # Schedule-Free computes x from y and z, whose rounding is that of the weights.
    near = 1e-6 if name.startswith("schedule_free") else 1e-15
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-5, atol=near)


# The number of steps after which the moments of a gradient of 3e20 have decayed below rounding.
RECOVERY = {"rmsprop": 1200, "adadelta": 1500, "soap": 2500}
RECOVERY |= dict.fromkeys(["adam", "adamax", "adabelief", "nadam", "radam"], 120_000)


@pytest.mark.parametrize("name", RECOVERY)
@pytest.mark.parametrize("size", [3e20])
def test_a_weight_recovers_from_a_huge_gradient(name, size):
    """In the end the steps are those of a weight without the huge gradient."""
    make = getattr(optim, name)
    optimizer = make() if name == "adadelta" else make(0.1)
    w = jnp.ones((2,))

    @jax.jit
    def after(first):
        _, state = optimizer.update(first, optimizer.init(w), w)

        def step(state, _):
            updates, state = optimizer.update(jnp.array([1.0, -2.0]), state, w)
            return state, updates

        state, _ = jax.lax.scan(step, state, length=RECOVERY[name])
        return optimizer.update(jnp.array([1.0, -2.0]), state, w)[0]

    expected = after(np.ones(2, np.float32))
    # The step size of adadelta depends on its past steps: it only has to move.
    bounds = {"rtol": 3.0} if name == "adadelta" else {"rtol": 2e-3}
    np.testing.assert_allclose(after(np.float32([size, -size])), expected, **bounds)


# Single cases.


@over_halves
@pytest.mark.parametrize("make", [optim.adam, optim.rmsprop, optim.muon, optim.adafactor])
def test_a_gradient_of_zero_is_a_step_of_zero(make, dtype):
    optimizer, w = make(0.1), np.ones((2, 2), dtype)
    updates = jax.jit(lambda w: optimizer.update(0 * w, optimizer.init(w), w)[0])(w)
    assert updates.dtype == dtype and np.asarray(updates).tolist() == [[0, 0], [0, 0]]


def test_a_second_moment_decays_in_bfloat16():
    """In bfloat16 0.999 rounds to 1: the last step was -0.0139."""
    optimizer, w = optim.adam(1.0), jnp.zeros((), jnp.bfloat16)
    sizes = np.repeat(np.float32([1, 0.01]), [1000, 5000]).astype(jnp.bfloat16)
    _, updates = jax.lax.scan(
        lambda state, g: optimizer.update(g, state, w)[::-1], optimizer.init(w), sizes
    )
    assert abs(float(np.asarray(updates)[-1]) + 0.151) < 1e-3


@functools.cache
def first_muon_updates(preconditioning):
    optimizer, w = optim.muon(1.0, preconditioning=preconditioning), np.ones((2, 3), np.float16)
    return jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(w), w)[0])


@pytest.mark.parametrize("size", [1e-6, 1e-3, 300.0, 6e4])
@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral"])
def test_muon_steps_have_one_size_in_float16(size, preconditioning):
    gradient = (size * PATTERN / 2).astype(np.float16)
    updates = first_muon_updates(preconditioning)(gradient)
    values = np.linalg.svd(np.asarray(updates, np.float64) / np.sqrt(1.5), compute_uv=False)
    assert (values > 0.6).all() and (values < 1.3).all()


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_a_half_precision_matrix_is_made_orthogonal(preconditioning):
    orthogonalize = jax.jit(functools.partial(optim.orthogonalize, preconditioning=preconditioning))
    for size in (300.0, 6e4) if preconditioning in ("aol", "schatten") else (1e-6, 300.0, 6e4):
        u = orthogonalize((size * PATTERN / 2).astype(np.float16))
        values = np.linalg.svd(np.asarray(u, np.float64), compute_uv=False)
        assert u.dtype == jnp.float16 and (values > 0.5).all() and (values < 1.3).all(), size


@over_halves
def test_an_average_that_counts_its_weights_in_float32(dtype):
    """weight_sum stopped at 256 in bfloat16, and at 0 in float16 with a rate of 1e-4."""
    optimizer, w = optim.schedule_free_sgd(1e-4), np.ones((), dtype)
    step = lambda state, g: (optimizer.update(g, state, w)[1], None)  # noqa: E731
    gradients = np.ones(1000, dtype)
    state, _ = jax.jit(lambda: jax.lax.scan(step, optimizer.init(w), gradients))()
    np.testing.assert_allclose(state.weight_sum, 1000 * 1e-8, rtol=1e-5)
    np.testing.assert_allclose(state.z, 0.9, rtol=1e-4)


# Chains.


def test_a_chain_rounds_once_at_its_end():
    """Where a direction is infinite in float16, and where it would vanish."""
    huge = optim.chain(optax.scale(1e6), optax.scale(1e-6))
    tiny = optim.chain(optax.scale(1e-9), fdl.sgd(1e9))
    g = np.array([3.0, -0.125], np.float16)
    most = optim.chain(optax.scale(1e6))

    @jax.jit
    def first(g):
        return [each.update(g, each.init(g))[0] for each in (huge, tiny, most)]

    assert np.asarray(first(g)).tolist() == [[3.0, -0.125], [-3.0, 0.125], [65504.0, -65504.0]]
    infinite = np.asarray(first(np.array([np.inf, np.nan], np.float16))[2])
    assert np.isinf(infinite[0]) and np.isnan(infinite[1])


@over_halves
def test_pieces_of_optax_keep_their_dtypes_in_a_chain(dtype):
    optimizer = optim.chain(optax.trace(0.9), optim.accumulate(optax.adam(0.1), 2), fdl.adam(0.1))
    w = np.ones(3, dtype)

    def step(state, g):
        updates, state = optimizer.update(g, state, w)
        return state, updates

    start = jax.jit(optimizer.init)(w)
    state, updates = jax.jit(lambda: jax.lax.scan(step, start, np.ones((4, 3), dtype)))()
    assert kinds(state) == kinds(start) and updates.dtype == dtype and finite(updates)
    assert state[0].trace.dtype == dtype


@over_halves
def test_a_state_of_optax_keeps_its_dtypes(dtype):
    """The state moves from optax to fdl and back."""
    w, g = np.ones(3, dtype), np.array([1.0, -2.0, 0.5], dtype)

    @jax.jit
    def there_and_back():
        found = []
        for name in ("adam", "lion", "adagrad", "sgd", "rmsprop", "amsgrad", "adafactor"):
            theirs = getattr(optax, name)(0.1)
            state = theirs.init(w)
            updates, new = getattr(optim, name)(0.1).update(g, state, w)
            found.append((state, updates, new, theirs.update(g, new, w)))
        theirs = optax.contrib.schedule_free_sgd(0.1)
        state = theirs.init(w)
        return found, state, optim.schedule_free_sgd(0.1).update(g, state, w)[1]

    found, start, end = there_and_back()
    for state, updates, new, _ in found:
        assert kinds(new) == kinds(state) and updates.dtype == dtype
    assert kinds(end) == kinds(start)


def test_a_state_can_be_kept_in_fewer_bits():
    params = {"w": np.ones((2, 3), jnp.bfloat16), "s": np.ones((), jnp.bfloat16)}
    optimizer = optim.keep_state_in(optim.adam(0.1), jnp.bfloat16)
    update, inits = jax.jit(optimizer.update), (optimizer.init, optax.adam(0.1).init)
    state, theirs = start, _ = jax.jit(lambda: [init(params) for init in inits])()
    assert kinds(state[0].mu["w"]) == kinds(theirs[0].mu["w"])
    assert state[0].nu["s"].dtype == jnp.float32 and state[0].count.dtype == jnp.int32
    for _ in range(2):
        updates, state = update(params, state, params)
    assert kinds(state) == kinds(start) and kinds(updates) == kinds(params)
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), -0.1, rtol=1e-2)
    big = optim.keep_state_in(fdl.sgd(1.0, 0.9), jnp.float16)
    state = jax.jit(lambda: big.update(jnp.full(2, 1e6), big.init(jnp.ones(2)))[1])()
    assert finite(state)
    with pytest.raises(
        ValueError,
        match=r"^keep_state_in: expected a floating dtype, got int8; jnp.bfloat16 is usual$",
    ):
        optim.keep_state_in(optim.adam(0.1), jnp.int8)


# Lengths (norms) whose squares overflow or underflow.


SIZES = [1e-35, 1e-30, 1e-20, 1.0, 1e19, 1e20, 6e37]


@pytest.mark.parametrize("size", SIZES)
def test_lengths_are_those_of_float64(size):
    """Alone, compiled, batched with an ordinary tree, and their gradients."""
    tree = {"a": np.float32([3 * size, 0]), "b": np.float32(-4.0 * size)}
    exact = np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in tree.values()))
    both = jax.tree.map(lambda x: np.stack([x, np.ones_like(x)]), tree)
    np.testing.assert_allclose(optim.global_norm(tree), exact, rtol=3e-7)
    g, w = {"w": np.float32([3 * size, -4 * size])}, {"w": np.float32([6.0, 8.0])}
    found = lengths(tree, both, g=g, w=w, size=np.float32(size))
    np.testing.assert_allclose(found["batched"], [exact, np.sqrt(3)], rtol=3e-7)
    slopes, many = found["slopes"], jax.tree.map(lambda x: np.asarray(x)[0], found["many"])
    for each in (slopes, many):
        np.testing.assert_allclose([*np.asarray(each["a"]), each["b"]], [0.6, 0, -0.8], atol=1e-6)
    clipped, unit = found["clipped"], found["unit"]
    np.testing.assert_allclose(np.asarray(clipped["a"]) / size, [0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(clipped["b"]) / size, -0.4, rtol=1e-6)
    np.testing.assert_allclose([*np.asarray(unit["a"]), unit["b"]], [0.6, 0, -0.8], rtol=1e-6)
    in_blocks = g["w"] * (0.1 / np.sqrt(12.5))
    np.testing.assert_allclose(found["in_blocks"]["w"], in_blocks, rtol=2e-6)
    np.testing.assert_allclose(found["trusted"]["w"], [6.0, -8.0], rtol=2e-6)
    in_part = np.array([3.0, -4.0]) / (5.01 / 5)
    np.testing.assert_allclose(found["in_part"]["w"], in_part, rtol=2e-6)
    # As in optax, nothing is divided by less than 1e-6.
    part = min(0.5 * size / max(5 * size, 1e-6), 1)
    expected = np.array([3, -4]) * size * part
    np.testing.assert_allclose(found["coarse"]["w"], expected, rtol=2e-6, atol=1e-37)
    expected = np.array([3.0, -4.0]) * min(size, 0.2)
    np.testing.assert_allclose(found["near"]["w"], expected, rtol=1e-6)


@jax.jit
def lengths(tree, both, *, g, w, size):
    """What depends on lengths, in one program for all sizes."""
    first = lambda transform, g, w=None: transform.update(g, transform.init(w), w)[0]  # noqa: E731
    slope = jax.grad(optim.global_norm)
    return {
        "batched": jax.vmap(optim.global_norm)(both),
        "slopes": slope(tree),
        "many": jax.vmap(slope)(both),
        "clipped": first(optim.clip_by_global_norm(size / 2), tree),
        "unit": first(optim.normalize(), tree),
        "in_blocks": first(optim.clip_by_block_rms(size / 10), g, w),
        "trusted": first(optim.scale_by_trust_ratio(), g, w),
        "in_part": first(optim.scale_by_trust_ratio(trust_coefficient=0.5, eps=0.01 * size), g, w),
        "coarse": first(optim.adaptive_grad_clip(size / 20), g, w),
        "near": first(optim.clip_by_global_norm(1.0), g),
    }


def test_lengths_that_float32_cannot_hold():
    """|g| is 5e38: the direction is right, and the length infinite."""
    g = np.float32([3e38, -3e38, 0.0])
    direction = [0.5**0.5, -(0.5**0.5), 0.0]
    assert np.isinf(optim.global_norm(g))
    for transform in (optim.clip_by_global_norm(1.0), optim.normalize()):
        np.testing.assert_allclose(jax.jit(transform.update)(g, ())[0], direction, rtol=1e-6)
    trust, w = optim.scale_by_trust_ratio(), np.float32([3.0, 4.0, 0.0])
    found = jax.jit(trust.update)(g, trust.init(w), w)[0]
    np.testing.assert_allclose(found, 5 * np.array(direction), rtol=1e-6)


def test_lengths_of_nothing_and_of_what_is_not_finite():
    assert float(optim.global_norm({})) == float(optim.global_norm({"w": jnp.ones((0, 3))})) == 0
    zero = {"w": jnp.zeros(2), "e": jnp.ones((0,))}
    assert_equal(jax.grad(optim.global_norm)(zero), zero)
    assert np.isinf(optim.global_norm({"w": jnp.array([jnp.inf, 1.0])}))
    assert np.isnan(optim.global_norm({"w": jnp.array([jnp.nan, 3e20])}))
    mixed = {"h": jnp.float16(3e4), "f": jnp.float32(4e4)}
    np.testing.assert_allclose(optim.global_norm(mixed), 5e4, rtol=1e-3)
    complex_ = {"w": jnp.array([3e20 + 4e20j], jnp.complex64)}
    np.testing.assert_allclose(optim.global_norm(complex_), 5e20, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adagrad", "rmsprop", "adabelief", "radam"])
def test_huge_complex_gradients(name):
    """The direction is kept, also where one part is far smaller."""
    optimizer = getattr(optim, name)(0.1)
    w = np.array([1 + 1j, 1 - 1j, 2j], np.complex64)
    gradient = np.array([3e20 + 4e20j, 3e38 - 3e38j, 1e20 + 1e19j], np.complex64)
    update = jax.jit(optimizer.update)
    updates, state = update(gradient, optimizer.init(w), w)
    assert finite(updates) and finite(state)
    unit = np.asarray(gradient, np.complex128)
    unit /= np.abs(unit)
    found = np.asarray(updates, np.complex128)
    np.testing.assert_allclose(found / np.abs(found), -unit, rtol=1e-5)
    for _ in range(3):
        updates, state = update(-gradient, state, w)
        assert finite(updates) and finite(state)


# Master weights: weights too coarse for their steps.


def narrow(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def run(optimizer, params, gradients):
    """Parameters after every step, and the last state."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = fdl.apply_updates(params, updates)
        return (params, state), params

    (_, state), path = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
    return path, state


MASTERS = {
    "adamw": lambda wrap: wrap(optim.adamw(0.01, weight_decay=0.1)),
    "schedule_free": lambda wrap: wrap(optim.schedule_free_sgd(0.01)),
    "optax": lambda wrap: wrap(optax.adam(0.01)),
    "inject": lambda wrap: optim.inject_hyperparams(lambda rate: wrap(optim.adam(rate)))(0.01),
    "injected": lambda wrap: wrap(optim.inject_hyperparams(optim.adam)(0.01)),
    "masked": lambda wrap: optim.masked(wrap(optim.lamb(0.01)), {"w": True, "b": True, "f": False}),
    "partition": lambda wrap: optim.partition(
        {("w",): wrap(optim.adam(0.01)), ("b", "f"): wrap(fdl.sgd(0.003, 0.9))}
    ),
    "accumulate": lambda wrap: wrap(optim.accumulate(optim.adam(0.01), 3)),
    "clipped": lambda wrap: wrap(optim.chain(optim.clip_by_global_norm(0.5), fdl.sgd(0.01))),
}


@functools.cache
def fine_run(name):
    return jax.jit(functools.partial(run, MASTERS[name](lambda optimizer: optimizer)))


@pytest.mark.bits
@pytest.mark.parametrize("name", MASTERS)
@over_halves
def test_coarse_weights_are_the_float32_run_rounded(name, dtype):
    """Exactly, at every step, in a scan and under vmap; one leaf is in float32."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 2), "b": (2,), "f": (2,)}
    dtypes = {"w": dtype, "b": dtype, "f": jnp.float32}
    draw = lambda *lead: {k: rng.standard_normal(lead + s) for k, s in shapes.items()}  # noqa: E731
    params = cast(draw(), dtypes)
    gradients = cast(draw(60), dtypes)
    single = dict.fromkeys(shapes, np.float32)
    coarse = MASTERS[name](optim.master_weights)
    path, _ = jax.jit(functools.partial(run, coarse))(params, gradients)
    exact, _ = fine_run(name)(cast(params, single), cast(gradients, single))
    for key, want in dtypes.items():
        assert path[key].dtype == want
        assert_equal(path[key], np.asarray(exact[key]).astype(want))
    twice = jax.tree.map(lambda x: np.stack([x, -x]), (params, gradients))
    if name == "adamw":
        both, _ = jax.jit(jax.vmap(functools.partial(run, coarse)))(*twice)
        assert_equal(jax.tree.map(lambda x: x[0], both), path)


def test_steps_below_rounding_arrive():
    w, g = np.ones(2, jnp.bfloat16), np.array([1.0, -1.0], jnp.bfloat16)
    gradients = np.broadcast_to(g, (1000, 2))
    whole = optim.master_weights(fdl.sgd(3e-3))
    small = (w * 0.01).astype(jnp.bfloat16)

    @jax.jit
    def runs():
        coarse = fdl.sgd(1e-4)
        alone = [run(each, w, gradients) for each in (coarse, optim.master_weights(coarse))]
        return alone, [run(outer(whole), small, gradients) for outer in (optim.chain, optax.chain)]

    ((lost, _), (found, state)), inside = runs()
    assert np.asarray(lost)[-1].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(state.master, [0.9, 1.1], rtol=1e-4)
    assert_equal(np.asarray(found)[-1], np.asarray(state.master).astype(jnp.bfloat16))
    # Inside a chain the update is rounded; the error stays within one rounding at every step.
    for near, state in inside:
        near = np.asarray(near)[-1].astype(np.float32)
        np.testing.assert_allclose(near, state[0].master, rtol=2**-7)


@over_halves
def test_coarse_weights_far_and_through_zero(dtype):
    """Exact where sizes change by a factor of 1000 in a step, and where signs change."""
    w = np.array([1.0, -3.0, 1e-3, 0.5], dtype)
    optimizer = optim.master_weights(fdl.sgd(1.0))
    gradients = np.random.default_rng(0).standard_normal((50, 4)) * 10.0 ** np.arange(-2, 2)
    path, state = jax.jit(functools.partial(run, optimizer))(w, gradients.astype(dtype))
    whole = np.asarray(w, np.float32) - np.cumsum(gradients.astype(dtype).astype(np.float32), 0)
    np.testing.assert_allclose(state.master, whole[-1], rtol=1e-3, atol=1e-4)
    assert_equal(np.asarray(path)[-1], np.asarray(state.master).astype(dtype))


def test_coarse_weights_and_the_loss_along_a_line():
    """The line search of L-BFGS and the gradients of SAM get the weights in their dtype."""
    target = np.array([0.3, -0.7], jnp.bfloat16)
    seen = []

    def loss(w):
        seen.append(w.dtype)
        return jnp.sum((w - target).astype(jnp.float32) ** 2)

    ascent = optim.chain(optim.normalize(), fdl.sgd(0.01))
    for optimizer in (optim.lbfgs(), optim.sam(optim.adam(0.03), ascent, opaque_mode=True)):
        optimizer, w = optim.master_weights(optimizer), np.zeros(2, jnp.bfloat16)

        @jax.jit
        def step(w, state, optimizer=optimizer):
            value, g = jax.value_and_grad(loss)(w)
            u, state = optimizer.update(g, state, w, value=value, grad=g, value_fn=loss)
            return fdl.apply_updates(w, u), state

        state = jax.jit(optimizer.init)(w)
        for _ in range(60):
            w, state = step(w, state)
        near = np.asarray(w).astype(np.float32)
        np.testing.assert_allclose(near, target.astype(np.float32), atol=0.02)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


def test_master_weights_raises_for_what_it_cannot_keep():
    optimizer, w = optim.master_weights(fdl.sgd(0.1)), {"w": jnp.ones(2, jnp.bfloat16)}
    state = optimizer.init(w)
    for call, message in [
        (
            lambda: optimizer.update(w, state),
            "master_weights: expected the parameters, got None; call update(updates, state, "
            "params)",
        ),
        (
            lambda: optimizer.init({"n": jnp.arange(2)}),
            "master_weights: expected parameters of a floating dtype, got int32 at 'n'; convert "
            "this array to float32, or keep it outside params if it is not learned",
        ),
        (
            lambda: optim.master_weights(0.1),
            "master_weights: expected a transformation, got 0.1; pass an optimizer, such as "
            "fdl.sgd(0.1)",
        ),
        (
            lambda: optimizer.update({"v": w["w"]}, state, {"v": w["w"]}),
            "master_weights: expected the same tree in params and state.master, got 'v' only in "
            "params; make both from the same parameters",
        ),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(message) + r"(\n|$)"):
            call()


# In a training run.


@over_halves
@pytest.mark.parametrize("wrap", [lambda o: o, optim.master_weights], ids=["plain", "master"])
def test_a_network_trains_in_half_precision(dtype, wrap):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 4))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    net = fdl.chain(fdl.dense(16), fdl.batch_norm(), fdl.relu, fdl.dense(2))
    data = array(x, dtype), array(y, np.int32)
    params, state = jax.jit(net.init)(jax.random.key(0), np.asarray(data[0])[:1])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    optimizer = wrap(optim.adam(0.01))
    objective = fdl.supervised(net, fdl.softmax_cross_entropy)
    result = fdl.fit(
        *(objective, optimizer, fdl.start(params, optimizer, state=state), data),
        batch_size=16,
        epochs=20,
    )
    losses = [record["loss"] for record in result.history]
    assert result.reason == "done" and losses[-1] < 0.6 * losses[0]
    assert kinds(result.run.params) == kinds(params)


SEEDED_BUGS = {
    "fdl/ops/numerics.py": (
        "optim/test_half_precision.py optim/optimizers/test_optimizers.py",
        [
            (
                "return cast_like(new, updates), cast_like(new_state, state)",
                "return new, new_state",
            ),
            ("update(widened_tree(updates), state", "update(updates, state"),
            ("jnp.where(jnp.isinf(x), x, jnp.clip(x, -most, most))", "x"),
            ("jnp.where(jnp.isinf(g), g, jnp.clip(g, -limit, limit))", "g"),
            ("jnp.minimum(squared_size(g), most)", "squared_size(g)"),
            ("jnp.real(g.conj() * g) if jnp.iscomplexobj(g) else g * g", "g * g"),
            ("jnp.where(size > most, g / (size / most).astype(g.dtype), g)", "g"),
            ("jnp.where(finite, jnp.clip(x, -most, most), x)", "x"),
        ],
    ),
    "fdl/optim/tree_vectors.py": (
        "optim/test_half_precision.py -k length",
        [
            ("(squares > limits.tiny * 2.0**66)", "(squares >= 0)"),
            ("& (squares <= limits.max)", ""),
            ("return x * (1 / self.power).astype(x.dtype)", "return x / self.value"),
        ],
    ),
    "fdl/optim/wrappers/precision.py": (
        "optim/test_half_precision.py -k coarse_or_steps_below_or_master_or_bits",
        [
            ("jnp.asarray(narrowed(m, p.dtype), m.dtype) - jnp.asarray(p, m.dtype)", "u"),
            ("else m + jnp.asarray(u, m.dtype)", "else jnp.asarray(p, m.dtype) + u"),
            ('"value_fn": rounding', '"value_fn": lambda f: f'),
            (
                "MasterWeightsState(master, inner_state)\n\n",
                "MasterWeightsState(state.master, inner_state)\n\n",
            ),
            ("return updates, cast_like(new_state, state)", "return updates, new_state"),
        ],
    ),
}
