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
        fdl.softmax, lambda x: scipy.special.softmax(x, axis=-1), _softmax_slope
    ),
    "softmax_of_the_first_axis": ActivationCase(
        functools.partial(fdl.softmax, axis=0),
        lambda x: scipy.special.softmax(x, axis=0),
        lambda x: _softmax_slope(x.T).T,
    ),
}
