"""Moments: moving averages that begin at 0, and the correction of that bias.

m is a moment, g a gradient, t the step from 1.
"""

import functools
from collections.abc import Callable

import jax


def first_moment(b1: float, t: jax.Array, nesterov: bool = False) -> Callable[..., jax.Array]:
    """m^ as a function of (m, g): Kingma's m / (1 - b1^t), or Dozat's."""
    c1 = correction(b1, t)
    if not nesterov:
        return lambda m, g: corrected(m, c1)
    c1_next = correction(b1, t + 1)
    return lambda m, g: b1 * corrected(m, c1_next) + (1 - b1) * corrected(g, c1)


@functools.partial(jax.jit, inline=True)
def correction(decay: float, t: jax.Array) -> jax.Array:
    """1 - decay^t, what is missing from a moment that began at 0.

    Compiled by itself, so that its rounding is the same in and outside of a larger program: at
    decay = 0.999 and t = 1 nearly all digits of it are rounding.
    """
    return 1 - decay**t


def corrected(moment: jax.Array, missing: jax.Array) -> jax.Array:
    """A moment without its bias: moment / (1 - decay^t).

    The divisor is computed in float32 or better and only then narrowed: decay^t would round to 1 in
    bfloat16, and the quotient would not be finite.
    """
    return moment / missing.astype(moment.dtype)
