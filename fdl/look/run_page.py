"""Makes one HTML page from recorded runs, which needs no network and no server."""

import base64
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fdl.checks import check_count, described
from fdl.look.figure_parts import PALETTE
from fdl.look.measurements import spaced
from fdl.look.recorded_pieces import Recording, read
from fdl.port.atomic_files import replacing

PARTS = Path(__file__).parent / "replay_page"
CURVE = 1500  # the most values of a curve
NOT_FINITE = -32768


def replay(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    file: str | os.PathLike[str],
    *,
    pieces: int = 100,
) -> Path:
    """Writes one self-contained HTML page on which a recorded run plays, layer by layer.

    The page needs no network and no server. It shows where the same examples lie after every layer,
    and how they move during training. It also shows heat maps of units, images of weights, the
    curves of the history, and dead and saturated units. The space bar plays, the arrow keys step,
    and `?` lists all keys.

    Args:
      folder: the folder that `fdl.look.record` wrote to; or a list of two, which are shown side by
        side at the same step.
      file: the path of the page.
      pieces: how many recorded steps of each run the page shows at most, an int >= 1. They are
        evenly spaced.

    Returns:
      The path of the page.

    Raises:
      TypeError: folder is neither a path nor a list of one or two paths.
      ValueError: a folder is not a recording, or has no piece that can be read. A single damaged
        piece is left out, with a warning.
      OSError: the page cannot be written.

    Example:
      >>> import tempfile
      >>> import jax, fdl
      >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
      >>> y = (x[:, 0] > 0).astype(np.int32)
      >>> model, optimizer = fdl.mlp([8], 2), fdl.sgd(0.1)
      >>> params, _ = model.init(jax.random.key(0), x)
      >>> objective = fdl.supervised(model, fdl.softmax_cross_entropy)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     hook = fdl.look.record(f"{folder}/run", model, x, y)
      ...     run = fdl.start(params, optimizer)
      ...     _ = fdl.fit(objective, optimizer, run, (x, y), steps=4, watch=[hook])
      ...     replay(f"{folder}/run", f"{folder}/run.html").read_text()[:15]
      '<!doctype html>'
    """
    folders = [folder] if isinstance(folder, str | os.PathLike) else folder
    listed = isinstance(folders, list | tuple) and 1 <= len(folders) <= 2
    if not listed or not all(isinstance(each, str | os.PathLike) for each in folders):
        raise TypeError(
            f"replay: expected a folder, or a list of one or two folders, got {described(folder)}; "
            "pass 'out/run', or ['out/run', 'out/other']"
        )
    pieces = check_count("replay", "pieces", pieces, "100 is enough for a smooth replay")
    runs = [read(Path(each), "replay") for each in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    data = {
        "palette": PALETTE,
        "runs": [_run(run, name, pieces) for run, name in zip(runs, names, strict=True)],
    }
    text = _page(data).encode()
    with replacing(file, "replay", len(text)) as out:
        out.write(text)
    return Path(file)


def _page(data: dict[str, Any]) -> str:
    """The page, with its style, its script and its data inside."""
    page, style, script = (
        (PARTS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    # A text such as "</script>" in a name would end the element that holds the data.
    content = json.dumps(_finite(data), separators=(",", ":")).replace("<", "\\u003c")
    for mark, part in (("STYLE", style), ("SCRIPT", script), ("DATA", content)):
        page = page.replace(f"/*{mark}*/", part, 1)
    return page


def _run(run: Recording, name: str, most: int) -> dict[str, Any]:
    """What the page needs of a run. Large arrays are base64; real numbers are quantised."""
    pieces = [run.pieces[place] for place in spaced(len(run.pieces), most)]
    records = [run.records[place] for place in spaced(len(run.records), CURVE)]
    keys = dict.fromkeys(key for record in run.records for key in record)
    about = run.about
    for w in about["weights"]:
        after = [n for n, layer in enumerate(about["layers"]) if layer["order"] >= w["order"] >= 0]
        w["layer"] = after[0] if after else len(about["layers"]) - 1
    points = np.stack([piece["points"] for piece in pieces])
    fine = np.isfinite(points)
    points = np.where(fine, np.rint(np.where(fine, points, 0) * 32000), NOT_FINITE)
    found = {
        "name": name,
        **{key: about[key] for key in ("classes", "kind", "pixels", "bounds", "layers", "weights")},
        "network": network(about),
        "steps": [int(piece["step"]) for piece in pieces],
        "points": _base64(points.astype("<i2")),
        "predicted": _base64(np.stack([piece["predicted"] for piece in pieces]).astype("<i2")),
        "curves": {key: [record.get(key) for record in records] for key in keys},
        "labels": _base64(run.examples["labels"].astype("<i2")),
        "places": run.examples["places"].tolist(),
    }
    for key in ("share", "readout", "units"):
        found[key] = [np.round(piece[key].astype(float), 6).tolist() for piece in pieces]
    found["speed"] = [[float(f"{value:.3g}") for value in row] for row in _column(pieces, "speed")]
    for key in ("heat", "activations", "images", "surface"):
        found[key] = _base64(np.stack([piece[key] for piece in pieces]))
        scales = _column(pieces, f"{key}_scale")
        found[f"{key}_scale"] = [[float(f"{value:.3g}") for value in row] for row in scales]
    if "thumbnails" in run.examples:
        found["thumbnails"] = _base64(run.examples["thumbnails"])
        found["thumbnail"] = list(run.examples["thumbnails"].shape[1:])
    if "plane" in run.examples:
        found["plane"] = np.round(run.examples["plane"].astype(float), 4).tolist()
    return found


def network(about: dict[str, Any]) -> list[dict[str, int]] | None:
    """The columns of the diagram of a network.

    None unless it is a small network of dense layers, whose inputs are points of a plane.

    Returns:
      A list with an entry for each column, from the input on: the index of the layer whose heat
      maps it shows, and the index of the weights that lead to it, which is -1 for the input.
    """
    layers, weights = about["layers"], about["weights"]
    if about["kind"] != "plane":
        return None
    columns, width = [{"layer": 0, "weights": -1}], layers[0]["units"][1]
    for number, w in enumerate(weights):
        until = weights[number + 1]["order"] if number + 1 < len(weights) else math.inf
        inside = [n for n, layer in enumerate(layers) if w["order"] <= layer["order"] < until]
        if w["order"] < 0 or not inside:
            return None
        layer = layers[inside[-1]]
        shape = [width, layer["units"][1]]
        if w["shape"] != shape or len(layer["shown"]) < shape[1]:
            return None
        width = shape[1]
        columns.append({"layer": inside[-1], "weights": number})
    return columns if len(columns) > 1 else None


def _column(pieces: list[dict[str, np.ndarray]], key: str) -> list[list[float]]:
    return [piece[key].astype(float).tolist() for piece in pieces]


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _finite(data: Any) -> Any:
    """The data with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
