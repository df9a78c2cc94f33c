"""Reads IDX, the file format of MNIST and similar data sets."""

import gzip
import math
import os
import zlib
from typing import IO, cast

import numpy as np

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an array from an IDX file, gzipped or not.

    An IDX file consists of two zero bytes, a byte for the dtype, a byte for the number of
    dimensions, the size of each dimension as a big-endian 32-bit integer, and the values in C
    order, also big-endian. A gzipped file is recognised by its first bytes, not by its name. The
    header gives the number of bytes that the file should have. At most one byte more than that
    number, or 1,024 bytes if that is more, is read or uncompressed.

    Args:
      path: path of the file.

    Returns:
      A new array with the shape and the dtype of the file. A file of rank 0 gives a scalar.
      The dtype is uint8, int8, int16, int32, float32 or float64, in native byte order.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not an IDX file, is damaged, has fewer or more bytes than its header
        says, or has more dimensions than NumPy allows.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp(), "labels-idx1-ubyte")
      >>> _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
      >>> read_idx(file).tolist()
      [7, 9]

    Source: "The IDX file format" in LeCun, Cortes and Burges, The MNIST database of handwritten
    digits, http://yann.lecun.com/exdb/mnist/.
    """
    with open(path, "rb") as file:
        packed = file.peek(2).startswith(b"\x1f\x8b")
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file
        try:
            content = _read(bytearray(), stream, 4 + 4 * 255)  # the size of the longest header
            dtype, shape, start = _read_header(path, content)
            expected = start + math.prod(shape) * dtype.itemsize
            _read(content, stream, expected + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a valid gzip file, got an invalid one ({error}); replace it "
                "with a complete copy"
            ) from error
    if len(content) != expected:
        short = len(content) < expected
        raise ValueError(
            f"{path}: expected {expected} bytes for {dtype.name} {list(shape)}, got "
            f"{f'{len(content)}: the file is cut short' if short else 'more'}; replace it with a "
            "complete copy"
        )
    try:
        stored = np.ndarray(shape, dtype, buffer=content, offset=start)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a shape that NumPy can hold, got {list(shape)} ({error}); "
            "write the file with fewer or smaller dimensions"
        ) from error
    return stored.astype(dtype.newbyteorder("="))


def _read(content: bytearray, stream: IO[bytes], size: int) -> bytearray:
    """Appends bytes from the stream to `content`, until `content` has `size` bytes."""
    while len(content) < size and (block := stream.read(min(_BLOCK, size - len(content)))):
        content += block
    return content


def _read_header(
    path: str | os.PathLike[str], content: bytearray
) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, number of bytes before the first value)."""
    if content[:2] != b"\0\0"[: len(content)]:
        raise ValueError(
            f"{path}: expected an IDX file, which begins with two zero bytes, got "
            f"{bytes(content[:8])!r}; pass an IDX file, gzipped or not"
        )
    start = 4 + 4 * content[3] if len(content) >= 4 else 4
    if len(content) < start:
        raise ValueError(
            f"{path}: expected an IDX header of {start} bytes, got {len(content)}: the file is cut "
            "short; replace it with a complete copy"
        )
    if content[2] not in _DTYPES:
        known = ", ".join(f"0x{code:02x} {np.dtype(name).name}" for code, name in _DTYPES.items())
        raise ValueError(
            f"{path}: expected an IDX dtype code ({known}), got 0x{content[2]:02x}; pass an IDX "
            "file, gzipped or not"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    return np.dtype(_DTYPES[content[2]]), shape, start
