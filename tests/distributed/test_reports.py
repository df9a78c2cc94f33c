"""What a step sends between devices: the formulas, and the text of compiled programs."""

import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl import distributed as d
from fdl.distributed.collectives import collectives

# The network of eight.py's reports: dense 32 -> 64 -> 32 -> 8, batches of 16, in float32.
WEIGHTS = {"dense_0": 4 * 32 * 64, "dense_1": 4 * 64 * 32, "dense_2": 4 * 32 * 8}
BIASES = 4 * (64 + 32 + 8)
PARAMS = sum(WEIGHTS.values()) + BIASES


def total(report, kind):
    return sum(size * times for name, size, times, _ in report[4:] if name == kind)


def test_data_parallel_adds_each_gradient_once(eight):
    report = eight["report"]["data"]
    assert {each[0] for each in report[4:]} == {"all-reduce"}
    assert total(report, "all-reduce") == pytest.approx(PARAMS, rel=0.02)
    assert report[0] == PARAMS
    assert report[3] == 6


def test_fsdp_gathers_weights_for_both_passes_and_adds_gradients(eight):
    """The gradient of x is not needed, so the backward pass does not gather the first weights."""
    report = eight["report"]["fsdp"]
    backward = WEIGHTS["dense_1"] + WEIGHTS["dense_2"]
    assert total(report, "all-gather") == pytest.approx(PARAMS + backward, rel=0.02)
    assert total(report, "all-reduce") == pytest.approx(PARAMS, rel=0.02)
    assert {each[0] for each in report[4:]} == {"all-gather", "all-reduce"}


def test_fsdp_keeps_an_eighth_and_never_gathers_all_at_once(eight):
    report = eight["report"]["fsdp"]
    assert report[0] <= PARAMS / 8 * 1.02
    assert report[1] <= 2 * PARAMS / 8 * 1.02
    assert report[3] == 0
    gathered = [size for name, size, _, _ in report[4:] if name == "all-gather"]
    assert max(gathered) == max(WEIGHTS.values())
    assert {each[3] for each in report[4:]} == {8}


def test_tensor_parallel_adds_the_output_of_a_pair_once(eight):
    """[16, 32] numbers in the forward pass; the backward pass ends in the first layer."""
    report = eight["report"]["tensor"]
    assert report[4:] == [["all-reduce", 4 * 16 * 32, 1, 2]]
    halves = 4 * (32 * 64 + 64 + 64 * 32) // 2
    assert report[0] == halves + WEIGHTS["dense_2"] + 4 * (32 + 8)


def test_the_text_is_a_table(eight):
    lines = eight["text"].splitlines()
    assert lines[0] == "params               17,824 bytes on each device"
    assert lines[3] == "all-reduce              1 x       17,828 bytes among 8 devices"
    assert lines[4].startswith("whole on every device: dense_0/w 8,192, dense_1/w 8,192, ")


def test_a_report_of_one_device():
    objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
    optimizer = fdl.sgd(0.1, momentum=0.9)
    run = fdl.start(np.zeros(6, "float32"), optimizer)
    found = d.report(objective, optimizer, run, jnp.ones((8, 6)), batch_size=4, microbatch=2)
    assert (found.params, found.optimizer, found.collectives, found.whole) == (24, 24, [], {})
    assert found.sent() == found.sent("all-gather") == 0


PROGRAM = """HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %each = f32[16]{0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%cond (carry: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce(%p, %q), replica_groups={{0,1},{2,3}}, to_apply=%add
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %b = f32[2]{0} reduce-scatter(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%b), replica_groups={{0,1,2,3}}, dimensions={0}
  %d = f32[8]{0} all-gather-done(%c)
  ROOT %e = pred[8]{0} collective-permute(%d), source_target_pairs={{0,1},{1,0}}
}
"""


def test_the_text_of_a_program_is_read_with_its_loops():
    assert [tuple(each) for each in collectives(PROGRAM)] == [
        ("all-gather", 64, 3, 4),
        ("all-reduce", 32 + 16, 1, 2),
        ("reduce-scatter", 8 * 4, 1, 4),
        ("all-gather", 32, 1, 4),
        ("collective-permute", 8, 1, 2),
    ]


SEEDED_BUGS = {
    "fdl/distributed/collectives.py": (
        "distributed/test_reports.py -k loops",
        [
            ("count * (int(trips.group(1)) if trips else 1)", "count"),
            ('(devices if kind == "reduce-scatter" else 1)', "1"),
            ("return max(sizes)", "return sum(sizes)"),
            ('listed.group(1).count(",") + 1', "2 + 2"),
            ("iota.group(2)", "iota.group(1)"),
        ],
    ),
    "fdl/distributed/layouts.py": (
        "distributed/test_reports.py",
        [
            ('bool(primitive.name != "sharding_constraint")', "True"),
            ("return jax.checkpoint(gathered, policy=_but_gathered)", "return f"),
        ],
    ),
}
