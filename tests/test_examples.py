"""The examples run as a person runs them, and leave behind what they promise."""

import gzip
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fdl

EXAMPLES = Path(__file__).parents[1] / "examples"


def options(script, arguments):
    """What an example reads from its command line."""
    sys.path.insert(0, str(EXAMPLES))  # examples import each other
    try:
        return runpy.run_path(str(EXAMPLES / script))["options"](arguments)
    finally:
        sys.path.remove(str(EXAMPLES))


def run(*command, check=True):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=check
    )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        *[(each, ["digits"]) for each in ("compare_optimizers.py", "digits.py", "mnist.py")],
        ("vocabulary.py", ["digits"]),
        *[(each, ["--out", "(default: "]) for each in ("mnist_cnn.py", "char_gpt.py", "table.py")],
        *[(each, ["--out", "(default: "]) for each in ("autoencoder.py", "finetune.py")],
    ],
)
def test_help_says_what_it_does(script, words, capsys):
    with pytest.raises(SystemExit) as ended:
        options(script, ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage:")
    assert all(word in text for word in words)


@pytest.mark.slow
@pytest.mark.bits
def test_digits_learns_compares_and_draws(tmp_path):
    out = tmp_path / "out"
    text = run(EXAMPLES / "digits.py", "--epochs", "8", "--hidden", "64", "--out", out).stdout
    assert re.search(r"dense_0 +\[1, 64\] +4,160  b \[64\], w \[64, 64\]", text)
    assert float(re.search(r"Test accuracy (0\.\d+)", text)[1]) > 0.9
    assert "Every bit of every parameter is the same." in text
    assert re.search(r"optax.sgd +0\.9\d+ +\d\.\d+ +[\d,]+\n", text)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history][-1] == 337
    assert history[-1]["val_accuracy"] > history[0]["val_accuracy"] > 0.5
    pictures = ["learning_curves", "first_layer", "representations", "mistakes", "confusion"]
    for name in pictures:
        assert (out / f"{name}.png").stat().st_size > 5000
    assert (out / "weights.safetensors").stat().st_size > 4 * (64 * 64 + 640)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(EXAMPLES / "digits.py", "--out", tmp_path / "file" / "out", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("--out: expected a folder that can be written, got ")
    assert done.stdout == ""


@pytest.mark.slow
def test_the_vocabulary_walk_ends_in_the_same_parameters():
    text = run(EXAMPLES / "vocabulary.py").stdout
    apart = float(re.search(r"largest difference of any weight is (\S+)\.\n", text)[1])
    assert apart < 1e-10
    assert len(re.findall(r"the loss on its batch falls from (\d\.\d+) to", text)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["circle", "xor", "gauss", "spiral"])
def test_the_playground_writes_a_page(name, tmp_path):
    how = ["--data", name, "--hidden", "4", "3", "--steps", "60", "--out", tmp_path]
    text = run(EXAMPLES / "playground.py", *how).stdout
    assert f"{tmp_path}/{name}.html in a browser" in text
    assert (tmp_path / f"{name}.html").stat().st_size > 100_000


def test_the_playground_refuses_a_large_network():
    done = run(EXAMPLES / "playground.py", "--hidden", *"2222222", check=False)
    assert "--hidden: expected at most 6 layers of 1 to 8 neurons, got [2, 2, 2" in done.stderr


@pytest.mark.slow
def test_optimizers_are_compared_and_drawn(tmp_path):
    out = tmp_path / "out"
    names = ["sgd", "nesterov", "optax.adam"]
    how = ["--optimizers", *names, "--rates", "0.001", "0.03", "30", "--seeds", "0", "1"]
    how += ["--hidden", "8", "--epochs", "3", "--target", "2"]
    text = run(EXAMPLES / "compare_optimizers.py", *how, "--out", out).stdout
    assert len(re.findall(r"6 runs of 127 steps in \d+\.\d s, after", text)) == 3
    table = (out / "table.txt").read_text()
    assert table in text
    head, *rows = [re.split("  +", line) for line in table.splitlines()]
    assert head[:5] == ["optimizer", "best rate", "val_loss", "val_accuracy", "steps to target"]
    assert [row[0] for row in rows] == names
    assert rows[2][1] == "0.03" and float(rows[2][3].split()[0]) > 0.7
    for name in ("best_curves", "rate_sensitivity"):
        assert (out / f"{name}.png").stat().st_size > 5000


def test_an_optimizer_that_is_none_is_said(tmp_path):
    script, out = EXAMPLES / "compare_optimizers.py", tmp_path / "out"
    for name in ("adamm", "keras.adam"):
        done = run(script, "--optimizers", name, "--out", out, check=False)
        assert done.returncode == 1 and not out.exists()
        message = "--optimizers: expected names of fdl.optim, or optax.NAME, got "
        assert done.stderr == f"{message}{name!r}; try adam\n"


@pytest.mark.slow
def test_an_optimizer_beside_optax():
    script = EXAMPLES / "compare_optimizers.py"
    text = run(script, "--against", "optax", "--optimizers", "sgd_schedule").stdout
    *_, head, row = text.splitlines()
    assert head.split()[-1] == "time"
    name, ulps, free, chaos, smooth, ratio = row.split()
    assert name == "sgd_schedule"
    assert float(ulps) <= 8 and float(smooth) <= 1e-8 and float(free) <= 0.5
    assert float(chaos) > 0 and 0.1 < float(ratio) < 10


@pytest.mark.slow
def test_a_killed_program_ends_with_the_same_bits(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    text = run(EXAMPLES / "resume.py", "--epochs", "4", "--out", tmp_path / "out").stdout
    begun = [int(step) for step in re.findall(r"begins at step +(\d+) of 84", text)]
    assert begun[:2] == [0, 0] and 0 < begun[2] < 84
    assert text.count("done at step 84, hash") == 2
    assert text.endswith("The two hashes are the same.\n")


@pytest.mark.slow
def test_a_tournament_of_settings_is_run_and_drawn(tmp_path):
    out = tmp_path / "out"
    how = ["--settings", "9", "--seeds", "1", "--epochs", "2", "--out", out]
    text = run(EXAMPLES / "sweep.py", *how).stdout
    table = (out / "table.txt").read_text()
    assert table in text
    stopped = [line.split()[3] for line in table.splitlines()[1:]]
    assert stopped.count("84") == 1 and stopped.count("9") == 2 and stopped.count("3") == 6
    assert (out / "tournament.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_schedule_is_tuned_by_its_gradient_and_drawn(tmp_path):
    how = ["--steps", "12", "--networks", "1", "--rounds", "3", "--out", tmp_path]
    text = run(EXAMPLES / "tune_schedule.py", *how).stdout
    table = (tmp_path / "table.txt").read_text()
    assert table in text and "4 new networks after 12 steps, on images not used so far" in text
    names = ("best constant rate", "best cosine", "tuned")
    losses = [float(re.search(rf"^{name} +(\d\.\d+) \+- 0", table, re.M)[1]) for name in names]
    assert losses[2] < losses[0] and max(losses) < np.log(10)
    assert (tmp_path / "tuned_schedule.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_table_is_learned_and_predicted_in_a_new_process(tmp_path):
    said = run(EXAMPLES / "table.py", "--epochs", 12, "--out", tmp_path).stdout
    assert "1,600 rows for training, 400 for testing\n" in said
    found = re.search(
        r"absolute error ([\d.]+); always predicting the median gives ([\d.]+)\.\n", said
    )
    error, of_median = map(float, found.groups())
    assert error < of_median / 3
    columns = fdl.data.Columns.from_json((tmp_path / "columns.json").read_text())
    assert [column.name for column in columns.numbers] == ["area"]
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predicted) == 400 and abs(np.mean(predicted) - columns.target.mean) < 100
    # The first line of new.csv is in another order than the table that was learned.
    assert (tmp_path / "new.csv").read_text().startswith('"balcony","heating","city","area"\n')


@pytest.mark.slow
def test_a_table_with_classes_is_learned_from_a_file(tmp_path):
    rows = "".join(f"{i % 7},{'ab'[i % 4 > 0]},{['no', 'yes'][i % 4 > 0]}\n" for i in range(200))
    (tmp_path / "given.csv").write_text("n,letter,answer\n" + rows)
    command = [EXAMPLES / "table.py", "--data", tmp_path / "given.csv", "--out", tmp_path / "out"]
    said = run(*command, "--target", "answer", "--epochs", 10).stdout
    assert re.search(r"Accuracy 100.0%; always predicting 'yes' gives [67].\.\d%", said)
    done = run(*command, "--target", "price", check=False)
    assert done.returncode == 1 and done.stderr.endswith("got 'price'; check the spelling\n")


@pytest.mark.slow
def test_a_small_gpt_is_scored_beside_compressors_and_writes(tmp_path):
    text = "the quick brown fox jumps over the lazy dog; " * 60
    (tmp_path / "text.txt").write_text(text)
    small = {"layers": 1, "heads": 2, "features": 16, "context": 16, "steps": 40, "warmup": 5}
    options = [word for name, value in small.items() for word in (f"--{name}", value)]
    command = [EXAMPLES / "char_gpt.py", "--data", tmp_path / "text.txt", *options]
    said = run(*command, "--out", tmp_path / "out").stdout
    rows = dict(re.findall(r"^ +(gzip -9|bzip2 -9|xz -9e|this GPT) +([\d.]+)$", said, re.MULTILINE))
    assert set(rows) == {"gzip -9", "bzip2 -9", "xz -9e", "this GPT"}
    nats = float(re.search(r"^(\d\.\d+) if the pieces overlap", said, re.MULTILINE)[1])
    assert abs(float(rows["this GPT"]) - nats / np.log(2)) < 1e-3
    held_out = text[int(len(text) * 0.9) :].encode()
    assert float(rows["gzip -9"]) == round(8 * len(gzip.compress(held_out, 9)) / len(held_out), 3)
    assert "It writes:\n\nthe " in said
    assert (tmp_path / "out" / "learning_curves.png").stat().st_size > 5000


def test_a_small_gpt_has_room_for_what_it_writes_by_default():
    given = options("char_gpt.py", [])
    assert given.write == given.context - given.context // 4


@pytest.mark.slow
def test_a_transformer_is_adapted_and_exported(tmp_path):
    said = run(EXAMPLES / "finetune.py", "--out", tmp_path).stdout
    before, after = (
        [
            float(each)
            for each in re.search(rf"^{name}: (.*)% right by 1, (.*)% by 3$", said, re.M).groups()
        ]
        for name in ("Pretrained", "Adapted")
    )
    assert before[0] > 99 and before[1] < 40 and after[1] > 99 and after[0] < 40
    updates, fixed = re.search(r"Adapted ([\d,]+) numbers beside ([\d,]+) fixed", said).groups()
    assert int(updates.replace(",", "")) < int(fixed.replace(",", "")) / 2
    rows = re.findall(r"^ +\d   +(-?\d+\.\d+) +(-?\d+\.\d+)", said, re.MULTILINE)
    assert len(rows) == 5
    for fdl_, program in rows:
        assert abs(float(fdl_) - float(program)) < 1e-4
    x = np.arange(12, dtype=np.int32)[None] * 3 % 10
    y = fdl.port.load_program(tmp_path / "counts.jax")(x)
    assert np.asarray(y).argmax(-1)[0, 1:].tolist() == ((x[0, 1:] + 3) % 10).tolist()


@pytest.mark.slow
def test_an_autoencoder_beats_the_mean_image_and_draws(tmp_path):
    command = [EXAMPLES / "autoencoder.py", "--data", "digits", "--epochs", 40, "--code", 8]
    said = run(*command, "--rate", 0.005, "--batch", 32, "--hidden", 64, "--out", tmp_path).stdout
    error = float(re.search(r"never seen: ([\d.]+)", said)[1])
    of_mean = float(re.search(r"([\d.]+) by the mean image", said)[1])
    assert error < of_mean / 2
    for name in ("rebuilt", "code", "learning_curves"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
