"""Hyper-parameters away from their defaults, for optimizers of fdl, of optax and the oracles.

Masks and dimension numbers are for the tree of `SHAPES`.
"""

import jax
import numpy as np

SHAPES = {"scalar": (), "vector": (4,), "matrix": (5, 3), "cube": (2, 3, 4)}
MASK = {"scalar": True, "vector": False, "matrix": True, "cube": False}
OTHER_MASK = {"scalar": False, "vector": False, "matrix": True, "cube": True}


def falling(count):
    """A schedule for optax and NumPy: 0.3, then less."""
    return 0.3 / (1.0 + 0.07 * count)


def growing(count):
    return 0.01 + 0.002 * count


# name -> hyper-parameters for optax and the oracle. Together the cases of an optimizer change every
# hyper-parameter of its signature from its default; a test checks that.
CASES = {
    "sgd": [
        {"learning_rate": falling, "momentum": 0.8, "nesterov": True},
        {"learning_rate": falling, "momentum": 0.8},
        {"learning_rate": 0.07},
    ],
    "sign_sgd": [{"learning_rate": falling}],
    "adagrad": [
        {"learning_rate": falling, "initial_accumulator_value": 0.4, "eps": 0.03},
        {"learning_rate": falling, "initial_accumulator_value": 0.0, "eps": 1e-5},
    ],
    "adadelta": [
        {
            "learning_rate": falling,
            "rho": 0.8,
            "eps": 1e-3,
            "weight_decay": growing,
            "weight_decay_mask": MASK,
        }
    ],
    "rmsprop": [
        {"learning_rate": falling, "decay": 0.8, "eps": 0.02, "initial_scale": 0.3},
        {"learning_rate": falling, "decay": 0.8, "eps": 0.02, "eps_in_sqrt": False},
        {
            "learning_rate": falling,
            "decay": 0.8,
            "eps": 0.02,
            "initial_scale": 0.3,
            "centered": True,
            "momentum": 0.7,
        },
        {
            "learning_rate": falling,
            "decay": 0.8,
            "eps": 0.02,
            "momentum": 0.7,
            "nesterov": True,
            "bias_correction": True,
        },
        {
            "learning_rate": falling,
            "decay": 0.8,
            "eps": 0.02,
            "initial_scale": 0.3,  # without it the first variance is 0 by rounding, and NaN
            "eps_in_sqrt": False,
            "centered": True,
            "momentum": 0.7,
            "nesterov": True,
            "bias_correction": True,
        },
    ],
    "rprop": [
        {
            "learning_rate": 0.02,
            "eta_minus": 0.4,
            "eta_plus": 1.3,
            "min_step_size": 0.01,
            "max_step_size": 0.06,
            "reading": "optax",
        }
    ],
    "adam": [
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "eps_root": 0.02},
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "nesterov": True},
    ],
    "amsgrad": [
        {"learning_rate": falling, "b1": 0.8, "b2": 0.9, "eps": 0.03, "eps_root": 0.02},
        {
            "learning_rate": falling,
            "b1": 0.8,
            "b2": 0.9,
            "eps": 0.03,
            "bias_correction_mu": False,
            "bias_correction_nu": False,
        },
    ],
    "adamax": [{"learning_rate": falling, "b1": 0.8, "b2": 0.9, "eps": 0.03}],
    "nadam": [
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "eps_root": 0.02},
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "nesterov": False},
    ],
    "adamw": [
        {
            "learning_rate": falling,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "eps_root": 0.02,
            "weight_decay": growing,
            "mask": MASK,
        },
        {
            "learning_rate": 0.1,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "weight_decay": 0.2,
            "nesterov": True,
        },
    ],
    "nadamw": [
        {
            "learning_rate": falling,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "eps_root": 0.02,
            "weight_decay": 0.2,
            "mask": lambda params: {name: np.ndim(w) > 1 for name, w in params.items()},
        },
        {"learning_rate": falling, "b1": 0.8, "nesterov": False},
    ],
    "radam": [
        {
            "learning_rate": falling,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "eps_root": 0.02,
            "threshold": 7.0,
        },
        {
            "learning_rate": falling,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "threshold": 4.2,
            "nesterov": True,
        },
    ],
    "adabelief": [
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "eps_root": 0.02},
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "eps": 0.03, "nesterov": True},
    ],
    "lion": [
        {"learning_rate": falling, "b1": 0.8, "b2": 0.95, "weight_decay": growing, "mask": MASK}
    ],
    "lamb": [
        {
            "learning_rate": growing,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 0.03,
            "eps_root": 0.02,
            "weight_decay": growing,
            "mask": MASK,
        }
    ],
    "lars": [
        {
            "learning_rate": falling,
            "weight_decay": growing,
            "weight_decay_mask": MASK,
            "trust_coefficient": 0.02,
            "eps": 0.3,
            "trust_ratio_mask": OTHER_MASK,
            "momentum": 0.6,
            "nesterov": True,
        },
        {"learning_rate": falling, "weight_decay": 0.2, "trust_coefficient": 0.02},
    ],
    "schedule_free_sgd": [
        {"learning_rate": 0.05, "b1": 0.7, "weight_decay": 0.2, "weight_lr_power": 1.5},
        {
            "learning_rate": 0.0625,  # optax's warmup is float32: exact for powers of 2 only
            "warmup_steps": 16,
            "b1": 0.7,
            "weight_lr_power": 1.5,
            "reading": "optax",
        },
    ],
    "schedule_free_adamw": [
        {
            "learning_rate": 0.05,
            "b1": 0.7,
            "b2": 0.95,
            "eps": 0.03,
            "weight_decay": 0.2,
            "weight_lr_power": 1.5,
        },
        {
            "learning_rate": 0.0625,  # optax's warmup is float32: exact for powers of 2 only
            "warmup_steps": 16,
            "b1": 0.7,
            "b2": 0.95,
            "weight_decay": 0.2,
            "weight_lr_power": 1.5,
            "reading": "optax",
        },
    ],
    "muon": [
        {
            "learning_rate": falling,
            "ns_coeffs": (3.0, -3.2, 1.2),
            "ns_steps": 4,
            "beta": 0.8,
            "eps": 0.03,
            "weight_decay": 0.2,
            "nesterov": False,
            "adam_b1": 0.8,
            "adam_b2": 0.95,
            "adam_eps_root": 0.02,
            "adam_weight_decay": 0.3,
            "adam_learning_rate": growing,
        },
        {
            "learning_rate": falling,
            "beta": 0.8,
            "adaptive": True,
            "consistent_rms": 0.2,
            "weight_decay": 0.2,
            "weight_decay_mask": lambda p: jax.tree.map(lambda w: np.ndim(w) > 1, p),
        },
        {"learning_rate": falling, "ns_coeffs": "dion", "beta": 0.8, "preconditioning": "spectral"},
        {"learning_rate": falling, "beta": 0.8, "preconditioning": "schatten"},
        {
            "learning_rate": falling,
            "beta": 0.8,
            "preconditioning": "aol",
            "muon_weight_dimension_numbers": {
                "scalar": None,
                "vector": None,
                "matrix": ((1,), (0,)),
                "cube": ((2,), (1,)),
            },
        },
        {
            "learning_rate": falling,
            "beta": 0.8,
            "muon_weight_dimension_numbers": {
                "scalar": None,
                "vector": None,
                "matrix": None,
                "cube": ((0, 2), (1,)),
            },
        },
    ],
}
OPTAX_ADAFACTOR = [
    {
        "learning_rate": falling,
        "min_dim_size_to_factor": 3,
        "decay_rate": 0.7,
        "decay_offset": -2,
        "clipping_threshold": 1.1,
        "momentum": 0.6,
        "weight_decay_rate": growing,
        "eps": 0.02,
        "weight_decay_mask": MASK,
    },
    {"min_dim_size_to_factor": 3, "multiply_by_parameter_scale": False, "weight_decay_rate": 0.03},
    {"learning_rate": 0.1, "factored": False, "min_dim_size_to_factor": 2},
    {"learning_rate": 0.1, "clipping_threshold": None},
]
# Options that choose a dtype, which float64 oracles do not have.
DTYPES = {"accumulator_dtype", "mu_dtype", "dtype_momentum", "state_dtype"}
