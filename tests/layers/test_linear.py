"""einsum_dense and bilinear against torch and dense, batch_apply against reshapes."""

import functools

import jax
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled, waves


def _two_inputs():
    return fdl.network(
        lambda f, x, *, context: f.inner(x, other=context),
        inner=fdl.bilinear(4, b_init=fdl.initializers.normal(0.5)),
    )


def _crowded():
    """Experts with less room than tokens."""
    expert = fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.3))
    return fdl.mixture_of_experts(expert, 3, capacity_factor=0.75)


def _two_axes():
    """Norms over one batch axis, with an extra input."""
    inner = fdl.network(lambda f, x, *, context: f.norm(x) + context, norm=fdl.batch_norm())
    return fdl.batch_apply(inner)


LAYERS = {
    "einsum_dense": LayerCase(
        lambda: fdl.einsum_dense(
            "...th,dhk->...dtk",
            {"d": 2, "k": 3},
            bias="k",
            b_init=fdl.initializers.normal(0.5),
        ),
        (2, 3, 4),
    ),
    "bilinear": LayerCase(_two_inputs, (2, 3), inputs={"context": (2, 2)}),
    "mixture_of_experts": LayerCase(_crowded, (2, 4, 3), random=True),
    "batch_apply": LayerCase(_two_axes, (2, 3, 2), inputs={"context": (2, 3, 2)}),
}


KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).standard_normal((2, 3, 4)))
DRAWN = fdl.initializers.normal(0.5)


def assert_near(found, expected, bound=1e-5):
    """The largest difference, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def test_one_axis_to_two_is_a_dense_layer_reshaped():
    layer = fdl.einsum_dense("...td,hdk->...thk", {"h": 2, "k": 5}, bias="hk", b_init=DRAWN)
    params = jax.tree.map(np.asarray, layer.init(KEY, X)[0])
    flat = {"w": params["w"].transpose(1, 0, 2).reshape(4, 10), "b": params["b"].reshape(10)}
    expected, _ = compiled(fdl.dense(10).apply)(flat, {}, X)
    assert_near(jax.jit(layer.apply)(params, {}, X)[0], expected.reshape(2, 3, 2, 5))


def test_two_axes_to_one_with_one_matrix_for_each_of_the_first():
    layer = fdl.einsum_dense("btd,bftd->fb", {"f": 5}, bias="b", b_init=DRAWN)
    params, _ = layer.init(KEY, X)
    w = np.asarray(params["w"], np.float64)
    expected = np.asarray(params["b"]) + [
        [(np.float64(X[b]) * w[b, f]).sum() for b in range(2)] for f in range(5)
    ]
    assert_near(jax.jit(layer.apply)(params, {}, X)[0], expected)


def test_weights_of_an_equation_have_the_variance_of_their_sum():
    x = np.ones((20, 30, 5), np.float32)
    params, _ = fdl.einsum_dense("tde,edhtk->thk", {"h": 30, "k": 2}).init(KEY, x)
    np.testing.assert_allclose(np.asarray(params["w"]).var(), 1 / (30 * 5), rtol=0.02)
    assert params["w"].shape == (5, 30, 30, 20, 2) and list(params) == ["w"]


def test_an_initializer_sees_one_matrix_from_in_to_out():
    layer = fdl.einsum_dense("bt,hkt->bhk", {"h": 2, "k": 5}, w_init=fdl.initializers.orthogonal())
    w = np.asarray(layer.init(KEY, X[0])[0]["w"]).reshape(10, 4)
    np.testing.assert_allclose(w.T @ w, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("equation", ["td,dk", "td->tk", "td,dkk->tk", "td,dk->tj", "td,k->tk"])
def test_an_equation_that_is_not_a_dense_layer_is_refused(equation):
    with pytest.raises(
        ValueError,
        match=rf"^einsum_dense: expected an equation x,w->y such as '...td,dhk->...thk', got "
        rf"'{equation}'; name each axis of w in x or in y, and each axis of x in w or in y$",
    ):
        fdl.einsum_dense(equation, {"k": 2})


def test_einsum_dense_refuses_sizes_that_do_not_fit():
    for sizes, bias in [({}, "k"), ({"k": 0}, "k"), ({"k": 2, "j": 2}, ""), ({"k": 2}, "t")]:
        given = ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "no sizes"
        with pytest.raises(
            ValueError,
            match=rf"^einsum_dense: expected sizes >= 1 of k and a bias over the last axes of tk, "
            rf"got {given} and bias '{bias}'; pass a size for each axis of w that is not in x, "
            r"such as {'f': 64}$",
        ):
            fdl.einsum_dense("td,dk->tk", sizes, bias=bias)
    with pytest.raises(
        ValueError,
        match=r"^einsum_dense: expected no sizes and a bias over the last axes of td, got d=3 and "
        r"bias ''; pass a size for each axis of w that is not in x, such as {'f': 64}$",
    ):
        fdl.einsum_dense("td,d->td", {"d": 3})
    model = fdl.chain(mix=fdl.einsum_dense("btd,dk->btk", {"k": 2}))
    params, _ = model.init(KEY, X)
    for x, told in [(X[0], r"\[3, 4\]"), (X[..., :3], r"\[2, 3, 3\]")]:
        with pytest.raises(
            fdl.PathError,
            match=rf"^mix: expected x with axes btd where d = 4, got {told}; give x these axes, or "
            r"change the equation$",
        ):
            model.apply(params, {}, x)


def test_a_bilinear_layer_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is not here: bilinear was not compared")
    other = array(np.random.default_rng(1).standard_normal((2, 3, 5)))
    layer = fdl.bilinear(6, b_init=DRAWN)
    params, _ = layer.init(KEY, X, other=other)
    module = torch.nn.Bilinear(4, 5, 6)
    module.weight.data = torch.tensor(np.array(params["w"]).transpose(2, 0, 1).copy())
    module.bias.data = torch.tensor(np.array(params["b"]))
    x, context = (torch.tensor(np.array(each), requires_grad=True) for each in (X, other))
    theirs = module(x, context)
    (torch.cos(torch.arange(theirs.numel())).reshape(theirs.shape) * theirs).sum().backward()

    def total(params, x, other):
        y = layer.apply(params, {}, x, other=other)[0]
        return (waves(y) * y).sum(), y

    slopes = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    (by_params, by_x, by_other), y = slopes(params, X, other)
    assert_near((y, by_x, by_other), (theirs.detach(), x.grad, context.grad))
    assert_near(by_params["w"], module.weight.grad.numpy().transpose(1, 2, 0))
    assert_near(by_params["b"], module.bias.grad)


def test_bilinear_refuses_sizes_that_do_not_fit():
    model = fdl.chain(score=fdl.bilinear(2))
    params, _ = model.init(KEY, X, other=X[..., :3])
    with pytest.raises(
        fdl.PathError,
        match=r"^score: expected x \[\.\.\., 4\] and other \[\.\.\., 3\] with the same batch axes, "
        r"got \[2, 3, 4\] and \[2, 3, 4\]; give x and other these shapes, or make new params with "
        r"init$",
    ):
        model.apply(params, {}, X, other=X)
    with pytest.raises(
        ValueError, match=r"^bilinear: expected features >= 1, an integer, got 0; pass"
    ):
        fdl.bilinear(0)


def test_more_batch_axes_are_one_for_the_layer():
    """A batch norm over all three axes, whose statistics are the layer's own."""
    x = np.float32(np.random.default_rng(2).standard_normal((2, 3, 2, 4)))
    inner = fdl.batch_norm()
    layer = fdl.batch_apply(fdl.chain(inner, fdl.flatten()), axes=2)
    params, state = layer.init(KEY, x)
    y, after = jax.jit(functools.partial(layer.apply, train=True))(params, state, x)
    assert y.shape == (2, 3, 8)
    by_hand, by_hand_after = compiled(functools.partial(inner.apply, train=True))(
        params["batch_norm_0"], state["batch_norm_0"], x.reshape(6, 2, 4)
    )
    assert_near(y, by_hand.reshape(2, 3, 8))
    assert_near(after["batch_norm_0"], by_hand_after)
    look = fdl.capture(layer, "flatten_0")
    seen = jax.eval_shape(look, params, state, x)["flatten_0"]
    assert seen.shape == (6, 8)


def test_batch_axes_that_do_not_fit_are_refused():
    model = fdl.chain(each=fdl.batch_apply(fdl.bilinear(2)))
    params, _ = model.init(KEY, X, other=X)
    with pytest.raises(
        fdl.PathError,
        match=r"^each: expected x and all extra inputs to begin with the same 2 batch axes, got "
        r"\[2, 4\] and \[2, 3\]; reshape them, or change axes$",
    ):
        model.apply(params, {}, X, other=X[:, 0])
    with pytest.raises(
        ValueError, match=r"^batch_apply: expected axes >= 1, an integer, got 0; pass the number of"
    ):
        fdl.batch_apply(fdl.tanh, axes=0)


SEEDED_BUGS = {
    "fdl/layers/linear.py": (
        "layers/test_linear.py",
        [
            ('jnp.einsum(equation, x, params["w"])', 'jnp.einsum(equation, x, 1.01 * params["w"])'),
            ("(rows, columns), x.dtype), axis", "(columns, rows), x.dtype), axis"),
            (".transpose([drawn.index(a) for a in of_w])", ".reshape([size[a] for a in of_w])"),
            (' + params["b"], state', ", state"),
        ],
    ),
}
