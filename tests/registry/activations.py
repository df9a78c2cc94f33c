"""Activations, their float64 formulas and slopes."""

import functools

import numpy as np
import scipy.special

import fdl
from registry.cases import ActivationCase


def _normal_chance(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_tanh_slope(x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return (1 + np.tanh(inner)) / 2 + x / 2 * slope * (1 - np.tanh(inner) ** 2)


def _softmax_slope(x):
    """The sum over outputs of d softmax_j / d x_i weighted by j, which is not symmetric."""
    p = scipy.special.softmax(x, -1)
    weight = np.arange(x.shape[-1])
    return p * (weight - (p * weight).sum(-1, keepdims=True))


_expit = scipy.special.expit
_of = fdl.activations
SELU = 1.0507009873554805, 1.6732632423543772


def _elu(x, alpha=1.0, beta=1.0):
    """alpha * (e^(x / beta) - 1) below 0."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / beta))


def _elu_slope(x, alpha=1.0, beta=1.0):
    return np.where(x > 0, 1, alpha / beta * np.exp(np.minimum(x, 0) / beta))


def _softplus(x):
    return np.logaddexp(x, 0)


def _mish_slope(x):
    t = np.tanh(_softplus(x))
    return t + x * (1 - t * t) * _expit(x)


def _between(x, low, high, slope=1.0):
    return np.where((x > low) & (x < high), slope, 0.0)


def _hard_silu_slope(x):
    return np.clip(x + 3, 0, 6) / 6 + x * _between(x, -3, 3, 1 / 6)


def _squareplus(x):
    root = np.sqrt(x * x + 2.5)
    return np.where(x > 0, (x + root) / 2, 1.25 / (root + np.abs(x)))


def _sparsemax(x):
    """Algorithm 1 of the paper, a row at a time."""
    rows = []
    for row in x:
        z = np.sort(row)[::-1]
        k = max(k for k in range(1, len(z) + 1) if 1 + k * z[k - 1] > z[:k].sum())
        rows.append(np.maximum(row - (z[:k].sum() - 1) / k, 0))
    return np.array(rows)


def _sparsemax_slope(x):
    support = _sparsemax(x) > 0
    weight = np.arange(x.shape[-1])
    mean = (weight * support).sum(-1, keepdims=True) / support.sum(-1, keepdims=True)
    return support * (weight - mean)


def _log_softmax_slope(x):
    weight = np.arange(x.shape[-1])
    return weight - scipy.special.softmax(x, -1) * weight.sum()


def _standardize(x, epsilon=0.01):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def _standardize_slope(x, epsilon=0.01):
    y, weight = _standardize(x, epsilon), np.arange(x.shape[-1])
    inner = weight - weight.mean() - y * (weight * y).mean(-1, keepdims=True)
    return inner / np.sqrt(x.var(-1, keepdims=True) + epsilon)


# On the halves of a vector: the gate in float64.
GATES = {
    "glu": (_of.glu, _expit),
    "swiglu": (_of.swiglu, lambda x: x * _expit(x)),
    "geglu": (_of.geglu, _gelu_tanh),
}

ACTIVATIONS = {
    "relu": ActivationCase(
        fdl.relu, lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)
    ),
    "tanh": ActivationCase(fdl.tanh, np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": ActivationCase(fdl.sigmoid, _expit, lambda x: _expit(x) * _expit(-x)),
    "gelu": ActivationCase(fdl.gelu, _gelu_tanh, _gelu_tanh_slope),
    "gelu_exact": ActivationCase(
        functools.partial(fdl.gelu, approximate=False),
        lambda x: x * scipy.special.ndtr(x),
        lambda x: scipy.special.ndtr(x) + x * _normal_chance(x),
    ),
    "silu": ActivationCase(
        fdl.silu, lambda x: x * _expit(x), lambda x: _expit(x) * (1 + x * _expit(-x))
    ),
    "softmax": ActivationCase(
        fdl.softmax, lambda x: scipy.special.softmax(x, axis=-1), _softmax_slope, -1
    ),
    "softmax_of_the_first_axis": ActivationCase(
        functools.partial(fdl.softmax, axis=0),
        lambda x: scipy.special.softmax(x, axis=0),
        lambda x: _softmax_slope(x.T).T,
        0,
    ),
    "log_softmax": ActivationCase(
        _of.log_softmax, lambda x: scipy.special.log_softmax(x, -1), _log_softmax_slope, -1
    ),
    "softmin": ActivationCase(
        _of.softmin, lambda x: scipy.special.softmax(-x, -1), lambda x: -_softmax_slope(-x), -1
    ),
    "sparsemax": ActivationCase(_of.sparsemax, _sparsemax, _sparsemax_slope, -1),
    "standardize": ActivationCase(
        functools.partial(_of.standardize, epsilon=0.01), _standardize, _standardize_slope, -1
    ),
    "identity": ActivationCase(_of.identity, lambda x: x, np.ones_like),
    "relu6": ActivationCase(_of.relu6, lambda x: np.clip(x, 0, 6), lambda x: _between(x, 0, 6)),
    "squared_relu": ActivationCase(
        _of.squared_relu, lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)
    ),
    "leaky_relu": ActivationCase(
        functools.partial(_of.leaky_relu, negative_slope=0.3),
        lambda x: np.where(x > 0, x, 0.3 * x),
        lambda x: np.where(x > 0, 1, 0.3),
    ),
    "elu": ActivationCase(
        functools.partial(_of.elu, alpha=0.7),
        lambda x: _elu(x, 0.7),
        lambda x: _elu_slope(x, 0.7),
    ),
    "celu": ActivationCase(
        functools.partial(_of.celu, alpha=0.7),
        lambda x: _elu(x, 0.7, 0.7),
        lambda x: _elu_slope(x, 0.7, 0.7),
    ),
    "selu": ActivationCase(
        _of.selu,
        lambda x: SELU[0] * _elu(x, SELU[1]),
        lambda x: SELU[0] * _elu_slope(x, SELU[1]),
    ),
    "threshold": ActivationCase(
        functools.partial(_of.threshold, level=0.75, value=-0.5),
        lambda x: np.where(x > 0.75, x, -0.5),
        lambda x: _between(x, 0.75, np.inf),
    ),
    "hard_shrink": ActivationCase(
        functools.partial(_of.hard_shrink, level=0.75),
        lambda x: np.where(abs(x) > 0.75, x, 0),
        lambda x: 1 - _between(x, -0.75, 0.75),
    ),
    "soft_shrink": ActivationCase(
        functools.partial(_of.soft_shrink, level=0.75),
        lambda x: np.sign(x) * np.maximum(abs(x) - 0.75, 0),
        lambda x: 1 - _between(x, -0.75, 0.75),
    ),
    "log_sigmoid": ActivationCase(_of.log_sigmoid, scipy.special.log_expit, lambda x: _expit(-x)),
    "hard_sigmoid": ActivationCase(
        _of.hard_sigmoid,
        lambda x: np.clip(x + 3, 0, 6) / 6,
        lambda x: _between(x, -3, 3, 1 / 6),
    ),
    "sparse_sigmoid": ActivationCase(
        _of.sparse_sigmoid,
        lambda x: np.clip(x + 1, 0, 2) / 2,
        lambda x: _between(x, -1, 1, 1 / 2),
    ),
    "hard_tanh": ActivationCase(
        _of.hard_tanh, lambda x: np.clip(x, -1, 1), lambda x: _between(x, -1, 1)
    ),
    "soft_sign": ActivationCase(
        _of.soft_sign, lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0
    ),
    "tanh_shrink": ActivationCase(
        _of.tanh_shrink, lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2
    ),
    "hard_silu": ActivationCase(
        _of.hard_silu, lambda x: x * np.clip(x + 3, 0, 6) / 6, _hard_silu_slope
    ),
    "mish": ActivationCase(_of.mish, lambda x: x * np.tanh(_softplus(x)), _mish_slope),
    "softplus": ActivationCase(_of.softplus, _softplus, _expit),
    "squareplus": ActivationCase(
        functools.partial(_of.squareplus, b=2.5),
        _squareplus,
        lambda x: _squareplus(x) / np.sqrt(x * x + 2.5),
    ),
    "sparse_plus": ActivationCase(
        _of.sparse_plus,
        lambda x: np.where(x >= 1, x, np.clip(x + 1, 0, 2) ** 2 / 4),
        lambda x: np.clip(x + 1, 0, 2) / 2,
    ),
}
