"""The parameters to test and to keep, where an optimizer trains others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import LookaheadParams, MaskedNode
from optax.contrib import SAMState, ScheduleFreeState

from fdl import paths
from fdl.optim.wrappers.averaging import ParamsEmaState, averaged_params


def eval_params(state: Any, params: Any) -> Any:
    """The parameters to test and to keep, as the optimizer's state tells.

    Those of `params_ema` are the average, those of `schedule_free` are x, those of `lookahead` the
    slow ones, and those of `sam` in transparent mode are where it will come back to. Any other
    optimizer tests what it trains.

    Args:
      state: any optimizer's state, fdl's or optax's, chained and nested as you like.
      params: the parameters in training; they stand where the state says nothing of a leaf.

    Returns:
      As params, each leaf in its own dtype. A `params_ema` goes before the others.

    Example:
      >>> from fdl.optim import sgd, schedule_free
      >>> optimizer, y = schedule_free(sgd(0.5), 0.5), jnp.array(4.0)
      >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(y), y)
      >>> round(float(eval_params(state, y + updates)), 3)
      3.0

    Source: `optax.contrib.schedule_free_eval_params`, for one optimizer.
    """
    if isinstance(params, LookaheadParams):
        params = LookaheadParams(params.slow, params.slow)
    for part in _parts(state, SAMState):
        params = _where_known(params, part.cache, functools.partial(_start_of_sam, part))
    for part in _parts(state, ScheduleFreeState):
        params = _where_known(params, part.z, functools.partial(_x_of_schedule_free, part))
    for part in _parts(state, ParamsEmaState):
        params = averaged_params(part, params)
    return params


def has_eval_params(state: Any, params: Any) -> bool:
    """Whether `eval_params` can differ from `params`."""
    kinds = (SAMState, ScheduleFreeState, ParamsEmaState)
    return isinstance(params, LookaheadParams) or any(_parts(state, kind) for kind in kinds)


def _parts(state: Any, kind: Any) -> list[Any]:
    """All parts of a state that are of one kind, the outer ones first."""
    found = []
    for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind)):
        if isinstance(part, kind):
            found += [part, *_parts(tuple(part), kind)]
    return found


def _where_known(params: Any, known: Any, rule: Callable[[Any, Any], Any]) -> Any:
    """The parameters with `rule(p, leaf of known)` where `known` has a leaf."""
    leaves = paths.leaves(known)

    def tested(keys: Any, p: Any) -> Any:
        path = paths.path_of(keys)
        return rule(p, leaves[path]) if path in leaves else p

    masked = lambda part: isinstance(part, MaskedNode)  # noqa: E731
    return jax.tree_util.tree_map_with_path(tested, params, is_leaf=masked)


def _start_of_sam(state: SAMState, w: Any, start: Any) -> Any:
    return jnp.where(state.steps_since_sync == 0, w, start)


def _x_of_schedule_free(state: ScheduleFreeState, y: Any, z: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray((y - (1.0 - state.b1) * z) / state.b1, jnp.result_type(y))
