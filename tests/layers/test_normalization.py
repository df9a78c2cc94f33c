"""Norms against torch, Flax and float64 formulas: values, every gradient, running statistics."""

import functools
import os
import subprocess
import sys

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled

UNLIKE = {
    "scale_init": fdl.initializers.normal(0.8),
    "bias_init": fdl.initializers.normal(0.7),
    "epsilon": 0.03,
}


def _masked(layer):
    """`layer` over the places where context is not far below 0."""
    return fdl.network(lambda f, x, *, context: f.norm(x, mask=context > -1), norm=layer)


LAYERS = {
    "batch_norm": LayerCase(
        lambda: fdl.batch_norm(momentum=0.7, unbiased=True, name="running", **UNLIKE), (5, 3)
    ),
    "layer_norm": LayerCase(lambda: fdl.layer_norm(**UNLIKE), (3, 5)),
    "layer_norm_of_images": LayerCase(
        lambda: _masked(fdl.layer_norm(axes=(-3, -1), **UNLIKE)),
        *((2, 3, 2, 4), np.float32, {"context": (2, 3, 1, 1)}),
    ),
    "batch_norm_masked": LayerCase(
        lambda: _masked(fdl.batch_norm(momentum=0.7, **UNLIKE)),
        *((4, 3, 2), np.float32, {"context": (4, 3, 1)}),
    ),
    "rms_norm": LayerCase(
        lambda: fdl.rms_norm(scale_init=fdl.initializers.uniform(2.0), epsilon=0.01), (3, 5)
    ),
    "group_norm": LayerCase(lambda: fdl.group_norm(2, **UNLIKE), (3, 2, 4)),
    "instance_norm": LayerCase(lambda: fdl.instance_norm(**UNLIKE), (2, 4, 3)),
}


KEY = jax.random.key(0)
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
in_both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def features(seed, *shape, dtype="float32"):
    """Values whose mean and spread differ from channel to channel."""
    rng = np.random.default_rng(seed)
    channels = np.arange(1, shape[-1] + 1)
    return array(rng.standard_normal(shape) * channels**0.5 + channels - 2.5, dtype)


def weights_like(y):
    return np.cos(np.arange(y.size) * 1.3).reshape(y.shape)


def assert_near(ours, theirs, dtype):
    """The largest error, relative to the largest value, within the bound of the dtype."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= TOLERANCE[dtype] * abs(theirs).max()


@functools.cache
def torch():
    return pytest.importorskip("torch", reason="torch is not here: norms were not held against it")


def to_torch(x):
    """Channels second, as torch has them."""
    return torch().tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@functools.cache
def passing(layer, train):
    """(params, x, state) -> (gradients by params and x, (y, new state)); see `passed`."""

    def loss(params, x, state):
        y, new_state = layer.apply(params, state, x, train=train)
        return (weights_like(y).astype(y.dtype) * jnp.sin(y)).sum(), (y, new_state)

    return compiled(jax.grad(loss, (0, 1), has_aux=True))


def passed(layer, params, state, x, train=True):
    """(y, new state, gradients by params and x) of a loss in which every element counts apart."""
    gradients, (y, new_state) = passing(layer, train)(params, x, state)
    return y, new_state, gradients


def in_training(x, *layers):
    """(y, new state) of a training pass of each layer from its start, by one program."""
    return compiled(
        lambda x: [layer.apply(*layer.init(KEY, x), x, train=True) for layer in layers]
    )(x)


def torch_passed(f, x, **params):
    """(y, gradients by params, gradient by x) of the same loss in torch."""
    x = to_torch(x)
    leaves = {name: torch().tensor(np.asarray(p), requires_grad=True) for name, p in params.items()}
    y = f(x, **leaves)
    weight = torch().tensor(np.moveaxis(weights_like(from_torch(y)), -1, 1).copy(), dtype=y.dtype)
    (weight * torch().sin(y)).sum().backward()
    grads = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return from_torch(y), grads, from_torch(x.grad)


def assert_as_torch(layer, f, x, dtype):
    params, state = layer.init(KEY, x)
    y, _, (by_params, by_x) = passed(layer, params, state, x)
    their_y, their_params, their_x = torch_passed(f, x, **params)
    assert_near(y, their_y, dtype)
    assert_near(by_x, their_x, dtype)
    assert by_params.keys() == their_params.keys()
    for name, gradient in by_params.items():
        assert_near(gradient, their_params[name], dtype)


# Batch norm.


@in_both_dtypes
@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_equals_torch_over_several_steps(dtype, unbiased):
    """torch's running variance is the unbiased one; with few values the two are far apart."""
    with jax.enable_x64(dtype == "float64"):
        layer = fdl.batch_norm(momentum=0.7, unbiased=unbiased, **UNLIKE)
        x = features(0, 3, 2, 2, 4, dtype=dtype)
        params, state = layer.init(KEY, x)
        n = 3 * 2 * 2
        mean, variance = np.zeros(4), np.ones(4)
        theirs = {"running_mean": torch().zeros(4, dtype=getattr(torch(), dtype))}
        theirs["running_var"] = torch().ones(4, dtype=getattr(torch(), dtype))
        step = torch().nn.functional.batch_norm
        for seed in range(4):
            x = features(seed, 3, 2, 2, 4, dtype=dtype)
            y, state, (by_params, by_x) = passed(layer, params, state, x)
            their_y, their_params, their_x = torch_passed(
                lambda x, scale, bias: step(
                    x, weight=scale, bias=bias, training=True, momentum=0.3, eps=0.03, **theirs
                ),
                x,
                **params,
            )
            assert_near(y, their_y, dtype)
            assert_near(by_x, their_x, dtype)
            for name, gradient in by_params.items():
                assert_near(gradient, their_params[name], dtype)
            flat = np.asarray(x, np.float64).reshape(-1, 4)
            mean = 0.7 * mean + 0.3 * flat.mean(0)
            variance = 0.7 * variance + 0.3 * flat.var(0, ddof=int(unbiased))
            assert_near(state["mean"], mean, dtype)
            assert_near(state["variance"], variance, dtype)
        assert_near(state["mean"], theirs["running_mean"], dtype)
        if unbiased:
            assert_near(state["variance"], theirs["running_var"], dtype)
        else:
            gap = np.asarray(state["variance"] - 0.7**4) / (theirs["running_var"].numpy() - 0.7**4)
            np.testing.assert_allclose(gap, (n - 1) / n, rtol=1e-4)
        y, kept, _ = passed(layer, params, state, x, train=False)
        their_y, *_ = torch_passed(
            lambda x: step(
                x,
                weight=torch().tensor(np.asarray(params["scale"])),
                bias=torch().tensor(np.asarray(params["bias"])),
                running_mean=torch().tensor(np.asarray(state["mean"])),
                running_var=torch().tensor(np.asarray(state["variance"])),
                eps=0.03,
            ),
            x,
        )
        assert_near(y, their_y, dtype)
        np.testing.assert_array_equal(kept["mean"], state["mean"])


def test_batch_norm_equals_flax_over_several_steps(standard_promotion):
    layer = fdl.batch_norm(momentum=0.8, **UNLIKE)
    other = flax.linen.BatchNorm(momentum=0.8, epsilon=0.03, use_fast_variance=False)
    params, state = layer.init(KEY, features(0, 5, 3))
    theirs = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    train = jax.jit(functools.partial(layer.apply, train=True))
    moving = {"use_running_average": False, "mutable": ["batch_stats"]}
    their_train = jax.jit(functools.partial(other.apply, **moving))
    for seed in range(3):
        x = features(seed, 5, 3)
        y, state = train(params, state, x)
        their_y, moved = their_train({"params": params, "batch_stats": theirs}, x)
        theirs = moved["batch_stats"]
        assert_near(y, their_y, "float32")
        assert_near(state["mean"], theirs["mean"], "float32")
        assert_near(state["variance"], theirs["var"], "float32")
    evaluate = jax.jit(functools.partial(other.apply, use_running_average=True))
    evaluated = evaluate({"params": params, "batch_stats": theirs}, x)
    assert_near(jax.jit(layer.apply)(params, state, x)[0], evaluated, "float32")


def test_by_default_the_running_statistics_keep_nine_tenths():
    x = features(3, 6, 2)
    layer = fdl.batch_norm()
    ((y, state),) = in_training(x, layer)
    flat = np.asarray(x, np.float64)
    assert_near(state["mean"], 0.1 * flat.mean(0), "float32")
    assert_near(state["variance"], 0.9 + 0.1 * flat.var(0), "float32")
    assert_near(y, (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), "float32")


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
import fdl
from jax.sharding import NamedSharding, PartitionSpec

x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)) * [1, 2, 3] + [0, 5, 9], "float32")
layer = fdl.batch_norm(unbiased=True)
params, state = layer.init(jax.random.key(0), x)
step = jax.jit(lambda x: layer.apply(params, state, x, train=True))
mesh = jax.make_mesh((4,), ("batch",))
apart = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
assert len(apart.sharding.device_set) == 4
together, spread = step(x), step(apart)
for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
assert abs(together[0][:2].mean()) > 0.1
"""


def test_a_batch_on_several_devices_has_one_mean_without_naming_an_axis():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_value_for_each_channel_is_refused_in_training():
    layer = fdl.batch_norm()
    x = array(np.ones((1, 1, 3)))
    params, state = layer.init(KEY, x)
    message = (
        r"^net/batch_norm_0: expected at least 2 values for each channel in training, got x "
        r"\[1, 1, 3\], whose variance would be 0; use a larger batch, or use layer_norm or "
        r"group_norm"
    )
    net = fdl.chain(net=fdl.chain(layer))
    wrapped = ({"net": {"batch_norm_0": params}}, {"net": {"batch_norm_0": state}})
    for call in (net.apply, jax.jit(net.apply, static_argnames="train")):
        with pytest.raises(fdl.PathError, match=message):
            call(*wrapped, x, train=True)
    assert jax.jit(layer.apply)(params, state, x)[0].shape == x.shape


# Norms of one example.


@in_both_dtypes
def test_layer_norm_equals_torch(dtype):
    with jax.enable_x64(dtype == "float64"):
        norm = torch().nn.functional.layer_norm

        def theirs(x, scale, bias):
            return norm(x.movedim(1, -1), (6,), scale, bias, eps=0.03).movedim(-1, 1)

        x = features(1, 2, 3, 6, dtype=dtype)
        assert_as_torch(fdl.layer_norm(**UNLIKE), theirs, x, dtype)


@in_both_dtypes
def test_rms_norm_equals_torch(dtype):
    with jax.enable_x64(dtype == "float64"):
        norm = torch().nn.functional.rms_norm

        def theirs(x, scale):
            return norm(x.movedim(1, -1), (6,), scale, eps=0.03).movedim(-1, 1)

        x = features(2, 2, 3, 6, dtype=dtype)
        layer = fdl.rms_norm(scale_init=UNLIKE["scale_init"], epsilon=0.03)
        assert_as_torch(layer, theirs, x, dtype)


@in_both_dtypes
@pytest.mark.parametrize("shape", [(3, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_group_norm_equals_torch(dtype, shape):
    with jax.enable_x64(dtype == "float64"):
        norm = torch().nn.functional.group_norm
        x = features(3, *shape, dtype=dtype)
        assert_as_torch(
            fdl.group_norm(3, **UNLIKE),
            lambda x, scale, bias: norm(x, 3, scale, bias, eps=0.03),
            x,
            dtype,
        )


@in_both_dtypes
def test_instance_norm_equals_torch(dtype):
    with jax.enable_x64(dtype == "float64"):
        norm = torch().nn.functional.instance_norm
        x = features(4, 2, 3, 4, 5, dtype=dtype)
        assert_as_torch(
            fdl.instance_norm(**UNLIKE),
            lambda x, scale, bias: norm(x, weight=scale, bias=bias, eps=0.03),
            x,
            dtype,
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda: fdl.layer_norm(**UNLIKE),
            flax.linen.LayerNorm(epsilon=0.03, use_fast_variance=False),
        ),
        (
            lambda: fdl.rms_norm(scale_init=UNLIKE["scale_init"], epsilon=0.03),
            flax.linen.RMSNorm(epsilon=0.03),
        ),
        (
            lambda: fdl.group_norm(2, **UNLIKE),
            flax.linen.GroupNorm(2, epsilon=0.03, use_fast_variance=False),
        ),
        (
            lambda: fdl.instance_norm(**UNLIKE),
            flax.linen.InstanceNorm(epsilon=0.03, use_fast_variance=False),
        ),
    ],
    ids=["layer", "rms", "group", "instance"],
)
def test_a_norm_equals_flax(ours, theirs, standard_promotion):
    layer, x = ours(), features(5, 2, 4, 6)
    params, _ = layer.init(KEY, x)

    def loss(f):
        return jax.jit(jax.value_and_grad(lambda p, x: (f(p, x) * weights_like(x)).sum(), (0, 1)))

    value, (by_params, by_x) = loss(lambda p, x: layer.apply(p, {}, x)[0])(params, x)
    their, (their_params, their_x) = loss(lambda p, x: theirs.apply({"params": p}, x))(params, x)
    np.testing.assert_allclose(value, their, rtol=1e-5)
    assert_near(by_x, their_x, "float32")
    for name, gradient in by_params.items():
        assert_near(gradient, their_params[name], "float32")


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "instance_norm"])
def test_a_far_mean_cancels_nothing(norm):
    """Around 3,000 with a spread of 1 the mean of squares less the squared mean is off by 1 %."""
    rng = np.random.default_rng(0)
    x = array(rng.standard_normal((4, 50, 60)) + 3000)
    layer = getattr(fdl, norm)()
    ((y, _),) = in_training(x, layer)
    axis = {"batch_norm": (0, 1), "layer_norm": (2,), "instance_norm": (1,)}[norm]
    exact = np.asarray(x, np.float64)
    exact = exact - exact.mean(axis, keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=2e-3)


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "rms_norm", "instance_norm"])
def test_narrow_inputs_are_measured_in_float32(norm):
    """In bfloat16 a sum of 2,000 ones stops at 256, and a running mean does not move."""
    x = np.random.default_rng(0).random((2, 2000, 2)).astype(np.float32) + np.float32(1)
    x = (x.swapaxes(1, 2) if norm in ("layer_norm", "rms_norm") else x).astype(jnp.bfloat16)
    layer = getattr(fdl, norm)()

    def both(x):
        passes = (x, x.astype(jnp.float32))
        return [layer.apply(*layer.init(KEY, x), x, train=True) for x in passes]

    (y, state), (exact, _) = compiled(both)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32")}


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "rms_norm", "instance_norm"])
def test_a_constant_input_has_a_finite_gradient(norm):
    layer, x = getattr(fdl, norm)(), np.full((2, 3, 4), 7.0, np.float32)
    params, state = layer.init(KEY, x)
    y, _, gradients = passed(layer, params, state, np.zeros_like(x))
    assert np.isfinite(y).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_scale_and_bias_can_be_left_out():
    x = features(6, 3, 4)
    for norm in (fdl.batch_norm, fdl.layer_norm, functools.partial(fdl.group_norm, 2)):
        both, none = norm(), norm(scale=False, bias=False)
        assert list(both.init(KEY, x)[0]) == ["scale", "bias"]
        assert list(norm(bias=False).init(KEY, x)[0]) == ["scale"]
        assert none.init(KEY, x)[0] == {}
        of_none, of_both = in_training(x, none, both)
        np.testing.assert_array_equal(of_none[0], of_both[0])
    assert fdl.rms_norm(scale=False).init(KEY, x)[0] == {}


def test_scale_and_bias_have_different_keys():
    normal = fdl.initializers.normal(1.0)
    layer = fdl.layer_norm(scale_init=normal, bias_init=normal)
    params, _ = layer.init(KEY, np.ones((2, 50), np.float32))
    assert (np.asarray(params["scale"]) != np.asarray(params["bias"])).all()


# At the ends of float32.

SIZES = {
    "float16": [6e4, 1.0, 1e-4],
    "bfloat16": [3e38, 3e20, 1.0, 3e-25],
    "float32": [3e38, 3e20, 1.0, 1e-3, 3e-25],
    "float64": [1e308, 1e200, 1.0, 1e-200],
}
NORMS = {
    "layer_norm": (fdl.layer_norm, (2,)),
    "rms_norm": (fdl.rms_norm, (2,)),
    "group_norm": (functools.partial(fdl.group_norm, 1), (1, 2)),
    "instance_norm": (fdl.instance_norm, (1,)),
    "batch_norm": (fdl.batch_norm, (0, 1)),
    "standardize": (lambda: fdl.function(fdl.activations.standardize), (2,)),
}
over_norms = pytest.mark.parametrize("norm", NORMS)


def normalized(norm, x):
    """A function of x alone, in training."""
    layer = NORMS[norm][0]()
    params, state = layer.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return lambda x: layer.apply(params, state, x, train=True)[0]


def exactly(norm, x, weight=None):
    """The formula in 80 bits, whose squares do not overflow; with a weight, the gradient by x."""
    axes, exact = NORMS[norm][1], np.asarray(x).astype(np.longdouble)
    apart = exact if norm == "rms_norm" else exact - exact.mean(axes, keepdims=True)
    root = np.sqrt((apart**2).mean(axes, keepdims=True) + 1e-5)
    y = apart / root
    if weight is None:
        return y.astype(np.float64)
    moved = weight if norm == "rms_norm" else weight - weight.mean(axes, keepdims=True)
    return ((moved - y * (y * weight).mean(axes, keepdims=True)) / root).astype(np.float64)


@over_norms
@pytest.mark.parametrize("dtype", SIZES)
def test_a_norm_and_its_gradient_are_the_formula_at_any_size(norm, dtype):
    """All sizes at once by `vmap`: what one of them asks for does not touch another."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        plain = rng.uniform(-1, 1, (3, 8, 4))
        x = array(np.stack([size * plain for size in SIZES[dtype]]), dtype)
        weight = array(rng.standard_normal(plain.shape), dtype)
        f = normalized(norm, jax.ShapeDtypeStruct(plain.shape, dtype))

        @compiled
        def both(x):
            y, back = jax.vjp(jax.vmap(f), x)
            return y, back(jnp.broadcast_to(weight, x.shape))[0]

        y, gradient = both(x)
        assert y.dtype == gradient.dtype == jnp.dtype(dtype)
        eps, least = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
        for place, each in enumerate(np.asarray(x)):
            exact = exactly(norm, each)
            np.testing.assert_allclose(
                np.asarray(y[place], np.float64),
                exact,
                rtol=4 * eps,
                atol=4 * eps * abs(exact).max(),
            )
            slopes = exactly(norm, each, np.asarray(weight, np.longdouble))
            bound = 8 * eps * abs(slopes).max() + 4 * least
            np.testing.assert_allclose(
                np.asarray(gradient[place], np.float64), slopes, rtol=0, atol=bound
            )


@over_norms
def test_a_norm_of_two_far_numbers_is_one_of_each_sign(norm):
    """Summing every second number first would give infinity minus infinity."""
    signs = (-1.0) ** np.arange(64)
    both = signs[:4, None, None] * signs[:, None] * signs
    x = array(both * np.array([3e20, 3e38])[:, None, None, None])
    y = jax.jit(jax.vmap(normalized(norm, x[0])))(x)
    np.testing.assert_allclose(y, np.sign(x), rtol=1e-6)


@over_norms
def test_a_constant_is_normalized_to_exactly_zero(norm):
    """A mean in float32 is off by some units in the last place, each of them large beside 0."""
    values = np.float32([123.456, 4097.3, 1e6 + 0.7, -3e38, 1e-30])
    x = np.broadcast_to(values[:, None, None, None], (5, 10, 40, 1000))
    y = compiled(jax.vmap(normalized(norm, x[0])))(x)
    if norm == "rms_norm":
        expected = [exactly(norm, each[:1, :1, :1])[0, 0, 0] for each in x]
        np.testing.assert_allclose(y[:, 3, 2, 1], expected, rtol=1e-6)
    else:
        assert (y == 0).all()


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm", "instance_norm", "standardize"])
def test_a_norm_of_nearly_equal_numbers_is_the_formula(norm):
    rng = np.random.default_rng(0)
    base = np.float32([4097.3, -1e6, 1e8, 1e30]).reshape(4, 1, 1, 1)
    ulp = np.spacing(abs(base))
    steps = rng.integers(-3, 4, (4, 30, 50))
    alone = np.zeros_like(steps)  # all are equal but one
    alone[1, 2, 3] = 1
    f = compiled(jax.vmap(normalized(norm, np.zeros(steps.shape, np.float32))))
    for apart in (steps, alone):
        x = (np.float64(base) + ulp * apart).astype(np.float32)
        for y, each in zip(f(x), x, strict=True):
            exact = exactly(norm, each)
            np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-6 * abs(exact).max())


def test_a_running_variance_that_float32_cannot_hold_is_its_largest_number():
    largest = float(jnp.finfo(jnp.float32).max)
    x = np.float32([[3e20, 3e38, 5.0], [-3e20, 2e38, 7.0]])
    for unbiased, own in ((False, 1.0), (True, 2.0)):
        layer = fdl.batch_norm(momentum=0.75, unbiased=unbiased)
        params, state = layer.init(KEY, x)
        train = jax.jit(functools.partial(layer.apply, train=True))
        _, state = train(params, state, x)
        np.testing.assert_allclose(state["mean"], [0, 0.25 * 2.5e38, 0.25 * 6], rtol=1e-6)
        expected = [0.25 * largest, 0.25 * largest, 0.75 + 0.25 * own]
        np.testing.assert_allclose(state["variance"], expected, rtol=1e-6)
        for _ in range(30):
            _, state = train(params, state, x)
        y, _ = jax.jit(layer.apply)(params, state, np.concatenate([x, -x]))
        assert np.isfinite(state["variance"]).all() and np.isfinite(y).all()


@pytest.mark.slow
def test_second_derivatives_of_a_norm_far_from_zero():
    with jax.enable_x64(True):
        x = np.random.default_rng(1).standard_normal((2, 3, 4)) * 1e4 + 3e4
        for norm in NORMS:
            f = normalized(norm, x)
            weight = np.cos(np.arange(24.0)).reshape(2, 3, 4)
            total = jax.jit(lambda x, f=f, w=weight: (w * f(1e4 * x)).sum())
            check_grads(total, (x / 1e4,), 2)


def test_norms_of_empty_arrays_are_empty():
    for norm, shape in [("layer_norm", (2, 3, 0)), ("instance_norm", (2, 0, 3))]:
        x = np.zeros(shape, np.float32)
        assert jax.jit(normalized(norm, x))(x).shape == shape


# Several axes, and masks.


@in_both_dtypes
def test_layer_norm_of_several_axes_equals_torch(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = features(0, 2, 3, 2, 4, dtype=dtype)
        layer = fdl.layer_norm(axes=(-2, -1), **UNLIKE)
        params, state = layer.init(KEY, x)
        assert params["scale"].shape == (2, 4)
        norm = torch().nn.functional.layer_norm
        y, _, (by_params, by_x) = passed(layer, params, state, x)
        own = {
            name: torch().tensor(np.asarray(p), requires_grad=True) for name, p in params.items()
        }
        x2 = torch().tensor(np.asarray(x), requires_grad=True)
        y2 = norm(x2, (2, 4), weight=own["scale"], bias=own["bias"], eps=0.03)
        weight = torch().tensor(weights_like(y2.detach().numpy()), dtype=y2.dtype)
        (weight * torch().sin(y2)).sum().backward()
        assert_near(y, y2.detach().numpy(), dtype)
        assert_near(by_x, x2.grad.numpy(), dtype)
        for name, gradient in by_params.items():
            assert_near(gradient, own[name].grad.numpy(), dtype)


def test_norms_of_axes_apart_and_in_any_order_are_the_formula():
    x = features(0, 2, 3, 2, 4)
    exact, over = np.asarray(x, np.float64), (1, 3)
    for layer, centre, spread in [
        (fdl.layer_norm(axes=[-1, -3], **UNLIKE), exact.mean(over, keepdims=True), exact.var),
        (fdl.rms_norm(axes=(-3, -1), epsilon=0.03), 0, lambda *a, **k: (exact**2).mean(*a, **k)),
    ]:
        params, state = layer.init(KEY, x)
        expected = (exact - centre) / np.sqrt(spread(over, keepdims=True) + 0.03)
        expected = expected * np.asarray(params["scale"])[:, None]
        if "bias" in params:
            expected = expected + np.asarray(params["bias"])[:, None]
        assert params["scale"].shape == (3, 4)
        assert_near(jax.jit(layer.apply)(params, state, x)[0], expected, "float32")


def test_masked_batch_norm_equals_flax_and_reads_nothing_behind_the_mask(standard_promotion):
    layer = fdl.batch_norm(momentum=0.8, **UNLIKE)
    other = flax.linen.BatchNorm(momentum=0.8, epsilon=0.03, use_fast_variance=False)
    params, state = layer.init(KEY, features(0, 5, 4, 3))
    theirs = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    weight = np.cos(np.arange(60, dtype=np.float32)).reshape(5, 4, 3)

    @compiled
    def ours(params, state, x, mask):
        def loss(params, x):
            y, new = layer.apply(params, state, x, mask=mask, train=True)
            return (weight * jnp.sin(y)).sum(), (y, new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    @compiled
    def of_flax(params, theirs, x, mask):
        def loss(params, x):
            own = {"params": params, "batch_stats": theirs}
            y, new = other.apply(
                own, x, mask=mask, use_running_average=False, mutable=["batch_stats"]
            )
            y = jnp.where(mask, y, 0)
            return (weight * jnp.sin(y)).sum(), (y, new["batch_stats"])

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    for seed in range(2):
        x = np.asarray(features(seed, 5, 4, 3))
        mask = np.asarray(features(9 + seed, 5, 4, 1)) > -1.5
        spoilt = np.where(mask, x, np.float32(np.nan))
        gradients, (y, state) = ours(params, state, spoilt, mask)
        (by_params, by_x), (their_y, theirs) = of_flax(params, theirs, x, mask)
        assert_near(y, their_y, "float32")
        assert_near(gradients[1], np.where(mask, by_x, 0), "float32")
        for name in by_params:
            assert_near(gradients[0][name], by_params[name], "float32")
        assert_near(state["mean"], theirs["mean"], "float32")
        assert_near(state["variance"], theirs["var"], "float32")
    apply = compiled(layer.apply)
    y, _ = apply(params, state, spoilt, mask=mask)
    assert_near(y, np.where(mask, apply(params, state, x)[0], 0), "float32")


@pytest.mark.parametrize("unbiased", [True, False])
def test_an_empty_batch_moves_no_running_statistics(unbiased):
    layer = fdl.batch_norm(unbiased=unbiased, **UNLIKE)
    x = np.asarray(features(0, 4, 2, 3))
    params, state = jax.tree.map(np.asarray, layer.init(KEY, x))

    def loss(params, x, mask):
        y, new = layer.apply(params, state, x, mask=mask, train=True)
        return jnp.cos(y).sum(), (y, new)

    slopes = compiled(jax.grad(loss, (0, 1), has_aux=True))
    for batch, mask in ((x, np.zeros((4, 1, 1), bool)), (x[:0], None)):
        (by_params, by_x), (y, new) = slopes(params, batch, mask)
        assert jax.tree.map(np.array_equal, new, state) == {"mean": True, "variance": True}
        assert y.shape == batch.shape
        for each in (y, by_x, *by_params.values()):
            assert (each == 0).all()
    # One value alone has the variance 0.
    one = np.zeros((4, 2, 1), bool)
    one[1, 0] = True
    _, (y, new) = slopes(params, x, one)
    assert_near(y[1, 0], params["bias"], "float32")
    assert_near(new["variance"], 0.9 * state["variance"], "float32")


def test_masked_norms_of_an_example_are_the_formula_over_what_counts():
    x = np.asarray(features(0, 2, 5, 2, 4))
    mask = np.asarray(features(7, 2, 5, 1, 1)) > -1.5
    mask[:, 0] = True
    whole = np.broadcast_to(mask, x.shape)
    exact = np.where(whole, np.float64(x), 0)

    def formula(parts, counts, axes, centred=True):
        n = counts.sum(axes, keepdims=True)
        mean = parts.sum(axes, keepdims=True) / n if centred else 0
        square = ((parts - mean) ** 2 * counts).sum(axes, keepdims=True) / n
        return (parts - mean) / np.sqrt(square + 0.03)

    halves = [each.reshape(2, 5, 2, 2, 2) for each in (exact, whole)]
    for layer, expected in [
        (fdl.instance_norm(**UNLIKE), formula(exact, whole, (1, 2))),
        (fdl.group_norm(2, **UNLIKE), formula(*halves, (1, 2, 4)).reshape(x.shape)),
        (fdl.layer_norm(axes=(-3, -1), bias=False, epsilon=0.03), formula(exact, whole, (1, 3))),
        (fdl.rms_norm(axes=(-3, -2), epsilon=0.03), formula(exact, whole, (1, 2), False)),
    ]:
        params, state = layer.init(KEY, x, mask=mask)
        shape = {(5, 4): (5, 1, 4), (5, 2): (5, 2, 1)}.get(params["scale"].shape, (4,))
        expected = expected * np.asarray(params["scale"]).reshape(shape)
        if "bias" in params:
            expected = expected + np.asarray(params["bias"])
        y, _ = jax.jit(layer.apply)(params, state, np.where(mask, x, np.float32(np.inf)), mask=mask)
        assert_near(y, np.where(whole, expected, 0), "float32")


# Messages.

IMAGES = array(np.ones((2, 4, 4, 6)))


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (
            fdl.layer_norm(),
            jnp.ones((2, 3), jnp.uint8),
            r"layer_norm: expected x of a floating dtype, got uint8 \[2, 3\]; convert x with "
            r"x\.astype\(jnp\.float32\), or use rescale\(1 / 255\) as the first layer$",
        ),
        (
            fdl.layer_norm(),
            jnp.ones(()),
            r"layer_norm: expected x \[\.\.\., C\], got \[\]; give x that shape$",
        ),
        (
            fdl.batch_norm(),
            jnp.ones(3),
            r"batch_norm: expected x \[B, \.\.\., C\], got \[3\]; give x that shape$",
        ),
        (
            fdl.instance_norm(),
            jnp.ones((4, 3)),
            r"instance_norm: expected x \[B, \.\.\., T, C\], got \[4, 3\]; give x that shape$",
        ),
        (
            fdl.group_norm(4),
            IMAGES,
            r"group_norm: expected a number of channels that is a multiple of 4 groups, got 6 "
            r"channels of x \[2, 4, 4, 6\]; choose groups as a divisor of 6$",
        ),
    ],
)
def test_inputs_that_a_norm_refuses(layer, x, message):
    with pytest.raises(fdl.PathError, match="^" + message):
        layer.init(KEY, x)


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm", "rms_norm", "instance_norm"])
def test_a_norm_refuses_another_width(norm):
    layer = getattr(fdl, norm)()
    params, state = layer.init(KEY, IMAGES)
    message = (
        rf"^{norm}: expected x \[.*, 6\], got \[2, 4, 4, 5\]; give x that shape, or make new "
        r"params with init"
    )
    for call in (layer.apply, jax.jit(layer.apply)):
        with pytest.raises(fdl.PathError, match=message):
            call(params, state, np.asarray(IMAGES)[..., :5])


def test_numbers_out_of_range():
    with pytest.raises(
        ValueError,
        match=r"^batch_norm: expected momentum in \[0, 1\], got 1\.1; pass 0\.9 to average over "
        r"about ten batches$",
    ):
        fdl.batch_norm(momentum=1.1)
    with pytest.raises(
        ValueError,
        match=r"^group_norm: expected groups >= 1, an integer, got 0; pass 1 to normalize all",
    ):
        fdl.group_norm(0)
    for norm in ("batch_norm", "layer_norm", "rms_norm", "instance_norm"):
        message = (
            rf"^{norm}: expected epsilon > 0, got 0; pass a number such as 1e-5; with 0, a "
            rf"constant input would give NaN$"
        )
        with pytest.raises(ValueError, match=message):
            getattr(fdl, norm)(epsilon=0)


@pytest.mark.parametrize("axes", [0, (-1, -1), (), "-1", (-1, 2)])
def test_axes_out_of_range_are_refused(axes):
    for norm in ("layer_norm", "rms_norm"):
        message = (
            rf"^{norm}: expected axes to be negative and distinct, got .*; pass -1 to normalize "
            rf"each vector, or \(-3, -2, -1\) to normalize each image$"
        )
        with pytest.raises(ValueError, match=message):
            getattr(fdl, norm)(axes=axes)


def test_a_norm_refuses_axes_that_do_not_fit_its_weights():
    layer = fdl.layer_norm(axes=(-2, -1))
    params, state = layer.init(KEY, IMAGES)
    message = (
        r"^layer_norm: expected x \[\.\.\., 4, 6\], got \[2, 4, 3, 6\]; give x that shape, or make "
        r"new params with init$"
    )
    with pytest.raises(fdl.PathError, match=message):
        layer.apply(params, state, np.asarray(IMAGES)[:, :, :3])


def test_a_mask_of_the_wrong_shape_or_dtype_is_refused():
    layer = fdl.batch_norm()
    message = (
        r"^batch_norm: expected mask to be bool \[2, 4, 4, 6\], where any axis may have size 1, "
        r"got {}; if the mask has no channel axis, pass mask\[\.\.\., None\]; all layers of a "
        r"chain get the same mask: if another one needs a different mask, write a network that "
        r"passes each layer its own$"
    )
    for mask, got in ((np.ones((2, 4, 4), bool), r"bool \[2, 4, 4\]"), (IMAGES, r"float32 .*")):
        with pytest.raises(fdl.PathError, match=message.format(got)):
            layer.init(KEY, IMAGES, mask=mask)


SEEDED_BUGS = {
    "fdl/layers/normalization.py": (
        "layers/test_normalization.py",
        [
            ("momentum * old + (1 - momentum) * new", "(1 - momentum) * old + momentum * new"),
            ("variance * _over_one_less(count, variance.dtype)", "variance"),
            ("if unbiased:", "if True:"),
            (
                "jnp.minimum(variance * _over_one_less(count, variance.dtype), most)",
                "variance * _over_one_less(count, variance.dtype)",
            ),
            ('widened(x) / 2 - state["mean"] / 2', '(widened(x) - state["mean"]) / 2'),
            ("tuple(range(x.ndim - 1))", "(0,)"),
            ("if not train or x.size == 0:", "if train or x.size == 0:"),
            ("if not train or x.size == 0:", "if not train:"),
            ("jnp.where(count > 0, new[name], state[name])", "new[name]"),
            ("jnp.maximum(count - 1, 1)", "(count - 1)"),
            ("wide(x.dtype)\n", "x.dtype\n"),
            ("over = tuple(range(1, x.ndim - 1))", "over = ()"),
            ("over = tuple(range(1, x.ndim - 1))", "over = tuple(range(x.ndim - 1))"),
            ("deviations(x, over, epsilon, mask, groups)", "deviations(x, over, epsilon, mask)"),
            ("tuple(range(1, x.ndim - 1))", "tuple(range(x.ndim - 1))"),
            (
                "over_root_mean_square(x, over, epsilon, mask)",
                "deviations(x, over, epsilon, mask).standard(epsilon)",
            ),
            (
                "over_root_mean_square(x, over, epsilon, mask)",
                "over_root_mean_square(x, over, epsilon)",
            ),
            ("deviations(x, over, epsilon, mask)", "deviations(x, over, epsilon)"),
            (
                "deviations(x, over, epsilon, mask, groups)",
                "deviations(x, over, epsilon, groups=groups)",
            ),
            ("tuple(sorted(map(int, found)))", "tuple(map(int, found))"),
            ("subkey(key, leaf)", "key"),
            ("jnp.where(mask, x, 0), mask", "x, mask"),
            ("y if mask is None else jnp.where(mask, y, 0)", "y"),
            ("if axis in self.features else 1", "if True else 1"),
        ],
    ),
    "fdl/ops/numerics.py": (
        "layers/test_normalization.py losses/test_losses.py layers/test_reparametrization.py",
        [
            ("jnp.clip(mean, low, high)", "mean"),
            ("jnp.where(jnp.isfinite(mean), mean, low / 2 + high / 2)", "mean"),
            ("jnp.square(left)", "0"),
            ("(self.apart - self.mean)", "self.apart"),
            (
                "added = in_dtype(epsilon, square.dtype) * inverse * inverse",
                "added = in_dtype(epsilon, square.dtype)",
            ),
            ("low, high = (jnp.where(nothing, 0, end) for end in (low, high))", "pass"),
            ("jnp.where(mask, x, 0).sum(", "x.sum("),
            ("_within(groups, jnp.sum, mask.sum(", "(mask.sum("),
            ("_within(groups, jnp.min, fixed.min(", "(fixed.min("),
            ("_within(groups, jnp.max, fixed.max(", "(fixed.max("),
            ("_within(groups, jnp.mean, x.mean(", "(x.mean("),
            ("jnp.maximum(high / 2 - half, half - low / 2)", "(high - low) / 2"),
            ("jnp.minimum(variance, most)", "variance"),
            ("x / power_of_two(largest(x, axes, keepdims=True))\n    square", "x\n    square"),
            ("jnp.where(square == 0, 1, square)", "square"),
        ],
    ),
}
