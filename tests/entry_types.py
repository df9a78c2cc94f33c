"""What each registry says of an entry."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fdl
from tests.oracles.cases import SHAPES
from tests.programs import array


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """How to build a layer, and what to feed it.

    Args:
      make: builds the layer.
      x: its input's shape.
      dtype: its input's dtype; for float32 every law also runs in the other float types.
      inputs: shapes of its extra inputs.
      random: whether a training pass draws random numbers.
      slow: whether its programs take long to compile, so that its laws are marked `slow`.
    """

    make: Callable[[], fdl.Layer]
    x: tuple[int, ...]
    dtype: Any = np.float32
    inputs: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    random: bool = False
    slow: bool = False

    @property
    def floating(self):
        return np.issubdtype(self.dtype, np.floating)

    def data(self, seed=0, dtype=None, lead=()):
        """(x, inputs): values away from kinks, without symmetry."""
        rng = np.random.default_rng(seed)
        draw = functools.partial(_draw, rng, dtype=dtype or self.dtype)
        return draw(lead + self.x), {name: draw(lead + s) for name, s in self.inputs.items()}


@dataclasses.dataclass(frozen=True)
class LossCase:
    """A loss, its data, and the same in float64 NumPy.

    Args:
      loss: `(predictions, ...) -> [...]`.
      targets: "labels", "chances", "numbers" and so on, a key of `TARGETS`; or, where the loss
        takes no (predictions, targets) of these, `(rng, rows, classes, size) -> arguments`.
      oracle: the float64 formula.
      optax: optax's, if it has one.
      moved: the places of the arguments that gradients are taken by.
      shared: the places of those that have no axis of the batch.
      alone: whether an example's loss depends on no other example.
      lowest: the smallest value it may have.
      told: the message, as a pattern, when the last argument lacks its last row; "" for none.
      near: the relative error allowed in float32 at the largest inputs.
    """

    loss: Callable[..., jax.Array]
    targets: str | Callable[..., tuple[np.ndarray, ...]]
    oracle: Callable[..., np.ndarray]
    optax: Callable[..., jax.Array] | None = None
    moved: tuple[int, ...] = (0,)
    shared: tuple[int, ...] = ()
    alone: bool = True
    lowest: float = 0.0
    told: str | None = None
    near: float = 1e-6

    def data(self, seed=0, dtype=np.float32, rows=6, classes=5, size=3.0):
        """The arguments: floating ones in the dtype, whole numbers in int32."""
        rng = np.random.default_rng(seed)
        if isinstance(self.targets, str):
            predictions = size * rng.standard_normal((rows, classes))
            args = (predictions, TARGETS[self.targets](rng, rows, classes, size))
        else:
            args = self.targets(rng, rows, classes, size)
        return tuple(array(x, np.int32 if x.dtype.kind == "i" else dtype) for x in args)

    def exact(self, args):
        """The oracle of the very numbers that the loss was given."""
        return self.oracle(*(wide64(x) for x in args))

    def axes(self, args):
        return tuple(None if place in self.shared else 0 for place in range(len(args)))

    def refusal(self):
        """The pattern of what is said when the last row of the last argument is missing."""
        if self.told is not None:
            return self.told
        if self.targets == "labels":
            return r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; pass one "
        return (
            r"expected targets with the shape of the predictions, \[6, 5\], got \[5, 5\]; reshape "
            r"one of them"
        )


def wide64(x):
    return np.asarray(x, np.int64 if jnp.issubdtype(x.dtype, jnp.integer) else np.float64)


def _chances(rng, rows, classes, size):
    return np.clip(1.2 * rng.random((rows, classes)) - 0.1, 0.001, 0.999)


def _distributions(rng, rows, classes, size):
    """With a class of no chance at all in each row; multiples of 1/32, exact in any dtype."""
    counts = rng.multinomial(31, [1 / (classes - 1)] * (classes - 1), size=rows)
    counts[:, 0] += 1
    return np.insert(counts, classes // 2, 0, axis=1) / 32


TARGETS = {
    "labels": lambda rng, rows, classes, size: rng.integers(0, classes, rows),
    "chances": _chances,
    "distributions": _distributions,
    "zero or one": lambda rng, rows, classes, size: 1.0 * (rng.random((rows, classes)) < 0.4),
    "signs": lambda rng, rows, classes, size: np.where(rng.random((rows, classes)) < 0.4, -1.0, 1),
    "counts": lambda rng, rows, classes, size: 1.0 * rng.poisson(3.0, (rows, classes)),
    "numbers": lambda rng, rows, classes, size: size * rng.standard_normal((rows, classes)),
}


@dataclasses.dataclass(frozen=True)
class ActivationCase:
    """An activation, and its formula and slope in float64 NumPy.

    Args:
      over: the axis along which elements depend on each other; None where none do. The slope is
        then that of the sum of the outputs weighted by 0, 1, 2, ... along it.
    """

    f: Callable[[jax.Array], jax.Array]
    oracle: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    over: int | None = None


@dataclasses.dataclass(frozen=True)
class InitializerCase:
    """An initializer and what it promises.

    Args:
      init: `(key, shape, dtype) -> array`.
      mean: of the values.
      variance: of the values, from (fan_in, fan_out).
      limit: the largest size of a value, in standard deviations; None for no bound.
      random: whether it draws random numbers.
      has_fans: whether it refuses shapes of fewer than two dimensions.
      oracle: the same distribution in JAX.
    """

    init: fdl.initializers.Initializer
    variance: Callable[[int, int], float]
    mean: float = 0.0
    limit: float | None = None
    random: bool = True
    has_fans: bool = False
    oracle: Any = None


@dataclasses.dataclass(frozen=True)
class OptimizerCase:
    """An optimizer, optax's and the oracle of it, with hyper-parameters away from their defaults.

    Args:
      ours: makes fdl's.
      theirs: makes optax's, where it has one that is to be equal.
      oracle: makes the NumPy float64 loop, where there is one.
      ulps: how far an update may be from optax's, in units in the last place of the leaf's largest
        value; 0 for equal bits.
      start: makes its parameters of plain ones.
      downhill: whether a first step goes against the gradient.
    """

    ours: Callable[[], optax.GradientTransformation]
    theirs: Callable[[], optax.GradientTransformation] | None = None
    oracle: Callable[[], Any] | None = None
    ulps: int = 0
    start: Callable[[Any], Any] = lambda params: params
    downhill: bool = True

    def both(self):
        return self.ours(), self.theirs()

    def params(self, seed=0, dtype=np.float32):
        return self.start(self.gradient(seed, dtype))

    def gradient(self, seed, dtype=np.float32):
        rng = np.random.default_rng(seed)
        return {name: array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def _draw(rng, shape, dtype):
    if np.issubdtype(dtype, np.integer):
        return array(rng.integers(0, 255, shape), dtype)
    return array(rng.standard_normal(shape) + 0.1, dtype)
