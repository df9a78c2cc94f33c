"""The rooms keep their order: imports point one way, and nothing heavy comes with `import fdl`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fdl

ROOT = Path(fdl.__file__).parent
TIERS = [
    {"paths", "arguments", "ops", "activations", "initializers", "gradients", "version"},
    # One room in six files: what a network refuses, and what stands on network.
    {"layer", "checks", "network", "fence", "combinators", "repeat"},
    {"layers", "losses", "metrics", "optim", "data", "parallel"},
    {"models", "adapt", "train", "decoding"},
    {"look", "port"},
]
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def rooms_imported(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fdl":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {parts[1] for parts in names if parts[0] == "fdl" and len(parts) > 1}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = room_of(path)
    assert own in TIER, f"{own} is not a room of DESIGN.md"
    later = {room for room in rooms_imported(path) if TIER[room] > TIER[own]}
    assert later == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_a_function_fit_in_the_head(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert node.end_lineno - body[0].lineno < 40, f"{node.name} is too long"


def test_every_public_function_has_an_example_or_is_a_plain_value():
    without = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if public and "Example" not in (ast.get_docstring(node) or ""):
                without.append(f"{path.name}:{node.name}")
    assert without == []


def modules_after(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_importing_fdl_brings_nothing_heavy():
    heavy = {
        "matplotlib",
        "sklearn",
        "rich",
        "flax",
        "torch",
        "pytest",
        "hypothesis",
        "safetensors",
    }
    assert heavy & modules_after("import fdl") == set()


def test_public_names_are_there_once():
    text = (ROOT / "__init__.py").read_text()
    names = [line.split(" as ")[1] for line in text.splitlines() if line.startswith("from")]
    assert len(names) == len(set(names))
    assert all(hasattr(fdl, name) for name in names)
