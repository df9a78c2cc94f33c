"""What TensorBoard's own reader finds in the files that the hook writes."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import fdl

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
)


def train(run, steps, *watch):
    objective = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
    x = np.arange(8, dtype=np.float32)
    how = {"batch_size": 4, "record_every": 2, "validation": x}
    return fdl.fit(objective, fdl.sgd(0.1), run, x, steps=steps, watch=watch, **how)


def read(folder):
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_every_value_of_every_record_is_a_curve(tmp_path):
    result = train(fdl.start(jnp.zeros(()), fdl.sgd(0.1)), 6, fdl.look.tensorboard(tmp_path))
    found = read(tmp_path)
    assert set(found) == {"epoch", "learning_rate", "loss", "val_loss", "seconds"}
    for name, points in found.items():
        assert [step for step, _ in points] == [2, 4, 6]
        expected = [np.float32(record[name]) for record in result.history]
        assert [np.float32(value) for _, value in points] == expected


def test_a_run_that_goes_on_earlier_replaces_what_came_after(tmp_path):
    run = fdl.start(jnp.zeros(()), fdl.sgd(0.1))
    part = train(run, 4)
    train(run, 8, fdl.look.tensorboard(tmp_path))
    result = train(part, 6, fdl.look.tensorboard(tmp_path))
    assert [step for step, _ in read(tmp_path)["loss"]] == [2, 4, 6]
    assert read(tmp_path)["loss"][-1][1] == np.float32(result.history[-1]["loss"])


def test_wrong_folders_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(
        TypeError,
        match=r"^tensorboard: expected the path of a folder, got 3; pass 'out/curves', for exam",
    ):
        fdl.look.tensorboard(3)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OSError, match=r"Not a directory"):
        train(fdl.start(jnp.zeros(()), fdl.sgd(0.1)), 2, fdl.look.tensorboard(file))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        ImportError,
        match=r"^tensorboard: expected the package tensorboardX, which writes the files, got none; "
        r"pip install 'fdl\[tensorboard\]'$",
    ):
        fdl.look.tensorboard(tmp_path)


SEEDED_BUGS = {
    "fdl/look/events.py": (
        "look/test_events.py",
        [
            (", purge_step=int(plan.run.step) + 1", ""),
            ('int(record["step"]))', 'int(record["step"]) + 1)'),
        ],
    ),
}
