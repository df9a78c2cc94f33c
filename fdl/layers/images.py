"""Images [..., *spatial, C] as the layers that put windows on them see them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fdl.arguments import check_floating
from fdl.layers.window import Edges, Window, pads
from fdl.paths import PathError

AXES = {1: "T", 2: "H, W", 3: "D, H, W"}
OWN_ELEMENTS = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}


def as_images(x: jax.Array, rank: int) -> jax.Array:
    """All axes in front of the spatial ones made one.

    Example:
      >>> as_images(jnp.ones((2, 3, 8, 8, 1)), 2).shape, as_images(jnp.ones((8, 1)), 1).shape
      ((6, 8, 8, 1), (1, 8, 1))
    """
    return x.reshape(math.prod(x.shape[: -rank - 1]), *x.shape[-rank - 1 :])


def fit(
    layer: str,
    x: jax.Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Edges,
    dilation: tuple[int, ...],
    groups: int = 1,
) -> tuple[jax.Array, Window]:
    """x [N, *spatial, C], surrounded by its own elements where the padding says so, and its window.

    Raises:
      PathError: x, with its padding, is smaller than one window.

    Example:
      >>> fit("conv", jnp.ones((1, 8, 1)), (3,), (1,), "SAME", (1,))[1].padding
      ((1, 1),)
    """
    none = ((0, 0),) * len(kernel)
    window = Window(x.shape[1:-1], kernel, stride, none, dilation, groups)
    found = pads(padding, window)
    if padding in OWN_ELEMENTS:
        x = jnp.pad(x, ((0, 0), *found, (0, 0)), mode=OWN_ELEMENTS[str(padding)])
        found = none
    window = Window(x.shape[1:-1], kernel, stride, found, dilation, groups)
    if min(window.output) < 1:
        raise PathError(
            f"expected an image of at least {list(window.extent)}, the window with its dilation, "
            f"got {list(window.input)} and padding {list(found)}; pad more, or pool less before",
            layer=layer,
        )
    return x, window


def check_images(
    layer: str,
    x: Any,
    rank: int,
    *,
    channels: int | None = None,
    groups: int = 1,
    lead: int = 0,
) -> None:
    """Refuses what is not images [..., *spatial, C] of floating point.

    Args:
      layer: the name of the layer, for the message.
      x: what came.
      rank: how many spatial axes there have to be.
      channels: how many channels there have to be.
      groups: what has to divide the channels.
      lead: how many axes there have to be in front of the spatial ones at least.

    Raises:
      PathError: says what was expected, what came and what to do.

    Example:
      >>> check_images("conv", jnp.ones((8, 28, 28, 1)), 2, channels=3)
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: conv: expected x [..., H, W, 3], got [8, 28, 28, 1]; give x that many
        channels, or make new params with init
    """
    check_floating(layer, x)
    front = "B, ..." if lead else "..."
    wanted = f"x [{front}, {AXES[rank]}, {'C' if channels is None else channels}]"
    if x.ndim < lead + rank + 1:
        short = x.ndim == lead + rank
        remedy = "add the axis of channels with x[..., None]" if short else "reshape x"
        raise PathError(f"expected {wanted}, got {list(x.shape)}; {remedy}", layer=layer)
    if channels is not None and x.shape[-1] != channels:
        raise PathError(
            f"expected {wanted}, got {list(x.shape)}; give x that many channels, or make new "
            "params with init",
            layer=layer,
        )
    if x.shape[-1] % groups:
        raise PathError(
            f"expected {wanted} with C a multiple of {groups} groups, got {list(x.shape)}; choose "
            "groups that divide the channels",
            layer=layer,
        )
