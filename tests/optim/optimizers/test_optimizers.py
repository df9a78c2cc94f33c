"""Every optimizer of the registry, against optax, NumPy in float64, and the laws."""

import collections
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax import contrib

import fdl
from fdl import optim
from fdl.debug import optimizer_laws
from fdl.debug.optimizer_laws import OPTIMIZER_LAWS as LAWS
from tests.entry_types import OptimizerCase
from tests.optim.test_oracles import (
    GRADIENTS,
    PARAMS,
    STEPS,
    assert_same,
    jit,
    run_optax,
    run_oracle,
)
from tests.oracles.cases import CASES, SHAPES, falling
from tests.oracles.optimizers import ORACLES
from tests.programs import array
from tests.toys import halving
from tests.trees import assert_equal, stacked

# Where optax departs from the paper: the argument of fdl's that follows optax there.
AS_OPTAX = {"rprop": {"delayed": True}}
# Sums whose order XLA chooses: the last places may differ.
ULPS = {"lars": 4, "lamb": 4, "muon_1": 4}
# One rounding in the first of five steps, each of which multiplies small singular values by 3.4.
ULPS["muon_4"] = 512


def _cases():
    for name, several in CASES.items():
        ours = getattr(optim, name, None)
        if ours is None:
            continue
        theirs = getattr(optax, name, None) or getattr(contrib, name)
        for number, hyper in enumerate(several):
            plain = {key: value for key, value in hyper.items() if key != "reading"}
            axes = plain.get("muon_weight_dimension_numbers")
            if axes is not None:
                plain["muon_weight_dimension_numbers"] = {
                    leaf: None if own is None else contrib.MuonDimensionNumbers(*own)
                    for leaf, own in axes.items()
                }
            yield (
                f"{name}_{number}",
                OptimizerCase(
                    functools.partial(ours, **plain, **AS_OPTAX.get(name, {})),
                    functools.partial(theirs, **plain),
                    functools.partial(ORACLES[name], **hyper),
                    ulps=ULPS.get(f"{name}_{number}", ULPS.get(name, 0)),
                    downhill="warmup_steps" not in hyper,  # from rate 0
                ),
            )


def _departure(name, extra, **hyper):
    """An optimizer in a variant that optax lacks, against the oracle."""
    ours, of_oracle = extra
    return OptimizerCase(
        functools.partial(getattr(optim, name), **hyper, **ours),
        None,
        functools.partial(ORACLES[name], **hyper, **of_oracle),
    )


def _lookahead(library, reset_state):
    fast = library.sgd(0.1, momentum=0.8)
    return functools.partial(library.lookahead, fast, 3, 0.4, reset_state)


_moments = {"b1": 0.8, "b2": 0.95, "eps": 0.03}

OPTIMIZERS = {
    "sgd_schedule": OptimizerCase(
        functools.partial(fdl.sgd, halving), functools.partial(optax.sgd, halving)
    ),
    **dict(_cases()),
    "rprop_of_the_paper": _departure(
        "rprop",
        ({}, {"reading": "irprop-"}),
        learning_rate=0.02,
        eta_minus=0.4,
        eta_plus=1.3,
        min_step_size=0.01,
        max_step_size=0.06,
    ),
    "amsgrad_of_torch": _departure(
        "amsgrad",
        ({"correct_maximum": True}, {"reading": "before"}),
        learning_rate=falling,
        eps_root=0.02,
        **_moments,
    ),
    "nadam_with_scheduled_momentum": _departure(
        "nadam",
        ({"momentum_decay": 0.05}, {"momentum_decay": 0.05}),
        learning_rate=falling,
        eps_root=0.02,
        **_moments,
    ),
    "adadelta_without_a_rate": _departure("adadelta", ({}, {}), rho=0.8, eps=1e-3),
    "schedule_free_sgd_of_the_paper": _departure(
        "schedule_free_sgd",
        ({"look_ahead": False}, {"reading": "paper"}),
        learning_rate=0.0625,
        warmup_steps=16,
        b1=0.7,
        weight_lr_power=1.5,
    ),
    "schedule_free_adamw_of_the_paper": _departure(
        "schedule_free_adamw",
        ({"look_ahead": False}, {"reading": "paper"}),
        learning_rate=0.0625,
        warmup_steps=16,
        b1=0.7,
        b2=0.95,
        weight_decay=0.2,
    ),
    **{
        f"lookahead_{reset}": OptimizerCase(
            _lookahead(optim, reset),
            _lookahead(optax, reset),
            start=optax.LookaheadParams.init_synced,
        )
        for reset in (False, True)
    },
}


def _default(make, *args, **kwargs):
    return OptimizerCase(functools.partial(make, *args, **kwargs))


# With default hyper-parameters. A name may have a second part after a blank.
DEFAULTS = {
    **{
        name: _default(getattr(optim, name), 0.1)
        for name in [
            "sgd",
            "sign_sgd",
            "adagrad",
            "rmsprop",
            "rprop",
            "adam",
            "adamw",
            "nadam",
            "nadamw",
            "amsgrad",
            "adamax",
            "radam",
            "adabelief",
            "lion",
            "lars",
            "lamb",
            "muon",
            "adafactor",
            "soap",
            "schedule_free_sgd",
            "schedule_free_adamw",
        ]
    },
    "sgd with momentum": _default(optim.sgd, 0.1, 0.9, nesterov=True),
    "rmsprop centered": _default(
        optim.rmsprop, 0.1, centered=True, momentum=0.9, bias_correction=True
    ),
    "adadelta": _default(optim.adadelta),
    "adafactor in factors": _default(
        optim.adafactor, 0.1, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=1e-3
    ),
    "muon adaptive": _default(optim.muon, 0.1, adaptive=True, preconditioning="schatten"),
    "soap of units": _default(optim.soap, 0.1, normalize_grads=True, skip_first=False),
    "lbfgs": _default(optim.lbfgs, 0.1, linesearch=None),
    "sam": _default(optim.sam, optim.adam(0.1), optim.chain(optim.normalize(), optim.sgd(0.05)), 3),
    "lookahead": OptimizerCase(
        functools.partial(optim.lookahead, optim.adam(0.1), 3, 0.5),
        start=optax.LookaheadParams.init_synced,
    ),
}


over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
over_twins = pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if c.theirs])
over_oracles = pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if c.oracle])
# One entry of each optimizer, for what does not depend on its options.
KINDS = list({re.sub(r"_\d+$", "", name): name for name in OPTIMIZERS}.values())
over_kinds = pytest.mark.parametrize("name", KINDS)
twin_kinds = pytest.mark.parametrize("name", [n for n in KINDS if OPTIMIZERS[n].theirs])


@pytest.fixture(autouse=True)
def standard(standard_promotion):
    """optax fails under strict promotion."""


TRACES = collections.Counter()


@functools.cache
def compiled(name):
    """(fdl's optimizer, its compiled update, optax's compiled update or None)."""
    case = OPTIMIZERS[name]
    optimizer, theirs = case.ours(), case.theirs and jax.jit(case.theirs().update)

    @jax.jit
    def update(gradient, state, params):
        TRACES[name, jax.tree.structure(params)] += 1
        return optimizer.update(gradient, state, params)

    return optimizer, update, theirs


def run(optimizer, params, state, gradients):
    """Where the parameters and the state end, by scan, and the parameters after every step."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = fdl.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, state), gradients)


@functools.cache
def compiled_run(name):
    """(params, state, gradients of CHUNK steps) -> what `run` returns; one program for all laws."""
    return jit(functools.partial(run, compiled(name)[0]))


CHUNK = 5


def wild(seed):
    """A gradient whose elements differ in size by twelve orders, some exactly 0."""
    rng = np.random.default_rng(seed)
    return {
        name: array(
            rng.standard_normal(shape)
            * 10.0 ** rng.integers(-6, 6, shape)
            * (rng.random(shape) > 0.1)
        )
        for name, shape in SHAPES.items()
    }


def assert_near(a, b, ulps):
    """Equal structures; every leaf within `ulps` ULPs of its largest value, 0 for equal bits."""
    if not ulps:
        assert_equal(a, b)
        return
    assert jax.tree.structure(a) == jax.tree.structure(b)
    right = fdl.paths.leaves(b)
    for path, x in fdl.paths.leaves(a).items():
        x, y = np.asarray(x), np.asarray(right[path])
        bound = ulps * np.spacing(np.abs(y).max()) if np.issubdtype(y.dtype, np.floating) else 0
        np.testing.assert_allclose(x, y, rtol=0, atol=bound, err_msg=path)


# Against optax.


@pytest.mark.bits
@over_twins
@pytest.mark.parametrize("kind", ["tame", "wild"])
def test_updates_and_states_are_those_of_optax(name, kind):
    """Every step starts from the same values, with states of fdl and optax in turn."""
    case = OPTIMIZERS[name]
    optimizer, ours, theirs = compiled(name)
    params = case.params()
    state = optimizer.init(params)
    assert_equal(state, case.theirs().init(params))
    for step in range(40):
        gradient = case.gradient(step + 1) if kind == "tame" else wild(step)
        updates, mine = ours(gradient, state, params)
        expected, other = theirs(gradient, state, params)
        # Where rounding makes a variance negative, optax has no number, and fdl has one.
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
        hole = jax.tree.map(np.isnan, (expected, other))
        assert name == "rmsprop_4" or not any(leaf.any() for leaf in jax.tree.leaves(hole))
        expected, other = jax.tree.map(np.where, hole, (updates, mine), (expected, other))
        assert_near(updates, expected, case.ulps)
        assert_near(mine, other, case.ulps)
        state = mine if step % 2 else other
        if kind == "tame":
            params = fdl.apply_updates(params, updates)


# Against NumPy in float64.


@over_oracles
def test_a_run_in_float64_is_the_oracles(name):
    with jax.enable_x64(True):
        case = OPTIMIZERS[name]
        assert_same(run_oracle(case.oracle()), run_optax(case.ours()))


@over_oracles
def test_a_run_in_float32_is_near_the_oracles(name):
    """To 2e-5 of the displacement: optax's bias correction is 57 eps off at the first step.

    Schedule-Free finds x from y and z by a difference, which costs another digit.
    """
    case = OPTIMIZERS[name]
    single = {key: np.asarray(value, np.float32) for key, value in PARAMS.items()}
    gradients = {key: np.asarray(value, np.float32) for key, value in GRADIENTS.items()}

    ended, pieces = (single, compiled(name)[0].init(single)), []
    for first in range(0, STEPS, CHUNK):
        piece = {key: g[first : first + CHUNK] for key, g in gradients.items()}
        ended, path = compiled_run(name)(*ended, piece)
        pieces.append(path)
    oracle = run_oracle(
        case.oracle(),
        {key: np.asarray(value, np.float64) for key, value in single.items()},
        {key: np.asarray(value, np.float64) for key, value in gradients.items()},
    )
    path = {
        key: np.concatenate([start[None], *(piece[key] for piece in pieces)]).astype(np.float64)
        for key, start in single.items()
    }
    assert_same(oracle, path, tolerance=1e-4 if name.startswith("schedule_free") else 2e-5)


def test_every_optimizer_is_in_the_registry_with_an_oracle():
    kinds = {re.sub(r"(_\d+|_schedule|_(True|False)|_(of|with|without)_.*)$", "", n) for n in KINDS}
    for name, value in vars(optim).items():
        home = getattr(value, "__module__", "")
        makes = getattr(value, "__annotations__", {}).get("return", None)
        if home.startswith("fdl.optim.") and makes is optax.GradientTransformationExtraArgs:
            takes = list(value.__annotations__)
            if takes[0] == "learning_rate" and not name.startswith("scale_by"):
                # Those that look at more than one number have tests of their own.
                elsewhere = {"adafactor", "lbfgs", "soap"}
                assert name in {*kinds, *elsewhere}, f"{name} is in no registry"
                assert name in {*ORACLES, "lbfgs"}, f"{name} has no oracle"


# Laws.


@functools.cache
def trial(name):
    """An entry with the program that its laws share."""
    case = OPTIMIZERS[name]
    return optimizer_laws.OptimizerTrial(case.ours, case.start, SHAPES)


@pytest.mark.parametrize("law", [name for name in LAWS if name not in ("order", "descends")])
@over_kinds
def test_an_optimizer_keeps_the_public_laws(name, law):
    """The order of parameters has a test below, because masks name parameters."""
    if law == "empty" and names_parameters(name):
        pytest.skip("its mask has no parameter without elements")
    LAWS[law](trial(name))


def names_parameters(name):
    """Whether an entry has a mask for the tree of SHAPES."""
    masks = {"mask", "weight_decay_mask", "muon_weight_dimension_numbers"}
    return bool(masks & set(getattr(OPTIMIZERS[name].ours, "keywords", {})))


@over_kinds
def test_updates_have_the_kind_of_the_parameters_and_go_downhill(name):
    case = OPTIMIZERS[name]
    optimizer = case.ours()
    params, gradient = case.params(), case.gradient(1)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    kinds = functools.partial(jax.tree.map, jax.typeof)
    assert kinds(updates) == kinds(fdl.apply_updates(params, updates)) == kinds(params)
    if case.downhill:
        moved = getattr(updates, "fast", updates)
        pulled = {"weight_decay", "mask"} & set(getattr(case.ours, "keywords", {}))
        for path, u in moved.items():
            along = np.sum(np.asarray(u, np.float32) * np.asarray(gradient[path], np.float32))
            assert along < 0 or pulled or not np.any(u), path


@over_kinds
def test_a_run_saved_and_loaded_in_the_middle_changes_no_bit(name, tmp_path):
    case = OPTIMIZERS[name]
    optimizer, update, _ = compiled(name)

    def go(params, state, seeds):
        for seed in seeds:
            updates, state = update(case.gradient(seed), state, params)
            params = fdl.apply_updates(params, updates)
        return params, state

    start = case.params(), optimizer.init(case.params())
    middle = go(*start, range(1, 4))
    fdl.save_weights(tmp_path / "run.safetensors", middle)
    loaded = fdl.load_weights(tmp_path / "run.safetensors", start)
    assert_equal(go(*loaded, range(4, 7)), go(*middle, range(4, 7)))


@over_kinds
def test_the_order_of_leaves_does_not_matter(name):
    """The same leaves under names that sort the other way round."""
    case = OPTIMIZERS[name]
    if names_parameters(name):
        pytest.skip("its mask names the leaves")
    renamed = {key: f"z{9 - number}" for number, key in enumerate(sorted(SHAPES))}

    def rename(tree):
        return {renamed[key]: leaf for key, leaf in tree.items()}

    optimizer = case.ours()
    params, other = case.params(), case.start(rename(case.gradient(0)))
    state, other_state = optimizer.init(params), optimizer.init(other)
    for seed in range(1, 4):
        updates, state = optimizer.update(case.gradient(seed), state, params)
        moved, other_state = optimizer.update(rename(case.gradient(seed)), other_state, other)
        for part in ("fast", "slow"):
            assert_equal(getattr(moved, part, moved), rename(getattr(updates, part, updates)))


@over_kinds
def test_extra_arguments_are_ignored_and_cond_keeps_the_state(name):
    case = OPTIMIZERS[name]
    optimizer, update, _ = compiled(name)
    params, gradient = case.params(), case.gradient(1)
    state = optimizer.init(params)

    @jax.jit
    def maybe(state, wanted):
        return jax.lax.cond(
            wanted,
            lambda: optimizer.update(gradient, state, params, unknown=1, value=2.0),
            lambda: (jax.tree.map(jnp.zeros_like, params), state),
        )

    updates, moved = maybe(state, True)
    expected, plain = update(gradient, state, params)
    assert_equal(updates, expected, rtol=1e-6, atol=1e-7)
    assert_equal(moved, plain, rtol=1e-6, atol=1e-7)
    assert_equal(maybe(state, False)[1], state)


@pytest.mark.slow
@over_kinds
def test_a_run_of_fifty_steps_is_differentiable_by_its_start(name):
    """The gradient is finite, and equals a central difference where the rule is smooth."""
    case = OPTIMIZERS[name]
    steps = {"sign", "lion", "rprop"}
    with jax.enable_x64(True):
        optimizer = case.ours()
        params = case.params(0, np.float64)
        gradients = stacked([case.gradient(seed, np.float64) for seed in range(1, 51)])

        def after(size):
            start = jax.tree.map(lambda leaf: size * leaf, params)

            # Gradients that depend on where the run is, and are nowhere 0.
            def step(carry, g):
                params, state = carry
                here = getattr(params, "fast", params)
                g = jax.tree.map(lambda w, g: jnp.sin(w) + 0.3 * g, here, g)
                updates, state = optimizer.update(g, state, params)
                return (fdl.apply_updates(params, updates), state), None

            end, _ = jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0]
            return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(end))

        both = jit(jax.value_and_grad(after))
        value, slope = both(np.float64(1.1))
        assert np.isfinite(value) and np.isfinite(slope)
        if not any(word in name for word in steps):
            h = 1e-6
            above, below = (float(both(np.float64(1.1 + by))[0]) for by in (h, -h))
            seen = (above - below) / (2 * h)
            np.testing.assert_allclose(slope, seen, rtol=2e-4, atol=1e-5)


# Gradients of 0, and the scale of gradients.

without_decay = pytest.mark.parametrize(
    "make",
    [
        optim.sgd,
        functools.partial(optim.sgd, momentum=0.7),
        optim.sign_sgd,
        optim.adagrad,
        optim.adadelta,
        optim.rmsprop,
        optim.rprop,
        optim.adam,
        optim.nadam,
        optim.amsgrad,
        optim.adamax,
        optim.radam,
        optim.adabelief,
        optim.lars,
        optim.lamb,
        functools.partial(optim.lion, weight_decay=0.0),
        functools.partial(optim.adamw, weight_decay=0.0),
    ],
    ids=lambda make: (
        getattr(make, "__name__", None) or f"{make.func.__name__}_{next(iter(make.keywords))}"
    ),
)


@without_decay
def test_a_gradient_of_zero_moves_nothing(make):
    optimizer = make(0.1)
    w = {"a": array([1.0, -2.0]), "b": array(3.0)}
    zero = jax.tree.map(np.zeros_like, w)
    state, update = jax.jit(optimizer.init)(w), jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(zero, state, w)
        assert_equal(jax.tree.map(np.abs, updates), zero)


scale_free = pytest.mark.parametrize(
    "make",
    [
        optim.sign_sgd,
        optim.lars,
        functools.partial(optim.lion, weight_decay=0.0),
        functools.partial(optim.adam, eps=0.0),
        functools.partial(optim.nadam, eps=0.0),
        functools.partial(optim.amsgrad, eps=0.0),
        functools.partial(optim.adamax, eps=0.0),
        functools.partial(optim.lamb, eps=0.0),
        functools.partial(optim.rmsprop, eps=0.0),
        functools.partial(optim.adagrad, eps=0.0, initial_accumulator_value=0.0),
        functools.partial(optim.adabelief, eps=0.0, eps_root=0.0),
    ],
    ids=lambda make: getattr(make, "__name__", None) or make.func.__name__,
)


@functools.cache
def three_steps(make):
    optimizer = make(0.1)

    @jax.jit
    def after(gradients, scale):
        w = jnp.array([1.0, -2.0, 0.5])
        return run(optimizer, w, optimizer.init(w), scale * gradients)[0][0]

    return after


@scale_free
@settings(max_examples=15, deadline=None)
@given(power=st.integers(-12, 12), seed=st.integers(0, 1000))
def test_the_scale_of_the_gradients_does_not_matter(make, power, seed):
    """For powers of 2, up to rounding."""
    gradients = array(np.random.default_rng(seed).standard_normal((3, 3)))
    after = three_steps(make)
    np.testing.assert_allclose(
        after(gradients, np.float32(2.0**power)), after(gradients, np.float32(1)), rtol=3e-6
    )


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(), (1,), (4,), (5, 3)]), max_size=3),
    kind=st.sampled_from([list, tuple, dict]),
    name=st.sampled_from(["sgd_0", "adam_0", "lion_like", "rmsprop_0"]),
)
def test_any_tree_goes_through(shapes, kind, name):
    make = {"sgd_0": optim.sgd, "adam_0": optim.adam, "rmsprop_0": optim.rmsprop}.get(
        name, functools.partial(optim.lion, weight_decay=0.1)
    )
    leaves = [array(np.ones(shape)) for shape in shapes]
    params = {str(i): leaf for i, leaf in enumerate(leaves)} if kind is dict else kind(leaves)
    params = {"inner": params, "empty": {}, "none": None}
    optimizer = make(0.1)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))
    assert all(np.all(leaf < 0) for leaf in jax.tree.leaves(updates))


# Unusual leaves, as in optax.


@pytest.mark.bits
@twin_kinds
def test_none_and_empty_subtrees_are_as_in_optax(name):
    case = OPTIMIZERS[name]
    if set(getattr(case.ours, "keywords", {})) & {"mask", "weight_decay_mask", "trust_ratio_mask"}:
        pytest.skip("its mask names the leaves")
    if name.startswith("muon"):
        pytest.skip("optax asks every leaf for its number of axes")

    def with_holes(tree):
        return {**tree, "none": None, "empty": {}, "list": [None, tree["vector"] * 2]}

    params, gradient = case.start(with_holes(case.gradient(0))), with_holes(case.gradient(1))
    optimizer, ours, theirs = compiled(name)
    state = optimizer.init(params)
    updates, mine = ours(gradient, state, params)
    expected, other = theirs(gradient, state, params)
    assert_near(updates, expected, case.ulps)
    assert_near(jax.tree.leaves(mine), jax.tree.leaves(other), case.ulps)


def test_a_leaf_without_gradient_stays_and_keeps_its_state():
    optimizer = fdl.adam(0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = optimizer.init(params)
    updates, new_state = optimizer.update({"a": jnp.ones(2), "b": None}, state, params)
    assert updates["b"] is None
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    moved = fdl.apply_updates(params, updates)
    np.testing.assert_allclose(moved["a"], 0.9, rtol=1e-6)
    assert_equal(moved["b"], params["b"])


COMPLEX = {
    "sgd": {"momentum": 0.8, "nesterov": True},
    "sign_sgd": {},
    "adagrad": {},
    "rmsprop": {"decay": 0.8},
    "adam": {"b1": 0.8, "b2": 0.9},
    "nadam": {},
    "adamw": {"weight_decay": 0.3},
    "adabelief": {},
    "radam": {"b2": 0.8},
    "lion": {},
    "lamb": {"weight_decay": 0.1},
    "lars": {},
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_as_in_optax(name):
    rng = np.random.default_rng(0)

    def draw():
        return {"w": array(rng.standard_normal(4) + 1j * rng.standard_normal(4), "complex64")}

    ours, theirs = (getattr(library, name)(0.1, **COMPLEX[name]) for library in (fdl.optim, optax))

    @jax.jit
    def both(gradient, mine, other):
        updates, state = ours.update(gradient, *mine)
        expected, their_state = theirs.update(gradient, *other)
        moved = fdl.apply_updates(mine[1], updates)
        their_moved = optax.apply_updates(other[1], expected)
        return updates, expected, (state, moved), (their_state, their_moved)

    params = draw()
    mine, other = (ours.init(params), params), (theirs.init(params), params)
    for _ in range(4):
        updates, expected, mine, other = both(draw(), mine, other)
        assert updates["w"].dtype == jnp.complex64
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "nadamw", "amsgrad", "lion"])
def test_bfloat16_parameters_with_float32_moments(name):
    """The moments have the requested dtype and are near those of optax, which rounds (1 - b1) g."""
    ours, theirs = (
        getattr(library, name)(0.1, mu_dtype=jnp.float32) for library in (fdl.optim, optax)
    )
    params = {"w": array([1.0, -2.0, 0.5, 1.5], jnp.bfloat16)}
    state, other = ours.init(params), theirs.init(params)
    for seed in range(1, 6):
        g = np.random.default_rng(seed).standard_normal(4)
        gradient = {"w": array(g, jnp.bfloat16)}
        updates, state = ours.update(gradient, state, params)
        expected, other = theirs.update(gradient, other, params)
        assert state[0].mu["w"].dtype == jnp.float32 and updates["w"].dtype == jnp.bfloat16
        np.testing.assert_allclose(state[0].mu["w"], other[0].mu["w"], rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(
            np.asarray(updates["w"], np.float32), np.asarray(expected["w"], np.float32), rtol=1e-2
        )


# Wrappers of optax.

WRAPS = {
    "masked": lambda make, rate: optax.masked(make(rate), {"matrix": True, "cube": False}),
    "multi_transform": lambda make, rate: optax.multi_transform(
        {"a": make(rate), "b": make(2 * rate)}, {"matrix": "b", "cube": "a"}
    ),
    "MultiSteps": lambda make, rate: optax.MultiSteps(make(rate), 2),
    "inject_hyperparams": lambda make, rate: optax.inject_hyperparams(make)(rate),
    "chain": lambda make, rate: optax.chain(optax.clip(0.5), make(rate), optax.scale(0.5)),
}
PLAIN = [
    "sgd",
    "sign_sgd",
    "adagrad",
    "adadelta",
    "rmsprop",
    "adam",
    "amsgrad",
    "adamax",
    "nadam",
    "adamw",
    "nadamw",
    "radam",
    "adabelief",
    "lion",
    "lars",
    "lamb",
    "schedule_free_sgd",
    "schedule_free_adamw",
]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", PLAIN)
def test_wrappers_of_optax_wrap_it(name, wrap):
    draw = OPTIMIZERS["sgd_2"].gradient
    params, *gradients = ({k: draw(seed)[k] for k in ("matrix", "cube")} for seed in range(4))
    gradients = stacked(gradients)

    def end(make):
        optimizer = WRAPS[wrap](make, 0.1)

        def step(carry, gradient):
            updates, state = optimizer.update(gradient, carry[1], params)
            return (updates, state), None

        (updates, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
        return updates, jax.tree.leaves(state)

    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    ours, expected = jax.jit(lambda: (end(getattr(optim, name)), end(theirs)))()
    assert_equal(ours, expected, rtol=1e-5, atol=1e-7)


# Mistakes.

MISTAKES = {
    "rate": (
        lambda: fdl.adam(-0.1),
        "adam: expected learning_rate >= 0, got -0.1; the update is already subtracted; pass a "
        "positive rate",
    ),
    "rate_nan": (
        lambda: fdl.lion(float("nan")),
        "lion: expected learning_rate >= 0, got nan; the update is already subtracted; pass a "
        "positive rate",
    ),
    "decay": (
        lambda: fdl.adamw(0.1, weight_decay=-1.0),
        "adamw: expected weight_decay >= 0, got -1.0; decay pulls weights towards 0; pass a "
        "positive strength",
    ),
    "b1": (
        lambda: fdl.adam(0.1, b1=1.0),
        "adam: expected b1 in (-1, 1), got 1.0; it is the fraction of the old value that each step "
        "keeps",
    ),
    "b2": (
        lambda: fdl.lion(0.1, b2=1.0),
        "lion: expected b2 in (-1, 1), got 1.0; it is the fraction of the old value that each step "
        "keeps",
    ),
    "rms": (
        lambda: fdl.rmsprop(0.1, decay=1.5),
        "rmsprop: expected decay in [0, 1), got 1.5; it is the fraction of the old value that each "
        "step keeps",
    ),
    "rho": (
        lambda: optim.adadelta(0.1, rho=2),
        "adadelta: expected rho in [0, 1), got 2; it is the fraction of the old value that each "
        "step keeps",
    ),
    "schedule_of_step_sizes": (
        lambda: optim.rprop(optim.linear_schedule(0.1, 0.0, 5)),
        "rprop: expected learning_rate >= 0, got the function schedule; pass a number",
    ),
    "first_step_size": (
        lambda: optim.rprop(-0.1),
        "rprop: expected learning_rate >= 0, got -0.1; it is the first step size",
    ),
    "eta_minus": (
        lambda: optim.rprop(0.1, eta_minus=1.2),
        "rprop: expected eta_minus in (0, 1), got 1.2; 0.5 is usual",
    ),
    "eta_plus": (
        lambda: optim.rprop(0.1, eta_plus=0.5),
        "rprop: expected eta_plus > 1, got 0.5; 1.2 is usual",
    ),
    "step_sizes": (
        lambda: optim.rprop(0.1, min_step_size=2.0, max_step_size=1.0),
        "rprop: expected min_step_size <= max_step_size, got 2.0 and 1.0; they are the smallest "
        "and the largest step size",
    ),
    "step_size": (
        lambda: optim.rprop(0.1, min_step_size=-1.0),
        "rprop: expected min_step_size >= 0, got -1.0; it is the smallest step size",
    ),
    "step_size_nan": (
        lambda: optim.rprop(0.1, max_step_size=float("nan")),
        "rprop: expected min_step_size <= max_step_size, got 1e-06 and nan; they are the smallest "
        "and the largest step size",
    ),
    "text_in_a_decay": (
        lambda: fdl.adam(0.1, b1="0.9"),
        "adam: expected b1 in (-1, 1), got '0.9'; pass a number",
    ),
    "text_in_adafactor": (
        lambda: optim.adafactor("0.1"),
        "adafactor: expected learning_rate >= 0, got '0.1'; pass a number",
    ),
    "no_rate": (
        lambda: fdl.sgd(None),
        "sgd: expected learning_rate >= 0, got None; pass a number",
    ),
    "chain": (
        lambda: optim.chain(0.1),
        "chain: expected a transformation, got 0.1; pass an optimizer, such as fdl.sgd(0.1)",
    ),
    "lookahead": (
        lambda: optim.lookahead(fdl.sgd, 2, 0.5),
        "lookahead: expected a transformation, got the function sgd; pass an optimizer, such as "
        "fdl.sgd(0.1)",
    ),
    "masked": (
        lambda: optim.masked(3, "**/w"),
        "masked: expected a transformation, got 3; pass an optimizer, such as fdl.sgd(0.1)",
    ),
    **{
        f"mask_{mask}": (
            functools.partial(optim.masked, fdl.sgd(0.1), mask),
            "masked: expected a mask of path patterns, a pytree of bool or a function of params, "
            f"got {mask!r}; pass '**/w' to select all weights",
        )
        for mask in (3, None, {"w": 1.0})
    },
    "mask_of_adamw": (
        lambda: optim.adamw(0.1, mask=3),
        "adamw: expected a mask of path patterns, a pytree of bool or a function of params, got 3; "
        "pass '**/w' to select all weights",
    ),
    "mask_of_freeze": (
        lambda: optim.freeze(3),
        "freeze: expected a mask of path patterns, a pytree of bool or a function of params, got "
        "3; pass '**/w' to select all weights",
    ),
    **{
        f"accumulate_{k}": (
            functools.partial(optim.accumulate, fdl.sgd(0.1), k),
            f"accumulate: expected every_k_schedule >= 1, got {k!r}; pass ",
        )
        for k in ("2", None, 0)
    },
    "inject": (
        lambda: optim.inject_hyperparams(0.1),
        "inject_hyperparams: expected a factory of optimizers, got 0.1; call it as "
        "inject_hyperparams(sgd)(0.1)",
    ),
    "integers": (
        lambda: fdl.adam(0.1).init({"w": jnp.ones(2), "n": {"k": jnp.arange(3)}}),
        "scale_by_adam: expected parameters of a floating dtype, got int32 at 'n/k'; convert this ",
    ),
    "integers_sgd": (
        lambda: fdl.sgd(0.1).init(jnp.arange(3)),
        "optimizer: expected parameters of a floating dtype, got int32 at ''; convert this array ",
    ),
    "no_params": (
        lambda: fdl.adamw(0.1).update(jnp.ones(2), fdl.adamw(0.1).init(jnp.ones(2))),
        "add_decayed_weights: expected the parameters, got None; call update(updates, state, ",
    ),
    "no_params_lamb": (
        lambda: optim.lamb(0.1, weight_decay=0.0).update(
            jnp.ones(2), optim.lamb(0.1).init(jnp.ones(2))
        ),
        "add_decayed_weights: expected the parameters, got None; call update(updates, state, ",
    ),
    "schedule": (
        lambda: fdl.adam(lambda count: jnp.ones(2)).update(
            jnp.ones(2), fdl.adam(lambda count: 0.1).init(jnp.ones(2))
        ),
        "learning_rate: expected a schedule that returns a scalar, got shape [2]; return one "
        "number for each count",
    ),
    "decay_schedule": (
        lambda: fdl.adamw(0.1, weight_decay=lambda count: jnp.ones(1)).update(
            jnp.ones(2),
            fdl.adamw(0.1, weight_decay=lambda count: 0.1).init(jnp.ones(2)),
            jnp.ones(2),
        ),
        "weight_decay: expected a schedule that returns a scalar, got shape [1]; return one number "
        "for each count",
    ),
    "other_tree": (
        lambda: fdl.adam(0.1).update(
            {"w": jnp.ones(2)}, fdl.adam(0.1).init({"w": jnp.ones(2), "b": jnp.ones(1)})
        ),
        "scale_by_adam: expected the same tree in updates and state.mu, got 'b' only in state.mu; "
        "make",
    ),
    "other_shape": (
        lambda: fdl.adam(0.1).update({"w": jnp.ones(2)}, fdl.adam(0.1).init({"w": jnp.ones(1)})),
        "scale_by_adam: expected the same shape in updates and state.mu at 'w', got [2] and [1]; "
        "make ",
    ),
    "other_kind": (
        lambda: fdl.adam(0.1).update([jnp.ones(2)], fdl.adam(0.1).init((jnp.ones(2),))),
        "scale_by_adam: expected the same tree in updates and state.mu, got containers of "
        "different types; make ",
    ),
    "mask": (
        lambda: fdl.adamw(0.1, mask="**/kernel").init({"dense": {"w": jnp.ones(2)}}),
        "pattern '**/kernel': expected at least one match among 1 paths, got none; the most "
        "similar paths are",
    ),
    "lookahead_period": (
        lambda: optim.lookahead(fdl.sgd(0.1), 0, 0.5),
        "lookahead: expected sync_period >= 1, got 0; 5 is usual",
    ),
    "lookahead_size": (
        lambda: optim.lookahead(fdl.sgd(0.1), 2, 1.5),
        "lookahead: expected slow_step_size in [0, 1], got 1.5; 0.5 is usual",
    ),
    "lookahead_params": (
        lambda: optim.lookahead(fdl.sgd(0.1), 2, 0.5).init({"w": jnp.ones(1)}),
        "lookahead: expected params as optax.LookaheadParams(fast, slow), got dict; start with ",
    ),
    "schedule_free_state": (
        lambda: optim.schedule_free_eval_params(fdl.sgd(0.1).init(jnp.ones(1)), jnp.ones(1)),
        "schedule_free_eval_params: expected a ScheduleFreeState, got tuple; if schedule_free ",
    ),
}


WHOLE = {
    "lookahead": ("sync_period", lambda k: optim.lookahead(fdl.sgd(0.1), k, 0.5)),
    "sam": ("sync_period", lambda k: optim.sam(fdl.sgd(0.1), fdl.sgd(0.1), sync_period=k)),
    "soap": ("precondition_frequency", lambda k: optim.soap(precondition_frequency=k)),
    "accumulate": ("every_k_schedule", lambda k: optim.accumulate(fdl.sgd(0.1), k)),
    "apply_if_finite": (
        "max_consecutive_errors",
        lambda k: optim.apply_if_finite(fdl.sgd(0.1), k),
    ),
    "scale_by_zoom_linesearch": (
        "max_linesearch_steps",
        lambda k: optim.scale_by_zoom_linesearch(k),
    ),
    "lbfgs": ("memory_size", lambda k: optim.lbfgs(memory_size=k)),
    "muon": ("ns_steps", lambda k: optim.muon(0.1, ns_steps=k)),
}


@pytest.mark.parametrize("who", WHOLE)
@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_counts_are_whole(who, kind):
    """A lookahead with the period 2.5 synchronized every 5 steps."""
    name, make = WHOLE[who]
    least = 0 if who == "apply_if_finite" else 1
    match = rf"^{who}: expected {name} >= {least}, a whole number, got 2.5; \w"
    with pytest.raises(ValueError, match=match):
        make(kind(2.5))
    for whole in (2, np.int64(2), jnp.int32(2), 2.0):
        optimizer, w = make(whole), jnp.ones((2, 2))
        w = optax.LookaheadParams.init_synced(w) if who == "lookahead" else w
        optimizer.init(w)


LEAST = "a smaller value can flip the sign of a step or give NaN"
NOT_AT_LEAST_0 = (-1e-3, float("nan"), float("inf"))
nadam_scheduled = functools.partial(optim.nadam, momentum_decay=0.004)

# (factory with valid arguments, name of an option, bad value, expected interval, remedy).
OUT_OF_RANGE = [
    *(
        (functools.partial(make, 0.1), name, value, ">= 0", LEAST)
        for value in NOT_AT_LEAST_0
        for make, names in [
            *((make, "eps eps_root") for make in (fdl.adam, fdl.adamw, optim.nadam, optim.nadamw)),
            *((make, "eps eps_root") for make in (optim.lamb, optim.amsgrad, optim.adabelief)),
            *((make, "eps eps_root") for make in (optim.radam, nadam_scheduled)),
            (optim.nadam, "momentum_decay"),
            (optim.adagrad, "eps initial_accumulator_value"),
            (fdl.rmsprop, "eps initial_scale"),
            (functools.partial(fdl.rmsprop, centered=True), "eps initial_scale"),
            (optim.muon, "eps adam_eps_root"),
            *((make, "eps") for make in (optim.adamax, optim.adadelta, optim.adafactor)),
            *((make, "eps") for make in (optim.lars, optim.soap, optim.schedule_free_adamw)),
            (optim.schedule_free_sgd, "weight_lr_power"),
        ]
        for name in names.split()
    ),
    *(
        (make, name, value, interval, remedy)
        for make, name, values, interval, remedy in [
            (
                functools.partial(optim.adafactor, 0.1),
                *("decay_rate", (0.0, -1.0), "> 0", "0.8 is usual"),
            ),
            (
                functools.partial(optim.muon, 0.1),
                *("consistent_rms", (0.0, float("inf")), "> 0"),
                "with 0.2, steps are about as large as those of AdamW",
            ),
            (
                functools.partial(optim.lars, 0.1),
                *(
                    "trust_coefficient",
                    (-1.0, 0.0),
                    "> 0",
                    "pass the length of a step as a fraction of |W|",
                ),
            ),
            (
                functools.partial(optim.radam, 0.1),
                *("threshold", (3.0, float("nan")), ">= 4", LEAST),
            ),
            (
                functools.partial(optim.adaptive_grad_clip, 0.1),
                *("eps", (0.0, -1.0), "> 0", "with 0, weights of 0 could never move"),
            ),
            (
                functools.partial(optim.schedule_free_sgd, 0.1),
                *("b1", (0.0, 1.1), "in (0, 1]", "0.9 is usual"),
            ),
            (optim.scale_by_trust_ratio, "min_norm", NOT_AT_LEAST_0, ">= 0", LEAST),
            (optim.scale_by_param_block_rms, "min_scale", NOT_AT_LEAST_0, ">= 0", LEAST),
            (fdl.adam, "learning_rate", ("0.1", True, None), ">= 0", "pass a number"),
        ]
        for value in values
    ),
]


@pytest.mark.parametrize(("make", "name", "value", "interval", "remedy"), OUT_OF_RANGE)
def test_a_number_out_of_range_raises(make, name, value, interval, remedy):
    finite = "a finite " if value == float("inf") else ""
    who = getattr(make, "func", make).__name__
    text = f"{who}: expected {finite}{name} {interval}, got {value!r}; {remedy}"
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        make(**{name: value})


FRACTIONS = "b1 b2 beta decay rho momentum shampoo_beta slow_step_size adam_b1 adam_b2"
POSITIVE = (
    "learning_rate eps epsilon eps_root weight_decay weight_decay_rate decay_rate threshold "
    "trust_coefficient clipping_threshold clipping max_norm max_delta sync_period memory_size "
    "min_norm min_scale min_dim_size_to_factor initial_scale initial_accumulator_value "
    "momentum_decay weight_lr_power consistent_rms precondition_frequency ns_steps smooth_beta "
    "eta_minus eta_plus min_step_size every_k_schedule max_consecutive_errors "
    "max_linesearch_steps adam_learning_rate adam_weight_decay adam_eps_root"
)
BAD = dict.fromkeys(FRACTIONS.split(), 1.5) | dict.fromkeys(POSITIVE.split(), -0.1)
VALID = {
    "learning_rate": 0.1,
    "decay": 0.5,
    "clipping": 0.1,
    "sync_period": 2,
    "slow_step_size": 0.5,
    "max_linesearch_steps": 5,
    **dict.fromkeys(["base_optimizer", "fast_optimizer", "optimizer", "adv_optimizer"], fdl.sgd(1)),
    **dict.fromkeys(["opt", "inner"], fdl.sgd(1)),
}
FACTORIES = {
    name: inspect.signature(value).parameters
    for name, value in vars(optim).items()
    if getattr(value, "__annotations__", {}).get("return") is optax.GradientTransformationExtraArgs
}


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, options in FACTORIES.items() for option in options if option in BAD],
)
def test_an_error_about_an_option_names_the_factory_and_the_option(name, option):
    """The names are those that the user wrote, not those of a piece inside."""
    needed = {key for key, value in FACTORIES[name].items() if value.default is value.empty}
    arguments = {key: VALID[key] for key in needed & set(VALID)} | {option: BAD[option]}
    interval = r"(>=? [014]|in [(\[](-1|0), 1[)\]])"
    text = rf"^{name}: expected {option} {interval}, got {BAD[option]}; \w[^\n]*$"
    with pytest.raises(ValueError, match=text):
        getattr(optim, name)(**arguments)


@pytest.mark.parametrize(
    "number", [np.float64, np.float32, jnp.float32, lambda x: jnp.asarray(x, jnp.bfloat16)]
)
def test_every_kind_of_number_is_an_option(number):
    """Numbers of NumPy and JAX, traced or not, and a schedule of the rate."""
    g = w = jnp.array([1.0, -2.0])

    def step(rate, eps):
        optimizer = fdl.adam(rate, eps=eps)
        return optimizer.update(g, optimizer.init(w))[0]

    expected = step(0.25, 0.5)
    rate, eps = number(0.25), number(0.5)
    for found in (step(rate, eps), jax.jit(step)(rate, eps), step(lambda count: rate, eps)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not jnp.isfinite(jax.jit(step)(rate, number(np.nan))).any()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_raises_with_the_reason_in_the_first_line(name):
    wrong, message = MISTAKES[name]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        wrong()


def test_both_structures_are_shown_below_the_first_line():
    optimizer = fdl.adam(0.1)
    with pytest.raises(ValueError, match=r"(?s)\n  updates: PyTreeDef.*'w'.*\n  state\.mu: .*'v'"):
        optimizer.update({"w": jnp.ones(2)}, optimizer.init({"v": jnp.ones(2)}))


def test_a_traced_learning_rate_is_not_checked():
    rates = jnp.array([0.1, -1.0])

    @jax.jit
    @jax.vmap
    def moved(rate):
        optimizer, g = fdl.adam(rate), jnp.ones(1)
        return optimizer.update(g, optimizer.init(g))[0]

    np.testing.assert_allclose(np.asarray(moved(rates))[:, 0], [-0.1, 1.0], rtol=1e-5)


# Schedule-Free, and Lookahead in a training run.


def test_eval_params_of_schedule_free_are_those_of_optax():
    params = OPTIMIZERS["sgd_2"].params()
    optimizer = optim.schedule_free_adamw(0.1, b1=0.8)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for seed in range(1, 4):
        updates, state = update(OPTIMIZERS["sgd_2"].gradient(seed), state, params)
        params = fdl.apply_updates(params, updates)
    ours = optim.schedule_free_eval_params(state, params)
    theirs = jax.jit(optax.contrib.schedule_free_eval_params)(state, params)
    assert_equal(ours, theirs, rtol=1e-6)
    assert fdl.look.difference(ours, params).absolute > 0.01


def test_lookahead_trains_in_fit():
    x = np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32)
    wanted = np.array([1.0, -2.0, 3.0], np.float32)
    objective = fdl.plain(lambda w, batch: jnp.mean((batch[0] @ w.fast - batch[1]) ** 2))
    optimizer = optim.lookahead(fdl.sgd(0.2), 5, 0.5)
    start = fdl.start(optax.LookaheadParams.init_synced(jnp.zeros(3)), optimizer)
    result = fdl.fit(objective, optimizer, start, (x, x @ wanted), steps=100, batch_size=50)
    np.testing.assert_allclose(result.run.params.slow, wanted, atol=1e-3)
    np.testing.assert_allclose(result.run.params.fast, wanted, atol=1e-3)


SEEDED_BUGS = {
    "fdl/optim/lifting.py": (
        "optim/optimizers/test_optimizers.py optim/test_chaining.py optim/test_half_precision.py",
        [
            ('{"count": increment(state.count)}', '{"count": state.count}'),
            ("tuple(map(_as, outputs, old))", "tuple(outputs)"),
            ("or any(map(_reshaped, new, old))", ""),
            ("count + 1, last)", "count + 2, last)"),
            ("rows.append((None, *state))", "rows.append((None,) * (1 + kept))"),
        ],
    ),
    "fdl/optim/checks.py": (
        "optim/optimizers/test_optimizers.py optim/test_chaining.py -k raise_or_option",
        [
            ('"[0, 1)"', '"[0, 1]"'),
            ('"(-1, 1)"', '"[0, 1)"'),
            ('"[-1, 1]"', '"[-2, 2]"'),
            ('f"[{least}, inf)"', 'f"[{least}, inf]"'),
            ('"[0, inf)"', '"(-inf, inf)"'),
            ('"(0, inf)"', '"[0, inf)"'),
            ("if not callable(value):", "if isinstance(value, float):"),
        ],
    ),
    "fdl/optim/learning_rate.py": (
        "optim/optimizers/test_optimizers.py optim/test_chaining.py",
        [
            ("sign = -1 if flip_sign else 1", "sign = 1 if flip_sign else -1"),
            ("(g + strength * w,)", "(g - strength * w,)"),
            ("(g + strength * w,)", "(g + strength,)"),
            ("else masked(decay, mask)", "else decay"),
            ("state._replace(count=increment(state.count)) if", "state if"),
        ],
    ),
    "fdl/optim/masking.py": (
        "optim/optimizers/test_optimizers.py optim/test_beside_optax.py -k "
        "adamw_or_mapped_or_read_or_extra",
        [
            ("changed if keep else old", "changed"),
            ("part if keep else M", "part if not keep else M"),
            ("if is_placeholder(params):", "if False:"),
            ("return callable(value) and not labels", "return callable(value)"),
            ("cut(value, wanted) if", "value if"),
        ],
    ),
    "fdl/optim/optimizers/sgd_family.py": (
        "optim/optimizers/test_optimizers.py optim/test_beside_optax.py -k "
        "sgd_or_lion_or_rprop_or_dampening",
        [
            ("new = saturated(added + decay * t,", "new = saturated(added - decay * t,"),
            ("new = saturated(added + decay * t,", "new = saturated((1 - decay) * g + decay * t,"),
            ("if nesterov else new, new", "if not nesterov else new, new"),
            ('stateless("scale_by_sign", jnp.sign)', 'stateless("scale_by_sign", jnp.tanh)'),
            ("chain(scale_by_sign(), scale_by", "chain(scale_by"),
            ("c = (1 - b1) * g + b1 * m", "c = b1 * g + (1 - b1) * m"),
            ("signs[mode](c), (1 - b2) * g + b2 * m", "signs[mode](c), (1 - b1) * g + b1 * m"),
            ("jnp.where(count == 1, g,", "jnp.where(count == 0, g,"),
            ("jnp.tanh(smooth_beta * c)", "jnp.tanh(c)"),
            (
                "scale_by_lion(b1, b2, mu_dtype),\n        add_decayed_weights(weight_decay, "
                "mask),",
                "add_decayed_weights(weight_decay, mask),\n        scale_by_lion(b1, b2, "
                "mu_dtype),",
            ),
            ("agreement > 0, eta_plus, eta_minus", "agreement > 0, eta_minus, eta_plus"),
            ("if delayed else u, size, u", "if not delayed else u, size, u"),
            ("agreement == 0, size, resized", "agreement > 0, size, resized"),
        ],
    ),
    "fdl/optim/optimizers/adagrad_family.py": (
        "optim/optimizers/test_optimizers.py -k adagrad_or_rmsprop_or_adadelta",
        [
            ("rsqrt(v + eps), 0.0)", "rsqrt(v) + eps, 0.0)"),
            ("v = square + jnp.minimum(v,", "v = square + 0 * jnp.minimum(v,"),
            ("else 1 / (jnp.sqrt(v) + eps)", "else jax.lax.rsqrt(v + eps)"),
            ("v = (1 - decay) * square + decay * v", "v = square + decay * v"),
            ("correction(decay, *t)", "correction(decay, t[0] + 1)"),
            ("v_hat - squared_size(unbiased(m))", "v_hat"),
            ("jnp.sqrt(x + eps)", "(jnp.sqrt(x) + eps)"),
            ("(1 - rho) * u**2 + rho * x", "(1 - rho) * g**2 + rho * x"),
            ("rate = 1.0 if", "rate = 0.1 if"),
        ],
    ),
    "fdl/optim/moments.py": (
        "optim/optimizers/test_optimizers.py -k adam_or_amsgrad_or_adabelief",
        [
            ("c1_next = correction(b1, t + 1)", "c1_next = c1"),
            ("return 1 - decay**t", "return 1 - decay ** (t + 1)"),
            ("return moment / total_weight", "return moment + 0 * total_weight"),
        ],
    ),
    "fdl/optim/optimizers/adam_family.py": (
        "optim/optimizers/test_optimizers.py -k adam_or_amsgrad_or_adabelief",
        [
            ("first(m, g) / (jnp.sqrt(", "m / (jnp.sqrt("),
            ("return first(m, g) / (jnp.sqrt(corrected(v, c2)", "return first(m, g) / (jnp.sqrt(v"),
            ("return first(m, g)", "return -first(m, g)"),
            ("corrected(v, c2) + eps_root) + eps), m", "corrected(v, c2) + eps_root + eps)), m"),
            ("m = (1 - b1) * g + b1 * m", "m = g + b1 * m"),
            ("first_moment(b1, t, nesterov), c", "first_moment(b2, t, nesterov), c"),
            (
                "add_decayed_weights(weight_decay, mask),\n        "
                "scale_by_learning_rate(learning_rate),",
                "scale_by_learning_rate(learning_rate),\n        "
                "add_decayed_weights(weight_decay, mask),",
            ),
            (
                "mu_dtype, nesterov=nesterov),\n        add_decayed_weights(weight_decay, mask),",
                "mu_dtype, nesterov=nesterov),",
            ),
            ("momentum_decay * t))", "momentum_decay * t / 2))"),
            ("product = product * b1_now", "product = b1_now"),
            ("nesterov: bool = True", "nesterov: bool = False"),
            ("@named_in_errors\ndef nadamw(", "def nadamw("),
            ("jnp.maximum(largest, before(v))", "before(v)"),
            ("if correct_maximum else (v_hat", "if not correct_maximum else (v_hat"),
            ("jnp.sqrt(after(largest) + eps_root) + eps)", "jnp.sqrt(after(largest) + eps))"),
            ("jnp.abs(g) + eps, b2 * u", "jnp.abs(g), b2 * u"),
            ("corrected(m, c1) / u", "m / u"),
            ("bounded(g - m)[1]", "bounded(g)[1]"),
            ("b2 * s + eps_root", "b2 * s"),
            ("adapts, adapted, m_hat", "adapts, adapted, m"),
            ("rho >= threshold", "rho >= 4.0"),
            ("jnp.where(adapts, squared, 1.0)", "squared"),
            ("rho_inf - 2 * t * b2t", "rho_inf - t * b2t"),
            ("r.astype(m.dtype) * m_hat", "m_hat"),
        ],
    ),
    "fdl/optim/optimizers/layerwise.py": (
        "optim/optimizers/test_optimizers.py -k lars_or_lamb",
        [
            ("trust_coefficient * w_norm /", "trust_coefficient / w_norm /"),
            ("jnp.where(zero, u, scaled)", "scaled"),
            ("(u_norm + eps / u_size.power)", "u_norm"),
            (
                "scale_by_learning_rate(learning_rate),\n        trace(momentum, nesterov),",
                "trace(momentum, nesterov),\n        scale_by_learning_rate(learning_rate),",
            ),
            (
                "add_decayed_weights(weight_decay, mask),\n        scale_by_trust_ratio(),",
                "scale_by_trust_ratio(),\n        add_decayed_weights(weight_decay, mask),",
            ),
        ],
    ),
    "fdl/optim/optimizers/lookahead_family.py": (
        "optim/optimizers/test_optimizers.py -k lookahead",
        [
            ("sync_period - 1", "sync_period"),
            ("(1 - slow_step_size) * apart", "slow_step_size * apart"),
            ("where(syncs, inner", "where(~syncs, inner"),
        ],
    ),
    "fdl/optim/optimizers/schedule_free_family.py": (
        "optim/optimizers/test_optimizers.py -k schedule_free",
        [
            ("state.step_count if look_ahead else", "state.step_count + 1 if look_ahead else"),
            ("largest**power", "largest"),
            ("x = (1.0 - c) * x + c * new_z", "x = c * x + (1.0 - c) * new_z"),
            ("b1 * x + (1.0 - b1) * new_z - y", "b1 * x + (1.0 - b1) * z - y"),
            ("bias_correction=True", "bias_correction=False"),
            ("(1.0 - state.b1) * z) / state.b1", "(1.0 - state.b1) * z)"),
        ],
    ),
}
