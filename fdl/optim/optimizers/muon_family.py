"""Muon: makes the momentum of each matrix orthogonal, so steps are equally long in all directions.

In the formulas, g is the gradient, m is its first moment, and t is the step of training, which
starts at 1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import EmptyState, GradientTransformationExtraArgs
from optax.contrib import MuonDimensionNumbers, MuonState

from fdl import paths
from fdl.checks import OptionError, named_in_errors
from fdl.ops.newton_schulz import COEFFICIENTS, check_preconditioning, orthogonalize
from fdl.ops.numerics import scaled_down
from fdl.optim.chaining import chain
from fdl.optim.checks import (
    check_decays,
    check_fractions,
    check_least,
    check_momenta,
    check_positive,
    check_rates,
    check_whole,
)
from fdl.optim.learning_rate import add_decayed_weights, scale_by_learning_rate
from fdl.optim.lifting import check_params, filled, increment, per_leaf
from fdl.optim.masking import is_function
from fdl.optim.moments import first_moment
from fdl.optim.optimizers.adam_family import adamw
from fdl.optim.protocol import transformation
from fdl.optim.wrappers.partitioning import partition
from fdl.typing import Mask, ScalarOrSchedule

Coefficients = Sequence[Any]
# A tree whose leaves are optax.contrib.MuonDimensionNumbers or None. One leaf may also stand for a
# whole subtree of params. Instead, it can be a function that takes params and returns such a tree.
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

    m^ is computed as in `nadam`, or as in `adam` if nesterov is False, with beta in place of b1.
    orthogonal(U S V^T) is approximately U V^T; see `orthogonalize`.

    Args:
      learning_rate: >= 0, or a schedule `count -> rate`, where count starts at 0.
      ns_coeffs: the coefficients (a, b, c) of all iterations; one row (a, b, c) for each iteration;
        or a name, "standard" or "dion".
      ns_steps: >= 1, the number of iterations. If ns_coeffs has more than ns_steps rows, the last
        ns_steps rows are used. If it has fewer rows, there is one iteration for each row.
      beta: in (-1, 1), the share of m that each step keeps.
      eps: >= 0, added to norms, and also used as the eps of AdamW.
      weight_decay: >= 0, or a schedule; the weight decay of the matrices.
      weight_decay_mask: which matrices to decay; see `masked`.
      mu_dtype: dtype of m; by default the parameters' dtype, at least float32.
      nesterov: True computes m^ as in `nadam`, False as in `adam`. The same holds for AdamW.
      adaptive: True multiplies u by the dual norm of m^, the sum of its singular values.
      preconditioning: how m^ is scaled before the iteration; see `orthogonalize`.
      adam_b1: AdamW's b1.
      adam_b2: AdamW's b2.
      adam_eps_root: AdamW's eps_root.
      adam_weight_decay: AdamW's weight_decay.
      adam_learning_rate: AdamW's learning rate, a number or a schedule. None means learning_rate.
      muon_weight_dimension_numbers: which leaves are matrices, and which of their axes are rows and
        columns. It is a tree with the structure of params, or a function that takes params and
        returns such a tree; one entry may also stand for a whole subtree. An entry is an
        `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`, or None, which means
        AdamW. All axes that an entry does not mention are batch axes. By default, all leaves with
        two axes are matrices `[in, out]`.
      consistent_rms: a number > 0, or None. A number means that u is multiplied by consistent_rms *
        sqrt(max(fan_in, fan_out)) instead of sqrt(max(1, fan_out / fan_in)). With 0.2, steps are
        about as large as those of AdamW.

    Returns:
      A transformation with the same state as `optax.contrib.muon`.

    Raises:
      ValueError: a rate, a decay or an eps is negative or not finite; beta, adam_b1, adam_b2 or
        consistent_rms is out of range; ns_coeffs, ns_steps or preconditioning is not one
        of the values above.

    Example:
      >>> optimizer, params = muon(0.5), {"w": 3 * jnp.eye(2), "b": jnp.ones(2)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> [[round(float(u), 3) for u in row] for row in updates["w"] + 0.0]
      [[-0.554, 0.0], [0.0, -0.554]]

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et
    al. 2025, arXiv 2502.16982, for consistent_rms; Bernstein and Newhouse 2024, arXiv 2409.20325,
    for adaptive. As in optax, m^ has a bias correction; the authors do not use one. The gradient of
    a leaf is first divided by a power of two if one of its elements is 2^51 or larger in absolute
    value. Half-precision matrices are computed in float32.
    """
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    check_rates("muon", learning_rate=learning_rate, adam_learning_rate=adam_rate)
    check_decays("muon", adam_weight_decay=adam_weight_decay)
    check_momenta("muon", adam_b1=adam_b1)
    check_fractions("muon", adam_b2=adam_b2)
    check_least("muon", adam_eps_root=adam_eps_root)
    check_preconditioning("muon", preconditioning)
    dimensions = muon_weight_dimension_numbers

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
        adam_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    return partition({"muon": matrices, "adam": rest}, functools.partial(_labels, dimensions))


def _labels(dimensions: DimensionNumbers, params: Any) -> Any:
    """The name of the optimizer of each leaf, "muon" or "adam"."""
    if dimensions is None:
        return jax.tree.map(lambda p: "muon" if p.ndim == 2 else "adam", params)
    numbers = dimensions(params) if is_function(dimensions) else dimensions
    return spread(numbers, params, lambda number, p: "adam" if number is None else "muon")


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
    """The direction of `muon`: orthogonal(m^).

    `muon` describes the arguments.

    Returns:
      A transformation with state `optax.contrib.MuonState(count, mu, ns_coeffs)`.

    Raises:
      ValueError: beta, eps, ns_coeffs, ns_steps or preconditioning has a value that `muon` does not
        allow; at init, a leaf has no dimension numbers and does not have exactly two axes.

    Example:
      >>> transform, g = scale_by_muon(), jnp.diag(jnp.array([1.0, 7.0]))
      >>> [round(float(s), 1) for s in jnp.diagonal(transform.update(g, transform.init(g))[0])]
      [0.8, 0.7]
    """
    who = "scale_by_muon"
    check_momenta(who, beta=beta)
    check_least(who, eps=eps)
    check_preconditioning(who, preconditioning)
    check_whole(who, "5 is usual", ns_steps=ns_steps)
    ns_steps = int(ns_steps)
    coefficients = _coefficients(who, ns_coeffs, ns_steps)

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
            g = scaled_down(g)
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

    u is the update of a matrix [fan_in, fan_out].

    Args:
      weight_dimension_numbers: for each leaf, an `optax.contrib.MuonDimensionNumbers`, or None,
        which means a matrix [in, out]; see `muon`.
      consistent_rms: > 0. None means the first form, a number means the second form.

    Returns:
      A transformation without state.

    Raises:
      ValueError: consistent_rms is out of range; at update, a leaf has no dimension numbers and
        does not have exactly two axes.

    Example:
      >>> u = jnp.ones((1, 4))
      >>> scale_by_shape().update(u, scale_by_shape().init(u))[0]
      Array([[2., 2., 2., 2.]], dtype=float32)
    """
    if consistent_rms is not None:
        remedy = "with 0.2, steps are about as large as those of AdamW"
        check_positive("scale_by_shape", remedy, consistent_rms=consistent_rms)

    def rule(u: Any, fold: Fold) -> Any:
        fan_in, fan_out = fold.fans
        if consistent_rms is None:
            return (jnp.sqrt(jnp.maximum(1, fan_out / max(fan_in, 1))) * u,)
        return (jnp.sqrt(jnp.maximum(fan_in, fan_out)) * consistent_rms * u,)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        folds = folds_of("scale_by_shape", weight_dimension_numbers, updates)
        return per_leaf("scale_by_shape", rule, updates, {"folds": folds})[0], state

    return transformation(lambda params: EmptyState(), update)


def _coefficients(who: str, ns_coeffs: Any, ns_steps: int) -> Any:
    """(a, b, c) for all iterations, or the last ns_steps rows of a table of (a, b, c)."""
    if isinstance(ns_coeffs, str) and ns_coeffs not in COEFFICIENTS:
        raise OptionError(
            who,
            f"expected ns_coeffs as numbers or {' or '.join(map(repr, COEFFICIENTS))}, got "
            f"{ns_coeffs!r}; leave it out to use 'standard'",
        )
    rows = COEFFICIENTS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    shape = np.shape(rows)
    if len(shape) not in (1, 2) or shape[-1] != 3:
        raise OptionError(
            who,
            "expected ns_coeffs as (a, b, c) or one such row per iteration, got shape "
            f"{list(shape)}; pass the three coefficients of a x + b x^3 + c x^5",
        )
    return rows[-ns_steps:] if len(shape) == 2 else rows


@dataclasses.dataclass(frozen=True)
class Fold:
    """Reshapes an array to matrices [batch, fan_in, fan_out], and back.

    Args:
      shape: shape of the array W.
      reduction: the axes of W that a product x W sums over. The first axis is 0.
      output: the axes of W that remain in x W. All other axes are batch axes.
    """

    shape: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The axes in the order batch, reduction, output."""
        named = (*self.reduction, *self.output)
        return (*(axis for axis in range(len(self.shape)) if axis not in named), *named)

    @property
    def fans(self) -> tuple[int, int]:
        """(fan_in, fan_out), the sides of the matrices."""
        fan_in, fan_out = (
            math.prod(self.shape[axis] for axis in axes) for axes in (self.reduction, self.output)
        )
        return fan_in, fan_out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reshapes an array to matrices."""
        fan_in, fan_out = self.fans
        batch = x.size // max(fan_in * fan_out, 1)
        return x.transpose(self.order).reshape(batch, fan_in, fan_out)

    def back(self, x: jax.Array) -> jax.Array:
        """Reshapes matrices to an array of the original shape."""
        place = [self.order.index(axis) for axis in range(len(self.shape))]
        return x.reshape([self.shape[axis] for axis in self.order]).transpose(place)


def folds_of(who: str, dimensions: DimensionNumbers, tree: Any) -> Any:
    """A tree with a `Fold` for each leaf.

    Args:
      who: name of the transformation, for error messages.
      dimensions: for each leaf an `optax.contrib.MuonDimensionNumbers`, or None, which means a
        matrix [in, out]. It is a tree with the structure of `tree`, or a function that takes `tree`
        and returns such a tree. One entry may also stand for a whole subtree.
      tree: a pytree of arrays.

    Raises:
      ValueError: a leaf without dimension numbers does not have exactly two axes; dimension numbers
        contain an axis that does not exist, or the same axis twice.
    """
    dimensions = dimensions(tree) if is_function(dimensions) else dimensions
    numbers = spread(dimensions, tree, lambda number, leaf: _Leaf(number))
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf, held: _fold(who, paths.path_of(keys), jnp.shape(leaf), held.numbers),
        tree,
        numbers,
    )


def spread(dimensions: Any, tree: Any, f: Callable[[Any, Any], Any]) -> Any:
    """f(dimension numbers or None, leaf) at each leaf. One entry may stand for a whole subtree."""
    return jax.tree.map(
        lambda number, part: jax.tree.map(lambda leaf: f(number, leaf), part),
        dimensions,
        tree,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Wraps dimension numbers, which are a tuple, so that JAX treats them as one leaf of a tree."""

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
            f"{who}: expected reduction and output axes of shape {list(shape)} at {path!r}, "
            f"without repeats, got {tuple(numbers)}; pass None for a leaf that is not a matrix"
        )
    split = len(reduction)
    return Fold(shape, tuple(positive[:split]), tuple(positive[split:]))
