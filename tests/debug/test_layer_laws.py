"""The public laws find a layer that breaks one, and name it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl

X = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")


def layer(f, state=None):
    """A layer y, state = f(x, w, state, train)."""

    def init(key, x):
        return {"w": fdl.initializers.normal(1.0)(key, (3,), jnp.float32)}, dict(state or {})

    def apply(params, state, x, *, key=None, train=False):
        return f(x, params["w"], state, train)

    return fdl.Layer("own", init, apply)


@jax.custom_vjp
def twice(x):
    return 2 * x


twice.defvjp(lambda x: (2 * x, None), lambda _, slope: (3 * slope,))
CALLS = []


def counting(x, w, state, train):
    CALLS.append(1)
    return x * w + len(CALLS), state


def spoiling(x, w, state, train):
    state["new"] = jnp.zeros(())
    return x * w, state


BROKEN = {
    "value in Python": (
        lambda x, w, state, train: (x * w if float(w[0]) else x, state),
        "compiled",
    ),
    "calls that count": (counting, "compiled"),
    "wrong gradient": (lambda x, w, state, train: (twice(x) * w, state), "gradient"),
    "state of another dtype": (
        lambda x, w, state, train: (x * w, {"n": (state["n"] + 1).astype(jnp.float16)}),
        "scan",
    ),
    "state in evaluation": (
        lambda x, w, state, train: (x * w, {"n": state["n"] + 1}),
        "evaluation",
    ),
    "reshape of nothing": (
        lambda x, w, state, train: (x.reshape(len(x), -1) * w, state),
        "no examples",
    ),
    "arguments changed": (spoiling, "arguments"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_law_is_named(name):
    f, law = BROKEN[name]
    report = fdl.debug.check_layer(layer(f, {"n": jnp.zeros(())}), X)
    assert law in report.wrong, report
    found = next(each for each in report.findings if each.name == law)
    assert found.remedy
    if name in ("wrong gradient", "reshape of nothing", "state in evaluation"):
        assert report.wrong == [law]


def test_healthy_layers_keep_all_laws():
    for healthy in (fdl.chain(fdl.dense(4), fdl.dropout(0.3)), jnp.sin):
        report = fdl.debug.check_layer(healthy, X)
        assert report.wrong == [], report


def test_mistakes_are_told():
    with pytest.raises(
        TypeError, match=r"^check_layer: expected a Layer or a function of one array"
    ):
        fdl.debug.check_layer(3, X)
    with pytest.raises(fdl.PathError, match=r"^dense: expected x of a floating dtype, got int"):
        fdl.debug.check_layer(fdl.dense(3), np.ones((4, 3), "int32"))


SEEDED_BUGS = {
    "fdl/debug/layer_laws.py": (
        "debug/test_layer_laws.py",
        [
            ("assert_equal(trial.answer(False)[1], trial.state)", "pass"),
            ("            check_gradient(loss, floating)", "            pass"),
            (
                "found or trial.of_nothing(trial.params, trial.state, *trial.nothing)",
                'trial.gradients["plain"]',
            ),
            ("trial.answer(train), **NEAR)", "found, **NEAR)"),
        ],
    ),
}
