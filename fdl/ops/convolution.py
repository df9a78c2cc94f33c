"""Convolution and its two gradients, fast on every platform.

    convolve          x [N, *input, C],   w [*kernel, C / G, F]   -> y [N, *output, F]
    _input_gradient   dy [N, *output, F], w                       -> dx
    _kernel_gradient  x, dy                                       -> dw

N is the number of images, C the number of channels, F the number of features, and G the number of
groups; input, kernel and output are the sizes of 1 to 3 spatial axes. dx, dy and dw are the
gradients with respect to x, y and w. Each of the three functions is linear in each of its two
operands, and its transpose with respect to one operand is one of the other two functions. So these
three primitives are enough for derivatives of any order, in forward and in reverse mode. On CPU,
they run the code of convolution_cpu.py; on other platforms, they run the convolution of XLA.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from fdl.ops import convolution_cpu
from fdl.ops.primitives import Primitive, bilinear
from fdl.ops.sharding import by_batch, full_beside
from fdl.ops.windows_and_padding import Window

Fold = tuple[int, bool]


def convolve(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """y[n, p, f] = sum over t, c of x[n, p * stride + t * dilation - low, c] w[t, c, f].

    p is a position in the output, t a position in the kernel, and low the padding at the low end of
    each axis. The kernel is not flipped.

    Args:
      x: [N, *input, C].
      w: [*kernel, C / G, F]; features of group g see only channels of group g.
      window: sizes, stride, padding, dilation and G.

    Returns:
      y [N, *output, F].

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", equation 9.7 with strides.
    """
    dtype = jnp.promote_types(x.dtype, w.dtype)
    form = functools.partial(_convolve.bind, window=window)
    return by_batch(form, x.astype(dtype), w.astype(dtype))


def convolve_transposed(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    """The transpose of `convolve` with respect to x: the map from dy to dx of a convolution.

    Args:
      x: [N, *output, F], the shape of the convolution's output.
      w: [*kernel, C / G, F], the kernel of the convolution.
      window: the window of the convolution.

    Returns:
      y [N, *input, C].

    Source: Dumoulin and Visin 2016, arXiv 1603.07285, section 4.
    """
    dtype = jnp.promote_types(x.dtype, w.dtype)
    form = functools.partial(_input_gradient.bind, window=window)
    return by_batch(form, x.astype(dtype), w.astype(dtype))


def _convolve_by_xla(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    axes = "DHW"[-len(window.kernel) :]
    return jax.lax.conv_general_dilated(
        x,
        w,
        window.stride,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=window.groups,
    )


def _input_gradient_by_xla(dy: jax.Array, w: jax.Array, window: Window) -> jax.Array:
    anywhere = full_beside(dy, 0, _input_shape(dy, w, window), 0, dy.dtype)
    return jax.vjp(lambda x: _convolve_by_xla(x, w, window), anywhere)[1](dy)[0]


def _kernel_gradient_by_xla(x: jax.Array, dy: jax.Array, window: Window) -> jax.Array:
    anywhere = full_beside(dy, 0, _kernel_shape(x, dy, window), 0, dy.dtype)
    return jax.vjp(lambda w: _convolve_by_xla(x, w, window), anywhere)[1](dy)[0]


def _output_shape(x: Any, w: Any, window: Window) -> tuple[int, ...]:
    return (x.shape[0], *window.output, w.shape[-1])


def _input_shape(dy: Any, w: Any, window: Window) -> tuple[int, ...]:
    return (dy.shape[0], *window.input, w.shape[-2] * window.groups)


def _kernel_shape(x: Any, dy: Any, window: Window) -> tuple[int, ...]:
    return (*window.kernel, x.shape[-1] // window.groups, dy.shape[-1])


def _primitive(
    name: str,
    by_xla: Callable[..., jax.Array],
    on_cpu: Callable[..., jax.Array],
    shape: Callable[..., tuple[int, ...]],
    folds: dict[tuple[bool, bool], tuple[Fold | None, Fold | None, Fold]],
) -> Primitive:
    """A primitive of two operands and one result, without derivatives; see `bilinear`.

    Args:
      folds: where the batch axis of `vmap` goes. A key is a pair: True if operand a has this axis,
        and True if operand b has it. The value says where the axis goes in a, b and the result: the
        arguments (axis, within) of `_fold`, or None if the operand does not have the axis.
    """

    def batch(operands: Any, axes: Any, window: Window) -> tuple[jax.Array, int]:
        each = list(zip(operands, axes, strict=True))
        size = next(a.shape[axis] for a, axis in each if axis is not None)
        *into, (out_axis, within) = folds[axes[0] is not None, axes[1] is not None]
        folded = [
            a if fold is None else _fold(jnp.moveaxis(a, axis, 0), *fold, window.groups)
            for (a, axis), fold in zip(each, into, strict=True)
        ]
        groups = window.groups * (size if None not in axes else 1)
        y = primitive.bind(*folded, window=window.with_groups(groups))
        return _unfold(y, size, out_axis, within, window.groups), 0

    primitive = bilinear(name, by_xla, on_cpu, shape, batch)
    return primitive


def _fold(a: jax.Array, axis: int, within: bool, groups: int) -> jax.Array:
    """Merges the first axis of `a` into another axis: into each of its groups if `within`."""
    parts = groups if within else 1
    axis += a.ndim if axis < 0 else 1
    a = a.reshape(*a.shape[:axis], parts, a.shape[axis] // parts, *a.shape[axis + 1 :])
    a = jnp.moveaxis(a, 0, axis)
    return jax.lax.collapse(a, axis - 1, axis + 2)


def _unfold(y: jax.Array, size: int, axis: int, within: bool, groups: int) -> jax.Array:
    """The inverse of `_fold`."""
    parts = groups if within else 1
    axis += y.ndim if axis < 0 else 0
    y = y.reshape(
        *y.shape[:axis], parts, size, y.shape[axis] // (parts * size), *y.shape[axis + 1 :]
    )
    y = jnp.moveaxis(y, axis + 1, 0)
    return jax.lax.collapse(y, axis + 1, axis + 3)


# Where the batch axis of vmap goes: (axis, True if it goes inside every group). If one operand is
# batched, the result is a convolution of more images, channels or features. If both are batched, it
# is a convolution of more groups.
IMAGES, CHANNELS, WITHIN, INPUTS = (0, False), (-1, False), (-1, True), (-2, False)
BOTH = {(True, True): (CHANNELS, CHANNELS, CHANNELS)}

_convolve = _primitive(
    "convolve",
    _convolve_by_xla,
    convolution_cpu.convolve,
    _output_shape,
    {(True, False): (IMAGES, None, IMAGES), (False, True): (None, WITHIN, WITHIN), **BOTH},
)
_input_gradient = _primitive(
    "convolve_input_gradient",
    _input_gradient_by_xla,
    convolution_cpu.input_gradient,
    _input_shape,
    {(True, False): (IMAGES, None, IMAGES), (False, True): (None, INPUTS, WITHIN), **BOTH},
)
_kernel_gradient = _primitive(
    "convolve_kernel_gradient",
    _kernel_gradient_by_xla,
    convolution_cpu.kernel_gradient,
    _kernel_shape,
    {(True, False): (WITHIN, None, INPUTS), (False, True): (None, WITHIN, WITHIN), **BOTH},
)

# The transposes: from a cotangent of the result to the cotangent of the first or second operand.
ad.defbilinear(
    _convolve,
    lambda dy, x, w, *, window: _input_gradient.bind(dy, w, window=window),
    lambda dy, x, w, *, window: _kernel_gradient.bind(x, dy, window=window),
)
ad.defbilinear(
    _input_gradient,
    lambda dx, dy, w, *, window: _convolve.bind(dx, w, window=window),
    lambda dx, dy, w, *, window: _kernel_gradient.bind(dx, dy, window=window),
)
ad.defbilinear(
    _kernel_gradient,
    lambda dw, x, dy, *, window: _input_gradient.bind(dy, dw, window=window),
    lambda dw, x, dy, *, window: _convolve.bind(x, dw, window=window),
)
