"""Finds where a function computes something else for a batch of 1, in what JAX traces.

In a program for every batch size, the size is a symbol, for which `size == 1` is silently False.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.debug.tracing import line_of

# If an axis has length 1, JAX leaves out operations that only move numbers, such as a transpose, or
# drops the axis before a product and restores it after that. `product` leaves out `unmerged`, an
# identity function, if x has few rows.
_MOVES = {"broadcast_in_dim", "reshape", "slice", "squeeze", "transpose", "unmerged"}
_AXES = {"dimension", "dimension_numbers", "slice_sizes"}


def special_case(f: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> str:
    """Where f computes something else with the first of several arguments; "" if nowhere.

    It may compute the same results in another way; `differ` tells. Numbers that differ between all
    of the arguments, such as the size of the batch in a mean, are no difference.
    """
    traces = [jax.make_jaxpr(f)(*each) for each in arguments]
    outlines = [itertools.chain(_outline(each, each.consts), _shapes(each)) for each in traces]
    for parts in itertools.zip_longest(*outlines, fillvalue=(None, "nothing")):
        (eqn, *first), (other_eqn, *second), *more = parts
        if first != second and all(list(each[1:]) == second for each in more):
            eqn = eqn or other_eqn
            return "its result" if eqn is None else f"{eqn.primitive.name} {line_of(eqn)}".strip()
    return ""


def differ(f: Callable[..., Any], other: Callable[..., Any], shapes: tuple[Any, ...]) -> bool:
    """Whether two functions of arrays differ at random numbers, or one of them cannot run here."""
    rng = np.random.default_rng(0)

    def example(leaf: Any) -> Any:
        return jnp.asarray(rng.uniform(0, 2, leaf.shape)).astype(leaf.dtype)

    given = jax.tree.map(example, shapes)
    try:
        results = [jax.device_get(each(*given)) for each in (f, other)]
    except Exception:
        return True
    one, two = map(jax.tree.leaves, results)
    return len(one) != len(two) or not all(map(_near, one, two))


def _near(one: np.ndarray, two: np.ndarray) -> bool:
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    if one.dtype.kind not in "biuc":  # such as bfloat16
        one, two = one.astype(np.float64), two.astype(np.float64)
    return np.allclose(one, two, rtol=1e-2, atol=1e-3, equal_nan=True)


def _outline(jaxpr: Any, consts: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
    """All that the operations of a jaxpr have, part by part, without the moves.

    A value is named by the number of the operation that computes it, so jaxprs that compute the
    same have the same outline. Each part begins with its operation.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names: dict[Any, Any] = {var: ("argument", n) for n, var in enumerate(jaxpr.invars)}
    names |= {var: _constant(x) for var, x in zip(jaxpr.constvars, consts, strict=False)}

    def name(atom: Any) -> Any:
        return _constant(atom.val) if hasattr(atom, "val") else names[atom]

    computed = itertools.count()
    for eqn in jaxpr.eqns:
        operation = eqn.primitive.name
        if operation in _MOVES:
            names[eqn.outvars[0]] = name(eqn.invars[0])
            continue
        yield eqn, operation
        yield from ((eqn, n, name(atom)) for n, atom in enumerate(eqn.invars))
        for option, value in eqn.params.items():
            if option not in _AXES:
                yield from _option(eqn, option, value)
        number = next(computed)
        names |= {var: (number, n) for n, var in enumerate(eqn.outvars)}
    yield from ((None, n, name(atom)) for n, atom in enumerate(jaxpr.outvars))


def _shapes(trace: Any) -> Iterator[tuple[Any, ...]]:
    """The shapes of the results, number by number."""
    for aval in trace.out_avals:
        yield None, aval.dtype, aval.ndim
        yield from ((None, size) for size in aval.shape)


def _option(eqn: Any, option: str, value: Any) -> Iterator[tuple[Any, ...]]:
    """An option of an operation; if it has jaxprs, then their outlines."""
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        yield from _outline(value, getattr(value, "consts", ()))
    elif isinstance(value, tuple):
        yield eqn, option, len(value)
        for each in value:
            yield from _option(eqn, option, each)
    else:
        yield eqn, option, re.sub("0x[0-9a-f]+", "", str(value))  # not where it is in memory


def _constant(value: Any) -> Any:
    """A number by its value, and an array by its place in memory."""
    return ("number", repr(value)) if np.ndim(value) == 0 else ("array", id(value))
