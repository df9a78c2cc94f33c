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


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """How to build a layer, and what to feed it.

    Args:
      make: builds the layer.
      x: its input's shape.
      dtype: its input's dtype; for float32 every law also runs in the other float types.
      inputs: shapes of its extra inputs.
      random: whether a training pass draws random numbers.
    """

    make: Callable[[], fdl.Layer]
    x: tuple[int, ...]
    dtype: Any = np.float32
    inputs: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    random: bool = False

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
      loss: `(predictions, targets) -> [...]`.
      targets: "labels", "chances" or "numbers".
      oracle: the float64 formula.
      optax: optax's.
    """

    loss: Callable[..., jax.Array]
    targets: str
    oracle: Callable[..., np.ndarray]
    optax: Callable[..., jax.Array]

    def data(self, seed=0, dtype=np.float32, rows=6, classes=5, size=3.0):
        rng = np.random.default_rng(seed)
        predictions = jnp.asarray(size * rng.standard_normal((rows, classes)), dtype)
        if self.targets == "labels":
            return predictions, jnp.asarray(rng.integers(0, classes, rows), jnp.int32)
        if self.targets == "chances":
            chances = np.clip(1.2 * rng.random((rows, classes)) - 0.1, 0.001, 0.999)
            return predictions, jnp.asarray(chances, dtype)
        return predictions, jnp.asarray(size * rng.standard_normal((rows, classes)), dtype)


@dataclasses.dataclass(frozen=True)
class ActivationCase:
    """An activation, and its formula and slope in float64 NumPy."""

    f: Callable[[jax.Array], jax.Array]
    oracle: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]


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
    """An optimizer, optax's, and hyper-parameters away from their defaults."""

    fdl: Callable[..., optax.GradientTransformation]
    optax: Callable[..., optax.GradientTransformation]
    kwargs: dict[str, Any]

    def both(self):
        return self.fdl(**self.kwargs), self.optax(**self.kwargs)


def _draw(rng, shape, dtype):
    if np.issubdtype(dtype, np.integer):
        return jnp.asarray(rng.integers(0, 255, shape), dtype)
    return jnp.asarray(rng.standard_normal(shape) + 0.1, dtype)
