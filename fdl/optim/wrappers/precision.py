"""How finely an optimizer keeps things: float32 copies of coarse weights, and coarser moments."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformation, GradientTransformationExtraArgs, MaskedNode

from fdl.ops.numerics import cast_like, is_half, narrowed, wide, widened_tree
from fdl.optim.checks import as_transformation
from fdl.optim.lifting import check_params, different_trees, need_params
from fdl.optim.protocol import transformation


class MasterWeightsState(NamedTuple):
    """The float32 copies, of the parameters in half precision alone, and the optimizer's state."""

    master: Any
    inner_state: Any


def master_weights(optimizer: GradientTransformation) -> GradientTransformationExtraArgs:
    """Steps too small for half precision are not lost: they are added to float32 copies.

        M = M + optimizer's step at M,     W = M rounded to W's dtype

    A bfloat16 of 1 has neighbours at 0.996 and 1.008: steps of 0.001 leave it where it is for ever.

    Args:
      optimizer: fdl's or optax's; it is given gradients and parameters in float32.

    Returns:
      A transformation that needs params, with state `MasterWeightsState(master, inner_state)`.
      Parameters in float32 or wider have no copy and are moved as ever. Updates of the others are
      in float32, so that `apply_updates` arrives at the rounded copy; where a chain around this
      rounds them, the arrival is within one rounding of the update. Either way nothing adds up,
      because the next update begins at the parameters as they are. The copies are what counts: to
      change parameters by hand, change `state.master` as well, or call `init` again.

    Raises:
      ValueError: what is no transformation; integer parameters; an update without params.

    Example:
      >>> from fdl.optim import apply_updates, sgd
      >>> optimizer, w = master_weights(sgd(1.0)), jnp.array([1.0], jnp.bfloat16)
      >>> state = optimizer.init(w)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(jnp.array([1e-3], jnp.bfloat16), state, w)
      ...     w = apply_updates(w, updates)
      >>> w, round(float(state.master[0]), 3)
      (Array([0.898438], dtype=bfloat16), 0.9)

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.1. optax has none.
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
    """An optimizer whose moments are kept in a narrower dtype, to save memory.

    fdl keeps moments in float32 or wider, whatever the dtype of the parameters; optax in that of
    the parameters, and `keep_state_in(optimizer, jnp.bfloat16)` with bfloat16 parameters has its
    dtypes. Know what that costs: in bfloat16, 0.999 v rounds to v, and a second moment that has
    grown never falls. `mu_dtype`, where an optimizer has it, narrows the first moment alone.

    Args:
      optimizer: fdl's or optax's.
      dtype: floating. It is given to the arrays of the state that have the shape of a parameter
        with at least one axis, and more bits; scalars and factors stay.

    Returns:
      A transformation with the optimizer's state.

    Raises:
      ValueError: what is no transformation, or no floating dtype.

    Example:
      >>> from fdl.optim import adam
      >>> state = keep_state_in(adam(0.1), jnp.bfloat16).init(jnp.ones(2, jnp.bfloat16))
      >>> state[0].nu.dtype
      dtype(bfloat16)
    """
    who = "keep_state_in"
    inner, dtype = as_transformation(who, optimizer), jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{who}: expected a floating dtype, got {dtype}; jnp.bfloat16 is usual")

    def init(params: Any) -> Any:
        shapes = {jnp.shape(p) for p in jax.tree.leaves(params)} - {()}

        def kept(x: Any) -> Any:
            have = jnp.result_type(x)
            wider = jnp.issubdtype(have, jnp.floating) and have.itemsize > dtype.itemsize
            return narrowed(x, dtype) if wider and jnp.shape(x) in shapes else x

        return jax.tree.map(kept, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        updates, new_state = inner.update(updates, state, params, **extra_args)
        return updates, cast_like(new_state, state)

    return transformation(init, update)


def _whole(params: Any, master: Any) -> Any:
    """The parameters, with the copies in the place of those that have one."""
    return _map(lambda p, m: p if isinstance(m, MaskedNode) else m, params, master)


def _map(f: Any, tree: Any, *others: Any) -> Any:
    """Over the leaves of a tree; what stands in their place in the others may be None or masked."""
    structure: Any = jax.tree.structure(tree)  # mypy knows no methods of a PyTreeDef
    columns = (structure.flatten_up_to(each) for each in others)
    return jax.tree.unflatten(structure, list(map(f, jax.tree.leaves(tree), *columns)))


def _for_whole(extra_args: dict[str, Any], params: Any) -> dict[str, Any]:
    """The gradient in float32, and functions that round parameters to what the network knows."""

    def rounding(function: Any) -> Any:
        @functools.wraps(function)
        def rounded(whole: Any, *args: Any, **kwargs: Any) -> Any:
            return function(cast_like(whole, params), *args, **kwargs)

        return rounded

    how = {"grad": widened_tree, "value_fn": rounding, "grad_fn": rounding}
    return {name: how.get(name, lambda x: x)(value) for name, value in extra_args.items()}
