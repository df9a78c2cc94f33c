"""Bias correction of moments, which are moving averages that start at 0.

m is a moment, g is a gradient, and t is the step, which starts at 1.
"""

import functools
from collections.abc import Callable

import jax


def first_moment(b1: float, t: jax.Array, nesterov: bool = False) -> Callable[..., jax.Array]:
    """Returns `(m, g) -> m^`, the corrected first moment of `adam` (of `nadam` if nesterov)."""
    c1 = correction(b1, t)
    if not nesterov:
        return lambda m, g: corrected(m, c1)
    c1_next = correction(b1, t + 1)
    return lambda m, g: b1 * corrected(m, c1_next) + (1 - b1) * corrected(g, c1)


@functools.partial(jax.jit, inline=True)
def correction(decay: float, t: jax.Array) -> jax.Array:
    """1 - decay^t, the sum of the weights in a moment that started at 0.

    With `jax.jit`, the result is rounded in the same way inside and outside of a larger compiled
    function. This matters: at decay = 0.999 and t = 1, one rounding error in decay^t gives a
    relative error of 6e-5 in the result.
    """
    return 1 - decay**t


def corrected(moment: jax.Array, total_weight: jax.Array) -> jax.Array:
    """A moment without its bias: moment / (1 - decay^t).

    The divisor is computed in float32 or wider and then cast to the moment's dtype. If it were
    computed in bfloat16, decay^t could round to 1, and the result of the division by 0 would not be
    finite.
    """
    return moment / total_weight.astype(moment.dtype)
