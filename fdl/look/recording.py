"""A hook that keeps pieces of a training run, from which `replay` makes a page."""

import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fdl.checks import check_count, described
from fdl.core.layer import Layer, as_layer, makes
from fdl.look import recorded_pieces as folders
from fdl.look.chosen_examples import Chosen, chosen
from fdl.look.layer_views import view_of
from fdl.look.measurements import dead_and_saturated, plane, readout, relative_change, scaled
from fdl.train.evaluation import params_and_state
from fdl.train.hooks import Observer, Plan, Record
from fdl.train.run import Run, speaks

SHARE_OF_TIME = 0.03
PIECES = 200


def record(
    folder: str | os.PathLike[str],
    model: Layer | Callable[..., Any],
    x: Any,
    y: Any = None,
    *,
    layers: Sequence[str] = ("**",),
    every: int | None = None,
    examples: int = 300,
    class_names: Sequence[str] | None = None,
) -> "Recorder":
    """A hook that keeps pieces of a run: what each layer does with the same few examples.

    `fdl.look.replay` makes a page from the folder. A piece describes one step. For each layer, it
    has the examples projected to a plane, the accuracy of a linear readout, the shares of dead and
    saturated units, and heat maps of a few units. For at most 24 arrays of weights with two or more
    axes, it has an image of the array and how fast the array changes. The values of all records are
    kept as well.

    Args:
      folder: the folder to write to. If it does not exist, `fit` makes it. If a run is continued,
        pass the same folder, model, examples and layers. What was written for steps after the one
        at which the run continues is then ignored.
      model: a network, or a function `(params, state, x) -> {path: output}` for parameters of your
        own. The last output in this dict is taken as the output of the model.
      x: inputs [N, ...]. Floating inputs [N, 2] are points in a plane. Inputs [N, H, W], and
        [N, H, W, K] with K 1 or 3, are images if H and W are at least 4.
      y: class numbers [N], integers >= 0. None if there are no classes: there are then no readouts,
        and all examples have one colour.
      layers: patterns of paths of layers. At most 24 layers are kept, evenly spaced; the input
        counts as one. A layer is left out if its outputs are those of the layer before it, such as
        `flatten`, or a positive multiple of them.
      every: an int >= 1; 3 keeps a piece at every third record. None keeps a piece at a record if
        recording has taken less than 3 % of the time so far, and at most about 200 pieces in all.
        In both cases, a piece is kept at the first and at the last step.
      examples: the largest number of examples that are used; they are evenly spaced in x.
      class_names: a name for each class; by default, the numbers.

    Returns:
      A hook for `fit(..., watch=[...])`.

    Raises:
      TypeError: folder is not a path, or model is neither a layer nor a function.
      ValueError: x and y do not fit each other, y is not class numbers, or a number is out of
        range. `fit` raises it before the first step if the folder has another recording or other
        files.

    Example:
      >>> import tempfile
      >>> import fdl
      >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
      >>> y = (x[:, 0] > 0).astype(np.int32)
      >>> model, optimizer = fdl.mlp([8], 2), fdl.sgd(0.1)
      >>> params, _ = model.init(jax.random.key(0), x)
      >>> objective = fdl.supervised(model, fdl.softmax_cross_entropy)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     hook = record(folder, model, x, y, every=1)
      ...     run = fdl.start(params, optimizer)
      ...     _ = fdl.fit(objective, optimizer, run, (x, y), steps=4, record_every=2, watch=[hook])
      ...     sorted(file.name for file in Path(folder).glob("piece*"))
      ['piece_0000_0000000000.npz', 'piece_0000_0000000002.npz', 'piece_0000_0000000004.npz']

    Source: Alain and Bengio 2016, arXiv 1610.01644, for readouts of each layer; Golub and Van Loan
    2013, "Matrix Computations", section 8.2.4, for orthogonal iteration.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"record: expected the path of a folder, got {described(folder)}; pass 'out/run', for "
            "example"
        )
    if every is not None:
        every = check_count("record", "every", every, "pass None to limit the cost instead")
    examples = check_count("record", "examples", examples, "300 is enough for most pages")
    if not isinstance(model, Layer) and (makes(model, Layer) or not callable(model)):
        as_layer(model, "record")  # raises
    patterns = [layers] if isinstance(layers, str) else list(layers)
    return Recorder(Path(folder), model, chosen(x, y, examples, class_names), patterns, every)


class Recorder(Observer):
    """The hook that `record` returns.

    Args:
      folder, model, every: the arguments of `record`.
      chosen: the chosen examples.
      layers: patterns of paths.
    """

    def __init__(
        self, folder: Path, model: Any, chosen: Chosen, layers: list[str], every: int | None
    ):
        self.folder, self.model, self.chosen = folder, model, chosen
        self.layers, self.every = layers, every
        self.bases: dict[str, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"record({str(self.folder)!r})"

    def recall(self, memory: dict[str, Any], run: Run) -> None:
        """Continues from the planes of the last piece, so that the points do not jump."""
        self.bases = {path: np.asarray(basis) for path, basis in memory.items()}

    def remember(self) -> dict[str, Any]:
        """The basis of the plane of each layer."""
        return dict(self.bases)

    def begin(self, plan: Plan) -> None:
        """Compiles the capture, opens the folder and keeps the first piece."""
        if plan.settings is not None:
            raise ValueError(
                "record: expected fit, got sweep, whose run has many members; record a fit of one "
                "of its members"
            )
        self.writing, self.warned = speaks(plan.run), False
        self.first, self.last = int(plan.run.step), plan.last
        self.waited = 0
        self.before: tuple[int, list[np.ndarray]] | None = None
        before = self._about()
        self.look, about = view_of(
            self.model, self.layers, self.chosen, *params_and_state(plan.run), before
        )
        self.session = 0
        if self.writing:
            self._open(json.loads(json.dumps(about)), before)
        self.paths = [layer["path"] for layer in about["layers"]]
        recalled = dict(self.bases)
        self.look(*params_and_state(plan.run))  # compiles, which is no part of a piece's cost
        self._keep(plan.run)
        self.bases = recalled or self.bases
        self.kept, self.spent, self.began = self.first, 0.0, time.perf_counter()

    def __call__(self, record: Record, run: Run) -> None:
        """Appends the record, and keeps a piece if one is due."""
        now = time.perf_counter()
        if self.writing:
            self._write(lambda: folders.append_line(self.folder, record))
        self.waited += 1
        if self._due(now, int(run.step)):
            self._keep(run)
        self.spent += time.perf_counter() - now

    def save(self, result: Any) -> None:
        """Keeps the last piece."""
        if result.reason and self.kept != int(result.run.step):
            self._keep(result.run)

    def _due(self, now: float, step: int) -> bool:
        if self.every is not None:
            return self.waited >= self.every
        apart = (self.last - self.first) / PIECES
        cheap = self.spent + self.cost <= SHARE_OF_TIME * (now - self.began)
        return cheap and step - self.kept >= apart

    def _about(self) -> dict[str, Any] | None:
        """What the folder says of an earlier session; None if there was none."""
        exists = (self.folder / folders.ABOUT).exists()
        return folders.read_about(self.folder, "record") if exists else None

    def _open(self, about: dict[str, Any], before: dict[str, Any] | None) -> None:
        """Makes the folder, or checks that it has a recording of the same things."""
        about = {"fdl recording": folders.FORM, **about}
        if before is not None:
            changed = [key for key in about if about[key] != before.get(key)]
            if changed:
                raise ValueError(
                    f"record: expected the {changed[0]} of the recording in {str(self.folder)!r}, "
                    f"got other {changed[0]}; choose another folder for another run, or pass the "
                    "same model, examples and layers to continue"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise ValueError(
                    "record: expected an empty folder or the folder of a recorded run, got "
                    f"{str(self.folder)!r} with other files; choose another folder"
                )
            folders.write_arrays(self.folder / folders.EXAMPLES, self.chosen.arrays())
            (self.folder / folders.ABOUT).write_text(json.dumps(about))
        self.session = folders.sessions(self.folder)
        folders.append_line(self.folder, {"begins": self.first})

    def _keep(self, run: Run) -> None:
        """Measures the run, and writes a piece."""
        began = time.perf_counter()
        step = int(run.step)
        piece = self._measured(jax.device_get(self.look(*params_and_state(run))), step)
        if self.writing:
            file = folders.piece_file(self.folder, self.session, step)
            self._write(lambda: folders.write_arrays(file, piece))
        self.kept, self.waited = step, 0
        self.cost = time.perf_counter() - began

    def _write(self, write: Callable[[], None]) -> None:
        """Calls `write`. An OSError, such as a full disk, becomes one warning: training goes on."""
        try:
            write()
        except OSError as error:
            if not self.warned:
                warnings.warn(
                    f"record: expected a folder that can be written, got {error.strerror} for "
                    f"{self.folder}; training continues, but pieces and records may be missing",
                    stacklevel=6,
                )
            self.warned = True

    def _measured(self, found: dict[str, Any], step: int) -> dict[str, Any]:
        """The arrays of a piece, from what the compiled capture returns."""
        piece: dict[str, list[Any]] = {key: [] for key in ("points", "share", "readout")}
        units, heat, strips = [], [], []
        labels, classes = self.chosen.labels, self.chosen.classes
        for path in self.paths:
            layer = found["layers"][path]
            h = layer["features"]
            points, self.bases[path], share = plane(h, self.bases.get(path))
            known = classes > 1 and len(h) > 1
            score = readout(h, labels, classes) if known else float("nan")
            for key, value in zip(piece, (points, share, score), strict=True):
                piece[key].append(value)
            units.append(dead_and_saturated(layer["units"]))
            heat += [scaled(each) for each in layer["heat"]]
            strips.append(scaled(layer["activations"]))
        images = [scaled(image) for image in found["images"]]
        sample = found["samples"]
        before, self.before = self.before, (step, sample)
        return {
            "step": step,
            **{key: np.asarray(value, np.float32) for key, value in piece.items()},
            "units": np.asarray(units, np.float32),
            "speed": _speeds(before, sample, step),
            "predicted": found["predicted"].astype(np.int32),
            **_packed("heat", heat),
            **_packed("activations", strips),
            **_packed("images", images),
            **_packed("surface", [scaled(each) for each in found["surface"]]),
        }


def _packed(name: str, parts: list[tuple[np.ndarray, float]]) -> dict[str, np.ndarray]:
    """All values of the parts in one array of int8, and the scale of each part."""
    flat = [values.ravel() for values, _ in parts]
    return {
        name: np.concatenate(flat) if flat else np.zeros(0, np.int8),
        f"{name}_scale": np.array([scale for _, scale in parts], np.float32),
    }


def _speeds(before: Any, sample: list[np.ndarray], step: int) -> np.ndarray:
    """The relative change of each array of weights per step, since the last piece."""
    if before is None or before[0] == step:
        return np.full(len(sample), np.nan, np.float32)
    steps = step - before[0]
    speeds = [relative_change(old, now) / steps for old, now in zip(before[1], sample, strict=True)]
    return np.array(speeds, np.float32)
