"""Reads the files of `torch.save` without torch, and without running any code from them.

Such a file is an uncompressed zip archive. `data.pkl` in it is a pickle that describes the tensors,
and each other record `data/KEY` holds the numbers of one storage. Several tensors may be views of
one storage. A pickle can name any function for its reader to call. This reader knows the names in
`_KNOWN`, all of which only describe tensors, and refuses every other name.
"""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from typing import IO, Any, Literal, NoReturn

import numpy as np

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
_CUT = "download it or save it again"
_AGAIN = "load it with torch, and save model.state_dict() with torch.save or safetensors"


def read_torch(file: str | os.PathLike[str]) -> Any:
    """What a file of `torch.save` holds, with NumPy arrays in place of the tensors.

    The arrays are read-only views of the file, which is mapped into memory.

    Args:
      file: path of a file in the zip format, which torch writes since version 1.6.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is incomplete or is not such a file; its pickle names a function or a
        class that does not describe a tensor; or a tensor lies outside of its storage.
    """
    with open(file, "rb") as stream:
        if stream.read(2) == b"\x80\x02":
            raise _not_whole(file, "a file in the format of torch before 1.6", _AGAIN)
        try:
            with zipfile.ZipFile(stream) as archive:
                return _Archive(stream, archive).load()
        except _Refused as error:
            raise ValueError(
                f"{file}: expected a pickle of tensors only, got {error}; nothing of it was run; "
                f"{_AGAIN}"
            ) from error
        except _Broken as error:
            raise _not_whole(file, *error.args) from error
        except Exception as error:  # zipfile and pickle raise any type of error for a damaged file
            raise _not_whole(file, f"a damaged file ({error})") from error


def _not_whole(file: Any, got: Any, remedy: str = _CUT) -> ValueError:
    return ValueError(f"{file}: expected a complete file of torch.save, got {got}; {remedy}")


class _Refused(Exception):
    """What the pickle has that does not describe a tensor."""


class _Broken(Exception):
    """The file is not whole: what it has instead, and what to do if it is not the usual."""


class _Archive:
    """The records of an open file."""

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile):
        self.stream, self.archive = stream, archive
        self.size = os.fstat(stream.fileno()).st_size
        self.records = {each.filename: each for each in archive.infolist()}
        pickles = [name for name in self.records if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or len(self.records) < len(archive.infolist()):
            raise _Broken(f"a zip file with {len(pickles)} records data.pkl", _AGAIN)
        self.root = pickles[0].partition("/")[0]
        self.order: Literal["<", ">"] = "<"
        if f"{self.root}/byteorder" in self.records:
            self.order = "<" if self.read(f"{self.root}/byteorder") == b"little" else ">"
        self.mapped = np.memmap(stream, np.uint8, "r") if self.size else np.empty(0, np.uint8)

    def read(self, name: str) -> bytes:
        """A whole record, which must not be compressed: a small one could then become huge."""
        record = self.records[name]
        if record.compress_type != zipfile.ZIP_STORED:
            raise _Broken(f"a compressed record {name!r}", _AGAIN)
        return self.archive.read(record)

    def load(self) -> Any:
        text = self.read(f"{self.root}/data.pkl")
        _check_opcodes(text)
        return _arrays(_Unpickler(io.BytesIO(text), self).load(), {})

    def storage(self, key: Any, dtype: str, count: Any) -> np.ndarray:
        """The numbers of a storage; raises unless the record has them."""
        record = self.records.get(f"{self.root}/data/{key}")
        if record is None:
            raise _Broken(f"no record for the storage {quoted(key)}")
        if record.compress_type != zipfile.ZIP_STORED:
            raise _Broken(f"a compressed record {record.filename!r}", _AGAIN)
        self.stream.seek(record.header_offset)
        header = self.stream.read(30)
        begin = record.header_offset + 30
        begin += sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        end = begin + record.file_size
        if header[:4] != b"PK\3\4" or end > self.size:
            raise _Broken(f"a record {record.filename!r} beyond the end of the file")
        width = np.dtype(dtype).itemsize
        if type(count) is not int or count < 0 or count * width > record.file_size:
            raise _Broken(
                f"a storage of {quoted(count)} numbers of {dtype} in the {record.file_size} bytes "
                f"of {record.filename!r}"
            )
        raw = np.asarray(self.mapped[begin : begin + count * width])
        return raw.view(np.dtype(dtype).newbyteorder(self.order))


def _check_opcodes(text: bytes) -> None:
    """Raises if the pickle has an opcode that torch does not write, or a huge place in its memo."""
    known_names = set(_OPCODES.split())
    for opcode, argument, _ in pickletools.genops(text):
        huge = opcode.name == "LONG_BINPUT" and int(argument or 0) > len(text)
        if opcode.name not in known_names or huge:
            raise _Refused(f"the opcode {opcode.name}")


# They describe numbers, text, dicts, lists, tuples, names, and calls of names. NEWOBJ needs a
# class, and `find_class` never returns one; it is here because the error then names the class.
_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL
STACK_GLOBAL BINPERSID REDUCE BUILD NEWOBJ
"""


class _Unpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors; it calls nothing but the functions of `_KNOWN`."""

    def __init__(self, stream: IO[bytes], archive: _Archive):
        super().__init__(stream)
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}"
        if known in _KNOWN:
            return _Call(_KNOWN[known])
        if known == "torch.storage.UntypedStorage":
            return _Named("untyped")
        if module == "torch" and name in _STORAGES | DTYPES:
            return _Named((_STORAGES | DTYPES)[name])
        raise _Refused(f"the name {quoted(known)}")

    def persistent_load(self, pid: Any) -> Any:
        fits = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        if not fits or not isinstance(pid[1], _Named):
            raise _Refused(quoted(pid))
        _, kind, key, _, count = pid
        return _Storage((self.archive, key, kind.value, count))


class _Inert:
    """A value that the pickle can pass on but not change: without this, BUILD could change it."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("one that changes them")


class _Named(_Inert):
    """A storage class or a dtype: only its name."""


class _Storage(_Inert):
    """(archive, key, dtype, count)"""


class _Tensor(_Inert):
    """(storage, dtype, offset, shape, strides)"""


class _Call(_Inert):
    """One of the functions of `_KNOWN`."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments)


def _typed(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """What `torch._utils._rebuild_tensor_v2` makes."""
    return _Tensor((storage, None, offset, shape, strides))


def _of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> _Tensor:
    """What `torch._utils._rebuild_tensor_v3` makes of a storage of bytes."""
    return _Tensor((storage, dtype, offset, shape, strides))


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _typed,
    "torch._utils._rebuild_tensor_v3": _of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": tuple,
}


def _arrays(found: Any, seen: dict[int, Any]) -> Any:
    """The dicts, lists and tuples of the pickle, with arrays in place of the tensors."""
    if id(found) in seen:
        return seen[id(found)]
    made: Any = found
    if isinstance(found, _Tensor):
        made = _view(*found.value)
    elif isinstance(found, _Inert):
        made = None
    elif isinstance(found, dict):
        made = {key: _arrays(value, seen) for key, value in dict.items(found)}
    elif isinstance(found, list | tuple):
        made = type(found)(_arrays(each, seen) for each in found)
    seen[id(found)] = made
    return made


def _view(storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    sizes = (offset, *shape, *strides) if type(shape) is type(strides) is tuple else (None,)
    fits = all(type(each) is int and each >= 0 for each in sizes) and len(shape) == len(strides)
    if not fits or not isinstance(storage, _Storage) or not isinstance(dtype, _Named | None):
        raise _Broken(f"a tensor {quoted(shape)} with offset {quoted(offset)} and no storage")
    archive, key, name, count = storage.value
    if dtype is not None:  # the storage counts bytes
        name, count = dtype.value, count // np.dtype(dtype.value).itemsize
    numbers = archive.storage(key, name, count)
    if 0 in shape:
        return np.empty(shape, numbers.dtype)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= len(numbers):
        raise _Broken(
            f"a tensor {list(shape)} with offset {offset} and strides {list(strides)} in a storage "
            f"of {len(numbers)} numbers"
        )
    bytes_apart = [step * numbers.itemsize for step in strides]
    start = offset * numbers.itemsize
    return np.ndarray(shape, numbers.dtype, numbers.view(np.uint8), start, bytes_apart)
