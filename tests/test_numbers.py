"""Exact numbers of layers, activations, initializers, losses and metrics, against oracles."""

import functools
import math

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import sklearn.metrics

import fdl
from fdl.losses import check_targets
from tests.programs import array, compiled
from tests.registry import ACTIVATIONS, INITIALIZERS, LOSSES

KEY = jax.random.key(0)


def normals(seed, *shape, dtype=np.float32):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


# Dense.


def dense_by_hand(w, b, x):
    """relu(x @ w + b) in float64, by three loops."""
    rows, width = x.shape
    y = np.zeros((rows, w.shape[1]))
    for n in range(rows):
        for j in range(w.shape[1]):
            total = float(b[j])
            for i in range(width):
                total += float(w[i, j]) * float(x[n, i])
            y[n, j] = max(total, 0.0)
    return y


def test_dense_is_three_loops():
    net = fdl.chain(fdl.dense(3, b_init=fdl.initializers.normal(1.0)), fdl.relu)
    x = normals(1, 5, 4)
    params, state = net.init(KEY, x)
    w, b = params["dense_0"]["w"], params["dense_0"]["b"]
    y, _ = jax.jit(net.apply)(params, state, x)
    expected = dense_by_hand(*map(np.asarray, (w, b, x)))
    assert (expected == 0).any() and (expected > 0).any()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_dense_is_the_formula():
    net = fdl.chain(layer=fdl.dense(3, b_init=fdl.initializers.normal(1.0)), relu=fdl.relu)
    x, weight = normals(1, 5, 4), np.asarray(normals(2, 5, 3), np.float64)
    params, state = net.init(KEY, x)

    def loss(params, x):
        return (weight.astype(np.float32) * net.apply(params, state, x)[0]).sum()

    found, by_x = compiled(jax.grad(loss, (0, 1)))(params, x)
    w, b, x = map(np.asarray, (params["layer"]["w"], params["layer"]["b"], x))
    open_ = weight * (dense_by_hand(w, b, x) > 0)
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(found["layer"]["w"], x64.T @ open_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["layer"]["b"], open_.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_x, open_ @ w64.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_dense_is_the_dense_of_flax(bias, standard_promotion):
    x = normals(3, 2, 5, 4)
    layer = fdl.dense(3, bias=bias, b_init=fdl.initializers.normal(1.0))
    params, state = layer.init(KEY, x)
    assert list(params) == (["w", "b"] if bias else ["w"])
    other = flax.linen.Dense(3, use_bias=bias)
    theirs = {"kernel": params["w"], **({"bias": params["b"]} if bias else {})}

    def ours_loss(params, x):
        y, _ = layer.apply(params, state, x)
        return jnp.sin(y).sum(), y

    def their_loss(params, x):
        y = other.apply({"params": params}, x)
        return jnp.sin(y).sum(), y

    (ours, our_x), y = compiled(jax.grad(ours_loss, (0, 1), has_aux=True))(params, x)
    (their, their_x), their_y = compiled(jax.grad(their_loss, (0, 1), has_aux=True))(theirs, x)
    np.testing.assert_allclose(y, their_y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(our_x, their_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours["w"], their["kernel"], rtol=1e-5, atol=1e-6)
    if bias:
        np.testing.assert_allclose(ours["b"], their["bias"], rtol=1e-5, atol=1e-6)


def test_rescale_and_flatten():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) * 10
    y, half, flat, one = compiled(
        lambda pixels, whole, numbers: [
            layer.apply({}, {}, x)[0]
            for layer, x in (
                (fdl.rescale(1 / 255, -0.25), pixels),
                (fdl.rescale(0.5, 1.0, dtype=jnp.bfloat16), whole),
                (fdl.flatten(), pixels),
                (fdl.flatten(), numbers),
            )
        ]
    )(pixels, np.int32([3, 4]), np.arange(3, dtype=np.float32))
    np.testing.assert_allclose(y, pixels / 255.0 - 0.25, rtol=1e-6, atol=1e-7)
    assert half.dtype == jnp.bfloat16 and half.tolist() == [2.5, 3.0]
    np.testing.assert_array_equal(flat, pixels.reshape(2, 12))
    np.testing.assert_array_equal(one, [[0.0], [1.0], [2.0]])


# Dropout.


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_rate_of_dropout_is_the_probability_of_dropping(rate):
    n = 40_000
    x = 2 + np.arange(n, dtype=np.float32) / n
    layer = fdl.dropout(rate)
    y = compiled(lambda x: layer.apply({}, {}, x, key=KEY, train=True)[0])(x)
    dropped = y == 0
    assert abs(dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(y[~dropped], x[~dropped] / (1 - rate), rtol=1e-6)
    # Each unit adds x^2 rate / (1 - rate) to the variance of the sum.
    error = math.sqrt(float((x**2).sum()) * rate / (1 - rate)) / n
    assert abs(float(y.mean() - x.mean())) < 4 * error
    # Neighbours are dropped independently.
    both = (dropped[1:] & dropped[:-1]).mean()
    assert abs(both - rate**2) < 6 * rate / math.sqrt(n)
    assert layer.apply({}, {}, x)[0] is x


def test_the_gradient_of_dropout_is_its_mask():
    layer = fdl.dropout(0.25)

    def total(x):
        y, _ = layer.apply({}, {}, x, key=KEY, train=True)
        return y.sum(), y

    gradient, y = compiled(jax.grad(total, has_aux=True))(normals(4, 50))
    np.testing.assert_allclose(gradient, np.where(y == 0, 0, 1 / 0.75), rtol=1e-6)


def test_dropout_draws_a_mask_for_every_member_of_a_batch():
    y = compiled(lambda x: fdl.dropout(0.5).apply({}, {}, x, key=KEY, train=True)[0])(
        np.ones((2, 200), np.float32)
    )
    assert 0.3 < (y[0] != y[1]).mean() < 0.7


# Activations.

POINTS = np.concatenate([np.linspace(-12, 12, 61), [-88.0, 1e-6, -1e-6, 0.1, 95.0]]).reshape(6, 11)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_slope_are_the_formula(name):
    case = ACTIVATIONS[name]
    weight = np.ones(())
    if case.over is not None:
        weight = np.expand_dims(np.arange(float(POINTS.shape[case.over])), 1 + case.over)

    @jax.jit
    def both(x):
        return case.f(x), jax.grad(lambda x: (case.f(x) * weight).sum())(x)

    with jax.enable_x64(True):
        y, slope = both(POINTS)
        np.testing.assert_allclose(y, case.oracle(POINTS), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(slope, case.slope(POINTS), rtol=1e-10, atol=1e-12)
    single = jax.jit(case.f)(POINTS.astype(np.float32))
    inexact = case.oracle(POINTS.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(single, inexact, rtol=1e-5, atol=1e-6)


def test_the_corner_of_relu():
    x = np.float32([-1.0, -0.0, 0.0, 1e-30, 2.0, np.inf, -np.inf, np.nan])
    relu = compiled(fdl.relu)
    np.testing.assert_array_equal(relu(x), [0, 0, 0, np.float32(1e-30), 2, np.inf, 0, np.nan])
    slope = compiled(jax.vmap(jax.grad(fdl.relu)))(x[:7])
    np.testing.assert_array_equal(slope, [0, 0, 0, 1, 1, 1, 0])
    assert relu(np.int32([-3, 4])).tolist() == [0, 4]


def test_probabilities_sum_to_one_along_their_axis():
    x = np.asarray(normals(5, 3, 4, 5)) * np.float32(50)
    found, last = compiled(
        lambda x: ([fdl.softmax(x, axis=axis) for axis in (0, 1, -1, 2)], fdl.softmax(x))
    )(x)
    for axis, chances in zip((0, 1, -1, 2), found, strict=True):
        np.testing.assert_allclose(chances.sum(axis), 1, rtol=1e-5)
    np.testing.assert_array_equal(last, found[-1])


def test_the_two_forms_of_gelu_differ_by_less_than_a_thousandth():
    both = compiled(lambda x: (fdl.gelu(x), fdl.gelu(x, approximate=False)))
    difference = np.abs(np.subtract(*both(np.float32([-2.3, 0.7, 2.1]))))
    assert (difference > 1e-5).all() and (difference < 1e-3).all()


# Initializers.

SHAPES = {"dense": (96, 160), "convolution": (3, 5, 24, 40)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_an_initializer_has_the_moments_it_promises(name, shape):
    case = INITIALIZERS[name]
    field = math.prod(shape[:-2])
    fan_in, fan_out = shape[-2] * field, shape[-1] * field
    if name == "orthogonal":
        fan_in, fan_out = shape[-2] * field, shape[-1]
    w = np.asarray(case.init(jax.random.key(11), shape), np.float64)
    variance = case.variance(fan_in, fan_out)
    if not case.random:
        assert (w == case.mean).all() and variance == 0
        return
    # The variance of the squares: 2 for normal values, 4 / 5 for uniform ones, less for orthogonal.
    spread = math.sqrt((2 if case.limit is None else 0.8) / w.size)
    assert abs(w.mean() - case.mean) < 3 * math.sqrt(variance / w.size)
    assert abs((w**2).mean() / variance - 1) < 3 * spread + 1e-6
    if case.limit is not None:
        limit = case.limit * math.sqrt(variance)
        assert 0.99 * limit < abs(w).max() <= limit * (1 + 1e-6)
    elif name != "orthogonal":
        assert abs(w).max() > 3.3 * math.sqrt(variance)


@pytest.mark.parametrize("name", [n for n, case in INITIALIZERS.items() if case.oracle])
def test_an_initializer_has_the_distribution_of_jax(name, standard_promotion):
    """Compares samples; jax's normal ones are truncated, so these are compared by variance."""
    case = INITIALIZERS[name]
    shape = SHAPES["convolution"]
    ours = np.asarray(case.init(jax.random.key(1), shape)).ravel()
    theirs = np.asarray(case.oracle(jax.random.key(2), shape, jnp.float32)).ravel()
    if not case.random:
        np.testing.assert_array_equal(ours, theirs)
    elif case.limit is not None or name == "normal":
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
    else:
        assert abs(ours.var() / theirs.var() - 1) < 6 * math.sqrt(2 / ours.size)
        exact = scipy.stats.norm(0, ours.std())
        assert scipy.stats.kstest(ours, exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_truncated_variances_agree_with_jax_for_every_fan(mode, standard_promotion):
    shape = (3, 30, 60)
    ours = np.asarray(fdl.initializers.variance_scaling(1.3, mode, "normal")(KEY, shape))
    theirs = jax.nn.initializers.variance_scaling(1.3, mode, "truncated_normal")(KEY, shape)
    theirs = np.asarray(theirs)
    assert abs(ours.var() / theirs.var() - 1) < 6 * math.sqrt(2 / ours.size)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (2, 3, 4)])
def test_orthogonal_rows_or_columns(shape):
    matrix = np.asarray(fdl.initializers.orthogonal(1.5)(KEY, shape)).reshape(-1, shape[-1])
    product = matrix.T @ matrix if len(matrix) >= shape[-1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 2.25 * np.eye(len(product)), atol=1e-5)


def test_orthogonal_matrices_are_uniform():
    """Without Mezzadri's signs the diagonal has a mean that is not 0."""
    draw = jax.jit(jax.vmap(lambda key: fdl.initializers.orthogonal()(key, (3, 3))))
    many = np.asarray(draw(jax.random.split(KEY, 4000)))
    # Each element has mean 0 and variance 1/3.
    assert (abs(many.mean(0)) < 4 * math.sqrt(1 / 3 / 4000)).all()
    assert abs(np.linalg.det(many).mean()) < 4 / math.sqrt(4000)


def test_fans():
    assert fdl.initializers.fans((7, 5)) == (7, 5)
    assert fdl.initializers.fans((3, 2, 7, 5)) == (42, 30)


def test_unknown_modes_and_distributions_are_refused():
    scaling = fdl.initializers.variance_scaling
    with pytest.raises(
        ValueError,
        match=r"^variance_scaling: expected mode fan_in, fan_out or fan_avg, got 'fan_on'; use ",
    ):
        scaling(1.0, "fan_on", "normal")
    with pytest.raises(
        ValueError,
        match=r"^variance_scaling: expected distribution normal or uniform, got 'cauchy'; for ",
    ):
        scaling(1.0, "fan_in", "cauchy")


def test_the_signal_survives_fifty_layers():
    depth, width = 50, 512
    w_init = fdl.initializers.he_normal
    net = fdl.chain(*[fdl.chain(fdl.dense(width, w_init=w_init), fdl.relu)] * depth)
    x = normals(6, 16, width)
    params, state = net.init(jax.random.key(2), x)
    y, _ = compiled(net.apply)(params, state, x)
    # He keeps the mean square: E[relu(z)^2] = var(z) / 2 = mean square of the layer's input.
    assert 1 / 4 < (y**2).mean() / (np.asarray(x) ** 2).mean() < 4


# Losses.


def test_softmax_cross_entropy_by_hand():
    logits = np.log(np.float32([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    nats = jax.jit(fdl.softmax_cross_entropy)
    loss = nats(logits + 7, np.int32([2, 1]))
    np.testing.assert_allclose(loss, -np.log([0.5, 0.3]), rtol=1e-5)
    stacked = nats(logits.reshape(2, 1, 3), np.int32([[2], [1]]))
    np.testing.assert_allclose(stacked, -np.log([[0.5], [0.3]]), rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_label_out_of_range_gives_nan(wrap):
    logits = normals(9, 6, 3)
    labels = array([0, -1, 3, 2, 1000, -(2**31)], np.int32)
    loss = np.asarray(wrap(fdl.softmax_cross_entropy)(logits, labels))
    assert np.isnan(loss).tolist() == [False, True, True, False, True, True]
    exact = LOSSES["softmax_cross_entropy"].oracle
    rows = np.array([0, 3])
    np.testing.assert_allclose(
        loss[rows], exact(np.asarray(logits, np.float64)[rows], np.array([0, 2])), rtol=1e-5
    )
    assert np.isnan(wrap(lambda: fdl.softmax_cross_entropy(logits, labels).mean())())


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [("uint8", 10), ("int8", 127), ("int8", 200), ("uint8", 256), ("uint8", 300), ("uint32", 300)],
)
def test_labels_of_any_integer_dtype(dtype, classes):
    """Labels of 256 classes may be uint8."""
    most = min(classes - 1, int(np.iinfo(dtype).max))
    labels = np.array([0, 1, most // 2, most])
    logits = normals(0, 4, classes)
    loss = jax.jit(fdl.softmax_cross_entropy)(logits, array(labels, dtype))
    expected = LOSSES["softmax_cross_entropy"].oracle(np.asarray(logits, np.float64), labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    best = np.asarray(logits).argmax(-1)
    accuracy = compiled(fdl.accuracy)
    right = accuracy(logits, array(np.minimum(best, most), dtype))
    np.testing.assert_array_equal(right, (best <= most).astype(np.float32))
    shifted = array(np.eye(classes)[-1:])
    for wrong in range(4):
        assert accuracy(shifted, array([wrong], dtype)).tolist() == [0.0]


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_labels_that_are_not_integers_are_refused(dtype):
    message = (
        rf"^softmax_cross_entropy: expected integer labels \[2\] for logits \[2, 3\], got {dtype}"
    )
    with pytest.raises(fdl.PathError, match=message + r" \[2\]; pass one label for each row of"):
        fdl.softmax_cross_entropy(np.ones((2, 3), np.float32), np.ones(2, dtype))


def test_check_targets_names_the_first_wrong_target():
    logits = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    check = functools.partial(check_targets, fdl.softmax_cross_entropy, logits)
    assert check(np.array([0, 1, 2, 0])) is None
    told = r"^softmax_cross_entropy: expected labels in \[0, 3\), got {} at row {}; give the last "
    end = r"layer one output for each class, correct the labels, or pass the label to ignore as "
    end += r"ignore_index$"
    with pytest.raises(ValueError, match=told.format(3, 1) + end):
        check(np.array([0, 3, -1, 2]))
    with pytest.raises(ValueError, match=told.format(-1, 2) + end):
        check(np.array([0, 2, -1, 7], np.int8))
    with pytest.raises(ValueError, match=told.format(9, 0) + end):
        check_targets(
            functools.partial(fdl.softmax_cross_entropy), logits, np.array([[9, 1], [0, 0]])
        )
    sigmoid = functools.partial(check_targets, fdl.sigmoid_cross_entropy, logits)
    assert sigmoid(np.array([[0.0, 1.0, 0.5]])) is None
    with pytest.raises(
        ValueError,
        match=r"^sigmoid_cross_entropy: expected targets in \[0, 1\], got 1\.5 at row 1; rescale ",
    ):
        sigmoid(np.array([[0.0, 1.0], [0.2, 1.5]]))
    with pytest.raises(
        ValueError, match=r"^sigmoid_cross_entropy: .* got -0\.25 at row 0; rescale "
    ):
        sigmoid(np.array([[0.0, -0.25], [0.2, 1.5]]))
    assert check_targets(fdl.squared_error, logits, np.array([-5.0])) is None
    assert check_targets(lambda p, t: p, logits, np.array([-5])) is None


# Metrics.


def test_accuracy_is_that_of_scikit_learn():
    logits, labels = normals(10, 200, 7), np.random.default_rng(1).integers(0, 7, 200)
    accuracy = compiled(fdl.accuracy)
    found = accuracy(logits, np.int32(labels))
    assert found.dtype == np.float32
    predicted = np.asarray(logits).argmax(-1)
    np.testing.assert_array_equal(found, (predicted == labels).astype(np.float32))
    expected = sklearn.metrics.accuracy_score(labels, predicted)
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-6)
    assert 0.05 < expected < 0.3
    tie = array([[1.0, 2.0, 2.0], [np.nan, 0.0, 3.0], [0.0, 1.0, np.nan]])
    assert accuracy(tie, np.int32([1, 2, 2])).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(
        fdl.PathError,
        match=r"^accuracy: expected integer labels \[3\] for logits \[3, 3\], got float32 \[3, 3\]",
    ):
        fdl.accuracy(tie, tie)


def test_the_confusion_matrix_is_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    predicted, labels = rng.integers(0, 5, 300), rng.integers(0, 4, 300)
    labels[:150] = np.minimum(predicted[:150], 3)
    found = fdl.confusion_matrix(jnp.asarray(predicted), labels, 6)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(6))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    assert (found != found.T).any()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int64", "uint64"])
def test_the_confusion_matrix_of_any_integer_dtype(dtype):
    found = fdl.confusion_matrix(np.array([2, 1], dtype), np.array([0, 1], dtype), 100)
    assert found[0, 2] == found[1, 1] == 1 and found.sum() == 2


def test_the_confusion_matrix_of_nothing_is_zero():
    assert fdl.confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_the_confusion_matrix_refuses_other_shapes_and_classes():
    with pytest.raises(
        ValueError,
        match=r"^confusion_matrix: expected predicted \[N\] and labels \[N\], got \[2, 2\] and ",
    ):
        fdl.confusion_matrix(np.ones((2, 2)), np.ones(2), 2)
    told = r"^confusion_matrix: expected classes in \[0, 2\), got {} to {}; increase classes, or "
    for predicted, low, high in [([0, 2], 0, 2), ([-1, 0], -1, 1)]:
        with pytest.raises(ValueError, match=told.format(low, high) + "correct the labels$"):
            fdl.confusion_matrix(predicted, [0, 1], 2)


def test_optax_agrees_that_its_l2_loss_is_half(standard_promotion):
    both = compiled(lambda p, t: (fdl.squared_error(p, t), 2 * optax.l2_loss(p, t)))
    np.testing.assert_allclose(*both(normals(11, 5), normals(12, 5)), rtol=1e-6)


SEEDED_BUGS = {
    "fdl/layers/linear.py": (
        "test_numbers.py core/test_layer.py test_laws.py",
        [
            ('return (y + params["b"] if bias else y), state', "return y, state"),
            ('y = product(x, params["w"])', 'y = x @ params["w"] * 0.999'),
            ('w_init(subkey(key, "w")', "w_init(key"),
            ('b_init(subkey(key, "b"), (features,), x.dtype)', "b_init(key, (features,))"),
        ],
    ),
    "fdl/layers/reshaping.py": (
        "test_numbers.py",
        [
            ("* scale + offset", "* scale - offset"),
            ("x.reshape(x.shape[0], ", "x.T.reshape(x.shape[0], "),
        ],
    ),
    "fdl/activations/rectifiers.py": (
        "test_numbers.py activations/test_activations.py",
        [
            ("jnp.where(x <= 0, jnp.zeros_like(x), x)", "jnp.maximum(x, jnp.zeros_like(x))"),
            ("jnp.where(x <= 0, jnp.zeros_like(x), x)", "jnp.where(x < 0, jnp.zeros_like(x), x)"),
            ("clipped(x, 0.0, 6.0)", "clipped(x, 0.0, 6.5)"),
            ('jax.nn.celu(x, like(x, "celu"', 'jax.nn.elu(x, like(x, "celu"'),
            ("x - size * jnp.sign(x)", "x - size"),
            ('jax.nn.elu(x, like(x, "elu", "alpha", alpha))', "jax.nn.elu(x, alpha)"),
        ],
    ),
    "fdl/activations/sigmoids.py": (
        "test_numbers.py",
        [
            ("clipped(x + 3, 0.0, 6.0) / 6", "clipped(x + 2.5, 0.0, 5.0) / 5"),
            ("x / (1 + jnp.abs(x))", "x / (1 + x)"),
        ],
    ),
    "fdl/activations/smooth.py": (
        "test_numbers.py activations/test_activations.py",
        [
            ("x * sigmoid(x))", "x * sigmoid(1.702 * x))"),
            ("if not approximate:", "if False:"),
            ("jnp.clip(y, -12, 12)", "y"),
            ("jnp.clip(y, -12, 12)", "jnp.clip(y, -4, 4)"),
            ("x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x", "x"),
            (
                "jnp.maximum(y, 0) + constant / 2 / (size + root)",
                "(y + jnp.sqrt(jnp.square(y) + constant)) / 2",
            ),
        ],
    ),
    "fdl/activations/softmax_and_gates.py": (
        "test_numbers.py activations/test_activations.py",
        [
            ("jax.nn.softmax(x, axis=axis)", "jax.nn.softmax(x)"),
            ("deviations(x, (axis,), epsilon)", "deviations(x, (-1,), epsilon)"),
            ("return value * gate(opening)", "return opening * gate(value)"),
            ("(total - 1)", "(jax.lax.stop_gradient(total) - 1)"),
            ("1 + ranks * falling >", "ranks * falling >"),
        ],
    ),
    "fdl/initializers/fan_counts.py": (
        "test_numbers.py",
        [
            (
                "shape[-2] * field * inputs, shape[-1] * field * outputs",
                "shape[-1] * field, shape[-2] * field",
            ),
            ("shape[-2] * field * inputs, shape[-1] * field * outputs", "shape[-2], shape[-1]"),
        ],
    ),
    "fdl/initializers/distributions.py": (
        "test_numbers.py initializers/test_initializers.py",
        [
            ("square_root(3 * variance)", "square_root(variance)"),
            ('_named("he_normal", 2.0', '_named("he_normal", 1.0'),
            ("dtype, -1, 1)", "dtype, 0, 1)"),
            ("(fan_in + fan_out) / 2}", "(fan_in + fan_out)}"),
            ("key, lower, upper, shape", "key, -upper, upper, shape"),
            ("* first).astype(dtype))", "* first))"),
            ("values).astype(dtype)", "values)"),
            ("values = jax.lax.optimization_barrier(draw(*given))", "values = draw(*given)"),
            ('== "threefry2x32"', "is not None"),
            ("enough *= 4", "enough += FEW"),
        ],
    ),
    "fdl/initializers/structured.py": (
        "test_numbers.py initializers/test_initializers.py",
        [
            ("jnp.sign(jnp.diagonal(r))", "1"),
            ("size // 2 for size", "0 for size"),
            ("outputs // groups, dtype", "outputs, dtype"),
            ("math.ceil(decimal(share) * shape[0])", "math.floor(share * shape[0])"),
            (".argsort(0)", ".argsort(1)"),
            ("jnp.asarray(scale, dtype) * jnp.eye", "jnp.eye"),
            ("jnp.asarray(scale, dtype) * jnp.eye", "scale * jnp.eye"),
            ("jnp.asarray(factor, w.dtype) * w", "w"),
            ("jnp.asarray(factor, w.dtype) * w", "factor * w"),
        ],
    ),
    "fdl/losses/shapes.py": (
        "test_numbers.py losses/test_losses.py test_laws.py",
        [
            ("jnp.full_like(loss, jnp.nan)", "jnp.zeros_like(loss)"),
            ("(weights == 0) & jnp.isinf(nats)", "weights == 0"),
            ("return bounded(*primals), tangents[0]", "return bounded(*primals), 0 * tangents[0]"),
            ("labels.dtype.itemsize >= 4", "True"),
            ("x if x.dtype == jnp.float64 else x.astype(jnp.float32)", "x"),
        ],
    ),
    "fdl/metrics/classification.py": (
        "test_numbers.py metrics/test_metrics.py",
        [
            ("jnp.where(jnp.isnan(logits).any(-1), -1, place)", "place"),
            ("labels.astype(np.int64) * classes + pr", "pr"),
            ("((logits == label_logit) & earlier)", "(logits == own)"),
            ("ratio(right, predicted)", "ratio(right, true)"),
            ('if average != "macro"', 'if average == "binary"'),
            ("cells.at[rows, columns]", "cells.at[columns, rows]"),
            ("if classes not in (None, logits.shape[-1]):", "if False:"),
            ("~above & (targets == 0) & ~jnp.isnan(logits)", "~above"),
            ("if jnp.shape(logits)[-1:] == (1,):", "if False:"),
            ("all - predicted - true + right, all - true", "all - predicted - true, all - true"),
            ("logits > _threshold(", "logits >= _threshold("),
            ("jnp.zeros((classes, classes), weight.dtype)", "jnp.zeros((classes, classes))"),
        ],
    ),
}
