"""Augmentation: each image against windows, mirrors and turns by NumPy and SciPy, and how often."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

import fdl
from tests.entry_types import LayerCase
from tests.programs import array

LAYERS = {
    "random_crop": LayerCase(
        lambda: fdl.random_crop((3, 4), padding=(1, 2), fill=0.5), (3, 4, 5, 2), random=True
    ),
    "random_shift": LayerCase(
        lambda: fdl.random_shift((1, 2), fill="REFLECT"), (3, 4, 5, 2), random=True
    ),
    "random_flip": LayerCase(
        lambda: fdl.random_flip("vertical", probability=0.6), (6, 3, 2, 1), random=True
    ),
    "random_rotation": LayerCase(
        lambda: fdl.random_rotation(70.0, fill=-0.3), (2, 4, 5, 2), random=True
    ),
    "random_erasing": LayerCase(
        lambda: fdl.random_erasing(0.8, area=(0.1, 0.4), aspect=(0.4, 2.0), value=-0.6),
        (3, 4, 5, 2),
        random=True,
    ),
}

KEY = jax.random.key(0)
# What NumPy calls what fdl calls a fill; a number is "constant".
NUMPY = {"EDGE": "edge", "REFLECT": "reflect", "CIRCULAR": "wrap"}
SCIPY = {"EDGE": "nearest", "REFLECT": "mirror", "CIRCULAR": "grid-wrap"}
FILLS = [-0.7, *NUMPY]


def in_training(layer, x, key=KEY):
    return layer.apply({}, {}, x, key=key, train=True)[0]


def drawn(layer, x):
    return np.asarray(jax.jit(functools.partial(in_training, layer))(x))


def pictures(*shape, seed=0, dtype=np.float32):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def places(x, y, edges, fill):
    """(top, left) [B, 2] of the one window of padded x [B, H, W, C] that y [B, h, w, C] is."""
    mode = {"mode": NUMPY[fill]} if isinstance(fill, str) else {"constant_values": fill}
    padded = np.pad(x, ((0, 0), *((e, e) for e in edges), (0, 0)), **mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, y.shape[1:3], (1, 2))
    same = (np.moveaxis(windows, 3, -1) == y[:, None, None]).all((3, 4, 5))
    assert (same.sum((1, 2)) == 1).all()
    return np.argwhere(same)[:, 1:]


def assert_uniform(numbers, limits):
    """A chi-squared test over all places, which also sees rows that depend on columns."""
    counts = np.zeros(limits)
    np.add.at(counts, tuple(numbers.T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("fill", FILLS)
def test_a_crop_is_a_window_of_the_padded_image_at_a_uniform_place(fill):
    # Not wider than 4 + 2 columns, so that no two windows of a repeated image are the same.
    x = np.asarray(pictures(1200, 4, 5, 2))
    y = drawn(fdl.random_crop((3, 5), padding=(1, 2), fill=fill), x)
    found = places(x, y, (1, 2), fill)
    assert_uniform(found, (4 + 2 - 3 + 1, 5 + 4 - 5 + 1))


def test_a_crop_without_padding_stays_inside():
    x = np.asarray(pictures(600, 6, 5, 1))
    assert_uniform(places(x, drawn(fdl.random_crop((4, 3)), x), (0, 0), 0.0), (3, 3))


@pytest.mark.parametrize("fill", FILLS[:2])
def test_a_shift_is_by_a_uniform_number_of_pixels_in_each_direction(fill):
    x = np.asarray(pictures(1200, 5, 4, 1))
    y = drawn(fdl.random_shift((1, 2), fill=fill), x)
    assert y.shape == x.shape
    assert_uniform(places(x, y, (1, 2), fill), (3, 5))


@pytest.mark.parametrize(
    ("shape", "size", "padding"),
    [((6, 7), (4, 3), 0), ((5, 6), (4, 3), 0), ((4, 6), (4, 6), 3), ((3, 8), (6, 5), 2)],
)
def test_evaluation_cuts_out_the_middle(shape, size, padding):
    """The rows and columns that are left on both sides differ by at most one."""
    x = np.asarray(pictures(2, *shape, 3))
    y, _ = fdl.random_crop(size, padding=padding, fill=9.0).apply({}, {}, x)
    padded = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=9.0)
    top, left = ((n - s) // 2 for n, s in zip(padded.shape[1:3], size, strict=True))
    np.testing.assert_array_equal(y, padded[:, top : top + size[0], left : left + size[1]])
    if shape == size:
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("kind", ["random_shift", "random_flip", "random_rotation"])
def test_other_layers_are_the_identity_in_evaluation(kind):
    x = pictures(2, 3, 3, 1)
    make = {"random_flip": fdl.random_flip}.get(kind, lambda: getattr(fdl, kind)(2))
    assert make().apply({}, {}, x)[0] is x
    assert fdl.random_erasing(1.0).apply({}, {}, x)[0] is x


@pytest.mark.parametrize(("direction", "axis"), [("horizontal", 2), ("vertical", 1)])
def test_a_flip_mirrors_that_share_of_the_images(direction, axis):
    n, probability = 2000, 0.3
    x = np.asarray(pictures(n, 3, 4, 2))
    flip = jax.jit(lambda p: in_training(fdl.random_flip(direction, probability=p), x))
    y = flip(probability)
    kept, mirrored = ((y == each).all((1, 2, 3)) for each in (x, np.flip(x, axis)))
    assert (kept ^ mirrored).all()
    assert abs(mirrored.mean() - probability) < 4 * math.sqrt(probability * 0.7 / n)
    np.testing.assert_array_equal(flip(0.0), x)
    np.testing.assert_array_equal(flip(1.0), np.flip(x, axis))


def turned(x, degrees, fill, order):
    """By SciPy in float64, counter-clockwise; x [H, W, C]."""
    mode = {"mode": SCIPY[fill]} if isinstance(fill, str) else {"cval": fill}
    how = {"mode": "grid-constant", "order": order, "reshape": False, "prefilter": False} | mode
    return ndimage.rotate(np.asarray(x, np.float64), degrees, axes=(1, 0), **how)


def angles_of(x, y):
    """The angle of each image in degrees, from a channel that holds the number of the column."""
    middle = (np.array(x.shape[1:3]) - 1) // 2
    row, column = middle
    centre = (x.shape[2] - 1) / 2
    assert 2 * row + 1 == x.shape[1] and 2 * column + 1 == x.shape[2]
    cosine = y[:, row, column + 1, 0] - centre
    sine = centre - y[:, row + 1, column, 0]
    return np.rad2deg(np.arctan2(sine, cosine))


def with_columns(n, height, width, channels=2):
    """Images whose first channel is the number of the column."""
    x = np.array(pictures(n, height, width, channels))
    x[..., 0] = np.arange(width)
    return x


@pytest.mark.parametrize("fill", FILLS)
def test_a_rotation_is_scipys(fill):
    x = with_columns(8, 7, 5)
    y = drawn(fdl.random_rotation(180.0, fill=fill), x)
    angles = angles_of(x, y)
    assert np.abs(angles).max() > 90 and len(set(angles.round(3))) == 8
    for image, found, angle in zip(x, y, angles, strict=True):
        expected = turned(image, angle, fill, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_rotation_by_the_nearest_pixel_is_scipys():
    x = with_columns(12, 9, 7, 3)
    layers = [
        fdl.random_rotation(40.0, method=method, fill=2.5) for method in ("linear", "nearest")
    ]
    angles = angles_of(x, drawn(layers[0], x))
    for image, found, angle in zip(x, drawn(layers[1], x), angles, strict=True):
        np.testing.assert_array_equal(found, np.float32(turned(image, angle, 2.5, 0)))


def test_the_angle_is_uniform():
    x = with_columns(2000, 3, 3, 1)
    turn = jax.jit(lambda degrees: in_training(fdl.random_rotation(degrees), x))
    angles = angles_of(x, np.asarray(turn(50.0)))
    assert stats.kstest(angles, stats.uniform(-50, 100).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(turn(0.0), x)


def rectangles(erased):
    """(top, left, height, width) of the one rectangle of True in each [H, W] of [B, H, W]."""
    found = []
    for mask in erased:
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        top, left = rows[0], columns[0]
        tall, broad = rows[-1] - top + 1, columns[-1] - left + 1
        assert mask.sum() == tall * broad
        found.append((top, left, tall, broad))
    return np.array(found).T


def test_erasing_is_of_rectangles_of_the_area_and_aspect_asked_for():
    n, height, width, probability = 1500, 60, 40, 0.7
    x = np.ones((n, height, width, 1), np.float32)
    y = drawn(fdl.random_erasing(probability, area=(0.1, 0.2), aspect=(0.4, 2.0), value=-3.5), x)
    erased = (y == -3.5)[..., 0]
    assert (y[~erased] == 1).all()
    some = erased.any((1, 2))
    assert abs(some.mean() - probability) < 4 * math.sqrt(probability * 0.3 / n)
    top, left, tall, broad = rectangles(erased[some])
    share, ratio = tall * broad / (height * width), np.log(tall / broad)
    assert stats.kstest(share, stats.uniform(0.1, 0.1).cdf).statistic < 0.08  # of whole pixels
    low, high = math.log(0.4), math.log(2.0)
    assert stats.kstest(ratio, stats.uniform(low, high - low).cdf).statistic < 0.08
    for start, size, n in ((top, tall, height), (left, broad, width)):
        assert (start >= 0).all() and (start + size <= n).all()
        spare = n - size + 1
        assert stats.kstest((start + 0.5) / spare, stats.uniform().cdf).statistic < 0.08
    assert abs(np.corrcoef(top / (height - tall), left / (width - broad))[0, 1]) < 0.12


def test_erasing_takes_the_nearest_ratio_that_fits():
    x = np.ones((20, 2, 50, 1), np.float32)
    y = drawn(fdl.random_erasing(1.0, area=(0.5, 0.5), aspect=(0.3, 3.3)), x)
    _, _, tall, broad = rectangles((y == 0)[..., 0])
    assert (tall == 2).all() and (broad == 25).all()


def test_noise_is_of_the_kind_of_the_pixels():
    x = np.full((40, 12, 12, 3), 200, np.uint8)
    layer = fdl.random_erasing(1.0, area=(1.0, 1.0), aspect=(1, 1), value="noise")
    values = drawn(layer, x).ravel()
    assert values.dtype == np.uint8
    assert stats.chisquare(np.bincount(values // 16, minlength=16)).pvalue > 1e-3
    normal = drawn(layer, x.astype(np.float32))
    assert stats.kstest(normal.ravel(), stats.norm.cdf).pvalue > 1e-3
    assert len(np.unique(normal)) > 0.99 * normal.size


ALL = {name: case.make for name, case in LAYERS.items()}

WITHOUT_ARITHMETIC = fdl.chain(
    fdl.random_crop(4, padding=1, fill=7),
    fdl.random_shift(1, fill=255),
    fdl.random_flip(),
    fdl.random_erasing(0.9, value=99),
)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bool"])
def test_the_dtype_is_kept_and_integers_are_rounded(dtype):
    x = np.random.default_rng(3).integers(0, 256, (3, 5, 5, 2))
    x = x > 128 if dtype == "bool" else x
    turn = fdl.random_rotation(30.0, fill=200)

    @jax.jit
    def both(x, other):
        return [
            (in_training(net, x), in_training(net, other)) for net in (WITHOUT_ARITHMETIC, turn)
        ]

    (same, moved), (near, turned) = both(x.astype(np.float32), array(x, dtype))
    assert moved.dtype == turned.dtype == dtype
    np.testing.assert_array_equal(same.astype(dtype), moved)
    if dtype != "bool":
        bound = {"rtol": 1e-3} if dtype == "float16" else {"atol": 0.501}
        np.testing.assert_allclose(np.float32(turned), near, **bound)
        np.testing.assert_array_equal(in_training(turn, array(x, dtype)), turned)


@pytest.mark.parametrize("kind", ALL)
def test_every_image_gets_a_draw_of_its_own(kind):
    layer = ALL[kind]()
    x = np.broadcast_to(np.asarray(pictures(9, 9, 1)), (3, 4, 9, 9, 1))
    draw = jax.jit(functools.partial(in_training, layer))
    y = np.asarray(draw(x))
    different = {image.tobytes() for image in y.reshape(12, -1)}
    assert len(different) == 2 if kind == "random_flip" else len(different) > 6
    np.testing.assert_array_equal(y, draw(x))
    for lead in [(), (0,), (2,)]:
        shape = jax.eval_shape(draw, jax.ShapeDtypeStruct((*lead, 9, 9, 1), x.dtype)).shape
        assert shape == (*lead, *y.shape[2:])


@pytest.mark.parametrize("kind", ["random_crop", "random_rotation"])
def test_an_image_and_its_mask_move_together_with_one_key(kind):
    draw = functools.partial(in_training, ALL[kind]())

    @jax.jit
    def both(x, mask):
        return draw(jnp.concatenate([x, mask], -1)), [draw(x), draw(mask)]

    found, parts = both(pictures(4, 5, 5, 2), pictures(4, 5, 5, 1, seed=1))
    np.testing.assert_allclose(found, np.concatenate(parts, -1), rtol=1e-6, atol=1e-6)


def test_a_network_of_all_is_exported_for_four_platforms():
    net = fdl.chain(*(make() for make in ALL.values()))
    forward = functools.partial(in_training, net)
    platforms = ("cpu", "cuda", "rocm", "tpu")
    x = jax.ShapeDtypeStruct((2, 5, 6, 1), jnp.float32)
    exported = jax.export.export(jax.jit(forward), platforms=platforms)(x)
    assert exported.platforms == platforms


PIXELS = r"or one integer >= 0 for each of 2 axes, got"
WRONG = {
    "size": (
        lambda: fdl.random_crop(0),
        r"^random_crop: expected size to be an integer >= 1, or one integer >= 1 for each of 2 "
        r"axes, got 0; write 2, or \(2, 2\)$",
    ),
    "padding": (
        lambda: fdl.random_crop(3, padding=-1),
        rf"^random_crop: expected padding to be an integer >= 0, {PIXELS} -1; write 2",
    ),
    "pixels": (
        lambda: fdl.random_shift((1, 2, 3)),
        rf"^random_shift: expected pixels to be an integer >= 0, {PIXELS} \(1, 2, 3\); write 2",
    ),
    "fraction": (
        lambda: fdl.random_shift(0.1),
        rf"^random_shift: expected pixels .* {PIXELS} 0\.1;",
    ),
    "fill": (
        lambda: fdl.random_shift(1, fill="zeros"),
        r"^random_shift: expected fill to be a number, EDGE, REFLECT or CIRCULAR, got 'zeros'; "
        r"pass 0\.0 for zeros$",
    ),
    "infinite": (
        lambda: fdl.random_rotation(9, fill=math.inf),
        r"^random_rotation: expected a finite fill, got inf; pass 0\.0 for zeros$",
    ),
    "direction": (
        lambda: fdl.random_flip(0.5),
        r"^random_flip: expected direction horizontal or vertical, got 0\.5; for both, chain two",
    ),
    "probability": (
        lambda: fdl.random_flip(probability=1.5),
        r"^random_flip: expected probability in \[0, 1\], got 1\.5; pass 0\.5 to change",
    ),
    "degrees": (
        lambda: fdl.random_rotation(270.0),
        r"^random_rotation: expected degrees in \[0, 180\], got 270\.0; pass the largest angle in "
        r"degrees, not in radians$",
    ),
    "method": (
        lambda: fdl.random_rotation(9, method="cubic"),
        r"^random_rotation: expected method nearest or linear, got 'cubic'; use nearest for "
        r"labels$",
    ),
    "area": (
        lambda: fdl.random_erasing(area=(0.0, 0.3)),
        r"^random_erasing: expected area in \(0, 1\], got 0\.0; pass \(0\.02, 0\.33\)$",
    ),
    "aspect": (
        lambda: fdl.random_erasing(aspect=(3, 0.3)),
        r"^random_erasing: expected aspect from the smallest to the largest, got 3\.0 and 0\.3; ",
    ),
    "pair": (
        lambda: fdl.random_erasing(aspect=0.3),
        r"^random_erasing: expected aspect to be \(smallest, largest\), got 0\.3; pass "
        r"\(0\.3, 3\.3\)$",
    ),
    "value": (
        lambda: fdl.random_erasing(value="random"),
        r"^random_erasing: expected a finite value, got 'random'; pass a number$",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_option_out_of_range(kind):
    call, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_input_that_is_not_images():
    for kind, make in ALL.items():
        told = (
            rf"^{kind}: expected x \[\.\.\., H, W, C\], got \[5, 5\]; add a channel axis with "
            r"x\[\.\.\., None\], or reshape x$"
        )
        with pytest.raises(fdl.PathError, match=told):
            make().apply({}, {}, np.ones((5, 5)))


def test_a_window_larger_than_the_image():
    told = (
        r"^random_crop: expected an image not smaller than the window, \[6, 3\], got \[3, 9\] with "
        r"padding \[1, 1\]; pad more, or cut out less$"
    )
    layer = fdl.random_crop((6, 3), padding=1)
    for call in (layer.init, functools.partial(layer.apply, {})):
        with pytest.raises(fdl.PathError, match=told):
            call({}, np.ones((2, 3, 9, 1)))


def test_a_number_that_integer_pixels_cannot_hold():
    x = np.zeros((2, 4, 4, 1), np.uint8)
    for layer, what in (
        (fdl.random_crop(2, fill=0.5), "fill"),
        (fdl.random_rotation(5, fill=0.5), "fill"),
        (fdl.random_shift(1, fill=256), "fill"),
        (fdl.random_erasing(value=-1), "value"),
    ):
        told = (
            rf"^{layer.name}: expected {what} to be an integer in \[0, 255\] for x of dtype uint8, "
            r"got [-\d.]+; pass such an integer, or use rescale\(1 / 255\) before this layer$"
        )
        with pytest.raises(fdl.PathError, match=told):
            layer.init(KEY, x)


SEEDED_BUGS = {
    "fdl/layers/augmentation.py": (
        "layers/test_augmentation.py",
        [
            ("[n - s + 1 for n, s", "[n - s for n, s"),
            ("start[:, 0], start[:, 1]", "start[:, 0], start[:, 0]"),
            ("(top, left, jnp.zeros_like(top))", "(left, top, jnp.zeros_like(top))"),
            ("[n + 2 * e for n, e", "[n + e for n, e"),
            ("x[..., top : top + window[0], left", "x[..., left : left + window[0], left"),
            ('{"horizontal": -2, "vertical": -3}', '{"horizontal": -3, "vertical": -2}'),
            ("_uniform(key, x, 1)[0] < in_dtype", "_uniform(key, x, 1)[0] > in_dtype"),
            ("(count, *x.shape[:-3], 1, 1, 1)", "(count, 1, 1, 1)"),
            ("(jnp.pi / 180)", "(jnp.pi / 90)"),
            ("jnp.float32, minval=-1.0)", "jnp.float32)"),
            ("cosine * rows + sine * columns", "cosine * rows - sine * columns"),
            ("middle = [(n - 1) / 2", "middle = [n / 2"),
            ("jnp.floating) else jnp.round(y))", "jnp.floating) else y)"),
            ('"REFLECT": "mirror"', '"REFLECT": "reflect"'),
            ('{"nearest": 0, "linear": 1}', '{"nearest": 1, "linear": 1}'),
            ("(area[1] - area[0]) * draws[0]", "area[1] * draws[0]"),
            ("jnp.log(jnp.clip(each, *fitting))", "jnp.clip(each, *fitting)"),
            (
                "(0, pixels * ratio, draws[2]), (1, pixels / ratio",
                "(0, pixels, draws[2]), (1, pixels",
            ),
            ("jnp.log(jnp.clip(each, *fitting))", "jnp.log(each)"),
            ("pixels / ratio, draws[3])", "pixels / ratio, draws[2])"),
            ("jnp.floor(draw * (n - size + 1))", "jnp.floor(draw * n)"),
            ("x.shape, 0, 256", "x.shape, 0, 128"),
            ("normal(key, x.shape, wide", "normal(key, x.shape[-3:], wide"),
        ],
    ),
}
