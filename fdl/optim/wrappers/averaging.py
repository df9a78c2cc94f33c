"""Exponential moving averages: of the updates, and of the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import EmaState, GradientTransformationExtraArgs, MaskedNode

from fdl import paths
from fdl.ops.numerics import cast_like
from fdl.optim.chaining import apply_updates
from fdl.optim.checks import check_fractions, check_momenta
from fdl.optim.lifting import check_params, filled, leafwise, need_params, per_leaf
from fdl.optim.moments import corrected
from fdl.optim.protocol import transformation


def ema(
    decay: Any, debias: bool = True, accumulator_dtype: Any = None
) -> GradientTransformationExtraArgs:
    """The moving average of the updates: m = decay m + (1 - decay) g.

    Args:
      decay: in (-1, 1).
      debias: give m / (1 - decay^t) instead of m, which began at 0.
      accumulator_dtype: of m; by default the parameters', float32 at least.

    Returns:
      A transformation with state `optax.EmaState(count, ema)`.

    Raises:
      ValueError: decay outside (-1, 1); gradients of another tree than the state's.

    Example:
      >>> transform = ema(0.5, debias=False)
      >>> transform.update(jnp.array(1.0), transform.init(jnp.array(0.0)))[0]
      Array(0.5, dtype=float32)

    Source: `optax.ema`; Kingma and Ba 2015, arXiv 1412.6980, section 3, for the correction.
    """
    check_momenta("ema", decay=decay)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        correction = 1 - decay**t

        def rule(g: Any, m: Any) -> Any:
            m = (1 - decay) * g + decay * m
            return corrected(m, correction) if debias else m, m

        return rule

    return leafwise(
        "ema", at_step, EmaState, {"ema": filled(dtype=accumulator_dtype)}, counted=True
    )


class ParamsEmaState(NamedTuple):
    """The average so far and the weight that it stands for, which begins at 0 and goes to 1."""

    weight: Any
    ema: Any


def params_ema(decay: Any) -> GradientTransformationExtraArgs:
    """The moving average of the parameters, kept beside them: the updates pass unchanged.

        A = decay A + (1 - decay) (W + update)

    It goes last in a chain, where the updates are what is added to the parameters. Read the
    average with `averaged_params`.

    Args:
      decay: in [0, 1); 0.999 averages over about the last 1000 steps.

    Returns:
      A transformation that needs params, with state `ParamsEmaState`, in float32 or better.

    Raises:
      ValueError: decay outside [0, 1); integer parameters.

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer, w = chain(sgd(1.0), params_ema(0.5)), jnp.array(4.0)
      >>> state = optimizer.init(w)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.array(1.0), state, w)
      ...     w = w + updates
      >>> float(w), round(float(averaged_params(state, w)), 3)
      (2.0, 2.333)

    Source: Polyak and Juditsky 1992 averaged uniformly; the exponential form is of Kingma and Ba
    2015, arXiv 1412.6980, section 7.2, whose bias correction the weight is. optax has none.
    """
    check_fractions("params_ema", decay=decay)

    def init(params: Any) -> ParamsEmaState:
        check_params("params_ema", params)
        return ParamsEmaState(jnp.zeros((), jnp.result_type(float)), jax.tree.map(filled(), params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ParamsEmaState]:
        # As it will be rounded, if a chain goes on in float32 with half of it.
        moved = apply_updates(need_params("params_ema", params), cast_like(updates, params))

        # Of the difference, so that parameters which rest leave the average at rest to the bit.
        def rule(u: Any, w: Any, average: Any) -> Any:
            return u, average + (1 - decay) * (w - average)

        others = {"params": moved, "state.ema": state.ema}
        updates, average = per_leaf("params_ema", rule, updates, others, kept=1)
        weight = state.weight + (1 - decay) * (1 - state.weight)
        return updates, ParamsEmaState(jnp.asarray(weight, state.weight.dtype), average)

    return transformation(init, update)


def averaged_params(state: Any, params: Any) -> Any:
    """The average of `params_ema`, without its bias, for tests and for keeping.

    Args:
      state: any optimizer's state that holds one, however deep.
      params: the parameters in training; they stand where there is no average, because the leaf is
        left out by a mask, or no step has been taken.

    Returns:
      As params, each leaf in its own dtype.

    Raises:
      ValueError: a state without an average, or with two of one leaf.

    Example: see `params_ema`.
    """

    def is_average(part: Any) -> bool:
        return isinstance(part, ParamsEmaState)

    found = [part for part in jax.tree.leaves(state, is_leaf=is_average) if is_average(part)]
    if not found:
        raise ValueError(
            "averaged_params: expected a state that holds an average, got none; "
            "put params_ema last in the chain"
        )
    read: dict[str, Any] = {}
    for each in found:
        for path, average in paths.leaves(each.ema).items():
            if path in read:
                raise ValueError(
                    f"averaged_params: expected one average of {path!r}, got two; "
                    "pass the part of the state that holds one of them"
                )
            read[path] = each.weight, average

    def one(keys: Any, p: Any) -> Any:
        path = paths.path_of(keys)
        if path not in read:
            return p
        weight, average = read[path]
        unbiased = average / jnp.where(weight > 0, weight, 1).astype(average.dtype)
        return jnp.where(weight > 0, unbiased.astype(jnp.result_type(p)), p)

    masked = lambda part: isinstance(part, MaskedNode)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, params, is_leaf=masked)
