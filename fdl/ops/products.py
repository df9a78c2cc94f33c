"""x @ w for x with any leading axes, as one product of two matrices."""

import math

import jax
from jax.sharding import AxisType


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w, with all leading axes of x merged into one.

    Without the merge, if x has three axes, XLA's CPU compiler copies x and dy before it computes
    the gradient with respect to w, and then multiplies them in the slower order. For x
    [64, 32, 128] and w [128, 512] on one core, this is 42 billion operations a second; with the
    merge, it is 191 billion (benchmarks/products.py). On GPU and TPU, the merge moves no data.

    Args:
      x: [..., D].
      w: [D, F].

    Returns:
      [..., F].
    """
    # On an explicit mesh, axes that are sharded cannot be merged.
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    if x.ndim <= 2 or explicit:
        return x @ w
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ w
    return flat.reshape(*x.shape[:-1], w.shape[-1])
