"""Skip connections, layers side by side, recomputation, and the same block many times."""

import jax

import fdl
from registry.cases import LayerCase
from registry.networks import masked, running_mean


def gated(name="gated"):
    """`masked` by the extra input `context`."""
    return fdl.network(lambda f, x, *, context: f.gate(x, mask=context), gate=masked(), name=name)


def _side_by_side():
    """Every way to merge, each inside another."""
    pair = fdl.parallel(fdl.dense(2), other=fdl.chain(gated(), fdl.dense(2)), merge="tuple")
    product = fdl.network(
        lambda f, x, *, context: f.pair(x, context=context)[0] * f.pair(x, context=context)[1],
        pair=pair,
    )
    return fdl.parallel(product, fdl.parallel(fdl.dense(4), shortcut=fdl.tanh), merge="concat")


LAYERS = {
    "residual": LayerCase(
        lambda: fdl.residual(gated(), fdl.dense(4), running_mean(), last=fdl.dropout(0.3)),
        (3, 4),
        inputs={"context": (3, 4)},
        random=True,
    ),
    "parallel": LayerCase(_side_by_side, (3, 4), inputs={"context": (3, 4)}),
    "remat": LayerCase(
        lambda: fdl.remat(
            fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.4), running_mean()),
            policy=jax.checkpoint_policies.dots_saveable,
        ),
        (3, 2),
        random=True,
    ),
    "repeat_unrolled": LayerCase(
        lambda: fdl.repeat(fdl.residual(fdl.dense(3), fdl.dropout(0.3)), 2, scan=False),
        (2, 3),
        random=True,
    ),
    "repeat_scanned": LayerCase(
        lambda: fdl.repeat(fdl.chain(gated(), fdl.dense(3), running_mean()), 3, scan=True),
        (2, 3),
        inputs={"context": (2, 3)},
    ),
}
