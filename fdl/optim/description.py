"""A description of an optimizer, found in the functions that it is made of."""

import inspect
import types
from typing import Any

import numpy as np
from optax import GradientTransformation

from fdl.checks import is_number

PLUMBING = {"leafwise", "chain", "wide_inside"}  # functions of fdl.optim without settings


def description(optimizer: Any, inside: str = "") -> str:
    """The parts of an optimizer and their numbers, such as "scale_by_adam(b1=0.9, b2=0.999)".

    Args:
      optimizer: a transformation, or a function or a list that one of its functions refers to.
      inside: the name of the function that refers to it.
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
