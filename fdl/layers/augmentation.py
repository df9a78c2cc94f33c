"""Augmentation: layers that change images at random in training.

In evaluation, they are the identity, except that `random_crop` returns the middle of each image.

x is [..., H, W, C]: any number of images of H rows, W columns and C channels. It may have any real
dtype, and y has the same dtype. Each image is changed independently. The changes are computed from
the random key, so a run that is stopped and continued sees the same images. Except for the noise of
`random_erasing`, the changes do not depend on C. So to change images and their masks in the same
way, apply the layer to both with the same key.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fdl.checks import (
    OptionError,
    check_concrete_number,
    check_number,
    check_ordered,
    check_shape,
    described,
    in_dtype,
    is_concrete_number,
)
from fdl.core.decoding_cache import at_once
from fdl.core.layer import Layer
from fdl.layers.weightless import weightless
from fdl.ops.numerics import wide
from fdl.ops.windows_and_padding import PAD_MODES, as_images, for_each_axis
from fdl.paths import PathError
from fdl.typing import Array, Key

AXES = {"horizontal": -2, "vertical": -3}
INTERPOLATION = {"nearest": 0, "linear": 1}
# `fill` -> the `mode` of jax.scipy.ndimage that continues an image beyond its edges in this way.
MODES = {"CIRCULAR": "wrap", "REFLECT": "mirror", "EDGE": "nearest"}
NOISE = "noise"


def random_crop(
    size: int | tuple[int, int],
    *,
    padding: int | tuple[int, int] = 0,
    fill: float | str = 0.0,
    name: str = "random_crop",
) -> Layer:
    """Cuts a window of `size` out of each image, at a random place in training.

    In training, every place at which the window fits into the padded image is equally likely. In
    evaluation, the window is in the middle, rounded towards the first row and column. So if `size`
    is the size of the images, as is usual with padding, the layer is the identity in evaluation.

    Args:
      size: the height and width of the window, integers >= 1, or one integer for both.
      padding: (rows, columns), integers >= 0, or one integer for both: the number of rows to add
        above each image and again below it, and the number of columns to add on its left and again
        on its right.
      fill: the value of added pixels; or "EDGE", "REFLECT" or "CIRCULAR", as in `conv`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C] to y [..., *size, C] of the same dtype; no params, no state.

    Raises:
      ValueError: an option is out of range.
      PathError: the padded image is smaller than the window, x is not [..., H, W, C], x cannot hold
        the number `fill`, or no key is passed in training.

    Example:
      >>> x = jnp.arange(25.0).reshape(1, 5, 5, 1)
      >>> random_crop(3).apply({}, {}, x)[0][0, ..., 0]
      Array([[ 6.,  7.,  8.],
             [11., 12., 13.],
             [16., 17., 18.]], dtype=float32)
      >>> layer = random_crop(5, padding=1)
      >>> layer.apply({}, {}, x, key=jax.random.key(1), train=True)[0].shape
      (1, 5, 5, 1)

    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural
    networks", section 4.1; with padding, He et al. 2015, arXiv 1512.03385, section 4.2.
    """
    window = for_each_axis("random_crop", "size", size, 2)
    edges = for_each_axis("random_crop", "padding", padding, 2, least=0)
    _check_fill("random_crop", fill)

    def check(x: Any) -> None:
        _check_images(name, x, fill=fill)
        if any(n + 2 * e < s for n, e, s in zip(x.shape[-3:-1], edges, window, strict=True)):
            raise PathError(
                f"expected an image not smaller than the window, {list(window)}, got "
                f"{list(x.shape[-3:-1])} with padding {list(edges)}; pad more, or cut out less",
                layer=name,
            )

    def middle(x: Array) -> Array:
        spare = [n - s for n, s in zip(x.shape[-3:-1], window, strict=True)]
        if min(spare) < 0:
            x = _padded(x, edges, fill)
            spare = [n + 2 * e for n, e in zip(spare, edges, strict=True)]
        top, left = (n // 2 for n in spare)
        return x[..., top : top + window[0], left : left + window[1], :]

    def anywhere(key: Key, x: Array) -> Array:
        return _random_windows(key, _padded(x, edges, fill), window)

    return at_once(weightless(name, middle, training=anywhere, check=check))


def random_shift(
    pixels: int | tuple[int, int], *, fill: float | str = 0.0, name: str = "random_shift"
) -> Layer:
    """Moves each image by a random whole number of pixels in training.

    The shift in rows and the shift in columns are independent. All integers from -pixels to pixels
    are equally likely.

    Args:
      pixels: the largest shift in rows and the largest shift in columns, integers >= 0, or one
        integer for both.
      fill: the value of pixels that come from beyond the image; or "EDGE", "REFLECT" or "CIRCULAR",
        as in `conv`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: an option is out of range.
      PathError: x is not [..., H, W, C], x cannot hold the number `fill`, or no key is passed in
        training.

    Example:
      >>> x = jnp.arange(1.0, 5.0).reshape(4, 1, 1)
      >>> y, _ = random_shift((1, 0)).apply({}, {}, x, key=jax.random.key(2), train=True)
      >>> y.ravel().tolist() in ([0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0])
      True

    Source: keras.layers.RandomTranslation. Here, shifts are whole numbers of pixels, which need no
    interpolation.
    """
    edges = for_each_axis("random_shift", "pixels", pixels, 2, least=0)
    _check_fill("random_shift", fill)

    def moved(key: Key, x: Array) -> Array:
        return _random_windows(key, _padded(x, edges, fill), x.shape[-3:-1])

    return _random(name, moved, fill=fill)


def random_flip(
    direction: Literal["horizontal", "vertical"] = "horizontal",
    *,
    probability: float = 0.5,
    name: str = "random_flip",
) -> Layer:
    """Mirrors each image with the given probability in training.

    Use it only if a mirrored image has the same label. This is not true of digits and text.

    Args:
      direction: "horizontal" swaps left and right, "vertical" swaps top and bottom. For both,
        chain two layers.
      probability: the probability that an image is mirrored, in [0, 1]; may be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: direction is unknown, or probability is outside [0, 1].
      PathError: x is not [..., H, W, C], or no key is passed in training.

    Example:
      >>> x = jnp.arange(3.0).reshape(1, 3, 1)
      >>> layer = random_flip(probability=1.0)
      >>> layer.apply({}, {}, x, key=jax.random.key(0), train=True)[0].ravel()
      Array([2., 1., 0.], dtype=float32)

    Source: Krizhevsky et al. 2012, section 4.1.
    """
    if direction not in [*AXES]:
        raise OptionError(
            "random_flip",
            f"expected direction horizontal or vertical, got {described(direction)}; for both, "
            "chain two layers",
        )
    _check_probability("random_flip", probability)

    def flipped(key: Key, x: Array) -> Array:
        chosen = _uniform(key, x, 1)[0] < in_dtype(probability, jnp.float32)
        return jnp.where(chosen, jnp.flip(x, AXES[direction]), x)

    return _random(name, flipped)


def random_rotation(
    degrees: float,
    *,
    method: Literal["nearest", "linear"] = "linear",
    fill: float | str = 0.0,
    name: str = "random_rotation",
) -> Layer:
    """Turns each image about its centre by a random angle in training.

    The angle is uniform in [-degrees, degrees]. The size of the image does not change, so corners
    are cut off. Pixels are interpolated in float32 or wider; for an integer dtype, they are
    rounded.

    Args:
      degrees: the largest angle, in [0, 180]; may be traced. 180 allows all angles.
      method: "linear" interpolates between the four nearest pixels (bilinear). "nearest" takes the
        nearest pixel, so a mask of integer labels contains no new labels.
      fill: the value of pixels that come from beyond the image; or "EDGE", "REFLECT" or "CIRCULAR",
        as in `conv`.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: an option is out of range, or method is unknown.
      PathError: x is not [..., H, W, C], x cannot hold the number `fill`, or no key is passed in
        training.

    Example:
      >>> x = jnp.ones((2, 5, 5, 1))
      >>> y, _ = random_rotation(45.0).apply({}, {}, x, key=jax.random.key(0), train=True)
      >>> y[:, 2, 2, 0], bool((y[:, 0, 0, 0] < 1).all())
      (Array([1., 1.], dtype=float32), True)

    Source: keras.layers.RandomRotation, torchvision.transforms.RandomRotation.
    """
    remedy = "pass the largest angle in degrees, not in radians"
    check_number("random_rotation", "degrees", degrees, "[0, 180]", remedy)
    if method not in [*INTERPOLATION]:
        raise OptionError(
            "random_rotation",
            f"expected method nearest or linear, got {described(method)}; use nearest for labels",
        )
    _check_fill("random_rotation", fill)

    def turned(key: Key, x: Array) -> Array:
        share = jax.random.uniform(key, x.shape[:-3], jnp.float32, minval=-1.0)
        angles = share * in_dtype(degrees, jnp.float32) * (jnp.pi / 180)
        if isinstance(fill, str):
            beyond: dict[str, Any] = {"mode": MODES[fill]}
        else:
            beyond = {"mode": "constant", "cval": fill}
        y = _rotated(x, angles, order=INTERPOLATION[method], **beyond)
        return (y if jnp.issubdtype(x.dtype, jnp.floating) else jnp.round(y)).astype(x.dtype)

    return _random(name, turned, fill=fill)


def random_erasing(
    probability: float = 0.5,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
    value: float | Literal["noise"] = 0.0,
    name: str = "random_erasing",
) -> Layer:
    """Erases a random rectangle of each image, with the given probability, in training.

    The number of pixels s of the rectangle is uniform between H * W * area[0] and
    H * W * area[1]. The ratio r of its height to its width lies between aspect[0] and aspect[1],
    and is such that the rectangle fits into the image; log(r) is uniform within these limits. The
    rectangle then has sqrt(s r) rows and sqrt(s / r) columns, both rounded. All places of the
    rectangle are equally likely.

    Args:
      probability: the probability that a rectangle of an image is erased, in [0, 1]; may be traced.
      area: the smallest and largest share of the image that is erased, in (0, 1].
      aspect: the smallest and largest ratio of height to width, > 0. If no rectangle of these
        ratios fits, the nearest ratio that fits is used.
      value: the new value of the erased pixels: a number, or "noise" for random values. Noise has
        the standard normal distribution; for an integer dtype, it is uniform in 0, 1, ..., 255.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., H, W, C] to y of the same shape and dtype; no params, no state.

    Raises:
      ValueError: an option is out of range.
      PathError: x is not [..., H, W, C], x cannot hold the number `value`, or no key is passed in
        training.

    Example:
      >>> layer = random_erasing(1.0, area=(0.25, 0.25), aspect=(1, 1))
      >>> y, _ = layer.apply({}, {}, jnp.ones((4, 4, 1)), key=jax.random.key(0), train=True)
      >>> int((y == 0).sum())
      4

    Source: Zhong et al. 2017, arXiv 1708.04896, algorithm 1. The paper draws r uniformly, and draws
    again if the rectangle does not fit. Here log(r) is uniform, as in torchvision, so a ratio and
    its inverse are equally likely.
    """
    _check_probability("random_erasing", probability)
    areas = _checked_range("area", area, "(0, 1]", "(0.02, 0.33)")
    ratios = _checked_range("aspect", aspect, "(0, inf)", "(0.3, 3.3)")
    noisy = isinstance(value, str) and value == NOISE
    if not noisy:
        check_number("random_erasing", "value", value, "(-inf, inf)", "pass a number or 'noise'")

    def erased(key: Key, x: Array) -> Array:
        keys = jax.random.split(key)
        chance, *draws = _uniform(keys[0], x, 5)
        chosen = chance < in_dtype(probability, jnp.float32)
        filler = _noise(keys[1], x) if noisy else jnp.asarray(value, x.dtype)
        return jnp.where(chosen & _rectangles(draws, x.shape, areas, ratios), filler, x)

    return _random(name, erased, value=value)


def _random(name: str, draw: Callable[[Key, Array], Array], **pixels: Any) -> Layer:
    """A layer of images that is `draw(key, x)` in training, and the identity otherwise."""
    check = functools.partial(_check_images, name, **pixels)
    return weightless(name, lambda x: x, training=draw, check=check)


def _uniform(key: Key, x: Array, count: int) -> Array:
    """`count` random numbers in [0, 1) for each image, float32 [count, ..., 1, 1, 1]."""
    return jax.random.uniform(key, (count, *x.shape[:-3], 1, 1, 1), jnp.float32)


def _random_windows(key: Key, x: Array, size: tuple[int, ...]) -> Array:
    """Cuts a window [*size, C] out of each image [H, W, C] at a random place."""
    images = as_images(x, 2)
    limits = jnp.array([n - s + 1 for n, s in zip(images.shape[1:3], size, strict=True)], jnp.int32)
    start = jax.random.randint(key, (*x.shape[:-3], 2), 0, limits, jnp.int32).reshape(-1, 2)

    def cut(image: Array, top: Array, left: Array) -> Array:
        corner = (top, left, jnp.zeros_like(top))
        return jax.lax.dynamic_slice(image, corner, (*size, x.shape[-1]))

    y = jax.vmap(cut)(images, start[:, 0], start[:, 1])
    return y.reshape(*x.shape[:-3], *size, x.shape[-1])


def _padded(x: Array, edges: tuple[int, ...], fill: float | str) -> Array:
    """x with edges[0] more rows above and below, and edges[1] more columns left and right."""
    widths = [(0, 0)] * (x.ndim - 3) + [(each, each) for each in edges] + [(0, 0)]
    if isinstance(fill, str):
        return jnp.pad(x, widths, mode=PAD_MODES[fill])
    return jnp.pad(x, widths, constant_values=jnp.asarray(fill, x.dtype))


def _rotated(x: Array, angles: Array, **how: Any) -> Array:
    """Turns each image counter-clockwise by its angle [...] in radians; y is float32 or wider."""
    dtype = wide(x.dtype)
    images = as_images(x, 2).astype(dtype)
    middle = [(n - 1) / 2 for n in images.shape[1:3]]
    rows, columns = (
        jnp.arange(n, dtype=dtype) - at for n, at in zip(images.shape[1:3], middle, strict=True)
    )
    rows = rows[:, None]

    def turned(image: Array, angle: Array) -> Array:
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        places = [
            middle[0] + cosine * rows + sine * columns,
            middle[1] - sine * rows + cosine * columns,
        ]
        return jax.vmap(lambda channel: map_coordinates(channel, places, **how), -1, -1)(image)

    return jax.vmap(turned)(images, angles.ravel().astype(dtype)).reshape(x.shape)


def _rectangles(
    draws: list[Array],
    shape: tuple[int, ...],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Array:
    """The rectangles of `random_erasing`, as bool [..., H, W, 1], from 4 draws [..., 1, 1, 1]."""
    height, width = shape[-3:-1]
    pixels = (area[0] + (area[1] - area[0]) * draws[0]) * (height * width)
    fitting = pixels / width**2, height**2 / pixels  # the smallest and largest ratio that fits
    low, high = (jnp.log(jnp.clip(each, *fitting)) for each in aspect)
    ratio = jnp.exp(low + (high - low) * draws[1])
    inside = jnp.ones((1, 1, 1), bool)
    for axis, size, draw in ((0, pixels * ratio, draws[2]), (1, pixels / ratio, draws[3])):
        n = (height, width)[axis]
        size = jnp.clip(jnp.round(jnp.sqrt(size)), 1, n)
        start = jnp.floor(draw * (n - size + 1))
        place = jnp.arange(n, dtype=jnp.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        inside = inside & (place >= start) & (place < start + size)
    return inside


def _noise(key: Key, x: Array) -> Array:
    """Random pixels of the shape and dtype of x: standard normal, or integers in [0, 256)."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jax.random.normal(key, x.shape, wide(x.dtype)).astype(x.dtype)
    return jax.random.randint(key, x.shape, 0, 256, jnp.int32).astype(x.dtype)


def _check_images(name: str, x: Any, **pixels: Any) -> None:
    """Raises unless x is [..., H, W, C] and its dtype can hold the values of `pixels`.

    Args:
      name: the name of the layer, for the error message.
      x: any value.
      pixels: the options that give values of pixels, name -> value.
    """
    check_shape(name, x, "..., H, W, C", "add a channel axis with x[..., None], or reshape x")
    for what, value in pixels.items():
        if is_concrete_number(value) and jnp.issubdtype(x.dtype, jnp.integer):
            limits = jnp.iinfo(x.dtype)
            if not (float(value).is_integer() and limits.min <= value <= limits.max):
                raise PathError(
                    f"expected {what} to be an integer in [{limits.min}, {limits.max}] for x of "
                    f"dtype {x.dtype}, got {value}; pass such an integer, or use rescale(1 / 255) "
                    "before this layer",
                    layer=name,
                )


def _check_probability(who: str, probability: Any) -> None:
    check_number(who, "probability", probability, "[0, 1]", "pass 0.5 to change half of the images")


def _check_fill(who: str, fill: Any) -> None:
    if isinstance(fill, str) and fill not in PAD_MODES:
        raise OptionError(
            who,
            f"expected fill to be a number, EDGE, REFLECT or CIRCULAR, got {described(fill)}; pass "
            "0.0 for zeros",
        )
    if not isinstance(fill, str):
        check_concrete_number(who, "fill", fill, "(-inf, inf)", "pass 0.0 for zeros")


def _checked_range(what: str, pair: Any, interval: str, like: str) -> tuple[float, float]:
    """An option of `random_erasing` as (smallest, largest), two floats in the interval."""
    who = "random_erasing"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise OptionError(
            who, f"expected {what} to be (smallest, largest), got {described(pair)}; pass {like}"
        )
    for each in pair:
        check_concrete_number(who, what, each, interval, f"pass {like}")
    low, high = map(float, pair)
    check_ordered(who, f"{what} from the smallest to the largest", (low, high), f"pass {like}")
    return low, high
