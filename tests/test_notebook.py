"""In a notebook: figures and tables show by themselves, once, as they are read."""

import base64
import pickle

import jax
import matplotlib
import numpy as np
import pytest

import fdl
from fdl.look import comparison_table, draw
from fdl.train import Comparison

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
result = fdl.fit(objective, optimizer, run, (x, x[:, :1]), steps=4, progress=True)""",
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
    found = Comparison(rates, np.array([0]), steps, curves, "loss", 0, None, 2e-5, 1.5)
    table = comparison_table({"sgd": found})
    assert repr(table) == table and table.startswith("optimizer  best rate")


def run(cells, folder):
    """The outputs of each cell, of one kernel."""
    reason = "not seen in a notebook: pip install nbclient nbformat ipykernel"
    nbclient, nbformat = (
        pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat")
    )
    pytest.importorskip("ipykernel", reason=reason)
    code = [nbformat.v4.new_code_cell(text.strip()) for text in cells.values()]
    notebook = nbformat.v4.new_notebook(cells=code)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return dict(zip(cells, (cell["outputs"] for cell in notebook["cells"]), strict=True))


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
