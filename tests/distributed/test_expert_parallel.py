"""Experts on several devices are experts on one, and tokens are exchanged by all-to-alls."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d

GRID = AbstractMesh((2, 2, 2), ("data", "expert", "model"))
NET = fdl.chain(
    fdl.mixture_of_experts(fdl.feed_forward(8, hidden=16), 4),
    fdl.feed_forward(8, hidden=16),
)
PARAMS = jax.eval_shape(NET.init, jax.random.key(0), np.ones((1, 3, 8), "float32"))[0]


def test_training_is_that_on_one_device(split):
    """Twenty steps on a mesh of 2 x 4, beside fsdp, with experts that are full."""
    assert split["experts"] < 1e-5
    assert split["experts learned"] > 0.1


def test_a_device_holds_its_experts_only(split):
    sizes = split["experts of"]
    experts = sum(size for path, size in sizes.items() if "/experts/" in path)
    params, optimizer, activations = split["experts on 8"]
    assert params == sum(sizes.values()) - experts + experts // 8
    assert optimizer == 2 * params + 4
    assert params + optimizer + activations < sum(split["experts on 1"]) * 0.8


def test_tokens_are_exchanged_by_four_all_to_alls(split):
    """There and back, in both passes; a device has 16 / 8 sequences, and room for 8 x 4 tokens."""
    found = [each for each in split["experts on 8 send"] if each[0] == "all-to-all"]
    assert found == [["all-to-all", 2 * 8 * 4 * 16 * 4, 4, 8]]
    assert not any(each[0] == "all-to-all" for each in split["experts on 1 send"])


def test_no_expert_is_gathered(split):
    sent = split["experts on 8 send"]
    assert max(size for kind, size, *_ in sent if kind != "all-to-all") < 16 * 256 * 4


def test_experts_are_found_by_their_paths():
    layout = d.expert_parallel(GRID, PARAMS)
    experts = {path for path in fdl.paths.leaves(PARAMS) if "/experts/" in path}
    assert dict(layout.rules) == {path: P("expert") for path in experts}
    assert layout.batch == ("data", "expert")


def test_experts_beside_other_layouts():
    both = d.expert_parallel(GRID, PARAMS, beside=d.tensor_parallel(GRID, PARAMS))
    assert both.spec("feed_forward_0/up/w") == P(None, "model")
    assert both.spec("mixture_of_experts_0/experts/up/w") == P("expert")
    whole = d.fsdp(GRID, PARAMS, beside=both)
    assert whole.spec("feed_forward_0/up/w") == P("data", "model")
    assert whole.spec("mixture_of_experts_0/experts/up/w") == P("expert", None, "data")
    assert whole.spec("mixture_of_experts_0/router/w") == P("data", None)
    assert whole.batch == ("data", "expert")


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"^expert_parallel: expected a mesh with an axis 'expert', "
    ):
        d.expert_parallel(AbstractMesh((2,), ("data",)), PARAMS)
    three = AbstractMesh((3,), ("expert",))
    with pytest.raises(
        ValueError, match=r"whose experts 3 devices can share, got none among 'feed_"
    ):
        d.expert_parallel(three, PARAMS)


SEEDED_BUGS = {
    "fdl/distributed/presets.py": (
        "distributed/test_expert_parallel.py",
        [
            ("batch=(*batch, EXPERT)", "batch=batch"),
            ("rules | rest, batch", "rules, batch"),
            ("batch=beside.batch if beside else None", "batch=None"),
        ],
    ),
    "fdl/distributed/layouts.py": (
        "distributed/test_expert_parallel.py",
        [
            ("{*self.batch} - {EXPERT}", "{*self.batch}"),
            ("self.sequence or EXPERT in self.mesh.axis_names", "self.sequence"),
        ],
    ),
    "fdl/ops/sharding.py": (
        "distributed/test_expert_parallel.py",
        [("if EXPERT not in mesh.auto_axes or", "if True or")],
    ),
}
