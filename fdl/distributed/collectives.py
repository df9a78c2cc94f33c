"""The collectives of a compiled program (exchanges between devices), read from the program text."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


class Collective(NamedTuple):
    """One kind of exchange between devices, and how often a training step does it.

    Args:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      bytes: the size of the result on one device; for a reduce-scatter, the size of the operand.
      times: the number of these exchanges in a step.
      devices: the number of devices that take part in one exchange.
    """

    kind: str
    bytes: int
    times: int
    devices: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program.

    An exchange in a loop counts once for each iteration, or only once if the text does not give the
    number of iterations.

    Args:
      text: the text of the program, from `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
      A list, in which exchanges of the same kind, size and number of devices are one entry; the
      largest total comes first.
    """
    bodies = _computations(text)
    entry = next(name for name, lines in bodies.items() if lines[0].startswith("ENTRY"))
    times: dict[str, int] = {}
    _count(entry, 1, bodies, times)
    found: dict[tuple[str, int, int], int] = {}
    for name, count in times.items():
        for line in bodies[name]:
            match = _COLLECTIVE.search(line)
            if match:
                shape, kind, asynchronous = match.groups()
                group = _devices(line)
                size = _bytes(shape, kind, bool(asynchronous), group)
                found[kind, size, group] = found.get((kind, size, group), 0) + count
    listed = [Collective(kind, size, n, group) for (kind, size, group), n in found.items()]
    return sorted(listed, key=lambda each: -each.bytes * each.times)


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program, by its name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = found.setdefault(match.group(1), [])
        lines.append(line)
    return found


def _count(name: str, count: int, bodies: dict[str, list[str]], times: dict[str, int]) -> None:
    """Adds to `times` the number of runs of a computation and of all computations that it calls."""
    times[name] = times.get(name, 0) + count
    for line in bodies[name]:
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [each.strip(" %") for each in branches.split(",")]
        trips = _TRIPS.search(line)
        for each in called:
            if each in bodies:
                _count(each, count * (int(trips.group(1)) if trips else 1), bodies, times)


def _devices(line: str) -> int:
    """The number of devices in a group; 2 for a permutation, a transfer between two devices."""
    listed, iota, mesh = (pattern.search(line) for pattern in (_LISTED, _IOTA, _MESH))
    if listed:
        return listed.group(1).count(",") + 1
    if mesh:
        sizes = dict(each.split("=") for each in mesh.group(1).split(","))
        return math.prod(int(sizes[name.split(":")[0]]) for name in mesh.group(2).split(","))
    return int(iota.group(2)) if iota else 2


def _bytes(shape: str, kind: str, asynchronous: bool, devices: int) -> int:
    sizes = [
        _bits(dtype) * math.prod(map(int, dims.split(","))) // 8 if dims else _bits(dtype) // 8
        for dtype, dims in _ARRAY.findall(shape)
    ]
    if asynchronous and kind != "all-reduce":
        # The shape lists operands and results. The largest is the result, or the operand of a
        # reduce-scatter.
        return max(sizes)
    return sum(sizes) * (devices if kind == "reduce-scatter" else 1)


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) if digits else 8  # pred has 8 bits
