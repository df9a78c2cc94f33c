"""Lookahead: an optimizer trains fast weights, and slow weights follow them."""

from typing import Any

import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    LookaheadParams,
    LookaheadState,
)

from fdl.checks import check_number, named_in_errors
from fdl.optim.checks import as_transformation, check_whole
from fdl.optim.lifting import per_leaf, where
from fdl.optim.protocol import is_placeholder, transformation


@named_in_errors
def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: float,
    reset_state: bool = False,
) -> GradientTransformationExtraArgs:
    """Lookahead: every k steps, the weights move back towards their values k steps before.

        fast += update of the fast optimizer
        every k steps:  slow += slow_step_size * (fast - slow),  fast = slow

    The parameters are `optax.LookaheadParams(fast, slow)`: compute gradients at `fast`, and test
    with `slow`.

    Args:
      fast_optimizer: a transformation of fdl or optax.
      sync_period: k >= 1, the number of steps of the fast optimizer between two steps of the slow
        weights.
      slow_step_size: in [0, 1], the fraction of the way that slow moves towards fast.
      reset_state: True starts the fast optimizer with a new state every k steps.

    Returns:
      A transformation. Its `update` takes the gradient with respect to `fast`, or a LookaheadParams
      that holds this gradient in its field `fast`; its field `slow` is ignored. (`jax.grad` of a
      loss that uses `fast` returns such a LookaheadParams.) `update` returns the updates as a
      LookaheadParams. The state is `optax.LookaheadState`.

    Raises:
      ValueError: sync_period is below 1; slow_step_size is outside [0, 1]; at init or update,
        params is not a LookaheadParams.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = lookahead(sgd(0.5), sync_period=1, slow_step_size=0.5)
      >>> w = LookaheadParams.init_synced(jnp.array(4.0))
      >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
      >>> float(updates.fast), float(updates.slow)
      (-0.5, -0.5)

    Source: Zhang et al. 2019, arXiv 1907.08610, algorithm 1. Gives the same results as optax.
    """
    check_whole("lookahead", "5 is usual", sync_period=sync_period)
    check_number("lookahead", "slow_step_size", slow_step_size, "[0, 1]", "0.5 is usual")
    inner = as_transformation("lookahead", fast_optimizer)

    def init(params: Any) -> LookaheadState:
        fast = params if is_placeholder(params) else _pair(params).fast
        return LookaheadState(inner.init(fast), jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LookaheadState]:
        params = _pair(params)
        gradient = updates.fast if isinstance(updates, LookaheadParams) else updates
        steps, fast_state = inner.update(gradient, state.fast_state, params.fast, **extra_args)
        syncs = state.steps_since_sync == sync_period - 1

        def rule(u: Any, fast: Any, slow: Any) -> Any:
            apart = fast + u - slow
            return u - syncs * (1 - slow_step_size) * apart, slow_step_size * syncs * apart

        pair = {"params.fast": params.fast, "params.slow": params.slow}
        fast, slow = per_leaf("lookahead", rule, steps, pair, kept=1)
        if reset_state:
            fast_state = where(syncs, inner.init(params.fast), fast_state)
        since = (state.steps_since_sync + 1) % sync_period
        return LookaheadParams(fast, slow), LookaheadState(fast_state, since)

    return transformation(init, update)


def _pair(params: Any) -> LookaheadParams:
    if not isinstance(params, LookaheadParams):
        raise ValueError(
            f"lookahead: expected params as optax.LookaheadParams(fast, slow), got "
            f"{type(params).__name__}; start with optax.LookaheadParams.init_synced(params)"
        )
    return params
