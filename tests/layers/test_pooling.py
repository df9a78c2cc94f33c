"""Pooling, upsampling and pixel shuffle against torch, in numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled

LAYERS = {
    "max_pool": LayerCase(lambda: fdl.max_pool((2, 2)), (2, 4, 5, 2)),
    "max_pool_overlapping": LayerCase(
        lambda: fdl.max_pool((3,), stride=2, padding=1), (2, 2, 6, 2)
    ),
    "max_pool_dilated": LayerCase(
        lambda: fdl.max_pool(2, stride=1, padding=1, dilation=3), (2, 5, 4, 2)
    ),
    "average_pool": LayerCase(
        lambda: fdl.average_pool((3, 2), stride=(2, 1), padding="SAME"), (2, 4, 3, 2)
    ),
    "global_max_pool": LayerCase(fdl.global_max_pool, (2, 3, 2, 2)),
    "global_average_pool": LayerCase(fdl.global_average_pool, (2, 3, 2, 2)),
    "adaptive_max_pool": LayerCase(lambda: fdl.adaptive_max_pool((2, 1)), (2, 5, 3, 2)),
    "adaptive_average_pool": LayerCase(lambda: fdl.adaptive_average_pool((3,)), (2, 5, 2)),
    "upsample": LayerCase(lambda: fdl.upsample((2, 3)), (2, 3, 2, 2)),
    "upsample_linear": LayerCase(lambda: fdl.upsample((3,), method="linear"), (2, 3, 2)),
    "pixel_shuffle": LayerCase(lambda: fdl.pixel_shuffle(2), (2, 2, 3, 4)),
    "pixel_unshuffle": LayerCase(lambda: fdl.pixel_unshuffle(2), (2, 4, 2, 2)),
}


BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def normals(seed, *shape, dtype=np.float64):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def both(layer, x, dy):
    """y and the gradient of sum(y * dy) by x, in one program."""

    @jax.jit
    def program(x, dy):
        y, back = jax.vjp(lambda x: layer.apply({}, {}, x)[0], x)
        return y, back(dy)[0]

    return program(x, dy)


def applied(layer, x):
    """y, by one program."""
    return compiled(lambda x: layer.apply({}, {}, x)[0])(x)


def by_torch(name, x, dy, args, kwargs):
    torch = pytest.importorskip("torch", reason="no torch: pooling not checked against it")
    x = torch.tensor(np.asarray(x, np.float64).copy(), requires_grad=True)
    y = getattr(torch.nn.functional, name)(x.movedim(-1, 1), *args, **kwargs).movedim(1, -1)
    y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return y.detach().numpy(), x.grad.numpy()


# fdl's layer, sizes, torch's function and its arguments.
CASES = {
    "max": (fdl.max_pool((2, 3)), (4, 7), "max_pool2d", [(2, 3)], {}),
    "max_of_ties": (
        fdl.max_pool((3, 2), stride=(1, 2)),
        (5, 6),
        "max_pool2d",
        [(3, 2), (1, 2)],
        {},
    ),
    "max_overlapping": (
        fdl.max_pool((3, 4), stride=(2, 3), padding=(1, 2)),
        *((8, 9), "max_pool2d", [(3, 4), (2, 3), (1, 2)], {}),
    ),
    "max_of_a_sequence": (
        fdl.max_pool((5,), stride=2, padding=2),
        (9,),
        "max_pool1d",
        [5, 2, 2],
        {},
    ),
    "max_of_gaps": (fdl.max_pool((2,), stride=3), (10,), "max_pool1d", [2, 3], {}),
    "max_of_volumes": (fdl.max_pool((1, 2, 2)), (3, 4, 5), "max_pool3d", [(1, 2, 2)], {}),
    "max_dilated": (
        fdl.max_pool((3, 2), stride=(2, 1), padding=(1, 1), dilation=(2, 3)),
        *((9, 8), "max_pool2d", [(3, 2), (2, 1), (1, 1), (2, 3)], {}),
    ),
    "max_dilated_volumes_by_one_integer": (
        fdl.max_pool(2, stride=1, dilation=2),
        *((4, 5, 3), "max_pool3d", [2, 1, 0, 2], {}),
    ),
    "average_by_one_integer": (
        fdl.average_pool(3, padding=1, stride=2, count_padding=True),
        *((6, 5), "avg_pool2d", [3, 2, 1], {}),
    ),
    "adaptive_by_one_integer": (
        *(fdl.adaptive_max_pool(3), (7, 6), "adaptive_max_pool2d", [3], {}),
    ),
    "nearest_by_one_integer": (fdl.upsample(2), (3, 4), "interpolate", [], {"scale_factor": 2}),
    "average": (
        fdl.average_pool((3, 4), stride=(2, 3), padding=(1, 2)),
        *((8, 9), "avg_pool2d", [(3, 4), (2, 3), (1, 2)], {"count_include_pad": False}),
    ),
    "average_count_padding": (
        fdl.average_pool((3, 2), stride=(1, 2), padding=1, count_padding=True),
        *((6, 5), "avg_pool2d", [(3, 2), (1, 2), 1], {}),
    ),
    "adaptive_max": (fdl.adaptive_max_pool((3, 2)), (7, 6), "adaptive_max_pool2d", [(3, 2)], {}),
    "adaptive_average": (
        *(fdl.adaptive_average_pool((3, 8)), (7, 6), "adaptive_avg_pool2d", [(3, 8)], {}),
    ),
    "global_max": (fdl.global_max_pool(), (4, 3), "adaptive_max_pool2d", [1], {}),
    "global_average": (fdl.global_average_pool(), (4, 3), "adaptive_avg_pool2d", [1], {}),
    "nearest": (fdl.upsample((2, 3)), (3, 4), "interpolate", [], {"scale_factor": (2, 3)}),
    "linear": (
        fdl.upsample((3, 4), method="linear"),
        *((3, 5), "interpolate", [], {"scale_factor": (3, 4), "mode": "bilinear"}),
    ),
    "linear_of_a_sequence": (
        fdl.upsample((5,), method="linear"),
        *((3,), "interpolate", [], {"scale_factor": 5, "mode": "linear"}),
    ),
    "shuffle": (fdl.pixel_shuffle(2), (3, 2), "pixel_shuffle", [2], {}),
    "unshuffle": (fdl.pixel_unshuffle(3), (6, 3), "pixel_unshuffle", [3], {}),
}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_pooling_and_resizing_equal_torch(name, dtype):
    layer, sizes, theirs, args, kwargs = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        x = normals(1, 3, *sizes, 8, dtype=dtype)
        if name == "max_of_ties":
            x = np.round(np.asarray(x))
        shape = jax.eval_shape(lambda x: layer.apply({}, {}, x)[0], x).shape
        dy = normals(2, *shape, dtype=dtype)
        y, dx = both(layer, x, dy)
        if name.startswith("global"):
            dy = dy[:, None, None]
        y2, dx2 = by_torch(theirs, x, dy, args, kwargs)
        np.testing.assert_allclose(y, y2.reshape(y.shape), rtol=BOUNDS[dtype], atol=BOUNDS[dtype])
        np.testing.assert_allclose(dx, dx2, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


def test_a_dilated_mean_is_of_the_elements_in_the_image():
    """Against a loop; torch has none."""
    x = normals(3, 2, 11, 3, dtype=np.float32)
    for stride, counted in ((1, False), (2, True), (3, False)):
        layer = fdl.average_pool((3,), stride=stride, padding=2, dilation=3, count_padding=counted)
        y = applied(layer, x)
        padded = np.pad(np.asarray(x, np.float64), ((0, 0), (2, 2), (0, 0)))
        inside = np.pad(np.ones(11), 2)
        starts = range(0, 15 - 6, stride)
        assert y.shape == (2, len(starts), 3)
        for place, start in enumerate(starts):
            n = 3 if counted else inside[start : start + 7 : 3].sum()
            expected = padded[:, start : start + 7 : 3].sum(1) / n
            np.testing.assert_allclose(y[:, place], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [fdl.max_pool, fdl.average_pool])
def test_same_padding_equals_xla(pool):
    """low = total // 2, and as many windows as the stride goes into the size."""
    x = normals(1, 2, 7, 6, 3, dtype=np.float32)
    y = applied(pool((4, 3), stride=(3, 2), padding="SAME"), x)
    largest = pool is fdl.max_pool
    reduced = functools.partial(
        jax.lax.reduce_window,
        init_value=-jnp.inf if largest else 0.0,
        computation=jax.lax.max if largest else jax.lax.add,
        **{"window_dimensions": (1, 4, 3, 1), "window_strides": (1, 3, 2, 1), "padding": "SAME"},
    )
    reduced = compiled(reduced)
    expected = reduced(x) / (1 if largest else reduced(np.ones(x.shape, np.float32)))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_largest_goes_to_the_first_of_equals():
    layer = fdl.max_pool((2, 2))
    x = np.float32([[0.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]])[..., None]
    slope = compiled(jax.grad(lambda x: layer.apply({}, {}, x)[0].sum()))(x)[..., 0]
    np.testing.assert_array_equal(slope, [[0, 1, 1, 0], [0, 0, 0, 0]])
    of_all = jax.grad(lambda x: fdl.global_max_pool().apply({}, {}, x[None])[0].sum())
    slope = compiled(of_all)(x)[..., 0]
    np.testing.assert_array_equal(slope, [[0, 0, 1, 0], [0, 0, 0, 0]])


def test_max_pooling_of_nothing_but_minus_infinity_and_of_nan():
    layer = fdl.max_pool((2,), padding=1)
    x = np.float32([-np.inf, -np.inf, 1.0, np.nan])[:, None]
    np.testing.assert_array_equal(applied(layer, x)[:, 0], [-np.inf, 1.0, np.nan])


@pytest.mark.parametrize(
    "layer",
    [
        *(fdl.global_max_pool(), fdl.global_average_pool()),
        *(fdl.adaptive_max_pool((2, 2)), fdl.adaptive_average_pool((2, 2))),
    ],
    ids=lambda layer: layer.name,
)
def test_an_image_of_nothing_is_refused_and_a_batch_of_nothing_is_not(layer):
    """A maximum raised ZeroDivisionError, a mean was NaN."""
    with pytest.raises(
        fdl.PathError,
        match=rf"^{layer.name}: expected an image of one or more elements, got \[2, 0, 5, 3\];",
    ):
        layer.apply({}, {}, np.ones((2, 0, 5, 3), np.float32))
    assert applied(layer, np.ones((0, 4, 5, 3), np.float32)).shape[0] == 0


@pytest.mark.parametrize("name", ["average", "global_average", "adaptive_average", "linear"])
def test_half_precision_is_summed_in_float32(name):
    layer, *_ = CASES[name]
    x = np.asarray(normals(1, 2, 60, 60, 2, dtype=jnp.bfloat16)) + np.asarray(100, jnp.bfloat16)
    y, near = applied(layer, x), applied(layer, x.astype(np.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), near, rtol=2**-8)


def test_max_pooling_has_forward_derivatives_that_agree_with_its_gradient():
    layer = fdl.max_pool((3, 3), stride=2, padding=1)
    x, t = normals(1, 7, 6, 2, dtype=np.float32), normals(2, 7, 6, 2, dtype=np.float32)

    def f(x):
        return jnp.sin(layer.apply({}, {}, x)[0]).sum()

    (_, along), slope = compiled(lambda x, t: (jax.jvp(f, (x,), (t,)), jax.grad(f)(x)))(x, t)
    np.testing.assert_allclose(along, (slope * np.asarray(t)).sum(), rtol=1e-5)
    assert 0 < (slope != 0).sum() <= 4 * 3 * 2


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_unshuffling_undoes_shuffling(leading):
    x = normals(1, *leading, 4, 6, 3, dtype=np.float32)

    @compiled
    def there_and_back(x):
        y, _ = fdl.pixel_unshuffle(2).apply({}, {}, x)
        return y, fdl.pixel_shuffle(2).apply({}, {}, y)[0]

    y, again = there_and_back(x)
    assert y.shape == (*leading, 2, 3, 12)
    np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: fdl.max_pool(2.0),
            r"max_pool: expected window to be an integer >= 1, or a tuple of 1 to 3 integers >= 1, "
            r"one for each spatial axis, got 2\.0; write 3, or \(3, 3\) for images",
        ),
        (
            lambda: fdl.average_pool((2, 2), stride=0),
            r"average_pool: expected stride to be an integer >= 1, or one integer >= 1 for each of "
            r"2 axes, got 0; write 2, or \(2, 2\)",
        ),
        (
            lambda: fdl.max_pool((2, 2), padding="EDGE"),
            r"max_pool: expected padding to be SAME, VALID, an integer >= 0, or a tuple with an "
            r"integer or a pair for each of 2 axes, got 'EDGE'; write 'SAME' to keep the size, or "
            r"'VALID' to pad nothing",
        ),
        (
            lambda: fdl.upsample((2,), method="cubic"),
            r"upsample: expected method nearest or linear, got 'cubic'; for other methods, use "
            r"jax\.image\.resize",
        ),
        (
            lambda: fdl.pixel_shuffle(0),
            r"pixel_shuffle: expected factor >= 1, an integer, got 0; pass a .*",
        ),
        (
            lambda: fdl.pixel_unshuffle(0),
            r"pixel_unshuffle: expected factor >= 1, an integer, got 0; pass a .*",
        ),
    ],
)
def test_options_out_of_range_are_refused(make, told):
    with pytest.raises(ValueError, match=rf"^{told}$"):
        make()


@pytest.mark.parametrize(
    ("layer", "hit"),
    [
        (lambda: fdl.upsample((2,), method="linear"), slice(3, 7)),
        (lambda: fdl.upsample((3,), method="linear"), slice(5, 10)),
        (lambda: fdl.adaptive_average_pool((4,)), slice(1, 2)),
        (lambda: fdl.average_pool((2,), stride=1, padding="SAME"), slice(1, 3)),
        (lambda: fdl.max_pool((2,), stride=1, padding="SAME"), slice(1, 3)),
    ],
    ids=["linear_even", "linear_odd", "adaptive", "average", "max"],
)
def test_an_infinite_pixel_reaches_only_the_outputs_that_see_it(layer, hit):
    x = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    x[0, 2, 0] = np.inf
    y = applied(layer(), x).ravel()
    finite = np.ones(y.size, bool)
    finite[hit] = False
    np.testing.assert_array_equal(np.isfinite(y), finite)
    assert not np.isnan(y).any()


def test_sizes_may_be_integers_of_numpy():
    two, three = np.int64(2), np.int32(3)
    x = normals(0, 2, 8, 6, 4, dtype=np.float32)
    for ours, theirs in [
        (fdl.max_pool((two, three), stride=two), fdl.max_pool((2, 3), stride=2)),
        (fdl.average_pool((three,) * 2, padding=np.int64(1)), fdl.average_pool((3, 3), padding=1)),
    ]:
        np.testing.assert_array_equal(applied(ours, x), applied(theirs, x))
    layer = fdl.conv(np.int64(6), (three, two), stride=[two, 1], padding=[(two, 0), 1], groups=two)
    plain = fdl.conv(6, (3, 2), stride=(2, 1), padding=((2, 0), (1, 1)), groups=2)
    params, _ = plain.init(jax.random.key(0), x)
    both = compiled(lambda *args: [each.apply(*args)[0] for each in (layer, plain)])
    np.testing.assert_array_equal(*both(params, {}, x))


def test_means_of_parts_are_rounded_once():
    x = np.asarray(normals(0, 3, 7, 5, 2, dtype=jnp.bfloat16))
    layer = fdl.adaptive_average_pool((3, 2))
    both = compiled(lambda x: [layer.apply({}, {}, x)[0] for x in (x, x.astype(jnp.float32))])
    y, exact = both(x)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "pool",
    [
        lambda n: fdl.max_pool((n, n)),
        lambda n: fdl.average_pool((n, n)),
        lambda n: fdl.global_max_pool(),
        lambda n: fdl.global_average_pool(),
        lambda n: fdl.adaptive_max_pool((2, 2)),
        lambda n: fdl.adaptive_average_pool((2, 2)),
    ],
    ids=["max", "average", "global_max", "global_average", "adaptive_max", "adaptive_average"],
)
def test_the_program_does_not_grow_with_the_window(pool):
    """One comparison for each of 784 places took all memory to compile."""

    def program(n):
        def total(x):
            return pool(n).apply({}, {}, x)[0].sum()

        return (
            jax.jit(jax.grad(total))
            .lower(np.ones((1, n, n, 1), np.float32))
            .as_text()
            .count("stablehlo.")
        )

    assert program(16) == program(64)


SEEDED_BUGS = {
    "fdl/layers/pooling.py": (
        "layers/test_pooling.py",
        [
            ("_padded(x, axis, window, -jnp.inf)", "_padded(x, axis, window, 0)"),
            ("[k if count_padding else inside[i : i + k * d : d].sum() for", "[k for"),
            ("inside[i : i + k * d : d]", "inside[i : i + k]"),
            ("-(-(i + 1) * n // size)", "(i + 1) * n // size"),
            ("in reversed(range(len(window.kernel)))", "in range(len(window.kernel))"),
            ("exact(as_images(x, len(wanted)))", "as_images(x, len(wanted))"),
            (".sum(axis) / (end - start)", ".sum(axis) / size"),
        ],
    ),
    "fdl/ops/pooling.py": (
        "layers/test_pooling.py",
        [
            (" & ~jnp.expand_dims(found, axis + 1)", ""),
            ("places, n).min(", "places, -1).max("),
            ("free & ~each", "free"),
            ("min(s, k - q * s)", "s"),
            ("slice_in_dim(x, 0, windows, s, axis)", "slice_in_dim(x, 0, windows, 1, axis)"),
            ("x.shape[axis] - (k - 1) * d", "x.shape[axis] - k * d + 1"),
        ],
    ),
    "fdl/layers/reshaping.py": (
        "layers/test_pooling.py",
        [
            ("(number + 0.5) / times - 0.5", "number / times"),
            ("(1 - share) * y + share", "share * y + (1 - share)"),
            ("if share else y", ""),
            ("_interpolated(exact(y)", "_interpolated(y"),
            ("(-2, -1), (-4, -2)", "(-2, -1), (-2, -4)"),
            ("(-4, -2), (-2, -1)", "(-4, -2), (-1, -2)"),
        ],
    ),
}
