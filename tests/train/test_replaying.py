"""Replays: the run at any step of a saved run, bit for bit the one that a hook saw there."""

import functools

import jax
import numpy as np
import pytest

import fdl
from fdl.train import checkpointing, replaying
from tests.compilations import Compilations

pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")

STEPS, EVERY, BATCH = 45, 10, 8


@functools.cache
def net():
    return fdl.chain(fdl.dense(4), fdl.batch_norm(momentum=0.8), fdl.dropout(0.2), fdl.dense(2))


@functools.cache
def objective():
    return fdl.supervised(net(), fdl.squared_error)


@functools.cache
def optimizer():
    rate = fdl.optim.cosine_decay_schedule(0.05, 60)
    return fdl.optim.chain(fdl.sgd(rate, momentum=0.9), fdl.optim.params_ema(0.95))


@functools.cache
def rows():
    x = np.random.default_rng(0).normal(size=(41, 3)).astype(np.float32)
    return x, x[:, :2] ** 2


def begin(seed=5):
    params, state = net().init(jax.random.key(1), rows()[0][:1])
    return fdl.start(params, optimizer(), state=state, seed=seed)


def mapped(folder):
    np.save(folder / "x.npy", rows()[0])
    return np.load(folder / "x.npy", mmap_mode="r"), rows()[1]


def drawn(step):
    """The batch of a step, from a function of the step."""
    picked = np.random.default_rng(step).integers(0, len(rows()[0]), BATCH)
    return jax.tree.map(lambda leaf: leaf[picked], rows())


KINDS = {
    "arrays": (lambda folder: rows(), {}),
    "microbatches": (lambda folder: rows(), {"microbatch": 4}),
    "memory-mapped": (mapped, {}),
    "function of the step": (lambda folder: fdl.data.source(drawn), {}),
}


def train(run, data, *watch, steps=STEPS, **how):
    how = {"batch_size": BATCH, "record_every": EVERY} | how
    return fdl.fit(objective(), optimizer(), run, data, steps=steps, watch=watch, **how)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def runs_seen(run, data, **how):
    """Every run of training, by its step, as a hook sees it."""
    seen = {int(run.step): run}
    train(run, data, lambda record, run: seen.update({int(run.step): run}), record_every=1, **how)
    return seen


def counted(monkeypatch):
    """Lists to which the checkpoints that are read, and the chunks that are replayed, are added."""
    read, taken = [], []

    def reading(at, like):
        read.append(int(at.name))
        return checkpointing_read(at, like)

    def advancing(run, means, data, length, **settings):
        taken.append(int(length))
        return replaying_advance(run, means, data, length, **settings)

    checkpointing_read, replaying_advance = checkpointing.read, replaying.advance
    monkeypatch.setattr(checkpointing, "read", reading)
    monkeypatch.setattr(replaying, "advance", advancing)
    return read, taken


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_the_run_at_any_step_is_the_one_that_a_hook_saw(tmp_path, kind, monkeypatch):
    """Before the checkpoints that are kept, at them, between them, and after training."""
    make, how = KINDS[kind]
    data = make(tmp_path)
    seen = runs_seen(begin(), data, steps=STEPS + 2, **how)
    saved = fdl.checkpoints(tmp_path / "runs", keep=2)
    train(begin(), data, saved, **how)
    read, taken = counted(monkeypatch)
    again = fdl.checkpoints(tmp_path / "runs")
    again.replaying(objective(), optimizer(), begin(), data, batch_size=BATCH, **how)
    assert again.steps()[-1] == STEPS and len(again.steps()) == 2
    kept = again.steps()[0]
    for step in (0, 7, kept, kept + 3, STEPS, STEPS + 2):
        read.clear()
        taken.clear()
        assert_same(saved.at(step), seen[step])
        assert read == ([] if step < kept else [kept if step < STEPS else STEPS])
        assert sum(taken) == step - sum(read)
        assert_same(again.at(np.int32(step)), seen[step])


def test_a_replay_compiles_nothing_and_leaves_the_run_valid(tmp_path):
    run, saved = begin(), fdl.checkpoints(tmp_path)
    train(run, rows(), saved)
    first = saved.at(3)
    with Compilations() as compiled:
        assert_same(saved.at(3), first)
        saved.at(saved.steps()[0] + 1)
    assert "advance" not in compiled.names
    assert_same(saved.at(0), run)
    assert_same(replaying.replayed(saved.plan, first, 4), saved.at(4))
    assert int(first.step) == 3 and np.isfinite(first.params["dense_0"]["w"]).all()


def test_a_run_that_was_changed_between_two_fits(tmp_path):
    """The steps after the change are taken from the changed run, not from the checkpoint."""
    saved = fdl.checkpoints(tmp_path)
    result = train(begin(), rows(), saved, steps=20)
    changed = result.run._replace(params=jax.tree.map(lambda leaf: leaf / 2, result.params))
    seen = runs_seen(changed, rows(), steps=29)
    train(changed, rows(), saved, steps=30)
    for step in (20, 23, 29):
        assert_same(saved.at(step), seen[step])


def test_arrays_that_are_changed_in_place_after_training(tmp_path):
    run, saved = jax.tree.map(np.array, begin()), fdl.checkpoints(tmp_path)
    seen = runs_seen(begin(), rows(), steps=2)
    train(run, rows(), saved)
    for leaf in jax.tree.leaves(run.params):
        leaf[:] = 0
    assert_same(saved.at(2), seen[2])


def test_all_checkpoints_are_kept(tmp_path):
    saved = fdl.checkpoints(tmp_path, keep=None)
    for steps in (10, 20, 30, 40):
        train(saved.latest(begin()), rows(), saved, steps=steps)
    assert saved.steps() == [10, 20, 30, 40]


def test_batches_are_those_of_the_steps(tmp_path):
    for kind in ("arrays", "memory-mapped", "function of the step"):
        make, _ = KINDS[kind]
        plan = replaying.plan_of(objective(), optimizer(), begin(), make(tmp_path), BATCH, None)
        expected = drawn(9) if "function" in kind else fdl.draw_batch(rows(), 5, 9, BATCH)
        assert_same(
            jax.tree.map(np.asarray, replaying.batch_of_step(plan, 9)),
            jax.tree.map(np.asarray, expected),
        )


def test_what_is_not_known_is_said(tmp_path):
    saved = fdl.checkpoints(tmp_path / "runs")
    with pytest.raises(
        ValueError,
        match=r"^at: expected checkpoints that watched a fit in this process, got checkpoints\("
        r"'.*runs'\); call saved\.replaying\(objective, optimizer, run, data, batch_size=\.\.\.\) "
        r"with the arguments of the fit that made them$",
    ):
        saved.at(3)
    result = train(begin(), rows(), steps=20)
    train(result, rows(), saved, steps=30)
    with pytest.raises(
        ValueError,
        match=r"^at: expected a step >= 20, the first that is known, got 13; pass the run of step "
        r"0 to saved\.replaying\(\.\.\.\), or keep more checkpoints$",
    ):
        saved.at(13)
    swept = fdl.checkpoints(tmp_path / "swept")
    swept.begin(saved.plan._replace(settings=[{"learning_rate": 0.1}]))
    swept.end()
    with pytest.raises(ValueError, match=r"^at: expected checkpoints that watched a fit in this"):
        swept.at(3)
    for wrong in (-1, 1.5, 2**32, "3"):
        with pytest.raises(
            ValueError,
            match=r"^at: expected a step, an integer in \[0, 2\*\*32\), got .*; pass a step of",
        ):
            saved.at(wrong)


class Placed:
    """Batches whose iterators can say where they are."""

    def __iter__(self):
        return self

    def __next__(self):
        return drawn(0)

    def get_state(self):
        return {"at": 0}

    def set_state(self, state):
        pass


def test_batches_that_cannot_be_drawn_again_are_refused(tmp_path):
    batches, saved = [drawn(0)] * 30, fdl.checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="^checkpoints: expected data whose batch is a function"):
        train(begin(), fdl.data.source(batches), saved, steps=10)
    told = (
        r": expected data whose batch is a function of the step, got a source of a list; its "
        r"batches cannot be drawn again: pass fdl\.data\.source\(f\) with f\(step\) -> batch$"
    )
    with pytest.raises(ValueError, match="^at" + told):
        saved.at(3)
    with pytest.raises(ValueError, match="^replaying" + told):
        saved.replaying(objective(), optimizer(), begin(), fdl.data.source(batches))
    placed = fdl.data.source(Placed())
    assert placed.exact
    with pytest.raises(ValueError, match="^replaying" + told.replace("list", "Placed")):
        saved.replaying(objective(), optimizer(), begin(), placed)


def test_another_run_is_refused_and_other_settings_warn(tmp_path):
    train(begin(), rows(), fdl.checkpoints(tmp_path), steps=10)
    saved = fdl.checkpoints(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"^checkpoints: expected a run of seed 5, which made the checkpoint of step 10, got "
        r"one of seed 6; pass the run with which training began$",
    ):
        saved.replaying(objective(), optimizer(), begin(seed=6), rows(), batch_size=BATCH)
    with pytest.raises(TypeError, match=r"^replaying: expected an optimizer of fdl or optax, got"):
        saved.replaying(objective(), begin(), optimizer(), rows())
    with pytest.raises(ValueError, match=r"^replaying: expected a microbatch that divides the"):
        saved.replaying(objective(), optimizer(), begin(), rows(), batch_size=8, microbatch=3)
    assert saved.plan is None
    others = {
        "data": {"data": (rows()[0] + 1, rows()[1])},
        "batch_size": {"batch_size": 9},
        "microbatch": {"microbatch": 2},
    }
    for name, other in others.items():
        how = {"data": rows(), "batch_size": BATCH} | other
        with pytest.warns(
            UserWarning, match=rf"^checkpoints: expected the {name} with which the run began, "
        ):
            saved.replaying(objective(), optimizer(), begin(), **how)


SEEDED_BUGS = {
    "fdl/train/replaying.py": (
        "train/test_replaying.py",
        [
            ("now, run = int(run.step), copied(run)", "now = int(run.step)"),
            ('"microbatch": plan.microbatch}', '"microbatch": None}'),
            ("min(step, (now // plan.record_every + 1) * plan.record_every)", "step + 1"),
            ("range(step, step + 1)", "range(step + 1, step + 2)"),
            ("leaf if isinstance(leaf, jax.Array) else copied(leaf)", "leaf"),
            ("(not data.exact or data.position())", "False"),
            ("not data.exact or data.position()", "not data.exact"),
            ("run=run, last=step)", "last=step)"),
        ],
    ),
    "fdl/train/checkpointing.py": (
        "train/test_replaying.py",
        [
            ("if saved <= begun <= step:", "if saved < begun <= step:"),
            ("if saved <= begun <= step:", "if begun <= step:"),
            ("for each in self.steps() if each <= step)", "for each in self.steps())"),
            ('found["seed"] != int(plan.run.seed)', "False"),
            ('"microbatch": plan.microbatch,', ""),
            ("plan._replace(run=owned(plan.run))", "plan"),
            ("if self.keep else []", "if self.keep else steps"),
            ("if plan.settings is None else None", ""),
        ],
    ),
}
