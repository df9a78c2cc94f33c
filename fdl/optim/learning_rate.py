"""The last piece of an optimizer: how far to go. And the pull of the weights towards zero."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from optax import (
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    ScaleByScheduleState,
)

from fdl.optim.checks import check_rate, check_strength
from fdl.optim.lifting import check_params, increment, need_params, per_leaf
from fdl.optim.masking import masked
from fdl.optim.protocol import transformation
from fdl.typing import Mask, ScalarOrSchedule


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule, *, flip_sign: bool = True
) -> GradientTransformationExtraArgs:
    """The step: -learning_rate * update.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      flip_sign: False leaves the sign, for gradient ascent.

    Returns:
      A transformation; with a schedule, its state is `optax.ScaleByScheduleState(count)`.

    Raises:
      ValueError: a rate that is negative, not finite or no number; a schedule that gives no scalar.

    Example:
      >>> halving = scale_by_learning_rate(lambda count: 0.5 ** count)
      >>> state = halving.init(jnp.array(0.0))
      >>> first, state = halving.update(jnp.array(1.0), state)
      >>> second, state = halving.update(jnp.array(1.0), state)
      >>> float(first), float(second)
      (-1.0, -0.5)
    """
    sign = -1 if flip_sign else 1
    check_rate("scale_by_learning_rate", learning_rate)

    def rule_at(count: Any) -> Callable[..., Any]:
        step_size = sign * at("learning_rate", learning_rate, count)
        return lambda g: (jnp.asarray(step_size, g.dtype) * g,)

    def init(params: Any) -> Any:
        check_params("optimizer", params)
        return _counting(ScaleByScheduleState, learning_rate)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        rule = rule_at(_count(state))
        return per_leaf("optimizer", rule, updates, {})[0], _next(state)

    return transformation(init, update)


def add_decayed_weights(
    weight_decay: ScalarOrSchedule = 0.0, mask: Mask = None
) -> GradientTransformation:
    """The pull towards zero: gradient + weight_decay * W.

    Before a rule that rescales gradients it is L2 regularization, after it decoupled decay.

    Args:
      weight_decay: >= 0, or a schedule `count -> strength`, count from 0. A negative one, which
        optax takes, would have the weights grow without bound.
      mask: what to decay; see `masked`. `"**/w"` leaves norms and biases alone.

    Returns:
      A transformation that needs params; its state is optax's.

    Raises:
      ValueError: a strength that is negative, not finite or no number; a schedule that gives no
        scalar.

    Example:
      >>> pull = add_decayed_weights(0.5)
      >>> pull.update(jnp.array(1.0), pull.init(jnp.array(4.0)), jnp.array(4.0))[0]
      Array(3., dtype=float32)

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, section 2. As in optax, a constant 0 is
    left out of the program.
    """
    remedy = "decay pulls weights towards 0; pass a positive strength"
    check_strength("add_decayed_weights", remedy, weight_decay=weight_decay)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        params = need_params("add_decayed_weights", params)
        if isinstance(weight_decay, int | float) and weight_decay == 0:
            return updates, state
        s = at("weight_decay", weight_decay, _count(state))
        rule = lambda g, w: (g + s * w,)  # noqa: E731
        return per_leaf("add_decayed_weights", rule, updates, {"params": params})[0], _next(state)

    whole = transformation(lambda params: _counting(_decay_state, weight_decay), update)
    return whole if mask is None else masked(whole, mask)


def at(name: str, value: ScalarOrSchedule, count: Any) -> Any:
    """A hyper-parameter at a count: itself, or what its schedule says.

    Raises:
      ValueError: a schedule that gives no scalar.
    """
    now = value(count) if callable(value) else value
    if jnp.shape(now) != ():
        raise ValueError(
            f"{name}: expected a schedule that gives a scalar, got shape "
            f"{list(jnp.shape(now))}; return one number for each count"
        )
    return now


def _counting(make: Callable[..., Any], value: ScalarOrSchedule) -> Any:
    return make(count=jnp.zeros((), jnp.int32)) if callable(value) else EmptyState()


def _next(state: Any) -> Any:
    return state._replace(count=increment(state.count)) if "count" in state._fields else state


def _count(state: Any) -> Any:
    return state.count if "count" in state._fields else None


def _decay_state(**fields: Any) -> Any:
    """optax's type of this state, which has no public name."""
    return type(optax.add_decayed_weights(lambda count: 0.0).init(()))(**fields)
