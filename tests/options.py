"""Numeric options, which may be traced: what makes each, what it is fed, and values of its own."""

import jax.numpy as jnp
import numpy as np

import fdl
from tests.programs import array


def _pass(factory, *args, x=(4, 3, 4), **sizes):
    """Options -> what init and a training pass of the layer give."""

    def made(key, **options):
        layer = factory(*args, **sizes, **options)
        data = _numbers(x)
        params, state = layer.init(key, data)
        return params, layer.apply(params, state, data, key=key, train=True)

    return made


def _of_array(f, *args, **given):
    return lambda key, **options: f(_numbers((3, 4)), *args, **given, **options)


def _drawn(factory, *args, shape=(6, 4)):
    return lambda key, **options: factory(*args, **options)(key, shape)


def _attended(key, *, slopes, **options):
    q, k = _numbers((5, 2, 3)), _numbers((5, 1, 3))
    falls = [slopes, slopes / 2]
    return fdl.dot_product_attention(q, k, k, causal=True, slopes=falls, **options)


def _attended_in_chunks(key, **options):
    return _attended(key, chunk=2, **options)


def _merged(key, **options):
    low_rank = {"w": {"a": _numbers((4, 2)), "b": _numbers((2, 3))}}
    return fdl.merge_low_rank({"base": {"w": _numbers((4, 3))}, "low_rank": low_rank}, **options)


def _numbers(shape):
    return array(np.random.default_rng(1).standard_normal(shape))


_of, _act = fdl.initializers, fdl.activations

# name -> (key, **options -> anything, the options).
OPTIONS = {
    "dropout": (_pass(fdl.dropout), {"rate": 0.4}),
    "spatial_dropout": (_pass(fdl.spatial_dropout), {"rate": 0.4}),
    "drop_path": (_pass(fdl.drop_path), {"rate": 0.4}),
    "gaussian_dropout": (_pass(fdl.gaussian_dropout), {"rate": 0.4}),
    "alpha_dropout": (_pass(fdl.alpha_dropout), {"rate": 0.4}),
    "random_flip": (_pass(fdl.random_flip), {"probability": 0.4}),
    "random_rotation": (_pass(fdl.random_rotation), {"degrees": 40.0}),
    "random_erasing": (_pass(fdl.random_erasing), {"probability": 0.7, "value": 0.4}),
    "batch_norm": (_pass(fdl.batch_norm, unbiased=True), {"momentum": 0.7, "epsilon": 0.3}),
    "layer_norm": (_pass(fdl.layer_norm), {"epsilon": 0.3}),
    "rms_norm": (_pass(fdl.rms_norm), {"epsilon": 0.3}),
    "group_norm": (_pass(fdl.group_norm, 2), {"epsilon": 0.3}),
    "instance_norm": (_pass(fdl.instance_norm), {"epsilon": 0.3}),
    "prelu": (_pass(fdl.prelu), {"slope": 0.4}),
    "rrelu": (_pass(fdl.rrelu), {"lower": 0.1, "upper": 0.6}),
    "lstm": (_pass(fdl.lstm, 2), {"forget_bias": 0.8}),
    "lstm_cell": (
        lambda key, **options: fdl.lstm_cell(2, **options).init(key, jnp.ones((1, 3))),
        {"forget_bias": 0.8},
    ),
    "rescale": (_pass(fdl.rescale), {"scale": 0.3, "offset": -0.2}),
    "feed_forward": (_pass(fdl.feed_forward, 3, hidden=4), {"dropout_rate": 0.3}),
    "attention": (
        _pass(fdl.attention, 2, causal=True),
        {"scale": 0.7, "soft_cap": 1.5, "dropout_rate": 0.3},
    ),
    "dot_product_attention": (_attended, {"slopes": 0.5, "scale": 0.7, "soft_cap": 1.5}),
    "in_chunks": (_attended_in_chunks, {"slopes": 0.5, "scale": 0.7, "soft_cap": 1.5}),
    "low_rank": (
        _pass(lambda **options: fdl.low_rank(fdl.dense(3), "w", rank=2, **options)),
        {"scale": 0.7},
    ),
    "merge_low_rank": (_merged, {"scale": 0.7}),
    "mlp": (_pass(fdl.mlp, [3], 2), {"dropout_rate": 0.3, "scale": 0.7}),
    "normal": (_drawn(_of.normal), {"stddev": 0.3}),
    "uniform": (_drawn(_of.uniform), {"limit": 0.3}),
    "truncated_normal": (
        _drawn(_of.truncated_normal),
        {"stddev": 0.3, "lower": -1.0, "upper": 1.5},
    ),
    "variance_scaling": (
        lambda key, scale: [
            _of.variance_scaling(scale, "fan_in", kind)(key, (6, 4))
            for kind in ("normal", "uniform")
        ],
        {"scale": 1.7},
    ),
    "constant": (_drawn(_of.constant), {"value": 0.3}),
    "orthogonal": (_drawn(_of.orthogonal), {"scale": 0.7}),
    "delta_orthogonal": (_drawn(_of.delta_orthogonal, shape=(3, 2, 4)), {"scale": 0.7}),
    "identity": (_drawn(_of.identity), {"scale": 0.7}),
    "sparse": (_drawn(_of.sparse), {"share": 0.4, "stddev": 0.3}),
    "scaled": (_drawn(_of.scaled, _of.ones), {"factor": 0.7}),
    "leaky_relu": (_of_array(_act.leaky_relu), {"negative_slope": 0.3}),
    "elu": (_of_array(_act.elu), {"alpha": 0.7}),
    "celu": (_of_array(_act.celu), {"alpha": 0.7}),
    "threshold": (_of_array(_act.threshold), {"level": 0.2, "value": -0.3}),
    "hard_shrink": (_of_array(_act.hard_shrink), {"level": 0.3}),
    "soft_shrink": (_of_array(_act.soft_shrink), {"level": 0.3}),
    "squareplus": (_of_array(_act.squareplus), {"b": 2.0}),
    "standardize": (_of_array(_act.standardize), {"epsilon": 0.3}),
}

# These must be known when a program is made: frequencies in float64, a size, a table of slopes.
NOT_TRACED = {
    ("sinusoidal_positions", "base"),
    ("rotary", "base"),
    ("mixture_of_experts", "capacity_factor"),
}
