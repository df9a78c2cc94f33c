"""Reads the files of `torch.save` without torch, and without running any code from them.

Such a file is an uncompressed zip archive. `data.pkl` in it is a pickle that describes the tensors,
and each record `data/KEY` holds the numbers of one storage. Several tensors may be views of one
storage. `torch_pickles` reads the pickle, and refuses what does not describe tensors.
"""

import dataclasses
import os
import sys
import zipfile
from typing import IO, Any

import numpy as np

from fdl.paths import quoted
from fdl.port.torch_pickles import (
    MOST,
    Function,
    Named,
    Refused,
    Storage,
    Tensor,
    text_of,
    unpickled,
)

_CUT = "download it or save it again"
# What has to be done with the numbers of a storage. A byte that is neither 0 nor 1 is a True of
# torch, but as a bool of NumPy or JAX it would give wrong results. From an array of bfloat16 with
# the other byte order, NumPy reads wrong single numbers, and JAX none.
_CHANGES: dict[str, Any] = {
    "swap": lambda numbers: _swapped(numbers),
    "bool": lambda numbers: numbers != 0,
    "conj": np.conj,
    "neg": np.negative,
}
_RAW = {"bool": "uint8"}
_COPIES = 4  # a storage is copied at most once for each combination of conj and neg
_AGAIN = "load it with torch, and save model.state_dict() with torch.save or safetensors"


def read_torch(file: str | os.PathLike[str]) -> Any:
    """What a file of `torch.save` holds, with NumPy arrays in place of the tensors.

    The arrays are read-only views of the file, which is mapped into memory. Bools, conjugate and
    negative views of torch, and numbers from a machine with the other byte order are read-only
    copies. Tensors without elements become new arrays.
    A dtype becomes its name, and a storage an array.

    Args:
      file: path of a file in the zip format, which torch writes since version 1.6.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is incomplete or is not such a file; its byte order is unknown; its
        pickle names a function or a class that does not describe a tensor; or a tensor lies outside
        of its storage.
    """
    with open(file, "rb") as stream:
        if stream.read(2) == b"\x80\x02":
            raise _not_whole(file, "a file in the format of torch before 1.6", _AGAIN)
        try:
            with zipfile.ZipFile(stream) as archive:
                return _Archive(stream, archive).load()
        except Refused as error:
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


class _Broken(Exception):
    """The file is incomplete. Args: what was found instead and, unless it is `_CUT`, the remedy."""


class _Archive:
    """The records of an open file."""

    def __init__(self, stream: IO[bytes], archive: zipfile.ZipFile):
        self.stream, self.archive = stream, archive
        self.size = os.fstat(stream.fileno()).st_size
        self.records = {each.filename: each for each in archive.infolist()}
        pickles = [name for name in self.records if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or len(self.records) < len(archive.infolist()):
            repeated = len(archive.infolist()) - len(self.records)
            raise _Broken(
                f"a zip file with {len(pickles)} records data.pkl and {repeated} repeated names",
                _AGAIN,
            )
        self.root = pickles[0].partition("/")[0]
        order = b"little"
        if f"{self.root}/byteorder" in self.records:
            order = self.read(f"{self.root}/byteorder")
        if order not in (b"little", b"big"):
            raise _Broken(f"the byte order {quoted(order[:20].decode('latin-1'))}")
        self.swapped = order.decode() != sys.byteorder
        self.mapped = np.memmap(stream, np.uint8, "r") if self.size else np.empty(0, np.uint8)
        self.copies: dict[Any, np.ndarray] = {}
        self.copied = 0

    def read(self, name: str) -> bytes:
        """A whole record. A compressed one is refused: a small one could expand to a huge one."""
        record = self.records[name]
        if record.compress_type != zipfile.ZIP_STORED:
            raise _Broken(f"a compressed record {name!r}", _AGAIN)
        return self.archive.read(record)

    def load(self) -> Any:
        return _arrays(unpickled(self.read(f"{self.root}/data.pkl")), self, {})

    def storage(self, storage: Storage, changes: tuple[str, ...]) -> np.ndarray:
        """The numbers of a storage, after the changes (conj, neg) of a view of torch."""
        dtype, begin, count = storage.dtype, self.begin_of(storage), storage.count
        width = np.dtype(dtype).itemsize
        if dtype == "bool":
            changes = ("bool", *changes)
        elif self.swapped:
            changes = ("swap", *changes)
        raw = np.asarray(self.mapped[begin : begin + count * width])
        numbers: np.ndarray = raw.view(_RAW.get(dtype, dtype))
        if not changes:
            return numbers
        place = (begin, count, dtype, changes)
        if place not in self.copies:
            self.copied += numbers.nbytes
            if self.copied > _COPIES * self.size:  # so many copies could fill the memory
                raise _Broken("storages that overlap")
            for change in changes:
                numbers = _CHANGES[change](numbers)
            numbers.flags.writeable = False
            self.copies[place] = numbers
        return self.copies[place]

    def begin_of(self, storage: Storage) -> int:
        """Where the numbers of a storage begin in the file, after the header of their record.

        Raises unless the record is uncompressed and long enough.
        """
        key, dtype, count = storage.key, storage.dtype, storage.count
        record = self.records.get(f"{self.root}/data/{key}")
        if record is None:
            raise _Broken(f"no record for the storage {text_of(key)}")
        if record.compress_type != zipfile.ZIP_STORED:
            raise _Broken(f"a compressed record {record.filename!r}", _AGAIN)
        self.stream.seek(record.header_offset)
        header = self.stream.read(30)
        begin = record.header_offset + 30
        begin += sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        end = begin + record.file_size
        if header[:4] != b"PK\3\4" or end > self.size:
            raise _Broken(
                f"a record {record.filename!r} with a wrong header or beyond the end of the file"
            )
        width = np.dtype(dtype).itemsize
        if type(count) is not int or count < 0 or count * width > record.file_size:
            raise _Broken(
                f"a storage of {text_of(count)} numbers of {dtype} in the {record.file_size} bytes "
                f"of {record.filename!r}"
            )
        return begin


def _swapped(numbers: np.ndarray) -> np.ndarray:
    """A copy with the bytes of each number in the other order, in a dtype that JAX knows too."""
    parts = f"u{numbers.itemsize // (2 if numbers.dtype.kind == 'c' else 1)}"
    return numbers.view(parts).byteswap().view(numbers.dtype)


def _arrays(found: Any, archive: _Archive, seen: dict[int, Any]) -> Any:
    """What the pickle describes, with arrays in place of the tensors and names for the dtypes."""
    if id(found) in seen:
        return seen[id(found)]
    made: Any = found
    if isinstance(found, Tensor):
        made = _view(found, archive)
    elif isinstance(found, Storage):
        bytes_of = found if found.dtype != "untyped" else dataclasses.replace(found, dtype="uint8")
        made = archive.storage(bytes_of, ())
    elif isinstance(found, Named | Function):
        made = found.name
    elif isinstance(found, dict):
        made = {key: _arrays(value, archive, seen) for key, value in found.items()}
    elif isinstance(found, list | tuple):
        made = type(found)(_arrays(each, archive, seen) for each in found)
    seen[id(found)] = made
    return made


def _view(tensor: Tensor, archive: _Archive) -> np.ndarray:
    storage, dtype, offset = tensor.storage, tensor.dtype, tensor.offset
    shape, strides = tensor.shape, tensor.strides
    sizes = (offset, *shape, *strides) if type(shape) is type(strides) is tuple else (None,)
    fits = all(type(each) is int and each >= 0 for each in sizes) and len(sizes) <= 2 * MOST + 1
    fits = fits and len(shape) == len(strides) and isinstance(storage, Storage)
    if not fits or not isinstance(dtype, Named | None):
        raise _Broken(
            f"a tensor {text_of(shape)} with offset {text_of(offset)} and strides "
            f"{text_of(strides)} that is not a view of a storage",
        )
    if dtype is not None:  # the storage counts bytes
        count = storage.count // np.dtype(dtype.name).itemsize
        storage = Storage(storage.key, dtype.name, count)
    numbers = archive.storage(storage, tensor.changes)
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
