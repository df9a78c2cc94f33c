"""Saves a function as a program that JAX runs without the function's code, and loads it."""

import dataclasses
import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from fdl import paths
from fdl.checks import OptionError, described, is_count
from fdl.core import Layer
from fdl.data.arrays import to_jax
from fdl.paths import shortened
from fdl.port.atomic_files import replacing
from fdl.port.batch_sizes import differ, special_case

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# The bytes of `jax.export` do not say where they end. So a file ends with their SHA-256 and this
# mark. `jax.export.deserialize` ignores these bytes.
_MARK = b"fdl program 1\n"


def save_program(
    file: str | os.PathLike[str],
    f: Callable[..., Any],
    *args: Any,
    batch: int | Sequence[int] | None = -1,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Saves a function as a program for several platforms, which runs without the function's code.

    The program gives the results of `jax.jit(f)`. It contains all arrays that f uses and that are
    not among its arguments, such as the weights in `lambda x: model.apply(params, state, x)[0]`.
    The file appears either complete or not at all.

    `load_program` loads the file, and so do three lines that need only JAX (and flatbuffers):

        import jax.export, pathlib
        program = jax.export.deserialize(bytearray(pathlib.Path(file).read_bytes()))
        y = program.call(x)

    Args:
      file: path of the file. An existing file is replaced.
      f: a function that JAX can trace, from arrays to arrays. Arguments and results may be nested
        dicts, lists and tuples of arrays.
      args: examples of the arguments of f: arrays or `jax.ShapeDtypeStruct`s. Only their shapes and
        dtypes are used.
      batch: which arguments have the batch as axis 0 of all their arrays: the number of an
        argument, or several numbers; -1 is the last argument. The program takes batches of any
        size B >= 1, the same for all these arguments. None means that the program takes only the
        shapes of args.
      platforms: the platforms on which the program can run, among "cpu", "cuda", "rocm" and "tpu".

    Raises:
      TypeError: f is not a function.
      ImportError: the package flatbuffers is not installed.
      OptionError: batch or platforms is out of range.
      ValueError: f needs to know the size of the batch, or does something else for a batch of 1, as
        in `if x.shape[0] == 1` (then pass batch=None); f cannot be compiled
        for all platforms, for example because it calls Python code when it runs; or an argument or
        a result is in a container that a program cannot have.
      OSError: the file cannot be written. An existing file is then unchanged.

    Example:
      >>> import tempfile
      >>> import fdl, jax.numpy as jnp
      >>> model = fdl.mlp([8], 3)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_program(f"{folder}/model.jax", fdl.stateless(model), params, jnp.ones((2, 4)))
      ...     program = load_program(f"{folder}/model.jax")
      >>> program(params, jnp.ones((7, 4))).shape
      (7, 3)

    Source: the documentation of `jax.export`. Its files hold StableHLO. JAX promises that a version
    reads the files of versions that are up to six months older.
    """
    who = "save_program"
    if isinstance(f, Layer) or not callable(f):
        raise TypeError(
            f"{who}: expected a function, got {described(f)}; pass fdl.stateless(model) with the "
            "arguments params and x, or lambda x: model.apply(params, state, x)[0] with x"
        )
    args = tuple(_shapes(who, each, f"argument {n}") for n, each in enumerate(args))
    symbolic = None if batch is None else _symbolic(who, args, batch)
    write_program(who, file, exported(who, f, args, symbolic, check_platforms(who, platforms)))


def load_program(file: str | os.PathLike[str]) -> "Program":
    """Loads a file from `save_program` as a function.

    Args:
      file: path of the file. The file is checked, and its program is compiled when it is called.

    Returns:
      A `Program`, which is called with the arguments of the saved function.

    Raises:
      FileNotFoundError: the file does not exist.
      ImportError: the package flatbuffers is not installed.
      ValueError: the file is not from `save_program`, it is damaged or not complete, or this
        version of JAX cannot read it.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_program(f"{folder}/sum.jax", lambda x: x.sum(-1), jnp.ones((2, 3)))
      ...     load_program(f"{folder}/sum.jax")(jnp.ones((4, 3)))
      Array([3., 3., 3., 3.], dtype=float32)
    """
    _check_package("load_program")
    body = _read(file)
    try:
        return Program(export.deserialize(bytearray(body)))
    except Exception as error:
        raise ValueError(
            f"{file}: expected a program that JAX {jax.__version__} can read, got "
            f"{_reason(error)}; install the version of JAX that saved it, or save it again"
        ) from error


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A function that `load_program` has loaded; call it with the arguments of the saved function.

    `jax.jit` and `jax.lax.scan` work on it. `jax.grad` and `jax.vmap` do not.

    Args:
      exported: the program, a `jax.export.Exported`.

    Raises:
      ValueError: when it is called: an argument has a wrong shape or dtype (the message gives the
        path, what was expected and what was passed), or the program was saved for other platforms.

    Example:
      >>> double = export.export(jax.jit(lambda x: 2 * x), platforms=["cpu"])(jax.numpy.ones(3))
      >>> Program(double)
      <Program: 0 float32 [3] -> float32 [3]; for cpu>
    """

    exported: export.Exported

    def __repr__(self) -> str:
        inputs = ", ".join(f"{path} {_kind(aval)}" for path, aval in self._wanted().items())
        outputs = ", ".join(map(_kind, self.exported.out_avals))
        text = shortened(f"{inputs} -> {outputs}", 300)
        return f"<Program: {text}; for {', '.join(self.exported.platforms)}>"

    def __call__(self, *args: Any) -> Any:
        """The results of the saved function."""
        given = paths.leaves(to_jax(args, "program", "the argument"))
        self._check(given)

        def in_place(keys: Any, _: Any) -> Any:
            return given[paths.path_of(keys)]

        arguments = jax.tree_util.tree_map_with_path(in_place, self._arguments())
        try:
            return self._compiled(*arguments)
        except ValueError as error:
            if "exported for platforms" not in str(error):
                raise
            raise ValueError(
                f"program: expected to run on {' or '.join(self.exported.platforms)}, for which "
                f"it was saved, got {_platform(arguments)}; move the arguments with "
                "jax.device_put, or save the program for this platform too"
            ) from error

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.exported.call)

    def _arguments(self) -> Any:
        """The shapes and dtypes of the arguments."""
        return jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)[0]

    def _wanted(self) -> dict[str, Any]:
        return paths.leaves(self._arguments())

    def _check(self, given: dict[str, Any]) -> None:
        """Raises unless the arguments have the shapes and dtypes of the program."""
        wanted, sizes = self._wanted(), dict[str, int]()
        missing, extra = (
            {path: x for path, x in one.items() if path not in other}
            for one, other in ((wanted, given), (given, wanted))
        )
        wrong = [f"missing: {path} {_kind(aval)}" for path, aval in missing.items()]
        wrong += [f"unexpected: {path} {_kind(leaf)}" for path, leaf in extra.items()]
        for path, aval in wanted.items():
            if path in given and not _fits(aval, given[path], sizes):
                where = f" where {_sizes(sizes)}" if sizes else ""
                kinds = f"expected {_kind(aval)}{where}, got {_kind(given[path])}"
                wrong.append(f"different: {path}, {kinds}")
        if wrong:
            raise ValueError(
                f"program: expected the {len(wanted)} arrays of the saved function, got arguments "
                f"that differ at {len(wrong)} paths; pass arrays of the shapes and dtypes below. A "
                "path begins with the number of the argument\n  " + "\n  ".join(wrong)
            )


def exported(
    who: str, f: Callable[..., Any], args: Any, symbolic: Any, platforms: Sequence[str]
) -> export.Exported:
    """The function as a program; `symbolic` is args with a symbolic batch, or None.

    Raises:
      ValueError: the function cannot be exported; the message says what to do.
    """
    _check_package(who)
    jitted = jax.jit(f)
    try:
        program = export.export(jitted, platforms=platforms)(*(symbolic or args))
        special = special_case(f, [_sized(symbolic, n) for n in (1, 2, 5)]) if symbolic else ""
    except Exception as error:
        jax.eval_shape(f, *args)  # if f cannot be traced at all, its error says why
        if symbolic and _can(jitted, args, platforms):
            raise _dependent(who, f"one that needs it ({_reason(error)})") from error
        raise ValueError(
            f"{who}: expected a function that can be compiled for {', '.join(platforms)}, got one "
            f"that cannot ({_reason(error)}); leave out calls of Python code such as "
            "jax.debug.print, or name fewer platforms, as in platforms=['cpu']"
        ) from error
    if special and differ(jitted, program.call, _sized(symbolic, 1)):
        raise _dependent(who, f"one that does something else for a batch of 1 ({special})")
    return program


def _dependent(who: str, got: str) -> ValueError:
    return ValueError(
        f"{who}: expected a function that does not depend on the size of the batch, got {got}; "
        "pass batch=None, which saves the function for the shapes of its arguments only"
    )


def write_program(who: str, file: str | os.PathLike[str], program: export.Exported) -> None:
    """Writes a program to a file.

    Raises:
      ValueError: a program cannot be written, for example because of a container of its arguments.
    """
    try:
        body = bytes(program.serialize())
    except Exception as error:
        raise ValueError(
            f"{who}: expected arguments and results in dicts, lists and tuples, and operations "
            f"that stay the same in later versions of JAX, got {_reason(error)}; pass a dict of "
            "arrays, and return one"
        ) from error
    data = body + hashlib.sha256(body).digest() + _MARK
    with replacing(file, who, len(data)) as out:
        out.write(data)


def check_platforms(who: str, platforms: Any) -> tuple[str, ...]:
    """Raises unless `platforms` is one or more of PLATFORMS; returns it as a tuple."""
    several = isinstance(platforms, Sequence) and not isinstance(platforms, str)
    if not several or not platforms or not all(each in PLATFORMS for each in platforms):
        raise OptionError(
            who,
            f"expected platforms among {list(PLATFORMS)}, got {described(platforms)}; pass a list "
            "such as ['cpu', 'cuda']",
        )
    return tuple(dict.fromkeys(platforms))


def _can(jitted: Any, args: Any, platforms: Sequence[str]) -> bool:
    try:
        export.export(jitted, platforms=platforms)(*args)
    except Exception:
        return False
    return True


def _shapes(who: str, tree: Any, what: str) -> Any:
    """The shapes and dtypes of a pytree of arrays and `jax.ShapeDtypeStruct`s."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            leaf = to_jax(leaf, who, what)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(shape, tree)


def _symbolic(who: str, args: tuple[Any, ...], batch: Any) -> tuple[Any, ...]:
    """The arguments, with the symbol b as the length of axis 0 of those that have a batch."""
    numbers = list(batch) if isinstance(batch, Sequence) else [batch]
    ints = all(is_count(abs(n) if isinstance(n, int) else n, least=0) for n in numbers)
    if not numbers or not ints or not all(-len(args) <= n < len(args) for n in numbers):
        raise OptionError(
            who,
            f"expected batch to be the number of one of the {len(args)} arguments, got "
            f"{described(batch)}; pass the number of the argument whose axis 0 is the batch, or "
            "None",
        )
    chosen = {n % len(args) for n in numbers}
    (b,) = export.symbolic_shape("b")
    for path, leaf in paths.leaves({str(n): args[n] for n in chosen}).items():
        if not leaf.shape:
            raise OptionError(
                who,
                f"expected arrays [B, ...] in argument {path.partition('/')[0]}, got "
                f"{_kind(leaf)} at {path!r}; pass the number of another argument as batch, or None",
            )

    def opened(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype)

    return tuple(jax.tree.map(opened, each) if n in chosen else each for n, each in enumerate(args))


def _sized(symbolic: Any, size: int) -> Any:
    """The arguments with a symbolic batch, for one size of the batch."""

    def sized(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = tuple(n if isinstance(n, int) else size for n in leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(sized, symbolic)


def _fits(aval: Any, leaf: Any, sizes: dict[str, int]) -> bool:
    """Whether an argument fits; `sizes` holds the sizes of the symbols that were seen before."""
    if aval.dtype != leaf.dtype or len(aval.shape) != len(leaf.shape):
        return False
    for expected, length in zip(aval.shape, leaf.shape, strict=True):
        known = expected if isinstance(expected, int) else sizes.get(str(expected))
        if length != known and (known is not None or length < 1):
            return False
        if known is None:
            sizes[str(expected)] = length
    return True


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype} [{', '.join(map(str, leaf.shape))}]"


def _platform(arguments: Any) -> str:
    """The platform on which the arguments are."""
    found = {d.platform for leaf in jax.tree.leaves(arguments) for d in leaf.devices()}
    return " and ".join(sorted(found)) or jax.default_backend()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0] if lines else type(error).__name__, 300)


def _check_package(who: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            f"{who}: expected the package flatbuffers, which reads and writes programs, got none; "
            "pip install 'fdl[programs]'"
        )


def _read(file: str | os.PathLike[str]) -> bytes:
    """The bytes of `jax.export` in a file.

    Raises:
      ValueError: the file is not from `save_program`, or it is not complete.
    """
    got = "a folder" if os.path.isdir(file) else ""
    data = b"" if got else Path(file).read_bytes()
    end = len(data) - len(_MARK)
    body, digest = data[: max(end - 32, 0)], data[max(end - 32, 0) : max(end, 0)]
    if not got and not data.endswith(_MARK):
        got = f"{len(data):,} bytes without the mark at their end"
    elif not got and hashlib.sha256(body).digest() != digest:
        got = f"{len(data):,} bytes with a wrong checksum"
    if got:
        raise ValueError(
            f"{file}: expected a complete file from save_program, got {got}; copy it or save it "
            "again"
        )
    return body
