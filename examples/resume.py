"""A program that is killed during training and started again ends with the same bits.

The script starts itself three times, each time to train the same network on the digits (or on
MNIST). The first program trains to the end. The second one is killed when half of the steps are
done. The third one continues from the newest checkpoint of the second one. Then the script compares
the hashes of the first and the third one. A hash covers the whole run (weights, optimizer, step)
and the history.

  python examples/resume.py
  python examples/resume.py --data folder_of_mnist
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import report

import fdl

KILL = "--killed-at"


def train(folder, given):
    """The program of a user. `saved.latest(run)` is all that it needs to continue after a kill."""
    train, test = report.mnist(given.data) if given.data else fdl.data.digits()
    model = fdl.chain(
        fdl.rescale(1 / train[0].max()),
        fdl.flatten(),
        fdl.dense(64),
        fdl.batch_norm(),
        fdl.relu,
        fdl.dropout(0.2),
        fdl.dense(10),
    )
    params, state = model.init(jax.random.key(0), train[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    steps = given.epochs * len(train[0]) // given.batch
    optimizer = fdl.adam(fdl.optim.cosine_decay_schedule(1e-3, steps))
    saved = fdl.checkpoints(folder, keep=2, best="val_loss")
    run = saved.latest(fdl.start(params, optimizer, state=state))
    print(f"begins at step {int(getattr(run, 'run', run).step):5} of {steps}")

    def killer(record, run):
        if given.killed_at and record["step"] >= given.killed_at * steps:
            while not saved.steps():  # the steps may take less time than the first checkpoint
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    result = fdl.fit(
        objective,
        optimizer,
        run,
        train,
        batch_size=given.batch,
        steps=steps,
        validation=test,
        watch=[fdl.progress(), fdl.early_stop("val_loss", 20), killer, saved],
    )
    print(f"{result.reason} at step {int(result.run.step)}, hash {digest(result)}")


def digest(result):
    """SHA-256 of every bit of the run and of the history, without the seconds in the history."""
    found = hashlib.sha256()
    for path, leaf in fdl.paths.leaves(result.run).items():
        found.update(path.encode() + np.asarray(leaf).tobytes())
    for record in result.history:
        found.update(repr({k: v for k, v in record.items() if k != "seconds"}).encode())
    return found.hexdigest()


def main(arguments):
    """Starts the program three times, and compares the hashes."""
    given = options().parse_args(arguments)
    if given.folder:
        return train(given.folder, given)
    out = Path(given.out)
    shutil.rmtree(out, ignore_errors=True)
    runs = [
        ("A program that nobody stops", "whole", 0.0),
        ("The same, killed when half of its steps are done", "killed", 0.5),
        ("The killed one, started again", "killed", 0.0),
    ]
    hashes = []
    for title, folder, at in runs:
        print(f"\n{title}:", flush=True)
        again = [*arguments, "--folder", str(out / folder), KILL, str(at)]
        command = [sys.executable, __file__, *again]
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
        print(text, end="")
        hashes.append(text.split()[-1] if "hash" in text else "none")
    same = hashes[0] == hashes[2] != "none"
    print(f"\nThe two hashes are {'the same' if same else 'DIFFERENT'}.")
    return 0 if same else 1


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help=f"{report.DATA} (default: the digits)")
    parser.add_argument("--epochs", type=int, default=20, help="passes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="batch size (default: %(default)s)")
    parser.add_argument(
        "--out", default="out/resume", help="folder of the checkpoints (default: %(default)s)"
    )
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument(KILL, type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    fdl.use_compilation_cache()
    sys.exit(main(sys.argv[1:]))
