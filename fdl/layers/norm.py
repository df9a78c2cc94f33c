"""Norms of one example: each vector, or each group of channels, to mean 0 and variance 1.

B is the batch, C (or D) the features, which are the last axis.
"""

from typing import Any

import jax

from fdl.arguments import check_count
from fdl.initializers import Initializer, ones, zeros
from fdl.layer import Layer, Params
from fdl.layers.cache import at_once
from fdl.layers.standardize import Affine, check_epsilon
from fdl.ops.numerics import deviations, over_root_mean_square


def layer_norm(
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    scale_init: Initializer = ones,
    bias_init: Initializer = zeros,
    name: str = "layer_norm",
) -> Layer:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, each vector by itself.

    Args:
      epsilon: added to the variance, > 0.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [D].
      bias_init: initializer of bias [D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D], "bias": [D]}.

    Raises:
      ValueError: an epsilon that is not above 0.
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
    affine = Affine(name, scale_init if scale else None, bias_init if bias else None, 1)

    def forward(params: Params, x: Any) -> jax.Array:
        return affine.apply(params, deviations(x, (-1,), epsilon).standard(epsilon), x.dtype)

    return affine.layer(forward)


def rms_norm(
    *,
    epsilon: float = 1e-5,
    scale: bool = True,
    scale_init: Initializer = ones,
    name: str = "rms_norm",
) -> Layer:
    """y = x / sqrt(mean(x^2) + epsilon) * scale: a layer norm that leaves the mean alone.

    Args:
      epsilon: added to the mean square, > 0.
      scale: whether to multiply by a learned scale.
      scale_init: initializer of scale [D].
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., D], the same dtype; params {"scale": [D]}.

    Raises:
      ValueError: an epsilon that is not above 0.
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
    affine = Affine(name, scale_init if scale else None, None, 1)

    def forward(params: Params, x: Any) -> jax.Array:
        return affine.apply(params, over_root_mean_square(x, -1, epsilon), x.dtype)

    return affine.layer(forward)


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
      epsilon: added to the variance, > 0.
      scale: whether to multiply by a learned scale.
      bias: whether to add a learned bias.
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C] to y [B, ..., C], the same dtype; params {"scale": [C],
      "bias": [C]}.

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

    def forward(params: Params, x: Any) -> jax.Array:
        parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        y = deviations(parts, (*range(1, x.ndim - 1), x.ndim), epsilon).standard(epsilon)
        return affine.apply(params, y.reshape(x.shape), x.dtype)

    return at_once(affine.layer(forward))


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
      epsilon: added to the variance, > 0.
      scale: whether to multiply by a learned scale (torch's default is not to).
      bias: whether to add a learned bias (torch's default is not to).
      scale_init: initializer of scale [C].
      bias_init: initializer of bias [C].
      name: what the layer is called in a network.

    Returns:
      A layer from x [B, ..., C], at least one axis between, to y of the same shape and dtype;
      params {"scale": [C], "bias": [C]}.

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

    def forward(params: Params, x: Any) -> jax.Array:
        y = deviations(x, tuple(range(1, x.ndim - 1)), epsilon).standard(epsilon)
        return affine.apply(params, y, x.dtype)

    return at_once(affine.layer(forward))
