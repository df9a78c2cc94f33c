"""The README: its code runs, its table is the vocabulary, and its commands are those of CI."""

import re
import runpy
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import fdl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TERMS = [
    *("Machine learning", "Transformation of data", "Deep learning", "Depth", "Weights"),
    *("ReLU layer", "Random initialization", "Learning", "Forward pass", "Loss function"),
    *("Optimizer", "Training the system", "Training loop", "Derivative", "Gradient"),
    *("Backward pass", "Step"),
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def rows(text):
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in cells}


@pytest.mark.slow
@pytest.mark.bits
def test_every_python_block_runs_as_written(capsys):
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in blocks("python"):
            exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert float(re.search(r"'accuracy': (\d\.\d+)", printed)[1]) > 0.95
    assert "dense_0" in printed
    assert "[ 1. -2.  3.]" in printed
    assert "Difference(path='', absolute=0.0, ulps=0)" in printed
    assert names["hidden"].shape == (200, 64)
    np.testing.assert_allclose(
        names["hidden"], names["x"] @ names["params"]["up"]["w"], rtol=1e-5, atol=1e-6
    )


def test_the_first_two_shell_blocks_are_the_two_commands():
    first, second = blocks("sh")[:2]
    assert first.splitlines()[-1] == ".venv/bin/python examples/digits.py"
    assert second.splitlines()[-1] == ".venv/bin/python -m pytest"
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_versions_are_those_of_the_project_and_of_ci():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [text.split(" :: ")[-1] for text in project["classifiers"] if "Python" in text]
    assert project["requires-python"] == f">={pythons[0]}"
    assert f"Python {', '.join(pythons[:-1])} or {pythons[-1]}" in README
    jax, jaxlib = project["dependencies"][:2]
    assert jaxlib.removeprefix("jaxlib>=") == jax.removeprefix("jax>=")
    assert f"JAX {jax.removeprefix('jax>=')} and later" in README
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"=\$\(find_python (.*)\)", script) == [pythons[0], pythons[-1]]


def table():
    start = README.index("| Term | In fdl |")
    return rows(README[start : README.index("\n\n", start)])


def test_the_table_has_every_term_of_the_vocabulary():
    assert [term for term in table() if term != "Term"] == TERMS
    vocabulary = ROOT.parent / "shared" / "VOCABULARY.md"
    if vocabulary.exists():
        assert [term for term in rows(vocabulary.read_text()) if term != "Term"] == TERMS


@pytest.mark.parametrize("term", TERMS)
def test_every_name_in_the_table_is_there(term):
    names = re.findall(r"`((?:fdl|jax|Layer)\.[\w.]+)`", table()[term][0])
    assert names
    for name in names:
        found = {"fdl": fdl, "jax": jax, "Layer": fdl.Layer}[name.split(".")[0]]
        if name.startswith("Layer."):
            assert name.split(".")[1] in fdl.Layer.__dataclass_fields__
            continue
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        assert callable(found)


def test_the_walk_through_the_vocabulary_names_every_term():
    text = " ".join((ROOT / "examples" / "vocabulary.py").read_text().lower().split())
    missing = [term for term in TERMS if term.lower() not in text]
    assert missing == []


def test_no_number_is_typed():
    made = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    written = README.partition(made["BEGIN"])[2].partition(made["END"])[0]
    measured = made["ratios"]()
    assert measured is None or written == "\n" + measured
    assert (ROOT / "benchmarks" / "RESULTS.md").read_text() == made["results"]()
