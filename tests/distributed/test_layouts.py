"""Runs on eight devices are those on one, and layouts that cannot be are refused."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d

ONE = d.mesh(data=1, model=1)


@pytest.mark.parametrize("layout", ["data", "fsdp", "tensor", "both"])
def test_a_hundred_steps_in_float64_are_those_on_one_device(eight, layout):
    assert eight[f"adamw {layout}"] < 1e-10
    assert eight["adamw learned"] > 0.1


def test_microbatches_and_other_optimizers_are_those_on_one_device(eight):
    assert max(eight["pieces fsdp"], eight["muon both"]) < 1e-10
    assert min(eight["pieces learned"], eight["muon learned"]) > 0.1


def test_networks_in_float32_are_those_on_one_device(eight):
    """With batch norm over the whole batch, dropout, embeddings and attention."""
    names = ["gpt tensor", "gpt both", "resnet fsdp"]
    assert {name: eight[name] for name in names if eight[name] > 1e-5} == {}
    assert min(eight["gpt learned"], eight["resnet learned"]) > 0.1


def test_records_evaluation_and_prediction_are_those_on_one_device(eight):
    assert eight["records"] < 1e-5
    assert eight["evaluated"] == 0
    assert eight["evaluated in jit"] < 1e-6
    assert eight["predicted"] < 1e-5
    assert eight["sweep"] < 1e-5


def test_sources_and_data_that_are_cut_give_the_same_run(eight):
    assert eight["streamed"] == eight["data cut"] == 0


def test_one_program_overwrites_its_run_and_keeps_its_layout(eight):
    assert eight["compiled"] == 1
    assert eight["compiled again"] == []
    assert eight["donated"] is True
    assert eight["layout kept"] is True


def test_a_scan_gathers_one_block_at_a_time(split):
    """Two weights [32, 128] of a block, in both passes; outside, only the last layer's [32, 8]."""
    assert split["blocks"] < 1e-5
    assert split["blocks learned"] > 0.1
    assert split["gathered in loops"].count(32 * 128) >= 3
    assert max(split["gathered in loops"]) == 32 * 128
    assert max(split["gathered outside"]) <= 32 * 8


@pytest.mark.parametrize("devices", ["one", "four", "two by two"])
def test_a_checkpoint_of_eight_devices_goes_on_on_others(eight, devices):
    assert eight[f"laid out on {devices}"] is True
    assert eight[f"elastic {devices}"] < 1e-5


def test_a_result_in_memory_goes_on_in_another_layout(eight):
    assert eight["moved in memory"] < 1e-5


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "no match",
            "pattern '**/q/w': expected at least one match among 4 paths, got none; the most "
            "similar paths are 'dense_1/w'",
        ),
        (
            "not divided",
            "place: expected a shape that P('data') can split on the mesh data=8, got 'dense_0/w' "
            "[6, 16], where 6 is not a multiple of 8; change the size, or put a rule",
        ),
        (
            "too many",
            "place: expected a parameter with 2 or more axes for P(None, 'data'), got 'dense_0/b' "
            "[16] on the mesh data=8; put a rule that",
        ),
        (
            "batch",
            "fit: expected batches that 8 devices can share equally, on the mesh data=8, got 12 "
            "examples at '0' [12, 6]; choose a batch_size",
        ),
        ("piece", "got 4 examples at '0' [4, 4, 6]; choose a batch_size, or a microbatch"),
        (
            "too large",
            "mesh: expected axes whose sizes multiply to 8 devices, or fewer, got data=16; to try",
        ),
        (
            "axis",
            "layout: expected axes of the mesh data=8, each at most once, for the rule '**/w', got",
        ),
        (
            "not a spec",
            "layout: expected a jax.sharding.PartitionSpec for '**/w', got 'model'; write P(",
        ),
        ("no axis", "tensor_parallel: expected a mesh with an axis 'model', got one with 'data'; "),
        ("no pair", "whose width 2 devices can share, got none among 'conv_0/w'; write rules"),
    ],
)
def test_what_cannot_be_is_refused(eight, case, message):
    assert message in eight["messages"][case]


def test_the_first_rule_that_matches_counts():
    rules = {"*/w": P("data"), "**": P(None, "model"), "dense_0/w": P("model")}
    layout = d.layout(ONE, rules)
    assert layout.spec("dense_0/w") == P("data")
    assert layout.spec("block/0/w") == P(None, "model")
    assert d.layout(ONE, {}).spec("w") == P()


def test_a_batch_is_cut_over_the_axes_that_the_layout_says():
    assert d.layout(ONE, {}).batch == ("data",)
    assert d.layout(ONE, {}, batch=("model", "data")).batch == ("model", "data")
    assert d.layout(d.mesh(model=1), {}).batch == ()
    with pytest.raises(ValueError, match=r"for the batch, got 'rows'; correct the "):
        d.layout(ONE, {}, batch="rows")


def test_the_state_of_an_optimizer_follows_the_parameters():
    params = {"a": {"w": np.ones((4, 6), "float32")}, "w": np.ones(4, "float32")}
    layout = d.layout(ONE, {"a/w": P(None, "model"), "w": P("data")})
    states = {
        "same": fdl.start(params, fdl.adamw(0.1)),
        "memory": fdl.start(params, fdl.lbfgs(0.1, memory_size=3)),
        "factored": fdl.start(params, fdl.adafactor(0.1)),
    }
    found = {
        name: {
            path: leaf.spec
            for path, leaf in fdl.paths.leaves(layout.shardings(run).opt_state).items()
        }
        for name, run in states.items()
    }
    assert found["same"]["0/mu/a/w"] == found["same"]["0/nu/a/w"] == P(None, "model")
    assert found["same"]["0/nu/w"] == P("data")
    assert found["same"]["0/count"] == P()
    assert found["memory"]["0/diff_params_memory/a/w"] == P(None, None, "model")
    assert found["memory"]["0/diff_updates_memory/w"] == P(None, "data")
    assert found["memory"]["0/weights_memory"] == P()
    assert found["factored"]["0/v/a/w"] == P(None, "model")
    assert found["factored"]["0/v_col/a/w"] == P()


def test_a_layout_says_what_it_is():
    layout = d.layout(ONE, {"**/w": P(None, ("data", "model"))})
    assert repr(layout) == "<Layout on data=1, model=1: '**/w': P(None, ('data', 'model'))>"
    assert repr(d.data_parallel(d.mesh(data=1))) == "<Layout on data=1: no rules>"


def test_placing_keeps_values_and_random_keys():
    run = fdl.start({"w": np.arange(6.0, dtype="float32")}, fdl.sgd(0.1, momentum=0.9), seed=5)
    run = run._replace(opt_state=(run.opt_state, jax.random.key(7)))
    placed = d.place(run, d.fsdp(d.mesh(data=1), run))
    assert placed.params["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (int(placed.seed), int(placed.step)) == (5, 0)
    assert jax.random.key_data(placed.opt_state[1]).tolist() == [0, 7]
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(placed)} == {d.mesh(data=1)}


def test_the_users_array_is_copied():
    w = np.zeros(3, "float32")
    placed = d.place(fdl.start(w, fdl.sgd(0.1)), d.data_parallel(d.mesh(data=1)))
    w[:] = 1
    assert placed.params.tolist() == [0, 0, 0]


SEEDED_BUGS = {
    "fdl/distributed/layouts.py": (
        "distributed/test_layouts.py",
        [
            ("return next(found, PartitionSpec())", "return [*found, PartitionSpec()][-1]"),
            ("state=whole(run.state),", "state=run.state,"),
            ("if leaf.shape[axis] % parts:", "if False:"),
            ("if size % parts:", "if False:"),
            ("len(numbers[above]) > FEW", "False"),
            ("PartitionSpec(*(None,) * more, *self.spec(end))", "self.spec(end)"),
            ("while parts and parts[-1] is None:", "while False:"),
            ("paths.pick(shapes, [pattern for pattern, _ in layout.rules])", ""),
        ],
    ),
    "fdl/train/program.py": (
        "distributed/test_layouts.py",
        [("return laid_out(run, split(sums, like=means))", "return run, split(sums, like=means)")],
    ),
    "fdl/ops/sharding.py": (
        "distributed/test_layouts.py",
        [("copy=not isinstance(x, jax.Array) or None", "copy=None")],
    ),
}
