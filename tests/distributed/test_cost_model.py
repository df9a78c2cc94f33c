"""The estimates are the closed forms, and the ranking is what they say."""

import jax
import numpy as np
import pytest

import fdl
from fdl import distributed as d

CLUSTER = d.Cluster(
    chips=4,
    flops=1e9,
    memory=1e6,
    memory_speed=1e8,
    link_speed=1e6,
    network_speed=1e5,
    group=4,
    efficiency=0.5,
)
NET = fdl.mlp([64], 16, activation=fdl.tanh)
X = jax.ShapeDtypeStruct((2, 32), "float32")
PARAMS = 4 * (32 * 64 + 64 + 64 * 16 + 16)


def choices(cluster=CLUSTER, batch_size=8, net=NET):
    found = d.recommend(net, X, fdl.adam(0.1), cluster=cluster, batch_size=batch_size)
    return {(each.preset, *each.axes.values()): each for each in found}


def test_the_parts_of_a_step_are_the_closed_forms():
    found = choices()
    cost = fdl.look.bill(NET, X, fdl.adam(0.1))
    flops = 4 * (cost.total.forward_flops + cost.total.backward_flops)
    for each in found.values():
        assert each.parts["compute"] == pytest.approx(flops / 4 / 0.5e9)
    data, fsdp = found["data_parallel", 4], found["fsdp", 4]
    assert data.parts["data"] == pytest.approx(2 * PARAMS * 3 / 4 / 0.5e6)
    assert fsdp.parts["data"] == pytest.approx(3 * PARAMS * 3 / 4 / 0.5e6)
    assert data.parts["model"] == fsdp.parts["model"] == 0
    state, kept = cost.optimizer_bytes, cost.total.kept_bytes
    assert data.memory == int(2 * PARAMS + state + kept)
    assert fsdp.memory == int((2 * PARAMS + state) / 4 + kept)
    traffic = 2 * PARAMS + 2 * (PARAMS + state) / 4 + 2 * kept
    assert fsdp.parts["memory"] == pytest.approx(traffic / 0.5e8)


def test_tensor_parallel_cuts_the_pair_and_adds_its_output_in_both_passes():
    both = choices()["tensor_parallel", 2, 2]
    held = PARAMS - 4 * (32 * 64 + 64 + 64 * 16) // 2
    assert both.parts["data"] == pytest.approx(2 * held / 2 / 0.5e6)
    outputs = 4 * 8 * 16  # bytes of [8, 16]
    assert both.parts["model"] == pytest.approx(4 * outputs / 2 / 2 / 0.5e6)
    slowest = max(both.parts[name] for name in ("compute", "memory", "data"))
    assert both.seconds == pytest.approx(slowest + both.parts["model"])
    assert both.bottleneck == "data"


def test_what_does_not_fit_comes_last():
    small = CLUSTER._replace(memory=2.2 * PARAMS)
    found = [*choices(small).values()]
    assert [each.fits for each in found] == sorted([each.fits for each in found], reverse=True)
    assert not choices(small)["data_parallel", 4].fits
    assert choices(small)["fsdp", 4].fits
    fitting = [each.seconds for each in found if each.fits]
    assert fitting == sorted(fitting)


def test_more_than_one_group_sends_over_the_network():
    apart = choices(CLUSTER._replace(group=2))
    assert apart["data_parallel", 4].parts["data"] == pytest.approx(
        10 * choices()["data_parallel", 4].parts["data"]
    )
    assert ("tensor_parallel", 1, 4) not in apart


def test_a_network_without_pairs_has_no_tensor_parallel():
    found = choices(net=fdl.dense(16))
    assert {each.preset for each in found.values()} == {"data_parallel", "fsdp"}


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(
        ValueError, match="recommend: expected a batch that 64 chips can share, got"
    ):
        choices(CLUSTER._replace(chips=64), batch_size=5)


def test_the_known_chips_are_data():
    assert np.prod(d.H100) > np.prod(d.A100) > 0


SEEDED_BUGS = {
    "fdl/distributed/cost_model.py": (
        "distributed/test_cost_model.py",
        [
            ("(3 if cut else 2)", "2"),
            ("4 * pairs.outputs", "2 * pairs.outputs"),
            ("(not choice.fits, choice.seconds)", "choice.seconds"),
            ("fast if cluster.chips <= cluster.group else", "fast if True else"),
            ("(2 * held + state) / parts + kept", "2 * held + state + kept"),
        ],
    ),
}
