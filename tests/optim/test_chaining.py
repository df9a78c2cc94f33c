"""sgd, chain and apply_updates. The laws of all optimizers are in test_optimizers.py."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl import optim
from tests.programs import in_one_program
from tests.toys import halving
from tests.trees import assert_equal, stacked, tree

LAST = np.iinfo(np.int32).max


def test_the_three_directions_differ():
    gradient = np.float32([1.0, -3.0])

    def second(**kwargs):
        optimizer = fdl.sgd(0.1, **kwargs)
        _, state = optimizer.update(gradient, optimizer.init(gradient))
        return optimizer.update(gradient, state)[0]

    options = ({}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True})
    updates = jax.jit(lambda: [second(**kwargs) for kwargs in options])()
    found = [(np.asarray(each) / gradient).tolist() for each in updates]
    np.testing.assert_allclose(found, [[-0.1] * 2, [-0.15] * 2, [-0.175] * 2], rtol=1e-6)


def test_float64_runs_agree_over_many_steps():
    with jax.enable_x64(True):
        kwargs = {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}
        a = jnp.array([[3.0, 0.5], [0.5, 1.0]])

        def run(optimizer):
            def step(carry, _):
                w, state = carry
                updates, state = optimizer.update(a @ jnp.sin(w), state, w)
                return (fdl.apply_updates(w, updates), state), w

            w = jnp.array([1.0, -2.0])
            return jax.lax.scan(step, (w, optimizer.init(w)), None, 300)[1]

        both = jax.jit(lambda: (run(fdl.sgd(**kwargs)), run(optax.sgd(**kwargs))))()
        ours, theirs = map(np.asarray, both)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
        assert abs(ours[-1]).max() < 1e-3 < abs(ours[20]).max()


# The pieces.


def test_chains_mix_both_sides_both_ways():
    gradient, params = tree(1), tree(0)

    def pieces(scale, trace, chain):
        return chain(
            optax.clip_by_global_norm(0.5), trace(0.7, True), optax.scale(3.0), scale(halving)
        )

    ours = pieces(optim.scale_by_learning_rate, optim.trace, optim.chain)
    theirs = pieces(optax.scale_by_learning_rate, optax.trace, optax.chain)
    mixed = pieces(optim.scale_by_learning_rate, optax.trace, optax.chain)
    other = pieces(optax.scale_by_learning_rate, optim.trace, optim.chain)
    states = [each.init(params) for each in (ours, theirs, mixed, other)]
    for _ in range(3):
        found = []
        # Not compiled: where XLA fuses differently, the last places may differ.
        for i, each in enumerate((ours, theirs, mixed, other)):
            updates, states[i] = each.update(gradient, states[i], params)
            found.append((updates, states[i]))
        for each in found[1:]:
            assert_equal(each, found[0])
    nested = optax.chain(fdl.sgd(0.1, 0.9), optax.add_decayed_weights(0.5))
    expected = optax.chain(optax.sgd(0.1, 0.9), optax.add_decayed_weights(0.5))
    first = lambda each: each.update(gradient, each.init(params), params)[0]  # noqa: E731
    assert_equal(*jax.jit(lambda: (first(nested), first(expected)))())


def test_a_chain_passes_extra_arguments_on():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda u: u * value, updates), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = optim.chain(optim.trace(0.5), scaled, fdl.sgd(0.1))
    w = jnp.array([1.0, 2.0])
    updates, _ = optimizer.update(w, optimizer.init(w), w, value=3.0, unknown=1)
    np.testing.assert_allclose(updates, -0.3 * w, rtol=1e-6)
    plain, _ = fdl.sgd(0.1).update(w, fdl.sgd(0.1).init(w), w, loss=7.0)
    np.testing.assert_allclose(plain, -0.1 * w, rtol=1e-6)


def test_scale_by_learning_rate_uphill():
    up = optim.scale_by_learning_rate(0.3, flip_sign=False)
    theirs = optax.scale_by_learning_rate(0.3, flip_sign=False)
    w = jnp.array([1.0, -2.0])
    assert_equal(up.update(w, up.init(w)), theirs.update(w, theirs.init(w)))
    assert up.update(w, up.init(w))[0].tolist() == (jnp.float32(0.3) * w).tolist()


@functools.cache
def falling_updates():
    """fdl's and optax's, compiled."""
    schedule = lambda count: 1.0 / (1 + count.astype(jnp.float32))  # noqa: E731
    both = optim.scale_by_learning_rate, optax.scale_by_learning_rate
    return [jax.jit(make(schedule).update) for make in both]


@pytest.mark.parametrize("start", [0, 5, LAST - 1, LAST])
def test_the_count_of_a_schedule_stops_at_its_largest_value(start):
    for update in falling_updates():
        state = optax.ScaleByScheduleState(np.int32(start))
        updates, state = update(np.float32([2.0]), state)
        np.testing.assert_allclose(updates, -2.0 / (1.0 + start), rtol=1e-6)
        assert state.count.dtype == jnp.int32
        assert int(state.count) == min(start + 1, LAST)


def test_the_trace_can_have_another_dtype(standard_promotion):
    """The trace has the dtype asked for; the updates keep the dtype of the gradients."""
    for dtype, accumulator in [("bfloat16", "float32"), ("float32", "bfloat16")]:
        ours = fdl.sgd(0.1, 0.9, accumulator_dtype=accumulator)
        theirs = optax.sgd(0.1, 0.9, accumulator_dtype=accumulator)
        params = tree(0, dtype)
        state, other = jax.jit(lambda p, o=ours, t=theirs: (o.init(p), t.init(p)))(params)
        assert_equal(state, other)
        update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
        for seed in range(3):
            updates, state = update(tree(seed, dtype), state, params)
            expected, other = their_update(tree(seed, dtype), other, params)
            assert_equal(state, other)
            for path, leaf in fdl.paths.leaves(updates).items():
                assert leaf.dtype == jnp.dtype(dtype), path
                near = np.asarray(fdl.paths.leaves(expected)[path], np.float32)
                np.testing.assert_allclose(np.asarray(leaf, np.float32), near, rtol=1e-2)


@pytest.mark.parametrize("accumulator", ["float32", "bfloat16"])
def test_a_trace_of_another_dtype_passes_strict_promotion(accumulator):
    dtype = {"float32": "bfloat16", "bfloat16": "float32"}[accumulator]
    optimizer = fdl.sgd(0.1, 0.5, accumulator_dtype=accumulator)
    w, update = np.array([1.0, -2.0], dtype), jax.jit(optimizer.update)
    _, state = update(w, optimizer.init(w), w)
    updates, state = update(w, state, w)
    assert updates.dtype == w.dtype and state[0].trace.dtype == jnp.dtype(accumulator)
    np.testing.assert_allclose(np.asarray(updates, np.float32), [-0.15, 0.3], rtol=1e-2)


def test_a_rate_that_is_an_array_keeps_the_dtype_of_the_gradients():
    w = jnp.array([1.0, -2.0], jnp.bfloat16)
    for kwargs in ({}, {"momentum": jnp.float32(0.5)}):
        optimizer = fdl.sgd(jnp.float32(0.25), **kwargs)
        updates, _ = optimizer.update(w, optimizer.init(w), w)
        assert updates.dtype == jnp.bfloat16 and updates.tolist() == [-0.25, 0.5]


# Applying.


def test_updates_are_applied_as_by_optax(standard_promotion):
    params = {"w": jnp.array([1.0, 2.0], jnp.bfloat16), "b": None, "n": [jnp.float32(3.0)]}
    updates = {"w": jnp.array([0.125, -0.25], jnp.float32), "b": None, "n": [jnp.float32(-0.5)]}
    found = fdl.apply_updates(params, updates)
    assert_equal(found, optax.apply_updates(params, updates))
    assert found["b"] is None and found["w"].dtype == jnp.bfloat16
    assert found["w"].tolist() == [1.125, 1.75] and float(found["n"][0]) == 2.5


def test_updates_of_another_dtype_pass_strict_promotion():
    found = fdl.apply_updates(jnp.ones(2, jnp.bfloat16), jnp.array([0.5, -0.5], jnp.float32))
    assert found.dtype == jnp.bfloat16 and found.tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (
            {"w": 1.0},
            "expected the same tree in params and updates, got 'b' only in params; make both ",
        ),
        (
            {"w": 1.0, "b": 1.0, "c": 2.0},
            "expected the same tree in params and updates, got 'c' only in updates; make both "
            "from ",
        ),
        (
            {"w": jnp.ones(3), "b": jnp.ones(())},
            "expected the same shape in params and updates at 'w', got [2] and [3]; make both from "
            "the ",
        ),
        # Shapes that would broadcast.
        (
            {"w": jnp.ones((3, 2)), "b": jnp.ones(())},
            "expected the same shape in params and updates at 'w', got [2] and [3, 2]; make both "
            "from ",
        ),
        (
            {"w": jnp.ones(2), "b": jnp.ones(1)},
            "expected the same shape in params and updates at 'b', got [] and [1]; make both from "
            "the ",
        ),
    ],
)
def test_updates_of_another_tree_raise(updates, message):
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    with pytest.raises(ValueError, match="^" + re.escape(f"apply_updates: {message}")):
        fdl.apply_updates(params, updates)


# optax's wrappers.


def test_masked_and_multi_transform_of_optax_wrap_it():
    params, gradient = tree(0), tree(1)
    mask = fdl.select(params, "**/w")
    masked = optax.masked(fdl.sgd(0.5, 0.9), mask)
    updates, _ = masked.update(gradient, masked.init(params), params)
    assert_equal(updates["b"], gradient["b"])
    assert_equal(updates["layer"]["w"], -0.5 * gradient["layer"]["w"])
    labels = jax.tree.map(lambda m: "slow" if m else "fast", mask)
    multi = optax.multi_transform({"slow": fdl.sgd(0.125), "fast": fdl.sgd(2.0, 0.9)}, labels)
    updates, state = multi.update(gradient, multi.init(params), params)
    updates, _ = multi.update(gradient, state, params)
    np.testing.assert_allclose(updates["b"], -2 * 1.9 * gradient["b"], rtol=1e-6)
    assert_equal(updates["layer"]["w"], -0.125 * gradient["layer"]["w"])


@pytest.mark.bits
@pytest.mark.parametrize("nesterov", [False, True])
def test_inject_hyperparams_and_multi_steps_of_optax_wrap_it(nesterov, standard_promotion):
    params = tree(0)
    kwargs = {"learning_rate": halving, "momentum": 0.8, "nesterov": nesterov}

    def both(wrap):
        runs = []
        for make in (fdl.sgd, optax.sgd):
            optimizer = wrap(make)
            state = optimizer.init(params)
            for seed in range(4):
                updates, state = jax.jit(optimizer.update)(tree(seed), state, params)
            runs.append((updates, jax.tree.leaves(state)))
        return runs

    ours, theirs = both(lambda make: optax.inject_hyperparams(make)(**kwargs))
    assert_equal(ours, theirs)
    ours, theirs = both(lambda make: optax.MultiSteps(make(**kwargs), every_k_schedule=2))
    assert_equal(ours, theirs)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(ours[0]))


def test_an_injected_rate_can_be_changed():
    optimizer = optax.inject_hyperparams(fdl.sgd)(learning_rate=0.5)
    w = jnp.array([1.0, -2.0])
    state = optimizer.init(w)
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    updates, _ = optimizer.update(w, state, w)
    assert updates.tolist() == [-0.25, 0.5]


# Many rates at once.


def test_many_rates_and_momenta_at_once():
    rates, momenta = np.float32([0.1, 0.02, 0.5]), np.float32([0.9, 0.0, 0.3])
    gradients = stacked([tree(seed) for seed in range(3)])

    def run(rate, momentum):
        optimizer = fdl.sgd(rate, momentum, nesterov=True)

        def step(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return (fdl.apply_updates(params, updates), state), None

        params = tree(0)
        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[0][0]

    together = jax.jit(jax.vmap(run))(rates, momenta)
    pairs = [(float(r), float(m)) for r, m in zip(rates, momenta, strict=True)]
    alone = jax.jit(lambda: [run(rate, momentum) for rate, momentum in pairs])()
    assert_equal(together, stacked(alone), rtol=1e-5, atol=1e-6)


def test_a_run_is_differentiable_by_its_rate():
    def loss_after(rate):
        w, optimizer = jnp.array([1.0, -2.0]), fdl.sgd(rate, momentum=0.5)
        state = optimizer.init(w)
        for _ in range(3):
            updates, state = optimizer.update(w * jnp.array([1.0, 3.0]), state, w)
            w = fdl.apply_updates(w, updates)
        return (w**2).sum()

    with jax.enable_x64(True):
        errors = fdl.check_gradient(in_one_program(loss_after), jnp.float64(0.1), tolerance=1e-7)
        assert errors[""] < 1e-7


# Mistakes.


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), np.float32(-1), -1])
def test_a_bad_rate_raises(rate):
    finite = "a finite " if rate == float("inf") else ""
    message = re.escape(f": expected {finite}learning_rate >= 0, got {rate}; ")
    message += "the update is already subtracted; pass a positive rate$"
    with pytest.raises(ValueError, match="^sgd" + message):
        fdl.sgd(rate)
    with pytest.raises(ValueError, match=r"^scale_by_learning_rate: expected (a finite )?learning"):
        optim.scale_by_learning_rate(jnp.float32(rate))


@pytest.mark.parametrize("momentum", [-1.1, 9.0, float("nan")])
def test_a_bad_momentum_raises(momentum):
    message = (
        rf" in \[-1, 1\], got {momentum}; outside this range, the accumulated gradient can grow "
        "exponentially$"
    )
    with pytest.raises(ValueError, match="^sgd: expected momentum" + message):
        fdl.sgd(0.1, momentum)
    with pytest.raises(ValueError, match="^trace: expected decay" + message):
        optim.trace(momentum)


def test_a_schedule_that_does_not_return_a_scalar_raises():
    optimizer = fdl.sgd(lambda count: jnp.ones(2))
    w = jnp.ones(2)
    with pytest.raises(
        ValueError,
        match=r"^learning_rate: expected a schedule that returns a scalar, got shape \[2\]; ",
    ):
        optimizer.update(w, optimizer.init(w))


def test_a_state_of_other_parameters_raises():
    optimizer = fdl.sgd(0.1, momentum=0.9)
    w = {"w": jnp.ones(2)}
    state = optimizer.init({"v": jnp.ones(2)})
    with pytest.raises(
        ValueError,
        match=r"^trace: expected the same tree in updates and state.trace, got 'v' only in "
        r"state.trace",
    ):
        optimizer.update(w, state)
    state = optimizer.init({"w": jnp.ones(3)})
    with pytest.raises(
        ValueError,
        match=r"^trace: expected the same shape in updates and state.trace at 'w', got \[2\] a",
    ):
        optimizer.update(w, state)
    with pytest.raises(
        ValueError,
        match=r"^chain: expected a state of 2 parts, got 3; make the state with the init of this "
        r"chain$",
    ):
        optimizer.update(w, (*optimizer.init(w), optax.EmptyState()))


SEEDED_BUGS = {
    "fdl/optim/chaining.py": (
        "optim/test_chaining.py",
        [
            (
                "part.update(updates, part_state, params, **extra_args)",
                "part.update(updates, part_state, params)",
            ),
            ("jnp.asarray(p + u, jnp.result_type(p))", "p + u"),
            ("jnp.asarray(p + u,", "jnp.asarray(p - u,"),
            ("jnp.shape(p) != jnp.shape(u)", "False"),
        ],
    ),
}
