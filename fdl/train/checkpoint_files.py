"""The files of a checkpoint, which Orbax writes, and their checksum.

A checkpoint is a folder whose name is its step. `about/metadata` is a readable JSON file, which
lists the path, dtype and shape of each array. `arrays/` holds the arrays; the name of an array is
its number in that list. The JSON file also holds everything that is not an array, and the SHA-256
of the whole checkpoint. The folder is written under another name and then renamed, so a process
that is killed leaves no incomplete checkpoint.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import kind
from fdl.ops.sharding import put
from fdl.paths import leaves, shortened, tree
from fdl.train.result import Result, Unfinished
from fdl.train.run import Run
from fdl.version import __version__

FORMAT = 1  # increased when a change makes older versions of fdl unable to read a checkpoint
LISTED = 20  # how many paths an error message lists at most


def package() -> Any:
    """The package orbax.checkpoint.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "checkpoints: expected the package orbax-checkpoint, which writes them, got none; "
            "pip install 'fdl[checkpoints]'"
        ) from error
    return ocp


def write(manager: Any, result: Result, about: dict[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
      manager: Orbax's CheckpointManager of the folder.
      result: what to save.
      about: a dict of other entries for the JSON file.
    """
    memories = result.unfinished.memories
    parts = {"run": leaves(result.run), "means": result.unfinished.means}
    parts |= {"position": result.unfinished.position}
    parts |= {f"memories/{number}": memory for number, memory in enumerate(memories.values())}
    found = {
        f"{part}/{path}" if path else part: leaf
        for part, named in parts.items()
        for path, leaf in named.items()
    }
    numbers = {path: leaf for path, leaf in found.items() if isinstance(leaf, int | float)}
    arrays = {path: _numpy(leaf) for path, leaf in found.items() if path not in numbers}
    step = int(result.run.step)
    about = about | {
        "format": FORMAT,
        "step": step,
        "reason": result.reason,
        "records": result.unfinished.records,
        "history": result.history,
        "memories": list(memories),
        "numbers": numbers,
        "arrays": {path: [str(x.dtype), list(x.shape)] for path, x in arrays.items()},
    }
    about["sha256"] = _digest(about, arrays)
    args = package().args
    stored = {str(number): x for number, x in enumerate(arrays.values()) if x.size}
    both = args.Composite(arrays=args.StandardSave(stored), about=args.JsonSave(about))
    manager.save(step, args=both, force=True)


def read(at: Path, like: Run) -> tuple[dict[str, Any], Result]:
    """Reads a checkpoint.

    Args:
      at: the folder of the checkpoint.
      like: a run with the paths, shapes and dtypes of the run that was saved.

    Returns:
      (about, result): the content of the JSON file, and the Result that was saved.

    Raises:
      ValueError: the checkpoint is damaged, was made by a newer version of fdl, or does not fit
        `like`.
    """
    about, arrays = _read(at)
    _check_fit(at, leaves(like), about["arrays"])
    names = ("run", "means", "memories", "position")
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for path, leaf in {**arrays, **about["numbers"]}.items():
        part, _, rest = path.partition("/")
        parts[part][rest] = leaf
    wanted = leaves(like)
    run = tree({path: _jax(leaf, wanted[path]) for path, leaf in parts["run"].items()}, like)
    memories: dict[str, dict[str, Any]] = {name: {} for name in about["memories"]}
    for path, leaf in parts["memories"].items():
        number, _, rest = path.partition("/")
        memories[about["memories"][int(number)]][rest] = leaf
    unfinished = Unfinished(parts["means"], about["records"], memories, parts["position"])
    return about, Result(run, about["history"], about["reason"], unfinished)


def _read(at: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of the JSON file, and the arrays by path; raises if one of them is damaged."""
    ocp = package()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            about = reader.restore(at.absolute() / "about")
        newer = about["format"] > FORMAT
        if not newer:
            arrays = _read_arrays(at, about)
            right = about["sha256"] == _digest(about, arrays)
    except Exception as error:
        raise _damaged(at, f"{type(error).__name__}: {shortened(str(error), 300)}") from error
    if newer:
        raise ValueError(
            f"checkpoints: expected a checkpoint of fdl {__version__} or older, got one of "
            f"{about['versions']['fdl']} at {at}; install a newer fdl"
        )
    if not right:
        raise _damaged(at, "contents that do not match the checksum")
    return about, arrays


def _read_arrays(at: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    ocp = package()
    shapes = {
        path: jax.ShapeDtypeStruct(shape, dtype) for path, (dtype, shape) in about["arrays"].items()
    }
    wanted = {str(number): x for number, x in enumerate(shapes.values()) if x.size}
    how = {number: ocp.RestoreArgs(restore_type=np.ndarray) for number in wanted}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = ocp.args.PyTreeRestore(wanted, restore_args=how)
        found = reader.restore(at.absolute() / "arrays", args)
    return {
        path: np.asarray(found[str(number)]) if x.size else np.zeros(x.shape, x.dtype)
        for number, (path, x) in enumerate(shapes.items())
    }


def _damaged(at: Path, got: str) -> ValueError:
    return ValueError(
        f"checkpoints: expected a whole checkpoint at {at}, got {got}; delete this folder to "
        "continue from the checkpoint before it"
    )


def _digest(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """The SHA-256 of everything in a checkpoint."""
    text = {name: value for name, value in about.items() if name != "sha256"}
    found = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for path, leaf in arrays.items():
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _numpy(leaf: Any) -> np.ndarray:
    """Converts a leaf to a NumPy array; a random key becomes an array of integers."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _jax(leaf: np.ndarray, like: Any) -> jax.Array:
    """The inverse of `_numpy`, on the devices of `like`."""
    array: Any = jnp.asarray(leaf)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    several = isinstance(like, jax.Array) and len(like.sharding.device_set) > 1
    return put(array, like.sharding) if several else array


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that `_numpy` gives."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _check_fit(at: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises unless the arrays of a checkpoint have the paths, shapes and dtypes of a run."""
    have = {
        path.removeprefix("run/"): f"{dtype} {shape}"
        for path, (dtype, shape) in found.items()
        if path.startswith("run/")
    }
    want = {path: kind(_shape(leaf)) for path, leaf in wanted.items()}
    wrong = [f"no {path} {text}" for path, text in want.items() if path not in have]
    wrong += [f"an unexpected {path} {text}" for path, text in have.items() if path not in want]
    both = [path for path in want if path in have and have[path] != want[path]]
    wrong += [f"{path} {have[path]} in place of {want[path]}" for path in both]
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise ValueError(
            f"checkpoints: expected a checkpoint of this model and optimizer at {at}, got "
            f"{shortened(', '.join(wrong[:LISTED]), 1500)}{more}; pass the model and the optimizer "
            "of the checkpoint, or choose another folder"
        )
