"""Sharpness-aware minimization (SAM): uses the gradient at a nearby point with a larger loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
)
from optax.contrib import SAMState

from fdl.checks import named_in_errors
from fdl.ops.numerics import wide_inside
from fdl.optim.chaining import apply_updates
from fdl.optim.checks import as_transformation, check_whole
from fdl.optim.lifting import need_params, per_leaf, where
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import size


@named_in_errors
def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
) -> GradientTransformationExtraArgs:
    """SAM: climbs to a nearby point of larger loss, and descends from W along the gradient there.

        e = rho g(W) / |g(W)|,     W += optimizer's update for g(W + e)

    The paper's SAM is `sam(optimizer, chain(normalize(), sgd(rho)))`. A whole step needs k =
    sync_period gradients: k - 1 to climb and one to descend.

    In transparent mode, one call of `update` takes one gradient. The first k - 1 calls climb, and
    call k returns to W and descends. Between these calls the parameters are W + e. In opaque mode,
    one call of `update` is a whole step: it gets the first gradient and computes the other k - 1
    gradients itself, and the parameters are always W. Use opaque mode for networks with running
    statistics, and in training loops that count steps.

    Args:
      optimizer: the transformation that descends, of fdl or optax.
      adv_optimizer: the transformation that climbs, of fdl or optax; its updates are negated.
      sync_period: k >= 1. With 1, only `optimizer` is used.
      reset_state: True starts adv_optimizer with a new state after every whole step.
      opaque_mode: True means opaque mode, False transparent mode. In opaque mode, `update` needs
        one of two extra arguments: `grad_fn`, a function `(params, i) -> gradient` for the i-th
        point of the climb; or `value_fn`, a function `params -> loss`. `fdl.train_step` passes
        value_fn.
      batch_axis_name: in opaque mode, the name of the axis over which `jax.lax.pmean` averages the
        gradients of grad_fn or value_fn. None means no averaging.

    Returns:
      A transformation that needs params; its state is `optax.contrib.SAMState`.

    Raises:
      ValueError: sync_period is below 1; at update in opaque mode, neither grad_fn nor
        value_fn is passed.

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer = sam(sgd(0.5), chain(normalize(), sgd(0.25)), opaque_mode=True)
      >>> w, slope = jnp.array(1.0), lambda w, i: 2 * w
      >>> float(optimizer.update(slope(w, 0), optimizer.init(w), w, grad_fn=slope)[0])
      -1.25

    Source: Foret et al. 2021, arXiv 2010.01412, algorithm 1 and equation 2. Gives the same
    results as optax, except for sync_period=1 in transparent mode, where optax steps from the
    previous parameters.
    """
    check_whole("sam", "the paper uses 2", sync_period=sync_period)
    down, up = as_transformation("sam", optimizer), as_transformation("sam", adv_optimizer)

    def init(params: Any) -> SAMState:
        zero, cache = jnp.zeros((), jnp.int32), None if opaque_mode else params
        return SAMState(zero, down.init(params), up.init(params), cache)

    update = (
        _opaque(down, up, sync_period, reset_state, batch_axis_name)
        if opaque_mode
        else _transparent(down, up, sync_period, reset_state)
    )
    return transformation(init, wide_inside(update))


def normalize() -> GradientTransformationExtraArgs:
    """g / |g|, where |g| is the norm of all leaves together. A gradient of 0 stays 0.

    Returns:
      A transformation without state.

    Example:
      >>> normalize().update(jnp.array([3.0, -4.0]), normalize().init(None))[0]
      Array([ 0.6, -0.8], dtype=float32)

    Source: Foret et al. 2021, equation 2. Unlike here, optax gives NaN for a gradient of 0.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        norm = size(updates)
        divisor = jnp.where(norm.part > 0, norm.part, jnp.ones_like(norm.part))
        return per_leaf("normalize", lambda g: (norm.of(g) / divisor,), updates, {})[0], state

    return transformation(lambda params: EmptyState(), update)


def _transparent(
    down: GradientTransformationExtraArgs,
    up: GradientTransformationExtraArgs,
    sync_period: int,
    reset_state: bool,
) -> Callable[..., Any]:
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SAMState]:
        params = need_params("sam", params)
        cache = where(state.steps_since_sync == 0, params, state.cache)
        last = state.steps_since_sync == sync_period - 1
        climbed, up_state = up.update(updates, state.adv_state, params, **extra_args)
        step, down_state = down.update(updates, state.opt_state, cache, **extra_args)

        def rule(u: Any, e: Any, w: Any, start: Any) -> Any:
            return (jnp.where(last, start - w + u, -e),)

        others = {"adv_optimizer's updates": climbed, "params": params, "state.cache": cache}
        (new,) = per_leaf("sam", rule, step, others)
        kept = up.init(params) if reset_state else state.adv_state
        return new, SAMState(
            steps_since_sync=(state.steps_since_sync + 1) % sync_period,
            opt_state=where(last, down_state, state.opt_state),
            adv_state=where(last, kept, up_state),
            cache=cache,
        )

    return update


def _opaque(
    down: GradientTransformationExtraArgs,
    up: GradientTransformationExtraArgs,
    sync_period: int,
    reset_state: bool,
    batch_axis_name: str | None,
) -> Callable[..., Any]:
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SAMState]:
        point = params = need_params("sam", params)
        gradient_at, up_state = _gradient_at(**extra_args), state.adv_state
        for i in range(sync_period - 1):
            climbed, up_state = up.update(updates, up_state, point, **extra_args)
            point = apply_updates(point, jax.tree.map(jnp.negative, climbed))
            updates = gradient_at(point, i)
            if batch_axis_name is not None:
                updates = jax.lax.pmean(updates, batch_axis_name)
        step, down_state = down.update(updates, state.opt_state, params, **extra_args)
        up_state = up.init(params) if reset_state else up_state
        return step, SAMState(jnp.zeros((), jnp.int32), down_state, up_state, None)

    return update


def _gradient_at(grad_fn: Any = None, value_fn: Any = None, **extra_args: Any) -> Any:
    if grad_fn is not None:
        return grad_fn
    if value_fn is None:
        raise ValueError(
            "sam: expected grad_fn or value_fn in opaque mode, got neither; call "
            "update(updates, state, params, grad_fn=lambda params, i: ...)"
        )
    return lambda params, i: jax.grad(value_fn)(params)
