"""Counts the floating-point operations (FLOPs) of a traced function, for each of its scopes.

A scope is a name that `jax.named_scope` gave to a part of the function.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Primitives that count 0, because they only move, select, convert or create numbers.
MOVES = names(
    "broadcast_in_dim broadcast reshape transpose squeeze expand_dims slice dynamic_slice "
    "dynamic_update_slice gather scatter concatenate pad rev iota stack unstack tile copy copy_p "
    "convert_element_type bitcast_convert_type reduce_precision stop_gradient device_put "
    "optimization_barrier fence fence_of_gradient unmerged unmerged_of_gradient split real imag "
    "complex conj name pcast pvary "
    "random_bits random_wrap random_unwrap random_seed random_fold_in random_split "
    "platform_index empty full create_token after_all eq_to sharding_constraint select_n "
    "reduce_or reduce_and sort top_k"
)
REDUCTIONS = names("reduce_sum reduce_max reduce_min reduce_prod argmax argmin")
CONVOLUTIONS = ("convolve", "convolve_input_gradient", "convolve_kernel_gradient")

Scopes = tuple[str, ...]


def operations(jaxpr: Any, scopes: Scopes = (), times: int = 1) -> Iterator[tuple[Scopes, int]]:
    """Yields the pair (scopes, FLOPs) of each operation of a jaxpr.

    Of the branches of a `cond`, only the one with the most FLOPs counts.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr`. All of its equations are counted, so it should not have
        equations whose results are not used.
      scopes: the scopes around the jaxpr.
      times: how many times the jaxpr runs.
    """
    for eqn in jaxpr.eqns:
        inside = (*scopes, *scopes_of(eqn))
        parts = inner(eqn)
        if eqn.primitive.name == "cond":
            branches = [list(operations(part, inside, times)) for part, _ in parts]
            yield from max(branches, key=lambda each: sum(flops for _, flops in each))
        elif parts:
            for part, runs in parts:
                yield from operations(part, inside, times * runs)
        else:
            yield inside, times * flops(eqn)


def scopes_of(eqn: Any) -> Scopes:
    """The names of an equation's scopes, outermost first, without those around its jaxpr."""
    parts = eqn.source_info.name_stack.stack
    return tuple(part.name for part in parts if type(part).__name__ == "Scope")


def inner(eqn: Any) -> list[tuple[Any, int]]:
    """The pair (jaxpr, number of runs) of each jaxpr inside an equation.

    The list is empty for primitives that `flops` counts as a whole, such as scatter. The number of
    runs of a `while` loop is unknown, and counts as 1. If an equation has different code for
    different platforms (`jax.lax.platform_dependent`), only the default code is returned.
    """
    name, params = eqn.primitive.name, eqn.params
    if name.startswith(("scatter", "reduce_window", "select_and_scatter")) or name == "sort":
        return []
    if name == "cond":
        branches = params["branches"]
        chosen = branches if params.get("branches_platforms") is None else branches[-1:]
        return [(_open(branch), 1) for branch in chosen]
    if name == "scan":
        return [(_open(params["jaxpr"]), params["length"])]
    runs = math.prod(params["grid_mapping"].grid) if name == "pallas_call" else 1
    found = [
        _open(each)
        for value in params.values()
        for each in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(each, "eqns") or hasattr(each, "jaxpr")
    ]
    return [(each, runs) for each in found]


def flops(eqn: Any) -> int:
    """The FLOPs of one equation for which `inner` returns no jaxprs."""
    name = eqn.primitive.name
    operands = [each.aval for each in eqn.invars]
    results = [each.aval for each in eqn.outvars]
    if name in RULES:
        return RULES[name](eqn.params, operands, results)
    if name in CONVOLUTIONS:
        return _of_convolution_of_fdl(name, eqn.params["window"], operands, results[0])
    floating = any(_is_float(each) for each in operands)
    if name in MOVES or not floating:
        return 0
    if name in REDUCTIONS:
        return operands[0].size - results[0].size
    if name.startswith("scatter"):
        return operands[2].size
    return max((each.size for each in results if hasattr(each, "size")), default=0)


def _of_dot(params: Any, operands: Any, results: Any) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * results[0].size * math.prod(operands[0].shape[axis] for axis in contracted)


def _of_product(params: Any, operands: Any, results: Any) -> int:
    return 2 * results[0].size * operands[0].shape[params["summed"][0]]


def _of_convolution(params: Any, operands: Any, results: Any) -> int:
    x, w = operands
    y, numbers = results[0], params["dimension_numbers"]
    axes = zip(
        (x.shape[axis] for axis in numbers.lhs_spec[2:]),
        (w.shape[axis] for axis in numbers.rhs_spec[2:]),
        (y.shape[axis] for axis in numbers.out_spec[2:]),
        params["window_strides"],
        (low for low, _ in params["padding"]),
        params["rhs_dilation"],
        params["lhs_dilation"],
        strict=True,
    )
    images, features = (y.shape[axis] for axis in numbers.out_spec[:2])
    return (
        2 * images * features * w.shape[numbers.rhs_spec[1]] * math.prod(_pairs(*a) for a in axes)
    )


def _of_convolution_of_fdl(name: str, window: Any, operands: Any, result: Any) -> int:
    """FLOPs of a convolution or of one of its gradients: all need the same number of products."""
    w = result if name.endswith("kernel_gradient") else operands[1]
    axes = zip(
        window.input,
        window.kernel,
        window.output,
        window.stride,
        (low for low, _ in window.padding),
        window.dilation,
        strict=True,
    )
    pairs = math.prod(_pairs(*axis) for axis in axes)
    return 2 * operands[0].shape[0] * math.prod(w.shape[-2:]) * pairs


def _pairs(
    size: int, kernel: int, out: int, stride: int, low: int, dilation: int, between: int = 1
) -> int:
    """The number of products of an input and an element of the kernel, along one axis.

    A product with padding does not count. A transposed convolution puts `between` - 1 zeros between
    two inputs; a product with such a zero does not count either.
    """
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - low
    seen = (places >= 0) & (places <= (size - 1) * between) & (places % between == 0)
    return int(seen.sum())


def _of_window(params: Any, operands: Any, results: Any) -> int:
    return results[0].size * (math.prod(params["window_dimensions"]) - 1)


def _of_selected_window(params: Any, operands: Any, results: Any) -> int:
    return operands[0].size * math.prod(params["window_dimensions"])


def _of_fourier_transform(params: Any, operands: Any, results: Any) -> int:
    n = math.prod(params["fft_lengths"])
    whole = max(operands[0].size, results[0].size)
    return round(5 * whole * math.log2(max(n, 1)))


def _of_power(params: Any, operands: Any, results: Any) -> int:
    """Counts squarings and multiplications, and a division if the exponent is negative."""
    n = abs(params["y"])
    return results[0].size * (max(n.bit_length() + n.bit_count() - 2, 0) + (params["y"] < 0))


RULES: dict[str, Callable[[Any, Any, Any], int]] = {
    "dot_general": _of_dot,
    "product_in_bfloat16": _of_product,
    "conv_general_dilated": _of_convolution,
    "reduce_window_sum": _of_window,
    "reduce_window_max": _of_window,
    "reduce_window_min": _of_window,
    "reduce_window": _of_window,
    "select_and_gather_add": _of_window,
    "select_and_scatter_add": _of_selected_window,
    "fft": _of_fourier_transform,
    "integer_pow": _of_power,
}


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _is_float(aval: Any) -> bool:
    return jax.numpy.issubdtype(getattr(aval, "dtype", bool), np.inexact)
