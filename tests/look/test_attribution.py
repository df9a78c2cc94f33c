"""Attributions, against formulas and loops in NumPy float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.look import (
    attention_rollout,
    capture,
    grad_cam,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from tests.programs import array
from tests.trees import assert_near

RNG = np.random.default_rng(0)
X = array(RNG.normal(size=(4, 5)))


def cubic(x):
    """x0^2 x1 + sin(x2), for one example after the other."""
    return x[:, 0] ** 2 * x[:, 1] + jnp.sin(x[:, 2])


def slope_of_cubic(x):
    x = np.asarray(x, np.float64)
    zero = np.zeros(len(x))
    return np.stack([2 * x[:, 0] * x[:, 1], x[:, 0] ** 2, np.cos(x[:, 2]), zero, zero], 1)


@pytest.fixture(scope="module")
def net():
    """A network, its parameters, and the score of class 2."""
    model = fdl.mlp([6], 3, activation=fdl.tanh)
    params, state = model.init(jax.random.key(0), X)
    return model, params, lambda x: model.apply(params, state, x)[0][:, 2]


# saliency


def test_saliency_is_the_absolute_gradient(net):
    _, params, f = net
    up, down = (jax.tree.map(np.asarray, params[path]) for path in ("dense_0", "dense_1"))
    hidden = np.tanh(X @ up["w"] + up["b"])
    wanted = ((1 - hidden**2) * down["w"][:, 2]) @ up["w"].T
    assert (wanted < 0).any()
    assert_near(saliency(f, X), np.abs(wanted))
    assert_near(saliency(cubic, X), np.abs(slope_of_cubic(X)))


def test_saliency_under_transformations(net):
    f = net[2]
    wanted = saliency(f, X)
    assert_near(jax.jit(lambda x: saliency(f, x))(X), wanted)
    alone = jax.vmap(lambda x: saliency(f, x[None])[0])(X)
    assert_near(alone, wanted)
    assert saliency(f, X.astype(jnp.bfloat16).astype(jnp.float32)).dtype == jnp.float32


# integrated_gradients


SMOOTH = {
    "mlp": lambda: (fdl.mlp([16, 16], 3, activation=fdl.tanh), X),
    "vit": lambda: (fdl.vit(3, 4, 2, 1, 2, 8), array(RNG.normal(size=(3, 4, 4, 1)))),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_attributions_sum_to_the_change_of_the_score(name):
    model, x = SMOOTH[name]()
    params, state = jax.jit(model.init)(jax.random.key(1), x)

    def f(x):
        return model.apply(params, state, x)[0][:, 1]

    baseline = array(RNG.normal(size=x.shape[1:]))
    start = np.broadcast_to(baseline, x.shape)
    found, ends = jax.jit(lambda x: (integrated_gradients(f, x, baseline), (f(start), f(x))))(x)
    assert found.shape == x.shape
    change = np.asarray(ends[1]) - np.asarray(ends[0])
    assert np.abs(change).max() > 0.1
    assert_near(np.asarray(found, np.float64).reshape(len(x), -1).sum(1), change, 1e-4)


def test_attributions_of_a_polynomial_by_hand():
    x = np.asarray(X, np.float64)
    by_hand = np.zeros_like(x)
    by_hand[:, 0] = by_hand[:, 1] = x[:, 0] ** 2 * x[:, 1]
    by_hand[:, 0] *= 2 / 3
    by_hand[:, 1] *= 1 / 3
    by_hand[:, 2] = np.sin(x[:, 2])
    assert_near(integrated_gradients(cubic, X), by_hand)


def test_attributions_equal_a_fine_riemann_sum():
    baseline = np.float64([0.5, -1, 2, 0, 1])
    x, total = np.asarray(X, np.float64), 0.0
    for t in (np.arange(2000) + 0.5) / 2000:
        total = total + slope_of_cubic(baseline + t * (x - baseline)) / 2000
    assert_near(integrated_gradients(cubic, X, baseline), (x - baseline) * total)


def test_one_step_is_the_middle_of_the_way():
    x = np.asarray(X, np.float64)
    assert_near(integrated_gradients(cubic, X, steps=1), x * slope_of_cubic(x / 2))
    two = [0.5 - np.sqrt(1 / 12), 0.5 + np.sqrt(1 / 12)]
    wanted = x * sum(slope_of_cubic(1 + t * (x - 1)) for t in two) / 2
    assert_near(
        integrated_gradients(cubic, X, 1.0, steps=2),
        wanted - sum(slope_of_cubic(1 + t * (x - 1)) for t in two) / 2,
    )


# smooth_grad


def test_smooth_grad_is_the_mean_over_its_samples():
    key = jax.random.key(3)
    noise = np.float32([0.1, 0.2, 0.3, 0.0, 1.0])
    wanted = 0.0
    for number in range(7):
        normal = np.asarray(jax.random.normal(jax.random.fold_in(key, number), X.shape))
        wanted = wanted + slope_of_cubic(X + noise * normal) / 7
    assert_near(smooth_grad(cubic, X, key, noise, samples=7), wanted)
    assert_near(jax.jit(lambda x: smooth_grad(cubic, x, key, noise, samples=7))(X), wanted)


def test_smooth_grad_tends_to_the_expected_gradient():
    """E 3 (x + s n)^2 = 3 x^2 + 3 s^2."""
    x = jnp.full((2000, 1), 0.5)
    found = smooth_grad(lambda x: x[:, 0] ** 3, x, jax.random.key(0), 2.0, samples=20)
    assert float(found.mean()) == pytest.approx(3 * 0.25 + 3 * 4, rel=0.03)


def test_smooth_grad_without_noise_is_the_signed_gradient(net):
    found = smooth_grad(cubic, X, jax.random.key(0), noise=0.0, samples=3)
    assert_near(found, slope_of_cubic(X))
    some = [smooth_grad(cubic, X, jax.random.key(seed), samples=2) for seed in (0, 1)]
    assert not np.allclose(some[0], some[1])


WRONG = {
    "saliency: expected f as a function x [N, ...] -> scores [N], got <": lambda model, f: saliency(
        model, X
    ),
    "saliency: expected f(x) as floating scores [4], got float32 [4, 3]; choose one score for each "
    "example, as in lambda x: model.apply(params, state, x)[0][:, 3]": lambda model, f: saliency(
        lambda x: x[:, :3], X
    ),
    "saliency: expected f(x) as floating scores [4], got (float32 [4], dict); choose one score": (
        lambda model, f: saliency(lambda x: (x[:, 0], {}), X)
    ),
    "saliency: expected x [N, ...] of a floating dtype with N >= 1, got int32 [4, 5]; pass one row "
    "for each example, and convert integers with x.astype(jnp.float32)": lambda model, f: saliency(
        f, X.astype(jnp.int32)
    ),
    "smooth_grad: expected x [N, ...] of a floating dtype with N >= 1, got float32 [0, 5]; pass": (
        lambda model, f: smooth_grad(f, X[:0], jax.random.key(0))
    ),
    "integrated_gradients: expected baseline as a number, or an array that broadcasts to x [4, 5], "
    "got [4]; pass a number, or an array like x": lambda model, f: integrated_gradients(
        f, X, np.zeros(4)
    ),
    "integrated_gradients: expected steps >= 1, an integer, got 0; 64 is enough for a smooth f": (
        lambda model, f: integrated_gradients(f, X, steps=0)
    ),
    "smooth_grad: expected one random key, got None; make it with jax.random.key(seed)": (
        lambda model, f: smooth_grad(f, X, None)
    ),
    "smooth_grad: expected one random key, got 3; make it with": lambda model, f: smooth_grad(
        f, X, 3
    ),
    "smooth_grad: expected noise >= 0, got -1.0; 0.1 times the range of x is usual": (
        lambda model, f: smooth_grad(f, X, jax.random.key(0), -1.0)
    ),
    "smooth_grad: expected samples >= 1, an integer, got 2.5; 50 is usual": (
        lambda model, f: smooth_grad(f, X, jax.random.key(0), samples=2.5)
    ),
    "attention_rollout: expected a list of weights, the first layer first, got dict; pass": (
        lambda model, f: attention_rollout({"a": np.ones((1, 1, 2, 2))})
    ),
    "attention_rollout: expected the weights of at least one layer, got none; capture them": (
        lambda model, f: attention_rollout([])
    ),
    "attention_rollout: expected weights [B, H, T, T] with the same B and T in all layers, got "
    "float32 [1, 2, 3, 3] in layer 1 and [1, 2, 2, 2] in layer 0; pass the weights of": (
        lambda model, f: attention_rollout([jnp.ones((1, 2, 2, 2)), jnp.ones((1, 2, 3, 3))])
    ),
    "attention_rollout: expected weights [B, H, T, T] with the same B and T in all layers, got "
    "float32 [1, 2, 2, 3] in layer 0 and [1, 2, 2, 3] in layer 0; pass the weights of": (
        lambda model, f: attention_rollout([jnp.ones((1, 2, 2, 3))])
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_arguments_raise(net, said):
    model, _, f = net
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(said)}"):
        WRONG[said](model, f)


# grad_cam


@pytest.fixture(scope="module")
def pictures():
    """A network whose head sees every pixel, its parameters, images, and the output of conv."""
    model = fdl.chain(conv=fdl.conv(3, (2, 2)), act=fdl.tanh, flat=fdl.flatten(), head=fdl.dense(4))
    x = array(RNG.normal(size=(5, 4, 6, 2)))
    params, state = model.init(jax.random.key(2), x)
    h = np.asarray(capture(model, "conv")(params, state, x)["conv"], np.float64)
    return model, params, state, x, h


def cam_by_hand(h, slope):
    """relu(sum over c of a_c h_c), where a_c is the mean slope of a channel, by loops."""
    cam = np.zeros(h.shape[:3])
    for n in range(len(h)):
        for channel in range(h.shape[3]):
            cam[n] += slope[n, :, :, channel].mean() * h[n, :, :, channel]
    return np.maximum(cam, 0)


@pytest.mark.parametrize("target", [2, [0, 3, 1, 1, 2]])
def test_grad_cam_equals_its_formula(pictures, target):
    model, params, state, x, h = pictures
    w = np.asarray(params["head"]["w"], np.float64).reshape(*h.shape[1:], 4)
    classes = np.broadcast_to(target, 5)
    slope = (1 - np.tanh(h) ** 2) * np.moveaxis(w[..., classes], -1, 0)
    wanted = cam_by_hand(h, slope)
    assert (wanted == 0).any() and (wanted > 0).any()
    target = target if isinstance(target, int) else jnp.asarray(target)
    found = jax.jit(lambda x: grad_cam(model, "conv", params, state, x, target))(x)
    assert found.shape == (5, 4, 6)
    assert_near(found, wanted)
    if isinstance(target, int):
        assert_near(grad_cam(model, "conv", params, state, x, target), wanted)
    else:
        alone = jax.vmap(lambda x, t: grad_cam(model, "conv", params, state, x[None], t)[0])
        assert_near(jax.jit(alone)(x, target), wanted)


def test_grad_cam_inside_a_repeat_and_of_tokens():
    block = fdl.residual(up=fdl.dense(3), act=fdl.tanh)
    model = fdl.network(
        lambda f, x: f.head(f.block(x).mean(1)),
        block=fdl.repeat(block, 2, scan=True),
        head=fdl.dense(2, bias=False),
    )
    x = array(RNG.normal(size=(2, 5, 3)))
    params, state = jax.jit(model.init)(jax.random.key(0), x)
    look = capture(model, "block/1/act")
    h, found = jax.jit(
        lambda p: (look(p, state, x), grad_cam(model, "block/1/act", p, state, x, 1))
    )(params)
    h = np.asarray(h["block/1/act"], np.float64)
    weights = np.asarray(params["head"]["w"], np.float64)[:, 1] / 5
    assert_near(found, np.maximum(h @ weights, 0))


def test_grad_cam_refuses_what_does_not_fit(pictures):
    model, params, state, x, _ = pictures
    for path, target, said in (
        ("convv", 0, "pattern 'convv': expected at least one match among 4 paths, got none; the"),
        (
            "*",
            0,
            "grad_cam: expected the path of one layer that is called once, got ['conv', 'act', "
            "'flat', 'head'] for '*'; pass the path of a single layer",
        ),
        (
            "head",
            0,
            "grad_cam: expected an output [N, H, W, C] of the layer 'head', got float32 [5, 4]; "
            "pass the path of a layer before the image is flattened",
        ),
        (
            "conv",
            4,
            "grad_cam: expected target as an int, or integers [5], in [0, 4), got 4; pass the "
            "number of a class",
        ),
        (
            "conv",
            jnp.zeros(3, jnp.int32),
            "grad_cam: expected target as an int, or integers [5], in [0, 4), got int32 [3]; pass",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            jax.eval_shape(lambda x: grad_cam(model, path, params, state, x, target), x)
    headless = fdl.chain(conv=fdl.conv(3, (2, 2)), act=fdl.tanh)
    params = {"conv": params["conv"]}
    said = (
        "grad_cam: expected logits [5, classes] from the model, got float32 [5, 4, 6, 3]; pass a "
        "classifier with one score for each class"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        jax.eval_shape(lambda x: grad_cam(headless, "conv", params, {}, x, 0), x)
    twice = fdl.network(lambda f, x: f.c(f.c(x)), c=fdl.conv(2, (1, 1)))
    params, state = jax.eval_shape(twice.init, jax.random.key(0), x)
    said = "grad_cam: expected the path of one layer that is called once, got ['c', 'c#1'] for 'c';"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        jax.eval_shape(lambda p: grad_cam(twice, "c", p, state, x, 0), params)


# attention_rollout


def rollout_by_loops(layers):
    batch, _, length, _ = layers[0].shape
    out = np.zeros((batch, length, length))
    for b in range(batch):
        joint = np.eye(length)
        for weights in layers:
            mean = sum(np.float64(head) for head in weights[b]) / len(weights[b])
            mixed = 0.5 * mean + 0.5 * np.eye(length)
            for row in range(length):
                mixed[row] /= mixed[row].sum()
            joint = mixed @ joint
        out[b] = joint
    return out


def test_rollout_of_a_captured_transformer():
    model = fdl.vit(3, 4, 2, 3, 2, 8)
    x = array(RNG.normal(size=(2, 4, 4, 1)))
    params, state = jax.jit(model.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda w: 3 * np.asarray(w), params)  # so that the weights differ
    found = jax.jit(capture(model, "**/weights"))(params, state, x)
    assert [path.split("/")[:2] for path in found] == [["block", str(n)] for n in range(3)]
    layers = list(found.values())
    rollout = jax.jit(attention_rollout)(layers)
    assert rollout.shape == (2, 4, 4)
    assert_near(rollout, rollout_by_loops([np.asarray(each) for each in layers]))
    assert_near(rollout.sum(-1), 1.0)
    assert not np.allclose(rollout, attention_rollout(layers[::-1]), atol=1e-4)
    assert_near(jax.jit(jax.vmap(attention_rollout))(layers), rollout)


def test_rollout_of_tokens_that_see_nothing_and_of_half_precision():
    weights = RNG.dirichlet(np.ones(3), size=(2, 2, 4, 3)).astype(np.float32)
    weights[:, 1, :, 2] = 0
    layers = list(weights)
    assert_near(attention_rollout(layers), rollout_by_loops(layers))
    assert_near(attention_rollout(layers)[1, 2], [0, 0, 1])
    half = attention_rollout([jnp.asarray(each, jnp.bfloat16) for each in layers])
    assert half.dtype == jnp.float32


SEEDED_BUGS = {
    "fdl/look/attribution.py": (
        "look/test_attribution.py",
        [
            ("return jnp.abs(_gradient(", "return (_gradient("),
            ("(place + 1) / 2", "(place + 1)"),
            ("weight / 2 * slope", "weight * slope"),
            ("return (total * (x - start)", "return (total * (x)"),
            ("start + (place", "(place"),
            ("jax.random.fold_in(key, number)", "key"),
            ("total / samples", "total"),
            (".mean(middle, keepdims=True)", ".sum(middle, keepdims=True)"),
            (
                "jnp.maximum((weights * h.astype(weights.dtype)).sum(-1), 0)",
                "(weights * h).sum(-1)",
            ),
            ("jnp.matmul(mixed, rollout", "jnp.matmul(rollout, mixed"),
            ("mixed = mixed / mixed.sum(-1, keepdims=True)", "mixed = mixed / 2"),
            (".mean(-3)", ".max(-3)"),
        ],
    ),
}
