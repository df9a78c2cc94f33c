"""Losses of a large vocabulary. N is the tokens, D the width, V the vocabulary."""

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_count
from fdl.losses.cross_entropy import softmax_cross_entropy
from fdl.losses.per_example import per_example
from fdl.losses.shapes import alike, precise
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
    """-log softmax(hidden @ w)[label], in nats, without ever holding all logits.

    Chunks of tokens are scored one after the other, and scored again in the backward pass: one
    matrix product more, for a memory of [chunk, V] in place of [N, V].

    Args:
      hidden: [..., D], what the last layer before the vocabulary gives.
      w: [D, V]; for a tied embedding its transpose.
      labels: [...], integers in [0, V); one out of range gives NaN, as in `softmax_cross_entropy`.
      chunk: how many tokens at once, >= 1; a matter of memory and speed alone.
      ignore_index: the label that does not count, such as -100; see `softmax_cross_entropy`.
      where: bool, of the labels' shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0. Products of bfloat16 are summed in float32, and so is the
      gradient by w.

    Raises:
      PathError: shapes that do not fit.
      ValueError: a chunk below 1.

    Example:
      >>> linear_cross_entropy(jnp.ones((3, 2)), jnp.zeros((2, 4)), jnp.array([0, 3, 1]), chunk=2)
      Array([1.3862944, 1.3862944, 1.3862944], dtype=float32)

    Source: Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models", section 4,
    in the simpler form that keeps a chunk of logits.
    """
    chunk = check_count("linear_cross_entropy", "chunk", chunk, "it counts tokens")
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
    """(log sum exp logits)^2: a term that keeps logits from drifting away.

    Args:
      logits: [..., C], a floating dtype.
      where: bool, of the loss's shape; where it is False, loss and gradient are 0, of a NaN too.

    Returns:
      [...], float32 or better, >= 0; to be added to a cross-entropy, times 1e-4 in the paper.

    Example:
      >>> z_loss(jnp.log(jnp.array([0.5, 0.5])))
      Array(0., dtype=float32)

    Source: Chowdhery et al. 2022, "PaLM", section 5.
    """
    (logits, _) = alike("z_loss", logits, logits, axes=1)
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
    # Kept in float32 so that the chunks' gradients are summed in it.
    kept = precise(w)

    def one(token: jax.Array, label: jax.Array) -> jax.Array:
        logits = jnp.dot(token, kept.astype(w.dtype), preferred_element_type=kept.dtype)
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
            f"got {labels.dtype} {list(labels.shape)}; one class number for each token",
            layer="linear_cross_entropy",
        )
