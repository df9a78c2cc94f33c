"""Representations: the outputs of the layers of a network, and measures of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import check_count, is_count, said
from fdl.core.layer import Layer, as_layer
from fdl.data.arrays import to_jax
from fdl.losses import softmax_cross_entropy
from fdl.metrics import accuracy
from fdl.ops.numerics import largest, power_of_two, wide
from fdl.typing import Params, State

# The key under which a tapped layer adds its outputs to the state that it returns. They leave the
# network in no other way, so `jit`, `grad`, `vmap` and `scan` work on a tapped network.
OUTPUTS = "<outputs>"
READOUT_STEPS = 500
READOUT_DECAY = 1e-3


def capture(model: Layer, *patterns: str) -> Callable[..., dict[str, Any]]:
    """A pure function that gives the outputs of chosen layers.

    Args:
      model: a network.
      patterns: paths of layers, or patterns of them: `dense_0`, `encoder/*`, `**` for all.

    Returns:
      A function `(params, state, x, *, key=None, train=False, **inputs) -> {path: output}`. A layer
      that is called several times gives `path`, `path#1`, and so on.

    Raises:
      ValueError: no pattern, a pattern that is not a str, or one that matches no layer; the message
        lists the nearest paths.

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
                f"capture: expected patterns as texts, got {said(pattern)}; pass each by itself, "
                "as in capture(model, 'dense_0', 'dense_1')"
            )
    if not patterns:
        raise ValueError("capture: expected a pattern, got none; pass '**' for every layer")
    order = layer_paths(model)
    wanted = paths.pick(order, patterns)
    tapped = _tap(model, "", frozenset(wanted))

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


def layer_paths(model: Layer) -> list[str]:
    """The paths of all layers inside a network, in the order in which they were passed.

    Args:
      model: a network.

    Returns:
      A list of paths; a layer stands before the layers inside it.

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

    Softmax regression on standardized features with weight decay 0.001, trained on all examples at
    once by 500 steps of accelerated gradient descent. The learning rate is 1 / (a bound of the
    curvature), so there is nothing to tune.

    Args:
      train: (h, labels): h [N, ...] of any real dtype, flattened to [N, D]; labels [N], integers.
      test: the same for the examples on which the accuracy is measured.
      classes: C, an int >= 1.

    Returns:
      The accuracy on test, in [0, 1].

    Raises:
      ValueError: classes that is not an int >= 1; labels of another length than h, or not in
        [0, C); a different D in train and test; no rows; numbers that are not finite.

    Example:
      >>> h, labels = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([0, 0, 1, 1])
      >>> linear_readout(train=(h, labels), test=(h, labels), classes=2)
      1.0

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier
    probes", arXiv 1610.01644; Nesterov 1983 for the acceleration.
    """
    classes = check_count("linear_readout", "classes", classes, "it is how many labels there are")
    h, h_test = _rows("linear_readout", train[0]), _rows("linear_readout", test[0])
    for rows, labels in ((h, np.asarray(train[1])), (h_test, np.asarray(test[1]))):
        if labels.shape != rows.shape[:1]:
            raise ValueError(
                f"linear_readout: expected labels [N] for h [N, ...], got {list(labels.shape)} for "
                f"{len(rows)} rows; give one class number for each"
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"linear_readout: expected labels in [0, {classes}), got {labels.min()} to "
                f"{labels.max()}; raise classes or mend the labels"
            )
    if h.shape[1] != h_test.shape[1]:
        raise ValueError(
            f"linear_readout: expected the same features in both parts, got {h.shape[1]} to train "
            f"on and {h_test.shape[1]} to test on; take both from one layer"
        )
    return float(_readout(h, jnp.asarray(train[1]), h_test, jnp.asarray(test[1]), classes))


def principal_components(h: Any, count: int = 2) -> tuple[jax.Array, jax.Array]:
    """Principal component analysis: coordinates along the directions of largest variance.

    Args:
      h: [N, ...], any real dtype; flattened to [N, D].
      count: K, the number of components, 1 <= K <= min(N, D).

    Returns:
      (coordinates [N, K], share [K] of the variance that each component holds). The sign of a
      component makes its weight of largest absolute value positive.

    Raises:
      ValueError: a count that is not an int in [1, min(N, D)]; numbers that are not finite.

    Example:
      >>> h = jnp.array([[0.0, 0.0], [2.0, 2.0]])
      >>> coordinates, share = principal_components(h, count=1)
      >>> coordinates.round(3), share.round(3)
      (Array([[-1.414],
             [ 1.414]], dtype=float32), Array([1.], dtype=float32))

    Source: Pearson 1901; Bishop 2006, "Pattern Recognition and Machine Learning", section 12.1.
    """
    rows = _rows("principal_components", h)
    if not is_count(count) or count > min(rows.shape):
        raise ValueError(
            f"principal_components: expected 1 to {min(rows.shape)} components of h "
            f"{list(rows.shape)}, got {count!r}; ask for fewer, or give more rows"
        )
    # Scaled, because squares of large numbers are infinite, and those of small ones 0.
    unit = power_of_two(largest(rows))
    rows = rows / unit
    rows = rows - rows.mean(0)
    spread = power_of_two(largest(rows))
    rows = rows / spread
    _, sizes, directions = jnp.linalg.svd(rows, full_matrices=False)
    heaviest = jnp.abs(directions).argmax(1)
    signs = jnp.sign(jnp.take_along_axis(directions, heaviest[:, None], axis=1))
    variance = jnp.square(sizes)
    share = variance / jnp.where(variance.sum() > 0, variance.sum(), 1)
    return rows @ (signs * directions)[:count].T * spread * unit, share[:count]


def _tap(layer: Layer, path: str, wanted: frozenset[str]) -> Layer:
    """The layer, with the outputs of the wanted layers added to the state that it returns."""
    above = f"{path}/" if path else ""
    # Only if a layer inside is wanted, because `rebuild` unrolls a scanned `repeat`.
    if layer.rebuild is not None and any(each.startswith(above) for each in wanted):
        inside = {name: _tap(child, above + name, wanted) for name, child in layer.children.items()}
        layer = layer.rebuild(inside)
    if path not in wanted:
        return layer

    def apply(params: Params, state: State, x: Any, **inputs: Any) -> tuple[Any, State]:
        untapped = {name: value for name, value in state.items() if name != OUTPUTS}
        y, untapped = layer.apply(params, untapped, x, **inputs)
        return y, {**untapped, OUTPUTS: (*state.get(OUTPUTS, ()), y)}

    return dataclasses.replace(layer, apply=apply, rebuild=None)


@jax.jit(static_argnums=4)
def _readout(h: Any, labels: Any, h_test: Any, labels_test: Any, classes: int) -> jax.Array:
    """The accuracy of `linear_readout`."""
    # Scaled, because squares of large numbers are infinite, and those of small ones 0.
    unit = power_of_two(largest(h, 0))
    h, h_test = h / unit, h_test / unit
    mean, spread = h.mean(0), h.std(0)
    # A feature that is constant up to rounding becomes 0.
    spread = jnp.where(spread > 1e-6 * jnp.abs(h).max(0), spread, jnp.inf)

    def standard(rows: jax.Array) -> jax.Array:
        ones = jnp.ones((len(rows), 1), rows.dtype)
        return jnp.concatenate([(rows - mean) / spread, ones], axis=1)

    features = standard(h)

    def loss(w: jax.Array) -> jax.Array:
        fit = softmax_cross_entropy(features @ w, labels).mean()
        return fit + READOUT_DECAY / 2 * jnp.square(w[:-1]).sum()

    # A bound of the curvature of softmax cross-entropy (Boehning 1992): half of the largest
    # eigenvalue of the features' second moments.
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


def _rows(who: str, h: Any) -> jax.Array:
    """h as [N, D] in float32 or float64; raises unless it has rows and is finite."""
    h = to_jax(h, who, "h")
    if h.ndim < 1 or not h.size:
        raise ValueError(
            f"{who}: expected h [N, ...] with N >= 1, got {list(h.shape)}; "
            "give one row for each example"
        )
    rows = h.reshape(len(h), -1).astype(wide(h.dtype))
    if not bool(jnp.isfinite(rows).all()):
        bad = int((~jnp.isfinite(rows)).any(1).sum())
        raise ValueError(
            f"{who}: expected finite numbers, got others in {bad} of {len(rows)} rows; look for "
            "the layer or the step where they began"
        )
    return rows
