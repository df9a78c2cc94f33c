"""Adafactor: the second moment of a matrix, stored as one row and one column.

In the formulas, g is a gradient [..., rows, columns], v is a mean of g^2, and t is the step, which
starts at 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import EmptyState, FactoredState, GradientTransformationExtraArgs

from fdl.checks import check_number, named_in_errors
from fdl.ops.numerics import bounded, wide
from fdl.optim.chaining import chain
from fdl.optim.checks import check_decays, check_least, check_momenta, check_positive
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import leafwise, need_params, per_leaf, stateless
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import sizes
from fdl.optim.wrappers.averaging import ema
from fdl.optim.wrappers.clipping import check_bound, clip_by_block_rms
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: Any = jnp.float32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask = None,
) -> GradientTransformationExtraArgs:
    """Adafactor: divides g by the root of v, and stores v only as row means and column means.

        b = 1 - t^-decay_rate
        r = b r + (1 - b) (mean of g^2 + eps over columns),    c: the same with means over rows
        v = r c / mean(r),    u = g / sqrt(v)
        u = u / max(1, rms(u) / clipping_threshold)
        W -= learning_rate * max(0.001, rms(W)) * u

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0. None means 1.
      min_dim_size_to_factor: >= 1. For a leaf whose two largest axes both have at least this size,
        v is stored as one mean over each of these axes. For all other leaves, all of v is stored.
      decay_rate: > 0. With a larger value, v averages over more steps.
      decay_offset: the count at which t is 1, such as the first step of fine-tuning. Before it, t
        is 1 too (unlike here, optax then gives NaN).
      multiply_by_parameter_scale: True multiplies the step of a leaf by max(0.001, rms(W)).
      clipping_threshold: > 0, the largest root mean square of u. None means no limit.
      momentum: in (-1, 1), the decay of a running mean of the steps. None means no momentum.
      dtype_momentum: dtype of the running mean of the steps.
      weight_decay_rate: >= 0, or a schedule. It is not multiplied by the learning rate. None means
        no weight decay.
      eps: >= 0, added to g^2.
      factored: True stores v as means if two axes are large enough. False always stores all of v.
      weight_decay_mask: which leaves to decay; see `masked`.

    Returns:
      A transformation with the same state as `optax.adafactor`. It needs params if
      multiply_by_parameter_scale is True or if there is weight decay.

    Raises:
      ValueError: the rate, the weight decay or eps is negative or not finite; momentum is outside
        (-1, 1); decay_rate, clipping_threshold or min_dim_size_to_factor is out of range.

    Example:
      >>> optimizer, w = adafactor(0.5), jnp.array([3.0, -3.0])
      >>> optimizer.update(jnp.array([0.1, -7.0]), optimizer.init(w), w)[0]
      Array([-1.5,  1.5], dtype=float32)

    Source: Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5, with means instead of
    sums. The paper's rate is min(0.01, 1 / sqrt(t)); the paper has no momentum and no weight decay.
    Gives the same results as optax.
    """
    check_least("adafactor", eps=eps)
    pieces = [
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    ]
    if clipping_threshold is not None:
        check_bound("adafactor", clipping_threshold=clipping_threshold)
        pieces.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        pieces.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        pieces.append(scale_by_param_block_rms())
    if momentum is not None:
        check_momenta("adafactor", momentum=momentum)
        pieces.append(ema(momentum, False, dtype_momentum))
    if weight_decay_rate is not None:
        check_decays("adafactor", weight_decay_rate=weight_decay_rate)
        pieces.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*pieces, stateless("adafactor", lambda u: -u))


def power_decay(count: Any, decay_rate: Any) -> jax.Array:
    """b = 1 - t^-decay_rate at t = count + 1; 0 if the count is negative.

    Source: Shazeer and Stern 2018, section 7.2.
    """
    return 1.0 - jnp.maximum(jnp.asarray(count + 1, jnp.float32), 1) ** -decay_rate


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] = power_decay,
) -> GradientTransformationExtraArgs:
    """The direction of `adafactor`: g / sqrt(v).

    Args:
      factored: True stores v as means if two axes are large enough. False always stores all of v.
      decay_rate: > 0, the second argument of decay_rate_fn.
      step_offset: the number that is subtracted from the count before decay_rate_fn gets it, like
        decay_offset of `adafactor`. The result is negative before that count.
      min_dim_size_to_factor: >= 1. v is stored as one mean over each of the two largest axes of a
        leaf, if both have at least this size.
      epsilon: >= 0, added to g^2.
      decay_rate_fn: a function `(count, decay_rate) -> b`, where count starts at 0. b is the share
        of v that the step keeps.

    Returns:
      A transformation with state `optax.FactoredState(count, v_row, v_col, v)`. If a leaf
      does not use one of the last three fields, the array of this leaf in that field has shape [1].

    Raises:
      ValueError: min_dim_size_to_factor is below 1; decay_rate or epsilon is out of range.

    Example:
      >>> transform, g = scale_by_factored_rms(min_dim_size_to_factor=2), jnp.array([[1.0, -2.0]])
      >>> g = jnp.concatenate([g, 3 * g])
      >>> transform.update(g, transform.init(g))[0].round(3)
      Array([[ 1., -1.],
             [ 1., -1.]], dtype=float32)

    Source: Shazeer and Stern 2018, algorithms 4 and 5; leaves with more than two axes are treated
    as in optax.
    """
    who = "scale_by_factored_rms"
    least, remedy = min_dim_size_to_factor, "to store all of v, pass factored=False"
    check_number(who, "min_dim_size_to_factor", least, "[1, inf]", remedy)
    check_positive(who, "0.8 is usual", decay_rate=decay_rate)
    check_least(who, epsilon=epsilon)

    def axes_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
        return _largest_axes(shape, min_dim_size_to_factor) if factored else None

    def at_step(t: jax.Array) -> Callable[..., Any]:
        b = decay_rate_fn(t - 1 - step_offset, decay_rate)

        def average(v: Any, new: Any) -> Any:
            return (b * v + (1.0 - b) * new).astype(v.dtype)

        def rule(g: Any, r: Any, c: Any, v: Any) -> Any:
            axes = axes_of(g.shape)
            # `bounded` keeps the sums over rows, over columns and over row means finite. XLA may
            # compute r / mean as r * (1 / mean). The factor 4 keeps this inverse from underflowing.
            terms = 1 if axes is None else 4 * max(g.shape[axis] for axis in axes)
            g, square = bounded(g, terms)
            square = square + epsilon
            if axes is None:
                v = average(v, square)
                return g * v**-0.5, jnp.zeros_like(r), jnp.zeros_like(c), v
            rows, columns = axes
            r = average(r, square.mean(columns))
            c = average(c, square.mean(rows))
            mean = r.mean(rows - (rows > columns), keepdims=True)
            u = g * jnp.expand_dims((r / mean) ** -0.5, columns) * jnp.expand_dims(c**-0.5, rows)
            return u, r, c, jnp.zeros_like(v)

        return rule

    slots = {name: _slot(name, axes_of) for name in ("v_row", "v_col", "v")}
    return leafwise(who, at_step, FactoredState, slots, counted=True)


def scale_by_param_block_rms(min_scale: float = 1e-3) -> GradientTransformationExtraArgs:
    """Scales the update of each leaf by the size of its weights: u * max(min_scale, rms(W)).

    Args:
      min_scale: >= 0. If rms(W) is smaller, min_scale is used instead, so that weights of 0 can
        move.

    Returns:
      A transformation that needs params; its state is empty.

    Raises:
      ValueError: min_scale is negative or not finite; at update, params are missing.

    Example:
      >>> transform, w = scale_by_param_block_rms(), jnp.array([3.0, -3.0])
      >>> transform.update(jnp.array([0.0, 0.5]), transform.init(w), w)[0]
      Array([0. , 1.5], dtype=float32)

    Source: Shazeer and Stern 2018, section 8.
    """
    who = "scale_by_param_block_rms"
    check_least(who, min_scale=min_scale)

    def rule(u: Any, _: Any, rms: Any) -> Any:
        return (u * jnp.maximum(rms.value, min_scale).astype(u.dtype),)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        others = {"params": need_params(who, params), "sizes": sizes(params, mean=True)[0]}
        return per_leaf(who, rule, updates, others)[0], state

    return transformation(lambda params: EmptyState(), update)


def _largest_axes(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """(second largest axis, largest axis), or None if the second largest is below `least`."""
    if len(shape) < 2:
        return None
    rows, columns = np.argsort(shape, kind="stable")[-2:].tolist()
    return (rows, columns) if shape[rows] >= least else None


def _slot(name: str, axes_of: Callable[..., Any]) -> Callable[[Any], jax.Array]:
    """The slot of `leafwise` for the field `name`: a function from a parameter to the first value.

    v_row has no column axis, and v_col has no row axis. A field that a leaf does not use has shape
    [1].
    """

    def slot(p: Any) -> jax.Array:
        axes = axes_of(p.shape)
        if (axes is None) != (name == "v"):
            return jnp.zeros((1,), wide(p.dtype))
        without = None if axes is None else axes[1] if name == "v_row" else axes[0]
        return jnp.zeros([n for axis, n in enumerate(p.shape) if axis != without], wide(p.dtype))

    return slot
