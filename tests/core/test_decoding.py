"""Decoding with a cache is the full pass, for any network that looks back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.programs import array, waves

KEY = jax.random.key(0)
B, T, C = 2, 9, 11
TOKENS = np.random.default_rng(0).integers(0, C, (B, T)).astype(np.int32)


def one_hot(tokens):
    return jax.nn.one_hot(tokens, C)


def model_of(**options):
    return fdl.chain(
        one_hot,
        fdl.dense(8),
        fdl.residual(fdl.rms_norm(), fdl.attention(4, causal=True, **options), name="block"),
        fdl.gelu,
        last=fdl.attention(2, causal=True),
        head=fdl.dense(C),
    )


def gpt(*positions):
    """Tied, with positions, attention twice in a block, recomputed in the backward pass."""
    block = fdl.remat(
        fdl.residual(fdl.attention(2, causal=True), fdl.attention(1, causal=True, rotary=True))
    )
    return fdl.network(
        lambda f, ids: f.embed(f.block(f.where(f.embed(ids)))),
        embed=fdl.embedding(C, 8),
        where=fdl.chain(*positions),
        block=block,
    )


def llama(**options):
    own = {"norm": fdl.rms_norm(epsilon=1e-6), "activation": fdl.silu, "gate": True}
    own |= {"kv_heads": 1, "bias": False, "tied": False}
    return fdl.gpt(C, None, layers=2, heads=2, features=12, hidden=10, **own | options)


# Of the first four of each head's six features.
ANGLES = np.arange(12.0)[:, None] * np.array([1.0, 0.2])
TABLES = {"cos": array(np.cos(ANGLES), "f"), "sin": array(np.sin(ANGLES), "f")}
MODELS = {
    "plain": model_of,
    "grouped_rotary": lambda: model_of(kv_heads=2, rotary=True, qk_norm=True),
    "window_alibi": lambda: model_of(alibi=True, window=3, soft_cap=2.0, head_features=3),
    "in_chunks": lambda: model_of(chunk=4, rotary=True),
    "window_in_chunks": lambda: model_of(window=3, chunk=2),
    "blocks_scanned": lambda: fdl.chain(
        fdl.embedding(C, 8),
        fdl.learned_positions(12),
        fdl.repeat(fdl.encoder_block(2, 8, causal=True), 3, scan=True),
        fdl.dense(C),
    ),
    "llama": lambda: llama(rotary=functools.partial(fdl.rotary_by_tables, **TABLES)),
    "gpt": lambda: gpt(fdl.learned_positions(12), fdl.sinusoidal_positions()),
}


@functools.cache
def made(name):
    model = MODELS[name]()
    params, _ = model.init(KEY, TOKENS)
    return model, params, full_pass(model, params, TOKENS)


def full_pass(model, params, x, state=None, **inputs):
    return jax.jit(functools.partial(model.apply, **inputs))(params, state or {}, x)[0]


@functools.cache
def decoder(model):
    return jax.jit(functools.partial(fdl.decode, model))


@pytest.mark.parametrize("name", MODELS)
def test_decoding_is_the_full_pass(name):
    model, params, whole = made(name)
    cache = fdl.start_decoding(model, params, TOKENS, 12)
    before = jax.tree.structure(cache)
    found, place = [], 0
    for piece in (3, 1, 1, 3, 1):
        y, cache = decoder(model)(params, cache, TOKENS[:, place : place + piece])
        assert jax.tree.structure(cache) == before
        found.append(y)
        place += piece
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grouped_rotary", "gpt"])
def test_decoding_one_by_one_inside_scan_is_the_full_pass(name):
    model, params, whole = made(name)

    @jax.jit
    def one_by_one(params, tokens):
        def step(cache, token):
            y, cache = fdl.decode(model, params, cache, token[:, None])
            return cache, y[:, 0]

        cache = fdl.start_decoding(model, params, tokens, T)
        return jax.lax.scan(step, cache, tokens.T)[1].swapaxes(0, 1)

    np.testing.assert_allclose(one_by_one(params, TOKENS), whole, rtol=1e-5, atol=1e-5)


def test_the_cache_is_a_value_by_path_in_the_dtype_of_the_params():
    model, params, _ = made("grouped_rotary")
    cache = fdl.start_decoding(model, params, TOKENS[:1, :3], 7)
    shapes = {path: (leaf.shape, str(leaf.dtype)) for path, leaf in fdl.paths.leaves(cache).items()}
    assert shapes == {
        "block_0/attention_0/cache/k": ((1, 7, 2, 2), "float32"),
        "block_0/attention_0/cache/v": ((1, 7, 2, 2), "float32"),
        "block_0/attention_0/position/count": ((), "int32"),
        "last/cache/k": ((1, 7, 2, 4), "float32"),
        "last/cache/v": ((1, 7, 2, 4), "float32"),
        "last/position/count": ((), "int32"),
    }
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(cache))
    x = array(np.ones((1, 3, 8)), jnp.bfloat16)
    layer = fdl.attention(2, causal=True)
    params, _ = layer.init(KEY, np.ones((1, 3, 8), np.float32))
    narrow = jax.tree.map(lambda w: array(w, jnp.bfloat16), params)
    cache = fdl.start_decoding(layer, narrow, x, 4)
    assert cache["cache"]["k"].dtype == jnp.bfloat16
    y, after = decoder(layer)(narrow, cache, x)
    assert y.dtype == after["cache"]["k"].dtype == jnp.bfloat16


def test_a_mask_covers_the_places_of_the_cache_and_positions_may_be_passed():
    layer = fdl.attention(2, causal=True, rotary=True)
    x = np.random.default_rng(1).standard_normal((B, 5, 8)).astype(np.float32)
    seen = np.array([[False, True, True, True, True], [True, True, False, True, True]])
    positions = np.array([[0, 0, 1, 2, 3], [0, 1, 2, 2, 7]], np.int32)
    params, _ = layer.init(KEY, x)
    mask = seen[:, None, None, :]
    whole = full_pass(layer, params, x, mask=mask, positions=positions)
    cache = fdl.start_decoding(layer, params, x, 6)
    over_all = np.pad(mask, [(0, 0)] * 3 + [(0, 1)])
    found = []
    for part in (slice(0, 3), slice(3, 5)):
        y, cache = decoder(layer)(
            params, cache, x[:, part], mask=over_all, positions=positions[:, part]
        )
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=1e-5, atol=1e-5)
    plain = np.asarray(full_pass(layer, params, x))
    assert np.abs(plain - np.asarray(whole)).max() > 1e-2


def test_a_context_is_given_at_every_step():
    context = array(np.random.default_rng(1).standard_normal((B, 4, 5)))
    model = fdl.chain(
        one_hot, fdl.attention(1, causal=True), fdl.attention(1, cross=True), head=fdl.dense(3)
    )
    params, _ = model.init(KEY, TOKENS, context=context)
    whole = full_pass(model, params, TOKENS, context=context)
    cache = fdl.start_decoding(model, params, TOKENS, T, context=context)
    assert list(cache) == ["attention_0"]
    first, cache = decoder(model)(params, cache, TOKENS[:, :4], context=context)
    second, cache = decoder(model)(params, cache, TOKENS[:, 4:], context=context)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-5)


def running_scale():
    """A layer that multiplies x by a number in its state, which only training changes."""

    def init(key, x):
        return {}, {"scale": jnp.ones((), x.dtype)}

    def apply(params, state, x, *, key=None, train=False):
        return x * state["scale"], {"scale": state["scale"] + 1.0 if train else state["scale"]}

    return fdl.Layer("running_scale", init, apply)


def test_the_cache_contains_the_state_of_the_model():
    model = fdl.chain(one_hot, running_scale(), fdl.attention(1, causal=True))
    params, state = model.init(KEY, TOKENS)
    trained = jax.tree.map(lambda s: array(3 * np.asarray(s)), state)
    whole = full_pass(model, params, TOKENS, trained)
    cache = fdl.start_decoding(model, params, TOKENS, T, state=trained)
    first, cache = decoder(model)(params, cache, TOKENS[:, :4])
    second, cache = decoder(model)(params, cache, TOKENS[:, 4:])
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-5, atol=1e-5)
    assert float(cache["running_scale_0"]["scale"]) == 3
    with pytest.raises(
        fdl.PathError,
        match=r"^start_decoding: expected the model's state \[running_scale_0/scale\], got \[\]; "
        r"pass state=\.\.\., the state that training returned$",
    ):
        fdl.start_decoding(model, params, TOKENS, T)


@pytest.mark.parametrize("name", ["plain", "window_in_chunks"])
def test_tokens_beyond_the_length_of_the_cache_give_nan(name):
    model, params, whole = made(name)
    cache = fdl.start_decoding(model, params, TOKENS[:, :1], 5)
    y, cache = decoder(model)(params, cache, TOKENS[:, :4])
    y, cache = decoder(model)(params, cache, TOKENS[:, 4:5])
    np.testing.assert_allclose(np.asarray(y)[:, 0], np.asarray(whole)[:, 4], rtol=1e-5, atol=1e-5)
    for place in (5, 6, 7, 8):
        y, cache = decoder(model)(params, cache, TOKENS[:, place : place + 1])
        assert np.isnan(y).all()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: fdl.conv(3, (3,), padding="CAUSAL"),
        lambda: fdl.conv(4, (2,), padding=[(3, 0)], dilation=3, groups=2),
        lambda: fdl.depthwise_conv((4,), padding="CAUSAL", multiplier=2),
        lambda: fdl.separable_conv(3, (2,), padding="CAUSAL", dilation=2),
        lambda: fdl.conv(3, (1,)),
        lambda: fdl.batch_apply(fdl.group_norm(2)),
        lambda: fdl.batch_apply(
            fdl.chain(lambda x: x[..., None], fdl.conv(2, (3,)), fdl.flatten())
        ),
        lambda: fdl.batch_apply(fdl.attention(2, causal=True), axes=1),
        lambda: fdl.batch_apply(fdl.chain(fdl.attention(2, causal=True)), axes=1),
    ],
    ids=[
        *("conv", "dilated", "depthwise", "separable", "pointwise"),
        *("each_token", "each_image", "one_axis", "chain_of_one_axis"),
    ],
)
def test_a_causal_convolution_remembers_the_elements_of_its_window(layer):
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
    model = fdl.chain(fdl.dense(4), layer(), fdl.attention(1, causal=True), fdl.dense(2))
    params, state = model.init(KEY, x)
    params = jax.tree.map(lambda w: np.asarray(w) + np.float32(0.1), params)
    whole = full_pass(model, params, x, state)
    cache = fdl.start_decoding(model, params, x[:, :1], 9)
    found, place = [], 0
    for piece in (1, 1, 5, 2):
        y, cache = decoder(model)(params, cache, x[:, place : place + piece])
        found.append(y)
        place += piece
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: fdl.conv(4, (3,)),
        lambda: fdl.conv(4, (3,), stride=2, padding="CAUSAL"),
        lambda: fdl.conv(4, (1,), padding=1),
        lambda: fdl.depthwise_conv((3,), padding=[(1, 1)]),
        lambda: fdl.conv_transpose(4, (2,)),
        lambda: fdl.max_pool((3,), stride=1, padding="SAME"),
        lambda: fdl.upsample((2,)),
        lambda: fdl.group_norm(2),
        lambda: fdl.layers.instance_norm(),
        lambda: fdl.flatten(),
        lambda: fdl.layers.weight_norm(fdl.conv(4, (3,))),
    ],
)
def test_a_layer_that_mixes_tokens_refuses_to_be_decoded(layer):
    x = jnp.ones((2, 4, 4))
    model = fdl.chain(top=fdl.chain(mix=layer()))
    params, state = model.init(KEY, x)
    told = (
        r"^top/mix: expected a layer that can decode with a cache, got one that needs the whole "
        r"sequence; use causal attention, a recurrent layer or conv\(padding='CAUSAL'\) instead, "
        r"or, if each token is an image, wrap the layer in batch_apply$"
    )
    with pytest.raises(fdl.PathError, match=told):
        fdl.start_decoding(model, params, x[:, :1], 4, state=state)


def test_a_cache_of_another_batch_is_refused_by_a_convolution():
    layer = fdl.conv(3, (3,), padding="CAUSAL")
    params, _ = layer.init(KEY, jnp.ones((2, 1, 4)))
    cache = fdl.start_decoding(layer, params, jnp.ones((2, 1, 4)), 9)
    told = (
        r"^conv: expected x \[2, 'T', 4\], got \[1, 1, 4\]; call start_decoding with an x of this "
        r"batch$"
    )
    with pytest.raises(fdl.PathError, match=told):
        fdl.decode(layer, params, cache, jnp.ones((1, 1, 4)))


def test_layers_without_a_cache_may_share_their_weights():
    experts = fdl.mixture_of_experts(fdl.dense(4), 3, capacity_factor=None)
    model = fdl.network(
        lambda f, x: f.see(f.mix(f.mix(x))), mix=experts, see=fdl.attention(1, causal=True)
    )
    x = array(np.random.default_rng(0).standard_normal((2, 5, 4)))
    params, _ = model.init(KEY, x)

    @jax.jit
    def both(params):
        cache = fdl.start_decoding(model, params, x[:, :2], 5)
        first, cache = fdl.decode(model, params, cache, x[:, :2])
        last, cache = fdl.decode(model, params, cache, x[:, 2:])
        return first, last, model.apply(params, {}, x)[0]

    first, last, whole = both(params)
    np.testing.assert_allclose(np.concatenate([first, last], 1), whole, rtol=1e-5, atol=1e-5)


def test_a_cache_longer_than_the_positions_of_the_model_is_refused():
    model = fdl.models.gpt(C, 6, layers=1, heads=1, features=4)
    params, _ = model.init(KEY, TOKENS[:, :2])
    told = (
        r"^positions: expected a length of at most 6, the number of positions of the layer, got 7; "
        r"decode fewer tokens, or make the layer with a larger length(\n|$)"
    )
    with pytest.raises(fdl.PathError, match=told):
        fdl.start_decoding(model, params, TOKENS[:, :2], 7)
    with pytest.raises(fdl.PathError, match=told):
        fdl.generate(model, params, TOKENS[:, :2], 6)
    assert fdl.generate(model, params, TOKENS[:, :2], 5).shape == (2, 7)
    layer = fdl.learned_positions(3)
    x = np.zeros((1, 2, 4), np.float32)
    params, _ = layer.init(KEY, x)
    # Where positions are given, more tokens than positions are no mistake.
    cache = fdl.start_decoding(layer, params, x, 5, positions=jnp.array([0, 0]))
    y, _ = fdl.decode(layer, params, cache, x, positions=jnp.array([2, 0]))
    np.testing.assert_array_equal(np.asarray(y)[0], np.asarray(params["w"])[[2, 0]])


def test_what_cannot_decode_says_why():
    params, _ = made("plain")[1:]
    model = made("plain")[0]
    both = fdl.chain(top=fdl.chain(one_hot, see=fdl.attention(1)))
    with pytest.raises(
        fdl.PathError,
        match=r"^top/see: expected causal=True in decoding, got attention that sees later tokens; "
        r"pass causal=True, because an output must not depend on later tokens$",
    ):
        fdl.start_decoding(both, both.init(KEY, TOKENS)[0], TOKENS, T)
    hidden = fdl.Layer("hidden", both.init, both.apply, children=both.children)
    with pytest.raises(
        fdl.PathError,
        match=r"^hidden: expected a layer that can be rebuilt with other children, got a layer "
        r"without rebuild that contains attention; make it with network, or pass rebuild=\.\.\. to "
        r"Layer",
    ):
        fdl.start_decoding(hidden, params, TOKENS, T)
    shared = fdl.network(lambda f, x: f.see(f.see(x)), see=fdl.attention(1, causal=True))
    x = jnp.ones((1, 2, 4))
    with pytest.raises(
        fdl.PathError,
        match=r"^see: expected one call of the layer in a pass, got two, which would need two "
        r"caches; to decode, make two layers with separate names and weights(\n|$)",
    ):
        fdl.start_decoding(shared, shared.init(KEY, x)[0], x, 5)
    cache = fdl.start_decoding(model, params, TOKENS[:, :1], 5)
    for tokens in (TOKENS[:1, :3], TOKENS[:, :6]):
        told = rf"got \[{tokens.shape[0]}, {tokens.shape[1]}, 4, 2\]"
        for call in (functools.partial(fdl.decode, model), decoder(model)):
            with pytest.raises(
                fdl.PathError,
                match=rf"^block_0/attention_0/cache: expected keys \[2, 'T', 4, 2\] with T <= 5, "
                rf"{told}; call start_decoding with an x of this batch, and a length for all "
                rf"tokens",
            ):
                call(params, cache, tokens)


@pytest.mark.parametrize(
    "wrap",
    [fdl.layers.spectral_norm, fdl.layers.weight_norm, lambda f: fdl.low_rank(f, "**/w", rank=2)],
    ids=["spectral_norm", "weight_norm", "low_rank"],
)
@pytest.mark.parametrize(
    "inner",
    [
        lambda: fdl.layers.attention(2, causal=True),
        lambda: fdl.layers.lstm(5),
        lambda: fdl.layers.rg_lru(4),
        lambda: fdl.layers.mixture_of_experts(fdl.dense(4), 3, capacity_factor=None),
    ],
    ids=["attention", "lstm", "rg_lru", "mixture_of_experts"],
)
def test_a_layer_decodes_with_the_weights_that_its_wrapper_makes(wrap, inner):
    x = array(np.random.default_rng(0).standard_normal((2, 5, 4)))
    for model in (wrap(inner()), fdl.chain(wrap(inner()), fdl.dense(3))):
        # Outside the program, because it takes longer to compile the draws than all the rest.
        params, state = model.init(KEY, x)
        params = jax.tree.map(lambda w: np.asarray(w) + np.float32(0.3) * waves(w), params)

        @jax.jit
        def both(params, state, x, model=model):
            cache = fdl.start_decoding(model, params, x[:, :3], 8, state=state)
            first, cache = fdl.decode(model, params, cache, x[:, :3])
            last, cache = fdl.decode(model, params, cache, x[:, 3:])
            return jnp.concatenate([first, last], 1), model.apply(params, state, x)[0]

        found, whole = both(params, state, x)
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


SEEDED_BUGS = {
    "fdl/core/decoding_cache.py": (
        "core/test_decoding.py",
        [
            ('{"count": state["count"] + x.shape[-2]}', '{"count": state["count"] + 1}'),
            ("k.shape[-3] <= state", "k.shape[-3] < state"),
            ("positions = start + jnp.arange", "positions = jnp.arange"),
            ("and positions is None:", "and True:"),
            ("seen[..., x.shape[-2] :, :]", "seen[..., :before, :]"),
            ("return dataclasses.replace(layer, decoding=decoding)", "return layer"),
        ],
    ),
    "fdl/core/decoding.py": (
        "core/test_decoding.py",
        [
            ("if state else state", ""),
            ("if CALLED in state", "if False"),
            ("jax.tree.map(zeros, after), state)", "jax.tree.map(zeros, after), {})"),
        ],
    ),
}
