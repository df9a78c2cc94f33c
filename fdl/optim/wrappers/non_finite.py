"""Handles gradients that are not finite: skips the step, or replaces NaN by 0."""

from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    ApplyIfFiniteState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    ZeroNansState,
)

from fdl.ops.numerics import cast_like
from fdl.optim.checks import as_transformation, check_whole
from fdl.optim.lifting import increment, per_leaf
from fdl.optim.protocol import transformation


def apply_if_finite(
    inner: GradientTransformation, max_consecutive_errors: int
) -> GradientTransformationExtraArgs:
    """Skips the step if the gradient is not finite: the update is 0, and `inner` keeps its state.

    Args:
      inner: a transformation of fdl or optax.
      max_consecutive_errors: >= 0, the number of steps in a row that may be skipped. After that
        many skipped steps, all steps are taken until a gradient is finite again, so that you notice
        a run that has diverged.

    Returns:
      A transformation with state `optax.ApplyIfFiniteState`. It holds the number of gradients that
      were not finite, in a row and in total, and whether the last gradient was finite.

    Raises:
      ValueError: max_consecutive_errors is negative or not whole; `inner` is not a transformation.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = apply_if_finite(sgd(1.0), max_consecutive_errors=3)
      >>> updates, state = optimizer.update(jnp.array(jnp.nan), optimizer.init(jnp.array(0.0)))
      >>> float(updates), int(state.total_notfinite)
      (0.0, 1)

    Source: `optax.apply_if_finite`.
    """
    remedy = "it is the number of steps in a row that may be skipped"
    check_whole(
        "apply_if_finite", remedy, "[0, inf]", max_consecutive_errors=max_consecutive_errors
    )
    inner = as_transformation("apply_if_finite", inner)

    def init(params: Any) -> ApplyIfFiniteState:
        zero = jnp.zeros((), jnp.int32)
        return ApplyIfFiniteState(zero, jnp.array(True), zero, inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ApplyIfFiniteState]:
        finite = count_not_finite(updates) == 0
        in_a_row = jnp.where(finite, 0, increment(state.notfinite_count)).astype(jnp.int32)

        def step() -> tuple[Any, Any]:
            return inner.update(updates, state.inner_state, params, **extra_args)

        new, inner_state = step_if(
            finite | (in_a_row > max_consecutive_errors), step, state.inner_state
        )
        total = jnp.where(finite, state.total_notfinite, increment(state.total_notfinite))
        return new, ApplyIfFiniteState(in_a_row, finite, total, inner_state)

    return transformation(init, update)


def skip_not_finite(
    updates: Any, gradient_step: Any, params: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tells `accumulate` to skip gradients that are not finite: pass it as should_skip_update_fn.

    Args:
      updates: a pytree of arrays.
      gradient_step: ignored.
      params: ignored.

    Returns:
      The pair (skip, {"should_skip": skip, "num_not_finite": number of elements that are not
      finite}). skip is a bool scalar.

    Example:
      >>> skip, why = skip_not_finite({"w": jnp.array([1.0, jnp.inf, jnp.nan])}, 0, None)
      >>> bool(skip), int(why["num_not_finite"])
      (True, 2)

    Source: `optax.skip_not_finite`.
    """
    number = count_not_finite(updates)
    return number > 0, {"should_skip": number > 0, "num_not_finite": number}


def zero_nans() -> GradientTransformationExtraArgs:
    """Replaces NaN by 0. This hides the cause of the NaN.

    Infinities pass unchanged.

    Returns:
      A transformation with state `optax.ZeroNansState(found_nan)`. For each leaf, found_nan says
      whether its last gradient contained NaN.

    Example:
      >>> transform = zero_nans()
      >>> gradient = {"w": jnp.array([jnp.nan, 2.0])}
      >>> updates, state = transform.update(gradient, transform.init(gradient))
      >>> updates["w"], bool(state.found_nan["w"])
      (Array([0., 2.], dtype=float32), True)

    Source: `optax.zero_nans`.
    """

    def init(params: Any) -> ZeroNansState:
        return ZeroNansState(jax.tree.map(lambda p: jnp.array(False), params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ZeroNansState]:
        found = jax.tree.map(lambda g: jnp.any(jnp.isnan(g)), updates)
        rule = lambda g: (jnp.where(jnp.isnan(g), jnp.zeros_like(g), g),)  # noqa: E731
        return per_leaf("zero_nans", rule, updates, {})[0], ZeroNansState(found)

    return transformation(init, update)


def count_not_finite(tree: Any) -> jax.Array:
    """The number of elements that are infinite or NaN."""
    counts = [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for leaf in jax.tree.leaves(tree)]
    return jnp.asarray(sum(counts), jnp.int32)


def step_if(condition: jax.Array, step: Any, inner_state: Any) -> tuple[Any, Any]:
    """Returns `step()` if the condition is True, else (zeros, inner_state)."""

    def stepped() -> tuple[Any, Any]:
        updates, new = step()
        # Both branches below must return the same dtypes, but inside a chain, a transformation of
        # optax can return a wider state.
        return updates, cast_like(new, inner_state)

    shapes, _ = jax.eval_shape(step)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(condition, stepped, lambda: (zeros, inner_state))
