"""A training step in a file: JAX alone continues it, bit for bit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fdl
from fdl.port import load_weights, save_training
from tests.programs import array

# What the README shows, and what somebody without fdl writes.
README = (Path(__file__).parents[2] / "README.md").read_text()
SCRIPT = next(
    block
    for block in re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    if "training.json" in block
)
BLOCKED = "import sys\nsys.modules['fdl'] = sys.modules['optax'] = None\n"


def images():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6, 6, 1)), rng.integers(0, 10, 64)
    return array(x), array(y, np.int32)


MODEL = fdl.chain(
    fdl.conv(4, (3, 3)),
    fdl.batch_norm(),
    fdl.relu,
    fdl.flatten(),
    fdl.dropout(0.2),
    fdl.dense(10),
)
OBJECTIVE = fdl.supervised(MODEL, fdl.softmax_cross_entropy, accuracy=fdl.metrics.accuracy)
OPTIMIZER = fdl.adam(0.01)


def begun():
    params, state = MODEL.init(jax.random.key(0), images()[0])
    return fdl.start(params, OPTIMIZER, state=state, seed=3)


def step_of(folder):
    return jax.jit(jax.export.deserialize(bytearray((folder / "step.jax").read_bytes())).call)


def assert_equal_bits(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.slow
@pytest.mark.bits
def test_the_script_of_the_readme_continues_without_fdl_and_optax(tmp_path):
    x, y = images()
    first = fdl.fit(OBJECTIVE, OPTIMIZER, begun(), (x, y), batch_size=16, steps=7)
    save_training(tmp_path, OBJECTIVE, OPTIMIZER, first, (x, y), batch_size=16)
    whole = fdl.fit(OBJECTIVE, OPTIMIZER, begun(), (x, y), batch_size=16, steps=107)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    before = f"import numpy as np\nfolder = {str(tmp_path)!r}\n"
    before += "data = np.load(folder + '/data.npz')\n"
    before += "images, digits = data['x'], data['y']\ndata.close()\n"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + before + SCRIPT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in SCRIPT.splitlines() if line]) <= 15
    end = load_weights(tmp_path / "run.safetensors", begun())
    assert int(end.step) == 107
    assert_equal_bits(end, whole.run)
    assert float(re.search(r"'loss': \S*?(\d+\.\d+)", done.stdout)[1]) < 0.5


@pytest.mark.slow
@pytest.mark.bits
def test_a_program_of_one_batch_takes_the_batch_that_it_gets(tmp_path):
    """The oracle draws the batches itself, and passes them one by one."""
    data, run = images(), begun()
    save_training(
        tmp_path, OBJECTIVE, OPTIMIZER, run, jax.tree.map(lambda a: a[:16], data), batch_size=None
    )
    about = json.loads((tmp_path / "training.json").read_text())
    assert [leaf["shape"] for leaf in about["data"]] == [[16, 6, 6, 1], [16]]
    assert about["batch_size"] is None
    leaves, step = jax.tree.leaves(run), step_of(tmp_path)
    for number in range(5):
        batch = fdl.draw_batch(data, 3, number, 16)
        leaves, _ = step(leaves, list(batch))
    end = fdl.fit(OBJECTIVE, OPTIMIZER, run, data, batch_size=16, steps=5).run
    assert_equal_bits(leaves, end)


def test_the_json_lists_the_arrays_in_order(tmp_path):
    run, data = begun(), jax.eval_shape(images)
    save_training(tmp_path / "new" / "folder", OBJECTIVE, OPTIMIZER, run, data, 16)
    folder = tmp_path / "new" / "folder"
    assert {file.name for file in folder.iterdir()} == {
        "step.jax",
        "run.safetensors",
        "training.json",
    }
    about, arrays = (
        json.loads((folder / "training.json").read_text()),
        load_file(folder / "run.safetensors"),
    )
    assert about["means"] == ["accuracy", "loss"] and about["platforms"] == ["cpu"]
    assert about["jax"] == jax.__version__ and about["fdl"] == fdl.__version__
    assert [leaf["path"] for leaf in about["data"]] == ["0", "1"]
    assert about["data"][1] == {"path": "1", "dtype": "int32", "shape": [64]}
    assert_equal_bits([arrays[leaf["path"]] for leaf in about["run"]], run)
    for leaf in about["run"]:
        found = arrays[leaf["path"]]
        assert [leaf["dtype"], leaf["shape"]] == [str(found.dtype), list(found.shape)]


def test_random_keys_weak_types_and_microbatches(tmp_path):
    """The loss of `noisy` depends on the key in the state, which each step replaces."""

    def noisy(params, state, batch, key):
        now, later = jax.random.split(state["key"])
        loss = jnp.mean((params - batch + jax.random.normal(now)) ** 2)
        return loss, ({"key": later}, {})

    data = jnp.arange(8.0)
    run = fdl.start(1.0, fdl.sgd(0.1), seed=1)._replace(state={"key": jax.random.key(5)})
    save_training(tmp_path, noisy, fdl.sgd(0.1), run, data, 4)
    about = json.loads((tmp_path / "training.json").read_text())
    key = {"path": "state/key", "dtype": "uint32", "shape": [2]}
    assert key in about["run"]
    arrays = load_file(tmp_path / "run.safetensors")
    leaves, step = [arrays[leaf["path"]] for leaf in about["run"]], step_of(tmp_path)
    for _ in range(3):
        leaves, means = step(leaves, [data])
        run, expected = fdl.train_step(noisy, fdl.sgd(0.1), run, data, 4)
    np.testing.assert_allclose(leaves[0], run.params, rtol=1e-6)
    np.testing.assert_allclose(means["loss"], expected["loss"].value(), rtol=1e-5)
    named = dict(zip([leaf["path"] for leaf in about["run"]], map(np.asarray, leaves), strict=True))
    save_file(named, tmp_path / "run.safetensors")
    assert named["state/key"].tolist() == jax.random.key_data(run.state["key"]).tolist()
    # The loss shows how many examples it sees at a time.
    objective = fdl.plain(lambda w, batch: len(batch) * jnp.mean((w - batch) ** 2))
    run = fdl.start(jnp.float32(1), fdl.sgd(0.1))
    save_training(tmp_path, objective, fdl.sgd(0.1), run, data, 4, microbatch=2)
    after, _ = step_of(tmp_path)(jax.tree.leaves(run), [data])
    expected, _ = fdl.train_step(objective, fdl.sgd(0.1), run, data, 4, 2)
    np.testing.assert_allclose(after[0], expected.params, rtol=1e-6)


def test_a_program_for_several_platforms(tmp_path):
    data = images()
    save_training(
        tmp_path, OBJECTIVE, OPTIMIZER, begun(), data, 16, platforms=["cpu", "cuda", "rocm", "tpu"]
    )
    leaves, _ = step_of(tmp_path)(jax.tree.leaves(begun()), list(data))
    run, _ = jax.jit(lambda run: fdl.train_step(OBJECTIVE, OPTIMIZER, run, data, 16))(begun())
    for found, expected in zip(leaves, jax.tree.leaves(run), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def small(rate, features):
    """A training that is saved in no time: the arguments of `save_training` after the folder."""
    objective = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
    run = fdl.start(jnp.zeros(features), fdl.sgd(rate))
    return objective, fdl.sgd(rate), run, jnp.ones((8, features)), 4


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("place", ["save_weights", "write_program", "replacing"])
def test_a_save_that_fails_leaves_the_files_of_the_one_before(tmp_path, monkeypatch, place):
    save_training(tmp_path, *small(0.5, 3))
    (tmp_path / "step.jax").chmod(0o640)
    before = contents(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(fdl.port.training, place, full)
        with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
            save_training(tmp_path, *small(0.1, 2))
    assert contents(tmp_path) == before
    save_training(tmp_path, *small(0.1, 2))
    after = contents(tmp_path)
    assert after.keys() == before.keys() and not any(after[name] == before[name] for name in after)
    assert (tmp_path / "step.jax").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_mixture_of_two_saves_has_no_json(tmp_path, monkeypatch, moved):
    """The process is killed after `moved` of the three files."""
    save_training(tmp_path / "other", *small(0.1, 2))
    folder = tmp_path / "saved"
    save_training(folder, *small(0.5, 3))
    replace, count = os.replace, iter(range(10))

    def killed(old, new):
        if Path(new).parent == folder and next(count) == moved:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_training(folder, *small(0.1, 2))
    assert contents(folder).keys() == {"step.jax", "run.safetensors"}
    monkeypatch.setattr(os, "replace", replace)
    save_training(folder, *small(0.1, 2))
    assert contents(folder)["run.safetensors"] == contents(tmp_path / "other")["run.safetensors"]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    save_training(tmp_path, *small(0.5, 3))
    (tmp_path / "run.safetensors").unlink()
    (tmp_path / "run.safetensors").mkdir()
    told = (
        r"save_training: expected to replace step.jax, run.safetensors, training.json, got Is a "
        r"directory; choose another folder: "
    )
    with pytest.raises(OSError, match=told):
        save_training(tmp_path, *small(0.1, 2))
    assert {file.name for file in tmp_path.iterdir()} == {
        *("step.jax", "run.safetensors", "training.json")
    }


def growing(params, state, batch, key):
    return jnp.mean(params), ({"seen": jnp.concatenate([state["seen"], state["seen"]])}, {})


def test_wrong_arguments_are_named(tmp_path):
    run, data = begun(), images()
    for change, error, told in (
        (
            {"objective": OPTIMIZER},
            TypeError,
            "save_training: expected an objective ",
        ),
        ({"run": run.params}, TypeError, "save_training: expected a run, or a result of fit, got "),
        (
            {"run": run._replace(layout="two devices")},
            ValueError,
            "save_training: expected a run on one device, got one that is split over several; save "
            "it with fdl.port.save_weights, and load it into a run from fdl.start",
        ),
        (
            {"microbatch": 3},
            ValueError,
            "save_training: expected a microbatch that divides the batch of 16, got 3; every "
            "microbatch needs the same number of examples",
        ),
        (
            {"platforms": []},
            ValueError,
            "save_training: expected platforms among ['cpu', 'cuda', 'rocm', 'tpu'], got []; pass "
            "a list such as ['cpu', 'cuda']",
        ),
        (
            {
                "objective": growing,
                "optimizer": fdl.sgd(0.1),
                "run": fdl.start(jnp.ones(2), fdl.sgd(0.1), state={"seen": jnp.ones(1)}),
            },
            fdl.PathError,
            "state/seen: expected float32 [1] after a step, got float32 [2]; the objective must "
            "return the state with the structure, shapes and dtypes that it got",
        ),
    ):
        given = {"objective": OBJECTIVE, "optimizer": OPTIMIZER, "run": run, "data": data}
        with pytest.raises(error, match="^" + re.escape(told)):
            save_training(tmp_path, **{**given, "batch_size": 16, **change})
    assert list(tmp_path.iterdir()) == []


SEEDED_BUGS = {
    "fdl/port/atomic_files.py": (
        "port/test_training.py -k leaves_or_mixture_or_place",
        [
            ("(folder / names[-1]).unlink(missing_ok=True)", "pass"),
            ("os.chmod(temporary / name, mode)", "pass"),
            ("modes = {name: _mode(folder / name) for", "modes = {name: None for"),
        ],
    ),
    "fdl/port/training.py": (
        "port/test_training.py",
        [
            (
                ' "run.safetensors", "training.json")) as new',
                ' "training.json", "run.safetensors")) as new',
            ),
            ("write_program(who, new /", "write_program(who, folder /"),
            (
                "return jax.tree.leaves(_numbers(after)), {",
                "return jax.tree.leaves(_numbers(whole)), {",
            ),
            ("platforms = [export.default_export_platform()]", "platforms = ['cpu', 'tpu']"),
            ("lambda leaf: leaf[None], data), run.step", "lambda leaf: leaf[None, ::-1], data), 0"),
            ("data, size, microbatch)", "data, size, None)"),
            ("    zero_means(like, *jax.eval_shape(taken, like, data))\n", ""),
            ('"run": _listed(_numbers(run))', '"run": _listed(_numbers(run))[::-1]'),
            ("if run.layout is not None:", "if False:"),
        ],
    ),
}
