"""The oracles of the optimizers against optax and torch in float64, and SOAP's against its theory.

Nothing here touches fdl: this file says how far the oracles, which the optimizers are held against,
can be trusted, and writes down where optax, torch and the papers part.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from tests.oracles.cases import CASES, DTYPES, MASK, OPTAX_ADAFACTOR, SHAPES, falling, growing
from tests.oracles.optimizers import ORACLES, Adagrad, Lamb, Sgd, Soap

STEPS = 60
TOLERANCE = 1e-10  # relative, of the displacement from the start, at every step

random = np.random.default_rng(20240917)
PARAMS = {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def hostile(shape):
    """Gradients that drift, change scale and sign, and are exactly 0 here and there."""
    steps = np.arange(STEPS).reshape(STEPS, *(1 for _ in shape))
    g = random.normal(size=(STEPS, *shape)) + 0.7 * np.sin(steps / 5.0)
    return g * np.exp(np.sin(steps / 9.0)) * (random.random((STEPS, *shape)) > 0.08)


GRADIENTS = {name: hostile(shape) for name, shape in SHAPES.items()}


WITHOUT_ZEROS = {name: np.where(g == 0, 0.1, g) for name, g in GRADIENTS.items()}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


# --- the runs compared ---------------------------------------------------------------------------


def run_oracle(oracle, params=PARAMS, gradients=GRADIENTS):
    """{name: [STEPS + 1, ...]}: where the parameters go. `gradients`: stacked, or a function."""
    oracle.init(params)
    path = [dict(params)]
    for i in range(STEPS):
        g = gradients(path[-1]) if callable(gradients) else {n: g[i] for n, g in gradients.items()}
        path.append(oracle.step({name: np.asarray(value) for name, value in g.items()}))
    for name, value in params.items():
        assert all(p[name].shape == value.shape and p[name].dtype == np.float64 for p in path)
    return {name: np.stack([p[name] for p in path]) for name in params}


# Sixty steps of tiny arrays take little time; without optimization they also compile fast.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run_optax(transform, params=PARAMS, gradients=GRADIENTS, **extra):
    def step(carry, i):
        params, state = carry
        g = gradients(params) if callable(gradients) else jax.tree.map(lambda g: g[i], given)
        updates, state = transform.update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    given = None if callable(gradients) else jax.device_put(dict(gradients))
    params = jax.device_put(dict(params))
    run = jit(
        lambda params: jax.lax.scan(step, (params, transform.init(params)), jnp.arange(STEPS))
    )
    _, path = run(params)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(path))
    return jax.tree.map(
        lambda p, start: np.concatenate([np.asarray(start)[None], np.asarray(p)]), path, params
    )


def run_torch(torch, make, params=PARAMS, gradients=GRADIENTS):
    tensors = {name: torch.tensor(w, dtype=torch.float64) for name, w in params.items()}
    optimizer = make(list(tensors.values()))
    path = [{name: w.numpy().copy() for name, w in tensors.items()}]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam's product of momenta has the default dtype
    try:
        for i in range(STEPS):
            for name, w in tensors.items():
                w.grad = torch.tensor(gradients[name][i], dtype=torch.float64)
            optimizer.step()
            path.append({name: w.numpy().copy() for name, w in tensors.items()})
    finally:
        torch.set_default_dtype(before)
    return {name: np.stack([p[name] for p in path]) for name in params}


def difference(expected, actual):
    """The largest difference of displacements, in units of a leaf's largest displacement so far."""
    worst = 0.0
    for name, a in actual.items():
        moved, wanted = a - a[0], expected[name] - expected[name][0]
        flat = np.abs(wanted).reshape(len(wanted), -1).max(axis=1)
        scale = np.maximum.accumulate(flat)
        error = np.abs(moved - wanted).reshape(len(wanted), -1).max(axis=1)
        assert np.isfinite(error).all() and scale[-1] > 0
        scale[scale == 0] = scale[scale > 0][0]  # before the first movement
        worst = max(worst, (error / scale).max())
    return worst


def assert_same(expected, actual, tolerance=TOLERANCE):
    found = difference(expected, actual)
    assert found <= tolerance, f"displacements differ by {found:.2e}, more than {tolerance:.0e}"


def assert_differ(expected, actual, least=1e-4):
    found = difference(expected, actual)
    assert found >= least, f"displacements differ by {found:.2e} only: the discrepancy is gone"


# --- against optax -------------------------------------------------------------------------------


def optax_function(name):
    return getattr(optax, name, None) or getattr(contrib, name)


def make_optax(name, hyper):
    hyper = {key: value for key, value in hyper.items() if key != "reading"}
    numbers = hyper.get("muon_weight_dimension_numbers")
    if numbers is not None:
        hyper["muon_weight_dimension_numbers"] = {
            key: None if axes is None else contrib.MuonDimensionNumbers(*axes)
            for key, axes in numbers.items()
        }
    return optax_function(name)(**hyper)


def defaults(make):
    """{name: default} of an oracle's or an optax function's hyper-parameters."""
    return {key: p.default for key, p in inspect.signature(make).parameters.items()}


def listed(cases):
    return [pytest.param(n, h, id=f"{n}-{i}") for n, hs in cases.items() for i, h in enumerate(hs)]


@pytest.mark.parametrize(("name", "hyper"), listed(CASES))
def test_oracle_equals_optax(name, hyper):
    assert_same(run_optax(make_optax(name, hyper)), run_oracle(ORACLES[name](**hyper)))


@pytest.mark.parametrize("name", [*CASES, "adafactor"])
def test_hyper_parameters_are_optaxs_and_all_are_moved(name):
    theirs, ours = defaults(optax_function(name)), defaults(ORACLES[name])
    theirs = {key: value for key, value in theirs.items() if key not in DTYPES}
    assert {key: ours.get(key, "absent") for key in theirs} == theirs
    cases = OPTAX_ADAFACTOR if name == "adafactor" else CASES[name]
    moved = {key for hyper in cases for key, value in hyper.items() if value != theirs.get(key)}
    assert set(theirs) - moved == set()


def test_every_oracle_is_tested():
    wrappers = {"adafactor", "schedule_free", "lookahead", "sam", "soap"}
    assert set(ORACLES) == set(CASES) | wrappers


def adafactor_in_float64(
    *,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
    weight_decay_mask=None,
):
    """optax.adafactor's chain, with the decay 1 - t^-0.8 in float64 (the alias: float32)."""
    parts = [
        optax.scale_by_factored_rms(
            factored,
            decay_rate,
            decay_offset,
            min_dim_size_to_factor,
            eps,
            lambda i, exponent: 1.0 - (i + 1.0) ** -exponent,
        )
    ]
    if clipping_threshold is not None:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(optax.scale_by_param_block_rms())
    if momentum is not None:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=jnp.float64))
    if weight_decay_rate is not None:
        parts.append(optax.add_decayed_weights(weight_decay_rate, mask=weight_decay_mask))
    return optax.chain(*parts, optax.scale(-1))


@pytest.mark.parametrize("hyper", OPTAX_ADAFACTOR, ids=range(len(OPTAX_ADAFACTOR)))
def test_adafactor_equals_optax(hyper):
    path = run_oracle(ORACLES["adafactor"](**hyper))
    assert_same(run_optax(adafactor_in_float64(**hyper)), path)


def test_adafactor_of_optax_computes_its_decay_in_float32():
    hyper = OPTAX_ADAFACTOR[0]
    alias = run_optax(optax.adafactor(**hyper, dtype_momentum=jnp.float64))
    path = run_oracle(ORACLES["adafactor"](**hyper))
    assert_same(alias, path, 1e-5)
    assert_differ(alias, path, 1e-9)


# --- where optax and the papers differ -----------------------------------------------------------


def test_rprop_of_optax_is_late_by_one_step():
    """Without a change of sign, optax's step t + 1 is Riedmiller's step t."""
    hyper = {"learning_rate": 0.02, "eta_plus": 1.3, "max_step_size": 0.06}
    one_way = {name: np.abs(g) + 0.1 for name, g in GRADIENTS.items()}
    theirs = run_optax(optax.rprop(**hyper), gradients=one_way)
    for reading in ("irprop-", "rprop+"):
        path = run_oracle(ORACLES["rprop"](**hyper, reading=reading), gradients=one_way)
        for name, value in theirs.items():
            np.testing.assert_array_equal(value[1], value[0])
            np.testing.assert_allclose(value[1:], path[name][:-1], rtol=1e-12)
    assert_differ(run_optax(optax.rprop(**hyper)), run_oracle(ORACLES["rprop"](**hyper)))


def test_rprop_backtracks_by_the_book():
    """One weight by hand: 1993 takes the last update back, the improved one stays."""
    signs = np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    paths = {"irprop-": [0, -0.1, -0.22, -0.22, -0.16, -0.088]}
    paths["rprop+"] = [0, -0.1, -0.22, -0.1, -0.04, 0.032]
    for reading, wanted in paths.items():
        oracle = ORACLES["rprop"](learning_rate=0.1, reading=reading)
        oracle.init({"w": np.zeros(1)})
        path = [0.0] + [oracle.step({"w": np.array([sign])})["w"][0] for sign in signs]
        np.testing.assert_allclose(path, wanted, rtol=1e-12, err_msg=reading)


def test_adadelta_of_optax_climbs_without_a_rate():
    theirs = run_optax(optax.adadelta(rho=0.8, eps=1e-3))
    climbing = run_oracle(ORACLES["adadelta"](rho=0.8, eps=1e-3, reading="optax"))
    falling_ = run_oracle(ORACLES["adadelta"](rho=0.8, eps=1e-3))
    assert_same(theirs, climbing)
    mirrored = {name: 2 * path[0] - path for name, path in falling_.items()}
    assert_same(theirs, mirrored)
    assert_same(run_optax(optax.adadelta(1.0, rho=0.8, eps=1e-3)), falling_)


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_of_optax_weighs_by_the_next_rate(name):
    hyper = {"learning_rate": 0.0625, "warmup_steps": 16, "b1": 0.7}
    theirs = run_optax(make_optax(name, hyper))
    assert_same(theirs, run_oracle(ORACLES[name](**hyper, reading="optax")))
    assert_differ(theirs, run_oracle(ORACLES[name](**hyper)))
    constant = {"learning_rate": 0.05, "b1": 0.7}
    for reading in ("optax", "paper"):
        path = run_oracle(ORACLES[name](**constant, reading=reading))
        assert_same(run_optax(make_optax(name, constant)), path)


def test_schedule_free_adamw_with_the_correction_in_the_rate():
    """The authors' first code: the factor sqrt(1 - b2^t) in gamma_t also weighs the average."""
    hyper = {"learning_rate": 0.05, "b1": 0.7, "b2": 0.95, "weight_decay": 0.2}
    path = run_oracle(ORACLES["schedule_free_adamw"](**hyper, correction="rate"))
    assert_differ(run_oracle(ORACLES["schedule_free_adamw"](**hyper)), path)
    w, g = PARAMS["vector"], GRADIENTS["vector"][0]
    root = np.sqrt(1 - 0.95)
    first = w - 0.05 * root * (g / (root * np.abs(g) + 1e-8) + 0.2 * w)  # c_1 = 1, so x = y = z
    np.testing.assert_allclose(path["vector"][1], first, rtol=1e-12)


def test_amsgrad_readings_differ_and_agree_without_correction():
    hyper = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 0.03}
    after = run_oracle(ORACLES["amsgrad"](**hyper))
    assert_differ(after, run_oracle(ORACLES["amsgrad"](**hyper, reading="before")))
    hyper["bias_correction_nu"] = False
    after = run_oracle(ORACLES["amsgrad"](**hyper))
    assert_same(after, run_oracle(ORACLES["amsgrad"](**hyper, reading="before")))


def test_readings_that_differ():
    """The readings of every pair give different results, so tests can tell them apart."""
    common = {"learning_rate": 0.1}
    for name, one, other in [
        ("adagrad", {"eps": 0.03}, {"eps": 0.03, "reading": "paper"}),
        ("adam", {"eps": 0.03}, {"eps": 0.03, "reading": "section2"}),
        ("nadam", {}, {"momentum_decay": 0.004}),
        ("adamw", {"weight_decay": 0.2}, {"weight_decay": 0.2, "decay_reading": "paper"}),
        ("radam", {"eps": 0.03}, {"eps": 0.03, "reading": "torch"}),
        ("lars", {"weight_decay": 0.2}, {"weight_decay": 0.2, "reading": "paper"}),
        ("muon", {}, {"reading": "jordan"}),
        ("soap", {}, {"reading": "paper"}),
    ]:
        make = functools.partial(ORACLES[name], **common)
        assert_differ(run_oracle(make(**one)), run_oracle(make(**other)))


def test_readings_without_another_library_by_hand():
    """Two steps of one matrix, straight from the papers' formulas."""
    w, (g, h) = PARAMS["matrix"], GRADIENTS["matrix"][:2]

    def second(name, **hyper):
        oracle = ORACLES[name](learning_rate=0.1, **hyper)
        oracle.init({"w": w})
        between = oracle.step({"w": g})["w"]
        return between, oracle.step({"w": h})["w"]

    # Kingma and Ba, before section 2.1: alpha_t = alpha sqrt(1 - b2^t) / (1 - b1^t).
    between, after = second("adam", b1=0.8, b2=0.9, eps=0.03, reading="section2")
    m, v = 0.8 * 0.2 * g + 0.2 * h, 0.9 * 0.1 * g**2 + 0.1 * h**2
    rate = 0.1 * np.sqrt(1 - 0.81) / (1 - 0.64)
    np.testing.assert_allclose(after, between - rate * m / (np.sqrt(v) + 0.03), rtol=1e-12)

    # You, Gitman and Ginsburg, eq. (6): eta ||w|| / (||g|| + beta ||w||).
    hyper = {"weight_decay": 0.2, "trust_coefficient": 0.02, "momentum": 0.7, "reading": "paper"}
    between, after = second("lars", **hyper)
    moves = []
    for x, slope_ in ((w, g), (between, h)):
        a, b = np.linalg.norm(x), np.linalg.norm(slope_)
        moves.append(0.1 * 0.02 * a / (b + 0.2 * a) * (slope_ + 0.2 * x))
    np.testing.assert_allclose(after, between - moves[1] - 0.7 * moves[0], rtol=1e-12)

    # Jordan: lerp(g, m, beta), m an average; no Newton-Schulz step leaves u / ||u||.
    between, after = second("muon", beta=0.8, ns_steps=0, eps=0.0, reading="jordan")
    u = 0.2 * h + 0.8 * (0.8 * 0.2 * g + 0.2 * h)
    np.testing.assert_allclose(after, between - 0.1 * u / np.linalg.norm(u), rtol=1e-12)


def test_readings_that_agree_where_they_should():
    common = {"learning_rate": 0.1}
    for name, one, other in [
        ("adagrad", {"eps": 0.0}, {"eps": 0.0, "reading": "paper"}),
        ("adam", {"eps": 0.0}, {"eps": 0.0, "reading": "section2"}),
        ("nadam", {"nesterov": False}, {"momentum_decay": 0.004, "nesterov": False}),
        ("radam", {"eps": 0.0}, {"eps": 0.0, "reading": "torch"}),
        ("lars", {}, {"reading": "paper"}),
    ]:
        make = functools.partial(ORACLES[name], **common)
        first = run_oracle(make(**one), gradients=WITHOUT_ZEROS)  # with eps 0, 0 is 0 / 0
        assert_same(first, run_oracle(make(**other), gradients=WITHOUT_ZEROS))
    # Without the schedule the paper's decay lambda is optax's lambda / rate.
    optaxs = run_oracle(ORACLES["adamw"](**common, weight_decay=0.2))
    papers = ORACLES["adamw"](**common, weight_decay=0.02, decay_reading="paper")
    assert_same(optaxs, run_oracle(papers))
    # Without Nesterov, Muon's bias correction is a factor that the orthogonalisation removes.
    matrix = {"params": {"matrix": PARAMS["matrix"]}, "gradients": {"matrix": GRADIENTS["matrix"]}}
    make = functools.partial(ORACLES["muon"], **common, nesterov=False, eps=0.0)
    assert_same(run_oracle(make(), **matrix), run_oracle(make(reading="jordan"), **matrix))


def test_zero_parameters_and_gradients_of_the_trust_ratios():
    """The ratio is 1 where a norm is 0, in optax and in the oracle."""
    params = {"zero": np.zeros((2, 3)), "still": PARAMS["vector"], "both": PARAMS["matrix"]}
    gradients = {"zero": GRADIENTS["cube"][:, 0, :2, :3], "both": GRADIENTS["matrix"]}
    gradients["still"] = np.zeros((STEPS, 4))
    for name in ("lamb", "lars"):
        theirs = run_optax(make_optax(name, {"learning_rate": 0.1}), params, gradients)
        path = run_oracle(ORACLES[name](learning_rate=0.1), params, gradients)
        for path_ in (theirs, path):
            assert (path_.pop("still") == PARAMS["vector"]).all()
        assert_same(theirs, path)


def test_muon_orthogonalises():
    """Many steps of the convergent quintic (15, -10, 3) / 8 give U V^T, whatever came before."""
    for preconditioning in ("frobenius", "spectral", "schatten", "aol"):
        oracle = ORACLES["muon"](
            learning_rate=1.0,
            ns_coeffs=(15 / 8, -10 / 8, 3 / 8),
            ns_steps=30,
            preconditioning=preconditioning,
        )
        oracle.init({"w": np.zeros((5, 3))})
        moved = oracle.step({"w": PARAMS["matrix"]})["w"]
        u, _, v = np.linalg.svd(PARAMS["matrix"], full_matrices=False)
        if preconditioning == "aol":  # rescales rows of w^T: orthogonal, but another frame
            np.testing.assert_allclose(moved.T @ moved, np.eye(3), atol=1e-10)
        else:
            np.testing.assert_allclose(moved, -u @ v, atol=1e-10)


# --- wrappers, and gradients at moving parameters ------------------------------------------------

INPUTS = random.normal(size=(16, 3))
TARGETS = np.sin(INPUTS @ random.normal(size=(3, 2)))
NETWORK = {
    "w1": 0.5 * random.normal(size=(3, 5)),
    "b1": 0.1 * random.normal(size=5),
    "w2": 0.5 * random.normal(size=(5, 2)),
    "b2": 0.1 * random.normal(size=2),
    "gain": np.array(1.3),
}


def slope(params):
    """The gradient of mean((gain (tanh(x w1 + b1) w2 + b2) - y)^2), by hand, in NumPy or JAX."""
    xp = jnp if isinstance(params["w1"], jax.Array) else np
    hidden = xp.tanh(INPUTS @ params["w1"] + params["b1"])
    out = hidden @ params["w2"] + params["b2"]
    error = 2 * (params["gain"] * out - TARGETS) / TARGETS.size
    back = params["gain"] * error
    below = (back @ params["w2"].T) * (1 - hidden * hidden)
    return {
        "w1": INPUTS.T @ below,
        "b1": below.sum(axis=0),
        "w2": hidden.T @ back,
        "b2": back.sum(axis=0),
        "gain": (error * out).sum(),
    }


def test_slope_is_the_gradient():
    def loss(p):
        out = jnp.tanh(INPUTS @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return jnp.mean((p["gain"] * out - TARGETS) ** 2)

    wanted = jax.jit(jax.grad(loss))(NETWORK)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11), slope(NETWORK), wanted)


@pytest.mark.parametrize(
    ("name", "index"),
    [("sgd", 0), ("adam", 1), ("adabelief", 0), ("rmsprop", 2), ("lamb", 0), ("muon", 0)],
)
def test_oracle_equals_optax_along_its_own_path(name, index):
    hyper = {**CASES[name][index], "learning_rate": lambda count: growing(count) / 3}
    hyper.pop("mask", None)
    theirs = run_optax(make_optax(name, hyper), NETWORK, slope)
    assert_same(theirs, run_oracle(ORACLES[name](**hyper), NETWORK, slope))


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_equals_optax_along_its_own_path(name):
    hyper = CASES[name][0]
    path = run_oracle(ORACLES[name](**hyper), NETWORK, slope)
    assert_same(run_optax(make_optax(name, hyper), NETWORK, slope), path)


def test_schedule_free_around_any_optimizer():
    """optax's wrapper around Lamb, under a schedule; and x, where the model is evaluated."""
    transform = contrib.schedule_free(optax.lamb(growing), growing, b1=0.8, weight_lr_power=1.5)
    oracle = ORACLES["schedule_free"](
        base_optimizer=Lamb(learning_rate=growing),
        learning_rate=growing,
        b1=0.8,
        weight_lr_power=1.5,
        reading="optax",
    )
    assert_same(run_optax(transform), run_oracle(oracle))
    params, state = PARAMS, jit(transform.init)(PARAMS)
    update = jit(transform.update)
    for i in range(3):
        updates, state = update({name: g[i] for name, g in GRADIENTS.items()}, state, params)
        params = jax.tree.map(lambda w, u: w + np.asarray(u), params, updates)
    oracle.init(PARAMS)
    for i in range(3):
        oracle.step({name: g[i] for name, g in GRADIENTS.items()})
    evaluated = jit(contrib.schedule_free_eval_params)(state, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), oracle.x, evaluated)


@pytest.mark.parametrize("reset_state", [False, True])
def test_lookahead_equals_optax(reset_state):
    hyper = {"sync_period": 4, "slow_step_size": 0.3, "reset_state": reset_state}
    transform = optax.lookahead(optax.adam(0.1, b1=0.8, b2=0.95, eps=0.03), **hyper)

    def step(carry, _):
        params, state = carry
        updates, state = transform.update(slope(params.fast), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = optax.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, NETWORK))
    run = jit(lambda p: jax.lax.scan(step, (p, transform.init(p)), length=STEPS))
    _, path = run(start)
    fast = ORACLES["adam"](learning_rate=0.1, b1=0.8, b2=0.95, eps=0.03)
    oracle = ORACLES["lookahead"](fast_optimizer=fast, **hyper)
    oracle.init(NETWORK)
    params, slow = dict(NETWORK), []
    fasts = [params]
    for _ in range(STEPS):
        params = oracle.step(slope(params))
        fasts.append(params)
        slow.append(oracle.slow)
    for wanted, actual in ((path.fast, fasts[1:]), (path.slow, slow)):
        actual = {n: np.stack([NETWORK[n], *(p[n] for p in actual)]) for n in NETWORK}
        wanted = {n: np.concatenate([NETWORK[n][None], wanted[n]]) for n in NETWORK}
        assert_same(wanted, actual)


def adversarial_slope(params, i):
    return {name: g * (1 + 0.1 * i) for name, g in slope(params).items()}


@pytest.mark.parametrize("sync_period", [2, 4])
def test_sam_equals_optax(sync_period):
    ascent = optax.chain(contrib.normalize(), optax.sgd(0.06))
    transform = contrib.sam(
        optax.sgd(0.1, momentum=0.7), ascent, sync_period=sync_period, opaque_mode=True
    )
    oracle = ORACLES["sam"](
        optimizer=Sgd(learning_rate=0.1, momentum=0.7),
        gradient_function=adversarial_slope,
        rho=0.06,
        sync_period=sync_period,
    )
    theirs = run_optax(transform, NETWORK, slope, grad_fn=adversarial_slope)
    assert_same(theirs, run_oracle(oracle, NETWORK, slope))


@pytest.mark.parametrize("reset_state", [False, True])
def test_sam_equals_optax_with_another_ascent(reset_state):
    """Adversarial Adagrad, whose state outlives a step unless reset."""
    transform = contrib.sam(
        optax.adam(0.05),
        optax.adagrad(0.05),
        sync_period=3,
        reset_state=reset_state,
        opaque_mode=True,
    )
    oracle = ORACLES["sam"](
        optimizer=ORACLES["adam"](learning_rate=0.05),
        gradient_function=adversarial_slope,
        adv_optimizer=Adagrad(learning_rate=0.05),
        sync_period=3,
        reset_state=reset_state,
    )
    theirs = run_optax(transform, NETWORK, slope, grad_fn=adversarial_slope)
    assert_same(theirs, run_oracle(oracle, NETWORK, slope))


def test_sam_equals_every_second_step_of_transparent_optax():
    transform = contrib.sam(
        optax.sgd(0.1, momentum=0.7), optax.chain(contrib.normalize(), optax.sgd(0.06))
    )
    oracle = ORACLES["sam"](
        optimizer=Sgd(learning_rate=0.1, momentum=0.7),
        gradient_function=lambda params, _: slope(params),
        rho=0.06,
    )
    theirs = run_optax(transform, NETWORK, slope)
    ours = run_oracle(oracle, NETWORK, slope)
    half = STEPS // 2 + 1
    assert_same({n: p[::2] for n, p in theirs.items()}, {n: p[:half] for n, p in ours.items()})


# --- the protocol --------------------------------------------------------------------------------

WRAPPED = {
    "schedule_free": lambda: {"base_optimizer": Sgd(learning_rate=0.1), "learning_rate": 0.1},
    "lookahead": lambda: {
        "fast_optimizer": Sgd(learning_rate=0.1),
        "sync_period": 3,
        "slow_step_size": 0.5,
    },
    "sam": lambda: {
        "optimizer": Sgd(learning_rate=0.1),
        "gradient_function": lambda params, _: params,
    },
}


@pytest.mark.parametrize("name", ORACLES)
def test_protocol(name):
    """init starts again, arguments are not modified, and results of step never change."""
    hyper = WRAPPED[name]() if name in WRAPPED else {"learning_rate": 0.1}
    oracle = ORACLES[name](**hyper)
    params = {key: w.astype(np.float32) for key, w in PARAMS.items()}
    gradients = {key: g[:4].astype(np.float32) for key, g in GRADIENTS.items()}
    kept = jax.tree.map(np.copy, (params, gradients))
    runs = []
    for _ in range(2):
        assert oracle.init(params) is None
        steps = [oracle.step({key: g[i] for key, g in gradients.items()}) for i in range(4)]
        runs.append(jax.tree.map(np.copy, steps))
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    jax.tree.map(np.testing.assert_array_equal, steps, runs[1])
    jax.tree.map(np.testing.assert_array_equal, (params, gradients), kept)
    for leaf in jax.tree.leaves(steps):
        assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
    assert any((steps[-1][key] != params[key]).any() for key in params)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentom'"):
        ORACLES[name](**hyper, momentom=0.9)


# --- against torch -------------------------------------------------------------------------------

# (torch's class, its arguments, the oracle, its arguments). Rates are constant: torch's schedulers
# act outside of the momentum. Not comparable: Muon (torch orthogonalises in bfloat16), and sign
# SGD, AdaBelief, Lion, LAMB, LARS, schedule-free, lookahead, SAM and SOAP, which torch lacks.
TORCH = {
    "sgd": ("SGD", {"lr": 0.05, "momentum": 0.8}, {"learning_rate": 0.05, "momentum": 0.8}),
    "sgd-nesterov": (
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
    ),
    "adagrad": (  # eps outside of the root
        "Adagrad",
        {"lr": 0.05, "initial_accumulator_value": 0.4, "eps": 0.03},
        {
            "learning_rate": 0.05,
            "initial_accumulator_value": 0.4,
            "eps": 0.03,
            "reading": "paper",
        },
    ),
    "adadelta": (
        "Adadelta",
        {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
        {"learning_rate": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop": (
        "RMSprop",
        {"lr": 0.02, "alpha": 0.8, "eps": 0.03, "momentum": 0.7},
        {
            "learning_rate": 0.02,
            "decay": 0.8,
            "eps": 0.03,
            "momentum": 0.7,
            "eps_in_sqrt": False,
        },
    ),
    "rmsprop-centered": (
        "RMSprop",
        {"lr": 0.02, "alpha": 0.8, "eps": 0.03, "centered": True},
        {
            "learning_rate": 0.02,
            "decay": 0.8,
            "eps": 0.03,
            "centered": True,
            "eps_in_sqrt": False,
        },
    ),
    "rprop": (
        "Rprop",
        {"lr": 0.02, "etas": (0.4, 1.3), "step_sizes": (0.01, 0.06)},
        {
            "learning_rate": 0.02,
            "eta_minus": 0.4,
            "eta_plus": 1.3,
            "min_step_size": 0.01,
            "max_step_size": 0.06,
        },
    ),
    "adam": (
        "Adam",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.03},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.95, "eps": 0.03},
    ),
    "amsgrad": (
        "Adam",
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.03, "amsgrad": True},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "eps": 0.03, "reading": "before"},
    ),
    "adamax": (
        "Adamax",
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.03},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "eps": 0.03},
    ),
    "nadam": (
        "NAdam",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.03, "momentum_decay": 0.02},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.95, "eps": 0.03, "momentum_decay": 0.02},
    ),
    "adamw": (
        "AdamW",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.03, "weight_decay": 0.2},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.95, "eps": 0.03, "weight_decay": 0.2},
    ),
    "radam": (
        "RAdam",
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 0.03},
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.95, "eps": 0.03, "reading": "torch"},
    ),
    # min(rate, 1/sqrt(t)) is the rate; eps clamps instead of adding, which 1e-30 cannot show.
    "adafactor": (
        "Adafactor",
        {"lr": 0.4, "beta2_decay": -0.7, "eps": (1e-30, 1e-3), "d": 1.1},
        {
            "learning_rate": lambda count: min(0.4, (count + 1) ** -0.5),
            "decay_rate": 0.7,
            "clipping_threshold": 1.1,
            "min_dim_size_to_factor": 2,
        },
    ),
}


@pytest.mark.parametrize("case", TORCH)
def test_oracle_equals_torch(case):
    torch = pytest.importorskip("torch", reason="torch is not installed: not checked with it")
    theirs, arguments, hyper = TORCH[case]
    # torch's eps in Adafactor is a floor, so that 0 / 0 is 0 there; optax's is added.
    gradients = WITHOUT_ZEROS if case == "adafactor" else GRADIENTS
    path = run_torch(
        torch, lambda p: getattr(torch.optim, theirs)(p, **arguments), gradients=gradients
    )
    oracle = ORACLES[case.split("-")[0]](**hyper)
    assert_same(path, run_oracle(oracle, gradients=gradients))


# --- SOAP, which optax lacks: first principles ---------------------------------------------------


def orthogonal(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def turned(path, left, right):
    return {name: left @ value @ right.T for name, value in path.items()}


SOAP = {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("reading", ["authors", "paper"])
@pytest.mark.parametrize("refresh", ["qr", "eigh"])
@pytest.mark.parametrize("frequency", [1, 7, 1000])
def test_soap_is_adam_in_the_eigenbasis(reading, refresh, frequency):
    """Gradients U S_t V^T, S_t with one number per row and column: the basis is U and V throughout.

    So in the coordinates U^T w V SOAP is Adam on S_t, while the order of the eigenvalues changes
    all the time, which the authors' reading follows. Full rank from the first step, so no null
    space is arbitrary.
    """
    n = 4
    generator = np.random.default_rng(3)
    places = np.stack([np.eye(n)[generator.permutation(n)] for _ in range(STEPS)])
    inner = places * generator.normal(size=(STEPS, 1, n)) * np.exp(generator.normal(size=n))
    inner[0] = np.diag([1.0, -2.0, 3.0, 0.5])
    u, v = orthogonal(n, 1), orthogonal(n, 2)
    start = generator.normal(size=(n, n))
    oracle = Soap(
        **SOAP,
        reading=reading,
        refresh=refresh,
        precondition_frequency=frequency,
    )
    if frequency < 1000 and (refresh == "eigh" or reading == "paper"):
        # The columns are put in order but v is not: only a fixed order of eigenvalues is Adam.
        inner = (
            np.eye(n)
            * np.array([1.0, -2.0, 3.0, 0.5])
            * (1 + 0.1 * np.sin(np.arange(STEPS)))[:, None, None]
        )
    path = run_oracle(oracle, {"w": u @ start @ v.T}, {"w": u @ inner @ v.T})

    # Adam by hand on the inner matrices, with the reading's own eps, decay and first step.
    m = s = np.zeros((n, n))
    w, wanted, t = start, [start], 0
    for g in inner:
        t += 1
        if reading == "authors" and len(wanted) == 1:
            t = 0
            wanted.append(w)
            continue
        m, s = 0.8 * m + 0.2 * g, 0.9 * s + 0.1 * g * g
        if reading == "authors":
            rate = 0.05 * np.sqrt(1 - 0.9**t) / (1 - 0.8**t)
            w = (w - rate * m / (np.sqrt(s) + 1e-3)) * (1 - 0.05 * 0.1)
        else:
            u_ = m / (1 - 0.8**t) / (np.sqrt(s / (1 - 0.9**t)) + 1e-3)
            w = w - 0.05 * (u_ + 0.1 * w)
        wanted.append(w)
    assert_same(turned({"w": np.stack(wanted)}, u, v), path)


def test_soap_is_adam_on_a_quadratic_with_a_kronecker_hessian():
    """f = tr(A w B w^T) / 2 from w = U D V^T, D diagonal: free-running, SOAP is Adam on D.

    Where D is 0 Adam is stable only if rate * curvature < 2 eps; else it amplifies rounding errors.
    """
    n = 4
    u, v = orthogonal(n, 1), orthogonal(n, 2)
    a, b = np.array([3.0, 1.0, 0.4, 0.1]), np.array([2.0, 0.9, 0.5, 0.2])
    hyper = {"learning_rate": 0.02, "b1": 0.8, "b2": 0.9, "eps": 0.3}
    soap = Soap(**hyper, weight_decay=0.0, precondition_frequency=3, reading="paper", sort=True)
    start = np.diag([1.0, -1.4, 0.7, 1.9])
    left, right = u @ np.diag(a) @ u.T, v @ np.diag(b) @ v.T
    path = run_oracle(soap, {"w": u @ start @ v.T}, lambda p: {"w": left @ p["w"] @ right})
    adam = ORACLES["adam"](**hyper)
    inner = run_oracle(adam, {"w": start}, lambda p: {"w": a[:, None] * p["w"] * b})
    assert_same(turned(inner, u, v), path)
    assert np.abs(path["w"][-1]).max() < np.abs(path["w"][0]).max()
    # In the original coordinates Adam goes elsewhere.
    plain = run_oracle(adam, {"w": u @ start @ v.T}, lambda p: {"w": left @ p["w"] @ right})
    assert_differ(plain, path, 1e-2)


@pytest.mark.parametrize("reading", ["authors", "paper"])
@pytest.mark.parametrize("frequency", [1, 7])
def test_soap_turns_with_its_gradients(reading, frequency):
    """Gradients P G R^T move the parameters by P (their moves) R^T; Adam's do not."""
    g = np.random.default_rng(5).normal(size=(STEPS, 4, 4))
    p, r = orthogonal(4, 6), orthogonal(4, 7)
    start = np.random.default_rng(8).normal(size=(4, 4))
    make = functools.partial(Soap, **SOAP, reading=reading, precondition_frequency=frequency)
    straight = run_oracle(make(), {"w": start}, {"w": g})
    there = run_oracle(make(), {"w": p @ start @ r.T}, {"w": p @ g @ r.T})
    assert_same(turned(straight, p, r), there)
    adam = ORACLES["adam"](learning_rate=0.05)
    straight = run_oracle(adam, {"w": start}, {"w": g})
    there = run_oracle(adam, {"w": p @ start @ r.T}, {"w": p @ g @ r.T})
    assert_differ(turned(straight, p, r), there, 1e-2)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4,)])
def test_soap_turns_with_a_fixed_basis(shape):
    """With Q turned as the gradients are, and never refreshed: any shape, any rank."""
    generator = np.random.default_rng(9)
    g = {"w": generator.normal(size=(STEPS, *shape))}
    turns = [orthogonal(n, 10 + n) for n in shape]

    def turn(x):
        axes = len(shape)
        for i, q in enumerate(turns):
            x = np.moveaxis(np.tensordot(x, q, axes=(x.ndim - axes + i, 1)), -1, x.ndim - axes + i)
        return x

    make = functools.partial(Soap, **SOAP, precondition_frequency=1000, precondition_1d=True)
    start = generator.normal(size=shape)
    one, other = make(), make()
    one.init({"w": start})
    other.init({"w": turn(start)})
    for i in range(STEPS):
        a = one.step({"w": g["w"][i]})["w"]
        b = other.step({"w": turn(g["w"])[i]})["w"]
        if i == 0:
            bases = one.state["w"]["bases"]
            other.state["w"]["bases"] = {k: turns[k] @ q for k, q in bases.items()}
        np.testing.assert_allclose(b, turn(a), rtol=1e-10, atol=1e-11)


def off_diagonal(factor, basis):
    inner = basis.T @ factor @ basis
    return np.abs(inner - np.diag(np.diag(inner))).max() / np.abs(np.diag(inner)).max()


@pytest.mark.parametrize("reading", ["authors", "paper"])
def test_soap_basis_diagonalises_the_factors(reading):
    """By eigh always; by QR at frequency 1 in the limit; by a basis never refreshed not."""
    generator = np.random.default_rng(11)
    g = generator.normal(size=(STEPS, 4, 4))
    found = {}
    for refresh, frequency in (("eigh", 1), ("qr", 1), ("qr", 1000)):
        oracle = Soap(**SOAP, reading=reading, refresh=refresh, precondition_frequency=frequency)
        oracle.init({"w": np.zeros((4, 4))})
        for i in range(STEPS):
            oracle.step({"w": g[i]})
            s = oracle.state["w"]
            for axis, basis in s["bases"].items():
                np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
                if refresh == "eigh" or i == 0:
                    assert off_diagonal(s["factors"][axis], basis) < 1e-12
        for i in range(400):
            oracle.step({"w": g[i % 2]})
        found[refresh, frequency] = max(
            off_diagonal(s["factors"][axis], basis) for axis, basis in s["bases"].items()
        )
    assert found["eigh", 1] < 1e-12
    assert found["qr", 1] < 0.1 * found["qr", 1000]
    oracle = Soap(**SOAP, reading=reading, precondition_frequency=1)
    oracle.init({"w": np.zeros((4, 4))})
    for i in range(STEPS):
        oracle.step({"w": g[i]})
    for _ in range(600):
        oracle.step({"w": g[0]})
    s = oracle.state["w"]
    assert max(off_diagonal(s["factors"][axis], s["bases"][axis]) for axis in (0, 1)) < 1e-10


@pytest.mark.parametrize("reading", ["authors", "paper"])
def test_soap_factors_are_averages_of_gram_matrices(reading):
    """Of a cube: over all the other axes; shampoo_beta, not b2; from zero, uncorrected, once."""
    oracle = Soap(**SOAP, shampoo_beta=0.7, max_precond_dim=3, reading=reading)
    oracle.init({"cube": PARAMS["cube"]})
    first, second = GRADIENTS["cube"][0], GRADIENTS["cube"][1]
    oracle.step({"cube": first})
    assert (oracle.params["cube"] == PARAMS["cube"]).all() == (reading == "authors")
    oracle.step({"cube": second})
    factors = oracle.state["cube"]["factors"]
    assert list(factors) == [0, 1]
    for axis, letters in ((0, "iab,jab->ij"), (1, "aib,ajb->ij")):
        gram = [np.einsum(letters, g, g) for g in (first, second)]
        np.testing.assert_allclose(factors[axis], 0.3 * (0.7 * gram[0] + gram[1]), rtol=1e-12)


def test_soap_without_a_basis_is_adamw():
    """Scalars and vectors, and anything larger than max_precond_dim: optax's adamw."""
    hyper = {"learning_rate": falling, "b1": 0.8, "b2": 0.9, "eps": 0.03, "weight_decay": 0.2}
    theirs = run_optax(optax.adamw(**hyper, mask=MASK))
    path = run_oracle(Soap(**hyper, mask=MASK, reading="paper", max_precond_dim=1))
    assert_same(theirs, path)


def test_soap_switches():
    """correct_bias and normalize_grads, by hand on the first moving step of a vector."""
    w, (_, g) = PARAMS["vector"], GRADIENTS["vector"][:2]
    raw = 0.2 * g / (np.sqrt(0.1 * g * g) + 1e-3)
    scale = np.sqrt(0.1) / 0.2
    for switches, u in [
        ({}, scale * raw),
        ({"correct_bias": False}, raw),
        ({"normalize_grads": True}, scale * raw / np.sqrt(np.mean(raw**2))),
    ]:
        path = run_oracle(Soap(**SOAP, **switches), {"v": w}, {"v": GRADIENTS["vector"]})
        np.testing.assert_allclose(path["v"][2], (w - 0.05 * u) * (1 - 0.005), rtol=1e-12)
        np.testing.assert_array_equal(path["v"][1], w)
