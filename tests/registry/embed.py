"""Embeddings of ids, tied outputs, positions."""

import numpy as np

import fdl
from registry.cases import LayerCase


def _tied():
    """Vectors through a dense layer, scored against the embedding's own rows."""
    return fdl.network(
        lambda f, x: f.embed(f.body(fdl.tanh(f.embed(x)))),
        embed=fdl.embedding(255, 3, w_init=fdl.initializers.normal(0.5)),
        body=fdl.dense(3),
    )


LAYERS = {
    "embedding": LayerCase(lambda: fdl.embedding(255, 3), (2, 4), np.uint8),
    "embedding_tied": LayerCase(_tied, (3, 2), np.int32),
    "learned_positions": LayerCase(lambda: fdl.learned_positions(6), (2, 4, 3)),
    "sinusoidal_positions": LayerCase(lambda: fdl.sinusoidal_positions(base=50.0), (2, 3, 4)),
}
