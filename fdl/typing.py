"""Type aliases, with the names that docstrings use."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Array = jax.Array
"""A JAX array; arguments may also be NumPy arrays."""

Key = jax.Array
"""A random key, made by `jax.random.key(seed)`."""

Params = dict[str, Any]
"""The parameters, which an optimizer updates: nested dicts whose leaves are arrays."""

State = dict[str, Any]
"""Arrays that a forward pass in training updates, such as running statistics, in nested dicts."""

Batch = Any
"""A pytree of arrays [B, ...], for example `(x, y)` or `{"x": x, "y": y, "mask": mask}`."""

Initializer = Callable[..., Array]
"""A function `(key, shape, dtype) -> Array` that gives the initial values of weights."""

Activation = Callable[[Array], Array]
"""A function `x -> y`, where y has the shape of x."""

Loss = Callable[..., Array]
"""A function `(prediction, target) -> [B, ...]`, with smaller values for better predictions."""

Objective = Callable[..., tuple[Any, tuple[Any, Any]]]
"""A function `(params, state, batch, key) -> (loss, (state, metrics))`. Training minimizes loss."""

Hook = Callable[[dict[str, float], Any], str | None]
"""A function `(record, run)` that returns None, or a reason to stop training; see `fdl.fit`."""

Schedule = Callable[[Any], Array]
"""A function `step -> number` that gives, for example, the learning rate. The first step is 0."""

ScalarOrSchedule = float | Array | Callable[[Array], Any]
"""Either a number or a schedule."""

Mask = str | Sequence[str] | Callable[[Any], Any] | Any
"""Selects leaves: path patterns, a pytree of bool, or a function `params -> pytree of bool`."""
