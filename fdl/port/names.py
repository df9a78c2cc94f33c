"""The rules between paths of fdl and names elsewhere: a table of text, used in both directions."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fdl.checks import OptionError, described
from fdl.paths import quoted
from fdl.port.axes import Axes, parse_axes

_REMEDY = "see the rules in the docstring of fdl.port.from_torch"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table, for single paths and names.

    Args:
      line: the line of the table that the user wrote, for messages.
      paths: patterns of paths, one, or several that are parts of one tensor.
      names: patterns of names, one, or several that are added, equal, or side by side.
      joined: how several names are joined, "+", "=" or "join" (side by side, of equal sizes).
      axes: how the axes of each tensor are rearranged; None leaves them.
      axis: the axis, after `axes`, along which a tensor is split into paths, or tensors are joined.
    """

    line: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    joined: str
    axes: Axes | None
    axis: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of a tensor of the other library in fdl; None if it does not fit."""
        return shape if self.axes is None else self.axes.shape(shape)

    def parts(self, tensors: list[np.ndarray], sizes: list[int]) -> list[np.ndarray]:
        """The arrays of the paths, from the tensors of the names."""
        arrays = tensors if self.joined == "join" else tensors[:1]
        for other in tensors[1:] if self.joined == "+" else ():
            arrays = [arrays[0] + other]
        if self.axes is not None:
            arrays = [self.axes.apply(each) for each in arrays]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=self.axis)
        if len(sizes) == 1:
            return [array]
        return np.split(array, list(itertools.accumulate(sizes))[:-1], axis=self.axis)

    def whole(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """The inverse of `parts`: the tensors of the names."""
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)
        joined = self.joined == "join"
        arrays = np.split(array, len(self.names), axis=self.axis) if joined else [array]
        if self.axes is not None:
            arrays = [self.axes.inverse().apply(each) for each in arrays]
        if self.joined != "+":
            return arrays if joined else arrays * len(self.names)
        # x + -0.0 is x for every x, so that reading gives the same bits; 0.0 would change -0.0.
        return arrays + [np.full_like(arrays[0], -0.0)] * (len(self.names) - 1)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A rule whose patterns are replaced by the paths and names that they match."""

    rule: Rule
    paths: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of a table, and the patterns of the names that it leaves out."""

    rules: tuple[Rule, ...]
    left_out: tuple[str, ...]

    def leaves_out(self, name: str) -> bool:
        """True if the table says that a name has no path."""
        return any(_regex(pattern, ".").fullmatch(name) for pattern in self.left_out)

    def pairs(self, who: str, paths: Iterable[str]) -> list[Pair]:
        """The pairs for the paths of a tree; raises unless each path has exactly one."""
        paths = list(paths)
        owner: dict[str, Pair] = {}
        found = []
        used = set()
        for rule in self.rules:
            for pair in _matches(rule, paths):
                used.add(rule.line)
                found.append(pair)
                for path in pair.paths:
                    if path in owner:
                        raise OptionError(
                            who,
                            f"expected one rule for each path, got two for {quoted(path)}: "
                            f"{owner[path].rule.line} and {rule.line}; remove one of them",
                        )
                    owner[path] = pair
        idle = [rule.line for rule in self.rules if rule.line not in used]
        extra = sorted(set(owner) - set(paths))
        without = [path for path in paths if path not in owner]
        if idle or extra or without:
            lines = [f"matches no path: {line}" for line in dict.fromkeys(idle)]
            lines += [f"no path for this part of a tensor: {path}" for path in extra]
            lines += [f"no rule: {path}" for path in without]
            raise OptionError(
                who,
                f"expected a rule for each of the {len(paths)} paths, got a table that differs at "
                f"{len(lines)} places; correct the table\n  " + "\n  ".join(lines),
            )
        return found


def parse_table(who: str, names: Any) -> Table:
    """The rules of a table; raises if one cannot be read."""
    if not isinstance(names, Mapping):
        raise OptionError(
            who,
            f"expected names as a dict from paths to names, got {described(names)}; {_REMEDY}",
        )
    rules: list[Rule] = []
    left_out: list[str] = []
    for path, value in names.items():
        if path is None and isinstance(value, list | tuple):
            left_out += value
        elif isinstance(path, str) and isinstance(value, str):
            rules += _rules(who, path, value)
        else:
            raise _unreadable(who, f"{path!r}: {value!r}", "a path and a text, or None and a list")
    return Table(tuple(rules), tuple(left_out))


def _rules(who: str, path: str, value: str) -> list[Rule]:
    """The rules of one line, with each choice in braces replaced by its members."""
    line = f"{path!r}: {value!r}"
    text, bar, action = (each.strip() for each in value.partition("|"))
    text, colon, equation = (each.strip() for each in text.partition(":"))
    axes = parse_axes(equation) if colon else None
    if colon and axes is None:
        raise _unreadable(who, line, "axes such as 'o i -> i o' after the colon")
    if bar and not re.fullmatch(r"(split|join) -?\d+", action):
        raise _unreadable(who, line, "an axis such as '| split 1' or '| join 1' after the bar")
    joined = "+" if "+" in text else "=" if "=" in text else ""
    several = [each.strip() for each in text.split(joined)] if joined else [text]
    axis = int(action.split()[1]) if bar else 0
    paths, options = _choices(path), [_choices(each) for each in several]
    if action.startswith("join"):
        grouped, fits = [tuple(paths)], len(paths) == 1 and not joined and len(options[0]) > 1
        joined, options = "join", [[each] for each in options[0]]
    elif bar:
        grouped, single = [tuple(paths)], all(len(each) == 1 for each in options)
        fits = len(paths) > 1 and single
    else:
        grouped = [(each,) for each in paths]
        fits = all(len(each) in (1, len(paths)) for each in options)
        options = [each * len(paths) if len(each) == 1 else each for each in options]
    stars = {each.count("*") for group in grouped for each in group}
    stars |= {each.count("*") for option in options for each in option}
    odd = any(each in side for side in (path, text) for each in ("**", "?"))
    if not fits or len(stars) != 1 or odd:
        raise _unreadable(
            who, line, "as many choices {a,b} and as many * on both sides, and no ** or ?"
        )
    return [
        Rule(line, group, tuple(option[at] for option in options), joined, axes, axis)
        for at, group in enumerate(grouped)
    ]


def _unreadable(who: str, line: str, form: str) -> OptionError:
    return OptionError(who, f"expected {form} in a rule, got {line}; {_REMEDY}")


def _choices(pattern: str) -> list[str]:
    """The pattern with each choice in braces replaced by its members: all combinations."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    options = [piece.split(",") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return ["".join(each) for each in itertools.product(*options)]


def _matches(rule: Rule, paths: list[str]) -> list[Pair]:
    """The pairs of a rule: one for each path that its first pattern matches."""
    first = _regex(rule.paths[0], "/")
    found = []
    for path in paths:
        if match := first.fullmatch(path):
            filled = [_filled(each, match.groups()) for each in (*rule.paths, *rule.names)]
            of_paths = len(rule.paths)
            found.append(Pair(rule, tuple(filled[:of_paths]), tuple(filled[of_paths:])))
    return found


def _filled(pattern: str, texts: tuple[str, ...]) -> str:
    """The pattern with its stars replaced by texts."""
    pieces = pattern.split("*")
    return pieces[0] + "".join(text + piece for text, piece in zip(texts, pieces[1:], strict=True))


def _regex(pattern: str, separator: str) -> re.Pattern[str]:
    """The regular expression in which `*` stands for any text within one level."""
    level = f"([^{re.escape(separator)}]*)"
    return re.compile(level.join(map(re.escape, pattern.split("*"))))
