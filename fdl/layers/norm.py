"""Norms of one example: each vector, or each group of channels, to mean 0 and variance 1.

B is the batch, C (or D) the features, which are the last axis.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax

from fdl.arguments import check_count, said
from fdl.initializers import Initializer, ones, zeros
from fdl.layer import Layer
from fdl.layers.cache import at_once
from fdl.layers.standardize import Affine, check_epsilon
from fdl.ops.numerics import deviations, over_root_mean_square


def layer_norm(
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "layer_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each vector by itself.

    Args:
      axes: over which mean and variance are taken, counted from the last: -1 for each vector, (-3,
        -2, -1) for each image.
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale, of the sizes of the axes: [D].
      bias_init: initializer of bias, of the same shape.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D], "bias": [D]}.
      Over other axes than the last it reads a sequence as a whole, and has the extra input `mask`,
      which need not be given: bool of x's shape, any axis of which may be 1; only where it is True
      does x count and is it read, elsewhere y is 0.

    Raises:
      ValueError: an epsilon that is not above 0, or axes that are not below 0 or not distinct.
      PathError: x without a feature axis, of another D, or of an integer dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = layer_norm()
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([[-1.,  1.],
             [-1.,  1.]], dtype=float32)

    Source: Ba, Kiros and Hinton 2016, arXiv 1607.06450, equation 4.
    """
    check_epsilon("layer_norm", epsilon)
    over = _check_axes("layer_norm", axes)
    drawn = (scale_init if scale else None, bias_init if bias else None)

    def standard(x: Any, mask: Any = None) -> jax.Array:
        return deviations(x, over, epsilon, mask).standard(epsilon)

    return _over(name, over, drawn, standard)


def rms_norm(
    *,
    axes: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    scale: bool = True,
    scale_init: Initializer = ones,
    name: str = "rms_norm",
) -> Layer:
    """y = x / sqrt(mean(x^2) + epsilon) * scale: a layer norm that leaves the mean alone.

    Args:
      axes: over which the mean is taken, as of `layer_norm`.
      epsilon: added to the mean square, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      scale_init: initializer of scale, of the sizes of the axes: [D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D]}; `mask` as of
      `layer_norm`.

    Raises:
      ValueError: as `layer_norm`.
      PathError: x without a feature axis, of another D, or of an integer dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = rms_norm()
      >>> x = jnp.array([3.0, 3.0, -3.0])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([ 1.,  1., -1.], dtype=float32)

    Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    check_epsilon("rms_norm", epsilon)
    over = _check_axes("rms_norm", axes)

    def standard(x: Any, mask: Any = None) -> jax.Array:
        return over_root_mean_square(x, over, epsilon, mask)

    return _over(name, over, (scale_init if scale else None, None), standard)


def group_norm(
    groups: int,
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "group_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each example and group of channels.

    Args:
      groups: G, into how many groups of C / G neighbouring channels; 1 <= G, a divisor of C.
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C], the same dtype; params {"scale": [C],
      "bias": [C]}. Extra input, which need not be given: `mask`, bool of x's shape, any axis of
      which may be 1; only where it is True does x count and is it read, elsewhere y is 0.

    Raises:
      ValueError: groups below 1, or an epsilon that is not above 0.
      PathError: a C that the groups do not divide; x as for `batch_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = group_norm(2)
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3)
      Array([[-1.,  1., -1.,  1.]], dtype=float32)

    Source: Wu and He 2018, arXiv 1803.08494, equation 7.
    """
    check_epsilon("group_norm", epsilon)
    groups = check_count("group_norm", "groups", groups, "1 takes all channels together")
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 2, groups)

    def standard(x: Any, mask: Any) -> jax.Array:
        shape = (*x.shape[:-1], groups, x.shape[-1] // groups)
        within = None if mask is None else mask.reshape(shape)
        over = (*range(1, x.ndim - 1), x.ndim)
        return (
            deviations(x.reshape(shape), over, epsilon, within).standard(epsilon).reshape(x.shape)
        )

    return at_once(affine.masked_layer(standard))


def instance_norm(
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "instance_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each example and channel.

    Args:
      epsilon: added to the variance, > 0; may be traced.
      scale: whether to multiply by a learned scale (torch's default is not to).
      bias: whether to add a learned bias (torch's default is not to).
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C], at least one axis between, to y of the same shape and dtype;
      params {"scale": [C], "bias": [C]}. Extra input: `mask`, as of `group_norm`.

    Raises:
      ValueError: an epsilon that is not above 0.
      PathError: x without an axis between B and C; x as for `batch_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = instance_norm()
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])
      >>> layer.apply(layer.init(jax.random.key(0), x)[0], {}, x)[0].round(3).ravel()
      Array([-1.,  1., -1.,  1.], dtype=float32)

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022, equation 4.
    """
    check_epsilon("instance_norm", epsilon)
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 3)

    def standard(x: Any, mask: Any) -> jax.Array:
        return deviations(x, tuple(range(1, x.ndim - 1)), epsilon, mask).standard(epsilon)

    return at_once(affine.masked_layer(standard))


def _over(
    name: str,
    axes: tuple[int, ...],
    drawn: tuple[Initializer | None, Initializer | None],
    standard: Callable[..., jax.Array],
) -> Layer:
    """A norm over the last axes; over more than the very last it has a mask, and no cache."""
    affine = Affine(name, *drawn, axes=-axes[0], features=axes)
    return affine.layer(standard) if axes == (-1,) else at_once(affine.masked_layer(standard))


def _check_axes(who: str, axes: Any) -> tuple[int, ...]:
    """The axes in their order, each below 0."""
    each = tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    right = each and all(isinstance(axis, Integral) and int(axis) < 0 for axis in each)
    if not right or len(set(each)) < len(each):
        raise ValueError(
            f"{who}: expected axes below 0, counted from the last and each once, got {said(axes)}; "
            "write -1 for each vector, or (-3, -2, -1) for each image"
        )
    return tuple(sorted(map(int, each)))
