"""Embeddings and positions against torch and float64 formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import compiled


def _tied():
    """Vectors through a dense layer, scored against the embedding's own rows."""
    return fdl.network(
        lambda f, x: f.embed(f.body(fdl.tanh(f.embed(x)))),
        embed=fdl.embedding(255, 3, w_init=fdl.initializers.normal(0.5)),
        body=fdl.dense(3),
    )


LAYERS = {
    "embedding": LayerCase(lambda: fdl.embedding(255, 3), (2, 4), np.uint8),
    "embedding_tied": LayerCase(_tied, (3, 2), np.int32),
    "learned_positions": LayerCase(lambda: fdl.learned_positions(6), (2, 4, 3)),
    "sinusoidal_positions": LayerCase(lambda: fdl.sinusoidal_positions(base=50.0), (2, 3, 4)),
}


KEY = jax.random.key(0)
IDS = np.int32([[3, 0, 6], [3, 5, 1]])


def tied(**kwargs):
    return fdl.network(
        lambda f, ids: f.embed(jnp.tanh(f.embed(ids))), embed=fdl.embedding(7, 4, **kwargs)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tied_embedding_equals_torch(dtype):
    """torch shares one weight between the two maps; the gradient is the sum of both uses."""
    torch = pytest.importorskip("torch", reason="torch is not here: embedding was not compared")
    with jax.enable_x64(dtype == "float64"):
        net = tied(dtype=jnp.dtype(dtype))
        params, _ = net.init(KEY, IDS)
        weight = np.cos(np.arange(42.0)).reshape(2, 3, 7).astype(dtype)

        def loss(params):
            y = net.apply(params, {}, IDS)[0]
            return (weight * y).sum(), y

        gradient, y = jax.jit(jax.grad(loss, has_aux=True))(params)
        w = torch.tensor(np.asarray(params["embed"]["w"]), requires_grad=True)
        theirs = torch.tanh(torch.nn.functional.embedding(torch.tensor(IDS), w)) @ w.T
        (torch.tensor(weight) * theirs).sum().backward()
        bound = 1e-10 if dtype == "float64" else 1e-5
        for ours, other in [(y, theirs.detach()), (gradient["embed"]["w"], w.grad)]:
            other = other.numpy()
            assert abs(np.asarray(ours) - other).max() <= bound * abs(other).max()


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int16", "uint32"])
def test_ids_of_any_integer_dtype_pick_rows(dtype):
    layer = fdl.embedding(200, 3)
    params, _ = layer.init(KEY, np.zeros(1, dtype))
    ids = np.array([[199, 0], [150, 3]])
    y, _ = jax.jit(layer.apply)(params, {}, ids.astype(dtype))
    np.testing.assert_array_equal(y, np.asarray(params["w"])[ids])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_id_out_of_range_gives_nan_and_moves_nothing(wrap):
    layer = fdl.embedding(5, 2)
    params, _ = layer.init(KEY, IDS)
    ids = np.int32([4, 5, -1, 0, 10**9, -5])
    y = np.asarray(wrap(layer.apply)(params, {}, ids)[0])
    assert np.isnan(y).all(1).tolist() == [False, True, True, False, True, True]
    np.testing.assert_array_equal(y[[0, 3]], np.asarray(params["w"])[[4, 0]])
    back = wrap(jax.grad(lambda p: jnp.nan_to_num(layer.apply(p, {}, ids)[0]).sum()))(params)
    np.testing.assert_array_equal(back["w"], np.array([1, 0, 0, 0, 1.0])[:, None] * np.ones((1, 2)))


def test_vectors_begin_with_a_length_of_about_one():
    params, _ = fdl.embedding(500, 40).init(KEY, IDS)
    lengths = np.linalg.norm(params["w"], axis=1)
    assert abs((lengths**2).mean() - 1) < 4 * (2 / 20_000) ** 0.5
    params, _ = fdl.embedding(50, 4, w_init=fdl.initializers.ones, dtype=jnp.bfloat16).init(
        KEY, IDS
    )
    assert params["w"].dtype == jnp.bfloat16 and (np.asarray(params["w"]) == 1).all()


def test_vectors_first_make_the_same_weights():
    layer = fdl.embedding(7, 4)
    by_ids, by_vectors = layer.init(KEY, IDS)[0], layer.init(KEY, np.ones((2, 4), np.float32))[0]
    np.testing.assert_array_equal(by_ids["w"], by_vectors["w"])


def test_inputs_that_an_embedding_refuses():
    layer = fdl.embedding(7, 4)
    params, _ = layer.init(KEY, IDS)
    for x, said in [
        (np.ones((2, 3), np.float32), r"float32 \[2, 3\]"),
        (np.ones(4, bool), r"bool \[4\]"),
    ]:
        message = (
            rf"^embedding: expected integer ids, or vectors \[\.\.\., 4\], got {said}; convert ids "
            r"with astype\(int\), or pass vectors of this width"
        )
        for call in (layer.apply, jax.jit(layer.apply)):
            with pytest.raises(fdl.PathError, match=message):
                call(params, {}, x)
    message = r"^embedding: expected count >= 1, an integer, got 0; pass the number of ids"
    with pytest.raises(ValueError, match=message):
        fdl.embedding(0, 4)


# Positions.


def waves(positions, width, base=10_000.0):
    """The paper's formula in float64."""
    i = np.arange(width // 2)
    angles = np.asarray(positions, np.float64)[..., None] / base ** (2 * i / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(*angles.shape[:-1], width)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sinusoidal_positions_equal_the_formula_at_any_position(dtype):
    """A float32 product of position and frequency is wrong by 0.06 at a million."""
    with jax.enable_x64(dtype == "float64"):
        layer = fdl.sinusoidal_positions(base=9000.0)
        far = np.array([0, 1, 7, 1000, 123_457, 999_999, 16_777_217, 2**31 - 1])
        x = np.zeros((len(far), 64), dtype)
        y, _ = jax.jit(lambda x, p: layer.apply({}, {}, x, positions=p))(x, far)
        assert y.dtype == x.dtype
        # The formula itself rounds its angle to 2e-16 of its size.
        bound = (3e-7 if dtype == "float32" else 1e-14) + 1e-15 * far[:, None]
        assert (np.abs(np.asarray(y) - waves(far, 64, 9000.0)) <= bound).all()


def test_positions_count_from_zero_and_are_added():
    x = np.float32(np.random.default_rng(0).standard_normal((2, 5, 6)))
    apply = jax.jit(fdl.sinusoidal_positions().apply)
    y, _ = apply({}, {}, x)
    np.testing.assert_allclose(y, x + waves(np.arange(5), 6), atol=1e-6)
    narrow = x.astype(jnp.bfloat16)
    z, _ = apply({}, {}, narrow)
    expected = np.asarray(narrow, np.float32) + waves(np.arange(5), 6).astype(np.float32)
    assert z.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(z, np.float32), expected, rtol=1 / 256, atol=1e-6)
    layer = fdl.learned_positions(8, w_init=fdl.initializers.normal(1.0))
    params, _ = layer.init(KEY, x)
    assert params["w"].shape == (8, 6)
    w = np.asarray(params["w"])
    np.testing.assert_array_equal(jax.jit(layer.apply)(params, {}, x)[0], x + w[:5])


@pytest.mark.parametrize("make", [lambda: fdl.learned_positions(9), fdl.sinusoidal_positions])
def test_one_element_at_a_time_equals_the_whole_sequence(make):
    """As in decoding, through a chain, which hands positions on."""
    net = fdl.chain(positions=make(), head=fdl.dense(3))
    x = np.float32(np.random.default_rng(0).standard_normal((2, 5, 6)))
    params, _ = net.init(KEY, x)
    whole, _ = compiled(net.apply)(params, {}, x)
    one = jax.jit(lambda x, p: net.apply(params, {}, x, positions=p)[0])
    for t in range(5):
        np.testing.assert_allclose(
            one(x[:, t : t + 1], np.int32([t])), whole[:, t : t + 1], atol=1e-6
        )
    each = np.int32([[4, 2, 0], [1, 1, 3]])
    picked = np.take_along_axis(x, each[..., None], 1)
    expected = np.take_along_axis(whole, each[..., None], 1)
    np.testing.assert_allclose(one(picked, each), expected, atol=1e-5)


def test_inputs_that_positions_refuse():
    learned, waves_ = fdl.learned_positions(4), fdl.sinusoidal_positions()
    x = np.ones((2, 3, 6), np.float32)
    params, _ = learned.init(KEY, x)
    apply = functools.partial(learned.apply, params, {})
    for call, message in [
        (
            lambda: apply(np.ones((2, 5, 6), np.float32)),
            r"learned_positions: expected at most 4 positions, got x \[2, 5, 6\]; shorten the "
            r"sequence, or make the layer with a larger length",
        ),
        (
            lambda: apply(np.ones((2, 3, 5), np.float32)),
            r"learned_positions: expected floating x \[\.\.\., T, 6\], got float32 \[2, 3, 5\]; "
            r"add an embedding or a dense layer before this layer",
        ),
        (
            lambda: waves_.init(KEY, np.ones((2, 3), np.int32)),
            r"sinusoidal_positions: expected floating x \[\.\.\., T, D\], got int32 \[2, 3\]; add "
            r"an embedding or a dense layer before this layer",
        ),
        (
            lambda: jax.jit(waves_.apply)({}, {}, np.ones((2, 3, 5), np.float32)),
            r"sinusoidal_positions: expected x \[\.\.\., T, D\] with an even D, got \[2, 3, 5\]; "
            r"use an even number of features, one for the sine and one for the cosine of each "
            r"frequency",
        ),
        (
            lambda: apply(x, positions=np.ones(3, np.float32)),
            r"learned_positions: expected integer positions \[3\] or \[2, 3\] for x \[2, 3, 6\], "
            r"got float32 \[3\]; pass one position for each element",
        ),
        (
            lambda: waves_.apply({}, {}, x, positions=np.arange(2, dtype=np.int32)),
            r"sinusoidal_positions: expected integer positions \[3\] or \[2, 3\] for x "
            r"\[2, 3, 6\], got int32 \[2\]; pass one position for each element",
        ),
        (
            lambda: waves_.apply({}, {}, x, positions=[0, 1, 2]),
            r"sinusoidal_positions: expected positions to be an array, got a list; convert it with "
            r"jnp.asarray$",
        ),
    ]:
        with pytest.raises(fdl.PathError, match="^" + message):
            call()
    late, _ = jax.jit(apply)(x, positions=np.int32([0, 3, 4]))
    assert np.isnan(late).any((0, 2)).tolist() == [False, False, True]
    with pytest.raises(
        ValueError,
        match=r"^learned_positions: expected length >= 1, an integer, got 0; pass the length of "
        r"the longest sequence$",
    ):
        fdl.learned_positions(0)
    with pytest.raises(
        ValueError, match=r"^sinusoidal_positions: expected base > 1, got 1; pass a"
    ):
        fdl.sinusoidal_positions(base=1)


SEEDED_BUGS = {
    "fdl/layers/embeddings.py": (
        "layers/test_embeddings.py core/test_decoding.py ops/test_sharding.py",
        [
            ("with_position_count(layer, room, length)", "with_position_count(layer, room)"),
            ("normal(features**-0.5)", "normal(1.0)"),
            ("[jnp.sin(phases), jnp.cos(phases)]", "[jnp.cos(phases), jnp.sin(phases)]"),
            (
                'rows(params["w"], to_jax(positions, name, "positions"))',
                'params["w"][: x.shape[-2]]',
            ),
        ],
    ),
}
