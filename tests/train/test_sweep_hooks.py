"""Hooks and checkpoints of a sweep, and ensembles of its members."""

import math
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl

SQUARE = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
ONES = np.ones(8, np.float32)
RATES = [0.05, 0.4, 2.0, 0.2]
SETTINGS = {"learning_rate": RATES}


def from_zero(seed):
    return jnp.float32(seed), {}


def of_squares(**more):
    """The loss before step t from w = seed is (1 - seed)^2 (1 - 2 rate)^(2 (t - 1))."""
    given = {"seeds": [0, 3], "batch_size": 4, "steps": 6, "record_every": 2, **more}
    return fdl.sweep(SQUARE, from_zero, fdl.sgd, SETTINGS, ONES, **given)


def network(seed):
    return MODEL.init(jax.random.key(seed), X[:1])


RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3)).astype("float32")
Y = (X[:, 0] > X[:, 1]).astype("int32")
MODEL = fdl.chain(fdl.dense(6), fdl.dropout(0.2), fdl.batch_norm(), fdl.tanh, fdl.dense(2))
OBJECTIVE = fdl.supervised(MODEL, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)


def averaged(learning_rate):
    return fdl.optim.chain(fdl.adam(learning_rate), fdl.optim.params_ema(0.5))


def of_networks(watch=(), steps=12, **more):
    """Four settings, of which a rung leaves two and another one."""
    given = {"seeds": [1, 2], "batch_size": 8, "record_every": 3, "rungs": [4, 8], "keep": 0.5}
    given |= {"validation": (X[:16], Y[:16]), **more}
    settings = {"learning_rate": [0.3, 0.003, 0.03, 1e-5]}
    return fdl.sweep(
        OBJECTIVE, network, averaged, settings, (X, Y), steps=steps, watch=watch, **given
    )


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.run, other.run)
    assert one.steps.tolist() == other.steps.tolist() and one.best == other.best
    np.testing.assert_array_equal(one.stopped, other.stopped)
    for name, curve in one.curves.items():
        np.testing.assert_array_equal(curve, other.curves[name])


def test_a_record_is_that_of_the_best_setting():
    """The best rate is 0.4; the mean over the seeds of (1 - seed)^2 is 2.5."""
    records = []
    of_squares(watch=[lambda record, run: records.append((record, run))])
    for number, (record, run) in enumerate(records):
        shrink = 0.2 ** (4 * number)
        assert record["step"] == 2 * (number + 1)
        assert record["settings_left"] == 4 and record["learning_rate"] == 0.4
        assert record["loss"] == pytest.approx(2.5 * shrink * (1 + 0.04) / 2, rel=1e-4)
        w = 1 + (np.array([[0.0, 3.0]]) - 1) * (1 - 2 * np.array(RATES)[:, None]) ** (
            2 * (number + 1)
        )
        np.testing.assert_allclose(run.params, w, rtol=1e-5)  # [R, S], in the order of settings
        assert int(run.step) == record["step"]


def test_hooks_change_nothing_and_see_what_the_sweep_returns():
    seen = []
    plain, watched = of_networks(), of_networks([lambda record, run: seen.append(run)])
    assert_same(plain, watched)
    assert plain.reason == watched.reason == "done"
    jax.tree.map(np.testing.assert_array_equal, seen[-1], watched.run)
    assert len(seen) == len(watched.steps) == 6


def test_a_sweep_stops_early_and_keeps_the_best_members():
    best = fdl.keep_best("val_loss")
    stop = fdl.early_stop("val_loss", patience=1, min_delta=10.0)
    found = of_networks([best, stop])
    assert found.reason == "no better val_loss for 1 records"
    assert found.steps.tolist() == [3, 4] and int(found.run.step) == 4
    # The first rung was at step 4, so that two settings have stopped; all have taken 4 steps.
    assert found.stopped.tolist() == [4, 4, 4, 4]
    kept = found if best.step == 4 else of_networks(steps=3, rungs=())
    for setting in range(4):
        params = jax.tree.map(lambda leaf, at=setting: leaf[at, 1], best.params)
        mine = fdl.optim.eval_params(
            kept.member(setting, 1).opt_state, kept.member(setting, 1).params
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, mine)


@pytest.mark.parametrize("records", [1, 2, 3, 5])
def test_a_sweep_that_was_stopped_goes_on_bit_for_bit(tmp_path, records):
    """Stopped before the first rung, at it, after it, and after the second."""
    saved = fdl.checkpoints(tmp_path)
    whole = of_networks()

    def stop(record, run):
        stop.calls += 1
        return "enough" if stop.calls == records else None

    stop.calls = 0
    part = of_networks([stop, saved])
    assert part.reason == "enough" and len(part.steps) == records
    seen = []
    again = of_networks([fdl.checkpoints(tmp_path), lambda record, run: seen.append(record)])
    assert_same(whole, again)
    assert [record["step"] for record in seen] == whole.steps.tolist()[records:]
    # Once more: there is nothing left to do.
    assert_same(whole, of_networks([fdl.checkpoints(tmp_path)]))


def test_other_settings_or_rungs_are_told(tmp_path):
    of_networks([fdl.checkpoints(tmp_path)], steps=3, rungs=())
    told = (
        "sweep: expected a checkpoint with records at steps [2], got [3]; pass the epochs, "
        "record_every and rungs of the checkpoint, or choose another folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        of_networks([fdl.checkpoints(tmp_path)], record_every=2)
    with pytest.raises(ValueError, match=r"^checkpoints: expected a checkpoint of this model"):
        of_networks([fdl.checkpoints(tmp_path)], seeds=[1])
    other = {"learning_rate": [0.3, 0.003, 0.03, 1e-4]}
    with pytest.warns(UserWarning, match=r"^checkpoints: expected the settings with which the run"):
        fdl.sweep(
            OBJECTIVE,
            network,
            averaged,
            other,
            (X, Y),
            seeds=[1, 2],
            batch_size=8,
            record_every=3,
            steps=6,
            validation=(X[:16], Y[:16]),
            watch=[fdl.checkpoints(tmp_path)],
        )


def test_a_signal_ends_a_sweep_at_the_next_record():
    def interrupt(record, run):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    found = of_squares(watch=[interrupt])
    # The signal came while the hooks of step 2 were called.
    assert found.reason == "terminated" and found.steps.tolist() == [2, 4]
    assert found.settings[found.best] == {"learning_rate": 0.4}


def test_a_hook_that_raises_keeps_the_sweep():
    def wrong(record, run):
        raise RuntimeError("no room")

    told = (
        r"^sweep: expected no error from the data, the evaluation and the hooks, got "
        r"RuntimeError: no room; "
    )
    with pytest.warns(UserWarning, match=told):
        found = of_squares(watch=[wrong])
    assert found.reason == "failed: RuntimeError" and found.steps.tolist() == [2]


def test_log_and_progress_watch_a_sweep(tmp_path, capsys):
    file = tmp_path / "sweep.jsonl"
    of_squares(watch=[fdl.log(file), fdl.progress()])
    assert [line.count('"learning_rate": 0.4') for line in file.read_text().splitlines()] == [1] * 3
    assert "loss 0.0" in capsys.readouterr().out


def test_watching_what_is_not_there():
    names = "step, settings_left, learning_rate, loss, seconds"
    told = f"sweep: expected early_stop('val_loss', patience=5) to watch one of {names}, got "
    with pytest.raises(ValueError, match=f"^{re.escape(told)}'val_loss'; choose one of these"):
        of_squares(watch=[fdl.early_stop("val_loss")])
    with pytest.raises(TypeError, match=r"^sweep: expected watch to be a list of hooks, functions"):
        of_squares(watch=fdl.dense)


def test_a_hook_that_stops_before_the_first_step_is_told():
    class Never(fdl.Observer):
        def begin(self, plan):
            return "not today"

    told = r"^sweep: expected hooks that let the sweep begin, got the reason 'not today' to stop"
    with pytest.raises(ValueError, match=told):
        of_squares(watch=[Never()])


# Ensembles.


def test_an_ensemble_is_the_mean_of_its_members():
    found = of_networks(rungs=())
    members = found.members(1)
    ensemble = fdl.ensemble(MODEL, members, X, activation=fdl.softmax, batch_size=7)
    each = []
    for member in members:
        logits = np.asarray(fdl.predict(MODEL, member, X), np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        each.append(odds / odds.sum(1, keepdims=True))
    np.testing.assert_allclose(ensemble.each, each, rtol=1e-5)
    np.testing.assert_allclose(ensemble.mean, np.mean(each, 0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.spread, np.std(each, 0), atol=1e-6)
    # Accuracy and calibration take the mean.
    right = np.mean(np.mean(each, 0).argmax(1) == Y)
    assert float(fdl.accuracy(ensemble.mean, Y).mean()) == pytest.approx(right)
    metric = fdl.metrics.calibration_error()
    error = metric.compute(metric.update(metric.init(), jnp.log(ensemble.mean), Y))
    confidence, hit = np.mean(each, 0).max(1), np.mean(each, 0).argmax(1) == Y
    bins = np.minimum((confidence * 15).astype(int), 14)
    by_hand = sum(abs(confidence[bins == b].sum() - hit[bins == b].sum()) for b in range(15)) / len(
        Y
    )
    assert float(error) == pytest.approx(by_hand, abs=1e-5)


def test_members_are_those_of_the_best_setting():
    found = of_squares()
    assert [float(run.params) for run in found.members()] == pytest.approx(
        [1 - 0.2**6, 1 + 2 * 0.2**6]
    )
    assert [int(run.seed) for run in found.members(2)] == [0, 3]
    assert math.isfinite(float(found.members(3)[0].params))


def test_an_ensemble_of_nothing_is_refused():
    told = "ensemble: expected a list of one or more runs, got"
    for members in ([], of_squares().run, {"w": jnp.ones(2)}):
        with pytest.raises(ValueError, match=f"^{re.escape(told)} .*; pass found.members"):
            fdl.ensemble(lambda w, x: w * x, members, X)


SEEDED_BUGS = {
    "fdl/train/tournament.py": (
        "train/test_sweep_hooks.py",
        [
            ('self._cut(int(record["step"]))', "pass"),
            ("self.plan._replace(run=result.run), result.history", "self.plan, result.history"),
            ("[0, *self.records][len(self.rows) :]", "[0, *self.records]"),
            ("int(self.left[scores[self.left].argmin()])", "int(scores.argmax())"),
            ("(*self.parts, (self.left, self.run)", "((self.left, self.run), *self.parts"),
            ("if steps != self.records[: len(steps)]", "if False"),
        ],
    ),
    "fdl/train/members.py": (
        "train/test_sweep_hooks.py",
        [("jnp.moveaxis(leaf, 0, axis)", "leaf")],
    ),
    "fdl/train/ensembles.py": (
        "train/test_sweep_hooks.py",
        [("y.std(0)", "y.var(0)"), ("y.mean(0)", "y[0]")],
    ),
    "fdl/train/evaluation.py": (
        "train/test_sweep_hooks.py",
        [("_eval_params_of_members if of_members else _eval_params", "_eval_params")],
    ),
}
