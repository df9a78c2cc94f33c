"""How far to go: the step of a given direction, found by trying the loss along it."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformationExtraArgs,
    ScaleByZoomLinesearchState,
    ZoomLinesearchInfo,
)

from fdl.ops.numerics import wide
from fdl.optim.leafwise import check_params, need_params
from fdl.optim.protocol import transformation
from fdl.optim.vector import add_scaled, dot
from fdl.optim.width import wide_inside
from fdl.optim.zoom import Point, Rules, search


def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: float | None = None,
    tol: float = 0.0,
    increase_factor: float = 2.0,
    slope_rtol: float = 1e-4,
    curv_rtol: float = 0.9,
    approx_dec_rtol: float | None = 1e-6,
    stepsize_precision: float = 1e-5,
    initial_guess_strategy: str = "keep",
) -> GradientTransformationExtraArgs:
    """a * u, with a step a that lowers the loss and flattens its slope (the Wolfe conditions):

        phi(a) <= phi(0) + slope_rtol * a * phi'(0)
        |phi'(a)| <= curv_rtol * |phi'(0)|

    First a grows until it has passed a good step, then the bracket shrinks around one.

    Args:
      max_linesearch_steps: evaluations of the loss, >= 1. If they do not suffice, the best step
        that satisfies the first condition is taken, else the last one.
      max_learning_rate: the largest a; None for none.
      tol: by how much a condition may fail.
      increase_factor: > 1, by which a grows.
      slope_rtol: in (0, 1).
      curv_rtol: in (slope_rtol, 1).
      approx_dec_rtol: where phi(a) <= phi(0) + approx_dec_rtol * |phi(0)|, the first condition may
        be phi'(a) <= (2 slope_rtol - 1) phi'(0) instead: near a minimum, differences of losses are
        rounding. None for the first condition alone.
      stepsize_precision: a bracket shorter than this is given up, if there is a safe step.
      initial_guess_strategy: the first a: "keep" the last search's, or "one".

    Returns:
      A transformation whose update wants the `value` of the loss, its `grad`, and `value_fn=params
      -> loss`; further arguments that value_fn names are handed to it. Its state is
      `optax.ScaleByZoomLinesearchState`, with the loss and gradient at the end of the step.

    Raises:
      ValueError: an unknown strategy; no steps; an update without value, grad or value_fn.

    Example:
      >>> loss, w, u = lambda w: (w - 3.0) ** 2, jnp.array(0.0), jnp.array(1.0)
      >>> search = scale_by_zoom_linesearch(20)
      >>> state, (value, g) = search.init(w), jax.value_and_grad(loss)(w)
      >>> float(search.update(u, state, w, value=value, grad=g, value_fn=loss)[0])
      1.0

    Source: Nocedal and Wright 1999, "Numerical optimization", algorithms 3.5 and 3.6; Hager and
    Zhang 2006, "Algorithm 851", equations 23 and 26. The same in optax, which can also print:
    `optax.scale_by_zoom_linesearch(verbose=True)` takes this one's place.
    """
    who = "scale_by_zoom_linesearch"
    _check_search(who, initial_guess_strategy, max_linesearch_steps)
    rules = Rules(
        max_linesearch_steps,
        max_learning_rate,
        tol,
        increase_factor,
        slope_rtol,
        curv_rtol,
        approx_dec_rtol,
        stepsize_precision,
    )

    @wide_inside
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ScaleByZoomLinesearchState]:
        params = need_params(who, params)
        value, grad, value_fn, inputs = _arguments(who, **extra_args)
        slope = dot(updates, grad)
        dtype = jnp.promote_types(jnp.result_type(value), slope.dtype)

        def along(a: Any) -> tuple[Point, Any]:
            value, grad = jax.value_and_grad(value_fn)(add_scaled(params, a, updates), **inputs)
            slope = dot(jax.tree.map(jnp.conj, grad), updates)
            return Point(a, value.astype(dtype), slope.astype(dtype)), grad

        start = Point(*(jnp.asarray(x, dtype) for x in (0.0, value, slope)))
        guess = 1.0 if initial_guess_strategy == "one" else state.learning_rate
        found = search(along, start, grad, jnp.asarray(guess, dtype), rules)
        info = ZoomLinesearchInfo(found.count, found.decrease_error, found.curvature_error)
        new = ScaleByZoomLinesearchState(found.last.step, found.last.value, found.grad, info)
        scaled = jax.tree.map(lambda u: found.last.step.astype(u.dtype) * u, updates)
        return scaled, jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)

    return transformation(lambda params: _first_state(who, params), update)


def _check_search(who: str, initial_guess_strategy: str, max_linesearch_steps: int) -> None:
    if initial_guess_strategy not in ("one", "keep"):
        raise ValueError(
            f"{who}: expected initial_guess_strategy 'one' or 'keep', got "
            f"{initial_guess_strategy!r}; take 'keep' to begin at the last search's step"
        )
    if max_linesearch_steps < 1:
        raise ValueError(
            f"{who}: expected max_linesearch_steps >= 1, got {max_linesearch_steps}; 20 is usual"
        )


def _first_state(who: str, params: Any) -> ScaleByZoomLinesearchState:
    check_params(who, params)
    leaves = jax.tree.leaves(params)
    dtype = jnp.real(jnp.zeros((), leaves[0].dtype)).dtype if leaves else jnp.dtype(jnp.float32)
    unknown = jnp.full((), jnp.inf, float)
    return ScaleByZoomLinesearchState(
        learning_rate=jnp.ones((), wide(dtype)),
        value=jnp.full((), jnp.inf, dtype),
        grad=jax.tree.map(jnp.zeros_like, params),
        info=ZoomLinesearchInfo(jnp.zeros((), int), unknown, unknown),
    )


def _arguments(
    who: str, value: Any = None, grad: Any = None, value_fn: Any = None, **extra_args: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The loss and its gradient at the parameters, the loss, and what else the loss wants."""
    for name, given in (("value", value), ("grad", grad), ("value_fn", value_fn)):
        if given is None:
            raise ValueError(
                f"{who}: expected value, grad and value_fn, got no {name}; call "
                "update(updates, state, params, value=..., grad=..., value_fn=params -> loss)"
            )
    wanted = inspect.signature(value_fn).parameters
    return value, grad, value_fn, {name: x for name, x in extra_args.items() if name in wanted}
