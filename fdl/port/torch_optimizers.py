"""States of optimizers from torch and to torch, by the table of the weights."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import ScaleByAdamState, ScaleByAmsgradState, TraceState

from fdl import paths
from fdl.checks import OptionError, described
from fdl.optim.optimizers.sgd_family import DampenedTraceState
from fdl.port.names import parse_table
from fdl.port.tensor_files import as_numpy, read_tensors
from fdl.port.torch_weights import Names, from_tensors, to_tensors

# For each kind of state: its fields, and their names in torch.
_MOMENTS: dict[Any, dict[str, str]] = {
    TraceState: {"trace": "momentum_buffer"},
    DampenedTraceState: {"trace": "momentum_buffer"},
    ScaleByAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ScaleByAmsgradState: {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
}


def from_torch_optimizer(
    source: Any, like: Any, names: Names, parameters: Sequence[str] | None = None
) -> Any:
    """The state of an SGD or Adam of torch as the state of an optimizer of fdl.

    | torch | fdl |
    |---|---|
    | `momentum_buffer` of SGD | `trace` of `fdl.sgd(rate, momentum)`, also with dampening |
    | `step`, `exp_avg`, `exp_avg_sq` of Adam, AdamW | `count`, `mu`, `nu` of `fdl.adam`, `adamw` |
    | and `max_exp_avg_sq` with amsgrad=True | `nu_max` of `fdl.amsgrad(correct_maximum=True)` |

    The moments move by the table of the weights. Learning rates, betas and the like are not moved:
    they are arguments of fdl's optimizers. In torch, SGD and Adam (but not AdamW) add the weight
    decay to the gradient: `fdl.optim.chain(fdl.optim.add_decayed_weights(decay), fdl.adam(rate))`.
    If an option of torch means another rule than the state in fdl has, that is an error: maximize,
    or dampening on one side only. With dampening, `count` becomes 1: the first step was taken.

    Args:
      source: `optimizer.state_dict()`, or the path of a file with it, as in `read_tensors`. If the
        file holds more, pass `read_tensors(file)["optimizer"]`, for example.
      like: the state of an optimizer of fdl or optax, such as `run.opt_state`.
      names: the table of the weights, as in `from_torch`. If its paths begin with `params/` and
        `state/`, those of `params/` are used.
      parameters: the names of the optimizer's parameters, in its order:
        `[name for name, _ in model.named_parameters()]`. None takes them from `source`, where torch
        keeps them if the optimizer was made with `model.named_parameters()`.

    Returns:
      `like` with the moments and the number of steps of torch, in the dtypes of `like`. If torch
      has taken no step, they are 0. All other values are those of `like`; if the optimizer has a
      schedule, its count is one of them.

    Raises:
      FileNotFoundError, ValueError: as in `read_tensors`.
      ValueError: `source` is not a state dict of an optimizer, or has the state of another one;
        `like` has no such state, or several, or the state of other options; the number of names
        differs from the number of parameters; the parameters have taken different numbers of steps;
        a rule of the table adds tensors; or the moments do not fit the table, as in `from_torch`.

    Example:
      >>> import fdl
      >>> params, names = {"w": jnp.zeros((3, 2))}, {"w": "fc.weight: o i -> i o"}
      >>> moments = {"momentum_buffer": np.ones((2, 3), np.float32)}
      >>> source = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}
      >>> like = fdl.sgd(0.1, momentum=0.9).init(params)
      >>> from_torch_optimizer(source, like, names, ["fc.weight"])[0].trace["w"].shape
      (3, 2)

    Source: `torch/optim/sgd.py` and `torch/optim/adam.py` of torch 2.13.
    """
    who = "from_torch_optimizer"
    if isinstance(source, str | os.PathLike):
        source = read_tensors(source)
    indices = _indices(who, "source", source, parameters)
    states = {name: _present(source["state"].get(at)) for name, at in indices.items()}
    node, replaced = _node(who, like)
    _check_options(who, node, source["param_groups"])
    fields, taken = _MOMENTS[type(node)], [name for name, state in states.items() if state]
    names = _of_params(who, names, getattr(node, next(iter(fields))))
    _check_keys(states, fields)
    new: dict[str, Any] = {}
    if "count" in node._fields:
        new["count"] = jnp.asarray(_step(states if taken else {}), node.count.dtype)
    for field, key in fields.items():
        zeros = jax.tree.map(jnp.zeros_like, getattr(node, field))
        made = to_tensors(who, zeros, names)
        tensors = {name: made[name] for name in states if name in made}
        tensors |= {name: as_numpy(states[name][key]) for name in taken}
        new[field] = from_tensors(who, tensors, f"a state with {key}", zeros, names, cast=True)
    return replaced(node._replace(**new))


def to_torch_optimizer(
    opt_state: Any, like: Any, names: Names, parameters: Sequence[str] | None = None
) -> dict[str, Any]:
    """The state of an optimizer of fdl as a state dict for an SGD or Adam of torch.

    The inverse of `from_torch_optimizer`. torch loads tensors, so convert the arrays:

        tensors = jax.tree.map(lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x,
                               result)
        optimizer.load_state_dict(tensors)

    Args:
      opt_state: the state of an optimizer of fdl or optax, such as `run.opt_state`.
      like: `optimizer.state_dict()` of the optimizer in torch, which may have taken no step. The
        result has its `param_groups`, with the learning rate and all other options.
      names, parameters: as in `from_torch_optimizer`.

    Returns:
      A dict `{"state": ..., "param_groups": ...}` with NumPy arrays as the moments. A state of Adam
      before the first step gives no moments, as in torch.

    Raises:
      ValueError: as in `from_torch_optimizer`; or a parameter has no rule.

    Example:
      >>> import fdl
      >>> params, names = {"w": jnp.zeros((3, 2))}, {"w": "fc.weight: o i -> i o"}
      >>> like = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
      >>> opt_state = fdl.sgd(0.1, momentum=0.9).init(params)
      >>> result = to_torch_optimizer(opt_state, like, names, ["fc.weight"])
      >>> result["state"][0]["momentum_buffer"].shape, result["param_groups"][0]["lr"]
      ((2, 3), 0.1)

    Source: see `from_torch_optimizer`.
    """
    who = "to_torch_optimizer"
    indices = _indices(who, "like", like, parameters)
    node, _ = _node(who, opt_state)
    _check_options(who, node, like["param_groups"])
    fields = _MOMENTS[type(node)]
    names = _of_params(who, names, getattr(node, next(iter(fields))))
    states: dict[int, dict[str, np.ndarray]] = {}
    for field, key in fields.items():
        tensors = to_tensors(who, getattr(node, field), names)
        lacking = [name for name in indices if name not in tensors]
        if lacking:
            raise OptionError(
                who,
                f"expected a rule for each parameter, got none for {', '.join(lacking)}; correct "
                "names and parameters",
            )
        for name, at in indices.items():
            step = {"step": np.array(node.count, np.float32)} if "mu" in fields else {}
            states.setdefault(at, step)[key] = tensors[name]
    started = "count" not in node._fields or int(node.count) > 0
    return {"state": states if started else {}, "param_groups": like["param_groups"]}


def _indices(who: str, what: str, state: Any, parameters: Sequence[str] | None) -> dict[str, int]:
    """The number of each parameter in a state dict, by its name."""
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        raise OptionError(
            who,
            f"expected {what} as a state dict with state and param_groups, got {described(state)}; "
            "pass optimizer.state_dict()",
        )
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    if parameters is None:
        parameters = [name for group in groups for name in group.get("param_names", ())]
    if len(parameters) != len(numbers) or len(set(parameters)) < len(numbers):
        raise OptionError(
            who,
            f"expected {len(numbers)} different names of parameters, got {len(parameters)}; pass "
            "parameters=[name for name, _ in model.named_parameters()] of those that the optimizer "
            "has",
        )
    return dict(zip(parameters, numbers, strict=True))


def _present(state: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a parameter's state that are not None, as SGD's are without momentum."""
    return {key: value for key, value in (state or {}).items() if value is not None}


def _node(who: str, opt_state: Any) -> tuple[Any, Any]:
    """The one state with moments in a state, and a function that replaces it."""

    def has_moments(node: Any) -> bool:
        return type(node) in _MOMENTS

    nodes, structure = jax.tree.flatten(opt_state, is_leaf=has_moments)
    places = [at for at, node in enumerate(nodes) if has_moments(node)]
    if len(places) != 1:
        kinds = ", ".join(kind.__name__ for kind in _MOMENTS)
        raise OptionError(
            who,
            f"expected one state of {kinds} in the state of the optimizer, got {len(places)}; use "
            "fdl.sgd with momentum, fdl.adam, fdl.adamw or fdl.amsgrad",
        )
    (at,) = places
    return nodes[at], lambda node: jax.tree.unflatten(
        structure, [*nodes[:at], node, *nodes[at + 1 :]]
    )


def _check_options(who: str, node: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises if an option of torch says that the moments are those of another rule than fdl's."""
    adam, kind = "mu" in node._fields, type(node)
    wanted = {"betas": adam, "momentum": not adam, "dampening": kind is DampenedTraceState}
    wanted |= {"amsgrad": kind is ScaleByAmsgradState, "maximize": False}
    found = ((name, group[name]) for group in groups for name in wanted if name in group)
    for name, option in found:
        if bool(option) != wanted[name]:
            remedy = "use the same optimizer, with the same options, on both sides"
            if name == "maximize":
                remedy = "in torch too, minimize the negative of what you maximize"
            raise OptionError(
                who,
                f"expected an optimizer of torch {'with' if wanted[name] else 'without'} {name}, "
                f"got {name}={option!r}; {remedy}",
            )


def _of_params(who: str, names: Names, moments: Any) -> Names:
    """The table for the paths of moments, which are those of params; raises if it has a sum."""
    rules = parse_table(who, names).rules
    within = any(path.startswith("params/") for path in paths.leaves(moments))
    if not within and any(rule.paths[0].startswith("params/") for rule in rules):
        names = {
            path and path.removeprefix("params/"): text
            for path, text in names.items()
            if not (path or "").startswith("state/")
        }
    for rule in parse_table(who, names).rules:
        if rule.joined == "+":
            raise OptionError(
                who,
                "expected rules that give each path the moments of one parameter, got a sum, "
                f"{rule.line}; torch trains the parts of a sum one by one, so start the optimizer "
                "anew",
            )
    return names


def _check_keys(states: Mapping[str, Mapping[str, Any]], fields: Mapping[str, str]) -> None:
    """Raises unless each parameter has the entries of one kind of optimizer, or none."""
    wanted = {*fields.values()} | ({"step"} if "mu" in fields else set())
    for name, state in states.items():
        if state and set(state) != wanted:
            raise OptionError(
                "from_torch_optimizer",
                f"expected {', '.join(sorted(wanted))} for the state in like, got "
                f"{', '.join(sorted(state))} at {paths.quoted(name)}; use the optimizer of the "
                "same kind on both sides",
            )


def _step(states: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of steps that all parameters have taken, or 1 if torch does not count them."""
    steps = {name: int(state.get("step", 1)) if state else 0 for name, state in states.items()}
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{step} at {name}" for name, step in steps.items())
        raise OptionError(
            "from_torch_optimizer",
            f"expected the same number of steps for all parameters, got {listed}; give the "
            "optimizer of torch only parameters that are trained",
        )
    return next(iter(steps.values()), 0)
