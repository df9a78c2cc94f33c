"""Ensembles: the mean prediction of several networks, and how far they disagree."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.checks import described
from fdl.core.layer import Layer
from fdl.ops.numerics import widened
from fdl.train.evaluation import BATCH_SIZE, predict
from fdl.typing import Array


class Ensemble(NamedTuple):
    """The predictions of M networks for N examples.

    Args:
      mean: [N, ...], the mean over the networks.
      spread: [N, ...], the standard deviation over the networks (with divisor M, not M - 1).
      each: [M, N, ...], the predictions of each network.
    """

    mean: Any
    spread: Any
    each: Any


def ensemble(
    model: Layer | Callable[..., Any],
    members: Sequence[Any],
    x: Any,
    *,
    activation: Callable[[Array], Array] | None = None,
    batch_size: int = BATCH_SIZE,
    **inputs: Any,
) -> Ensemble:
    """Predicts with several networks, and averages their predictions.

    For a classifier, pass `activation=fdl.softmax`, so that probabilities are averaged and not
    logits. `fdl.accuracy(found.mean, y)` is then 1 for each example that is predicted correctly,
    and `fdl.metrics.calibration_error()` takes `jnp.log(found.mean)` as logits.

    Args:
      model: a Layer, or a function `(params, x, **inputs) -> y`.
      members: a list of M >= 1 networks, each in a form that `predict` takes: a run, a result of
        `fit`, or a pytree of params. For a sweep, pass `found.members()`.
      x: a pytree of arrays [N, ...].
      activation: a function of the outputs [M, N, ...], which is applied before averaging.
      batch_size: the number of examples that are computed at once, an int >= 1.
      inputs: the model's extra inputs by name, pytrees of arrays [N, ...].

    Returns:
      An `Ensemble`, in float32 or wider. If the model returns a pytree, the fields of the
      `Ensemble` are such pytrees.

    Raises:
      ValueError: members is not a list, or is empty.
      Any error that `predict` raises.

    Example:
      >>> found = ensemble(lambda w, x: w * x, [1.0, 3.0], jnp.array([1.0, 2.0]))
      >>> found.mean.tolist(), found.spread.tolist()
      ([2.0, 4.0], [1.0, 2.0])

    Source: Lakshminarayanan, Pritzel and Blundell 2017, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles", arXiv 1612.01474, section 2.4.
    """
    listed = isinstance(members, Sequence) and not hasattr(members, "_fields")
    if not listed or not members:
        raise ValueError(
            f"ensemble: expected a list of one or more runs, got {described(members)}; pass "
            "found.members() of a sweep, or [result_1.run, result_2.run]"
        )
    how = {"batch_size": batch_size, **inputs}
    outputs = [predict(model, member, x, **how) for member in members]
    each = jax.tree.map(lambda *ys: widened(jnp.stack(ys)), *outputs)
    if activation is not None:
        each = jax.tree.map(activation, each)
    mean = jax.tree.map(lambda y: y.mean(0), each)
    spread = jax.tree.map(lambda y: y.std(0), each)
    return Ensemble(mean, spread, each)
