"""Optimizers beside optax's, with hyper-parameters away from their defaults."""

import jax.numpy as jnp
import optax

import fdl
from registry.cases import OptimizerCase


def halving(count):
    """A schedule whose every rate differs from the one before."""
    return 0.2 * 0.97 ** jnp.float32(count)


OPTIMIZERS = {
    name: OptimizerCase(fdl.sgd, optax.sgd, kwargs)
    for name, kwargs in {
        "sgd": {"learning_rate": 0.07},
        "sgd_momentum": {"learning_rate": 0.07, "momentum": 0.83},
        "sgd_nesterov": {"learning_rate": 0.07, "momentum": 0.83, "nesterov": True},
        "sgd_schedule": {"learning_rate": halving},
        "sgd_momentum_schedule": {"learning_rate": halving, "momentum": 0.83},
        "sgd_nesterov_schedule": {"learning_rate": halving, "momentum": 0.83, "nesterov": True},
    }.items()
}
