"""derivative, check_gradient, per_example_gradients, hessian_vector_product."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fdl
from tests.programs import array, in_one_program
from tests.trees import stacked

# f, its slope, and points x where f varies over a distance of about max(|x|, 1), as h assumes.
SMOOTH = {
    "sin": (jnp.sin, np.cos, [-1.3, -0.2, 1e-3, 0.4, 1.1]),
    "exp": (jnp.exp, np.exp, [-3.0, -0.1, 1e-6, 0.7, 2.0]),
    "tanh": (jnp.tanh, lambda x: 1 - np.tanh(x) ** 2, [-0.9, 0.0, 0.3, 0.8, 1.2]),
    "cube": (lambda x: x**3, lambda x: 3 * x**2, [-1e4, -3.0, 2.5, 77.0, 1e5]),
    "log": (jnp.log, lambda x: 1 / x, [2.0, 30.0, 200.0, 1e3, 1e6]),
    "root": (jnp.sqrt, lambda x: 0.5 / np.sqrt(x), [3.0, 20.0, 1e2, 1e3, 1e5]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_is_as_accurate_as_its_docstring_says(name, dtype):
    """About 5 digits in float32 and 10 in float64; a line through exact points is exact."""
    f, slope, points = SMOOTH[name]
    with jax.enable_x64(dtype == "float64"):
        x = array(points, dtype)
        found = fdl.derivative(f, x)
        assert found.dtype == x.dtype and found.shape == x.shape
        exact = slope(np.asarray(x, np.float64))
        worst = np.abs(np.asarray(found, np.float64) / exact - 1).max()
        assert worst < {"float32": 3e-4, "float64": 3e-9}[dtype]
        middle = np.median(np.abs(np.asarray(found, np.float64) / exact - 1))
        assert middle < {"float32": 5e-5, "float64": 5e-10}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ten_times_the_step_and_a_tenth_of_it_are_worse(dtype):
    """The mean over many x, because the rounding error at one x is random."""
    with jax.enable_x64(dtype == "float64"):
        x = np.linspace(0.5, 1.5, 400, dtype=dtype)

        def f(x):
            return jnp.exp(jnp.sin(x))

        exact = np.cos(np.asarray(x, np.float64)) * np.exp(np.sin(np.asarray(x, np.float64)))

        def error(step):
            return np.abs(np.asarray(fdl.derivative(f, x, step), np.float64) - exact).mean()

        best = error(None)
        h = float(jnp.finfo(dtype).eps) ** (1 / 3)
        assert error(10 * h) > 4 * best
        assert error(h / 10) > 4 * best
        assert best < 1.5 * min(error(h * 2.0**power) for power in range(-2, 3))


def test_derivative_of_lines_and_corners():
    np.testing.assert_allclose(fdl.derivative(lambda x: 3 * x, jnp.array([0.1, 7e4])), 3, rtol=1e-5)
    assert float(fdl.derivative(fdl.relu, 0.0)) == 0.5
    assert float(fdl.derivative(lambda x: x**2, 3.0, step=0.5)) == 6.0
    # y[i] depends on x[i] alone: elementwise over any shape, also compiled.
    x = jnp.array([[0.1, 0.9, -0.4]])
    np.testing.assert_allclose(jax.jit(lambda x: fdl.derivative(jnp.sin, x))(x), np.cos(x), 1e-3)


@pytest.mark.parametrize("x", [3, np.array([1, 2]), True])
def test_derivative_refuses_whole_numbers(x):
    with pytest.raises(
        TypeError,
        match=r"^derivative: expected x of a floating dtype, got (int32|bool); pass "
        r"jnp.asarray\(x, float\)$",
    ):
        fdl.derivative(jnp.sin, x)


# check_gradient.


@jax.custom_vjp
def wrong_by_one_percent(x):
    return jnp.sin(x)


wrong_by_one_percent.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (1.01 * g * jnp.cos(x),))


@jax.custom_vjp
def right(x):
    return jnp.sin(x)


right.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


def example(dtype):
    rng = np.random.default_rng(0)
    return {
        "block": [
            {"w": array(rng.standard_normal((3, 2)), dtype)},
            {"w": array(rng.standard_normal((2, 2)), dtype)},
        ],
        "b": array(rng.standard_normal(2), dtype),
        "scale": array(0.7, dtype),
    }


@functools.cache
def loss_with(f):
    def loss(p):
        h = jnp.tanh(jnp.arange(3, dtype=p["b"].dtype) @ p["block"][0]["w"])
        y = f(h @ p["block"][1]["w"]) * p["scale"] + p["b"] ** 2
        return (y * jnp.arange(1, 3, dtype=y.dtype)).sum()

    return in_one_program(loss)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_gradient_passes_a_right_gradient(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = example(dtype)
        for f in (jnp.sin, right):
            errors = fdl.check_gradient(loss_with(f), params)
            assert list(errors) == ["b", "block/0/w", "block/1/w", "scale"]
            bound = {"float32": 1.3e-3, "float64": 2e-9}[dtype]
            assert all(0 <= error < bound for error in errors.values())
        if dtype == "float64":
            check_grads(loss_with(right), (params,), 1, ["rev"], atol=1e-6, rtol=1e-6)
        other = fdl.check_gradient(loss_with(right), params, key=jax.random.key(5), directions=1)
        assert other != errors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_gradient_catches_a_wrong_gradient_and_names_the_leaf(dtype):
    with jax.enable_x64(dtype == "float64"):
        message = (
            r"^block/0/w: expected jax\.grad and the central difference to agree within "
            + {"float32": r"1\.2e-03", "float64": r"1\.8e-09"}[dtype]
            + r", got rates \S+ and \S+ along one direction; look for a wrong custom gradient, a "
            r"stop_gradient, or a point where f has no derivative$"
        )
        with pytest.raises(fdl.PathError, match=message):
            fdl.check_gradient(loss_with(wrong_by_one_percent), example(dtype))
        errors = fdl.check_gradient(loss_with(wrong_by_one_percent), example(dtype), tolerance=0.1)
        assert errors["block/0/w"] > 1e-3 and errors["b"] < 1e-3


@pytest.mark.parametrize("leaf", ["b", "scale"])
def test_check_gradient_catches_a_stopped_gradient(leaf):
    params = example("float32")

    def loss(p):
        return loss_with(jnp.sin)({**p, leaf: jax.lax.stop_gradient(p[leaf])})

    with pytest.raises(fdl.PathError, match=rf"^{leaf}: expected jax\.grad and the central "):
        fdl.check_gradient(loss, params)


def test_check_gradient_catches_nan():
    with pytest.raises(fdl.PathError, match=r"^w: expected jax\.grad and .* got rates nan and "):
        fdl.check_gradient(lambda p: jnp.sqrt(p["w"] ** 2).sum(), {"w": jnp.zeros(2)})


def test_check_gradient_refuses_whole_numbers_and_vectors():
    with pytest.raises(TypeError, match=r"^grad requires real- or complex-valued inputs"):
        fdl.check_gradient(lambda p: p.sum() * 1.0, jnp.arange(3))
    with pytest.raises(TypeError, match=r"^Gradient only defined for scalar-output functions"):
        fdl.check_gradient(lambda p: p, jnp.ones(3))


# Per-example gradients and curvature.

NET = fdl.chain(fdl.dense(3), fdl.tanh, fdl.dense(2))
X = np.random.default_rng(1).standard_normal((7, 4)).astype(np.float32)
Y = np.random.default_rng(2).integers(0, 2, 7).astype(np.int32)
PARAMS, _ = jax.jit(NET.init)(jax.random.key(0), X)


def loss_of_one(params, example):
    x, y = example
    return fdl.softmax_cross_entropy(fdl.stateless(NET)(params, x), y)


one = jax.jit(jax.grad(loss_of_one))
mean_of_all = jax.jit(jax.grad(lambda p: jax.vmap(loss_of_one, (None, 0))(p, (X, Y)).mean()))


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 20])
def test_per_example_gradients_are_a_loop(chunk):
    found = jax.jit(lambda p: fdl.per_example_gradients(loss_of_one, p, (X, Y), chunk=chunk))(
        PARAMS
    )
    expected = stacked([one(PARAMS, (x, y)) for x, y in zip(X, Y, strict=True)])
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    for path, leaf in fdl.paths.leaves(found).items():
        np.testing.assert_allclose(leaf, fdl.paths.leaves(expected)[path], rtol=1e-4, atol=1e-6)
    mean = fdl.paths.leaves(mean_of_all(PARAMS))
    for path, leaf in fdl.paths.leaves(found).items():
        np.testing.assert_allclose(np.mean(leaf, 0), mean[path], rtol=1e-3, atol=1e-6)


def test_hessian_vector_product_is_the_hessian_times_the_vector():
    def f(params):
        return jax.vmap(loss_of_one, (None, 0))(params, (X, Y)).mean()

    rng = np.random.default_rng(3)
    vector = jax.tree.map(lambda p: array(rng.standard_normal(p.shape), p.dtype), PARAMS)
    found = fdl.paths.leaves(jax.jit(lambda v: fdl.hessian_vector_product(f, PARAMS, v))(vector))
    full = jax.jit(jax.hessian(f))(PARAMS)
    for path, leaf in found.items():
        layer, name = path.split("/")
        expected = sum(
            np.tensordot(block, other, other.ndim)
            for block, other in zip(
                jax.tree.leaves(full[layer][name]), jax.tree.leaves(vector), strict=True
            )
        )
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-6, err_msg=path)
    assert re.fullmatch(r"dense_0/b dense_0/w dense_1/b dense_1/w", " ".join(found))


def test_hessian_vector_product_by_hand():
    def f(w):
        return w[0] ** 2 * w[1] + jnp.sin(w[2]) * w[0]

    w, v = jnp.array([1.5, -2.0, 0.3]), jnp.array([1.0, 2.0, -1.0])
    c, s = np.cos(0.3), np.sin(0.3)
    hessian = np.array([[-4.0, 3.0, c], [3.0, 0.0, 0.0], [c, 0.0, -1.5 * s]])
    found = jax.jit(lambda w, v: fdl.hessian_vector_product(f, w, v))(w, v)
    np.testing.assert_allclose(found, hessian @ np.asarray(v), rtol=1e-5)


SEEDED_BUGS = {
    "fdl/gradients.py": (
        "test_gradients.py",
        [
            ("(f(above) - f(below)) / (above - below)", "(f(above) - f(x)) / (above - x)"),
            ("_eps(dtype) ** (1 / 3)", "_eps(dtype) ** (1 / 2)"),
            ("* jnp.maximum(jnp.abs(x), 1)", "* 1.0"),
            ("if not error <= allowed", "if error > allowed"),
            ("(params,), (vector,))[1]", "(params,), (vector,))[0]"),
        ],
    ),
}
