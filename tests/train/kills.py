"""Kills a training program at random moments, and starts it again until it ends.

    python -m tests.train.kills                            100 kills with each kind of data
    python -m tests.train.kills --kills 20 --kind arrays

Each time, the hash of the whole run and of the history must be that of a program that nobody
killed, and after each kill every checkpoint must be readable. The test suite does this with a few
kills.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fdl
from fdl.train import checkpoint_files

ROOT = Path(__file__).parents[2]
KINDS = ["arrays", "memory-mapped"]
# Programs that JAX has compiled once are kept, so that most of the time is spent on training.
KEEP_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def program(folder, kind, saves=None, delay=0.0):
    """Starts the program; its hash if it ended, or None if it was killed.

    It is killed some seconds after it has saved some checkpoints.
    """
    command = [sys.executable, "-m", "tests.train.killed", str(folder), kind]
    saved = fdl.checkpoints(folder)
    before, seen = saved.steps(), set()
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"), **KEEP_ALL, **os.environ}
    how = {"cwd": ROOT, "env": kept, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as process:
        while saves is not None and process.poll() is None:
            seen |= {*saved.steps()} - {*before}
            if len(seen) >= saves:
                time.sleep(delay)
                process.kill()
                break
            time.sleep(0.001)
        out, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return None if process.returncode else out.strip()


def steps_read(folder):
    """The steps of the checkpoints in a folder; raises if one of them cannot be read."""
    steps = fdl.checkpoints(folder).steps()
    for step in steps:
        at = folder / str(step)
        list(checkpoint_files._arrays(at, checkpoint_files._read_about(at), None))
    return steps


def kill(root, kind, kills, seed=0):
    """Kills the program some times in all; whenever it ends, another one begins.

    Returns:
      (whole, hashes, newest): the hash of a program that nobody killed, those of the others, and
      how often each step was that of the newest checkpoint after a kill.
    """
    whole = program(root / "whole", kind)
    begun = time.perf_counter()
    hashes = [program(root / "again", kind)]  # the first one had to compile
    takes = time.perf_counter() - begun
    rng, newest = random.Random(seed), collections.Counter()
    while newest.total() < kills:
        folder, out = root / f"killed {len(hashes)}", None
        while out is None:
            saves = rng.randrange(6)
            delay = rng.uniform(0, 0.2 if saves else takes)
            out = program(folder, kind, saves if newest.total() < kills else None, delay)
            steps = steps_read(folder)
            newest[max(steps, default=0)] += out is None
        hashes.append(out)
        shutil.rmtree(folder)
    return whole, hashes, +newest


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=100, help="(default: %(default)s)")
    options.add_argument("--kind", choices=KINDS, nargs="*", default=KINDS)
    options.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    given = options.parse_args()
    same = True
    for kind in given.kind:
        with tempfile.TemporaryDirectory() as folder:
            whole, hashes, newest = kill(Path(folder), kind, given.kills, given.seed)
        other = sum(found != whole for found in hashes)
        print(
            f"{kind}: {newest.total()} kills, {len(hashes)} runs that ended, {other} of them with "
            f"another hash than {whole[:16]}; every checkpoint was readable. Kills by the newest "
            f"checkpoint: {dict(sorted(newest.items()))}",
            flush=True,
        )
        same = same and not other
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
