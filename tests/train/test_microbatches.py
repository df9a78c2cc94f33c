"""Microbatches: the loss and the gradient of the whole batch, with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.toys import running_mean

B = 24


@functools.cache
def model():
    return fdl.chain(fdl.dense(16), fdl.tanh, fdl.dense(3))


def data(weighted):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)).astype(np.float32)
    y = rng.integers(0, 3, 60).astype(np.int32)
    weight = rng.random(60).astype(np.float32) * (rng.random(60) < 0.5)
    return (x, y, weight) if weighted else (x, y)


OBJECTIVES = {
    "supervised": lambda: fdl.supervised(
        model(), fdl.softmax_cross_entropy, accuracy=fdl.accuracy, f1=fdl.metrics.f1("macro", 3)
    ),
    "plain": lambda: fdl.plain(lambda params, batch: _mean_loss(params, batch)),
}


def _mean_loss(params, batch):
    logits, _ = model().apply(params, {}, batch[0])
    return fdl.softmax_cross_entropy(logits, batch[1]).mean()


@functools.cache
def begun(dtype="float32"):
    """(params, state) of the model, by one program; one dtype is of one setting of x64."""
    shape = jax.ShapeDtypeStruct((1, 5), dtype)
    return jax.jit(lambda key: model().init(key, shape))(jax.random.key(0))


def start(optimizer, dtype="float32"):
    params, state = begun(dtype)
    return fdl.start(params, optimizer, state=state)


def compiled(objective, optimizer):
    """`(run, xy, microbatch) -> (run, values of the means)` of one step, in one program."""

    def step(run, xy, microbatch=None):
        run, means = fdl.train_step(objective, optimizer, run, xy, B, microbatch)
        return run, {name: mean.value() for name, mean in means.items()}

    return jax.jit(step, static_argnums=2)


@functools.cache
def step_of(kind):
    return compiled(OBJECTIVES[kind](), fdl.sgd(0.5))


@functools.cache
def whole_step(kind, weighted):
    """In float64, from the same weights for every size of a microbatch."""
    return step_of(kind)(start(fdl.sgd(0.5), "float64"), wide(weighted), None)


def wide(weighted):
    return jax.tree.map(
        lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, data(weighted)
    )


@pytest.mark.parametrize("microbatch", [1, 4, 12, 24])
@pytest.mark.parametrize(
    ("kind", "weighted"), [("supervised", False), ("supervised", True), ("plain", False)]
)
def test_a_step_in_microbatches_is_the_step_of_the_batch(kind, weighted, microbatch):
    with jax.enable_x64(True):
        run = start(fdl.sgd(0.5), "float64")
        whole, means = whole_step(kind, weighted)
        parts, found = step_of(kind)(run, wide(weighted), microbatch)
        for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        for name in means:
            assert float(found[name]) == pytest.approx(float(means[name]))


def test_the_state_goes_from_one_microbatch_to_the_next():
    """The running mean is moved once by each microbatch, in their order."""
    net = fdl.chain(running_mean(), fdl.dense(2))
    x = np.random.default_rng(0).standard_normal((B, 3)).astype(np.float32)
    key = jax.random.key(0)
    params, state = jax.jit(net.init)(key, x[:1])
    objective, optimizer = fdl.supervised(net, fdl.squared_error), fdl.sgd(0.1)
    run = fdl.start(params, optimizer, state=state)
    found, _ = compiled(objective, optimizer)(run, (x, x[:, :2]), 8)
    rows, _ = jax.jit(lambda rows: fdl.draw_batch(rows, 0, 0, B))((x, x))
    moved = jax.jit(lambda state, piece: net.apply(params, state, piece, train=True, key=key)[1])
    for piece in np.asarray(rows).reshape(3, 8, 3):
        state = moved(state, piece)
    for a, b in zip(*map(jax.tree.leaves, (found.state, state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_dropout_differs_between_microbatches():
    masks = []

    def objective(params, state, batch, key):
        masks.append(key)
        return jnp.mean(params * jax.random.normal(key, batch.shape)), (state, {})

    def mean_draw(key):
        key = jax.random.fold_in(key, 0)
        draws = [jax.random.normal(jax.random.fold_in(key, n), (4,)) for n in range(2)]
        return jnp.stack(draws).mean()

    run = fdl.start(np.ones((), np.float32), fdl.sgd(1.0))
    step = jax.jit(lambda run, rows: fdl.train_step(objective, fdl.sgd(1.0), run, rows, 8, 4)[0])
    found = step(run, np.ones(8, np.float32))
    expected = float(jax.jit(mean_draw)(jax.random.key(0)))
    assert float(found.params) == pytest.approx(1 - expected, rel=1e-5)


@pytest.mark.parametrize("name", ["sam", "lbfgs"])
def test_optimizers_that_ask_for_the_loss_again_get_that_of_the_batch(name):
    optimizer = fdl.lbfgs() if name == "lbfgs" else fdl.optim.sam(fdl.sgd(0.1), fdl.sgd(0.05))
    step, run = compiled(OBJECTIVES["supervised"](), optimizer), start(optimizer)
    whole = step(run, data(False), None)[0]
    parts = step(run, data(False), 6)[0]
    for a, b in zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_fit_in_microbatches_keeps_one_more_gradient_and_saves_the_rest():
    """Temporary memory: activations of a microbatch, and one buffer for the gradient."""
    net = fdl.chain(fdl.dense(256), fdl.tanh, fdl.dense(256), fdl.tanh, fdl.dense(1))
    x = np.zeros((4096, 8), np.float32)
    params, state = jax.jit(net.init)(jax.random.key(0), x[:1])
    objective, optimizer = fdl.supervised(net, fdl.squared_error), fdl.sgd(0.1)
    run = fdl.start(params, optimizer, state=state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def memory(batch, microbatch):
        def step(run, x):
            return fdl.train_step(objective, optimizer, run, (x, x[:, :1]), batch, microbatch)[0]

        compiled = jax.jit(step, donate_argnums=0).lower(run, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, pieces, whole = memory(64, None), memory(4096, 64), memory(4096, None)
    drawn = 4096 * (8 + 1) * 4 * 2  # the batch itself, and its pieces
    assert pieces <= small + size * 1.1 + drawn
    assert pieces < whole / 3


@pytest.mark.parametrize(
    ("microbatch", "told"),
    [
        (5, r"expected a microbatch that divides the batch of 24, got 5; every microbatch needs"),
        (48, r"expected a microbatch that divides the batch of 24, got 48; every microbatch"),
        (0, r"expected microbatch >= 1, an integer, got 0; leave it out to compute the gradient"),
    ],
)
@pytest.mark.parametrize("who", ["train_step", "fit"])
def test_a_microbatch_that_does_not_divide_the_batch_is_refused(who, microbatch, told):
    objective, optimizer, xy = OBJECTIVES["supervised"](), fdl.sgd(0.1), data(False)
    run = start(optimizer)
    steps = {"steps": 1} if who == "fit" else {}
    call = functools.partial(getattr(fdl, who), objective, optimizer, run, xy, batch_size=B)
    with pytest.raises(ValueError, match=f"^{who}: {told}"):
        call(microbatch=microbatch, **steps)


def test_fit_takes_a_microbatch():
    objective, optimizer, xy = OBJECTIVES["supervised"](), fdl.sgd(0.1, momentum=0.9), data(True)
    run = start(optimizer)
    how = {"batch_size": B, "steps": 7}
    whole = fdl.fit(objective, optimizer, run, xy, **how)
    parts = fdl.fit(objective, optimizer, run, xy, microbatch=8, **how)
    for a, b in zip(*map(jax.tree.leaves, (whole.run, parts.run)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)


SEEDED_BUGS = {
    "fdl/train/microbatches.py": (
        "train/test_microbatches.py",
        [
            ("jax.random.fold_in(key, number)", "key"),
            ("run.params, state, piece, number", "run.params, run.state, piece, number"),
            ("loss * count.astype(loss.dtype)", "loss"),
            ("a + b.astype(a.dtype)", "b.astype(a.dtype)"),
            ("total + of_piece(params", "of_piece(params"),
        ],
    ),
}
