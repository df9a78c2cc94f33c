"""Losses for sequences.

T is the number of frames, C the number of classes, S the length of the longest text.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import jax
import jax.numpy as jnp

from fdl.checks import as_int, described, is_count
from fdl.losses.cross_entropy import nats_of_all
from fdl.losses.per_example import per_example
from fdl.losses.shapes import precise, real, wide_labels
from fdl.paths import PathError

# NEVER stands for log 0. It is finite so that sums and gradients stay finite. The log-probability
# of a possible alignment is always far above it.
NEVER = -1e30


@per_example
def ctc(
    logits: jax.Array,
    labels: jax.Array,
    *,
    lengths: jax.Array | None = None,
    blank: int | jax.Array = 0,
    where: jax.Array | None = None,
) -> jax.Array:
    """-log of the probability that the frames spell the text, in nats.

    This probability is the sum of the probabilities of all alignments that spell the text.

    An alignment assigns a class to each frame; one of the classes is the blank. To read the text
    that an alignment spells, merge repeated classes, then remove the blanks.

    Args:
      logits: [..., T, C], a floating dtype.
      labels: [..., S], integers in [0, C) except the blank. Texts shorter than S are padded with
        -1 at the end. Any other label gives NaN.
      lengths: [...], integers in [0, T], the number of frames of each sequence; by default T.
        Frames past this number are not read. A length outside this range gives NaN.
      blank: the class that stands for no label, in [0, C); may be traced.
      where: bool, same shape as the loss. Where it is False, loss and gradient are 0, even if the
        inputs there are NaN.

    Returns:
      [...], float32 or wider, >= 0. Where a sequence has too few frames for its text, the loss is
      infinite and its gradient is 0.

    Raises:
      PathError: the shapes do not fit, labels or lengths are not integers, or blank is out of
        range.

    Example:
      >>> round(float(jnp.exp(-ctc(jnp.zeros((2, 2)), jnp.array([1])))), 3)  # 3 of 4 alignments
      0.75

    Source: Graves et al. 2006, "Connectionist Temporal Classification", equations 5 to 8.
    """
    logits, labels = real("ctc", logits, "logits"), real("ctc", labels, "labels")
    frames = logits.shape[-2] if logits.ndim > 1 else 0
    lengths = jnp.full(labels.shape[:-1], frames) if lengths is None else lengths
    lengths = real("ctc", lengths, "lengths")
    _check(logits, labels, lengths, blank)
    labels, lengths = wide_labels(labels), wide_labels(lengths)
    blank = jnp.asarray(blank, labels.dtype)
    # Frames past the end are set to 0, so that a NaN there has no effect.
    inside = jnp.arange(frames, dtype=lengths.dtype) < lengths[..., None]
    nats = nats_of_all(jnp.where(inside[..., None], precise(logits), 0))
    log_probabilities = -jnp.minimum(nats, -NEVER)
    states = _with_blanks(labels, blank)
    # emissions: [T, ..., 2 S + 1], the log-probability of each state at each frame.
    places = jnp.broadcast_to(states[..., None, :], (*states.shape[:-1], frames, states.shape[-1]))
    emissions = jnp.moveaxis(jnp.take_along_axis(log_probabilities, places, axis=-1), -2, 0)
    skips = _may_skip(states, blank)

    def step(before: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        frame, emission = now
        come = jnp.logaddexp(before, _shifted(before, 1))
        come = jnp.where(skips, jnp.logaddexp(come, _shifted(before, 2)), come)
        return jnp.where((frame < lengths)[..., None], come + emission, before), None

    # Before the first frame, the alignment is in the first state, which is a blank.
    first = jnp.full(states.shape, NEVER, log_probabilities.dtype).at[..., 0].set(0)
    last, _ = jax.lax.scan(step, first, (jnp.arange(frames, dtype=lengths.dtype), emissions))
    loss = _loss(last, (labels >= 0).sum(-1))
    holes = ((labels[..., :-1] < 0) & (labels[..., 1:] >= 0)).any(-1)
    wrong = (labels == blank).any(-1) | (labels < -1).any(-1) | holes
    return jnp.where(wrong | (lengths < 0) | (lengths > frames), jnp.nan, loss)


def _with_blanks(labels: jax.Array, blank: jax.Array) -> jax.Array:
    """The states of an alignment, [..., 2 S + 1]: blank, label, blank, label, ..., blank."""
    states = jnp.full((*labels.shape[:-1], 2 * labels.shape[-1] + 1), blank, labels.dtype)
    return states.at[..., 1::2].set(jnp.where(labels < 0, blank, labels))


def _may_skip(states: jax.Array, blank: jax.Array) -> jax.Array:
    """True for a label that differs from the label before it: no blank is needed between them."""
    before = jnp.roll(states, 2, axis=-1)
    return (states != blank) & (states != before) & (jnp.arange(states.shape[-1]) >= 2)


def _shifted(x: jax.Array, by: int) -> jax.Array:
    """x moved `by` states to the right, with NEVER in the first `by` states."""
    return jnp.where(jnp.arange(x.shape[-1]) < by, NEVER, jnp.roll(x, by, axis=-1))


def _loss(last: jax.Array, count: jax.Array) -> jax.Array:
    """-log of the probability that the alignment ends in the last label or the blank after it."""
    place = 2 * count[..., None]
    in_blank = jnp.take_along_axis(last, place, axis=-1)[..., 0]
    in_label = jnp.take_along_axis(last, jnp.maximum(place - 1, 0), axis=-1)[..., 0]
    total = jnp.logaddexp(in_blank, jnp.where(count == 0, NEVER, in_label))
    return jnp.where(total < NEVER / 2, jnp.inf, -total)


def _check(
    logits: jax.Array, labels: jax.Array, lengths: jax.Array, blank: int | jax.Array
) -> None:
    lead = logits.shape[:-2]
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if logits.ndim < 2 or labels.shape[:-1] != lead or labels.ndim != len(lead) + 1 or not whole:
        raise PathError(
            f"expected integer labels [{', '.join(map(str, [*lead, 'S']))}] for logits "
            f"{list(logits.shape)}, got {labels.dtype} {list(labels.shape)}; pass one text, "
            "padded with -1, for each sequence of frames [T, C]",
            layer="ctc",
        )
    if lengths.shape != lead or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise PathError(
            f"expected integer lengths {list(lead)} for logits {list(logits.shape)}, got "
            f"{lengths.dtype} {list(lengths.shape)}; pass the number of frames of each sequence",
            layer="ctc",
        )
    blank = as_int(blank)
    traced = isinstance(blank, jax.core.Tracer) and jnp.issubdtype(blank.dtype, jnp.integer)
    if not traced and not (is_count(blank, 0) and blank < logits.shape[-1]):
        raise PathError(
            f"expected blank in [0, {logits.shape[-1]}), got {described(blank)}; pass the number "
            "of the class that is the blank",
            layer="ctc",
        )
