"""Objectives: the forward pass and the loss as one pure function, for `jax.grad`.

An objective is any function `(params, state, batch, key) -> (loss, (state, metrics))`. In training,
key is a random key; in evaluation, key is None. `supervised` makes an objective from a model and a
loss. `plain` makes an objective from a function `(params, batch) -> loss`. You can also write an
objective yourself.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import described, is_number
from fdl.core.compilation import weak_jit
from fdl.core.layer import Layer, key_and_train
from fdl.losses import check_targets
from fdl.losses.per_example import counting, rows_of_batch
from fdl.metrics import Metric
from fdl.metrics.metric import weight_of_counted
from fdl.ops.rank_promotion import free_ranks
from fdl.paths import PathError, leaves, shortened, traced_in
from fdl.train.accumulators import Mean, Seen, Tally, weighted_mean
from fdl.train.batches import batch_of, check_weight, unpack, without_ignored
from fdl.train.checks import check_loss, check_model, check_params_of_layer, metric_of
from fdl.typing import Loss, Objective


def supervised(
    model: Layer | Callable[..., Any], loss: Loss, **metrics: Loss | Metric
) -> "Supervised":
    """An objective for supervised learning: predict y from x, and score the prediction.

    The loss of a batch is sum(weight * loss(y_pred, y)) / sum(weight), over all its examples.

    Args:
      model: a Layer, or a function `(params, x) -> y_pred`. If the function has an argument named
        `key` or `train`, the objective passes it.
      loss: a function `(y_pred, y) -> [B, ...]`, with one or more values for each example. To
        ignore some targets, call a loss of fdl with the option that says which, for example
        `fdl.softmax_cross_entropy(ignore_index=-100)`. These targets are left out of the mean loss
        and of the metrics. If you wrap such a loss in your own function, such as a lambda,
        `supervised` cannot see the option: then also put the weight `y != -100` into the batch.
      metrics: other values to report, by name. Each is a function like `loss`
        (`accuracy=fdl.accuracy`) or a `fdl.metrics.Metric` whose value is one number
        (`f1=fdl.metrics.f1("macro", classes=10)`). If all arguments of the function that makes a
        Metric have defaults, you can pass the function itself (`auc=fdl.metrics.auc`).

    Returns:
      An objective. Its batch is `(x, y)`, `(x, y, weight)`, or a dict with x, y, the model's extra
      inputs and optionally weight. The weights are >= 0. Their shape is [B]. If `loss` returns more
      axes, for example [B, T], the weights may also have the shape [B, T]. Examples of weight 0 are
      ignored: their numbers are set to 0, so that a NaN, or a label that is out of range, cannot
      reach the gradient.

    Raises:
      TypeError: a model, a loss or a metric is in the wrong place.
      ValueError: a metric has the name "loss", or the value of a Metric is not one number.
      PathError: the objective is called with a batch that the model or the loss cannot take.

    Example:
      >>> from fdl.losses import squared_error
      >>> objective = supervised(lambda w, x: w * x, squared_error)
      >>> loss, (state, metrics) = objective(2.0, {}, (jnp.ones(3), jnp.zeros(3)), None)
      >>> float(loss)
      4.0
    """
    if "loss" in metrics:
        raise ValueError(
            "supervised: expected another name for a metric, got 'loss', which is the name of the "
            "loss itself; rename the metric"
        )
    check_model("supervised", model)
    check_loss("supervised", "loss", loss)
    metrics = {name: metric_of("supervised", name, each) for name, each in metrics.items()}
    for name, metric in metrics.items():
        if isinstance(metric, Metric):
            value = jax.eval_shape(lambda metric=metric: metric.compute(metric.init()))
            shapes = [f"{each.dtype} {list(each.shape)}" for each in jax.tree.leaves(value)]
            if len(shapes) != 1 or not shapes[0].endswith("[]"):
                raise ValueError(
                    "supervised: expected metrics whose value is one number, got "
                    f"{shortened(', '.join(shapes), 200)} from {name!r:.60}; compute that metric "
                    "from the outputs of fdl.predict"
                )
    return Supervised(model, loss, tuple(metrics.items()))


@dataclasses.dataclass(frozen=True, repr=False)
class Supervised:
    """What `supervised` returns.

    Two objectives with the same model, loss and metrics are equal, so they share compiled code.

    Args:
      model: a Layer, or a function `(params, x) -> y_pred`.
      loss: a function `(y_pred, y) -> [B, ...]`.
      metrics: pairs (name, metric), where the metric is a function or a Metric.

    Example:
      >>> from fdl.losses import squared_error
      >>> model = lambda w, x: w * x
      >>> supervised(model, squared_error) == supervised(model, squared_error)
      True
    """

    model: Layer | Callable[..., Any]
    loss: Loss
    metrics: tuple[tuple[str, Loss | Metric], ...] = ()

    def __repr__(self) -> str:
        functions = (("loss", self.loss), *self.metrics)
        given = ", ".join(f"{name} {described(f)}" for name, f in functions)
        return f"<Supervised of {described(self.model)}; {shortened(given, 200)}>"

    def __call__(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """Computes the forward pass and the loss; returns (scalar loss, (state, metrics))."""
        with free_ranks():
            means, _, state = self.report(params, state, batch, key)
        return means["loss"].value(), (state, means)

    def report(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, Any]:
        """Computes the forward pass and the loss; returns (means by name, y_pred, state)."""
        x, y, weight, inputs = unpack(batch)
        x, y, inputs = without_ignored(x, y, inputs, weight)
        y_pred, state = self.forward(params, state, x, key, **inputs)
        return self.score(y_pred, y, weight), y_pred, state

    def forward(self, params: Any, state: Any, x: Any, key: Any, **inputs: Any) -> tuple[Any, Any]:
        """Step 2 of the training loop: runs the network on x; returns (y_pred, state)."""
        train = key is not None
        if not isinstance(self.model, Layer):
            wanted = key_and_train(self.model, key, train)
            return self.model(params, x, **inputs, **wanted), state
        return self.model.apply(params, state, x, key=key, train=train, **inputs)

    def score(self, y_pred: Any, y: Any, weight: Any = None) -> dict[str, Any]:
        """Step 3 of the training loop: measures how far y_pred is from y.

        Returns:
          A dict, name -> mean loss or metric.
        """
        with free_ranks():
            return {
                name: self._mean(f, y_pred, y, weight)
                for name, f in (("loss", self.loss), *self.metrics)
            }

    def _mean(self, f: Loss | Metric, y_pred: Any, y: Any, weight: Any) -> Any:
        values = y if isinstance(f, Metric) else f(y_pred, y, **rows_of_batch(f, weight))
        for counts in (counting(self.loss, y), counting(f, y)):
            weight = weight_of_counted(weight, counts, np.shape(values))
        return (
            Seen(f, y_pred, y, weight) if isinstance(f, Metric) else weighted_mean(values, weight)
        )

    def without_ignored(self, data: Any) -> Any:
        """The data, with all numbers in examples of weight 0 replaced by 0, as in a batch."""
        x, y, weight, inputs = unpack(data)
        x, y, inputs = without_ignored(x, y, inputs, weight)
        if isinstance(data, Mapping):
            return {**data, "x": x, "y": y, **inputs}
        return (x, y, weight)[: len(data)]

    def check_pairing(self, outputs: list[Any], batch: Any) -> None:
        """Raises if a loss broadcasts predictions [B, 1] against targets [B], or the other way.

        To find out, the loss is also computed with both arrays in the shape of the targets, and
        with both in the shape of the predictions. If the loss broadcasts, these two values are
        equal, but differ from the value for the original shapes. This is not so for a loss that is
        meant for two different shapes.

        Args:
          outputs: the predictions for the batch, as a list of arrays.
          batch: as in `supervised`.
        """
        y = unpack(batch)[1]
        if len(outputs) != 1 or not hasattr(y, "shape"):
            return
        [y_pred] = outputs
        if y_pred.shape == y.shape or y_pred.size != y.size:
            return
        for name, f in (("loss", self.loss), *self.metrics):
            if isinstance(f, Metric):
                continue
            try:
                one = float(jnp.mean(f(y_pred.reshape(y.shape), y)))
                other = float(jnp.mean(f(y_pred, y.reshape(y_pred.shape))))
            except Exception:  # f does not take the other shape
                continue
            near = functools.partial(np.isclose, one, rtol=1e-3, equal_nan=True)
            if near(other) and not near(float(jnp.mean(f(y_pred, y)))):
                shapes = (f"[{', '.join(['B', *map(str, x.shape[1:])])}]" for x in (y_pred, y))
                raise PathError(
                    f"expected {name} to get predictions and targets of the same shape, got "
                    f"{' and '.join(shapes)}, which broadcast against each other; reshape one of "
                    "them",
                    layer="supervised",
                )

    def check(self, params: Any, state: Any, data: Any) -> None:
        """Raises unless the model and the loss can take the data."""
        check_params_of_layer("supervised", self.model, params)
        x, y, weight, inputs = unpack(data)
        check_weight(weight)
        shapes = []
        for rows in (1, 2):
            one_x, one_inputs = batch_of(rows, (x, inputs))
            with traced_in("supervised"):
                y_pred, _ = _forward.eval_shape(params, state, one_x, one_inputs, objective=self)
                shapes.append(_scores.eval_shape(y_pred, batch_of(rows, y), objective=self))
        for name, one in shapes[0].items():
            two = shapes[1][name]
            if one.shape[1:] != two.shape[1:]:
                raise PathError(
                    f"expected {name} as a number for each example, [B] or [B, ...], got "
                    f"{list(one.shape)} for one example and {list(two.shape)} for two; predictions "
                    "and targets broadcast against each other: give both the same shape",
                    layer="supervised",
                )
        known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((y, weight)))
        if len(leaves(y)) == 1 and known:
            check_targets(self.loss, y_pred, y, weight)


def plain(loss: Callable[[Any, Any], Any]) -> "Plain":
    """An objective from a function `(params, batch) -> loss`.

    Args:
      loss: a pure function that returns a scalar, the mean loss of the batch. If it has an argument
        named `key` or `train`, the objective passes it. In evaluation, key is None and train is
        False.

    Returns:
      An objective that reports no metrics and returns the state unchanged.

    Raises:
      TypeError: loss is not a function.

    Example:
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> float(objective(1.0, {}, jnp.array([0.0, 2.0]), None)[0])
      1.0
    """
    if isinstance(loss, Layer) or not callable(loss):
        raise TypeError(
            f"plain: expected a function (params, batch) -> loss, got {described(loss)}; "
            "fdl.supervised makes an objective from a model and a loss"
        )
    return Plain(loss)


@dataclasses.dataclass(frozen=True)
class Plain:
    """What `plain` returns.

    Args:
      loss: a function `(params, batch) -> scalar`.
    """

    loss: Callable[[Any, Any], Any]

    def __call__(self, params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """Computes the loss; returns (loss, (state, {})), with the state unchanged."""
        wanted = key_and_train(self.loss, key, key is not None)
        return self.loss(params, batch, **wanted), (state, {})


@weak_jit(static=["objective"])
def _forward(params: Any, state: Any, x: Any, inputs: Any, *, objective: Supervised) -> Any:
    """Only the `eval_shape` of this function is used; jit caches the result for each shape."""
    return objective.forward(params, state, x, None, **inputs)


@weak_jit(static=["objective"])
def _scores(y_pred: Any, y: Any, *, objective: Supervised) -> Any:
    """The loss and metrics of each example. Only the `eval_shape` of this function is used."""
    functions = (("loss", objective.loss), *objective.metrics)
    return {name: f(y_pred, y) for name, f in functions if not isinstance(f, Metric)}


def report_of(
    objective: Objective, params: Any, state: Any, batch: Any, key: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Calls an objective on a batch; returns (loss, state, metrics).

    Raises:
      ValueError: the objective returns a wrong value; see `_checked_report`.
      PathError: the objective needs the value of a traced array.
    """
    with traced_in("objective"):
        return _checked_report(objective(params, state, batch, key))


def _checked_report(report: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Checks what an objective returned; returns (loss, state, metrics).

    Raises:
      ValueError: the structure is not (loss, (state, metrics)), or a loss or metric is not one
        number.
    """
    pair = report if isinstance(report, tuple) and len(report) == 2 else (None, None)
    loss, rest = pair
    if not (isinstance(rest, tuple) and len(rest) == 2 and isinstance(rest[1], Mapping)):
        raise ValueError(
            f"objective: expected (loss, (state, metrics)), got {described(report)}; fdl.plain "
            "makes an objective from a function (params, batch) -> loss"
        )
    for name, value in (("loss", loss), *rest[1].items()):
        mean = isinstance(value, Mean | Tally | Seen) and value is not loss
        number = is_number(value) or getattr(value, "dtype", None) == jnp.bool_
        if not mean and not (number and jnp.shape(value) == ()):
            raise ValueError(
                f"objective: expected {name} as one number for the batch, got {described(value)}; "
                "take the mean over the examples, or report fdl.train.weighted_mean(values)"
            )
    return loss, rest[0], dict(rest[1])
