"""Losses of a large vocabulary. N is the number of tokens, D the width, V the vocabulary."""

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

    It computes the logits for one chunk of tokens after the other, and again in the backward pass:
    one more matrix product, and a memory of [chunk, V] instead of [N, V].

    Args:
      hidden: [..., D], the output of the last layer before the logits.
      w: [D, V]; for a tied embedding, its transpose.
      labels: [...], integers in [0, V); a label out of range gives NaN.
      chunk: tokens per chunk, >= 1; it changes memory and speed, not the result.
      ignore_index: the label to leave out, such as -100; see `softmax_cross_entropy`.
      where: bool, of the labels' shape; where False, loss and gradient are 0, even for a NaN.

    Returns:
      [...], float32 or better, >= 0. Products of bfloat16 and the gradient of w are summed in
      float32.

    Raises:
      PathError: shapes that do not fit.
      ValueError: a chunk below 1.

    Example:
      >>> linear_cross_entropy(jnp.ones((3, 2)), jnp.zeros((2, 4)), jnp.array([0, 3, 1]), chunk=2)
      Array([1.3862944, 1.3862944, 1.3862944], dtype=float32)

    Source: Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models", section 4;
    simpler, since it keeps one chunk of logits.
    """
    chunk = check_count("linear_cross_entropy", "chunk", chunk, "it is a number of tokens")
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
    """(log sum exp logits)^2: a penalty that keeps logits from drifting.

    Args:
      logits: [..., C], a floating dtype.
      where: bool, of the loss's shape; where False, loss and gradient are 0, even for a NaN.

    Returns:
      [...], float32 or better, >= 0; add it to a cross-entropy, times 1e-4 as in the paper.

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
    # In float32, so that the gradients of the chunks are summed in float32.
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
            f"{list(hidden.shape)}, got {list(w.shape)}; transpose a tied embedding",
            layer="linear_cross_entropy",
        )
    if hidden.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise PathError(
            f"expected integer labels {list(hidden.shape[:-1])} for hidden {list(hidden.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}; pass one class number for every token",
            layer="linear_cross_entropy",
        )
