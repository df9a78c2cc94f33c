"""A tree of arrays taken as one long vector, and lengths whose squares neither overflow nor vanish.

A length is measured by plain squares, which cost nothing more than optax's; only where one of them
is out of range are all measured again, scaled by a power of two. The choice is one for a whole
tree, because a branch costs an accelerator a pause.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.numerics import largest, power_of_two, squared_size, widened


@dataclasses.dataclass(frozen=True)
class Size:
    """A length as sqrt(squares) * power, which may be too long for its dtype.

    Args:
      squares: a real scalar, float32 or wider.
      power: a power of two, usually 1.
    """

    squares: Any
    power: Any

    @property
    def part(self) -> jax.Array:
        """The length in units of power; its gradient is 0 at 0."""
        zero = self.squares == 0
        root = jnp.sqrt(jnp.where(zero, jnp.ones_like(self.squares), self.squares))
        return jnp.where(zero, self.squares, root)

    @property
    def value(self) -> jax.Array:
        """The length itself; infinite if it is too long."""
        return self.part * self.power

    def of(self, x: jax.Array) -> jax.Array:
        """x in units of power."""
        # No quotient, which XLA would join with a next one: x / (power * part) may be x / infinity.
        return x * (1 / self.power).astype(x.dtype)


def size(tree: Any) -> Size:
    """The length of a whole tree: sqrt(sum |x|^2)."""
    return _sizes([jax.tree.leaves(tree)])[0]


def sizes(*trees: Any, mean: bool = False) -> list[Any]:
    """Trees with the size of each leaf: its length, or its root mean square."""
    leaves, structure = jax.tree.flatten(list(trees))
    return jax.tree.unflatten(structure, _sizes([[leaf] for leaf in leaves], mean))


def dot(a: Any, b: Any) -> jax.Array:
    """Re <a, b>, the sum over all leaves of conj(a) b, in at least float32.

    Args:
      a: a tree of arrays.
      b: of the same structure and shapes.
    """

    def one(x: Any, y: Any) -> jax.Array:
        x, y = widened(x), widened(y)
        highest = jax.lax.Precision.HIGHEST
        return jnp.real(jnp.tensordot(x.conj(), y, x.ndim, precision=highest))

    products = jax.tree.leaves(jax.tree.map(one, a, b))
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(sum(products), jnp.result_type(jnp.float32, *products))


def add_scaled(a: Any, scale: Any, b: Any) -> Any:
    """a + scale * b, each leaf in the dtype of a's."""

    def one(x: Any, y: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(x + scale * y, jnp.result_type(x))

    return jax.tree.map(one, a, b)


def _sizes(groups: list[list[Any]], mean: bool = False) -> list[Size]:
    with jax.numpy_dtype_promotion("standard"):
        return [Size(*each) for each in _measured(groups, mean)]


@functools.partial(jax.jit, static_argnames="mean", inline=True)
def _measured(groups: list[list[Any]], mean: bool) -> list[tuple[jax.Array, jax.Array]]:
    """(squares, power) of each group of arrays."""
    groups = [[widened(x) for x in group if jnp.size(x)] for group in groups]

    def total(group: list[Any]) -> jax.Array:
        squares = sum(jnp.sum(squared_size(x)) for x in group)
        squares = jnp.asarray(squares, jnp.result_type(jnp.float32, squares))
        return squares / sum(x.size for x in group) if mean and group else squares

    def usable(squares: jax.Array) -> jax.Array:
        # Above the least by so much that what vanished of smaller elements is below rounding.
        limits = jnp.finfo(squares.dtype)
        return (squares > limits.tiny * 2.0**66) & (squares <= limits.max)

    def scaled(group: list[Any]) -> tuple[jax.Array, jax.Array]:
        power = power_of_two(functools.reduce(jnp.maximum, map(largest, group)))
        squares = total([x / power.astype(x.dtype) for x in group])
        return squares, power.astype(squares.dtype)

    plain = [(squares, jnp.ones_like(squares)) for squares in map(total, groups)]
    fits = [usable(squares) for (squares, _), group in zip(plain, groups, strict=True) if group]
    if not fits:
        return plain

    def again() -> list[tuple[jax.Array, jax.Array]]:
        return [scaled(group) if group else one for one, group in zip(plain, groups, strict=True)]

    return jax.lax.cond(functools.reduce(jnp.logical_and, fits), lambda: plain, again)
