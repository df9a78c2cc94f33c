"""Dropout in its kinds; plain dropout is among the networks."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "spatial_dropout": LayerCase(lambda: fdl.spatial_dropout(0.4), (4, 3, 6), random=True),
    "drop_path": LayerCase(lambda: fdl.drop_path(0.4), (12, 2), random=True),
    "gaussian_dropout": LayerCase(lambda: fdl.gaussian_dropout(0.3), (3, 4), random=True),
    "alpha_dropout": LayerCase(lambda: fdl.alpha_dropout(0.4), (6, 5), random=True),
}
