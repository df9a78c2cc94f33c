"""Layers made of layers, the simplest layers, and two layers of the tests' own."""

import jax.numpy as jnp
import numpy as np

import fdl
from registry.cases import LayerCase


def running_mean(momentum=0.75, name="running_mean"):
    """x less its running mean: a layer with state, in six lines."""

    def init(key, x):
        return {}, {"mean": jnp.zeros(x.shape[-1:], x.dtype), "count": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, key=None, train=False):
        if train:
            now = x.mean(range(x.ndim - 1))
            mean = momentum * state["mean"] + (1 - momentum) * now
            state = {"mean": mean, "count": state["count"] + 1}
        return x - state["mean"], state

    return fdl.Layer(name, init, apply)


def masked(name="masked"):
    """x * scale where the extra input `mask` is positive, else x."""

    def init(key, x, *, mask):
        return {"scale": jnp.full(mask.shape[-1:], 1.5, x.dtype)}, {}

    def apply(params, state, x, *, mask, key=None, train=False):
        return jnp.where(mask > 0, x * params["scale"], x), state

    return fdl.Layer(name, init, apply)


def _skip_and_shared():
    return fdl.network(
        lambda f, x: f.head(f.shared(fdl.tanh(f.shared(x))) + x),
        shared=fdl.chain(fdl.dense(5), fdl.dropout(0.25)),
        head=fdl.dense(2, bias=False),
    )


def _with_context():
    def forward(f, x, *, context):
        return f.mix(f.down(x) + f.seen(context), mask=context)

    return fdl.network(
        forward,
        down=fdl.dense(3),
        seen=fdl.dense(3, w_init=fdl.initializers.glorot_uniform),
        mix=fdl.chain(fdl.silu, gate=masked(), name="mix"),
    )


def _nested_chain():
    return fdl.chain(
        fdl.dense(4),
        fdl.gelu,
        fdl.chain(fdl.dense(3), fdl.silu, inner=fdl.dense(4)),
        head=fdl.chain(fdl.tanh, out=fdl.dense(3, name="last"), name="top"),
        name="outer",
    )


LAYERS = {
    "dense": LayerCase(lambda: fdl.dense(3), (4, 5)),
    "dense_options": LayerCase(
        lambda: fdl.dense(
            3,
            w_init=fdl.initializers.he_uniform,
            b_init=fdl.initializers.normal(0.5),
            name="projection",
        ),
        (2, 3, 5),
    ),
    "dense_without_bias": LayerCase(
        lambda: fdl.dense(2, bias=False, w_init=fdl.initializers.uniform(0.4)), (3, 4)
    ),
    "dropout": LayerCase(lambda: fdl.dropout(0.3), (6, 7), random=True),
    "dropout_of_nothing": LayerCase(lambda: fdl.dropout(0.0), (3, 4)),
    "flatten": LayerCase(fdl.flatten, (2, 3, 2, 2)),
    "rescale": LayerCase(lambda: fdl.rescale(1 / 255, -0.5), (2, 3, 2, 1), np.uint8),
    "function": LayerCase(lambda: fdl.layer.function(fdl.softmax, "chances"), (4, 3)),
    "chain_nested": LayerCase(_nested_chain, (3, 5)),
    "network_skip_and_shared_child": LayerCase(_skip_and_shared, (3, 5), random=True),
    "network_with_context": LayerCase(_with_context, (4, 2), inputs={"context": (4, 3)}),
    "stateful": LayerCase(
        lambda: fdl.chain(fdl.dense(3), running_mean(), fdl.tanh, running_mean(0.5)), (4, 2)
    ),
    "mlp": LayerCase(lambda: fdl.mlp([5, 4], 3, activation=fdl.tanh), (3, 2, 3)),
    "mlp_relu_dropout": LayerCase(
        lambda: fdl.mlp([6], 2, activation=fdl.relu, dropout_rate=0.4), (3, 5), random=True
    ),
    "mlp_of_images": LayerCase(
        lambda: fdl.mlp([4], 3, activation=fdl.gelu, scale=1 / 255), (2, 3, 3, 1), np.uint8
    ),
}
