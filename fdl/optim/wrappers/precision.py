"""Precision: float32 copies of half-precision weights, and moments in a narrower dtype."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs, MaskedNode

from fdl.checks import floating_dtype
from fdl.ops.numerics import cast_like, is_half, narrowed, wide, widened_tree
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import check_params, different_trees, need_params
from fdl.optim.protocol import transformation


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Args:
      master: float32 copies of the half-precision parameters. All other parameters are replaced by
        `optax.MaskedNode()`.
      inner_state: the state of the optimizer.
    """

    master: Any
    inner_state: Any


def master_weights(optimizer: GradientTransformation) -> GradientTransformationExtraArgs:
    """Adds updates to a float32 copy M of half-precision parameters W, so that no update is lost.

        M = M + update,     W = M rounded to the dtype of W

    The optimizer computes the update at M. Without the copy, small updates are lost: the numbers in
    bfloat16 next to 1 are 0.996 and 1.008, so adding 0.001 to 1 gives 1 again, at every step.

    Args:
      optimizer: a transformation of fdl or optax. It gets gradients and parameters in float32.

    Returns:
      A transformation that needs params, with state `MasterWeightsState(master, inner_state)`.
      Parameters in float32 or wider have no copy, and their updates pass unchanged. For
      half-precision parameters, the returned updates are in float32, so that `apply_updates` gives
      exactly the rounded copy. If this transformation is inside a chain that rounds the updates,
      the new parameters differ from the rounded copy by at most that rounding. Such errors do not
      accumulate, because each update is computed from the current params. To change parameters by
      hand, change `state.master` too, or call `init` again.

    Raises:
      ValueError: `optimizer` is not a transformation; at init, a parameter has an integer dtype;
        at update, params are missing.

    Example:
      >>> from fdl.optim import apply_updates, sgd
      >>> optimizer, w = master_weights(sgd(1.0)), jnp.array([1.0], jnp.bfloat16)
      >>> state = optimizer.init(w)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(jnp.array([1e-3], jnp.bfloat16), state, w)
      ...     w = apply_updates(w, updates)
      >>> w, round(float(state.master[0]), 3)
      (Array([0.898438], dtype=bfloat16), 0.9)

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.1. It is not in optax.
    """
    who = "master_weights"
    inner = as_transformation(who, optimizer)

    def init(params: Any) -> MasterWeightsState:
        check_params(who, params)
        master = jax.tree.map(
            lambda p: jnp.asarray(p, wide(p.dtype)) if is_half(p) else MaskedNode(), params
        )
        return MasterWeightsState(master, inner.init(_whole(params, master)))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MasterWeightsState]:
        params = need_params(who, params)
        try:
            whole = _whole(params, state.master)
        except ValueError:
            raise different_trees(who, "params", params, "state.master", state.master) from None
        steps, inner_state = inner.update(
            widened_tree(updates), state.inner_state, whole, **_for_whole(extra_args, params)
        )

        def moved(p: Any, u: Any, m: Any) -> Any:
            return m if isinstance(m, MaskedNode) or u is None else m + jnp.asarray(u, m.dtype)

        def step(p: Any, u: Any, m: Any) -> Any:
            if isinstance(m, MaskedNode) or u is None:
                return u
            return jnp.asarray(narrowed(m, p.dtype), m.dtype) - jnp.asarray(p, m.dtype)

        master = _map(moved, params, steps, state.master)
        return _map(step, params, steps, master), MasterWeightsState(master, inner_state)

    return transformation(init, update)


def keep_state_in(optimizer: GradientTransformation, dtype: Any) -> GradientTransformationExtraArgs:
    """Keeps the moments of an optimizer in a narrower dtype, to save memory.

    fdl keeps moments in float32 or wider, even for narrower parameters; optax keeps moments in the
    dtype of the parameters. With bfloat16 parameters, the state of `keep_state_in(optimizer,
    jnp.bfloat16)` has the same dtypes as in optax. The drawback is that 0.999 v rounds to v in
    bfloat16, so a second moment that has grown never falls. Some optimizers have an argument
    `mu_dtype`, which narrows only the first moment.

    Args:
      optimizer: a transformation of fdl or optax.
      dtype: a floating dtype. An array of the state is cast to this dtype if the array is wider,
        has one or more axes, and has the shape of a parameter. Scalars, and arrays that do not have
        the shape of any parameter, keep their dtypes.

    Returns:
      A transformation whose state has the structure of the optimizer's state.

    Raises:
      ValueError: `optimizer` is not a transformation; dtype is not a floating dtype.

    Example:
      >>> from fdl.optim import adam
      >>> state = keep_state_in(adam(0.1), jnp.bfloat16).init(jnp.ones(2, jnp.bfloat16))
      >>> state[0].nu.dtype
      dtype(bfloat16)
    """
    who = "keep_state_in"
    inner = as_transformation(who, optimizer)
    dtype = floating_dtype(who, dtype, "jnp.bfloat16 is usual")

    def init(params: Any) -> Any:
        shapes = {jnp.shape(p) for p in jax.tree.leaves(params)} - {()}

        def cast(x: Any) -> Any:
            old = jnp.result_type(x)
            wider = jnp.issubdtype(old, jnp.floating) and old.itemsize > dtype.itemsize
            return narrowed(x, dtype) if wider and jnp.shape(x) in shapes else x

        return jax.tree.map(cast, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        updates, new_state = inner.update(updates, state, params, **extra_args)
        return updates, cast_like(new_state, state)

    return transformation(init, update)


def _whole(params: Any, master: Any) -> Any:
    """The parameters. Where a parameter has a float32 copy, the copy replaces it."""
    return _map(lambda p, m: p if isinstance(m, MaskedNode) else m, params, master)


def _map(f: Any, tree: Any, *others: Any) -> Any:
    """jax.tree.map over the leaves of `tree`. In `others`, a leaf can be None or a MaskedNode."""
    structure: Any = jax.tree.structure(tree)  # mypy does not know its methods
    columns = (structure.flatten_up_to(other) for other in others)
    return jax.tree.unflatten(structure, list(map(f, jax.tree.leaves(tree), *columns)))


def _for_whole(extra_args: dict[str, Any], params: Any) -> dict[str, Any]:
    """The extra arguments for an optimizer that sees float32 parameters.

    `grad` is cast to float32. `value_fn` and `grad_fn` get parameters in the dtypes of
    `params`: the float32 parameters are rounded before the call.
    """

    def rounding(function: Any) -> Any:
        @functools.wraps(function)
        def rounded(whole: Any, *args: Any, **kwargs: Any) -> Any:
            return function(cast_like(whole, params), *args, **kwargs)

        return rounded

    convert = {"grad": widened_tree, "value_fn": rounding, "grad_fn": rounding}
    return {name: convert.get(name, lambda x: x)(value) for name, value in extra_args.items()}
