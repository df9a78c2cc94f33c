"""Sequences and experts that are cut over eight devices of one CPU; prints JSON."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d
from fdl.distributed.collectives import collectives
from fdl.train.program import one_step
from tests.distributed.eight import apart, begun, classes, losses, normal, objective_of

FOUND = {}


def compare(name, arrays, numbers, rest, ring, whole=fdl.dot_product_attention, vmap=False):
    """The largest difference of value and gradients from those of the whole form."""

    def of(attend):
        def f(q, k, v, weights, numbers):
            return (attend(q, k, v, **numbers, **rest) * weights).sum()

        f = jax.value_and_grad(f, (0, 1, 2, 4))
        return jax.jit(jax.vmap(f, (0, 0, 0, 0, None)) if vmap else f)(*arrays, numbers)

    FOUND[name] = apart(of(ring), of(whole))
    FOUND[f"{name} gradients"] = [float(np.abs(x).max()) for x in jax.tree.leaves(of(whole)[1])]


def in_double():
    """Attention in a ring of four, with all rules, and with more devices than keys and queries."""
    grid, rng = d.mesh(data=2, sequence=4), np.random.default_rng(1)
    numbers = {"scale": 0.7, "soft_cap": 3.0, "slopes": np.array([0.1, 0.2, 0.3, 0.4])}
    numbers = jax.tree.map(jnp.asarray, numbers | {"bias": normal(2, 4, 9, 9)[None]})
    rest = {"segments": rng.integers(0, 2, (2, 9)), "mask": rng.random((1, 1, 9, 1)) > 0.2}
    rules = {"causal": True, "window": 6}
    arrays = [normal(3, 2, 9, 4, 8), normal(4, 2, 9, 2, 8), normal(5, 2, 9, 2, 6)]
    both = d.ring_attention(grid, chunk=2), fdl.dot_product_attention
    both = [functools.partial(each, **rules) for each in both]
    compare("causal", [*arrays, normal(6, 2, 9, 4, 6)], numbers, rest, *both)
    k, v = normal(7, 3, 2, 9, 2, 8), normal(8, 3, 2, 9, 2, 6)
    k[:, 0, 7], v[:, 1, 7] = np.nan, np.inf
    arrays = [normal(9, 3, 2, 3, 2, 8), k, v, normal(10, 3, 2, 3, 2, 6)]
    hidden = {"mask": (np.arange(9) != 7)[None, None, None]}
    compare("hidden", arrays, {}, hidden, d.ring_attention(grid), vmap=True)


def bytes_of_ring():
    """Bytes per device of value and gradients, and what the devices send."""
    for n in (1, 2, 8):
        ring = d.ring_attention(d.mesh(sequence=n))
        rows = jax.sharding.NamedSharding(d.mesh(sequence=n), P(None, "sequence"))
        x = jax.ShapeDtypeStruct((2, 1024, 2, 16), jnp.float32, sharding=rows)
        f = jax.jit(jax.grad(lambda q, k, v: ring(q, k, v).sum(), (0, 1, 2)))
        program = f.lower(x, x, x).compile()
        FOUND[f"ring of {n}"] = program.memory_analysis().temp_size_in_bytes
        FOUND[f"sent in {n}"] = [list(each) for each in collectives(program.as_text())]


def a_language_model():
    """Training steps of which each device has a part of the sequence."""
    text = classes(2, 16, 64), classes(5, 16, 64)
    mesh = d.mesh(data=2, sequence=4)
    net = functools.partial(fdl.gpt, 8, None, layers=1, heads=2, features=16, rotary=True)
    ring, optimizer = net(kernel=d.ring_attention(mesh)), fdl.sgd(0.1)
    run, how = begun(net(), text, optimizer), {"batch_size": 4, "steps": 20, "record_every": 5}
    placed = d.place(run, d.fsdp(mesh, run))
    found = [
        fdl.fit(objective_of(each), optimizer, at, text, **how)
        for each, at in ((net(), run), (ring, placed))
    ]
    FOUND["model"] = apart(*((losses(each), each.run.params) for each in found))
    FOUND["model learned"] = float(np.ptp(losses(found[0])))
    report = d.report(objective_of(ring), optimizer, placed, text, batch_size=4)
    FOUND["model gathers"] = [each.bytes for each in report.collectives if "gather" in each.kind]


def experts():
    """Training steps of which each device has some experts, with experts that are full."""
    x = normal(11, 32, 12, 16).astype("float32"), classes(12, 32, 12)
    moe = fdl.mixture_of_experts(fdl.feed_forward(16, hidden=256), 8)
    net = fdl.chain(fdl.dense(16), fdl.residual(moe), fdl.dense(8))
    optimizer, how = fdl.adam(0.01), {"batch_size": 16, "steps": 20, "record_every": 5}
    run, mesh = begun(net, x, optimizer), d.mesh(data=2, expert=4)
    placed = d.place(run, d.fsdp(mesh, run, beside=d.expert_parallel(mesh, run)))
    found = [fdl.fit(objective_of(net), optimizer, each, x, **how) for each in (run, placed)]
    FOUND["experts learned"] = float(np.ptp(losses(found[0])))
    FOUND["experts"] = apart(*((losses(each), each.run.params) for each in found))
    for n in (1, 8):
        mesh = d.mesh(data=8 // n, expert=n)
        placed = d.place(run, d.expert_parallel(mesh, run))
        report = d.report(objective_of(net), optimizer, placed, x, batch_size=16)
        FOUND[f"experts on {n}"] = report.params, report.optimizer, report.activations
        FOUND[f"experts on {n} send"] = [list(each) for each in report.collectives]
    FOUND["experts of"] = {p: v.nbytes for p, v in fdl.paths.leaves(run.params).items()}


def blocks():
    """A scan over twenty blocks, whose parameters are cut by fsdp."""
    x = normal(13, 64, 8, 32).astype("float32"), classes(14, 64, 8)
    block = fdl.residual(fdl.layer_norm(), fdl.feed_forward(32, hidden=128))
    net = fdl.chain(fdl.repeat(block, 20), fdl.dense(8))
    optimizer, how = fdl.sgd(0.1), {"objective": objective_of(net), "batch_size": 64}
    run, mesh = begun(net, x, optimizer), d.mesh(data=8)
    whole = fdl.fit(optimizer=optimizer, run=run, data=x, steps=4, record_every=1, **how)
    placed = d.place(run, d.fsdp(mesh, run))
    data = placed.layout.put_everywhere(x)
    program = one_step.lower(placed, data, optimizer=optimizer, **how).compile()
    for _ in range(4):
        placed, means = program(placed, data)
    last = whole.history[-1]["loss"] - float(means["loss"].value())
    FOUND["blocks"] = max(apart(placed.params, whole.run.params), abs(last))
    FOUND["blocks learned"] = float(np.ptp(losses(whole)))
    before, entry = program.as_text().split("ENTRY ")
    for name, text in {"in loops": before, "outside": entry}.items():
        FOUND[f"gathered {name}"] = [
            math.prod(map(int, shape.split(",")))
            for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
        ]


if __name__ == "__main__":
    with jax.enable_x64(True):
        in_double()
    bytes_of_ring()
    a_language_model()
    experts()
    blocks()
    print(json.dumps(FOUND))
