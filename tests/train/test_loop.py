"""What a run promises: to go on as if never stopped, to tell the truth, to leave nothing behind."""

import functools
import gc
import json
import re
import shutil
import threading
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.core.compilation import weak_jit
from fdl.train import Mean
from fdl.train.accumulators import added
from fdl.train.evaluation import mixes_examples
from tests.programs import array
from tests.toys import running_mean

N, BATCH = 53, 8


@functools.cache
def model():
    return fdl.chain(fdl.dense(6), fdl.tanh, fdl.dense(2), name="small")


@functools.cache
def objective():
    return fdl.supervised(model(), fdl.squared_error)


@functools.cache
def data(n=N, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, np.sin(x @ np.ones((3, 2), np.float32))


@functools.cache
def sgd():
    """One for all tests, so that they share what is compiled for it."""
    return fdl.sgd(0.1)


@functools.cache
def weights():
    """(params, state) of the model."""
    return model().init(jax.random.key(0), data()[0][:1])


def begin(optimizer, objective_state=None, seed=0):
    params, state = weights()
    return fdl.start(params, optimizer, state=objective_state or state, seed=seed)


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


# ----------------------------------------------------------------------------------------- going on


@functools.cache
def uphill_after(step):
    return fdl.sgd(lambda count: jnp.where(count < step, 0.1, -0.02), momentum=0.5)


@pytest.mark.parametrize("slices", [1, 7, 10, 23])
def test_a_result_given_to_fit_goes_on_as_if_it_had_never_stopped(slices):
    """Records every 10 steps; slices that end on, before and behind them; patience in the end."""
    optimizer = uphill_after(30)
    how = {"batch_size": BATCH, "record_every": 10, "validation": data(20, 1)}
    hooks = [fdl.early_stop(patience=3), fdl.keep_best()]
    whole = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=400, watch=hooks, **how)
    assert whole.reason == "no better val_loss for 3 records"
    expected = hooks[1].step, hooks[1].value, hooks[1].params
    how["watch"] = hooks  # what they remember is forgotten when a run begins
    result = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=slices, **how)
    for end in range(2 * slices, 401, slices):
        result = fdl.fit(objective(), optimizer, result, data(), steps=end, **how)
        if result.reason != "done":
            break
    # The slice in which patience ends may have shown a record that was not due.
    assert result.reason == whole.reason
    assert without_seconds(result.history) == without_seconds(whole.history)
    assert_same(result.run, whole.run)
    assert_same((hooks[1].step, hooks[1].value, hooks[1].params), expected)
    seconds = [record["seconds"] for record in result.history]
    assert seconds == sorted(seconds)


def test_a_run_given_to_fit_begins_a_new_history():
    optimizer = sgd()
    how = {"batch_size": BATCH, "record_every": 4}
    first = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=8, **how)
    second = fdl.fit(objective(), optimizer, first.run, data(), steps=12, **how)
    assert [record["step"] for record in second.history] == [12]


def test_going_on_with_another_objective_begins_new_means():
    optimizer = sgd()
    other = fdl.supervised(model(), fdl.squared_error, error=fdl.absolute_error)
    how = {"batch_size": BATCH, "record_every": 10}
    first = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=5, **how)
    second = fdl.fit(other, optimizer, first, data(), steps=10, **how)
    assert second.history[-1]["error"] > 0


@pytest.mark.parametrize("who", ["fit", "validation", "evaluate", "predict", "compare_optimizers"])
@pytest.mark.parametrize("bad", [2**32 + 5, 2**31, -(2**31) - 1])
def test_numbers_that_would_change_on_the_way_to_jax_are_refused(who, bad):
    net = fdl.embedding(10, 2)
    params, _ = net.init(jax.random.key(0), np.zeros(1, np.int32))
    optimizer, target = sgd(), np.zeros((4, 2), np.float32)
    run, score = fdl.start(params, optimizer), fdl.supervised(net, fdl.squared_error)
    fine, wrong = np.array([1, 2, 3, 4]), np.array([1, 2, bad, 4])
    calls = {
        "fit": lambda: fdl.fit(score, optimizer, run, (wrong, target), steps=1),
        "validation": lambda: fdl.fit(
            score, optimizer, run, (fine, target), steps=1, validation=(wrong, target)
        ),
        "evaluate": lambda: fdl.evaluate(score, params, (wrong, target)),
        "predict": lambda: fdl.predict(net, params, wrong),
        "compare_optimizers": lambda: fdl.compare_optimizers(
            *(score, lambda seed: (params, {}), (wrong, target), {"sgd": fdl.sgd}),
            **{"rates": [0.1], "steps": 1},
        ),
    }
    name = {"validation": "fit"}.get(who, who)
    what = {"validation": "validation data at '0'", "predict": "x"}.get(who, "data at '0'")
    with pytest.raises(
        fdl.PathError,
        match=rf"^{name}: expected {what} that int32 can hold, got {bad} at \[2\] of int64 \[4\]",
    ):
        calls[who]()


# --------------------------------------------------------------------------------- numbers of steps


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "steps"),
    [
        (100, 10, 1.1, 11),
        (100, 10, np.float32(1.1), 11),
        (100, 10, jnp.float32(2.3), 23),
        (100, 10, 0.3, 3),
        (1000, 10, 0.07, 7),
        (100, 30, 1, 4),
        (50, 7, 2.2, 16),
    ],
)
def test_epochs_are_the_decimal_that_was_written(examples, batch, epochs, steps):
    optimizer = sgd()
    run = fdl.start(jnp.zeros(()), optimizer)
    mean = fdl.plain(SQUARE)
    result = fdl.fit(mean, optimizer, run, np.ones(examples), batch_size=batch, epochs=epochs)
    assert int(result.run.step) == steps


def SQUARE(w, batch):
    return jnp.mean((w - batch) ** 2)


@pytest.mark.parametrize(
    ("test", "at"),
    [(0.8, 2), (0.1, 9), (0.7, 3), (0.3, 7), (0.9, 1), (np.float32(0.8), 2), (jnp.float32(0.3), 7)],
)
def test_a_text_is_cut_at_the_decimal_that_was_written(test, at):
    split, _ = fdl.data.text.characters("abcdefghij", test=test)
    assert [len(part) for part in split] == [at, 10 - at]


@pytest.mark.parametrize(
    "seed", [jnp.uint32(2**32 - 1), np.uint32(7), np.int64(7), np.array(3), jnp.int8(5), 2**32 - 1]
)
def test_a_seed_may_be_that_of_another_run(seed):
    run = fdl.start({"w": jnp.ones(1)}, sgd(), seed=seed)
    assert run.seed.dtype == jnp.uint32
    assert int(run.seed) == int(seed)


def test_runs_may_be_started_under_vmap_and_jit():
    start = lambda seed: fdl.start({"w": jnp.ones(2)}, fdl.adam(0.1), seed=seed)  # noqa: E731
    runs = jax.vmap(start)(jnp.arange(3))
    assert runs.seed.tolist() == [0, 1, 2]
    assert int(jax.jit(start)(jnp.uint32(9)).seed) == 9


# ---------------------------------------------------------------------- what examples see of others


def pairs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    return x, (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def both_sides(params, x):
    return x @ params


def own_contrast(params, batch):
    x, y = batch
    return fdl.info_nce(x @ params, y @ params).mean()


info_nce = jax.jit(fdl.info_nce)

CONTRASTS = {
    "supervised": lambda: fdl.supervised(both_sides, fdl.info_nce),
    "plain": lambda: fdl.plain(own_contrast),
    "a metric alone": lambda: fdl.supervised(
        both_sides, fdl.squared_error, contrast=lambda p, y: fdl.info_nce(p, y)
    ),
}


@pytest.mark.parametrize("kind", CONTRASTS)
def test_examples_that_look_at_each_other_are_evaluated_by_whole_batches(kind):
    score, (x, y), params = CONTRASTS[kind](), pairs(), np.eye(3, dtype=np.float32)
    name = "contrast" if kind == "a metric alone" else "loss"
    found = fdl.evaluate(score, params, (x, y), batch_size=10)[name]
    by_hand = sum(np.sum(np.asarray(info_nce(x[i : i + 10], y[i : i + 10]))) for i in (0, 10, 20))
    if kind == "plain":  # the target side goes through the parameters too: here they are equal
        assert found > 0
    assert found == pytest.approx(by_hand / 24, rel=1e-5)


def spread(params, batch):
    return jnp.var(both_sides(params, batch[0]), axis=0).mean()


def unbiased_spread(params, batch):
    """NaN for one example alone."""
    return jnp.var(both_sides(params, batch[0]), axis=0, ddof=1).mean()


def ranking(params, batch):
    """The mean hinge over pairs of a positive and a negative y; 0 if there is no such pair."""
    score, y = both_sides(params, batch[0])[:, 0], batch[1][:, 0] > 0
    pair = y[:, None] & ~y[None]
    losses = jnp.where(pair, jax.nn.relu(1 - (score[:, None] - score[None])), 0.0)
    return losses.sum() / jnp.maximum(pair.astype(jnp.float32).sum(), 1)


def signs(params, batch):
    """Between two examples it is far smaller than for an example with itself."""
    x, y = batch
    return fdl.sigmoid_contrastive(both_sides(params, x), y).mean()


def alike():
    """Data whose neighbours are alike: the first two rows, and signs of y in order."""
    x, y = pairs()
    order = np.argsort(y[:, 0])
    x, y = x[order], y[order]
    x[1], y[1] = x[0], y[0]
    return x, y


@pytest.mark.parametrize("loss", [spread, unbiased_spread, ranking, signs])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_examples_that_look_at_each_other_are_found_beside_alike_ones(loss, wrap):
    data, params = alike(), np.eye(3, dtype=np.float32)
    score = fdl.plain(loss)
    found = wrap(lambda params: fdl.evaluate(score, params, data, batch_size=8))(params)
    parts = [jax.jit(loss)(params, tuple(each[i : i + 8] for each in data)) for i in (0, 8, 16)]
    assert found["loss"] == pytest.approx(np.mean(parts), rel=1e-5)
    assert np.mean(parts) > 0.1


def test_a_metric_that_one_example_alone_does_not_have():
    def score(params, state, batch, key):
        x, y = batch
        return jnp.mean((x - y) ** 2), (state, {"r": jnp.corrcoef(x[:, 0], x[:, 1])[0, 1]})

    (x, y) = pairs()
    found = fdl.evaluate(score, {}, (x, y), batch_size=12)["r"]
    by_hand = [np.corrcoef(x[i : i + 12, 0], x[i : i + 12, 1])[0, 1] for i in (0, 12)]
    assert found == pytest.approx(np.mean(by_hand), rel=1e-5)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_loss_that_is_not_finite_is_compared_without_a_warning(value):
    score = fdl.plain(lambda params, batch: jnp.mean(batch[0]) * 0 + value)
    np.testing.assert_equal(fdl.evaluate(score, {}, pairs())["loss"], value)


def test_no_more_examples_are_compared_than_fit_into_a_batch():
    seen = []

    def score(params, batch):
        seen.append(len(batch[0]))
        return jnp.mean(batch[0])

    fdl.evaluate(fdl.plain(score), {}, pairs(), batch_size=4)
    assert max(seen) == 4


def test_a_contrastive_run_is_validated_by_whole_batches_and_keeps_its_best():
    score, optimizer = fdl.supervised(both_sides, fdl.info_nce), sgd()
    run = fdl.start(0.1 * jnp.eye(3), optimizer)
    best = fdl.keep_best()
    how = {"batch_size": 8, "steps": 40, "record_every": 4}
    how["watch"] = [best, fdl.early_stop(patience=2)]
    result = fdl.fit(score, optimizer, run, pairs(), validation=pairs(), **how)
    values = [record["val_loss"] for record in result.history]
    assert result.reason == "done"
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
    assert best.step == 40
    again = fdl.evaluate(score, result, pairs(), batch_size=8)["loss"]
    assert again == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.filterwarnings("ignore:compare_optimizers. expected the best rate of")
def test_members_of_a_comparison_are_validated_by_whole_batches_too():
    score = fdl.supervised(both_sides, fdl.info_nce)
    init = lambda seed: (0.1 * jnp.eye(3), {})  # noqa: E731
    found = fdl.compare_optimizers(
        *(score, init, pairs(), {"sgd": fdl.sgd}),
        **{"rates": [0.01, 0.1, 5.0], "seeds": [0], "batch_size": 8, "steps": 4},
        validation=pairs(),
    )["sgd"]
    optimizer = sgd()
    run = fdl.start(0.1 * jnp.eye(3), optimizer)
    alone = fdl.fit(score, optimizer, run, pairs(), batch_size=8, steps=4, validation=pairs())
    assert found.curves["val_loss"][1, 0, -1] == pytest.approx(
        alone.history[-1]["val_loss"], rel=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_no_look_at_others(dtype):
    net, params, state = normed()
    x = array(np.random.default_rng(1).standard_normal((6, 40)), dtype)
    params = jax.tree.map(lambda leaf: array(leaf, dtype), params)
    score = fdl.supervised(net, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    assert not mixes_examples(score, params, state, (x, np.arange(6, dtype=np.int32) % 5))


@functools.cache
def normed():
    """(network, params, state)."""
    net = fdl.chain(fdl.dense(64), fdl.gelu, fdl.layer_norm(), fdl.dense(5))
    return net, *net.init(jax.random.key(0), np.ones((6, 40), np.float32))


def test_an_objective_that_needs_two_examples_is_evaluated():
    def spread(w, batch):
        if batch.shape[0] < 2:
            raise ValueError("spread: expected two examples, got one; give more")
        return jnp.var(w * batch)

    assert fdl.evaluate(fdl.plain(spread), 2.0, jnp.array([0.0, 1.0, 0.0, 1.0]))["loss"] == 1.0


# ------------------------------------------------------------------------------ long means, and NaN


def test_a_mean_over_two_million_steps_is_exact():
    step = {"loss": Mean(jnp.float32(0.1), jnp.float32(1.0))}
    zero = {"loss": step["loss"].nothing()}
    total = jax.jit(
        lambda: jax.lax.fori_loop(0, 2_000_000, lambda _, means: added(means, step), zero)
    )()["loss"]
    assert float(total.value()) == pytest.approx(float(np.float32(0.1)), rel=1e-7)
    assert float(total.count) == 2_000_000


def test_an_evaluation_of_many_examples_is_exact():
    x = np.full(1_500_007, 0.1, np.float32)
    found = fdl.evaluate(fdl.plain(lambda w, x: jnp.mean(w * x)), 1.0, x, batch_size=300_000)
    assert found["loss"] == pytest.approx(float(np.float32(0.1)), rel=3e-7)


def test_a_nan_at_the_first_record_is_not_the_best():
    def score(w, state, batch, key):
        loss = jnp.mean((w - batch) ** 2)
        return loss, (state, {"odd": jnp.where(w == 0, jnp.nan, loss)})

    optimizer = fdl.sgd(lambda count: jnp.where(count < 2, 0.0, 0.1))
    run = fdl.start(jnp.zeros(()), optimizer)
    best = fdl.keep_best("val_odd")
    how = {"batch_size": 4, "steps": 6, "record_every": 1}
    how["watch"] = [best, fdl.early_stop("val_odd", 3)]
    result = fdl.fit(score, optimizer, run, np.ones(8), validation=np.ones(8), **how)
    assert [np.isnan(record["val_odd"]) for record in result.history] == [True, True, *[False] * 4]
    assert result.reason == "done"
    assert best.step == 6


def test_no_finite_record_is_no_best_and_patience_ends_it():
    def score(w, state, batch, key):
        return jnp.mean((w - batch) ** 2), (state, {"odd": w * jnp.nan})

    optimizer = sgd()
    run = fdl.start(jnp.zeros(()), optimizer)
    best = fdl.keep_best("val_odd")
    how = {"batch_size": 4, "steps": 9, "record_every": 1}
    how["watch"] = [best, fdl.early_stop("val_odd", 3)]
    result = fdl.fit(score, optimizer, run, np.ones(8), validation=np.ones(8), **how)
    assert result.reason == "no better val_odd for 3 records"
    with pytest.raises(
        ValueError,
        match=r"^keep_best: expected a record with a finite val_odd, got none; train first, with "
        r"this hook in watch=\[...\]$",
    ):
        fdl.evaluate(score, best, np.ones(8))


@pytest.mark.parametrize("rate", [np.inf, np.nan])
def test_parameters_that_are_not_finite_after_the_last_step_warn(rate):
    optimizer = optax.sgd(rate)
    with pytest.warns(
        UserWarning,
        match=r"^fit: expected finite parameters and state, got (nan|-?inf) at 'params' by step 1; "
        r"training ended there: try a smaller learning rate, or fdl.optim.apply_if_finite around "
        r"the optimizer$",
    ):
        result = fdl.fit(
            *(fdl.plain(SQUARE), optimizer, fdl.start(jnp.zeros(()), optimizer), np.ones(4)),
            **{"steps": 1},
        )
    assert result.reason == "not finite"
    assert result.history[-1]["loss"] == 1.0


def test_one_bad_batch_does_not_end_what_the_optimizer_keeps_sound():
    """A loss of 0 to the power -1 at one example; its running mean stays as it was, too."""
    layer = running_mean()

    def score(w, state, batch, key):
        x, state = layer.apply({}, state, 1 / batch, train=key is not None)
        return jnp.mean((w - x) ** 2), (state, {})

    optimizer = fdl.optim.apply_if_finite(fdl.sgd(0.05), 5)
    rows = np.ones((10, 1), np.float32)
    rows[3] = 0.0
    _, state = layer.init(jax.random.key(0), rows[:1])
    run = fdl.start(jnp.zeros(()), optimizer, state=state)
    result = fdl.fit(score, optimizer, run, rows, batch_size=2, steps=25, record_every=5)
    assert result.reason == "done"
    assert int(result.run.step) == 25
    assert int(result.run.opt_state.total_notfinite) == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.run))
    assert all(not np.isfinite(record["loss"]) for record in result.history)


@pytest.mark.parametrize("form", ["tuple", "dict"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_of_weight_0_may_hold_anything(form, bad):
    x, y = (part.copy() for part in data())
    weight = np.ones(N, np.float32)
    weight[5] = 0
    x[5], y[5, 1] = bad, bad
    rows = (x, y, weight) if form == "tuple" else {"x": x, "y": y, "weight": weight}
    optimizer = sgd()
    result = fdl.fit(
        *(objective(), optimizer, begin(optimizer), rows),
        **{"batch_size": BATCH, "steps": 20, "validation": rows},
    )
    assert result.reason == "done"
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]
    assert np.isfinite(fdl.evaluate(objective(), result, rows)["loss"])
    weight[5] = 1
    with pytest.raises(
        ValueError, match=r"^data at '[0x]': expected finite numbers, got (nan|inf) at row 5 \(1 of"
    ):
        fdl.evaluate(objective(), result, rows)


# ----------------------------------------------------------------------------- what is to be tested

AVERAGES = {
    "schedule_free": lambda: fdl.optim.schedule_free_sgd(0.3),
    "optax's schedule_free": lambda: optax.contrib.schedule_free_sgd(0.3),
    "params_ema": lambda: fdl.optim.chain(fdl.sgd(0.3), fdl.optim.params_ema(0.95)),
    "accumulated": lambda: fdl.optim.accumulate(
        fdl.optim.chain(fdl.sgd(0.3), fdl.optim.params_ema(0.95)), 2
    ),
    "masked": lambda: fdl.optim.masked(
        fdl.optim.chain(fdl.sgd(0.3), fdl.optim.params_ema(0.95)), "**/w"
    ),
    "partition": lambda: fdl.optim.partition(
        {"**/w": fdl.optim.schedule_free_sgd(0.3)}, rest=sgd()
    ),
    "sam": lambda: fdl.optim.sam(
        sgd(), fdl.optim.chain(fdl.optim.normalize(), fdl.sgd(0.3)), sync_period=2
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_fit_validates_and_keeps_what_the_optimizer_wants_tested(name, standard_promotion):
    optimizer, held_out = AVERAGES[name](), data(20, 1)
    best = fdl.keep_best()
    how = {"batch_size": BATCH, "steps": 15, "record_every": 5, "watch": [best]}
    result = fdl.fit(objective(), optimizer, begin(optimizer), data(), validation=held_out, **how)
    expected = fdl.optim.eval_params(result.run.opt_state, result.run.params)
    assert any(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result.run.params), strict=True)
    )
    value = fdl.evaluate(objective(), expected, held_out)["loss"]
    raw = fdl.evaluate(objective(), result.run.params, held_out)["loss"]
    assert result.history[-1]["val_loss"] == pytest.approx(value, rel=1e-6)
    assert abs(value - raw) > 1e-4 * raw
    for given in (result, result.run):
        assert fdl.evaluate(objective(), given, held_out)["loss"] == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(
            fdl.predict(model(), given, held_out[0]),
            fdl.predict(model(), expected, held_out[0]),
            rtol=1e-5,
        )
    again = fdl.evaluate(objective(), best, held_out)["loss"]
    assert again == pytest.approx(best.value, rel=1e-6)


def test_lookahead_is_tested_at_the_slow_weights():
    optimizer = fdl.optim.lookahead(sgd(), 5, 0.5)
    score = fdl.plain(lambda pair, batch: SQUARE(pair.fast, batch))
    run = fdl.start(optax.LookaheadParams.init_synced(jnp.zeros(())), optimizer)
    result = fdl.fit(
        score, optimizer, run, np.ones(8), batch_size=4, steps=8, validation=np.ones(8)
    )
    slow = float(result.run.params.slow)
    assert slow != float(result.run.params.fast)
    assert result.history[-1]["val_loss"] == pytest.approx((slow - 1) ** 2, rel=1e-6)
    assert float(result.params.fast) == slow


def test_other_optimizers_test_what_they_train():
    optimizer = fdl.adam(0.1)
    result = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=3)
    assert_same(result.params, result.run.params)
    assert_same(result.state, result.run.state)


def test_members_of_a_comparison_are_tested_as_their_runs_are():
    makes = {
        "ema": lambda rate: fdl.optim.chain(fdl.sgd(rate), fdl.optim.params_ema(0.95)),
        "free": fdl.optim.schedule_free_sgd,
    }
    how = {"batch_size": BATCH, "steps": 10, "validation": data(20, 1)}
    init = lambda seed: weights()  # noqa: E731
    found = fdl.compare_optimizers(
        objective(), init, data(), makes, rates=[1e-4, 0.3, 9.0], seeds=[0], **how
    )
    for name, make in makes.items():
        alone = fdl.fit(objective(), make(0.3), begin(make(0.3)), data(), **how)
        assert found[name].curves["val_loss"][1, 0, -1] == pytest.approx(
            alone.history[-1]["val_loss"], rel=1e-5
        )


# ------------------------------------------------------------------ nothing on the host loses a run


def test_a_log_that_fails_waits_and_warns_once(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = fdl.log(folder / "history.jsonl")
    log({"step": 1}, None)
    shutil.rmtree(folder)
    with pytest.warns(
        UserWarning,
        match=r"^log: expected a file that can be written, got No such file or directory for "
        r".*history.jsonl; training continues, and the records are in the history$",
    ) as warned:
        log({"step": 2}, None)
    assert len(warned) == 1
    log({"step": 3}, None)  # warnings are errors here: once is enough
    folder.mkdir()
    log({"step": 4}, None)
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_disk_loses_no_run():
    optimizer = sgd()
    with pytest.warns(
        UserWarning, match=r"^log: expected a file that can be written, got No space"
    ):
        result = fdl.fit(
            *(objective(), optimizer, begin(optimizer), data()),
            **{"steps": 9, "record_every": 3, "watch": [fdl.log("/dev/full")]},
        )
    assert result.reason == "done"
    assert len(result.history) == 3


def test_a_hook_that_raises_ends_training_and_the_run_is_kept():
    def broken(record, run):
        if record["step"] == 6:
            raise BrokenPipeError("nobody reads this")

    optimizer, after = sgd(), []
    with pytest.warns(
        UserWarning,
        match=r"(?s)^fit: expected no error from the data, the evaluation and the hooks, got "
        r"BrokenPipeError: nobody reads this; training ended, and the result has the run and the "
        r"history\n"
        r"Traceback .*in broken\n.*BrokenPipeError: nobody reads this\n$",
    ):
        result = fdl.fit(
            *(objective(), optimizer, begin(optimizer), data()),
            **{"steps": 30, "record_every": 3},
            watch=[broken, lambda record, run: after.append(record["step"])],
        )
    assert result.reason == "failed: BrokenPipeError"
    assert int(result.run.step) == 6
    assert after == [3, 6]
    result = fdl.fit(objective(), optimizer, result, data(), steps=30, record_every=3)
    whole = fdl.fit(objective(), optimizer, begin(optimizer), data(), steps=30, record_every=3)
    assert_same(result.run, whole.run)
    assert without_seconds(result.history) == without_seconds(whole.history)


# ---------------------------------------------------------------------- programs and what they hold


def test_what_an_objective_closes_over_is_freed_and_programs_with_it():
    alive, x = [], data()[0]

    def once():
        net = fdl.chain(fdl.dense(2), fdl.tanh)
        table = jnp.ones((7, 3))
        objective = fdl.supervised(lambda p, x: net.apply(p, {}, x @ (table.T @ table))[0], LOSS)
        optimizer = fdl.sgd(0.1)
        run = fdl.start(net.init(jax.random.key(0), x)[0], optimizer)
        fdl.fit(objective, optimizer, run, data(), steps=2, validation=data())
        fdl.evaluate(objective, run.params, data())
        fdl.predict(net, run.params, x)
        speaker = fdl.chain(fdl.embedding(4, 4))
        spoken, _ = speaker.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        fdl.generate(speaker, spoken, jnp.zeros((1, 1), jnp.int32), 2)
        alive.append(weakref.ref(speaker))
        alive.extend(map(weakref.ref, (net, table, optimizer.update, objective.model)))

    LOSS = fdl.squared_error
    for _ in range(3):
        once()
    gc.collect()
    assert [ref() for ref in alive] == [None] * 15


def counted(traced):
    @weak_jit(static=["of"])
    def call(x, *, of):
        traced.append(of)
        return x + 1

    return call


class Callable:
    def __init__(self):
        self.table = {}

    def loss(self, x):
        return x


def test_equal_static_arguments_share_a_program_and_others_do_not():
    traced, f, g = [], Callable().loss, Callable()
    call = counted(traced)
    shared = [
        (lambda: fdl.plain(SQUARE)),
        (lambda: fdl.supervised(model(), fdl.squared_error)),
        (lambda: functools.partial(SQUARE, 1.0, batch=(f,))),
        (lambda: g.loss),
        (lambda: (1, "a", None)),
    ]
    for number, make in enumerate(shared, start=1):
        for _ in range(3):
            assert float(call(1.0, of=make())) == 2.0
        assert len(traced) == number
    different = [1, 1.0, True, "1", Callable().loss, fdl.plain(lambda w, b: w), (1,), ((1,),)]
    for number, of in enumerate(different, start=len(shared) + 1):
        call(1.0, of=of)
        assert len(traced) == number


def test_objects_without_a_hash_are_compared_by_identity():
    class Model:
        __hash__ = None

    traced = []
    call, first, second = counted(traced), Model(), Model()
    for of in (first, second, first, (second,), (second,)):
        call(1.0, of=of)
    assert traced == [first, second, (second,)]
    ref = weakref.ref(first)
    del first, of
    traced.clear()
    gc.collect()
    assert ref() is None


def test_a_program_may_be_called_from_several_threads_and_inside_another():
    traced = []
    call = counted(traced)

    def work():
        for _ in range(20):
            assert float(jax.jit(lambda x: call(x, of=SQUARE))(1.0)) == 2.0

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(traced) == {SQUARE}


def test_a_forgotten_program_leaves_no_entry():
    @weak_jit(static=["of"])
    def call(x, *, of):
        return of.loss(x, x)

    kept = fdl.plain(SQUARE)
    call(1.0, of=kept)
    for _ in range(3):
        call(1.0, of=fdl.plain(lambda w, b: w))
    gc.collect()
    assert len(call.programs) == 1


@pytest.mark.parametrize("epochs", ["two", np.inf, -1, None])
def test_wrong_numbers_of_epochs_are_refused(epochs):
    sentence = (
        "fit: expected either epochs or steps, got neither; pass one of them"
        if epochs is None
        else f"fit: expected epochs >= 0, a number of passes over the data, got {epochs!r}; pass e"
    )
    optimizer = sgd()
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        fdl.fit(objective(), optimizer, begin(optimizer), data(), epochs=epochs)


# --------------------------------------------------------------------- mistakes that train silently

MIXING = {
    "conv without a batch axis": lambda: (fdl.conv(8, (3, 3)), (8, 8)),
    "attention without a batch axis": lambda: (fdl.attention(heads=2, features=8), (8,)),
    "recurrent without a batch axis": lambda: (fdl.lstm(4), (6,)),
    "a mean over everything": lambda: (fdl.chain(fdl.dense(4), lambda x: x - x.mean()), (6,)),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("who", ["fit", "evaluate", "compare_optimizers"])
def test_a_model_that_takes_the_batch_for_another_axis_is_refused(name, who):
    layer, shape = MIXING[name]()
    net = fdl.chain(layer, fdl.flatten(), fdl.dense(3)) if len(shape) > 1 else layer
    x = np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)
    params, state = net.init(jax.random.key(0), x)
    y = np.zeros(jax.eval_shape(lambda: net.apply(params, state, x)[0]).shape, np.float32)
    score, optimizer = fdl.supervised(net, fdl.squared_error), sgd()
    calls = {
        "fit": lambda: fdl.fit(
            *(score, optimizer, fdl.start(params, optimizer, state=state), (x, y)),
            **{"steps": 1, "batch_size": 4},
        ),
        "evaluate": lambda: fdl.evaluate(score, params, (x, y), state=state),
        "compare_optimizers": lambda: fdl.compare_optimizers(
            *(score, lambda seed: (params, state), (x, y), {"sgd": fdl.sgd}),
            **{"rates": [0.1], "seeds": [0], "steps": 1, "batch_size": 4},
        ),
    }
    with pytest.raises(
        fdl.PathError,
        match=r"^supervised: expected the output for an example to depend on that example alone, "
        r"got -?[\d.e-]+ in a batch and -?[\d.e-]+ alone at \[\d+, .*\]; the model "
        r"uses the batch axis as another axis: add the missing axis to x, for example "
        r"x\[..., None\]$",
    ):
        calls[who]()


def test_rounding_to_half_precision_mixes_no_examples():
    """A product of many examples adds up in another order than that of one."""
    net = fdl.compute_in(fdl.mlp([512, 512], 4), "bfloat16")
    x = np.random.default_rng(0).normal(size=(64, 784)).astype(np.float32)
    params, state = net.init(jax.random.key(0), x)
    score = fdl.supervised(net, fdl.softmax_cross_entropy)
    data = jax.tree.map(jnp.asarray, (x, np.arange(64, dtype=np.int32) % 4))
    assert mixes_examples(score, params, state, data) is False
    mixing = fdl.supervised(
        fdl.compute_in(fdl.chain(fdl.dense(4), lambda y: y - y.mean(0)), "bfloat16"),
        fdl.softmax_cross_entropy,
    )
    params, state = fdl.dense(4).init(jax.random.key(0), x)
    with pytest.raises(fdl.PathError, match=r"^supervised: expected the output for an example to"):
        mixes_examples(mixing, {"dense_0": params}, state, data)


@pytest.mark.parametrize("part", ["loss", "metric"])
def test_a_loss_that_broadcasts_predictions_against_targets_is_refused(part):
    net = fdl.dense(1)
    x, y = np.ones((8, 3), np.float32), np.arange(8, dtype=np.float32)
    wrong = lambda p, y: (p - y) ** 2  # noqa: E731
    right = lambda p, y: (p[:, 0] - y) ** 2  # noqa: E731
    losses = (wrong, right) if part == "loss" else (right, wrong)
    score = fdl.supervised(net, losses[0], error=losses[1])
    params, _ = net.init(jax.random.key(0), x)
    name = "loss" if part == "loss" else "error"
    with pytest.raises(
        fdl.PathError,
        match=rf"^supervised: expected {name} as a number for each example, \[B\] or \[B, ...\], "
        r"got \[1, 1\] for one example and \[2, 2\] for two; predictions and targets broadcast "
        r"against each other: give both the same shape$",
    ):
        fdl.fit(score, sgd(), fdl.start(params, sgd()), (x, y), steps=1)


BROADCASTING = {
    "mean": lambda p, y: jnp.mean((p - y) ** 2),
    "sum over all": lambda p, y: jnp.abs(p - y).sum() / len(p),
}
PAIRED = {
    "a column": lambda p, y: jnp.mean((p[:, 0] - y) ** 2),
    "flat": lambda p, y: jnp.mean((p.ravel() - y) ** 2),
    "correlation": lambda p, y: 1 - jnp.corrcoef(p[:, 0], y)[0, 1],
    "ranks": lambda p, y: jax.nn.softplus((p - p.T) * jnp.sign(y - y[:, None])).mean(),
}


@functools.cache
def one_output():
    """(layer, params)."""
    return fdl.dense(1), fdl.dense(1).init(jax.random.key(0), np.ones((8, 3), np.float32))[0]


@pytest.mark.parametrize("name", [*BROADCASTING, *PAIRED])
@pytest.mark.parametrize("part", ["loss", "metric"])
def test_a_mean_that_broadcasts_predictions_against_targets_is_refused(name, part):
    """It is a scalar, so that its shape does not show it."""
    x = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    y, (net, params) = x[:, 0] - x[:, 1], one_output()
    optimizer = sgd()
    f, square = (BROADCASTING | PAIRED)[name], lambda p, y: (p[:, 0] - y) ** 2
    score = fdl.supervised(net, *([f] if part == "loss" else [square]), error=f)
    run = fdl.start(params, optimizer)
    calls = [
        lambda: fdl.fit(score, optimizer, run, (x, y), steps=1),
        lambda: fdl.evaluate(score, run, (x, y)),
    ]
    told = rf"^supervised: expected {'loss' if part == 'loss' else 'error'} to get predictions and "
    told += r"targets of the same shape, got \[B, 1\] and \[B\], which broadcast against each "
    for call in calls:
        if name in PAIRED:
            call()
        else:
            with pytest.raises(fdl.PathError, match=told + "other; reshape one of them$"):
                call()


BAD_WEIGHTS = {
    "negative": (
        -1.0,
        r"supervised: expected weights >= 0, got -1.0 at row 3; weight 0 leaves an ex",
    ),
    "nan": (
        np.nan,
        r"data at '2': expected finite numbers, got nan at row 3 \(1 of 53 rows are not",
    ),
    "zeros": (
        0.0,
        r"supervised: expected a weight above 0, got only zeros \[53\]; nothing could be",
    ),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
@pytest.mark.parametrize("who", ["fit", "validation", "evaluate"])
def test_weights_that_cannot_be_meant_are_refused(name, who):
    value, sentence = BAD_WEIGHTS[name]
    weight = np.zeros(N, np.float32) if name == "zeros" else np.ones(N, np.float32)
    weight[3] = value
    optimizer, rows = sgd(), (*data(), weight)
    calls = {
        "fit": lambda: fdl.fit(objective(), optimizer, begin(optimizer), rows, steps=1),
        "validation": lambda: fdl.fit(
            objective(), optimizer, begin(optimizer), data(), steps=1, validation=rows
        ),
        "evaluate": lambda: fdl.evaluate(objective(), begin(optimizer).params, rows),
    }
    with pytest.raises(ValueError, match="^" + sentence):
        calls[who]()


def test_parameters_may_be_python_numbers():
    """From 3 towards 1 at rate 0.25: the error is halved at every step."""
    objective, optimizer = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2)), fdl.sgd(0.25)
    run = fdl.start(3.0, optimizer)
    result = fdl.fit(objective, optimizer, run, np.ones(8, "float32"), batch_size=4, steps=3)
    assert float(result.run.params) == 1.25


def test_a_huge_number_of_weight_0_moves_nothing():
    x, y = (part.copy() for part in data())
    weight = np.ones(N, np.float32)
    weight[:3] = 0
    x[0], y[1], x[2, 1] = 3e38, -3e38, -3e38
    optimizer = sgd()
    how = {"batch_size": BATCH, "steps": 20}
    result = fdl.fit(objective(), optimizer, begin(optimizer), (x, y, weight), **how)
    x[:3], y[:3] = 0, 0
    clean = fdl.fit(objective(), optimizer, begin(optimizer), (x, y, weight), **how)
    assert_same(result.run.params, clean.run.params)


def test_the_past_of_a_sequence_may_have_weight_0_and_still_be_looked_at():
    """Inputs of weight 0 are kept if the rest of their example has weight."""
    looks_back = lambda w, x: w * jnp.cumsum(x, axis=1)  # noqa: E731
    score = fdl.supervised(looks_back, fdl.squared_error)
    x, y = np.array([[2.0, 3.0]], np.float32), np.array([[np.nan, 0.0]], np.float32)
    weight = np.array([[0.0, 1.0]], np.float32)
    assert fdl.evaluate(score, 1.0, (x, y, weight))["loss"] == 25.0


def test_parameters_that_the_loss_does_not_use_warn():
    params = begin(sgd()).params
    score = fdl.plain(lambda p, batch: SQUARE(params["dense_0"]["w"][0, 0], batch[0]))
    with pytest.warns(
        UserWarning,
        match=r"^fit: expected parameters that change, got the same ones after 3 steps; check that "
        r"the loss uses the parameters that it gets, and that the learning rate is not 0$",
    ):
        fdl.fit(score, sgd(), begin(sgd()), data(), steps=3)


REPORTS = {
    "loss alone": (lambda w: jnp.mean(w), r"got float32 \[\]; fdl.plain makes an objective"),
    "vector": (
        lambda w: (w * jnp.ones(3), ({}, {})),
        r"got float32 \[3\]; take the mean over the examples, or report fdl.train.weighted_mean",
    ),
    "no metrics": (lambda w: (w, {}), r"got \(float32 \[\], dict\); fdl.plain makes"),
    "list of three": (lambda w: (w, {}, {}), r"got \(float32 \[\], dict, dict\); fdl.plain makes"),
    "vector metric": (
        lambda w: (w, ({}, {"each": w * jnp.ones(2)})),
        r"got float32 \[2\]; take the mean over the examples",
    ),
    "text metric": (lambda w: (w, ({}, {"each": "good"})), r"got 'good'; take the mean over the e"),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("who", ["fit", "evaluate"])
def test_objectives_that_report_something_else_raise(name, who):
    report, got = REPORTS[name]
    what = {"vector metric": "each", "text metric": "each", "vector": "loss"}.get(name)
    expected = f"{what} as one number for the batch" if what else r"\(loss, \(state, metrics\)\)"
    score = lambda w, state, batch, key: report(w)  # noqa: E731
    calls = {
        "fit": lambda: fdl.fit(score, sgd(), fdl.start(jnp.ones(()), sgd()), np.ones(4), steps=1),
        "evaluate": lambda: fdl.evaluate(score, jnp.ones(()), np.ones(4)),
    }
    with pytest.raises(ValueError, match=rf"^objective: expected {expected}, {got}"):
        calls[who]()


# ------------------------------------------------------------------ evaluation inside a program

JITTED = {
    "alone": lambda: (objective(), begin(sgd()).params, data(), 7),
    "weighted": lambda: (
        fdl.supervised(model(), fdl.squared_error, error=fdl.absolute_error),
        begin(sgd()).params,
        (*data(), np.arange(N, dtype=np.float32)),
        256,
    ),
    "a metric": lambda: (
        fdl.supervised(model(), fdl.squared_error, seen=fdl.metrics.mean_of(fdl.absolute_error)),
        begin(sgd()).params,
        data(),
        256,
    ),
    "looking around": lambda: (CONTRASTS["supervised"](), array(np.eye(3)), pairs(), 10),
    "plain, looking around": lambda: (CONTRASTS["plain"](), array(np.eye(3)), pairs(), 10),
    "one example": lambda: (objective(), begin(sgd()).params, data(1), 256),
}


@pytest.mark.parametrize("name", JITTED)
@pytest.mark.parametrize("traced", ["params", "data", "nothing"])
def test_evaluate_works_under_jit_and_says_the_same(name, traced):
    score, params, rows, size = JITTED[name]()
    rows = jax.device_put(rows)
    eager = fdl.evaluate(score, params, rows, batch_size=size)
    assert all(type(value) is float for value in eager.values())
    how = {"batch_size": size}
    found = {
        "params": lambda: jax.jit(lambda p: fdl.evaluate(score, p, rows, **how))(params),
        "data": lambda: jax.jit(lambda rows: fdl.evaluate(score, params, rows, **how))(rows),
        "nothing": lambda: jax.jit(lambda: fdl.evaluate(score, params, rows, **how))(),
    }[traced]()
    assert all(value.shape == () for value in found.values())
    assert {k: float(v) for k, v in found.items()} == pytest.approx(eager, rel=2e-6)


def test_evaluate_may_be_mapped_and_differentiated():
    score, _, rows, _ = JITTED["looking around"]()
    many = np.stack([np.eye(3), 0.5 * np.eye(3)]).astype(np.float32)
    of = lambda p: fdl.evaluate(score, p, rows, batch_size=10)["loss"]  # noqa: E731
    found = jax.vmap(of)(many)
    np.testing.assert_allclose(found, [of(many[0]), of(many[1])], rtol=1e-6)
    params = np.diag([1.0, 0.5, 0.2]).astype(np.float32)
    step = np.diag([0.02, 0.0, 0.0]).astype(np.float32)
    along = (of(params + step) - of(params - step)) / 0.04
    assert abs(along) > 0.01
    assert float(np.asarray(jax.grad(of)(params))[0, 0]) == pytest.approx(along, rel=1e-2)


def test_known_data_are_checked_inside_a_jit():
    x, y = data()
    x = np.where((np.arange(N) == 3)[:, None] & (np.arange(3) == 1), np.nan, x)
    x = array(x)
    with pytest.raises(
        ValueError, match=r"^data at '0': expected finite numbers, got nan at row 3"
    ):
        jax.jit(lambda p: fdl.evaluate(objective(), p, (x, y)))(begin(sgd()).params)


@pytest.mark.parametrize("kind", ["layer", "function"])
def test_predict_takes_the_extra_inputs_of_a_model(kind):
    net = fdl.network(
        lambda f, x, *, shift, scale=None: f.a(x) + shift["by"] * (1 if scale is None else scale),
        a=fdl.dense(2),
    )
    rng = np.random.default_rng(0)
    x, shift, scale = (rng.normal(size=(7, n)).astype(np.float32) for n in (3, 2, 1))
    params, _ = net.init(jax.random.key(0), x, shift={"by": shift})
    model = net if kind == "layer" else lambda p, x, **inputs: net.apply(p, {}, x, **inputs)[0]
    expected = x @ np.asarray(params["a"]["w"]) + np.asarray(params["a"]["b"]) + shift * scale
    found = fdl.predict(model, params, x, batch_size=3, shift={"by": shift}, scale=scale)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jitted = jax.jit(lambda p, x: fdl.predict(model, p, x, shift={"by": shift}, scale=scale))
    np.testing.assert_allclose(jitted(params, x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError,
        match=r"^data: expected arrays of the same length \[N, \.\.\.\], got 'shift/by': \[6, 2\], "
        r"'x': \[7, 3\]; every example needs one row in every array$",
    ):
        fdl.predict(model, params, x, shift={"by": shift[:6]})


def test_predict_refuses_an_input_that_the_model_does_not_take():
    params = begin(sgd()).params
    with pytest.raises(
        fdl.PathError,
        match=r"^small: expected extra inputs among \[\], got 'mask', which no layer here takes; "
        r"leave it out, or add an argument of this name to the layer that needs it",
    ):
        fdl.predict(model(), params, data()[0], mask=np.ones(N, bool))


# ------------------------------------------------------------------- the user's settings of ranks


def with_bias(params, x):
    return x @ params["w"] + params["b"]


def test_training_needs_no_free_ranks_of_the_user():
    """A plain model that adds [N, 2] and [2]; each call of training, inside and out of programs."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    score = fdl.supervised(with_bias, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    x, y = data()[0], np.arange(N, dtype=np.int32) % 2
    how = {"batch_size": BATCH, "steps": 2}
    with jax.numpy_rank_promotion("raise"):
        with pytest.raises(ValueError, match=r"Operands could not be broadcast together"):
            with_bias(params, x)
        optimizer = fdl.adam(0.1)
        run = fdl.start(params, optimizer)
        result = fdl.fit(score, optimizer, run, (x, y), validation=(x, y), **how)
        again, _ = fdl.train_step(score, optimizer, run, (x, y), BATCH)
        assert int(again.step) == 1
        found = fdl.evaluate(score, result, (x, y))
        assert found["loss"] == pytest.approx(result.history[-1]["val_loss"], rel=1e-5)
        assert fdl.predict(with_bias, result, x).shape == (N, 2)
        rates = {"rates": [0.01, 0.1, 1.0], "seeds": [0], "validation": (x, y)}
        init = lambda seed: (params, {})  # noqa: E731
        fdl.compare_optimizers(score, init, (x, y), {"adam": fdl.adam}, **rates, **how)
        assert jax.config.jax_numpy_rank_promotion == "raise"


SEEDED_BUGS = {
    "fdl/ops/rank_promotion.py": (
        "train/test_loop.py -k ranks",
        [('None) == "allow"', 'None) != "raise_"')],
    ),
    "fdl/optim/wrappers/evaluation_params.py": (
        "train/test_loop.py",
        [
            ("LookaheadParams(params.slow, params.slow)", "params"),
            ("state.steps_since_sync == 0, w, start", "state.steps_since_sync != 0, w, start"),
            ("(1.0 - state.b1) * z", "state.b1 * z"),
            ("found += [part, *_parts(tuple(part), kind)]", "found = [part]"),
        ],
    ),
    "fdl/core/compilation.py": (
        "train/test_loop.py",
        [
            ("owner.programs.pop(program.key, None)", "pass"),
            ("self.key = _key_of(static, forget)", "self.key = tuple(static.values())"),
            ("return type(value), value\n", "return value\n"),
            ("self.held.static = before", "pass"),
        ],
    ),
}
