"""Losses of regions: their formulas in float64."""

import functools

import numpy as np
import scipy.special

import fdl
from tests.entry_types import LossCase


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
    flat = fdl.dice(logits, targets)
    images = [x.reshape(2, 4, 6, 1) for x in (logits, targets)]
    np.testing.assert_allclose(fdl.dice(*images, axis=(1, 2))[:, 0], flat, rtol=1e-5)


SEEDED_BUGS = {
    "fdl/losses/segmentation.py": (
        "losses",
        [("+ smallest)", ")"), ("+ misses * targets", "")],
    ),
}
