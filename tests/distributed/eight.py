"""What runs on eight devices of one CPU, for the tests beside it; prints JSON."""

import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d
from fdl.train.program import advance
from tests.compilations import Compilations

EIGHT = functools.partial(d.mesh, data=8)
GRID = functools.partial(d.mesh, data=4, model=2)
FOUND = {}


def layouts(params, *names):
    made = {
        "data": lambda: d.data_parallel(EIGHT()),
        "fsdp": lambda: d.fsdp(EIGHT(), params),
        "tensor": lambda: d.tensor_parallel(GRID(), params),
        "both": lambda: d.fsdp(GRID(), params, beside=d.tensor_parallel(GRID(), params)),
    }
    return {name: made[name]() for name in names}


def objective_of(net, loss=fdl.softmax_cross_entropy, **metrics):
    """An objective that is not compared with itself on single examples, which would be compiled."""
    whole = fdl.supervised(net, loss, **metrics)
    return lambda *args: whole(*args)


def begun(net, data, optimizer):
    params, state = jax.jit(net.init)(jax.random.key(0), data[0][:1])
    return fdl.start(params, optimizer, state=state, seed=3)


def losses(result):
    return np.array([record["loss"] for record in result.history])


def apart(a, b):
    """The largest difference of two trees."""
    far = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
    return float(max(jax.tree.leaves(far)))


def compare(name, net, data, optimizer, *which, **options):
    """The largest difference of the losses from those on one device, for each layout."""
    objective, run = objective_of(net), begun(net, data, optimizer)
    how = {"batch_size": 16, "steps": 100, "record_every": 10, **options}
    alone = fdl.fit(objective, optimizer, run, data, **how)
    for each, layout in layouts(run, *which).items():
        found = fdl.fit(objective, optimizer, d.place(run, layout), data, **how)
        FOUND[f"{name} {each}"] = apart(losses(found), losses(alone))
    FOUND[f"{name} learned"] = float(np.ptp(losses(alone)))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def classes(seed, *shape):
    return np.random.default_rng(seed).integers(0, 8, shape)


def in_double():
    """A smooth network in float64."""
    net = fdl.mlp([16, 24], 8, activation=fdl.tanh)
    data = normal(0, 96, 6), classes(1, 96)
    compare("adamw", net, data, fdl.adamw(0.01), "data", "fsdp", "tensor", "both")
    compare("pieces", net, data, fdl.sgd(0.1, momentum=0.9), "fsdp", microbatch=8)
    compare("muon", net, data, fdl.muon(0.01), "both")


def in_single():
    text = classes(2, 64, 8), classes(5, 64, 8)
    gpt = fdl.gpt(8, 8, layers=1, heads=2, features=16)
    compare("gpt", gpt, text, fdl.sgd(0.1), "tensor", "both")
    images = normal(3, 64, 4, 4, 2).astype("float32"), classes(4, 64)
    block = fdl.residual(fdl.chain(fdl.conv(4, (3, 3)), fdl.batch_norm(), fdl.relu))
    net = fdl.chain(fdl.conv(4, (3, 3)), block, fdl.dropout(0.2), fdl.flatten(), fdl.dense(8))
    compare("resnet", net, images, fdl.sgd(0.02), "fsdp")


def in_one_program(run, objective, optimizer, data):
    """Compilations, donation, hooks, evaluation and sources of one layout."""
    rows = fdl.supervised(NET, fdl.squared_error, error=fdl.absolute_error)
    validated = {"batch_size": 8, "validation": data, "record_every": 3, "chunk": 2}
    placed = d.place(run, layouts(run, "fsdp")["fsdp"])
    best = fdl.keep_best()
    result = fdl.fit(rows, optimizer, placed, data, steps=9, watch=[best], **validated)
    alone = fdl.fit(rows, optimizer, run, data, steps=9, **validated)
    names = ("loss", "error", "val_loss", "val_error")
    FOUND["records"] = max(
        abs(a[name] - b[name])
        for a, b in zip(result.history, alone.history, strict=True)
        for name in names
    )
    FOUND["evaluated"] = abs(fdl.evaluate(rows, result, data)["loss"] - best.value)
    traced = jax.jit(lambda data: fdl.evaluate(rows, result, data)["loss"])(data)
    FOUND["evaluated in jit"] = abs(float(traced) - best.value)
    FOUND["predicted"] = apart(*(fdl.predict(NET, r, data[0]) for r in (result, alone)))
    with Compilations() as again:
        fdl.fit(rows, optimizer, placed, data, steps=9, watch=[fdl.keep_best()], **validated)
    FOUND["compiled again"] = again.names
    # The compiler would cut the bias too.
    columns = d.place(run, d.layout(GRID(), {"dense_0/w": P(None, "model")}))
    with Compilations() as once:
        after = fdl.fit(objective, optimizer, columns, data, steps=9, batch_size=8, chunk=2)
    FOUND["compiled"] = once.names.count("advance")
    pairs = [(result.run, placed), (after.run, columns)]
    kept = [jax.tree.map(lambda a, b: a.sharding == b.sharding, *pair) for pair in pairs]
    FOUND["layout kept"] = all(jax.tree.leaves(kept))
    means = {"loss": jax.tree.map(jnp.asarray, fdl.train.accumulators.Mean(0.0, 0.0))}
    given = jax.tree.map(jnp.copy, placed)
    args = given, placed.layout.put_everywhere(means), placed.layout.put_everywhere(data)
    advance(*args, np.int32(1), objective=objective, optimizer=optimizer, batch_size=8)
    FOUND["donated"] = all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    source = fdl.data.source(data)
    streamed = fdl.fit(rows, optimizer, placed, source, steps=9, batch_size=8, record_every=3)
    FOUND["streamed"] = apart(streamed.run.params, result.run.params)
    cut = jax.device_put(data, jax.sharding.NamedSharding(EIGHT(), P("data")))
    over_hosts = fdl.fit(objective, optimizer, placed, cut, steps=9, batch_size=8)
    FOUND["data cut"] = apart(over_hosts.run.params, result.run.params)


def elastic(run, objective, optimizer, data):
    """A run that was saved on eight devices goes on on others."""
    how = {"batch_size": 8, "record_every": 4}
    placed = d.place(run, layouts(run, "fsdp")["fsdp"])
    whole = fdl.fit(objective, optimizer, run, data, steps=16, **how)
    few = d.mesh(data=2, model=2)
    others = {
        "one": run,
        "four": d.place(run, d.data_parallel(d.mesh(data=4))),
        "two by two": d.place(run, d.fsdp(few, run, beside=d.tensor_parallel(few, run))),
    }
    with tempfile.TemporaryDirectory() as folder:
        saved = fdl.checkpoints(folder)
        half = fdl.fit(objective, optimizer, placed, data, steps=8, watch=[saved], **how)
        for name, other in others.items():
            found = saved.latest(other)
            same = jax.tree.map(lambda a, b: a.sharding == b.sharding, found.run, other)
            FOUND[f"laid out on {name}"] = all(jax.tree.leaves(same))
            found = fdl.fit(objective, optimizer, found, data, steps=16, **how)
            FOUND[f"elastic {name}"] = apart(losses(found), losses(whole))
        moved = d.place(half, d.data_parallel(EIGHT()))
        moved = fdl.fit(objective, optimizer, moved, data, steps=16, **how)
        FOUND["moved in memory"] = apart(losses(moved), losses(whole))


NET = fdl.mlp([16], 8, activation=fdl.tanh)


def a_sweep(run, objective, data):
    init = lambda seed: (d.place(run, layouts(run, "tensor")["tensor"]).params, {})  # noqa: E731
    how = {"seeds": [3], "batch_size": 8, "steps": 4}
    one, many = (
        fdl.sweep(objective, each, fdl.sgd, {"learning_rate": [0.1, 0.2]}, data, **how)
        for each in (lambda seed: (run.params, {}), init)
    )
    FOUND["sweep"] = apart(one.run.params, many.run.params)


def reports():
    """What the compiled steps send, beside the formulas."""
    data = normal(6, 64, 32).astype("float32"), classes(7, 64)
    net = fdl.chain(fdl.dense(64), fdl.tanh, fdl.dense(32), fdl.tanh, fdl.dense(8))
    optimizer = fdl.adamw(0.01)
    run = begun(net, data, optimizer)
    sizes = {path: leaf.nbytes for path, leaf in fdl.paths.leaves(run.params).items()}
    weights = sum(size for path, size in sizes.items() if path.endswith("/w"))
    found = {
        name: d.report(objective_of(net), optimizer, d.place(run, layout), data, batch_size=16)
        for name, layout in layouts(run, "data", "fsdp").items()
    }
    two = d.mesh(model=2)
    placed = d.place(run, d.tensor_parallel(two, run))
    found["tensor"] = d.report(objective_of(net), optimizer, placed, data, batch_size=16)
    FOUND["report"] = {
        name: [each.params, each.optimizer, each.activations, len(each.whole)]
        + [list(one) for one in each.collectives]
        for name, each in found.items()
    }
    FOUND["sizes"] = {"params": sum(sizes.values()), "weights": weights}
    FOUND["text"] = repr(found["data"])


def messages(run, objective, optimizer, data):
    """The errors."""
    rules = {
        "no match": {"**/q/w": P("data")},
        "not divided": {"dense_1/b": P(), "dense_0/w": P("data")},
        "too many": {"**/b": P(None, "data")},
    }
    wrong = {
        name: lambda r=each: d.place(run, d.layout(EIGHT(), r)) for name, each in rules.items()
    }
    placed = d.place(run, d.data_parallel(EIGHT()))
    wrong |= {
        "batch": lambda: fdl.fit(objective, optimizer, placed, data, batch_size=12, steps=1),
        "piece": lambda: fdl.fit(
            objective, optimizer, placed, data, batch_size=16, microbatch=4, steps=1
        ),
        "too large": lambda: d.mesh(data=16),
        "axis": lambda: d.layout(EIGHT(), {"**/w": P("model")}),
        "not a spec": lambda: d.layout(EIGHT(), {"**/w": "model"}),
        "no axis": lambda: d.tensor_parallel(EIGHT(), run),
        "no pair": lambda: d.tensor_parallel(GRID(), {"conv_0": {"w": np.ones((3, 3))}}),
    }
    FOUND["messages"] = {}
    for name, call in wrong.items():
        try:
            call()
        except ValueError as error:
            FOUND["messages"][name] = str(error)


if __name__ == "__main__":
    with jax.enable_x64(True):
        in_double()
    in_single()
    data = normal(0, 48, 6).astype("float32"), normal(1, 48, 8).astype("float32")
    optimizer, objective = fdl.adam(0.01), objective_of(NET, fdl.squared_error)
    run = begun(NET, data, optimizer)
    in_one_program(run, objective, optimizer, data)
    elastic(run, objective, optimizer, data)
    a_sweep(run, objective, data)
    reports()
    messages(run, objective, optimizer, data)
    print(json.dumps(FOUND))
