"""Writes a function with the operations that the converter to ONNX knows.

fdl has operations of its own, such as the convolution that is fast on every platform, and the
converter jax2onnx 0.17 lacks a few of JAX's: a scan in reverse order, and padding of an array whose
batch has any size. They are replaced by others with the same results.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fdl.ops import bfloat16_products, convolution


def in_plain_operations(f: Callable[[Any], Any], x: jax.ShapeDtypeStruct) -> Any:
    """The closed jaxpr of `x -> leaves of f(x)`, in operations that the converter knows.

    Each operation is in a `jax.named_scope` of the path of its layer.
    """
    closed = jax.make_jaxpr(lambda x: jax.tree.leaves(f(x)))(x)
    return jax.make_jaxpr(lambda x: _run(closed, [x]))(x)


def layer_of(eqn: Any) -> str:
    """The path of the layer of an operation."""
    return "/".join(_scopes(eqn))


def _run(closed: Any, args: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr, and replaces operations on the way."""
    jaxpr = getattr(closed, "jaxpr", closed)
    known = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    known |= dict(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        given = [var.val if hasattr(var, "val") else known[var] for var in eqn.invars]
        with contextlib.ExitStack() as stack:
            for scope in _scopes(eqn):
                stack.enter_context(jax.named_scope(scope))
            known.update(zip(eqn.outvars, _replaced(eqn, given), strict=True))
    return [var.val if hasattr(var, "val") else known[var] for var in jaxpr.outvars]


def _scopes(eqn: Any) -> list[str]:
    """The names around an operation, up to the first transformation, such as a derivative."""
    names = eqn.source_info.name_stack.stack
    scopes = itertools.takewhile(lambda each: type(each).__name__ == "Scope", names)
    return [each.name for each in scopes]


def _replaced(eqn: Any, args: list[Any]) -> list[Any]:
    """The results of an operation."""
    name, params = eqn.primitive.name, eqn.params
    if name in _OPERATIONS:
        return [_OPERATIONS[name](*args, **params)]
    if name == "scan":
        return _scan(eqn, args)
    if name not in ("while", "cond"):
        called = next((params[each] for each in _CALLED if each in params), None)
        if called is not None:
            return _run(called, args)
    found = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
    return list(found) if eqn.primitive.multiple_results else [found]


_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _scan(eqn: Any, args: list[Any]) -> list[Any]:
    """A scan whose body is written in plain operations too, and which runs forwards."""
    params, inside = eqn.params, eqn.params["jaxpr"]
    # An array that is stacked over the iterations has one axis more outside the loop than inside.
    # `params` shows it too, but under names that differ between versions of JAX.
    pairs = zip(eqn.invars, inside.in_avals, strict=True)
    second = len(args) - sum(var.aval.ndim > aval.ndim for var, aval in pairs)
    pairs = zip(eqn.outvars, inside.out_avals, strict=True)
    first = second - sum(var.aval.ndim == aval.ndim for var, aval in pairs)
    consts, carry, stacked = args[:first], args[first:second], args[second:]
    turned = _reversed if params["reverse"] else list

    def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        found = _run(inside, [*consts, *carry, *row])
        return found[: len(carry)], found[len(carry) :]

    last, rows = lax.scan(body, list(carry), turned(stacked), length=params["length"])
    return [*last, *turned(rows)]


def _reversed(arrays: list[Any]) -> list[Any]:
    return [lax.rev(each, (0,)) for each in arrays]


def _pad(x: Any, value: Any, padding_config: Any) -> Any:
    """Padding as a concatenation."""
    if any(low < 0 or high < 0 or inside for low, high, inside in padding_config):
        return lax.pad(x, value, padding_config)
    for axis, (low, high, _) in enumerate(padding_config):
        sides = [(*x.shape[:axis], width, *x.shape[axis + 1 :]) for width in (low, high)]
        before, after = ([jnp.broadcast_to(value, s)] if s[axis] else [] for s in sides)
        if before or after:
            x = lax.concatenate([*before, x, *after], axis)
    return x


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "convolve": convolution._convolve_by_xla,
    "convolve_input_gradient": convolution._input_gradient_by_xla,
    "fence": lambda x: x,
    "unmerged": lambda x: x,
    "product_in_bfloat16": bfloat16_products._anywhere,
    "pad": _pad,
}
