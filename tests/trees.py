"""Trees of arrays in tests: compared, stacked, described."""

import jax
import numpy as np

import fdl
from tests.programs import array

NEAR = {"rtol": 2e-5, "atol": 2e-6}


def assert_equal(a, b, **bounds):
    """One structure, one dtype and one shape, and values within bounds; without bounds, bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    right = fdl.paths.leaves(b)
    for path, x in fdl.paths.leaves(a).items():
        x, y = np.asarray(x), np.asarray(right[path])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), path
        if x.tobytes() == y.tobytes():
            continue  # quicker than an assertion of NumPy
        if bounds and np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(x, y, **bounds, err_msg=path)
        else:
            np.testing.assert_array_equal(x, y, err_msg=path)


def stacked(trees):
    """By NumPy, which compiles nothing for each shape."""
    return jax.tree.map(lambda *each: np.stack(each), *trees)


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "layer": {"w": array(rng.standard_normal((3, 2)), dtype)},
        "b": array(rng.standard_normal(4), dtype),
    }
