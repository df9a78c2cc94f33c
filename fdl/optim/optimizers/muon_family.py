"""Muon: momentum whose matrices are made orthogonal, so that every direction moves equally far.

Letters: m and n the sides of a matrix, i the step of the iteration, t the step of training from 1.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import EmptyState, GradientTransformationExtraArgs
from optax.contrib import MuonDimensionNumbers, MuonState

from fdl import paths
from fdl.checks import named_in_errors
from fdl.ops.newton_schulz import COEFFICIENTS, check_preconditioning, orthogonalize
from fdl.ops.numerics import shortened
from fdl.optim.chaining import chain
from fdl.optim.checks import check_least, check_momenta, check_positive
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import check_params, filled, increment, per_leaf
from fdl.optim.masking import is_function
from fdl.optim.moments import first_moment
from fdl.optim.optimizers.adam_family import adamw
from fdl.optim.protocol import transformation
from fdl.optim.wrappers.partitioning import partition
from fdl.typing import Mask, ScalarOrSchedule

Coefficients = Sequence[Any]
# optax.contrib.MuonDimensionNumbers or None, a tree of them, or a function of params to one.
DimensionNumbers = Any


@named_in_errors
def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Coefficients | str = COEFFICIENTS["standard"],
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: DimensionNumbers = None,
    consistent_rms: float | None = None,
) -> GradientTransformationExtraArgs:
    """Muon for matrices, AdamW for all other leaves.

        m = beta m + (1 - beta) g,    u = orthogonal(m^)
        W -= learning_rate * (sqrt(max(1, fan_out / fan_in)) * u + weight_decay * W)

    with m^ as in `nadam` (or `adam`); orthogonal(U S V^T) is about U V^T: see `orthogonalize`.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, count from 0.
      ns_coeffs: (a, b, c) of the iteration, or such a row for each step, or "standard" or "dion".
      ns_steps: of the iteration, >= 1; of rows, at most the last ns_steps are taken.
      beta: in (-1, 1), the share of m that each step keeps.
      eps: >= 0, added to norms, and AdamW's.
      weight_decay: >= 0, or a schedule; of the matrices.
      weight_decay_mask: which of them to decay; see `masked`.
      mu_dtype: of m; by default the parameters', float32 at least.
      nesterov: Dozat's first moment instead of Adam's.
      adaptive: multiply u by the dual norm of m^, the sum of its singular values.
      preconditioning: what is divided by at first; see `orthogonalize`.
      adam_b1: AdamW's b1.
      adam_b2: AdamW's b2.
      adam_eps_root: AdamW's eps_root.
      adam_weight_decay: AdamW's weight_decay.
      adam_learning_rate: AdamW's rate; by default learning_rate.
      muon_weight_dimension_numbers: which leaves are matrices, and how: for each leaf
        `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`, or None for AdamW; a
        tree, a prefix of it, or a function of params. By default all leaves of two axes,
        `[in, out]`. Axes that are not named are batches of matrices.
      consistent_rms: scale u by this times sqrt(max(fan_in, fan_out)); 0.2 is as large as AdamW's.

    Returns:
      A transformation; the state is that of `optax.contrib.muon`.

    Raises:
      ValueError: a rate, decay or eps that is negative or not finite; beta, adam_b1 or adam_b2
        out of range; coefficients, steps or a preconditioning that do not exist.

    Example:
      >>> optimizer, params = muon(0.5), {"w": 3 * jnp.eye(2), "b": jnp.ones(2)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> [[round(float(u), 3) for u in row] for row in updates["w"] + 0.0]
      [[-0.554, 0.0], [0.0, -0.554]]

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et
    al. 2025, arXiv 2502.16982, for consistent_rms; Bernstein and Newhouse 2024, arXiv 2409.20325,
    for adaptive. As in optax, m^ is corrected for its bias, which the authors leave out. A matrix
    with an element beyond 2^50 is divided by a power of two first; half precision is computed in
    float32.
    """
    dimensions = muon_weight_dimension_numbers

    def labels(params: Any) -> Any:
        if dimensions is None:
            return jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adam", params)
        found = dimensions(params) if is_function(dimensions) else dimensions
        return spread(found, params, lambda one, p: "adam" if one is None else "muon")

    matrices = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            weight_dimension_numbers=dimensions,
        ),
        scale_by_shape(dimensions, consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    rest = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    return partition({"muon": matrices, "adam": rest}, labels)


def scale_by_muon(
    ns_coeffs: Coefficients | str = COEFFICIENTS["standard"],
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    weight_dimension_numbers: DimensionNumbers = None,
) -> GradientTransformationExtraArgs:
    """orthogonal(m^) of `muon`, whose arguments these are.

    Returns:
      A transformation with state `optax.contrib.MuonState(count, mu, ns_coeffs)`.

    Raises:
      ValueError: beta outside (-1, 1); coefficients, steps or a preconditioning that do not
        exist; a leaf that is no matrix and has no dimension numbers.

    Example:
      >>> transform, g = scale_by_muon(), jnp.diag(jnp.array([1.0, 7.0]))
      >>> [round(float(s), 1) for s in jnp.diagonal(transform.update(g, transform.init(g))[0])]
      [0.8, 0.7]
    """
    who = "scale_by_muon"
    check_momenta(who, beta=beta)
    check_least(who, eps=eps)
    check_preconditioning(who, preconditioning)
    coefficients = _coefficients(ns_coeffs, ns_steps)

    def init(params: Any) -> MuonState:
        check_params(who, params)
        folds_of(who, weight_dimension_numbers, params)
        mu = jax.tree.map(filled(dtype=mu_dtype), params)
        return MuonState(jnp.zeros((), jnp.int32), mu, jnp.asarray(coefficients))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MuonState]:
        t = increment(state.count)
        with jax.numpy_dtype_promotion("standard"):
            first = first_moment(beta, t, nesterov)

        def rule(g: Any, fold: Fold, m: Any) -> Any:
            g = shortened(g)
            m = (1 - beta) * g + beta * m
            m_hat = first(m, g)
            u = fold.back(
                orthogonalize(fold(m_hat), state.ns_coeffs, ns_steps, preconditioning, eps)
            )
            return jnp.sum(m_hat.conj() * u) * u if adaptive else u, m

        others = {"folds": folds_of(who, weight_dimension_numbers, updates), "state.mu": state.mu}
        updates, mu = per_leaf(who, rule, updates, others, kept=1)
        return updates, MuonState(t, mu, state.ns_coeffs)

    return transformation(init, update)


def scale_by_shape(
    weight_dimension_numbers: DimensionNumbers = None, consistent_rms: float | None = None
) -> GradientTransformationExtraArgs:
    """sqrt(max(1, fan_out / fan_in)) * u, or consistent_rms * sqrt(max(fan_in, fan_out)) * u.

    Example:
      >>> u = jnp.ones((1, 4))
      >>> scale_by_shape().update(u, scale_by_shape().init(u))[0]
      Array([[2., 2., 2., 2.]], dtype=float32)
    """
    if consistent_rms is not None:
        check_positive("scale_by_shape", "0.2 is AdamW's size", consistent_rms=consistent_rms)

    def rule(u: Any, fold: Fold) -> Any:
        fan_in, fan_out = fold.fans
        if consistent_rms is None:
            return (jnp.sqrt(jnp.maximum(1, fan_out / fan_in)) * u,)
        return (jnp.sqrt(jnp.maximum(fan_in, fan_out)) * consistent_rms * u,)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        folds = folds_of("scale_by_shape", weight_dimension_numbers, updates)
        return per_leaf("scale_by_shape", rule, updates, {"folds": folds})[0], state

    return transformation(lambda params: EmptyState(), update)


def _coefficients(given: Any, steps: int) -> Any:
    """(3,), or a row for each step; the last ones, if there are too many."""
    if isinstance(given, str) and given not in COEFFICIENTS:
        raise ValueError(
            f"muon: expected ns_coeffs of {', '.join(COEFFICIENTS)}, or numbers, got {given!r}; "
            "leave it out for the usual ones"
        )
    found = COEFFICIENTS[given] if isinstance(given, str) else given
    shape = np.shape(found)
    if len(shape) not in (1, 2) or shape[-1] != 3:
        raise ValueError(
            f"muon: expected ns_coeffs (a, b, c) or one such row for each step, got shape "
            f"{list(shape)}; give three numbers, those of a x + b x^3 + c x^5"
        )
    if steps < 1:
        raise ValueError(f"muon: expected ns_steps >= 1, got {steps}; 5 is usual")
    return found[-steps:] if len(shape) == 2 else found


@dataclasses.dataclass(frozen=True)
class Fold:
    """How an array is seen as matrices [batch, fan_in, fan_out], and back.

    Args:
      shape: of the array.
      reduction: the axes that x W sums over, from 0.
      output: the axes that stay. Those in neither are the batch.
    """

    shape: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The axes as batch, reduction, output."""
        named = (*self.reduction, *self.output)
        return (*(axis for axis in range(len(self.shape)) if axis not in named), *named)

    @property
    def fans(self) -> tuple[int, int]:
        """(fan_in, fan_out): the sizes of the matrices."""
        fan_in, fan_out = (
            math.prod(self.shape[axis] for axis in axes) for axes in (self.reduction, self.output)
        )
        return fan_in, fan_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """The array as matrices."""
        return x.transpose(self.order).reshape(-1, *self.fans)

    def back(self, x: jax.Array) -> jax.Array:
        """Matrices as the array."""
        place = [self.order.index(axis) for axis in range(len(self.shape))]
        return x.reshape([self.shape[axis] for axis in self.order]).transpose(place)


def folds_of(who: str, dimensions: DimensionNumbers, tree: Any) -> Any:
    """The tree with a Fold at each leaf.

    Args:
      who: in front of error messages.
      dimensions: `optax.contrib.MuonDimensionNumbers` for each leaf, or None where it is a matrix
        [in, out]; a tree, a prefix of it, or a function of the tree.
      tree: of arrays.

    Raises:
      ValueError: an array that is no matrix, without dimension numbers; axes that it has not.
    """
    found = dimensions(tree) if is_function(dimensions) else dimensions
    numbers = spread(found, tree, lambda one, leaf: _Leaf(one))
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf, own: _fold(who, paths.path_of(keys), jnp.shape(leaf), own.numbers),
        tree,
        numbers,
    )


def spread(dimensions: Any, tree: Any, f: Callable[[Any, Any], Any]) -> Any:
    """f(dimension numbers or None, leaf) at each leaf; the numbers may be a prefix of the tree."""
    return jax.tree.map(
        lambda one, part: jax.tree.map(lambda leaf: f(one, leaf), part),
        dimensions,
        tree,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Dimension numbers as one leaf of a tree."""

    numbers: Any


def _fold(who: str, path: str, shape: tuple[int, ...], numbers: Any) -> Fold:
    if numbers is None and len(shape) != 2:
        raise ValueError(
            f"{who}: expected a matrix at {path!r}, got shape {list(shape)}; name its axes with "
            "optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)"
        )
    numbers = MuonDimensionNumbers() if numbers is None else MuonDimensionNumbers(*numbers)
    reduction, output = ((axes,) if isinstance(axes, int) else tuple(axes) for axes in numbers)
    named = (*reduction, *output)
    inside = all(-len(shape) <= axis < len(shape) for axis in named)
    positive = [axis % len(shape) for axis in named] if inside else []
    if not (inside and reduction and output) or len(set(positive)) < len(positive):
        raise ValueError(
            f"{who}: expected reduction and output axes of shape {list(shape)} at {path!r}, each "
            f"once, got {tuple(numbers)}; give None to a leaf that is no matrix"
        )
    split = len(reduction)
    return Fold(shape, tuple(positive[:split]), tuple(positive[split:]))
