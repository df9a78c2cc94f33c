"""x @ w with merged axes: the same numbers and gradients, one product of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


SEEDED_BUGS = {
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
