"""Recurrent layers; lengths and carries are made from floats, as the laws draw them."""

import fdl
from registry.cases import LayerCase


def with_lengths(layer):
    """`layer` with lengths 0, 2 or more, from the signs of context."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, lengths=(context > 0).sum(-1) * 2), inner=layer
    )


def _going_on():
    """An LSTM that begins from a carry made of context."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, carry={"h": context, "c": 1 - 2 * context}),
        inner=fdl.lstm(2, forget_bias=1.0, reverse=True),
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
    "lstm": LayerCase(_going_on, (2, 3, 3), inputs={"context": (2, 2)}),
    "gru": LayerCase(lambda: fdl.gru(3), (2, 3, 2)),
    "bidirectional": LayerCase(
        lambda: with_lengths(fdl.bidirectional(fdl.simple_cell(3), returns="last")),
        (2, 3, 2),
        inputs={"context": (2, 2)},
    ),
    "rg_lru": LayerCase(_packed, (2, 5, 3), inputs={"context": (2, 5)}),
}
