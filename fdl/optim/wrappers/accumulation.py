"""Gradient accumulation: one step for the mean of several gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    MultiStepsState,
)

from fdl.ops.numerics import wide_inside
from fdl.optim.checks import as_transformation, check_whole
from fdl.optim.lifting import increment, per_leaf
from fdl.optim.protocol import transformation
from fdl.optim.wrappers.non_finite import step_if

# A function (updates, gradient_step, params) -> (skip, reason), such as `skip_not_finite`. skip is
# a bool scalar; if it is True, the gradient is ignored.
Skip = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def accumulate(
    opt: GradientTransformation,
    every_k_schedule: Any,
    use_grad_mean: bool = True,
    should_skip_update_fn: Skip | None = None,
    accumulator_dtype: Any = jnp.float32,
) -> GradientTransformationExtraArgs:
    """Takes one step of an optimizer with the mean of every k gradients.

    Between two such steps, the updates are 0 and the state of the optimizer does not change. If the
    loss is a mean over examples, k batches of B examples give the same step as one batch of k * B
    examples.

    Args:
      opt: a transformation of fdl or optax.
      every_k_schedule: k >= 1, or a schedule `steps taken -> k`.
      use_grad_mean: True takes the mean of the k gradients, False their sum.
      should_skip_update_fn: a function `(updates, steps taken, params) -> (skip, reason)`, such as
        `skip_not_finite`. If skip is True, the gradient is ignored. None means that no gradient is
        ignored.
      accumulator_dtype: dtype of the mean or sum. None means the dtype of the parameters.

    Returns:
      A transformation with state `optax.MultiStepsState`.

    Raises:
      ValueError: k is below 1 or not a whole number; `opt` is not a transformation.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = accumulate(sgd(1.0), 2)
      >>> first, state = optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(0.0)))
      >>> second, state = optimizer.update(jnp.array(3.0), state)
      >>> float(first), float(second)
      (0.0, -2.0)

    Source: `optax.MultiSteps`. Unlike here, optax computes a step for every gradient, but uses only
    every k-th step.
    """
    _check_period(every_k_schedule)
    inner = as_transformation("accumulate", opt)
    skip = should_skip_update_fn or (lambda updates, step, params: (jnp.array(False), ()))

    def init(params: Any) -> MultiStepsState:
        zero = jnp.zeros((), jnp.int32)
        zeros = jax.tree.map(jnp.zeros_like, params)
        means = jax.tree.map(lambda p: jnp.zeros_like(p, accumulator_dtype), params)
        return MultiStepsState(zero, zero, inner.init(params), means, skip(zeros, zero, params)[1])

    @wide_inside
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MultiStepsState]:
        skipped, reason = skip(updates, state.gradient_step, params)
        k = every_k_schedule
        k = jnp.asarray(k(state.gradient_step) if callable(k) else k, jnp.int32)
        last = ~skipped & (state.mini_step >= k - 1)

        def rule(g: Any, mean: Any) -> Any:
            new = mean + (g - mean) / (state.mini_step + 1) if use_grad_mean else g + mean
            kept = jnp.where(skipped, mean, jnp.where(last, jnp.zeros_like(mean), new))
            return new, kept

        means = {"state.acc_grads": state.acc_grads}
        total, acc = per_leaf("accumulate", rule, updates, means, kept=1)

        def step() -> tuple[Any, Any]:
            return inner.update(total, state.inner_opt_state, params, **extra_args)

        new, inner_state = step_if(last, step, state.inner_opt_state)
        counted = jnp.where(skipped, state.mini_step, increment(state.mini_step))
        mini = jnp.where(last, jnp.zeros_like(counted), counted)
        steps = jnp.where(last, increment(state.gradient_step), state.gradient_step)
        return new, MultiStepsState(mini, steps, inner_state, acc, reason)

    return transformation(init, update)


def _check_period(k: Any) -> None:
    if not callable(k):
        remedy = "pass the number of gradients per step"
        check_whole("accumulate", remedy, every_k_schedule=k)
