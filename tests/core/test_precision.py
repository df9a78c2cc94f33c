"""compute_in: half precision in the products, float32 where it matters, the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.programs import array

KEY = jax.random.key(0)

MODELS = {
    "mlp": (lambda: fdl.mlp([16], 3, dropout_rate=0.2), (5, 4), "float32"),
    "images": (
        lambda: fdl.chain(
            fdl.rescale(1 / 255),
            fdl.conv(4, (3, 3)),
            fdl.batch_norm(),
            fdl.residual(fdl.relu, fdl.conv(4, (3, 3))),
            fdl.global_average_pool(),
            head=fdl.dense(3),
        ),
        (5, 6, 6, 2),
        "uint8",
    ),
    "resnet": (lambda: fdl.resnet(3, [1, 1], width=4), (5, 8, 8, 2), "float32"),
    "gpt": (lambda: fdl.gpt(11, 8, layers=2, heads=2, features=16), (3, 8), "int32"),
    "llama": (
        lambda: fdl.gpt(
            11,
            None,
            layers=2,
            heads=4,
            features=16,
            kv_heads=2,
            rotary=True,
            norm=fdl.rms_norm(),
            gate=True,
            bias=False,
        ),
        (3, 8),
        "int32",
    ),
    "lstm": (lambda: fdl.chain(fdl.lstm(6), fdl.layer_norm(), fdl.dense(2)), (3, 5, 4), "float32"),
}


def example(shape, dtype):
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return array(rng.standard_normal(shape))
    return array(rng.integers(0, 11, shape), dtype)


@functools.cache
def started(name):
    """(model, params, state, x)."""
    make, shape, dtype = MODELS[name]
    model, x = make(), example(shape, dtype)
    return model, *model.init(KEY, x), x


def dtypes(tree):
    return {path: str(leaf.dtype) for path, leaf in fdl.paths.leaves(tree).items()}


def products(jaxpr, found):
    """Adds the dtypes of the arguments of each matrix product and convolution to `found`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in (
            "dot_general",
            "product_in_bfloat16",
            "conv_general_dilated",
        ):
            found.append({str(each.aval.dtype) for each in equation.invars})
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    products(inner, found)
    return found


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in MODELS), ("mlp", "float16")]
)
def test_outputs_and_gradients_are_float32_and_near_those_of_float32(name, dtype):
    model, params, state, x = started(name)
    half = fdl.compute_in(model, dtype)
    assert dtypes(half.init(KEY, x)) == dtypes((params, state))
    key = jax.random.key(3)

    @jax.jit
    def passes(params):
        found = {}
        for which, net in (("float32", model), ("half", half)):

            def loss(params, net=net):
                y, after = net.apply(params, state, x, key=key, train=True)
                return jnp.square(y).mean(), (y, after)

            found[which] = jax.value_and_grad(loss, has_aux=True)(params)
        return found

    found = passes(params)
    (_, (y, after)), gradients = found["half"]
    (_, (y32, after32)), gradients32 = found["float32"]
    assert dtypes((gradients, after, {"y": y})) == dtypes((gradients32, after32, {"y": y32}))
    # Where a rectifier is near 0, rounding can switch it, and batch norm spreads that to all rows.
    near = 0.2 if name in ("images", "resnet") else 0.03 if dtype == "bfloat16" else 0.004
    for ours, exact in ((y, y32), (after, after32), (gradients, gradients32)):
        a, b = (
            np.concatenate([np.ravel(x) for x in [*jax.tree.leaves(t), 0]]) for t in (ours, exact)
        )
        assert np.linalg.norm(a - b) <= near * np.linalg.norm(b)
    assert np.abs(np.asarray(y) - np.asarray(y32)).max() > 0  # it is not float32


@pytest.mark.parametrize("name", ["mlp", "gpt", "llama", "lstm"])
def test_products_are_of_half_precision_but_the_sums_of_attention(name):
    model, params, state, x = started(name)
    for net, wanted in ((model, "float32"), (fdl.compute_in(model, "bfloat16"), "bfloat16")):
        traced = jax.make_jaxpr(lambda p, net=net: net.apply(p, state, x)[0])(params)
        found = products(traced.jaxpr, [])
        assert all(len(each) == 1 for each in found)
        assert sum(each == {wanted} for each in found) >= 2
        wide = sum(each == {"float32"} for each in found)
        # Each of two blocks of attention has one, the sum of the values.
        assert wanted == "float32" or wide == (2 if name in ("gpt", "llama") else 0)


def test_the_scale_of_a_norm_is_not_rounded():
    """257 rounds to 256 in bfloat16; times 1.5 that is 384, and not 386 as with 257."""
    net = fdl.chain(fdl.layer_norm(epsilon=1e-12))
    x = array([[1.5, -1.5, 1, 1, 1, 1, -1, -1, -1, -0.5, -0.5, 0]])  # mean 0, variance 1
    params, state = net.init(KEY, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(257), params)
    keeping, losing = fdl.compute_in(net, "bfloat16"), fdl.compute_in(net, "bfloat16", keep=())
    both = jax.jit(lambda *given: [each.apply(*given)[0][0, 0] for each in (keeping, losing)])
    kept, lost = both(params, state, x)
    assert (float(kept), float(lost)) == (386.0, 384.0)


def test_integers_and_what_is_not_floating_are_not_touched():
    seen = {}

    def forward(f, x, *, mask, ids, bias):
        seen.update(x=x.dtype, mask=mask.dtype, ids=ids.dtype, bias=bias.dtype)
        return f.head(x)

    net = fdl.compute_in(fdl.network(forward, head=fdl.dense(2)), jnp.float16)
    inputs = {"mask": jnp.ones(3, bool), "ids": jnp.arange(3), "bias": jnp.ones(3)}
    params, state = net.init(KEY, jnp.ones((3, 2)), **inputs)
    jax.eval_shape(net.apply, params, state, jnp.ones((3, 2)), **inputs)
    assert {name: str(dtype) for name, dtype in seen.items()} == {
        "x": "float16",
        "mask": "bool",
        "ids": "int32",
        "bias": "float16",
    }


def test_a_part_of_a_network_may_compute_in_half_precision():
    net = fdl.chain(fdl.dense(4), body=fdl.compute_in(fdl.dense(3), "bfloat16"), head=fdl.dense(2))
    params, state = net.init(KEY, jnp.ones((5, 2)))
    traced = jax.make_jaxpr(lambda p: net.apply(p, state, jnp.ones((5, 2)))[0])(params)
    assert products(traced.jaxpr, []) == [{"float32"}, {"bfloat16"}, {"float32"}]


def test_it_generates_and_is_looked_into():
    model, params, state, x = started("llama")
    half = fdl.compute_in(model, "bfloat16")
    tokens = fdl.generate(half, params, np.asarray(x)[:, :3], 4, key=None)
    tokens = np.asarray(tokens)
    logits = np.asarray(jax.jit(half.apply)(params, state, tokens[:, :-1])[0])
    np.testing.assert_array_equal(logits[:, 2:].argmax(-1), tokens[:, 3:])
    seen = jax.jit(fdl.look.capture(half, "block/0", "block/1/**"))(params, state, x)
    wide = [path for path, h in seen.items() if h.dtype != jnp.bfloat16]
    assert "block/0" in seen and wide == ["block/1/attend/attention_0/weights"]


@pytest.mark.parametrize(
    "make", [lambda: fdl.attention(2, causal=True), lambda: fdl.chain(fdl.lstm(6), fdl.dense(2))]
)
def test_decoding_computes_in_half_precision_too(make):
    half, x = fdl.compute_in(make(), "bfloat16"), example((3, 5, 4), "float32")
    params, state = half.init(KEY, x)
    cache = fdl.start_decoding(half, params, x, 5, state=state)
    traced = jax.make_jaxpr(lambda params: fdl.decode(half, params, cache, x)[0])(params)
    found = products(traced.jaxpr, [])
    assert sum(each == {"bfloat16"} for each in found) >= 2

    @jax.jit
    def both(params, state, cache, x):
        return half.apply(params, state, x)[0], fdl.decode(half, params, cache, x)[0]

    whole, pieces = both(params, state, cache, x)
    np.testing.assert_allclose(pieces, whole, atol=0.02)


def test_fit_in_bfloat16_reaches_the_loss_of_float32():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 8)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    losses = {}
    for dtype in ("float32", "bfloat16", "float16"):
        model = fdl.compute_in(fdl.mlp([32], 2), dtype)
        objective, optimizer = fdl.supervised(model, fdl.softmax_cross_entropy), fdl.adam(1e-2)
        params, state = model.init(KEY, x)
        run = fdl.start(params, optimizer, state=state)
        result = fdl.fit(objective, optimizer, run, (x, y), batch_size=64, steps=400)
        losses[dtype] = result.history[-1]["loss"]
        assert set(dtypes(result.run.params).values()) == {"float32"}
    assert losses["float32"] < 0.2
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.03)
    assert losses["float16"] == pytest.approx(losses["float32"], abs=0.01)


def test_errors():
    with pytest.raises(
        ValueError,
        match=r"^compute_in: expected a floating dtype, got 'bf16'; pass 'bfloat16'$",
    ):
        fdl.compute_in(fdl.dense(2), "bf16")
    with pytest.raises(ValueError, match=r"^compute_in: expected a floating dtype, got .*int8"):
        fdl.compute_in(fdl.dense(2), jnp.int8)
    told = "compute_in: expected keep as a list of patterns, got '**/scale'; write ['**/scale']"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        fdl.compute_in(fdl.dense(2), "bfloat16", keep="**/scale")
    with pytest.raises(
        TypeError, match=r"^compute_in: expected a Layer or a function of one array"
    ):
        fdl.compute_in(fdl.dense, "bfloat16")


SEEDED_BUGS = {
    "fdl/core/precision.py": (
        "core/test_precision.py",
        [
            ("params = jax.tree_util.tree_map_with_path(rounded, params)", "pass"),
            ("return leaf if kept else", "return"),
            ("return jax.tree.map(_widened, y), state", "return y, state"),
            ("layer = layer.rebuild(children)", "pass"),
            ("(lambda length: again(decoding(length)))", "(lambda length: decoding(length))"),
        ],
    ),
}
