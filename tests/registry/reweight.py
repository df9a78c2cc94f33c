"""Layers whose weights are learned in another form."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "weight_norm": LayerCase(lambda: fdl.weight_norm(fdl.dense(3)), (4, 2)),
    # Iterated until u and v no longer move, where taking them as constants changes no gradient.
    "spectral_norm": LayerCase(lambda: fdl.spectral_norm(fdl.dense(2), iterations=60), (4, 3)),
}
