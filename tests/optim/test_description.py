"""What is said of an optimizer: its parts, and its learning rate."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.optim.description import description
from tests.registry import OPTIMIZERS


def halving(count):
    return jnp.exp2(-count.astype(jnp.float32))


RATES = {
    "constant": (lambda: fdl.sgd(0.25), 0.25),
    "schedule": (lambda: fdl.adam(halving), 0.125),
    "masked": (lambda: fdl.adamw(halving, mask="a"), 0.125),
    "wrapped": (lambda: fdl.optim.apply_if_finite(fdl.sgd(halving), 3), 0.125),
    "accumulated": (lambda: fdl.optim.accumulate(fdl.sgd(halving), 3), 0.5),
    "injected": (lambda: fdl.optim.inject_hyperparams(fdl.sgd)(learning_rate=0.25), 0.25),
    "of optax": (lambda: optax.adam(halving), 0.125),
    "none": (lambda: fdl.optim.scale_by_adam(), None),
    "two": (lambda: fdl.optim.partition({"a": fdl.sgd(0.1), "b": fdl.sgd(0.2)}), None),
}


@pytest.mark.parametrize("kind", RATES)
def test_the_rate_of_the_next_step_stands_in_every_record(kind, standard_promotion):
    make, expected = RATES[kind]
    optimizer, ones = make(), jnp.ones(8)
    objective = fdl.plain(lambda params, batch: jnp.mean((params["a"] + params["b"] - batch) ** 2))
    run = fdl.start({"a": jnp.zeros(()), "b": jnp.zeros(())}, optimizer)
    result = fdl.fit(objective, optimizer, run, ones, batch_size=4, steps=3, record_every=3)
    assert result.history[-1].get("learning_rate") == expected
    assert fdl.optim.rate_of(optimizer)(result.run) == expected


def test_a_description_has_the_parts_and_their_numbers():
    assert description(fdl.sgd(0.1, momentum=0.9)) == (
        "trace(decay=0.9, nesterov=False), scale_by_learning_rate(learning_rate=0.1, sign=-1)"
    )
    assert description(fdl.adamw(0.1, mask="**/w")) == (
        "scale_by_adam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, nesterov=False), masked("
        "mask='**/w', mask_compatible_extra_args=False, add_decayed_weights(weight_decay=0.0001)), "
        "scale_by_learning_rate(learning_rate=0.1, sign=-1)"
    )
    assert description(fdl.sgd(halving)).endswith("scale_by_learning_rate(sign=-1, halving())")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_description_that_is_the_same_each_time(name):
    found = description(OPTIMIZERS[name].ours())
    assert found == description(OPTIMIZERS[name].ours())
    assert found and " at 0x" not in found
    assert len(found) < 2000
    assert np.char.count(found, "(") == np.char.count(found, ")")


SEEDED_BUGS = {
    "fdl/optim/description.py": (
        "optim/test_description.py",
        [
            ("if len(counts) == 1 else None", "if len(counts) == 2 else None"),
            ("if len(leaves) == 1:", "if len(leaves) == 9:"),
            ("len(constants) + len(schedules) != 1", "not constants + schedules"),
            ("listed if name in (inside, *PLUMBING)", "listed if name in PLUMBING"),
        ],
    ),
}
