"""The rooms keep their order: imports point one way, and nothing heavy comes with `import fdl`."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fdl

ROOT = Path(fdl.__file__).parent
TIERS = [
    {"paths", "exports", "ranks", "arguments", "version", "ops", "weak_jit"},
    {"activations", "initializers", "gradients"},
    # One room in six files: what a network refuses, and what stands on network.
    {"layer", "checks", "network", "fence", "combinators", "repeat"},
    {"layers", "losses", "metrics", "optim", "data", "parallel"},
    {"models", "adapt", "train", "decoding", "sampling", "prompts", "token_loop", "generation"},
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
    tree = ast.parse(path.read_text())
    assert len({node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert node.end_lineno - body[0].lineno < 40, f"{node.name} is too long"


def test_every_exported_function_has_an_example():
    lists = [path.read_text() for path in ROOT.rglob("__init__.py")]
    exported = {
        line.split(" as ")[1] for text in lists for line in text.splitlines() if " as " in line
    }
    assert len(exported) > 300
    without = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef) and node.name in exported
            if public and "Example" not in (ast.get_docstring(node) or ""):
                without.append(f"{path.name}:{node.name}")
    assert without == []


def handed_on(room):
    """The names in the list of a package."""
    bound = []
    for node in ast.parse(Path(room.__file__).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            bound += [alias.asname for alias in node.names]
        elif isinstance(node, ast.Assign):
            bound += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    return list(dict.fromkeys(name for name in bound if not name.startswith("_")))


ROOMS = [fdl, *(room for room in vars(fdl).values() if hasattr(room, "__path__"))]
ROOMS = [room for room in ROOMS if room.__name__ != "fdl.ops"]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_help_and_star_show_what_a_package_hands_on(room):
    assert sorted(room.__all__) == sorted(handed_on(room))
    shown = pydoc.render_doc(room, renderer=pydoc.plaintext)
    functions = [name for name in room.__all__ if inspect.isfunction(getattr(room, name))]
    assert functions
    assert [name for name in functions if not re.search(rf"\n    {name}( = \w+)?\(", shown)] == []
    bound = {}
    exec(f"from {room.__name__} import *", bound)
    assert {name: bound[name] for name in room.__all__} == {
        name: getattr(room, name) for name in room.__all__
    }


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
    names.remove("_public")
    assert len(names) == len(set(names))
    assert all(hasattr(fdl, name) for name in names)
