"""L-BFGS: Newton's method with an inverse Hessian that is estimated from the last few steps.

The formulas use the letters of Nocedal and Wright. s is the difference between the parameters of
two successive steps, y is the difference between their gradients, and rho = 1 / <s, y>. A ring
buffer holds the last m pairs (s, y). A tree of arrays is treated as one vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs, ScaleByLBFGSState

from fdl.checks import named_in_errors
from fdl.ops.numerics import wide_inside, widened
from fdl.optim.chaining import chain
from fdl.optim.checks import check_whole
from fdl.optim.learning_rate import scale_by_learning_rate
from fdl.optim.lifting import (
    check_params,
    filled,
    increment,
    need_params,
    per_leaf,
    stateless,
    where,
)
from fdl.optim.optimizers.line_search import scale_by_zoom_linesearch
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import add_scaled, dot, size
from fdl.typing import ScalarOrSchedule


@named_in_errors
def lbfgs(
    learning_rate: ScalarOrSchedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: GradientTransformation | None = scale_by_zoom_linesearch(  # noqa: B008
        max_linesearch_steps=20, initial_guess_strategy="one"
    ),
) -> GradientTransformationExtraArgs:
    """L-BFGS: W -= step * H g, where H estimates the inverse Hessian. A line search finds the step.

    H starts as gamma I, gamma times the identity. Each of the last m pairs (s, y), oldest first,
    then changes H as little as possible so that H y = s. Here s is the change of W from one step to
    the next, and y is the change of g. H is never stored as a matrix. L-BFGS is made for smooth
    losses and for gradients of the whole data set.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0. The rate
        multiplies H g before the line search. None means 1.
      memory_size: m >= 1, the number of pairs (s, y) that are stored.
      scale_init_precond: True computes gamma = <s, y> / <y, y> from the last pair, and gamma =
        min(1, 1 / |g|) at the first step. False means gamma = 1.
      linesearch: a transformation of fdl or optax that scales the direction to a step. None means
        no line search.

    Returns:
      A transformation with the same state as `optax.lbfgs`, which `optax.value_and_grad_from_state`
      can read. With a line search, `update` needs the extra arguments `value`, `grad` and
      `value_fn`, which `fdl.train_step` passes.

    Raises:
      ValueError: the rate is negative or not finite; memory_size is below 1.

    Example:
      >>> w, optimizer = jnp.array([3.0, -1.0]), lbfgs()
      >>> loss, state = lambda w: ((w - 1.0) ** 2 * jnp.array([1.0, 9.0])).sum(), optimizer.init(w)
      >>> for _ in range(8):
      ...     value, g = jax.value_and_grad(loss)(w)
      ...     u, state = optimizer.update(g, state, w, value=value, grad=g, value_fn=loss)
      ...     w = w + u
      >>> w.round(3)
      Array([1., 1.], dtype=float32)

    Source: Nocedal and Wright 1999, "Numerical optimization", algorithms 7.4 and 7.5; Liu and
    Nocedal 1989. Gives the same results as optax. A gradient whose squares would
    overflow is first divided by a power of two.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        stateless("lbfgs", lambda u: -u)
        if learning_rate is None
        else scale_by_learning_rate(learning_rate),
        stateless("lbfgs", lambda u: u) if linesearch is None else linesearch,
    )


def scale_by_lbfgs(
    memory_size: int = 10, scale_init_precond: bool = True
) -> GradientTransformationExtraArgs:
    """The direction H g of `lbfgs`.

    `lbfgs` describes the arguments.

    Returns:
      A transformation that needs params. Its state is `optax.ScaleByLBFGSState(count, params,
      updates, diff_params_memory, diff_updates_memory, weights_memory)`. The fields `params` and
      `updates` are the parameters and gradients of the last step. The three memories hold the last
      m values of s, y and rho, in this order, stacked along a first axis of length m.

    Raises:
      ValueError: memory_size is below 1.

    Example:
      >>> transform, g = scale_by_lbfgs(), jnp.array([3.0, 4.0])
      >>> transform.update(g, transform.init(g), g)[0].round(3)
      Array([0.6, 0.8], dtype=float32)
    """
    who = "scale_by_lbfgs"
    check_whole(who, "10 is usual", memory_size=memory_size)
    memory_size = int(memory_size)

    def init(params: Any) -> ScaleByLBFGSState:
        check_params(who, params)
        zeros = jax.tree.map(filled(), params)
        rings = jax.tree.map(lambda p: jnp.zeros((memory_size, *p.shape), p.dtype), zeros)
        count = jnp.zeros((), jnp.int32)
        return ScaleByLBFGSState(count, zeros, zeros, rings, rings, jnp.zeros(memory_size))

    @wide_inside
    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ScaleByLBFGSState]:
        params = jax.tree.map(widened, need_params(who, params))
        updates = _shorter(updates)
        s = _difference(who, "params", params, state.params)
        y = _difference(who, "updates", updates, state.updates)
        curvature = dot(y, s)
        # If the curvature is 0, or so small that 1 / curvature is infinite, rho = 0 disables the
        # pair.
        rho = jnp.where(jnp.isinf(1.0 / curvature), jnp.zeros_like(curvature), 1.0 / curvature)
        # At the first step there are no differences yet, so the pair is 0.
        pair = (s, y, rho.astype(state.weights_memory.dtype))
        pair = where(state.count > 0, pair, jax.tree.map(jnp.zeros_like, pair))
        rings = (state.diff_params_memory, state.diff_updates_memory, state.weights_memory)
        newest = (state.count - 1) % memory_size
        rings = jax.tree.map(lambda ring, new: ring.at[newest].set(new), rings, pair)
        gamma = _gamma(updates, pair, state.count) if scale_init_precond else jnp.ones(())
        oldest_first = (state.count + jnp.arange(memory_size, dtype=jnp.int32)) % memory_size
        new = ScaleByLBFGSState(increment(state.count), params, updates, *rings)
        return two_loop(updates, rings, gamma, oldest_first), new

    return transformation(init, update)


def two_loop(g: Any, rings: Any, gamma: Any, oldest_first: Any) -> Any:
    """Computes H g from m pairs, with 2 m scalar products and 2 m scaled sums of vectors.

    Args:
      g: the gradient, a tree of arrays.
      rings: (s, y, rho). Each holds m values, stacked along a first axis of length m.
      gamma: a scalar. Without any pairs, H would be gamma times the identity.
      oldest_first: [m] integers, the indices along the first axis, oldest pair first.

    Source: Nocedal and Wright 1999, algorithm 7.4.
    """

    def pair_at(i: Any) -> Any:
        return jax.tree.map(lambda ring: ring[i], rings)

    def backward(q: Any, i: Any) -> Any:
        s, y, rho = pair_at(i)
        alpha = _times(rho, dot(s, q))
        return add_scaled(q, -alpha, y), alpha

    def forward(r: Any, i_alpha: Any) -> Any:
        i, alpha = i_alpha
        s, y, rho = pair_at(i)
        beta = _times(rho, dot(y, r))
        return add_scaled(r, alpha - beta, s), None

    q, alphas = jax.lax.scan(backward, g, oldest_first, reverse=True)
    r = jax.tree.map(lambda leaf: _times(gamma, leaf).astype(leaf.dtype), q)
    return jax.lax.scan(forward, r, (oldest_first, alphas))[0]


def _gamma(g: Any, pair: Any, count: Any) -> jax.Array:
    """gamma = <s, y> / <y, y> (equation 7.20). At the first step it is min(1, 1 / |g|)."""
    s, y, _ = pair
    length = size(y)
    unit = jax.tree.map(length.of, y)
    curvature, squared = dot(unit, s), length.part**2
    ratio = jnp.where(squared > 0, curvature / squared / length.power, jnp.ones_like(squared))
    first = jnp.minimum(1.0, 1.0 / size(jax.lax.stop_gradient(g)).value)
    return jnp.where(count > 0, ratio, first)


def _shorter(g: Any) -> Any:
    """Returns g, divided by a power of two if the squares of its elements would overflow."""
    divisor = jnp.maximum(size(g).power * 2.0**-50, 1)
    return jax.tree.map(lambda x: x / divisor.astype(x.dtype), g)


def _difference(who: str, name: str, new: Any, old: Any) -> Any:
    return per_leaf(who, lambda a, b: (a - b,), new, {f"state.{name}": old})[0]


def _times(a: Any, b: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return a * b
