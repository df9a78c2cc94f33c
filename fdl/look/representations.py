"""Captures the outputs of the layers of a network (their representations), and measures them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import check_count, described, is_count, kind
from fdl.core.layer import Layer, as_layer
from fdl.data.arrays import to_jax
from fdl.losses import softmax_cross_entropy
from fdl.metrics import accuracy
from fdl.ops.numerics import largest, power_of_two, wide
from fdl.paths import PathError
from fdl.typing import Params, State

# `capture` changes layers into tapped layers. A tapped layer adds its outputs, under this key, to
# the state that it returns. It has no side effects, so `jit`, `grad`, `vmap` and `scan` work on it.
OUTPUTS = "<outputs>"
READOUT_STEPS = 500
READOUT_DECAY = 1e-3


def capture(model: Layer, *patterns: str) -> Callable[..., dict[str, Any]]:
    """Makes a pure function that returns the outputs of chosen layers.

    Args:
      model: a network.
      patterns: paths of layers, or patterns such as `encoder/*`. The pattern `**` selects all
        layers.

    Returns:
      A function `(params, state, x, *, key=None, train=False, **inputs) -> {path: output}`. If a
      layer is called several times, its outputs have the names `path`, `path#1`, and so on.

    Raises:
      ValueError: no pattern is given, a pattern is not a str, or a pattern matches no layer (the
        message then lists the most similar paths).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fdl.models import mlp
      >>> model = mlp([5], 3)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> outputs = capture(model, "dense_*")(params, state, jnp.ones((2, 4)))
      >>> {path: h.shape for path, h in outputs.items()}
      {'dense_0': (2, 5), 'dense_1': (2, 3)}
    """
    model = as_layer(model)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"capture: expected patterns as strings, got {described(pattern)}; pass each "
                "pattern as a separate argument, as in capture(model, 'dense_0', 'dense_1')"
            )
    if not patterns:
        raise ValueError("capture: expected a pattern, got none; pass '**' to capture all layers")
    order = layer_paths(model)
    wanted = paths.pick(order, patterns)
    tapped = _changed(model, "", dict.fromkeys(wanted, _tapped))

    def look(params: Params, state: State, x: Any, **inputs: Any) -> dict[str, Any]:
        _, after = tapped.apply(params, state, x, **inputs)
        found = {}
        for path in wanted:
            node = after
            for level in path.split("/"):
                node = node.get(level, {})
            for number, output in enumerate(node.get(OUTPUTS, ())):
                found[f"{path}#{number}" if number else path] = output
        return found

    return look


def patch(model: Layer, changes: Mapping[str, Callable[[Any], Any]]) -> Layer:
    """The same network, in which the outputs of chosen layers are changed (an intervention).

    The params and the state stay those of the model, so the changed network can be applied, trained
    and differentiated like any other. If a layer is called several times, each output is changed.

    Args:
      model: a network.
      changes: a dict, path of a layer -> function f. The output y of the layer becomes f(y), which
        must have the shapes and dtypes of y. A path may be a pattern, such as `block/*/attn`. A
        function that ignores y replaces the output.

    Returns:
      A layer with the same params, state and inputs. If a layer inside a `repeat` is changed, this
      `repeat` is not run as a scan, but unrolled.

    Raises:
      TypeError: changes is not a dict, or a value is not a function.
      ValueError: a pattern matches no layer (the message lists the most similar paths), or two
        patterns match the same layer.
      PathError: f(y) has another shape or dtype than y; raised when the patched network is applied.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fdl.models import mlp
      >>> model = mlp([5], 3)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> without = patch(model, {"relu_0": lambda h: h.at[:, 2].set(0.0)})
      >>> y, state = without.apply(params, state, jnp.ones((2, 4)))
      >>> bool((y == model.apply(params | {"dense_1": params["dense_1"] | {
      ...     "w": params["dense_1"]["w"].at[2].set(0.0)}}, state, jnp.ones((2, 4)))[0]).all())
      True

    Source: Vig et al. 2020, arXiv 2004.12265, for interventions on parts of a network; Geiger et
    al. 2021, arXiv 2106.02997, for replacing representations.
    """
    model = as_layer(model)
    if not isinstance(changes, Mapping) or not all(map(callable, changes.values())):
        raise TypeError(
            f"patch: expected changes as a dict, path -> function, got {described(changes)}; write "
            'patch(model, {"block/3/attn": lambda y: 0 * y})'
        )
    order, chosen = layer_paths(model), {}
    for pattern, f in changes.items():
        for path in paths.pick(order, [pattern]):
            if path in chosen:
                raise ValueError(
                    f"patch: expected one function for each layer, got two for {path!r}; leave out "
                    f"one of the patterns that match it, such as {pattern!r}"
                )
            chosen[path] = functools.partial(_patched, f=f)
    return _changed(model, "", chosen)


def layer_paths(model: Layer) -> list[str]:
    """The paths of all layers inside a network.

    Layers are in the order in which they were passed to the function that combines them.

    Args:
      model: a network.

    Returns:
      A list of paths, in which a layer is followed by the layers inside it.

    Example:
      >>> from fdl.models import mlp
      >>> layer_paths(mlp([5], 3))
      ['flatten_0', 'dense_0', 'relu_0', 'dense_1']
    """
    found = []
    for name, child in model.children.items():
        found += [name, *(f"{name}/{inner}" for inner in layer_paths(child))]
    return found


def linear_readout(train: tuple[Any, Any], test: tuple[Any, Any], classes: int) -> float:
    """The accuracy of a linear classifier trained on a representation (a linear probe).

    The classifier is softmax regression on standardized features with weight decay 0.001. It is
    trained by 500 steps of accelerated gradient descent, where each step uses all examples. The
    learning rate is 1 / (an upper bound of the curvature), so there is nothing to tune.

    Args:
      train: a pair (h, labels) for training. h is [N, ...] of any real dtype and is flattened to
        [N, D]; labels is [N], integers in [0, C).
      test: a pair (h, labels) of the examples on which the accuracy is measured.
      classes: C, the number of classes, an int >= 1.

    Returns:
      The accuracy on test, in [0, 1].

    Raises:
      ValueError: classes is not an int >= 1, labels does not have the length of h, a label is not
        in [0, C), train and test have a different D, h has no rows, or h is not finite.

    Example:
      >>> h, labels = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([0, 0, 1, 1])
      >>> linear_readout(train=(h, labels), test=(h, labels), classes=2)
      1.0

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier
    probes", arXiv 1610.01644; Nesterov 1983 for the acceleration.
    """
    classes = check_count(
        "linear_readout", "classes", classes, "it is the number of different labels"
    )
    h, labels, h_test, labels_test = labelled_rows("linear_readout", train, test)
    for each in (labels, labels_test):
        if each.min() < 0 or each.max() >= classes:
            raise ValueError(
                f"linear_readout: expected labels in [0, {classes}), got {each.min()} to "
                f"{each.max()}; pass a larger number of classes, or correct the labels"
            )
    return float(_readout(h, jnp.asarray(labels), h_test, jnp.asarray(labels_test), classes))


def principal_components(h: Any, count: int = 2) -> tuple[jax.Array, jax.Array]:
    """Principal component analysis: coordinates along the directions of largest variance.

    Args:
      h: [N, ...], of any real dtype. It is flattened to [N, D].
      count: K, the number of components, an int in [1, min(N, D)].

    Returns:
      (coordinates [N, K], share [K]). share is each component's part of the total variance.
      The sign of a component is chosen so that, in its direction, the element with the largest
      absolute value is positive.

    Raises:
      ValueError: count is not an int in [1, min(N, D)], or h is not finite.

    Example:
      >>> h = jnp.array([[0.0, 0.0], [2.0, 2.0]])
      >>> coordinates, share = principal_components(h, count=1)
      >>> coordinates.round(3), share.round(3)
      (Array([[-1.414],
             [ 1.414]], dtype=float32), Array([1.], dtype=float32))

    Source: Pearson 1901; Bishop 2006, "Pattern Recognition and Machine Learning", section 12.1.
    For a map that is not linear, for h [N, D] from `capture`, use scikit-learn or umap-learn:
    `sklearn.manifold.TSNE().fit_transform(h)`, `umap.UMAP().fit_transform(h)`;
    `draw.representations` takes them as `projection`.
    """
    rows = rows_of("principal_components", h)
    if not is_count(count) or count > min(rows.shape):
        raise ValueError(
            f"principal_components: expected 1 to {min(rows.shape)} components of h "
            f"{list(rows.shape)}, got {count!r}; pass a smaller count, or more rows"
        )
    rows, spread, unit = centred(rows)
    _, sizes, directions = jnp.linalg.svd(rows, full_matrices=False)
    heaviest = jnp.abs(directions).argmax(1)
    signs = jnp.sign(jnp.take_along_axis(directions, heaviest[:, None], axis=1))
    variance = jnp.square(sizes)
    share = variance / jnp.where(variance.sum() > 0, variance.sum(), 1)
    return rows @ (signs * directions)[:count].T * spread * unit, share[:count]


def _changed(layer: Layer, path: str, changes: Mapping[str, Callable[[Layer], Layer]]) -> Layer:
    """A copy of a layer, in which each layer with a path in `changes` is replaced.

    The layer at a path is replaced by `changes[path](layer)`. `path` is the path of `layer` itself.
    """
    above = f"{path}/" if path else ""
    # The layer is rebuilt only if a layer inside it is changed, because `rebuild` unrolls the scan
    # of a `repeat` layer.
    if layer.rebuild is not None and any(each.startswith(above) for each in changes):
        children = layer.children.items()
        inside = {name: _changed(child, above + name, changes) for name, child in children}
        layer = layer.rebuild(inside)
    return changes[path](layer) if path in changes else layer


def _tapped(layer: Layer) -> Layer:
    """A copy of the layer that adds its output to the state that it returns."""

    def apply(params: Params, state: State, x: Any, **inputs: Any) -> tuple[Any, State]:
        untapped = {name: value for name, value in state.items() if name != OUTPUTS}
        y, untapped = layer.apply(params, untapped, x, **inputs)
        return y, {**untapped, OUTPUTS: (*state.get(OUTPUTS, ()), y)}

    return dataclasses.replace(layer, apply=apply, rebuild=None)


def _patched(layer: Layer, f: Callable[[Any], Any]) -> Layer:
    """The layer with f(y) in place of its output y."""

    def apply(params: Params, state: State, x: Any, **inputs: Any) -> tuple[Any, State]:
        y, state = layer.apply(params, state, x, **inputs)
        new = f(y)
        kinds = [jax.tree.map(kind, each) for each in (y, new)]
        if kinds[0] != kinds[1]:
            raise PathError(
                f"expected f(y) with the shape and dtype of y, {_text(kinds[0])}, got "
                f"{_text(kinds[1])}; return an array like y, such as y.at[...].set(0)",
                layer=layer.name,
            )
        return new, state

    rebuild, decoding = layer.rebuild, layer.decoding
    return dataclasses.replace(
        layer,
        apply=apply,
        rebuild=rebuild and (lambda others: _patched(rebuild(others), f)),
        decoding=decoding and (lambda length: _patched(decoding(length), f)),
    )


def _text(kinds: Any) -> str:
    return ", ".join(map(str, jax.tree.leaves(kinds)))


@jax.jit(static_argnums=4)
def _readout(h: Any, labels: Any, h_test: Any, labels_test: Any, classes: int) -> jax.Array:
    """The compiled part of `linear_readout`: the accuracy on the test examples."""
    # h is scaled, because squares of large numbers would be infinite, and squares of small numbers
    # would be 0.
    unit = power_of_two(largest(h, 0))
    h, h_test = h / unit, h_test / unit
    mean, spread = h.mean(0), h.std(0)
    # A feature that is constant up to rounding is divided by infinity, so it becomes 0.
    spread = jnp.where(spread > 1e-6 * jnp.abs(h).max(0), spread, jnp.inf)

    def standard(rows: jax.Array) -> jax.Array:
        ones = jnp.ones((len(rows), 1), rows.dtype)
        return jnp.concatenate([(rows - mean) / spread, ones], axis=1)

    features = standard(h)

    def loss(w: jax.Array) -> jax.Array:
        fit = softmax_cross_entropy(features @ w, labels).mean()
        return fit + READOUT_DECAY / 2 * jnp.square(w[:-1]).sum()

    # An upper bound of the curvature of softmax cross-entropy (Boehning 1992): half of the largest
    # eigenvalue of the matrix of second moments of the features. The decay adds to the curvature.
    curvature = jnp.linalg.eigvalsh(features.T @ features / len(features))[-1] / 2 + READOUT_DECAY

    def step(number: jax.Array, carry: Any) -> Any:
        w, before = carry
        ahead = w + number / (number + 3) * (w - before)
        return ahead - jax.grad(loss)(ahead) / curvature, w

    zero = jnp.zeros((features.shape[1], classes), features.dtype)
    w, _ = jax.lax.fori_loop(
        0, READOUT_STEPS, lambda i, carry: step(i.astype(zero.dtype), carry), (zero, zero)
    )
    return accuracy(standard(h_test) @ w, labels_test).mean()


def labelled_rows(who: str, train: Any, test: Any) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """Checks the examples of a readout; returns (h [N, D], labels [N]) of train, then of test."""
    h, h_test = rows_of(who, train[0]), rows_of(who, test[0])
    labels, labels_test = np.asarray(train[1]), np.asarray(test[1])
    for rows, each in ((h, labels), (h_test, labels_test)):
        if each.shape != rows.shape[:1]:
            raise ValueError(
                f"{who}: expected labels [N] for h [N, ...], got {list(each.shape)} for "
                f"{len(rows)} rows; pass one class number for each row"
            )
    if h.shape[1] != h_test.shape[1]:
        raise ValueError(
            f"{who}: expected the same number of features in train and test, got "
            f"{h.shape[1]} and {h_test.shape[1]}; take both representations from the same layer"
        )
    return h, labels, h_test, labels_test


def rows_of(who: str, h: Any, what: str = "h") -> jax.Array:
    """Converts h to [N, D] in float32 or float64; raises if h has no rows or is not finite.

    `what` is the name of h in error messages. The numbers of a traced h are not checked.
    """
    h = to_jax(h, who, what)
    if h.ndim < 1 or not h.size:
        raise ValueError(
            f"{who}: expected {what} [N, ...] with N >= 1, got {list(h.shape)}; pass one row for "
            "each example"
        )
    if jnp.iscomplexobj(h):
        raise ValueError(
            f"{who}: expected {what} of a real dtype, got {kind(h)}; pass the real and the "
            "imaginary parts as separate features"
        )
    rows = h.reshape(len(h), -1).astype(wide(h.dtype))
    if isinstance(rows, jax.core.Tracer):
        return rows
    with jax.ensure_compile_time_eval():  # so that a constant is also checked inside `jit`
        if not bool(jnp.isfinite(rows).all()):
            bad = int((~jnp.isfinite(rows)).any(1).sum())
            raise ValueError(
                f"{who}: expected finite numbers, got NaN or infinity in {bad} of {len(rows)} "
                "rows; find the layer or the training step that produced them"
            )
    return rows


@jax.jit
def centred(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(apart [N, D], spread, unit): the rows less their mean are apart * spread * unit.

    The largest |apart| is in [1, 2), or 0 if all rows are equal.
    """
    # rows is scaled, because squares of large numbers would be infinite, and squares of small
    # numbers would be 0.
    unit = power_of_two(largest(rows))
    rows = _without_mean(rows / unit)
    spread = power_of_two(largest(rows))
    return rows / spread, spread, unit


def _without_mean(rows: jax.Array) -> jax.Array:
    mean, low, high = (f(rows, 0, keepdims=True) for f in (jnp.mean, jnp.min, jnp.max))
    # The clip makes the mean of equal numbers exact.
    return rows - jnp.clip(mean, low, high)
