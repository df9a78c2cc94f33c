"""Two processes with two devices each: one run, one log, one folder of checkpoints."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fdl
from fdl import distributed as d
from tests.distributed import two as program
from tests.distributed.conftest import begin_two, ended, environment


@pytest.fixture(scope="module")
def alone():
    """The run of two.py on one device."""
    objective = fdl.supervised(program.NET, fdl.softmax_cross_entropy)
    how = {"batch_size": 8, "record_every": 5, "validation": program.data()}
    return fdl.fit(objective, program.OPTIMIZER, program.begun(), program.data(), steps=20, **how)


def test_both_processes_see_all_devices(two):
    found, _ = two
    assert [each["several"] for each in found] == [each["again"] for each in found] == [True, True]
    assert [each["first"] for each in found] == [True, False]
    assert [each["devices"] for each in found] == [4, 4]


def test_the_run_is_that_on_one_device(two, alone):
    found, _ = two
    losses = [[each["loss"], each["val_loss"]] for each in alone.history]
    np.testing.assert_allclose(found[0]["losses"], losses, atol=1e-5)
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["digest"] == found[1]["digest"]
    assert found[0]["evaluated"] == found[0]["losses"][-1][1]
    assert found[1]["predicted"] == pytest.approx(found[0]["evaluated"], rel=1e-5)


def test_each_process_reads_its_own_examples_once(two):
    found, _ = two
    assert [each["streamed"] for each in found] == [True, True]
    assert [each["cut"] for each in found] == [True, True]
    first, steps, half_a_batch = 8, 20, 4
    assert [each["read"] for each in found] == [first + steps * half_a_batch] * 2


def test_only_the_first_process_writes(two):
    _, folder = two
    records = [json.loads(line) for line in (folder / "log0.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    assert not (folder / "log1.jsonl").exists()


def test_each_process_writes_its_own_parts(two):
    _, folder = two
    about = json.loads((folder / "saved" / "20" / "about" / "metadata").read_text())
    dtype, shape, pieces = about["arrays"]["run/params/dense_1/w"]
    assert (dtype, shape) == ("float32", [16, 8])
    starts = [[0, 0], [4, 0], [8, 0], [12, 0]]
    assert sorted(each[:2] for each in pieces) == [[at, [at[0] + 4, 8]] for at in starts]
    assert [len(each[2]) for each in about["arrays"].values()].count(1) > 5


def test_their_checkpoint_goes_on_in_one_process(two, alone):
    found, folder = two
    saved = fdl.checkpoints(folder / "saved", keep=None)
    result = saved.latest(program.begun())
    assert saved.steps()[-1] == 20
    assert program.digest(result.run) == found[0]["digest"]
    assert [each["loss"] for each in result.history] == [loss for loss, _ in found[0]["losses"]]


def test_processes_that_differ_are_refused(two):
    found, _ = two
    for process, each in enumerate(found):
        assert each["refused"].startswith(
            "fit: expected the same seed on all 2 processes, got different ones on processes "
            f"0 and 1 (here: {process}); start every process with the same program"
        )
        assert "multiply to 4 devices, those of 2 processes, got data=2; " in each["small mesh"]


def test_all_processes_end_if_the_first_cannot_write(two):
    found, _ = two
    first = "checkpoints: expected an empty folder or a folder of checkpoints, got "
    assert found[0]["folder"].startswith(first)
    told = "checkpoints: expected a folder that the first process can use, got its error "
    assert found[1]["folder"].startswith(f'{told}"{first}')
    assert found[1]["folder"].endswith("; see the output of that process")


def test_a_job_of_which_a_process_was_killed_ends_and_goes_on_to_the_same_bits(two, tmp_path):
    found, _ = two
    job = begin_two(tmp_path, "slow")
    while not any((tmp_path / "saved" / step).exists() for step in ("5", "10", "15")):
        assert job[0].poll() is None, job[0].communicate()
        time.sleep(0.1)
    job[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    job[1].communicate()
    _, errors = job[0].communicate(timeout=60)
    assert job[0].returncode != 0
    assert time.monotonic() - begun < 60
    # The second is said by JAX, if the death is noticed between two chunks.
    assert "if another process died, see its output" in errors or "another task died" in errors
    assert not (tmp_path / "saved" / "20").exists()
    again = [ended(each) for each in begin_two(tmp_path, "short")]
    assert [each["digest"] for each in again] == [each["digest"] for each in found]


def test_a_program_that_is_started_alone_stays_alone():
    assert d.start() is False
    assert d.is_first() is True


def started(code):
    command = [sys.executable, "-c", f"from fdl import distributed as d\n{code}"]
    return subprocess.run(command, env=environment(1), capture_output=True, text=True).stderr


def test_a_coordinator_that_cannot_be_reached_is_said():
    errors = started("d.start('127.0.0.1:9', processes=2, process=1, timeout=1)")
    assert (
        "RuntimeError: start: expected the first process at 127.0.0.1:9 within 1 seconds, got "
    ) in errors


def test_what_is_missing_is_said():
    errors = started("d.start(processes=2)")
    assert (
        "ValueError: start: expected coordinator, processes and process, got "
        "None, 2 and None; pass all three, as in start("
    ) in errors


def test_start_comes_first():
    code = "import jax\njax.devices()\nd.start('127.0.0.1:9', processes=2, process=0)"
    assert (
        "RuntimeError: start: expected a process in which JAX has not computed yet, got one in "
        "which it has; call fdl.distributed.start() in the first line"
    ) in started(code)


def on_slurm(processes, code):
    job = {"JOB_ID": "7", "STEP_NODELIST": "n1", "PROCID": "0", "LOCALID": "0"}
    job = {f"SLURM_{name}": each for name, each in {**job, "NTASKS": processes}.items()}
    return started(f"import os, jax\nos.environ.update({job})\njax.devices()\n{code}")


def test_start_comes_first_on_a_cluster_too():
    assert (
        "RuntimeError: start: expected a process in which JAX has not computed yet, got one in "
        "which it has; call fdl.distributed.start() in the first line"
    ) in on_slurm("2", "d.start()")


def test_a_job_of_one_process_is_alone():
    assert on_slurm("1", "assert d.start() is False") == ""


def test_the_address_of_the_environment_is_said():
    address = "import os\nos.environ['JAX_COORDINATOR_ADDRESS'] = '127.0.0.1:9'"
    assert (
        "ValueError: start: expected coordinator, processes and process, got "
        "'127.0.0.1:9', None and None; pass all three, as in start("
    ) in started(f"{address}\nd.start()")


SEEDED_BUGS = {
    "fdl/distributed/hosts.py": (
        "distributed/test_hosts.py -k start_or_alone",
        [
            ("and not _in_a_cluster():", ":"),
            ("kind.get_process_count() > 1", "True"),
        ],
    ),
    "fdl/train/processes.py": (
        "distributed/test_hosts.py",
        [
            ("(each != found[0])[number].any()", "False"),
        ],
    ),
    "fdl/train/checkpoint_files.py": (
        "distributed/test_hosts.py",
        [("if part.replica_id == 0", "if True"), ("[b for _, b in each]", "[a for a, _ in each]")],
    ),
    "fdl/train/run.py": (
        "distributed/test_hosts.py",
        [("not many(run) or jax.process_index() == 0", "True")],
    ),
    "fdl/train/feed.py": (
        "distributed/test_hosts.py",
        [("layout.own(plan.batch_size)", "np.arange(plan.batch_size)")],
    ),
}
