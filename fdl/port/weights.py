"""Saves weights to safetensors files and loads them; a file has one tensor for each path."""

import json
import os
from collections.abc import Iterable, Sequence
from io import BufferedReader
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.core import Layer
from fdl.data.arrays import as_arrays, to_jax
from fdl.port.atomic_files import replacing
from fdl.port.golden import PREFIX, check_golden, golden_arrays

# dtype -> its name in safetensors. Tensors are written in this order, which keeps them aligned.
_CODES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "float4_e2m1fn": "F4",
    "bool": "BOOL",
}
NAMES = {code: name for name, code in _CODES.items()}
_ORDER = list(NAMES)
_KEY = "prng_key:"  # the header has an entry _KEY + path for each tensor that is a random key


def save_weights(
    file: str | os.PathLike[str],
    tree: Any,
    *,
    only: str | Sequence[str] | None = None,
    golden: tuple[Layer, Any] | None = None,
) -> None:
    """Saves a pytree of arrays to a safetensors file, with one tensor for each leaf, named by path.

    The file appears either complete or not at all. The arrays are saved bit for bit.

    Args:
      file: path of the file. An existing file is replaced; the new file has the permissions of
        the existing file. Symbolic links are followed.
      tree: any pytree of arrays: params, `{"params": params, "state": state}`, or a whole run with
        its optimizer state. Random keys are saved too. A Python number is saved as the array to
        which JAX would convert it, such as float32.
      only: selects the leaves to save: a path pattern such as `"body/**"`, or a sequence of
        patterns. None saves all leaves.
      golden: (model, x), the model of these weights and a few inputs [B, ...]. The file then also
        gets x, the outputs of `model.apply(params, state, x)`, and up to 256 numbers of the output
        of each layer, under names that begin with "<golden>/"; `load_weights(..., golden=model)`
        compares them. The tree is params, `{"params": params, "state": state}`, or a run.

    Raises:
      TypeError: golden is not a layer and an array.
      ValueError: a pattern matches no path.
      OSError: the folder does not exist, the file cannot be written, or the disk is full. An
        existing file is then unchanged.
      PathError: two leaves have the same path, or safetensors does not have a leaf's dtype (for
        example int4 or complex128).

    Example:
      >>> import tempfile
      >>> from fdl.optim import adam
      >>> from fdl.train import start
      >>> run = start({"w": jnp.ones(2)}, adam(0.1), seed=7)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_weights(f"{folder}/run.safetensors", run)
      ...     again = load_weights(f"{folder}/run.safetensors", run)
      >>> again.params, int(again.seed)
      ({'w': Array([1., 1.], dtype=float32)}, 7)

    Source: the safetensors format: the length of the header in 8 bytes, a JSON header, and the
    bytes of the tensors. Reading such a file never runs code from it.
    """
    tensors, notes = {}, {}
    leaves = paths.leaves(tree)
    for path in _picked("save_weights", leaves, only):
        leaf = leaves[path]
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            notes[_KEY + path] = str(leaf.dtype)
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            leaf = as_array("save_weights", path, leaf)
        if path.startswith(PREFIX):
            raise paths.PathError(
                f"expected a path that does not begin with {PREFIX!r}, which golden outputs have, "
                f"got {path!r}; rename this leaf",
                layer="save_weights",
            )
        tensors[path] = leaf
    if golden is not None:
        tensors |= golden_arrays("save_weights", tree, golden)
    write_tensors("save_weights", file, tensors, notes)


def as_array(who: str, path: str, leaf: Any) -> Any:
    """A leaf as an array in its own dtype; a Python number gets the dtype that JAX gives it."""
    has_dtype = hasattr(leaf, "dtype") and not isinstance(leaf, jax.ShapeDtypeStruct)
    return (as_arrays if has_dtype else to_jax)(leaf, who, f"the leaf at {path!r}")


def write_tensors(
    who: str, file: str | os.PathLike[str], tensors: dict[str, Any], notes: dict[str, str]
) -> None:
    """Writes arrays by name to a safetensors file, with notes in the metadata of its header."""
    for path, leaf in tensors.items():
        _check_leaf(who, path, leaf)
    tensors = dict(sorted(tensors.items(), key=lambda item: (_rank(item[1]), item[0])))
    header, size = _header(tensors, notes)
    with replacing(file, who, len(header) + size) as out:
        out.write(header)
        for leaf in tensors.values():
            out.write(_bytes_of(leaf))


def load_weights(
    file: str | os.PathLike[str],
    like: Any,
    *,
    only: str | Sequence[str] | None = None,
    golden: Layer | None = None,
) -> Any:
    """Loads a file from `save_weights`, which must have the paths, shapes and dtypes of `like`.

    If `only` is given, only the leaves that match a pattern are read and checked; all other leaves
    get their value from `like`. For example, `only="body/**"` loads the body of a network that was
    trained for a different task, and keeps the new head of `like`.

    Args:
      file: path of a safetensors file.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s, for example the params of `model.init`,
        or the result of `jax.eval_shape(model.init, key, x)`.
      only: selects the leaves to read: a path pattern such as `"body/**"`, or a sequence of
        patterns. None reads all leaves. Leaves that no pattern matches must be arrays in `like`;
        they are not read, so the file need not have them.
      golden: the model of these weights. The golden inputs of the file go through it, and its
        outputs must be those of the file, up to rounding. None does not read them.

    Returns:
      A new pytree of JAX arrays with the structure of `like` and the values of the file. While
      loading, the peak memory is the result plus one array.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: golden is not a layer.
      PathError: a leaf is not read, and `like` has only its shape, not an array.
      ValueError: a pattern matches no path; the file is damaged or is not a safetensors file; or
        the file does not fit `like` (the message lists each path that is missing, unexpected, or
        has a different shape or dtype). A 64-bit array in the file does not fit a 32-bit leaf;
        JAX has 64-bit leaves only if `jax_enable_x64` is set. Or the file has no golden outputs, or
        golden computes others; the message then names the first layer that differs.

    Example:
      >>> import tempfile
      >>> like = {"body": {"w": jnp.zeros(2)}, "head": {"w": jnp.zeros(3)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_weights(f"{folder}/w", {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(9)}})
      ...     load_weights(f"{folder}/w", like, only="body/**")
      {'body': {'w': Array([1., 1.], dtype=float32)}, 'head': {'w': Array([0., 0., 0.], ...)}}
    """
    leaves = paths.leaves(like)
    picked = _picked("load_weights", leaves, only)
    found, start = read_header(file)
    extra = {name: found.pop(name) for name in list(found) if name.startswith(PREFIX)}
    if only is not None:
        # Paths of the file that no pattern matches are not compared with `like`.
        found = {path: info for path, info in found.items() if _is_picked(path, only)}
    of = "of this model" if only is None else f"that {only!r:.200} selects"
    _check_fit(file, found, {path: _kind(leaves[path]) for path in picked}, of)
    kept = set(leaves).difference(picked)
    with open(file, "rb") as stream:

        def read(keys: Any, leaf: Any) -> jax.Array:
            path = paths.path_of(keys)
            if path in kept:
                return _kept(path, leaf)
            array = jnp.asarray(_read(file, stream, start, found[path]))
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                impl = jax.random.key_impl(jnp.zeros((), leaf.dtype))
                return jax.random.wrap_key_data(array, impl=impl)
            return array

        result = jax.tree_util.tree_map_with_path(read, like)
        if golden is not None:
            kept_outputs = {name: _read(file, stream, start, extra[name]) for name in extra}
            check_golden(file, kept_outputs, result, golden)
        return result


def _picked(who: str, leaves: dict[str, Any], only: str | Sequence[str] | None) -> list[str]:
    """The paths that a pattern in `only` matches; all paths if `only` is None."""
    if only is None:
        return list(leaves)
    patterns = _patterns(only)
    if not patterns or not all(isinstance(each, str) for each in patterns):
        raise ValueError(
            f"{who}: expected `only` to be a path pattern, or several, got {only!r:.200}; pass "
            "a pattern such as 'body/**', or leave `only` out to select all leaves"
        )
    try:
        return paths.pick(leaves, patterns)
    except ValueError as error:
        error.args = (f"{who}: {error}",)
        raise


def _patterns(only: str | Sequence[str]) -> list[Any]:
    return [only] if isinstance(only, str) else list(only) if isinstance(only, Iterable) else []


def _is_picked(path: str, only: str | Sequence[str]) -> bool:
    return any(paths.matches(pattern, path) for pattern in _patterns(only))


def _kept(path: str, leaf: Any) -> jax.Array:
    """The JAX array of a leaf that is not read from the file; raises if the leaf is only a shape.

    Raises:
      PathError: the leaf is a `jax.ShapeDtypeStruct`.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise paths.PathError(
            "expected `like` to have arrays for the leaves that `only` does not match, got a shape "
            f"at {path!r}; pass the params from model.init as `like`, or let a pattern in `only` "
            "match this path",
            layer="load_weights",
        )
    return to_jax(leaf, "load_weights", f"the leaf at {path!r}")


def _check_leaf(who: str, path: str, leaf: Any) -> None:
    """Raises unless safetensors can write the leaf and its path."""
    masked = "masked " if isinstance(leaf, np.ma.MaskedArray) else ""
    got = f"{masked}{leaf.dtype} {list(leaf.shape)} at {path!r}"
    if masked or leaf.dtype.name not in _CODES:
        raise paths.PathError(
            f"expected a dtype that safetensors has, got {got}; convert the array with astype, or "
            "leave it out",
            layer=who,
        )
    if _bits(leaf.dtype.name) * leaf.size % 8:
        raise paths.PathError(
            f"expected an even number of {leaf.dtype} values, because a byte holds two, got {got}; "
            "convert the array with astype",
            layer=who,
        )
    if path == "__metadata__" or any("\ud800" <= each <= "\udfff" for each in path):
        raise paths.PathError(
            f"expected a path that safetensors can write, got {path!r}; rename this leaf",
            layer=who,
        )


def _rank(leaf: Any) -> int:
    return _ORDER.index(_CODES[leaf.dtype.name])


def _bits(name: str) -> int:
    return 4 if name == "float4_e2m1fn" else 8 * np.dtype(name).itemsize


def _header(tensors: dict[str, Any], notes: dict[str, str]) -> tuple[bytes, int]:
    """(the bytes before the first tensor, the total number of bytes of all tensors)."""
    header: dict[str, Any] = {"__metadata__": notes} if notes else {}
    end = 0
    for path, leaf in tensors.items():
        begin, end = end, end + leaf.size * _bits(leaf.dtype.name) // 8
        code, shape = _CODES[leaf.dtype.name], list(leaf.shape)
        header[path] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _bytes_of(leaf: Any) -> memoryview:
    array = np.asarray(leaf)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    raw = array.reshape(-1).view(np.uint8)
    return (raw[0::2] | raw[1::2] << 4 if _bits(array.dtype.name) == 4 else raw).data


def read_header(file: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """(path -> {"dtype", "shape", "data_offsets", "kind"}, the file offset of the first tensor)."""
    from safetensors import SafetensorError, safe_open

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _not_whole(file, "a header with the same name twice")
        return found

    if os.path.isdir(file):
        raise _not_whole(file, "a folder")
    try:
        # safe_open checks the header and the size of the file.
        with safe_open(file, framework="np"), open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size), object_pairs_hook=once)
    except SafetensorError as error:
        raise _not_whole(file, error) from error
    notes = header.pop("__metadata__", None) or {}
    for path, info in header.items():
        shape = info["shape"]
        info["kind"] = f"{NAMES.get(info['dtype'], info['dtype'])} {shape}"
        note = notes.get(_KEY + path)
        if note and note.startswith("key<") and info["dtype"] == "U32" and shape:
            info["kind"] = f"{note} {shape[:-1]}"
    return header, 8 + size


def _not_whole(file: str | os.PathLike[str], got: Any) -> ValueError:
    return ValueError(
        f"{file}: expected a complete safetensors file, got {got}; download it or save it again"
    )


def _check_fit(
    file: str | os.PathLike[str], found: dict[str, dict[str, Any]], wanted: dict[str, str], of: str
) -> None:
    """Raises unless the file has the wanted paths, with the wanted dtypes and shapes."""
    wrong = [f"missing: {path} {kind}" for path, kind in wanted.items() if path not in found]
    wrong += [f"unexpected: {path} {found[path]['kind']}" for path in found if path not in wanted]
    for path, kind in wanted.items():
        if path in found and kind != (got := found[path]["kind"]):
            line = f"different: {path}, expected {kind}, got {got}"
            dtype, _, shape = got.partition(" ")
            narrowed = jax.dtypes.canonicalize_dtype(np.int64) == np.int32
            if narrowed and f"{dtype.replace('64', '32')} {shape}" == kind:
                line += "; to load 64-bit arrays, call jax.config.update('jax_enable_x64', True)"
            wrong.append(line)
    if wrong:
        raise ValueError(
            f"{file}: expected the {len(wanted)} arrays {of}, got a file that differs at "
            f"{len(wrong)} paths; load it into the model that it was saved from\n  "
            + "\n  ".join(wrong)
        )


def _read(
    file: str | os.PathLike[str], stream: BufferedReader, start: int, tensor: dict[str, Any]
) -> np.ndarray:
    """Reads one tensor from the file, into a NumPy array."""
    begin, end = tensor["data_offsets"]
    raw = np.empty(end - begin, np.uint8)
    stream.seek(start + begin)
    if stream.readinto(raw.data) != raw.size:
        raise _not_whole(file, "a file that became shorter during reading")
    if tensor["dtype"] == "F4":
        raw = np.stack([raw & 15, raw >> 4], 1)
    dtype = np.dtype(NAMES[tensor["dtype"]])
    array = raw.astype(bool) if dtype.kind == "b" else raw.reshape(-1).view(dtype.newbyteorder("<"))
    return array.astype(dtype, copy=False).reshape(tensor["shape"])


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)} {list(np.shape(leaf))}"
