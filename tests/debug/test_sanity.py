"""Each seeded fault of a training setup is found, and a healthy one has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.debug import sanity

RNG = np.random.default_rng(0)
X = RNG.standard_normal((160, 6)).astype("float32")
Y = (np.argmax(X @ RNG.standard_normal((6, 3)), axis=1)).astype("int32")


def unlucky(x):
    return x + jnp.asarray(np.random.default_rng().standard_normal(3), jnp.float32)


class Peeking:
    """An objective whose network sees the label."""

    def __call__(self, params, state, batch, key):
        x, y = batch
        logits = x @ params["w"] + params["peek"] * jax.nn.one_hot(y, 3)
        return fdl.softmax_cross_entropy(logits, y).mean(), (state, {})


def constant(x):
    return jnp.zeros_like(x)


ce = fdl.softmax_cross_entropy
by_hand = lambda y_pred, y: -(jax.nn.log_softmax(y_pred) * jax.nn.one_hot(y, 3)).sum(-1)  # noqa: E731
FAULTS = {
    "label too large": ("labels", {"data": (X, np.where(np.arange(160) == 7, 3, Y))}),
    "label too large for a loss by hand": ("labels", {"loss": by_hand, "data": (X, Y + 1)}),
    "pixels from 0 to 255": ("inputs", {"data": (255 * np.abs(X), Y)}),
    "one feature in other units": ("inputs", {"data": (X * [1, 1, 1, 1, 1, 1e4], Y)}),
    "tiny features": ("inputs", {"data": (X / 1e4, Y)}),
    "test rows in training": ("overlap", {"test": (X[[3, 5, 9]], Y[[3, 5, 9]])}),
    "log in the network": ("finite", {"model": fdl.chain(jnp.log, fdl.dense(3))}),
    "large weights": (
        "loss at start",
        {"model": fdl.dense(3, w_init=fdl.initializers.normal(30.0))},
    ),
    "metric above 1": ("metrics", {"accuracy": lambda y_pred, y: 2.0 + fdl.accuracy(y_pred, y)}),
    "metric of no number": (
        "metrics",
        {"error": lambda y_pred, y: fdl.accuracy(y_pred, y) * np.nan},
    ),
    "metric of the wrong class": (
        "metrics",
        {"accuracy": lambda y_pred, y: fdl.accuracy(-y_pred, y)},
    ),
    "random numbers of NumPy": ("determinism", {"model": fdl.chain(fdl.dense(3), unlucky)}),
    "mean over the batch": (
        "leakage",
        {"model": fdl.chain(lambda x: x - x.mean(0), fdl.dense(3))},
    ),
    "softmax over the batch": (
        "leakage",
        {"loss": lambda y_pred, y: -jax.nn.log_softmax(y_pred, 0)[jnp.arange(len(y)), y]},
    ),
    "learning rate too small": ("one batch", {"rate": 1e-7}),
    "input cut off": ("one batch", {"model": fdl.chain(constant, fdl.dense(3))}),
    "layer without use": (
        "gradients",
        {"model": fdl.network(lambda f, x: f.a(x) + 0 * f.b(x), a=fdl.dense(3), b=fdl.dense(3))},
    ),
    "dead rectifier": (
        "gradients",
        {
            "model": fdl.network(
                lambda f, x: f.out(x) + f.after(fdl.relu(f.before(x) - 1e3)),
                **{"out": fdl.dense(3), "before": fdl.dense(4), "after": fdl.dense(3)},
            )
        },
    ),
}


def setup_of(model=None, loss=ce, data=(X, Y), rate=0.5, test=None, **metrics):
    model = model or fdl.dense(3)
    optimizer = fdl.sgd(rate)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, "int32" if leaf is data[1] else None), data)
    params, state = model.init(jax.random.key(0), data[0])
    run = fdl.start(params, optimizer, state=state)
    objective = fdl.supervised(model, loss, **metrics)
    return sanity._setup(objective, optimizer, run, data, test, 32, 100)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_seeded_fault_is_found(fault):
    name, given = FAULTS[fault]
    found = sanity._finding(name, sanity._CHECKS[name], setup_of(**given))
    assert found.verdict == "WRONG" and found.remedy, found
    if fault == "layer without use":
        assert found.found == "the gradient is 0 at b/b, b/w"


def test_the_size_of_tiny_features_is_told():
    tiny = np.tile([[0.0014], [-0.0014]], (80, 6)).astype("float32")
    found = sanity._finding("inputs", sanity._CHECKS["inputs"], setup_of(data=(tiny, Y)))
    assert found.found == "the largest mean or spread of a feature is 0.0014"
    assert found.remedy == "divide by the spread of the training set"


def test_a_healthy_setup_has_no_fault():
    optimizer = fdl.sgd(0.3)
    model = fdl.chain(fdl.dense(16), fdl.batch_norm(), fdl.relu, fdl.dropout(0.1), fdl.dense(3))
    params, state = model.init(jax.random.key(0), X)
    objective = fdl.supervised(model, ce, accuracy=fdl.accuracy)
    run = fdl.start(params, optimizer, state=state)
    report = fdl.debug.check(objective, optimizer, run, (X, Y), test=(X[:9] + 1, Y[:9]), steps=100)
    assert report.wrong == []
    assert {each.verdict for each in report.findings} == {"ok"}
    first = repr(report).splitlines()[0]
    assert first == "labels           ok  integers from 0 to 2"


def test_an_objective_of_your_own():
    params = {"w": jnp.zeros((6, 3)), "peek": jnp.zeros(())}
    optimizer = fdl.sgd(1.0)
    run = fdl.start(params, optimizer)
    report = fdl.debug.check(Peeking(), optimizer, run, (X, Y), steps=200)
    verdicts = {each.name: each.verdict for each in report.findings}
    assert report.wrong == ["shuffled labels"], report
    assert [name for name, each in verdicts.items() if each == "not known"] == ["inputs", "overlap"]


def test_mistakes_are_told():
    optimizer = fdl.sgd(0.1)
    run = fdl.start(jnp.ones(3), optimizer)
    with pytest.raises(TypeError, match=r"^check: expected an objective first, got 3; make one"):
        fdl.debug.check(3, optimizer, run, X)
    with pytest.raises(ValueError, match=r"^check: expected steps >= 1, an integer, got 0; 200"):
        fdl.debug.check(Peeking(), optimizer, run, X, steps=0)


SEEDED_BUGS = {
    "fdl/debug/sanity.py": (
        "debug/test_sanity.py",
        [
            ("low >= 0 and high < classes", "low >= 0 and high <= classes"),
            ("not worst.max() <= 10", "not worst.mean() <= 10"),
            ("if worst.max() < 0.01", "if worst.max() < 1e-9"),
            ("(SAME + 2 * by_chance)", "(1 + by_chance)"),
            ("3 * abs(expected)", "30 * abs(expected)"),
            ("after[name] <= 0.5", "after[name] < 0"),
            ("fraction and not 0 <= value <= 1", "fraction and value < 0"),
            ("again(setup.run, setup.few)", "setup.passed(setup.run)"),
            ("before - after >= 0.5 * abs(before)", "before >= after"),
            ("any(np.asarray(of[path]).any() for of in both)", "True"),
            ("jnp.roll(leaf, 1, axis=0)", "jnp.roll(leaf, 1)[::-1]"),
            ("0.5 * abs(start) if integers", "right if integers"),
        ],
    ),
}
