"""Low-rank adaptation: a trained network learns again through a few small matrices beside its own.

It is a function of parameters alone. `w` becomes `w + scale / rank * a @ b` before the network sees
it, so that any layer can be adapted by the path of its weights, under any transformation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fdl import paths
from fdl.arguments import check_count, check_number, in_dtype
from fdl.initializers import Initializer, he_uniform
from fdl.layer import Layer, Params, State, subkey
from fdl.paths import PathError


def low_rank(
    model: Layer,
    *patterns: str,
    rank: int,
    scale: float = 1.0,
    a_init: Initializer = he_uniform,
) -> Layer:
    """The same network, whose chosen weights are w + scale / rank * a @ b.

    b begins at zero, so that the adapted network is at first the network itself, bit for bit. Train
    `low_rank/**` and freeze `base/**`; `merge_low_rank` makes plain parameters again.

    Args:
      model: any layer.
      patterns: which weights, by path: `**/w`, `block/*/attn/q/w`. A kernel `[..., out]` is taken
        as the matrix `[prod(...), out]`.
      rank: r, the width between a and b, >= 1.
      scale: of what is added; it is divided by the rank, so that a rate found for one rank serves
        another (the paper's alpha). May be traced.
      a_init: initializer of a [in, r]; b [r, out] is zero.

    Returns:
      A layer with the inputs and state of `model`, and params {"base": those of model,
      "low_rank": a tree of {"a", "b"} at the paths of the chosen weights}.

    Raises:
      ValueError: a rank below 1; no pattern; at init, a pattern that matches no weights, with the
        nearest paths.
      PathError: at init, a chosen leaf that is no matrix.

    Example:
      >>> import jax
      >>> from fdl.layers import dense
      >>> from fdl.network import chain
      >>> model = low_rank(chain(dense(6), dense(4)), "dense_1/w", rank=2)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> jax.tree.map(jnp.shape, params["low_rank"])
      {'dense_1': {'w': {'a': (6, 2), 'b': (2, 4)}}}

    Source: Hu et al. 2021, arXiv 2106.09685, equation 3 and section 4.1.
    """
    rank = check_count("low_rank", "rank", rank, "it is the width between a and b, as 8")
    check_number("low_rank", "a scale", scale, lambda scale: True, "1 is usual")
    if not patterns:
        raise ValueError(
            "low_rank: expected a pattern, got none; pass '**/w' for every weight matrix"
        )

    def init(key: Any, x: Any, **inputs: Any) -> tuple[Params, State]:
        base, state = model.init(key, x, **inputs)
        return {"base": base, "low_rank": _started(base, patterns, rank, a_init, key)}, state

    def apply(params: Params, state: State, x: Any, **given: Any) -> tuple[Any, State]:
        return model.apply(merge_low_rank(params, scale=scale), state, x, **given)

    def again(inner: Layer) -> Layer:
        return low_rank(inner, *patterns, rank=rank, scale=scale, a_init=a_init)

    rebuild, twin = model.rebuild, model.decoding
    return dataclasses.replace(
        model,
        init=init,
        apply=apply,
        rebuild=rebuild and (lambda others: again(rebuild(others))),
        decoding=twin and (lambda length: again(twin(length))),
    )


def merge_low_rank(params: Params, *, scale: float = 1.0) -> Params:
    """Plain parameters of the network itself, with what was learned beside them added in.

    Args:
      params: {"base": ..., "low_rank": ...}, of a `low_rank` layer.
      scale: the one that the layer was made with.

    Returns:
      Parameters in the structure and the dtypes of params["base"].

    Example:
      >>> base = {"w": jnp.ones((2, 2))}
      >>> beside = {"w": {"a": jnp.ones((2, 1)), "b": jnp.array([[0.0, 3.0]])}}
      >>> merge_low_rank({"base": base, "low_rank": beside}, scale=2.0)["w"]
      Array([[1., 7.],
             [1., 7.]], dtype=float32)
    """
    return _merged(params["base"], params["low_rank"], scale)


def _merged(base: Any, beside: Any, scale: float) -> Any:
    if isinstance(base, Mapping):
        return {
            name: _merged(value, beside[name], scale) if name in beside else value
            for name, value in base.items()
        }
    a, b = beside["a"], beside["b"]
    return base + (in_dtype(scale, a.dtype) / a.shape[-1] * (a @ b)).reshape(base.shape).astype(
        base.dtype
    )


def _started(
    base: Params, patterns: tuple[str, ...], rank: int, a_init: Initializer, key: Any
) -> Params:
    leaves = paths.leaves(base)
    tree: Params = {}
    for path in paths.pick(leaves, patterns):
        w, own = leaves[path], subkey(key, "low_rank")
        if w.ndim < 2:
            raise PathError(
                f"expected weights [..., in, out], got {list(w.shape)}; choose matrices, as '**/w'",
                path,
            )
        node = tree
        for level in path.split("/"):
            node, own = node.setdefault(level, {}), subkey(own, level)
        node["a"] = a_init(subkey(own, "a"), (w.size // w.shape[-1], rank), w.dtype)
        node["b"] = jnp.zeros((rank, w.shape[-1]), w.dtype)
    return tree
