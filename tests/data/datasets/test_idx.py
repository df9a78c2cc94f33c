"""read_idx: golden bytes, round trips, and hostile files."""

import gzip
import re
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdl.data.datasets.idx import read_idx

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
DIGITS = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 250])

arrays = hnp.arrays(
    st.sampled_from(sorted(CODES)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("idx") / "some data.bin"


def idx_bytes(array):
    """The writer that the format describes, kept apart from the reader."""
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def read(path, content):
    path.write_bytes(content)
    return read_idx(path)


def assert_refused(path, content, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: expected {message}')}") as caught:
        read(path, content)
    assert type(caught.value) is ValueError
    first_line, _, rest = str(caught.value).partition("\n")
    assert re.search(r"; (replace|pass|write) .*\w$", first_line) and not rest


@pytest.mark.parametrize(
    ("values", "code", "expected"),
    [
        ("00 7f ff", 8, np.array([0, 127, 255], np.uint8)),
        ("00 7f ff", 9, np.array([0, 127, -1], np.int8)),
        ("0001 0100 fffe", 11, np.array([1, 256, -2], np.int16)),
        ("00000001 00010000 fffffffe", 12, np.array([1, 65536, -2], np.int32)),
        ("3fc00000 c0000000 7f800000", 13, np.array([1.5, -2, np.inf], np.float32)),
        ("3ff8000000000000 c000000000000000 7ff0000000000000", 14, np.array([1.5, -2, np.inf])),
    ],
)
def test_every_dtype_is_read_big_endian(path, values, code, expected):
    array = read(path, bytes([0, 0, code, 1, 0, 0, 0, 3]) + bytes.fromhex(values))
    assert array.dtype == expected.dtype and array.dtype.isnative
    np.testing.assert_array_equal(array, expected)


def test_the_last_dimension_is_the_fastest(path):
    np.testing.assert_array_equal(read(path, DIGITS), [[1, 2, 3], [4, 5, 250]])


def test_gzip_is_recognised_by_content_and_not_by_name(tmp_path):
    for name in "plain.gz", "packed.idx":
        content = gzip.compress(DIGITS) if name == "packed.idx" else DIGITS
        np.testing.assert_array_equal(read(tmp_path / name, content), [[1, 2, 3], [4, 5, 250]])


def test_a_path_may_be_text_and_the_array_may_be_written(path):
    path.write_bytes(DIGITS)
    array = read_idx(str(path))
    array[0, 0] = 9
    assert array.flags.owndata and read_idx(path)[0, 0] == 1


@given(array=arrays, packed=st.booleans())
def test_round_trip(path, array, packed):
    content = gzip.compress(idx_bytes(array)) if packed else idx_bytes(array)
    back = read(path, content)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()  # bits: NaN payloads and signed zeros too


@given(array=arrays, packed=st.booleans(), data=st.data())
def test_a_file_cut_at_any_byte_is_refused(path, array, packed, data):
    content = gzip.compress(idx_bytes(array)) if packed else idx_bytes(array)
    cut = data.draw(st.integers(0, len(content) - 1))
    assert_refused(path, content[:cut], "")


@given(array=arrays, extra=st.binary(min_size=1, max_size=9), packed=st.booleans())
def test_a_file_with_more_bytes_than_promised_is_refused(path, array, extra, packed):
    content = idx_bytes(array) + extra
    assert_refused(
        path,
        gzip.compress(content) if packed else content,
        f"{len(content) - len(extra)} bytes for ",
    )


@given(array=arrays, data=st.data())
def test_a_damaged_gzip_is_refused_or_harmless(path, array, data):
    content = bytearray(gzip.compress(idx_bytes(array)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = read(path, bytes(content))
    except ValueError as error:
        assert str(error).startswith(f"{path}: expected ")
    else:  # the time stamp, say
        assert back.tobytes() == array.tobytes() and back.shape == array.shape


@given(content=st.binary(max_size=40), rank=st.integers(0, 255), code=st.sampled_from([8, 11, 14]))
def test_any_other_bytes_are_read_or_refused(path, content, rank, code):
    for hostile in content, b"\x1f\x8b" + content, bytes([0, 0, code, rank]) + content:
        try:
            assert isinstance(read(path, hostile), np.ndarray)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an IDX header of 4 bytes, got 0: the file is cut short; "),
        (b"\0\0\x08", "an IDX header of 4 bytes, got 3: the file is cut short; "),
        (DIGITS[:11], "an IDX header of 12 bytes, got 11: the file is cut short; "),
        (DIGITS[:-1], "18 bytes for uint8 [2, 3], got 17: the file is cut short; "),
        (DIGITS + b"\0", "18 bytes for uint8 [2, 3], got more; "),
        (
            b"\0\0\x0a\0",
            "an IDX dtype code (0x08 uint8, 0x09 int8, 0x0b int16, 0x0c int32, 0x0d "
            "float32, 0x0e float64), got 0x0a; ",
        ),
        (b"<!DOCTYPE html>", "an IDX file, which begins with two zero bytes, got b'<!DOCTYP'; "),
        (b"\0\x01\x08\0a", "an IDX file, which begins with two zero bytes, got b'\\x00\\x01\\x08"),
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"a", "a shape that NumPy can hold, got [1, 1, "),
        (b"\0\0\x08\x03" + b"\xff" * 8 + bytes(4), "a shape that NumPy can hold, got [4294967295"),
        (
            gzip.compress(DIGITS)[:-3],
            "a valid gzip file, got an invalid one (Compressed file ended",
        ),
        (gzip.compress(DIGITS)[:-8] + bytes(8), "a valid gzip file, got an invalid one (CRC check"),
        (gzip.compress(DIGITS) + b"a", "a valid gzip file, got an invalid one (Not a gzipped file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff", "a valid gzip file, got an invalid one (Error -3 "),
    ],
)
def test_the_message_says_what_came_and_what_to_do(path, content, message):
    assert_refused(path, content, message)


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("more", [1, 2_000, 300_000_000])
def test_no_more_is_read_than_the_header_promises(path, packed, more):
    """300 MB of zeros are 300 kB when packed."""
    if packed:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(DIGITS)
            for start in range(0, more, 1 << 20):
                file.write(bytes(min(1 << 20, more - start)))
    else:
        with path.open("wb") as file:
            file.write(DIGITS)
            file.truncate(len(DIGITS) + more)  # a sparse file
    message = (
        f"{path}: expected 18 bytes for uint8 [2, 3], got more; replace it with a complete copy"
    )
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    path.unlink()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_header_that_promises_too_much_takes_no_memory(path, pack):
    header = b"\0\0\x0e\x03" + b"\xff" * 12
    promised = 16 + 8 * (2**32 - 1) ** 3
    message = f"{promised} bytes for float64 [4294967295, 4294967295, 4294967295], got 19: the file"
    assert_refused(path, pack(header + b"abc"), message)


def test_arrays_longer_than_a_block_are_read_whole(path):
    array = np.arange(700_000, dtype=np.int32)
    for pack in bytes, lambda content: gzip.compress(content, 1):
        np.testing.assert_array_equal(read(path, pack(idx_bytes(array))), array)
    parts = gzip.compress(idx_bytes(array)[:100], 1) + gzip.compress(idx_bytes(array)[100:], 1)
    np.testing.assert_array_equal(read(path, parts), array)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*nowhere"):
        read_idx(tmp_path / "nowhere")


SEEDED_BUGS = {
    "fdl/data/datasets/idx.py": (
        "data/datasets/test_idx.py",
        [
            ("_read(content, stream, expected + 1)", "content += stream.read()"),
            ("_read(content, stream, expected + 1)", "_read(content, stream, expected)"),
        ],
    ),
}
