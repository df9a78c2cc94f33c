"""Weights from torch and back: every form of a rule, both directions, and what does not fit."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import fdl
from fdl.port import from_torch, to_torch, torch_names, torch_report

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def shaped(**shapes):
    return fdl.paths.tree(
        {path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in shapes.items()}
    )


def like(shapes):
    return shaped(**shapes)


def assert_bits(one, other):
    one, other = fdl.paths.leaves(one), fdl.paths.leaves(other)
    assert set(one) == set(other)
    for path, each in one.items():
        left, right = np.asarray(each), np.asarray(other[path])
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.tobytes() == right.tobytes(), path


# Rules. For each: the table, the shapes in fdl, the tensors of torch, and what each path must get.

W, B, K, V = draw(4, 3), draw(4), draw(5, 2, 3, 4), draw(7, 3)
RULES = {
    "as it is": ({"n/scale": "ln.weight"}, {"ln.weight": B}, {"n/scale": B}),
    "transposed": ({"d/w": "fc.weight: o i -> i o"}, {"fc.weight": W}, {"d/w": W.T}),
    "convolution": (
        {"c/w": "c.weight: o i h w -> h w i o"},
        {"c.weight": K},
        {"c/w": K.transpose(2, 3, 1, 0)},
    ),
    "transposed convolution": (
        {"c/w": "c.weight: i o h w -> h w o i"},
        {"c.weight": K},
        {"c/w": K.transpose(2, 3, 1, 0)},
    ),
    "patch": (
        {"p/w": "p.weight: o c h w -> (h w c) o, h=3 w=4"},
        {"p.weight": K},
        {"p/w": K.transpose(2, 3, 1, 0).reshape(24, 5)},
    ),
    "split": (
        {"a/{q,k,v}/w": "qkv.weight: o i -> i o | split 1"},
        {"qkv.weight": np.concatenate([W, V, 2 * W])},
        {"a/q/w": W.T, "a/k/w": V.T, "a/v/w": 2 * W.T},
    ),
    "split from the end": (
        {"a/{k,v}/b": "kv.bias | split -1"},
        {"kv.bias": np.concatenate([B, 2 * B[:2]])},
        {"a/k/b": B, "a/v/b": 2 * B[:2]},
    ),
    "joined": (
        {"qkv/w": "{q,k,v}.weight: o i -> i o | join 1"},
        {"q.weight": W, "k.weight": 2 * W, "v.weight": 3 * W},
        {"qkv/w": np.concatenate([W, 2 * W, 3 * W]).T},
    ),
    "joined, from the end": (
        {"cell/*/w": "h.*.{i,f}.w | join -1"},
        {"h.0.i.w": V, "h.0.f.w": 2 * V},
        {"cell/0/w": np.concatenate([V, 2 * V], 1)},
    ),
    "per head": (
        {"a/{q,k}/w": "qk.weight: (h s k) i -> i (s h k), h=2 s=2 | split 1"},
        {"qk.weight": np.arange(24, dtype=np.float32).reshape(8, 3)},
        {
            "a/q/w": np.arange(24, dtype=np.float32).reshape(8, 3)[[0, 1, 4, 5]].T,
            "a/k/w": np.arange(24, dtype=np.float32).reshape(8, 3)[[2, 3, 6, 7]].T,
        },
    ),
    "several names": (
        {"a/{q,k}/{w,b}": "{q_proj,k_proj}.{weight,bias}"},
        {"q_proj.weight": W, "q_proj.bias": B, "k_proj.weight": 2 * W, "k_proj.bias": 2 * B},
        {"a/q/w": W, "a/q/b": B, "a/k/w": 2 * W, "a/k/b": 2 * B},
    ),
    "blocks": (
        {"block/*/n_*/scale": "h.*.ln_*.weight", None: ["h.*.mask"]},
        {"h.0.ln_1.weight": B, "h.10.ln_2.weight": 2 * B, "h.10.mask": W},
        {"block/0/n_1/scale": B, "block/10/n_2/scale": 2 * B},
    ),
    "axes of size 1": ({"t/w": "cls: 1 1 d -> 1 d"}, {"cls": W[:1, None]}, {"t/w": W[:1]}),
    "scalar": ({"s": "scale"}, {"scale": np.float32(2.0)[()]}, {"s": np.float32(2.0)}),
    "empty": (
        {"e": "e: a b -> b a"},
        {"e": np.zeros((0, 3), np.float32)},
        {"e": np.zeros((3, 0), "f4")},
    ),
    "tied": (
        {"e/w": "wte.weight = head.weight"},
        {"wte.weight": V, "head.weight": V.copy()},
        {"e/w": V},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_reads_what_it_says_and_writes_the_same_tensors(name):
    table, tensors, wanted = RULES[name]
    shapes = {path: np.shape(each) for path, each in wanted.items()}
    report = torch_report(tensors, like(shapes), table)
    assert report and report.differences() == []
    params = from_torch(tensors, like(shapes), table)
    assert_bits(params, fdl.paths.tree(wanted))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    left = {key: each for key, each in tensors.items() if "mask" not in key}
    assert_bits(to_torch(params, table), left)


def test_two_biases_are_added_and_written_as_one():
    one, two = np.float32([1, -0.0, 3]), np.float32([2, -0.0, -3])
    table = {"b": "bias_ih + bias_hh"}
    params = from_torch({"bias_ih": one, "bias_hh": two}, {"b": jnp.zeros(3)}, table)
    assert_bits(params, {"b": np.float32([3, -0.0, 0])})
    back = to_torch(params, table)
    assert not back["bias_hh"].any()
    assert_bits(from_torch(back, params, table), params)  # -0.0 too


def test_halves_are_cast_before_they_are_added():
    one, two = np.float16([1.0, -2.0]), np.float16([0.0003, 0.0003])
    found = from_torch({"i": one, "h": two}, {"b": jnp.zeros(2)}, {"b": "i + h"}, cast=True)
    assert_bits(found, {"b": one.astype(np.float32) + two.astype(np.float32)})


def test_a_tied_tensor_may_be_there_once_but_not_with_two_values():
    table = {"e": "wte.weight = head.weight"}
    for name in "wte.weight", "head.weight":
        assert_bits(from_torch({name: V}, {"e": jnp.zeros((7, 3))}, table), {"e": V})
    other = V.copy()
    other[6, 2] += 1
    with pytest.raises(
        ValueError, match=r"that differs at 1 names; correct names, or pass"
    ) as seen:
        from_torch({"wte.weight": V, "head.weight": other}, {"e": jnp.zeros((7, 3))}, table)
    assert str(seen.value).splitlines()[1] == (
        "  different: e float32 [7, 3], tied, got other numbers in head.weight than in wte.weight"
    )


names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)


@given(names.flatmap(lambda before: st.tuples(st.just(before), st.permutations(before))), st.data())
@settings(deadline=None)
def test_axes_go_back_to_where_they_were(axes, data):
    """Any order and grouping of axes: reading and writing cancel."""
    before, after = axes
    sizes = {name: data.draw(st.integers(1, 3)) for name in before}

    def grouped(each):
        cut = data.draw(st.integers(0, len(each)))
        return " ".join(each[:cut]) + (f" ({' '.join(each[cut:])})" if each[cut:] else "")

    left, right = grouped(before), grouped(list(after))
    rule = f"t: {left} -> {right}, " + " ".join(f"{n}={s}" for n, s in sizes.items())
    cut = left.partition("(")[0].split()
    shape = [sizes[n] for n in cut]
    shape += [int(np.prod([sizes[n] for n in before[len(cut) :]]))] if "(" in left else []
    array = RNG.normal(size=shape).astype(np.float32)
    elementary = array.reshape([sizes[n] for n in before])
    moved = elementary.transpose([before.index(n) for n in after])
    kept = right.partition("(")[0].split()
    rest = [moved[(0,) * len(kept)].size] if "(" in right else []
    wanted = moved.reshape([sizes[n] for n in kept] + rest)
    params = from_torch({"t": array}, {"w": jnp.zeros(wanted.shape)}, {"w": rule})
    assert_bits(params, {"w": wanted})
    assert_bits(to_torch(params, {"w": rule}), {"t": array})


def test_a_large_matrix_is_transposed_exactly(tmp_path):
    w = RNG.normal(size=(1030, 517)).astype(np.float32)
    save_file({"w": w, "v": w.T.copy()}, tmp_path / "w.safetensors")
    shapes = {"w": jnp.zeros((517, 1030)), "v": jnp.zeros((517, 1030))}
    params = from_torch(tmp_path / "w.safetensors", shapes, {"w": "w: o i -> i o", "v": "v"})
    assert_bits(params, {"w": w.T, "v": w.T})
    half = from_torch(
        {"w": w.astype(ml_dtypes.bfloat16)},
        {"w": jnp.zeros((517, 1030))},
        {"w": "w: o i -> i o"},
        cast=True,
    )
    assert_bits(half, {"w": w.T.astype(ml_dtypes.bfloat16).astype(np.float32)})
    narrow = from_torch(
        {"w": w}, {"w": jnp.zeros((1030, 517), jnp.bfloat16)}, {"w": "w"}, cast=True
    )
    assert_bits(narrow, {"w": w.astype(ml_dtypes.bfloat16)})


def test_the_params_do_not_change_with_the_source(tmp_path):
    source = {"w": np.ones((600, 600), np.float32), "b": np.ones(3, np.float32)}
    params = from_torch(
        source, {"w": jnp.zeros((600, 600)), "b": jnp.zeros(3)}, {"w": "w", "b": "b"}
    )
    source["w"][:] = source["b"][:] = 2
    assert float(params["w"].sum()) == 360_000 and float(params["b"].sum()) == 3


# What does not fit.


def refused(f, message, *lines):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}(\n|$)") as seen:
        f()
    if lines:
        assert str(seen.value).splitlines()[1:] == [f"  {line}" for line in lines]


def test_every_name_that_does_not_fit_is_listed():
    table = {"d/w": "fc.weight: o i -> i o", "d/b": "fc.bias", "n/scale": "ln.weight"}
    shapes = like({"d/w": (3, 4), "d/b": (4,), "n/scale": (3,)})
    source = {
        "fc.weight": np.ones((3, 4), np.float32),
        "fc.bias": np.ones(4, np.float16),
        "old": np.ones((), np.int64),
    }
    lines = [
        "missing: ln.weight for n/scale float32 [3]",
        "unexpected: old int64 []",
        "different: d/w float32 [3, 4], got fc.weight float32 [3, 4] by the rule 'd/w': "
        "'fc.weight: o i -> i o'",
        "different: d/b float32 [4], got fc.bias float16 [4] by the rule 'd/b': 'fc.bias'",
    ]
    refused(
        lambda: from_torch(source, shapes, table),
        "from_torch: expected tensors that fit the 3 paths of like, got a state dict that differs "
        "at 4 names; correct names, or pass the params of another model",
        *lines,
    )
    report = torch_report(source, shapes, table)
    assert not report
    assert str(report).splitlines() == [
        *lines,
        "rule 'd/w': 'fc.weight: o i -> i o' fills 1 path from 1 tensor",
        "rule 'd/b': 'fc.bias' fills 1 path from 1 tensor",
        "rule 'n/scale': 'ln.weight' fills 1 path from 0 tensors",
    ]
    assert "fc.bias float16" not in str(torch_report(source, shapes, table, cast=True))
    source["fc.bias"] = np.ones(4, np.int32)
    assert "fc.bias int32" in str(torch_report(source, shapes, table, cast=True))


@pytest.mark.parametrize("shape", [(4, 12), (4, 3), (4, 6, 1), (5, 6), ()])
def test_a_tensor_that_does_not_fit_the_axes_of_its_rule_is_refused(shape):
    rule = "t: o (h w) -> (h w) o, h=2 w=3"
    with pytest.raises(ValueError, match=r"that differs at 1 names; correct names") as seen:
        from_torch({"t": draw(*shape)}, {"p": jnp.zeros((6, 4))}, {"p": rule})
    assert str(seen.value).splitlines()[1] == (
        f"  different: p float32 [6, 4], got t float32 {list(shape)} by the rule 'p': {rule!r}"
    )
    # Shapes that would fit without the sizes.
    with pytest.raises(ValueError, match=r"  different: p float32 \[12, 4\], got t float32"):
        from_torch({"t": draw(4, 12)}, {"p": jnp.zeros((12, 4))}, {"p": rule})


def test_nothing_is_read_if_something_does_not_fit(tmp_path):
    class Unread(np.ndarray):
        def __array_finalize__(self, of):
            pass

        def reshape(self, *shape):
            raise AssertionError("was read")

    w = np.ones((2, 3), np.float32).view(Unread)
    with pytest.raises(ValueError, match=r"unexpected: x float32 \[1\]"):
        from_torch(
            {"w": w, "x": np.ones(1, "f4")}, {"w": jnp.zeros((3, 2))}, {"w": "w: o i -> i o"}
        )


def test_64_bits_do_not_become_32_unasked():
    refused(
        lambda: from_torch({"w": np.ones(2)}, {"w": np.ones(2)}, {"w": "w"}),
        "from_torch: expected tensors that fit the 1 paths of like, got a state dict that differs "
        "at 1 names; correct names, or pass the params of another model",
        "different: w float32 [2], got w float64 [2] by the rule 'w': 'w'",
    )
    assert from_torch({"w": np.ones(2)}, {"w": np.ones(2)}, {"w": "w"}, cast=True)["w"].sum() == 2


def test_float64_is_written_as_float64_where_jax_has_32_bits(tmp_path):
    exact, table = np.array([[1 + 1e-12, 1e300]]), {"w": "fc.weight: o i -> i o"}
    for w in (exact, exact.astype(">f8")):
        back = to_torch({"w": w}, table, file=tmp_path / "w.safetensors")["fc.weight"]
        assert_bits(back, exact.T)
        assert_bits(fdl.port.read_tensors(tmp_path / "w.safetensors")["fc.weight"], exact.T)
    assert to_torch({"w": np.int64(2**40)}, {"w": "w"})["w"] == 2**40
    assert to_torch({"w": 0.1}, {"w": "w"})["w"].dtype == np.float32
    told = r"^to_torch: expected the leaf at 'w' as an array, got a ShapeDtypeStruct; "
    with pytest.raises(fdl.PathError, match=told):
        to_torch({"w": jax.ShapeDtypeStruct((1,), float)}, {"w": "w"})


def test_a_table_that_does_not_cover_the_paths_is_refused():
    refused(
        lambda: from_torch(
            {},
            like({"a/w": (1,), "b/w": (1,), "q/w": (1,)}),
            {"a/w": "x", "c/*": "y.*", "{q,k}/w": "z | split 0"},
        ),
        "from_torch: expected a rule for each of the 3 paths, got a table that differs at 3 "
        "places; correct the table",
        "matches no path: 'c/*': 'y.*'",
        "no path for this part of a tensor: k/w",
        "no rule: b/w",
    )
    refused(
        lambda: to_torch({"a": jnp.ones(1)}, {"a": "x", "*": "*"}),
        "to_torch: expected one rule for each path, got two for 'a': 'a': 'x' and '*': '*'; remove "
        "one of them",
    )


READ = "see the rules in the docstring of fdl.port.from_torch"
BOTH = "as many choices {a,b} and as many * on both sides, and no ** or ?"
UNREADABLE = {
    "missing axis": ({"a": "x: o i -> o"}, "axes such as 'o i -> i o' after the colon"),
    "axis twice": ({"a": "x: o o -> o o"}, "axes such as 'o i -> i o' after the colon"),
    "unknown size": ({"a": "x: o -> o, h=4"}, "axes such as 'o i -> i o' after the colon"),
    "two unknown": ({"a": "x: (a b) -> a b"}, "axes such as 'o i -> i o' after the colon"),
    "nested": ({"a": "x: ((a) b) -> a b, a=1"}, "axes such as 'o i -> i o' after the colon"),
    "no arrow": ({"a": "x: o i"}, "axes such as 'o i -> i o' after the colon"),
    "no axis": ({"{a,b}": "x | split"}, "an axis such as '| split 1' or '| join 1' after the bar"),
    "one part": ({"a": "x | split 0"}, BOTH),
    "one name": ({"a": "x | join 0"}, BOTH),
    "two joined paths": ({"{a,b}": "{x,y} | join 0"}, BOTH),
    "joined sums": ({"a": "{x,y} + z | join 0"}, BOTH),
    "choices": ({"{a,b}": "{x,y,z}"}, BOTH),
    "stars": ({"a/*": "x"}, BOTH),
    "levels": ({"**/w": "**.w"}, BOTH),
    "value": ({"a": 3}, "a path and a text, or None and a list"),
    "none": ({None: "x"}, "a path and a text, or None and a list"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_rule_that_cannot_be_read_is_refused(name):
    table, form = UNREADABLE[name]
    ((path, value),) = table.items()
    message = f"from_torch: expected {form} in a rule, got {path!r}: {value!r}; {READ}"
    refused(lambda: from_torch({}, {"a": jnp.ones(1)}, table), message)


def test_a_table_that_is_none_is_refused():
    message = f"to_torch: expected names as a dict from paths to names, got 'w'; {READ}"
    refused(lambda: to_torch({"w": jnp.ones(1)}, "w"), message)


def test_what_cannot_be_written_is_refused(tmp_path):
    refused(
        lambda: to_torch({"a": jnp.ones(1), "b": jnp.zeros(1)}, {"a": "x", "b": "x"}),
        "to_torch: expected one tensor for each name, got two that differ for 'x'; give the paths "
        "different names",
    )
    assert to_torch({"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": "x", "b": "x"})["x"] == 1
    refused(
        lambda: to_torch({"w": jnp.ones(1)}, {"w": "x: o i -> i o"}),
        "to_torch: expected arrays that fit the rule 'w': 'x: o i -> i o', got w float32 [1]; "
        "correct names",
    )
    refused(
        lambda: to_torch({"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}, {"{a,b}": "x | split 0"}),
        "to_torch: expected arrays that fit the rule '{a,b}': 'x | split 0', got a float32 [2, 1], "
        "b float32 [1, 2]; correct names",
    )
    refused(
        lambda: to_torch({"w": jnp.ones((5, 4))}, {"w": "{x,y}: o i -> i o | join 0"}),
        "to_torch: expected arrays that fit the rule 'w': '{x,y}: o i -> i o | join 0', got w "
        "float32 [5, 4]; correct names",
    )
    refused(
        lambda: to_torch({"key": jax.random.key(0)}, {"key": "x"}),
        "to_torch: expected arrays that fit the rule 'key': 'x', got key key<fry> []; correct "
        "names",
    )
    message = (
        f"to_torch: expected to write a file of 100 bytes, got No such file or directory; create "
        f"the folder, or choose another one: '{tmp_path}/no/w'"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        to_torch({"a": jnp.ones(1)}, {"a": "x"}, file=f"{tmp_path}/no/w")


def test_the_file_that_is_written_says_that_it_is_for_torch(tmp_path):
    file = tmp_path / "model.safetensors"
    params = {"d": {"w": jnp.asarray(W.T), "b": jnp.asarray([1.5], jnp.bfloat16)}}
    table = {"d/w": "fc.weight: o i -> i o", "d/b": "fc.bias"}
    tensors = to_torch(params, table, file=file)
    assert_bits(load_file(file), tensors)
    assert json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"] == {
        "format": "pt"
    }
    assert_bits(from_torch(file, params, table), params)


# Without a table.


def test_pairs_that_are_certain_need_no_table():
    params = {
        "dense_0": {"w": jnp.zeros((4, 6)), "b": jnp.zeros(6)},
        "dense_10": {"w": jnp.zeros((6, 6)), "b": jnp.zeros(6)},
        "dense_2": {"w": jnp.zeros((6, 6)), "b": jnp.zeros(6)},
        "embed": {"w": jnp.zeros((9, 4))},
        "norm": {"scale": jnp.zeros(6), "bias": jnp.zeros(6)},
    }
    source = {
        "emb.weight": draw(9, 4),
        "fc1.weight": draw(6, 4),
        "fc1.bias": draw(6),
        "mlp.3.weight": draw(6, 6),
        "mlp.3.bias": draw(6),
        "mlp.12.weight": draw(6, 6),
        "mlp.12.bias": draw(6),
        "ln.weight": draw(6),
        "ln.bias": draw(6),
    }
    found = from_torch(source, params)
    assert_bits(
        found,
        {
            "dense_0": {"w": source["fc1.weight"].T, "b": source["fc1.bias"]},
            "dense_2": {"w": source["mlp.3.weight"].T, "b": source["mlp.3.bias"]},
            "dense_10": {"w": source["mlp.12.weight"].T, "b": source["mlp.12.bias"]},
            "embed": {"w": source["emb.weight"]},
            "norm": {"scale": source["ln.weight"], "bias": source["ln.bias"]},
        },
    )
    assert_bits(to_torch(found, torch_names(source, params)), source)


def test_equal_names_make_a_pair_where_shapes_do_not_decide():
    params = {"attn": {n: {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)} for n in ("q", "k")}}
    source = {
        f"attn.{n}.{leaf}": draw(*s)
        for n in "kq"
        for leaf, s in (("weight", (3, 3)), ("bias", (3,)))
    }
    found = from_torch(source, params)
    assert_bits(found["attn"]["q"]["w"], source["attn.q.weight"].T)
    assert_bits(found["attn"]["k"]["b"], source["attn.k.bias"])


def test_numbers_decide_if_torch_counts_from_another_number():
    params = {f"dense_{at}": {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)} for at in range(2)}
    source = {}
    for at in 1, 2:
        source |= {f"dense_{at}.weight": draw(3, 3), f"dense_{at}.bias": draw(3)}
    found = from_torch(source, params)
    assert_bits(found["dense_0"]["w"], source["dense_1.weight"].T)
    assert_bits(found["dense_1"]["b"], source["dense_2.bias"])


SQUARE = {"weight": W[:3], "bias": B[:3]}
WITHOUT = (
    "write names={'dense_0/w': 'fc.weight: o i -> i o', 'dense_0/b': 'fc.bias', ...} with a rule "
    "for each path"
)


@pytest.mark.parametrize(
    ("params", "source", "counts", "lines"),
    [
        (
            {
                "q": {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)},
                "k": {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)},
            },
            {"a.weight": W[:3], "a.bias": B[:3], "b.weight": W[:3], "b.bias": B[:3]},
            (2, 2),
            [
                "layer k: b [3], w [3, 3]",
                "layer q: b [3], w [3, 3]",
                "module a: bias [3], weight [3, 3]",
                "module b: bias [3], weight [3, 3]",
            ],
        ),
        # Equal names of some of the layers: h.1 is the first block of one side or the second.
        (
            {
                "h": [{n: {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)} for n in "qk"}] * 2,
                "k": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)},
            },
            {f"h.{at}.{n}.{p}": t for at in (1, 2) for n in "qk" for p, t in SQUARE.items()}
            | {"k.weight": W, "k.bias": B},
            (4, 4),
            [
                *(f"layer h/{at}/{n}: b [3], w [3, 3]" for at in (0, 1) for n in "kq"),
                *(f"module h.{at}.{n}: bias [3], weight [3, 3]" for at in (1, 2) for n in "qk"),
            ],
        ),
        # A square matrix without bias may be dense or an embedding.
        (
            {"d": {"w": jnp.zeros((3, 3))}},
            {"a.weight": W[:3]},
            (1, 1),
            ["layer d: w [3, 3]", "module a: weight [3, 3]"],
        ),
        (
            {"d": {"w": jnp.zeros((3, 3))}},
            {"d.weight": W[:3]},
            (1, 1),
            ["layer d: w [3, 3]", "module d: weight [3, 3]"],
        ),
        # It may be dense for the one, or an embedding for the other.
        (
            {"d": {"w": jnp.zeros((3, 7))}},
            {"a.weight": V, "b.weight": V.T},
            (1, 2),
            ["layer d: w [3, 7]", "module a: weight [7, 3]", "module b: weight [3, 7]"],
        ),
        # A table of embeddings and a layer of logits of the same shape.
        (
            {"e": {"w": jnp.zeros((7, 3))}, "h": {"w": jnp.zeros((3, 7))}},
            {"a.weight": V, "b.weight": V},
            (2, 2),
            [
                "layer e: w [7, 3]",
                "layer h: w [3, 7]",
                "module a: weight [7, 3]",
                "module b: weight [7, 3]",
            ],
        ),
        (
            {"d": {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}},
            {"a.weight": W},
            (1, 1),
            ["layer d: b [4], w [3, 4]", "module a: weight [4, 3]"],
        ),
        (
            {
                "g": {
                    "input": {"w": jnp.zeros((3, 6)), "b": jnp.zeros(6)},
                    "hidden": {"w": jnp.zeros((2, 6)), "b": jnp.zeros(2)},
                }
            },
            {},
            (1, 0),
            ["layer g: hidden/b [2], hidden/w [2, 6], input/b [6], input/w [3, 6]"],
        ),
        ({}, {"weight": W}, (0, 1), ["module at the root: weight [4, 3]"]),
        # A module that is not torch's own: which axis is the input?
        (
            {"d": {"w": jnp.zeros((3, 3))}},
            {"d.w": W[:3]},
            (1, 1),
            ["layer d: w [3, 3]", "module d: w [3, 3]"],
        ),
    ],
)
def test_pairs_that_are_not_certain_are_refused(params, source, counts, lines):
    refused(
        lambda: from_torch(source, params),
        f"from_torch: expected one module for each layer, got {counts[0]} layers and "
        f"{counts[1]} modules without a certain pair; {WITHOUT}",
        *lines,
    )


def test_a_flattened_image_is_refused_without_a_table():
    params = {
        "conv_0": {"w": jnp.zeros((3, 3, 1, 4)), "b": jnp.zeros(4)},
        "dense_0": {"w": jnp.zeros((4 * 5 * 6, 2)), "b": jnp.zeros(2)},
    }
    source = {
        "0.weight": draw(4, 1, 3, 3),
        "0.bias": draw(4),
        "3.weight": draw(2, 120),
        "3.bias": draw(2),
    }
    refused(
        lambda: from_torch(source, params),
        "from_torch: expected dense layers that read channels, got dense_0/w [120, 2], which seems "
        "to read a flattened image; torch flattens channels first, so write names with the rule "
        "{'dense_0/w': 'fc.weight: o (c h w) -> (h w c) o, h=7 w=7'}, where h and w are the size "
        "of the image that is flattened, or 'fc.weight: o i -> i o' if none is",
    )
    table = {
        "conv_0/w": "0.weight: o i h w -> h w i o",
        "dense_0/w": "3.weight: o (c h w) -> (h w c) o, h=5 w=6",
        "{conv_0,dense_0}/b": "{0,3}.bias",
    }
    found = from_torch(source, params, table)
    wanted = source["3.weight"].reshape(2, 4, 5, 6).transpose(2, 3, 1, 0).reshape(120, 2)
    assert_bits(found["dense_0"]["w"], wanted)
    assert_bits(to_torch(found, table), source)


def layers_of(**shapes):
    """The params, and a state dict with the same layers in order, of weights in fdl's shapes."""
    params, source = {}, {}
    for at, (path, w) in enumerate(shapes.items()):
        bias = {} if path == "embed" else {"b": jnp.zeros(w[-1])}
        params[path] = {"w": jnp.zeros(w)} | bias
        turned = w if path == "embed" else (w[-1], *(w[:1] if len(w) == 2 else (w[-2], *w[:-2])))
        source[f"{at}.weight"] = draw(*turned)
        source |= {f"{at}.bias": draw(w[-1])} if bias else {}
    return params, source


@pytest.mark.parametrize(
    ("shapes", "wrong", "axes"),
    [
        # The image has 4 * 4 * 16 = 256 numbers, which is also the width of a dense layer.
        (
            {"conv_0": (3, 3, 3, 16), "dense_0": (256, 256), "dense_1": (256, 10)},
            "dense_0/w [256, 256]",
            "o (c h w) -> (h w c) o, h=7 w=7",
        ),
        (
            {"conv_0": (3, 3, 16), "dense_0": (128, 128), "dense_1": (128, 10)},
            "dense_0/w [128, 128]",
            "o (c h) -> (h c) o, h=7",
        ),
        # 2 * 2 * 16 = 64, as many as an earlier convolution has channels.
        (
            {"conv_0": (3, 3, 3, 64), "conv_1": (3, 3, 64, 16), "dense_0": (64, 10)},
            "dense_0/w [64, 10]",
            "o (c h w) -> (h w c) o, h=7 w=7",
        ),
        (
            {"conv_0": (3, 3, 3, 3, 2), "dense_0": (54, 10)},
            "dense_0/w [54, 10]",
            "o (c h w d) -> (h w d c) o, h=7 w=7 d=7",
        ),
    ],
)
def test_a_layer_that_may_read_a_flattened_image_is_refused(shapes, wrong, axes):
    params, source = layers_of(**shapes)
    sizes = "h is" if "c h)" in axes else "h and w are" if "c h w)" in axes else "h and w and d are"
    refused(
        lambda: torch_names(source, params),
        f"torch_names: expected dense layers that read channels, got {wrong}, which seems to read "
        "a flattened image; torch flattens channels first, so write names with the rule "
        f"{{'dense_0/w': 'fc.weight: {axes}'}}, where {sizes} the size of the image that is "
        "flattened, or 'fc.weight: o i -> i o' if none is",
    )


def test_dense_layers_that_read_channels_need_no_table():
    params, source = layers_of(
        conv_0=(3, 3, 3, 64), conv_1=(3, 3, 64, 16), dense_0=(16, 64), dense_1=(64, 10)
    )
    assert torch_names(source, params)["dense_1/w"] == "3.weight: o i -> i o"
    shapes = {f"block/{at}/c": (3, 3, 8, c) for at, c in ((0, 32), (1, 48))}
    shapes |= {f"block/{at}/d": (c, c) for at, c in ((0, 32), (1, 48))}
    params, source = layers_of(**shapes)
    assert torch_names(source, fdl.paths.tree(fdl.paths.leaves(params)))
    params, source = layers_of(embed=(90, 8), conv_0=(3, 8, 16), dense_0=(16, 10))
    assert torch_names(source, params)["embed/w"] == "0.weight"


def torch_outputs(module, *inputs):
    import torch

    with torch.no_grad():
        out = module.eval()(*(torch.from_numpy(each) for each in inputs))
    return (out[0] if isinstance(out, tuple) else out).numpy()


def test_networks_of_torch_give_the_same_outputs():
    torch = pytest.importorskip("torch", reason="torch is not here: its modules were not compared")
    nn = torch.nn
    torch.manual_seed(0)
    images, words = draw(2, 3, 9, 8), draw(2, 5, 3)
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, (3, 2), groups=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(
            nn.Flatten(),
            nn.Linear(4, 5),
            nn.Tanh(),
            nn.LayerNorm(5),
            nn.Linear(5, 5),
            nn.Linear(5, 5),
        ),
    )
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    net = fdl.chain(
        *(fdl.conv(4, (3, 2), padding=0), fdl.batch_norm(), fdl.relu, fdl.global_average_pool()),
        *(fdl.dense(5), fdl.tanh, fdl.layer_norm(), fdl.dense(5), fdl.dense(5)),
    )
    x = jnp.asarray(images.transpose(0, 2, 3, 1))
    params, state = net.init(jax.random.key(0), x)
    found = from_torch(module.state_dict(), {"params": params, "state": state})
    y, _ = net.apply(found["params"], found["state"], x)
    np.testing.assert_allclose(y, torch_outputs(module, images), rtol=1e-5, atol=1e-6)
    lstm = nn.LSTM(3, 4, 2, batch_first=True)
    net = fdl.chain(fdl.lstm(4), fdl.lstm(4))
    params = from_torch(lstm.state_dict(), net.init(jax.random.key(0), jnp.asarray(words))[0])
    y, _ = net.apply(params, {}, jnp.asarray(words))
    np.testing.assert_allclose(y, torch_outputs(lstm, words), rtol=1e-5, atol=1e-6)


def test_tensors_of_torch_are_read_and_written_without_a_file(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not here: its tensors were not read")
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    table = {"w": "weight: o i -> i o", "b": "bias"}
    shapes = {"w": jnp.zeros((3, 2), jnp.bfloat16), "b": jnp.zeros(2, jnp.bfloat16)}
    params = from_torch(dict(module.named_parameters()), shapes, table)
    assert_bits(np.asarray(params["b"]).astype("f4"), module.bias.detach().float().numpy())
    torch.save(module.state_dict(), tmp_path / "w.pt")
    assert_bits(from_torch(tmp_path / "w.pt", shapes, table), params)
    waves = torch.tensor([1 + 2j, 3 - 4j]).conj()
    source, shapes = {"w": waves, "i": waves.imag}, {"w": jnp.zeros(2, "c8"), "i": jnp.zeros(2)}
    found = from_torch(source, shapes, {"w": "w", "i": "i"})
    assert found["w"].tolist() == [1 - 2j, 3 + 4j] and found["i"].tolist() == [-2, 4]
    back = to_torch(jax.tree.map(lambda p: p.astype(jnp.float32), params), table)
    module.float().load_state_dict({name: torch.from_numpy(each) for name, each in back.items()})
    assert_bits(module.weight.detach().numpy().T, np.asarray(params["w"]).astype("f4"))
    exact = torch.tensor([1 + 1e-12], dtype=torch.float64)
    assert_bits(to_torch({"w": exact}, {"w": "w"})["w"], exact.numpy())
    fdl.port.save_weights(tmp_path / "w", {"w": exact})
    assert_bits(fdl.port.read_tensors(tmp_path / "w")["w"], exact.numpy())


SEEDED_BUGS = {
    "fdl/port/torch_weights.py": (
        "port/test_torch_weights.py",
        [
            ("if not report:", "if False:"),
            ("path: as_array(who, path, leaf)", "path: jnp.asarray(leaf)"),
            ('if pair.rule.joined == "+":', "if False:"),
            ("(cast and floating)", "cast"),
            ("if name not in used and not table.leaves_out(name)", "if name not in used"),
            (
                "np.ascontiguousarray(array[tile].T).T",
                "np.ascontiguousarray(array[tile].T).T[::-1]",
            ),
            ("slice(begin, begin + size) for begin", "slice(begin, begin + size - 1) for begin"),
            ("if name in tensors and not _same(tensors[name], array):", "if False:"),
            ("copy[...] = array\n        return copy", "return array"),
            ('if pair.rule.joined == "=" and not lines:', "if False:"),
            ("return None if left else", "return"),
        ],
    ),
    "fdl/port/names.py": (
        "port/test_torch_weights.py",
        [
            ("-0.0)]", "0.0)]"),
            (
                "np.concatenate(parts, axis=self.axis)",
                "np.concatenate(parts[::-1], axis=self.axis)",
            ),
            ("self.axes.inverse().apply(each)", "self.axes.apply(each)"),
            ("if path in owner:", "if False:"),
            ("without = [path for path in paths if path not in owner]", "without = []"),
            ("len(stars) != 1", "False"),
            ('arrays = tensors if self.joined == "join" else tensors[:1]', "arrays = tensors[:1]"),
            ("return arrays if joined else", "return arrays[::-1] if joined else"),
            ("len(paths) == 1 and not joined and len(options[0]) > 1", "True"),
        ],
    ),
    "fdl/port/axes.py": (
        "port/test_torch_weights.py",
        [
            ("(not unknown and size != known)", "False"),
            ("len(set(left)) == len(left) and", ""),
        ],
    ),
    "fdl/port/default_names.py": (
        "port/test_torch_weights.py",
        [
            ("sorted(named, key=_numbers)", "sorted(named)"),
            ("if len(fitting) == 1:", "if fitting:"),
            ("if one_form and certain and alike and", "if one_form and certain and"),
            ("if one_form and certain and alike and", "if one_form and alike and"),
            ("(_elsewhere(w, b) if peers else [])", "_elsewhere(w, b)"),
            ("_refuse_flattened(who, groups, modules)", "pass"),
            ("len(shape) > 2]", "len(shape) > 3]"),
            ("convs = [max(convs, key=_numbers)]", "pass"),
            ("one_level and len(", "len("),
            ("channels = {shapes[path][-1] for", "channels = {shapes[path][0] for"),
            ("channels |= {dense.pop(path)[-1]", "channels |= {dense.pop(path)[0]"),
            ("while partial := _partial(found, layers, modules):", "while partial := set():"),
            ("@.bias_ih + @.bias_hh", "@.bias_ih = @.bias_hh"),
        ],
    ),
}
