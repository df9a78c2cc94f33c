"""A network adapted by small matrices beside its own."""

import fdl
from registry.cases import LayerCase

LAYERS = {
    "low_rank": LayerCase(
        lambda: fdl.low_rank(
            fdl.chain(fdl.dense(4), fdl.tanh, head=fdl.dense(3)), "**/w", rank=2, scale=3.0
        ),
        (3, 5),
    ),
}
