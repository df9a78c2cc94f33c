"""Reads the pickle in a file of torch, which describes tensors, and runs no code of it.

A pickle can name any function for its reader to call, and a few bytes can make a value that takes
forever to hash or to print, because its parts are shared. So Python's own unpickler is not used
here. This reader knows the opcodes that torch writes and the names in `_KNOWN`. The keys of a dict
must be numbers, text, or short tuples of these.
"""

import dataclasses
import pickletools
from typing import Any

from fdl.paths import quoted

# torch's name of a dtype -> NumPy's name
DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint64": "uint64",
    "uint32": "uint32",
    "uint16": "uint16",
    "uint8": "uint8",
    "bool": "bool",
    "complex64": "complex64",
    "complex128": "complex128",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_PLAIN = (str, bytes, int, float, bool, type(None))
MOST = 64  # the most axes of a tensor, and the most members of a tuple that is a key


class Refused(Exception):
    """What the pickle has that does not describe a tensor."""


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A storage class or a dtype: only its name, in NumPy's words."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The record `key` of the file, as `count` numbers of a dtype."""

    key: str
    dtype: str
    count: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage, before any of it is checked."""

    storage: Any
    dtype: Any
    offset: Any
    shape: Any
    strides: Any
    changes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """One of the functions of `_KNOWN`."""

    name: str


def unpickled(pickle: bytes) -> Any:
    """What a pickle describes: dicts, lists, tuples, numbers, text and the classes above."""
    reader = _Reader()
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in _PUSHED:
            reader.stack.append(argument)
        elif opcode.name in _MADE:
            reader.stack.append(_MADE[opcode.name]())
        elif opcode.name in _STEPS:
            getattr(reader, _STEPS[opcode.name])(argument)
        elif opcode.name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the opcode {opcode.name}")
    return reader.stack.pop()


def text_of(value: Any) -> str:
    """A value of a pickle for a message. A nested one is not printed: it could be endless."""
    name = "huge int" if type(value) is int else type(value).__name__
    return quoted(value) if _is_plain(value) else f"a {name}"


def _is_plain(value: Any) -> bool:
    """True for a number, a text, and a short list or tuple of these."""
    members = value if type(value) in (list, tuple) else (value,)
    plain = len(members) <= MOST and all(type(each) in _PLAIN for each in members)
    # Thousands of huge numbers can have the same hash, so that a dict of them takes forever.
    return plain and all(each.bit_length() < 64 for each in members if type(each) is int)


# The opcodes that torch writes, and what each of them does with the stack.
_PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_PUSHED |= {"BINBYTES", "SHORT_BINBYTES"}
_MADE: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_STEPS = {
    "MARK": "mark",
    "TUPLE": "tuple_of_marked",
    "TUPLE1": "tuple_of_1",
    "TUPLE2": "tuple_of_2",
    "TUPLE3": "tuple_of_3",
    "APPEND": "append",
    "APPENDS": "append_marked",
    "SETITEM": "set_item",
    "SETITEMS": "set_marked",
    "BINPUT": "put",
    "LONG_BINPUT": "put",
    "MEMOIZE": "memoize",
    "BINGET": "get",
    "LONG_BINGET": "get",
    "GLOBAL": "name_of_line",
    "STACK_GLOBAL": "name_of_two",
    "BINPERSID": "storage",
    "REDUCE": "call",
    "BUILD": "build",
}


class _Reader:
    """The stack, the marks in it, and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def last(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self.stack):
            raise Refused("a stack with too few values")
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def marked(self) -> list[Any]:
        return self.last(len(self.stack) - self.marks.pop())

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def tuple_of_marked(self, _: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def tuple_of_1(self, _: Any) -> None:
        self.stack.append(tuple(self.last(1)))

    def tuple_of_2(self, _: Any) -> None:
        self.stack.append(tuple(self.last(2)))

    def tuple_of_3(self, _: Any) -> None:
        self.stack.append(tuple(self.last(3)))

    def append(self, _: Any) -> None:
        self.extend(self.last(1))

    def append_marked(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("one that changes them")
        self.stack[-1].extend(values)

    def set_item(self, _: Any) -> None:
        self.update(self.last(2))

    def set_marked(self, _: Any) -> None:
        self.update(self.marked())

    def update(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise Refused("one that changes them")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is list or not _is_plain(key):
                raise Refused(f"a dict with {text_of(key)} as a key")
            self.stack[-1][key] = value

    def put(self, place: Any) -> None:
        self.memo[place] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, place: Any) -> None:
        self.stack.append(self.memo[place])

    def name_of_line(self, line: Any) -> None:
        self.stack.append(_named(line.replace(" ", ".", 1)))

    def name_of_two(self, _: Any) -> None:
        self.stack.append(_named(".".join(self.last(2))))

    def storage(self, _: Any) -> None:
        (found,) = self.last(1)
        fits = type(found) is tuple and len(found) == 5 and type(found[0]) is type(found[2]) is str
        if not fits or found[0] != "storage" or not isinstance(found[1], Named):
            raise Refused(f"{text_of(found)} in place of a storage")
        self.stack.append(Storage(found[2], found[1].name, found[4]))

    def call(self, _: Any) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise Refused(f"a call of {text_of(function)}")
        self.stack.append(_KNOWN[function.name](*arguments))

    def build(self, _: Any) -> None:
        """Leaves out the attributes of an OrderedDict; a state dict of torch has `_metadata`."""
        self.last(1)
        if type(self.stack[-1]) is not dict:
            raise Refused("one that changes them")


def _named(name: str) -> Named | Function:
    if name in _KNOWN:
        return Function(name)
    if name == "torch.storage.UntypedStorage":
        return Named("untyped")
    module, _, last = name.rpartition(".")
    if module == "torch" and last in _STORAGES | DTYPES:
        return Named((_STORAGES | DTYPES)[last])
    raise Refused(f"the name {quoted(name)}")


def _typed(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """What `torch._utils._rebuild_tensor_v2` makes."""
    return Tensor(storage, None, offset, shape, strides, _changes(metadata))


def _of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    """What `torch._utils._rebuild_tensor_v3` makes of a storage of bytes."""
    return Tensor(storage, dtype, offset, shape, strides, _changes(metadata))


def _changes(metadata: Any) -> tuple[str, ...]:
    """The views that a tensor is of its numbers: "conj" for conjugate, "neg" for negative."""
    if metadata is None:
        return ()
    if type(metadata) is not dict:
        raise Refused(f"{text_of(metadata)} as the metadata of a tensor")
    for name, value in metadata.items():
        if name not in ("conj", "neg") or type(value) is not bool:
            raise Refused(f"a tensor with {text_of(name)}: {text_of(value)}")
    return tuple(name for name in ("conj", "neg") if metadata.get(name))


def _size(sizes: Any = ()) -> tuple[int, ...]:
    """A `torch.Size`."""
    short = type(sizes) in (tuple, list) and len(sizes) <= MOST
    if not short or not all(type(each) is int for each in sizes):
        raise Refused(f"torch.Size of {text_of(sizes)}")
    return tuple(sizes)


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _typed,
    "torch._utils._rebuild_tensor_v3": _of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": _size,
}
