"""Low-rank adaptation: the same network at first, the right gradient, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled

LAYERS = {
    "low_rank": LayerCase(
        lambda: fdl.low_rank(
            fdl.chain(fdl.dense(4), fdl.tanh, head=fdl.dense(3)), "**/w", rank=2, scale=3.0
        ),
        (3, 5),
    ),
}


KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).standard_normal((6, 5)))


def network():
    return fdl.chain(
        body=fdl.chain(fdl.dense(4), fdl.tanh, fdl.batch_norm()),
        drop=fdl.dropout(0.5),
        head=fdl.dense(3),
    )


def adapted(*patterns, rank=2, scale=3.0):
    return fdl.low_rank(network(), *(patterns or ("body/*/w",)), rank=rank, scale=scale)


def moved(params):
    """b away from zero."""
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: (
            array(0.5 * rng.standard_normal(leaf.shape))
            if fdl.paths.path_of(keys).endswith("b")
            else leaf
        ),
        params,
    )


def test_at_first_it_is_the_network_bit_for_bit():
    params, state = network().init(KEY, X)
    model = adapted("**/w")
    own, own_state = model.init(KEY, X)
    for path, leaf in fdl.paths.leaves(params).items():
        np.testing.assert_array_equal(fdl.paths.leaves(own["base"])[path], leaf)
    for train in (False, True):
        key = jax.random.key(1) if train else None
        y, after = network().apply(params, state, X, key=key, train=train)
        z, own_after = model.apply(own, own_state, X, key=key, train=train)
        np.testing.assert_array_equal(y, z)
        jax.tree.map(np.testing.assert_array_equal, after, own_after)
    assert list(fdl.paths.leaves(own["low_rank"])) == [
        *("body/dense_0/w/a", "body/dense_0/w/b", "head/w/a", "head/w/b")
    ]
    a = own["low_rank"]
    assert a["body"]["dense_0"]["w"]["a"].shape == (5, 2) and a["head"]["w"]["b"].shape == (2, 3)
    first = np.asarray(a["body"]["dense_0"]["w"]["a"])[:4]
    assert (first != np.asarray(a["head"]["w"]["a"])).all()


def test_the_weights_equal_the_paper():
    model = adapted("head/w", rank=2, scale=3.0)
    params, state = model.init(KEY, X)
    params = {**params, "low_rank": moved(params["low_rank"])}
    beside = jax.tree.map(np.float64, params["low_rank"]["head"]["w"])
    merged = fdl.merge_low_rank(params, scale=3.0)
    expected = np.float64(params["base"]["head"]["w"]) + 3 / 2 * beside["a"] @ beside["b"]
    np.testing.assert_allclose(merged["head"]["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(merged["head"]["b"], params["base"]["head"]["b"])
    y, _ = network().apply(merged, state, X)
    np.testing.assert_array_equal(model.apply(params, state, X)[0], y)
    assert jax.tree.structure(merged) == jax.tree.structure(params["base"])


def test_every_weight_draws_different_numbers():
    model = fdl.low_rank(fdl.chain(*[fdl.dense(5)] * 3), "**/w", rank=2)
    leaves = fdl.paths.leaves(model.init(KEY, X)[0])
    drawn = [np.asarray(leaf) for path, leaf in leaves.items() if path.endswith("/a")]
    assert len(drawn) == 3 and len({leaf.tobytes() for leaf in drawn}) == 3


def test_the_gradient_equals_the_product():
    """By the chain rule, from the gradient that plain weights have: scale / rank * a.T @ G."""
    with jax.enable_x64(True):
        model, x = adapted("**/w"), X.astype(np.float64)
        params, state = jax.tree.map(np.asarray, model.init(KEY, x))
        params = {**params, "low_rank": jax.tree.map(lambda leaf: leaf + 0.3, params["low_rank"])}

        def loss(apply):
            return jax.grad(lambda p: jnp.sin(apply(p, state, x)[0]).sum())

        @compiled
        def both(params):
            merged = fdl.merge_low_rank(params, scale=3.0)
            return loss(model.apply)(params), loss(network().apply)(merged)

        ours, plain = both(params)
        for path in ("body/dense_0/w", "head/w"):
            g = fdl.paths.leaves(plain)[path]
            a, b = (fdl.paths.leaves(params["low_rank"])[f"{path}/{leaf}"] for leaf in "ab")
            found = fdl.paths.leaves(ours["low_rank"])
            np.testing.assert_allclose(found[f"{path}/a"], 3 / 2 * g @ b.T, rtol=1e-10)
            np.testing.assert_allclose(found[f"{path}/b"], 3 / 2 * a.T @ g, rtol=1e-10)
            np.testing.assert_allclose(fdl.paths.leaves(ours["base"])[path], g, rtol=1e-10)


def test_the_base_stays_where_it_is_and_the_rest_learns():
    model = fdl.low_rank(fdl.mlp([8], 3), "**/w", rank=2)
    params, state = model.init(KEY, X)
    frozen = jax.tree.map(
        lambda here: "frozen" if here else "learned", fdl.select(params, "base/**")
    )
    optimizer = optax.multi_transform(
        {"frozen": optax.set_to_zero(), "learned": fdl.sgd(0.5)}, frozen
    )
    labels = np.int32([0, 1, 2, 0, 1, 2])

    def loss(params):
        return fdl.softmax_cross_entropy(model.apply(params, state, X)[0], labels).mean()

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return fdl.apply_updates(params, updates), opt_state

    learned, opt_state = params, optimizer.init(params)
    for _ in range(60):
        learned, opt_state = step(learned, opt_state)
    jax.tree.map(np.testing.assert_array_equal, learned["base"], params["base"])
    value = compiled(loss)
    assert value(learned) < 0.5 * value(params)
    y, _ = fdl.mlp([8], 3).apply(fdl.merge_low_rank(learned), {}, X)
    np.testing.assert_array_equal(y, model.apply(learned, state, X)[0])


def test_kernels_stacks_and_narrow_weights():
    def kernel(key, x):
        return {"w": jax.random.normal(key, (3, 2, 4, 5), jnp.bfloat16)}, {}

    layer = fdl.Layer("kernel", kernel, lambda p, s, x, *, key=None, train=False: (p["w"], s))
    model = fdl.low_rank(layer, "w", rank=3)
    params, _ = model.init(KEY, X)
    a, b = params["low_rank"]["w"]["a"], params["low_rank"]["w"]["b"]
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((24, 3), (3, 5), jnp.bfloat16, jnp.bfloat16)
    assert jax.jit(model.apply)(params, {}, X)[0].dtype == jnp.bfloat16


def test_capture_looks_inside_a_low_rank_network():
    model = adapted()
    params, state = model.init(KEY, X)
    params = {**params, "low_rank": moved(params["low_rank"])}
    look = fdl.capture(model, "head", "body/dense_0")
    both = compiled(lambda *args: (look(*args), model.apply(*args)[0]))
    seen, y = both(params, state, X)
    np.testing.assert_array_equal(seen["head"], y)
    plain, _ = network().init(KEY, X)
    assert (seen["body/dense_0"] != X @ np.asarray(plain["body"]["dense_0"]["w"])).any()


def test_low_rank_refuses_what_it_cannot_adapt():
    with pytest.raises(
        ValueError,
        match=r"^pattern 'haed/w': expected at least one match among 6 paths, got none; the most "
        r"similar paths are 'head/w', ",
    ):
        adapted("haed/w").init(KEY, X)
    with pytest.raises(
        fdl.PathError,
        match=r"^head/b: expected weights \[\.\.\., in, out\], got \[3\]; use a pattern that "
        r"matches only matrices, such as '\*\*/w'$",
    ):
        adapted("head/*").init(KEY, X)
    with pytest.raises(
        ValueError, match=r"^low_rank: expected rank >= 1, an integer, got 0; pass the rank"
    ):
        adapted(rank=0)
    with pytest.raises(
        ValueError,
        match=r"^low_rank: expected a pattern, got none; pass '\*\*/w' to match all weight "
        r"matrices$",
    ):
        fdl.low_rank(network(), rank=1)


SEEDED_BUGS = {
    "fdl/layers/reparametrization.py": (
        "layers/test_low_rank.py",
        [
            ("in_dtype(scale, a.dtype) / a.shape[-1] *", "in_dtype(scale, a.dtype) *"),
            ("base + (in_dtype(scale", "base - (in_dtype(scale"),
            (
                "jnp.zeros((rank, w.shape[-1]), w.dtype)",
                "a_init(leaf_key, (rank, w.shape[-1]), w.dtype)",
            ),
            ("subkey(leaf_key, level)", "leaf_key"),
            ("model.init(key, x, **inputs)", 'model.init(subkey(key, "base"), x, **inputs)'),
        ],
    ),
}
