"""Losses of regions: their formulas in float64."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

import fdl
from tests.entry_types import LossCase
from tests.programs import compiled


def _dice(logits, targets, smooth=1.0):
    chances = scipy.special.expit(logits)
    both = 2 * (chances * targets).sum(-1) + smooth
    return 1 - both / (chances.sum(-1) + targets.sum(-1) + smooth)


LOSSES = {
    "dice": LossCase(
        functools.partial(fdl.dice, smooth=0.5),
        "chances",
        functools.partial(_dice, smooth=0.5),
    ),
}


def test_dice_over_the_pixels_of_images():
    logits, targets = LOSSES["dice"].data(3, rows=2, classes=24)
    flat = jax.jit(fdl.dice)(logits, targets)
    images = [np.asarray(x).reshape(2, 4, 6, 1) for x in (logits, targets)]
    np.testing.assert_allclose(compiled(fdl.dice(axis=(1, 2)))(*images)[:, 0], flat, rtol=1e-5)


def test_dice_of_the_pixels_that_count_is_that_of_these_pixels_alone():
    """NaNs in the other pixels reach neither the loss nor its gradient."""
    logits, targets = map(np.asarray, LOSSES["dice"].data(4, rows=3, classes=24))
    where = np.random.default_rng(4).random((3, 24)) < 0.6
    where[2] = False
    spoilt = [np.where(where, x, np.float32(np.nan)).reshape(3, 4, 6, 1) for x in (logits, targets)]

    def masked(logits, shape):
        loss = fdl.dice(axis=(1, 2), where=where.reshape(shape))(logits, spoilt[1])[:, 0]
        return loss.sum(), loss

    alike = compiled(jax.value_and_grad(fdl.dice))
    for shape in (3, 4, 6), (3, 4, 6, 1):
        slopes = jax.grad(functools.partial(masked, shape=shape), has_aux=True)
        slope, found = compiled(slopes)(spoilt[0])
        assert found[2] == 0 and not slope[2].any()
        for row in range(2):
            few = [x[row][where[row]] for x in (logits, targets)]
            alone, slope_alone = alike(*few)
            np.testing.assert_allclose(found[row], alone, rtol=1e-6)
            slopes = slope[row].ravel()
            np.testing.assert_allclose(slopes[where[row]], slope_alone, rtol=1e-5, atol=1e-8)
            assert not slopes[~where[row]].any()


def test_all_regions_enter_the_mean_whatever_pixels_count():
    """Here `where` [B, N] has the shape of a loss [B, K] too."""
    pixels = LOSSES["dice"].data(5, rows=6, classes=25)
    logits, targets = (np.asarray(x).reshape(6, 5, 5) for x in pixels)
    where = np.random.default_rng(5).random((6, 5)) < 0.6
    loss = fdl.dice(axis=1, where=where)
    score = fdl.supervised(lambda w, x: w * x, loss)

    @compiled
    def both(*batch):
        return score(1.0, {}, batch, None)[0], loss(*batch).mean()

    np.testing.assert_allclose(*both(logits, targets), rtol=1e-6)


def test_the_message_for_a_wrong_where_of_dice():
    x, told = (
        np.ones((2, 4, 3), np.float32),
        (
            r"^dice: expected where to have the shape of the predictions, \[2, 4, 3\], or its "
            r"first axes, got \[4, 3\]; pass True for the pixels that count$"
        ),
    )
    with pytest.raises(fdl.PathError, match=told):
        fdl.dice(x, x, where=x[0] > 0)
    with pytest.raises(
        fdl.PathError, match=r"^dice: expected where to be bool, got float32; write mask > 0, "
    ):
        fdl.dice(x, x, where=x)


SEEDED_BUGS = {
    "fdl/losses/segmentation.py": (
        "losses",
        [
            ("+ smallest)", ")"),
            ("+ misses * targets", ""),
            ("sum(axis, where=counts) for", "sum(axis) for"),
            ("targets).sum(axis, where=counts)", "targets).sum(axis)"),
            ("of_regions=True", "of_regions=False"),
        ],
    ),
}
