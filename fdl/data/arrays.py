"""Data are a pytree of arrays with one leading length: `(x, y)`, or a dict of your own names."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths

_CHUNK = 1 << 16


class Split(NamedTuple):
    """A data set in two parts, one to learn from and one to be tested on.

    Args:
      train: a pytree of arrays, as `(x, y)`.
      test: the same with other rows.

    Example:
      >>> split = Split(train=(np.ones((3, 2)), np.ones(3)), test=(np.ones((1, 2)), np.ones(1)))
      >>> length(split.train)
      3
    """

    train: Any
    test: Any


def length(data: Any) -> int:
    """N, how many examples there are.

    Args:
      data: a pytree of arrays [N, ...].

    Raises:
      ValueError: no arrays, no examples, or arrays of different lengths; names their paths.

    Example:
      >>> length({"x": np.ones((5, 2)), "y": np.ones(5)})
      5
    """
    lengths = {path: np.shape(leaf)[:1] for path, leaf in paths.leaves(data).items()}
    if not lengths:
        raise ValueError(
            "data: expected a pytree of arrays [N, ...], got no array at all; "
            "pass (x, y) or the like"
        )
    for path, each in lengths.items():
        if each != next(iter(lengths.values())) or not each:
            said = ", ".join(f"{path!r}: {list(np.shape(leaf))}" for path, leaf in _named(data))
            raise ValueError(
                f"data: expected arrays of one length [N, ...], got {said}; "
                "every example needs a row in each"
            )
        if each == (0,):
            raise ValueError(
                f"data: expected at least one example, got none at {path!r}; "
                "look at what chose the rows"
            )
    return next(iter(lengths.values()))[0]


def check_data(data: Any) -> int:
    """Looks through data once, before anything is trained on them.

    Args:
      data: a pytree of arrays [N, ...].

    Returns:
      N.

    Raises:
      ValueError: as `length`; also for a NaN or an infinity, with its path, row and count.

    Example:
      >>> check_data((np.array([1.0, np.nan]), np.array([0, 1])))
      Traceback (most recent call last):
      ...
      ValueError: data at '0': expected finite numbers, got nan at row 1 (1 of 2 rows ...
    """
    examples = length(data)
    for path, leaf in _named(data):
        # A finite sum has finite terms; one that overflows leaves it to the slower look. The sum of
        # a JAX array is taken where it is.
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        with np.errstate(over="ignore", invalid="ignore"):
            if not jax.numpy.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf.sum()):
                continue
        leaf = np.asarray(leaf)
        bad = ~np.isfinite(leaf.reshape(examples, -1)).all(1)
        if bad.any():
            row = int(np.argmax(bad))
            value = leaf[row][~np.isfinite(leaf[row])].flat[0]
            raise ValueError(
                f"data at {path!r}: expected finite numbers, got {value} at row {row} "
                f"({int(bad.sum())} of {examples} rows have such); drop or mend those rows"
            )
    return examples


def to_jax(tree: Any, who: str, what: str = "data") -> Any:
    """NumPy's arrays as JAX's, without a value that changes on the way.

    Where JAX has 32 bits for 64, as it does by default, an int64 of 2^32 + 5 would become 5 and a
    float64 of 1e300 infinity. Both are refused; the rounding of a float64 is not.

    Args:
      tree: a pytree of arrays. JAX's own, traced ones among them, pass untouched.
      who: the function that the user called, for the message.
      what: the argument's name, for the message.

    Returns:
      The same pytree of JAX arrays. Big-endian arrays become native ones.

    Raises:
      PathError: an array that is not of numbers, or a number that does not fit; names its place.

    Example:
      >>> to_jax(np.array([3, 2**32 + 5]), "predict", "x")
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: predict: expected x that int32 can hold, got 4294967301 at [1] of int64
        [2]; use smaller numbers, or 64 bits: jax.config.update('jax_enable_x64', True)
    """

    def convert(keys: Any, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__"):
            return jnp.asarray(leaf)
        array = np.asanyarray(leaf)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        path = paths.path_of(keys)
        named = f"{what} at {path!r}" if path else what
        try:
            dtype = jnp.asarray(np.empty_like(array, shape=0)).dtype
        except (TypeError, ValueError) as error:
            kind = "masked " if isinstance(array, np.ma.MaskedArray) else ""
            raise paths.PathError(
                f"expected {named} as numbers that JAX has, got {kind}{array.dtype} "
                f"{list(array.shape)}; encode text and categories as integers, fill what is masked",
                layer=who,
            ) from error
        at = None if dtype == array.dtype else _first_changed(array, dtype)
        if at is not None:
            raise paths.PathError(
                f"expected {named} that {dtype} can hold, got {array[at]} at {list(at)} of "
                f"{array.dtype} {list(array.shape)}; use smaller numbers, or 64 bits: "
                "jax.config.update('jax_enable_x64', True)",
                layer=who,
            )
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(convert, tree)


def _first_changed(array: np.ndarray, dtype: Any) -> tuple[int, ...] | None:
    """The index of the first value that overflows in a narrower dtype; a chunk at a time."""
    seen = 0
    iterate: Any = np.nditer  # its type stubs do not know "contig"
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for chunk in iterate(array, flags, ["readonly", "contig"], order="C", buffersize=_CHUNK):
        with np.errstate(over="ignore"):
            narrow = chunk.astype(dtype)
        if np.issubdtype(dtype, np.integer):
            changed = narrow != chunk
        else:
            real = chunk.real.dtype
            changed = np.isfinite(chunk.view(real)) & np.isinf(narrow.view(narrow.real.dtype))
            changed = changed.reshape(len(chunk), -1).any(1)
        if changed.any():
            return tuple(map(int, np.unravel_index(seen + int(changed.argmax()), array.shape)))
        seen += len(chunk)
    return None


def _named(data: Any) -> list[tuple[str, Any]]:
    return list(paths.leaves(data).items())
