"""A recurrence h[t] = step(h[t - 1] @ w, ...) over time, with a fast gradient.

T is the length of a sequence, H the number of features of the carry. G * H is the number of columns
of w, for a cell with G gates.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.ops.products import product

Carry = dict[str, jax.Array]


class Recurrence(NamedTuple):
    """The part of a recurrence's step that follows the matrix product, and its derivative.

    Both functions are elementwise along all axes of the carry except the last.

    Args:
      step: `(carry, driven, hidden) -> (carry, saved)`, where hidden is carry["h"] @ w + b. `saved`
        are the arrays from which `tangent` computes the derivative.
      tangent: `(saved, dcarry, ddriven, dhidden) -> dcarry`, linear in all arguments except
        `saved`.
    """

    step: Callable[[Carry, Any, jax.Array], tuple[Carry, Any]]
    tangent: Callable[[Any, Carry, Any, jax.Array], Carry]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def unrolled(
    recurrence: Recurrence,
    reverse: bool,
    w: jax.Array,
    b: jax.Array | None,
    driven: jax.Array,
    carry: Carry,
    alive: jax.Array | None,
) -> tuple[Carry, Carry]:
    """Applies a recurrence at every step of a sequence.

    The gradient with respect to w and b is computed for all steps at once, after the loop. If JAX
    differentiated the loop, it would add up this gradient step by step, and would need one more
    loop for the derivatives of the gates.

    Args:
      recurrence: the step and its derivative.
      reverse: whether to begin at the last step.
      w: [H, G * H].
      b: [G * H], which is added to carry["h"] @ w; or None.
      driven: [T, ..., G * H], the part of the step that does not depend on the carry.
      carry: the initial carry, arrays [..., H]; one is called "h".
      alive: bool [T, ..., 1]; where it is False, the carry does not change. None means True
        everywhere.

    Returns:
      (carries, end): the carries after each step, arrays [T, ..., H], and after the last one.
    """
    return _forward(recurrence, reverse, w, b, driven, carry, alive)[:2]


def _forward(
    recurrence: Recurrence, reverse: bool, w: Any, b: Any, driven: Any, carry: Carry, alive: Any
) -> tuple[Carry, Carry, Any]:
    """The carries, the last of them, and what each step saved."""

    def step(carry: Carry, at_this_step: Any) -> tuple[Carry, Any]:
        driven, alive = at_this_step
        new, saved = recurrence.step(carry, driven, hidden(w, b, carry["h"]))
        new = new if alive is None else _where(alive, new, carry)
        return new, (new, saved)

    end, (carries, saved) = jax.lax.scan(step, carry, (driven, alive), reverse=reverse)
    return carries, end, saved


@unrolled.defjvp
def _derivative(recurrence: Recurrence, reverse: bool, primals: Any, tangents: Any) -> Any:
    w, b, driven, carry, alive = primals
    dw, db, ddriven, dcarry, _ = tangents
    carries, end, saved = _forward(recurrence, reverse, w, b, driven, carry, alive)
    parts = (
        [carries["h"][1:], carry["h"][None]] if reverse else [carry["h"][None], carries["h"][:-1]]
    )
    before = jnp.concatenate(parts)[: len(driven)]
    dhidden = hidden(dw, db, before)  # the part that does not depend on dh

    def step(dcarry: Carry, at_this_step: Any) -> tuple[Carry, Carry]:
        alive, saved, ddriven, dhidden = at_this_step
        dhidden = dhidden + hidden(w, None, dcarry["h"])
        new = recurrence.tangent(saved, dcarry, ddriven, dhidden)
        new = new if alive is None else _where(alive, new, dcarry)
        return new, new

    # Without the checkpoint, JAX would first compute the numbers by which `tangent` multiplies, for
    # all steps, in a separate loop, and would store them.
    again = jax.checkpoint(step, prevent_cse=False)
    dend, dcarries = jax.lax.scan(again, dcarry, (alive, saved, ddriven, dhidden), reverse=reverse)
    return (carries, end), (dcarries, dend)


def hidden(w: jax.Array, b: jax.Array | None, h: jax.Array) -> jax.Array:
    """h @ w + b, where the product is computed in the dtype of w and returned in that of h."""
    y = product(h.astype(w.dtype), w).astype(h.dtype)
    return y if b is None else y + b.astype(h.dtype)


def _where(alive: Any, new: Carry, old: Carry) -> Carry:
    return {part: jnp.where(alive, new[part], old[part]) for part in new}
