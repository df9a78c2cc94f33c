"""Convolutions."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "conv": LayerCase(lambda: fdl.conv(3, (2, 3)), (2, 4, 3, 2)),
    "conv_options": LayerCase(
        lambda: fdl.conv(
            4,
            (3, 2),
            stride=(2, 1),
            padding=((2, 0), 1),
            dilation=(1, 2),
            groups=2,
            w_init=fdl.initializers.he_uniform,
            b_init=fdl.initializers.normal(0.5),
            name="stem",
        ),
        (2, 2, 5, 3, 4),
    ),
    "conv_causal": LayerCase(
        lambda: fdl.conv(2, (3,), padding="CAUSAL", dilation=2, bias=False), (2, 5, 3)
    ),
    "conv_of_volumes": LayerCase(
        lambda: fdl.conv(2, (2, 1, 2), stride=2, padding="CIRCULAR"), (1, 3, 2, 4, 2)
    ),
    "conv_of_one_integer": LayerCase(lambda: fdl.conv(2, 2, stride=2), (2, 4, 3, 2)),
    "conv_transpose": LayerCase(lambda: fdl.conv_transpose(3, (3, 2), stride=2), (2, 2, 3, 2)),
    "conv_transpose_options": LayerCase(
        lambda: fdl.conv_transpose(
            4, (3,), stride=2, padding=1, output_padding=1, dilation=2, groups=2
        ),
        (2, 3, 6),
    ),
    "depthwise_conv": LayerCase(
        lambda: fdl.depthwise_conv((3, 2), multiplier=2, stride=(2, 1)), (2, 4, 3, 3)
    ),
    "separable_conv": LayerCase(
        lambda: fdl.separable_conv(3, (2, 2), padding="REFLECT"), (2, 3, 3, 2)
    ),
}
