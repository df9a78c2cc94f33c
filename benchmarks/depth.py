"""The cost of depth: fences in the gradient of a residual network, and the two forms of `repeat`.

    python benchmarks/depth.py fences     fdl's fence, other fences, and no fence; without a fence,
                                          the compilation at depth 16 takes 8 s and 1 GB, and much
                                          more at larger depths
    python benchmarks/depth.py repeat     unrolled and scanned, for some depths and sizes

A fence is an identity function that keeps XLA from computing a part of the gradient many times; see
`fdl/ops/fence.py`. Each block has two. The blocks are transformer blocks of width 128. A training
step runs inside `lax.scan`, as in `fit`. Every row is compared with the first row of the same depth
and size, in time and in the processor time of all cores. So the first row is compared with itself.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure

import fdl
from fdl.ops.fence import fence

WIDTH, HEADS, STEPS = 128, 4, 4
SIZES = {"256 tokens": (4, 64), "2048 tokens": (16, 128)}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("what", choices=["fences", "repeat"])
    parser.add_argument("--depths", type=int, nargs="+", default=None)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["256 tokens"])
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    depths = options.depths or {"fences": [4, 8, 16], "repeat": [4, 16, 64]}[options.what]
    rows = []
    for size in options.sizes:
        for depth in depths:
            make = fences if options.what == "fences" else forms
            rows += compared(make(depth), depth, size, options.pairs)
    measure.report(f"depth_{options.what}", rows, width=WIDTH, steps_in_scan=STEPS)


def fences(depth: int) -> dict[str, fdl.Layer]:
    """An unrolled network with each kind of fence. fdl's is first, so all are compared with it."""
    fine = {"call, never inlined (fdl)": fence}
    fine |= {name: backward(f) for name, f in OTHERS.items()}
    return {name: fdl.chain(*[block(f)] * depth) for name, f in fine.items()}


def forms(depth: int) -> dict[str, fdl.Layer]:
    """Both forms of `repeat`; the scanned form with three checkpoint policies."""
    keep = jax.checkpoint_policies
    return {
        "unrolled": fdl.repeat(block(fence), depth, scan=False),
        "scanned": fdl.repeat(block(fence), depth, scan=True),
        "scanned, all saved": fdl.repeat(
            block(fence), depth, scan=True, policy=keep.everything_saveable
        ),
        "scanned, nothing saved": fdl.repeat(
            block(fence), depth, scan=True, policy=keep.nothing_saveable
        ),
    }


def attention() -> fdl.Layer:
    """Causal self-attention, written by hand."""

    def forward(f: Any, x: jax.Array) -> jax.Array:
        heads = (*x.shape[:-1], HEADS, WIDTH // HEADS)
        q, k, v = (f[name](x).reshape(heads) for name in "qkv")
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * (WIDTH // HEADS) ** -0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        return f.o(jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape))

    return fdl.network(forward, **{name: fdl.dense(WIDTH, bias=False) for name in "qkvo"})


def block(fenced: Callable[[Any], Any]) -> fdl.Layer:
    """A transformer block, with a fence on x before each of its two skip connections."""

    def forward(f: Any, x: jax.Array) -> jax.Array:
        x = fenced(x)
        x = x + f.attend(x)
        x = fenced(x)
        return x + f.mix(x)

    mix = fdl.chain(fdl.layer_norm(), fdl.dense(4 * WIDTH), fdl.gelu, fdl.dense(WIDTH))
    return fdl.network(forward, attend=fdl.chain(fdl.layer_norm(), attention()), mix=mix)


def backward(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """An identity function whose backward pass applies `f`."""

    @jax.custom_vjp
    def identity(x: jax.Array) -> jax.Array:
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: (f(gradient),))
    return identity


def same(x: jax.Array) -> jax.Array:
    """Returns x, but with one more instruction."""
    return jax.lax.reduce_precision(x, 8, 23)


def one_trip(x: jax.Array) -> jax.Array:
    """A loop that runs once, which the compiler cannot know."""
    return jax.lax.fori_loop(0, jax.lax.optimization_barrier(1), lambda _, x: same(x), x)


OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cond on the gradient": lambda g: jax.lax.cond(g.ravel()[0] == 0, lambda g: g, same, g),
    "loop of one trip": one_trip,
    "reduce_precision": same,
    "optimization_barrier": jax.lax.optimization_barrier,
    "none": lambda gradient: gradient,
}


def compared(
    models: dict[str, fdl.Layer], depth: int, size: str, pairs: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: Callable[[], Any] | None = None
    for name, model in models.items():
        program, compile_cpu_seconds = compiled(model, SIZES[size])
        first = first or program
        timing = measure.paired(program, first, pairs)
        work = measure.paired(program, first, pairs, time.process_time)
        rows.append(
            {
                "program": name,
                "depth": depth,
                "size": size,
                "compile_cpu_s": compile_cpu_seconds,
                "step_ms": timing["seconds"] / STEPS * 1e3,
                "ratio": timing["ratio"],
                "work_ratio": work["ratio"],
                "quartiles": f"{timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def compiled(model: fdl.Layer, size: tuple[int, int]) -> tuple[Callable[[], Any], float]:
    """Training steps as one program, and the processor time that tracing and compiling took."""
    xs = jax.random.normal(jax.random.key(1), (STEPS, *size, WIDTH))
    params, _ = model.init(jax.random.key(0), xs[0])

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return (jnp.tanh(fdl.stateless(model)(params, x)) ** 2).mean()

    def step(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient), value

    begun = time.process_time()
    program = jax.jit(lambda params, xs: jax.lax.scan(step, params, xs)).lower(params, xs)
    run = program.compile()
    return lambda: jax.block_until_ready(run(params, xs)), time.process_time() - begun


if __name__ == "__main__":
    main()
