"""The gradient of x @ w with respect to w, for x with three axes and with two of them merged.

The time is the processor time of all cores. XLA_FLAGS=--xla_cpu_multi_thread_eigen=false makes XLA
use one core.
"""

import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

from fdl.ops.products import product

SHAPES = [(16, 128, 128, 512), (16, 128, 512, 128), (64, 32, 128, 512), (32, 64, 64, 512)]
REPEATS = 10


def main() -> None:
    measure.arguments(__doc__).parse_args()
    rows = []
    for batch, length, features, outputs in SHAPES:
        rng = np.random.default_rng(0)
        x, w, dy = (
            jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for shape in (
                (batch, length, features),
                (features, outputs),
                (batch, length, outputs),
            )
        )
        merged, three = (repeated(form, x, w, dy) for form in (product, jnp.matmul))
        timing = measure.paired(merged, three, 7, time.process_time)
        operations = 2 * batch * length * features * outputs * REPEATS / 1e9
        rows.append(
            {
                "x": f"[{batch}, {length}, {features}]",
                "w": f"[{features}, {outputs}]",
                "ratio": timing["ratio"],
                "merged_gflops": operations / timing["seconds"],
                "three_axes_gflops": operations / timing["seconds_other"],
            }
        )
    measure.report("products", rows)


def repeated(form, x, w, dy):
    """A function that computes the gradient REPEATS times."""

    @jax.jit
    def run(x, w, dy):
        def body(_, carry):
            gradient = jax.vjp(lambda w: form(x, w), w)[1](dy + carry)[0]
            return carry + 1e-20 * gradient[0, 0]

        return jax.lax.fori_loop(0, REPEATS, body, jnp.float32(0))

    return lambda: run(x, w, dy).block_until_ready()


if __name__ == "__main__":
    main()
