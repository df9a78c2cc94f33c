"""Recurrent layers; lengths and carries are made from floats, as the laws draw them."""

import jax.numpy as jnp

import fdl
from registry.cases import LayerCase


def with_lengths(layer):
    """`layer` with lengths 0, 2 or more, from the signs of context."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, lengths=(context > 0).sum(-1) * 2), inner=layer
    )


def _encoder_and_decoder():
    def forward(f, x, *, context):
        y, carry = f.encode(context)
        return jnp.concatenate([y, f.decode(x, carry=carry)], -2)

    return fdl.network(
        forward,
        encode=fdl.lstm(2, forget_bias=1.0, returns="carry"),
        decode=fdl.lstm(2, reverse=True),
    )


def _packed():
    """Segments that begin where context is positive."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, segments=(context > 0).cumsum(-1)), inner=fdl.rg_lru(3)
    )


LAYERS = {
    "recurrent": LayerCase(
        lambda: with_lengths(fdl.recurrent(fdl.gru_cell(3, reset_after=False), reverse=True)),
        (2, 3, 2),
        inputs={"context": (2, 2)},
    ),
    "simple_recurrent": LayerCase(lambda: fdl.simple_recurrent(3), (2, 3, 2)),
    "lstm": LayerCase(_encoder_and_decoder, (2, 2, 3), inputs={"context": (2, 3, 3)}),
    "gru": LayerCase(lambda: fdl.gru(3), (2, 3, 2)),
    "bidirectional": LayerCase(
        lambda: with_lengths(fdl.bidirectional(fdl.simple_cell(3), returns="last")),
        (2, 3, 2),
        inputs={"context": (2, 2)},
    ),
    "rg_lru": LayerCase(_packed, (2, 5, 3), inputs={"context": (2, 5)}),
}
