"""Loss scaling, which keeps the gradients of a network in float16 from becoming 0."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs

from fdl.checks import check_number
from fdl.optim.checks import as_transformation, check_positive, check_whole
from fdl.optim.protocol import transformation
from fdl.optim.wrappers.non_finite import count_not_finite, step_if

# The smallest and the largest scale, both powers of two. With a smaller scale, a loss of 1 would
# become 0 in float16. With a larger scale, a large loss could overflow in float32.
LEAST, MOST = 2.0**-24, 2.0**64


class LossScaleState(NamedTuple):
    """The state of `dynamic_loss_scale`.

    Args:
      scale: float32 scalar > 0, the number by which the loss is multiplied.
      finite_steps: int32 scalar, the number of steps since the scale changed.
      inner_state: the state of the optimizer.
    """

    scale: jax.Array
    finite_steps: jax.Array
    inner_state: Any


def dynamic_loss_scale(
    inner: GradientTransformation,
    *,
    initial: float = 2.0**15,
    period: int = 2000,
    factor: float = 2.0,
) -> GradientTransformationExtraArgs:
    """Keeps a scale for the loss, so that small gradients do not become 0 in float16.

    Gradients below 3e-8 become 0 in float16. To prevent this, `train_step` multiplies the loss by
    the scale before the backward pass. This also multiplies all gradients, so `train_step` then
    divides them by the scale, in float32. The scale is adjusted in training: if a gradient is not
    finite, the step is skipped and the scale is divided by `factor`; after `period` finite
    gradients in a row, the scale is multiplied by `factor`.

    Args:
      inner: a transformation of fdl or optax. It gets gradients of the loss without the scale.
      initial: the scale at the first step, > 0.
      period: the number of finite gradients after which the scale grows, a whole number >= 1.
      factor: the ratio of two successive scales, > 1. With a power of two, scaling does not round.

    Returns:
      A transformation with state `LossScaleState`. The scale is applied by `fdl.fit`,
      `fdl.train_step`, `fdl.sweep` and `fdl.outcome`. In a loop of your own, multiply the loss by
      `loss_scale(state)`, and divide the gradients by it before the update.

    Raises:
      ValueError: an option is out of range; `inner` is not a transformation.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer, w = dynamic_loss_scale(sgd(0.1), initial=8.0), jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(jnp.inf), optimizer.init(w), w)
      >>> float(updates), float(loss_scale(state))
      (0.0, 4.0)

    Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv 1710.03740, section 3.2. It
    is not in optax.
    """
    who = "dynamic_loss_scale"
    inner = as_transformation(who, inner)
    check_positive(who, "2.0**15 is usual", initial=initial)
    check_whole(who, "2000 is usual", period=period)
    check_number(who, "factor", factor, "(1, inf)", "2 doubles and halves the scale")

    def init(params: Any) -> LossScaleState:
        scale = jnp.asarray(initial, jnp.float32)
        return LossScaleState(scale, jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LossScaleState]:
        finite = count_not_finite(updates) == 0

        def step() -> tuple[Any, Any]:
            return inner.update(updates, state.inner_state, params, **extra_args)

        new, inner_state = step_if(finite, step, state.inner_state)
        steps = state.finite_steps + 1
        grows = finite & (steps >= period)
        grown = jnp.where(grows, state.scale * factor, state.scale)
        scale = jnp.clip(jnp.where(finite, grown, state.scale / factor), LEAST, MOST)
        steps = jnp.where(finite & ~grows, steps, 0)
        return new, LossScaleState(scale.astype(jnp.float32), steps, inner_state)

    return transformation(init, update)


def loss_scale(state: Any) -> jax.Array | None:
    """The number by which the loss is multiplied before the backward pass.

    Args:
      state: the state of any optimizer of fdl or optax, chained and nested in any way.

    Returns:
      A float32 scalar; None if no part of the state is a `LossScaleState`.

    Example:
      >>> from fdl.optim import sgd
      >>> float(loss_scale(dynamic_loss_scale(sgd(0.1)).init(jnp.array(0.0))))
      32768.0
    """
    parts = jax.tree.leaves(state, is_leaf=_has_scale)
    return next((part.scale for part in parts if _has_scale(part)), None)


def _has_scale(part: Any) -> bool:
    return isinstance(part, LossScaleState)
