"""Gated units against torch and float64 formulas."""

import jax
import numpy as np
import pytest
import scipy.special

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled, waves

LAYERS = {
    "gated": LayerCase(lambda: fdl.gated(3, activation=fdl.sigmoid), (4, 2)),
    "feed_forward": LayerCase(
        lambda: fdl.feed_forward(3, hidden=5, gate=True, bias=False, dropout_rate=0.3),
        (4, 3),
        random=True,
    ),
}


KEY = jax.random.key(0)
X = array(np.random.default_rng(0).standard_normal((2, 3, 4)))


def assert_near(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= 1e-5 * abs(theirs).max()


def with_biases(params):
    """The same parameters, their biases away from zero."""
    rng = np.random.default_rng(1)
    return {
        name: {**leaf, "b": array(0.5 * rng.standard_normal(leaf["b"].shape))}
        for name, leaf in params.items()
    }


def test_a_gated_unit_is_glu_of_torch():
    """torch's halves are value and gate, in this order."""
    torch = pytest.importorskip("torch", reason="torch is not here: gated units were not compared")
    layer = fdl.gated(5, activation=fdl.sigmoid)
    params = with_biases(layer.init(KEY, X)[0])

    def loss(params, x):
        y = layer.apply(params, {}, x)[0]
        return (waves(y) * y).sum(), y

    (by_params, by_x), y = compiled(jax.grad(loss, (0, 1), has_aux=True))(params, X)
    both = torch.nn.Linear(4, 10)
    joined = {k: np.concatenate([params["value"][k], params["gate"][k]], -1) for k in "wb"}
    both.weight.data = torch.tensor(joined["w"].T.copy())
    both.bias.data = torch.tensor(joined["b"])
    x = torch.tensor(np.asarray(X), requires_grad=True)
    theirs = torch.nn.functional.glu(both(x))
    (torch.cos(torch.arange(theirs.numel())).reshape(theirs.shape) * theirs).sum().backward()
    assert_near(y, theirs.detach())
    assert_near(by_x, x.grad)
    gradient = both.weight.grad.numpy().T
    assert_near(by_params["value"]["w"], gradient[:, :5])
    assert_near(by_params["gate"]["w"], gradient[:, 5:])
    assert_near(by_params["gate"]["b"], both.bias.grad[5:])


def test_a_feed_forward_block_by_hand():
    layer = fdl.feed_forward(4, hidden=6, activation=fdl.relu)
    params = with_biases(layer.init(KEY, X)[0])
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(X, np.float64)
    hidden = np.maximum(x @ p["up"]["w"] + p["up"]["b"], 0)
    expected = hidden @ p["down"]["w"] + p["down"]["b"]
    assert_near(jax.jit(layer.apply)(params, {}, X)[0], expected)


def test_a_gated_feed_forward_block_equals_llama():
    """down(silu(gate(x)) * up(x)) without biases."""
    layer = fdl.feed_forward(4, hidden=6, activation=fdl.silu, gate=True, bias=False)
    params, _ = layer.init(KEY, X)
    assert list(fdl.paths.leaves(params)) == ["down/w", "up/gate/w", "up/value/w"]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(X, np.float64)
    gate = x @ p["up"]["gate"]["w"]
    hidden = gate * scipy.special.expit(gate) * (x @ p["up"]["value"]["w"])
    assert_near(jax.jit(layer.apply)(params, {}, X)[0], hidden @ p["down"]["w"])
    seen = jax.eval_shape(fdl.look.capture(layer, "up/*"), params, {}, X)
    assert set(seen) == {"up/gate", "up/value"}


def test_the_result_of_a_feed_forward_block_is_dropped():
    layer = fdl.feed_forward(4, hidden=6, dropout_rate=0.5)
    params, _ = layer.init(KEY, X)
    y, _ = compiled(lambda x: layer.apply(params, {}, x, key=KEY, train=True))(X)
    whole, _ = compiled(layer.apply)(params, {}, X)
    dropped = y == 0
    assert dropped.any() and not dropped.all()
    np.testing.assert_allclose(y[~dropped], 2 * whole[~dropped], rtol=1e-6)


SEEDED_BUGS = {
    "fdl/layers/transformer.py": (
        "layers/test_gated.py",
        [
            ("activation(f.gate(x)) * f.value(x)", "f.gate(x) * activation(f.value(x))"),
            ("up = gated(hidden, activation=activation, bias=bias)", "up = gated(hidden)"),
            ("down = dense(features, bias=bias)", "down = dense(features)"),
        ],
    ),
}
