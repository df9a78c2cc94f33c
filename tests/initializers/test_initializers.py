"""Initializers against torch, SciPy and jax.nn, their messages, and the variance of layers."""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fdl
from fdl import initializers
from fdl.initializers import distributions
from fdl.initializers.fan_counts import Shared
from fdl.paths import PathError
from tests.entry_types import InitializerCase
from tests.programs import array

_of = fdl.initializers
_jax = jax.nn.initializers


def _scaled(scale, mode, distribution):
    fan = {"fan_in": lambda i, o: i, "fan_out": lambda i, o: o, "fan_avg": lambda i, o: (i + o) / 2}
    return InitializerCase(
        _of.variance_scaling(scale, mode, distribution),
        lambda i, o: scale / fan[mode](i, o),
        limit=3**0.5 if distribution == "uniform" else None,
        has_fans=True,
        oracle=_jax.variance_scaling(scale, mode, distribution),
    )


def _named(name, scale, mode, distribution, oracle=None):
    case = _scaled(scale, mode, distribution)
    return dataclasses.replace(case, init=getattr(_of, name), oracle=oracle or case.oracle)


INITIALIZERS = {
    "zeros": InitializerCase(_of.zeros, lambda i, o: 0.0, random=False, oracle=_jax.zeros),
    "ones": InitializerCase(_of.ones, lambda i, o: 0.0, mean=1.0, random=False, oracle=_jax.ones),
    "constant": InitializerCase(
        _of.constant(0.75),
        lambda i, o: 0.0,
        mean=0.75,
        random=False,
        oracle=_jax.constant(0.75),
    ),
    "normal": InitializerCase(_of.normal(0.3), lambda i, o: 0.09, oracle=_jax.normal(0.3)),
    "truncated_normal": InitializerCase(
        _of.truncated_normal(0.3),
        lambda i, o: 0.09 * 0.7737413,  # 1 - 4 pdf(2) / (cdf(2) - cdf(-2)) of the normal
        limit=2 / 0.7737413**0.5,
        oracle=_jax.truncated_normal(0.3),
    ),
    "scaled": InitializerCase(
        _of.scaled(_of.normal(0.6), 0.5), lambda i, o: 0.09, oracle=_jax.normal(0.3)
    ),
    "uniform": InitializerCase(_of.uniform(0.6), lambda i, o: 0.12, limit=3**0.5),
    "orthogonal": InitializerCase(
        _of.orthogonal(1.5), lambda i, o: 2.25 / max(i, o), has_fans=True
    ),
    "variance_scaling_out": _scaled(1.7, "fan_out", "normal"),
    "variance_scaling_average": _scaled(0.6, "fan_avg", "uniform"),
    "glorot_normal": _named("glorot_normal", 1.0, "fan_avg", "normal"),
    "glorot_uniform": _named("glorot_uniform", 1.0, "fan_avg", "uniform", _jax.glorot_uniform()),
    "he_normal": _named("he_normal", 2.0, "fan_in", "normal"),
    "he_uniform": _named("he_uniform", 2.0, "fan_in", "uniform", _jax.he_uniform()),
    "lecun_normal": _named("lecun_normal", 1.0, "fan_in", "normal"),
    "lecun_uniform": _named("lecun_uniform", 1.0, "fan_in", "uniform", _jax.lecun_uniform()),
}


KEY = jax.random.key(3)


def test_dirac_matches_torch():
    torch = pytest.importorskip("torch", reason="dirac was not checked against torch")
    for shape, groups in [((3, 4, 4), 1), ((3, 5, 2, 6), 3), ((4, 3, 3, 3, 2), 1), ((5, 3, 7), 1)]:
        *field, inputs, outputs = shape
        weight = torch.empty(outputs, inputs, *field)
        torch.nn.init.dirac_(weight, groups)
        expected = np.moveaxis(weight.numpy(), (0, 1), (-1, -2))
        init = functools.partial(initializers.dirac(groups), None, shape)
        np.testing.assert_array_equal(jax.jit(init)(), expected)


def test_delta_orthogonal_keeps_the_norm_of_an_image():
    both = initializers.delta_orthogonal(1.5), jax.nn.initializers.delta_orthogonal(1.5)
    w, theirs = jax.jit(lambda key: [init(key, (3, 5, 4, 6)) for init in both])(KEY)
    assert w.shape == (3, 5, 4, 6)
    middle = np.asarray(w, np.float64)[1, 2]
    np.testing.assert_allclose(middle @ middle.T, 2.25 * np.eye(4), atol=1e-5)
    assert np.count_nonzero(np.asarray(w).sum((2, 3))) == 1
    assert ((np.asarray(w) == 0) == (np.asarray(theirs) == 0)).all()
    x = array(np.random.default_rng(0).standard_normal((2, 9, 9, 4)))
    y = jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(np.linalg.norm(y), 1.5 * np.linalg.norm(x), rtol=1e-5)


def test_identity_and_its_scale():
    w = initializers.identity(0.75)(None, (4, 3), jnp.float32)
    np.testing.assert_array_equal(w, 0.75 * np.eye(4, 3))


@pytest.mark.parametrize(("inputs", "zeros"), [(10, 7), (16, 11), (3, 3)])
def test_sparse_columns_have_the_given_number_of_zeros_at_any_place(inputs, zeros):
    w = np.asarray(jax.jit(initializers.sparse(0.68, 2.0), static_argnums=1)(KEY, (inputs, 4000)))
    assert ((w == 0).sum(0) == zeros).all()
    if zeros < inputs:
        kept = w[w != 0]
        assert scipy.stats.kstest(kept, scipy.stats.norm(0, 2.0).cdf).pvalue > 1e-3
        # Every input is left out as often as every other.
        left_out = (w == 0).mean(1)
        np.testing.assert_allclose(left_out, zeros / inputs, atol=0.05)


@pytest.mark.parametrize(("share", "zeros"), [(0.07, 7), (0.14, 14), (np.float32(0.7), 70)])
def test_the_share_of_zeros_is_the_decimal_that_was_written(share, zeros):
    """As floats, 0.07 * 100 is 7.000000000000001."""
    w = np.asarray(initializers.sparse(share)(KEY, (100, 3)))
    assert (w == 0).sum(0).tolist() == [zeros] * 3


def test_truncated_normal_is_cut_at_its_bounds():
    w = np.asarray(initializers.truncated_normal(0.5, -1.0, 3.0)(KEY, (20000,)), np.float64)
    assert w.min() >= -0.5 and w.max() <= 1.5 and w.max() > 1.3 and w.min() < -0.49
    exact = scipy.stats.truncnorm(-1.0, 3.0, scale=0.5)
    assert scipy.stats.kstest(w, exact.cdf).pvalue > 1e-3


DRAWN = {
    "normal": (initializers.normal(0.5), scipy.stats.norm(0, 0.5)),
    "uniform": (initializers.uniform(0.5), scipy.stats.uniform(-0.5, 1)),
    "he_normal": (initializers.he_normal, scipy.stats.norm(0, (2 / 400) ** 0.5)),
    "glorot_uniform": (
        initializers.glorot_uniform,
        scipy.stats.uniform(-((6 / 900) ** 0.5), 2 * (6 / 900) ** 0.5),
    ),
    "truncated": (initializers.truncated_normal(0.5), scipy.stats.truncnorm(-2, 2, scale=0.5)),
    "tail": (initializers.truncated_normal(1.0, 3.0, 5.0), scipy.stats.truncnorm(3, 5)),
    "half": (
        initializers.truncated_normal(1.0, -np.inf, 0.0),
        scipy.stats.truncnorm(-np.inf, 0),
    ),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", DRAWN)
def test_narrow_values_have_the_moments_of_their_distribution(name, dtype):
    """Values drawn in the narrow dtype would not; these are drawn in float32 and rounded."""
    init, exact = DRAWN[name]
    w = init(KEY, (400, 500), dtype)
    assert w.dtype == dtype
    np.testing.assert_array_equal(w, np.asarray(init(KEY, (400, 500))).astype(dtype))
    w = np.asarray(w, np.float64)
    assert abs(w.mean() - exact.mean()) < 3 * exact.std() / w.size**0.5 + 1e-5
    kurtosis = float(exact.stats("k"))
    assert abs(w.var() / exact.var() - 1) < 3 * ((kurtosis + 2) / w.size) ** 0.5 + 1e-3


@pytest.mark.parametrize("number", [np.float64, np.float32, jnp.float32])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: initializers.normal(x),
        lambda x: initializers.uniform(x),
        lambda x: initializers.truncated_normal(x, -x, x),
        lambda x: initializers.variance_scaling(x, "fan_in", "normal"),
        lambda x: initializers.orthogonal(x),
        lambda x: initializers.identity(x),
        lambda x: initializers.sparse(x, x),
        lambda x: initializers.constant(x),
        lambda x: initializers.scaled(initializers.he_normal, x),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_every_kind_of_number_is_an_option(make, number, dtype, standard_promotion):
    w = make(number(0.5))(KEY, (3, 2), dtype)
    assert w.dtype == dtype
    np.testing.assert_array_equal(w, make(0.5)(KEY, (3, 2), dtype))


def test_a_matrix_of_integers():
    for init in (initializers.identity(2), initializers.scaled(initializers.ones, 2)):
        w = init(None, (2, 2), jnp.int32)
        assert w.dtype == jnp.int32 and int(w.max()) == 2


@pytest.mark.bits
@pytest.mark.parametrize(
    ("init", "shape"),
    [
        (initializers.he_normal, (50, 100)),  # just above and below a common size of draws
        (initializers.truncated_normal(0.3, -1.0, 3.0), (3, 3, 16, 16)),
        (initializers.glorot_uniform, (1100, 1000)),
        (initializers.delta_orthogonal(), (3, 2, 4)),
        (initializers.dirac(), (3, 2, 4)),
        (initializers.identity(), (3, 4)),
        (initializers.sparse(0.5), (6, 4)),
    ],
)
def test_the_same_bits_everywhere(init, shape):
    keys = jax.random.split(KEY, 2)
    alone = np.stack([init(key, shape) for key in keys])
    np.testing.assert_array_equal(jax.vmap(lambda key: init(key, shape))(keys), alone)
    compiled = jax.jit(init, static_argnums=1)
    np.testing.assert_array_equal(np.stack([compiled(key, shape) for key in keys]), alone)
    for key in (KEY, jax.random.key(1, impl="rbg")):
        half = init(key, shape, jnp.bfloat16)
        assert half.dtype == jnp.bfloat16 and half.shape == shape
        np.testing.assert_array_equal(half, compiled(key, shape).astype(jnp.bfloat16))


def test_weights_of_many_shapes_are_drawn_by_few_programs():
    sizes = []
    draw = distributions._normal
    with pytest.MonkeyPatch.context() as patch:
        drawn = lambda key, shape, *rest: sizes.append(shape) or draw(key, shape, *rest)  # noqa: E731
        patch.setattr(distributions, "_normal", drawn)
        init = initializers.normal(0.5)
        shapes = [(), (0, 3), (7,), (64, 64), (65, 64), (128, 128), (1024, 1024), (1025, 1024)]
        found = [init(KEY, shape) for shape in shapes]
    assert sizes == [*[(4**6,)] * 4, *[(4**7,)] * 2, (4**10,), (1025, 1024)]
    for w, shape in zip(found, shapes, strict=True):
        np.testing.assert_allclose(w, 0.5 * jax.random.normal(KEY, shape), rtol=1e-6)


MISTAKES = {
    "delta": (
        lambda: initializers.delta_orthogonal()(KEY, (4, 4)),
        "delta_orthogonal: expected the weights of a convolution [*spatial, in, out], got shape "
        "(4, 4); for other weights use orthogonal or identity",
    ),
    "delta_narrow": (
        lambda: initializers.delta_orthogonal()(KEY, (3, 4, 2)),
        "delta_orthogonal: expected weights [*spatial, in, out] with in <= out, got shape (3, 4, "
        "2); use at least as many outputs as inputs",
    ),
    "dirac": (
        lambda: initializers.dirac()(None, (4, 4)),
        "dirac: expected the weights of a convolution [*spatial, in, out], got shape (4, 4); for",
    ),
    "dirac_groups": (
        lambda: initializers.dirac(2)(None, (3, 1, 3)),
        "dirac: expected groups to divide the 3 outputs, got 2; pass the number of groups of the ",
    ),
    "identity": (
        lambda: initializers.identity()(None, (3, 3, 3)),
        "identity: expected weights [in, out], got shape (3, 3, 3); for convolutions, use dirac",
    ),
    "sparse": (
        lambda: initializers.sparse(0.5)(KEY, (4,)),
        "sparse: expected weights [in, out], got shape (4,); for other shapes, use normal",
    ),
    "sparse_share": (
        lambda: initializers.sparse(1.0),
        "sparse: expected share in [0, 1), got 1.0; pass the share of zeros, such as 0.9",
    ),
    "truncated": (
        lambda: initializers.truncated_normal(1.0, 2.0, -2.0),
        "truncated_normal: expected numbers lower < upper, got 2.0 and -2.0; pass the smaller",
    ),
    "truncated_by_texts": (
        lambda: initializers.truncated_normal(0.1, "a", "b"),
        "truncated_normal: expected numbers lower < upper, got 'a' and 'b'; pass the smaller",
    ),
    "truncated_by_nan": (
        lambda: initializers.truncated_normal(0.1, np.nan, 1.0),
        "truncated_normal: expected numbers lower < upper, got nan and 1.0; pass the smaller",
    ),
    **{
        f"{make.__name__}_{value}": (
            functools.partial(make, value, *rest),
            f"{make.__name__}: expected {expected}, got {value}; {remedy}",
        )
        for make, rest, values, expected, remedy in [
            (initializers.normal, (), (-1.0, np.nan), "stddev >= 0", "pass a standard"),
            (initializers.truncated_normal, (), (-1.0,), "stddev >= 0", "pass a standard"),
            (initializers.uniform, (), (-1.0, 0.0), "limit > 0", "pass the largest"),
            (initializers.uniform, (), (np.inf,), "a finite limit > 0", "pass the largest"),
            (
                initializers.variance_scaling,
                ("fan_in", "normal"),
                (-1.0, 0.0),
                "scale > 0",
                "pass a number such as 1, for the variance 1 / fan",
            ),
            (initializers.orthogonal, (), (-1.0,), "scale > 0", "pass the norm that"),
            (initializers.identity, (), (np.nan,), "a finite scale", "pass a number that"),
        ]
        for value in values
    },
    "factor": (
        lambda: initializers.scaled(initializers.ones, np.inf),
        "scaled: expected a finite factor, got inf; pass a number that multiplies the weights",
    ),
    "text": (
        lambda: initializers.normal("0.1"),
        "normal: expected stddev >= 0, got '0.1'; pass a number",
    ),
    **{
        f"no_dtype_{name}": (
            functools.partial(init, KEY, shape, "float99"),
            f"{name}: expected a dtype, got 'float99'; pass a dtype such as jnp.float32",
        )
        for name, init, shape in [
            ("zeros", initializers.zeros, (2,)),
            ("constant", initializers.constant(1.0), (2,)),
            ("identity", initializers.identity(), (2, 2)),
            ("dirac", initializers.dirac(), (3, 2, 2)),
            ("truncated_normal", initializers.truncated_normal(), (2, 2)),
        ]
    },
    "constant": (
        lambda: initializers.constant("a"),
        "constant: expected value, a number, got 'a'; pass a number",
    ),
    "sparse_stddev": (
        lambda: initializers.sparse(0.5, -1.0),
        "sparse: expected stddev >= 0, got -1.0; pass a standard deviation such as 0.01",
    ),
    **{
        f"shape_{shape}": (
            functools.partial(initializers.normal(), KEY, shape),
            f"normal: expected a shape, a sequence of integers >= 0, got {shape!r}; pass a tuple",
        )
        for shape in (3, (3, -1), (2.0, 3), "ab", None)
    },
    **{
        f"shape_of_{init}": (
            functools.partial(make, KEY, 3),
            f"{init}: expected a shape, a sequence of integers >= 0, got 3; pass a tuple such",
        )
        for init, make in {
            "zeros": initializers.zeros,
            "constant": initializers.constant(1.0),
            "identity": initializers.identity(),
            "sparse": initializers.sparse(0.5),
            "dirac": initializers.dirac(),
            "variance_scaling": initializers.he_normal,
        }.items()
    },
    **{
        f"key_{said}": (
            functools.partial(initializers.uniform(), key, (4, 4)),
            f"uniform: expected one random key, got {said}; make it with jax.random.key(seed)",
        )
        for key, said in [(0, "0"), (jax.random.split(KEY, 3), "key<fry> [3]")]
    },
    **{
        f"dtype_{dtype}": (
            functools.partial(init, KEY, (4, 4), dtype),
            f"{name}: expected a floating dtype, got {dtype!r}; draw float32 values, and convert",
        )
        for name, init, dtype in [
            ("normal", initializers.normal(), "int32"),
            ("orthogonal", initializers.orthogonal(), "int8"),
        ]
    },
    "no_key": (
        lambda: initializers.sparse(0.5)(None, (4, 4)),
        "sparse: expected a random key, got None; pass jax.random.key(seed)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_of_a_mistake(name):
    wrong, message = MISTAKES[name]
    with pytest.raises((ValueError, PathError), match="^" + re.escape(message)):
        wrong()


# The output of a new layer has the variance of its input.


def _measured(layer, shape, part=lambda y: y, **inputs):
    """The variance of y for independent x of variance 1, of weights that `lecun_normal` draws."""

    def draw(seed, shape):
        return array(np.random.default_rng(seed).standard_normal(shape))

    given = {name: draw(2, shape) for name, shape in inputs.items()}
    x = draw(1, shape)

    @jax.jit
    def output(key, x, given):
        params, state = layer.init(key, x, **given)
        return layer.apply(params, state, x, **given)[0]

    return float(part(np.asarray(output(KEY, x, given))).var())


def _inside(edge):
    """Without borders, where the window sees padding."""
    return lambda y: y[:, edge:-edge, edge:-edge]


def _driven(cell):
    """What the gates of a cell are given by x."""
    return fdl.network(
        lambda f, x: f.cell(x),
        cell=fdl.Layer(
            "cell",
            lambda key, x: (cell.init(key, x), {}),
            lambda params, state, x, *, key=None, train=False: (cell.drive(params, x), state),
        ),
    )


FANS = {
    "dense": (fdl.dense(300), (400, 100)),
    "einsum_dense": (fdl.einsum_dense("btd,dhk->bthk", {"h": 6, "k": 40}), (20, 20, 100)),
    "einsum_dense_of_two": (fdl.einsum_dense("bthk,hkd->btd", {"d": 200}), (20, 20, 10, 10)),
    "einsum_dense_each": (fdl.einsum_dense("bhk,hkf->bhf", {"f": 50}), (400, 6, 50)),
    "bilinear": (fdl.bilinear(200), (400, 20), None, {"other": (400, 15)}),
    "conv": (fdl.conv(64, (3, 3)), (16, 16, 16, 32), _inside(2)),
    "conv_strided": (fdl.conv(64, (3, 3), stride=2), (16, 24, 24, 32), _inside(2)),
    "conv_options": (
        fdl.conv(128, (5, 3), dilation=2, groups=4, padding="VALID"),
        (8, 20, 20, 128),
    ),
    "depthwise_conv": (fdl.depthwise_conv((3, 3), multiplier=4), (8, 12, 12, 512), _inside(2)),
    "separable_conv": (fdl.separable_conv(256, (3, 3)), (8, 12, 12, 256), _inside(2)),
    **{
        f"conv_transpose_{kernel}_{stride}": (
            fdl.conv_transpose(32, (kernel, kernel), stride=stride, **options),
            (8, 12, 12, 64),
            _inside(4 * stride),
        )
        for kernel, stride, options in [
            (3, 1, {}),
            (4, 2, {}),
            (3, 2, {"groups": 2}),
            (5, 4, {}),
            (3, 4, {}),
            (3, 2, {"dilation": 3}),
        ]
    },
    "conv_transpose_of_sequences": (
        fdl.conv_transpose(64, (4,), stride=2, padding=1),
        (16, 20, 128),
        lambda y: y[:, 4:-4],
    ),
    "simple_cell": (_driven(fdl.simple_cell(200)), (20, 20, 100)),
    "lstm_cell": (_driven(fdl.lstm_cell(100)), (20, 20, 100)),
    "gru_cell": (_driven(fdl.gru_cell(100)), (20, 20, 100)),
    "embedding": (fdl.embedding(300, 100), (400, 100)),
}


@pytest.mark.parametrize("name", FANS)
def test_the_output_of_a_new_layer_has_the_variance_of_its_input(name):
    layer, shape, *rest = FANS[name]
    part, inputs = (*rest, None, None)[:2]
    variance = _measured(layer, shape, part or (lambda y: y), **(inputs or {}))
    assert abs(variance - 1) < 0.05, variance


def test_every_part_of_a_layer_has_the_fan_of_its_own_input():
    """Keys and values are made of the context, `out` of the heads, each expert of its tokens."""
    layer = fdl.attention(8, cross=True, kv_heads=4, head_features=20)
    ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    params, _ = jax.jit(layer.init)(KEY, ones(1, 4, 150), context=ones(1, 4, 250))
    for name, fan in {"q": 150, "k": 250, "v": 250, "out": 160}.items():
        w = np.asarray(params[name]["w"])
        assert w.shape[0] == fan
        assert abs(float(w.var()) * fan - 1) < 0.05
    experts, _ = jax.jit(fdl.mixture_of_experts(fdl.dense(100), 4).init)(KEY, ones(1, 4, 50))
    variances = np.asarray(experts["experts"]["w"]).var((1, 2)) * 50
    np.testing.assert_allclose(variances, 1, atol=0.1)
    model = fdl.low_rank(fdl.conv(64, (3, 3)), "w", rank=16, a_init=initializers.lecun_normal)
    params, _ = jax.jit(model.init)(KEY, ones(1, 8, 8, 32))
    assert abs(float(np.var(params["low_rank"]["w"]["a"])) * 9 * 32 - 1) < 0.05


def test_every_layer_with_weights_to_draw_is_measured():
    made = {**vars(fdl.layers), **vars(fdl.layers.cells)}
    named = {
        name
        for name, make in made.items()
        if inspect.isfunction(make)
        and name[0] != "_"
        and "w_init" in inspect.signature(make).parameters
    }
    elsewhere = {"attention", "learned_positions"}  # the latter is no map from x to y
    assert named - elsewhere <= FANS.keys() | {"conv_transpose"}


def test_only_initializers_with_fans_use_the_share():
    """A standard deviation given by the user also holds in a transposed convolution."""
    x = np.ones((1, 4, 4, 32), np.float32)

    def drawn(init):
        layer = fdl.conv_transpose(64, (4, 4), stride=4, w_init=init)
        return np.asarray(jax.jit(layer.init)(KEY, x)[0]["w"])

    for init in (initializers.normal(0.02), initializers.uniform(0.02 * 3**0.5)):
        assert abs(float(drawn(init).std()) / 0.02 - 1) < 0.02
    for init, gain in (
        (initializers.he_uniform, 2),
        (initializers.scaled(initializers.lecun_normal, 3.0), 9),
    ):
        assert abs(float(drawn(init).var()) * 32 / gain - 1) < 0.05
    w = jax.jit(initializers.lecun_normal, static_argnums=1)
    plain, shared = w(KEY, (4, 16, 16)), w(KEY, Shared((4, 16, 16), 0.25))
    np.testing.assert_allclose(shared, 2 * np.asarray(plain), rtol=1e-6)


def test_a_shape_with_shares():
    shape = (3, 2, 7, 5)
    assert initializers.fans(Shared(shape, 0.5, 0.25)) == (21, 7.5)
    assert Shared(shape) == shape and hash(Shared(shape)) == hash(shape)
    assert Shared(shape, 0.5) != Shared(shape) and shape != Shared(shape, outputs=0.5)


SEEDED_BUGS = {
    "fdl/initializers/structured.py": (
        "initializers/test_initializers.py -k mistake",
        [("@named_in_errors\ndef sparse(", "def sparse(")],
    ),
    "fdl/checks.py": (
        "initializers/test_initializers.py optim/optimizers/test_optimizers.py "
        "test_messages.py layers/test_pooling.py losses test_laws.py "
        "-k option_or_mistake_or_told_or_number_or_refused_or_numpy",
        [
            (
                "return float(value) if is_concrete_number(value) else jnp.asarray(value, dtype)",
                "return value",
            ),
            ("if is_concrete_number(value) else jnp.sqrt(value)", "if True else 0"),
            ("return is_concrete_number(value) and value == 0", "return not value"),
            ("bad = all(map(is_concrete_number, pair)) and not order", "bad = not order"),
            ("isinstance(value, Integral)", "isinstance(value, int)"),
            ("and not isinstance(value, bool) and", "and"),
            ("if not jnp.issubdtype(x.dtype, jnp.inexact)", "if False"),
            ("np.all(above & below)", "np.all(above)"),
            ("np.all(above & below)", "np.any(above & below)"),
            ("if not is_number(value)", "if False"),
            ("return not isinstance(value, bool)", "return True"),
            ("return float(value) if is_concrete_number(value) else value", "return value"),
        ],
    ),
}
