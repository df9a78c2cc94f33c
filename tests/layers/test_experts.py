"""Mixtures of experts against a loop over tokens, in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.programs import array, compiled, waves

KEY = jax.random.key(0)
B, T, D, E, F = 2, 7, 4, 3, 5
X = np.float32(np.random.default_rng(0).standard_normal((B, T, D)))


def assert_near(found, expected, bound=1e-5):
    """The largest difference, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


@functools.cache
def drawn():
    """Parameters for any options, in NumPy."""
    params, _ = jax.tree.map(np.array, fdl.mixture_of_experts(fdl.dense(F), E).init(KEY, X))
    params["experts"]["b"] = np.float32(np.random.default_rng(1).standard_normal((E, F)))
    # Towards the first expert, so that it is crowded.
    params["router"]["w"][:, 0] += X.mean((0, 1))
    params["router"]["w"] *= 2
    return params


@functools.cache
def made(**options):
    return fdl.mixture_of_experts(fdl.dense(F), E, **options), drawn()


@functools.cache
def applying(layer):
    """y alone, by one program for each shape."""
    return compiled(lambda params, x: layer.apply(params, {}, x)[0])


def chances_of(params, x):
    logits = np.asarray(x, np.float64) @ np.asarray(params["router"]["w"], np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def token_by_token(params, x, top_k, room):
    """(y, how many choices found no room)."""
    w, b = (np.asarray(params["experts"][name], np.float64) for name in "wb")
    x64, chances = np.asarray(x, np.float64), chances_of(params, x)
    y, turned_away = np.zeros((*x.shape[:2], F)), 0
    for row in range(len(x)):
        taken = np.zeros(E, int)
        for choice in range(top_k):
            for t in range(x.shape[1]):
                order = np.argsort(-chances[row, t])[:top_k]
                e = order[choice]
                if taken[e] == room:
                    turned_away += 1
                    continue
                taken[e] += 1
                share = chances[row, t, e] / (chances[row, t, order].sum() if top_k > 1 else 1)
                y[row, t] += share * (x64[row, t] @ w[e] + b[e])
    return y, turned_away


@pytest.mark.parametrize(
    ("top_k", "factor", "room"), [(1, 1.0, 3), (2, 1.25, 6), (2, 0.5, 3), (3, None, 7)]
)
def test_a_mixture_is_a_loop_over_tokens(top_k, factor, room):
    layer, params = made(top_k=top_k, capacity_factor=factor)
    expected, turned_away = token_by_token(params, X, top_k, room)
    assert bool(turned_away) == (factor is not None)
    assert_near(applying(layer)(params, X), expected)


def test_gradients_equal_the_whole_sum():
    """With room for all, the mixture is a sum over all experts, most of them times 0."""
    layer, params = made(top_k=2, capacity_factor=None)

    def plain(params, x):
        chances = jax.nn.softmax(x @ params["router"]["w"])
        kept = jnp.where(chances >= jnp.sort(chances)[..., -2:-1], chances, 0.0)
        kept = kept / kept.sum(-1, keepdims=True)
        each = jnp.einsum("btd,edf->btef", x, params["experts"]["w"]) + params["experts"]["b"]
        return (kept[..., None] * each).sum(-2)

    def gradients(f, *args):
        def total(*args):
            y = f(*args)
            return (waves(y) * y).sum()

        return jax.jit(jax.grad(total, (0, 1)))(*args)

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: array(np.asarray(leaf), "float64"), (params, X))
        ours = gradients(lambda params, x: layer.apply(params, {}, x)[0], *exact)
        assert_near(ours, gradients(plain, *exact), 1e-10)
    assert_near(gradients(lambda params, x: layer.apply(params, {}, x)[0], params, X), ours)


def test_a_single_choice_teaches_the_router():
    layer, params = made(top_k=1)
    gradient = compiled(jax.grad(lambda params: layer.apply(params, {}, X)[0].sum()))(params)
    assert np.abs(gradient["router"]["w"]).max() > 1e-3


def test_a_token_over_capacity_passes_as_zeros_and_sequences_are_apart():
    layer, params = made(top_k=1, capacity_factor=1.0)
    one = np.broadcast_to(X[:1, :1], (1, T, D))
    y = applying(layer)(params, np.concatenate([one, X[:1]]))
    room = 3
    assert np.abs(y[0, :room]).min() > 0 and not y[0, room:].any()
    assert_near(y[1:], applying(layer)(params, X[:1]))


@pytest.mark.parametrize(("factor", "room"), [(1.1, 11), (np.float32(1.1), 11), (1.2, 12)])
def test_the_capacity_is_that_of_the_decimal_that_was_written(factor, room):
    """As floats, 1.1 * 2 * 50 / 10 is 11.000000000000002. All tokens choose the same experts."""
    layer = fdl.mixture_of_experts(fdl.dense(3), 10, capacity_factor=factor)
    x = np.ones((50, 4), np.float32)
    params, _ = layer.init(KEY, x)
    y = applying(layer)(params, x)
    assert int((y != 0).any(1).sum()) == room


def test_an_infinite_capacity_is_room_for_all():
    layer, params = made(top_k=2, capacity_factor=np.inf)
    assert_near(applying(layer)(params, X), token_by_token(params, X, 2, T)[0])


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_balance_by_hand(top_k):
    _, params = made()
    logits = X @ params["router"]["w"]
    chances = chances_of(params, X)
    often = np.zeros((B, E))
    for row in range(B):
        for t in range(T):
            often[row, np.argsort(-chances[row, t])[:top_k]] += 1 / (T * top_k)
    expected = E * (often * chances.mean(1)).sum(-1)

    def total(logits):
        found = fdl.load_balance(logits, top_k=top_k)
        return found.sum(), found

    by_logits, found = compiled(jax.grad(total, has_aux=True))(logits)
    assert_near(found, expected)
    narrow = jax.eval_shape(fdl.load_balance, logits.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    softmax_back = chances * (often[:, None] - (often[:, None] * chances).sum(-1, keepdims=True))
    assert_near(by_logits, E / T * softmax_back)


def test_the_logits_for_the_balance_are_captured_from_any_depth():
    layer = fdl.mixture_of_experts(fdl.dense(D), E)
    model = fdl.chain(fdl.residual(mix=layer), fdl.residual(mix=layer), head=fdl.dense(2))
    params, _ = model.init(KEY, X)

    def loss(params):
        seen = fdl.capture(model, "**/router", "head")(params, {}, X)
        y = seen.pop("head")
        return (y**2).mean() + 0.01 * sum(fdl.load_balance(each).mean() for each in seen.values())

    y = applying(model)(params, X)
    value, gradient = compiled(jax.value_and_grad(loss))(params)
    assert 0.02 * 0.9 < value - (y**2).mean() < 0.02 * E
    assert all(np.abs(each).max() > 0 for each in jax.tree.leaves(gradient))


def test_in_decoding_there_is_room_for_all():
    layer, params = made(top_k=2, capacity_factor=0.5)
    expected, _ = token_by_token(params, X, 2, T)
    cache = fdl.start_decoding(layer, params, X, T)
    decode, pieces = compiled(functools.partial(fdl.decode, layer)), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        y, cache = decode(params, cache, X[:, part])
        pieces.append(y)
    assert_near(np.concatenate(pieces, 1), expected)


def test_each_expert_is_drawn_separately():
    params, _ = fdl.mixture_of_experts(fdl.dense(4), 50).init(KEY, np.ones((1, 3, 200), np.float32))
    w = np.asarray(params["experts"]["w"])
    np.testing.assert_allclose(w.var(), 1 / 200, rtol=0.05)
    assert len(np.unique(w[:, 0, 0])) == 50


def test_options_out_of_range_are_refused():
    for options in ({"count": 0}, {"count": 2, "top_k": 3}, {"count": 2, "capacity_factor": 0.0}):
        with pytest.raises(
            ValueError,
            match=r"^mixture_of_experts: expected count >= 1, top_k from 1 to count and "
            r"capacity_factor > 0 or None, got -?\d+, \d and -?\d.\d+; pass top_k=2 for two "
            r"experts for each token, and capacity_factor=None to give every expert room for all "
            r"tokens$",
        ):
            fdl.mixture_of_experts(fdl.dense(2), **options)
    with pytest.raises(
        fdl.PathError,
        match=r"^load_balance: expected logits \[\.\.\., T, E\] and top_k from 1 to E, got \[4\] "
        r"and 2; pass the output of the router, and the top_k of the layer$",
    ):
        fdl.load_balance(jnp.ones(4))
    with pytest.raises(
        fdl.PathError,
        match=r"^mix: expected x \[\.\.\., T, D\], got \[4\]; give x one row of features for each "
        r"token(\n|$)",
    ):
        fdl.chain(mix=made()[0]).init(KEY, X[0, 0])


@pytest.mark.parametrize("capacity_factor", [None, 0.5])
def test_a_token_of_nan_changes_no_other(capacity_factor):
    layer = fdl.mixture_of_experts(fdl.dense(3), 4, capacity_factor=capacity_factor)
    x = np.float32(np.random.default_rng(0).standard_normal((2, 6, 5)))
    params, _ = layer.init(jax.random.key(0), x)
    spoilt = x.copy()
    spoilt[0, 4], spoilt[1, 5, 2] = np.nan, np.inf
    y = applying(layer)(params, spoilt)
    others = np.ones((2, 6), bool)
    others[[0, 1], [4, 5]] = False
    assert np.isfinite(y[others]).all()
    if capacity_factor is None:
        np.testing.assert_array_equal(y[others], applying(layer)(params, x)[others])


SEEDED_BUGS = {
    "fdl/layers/experts.py": (
        "layers/test_experts.py",
        [
            ("if top_k > 1:", "if True:"),
            ("min(capacity_factor, count)", "capacity_factor"),
            ("chosen.swapaxes(-1, -2)", "chosen.reshape(*chosen.shape[:-2], top_k, -1)"),
            ("jnp.cumsum(queue, -2) - queue", "jnp.cumsum(queue, -2)"),
            ("jnp.where(place < room,", "jnp.where(place <= room,"),
            ("(weights[..., None] * held", "(held"),
            ('.get(mode="fill", fill_value=0)', '.get(mode="clip")'),
            ("logits.shape[-1] * (share", "(share"),
            ("capacity_factor=None, name=name", "capacity_factor=capacity_factor, name=name"),
            ("jnp.stack([subkey(key, name) for name in names])", "jnp.stack([key] * count)"),
        ],
    ),
}
