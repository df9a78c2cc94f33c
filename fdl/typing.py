"""The names of the contracts between the rooms, as types."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Array = jax.Array
"""An array of JAX; where one is read, NumPy's will do."""

Key = jax.Array
"""A random key, as `jax.random.key(seed)` makes it."""

Params = dict[str, Any]
"""What an optimizer moves: nested dicts whose leaves are arrays."""

State = dict[str, Any]
"""What a training forward pass moves, such as running statistics: nested dicts of arrays."""

Batch = Any
"""A pytree of arrays [B, ...]: `(x, y)`, or `{"x": x, "y": y, "mask": mask}`."""

Initializer = Callable[..., Array]
"""`(key, shape, dtype) -> Array`: the values that weights begin with."""

Activation = Callable[[Array], Array]
"""An array to one of the same shape."""

Loss = Callable[..., Array]
"""`(prediction, target) -> [B, ...]`: how far off each example is."""

Objective = Callable[..., tuple[Any, tuple[Any, Any]]]
"""`(params, state, batch, key) -> (loss, (state, metrics))`: what training makes small."""

Schedule = Callable[[Any], Array]
"""`step -> number`: the learning rate, or another number, at each step from 0."""

ScalarOrSchedule = float | Array | Callable[[Array], Any]
"""A number, or a schedule of it."""

Mask = str | Sequence[str] | Callable[[Any], Any] | Any
"""Which leaves: path patterns, a pytree of bool, or a function of params that gives one."""
