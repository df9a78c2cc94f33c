"""Losses of sequences: CTC in float64, one text and one state at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

import fdl
from tests.entry_types import LossCase
from tests.losses import oracles
from tests.programs import array, compiled


def _texts(rng, rows, classes, size):
    """Texts of 0 to 3 letters, some with a letter twice in a row."""
    labels = rng.integers(1, classes, (rows, 3))
    labels[: rows // 2, 1] = labels[: rows // 2, 0]
    labels[np.arange(3) >= (np.arange(rows) % 4)[:, None]] = -1
    return size * rng.standard_normal((rows, 6, classes)), labels, 6 - np.arange(rows) % 2


def _ctc(logits, labels, lengths, blank=0):
    """Graves et al. 2006, one text and one state at a time."""
    if logits.ndim > 2:
        rows = zip(logits, labels, lengths, strict=True)
        return np.array([_ctc(*row, blank=blank) for row in rows])
    says = -oracles.nats(logits)[: int(lengths)]
    letters = [int(each) for each in labels if each >= 0]
    states = [blank, *(state for letter in letters for state in (letter, blank))]
    at = np.full(len(states), -np.inf)
    at[0] = 0.0
    for frame in says:
        before, at = at, np.full(len(states), -np.inf)
        for i, state in enumerate(states):
            come = [before[i], before[i - 1] if i else -np.inf]
            if i > 1 and state != blank and state != states[i - 2]:
                come.append(before[i - 2])
            at[i] = scipy.special.logsumexp(come) + frame[state]
    return -scipy.special.logsumexp(at[-2:])


LOSSES = {
    "ctc": LossCase(
        lambda logits, labels, lengths, **more: fdl.ctc(logits, labels, lengths=lengths, **more),
        _texts,
        _ctc,
        told=r"expected integer lengths \[6\] for logits \[6, 6, 5\], got int32 \[5\]; pass the "
        r"number of frames of each sequence",
    ),
}


def test_ctc_matches_optax_with_another_blank(standard_promotion):

    logits, labels, _ = LOSSES["ctc"].data(5)
    labels = np.where(np.asarray(labels) < 0, labels, np.asarray(labels) - 1)
    missing = (labels < 0).astype(np.float32)
    expected = jax.jit(functools.partial(optax.ctc_loss, blank_id=4))(
        logits, np.zeros((6, 6), np.float32), labels, missing
    )
    found = jax.jit(functools.partial(fdl.ctc, blank=4))(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_text_with_too_few_frames_has_an_infinite_loss():
    """Two equal letters need a blank between them, so three frames."""
    labels = np.int32([1, 1])
    loss = compiled(jax.value_and_grad(lambda logits: fdl.ctc(logits, labels)))
    value, gradient = loss(np.ones((2, 3), np.float32))
    assert value == np.inf and (gradient == 0).all()
    value, gradient = loss(np.zeros((3, 3), np.float32))
    assert (gradient != 0).any()
    np.testing.assert_allclose(value, 3 * math.log(3), rtol=1e-6)
    many = compiled(lambda *args: fdl.ctc(jnp.ones((4, 4, 3)), args[0], lengths=args[1]))
    losses = many(np.int32([[-1, -1], [2, 0], [2, 3], [2, -1]]), np.int32([0, 4, 4, 4]))
    assert losses[0] == 0 and losses[3] > 0
    assert np.isnan(losses).tolist() == [False, True, True, False]


def test_a_text_of_tiny_probability_has_a_finite_loss():
    """Three alignments, of which two say the label once."""
    logits = np.float32([[0.0, -2e4], [0.0, -2e4]])
    found = jax.jit(fdl.ctc)(logits, np.int32([1]))
    np.testing.assert_allclose(found, 2e4 - math.log(2), rtol=1e-6)


def test_frames_past_the_end_of_a_text_are_not_read():
    logits = array(np.random.default_rng(0).standard_normal((4, 3)))
    labels, lengths = np.int32([1]), np.int32(2)
    loss = jax.jit(jax.value_and_grad(lambda z, n: fdl.ctc(z, labels, lengths=n)))
    spoilt = np.array(logits)
    spoilt[2:] = np.nan
    for a, b in zip(loss(logits, lengths), loss(spoilt, lengths), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(loss(logits, np.int32(5))[0])
    wrong = jax.jit(jax.vmap(fdl.ctc, (None, 0)))
    assert np.isnan(wrong(logits, np.int32([[1, -1, 2], [1, -2, -1]]))).all()


def test_ctc_with_infinite_logits():
    logits, surely, never = np.zeros((3, 3, 3), np.float32)
    logits[0, 2], surely[:, 1], never[0, 2] = -np.inf, np.inf, np.inf
    both, labels = compiled(jax.value_and_grad(fdl.ctc)), np.int32([1])
    for frames, expected in ((logits, -np.log(6 / 18)), (surely, 0.0)):
        loss, slope = both(frames, labels)
        np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)
        assert np.isfinite(slope).all()
    loss, slope = both(never, labels)
    assert loss == np.inf and (slope == 0).all()


SEEDED_BUGS = {
    "fdl/losses/sequence.py": (
        "losses test_laws.py -k test_sequence_or_loss",
        [
            ("(states != blank) & (states != before)", "(states != blank)"),
            ("(frame < lengths)", "(frame <= lengths)"),
            ("jnp.where(inside[..., None], precise(logits), 0)", "precise(logits)"),
            ("-jnp.minimum(nats, -NEVER)", "-nats"),
            ("wrong | (lengths < 0) | (lengths > frames)", "wrong"),
            ("(labels < -1).any(-1) | holes", "(labels < -1).any(-1)"),
            ("jnp.where(count == 0, NEVER, in_label)", "NEVER"),
            ("NEVER = -1e30", "NEVER = -1e4"),
        ],
    ),
}
