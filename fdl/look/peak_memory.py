"""Estimates the memory of a compiled program from its jaxpr, with a model of XLA's fusion.

XLA computes most elementwise operations inside the operation that reads their result (fusion), so
that this result is never in memory. In the model, an array is in memory in these four cases:

- It is the result of an operation that is not fused: a matrix product, a convolution, a reduction,
  a scan.
- A matrix product, a convolution or a scan reads it. (A reduction can be fused with what it reads.)
- It is expensive to compute, and several operations read it.
- It is not cheap to compute, and at least `MANY_READERS` operations read it.

The arrays in memory are then packed into one block by XLA's rule.
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from fdl.look.flops import CONVOLUTIONS, inner, names

SAME_MEMORY = names(
    "reshape squeeze expand_dims copy copy_p stop_gradient optimization_barrier fence "
    "fence_of_gradient sharding_constraint pcast pvary reduce_precision"
)
CHEAP = names("broadcast_in_dim iota convert_element_type le lt ge gt eq ne is_finite and or not")
EXPENSIVE = names(
    "exp exp2 expm1 log log1p tanh logistic pow sqrt rsqrt cbrt div rem erf erf_inv sin cos tan "
    "atan2 random_bits"
)
# XLA can fuse the operands of these operations into them, but their results are in memory.
REDUCERS = names(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin "
    "dynamic_update_slice scatter scatter-add"
)
# The operands and the results of these operations are in memory.
UNFUSED = names(
    "dot_general conv_general_dilated concatenate stack scan while cond sort fft top_k "
    "reduce_window_sum reduce_window_max reduce_window select_and_scatter_add cumsum cummax "
    "cumprod cumlogsumexp pallas_call ffi_call cholesky triangular_solve lu qr svd eigh"
)
CALLS = names(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat "
    "remat2 checkpoint"
)
MANY_READERS = 3


@dataclasses.dataclass(eq=False)
class _Operation:
    """An operation of the program.

    Args:
      name: the name of the primitive.
      reads: its operands.
      made: its results.
      inside: the bytes that it needs while it runs, without operands and results.
      carried: for a scan, the number of carried arrays. The results after them are stacked.
      of_kernel: True inside the gradient of a convolution with respect to its kernel.
    """

    name: str
    reads: list["_Array"]
    made: list["_Array"]
    inside: int
    carried: int
    of_kernel: bool


@dataclasses.dataclass(eq=False)
class _Array:
    """An array of the program: its size in bytes, and the operation that makes it."""

    size: int
    maker: _Operation | None = None


def temporary_bytes(jaxpr: Any) -> int:
    """The memory that a compiled program needs, without its arguments.

    The results need no memory of their own if they are fused: the model assumes that they are
    written over arguments of the same shapes, as in training.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr` without equations whose results are not used.
    """
    order: list[_Operation] = []
    known = {var: _Array(0) for var in (*jaxpr.invars, *jaxpr.constvars)}
    _inline(jaxpr, known, order)
    order = _loops_last(order)
    stored = _stored(order)
    order = [op for op in order if op.inside or not stored.isdisjoint(op.made)]
    reads = [set().union(*(_roots(each, stored) for each in op.reads)) for op in order]
    last = {array: time for time, read in enumerate(reads) for array in read}
    results = [known[var] for var in jaxpr.outvars if not _is_literal(var)]
    last |= {root: len(order) for array in results for root in _roots(array, stored)}

    blocks: list[list[int]] = []
    block_of: dict[_Array, list[int]] = {}
    for time, (op, read) in enumerate(zip(order, reads, strict=True)):
        blocks.append([op.inside, time, time])
        free = [] if op.name in UNFUSED else [a for a in read if last[a] == time and a in block_of]
        for number, array in enumerate(op.made):
            if array not in stored:
                continue
            again = next((each for each in free if each.size == array.size), None)
            if again is not None:
                free.remove(again)
                block = block_of[again]
            else:
                # XLA fills the stacked results of a scan with zeros beforehand, perhaps long before
                # the scan. So their memory is in use from the start.
                stacked = op.name == "scan" and number >= op.carried
                block = [array.size, 0 if stacked else time, time]
                blocks.append(block)
            block[2] = max(time, last.get(array, time))
            block_of[array] = block
    return _packed([block for block in blocks if block[0]])


def _inline(
    jaxpr: Any, known: dict[Any, _Array], order: list[_Operation], of_kernel: bool = False
) -> None:
    """Appends the operations of a jaxpr, and of the functions that it calls, to `order`."""

    def array(known: dict[Any, _Array], var: Any) -> _Array:
        return _Array(0) if _is_literal(var) else known[var]

    for eqn in jaxpr.eqns:
        name, reads = eqn.primitive.name, [array(known, var) for var in eqn.invars]
        called = _called(eqn)
        if called is not None:
            inside = dict(zip(called.invars, reads[-len(called.invars) :], strict=True))
            inside |= {var: _Array(0) for var in called.constvars}
            _inline(called, inside, order, of_kernel or name == "convolve_kernel_gradient")
            known |= {
                var: array(inside, out)
                for var, out in zip(eqn.outvars, called.outvars, strict=True)
            }
        elif name in SAME_MEMORY and len(eqn.outvars) == 1:
            known[eqn.outvars[0]] = reads[0]
        else:
            inside_bytes = max((temporary_bytes(part) for part, _ in inner(eqn)), default=0)
            carried = eqn.params.get("num_carry", 0)
            op = _Operation(name, reads, [], inside_bytes + _copied(eqn), carried, of_kernel)
            op.made = [_Array(size_of(var.aval), op) for var in eqn.outvars]
            known |= dict(zip(eqn.outvars, op.made, strict=True))
            order.append(op)


def _loops_last(order: list[_Operation]) -> list[_Operation]:
    """The operations in XLA's order on CPU.

    Loops that compute the gradient of a convolution kernel come last, with all operations that
    depend on them.
    """
    late: set[_Operation | None] = set()
    for op in order:
        if (op.name == "scan" and op.of_kernel) or any(each.maker in late for each in op.reads):
            late.add(op)
    return [op for op in order if op not in late] + [op for op in order if op in late]


def _called(eqn: Any) -> Any:
    """The jaxpr of the function that an equation calls, or None if the equation is not a call.

    If the function has different code for different platforms, it is the code for this platform.
    """
    name = eqn.primitive.name
    if name in CONVOLUTIONS:
        code = functools.partial(eqn.primitive.impl, **eqn.params)
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        return dce_jaxpr(jax.make_jaxpr(code)(*shapes).jaxpr, [True])[0]
    platforms = eqn.params.get("branches_platforms") if name == "cond" else None
    if platforms:
        here = (each is None or jax.default_backend() in each for each in platforms)
        return eqn.params["branches"][list(here).index(True)].jaxpr
    parts = inner(eqn) if name in CALLS else []
    return parts[0][0] if parts else None


def _copied(eqn: Any) -> int:
    """The bytes that an operation needs while it runs, without its operands and results.

    A matrix product that sums over several axes copies its operands, to merge these axes into one.
    Random bits are made by a loop over two arrays of the size of the result, and XLA keeps a copy
    of each of them.
    """
    if eqn.primitive.name == "random_bits":
        return 4 * size_of(eqn.outvars[0].aval)
    if eqn.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return sum(size_of(var.aval) for var in eqn.invars) if len(contracted) > 1 else 0


def _stored(order: list[_Operation]) -> set[_Array]:
    """The arrays that are in memory. All others are computed inside the operations that read them.

    The docstring of this module gives the rule.
    """
    readers = Counter(array for op in order for array in set(op.reads))
    needed = {array for op in order if op.name in UNFUSED for array in op.reads}
    stored: set[_Array] = set()
    expensive: set[_Array] = set()
    for op in order:
        slow = op.name in EXPENSIVE or not expensive.isdisjoint(op.reads)
        always = op.name in UNFUSED or op.name in REDUCERS
        for array in op.made:
            many = readers[array] >= MANY_READERS and op.name not in CHEAP
            if always or array in needed or many or (slow and readers[array] > 1):
                stored.add(array)
            elif slow:
                expensive.add(array)
    return stored


def _roots(array: _Array, stored: set[_Array]) -> set[_Array]:
    """The arrays in memory from which an array is computed; only the array if it is in memory."""
    found: set[_Array] = set()
    todo, seen = [array], {array}
    while todo:
        each = todo.pop()
        if each in stored:
            found.add(each)
        elif each.maker is not None:
            new = set(each.maker.reads) - seen
            seen |= new
            todo += new
    return found


def _packed(blocks: list[list[int]]) -> int:
    """The bytes of the memory that holds all blocks [size, first time, last time].

    Blocks are placed in the order of decreasing size, each in the smallest gap in which it fits.

    Source: XLA's HeapSimulator, GlobalDecreasingSizeBestFitHeap.
    """
    placed = np.zeros((len(blocks), 4), np.int64)  # low, high, first time, last time
    blocks = sorted(blocks, key=lambda block: (-block[0], block[1] - block[2]))
    for count, (size, first, last) in enumerate(blocks):
        beside = placed[:count]
        beside = beside[(beside[:, 2] <= last) & (beside[:, 3] >= first)]
        beside = beside[np.argsort(beside[:, 0])]
        ends = np.maximum.accumulate(np.append(0, beside[:, 1]))
        gaps = beside[:, 0] - ends[:-1]
        fits = np.flatnonzero(gaps >= size)
        low = ends[fits[gaps[fits].argmin()]] if fits.size else ends[-1]
        placed[count] = low, low + size, first, last
    return int(placed[:, 1].max(initial=0))


def size_of(aval: Any) -> int:
    """The bytes of an array, from its shape and dtype. A random key has the bytes of its data."""
    dtype = getattr(aval, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        aval = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(aval.shape, dtype))
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def _is_literal(var: Any) -> bool:
    return hasattr(var, "val")
