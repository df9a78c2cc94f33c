"""Windows on images [..., *spatial, C]: sizes, strides, dilations, paddings, names of paddings."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import OptionError, check_floating, check_shape, described, is_count
from fdl.paths import PathError

Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Edges = str | Pairs

NAMES = ("SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", "EDGE")
AXES = {1: "T", 2: "H, W", 3: "D, H, W"}
PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}


@dataclasses.dataclass(frozen=True)
class Window:
    """A window on the spatial axes of an image; all numbers are ints, so a Window is hashable.

    Args:
      input: size of the image, along each spatial axis.
      kernel: size of the window, along each axis.
      stride: distance between neighbouring windows, along each axis.
      padding: (low, high) for each axis: the numbers of elements added at its two ends.
      dilation: distance between neighbouring elements of the window, along each axis.
      groups: number of independent groups of channels.
    """

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def extent(self) -> tuple[int, ...]:
        """The number of positions that a window spans, from its first element to its last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def output(self) -> tuple[int, ...]:
        """The number of windows along each axis."""
        each = zip(self.input, self.extent, self.stride, self.padding, strict=True)
        return tuple((n + sum(pads) - e) // s + 1 for n, e, s, pads in each)

    def with_groups(self, groups: int) -> "Window":
        """The same window with a different number of groups."""
        return dataclasses.replace(self, groups=groups)


def as_images(x: jax.Array, rank: int) -> jax.Array:
    """x with all axes before the `rank` spatial ones merged into one."""
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
    """Returns x [N, *spatial, C] and the window on it.

    For "CIRCULAR", "REFLECT" and "EDGE", the returned x is already padded, and the window has no
    padding. For other paddings, x is unchanged.

    Raises:
      PathError: x, with its padding, is smaller than one window.
    """
    none = ((0, 0),) * len(kernel)
    window = Window(x.shape[1:-1], kernel, stride, none, dilation, groups)
    found = pads(padding, window)
    if padding in PAD_MODES:
        x = jnp.pad(x, ((0, 0), *found, (0, 0)), mode=PAD_MODES[str(padding)])
        found = none
    window = Window(x.shape[1:-1], kernel, stride, found, dilation, groups)
    if min(window.output) < 1:
        raise PathError(
            f"expected an image not smaller than the dilated window, {list(window.extent)}, got "
            f"{list(window.input)} with padding {list(found)}; pad more, or pool less in earlier "
            "layers",
            layer=layer,
        )
    return x, window


def pads(padding: Edges, window: Window) -> Pairs:
    """The padding of a window as (low, high) for each axis.

    Args:
      padding: "VALID" pads nothing. "SAME" pads as many elements as ceil(input / stride) windows
        need; half of them, rounded down, are at the low end (like XLA, TensorFlow and Keras; torch
        has "same" for stride 1 only). "CAUSAL" pads only the low end, so that no window sees a
        later element. "CIRCULAR", "REFLECT" and "EDGE" pad extent - 1 elements; half of them,
        rounded down, are at the low end, like torch with `padding="same"`. Pairs are returned
        unchanged.
      window: the window; its padding is not used.
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


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def check_padding(layer: str, padding: Padding, rank: int, names: Sequence[str] = NAMES) -> Edges:
    """The padding as one of `names`, or as a pair for each axis; an integer p means (p, p).

    Raises:
      ValueError: the padding is none of these: one of `names`; an integer >= 0; a sequence with an
        integer or a pair for each axis. Or it is "CAUSAL", and there is more than one axis.
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
            remedy = "use CAUSAL only with one spatial axis" if causal else kept
        raise OptionError(
            layer,
            f"expected padding to be {', '.join(names)}, an integer >= 0, or a tuple with an "
            f"integer or a pair for each of {rank} axes, got {padding!r}; {remedy}",
        )
    return found


def _is_pair(value: Any) -> bool:
    return len(value) == 2 and all(is_count(n, 0) for n in value)


def for_each_axis(
    layer: str, what: str, value: Any, rank: int, *, least: int = 1
) -> tuple[int, ...]:
    """An option as a tuple of `rank` integers >= `least`; one integer is repeated for all axes."""
    each = (value,) * rank if is_count(value, least) else value
    fits = isinstance(each, Sequence) and len(each) == rank
    if not fits or not all(is_count(n, least) for n in each):
        raise OptionError(
            layer,
            f"expected {what} to be an integer >= {least}, or one integer >= {least} for each of "
            f"{rank} axes, got {value!r}; write 2, or {(2,) * rank}",
        )
    return tuple(map(int, each))


def check_sizes(layer: str, what: str, value: Any) -> tuple[int, ...]:
    """The sizes of a window as 1 to 3 integers, one for each spatial axis."""
    sized = isinstance(value, Sequence) and not isinstance(value, str) and 1 <= len(value) <= 3
    if not sized or not all(map(is_count, value)):
        raise OptionError(
            layer,
            f"expected {what} to be an integer >= 1, or a tuple of 1 to 3 integers >= 1, one for "
            f"each spatial axis, got {described(value)}; write 3, or (3, 3) for images",
        )
    return tuple(map(int, value))


def check_images(
    layer: str,
    x: Any,
    rank: int,
    *,
    channels: int | None = None,
    groups: int = 1,
    lead: int = 0,
) -> None:
    """Raises unless x is images [..., *spatial, C] of a floating dtype.

    Args:
      layer: name of the layer, for the message.
      x: any value.
      rank: number of spatial axes.
      channels: the C that x must have; None allows any C.
      groups: C must be a multiple of this.
      lead: minimum number of axes before the spatial axes, 0 or 1.

    Raises:
      PathError: x is not such an array.
    """
    check_floating(layer, x)
    axes = f"{'B, ' * lead}..., {AXES[rank]}, C"
    if x.ndim > lead + rank:
        remedy = "give x that many channels, or make new params with init"
    else:
        missing = x.ndim == lead + rank
        remedy = "add a channel axis with x[..., None]" if missing else "reshape x"
    lengths = {} if channels is None else {"C": channels}
    check_shape(layer, x, axes, remedy, **lengths)
    if x.shape[-1] % groups:
        raise PathError(
            f"expected x [{axes}] with C a multiple of {groups} groups, got {list(x.shape)}; "
            "choose a number of groups that divides the number of channels",
            layer=layer,
        )
