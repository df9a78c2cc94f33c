"""A line search: the step along a given direction, found by trying the loss.

Letters, as in the book: phi(a) is the loss at W + a u, a >= 0 the step, u the direction; phi'(a)
its slope, negative at 0. A bracket has a good step inside; of its ends, `low` has the smaller loss.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import (
    GradientTransformationExtraArgs,
    ScaleByZoomLinesearchState,
    ZoomLinesearchInfo,
)

from fdl.ops.numerics import wide, wide_inside
from fdl.optim.lifting import check_params, need_params, where
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import add_scaled, dot


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


class Point(NamedTuple):
    """A step a, phi(a) and phi'(a)."""

    step: Any
    value: Any
    slope: Any


class Rules(NamedTuple):
    """The numbers of a search, under the names of `scale_by_zoom_linesearch`, which explains."""

    max_linesearch_steps: int
    max_learning_rate: float | None
    tol: float
    increase_factor: float
    slope_rtol: float
    curv_rtol: float
    approx_dec_rtol: float | None
    stepsize_precision: float


class Bracket(NamedTuple):
    """Where a good step lies.

    Args:
      low: the end with the smaller loss.
      high: the other end.
      third: a point that was an end before, for the cubic.
      found: whether low and high are a bracket yet.
    """

    low: Point
    high: Point
    third: Point
    found: Any


class Search(NamedTuple):
    """Where a search stands.

    Args:
      count: evaluations so far.
      last: the last point; `grad` the gradient there.
      bracket: see there.
      safe: a point that is low enough, if not flat enough; `safe_grad` the gradient there. At first
        the start.
      decrease_error: by how much the last point is too high.
      curvature_error: by how much it is too steep.
      done: the last point is good.
      failed: nothing better is to be expected.
    """

    count: Any
    last: Point
    grad: Any
    bracket: Bracket
    safe: Point
    safe_grad: Any
    decrease_error: Any
    curvature_error: Any
    done: Any
    failed: Any


def search(
    along: Callable[[Any], tuple[Point, Any]], start: Point, grad: Any, guess: Any, rules: Rules
) -> Search:
    """The end of a line search; its `last` is the step to take.

    Args:
      along: a -> (the point at a, the gradient of the loss there).
      start: the point at a = 0.
      grad: the gradient there.
      guess: the first step to try.
      rules: when a point is good, and when to give up.

    Source: Nocedal and Wright 1999, algorithms 3.5 and 3.6.
    """
    no, unknown = jnp.array(False), jnp.full_like(start.value, jnp.inf)
    first = Search(
        jnp.zeros((), int),
        start,
        grad,
        Bracket(start, start, start, no),
        start,
        grad,
        unknown,
        unknown,
        no,
        no,
    )

    def one_more(now: Search) -> Search:
        step = jax.lax.cond(
            now.bracket.found,
            lambda: between(now.bracket),
            lambda: _longer(now, guess, rules),
        )
        return _judge(now, start, *along(step), rules)

    end = jax.lax.while_loop(lambda now: ~(now.done | now.failed), one_more, first)
    # A step that is only low enough is better than none, and none better than no number.
    retreat = end.failed & ((end.safe.step > 0) | jnp.isinf(end.decrease_error))
    last, grad = where(retreat, (end.safe, end.safe_grad), (end.last, end.grad))
    return end._replace(last=last, grad=grad)


def between(bracket: Bracket) -> jax.Array:
    """A step inside of a bracket: the minimum of a cubic, or of a parabola, or the middle.

    Source: Nocedal and Wright 1999, section 3.5, interpolation.
    """
    low, high, third, _ = bracket
    ends = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)
    length = jnp.abs(high.step - low.step)

    def inside(step: Any, margin: float) -> Any:
        return (step > ends[0] + margin * length) & (step < ends[1] - margin * length)

    cubic, parabola = _cubic(low, high, third), _parabola(low, high)
    step = jnp.where(inside(parabola, 0.1), parabola, (low.step + high.step) / 2.0)
    return jnp.where(inside(cubic, 0.2), cubic, step)


def _longer(now: Search, guess: Any, rules: Rules) -> jax.Array:
    step = jnp.where(now.count == 0, guess, rules.increase_factor * now.last.step)
    return step if rules.max_learning_rate is None else jnp.minimum(step, rules.max_learning_rate)


def _judge(now: Search, start: Point, new: Point, grad: Any, rules: Rules) -> Search:
    """What a new point says: is it good, is it safe, and where is the bracket now?"""
    too_high = _decrease_error(start, new, rules)
    too_steep = _positive(jnp.abs(new.slope) - rules.curv_rtol * jnp.abs(start.slope))
    good = jnp.maximum(too_high, too_steep) <= rules.tol

    narrowing = now.bracket.found
    better = (too_high <= rules.tol) & (~narrowing | (new.value < now.safe.value))
    safe, safe_grad = where(better, (new, grad), (now.safe, now.safe_grad))
    grown = _grown(now, new, too_high, good)
    bracket = where(narrowing, _narrowed(now.bracket, new, too_high), grown)

    done, short = good, jnp.abs(now.bracket.high.step - now.bracket.low.step)
    if rules.max_learning_rate is not None:
        # Every longer step would be refused, and this one is at least low enough.
        done = good | (~narrowing & (new.step >= rules.max_learning_rate) & ~grown.found)
    hopeless = narrowing & (short <= rules.stepsize_precision) & (safe.step > 0)
    failed = ((now.count + 1 >= rules.max_linesearch_steps) | hopeless) & ~done
    return Search(
        now.count + 1, new, grad, bracket, safe, safe_grad, too_high, too_steep, done, failed
    )


def _grown(now: Search, new: Point, too_high: Any, good: Any) -> Bracket:
    """Algorithm 3.5: a bracket, once a step is too high or the slope has turned."""
    above = (too_high > 0) | ((new.value >= now.last.value) & (now.count > 0))
    turned = (new.slope >= 0) & ~above
    low, high = where(turned, (new, now.last), (now.last, new))
    return Bracket(low, high, low, above | turned | good)


def _narrowed(bracket: Bracket, new: Point, too_high: Any) -> Bracket:
    """Algorithm 3.6: the new point takes the place of an end."""
    low, high, _, found = bracket
    above = (too_high > 0) | (new.value >= low.value)
    beyond = (new.slope * (high.step - low.step) >= 0) & ~above
    third = where(above | beyond, high, low)
    high = where(above, new, where(beyond, low, high))
    return Bracket(where(above, low, new), high, third, found)


def _decrease_error(start: Point, new: Point, rules: Rules) -> jax.Array:
    """By how much phi(a) is too high: equation 3.7a, or Hager and Zhang's 23 near a minimum."""
    c = rules.slope_rtol
    error = new.value - start.value - c * new.step * start.slope
    if rules.approx_dec_rtol is not None:
        flat = new.slope - (2 * c - 1.0) * start.slope
        near = new.value - start.value - rules.approx_dec_rtol * jnp.abs(start.value)
        error = jnp.minimum(jnp.maximum(flat, near), error)
    return _positive(error)


def _positive(error: jax.Array) -> jax.Array:
    """The violation: 0 if there is none, infinite if it is no number."""
    error = jnp.maximum(error, 0.0)
    return jnp.where(jnp.isnan(error), jnp.full_like(error, jnp.inf), error)


def _cubic(a: Point, b: Point, c: Point) -> jax.Array:
    """The minimum of the cubic through three points with the slope of the first; NaN if none."""
    to_b, to_c = b.step - a.step, c.step - a.step
    over_b = b.value - a.value - a.slope * to_b
    over_c = c.value - a.value - a.slope * to_c
    scale = (to_b * to_c) ** 2 * (to_b - to_c)
    third = (to_c**2 * over_b - to_b**2 * over_c) / scale
    second = (to_b**3 * over_c - to_c**3 * over_b) / scale
    root = jnp.sqrt(second * second - 3.0 * third * a.slope)
    return a.step + (-second + root) / (3.0 * third)


def _parabola(a: Point, b: Point) -> jax.Array:
    """The minimum of the parabola through two points with the slope of the first."""
    apart = b.step - a.step
    second = (b.value - a.value - a.slope * apart) / apart**2
    return a.step - a.slope / (2.0 * second)
