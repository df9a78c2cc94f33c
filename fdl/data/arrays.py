"""Checks and conversions of data: a pytree of arrays [N, ...], such as `(x, y)` or a dict."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import described, fitting, kind
from fdl.ops.sharding import on_host

SAMPLED_ROWS = 64  # the largest number of examples that `fingerprint` hashes
ALIGNMENT = 64  # bytes; `aligned` arrays begin at a multiple, so JAX on CPU does not copy them
_NUMBERS = "numbers of a dtype that JAX has"
MOST_NAMED = 8  # the largest number of paths or columns that an error message lists


class Split(NamedTuple):
    """A data set in two parts, one for training and one for testing.

    Args:
      train: a pytree of arrays [N, ...], such as `(x, y)`.
      test: a pytree of arrays [M, ...], with the same structure but different examples.

    Example:
      >>> split = Split(train=(np.ones((3, 2)), np.ones(3)), test=(np.ones((1, 2)), np.ones(1)))
      >>> length(split.train)
      3
    """

    train: Any
    test: Any

    def __repr__(self) -> str:
        parts = (f"{name} {described(part)}" for name, part in zip(self._fields, self, strict=True))
        return f"<Split of {', '.join(parts)}>"


def length(data: Any) -> int:
    """N, the number of examples.

    Args:
      data: a pytree of arrays [N, ...]. An array is anything that NumPy can convert: an array of
        NumPy or JAX, a tensor of torch, or a table of pandas or polars whose columns are numbers.

    Returns:
      N, an int >= 1.

    Raises:
      ValueError: data has no arrays or no examples, has a list of numbers where an array belongs,
        or has arrays of different lengths. The message names the paths.

    Example:
      >>> length({"x": np.ones((5, 2)), "y": np.ones(5)})
      5
    """
    _refuse_lists(data, "data", "")
    lengths = {path: _shape(path, leaf)[:1] for path, leaf in _named(data)}
    if not lengths:
        raise ValueError(
            "data: expected a pytree of arrays [N, ...], got no array; pass data such as (x, y)"
        )
    for path, each in lengths.items():
        if each != next(iter(lengths.values())) or not each:
            shapes = [
                f"{paths.quoted(path)}: {list(_shape(path, leaf))}" for path, leaf in _named(data)
            ]
            more = f" and {len(shapes) - MOST_NAMED} more" if len(shapes) > MOST_NAMED else ""
            got = ", ".join(shapes[:MOST_NAMED]) + more
            raise ValueError(
                f"data: expected arrays of the same length [N, ...], got {got}; every example "
                "needs one row in every array"
            )
        if each == (0,):
            raise ValueError(
                f"data: expected at least one example, got none at {paths.quoted(path)}; check the "
                "code that selects the rows"
            )
    return next(iter(lengths.values()))[0]


def check_data(data: Any) -> int:
    """Checks that all numbers are finite, and returns N, the number of examples.

    Args:
      data: a pytree of arrays [N, ...], in any form that `length` accepts.

    Returns:
      N, an int >= 1.

    Raises:
      ValueError: as in `length`; or a leaf cannot be converted to an array, or a number is NaN or
        infinite. In the last case, the message gives the path, the first such row, and the number
        of such rows.

    Example:
      >>> check_data((np.array([1.0, np.nan]), np.array([0, 1])))
      Traceback (most recent call last):
      ...
      ValueError: data at '0': expected finite numbers, got nan at row 1 (1 of 2 rows ...
    """
    examples = length(data)
    for path, leaf in _named(data):
        # An array with a finite sum is skipped, because all its numbers are finite. Any other sum
        # may have overflowed, so each number is checked below. The sum of a JAX array is computed
        # on its device.
        leaf = leaf if isinstance(leaf, jax.Array) else _read(leaf, _place(path), "")
        with np.errstate(over="ignore", invalid="ignore"):
            if not jax.numpy.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf.sum()):
                continue
        leaf = np.asarray(leaf)
        bad = ~np.isfinite(leaf.reshape(examples, -1)).all(1)
        if bad.any():
            row = int(np.argmax(bad))
            value = leaf[row][~np.isfinite(leaf[row])].flat[0]
            raise ValueError(
                f"{_place(path)}: expected finite numbers, got {value} at row {row} "
                f"({int(bad.sum())} of {examples} rows are not finite); remove or correct these "
                "rows"
            )
    return examples


def fingerprint(data: Any) -> dict[str, Any]:
    """Identifies a data set by its size, shapes, dtypes, and a hash of a few examples.

    Args:
      data: a pytree of arrays [N, ...].

    Returns:
      A dict with the number of examples, the dtype and shape of each array, and the SHA-256 of at
      most 64 evenly spaced examples.
    """
    examples = length(data)
    rows = np.unique(np.linspace(0, examples - 1, min(examples, SAMPLED_ROWS)).astype(int))
    sample = hashlib.sha256()
    arrays = paths.leaves(data)
    for leaf in arrays.values():
        sample.update(np.ascontiguousarray(on_host(leaf[rows])).tobytes())
    kinds = {path: kind(leaf) for path, leaf in arrays.items()}
    return {"examples": examples, "arrays": kinds, "sha256_of_sample": sample.hexdigest()}


def as_arrays(data: Any, who: str = "", what: str = "") -> Any:
    """The data with tensors and tables converted to NumPy arrays, in their own dtypes.

    JAX arrays and `jax.ShapeDtypeStruct`s are returned unchanged. Without `who`, an error begins
    with the path of the leaf; otherwise with `who`, the function that the user called.
    """

    def read(keys: Any, leaf: Any) -> Any:
        stays = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        stays = stays or hasattr(leaf, "__jax_array__")
        path = paths.path_of(keys)
        place = (who, _named_at(what, path)) if who else (_place(path), "")
        return leaf if stays else _read(leaf, *place)

    return jax.tree_util.tree_map_with_path(read, data)


def to_jax(tree: Any, who: str, what: str = "data") -> Any:
    """Converts a pytree to JAX arrays; raises if a number would overflow.

    By default, JAX converts 64-bit numbers to 32 bits. The int64 number 2**32 + 5 would become 5,
    and the float64 number 1e300 would become infinity, so these two raise an error. A float64
    number that is only rounded does not raise an error.

    Args:
      tree: a pytree of arrays, in any form that `length` accepts. JAX arrays, traced or not, stay
        unchanged.
      who: the name of the function that the user called, for the error message.
      what: the name of the argument, for the error message.

    Returns:
      A pytree of JAX arrays with the structure of `tree`.

    Raises:
      PathError: a leaf is not an array of numbers (for example a list of numbers, or a table with
        a column of text), or a number would overflow; the message gives the index of that number.
    """

    def convert(keys: Any, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__"):
            return jnp.asarray(leaf)
        path = paths.path_of(keys)
        named = _named_at(what, path)
        found = fitting(who, named, _read(leaf, who, named))
        if isinstance(found, jax.Array):
            return found
        copy = aligned(found.shape, found.dtype.newbyteorder("="))
        copy[...] = found
        # Not `jnp.asarray`, which would compile a program for each shape.
        return jax.device_put(copy)

    _refuse_lists(tree, who, what)
    return jax.tree_util.tree_map_with_path(convert, tree)


def _refuse_lists(tree: Any, who: str, what: str) -> None:
    """Raises if the tree has a list of numbers, because each number would be a separate leaf."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_list_of_numbers):
        if is_list_of_numbers(leaf):
            path = paths.path_of(keys)
            who, named = (who, _named_at(what, path)) if what else (_place(path), "")
            kind = type(leaf).__name__
            raise paths.PathError(
                f"expected {_as(named, 'an array')}, got a {kind} of {len(leaf)} {_kind(leaf[0])}; "
                "convert it with np.asarray",
                layer=who,
            )


def _named_at(what: str, path: str) -> str:
    return f"{what} at {paths.quoted(path)}" if path else what


def _place(path: str) -> str:
    return f"data at {paths.quoted(path)}" if path else "data"


def _as(named: str, form: str) -> str:
    """What an error expects. `named` is empty if the error begins with the name of the leaf."""
    return f"{named} as {form}" if named else form


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialized array, which `jax.device_put` on CPU does not copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def is_list_of_numbers(node: Any) -> bool:
    """Whether a node is a list or tuple of numbers or strings, or a list of such lists."""
    if not isinstance(node, list | tuple) or hasattr(node, "_fields") or not node:
        return False
    first = node[0]
    if isinstance(first, list | tuple):
        # A tuple of lists may be (x, y), so it is not taken as one array. The message then names
        # the path of a list inside it.
        return isinstance(node, list) and is_list_of_numbers(first)
    return _is_single(first)


def _is_single(leaf: Any) -> bool:
    """Whether a leaf is a single number or string."""
    single = isinstance(leaf, complex | float | int | str | bytes | np.generic)
    return single or getattr(leaf, "shape", None) == ()


def _kind(first: Any) -> str:
    if isinstance(first, list | tuple):
        return f"{type(first).__name__}s"
    return "texts" if isinstance(first, str | bytes) else "numbers"


def _shape(path: str, leaf: Any) -> tuple[int, ...]:
    shape = getattr(leaf, "shape", None)
    return np.shape(_read(leaf, _place(path), "")) if shape is None else tuple(shape)


def _read(leaf: Any, who: str, named: str) -> np.ndarray:
    """Converts a leaf to a NumPy array; raises if it is text, an object or a masked array."""
    try:
        array = np.asanyarray(leaf)
        if array.dtype.kind == "O":
            array = _read_columns(leaf, array, who, named)
    except paths.PathError:
        raise
    except Exception as error:  # a tensor or table library may raise any type of error
        reason = str(error).partition("\n")[0]
        raise paths.PathError(
            f"expected {_as(named, 'an array that NumPy can read')}, got a {type(leaf).__name__} "
            f"({reason:.300}); convert it to NumPy first",
            layer=who,
        ) from error
    if array.dtype.kind == "O" and array.ndim == 0 and array[()] is leaf:
        raise paths.PathError(
            f"expected {_as(named, 'an array')}, got a {type(leaf).__name__}; pass arrays "
            "[N, ...], for example from np.asarray",
            layer=who,
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    masked = isinstance(array, np.ma.MaskedArray)
    try:
        jax.device_put(np.empty(0, "O" if masked else array.dtype))
    except (TypeError, ValueError) as error:
        kind = "masked " if masked else ""
        raise paths.PathError(
            f"expected {_as(named, _NUMBERS)}, got {kind}{array.dtype!s:.200} {list(array.shape)}; "
            "encode text and categories as integers, and replace masked values by numbers",
            layer=who,
        ) from error
    return array


def _read_columns(leaf: Any, array: np.ndarray, who: str, named: str) -> np.ndarray:
    """Converts a leaf that NumPy reads as an array of objects to an array of numbers, if possible.

    Raises:
      PathError: the leaf is a table with a column that is not of numbers.
    """
    if not (hasattr(leaf, "columns") and array.ndim == 2 and hasattr(leaf, "__getitem__")):
        return _read_column(leaf, array)
    columns = {name: _read_column(leaf[name], np.asarray(leaf[name])) for name in leaf.columns}
    strange = [name for name, column in columns.items() if column.dtype.kind not in "biuf"]
    if strange:
        more = f" and {len(strange) - MOST_NAMED} more" if len(strange) > MOST_NAMED else ""
        listed = ", ".join(f"{name!r:.60}" for name in strange[:MOST_NAMED]) + more
        raise paths.PathError(
            f"expected {_as(named, _NUMBERS)}, got a {type(leaf).__name__} "
            f"with other values in column{'s' * (len(strange) > 1)} {listed}; encode text and "
            "categories as integers, or leave these columns out",
            layer=who,
        )
    return np.stack(list(columns.values()), axis=1)


def _read_column(leaf: Any, array: np.ndarray) -> np.ndarray:
    """Converts a column to an array, even if NumPy reads its pandas dtype as objects."""
    dtype = getattr(leaf, "dtype", None)
    if array.dtype.kind == "O" and getattr(dtype, "kind", "O") in "biuf":
        return np.asarray(leaf, getattr(dtype, "numpy_dtype", None))
    return array


def _named(data: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of each leaf."""
    return list(paths.leaves(data).items())
