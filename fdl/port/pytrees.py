"""Weights from and to Flax, Equinox, Haiku and Keras, by the rules of `from_torch`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import OptionError, kind
from fdl.port.default_names import default_names
from fdl.port.names import Table, parse_table
from fdl.port.tensor_files import as_numpy
from fdl.port.torch_weights import Names, from_tensors, to_tensors

_VALUE = jax.tree_util.GetAttrKey("value")


def from_pytree(source: Any, like: Any, names: Names | None = None, *, cast: bool = False) -> Any:
    """Weights of Flax, Equinox, Haiku or Keras as a tree of fdl, by a table of rules.

    Each array of `source` has a name: the keys of its path, joined by dots. A `/` in a key becomes
    a dot too. `fdl.paths.leaves(source)` lists them, with `/` in place of dots. The table has rules
    from paths to these names, in the forms of `from_torch`. For the layers of fdl, these are the
    names and rules:

    | path | Flax | Keras | Haiku | Equinox |
    |---|---|---|---|---|
    | dense `w` | `kernel` | `kernel` | `w` | `weight: o i -> i o` |
    | convolution `w` | `kernel` | `kernel` | `w` | `weight: o i h w -> h w i o` |
    | convolution `b` | `bias` | `bias` | `b` | `bias: o 1 1 -> o` |
    | embedding `w` | `embedding` | `embeddings` | `embeddings` | `weight` |
    | norm `scale` | `scale` | `gamma` | `scale` | `weight` |
    | norm `bias` | `bias` | `beta` | `offset` | `bias` |
    | batch norm `mean` | `mean` | `moving_mean` | `average: 1 1 1 c -> c` | a number |
    | batch norm `variance` | `var` | `moving_variance` | `average: 1 1 1 c -> c` | a number |
    | lstm `input/w` | `{ii,if,ig,io}.kernel | join 1` | `kernel` | | `weight_ih: o i -> i o` |
    | lstm `hidden/w` | `{hi,hf,hg,ho}.kernel | join 1` | `recurrent_kernel` | | `weight_hh: ...` |
    | lstm `input/b` | `{hi,hf,hg,ho}.bias | join 0` | `bias` | | `bias` |
    | gru `input/w` | `{ir,iz,in}.kernel | join 1` | | | `weight_ih: o i -> i o` |
    | gru `hidden/w` | `{hr,hz,hn}.kernel | join 1` | | | `weight_hh: o i -> i o` |
    | gru `input/b` | `{ir,iz,in}.bias | join 0` | | | `bias` |
    | gru `hidden/b` | `hn.bias` | | | `bias_n` |
    | attention `q/w` | `kernel: d h k -> d (h k), h=8` | as Flax | `w` | `weight: o i -> i o` |
    | attention `q/b` | `bias: h k -> (h k), h=8` | as Flax | `b` | `bias` |
    | attention `out/w` | `kernel: h k d -> (h k) d, h=8` | as Flax | `w` | `weight: o i -> i o` |

    In Haiku, the scale and offset of batch norm also have the axes `1 1 1 c`. `average` is what
    Haiku uses for inference; its training goes on from `hidden`, which has no path here. In
    Equinox, the numbers are the keys of the state; `mode="ema"` keeps the mean and the variance,
    and `mode="batch"` keeps them before a bias correction.

    No rule says where the weights of a GRU in Keras, and of an LSTM or a GRU in Haiku, belong: the
    order of their gates differs, and Haiku has other formulas. The kernels of transposed
    convolutions in Flax and Haiku are flipped. Change these arrays of `source` first.

    Arguments of layers are not weights. Give the layers of fdl the same ones, such as the epsilon
    of norms, which is 1e-6 in Flax's LayerNorm and 1e-3 in Keras.

    Args:
      source: a pytree. For Flax, the variables (`{"params": ..., "batch_stats": ...}`), or
        `nnx.state(model)`, where the level `value` of a variable is not a part of the name. For
        Equinox, the model, or `(model, state)`. For Haiku, the params, or `(params, state)`. For
        Keras, `{v.path: v.numpy() for v in model.weights}`. Leaves that are not arrays of numbers,
        such as functions and random keys, are ignored.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s, as in `from_torch`.
      names: the table. None writes it where the pairs of layers are unambiguous, as `torch_names`
        does, for dense, convolution, embedding and norm layers. `params.` and `batch_stats.` in
        front of names do not matter for this.
      cast: True converts floating arrays to the dtype of `like`. False raises if they differ.

    Returns:
      A new pytree of JAX arrays with the structure of `like`.

    Raises:
      ValueError: two arrays have the same name; a rule cannot be read or matches no path; a path
        has no rule, or two; names is None, and a layer has no certain pair; or the arrays do not
        fit. The message lists every name that is missing, unexpected, or has a different shape or
        dtype.

    Example:
      >>> source = {"params": {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}}
      >>> like = {"head": {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}}
      >>> names = {"head/w": "params.Dense_0.kernel", "head/b": "params.Dense_0.bias"}
      >>> params = from_pytree(source, like, names)
      >>> params["head"]["w"].shape, to_pytree(params, source, names)["params"]["Dense_0"]["bias"]
      ((3, 2), Array([0., 0.], dtype=float32))

    Source: the layers of Flax 0.12, Keras 3.15, Haiku 0.0.17 and Equinox 0.13; see `from_torch`.
    """
    found, leaves, _ = _named("from_pytree", source)
    arrays = zip(found, leaves, strict=True)
    tensors = {name: as_numpy(leaf) for name, leaf in arrays if name is not None}
    names = _default("from_pytree", tensors, like) if names is None else names
    return from_tensors("from_pytree", tensors, "a pytree", like, names, cast)


def to_pytree(params: Any, like: Any, names: Names | None = None) -> Any:
    """A tree of fdl as weights of Flax, Equinox, Haiku or Keras: the inverse of `from_pytree`.

    Args:
      params: a pytree of arrays.
      like: a pytree of the other library, as `source` in `from_pytree`. Its arrays must have the
        shapes and dtypes that the rules give. `nnx.update(model, result)` writes the result into
        a model of Flax NNX, and `v.assign(result[v.path])` into a variable of Keras.
      names: the table, as in `from_pytree`. Arrays that the table leaves out keep their values.

    Returns:
      A new pytree with the structure of `like`; a model of Equinox stays one. Leaves that are not
      arrays of numbers are those of `like`. The other leaves are NumPy arrays where `like` has
      NumPy arrays, and JAX arrays elsewhere.

    Raises:
      ValueError: as in `from_pytree`; or an array of `like` is neither written nor left out.

    Example:
      >>> like = {"linear": {"w": jnp.ones((3, 2)), "scale": jnp.ones(2)}, "act": jax.nn.relu}
      >>> params = {"dense": {"w": jnp.zeros((3, 2))}}
      >>> names = {"dense/w": "linear.w", None: ["linear.scale"]}
      >>> to_pytree(params, like, names)["linear"]["scale"]
      Array([1., 1.], dtype=float32)

    Source: see `from_pytree`.
    """
    found, leaves, structure = _named("to_pytree", like)
    arrays = {name: leaf for name, leaf in zip(found, leaves, strict=True) if name is not None}
    names = _default("to_pytree", arrays, params) if names is None else names
    tensors = to_tensors("to_pytree", params, names)
    _check_written(tensors, arrays, parse_table("to_pytree", names), paths.leaves(params))
    for at, name in enumerate(found):
        if name in tensors:
            array = tensors[name]
            leaves[at] = array if isinstance(leaves[at], np.ndarray) else jnp.asarray(array)
    return jax.tree.unflatten(structure, leaves)


def _named(who: str, tree: Any) -> tuple[list[str | None], list[Any], Any]:
    """The names of the leaves, None for those that are not arrays; the leaves; the structure."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    below = Counter(keys[:depth] for keys, _ in found for depth in range(len(keys)))
    names: list[str | None] = []
    places: dict[str, Any] = {}
    for keys, leaf in found:
        if not _is_array(leaf):
            names.append(None)
            continue
        # A variable of Flax is a node with one child.
        boxed = keys[-1:] == (_VALUE,) and below[keys[:-1]] == 1
        short = keys[:-1] if boxed else keys
        name = jax.tree_util.keystr(short, simple=True, separator=".").replace("/", ".")
        if name in places:
            one, other = (jax.tree_util.keystr(each) for each in (places[name], keys))
            raise OptionError(
                who,
                f"expected a name for each array, got {paths.quoted(name)} for {one} and {other}; "
                "rename one of the two keys",
            )
        places[name] = keys
        names.append(name)
    return names, [leaf for _, leaf in found], structure


def _is_array(leaf: Any) -> bool:
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        return False
    return not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _default(who: str, tensors: Mapping[str, Any], tree: Any) -> dict[str | None, Any]:
    """The table where it is unambiguous, with the names of collections of Flax in front."""
    turned = [name for name in tensors if "transpose" in name.lower()]
    if turned:
        raise OptionError(
            who,
            "expected names for a transposed convolution, whose kernel differs between libraries, "
            f"got none for {paths.quoted(turned[0])}; write names with a rule for each path",
        )
    whole = {re.sub(r"^(params|batch_stats)\.", "", name): name for name in tensors}
    if len(whole) < len(tensors):
        whole = {name: name for name in tensors}
    shapes = {short: tensors[name] for short, name in whole.items()}
    table = default_names(who, shapes, paths.leaves(tree), peers=True)
    for path, rule in table.items():
        if path is not None:
            table[path] = re.sub(r"^[^ :]+", lambda match: whole[match[0]], rule)
    return table


def _check_written(
    tensors: Mapping[str, np.ndarray],
    arrays: Mapping[str, Any],
    table: Table,
    leaves: Iterable[str],
) -> None:
    """Raises unless each array of `like` is written with its shape and dtype, or left out."""
    tied = {
        name
        for pair in table.pairs("to_pytree", leaves)
        if pair.rule.joined == "=" and set(pair.names) & set(arrays)
        for name in pair.names
    }
    lines = [
        f"missing: {name} {kind(array)}"
        for name, array in tensors.items()
        if name not in arrays and name not in tied
    ]
    lines += [
        f"not written: {name} {kind(leaf)}"
        for name, leaf in arrays.items()
        if name not in tensors and not table.leaves_out(name)
    ]
    lines += [
        f"different: {name} {kind(arrays[name])}, got {kind(array)}"
        for name, array in tensors.items()
        if name in arrays and kind(arrays[name]) != kind(array)
    ]
    if lines:
        raise OptionError(
            "to_pytree",
            f"expected params that fit the {len(arrays)} arrays of like, got params and a table "
            f"that differ at {len(lines)} names; correct names, or leave out names with None\n  "
            + "\n  ".join(lines),
        )
