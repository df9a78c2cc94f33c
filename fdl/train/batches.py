"""A batch as `supervised` takes it: x, y, perhaps weights, and the model's extra inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def unpack(batch: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(x, y, weight, extra inputs) of a batch in any of its forms."""
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
        "or write the objective yourself, see fdl.plain"
    )


def check_weight(weight: Any) -> None:
    """Raises unless the weights are finite, >= 0, and not all 0.

    Args:
      weight: [N, ...], concrete, or None.
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
    """x, y and inputs with 0 in place of what has weight 0 and could do harm.

    A mean leaves such an example out, but its gradient multiplies by 0, which a NaN survives, or
    the infinity that comes of a large number. Where all of an example has weight 0, all of its
    numbers become 0. Where only a part has, such as the padding of a sequence or the past of a
    text, other parts may look at it: there only what is not finite becomes 0, and the targets.
    """
    if weight is None:
        return x, y, inputs
    out = jnp.asarray(weight) == 0
    alone = out.reshape(out.shape[0], -1).all(1) if out.ndim else out

    def looked_at(leaf: Any) -> Any:
        return _zeroed(_zeroed(leaf, alone), out, only_not_finite=True)

    return (
        jax.tree.map(looked_at, x),
        jax.tree.map(lambda leaf: _zeroed(leaf, out), y),
        jax.tree.map(looked_at, inputs),
    )


def _zeroed(leaf: Any, out: jax.Array, only_not_finite: bool = False) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    if not floating or jnp.shape(leaf)[: out.ndim] != out.shape:
        return leaf
    leaf = jnp.asarray(leaf)
    here = out.reshape(*out.shape, *(1,) * (leaf.ndim - out.ndim))
    here = here & ~jnp.isfinite(leaf) if only_not_finite else here
    return jnp.where(here, jnp.zeros_like(leaf), leaf)


def batch_of(rows: int, tree: Any) -> Any:
    """The shapes of a batch of so many rows of data."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *np.shape(leaf)[1:]), jnp.result_type(leaf)), tree
    )
