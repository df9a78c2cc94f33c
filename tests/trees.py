"""Trees of arrays in tests: compared, stacked, described."""

import jax
import numpy as np

from fdl.debug.layer_laws import NEAR as NEAR
from fdl.debug.layer_laws import assert_equal as assert_equal
from fdl.debug.layer_laws import stacked as stacked
from tests.programs import array


def assert_near(got, wanted, tolerance=1e-5):
    """Equal up to an absolute and a relative error of the tolerance."""
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "layer": {"w": array(rng.standard_normal((3, 2)), dtype)},
        "b": array(rng.standard_normal(4), dtype),
    }
