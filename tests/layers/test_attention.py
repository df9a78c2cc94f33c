"""Attention against torch, Flax, JAX's own, and float64 NumPy written from the papers."""

import functools
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.layers.embeddings import alibi_slopes
from tests.entry_types import LayerCase
from tests.programs import array, compiled, waves


def _every_option():
    return fdl.attention(
        heads=4,
        features=5,
        head_features=2,
        kv_heads=2,
        causal=True,
        window=3,
        rotary=functools.partial(fdl.rotary, base=100.0, interleaved=True),
        qk_norm=True,
        scale=0.8,
        soft_cap=3.0,
        b_init=fdl.initializers.normal(0.5),
    )


def _packed_in_chunks():
    def forward(f, x, *, context):
        steps = jnp.arange(x.shape[-2])
        seen = {"mask": context > -0.5, "bias": context}
        return f.attend(x, **seen, segments=steps // 3, positions=steps % 3)

    attend = fdl.attention(2, causal=True, rotary=True, alibi=True, bias=False, chunk=2)
    return fdl.network(forward, attend=attend)


# Without a rotation or norm between, softmax cannot see the bias of the keys: its gradient is 0,
# and a law on relative errors would compare roundings. So plain entries are without bias.
LAYERS = {
    "attention": LayerCase(lambda: fdl.attention(2, bias=False), (2, 3, 4)),
    "attention_every_option": LayerCase(_every_option, (2, 5, 6)),
    "attention_packed_in_chunks": LayerCase(
        _packed_in_chunks, (2, 5, 4), inputs={"context": (2, 2, 5, 5)}
    ),
    "attention_across": LayerCase(
        lambda: fdl.attention(2, cross=True, kv_heads=1, bias=False),
        (2, 3, 4),
        inputs={"context": (2, 5, 3)},
    ),
}


KEY = jax.random.key(0)
B, T, H, G, K, V = 2, 7, 4, 2, 6, 5
FLOATS = ["float16", "bfloat16", "float32", "float64"]


def normals(seed, *shape, dtype=np.float32):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def qkv(seed=0, dtype=np.float32, heads=H, groups=G, keys=T):
    shapes = [(B, T, heads, K), (B, keys, groups, K), (B, keys, groups, V)]
    return tuple(normals(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes))


@functools.cache
def with_gradients(**options):
    """`(q, k, v, rest) -> (y, gradients by q, k, v)`, every element of y counted differently."""

    def total(q, k, v, rest):
        y = fdl.dot_product_attention(q, k, v, **options, **rest)
        weight = waves(y)
        return (weight * y).sum(), y

    def both(q, k, v, rest):
        gradients, y = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v, rest)
        return y, *gradients

    return compiled(both)


def attended(q, k, v, *, chunk=None, **rules):
    """`dot_product_attention` in one program."""
    options, rest = split(rules)
    call = functools.partial(fdl.dot_product_attention, chunk=chunk, **options)
    return compiled(call)(q, k, v, **rest)


def assert_near(found, expected, bound):
    """The largest difference, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def by_hand(q, k, v, *, seen, slopes=None, soft_cap=None):
    """One query at a time, in float64; seen is [B, H, T, S]."""
    q, k, v = (np.asarray(each, np.float64) for each in (q, k, v))
    y = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t, h in np.ndindex(*q.shape[:3]):
        group = h // (q.shape[2] // k.shape[2])
        scores = k[b, :, group] @ q[b, t, h] / np.sqrt(q.shape[-1])
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        if slopes is not None:
            scores = scores - slopes[h] * np.abs(np.arange(len(scores)) - t)
        which = np.flatnonzero(seen[b, h, t])
        if len(which):
            weights = np.exp(scores[which] - scores[which].max())
            y[b, t, h] = weights @ v[b, which, group] / weights.sum()
    return y


def seen_by_rule(causal=False, window=None, segments=None, mask=None, keys=T):
    t, s = np.ogrid[:T, :keys]
    seen = np.ones((B, H, T, keys), bool)
    if causal:
        seen &= s <= t
    if window:
        seen &= abs(s - t) < window
    if segments is not None:
        seen &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return seen if mask is None else seen & np.asarray(mask)


SEGMENTS = np.int32([[0, 0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 0]])
MASK = np.random.default_rng(7).random((B, H, T, T)) > 0.4
MASK[0, :, 2] = False
RULES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "every_rule": {
        "causal": True,
        "window": 4,
        "soft_cap": 1.5,
        "slopes": alibi_slopes(H),
        "segments": SEGMENTS,
        "mask": MASK,
    },
    "masked_and_packed": {"segments": SEGMENTS, "mask": MASK[:, :1], "slopes": (1, 0.5, 0.1, 0)},
}


def split(rules):
    rest = {name: rules[name] for name in ("mask", "segments", "bias") if name in rules}
    return {name: value for name, value in rules.items() if name not in rest}, rest


@pytest.mark.parametrize(
    ("name", "chunk"), [*((name, None) for name in RULES), ("every_rule", 3), ("window", 3)]
)
def test_attention_equals_the_loop_of_the_paper(name, chunk):
    rules = RULES[name]
    names = ("causal", "window", "segments", "mask")
    seen = seen_by_rule(**{name: rules[name] for name in names if name in rules})
    shape = {name: rules[name] for name in ("slopes", "soft_cap") if name in rules}
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            q, k, v = qkv(dtype=dtype)
            y = attended(q, k, v, chunk=chunk, **rules)
            assert y.dtype == dtype
            assert_near(y, by_hand(q, k, v, seen=seen, **shape), bound)


@pytest.mark.parametrize(
    ("name", "chunk", "dtype", "bound"),
    [
        ("every_rule", 2, "float64", 1e-12),
        ("every_rule", 3, "float32", 1e-5),
        ("masked_and_packed", 1, "float64", 1e-12),
        ("window", 50, "float64", 1e-12),
    ],
)
def test_in_chunks_the_numbers_and_gradients_are_the_same(name, chunk, dtype, bound):
    options, rest = split(RULES[name])
    with jax.enable_x64(dtype == "float64"):
        data = qkv(3, dtype)
        found = with_gradients(chunk=chunk, **options)(*data, rest)
        assert_near(found, with_gradients(**options)(*data, rest), bound)


def test_in_chunks_forward_mode_and_second_derivatives_work():
    q, k, v = qkv(4)
    tangents = qkv(9)
    found, expected = (
        jax.jit(
            lambda *data, chunk=chunk: jax.jvp(
                jax.grad(
                    lambda q, k, v: jnp.sin(
                        fdl.dot_product_attention(q, k, v, causal=True, chunk=chunk)
                    ).sum(),
                    (0, 1, 2),
                ),
                data[:3],
                data[3:],
            )
        )(q, k, v, *tangents)
        for chunk in (3, None)
    )
    assert_near(found, expected, 1e-5)


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        for variable in [*equation.invars, *equation.outvars]:
            yield getattr(variable.aval, "shape", ())
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda each: hasattr(each, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


@pytest.mark.parametrize("chunk", [None, 16])
def test_in_chunks_no_array_holds_all_scores_forward_or_backward(chunk):
    """Long sequences, whose length 4096 is the only large number, traced and not run."""
    long = 4096
    shape = jax.ShapeDtypeStruct((1, long, 2, 8), "float32")
    row_mask = jax.ShapeDtypeStruct((1, 1, 1, long), "bool")

    def total(q, k, v, mask):
        return fdl.dot_product_attention(q, k, v, causal=True, mask=mask, chunk=chunk).sum()

    traced = jax.make_jaxpr(jax.value_and_grad(total, (0, 1, 2)))(shape, shape, shape, row_mask)
    sizes = [np.prod(each, dtype=np.int64) for each in shapes_in(traced.jaxpr)]
    assert len(sizes) > 100
    # q itself has 16 numbers a token; 256 blocks of 256 scores would be all of them.
    assert (max(sizes) >= long * long) == (chunk is None)
    if chunk:
        assert max(sizes) <= 64 * long


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_query_with_nothing_to_see_gives_zeros_and_finite_gradients(chunk):
    q, k, v = (np.float32(1e3) * np.asarray(each) for each in qkv(5))
    mask = np.ones((B, 1, T, T), bool)
    mask[0, :, 2] = False
    y, *gradients = with_gradients(chunk=chunk)(q, k, v, {"mask": mask})
    assert (y[0, 2] == 0).all() and (y[0, 1] != 0).all() and np.isfinite(y).all()
    assert all(np.isfinite(each).all() for each in gradients)
    assert (gradients[0][0, 2] == 0).all()
    y, *gradients = with_gradients(chunk=chunk)(q, k, v, {"mask": np.zeros((1, 1), bool)})
    assert not any(each.any() for each in (y, *gradients))


HIDING = {
    "causal": {"causal": True},
    "window": {"window": 2},
    "segments": {"segments": np.arange(T, dtype=np.int32) // 3},
    "mask": {"mask": (np.arange(T) % 3 > 0)[None] | np.eye(T, dtype=bool)},
    "padding": {"mask": (np.arange(T) < T - 2)[None]},
    "later": {"causal": True, "start": jnp.int32(1)},
}


@functools.cache
def hidden_from(name):
    """bool [T, S]: which keys a query does not see."""
    options = dict(HIDING[name])
    far = np.arange(T) - np.arange(T)[:, None] - int(options.get("start", 0))
    segments = np.asarray(options.get("segments", np.zeros(T)))
    seen = (far <= 0) | (not options.get("causal", False))
    seen &= (abs(far) < options.get("window", T)) & (segments == segments[:, None])
    return ~(seen & np.asarray(options.get("mask", True)))


@functools.cache
def attending(name, chunk):
    """(y, gradients) of the queries that `told` says, compiled."""

    def loss(q, k, v, told):
        y = fdl.dot_product_attention(q, k, v, chunk=chunk, **HIDING[name])
        return jnp.where(told[:, None, None], jnp.sin(y), 0).sum(), y

    return compiled(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    ("name", "chunk"), [*((name, None) for name in HIDING), ("causal", 3), ("segments", 2)]
)
def test_unseen_keys_never_reach_a_query(name, chunk):
    """NaN or infinity as a key or value changes only queries that see it, and their gradients."""
    q, k, v = qkv(7)
    hidden, attend = hidden_from(name), attending(name, chunk)
    (_, clean), _ = attend(q, k, v, np.ones(T, bool))
    for place in (1, T - 1):
        blind = hidden[:, place]
        (_, _), wanted = attend(q, k, v, blind)
        for bad in (np.nan, np.inf, -np.inf):
            broken_v, broken_k = np.array(v), np.array(k)
            broken_v[:, place, :, 1], broken_k[:, place, 0, 0] = bad, bad
            for keys, values in ((k, broken_v), (broken_k, v), (broken_k, broken_v)):
                (_, y), gradients = attend(q, keys, values, blind)
                np.testing.assert_array_equal(y[:, blind], clean[:, blind])
                for found, expected in zip(gradients, wanted, strict=True):
                    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            # Those who see it get just that, in that feature alone.
            (_, y), _ = attend(q, k, broken_v, blind)
            np.testing.assert_array_equal(y[:, ~blind, :, 1], np.full_like(y[:, ~blind, :, 1], bad))
            np.testing.assert_array_equal(y[:, ~blind, :, 0], clean[:, ~blind, :, 0])
            (_, y), _ = attend(q, broken_k, v, blind)
            assert np.isnan(y[:, ~blind, : H // G]).all()


@pytest.mark.parametrize(
    ("dtype", "chunk"), [(dtype, None) for dtype in FLOATS] + [("float32", 1), ("bfloat16", 2)]
)
def test_a_masked_value_has_no_effect(dtype, chunk):
    with jax.enable_x64(dtype == "float64"):
        q = k = array(np.zeros((2, 1, 4)), dtype)
        attend = functools.partial(fdl.dot_product_attention, q, k, chunk=chunk)
        whole, causal = jax.jit(attend), jax.jit(functools.partial(attend, causal=True))
        masked = array([[True, False]] * 2, bool)
        for bad in (np.nan, np.inf, -np.inf):
            v = array([[[1.0]], [[bad]]], dtype)
            for call in (attend, whole):
                y = call(v, mask=masked)
                assert y.dtype == jnp.dtype(dtype)
                np.testing.assert_array_equal(np.asarray(y, np.float64).ravel(), [1, 1])
            np.testing.assert_array_equal(np.asarray(causal(v), np.float64).ravel(), [1, bad])
        both = array([[[np.inf]], [[-np.inf]]], dtype)
        y = np.asarray(causal(both), np.float64).ravel()
        np.testing.assert_array_equal(y, [np.inf, np.nan])


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_non_finite_example_in_a_vmap_changes_no_other(chunk):
    q, k, v = map(np.array, qkv(8))
    v[1, 3] = np.nan
    attend = functools.partial(fdl.dot_product_attention, causal=True, chunk=chunk)
    together, alone = compiled(lambda *data: (jax.vmap(attend)(*data), attend(*data)))(q, k, v)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert np.isfinite(together[0]).all() and np.isfinite(together[1, :3]).all()
    assert np.isnan(together[1, 3:]).all()


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("options", [{}, {"causal": True}])
def test_zero_keys_give_zeros_and_zero_queries_an_empty_array(chunk, options):
    attend = functools.partial(fdl.dot_product_attention, chunk=chunk, **options)
    q, k = array(np.ones((2, 3, 4, 5))), array(np.ones((2, 0, 2, 5)))
    v = array(np.ones((2, 0, 2, 6)), jnp.bfloat16)
    for call in (attend, jax.jit(attend)):
        y = call(q, k, v)
        assert (y.shape, y.dtype) == ((2, 3, 4, 6), jnp.bfloat16) and not np.asarray(y).any()
    assert not np.asarray(jax.jit(jax.grad(lambda q: attend(q, k, v).sum()))(q)).any()
    none = array(np.ones((2, 0, 4, 5)))
    some = array(np.ones((2, 3, 2, 5))), array(np.ones((2, 3, 2, 6)))
    assert jax.jit(attend)(none, *some).shape == (2, 0, 4, 6)
    assert jax.jit(attend)(none, k, v).shape == (2, 0, 4, 6)
    layer = fdl.attention(2, chunk=chunk, **options)
    x = array(np.ones((2, 3, 4)))
    params, _ = layer.init(jax.random.key(0), x)
    assert jax.jit(layer.apply)(params, {}, array(np.ones((2, 0, 4))))[0].shape == (2, 0, 4)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("cross", [False, True])
def test_padding_that_is_not_finite_changes_no_answer_and_no_gradient(chunk, cross):
    """Including the gradients of the projections, whose inputs contain the padding."""
    layer = fdl.attention(2, cross=cross, kv_heads=1, chunk=chunk)
    rng = np.random.default_rng(0)
    x = array(rng.standard_normal((2, 5, 4)))
    mask = (np.arange(5) < 3)[None, None, None]
    name = "context_mask" if cross else "mask"
    given = {"context": x} if cross else {}
    params, _ = layer.init(jax.random.key(0), x, **given)

    def of_real(params, padded):
        given = {"context": padded} if cross else {}
        y, _ = layer.apply(params, {}, x if cross else padded, **given, **{name: mask})
        return jnp.sin(y[:, :3]).sum(), y

    slopes = compiled(jax.grad(of_real, has_aux=True))
    padded = lambda value: np.where(np.arange(5)[:, None] < 3, x, np.float32(value))  # noqa: E731
    wanted, clean = slopes(params, padded(0))
    for bad in (np.nan, np.inf):
        found, y = slopes(params, padded(bad))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted
        )
        np.testing.assert_allclose(y[:, :3], clean[:, :3], rtol=1e-6)
        assert np.isfinite(y).all() == cross


def test_scores_far_below_others_count():
    """A seen score of -1e31 must not count as unseen."""
    q, k = array([[[1e16]]]), array([-1e15, -1e15 - 1e14, 1.0]).reshape(3, 1, 1)
    v = array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    for chunk in (None, 1):
        y = attended(q, k, v, mask=np.array([[True, True, False]]), chunk=chunk)
        assert y.ravel().tolist() == [1.0]


@pytest.mark.parametrize("chunk", [None, 3])
def test_attention_equals_jax(chunk):
    q, k, v = (np.asarray(each)[..., :3] for each in qkv(6))
    options = [
        ({"window": 3}, {"local_window_size": 2}),
        ({"window": 3, "causal": True}, {"local_window_size": (2, 0)}),
    ]
    seen = MASK[1:] | np.eye(T, dtype=bool)  # of nothing seen JAX gives a mean, and fdl zeros
    for ours, theirs in options:
        found = attended(q, k, v, mask=seen, chunk=chunk, **ours)
        other = jax.jit(functools.partial(jax.nn.dot_product_attention, **theirs))
        assert_near(found, other(q, k, v, mask=seen), 1e-5)


def torch_or_skip():
    return pytest.importorskip("torch", reason="attention was not compared with torch's")


@pytest.mark.parametrize("chunk", [None, 3])
def test_attention_equals_torch(chunk):
    torch = torch_or_skip()
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            data = qkv(8, dtype)
            theirs = [torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_() for x in data]
            y = torch.nn.functional.scaled_dot_product_attention(
                *theirs, is_causal=True, enable_gqa=True
            )
            weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype))
            (weight.reshape(B, T, H, V).transpose(1, 2) * y).sum().backward()
            expected = [each.transpose(1, 2).detach() for each in (y, *(t.grad for t in theirs))]
            found = with_gradients(causal=True, chunk=chunk)(*data, {})
            assert_near(found, [np.asarray(each) for each in expected], bound)


BIASES = {"whole": (B, H, T, T), "of_heads": (1, H, 1, T), "of_keys": (B, 1, 1, T), "one": (T, T)}


@pytest.mark.parametrize(("name", "chunk"), [*((name, 3) for name in BIASES), ("whole", None)])
def test_a_bias_and_a_scale_and_their_gradients_equal_torch(name, chunk):
    """The bias contains minus infinity, which hides a key as a mask does."""
    torch = torch_or_skip()
    with jax.enable_x64(True):
        data = qkv(8, "float64")
        rng = np.random.default_rng(3)
        bias = rng.standard_normal(BIASES[name])
        bias[..., -1] = np.where(rng.random(bias.shape[:-1]) < 0.5, -np.inf, bias[..., -1])
        theirs = [torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_() for x in data]
        added, scale = torch.tensor(bias).requires_grad_(), torch.tensor(0.3, dtype=torch.float64)
        scale.requires_grad_()
        # torch's scale is a number; through the queries it has a gradient.
        y = torch.nn.functional.scaled_dot_product_attention(
            theirs[0] * scale, *theirs[1:], attn_mask=added, scale=1.0, enable_gqa=True
        )
        weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(B, T, H, V)
        (weight.transpose(1, 2) * y).sum().backward()
        expected = [each.transpose(1, 2).detach() for each in (y, *(t.grad for t in theirs))]

        def total(data, bias, scale):
            y = fdl.dot_product_attention(*data, bias=bias, scale=scale, chunk=chunk)
            return (jnp.asarray(weight.numpy()) * y).sum(), y

        slopes = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
        (own, of_bias, of_scale), y = slopes(data, bias, 0.3)
        assert_near([y, *own], [np.asarray(each) for each in expected], 1e-10)
        assert_near([of_bias, of_scale], [added.grad.numpy(), scale.grad.numpy()], 1e-10)


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_bias_and_a_scale_equal_jax(chunk):
    q, k, v = (np.asarray(each)[..., :3] for each in qkv(6))
    bias = array(np.random.default_rng(4).standard_normal((1, H, T, T)))
    seen = MASK[1:] | np.eye(T, dtype=bool)
    rules = {"mask": seen, "bias": bias, "scale": 0.7}
    found = attended(q, k, v, chunk=chunk, **rules)
    other = jax.jit(functools.partial(jax.nn.dot_product_attention, scale=rules.pop("scale")))
    assert_near(found, other(q, k, v, **rules), 1e-5)


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_bias_shows_nothing_that_a_mask_hides(chunk):
    """A bias of NaN or infinity behind a mask, and a query whose bias hides all keys."""
    q, k, v = qkv(5)
    bias, seen = np.zeros((B, H, T, T), np.float32), np.ones((T, T), bool)
    bias[..., 2], bias[..., 3], seen[:, 2:4] = np.inf, np.nan, False
    hidden, broken = np.where(seen, np.float32(0), np.float32(-np.inf)), np.array(k)
    hidden[1], broken[:, 3] = -np.inf, np.nan

    def attend(q, bias, mask=None, k=k):
        y = fdl.dot_product_attention(q, k, v, bias=bias, mask=mask, chunk=chunk)
        return jnp.cos(y).sum(), y

    slopes = compiled(jax.grad(attend, (0, 1), has_aux=True))
    expected = compiled(jax.grad(attend, has_aux=True))(q, None, seen)
    (of_q, of_bias), y = slopes(q, bias, seen)
    assert_near([of_q, y], expected, 1e-6)
    assert (of_bias[..., 2:4] == 0).all()
    (of_q, of_bias), y = slopes(q, hidden, k=broken)
    assert_near(y[:, 2:], expected[1][:, 2:], 1e-6)
    assert (y[:, 1] == 0).all()
    assert np.isfinite(of_q).all()
    assert (of_bias[1] == 0).all()
    # However small a bias makes its weight, a key that is seen is seen.
    far = np.zeros((T, T), np.float32)
    far[:, 3] = -1e4
    assert np.isnan(slopes(q, far, k=broken)[1]).all()


def test_the_layer_hands_its_bias_and_scale_on_in_decoding_too():
    x = array(np.random.default_rng(0).standard_normal((B, 5, 8)))
    bias = array(np.random.default_rng(1).standard_normal((1, 2, 5, 5)))
    layer = fdl.attention(2, causal=True, scale=0.9)
    params, state = layer.init(KEY, x)
    apply, decode = jax.jit(layer.apply), jax.jit(functools.partial(fdl.decode, layer))
    whole, _ = apply(params, state, x, bias=bias)

    @jax.jit
    def by_parts(params, x, bias):
        parts = (x @ params[each]["w"] + params[each]["b"] for each in ("q", "k", "v"))
        q, k, v = (each.reshape(B, 5, 2, 4) for each in parts)
        y = fdl.dot_product_attention(q, k, v, bias=bias, scale=0.9, causal=True)
        return y.reshape(B, 5, 8) @ params["out"]["w"] + params["out"]["b"]

    assert_near(whole, by_parts(params, x, bias), 1e-6)
    in_chunks = fdl.attention(2, causal=True, scale=0.9, chunk=2)
    assert_near(jax.jit(in_chunks.apply)(params, state, x, bias=bias)[0], whole, 1e-6)
    x, bias = np.asarray(x), np.asarray(bias)
    cache = fdl.start_decoding(layer, params, x[:, :2], 5)
    first, cache = decode(params, cache, x[:, :2], bias=bias[:, :, :2])
    last, cache = decode(params, cache, x[:, 2:], bias=bias[:, :, 2:])
    assert_near(np.concatenate([first, last], 1), whole, 1e-6)
    across = fdl.attention(2, cross=True, scale=0.9)
    same = jax.jit(across.apply)(params, {}, x, context=x, context_bias=bias)[0]
    expected = jax.jit(fdl.attention(2, scale=0.9).apply)(params, {}, x, bias=bias)[0]
    assert_near(same, expected, 1e-6)


def test_padding_that_is_not_finite_and_hidden_by_a_bias_reaches_no_gradient():
    x = array(np.random.default_rng(0).standard_normal((1, 4, 6)))
    layer = fdl.attention(2)
    params, _ = layer.init(KEY, x)
    hides, broken = np.float32([[0, 0, 0, -np.inf]]), np.array(x)
    broken[:, 3] = np.nan

    def loss(params, x):
        return layer.apply(params, {}, x, bias=hides)[0][:, :3].sum()

    slopes = jax.jit(jax.grad(loss))
    assert_near(slopes(params, broken), slopes(params, x), 1e-6)


# The layer.


@pytest.mark.parametrize("cross", [False, True])
def test_the_layer_equals_torch(cross):
    torch = torch_or_skip()
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            x = normals(1, B, T, 12, dtype=dtype)
            context = normals(2, B, 5, 8, dtype=dtype) if cross else x
            inputs = {"context": context} if cross else {}
            seen = np.random.default_rng(3).random((B, 1, 1, context.shape[1])) > 0.3
            mask_name = "context_mask" if cross else "mask"
            layer = fdl.attention(3, cross=cross, b_init=fdl.initializers.normal(0.5))
            params, _ = layer.init(KEY, x, **inputs)
            params = jax.tree.map(np.array, params)
            other = torch.nn.MultiheadAttention(
                *(12, 3),
                kdim=context.shape[-1],
                vdim=context.shape[-1],
                batch_first=True,
                dtype=getattr(torch, dtype),
            )
            flat = {name: params[name] for name in ("q", "k", "v")}
            with torch.no_grad():
                weights = [torch.tensor(each["w"].T) for each in flat.values()]
                if cross:
                    other.q_proj_weight.copy_(weights[0])
                    other.k_proj_weight.copy_(weights[1])
                    other.v_proj_weight.copy_(weights[2])
                else:
                    other.in_proj_weight.copy_(torch.cat(weights))
                other.in_proj_bias.copy_(
                    torch.tensor(np.concatenate([each["b"] for each in flat.values()]))
                )
                other.out_proj.weight.copy_(torch.tensor(params["out"]["w"].T))
                other.out_proj.bias.copy_(torch.tensor(params["out"]["b"]))
            tx, tc = (torch.tensor(np.asarray(each), requires_grad=True) for each in (x, context))
            ignored = torch.tensor(~seen[:, 0, 0])
            ty, _ = other(tx, tc, tc, key_padding_mask=ignored)
            torch.sin(ty).sum().backward()

            def total(params, x, context):
                given = {"context": context} if cross else {}
                context = context if cross else x
                y, _ = layer.apply(params, {}, x, **{**given, mask_name: seen})
                return jnp.sin(y).sum(), y

            gradients, y = compiled(jax.grad(total, (0, 1, 2), has_aux=True))(params, x, context)
            assert_near(y, ty.detach().numpy(), bound)
            by_x = tx.grad if cross else tx.grad + tc.grad
            assert_near(gradients[1], by_x.numpy(), bound)
            if cross:
                assert_near(gradients[2], tc.grad.numpy(), bound)
            assert_near(gradients[0]["out"]["w"], other.out_proj.weight.grad.numpy().T, bound)
            by_q = other.q_proj_weight.grad if cross else other.in_proj_weight.grad[:12]
            assert_near(gradients[0]["q"]["w"], by_q.numpy().T, bound)


def test_the_layer_equals_flax(standard_promotion):
    x = normals(1, B, T, 12)
    layer = fdl.attention(
        3, features=5, head_features=4, qk_norm=False, b_init=fdl.initializers.normal(0.5)
    )
    params = jax.tree.map(np.asarray, layer.init(KEY, x)[0])
    other = flax.linen.MultiHeadDotProductAttention(3, qkv_features=12, out_features=5)
    theirs = {
        **{
            full: {
                "kernel": params[name]["w"].reshape(12, 3, 4),
                "bias": params[name]["b"].reshape(3, 4),
            }
            for full, name in (("query", "q"), ("key", "k"), ("value", "v"))
        },
        "out": {"kernel": params["out"]["w"].reshape(3, 4, 5), "bias": params["out"]["b"]},
    }
    mask = MASK[:, :1].copy()
    mask[0, :, 2] = True

    def ours_total(params, x):
        y, _ = layer.apply(params, {}, x, mask=mask)
        return jnp.sin(y).sum(), y

    def their_total(params, x):
        y = other.apply({"params": params}, x, mask=mask)
        return jnp.sin(y).sum(), y

    found, y = compiled(jax.grad(ours_total, (0, 1), has_aux=True))(params, x)
    expected, their_y = compiled(jax.grad(their_total, (0, 1), has_aux=True))(theirs, x)
    assert_near(y, their_y, 1e-5)
    assert_near(found[1], expected[1], 1e-5)
    for full, name in (("query", "q"), ("value", "v"), ("out", "out")):
        assert_near(found[0][name]["w"].ravel(), expected[0][full]["kernel"].ravel(), 1e-5)
        assert_near(found[0][name]["b"].ravel(), expected[0][full]["bias"].ravel(), 1e-5)


def test_every_option_together_is_the_paper_by_hand():
    """Grouped, rotated, normalized, capped, sloped, windowed and packed, in float64."""
    with jax.enable_x64(True):
        x = normals(1, B, T, 10, dtype=np.float64)
        layer = fdl.attention(
            *(H,),
            features=7,
            head_features=K,
            kv_heads=G,
            causal=True,
            window=4,
            rotary=fdl.rotary(base=50.0),
            alibi=True,
            qk_norm=True,
            soft_cap=2.0,
            b_init=fdl.initializers.normal(0.5),
        )
        params, _ = layer.init(KEY, x)
        w = jax.tree.map(lambda w: np.asarray(w) + 0.3 * waves(w), params)
        positions = np.array([[0, 3, 4, 0, 2, 0, 5], [0, 1, 5, 3, 9, 6, 0]])
        y, _ = jax.jit(layer.apply)(w, {}, x, segments=SEGMENTS, positions=positions, mask=MASK)

        def part(name, heads):
            h = (np.asarray(x) @ w[name]["w"] + w[name]["b"]).reshape(B, T, heads, K)
            if name == "v":
                return h
            h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}_norm"]["scale"]
            return rotated_by_hand(h, positions, 50.0, False)

        seen = seen_by_rule(True, 4, SEGMENTS, MASK)
        mixed = by_hand(
            *(part("q", H), part("k", G), part("v", G)),
            seen=seen,
            slopes=[2.0 ** (-2 * i) for i in range(1, H + 1)],
            soft_cap=2.0,
        )
        expected = mixed.reshape(B, T, H * K) @ w["out"]["w"] + w["out"]["b"]
        assert_near(y, expected, 1e-10)


# Positions.


def rotated_by_hand(x, positions, base, interleaved):
    """Multiplication by complex numbers, as in section 3.4.2 of the paper."""
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turn = np.exp(1j * positions[..., None, None] * base ** (-np.arange(half) / half))
    turned = (first + 1j * second) * turn
    if interleaved:
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    return np.concatenate([turned.real, turned.imag], -1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_rotates_pairs_as_in_the_paper(interleaved):
    positions = np.array([[0, 3, 1, 900, 5, 6, 7], [1, 2, 3, 4, 5, 6, 2000]])
    for dtype, bound in (("float32", 3e-4), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            x = normals(1, B, T, H, K, dtype=dtype)
            turn = jax.jit(functools.partial(fdl.rotary, base=300.0, interleaved=interleaved))
            found = turn(x, positions)
            expected = rotated_by_hand(np.asarray(x, np.float64), positions, 300.0, interleaved)
            assert found.dtype == dtype
            assert_near(found, expected, bound)
            near = turn(x, positions % 10)
            exact = rotated_by_hand(np.asarray(x, np.float64), positions % 10, 300.0, interleaved)
            assert_near(near, exact, 1e-6 if dtype == "float32" else bound)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_rotary_of_the_first_features_by_base_or_by_tables(tables, interleaved):
    positions = np.array([[4, 3, 1, 19, 5, 6, 7], [1, 2, 0, 4, 5, 6, 12]])
    x = np.asarray(normals(1, B, T, H, 10))
    if tables:
        turn = np.arange(20)[:, None] * 50.0 ** (-np.arange(3) / 3)
        by = {"cos": np.cos(turn).astype("f"), "sin": np.sin(turn).astype("f")}
        f = functools.partial(fdl.rotary_by_tables, interleaved=interleaved)
        found = compiled(f)(x, positions, **by)
    else:
        f = functools.partial(fdl.rotary, base=50.0, features=6, interleaved=interleaved)
        found = compiled(f)(x, positions)
    turned = rotated_by_hand(np.float64(x[..., :6]), positions, 50.0, interleaved)
    assert_near(found[..., :6], turned, 1e-6)
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])


def test_tables_have_no_angle_for_a_position_outside():
    half = np.full((4, 1), 0.5, np.float32)
    turn = compiled(fdl.rotary_by_tables)
    y = turn(np.ones((3, 1, 4), np.float32), np.int32([3, 4, -1]), cos=half, sin=half)
    np.testing.assert_array_equal(y[:, 0, :2], [[0, 1], [np.nan] * 2, [np.nan] * 2])


@pytest.mark.parametrize("features", [3, 0, 2.0, True])
def test_rotary_refuses_an_odd_number_of_features(features):
    message = (
        f"rotary: expected features to be even and >= 2, got {features}; leave it out to rotate "
        f"all features"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        fdl.rotary(normals(1, T, 1, 4), jnp.arange(T), features=features)


def test_rotary_refuses_more_features_than_a_head_has_and_tables_that_do_not_fit():
    x, at, table = normals(1, T, 1, 4), jnp.arange(T), jnp.ones((9, 3))
    message = (
        f"expected x [..., T, H, K] with K >= 6 and positions [..., T], got x [{T}, 1, 4] and "
        f"positions [{T}]; use heads with 6 or more features, and pass one position for each token"
    )
    with pytest.raises(fdl.PathError, match="^" + re.escape(f"rotary: {message}") + "$"):
        fdl.rotary(x, at, features=6)
    by_tables = "^" + re.escape(f"rotary_by_tables: {message}") + "$"
    with pytest.raises(fdl.PathError, match=by_tables):
        fdl.rotary_by_tables(x, at, cos=table, sin=table)
    message = (
        "rotary_by_tables: expected cos and sin [L, R / 2] and integer positions, got cos [9, 3], "
        "sin [9, 2] and positions int32; pass tables with one row for each position and one column "
        "for each pair of features"
    )
    with pytest.raises(fdl.PathError, match="^" + re.escape(message) + "$"):
        fdl.rotary_by_tables(x, at, cos=table, sin=table[:, :2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("base", [10_000.0, 5e5, 0.5])
def test_rotary_equals_the_formula_at_any_position(dtype, base):
    """A float32 product of position and frequency is wrong by 0.03 at a million."""
    far = np.array([0, -7, 10_000, 999_999, 2**24 + 1, 2**31 - 1, -(2**31)])
    with jax.enable_x64(dtype == "float64"):
        x = np.random.default_rng(0).standard_normal((len(far), 2, 16))
        x = array(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype)
        turn = jax.jit(functools.partial(fdl.rotary, base=base))
        every = [array(far, "int32"), array(far + 0.25, dtype)]
        for positions in every:
            exact = np.asarray(positions, np.float64)[:, None, None] * base ** -(np.arange(8) / 8)
            cos, sin = np.cos(exact), np.sin(exact)
            a, b = np.split(np.asarray(x, np.float64), 2, -1)
            y = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
            # The formula itself rounds its angle to 1e-16 of its size.
            bound = (5e-7 if dtype == "float32" else 1e-14) + 2e-16 * abs(exact).max()
            assert abs(np.asarray(turn(x, positions)) - y).max() <= bound
        x = np.asarray(x)
        slope = jax.jit(jax.grad(lambda p: fdl.rotary(x[:1], p, base=base)[0, 0, 0]))
        slope = slope(np.ones(1, dtype))
        a, b = float(x[0, 0, 0]), float(x[0, 0, 8])
        np.testing.assert_allclose(slope, [-a * np.sin(1.0) - b * np.cos(1.0)], rtol=1e-5)


def test_scores_of_rotated_heads_depend_on_distance_alone():
    q, k = (np.asarray(normals(seed, T, 1, 8)) for seed in (1, 2))
    rotary = compiled(fdl.rotary)
    scores = [
        np.einsum("thk,shk->ts", rotary(q, at), rotary(k, at))
        for at in (np.arange(T), np.arange(T) + 100)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    assert np.abs(scores[0] - np.einsum("thk,shk->ts", q, k)).max() > 0.1


def test_the_slopes_of_alibi():
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    # As the authors' code gives them for heads that are no power of two.
    np.testing.assert_allclose(
        alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125], rtol=1e-12
    )
    assert alibi_slopes(1) == (2.0**-8,)


# What else the layer promises.


def test_attention_maps_are_captured_and_dropped_in_training():
    x = normals(1, B, T, 12)
    layer = fdl.attention(3, causal=True, dropout_rate=0.5)
    model = fdl.chain(attend=layer)
    params, state = model.init(KEY, x)
    captured = fdl.capture(model, "attend/weights")
    look = compiled(lambda *args, **given: captured(*args, **given)["attend/weights"])
    weights = look(params, state, x)
    assert weights.shape == (B, 3, T, T)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (np.triu(weights[0, 0], 1) == 0).all()
    train = compiled(lambda *args, key: captured(*args, key=key, train=True)["attend/weights"])
    dropped = train(params, state, x, key=KEY)
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, 2 * weights, 0), rtol=1e-6)
    assert 0.3 < kept[weights != 0].mean() < 0.7


def test_paths_of_a_layer_and_its_input_of_the_context_only():
    x, context = normals(1, B, T, 12), normals(2, B, 5, 8)
    block = fdl.chain(
        own=fdl.attention(3, kv_heads=1), other=fdl.attention(2, cross=True, bias=False)
    )
    params, state = block.init(KEY, x, context=context)
    shapes = {path: leaf.shape for path, leaf in fdl.paths.leaves(params).items()}
    assert shapes["own/q/w"] == (12, 12) and shapes["own/k/w"] == (12, 4)
    assert shapes["other/k/w"] == (8, 12) and "other/k/b" not in shapes

    @jax.jit
    def both(params, x, context):
        first, _ = block.children["own"].apply(params["own"], {}, x)
        second, _ = block.children["other"].apply(params["other"], {}, first, context=context)
        return block.apply(params, state, x, context=context)[0], second

    np.testing.assert_array_equal(*both(params, x, context))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"heads": 6, "kv_heads": 4},
            "expected kv_heads to divide heads, got heads 6 and kv_heads 4; "
            "leave kv_heads out to give each head separate keys and values",
        ),
        (
            {"heads": 0},
            "expected heads >= 1, an integer, got 0; pass the number of heads, such as 8",
        ),
        (
            {"heads": 2, "window": 0},
            "expected window >= 1, an integer, got 0; leave window out for the default",
        ),
        (
            {"heads": 2, "cross": True, "causal": True},
            "expected cross without causal, window, rotary and alibi, got one of them; leave it "
            "out, because tokens of x and of context have no common order",
        ),
        (
            {"heads": 2, "chunk": 8, "dropout_rate": 0.5},
            "expected dropout_rate 0 with a chunk, got chunk 8 and dropout_rate 0.5; leave one of "
            "them out, because dropout needs all attention weights at once, and a chunk does not "
            "store them",
        ),
        (
            {"heads": 2, "dropout_rate": 1.5},
            r"expected dropout_rate in \[0, 1\], got 1.5; pass 0\.1 to drop 10 %",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^attention: {message}$"):
        fdl.attention(**options)


def test_the_pure_function_refuses_what_does_not_fit():
    q, k, v = qkv()
    with pytest.raises(
        fdl.PathError,
        match=r"^dot_product_attention: expected q \[\.\.\., T, H, K\], k \[\.\.\., S, G, K\], "
        r"v \[\.\.\., S, G, V\] with G a divisor of H, got q \[2, 7, 4, 6\], k \[2, 7, 2, 6\], "
        r"v \[2, 6, 2, 5\]; split the features of q, k and v into heads with reshape$",
    ):
        fdl.dot_product_attention(q, k, np.asarray(v)[:, 1:])
    with pytest.raises(
        fdl.PathError,
        match=r"^dot_product_attention: expected either on_weights or chunk, got both, with chunk "
        r"2; leave one of them out, because the computation in chunks stores no weights$",
    ):
        fdl.dot_product_attention(q, k, v, chunk=2, on_weights=jnp.sin)
    with pytest.raises(
        fdl.PathError,
        match=r"^dot_product_attention: expected bias to be floating \[2, 4, 7, 7\] or \[7, 7\], "
        r"where any axis may have size 1, got bool \[7, 7\]; if the bias is \[H\], pass "
        r"bias\[None, :, None, None\], or bias\[:, None, None\] if q has no batch axis; if it is "
        r"bool, pass it as mask$",
    ):
        fdl.dot_product_attention(q, k, v, bias=np.ones((7, 7), bool))
    with pytest.raises(
        ValueError,
        match=r"^dot_product_attention: expected a finite scale, got inf; pass None for 1 / "
        r"sqrt\(K\), where K is the number of features of a query$",
    ):
        fdl.dot_product_attention(q, k, v, scale=jnp.inf)


SEEDED_BUGS = {
    "fdl/layers/transformer.py": (
        "layers/test_attention.py",
        [
            (
                "x, context, broken = self.finite_where_unseen(",
                "_, _, broken = self.finite_where_unseen(",
            ),
            ("Pairs(mask, bias).seen()", "mask"),
            ("mask=context_mask, bias=context_bias", "mask=context_mask"),
            ('"scale": scale', '"scale": None'),
            ("y if broken is None else jnp.where(broken, jnp.nan, y)", "y"),
            ("q, k = f.q_norm(q), f.k_norm(k)", "q, k = f.q_norm(q), f.q_norm(k)"),
            (
                "_by_head(f.v(context, like=x), self.kv_heads)",
                "_by_head(f.v(x, like=x), self.heads)",
            ),
            ("            if positions is None:", "            if True:"),
            ("dropout(dropout_rate, name", "dropout(0.0, name"),
        ],
    ),
    "fdl/ops/attention_scores.py": (
        "layers/test_attention.py",
        [
            ("rules.append(ahead <= 0)", "rules.append(ahead < 0)"),
            ("rules.append(ahead <= 0)", "rules.append(ahead <= 1)"),
            ("start = jnp.where(largest == UNSEEN, 0, largest)", "start = largest"),
            ("rules.append(keys.place < self.count)", "pass"),
            ("functools.reduce(jnp.logical_and, known)", "known[0]"),
            ("if g == h:  # with", "if True:  # with"),
            ("        if g == h:\n", "        if True:\n"),
            ("jnp.abs(ahead) < self.window", "jnp.abs(ahead) <= self.window"),
            ("/ math.sqrt(max(features, 1))", "/ max(features, 1)"),
            (
                "keys.place[-1] > queries.place[0] - self.window",
                "keys.place[-1] > queries.place[0]",
            ),
            ("scores - fall", "scores + fall"),
            ("scores + bias.astype", "scores - bias.astype"),
            ("scores * jnp.asarray(self.scale", "scores / jnp.asarray(self.scale"),
            ("shown if self.mask is None else self.mask & shown", "self.mask"),
            ("shown if self.mask is None else self.mask & shown", "shown"),
            ("UNSEEN = -1e38", "UNSEEN = -1e30"),
        ],
    ),
    "fdl/ops/attention.py": (
        "layers/test_attention.py",
        [
            ("jnp.where(total == 0, 1, total)", "total"),
            ("dataclasses.replace(scoring, count=None)", "dataclasses.replace(scoring, count=0)"),
            ("v=_finite(v)", "v=v"),
            ("k=_finite(k)", "k=k"),
            ("no_key | jnp.isnan(keys.v)", "jnp.isnan(keys.v)"),
            ("(keys.v == sign * jnp.inf)", "(keys.v == jnp.inf)"),
            ("y = _spoiled(y, queries, keys, pairs, scoring, chunk)", "y = y"),
            ("dataclasses.replace(scoring, alike=True)", "scoring"),
            ("if not (q.shape[-3] and k.shape[-3]):", "if False:"),
        ],
    ),
    "fdl/ops/attention_blocks.py": (
        "layers/test_attention.py",
        [
            ("self.total * kept", "self.total"),
            ("Pairs(*(y if x is None else x for", "Pairs(*(y for"),
            ("_split_pairs(pairs, -2, rows)", "_split_pairs(pairs, -1, rows)"),
            ("self.mixed * _of_rows(kept)", "self.mixed"),
            ("    @jax.checkpoint\n    def of_queries", "    def of_queries"),
            ("x[-1] + 1 + jnp.arange", "x[-1] - jnp.arange"),
        ],
    ),
    "fdl/layers/embeddings.py": (
        "layers/test_attention.py",
        [
            ("first * cos - second * sin", "first * cos + second * sin"),
            ("_frequencies((features or x.shape[-1]) // 2", "_frequencies(x.shape[-1] // 2"),
            ("rows(table, positions)", "table[: positions.shape[-1]]"),
            ("(np.arange(count) / count)", "(np.arange(count) / (2 * count))"),
            ("jnp.asarray(fixed % 2**32, jnp.uint32)", "jnp.asarray(fixed + 1, jnp.uint32)"),
            (".astype(dtype) * rest)", ".astype(dtype) * 0 * rest)"),
            ("jax.lax.rem(whole,", "jnp.mod(whole,"),
            ("2 ** (-4 * i / below)", "2 ** (-8 * i / below)"),
        ],
    ),
}
