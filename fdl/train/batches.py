"""Batches for `supervised`: x, y, an optional weight, and the model's extra inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def unpack(batch: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Splits a batch into (x, y, weight, extra inputs).

    The batch is a tuple (x, y) or (x, y, weight), or a dict. weight is None if the batch has none.
    """
    if isinstance(batch, Mapping):
        rest = dict(batch)
        if "x" in rest and "y" in rest:
            return rest.pop("x"), rest.pop("y"), rest.pop("weight", None), rest
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        return batch[0], batch[1], batch[2] if len(batch) == 3 else None, {}
    what = f"entries {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
    raise ValueError(
        "supervised: expected data (x, y), (x, y, weight) or a dict with x and y, got "
        f"{what}{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}; "
        "pass one of these, or write the objective yourself, see fdl.plain"
    )


def check_weight(weight: Any) -> None:
    """Raises unless the weights [N, ...] are finite, >= 0 and not all 0.

    Does not raise if `weight` is None or a traced array. (The numbers of a traced array, which is
    inside a function that JAX transforms, are not known.)
    """
    if weight is None or isinstance(weight, jax.core.Tracer):
        return
    array = np.asarray(weight)
    wrong = ~(array >= 0) | ~np.isfinite(array)
    if wrong.any():
        at = tuple(int(each) for each in np.argwhere(wrong)[0])
        raise ValueError(
            f"supervised: expected weights >= 0, got {array[at]} at row {at[0] if at else 0}; "
            "weight 0 leaves an example out"
        )
    if array.size and not array.any():
        raise ValueError(
            f"supervised: expected a weight above 0, got only zeros {list(array.shape)}; "
            "nothing could be learned from these examples"
        )


def without_ignored(x: Any, y: Any, inputs: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Replaces all numbers in examples of weight 0 by 0, so that they cannot make gradients NaN.

    The mean loss ignores an example of weight 0. But the gradient of the example is multiplied by
    0, and 0 * NaN is NaN. So if a whole example has weight 0, all its numbers in x, y and inputs
    become 0. This includes ids and labels, because an id or a label that is out of range can give
    NaN.

    If only a part of an example has weight 0, such as the padding of a sequence, the targets of
    this part become 0. In x and inputs, only NaNs and infinities of this part become 0, because the
    model may need the finite numbers of this part to predict the rest of the example.
    """
    if weight is None:
        return x, y, inputs
    # Not `weight == 0`, which raises for a bool weight under strict dtype promotion.
    out = jnp.logical_not(jnp.asarray(weight))
    alone = out.reshape(out.shape[0], -1).all(1) if out.ndim else out

    def zeroed(tree: Any, only_not_finite: bool) -> Any:
        whole = jax.tree.map(lambda leaf: _zeroed(leaf, alone, False), tree)
        return jax.tree.map(lambda leaf: _zeroed(leaf, out, only_not_finite), whole)

    return zeroed(x, True), zeroed(y, False), zeroed(inputs, True)


def _zeroed(leaf: Any, out: jax.Array, only_not_finite: bool) -> Any:
    """Sets a leaf of numbers to 0 where `out`, a mask over the first axes of the leaf, is True.

    A leaf that does not hold numbers, or whose first axes do not have the shape of `out`, is
    returned unchanged. With `only_not_finite`, only NaNs and infinities are set to 0.
    """
    number = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact if only_not_finite else jnp.number)
    if not number or jnp.shape(leaf)[: out.ndim] != out.shape:
        return leaf
    leaf = jnp.asarray(leaf)
    here = out.reshape(*out.shape, *(1,) * (leaf.ndim - out.ndim))
    here = here & ~jnp.isfinite(leaf) if only_not_finite else here
    return jnp.where(here, jnp.zeros_like(leaf), leaf)


def batch_of(rows: int, tree: Any) -> Any:
    """The shapes and dtypes of a batch that consists of `rows` rows of `tree`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *np.shape(leaf)[1:]), jnp.result_type(leaf)), tree
    )
