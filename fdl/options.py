"""Functions of arrays. A call that passes only options returns the function with these set."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast, overload

import jax

from fdl.paths import quoted

P = ParamSpec("P")


class WithOptions(Protocol[P]):
    """A function of arrays. A call that passes only options returns the function with these set."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> jax.Array: ...

    @overload
    def __call__(self, **options: Any) -> Callable[..., jax.Array]: ...


def options_first(f: Callable[P, jax.Array]) -> WithOptions[P]:
    """Decorates f so that a call may pass only options, as in `gelu(approximate=False)`.

    Such a call returns f with these options set.

    Args:
      f: a function of arrays, whose options are keyword-only arguments.
    """
    parameters = inspect.signature(f).parameters.values()
    options = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    arrays = {each.name for each in parameters if each.kind is not each.KEYWORD_ONLY}

    @functools.wraps(f)
    def either(*args: Any, **given: Any) -> Any:
        if args or given.keys() & arrays:
            return f(*args, **given)
        unknown = next((name for name in given if name not in options), None)
        if unknown is not None:
            raise TypeError(
                f"{f.__name__}: expected options among {', '.join(options) or 'none'}, got "
                f"{quoted(unknown)}; use one of these names, and pass arrays before options"
            )
        return functools.partial(either, **given)

    return cast("WithOptions[P]", either)
