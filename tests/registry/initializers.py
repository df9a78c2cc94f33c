"""Initializers, and what each promises."""

import dataclasses

import jax

import fdl
from registry.cases import InitializerCase

_of = fdl.initializers
_jax = jax.nn.initializers


def _scaled(scale, mode, distribution):
    fan = {"fan_in": lambda i, o: i, "fan_out": lambda i, o: o, "fan_avg": lambda i, o: (i + o) / 2}
    return InitializerCase(
        _of.variance_scaling(scale, mode, distribution),
        lambda i, o: scale / fan[mode](i, o),
        limit=3**0.5 if distribution == "uniform" else None,
        has_fans=True,
        oracle=_jax.variance_scaling(scale, mode, distribution),
    )


def _named(name, scale, mode, distribution, oracle=None):
    case = _scaled(scale, mode, distribution)
    return dataclasses.replace(case, init=getattr(_of, name), oracle=oracle or case.oracle)


INITIALIZERS = {
    "zeros": InitializerCase(_of.zeros, lambda i, o: 0.0, random=False, oracle=_jax.zeros),
    "ones": InitializerCase(_of.ones, lambda i, o: 0.0, mean=1.0, random=False, oracle=_jax.ones),
    "constant": InitializerCase(
        _of.constant(0.75),
        lambda i, o: 0.0,
        mean=0.75,
        random=False,
        oracle=_jax.constant(0.75),
    ),
    "normal": InitializerCase(_of.normal(0.3), lambda i, o: 0.09, oracle=_jax.normal(0.3)),
    "truncated_normal": InitializerCase(
        _of.truncated_normal(0.3),
        lambda i, o: 0.09 * 0.7737413,  # 1 - 4 pdf(2) / (cdf(2) - cdf(-2)) of the normal
        limit=2 / 0.7737413**0.5,
        oracle=_jax.truncated_normal(0.3),
    ),
    "scaled": InitializerCase(
        _of.scaled(_of.normal(0.6), 0.5), lambda i, o: 0.09, oracle=_jax.normal(0.3)
    ),
    "uniform": InitializerCase(_of.uniform(0.6), lambda i, o: 0.12, limit=3**0.5),
    "orthogonal": InitializerCase(
        _of.orthogonal(1.5), lambda i, o: 2.25 / max(i, o), has_fans=True
    ),
    "variance_scaling_out": _scaled(1.7, "fan_out", "normal"),
    "variance_scaling_average": _scaled(0.6, "fan_avg", "uniform"),
    "glorot_normal": _named("glorot_normal", 1.0, "fan_avg", "normal"),
    "glorot_uniform": _named("glorot_uniform", 1.0, "fan_avg", "uniform", _jax.glorot_uniform()),
    "he_normal": _named("he_normal", 2.0, "fan_in", "normal"),
    "he_uniform": _named("he_uniform", 2.0, "fan_in", "uniform", _jax.he_uniform()),
    "lecun_normal": _named("lecun_normal", 1.0, "fan_in", "normal"),
    "lecun_uniform": _named("lecun_uniform", 1.0, "fan_in", "uniform", _jax.lecun_uniform()),
}
