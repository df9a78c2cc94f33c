"""Weight norm and spectral norm against torch and Flax."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import compiled

LAYERS = {
    "weight_norm": LayerCase(lambda: fdl.weight_norm(fdl.dense(3)), (4, 2)),
    # Iterated until u and v no longer move, where taking them as constants changes no gradient.
    "spectral_norm": LayerCase(lambda: fdl.spectral_norm(fdl.dense(2), iterations=60), (4, 3)),
}


KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).standard_normal((6, 5)))
WEIGHT = np.cos(np.arange(18.0)).reshape(6, 3)


@functools.cache
def passing(layer, train):
    """(params, x, state) -> (gradients by params and x, (y, new state)), compiled."""

    def loss(params, x, state):
        y, new = layer.apply(params, state, x, train=train)
        return (WEIGHT.astype(y.dtype) * jnp.sin(y)).sum(), (y, new)

    return compiled(jax.grad(loss, (0, 1), has_aux=True))


def passed(layer, params, state, x, train=True):
    gradients, (y, new) = passing(layer, train)(params, x, state)
    return y, new, gradients


def assert_near(ours, theirs, bound):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= bound * abs(theirs).max()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
def test_weight_norm_equals_torch(dtype, bound):
    torch = pytest.importorskip("torch", reason="torch is not here: weight norm was not compared")
    with jax.enable_x64(dtype == "float64"):
        layer, x = fdl.weight_norm(fdl.dense(3)), X.astype(dtype)
        params, state = jax.tree.map(np.asarray, layer.init(KEY, x))
        plain, _ = fdl.dense(3).init(KEY, x)
        w = np.asarray(plain["w"])
        assert_near(passed(layer, params, state, x)[0], x @ (w / np.linalg.norm(w, axis=0)), bound)
        params["w"]["scale"] = params["w"]["scale"] * np.asarray([0.5, 2, 3], dtype)
        y, _, (by_params, by_x) = passed(layer, params, state, x)
        linear = torch.nn.Linear(5, 3, dtype=getattr(torch, dtype))
        other = torch.nn.utils.parametrizations.weight_norm(linear)
        pair = other.parametrizations.weight
        pair.original0.data = torch.tensor(np.asarray(params["w"]["scale"]))[:, None]
        pair.original1.data = torch.tensor(np.asarray(params["w"]["direction"]).T.copy())
        other.bias.data[:] = 0
        their_x = torch.tensor(np.asarray(x), requires_grad=True)
        theirs = other(their_x)
        (torch.tensor(WEIGHT, dtype=theirs.dtype) * torch.sin(theirs)).sum().backward()
        assert_near(y, theirs.detach(), bound)
        assert_near(by_x, their_x.grad, bound)
        assert_near(by_params["w"]["scale"], pair.original0.grad[:, 0], bound)
        assert_near(by_params["w"]["direction"], pair.original1.grad.T, bound)
        assert_near(by_params["b"], other.bias.grad, bound)


@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm_equals_flax_over_several_steps(iterations, standard_promotion):
    """Flax divides by sigma in training and keeps it; ours takes one more step in evaluation."""
    layer = fdl.spectral_norm(fdl.dense(3), iterations=iterations)
    params, state = layer.init(KEY, X)
    assert jax.tree.map(jnp.shape, state) == {"power_iteration": {"w": (3,)}}
    other = flax.linen.SpectralNorm(flax.linen.Dense(3), n_steps=iterations, epsilon=1e-12)
    kernel = {"kernel": params["w"], "bias": params["b"]}
    first = jax.jit(functools.partial(other.init, update_stats=False))(KEY, X)
    theirs = jax.tree.map(np.asarray, first["batch_stats"])
    name = "layer_instance/kernel/u"
    state["power_iteration"]["w"] = theirs[name][0]

    def their_loss(kernel, x, stats):
        y, moved = other.apply(
            {"params": {"layer_instance": kernel}, "batch_stats": stats},
            x,
            update_stats=True,
            mutable=["batch_stats"],
        )
        return (WEIGHT * jnp.sin(y)).sum(), (y, moved["batch_stats"])

    step = compiled(jax.grad(their_loss, (0, 1), has_aux=True))
    for _ in range(3):
        y, state, (by_params, by_x) = passed(layer, params, state, X)
        (their_params, their_x), (their_y, theirs) = step(kernel, X, theirs)
        assert_near(y, their_y, 1e-5)
        assert_near(by_x, their_x, 1e-5)
        assert_near(by_params["w"], their_params["kernel"], 1e-5)
        assert_near(state["power_iteration"]["w"], theirs[name][0], 1e-5)
    y, kept, _ = passed(layer, params, state, X, train=False)
    np.testing.assert_array_equal(kept["power_iteration"]["w"], state["power_iteration"]["w"])


def test_the_largest_singular_value_becomes_one():
    layer = fdl.spectral_norm(fdl.dense(4, bias=False))
    params, state = layer.init(KEY, X)
    train = jax.jit(functools.partial(layer.apply, train=True))
    for _ in range(60):
        _, state = train(params, state, X)
    w, _ = jax.jit(layer.apply)(params, state, np.eye(5, dtype=np.float32))
    values = np.linalg.svd(np.asarray(w), compute_uv=False)
    np.testing.assert_allclose(values[0], 1, rtol=1e-4)
    exact = np.linalg.svd(np.asarray(params["w"]), compute_uv=False)
    np.testing.assert_allclose(values, exact / exact[0], rtol=1e-4)


def test_a_network_is_wrapped_as_a_whole_and_keeps_its_paths():
    def net():
        return fdl.chain(fdl.dense(4), fdl.tanh, fdl.batch_norm(), head=fdl.dense(2), name="net")

    for wrap in (fdl.weight_norm, fdl.spectral_norm):
        model = wrap(net())
        params, state = model.init(KEY, X)
        assert model.name == "net" and list(params) == list(net().init(KEY, X)[0])
        look = fdl.capture(model, "head", "dense_0")

        @compiled
        def both(params, state, model=model, look=look):
            y_and_after = model.apply(params, state, X, train=True)
            return *y_and_after, look(params, state, X, train=True)

        y, after, seen = both(params, state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        before = np.asarray(state["batch_norm_0"]["mean"])
        assert (after["batch_norm_0"]["mean"] != before).all()
        np.testing.assert_array_equal(seen["head"], y)
    assert list(state["power_iteration"]) == ["dense_0.w", "head.w"]
    only, _ = fdl.weight_norm(net(), weights="head/w").init(KEY, X)
    assert list(only["head"]["w"]) == ["direction", "scale"] and only["dense_0"]["w"].shape == (
        5,
        4,
    )


def test_wrappers_refuse_what_they_cannot_wrap():
    message = (
        r"^pattern 'v': expected at least one match among 2 paths, got none; the most similar "
        r"paths are "
    )
    for wrap in (fdl.weight_norm, fdl.spectral_norm):
        with pytest.raises(ValueError, match=message):
            wrap(fdl.dense(2), weights="v").init(KEY, X)
    with pytest.raises(
        fdl.PathError,
        match=r"^dense: expected a layer without spectral norm, got a layer that has it; call "
        r"spectral_norm only once$",
    ):
        fdl.spectral_norm(fdl.spectral_norm(fdl.dense(2))).init(KEY, X)
    with pytest.raises(
        ValueError,
        match=r"^spectral_norm: expected iterations >= 1, an integer, got 0; pass 1, the "
        r"usual number$",
    ):
        fdl.spectral_norm(fdl.dense(2), iterations=0)


@pytest.mark.parametrize("wrap", [fdl.weight_norm, fdl.spectral_norm])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 3e25),
        ("float32", 3e-25),
        ("bfloat16", 3e38),
        ("float16", 1e-4),
        ("float64", 1e200),
    ],
)
def test_the_size_of_a_direction_does_not_matter(wrap, dtype, size):
    with jax.enable_x64(dtype == "float64"):
        layer, x = wrap(fdl.dense(3, bias=False)), X.astype(dtype)
        params, state = layer.init(KEY, x)
        leaf = "direction" if wrap is fdl.weight_norm else None
        w = np.asarray(params["w"][leaf] if leaf else params["w"])
        w = w / abs(w).max()

        def passed(w):
            own = {"w": {**params["w"], leaf: w} if leaf else w}
            y, new = layer.apply(own, state, x, train=True)
            return (jnp.sin(y) * WEIGHT.astype(y.dtype)).sum(), (y, new)

        both = compiled(jax.grad(passed, has_aux=True))
        slope, (y, moved) = both(w)
        large, (z, moved_too) = both(w * np.asarray(size, dtype))
        bound = 16 * float(jnp.finfo(dtype).eps)
        assert_near(z, y, bound)
        unit = float(np.asarray(size, dtype))
        if unit < 1e38:
            assert_near(np.asarray(large, np.float64) * unit, slope, 4 * bound)
        jax.tree.map(lambda a, b: assert_near(a, b, bound), moved_too, moved)


@pytest.mark.parametrize("wrap", [fdl.weight_norm, fdl.spectral_norm])
def test_a_weight_of_zeros_stays_zero_with_finite_gradients(wrap):
    layer = wrap(fdl.dense(3))
    params, state = layer.init(KEY, X)
    zero = jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), params)
    y, new, gradients = passed(layer, zero, state, X)
    assert (y == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, new, state)
    # One output of zeros among others.
    one = jax.tree.map(lambda w: np.where(np.arange(3) == 1, 0, w), params)
    y, _, gradients = passed(layer, one, state, X)
    assert (y[:, 1] == 0).all() and np.isfinite(y).all() and (y[:, 0] != 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


SEEDED_BUGS = {
    "fdl/layers/reparametrization.py": (
        "layers/test_reparametrization.py",
        [
            ("fixed = jax.lax.stop_gradient(matrix)", "fixed = matrix"),
            ("moved if train else state[POWER]", "moved"),
            ("moved if train else state[POWER]", "state[POWER]"),
            ("v = direction(fixed @ u)", "v = direction(fixed @ jnp.ones_like(u))"),
            ('tuple(range(params["direction"].ndim - 1))', "None"),
            ("jnp.where((new == 0).all(), u, new)", "new"),
            ("jnp.where(sigma == 0, 1, sigma)", "sigma"),
            ("(matrix * (1 / jnp.where(sigma == 0, 1, sigma)))", "(matrix / (sigma + 1e-30))"),
        ],
    ),
}
