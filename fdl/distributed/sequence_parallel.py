"""Attention for sequences that are split over devices."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from fdl.checks import check_count
from fdl.distributed.presets import check_axis
from fdl.ops.attention import dot_product_attention
from fdl.ops.attention_ring import Ring


def ring_attention(
    mesh: Mesh, axis: str = "sequence", *, chunk: int | None = None
) -> Callable[..., jax.Array]:
    """Attention of which each device computes a part: the outputs for T / n of the T queries.

    n is the size of the mesh axis. Each device also holds the keys and values of T / n tokens. The
    keys and values go around from device to device in n steps, once in the forward and once in the
    backward pass.
    The result is that of `dot_product_attention`, except for rounding. A device needs memory for
    T / n tokens, and for the scores [..., H, T / n, T / n] of one step.

    In a network that attends with this function, the compiler also splits everything between two
    attentions: each device computes it for T / n tokens.

    Args:
      mesh: from `fdl.distributed.mesh`, with an axis for the sequence: the mesh of the layout.
      axis: the name of this axis.
      chunk: the number of queries, and of keys, in a block. The scores of a step are then computed
        block by block. None computes them all at once.

    Returns:
      A function with the arguments of `dot_product_attention`, except `on_weights` and `chunk`.
      Pass it as `kernel` to `attention`, `gpt` and others. If n does not divide T, the last devices
      get padding. The function has a backward pass of its own, so `jax.grad` and `jax.vjp` work,
      also twice, but `jax.jvp` does not.

    Raises:
      ValueError: the mesh does not have the axis.
      OptionError: chunk is not an int >= 1.

    Example:
      >>> import fdl, jax.numpy as jnp
      >>> from fdl.distributed import mesh
      >>> attend = ring_attention(mesh(sequence=1))
      >>> q = k = jnp.zeros((2, 1, 4))
      >>> attend(q, k, jnp.array([1.0, 3.0]).reshape(2, 1, 1), causal=True).ravel()
      Array([1., 2.], dtype=float32)
      >>> model = fdl.gpt(65, 16, layers=2, heads=2, features=8, kernel=attend)

    Source: Liu, Zaharia and Abbeel 2023, arXiv 2310.01889, section 3.
    """
    check_axis("ring_attention", mesh, axis)
    if chunk is not None:
        chunk = check_count("ring_attention", "chunk", chunk, "leave it out for the default")
    return functools.partial(dot_product_attention, chunk=Ring(mesh, axis, chunk))
