"""Transformations and wrappers beside optax's, all options away from their defaults."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from fdl import optim


@dataclasses.dataclass(frozen=True)
class TransformationCase:
    """A transformation, optax's, and the arguments of both."""

    fdl: Callable[..., optax.GradientTransformation]
    optax: Callable[..., optax.GradientTransformation]
    kwargs: dict[str, Any]

    def both(self):
        return self.fdl(**self.kwargs), self.optax(**self.kwargs)


# optax's masks and labels are trees; the patterns say the same.
ONLY_W = {"layer": {"w": True}, "b": False}


def multi_steps(**kwargs):
    return optax.MultiSteps(**kwargs).gradient_transformation()


def ours(make, **fixed):
    return lambda **kwargs: make(**fixed, **kwargs)


MOMENTUM = optim.sgd(0.1, 0.9, nesterov=True)
PARTS = {"**/w": optim.adam(0.02), "b": optim.sgd(0.1, 0.9)}
LABELS = {"layer": {"w": "**/w"}, "b": "b"}

# Those of optax, to the bit.
TRANSFORMATIONS = {
    "clip": TransformationCase(optim.clip, optax.clip, {"max_delta": 0.3}),
    "clip_by_block_rms": TransformationCase(
        optim.clip_by_block_rms, optax.clip_by_block_rms, {"threshold": 0.6}
    ),
    "clip_by_global_norm": TransformationCase(
        optim.clip_by_global_norm, optax.clip_by_global_norm, {"max_norm": 1.7}
    ),
    "adaptive_grad_clip": TransformationCase(
        optim.adaptive_grad_clip, optax.adaptive_grad_clip, {"clipping": 0.8, "eps": 0.9}
    ),
    "adaptive_grad_clip_by_axis": TransformationCase(
        optim.adaptive_grad_clip, optax.adaptive_grad_clip, {"clipping": 0.8, "axis": -1}
    ),
    "centralize": TransformationCase(
        ours(optim.centralize, out_axis=0), lambda **kwargs: optax.centralize(), {}
    ),
    "zero_nans": TransformationCase(optim.zero_nans, optax.zero_nans, {}),
    "set_to_zero": TransformationCase(optim.set_to_zero, optax.set_to_zero, {}),
    "freeze": TransformationCase(
        ours(optim.freeze, mask="**/w"), ours(optax.freeze, mask=ONLY_W), {}
    ),
    "masked": TransformationCase(
        ours(optim.masked, mask="**/w"), ours(optax.masked, mask=ONLY_W), {"inner": MOMENTUM}
    ),
    "apply_if_finite": TransformationCase(
        optim.apply_if_finite,
        optax.apply_if_finite,
        {"inner": MOMENTUM, "max_consecutive_errors": 2},
    ),
    "ema": TransformationCase(
        optim.ema,
        optax.ema,
        {"decay": 0.7, "debias": True, "accumulator_dtype": jnp.float32},
    ),
    "ema_with_bias": TransformationCase(optim.ema, optax.ema, {"decay": 0.7, "debias": False}),
    "partition": TransformationCase(
        optim.partition, ours(optax.partition, param_labels=LABELS), {"transforms": PARTS}
    ),
    "partition_by_labels": TransformationCase(
        optim.partition, optax.partition, {"transforms": PARTS, "param_labels": LABELS}
    ),
    "accumulate": TransformationCase(
        optim.accumulate, multi_steps, {"opt": MOMENTUM, "every_k_schedule": 3}
    ),
    "accumulate_sums": TransformationCase(
        optim.accumulate,
        multi_steps,
        {"opt": MOMENTUM, "every_k_schedule": lambda step: 1 + step % 3, "use_grad_mean": False}
        | {"should_skip_update_fn": optim.skip_not_finite},
    ),
}

# Public names of fdl.optim that are no transformation, and have tests of their own.
HELPERS = {
    "Hyperparameter",
    "averaged_params",
    "global_norm",
    "hyperparameter",
    "inject_hyperparams",
    "params_ema",
    "set_hyperparams",
    "skip_not_finite",
}
