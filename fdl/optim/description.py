"""Describes an optimizer as text, and finds its learning rate."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from optax import GradientTransformation

from fdl.checks import is_number

# Functions of fdl.optim whose names and settings are left out of a description.
PLUMBING = {"leafwise", "chain", "wide_inside"}


def description(optimizer: Any, inside: str = "") -> str:
    """The parts of an optimizer and their numbers, such as "scale_by_adam(b1=0.9, b2=0.999)".

    Args:
      optimizer: a transformation. In recursive calls, it is any value from the closure of a
        function of the transformation; a value that is not a function, a list or a transformation
        gives an empty text.
      inside: in recursive calls, the name of the function whose closure holds `optimizer`. This
        name is not written a second time.
    """
    if isinstance(optimizer, GradientTransformation):
        optimizer = optimizer.update
    if isinstance(optimizer, tuple | list):
        return ", ".join(filter(None, (description(part, inside) for part in optimizer)))
    if not isinstance(optimizer, types.FunctionType):
        return ""
    name = optimizer.__qualname__.split(".")[0]
    closed = inspect.getclosurevars(optimizer).nonlocals
    settings = [f"{key}={value!r}" for key, value in closed.items() if _is_setting(value)]
    parts = [description(value, name) for value in closed.values()]
    listed = ", ".join(filter(None, parts if name in PLUMBING else settings + parts))
    return listed if name in (inside, *PLUMBING) else f"{name}({listed})"


def _is_setting(value: Any) -> bool:
    return isinstance(value, bool | str) or (is_number(value) and np.ndim(value) == 0)


def rate_of(optimizer: GradientTransformation) -> Callable[[Any], float | None]:
    """Makes a function that reads the learning rate of an optimizer from a run.

    Args:
      optimizer: an optimizer of fdl or optax. The rate is found if it is a leaf of the state, as
        with `inject_hyperparams`. The rate, a constant or a schedule, is also found if the
        optimizer contains exactly one `scale_by_learning_rate`, at any depth.

    Returns:
      A function `run -> rate`, where a run has an `opt_state`. It returns the rate of the next
      step as a float. It returns None if it finds no rate or several rates, or if it cannot tell
      which count in the state belongs to the schedule.

    Example:
      >>> import fdl
      >>> optimizer = fdl.adam(fdl.optim.cosine_decay_schedule(0.1, 50))
      >>> round(rate_of(optimizer)(fdl.start(np.ones(2, "float32"), optimizer)), 6)
      0.1
    """
    constants = [value for value in _rates(optimizer) if not callable(value)]
    schedules = [value for value in _rates(optimizer) if callable(value)]

    def at(run: Any) -> float | None:
        leaves = optax.tree_utils.tree_get_all_with_path(run.opt_state, "learning_rate")
        if len(leaves) == 1:
            return float(leaves[0][1])
        if len(constants) + len(schedules) != 1:
            return None
        if constants:
            return float(constants[0])
        states = jax.tree.leaves(run.opt_state, is_leaf=_has_schedule)
        counts = [state.count for state in states if _has_schedule(state)]
        return float(schedules[0](counts[0])) if len(counts) == 1 else None

    return at


def _has_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def _rates(part: Any) -> list[Any]:
    """All constants and schedules called `learning_rate` in the closures of an optimizer."""
    if isinstance(part, GradientTransformation):
        part = part.update
    if isinstance(part, tuple | list):
        return [rate for each in part for rate in _rates(each)]
    if not isinstance(part, types.FunctionType):
        return []
    closed = inspect.getclosurevars(part).nonlocals
    if "learning_rate" in closed:
        return [closed["learning_rate"]]
    return [rate for value in closed.values() for rate in _rates(value)]
