"""Learned slopes against torch, and random slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import compiled

LAYERS = {
    "prelu": LayerCase(fdl.prelu, (4, 3)),
    "prelu_each_channel": LayerCase(lambda: fdl.prelu(each_channel=True, slope=0.4), (2, 3, 4)),
    "rrelu": LayerCase(lambda: fdl.rrelu(0.1, 0.6), (5, 4), random=True),
}


KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((2, 5, 3))


@pytest.mark.parametrize("each_channel", [False, True])
def test_prelu_equals_torch(each_channel):
    torch = pytest.importorskip("torch", reason="torch is not here: prelu was not compared")
    theirs = torch.nn.PReLU(3 if each_channel else 1, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight += torch.tensor([0.1, -0.3, 0.5][: theirs.weight.numel()])
    x = torch.tensor(X, requires_grad=True)
    # Their channels are the second axis.
    expected = theirs(x.movedim(-1, 1)).movedim(1, -1)
    weight = np.cos(np.arange(X.size)).reshape(X.shape)
    (expected * torch.tensor(weight)).sum().backward()
    with jax.enable_x64(True):
        layer = fdl.prelu(each_channel=each_channel)
        params, state = layer.init(KEY, X)
        np.testing.assert_array_equal(params["slope"], np.full([3] if each_channel else [], 0.25))
        slope = theirs.weight.detach().numpy().reshape(params["slope"].shape)

        @compiled
        def both(params, x, weight):
            y, back = jax.vjp(lambda p, x: layer.apply(p, state, x)[0], params, x)
            return y, *back(weight)

        y, of_params, of_x = both({"slope": slope}, X, weight)
        np.testing.assert_allclose(y, expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(of_x, x.grad, rtol=1e-12)
    np.testing.assert_allclose(of_params["slope"].ravel(), theirs.weight.grad, rtol=1e-12)


def test_a_random_slope_is_uniform_and_evaluation_takes_its_mean():
    x = -np.ones((200, 200), np.float32)
    layer = fdl.rrelu(0.2, 0.8)
    train = compiled(lambda x: layer.apply({}, {}, x, key=KEY, train=True)[0])
    drawn = -train(x)
    assert 0.2 <= drawn.min() < 0.201 and 0.799 < drawn.max() < 0.8
    # The standard error of the mean of n uniform numbers, and of their variance.
    width, n = 0.6, drawn.size
    assert abs(drawn.mean() - 0.5) < 4 * width / np.sqrt(12 * n)
    assert abs(drawn.var() / (width**2 / 12) - 1) < 4 * np.sqrt(0.8 / n)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 4 / np.sqrt(n)
    evaluated, _ = jax.jit(layer.apply)({}, {}, x)
    np.testing.assert_array_equal(evaluated, np.full(x.shape, -0.5, np.float32))
    np.testing.assert_array_equal(train(-x), -x)


def test_wrong_uses_are_refused():
    for slopes, told in [
        ((0.5, 0.2), "lower <= upper, got 0.5 and 0.2"),
        ((-0.1, 0.2), "lower >= 0, got -0.1"),
        ((float("nan"), 0.2), "lower >= 0, got nan"),
    ]:
        remedy = "pass the smallest and the largest slope for x < 0"
        with pytest.raises(ValueError, match=f"^rrelu: expected {told}; {remedy}$"):
            fdl.rrelu(*slopes)
    net = fdl.chain(body=fdl.prelu(each_channel=True))
    params, _ = net.init(KEY, np.ones((2, 3), np.float32))
    told = r"^body: expected x \[\.\.\., 3\], got \[2, 4\]; give x that many channels, or make new"
    with pytest.raises(fdl.PathError, match=told):
        net.apply(params, {}, np.ones((2, 4), np.float32))
    told = r"^body: expected a random key in training, got none; pass key=jax\.random\.key\(seed\)"
    with pytest.raises(fdl.PathError, match=told):
        fdl.chain(body=fdl.rrelu()).apply({}, {}, np.ones(3, np.float32), train=True)


def test_prelu_keeps_the_dtype_of_x_whatever_its_slope_is():
    layer = fdl.prelu()
    params, _ = layer.init(KEY, np.ones((2, 3), np.float32))
    y, _ = compiled(layer.apply)(params, {}, np.full((2, 3), -2, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and (y == -0.5).all()
