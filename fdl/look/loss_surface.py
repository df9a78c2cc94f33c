"""The loss on a line between two sets of parameters and on a plane around one; its curvature."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fdl import paths
from fdl.checks import check_concrete_number, check_count, check_key, described, is_count
from fdl.core.compilation import weak_jit
from fdl.data.arrays import to_jax
from fdl.gradients import hessian_vector_product
from fdl.look.tree_difference import check_same_arrays
from fdl.ops.numerics import direction, norm, wide
from fdl.train.checks import check_objective_given, check_params_given
from fdl.train.evaluation import (
    BATCH_SIZE,
    BATCH_SIZE_REMEDY,
    check_objective,
    mixes_examples,
    params_and_state,
    totals,
)
from fdl.typing import Key, Objective

POINTS = "pass the number of points, or an array of their places"


def loss_line(
    objective: Objective,
    one: Any,
    other: Any,
    data: Any,
    points: Any = 21,
    *,
    state: Any = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """The loss on the line between two sets of parameters, at `(1 - t) * one + t * other`.

    If the loss has no barrier between two minima, they are linearly connected.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`; key is None.
      one: a pytree of arrays; or a run, a result of `fit`, or a hook from `keep_best`, as in
        `fdl.evaluate`.
      other: the same, with the structure and shapes of `one`.
      data: a pytree of arrays [M, ...], M >= 1.
      points: P, the number of points, an int >= 1: t is evenly spaced from 0 to 1. Or t [P], where
        numbers below 0 and above 1 are allowed.
      state: the network's state at all points. None means the states of `one` and `other`,
        which are mixed like the parameters, or `{}` if they contain none.
      batch_size: the number of examples that are evaluated at once, an int >= 1.

    Returns:
      (t [P], losses [P]). A loss is the mean over data in evaluation mode, as from `fdl.evaluate`.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: `one` and `other` have different paths, shapes or dtypes; points is not an int
        >= 1 or an array [P]; or data is wrong, as in `fdl.evaluate`.
      PathError: the model cannot take the data.

    Example:
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> loss_line(objective, 0.0, 4.0, jnp.array([1.0, 3.0]), points=3)
      (Array([0. , 0.5, 1. ], dtype=float32), Array([5., 1., 5.], dtype=float32))

    Source: Goodfellow, Vinyals and Saxe 2014, "Qualitatively characterizing neural network
    optimization problems", arXiv 1412.6544, section 3.
    """
    t = _places("loss_line", points, 0.0, 1.0)
    ends = [params_and_state(each, state) for each in (one, other)]
    for params, _ in ends:
        check_params_given("loss_line", params)
    for each in zip(*ends, strict=True):
        check_same_arrays("loss_line", *map(paths.leaves, each))
    params, states = (tuple(each) for each in zip(*ends, strict=True))
    weights = jnp.stack([1 - t, t], axis=1)
    return t, _losses("loss_line", objective, weights, params, states, data, batch_size)


def loss_plane(
    objective: Objective,
    params: Any,
    data: Any,
    directions: tuple[Any, Any] | None = None,
    points: Any = 21,
    *,
    state: Any = None,
    radius: Any = 1.0,
    key: Key | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """The loss on a plane through a set of parameters: at params + a * first + b * second.

    By default, the two directions are random. Each filter of a direction has the norm of the same
    filter of the parameters, so the pictures of networks with different scales can be compared. A
    filter is the weights of one output unit: all entries with the same index on the last axis.
    Arrays with fewer than two axes, such as biases and scales of normalization layers, stay fixed.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`; key is None.
      params: a pytree of arrays; or a run, a result of `fit`, or a hook from `keep_best`, as in
        `fdl.evaluate`.
      data: a pytree of arrays [M, ...], M >= 1.
      directions: a pair (first, second) of pytrees like params, which are used as they are; for
        example the differences from two other runs. None means random directions.
      points: P, the number of points along each direction, an int >= 1: a and b are evenly spaced
        from -radius to radius (only -radius if P is 1). Or their values [P].
      state: the network's state. None means the state that `params` contains, or `{}`.
      radius: the largest a and b, > 0; used if points is an int.
      key: a random key for the directions; by default a fixed key.
      batch_size: the number of examples that are evaluated at once, an int >= 1.

    Returns:
      (t [P], losses [P, P]). The loss at [i, j] is the one at a = t[i], b = t[j], the mean over
      data in evaluation mode, as from `fdl.evaluate`. `fdl.look.draw.loss_surface` draws it.

    Raises:
      TypeError: an argument is in the wrong place.
      ValueError: a direction has other paths, shapes or dtypes than params; points, radius or key
        is wrong; or data is wrong, as in `fdl.evaluate`.
      PathError: the model cannot take the data.

    Example:
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: jnp.mean(w[0] ** 2 + w[1] * batch))
      >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> loss_plane(objective, jnp.zeros(2), jnp.array([1.0, 3.0]), axes, points=3)[1]
      Array([[-1.,  1.,  3.],
             [-2.,  0.,  2.],
             [-1.,  1.,  3.]], dtype=float32)

    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913,
    section 4.
    """
    check_concrete_number("loss_plane", "radius", radius, "(0, inf)", "1 is usual")
    t = _places("loss_plane", points, -radius, radius)
    params, state = params_and_state(params, state)
    check_params_given("loss_plane", params)
    if directions is None:
        check_key(key, "loss_plane")
        keys = jax.random.split(jax.random.key(0) if key is None else key)
        directions = random_direction(keys[0], params), random_direction(keys[1], params)
    if not isinstance(directions, tuple | list) or len(directions) != 2:
        raise ValueError(
            f"loss_plane: expected directions as a pair of pytrees like params, got "
            f"{described(directions)}; pass (first, second), or leave them out"
        )
    for each in directions:
        check_same_arrays("loss_plane", paths.leaves(params), paths.leaves(each))
    a, b = (each.ravel() for each in jnp.meshgrid(t, t, indexing="ij"))
    weights = jnp.stack([jnp.ones_like(a), a, b], axis=1)
    trees = (params, *directions)
    losses = _losses("loss_plane", objective, weights, trees, (state,), data, batch_size)
    return t, losses.reshape(len(t), len(t))


def hessian_eigenvalues(
    f: Callable[[Any], jax.Array],
    params: Any,
    count: int,
    key: Key | None = None,
    *,
    iterations: int | None = None,
) -> jax.Array:
    """The eigenvalues of the Hessian of f with the largest absolute values (Lanczos method).

    The Hessian itself is never computed. An iteration takes one product with it, which costs about
    two gradients, keeps one vector of D numbers, and makes it orthogonal to all earlier ones.

    Args:
      f: a function from a pytree to a scalar, for example
        `lambda params: objective(params, state, batch, None)[0]`.
      params: a pytree of floating arrays with D numbers in all.
      count: K, the number of eigenvalues, an int in [1, D].
      key: a random key for the first vector; by default a fixed key.
      iterations: an int in [K, D]. Eigenvalues far from the others are exact after few iterations.
        With D iterations, all are exact up to rounding. With fewer, an eigenvalue that occurs
        several times may be found only once. None means the smaller of D and 50 + 5 K.

    Returns:
      [K], the largest in absolute value first, float32 or wider. Works under `jit` and `vmap`.

    Raises:
      TypeError: a leaf is not of a floating dtype, or f does not return a scalar.
      ValueError: count or iterations is out of range, or key is not one random key.

    Example:
      >>> f = lambda w: w[0] ** 2 - 3 * w[1] ** 2 + w[0] * w[2]
      >>> [round(float(each), 3) for each in hessian_eigenvalues(f, jnp.ones(3), count=2)]
      [-6.0, 2.414]

    Source: Lanczos 1950; Golub and Van Loan 2013, "Matrix Computations", section 10.1, with full
    reorthogonalization; Ghorbani, Krishnan and Xiao 2019, arXiv 1901.10159, for networks.
    """
    with jax.numpy_dtype_promotion("standard"):
        flat, tree_of = ravel_pytree(params)
    if not is_count(count) or count > flat.size:
        raise ValueError(
            f"hessian_eigenvalues: expected count, an int in [1, {flat.size}], got "
            f"{described(count)}; pass at most the number of parameters"
        )
    steps = min(flat.size, 50 + 5 * count) if iterations is None else iterations
    if not is_count(steps, least=count) or steps > flat.size:
        raise ValueError(
            f"hessian_eigenvalues: expected iterations, an int in [{count}, {flat.size}], got "
            f"{described(steps)}; leave it out for the default"
        )
    check_key(key, "hessian_eigenvalues")

    def product(v: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            slope = hessian_vector_product(f, params, tree_of(v.astype(flat.dtype)))
            return ravel_pytree(slope)[0].astype(v.dtype)

    start = jax.random.key(0) if key is None else key
    diagonal, beside = _lanczos(product, flat.size, wide(flat.dtype), start, int(steps))
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    found = jnp.linalg.eigvalsh(matrix)
    return found[jnp.argsort(-jnp.abs(found))[:count]]


def _places(who: str, points: Any, low: Any, high: Any) -> jax.Array:
    """The places [P] along a direction, from a number of points or from an array."""
    if not np.ndim(points):
        count = check_count(who, "points", points, POINTS)
        return jnp.linspace(low, high, count)
    places = to_jax(np.asarray(points) if isinstance(points, Sequence) else points, who, "points")
    if places.ndim != 1 or not places.size:
        raise ValueError(f"{who}: expected points [P], got {list(places.shape)}; {POINTS}")
    return places.astype(jnp.result_type(float))


def _losses(
    who: str,
    objective: Objective,
    weights: jax.Array,
    params: tuple[Any, ...],
    states: tuple[Any, ...],
    data: Any,
    batch_size: int,
) -> jax.Array:
    """The loss [P] at each row of weights [P, K], for params that are a weighted sum of K trees."""
    check_objective_given(who, objective)
    batch_size = check_count(who, "batch_size", batch_size, BATCH_SIZE_REMEDY)
    check_objective(objective, params[0], states[0], data)
    data = to_jax(data, who)
    given = {"objective": objective, "batch_size": batch_size}
    of = functools.partial(_evaluated, weights, params, states, data, **given)
    whole = mixes_examples(objective, params[0], states[0], data, batch_size)
    if isinstance(whole, jax.core.Tracer):
        return jax.lax.cond(whole, lambda: of(whole=True), lambda: of(whole=False))
    return of(whole=whole)


@weak_jit(static=["objective", "batch_size", "whole"])
def _evaluated(
    weights: jax.Array,
    params: tuple[Any, ...],
    states: tuple[Any, ...],
    data: Any,
    *,
    objective: Objective,
    batch_size: int,
    whole: bool,
) -> jax.Array:
    """The compiled part of `_losses`; `whole` is as in `fdl.train.evaluation.totals`."""
    settings = {"objective": objective, "batch_size": batch_size, "whole": whole}

    def loss_at(row: jax.Array) -> jax.Array:
        means = totals(_mixed(row, params), _mixed(row, states), data, **settings)
        return means["loss"].value()

    return jax.lax.map(loss_at, weights)


def _mixed(weights: jax.Array, trees: tuple[Any, ...]) -> Any:
    """The sum of weights[k] * trees[k]; leaves that are not floating are those of the first."""

    def one(*leaves: Any) -> jax.Array:
        dtype = jnp.result_type(leaves[0])
        if not jnp.issubdtype(dtype, jnp.inexact):
            return jnp.asarray(leaves[0])
        total = jnp.zeros(jnp.shape(leaves[0]), wide(dtype))
        for place, leaf in enumerate(leaves):
            total = total + weights[place].astype(total.dtype) * jnp.asarray(leaf, total.dtype)
        return total.astype(dtype)

    return jax.tree.map(one, *trees)


def random_direction(key: Key, params: Any) -> Any:
    """A random tree like params, whose filters have the norms of the filters of params."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def one(key: Key, w: Any) -> jax.Array:
        w = jnp.asarray(w)
        if w.ndim < 2 or not jnp.issubdtype(w.dtype, jnp.floating):
            return jnp.zeros_like(w)
        inputs = tuple(range(w.ndim - 1))
        normal = direction(jax.random.normal(key, w.shape, wide(w.dtype)), inputs)
        return (normal * norm(w, inputs, keepdims=True)).astype(w.dtype)

    return jax.tree.unflatten(structure, list(map(one, keys, leaves)))


def _lanczos(
    product: Callable[[jax.Array], jax.Array], size: int, dtype: Any, key: Key, steps: int
) -> tuple[jax.Array, jax.Array]:
    """The diagonal [steps] and the secondary diagonal [steps - 1] of a tridiagonal matrix.

    It is `product`, a symmetric map of vectors [size], projected on `steps` orthonormal vectors.
    """
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def orthogonal(v: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):  # once is not enough if little of v is left
            v = v - exact(exact(basis, v), basis)
        return v

    def step(number: jax.Array, carry: Any) -> Any:
        basis, diagonal, beside, scale = carry
        q = basis[number]
        v = product(q)
        scale = jnp.maximum(scale, norm(v))
        rest = orthogonal(v, basis)
        length = norm(rest)
        # If only rounding error is left, the basis spans an invariant subspace: continue with any
        # vector orthogonal to it.
        done = length <= 100 * float(jnp.finfo(dtype).eps) * scale
        fresh = jax.random.normal(jax.random.fold_in(key, number + 1), (size,), dtype)
        following = direction(orthogonal(direction(jnp.where(done, fresh, rest)), basis))
        basis = basis.at[number + 1].set(following, mode="drop")
        diagonal = diagonal.at[number].set(exact(q, v))
        beside = beside.at[number].set(jnp.where(done, 0, length))
        return basis, diagonal, beside, scale

    first = direction(jax.random.normal(jax.random.fold_in(key, 0), (size,), dtype))
    basis = jnp.zeros((steps, size), dtype).at[0].set(first)
    empty = jnp.zeros(steps, dtype)
    carry = basis, empty, empty, jnp.zeros((), dtype)
    _, diagonal, beside, _ = jax.lax.fori_loop(0, steps, step, carry)
    return diagonal, beside[:-1]
