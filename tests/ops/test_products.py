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


def test_it_differentiates_twice_and_batches():
    rng = np.random.default_rng(0)
    x, w = array(rng.standard_normal((2, 3, 4))), array(rng.standard_normal((4, 2)))
    loss = lambda f: lambda w: jnp.sin(f(x, w)).sum()  # noqa: E731
    for f in (jax.hessian, jax.grad):
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
        ],
    ),
}
