"""Activations and gates against float64 formulas, jax.nn and torch."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

import fdl
from tests.entry_types import ActivationCase
from tests.programs import array, compiled


def _normal_chance(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_tanh_slope(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return (1 + np.tanh(inner)) / 2 + x / 2 * slope * (1 - np.tanh(inner) ** 2)


def _softmax_slope(x):
    """The sum over outputs of d softmax_j / d x_i weighted by j, which is not symmetric."""
    p = scipy.special.softmax(x, -1)
    weight = np.arange(x.shape[-1])
    return p * (weight - (p * weight).sum(-1, keepdims=True))


_expit = scipy.special.expit
_of = fdl.activations
SELU = 1.0507009873554805, 1.6732632423543772


def _elu(x, alpha=1.0, beta=1.0):
    """alpha * (e^(x / beta) - 1) below 0."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / beta))


def _elu_slope(x, alpha=1.0, beta=1.0):
    return np.where(x > 0, 1, alpha / beta * np.exp(np.minimum(x, 0) / beta))


def _softplus(x):
    return np.logaddexp(x, 0)


def _mish_slope(x):
    t = np.tanh(_softplus(x))
    return t + x * (1 - t * t) * _expit(x)


def _between(x, low, high, slope=1.0):
    return np.where((x > low) & (x < high), slope, 0.0)


def _hard_silu_slope(x):
    return np.clip(x + 3, 0, 6) / 6 + x * _between(x, -3, 3, 1 / 6)


def _squareplus(x):
    root = np.sqrt(x * x + 2.5)
    return np.where(x > 0, (x + root) / 2, 1.25 / (root + np.abs(x)))


def _sparsemax(x):
    """Algorithm 1 of the paper, a row at a time."""
    rows = []
    for row in x:
        z = np.sort(row)[::-1]
        k = max(k for k in range(1, len(z) + 1) if 1 + k * z[k - 1] > z[:k].sum())
        rows.append(np.maximum(row - (z[:k].sum() - 1) / k, 0))
    return np.array(rows)


def _sparsemax_slope(x):
    support = _sparsemax(x) > 0
    weight = np.arange(x.shape[-1])
    mean = (weight * support).sum(-1, keepdims=True) / support.sum(-1, keepdims=True)
    return support * (weight - mean)


def _log_softmax_slope(x):
    weight = np.arange(x.shape[-1])
    return weight - scipy.special.softmax(x, -1) * weight.sum()


def _standardize(x, epsilon=0.01):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def _standardize_slope(x, epsilon=0.01):
    y, weight = _standardize(x, epsilon), np.arange(x.shape[-1])
    inner = weight - weight.mean() - y * (weight * y).mean(-1, keepdims=True)
    return inner / np.sqrt(x.var(-1, keepdims=True) + epsilon)


# name -> (function of the halves of a vector, its gate in float64).
GATES = {
    "glu": (_of.glu, _expit),
    "swiglu": (_of.swiglu, lambda x: x * _expit(x)),
    "geglu": (_of.geglu, _gelu_tanh),
}

ACTIVATIONS = {
    "relu": ActivationCase(
        fdl.relu, lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)
    ),
    "tanh": ActivationCase(fdl.tanh, np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": ActivationCase(fdl.sigmoid, _expit, lambda x: _expit(x) * _expit(-x)),
    "gelu": ActivationCase(fdl.gelu, _gelu_tanh, _gelu_tanh_slope),
    "gelu_exact": ActivationCase(
        functools.partial(fdl.gelu, approximate=False),
        lambda x: x * scipy.special.ndtr(x),
        lambda x: scipy.special.ndtr(x) + x * _normal_chance(x),
    ),
    "silu": ActivationCase(
        fdl.silu, lambda x: x * _expit(x), lambda x: _expit(x) * (1 + x * _expit(-x))
    ),
    "softmax": ActivationCase(
        fdl.softmax, lambda x: scipy.special.softmax(x, axis=-1), _softmax_slope, -1
    ),
    "softmax_of_the_first_axis": ActivationCase(
        functools.partial(fdl.softmax, axis=0),
        lambda x: scipy.special.softmax(x, axis=0),
        lambda x: _softmax_slope(x.T).T,
        0,
    ),
    "log_softmax": ActivationCase(
        _of.log_softmax, lambda x: scipy.special.log_softmax(x, -1), _log_softmax_slope, -1
    ),
    "softmin": ActivationCase(
        _of.softmin, lambda x: scipy.special.softmax(-x, -1), lambda x: -_softmax_slope(-x), -1
    ),
    "sparsemax": ActivationCase(_of.sparsemax, _sparsemax, _sparsemax_slope, -1),
    "standardize": ActivationCase(
        functools.partial(_of.standardize, epsilon=0.01), _standardize, _standardize_slope, -1
    ),
    "identity": ActivationCase(_of.identity, lambda x: x, np.ones_like),
    "relu6": ActivationCase(_of.relu6, lambda x: np.clip(x, 0, 6), lambda x: _between(x, 0, 6)),
    "squared_relu": ActivationCase(
        _of.squared_relu, lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)
    ),
    "leaky_relu": ActivationCase(
        functools.partial(_of.leaky_relu, negative_slope=0.3),
        lambda x: np.where(x > 0, x, 0.3 * x),
        lambda x: np.where(x > 0, 1, 0.3),
    ),
    "elu": ActivationCase(
        functools.partial(_of.elu, alpha=0.7),
        lambda x: _elu(x, 0.7),
        lambda x: _elu_slope(x, 0.7),
    ),
    "celu": ActivationCase(
        functools.partial(_of.celu, alpha=0.7),
        lambda x: _elu(x, 0.7, 0.7),
        lambda x: _elu_slope(x, 0.7, 0.7),
    ),
    "selu": ActivationCase(
        _of.selu,
        lambda x: SELU[0] * _elu(x, SELU[1]),
        lambda x: SELU[0] * _elu_slope(x, SELU[1]),
    ),
    "threshold": ActivationCase(
        functools.partial(_of.threshold, level=0.75, value=-0.5),
        lambda x: np.where(x > 0.75, x, -0.5),
        lambda x: _between(x, 0.75, np.inf),
    ),
    "hard_shrink": ActivationCase(
        functools.partial(_of.hard_shrink, level=0.75),
        lambda x: np.where(abs(x) > 0.75, x, 0),
        lambda x: 1 - _between(x, -0.75, 0.75),
    ),
    "soft_shrink": ActivationCase(
        functools.partial(_of.soft_shrink, level=0.75),
        lambda x: np.sign(x) * np.maximum(abs(x) - 0.75, 0),
        lambda x: 1 - _between(x, -0.75, 0.75),
    ),
    "log_sigmoid": ActivationCase(_of.log_sigmoid, scipy.special.log_expit, lambda x: _expit(-x)),
    "hard_sigmoid": ActivationCase(
        _of.hard_sigmoid,
        lambda x: np.clip(x + 3, 0, 6) / 6,
        lambda x: _between(x, -3, 3, 1 / 6),
    ),
    "sparse_sigmoid": ActivationCase(
        _of.sparse_sigmoid,
        lambda x: np.clip(x + 1, 0, 2) / 2,
        lambda x: _between(x, -1, 1, 1 / 2),
    ),
    "hard_tanh": ActivationCase(
        _of.hard_tanh, lambda x: np.clip(x, -1, 1), lambda x: _between(x, -1, 1)
    ),
    "soft_sign": ActivationCase(
        _of.soft_sign, lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0
    ),
    "tanh_shrink": ActivationCase(
        _of.tanh_shrink, lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2
    ),
    "hard_silu": ActivationCase(
        _of.hard_silu, lambda x: x * np.clip(x + 3, 0, 6) / 6, _hard_silu_slope
    ),
    "mish": ActivationCase(_of.mish, lambda x: x * np.tanh(_softplus(x)), _mish_slope),
    "softplus": ActivationCase(_of.softplus, _softplus, _expit),
    "squareplus": ActivationCase(
        functools.partial(_of.squareplus, b=2.5),
        _squareplus,
        lambda x: _squareplus(x) / np.sqrt(x * x + 2.5),
    ),
    "sparse_plus": ActivationCase(
        _of.sparse_plus,
        lambda x: np.where(x >= 1, x, np.clip(x + 1, 0, 2) ** 2 / 4),
        lambda x: np.clip(x + 1, 0, 2) / 2,
    ),
}


POINTS = np.concatenate([np.linspace(-7.3, 6.9, 34), [0.01, -0.02]]).reshape(6, 6)
SINGLE = POINTS.astype(np.float32)
# By their torch names; jax.nn uses fdl's.
TORCH = {
    "relu6": "relu6",
    "hard_shrink": "hardshrink",
    "soft_shrink": "softshrink",
    "tanh_shrink": "tanhshrink",
    "hard_silu": "hardswish",
    "hard_tanh": "hardtanh",
    "soft_sign": "softsign",
    "log_sigmoid": "logsigmoid",
    "softmin": "softmin",
    "mish": "mish",
    "celu": "celu",
    "leaky_relu": "leaky_relu",
}


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if hasattr(jax.nn, name)])
def test_an_activation_matches_the_one_of_the_same_name_in_jax(name, standard_promotion):
    """With the defaults of both."""
    ours, theirs = getattr(fdl.activations, name), getattr(jax.nn, name)
    found, expected = compiled(lambda x: (ours(x), theirs(x)))(SINGLE)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_every_activation_of_jax_is_here():
    """Except aliases of silu and hard_silu, and functions that are not activations."""
    other = {"swish", "hard_swish", "logsumexp", "logmeanexp", "log1mexp", "one_hot"}
    other |= {"dot_product_attention", "get_scaled_dot_general_config", "scaled_dot_general"}
    other |= {"scaled_matmul"}
    public = {name for name in dir(jax.nn) if callable(getattr(jax.nn, name)) and name[0] != "_"}
    assert {"relu", "celu", "glu"} <= public - other
    assert {name for name in public - other if not hasattr(fdl.activations, name)} == set()


@pytest.mark.parametrize("name", TORCH)
def test_an_activation_and_its_slope_match_torch(name):
    torch = pytest.importorskip("torch", reason="torch is not here: activations were not compared")
    x = torch.tensor(POINTS, requires_grad=True)
    weight = torch.arange(6.0, dtype=torch.float64)
    options = {"dim": -1} if name == "softmin" else {}
    theirs = getattr(torch.nn.functional, TORCH[name])(x, **options)
    (theirs * weight).sum().backward()
    with jax.enable_x64(True):
        f = getattr(fdl.activations, name)

        @compiled
        def both(x, weight):
            y, back = jax.vjp(f, x)
            return y, back(weight)[0]

        y, slope = both(POINTS, np.broadcast_to(np.arange(6.0), (6, 6)))
        np.testing.assert_allclose(y, theirs.detach(), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(slope, x.grad, rtol=1e-10, atol=1e-14)


def test_sparsemax_is_a_projection():
    x = np.float32(np.random.default_rng(0).standard_normal((40, 7)) * 2)
    sparsemax = compiled(fdl.activations.sparsemax)
    p = sparsemax(x)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    assert (p == 0).any() and (p >= 0).all()
    np.testing.assert_allclose(sparsemax(p), p, atol=1e-6)
    by_columns = compiled(fdl.activations.sparsemax(axis=0))(x.T)
    np.testing.assert_allclose(by_columns.T, p, atol=1e-6)
    ties = sparsemax(np.float32([3.0, 3.0, -9.0, 3.0]))
    np.testing.assert_allclose(ties, [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)


# Gates.


@pytest.mark.parametrize("name", GATES)
def test_a_gate_matches_its_formula(name):
    f, gate = GATES[name]
    halves = POINTS[:, :3], POINTS[:, 3:]
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax.jit(f)(POINTS), halves[0] * gate(halves[1]), rtol=1e-10, atol=1e-14
        )
        check_grads(jax.jit(f), (POINTS,), 1, ["fwd", "rev"], atol=1e-6, rtol=1e-6)
    large = np.float32([1e4, -1e4, -1e4, 1e4])
    every = compiled(lambda *each: [*map(f, each), jax.vmap(f)(each[1])])
    narrow, single, of_large, together = every(POINTS.astype(jnp.bfloat16), SINGLE, large)
    for y, dtype in ((narrow, jnp.bfloat16), (single, np.float32)):
        assert (y.dtype, y.shape) == (dtype, (6, 3))
    np.testing.assert_allclose(together, single, rtol=1e-6)
    assert np.isfinite(of_large).all()


def test_glu_matches_jax():
    ours, theirs = compiled(lambda x: (fdl.activations.glu(x), jax.nn.glu(x)))(SINGLE)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_an_odd_vector_has_no_halves(name):
    message = (
        rf"^{name}: expected x \[\.\.\., 2 C\], got \[2, 5\]; give x an even number of features, "
        rf"half for the value and half for the gate"
    )
    for f in (GATES[name][0], jax.jit(GATES[name][0])):
        with pytest.raises(fdl.PathError, match=message):
            f(np.ones((2, 5), np.float32))


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_in_half_precision_and_far_from_0_matches_torch(approximate):
    torch = pytest.importorskip("torch", reason="no torch: gelu not compared")
    x = np.array([-1e4, -40, -12.5, -12, -5, -3, -1, 0, 0.5, 3, 11.9, 40, 1e4], np.float64)
    for dtype, bound in [
        ("float16", 2e-3),
        ("bfloat16", 1e-2),
        ("float32", 1e-5),
        ("float64", 1e-10),
    ]:
        with jax.enable_x64(dtype == "float64"):
            ours = array(x, dtype)
            f = functools.partial(fdl.gelu, approximate=approximate)
            y, slope = compiled(jax.vmap(jax.value_and_grad(f)))(ours)
        wide = torch.tensor(np.asarray(ours, np.float64), requires_grad=True)
        theirs = torch.nn.functional.gelu(wide, approximate="tanh" if approximate else "none")
        theirs.sum().backward()
        np.testing.assert_allclose(
            np.asarray(y, np.float64), theirs.detach(), rtol=bound, atol=1e-7
        )
        np.testing.assert_allclose(np.asarray(slope, np.float64), wide.grad, rtol=bound, atol=2e-7)
    far = jax.jit(jax.grad(lambda x: fdl.gelu(x).sum()))(np.float32([1e20, -1e20]))
    assert np.isfinite(far).all()


@pytest.mark.parametrize(
    "use",
    [
        lambda x, number: fdl.activations.leaky_relu(x, negative_slope=number),
        lambda x, number: fdl.activations.elu(x, alpha=number),
        lambda x, number: fdl.activations.celu(x, alpha=number),
        lambda x, number: fdl.activations.soft_shrink(x, level=number),
        lambda x, number: fdl.activations.hard_shrink(x, level=number),
        lambda x, number: fdl.activations.threshold(x, level=number, value=number),
        lambda x, number: fdl.activations.squareplus(x, b=number),
    ],
)
def test_an_option_of_numpy_widens_no_result(use):
    x = array([-2.0, 0.25, 3.0], jnp.bfloat16)
    y, same = compiled(lambda x: (use(x, np.float64(0.5)), use(x, 0.5)))(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, same)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_squareplus_where_squares_overflow(dtype):
    size = {"float16": 3e2, "bfloat16": 1e25, "float32": 1e25, "float64": 1e200}[dtype]
    with jax.enable_x64(dtype == "float64"):
        points = [size, -size, -3.0, *(() if dtype == "float16" else (2.0**42, -(2.0**39)))]
        x = array(points, dtype)
        exact = np.asarray(x, np.longdouble)
        root = np.sqrt(exact**2 + 4)
        y, slope = compiled(jax.vmap(jax.value_and_grad(fdl.activations.squareplus)))(x)
        expected = np.maximum(exact, 0) + 2 / (abs(exact) + root)
        eps = float(jnp.finfo(dtype).eps)
        least = float(jnp.finfo(dtype).tiny)
        np.testing.assert_allclose(np.asarray(y, np.longdouble), expected, rtol=4 * eps)
        wanted = np.where(exact > 0, (1 + exact / root) / 2, 2 / (root + abs(exact)) / root)
        np.testing.assert_allclose(
            np.asarray(slope, np.longdouble), wanted, rtol=4 * eps, atol=least
        )


def test_squareplus_refuses_integers():
    with pytest.raises(
        fdl.PathError,
        match=r"^squareplus: expected x of a floating dtype, got int32 \[2\]; convert x with "
        r"x\.astype\(jnp\.float32\), or use rescale\(1 / 255\) as the first layer$",
    ):
        fdl.activations.squareplus(jnp.array([1, 2]))


# The limits at -inf and inf.
LIMITS = dict.fromkeys(("gelu", "silu", "hard_silu", "mish", "softplus", "relu"), (0, np.inf))
LIMITS |= {"soft_sign": (-1, 1), "sparse_plus": (0, np.inf), "squareplus": (0, np.inf)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_at_infinity(name, dtype):
    f = getattr(fdl.activations, name)
    found = compiled(f)(np.array([-np.inf, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(found, [*LIMITS[name], np.nan])
    if name == "gelu":
        exact = compiled(functools.partial(f, approximate=False))
        np.testing.assert_array_equal(exact(np.array([-np.inf], dtype)), [0])


@pytest.mark.parametrize("name", ["soft_sign", "sparse_plus", "gelu", "silu", "mish"])
def test_slopes_at_the_largest_numbers_are_finite(name):
    slope = jax.jit(jax.vmap(jax.grad(getattr(fdl.activations, name))))
    most = float(np.finfo("float32").max)
    ends = slope(np.float32([-most, most, -1e30, 1e30]))
    np.testing.assert_allclose(ends, [0, 0 if name == "soft_sign" else 1] * 2, atol=2e-30)


OPTIONS = {"threshold": {"level": 0.3, "value": -1.0}, "gelu": {"approximate": False}}
OPTIONS |= {"standardize": {"epsilon": 0.1}, "squareplus": {"b": 2.0}}
OPTIONS |= {name: {"level": 0.2} for name in ("hard_shrink", "soft_shrink")}
OPTIONS |= {name: {"alpha": 0.3} for name in ("elu", "celu")} | {
    "leaky_relu": {"negative_slope": 0.3}
}
OPTIONS |= {name: {"axis": 0} for name in ("softmax", "log_softmax", "softmin", "sparsemax")}


def test_called_with_options_alone_an_activation_gives_itself_with_them_set():
    x = np.float32(np.random.default_rng(0).standard_normal((3, 4)))
    with_options = set()
    for name in fdl.activations.__all__:
        f = getattr(fdl, name)
        parameters = inspect.signature(f).parameters.values()
        if any(each.kind is each.KEYWORD_ONLY for each in parameters):
            with_options.add(name)
            plain = fdl.chain(f) if name != "threshold" else None
            net = fdl.chain(f(**OPTIONS[name]))
            assert list(net.children) == [f"{name}_0"]

            def every(x, f=f, net=net, plain=plain, options=OPTIONS[name]):
                other = None if plain is None else plain.apply({}, {}, x)[0]
                return net.apply({}, {}, x)[0], f(x, **options), other

            y, same, other = compiled(every)(x)
            np.testing.assert_array_equal(y, same)
            assert plain is None or (y != other).any()
            told = rf"^{name}: expected options among .*{next(iter(OPTIONS[name]))}.*, got 'slope'"
            with pytest.raises(
                TypeError, match=told + "; use one of these names, and pass arrays before options$"
            ):
                f(slope=1.0)
    assert with_options == OPTIONS.keys()


def test_a_number_in_the_place_of_the_array_is_told():
    with pytest.raises(
        fdl.PathError, match=r"^leaky_relu: expected x to be an array, got a float; c"
    ):
        fdl.leaky_relu(0.2)


SEEDED_BUGS = {
    "fdl/activations/smooth.py": (
        "activations/test_activations.py -k limits_or_largest",
        [
            ("jnp.where(jnp.isneginf(x), jnp.zeros_like(y), y)", "y"),
            ("jnp.square(jnp.clip(x, -1, 1) + 1) / 4", "jnp.square(x + 1) / 4"),
        ],
    ),
    "fdl/activations/sigmoids.py": (
        "activations/test_activations.py -k limits_or_largest",
        [("x = jnp.clip(x, -most, most)", "pass")],
    ),
}
