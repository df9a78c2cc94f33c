"""Gated units and feed-forward blocks."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "gated": LayerCase(lambda: fdl.gated(3, activation=fdl.sigmoid), (4, 2)),
    "feed_forward": LayerCase(
        lambda: fdl.feed_forward(3, hidden=5, gate=True, bias=False, dropout_rate=0.3),
        (4, 3),
        random=True,
    ),
}
