"""Files of torch.save: what torch wrote comes back, and no file makes the reader run anything."""

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import jax
import ml_dtypes
import numpy as np
import pytest

from fdl.port import from_torch, read_tensors

NO_VIEW = "and strides (3, 1) that is not a view of a storage"
KEEP = "load it with torch, and save model.state_dict() with torch.save or safetensors"
AGAIN = "download it or save it again"


class Named:
    """Pickles as a name alone, as torch's classes and functions do."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a name."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Stored:
    def __init__(self, kind, key, count):
        self.pid = ("storage", Named("torch", kind), key, "cpu", count)


class Pickler(pickle._Pickler):
    """Writes what torch's pickler writes, without torch."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


V2, V3 = Named("torch._utils", "_rebuild_tensor_v2"), Named("torch._utils", "_rebuild_tensor_v3")
ORDERED = Named("collections", "OrderedDict")


def tensor(kind="FloatStorage", key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1), by=V2):
    return Call(by, Stored(kind, key, count), offset, shape, strides, False, Call(ORDERED))


def pickled(value):
    out = io.BytesIO()
    Pickler(out, 2).dump(value)
    return out.getvalue()


SIX = np.arange(6, dtype="<f4").tobytes()


def written(file, value, storages=None, text=None, compress=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled(value) if text is None else text)
        archive.writestr("archive/byteorder", order)
        for key, raw in ({"0": SIX} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", raw)
    return file


def assert_refused(file, got):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {got}')}$"):
        read_tensors(file)


def whole(got, remedy=AGAIN):
    return f"expected a complete file of torch.save, got {got}; {remedy}"


def only(got):
    return f"expected a pickle of tensors only, got {got}; nothing of it was run; {KEEP}"


def test_views_of_one_storage_come_back(tmp_path):
    value = {
        "all": tensor(),
        "turned": tensor(shape=(3, 2), strides=(1, 3)),
        "column": tensor(offset=1, shape=(2,), strides=(3,)),
        "same": tensor(shape=(4,), offset=5, strides=(0,)),
        "number": tensor(offset=4, shape=(), strides=()),
        "none": tensor(offset=6, shape=(0, 3), strides=(3, 1)),
        "last": tensor(offset=5, shape=(1, 1), strides=(9, 9)),
    }
    found = read_tensors(written(tmp_path / "w.pt", value))
    assert {name: each.tolist() for name, each in found.items()} == {
        "all": [[0, 1, 2], [3, 4, 5]],
        "turned": [[0, 3], [1, 4], [2, 5]],
        "column": [1, 4],
        "same": [5, 5, 5, 5],
        "number": 4,
        "none": [],
        "last": [[5]],
    }
    assert found["none"].shape == (0, 3) and found["all"].dtype == np.float32
    assert not any(each.flags.writeable for name, each in found.items() if name != "none")


def test_each_dtype_comes_back(tmp_path):
    numbers = {
        "DoubleStorage": np.array([1.5, -2.0]),
        "FloatStorage": np.array([1.5, -2.0], "f4"),
        "HalfStorage": np.array([1.5, -2.0], "f2"),
        "BFloat16Storage": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "LongStorage": np.array([2**40, -3]),
        "IntStorage": np.array([2**30, -3], "i4"),
        "ShortStorage": np.array([2**14, -3], "i2"),
        "CharStorage": np.array([100, -3], "i1"),
        "ByteStorage": np.array([200, 3], "u1"),
        "BoolStorage": np.array([True, False]),
        "ComplexFloatStorage": np.array([1 + 2j, -3j], "c8"),
        "ComplexDoubleStorage": np.array([1 + 2j, -3j]),
    }
    value = {kind: tensor(kind, kind, 2, shape=(2,), strides=(1,)) for kind in numbers}
    # Newer dtypes have no class of storage: the storage counts bytes, and the tensor has the dtype.
    eights = np.array([1.5, -2.0], ml_dtypes.float8_e4m3fn)
    value["new"] = Call(
        V3,
        Stored("UntypedStorage", "new", 2),
        *(0, (2,), (1,), False, Call(ORDERED)),
        Named("torch", "float8_e4m3fn"),
    )
    value["new"].arguments[0].pid = (
        "storage",
        Named("torch.storage", "UntypedStorage"),
        *("new", "cpu", 2),
    )
    raw = {kind: array.tobytes() for kind, array in numbers.items()} | {"new": eights.tobytes()}
    found = read_tensors(written(tmp_path / "w.pt", value, raw))
    for name, array in (numbers | {"new": eights}).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("kind", "dtype", "width"),
    [
        ("FloatStorage", "float32", 4),
        ("BFloat16Storage", "bfloat16", 2),
        ("HalfStorage", "float16", 2),
        ("LongStorage", "int64", 8),
        ("ComplexFloatStorage", "complex64", 4),
        ("CharStorage", "int8", 1),
        ("BoolStorage", "bool", 1),
    ],
)
def test_big_endian_storages_come_back(tmp_path, kind, dtype, width):
    numbers = np.array([0, 1, -2, 3, 100, -77]).astype(dtype)
    numbers = numbers * np.array(1 + 2j, dtype) if numbers.dtype.kind == "c" else numbers
    raw = {"0": numbers.view(f"u{width}").byteswap().tobytes()}
    file = written(tmp_path / "w.pt", {"w": tensor(kind)}, raw, order=b"big")
    found = read_tensors(file)["w"]
    assert found.dtype == numbers.dtype and found.dtype.isnative and not found.flags.writeable
    assert found.tobytes() == numbers.tobytes()
    assert [each.item() for each in found.ravel()] == [each.item() for each in numbers]
    like = {"w": jax.ShapeDtypeStruct((2, 3), jax.dtypes.canonicalize_dtype(dtype))}
    if like["w"].dtype == numbers.dtype:
        made = from_torch(file, like, {"w": "w"})["w"]
        assert np.asarray(made).tobytes() == numbers.tobytes()


def test_conjugate_views_of_a_big_endian_file_come_back(tmp_path):
    numbers = np.array([1 + 2j, 3 - 4j], "c8")
    pair = {"shape": (2,), "strides": (1,), "count": 2}
    whole_view = tensor("ComplexFloatStorage", **pair)
    view = Call(V2, *whole_view.arguments, {"conj": True})
    raw = {"0": numbers.astype(">c8").tobytes()}
    file = written(tmp_path / "w.pt", {"w": view}, raw, order=b"big")
    np.testing.assert_array_equal(read_tensors(file)["w"], numbers.conj())


def test_an_unknown_byte_order_is_refused(tmp_path):
    file = written(tmp_path / "w.pt", {"w": tensor()}, order=b"middle")
    assert_refused(file, whole("the byte order 'middle'"))


def test_what_is_beside_the_tensors_comes_back(tmp_path):
    parameter = Call(Named("torch._utils", "_rebuild_parameter"), tensor(), True, Call(ORDERED))
    inner = Call(ORDERED, state={"_metadata": {"": {"version": 1}}})
    value = {
        "epoch": 3,
        "rate": 0.5,
        "model": {"w": parameter},
        "list": [tensor(), None],
        "o": inner,
    }
    found = read_tensors(written(tmp_path / "w.pt", value))
    assert found["epoch"] == 3 and found["rate"] == 0.5 and found["o"] == {}
    np.testing.assert_array_equal(found["model"]["w"], found["list"][0])


# Hostile files. Each would leave a trace if anything of it were run.


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch", "load"),
        ("numpy", "load"),
        ("fdl.port.torch_pickles", "_typed"),
    ],
)
def test_a_pickle_that_calls_code_is_refused_by_name(tmp_path, module, name):
    trace = tmp_path / "trace"
    value = {"w": tensor(), "x": Call(Named(module, name), f"touch {trace}")}
    file = written(tmp_path / "w.pt", value)
    assert_refused(file, only(f"the name {f'{module}.{name}'!r}"))
    assert sorted(os.listdir(tmp_path)) == ["w.pt"]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (b"(ios\nsystem\n.", "the opcode INST"),
        (b"\x80\x02}\x82\x01.", "the opcode EXT1"),
        (b"\x80\x02}\x81.", "the opcode NEWOBJ"),
        (b"\x80\x02\x96\x00\x00\x00\x00\xff\x00\x00\x00.", "the opcode BYTEARRAY8"),
    ],
)
def test_an_opcode_that_torch_does_not_write_is_refused(tmp_path, text, got):
    file = written(tmp_path / "w.pt", None, text=text)
    if "BYTEARRAY8" in got:  # its length is beyond the end of the pickle
        with pytest.raises(ValueError, match=r"got a damaged file \(.*\); download it or save"):
            read_tensors(file)
    else:
        assert_refused(file, only(got))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    changed = Call(Named("torch.storage", "UntypedStorage"))
    changing = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    file = written(tmp_path / "w.pt", None, text=changing)
    assert_refused(file, only("one that changes them"))
    file = written(tmp_path / "v.pt", {"x": changed})
    assert_refused(file, only("a call of a Named"))
    state = {"items": Named("torch._utils", "_rebuild_tensor_v2")}
    file = written(tmp_path / "u.pt", Call(ORDERED, state=state))
    assert read_tensors(file) == {}


def test_a_list_in_itself_or_many_times_does_no_harm(tmp_path):
    itself = b"\x80\x02]q\x00h\x00a."
    file = written(tmp_path / "w.pt", None, text=itself)
    with pytest.raises(ValueError, match=r"got a damaged file \(maximum recursion depth"):
        read_tensors(file)
    many = [tensor()]
    for _ in range(60):
        many = [many, many]
    assert len(read_tensors(written(tmp_path / "v.pt", many))) == 2


# Few bytes that would crash Python or take forever, in its unpickler or in a message: a tuple in
# tuples, n deep; and a tuple of two equal parts, n times, which has 2 ** n members.
DEEP = b"N" + b"\x85" * 200_000
DOUBLED = b"X\x01\x00\x00\x00a\x85" + b"q\x01h\x01\x86" * 60
FLOATS = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
SIZE = b"ctorch\nSize\n"


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (b"}" + DEEP + b"Ns.", "a dict with a tuple as a key"),
        (b"}" + DOUBLED + b"Ns.", "a dict with a tuple as a key"),
        (b"}(" + DOUBLED + b"Nu.", "a dict with a tuple as a key"),
        (b"}]Ns.", "a dict with [] as a key"),
        (b"}" + SIZE + b"Ns.", "a dict with a Function as a key"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"Ns.", "a dict with a huge int as a key"),
        (DOUBLED + b"Q.", "a tuple in place of a storage"),
        (FLOATS + DOUBLED + b"X\x03\x00\x00\x00cpuK\x01tQ.", "a tuple in place of a storage"),
        (SIZE + b"](" + b"K\x01" * 65 + b"e\x85R.", "torch.Size of a list"),
        (SIZE + DOUBLED + b"\x85R.", "torch.Size of a tuple"),
        (SIZE + b"N\x85\x85R.", "torch.Size of (None,)"),
        (DOUBLED + b")R.", "a call of a tuple"),
        (b"N\x86.", "a stack with too few values"),
    ],
    ids=range(13),
)
def test_a_small_pickle_takes_little_time_and_memory(tmp_path, text, got):
    assert_refused(written(tmp_path / "w.pt", None, text=b"\x80\x02" + text), only(got))


def test_a_message_does_not_print_what_is_endless(tmp_path):
    file = written(tmp_path / "w.pt", None, text=b"}X\x01\x00\x00\x00w" + DOUBLED + b"s.")
    message = (
        f"from_torch: expected only tensors by name in {file}, got tuple at 'w'; pass the state "
        "dict alone, such as fdl.port.read_tensors(file)['model']"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_torch(file, {}, {})
    file = written(tmp_path / "v.pt", None, text=DOUBLED + b".")
    message = (
        "from_torch: expected a dict of tensors by name, or the path of a file, got tuple; pass "
        "model.state_dict(), or a path such as 'model.safetensors'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_torch(file, {}, {})


def test_keys_and_sizes_that_torch_writes_come_back(tmp_path):
    value = {1: "a", 2.5: "b", False: "c", None: "d", ("e", 6): "f"}
    size = Call(Named("torch", "Size"), (2, 3))
    assert read_tensors(written(tmp_path / "w.pt", [value, size])) == [value, (2, 3)]


def of(kind, metadata, key="0", count=2):
    made = tensor(kind, key, count, shape=(2,), strides=(1,))
    made.arguments = (*made.arguments, metadata)
    return made


def test_conjugate_and_negative_views_come_back(tmp_path):
    numbers = np.array([1 + 2j, 3 - 4j], "c8")
    half = Call(
        V3, Stored("HalfStorage", "half", 4), 0, (2,), (1,), False, Call(ORDERED), None, None
    )
    half.arguments[0].pid = ("storage", Named("torch.storage", "UntypedStorage"), "half", "cpu", 4)
    half.arguments = (*half.arguments[:6], Named("torch", "float16"), {"neg": True})
    both = {"conj": True, "neg": True}
    kind = "ComplexFloatStorage"
    value = {
        "none": of(kind, {"conj": False, "neg": False}),
        "conj": of(kind, {"conj": True}),
        "neg": of(kind, {"neg": True}),
        "both": of(kind, both),
        "half": half,
    }
    raw = {"0": numbers.tobytes(), "half": np.array([1.5, -2], "<f2").tobytes()}
    found = read_tensors(written(tmp_path / "w.pt", value, raw))
    assert {name: each.tolist() for name, each in found.items()} == {
        "none": [1 + 2j, 3 - 4j],
        "conj": [1 - 2j, 3 + 4j],
        "neg": [-1 - 2j, -3 + 4j],
        "both": [-1 + 2j, -3 - 4j],
        "half": [-1.5, 2],
    }
    assert not any(each.flags.writeable for each in found.values())


@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        ({"conj": True, "sparse": 1}, "a tensor with 'sparse': 1"),
        ({"neg": "yes"}, "a tensor with 'neg': 'yes'"),
        ([1], "[1] as the metadata of a tensor"),
    ],
)
def test_other_metadata_of_a_tensor_is_refused_by_name(tmp_path, metadata, got):
    file = written(tmp_path / "w.pt", {"w": of("FloatStorage", metadata)})
    assert_refused(file, only(got))


def test_each_byte_but_zero_is_true(tmp_path):
    value = {"all": of("BoolStorage", None, count=4), "last": tensor("BoolStorage", "0", 4)}
    value["last"].arguments = (*value["last"].arguments[:1], 2, (2,), (1,))
    file = written(tmp_path / "w.pt", value, {"0": b"\x02\x00\x80\x01"})
    found = read_tensors(file)
    assert found["all"].view(np.uint8).tolist() == [1, 0]
    assert found["last"].view(np.uint8).tolist() == [1, 1]
    like = {"all": np.zeros(2, bool), "last": np.zeros(2, bool)}
    made = from_torch(file, like, {"all": "all", "last": "last"})
    assert (~made["all"]).tolist() == [False, True]


def test_storages_that_overlap_do_not_fill_the_memory(tmp_path):
    value = [of("BoolStorage", None, count=10_000 - at) for at in range(9)]
    file = written(tmp_path / "w.pt", value, {"0": bytes(10_000)})
    assert_refused(file, whole("storages that overlap"))


def test_dtypes_are_names_and_storages_are_arrays(tmp_path):
    untyped = Stored("FloatStorage", "0", 3)
    untyped.pid = ("storage", Named("torch.storage", "UntypedStorage"), "0", "cpu", 3)
    value = [Named("torch", "float32"), Stored("FloatStorage", "0", 6), untyped]
    dtype, floats, raw = read_tensors(written(tmp_path / "w.pt", value))
    assert dtype == "float32"
    assert floats.dtype == np.float32 and floats.tolist() == [0, 1, 2, 3, 4, 5]
    assert raw.dtype == np.uint8 and raw.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "got"),
    [
        (
            {"offset": 1},
            "a tensor [2, 3] with offset 1 and strides [3, 1] in a storage of 6 numbers",
        ),
        (
            {"shape": (3, 3)},
            "a tensor [3, 3] with offset 0 and strides [3, 1] in a storage of 6 numbers",
        ),
        (
            {"strides": (3, 2)},
            "a tensor [2, 3] with offset 0 and strides [3, 2] in a storage of 6 numbers",
        ),
        (
            {"strides": (2**62, 2**62)},
            f"a tensor [2, 3] with offset 0 and strides [{2**62}, {2**62}] in a storage of 6 "
            "numbers",
        ),
        ({"count": 7}, "a storage of 7 numbers of float32 in the 24 bytes of 'archive/data/0'"),
        ({"count": -1}, "a storage of -1 numbers of float32 in the 24 bytes of 'archive/data/0'"),
        ({"key": "1"}, "no record for the storage '1'"),
        ({"key": "../byteorder"}, "no record for the storage '../byteorder'"),
        ({"offset": -1}, "a tensor (2, 3) with offset -1 " + NO_VIEW),
        ({"shape": (-2, 3)}, "a tensor (-2, 3) with offset 0 " + NO_VIEW),
        ({"shape": [2, 3]}, "a tensor [2, 3] with offset 0 " + NO_VIEW),
        ({"strides": (1,)}, "a tensor (2, 3) with offset 0 " + NO_VIEW.replace("3, 1", "1,")),
        ({"offset": "a"}, "a tensor (2, 3) with offset 'a' " + NO_VIEW),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, options, got):
    file = written(tmp_path / "w.pt", {"w": tensor(**options)})
    assert_refused(file, whole(got))


def test_what_is_no_storage_is_refused(tmp_path):
    value = Stored("FloatStorage", "0", 6)
    value.pid = ("storage", "float", "0", "cpu", 6)
    got = "('storage', 'float', '0', 'cpu', 6) in place of a storage"
    assert_refused(written(tmp_path / "w.pt", value), only(got))
    no_storage = {"w": Call(V2, 5, 0, (2,), (1,))}
    got = "a tensor (2,) with offset 0 " + NO_VIEW.replace("3, 1", "1,")
    assert_refused(written(tmp_path / "v.pt", no_storage), whole(got))


# Damaged files.


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    file = written(tmp_path / "w.pt", {"w": tensor()})
    content = file.read_bytes()
    for end in range(len(content)):
        file.write_bytes(content[:end])
        with pytest.raises(
            ValueError, match=r"w.pt: expected a complete (file of torch|safetensor)"
        ):
            read_tensors(file)


def test_a_flipped_byte_gives_an_error_or_another_number_and_never_a_crash(tmp_path):
    file = written(tmp_path / "w.pt", {"w": tensor()})
    content = bytearray(file.read_bytes())
    refused = 0
    for at in range(len(content)):
        for bits in 0x01, 0x80, 0xFF:
            file.write_bytes(content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :])
            try:
                read_tensors(file)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{file}: expected"), error
    assert refused > len(content)


def test_a_compressed_archive_is_refused(tmp_path):
    file = written(tmp_path / "w.pt", {"w": tensor()}, compress=zipfile.ZIP_DEFLATED)
    assert_refused(file, whole("a compressed record 'archive/byteorder'", KEEP))


def test_other_archives_and_old_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    got = "a zip file with {} records data.pkl and {} repeated names"
    assert_refused(tmp_path / "w.zip", whole(got.format(0, 0), KEEP))
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("a/data.pkl", "a")
        archive.writestr("b/data.pkl", "a")
    assert_refused(tmp_path / "v.zip", whole(got.format(2, 0), KEEP))
    with zipfile.ZipFile(tmp_path / "u.zip", "w") as archive:
        archive.writestr("a/data.pkl", "a")
        with pytest.warns(UserWarning, match="^Duplicate name: 'a/data.pkl'$"):
            archive.writestr("a/data.pkl", "a")
    assert_refused(tmp_path / "u.zip", whole(got.format(1, 1), KEEP))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    got = "a file in the format of torch before 1.6"
    assert_refused(tmp_path / "old.pt", whole(got, KEEP))


def test_a_record_beyond_the_end_is_refused(tmp_path):
    file = written(tmp_path / "w.pt", {"w": tensor(count=600, shape=(600,), strides=(1,))})
    content = file.read_bytes()
    # The directory at the end says that the record has 2400 bytes.
    name = content.rindex(b"archive/data/0")
    sizes = struct.pack("<II", 2400, 2400)
    file.write_bytes(content[: name - 26] + sizes + content[name - 18 :])
    got = "a record 'archive/data/0' with a wrong header or beyond the end of the file"
    assert_refused(file, whole(got))


# torch itself.


def test_what_torch_saves_comes_back(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not here: its files were not read")
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        all=base,
        turned=base.t(),
        part=base[1:3, ::2],
        half=torch.tensor([1.5, -2.25]).bfloat16(),
        eight=torch.tensor([1.5, -2.25]).to(torch.float8_e5m2),
        count=torch.tensor(3),
        unsigned=torch.tensor([1, 65535], dtype=torch.uint16),
        flags=torch.tensor([True, False]),
        waves=torch.tensor([1 + 2j]),
        turned_waves=torch.tensor([1 + 2j]).conj(),
        negative=torch.tensor([1 + 2j]).conj().imag,
        none=torch.zeros(0, 3),
        weight=torch.nn.Parameter(torch.ones(2)),
    )
    for protocol in 2, 3, 4:
        torch.save(state, tmp_path / "w.pt", pickle_protocol=protocol)
        found = read_tensors(tmp_path / "w.pt")
        assert list(found) == list(state)
        for name, each in state.items():
            assert (
                str(each.dtype) == f"torch.{found[name].dtype}" and found[name].shape == each.shape
            )
            wide = each.detach().resolve_conj().resolve_neg()
            wide = wide if wide.is_complex() else wide.double()
            np.testing.assert_array_equal(found[name].astype(wide.numpy().dtype), wide.numpy())


def test_a_whole_module_of_torch_is_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not here: its files were not read")
    torch.save(torch.nn.Linear(3, 2), tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", only("the name 'torch.nn.modules.linear.Linear'"))
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    got = "a file in the format of torch before 1.6"
    assert_refused(tmp_path / "old.pt", whole(got, KEEP))


SEEDED_BUGS = {
    "fdl/port/torch_files.py": (
        "port/test_torch_files.py",
        [
            ("if last >= len(numbers):", "if False:"),
            ("count * width > record.file_size", "False"),
            ("each >= 0 for each", "True for each"),
            ("start = offset * numbers.itemsize", "start = 0"),
            ("end > self.size", "False"),
            ("order.decode() != sys.byteorder", "False"),
            ("// (2 if numbers.dtype.kind == 'c' else 1)", ""),
            ('if order not in (b"little", b"big"):', "if False:"),
            ('"conj": np.conj', '"conj": np.negative'),
            ('"neg": np.negative', '"neg": np.positive'),
            ("numbers != 0", "numbers.view(bool)"),
            ("if self.copied > _COPIES * self.size:", "if False:"),
            ("made = found.name", "made = None"),
        ],
    ),
    "fdl/port/torch_pickles.py": (
        "port/test_torch_files.py",
        [
            ('raise Refused(f"the name', 'return Named(f"'),
            ('raise Refused(f"a tensor with', 'print(f"'),
            ("and len(sizes) <= MOST", ""),
            ("type(key) is list or", ""),
            ("each.bit_length() < 64", "True"),
            ("or not isinstance(found[1], Named)", ""),
            ('for name in ("conj", "neg") if', 'for name in ("conj",) if'),
        ],
    ),
}
