"""Pooling, upsampling, and channels as places."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "max_pool": LayerCase(lambda: fdl.max_pool((2, 2)), (2, 4, 5, 2)),
    "max_pool_overlapping": LayerCase(
        lambda: fdl.max_pool((3,), stride=2, padding=1), (2, 2, 6, 2)
    ),
    "max_pool_dilated": LayerCase(
        lambda: fdl.max_pool(2, stride=1, padding=1, dilation=3), (2, 5, 4, 2)
    ),
    "average_pool": LayerCase(
        lambda: fdl.average_pool((3, 2), stride=(2, 1), padding="SAME"), (2, 4, 3, 2)
    ),
    "global_max_pool": LayerCase(fdl.global_max_pool, (2, 3, 2, 2)),
    "global_average_pool": LayerCase(fdl.global_average_pool, (2, 3, 2, 2)),
    "adaptive_max_pool": LayerCase(lambda: fdl.adaptive_max_pool((2, 1)), (2, 5, 3, 2)),
    "adaptive_average_pool": LayerCase(lambda: fdl.adaptive_average_pool((3,)), (2, 5, 2)),
    "upsample": LayerCase(lambda: fdl.upsample((2, 3)), (2, 3, 2, 2)),
    "upsample_linear": LayerCase(lambda: fdl.upsample((3,), method="linear"), (2, 3, 2)),
    "pixel_shuffle": LayerCase(lambda: fdl.pixel_shuffle(2), (2, 2, 3, 4)),
    "pixel_unshuffle": LayerCase(lambda: fdl.pixel_unshuffle(2), (2, 4, 2, 2)),
}
