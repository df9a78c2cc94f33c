"""The parameters to test and to save, for optimizers whose parameters in training are different."""

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
    """The parameters to test and to save, read from the state of the optimizer.

    They depend on the optimizer:

    - for `params_ema`: the average of the parameters
    - for `schedule_free`: the average x
    - for `lookahead`: the slow weights
    - for `sam` in transparent mode: W, the point from which it climbs
    - for all other optimizers: `params`

    Args:
      state: the state of any optimizer of fdl or optax, chained and nested in any way.
      params: the parameters in training. A leaf without a counterpart in the state is returned
        unchanged.

    Returns:
      The parameters to test, with the structure, shapes and dtypes of params. If the optimizer
      combines `params_ema` with one of the other three, the average of `params_ema` is returned.

    Example:
      >>> from fdl.optim import sgd, schedule_free
      >>> optimizer, y = schedule_free(sgd(0.5), 0.5), jnp.array(4.0)
      >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(y), y)
      >>> round(float(eval_params(state, y + updates)), 3)
      3.0

    Source: `optax.contrib.schedule_free_eval_params`, which only works for `schedule_free`.
    """
    if isinstance(params, LookaheadParams):
        params = LookaheadParams(params.slow, params.slow)
    for part in _parts(state, SAMState):
        params = _replaced(params, part.cache, functools.partial(_sam_start, part))
    for part in _parts(state, ScheduleFreeState):
        params = _replaced(params, part.z, functools.partial(_schedule_free_x, part))
    for part in _parts(state, ParamsEmaState):
        params = averaged_params(part, params)
    return params


def has_eval_params(state: Any, params: Any) -> bool:
    """True if `eval_params` can differ from `params`."""
    kinds = (SAMState, ScheduleFreeState, ParamsEmaState)
    return isinstance(params, LookaheadParams) or any(_parts(state, kind) for kind in kinds)


def _parts(state: Any, kind: Any) -> list[Any]:
    """All parts of a state that are instances of `kind`. Outer parts come before inner ones."""
    found = []
    for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind)):
        if isinstance(part, kind):
            found += [part, *_parts(tuple(part), kind)]
    return found


def _replaced(params: Any, stored: Any, rule: Callable[[Any, Any], Any]) -> Any:
    """Where `stored` has a leaf for a parameter p, replaces p by `rule(p, leaf of stored)`."""
    leaves = paths.leaves(stored)

    def replaced(keys: Any, p: Any) -> Any:
        path = paths.path_of(keys)
        return rule(p, leaves[path]) if path in leaves else p

    masked = lambda part: isinstance(part, MaskedNode)  # noqa: E731
    return jax.tree_util.tree_map_with_path(replaced, params, is_leaf=masked)


def _sam_start(state: SAMState, w: Any, start: Any) -> Any:
    return jnp.where(state.steps_since_sync == 0, w, start)


def _schedule_free_x(state: ScheduleFreeState, y: Any, z: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray((y - (1.0 - state.b1) * z) / state.b1, jnp.result_type(y))
