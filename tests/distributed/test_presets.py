"""The layouts that are worked out from a model's own paths."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d

EIGHT, GRID = AbstractMesh((8,), ("data",)), AbstractMesh((4, 2), ("data", "model"))
COLUMNS, ROWS = P(None, "model"), P("model", None)


def params_of(net, *shape, dtype="float32"):
    return jax.eval_shape(net.init, jax.random.key(0), np.ones(shape, dtype))[0]


def rules(layout):
    return dict(layout.rules)


def test_fsdp_cuts_the_longest_axis_that_can_be_cut():
    params = {"a": {"w": np.ones((16, 24)), "b": np.ones(12)}, "c": np.ones((8, 9, 10)), "d": 1.0}
    assert rules(d.fsdp(EIGHT, params)) == {
        "a/b": P(None),
        "a/w": P(None, "data"),
        "c": P("data", None, None),
        "d": P(),
    }


def test_fsdp_beside_tensor_parallel_cuts_another_axis():
    params = params_of(fdl.mlp([16], 8), 1, 12)
    both = d.fsdp(GRID, params, beside=d.tensor_parallel(GRID, params))
    assert rules(both) == {
        "dense_0/b": P("model"),
        "dense_0/w": P("data", "model"),
        "dense_1/b": P("data"),
        "dense_1/w": P("model", "data"),
    }


def test_the_pairs_of_a_transformer():
    net = fdl.gpt(32, 16, layers=2, heads=2, features=16, tied=False, gate=True, kv_heads=1)
    found = rules(d.tensor_parallel(GRID, params_of(net, 1, 16, dtype="int32")))
    block = "block/1/attend/attention_0"
    assert {found[f"{block}/{name}/w"] for name in "qkv"} == {COLUMNS}
    assert {found[f"{block}/{name}/b"] for name in "qkv"} == {P("model")}
    assert found[f"{block}/out/w"] == ROWS
    assert f"{block}/out/b" not in found
    up = next(path.rpartition("up/")[0] for path in found if path.startswith("block/0/mix"))
    assert found[f"{up}up/gate/w"] == found[f"{up}up/value/w"] == COLUMNS
    assert found[f"{up}down/w"] == ROWS
    assert (found["embed/w"], found["head/w"]) == (ROWS, COLUMNS)
    assert not any("norm" in path or "positions" in path for path in found)


def test_the_pairs_of_a_chain():
    found = rules(d.tensor_parallel(GRID, params_of(fdl.mlp([8, 6, 4, 12, 10], 3), 1, 5)))
    columns = [path for path, spec in found.items() if spec == COLUMNS]
    rows = [path for path, spec in found.items() if spec == ROWS]
    assert columns == ["dense_0/w", "dense_2/w", "dense_4/w"]
    assert rows == ["dense_1/w", "dense_3/w", "dense_5/w"]


def test_a_pair_that_the_axis_does_not_divide_stays_whole():
    found = rules(d.tensor_parallel(GRID, params_of(fdl.mlp([7, 8, 6], 3), 1, 5)))
    assert found == {"dense_2/w": COLUMNS, "dense_2/b": P("model"), "dense_3/w": ROWS}


def test_layers_that_do_not_feed_each_other_are_no_pair():
    params = {"dense_0": {"w": np.ones((4, 6))}, "dense_1": {"w": np.ones((8, 2))}}
    with pytest.raises(ValueError, match="got none among 'dense_0/w', 'dense_1/w'; write rules"):
        d.tensor_parallel(GRID, params)


def test_a_run_gives_its_params():
    run = fdl.start({"w": np.ones((8, 2), "float32")}, fdl.sgd(0.1))
    assert rules(d.fsdp(EIGHT, run)) == {"w": P("data", None)}


def test_fsdp_needs_an_axis_of_data():
    with pytest.raises(ValueError, match=r"^fsdp: expected a mesh with an axis 'data', got one"):
        d.fsdp(AbstractMesh((2,), ("model",)), {"w": np.ones(4)})


SEEDED_BUGS = {
    "fdl/distributed/presets.py": (
        "distributed/test_presets.py",
        [
            ("not spec[axis] and size", "size"),
            ("spec[max(free", "spec[min(free"),
            ('_COLUMNS = PartitionSpec(None, "model")', '_COLUMNS = PartitionSpec("model")'),
            ('rules | {path: PartitionSpec("model") for path in biases}', "rules"),
            ('last = ""', "last = path"),
            ("shapes[path], spec) for path", "shapes[path], PartitionSpec()) for path"),
            ('shapes[f"{last}/w"][1] == shapes[f"{path}/w"][0]', "True"),
        ],
    ),
}
