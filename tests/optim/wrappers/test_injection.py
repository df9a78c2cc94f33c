"""Hyper-parameters in the state give the same updates as constants in the program, bit for bit."""

import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdl
from fdl import optim
from fdl.optim import Hyperparameter, hyperparameter, inject_hyperparams, set_hyperparams
from tests.programs import in_one_program
from tests.trees import assert_equal, kinds, stacked, tree

CASES = {
    "sgd": {"learning_rate": 0.07, "momentum": 0.93, "nesterov": True},
    "adam": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999, "eps": 1e-6, "eps_root": 1e-9},
    "adamw": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999, "weight_decay": 0.013},
    "lion": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.987, "weight_decay": 0.013},
    "rmsprop": {"learning_rate": 0.003, "decay": 0.9999, "momentum": 0.7},
    "adadelta": {"learning_rate": 0.3, "rho": 0.9999, "weight_decay": 0.01},
    "adabelief": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999},
    "nadam": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999},
    "radam": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999},
    "lamb": {"learning_rate": 0.003, "b1": 0.83, "b2": 0.9999, "weight_decay": 0.013},
    "rprop": {"learning_rate": 0.003, "eta_minus": 0.4, "eta_plus": 1.3},
}
GRADIENTS = stacked([tree(seed) for seed in range(1, 101)])


def run(optimizer, params, state, gradients=GRADIENTS):
    """Every update of 100 steps; the state is an argument, so that nothing of it is a constant."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (fdl.apply_updates(params, updates), state), updates

    return jax.lax.scan(step, (params, state), gradients)


def steps(optimizer):
    params = tree(0)
    program = jax.jit(lambda params, state, g: run(optimizer, params, state, g)[1])
    return program(params, optimizer.init(params), GRADIENTS)


@pytest.mark.parametrize("library", [optim, optax], ids=["fdl", "optax"])
@pytest.mark.parametrize("name", CASES)
def test_injected_numbers_make_the_steps_of_static_ones(name, library, standard_promotion):
    """For factories of both libraries, 100 steps at b2 = 0.9999: most bit for bit, all within
    four units in the last place of the largest, since XLA fuses a constant otherwise than a value.
    """
    make = getattr(library, name)
    static = steps(make(**CASES[name]))
    injected = steps(inject_hyperparams(make)(**CASES[name]))
    exact = name not in ("adamw", "rmsprop")
    for a, b in zip(*map(jax.tree.leaves, (injected, static)), strict=True):
        bound = 0 if exact else 4 * np.spacing(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
        assert np.asarray(b).any()


def test_injection_by_optax_is_inexact_where_that_of_fdl_is_exact(standard_promotion):
    """The error that fdl avoids is large enough for the test above to see it."""
    static = steps(optax.adam(**CASES["adam"]))
    theirs = steps(optax.inject_hyperparams(optax.adam)(**CASES["adam"]))
    apart = max(
        float(np.abs(np.asarray(a) / b - 1).max())
        for a, b in zip(*map(jax.tree.leaves, (theirs, static)), strict=True)
    )
    assert apart > 1e-5


def test_each_member_is_its_solo_run():
    """vmap over four b2 and rates: each step within 1e-6 of the static one from the same values."""
    b2, rates = np.array([0.9, 0.99, 0.999, 0.9999]), np.array([0.1, 0.01, 0.003, 0.001])
    optimizer = inject_hyperparams(optim.adam)(0.5, b1=0.83)
    params, gradients = stacked([tree(seed) for seed in range(4)]), tree(9)
    state = jax.jit(jax.vmap(optimizer.init))(params)
    state = set_hyperparams(state, b2=b2, learning_rate=rates)
    traces = []

    @jax.jit
    @jax.vmap
    def step(params, state):
        traces.append(1)
        gradient = jax.tree.map(lambda g, p: g * jnp.sin(3 * p), gradients, params)
        updates, state = optimizer.update(gradient, state, params)
        return updates, state, gradient

    solo = [optim.adam(float(r), b1=0.83, b2=float(b)) for r, b in zip(rates, b2, strict=True)]
    solo_updates = [jax.jit(each.update) for each in solo]
    for _ in range(25):
        updates, new_state, gradient = step(params, state)
        for i, update in enumerate(solo_updates):
            one = lambda t, i=i: jax.tree.map(lambda x: np.asarray(x)[i], t)  # noqa: E731
            expected, inner = update(one(gradient), one(state.inner_state), one(params))
            near = {"rtol": 1e-6, "atol": 1e-6 * rates[i]}
            assert_equal(one(updates), expected, **near)
            assert_equal(one(new_state.inner_state), inner, rtol=2e-6, atol=1e-9)
        params, state = fdl.apply_updates(params, updates), new_state
    assert len(traces) == 1


def test_members_without_a_state_take_hyperparameters_too():
    """A Hyperparameter is a pytree, so vmap can map over it."""
    b2 = np.array([0.9, 0.999, 0.9999])
    g = np.float32([0.3, -2.0])

    def second_moment(b2):
        optimizer = optim.adam(0.1, b2=b2)
        return optimizer.update(g, optimizer.init(g), g)[1][0].nu

    found = jax.jit(jax.vmap(second_moment))(hyperparameter(b2))
    alone = jax.jit(lambda: jnp.stack([second_moment(float(each)) for each in b2]))
    assert_equal(found, alone())


def test_a_new_value_needs_no_new_program():
    optimizer = inject_hyperparams(optim.adamw)(0.1, weight_decay=0.1, mask="**/w")
    params, traces = tree(0), []

    @jax.jit
    def step(state):
        traces.append(1)
        return optimizer.update(tree(1), state, params)

    state = optimizer.init(params)
    for values in ({}, {"b2": 0.9995}, {"learning_rate": np.float64(0.2), "b1": 0.5}):
        state = set_hyperparams(state, **values)
        updates, after = step(state)
        static = optim.adamw(
            **{"learning_rate": 0.1, "weight_decay": 0.1, "mask": "**/w"}
            | {k: float(v) for k, v in values.items()}
            | ({"b2": 0.9995} if "b1" in values else {})
        )
        expected, inner = jax.jit(static.update)(tree(1), state.inner_state, params)
        assert_equal(updates, expected)
        assert_equal(after.inner_state, inner)
        assert kinds(after) == kinds(state)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    found = jax.tree.map(lambda u: np.asarray(u) / np.float32(2.5), step(state)[0])
    assert_equal(found, updates, rtol=1e-6)
    assert len(traces) == 1


def test_a_number_put_in_by_hand_has_no_remainder_of_the_one_before():
    g, optimizer = np.float32([1.0]), inject_hyperparams(optim.scale_by_adam)(b2=0.999)
    state, update = optimizer.init(g), jax.jit(optimizer.update)
    state.hyperparams["b2"] = jnp.float32(0.9999)
    _, after = update(g, state, g)
    assert np.asarray(after.inner_state.nu) == 1 - np.float32(0.9999)
    state.hyperparams["b2"] = 0.5
    _, after = update(g, state, g)
    assert np.asarray(after.inner_state.nu).tolist() == [0.5]
    assert after.hyperparams["b2"].dtype == jnp.float32 and not after.hyperparams["b2"].weak_type


def test_schedules_can_replace_numbers(standard_promotion):
    """As in optax, and states move between both libraries."""
    kwargs = {
        "learning_rate": optim.cosine_decay_schedule(0.1, 7),
        "momentum": lambda count: 0.5 + 0.01 * jnp.float32(count),
        "nesterov": True,
    }
    ours, theirs = (
        inject(library.sgd)(**kwargs)
        for library, inject in [(optim, inject_hyperparams), (optax, optax.inject_hyperparams)]
    )
    params = tree(0)
    mine, other = ours.init(params), theirs.init(params)
    update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in range(6):
        if seed == 3:
            mine, other = other, mine
        updates, mine = update(tree(seed), mine, params)
        expected, other = their_update(tree(seed), other, params)
        assert_equal(updates, expected, rtol=1e-6, atol=1e-7)
        assert_equal(mine.hyperparams, other.hyperparams, rtol=1e-6)
        assert int(mine.hyperparams_states["momentum"].count) == seed + 1


def test_a_state_moves_to_optax_and_back(standard_promotion):
    params = tree(0)
    ours = inject_hyperparams(optim.adam)(0.1, b2=0.75)
    theirs = optax.inject_hyperparams(optax.adam)(0.1, b2=0.75)
    state, alone = ours.init(params), ours.init(params)
    sides = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in range(6):
        updates, state = sides[seed % 2](tree(seed), state, params)
        expected, alone = sides[0](tree(seed), alone, params)
        assert_equal(updates, expected, rtol=2e-5)
    updates, new = sides[0](tree(1), state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_stay_and_scan_takes_it(dtype):
    optimizer = inject_hyperparams(optim.adamw)(0.1, b2=lambda count: 0.9 + 0 * jnp.float32(count))
    params = tree(0, dtype)
    state = optimizer.init(params)
    gradients = stacked([tree(seed, dtype) for seed in range(3)])
    (moved, end), updates = jax.jit(lambda p, s: run(optimizer, p, s, gradients))(params, state)
    assert kinds(moved) == kinds(params) and kinds(end) == kinds(state)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert state.hyperparams["b1"].dtype == jnp.float32
    half = inject_hyperparams(optim.sgd, hyperparam_dtype=jnp.bfloat16)(0.1).init(params)
    assert half.hyperparams["learning_rate"].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = inject_hyperparams(optim.sgd)(0.1).init(params)
        assert wide.hyperparams["learning_rate"].dtype == jnp.float64


def test_a_run_is_differentiable_by_an_injected_rate():
    optimizer = inject_hyperparams(optim.adam)(0.1)
    w = np.float32([1.0, -2.0])

    def loss(rate):
        state = set_hyperparams(optimizer.init(w), learning_rate=rate)
        return jnp.sum((w + optimizer.update(w, state, w)[0]) ** 2)

    with jax.enable_x64(True):
        w = w.astype(np.float64)
        errors = fdl.check_gradient(in_one_program(loss), jnp.float64(0.1), tolerance=1e-7)
        assert list(errors) == [""]


def test_a_schedule_with_a_state_and_nested_states():
    class Halving(optax.schedules.StatefulSchedule):
        def init(self):
            return jnp.float32(0.5)

        def update(self, state, **extra_args):
            return state / 2

        def __call__(self, state, **extra_args):
            return state

    optimizer = optim.chain(
        optim.clip(10.0), inject_hyperparams(optim.sgd)(Halving(), momentum=0.0)
    )
    w, update = np.float32([1.0]), jax.jit(optimizer.update)
    state = set_hyperparams(optimizer.init(w), momentum=0.5)
    first, state = update(w, state, w)
    second, state = update(w, state, w)
    assert np.ravel((first, second)).tolist() == [-0.5, -0.375]


# The number itself.

number = st.floats(1e-6, 1e4) | st.floats(-1e4, -1e-6)
OPERATIONS = [operator.add, operator.sub, operator.mul, operator.truediv]
joined = jax.jit(lambda a, b: [[op(a, b), op(a, 3.7), op(3.7, a)] for op in OPERATIONS])


@settings(max_examples=80, deadline=None)
@given(number, number)
def test_arithmetic_has_twice_the_precision(a, b):
    """Compiled, so that a compiler that rearranged the sums would be seen."""
    found = joined(hyperparameter(a), hyperparameter(b))
    for op, group in zip(OPERATIONS, found, strict=True):
        for got, (x, y) in zip(group, [(a, b), (a, 3.7), (3.7, a)], strict=True):
            assert abs(float(got) - op(x, y)) <= 2.0**-42 * max(abs(x), abs(y), abs(op(x, y)))
            assert float(got.high) == np.float32(float(got))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32", "complex64"])
def test_beside_an_array_it_is_pythons_number(dtype):
    """Values, dtypes and weak types, from either side, under strict promotion."""
    x, plain = jnp.asarray([2, 3], dtype), 0.3
    h = hyperparameter(plain)
    operations = [*OPERATIONS, operator.pow]
    if dtype != "complex64":
        operations += [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
    with jax.numpy_dtype_promotion("standard" if dtype == "int32" else "strict"):
        for op in operations:
            for got, expected in [(op(x, h), op(x, plain)), (op(h, x), op(plain, x))]:
                assert_equal(got, expected)
                assert got.weak_type == expected.weak_type
        for f in (jnp.maximum, jnp.add, lambda a, b: jnp.where(b < 7, a, b)):
            if dtype != "complex64":
                assert_equal(f(x, h), f(x, plain))
        assert_equal(jnp.full_like(x, h), jnp.full_like(x, plain))
    assert_equal(np.ones(2, np.float32) * h, jnp.full(2, jnp.float32(0.3)))
    assert float(-h) == -float(h) and bool(h) and not bool(hyperparameter(0.0))
    assert h.__add__("text") is NotImplemented and isinstance(2**h, jax.Array)


def test_under_float64_it_is_float64():
    with jax.enable_x64(True):
        h = hyperparameter(0.1)
        assert h.high.dtype == jnp.float64 and float(1 - h) == 1 - 0.1
        assert abs(float(h * h) - 0.1 * 0.1) < 1e-17 and abs(float(h / 3.0) - 0.1 / 3) < 1e-17
        assert isinstance(1 - h, Hyperparameter)


# Mistakes.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: inject_hyperparams(optim.adam)(-0.1),
            "adam: expected learning_rate >= 0, got -0.1; the update is already subtracted; pass a "
            "positive rate",
        ),
        (
            lambda: inject_hyperparams(optim.adam)(0.1, b2=1.0),
            "adam: expected b2 in [0, 1), got 1.0; it is the fraction of the old value that each "
            "step keeps",
        ),
        (
            lambda: inject_hyperparams(optim.sgd, static_args="rate"),
            "inject_hyperparams: expected static_args among ['learning_rate', 'momentum', "
            "'nesterov', 'accumulator_dtype', 'dampening'], got ['rate']; pass names of arguments "
            "of sgd",
        ),
        (
            lambda: inject_hyperparams(optim.sgd)(lambda count: jnp.ones(2)),
            "learning_rate: expected a schedule that returns a scalar, got shape [2]; return one "
            "number for each count",
        ),
        (
            lambda: set_hyperparams(made(), rate=0.1),
            "set_hyperparams: expected 'rate' in exactly one part of the state, got it in 0 parts; "
            "the names in this state are ['learning_rate', 'momentum']",
        ),
        (
            lambda: set_hyperparams((made(), made()), momentum=0.1),
            "set_hyperparams: expected 'momentum' in exactly one part of the state, got it in 2 "
            "parts; the names in this state are ['learning_rate', 'momentum']",
        ),
        (
            lambda: set_hyperparams(made(), learning_rate=0.1),
            "set_hyperparams: expected a number without a schedule, got 'learning_rate'; build the "
            "optimizer with a number, because a schedule would overwrite the value",
        ),
        (
            lambda: set_hyperparams(made(), momentum=float("nan")),
            "set_hyperparams: expected a finite momentum, got nan; pass a finite number",
        ),
        (
            lambda: set_hyperparams(made(), momentum="0.9"),
            "set_hyperparams: expected a finite momentum, got 0.9; pass a finite number",
        ),
        (
            lambda: set_hyperparams(made(0.1), learning_rate=-1.0),
            "set_hyperparams: expected learning_rate >= 0, got -1.0; the update is already "
            "subtracted; pass a positive rate",
        ),
        (
            lambda: set_hyperparams(made(1), learning_rate=0.5),
            "set_hyperparams: expected a whole number for learning_rate, got 0.5; if it should be "
            "a float, pass a float to the factory",
        ),
        (
            lambda: set_hyperparams(made(), momentum=np.ones(3)),
            "set_hyperparams: expected momentum of shape [] or a scalar, got [3]; for one value "
            "per member, make the state with jax.vmap(optimizer.init)",
        ),
    ],
)
def test_bad_hyperparameters_raise(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def made(rate=None):
    schedule = optim.linear_schedule(0.1, 0.0, 5)
    return inject_hyperparams(optim.sgd)(schedule if rate is None else rate, 0.9).init(jnp.ones(2))


SEEDED_BUGS = {
    "fdl/ops/double_float.py": (
        "optim/wrappers/test_injection.py",
        [
            ("lost + (a.low + b.low)", "a.low + b.low"),
            ("_sum(part, a2 * b1)", "(part + a2 * b1, jnp.zeros_like(part))"),
            ("jnp.full(jnp.shape(high), 0.0).at[...].set(high)", "high"),
            ("low = (exact - high.astype(np.float64))", "low = 0 * (exact - high)"),
        ],
    ),
    "fdl/optim/wrappers/injection.py": (
        "optim/wrappers/test_injection.py optim/test_beside_optax.py",
        [
            ("jnp.where(rest.of == high, rest.low, jnp.zeros_like(rest.low))", "rest.low"),
            (
                "spread(number), None if rest is None else jax.tree.map(spread, kept)",
                "number, rest",
            ),
            ("state._replace(count=increment(state.count))", "state"),
            ("not isinstance(value, bool | type)", "not isinstance(value, bool)"),
            ('return f"remainder of {name}"', "return name"),
        ],
    ),
}
