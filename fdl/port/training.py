"""Saves a training step and a run, so that training continues with JAX alone."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from optax import GradientTransformation

from fdl import paths
from fdl.data.arrays import length, to_jax
from fdl.port.atomic_files import replacing, replacing_together
from fdl.port.programs import check_platforms, exported, write_program
from fdl.port.weights import save_weights
from fdl.train.checks import check_objective_given, check_optimizer, check_run
from fdl.train.program import zero_means
from fdl.train.run import Run, Stacked
from fdl.train.step import check_microbatch, train_step
from fdl.typing import Batch, Objective
from fdl.version import __version__

FORMAT = 1  # increased when a change makes scripts for older folders fail


def save_training(
    folder: str | os.PathLike[str],
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run,
    data: Batch,
    batch_size: int | None,
    *,
    microbatch: int | None = None,
    platforms: Sequence[str] | None = None,
) -> None:
    """Saves a training step as a program, and the run, so that JAX alone can continue training.

    The folder gets three files. No code of fdl, of optax or of the model is needed to use them:

    - `step.jax`, the program of `train_step`, as `jax.export` writes it:
      `(arrays of the run, arrays of data) -> (arrays of the run, means)`. The arrays are lists, and
      means is a dict, name -> number, of the loss and the metrics of the batch;
    - `run.safetensors`, the arrays of the run;
    - `training.json`, which lists the path, dtype and shape of each array of both lists, in order,
      the names of the means, and the versions of fdl and JAX.

    Existing files of these names are replaced together. If a new file cannot be written, they stay
    as they are. If one cannot be replaced, or the process is killed between two files,
    `training.json` does not exist.

    On the same machine, with the same version of JAX, the steps are bit-identical to those of
    `train_step` and of `fit`. Random numbers and batches depend on the run's seed and step, which
    are among its arrays.

    Args:
      folder: path of the folder, which is created if it does not exist.
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`.
      optimizer: from fdl or optax.
      run: the run from which training continues, on one device.
      data: a pytree of arrays [N, ...] or `jax.ShapeDtypeStruct`s, of which only shapes and dtypes
        are used. The program gets data of these shapes with every call.
      batch_size: B, an int >= 1: the program draws the batch of its step from data, as `train_step`
        does. None: data is one batch [B, ...], and the program takes a batch with every call.
      microbatch: as in `train_step`.
      platforms: the platforms on which the program can run, among "cpu", "cuda", "rocm" and "tpu".
        None means the platform of this process. A program for several platforms chooses between
        their code when it is compiled, and its results may differ from those of `train_step` by
        rounding.

    Raises:
      TypeError: an argument is in the wrong place.
      ImportError: the package flatbuffers is not installed.
      OptionError: batch_size or platforms is out of range.
      ValueError: microbatch does not divide the batch size, the run is split over several devices,
        the objective returns a wrong value, or the step cannot be compiled for all platforms.
      OSError: the folder cannot be created, or a file cannot be written or replaced.

    Example:
      >>> import tempfile
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> run, data = fdl.start(jnp.array(0.0), fdl.sgd(0.5)), jnp.ones(8)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_training(folder, objective, fdl.sgd(0.5), run, data, batch_size=4)
      ...     step = jax.export.deserialize(bytearray(Path(folder, "step.jax").read_bytes()))
      ...     about = json.loads(Path(folder, "training.json").read_text())
      >>> [leaf["path"] for leaf in about["run"]]
      ['params', 'step', 'seed']
      >>> leaves, means = step.call(jax.tree.leaves(run), [data])
      >>> float(means["loss"]), float(leaves[0])
      (1.0, 1.0)
    """
    who = "save_training"
    check_objective_given(who, objective)
    check_optimizer(who, optimizer)
    check_run(who, run)
    run = getattr(run, "run", run)
    if run.layout is not None:
        raise ValueError(
            f"{who}: expected a run on one device, got one that is split over several; save it "
            "with fdl.port.save_weights, and load it into a run from fdl.start"
        )
    if microbatch is not None:
        microbatch = check_microbatch(who, microbatch, batch_size or length(data))
    run, data = _plain(who, run, "the run"), _shaped(who, data)
    step = _step(objective, optimizer, jax.eval_shape(lambda: run), data, batch_size, microbatch)
    shapes = [jax.tree.map(_shape, jax.tree.leaves(tree)) for tree in (_numbers(run), data)]
    made = jax.eval_shape(step, *shapes)
    if platforms is None:
        platforms = [export.default_export_platform()]
    program = exported(who, step, shapes, None, check_platforms(who, platforms))
    about = {"format": FORMAT, "fdl": __version__, "jax": jax.__version__}
    about |= {"step": "step.jax", "arrays": "run.safetensors", "platforms": program.platforms}
    about |= {"batch_size": batch_size, "run": _listed(_numbers(run)), "data": _listed(data)}
    text = json.dumps(about | {"means": list(made[1])}, indent=1).encode()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_together(folder, who, ("step.jax", "run.safetensors", "training.json")) as new:
        write_program(who, new / "step.jax", program)
        save_weights(new / "run.safetensors", run)
        with replacing(new / "training.json", who, len(text)) as out:
            out.write(text)


def _step(
    objective: Objective,
    optimizer: GradientTransformation,
    like: Run,
    data: Any,
    batch_size: int | None,
    microbatch: int | None,
) -> Any:
    """`train_step` as a function of lists of arrays, without random keys.

    Raises:
      PathError: a step changes the shape or dtype of a leaf of the run.
    """

    def taken(run: Run, data: Any) -> tuple[Run, Any]:
        size = batch_size
        if size is None:  # `draw_batch` then takes the only batch
            data = Stacked(jax.tree.map(lambda leaf: leaf[None], data), run.step)
            size = length(jax.tree.map(lambda leaf: leaf[0], data.batches))
        return train_step(objective, optimizer, run, data, size, microbatch)

    zero_means(like, *jax.eval_shape(taken, like, data))

    def step(run: list[Any], data_: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        whole = jax.tree.map(_wrapped, like, jax.tree.unflatten(jax.tree.structure(like), run))
        after, means = taken(whole, jax.tree.unflatten(jax.tree.structure(data), data_))
        return jax.tree.leaves(_numbers(after)), {name: means[name].value() for name in means}

    return step


def _plain(who: str, tree: Any, what: str) -> Any:
    """JAX arrays that are not weakly typed, in which form `fit` trains a run too."""
    arrays = to_jax(tree, who, what)
    return jax.tree.map(lambda x: x if _is_key(x) else jnp.asarray(x, x.dtype), arrays)


def _shaped(who: str, data: Any) -> Any:
    """The shapes and dtypes of data."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return _shape(leaf if isinstance(leaf, jax.ShapeDtypeStruct) else to_jax(leaf, who))

    return jax.tree.map(shape, data)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _numbers(tree: Any) -> Any:
    """Random keys as the arrays of numbers that a file holds."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _wrapped(like: Any, leaf: Any) -> Any:
    """The opposite of `_numbers` for one leaf."""
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.zeros((), like.dtype)))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _listed(tree: Any) -> list[dict[str, Any]]:
    """The path, dtype and shape of each array, in the order of `jax.tree.leaves`."""
    return [
        {"path": paths.path_of(keys), "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
