"""Numerical derivatives, checks of `jax.grad`, per-example gradients, products with the Hessian."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths


def derivative(f: Callable[[jax.Array], jax.Array], x: Any, step: float | None = None) -> jax.Array:
    """The derivative of f at x by the central difference: (f(x + h) - f(x - h)) / 2h.

    By default, h is eps^(1/3) * max(|x|, 1), where eps is the spacing of the dtype at 1. The
    derivative has an error of about h^2 because f is curved, and an error of about eps / h because
    f(x) is rounded. With this h, the sum of the two errors is small. In float32, h is 0.005 and
    about 5 digits are right. In float64, h is 6e-6 and about 10 digits are right. The difference is
    divided by the exact distance between the rounded points x + h and x - h.

    Args:
      f: an elementwise function of one array: the output y[i] depends only on x[i].
      x: [...], a floating dtype.
      step: h, > 0; by default the h described above.

    Returns:
      [...], dy/dx at each element.

    Raises:
      TypeError: x is not of a floating dtype.

    Example:
      >>> bool(abs(derivative(jnp.sin, 0.5) - jnp.cos(0.5)) < 1e-4)
      True

    Source: Press et al., "Numerical Recipes", third edition, section 5.7, equation 5.7.8.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"derivative: expected x of a floating dtype, got {x.dtype}; pass jnp.asarray(x, float)"
        )
    h = _step(x.dtype) * jnp.maximum(jnp.abs(x), 1) if step is None else step
    above, below = x + h, x - h
    return (f(above) - f(below)) / (above - below)


def check_gradient(
    f: Callable[[Any], jax.Array],
    params: Any,
    *,
    key: Any = None,
    directions: int = 4,
    tolerance: float | None = None,
) -> dict[str, float]:
    """Compares `jax.grad(f)` with central differences, leaf by leaf.

    For each leaf, some random directions v of norm 1 are drawn. The gradient predicts that f
    changes along v at the rate <gradient, v>; the central difference measures this rate.

    Args:
      f: a function from a pytree to a scalar.
      params: a pytree of floating arrays. f must be differentiable there, unlike relu at 0.
      key: a random key for the directions; by default a fixed key.
      directions: number of directions for each leaf.
      tolerance: the largest relative error that is allowed. A relative error is the difference
        between the two rates, divided by the largest of three numbers: the norm of the leaf's
        gradient, |f| / 5, and sqrt(eps). The default is 50 * eps^(2/3): 1e-3 in float32 and 2e-9 in
        float64.

    Returns:
      A dict from the path of each leaf to the largest relative error of this leaf.

    Raises:
      PathError: an error is above the tolerance. The message names the leaf, both rates and the
        tolerance.
      TypeError: a leaf is not of a floating dtype, or f does not return a scalar.

    Example:
      >>> errors = check_gradient(lambda p: jnp.sum(p["w"] ** 3), {"w": jnp.array([1.0, 2.0])})
      >>> list(errors)
      ['w']

    Source: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 11.5.
    """
    key = jax.random.key(0) if key is None else key
    y, gradient = jax.value_and_grad(f)(params)
    # Errors are relative to at least |f| / 5, because the rounding of f changes a central
    # difference by about eps^(2/3) |f|. This also happens where the gradient is 0, as it is for the
    # bias of the keys in attention.
    least = max(abs(float(y)) / 5, _eps(y.dtype) ** 0.5)
    # NumPy draws the directions, because JAX would compile a function for the shape of each leaf.
    draws = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    gradients = paths.leaves(gradient)
    errors = {}
    for path, leaf in paths.leaves(params).items():
        slope = np.asarray(gradients[path], np.float64)
        allowed = 50 * _eps(leaf.dtype) ** (2 / 3) if tolerance is None else tolerance
        errors[path] = 0.0
        for _ in range(directions):
            v = draws.standard_normal(slope.shape)
            v = (v / np.linalg.norm(v)).astype(leaf.dtype)
            predicted = np.vdot(slope, v.astype(np.float64))
            measured = float(derivative(_along(f, params, path, v), jnp.zeros((), leaf.dtype)))
            error = float(abs(predicted - measured) / max(np.linalg.norm(slope), least))
            errors[path] = max(errors[path], error)
            if not error <= allowed:
                raise paths.PathError(
                    f"expected jax.grad and the central difference to agree within {allowed:.1e}, "
                    f"got rates {predicted:.6g} and {measured:.6g} along one direction; look for a "
                    "wrong custom gradient, a stop_gradient, or a point where f has no derivative",
                    path,
                )
    return errors


def per_example_gradients(
    loss: Callable[[Any, Any], jax.Array], params: Any, batch: Any, *, chunk: int | None = None
) -> Any:
    """The gradient of the loss for each example separately.

    Args:
      loss: `(params, example) -> scalar`, for one example without a batch axis.
      params: a pytree of floating arrays.
      batch: a pytree of arrays [B, ...].
      chunk: the number of gradients that are computed at the same time; by default all B. A small
        chunk saves memory.

    Returns:
      A pytree like params. Each leaf has one more axis, the batch, as its first axis: [B, ...]. The
      mean over this axis is the gradient of the mean loss.

    Example:
      >>> loss = lambda w, example: (w * example) ** 2 / 2
      >>> per_example_gradients(loss, jnp.float32(1), jnp.array([1.0, 2.0, 3.0]))
      Array([1., 4., 9.], dtype=float32)
    """
    one = functools.partial(jax.grad(loss), params)
    return jax.vmap(one)(batch) if chunk is None else jax.lax.map(one, batch, batch_size=chunk)


def hessian_vector_product(f: Callable[[Any], jax.Array], params: Any, vector: Any) -> Any:
    """H v, where H is the Hessian of f: the derivative of the gradient along v.

    The cost is about two gradients. H itself is never computed.

    Args:
      f: a function from a pytree to a scalar.
      params: a pytree of floating arrays.
      vector: v, a pytree like params.

    Returns:
      A pytree like params.

    Example:
      >>> f = lambda w: w[0] ** 2 * w[1]
      >>> hessian_vector_product(f, jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
      Array([4., 2.], dtype=float32)

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian". The method is
    forward-mode differentiation of a reverse-mode gradient.
    """
    return jax.jvp(jax.grad(f), (params,), (vector,))[1]


def _along(f: Callable[[Any], jax.Array], params: Any, path: str, v: np.ndarray) -> Any:
    """The function t -> f(params), where the leaf at `path` is moved by t * v."""

    def at_distance(t: jax.Array) -> jax.Array:
        def moved(keys: Any, leaf: Any) -> Any:
            here = paths.path_of(keys) == path
            return jnp.asarray(np.asarray(leaf) + np.asarray(t) * v) if here else leaf

        return f(jax.tree_util.tree_map_with_path(moved, params))

    return at_distance


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _step(dtype: Any) -> np.ndarray:
    return np.asarray(_eps(dtype) ** (1 / 3), dtype)
