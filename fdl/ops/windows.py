"""Windows on images [..., *spatial, C]: sizes, strides, dilations, paddings and their names."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_floating, is_count, said
from fdl.paths import PathError

Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Edges = str | Pairs

NAMES = ("SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", "EDGE")
AXES = {1: "T", 2: "H, W", 3: "D, H, W"}
OWN_ELEMENTS = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}


@dataclasses.dataclass(frozen=True)
class Window:
    """A window on the spatial axes of an image, with every number an int: hashable, static.

    Args:
      input: the image's size, axis by axis.
      kernel: the window's size.
      stride: how far one window is from the next.
      padding: (low, high), how many elements are added at either end.
      dilation: how far one element of the window is from the next.
      groups: into how many independent parts the channels fall.
    """

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def extent(self) -> tuple[int, ...]:
        """How many elements lie from the window's first to its last, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def output(self) -> tuple[int, ...]:
        """How many windows there are."""
        each = zip(self.input, self.extent, self.stride, self.padding, strict=True)
        return tuple((n + sum(pads) - e) // s + 1 for n, e, s, pads in each)

    def with_groups(self, groups: int) -> "Window":
        """The same window on channels in other groups."""
        return dataclasses.replace(self, groups=groups)


def pads(padding: Edges, window: Window) -> Pairs:
    """What a padding means for a window: (low, high) for each axis.

    Args:
      padding: "VALID" is none. "SAME" makes ceil(input / stride) windows, low = total // 2 (XLA's,
        TensorFlow's and Keras's; torch has it for stride 1 only). "CAUSAL" puts all of it below, so
        that no window sees what comes later. "CIRCULAR", "REFLECT" and "EDGE" add extent - 1
        elements of the image's own, low = total // 2, as torch with `padding="same"`. Pairs are
        taken as they are.
      window: the sizes; its own padding is not read.
    """
    if padding == "VALID":
        return ((0, 0),) * len(window.kernel)
    if padding == "SAME":
        return tuple(
            _halves(max((-(-n // s) - 1) * s + e - n, 0))
            for n, e, s in zip(window.input, window.extent, window.stride, strict=True)
        )
    if padding == "CAUSAL":
        return tuple((e - 1, 0) for e in window.extent)
    if isinstance(padding, str):
        return tuple(_halves(e - 1) for e in window.extent)
    return padding


def check_padding(layer: str, padding: Padding, rank: int, names: Sequence[str] = NAMES) -> Edges:
    """A name, or a pair for each axis; an integer p, for all axes or for one, is torch's: (p, p).

    Raises:
      ValueError: neither a known name nor integers or pairs for `rank` axes.
    """
    found: Any = padding
    if isinstance(padding, str):
        right = padding in names and (padding != "CAUSAL" or rank == 1)
    else:
        try:
            each: Any = (padding,) * rank if is_count(padding, 0) else padding
            pairs = [(p, p) if is_count(p, 0) else tuple(p) for p in each]
            right = len(pairs) == rank and all(map(_is_pair, pairs))
            found = tuple((int(low), int(high)) for low, high in pairs) if right else padding
        except TypeError:
            right = False
    if not right:
        remedy = "write one integer for all sides, or (before, after) for each axis"
        if isinstance(padding, str):
            causal = padding == "CAUSAL" and "CAUSAL" in names
            kept = "write 'SAME' to keep the size, or 'VALID' to pad nothing"
            remedy = "CAUSAL is for one axis" if causal else kept
        raise ValueError(
            f"{layer}: expected padding {', '.join(names)}, an integer, or an integer or a pair "
            f"for each of {rank} axes, none below 0, got {padding!r}; {remedy}"
        )
    return found


def for_each_axis(layer: str, what: str, value: Any, rank: int) -> tuple[int, ...]:
    """An integer for every axis, or one for each, as a tuple of integers >= 1."""
    each = (value,) * rank if is_count(value) else value
    if not isinstance(each, Sequence) or len(each) != rank or not all(map(is_count, each)):
        raise ValueError(
            f"{layer}: expected {what} >= 1, an integer or one for each of {rank} axes, "
            f"got {value!r}; write 2, or {(2,) * rank}"
        )
    return tuple(map(int, each))


def check_sizes(layer: str, what: str, value: Any) -> tuple[int, ...]:
    """The sizes of a window, whose number says how many spatial axes there are."""
    sized = isinstance(value, Sequence) and not isinstance(value, str) and 1 <= len(value) <= 3
    if not sized or not all(map(is_count, value)):
        raise ValueError(
            f"{layer}: expected {what} >= 1, an integer for all spatial axes or 1 to 3 integers, "
            f"one for each, got {said(value)}; write 3, or (3, 3) for images"
        )
    return tuple(map(int, value))


def _is_pair(value: Any) -> bool:
    return len(value) == 2 and all(is_count(n, 0) for n in value)


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def as_images(x: jax.Array, rank: int) -> jax.Array:
    """All axes in front of the spatial ones made one."""
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
