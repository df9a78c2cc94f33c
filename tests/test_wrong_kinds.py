"""Values that no option takes, of another kind or out of range: the message tells what to give."""

import inspect
import math
import re

import jax.numpy as jnp
import pytest

import fdl
from fdl import optim

# What each required argument may be. Functions of arrays are not here; other tests cover them.
GIVEN = {
    "features": 4,
    "classes": 3,
    "vocabulary": 11,
    "heads": 2,
    "layers": 1,
    "hidden": 8,
    "outputs": 3,
    "length": 8,
    "image": 8,
    "patch": 4,
    "count": 5,
    "window": 2,
    "size": 2,
    "sizes": 2,
    "scale": 2,
    "kernel_size": 3,
    "factor": 2,
    "code": 2,
    "rank": 2,
    "cell": fdl.lstm_cell(3),
    "layer": fdl.dense(3),
    "expert": fdl.dense(3),
    "rate": 0.1,
    "degrees": 10.0,
    "pixels": 1,
    "multiplier": 1,
    "shape": (2,),
    "learning_rate": 0.1,
    "init_value": 0.1,
    "end_value": 0.01,
    "peak_value": 0.1,
    "value": 0.1,
    "decay": 0.9,
    "decay_rate": 0.9,
    "decay_steps": 10,
    "transition_steps": 5,
    "warmup_steps": 3,
    "power": 1.0,
    "boundaries": [3],
    "schedules": [optim.constant_schedule(0.1)] * 2,
    "boundaries_and_scales": {3: 0.1},
    "cosine_kwargs": [{"init_value": 0.1, "peak_value": 0.2, "decay_steps": 5, "warmup_steps": 1}],
    "inner": fdl.sgd(0.1),
    "optimizer": fdl.sgd(0.1),
    "opt": fdl.sgd(0.1),
    "base_optimizer": fdl.sgd(0.1),
    "fast_optimizer": fdl.sgd(0.1),
    "adv_optimizer": fdl.sgd(0.1),
    "inner_factory": fdl.sgd,
    "max_consecutive_errors": 2,
    "max_delta": 1.0,
    "max_norm": 1.0,
    "clipping": 0.1,
    "threshold": 1.0,
    "every_k_schedule": 2,
    "mask": "**",
    "transforms": {"**": fdl.sgd(0.1)},
    "dtype": "bfloat16",
    "sync_period": 3,
    "slow_step_size": 0.5,
    "stddev": 0.1,
    "k": 2,
}
MORE = {"mlp": {"hidden": [4]}, "autoencoder": {"hidden": [4]}}
MORE["einsum_dense"] = {"equation": "...d,df->...f", "sizes": {"f": 3}}
WRONG = ["x", None, -1, 1.5, (1,), [], {}, object(), (2, "a"), float("nan")]
ROOMS = {
    "layers": fdl.layers,
    "models": fdl.models,
    "optimizers": optim.optimizers,
    "schedules": optim.schedules,
    "wrappers": optim.wrappers,
    "metrics": fdl.metrics,
    "initializers": fdl.initializers,
}


def factories(room):
    """(function, its arguments by name) of each name whose required arguments are in GIVEN."""
    for name in room.__all__:
        f = getattr(room, name)
        if not inspect.isfunction(f):
            continue
        given = GIVEN | MORE.get(name, {})
        parameters = [
            each
            for each in inspect.signature(f).parameters.values()
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        parameters = [each for each in parameters if each.name != "who"]
        needed = [each.name for each in parameters if each.default is each.empty]
        if set(needed) <= set(given):
            yield name, f, {each: given[each] for each in needed}, [p.name for p in parameters]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("room", ROOMS)
def test_a_value_of_another_kind_is_told(room):
    tried, raw = 0, []
    for name, f, given, options in factories(ROOMS[room]):
        for option in options:
            for value in WRONG:
                tried += 1
                try:
                    f(**{**given, option: value})
                except Exception as error:
                    if "expected" not in str(error).partition("\n")[0]:
                        raw.append(f"{name}({option}={value!r:.30}): {error!r:.100}")
    assert not raw, "\n".join(raw)
    assert tried >= 20


SGD = optim.sgd(0.1)
OUT_OF_RANGE = {
    "lbfgs: expected a finite memory_size >= 1, got inf; 10 is usual": lambda: optim.lbfgs(
        memory_size=math.inf
    ),
    "muon: expected a finite ns_steps >= 1, got inf; 5 is usual": lambda: optim.muon(
        0.1, ns_steps=math.inf
    ),
    "accumulate: expected a finite every_k_schedule >= 1, got inf; pass": lambda: optim.accumulate(
        SGD, math.inf
    ),
    "sam: expected a finite sync_period >= 1, got inf; the paper": lambda: optim.sam(
        SGD, SGD, sync_period=math.inf
    ),
    "lookahead: expected a finite sync_period >= 1, got inf; 5 is": lambda: optim.lookahead(
        SGD, math.inf, 0.5
    ),
    "soap: expected max_precond_dim >= 0, got -3; 0 rotates no axis": lambda: optim.soap(
        0.1, max_precond_dim=-3
    ),
    "sgdr_schedule: expected at least one cycle, got none; pass [{": lambda: optim.sgdr_schedule(
        []
    ),
    "sgdr_schedule: expected decay_steps in each cycle, got init_value; add": lambda: (
        optim.sgdr_schedule([{"init_value": 0.1}])
    ),
    "scale_by_zoom_linesearch: expected slope_rtol in [0, 1], got 3; 1e-4 is usual": lambda: (
        optim.scale_by_zoom_linesearch(5, slope_rtol=3)
    ),
    "scale_by_zoom_linesearch: expected curv_rtol >= 0, got -1; 0.9 is usual": lambda: (
        optim.scale_by_zoom_linesearch(5, curv_rtol=-1)
    ),
    "scale_by_zoom_linesearch: expected increase_factor > 1, got 0.5; 2 is": lambda: (
        optim.scale_by_zoom_linesearch(5, increase_factor=0.5)
    ),
    "centralize: expected out_axis in [-2, 2), got 5 for a gradient of shape [2, 3]": lambda: (
        optim.centralize(out_axis=5).update(jnp.ones((2, 3)), optax_empty())
    ),
    "confusion: expected classes >= 2, got 1; use two": lambda: fdl.metrics.confusion(1),
    "precision: expected classes for 'macro' and 'micro' and none for 'binary', got 1 for 'macro'; "
    "pass classes=2 or more": lambda: fdl.metrics.precision("macro", classes=1),
}


def optax_empty():
    return optim.centralize().init(jnp.ones((2, 3)))


@pytest.mark.parametrize("told", OUT_OF_RANGE)
def test_a_value_out_of_range_is_told(told):
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        OUT_OF_RANGE[told]()
