"""SOAP: Adam in the eigenbasis of the second moments of the gradient's rows and columns.

In the formulas, g is the gradient of a leaf, m and v are the moments of Adam, and t is the step of
Adam, which starts at 1. For an axis of length n, L [n, n] is a running mean of g g^T, summed over
all other axes; it is called a factor. Q [n, n] is an orthogonal matrix, whose columns approximate
the eigenvectors of L; it is called a basis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs

from fdl.checks import named_in_errors
from fdl.ops.numerics import narrowed, scaled_down, squared_size, wide, widened
from fdl.optim.chaining import chain
from fdl.optim.checks import check_fractions, check_least, check_momenta, check_whole
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import check_params, different_trees, filled, increment
from fdl.optim.protocol import is_placeholder, transformation
from fdl.optim.tree_vectors import sizes
from fdl.typing import Mask, ScalarOrSchedule


@named_in_errors
def soap(
    learning_rate: ScalarOrSchedule = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    mask: Mask = None,
    *,
    skip_first: bool = True,
) -> GradientTransformationExtraArgs:
    """SOAP: Adam in the eigenbasis of the factors L of Shampoo. For a matrix g:

        g' = Q1^T g Q2,     m = b1 m + (1 - b1) g,     v = b2 v + (1 - b2) g'^2
        u = Q1 (Q1^T m Q2 / (sqrt(v) + eps)) Q2^T * sqrt(1 - b2^t) / (1 - b1^t)
        W -= learning_rate * (u + weight_decay * W)
        L1 = b L1 + (1 - b) g g^T,     L2 = b L2 + (1 - b) g^T g
        every k steps:  Q = qr(L Q) for both axes, so that Q converges to the eigenvectors of L

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      b1: in (-1, 1), the share of m that each step keeps.
      b2: in [0, 1), the share of v that each step keeps.
      shampoo_beta: b in [0, 1), the share of L that each step keeps; by default b2.
      eps: >= 0, added outside the root.
      weight_decay: >= 0, or a schedule.
      precondition_frequency: k >= 1, the number of steps between two computations of Q.
      max_precond_dim: an axis longer than this has no L and no Q, and is not rotated.
      precondition_1d: True also rotates leaves with one axis. False applies plain Adam to them.
      normalize_grads: True scales u of each leaf to root mean square 1 before the bias correction.
      correct_bias: True multiplies u by sqrt(1 - b2^t) / (1 - b1^t), False does not.
      mask: which leaves to decay; see `masked`.
      skip_first: True uses the first gradient only to compute L and Q. The first step then moves
        the weights only by their decay. False also steps along the first gradient.

    Returns:
      A transformation with state `(ScaleBySoapState(count, mu, nu, factors, bases), ...)`, in
      float32 or wider. Under `vmap`, Q is computed at each step, because `vmap` runs both branches
      of a `jax.lax.cond`. `jax.grad` through the update treats Q as constant.

    Raises:
      ValueError: the rate, the decay or eps is negative or not finite; b1, b2 or shampoo_beta is
        out of range; precondition_frequency is below 1; max_precond_dim is negative.

    Example:
      >>> optimizer, w = soap(0.5, weight_decay=0.0), jnp.ones((2, 2))
      >>> g, state = jnp.array([[1.0, 2.0], [0.0, 1.0]]), optimizer.init(w)
      >>> skipped, state = optimizer.update(g, state, w)
      >>> u, _ = optimizer.update(jnp.array([[0.0, 3.0], [0.1, 0.0]]), state, w)
      >>> float(jnp.abs(skipped).max()), round(float(jnp.linalg.norm(u)), 3)
      (0.0, 1.0)

    Source: Vyas et al. 2024, arXiv 2409.11321, algorithms 3 and 4. As in the authors' code, the
    first gradient is skipped, eps is added to the root before the bias correction, and the columns
    of Q (and v) are sorted by diag(Q^T L Q) before a new Q is computed. The authors' code decays
    the weights after the step. In fdl, the decay uses the weights before the step, as in the paper
    and in `adamw`. The gradient of a leaf is first divided by a power of two if one of its elements
    is 2^51 or larger in absolute value.
    """
    return chain(
        scale_by_soap(
            b1,
            b2,
            shampoo_beta,
            eps,
            precondition_frequency,
            max_precond_dim,
            precondition_1d,
            normalize_grads,
            correct_bias,
            skip_first=skip_first,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


class ScaleBySoapState(NamedTuple):
    """The state of SOAP.

    Args:
      count: the number of gradients so far.
      mu: m, in the basis of the parameters.
      nu: v, in the basis Q.
      factors: for each leaf, a tuple with one entry for each axis: L, or None if the axis is not
        rotated. `optax.tree_utils.tree_map_params` does not map the factors, because they do not
        have the shapes of parameters.
      bases: the same as factors, but with Q instead of L.
    """

    count: Any
    mu: Any
    nu: Any
    factors: Any
    bases: Any


def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    *,
    skip_first: bool = True,
) -> GradientTransformationExtraArgs:
    """The direction u of `soap`.

    `soap` describes the arguments and the errors.

    Returns:
      A transformation with state `ScaleBySoapState(count, mu, nu, factors, bases)`.

    Example:
      >>> transform = scale_by_soap(skip_first=False)
      >>> transform.update(jnp.array([[0.0, 3.0]]), transform.init(jnp.ones((1, 2))))[0].round(3)
      Array([[0., 1.]], dtype=float32)
    """
    who = "scale_by_soap"
    beta = b2 if shampoo_beta is None else shampoo_beta
    check_momenta(who, b1=b1)
    check_fractions(who, b2=b2, shampoo_beta=beta)
    check_least(who, eps=eps)
    k = precondition_frequency
    check_whole(who, "10 is usual", precondition_frequency=k)
    check_whole(who, "0 rotates no axis", "[0, inf]", max_precond_dim=max_precond_dim)
    adam = _Adam(b1, b2, eps, normalize_grads, correct_bias)

    def init(params: Any) -> ScaleBySoapState:
        check_params(who, params)
        least = 1 if precondition_1d else 2
        return _first_state(params, lambda p: max_precond_dim if p.ndim >= least else 0)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ScaleBySoapState]:
        _check_tree(who, updates, state.mu)
        first = state.count == 0
        skipped = first & skip_first
        count = increment(state.count)
        t = jnp.maximum(count - int(skip_first), 1)
        factors = jax.tree.map(lambda g, factor: _averaged(factor, g, beta), updates, state.factors)
        bases = jax.lax.cond(
            first, lambda: jax.tree.map(eigenvectors, factors), lambda: state.bases
        )
        with jax.numpy_dtype_promotion("standard"):  # a complex m is divided by a real v
            moved = jax.tree.map(adam.rule(t, skipped), updates, state.mu, state.nu, bases)
        triple = jax.tree.structure((0, 0, 0))
        updates, mu, nu = jax.tree.transpose(jax.tree.structure(updates), triple, moved)
        nu, bases = jax.lax.cond(
            ~skipped & (t % k == 0),
            lambda: tuple(jax.tree.map(f, nu, factors, bases) for f in (_sorted, _turned)),
            lambda: (nu, bases),
        )
        return updates, ScaleBySoapState(count, mu, nu, factors, bases)

    return transformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Adam:
    """Adam in the eigenbases of a leaf."""

    b1: float
    b2: float
    eps: float
    normalize: bool
    correct: bool

    def rule(self, t: jax.Array, skipped: jax.Array) -> Callable[..., Any]:
        """(g, m, v, bases) -> (u, m, v). If `skipped`, u is 0, and m and v do not change."""
        correction = jnp.sqrt(1 - self.b2**t) / (1 - self.b1**t) if self.correct else jnp.ones(())

        def one(g: Any, m: Any, v: Any, bases: Any) -> Any:
            before, g = (jnp.zeros_like(g), m, v), scaled_down(widened(g))
            m = (1 - self.b1) * g + self.b1 * m
            v = (1 - self.b2) * squared_size(rotate(g, bases)) + self.b2 * v
            u = rotate(rotate(m, bases) / (jnp.sqrt(v) + self.eps), bases, back=True)
            u = _unit(u) if self.normalize else u
            after = (correction.astype(v.dtype) * u, m, v)
            return tuple(
                jnp.where(skipped, old, narrowed(new, old.dtype))
                for old, new in zip(before, after, strict=True)
            )

        return one


def rotate(x: jax.Array, bases: Any, back: bool = False) -> jax.Array:
    """Multiplies x by Q^H, or by Q if `back` is True, along each axis that has a basis Q."""
    for axis, q in enumerate(bases):
        if q is not None:
            turned = jnp.tensordot(x, q if back else q.conj(), (axis, 1 if back else 0))
            x = jnp.moveaxis(turned, -1, axis)
    return x


def eigenvectors(factor: jax.Array) -> jax.Array:
    """Orthonormal eigenvectors as columns, by descending eigenvalue."""
    return jnp.linalg.eigh(jax.lax.stop_gradient(factor))[1][:, ::-1]


def _unit(u: jax.Array) -> jax.Array:
    """Returns u, scaled to root mean square 1. If u is 0, it stays 0."""
    (rms,) = sizes(u, mean=True)
    zero = rms.part == 0
    return rms.of(u) / jnp.where(zero, jnp.ones_like(rms.part), rms.part).astype(u.dtype)


def _sorted(v: Any, factors: Any, bases: Any) -> Any:
    """Reorders v in the same way as `_turned` reorders the columns of the bases."""
    for axis, (factor, q) in enumerate(zip(factors, bases, strict=True)):
        v = v if q is None else jnp.take(v, _order(factor, q), axis)
    return v


def _turned(v: Any, factors: Any, bases: Any) -> Any:
    """The bases after one power iteration (algorithm 4)."""
    return tuple(
        q if q is None else jnp.linalg.qr(jax.lax.stop_gradient(L @ q[:, _order(L, q)]))[0]
        for L, q in zip(factors, bases, strict=True)
    )


def _order(factor: jax.Array, q: jax.Array) -> jax.Array:
    """Column indices by descending eigenvalue. Power iteration converges only in this order."""
    return jnp.argsort(-jnp.real(jnp.sum(q.conj() * (factor @ q), 0)))


def _averaged(factors: Any, g: Any, beta: float) -> Any:
    """The new L of each axis: b L + (1 - b) g g^H, where the product sums over all other axes."""
    g = scaled_down(widened(g))

    def gram(axis: int) -> jax.Array:
        others = [other for other in range(g.ndim) if other != axis]
        return jnp.tensordot(g, g.conj(), (others, others))

    return tuple(
        L if L is None else beta * L + (1 - beta) * gram(axis) for axis, L in enumerate(factors)
    )


def _first_state(params: Any, longest: Callable[[Any], int]) -> ScaleBySoapState:
    def identities(p: Any) -> tuple[Any, ...]:
        return tuple(jnp.eye(n, dtype=wide(p.dtype)) if n <= longest(p) else None for n in p.shape)

    count, mu = jnp.zeros((), jnp.int32), jax.tree.map(filled(), params)
    nu = jax.tree.map(lambda m: jnp.zeros_like(m, jnp.finfo(m.dtype).dtype), mu)
    if is_placeholder(params):  # a placeholder has no shapes to make factors from
        return ScaleBySoapState(count, mu, nu, 0, 0)
    bases = jax.tree.map(identities, params)
    factors = jax.tree.map(jnp.zeros_like, bases)
    return ScaleBySoapState(count, mu, nu, factors, bases)


def _check_tree(who: str, updates: Any, mu: Any) -> None:
    like: Any = jax.tree.structure(updates)  # mypy does not know its methods
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (updates, mu)]
    if like != jax.tree.structure(mu) or shapes[0] != shapes[1]:
        raise different_trees(who, "updates", updates, "state.mu", mu)
