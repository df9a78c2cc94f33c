"""Types with the names that docstrings use."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Array = jax.Array
"""A JAX array; arguments may also be NumPy arrays."""

Key = jax.Array
"""A random key, as `jax.random.key(seed)` makes it."""

Params = dict[str, Any]
"""What an optimizer updates: nested dicts whose leaves are arrays."""

State = dict[str, Any]
"""What a forward pass in training updates, such as running statistics: nested dicts of arrays."""

Batch = Any
"""A pytree of arrays [B, ...]: `(x, y)`, or `{"x": x, "y": y, "mask": mask}`."""

Initializer = Callable[..., Array]
"""`(key, shape, dtype) -> Array`: initial values of weights."""

Activation = Callable[[Array], Array]
"""`x -> y`, of the same shape."""

Loss = Callable[..., Array]
"""`(prediction, target) -> [B, ...]`: one number for each example, smaller is better."""

Objective = Callable[..., tuple[Any, tuple[Any, Any]]]
"""`(params, state, batch, key) -> (loss, (state, metrics))`: training minimizes the loss."""

Schedule = Callable[[Any], Array]
"""`step -> number`: the learning rate, or another number, at each step; steps count from 0."""

ScalarOrSchedule = float | Array | Callable[[Array], Any]
"""A number, or a schedule."""

Mask = str | Sequence[str] | Callable[[Any], Any] | Any
"""Which leaves: path patterns, a pytree of bool, or a function from params to a pytree of bool."""
