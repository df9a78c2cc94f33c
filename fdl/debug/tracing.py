"""Runs a function, and shows each of its layers, forward and backward, to a visitor.

The path of an operation is the names of the layers around it; `fdl.paths.at` and `jax.named_scope`
give these names. So this works for any function, and there is nothing to add to a network.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# In a stack of names, these mark where a derivative or a backward pass begins. The names after such
# a mark begin at the root of the network again.
DERIVATIVE, BACKWARD = "<derivative>", "<backward>"
RECOMPUTED = "rematted_computation"  # JAX's name for what `jax.checkpoint` computes again

Names = tuple[str | int, ...]


class Value(NamedTuple):
    """An array of a function that is being run, and the mark that the visitor gave it."""

    array: Any
    mark: Any = None


class Step(NamedTuple):
    """One operation.

    Args:
      eqn: an equation of a jaxpr.
      names: the scopes around it, inside the loop or branch in which it is.
      inputs: a number for each array that it reads; or a `Value`, for a constant.
      outputs: a number for each of its results.
    """

    eqn: Any
    names: Names
    inputs: list[Any]
    outputs: list[int]


class Group(NamedTuple):
    """Consecutive operations of one layer, in one direction.

    Args:
      names: the scopes around them, from the root of the function.
      steps: the operations.
      reads: the numbers of the arrays of other groups that they read.
      makes: the numbers of the results that later groups read or the function returns.
    """

    names: Names
    steps: list[Step]
    reads: list[int]
    makes: list[int]

    @property
    def path(self) -> str:
        """The path of the layer, such as "block/3/attn"."""
        return path_of(self.names)

    @property
    def backward(self) -> bool:
        """Whether the operations belong to a backward pass."""
        return BACKWARD in self.names


Visitor = Callable[[Group, list[Value], list[Any]], list[Any]]
"""A function `(group, values that it reads, arrays that it makes) -> marks of these arrays`."""


def walk(f: Callable[..., Any], args: Any, visit: Visitor, marks: Any = None) -> Any:
    """Runs `f(*args)`, and calls `visit` for each group of operations, in order.

    Loops run in Python, so a group in a scan is visited once for each iteration. The code between
    loops is compiled. All arrays that go from one group to another are kept in memory.

    Args:
      f: a function that JAX can trace.
      args: a tuple of pytrees of arrays.
      visit: a visitor, see `Visitor`.
      marks: a list with the mark of each leaf of args; None means that they all have the mark None.

    Returns:
      The result of f, with a `Value` in place of each array.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    arrays = jax.tree.leaves(args)
    given = [Value(*each) for each in zip(arrays, marks or [None] * len(arrays), strict=True)]
    found = _Walk(visit).run(closed, given, ())
    return jax.tree.unflatten(jax.tree.structure(shape), found)


def operations(
    group: Group, inputs: list[Value], visit: Callable[[Step, list[Value], list[Any]], list[Any]]
) -> list[Value]:
    """Runs a group operation by operation, calls `visit` for each; returns what the group makes."""
    known = dict(zip(group.reads, inputs, strict=True))
    for step in group.steps:
        given = [place if isinstance(place, Value) else known[place] for place in step.inputs]
        found = _bound(step.eqn, [each.array for each in given])
        marks = visit(step, given, found)
        known.update(zip(step.outputs, map(Value, found, marks), strict=True))
    return [known[place] for place in group.makes]


def line_of(eqn: Any) -> str:
    """The innermost line of code outside JAX, such as "model.py:12 (attend)"; "" if unknown."""
    trace = eqn.source_info.traceback
    for frame in trace.frames if trace is not None else ():
        if not frame.file_name.startswith((_JAX, "<")):
            name = frame.function_name.rpartition(".")[2]
            return f"{os.path.basename(frame.file_name)}:{frame.line_num} ({name})"
    return ""


_JAX = os.path.dirname(jax.__file__) + os.sep


class _Part(NamedTuple):
    """Groups that are compiled together; or a loop or a branch alone, which has no program."""

    groups: list[Group]
    reads: list[int]
    program: Any


class _Plan(NamedTuple):
    parts: list[_Part]
    inputs: list[int]
    outputs: list[Any]


class _Walk:
    """One `walk`, with the plans of all jaxprs, so that each is compiled once."""

    def __init__(self, visit: Visitor):
        self.visit = visit
        self.plans: dict[int, tuple[Any, _Plan]] = {}

    def run(self, closed: Any, args: Sequence[Value], names: Names) -> list[Value]:
        """The outputs of a jaxpr whose operations are inside the scopes `names`."""
        if id(closed) not in self.plans:
            self.plans[id(closed)] = closed, _plan(closed)
        plan = self.plans[id(closed)][1]
        known: dict[int, Value] = dict(zip(plan.inputs, args, strict=True))

        def read(place: Any) -> Value:
            return place if isinstance(place, Value) else known[place]

        for part in plan.parts:
            if part.program is None:
                step = part.groups[0].steps[0]
                given = [read(place) for place in step.inputs]
                opened = _OPENED[step.eqn.primitive.name]
                found = opened(self, step.eqn, given, (*names, *step.names))
                known.update(zip(step.outputs, found, strict=True))
                continue
            made = part.program([known[place].array for place in part.reads])
            for group, arrays in zip(part.groups, made, strict=True):
                here = group._replace(names=(*names, *group.names))
                marks = self.visit(here, [known[place] for place in group.reads], arrays)
                known.update(zip(group.makes, map(Value, arrays, marks), strict=True))
        return [read(place) for place in plan.outputs]


def _plan(closed: Any) -> _Plan:
    count = iter(range(10**9))
    steps: list[Step] = []
    inputs = [next(count) for _ in closed.jaxpr.invars]
    outputs = _flatten(closed, inputs, (), steps, count)
    needed = {place for place in outputs if isinstance(place, int)}
    parts: list[_Part] = []
    # Backwards, because a group makes what later groups need.
    for alone, several in itertools.groupby(steps[::-1], _is_opened):
        if alone:
            pieces = [[[step]] for step in several]
        else:
            pieces = [[list(each) for _, each in itertools.groupby(several, _layer_of)]]
        for piece in pieces:
            parts.append(_part(piece, needed, compiled=not alone))
    return _Plan(parts[::-1], inputs, outputs)


def _part(pieces: list[list[Step]], needed: set[int], *, compiled: bool) -> _Part:
    """Makes a part from groups of steps in reversed order; adds what they read to `needed`."""
    groups = []
    for steps in pieces:
        results = [place for step in steps for place in step.outputs]
        read = [place for step in steps[::-1] for place in step.inputs if isinstance(place, int)]
        reads = [place for place in dict.fromkeys(read) if place not in set(results)]
        makes = sorted(place for place in results if place in needed)
        needed.update(reads)
        groups.append(Group(steps[0].names, steps[::-1], reads, makes))
    groups = groups[::-1]
    made = {place for group in groups for place in group.makes}
    reads = list(dict.fromkeys(each for group in groups for each in group.reads))
    reads = [place for place in reads if place not in made]

    def program(arrays: list[Any]) -> list[list[Any]]:
        known = dict(zip(reads, arrays, strict=True))
        for group in groups:
            found = operations(group, [Value(known[place]) for place in group.reads], _unmarked)
            known.update((n, each.array) for n, each in zip(group.makes, found, strict=True))
        return [[known[place] for place in group.makes] for group in groups]

    return _Part(groups, reads, jax.jit(program) if compiled else None)


def _unmarked(step: Step, inputs: list[Value], arrays: list[Any]) -> list[Any]:
    return [None] * len(arrays)


def _layer_of(step: Step) -> tuple[str, bool]:
    return path_of(step.names), BACKWARD in step.names


def _is_opened(step: Step) -> bool:
    return step.eqn.primitive.name in _OPENED


def _flatten(
    closed: Any, inputs: list[Any], names: Names, steps: list[Step], count: Iterator[int]
) -> list[Any]:
    """Appends the steps of a jaxpr, with those of the functions it calls; returns its outputs."""
    jaxpr = getattr(closed, "jaxpr", closed)
    consts = [Value(each) for each in getattr(closed, "consts", ())]
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(var: Any) -> Any:
        return Value(var.val) if hasattr(var, "val") else known[var]

    for eqn in jaxpr.eqns:
        given = [read(var) for var in eqn.invars]
        inside = (*names, *_names(eqn))
        called = next((eqn.params[each] for each in _CALLED if each in eqn.params), None)
        if called is not None and eqn.primitive.name not in _OPENED:
            found = _flatten(called, given, inside, steps, count)
        else:
            found = [next(count) for _ in eqn.outvars]
            steps.append(Step(eqn, inside, given, found))
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _bound(eqn: Any, arrays: list[Any]) -> list[Any]:
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))
    return list(found) if eqn.primitive.multiple_results else [found]


def _scan(walk: _Walk, eqn: Any, inputs: list[Value], names: Names) -> list[Value]:
    params = eqn.params
    # The numbers of axes show which arrays are constants, carried or stacked: an array that is
    # stacked over the iterations has one axis more outside the loop than inside. `params` shows it
    # too, but under names that differ between versions of JAX.
    body, outside = params["jaxpr"], [var.aval for var in eqn.outvars]
    stacks = [jnp.ndim(x.array) > aval.ndim for x, aval in zip(inputs, body.in_avals, strict=True)]
    ys = [out.ndim > aval.ndim for out, aval in zip(outside, body.out_avals, strict=True)]
    second, carried = len(inputs) - sum(stacks), len(ys) - sum(ys)
    first = second - carried
    consts, carry, stacked = inputs[:first], inputs[first:second], inputs[second:]
    order = range(params["length"])
    rows: dict[int, list[Value]] = {}  # in the order of the iterations
    for number in reversed(order) if params["reverse"] else order:
        row = [each._replace(array=each.array[number]) for each in stacked]
        found = walk.run(body, [*consts, *carry, *row], (*names, number))
        carry, rows[number] = found[:carried], found[carried:]
    results = body.out_avals[carried:]
    found_ys = [
        _stacked({number: row[place] for number, row in rows.items()}, aval)
        for place, aval in enumerate(results)
    ]
    return [*carry, *found_ys]


def _stacked(rows: dict[int, Value], aval: Any) -> Value:
    """The rows as one array, which has the mark of the first iteration that gave one."""
    if not rows:
        return Value(jnp.zeros((0, *aval.shape), aval.dtype))
    array = jnp.stack([jnp.asarray(rows[number].array) for number in sorted(rows)])
    mark = next((row.mark for row in rows.values() if row.mark is not None), None)
    return Value(array, mark)


def _while(walk: _Walk, eqn: Any, inputs: list[Value], names: Names) -> list[Value]:
    params = eqn.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_test, of_body, carry = inputs[:first], inputs[first:second], inputs[second:]
    number = 0
    while walk.run(params["cond_jaxpr"], [*of_test, *carry], (*names, number))[0].array:
        carry = walk.run(params["body_jaxpr"], [*of_body, *carry], (*names, number))
        number += 1
    return carry


def _cond(walk: _Walk, eqn: Any, inputs: list[Value], names: Names) -> list[Value]:
    params = eqn.params
    index, *operands = inputs
    chosen = min(max(int(index.array), 0), len(params["branches"]) - 1)
    return walk.run(params["branches"][chosen], operands, names)


_OPENED: dict[str, Any] = {"scan": _scan, "while": _while, "cond": _cond}
# If an operation only calls a function, one of these parameters is the jaxpr of that function.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _names(eqn: Any) -> Iterator[str]:
    """The names around an equation in its jaxpr, with a mark where a derivative begins."""
    for part in eqn.source_info.name_stack.stack:
        if type(part).__name__ == "Scope":
            yield part.name
        elif part.name in ("jvp", "transpose"):
            yield DERIVATIVE if part.name == "jvp" else BACKWARD


def path_of(names: Names) -> str:
    """The path of the scopes around an operation.

    A `*` becomes the number of the innermost iteration that has no `*` yet: ("body", 3, "*",
    "dense_0") is body/3/dense_0.
    """
    parts: list[list[str]] = [[]]
    numbers: list[int] = []
    for name in names:
        if isinstance(name, int):
            numbers.append(name)
        elif name in (DERIVATIVE, BACKWARD):
            parts.append([])
        elif name != RECOMPUTED:
            parts[-1].append(str(numbers.pop()) if name == "*" and numbers else name)
    path: list[str] = []
    for part in parts:
        # The names of a derivative inside a recomputed function begin at the root again.
        path = part if part[: len(path)] == path else path + part
    return "/".join(path)


def is_floating(x: Any) -> bool:
    """Whether x is an array of floating or complex numbers."""
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else np.result_type(x), np.inexact)
