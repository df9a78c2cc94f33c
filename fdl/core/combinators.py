"""Functions that combine layers in the usual ways: residual, parallel, frozen and others.

To join layers in any other way, write a `network` in plain Python.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_count, kind
from fdl.core.layer import Layer, abstract, as_layer
from fdl.core.networks import in_order, named_layers, wired
from fdl.ops.fence import fence
from fdl.paths import PathError
from fdl.typing import Params, State


def residual(*layers: Any, name: str = "residual", **named: Any) -> Layer:
    """y = x + f(x), where f applies the layers one after another.

    Args:
      layers: as in `chain`; f(x) must have the shape and dtype of x.
      name: name of the layer in another network.
      named: more layers, name -> layer; they come after the unnamed ones.

    Returns:
      A layer. An extra input is passed to every child that has an input of that name. On CPU, XLA
      would compute the gradient with respect to x again wherever the backward pass reads it; this
      layer prevents that, see fdl/ops/fence.py.

    Raises:
      PathError: f(x) differs from x in shape or dtype.
      ValueError: no layer is passed, or two layers have the same name.

    Example:
      >>> from fdl.layers import dense
      >>> block = residual(jnp.tanh, dense(3))
      >>> params, state = block.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'dense_0': {'b': (3,), 'w': (3, 3)}}
      >>> block.apply(params, state, jnp.ones((2, 3)))[0].shape
      (2, 3)

    Source: He, Zhang, Ren and Sun 2016, "Identity Mappings in Deep Residual Networks", equation 4.
    """
    children = named_layers(name, layers, named, least=1)

    def forward(f: Any, x: Any) -> Any:
        x = fence(x)
        y = in_order(f, children, x)
        if kind(y) != kind(x):
            widen = (
                "give the last layer as many features as x has, or use parallel(f, shortcut=...)"
            )
            convert = f"convert f(x) with astype({x.dtype}), or convert x before this layer"
            raise PathError(
                f"expected f(x) with the shape and dtype of x, {kind(x)}, got {kind(y)}; "
                f"{convert if x.shape == y.shape else widen}",
                layer=name,
            )
        return x + y

    return wired(forward, children, name)


def parallel(*layers: Any, merge: str = "sum", name: str = "parallel", **named: Any) -> Layer:
    """Layers side by side: all get the same x, and their outputs are merged.

    Args:
      layers: as in `chain`.
      merge: "sum" adds the outputs, "concat" joins them along the last axis, and "tuple" returns a
        tuple of them.
      name: name of the layer in another network.
      named: more layers, name -> layer; they come after the unnamed ones.

    Returns:
      A layer. An extra input is passed to every child that has an input of that name. On CPU, XLA
      would compute the gradient with respect to x again wherever the backward pass reads it; this
      layer prevents that, see fdl/ops/fence.py.

    Raises:
      PathError: the outputs cannot be added or joined. The message names the first output that
        differs.
      ValueError: no layer is passed, two layers have the same name, or merge is unknown.

    Example:
      >>> from fdl.layers import dense
      >>> both = parallel(dense(2), dense(3), merge="concat")
      >>> params, state = both.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> both.apply(params, state, jnp.ones((1, 4)))[0].shape
      (1, 5)

    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 4 (concat); He, Zhang,
    Ren and Sun 2016, "Deep Residual Learning for Image Recognition", equation 2 (sum).
    """
    children = named_layers(name, layers, named, least=1)
    if merge not in [*_MERGES]:  # a list, because a dict raises for a merge that is not hashable
        raise ValueError(
            f"{name}: expected merge to be one of {', '.join(map(repr, _MERGES))}, got {merge!r}; "
            "pass 'tuple', and combine the outputs in a network"
        )

    def forward(f: Any, x: Any) -> Any:
        x = fence(x)
        return _MERGES[merge](name, {child: f[child](x) for child in children})

    return wired(forward, children, name)


def remat(layer: Any, *, policy: Callable[..., bool] | None = None) -> Layer:
    """The same layer, but its backward pass recomputes the layer's inner values, to save memory.

    Args:
      layer: a layer, or a plain function of one array.
      policy: a function of `jax.checkpoint_policies`, which decides which inner values the forward
        pass stores for the backward pass; by default only the layer's inputs are stored.

    Returns:
      A layer with the same name, params, state and inputs. Its outputs are bit-identical to those
      of `layer`.

    Example:
      >>> from fdl.layers import dense
      >>> layer = remat(dense(3))
      >>> layer.name
      'dense'

    Source: Chen, Xu, Zhang and Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    inner = as_layer(layer, "remat")

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False, **given: Any
    ) -> tuple[Any, State]:
        def again(params: Params, state: State, x: Any, key: Any, given: Any) -> tuple[Any, State]:
            return inner.apply(params, state, x, key=key, train=train, **given)

        return jax.checkpoint(again, policy=policy)(params, state, x, key, given)

    rebuild = inner.rebuild
    return dataclasses.replace(
        inner,
        apply=apply,
        rebuild=rebuild and (lambda others: remat(rebuild(others), policy=policy)),
    )


def frozen(layer: Any) -> Layer:
    """The same layer, but training does not change its params. Use it to fine-tune other layers.

    The frozen layer always runs with train=False: batch norm uses its running statistics and does
    not update them, and dropout is off. The gradient with respect to the layer's params is 0; the
    gradient with respect to x is not changed.

    Args:
      layer: a layer, or a plain function of one array.

    Returns:
      A layer with the same name, params, state and inputs, so both layers can use the same weights.
      Weight decay changes params even if their gradient is 0; `fdl.optim.freeze` prevents that.

    Example:
      >>> from fdl.layers import dense
      >>> layer = frozen(dense(3))
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> loss = lambda params: layer.apply(params, state, jnp.ones((1, 2)), train=True)[0].sum()
      >>> jax.grad(loss)(params)["b"].tolist()
      [0.0, 0.0, 0.0]

    Source: Keras's guide to transfer learning, for batch norm in frozen layers.
    """
    inner = as_layer(layer, "frozen")

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False, **given: Any
    ) -> tuple[Any, State]:
        return inner.apply(jax.lax.stop_gradient(params), state, x, **given)

    rebuild, decoding = inner.rebuild, inner.decoding
    return dataclasses.replace(
        inner,
        apply=apply,
        rebuild=rebuild and (lambda others: frozen(rebuild(others))),
        decoding=decoding and (lambda length: frozen(decoding(length))),
    )


def batch_apply(layer: Any, *, axes: int = 2) -> Layer:
    """The same layer for x with several batch axes, which are merged into one before the call.

    For example, a layer for images [B, H, W, C] then takes videos [B, T, H, W, C].

    Args:
      layer: a layer, or a plain function of one array, that takes one batch axis.
      axes: number of batch axes, >= 1.

    Returns:
      A layer with the same name, params, state and inputs. Its extra inputs must begin with the
      same batch axes as x. If axes >= 2, time is one of the batch axes [B, T], so in decoding the
      layer gets every token as a separate example.

    Raises:
      ValueError: axes < 1.
      PathError: x or an extra input has fewer than `axes` axes, or their batch axes differ.

    Example:
      >>> from fdl.layers import conv
      >>> layer = batch_apply(conv(4, (3, 3)))
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5, 8, 8, 3)))
      >>> layer.apply(params, state, jnp.ones((2, 5, 8, 8, 3)))[0].shape
      (2, 5, 8, 8, 4)
    """
    axes = check_count("batch_apply", "axes", axes, "pass the number of batch axes of x")
    inner = as_layer(layer, "batch_apply")

    def as_one(tree: Any, lead: tuple[int, ...]) -> Any:
        for leaf in jax.tree.leaves(tree):
            check_array(inner.name, leaf)
            if leaf.shape[:axes] != lead or leaf.ndim < axes:
                raise PathError(
                    f"expected x and all extra inputs to begin with the same {axes} batch axes, "
                    f"got {list(leaf.shape)} and {list(lead)}; reshape them, or change axes",
                    layer=inner.name,
                )
        return jax.tree.map(lambda leaf: leaf.reshape(math.prod(lead), *leaf.shape[axes:]), tree)

    def merged(x: Any, given: Any) -> Any:
        return as_one((x, given), jax.tree.leaves(x)[0].shape[:axes])

    def init(key: Any, x: Any, **given: Any) -> tuple[Params, State]:
        x, given = jax.eval_shape(merged, abstract(x), abstract(given))
        return inner.init(key, x, **given)

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False, **given: Any
    ) -> tuple[Any, State]:
        lead = jax.tree.leaves(x)[0].shape[:axes]
        x, given = merged(x, given)
        y, state = inner.apply(params, state, x, key=key, train=train, **given)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), y), state

    rebuild, decoding = inner.rebuild, inner.decoding
    same = dataclasses.replace(
        inner,
        init=init,
        apply=apply,
        rebuild=rebuild and (lambda others: batch_apply(rebuild(others), axes=axes)),
        decoding=decoding and (lambda length: batch_apply(decoding(length), axes=axes)),
    )
    # With axes > 1 time is one of the batch axes, so every token is a separate example.
    return dataclasses.replace(same, decoding=lambda length: same) if axes > 1 else same


def _sum(name: str, outputs: dict[str, Any]) -> Any:
    first, *others = outputs
    for child in others:
        if kind(outputs[child]) != kind(outputs[first]):
            raise PathError(
                f"expected outputs of one shape and dtype, got {kind(outputs[first])} from {first} "
                f"and {kind(outputs[child])} from {child}; give both layers the same number of "
                "features, or pass merge='concat'",
                layer=name,
            )
    return sum((outputs[child] for child in others), outputs[first])


def _concat(name: str, outputs: dict[str, Any]) -> Any:
    first, *others = outputs
    for child in others:
        one, other = outputs[first], outputs[child]
        if (one.dtype, one.shape[:-1]) != (other.dtype, other.shape[:-1]) or not other.ndim:
            raise PathError(
                f"expected outputs that differ only in the last axis, got {kind(one)} from {first} "
                f"and {kind(other)} from {child}; give both layers outputs of one shape, or pass "
                "merge='tuple'",
                layer=name,
            )
    return jnp.concatenate(list(outputs.values()), axis=-1)


def _tuple(name: str, outputs: dict[str, Any]) -> Any:
    return tuple(outputs.values())


_MERGES: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "sum": _sum,
    "concat": _concat,
    "tuple": _tuple,
}
