"""x @ w for x with any leading axes, as one product of two matrices."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from fdl.ops.bfloat16_products import product_in_bfloat16
from fdl.ops.fence import unmerged


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w, with all leading axes of x merged into one.

    The merge speeds up the gradient with respect to w on CPU, which is a product of x and dy, the
    gradient with respect to the result. For an x with three axes that are not merged, XLA's CPU
    compiler copies x and dy first, and then multiplies the copies slowly. For x [64, 32, 128] and
    w [128, 512] on one core, this is 42 billion operations a second; with the merge, it is 191
    billion (benchmarks/products.py). On GPU and TPU, the merge moves no data.

    Args:
      x: [..., D].
      w: [D, F].

    Returns:
      [..., F].
    """
    # Axes that are split over devices cannot be merged without gathering them. A program with such
    # axes is traced on a mesh; see `Layout.on_mesh`.
    cut = {AxisType.Explicit, AxisType.Auto} & {*jax.sharding.get_abstract_mesh().axis_types}
    if x.ndim < 2 or cut:
        return x @ w
    flat = _of_matrices(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), w)
    return flat.reshape(*x.shape[:-1], w.shape[-1])


def _of_matrices(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [N, D] @ w [D, F], in forms whose gradients are fast on CPU.

    For bfloat16, see bfloat16_products.py. In other dtypes, XLA's CPU compiler computes x^T dy
    [D, F] slowly if D is much larger than F, because its rows are short. Then the gradient with
    respect to w is computed as (dy^T x)^T. For N = 4,096, D = 512 and F = 10, it takes 0.15 of the
    time, and for F = 128, 0.67 (benchmarks/products.py). With few rows in x, the transpose would
    cost more than it saves.
    """
    # On several devices, these forms would gather or keep more of matrices that are split.
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return x @ w
    if x.dtype == w.dtype == jnp.bfloat16:
        return product_in_bfloat16(x, w)
    rows, (inputs, outputs) = x.shape[0], w.shape
    known = isinstance(rows, int) and isinstance(inputs, int) and isinstance(outputs, int)
    if not known or inputs < 2 * outputs or 4 * rows < inputs:
        return x @ w
    return x @ unmerged(w.T).T
