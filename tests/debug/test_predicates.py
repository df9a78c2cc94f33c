"""Questions about a run: are its numbers finite, is its loss too high?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl

NAN, INF = jnp.nan, jnp.inf


def run_of(params=1.0, state=1.0, opt_state=1.0):
    run = fdl.start(jnp.ones(3), fdl.sgd(0.1))
    parts = {"params": params, "state": state, "opt_state": opt_state}
    return run._replace(
        **{part: {"a": jnp.ones(2), "b": jnp.array([1, x])} for part, x in parts.items()}
    )


CASES = {
    "finite": ({}, False),
    "params nan": ({"params": NAN}, True),
    "params -inf": ({"params": -INF}, True),
    "state nan": ({"state": NAN}, True),
    "state inf": ({"state": INF}, True),
    "opt_state nan": ({"opt_state": NAN}, True),
    "opt_state inf": ({"opt_state": INF}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_that_are_not_finite(case):
    parts, expected = CASES[case]
    assert fdl.debug.not_finite(run_of(**parts)) is expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64", "float8_e4m3fn"])
def test_every_dtype(dtype):
    run = run_of()
    for value, expected in ((1.0, False), (NAN, True)):
        params = {"w": jnp.array([0.0, value], dtype)}
        assert fdl.debug.not_finite(run._replace(params=params)) is expected


def test_integers_and_keys_are_finite():
    state = {"count": jnp.int32(3), "key": jax.random.key(0), "on": np.array(True)}
    assert not fdl.debug.not_finite(run_of()._replace(state=state))
    with pytest.raises(TypeError, match=r"^not_finite: expected a run, or a result of fit, got 3;"):
        fdl.debug.not_finite(3)


def test_a_loss_or_a_metric_above_a_limit():
    """(w - x)^2 by hand, and its root as a metric."""

    def objective(params, state, batch, key):
        error = params - batch
        return (error**2).mean(), (state, {"error": jnp.abs(error).mean()})

    data, optimizer = jnp.array([3.0, 5.0]), fdl.sgd(0.1)

    def at(w):
        return fdl.start(jnp.float32(w), optimizer)

    above = fdl.debug.loss_above(objective, data, 10.0)
    assert [above(at(w)) for w in (1.0, 1.5, 7.1, NAN)] == [False, False, True, True]  # 10, 7.25
    far = fdl.debug.loss_above(objective, data, 2.0, name="error")
    assert [far(at(w)) for w in (2.0, 1.9, -INF)] == [False, True, True]
    message = "^loss_above: expected name to be one of error, loss, got 'accuracy'; choose one of"
    with pytest.raises(ValueError, match=message):
        fdl.debug.loss_above(objective, data, 2.0, name="accuracy")(at(1.0))
    with pytest.raises(TypeError, match=r"^loss_above: expected an objective first, got 3; "):
        fdl.debug.loss_above(3, data, 2.0)
    with pytest.raises(
        ValueError, match=r"^loss_above: expected limit, a number, got nan; pass the la"
    ):
        fdl.debug.loss_above(objective, data, NAN)


SEEDED_BUGS = {
    "fdl/debug/predicates.py": (
        "debug/test_predicates.py",
        [
            ("_any(jnp.isnan, run) or ", "_any(jnp.isnan, (run.params, run.state)) or "),
            ("(run.params, run.state))", "run)"),
            ("(run.params, run.state))", "run.params)"),
            ("math.isnan(found[name]) or", ""),
            ("found[name] > limit", "found[name] >= limit"),
        ],
    ),
}
