"""Schedule-Free optimizers: they average the weights instead of lowering the learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
)
from optax.contrib import ScheduleFreeState

from fdl.checks import check_number, named_in_errors
from fdl.ops.numerics import wide, wide_inside, widened
from fdl.optim.chaining import apply_updates, chain
from fdl.optim.checks import as_transformation, check_fractions, check_least, check_rates
from fdl.optim.learning_rate import add_decayed_weights, at, scale_by_learning_rate
from fdl.optim.lifting import increment, need_params, per_leaf
from fdl.optim.optimizers.adagrad_family import scale_by_rms
from fdl.optim.optimizers.sgd_family import sgd
from fdl.optim.protocol import transformation
from fdl.optim.schedules.warmup import warmup_constant_schedule
from fdl.typing import ScalarOrSchedule


@named_in_errors
def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
    *,
    look_ahead: bool = True,
) -> GradientTransformationExtraArgs:
    """Schedule-Free: averages the weights instead of lowering the learning rate by a schedule.

    The parameters in training are y. The base optimizer gets the gradient at y and moves z. The
    parameters to test are x, the weighted average of all z so far:

        z = z + update of the base optimizer
        c = w_t / (w_1 + ... + w_t),    w_t = (largest rate so far)^weight_lr_power
        x = (1 - c) x + c z,     y = b1 x + (1 - b1) z

    Args:
      base_optimizer: a transformation of fdl or optax, without momentum, whose learning
        rate is `learning_rate`.
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0, such as a
        warm-up.
      b1: in (0, 1], the share of x in y. With 1, y is x.
      weight_lr_power: >= 0, the power of the learning rate in w_t.
      state_dtype: dtype of z; by default the parameters' dtype, at least float32.
      look_ahead: True computes w_t from the learning rate of the next step, as optax does. False
        computes w_t from the rate of the current step, as the paper does. With a constant rate, w_t
        is the same in both cases.

    Returns:
      A transformation with state `optax.contrib.ScheduleFreeState`. To test, use the parameters
      that `schedule_free_eval_params` or `eval_params` returns.

    Raises:
      ValueError: the rate or weight_lr_power is negative or not finite; b1 is outside (0, 1].

    Example:
      >>> optimizer, y = schedule_free(sgd(0.5), 0.5), jnp.array(4.0)
      >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(y), y)
      >>> round(float(schedule_free_eval_params(state, y + updates)), 3)
      3.0

    Source: Defazio et al. 2024, arXiv 2405.15682, equations 3 to 5 and algorithm 1.
    """
    who = "schedule_free"
    check_number(who, "b1", b1, "(0, 1]", "0.9 is usual")
    check_rates(who, learning_rate=learning_rate)
    check_least(who, weight_lr_power=weight_lr_power)
    base = as_transformation(who, base_optimizer)

    def init(params: Any) -> ScheduleFreeState:
        return _first_state(params, b1, state_dtype)._replace(
            base_optimizer_state=base.init(params)
        )

    @wide_inside
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ScheduleFreeState]:
        params = need_params(who, params)
        # step_count starts at 1, but the count of the base optimizer starts at 0.
        count = state.step_count if look_ahead else state.step_count - 1
        rate = at("learning_rate", learning_rate, count)
        c, max_lr, weight_sum = _averaging(state, rate, weight_lr_power)
        steps, base_state = base.update(updates, state.base_optimizer_state, params, **extra_args)
        new_z = apply_updates(state.z, steps)

        def rule(u: Any, y: Any, z: Any, new_z: Any) -> Any:
            x = (y - (1.0 - b1) * z) / b1
            x = (1.0 - c) * x + c * new_z
            return (b1 * x + (1.0 - b1) * new_z - y,)

        others = {"params": params, "state.z": state.z, "new z": new_z}
        (updates,) = per_leaf(who, rule, steps, others)
        new = state._replace(
            weight_sum=weight_sum,
            step_count=increment(state.step_count),
            max_lr=max_lr,
            base_optimizer_state=base_state,
            z=new_z,
        )
        return updates, new

    return transformation(init, update)


def schedule_free_eval_params(state: ScheduleFreeState, params: Any) -> Any:
    """x, the parameters to test and to save: (y - (1 - b1) z) / b1.

    Args:
      state: the state of `schedule_free`, from fdl or from optax.
      params: y, the parameters in training.

    Returns:
      x, with the structure, shapes and dtypes of params.

    Raises:
      ValueError: `state` is not a ScheduleFreeState.

    Example: see `schedule_free`.
    """
    if not hasattr(state, "z") or not hasattr(state, "b1"):
        raise ValueError(
            f"schedule_free_eval_params: expected a ScheduleFreeState, got {type(state).__name__}; "
            "if schedule_free is inside another transformation, pass the part of the state that is "
            "a ScheduleFreeState"
        )

    def rule(y: Any, z: Any) -> Any:
        return ((y - (1.0 - state.b1) * z) / state.b1,)

    return per_leaf("schedule_free_eval_params", rule, params, {"state.z": state.z})[0]


@named_in_errors
def schedule_free_sgd(
    learning_rate: float = 1.0,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float | None = None,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
    *,
    look_ahead: bool = True,
) -> GradientTransformationExtraArgs:
    """Schedule-Free SGD: `schedule_free` around `sgd`.

    Args:
      learning_rate: >= 0, the learning rate after the warm-up.
      warmup_steps: T >= 0, the number of steps of a linear warm-up. None means no warm-up.
      b1: in (0, 1], the share of x in y.
      weight_decay: >= 0. weight_decay * y is added to the gradient. None means no decay.
      weight_lr_power: >= 0, the power of the learning rate in the weights w_t of the average.
      state_dtype: dtype of z; by default the parameters' dtype, at least float32.
      look_ahead: True starts the warm-up at 0 and computes w_t from the learning rate of the next
        step, as optax does. False starts the warm-up at learning_rate / T and computes w_t from the
        rate of the current step, as the paper does.

    Returns:
      A transformation with state `optax.contrib.ScheduleFreeState`; see `schedule_free`.

    Raises:
      ValueError: the rate, warmup_steps, weight_decay or weight_lr_power is negative or not finite;
        b1 is outside (0, 1].

    Example:
      >>> optimizer, y = schedule_free_sgd(0.5), jnp.array(4.0)
      >>> round(float(optimizer.update(jnp.array(2.0), optimizer.init(y), y)[0]), 3)
      -1.0

    Source: Defazio et al. 2024, arXiv 2405.15682, section 2.
    """
    check_rates("schedule_free_sgd", learning_rate=learning_rate)
    rate = _warmed_up(learning_rate, warmup_steps, 0 if look_ahead else 1)
    base = sgd(rate)
    if weight_decay is not None:
        base = chain(add_decayed_weights(weight_decay), base)
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype, look_ahead=look_ahead)


@named_in_errors
def schedule_free_adamw(
    learning_rate: float = 0.0025,
    warmup_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
    *,
    look_ahead: bool = True,
) -> GradientTransformationExtraArgs:
    """Schedule-Free AdamW: `schedule_free` around `adamw` without momentum.

    Args:
      learning_rate: >= 0, the learning rate after the warm-up.
      warmup_steps: T >= 0, the number of steps of a linear warm-up. None means no warm-up.
      b1: in (0, 1], the share of x in y.
      b2: in [0, 1), the share of the mean squared gradient that each step keeps.
      eps: >= 0, added outside the root.
      weight_decay: >= 0. weight_decay * y is added to the step, as in `adamw`.
      weight_lr_power: >= 0, the power of the learning rate in the weights w_t of the average.
      state_dtype: dtype of z; by default the parameters' dtype, at least float32.
      look_ahead: True starts the warm-up at 0 and computes w_t from the learning rate of the next
        step, as optax does. False starts the warm-up at learning_rate / T and computes w_t from the
        rate of the current step, as the paper does.

    Returns:
      A transformation with state `optax.contrib.ScheduleFreeState`; see `schedule_free`.

    Raises:
      ValueError: the rate, warmup_steps, eps, weight_decay or weight_lr_power is negative or not
        finite; b1 is outside (0, 1], or b2 is outside [0, 1).

    Example:
      >>> optimizer, y = schedule_free_adamw(0.5), jnp.array(4.0)
      >>> round(float(optimizer.update(jnp.array(7.0), optimizer.init(y), y)[0]), 3)
      -0.5

    Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1; as in optax, the bias correction is
    applied to the step and not to the weights of the average.
    """
    check_rates("schedule_free_adamw", learning_rate=learning_rate)
    check_fractions("schedule_free_adamw", b2=b2)
    rate = _warmed_up(learning_rate, warmup_steps, 0 if look_ahead else 1)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype, look_ahead=look_ahead)


def _first_state(params: Any, b1: Any, state_dtype: Any) -> ScheduleFreeState:
    """The first state, but without the state of the base optimizer."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    dtype = wide(min(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32)))
    return ScheduleFreeState(
        b1=jnp.asarray(b1, dtype),
        weight_sum=jnp.zeros((), dtype),
        step_count=jnp.ones((), jnp.int32),
        max_lr=jnp.zeros((), dtype),
        base_optimizer_state=(),
        z=jax.tree.map(lambda p: jnp.array(p, state_dtype or widened(p).dtype), params),
    )


def _averaging(state: Any, rate: Any, power: float) -> tuple[Any, Any, Any]:
    """(c, the largest rate so far, the sum of the weights so far)."""
    largest = jnp.maximum(state.max_lr, jnp.asarray(rate, state.max_lr.dtype))
    weight = largest**power
    total = state.weight_sum + weight
    # While the learning rate is 0, all weights w_t are 0, and c must be 0 instead of 0 / 0.
    c = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), jnp.zeros_like(total))
    return c, largest, total


def _warmed_up(peak: float, steps: int | None, first: int) -> ScalarOrSchedule:
    if steps is None:
        return peak
    warmup = warmup_constant_schedule(0.0, peak, steps)
    return warmup if not first else lambda count: warmup(count + first)
