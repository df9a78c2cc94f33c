"""Bisection: the step at which a run went wrong, and how many steps and checkpoints it takes."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.train.test_replaying import counted

pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")


@functools.cache
def line():
    """(w - root of each example)^2, whose gradient is NaN for a negative example."""
    return fdl.plain(lambda w, batch: jnp.mean((w - jnp.sqrt(batch)) ** 2))


@functools.cache
def sgd():
    return fdl.sgd(0.01)


def data(bad=None):
    found = np.linspace(0.5, 2.0, 64).astype(np.float32)
    if bad is not None:
        found[bad] = -1
    return found


def begin():
    return fdl.start(jnp.float32(0), sgd(), seed=3)


def train(saved, data, steps, *watch, **how):
    return fdl.fit(
        *(line(), sgd(), begin(), data),
        **{"batch_size": 2, "steps": steps, "watch": [*watch, saved]} | how,
    )


def sources(values):
    def batch_of(step):
        return np.asarray(fdl.draw_batch(values, 3, step, 2))

    return {"arrays": values, "function of the step": fdl.data.source(batch_of)}


@pytest.mark.parametrize("kind", ["arrays", "function of the step"])
def test_the_step_and_the_batch_that_made_a_run_not_finite(tmp_path, kind):
    values = data(bad=17)
    drawn = [np.asarray(fdl.draw_batch(values, 3, step, 2)) for step in range(40)]
    expected = next(step for step, batch in enumerate(drawn) if (batch < 0).any()) + 1
    saved = fdl.checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"^fit: expected finite parameters and state, got nan"):
        result = train(saved, sources(values)[kind], 64, record_every=5, chunk=3)
    assert result.reason == "not finite" and int(result.run.step) > expected
    found = fdl.debug.bisect(saved, fdl.debug.not_finite)
    assert (found.step, int(found.before.step), int(found.after.step)) == (
        *(expected, expected - 1, expected),
    )
    assert np.isfinite(found.before.params) and np.isnan(found.after.params)
    np.testing.assert_array_equal(found.batch, drawn[expected - 1])
    assert repr(found) == f"<Found: False at step {expected - 1}, True at step {expected}>"
    again = fdl.checkpoints(tmp_path)
    again.replaying(line(), sgd(), begin(), sources(values)[kind], batch_size=2)
    with pytest.raises(
        ValueError,
        match=rf"^bisect: expected a predicate that is True at step {saved.steps()[-1]}, got "
        r"False; pass a later last=\.\.\., or another predicate$",
    ):
        fdl.debug.bisect(again, fdl.debug.not_finite)
    assert fdl.debug.bisect(again, fdl.debug.not_finite, last=60).step == expected


@functools.cache
def many(folder):
    """A run of 128 steps with 8 checkpoints."""
    saved = fdl.checkpoints(folder, keep=None)

    def wait(record, run):
        while record["step"] > 16 and record["step"] - 16 not in saved.steps():
            time.sleep(0.002)

    train(saved, data(), 128, wait, record_every=16)
    return saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    found = many(tmp_path_factory.mktemp("many"))
    assert found.steps() == [16, 32, 48, 64, 80, 96, 112, 128]
    return found


@pytest.mark.parametrize("turn", [1, 2, 16, 17, 63, 64, 65, 100, 127, 128])
def test_every_step_is_found_in_few_restores_and_replays(saved, turn, monkeypatch):
    read, taken = counted(monkeypatch)
    asked = []

    def passed(run):
        asked.append(int(run.step))
        return run.step >= turn

    found = fdl.debug.bisect(saved, passed)
    assert (found.step, int(found.before.step), int(found.after.step)) == (turn, turn - 1, turn)
    assert len(read) <= math.log2(8) + 3
    assert sum(taken) < 16
    assert len(asked) <= math.log2(8) + math.log2(16) + 4
    assert len({*asked}) == len(asked)


def test_the_search_may_be_narrowed(saved):
    def twice(run):
        return 20 <= run.step < 40 or run.step >= 90

    assert fdl.debug.bisect(saved, twice, last=30).step == 20
    assert fdl.debug.bisect(saved, twice, first=41).step == 90
    assert fdl.debug.bisect(saved, twice, first=np.int64(89), last=90).step == 90


def test_a_loss_that_rises_above_a_limit(saved):
    """Downhill, so the loss of the first step is above and the last one below."""
    above = fdl.debug.loss_above(line(), data(), 0.5)
    found = fdl.debug.bisect(saved, lambda run: not above(run))
    losses = [fdl.evaluate(line(), run, data())["loss"] for run in (found.before, found.after)]
    assert losses[0] > 0.5 >= losses[1]
    assert above(found.before) and not above(found.after)


def test_mistakes_are_told(saved, tmp_path):
    bisect, later = fdl.debug.bisect, lambda run: run.step >= 50
    with pytest.raises(
        ValueError,
        match=r"^bisect: expected a predicate that is False at step 60, got True; pass an earlier "
        r"first=\.\.\., or another predicate$",
    ):
        bisect(saved, later, first=60)
    with pytest.raises(
        ValueError,
        match=r"^bisect: expected a predicate that is True at step 40, got False; pass a later",
    ):
        bisect(saved, later, last=40)
    with pytest.raises(
        ValueError,
        match=r"^bisect: expected first < last, got 50 and 50; the run must have taken steps in b",
    ):
        bisect(saved, later, first=50, last=50)
    with pytest.raises(
        ValueError, match=r"^bisect: expected last, an integer in \[0, 2\*\*32\), got -1; leave it"
    ):
        bisect(saved, later, last=-1)
    with pytest.raises(TypeError, match=r"^bisect: expected checkpoints, got 3; pass the fdl\.ch"):
        bisect(3, later)
    with pytest.raises(
        TypeError,
        match=r"^bisect: expected a predicate, a function run -> bool, got 3; pass fdl\.debug\.not",
    ):
        bisect(saved, 3)
    with pytest.raises(ValueError, match=r"^bisect: expected checkpoints that watched a fit in "):
        bisect(fdl.checkpoints(tmp_path), later)


def test_a_random_key_in_the_optimizer_is_no_number():
    run = fdl.start(jnp.ones(2), fdl.sgd(0.1))
    run = run._replace(opt_state={"key": jax.random.key(0), "count": jnp.int32(3)})
    assert not fdl.debug.not_finite(run)
    wrong = run._replace(opt_state=run.opt_state | {"m": jnp.float32(jnp.nan)})
    assert fdl.debug.not_finite(wrong)


SEEDED_BUGS = {
    "fdl/debug/bisection.py": (
        "debug/test_bisection.py",
        [
            ("whole[middle + 1 :]", "whole[middle + 2 :]"),
            ("(before, run) if turned else (run, after)", "(before, run)"),
            ("while whole:", "while False:"),
            ("> 1:", "> 2:"),
            ("replayed(plan, before,", "saved.at("),
            ("max(saved.reached, *steps)", "max(steps)"),
            ("int(before.step))\n", "int(after.step))\n"),
            ("if first < step < last", ""),
        ],
    ),
}
