"""Optimizers beside optax's and the oracles, with hyper-parameters away from their defaults."""

import functools

import jax.numpy as jnp
import optax
from optax import contrib
from oracles.cases import CASES, falling
from oracles.optimizers import ORACLES

import fdl
from fdl import optim
from registry.cases import OptimizerCase

# Where optax departs from the paper: the argument of fdl's that follows optax there.
AS_OPTAX = {"rprop": {"delayed": True}}
# Sums whose order XLA chooses: the last places may differ.
ULPS = {"lars": 4, "lamb": 4, "muon_1": 4}
# One rounding in the first of five steps, each of which multiplies small singular values by 3.4.
ULPS["muon_4"] = 512


def halving(count):
    """A schedule whose every rate differs from the one before."""
    return 0.2 * 0.97 ** jnp.float32(count)


def _cases():
    for name, several in CASES.items():
        ours = getattr(optim, name, None)
        if ours is None:
            continue
        theirs = getattr(optax, name, None) or getattr(contrib, name)
        for number, hyper in enumerate(several):
            plain = {key: value for key, value in hyper.items() if key != "reading"}
            axes = plain.get("muon_weight_dimension_numbers")
            if axes is not None:
                plain["muon_weight_dimension_numbers"] = {
                    leaf: None if own is None else contrib.MuonDimensionNumbers(*own)
                    for leaf, own in axes.items()
                }
            yield (
                f"{name}_{number}",
                OptimizerCase(
                    functools.partial(ours, **plain, **AS_OPTAX.get(name, {})),
                    functools.partial(theirs, **plain),
                    functools.partial(ORACLES[name], **hyper),
                    ulps=ULPS.get(f"{name}_{number}", ULPS.get(name, 0)),
                    downhill="warmup_steps" not in hyper,  # from rate 0
                ),
            )


def _departure(name, extra, **hyper):
    """An optimizer in the reading that optax has not, against the oracle's."""
    ours, of_oracle = extra
    return OptimizerCase(
        functools.partial(getattr(optim, name), **hyper, **ours),
        None,
        functools.partial(ORACLES[name], **hyper, **of_oracle),
    )


def _lookahead(library, reset_state):
    fast = library.sgd(0.1, momentum=0.8)
    return functools.partial(library.lookahead, fast, 3, 0.4, reset_state)


_moments = {"b1": 0.8, "b2": 0.95, "eps": 0.03}

OPTIMIZERS = {
    "sgd_schedule": OptimizerCase(
        functools.partial(fdl.sgd, halving), functools.partial(optax.sgd, halving)
    ),
    **dict(_cases()),
    "rprop_of_the_paper": _departure(
        "rprop",
        ({}, {"reading": "irprop-"}),
        learning_rate=0.02,
        eta_minus=0.4,
        eta_plus=1.3,
        min_step_size=0.01,
        max_step_size=0.06,
    ),
    "amsgrad_of_torch": _departure(
        "amsgrad",
        ({"correct_maximum": True}, {"reading": "before"}),
        learning_rate=falling,
        eps_root=0.02,
        **_moments,
    ),
    "nadam_with_scheduled_momentum": _departure(
        "nadam",
        ({"momentum_decay": 0.05}, {"momentum_decay": 0.05}),
        learning_rate=falling,
        eps_root=0.02,
        **_moments,
    ),
    "adadelta_without_a_rate": _departure("adadelta", ({}, {}), rho=0.8, eps=1e-3),
    "schedule_free_sgd_of_the_paper": _departure(
        "schedule_free_sgd",
        ({"look_ahead": False}, {"reading": "paper"}),
        learning_rate=0.0625,
        warmup_steps=16,
        b1=0.7,
        weight_lr_power=1.5,
    ),
    "schedule_free_adamw_of_the_paper": _departure(
        "schedule_free_adamw",
        ({"look_ahead": False}, {"reading": "paper"}),
        learning_rate=0.0625,
        warmup_steps=16,
        b1=0.7,
        b2=0.95,
        weight_decay=0.2,
    ),
    **{
        f"lookahead_{reset}": OptimizerCase(
            _lookahead(optim, reset),
            _lookahead(optax, reset),
            start=optax.LookaheadParams.init_synced,
        )
        for reset in (False, True)
    },
}


def _default(make, *args, **kwargs):
    return OptimizerCase(functools.partial(make, *args, **kwargs))


# With the hyper-parameters that users leave alone. A name may go on after a blank.
DEFAULTS = {
    **{
        name: _default(getattr(optim, name), 0.1)
        for name in [
            "sgd",
            "sign_sgd",
            "adagrad",
            "rmsprop",
            "rprop",
            "adam",
            "adamw",
            "nadam",
            "nadamw",
            "amsgrad",
            "adamax",
            "radam",
            "adabelief",
            "lion",
            "lars",
            "lamb",
            "muon",
            "adafactor",
            "soap",
            "schedule_free_sgd",
            "schedule_free_adamw",
        ]
    },
    "sgd with momentum": _default(optim.sgd, 0.1, 0.9, nesterov=True),
    "rmsprop centered": _default(
        optim.rmsprop, 0.1, centered=True, momentum=0.9, bias_correction=True
    ),
    "adadelta": _default(optim.adadelta),
    "adafactor in factors": _default(
        optim.adafactor, 0.1, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=1e-3
    ),
    "muon adaptive": _default(optim.muon, 0.1, adaptive=True, preconditioning="schatten"),
    "soap of units": _default(optim.soap, 0.1, normalize_grads=True, skip_first=False),
    "lbfgs": _default(optim.lbfgs, 0.1, linesearch=None),
    "sam": _default(optim.sam, optim.adam(0.1), optim.chain(optim.normalize(), optim.sgd(0.05)), 3),
    "lookahead": OptimizerCase(
        functools.partial(optim.lookahead, optim.adam(0.1), 3, 0.5),
        start=optax.LookaheadParams.init_synced,
    ),
}
