"""Training: the four steps, the compiled loop, its promises on bits, compilations and bad input."""

import functools
import hashlib
import json
import os
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.train import Mean, weighted_mean
from fdl.train.chunks import signals_noted
from fdl.train.evaluation import totals
from fdl.train.program import advance
from tests.compilations import Compilations
from tests.programs import array, in_one_program
from tests.trees import stacked

N, BATCH = 101, 16  # the batch does not divide the data


@pytest.fixture(scope="module")
def digits():
    return fdl.data.digits()


@functools.cache
def small():
    """A network with dropout, made once, so that tests share its compilations."""
    return fdl.chain(fdl.dense(8), fdl.tanh, fdl.dropout(0.2), fdl.dense(3), name="small")


@functools.cache
def objective():
    return fdl.supervised(small(), fdl.softmax_cross_entropy, accuracy=fdl.accuracy)


@functools.cache
def momentum():
    return fdl.sgd(0.1, momentum=0.9)


def data(n=N, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n).astype(np.int32)
    x = rng.normal(size=(n, 5)).astype(np.float32) + y[:, None]
    return x, y


@functools.cache
def params(seed=0):
    shape = jax.ShapeDtypeStruct((1, 5), "float32")
    return jax.jit(lambda key: small().init(key, shape)[0])(jax.random.key(seed))


@functools.cache
def logits():
    """Of the data, in float64."""
    apply = jax.jit(lambda params, x: small().apply(params, {}, x)[0])
    return np.asarray(apply(params(), data()[0]), np.float64)


def on_device(tree):
    """Like jnp.asarray, which compiles a copy for each shape."""
    return jax.device_put(tree)


def begin(optimizer=None, seed=0):
    return fdl.start(params(), optimizer or momentum(), seed=seed)


def sha(run):
    leaves = jax.tree.leaves(run.params)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def train(**how):
    how = {"batch_size": BATCH, "steps": 30} | how
    return fdl.fit(objective(), momentum(), how.pop("run", None) or begin(), data(), **how)


# ---------------------------------------------------------------------------------- the four steps


def test_the_four_steps_composed_are_train_step():
    run, xy = begin(seed=3), on_device(data())
    key = jax.random.fold_in(jax.random.key(3), 0)

    def by_hand(run):
        x, y = fdl.draw_batch(xy, run.seed, run.step, BATCH)

        def loss(params):
            y_pred, _ = objective().forward(params, {}, x, key)
            return objective().score(y_pred, y)["loss"].value()

        value, gradient = jax.value_and_grad(loss)(run.params)
        return value, fdl.update_weights(momentum(), run, gradient).params

    value, moved = jax.jit(by_hand)(run)
    step = jax.jit(lambda run: fdl.train_step(objective(), momentum(), run, xy, BATCH))
    after, means = step(run)
    assert_trees_equal(after.params, moved)
    assert float(means["loss"].value()) == float(value)
    assert int(after.step) == 1
    assert int(after.seed) == 3


def test_the_four_functions_in_a_loop_are_train_step_bit_for_bit():
    xy = on_device(data())

    def four(_, run):
        x, y = fdl.draw_batch(xy, run.seed, run.step, BATCH)
        key = jax.random.fold_in(jax.random.key(run.seed), run.step)

        def loss(params):
            y_pred, state = objective().forward(params, run.state, x, key)
            return objective().score(y_pred, y)["loss"].value(), state

        gradient, state = jax.grad(loss, has_aux=True)(run.params)
        return fdl.update_weights(momentum(), run._replace(state=state), gradient)

    def one(_, run):
        return fdl.train_step(objective(), momentum(), run, xy, BATCH)[0]

    ends = [
        jax.jit(lambda run, f=f: jax.lax.fori_loop(0, 9, f, run))(begin(seed=4))
        for f in (four, one)
    ]
    assert_trees_equal(*ends)
    assert int(ends[0].step) == 9
    assert ends[0].step.dtype == jnp.uint32


def test_an_update_lowers_the_loss_on_its_batch():
    optimizer, xy = fdl.sgd(0.01), on_device(data())

    @jax.jit
    def updated(run, step):
        batch = fdl.draw_batch(xy, 0, step, BATCH)
        loss = lambda p: objective()(p, {}, batch, None)[0]  # noqa: E731
        before, gradient = jax.value_and_grad(loss)(run.params)
        run = fdl.update_weights(optimizer, run, gradient)
        return run, before, loss(run.params)

    run = begin(optimizer)
    for step in range(20):
        run, before, after = updated(run, np.uint32(step))
        assert float(after) < float(before)


def test_update_is_w_minus_step_times_gradient():
    run = fdl.start({"w": jnp.array([1.0, -2.0])}, fdl.sgd(0.25))
    after = fdl.update_weights(fdl.sgd(0.25), run, {"w": jnp.array([4.0, 8.0])})
    np.testing.assert_array_equal(after.params["w"], [0.0, -4.0])


def test_fit_is_a_python_loop_over_train_step():
    xy = on_device(data())
    step = jax.jit(lambda run: fdl.train_step(objective(), momentum(), run, xy, BATCH))
    run, total = begin(seed=1), 0.0
    for _ in range(12):
        run, means = step(run)
        total += float(means["loss"].total)
    result = train(run=begin(seed=1), steps=12, record_every=12)
    for a, b in zip(jax.tree.leaves(run), jax.tree.leaves(result.run), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert result.history[0]["loss"] == pytest.approx(total / (12 * BATCH), rel=1e-5)


def test_learning_starts_at_chance_and_ends_high(digits):
    model = fdl.mlp([64], 10, scale=1 / 16)
    start, _ = model.init(jax.random.key(0), digits.train[0][:1])
    score = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.sgd(0.1, momentum=0.9)
    assert fdl.evaluate(score, start, digits.test)["accuracy"] < 0.3
    result = fdl.fit(
        *(score, optimizer, fdl.start(start, optimizer), digits.train), epochs=30, batch_size=32
    )
    assert fdl.evaluate(score, result.run.params, digits.test)["accuracy"] > 0.95


# -------------------------------------------------------------------------------------------- bits


@pytest.mark.bits
def test_the_same_seed_gives_the_same_bits_for_any_chunk():
    epoch = -(-N // BATCH)
    hashes = {sha(train(run=begin(seed=5), chunk=chunk).run) for chunk in (1, 10, epoch, 10, None)}
    assert len(hashes) == 1
    assert sha(train(run=begin(seed=6)).run) not in hashes


def test_history_does_not_depend_on_the_chunk():
    def numbers(chunk):
        history = train(chunk=chunk, validation=data(37, 1)).history
        return [{k: v for k, v in record.items() if k != "seconds"} for record in history]

    assert numbers(1) == numbers(4) == numbers(None)


@pytest.mark.parametrize("stop", [1, 7, 13, 29])
def test_a_stopped_run_goes_on_bit_for_bit(stop):
    whole = train(run=begin(seed=2)).run
    part = train(run=begin(seed=2), steps=stop).run
    assert int(part.step) == stop
    assert_trees_equal(train(run=part).run, whole)


def test_a_finished_run_is_left_as_it_is():
    done = train().run
    with pytest.warns(
        UserWarning,
        match=r"^fit: expected more steps to take, got a run that has taken 30 of 30; epochs and "
        r"steps count from the run's step 0: pass more, or begin a new run with fdl.start$",
    ):
        again = train(run=done)
    assert_trees_equal(again.run, done)
    assert again.history == []
    assert again.reason == "done"


def mnist_or_digits():
    """MNIST if it is here, else the digits: the promise is the same, on fewer pixels."""
    try:
        return fdl.data.mnist(os.environ["FDL_DATA"] + "/mnist").train, 1 / 255
    except (KeyError, FileNotFoundError):
        return fdl.data.digits().train, 1 / 16


@pytest.mark.bits
@pytest.mark.slow
@pytest.mark.parametrize("schedule", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}],
    ids=["plain", "momentum", "nesterov"],
)
def test_sgd_is_optax_sgd_to_the_last_bit_over_1000_steps(kind, schedule):
    xy, scale = mnist_or_digits()
    model = fdl.mlp([32], 10, scale=scale)
    start, _ = model.init(jax.random.key(0), xy[0][:1])
    score = fdl.supervised(model, fdl.softmax_cross_entropy)
    rate = (lambda count: 0.05 * 0.998 ** count.astype(jnp.float32)) if schedule else 0.05
    mine, theirs = fdl.sgd(rate, **kind), optax.sgd(rate, **kind)
    ours = fdl.fit(score, mine, fdl.start(start, mine), xy, steps=1000).run
    with jax.numpy_dtype_promotion("standard"):
        other = fdl.fit(score, theirs, fdl.start(start, theirs), xy, steps=1000).run
    assert_trees_equal(ours.params, other.params)
    assert_trees_equal(ours.opt_state, other.opt_state)
    assert sha(ours) != sha(fdl.start(start, mine))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_state_continues_in_optax_and_back(name):
    """The opt_state of a run moves as it is: three libraries in turn train as one of them."""
    more = {"momentum": 0.9} if name == "sgd" else {"eps": 1e-6}
    score = fdl.supervised(small(), fdl.softmax_cross_entropy)
    fdls, optaxs = (getattr(library, name)(0.05, **more) for library in (fdl, optax))
    runs = [begin(fdls)] * 2
    for steps, turn in ((5, fdls), (10, optaxs), (15, fdls)):
        with jax.numpy_dtype_promotion("standard"):
            runs = [
                fdl.fit(score, each, run, data(), batch_size=BATCH, steps=steps).run
                for each, run in zip((fdls, turn), runs, strict=True)
            ]
    ours, moved = runs
    assert jax.tree.structure(moved) == jax.tree.structure(begin(optaxs))
    assert jax.tree.structure(moved) == jax.tree.structure(ours)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------- compiling, tracing


def test_one_compilation_to_train_and_one_to_evaluate(capfd):
    optimizer = fdl.sgd(lambda count: 0.1 / (1 + count.astype(jnp.float32)))
    score = fdl.supervised(small(), fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    xy, held_out = data(), data(37, 1)
    with Compilations() as seen:
        fdl.fit(
            *(score, optimizer, begin(optimizer), xy),
            **{"batch_size": BATCH, "epochs": 5.5, "chunk": 4, "validation": held_out},
        )
    assert seen.names.count("advance") == 1
    assert seen.names.count("totals") <= 1  # shared with an earlier test, if one ran
    with Compilations() as seen:
        result = fdl.fit(
            *(score, optimizer, begin(optimizer, seed=9), data(N, 2)),
            **{"batch_size": BATCH, "epochs": 3, "validation": held_out},
        )
        fdl.evaluate(score, result.run.params, held_out)
    assert not {"advance", "totals"} & set(seen.names)


def test_the_loss_is_traced_once_in_100_steps():
    traces = []

    def loss(w, batch):
        traces.append(1)
        return jnp.mean((w - batch) ** 2)

    optimizer = fdl.sgd(0.1)
    fdl.fit(
        *(fdl.plain(loss), optimizer, fdl.start(jnp.zeros(()), optimizer), jnp.arange(50.0)),
        steps=100,
        chunk=7,
    )
    assert len(traces) == 1


def test_the_step_exports_for_every_platform():
    run, xy = begin(), on_device(data())
    step = jax.jit(lambda run, xy: fdl.train_step(objective(), momentum(), run, xy, BATCH))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "rocm", "tpu"])(run, xy)
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert exported.nr_devices == 1
    after, _ = exported.call(run, xy)
    np.testing.assert_allclose(
        after.params["dense_0"]["w"], step(run, xy)[0].params["dense_0"]["w"], rtol=1e-6
    )


def test_the_whole_chunk_exports_for_every_platform():
    run, xy = begin(), on_device(data())
    zero = np.zeros((), np.float32)
    means = {name: Mean(zero, zero) for name in ("loss", "accuracy")}
    program = jax.jit(
        lambda *args: advance(*args, objective=objective(), optimizer=momentum(), batch_size=BATCH)
    )
    exported = jax.export.export(program, platforms=["cpu", "cuda", "rocm", "tpu"])
    assert len(exported(run, means, xy, np.int32(3)).platforms) == 4


# --------------------------------------------------------------------- every transformation works


def test_runs_trained_at_once_equal_their_solo_runs():
    xy = on_device(data())

    def steps(run):
        body = lambda run, _: (fdl.train_step(objective(), momentum(), run, xy, BATCH)[0], None)  # noqa: E731
        return jax.lax.scan(body, run, length=5)[0]

    runs = [begin(seed=seed) for seed in range(4)]
    together = jax.jit(jax.vmap(steps))(stacked(runs))
    for number, run in enumerate(runs):
        alone = jax.jit(steps)(run)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(np.asarray(a)[number], b, rtol=1e-5, atol=1e-6)


def test_a_run_is_differentiable_in_its_learning_rate():
    with jax.enable_x64(True):
        xy = data()[0].astype(np.float64)
        model = fdl.chain(fdl.dense(4), fdl.tanh, fdl.dense(1))
        start, _ = jax.jit(model.init)(jax.random.key(0), xy[:1])
        xy = on_device(xy)
        score = fdl.plain(lambda p, x: jnp.mean((model.apply(p, {}, x)[0][:, 0] - x[:, 0]) ** 2))

        def loss_after(rate):
            optimizer = fdl.sgd(rate, momentum=0.9)
            run = fdl.start(start, optimizer)
            body = lambda run, _: (fdl.train_step(score, optimizer, run, xy, BATCH)[0], None)  # noqa: E731
            run, _ = jax.lax.scan(body, run, length=10)
            return score(run.params, {}, xy, None)[0]

        once = in_one_program(loss_after)
        errors = fdl.check_gradient(once, np.array(0.05), tolerance=1e-6)
    assert max(errors.values()) < 1e-6


# ----------------------------------------------------------------------------- objectives, evaluate


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100, 101, 102, 1000])
def test_evaluation_is_exact_for_any_batch_size(batch_size):
    x, y = data()
    log_z = np.log(np.exp(logits()).sum(1))
    scores = fdl.evaluate(objective(), params(), (x, y), batch_size=batch_size)
    assert scores["loss"] == pytest.approx((log_z - logits()[np.arange(N), y]).mean(), rel=1e-6)
    assert scores["accuracy"] == (logits().argmax(1) == y).mean()


def test_a_metric_over_all_examples_sees_each_of_them_once():
    """The last batch is smaller, because a metric cannot forget examples that it has seen."""
    x = np.arange(10, dtype=np.float32)[:, None]
    y = (np.arange(10) % 3 == 0).astype(np.float32)
    judged = fdl.supervised(
        lambda w, x: w * x[..., 0], fdl.sigmoid_cross_entropy, auc=fdl.metrics.auc()
    )
    for batch_size in (3, 4, 10):
        found = fdl.evaluate(judged, np.float32(1), (x, y), batch_size=batch_size)
        assert found["auc"] == pytest.approx(float(fdl.metrics.auc()(x[:, 0], y)), abs=1e-6)


def test_the_program_that_evaluates_contains_the_network_once():
    x, y = data(10)
    how = {"objective": objective(), "batch_size": 4, "layout": None}
    text = totals.lower(params(), {}, (x, y), **how).as_text()
    assert text.count("dot_general") == len(jax.tree.leaves(params())) // 2


def test_evaluation_weighs_examples():
    x, y = data()
    weight = np.arange(N, dtype=np.float32) % 4
    each = np.log(np.exp(logits()).sum(1)) - logits()[np.arange(N), y]
    scores = fdl.evaluate(objective(), params(), (x, y, weight), batch_size=10)
    assert scores["loss"] == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-6)


def test_a_training_loss_weighs_examples():
    x, y = data(6)
    weight = np.array([0, 1, 2, 0, 1, 0], np.float32)
    loss, (_, means) = jax.jit(lambda *batch: objective()(params(), {}, batch, None))(x, y, weight)
    logits = np.asarray(jax.jit(small().apply)(params(), {}, x)[0], np.float64)
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), y]
    assert float(loss) == pytest.approx((each * weight).sum() / 4, rel=1e-6)
    assert float(means["loss"].count) == 4


def test_weighted_mean_ignores_what_has_no_weight_and_checks_shapes():
    values = array([[1.0, 2.0], [np.nan, np.inf], [3.0, 6.0]])

    @jax.jit
    def valued(values, weight):
        mean = weighted_mean(values, weight)
        return mean.value(), mean.count

    value, count = valued(values, array([1.0, 0.0, 1.0]))
    assert float(value) == 3.0
    assert float(count) == 4.0
    assert float(valued(np.ones(3, np.float32), np.zeros(3, np.float32))[0]) == 0.0
    half = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    assert jax.eval_shape(weighted_mean, half).total.dtype == jnp.float32
    with pytest.raises(
        fdl.PathError,
        match=r"^weighted_mean: expected weights with the shape of the first axes of \[3, 2\], got "
        r"\[2\]",
    ):
        weighted_mean(values, array(np.ones(2)))


def test_predict_gives_a_row_for_each_input():
    x, _ = data()
    for batch_size in (1, 10, 101, 500):
        y = fdl.predict(small(), params(), x, batch_size=batch_size)
        np.testing.assert_allclose(y, logits(), rtol=1e-5, atol=1e-6)


def test_data_may_be_a_dict_with_extra_inputs():
    shift = fdl.network(lambda f, x, *, by: f.out(x) + by, out=fdl.dense(1))
    x, by = np.ones((9, 2), np.float32), np.arange(9, dtype=np.float32)[:, None]
    kinds, _ = jax.eval_shape(lambda: shift.init(jax.random.key(0), x, by=by))
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), kinds)
    score = fdl.supervised(shift, fdl.squared_error)
    rows = {"x": x, "y": np.zeros((9, 1), np.float32), "by": by}
    assert fdl.evaluate(score, start, rows)["loss"] == pytest.approx((by**2).mean(), rel=1e-6)


def test_a_plain_function_of_params_and_x_needs_no_layer():
    x, y = data()
    model = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]  # noqa: E731
    rng = np.random.default_rng(0)
    start = tuple(array(rng.standard_normal(shape)) for shape in [(5, 8), (8, 3)])
    score = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    result = fdl.fit(
        *(score, momentum(), fdl.start(start, momentum()), (x, y)), epochs=20, validation=(x, y)
    )
    before = fdl.evaluate(score, start, (x, y))["loss"]
    assert fdl.evaluate(score, result.run.params, (x, y))["loss"] < before / 2
    assert fdl.predict(model, result.run.params, x).shape == (N, 3)


def test_an_objective_of_your_own_may_report_scalars_and_move_state():
    def mine(params, state, batch, key):
        loss = jnp.mean((params - batch) ** 2)
        seen = state["seen"] + (0 if key is None else 1)
        return loss, ({"seen": seen}, {"largest": jnp.max(batch)})

    optimizer = fdl.sgd(0.1)
    run = fdl.start(jnp.zeros(()), optimizer, state={"seen": jnp.zeros((), jnp.int32)})
    data = np.arange(10.0, dtype=np.float32)
    result = fdl.fit(mine, optimizer, run, data, batch_size=5, steps=8)
    assert int(result.run.state["seen"]) == 8
    drawn = jax.jit(lambda data: [fdl.draw_batch(data, 0, step, 5) for step in range(2)])(data)
    assert result.history[0]["largest"] == np.mean([np.asarray(each).max() for each in drawn])
    # The largest of a batch is not a mean over its examples: evaluated by whole batches.
    scores = fdl.evaluate(mine, 0.0, data, state=run.state, batch_size=4)
    assert scores == {
        "loss": pytest.approx(28.5),
        "largest": pytest.approx((4 * 3 + 4 * 7 + 18) / 10),
    }


def test_parameters_made_by_flax_train_unchanged():
    nn = pytest.importorskip("flax.linen", reason="Flax is not installed: not checked with it")
    x, y = data()
    with jax.numpy_dtype_promotion("standard"):
        model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)])
        start = model.init(jax.random.key(0), x)
        score = fdl.supervised(model.apply, fdl.softmax_cross_entropy)
        result = fdl.fit(score, momentum(), fdl.start(start, momentum()), (x, y), epochs=20)
        after = fdl.evaluate(score, result.run.params, (x, y))["loss"]
        assert after < fdl.evaluate(score, start, (x, y))["loss"] / 2
    assert jax.tree.structure(result.run.params) == jax.tree.structure(start)


# --------------------------------------------------------------- validation, best, early stopping


def test_best_keeps_the_parameters_of_the_best_record():
    held_out = data(50, 1)
    best, highest = fdl.keep_best(), fdl.keep_best("val_accuracy", mode="max")
    result = train(validation=held_out, steps=60, record_every=3, watch=[best, highest])
    values = [record["val_loss"] for record in result.history]
    assert best.value == min(values)
    assert best.step == result.history[int(np.argmin(values))]["step"]
    scores = fdl.evaluate(objective(), best.params, held_out)
    assert scores["loss"] == pytest.approx(best.value, rel=1e-6)
    assert highest.value == max(record["val_accuracy"] for record in result.history)


def test_patience_stops_after_that_number_of_records_without_a_better_value():
    optimizer = fdl.sgd(lambda count: jnp.where(count < 10, 0.05, -0.05))  # then uphill
    best, stop = fdl.keep_best(), fdl.early_stop(patience=3)
    result = fdl.fit(
        *(objective(), optimizer, begin(optimizer), data()),
        **{"steps": 500, "record_every": 5, "validation": data(50, 1), "watch": [best, stop]},
    )
    assert result.reason == "no better val_loss for 3 records"
    last = int(result.history[-1]["step"])
    assert last == best.step + 15
    assert last < 100


def test_patience_counts_anew_from_every_better_value():
    def there_and_back(count):
        return jnp.where(count // 5 % 2 == 0, 0.05, -0.02)

    optimizer = fdl.sgd(there_and_back)
    result = fdl.fit(
        *(objective(), optimizer, begin(optimizer), data()),
        **{"steps": 40, "record_every": 5, "validation": data(50, 1)},
        watch=[fdl.early_stop(patience=2)],
    )
    values = [record["val_loss"] for record in result.history]
    better = [value < min(values[:i], default=np.inf) for i, value in enumerate(values)]
    assert better == [True, False] * 4
    assert result.reason == "done"


def test_a_record_is_of_the_steps_since_the_one_before():
    _, second = train(steps=16, record_every=8).history
    (alone,) = train(run=train(steps=8).run, steps=16, record_every=8).history
    assert second["step"] == alone["step"] == 16
    assert second["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_history_counts_steps_and_epochs_and_goes_to_the_log(tmp_path):
    file = tmp_path / "history.jsonl"
    how = {"record_every": 8, "watch": [fdl.log(file)], "validation": data(10, 1)}
    result = train(steps=20, **how)
    assert [record["step"] for record in result.history] == [8, 16, 20]
    assert [record["epoch"] for record in result.history] == [s * BATCH / N for s in (8, 16, 20)]
    assert [json.loads(line) for line in file.read_text().splitlines()] == result.history
    train(run=result.run, steps=24, **how)
    assert len(file.read_text().splitlines()) == 4


def test_progress_prints_some_records_where_there_is_no_terminal(capsys):
    train(steps=100, record_every=1, watch=[fdl.progress()])
    lines = capsys.readouterr().out.splitlines()
    assert 15 <= len(lines) <= 25
    assert re.match(r"step +100  epoch +15\.8  accuracy 0\.\d{4}  loss \d\.\d{4}", lines[-1])


# --------------------------------------------------------------------------------------- bad input


def test_the_callers_arrays_are_alive_after_fit():
    run, xy = begin(), on_device(data())
    before = jax.tree.map(np.array, (run, xy))
    fdl.fit(objective(), momentum(), run, xy, batch_size=BATCH, steps=5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((run, xy)))
    assert_trees_equal(before, jax.tree.map(np.array, (run, xy)))


BAD_DATA = {
    "empty": (
        lambda x, y: (x[:0], y[:0]),
        r"data: expected at least one example, got none at '0'; check the",
    ),
    "lengths": (
        lambda x, y: (x, y[:-1]),
        r"data: expected arrays of the same length \[N, \.\.\.\], got '0': \[101, 5\], '1': "
        r"\[100\]; every example needs one row in every array",
    ),
    "nan": (
        lambda x, y: (np.where(np.arange(N)[:, None] == 7, np.nan, x).astype(np.float32), y),
        r"data at '0': expected finite numbers, got nan at row 7 \(1 of 101 rows are not finite\); "
        r"remove or correct these rows",
    ),
    "label too large": (
        lambda x, y: (x, np.where(np.arange(N) == 9, 3, y)),
        r"softmax_cross_entropy: expected labels in \[0, 3\), got 3 at row 9; give the last layer",
    ),
    "label negative": (
        lambda x, y: (x, np.where(np.arange(N) == 4, -1, y)),
        r"softmax_cross_entropy: expected labels in \[0, 3\), got -1 at row 4; give the last layer",
    ),
    "feature size": (
        lambda x, y: (x[:, :4], y),
        r"dense_0: expected x \[..., 5\], got \[1, 4\]; give x that width, or make new params",
    ),
    "integer image": (
        lambda x, y: ((x * 10).astype(np.uint8), y),
        r"dense_0: expected x of a floating dtype, got uint8 \[1, 5\]; convert x with x.astype",
    ),
    "no pair": (
        lambda x, y: x,
        r"supervised: expected data \(x, y\), \(x, y, weight\) or a dict with x and y, got ndarray",
    ),
}


@pytest.mark.parametrize("where", ["fit", "validation", "evaluate"])
@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_are_refused_before_anything_happens(kind, where):
    spoil, sentence = BAD_DATA[kind]
    bad, run = spoil(*data()), begin()
    before = jax.tree.map(np.array, run)
    calls = {
        "evaluate": lambda: fdl.evaluate(objective(), run.params, bad),
        "validation": lambda: train(run=run, steps=5, validation=bad),
        "fit": lambda: fdl.fit(objective(), momentum(), run, bad, steps=5),
    }
    with pytest.raises(ValueError, match="^" + sentence):
        calls[where]()
    assert_trees_equal(before, jax.tree.map(np.array, run))


BAD_CALLS = {
    "neither": (
        {"steps": None},
        r"fit: expected either epochs or steps, got neither; pass one of them",
    ),
    "both": ({"epochs": 1}, r"fit: expected either epochs or steps, got both; pass one of them"),
    "batch": (
        {"batch_size": 0},
        r"fit: expected batch_size >= 1, an integer, got 0; pass the num",
    ),
    "chunk": ({"chunk": 0}, r"fit: expected chunk >= 1, an integer, got 0; leave it out for the"),
    "chunk_part": ({"chunk": 2.5}, r"fit: expected chunk >= 1, an integer, got 2.5; leave it out"),
    "batch_part": ({"batch_size": 2.0}, r"fit: expected batch_size >= 1, an integer, got 2.0; pas"),
    "monitor": (
        {"watch": [fdl.keep_best("val_accuracy")]},
        r"fit: expected <keep_best\('val_accuracy'\): nothing yet> to watch one of step, epoch, "
        r"learning_rate, accuracy, loss, seconds, got 'val_accuracy'; choose one of these, add "
        r"the metric to the objective, or pass validation data for names that begin with val_$",
    ),
    "record": ({"record_every": -1}, r"fit: expected record_every >= 1, an integer, got -1; l"),
    "record_0": ({"record_every": 0}, r"fit: expected record_every >= 1, an integer, got 0; l"),
    "steps": (
        {"steps": -1},
        r"fit: expected a number of steps in \[0, 2\*\*32\), an integer, got -1; pass the total",
    ),
    "steps_part": (
        {"steps": 8.5},
        r"fit: expected a number of steps in \[0, 2\*\*32\), an integer, got 8.5; pass the total",
    ),
    "epochs": (
        {"epochs": np.nan, "steps": None},
        r"fit: expected epochs >= 0, a number of passes over the data, got nan; pass epochs=1",
    ),
    "epochs_text": (
        {"epochs": "3", "steps": None},
        r"fit: expected epochs >= 0, a number of passes over the data, got '3'; pass epochs=1",
    ),
    "patience": (
        {"watch": [fdl.early_stop()], "validation": None},
        r"fit: expected early_stop\('val_loss', patience=5\) to watch one of step, epoch, lear",
    ),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_bad_arguments_are_refused(kind):
    how, sentence = BAD_CALLS[kind]
    with pytest.raises(ValueError, match="^" + sentence):
        train(**how)


def test_integer_parameters_and_odd_seeds_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^start: expected parameters of a floating dtype, got int32 at 'a/w'; convert",
    ):
        fdl.start({"a": {"w": jnp.arange(3)}}, momentum())
    for seed in (-1, 2**32, 1.5, "7", True, np.arange(2)):
        got = re.escape(repr(seed))
        with pytest.raises(
            ValueError,
            match=rf"^start: expected a seed, an integer in \[0, 2\*\*32\), got {got}; take it m",
        ):
            fdl.start(params(), momentum(), seed=seed)


def test_batches_of_no_examples_are_refused():
    with pytest.raises(
        ValueError, match=r"^predict: expected batch_size >= 1, an integer, got 0; "
    ):
        fdl.predict(small(), params(), data()[0], batch_size=0)
    with pytest.raises(
        ValueError, match=r"^evaluate: expected batch_size >= 1, an integer, got 0;"
    ):
        fdl.evaluate(objective(), params(), data(), batch_size=0)


def test_a_state_that_changes_its_shape_is_named():
    def grows(params, state, batch, key):
        return jnp.mean(params * batch), ({"seen": jnp.zeros(3)}, {})

    run = fdl.start(jnp.ones(()), momentum(), state={"seen": jnp.zeros(2)})
    with pytest.raises(
        fdl.PathError,
        match=r"^state/seen: expected float32 \[2\] after a step, got float32 \[3\]; the objective",
    ):
        fdl.fit(grows, momentum(), run, jnp.arange(4.0), steps=1)


def test_parameters_that_are_not_finite_end_training_and_keeps_the_best():
    optimizer, best = fdl.sgd(lambda count: jnp.where(count < 20, 0.1, jnp.inf)), fdl.keep_best()
    with pytest.warns(
        UserWarning,
        match=r"^fit: expected finite parameters and state, got (nan|-?inf) at "
        r"'params/dense_\d/[wb]' by step 25; training ended there: try a smaller learning rate",
    ):
        result = fdl.fit(
            *(objective(), optimizer, begin(optimizer), data()),
            **{"steps": 200, "record_every": 5, "validation": data(20, 1), "watch": [best]},
        )
    assert result.reason == "not finite"
    assert int(result.run.step) < 200
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(best.params))


def test_a_log_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(
        OSError,
        match=r"log: expected a file that can be written, got No such file or directory; make its",
    ):
        train(watch=[fdl.log(tmp_path / "nowhere" / "history.jsonl")])


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_returns_the_run_so_far_and_it_goes_on_bit_for_bit(number, reason):
    before = signal.getsignal(number)
    train(steps=1)  # compiled beforehand, so that the signal comes between chunks
    timer = threading.Timer(0.4, os.kill, (os.getpid(), number))
    timer.start()
    result = train(steps=2**31, chunk=5)
    timer.join()
    assert result.reason == reason
    assert signal.getsignal(number) is before
    reached = int(result.run.step)
    assert 0 < reached < 2**31
    assert result.history[-1]["step"] == reached
    assert sha(train(steps=reached).run) == sha(result.run)


def test_a_second_ctrl_c_raises():
    before = signal.getsignal(signal.SIGINT)
    with signals_noted() as signalled:
        assert signalled() == ""
        signal.raise_signal(signal.SIGINT)
        assert signalled() == "interrupted"
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_user_for_sigterm_is_called_too():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with signals_noted() as signalled:
            signal.raise_signal(signal.SIGTERM)
            assert signalled() == "terminated"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


def test_fit_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(steps=5)))
    thread.start()
    thread.join()
    assert int(results[0].run.step) == 5


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("where", ["x", "y", "both"])
def test_examples_of_weight_0_change_no_gradient_even_if_not_finite(broken, where):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    y, weight = np.array([[1.0, 2.0, 0.5, 3.0], [1.0, 2.0, 0.0, 1.0]], np.float32)
    bad_x, bad_y, unknown = x.copy(), y.copy(), x.copy()
    if where != "y":
        bad_x[2, 1] = broken
    if where != "x":
        bad_y[2] = broken
    gradients, params = gradients_of_losses()
    clean = gradients(params, x, y, weight)
    spoilt = gradients(params, bad_x, bad_y, weight)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(spoilt), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # With weight it shows.
    unknown[1] = np.nan
    assert all(np.isnan(value) for value, _ in gradients(params, unknown, y, weight))


@functools.cache
def gradients_of_losses():
    """(`(params, x, y, weight)` -> the value and the gradient of each loss, params)."""
    model = fdl.chain(fdl.dense(3), fdl.tanh, fdl.dense(1), lambda y: y[..., 0])
    params, _ = jax.jit(model.init)(jax.random.key(0), np.ones((4, 3), np.float32))
    losses = (fdl.squared_error, fdl.huber, fdl.log_cosh, fdl.sigmoid_cross_entropy)

    def of(loss):
        objective = fdl.supervised(model, loss)
        return jax.value_and_grad(lambda p, *batch: objective(p, {}, batch, None)[0])

    gradients = [of(loss) for loss in losses]
    return jax.jit(lambda *given: [gradient(*given) for gradient in gradients]), params


LABELS = {
    "cross-entropy": (fdl.softmax_cross_entropy, [0, 2, -100, 1], [0, 2, 1, 1]),
    "focal": (fdl.softmax_focal, [0, 2, 3, 1], [0, 2, 1, 1]),
    "hinge": (fdl.multiclass_hinge, [0, 2, -1, 1], [0, 2, 1, 1]),
    "soft": (
        fdl.soft_cross_entropy,
        [[1, 0, 0], [0, 0, 1], [-1, 7, 7], [0, 1, 0]],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]],
    ),
}


@functools.cache
def speller():
    """(model of ids, params)."""
    model = fdl.chain(fdl.embedding(5, 4), fdl.dense(3))
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros(4, np.int32))[0]


@pytest.mark.parametrize("name", LABELS)
def test_labels_and_ids_of_weight_0_may_be_out_of_range(name):
    """They are as far from counting as a NaN is: padding, or labels that nobody knows."""
    loss, wrong, right = LABELS[name]
    wrong, right = (np.array(y, np.float32 if name == "soft" else None) for y in (wrong, right))
    model, params = speller()
    weight = np.array([1.0, 2.0, 0.0, 1.0], np.float32)
    objective, optimizer = fdl.supervised(model, loss, same=loss), fdl.sgd(0.1)
    ids, bad_ids = np.array([0, 1, 2, 3]), np.array([0, 1, -1, 3])

    def ends(x, y):
        run = fdl.start(params, optimizer)
        result = fdl.fit(
            *(objective, optimizer, run, (x, y, weight)),
            **{"batch_size": 4, "steps": 3, "validation": (x, y, weight)},
        )
        return result.params, result.history[-1]["loss"], result.history[-1]["val_same"]

    assert_trees_equal(ends(bad_ids, wrong), ends(ids, right))
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: expected (labels|targets) .*row 2; "):
        fdl.evaluate(objective, params, (ids, wrong, np.ones(4, np.float32)))


def test_labels_of_weight_0_within_a_sequence_may_be_out_of_range():
    model = fdl.dense(3)
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    params, _ = jax.jit(model.init)(jax.random.key(0), x)
    weight = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.float32)
    y = np.array([[0, 1, 2, 0], [2, 1, 0, 1]])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    padded = np.where(weight == 0, -100, y)
    assert fdl.evaluate(objective, params, (x, padded, weight)) == fdl.evaluate(
        objective, params, (x, y, weight)
    )
    with pytest.raises(
        ValueError, match=r"^softmax_cross_entropy: expected labels in \[0, 3\), go"
    ):
        fdl.evaluate(objective, params, (x, padded, np.ones((2, 4), np.float32)))


def test_a_target_of_a_whole_sequence_of_weight_0_is_ignored():
    from fdl.train.batches import without_ignored

    x, weight = np.ones((2, 3), np.float32), np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    _, y, _ = without_ignored(x, np.float32([np.nan, 3.0]), {}, weight)
    assert y.tolist() == [0, 3]


def test_means_are_joined_to_vectors_and_split_again():
    from fdl.train.accumulators import Mean, Tally, added, joined, split

    @jax.jit
    def there_and_back():
        tally = Tally(fdl.metrics.auc(), fdl.metrics.auc().init())
        one = lambda x, dtype: Mean(jnp.asarray(x, dtype), jnp.asarray(2 * x, dtype))  # noqa: E731
        means = {"loss": one(1, "float32"), "tally": tally, "wide": one(5, "float64")}
        means |= {"accuracy": one(3, "float32"), "other": one(7, "float64")}
        sums = joined(means)
        back = split(added(sums, joined(means)), means)
        assert list(back) == list(means)  # here, because jax.jit sorts the names of a dict
        return sums, back, added(means, means)

    with jax.enable_x64(True):
        sums, back, twice = there_and_back()
        assert sorted(leaf.shape for leaf in jax.tree.leaves(sums) if leaf.ndim == 1)[:1] == [(2,)]
        for name, mean in twice.items():
            for a, b in zip(jax.tree.leaves(back[name]), jax.tree.leaves(mean), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == jnp.result_type(b)


SEEDED_BUGS = {
    "fdl/train/step.py": (
        "train/test_step.py train/test_loop.py",
        [
            ("step = run.step + jnp.uint32(1)", "step = run.step"),
            ("jax.random.fold_in(jax.random.key(run.seed), run.step)", "jax.random.key(run.seed)"),
            ("draw_batch(data, run.seed, run.step", "draw_batch(data, run.seed, run.step * 0"),
            ("run._replace(state=state)", "run"),
            ("jnp.where(finite, new, old)", "new"),
            ("params = apply_updates(run.params, updates)", "params = updates"),
        ],
    ),
    "fdl/train/run.py": (
        "train/test_step.py train/test_loop.py",
        [("copy=True", "copy=False")],
    ),
    "fdl/train/batches.py": (
        "train/test_step.py train/test_loop.py",
        [
            ("here & ~jnp.isfinite(leaf)", "False & here"),
            ("lambda leaf: _zeroed(leaf, alone, False)", "lambda leaf: leaf"),
            ("here & ~jnp.isfinite(leaf)", "~jnp.isfinite(leaf)"),
            ("jnp.inexact if only_not_finite else jnp.number", "jnp.inexact"),
        ],
    ),
    "fdl/train/objective.py": (
        "train/test_step.py metrics/test_metrics.py losses/test_losses.py -k "
        "test_train_or_test_metrics_or_count",
        [
            ("counting(self.loss, y), counting(f, y)", "counting(f, y),"),
            ("counting(self.loss, y), counting(f, y)", "counting(self.loss, y),"),
            ("train = key is not None", "train = False"),
            ("train = key is not None", "train = True"),
            ("wanted = key_and_train(self.model, key, train)", "wanted = {}"),
            ("Seen(f, y_pred, y, weight)", "Seen(f, y_pred, y)"),
            ("check_targets(self.loss, y_pred, y, weight)", "pass"),
            ("check_targets(self.loss, y_pred, y, weight)", "check_targets(self.loss, y_pred, y)"),
        ],
    ),
    "fdl/train/evaluation.py": (
        "train/test_step.py train/test_loop.py",
        [
            ("lambda: of(whole=True), lambda", "lambda: of(whole=False), lambda"),
            ("model.apply(params, state, x, **inputs)", "model.apply(params, state, x)"),
            ("jax.tree.map(pairwise_sum, mean)", "jax.tree.map(lambda x: x.mean(-1), mean)"),
            (
                "jax.tree.map(pairwise_sum, mean)",
                "jax.tree.map(lambda x: x.astype(jnp.float16).sum(-1).astype(x.dtype), mean)",
            ),
            ("elif rest:", "elif False:"),
            ("alike = rest > 0 and", "alike = False and"),
            ("x[x.size - rest :]", "x[x.size - size :]"),
            ("and not (whole or tallies)", "and not whole"),
            ("and not (whole or tallies)", "and not tallies"),
            ("check_data(without_ignored(data))", "length(data)"),
            ("check_data(without_ignored(data))", "check_data(data)"),
            ("whole = mixes_examples(objective, params, state, data, batch_size)", "whole = False"),
            ("size = 1 if not whole else", "size = 1 if whole else"),
            ("as_means(loss, metrics, float(length(batch)))", "as_means(loss, metrics)"),
            ("if has_eval_params(opt_state, params):", "if False:"),
        ],
    ),
    "fdl/train/program.py": (
        "train/test_step.py train/test_loop.py",
        [
            ("added(sums, joined(new))", "joined(new)"),
            ("jnp.isfinite(x).all() for x in floating", "jnp.isfinite(x).any() for x in floating"),
            ("_all_finite((run.params, run.state))", "jnp.array(True)"),
        ],
    ),
    "fdl/train/checks.py": (
        "train/test_loop.py -k epochs",
        [("math.ceil(decimal(epochs) *", "math.ceil(float(epochs) *")],
    ),
    "fdl/train/loop.py": (
        "train/test_step.py train/test_loop.py",
        [
            (
                "(self.step // plan.record_every + 1) * plan.record_every",
                "self.step + plan.record_every",
            ),
            ("            self.means = copied(self.zeros)\n", ""),
            ("self.run, self.step = copied(plan.run)", "self.run, self.step = plan.run"),
            ("_means(self.unfinished.means, self.zeros)", "copied(zeros)"),
            ("return run.history[: run.unfinished.records]", "return list(run.history)"),
            ("self.run = copied(self.run)", "pass"),
            ('self.hooks.reason if self.due() else ""', "self.hooks.reason"),
            ("size = batch_size if whole else BATCH_SIZE", "size = BATCH_SIZE"),
        ],
    ),
    "fdl/train/hooks.py": (
        "train/test_step.py train/test_loop.py",
        [
            ('1 if mode == "min" else -1', '1 if mode == "max" else -1'),
            ("(value, 0) if better", "(value, self.worse) if better"),
            ("self.worse + 1", "self.worse"),
            ("params_and_state(run)", "(run.params, run.state)"),
            ("np.isfinite(value) and self.sign", "self.sign"),
            ("observer.recall(memories.get(name, {}), plan.run)", "pass"),
            ("warned = bool(self.waiting)", "warned = False"),
            ('        self.waiting = ""\n', ""),
        ],
    ),
    "fdl/train/chunks.py": (
        "train/test_step.py",
        [
            ("signal.signal(number, handler)", "pass"),
            ("before[signal.SIGTERM](number, frame)", "pass"),
            ("noted and number == signal.SIGINT", "noted and number == signal.SIGTERM"),
        ],
    ),
}
