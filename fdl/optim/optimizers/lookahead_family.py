"""Lookahead: weights that move fast, and weights that follow."""

from typing import Any

import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    LookaheadParams,
    LookaheadState,
)

from fdl.checks import check_number, named_in_errors
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import per_leaf, where
from fdl.optim.protocol import is_placeholder, transformation


@named_in_errors
def lookahead(
    fast_optimizer: GradientTransformation,
    sync_period: int,
    slow_step_size: float,
    reset_state: bool = False,
) -> GradientTransformationExtraArgs:
    """Lookahead: k fast steps forward, then both sets of weights meet a part of the way.

        fast -= fast optimizer's step
        every k steps:  slow += slow_step_size * (fast - slow),  fast = slow

    The parameters are `optax.LookaheadParams(fast, slow)`: gradients are taken at `fast`, tests at
    `slow`.

    Args:
      fast_optimizer: fdl's or optax's.
      sync_period: k >= 1.
      slow_step_size: in [0, 1].
      reset_state: begin the fast optimizer's state anew after every meeting.

    Returns:
      A transformation of updates for `fast`, or of LookaheadParams whose `slow` part is ignored (as
      `jax.grad` of a loss that reads `fast` gives them). Its updates are LookaheadParams, and its
      state is `optax.LookaheadState`.

    Raises:
      ValueError: a period below 1; a step size outside [0, 1]; params that are not LookaheadParams.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = lookahead(sgd(0.5), sync_period=1, slow_step_size=0.5)
      >>> w = LookaheadParams.init_synced(jnp.array(4.0))
      >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(w), w)
      >>> float(updates.fast), float(updates.slow)
      (-0.5, -0.5)

    Source: Zhang et al. 2019, arXiv 1907.08610, algorithm 1. The same in optax.
    """
    check_number("lookahead", "sync_period", sync_period, "[1, inf]", "5 is usual")
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
        meeting = state.steps_since_sync == sync_period - 1

        def rule(u: Any, fast: Any, slow: Any) -> Any:
            apart = fast + u - slow
            return u - meeting * (1 - slow_step_size) * apart, slow_step_size * meeting * apart

        pair = {"params.fast": params.fast, "params.slow": params.slow}
        fast, slow = per_leaf("lookahead", rule, steps, pair, kept=1)
        if reset_state:
            fast_state = where(meeting, inner.init(params.fast), fast_state)
        since = (state.steps_since_sync + 1) % sync_period
        return LookaheadParams(fast, slow), LookaheadState(fast_state, since)

    return transformation(init, update)


def _pair(params: Any) -> LookaheadParams:
    if not isinstance(params, LookaheadParams):
        raise ValueError(
            f"lookahead: expected params as optax.LookaheadParams(fast, slow), got "
            f"{type(params).__name__}; begin with optax.LookaheadParams.init_synced(params)"
        )
    return params
