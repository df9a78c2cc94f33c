"""Clipping and centering of gradients.

In the formulas, g is the gradient of one leaf. Norms are computed in float32 or wider, and are
correct even where the squares of elements would overflow or underflow.
"""

from typing import Any

import jax
import jax.numpy as jnp
from optax import EmptyState, GradientTransformationExtraArgs

from fdl.checks import OptionError
from fdl.ops.numerics import largest, norm, power_of_two, saturated
from fdl.optim.checks import check_positive
from fdl.optim.lifting import per_leaf, stateless
from fdl.optim.protocol import transformation
from fdl.optim.tree_vectors import size, sizes


def clip(max_delta: Any) -> GradientTransformationExtraArgs:
    """Clips every element to [-max_delta, max_delta].

    Args:
      max_delta: > 0, the largest absolute value of an element.

    Returns:
      A transformation without state.

    Raises:
      ValueError: max_delta is not positive and finite.

    Example:
      >>> clip(1.0).update(jnp.array([3.0, -0.5]), clip(1.0).init(None))[0]
      Array([ 1. , -0.5], dtype=float32)

    Source: `optax.clip`. This clipping can change the direction of the gradient, whereas
    `clip_by_global_norm` does not.
    """
    check_bound("clip", max_delta=max_delta)
    return stateless("clip", lambda g: jnp.clip(g, -max_delta, max_delta))


def clip_by_block_rms(threshold: Any) -> GradientTransformationExtraArgs:
    """Clips the root mean square of every leaf: g / max(1, rms(g) / threshold).

    Args:
      threshold: > 0, the largest root mean square.

    Returns:
      A transformation without state.

    Raises:
      ValueError: threshold is not positive and finite.

    Example:
      >>> transform = clip_by_block_rms(0.5)
      >>> transform.update({"w": jnp.array([1.0, -1.0])}, transform.init(None))[0]
      {'w': Array([ 0.5, -0.5], dtype=float32)}

    Source: Shazeer and Stern 2018, arXiv 1804.04235, section 6; `optax.clip_by_block_rms`.
    """
    check_bound("clip_by_block_rms", threshold=threshold)

    def rule(g: Any, rms: Any) -> Any:
        return (rms.of(g) / jnp.maximum(1 / rms.power, rms.part / threshold),)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        found = {"sizes": sizes(updates, mean=True)[0]}
        return per_leaf("clip_by_block_rms", rule, updates, found)[0], state

    return transformation(lambda params: EmptyState(), update)


def clip_by_global_norm(max_norm: Any) -> GradientTransformationExtraArgs:
    """Clips the norm of the whole gradient and keeps its direction.

        g = g / norm * max_norm     if norm >= max_norm; norm is the norm of all leaves together

    Args:
      max_norm: > 0, the largest norm.

    Returns:
      A transformation without state.

    Raises:
      ValueError: max_norm is not positive and finite.

    Example:
      >>> transform = clip_by_global_norm(1.0)
      >>> transform.update({"b": jnp.array(3.0), "w": jnp.array(4.0)}, transform.init(None))[0]
      {'b': Array(0.6, dtype=float32), 'w': Array(0.8, dtype=float32)}

    Source: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, algorithm 1;
    `optax.clip_by_global_norm`. If a gradient is not finite, the result is not finite either.
    """
    check_bound("clip_by_global_norm", max_norm=max_norm)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        whole = size(updates)
        part = jnp.sqrt(whole.squares)

        def rule(g: Any) -> Any:
            return (jnp.where(part * whole.power < max_norm, g, (whole.of(g) / part) * max_norm),)

        return per_leaf("clip_by_global_norm", rule, updates, {})[0], state

    return transformation(lambda params: EmptyState(), update)


def adaptive_grad_clip(
    clipping: Any, eps: Any = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformationExtraArgs:
    """Clips the norm of the gradient of each unit to a fraction of the norm of the unit's weights.

        g = g * bound / |g|     if |g| >= bound, where bound = clipping * max(|W|, eps)

    with the gradient g and the weights W of one unit. A unit is one output of a layer: for a matrix
    [in, out], its weights are a column.

    Args:
      clipping: > 0, the largest |g| / |W|.
      eps: > 0. If |W| is smaller, eps is used instead, so that weights of 0 can move.
      axis: the axes over which the norm of a unit is taken. By default these are all axes if at
        most one axis is longer than 1. Otherwise they are axis 0 of an array of 2 or 3 dimensions,
        and all axes but the last of an array of 4 or 5 dimensions.

    Returns:
      A transformation without state. It needs params.

    Raises:
      ValueError: clipping or eps is not positive and finite; at update, a leaf has more than 5
        dimensions and axis is None.

    Example:
      >>> transform, w = adaptive_grad_clip(0.5), jnp.array([[3.0, 0.1], [4.0, 0.0]])
      >>> transform.update(jnp.ones((2, 2)), transform.init(w), w)[0].round(3)
      Array([[1.   , 0.035], [1.   , 0.035]], dtype=float32)

    Source: Brock et al. 2021, arXiv 2102.06171, equation 3; `optax.adaptive_grad_clip`.
    """
    check_bound("adaptive_grad_clip", clipping=clipping)
    check_positive("adaptive_grad_clip", "with 0, weights of 0 could never move", eps=eps)

    def rule(g: Any, w: Any) -> Any:
        axes = _unit(g) if axis is None else axis
        power = power_of_two(largest(g, axes, keepdims=True))
        unit = g / power.astype(g.dtype)
        lengths = (norm(x, axes, keepdims=True) for x in (unit, w))
        # The norms are broadcast to the shape of g, as in optax. Otherwise XLA would divide in a
        # different order, which rounds differently.
        length, w_length = (jnp.broadcast_to(x, g.shape) for x in lengths)
        most = clipping * jnp.maximum(w_length, eps)
        # As in optax, the divisor is at least 1e-6.
        shorter = unit * (most / jnp.maximum(length, 1e-6 / power))
        return jnp.where(length * power < most, g, shorter)

    return stateless("adaptive_grad_clip", rule, uses_params=True)


def centralize(*, out_axis: int = -1) -> GradientTransformationExtraArgs:
    """Centers the gradient of each output unit: g - mean(g), a mean over all axes but out_axis.

    Leaves of fewer than two dimensions pass unchanged.

    Args:
      out_axis: the axis of the output units. It is the last axis for weights `[in, out]`, as in
        fdl, and 0 for weights `[out, in]`, as in torch.

    Returns:
      A transformation without state.

    Raises:
      ValueError: at update, a gradient of two or more dimensions does not have the axis out_axis.

    Example:
      >>> transform = centralize()
      >>> transform.update(jnp.array([[1.0, 2.0], [3.0, 6.0]]), transform.init(None))[0]
      Array([[-1., -2.], [ 1.,  2.]], dtype=float32)

    Source: Yong et al. 2020, arXiv 2004.01461, equation 1. `optax.centralize` always has
    out_axis=0.
    """

    def rule(g: Any) -> Any:
        if g.ndim < 2:
            return g
        if not -g.ndim <= out_axis < g.ndim:
            raise OptionError(
                "centralize",
                f"expected out_axis in [-{g.ndim}, {g.ndim}), got {out_axis} for a gradient of "
                f"shape {list(g.shape)}; the last axis is -1",
            )
        others = tuple(axis for axis in range(g.ndim) if axis != out_axis % g.ndim)
        # The sum in the mean could overflow, so g is first divided by a power of two.
        scale = power_of_two(largest(g, others, keepdims=True)).astype(g.dtype)
        mean = (g / scale).mean(others, keepdims=True) * scale
        return saturated(g - mean, g)

    return stateless("centralize", rule)


def global_norm(tree: Any) -> jax.Array:
    """The norm of a whole tree as one vector: sqrt(sum |x|^2).

    Args:
      tree: any pytree of arrays.

    Returns:
      A scalar, float32 or wider. It is correct even where squares would overflow or underflow. Its
      gradient at 0 is 0.

    Example:
      >>> global_norm({"b": jnp.array(3.0), "w": jnp.array([4.0])})
      Array(5., dtype=float32)
    """
    return size(tree).value


def check_bound(who: str, **bounds: Any) -> None:
    """Raises unless every bound is positive and finite."""
    check_positive(who, "it is the largest size that is not clipped", **bounds)


def _unit(x: Any) -> tuple[int, ...] | int | None:
    if jnp.squeeze(x).ndim <= 1:
        return None
    if x.ndim > 5:
        raise ValueError(
            f"adaptive_grad_clip: expected at most 5 dimensions, got {list(x.shape)}; pass `axis`, "
            "the axes of one unit"
        )
    return 0 if x.ndim < 4 else tuple(range(x.ndim - 1))
