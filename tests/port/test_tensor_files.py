"""Tensors of files, folders and shards, by name; whatever points elsewhere is refused."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fdl.port import from_torch, read_tensors
from tests.port.test_torch_files import SIX, tensor, written

ONE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
TWO = {"c": np.array([1.5, -2.0], ml_dtypes.bfloat16), "d": np.zeros((0, 2), np.int64)}


def sharded(folder, weight_map=None, index="model.safetensors.index.json"):
    save_file(ONE, folder / "one.safetensors")
    save_file(TWO, folder / "two.safetensors")
    usual = dict.fromkeys(ONE, "one.safetensors") | dict.fromkeys(TWO, "two.safetensors")
    text = {"metadata": {}, "weight_map": usual if weight_map is None else weight_map}
    (folder / index).write_text(json.dumps(text))
    return folder / index


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, each in wanted.items():
        assert found[name].dtype == each.dtype
        np.testing.assert_array_equal(found[name], each)


def test_a_file_a_folder_and_an_index_come_back(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    for source in tmp_path, str(tmp_path), tmp_path / "model.safetensors":
        assert_same(read_tensors(source), ONE)
    (tmp_path / "b").mkdir()
    index = sharded(tmp_path / "b")
    for source in index, tmp_path / "b":
        assert_same(read_tensors(source), ONE | TWO)
    (tmp_path / "c").mkdir()
    written(tmp_path / "c" / "pytorch_model.bin", {"w": tensor()})
    assert_same(read_tensors(tmp_path / "c"), {"w": np.frombuffer(SIX, "<f4").reshape(2, 3)})


def test_the_numbers_are_read_when_they_are_used(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path)["a"]
    assert not found.flags.writeable and not found.flags.owndata


@pytest.mark.parametrize("length", [640, 640 + 65536, int.from_bytes(b"PK", "little")])
def test_a_header_whose_length_looks_like_the_start_of_a_torch_file_is_read(tmp_path, length):
    info = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"w": info}).encode().ljust(length)
    body = np.float32([1.5, -2]).tobytes()
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + header + body)
    assert_same(read_tensors(tmp_path / "w.safetensors"), {"w": np.float32([1.5, -2])})


def refused(kind, source, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        read_tensors(source)


@pytest.mark.parametrize(
    "name",
    ["../one.safetensors", "/etc/passwd", "b/w", "..", ".", "", "a\\b", "a\0", "a.index.json"],
)
def test_an_index_that_points_outside_of_its_folder_is_refused(tmp_path, name):
    index = sharded(tmp_path, {"a": name})
    message = (
        f"{index}: expected shards in the folder of the index, got {name!r}; do not use this "
        "index, because it points outside of its folder"
    )
    refused(ValueError, tmp_path, message)


def test_a_missing_shard_is_named(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    message = (
        f"{index}: expected the shard two.safetensors beside the index, got no such file; "
        "download it"
    )
    refused(FileNotFoundError, tmp_path, message)


def test_shards_that_are_not_those_of_the_index_are_refused(tmp_path):
    index = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    message = (
        f"{index}: expected the tensor 'b' in the shard two.safetensors, got a file without it; "
        "download the shard and the index again"
    )
    refused(ValueError, tmp_path, message)
    index = sharded(tmp_path, {"a": "one.safetensors"})
    message = (
        f"{index}: expected only tensors that the index lists, got 'b' in a shard; download the "
        "shards and the index again"
    )
    refused(ValueError, tmp_path, message)


@pytest.mark.parametrize(
    ("value", "got"), [([1, 2], "[1, 2]"), ({"a": tensor(), 3: 4}, "a dict with other keys")]
)
def test_a_shard_that_is_not_a_dict_by_name_is_refused(tmp_path, value, got):
    index = sharded(tmp_path, {"a": "one.bin"}, "pytorch_model.bin.index.json")
    file = written(tmp_path / "one.bin", value)
    message = (
        f"{file}: expected a shard with a dict of tensors by name, got {got}; download it again"
    )
    refused(ValueError, index, message)


def test_a_shape_that_numpy_lacks_is_refused(tmp_path):
    file, shape = tmp_path / "w.safetensors", [0, 2**62, 2**62]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    header = header.ljust(-len(header) % 8 + len(header))
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    message = (
        f"{file}: expected shapes that NumPy has, got {shape} at 'w'; save this tensor again in "
        "another shape"
    )
    refused(ValueError, file, message)


def test_an_index_that_is_none_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for text, got in ("[1]", "[1]"), ('{"weight_map": {"a": 3}}', "{'weight_map': {'a': 3}}"):
        index.write_text(text)
        message = (
            f"{index}: expected an index with a `weight_map` from tensors to files, got {got}; "
            "download it again"
        )
        refused(ValueError, index, message)
    index.write_text('{"weight_map": ')
    with pytest.raises(
        ValueError, match=r"json: expected a complete JSON file, got an error \(Exp"
    ):
        read_tensors(index)


def test_a_half_downloaded_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(ONE, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError,
        match=r"model.safetensors: expected a complete safetensors file, got .*; download it or "
        r"save it again$",
    ):
        read_tensors(tmp_path)


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory"):
        read_tensors(tmp_path / "w")
    message = (
        f"{tmp_path}: expected one of model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json in this folder, got none; download the "
        "whole model"
    )
    refused(FileNotFoundError, tmp_path, message)
    message = (
        "read_tensors: expected the path of a file or a folder, got 3; pass a path such as "
        "'model.safetensors'"
    )
    refused(ValueError, 3, message)
    message = (
        "from_torch: expected a dict of tensors by name, or the path of a file, got 3; pass "
        "model.state_dict(), or a path such as 'model.safetensors'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_torch(3, {}, {})
    file = written(tmp_path / "w.pt", {"model": {"w": tensor()}, "epoch": 3})
    message = (
        f"from_torch: expected only tensors by name in {file}, got dict at 'model'; pass the state "
        "dict alone, such as fdl.port.read_tensors(file)['model']"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_torch(file, {}, {})


SEEDED_BUGS = {
    "fdl/port/tensor_files.py": (
        "port/test_tensor_files.py",
        [
            ("and start[4:] != b", "and start != b"),
            ("or not all(isinstance(name, str) for name in found)", ""),
            ("name == Path(name).name and", ""),
            ("if tensor not in shards[name]:", "if False:"),
            ("if not (index.parent / name).is_file():", "if False:"),
            ("if shard_of.get(t) != name", "if False"),
            ("raw.astype(bool) if dtype.kind", "raw.view(np.uint8) if dtype.kind"),
        ],
    ),
}
