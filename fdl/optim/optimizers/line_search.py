"""A line search: finds the step along a direction by evaluating the loss.

In the formulas, W is the parameters, u is the direction, a >= 0 is the step, phi(a) is the loss at
W + a u, and phi'(a) is the slope of phi, which is negative at a = 0. A step is good if it satisfies
the two conditions of `scale_by_zoom_linesearch`. A bracket is a pair of steps with a good step
between them.
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

from fdl.checks import OptionError, check_number
from fdl.ops.numerics import wide, wide_inside
from fdl.optim.checks import check_whole
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
    """Turns the direction u into a * u, where the step a satisfies the Wolfe conditions:

        phi(a) <= phi(0) + slope_rtol * a * phi'(0)     (smaller loss)
        |phi'(a)| <= curv_rtol * |phi'(0)|              (flatter slope)

    phi(a) is the loss at params + a * u. A step is good if it satisfies both conditions. First, the
    step a grows until there is a bracket: two steps with a good step between them. Then the search
    tries steps inside the bracket and shrinks it, until one of the steps is good.

    Args:
      max_linesearch_steps: >= 1, the largest number of evaluations of the loss. If the search ends
        without a good step, it takes a step that satisfies the first condition: the last one from
        the growth, or the best one inside the bracket if its loss is smaller. If there is no such
        step, it takes the last step, or the step 0 if the loss there is infinite or NaN, or the
        slope NaN.
      max_learning_rate: the largest a. If it satisfies the first condition, and the loss is still
        falling there, the search ends with it. None means no limit.
      tol: by how much a condition may be violated.
      increase_factor: in (1, inf), the factor by which a grows.
      slope_rtol: in [0, 1]; see the first condition.
      curv_rtol: in [0, inf], usually in (slope_rtol, 1); see the second condition. With infinity,
        the second condition holds unless phi'(0) is 0.
      approx_dec_rtol: near a minimum, differences of losses are mostly rounding errors. So the
        first condition also counts as satisfied if phi(a) <= phi(0) + approx_dec_rtol * |phi(0)|
        and phi'(a) <= (2 slope_rtol - 1) phi'(0). None means that only the first condition itself
        counts.
      stepsize_precision: the search ends if the bracket is shorter than this and a step satisfies
        the first condition.
      initial_guess_strategy: the first a that is tried. "keep" means the step of the last search,
        "one" means 1.

    Returns:
      A transformation. Its `update` needs three extra arguments: `value`, the loss; `grad`, the
      gradient of the loss; and `value_fn`, a function `params -> loss`. If value_fn has more
      arguments, the extra arguments of the same names are passed to it. The state is an
      `optax.ScaleByZoomLinesearchState`, which holds the loss and the gradient after the step.

    Raises:
      ValueError: initial_guess_strategy is unknown; a number is out of range; at update, value,
        grad or value_fn is missing.

    Example:
      >>> loss, w, u = lambda w: (w - 3.0) ** 2, jnp.array(0.0), jnp.array(1.0)
      >>> search = scale_by_zoom_linesearch(20)
      >>> state, (value, g) = search.init(w), jax.value_and_grad(loss)(w)
      >>> float(search.update(u, state, w, value=value, grad=g, value_fn=loss)[0])
      1.0

    Source: Nocedal and Wright 1999, "Numerical optimization", algorithms 3.5 and 3.6; Hager and
    Zhang 2006, "Algorithm 851", equations 23 and 26. Gives the same results as optax. To print a
    failed search, use `optax.scale_by_zoom_linesearch(verbose=True)` instead.
    """
    who = "scale_by_zoom_linesearch"
    if initial_guess_strategy not in ("one", "keep"):
        raise OptionError(
            who,
            f"expected initial_guess_strategy 'one' or 'keep', got {initial_guess_strategy!r}; "
            "with 'keep', the search starts at the last step; with 'one', it starts at 1",
        )
    check_whole(who, "20 is usual", max_linesearch_steps=max_linesearch_steps)
    check_number(who, "increase_factor", increase_factor, "(1, inf)", "2 is usual")
    check_number(who, "slope_rtol", slope_rtol, "[0, 1]", "1e-4 is usual")
    check_number(who, "curv_rtol", curv_rtol, "[0, inf]", "0.9 is usual")
    steps = (max_linesearch_steps, max_learning_rate, tol, increase_factor)
    rules = Rules(*steps, slope_rtol, curv_rtol, approx_dec_rtol, stepsize_precision)

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
    """(value, grad, value_fn, a dict of further arguments of value_fn).

    Raises:
      ValueError: value, grad or value_fn is missing.
    """
    for name, argument in (("value", value), ("grad", grad), ("value_fn", value_fn)):
        if argument is None:
            raise ValueError(
                f"{who}: expected value, grad and value_fn, got no {name}; call "
                "update(updates, state, params, value=..., grad=..., value_fn=params -> loss)"
            )
    named = inspect.signature(value_fn).parameters
    return value, grad, value_fn, {name: x for name, x in extra_args.items() if name in named}


class Point(NamedTuple):
    """A step a, with its loss phi(a) and its slope phi'(a)."""

    step: Any
    value: Any
    slope: Any


class Rules(NamedTuple):
    """The options of a search; see `scale_by_zoom_linesearch`."""

    max_linesearch_steps: int
    max_learning_rate: float | None
    tol: float
    increase_factor: float
    slope_rtol: float
    curv_rtol: float
    approx_dec_rtol: float | None
    stepsize_precision: float


class Bracket(NamedTuple):
    """Two points that have a good step between them if `found` is True.

    Args:
      low: the end that satisfies the first condition; if both do, the one with the smaller loss.
      high: the other end.
      third: the end that the last step removed, or at first `low`, for the cubic interpolation.
      found: True if there is a good step between low and high, False while the step still grows.
    """

    low: Point
    high: Point
    third: Point
    found: Any


class Search(NamedTuple):
    """The state of a search.

    Args:
      count: the number of evaluations of the loss so far.
      last: the last point that was tried.
      grad: the gradient of the loss at `last`.
      bracket: see `Bracket`.
      safe: a point that satisfies the first Wolfe condition: the newest one while the step grows;
        later, one with a smaller loss replaces it. Until there is such a point, it is the start.
      safe_grad: the gradient of the loss at `safe`.
      decrease_error: by how much `last` violates the first condition.
      curvature_error: by how much `last` violates the second condition.
      done: True if the search ends with `last`, because it is good, or because it is the largest
        allowed step.
      failed: True if the search ends because no evaluations are left or the bracket is too short.
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
    """Runs a line search. The field `last` of the result is the step to take.

    Args:
      along: a function a -> (the point at a, the gradient of the loss at W + a u).
      start: the point at a = 0.
      grad: the gradient at `start`.
      guess: the first step to try.
      rules: the options that decide when a point is good and when the search fails.

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
    # If the search has failed, the result is `safe`, which satisfies the first condition. If no
    # step does, `safe` is the step 0, and the result is the last step, unless its loss is infinite
    # or NaN, or its slope is NaN.
    retreat = end.failed & ((end.safe.step > 0) | jnp.isinf(end.decrease_error))
    last, grad = where(retreat, (end.safe, end.safe_grad), (end.last, end.grad))
    return end._replace(last=last, grad=grad)


def between(bracket: Bracket) -> jax.Array:
    """A step inside a bracket: the minimum of a cubic, else of a parabola, else the middle.

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
    """The state of the search after a new point."""
    too_high = _decrease_error(start, new, rules)
    too_steep = _positive(jnp.abs(new.slope) - rules.curv_rtol * jnp.abs(start.slope))
    good = jnp.maximum(too_high, too_steep) <= rules.tol

    narrowing = now.bracket.found
    better = (too_high <= rules.tol) & (~narrowing | (new.value < now.safe.value))
    safe, safe_grad = where(better, (new, grad), (now.safe, now.safe_grad))
    grown = _grown(now, new, too_high, good)
    bracket = where(narrowing, _narrowed(now.bracket, new, too_high), grown)

    done, length = good, jnp.abs(now.bracket.high.step - now.bracket.low.step)
    if rules.max_learning_rate is not None:
        # The largest allowed step ends the search if it satisfies the first condition and the loss
        # is still falling there, so that there is no bracket.
        done = good | (~narrowing & (new.step >= rules.max_learning_rate) & ~grown.found)
    too_short = narrowing & (length <= rules.stepsize_precision) & (safe.step > 0)
    failed = ((now.count + 1 >= rules.max_linesearch_steps) | too_short) & ~done
    return Search(
        now.count + 1, new, grad, bracket, safe, safe_grad, too_high, too_steep, done, failed
    )


def _grown(now: Search, new: Point, too_high: Any, good: Any) -> Bracket:
    """Algorithm 3.5: finds a bracket if the loss is too large or the slope has changed sign."""
    above = (too_high > 0) | ((new.value >= now.last.value) & (now.count > 0))
    turned = (new.slope >= 0) & ~above
    low, high = where(turned, (new, now.last), (now.last, new))
    return Bracket(low, high, low, above | turned | good)


def _narrowed(bracket: Bracket, new: Point, too_high: Any) -> Bracket:
    """Algorithm 3.6: the new point replaces one end of the bracket."""
    low, high, _, found = bracket
    above = (too_high > 0) | (new.value >= low.value)
    beyond = (new.slope * (high.step - low.step) >= 0) & ~above
    third = where(above | beyond, high, low)
    high = where(above, new, where(beyond, low, high))
    return Bracket(where(above, low, new), high, third, found)


def _decrease_error(start: Point, new: Point, rules: Rules) -> jax.Array:
    """The error in the first condition or in the test of approx_dec_rtol, whichever is smaller."""
    c = rules.slope_rtol
    error = new.value - start.value - c * new.step * start.slope
    if rules.approx_dec_rtol is not None:
        flat = new.slope - (2 * c - 1.0) * start.slope
        near = new.value - start.value - rules.approx_dec_rtol * jnp.abs(start.value)
        error = jnp.minimum(jnp.maximum(flat, near), error)
    return _positive(error)


def _positive(error: jax.Array) -> jax.Array:
    """Returns max(error, 0), or infinity if the error is NaN."""
    error = jnp.maximum(error, 0.0)
    return jnp.where(jnp.isnan(error), jnp.full_like(error, jnp.inf), error)


def _cubic(a: Point, b: Point, c: Point) -> jax.Array:
    """The minimum of the cubic through 3 points with the slope of the first point; can be NaN."""
    to_b, to_c = b.step - a.step, c.step - a.step
    over_b = b.value - a.value - a.slope * to_b
    over_c = c.value - a.value - a.slope * to_c
    scale = (to_b * to_c) ** 2 * (to_b - to_c)
    third = (to_c**2 * over_b - to_b**2 * over_c) / scale
    second = (to_b**3 * over_c - to_c**3 * over_b) / scale
    root = jnp.sqrt(second * second - 3.0 * third * a.slope)
    return a.step + (-second + root) / (3.0 * third)


def _parabola(a: Point, b: Point) -> jax.Array:
    """The minimum of the parabola through 2 points with the slope of the first point."""
    apart = b.step - a.step
    second = (b.value - a.value - a.slope * apart) / apart**2
    return a.step - a.slope / (2.0 * second)
