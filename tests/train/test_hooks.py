"""What a person sees in a terminal while a network trains."""

import functools
import io
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import fdl
from fdl.train.accumulators import Mean
from fdl.train.hooks import Plan


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of that many columns, whose screen can be read back."""

    def of(columns):
        screen = io.StringIO()
        settings = {"force_terminal": True, "color_system": None, "width": columns}
        console = functools.partial(rich.console.Console, file=screen, **settings)
        monkeypatch.setattr(rich.console, "Console", console)
        return screen

    return of


def train(**more):
    x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    optimizer = fdl.sgd(0.1)
    run = fdl.start(jnp.zeros((1, 1)), optimizer)
    objective = fdl.supervised(lambda w, x: x @ w, fdl.squared_error, error=fdl.absolute_error)
    return fdl.fit(objective, optimizer, run, (x, 2 * x), batch_size=4, chunk=5, **more)


def frames(screen):
    """Each state of the screen, as lines."""
    shown = re.split(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+", screen.getvalue())
    return [re.sub(r"\x1b\[[?0-9;]*[a-z]", "", frame).strip().splitlines() for frame in shown]


@pytest.mark.parametrize("columns", [50, 100])
def test_the_bar_shows_the_last_values_of_validation(terminal, columns):
    screen = terminal(columns)
    x = np.ones((3, 1), np.float32)
    result = train(steps=20, record_every=10, validation=(x, x), watch=[fdl.progress()])
    bar, *seen = frames(screen)[-1]
    assert re.match(r"training ━+ 20/20 0:00:00$", bar)
    last = result.history[-1]
    names = ("error", "loss", "val_error", "val_loss")
    assert " ".join(" ".join(seen).split()) == " ".join(f"{n} {last[n]:.4f}" for n in names)


def test_between_records_the_bar_keeps_what_validation_gave(terminal):
    screen, hook = terminal(80), fdl.progress()
    hook.begin(
        Plan(None, None, None, None, 4, 4, fdl.start(jnp.zeros(1), fdl.sgd(0.1)), 30, 10, ())
    )
    hook.advance(5, {"loss": Mean(5.0, 10.0)})
    hook.bar.refresh()
    hook({"step": 10, "epoch": 1.0, "seconds": 1.0, "loss": 0.25, "val_loss": 0.75}, None)
    hook.bar.refresh()
    hook.advance(15, {"loss": Mean(1.0, 8.0)})
    hook.bar.refresh()
    hook({"step": 20, "epoch": 2.0, "seconds": 2.0, "loss": 0.1, "val_loss": 0.2}, None)
    hook.end()
    seen = list(dict.fromkeys(frame[1] for frame in frames(screen) if len(frame) > 1))
    assert seen == [
        "loss 0.5000",
        "loss 0.2500  val_loss 0.7500",
        "loss 0.1250  val_loss 0.7500",
        "loss 0.1000  val_loss 0.2000",
    ]


def test_the_bar_moves_in_a_sweep(terminal):
    screen = terminal(80)
    score = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
    how = {"seeds": [0], "batch_size": 4, "steps": 6, "record_every": 2, "watch": [fdl.progress()]}
    rates = {"learning_rate": [0.1, 0.2]}
    fdl.sweep(score, lambda seed: (jnp.float32(seed), {}), fdl.sgd, rates, np.ones(8, "f"), **how)
    assert re.match(r"training ━+ 6/6 0:00:00$", frames(screen)[-1][0])


def test_without_validation_there_is_nothing_of_it(terminal):
    screen = terminal(80)
    train(steps=10, record_every=5, watch=[fdl.progress()])
    assert "val_" not in screen.getvalue() and "loss " in screen.getvalue()


def test_lines_have_the_values_of_validation_too(capsys):
    x = np.ones((3, 1), np.float32)
    result = train(steps=10, record_every=10, validation=(x, x), watch=[fdl.progress()])
    last = result.history[-1]
    names = ("error", "loss", "val_error", "val_loss")
    line = "  ".join(f"{name} {last[name]:.4f}" for name in names)
    assert capsys.readouterr().out == f"step     10  epoch   2.0  {line}\n"


class Unwritable(io.StringIO):
    """A text file on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["lines", "bar"])
def test_an_output_that_cannot_be_written_ends_no_training(kind, monkeypatch):
    screen = Unwritable()
    how = {"file": screen, "force_terminal": kind == "bar"}
    monkeypatch.setattr(rich.console, "Console", functools.partial(rich.console.Console, **how))
    with pytest.warns(
        UserWarning,
        match=r"^fit: expected an output that can be written, got OSError: .*No space left on "
        r"device; training continues without showing progress$",
    ) as warned:
        result = train(steps=20, record_every=5, watch=[fdl.progress()])
    assert len(warned) == 1
    assert result.reason == "done" and len(result.history) == 4


def test_a_reader_that_leaves_the_pipe_ends_no_training(tmp_path):
    """As in `python train.py | head -1`; rich raises SystemExit there."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, jax.numpy as jnp, fdl\n"
        "score, sgd = fdl.plain(lambda w, b: jnp.mean((w - b) ** 2)), fdl.sgd(0.1)\n"
        "result = fdl.fit(score, sgd, fdl.start(jnp.zeros(()), sgd), jnp.ones(8), batch_size=4,\n"
        "    steps=2000, record_every=1, chunk=1, watch=[fdl.progress()])\n"
        "print(result.reason, int(result.run.step), file=sys.stderr)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, script], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300
    )
    os.close(writer)
    assert "got a closed pipe; training continues without showing progress" in done.stderr
    assert done.stderr.splitlines()[-1] == "done 2000"


SEEDED_BUGS = {
    "fdl/train/progress_bar.py": (
        "train/test_hooks.py",
        [
            ("except (Exception, SystemExit) as error:", "except Exception as error:"),
            ("bar, self.bar, self.console = self.bar, None, None", "bar = self.bar"),
            ("values(means) | self.validated", "values(means)"),
            ('self.bar.update(self.task, completed=record["step"], seen=', "str("),
            ('completed=record["step"], ', ""),
        ],
    ),
}
