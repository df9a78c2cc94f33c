"""Where a NaN or an infinity comes from: seeded faults, each with its path, direction and step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.layers import dense

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
Y = np.ones((4, 3), np.float32)

# Faulty functions of (x, g), where g is 1 in a healthy block and 0 (or large) in the faulty one;
# (function, the value of g in the faulty block, direction, operation).
FORWARD = {
    "log of 0": (lambda x, g: x + jnp.log(g), 0.0, "log"),
    "division by 0": (lambda x, g: x / g, 0.0, "div"),
    "overflow of exp": (lambda x, g: x * 0.1 + jnp.exp(100 * (g - 1)) - 1, 3.0, "exp"),
    "root of a negative number": (lambda x, g: x + jnp.sqrt(g), -1.0, "sqrt"),
    "overflow of a product": (lambda x, g: x + g * g, 1e30, "mul"),
    "mask of a whole row": (
        lambda x, g: x * jax.nn.softmax(jnp.where(g > 0, x, -jnp.inf), axis=-1),
        0.0,
        "sub",
    ),
}
BACKWARD = {
    "root at 0": (lambda x, g: x + jnp.sqrt(g - 1 + 1), 0.0, "div"),
    "log behind a where": (
        lambda x, g: jnp.where(g > 0.5, x + jnp.log(g), x),
        0.0,
        "div",
    ),
    "norm of zeros": (
        lambda x, g: x + jnp.sqrt(jnp.square(x * g).sum(-1, keepdims=True)),
        0.0,
        "div",
    ),
    "power at 0": (lambda x, g: x + g**0.5, 0.0, "pow"),
    "a rule of its own": (lambda x, g: x + g * _wrong_slope(x * g), 0.0, "div"),
}


@jax.custom_vjp
def _wrong_slope(x):
    return x


_wrong_slope.defvjp(lambda x: (x, x), lambda x, slope: (slope / x * x,))


def faulty(f):
    """A layer y = f(x, g), with the parameter g [1]."""

    def init(key, x):
        return {"g": jnp.ones(1)}, {}

    def apply(params, state, x, *, key=None, train=False):
        return f(x, params["g"]), state

    return fdl.Layer("faulty", init, apply)


BODIES = {
    "repeat": lambda layer: fdl.repeat(fdl.chain(dense(3), wrong=layer), 3, scan=False),
    "scan": lambda layer: fdl.repeat(fdl.chain(dense(3), wrong=layer), 3, scan=True),
    "nested scan": lambda layer: fdl.repeat(
        fdl.repeat(fdl.chain(dense(3), wrong=layer), 3, scan=True, name="inner"), 2, scan=True
    ),
    "remat": lambda layer: fdl.repeat(fdl.remat(fdl.chain(dense(3), wrong=layer)), 3, scan=False),
}
PATHS = dict.fromkeys(BODIES, "body/1/wrong") | {"nested scan": "body/1/2/wrong"}

# Each fault inside a scan, and half of them in the other bodies too.
FAULTS = [("scan", fault) for fault in FORWARD | BACKWARD]
FAULTS += [("repeat", "log of 0"), ("remat", "overflow of a product"), ("repeat", "root at 0")]
FAULTS += [("nested scan", "division by 0"), ("nested scan", "power at 0")]
FAULTS += [("remat", "norm of zeros")]


def objective_of(body, f):
    model = fdl.chain(first=dense(3), body=BODIES[body](faulty(f)), head=dense(3))
    params, state = model.init(jax.random.key(0), X)
    return fdl.supervised(model, fdl.squared_error), params, state


def changed(params, path, value):
    """The params with another value of one leaf."""
    return {
        name: changed(leaf, path[len(name) + 1 :], value)
        if isinstance(leaf, dict) and path.startswith(f"{name}/")
        else jnp.full_like(leaf, value)
        if path == name
        else leaf
        for name, leaf in params.items()
    }


@pytest.mark.parametrize(("body", "fault"), FAULTS)
def test_seeded_faults_in_layers(body, fault):
    direction = "forward" if fault in FORWARD else "backward"
    f, g, operation = (FORWARD | BACKWARD)[fault]
    objective, params, state = objective_of(body, f)
    params = changed(params, f"{PATHS[body]}/g", g)
    run = fdl.start(params, fdl.sgd(0.1), state=state)._replace(step=jnp.uint32(6))
    found = fdl.debug.find_nonfinite(objective, run, (X, Y))
    assert found[:4] == (PATHS[body], direction, 7, operation)
    assert found.source.startswith("test_nonfinite.py:")


def test_a_healthy_network_has_no_fault():
    """With the infinities of a mask, and of padding."""

    def masked(x):
        seen = jnp.tril(jnp.ones((4, 4), bool))
        scores = jnp.where(seen, x @ x.swapaxes(1, 2), -jnp.inf)
        return jax.nn.softmax(scores) @ x

    block = fdl.residual(dense(6), masked)
    model = fdl.chain(fdl.repeat(block, 2, scan=True), fdl.max_pool((2,), padding="SAME"), dense(5))
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype("float32")
    params, state = model.init(jax.random.key(0), x)
    run = fdl.start(params, fdl.sgd(0.01), state=state)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    y = np.zeros((2, 2), "int32")
    assert fdl.debug.find_nonfinite(objective, run, (x, y), optimizer=fdl.sgd(0.01)) is None


def quadratic(params, batch):
    return sum(jnp.square(leaf - 1).mean() for leaf in jax.tree.leaves(params)) + 0 * batch.sum()


def with_rule(rule):
    """An optimizer of optax whose update of a leaf is rule(gradient)."""
    return optax.stateless(lambda updates, params: {n: rule(n, g) for n, g in updates.items()})


OPTIMIZER_FAULTS = {
    "no epsilon": (fdl.adam(0.1, eps=0.0), "b", "div"),
    "rate of no number": (fdl.sgd(lambda step: jnp.log(jnp.float32(step) - 1)), "**", "log"),
    "one parameter": (with_rule(lambda n, g: g / g if n == "c" else -0.1 * g), "c", "div"),
    "overflow": (with_rule(lambda n, g: g * 1e30 * 1e30 if n == "a" else -g), "a", "mul"),
}


@pytest.mark.parametrize("name", OPTIMIZER_FAULTS)
def test_seeded_faults_in_the_optimizer(name):
    """The gradient of b is 0 everywhere, and that of c in one element."""
    optimizer, path, operation = OPTIMIZER_FAULTS[name]
    params = {"a": jnp.zeros(3), "b": jnp.ones(2), "c": jnp.array([0.0, 1.0])}
    run = fdl.start(params, optimizer)
    if name == "no epsilon":
        run = run._replace(params=params | {"c": jnp.zeros(2)})
    found = fdl.debug.find_nonfinite(fdl.plain(quadratic), run, X, optimizer=optimizer)
    assert found[:4] == (path, "optimizer", 1, operation)
    assert fdl.debug.find_nonfinite(fdl.plain(quadratic), run, X) is None


def test_numbers_that_were_there_before():
    objective, params, state = objective_of("scan", lambda x, g: x * g)
    optimizer = fdl.adam(0.1)
    run = fdl.start(params, optimizer, state=state)
    x = np.where(X[2, 1] == X, np.inf, X)
    find = fdl.debug.find_nonfinite
    assert find(objective, run, (x, Y))[:5] == ("0", "batch", 1, "", "inf")
    named = {"x": X, "y": np.full_like(Y, np.nan)}
    assert find(objective, run, named)[:5] == ("y", "batch", 1, "", "nan")
    wrong = run._replace(params=changed(params, "body/2/wrong/g", -np.inf))
    assert find(objective, wrong, (X, Y))[:5] == ("body/2/wrong/g", "params", 1, "", "inf")
    state = {"norm": {"mean": jnp.array([0.0, jnp.nan])}}
    assert find(objective, run._replace(state=state), (X, Y))[:2] == ("norm/mean", "state")
    moments = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), run.opt_state)
    assert find(objective, run._replace(opt_state=moments), (X, Y)).direction == "opt_state"


def test_examples_of_weight_0_do_not_count():
    objective, params, state = objective_of("scan", lambda x, g: x * g)
    run = fdl.start(params, fdl.sgd(0.1), state=state)
    x = np.where(np.arange(4)[:, None] == 1, np.nan, X)
    batch = {"x": x, "y": Y, "weight": np.array([1.0, 0, 1, 1], "float32")}
    assert fdl.debug.find_nonfinite(objective, run, batch) is None


def test_a_function_of_your_own():
    """Names come from named_scope; without them the operation and its line say where."""

    def loss(params, batch):
        def step(h, w):
            return jnp.tanh(h @ w), None

        h, _ = jax.lax.scan(step, batch, params["layers"])
        with jax.named_scope("decoder"), jax.named_scope("norm"):
            scale = jax.lax.cond(params["on"] > 0, lambda h: h.std(), lambda h: h.mean(), h)
            h = h / scale
        counted = jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, 0)
        return jnp.square(h).mean() + jnp.log(params["last"]).sum() * counted

    params = {"layers": jnp.zeros((3, 3, 3)), "last": jnp.ones(1), "on": jnp.ones(())}
    find = lambda params: fdl.debug.find_nonfinite(  # noqa: E731
        fdl.plain(loss), fdl.start(params, fdl.sgd(0.1)), X
    )
    assert find(params)[:4] == ("decoder/norm", "forward", 1, "div")
    params["layers"] = jnp.stack([jnp.eye(3)] * 3)
    assert find(params) is None
    found = find(params | {"last": jnp.zeros(1)})
    assert found[:5] == ("", "forward", 1, "log", "inf") and found.source.endswith(" (loss)")
    assert repr(found).startswith(
        "<Nonfinite: inf in forward, outside all layers, step 1, by log in test_nonfinite.py:"
    )


def test_a_loss_that_is_a_constant_infinity():
    run = fdl.start({"w": jnp.ones(3)}, fdl.sgd(0.1))
    objective = fdl.plain(lambda params, batch: jnp.where(params["w"].sum() > 2, jnp.inf, 0.0))
    found = fdl.debug.find_nonfinite(objective, run, X)
    assert (found.direction, found.value) == ("forward", "inf")


def test_checkpoints_say_the_step(tmp_path):
    """g falls by 1/8 a step from 1, in one block only: its logarithm is -inf after 8 steps."""
    objective, params, state = objective_of("scan", lambda x, g: x + jnp.log(jnp.abs(g)))
    down = lambda updates, params: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda keys, g: 0 * g - (0.125 if "'1'" in str(keys) and g.shape == (1,) else 0),
        updates,
    )
    optimizer = optax.stateless(down)
    saved = fdl.checkpoints(tmp_path, keep=None)
    run = fdl.start(params, optimizer, state=state)
    how = {"batch_size": 4, "record_every": 3, "watch": [saved]}
    with pytest.warns(UserWarning, match="got nan at "):
        fdl.fit(objective, optimizer, run, (X, Y), steps=20, **how)
    found = fdl.debug.find_nonfinite(saved)
    assert found[:4] == ("body/1/wrong", "forward", 9, "log")


def test_mistakes_are_told(tmp_path):
    objective, params, state = objective_of("scan", lambda x, g: x * g)
    run = fdl.start(params, fdl.sgd(0.1), state=state)
    with pytest.raises(
        TypeError, match=r"^find_nonfinite: expected an objective first, got 3; make"
    ):
        fdl.debug.find_nonfinite(3, run, X)
    with pytest.raises(
        TypeError, match=r"^find_nonfinite: expected a run, or a result of fit, got "
    ):
        fdl.debug.find_nonfinite(objective, params, X)
    with pytest.raises(
        TypeError, match=r"^find_nonfinite: expected an optimizer of fdl or optax, got the fun"
    ):
        fdl.debug.find_nonfinite(objective, run, X, optimizer=fdl.adam)
    with pytest.raises(
        ValueError, match=r"^find_nonfinite: expected checkpoints that watched a fit"
    ):
        fdl.debug.find_nonfinite(fdl.checkpoints(tmp_path))


SEEDED_BUGS = {
    "fdl/debug/nonfinite.py": (
        "debug/test_nonfinite.py",
        [
            ("lambda origin: not origin.meant)", "lambda origin: True)"),
            ("first = min(reached.values())", "first = max(reached.values())"),
            ('if wrong and kind == "inf"', "if wrong"),
            ('and not (part == "opt_state" and value != "nan")', ""),
            ("int(run.step) + 1)", "int(run.step))"),
            ('path = "**" if several else', "path ="),
            ('if wrong and kind == "inf"', "if False"),
        ],
    ),
    "fdl/debug/tracing.py": (
        "debug/test_nonfinite.py",
        [
            ("*carry, *row], (*names, number))", "*carry, *row], names)"),
            ('if name == "*" and numbers else name', 'if name == "*" and numbers and 0 else name'),
            ("numbers.pop()", "numbers.pop(0)"),
            ('elif part.name in ("jvp", "transpose"):', "elif False:"),
            ("reversed(order) if", "order if"),
            ("elif name != RECOMPUTED:", "else:"),
        ],
    ),
}
