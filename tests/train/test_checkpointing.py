"""Checkpoints: a run that was stopped anywhere ends with the bits of one that never was."""

import functools
import json
import random
import shutil
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.train import background_writer, checkpoint_files
from fdl.train.background_writer import BackgroundWriter
from fdl.train.hooks import Plan
from fdl.train.result import Result, Unfinished
from tests.registry import OPTIMIZERS
from tests.train import killed, kills
from tests.trees import assert_equal

pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")


@functools.cache
def objective():
    return fdl.supervised(net(), fdl.squared_error)


@functools.cache
def net():
    return fdl.chain(fdl.dense(4), fdl.tanh, fdl.dense(2))


@functools.cache
def data():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    return x, x[:, :2]


def begin(optimizer, model=None):
    params, state = (model or net()).init(jax.random.key(0), data()[0][:1])
    return fdl.start(params, optimizer, state=state)


@functools.cache
def sgd():
    return fdl.sgd(0.05, momentum=0.9)


def train(run, steps, *watch, optimizer=None, **more):
    how = {"batch_size": 8, "record_every": 10} | more
    return fdl.fit(objective(), optimizer or sgd(), run, data(), steps=steps, watch=watch, **how)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.parametrize("kind", ["arrays", "memory-mapped"])
def test_a_program_killed_at_any_moment_ends_with_the_same_bits(tmp_path, kind):
    whole, hashes, newest = kills.kill(tmp_path, kind, 5)
    assert {*hashes} == {whole} and newest.total() == 5


@pytest.mark.slow
def test_a_run_goes_on_from_any_step_bit_for_bit(tmp_path):
    whole = killed.digest(*killed.train(tmp_path / "whole"))
    for steps in (13, 20, 33, 120, 400):
        found = killed.digest(*killed.train(tmp_path / "parts", steps=steps))
    assert found == whole


def saved_by_hand(folder, run, *, history=(), **how):
    """A checkpoint of any run, without training."""
    hook = fdl.checkpoints(folder, **how)
    hook.begin(Plan(objective(), sgd(), data(), data(), 40, 8, run, 99, 10, ("val_loss",)))
    unfinished = Unfinished({}, len(history), {})
    hook.save(Result(run, list(history), "done", unfinished))
    hook.end()
    return hook


def filled(tree, seed=0):
    """A tree of the same shapes and dtypes with other values."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        leaf = jnp.asarray(leaf)
        return jnp.asarray(rng.integers(0, 2, leaf.shape) + 0.5 * rng.random(leaf.shape)).astype(
            leaf.dtype
        )

    return jax.tree.map(fill, tree)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_comes_back_bit_for_bit(tmp_path, name):
    case = OPTIMIZERS[name]
    run = fdl.start(case.params(), case.ours())
    filled_run = run._replace(params=filled(run.params), opt_state=filled(run.opt_state))
    found = saved_by_hand(tmp_path, filled_run).latest(run)
    assert_same(found.run, filled_run)


ODD = {
    "bfloat16": lambda: jnp.arange(3, dtype=jnp.bfloat16),
    "float8": lambda: jnp.ones((2, 2), jnp.float8_e4m3fn),
    "bool": lambda: jnp.array([True, False]),
    "no elements": lambda: jnp.zeros((0, 3)),
    "nan": lambda: jnp.array([np.nan, -np.inf, -0.0], jnp.float32),
    "key": lambda: jax.random.key(3),
    "keys of rbg": lambda: jax.random.split(jax.random.key(3, impl="rbg"), 2),
    "uint32": lambda: jnp.uint32(2**32 - 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_arrays_of_every_kind_come_back(tmp_path, kind):
    leaf = ODD[kind]()
    run = begin(sgd())._replace(state={"a/b": {"": leaf}, "a": jnp.ones(1)})
    found = saved_by_hand(tmp_path, run).latest(run).run
    assert jax.tree.structure(found) == jax.tree.structure(run)
    got = found.state["a/b"][""]
    assert (got.dtype, got.shape) == (leaf.dtype, leaf.shape)
    as_bytes = lambda x: np.asarray(checkpoint_files._stored(x)).tobytes()  # noqa: E731
    assert as_bytes(got) == as_bytes(leaf)


def test_without_a_checkpoint_latest_gives_the_run(tmp_path):
    run = begin(sgd())
    assert fdl.checkpoints(tmp_path).latest(run) is run
    assert fdl.checkpoints(tmp_path / "not yet").latest(run) is run
    assert not (tmp_path / "not yet").exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
    values = {10: 3.0, 20: np.nan, 30: 1.0, 40: 2.0, 50: np.inf, 60: 5.0, 70: 4.0}
    history = []
    for step, value in values.items():
        run = begin(sgd())._replace(step=jnp.uint32(step))
        history.append({"step": step, "val_loss": value})
        hook = saved_by_hand(tmp_path / "min", run, history=history, keep=2, best="val_loss")
        most = saved_by_hand(
            *(tmp_path / "max", run),
            **{"history": history, "keep": 2, "best": "val_loss", "mode": "max"},
        )
    assert hook.steps() == [30, 60, 70]
    assert most.steps() == [60, 70]


def test_a_checkpoint_says_in_a_readable_file_what_it_is(tmp_path):
    run = begin(sgd())
    train(run, 20, fdl.checkpoints(tmp_path))
    about = json.loads((tmp_path / "20" / "about" / "metadata").read_text())
    assert (about["step"], about["seed"], about["reason"]) == (20, 0, "done")
    assert about["versions"]["jax"] == jax.__version__
    assert about["versions"]["fdl"] == fdl.__version__
    assert about["platform"] == "cpu"
    assert about["data"]["examples"] == 40
    assert about["data"]["arrays"] == {"0": "float32 [40, 3]", "1": "float32 [40, 2]"}
    assert about["optimizer"] == (
        "trace(decay=0.9, nesterov=False), scale_by_learning_rate(learning_rate=0.05, sign=-1)"
    )
    assert about["objective"].startswith("<Supervised of <Layer chain of dense_0, tanh_0, dense_1>")
    dtype, shape, (piece,) = about["arrays"]["run/params/dense_0/w"]
    assert [dtype, shape, *piece[:2]] == ["float32", [3, 4], [0, 0], [3, 4]]
    assert [record["step"] for record in about["history"]] == [10, 20]


def test_damage_anywhere_is_found(tmp_path):
    """240 random places: bytes flipped, zeroed or cut off."""
    hook = saved_by_hand(tmp_path / "whole", filled(begin(sgd())))
    like, step = begin(sgd()), hook.steps()[0]
    expected = hook.latest(like)
    rng = random.Random(0)
    files = sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    sizes = [path.stat().st_size for path in files]
    found = 0
    for at in range(240):
        (path,) = rng.choices(files, sizes)
        good = path.read_bytes()
        place = rng.randrange(len(good))
        flipped = bytes([good[place] ^ 1 << rng.randrange(8)])
        bad = [
            good[:place] + flipped + good[place + 1 :],
            good[:place],
            good[:place] + bytes(len(good[place:][:16])) + good[place + 16 :],
        ][at % 3]
        path.write_bytes(bad)
        try:
            again = hook.latest(like)
        except ValueError as error:
            assert str(error).startswith("checkpoints: expected a whole checkpoint at ")
            assert "delete this folder to continue from the checkpoint before it" in str(error)
            found += 1
        else:
            assert_same(again.run, expected.run)
            assert (again.history, again.unfinished) == (expected.history, expected.unfinished)
        path.write_bytes(good)
    # About half of the bytes are Orbax's own notes, which are not read.
    assert found > 100
    assert step in hook.steps()


def test_another_model_or_optimizer_is_refused_with_all_paths(tmp_path):
    train(begin(sgd()), 10, fdl.checkpoints(tmp_path))
    saved = fdl.checkpoints(tmp_path)
    wider = fdl.chain(fdl.dense(5), fdl.tanh, fdl.dense(2))
    with pytest.raises(
        ValueError,
        match=r"^checkpoints: expected a checkpoint of this model and optimizer at .*10, got "
        r"opt_state/0/trace/dense_0/b float32 \[4\] in place of float32 \[5\], .*, "
        r"params/dense_1/w float32 \[4, 2\] in place of float32 \[5, 2\]; pass the "
        r"model and the optimizer of the checkpoint, or choose another folder$",
    ):
        saved.latest(begin(sgd(), wider))
    with pytest.raises(
        ValueError,
        match=r"got no opt_state/0/count int32 \[\], no opt_state/0/mu/dense_0/b float32 \[4\], .*"
        r"an unexpected opt_state/0/trace/dense_0/b float32 \[4\], ",
    ):
        saved.latest(begin(fdl.adam(0.1)))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), begin(sgd()).params)
    with pytest.raises(
        ValueError, match=r"params/dense_0/b float32 \[4\] in place of bfloat16 \[4"
    ):
        saved.latest(fdl.start(half, sgd()))


DIFFERENCES = {
    "data": ({"data": lambda: (data()[0] + 1, data()[1])}, "the examples in a batch may"),
    "rows": ({"data": lambda: jax.tree.map(lambda x: x[:30], data())}, "the examples in a batch"),
    "batch_size": (
        {"batch_size": 9},
        r", 8, got 9; compared with an uninterrupted run, the examples in a batch may",
    ),
    "optimizer": (
        {"optimizer": fdl.sgd(0.06, momentum=0.9)},
        r"learning_rate=0\.06, .*the updates",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_other_data_or_settings_warn(tmp_path, kind):
    change, told = DIFFERENCES[kind]
    train(begin(sgd()), 10, fdl.checkpoints(tmp_path))
    saved = fdl.checkpoints(tmp_path)
    how = {"data": data, "batch_size": 8, "optimizer": sgd()} | change
    with pytest.warns(
        UserWarning, match=r"^checkpoints: expected the .* with which the run.*" + told
    ):
        fdl.fit(
            *(objective(), how["optimizer"], saved.latest(begin(sgd())), how["data"]()),
            **{"batch_size": how["batch_size"], "steps": 11, "record_every": 10},
            watch=[saved],
        )


def test_the_same_settings_warn_of_nothing(tmp_path):
    train(begin(sgd()), 10, fdl.checkpoints(tmp_path))
    saved = fdl.checkpoints(tmp_path)
    result = train(saved.latest(begin(sgd())), 20, saved)  # warnings are errors here
    assert saved.found["optimizer"] == saved.about["optimizer"] and result.reason == "done"


VERSIONS = {
    99: r"expected a checkpoint of fdl [\d.]+ or older, got one of .*; install a newer fdl$",
    1: r"expected a checkpoint of fdl a version that writes as this one does, got one of [\d.]+ at "
    r".*; load it with [\d.]+$",
}


@pytest.mark.parametrize("number", VERSIONS)
def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch, number):
    monkeypatch.setattr(checkpoint_files, "FORMAT", number)
    hook = saved_by_hand(tmp_path, begin(sgd()))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"^checkpoints: {VERSIONS[number]}"):
        hook.latest(begin(sgd()))


def test_the_arrays_of_another_checkpoint_are_refused(tmp_path):
    """All files are whole, so only the checksums differ."""
    run = begin(sgd())
    for name, params in (("one", run.params), ("other", filled(run.params))):
        saved_by_hand(tmp_path / name, run._replace(params=params))
    shutil.rmtree(tmp_path / "one" / "0" / "arrays")
    shutil.copytree(tmp_path / "other" / "0" / "arrays", tmp_path / "one" / "0" / "arrays")
    told = r"^checkpoints: expected a whole checkpoint at .*/0, got contents that do not match the "
    with pytest.raises(ValueError, match=told):
        fdl.checkpoints(tmp_path / "one").latest(run)


def test_arrays_that_are_read_in_small_groups_are_those_read_at_once(tmp_path):
    saved_by_hand(tmp_path, begin(sgd()))
    at = tmp_path / "0"
    about = checkpoint_files._read_about(at)
    whole = dict(checkpoint_files._arrays(at, about, None))
    assert list(whole) == list(about["arrays"]) and len(whole) > 5
    for most in (1, 200):
        assert_equal(dict(checkpoint_files._arrays(at, about, most)), whole)


FOLDERS = {
    "a file": (
        lambda at: (at.parent.mkdir(exist_ok=True), at.write_text("x")),
        r"checkpoints: expected a folder to write to, got File exists; choose another",
    ),
    "of something else": (
        lambda at: (at / "5").mkdir(parents=True),
        r"checkpoints: expected an empty folder or a folder of checkpoints, got .* with '5' in it",
    ),
    "of a later step": (
        lambda at: train(begin(sgd()), 10, fdl.checkpoints(at)),
        r"checkpoints: expected a run at step 10 or later, because .* has a checkpoint of that "
        r"step, got one at step 0; pass saved.latest\(run\) to continue, or choose another folder "
        r"for a new run$",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_not_for_this_run_is_refused(tmp_path, kind):
    make, told = FOLDERS[kind]
    folder = tmp_path / "folder"
    make(folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=told):
        train(begin(sgd()), 10, fdl.checkpoints(folder))
    assert {*before} >= {path.name for path in tmp_path.rglob("*")} - {".lock"}


def test_two_programs_do_not_write_to_one_folder(tmp_path):
    plan = Plan(objective(), sgd(), data(), data(), 40, 8, begin(sgd()), 99, 10, ())
    first, second = fdl.checkpoints(tmp_path), fdl.checkpoints(tmp_path)
    first.begin(plan)
    with pytest.raises(
        ValueError,
        match=r"^checkpoints: expected a folder that no other program uses, got .*, to which "
        r"another program writes; wait until that program ends, or choose another folder$",
    ):
        second.begin(plan)
    first.end()
    second.begin(plan)
    second.end()


def test_a_disk_that_fills_loses_no_earlier_checkpoint(tmp_path, monkeypatch):
    run, saved = begin(sgd()), fdl.checkpoints(tmp_path)
    first = train(run, 10, saved)
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.warns(
        UserWarning,
        match=r"checkpoints: expected to write a checkpoint, got OSError: .*No space left on "
        r"device; earlier checkpoints were not changed: fix the cause, such as a full disk, and",
    ):
        result = train(saved.latest(run), 20, saved)
    assert result.reason == "failed: OSError"
    monkeypatch.undo()
    assert saved.steps() == [10]
    assert_same(saved.latest(run).run, first.run)
    assert_same(train(saved.latest(run), 20, saved).run, train(run, 20).run)


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    saved = fdl.checkpoints(tmp_path, keep=1)
    train(begin(sgd()), 10, saved)

    def half(folder):
        next(path for path in folder.rglob("*") if path.is_file()).unlink()
        raise OSError("killed")

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.warns(UserWarning, match=r"expected to write a checkpoint, got OSError: killed; "):
        train(saved.latest(begin(sgd())), 20, saved)
    monkeypatch.undo()
    assert saved.steps() == kills.steps_read(tmp_path) == [20]
    assert len(list(tmp_path.glob(".*.deleted"))) == 1
    train(saved.latest(begin(sgd())), 30, saved)
    assert saved.steps() == [30]
    assert list(tmp_path.glob(".*.deleted")) == []


def test_a_folder_that_vanishes_ends_training_with_the_run(tmp_path):
    def vanish(record, run):
        shutil.rmtree(tmp_path / "runs")

    with pytest.warns(
        UserWarning,
        match=r"checkpoints: expected to write a checkpoint, got FileNotFoundError: .*was removed",
    ):
        result = train(begin(sgd()), 10, vanish, fdl.checkpoints(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert int(result.run.step) == 10
    assert result.reason.startswith("failed: ")


def test_an_early_stop_is_not_passed_when_the_program_starts_again(tmp_path):
    def again():
        saved, stop = fdl.checkpoints(tmp_path), fdl.early_stop("loss", 2, min_delta=1e9)
        return train(saved.latest(begin(sgd())), 200, stop, saved)

    first, second = again(), again()
    assert first.reason == second.reason == "no better loss for 2 records"
    assert_same(first.run, second.run)
    assert first.history == second.history


def test_a_run_that_is_not_finite_is_not_saved(tmp_path):
    optimizer = fdl.sgd(lambda count: jnp.where(count < 15, 0.1, jnp.inf))
    saved = fdl.checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"^fit: expected finite parameters and state, got "):
        train(begin(optimizer), 40, saved, optimizer=optimizer)
    assert saved.steps() == [10]


@pytest.mark.parametrize(
    ("important", "expected"), [([], [1, 4]), ([2], [1, 2, 4]), ([2, 3], [1, 3, 4]), ([4], [1, 4])]
)
def test_of_the_values_that_wait_the_newest_and_the_important_are_written(important, expected):
    written, begun, go_on = [], threading.Event(), threading.Event()

    def slow(value):
        begun.set()
        go_on.wait(60)
        written.append(value)

    with BackgroundWriter(slow) as writer:
        for value in (1, 2, 3, 4):
            writer.write(value, important=value in important)
            begun.wait(60)
        go_on.set()
    assert written == expected


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(
        ImportError,
        match=r"^checkpoints: expected the package orbax-checkpoint, which writes them, got none; "
        r"pip install 'fdl\[checkpoints\]'$",
    ):
        fdl.checkpoints(tmp_path)


def test_wrong_settings_are_refused(tmp_path):
    for how, told in (
        ({"keep": 0}, r"^checkpoints: expected keep >= 1, an integer, got 0; at least the newest"),
        (
            {"every": 1.5},
            r"^checkpoints: expected every >= 1, an integer, got 1.5; 1 saves at each",
        ),
        ({"mode": "up"}, r"^checkpoints: expected mode 'min' or 'max', got 'up'; use 'min'"),
    ):
        with pytest.raises(ValueError, match=told):
            fdl.checkpoints(tmp_path, **how)


def test_every_second_record_and_the_last_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(background_writer, "REST", 0)
    saved, steps = fdl.checkpoints(tmp_path, keep=9, every=2), []

    def wait(record, run):
        time.sleep(0.3)
        steps.append(saved.steps())

    train(begin(sgd()), 50, wait, saved)
    assert saved.steps() == [20, 40, 50]
    assert steps[-1] == [20, 40]


def test_the_thread_that_saves_rests_and_then_takes_the_newest_that_waits():
    """A save of 0.1 s rests for 0.9 s: in 0.5 s the thread takes one, and at the end the newest."""
    taken = []

    def write(value):
        time.sleep(0.1)
        taken.append(value)

    with BackgroundWriter(write) as writer:
        for value in range(10):
            writer.write(value)
            time.sleep(0.05)
    assert len(taken) == 2 and taken[1] == 9


SEEDED_BUGS = {
    "fdl/train/background_writer.py": (
        "train/test_checkpointing.py -k not killed_at",
        [
            (
                "self.waiting = [*kept, (value, important)]",
                "self.waiting.append((value, important))",
            ),
            ("self.thread.join()", "pass"),
            ("lambda: self.closed, rest)", "lambda: True, rest)"),
        ],
    ),
    "fdl/train/checkpoint_files.py": (
        "train/test_checkpointing.py -k not killed_at",
        [
            ('right = about["sha256"] == _digest(about)', "right = True"),
            (
                "_sha(arrays[number][tuple(map(slice, starts, stops))]) == sha\n",
                "True\n",
            ),
            (
                'Unfinished(parts["means"], about["records"], memories, parts["position"])',
                "Unfinished({}, 0, {})",
            ),
            ("arrays.values()) if x.size}", "arrays.values())}"),
            ("have[path] != want[path]", "False"),
            ('f"{part}/{path}" if path else part', 'f"{part}/{path}".rstrip("/")'),
        ],
    ),
    "fdl/train/checkpointing.py": (
        "train/test_checkpointing.py -k not killed_at",
        [
            ("if newest > step:", "if False:"),
            ("(self.folder / str(step)).rename(gone)", "gone = self.folder / str(step)"),
            ('for gone in self.folder.glob(f".*{DELETED}"):', "for gone in ():"),
            ("{*older} - {best}", "{*older}"),
            ("-self.sign * value if", "self.sign * value if"),
            ("and np.isfinite(value) else", "else"),
            ("fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
            ("result.reason != NOT_FINITE", "True"),
            ("if self.found:", "if False:"),
            ("(due or result.reason)", "True"),
        ],
    ),
}
