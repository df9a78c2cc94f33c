"""fdl: deep learning as pure functions, in JAX.

Layers turn data into a prediction, a loss scores the prediction, an optimizer turns the gradient of
the loss into a step, and a training loop repeats this.

The package `fdl` itself has every layer, activation, model, loss and optimizer, and functions for
gradients, training, generation and paths. Other names are in its modules and subpackages, for
example `fdl.data.mnist`, `fdl.metrics.f1`, `fdl.initializers.he_normal`,
`fdl.optim.cosine_decay_schedule` and `fdl.look.summary`.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import jax as _jax

from fdl.public_names import public as _public

# The modules and subpackages, in the order in which a tutorial would explain them.
from fdl import typing as typing
from fdl import paths as paths
from fdl import gradients as gradients
from fdl import activations as activations
from fdl import initializers as initializers
from fdl import core as core
from fdl import data as data
from fdl import layers as layers
from fdl import models as models
from fdl import losses as losses
from fdl import metrics as metrics
from fdl import optim as optim
from fdl import train as train
from fdl import generation as generation

# The families of names that fdl itself has.
from fdl.core import *
from fdl.layers import *
from fdl.activations import *
from fdl.models import *
from fdl.losses import *
from fdl.gradients import derivative as derivative
from fdl.gradients import check_gradient as check_gradient
from fdl.gradients import per_example_gradients as per_example_gradients
from fdl.gradients import hessian_vector_product as hessian_vector_product
from fdl.optim.optimizers import *
from fdl.train import *
from fdl.generation import *

# Paths, which name the leaves of any pytree.
from fdl.paths import PathError as PathError
from fdl.paths import select as select
from fdl.version import __version__ as __version__

# Training on one device needs none of these subpackages. Each is imported when it is first used.
_LATER = ("look", "debug", "port", "distributed")

__all__ = [*_public(), *_LATER]

if _TYPE_CHECKING:
    from fdl import look as look
    from fdl import debug as debug
    from fdl import port as port
    from fdl import distributed as distributed
else:

    def __getattr__(name: str) -> _Any:
        """A subpackage of `_LATER`, or a name in `__all__` of a module, such as `accuracy`."""
        if name in _LATER:
            # The first use may be inside a function that JAX traces. The arrays that the import
            # makes must not become a part of the trace.
            with _jax.ensure_compile_time_eval():
                return _import_module(f"fdl.{name}")
        for room in (metrics, optim, initializers, data, paths):
            if name in getattr(room, "__all__", ()):
                return getattr(room, name)
        for room in map(__getattr__, _LATER if not name.startswith("_") else ()):
            if name in room.__all__:
                return getattr(room, name)
        raise AttributeError(
            f"fdl: expected a public name, got {name!r}; help(fdl) lists the public names"
        )

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
