"""Kills one of two processes at random moments, and starts both again until they end.

    python -m tests.distributed.kills --kills 10

Each time, the other process must end by itself within a minute; and whenever both end, the digest
of the run must be that of two processes that nobody killed.
"""

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.distributed.conftest import begin_two, ended


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    draw, slowest, left, runs = random.Random(0), 0.0, given.kills, 0
    with tempfile.TemporaryDirectory() as root:
        begun = time.monotonic()
        whole = [ended(each)["digest"] for each in begin_two(Path(root) / "whole", "short")]
        usual = time.monotonic() - begun
        while left:
            runs += 1
            folder = Path(root) / str(runs)
            while True:
                job = begin_two(folder, "slow")
                delay = draw.uniform(0.2, 1.0) * (usual + 9)  # a slow job waits 3 s a record
                killed = left > 0 and killed_after(job, delay, draw.randrange(2))
                if not killed:
                    break
                left, slowest = left - 1, max(slowest, killed)
            found = [ended(each)["digest"] for each in job]
            assert found == whole, (found, whole)
    print(
        f"{given.kills} kills, {runs} runs that ended, all with the digest {whole[0][:16]}; after "
        f"a kill, the other process ended within {slowest:.0f} s"
    )


def killed_after(job, delay, victim):
    """Kills a process after a delay; the seconds until the other one ended, or None if both had."""
    until = time.monotonic() + delay
    while time.monotonic() < until:
        if all(each.poll() is not None for each in job):
            return None
        time.sleep(0.05)
    job[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    for each in job:
        each.communicate(timeout=90)
    assert any(each.returncode for each in job)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
