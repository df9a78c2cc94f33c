"""Linear recurrences against a loop over time, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

import fdl
from tests.programs import array, compiled, waves

KEY = jax.random.key(0)
B, T, D = 2, 9, 3
RNG = np.random.default_rng(0)
X = np.float32(RNG.standard_normal((B, T, D)))
A = np.float32(RNG.uniform(-1.1, 1.1, (B, T, D)))
START = np.float32(RNG.standard_normal((B, D)))
SEGMENTS = np.int32([[0, 0, 0, 1, 1, 1, 2, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5, 7]])


def assert_near(found, expected, bound=1e-5):
    """The largest difference, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def step_by_step(a, b, h):
    """The recurrence as a scan: every step waits for the one before it."""

    def step(h, now):
        h = now[0] * h + now[1]
        return h, h

    _, y = jax.lax.scan(step, h, (a.swapaxes(0, 1), b.swapaxes(0, 1)))
    return y.swapaxes(0, 1)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
def test_a_linear_recurrence_is_a_loop_over_time(dtype, bound):
    with jax.enable_x64(dtype == "float64"):
        args = tuple(each.astype(dtype) for each in (A, X, START))

        def with_gradients(f):
            def total(*args):
                y = f(*args)
                return (waves(y) * y).sum(), y

            return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*args)

        found = with_gradients(lambda a, b, h: fdl.linear_recurrence(a, b, start=h))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype)}
        assert_near(found, with_gradients(step_by_step), bound)
        both = jax.jit(lambda a, b, h: (fdl.linear_recurrence(a, b), step_by_step(a, b, 0 * h)))
        assert_near(*both(*args), bound)


def test_narrow_numbers_are_added_up_in_float32():
    """Of positive numbers, so that rounding the result once is all that may be seen."""
    a, b = (abs(each).astype(jnp.bfloat16) for each in (A, X))
    found = compiled(fdl.linear_recurrence)(a, b)
    assert found.dtype == jnp.bfloat16
    wide = jax.jit(step_by_step)(a.astype(np.float32), b.astype(np.float32), 0 * START)
    np.testing.assert_allclose(found.astype(np.float32), wide, rtol=2.0**-8)


@functools.cache
def made():
    layer = fdl.rg_lru(D)
    params, _ = layer.init(KEY, X)
    rng = np.random.default_rng(1)
    for gate in ("recurrence_gate", "input_gate"):
        params[gate]["b"] = array(rng.standard_normal(D))
    params["memory"]["decay"] = array([-0.5, 2.0, 4.5])
    return layer, params


def by_hand(params, x, segments):
    """The equations of De et al., one sequence and one step at a time, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    y = np.zeros(x.shape)
    for row in range(len(x)):
        h = np.zeros(D)
        for t in range(x.shape[1]):
            if t and segments[row, t] != segments[row, t - 1]:
                h = np.zeros(D)
            r = expit(x[row, t] @ p["recurrence_gate"]["w"] + p["recurrence_gate"]["b"])
            i = expit(x[row, t] @ p["input_gate"]["w"] + p["input_gate"]["b"])
            a = expit(p["memory"]["decay"]) ** (8 * r)
            h = y[row, t] = a * h + np.sqrt(1 - a**2) * (i * x[row, t])
    return y


def test_the_unit_of_the_paper_by_hand():
    layer, params = made()
    apply = jax.jit(layer.apply)
    assert_near(apply(params, {}, X)[0], by_hand(params, X, np.zeros((B, T))))
    found = apply(params, {}, X, segments=SEGMENTS)[0]
    assert_near(found, by_hand(params, X, SEGMENTS))


def test_new_features_forget_between_a_tenth_and_a_thousandth_in_a_step():
    params, _ = fdl.rg_lru(400).init(KEY, np.zeros((1, 1, 400), np.float32))
    decay = params["memory"]["decay"]
    kept = expit(np.asarray(decay, np.float64)) ** 8
    assert 0.8999 < kept.min() < 0.902 and 0.997 < kept.max() < 0.9991
    np.testing.assert_allclose(kept.mean(), 0.9495, atol=3 * 0.0286 / 20)


def test_gates_that_close_altogether_have_finite_gradients():
    layer, params = made()
    shut = {**params["recurrence_gate"], "b": array([-1e4] * D)}
    closed = {**params, "recurrence_gate": shut}
    y, gradients = jax.jit(jax.value_and_grad(lambda p: layer.apply(p, {}, X)[0].sum()))(closed)
    assert np.isfinite(y) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_decoding_goes_on_where_it_stopped():
    model = fdl.chain(fdl.rg_lru(D), fdl.tanh, fdl.rg_lru(D))
    params, _ = model.init(KEY, X)
    whole = jax.jit(model.apply)(params, {}, X)[0]
    cache = fdl.start_decoding(model, params, X, T)
    assert sorted(fdl.paths.leaves(cache)) == ["rg_lru_0/memory/h", "rg_lru_1/memory/h"]
    decode, pieces = jax.jit(functools.partial(fdl.decode, model)), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        y, cache = decode(params, cache, X[:, part])
        pieces.append(y)
    assert_near(np.concatenate(pieces, 1), whole)
    with pytest.raises(
        fdl.PathError,
        match=r"^rg_lru_0/memory: expected no segments in decoding, got some; call start_decoding "
        r"again for each sequence$",
    ):
        fdl.decode(model, params, cache, X, segments=SEGMENTS)


def test_a_wrong_use_says_where_and_what_to_do():
    layer, params = made()
    model, params = fdl.chain(unit=layer), {"unit": params}
    for given, message in [
        (
            {"x": X[..., :2]},
            r"unit: expected x \[\.\.\., T, 3\], got \[2, 9, 2\]; add dense\(3\) before this "
            r"layer, or pass the number of features of x as features",
        ),
        (
            {"x": X, "segments": SEGMENTS[0]},
            r"unit/memory: expected integer segments \[2, 9\], got int32 \[9\]; pass one segment "
            r"number for each step",
        ),
    ]:
        for call in (model.apply, jax.jit(model.apply)):
            with pytest.raises(fdl.PathError, match=rf"^{message}(\n|$)"):
                call(params, {}, **given)
    with pytest.raises(
        fdl.PathError,
        match=r"^linear_recurrence: expected a and b of one shape \[\.\.\., T, D\] and start "
        r"\[\.\.\., D\], got \[2, 9, 3\], \[2, 9, 3\] and \[3\]; broadcast them to these shapes$",
    ):
        fdl.linear_recurrence(A, X, start=START[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_of_zero_forgets_what_is_not_finite(bad):
    a, b = np.full((6, 2), 0.5, np.float32), np.ones((6, 2), np.float32)
    a[3] = 0
    spoilt, shut = b.copy(), a.copy()
    spoilt[1], shut[0] = bad, 0

    def last(a, b):
        return fdl.linear_recurrence(a, b)[3:].sum()

    slopes, recur = compiled(jax.grad(last, (0, 1))), compiled(fdl.linear_recurrence)
    y = recur(a, spoilt)
    np.testing.assert_array_equal(y[3:], recur(a, b)[3:])
    assert not np.isfinite(y[1:3]).any()
    assert all(np.isfinite(each[3:]).all() for each in slopes(a, spoilt))
    assert slopes(a, b)[0][3].tolist() == [1.75 * 1.75] * 2
    y = recur(shut, b, start=np.full(2, bad, np.float32))
    assert np.isfinite(y).all()


SEEDED_BUGS = {
    "fdl/ops/recurrence.py": (
        "layers/test_state_space.py",
        [
            ("kept(other[0], one[1]) + other[1]", "kept(one[0], one[1]) + other[1]"),
            ("add(kept(factor[..., 0, :], start.astype(dtype)))", "add(start.astype(dtype))"),
            ("jnp.where((a == 0) & ~jnp.isfinite(h), 0, h)", "h"),
            ("(a == 0) & ~jnp.isfinite(h)", "a == 0"),
            ("dtype = wide(b.dtype)", "dtype = b.dtype"),
        ],
    ),
    "fdl/layers/state_space.py": (
        "layers/test_state_space.py",
        [
            ("expm1(2 * log_a)", "expm1(log_a)"),
            ("softplus(-decay)", "softplus(decay)"),
            ("segments[..., 1:] != segments[..., :-1]", "segments[..., 1:] > segments[..., :-1]"),
            (
                "jnp.maximum(-jnp.expm1(2 * log_a), float(jnp.finfo(dtype).tiny))",
                "1 - jnp.exp(2 * log_a)",
            ),
            ('{"h": h[..., -1, :]}', '{"h": h[..., 0, :]}'),
        ],
    ),
}
