"""Losses for a large vocabulary.

N is the number of tokens, D the number of features, V the number of different tokens.
"""

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_count
from fdl.losses.cross_entropy import softmax_cross_entropy
from fdl.losses.per_example import per_example
from fdl.losses.shapes import precise, same_shape
from fdl.paths import PathError


def linear_cross_entropy(
    hidden: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    *,
    chunk: int = 512,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """-log softmax(hidden @ w)[label], in nats, without holding all logits in memory.

    Logits are computed for one chunk of tokens at a time, and computed again in the backward pass.
    This costs one more matrix product, and reduces the memory for logits from [N, V] to [chunk, V].

    Args:
      hidden: [..., D], the output of the last layer before the logits.
      w: [D, V], the weights. If they are tied to an embedding [V, D], pass its transpose.
      labels: [...], integers in [0, V); a label outside this range gives NaN.
      chunk: the number of tokens in a chunk, >= 1. It affects memory and speed, not the result.
      ignore_index: the label to leave out, such as -100; see `softmax_cross_entropy`.
      where: bool, same shape as the labels. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0. For bfloat16 arguments, the matrix products and the
      gradient of w are accumulated in float32.

    Raises:
      PathError: the shapes do not fit, or labels are not integers.
      ValueError: chunk is below 1.

    Example:
      >>> linear_cross_entropy(jnp.ones((3, 2)), jnp.zeros((2, 4)), jnp.array([0, 3, 1]), chunk=2)
      Array([1.3862944, 1.3862944, 1.3862944], dtype=float32)

    Source: Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models", section 4.
    This version is simpler: it keeps the logits of a whole chunk in memory.
    """
    remedy = "pass the number of tokens in a chunk"
    chunk = check_count("linear_cross_entropy", "chunk", chunk, remedy)
    _check(hidden, w, labels)
    return _linear_cross_entropy(
        hidden, labels, w=w, chunk=chunk, ignore_index=ignore_index, where=where
    )


@per_example
def z_loss(
    logits: jax.Array,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """(log sum exp logits)^2, a penalty that keeps the denominator of softmax near 1.

    Args:
      logits: [..., C], a floating dtype.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0. Multiply it by a small number, 1e-4 in the paper, and
      add it to a cross-entropy.

    Raises:
      PathError: logits have no axes, or are not an array of real numbers.

    Example:
      >>> z_loss(jnp.log(jnp.array([0.5, 0.5])))
      Array(0., dtype=float32)

    Source: Chowdhery et al. 2022, "PaLM", section 5.
    """
    (logits, _) = same_shape("z_loss", logits, logits, axes=1)
    return jnp.square(jax.nn.logsumexp(logits, axis=-1))


@per_example
def _linear_cross_entropy(
    hidden: jax.Array,
    labels: jax.Array,
    *,
    w: jax.Array,
    chunk: int,
    ignore_index: int | jax.Array | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    tokens, flat = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    # w is widened to float32 so that the gradients of the chunks are summed in float32.
    wide_w = precise(w)

    def one(token: jax.Array, label: jax.Array) -> jax.Array:
        logits = jnp.dot(token, wide_w.astype(w.dtype), preferred_element_type=wide_w.dtype)
        return softmax_cross_entropy(logits, label)

    size = min(chunk, max(flat.size, 1))
    return jax.lax.map(
        lambda args: jax.checkpoint(one)(*args), (tokens, flat), batch_size=size
    ).reshape(labels.shape)


def _check(hidden: jax.Array, w: jax.Array, labels: jax.Array) -> None:
    for what, array in {"hidden": hidden, "w": w, "labels": labels}.items():
        check_array("linear_cross_entropy", array, what)
    if w.ndim != 2 or hidden.shape[-1:] != w.shape[:1]:
        raise PathError(
            f"expected w [{hidden.shape[-1] if hidden.ndim else 'D'}, V] for hidden "
            f"{list(hidden.shape)}, got {list(w.shape)}; if w is an embedding [V, D], pass w.T",
            layer="linear_cross_entropy",
        )
    if hidden.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise PathError(
            f"expected integer labels {list(hidden.shape[:-1])} for hidden {list(hidden.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}; pass one label for each row of hidden",
            layer="linear_cross_entropy",
        )
