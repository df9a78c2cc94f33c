"""Mixed precision: a network that computes in half precision, with parameters in float32."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl import paths
from fdl.checks import floating_dtype
from fdl.core.layer import Layer, as_layer
from fdl.ops.numerics import is_half, wide
from fdl.typing import Params, State

NORMS = ("**/scale", "**/bias")  # the parameters of norms, which compute in float32 anyway


def compute_in(layer: Any, dtype: Any, *, keep: Sequence[str] = NORMS) -> Layer:
    """The same layer, computed in half precision, with parameters and outputs in float32.

    In the forward pass, parameters and the floating inputs of each inner layer are rounded to
    `dtype`. fdl still computes norms, softmax, attention scores and all sums in float32. State,
    such as running statistics, is not rounded. Gradients with respect to the parameters are in the
    dtype of the parameters, so any optimizer works. The loss is computed in float32.

    bfloat16 has the range of float32. float16 has more digits but a smaller range: gradients below
    3e-8 become 0. To prevent this, put `fdl.optim.dynamic_loss_scale` around the optimizer.

    Args:
      layer: a layer, or a plain function of one array.
      dtype: "bfloat16" or "float16", or any other floating dtype.
      keep: patterns of the paths of parameters that are not rounded. By default they are the scale
        and the bias of norms.

    Returns:
      A layer with the same name, params, state and inputs, so both layers can use the same weights.
      Outputs in half precision are converted to float32.

    Raises:
      ValueError: dtype is not a floating dtype, or keep is a string and not a list.

    Example:
      >>> from fdl.layers import dense
      >>> model = compute_in(dense(2), "bfloat16")
      >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> params["w"].dtype, model.apply(params, state, jnp.ones((1, 3)))[0].dtype
      (dtype('float32'), dtype('float32'))

    Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv 1710.03740, section 3.
    """
    target = floating_dtype("compute_in", dtype, "pass 'bfloat16'")
    if isinstance(keep, str):
        raise ValueError(
            f"compute_in: expected keep as a list of patterns, got {keep!r}; write [{keep!r}]"
        )
    outer = as_layer(layer, "compute_in")
    inner = _rounding_inputs(outer, target)

    def rounded(path: Any, leaf: Any) -> Any:
        kept = any(paths.matches(pattern, paths.path_of(path)) for pattern in keep)
        return leaf if kept else _rounded(leaf, target)

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        params = jax.tree_util.tree_map_with_path(rounded, params)
        y, state = inner.apply(params, state, x, **given)
        return jax.tree.map(_widened, y), state

    rebuild, decoding = outer.rebuild, outer.decoding
    again = lambda other: compute_in(other, target, keep=keep)  # noqa: E731
    return dataclasses.replace(
        outer,
        apply=apply,
        rebuild=rebuild and (lambda others: again(rebuild(others))),
        decoding=decoding and (lambda length: again(decoding(length))),
    )


def _rounding_inputs(layer: Layer, dtype: Any) -> Layer:
    """The same layer, but it and each layer inside it round their floating inputs to `dtype`."""
    if layer.rebuild is not None:
        children = {name: _rounding_inputs(child, dtype) for name, child in layer.children.items()}
        layer = layer.rebuild(children)

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        x, given = jax.tree.map(lambda leaf: _rounded(leaf, dtype), (x, given))
        return layer.apply(params, state, x, **given)

    return dataclasses.replace(layer, apply=apply)


def _rounded(leaf: Any, dtype: Any) -> Any:
    """A real floating array in `dtype`; anything else unchanged."""
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def _widened(leaf: Any) -> Any:
    return jnp.asarray(leaf, wide(leaf.dtype)) if is_half(leaf) else leaf
