"""A program that trains with checkpoints, for the tests that kill it: `killed.py FOLDER KIND`.

It prints the hash of the whole run and of the history when it ends.
"""

import hashlib
import sys
import time
from pathlib import Path

import jax
import numpy as np

import fdl

ROWS, IMAGE = 203, (2, 3, 1)


def data(kind, folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, *IMAGE)).astype(np.float32)
    y = np.sin(x.sum((1, 2)))
    if kind == "memory-mapped":
        file = Path(folder).parent / "x.npy"
        if not file.exists():
            np.save(file, x)
        x = np.load(file, mmap_mode="r")
    return x, y


def train(folder, kind="arrays", steps=400, watch=()):
    net = fdl.chain(
        fdl.random_shift((0, 1), fill="EDGE"),
        fdl.flatten(),
        fdl.dense(8),
        fdl.batch_norm(),
        fdl.tanh,
        fdl.dropout(0.1),
        fdl.dense(1),
    )
    objective = fdl.supervised(net, fdl.squared_error, error=fdl.absolute_error)
    rate = fdl.optim.cosine_decay_schedule(0.05, 400)
    optimizer = fdl.optim.chain(fdl.sgd(rate, momentum=0.9), fdl.optim.params_ema(0.95))
    x, y = data(kind, folder)
    params, state = net.init(jax.random.key(0), x[:1])
    saved = fdl.checkpoints(folder, keep=2, best="val_loss")
    stop, best = fdl.early_stop(patience=8), fdl.keep_best()
    result = fdl.fit(
        objective,
        optimizer,
        saved.latest(fdl.start(params, optimizer, state=state)),
        (x, y),
        batch_size=16,
        steps=steps,
        validation=(np.array(x[:50]), y[:50]),
        record_every=20,
        chunk=7,
        watch=[stop, best, *watch, saved],
    )
    return result, best


def digest(result, best):
    found = hashlib.sha256()
    kept = (result.run, best.params, best.state, best.step, best.value)
    for path, leaf in fdl.paths.leaves(kept).items():
        found.update(path.encode() + np.asarray(leaf).tobytes())
    for record in result.history:
        found.update(repr({k: v for k, v in record.items() if k != "seconds"}).encode())
    return found.hexdigest()


if __name__ == "__main__":
    # Without the wait, all steps would take less time than it takes to save one checkpoint.
    print(digest(*train(*sys.argv[1:], watch=[lambda record, run: time.sleep(0.05)])))
