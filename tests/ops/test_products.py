"""x @ w with merged axes: the same numbers and gradients, one product of matrices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl.look.flops import operations
from fdl.ops.products import product
from tests.programs import array


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3), (2, 1, 4, 3), (2, 0, 3), (2, 5, 0)])
def test_a_product_and_its_gradients_are_those_of_matmul(shape):
    rng = np.random.default_rng(0)
    features = shape[-1]
    x, w, dy = (rng.standard_normal(s) for s in (shape, (features, 4), (*shape[:-1], 4)))
    y, back = jax.vjp(product, array(x), array(w))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
    dx, dw = back(array(dy))
    np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-5, atol=1e-6)
    by_hand = np.einsum("nd,nf->df", x.reshape(len(dy.reshape(-1, 4)), features), dy.reshape(-1, 4))
    np.testing.assert_allclose(dw, by_hand, rtol=1e-5, atol=1e-6)


def test_the_gradient_by_w_is_a_product_of_two_matrices():
    """With three axes, XLA copies both arguments and takes the slower order."""
    x, w = jnp.ones((2, 5, 3)), jnp.ones((3, 4))
    traced = jax.make_jaxpr(jax.grad(lambda w: product(x, w).sum()))(w)
    dots = [each for each in traced.eqns if each.primitive.name == "dot_general"]
    assert dots and all(each.ndim == 2 for dot in dots for each in (v.aval for v in dot.invars))


def test_a_long_gradient_by_w_is_a_product_with_long_rows():
    """Its transpose, [F, D], is computed: XLA on CPU is slow for [D, F] with a small F."""
    rng = np.random.default_rng(0)
    x, w, dy = (array(rng.standard_normal(shape)) for shape in ((64, 32), (32, 4), (64, 4)))
    gradient = jax.jit(lambda x, w, dy: jax.vjp(lambda w: product(x, w), w)[1](dy)[0])
    np.testing.assert_allclose(gradient(x, w, dy), x.T @ dy, rtol=1e-5, atol=1e-5)
    text = gradient.lower(x, w, dy).compile().as_text()
    assert "f32[4,32]{1,0} dot(" in text and "f32[32,4]{1,0} dot(" not in text
    for few in (x[:4], x[:0]):  # with few rows, nothing is transposed
        jaxpr = jax.make_jaxpr(product)(few, w)
        assert [each.primitive.name for each in jaxpr.eqns] == ["dot_general"]


def test_it_differentiates_twice_and_batches():
    rng = np.random.default_rng(0)
    x, w = array(rng.standard_normal((2, 3, 4))), array(rng.standard_normal((4, 2)))
    assert "unmerged" in str(jax.make_jaxpr(product)(x, w))
    loss = lambda f: lambda w: jnp.sin(f(x, w)).sum()  # noqa: E731
    for f in (jax.hessian, jax.grad, jax.jacfwd):
        np.testing.assert_allclose(f(loss(product))(w), f(loss(jnp.matmul))(w), rtol=1e-5)
    several = jnp.stack([w, 2 * w])
    np.testing.assert_allclose(
        jax.vmap(product, (None, 0))(x, several), jnp.stack([x @ w, 2 * x @ w]), rtol=1e-5
    )


def halves(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]


def squared(f):
    return lambda x, w: jnp.sum(jnp.sin(f(x, w).astype(jnp.float32)) ** 2)


def derivatives(f, x, w):
    """Values and derivatives of all kinds, of f alone and under vmap."""
    loss = squared(f)
    gradient = jax.grad(loss, (0, 1))
    xs, ws = jnp.stack([x, x[::-1]]), jnp.stack([w, 2 * w])
    return {
        "value": f(x, w),
        "gradient": gradient(x, w),
        "forward": jax.jvp(loss, (x, w), (x, w))[1],
        "forward over reverse": jax.jvp(gradient, (x, w), (x, w))[1],
        "reverse over reverse": jax.grad(
            lambda x, w: sum(jnp.sum(g.astype(jnp.float32) ** 2) for g in gradient(x, w)), (0, 1)
        )(x, w),
        **{
            f"vmap {axes}": jax.vmap(gradient, axes)(*args)
            for axes, args in {
                (0, None): (xs, w),
                (None, 0): (x, ws),
                (0, 0): (xs, ws),
            }.items()
        },
        "vmap, another axis": jax.vmap(f, (1, None))(jnp.moveaxis(xs[:, 0], 0, 1), w),
        "vmap, the same dy": jax.vmap(
            lambda x: jax.vjp(lambda w: f(x, w), w)[1](jnp.ones((4, 5, w.shape[1]), w.dtype))
        )(xs),
    }


# More columns than rows in w, and the other way round: the gradient transposes the smaller matrix.
@pytest.mark.parametrize("outputs", [3, 9])
def test_bfloat16_has_the_values_and_derivatives_of_matmul(outputs):
    x, w = halves((4, 5, 7), (7, outputs))
    assert "product_in_bfloat16" in str(jax.make_jaxpr(product)(x, w))
    found, wanted = (jax.jit(derivatives, static_argnums=0)(f, x, w) for f in (product, jnp.matmul))
    for kind, each in wanted.items():
        for a, b in zip(jax.tree.leaves(found[kind]), jax.tree.leaves(each), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), kind
            a, b = (np.asarray(value, np.float32) for value in (a, b))
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max(), err_msg=kind)


def test_bfloat16_is_multiplied_as_it_is():
    """XLA on CPU would convert the operands to float32, which takes twice as long."""
    x, w, dy = halves((64, 32), (32, 16), (64, 16))
    all_three = jax.jit(lambda x, w, dy: (*jax.vjp(product, x, w)[1](dy), product(x, w)))
    text = all_three.lower(x, w, dy).compile().as_text()
    operands = re.findall(r"dot\((%[\w.]+), (%[\w.]+)\)", text)
    assert len(operands) == 3
    kinds = {re.search(rf"{re.escape(o)} = (\w+)\[", text)[1] for pair in operands for o in pair}
    assert kinds == {"bf16"}
    # Of x and dy, the smaller one is transposed.
    assert "bf16[16,64]" in text and "bf16[32,64]" not in text


@pytest.mark.parametrize("odd", ["x", "w"])
def test_a_matrix_that_xla_would_keep_column_by_column_is_multiplied(odd):
    """XLA refuses to run products of such matrices in bfloat16."""
    x, w = halves((16, 64), (64, 32))
    turned = {"x": x.T, "w": w.T}[odd]

    @jax.jit
    def computed(turned):
        summed = jnp.cumsum(turned.T, 0)
        return product(summed, w) if odd == "x" else product(x, summed)

    exact = np.cumsum(np.asarray(turned, np.float32).T, 0)
    y = exact @ np.asarray(w, np.float32) if odd == "x" else np.asarray(x, np.float32) @ exact
    np.testing.assert_allclose(np.asarray(computed(turned), np.float32), y, atol=0.05 * y.max())


def test_a_product_in_bfloat16_counts_its_operations():
    """Of the forward pass and of both gradients."""
    x, w, dy = halves((4, 8), (8, 16), (4, 16))
    jaxpr = jax.make_jaxpr(lambda x, w, dy: jax.vjp(product, x, w)[1](dy))(x, w, dy).jaxpr
    counted = sum(flops for _, flops in operations(jaxpr))
    assert counted == 3 * 2 * 4 * 8 * 16


SEEDED_BUGS = {
    "fdl/ops/bfloat16_products.py": (
        "ops/test_products.py",
        [
            ("preferred_element_type=wide", "preferred_element_type=a.dtype"),
            ("return jax.lax.optimization_barrier(a.reshape(-1)).reshape(a.shape)", "return a"),
            ("if a.shape[1] > b.shape[1]:", "if False:"),
            ("        a = a.T\n", "        b = b.T\n"),
            ("summed=BY_TRANSPOSE if summed == PLAIN else PLAIN", "summed=BY_TRANSPOSE"),
            ("_product.bind(b, dy, summed=BY_TRANSPOSE)", "_product.bind(dy, b, summed=PLAIN)"),
            ("summed=OF_TRANSPOSE if summed == PLAIN else PLAIN", "summed=OF_TRANSPOSE"),
            ("_product.bind(dy, a, summed=OF_TRANSPOSE)", "_product.bind(a, dy, summed=PLAIN)"),
            ("jnp.moveaxis(a, axis, 0)", "a"),
            ("other is None and summed != OF_TRANSPOSE", "other is None"),
        ],
    ),
    "fdl/look/flops.py": (
        "ops/test_products.py",
        [('operands[0].shape[params["summed"][0]]', 'operands[0].shape[params["summed"][1]]')],
    ),
    "fdl/ops/products.py": (
        "ops/test_products.py",
        [
            ("or cut:", "or True:"),
            ("*x.shape[:-1], w", "*x.shape[-2::-1], w"),
            ("4 * rows < inputs", "rows < inputs // 999"),
            ("inputs < 2 * outputs", "inputs < 99 * outputs"),
        ],
    ),
    "fdl/ops/fence.py": (
        "ops/test_products.py",
        [
            (
                '_identity("unmerged", jax.lax.optimization_barrier)',
                '_identity("unmerged", lambda x: x)',
            ),
        ],
    ),
}
