"""`per_example`, the decorator of losses and metrics, which sets options and leaves out elements.

Losses and metrics have `where` and `ignore_index` in their signatures, but only this module reads
these two options. The exceptions are losses whose values depend on several examples or pixels; they
read `where` too.
"""

import functools
import inspect
from collections.abc import Callable
from numbers import Number
from typing import Any, ParamSpec, cast

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import as_int, check_array, described, fitting, is_count
from fdl.ops.rank_promotion import free_ranks
from fdl.options import WithOptions, options_first
from fdl.paths import PathError

OPTIONS = ("where", "ignore_index")  # the options that leave out elements
P = ParamSpec("P")


def per_example(
    f: Callable[P, jax.Array], *, of_regions: bool = False, of_batches: bool = False
) -> WithOptions[P]:
    """Adds to a loss or metric the behaviour that all losses and metrics share.

    The function f may combine arrays of different ranks. If the returned function is called with
    options only, it returns a function with these options set. An element is left out where `where`
    is False or the label is `ignore_index`. For such an element, the arrays are set to 0 before the
    call of f, so that a NaN cannot reach the value or the gradient, and the value is set to 0 after
    the call.

    Args:
      f: a function of arrays. The first axes of each array are the axes of the value. The second
        array is the labels or targets. If f has the option `ignore_index`, an array must have the
        name `labels`. Options are keyword-only arguments.
      of_regions: True if a value belongs to a region, which is a set of elements. Then `where` says
        which of these elements count, its shape is the first axes of the arrays, and the values are
        not set to 0.
      of_batches: True if the value for an example depends on the whole batch. Then f itself reads
        `where` too, and `supervised` passes a `where` that is False for rows of weight 0.
    """
    takes = inspect.signature(f).parameters
    arrays = [each for each in takes if takes[each].kind is not inspect.Parameter.KEYWORD_ONLY]
    name = f.__name__.lstrip("_")

    call: Callable[..., jax.Array] = f

    @functools.wraps(f)
    def masked(*args: Any, **kwargs: Any) -> Any:
        with free_ranks():
            options = {name: kwargs.get(name) for name in OPTIONS}
            none_left_out = all(value is None for value in options.values())
            args = (*map(functools.partial(fitting, name), arrays, args), *args[len(arrays) :])
            kwargs |= {each: fitting(name, each, kwargs[each]) for each in arrays if each in kwargs}
            named = {**dict(zip(arrays, args, strict=False)), **kwargs}
            found: list[Any] = [named.get(name) for name in arrays]
            found = [jnp.asarray(x) if isinstance(x, Number) else x for x in found]
            clear = all(hasattr(x, "shape") for x in found) and not kwargs.keys() - takes.keys()
            if none_left_out or not clear:
                return call(*args, **kwargs)  # f itself raises for arguments that are not arrays
            mask = mask_of(name, dict(zip(arrays, found, strict=True)).get("labels"), **options)
            if any(x.shape[: mask.ndim] != mask.shape for x in found):
                value = call(*args, **kwargs)  # f itself raises for arrays that do not fit
                check_where(name, mask, value.shape)
            hidden = dict(zip(arrays, _hidden(mask, found), strict=True))
            value = call(**{**named, **hidden})
            if of_regions:
                return value
            check_where(name, mask, value.shape)
            return shown(value, mask)

    wrapped = options_first(masked)
    wrapped.__dict__.update(leaves_out=not of_regions, of_batches=of_batches)
    return cast("WithOptions[P]", wrapped)


def rows_of_batch(f: Any, weight: Any) -> dict[str, jax.Array]:
    """{"where": bool [B]}, an option for f that is False for the rows of weight 0.

    The dict is empty if there are no weights [B]. It is also empty unless f is a loss of fdl that
    depends on the whole batch: for any other loss, it is enough that the weighted mean ignores rows
    of weight 0.
    """
    options = f.keywords if isinstance(f, functools.partial) else {}
    of_batches = getattr(getattr(f, "func", f), "of_batches", False)
    if weight is None or np.ndim(weight) != 1 or not of_batches:
        return {}
    where = jnp.asarray(weight).astype(bool)
    return {"where": where if options.get("where") is None else where & options["where"]}


def counting(f: Any, targets: Any) -> jax.Array | None:
    """Reads from the options of a loss or metric which elements enter a mean.

    Args:
      f: a function. Its options are read only if it is a loss or metric of fdl with options set, by
        `functools.partial` or by a call without arrays. Otherwise, and for `dice`, the result is
        None.
      targets: [...], the second argument of f.

    Returns:
      bool [...], True where an element enters the mean. None means that all elements do.
    """
    if not isinstance(f, functools.partial) or not getattr(f.func, "leaves_out", False):
        return None
    options = {name: f.keywords.get(name) for name in OPTIONS}
    if all(value is None for value in options.values()):
        return None
    return mask_of(f.func.__name__, targets, **options)


def mask_of(name: str, labels: Any, where: Any = None, ignore_index: Any = None) -> jax.Array:
    """The mask of the elements that are not left out: bool, True where an element stays.

    Raises:
      ValueError: `where` is not an array of bool, or `ignore_index` is not an integer.
    """
    if where is not None:
        check_array(name, where, "where")
        if where.dtype != jnp.bool_:
            raise PathError(
                f"expected where to be bool, got {where.dtype}; write mask > 0, which is True for "
                "the elements to keep",
                layer=name,
            )
    if ignore_index is None:
        return jnp.asarray(where)
    others = _other_than(name, labels, as_int(ignore_index))
    return others if where is None else others & where


def _other_than(name: str, labels: Any, index: Any) -> jax.Array:
    traced = isinstance(index, jax.core.Tracer) and jnp.issubdtype(index.dtype, jnp.integer)
    if not traced and not is_count(index, -(2**63)):
        raise ValueError(
            f"{name}: expected ignore_index to be an integer, got {described(index)}; pass the "
            "label to leave out, such as -100"
        )
    if not traced and jnp.issubdtype(labels.dtype, jnp.integer):
        info = jnp.iinfo(labels.dtype)
        if not info.min <= index <= info.max:
            return jnp.ones(labels.shape, bool)
    return jnp.not_equal(labels, jnp.asarray(index, labels.dtype))


def shown(value: Any, mask: jax.Array | None) -> Any:
    """The value where the mask is True, and 0 elsewhere. With mask None, the value unchanged."""
    return value if mask is None else jnp.where(mask, value, jnp.zeros_like(value))


def _hidden(mask: jax.Array, arrays: list[Any]) -> list[jax.Array]:
    return [
        jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, jnp.zeros_like(x))
        for x in map(jnp.asarray, arrays)
    ]


def check_where(name: str, where: jax.Array, shape: tuple[int, ...]) -> None:
    """Raises a PathError unless `where` has the shape of the loss."""
    if where.shape != shape:
        raise PathError(
            f"expected where to have the shape of the loss, {list(shape)}, got "
            f"{list(where.shape)}; use jnp.broadcast_to",
            layer=name,
        )
