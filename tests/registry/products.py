"""Layers by an equation, forms in two inputs, mixtures of experts, more batch axes."""

import fdl
from registry.cases import LayerCase


def _two_inputs():
    return fdl.network(
        lambda f, x, *, context: f.inner(x, other=context),
        inner=fdl.bilinear(4, b_init=fdl.initializers.normal(0.5)),
    )


def _crowded():
    """Experts with room for less than they are sent."""
    expert = fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.3))
    return fdl.mixture_of_experts(expert, 3, capacity_factor=0.75)


def _two_axes():
    """Norms over one batch axis, with an input."""
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
