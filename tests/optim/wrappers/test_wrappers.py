"""Wrappers of optimizers and transformations of gradients, against optax, and their laws."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl import optim
from tests.optim.schedules.test_schedules import SCHEDULES
from tests.programs import array
from tests.trees import NEAR, assert_equal, kinds, stacked, tree


@dataclasses.dataclass(frozen=True)
class TransformationCase:
    """A transformation, optax's, and the arguments of both."""

    fdl: Callable[..., optax.GradientTransformation]
    optax: Callable[..., optax.GradientTransformation]
    kwargs: dict[str, Any]

    def both(self):
        return self.fdl(**self.kwargs), self.optax(**self.kwargs)


# optax's masks and labels are trees; the patterns say the same.
ONLY_W = {"layer": {"w": True}, "b": False}


def multi_steps(**kwargs):
    return optax.MultiSteps(**kwargs).gradient_transformation()


def ours(make, **fixed):
    return lambda **kwargs: make(**fixed, **kwargs)


MOMENTUM = optim.sgd(0.1, 0.9, nesterov=True)
PARTS = {"**/w": optim.adam(0.02), "b": optim.sgd(0.1, 0.9)}
LABELS = {"layer": {"w": "**/w"}, "b": "b"}

# Those of optax, to the bit.
TRANSFORMATIONS = {
    "clip": TransformationCase(optim.clip, optax.clip, {"max_delta": 0.3}),
    "clip_by_block_rms": TransformationCase(
        optim.clip_by_block_rms, optax.clip_by_block_rms, {"threshold": 0.6}
    ),
    "clip_by_global_norm": TransformationCase(
        optim.clip_by_global_norm, optax.clip_by_global_norm, {"max_norm": 1.7}
    ),
    "adaptive_grad_clip": TransformationCase(
        optim.adaptive_grad_clip, optax.adaptive_grad_clip, {"clipping": 0.8, "eps": 0.9}
    ),
    "adaptive_grad_clip_by_axis": TransformationCase(
        optim.adaptive_grad_clip, optax.adaptive_grad_clip, {"clipping": 0.8, "axis": -1}
    ),
    "centralize": TransformationCase(
        ours(optim.centralize, out_axis=0), lambda **kwargs: optax.centralize(), {}
    ),
    "zero_nans": TransformationCase(optim.zero_nans, optax.zero_nans, {}),
    "set_to_zero": TransformationCase(optim.set_to_zero, optax.set_to_zero, {}),
    "freeze": TransformationCase(
        ours(optim.freeze, mask="**/w"), ours(optax.freeze, mask=ONLY_W), {}
    ),
    "masked": TransformationCase(
        ours(optim.masked, mask="**/w"), ours(optax.masked, mask=ONLY_W), {"inner": MOMENTUM}
    ),
    "apply_if_finite": TransformationCase(
        optim.apply_if_finite,
        optax.apply_if_finite,
        {"inner": MOMENTUM, "max_consecutive_errors": 2},
    ),
    "ema": TransformationCase(
        optim.ema,
        optax.ema,
        {"decay": 0.7, "debias": True, "accumulator_dtype": jnp.float32},
    ),
    "ema_with_bias": TransformationCase(optim.ema, optax.ema, {"decay": 0.7, "debias": False}),
    "partition": TransformationCase(
        optim.partition, ours(optax.partition, param_labels=LABELS), {"transforms": PARTS}
    ),
    "partition_by_labels": TransformationCase(
        optim.partition, optax.partition, {"transforms": PARTS, "param_labels": LABELS}
    ),
    "accumulate": TransformationCase(
        optim.accumulate, multi_steps, {"opt": MOMENTUM, "every_k_schedule": 3}
    ),
    "accumulate_sums": TransformationCase(
        optim.accumulate,
        multi_steps,
        {"opt": MOMENTUM, "every_k_schedule": lambda step: 1 + step % 3, "use_grad_mean": False}
        | {"should_skip_update_fn": optim.skip_not_finite},
    ),
}

# Public names of fdl.optim that are not transformations; other tests cover them.
HELPERS = {
    "Hyperparameter",
    "averaged_params",
    "global_norm",
    "hyperparameter",
    "inject_hyperparams",
    "params_ema",
    "set_hyperparams",
    "skip_not_finite",
}


over_transformations = pytest.mark.parametrize("name", TRANSFORMATIONS)
BARE = {"clip", "clip_by_block_rms", "clip_by_global_norm", "centralize", "zero_nans"}


TRACES = collections.Counter()


def tracing(name, params):
    """What a trace of the update depends on."""
    return name, params["b"].dtype.name, jax.config.jax_numpy_dtype_promotion


@functools.cache
def updates_of(name):
    ours, theirs = TRANSFORMATIONS[name].both()

    @jax.jit
    def update(gradient, state, params):
        TRACES[tracing(name, params)] += 1
        return ours.update(gradient, state, params, unknown=3)

    return update, jax.jit(theirs.update), ours.init, theirs.init


def gradients(count, wrong=()):
    """Trees of very different sizes; the steps in `wrong` hold a NaN and an infinity."""
    for step in range(count):
        gradient = jax.tree.map(
            lambda x, s=step: np.asarray(x) * np.float32(10.0 ** (s % 4 - 2)), tree(step + 1)
        )
        if step in wrong:
            gradient["b"] = np.array(gradient["b"])
            gradient["b"][1:3] = np.nan, np.inf
        yield gradient


WITHOUT_OWN_TESTS = (
    "accumulation",
    "averaging",
    "clipping",
    "injection",
    "non_finite",
    "partitioning",
)


def test_every_public_name_of_these_rooms_is_registered():
    homes = ["schedules.", *(f"wrappers.{home}" for home in WITHOUT_OWN_TESTS)]
    kept = {*TRANSFORMATIONS, *SCHEDULES, *HELPERS}
    names = {
        name
        for name, value in vars(optim).items()
        if getattr(value, "__module__", "").startswith(tuple(f"fdl.optim.{home}" for home in homes))
    }
    assert names <= kept and names >= {"accumulate", "clip", "ema", "freeze", "sgdr_schedule"}


@pytest.mark.bits
@over_transformations
def test_updates_and_states_have_the_bits_of_optax(name, standard_promotion):
    """24 steps, some of them not finite, each from a state that the other side made."""
    ours, theirs, init, their_init = updates_of(name)
    params = tree(0)
    state = init(params)
    assert_equal(state, their_init(params))
    # MultiSteps without a skip function stays NaN; accumulate starts a new mean.
    wrong = () if name == "accumulate" else (3, 7, 8, 9, 10, 11, 16)
    for step, gradient in enumerate(gradients(24, wrong)):
        updates, mine = ours(gradient, state, params)
        expected, other = theirs(gradient, state, params)
        # optax multiplies by 0, which can give -0.
        updates = jax.tree.map(lambda u: np.asarray(u) + np.float32(0), updates)
        assert_equal(updates, expected, rtol=0, atol=0)
        assert_equal(mine, other, rtol=0, atol=0)
        state = mine if step % 2 else other


@over_transformations
def test_a_transformation_compiled_and_scanned_is_a_loop(name):
    update, _, init, _ = updates_of(name)
    params, each = tree(0), list(gradients(5))

    def step(state, gradient):
        updates, state = update(gradient, state, params)
        return state, updates

    state, looped = init(params), []
    for gradient in each:
        state, updates = step(state, gradient)
        looped.append(updates)
    assert TRACES[tracing(name, params)] == 1
    end, scanned = jax.lax.scan(step, init(params), stacked(each))
    assert_equal(scanned, stacked(looped), **NEAR)
    assert_equal(end, state, **NEAR)


@over_transformations
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_transformation_keeps_dtypes_trees_and_its_input(name, dtype):
    update, _, init, _ = updates_of(name)
    params, gradient = tree(0, dtype), tree(1, dtype)
    state = init(params)
    before = jax.tree.map(np.array, (params, state, gradient))
    updates, new_state = update(gradient, state, params)
    assert kinds(updates) == kinds(gradient)
    assert kinds(new_state) == kinds(state)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert_equal(jax.tree.map(np.array, (params, state, gradient)), before)


@over_transformations
def test_a_transformation_over_a_batch_is_a_loop(name):
    update, _, init, _ = updates_of(name)

    def two_steps(params, gradient):
        first, second = gradient
        _, state = update(first, init(params), params)
        return update(second, state, params)

    trees = [
        (tree(seed), (tree(seed + 10), jax.tree.map(np.sin, tree(seed + 10)))) for seed in range(3)
    ]
    together = jax.jit(jax.vmap(two_steps))(*stacked(trees))
    assert_equal(together, stacked([two_steps(*each) for each in trees]), **NEAR)


def beside(ours, theirs, *, gradient, params):
    """The first (updates, state) of both, in one program."""
    first = lambda each: each.update(gradient, each.init(params), params)  # noqa: E731
    return jax.jit(lambda: (first(ours), first(theirs)))()


@pytest.mark.parametrize("name", sorted(BARE | {"ema", "apply_if_finite", "accumulate"}))
def test_leaves_that_are_none_or_masked_pass(name, standard_promotion):
    transform, theirs = TRANSFORMATIONS[name].both()
    params = {"a": array([3.0, -4.0]), "none": None, "out": optax.MaskedNode(), "empty": {}}
    assert_equal(transform.init(params), theirs.init(params))
    found = beside(transform, theirs, gradient=params, params=params)
    (updates, state), (expected, other) = found
    assert_equal(updates, expected, rtol=1e-6)
    assert_equal(state, other, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["clip_by_block_rms", "clip_by_global_norm", "adaptive_grad_clip", "ema", "centralize"]
)
def test_complex_gradients_are_those_of_optax(name, standard_promotion):
    ours, theirs = TRANSFORMATIONS[name].both()
    g = {"w": array([[3 + 4j, 1 - 2j], [0.5j, 2 - 0j]], "complex64")}
    if name == "ema":
        ours, theirs = optim.ema(0.7), optax.ema(0.7)
    (updates, _), (expected, _) = beside(ours, theirs, gradient=g, params=g)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)
    assert updates["w"].dtype == jnp.complex64


# Clipping and centring.


def test_lengths_of_bfloat16_gradients_are_summed_in_float32():
    """300 squares of 1 stay 256 in bfloat16."""
    g = {"w": array(np.ones(300), jnp.bfloat16), "v": array(1.0)}
    norm = optim.global_norm(g)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, np.sqrt(301), rtol=1e-6)
    transform = optim.clip_by_block_rms(0.5)
    updates, _ = jax.jit(transform.update)(g, transform.init(g))
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 0.5)
    assert float(optim.global_norm({})) == 0.0
    with jax.enable_x64(True):
        wide = {"w": array([1.0, 1.0], np.float64)}
        assert jax.jit(optim.global_norm)(wide).dtype == jnp.float64


def test_a_gradient_within_bounds_passes_to_the_bit_and_one_beyond_is_at_the_bound():
    small, large = tree(1), jax.tree.map(lambda x: np.float32(1e3) * np.asarray(x), tree(2))
    transform = optim.clip_by_global_norm(50.0)
    update = jax.jit(transform.update)
    assert_equal(update(small, transform.init(small))[0], small)
    clipped, _ = update(large, transform.init(large))
    np.testing.assert_allclose(jax.jit(optim.global_norm)(clipped), 50.0, rtol=1e-6)
    ratio = jax.tree.map(np.divide, clipped, large)
    np.testing.assert_allclose(ratio["b"], ratio["b"][0], rtol=1e-5)
    np.testing.assert_allclose(ratio["layer"]["w"], ratio["b"][0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (2, 3), (2, 3, 4), (2, 2, 3, 4), (2,) * 5])
def test_the_units_of_adaptive_clipping_are_those_of_optax(shape):
    rng = np.random.default_rng(0)
    g, w = (array(rng.standard_normal(shape)) for _ in range(2))
    ours, theirs = optim.adaptive_grad_clip(0.3), optax.adaptive_grad_clip(0.3)
    (found, _), (expected, _) = beside(ours, theirs, gradient=g, params=w)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found, g)


def test_centralize_takes_the_mean_over_the_inputs_of_each_output():
    """The paper's equation in fdl's layout, [in, out] and [H, W, in, out]."""
    rng = np.random.default_rng(0)
    for shape in [(3, 4), (2, 3, 4, 5), (3,)]:
        g = rng.standard_normal(shape).astype(np.float32)
        found, _ = jax.jit(optim.centralize().update)(g, optax.EmptyState())
        mean = g.mean(tuple(range(g.ndim - 1)), keepdims=True) if g.ndim > 1 else 0
        np.testing.assert_allclose(found, g - mean, atol=1e-6)


CENTRALIZE = optim.centralize()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("part", [1.0, 2.0**-8])
def test_the_mean_of_the_largest_gradients_is_finite(dtype, part):
    """The sum of three overflows; -3/2 of the largest number becomes the largest one."""
    largest = float(jnp.finfo(dtype).max) * part
    g = array(np.array([[1, 1], [1, -1], [-0.5, 1], [1, 1]]) * largest, dtype)
    found, _ = jax.jit(CENTRALIZE.update)(g, optax.EmptyState())
    expected = np.array([[0.375, 0.5], [0.375, -1.5], [-1.125, 0.5], [0.375, 0.5]]) * largest
    most = float(jnp.finfo(dtype).max)
    found = np.real(np.asarray(found)).astype(np.float64)
    np.testing.assert_allclose(found, np.clip(expected, -most, most), rtol=1e-2)


# Averages.


def test_the_average_of_parameters_is_that_of_the_paper():
    """Against the sum sum_i decay^(t-i) w_i / sum_i decay^(t-i) in float64."""
    decay, w = 0.8, array([1.0, -2.0])
    optimizer = optim.chain(fdl.sgd(0.3), optim.params_ema(decay))
    state, seen = optimizer.init(w), []
    assert_equal(optim.averaged_params(state, w), w)
    update = jax.jit(optimizer.update)
    for step in range(12):
        updates, state = update(np.sin(np.asarray(w) * np.float32(step + 1)), state, w)
        w = fdl.apply_updates(w, updates)
        seen.append(np.asarray(w, np.float64))
        shares = decay ** np.arange(step, -1.0, -1.0)
        expected = (shares[:, None] * seen).sum(0) / shares.sum()
        np.testing.assert_allclose(optim.averaged_params(state, w), expected, rtol=1e-6, atol=1e-7)


def test_the_average_of_bfloat16_parameters_is_kept_in_float32():
    """Steps that bfloat16 would lose: the average moves by a thousandth of a change of 2^-7."""
    w = np.ones(2, jnp.bfloat16)
    optimizer = optim.params_ema(0.999)
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    assert state.ema.dtype == jnp.float32
    for step in range(4):
        move = np.full(2, 2.0**-7 if step == 2 else 0.0, jnp.bfloat16)
        _, state = update(move, state, w)
        w = w + move
    weight = 1 - 0.999**4
    expected = 1 + 2.0**-7 * (1 - 0.999**2) / weight
    np.testing.assert_allclose(np.asarray(state.ema) / state.weight, expected, rtol=1e-6)
    assert optim.averaged_params(state, w).dtype == jnp.bfloat16


def test_the_average_is_found_in_any_state():
    params = {"b": array([0.0, 0.0]), "w": array([1.0, 1.0]), "z": array([1.0])}
    averaging = optim.chain(fdl.sgd(1.0), optim.params_ema(0.5))
    for optimizer in (
        optim.masked(averaging, "w"),
        optim.partition({"w": averaging}, rest=fdl.sgd(0.5)),
        optim.apply_if_finite(optax.masked(averaging, {"b": False, "w": True, "z": False}), 3),
        optim.inject_hyperparams(lambda rate: optim.masked(averaging, "w"))(0.5),
        optim.accumulate(optim.masked(averaging, "w"), 1),
    ):
        updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
        moved = fdl.apply_updates(params, updates)
        found = optim.averaged_params(state, moved)
        assert found["w"].tolist() == moved["w"].tolist() == [0.0, 0.0]
        assert found["b"] is moved["b"] and found["z"] is moved["z"]


def test_no_average_or_two_averages_raise():
    w = {"w": jnp.ones(2)}
    with pytest.raises(
        ValueError,
        match=r"^averaged_params: expected a state with an average, got a state without one; put "
        r"params_ema last in the chain$",
    ):
        optim.averaged_params(fdl.sgd(0.1).init(w), w)
    twice = optim.chain(optim.params_ema(0.5), optim.params_ema(0.9))
    with pytest.raises(
        ValueError,
        match=r"^averaged_params: expected one average of 'w', got two; pass the part of the state "
        r"that contains only one of them$",
    ):
        optim.averaged_params(twice.init(w), w)


# Skipped steps and accumulated steps.


def test_a_step_that_is_not_finite_is_skipped_until_there_are_too_many():
    w = array([1.0, 2.0])
    optimizer = optim.apply_if_finite(fdl.sgd(0.5, 0.9), 2)
    bad = array([np.nan, 1.0])
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    _, state = update(w, state, w)
    inner = state.inner_state
    for number in (1, 2):
        updates, state = update(bad, state, w)
        assert updates.tolist() == [0.0, 0.0]
        assert_equal(state.inner_state, inner)
        assert int(state.notfinite_count) == int(state.total_notfinite) == number
        assert not state.last_finite
    updates, _ = update(bad, state, w)
    assert np.isnan(np.asarray(updates)[0])
    _, state = update(w, state, w)
    assert int(state.notfinite_count) == 0 and int(state.total_notfinite) == 2


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_small_batches_are_one_large_one(k):
    """Adam on means of 20 rows at once, and of k pieces of them: the same path."""
    rng = np.random.default_rng(0)
    x = array(rng.standard_normal((6, 20, 3)))
    gradient = jax.grad(lambda w, rows: jnp.mean(jnp.tanh(rows @ w) ** 2))
    whole, pieces = optim.adam(0.1), optim.accumulate(optim.adam(0.1), k)

    @functools.partial(jax.jit, static_argnums=0)
    def run(which, batches):
        optimizer = (whole, pieces)[which]

        def step(carry, rows):
            w, state = carry
            updates, state = optimizer.update(gradient(w, rows), state, w)
            return (fdl.apply_updates(w, updates), state), None

        w = jnp.array([1.0, -2.0, 0.5])
        return jax.lax.scan(step, (w, optimizer.init(w)), batches)[0]

    w, _ = run(0, x)
    in_pieces, state = run(1, np.reshape(x, (6 * k, 20 // k, 3)))
    np.testing.assert_allclose(in_pieces, w, rtol=1e-5)
    assert int(state.gradient_step) == 6 and int(state.mini_step) == 0


def test_a_gradient_that_is_not_finite_is_not_accumulated():
    w = np.array([1.0, 2.0], np.float32)
    optimizer = optim.accumulate(fdl.sgd(1.0), 2, should_skip_update_fn=optim.skip_not_finite)
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    bad = np.array([np.inf, 1.0], np.float32)
    for gradient, expected in [(w, [0, 0]), (bad, [0, 0]), (3 * w, [-2, -4]), (w, [0, 0])]:
        updates, state = update(gradient, state, w)
        assert updates.tolist() == expected
    assert not state.skip_state["should_skip"]


def test_one_nan_gradient_affects_only_its_step():
    """optax.MultiSteps multiplies its mean by 0, and stays NaN."""
    optimizer = optim.accumulate(fdl.sgd(1.0), 2)
    w = array(1.0)
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    for gradient in (np.nan, 1.0, 2.0, 4.0):
        updates, state = update(array(gradient), state, w)
    assert float(updates) == -3.0


# Parts of a tree.


def blocks(stacked_leaves):
    rng = np.random.default_rng(0)
    one = lambda *shape: array(rng.standard_normal(shape))  # noqa: E731
    names = ["block"] if stacked_leaves else ["block/0", "block/1"]
    lead = (2,) if stacked_leaves else ()
    tree = {}
    for name in names:
        part = {
            "dense": {"w": one(*lead, 3, 3), "b": one(*lead, 3)},
            "norm": {"scale": one(*lead, 3), "offset": one(*lead, 3)},
        }
        top, *rest = name.split("/")
        if rest:
            tree.setdefault(top, {})[rest[0]] = part
        else:
            tree[top] = part
    return tree


@pytest.mark.parametrize("stacked_leaves", [True, False])
def test_norms_and_biases_stay_undecayed_whether_or_not_blocks_are_stacked(stacked_leaves):
    """A rule by the number of dimensions decays the norms of stacked blocks; a pattern does not."""
    params = blocks(stacked_leaves)
    zero = jax.tree.map(np.zeros_like, params)

    def first(make):
        optimizer = make(0.1, weight_decay=0.5, mask="**/w")
        return optimizer.update(zero, optimizer.init(params), params)[0]

    found = jax.jit(lambda: [first(make) for make in (optim.lion, optim.lamb, optim.adamw)])()
    for number, updates in enumerate(found):
        for path, update in fdl.paths.leaves(updates).items():
            assert np.any(np.asarray(update) != 0) == path.endswith("/w"), (number, path)
    w, u = (fdl.paths.leaves(t) for t in (params, found[-1]))
    for path in w:
        expected = np.asarray(w[path]) * np.float32(-0.05 if path.endswith("/w") else 0)
        np.testing.assert_allclose(u[path], expected, rtol=1e-6)


def test_frozen_leaves_keep_their_bits():
    params = tree(0)
    optimizer = optim.chain(optim.adamw(0.1, weight_decay=0.1), optim.freeze(("b", "*/none*")))
    with pytest.raises(
        ValueError,
        match=r"^pattern '\*/none\*': expected at least one match among 2 paths, got none; the "
        r"most similar paths are 'layer/w', 'b'$",
    ):
        optimizer.init(params)
    optimizer = optim.chain(optim.adamw(0.1, weight_decay=0.1), optim.freeze("b"))
    updates, _ = jax.jit(optimizer.update)(tree(1), optimizer.init(params), params)
    moved = fdl.apply_updates(params, updates)
    assert_equal(moved["b"], params["b"])
    assert not np.allclose(moved["layer"]["w"], params["layer"]["w"])


def test_each_part_has_its_optimizer():
    params = {**tree(0), "head": {"w": array([1.0, 1.0]), "b": array([1.0])}}
    gradient = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    optimizer = optim.partition(
        {("**/b", "layer/**"): fdl.sgd(0.5), "head/w": optim.sign_sgd(0.25)}
    )
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    rates = {path: set(np.ravel(u).tolist()) for path, u in fdl.paths.leaves(updates).items()}
    assert rates == {"b": {-0.5}, "head/b": {-0.5}, "head/w": {-0.25}, "layer/w": {-0.5}}
    rest = optim.partition({"head/w": fdl.sgd(0.5)}, rest=optim.set_to_zero())
    updates, _ = jax.jit(rest.update)(gradient, rest.init(params), params)
    assert [path for path, u in fdl.paths.leaves(updates).items() if np.any(u)] == ["head/w"]
    by_label = optim.partition(
        {"fast": fdl.sgd(1.0)},
        lambda tree: {**jax.tree.map(lambda leaf: "slow", tree), "head": "fast"},
        rest=fdl.sgd(0.125),
    )
    updates, state = jax.jit(by_label.update)(gradient, by_label.init(params), params)
    assert sorted(state.inner_states) == ["fast", "rest"]
    rates = {path: set(np.ravel(u).tolist()) for path, u in fdl.paths.leaves(updates).items()}
    assert rates == {"b": {-0.125}, "head/b": {-1.0}, "head/w": {-1.0}, "layer/w": {-0.125}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.partition({"**/w": fdl.sgd(0.1), "*/weight": fdl.sgd(0.1)}),
            "pattern '*/weight': expected at least one match among 2 paths, got none; the most "
            "similar paths are 'layer/w', 'b'",
        ),
        (
            lambda: optim.partition({"**/w": fdl.sgd(0.1)}),
            "partition: expected a pattern for every leaf, got none for 'b'; add a pattern for it, "
            "or pass rest",
        ),
        (
            lambda: optim.partition({"**": fdl.sgd(0.1), "**/w": fdl.sgd(0.1)}),
            "partition: expected one pattern for 'layer/w', got '**' and '**/w'; make one of them "
            "match fewer leaves",
        ),
        (
            lambda: optim.partition({"fast": fdl.sgd(0.1)}, {"b": "fast", "layer": "fats"}),
            "partition: expected the label at 'layer' to be a key of transforms, got 'fats'; the "
            "nearest keys are 'fast'; use one of the keys, or pass rest",
        ),
    ],
)
def test_a_bad_partition_raises(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make().init(tree(0))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.jit(make().init)(tree(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.clip(0.0),
            "clip: expected max_delta > 0, got 0.0; it is the largest size that is not clipped",
        ),
        (
            lambda: optim.clip_by_block_rms(-1.0),
            "clip_by_block_rms: expected threshold > 0, got -1.0; it is the largest size that is "
            "not clipped",
        ),
        (
            lambda: optim.clip_by_global_norm(float("nan")),
            "clip_by_global_norm: expected max_norm > 0, got nan; it is the largest size that is "
            "not clipped",
        ),
        (
            lambda: optim.adaptive_grad_clip(float("inf")),
            "adaptive_grad_clip: expected a finite clipping > 0, got inf; it is the largest size "
            "that is not clipped",
        ),
        (
            lambda: optim.ema(1.0),
            "ema: expected decay in (-1, 1), got 1.0; it is the fraction of the old value that "
            "each step keeps",
        ),
        (
            lambda: optim.params_ema(-0.1),
            "params_ema: expected decay in [0, 1), got -0.1; it is the fraction of the old value "
            "that each step keeps",
        ),
        (
            lambda: optim.accumulate(fdl.sgd(0.1), 0),
            "accumulate: expected every_k_schedule >= 1, got 0; pass the number of gradients per "
            "step",
        ),
        (
            lambda: optim.apply_if_finite(fdl.sgd(0.1), -1),
            "apply_if_finite: expected max_consecutive_errors >= 0, got -1; it is the number of "
            "steps in a row that may be skipped",
        ),
        (
            lambda: optim.partition({"rest": fdl.sgd(0.1)}, rest=fdl.sgd(0.1)),
            "partition: expected no key 'rest' in transforms if `rest` is given, got one; rename "
            "this key",
        ),
        (
            lambda: optim.adaptive_grad_clip(0.1).update(
                jnp.ones((2,) * 6), optax.EmptyState(), jnp.ones((2,) * 6)
            ),
            "adaptive_grad_clip: expected at most 5 dimensions, got [2, 2, 2, 2, 2, 2]; pass "
            "`axis`, the axes of one unit",
        ),
        (
            lambda: optim.adaptive_grad_clip(0.1).update(jnp.ones(2), optax.EmptyState()),
            "adaptive_grad_clip: expected the parameters, got None; call update(updates, state, "
            "params)",
        ),
    ],
)
def test_bad_options_raise(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


SEEDED_BUGS = {
    "fdl/optim/wrappers/clipping.py": (
        "optim/wrappers/test_wrappers.py optim/test_half_precision.py "
        "-k clip_or_length_or_centr_or_norm",
        [
            (
                "jnp.where(part * whole.power < max_norm, g,",
                "jnp.where(part * whole.power > max_norm, g,",
            ),
            ("clipping * jnp.maximum(w_length, eps)", "clipping * (w_length + eps)"),
            ("axis != out_axis % g.ndim", "axis == out_axis % g.ndim"),
            ("(whole.of(g) / part)", "(g / part)"),
            ("jnp.maximum(1 / rms.power,", "jnp.minimum(1 / rms.power,"),
        ],
    ),
    "fdl/optim/wrappers/non_finite.py": (
        "optim/wrappers/test_wrappers.py",
        [
            ("in_a_row > max_consecutive_errors", "in_a_row >= max_consecutive_errors"),
            (
                "jnp.where(finite, 0, increment",
                "jnp.where(finite, state.notfinite_count, increment",
            ),
            ("lambda: (zeros, inner_state)", "lambda: (zeros, step()[1])"),
        ],
    ),
    "fdl/optim/wrappers/accumulation.py": (
        "optim/wrappers/test_wrappers.py",
        [
            ("(state.mini_step + 1) if", "(state.mini_step + 2) if"),
            ("jnp.where(last, jnp.zeros_like(mean), new)", "new"),
            ("jnp.where(skipped, mean, ", "jnp.where(False, mean, "),
            ("state.mini_step >= k - 1", "state.mini_step >= k"),
        ],
    ),
    "fdl/optim/wrappers/averaging.py": (
        "optim/wrappers/test_wrappers.py",
        [
            ("corrected(m, total_weight) if debias else m, m", "m, m"),
            ("(w - average)", "(w - u - average)"),
            ("jax.tree.map(filled(), params)", "jax.tree.map(jnp.zeros_like, params)"),
            ("average / jnp.where(weight > 0, weight, 1)", "average / jnp.where(weight > 0, 1, 1)"),
        ],
    ),
    "fdl/optim/wrappers/partitioning.py": (
        "optim/wrappers/test_wrappers.py",
        [
            ("label == number", "label <= number"),
            ("if left is not None and not has_rest:", "if False:"),
            ("if path in picked:", "if False:"),
        ],
    ),
}
