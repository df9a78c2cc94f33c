"""Data that are read piece by piece: the bits of arrays in memory, and clear ends."""

import functools
import itertools
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


class Pairs:
    """A data set as torch, Grain and Hugging Face have them."""

    def __repr__(self):
        return "pairs"  # Grain compares it when it goes on

    def __len__(self):
        return N

    def __getitem__(self, row):
        assert type(row) is int
        return data()[0][row], data()[1][row].tolist()


SOURCES = {
    "mapped": lambda folder: mapped(folder),
    "source of mapped": lambda folder: fdl.data.source(mapped(folder)),
    "a view of mapped": lambda folder: (mapped(folder)[0][:N], data()[1]),
    "rows": lambda folder: fdl.data.source(data()),
    "dict": lambda folder: dict(zip("xy", mapped(folder), strict=True)),
    "examples": lambda folder: fdl.data.source(Pairs()),
    "chosen": lambda folder: fdl.data.source(mapped(folder), rows=np.arange(N)),
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


class Stepping:
    """Batches of `drawn` up to a step, and where it is, as Grain's iterators say it."""

    def __init__(self, form, end=10**9):
        self.form, self.end, self.state = form, end, {"at": {"next": 0}, "of": [None, True]}

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["at"]["next"] == self.end:
            raise StopIteration
        self.state["at"]["next"] += 1
        return drawn(self.state["at"]["next"] - 1)

    def get_state(self):
        return self.state if self.form is dict else str(self.state["at"]["next"]).encode()

    def set_state(self, state):
        assert type(state) is self.form
        self.state["at"]["next"] = state["at"]["next"] if self.form is dict else int(state)


class Passes:
    """A loader that gives the same seven batches in each pass."""

    def __iter__(self):
        return Stepping(dict, 7)


POSITIONED = {
    "dict": (lambda: Stepping(dict), data),
    "bytes": (lambda: Stepping(bytes), data),
    "passes": (Passes, lambda: fdl.data.source([drawn(step % 7) for step in range(25)])),
}


def until(step):
    """Stops while the thread has read two stacks more."""

    def stop(record, run):
        time.sleep(0.01)
        return "enough" * (record["step"] == step)

    return stop


@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("kind", POSITIONED)
def test_an_iterator_that_says_where_it_is_goes_on_from_there(kind, chunk):
    make, plain = POSITIONED[kind]
    whole = train(plain())
    assert_same(train(fdl.data.source(make()), chunk=chunk).run, whole.run)
    source = fdl.data.source(make())
    first = train(source, chunk=chunk, watch=[until(10)])
    assert int(first.run.step) == 10
    for again in (fdl.data.source(make()), source):
        found = train(again, run=first, chunk=chunk)
        assert_same(found.run, whole.run)
        assert without_seconds(found.history)[-1]["loss"] == whole.history[-1]["loss"]
    assert_same(train(source, chunk=chunk).run, whole.run)  # a new run is at the beginning


@pytest.mark.parametrize("kind", POSITIONED)
def test_the_position_is_part_of_a_checkpoint(tmp_path, kind):
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    make, plain = POSITIONED[kind]
    for stop in (10, 20, 25):
        saved = fdl.checkpoints(tmp_path)
        found = train(
            fdl.data.source(make()),
            run=saved.latest(begin()),
            chunk=3,
            watch=[until(stop), saved],
        )
        assert int(found.run.step) == stop
    assert_same(found.run, train(plain()).run)


class Rows(Pairs):
    def __getitem__(self, row):
        return data()[0][row], data()[1][row]


def grain_loader(grain):
    return grain.DataLoader(
        data_source=Rows(),
        sampler=grain.samplers.IndexSampler(N, shuffle=True, seed=5, num_epochs=None),
        operations=[grain.transforms.Batch(BATCH, drop_remainder=True)],
        shard_options=grain.sharding.NoSharding(),
    )


def grain_iterator(grain):
    return iter(grain_data_set(grain))


def grain_data_set(grain):
    pairs = grain.MapDataset.source(Rows()).seed(5).shuffle()
    return pairs.repeat().to_iter_dataset().batch(BATCH, drop_remainder=True)


@pytest.mark.parametrize("make", [grain_loader, grain_iterator, grain_data_set])
def test_iterators_of_grain_go_on_from_where_they_are(tmp_path, make):
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    grain = pytest.importorskip("grain", reason="grain is not installed")
    batches = list(itertools.islice(make(grain), 25))
    assert not np.array_equal(batches[0][0], batches[1][0])
    whole = train(fdl.data.source(batches))
    for stop in (10, 25):
        saved = fdl.checkpoints(tmp_path)
        source = fdl.data.source(make(grain))
        found = train(source, run=saved.latest(begin()), chunk=3, watch=[until(stop), saved])
        assert int(found.run.step) == stop
    assert_same(found.run, whole.run)


def test_data_sets_of_grain_are_examples():
    grain = pytest.importorskip("grain", reason="grain is not installed")
    source = fdl.data.source(grain.MapDataset.source(Pairs()))
    assert source.examples == N
    assert_same(train(source, steps=7).run, train(data(), steps=7).run)


def test_wide_numbers_are_converted_as_in_memory():
    """float64 and int64, as torch, Hugging Face and NumPy give them."""
    wide = jax.tree.map(np.float64, data())
    expected = train(data(), steps=7).run
    assert_same(train(fdl.data.source(wide), steps=7).run, expected)
    steps = fdl.data.source(lambda step: jax.tree.map(np.float64, drawn(step)))
    assert_same(train(steps, steps=7).run, expected)


def test_a_run_without_its_position_is_told():
    first = train(fdl.data.source(Stepping(dict)), steps=10)
    told = (
        r"^fit: expected the position of the source of a Stepping at step 10, got a run without "
        r"it, so the source starts from its beginning; pass the whole Result of the earlier fit to"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        train(fdl.data.source(Stepping(dict)), run=first.run, steps=12)
    assert warned[0].filename == __file__


def test_a_state_that_json_does_not_hold_is_no_position(tmp_path):
    class Odd(Stepping):
        def get_state(self):
            return object()

    assert not fdl.data.source(Odd(dict)).exact
    assert fdl.data.source(Stepping(dict)).exact
    assert train(fdl.data.source(Odd(dict)), steps=3).unfinished.position == {}


def test_rows_that_are_chosen_are_the_data(tmp_path):
    """Balanced or weighted rows, with repetitions."""
    rows = fdl.data.weighted_rows(np.arange(N) % 3, 40, seed=4)
    assert len(np.unique(rows)) < len(rows)
    picked = jax.tree.map(lambda leaf: leaf[rows], data())
    for plain in (mapped(tmp_path), Pairs()):
        chosen = fdl.data.source(plain, rows=rows)
        assert chosen.examples == 40
        assert_same(chosen.read([3, 39]), jax.tree.map(lambda leaf: leaf[[3, 39]], picked))
        found = train(chosen, steps=13, chunk=4)
        found = train(fdl.data.source(fdl.data.source(plain), rows=rows), run=found, chunk=4)
        assert_same(found.run, train(picked).run)
    other = fdl.data.source(mapped(tmp_path), rows=rows[::-1])
    assert other.fingerprint() != fdl.data.source(mapped(tmp_path), rows=rows).fingerprint()


def test_a_batch_may_have_more_rows_than_there_are():
    few = jax.tree.map(lambda leaf: leaf[:3], data())
    assert_same(train(fdl.data.source(few), steps=4).run, train(few, steps=4).run)


def test_examples_of_other_libraries():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, y = map(torch.from_numpy, data())
    sets = {
        "torch": torch.utils.data.TensorDataset(x, y),
        "subset": torch.utils.data.Subset(torch.utils.data.TensorDataset(x, y), range(N)),
    }
    for each in sets.values():
        assert_same(train(fdl.data.source(each), steps=7).run, train(data(), steps=7).run)


def test_examples_are_dicts_lists_and_numbers():
    class Mixed(Pairs):
        def __getitem__(self, row):
            return {"ids": [[row, 2], [3, 4]], "y": row, "z": [np.ones(2), row]}

    batch = fdl.data.source(Mixed()).read([5, 7])
    assert {path: x.tolist() for path, x in fdl.paths.leaves(batch).items()} == {
        "ids": [[[5, 2], [3, 4]], [[7, 2], [3, 4]]],
        "y": [5, 7],
        "z/0": [[1, 1], [1, 1]],
        "z/1": [5, 7],
    }


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
        r"source: expected another batch, got the end of a generator; pass an iterable that does",
        10,
    ),
    "another shape": (
        lambda: uneven,
        r"source: expected every batch to be like the first, float32 \[8, 3\] at '0', got float32 "
        r"\[7, 3\]; drop or pad those that differ",
        10,
    ),
    "another shape in all of a stack": (
        lambda: lambda step: jax.tree.map(lambda leaf: leaf[: 8 - (step >= 10)], drawn(step)),
        r"source: expected every batch to be like the first, float32 \[8, 3\] at '0', got float32 "
        r"\[7, 3\]; drop or pad those that differ",
        10,
    ),
    "another dtype": (
        lambda: doubled,
        r"source: expected every batch to be like the first, float32 \[8, 3\] at '0', got float64 "
        r"\[8, 3\]; drop or pad those that differ",
        10,
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_source_that_fails_ends_training_and_the_run_is_kept(tmp_path, kind):
    make, told, reached = ENDS[kind]
    with pytest.warns(UserWarning, match="(?s)^fit: expected no error from the data.*" + told):
        found = train(fdl.data.source(make()), chunk=5)
    assert found.reason == "failed: ValueError"
    assert int(found.run.step) == reached
    assert_same(found.run, train(data(), steps=reached).run)


def refused(step):
    raise OSError("the disk is gone")


class Of:
    """A data set with these items."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


BAD = {
    "no examples": (
        lambda: fdl.data.source(Of()),
        ValueError,
        r"source: expected at least one example, got none in a Of; check the code that makes the",
    ),
    "an empty example": (
        lambda: fdl.data.source(Of({"x": 1.0}, None)).read(),
        ValueError,
        r"source: expected an example with arrays or numbers, got None at index 1 of a Of; leave "
        r"that example out",
    ),
    "uneven examples": (
        lambda: fdl.data.source(Of({"x": [1.0, 2]}, {"x": [1.0]})).read(),
        ValueError,
        r"source: expected every example to be like the first, float64 \[2\] at 'x', got float64 "
        r"\[1\]; drop or pad those that differ",
    ),
    "examples of another dtype": (
        lambda: fdl.data.source(Of({"x": np.float32(1)}, {"x": 2.0})).read(),
        ValueError,
        r"source: expected every example to be like the first, float32 \[\] at 'x', got float64",
    ),
    "a text": (
        lambda: fdl.data.source("table.csv"),
        TypeError,
        r"source: expected data, got 'table.csv'; read tables in files with fdl.data.tab",
    ),
    "rows of a function": (
        lambda: fdl.data.source(drawn, rows=[1]),
        ValueError,
        r"source: expected rows only for arrays and data sets, got rows for a source of .*; leave",
    ),
    "rows that are not there": (
        lambda: fdl.data.source(data(), rows=[1, N]),
        ValueError,
        r"source: expected rows \[M\], integers in \[0, 53\), got int64 \[2\] from 1 to 53; in "
        r"place of a mask, pass np.flatnonzero\(mask\)",
    ),
    "negative rows": (
        lambda: fdl.data.source(data(), rows=[-1, 1]),
        ValueError,
        r"source: expected rows \[M\], .*, got int64 \[2\] from -1 to 1; in place of a mask",
    ),
    "a mask": (
        lambda: fdl.data.source(data(), rows=np.ones(N, bool)),
        ValueError,
        r"source: expected rows \[M\], .*, got bool \[53\]; in place of a mask, pass np.flatnonz",
    ),
    "nothing": (
        lambda: train(fdl.data.source(iter([]))),
        ValueError,
        r"source: expected another batch, got the end of a list_iterator; pass an iterable that d",
    ),
    "an empty list": (
        lambda: train(fdl.data.source([])),
        ValueError,
        r"source: expected another batch, got the end of a list; pass an iterable that does not",
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
        r"fit: expected steps, because the source does not know its number of examples, got "
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
        r"a list; a continued run gets other batches: pass fdl.data.source\(f\) with f\(step\)",
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
            ("self.peeked.pop() if self.peeked else self._next()", "self._next()"),
            ("position or self.begin:", "position:"),
            ("self.peeked = []\n", "pass\n"),
            ("iterator.set_state(_state(position or self.begin))", "pass"),
            ("np.arange(batch_size) % self.examples", "np.arange(min(batch_size, self.examples))"),
            ("self.source.read(self.rows[rows])", "self.source.read(rows)"),
            ("for column in columns} != {1}:", "for column in []}:"),
            ('| {"sha256_of_rows": rows}', "| {}"),
            ("self.left = again", "pass"),
            ("leaf = leaf.base", "return False"),
            ("if kinds_of(part) != first:", "if False:"),
            ("stream(seed, step, batch_size, examples)", "stream(0, 0, batch_size, examples)"),
        ],
    ),
    "fdl/train/checkpoint_files.py": (
        "data/test_streaming.py",
        [('memories, parts["position"])', "memories)")],
    ),
    "fdl/train/loop.py": (
        "data/test_streaming.py",
        [("memories, self.feed.position)", "memories)")],
    ),
    "fdl/train/feed.py": (
        "data/test_streaming.py",
        [
            ("if found != first:", "if False:"),
            ("range(AHEAD + 2)", "range(1)"),
            ("begin + self.piece, steps.stop", "begin + self.piece, steps.stop - 1"),
            ("piece.start - steps.start, piece.stop", "0, piece.stop"),
            ("self.source.seek(self.position)", "pass"),
            (
                "stack, self.position = found",
                "stack, self.position = found[0], self.source.position()",
            ),
            ("step and not self.position and", "step and"),
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
