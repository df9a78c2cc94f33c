"""`jax.jit` for programs of a model: each is forgotten with the last reference to what it is of.

`jax.jit` keeps its static arguments, and the programs made for them, until the process ends. Models
and objectives are such arguments: whoever trains a thousand small networks would keep them all.
"""

import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from fdl.ops.rank_promotion import free_ranks


def weak_jit(
    *,
    static: Sequence[str],
    donate: Sequence[str] = (),
    inline: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """`jax.jit` with static arguments that it does not keep alive.

    Static arguments are told apart as `jax.jit` does, by equality, except that the parts of tuples,
    of frozen dataclasses, of `functools.partial`s and of bound methods are looked at one by one:
    programs are shared as long as all the parts (a model, a loss, an optimizer's functions) live.

    Args:
      static: names of keyword-only arguments that are not arrays.
      donate: names of arguments whose buffers the program may overwrite.
      inline: as in `jax.jit`.

    Returns:
      A decorator. The function it gives has `lower` and `eval_shape`, as `jax.jit` has them.
    """
    return lambda f: functools.wraps(f)(_WeakJit(f, tuple(static), tuple(donate), inline))


class _WeakJit:
    def __init__(
        self, f: Callable[..., Any], static: tuple[str, ...], donate: tuple[str, ...], inline: bool
    ):
        self.f, self.static = f, static
        self.donate, self.inline = donate, inline
        self.programs: dict[Hashable, _Program] = {}

    def __call__(self, *args: Any, **given: Any) -> Any:
        return self._call("__call__", args, given)

    def lower(self, *args: Any, **given: Any) -> Any:
        return self._call("lower", args, given)

    def eval_shape(self, *args: Any, **given: Any) -> Any:
        return self._call("eval_shape", args, given)

    def _call(self, method: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        static = {name: given.pop(name) for name in self.static if name in given}
        program = self.programs.get(_known_by(static))
        if program is None:
            program = _Program(self, static)
            program = self.programs.setdefault(program.key, program)
        return program.call(method, static, args, given)


class _Program:
    """What is compiled for one set of static arguments, which it holds only during a call."""

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

        self.held = held
        self.key = _known_by(static, forget)
        self.jitted = jax.jit(traced, donate_argnames=owner.donate, inline=owner.inline)

    def call(
        self, method: str, static: dict[str, Any], args: tuple[Any, ...], given: dict[str, Any]
    ) -> Any:
        before = getattr(self.held, "static", None)
        self.held.static = static
        try:
            with free_ranks():
                return getattr(self.jitted, method)(*args, **given)
        finally:
            self.held.static = before


def _known_by(value: Any, forget: Callable[[Any], None] | None = None) -> Hashable:
    """What tells a static argument from others without keeping it alive, if that can be.

    Args:
      value: a static argument, or a dict of them by name.
      forget: called when a part of it dies.
    """
    known = functools.partial(_known_by, forget=forget)
    if isinstance(value, tuple):
        return type(value), *map(known, value)
    if isinstance(value, dict):
        return tuple((name, known(value[name])) for name in sorted(value))
    if isinstance(value, functools.partial):
        return functools.partial, known(value.func), known(value.args), known(value.keywords)
    if hasattr(value, "__self__") and hasattr(value, "__func__"):
        return known(value.__func__), known(value.__self__)
    try:
        hash(value)
    except TypeError:
        return _Same(weakref.ref(value, forget))
    if _is_frozen(value):
        fields = dataclasses.fields(value)
        return type(value), *(known(getattr(value, field.name)) for field in fields)
    try:
        return weakref.ref(value, forget)
    except TypeError:
        return type(value), value


class _Same:
    """A weak reference that equals those to the same object, for objects without a hash."""

    def __init__(self, to: weakref.ref[Any]):
        self.to, self.id = to, id(to())

    def __hash__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.to() is other.to() is not None


def _is_frozen(value: Any) -> bool:
    """Whether a value is a dataclass that is told apart by its fields."""
    options = getattr(type(value), "__dataclass_params__", None)
    return bool(options and options.frozen and options.eq) and not isinstance(value, type)
