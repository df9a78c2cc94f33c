"""Attention in a ring of devices is attention, and each device has a part of the sequence."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fdl
from fdl import distributed as d

ONE = d.mesh(data=1, sequence=1)


def test_values_and_gradients_in_float64_are_those_of_the_whole_form(split):
    """Causal, with window, segments, mask, bias, slopes, cap and scale; in blocks; T = 9 on 4."""
    assert split["causal"] < 1e-10
    assert len(split["causal gradients"]) == 7 and min(split["causal gradients"]) > 0.01


def test_a_hidden_key_that_is_not_finite_changes_nothing(split):
    """3 queries, 9 keys on 4 devices, in vmap."""
    assert split["hidden"] < 1e-10
    assert min(split["hidden gradients"]) > 0.1


def test_bytes_per_device_fall_with_the_number_of_devices(split):
    """Scores [T / n, T / n] fall with the square; at last, queries, keys and values are left."""
    one, two, eight = (split[f"ring of {n}"] for n in (1, 2, 8))
    scores = 4 * 2 * 2 * 1024 * 1024  # bytes of [2, 2, 1024, 1024]
    assert one < 2.1 * scores
    assert two < one / 2.5
    assert eight < one / 40


def test_keys_and_values_and_their_gradients_go_around(split):
    """n - 1 passes of k and v forward, n of k, v and their gradients backward."""
    part = 2 * 1024 // 8 * 2 * 16 * 4
    sent = {(kind, size): times for kind, size, times, _ in split["sent in 8"]}
    assert sent["collective-permute", part] == 7 * 2 + 8 * 4
    assert {kind for kind, _ in sent} == {"collective-permute"}


def test_a_model_is_trained_on_parts_of_sequences(split):
    assert split["model"] < 1e-5
    assert split["model learned"] > 0.1


def test_activations_of_a_model_are_not_collected(split):
    """Only parameters are gathered, by fsdp; the largest has 16 x 64 numbers."""
    assert max(split["model gathers"]) <= 16 * 64 * 4


def test_sequences_are_cut_over_the_axis_of_this_name():
    assert d.layout(ONE, {}).sequence == ("sequence",)
    assert d.layout(ONE, {}, batch=("data", "sequence")).sequence == ()
    assert d.data_parallel(d.mesh(data=1)).sequence == ()
    cut = jax.jit(d.layout(ONE, {}).cut).lower((np.ones((2, 4)), np.ones(2)))
    assert '{"data"}, {"sequence"}' in cut.as_text()
    assert d.layout(ONE, {})._rows(1, (3, 2, 4)).spec == P(None, ("data",), ("sequence",))


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"^ring_attention: expected a mesh with an axis 'seq', got"
    ):
        d.ring_attention(ONE, "seq")
    with pytest.raises(
        ValueError, match=r"^ring_attention: expected chunk >= 1, .*got 0; leave it"
    ):
        d.ring_attention(ONE, chunk=0)
    x = np.ones((2, 1, 4), "float32")
    with pytest.raises(fdl.PathError, match="expected either on_weights or chunk, got both"):
        d.ring_attention(ONE)(x, x, x, on_weights=lambda w: w)
    with pytest.raises(ValueError, match=r"^attention: expected either chunk or kernel, got both"):
        fdl.attention(2, chunk=2, kernel=d.ring_attention(ONE))
    with pytest.raises(
        ValueError, match=r"^attention: expected dropout_rate 0 with a kernel, got a"
    ):
        fdl.attention(2, dropout_rate=0.1, kernel=d.ring_attention(ONE))


def test_decoding_does_not_call_the_kernel():
    def kernel(q, k, v, **options):
        assert q.shape[-3] > 1
        return fdl.dot_product_attention(q, k, v, **options)

    plain, own = (
        fdl.gpt(8, 8, layers=1, heads=2, features=8, kernel=each) for each in (None, kernel)
    )
    params, _ = plain.init(jax.random.key(0), np.ones((1, 4), int))
    prompt = np.array([[3, 1, 4]])
    found = [fdl.generate(each, params, prompt, 5) for each in (plain, own)]
    np.testing.assert_array_equal(*found)


SEEDED_BUGS = {
    "fdl/ops/attention_ring.py": (
        "distributed/test_sequence_parallel.py",
        [
            (
                "start, count = keys.place[0], keys.place.shape[0]",
                "start, count = 0, keys.place.shape[0]",
            ),
            ("found.beside(done.largest)[1:]", "found[1:]"),
            ("d[1], keys = _passed_on((d[1], keys), ring)", "keys = _passed_on(keys, ring)"),
            ("length=turns)", "length=turns - 1)"),
            ("(i, (i + 1) % n)", "(i, (i + 2) % n)"),
            ("columns = n * min(ring.chunk or part, part)", "columns = n"),
        ],
    ),
    "fdl/ops/products.py": (
        "distributed/test_sequence_parallel.py",
        [("if x.ndim < 2 or cut:", "if x.ndim < 2:")],
    ),
    "fdl/distributed/layouts.py": (
        "distributed/test_sequence_parallel.py",
        [("after = self.sequence or None if tokens else None", "after = None")],
    ),
    "fdl/layers/transformer.py": (
        "distributed/test_sequence_parallel.py",
        [("{**self.parts, **cache}, self.decoding_score", "{**self.parts, **cache}, self.score")],
    ),
}
