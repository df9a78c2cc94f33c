"""Sharpness-aware minimization: the step downhill is taken by the gradient at a point uphill."""

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

from fdl.checks import check_number, named_in_errors
from fdl.ops.numerics import wide_inside
from fdl.optim.chaining import apply_updates
from fdl.optim.checks import as_transformation
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
    """SAM: climb to where the loss is bad nearby, and go down by the gradient from there.

        e = rho g(W) / |g(W)|,     W -= optimizer's step by g(W + e)

    which is `sam(optimizer, chain(normalize(), sgd(rho)))`. With sync_period k, k - 1 steps are
    climbed.

    Transparent, one update is one gradient: k - 1 updates climb, and the k-th goes back to W and
    down from there; in between the parameters are W + e. Opaque, one update is a whole step, which
    takes the other k - 1 gradients itself, and the parameters are always W. A network with running
    statistics, and every count of steps, wants the opaque mode.

    Args:
      optimizer: fdl's or optax's, that goes down.
      adv_optimizer: fdl's or optax's, whose steps are taken with the other sign.
      sync_period: k >= 1; 1 is the optimizer alone.
      reset_state: begin adv_optimizer's state anew after every whole step.
      opaque_mode: see above. `update` is then called with `grad_fn=(params, i) -> gradient at the
        i-th climbed point`, or with `value_fn=params -> loss`, as `fdl.train_step` does.
      batch_axis_name: of a `jax.lax.pmean` over the gradients of grad_fn, in opaque mode.

    Returns:
      A transformation that needs params; its state is `optax.contrib.SAMState`.

    Raises:
      ValueError: a period below 1; in opaque mode, neither grad_fn nor value_fn.

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer = sam(sgd(0.5), chain(normalize(), sgd(0.25)), opaque_mode=True)
      >>> w, slope = jnp.array(1.0), lambda w, i: 2 * w
      >>> float(optimizer.update(slope(w, 0), optimizer.init(w), w, grad_fn=slope)[0])
      -1.25

    Source: Foret et al. 2021, arXiv 2010.01412, algorithm 1 and equation 2. The same in optax,
    but for a sync_period of 1 in transparent mode, where optax steps from the point before.
    """
    check_number("sam", "sync_period", sync_period, "[1, inf]", "2 is the paper's")
    down, up = (as_transformation("sam", each) for each in (optimizer, adv_optimizer))

    def init(params: Any) -> SAMState:
        zero, cache = jnp.zeros((), jnp.int32), None if opaque_mode else params
        return SAMState(zero, down.init(params), up.init(params), cache)

    how = (down, up, sync_period, reset_state)
    update = _opaque(*how, batch_axis_name) if opaque_mode else _transparent(*how)
    return transformation(init, wide_inside(update))


def normalize() -> GradientTransformationExtraArgs:
    """g / |g|, the length taken over all leaves together; 0 where it is 0.

    Example:
      >>> normalize().update(jnp.array([3.0, -4.0]), normalize().init(None))[0]
      Array([ 0.6, -0.8], dtype=float32)

    Source: Foret et al. 2021, equation 2. optax gives NaN for a gradient of 0.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        whole = size(updates)
        divisor = jnp.where(whole.part > 0, whole.part, jnp.ones_like(whole.part))
        return per_leaf("normalize", lambda g: (whole.of(g) / divisor,), updates, {})[0], state

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
