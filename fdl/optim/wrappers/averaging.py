"""Exponential moving averages of updates and of parameters."""

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
    """An exponential moving average of the updates: m = decay m + (1 - decay) g.

    Args:
      decay: in (-1, 1), the share of m that each step keeps.
      debias: True returns m / (1 - decay^t), which corrects for the start at 0. t is the step and
        starts at 1. False returns m.
      accumulator_dtype: dtype of m; by default the parameters' dtype, at least float32.

    Returns:
      A transformation with state `optax.EmaState(count, ema)`.

    Raises:
      ValueError: decay is outside (-1, 1); at update, the updates and the state have different
        structures.

    Example:
      >>> transform = ema(0.5, debias=False)
      >>> transform.update(jnp.array(1.0), transform.init(jnp.array(0.0)))[0]
      Array(0.5, dtype=float32)

    Source: `optax.ema`; Kingma and Ba 2015, arXiv 1412.6980, section 3, for the correction.
    """
    check_momenta("ema", decay=decay)

    def at_step(t: jax.Array) -> Callable[..., Any]:
        total_weight = 1 - decay**t

        def rule(g: Any, m: Any) -> Any:
            m = (1 - decay) * g + decay * m
            return corrected(m, total_weight) if debias else m, m

        return rule

    return leafwise(
        "ema", at_step, EmaState, {"ema": filled(dtype=accumulator_dtype)}, counted=True
    )


class ParamsEmaState(NamedTuple):
    """`ema` is the average so far, and `weight` is the sum of its weights, which grows to 1."""

    weight: Any
    ema: Any


def params_ema(decay: Any) -> GradientTransformationExtraArgs:
    """Keeps an exponential moving average A of the parameters W. The updates pass unchanged.

        A = decay A + (1 - decay) (W + update)

    Put it last in a chain, because it needs the updates that are added to the parameters. Read the
    average with `averaged_params` or `eval_params`.

    Args:
      decay: in [0, 1); 0.999 averages over about the last 1000 steps.

    Returns:
      A transformation that needs params. Its state is a `ParamsEmaState` in float32 or wider.

    Raises:
      ValueError: decay is outside [0, 1); at init, a parameter has an integer dtype.

    Example:
      >>> from fdl.optim import chain, sgd
      >>> optimizer, w = chain(sgd(1.0), params_ema(0.5)), jnp.array(4.0)
      >>> state = optimizer.init(w)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.array(1.0), state, w)
      ...     w = w + updates
      >>> float(w), round(float(averaged_params(state, w)), 3)
      (2.0, 2.333)

    Source: Kingma and Ba 2015, arXiv 1412.6980, section 7.2, with the bias correction of this
    paper; Polyak and Juditsky 1992 for a uniform average. It is not in optax.
    """
    check_fractions("params_ema", decay=decay)

    def init(params: Any) -> ParamsEmaState:
        check_params("params_ema", params)
        return ParamsEmaState(jnp.zeros((), jnp.result_type(float)), jax.tree.map(filled(), params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ParamsEmaState]:
        # Inside a chain, half-precision updates are in float32. The end of the chain rounds them,
        # so they are rounded here too.
        moved = apply_updates(need_params("params_ema", params), cast_like(updates, params))

        # In this form, an average that equals W stays equal to W, bit for bit.
        def rule(u: Any, w: Any, average: Any) -> Any:
            return u, average + (1 - decay) * (w - average)

        others = {"params": moved, "state.ema": state.ema}
        updates, average = per_leaf("params_ema", rule, updates, others, kept=1)
        weight = state.weight + (1 - decay) * (1 - state.weight)
        return updates, ParamsEmaState(jnp.asarray(weight, state.weight.dtype), average)

    return transformation(init, update)


def averaged_params(state: Any, params: Any) -> Any:
    """The bias-corrected average of `params_ema`: the parameters to test and to save.

    Args:
      state: the state of an optimizer that contains `params_ema`, at any depth.
      params: the parameters in training. Where a leaf has no average, because it is outside a mask
        or because no step has been taken, the leaf of params is returned.

    Returns:
      The average, with the structure, shapes and dtypes of params.

    Raises:
      ValueError: the state contains no average, or it contains two averages of the same leaf.

    Example: see `params_ema`.
    """

    def is_average(part: Any) -> bool:
        return isinstance(part, ParamsEmaState)

    found = [part for part in jax.tree.leaves(state, is_leaf=is_average) if is_average(part)]
    if not found:
        raise ValueError(
            "averaged_params: expected a state with an average, got a state without one; put "
            "params_ema last in the chain"
        )
    averages: dict[str, Any] = {}
    for part in found:
        for path, average in paths.leaves(part.ema).items():
            if path in averages:
                raise ValueError(
                    f"averaged_params: expected one average of {path!r}, got two; pass the part of "
                    "the state that contains only one of them"
                )
            averages[path] = part.weight, average

    def one(keys: Any, p: Any) -> Any:
        path = paths.path_of(keys)
        if path not in averages:
            return p
        weight, average = averages[path]
        unbiased = average / jnp.where(weight > 0, weight, 1).astype(average.dtype)
        return jnp.where(weight > 0, unbiased.astype(jnp.result_type(p)), p)

    masked = lambda part: isinstance(part, MaskedNode)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, params, is_leaf=masked)
