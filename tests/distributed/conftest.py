"""The programs on several devices run once, also if several workers read what they found."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    where = os.pathsep.join([str(ROOT), *sys.path])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": where}


def begin(module, *args, devices):
    command = [sys.executable, "-m", f"tests.distributed.{module}", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(devices), cwd=ROOT, **pipes)


def ended(process):
    """What a program printed in its last line."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def begin_two(folder, kind):
    """Two processes that train together."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [begin("two", process, port, folder, kind, devices=2) for process in range(2)]


def once(tmp_path_factory, name, call):
    """What `call(folder)` gives, in the first worker that asks."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / "found.json"
        if not file.exists():
            file.write_text(json.dumps(call(folder)))
        return json.loads(file.read_text()), folder


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """What tests/distributed/eight.py found."""
    run = lambda folder: ended(begin("eight", devices=8))  # noqa: E731
    return once(tmp_path_factory, "eight", run)[0]


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    """What tests/distributed/split.py found."""
    run = lambda folder: ended(begin("split", devices=8))  # noqa: E731
    return once(tmp_path_factory, "split", run)[0]


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """(what each process of tests/distributed/two.py found, their folder)."""
    run = lambda folder: [ended(each) for each in begin_two(folder, "whole")]  # noqa: E731
    return once(tmp_path_factory, "two", run)
