"""One of two processes with two devices each: `two.py PROCESS PORT FOLDER KIND`; prints JSON."""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d
from fdl.ops.sharding import on_host

NET = fdl.chain(fdl.dense(16, bias=False), fdl.batch_norm(), fdl.tanh, fdl.dense(8))
OPTIMIZER = fdl.adamw(0.01)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(48, 6)).astype("float32"), rng.integers(0, 8, 48)


def begun(seed=3):
    params, state = jax.jit(NET.init)(jax.random.key(0), data()[0][:1])
    return fdl.start(params, OPTIMIZER, state=state, seed=seed)


def digest(run):
    """The SHA-256 of all arrays of a run."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(run):
        found.update(on_host(leaf).tobytes())
    return found.hexdigest()


class Items:
    """A data set that counts how many of its items are read."""

    def __init__(self, data):
        self.data, self.read = data, 0

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, index):
        self.read += 1
        return self.data[0][index], self.data[1][index]


def refused(call):
    try:
        call()
    except ValueError as error:
        return str(error)


def main(process, port, folder, kind):
    """`kind` is "whole"; "slow", to be killed; or "short", without what comes after training."""
    found = {"several": d.start(f"127.0.0.1:{port}", processes=2, process=process)}
    found |= {"again": d.start(), "first": d.is_first(), "devices": jax.device_count()}
    objective = fdl.supervised(NET, fdl.softmax_cross_entropy, accuracy=fdl.metrics.accuracy)
    mesh, run = d.mesh(data=4), begun()
    placed = d.place(run, d.fsdp(mesh, run))
    saved = fdl.checkpoints(f"{folder}/saved", keep=None)
    slowly = lambda record, run: time.sleep(3 * (kind == "slow"))  # noqa: E731
    log = fdl.log(f"{folder}/log{process}.jsonl")
    how = {"batch_size": 8, "record_every": 5, "chunk": 4}
    result = fdl.fit(
        objective,
        OPTIMIZER,
        saved.latest(placed),
        data(),
        steps=20,
        validation=data(),
        watch=[saved, fdl.keep_best(), fdl.progress(), log, slowly],
        **how,
    )
    found["losses"] = [[each["loss"], each["val_loss"]] for each in result.history]
    found["digest"] = digest(result.run)
    if kind == "whole":
        found["evaluated"] = fdl.evaluate(objective, result, data())["loss"]
        y = fdl.predict(NET, result, data()[0])
        found["predicted"] = float(fdl.softmax_cross_entropy(np.asarray(y), data()[1]).mean())
        own = slice(24 * process, 24 * process + 24)
        rows = jax.sharding.NamedSharding(mesh, P("data"))
        half = [jax.make_array_from_process_local_data(rows, each[own]) for each in data()]
        cut = fdl.fit(objective, OPTIMIZER, placed, tuple(half), steps=20, **how)
        found["cut"] = digest(cut.run) == found["digest"]
        items = Items(data())
        read = fdl.data.source(items)
        streamed = fdl.fit(objective, OPTIMIZER, placed, read, steps=20, **how)
        found |= {"read": items.read, "streamed": digest(streamed.run) == found["digest"]}
        other = d.place(begun(seed=process), placed.layout)
        call = lambda: fdl.fit(objective, OPTIMIZER, other, data(), steps=1)  # noqa: E731
        found["refused"] = refused(call)
        Path(f"{folder}/other/file").mkdir(parents=True, exist_ok=True)
        found["folder"] = refused(
            lambda: fdl.fit(
                *(objective, OPTIMIZER, placed, data()),
                steps=1,
                watch=[fdl.checkpoints(f"{folder}/other")],
            )
        )
        found["small mesh"] = refused(lambda: d.mesh(data=2))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
