"""L-BFGS and its line search: optax step by step, dense BFGS matrices in NumPy, SciPy, and laws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl import optim
from tests.programs import array
from tests.trees import assert_equal, kinds, stacked


def rosenbrock(params):
    x = params["x"]
    valley = 100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2
    return valley.sum() + (params["y"] ** 4).sum()


def start(dtype=np.float64):
    return {"x": array([-1.2, 1.0, 0.5, -0.7], dtype), "y": array([0.5, 2.0], dtype)}


SEARCH = {
    "max_linesearch_steps": 7,
    "max_learning_rate": 3.0,
    "tol": 1e-3,
    "increase_factor": 3.0,
    "slope_rtol": 0.3,
    "curv_rtol": 0.4,
    "approx_dec_rtol": None,
    "stepsize_precision": 1e-2,
    "initial_guess_strategy": "keep",
}


def pair(case):
    kwargs, search = {
        "default": ({}, "default"),
        "unscaled": ({"memory_size": 3, "scale_init_precond": False}, "default"),
        "search": ({"memory_size": 2, "learning_rate": 0.01}, SEARCH),
        "strict": ({"learning_rate": 20.0}, {"max_linesearch_steps": 30, "curv_rtol": 0.01}),
        "plain": ({"memory_size": 2, "learning_rate": lambda count: 0.001 / (1 + count)}, None),
    }[case]
    if search == "default":
        return optim.lbfgs(**kwargs), optax.lbfgs(**kwargs)
    if search is None:
        return optim.lbfgs(**kwargs, linesearch=None), optax.lbfgs(**kwargs, linesearch=None)
    return (
        optim.lbfgs(**kwargs, linesearch=optim.scale_by_zoom_linesearch(**search)),
        optax.lbfgs(**kwargs, linesearch=optax.scale_by_zoom_linesearch(**search)),
    )


def stepper(optimizer, loss=rosenbrock):
    """(params, state) -> (updates, state), compiled."""
    update = optax.with_extra_args_support(optimizer).update

    # Compiled as users do: with the XLA flags of the suite the sums would have other orders.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        return update(grad, state, params, value=value, grad=grad, value_fn=loss)

    return step


def moved_by_one_ulp(step, params, state, updates):
    """{path: how far an update moves when every parameter moves to the next number, up or down}."""
    furthest = {}
    for end in (-np.inf, np.inf):
        near = jax.tree.map(lambda p: np.nextafter(p, np.asarray(end, p.dtype)), params)
        moves = jax.tree.map(
            lambda a, b: np.abs(np.asarray(a) - b).max(), step(near, state)[0], updates
        )
        for path, move in fdl.paths.leaves(moves).items():
            furthest[path] = max(move, furthest.get(path, 0))
    return furthest


@pytest.mark.parametrize("case", ["default", "unscaled", "search", "strict", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_step_and_decision_is_optaxs(case, dtype, standard_promotion):
    """Every step starts from the same state, made by fdl and optax in turn.

    The line searches try as many steps, and the updates are 50 ULPs apart at most: sums over pairs
    of vectors cancel, so that one rounding in them is more than one in the update. Near the
    minimum, where float32 arrives after 20 steps and float64 after 30, gradients are themselves
    such sums. A step of the strict search may be worse conditioned: there the bound is how far
    optax's own update moves when the parameters move by one ULP (900 ULPs at the worst step).
    """
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = pair(case)
        step, other_step = stepper(ours), stepper(theirs)
        params = start(dtype)
        state, other = jax.jit(lambda: (ours.init(params), theirs.init(params)))()
        assert_equal(state, other)
        for i in range(20 if dtype == "float32" else 30):
            updates, mine = step(params, state)
            expected, other = other_step(params, state)
            assert kinds(mine) == kinds(other)
            if hasattr(mine[2], "info"):
                counts = (int(each[2].info.num_linesearch_steps) for each in (mine, other))
                assert len({*counts}) == 1
            for path, u in fdl.paths.leaves(updates).items():
                there = np.asarray(fdl.paths.leaves(expected)[path])
                bound = 50 * np.finfo(dtype).eps * np.abs(there).max()
                if case == "strict" and np.abs(np.asarray(u) - there).max() > bound:
                    bound = moved_by_one_ulp(other_step, params, state, expected)[path]
                assert np.abs(np.asarray(u) - there).max() <= bound, (path, i)
            for path, mine_at in fdl.paths.leaves(mine).items():
                there = np.asarray(fdl.paths.leaves(other)[path])
                if "error" in path and case == "search":
                    continue  # differences of nearly equal losses
                near = {"rtol": 1e-4 if dtype == "float32" else 1e-9}
                near["atol"] = near["rtol"] * np.abs(there[np.isfinite(there)]).max(initial=0)
                np.testing.assert_allclose(mine_at, there, **near, err_msg=path)
            state = mine if i % 2 else other
            params = jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), params, expected)


def dense_direction(g, pairs, gamma):
    """H g with the matrix written out: Nocedal and Wright 1999, equations 7.15 and 7.16."""
    h = gamma * np.eye(len(g))
    for s, y in pairs:
        rho = 1 / (y @ s)
        v = np.eye(len(g)) - rho * np.outer(y, s)
        h = v.T @ h @ v + rho * np.outer(s, s)
    return h @ g


@pytest.mark.parametrize("scaled", [True, False])
def test_the_direction_is_that_of_the_matrices(scaled):
    """In float64, for more steps than the ring holds pairs."""
    with jax.enable_x64(True):
        transform = optim.scale_by_lbfgs(3, scaled)
        update = jax.jit(transform.update)
        rng = np.random.default_rng(0)
        hessian = np.diag([1.0, 3.0, 7.0, 20.0, 50.0]) + 0.5
        w = rng.standard_normal(5)
        state = transform.init(jnp.asarray(w))
        pairs, last = [], None
        for _ in range(9):
            g = hessian @ w + np.sin(w)
            if last is not None:
                pairs = [*pairs, (w - last[0], g - last[1])][-3:]
            gamma = min(1.0, 1 / np.linalg.norm(g))
            if pairs:
                s, y = pairs[-1]
                gamma = (s @ y) / (y @ y)
            expected = dense_direction(g, pairs, gamma if scaled else 1.0)
            found, state = update(jnp.asarray(g), state, jnp.asarray(w))
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            last = w, g
            w = w - 0.01 * expected + 0.05 * rng.standard_normal(5)


def test_it_is_as_good_as_scipys():
    scipy_optimize = pytest.importorskip(
        "scipy.optimize", reason="the number of steps was not compared with SciPy's L-BFGS"
    )
    with jax.enable_x64(True):
        objective = lambda x: rosenbrock({"x": x, "y": jnp.zeros(1)})  # noqa: E731
        first = np.array([-1.2, 1.0, 0.5, -0.7])
        theirs = scipy_optimize.minimize(
            jax.jit(jax.value_and_grad(objective)), first, jac=True, method="L-BFGS-B"
        )
        step = stepper(optim.lbfgs(), objective)
        w, state = first, jax.jit(optim.lbfgs().init)(first)
        for _ in range(theirs.nit + 10):
            updates, state = step(w, state)
            w = w + np.asarray(updates)
        assert float(jax.jit(objective)(w)) < 1e-8
        np.testing.assert_allclose(w, theirs.x, atol=1e-3)


def test_the_first_direction_is_never_longer_than_1():
    transform = optim.scale_by_lbfgs()
    first = jax.jit(lambda g: transform.update(g, transform.init(g), g)[0])
    for g, expected in [([0.3, 0.4], [0.3, 0.4]), ([30.0, 40.0], [0.6, 0.8])]:
        np.testing.assert_allclose(first(np.float32(g)), expected, 1e-6)


def waves(w, offset, sizes, phases):
    """A line with many minima, and an offset that makes differences of losses inexact."""
    return offset + (sizes * jnp.sin(jnp.arange(1, 5) * w + phases)).sum() + 0.02 * w**2


@functools.cache
def searches(make, strict):
    """(sizes, phases, first step, offset) of many lines -> where the search along each ends."""
    options = {"curv_rtol": 0.001, "slope_rtol": 1e-4} if strict else {"curv_rtol": 0.5}
    search = make(6, stepsize_precision=1e-3, **options)

    def one(sizes, phases, first, offset):
        loss = lambda w: waves(w, offset, sizes, phases)  # noqa: E731
        w = jnp.float64(0.3)
        value, g = jax.value_and_grad(loss)(w)
        state = search.init(w)._replace(learning_rate=first)
        return search.update(-g, state, w, value=value, grad=g, value_fn=loss)

    return jax.jit(jax.vmap(one, (0, 0, 0, None)))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_searches_along_many_lines_end_where_optaxs_do(strict, offset, standard_promotion):
    """300 searches at once: some succeed, fail, take the best safe step, or reach rounding."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        lines = (rng.standard_normal((300, 4)), rng.uniform(0, 6, (300, 4)))
        starts = 10.0 ** rng.uniform(-3, 1.5, 300)
        found = (
            searches(each.scale_by_zoom_linesearch, strict)(*lines, starts, np.float64(offset))
            for each in (optim, optax)
        )
        (u, state), (expected, other) = jax.tree.map(np.asarray, tuple(found))
        same = state.info.num_linesearch_steps == other.info.num_linesearch_steps
        # Near 1e9 a loss is a multiple of 1e-7, and one such step can change a decision.
        assert same.mean() >= (1.0 if offset == 0 else 0.97)
        near = np.isclose(u, expected, rtol=1e-6, atol=1e-9)
        assert near.mean() >= (1.0 if offset == 0 else 0.97)
        failed = np.asarray(state.info.curvature_error) > 0
        assert not strict or 30 < failed.sum() < 300


def line(a):
    """Along w: large at both ends, with a maximum in between, and NaN beyond 4."""
    return jnp.where(a < 4.0, jnp.sin(2 * a) + 0.3 * (a - 2.0) ** 2, jnp.nan)


value_and_slope = jax.jit(jax.value_and_grad(line))


@pytest.mark.parametrize("first", [0.1, 1.0, 3.9, 30.0])
def test_a_found_step_satisfies_both_conditions(first):
    with jax.enable_x64(True):
        search = optim.scale_by_zoom_linesearch(
            30, slope_rtol=1e-3, curv_rtol=0.1, approx_dec_rtol=None
        )
        w, u = np.float64(0.8), np.float64(1.0)
        value, g = value_and_slope(w)
        assert g < 0
        state = search.init(w)._replace(learning_rate=np.float64(first))
        scaled, state = jax.jit(functools.partial(search.update, value_fn=line))(
            u, state, w, value=value, grad=g
        )
        scaled, state = jax.tree.map(np.asarray, (scaled, state))
        end, slope = value_and_slope(w + scaled)
        assert end <= value + 1e-3 * scaled * g and abs(slope) <= 0.1 * abs(g)
        assert state.info.decrease_error == state.info.curvature_error == 0
        np.testing.assert_allclose((state.value, state.grad), (end, slope), rtol=1e-12)
        assert state.learning_rate == scaled


def test_a_direction_uphill_does_not_end_in_nan():
    """If the loss is not finite everywhere, nothing moves and the search ends."""
    nowhere = lambda w: jnp.where(w > 0.0, jnp.nan, w)  # noqa: E731
    search = optim.scale_by_zoom_linesearch(5)

    @jax.jit
    def along(w, u, g):
        return search.update(u, search.init(w), w, value=w, grad=g, value_fn=nowhere)

    scaled, state = along(*np.float32([0.0, 1.0, -1.0]))
    assert float(scaled) == 0.0 and int(state.info.num_linesearch_steps) == 5


# Laws.


def test_it_trains_in_fit_and_scans_and_batches():
    """It works in `fit` (a scan); vmap equals a loop; the second call compiles nothing."""
    objective = fdl.plain(lambda params, batch: rosenbrock(params) + batch.sum())
    optimizer = optim.lbfgs()
    run = fdl.fit(
        objective,
        optimizer,
        fdl.start(start(np.float32), optimizer),
        jnp.zeros((4, 1)),
        batch_size=4,
        steps=100,
    ).run
    assert float(rosenbrock(run.params)) < 0.01
    traces = []

    def loss(params):
        traces.append(1)
        return rosenbrock(params)

    step = stepper(optimizer, loss)

    def two_steps(params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = step(params, state)
            params = fdl.apply_updates(params, updates)
        return params, state

    starts = [
        jax.tree.map(lambda w, i=i: np.asarray(w) + np.float32(i), start(np.float32))
        for i in range(3)
    ]
    together = jax.vmap(two_steps)(stacked(starts))
    for i, each in enumerate(starts):
        alone = two_steps(each)
        own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together)
        assert_equal(own[0], alone[0], rtol=1e-4, atol=1e-5)
    _, state = step(starts[0], optimizer.init(starts[0]))
    seen = len(traces)
    step(starts[1], state)
    assert len(traces) == seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_dtypes_and_trees_are_kept(dtype):
    params = {"w": array([1.0, -2.0], dtype), "none": None, "empty": {}, "s": array(1.0, dtype)}
    loss = lambda p: sum(  # noqa: E731
        (jnp.abs(leaf.astype("complex64")) ** 2).sum() for leaf in jax.tree.leaves(p)
    )
    optimizer = optim.lbfgs()

    @jax.jit
    def step(params):
        state = optimizer.init(params)
        value, raw = jax.value_and_grad(loss)(params)
        grad = jax.tree.map(jnp.conj, raw)
        updates, new = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return updates, state, new, value, loss(fdl.apply_updates(params, updates))

    updates, state, new, before, after = step(params)
    assert kinds(updates) == kinds(params) and kinds(new) == kinds(state)
    assert float(after) < float(before)


def test_optaxs_reader_of_the_state_and_arguments_of_the_loss():
    """`value_and_grad_from_state` reads the state; the loss gets the arguments that it names."""

    def loss(params, shift):
        return rosenbrock(params) + shift

    optimizer, params = optim.lbfgs(), start(np.float32)
    state = jax.jit(optimizer.init)(params)
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, 3.0, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss, shift=3.0, unknown=None
        )
        params = fdl.apply_updates(params, updates)
        both = value_and_grad(params, 3.0, state=state), jax.value_and_grad(loss)(params, 3.0)
        return params, state, both

    for _ in range(2):
        params, state, ((value, grad), (expected, slope)) = step(params, state)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_equal(grad, slope, rtol=1e-5, atol=1e-4)


# Mistakes.


def assert_refused(message):
    return pytest.raises(ValueError, match="^" + re.escape(message) + r"(\n|$)")


def test_mistakes_raise():
    who = "scale_by_zoom_linesearch"
    with assert_refused("lbfgs: expected memory_size >= 1, got 0; 10 is usual"):
        optim.lbfgs(memory_size=0)
    with assert_refused(
        f"{who}: expected initial_guess_strategy 'one' or 'keep', got 'two'; with 'keep', the "
        "search starts at the last step; with 'one', it starts at 1"
    ):
        optim.scale_by_zoom_linesearch(5, initial_guess_strategy="two")
    with assert_refused(f"{who}: expected max_linesearch_steps >= 1, got 0; 20 is usual"):
        optim.scale_by_zoom_linesearch(0)
    w = {"w": jnp.ones(2)}
    optimizer = optim.lbfgs()
    state = optimizer.init(w)
    given = {"value": jnp.float32(1.0), "grad": w, "value_fn": lambda p: p["w"].sum()}
    for name in given:
        rest = {key: value for key, value in given.items() if key != name}
        with assert_refused(
            f"{who}: expected value, grad and value_fn, got no {name}; call "
            "update(updates, state, params, value=..., grad=..., value_fn=params -> loss)"
        ):
            jax.jit(functools.partial(optimizer.update, **rest))(w, state, w)
    for each in (optimizer, optim.scale_by_zoom_linesearch(5)):
        with pytest.raises(ValueError, match=r": expected the parameters, got None; call update\("):
            each.update(w, each.init(w), **given)
    with pytest.raises(
        ValueError,
        match=r"^scale_by_lbfgs: expected the same tree in updates and state.params, got 'v' only "
        r"in state",
    ):
        optimizer.update(w, optimizer.init({"v": jnp.ones(2)}), w, **given)


SEEDED_BUGS = {
    "fdl/optim/optimizers/lbfgs_family.py": (
        "optim/optimizers/test_lbfgs_family.py",
        [
            ("(state.count - 1) % memory_size", "state.count % memory_size"),
            ("curvature / squared /", "squared / curvature /"),
            ("add_scaled(r, alpha - beta, s)", "add_scaled(r, alpha, s)"),
            ("oldest_first, reverse=True)", "oldest_first)"),
            ("jnp.minimum(1.0, 1.0 / size(", "(1.0 / size("),
            ("lambda u: -u)", "lambda u: u)"),
        ],
    ),
    "fdl/optim/optimizers/line_search.py": (
        "optim/optimizers/test_lbfgs_family.py",
        [
            ("retreat = end.failed &", "retreat = ~end.done & (end.count < 0) &"),
            ("turned = (new.slope >= 0)", "turned = (new.slope < 0)"),
            ("beyond = (new.slope * (high.step - low.step) >= 0)", "beyond = (new.slope >= 0)"),
            ("where(above, low, new), high", "where(above, new, low), high"),
            ("new.value < now.safe.value", "new.value > now.safe.value"),
            ("jnp.minimum(jnp.maximum(flat, near), error)", "error"),
            ("c * new.step * start.slope", "c * start.slope"),
            ("rules.curv_rtol * jnp.abs", "jnp.abs"),
            ("scale = (to_b * to_c) ** 2", "scale = to_b * to_c"),
            ("slope / (2.0 * second)", "slope / second"),
            ("if name in named}", "}"),
            ('1.0 if initial_guess_strategy == "one" else', "1.0 if True else"),
            ("jnp.conj, grad), updates)", "jnp.negative, grad), updates)"),
        ],
    ),
}
