"""Data that are read piece by piece: the bits of arrays in memory, and clear ends."""

import functools
import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.train.test_loop import assert_same, without_seconds

N, BATCH = 53, 8


@functools.cache
def data():
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    return x, x[:, :2]


@functools.cache
def objective():
    return fdl.supervised(model(), fdl.squared_error)


@functools.cache
def model():
    return fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.1), fdl.dense(2))


@functools.cache
def sgd():
    return fdl.sgd(0.05, momentum=0.9)


def begin():
    params, state = model().init(jax.random.key(0), data()[0][:1])
    return fdl.start(params, sgd(), state=state)


def train(source, steps=25, run=None, **more):
    how = {"batch_size": BATCH, "record_every": 10} | more
    return fdl.fit(objective(), sgd(), run or begin(), source, steps=steps, **how)


def mapped(folder):
    np.save(folder / "x.npy", data()[0])
    return np.load(folder / "x.npy", mmap_mode="r"), data()[1]


def drawn(step):
    return fdl.draw_batch(data(), 0, step, BATCH)


def all_batches(steps):
    return [jax.tree.map(np.asarray, drawn(step)) for step in range(steps)]


SOURCES = {
    "mapped": lambda folder: mapped(folder),
    "source of mapped": lambda folder: fdl.data.source(mapped(folder)),
    "a view of mapped": lambda folder: (mapped(folder)[0][:N], data()[1]),
    "rows": lambda folder: fdl.data.source(data()),
    "dict": lambda folder: dict(zip("xy", mapped(folder), strict=True)),
    "function": lambda folder: fdl.data.source(drawn),
    "list": lambda folder: fdl.data.source(all_batches(25)),
    "generator": lambda folder: fdl.data.source(drawn(step) for step in range(25)),
}


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_run_has_the_bits_of_the_data_in_memory(tmp_path, kind, chunk):
    shares = []
    watch = [lambda record, run: shares.append(record["waiting"])]
    found = train(SOURCES[kind](tmp_path), chunk=chunk, watch=watch)
    whole = train(data())
    assert_same(found.run, whole.run)
    assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)
    known = kind not in ("function", "list", "generator")
    for record, expected in zip(found.history, without_seconds(whole.history), strict=True):
        for name, value in expected.items():
            if name != "epoch" or known:
                assert record[name] == value
        assert set(record) == {*expected, "seconds"} - ({"epoch"} if not known else set())


@pytest.mark.parametrize("kind", ["mapped", "function"])
def test_a_run_that_is_stopped_and_goes_on_is_the_uninterrupted_one(tmp_path, kind):
    first = train(SOURCES[kind](tmp_path), steps=13)
    found = train(SOURCES[kind](tmp_path), run=first)
    assert_same(found.run, train(data()).run)


def test_epochs_of_mapped_rows_are_counted(tmp_path):
    found = fdl.fit(objective(), sgd(), begin(), mapped(tmp_path), batch_size=BATCH, epochs=1.1)
    assert int(found.run.step) == 8
    assert [record["step"] for record in found.history] == [7, 8]


def test_a_source_of_batches_has_a_batch_size_of_its_own():
    batches = [jax.tree.map(lambda leaf: leaf[:5], batch) for batch in all_batches(4)]
    found = train(fdl.data.source(batches), steps=4, batch_size=BATCH)
    assert int(found.run.step) == 4
    again = train(fdl.data.source(batches), steps=6)  # it begins anew after four
    assert int(again.run.step) == 6


def test_memory_stays_flat_over_rows_that_are_mapped(tmp_path):
    """Rows of 4 kB in a sparse file of 10 GB; a quarter of a GB is read."""
    rows, width = 2_500_000, 1024
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(rows, width))
    score = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
    run = fdl.start(jnp.ones(width), fdl.sgd(0.1))
    how = {"batch_size": 256, "record_every": 50}
    result = fdl.fit(score, fdl.sgd(0.1), run, x, steps=50, **how)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = fdl.fit(score, fdl.sgd(0.1), result, x, steps=250, **how)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert int(result.run.step) == 250
    assert grown * 1024 < 400e6  # the stacks that are read ahead take 3 times 64 MB


def test_a_slow_source_is_named(capsys):
    def slow(step):
        time.sleep(0.02)
        return drawn(step)

    shares = []
    watch = [fdl.progress(), lambda record, run: shares.append(record["waiting"])]
    train(fdl.data.source(slow), steps=80, watch=watch)  # the first stacks are read ahead
    assert shares[-1] > 0.3
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("step     80  loss ")
    assert "waits for the data " in line and line.endswith("% of the time")


def uneven(step):
    return jax.tree.map(lambda leaf: leaf[: 8 - (step == 12)], drawn(step))


def doubled(step):
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, "float64" if step > 11 else None), drawn(step)
    )


ENDS = {
    "ends early": (
        lambda: (drawn(step) for step in range(12)),
        r"source: expected another batch, got the end of a generator; pass an iterable that goes",
        10,
    ),
    "another shape": (
        lambda: uneven,
        r"source: expected every batch to be like the first, float32 \[8, 3\] at '0', got float32 "
        r"\[7, 3\]; drop or pad the batches that differ",
        10,
    ),
    "another dtype": (
        lambda: doubled,
        r"source: expected every batch to be like the first, float32 \[8, 3\] at '0', got float64 "
        r"\[8, 3\]; drop or pad",
        10,
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_source_that_fails_ends_training_and_the_run_is_kept(tmp_path, kind):
    make, told, reached = ENDS[kind]
    with pytest.warns(UserWarning, match="(?s)^fit: expected to get data.*" + told):
        found = train(fdl.data.source(make()), chunk=5)
    assert found.reason == "failed: ValueError"
    assert int(found.run.step) == reached
    assert_same(found.run, train(data(), steps=reached).run)


def refused(step):
    raise OSError("the disk is gone")


BAD = {
    "nothing": (
        lambda: train(fdl.data.source(iter([]))),
        ValueError,
        r"source: expected another batch, got the end of a list_iterator; pass an iterable that g",
    ),
    "an empty list": (
        lambda: train(fdl.data.source([])),
        ValueError,
        r"source: expected another batch, got the end of a list; pass an iterable that goes on",
    ),
    "a number": (
        lambda: fdl.data.source(3),
        TypeError,
        r"source: expected arrays, a function step -> batch, or an iterable of batches, got 3",
    ),
    "an error at once": (lambda: train(fdl.data.source(refused)), OSError, r"the disk is gone"),
    "epochs": (
        lambda: fdl.fit(objective(), sgd(), begin(), fdl.data.source(drawn), epochs=2),
        ValueError,
        r"fit: expected steps, because the source does not know how many examples it has, got "
        r"epochs=2; pass steps=...",
    ),
    "a wrong width": (
        lambda: train(fdl.data.source(lambda step: (data()[0][:8, :2], data()[1][:8]))),
        fdl.PathError,
        r"chain: expected params for x",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_told_before_the_first_step(kind):
    call, error, told = BAD[kind]
    with pytest.raises(error, match=told if kind != "a wrong width" else "expected x"):
        call()


def test_checkpoints_say_that_an_iterable_has_no_position(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    with pytest.warns(
        UserWarning,
        match=r"^checkpoints: expected data whose batch is a function of the step, got a source of "
        r"a list; a continued run sees other batches: pass fdl.data.source\(f\) with f\(step\)",
    ):
        train(fdl.data.source(all_batches(3)), watch=[fdl.checkpoints(tmp_path / "list")])
    train(SOURCES["mapped"](tmp_path), watch=[fdl.checkpoints(tmp_path / "mapped")])
    about = json.loads((tmp_path / "mapped" / "25" / "about" / "metadata").read_text())
    assert about["data"]["examples"] == N
    again = fdl.checkpoints(tmp_path / "mapped")
    train(data(), steps=30, run=again.latest(begin()), watch=[again])  # the same data: no warning


def test_torch_loaders_are_iterables():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, data()))
    loader = torch.utils.data.DataLoader(tensors, batch_size=BATCH, drop_last=True)
    as_pairs = map(tuple, loader)
    found = train(fdl.data.source(as_pairs), steps=6)
    rows = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 8], data()) for at in range(0, 48, 8)]
    assert_same(found.run, train(fdl.data.source(rows), steps=6).run)


SEEDED_BUGS = {
    "fdl/data/streaming.py": (
        "data/test_streaming.py",
        [
            ("self.left = itertools.chain([batch], self.left or ())", "pass"),
            ("self.left = again", "pass"),
            ("leaf = leaf.base", "return False"),
            ("if _kinds(batch) != first:", "if False:"),
            ("stream(seed, step, batch_size, examples)", "stream(0, 0, batch_size, examples)"),
        ],
    ),
    "fdl/train/feed.py": (
        "data/test_streaming.py",
        [
            ("if found != first:", "if False:"),
            ("yield range(step, end)", "yield range(step + 1, end + 1)"),
            ("np.uint32(steps.start)", "np.uint32(0)"),
            ("self.waited += time.perf_counter() - begun", "pass"),
            (
                "min(self.plan.last, until, step + self.size)",
                "min(self.plan.last, step + self.size)",
            ),
        ],
    ),
}
