"""Checks of the arguments of training functions: their types, and the number of steps."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.checks import as_int, decimal, described, fitting, is_count, is_number
from fdl.core.layer import Layer, makes
from fdl.metrics import Metric


def check_objective_given(who: str, objective: Any) -> None:
    """Raises unless `objective` can be called as `(params, state, batch, key)`."""
    if isinstance(objective, Layer) or not callable(objective):
        layer = isinstance(objective, Layer)
        remedy = "give it a loss" if layer else "make one"
        raise TypeError(
            f"{who}: expected an objective first, got {described(objective)}; {remedy}: "
            "objective = fdl.supervised(model, loss)"
        )
    names = _places(objective)
    if names is not None and not _takes(objective, 4):
        two = "fdl.plain makes one from a function (params, batch) -> loss, and "
        raise TypeError(
            f"{who}: expected an objective (params, state, batch, key), got {described(objective)} "
            f"of ({', '.join(names)}); {two if _takes(objective, 2) else ''}"
            "fdl.supervised(model, loss) makes one from a model and a loss"
        )


def check_optimizer(who: str, optimizer: Any) -> None:
    """Raises unless `optimizer` is an optimizer of fdl or optax."""
    if isinstance(optimizer, GradientTransformation):
        return
    parts = [getattr(optimizer, part, None) for part in ("init", "update")]
    if all(map(callable, parts)) and not isinstance(optimizer, Metric | type):
        return
    factory = callable(optimizer) and not isinstance(optimizer, Layer | Metric | type)
    name = getattr(optimizer, "__name__", "adam")
    remedy = f"call it: {name}(0.001)" if factory else "pass fdl.adam(0.001), for example"
    raise TypeError(
        f"{who}: expected an optimizer of fdl or optax, got {described(optimizer)}; {remedy}"
    )


def check_run(who: str, run: Any) -> None:
    """Raises unless `run` is a Run, or a Result, which contains a Run."""
    if not all(hasattr(getattr(run, "run", run), part) for part in ("params", "opt_state", "step")):
        raise TypeError(
            f"{who}: expected a run, or a result of fit, got {described(run)}; begin with "
            "run = fdl.start(params, optimizer, state=state)"
        )


def check_opt_state(who: str, optimizer: GradientTransformation, params: Any, state: Any) -> None:
    """Raises unless `state` has the paths and shapes of a state of `optimizer`."""
    try:
        expected = paths.leaves(jax.eval_shape(optimizer.init, params))
        found = paths.leaves(state)
    except Exception:  # `optimizer.init` cannot be traced; the training step reports why
        return
    shapes = [{path: np.shape(leaf) for path, leaf in each.items()} for each in (expected, found)]
    if shapes[0] != shapes[1]:
        wanted, got = ([*each.items()] for each in shapes)
        one = next((each for each in wanted if each not in got), None)
        other = next((each for each in got if each not in wanted), None)
        raise ValueError(
            f"{who}: expected the state of this optimizer, {_leaf(one)}, got one of another "
            f"optimizer, {_leaf(other)}; begin with fdl.start(params, optimizer), or pass the "
            "optimizer that the run was started with"
        )


def check_mode(who: str, mode: Any) -> None:
    """Raises unless `mode` is "min" or "max"."""
    if mode not in ("min", "max"):
        raise ValueError(
            f"{who}: expected mode 'min' or 'max', got {described(mode)}; use 'min' for a "
            "loss, 'max' for an accuracy"
        )


def check_params_given(who: str, params: Any) -> None:
    """Raises unless `params` is a pytree of numbers.

    Raises also for the pair (params, state) that `Layer.init` returns, if state is empty.
    """
    pair = type(params) is tuple and len(params) == 2
    if pair and isinstance(params[1], dict) and not params[1]:
        raise TypeError(
            f"{who}: expected params alone, got the pair that init returns; write params, state = "
            "model.init(key, x)"
        )
    if hasattr(params, "params") and hasattr(params, "state"):
        raise TypeError(
            f"{who}: expected params, a pytree of arrays, got {described(params)}; pass its params"
        )
    whole = params is None or isinstance(params, Layer | GradientTransformation)
    strange = {"": params} if whole or _is_function(params) else _not_numbers(params)
    for path, leaf in strange.items():
        at = f" at {path!r}" if path else ""
        order = {"start": "(params, optimizer)", "predict": "(model, params, x)"}
        raise TypeError(
            f"{who}: expected params, a pytree of arrays, got {described(leaf)}{at}; write params, "
            f"state = model.init(key, x), then {who}{order.get(who, '(objective, params, data)')}"
        )
    _check_fits(who, "params", params)


def check_state_given(who: str, state: Any) -> None:
    """Raises unless `state` is a pytree of numbers."""
    for path, leaf in ({"": state} if _is_function(state) else _not_numbers(state)).items():
        at = f" at {path!r}" if path else ""
        raise TypeError(
            f"{who}: expected state, a pytree of arrays, got {described(leaf)}{at}; "
            "write params, state = model.init(key, x)"
        )
    _check_fits(who, "state", state)


def check_params_of_layer(who: str, model: Any, params: Any) -> None:
    """Raises if `model` is a Layer and `params` is not a dict."""
    if isinstance(model, Layer) and not isinstance(params, Mapping):
        raise TypeError(
            f"{who}: expected the params of {model!r}, a dict, got {described(params)}; "
            "write params, state = model.init(key, x), and pass params and state separately"
        )


def check_model(who: str, model: Any) -> None:
    """Raises unless `model` is a Layer or a function; raises also for a factory of layers."""
    if makes(model, Layer):
        raise TypeError(
            f"{who}: expected a model, got {described(model)}, which makes a layer; call it: "
            f"{getattr(model, '__name__', 'dense')}(...)"
        )
    if hasattr(model, "model") and hasattr(model, "loss"):
        raise TypeError(
            f"{who}: expected a model, got an objective, {described(model)}; pass objective.model"
        )
    if not callable(model):
        raise TypeError(
            f"{who}: expected a model first, a Layer or a function (params, x) -> y, got "
            f"{described(model)}; pass fdl.mlp([64], 10), for example"
        )
    if not isinstance(model, Layer) and not _takes_two(model):
        raise TypeError(
            f"{who}: expected a model as a function (params, x) -> y, got {described(model)} of "
            f"({', '.join(_places(model) or [])}); write lambda params, x: ..., where params are "
            "the arrays to train"
        )


def check_loss(who: str, name: str, loss: Any) -> None:
    """Raises unless `loss` can be called as `(y_pred, y)`."""
    if isinstance(loss, Layer):
        raise TypeError(
            f"{who}: expected {name} as a function (y_pred, y) -> [B, ...], got {described(loss)}; "
            "pass the model first, then the loss"
        )
    if isinstance(loss, Metric):
        raise TypeError(
            f"{who}: expected {name} as a function (y_pred, y) -> [B, ...], got {described(loss)}; "
            "pass a Metric by name, after the loss: fdl.supervised(model, loss, f1=metric)"
        )
    if makes(loss, Metric) or makes(loss, Layer):
        raise TypeError(
            f"{who}: expected {name} as a function (y_pred, y) -> [B, ...], got {described(loss)}, "
            f"which makes a metric or a layer; call it: {_call(loss)}"
        )
    if not callable(loss):
        pass_ = "fdl.squared_error" if name == "loss" else "fdl.accuracy"
        raise TypeError(
            f"{who}: expected {name} as a function (y_pred, y) -> [B, ...], got {described(loss)}; "
            f"pass a function, such as {pass_}"
        )
    if not _takes_two(loss):
        raise TypeError(
            f"{who}: expected {name} as a function (y_pred, y) -> [B, ...], got {described(loss)} "
            f"of ({', '.join(_places(loss) or [])}); write lambda y_pred, y: ..."
        )


def metric_of(who: str, name: str, metric: Any) -> Any:
    """Checks and returns a metric, which is a function or a Metric.

    A factory of a Metric is called if all its arguments have defaults.
    """
    if makes(metric, Metric) and not _needed(metric):
        return metric()
    if not isinstance(metric, Metric):
        check_loss(who, name, metric)
    return metric


def _call(factory: Callable[..., Any]) -> str:
    """A call of a factory as text, such as `f1(average=...)`."""
    options = ", ".join(f"{each}=..." for each in _needed(factory))
    return f"{getattr(factory, '__name__', 'f1')}({options or '...'})"


def _needed(factory: Callable[..., Any]) -> list[str]:
    """The names of the arguments without a default."""
    parameters = inspect.signature(factory).parameters.values()
    return [each.name for each in parameters if each.default is each.empty]


def _is_function(tree: Any) -> bool:
    """True for a function, and False for a callable pytree, such as a module of Equinox."""
    return callable(tree) and jax.tree_util.all_leaves([tree])


def _check_fits(who: str, what: str, tree: Any) -> None:
    """Raises if a leaf is a NumPy array with a number that 32 bits cannot hold."""
    for path, leaf in paths.leaves(tree).items():
        fitting(who, f"{what} at {paths.quoted(path)}" if path else what, leaf)


def _not_numbers(tree: Any) -> dict[str, Any]:
    """The leaves that are not numbers or arrays of numbers, by path."""

    def number(leaf: Any) -> bool:
        kind = getattr(getattr(leaf, "dtype", None), "kind", None)
        return isinstance(leaf, bool | int | float | complex) or kind not in (None, *"OSU")

    return {path: leaf for path, leaf in paths.leaves(tree).items() if not number(leaf)}


def _places(f: Callable[..., Any]) -> list[str] | None:
    """The names of the positional arguments of `f`; None if they are unknown."""
    try:
        parameters = inspect.signature(f).parameters.values()
        return [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    except (ValueError, TypeError):
        return None


def _takes(f: Callable[..., Any], count: int) -> bool:
    """Whether `f` can be called with `count` positional arguments."""
    try:
        inspect.signature(f).bind(*range(count))
    except TypeError:
        return False
    return True


def _takes_two(f: Callable[..., Any]) -> bool:
    """Whether `f` can be called with two arguments by position, and perhaps others by name."""
    try:
        inspect.signature(f).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _leaf(named: tuple[str, Any] | None) -> str:
    """Describes a leaf of an optimizer state, by its path and shape, for an error message."""
    return f"with {named[0]!r} {list(named[1])}" if named else "with fewer leaves"


def last_step(
    who: str, examples: int | None, batch_size: int, epochs: float | None, steps: int | None
) -> int:
    """The step at which training ends, computed from epochs or steps.

    Raises:
      ValueError: both epochs and steps are given; neither is given; epochs are given although the
        number of examples is not known; or the number is out of range.
    """
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"{who}: expected either epochs or steps, got {got}; pass one of them")
    if epochs is not None and examples is None:
        raise ValueError(
            f"{who}: expected steps, because the source does not know its number of examples, got "
            f"epochs={described(epochs)}; pass steps=..."
        )
    if epochs is not None:
        if not is_number(epochs) or np.ndim(epochs) or not 0 <= float(epochs) < math.inf:
            raise ValueError(
                f"{who}: expected epochs >= 0, a number of passes over the data, got "
                f"{described(epochs)}; pass epochs=10, for example"
            )
        steps = math.ceil(decimal(epochs) * (examples or 0) / batch_size)
    steps = as_int(steps)
    if steps is None or not is_count(steps, least=0) or not int(steps) < 2**32:
        raise ValueError(
            f"{who}: expected a number of steps in [0, 2**32), an integer, got {described(steps)}; "
            "pass the total number of steps"
        )
    return int(steps)
