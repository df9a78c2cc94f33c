"""Objectives: the forward pass and the loss as one pure function that `jax.grad` can take.

An objective is any `(params, state, batch, key) -> (loss, (state, metrics))`. A key means training;
None means evaluation. `supervised` makes one of a model and a loss, `plain` one of a function of
your own; writing it yourself is as good.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.layer import Layer
from fdl.losses import Loss, check_targets
from fdl.metrics import Metric
from fdl.paths import leaves
from fdl.train.means import Seen, weighted_mean
from fdl.weak_jit import weak_jit

Objective = Callable[..., tuple[Any, tuple[Any, Any]]]


def supervised(
    model: Layer | Callable[..., Any], loss: Loss, **metrics: Loss | Metric
) -> "Supervised":
    """The objective of learning from examples: predict y from x, and score the prediction.

    Args:
      model: a Layer, or a plain function `(params, x) -> y_pred`.
      loss: `(y_pred, y) -> [B, ...]`, per example.
      metrics: further such functions by name, to be reported: `accuracy=fdl.accuracy`; or a
        `fdl.metrics.Metric` whose value is one number: `f1=fdl.metrics.f1("macro", classes=10)`.

    Returns:
      An objective. Its batch is `(x, y)`, `(x, y, weight)`, or a dict with the entries x, y,
      perhaps weight, and the model's extra inputs. What has weight 0 counts as nothing, and a NaN
      or an infinity in it is read as 0, lest it reach the gradient.

    Raises:
      ValueError: a metric called loss, or a Metric whose value is not one number.
      PathError: at the call, where the model or the loss cannot take the batch.

    Example:
      >>> from fdl.losses import squared_error
      >>> objective = supervised(lambda w, x: w * x, squared_error)
      >>> loss, (state, metrics) = objective(2.0, {}, (jnp.ones(3), jnp.zeros(3)), None)
      >>> float(loss)
      4.0
    """
    if "loss" in metrics:
        raise ValueError(
            "supervised: expected another name for a metric, got 'loss'; the loss itself has it"
        )
    for name, metric in metrics.items():
        if isinstance(metric, Metric):
            value = jax.eval_shape(lambda metric=metric: metric.compute(metric.init()))
            shapes = [f"{each.dtype} {list(each.shape)}" for each in jax.tree.leaves(value)]
            if len(shapes) != 1 or not shapes[0].endswith("[]"):
                raise ValueError(
                    "supervised: expected metrics whose value is one number, got "
                    f"{', '.join(shapes)} from {name!r}; update that one on the outputs of "
                    "fdl.predict"
                )
    return Supervised(model, loss, tuple(metrics.items()))


@dataclasses.dataclass(frozen=True)
class Supervised:
    """See `supervised`; equal ones (the same model, loss and metrics) share their compilations.

    Args:
      model: a Layer or a function `(params, x) -> y_pred`.
      loss: `(y_pred, y) -> [B, ...]`.
      metrics: pairs of name and function or Metric.

    Example:
      >>> from fdl.losses import squared_error
      >>> model = lambda w, x: w * x
      >>> supervised(model, squared_error) == supervised(model, squared_error)
      True
    """

    model: Layer | Callable[..., Any]
    loss: Loss
    metrics: tuple[tuple[str, Loss | Metric], ...] = ()

    def __call__(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """Forward pass and loss: (loss, (state, metrics)); loss is a scalar."""
        x, y, weight, inputs = _unpack(batch)
        x, y, inputs = _spared((x, y, inputs), weight)
        y_pred, state = self.forward(params, state, x, key, **inputs)
        means = self.score(y_pred, y, weight)
        return means["loss"].value(), (state, means)

    def forward(self, params: Any, state: Any, x: Any, key: Any, **inputs: Any) -> tuple[Any, Any]:
        """Step 2 of the training loop: run the network on x, obtain y_pred."""
        if not isinstance(self.model, Layer):
            return self.model(params, x, **inputs), state
        train = key is not None
        return self.model.apply(params, state, x, key=key, train=train, **inputs)

    def score(self, y_pred: Any, y: Any, weight: Any = None) -> dict[str, Any]:
        """Step 3: how far y_pred is from y, as means under the names loss and of the metrics."""
        return {
            name: Seen(f, y_pred, y, weight)
            if isinstance(f, Metric)
            else weighted_mean(f(y_pred, y), weight)
            for name, f in (("loss", self.loss), *self.metrics)
        }

    def spared(self, data: Any) -> Any:
        """The data with 0 for what is not finite in rows of weight 0, as the loss reads them."""
        _, _, weight, _ = _unpack(data)
        return _spared(data, weight)

    def check(self, params: Any, state: Any, data: Any) -> None:
        """Refuses data that the model or the loss cannot take, before anything is trained."""
        x, y, _, inputs = _unpack(data)
        y_pred, _ = _forward.eval_shape(params, state, *_row((x, inputs)), objective=self)
        if len(leaves(y)) == 1:
            check_targets(self.loss, y_pred, y)


def plain(loss: Callable[[Any, Any], Any]) -> "Plain":
    """An objective of a plain `(params, batch) -> loss`.

    Args:
      loss: a pure function that gives a scalar, the mean over the batch.

    Example:
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> float(objective(1.0, {}, jnp.array([0.0, 2.0]), None)[0])
      1.0
    """
    return Plain(loss)


@dataclasses.dataclass(frozen=True)
class Plain:
    """See `plain`.

    Args:
      loss: `(params, batch) -> scalar`.
    """

    loss: Callable[[Any, Any], Any]

    def __call__(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """(loss, (state, no further metrics))."""
        return self.loss(params, batch), (state, {})


def _unpack(batch: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(x, y, weight, extra inputs) of a batch in any of its forms."""
    if isinstance(batch, Mapping):
        rest = dict(batch)
        if "x" in rest and "y" in rest:
            return rest.pop("x"), rest.pop("y"), rest.pop("weight", None), rest
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None, {}
    what = f"entries {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
    raise ValueError(
        "supervised: expected data (x, y), (x, y, weight) or a dict with x and y, got "
        f"{what}{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}; "
        "or write the objective yourself, see fdl.plain"
    )


def _spared(tree: Any, weight: Any) -> Any:
    """The batch with 0 for each number that is none in what has weight 0.

    A mean leaves such an example out, but its gradient multiplies by 0, which NaN survives.
    """
    if weight is None:
        return tree
    out = jnp.asarray(weight) == 0

    def spared(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if not floating or jnp.shape(leaf)[: out.ndim] != out.shape:
            return leaf
        leaf = jnp.asarray(leaf)
        here = out.reshape(*out.shape, *(1,) * (leaf.ndim - out.ndim))
        return jnp.where(here & ~jnp.isfinite(leaf), jnp.zeros_like(leaf), leaf)

    return jax.tree.map(spared, tree)


def _row(tree: Any) -> Any:
    """The shapes of a batch of one row of data."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[1:]), jnp.result_type(leaf)), tree
    )


@weak_jit(static=["objective"])
def _forward(params: Any, state: Any, x: Any, inputs: Any, *, objective: Supervised) -> Any:
    # Never run: as a jitted function it remembers the shapes of what it has seen.
    return objective.forward(params, state, x, None, **inputs)
