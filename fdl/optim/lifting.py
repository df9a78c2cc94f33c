"""Turns an update rule for one array, written as in its paper, into a transformation of trees."""

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

    `at_step(t)` is called once at each step and returns the rule for one leaf,
    `(g, [w,] *slots) -> (u, *new_slots)`. `at_step` also computes values that are the same for all
    leaves, such as a bias correction. g is the gradient of the leaf, w the parameter, u the update.
    The slots are the arrays that the state holds for the leaf, such as its moments.

    Args:
      who: name of the transformation, for error messages.
      at_step: a function. If `counted` is True, it is called with the step t, an int32 scalar that
        starts at 1; otherwise it is called without arguments.
      make_state: type of the state. It has one field for each slot, and `count` if `counted`.
      slots: name of the state's field -> function that takes a parameter and returns the first
        value of the slot. The rule takes the slots in the order of this mapping.
      counted: if True, the state contains a counter of the steps.
      uses_params: True passes w to the rule.

    Returns:
      A transformation. Updates have the dtypes of the gradients. The new state has the dtypes of
      the state that is passed to `update`: a state that optax made may have narrower dtypes than
      one from `init`. The rule gets g and w in float32 or wider, and the slots in the dtypes of the
      state. Where a gradient is None, the update is None and the state does not change.

    Raises:
      ValueError: at init, a parameter has an integer dtype; at update, the gradients have a
        different structure or different shapes than the state or the parameters.

    Example:
      >>> from optax import TraceState
      >>> def at_step():
      ...     return lambda g, m: (g + 0.5 * m, g + 0.5 * m)
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

    All casts between dtypes happen in this function. The last `kept` trees of `others` are state:
    the rule gets their leaves in their own dtypes, and returns new values, which are cast back to
    those dtypes. g and the leaves of all other trees are cast to float32 or wider for the rule. If
    the arguments of the rule have different dtypes, it computes in the wider dtype, as in optax.
    The new update is cast to the dtype of g.

    Args:
      who: name of the transformation, for error messages.
      rule: takes the arrays of one leaf, and returns a tuple of 1 + `kept` arrays.
      updates: a pytree of arrays or None. Where a leaf is None, the rule is not called: the update
        stays None, and the state does not change.
      others: name for error messages -> pytree of the same structure as updates.
      kept: the number of trees at the end of `others` that are state. The rule returns new values
        for these.

    Returns:
      A list: the new updates, and then the `kept` new trees of the state.

    Raises:
      ValueError: the trees have different structures, or shapes that do not fit together. The
        message names the first path that differs.
    """
    structure: Any  # mypy does not know its methods
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
    """A slot of `leafwise` whose first value is an array full of one number.

    The array has the shape of the parameter.

    Args:
      value: the number.
      dtype: dtype of the array; by default the parameter's dtype, but at least float32. Unlike
        here, optax uses the parameter's dtype.
    """
    return lambda p: jnp.full_like(
        p, value, dtype=wide(jnp.result_type(p)) if dtype is None else dtype
    )


def increment(count: jax.Array) -> jax.Array:
    """Returns count + 1, or the largest value of the dtype where count + 1 would overflow."""
    last = np.iinfo(count.dtype).max
    return jnp.where(count < last, count + 1, last).astype(count.dtype)


def check_params(who: str, params: Any) -> None:
    """Raises unless all parameters have a floating or complex dtype.

    Raises:
      ValueError: the dtype of a parameter is neither floating nor complex. The message names the
        path of the first such parameter.
    """
    leaves = jax.tree.leaves(params)
    if all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        return
    for path, leaf in paths.leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"{who}: expected parameters of a floating dtype, got {jnp.result_type(leaf)} at "
                f"{path!r}; convert this array to float32, or keep it outside params if it is not "
                "learned"
            )


def need_params(who: str, params: Any) -> Any:
    """Returns the parameters. Raises an error if they are None."""
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
    expected, got = f"the same tree in {a} and {b}", "containers of different types"
    if path in lefts and path in rights:
        expected = f"the same shape in {a} and {b} at {name}"
        got = f"{list(lefts[path])} and {list(rights[path])}"
    elif path is not None:
        got = f"{name} only in {a if path in lefts else b}"
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
