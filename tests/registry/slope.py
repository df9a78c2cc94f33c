"""Rectifiers with learned or drawn slopes."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "prelu": LayerCase(fdl.prelu, (4, 3)),
    "prelu_each_channel": LayerCase(lambda: fdl.prelu(each_channel=True, slope=0.4), (2, 3, 4)),
    "rrelu": LayerCase(lambda: fdl.rrelu(0.1, 0.6), (5, 4), random=True),
}
