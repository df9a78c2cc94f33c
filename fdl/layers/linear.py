"""Linear layers: `y = x @ w + b` over the last axis, einsum over any axes, and a bilinear form."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_count, check_floating, is_count
from fdl.core.layer import Layer, subkey
from fdl.initializers import lecun_normal, zeros
from fdl.ops.products import product
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State


def dense(
    features: int,
    *,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "dense",
) -> Layer:
    """y = dot(x, w) + b: a fully connected layer.

    Args:
      features: F, the number of outputs, >= 1.
      bias: whether to add b.
      w_init: initializer of w [D, F].
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., F]; params {"w": [D, F], "b": [F]}, with the dtype of the x
      that is passed to `init`.

    Raises:
      ValueError: features < 1.
      PathError: x has an integer dtype or no feature axis, or its D differs from the D of w.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = dense(2)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((8, 3)))
      >>> y, state = layer.apply(params, state, jnp.ones((8, 3)))
      >>> y.shape
      (8, 2)

    Source: Rosenblatt 1958; Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.1.
    """
    features = check_count("dense", "features", features, "pass the number of outputs")

    def init(key: Any, x: Any) -> tuple[Params, State]:
        _check_width(name, x, None)
        params = {"w": w_init(subkey(key, "w"), (x.shape[-1], features), x.dtype)}
        if bias:
            params["b"] = b_init(subkey(key, "b"), (features,), x.dtype)
        return params, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        _check_width(name, x, params["w"])
        y = product(x, params["w"])
        return (y + params["b"] if bias else y), state

    return Layer(name, init, apply)


def einsum_dense(
    equation: str,
    sizes: Mapping[str, int],
    *,
    bias: str = "",
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "einsum_dense",
) -> Layer:
    """y = einsum(equation, x, w) + b: a dense layer over any axes.

    Args:
      equation: the axes of x, w and y, written x,w->y as in `jnp.einsum`: "...td,dhk->...thk" makes
        h heads of k features, and "...thk,hkd->...td" sums over h and k.
      sizes: sizes of the axes of w that are not in x, such as {"h": 4, "k": 8}.
      bias: the axes of b, which must be the last axes of y, such as "hk"; "" means no b.
      w_init: initializer of w. It draws a matrix [in, out]: `in` is the product of the sizes of the
        axes that are summed over, and `out` is the product of the sizes of the axes of w that are
        not in x. Axes that x, w and y share are batch axes: for each index along them, one matrix
        is drawn.
      b_init: initializer of b.
      name: what the layer is called in a network.

    Returns:
      A layer from x to y; params {"w", "b"}, where w has the axes that the equation gives.

    Raises:
      ValueError: the equation is not of the form x,w->y, or sizes or bias has the wrong axes.
      PathError: x has an integer dtype, or its axes do not fit the equation or params.

    Example:
      >>> heads = einsum_dense("...td,dhk->...thk", {"h": 2, "k": 3}, bias="hk")
      >>> params, state = heads.init(jax.random.key(0), jnp.ones((5, 7, 4)))
      >>> jax.tree.map(jnp.shape, params)
      {'b': (2, 3), 'w': (4, 2, 3)}
      >>> heads.apply(params, state, jnp.ones((5, 7, 4)))[0].shape
      (5, 7, 2, 3)
    """
    of_x, of_w, of_y = _axes(equation, sizes, bias)
    summed = [axis for axis in of_w if axis not in of_y]
    batched = [axis for axis in of_w if axis in of_x and axis in of_y]
    drawn = [*batched, *summed, *(axis for axis in of_w if axis not in of_x)]

    def init(key: Any, x: Any) -> tuple[Params, State]:
        size = _sizes(name, x, of_x, {}) | dict(sizes)
        w_key = subkey(key, "w")
        matrices, rows = (math.prod(size[axis] for axis in axes) for axes in (batched, summed))
        columns = math.prod(size[axis] for axis in drawn) // (matrices * rows)
        keys = None if w_key is None else jax.random.split(w_key, matrices)
        w = jax.vmap(lambda key: w_init(key, (rows, columns), x.dtype), axis_size=matrices)(keys)
        w = w.reshape([size[axis] for axis in drawn]).transpose([drawn.index(a) for a in of_w])
        if not bias:
            return {"w": w}, {}
        return {"w": w, "b": b_init(subkey(key, "b"), [size[a] for a in bias], x.dtype)}, {}

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        known = dict(zip(of_w, params["w"].shape, strict=True))
        if bias:
            known |= dict(zip(bias, params["b"].shape, strict=True))
        _sizes(name, x, of_x, known)
        y = jnp.einsum(equation, x, params["w"])
        return (y + params["b"] if bias else y), state

    return Layer(name, init, apply)


def bilinear(
    features: int,
    *,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    name: str = "bilinear",
) -> Layer:
    """y[f] = b[f] + sum over d, c of x[d] w[d, c, f] other[c], where `other` is an extra input.

    Args:
      features: F, the number of outputs, >= 1.
      w_init: initializer of w, which is drawn as a matrix [D * C, F].
      b_init: initializer of b [F].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] and the required extra input `other` [..., C] to y [..., F]; params
      {"w": [D, C, F], "b": [F]}.

    Raises:
      ValueError: features < 1.
      PathError: the last axis of x or of `other` does not fit w, x and `other` have different batch
        axes, or x has an integer dtype.

    Example:
      >>> layer = bilinear(2)
      >>> x, other = jnp.ones((5, 3)), jnp.ones((5, 4))
      >>> params, state = layer.init(jax.random.key(0), x, other=other)
      >>> layer.apply(params, state, x, other=other)[0].shape
      (5, 2)

    Source: Tenenbaum and Freeman 2000, "Separating style and content with bilinear models",
    equation 1.
    """
    features = check_count("bilinear", "features", features, "pass the number of outputs")

    def check(x: Any, other: Any) -> None:
        check_floating(name, x)
        check_array(name, other, "other")

    def init(key: Any, x: Any, *, other: Any) -> tuple[Params, State]:
        check(x, other)
        d, c = x.shape[-1], other.shape[-1]
        w = w_init(subkey(key, "w"), (d * c, features), x.dtype).reshape(d, c, features)
        return {"w": w, "b": b_init(subkey(key, "b"), (features,), x.dtype)}, {}

    def apply(
        params: Params,
        state: State,
        x: Any,
        *,
        other: Any,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        check(x, other)
        w = params["w"]
        if (x.shape[-1], other.shape[-1]) != w.shape[:2] or x.shape[:-1] != other.shape[:-1]:
            raise PathError(
                f"expected x [..., {w.shape[0]}] and other [..., {w.shape[1]}] with the same batch "
                f"axes, got {list(x.shape)} and {list(other.shape)}; give x and other these "
                "shapes, or make new params with init",
                layer=name,
            )
        return jnp.einsum("...d,dcf,...c->...f", x, w, other) + params["b"], state

    return Layer(name, init, apply)


def _check_width(name: str, x: Any, w: Any) -> None:
    check_floating(name, x)
    width = "D" if w is None else str(w.shape[0])
    if x.ndim < 1 or (w is not None and x.shape[-1] != w.shape[0]):
        remedy = "flatten x, " * (x.ndim > 2) + "give x that width, or make new params with init"
        raise PathError(f"expected x [..., {width}], got {list(x.shape)}; {remedy}", layer=name)


def _axes(equation: str, sizes: Mapping[str, int], bias: str) -> tuple[str, str, str]:
    """The axes of x, w and y; raises unless equation, sizes and bias make a dense layer."""
    text = equation if isinstance(equation, str) else ""  # "" raises the error below
    inputs, arrow, of_y = text.replace(" ", "").partition("->")
    of_x, comma, of_w = inputs.partition(",")
    new = {axis for axis in of_w if axis not in of_x}
    distinct = all(
        len(set(axes)) == len(axes)
        for axes in (of_x.replace("...", ""), of_w, of_y.replace("...", ""))
    )
    known = set(of_y) <= set(of_x) | set(of_w) and set(of_w) <= set(of_x) | set(of_y)
    kept = {axis for axis in of_x if axis not in of_y} <= set(of_w)
    if not (arrow and comma and of_w.isalpha() and distinct and known and kept):
        raise ValueError(
            "einsum_dense: expected an equation x,w->y such as '...td,dhk->...thk', got "
            f"{equation!r}; name each axis of w in x or in y, and each axis of x in w or in y"
        )
    sized = isinstance(sizes, Mapping) and set(sizes) == new and all(map(is_count, sizes.values()))
    if not sized or not isinstance(bias, str) or not of_y.endswith(bias):
        each = sizes.items() if isinstance(sizes, Mapping) else [("sizes", sizes)]
        given = ", ".join(f"{axis}={size}" for axis, size in each) or "no sizes"
        wanted = f"sizes >= 1 of {', '.join(sorted(new))}" if new else "no sizes"
        raise ValueError(
            f"einsum_dense: expected {wanted} and a bias over the last axes of {of_y}, got "
            f"{given} and bias {bias!r}; pass a size for each axis of w that is not in x, such as "
            "{'f': 64}"
        )
    return of_x, of_w, of_y


def _sizes(name: str, x: Any, of_x: str, known: Mapping[str, int]) -> dict[str, int]:
    """The sizes of x's axes; raises if x does not have the axes `of_x` with the sizes `known`."""
    check_floating(name, x)
    letters = of_x.replace("...", "")
    fits = x.ndim == len(letters) if "..." not in of_x else x.ndim >= len(letters)
    sizes = dict(zip(letters, x.shape[x.ndim - len(letters) :], strict=True)) if fits else {}
    if not fits or any(known.get(axis, size) != size for axis, size in sizes.items()):
        raise PathError(
            f"expected x with axes {of_x}{_where(known, letters)}, got {list(x.shape)}; give x "
            "these axes, or change the equation",
            layer=name,
        )
    return sizes


def _where(known: Mapping[str, int], letters: str) -> str:
    sizes = ", ".join(f"{axis} = {known[axis]}" for axis in letters if axis in known)
    return f" where {sizes}" if sizes else ""
