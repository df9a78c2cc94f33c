"""A network in which the outputs of some layers are changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.look import capture, patch
from tests.trees import NEAR, assert_equal

X = np.random.default_rng(0).standard_normal((2, 4)).astype("float32")


def of(scan):
    block = fdl.residual(up=fdl.dense(4), act=jnp.tanh)
    model = fdl.chain(first=fdl.dense(4), block=fdl.repeat(block, 3, scan=scan), head=fdl.dense(2))
    return model, *model.init(jax.random.key(0), X)


def by_hand(params, x, block, f):
    """The network in NumPy, where f changes the output of one block's act."""

    def dense(p, x):
        return x @ np.asarray(p["w"]) + np.asarray(p["b"])

    x = dense(params["first"], x)
    for number in range(3):
        y = np.tanh(dense(params["block"][str(number)]["up"], x))
        x = x + (f(y) if number in block else y)
    return dense(params["head"], x)


@pytest.mark.parametrize("scan", [False, True])
def test_one_block_is_changed_under_every_transformation(scan):
    model, params, state = of(scan)
    changed = patch(model, {"block/1/act": lambda y: y.at[..., 2].mul(3.0)})
    expected = by_hand(params, X, {1}, lambda y: y * np.float32([1, 1, 3, 1]))

    def forward(params, x):
        return changed.apply(params, state, x)[0]

    y, slopes = jax.jit(lambda p, x: (forward(p, x), jax.grad(lambda p: forward(p, x).sum())(p)))(
        params, X
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    ups = slopes["block"]["1"]["up"]["b"], slopes["block"]["0"]["up"]["b"]
    assert all(np.asarray(each).all() for each in ups)
    rows = jax.vmap(forward, (None, 0))(params, X)
    _, scanned = jax.lax.scan(lambda none, x: (none, jax.checkpoint(forward)(params, x)), None, X)
    for each in (rows, scanned):
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)


def test_patterns_and_several_changes():
    model, params, state = of(True)
    zero = patch(model, {"block/*/act": jnp.zeros_like, "first": lambda y: -y})
    first = -(X @ np.asarray(params["first"]["w"]) + np.asarray(params["first"]["b"]))
    head = params["head"]
    expected = first @ np.asarray(head["w"]) + np.asarray(head["b"])
    np.testing.assert_allclose(zero.apply(params, state, X)[0], expected, rtol=1e-5, atol=1e-6)
    whole = patch(patch(model, {"block/2/act": jnp.zeros_like}), {"block/2": lambda y: 2 * y})
    seen = capture(whole, "block/1", "head")(params, state, X)
    head_of = 2 * np.asarray(seen["block/1"]) @ np.asarray(head["w"]) + np.asarray(head["b"])
    np.testing.assert_allclose(seen["head"], head_of, rtol=1e-5, atol=1e-6)


def test_a_representation_of_another_input_is_put_in():
    """Activation patching: with the whole output of a block, the rest goes on as for that input."""
    model, params, state = of(True)
    other = capture(model, "block/1")(params, state, X[::-1])["block/1"]
    mixed = patch(model, {"block/1": lambda y: other})
    assert_equal(mixed.apply(params, state, X)[0], model.apply(params, state, X[::-1])[0], **NEAR)
    assert_equal(mixed.init(jax.random.key(0), X), (params, state))


def test_state_is_kept_and_a_layer_that_is_called_twice_is_changed_twice():
    net = fdl.network(
        lambda f, x: f.norm(f.twice(f.twice(x))), twice=lambda x: x + 1, norm=fdl.batch_norm()
    )
    params, state = net.init(jax.random.key(0), X)
    changed = patch(net, {"twice": lambda y: 2 * y})
    _, new = changed.apply(params, state, X, train=True, key=jax.random.key(0))
    _, expected = fdl.batch_norm().apply(
        params["norm"], state["norm"], 4 * X + 6, train=True, key=jax.random.key(0)
    )
    assert_equal(new, {"norm": expected}, **NEAR)


def test_a_changed_network_decodes():
    model = fdl.chain(attend=fdl.attention(1, causal=True), out=fdl.dense(4))
    x = np.random.default_rng(1).standard_normal((1, 3, 4)).astype("float32")
    params, state = model.init(jax.random.key(0), x)
    changed = patch(model, {"attend": lambda y: -y})
    whole, _ = changed.apply(params, state, x)
    cache = fdl.start_decoding(changed, params, x[:, :1], 3)
    y, cache = fdl.decode(changed, params, cache, x)
    assert_equal(y, whole, **NEAR)


def test_mistakes_are_told():
    model, params, state = of(True)
    with pytest.raises(
        TypeError, match=r"^patch: expected changes as a dict, path -> function, got "
    ):
        patch(model, "block/1")
    with pytest.raises(ValueError, match=r"^pattern 'block/7': expected at least one match among "):
        patch(model, {"block/7": jnp.zeros_like})
    with pytest.raises(
        ValueError,
        match=r"^patch: expected one function for each layer, got two for 'block/1'; leave out",
    ):
        patch(model, {"block/1": jnp.zeros_like, "block/*": jnp.zeros_like})
    wrong = patch(model, {"block/1/act": lambda y: y[..., :2]})
    with pytest.raises(
        fdl.PathError,
        match=r"^block/1/act: expected f\(y\) with the shape and dtype of y, float32 \[2, 4\],",
    ):
        wrong.apply(params, state, X)


SEEDED_BUGS = {
    "fdl/look/representations.py": (
        "look/test_patch.py",
        [
            ("return new, state", "return y, state"),
            ("(lambda length: _patched(decoding(length), f))", "decoding"),
            (
                "if path in changes else layer",
                "if path in changes and not path.count('/') else layer",
            ),
            ("if path in chosen:", "if False:"),
        ],
    ),
}
