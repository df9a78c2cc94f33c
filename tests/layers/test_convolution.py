"""Convolutions against torch, Flax and XLA's own gradients, in numbers; what CPU programs hold."""

import functools
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jax import export

import fdl
from fdl.ops import convolution, convolution_cpu
from fdl.ops.windows_and_padding import Window
from tests.entry_types import LayerCase
from tests.programs import array, compiled, waves

LAYERS = {
    "conv": LayerCase(lambda: fdl.conv(3, (2, 3)), (2, 4, 3, 2)),
    "conv_options": LayerCase(
        lambda: fdl.conv(
            4,
            (3, 2),
            stride=(2, 1),
            padding=((2, 0), 1),
            dilation=(1, 2),
            groups=2,
            w_init=fdl.initializers.he_uniform,
            b_init=fdl.initializers.normal(0.5),
            name="stem",
        ),
        (2, 2, 5, 3, 4),
    ),
    "conv_causal": LayerCase(
        lambda: fdl.conv(2, (3,), padding="CAUSAL", dilation=2, bias=False), (2, 5, 3)
    ),
    "conv_of_volumes": LayerCase(
        lambda: fdl.conv(2, (2, 1, 2), stride=2, padding="CIRCULAR"), (1, 3, 2, 4, 2)
    ),
    "conv_of_one_integer": LayerCase(lambda: fdl.conv(2, 2, stride=2), (2, 4, 3, 2)),
    "conv_transpose": LayerCase(lambda: fdl.conv_transpose(3, (3, 2), stride=2), (2, 2, 3, 2)),
    "conv_transpose_options": LayerCase(
        lambda: fdl.conv_transpose(
            4, (3,), stride=2, padding=1, output_padding=1, dilation=2, groups=2
        ),
        (2, 3, 6),
    ),
    "depthwise_conv": LayerCase(
        lambda: fdl.depthwise_conv((3, 2), multiplier=2, stride=(2, 1)), (2, 4, 3, 3)
    ),
    "separable_conv": LayerCase(
        lambda: fdl.separable_conv(3, (2, 2), padding="REFLECT"), (2, 3, 3, 2)
    ),
}


KEY = jax.random.key(0)
BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def normals(seed, *shape, dtype=np.float64):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_near(found, expected, bound):
    """The largest error relative to the largest number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def drawn(layer, x):
    """Parameters of the right shapes; without `init`, whose random numbers cost a compilation."""
    params, state = jax.eval_shape(layer.init, KEY, x)
    assert state == {}
    leaves, tree = jax.tree.flatten(params)
    moved = [normals(7 + i, *leaf.shape, dtype=x.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


def with_gradients(layer, params, x, dy):
    """y, and the gradients of sum(y * dy) by the parameters and by x, in one program."""

    @jax.jit
    def both(params, x, dy):
        y, back = jax.vjp(lambda params, x: layer.apply(params, {}, x)[0], params, x)
        return y, *back(dy)

    return both(params, x, dy)


# Torch.

PADDED = {"CIRCULAR": "circular", "REFLECT": "reflect", "EDGE": "replicate"}

# Sizes, channels, features and the arguments of conv, all of them away from their defaults.
CONVOLUTIONS = {
    "sequence": ((9,), 4, 6, (3,), {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}),
    "image": ((7, 8), 3, 5, (3, 2), {"stride": (2, 3), "padding": (1, 2), "dilation": (1, 2)}),
    "pairs": ((6, 5), 2, 3, (2, 3), {"padding": ((2, 0), (0, 1)), "stride": (1, 2)}),
    "groups": ((6, 5), 6, 9, (3, 2), {"padding": 1, "groups": 3, "stride": 2}),
    "narrow": ((20, 5), 6, 6, (3, 2), {"padding": (2, 1), "groups": 3, "dilation": (2, 1)}),
    "volume": ((4, 5, 3), 2, 4, (2, 3, 1), {"padding": (1, 0, 1), "stride": (1, 2, 2)}),
    "wide": ((4,), 2, 3, (2,), {"padding": ((3, 5),), "stride": 3}),
    "same": ((6, 5), 2, 3, (4, 3), {"padding": "SAME", "dilation": (1, 2)}),
    "valid": ((6, 5), 2, 3, (4, 3), {"padding": "VALID", "bias": False}),
    "circular": ((6, 5), 2, 3, (4, 3), {"padding": "CIRCULAR"}),
    "reflect": ((6, 5), 2, 3, (4, 3), {"padding": "REFLECT", "dilation": (1, 2)}),
    "edge": ((6,), 2, 3, (4,), {"padding": "EDGE"}),
}


def torch_conv(torch, x, w, b, rank, stride=1, padding=0, dilation=1, groups=1, bias=True):
    f = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d]
    x, w = x.movedim(-1, 1), w.movedim((-1, -2), (0, 1))
    if padding in PADDED:
        kernel = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[rank - 1](
            *(x.shape[1], w.shape[0], tuple(w.shape[2:]), stride),
            **{"padding": "same", "padding_mode": PADDED[padding], "dilation": dilation},
        ).double()
        y = torch.func.functional_call(kernel, {"weight": w, "bias": b}, (x,))
        return y.movedim(1, -1)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        x = torch.nn.functional.pad(x, [n for pair in reversed(padding) for n in pair])
        padding = 0
    named = padding.lower() if isinstance(padding, str) else padding
    return f[rank - 1](x, w, b, stride, named, dilation, groups).movedim(1, -1)


def by_torch(forward, *arrays, dy):
    torch = pytest.importorskip("torch", reason="no torch: convolution not checked against it")
    held = [torch.tensor(np.asarray(each, np.float64), requires_grad=True) for each in arrays]
    y = forward(torch, *held)
    y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return y.detach().numpy(), *(each.grad.numpy() for each in held)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv_is_the_convolution_of_torch(name, dtype):
    sizes, channels, features, kernel, kwargs = CONVOLUTIONS[name]
    with jax.enable_x64(dtype == "float64"):
        layer = fdl.conv(features, kernel, **kwargs)
        x = normals(1, 3, *sizes, channels, dtype=dtype)
        params = drawn(layer, x)
        dy = normals(2, *jax.eval_shape(layer.apply, params, {}, x)[0].shape, dtype=dtype)
        y, gradient, dx = with_gradients(layer, params, x, dy)
        b = params.get("b", np.zeros(features))
        forward = functools.partial(torch_conv, rank=len(sizes), **kwargs)
        y2, dx2, dw2, db2 = by_torch(forward, x, params["w"], b, dy=dy)
        assert_near(y, y2, BOUNDS[dtype])
        assert_near(dx, dx2, BOUNDS[dtype])
        assert_near(gradient["w"], dw2, BOUNDS[dtype])
        if "b" in params:
            assert_near(gradient["b"], db2, BOUNDS[dtype])


TRANSPOSED = {
    "sequence": ((5,), 4, 6, (3,), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    "image": (
        *((4, 3), 3, 2, (3, 4)),
        {"stride": (2, 3), "padding": (2, 1), "output_padding": (2, 1), "dilation": (3, 1)},
    ),
    "volume": ((3, 2, 2), 2, 3, (2, 1, 3), {"stride": (1, 2, 2), "padding": (0, 0, 1)}),
}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose_is_the_transposed_convolution_of_torch(name, dtype):
    sizes, channels, features, kernel, kwargs = TRANSPOSED[name]
    with jax.enable_x64(dtype == "float64"):
        layer = fdl.conv_transpose(features, kernel, **kwargs)
        x = normals(1, 3, *sizes, channels, dtype=dtype)
        params = drawn(layer, x)
        dy = normals(2, *jax.eval_shape(layer.apply, params, {}, x)[0].shape, dtype=dtype)
        y, gradient, dx = with_gradients(layer, params, x, dy)

        def forward(torch, x, w, b):
            rank = len(sizes)
            f = getattr(torch.nn.functional, f"conv_transpose{rank}d")
            x, w = x.movedim(-1, 1), w.movedim((-1, -2), (0, 1))
            return f(x, w, b, **kwargs).movedim(1, -1)

        y2, dx2, dw2, db2 = by_torch(forward, x, params["w"], params["b"], dy=dy)
        for found, expected in [(y, y2), (dx, dx2), (gradient["w"], dw2), (gradient["b"], db2)]:
            assert_near(found, expected, BOUNDS[dtype])


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_and_separable_are_convolutions_in_groups(multiplier):
    x = normals(1, 2, 5, 6, 3, dtype=np.float32)
    layer = fdl.separable_conv(4, (3, 2), multiplier=multiplier, stride=(2, 1), padding="VALID")
    params = drawn(layer, x)
    assert jax.tree.map(jnp.shape, params) == {
        "depthwise": {"w": (3, 2, 1, 3 * multiplier)},
        "pointwise": {"w": (1, 1, 3 * multiplier, 4), "b": (4,)},
    }
    dy = normals(2, *jax.eval_shape(layer.apply, params, {}, x)[0].shape, dtype=np.float32)
    y, gradient, dx = with_gradients(layer, params, x, dy)

    def forward(torch, x, deep, wide, b):
        none = torch.zeros(len(deep[0, 0, 0]), dtype=torch.float64)
        y = torch_conv(torch, x, deep, none, 2, stride=(2, 1), groups=3)
        return torch_conv(torch, y, wide, b, 2)

    w = params["depthwise"]["w"], params["pointwise"]["w"], params["pointwise"]["b"]
    y2, dx2, *dw2 = by_torch(forward, x, *w, dy=dy)
    found = gradient["depthwise"]["w"], gradient["pointwise"]["w"], gradient["pointwise"]["b"]
    for ours, theirs in zip((y, dx, *found), (y2, dx2, *dw2), strict=True):
        assert_near(ours, theirs, 1e-5)


# Flax, whose names for paddings are XLA's.


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "CAUSAL"])
def test_conv_is_the_convolution_of_flax(padding, standard_promotion):
    """Where the stride does not divide the size, which torch has no SAME for."""
    kernel = (4,) if padding == "CAUSAL" else (4, 3)
    x = normals(1, 2, *(9, 8)[: len(kernel)], 3, dtype=np.float32)
    layer = fdl.conv(5, kernel, stride=3, padding=padding)
    params = drawn(layer, x)
    other = flax.linen.Conv(5, kernel, strides=3, padding=padding)
    theirs = {"params": {"kernel": params["w"], "bias": params["b"]}}
    dy = normals(2, *jax.eval_shape(other.apply, theirs, x).shape, dtype=np.float32)
    ours, gradient, dx = with_gradients(layer, params, x, dy)

    @jax.jit
    def both(params, x):
        y, back = jax.vjp(other.apply, params, x)
        return y, *back(dy)

    y, by_params, by_x = both(theirs, x)
    assert_near(ours, y, 1e-5)
    assert_near(dx, by_x, 1e-5)
    assert_near(gradient["w"], by_params["params"]["kernel"], 1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [(1, 2), (3, 5)])
def test_conv_transpose_equals_flax_and_keras(padding, stride, standard_promotion):
    """Keras takes both sizes from the same rule as Flax; strides below and above the kernel."""
    x = normals(1, 2, 3, 4, 3, dtype=np.float32)
    layer = fdl.conv_transpose(5, (4, 3), stride=stride, padding=padding)
    params = drawn(layer, x)
    other = flax.linen.ConvTranspose(5, (4, 3), stride, padding, transpose_kernel=True)
    theirs = {"params": {"kernel": params["w"], "bias": params["b"]}}
    y = jax.jit(other.apply)(theirs, x)
    assert_near(jax.jit(layer.apply)(params, {}, x)[0], y, 1e-5)
    if padding == "SAME":
        assert y.shape[1:3] == (3 * stride[0], 4 * stride[1])


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (2, 1))])
def test_conv_transpose_is_the_gradient_of_conv_by_its_input(padding):
    with jax.enable_x64(True):
        up = fdl.conv_transpose(4, (3, 2), stride=2, padding=padding, bias=False, groups=2)
        down = fdl.conv(6, (3, 2), stride=2, padding=padding, bias=False, groups=2)
        x = normals(1, 2, 3, 4, 6)
        params = drawn(up, x)

        @jax.jit
        def both(params, x):
            y = up.apply(params, {}, x)[0]
            seen, back = jax.vjp(lambda y: down.apply(params, {}, y)[0], y)
            return y, seen, back(x)[0]

        y, seen, expected = both(params, x)
        assert seen.shape == x.shape
        assert_near(y, expected, 1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda of: fdl.conv(4, of((3, 2)), stride=of((1, 2)), padding=of((1, of((0, 2))))),
        lambda of: fdl.conv_transpose(4, of((3, 2)), stride=of((1, 2)), padding=of((1, 0))),
        lambda of: fdl.depthwise_conv(of((3, 2)), dilation=of((1, 2)), padding=of((1, 1))),
        lambda of: fdl.max_pool(of((3, 2)), stride=of((2, 1)), padding=of((1, of((0, 1))))),
        lambda of: fdl.average_pool(of((3, 2)), padding=of((of((0, 1)), 1))),
    ],
    ids=["conv", "conv_transpose", "depthwise_conv", "max_pool", "average_pool"],
)
def test_lists_of_numbers_mean_what_tuples_mean(make):
    x = array(np.random.default_rng(0).standard_normal((2, 5, 6, 3)))
    written, changed = make(tuple), []

    def listed(numbers):
        changed.append(list(numbers))
        return changed[-1]

    layer = make(listed)
    for numbers in changed:  # afterwards, which must not reach the layer
        numbers[:] = [7] * len(numbers)
    params, _ = written.init(jax.random.key(0), x)
    both = compiled(lambda *args: [each.apply(*args)[0] for each in (layer, written)])
    np.testing.assert_array_equal(*both(params, {}, x))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: fdl.conv(4, size(3), stride=2, groups=2),
        lambda size: fdl.depthwise_conv(size(2), multiplier=2, dilation=2),
        lambda size: fdl.separable_conv(3, size(2), padding="REFLECT"),
        lambda size: fdl.conv_transpose(4, size(3), stride=2, padding=1, output_padding=1),
    ],
    ids=["conv", "depthwise", "separable", "transpose"],
)
def test_one_integer_is_for_all_spatial_axes_of_x(make, rank):
    shape = (2, *(5, 4, 3)[:rank], 4)
    x = array(np.random.default_rng(0).standard_normal(shape))
    one, each = make(lambda n: n), make(lambda n: (n,) * rank)
    key = jax.random.key(1)
    params, state = one.init(key, jax.ShapeDtypeStruct(x.shape, x.dtype))
    expected = each.init(key, x)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected[0]))
    both = jax.jit(lambda *args: [layer.apply(*args)[0] for layer in (one, each)])
    np.testing.assert_array_equal(*both(params, state, x))
    message = (
        rf"expected x \[B, {['', 'T', 'H, W', 'D, H, W'][rank]}, C\], the axes that params were "
        rf"made for, got "
        r"\[.*\]; give x these axes, or make new params with init$"
    )
    x = np.asarray(x)
    with pytest.raises(fdl.PathError, match=message):
        one.apply(params, state, x[:, 0] if rank > 1 else x[:, None])


def test_a_causal_convolution_of_one_integer_decodes():
    x = np.float32(np.random.default_rng(0).standard_normal((2, 5, 3)))
    layer = fdl.chain(fdl.conv(3, 3, padding="CAUSAL"), fdl.conv(2, 1))
    params, state = layer.init(jax.random.key(0), x)

    @compiled
    def both(params, x):
        cache = fdl.start_decoding(layer, params, x[:, :1], 5)
        first, cache = fdl.decode(layer, params, cache, x[:, :2])
        last, cache = fdl.decode(layer, params, cache, x[:, 2:])
        return jnp.concatenate([first, last], 1), layer.apply(params, state, x)[0]

    np.testing.assert_allclose(*both(params, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        fdl.PathError, match=r"^conv: expected a layer that can decode with a cache"
    ):
        fdl.start_decoding(fdl.conv(2, 3), params["conv_0"], x, 5)


def test_one_integer_needs_a_batch_axis_and_no_more_than_three_others():
    message = (
        r"^conv: expected x \[B, \*spatial, C\] with 1 to 3 spatial axes for kernel_size 3, got "
        r"\[{}\]; give x one batch axis, or pass one integer for each spatial axis, such as \(3, "
        r"3\)$"
    )
    for shape in ((5, 3), (2, 3, 4, 5, 6, 3)):
        told = message.format(", ".join(map(str, shape)))
        with pytest.raises(fdl.PathError, match=told):
            fdl.conv(4, 3).init(jax.random.key(0), np.ones(shape, np.float32))
    with pytest.raises(
        ValueError, match=r"^conv: expected padding .*; use CAUSAL only with one spatial axis$"
    ):
        fdl.conv(4, 3, padding="CAUSAL").init(jax.random.key(0), np.ones((2, 4, 4, 3), np.float32))


def test_a_causal_convolution_sees_nothing_that_comes_later():
    layer = fdl.conv(2, (3,), padding="CAUSAL", dilation=2)
    x = normals(1, 1, 9, 2, dtype=np.float32)
    params = drawn(layer, x)
    slope = compiled(jax.jacobian(lambda x: layer.apply(params, {}, x)[0].sum((0, 2))))(x)[:, 0]
    touched = np.abs(slope).sum(-1) > 0
    distance = np.arange(9)[:, None] - np.arange(9)
    np.testing.assert_array_equal(touched, np.isin(distance, [0, 2, 4]))


# Any window, against the definition in NumPy.


def by_numpy(x, w, window):
    """One term for each element of the kernel: what it sees of x, by its weights."""
    edges = ((0, 0), *window.padding, (0, 0))
    x, w = np.pad(np.asarray(x, np.float64), edges), np.asarray(w, np.float64)
    y = 0
    for place in np.ndindex(window.kernel):
        each = zip(place, window.dilation, window.output, window.stride, strict=True)
        seen = [slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in each]
        y = y + x[:, *seen] @ w[place]
    return y


@st.composite
def windows(draw):
    """Strides and paddings below, at and above the extent."""
    up_to = functools.partial(st.integers, 1)
    pads = st.tuples(*[st.integers(0, 3)] * 2)
    axis = st.tuples(up_to(6), up_to(4), up_to(3), pads, up_to(2))
    axes = draw(st.lists(axis, min_size=1, max_size=3))
    window = Window(*zip(*axes, strict=True))
    assume(min(window.output) > 0)
    return window


@pytest.mark.parametrize(("channels", "features"), [(2, 3), (17, 33)], ids=["in_blocks", "plain"])
@settings(max_examples=20, deadline=None)
@given(windows(), st.integers(1, 3))
@example(Window((3, 5), (2, 4), (1, 1), ((0, 1), (1, 2)), (1, 1)), 2).via("more above than below")
@example(Window((6,), (2,), (2,), ((1, 0),), (1,)), 2).via("no window sees the last element")
@example(Window((5, 6), (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1)), 2).via("a product with gaps")
@example(Window((4,), (2,), (1,), ((3, 5),), (1,)), 2).via("windows beside the image")
@example(Window((7,), (2,), (3,), ((0, 0),), (1,)), 0).via("no images")
@example(Window((4, 9), (2, 5), (2, 1), ((1, 0), (2, 1)), (1, 1)), 2).via("a part of a block")
@example(Window((1, 1, 1), (1, 2, 1), (1, 1, 3), ((0, 0), (0, 1), (2, 0)), (1, 1, 1)), 1).via(
    "a window of padding alone"
)
def test_any_window_equals_the_definition_and_its_gradients_are_transposes(
    channels, features, window, images
):
    """In integers, where float32 is exact."""
    random = np.random.default_rng(images)
    shapes = (images, *window.input, channels), (*window.kernel, channels, features)
    shapes += ((images, *window.output, features),)
    x, w, dy = (random.integers(-9, 10, shape).astype(np.float32) for shape in shapes)

    @jax.jit
    def both(x, w, dy):
        y, back = jax.vjp(functools.partial(convolution.convolve, window=window), x, w)
        return y, *back(dy)

    y, dx, dw = (np.asarray(each, np.float64) for each in both(x, w, dy))
    expected = by_numpy(x, w, window)
    np.testing.assert_array_equal(y, expected)
    assert np.vdot(dx, x) == np.vdot(dw, w) == np.vdot(dy, expected)


# Every derivative, against XLA's own.

# Groups of none, of many and of few products; an image that is cut; more padding than kernel;
# windows that miss the end.
WINDOWS = {
    "one_group": (Window((8, 7), (3, 2), (2, 3), ((4, 3), (0, 0)), (1, 2), 1), 3, 4),
    "wide": (Window((8, 7), (3, 2), (2, 3), ((4, 3), (-3, 3)), (1, 2), 1), 17, 33),
    "groups": (Window((9,), (4,), (2,), ((1, 2),), (2,), 2), 6, 4),
    "narrow": (Window((19,), (2,), (1,), ((2, 1),), (1,), 3), 6, 3),
}


def operands(name, dtype=np.float64):
    window, channels, features = WINDOWS[name]
    x = normals(1, 2, *window.input, channels, dtype=dtype)
    w = normals(2, *window.kernel, channels // window.groups, features, dtype=dtype)
    ours = functools.partial(convolution.convolve, window=window)
    by_xla = functools.partial(convolution._convolve_by_xla, window=window)
    return x, w, ours, by_xla


def loss(f, x, w):
    y = f(x, w)
    return (waves(y) * jnp.tanh(y)).sum()


def assert_same(program, name, *args):
    """The program, of our convolution and of XLA's."""
    *_, ours, by_xla = operands(name)
    found = jax.jit(functools.partial(program, ours))(*args)
    expected = jax.jit(functools.partial(program, by_xla))(*args)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_near(a, b, 1e-12)


@pytest.mark.parametrize("name", WINDOWS)
def test_products_with_the_hessian_equal_xla_both_ways(name):
    with jax.enable_x64(True):
        x, w, *_ = operands(name)
        t, u = normals(3, *x.shape), normals(4, *w.shape)

        def program(f, x, w):
            gradient = jax.grad(functools.partial(loss, f), (0, 1))
            forward = jax.jvp(gradient, (x, w), (t, u))
            _, back = jax.vjp(gradient, x, w)
            return forward, back((t, u)), gradient(x, w)

        assert_same(program, name, x, w)


@pytest.mark.parametrize("batched", [(0, None), (None, 1), (2, 0)])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_batch_of_images_or_kernels_or_both_equals_xla(name, batched):
    with jax.enable_x64(True):
        x, w, *_ = operands(name)
        on_x, on_w = batched
        if on_x is not None:
            x = np.asarray(x)
            x = np.stack([x, 2 * x, x**2], on_x)
        if on_w is not None:
            w = np.asarray(w)
            w = np.stack([w, -w, w**2], on_w)

        def program(f, x, w):
            one = jax.value_and_grad(functools.partial(loss, f), (0, 1))

            def of_one_cotangent(x, w):
                y, back = jax.vjp(f, x, w)
                return back(waves(y))

            return tuple(
                jax.vmap(each, batched, out)(x, w)
                for each, out in [(one, 0), (of_one_cotangent, 0), (f, 1)]
            )

        assert_same(program, name, x, w)


def test_gradients_of_each_example_equal_xla():
    with jax.enable_x64(True):
        x, w, *_ = operands("one_group")

        def program(f, x, w):
            one = jax.grad(lambda x, w: loss(f, x[None], w), 1)
            return jax.vmap(jax.checkpoint(one), (0, None))(x, w)

        assert_same(program, "one_group", x, w)


def test_an_ensemble_of_ensembles_equals_xla():
    with jax.enable_x64(True):
        x, w = map(np.asarray, operands("groups")[:2])
        xs = np.stack([x, 2 * x])
        ws = np.stack([np.stack([w, -w, w**2])] * 2)

        def program(f, xs, ws):
            one = jax.grad(functools.partial(loss, f), (0, 1))
            return jax.vmap(jax.vmap(one, (None, 0)))(xs, ws)

        assert_same(program, "groups", xs, ws)


@pytest.mark.parametrize(
    ("kernel", "channels", "features", "forward", "gradient"),
    [
        *[((5, 5), 1, 6, 4, 4), ((3, 3), 3, 16, 2, 2), ((3, 3), 16, 16, 2, 1), ((5,), 1, 1, 8, 8)],
        *[((5, 5), 64, 16, 1, 2), ((3, 3), 3, 32, 1, 1), ((3, 1), 3, 16, 1, 1)],
    ],
)
def test_few_features_are_computed_in_blocks(kernel, channels, features, forward, gradient):
    """With `size` results in a block, products are `size` times wider."""
    ones = (1,) * len(kernel)
    window = Window((28,) * len(kernel), kernel, ones, ((0, 0),) * len(kernel), ones)
    x = jax.ShapeDtypeStruct((2, *window.input, channels), np.float32)
    w = jax.ShapeDtypeStruct((*kernel, channels, features), np.float32)
    dy = jax.ShapeDtypeStruct((2, *window.output, features), np.float32)
    for form, operands, size, primitive in (
        (convolution_cpu.convolve, (x, w), forward, "conv_general_dilated"),
        (convolution_cpu.kernel_gradient, (x, dy), gradient, "dot_general"),
    ):
        jaxpr = jax.make_jaxpr(functools.partial(form, window=window))(*operands)
        (shape,) = re.findall(rf"\[([\d,]+)\] = {primitive}\[", str(jaxpr))
        # The gradient of the kernel is computed with features as columns or as rows.
        sizes = [int(each) for each in shape.split(",")]
        assert size * features in (sizes if primitive == "dot_general" else sizes[-1:])


@pytest.mark.parametrize(("stride", "dilation"), [(1, 64), (4, 1)])
def test_windows_with_gaps_or_far_apart_are_not_computed_in_blocks(stride, dilation):
    """Most of a kernel of blocks would be zeros."""
    window = Window((300,), (3,), (stride,), ((0, 0),), (dilation,))
    x, w = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((2, 300, 3), (3, 3, 8)))
    jaxpr = str(jax.make_jaxpr(functools.partial(convolution_cpu.convolve, window=window))(x, w))
    assert f"window_strides=({stride},)" in jaxpr and f"rhs_dilation=({dilation},)" in jaxpr


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "spreads"),
    [(1, 3, 16, True), (3, 2, 16, False), (3, 2, 32, True), (2, 2, 32, False), (4, 2, 32, True)],
)
def test_zeros_between_elements_are_multiplied_only_where_that_is_faster(
    kernel, stride, channels, spreads
):
    pad = (kernel - 1) // 2
    window = Window((28, 28), (kernel,) * 2, (stride,) * 2, ((pad, pad),) * 2, (1, 1))
    dy = jax.ShapeDtypeStruct((2, *window.output, 64), np.float32)
    w = jax.ShapeDtypeStruct((*window.kernel, channels, 64), np.float32)
    form = functools.partial(convolution_cpu.input_gradient, window=window)
    shown = f"lhs_dilation=({stride}, {stride})" in str(jax.make_jaxpr(form)(dy, w))
    assert shown == spreads


@pytest.mark.parametrize("images", [6, 7])
def test_the_gradient_by_the_kernel_is_summed_over_chunks_of_images(images, monkeypatch):
    window, channels, features = WINDOWS["wide"]
    patch = 3 * 2 * channels * int(np.prod(window.output))
    monkeypatch.setattr(convolution_cpu, "PATCHES", 2 * patch)
    with jax.enable_x64(True):
        x = normals(1, images, *window.input, channels)
        dy = normals(2, images, *window.output, features)
        chunked = functools.partial(convolution_cpu.kernel_gradient, window=window)
        loops = str(jax.make_jaxpr(chunked)(x, dy))
        assert f"length={images // (2 if images == 6 else 1)}" in loops
        by_xla = functools.partial(convolution._kernel_gradient_by_xla, window=window)
        assert_near(jax.jit(chunked)(x, dy), jax.jit(by_xla)(x, dy), 1e-12)


@pytest.mark.parametrize(
    "layer", [fdl.conv(8, (5, 5), bias=False), fdl.depthwise_conv((5, 5), bias=False)]
)
def test_half_precision_is_summed_in_float32(layer):
    x = normals(1, 4, 20, 20, 8, dtype=jnp.bfloat16)
    params = drawn(layer, x)
    dy = normals(2, 4, 20, 20, 8, dtype=jnp.bfloat16)
    found = with_gradients(layer, params, x, dy)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    as_float32 = jax.tree.map(lambda leaf: np.float32(leaf), (params, x, dy))
    for a, b in zip(
        jax.tree.leaves(found),
        jax.tree.leaves(with_gradients(layer, *as_float32)),
        strict=True,
    ):
        # Only the result is rounded, to 8 bits.
        np.testing.assert_allclose(np.float32(a), b, rtol=2**-8, atol=1e-30)


def test_no_images_give_no_outputs_and_a_gradient_of_zero():
    layer = fdl.conv(3, (3, 3))
    x = np.zeros((0, 8, 8, 2), np.float32)
    params = drawn(layer, x)
    y, gradient, _ = with_gradients(layer, params, x, np.zeros((0, 8, 8, 3), np.float32))
    assert y.shape == (0, 8, 8, 3)
    assert np.abs(gradient["w"]).max() == 0


# What is compiled.


def training_loop(name):
    x, w, ours, _ = operands(name, np.float32)

    def body(w, x):
        value, slope = jax.value_and_grad(functools.partial(loss, ours), 1)(x, w)
        return w - 0.1 * slope, value

    x = np.asarray(x)
    return lambda w, xs: jax.lax.scan(body, w, xs), w, np.stack([x, 2 * x])


def test_a_training_loop_on_cpu_holds_only_the_convolutions_that_are_fast_there():
    """In the body of a loop XLA leaves a convolution as it is written."""
    for name in WINDOWS:
        loop, *args = training_loop(name)
        text = jax.jit(jax.grad(lambda w, xs: loop(w, xs)[1].sum())).lower(*args).as_text()
        written = re.findall(r"dim_numbers = \[(.*?)\]x\[(.*?)\]->\[(.*?)\]", text)
        assert len(written) == text.count("stablehlo.convolution")
        assert bool(written) == (name != "narrow")
        for image, kernel, result in written:
            axes = ", ".join(str(axis) for axis in range(image.count(",") - 1))
            assert (image, kernel, result) == (f"b, {axes}, f", f"{axes}, i, o", f"b, {axes}, f")
        assert not re.search(r"(feature|batch)_group_count = ([02-9]|1\d)", text)


@pytest.mark.parametrize("name", WINDOWS)
def test_one_program_is_exported_for_four_platforms(name):
    loop, *args = training_loop(name)
    platforms = ("cpu", "cuda", "rocm", "tpu")
    exported = export.export(jax.jit(loop), platforms=platforms)(*args)
    assert exported.platforms == platforms
    found, expected = exported.call(*args), jax.jit(loop)(*args)
    assert_near(found[0], expected[0], 1e-6)
    on_gpu = export.export(jax.jit(loop), platforms=("cuda",))(*args).mlir_module()
    # XLA's own: there the gradient by the kernel is a convolution too.
    assert on_gpu.count("stablehlo.convolution") == 2


# Initialization.


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (fdl.conv(40, (5, 3), groups=2), 5 * 3 * 8),
        (fdl.conv_transpose(40, (5, 3), groups=2), 5 * 3 * 8),
        (fdl.depthwise_conv((9, 9), multiplier=20), 81),
    ],
)
def test_a_kernel_has_the_variance_that_its_initializer_promises(layer, fan_in):
    w = np.asarray(layer.init(KEY, np.ones((1, 9, 9, 16), np.float32))[0]["w"], np.float64)
    error = np.sqrt(2 / w.size) / fan_in
    assert abs(w.var() - 1 / fan_in) < 3 * error


FAN_OUT = fdl.initializers.variance_scaling(1.0, "fan_out", "normal")
BACK = {
    "plain": fdl.conv(96, (3, 3), w_init=FAN_OUT),
    "stride": fdl.conv(96, (4, 4), stride=2, w_init=FAN_OUT),
    "uneven stride": fdl.conv(96, (3, 3), stride=(3, 1), w_init=FAN_OUT),
    "groups": fdl.conv(96, (3, 3), groups=4, w_init=FAN_OUT),
    "dilation": fdl.conv(96, (3, 3), dilation=2, w_init=FAN_OUT),
    "all": fdl.conv(96, (4, 4), stride=2, groups=2, dilation=3, w_init=FAN_OUT),
    "depthwise": fdl.depthwise_conv((5, 5), multiplier=3, w_init=FAN_OUT),
    "depthwise, stride": fdl.depthwise_conv((6, 6), stride=2, w_init=FAN_OUT),
    "transposed": fdl.conv_transpose(96, (4, 4), stride=2, w_init=FAN_OUT),
    "transposed, groups": fdl.conv_transpose(96, (4, 4), stride=2, groups=4, w_init=FAN_OUT),
}


@pytest.mark.parametrize("name", BACK)
def test_fan_out_keeps_the_variance_of_gradients(name):
    """With stride 2 it was a quarter, with 32 groups a 32nd. The edges are left out."""
    layer, x = BACK[name], np.zeros((2, 36, 36, 32), np.float32)
    params, state = layer.init(KEY, x)
    noise = normals(1, *jax.eval_shape(layer.apply, params, state, x)[0].shape, dtype=np.float32)

    @jax.jit
    def slope_of(params, x, noise):
        _, back = jax.vjp(lambda x: layer.apply(params, state, x)[0], x)
        return back(noise)[0]

    slope = np.asarray(slope_of(params, x, noise))[:, 12:-12, 12:-12]
    assert abs(slope.var() - 1) < 0.15


FORTH = {
    "stride": fdl.conv(96, (4, 4), stride=2),
    "groups and dilation": fdl.conv(96, (3, 3), groups=4, dilation=2),
    "depthwise": fdl.depthwise_conv((5, 5), multiplier=3, stride=2),
    "separable": fdl.separable_conv(96, (3, 3), stride=2),
    "transposed": fdl.conv_transpose(96, (4, 4), stride=2, groups=4),
    "transposed, stride 4": fdl.conv_transpose(96, (4, 4), stride=4),
    "transposed, dilation": fdl.conv_transpose(96, (4, 4), stride=2, dilation=3),
}


@pytest.mark.parametrize("name", FORTH)
def test_fan_in_keeps_the_variance_of_outputs(name):
    layer = FORTH[name]
    x = normals(1, 2, 36, 36, 32, dtype=np.float32)
    params, state = layer.init(KEY, x)
    y = np.asarray(jax.jit(layer.apply)(params, state, x)[0])
    assert abs(y[:, 5:-5, 5:-5].var() - 1) < 0.15


def test_a_transposed_kernel_is_drawn_by_what_feeds_an_output():
    def counted(key, shape, dtype):
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    layer = fdl.conv_transpose(6, (2,), groups=2, w_init=counted)
    w = np.asarray(layer.init(KEY, jnp.ones((3, 8)))[0]["w"])
    drawn = np.asarray(counted(None, (2, 4, 6), jnp.float32))
    for group in range(2):
        features, channels = slice(3 * group, 3 * group + 3), slice(4 * group, 4 * group + 4)
        np.testing.assert_array_equal(w[:, :, channels], drawn[:, :, features].transpose(0, 2, 1))


def test_lenet_scales_its_pixels_first():
    pixels = np.random.default_rng(1).integers(0, 255, (2, 4, 6, 1)).astype(np.uint8)
    plain, scaled = fdl.lenet(3), fdl.lenet(3, scale=1 / 255)
    params = drawn(plain, pixels.astype(np.float32))
    assert list(params) == ["conv_0", "conv_1", "dense_0", "dense_1"]
    expected, _ = jax.jit(plain.apply)(params, {}, pixels.astype(np.float32) / 255)
    assert_near(jax.jit(scaled.apply)(params, {}, pixels)[0], expected, 1e-5)


# Wrong uses.


def conv_of(**kwargs):
    return lambda: fdl.conv(4, (3, 3), **kwargs)


PADDINGS = "SAME, VALID, CAUSAL, CIRCULAR, REFLECT, EDGE, an integer >= 0, or a tuple with an "
PADDINGS += "integer or a pair for "


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: fdl.conv(4, 0),
            r"conv: expected kernel_size to be an integer >= 1, or a tuple of 1 to 3 integers >= "
            r"1, one for each spatial axis, got 0; write 3, or \(3, 3\) for images",
        ),
        (
            lambda: fdl.conv(4, (3, 0)),
            r"conv: expected kernel_size to be an integer >= 1, or a tuple of 1 to 3 integers >= "
            r"1, one for each spatial axis, got \(3, 0\); write 3, or \(3, 3\) for images",
        ),
        (
            lambda: fdl.conv(4, 3, stride=(1, 2, 3, 4)),
            r"conv: expected stride to be an integer >= 1, or one integer >= 1 for each of 2 axes, "
            r"got \(1, 2, 3, 4\); write 2, or \(2, 2\)",
        ),
        (
            lambda: fdl.conv(0, (3,)),
            r"conv: expected features >= 1, an integer, got 0; pass the number of outputs",
        ),
        (
            conv_of(groups=3),
            r"conv: expected groups, an integer divisor of 4 features, got 3; choose a common "
            r"divisor of the features and of the channels of x",
        ),
        (
            conv_of(stride=(1, 2, 3)),
            r"conv: expected stride to be an integer >= 1, or one integer >= 1 for each of 2 axes, "
            r"got \(1, 2, 3\); write 2, or \(2, 2\)",
        ),
        (
            conv_of(dilation=0),
            r"conv: expected dilation to be an integer >= 1, or one integer >= 1 for each of 2 "
            r"axes, got 0; write 2, or \(2, 2\)",
        ),
        (
            conv_of(padding="full"),
            rf"conv: expected padding to be {PADDINGS}each of 2 axes, got 'full'; write "
            r"'SAME' to keep the size, or 'VALID' to pad nothing",
        ),
        (
            conv_of(padding="CAUSAL"),
            rf"conv: expected padding to be {PADDINGS}each of 2 axes, got 'CAUSAL'; use "
            rf"CAUSAL only with one spatial axis",
        ),
        (
            conv_of(padding=(1, -1)),
            rf"conv: expected padding to be {PADDINGS}each of 2 axes, got \(1, -1\); write "
            r"one integer for all sides, or \(before, after\) for each axis",
        ),
        (
            lambda: fdl.conv_transpose(4, (3,), padding="EDGE"),
            r"conv_transpose: expected padding to be SAME, VALID, an integer >= 0, or a tuple with "
            r"an integer or a pair for each of 1 axes, got 'EDGE'; write 'SAME' to keep the size, "
            r"or 'VALID' to pad nothing",
        ),
        (
            lambda: fdl.conv_transpose(4, (3,), padding=0, stride=2, output_padding=2),
            r"conv_transpose: expected output_padding >= 0 and less than the larger of stride and "
            r"dilation, for each of 1 axes, got 2; pass 0 for the smallest output",
        ),
        (
            lambda: fdl.conv_transpose(4, (3,), stride=2, output_padding=1),
            r"conv_transpose: expected a padding of integers or pairs with output_padding, got "
            r"padding 'SAME'; pass integers as padding, or leave output_padding out",
        ),
        (
            lambda: fdl.depthwise_conv((3,), multiplier=0),
            r"depthwise_conv: expected multiplier >= 1, an integer, got 0; pass the number of "
            r"outputs of each channel",
        ),
    ],
)
def test_options_out_of_range_are_refused(make, told):
    with pytest.raises(ValueError, match=rf"^{told}$"):
        make()


SEEDED_BUGS = {
    "fdl/layers/convolution.py": (
        "layers/test_convolution.py core/test_decoding.py initializers/test_initializers.py",
        [
            ("if {*extent, *stride} == {1} and unpadded:", "if {*extent, *stride} == {1}:"),
            ("if stride == (1,) and padding in", "if padding in"),
            ('("CAUSAL", ((before, 0),))', '("CAUSAL", ((0, before),))'),
            ("    return at_once(layer)", "    return layer"),
            ('return (y + params["b"] if bias else y), state', "return y, state"),
            ("(*kernel, x.shape[-1] // groups, features)", "(*kernel, x.shape[-1], features)"),
            ("**windows, bias=False, w_init=w_init", "**windows, w_init=w_init"),
            ("1 / math.prod(strides)", "1.0"),
            ("1 / (groups * math.prod(strides))", "1 / math.prod(strides)"),
            ("1 / (groups * math.prod(strides))", "1 / groups"),
            ("read, 1 / groups)", "read)"),
            ("jnp.swapaxes(w, -1, -3)", "w"),
            (
                "low, high = total // 2, total - total // 2",
                "low, high = total - total // 2, total // 2",
            ),
            ("max(extent, s) if isinstance", "extent if isinstance"),
            ("(low, high - extra)", "(low, high)"),
        ],
    ),
    "fdl/core/any_spatial_axes.py": (
        "layers/test_convolution.py -k one_integer",
        [
            ("(int(size),) * rank", "(int(size),) * 2"),
            ("if kernels and rank not in kernels", "if False"),
            ("one if one.decoding is None else one.decoding(length)", "one"),
            ("if x.ndim - 2 not in AXES", "if False"),
        ],
    ),
    "fdl/ops/windows_and_padding.py": (
        "layers/test_convolution.py",
        [
            ("return total // 2, total - total // 2", "return total - total // 2, total // 2"),
            ("(-(-n // s) - 1) * s + e - n, 0)", "e - 1, 0)"),
            (
                "tuple((e - 1, 0) for e in window.extent)",
                "tuple((k - 1, 0) for k in window.kernel)",
            ),
            ("(k - 1) * d + 1 for", "k * d for"),
            ('"EDGE": "edge"', '"EDGE": "reflect"'),
            ("if min(window.output) < 1:", "if False:"),
        ],
    ),
    "fdl/ops/convolution.py": (
        "layers/test_convolution.py",
        [
            ("(True, False): (WITHIN, None, INPUTS)", "(True, False): (CHANNELS, None, INPUTS)"),
            ("size if None not in axes else 1", "1"),
            (
                "lambda dx, dy, w, *, window: _kernel_gradient.bind(dx, dy",
                "lambda dx, dy, w, *, window: _kernel_gradient.bind(-dx, dy",
            ),
            ("bilinear(name, by_xla, on_cpu", "bilinear(name, by_xla, by_xla"),
            ("bilinear(name, by_xla, on_cpu", "bilinear(name, on_cpu, on_cpu"),
        ],
    ),
    "fdl/ops/convolution_blocks.py": (
        "layers/test_convolution.py",
        [
            ("<= window.kernel[-1] or window.dilation[-1] > 1:", "< 0 or True:"),
            (" or window.dilation[-1] > 1:", ":"),
            ("(size - 1) * window.stride[-1] + window.extent", "size - 1 + window.extent"),
            ("+ window.extent[-1]) // step)", "+ window.kernel[-1]) // step)"),
            ("+ reach - 1", ""),
            ("edges[-2] = (low, blocks * step", "edges[-2] = (0, blocks * step"),
            ("start = result * stride", "start = result"),
            ("dilation - 1)", "0)"),
            ("start, axis = result * step,", "start, axis = result,"),
            ("start + extent, window.dilation[-1], axis", "start + window.kernel[-1], 1, axis"),
            ("-(low // step), (extent + step - 2 - low)", "-(low // step), (extent - 1 - low)"),
            ("[(-(low // step), ", "[(low // step, "),
            ("max(shares) <= 1 or (few", "(few"),
            ("(few and max(shares) <= 2)", "few"),
            ("start = step * first + low - result", "start = step * first + low + result"),
            ("for axis in (place, place + rank)", "for axis in (place + rank, place)"),
            ("y, 0, window.output[-1]", "y, y.shape[-2] - window.output[-1], y.shape[-2]"),
            (
                "edges[-2] = (0, blocks * size - dy.shape[-2], 0)",
                "edges[-2] = (blocks * size - dy.shape[-2], 0, 0)",
            ),
        ],
    ),
    "fdl/ops/convolution_cpu.py": (
        "layers/test_convolution.py",
        [
            ("jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype", "a.dtype"),
            ("w = jnp.flip(w, tuple(range(rank)))", "pass"),
            ("(below, n + e - 1 - size - below)", "(below, below)"),
            ("start = at * window.dilation[axis]", "start = at"),
            ("return dw + form(", "return form("),
            ("each * dy, (places", "each * dy[:, ::-1], (places"),
            ("turned = patch > features", "turned = patch > 0"),
            ("optimization_barrier(dw).T if turned else dw", "optimization_barrier(dw)"),
            ("if x.shape[0] == 0:", "if False:"),
            ("max(low, high) - apart + 1", "low - apart + 1"),
            ("max(low, high) - apart + 1", "high - apart + 1"),
            ("max(low, high) - apart + 1", "max(low, high) - apart"),
            ("- ((size - 1) * apart + 1)", "- size * apart"),
            ("max(size + gap, -(-window.output[-1] * stride // apart))", "size + gap"),
            ("if apart == 1 and -x.shape", "if -x.shape"),
            ("between = [(0, 0, step - 1)", "between = [(0, 0, 0)"),
            ("period = -(-period // stride) * stride", "pass"),
            ("period = -(-period // stride) * stride", "period = period // stride * stride"),
            ("edges), 0, -3)", "edges), 0, 1)"),
            ("y, 0, window.output[-1]", "y, each - window.output[-1], each"),
            ("start, stride = at * window.dilation[0],", "start, stride = at,"),
        ],
    ),
}
