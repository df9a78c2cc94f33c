"""Losses of a large vocabulary: their formulas in float64, and the memory they take."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import fdl
from tests.entry_types import LossCase
from tests.losses import oracles
from tests.programs import array


def _tokens(rng, rows, classes, size):
    hidden, w = rng.standard_normal((rows, 4)), size * rng.standard_normal((4, classes)) / 2
    return hidden, w, rng.integers(0, classes, rows)


LOSSES = {
    "linear_cross_entropy": LossCase(
        functools.partial(fdl.linear_cross_entropy, chunk=4),
        _tokens,
        lambda hidden, w, labels: oracles.softmax_cross_entropy(hidden @ w, labels),
        moved=(0, 1),
        shared=(1,),
        told=r"expected integer labels \[6\] for hidden \[6, 4\], got int32 \[5\]; pass one ",
        near=1e-5,
    ),
    "z_loss": LossCase(
        fdl.z_loss,
        lambda rng, rows, classes, size: (size * rng.standard_normal((rows, classes)),),
        lambda logits: scipy.special.logsumexp(logits, -1) ** 2,
        told="",
    ),
}


def sizes_of(jaxpr):
    """The sizes of all values that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(out.aval.shape) for out in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes_of(inner)


def test_linear_cross_entropy_never_holds_all_logits():
    tokens, width, vocabulary, chunk = 96, 3, 128, 16
    rng = np.random.default_rng(0)
    hidden = array(rng.standard_normal((2, tokens // 2, width)))
    w = array(rng.standard_normal((width, vocabulary)))
    labels = jnp.asarray(rng.integers(0, vocabulary, (2, tokens // 2)))
    whole = oracles.weighted(lambda h, w: fdl.softmax_cross_entropy(h @ w, labels), (0, 1))
    parts = oracles.weighted(
        lambda h, w: fdl.linear_cross_entropy(h, w, labels, chunk=chunk), (0, 1)
    )
    (_, expected), expected_gradients = whole(hidden, w)
    (_, found), found_gradients = parts(hidden, w)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert max(sizes_of(jax.make_jaxpr(whole)(hidden, w).jaxpr)) == tokens * vocabulary
    assert max(sizes_of(jax.make_jaxpr(parts)(hidden, w).jaxpr)) == chunk * vocabulary


def test_linear_cross_entropy_sums_the_gradient_by_w_in_float32():
    """In bfloat16 the 257th summand of size 1 would be lost."""
    hidden = jnp.ones((1024, 1), jnp.bfloat16)
    w = jnp.zeros((1, 2), jnp.bfloat16)
    loss = lambda w: fdl.linear_cross_entropy(hidden, w, jnp.zeros(1024, int), chunk=2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(w)
    assert gradient.dtype == jnp.bfloat16
    assert gradient.astype(jnp.float32).tolist() == [[-512.0, 512.0]]


def test_the_second_derivative_of_linear_cross_entropy():
    hidden, w, labels = LOSSES["linear_cross_entropy"].data(3)
    loss = lambda w: fdl.linear_cross_entropy(hidden, w, labels, chunk=4).sum()  # noqa: E731
    whole = lambda w: fdl.softmax_cross_entropy(hidden @ w, labels).sum()  # noqa: E731
    found, expected = (jax.jit(jax.hessian(f))(w) for f in (loss, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 2.5, "a", None])
def test_a_chunk_is_a_number_of_tokens(chunk):
    told = (
        f"linear_cross_entropy: expected chunk >= 1, an integer, got {chunk!r}; pass the number of "
        f"tokens in a chunk"
    )
    with pytest.raises(ValueError, match=f"^{told}$"):
        fdl.linear_cross_entropy(jnp.eye(2), jnp.eye(2), jnp.zeros(2, int), chunk=chunk)


def test_tokens_without_weight_reach_neither_the_hidden_nor_the_weights():
    hidden, w, labels = LOSSES["linear_cross_entropy"].data(3)
    labels = labels.at[2].set(-100)

    def total(hidden, w, out):
        if out is None:
            rows = np.arange(6) != 2
            return fdl.linear_cross_entropy(hidden[rows], w, labels[rows], chunk=4).sum()
        return fdl.linear_cross_entropy(hidden, w, labels, chunk=4, **out).sum()

    def both(hidden, w, out):
        return jax.jit(jax.value_and_grad(functools.partial(total, out=out), (0, 1)))(hidden, w)

    expected = both(hidden, w, None)
    for out in ({"ignore_index": -100}, {"where": labels >= 0}):
        found = both(hidden.at[2].set(jnp.nan), w, out)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


SEEDED_BUGS = {
    "fdl/losses/vocabulary.py": (
        "losses",
        [
            ("wide_w = precise(w)", "wide_w = w"),
            ("size = min(chunk, max(flat.size, 1))", "size = flat.size"),
            ("jax.checkpoint(one)(*args)", "one(*args)"),
            ("jnp.square(jax", "jnp.abs(jax"),
        ],
    ),
}
