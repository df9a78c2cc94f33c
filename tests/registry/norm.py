"""Norms, with scales and biases away from one and zero."""

import numpy as np

import fdl
from registry.cases import LayerCase

UNLIKE = {
    "scale_init": fdl.initializers.normal(0.8),
    "bias_init": fdl.initializers.normal(0.7),
    "epsilon": 0.03,
}


def _masked(layer):
    """`layer` over the places where context is not far below 0."""
    return fdl.network(lambda f, x, *, context: f.norm(x, mask=context > -1), norm=layer)


LAYERS = {
    "batch_norm": LayerCase(
        lambda: fdl.batch_norm(momentum=0.7, unbiased=True, name="running", **UNLIKE), (5, 3)
    ),
    "layer_norm": LayerCase(lambda: fdl.layer_norm(**UNLIKE), (3, 5)),
    "layer_norm_of_images": LayerCase(
        lambda: _masked(fdl.layer_norm(axes=(-3, -1), **UNLIKE)),
        *((2, 3, 2, 4), np.float32, {"context": (2, 3, 1, 1)}),
    ),
    "batch_norm_masked": LayerCase(
        lambda: _masked(fdl.batch_norm(momentum=0.7, **UNLIKE)),
        *((4, 3, 2), np.float32, {"context": (4, 3, 1)}),
    ),
    "rms_norm": LayerCase(
        lambda: fdl.rms_norm(scale_init=fdl.initializers.uniform(2.0), epsilon=0.01), (3, 5)
    ),
    "group_norm": LayerCase(lambda: fdl.group_norm(2, **UNLIKE), (3, 2, 4)),
    "instance_norm": LayerCase(lambda: fdl.instance_norm(**UNLIKE), (2, 4, 3)),
}
