"""Every optimizer of optax on a real network for 500 steps, and tests of that comparison.

All of them in one program for each side, so that they are compiled and run at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from tests.optim import against_optax
from tests.registry import OPTIMIZERS

CASES = {name: case for name, case in OPTIMIZERS.items() if case.theirs is not None}
ULPS, APART = 8, 1e-8


@pytest.mark.slow
def test_each_update_is_optaxs_from_the_same_values(standard_promotion):
    pairs = {name: against_optax.pair_of(name, case) for name, case in CASES.items()}
    found = against_optax.update_distances(pairs, against_optax.digits())
    assert {
        name: each for name, each in found.items() if each[0] > max(ULPS, CASES[name].ulps)
    } == {}
    assert set(found) == set(CASES)


@pytest.mark.slow
def test_free_runs_in_float64_go_the_same_way(standard_promotion):
    """On a tanh network."""
    with jax.enable_x64(True):
        problem = against_optax.digits(fdl.tanh, "float64")
        start = {name: case.start(problem.params) for name, case in CASES.items()}
        both = {name: against_optax.pair_of(name, case) for name, case in CASES.items()}
        ours, theirs = (
            against_optax.displacements({k: v[side] for k, v in both.items()}, problem)(start)
            for side in (0, 1)
        )
        apart = {k: against_optax.displacement_distance(ours[k], theirs[k]) for k in CASES}
        assert {name: each for name, each in apart.items() if not each <= APART} == {}
        assert min(map(against_optax.length, theirs.values())) > 0.01


@pytest.mark.slow
def test_a_step_five_percent_too_long_is_seen(standard_promotion):
    """A step that is 5% too long shows as 5% in the update and in the displacement."""
    problem = against_optax.digits()
    ours, theirs = fdl.optim.adam(0.00105), optax.adam(0.001)
    pairs = {"adam": (ours, theirs, lambda params: params)}
    ulps, _ = against_optax.update_distances(pairs, problem, 3)["adam"]
    assert 0.04 < ulps * 2**-23 < 0.1
    start = {"it": problem.params}
    first, second = (
        against_optax.displacements({"it": each}, problem, 30)(start) for each in (ours, theirs)
    )
    assert 0.02 < against_optax.displacement_distance(first, second) < 0.1


def test_ulps_are_those_of_the_largest_value_of_a_leaf():
    b = {"it": {"small": jnp.float32([1e-3, 0.0]), "large": jnp.float32([3.0, -5.0])}}
    a = {"it": {"small": b["it"]["small"], "large": jnp.float32([3.0 + 2**-20, -5.0])}}
    for x, y, expected in [(b, b, 0), (a, b, 2), (b, a, 2)]:
        assert float(against_optax.ulps_apart(x, y)["it"]) == expected
    tiny = {"it": jnp.float32([np.nextafter(np.float32(0.7), np.float32(1))])}
    assert float(against_optax.ulps_apart(tiny, {"it": jnp.float32([0.7])})["it"]) == 1
    lost = {"it": jnp.float32([np.nan])}
    assert float(against_optax.ulps_apart(lost, tiny)["it"]) == np.inf
