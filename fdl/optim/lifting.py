"""Rules for one array, written in the symbols of a paper, become transformations of trees."""

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
    """Makes a transformation of trees from a rule for one array.

    `at_step(t)` computes what all leaves share and returns the rule for one leaf,
    `(g, [w,] *slots) -> (u, *new_slots)`: g is the gradient, w the parameter, u the update, and the
    slots are the state of the leaf, such as its moments.

    Args:
      who: name of the transformation, for error messages.
      at_step: called with the step t, int32, counted from 1; without arguments if not `counted`.
      make_state: type of the state, with a field for every slot, and `count` if `counted`.
      slots: name -> function of a parameter that returns the slot's first value. The order is that
        of the rule's arguments.
      counted: True counts the steps in the state.
      uses_params: True passes w to the rule.

    Returns:
      A transformation. Updates have the dtypes of the gradients, and a state keeps its dtypes, even
      if other code made it. The rule gets g and w in float32 or wider. Where a gradient is None,
      the update is None and the state stays.

    Raises:
      ValueError: at init, integer parameters; at update, gradients whose structure or shapes differ
        from those of the state or the parameters.

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
    """Applies a rule to every leaf: `rule(g, *leaves of others) -> (u, *new leaves)`.

    This is the only place that decides about dtypes. The rule gets g, and the leaves that it does
    not replace, in float32 or wider; mixed dtypes are computed in the wider one, as in optax. The
    update has the dtype of g, and a replaced leaf keeps its dtype.

    Args:
      who: name of the transformation, for error messages.
      rule: for one array.
      updates: a pytree. Where it is None, the rule is not called and the kept leaves stay.
      others: name -> pytree of the same structure.
      kept: the number of trees at the end of `others` that the rule replaces.

    Returns:
      [the new updates, then the new trees in the place of the last `kept` ones].

    Raises:
      ValueError: structures differ, or shapes that the rule cannot join; names the first path.
    """
    structure: Any  # mypy knows no methods of a PyTreeDef
    leaves, structure = jax.tree.flatten(updates, is_leaf=_is_none)
    columns = []
    for name, tree in others.items():
        if jax.tree.structure(tree, is_leaf=_is_none) != structure:
            raise different_trees(who, "updates", updates, name, tree)
        columns.append(structure.flatten_up_to(tree))
    rows = []
    for g, *rest in zip(leaves, *columns, strict=True):
        inputs, state = rest[: len(rest) - kept], rest[len(rest) - kept :]
        if g is None:
            rows.append((None, *state))
            continue
        old, error = (g, *state), None
        with jax.numpy_dtype_promotion("standard"):
            try:
                outputs = rule(*widened_tree((g, *inputs)), *state)
                new = tuple(map(_as, outputs, old))
            except (TypeError, ValueError) as raised:
                new, error = (), raised
        if error is not None or any(map(_reshaped, new, old)):
            for name, tree in others.items():
                if _shapes(tree) != _shapes(updates):
                    raise different_trees(who, "updates", updates, name, tree) from error
            if error is not None:
                raise error
        rows.append(new)
    trees = zip(*rows, strict=True) if rows else [()] * (1 + kept)
    return [jax.tree.unflatten(structure, leaves) for leaves in trees]


def stateless(
    who: str, rule: Callable[..., jax.Array], *, uses_params: bool = False
) -> GradientTransformationExtraArgs:
    """Makes a transformation without state from a rule `(g, [w]) -> u`."""

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        others = {"params": need_params(who, params)} if uses_params else {}
        return per_leaf(who, lambda *leaves: (rule(*leaves),), updates, others)[0], state

    return transformation(lambda params: EmptyState(), update)


def filled(value: Any = 0.0, dtype: Any = None) -> Slot:
    """A slot whose first value is an array of the parameter's shape, filled with one value.

    Args:
      value: the value of every element.
      dtype: by default the parameter's dtype, at least float32; optax takes the parameter's.
    """
    return lambda p: jnp.full_like(
        p, value, dtype=wide(jnp.result_type(p)) if dtype is None else dtype
    )


def increment(count: jax.Array) -> jax.Array:
    """count + 1; stops at the largest value of the dtype instead of overflowing."""
    last = np.iinfo(count.dtype).max
    return jnp.where(count < last, count + 1, last).astype(count.dtype)


def check_params(who: str, params: Any) -> None:
    """Raises unless all parameters have a floating or complex dtype.

    Raises:
      ValueError: names the path of the first integer parameter.
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
    """The parameters; raises if they are None."""
    if params is None:
        raise ValueError(
            f"{who}: expected the parameters, got None; call update(updates, state, params)"
        )
    return params


def different_trees(who: str, a: str, left: Any, b: str, right: Any) -> ValueError:
    """An error that names the first path at which two trees differ and then shows both trees."""
    lefts, rights = _shapes(left), _shapes(right)
    differing = (path for path in sorted({*lefts, *rights}) if lefts.get(path) != rights.get(path))
    path = next(differing, None)
    name = paths.shortened(repr(path), 200)
    expected, got = f"one tree in {a} and {b}", "two structures with the same paths"
    if path in lefts and path in rights:
        expected = f"one shape in {a} and {b} at {name}"
        got = f"{list(lefts[path])} and {list(rights[path])}"
    elif path is not None:
        got = f"{name} in {a if path in lefts else b} alone"
    structures = [paths.shortened(str(jax.tree.structure(tree)), 600) for tree in (left, right)]
    both = f"\n  {a}: {structures[0]}\n  {b}: {structures[1]}"
    return ValueError(
        f"{who}: expected {expected}, got {got}; make both from the same parameters{both}"
    )


def where(condition: jax.Array, yes: Any, no: Any) -> Any:
    """jnp.where, leaf by leaf, for two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _as(x: Any, like: Any) -> jax.Array:
    return narrowed(x, jnp.result_type(like))


def _reshaped(new: Any, old: Any) -> bool:
    return jnp.shape(new) != jnp.shape(old)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: jnp.shape(leaf) for path, leaf in paths.leaves(tree).items()}


def _is_none(leaf: Any) -> bool:
    return leaf is None
