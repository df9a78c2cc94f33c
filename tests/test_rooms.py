"""The rooms keep their order: imports point one way, and nothing heavy comes with `import fdl`."""

import ast
import graphlib
import importlib
import inspect
import itertools
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fdl

ROOT = Path(fdl.__file__).parent
TIERS = [
    {"paths", "public_names", "version", "typing", "checks", "options", "ops"},
    {"activations", "initializers", "gradients", "data"},
    {"core"},
    {"layers", "losses", "metrics", "optim"},
    {"models", "train", "generation"},
    {"look", "debug", "port", "distributed"},
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
    assert own in TIER, f"{own} is not a room: see the map in CONTRIBUTING.md"
    later = {room for room in rooms_imported(path) if TIER[room] > TIER[own]}
    assert later == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_a_function_fit_in_the_head(path):
    tree = ast.parse(path.read_text())
    assert len({node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or node.end_lineno - body[0].lineno < 40, f"{node.name} is too long"


def imported_by(path, modules):
    """The modules of fdl that a file imports; a package stands for what it lists."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fdl":
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in modules else node.module for part in parts}
    return found - {"fdl"}


def test_no_module_imports_itself_through_others():
    """Not even within a room, or through the list of a package."""
    names = [path.relative_to(ROOT.parent).with_suffix("").parts for path in FILES]
    names = [".".join(parts).removesuffix(".__init__") for parts in names]
    modules = dict(zip(names, FILES, strict=True))
    imported = {name: imported_by(path, modules) for name, path in modules.items()}
    assert imported["fdl.layers.linear"] >= {"fdl.core.layer", "fdl.initializers"}
    in_order = list(graphlib.TopologicalSorter(imported).static_order())
    assert set(in_order) == set(modules)
    assert in_order.index("fdl.paths") < in_order.index("fdl.core.layer")
    assert in_order.index("fdl.core.layer") < in_order.index("fdl.train.loop")


def handed_on(room):
    """The names in the list of a package; those of `import *` are in the list of another."""
    bound = []
    body = ast.parse(Path(room.__file__).read_text()).body
    late = [node.body for node in body if isinstance(node, ast.If)]  # for the type checker
    for node in itertools.chain(body, *late):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                star = importlib.import_module(node.module).__all__ if alias.name == "*" else []
                bound += star or [alias.asname]
        elif isinstance(node, ast.Assign):
            bound += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    return list(dict.fromkeys(name for name in bound if not name.startswith("_")))


ROOMS = [fdl, *(getattr(fdl, name) for name in fdl.__all__)]
ROOMS = [room for room in ROOMS if hasattr(room, "__path__")]
CHAPTERS = [fdl.optim.optimizers, fdl.optim.schedules, fdl.optim.wrappers, fdl.data.datasets]


@pytest.mark.parametrize("room", ROOMS + CHAPTERS, ids=lambda room: room.__name__)
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


def test_a_room_that_is_imported_late_may_be_imported_in_a_trace():
    """No array of the room's modules belongs to the trace."""
    program = (
        "import jax, fdl\n"
        "jax.jit(lambda x: [fdl.look.bill, fdl.debug.bisect, fdl.port.load_weights, x][3])(1.0)\n"
        "from fdl.look.representations import principal_components\n"
        "print(float(principal_components(jax.numpy.eye(3))[1].sum()), 'look' in dir(fdl))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "True"], done.stderr


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
        "pyarrow",
        "pandas",
        "polars",
        "PIL",
        "jax._src.pallas.core",
        "fdl.look",
    }
    assert heavy & modules_after("import fdl") == set()


def names_listed(room):
    """Those that the package itself lists, without `import *`."""
    return [
        alias.asname
        for node in ast.parse(Path(room.__file__).read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and not alias.asname.startswith("_")
    ]


def test_no_name_stands_in_two_lists():
    # optim.chain and optim.schedules' piecewise constants are other things than fdl.chain is.
    homes = {}
    for room in ROOMS + CHAPTERS:
        for name in names_listed(room):
            if not inspect.ismodule(getattr(room, name)):
                homes.setdefault(id(getattr(room, name)), (name, []))[1].append(room.__name__)
    assert [home for home in homes.values() if len(home[1]) > 1] == []


def test_functions_have_an_example_if_they_are_exported():
    exported = {
        getattr(room, name)
        for room in ROOMS + CHAPTERS
        for name in names_listed(room)
        if inspect.isfunction(getattr(room, name))
    }
    assert len(exported) > 250
    without = [
        f.__qualname__
        for f in exported
        if "Example" not in (inspect.getdoc(f) or "") and "<locals>" not in f.__qualname__
    ]
    assert without == []
    for path in FILES:
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        if path.name != "__init__.py" and name not in ("fdl.paths", "fdl.public_names"):
            for f in vars(importlib.import_module(name)).values():
                if inspect.isfunction(f) and f.__module__ == name and f not in exported:
                    assert "Example" not in (f.__doc__ or ""), f"{name}.{f.__name__} is private"


FAMILIES = [
    fdl.core,
    fdl.layers,
    fdl.activations,
    fdl.models,
    fdl.losses,
    fdl.optim.optimizers,
    fdl.train,
    fdl.generation,
]


def test_the_top_has_whole_families_or_none():
    listed = {id(getattr(fdl, name)) for name in fdl.__all__}
    for room in FAMILIES:
        assert {
            name for name in room.__all__ if getattr(fdl, name) is not getattr(room, name)
        } == set()
    for room in (
        fdl.metrics,
        fdl.initializers,
        fdl.look,
        fdl.debug,
        fdl.port,
        fdl.data,
        fdl.optim.schedules,
    ):
        here = [name for name in room.__all__ if name not in ("Initializer", "confusion")]
        assert {name for name in here if id(getattr(room, name)) in listed} == set()
    assert fdl.accuracy is fdl.metrics.accuracy  # found in its room
    told = r"^fdl: expected a public name, got 'acuracy'; help\(fdl\) lists the public names"
    with pytest.raises(AttributeError, match=told):
        _ = fdl.acuracy


def test_no_module_bears_the_name_of_a_function_that_its_package_hands_on():
    for room in ROOMS + CHAPTERS:
        files = {path.stem for path in Path(room.__file__).parent.glob("*.py")}
        folders = {path.name for path in Path(room.__file__).parent.iterdir() if path.is_dir()}
        handed = {name for name in room.__all__ if not inspect.ismodule(getattr(room, name))}
        assert handed & (files | folders) == set(), room.__name__


SEEDED_BUGS = {
    "fdl/public_names.py": (
        "test_rooms.py",
        [("name in caller.f_code.co_names or not", "name.islower() and not")],
    ),
}


def test_the_map_of_contributing_names_every_room():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    start = text.index("## The map")
    rooms = text[start : text.index("\n## ", start + 1)]
    missing = [room for room in TIER if f"`{room}/`" not in rooms and f"`{room}.py`" not in rooms]
    assert set(missing) == {"public_names", "version"}
