"""Arrays of any shape seen as matrices: which axes a layer sums over, and which are its outputs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax.contrib import MuonDimensionNumbers

from fdl import paths
from fdl.optim.mask import is_function

# optax.contrib.MuonDimensionNumbers or None, a tree of them, or a function of params to one.
DimensionNumbers = Any


@dataclasses.dataclass(frozen=True)
class Fold:
    """How an array is seen as matrices [batch, fan_in, fan_out], and back.

    Args:
      shape: of the array.
      reduction: the axes that x W sums over, from 0.
      output: the axes that stay. Those in neither are the batch.

    Example:
      >>> fold = Fold((3, 3, 8, 16), reduction=(0, 1, 2), output=(3,))
      >>> fold(jnp.ones(fold.shape)).shape, fold.back(jnp.ones((1, 72, 16))).shape
      ((1, 72, 16), (3, 3, 8, 16))
    """

    shape: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The axes as batch, reduction, output."""
        named = (*self.reduction, *self.output)
        return (*(axis for axis in range(len(self.shape)) if axis not in named), *named)

    @property
    def fans(self) -> tuple[int, int]:
        """(fan_in, fan_out): the sizes of the matrices."""
        fan_in, fan_out = (
            math.prod(self.shape[axis] for axis in axes) for axes in (self.reduction, self.output)
        )
        return fan_in, fan_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """The array as matrices."""
        return x.transpose(self.order).reshape(-1, *self.fans)

    def back(self, x: jax.Array) -> jax.Array:
        """Matrices as the array."""
        place = [self.order.index(axis) for axis in range(len(self.shape))]
        return x.reshape([self.shape[axis] for axis in self.order]).transpose(place)


def folds_of(who: str, dimensions: DimensionNumbers, tree: Any) -> Any:
    """The tree with a Fold at each leaf.

    Args:
      who: in front of error messages.
      dimensions: `optax.contrib.MuonDimensionNumbers` for each leaf, or None where it is a matrix
        [in, out]; a tree, a prefix of it, or a function of the tree.
      tree: of arrays.

    Raises:
      ValueError: an array that is no matrix, without dimension numbers; axes that it has not.

    Example:
      >>> folds_of("muon", None, {"w": jnp.ones((2, 3))})
      {'w': Fold(shape=(2, 3), reduction=(0,), output=(1,))}
    """
    found = dimensions(tree) if is_function(dimensions) else dimensions
    numbers = spread(found, tree, lambda one, leaf: _Leaf(one))
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf, own: _fold(who, paths.path_of(keys), jnp.shape(leaf), own.numbers),
        tree,
        numbers,
    )


def spread(dimensions: Any, tree: Any, f: Callable[[Any, Any], Any]) -> Any:
    """f(dimension numbers or None, leaf) at each leaf; the numbers may be a prefix of the tree.

    Example:
      >>> spread({"w": MuonDimensionNumbers(), "b": None}, {"w": 0, "b": [1, 2]}, lambda d, x: x)
      {'b': [1, 2], 'w': 0}
    """
    return jax.tree.map(
        lambda one, part: jax.tree.map(lambda leaf: f(one, leaf), part),
        dimensions,
        tree,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Dimension numbers as one leaf of a tree."""

    numbers: Any


def _fold(who: str, path: str, shape: tuple[int, ...], numbers: Any) -> Fold:
    if numbers is None and len(shape) != 2:
        raise ValueError(
            f"{who}: expected a matrix at {path!r}, got shape {list(shape)}; name its axes with "
            "optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)"
        )
    numbers = MuonDimensionNumbers() if numbers is None else MuonDimensionNumbers(*numbers)
    reduction, output = ((axes,) if isinstance(axes, int) else tuple(axes) for axes in numbers)
    named = (*reduction, *output)
    inside = all(-len(shape) <= axis < len(shape) for axis in named)
    positive = [axis % len(shape) for axis in named] if inside else []
    if not (inside and reduction and output) or len(set(positive)) < len(positive):
        raise ValueError(
            f"{who}: expected reduction and output axes of shape {list(shape)} at {path!r}, each "
            f"once, got {tuple(numbers)}; give None to a leaf that is no matrix"
        )
    split = len(reduction)
    return Fold(shape, tuple(positive[:split]), tuple(positive[split:]))
