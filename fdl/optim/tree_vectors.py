"""Norms and scalar products of a tree of arrays, which is treated as one vector.

A norm is correct even if squares of elements overflow or underflow. It is infinite only if the norm
itself is too large for the dtype. A norm is first computed from a plain sum of squares, which costs
the same as the norm in optax. If one of the sums is out of range, all sums are computed again from
elements that are divided by a power of two. All sums share one branch (`jax.lax.cond`), because an
accelerator has to wait at every branch.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.numerics import largest, power_of_two, squared_size, widened


@dataclasses.dataclass(frozen=True)
class Size:
    """The norm sqrt(squares) * power, stored in two parts because the product can overflow.

    Args:
      squares: the sum of the squares of all elements, divided by power^2; a real scalar, float32 or
        wider. For a root mean square, it is the mean of the squares instead of their sum.
      power: a power of two, usually 1; a scalar of the same dtype as squares.
    """

    squares: Any
    power: Any

    @property
    def part(self) -> jax.Array:
        """The norm divided by `power`; its gradient at 0 is 0."""
        zero = self.squares == 0
        root = jnp.sqrt(jnp.where(zero, jnp.ones_like(self.squares), self.squares))
        return jnp.where(zero, self.squares, root)

    @property
    def value(self) -> jax.Array:
        """The norm; infinite if it is too large for the dtype."""
        return self.part * self.power

    def of(self, x: jax.Array) -> jax.Array:
        """x divided by `power`."""
        # This multiplies by 1 / power. If it divided by `power`, XLA would merge this division and
        # a later division by `part` into one division by power * part, which can be infinite.
        return x * (1 / self.power).astype(x.dtype)


def size(tree: Any) -> Size:
    """The norm of a whole tree: sqrt(sum |x|^2)."""
    return _sizes([jax.tree.leaves(tree)])[0]


def sizes(*trees: Any, mean: bool = False) -> list[Any]:
    """A list with one entry for each tree: a tree of the same structure, with a `Size` per leaf.

    Args:
      trees: pytrees of arrays.
      mean: False measures the norm of each leaf, True its root mean square.
    """
    leaves, structure = jax.tree.flatten(list(trees))
    return jax.tree.unflatten(structure, _sizes([[leaf] for leaf in leaves], mean))


def dot(a: Any, b: Any) -> jax.Array:
    """Re <a, b>, the sum over all leaves of conj(a) b, in float32 or wider.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.
    """

    def one(x: Any, y: Any) -> jax.Array:
        x, y = widened(x), widened(y)
        highest = jax.lax.Precision.HIGHEST
        return jnp.real(jnp.tensordot(x.conj(), y, x.ndim, precision=highest))

    products = jax.tree.leaves(jax.tree.map(one, a, b))
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(sum(products), jnp.result_type(jnp.float32, *products))


def add_scaled(a: Any, scale: Any, b: Any) -> Any:
    """a + scale * b, leaf by leaf, in the dtypes of a."""

    def one(x: Any, y: Any) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(x + scale * y, jnp.result_type(x))

    return jax.tree.map(one, a, b)


def _sizes(groups: list[list[Any]], mean: bool = False) -> list[Size]:
    with jax.numpy_dtype_promotion("standard"):
        return [Size(squares, power) for squares, power in _measured(groups, mean)]


@functools.partial(jax.jit, static_argnames="mean", inline=True)
def _measured(groups: list[list[Any]], mean: bool) -> list[tuple[jax.Array, jax.Array]]:
    """The `squares` and `power` of a `Size`, for each group of arrays."""
    groups = [[widened(x) for x in group if jnp.size(x)] for group in groups]

    def total(group: list[Any]) -> jax.Array:
        squares = sum(jnp.sum(squared_size(x)) for x in group)
        squares = jnp.asarray(squares, jnp.result_type(jnp.float32, squares))
        return squares / sum(x.size for x in group) if mean and group else squares

    def usable(squares: jax.Array) -> jax.Array:
        # A square below `tiny` can underflow to 0, so a sum of n squares can be up to n * tiny too
        # small. A usable sum is above tiny * 2^66, so this error is less than n / 2^66 of the sum,
        # and does not matter.
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

    def rescaled() -> list[tuple[jax.Array, jax.Array]]:
        return [scaled(group) if group else one for one, group in zip(plain, groups, strict=True)]

    return jax.lax.cond(functools.reduce(jnp.logical_and, fits), lambda: plain, rescaled)
