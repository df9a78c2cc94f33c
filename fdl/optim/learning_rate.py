"""The learning rate and weight decay, as transformations."""

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

from fdl.optim.checks import check_decays, check_rates
from fdl.optim.lifting import check_params, increment, need_params, per_leaf
from fdl.optim.masking import masked
from fdl.optim.protocol import transformation
from fdl.typing import Mask, ScalarOrSchedule


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule, *, flip_sign: bool = True
) -> GradientTransformationExtraArgs:
    """Multiplies updates by the learning rate and flips their sign: -learning_rate * update.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      flip_sign: False keeps the sign, for gradient ascent.

    Returns:
      A transformation; with a schedule, its state is `optax.ScaleByScheduleState(count)`.

    Raises:
      ValueError: the rate is negative, not finite or not a number; at update, the schedule returns
        an array that is not a scalar.

    Example:
      >>> halving = scale_by_learning_rate(lambda count: 0.5 ** count)
      >>> state = halving.init(jnp.array(0.0))
      >>> first, state = halving.update(jnp.array(1.0), state)
      >>> second, state = halving.update(jnp.array(1.0), state)
      >>> float(first), float(second)
      (-1.0, -0.5)
    """
    sign = -1 if flip_sign else 1
    check_rates("scale_by_learning_rate", learning_rate=learning_rate)

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
    """Weight decay: gradient + weight_decay * W.

    In a chain before `scale_by_adam` or a similar transformation, this is L2 regularization. After
    such a transformation, it is decoupled weight decay.

    Args:
      weight_decay: >= 0, or a schedule `count -> strength`, where count starts at 0. Unlike
        optax, fdl accepts no negative value, which would make weights grow without bound.
      mask: which leaves to decay; see `masked`. `"**/w"` excludes norms and biases.

    Returns:
      A transformation that needs params. Its state is the same as in `optax.add_decayed_weights`.

    Raises:
      ValueError: the strength is negative, not finite or not a number; at update, the schedule
        returns an array that is not a scalar.

    Example:
      >>> pull = add_decayed_weights(0.5)
      >>> pull.update(jnp.array(1.0), pull.init(jnp.array(4.0)), jnp.array(4.0))[0]
      Array(3., dtype=float32)

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, section 2. As in optax, nothing is
    computed if weight_decay is the number 0.
    """
    check_decays("add_decayed_weights", weight_decay=weight_decay)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        params = need_params("add_decayed_weights", params)
        if isinstance(weight_decay, int | float) and weight_decay == 0:
            return updates, state
        strength = at("weight_decay", weight_decay, _count(state))
        rule = lambda g, w: (g + strength * w,)  # noqa: E731
        return per_leaf("add_decayed_weights", rule, updates, {"params": params})[0], _next(state)

    decay = transformation(lambda params: _counting(_decay_state, weight_decay), update)
    return decay if mask is None else masked(decay, mask)


def at(name: str, value: ScalarOrSchedule, count: Any) -> Any:
    """The value of a hyper-parameter at a step: its schedule at `count`, or the number itself.

    Raises:
      ValueError: the schedule returns an array that is not a scalar.
    """
    now = value(count) if callable(value) else value
    if jnp.shape(now) != ():
        raise ValueError(
            f"{name}: expected a schedule that returns a scalar, got shape {list(jnp.shape(now))}; "
            "return one number for each count"
        )
    return now


def _counting(make: Callable[..., Any], value: ScalarOrSchedule) -> Any:
    """The first state: it has a count if `value` is a schedule, and is empty if it is a number."""
    return make(count=jnp.zeros((), jnp.int32)) if callable(value) else EmptyState()


def _next(state: Any) -> Any:
    return state._replace(count=increment(state.count)) if "count" in state._fields else state


def _count(state: Any) -> Any:
    return state.count if "count" in state._fields else None


def _decay_state(**fields: Any) -> Any:
    """The state of `optax.add_decayed_weights`, whose type has no public name."""
    return type(optax.add_decayed_weights(lambda count: 0.0).init(()))(**fields)
