"""The libraries that are compared, one in each file of this folder.

A file begins with TITLE, the name of the library; NEEDS, the packages that it imports; and FORMS,
the ways to run it, each measured in a process of its own (without FORMS: one way). These are read
without running the file. Then it has

    NETWORKS                               the name of a network -> a function of its `sizes`
    training(work, x, y, form) -> Session
    sweep(work, x, y, form) -> Session     missing if the library cannot train many networks at once

What the functions of NETWORKS return is up to the file. A file raises Lacks for what the library
cannot do.
"""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple, Protocol

FIRST = "fdl"  # all others are compared with it


class Lacks(Exception):
    """The library has no such network, optimizer, dtype or form."""


class Block(NamedTuple):
    """The result of some training steps.

    Args:
      loss: the mean of the losses of these steps, or of an even sample of them.
      steps: the number of steps, if it differs from the number that was requested.
      seconds: the time of the steps, if it differs from the time of the whole call.
    """

    loss: float
    steps: int | None = None
    seconds: float | None = None


class Session(Protocol):
    """A network in training."""

    def steps(self, count: int) -> Block:
        """Takes `count` further steps, and waits for their results."""
        ...

    def accuracy(self, x: Any, y: Any) -> float:
        """The share of the examples x [N, ...] that are classified as y [N]."""
        ...


class Peer(NamedTuple):
    """A library, as its file describes it."""

    name: str
    title: str
    needs: tuple[str, ...]
    forms: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [need for need in self.needs if importlib.util.find_spec(need) is None]

    def load(self) -> Any:
        return importlib.import_module(f"benchmarks.peers.{self.name}")


def found() -> dict[str, Peer]:
    """All peers by name, fdl first."""
    files = sorted(Path(__file__).parent.glob("*.py"), key=lambda file: (file.stem != FIRST, file))
    peers = [_described(file) for file in files if file.stem not in ("__init__", "jax_loops")]
    return {peer.name: peer for peer in peers}


def _described(file: Path) -> Peer:
    facts = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper():
            name = ast.unparse(node.targets[0])
            if name in ("TITLE", "NEEDS", "FORMS"):
                facts[name] = ast.literal_eval(node.value)
    return Peer(file.stem, facts["TITLE"], facts["NEEDS"], facts.get("FORMS", ("",)))
