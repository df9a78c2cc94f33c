"""Reads the tensors of other programs' files, by name: safetensors, torch, and several shards."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fdl.checks import OptionError, described
from fdl.paths import quoted, shortened
from fdl.port.torch_files import read_torch
from fdl.port.weights import NAMES, read_header

# What a folder of Hugging Face can hold, the best first.
_WHOLE = ["model.safetensors", "model.safetensors.index.json"]
_WHOLE += ["pytorch_model.bin", "pytorch_model.bin.index.json"]


def read_tensors(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of weights by the names of its tensors, without torch, and runs no code of it.

    The arrays are read-only views of the file, which is mapped into memory: numbers are read when
    they are used. Do not change the file while the arrays are in use.

    Args:
      source: the path of a safetensors file; of a file of `torch.save` (in the zip format, which
        torch writes since version 1.6); of an index of shards, such as
        `model.safetensors.index.json`; or of a folder from Hugging Face with one of these.

    Returns:
      A dict, name -> NumPy array. A file of `torch.save` may hold other things beside tensors, such
      as a dict with entries `model` and `epoch`; they are returned as they are.

    Raises:
      FileNotFoundError: the file, or a shard that the index names, does not exist.
      ValueError: a file is incomplete or of another format; its pickle names anything but tensors
        (nothing of it is run); or an index names a file outside of its folder, or a tensor that is
        not in its shard.

    Example:
      >>> import tempfile
      >>> from fdl.port import save_weights
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_weights(f"{folder}/model.safetensors", {"fc.weight": np.ones((2, 3))})
      ...     read_tensors(folder)["fc.weight"].shape
      (2, 3)

    Source: the safetensors format; `torch/serialization.py` and `torch/_utils.py` of torch 2.13.
    """
    if not isinstance(source, str | os.PathLike):
        raise OptionError(
            "read_tensors",
            f"expected the path of a file or a folder, got {described(source)}; pass a path such "
            "as 'model.safetensors'",
        )
    file = _whole(Path(source)) if os.path.isdir(source) else Path(source)
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    with open(file, "rb") as stream:
        start = stream.read(9)
    # A safetensors file begins with the length of its header in 8 bytes, the last 4 of which are 0,
    # and a brace. The first bytes alone do not decide: a header of 640 bytes begins like a pickle.
    torch = start[:2] in (b"PK", b"\x80\x02") and start[4:] != b"\0\0\0\0{"
    return read_torch(file) if torch else _read_safetensors(file)


def has_weights(folder: str | os.PathLike[str]) -> bool:
    """True if a folder has a file or an index of weights."""
    return any((Path(folder) / name).exists() for name in _WHOLE)


def _whole(folder: Path) -> Path:
    """The file or index of weights in a folder."""
    for name in _WHOLE:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"{folder}: expected one of {', '.join(_WHOLE)} in this folder, got none; download the "
        "whole model"
    )


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    header, start = read_header(file)
    mapped = np.asarray(np.memmap(file, np.uint8, "r"))
    found = {}
    for name, info in header.items():
        code = info["dtype"]
        if code not in NAMES or code == "F4":
            raise ValueError(
                f"{file}: expected dtypes that NumPy has, got {code} at {quoted(name)}; convert "
                "this tensor with torch, and save it again"
            )
        begin, end = info["data_offsets"]
        dtype = np.dtype(NAMES[code]).newbyteorder("<")
        raw = mapped[start + begin : start + end]
        # A bool that is neither 0 nor 1 would be a hostile value for NumPy.
        numbers = raw.astype(bool) if dtype.kind == "b" else raw.view(dtype)
        try:
            found[name] = numbers.reshape(info["shape"])
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{file}: expected shapes that NumPy has, got {info['shape'][:64]} at "
                f"{quoted(name)}; save this tensor again in another shape"
            ) from error
    return found


def _read_shards(index: Path) -> dict[str, Any]:
    shard_of = _weight_map(index)
    names = sorted(set(shard_of.values()))
    for name in names:
        _check_shard(index, name)
    shards = {name: _read_shard(index.parent / name) for name in names}
    for tensor, name in shard_of.items():
        if tensor not in shards[name]:
            raise ValueError(
                f"{index}: expected the tensor {quoted(tensor)} in the shard {name}, got a file "
                "without it; download the shard and the index again"
            )
    extra = sorted({t for name in names for t in shards[name] if shard_of.get(t) != name})
    if extra:
        raise ValueError(
            f"{index}: expected only tensors that the index lists, got {quoted(extra[0])} in a "
            "shard; download the shards and the index again"
        )
    return {tensor: shards[name][tensor] for tensor, name in shard_of.items()}


def _read_shard(file: Path) -> dict[str, Any]:
    found = read_tensors(file)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        got = "a dict with other keys" if isinstance(found, dict) else _described(found)
        raise ValueError(
            f"{file}: expected a shard with a dict of tensors by name, got {got}; download it again"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """The index: name of a tensor -> name of a file."""
    found = read_json(index)
    shard_of = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shard_of, dict) or not all(isinstance(e, str) for e in shard_of.values()):
        raise ValueError(
            f"{index}: expected an index with a `weight_map` from tensors to files, got "
            f"{shortened(repr(found), 100)}; download it again"
        )
    return shard_of


def _check_shard(index: Path, name: str) -> None:
    plain = name == Path(name).name and name not in ("", ".", "..")
    if not plain or "\\" in name or "\0" in name or name.endswith(".index.json"):
        raise ValueError(
            f"{index}: expected shards in the folder of the index, got {quoted(name)}; do not use "
            "this index, because it points outside of its folder"
        )
    if not (index.parent / name).is_file():
        raise FileNotFoundError(
            f"{index}: expected the shard {name} beside the index, got no such file; download it"
        )


def read_json(file: Path) -> Any:
    """The content of a JSON file; raises a ValueError that names the file."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: expected a complete JSON file, got an error ({error}); download it again"
        ) from error


def tensors_of(who: str, source: Any) -> dict[str, np.ndarray]:
    """The tensors of a file, of a folder, or of a dict of torch's tensors or arrays, by name."""
    origin = source if isinstance(source, str | os.PathLike) else "the dict"
    found = read_tensors(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(found, Mapping):
        raise OptionError(
            who,
            "expected a dict of tensors by name, or the path of a file, got "
            f"{_described(found)}; pass model.state_dict(), or a path such as 'model.safetensors'",
        )
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not (hasattr(value, "dtype") and hasattr(value, "shape")):
            raise OptionError(
                who,
                f"expected only tensors by name in {origin}, got {_described(value)} at "
                f"{quoted(name)}; pass the state dict alone, such as "
                "fdl.port.read_tensors(file)['model']",
            )
        tensors[name] = as_numpy(value)
    return tensors


def _described(value: Any) -> str:
    """A value of a file for a message. A nested one is not printed: it could be endless."""
    nested = isinstance(value, list | tuple) and any(isinstance(e, list | tuple) for e in value)
    return type(value).__name__ if nested else described(value)


def as_numpy(value: Any) -> np.ndarray:
    """An array or a tensor of torch as a NumPy array, without a copy where that is possible."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if "float8" in str(value.dtype) or "bfloat16" in str(value.dtype):
            return np.asarray(jax.dlpack.from_dlpack(value.contiguous()))  # NumPy lacks the dtype
        return value.numpy()
    return np.asarray(value)
