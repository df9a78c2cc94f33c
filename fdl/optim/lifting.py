"""An optimizer is written for one array, in its paper's symbols; here it is lifted to trees."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import EmptyState, GradientTransformationExtraArgs

from fdl import paths
from fdl.ops.numerics import narrowed, wide, widened_tree
from fdl.optim.protocol import transformation

Slot = Callable[[Any], jax.Array]


def leafwise(
    who: str,
    at_step: Callable[..., Callable[..., Any]],
    make_state: Callable[..., Any],
    slots: Mapping[str, Slot],
    *,
    counted: bool = False,
    uses_params: bool = False,
) -> GradientTransformationExtraArgs:
    """A transformation of trees from a rule for one array.

    `at_step(t)` computes what is the same for all leaves, and gives the rule
    `(g, [w,] *slots) -> (u, *new slots)` of one leaf: gradient, parameter, its state; update.

    Args:
      who: in front of error messages.
      at_step: called with the number of the step, int32, from 1; without argument if not counted.
      make_state: optax's type of the state, with a field for each slot, and `count` if counted.
      slots: name -> the slot's first value, from a parameter. In the order of the rule's arguments.
      counted: whether steps are counted.
      uses_params: whether the rule is given the parameter, after the gradient.

    Returns:
      A transformation whose update keeps the gradients' dtype, and whose state keeps its dtypes,
      also one that was made elsewhere. The rule is given gradient and parameter in float32 or
      wider. Where a gradient is None, the update is None and the state stays.

    Raises:
      ValueError: gradients of another tree than the state's or the parameters'; integer parameters.

    Example:
      >>> from optax import TraceState
      >>> def at_step():
      ...     return lambda g, t: (g + 0.5 * t, g + 0.5 * t)
      >>> momentum = leafwise("momentum", at_step, TraceState, {"trace": filled()})
      >>> _, state = momentum.update({"w": jnp.ones(1)}, momentum.init({"w": jnp.ones(1)}))
      >>> momentum.update({"w": jnp.ones(1)}, state)[0]
      {'w': Array([1.5], dtype=float32)}
    """

    def init(params: Any) -> Any:
        check_params(who, params)
        fields = {name: jax.tree.map(slot, params) for name, slot in slots.items()}
        return make_state(**({"count": jnp.zeros((), jnp.int32)} if counted else {}), **fields)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        before = {f"state.{name}": getattr(state, name) for name in slots}
        count = {"count": increment(state.count)} if counted else {}
        if uses_params:
            before = {"params": need_params(who, params), **before}
        with jax.numpy_dtype_promotion("standard"):
            rule = at_step(*count.values())
        updates, *after = per_leaf(who, rule, updates, before, kept=len(slots))
        return updates, make_state(**count, **dict(zip(slots, after, strict=True)))

    return transformation(init, update)


def per_leaf(
    who: str,
    rule: Callable[..., Any],
    updates: Any,
    others: Mapping[str, Any],
    *,
    kept: int = 0,
) -> list[Any]:
    """The rule at every leaf: `rule(g, *leaves of others) -> (u, *new leaves)`.

    Dtypes are decided here and nowhere else: g and all others that are not kept are given to the
    rule in float32 or wider, and mixed dtypes are computed in the wider one, as optax does; the
    update gets the dtype of g, and each kept leaf its own.

    Args:
      who: in front of error messages.
      rule: for one array.
      updates: a pytree; at a None the rule is not called, and all stays as it is.
      others: name -> pytree of the same structure.
      kept: how many of the others, counted from the end, the rule gives back new.

    Returns:
      [the new updates, then the new trees of the kept ones].

    Raises:
      ValueError: two structures, or shapes that the rule cannot join; says both, and where.
    """
    structure: Any  # mypy knows no methods of a PyTreeDef
    leaves, structure = jax.tree.flatten(updates, is_leaf=_is_none)
    columns = []
    for name, tree in others.items():
        if jax.tree.structure(tree, is_leaf=_is_none) != structure:
            raise different_trees(who, "updates", updates, name, tree)
        columns.append(structure.flatten_up_to(tree))
    rows = []
    for g, *own in zip(leaves, *columns, strict=True):
        if g is None:
            rows.append((None, *own[len(own) - kept :]))
            continue
        first = len(own) - kept
        before, error = (g, *own[first:]), None
        with jax.numpy_dtype_promotion("standard"):
            try:
                given = widened_tree((g, *own[:first]))
                new = tuple(map(_as, rule(*given, *own[first:]), before))
            except (TypeError, ValueError) as raised:
                new, error = (), raised
        if error is not None or any(map(_reshaped, new, before)):
            for name, tree in others.items():
                if _shapes(tree) != _shapes(updates):
                    raise different_trees(who, "updates", updates, name, tree) from error
            if error is not None:
                raise error
        rows.append(new)
    transposed = zip(*rows, strict=True) if rows else [()] * (1 + kept)
    return [jax.tree.unflatten(structure, each) for each in transposed]


def stateless(
    who: str, rule: Callable[..., jax.Array], *, uses_params: bool = False
) -> GradientTransformationExtraArgs:
    """A transformation without state from a rule `(g, [w]) -> u`."""

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        given = {"params": need_params(who, params)} if uses_params else {}
        return per_leaf(who, lambda *leaves: (rule(*leaves),), updates, given)[0], state

    return transformation(lambda params: EmptyState(), update)


def filled(value: Any = 0.0, dtype: Any = None) -> Slot:
    """A slot that begins as an array like the parameter, all of one value.

    Args:
      value: of every element.
      dtype: by default the parameter's, float32 at least; optax takes the parameter's.
    """
    return lambda p: jnp.full_like(
        p, value, dtype=wide(jnp.result_type(p)) if dtype is None else dtype
    )


def increment(count: jax.Array) -> jax.Array:
    """count + 1; it stays at its largest value instead of turning negative."""
    last = np.iinfo(count.dtype).max
    return jnp.where(count < last, count + 1, last).astype(count.dtype)


def check_params(who: str, params: Any) -> None:
    """Refuses parameters that cannot be moved by a little.

    Raises:
      ValueError: an integer parameter, with its path.
    """
    leaves = jax.tree.leaves(params)
    if all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        return
    for path, leaf in paths.leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"{who}: expected parameters of a floating dtype, got {jnp.result_type(leaf)} at "
                f"{path!r}; keep what is not learned out of params, or convert it"
            )


def need_params(who: str, params: Any) -> Any:
    """The parameters, or an error that says how to give them."""
    if params is None:
        raise ValueError(
            f"{who}: expected the parameters, got None; call update(updates, state, params)"
        )
    return params


def different_trees(who: str, a: str, left: Any, b: str, right: Any) -> ValueError:
    """An error that names the first path at which two trees differ, and then shows both."""
    mine, other = _shapes(left), _shapes(right)
    path = next(
        (each for each in sorted({*mine, *other}) if mine.get(each) != other.get(each)), None
    )
    name = paths.shortened(repr(path), 200)
    said = f"one tree in {a} and {b}", "two structures with the same paths"
    if path in mine and path in other:
        shapes = f"{list(mine[path])} and {list(other[path])}"
        said = f"one shape in {a} and {b} at {name}", shapes
    elif path is not None:
        where = a if path in mine else b
        said = f"one tree in {a} and {b}", f"{name} in {where} alone"
    structures = [paths.shortened(str(jax.tree.structure(tree)), 600) for tree in (left, right)]
    both = f"\n  {a}: {structures[0]}\n  {b}: {structures[1]}"
    return ValueError(
        f"{who}: expected {said[0]}, got {said[1]}; make both from the same parameters{both}"
    )


def _as(x: Any, like: Any) -> jax.Array:
    return narrowed(x, jnp.result_type(like))


def _reshaped(new: Any, old: Any) -> bool:
    return jnp.shape(new) != jnp.shape(old)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: jnp.shape(leaf) for path, leaf in paths.leaves(tree).items()}


def _is_none(leaf: Any) -> bool:
    return leaf is None


def where(condition: jax.Array, yes: Any, no: Any) -> Any:
    """One tree or another of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
