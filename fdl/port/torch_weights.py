"""Weights from torch and to torch, by a table of rules between paths and names."""

import dataclasses
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.checks import OptionError, kind
from fdl.data.arrays import aligned
from fdl.port.default_names import default_names
from fdl.port.names import Pair, Table, parse_table
from fdl.port.tensor_files import tensors_of
from fdl.port.weights import as_array, write_tensors

Names = Mapping[str | None, str | Sequence[str]]
_LINE = 64  # the bytes of a line in the processor's cache
_AT_ONCE = 1 << 20  # bytes; a smaller matrix stays in the processor's cache
_THREADS = min(4, os.cpu_count() or 1)  # that copy a large array


@dataclasses.dataclass(frozen=True)
class TorchReport:
    """How tensors of torch fit a tree. It is true if they fit; `print` shows all of it.

    Args:
      missing: names that a rule needs and the tensors lack, each with its path.
      unexpected: names of tensors that no rule reads or leaves out.
      different: tensors of another shape or dtype than their path.
      rules: for each line of the table, how many paths it fills from how many tensors.

    Example:
      >>> print(torch_report({"w": jnp.ones(2)}, {"a": jnp.ones(2)}, {"a": "v"}))
      missing: v for a float32 [2]
      unexpected: w float32 [2]
      rule 'a': 'v' fills 1 path from 0 tensors
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    different: tuple[str, ...]
    rules: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences()

    def __str__(self) -> str:
        return "\n".join([*self.differences(), *(f"rule {each}" for each in self.rules)])

    def differences(self) -> list[str]:
        """A line for each name that is missing, unexpected or different."""
        lines = [f"missing: {each}" for each in self.missing]
        lines += [f"unexpected: {each}" for each in self.unexpected]
        return lines + [f"different: {each}" for each in self.different]


def from_torch(source: Any, like: Any, names: Names | None = None, *, cast: bool = False) -> Any:
    """Weights of torch as a tree of fdl, by a table of rules.

    A table is a dict from paths to names. These are all forms of a rule:

    | path | name in torch | what it does |
    |---|---|---|
    | `"norm/scale"` | `"ln.weight"` | takes the tensor as it is |
    | `"block/*/norm/scale"` | `"h.*.ln.weight"` | for every block; `*` is any text in a level |
    | `"up/w"` | `"fc1.weight: o i -> i o"` | rearranges the axes, written as in einops |
    | `"conv/w"` | `"conv.weight: o i h w -> h w i o"` | the kernel of a convolution |
    | `"patch/w"` | `"p.weight: o c h w -> (h w c) o, h=4 w=4"` | merges axes of given sizes |
    | `"attn/{q,k,v}/w"` | `"qkv.weight: o i -> i o | split 1"` | splits axis 1 into several paths |
    | `"attn/{q,k}/b"` | `"{q_proj,k_proj}.bias"` | one rule for each of several names |
    | `"qkv/w"` | `"{q,k,v}.weight: o i -> i o | join 1"` | joins tensors of equal shapes, axis 1 |
    | `"lstm/input/b"` | `"bias_ih_l0 + bias_hh_l0"` | adds the tensors |
    | `"embed/w"` | `"wte.weight = head.weight"` | one tensor with two names, which must be equal |
    | `None` | `["h.*.attn.mask"]` | leaves out these names of torch |

    Each rule works in both directions, so `to_torch` takes the same table. All names and shapes are
    checked before anything is read.

    Args:
      source: a state dict of torch (or any dict of arrays by name); or a path, as in
        `read_tensors`. A file of torch is read without torch, and no code of it is run.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s, for example the params of `model.init`,
        or `{"params": params, "state": state}` for networks with batch norm.
      names: the table. None uses `torch_names(source, like)`, which works if the pairs are
        unambiguous. It cannot see a network that flattens images without a convolution before
        that, and would give wrong results: write a table with the rule for merged axes.
      cast: True converts floating tensors to the dtype of `like`, before any are added. False
        raises if they differ.

    Returns:
      A new pytree of JAX arrays with the structure of `like`.

    Raises:
      FileNotFoundError, ValueError: as in `read_tensors`.
      ValueError: a rule cannot be read or matches no path; a path has no rule, or two; or the
        tensors do not fit. The message lists every name that is missing, unexpected, or has a
        different shape or dtype.

    Example:
      >>> import fdl
      >>> layer = fdl.dense(2)
      >>> like, _ = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> names = {"w": "fc.weight: o i -> i o", "b": "fc.bias"}
      >>> source = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(2, np.float32)}
      >>> params = from_torch(source, like, names)
      >>> params["w"].shape, to_torch(params, names)["fc.weight"].shape
      ((3, 2), (2, 3))

    Source: `torch.nn.Module.load_state_dict`; for the axes: Rogozhnikov 2022, "Einops: Clear and
    Reliable Tensor Manipulations with Einstein-like Notation".
    """
    tensors = tensors_of("from_torch", source)
    names = default_names("from_torch", tensors, paths.leaves(like)) if names is None else names
    of = source if isinstance(source, str | os.PathLike) else "a state dict"
    return from_tensors("from_torch", tensors, str(of), like, names, cast)


def from_tensors(
    who: str, tensors: dict[str, np.ndarray], of: str, like: Any, names: Names, cast: bool
) -> Any:
    """A tree of fdl from tensors by name; raises with every name that does not fit."""
    leaves = paths.leaves(like)
    table = parse_table(who, names)
    pairs = table.pairs(who, leaves)
    report = _report(table, pairs, tensors, leaves, cast)
    if not report:
        lines = report.differences()
        raise OptionError(
            who,
            f"expected tensors that fit the {len(leaves)} paths of like, got {of} that differs at "
            f"{len(lines)} names; correct names, or pass the params of another model\n  "
            + "\n  ".join(lines),
        )
    made: dict[str, jax.Array] = {}
    for pair in pairs:
        given = _given(pair, tensors)
        if pair.rule.joined == "+":  # the sum of halves would be rounded before the cast
            given = [array.astype(_dtype(leaves[pair.paths[0]]), copy=False) for array in given]
        parts = pair.rule.parts(given, _sizes(pair, leaves))
        for path, part in zip(pair.paths, parts, strict=True):
            made[path] = jax.device_put(_copied(part, _dtype(leaves[path])))
    return paths.tree(made, like)


def to_torch(
    params: Any, names: Names, *, file: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """A tree of fdl as tensors with torch's names and layouts: the inverse of `from_torch`.

    Args:
      params: a pytree of arrays.
      names: the table, as in `from_torch`. Names that it leaves out are not written. A tensor that
        several names are added up to goes to the first name; the others get -0.0. Tied names all
        get the tensor.
      file: if given, the tensors are also written to this safetensors file, which torch and Hugging
        Face read. The file appears either complete or not at all.

    Returns:
      A dict, name -> NumPy array, in the dtypes of `params`: NumPy's float64 stays float64, also
      where JAX has only 32 bits. `from_torch` of it gives the bits of `params` again. Torch takes
      the arrays with `{name: torch.from_numpy(array) for name, array in tensors.items()}`.

    Raises:
      ValueError: a rule cannot be read or matches no path; a path has no rule, or two; or two paths
        give different tensors of one name.
      OSError, PathError: as in `save_weights`.

    Example:
      >>> params = {"attend": {"q": jnp.zeros(2), "k": jnp.ones(2)}}
      >>> to_torch(params, {"attend/{q,k}": "attn.qk | split 0"})["attn.qk"]
      array([0., 0., 1., 1.], dtype=float32)

    Source: see `from_torch`.
    """
    tensors = to_tensors("to_torch", params, names)
    if file is not None:
        write_tensors("to_torch", file, tensors, {"format": "pt"})
    return tensors


def to_tensors(who: str, params: Any, names: Names) -> dict[str, np.ndarray]:
    """The tensors by name that the rules make of a tree: the inverse of `from_tensors`."""
    leaves = {path: as_array(who, path, leaf) for path, leaf in paths.leaves(params).items()}
    tensors: dict[str, np.ndarray] = {}
    for pair in parse_table(who, names).pairs(who, leaves):
        _check_parts(who, pair, leaves)
        whole = pair.rule.whole([np.asarray(leaves[path]) for path in pair.paths])
        for name, array in zip(pair.names, whole, strict=True):
            if name in tensors and not _same(tensors[name], array):
                raise OptionError(
                    who,
                    f"expected one tensor for each name, got two that differ for {name!r}; give "
                    "the paths different names",
                )
            tensors[name] = np.array(array, order="C")
    return tensors


def torch_report(
    source: Any, like: Any, names: Names | None = None, *, cast: bool = False
) -> TorchReport:
    """How tensors of torch fit a tree, and what each rule would do; nothing is converted.

    Args:
      source, like, names, cast: as in `from_torch`.

    Returns:
      A `TorchReport`, which is true if `from_torch` would succeed. Print it to read it.

    Raises:
      FileNotFoundError, ValueError: as in `from_torch`, but not because of tensors that do not fit.

    Example:
      >>> like = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
      >>> names = {"w": "fc.weight: o i -> i o", "b": "fc.bias"}
      >>> source = {"fc.weight": jnp.ones((2, 3)), "b": jnp.ones(2)}
      >>> print(torch_report(source, like, names))
      missing: fc.bias for b float32 [2]
      unexpected: b float32 [2]
      rule 'w': 'fc.weight: o i -> i o' fills 1 path from 1 tensor
      rule 'b': 'fc.bias' fills 1 path from 0 tensors
    """
    tensors = tensors_of("torch_report", source)
    leaves = paths.leaves(like)
    names = default_names("torch_report", tensors, leaves) if names is None else names
    table = parse_table("torch_report", names)
    return _report(table, table.pairs("torch_report", leaves), tensors, leaves, cast)


def torch_names(source: Any, like: Any) -> dict[str | None, str | list[str]]:
    """The table of rules for a source and a tree whose pairs are unambiguous.

    A layer of fdl and a module of torch make a pair if their shapes fit only each other. All layers
    and modules of the same shapes make pairs if all their names are equal apart from `/` and `.`,
    or if their names differ only in numbers (then they are paired in the order of the numbers).
    The kinds are dense, embedding, convolution, norm (also batch norm) and LSTM.

    Torch flattens an image channels first, and fdl channels last. A dense layer that may read a
    flattened image is an error if the network has convolutions. Without convolutions the shapes do
    not show it: if images go straight into `flatten` and `dense`, write the rule for the first
    dense layer, such as `"fc.weight: o (c h w) -> (h w c) o, h=28 w=28"`.

    Args:
      source, like: as in `from_torch`. For the running statistics of batch norm, `like` is
        `{"params": params, "state": state}`.

    Returns:
      A table, as `from_torch` takes it. Print it, correct it, and pass it on as `names`.

    Raises:
      FileNotFoundError, ValueError: as in `read_tensors`.
      ValueError: a layer has no module that fits, or several; the message lists what is left on
        both sides, so that you can write the rules. Or a dense layer may read a flattened image.

    Example:
      >>> source = {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)}
      >>> torch_names(source, {"dense_0": {"w": np.ones((3, 2)), "b": np.ones(2)}})
      {'dense_0/w': 'fc.weight: o i -> i o', 'dense_0/b': 'fc.bias'}
    """
    return default_names("torch_names", tensors_of("torch_names", source), paths.leaves(like))


def _report(
    table: Table,
    pairs: list[Pair],
    tensors: dict[str, np.ndarray],
    leaves: dict[str, Any],
    cast: bool,
) -> TorchReport:
    missing, different, used = [], [], set()
    done: dict[str, list[int]] = {rule.line: [0, 0] for rule in table.rules}
    for pair in pairs:
        wanted = ", ".join(f"{path} {_kind(leaves[path])}" for path in pair.paths)
        lacking = [name for name in pair.names if name not in tensors]
        if pair.rule.joined == "=" and len(lacking) < len(pair.names):
            lacking = []
        missing += [f"{name} for {wanted}" for name in lacking]
        given = [name for name in pair.names if name in tensors]
        used.update(given)
        done[pair.rule.line][0] += len(pair.paths)
        done[pair.rule.line][1] += len(given)
        if not lacking:
            different += _differences(pair, tensors, leaves, cast)
    unexpected = [
        f"{name} {kind(array)}"
        for name, array in tensors.items()
        if name not in used and not table.leaves_out(name)
    ]
    rules = [
        f"{line} fills {filled} path{'s' * (filled != 1)} from {taken} tensor{'s' * (taken != 1)}"
        for line, (filled, taken) in done.items()
    ]
    return TorchReport(tuple(missing), tuple(unexpected), tuple(different), tuple(rules))


def _differences(
    pair: Pair, tensors: dict[str, np.ndarray], leaves: dict[str, Any], cast: bool
) -> list[str]:
    """A line for each tensor of a pair that does not fit its paths."""
    wanted = ", ".join(f"{path} {_kind(leaves[path])}" for path in pair.paths)
    names = [name for name in pair.names if name in tensors]
    shape, dtypes = _tensor_shape(pair, leaves), {_dtype(leaves[path]) for path in pair.paths}
    lines = []
    for name in names:
        array = tensors[name]
        floating = all(jnp.issubdtype(each, jnp.floating) for each in (*dtypes, array.dtype))
        same = {array.dtype.newbyteorder("=")} == dtypes or (cast and floating)
        if not same or shape is None or pair.rule.shape(array.shape) != shape:
            lines.append(f"{wanted}, got {name} {kind(array)} by the rule {pair.rule.line}")
    if pair.rule.joined == "=" and not lines:
        first, *others = names
        lines += [
            f"{wanted}, tied, got other numbers in {other} than in {first}"
            for other in others
            if not _same(tensors[first], tensors[other])
        ]
    return lines


def _tensor_shape(pair: Pair, leaves: dict[str, Any]) -> tuple[int, ...] | None:
    """The shape of each tensor of a pair, after its axes are rearranged; None if none fits."""
    shapes = [tuple(np.shape(leaves[path])) for path in pair.paths]
    first, axis = shapes[0], pair.rule.axis
    count = len(pair.names) if pair.rule.joined == "join" else 1
    if len(shapes) == count == 1:
        return first
    if not -len(first) <= axis < len(first):
        return None
    axis %= len(first)
    others = {(*shape[:axis], 0, *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1 or len({len(shape) for shape in shapes}) > 1:
        return None
    size, left = divmod(sum(shape[axis] for shape in shapes), count)
    return None if left else (*first[:axis], size, *first[axis + 1 :])


def _check_parts(who: str, pair: Pair, leaves: dict[str, Any]) -> None:
    """Raises unless the paths of a pair fit side by side, and fit the axes of its rule."""
    shape, rule = _tensor_shape(pair, leaves), pair.rule
    back = shape if rule.axes is None or shape is None else rule.axes.inverse().shape(shape)
    dtypes = {leaves[path].dtype for path in pair.paths}
    keys = any(jnp.issubdtype(dtype, jax.dtypes.prng_key) for dtype in dtypes)
    if back is None or len(dtypes) > 1 or keys:
        got = ", ".join(f"{path} {kind(leaves[path])}" for path in pair.paths)
        raise OptionError(
            who, f"expected arrays that fit the rule {rule.line}, got {got}; correct names"
        )


def _given(pair: Pair, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [tensors[name] for name in pair.names if name in tensors]


def _sizes(pair: Pair, leaves: dict[str, Any]) -> list[int]:
    """The sizes of the parts along the axis of the split; one number if there is no split."""
    if len(pair.paths) == 1:
        return [0]
    return [np.shape(leaves[path])[pair.rule.axis] for path in pair.paths]


def _dtype(leaf: Any) -> Any:
    """The dtype that the leaf has in JAX: 64 bits become 32 unless `jax_enable_x64` is set."""
    return jax.dtypes.canonicalize_dtype(jnp.result_type(leaf), allow_extended_dtype=True)


def _kind(leaf: Any) -> str:
    return f"{_dtype(leaf)} {list(np.shape(leaf))}"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """True if two arrays have the same shape, dtype and bits."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    place = "__array_interface__"
    if one.strides == other.strides and getattr(one, place) == getattr(other, place):
        return True  # the same memory
    bits = f"u{one.itemsize}" if one.itemsize <= 8 else "u1"
    left, right = (np.ascontiguousarray(each).reshape(-1).view(bits) for each in (one, other))
    return bool(np.array_equal(left, right))


def _memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array for JAX to keep. Large ones are pages of their own.

    NumPy would ask for huge pages. To make room for them beside a large file, Linux moves other
    pages, which took 2 s for 1 GB; all the rest of reading takes 0.6 s.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _AT_ONCE or not hasattr(mmap, "MAP_PRIVATE"):  # Windows has no such flag
        return aligned(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8).view(dtype).reshape(shape)


def _copied(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy that is contiguous, and aligned so that JAX need not copy it again."""
    copy = _memory(array.shape, dtype)
    if array.nbytes < _AT_ONCE or not array.ndim:
        copy[...] = array
        return copy
    # Several threads, because most of the time is the kernel's, which makes the pages.
    turned = array.ndim == 2 and not array.flags.c_contiguous
    form = _copy_in_tiles if turned else _copy
    size = -(-len(array) // _THREADS)
    parts = [slice(begin, begin + size) for begin in range(0, len(array), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda rows: form(copy[rows], array[rows]), parts):
            pass  # an error of a thread is raised here
    return copy


def _copy(copy: np.ndarray, array: np.ndarray) -> None:
    copy[...] = array


def _copy_in_tiles(copy: np.ndarray, array: np.ndarray) -> None:
    """Copies a transposed matrix in tiles of whole lines that stay in the processor's cache.

    NumPy alone would read one number from a line, and then the next line: five times as slow.
    """
    rows, columns = 128, 4 * _LINE // array.itemsize
    for row in range(0, array.shape[0], rows):
        for column in range(0, array.shape[1], columns):
            tile = np.s_[row : row + rows, column : column + columns]
            copy[tile] = np.ascontiguousarray(array[tile].T).T
