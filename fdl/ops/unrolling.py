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

    All functions are elementwise along all axes of the carry except the last. `slopes` is called
    once for all steps, outside the loop, so that the loop of the gradient only multiplies.

    Args:
      step: `(carry, driven, hidden) -> (carry, saved)`, where hidden is carry["h"] @ w + b. `saved`
        are arrays for `slopes`.
      slopes: `(before, after, saved) -> (by_driven, by_hidden, rest)`, from the carries before and
        after each step. The derivative of the step depends on ddriven and dhidden only through
        dsums = by_driven * ddriven + by_hidden * dhidden, [..., G * H].
      tangent: `(rest, dcarry, dsums) -> dcarry`, linear in dcarry and dsums.
    """

    step: Callable[[Carry, Any, jax.Array], tuple[Carry, Any]]
    slopes: Callable[[Carry, Carry, Any], tuple[jax.Array, jax.Array, Any]]
    tangent: Callable[[Any, Carry, jax.Array], Carry]


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
    before = {part: _before(carry[part], carries[part], reverse) for part in carry}
    by_driven, by_hidden, rest = recurrence.slopes(before, carries, saved)
    known = by_driven * ddriven + by_hidden * hidden(dw, db, before["h"])  # what needs no dh

    def step(dcarry: Carry, at_this_step: Any) -> tuple[Carry, Carry]:
        alive, by_hidden, rest, known = at_this_step
        dsums = known + by_hidden * hidden(w, None, dcarry["h"])
        new = recurrence.tangent(rest, dcarry, dsums)
        new = new if alive is None else _where(alive, new, dcarry)
        return new, new

    by_step = (alive, by_hidden, rest, known)
    dend, dcarries = jax.lax.scan(step, dcarry, by_step, reverse=reverse)
    return (carries, end), (dcarries, dend)


def _before(start: jax.Array, carries: jax.Array, reverse: bool) -> jax.Array:
    """The carry before each step, from the first one and those after each step."""
    parts = [carries[1:], start[None]] if reverse else [start[None], carries[:-1]]
    return jnp.concatenate(parts)[: len(carries)]


def hidden(w: jax.Array, b: jax.Array | None, h: jax.Array) -> jax.Array:
    """h @ w + b, where the product is computed in the dtype of w and returned in that of h."""
    y = product(h.astype(w.dtype), w).astype(h.dtype)
    return y if b is None else y + b.astype(h.dtype)


def _where(alive: Any, new: Carry, old: Carry) -> Carry:
    return {part: jnp.where(alive, new[part], old[part]) for part in new}
