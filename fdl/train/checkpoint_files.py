"""The files of a checkpoint, which Orbax writes, and their checksums.

A checkpoint is a folder whose name is its step. `about/metadata` is a readable JSON file, which
lists the path, dtype and shape of each array, and the SHA-256 of its pieces: an array that is split
over several processes has several pieces, and each process writes its own. `arrays/` holds the
arrays; the name of an array is its number in that list. The JSON file also holds everything that is
not an array, and its own SHA-256. The folder is written under another name and then renamed, so a
process that is killed leaves no incomplete checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import kind
from fdl.ops.sharding import put
from fdl.paths import leaves, shortened, tree
from fdl.train.processes import lists_of_all
from fdl.train.result import Result, Unfinished
from fdl.train.run import Run, many
from fdl.version import __version__

FORMAT = 2  # increased when a change makes older versions of fdl unable to read a checkpoint
AT_ONCE = 2**28  # bytes of arrays that each of several processes reads at once, if they are small
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
    """Writes a checkpoint. All processes of the run must call it.

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
    arrays = {path: _stored(leaf) for path, leaf in found.items() if path not in numbers}
    pieces = lists_of_all(result.run, {path: _pieces(x) for path, x in arrays.items()})
    step = int(result.run.step)
    about = about | {
        "format": FORMAT,
        "step": step,
        "reason": result.reason,
        "records": result.unfinished.records,
        "history": result.history,
        "memories": list(memories),
        "numbers": numbers,
        "arrays": {p: [str(x.dtype), list(x.shape), pieces[p]] for p, x in arrays.items()},
    }
    about["sha256"] = _digest(about)
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
    about, wanted = _read_about(at), leaves(like)
    _check_fit(at, wanted, about["arrays"])
    names = ("run", "means", "memories", "position")
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for path, leaf in _arrays(at, about, AT_ONCE if many(like) else None):
        part, _, rest = path.partition("/")
        parts[part][rest] = _jax(leaf, wanted[rest]) if part == "run" else leaf
    for path, number in about["numbers"].items():
        part, _, rest = path.partition("/")
        parts[part][rest] = number
    run = tree(parts["run"], like)
    memories: dict[str, dict[str, Any]] = {name: {} for name in about["memories"]}
    for path, leaf in parts["memories"].items():
        number, _, rest = path.partition("/")
        memories[about["memories"][int(number)]][rest] = leaf
    unfinished = Unfinished(parts["means"], about["records"], memories, parts["position"])
    return about, Result(run, about["history"], about["reason"], unfinished)


def _read_about(at: Path) -> dict[str, Any]:
    """The content of the JSON file; raises if it is damaged, or of another version of fdl."""
    ocp = package()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            about: dict[str, Any] = reader.restore(at.absolute() / "about")
        form, version = about["format"], about["versions"]["fdl"]
        right = about["sha256"] == _digest(about)
    except Exception as error:
        raise _damaged(at, error) from error
    if form != FORMAT:
        wanted, remedy = f"{__version__} or older", "install a newer fdl"
        if form < FORMAT:
            wanted, remedy = "a version that writes as this one does", f"load it with {version}"
        raise ValueError(
            f"checkpoints: expected a checkpoint of fdl {wanted}, got one of {version} at {at}; "
            f"{remedy}"
        )
    if not right:
        raise _damaged(at, "contents that do not match the checksum")
    return about


def _arrays(at: Path, about: dict[str, Any], most: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array); raises if an array is damaged.

    Args:
      at: the folder of the checkpoint.
      about: the content of the JSON file.
      most: how many bytes are read at once, if a single array is not larger. None reads all arrays
        at once.
    """
    listed = about["arrays"].items()
    group: dict[str, jax.ShapeDtypeStruct] = {}
    for number, (path, (dtype, shape, _)) in enumerate(listed):
        shaped = jax.ShapeDtypeStruct(shape, dtype)
        if not shaped.size:
            yield path, np.zeros(shape, shaped.dtype)
            continue
        held = sum(each.size * each.dtype.itemsize for each in group.values())
        if group and most is not None and held + shaped.size * shaped.dtype.itemsize > most:
            yield from _restored(at, about, group)
            group = {}
        group[str(number)] = shaped
    yield from _restored(at, about, group)


def _restored(
    at: Path, about: dict[str, Any], group: dict[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array) of the arrays with some numbers, after their pieces were checked."""
    ocp, listed = package(), list(about["arrays"].items())
    how = {number: ocp.RestoreArgs(restore_type=np.ndarray) for number in group}
    found = {}
    try:
        if group:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                args = ocp.args.PyTreeRestore(group, restore_args=how, partial_restore=True)
                found = reader.restore(at.absolute() / "arrays", args)
        arrays = {number: np.asarray(found[number]) for number in group}
        right = all(
            _sha(arrays[number][tuple(map(slice, starts, stops))]) == sha
            for number in group
            for starts, stops, sha in listed[int(number)][1][2]
        )
    except Exception as error:
        raise _damaged(at, error) from error
    if not right:
        raise _damaged(at, "contents that do not match the checksum")
    for number, array in arrays.items():
        yield listed[int(number)][0], array


def _damaged(at: Path, got: Exception | str) -> ValueError:
    if isinstance(got, Exception):
        got = f"{type(got).__name__}: {shortened(str(got), 300)}"
    return ValueError(
        f"checkpoints: expected a whole checkpoint at {at}, got {got}; delete this folder to "
        "continue from the checkpoint before it"
    )


def _digest(about: dict[str, Any]) -> str:
    """The SHA-256 of everything in the JSON file except for this number."""
    text = {name: value for name, value in about.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()


def _pieces(x: Any) -> list[list[Any]]:
    """[first indices, ends, SHA-256] of each piece of an array that this process writes."""
    if isinstance(x, np.ndarray):
        first = jax.process_index() == 0
        return [[[0] * x.ndim, list(x.shape), _sha(x)]] if first and x.size else []
    ranges = [
        (part, [each.indices(size)[:2] for each, size in zip(part.index, x.shape, strict=True)])
        for part in x.addressable_shards
        if part.replica_id == 0
    ]
    return [
        [[a for a, _ in each], [b for _, b in each], _sha(np.asarray(part.data))]
        for part, each in ranges
    ]


def _sha(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()


def _stored(leaf: Any) -> Any:
    """A leaf as it is written: a NumPy array, or an array of JAX if it is on several processes.

    A random key becomes an array of integers.
    """
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    several = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return leaf if several else np.asarray(leaf)


def _jax(leaf: np.ndarray, like: Any) -> jax.Array:
    """The inverse of `_stored`, on the devices of `like`."""
    array: Any = jnp.asarray(leaf)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    several = isinstance(like, jax.Array) and len(like.sharding.device_set) > 1
    return put(array, like.sharding) if several else array


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that `_stored` gives."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _check_fit(at: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises unless the arrays of a checkpoint have the paths, shapes and dtypes of a run."""
    have = {
        path.removeprefix("run/"): f"{dtype} {shape}"
        for path, (dtype, shape, _) in found.items()
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
