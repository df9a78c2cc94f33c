"""Rearranges the axes of an array, written as in einops: `"o c h w -> (h w c) o, h=4 w=4"`."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

Groups = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Axes:
    """An order of axes before and after; each name in parentheses is a part of an axis.

    Args:
      before: for each axis, the names of its parts.
      after: the same names, in another order or grouping.
      sizes: the sizes of parts that the shapes alone do not tell.
    """

    before: Groups
    after: Groups
    sizes: tuple[tuple[str, int], ...] = ()

    def inverse(self) -> "Axes":
        """The rearrangement back."""
        return Axes(self.after, self.before, self.sizes)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape after the rearrangement, or None if an array of this shape does not fit."""
        parts = self._parts(shape)
        if parts is None:
            return None
        return tuple(math.prod(parts[name] for name in group) for group in self.after)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array with its axes rearranged; a view where NumPy can make one."""
        parts = self._parts(array.shape)
        shape = self.shape(array.shape)
        assert parts is not None and shape is not None  # `shape` was checked before
        names = [name for group in self.before for name in group]
        split = array.reshape([parts[name] for name in names])
        order = [names.index(name) for group in self.after for name in group]
        return split.transpose(order).reshape(shape)

    def _parts(self, shape: tuple[int, ...]) -> dict[str, int] | None:
        """The size of each part; None if the shape does not fit."""
        if len(shape) != len(self.before):
            return None
        parts = dict(self.sizes)
        for size, group in zip(shape, self.before, strict=True):
            unknown = [name for name in group if name not in parts]
            known = math.prod(parts[name] for name in group if name in parts)
            if len(unknown) > 1 or size % max(known, 1) or (not unknown and size != known):
                return None
            parts |= {name: size // max(known, 1) for name in unknown}
        return parts


def parse_axes(text: str) -> Axes | None:
    """The `Axes` that a text describes, or None if it describes none."""
    equation, _, sizes = text.partition(",")
    before, arrow, after = equation.partition("->")
    groups = [_groups(side) for side in (before, after)]
    given = [re.fullmatch(r"(\w+)=(\d+)", each) for each in sizes.split()]
    if not arrow or None in groups or None in given:
        return None
    left, right = ([name for group in side or () for name in group] for side in groups)
    known = {each[1]: int(each[2]) for each in given if each}
    distinct = len(set(left)) == len(left) and sorted(left) == sorted(right)
    solvable = all(
        len([n for n in group if n not in known]) <= 1 for s in groups for group in s or ()
    )
    if not distinct or not solvable or not set(known) <= set(left) or 0 in known.values():
        return None
    made: Any = groups
    return Axes(made[0], made[1], tuple(known.items()))


def _groups(text: str) -> Groups | None:
    """The axes of one side: "(h w c) o" -> (("h", "w", "c"), ("o",)); "1" is an axis of size 1."""
    found = re.findall(r"\(([^()]*)\)|([a-z]\w*|1(?!\w))|(\S)", text)
    if any(wrong for _, _, wrong in found):
        return None
    groups = tuple(
        tuple(inside.split()) if not name else () if name == "1" else (name,)
        for inside, name, _ in found
    )
    named = all(re.fullmatch(r"[a-z]\w*", name) for group in groups for name in group)
    return groups if named else None
