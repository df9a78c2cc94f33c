"""Compiling less: what tests compile takes most of their time."""

import jax
import numpy as np

from fdl.debug.layer_laws import waves as waves


def array(values, dtype=np.float32):
    """Like `jnp.asarray(values, dtype)`, which compiles a conversion for each shape."""
    return jax.device_put(np.asarray(values).astype(dtype))


def in_one_program(f):
    """f, a function from a pytree to a scalar, whose value and gradient come from one program.

    `jax.grad(jax.jit(f))` compiles two, and f itself is a third.
    """
    return all_in_one_program(f)[0]


def all_in_one_program(*functions):
    """The same for several functions of one pytree, in one program for all of them."""
    program = jax.jit(lambda tree: [jax.value_and_grad(f)(tree) for f in functions])

    def one(place):
        @jax.custom_vjp
        def value(tree):
            return program(tree)[place][0]

        def backward(gradient, slope):
            return (jax.tree.map(lambda leaf: np.asarray(slope) * np.asarray(leaf), gradient),)

        value.defvjp(lambda tree: program(tree)[place], backward)
        return value

    return [one(place) for place in range(len(functions))]


def compiled(f):
    """f as one program whose results are NumPy arrays, since each look at JAX's compiles more."""
    run = jax.jit(f)
    return lambda *args, **named: jax.tree.map(np.asarray, run(*args, **named))
