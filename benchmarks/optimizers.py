"""A step of each optimizer compared with optax: time, memory and compilation.

The tree has 200 leaves with 10 million parameters in all. Both programs are compiled by jit with
donated state and parameters, and run in turn in one process. fdl's program is also compared with a
copy of itself, which shows the noise of the machine.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import measure
import optax

import fdl

sys.path.append(str(Path(__file__).parents[1]))  # for the table of optimizers in tests

from tests.optim.optimizers.test_optimizers import OPTIMIZERS
from tests.oracles.cases import SHAPES

GROUPS = 50  # leaves of each kind; the masks of OPTIMIZERS select kinds by name


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--compilations", type=int, default=5, help="compilations of each program")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    known = {name: case for name, case in OPTIMIZERS.items() if case.theirs is not None}
    about = "cases of OPTIMIZERS that optax has too"
    parser.add_argument("--optimizers", nargs="+", metavar="CASE", choices=known, help=about)
    options = parser.parse_args()
    rows = []
    for name in options.optimizers or known:
        rows.append(row(name, known[name], options))
        print(rows[-1], flush=True)
    measure.report(
        "optimizers",
        rows,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(tree(options.parameters))),
        leaves=4 * GROUPS,
    )


def row(name, case, options):
    params = case.start(tree(options.parameters))
    ours, again, theirs = (program(make, params) for make in (case.ours, case.ours, case.theirs))
    timing = measure.paired(ours.run, theirs.run, options.pairs)
    noise = measure.paired(again.run, ours.run, options.pairs)
    compiling = compile_ratio(case, params, options.compilations)
    return {
        "optimizer": name,
        "time": timing["ratio"],
        "quartiles": f"{timing['ratio_low']:.3f} to {timing['ratio_high']:.3f}",
        "against_itself": noise["ratio"],
        "memory": ours.bytes / theirs.bytes,
        "compilation": compiling,
        "ms_per_step": timing["seconds"] * 1e3,
        "pairs": options.pairs,
    }


def tree(parameters):
    """200 leaves of four kinds; a matrix has about as many weights as a cube."""
    side = round((parameters / (2 * GROUPS)) ** 0.5)
    shapes = {
        "scalar": (),
        "vector": (4 * side,),
        "matrix": (side, side),
        "cube": (4, side, side // 4),
    }
    assert set(shapes) == set(SHAPES)
    key = jax.random.key(0)
    return {
        kind: {
            f"{number}": jax.random.normal(jax.random.fold_in(key, number), shape)
            for number in range(GROUPS)
        }
        for kind, shape in shapes.items()
    }


class Program:
    """A compiled step: its memory in bytes, and a call that continues from the last state."""

    def __init__(self, compiled, state, params):
        analysis = compiled.memory_analysis()
        self.bytes = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        self.compiled = compiled
        self.gradients = jax.tree.map(lambda w: 0.01 * w, read(params))
        self.carry = jax.tree.map(jnp.copy, (state, params))

    def run(self):
        self.carry = jax.block_until_ready(self.compiled(self.gradients, *self.carry))


def program(make, params):
    optimizer = make()
    state = jax.jit(optimizer.init)(params)
    return Program(compiled(optimizer, state, params), state, params)


def compiled(optimizer, state, params):
    optimizer = optax.with_extra_args_support(optimizer)

    def value_fn(params):
        return 0.005 * sum(jnp.vdot(w, w) for w in jax.tree.leaves(read(params)))

    def step(gradients, state, params):
        updates, state = optimizer.update(
            *(gradients, state, params),
            **{"value": value_fn(params), "grad": gradients, "value_fn": value_fn},
            grad_fn=lambda params, _: jax.grad(value_fn)(params),
        )
        return state, fdl.apply_updates(params, updates)

    jitted = jax.jit(step, donate_argnums=(1, 2))
    return jitted.lower(read(params), state, params).compile()


def compile_ratio(case, params, repetitions):
    """fdl's median time to compile, divided by optax's; with empty caches and a new optimizer."""
    seconds = {case.ours: [], case.theirs: []}
    for number in range(repetitions):
        for make in list(seconds)[:: -1 if number % 2 else 1]:
            optimizer = make()
            state = jax.jit(optimizer.init)(params)
            jax.clear_caches()
            begun = time.perf_counter()
            compiled(optimizer, state, params)
            seconds[make].append(time.perf_counter() - begun)
    ours, theirs = map(statistics.median, seconds.values())
    return ours / theirs


def read(params):
    """The parameters at which gradients are computed."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


if __name__ == "__main__":
    main()
