"""In a notebook: figures and tables show by themselves, once, as they are read."""

import base64
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

import fdl
from fdl.look import comparison_table, draw
from fdl.train import Sweep

HISTORY = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
CELLS = {
    "summary": """
import jax, numpy as np, fdl
fdl.summary(fdl.dense(3), jax.ShapeDtypeStruct((1, 2), "float32"))""",
    "figure": """
from fdl.look import draw
draw.learning_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])""",
    "kept": "figure = draw.confusion([[1, 0], [0, 2]])",
    "pyplot": """
%matplotlib inline
import matplotlib.pyplot as plt
fdl.look.image_rows({"a": np.eye(3)[None], "b": np.eye(3)[None]})""",
    "again": "figure",
    "training": """
x = np.ones((8, 2), np.float32)
optimizer = fdl.sgd(0.1)
objective = fdl.supervised(lambda w, x: x @ w, fdl.squared_error)
run = fdl.start(np.zeros((2, 1), np.float32), optimizer)
result = fdl.fit(objective, optimizer, run, (x, x[:, :1]), steps=4, watch=[fdl.progress()])""",
}
SUMMARY = """\
path   output  parameters
dense  [1, 3]           9  b [3], w [2, 3]
9 parameters (36 bytes) in 1 layer with weights"""


def test_a_figure_is_a_picture_and_stays_a_figure():
    figure = draw.learning_curves(HISTORY)
    assert figure._repr_png_().startswith(b"\x89PNG")
    again = pickle.loads(pickle.dumps(figure))
    assert again.axes[0].get_title() == figure.axes[0].get_title()
    assert matplotlib.figure.Figure in type(figure).__mro__


def test_tables_are_read_without_print():
    table = fdl.summary(fdl.dense(3), jax.ShapeDtypeStruct((1, 2), "float32"))
    assert repr(table) == str(table) == table == SUMMARY and isinstance(table, str)
    assert type(str(table)) is str and pickle.loads(pickle.dumps(table)) == table
    curves = {"loss": np.array([[[3.0, 2.0]]])}
    rates, steps = np.array([0.1]), np.array([5, 10])
    found = Sweep(
        [{"learning_rate": rates[0]}],
        *(np.array([0]), steps, curves, "loss", 0, None, np.array([10]), None, 2e-5, 1.5),
    )
    table = comparison_table({"sgd": found})
    assert repr(table) == table and table.startswith("optimizer  best rate")


# A process of its own, whose kernel shares no folder with another one's.
RUN = """
import json, sys, nbclient, nbformat
cells = [nbformat.v4.new_code_cell(text.strip()) for text in json.loads(sys.argv[1])]
notebook = nbformat.v4.new_notebook(cells=cells)
how = {"kernel_name": "python3", "timeout": 120, "startup_timeout": 120}
nbclient.NotebookClient(notebook, **how).execute()
print(json.dumps([cell["outputs"] for cell in notebook["cells"]]))
"""


def run(cells, folder):
    """The outputs of each cell, of one kernel."""
    for name in ("nbclient", "nbformat", "ipykernel"):
        reason = "not seen in a notebook: pip install nbclient nbformat ipykernel"
        pytest.importorskip(name, reason=reason)
    command = [sys.executable, "-c", RUN, json.dumps(list(cells.values()))]
    places = [str(Path(fdl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "IPYTHONDIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder),
    }
    how = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=300, **how)
    assert done.returncode == 0, done.stderr
    return dict(zip(cells, json.loads(done.stdout), strict=True))


def test_a_notebook_shows_figures_and_tables_once(tmp_path):
    """With pyplot's inline backend and without; and a figure that was kept where it is named."""
    outputs = run(CELLS, tmp_path)
    shown = {}
    for cell in ("summary", "figure", "pyplot", "again"):
        (only,) = outputs[cell]
        assert only["output_type"] == "execute_result"
        shown[cell] = only["data"]
    assert shown.pop("summary") == {"text/plain": SUMMARY}
    for data in shown.values():
        picture = base64.b64decode(data["image/png"])
        assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    assert outputs["kept"] == []
    text = "".join(str(output.get("data", output.get("text"))) for output in outputs["training"])
    assert "step" in text and "loss" in text and "\x1b" not in text
