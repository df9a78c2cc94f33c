"""Convolution and its two gradients, in forms that are fast on a CPU even inside a loop.

XLA's CPU compiler has fast code for one layout only: images NHWC, kernel HWIO and result NHWC. The
convolutions in JAX's gradients have different layouts. XLA converts them to the fast layout only in
the outermost computation of a compiled function, not in the body of a `lax.scan`, where training
runs. So in this module, the gradient with respect to the input has the fast layout, and the
gradient with respect to the kernel is written as matrix products. Groups are computed one by one.
Narrow groups (see NARROW) are computed as shifted images times elements of the kernel.
benchmarks/convolution.py measures all of these forms. Letters mean the same as in convolution.py.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from fdl.ops import convolution_blocks as blocks
from fdl.ops.sharding import full_beside
from fdl.ops.windows_and_padding import Window

# A chunk of images has at most this many elements of patches: 4 MB of float32, which stay in the
# CPU's cache. If a single image has more, a chunk is one image.
PATCHES = 2**20
# Groups are narrow if C / G * F / G, the number of weights of a group at each position of the
# kernel, is at most this. Matrix products would then be tiny, and shifted images are faster (for 64
# groups of one channel: 0.7 ms instead of 30 ms).
NARROW = 4


def _in_float32(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A decorator: `form` computes half precision in float32, which is also faster on a CPU."""

    @functools.wraps(form)
    def wide(a: jax.Array, b: jax.Array, window: Window) -> jax.Array:
        exact = jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype
        return form(a.astype(exact), b.astype(exact), window).astype(a.dtype)

    return wide


@_in_float32
def convolve(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """The result y of `convolution.convolve`."""
    if x.shape[0] == 0:
        return jnp.zeros((0, *window.output, w.shape[-1]), x.dtype)
    return _convolve(x, w, window)


@_in_float32
def input_gradient(dy: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """dx: dy with stride - 1 zeros between its elements, convolved with the flipped w."""
    if dy.shape[0] == 0:
        return jnp.zeros((0, *window.input, w.shape[-2] * window.groups), dy.dtype)
    rank = len(window.kernel)
    spread = tuple((n - 1) * s + 1 for n, s in zip(window.output, window.stride, strict=True))
    low = [e - 1 - pads[0] for e, pads in zip(window.extent, window.padding, strict=True)]
    # The padding at the high end gives the result the size of x. It is negative if the last window
    # began beyond the end of x.
    each = zip(window.input, window.extent, spread, low, strict=True)
    padding = tuple((below, n + e - 1 - size - below) for n, e, size, below in each)
    flipped = Window(spread, window.kernel, (1,) * rank, padding, window.dilation, window.groups)
    w = jnp.flip(w, tuple(range(rank)))
    w = jnp.swapaxes(w.reshape(*w.shape[:-1], window.groups, -1), -3, -1)
    w = w.reshape(*w.shape[:-2], -1)
    return _spread_and_convolve(dy, w, flipped, window.stride)


@_in_float32
def kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """dw: for each element of w, the sum of dy times the elements of x that it multiplies."""
    if x.shape[0] == 0:
        return jnp.zeros((*window.kernel, x.shape[-1] // window.groups, dy.shape[-1]), x.dtype)
    if len(window.kernel) > 2 and window.groups == 1:
        errors = dy.reshape(-1, *dy.shape[2:])
        planes = _planes(x, window)
        return jnp.stack([kernel_gradient(seen, errors, _plane_window(window)) for seen in planes])
    if window.groups == 1:
        size = blocks.size_for_kernel(window, x.shape[-1], dy.shape[-1])
        if size == 1:
            return _patches_by_errors(x, dy, window)
        x, dy = blocks.of_image(x, window, size), blocks.of_errors(dy, window, size)
        dw = _patches_by_errors(x, dy, blocks.of_window(window, size))
        return blocks.to_kernel(dw, window, size)
    if x.shape[-1] * dy.shape[-1] <= NARROW * window.groups**2:
        return _narrow_kernel_gradient(x, dy, window)
    return _group_by_group(kernel_gradient, x, dy, window)


def _spread_and_convolve(
    x: jax.Array, w: jax.Array, window: Window, spread: tuple[int, ...]
) -> jax.Array:
    """Convolves x, after putting spread - 1 zeros between its elements."""
    if window.groups > 1 and not _is_narrow(w, window):
        return _group_by_group(functools.partial(_spread_and_convolve, spread=spread), x, w, window)
    if window.groups == 1 and max(spread) > 1:
        if blocks.is_fast_on_spread(w, window, spread):
            w, fitted = blocks.of_spread(w, window, spread)
            return blocks.to_spread_results(_convolve(x, w, fitted), window, spread)
        return _side_by_side(x, w, window, spread)
    between = [(0, 0, step - 1) for step in spread]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *between, (0, 0, 0)))
    return _convolve(x, w, window)


def _is_narrow(w: jax.Array, window: Window) -> bool:
    return w.shape[-2] * w.shape[-1] <= NARROW * window.groups


def _convolve(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """`convolve` in one dtype; padding can be negative."""
    if window.groups > 1 and not _is_narrow(w, window):
        return _group_by_group(_convolve, x, w, window)
    if len(window.kernel) > 2 and window.groups == 1:
        planes, plane = _planes(x, window), _plane_window(window)
        parts = (_convolve(seen, w[at], plane) for at, seen in enumerate(planes))
        return functools.reduce(jnp.add, parts).reshape(x.shape[0], *window.output, w.shape[-1])
    if window.groups > 1 or min(map(min, window.padding)) < 0:
        edges = [(*pads, 0) for pads in window.padding]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        none = ((0, 0),) * len(edges)
        window = dataclasses.replace(window, input=x.shape[1:-1], padding=none)
    if window.groups > 1:
        return _shift_and_add(x, w, window)
    if math.prod(window.kernel) == 1:
        (seen,) = _shifts(*_fitted(x, window, window.output))
        return jnp.tensordot(seen, w.reshape(w.shape[-2:]), 1)
    size = blocks.size_of_blocks(window, *w.shape[-2:])
    if size == 1:
        return _side_by_side(x, w, window)
    x, w = blocks.of_image(x, window, size), blocks.of_kernel(w, window, size)
    y = _side_by_side(x, w, blocks.of_window(window, size))
    return blocks.to_results(y, window, size)


def _planes(x: jax.Array, window: Window) -> Iterator[jax.Array]:
    """For each position along the first axis of a 3-D kernel: the planes that it sees, as images.

    A 3-D convolution is computed as a sum of 2-D convolutions, because XLA's code for three axes is
    slow: for a 3 x 3 x 3 kernel, the sum takes a quarter of the time, and a seventh for the
    gradient with respect to the input.
    """
    (low, high), zero = window.padding[0], jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), (low, high, 0), *[(0, 0, 0)] * (x.ndim - 2)])
    for at in range(window.kernel[0]):
        start, stride = at * window.dilation[0], window.stride[0]
        end = start + (window.output[0] - 1) * stride + 1
        seen = jax.lax.slice_in_dim(x, start, end, stride, axis=1)
        yield seen.reshape(-1, *seen.shape[2:])


def _plane_window(window: Window) -> Window:
    """The window without its first axis."""
    cut = {
        name: getattr(window, name)[1:]
        for name in ("input", "kernel", "stride", "padding", "dilation")
    }
    return dataclasses.replace(window, **cut)


def _side_by_side(
    x: jax.Array, w: jax.Array, window: Window, spread: tuple[int, ...] | None = None
) -> jax.Array:
    """A convolution of one wide image: all images side by side along the last spatial axis.

    Zeros separate the images. XLA's fast code splits the result into rows, and uses a single core
    if the rows are short. Rows that contain all images give work to every core. For a 3 x 3 kernel
    on 28 x 28 images with two cores, this takes 8 ms instead of 17 ms. With `spread`, spread - 1
    zeros are between the elements of each image.
    """
    spread = spread or (1,) * len(window.kernel)
    images, size, apart = x.shape[0], x.shape[-2], spread[-1]
    (low, _), stride, extent = window.padding[-1], window.stride[-1], window.extent[-1]
    # `high` is how far an image's last window reaches beyond the image. The zeros there are also
    # the padding before the next image.
    high = (window.output[-1] - 1) * stride + extent - low - ((size - 1) * apart + 1)
    gap = max(0, -(-(max(low, high) - apart + 1) // apart))
    period = max(size + gap, -(-window.output[-1] * stride // apart))
    period = -(-period // stride) * stride
    edges = [(0, 0, 0)] * x.ndim
    edges[-2] = (0, period - size, 0)
    x = jnp.moveaxis(jax.lax.pad(x, jnp.zeros((), x.dtype), edges), 0, -3)
    x = x.reshape(1, *x.shape[:-3], images * period, x.shape[-1])
    each = period * apart // stride
    end = extent - stride - low + apart - 1
    if apart == 1 and -x.shape[-2] < end < 0:
        x, end = jax.lax.slice_in_dim(x, 0, x.shape[-2] + end, axis=x.ndim - 2), 0
    axes = "DHW"[-len(spread) :]
    y = jax.lax.conv_general_dilated(
        x,
        w,
        window.stride,
        (*window.padding[:-1], (low, end)),
        lhs_dilation=spread,
        rhs_dilation=window.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    y = y.reshape(*y.shape[1:-2], images, each, y.shape[-1])
    return jnp.moveaxis(jax.lax.slice_in_dim(y, 0, window.output[-1], axis=y.ndim - 2), -3, 0)


def _group_by_group(
    form: Callable[..., jax.Array], a: jax.Array, b: jax.Array, window: Window
) -> jax.Array:
    """Applies `form` to one group after another.

    Groups are parts of the last axis of a, of b and of the result.
    """
    a, b = (
        jnp.moveaxis(each.reshape(*each.shape[:-1], window.groups, -1), -2, 0) for each in (a, b)
    )
    y = jax.lax.map(lambda pair: form(*pair, window.with_groups(1)), (a, b))
    return jnp.moveaxis(y, 0, -2).reshape(*y.shape[1:-1], -1)


def _shift_and_add(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """A convolution with narrow groups and without padding, by shifted images times weights."""
    w = w.reshape(-1, w.shape[-2], window.groups, w.shape[-1] // window.groups)
    x = x.reshape(*x.shape[:-1], window.groups, -1)
    terms = (
        seen[..., channel, None] * w[number, channel]
        for number, seen in enumerate(_shifts(x, window))
        for channel in range(w.shape[1])
    )
    y = functools.reduce(jnp.add, terms)
    return y.reshape(*y.shape[:-2], -1)


def _narrow_kernel_gradient(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """The gradient of a kernel with narrow groups: every shifted image times dy, summed.

    The sum is written as a matrix product with ones. XLA's sum would compute the products of image
    and dy one number at a time, and would take four times as long.
    """
    x, window = _fitted(x, window, window.output)
    x, dy = (each.reshape(*each.shape[:-1], window.groups, -1) for each in (x, dy))
    places = tuple(range(dy.ndim - 2))

    def of(x: jax.Array, dy: jax.Array) -> jax.Array:
        ones = jnp.ones(dy.shape[:-2], dy.dtype)
        seen = (each[..., i, None] for each in _shifts(x, window) for i in range(x.shape[-1]))
        return jnp.stack([jnp.tensordot(ones, each * dy, (places, places)) for each in seen])

    # The loop over images makes XLA read x and dy from memory. Without the loop, XLA would repeat
    # the computation of x and dy in every product (9 ms with the loop, 17 ms without it).
    shape = jax.eval_shape(of, x[:1], dy[:1]).shape
    dw = _over_images(of, x, dy, 1, shape)
    return dw.reshape(*window.kernel, x.shape[-1], -1)


def _patches_by_errors(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    """dw as a matrix product of x's patches [N * output, kernel * C] and dy [N * output, F].

    It is computed in chunks of images, and in the order that gives the longer rows: for 3 x 3
    kernels, this takes 0.85 to 0.9 times as long as the other order.
    """
    x, window = _fitted(x, window, window.output)
    images, sums = len(x), tuple(range(x.ndim - 1))
    patch, features = math.prod(window.kernel) * x.shape[-1], dy.shape[-1]
    turned = patch > features

    def of(x: jax.Array, dy: jax.Array) -> jax.Array:
        patches = jnp.concatenate(list(_shifts(x, window)), axis=-1)
        pair = (dy, patches) if turned else (patches, dy)
        return jax.lax.dot_general(*pair, ((sums, sums), ((), ())))

    most = max(1, PATCHES // max(1, patch * math.prod(window.output)))
    chunk = next((n for n in range(min(most, images), 0, -1) if images % n == 0), 0)
    if chunk == images or math.prod(window.kernel) == 1:
        dw = of(x, dy)
    else:
        dw = _over_images(of, x, dy, chunk, (features, patch) if turned else (patch, features))
    # Without the barrier, XLA would turn the transpose into the other form of the product.
    dw = jax.lax.optimization_barrier(dw).T if turned else dw
    return dw.reshape(*window.kernel, x.shape[-1], features)


def _over_images(
    form: Callable[..., jax.Array], x: jax.Array, dy: jax.Array, chunk: int, shape: tuple[int, ...]
) -> jax.Array:
    """The sum of form(x, dy), an array of `shape`, over chunks of images."""
    # Each chunk takes images from all parts of the batch. So if the batch is sharded over devices,
    # no image moves to a different device.
    x, dy = (each.reshape(chunk, len(each) // chunk, *each.shape[1:]) for each in (x, dy))

    def add(i: jax.Array, dw: jax.Array) -> jax.Array:
        return dw + form(*(jax.lax.dynamic_index_in_dim(each, i, 1, False) for each in (x, dy)))

    return jax.lax.fori_loop(0, x.shape[1], add, full_beside(x, 0, shape, 0, x.dtype))


def _fitted(x: jax.Array, window: Window, output: tuple[int, ...]) -> tuple[jax.Array, Window]:
    """(x after padding, without the elements that no window sees; the window without padding)."""
    sizes = tuple(
        (n - 1) * s + e for n, s, e in zip(output, window.stride, window.extent, strict=True)
    )
    each = zip(x.shape[1:-1], sizes, window.padding, strict=True)
    edges = [(low, size - n - low, 0) for n, size, (low, _) in each]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    none = ((0, 0),) * len(sizes)
    return x, dataclasses.replace(window, input=sizes, padding=none)


def _shifts(x: jax.Array, window: Window) -> Iterator[jax.Array]:
    """For each position of the kernel: the part [N, *output, ...] of x that this position sees."""
    for place in itertools.product(*map(range, window.kernel)):
        seen = x
        for axis, at in enumerate(place):
            start = at * window.dilation[axis]
            stride = window.stride[axis]
            end = start + (window.output[axis] - 1) * stride + 1
            seen = jax.lax.slice_in_dim(seen, start, end, stride, axis + 1)
        yield seen
