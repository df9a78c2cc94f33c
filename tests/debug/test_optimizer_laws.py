"""The public laws find an optimizer that breaks one, and name it."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fdl


def own(update, init=lambda params: {"count": jnp.zeros((), jnp.int32)}):
    """Makes an optimizer u, state = update(g, state, params), which counts its steps."""

    def counted(g, state, params=None):
        return update(g, state, params), {"count": state["count"] + 1}

    return optax.GradientTransformation(init, counted)


def scaled(factor):
    return lambda g, *_: jax.tree.map(lambda g: (factor * g).astype(g.dtype), g)


def memory():
    """An optimizer that remembers its last update outside of its state."""
    last = []

    def update(g, state, params):
        u = jax.tree.map(lambda g: -0.1 * (1 + len(last)) * g, g)
        last.append(1)
        return u

    return own(update)


def changing(g, state, params):
    state["new"] = jnp.zeros(())
    return scaled(-0.1)(g)


def by_order(g, state, params):
    """A rate for each leaf, by its place."""
    leaves, structure = jax.tree.flatten(g)
    return structure.unflatten([-0.1 / (1 + place) * leaf for place, leaf in enumerate(leaves)])


BROKEN = {
    "uphill": (lambda: own(scaled(0.1)), "descends"),
    "a value in Python": (
        lambda: own(lambda g, *_: scaled(-0.1 if float(g["c"]) > -9 else 0)(g)),
        "compiled",
    ),
    "a memory": (memory, "resumed"),
    "a state that changes its dtype": (
        lambda: optax.GradientTransformation(
            lambda params: {"sum": params},
            lambda g, state, params=None: (
                scaled(-0.1)(g),
                {"sum": jax.tree.map(lambda s, g: s + g.astype(jnp.float32), state["sum"], g)},
            ),
        ),
        "dtypes",
    ),
    "updates in float32": (
        lambda: own(lambda g, *_: jax.tree.map(lambda g: -0.1 * g.astype(jnp.float32), g)),
        "dtypes",
    ),
    "a changed state": (lambda: own(changing), "arguments"),
    "rates by order": (lambda: own(by_order), "order"),
    "a mean over all": (
        lambda: own(
            lambda g, *_: jax.tree.map(
                lambda x: -0.1 * x - 0.001 * sum(jnp.mean(leaf) for leaf in jax.tree.leaves(g)), g
            )
        ),
        "empty",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_law_is_named(name):
    make, law = BROKEN[name]
    report = fdl.debug.check_optimizer(make)
    assert law in report.wrong, report
    found = next(each for each in report.findings if each.name == law)
    assert found.found and found.remedy
    if name in ("uphill", "rates by order", "updates in float32"):
        assert report.wrong == [law]


HEALTHY = {
    "sgd": lambda: fdl.sgd(0.1),
    "adamw": lambda: fdl.adamw(0.01),
    "lbfgs": fdl.lbfgs,
    "chain": lambda: fdl.optim.chain(fdl.optim.clip_by_global_norm(1.0), fdl.adam(0.01)),
    "schedule": lambda: fdl.sgd(fdl.optim.cosine_decay_schedule(0.1, 10), momentum=0.9),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_optimizers_keep_all_laws(name):
    report = fdl.debug.check_optimizer(HEALTHY[name])
    assert report.wrong == [], report
    assert len(report.findings) == 8


def test_mistakes_are_told():
    for given, got in ((fdl.adam(0.1), "an optimizer"), (3, "3")):
        message = (
            f"^check_optimizer: expected a function that makes an optimizer, got {got}; pass "
            r"lambda: fdl.adam\(0.01\), for example$"
        )
        with pytest.raises(TypeError, match=message):
            fdl.debug.check_optimizer(given)
    with pytest.raises(TypeError, match=r"^check_optimizer: expected an optimizer of fdl or optax"):
        fdl.debug.check_optimizer(lambda: 3)

    def failing(g, state, params):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        fdl.debug.check_optimizer(lambda: own(failing))


SEEDED_BUGS = {
    "fdl/debug/optimizer_laws.py": (
        "debug/test_optimizer_laws.py",
        [
            ("for dtype in (np.float32, jnp.bfloat16):", "for dtype in (np.float32,):"),
            ("    require(after < before, f", "    require(after != before, f"),
            ("functools.reduce(again.step, rest, copied), whole", "whole, whole"),
            ("return {names[name]: leaf", "return {name: leaf"),
        ],
    ),
}
