"""A `jax.jit` that frees compiled code when one of its static arguments, such as a model, is freed.

`jax.jit` keeps its static arguments, and what it compiled for them, in memory until the process
ends. Models and objectives are static arguments, so after training a thousand small networks, all
of them would still be in memory.
"""

import ctypes
import dataclasses
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from fdl.ops.rank_promotion import free_ranks

FEW_OPTIMIZATIONS: Any = {"xla_backend_optimization_level": 0}


def weak_jit(
    *,
    static: Sequence[str] = (),
    donate: Sequence[str] = (),
    inline: bool = False,
    once: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """A `jax.jit` that does not keep its static arguments in memory.

    Static arguments are compared by equality, as in `jax.jit`. Tuples, frozen dataclasses,
    `functools.partial`s and bound methods are compared part by part, so a compiled function is
    reused as long as none of the parts (a model, a loss, an optimizer's functions) has been freed.

    Args:
      static: names of the static arguments, which are keyword-only and not arrays.
      donate: names of arguments whose buffers the compiled function may overwrite.
      inline: as in `jax.jit`.
      once: True for a function that is seldom called again with the same shapes. On CPU, XLA then
        optimizes less: compiling takes less than half of the time, but the compiled function is
        slower.

    Returns:
      A decorator. The decorated function has `lower` and `eval_shape`, as with `jax.jit`, and
      `compile_ahead`, which starts to compile the function in another thread. A later call with
      arrays of the same shapes, dtypes and devices waits for the function compiled there.
    """
    return lambda f: functools.wraps(f)(_WeakJit(f, tuple(static), tuple(donate), inline, once))


class _WeakJit:
    def __init__(
        self,
        f: Callable[..., Any],
        static: tuple[str, ...],
        donate: tuple[str, ...],
        inline: bool,
        once: bool,
    ):
        self.f, self.static = f, static
        self.donate, self.inline, self.once = donate, inline, once
        self.programs: dict[Hashable, _Program] = {}

    def __call__(self, *args: Any, **given: Any) -> Any:
        return self._call("__call__", args, given)

    def lower(self, *args: Any, **given: Any) -> Any:
        return self._call("lower", args, given)

    def eval_shape(self, *args: Any, **given: Any) -> Any:
        return self._call("eval_shape", args, given)

    def compile_ahead(self, *args: Any, **given: Any) -> None:
        self._call("compile_ahead", args, given)

    def _call(self, method: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        static = {name: given.pop(name) for name in self.static if name in given}
        program = self.programs.get(_key_of(static))
        if program is None:
            program = _Program(self, static)
            program = self.programs.setdefault(program.key, program)
        return program.call(method, static, args, given)


class _Program:
    """The function jitted for one set of static arguments, which are stored only during a call."""

    def __init__(self, owner: _WeakJit, static: dict[str, Any]):
        f, held = owner.f, threading.local()
        owner_of, program_of = weakref.ref(owner), weakref.ref(self)

        @functools.wraps(f)
        def traced(*args: Any, **given: Any) -> Any:
            return f(*args, **given, **held.static)

        def forget(_: Any) -> None:
            owner, program = owner_of(), program_of()
            if owner is not None and program is not None:
                owner.programs.pop(program.key, None)

        self.held, self.once = held, owner.once
        self.key = _key_of(static, forget)
        self.compiled: dict[Hashable, Future[Any]] = {}
        self.pending: list[Future[Any]] = []
        self.jitted = jax.jit(traced, donate_argnames=owner.donate, inline=owner.inline)

    def call(
        self, method: str, static: dict[str, Any], args: tuple[Any, ...], given: dict[str, Any]
    ) -> Any:
        before = getattr(self.held, "static", None)
        self.held.static = static
        try:
            with free_ranks():
                if method == "compile_ahead":
                    self.pending.append(self.started(args, given))
                    return None
                if method == "__call__":
                    if self.once and not _any_traced((args, given)):
                        return self.started(args, given).result()(*args, **given)
                    pending, self.pending = self.pending, []
                    for future in pending:
                        # JAX keeps what the other thread compiled, and uses it in the call below.
                        future.result()
                return getattr(self.jitted, method)(*args, **given)
        finally:
            self.held.static = before

    def started(self, args: tuple[Any, ...], given: dict[str, Any]) -> Future[Any]:
        """The compiled function for these arrays; another thread compiles it."""
        leaves, structure = jax.tree.flatten((args, given))
        key = structure, tuple((jax.typeof(leaf), _devices(leaf)) for leaf in leaves)
        if key not in self.compiled:
            # Tracing depends on settings of this thread. XLA does not, so it may run in another.
            lowered = self.jitted.lower(*args, **given)
            few = FEW_OPTIMIZATIONS if self.once and jax.default_backend() == "cpu" else None
            thread = ThreadPoolExecutor(1)
            self.compiled[key] = thread.submit(_compiled, lowered, few)
            thread.shutdown(wait=False)
        return self.compiled[key]


def _compiled(lowered: Any, options: Any) -> Any:
    """Compiles, and returns the memory of the compiler, hundreds of megabytes, to the system.

    The compiler frees this memory, but glibc would keep it: a process that trains a small GPT would
    have 1.0 GB in place of 0.65 GB.
    """
    compiled = lowered.compile(options)
    return_freed_memory()
    return compiled


def return_freed_memory() -> None:
    """Gives pages that are no longer used back to the system, if the C library is glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _any_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _devices(leaf: Any) -> Any:
    """The sharding that an array must keep; None if JAX may move it to the default device."""
    return leaf.sharding if getattr(leaf, "committed", False) else None


def _key_of(value: Any, forget: Callable[[Any], None] | None = None) -> Hashable:
    """A dict key for static arguments. Equal arguments have equal keys.

    The key has weak references to the arguments, if their types allow it.

    Args:
      value: a static argument, or a dict name -> static argument.
      forget: a function that is called when a part of `value` is freed.
    """
    key = functools.partial(_key_of, forget=forget)
    if isinstance(value, tuple):
        return type(value), *map(key, value)
    if isinstance(value, dict):
        return tuple((name, key(value[name])) for name in sorted(value))
    if isinstance(value, functools.partial):
        return functools.partial, key(value.func), key(value.args), key(value.keywords)
    if hasattr(value, "__self__") and hasattr(value, "__func__"):
        return key(value.__func__), key(value.__self__)
    try:
        hash(value)
    except TypeError:
        return _Same(weakref.ref(value, forget))
    if _is_frozen(value):
        fields = dataclasses.fields(value)
        return type(value), *(key(getattr(value, field.name)) for field in fields)
    try:
        return weakref.ref(value, forget)
    except TypeError:
        return type(value), value


class _Same:
    """A weak reference to an object without a hash; equal if both refer to the same object."""

    def __init__(self, to: weakref.ref[Any]):
        self.to, self.id = to, id(to())

    def __hash__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.to() is other.to() is not None


def _is_frozen(value: Any) -> bool:
    """True if `value` is a frozen dataclass that is compared by its fields."""
    options = getattr(type(value), "__dataclass_params__", None)
    return bool(options and options.frozen and options.eq) and not isinstance(value, type)
