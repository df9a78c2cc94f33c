"""Norms, with scales and biases away from one and zero."""

import fdl
from registry.cases import LayerCase

UNLIKE = {
    "scale_init": fdl.initializers.normal(0.8),
    "bias_init": fdl.initializers.normal(0.7),
    "epsilon": 0.03,
}

LAYERS = {
    "batch_norm": LayerCase(
        lambda: fdl.batch_norm(momentum=0.7, unbiased=True, name="running", **UNLIKE), (5, 3)
    ),
    "layer_norm": LayerCase(lambda: fdl.layer_norm(**UNLIKE), (3, 5)),
    "rms_norm": LayerCase(
        lambda: fdl.rms_norm(scale_init=fdl.initializers.uniform(2.0), epsilon=0.01), (3, 5)
    ),
    "group_norm": LayerCase(lambda: fdl.group_norm(2, **UNLIKE), (3, 2, 4)),
    "instance_norm": LayerCase(lambda: fdl.instance_norm(**UNLIKE), (2, 4, 3)),
}
