"""The product x @ w: its value, and its gradients, by fdl and by `jnp.matmul`.

The time is the processor time of all cores. XLA_FLAGS=--xla_cpu_multi_thread_eigen=false makes XLA
use one core.
"""

import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

from fdl.ops.products import product

# (the shape of x, columns of w, dtype)
CASES = [
    ((16, 128, 128), 512, "float32"),
    ((16, 128, 512), 128, "float32"),
    ((64, 32, 128), 512, "float32"),
    ((32, 64, 64), 512, "float32"),
    ((4096, 512), 10, "float32"),
    ((4096, 512), 128, "float32"),
    ((128, 512), 10, "float32"),
    ((2048, 128), 512, "bfloat16"),
    ((2048, 512), 128, "bfloat16"),
    ((128, 512), 512, "bfloat16"),
]
REPEATS = 10
# What is computed from x, w and the gradient with respect to the product, dy.
PARTS = {
    "value": lambda form, x, w, dy: form(x, w),
    "gradient by x": lambda form, x, w, dy: jax.vjp(lambda x: form(x, w), x)[1](dy)[0],
    "gradient by w": lambda form, x, w, dy: jax.vjp(lambda w: form(x, w), w)[1](dy)[0],
}


def main() -> None:
    measure.arguments(__doc__).parse_args()
    rows = []
    for shape, columns, dtype in CASES:
        rng = np.random.default_rng(0)
        shapes = shape, (shape[-1], columns), (*shape[:-1], columns)
        x, w, dy = (jnp.asarray(rng.standard_normal(each), dtype) for each in shapes)
        operations = 2 * x.size * columns * REPEATS / 1e9
        row = {"x": str(list(x.shape)), "w": str(list(w.shape)), "dtype": dtype}
        for name, part in PARTS.items():
            of_fdl, of_jax = (repeated(part, form, x, w, dy) for form in (product, jnp.matmul))
            timing = measure.paired(of_fdl, of_jax, 7, time.process_time)
            row[name] = timing["ratio"]
            row[f"{name}, GFLOP/s"] = operations / timing["seconds"]
        rows.append(row)
    measure.report("products", rows)


def repeated(part, form, x, w, dy):
    """A function that computes one of PARTS REPEATS times."""

    @jax.jit
    def run(x, w, dy):
        def body(_, carry):
            result = jax.lax.optimization_barrier(part(form, x + carry, w, dy + carry))
            return carry + 1e-20 * result.ravel()[0]

        return jax.lax.fori_loop(0, REPEATS, body, jnp.zeros((), x.dtype))

    return lambda: run(x, w, dy).block_until_ready()


if __name__ == "__main__":
    main()
