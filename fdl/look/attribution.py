"""Which parts of an input, or of a layer, a prediction depends on.

The functions take f, a pure function from inputs x [N, ...] to one score for each example, [N]. The
score of an example must depend on this example alone. For the score of class 3 of a network in
evaluation, f is `lambda x: model.apply(params, state, x)[0][:, 3]`.

In the shapes, N is the number of examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_count, check_key, check_number, described, kind
from fdl.core.layer import Layer, as_layer
from fdl.data.arrays import to_jax
from fdl.look.representations import capture, patch
from fdl.ops.numerics import wide
from fdl.typing import Key, Params, State

Scores = Callable[[jax.Array], jax.Array]
ONE_SCORE = (
    "choose one score for each example, as in lambda x: model.apply(params, state, x)[0][:, 3]"
)


def saliency(f: Scores, x: Any) -> jax.Array:
    """The absolute gradient of each score by its input: |d f(x) / d x|.

    Args:
      f: a pure function x [N, ...] -> scores [N], for example
        `lambda x: model.apply(params, state, x)[0][:, 3]`.
      x: inputs [N, ...], of a floating dtype.

    Returns:
      [N, ...], the shape and dtype of x. For images [N, H, W, K], the paper takes the maximum over
      the channels: `saliency(f, x).max(-1)`. Works under `jit` and `vmap`.

    Raises:
      TypeError: f is not a function.
      ValueError: x has no rows or is not of a floating dtype, or f(x) is not [N].

    Example:
      >>> saliency(lambda x: x[:, 0] ** 2 - x[:, 1], jnp.array([[3.0, 1.0], [-1.0, 2.0]]))
      Array([[6., 1.],
             [2., 1.]], dtype=float32)

    Source: Simonyan, Vedaldi and Zisserman 2013, "Deep Inside Convolutional Networks", arXiv
    1312.6034, section 3.
    """
    return jnp.abs(_gradient("saliency", f, _inputs("saliency", f, x)))


def integrated_gradients(f: Scores, x: Any, baseline: Any = 0.0, steps: int = 64) -> jax.Array:
    """The mean gradient on the way from a baseline to x, times x - baseline.

    attribution = (x - baseline) * integral over t from 0 to 1 of f'(baseline + t (x - baseline)).
    The attributions of an example sum to f(x) - f(baseline).

    Args:
      f: a pure function x [N, ...] -> scores [N], for example
        `lambda x: model.apply(params, state, x)[0][:, 3]`.
      x: inputs [N, ...], of a floating dtype.
      baseline: an input without information, such as a black image: a number, or an array that
        broadcasts to x.
      steps: the number of points of the Gauss-Legendre quadrature, an int >= 1. For a smooth f, 64
        points give the integral up to rounding. For a network with ReLU, whose gradient jumps, the
        error is about 1 / steps of the jumps; compare the sums with f(x) - f(baseline).

    Returns:
      [N, ...], the shape and dtype of x. Works under `jit` and `vmap`.

    Raises:
      TypeError: f is not a function.
      ValueError: x has no rows or is not of a floating dtype, f(x) is not [N], baseline does not
        broadcast to x, or steps is not an int >= 1.

    Example:
      >>> x = jnp.array([[3.0, 1.0], [-1.0, 2.0]])
      >>> integrated_gradients(lambda x: x[:, 0] ** 2 * x[:, 1], x).sum(1).round(4)
      Array([9., 2.], dtype=float32)

    Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", arXiv
    1703.01365, section 3. The paper uses a Riemann sum in place of the quadrature.
    """
    x = _inputs("integrated_gradients", f, x)
    start = _like("integrated_gradients", "baseline", baseline, x)
    steps = check_count("integrated_gradients", "steps", steps, "64 is enough for a smooth f")
    # The points are in (-1, 1), with weights that sum to 2.
    points, weights = (
        jnp.asarray(each, x.dtype) for each in np.polynomial.legendre.leggauss(steps)
    )

    def add(total: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        place, weight = point
        slope = _gradient("integrated_gradients", f, start + (place + 1) / 2 * (x - start))
        return total + (weight / 2 * slope).astype(total.dtype), None

    total, _ = jax.lax.scan(add, jnp.zeros(x.shape, wide(x.dtype)), (points, weights))
    return (total * (x - start).astype(total.dtype)).astype(x.dtype)


def smooth_grad(f: Scores, x: Any, key: Key, noise: Any = 0.1, samples: int = 50) -> jax.Array:
    """The mean gradient of each score at inputs with random noise: E f'(x + noise * normal).

    Args:
      f: a pure function x [N, ...] -> scores [N], for example
        `lambda x: model.apply(params, state, x)[0][:, 3]`.
      x: inputs [N, ...], of a floating dtype.
      key: a random key.
      noise: the standard deviation of the noise, in the unit of x: a number >= 0, or an array that
        broadcasts to x. The paper uses 0.1 to 0.2 times the range of x.
      samples: the number of noisy inputs for each example, an int >= 1.

    Returns:
      [N, ...], the shape and dtype of x. The values have signs; `saliency` has none. Works under
      `jit` and `vmap`.

    Raises:
      TypeError: f is not a function.
      ValueError: x has no rows or is not of a floating dtype, f(x) is not [N], key is not one
        random key, noise does not broadcast to x or is negative, or samples is not an int >= 1.

    Example:
      >>> x = jnp.array([[3.0, 1.0]])
      >>> smooth_grad(lambda x: 2 * x[:, 0] - x[:, 1], x, jax.random.key(0)).round(4)
      Array([[ 2., -1.]], dtype=float32)

    Source: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", arXiv 1706.03825,
    section 2.
    """
    x = _inputs("smooth_grad", f, x)
    if key is None:
        raise ValueError(
            "smooth_grad: expected one random key, got None; make it with jax.random.key(seed)"
        )
    check_key(key, "smooth_grad")
    check_number("smooth_grad", "noise", noise, "[0, inf)", "0.1 times the range of x is usual")
    spread = _like("smooth_grad", "noise", noise, x)
    samples = check_count("smooth_grad", "samples", samples, "50 is usual")

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        normal = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
        slope = _gradient("smooth_grad", f, x + spread * normal)
        return total + slope.astype(total.dtype), None

    total, _ = jax.lax.scan(add, jnp.zeros(x.shape, wide(x.dtype)), jnp.arange(samples))
    return (total / samples).astype(x.dtype)


def grad_cam(
    model: Layer, path: str, params: Params, state: State, x: Any, target: Any
) -> jax.Array:
    """Where in an image a convolutional layer finds evidence for a class.

    With the output h [N, H, W, C] of the layer, and the score of the class, the weight a_c of a
    channel is the mean over H and W of d score / d h. The map is relu(sum over c of a_c h_c).

    Args:
      model: a network from x to logits [N, classes]. It is applied in evaluation mode.
      path: the path of a layer that is called once and whose output is [N, ..., C]. The paper takes
        the last convolution.
      params: the parameters of the model.
      state: the state of the model.
      x: inputs [N, ...].
      target: the class: an int for all examples, or integers [N].

    Returns:
      [N, H, W], or [N, ...] for another number of axes, of the dtype of h. To draw it over the
      images, use `jax.image.resize(cam, x.shape[:3], "linear")`. Works under `jit` and `vmap`.

    Raises:
      ValueError: path matches no layer or several, the output of the layer or the logits have
        another shape, or target is not a class.

    Example:
      >>> import fdl
      >>> model = fdl.chain(conv=fdl.conv(4, (3, 3)), act=fdl.relu, pool=fdl.global_average_pool(),
      ...                   head=fdl.dense(3))
      >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
      >>> params, state = model.init(jax.random.key(1), x)
      >>> grad_cam(model, "act", params, state, x, target=2).shape
      (2, 8, 8)

    Source: Selvaraju et al. 2016, "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", arXiv 1610.02391, section 3.
    """
    model = as_layer(model, "grad_cam")
    found = capture(model, path)(params, state, x)
    if len(found) != 1:
        raise ValueError(
            f"grad_cam: expected the path of one layer that is called once, got {list(found)} for "
            f"{path!r}; pass the path of a single layer"
        )
    [(name, h)] = found.items()
    if not hasattr(h, "ndim") or h.ndim < 3 or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(
            f"grad_cam: expected an output [N, H, W, C] of the layer {name!r}, got {described(h)}; "
            "pass the path of a layer before the image is flattened"
        )

    def score(h: jax.Array) -> jax.Array:
        logits, _ = patch(model, {name: lambda _: h}).apply(params, state, x)
        return _of_class(logits, target, len(h))

    middle = tuple(range(1, h.ndim - 1))
    weights = _gradient("grad_cam", score, h).astype(wide(h.dtype)).mean(middle, keepdims=True)
    return jnp.maximum((weights * h.astype(weights.dtype)).sum(-1), 0).astype(h.dtype)


def attention_rollout(weights: Sequence[Any]) -> jax.Array:
    """How much each token after all layers of a transformer depends on each token of the input.

    With W_l, the mean over the heads of the attention weights of layer l, and A_l = (W_l + I) / 2
    with rows that are divided by their sums, the rollout of L layers is A_L ... A_2 A_1. The
    identity I stands for the skip connection around the attention.

    Args:
      weights: a list of the attention weights [B, H, T, T] of the layers, the first layer first. A
        row says how much a token attends to all tokens. For `fdl.vit`, `fdl.encoder` and `fdl.gpt`:
        `found = capture(model, "**/weights")(params, state, x)`, then `list(found.values())`.
        Outside of `jit`, they are in the order of the layers; `jit` would sort the paths.

    Returns:
      [B, T, T], float32 or wider; the rows sum to 1. Works under `jit`, `grad` and `vmap`.

    Raises:
      TypeError: weights is a dict.
      ValueError: weights is empty, or an array is not [B, H, T, T] with the B and T of the first.

    Example:
      >>> looks_back = jnp.array([[[[1.0, 0.0], [1.0, 0.0]]]])
      >>> attention_rollout([looks_back, looks_back])
      Array([[[1.  , 0.  ],
              [0.75, 0.25]]], dtype=float32)

    Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv 2005.00928,
    section 3.
    """
    if isinstance(weights, Mapping):
        raise TypeError(
            f"attention_rollout: expected a list of weights, the first layer first, got "
            f"{described(weights)}; pass list(found.values()), where the dict is not from a jit"
        )
    layers = [to_jax(each, "attention_rollout", "weights") for each in weights]
    if not layers:
        raise ValueError(
            "attention_rollout: expected the weights of at least one layer, got none; capture them "
            "with fdl.look.capture(model, '**/weights')"
        )
    first = layers[0].shape
    rollout: Any = None
    for number, each in enumerate(layers):
        square = each.ndim >= 3 and each.shape[-1] == each.shape[-2]
        if not square or (*each.shape[:-3], *each.shape[-2:]) != (*first[:-3], *first[-2:]):
            raise ValueError(
                "attention_rollout: expected weights [B, H, T, T] with the same B and T in all "
                f"layers, got {kind(each)} in layer {number} and {list(first)} in layer 0; pass "
                "the weights of self-attention only"
            )
        mean = each.astype(wide(each.dtype)).mean(-3)
        mixed = mean + jnp.broadcast_to(jnp.eye(mean.shape[-1], dtype=mean.dtype), mean.shape)
        mixed = mixed / mixed.sum(-1, keepdims=True)
        exact = jax.lax.Precision.HIGHEST
        rollout = mixed if rollout is None else jnp.matmul(mixed, rollout, precision=exact)
    return rollout


def _inputs(who: str, f: Any, x: Any) -> jax.Array:
    """x as a JAX array; raises unless f is a function and x is floating [N, ...]."""
    if isinstance(f, Layer) or not callable(f):
        raise TypeError(
            f"{who}: expected f as a function x [N, ...] -> scores [N], got {described(f)}; "
            f"{ONE_SCORE}"
        )
    x = to_jax(x, who, "x")
    if x.ndim < 1 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{who}: expected x [N, ...] of a floating dtype with N >= 1, got {kind(x)}; pass one "
            "row for each example, and convert integers with x.astype(jnp.float32)"
        )
    return x


def _like(who: str, what: str, value: Any, x: jax.Array) -> jax.Array:
    """value with the shape and dtype of x; raises unless it broadcasts to x."""
    value = jnp.asarray(value)
    try:
        fits = np.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{who}: expected {what} as a number, or an array that broadcasts to x "
            f"{list(x.shape)}, got {list(value.shape)}; pass a number, or an array like x"
        )
    return jnp.broadcast_to(value.astype(x.dtype), x.shape)


def _gradient(who: str, f: Scores, x: jax.Array) -> jax.Array:
    """The gradient of each score by its input: [N, ...]."""
    scores, back = jax.vjp(f, x)
    floating = hasattr(scores, "dtype") and jnp.issubdtype(scores.dtype, jnp.floating)
    if not floating or scores.shape != x.shape[:1]:
        raise ValueError(
            f"{who}: expected f(x) as floating scores [{len(x)}], got {described(scores)}; "
            f"{ONE_SCORE}"
        )
    return back(jnp.ones_like(scores))[0]


def _of_class(logits: Any, target: Any, length: int) -> jax.Array:
    """The logit [N] of the target class of each example, for `grad_cam`."""
    if not hasattr(logits, "ndim") or logits.ndim != 2 or len(logits) != length:
        raise ValueError(
            f"grad_cam: expected logits [{length}, classes] from the model, got "
            f"{described(logits)}; pass a classifier with one score for each class"
        )
    classes = logits.shape[1]
    known = not isinstance(target, jax.core.Tracer)
    target = np.asarray(target) if known else target
    fits = jnp.issubdtype(target.dtype, jnp.integer) and target.shape in ((), (length,))
    if not fits or (known and not ((target >= 0) & (target < classes)).all()):
        raise ValueError(
            f"grad_cam: expected target as an int, or integers [{length}], in [0, {classes}), got "
            f"{kind(target) if target.ndim else target}; pass the number of a class"
        )
    places = jnp.broadcast_to(jnp.asarray(target, jnp.int32), (length,))[:, None]
    return jnp.take_along_axis(logits, places, axis=1)[:, 0]
