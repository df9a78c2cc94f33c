"""Metrics against scikit-learn, and exact whatever the batches."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import fdl
from fdl import metrics
from fdl.metrics import Sum, ranking
from tests.programs import array, compiled

N, CLASSES = 60, 4
BYTES_OF = np.array([1, 3, 2, 1])


@functools.cache
def data(kind):
    """(predictions, targets); "classes" has logits of 4 classes, of which the last never occurs."""
    rng = np.random.default_rng(3)
    if kind == "classes":
        labels = rng.integers(0, 3, N)
        logits = rng.standard_normal((N, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
        logits[:, 3] -= 9
        return array(logits), array(labels, np.int32)
    targets = rng.integers(0, 2, N)
    if kind == "binary":
        scores = np.round(2 * rng.standard_normal(N) + targets, 1)  # with ties
        return array(scores), array(targets, np.int32)
    numbers = 1000 + rng.standard_normal((2, N)) + targets
    return array(numbers[0]), array(numbers[1])


@dataclasses.dataclass(frozen=True)
class MetricCase:
    """A metric, the kind of its data, and its oracle: scikit-learn or a float64 formula."""

    metric: metrics.Metric
    kind: str
    oracle: Callable[..., float]
    whole: bool = True  # True if its state holds integers only, and so is exact


def _sklearn(name, average):
    def oracle(predictions, targets, weight):
        binary = predictions.ndim == 1
        said = predictions > 0 if binary else predictions.argmax(-1)
        score = getattr(sklearn.metrics, name)
        return score(targets, said, average=average, sample_weight=weight, zero_division=0)

    return oracle


def _specificities(logits, labels, weight):
    """The specificities of the classes that occur in labels or predictions."""
    said = logits.argmax(-1)
    table = sklearn.metrics.multilabel_confusion_matrix(
        labels, said, labels=range(CLASSES), sample_weight=weight
    )
    used = weight > 0
    return [
        table[c, 0, 0] / table[c, 0].sum()
        for c in range(CLASSES)
        if c in labels[used] or c in said[used]
    ]


def _nats(logits, labels):
    return -scipy.special.log_softmax(logits, -1)[np.arange(len(labels)), labels]


def _calibration(logits, labels, weight, bins=7):
    sure, right = scipy.special.softmax(logits, -1).max(-1), logits.argmax(-1) == labels
    total = 0.0
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        total += abs((weight * (sure - right))[inside].sum())
    return total / weight.sum()


CASES = {
    "accuracy": MetricCase(
        metrics.mean_of(fdl.accuracy),
        "classes",
        lambda p, t, w: sklearn.metrics.accuracy_score(t, p.argmax(-1), sample_weight=w),
    ),
    "top_k": MetricCase(
        metrics.mean_of(functools.partial(metrics.top_k, k=2)),
        "classes",
        lambda p, t, w: sklearn.metrics.top_k_accuracy_score(
            t, p, k=2, labels=range(CLASSES), sample_weight=w
        ),
    ),
    **{
        f"{name}_{average}": MetricCase(
            getattr(metrics, name)(average, 0 if average == "binary" else CLASSES),
            "binary" if average == "binary" else "classes",
            _sklearn(f"{name}_score", average),
        )
        for name in ("precision", "recall", "f1")
        for average in ("binary", "macro", "micro")
    },
    "f1_at_a_threshold": MetricCase(
        metrics.f1("binary", threshold=0.7),
        "binary",
        lambda p, t, w: sklearn.metrics.f1_score(t, p > np.float32(0.7), sample_weight=w),
    ),
    "specificity_binary": MetricCase(
        metrics.specificity("binary", threshold=0.3),
        "binary",
        lambda p, t, w: sklearn.metrics.recall_score(
            t, p > np.float32(0.3), pos_label=0, sample_weight=w
        ),
    ),
    "specificity_macro": MetricCase(
        metrics.specificity("macro", CLASSES),
        "classes",
        lambda p, t, w: np.mean(_specificities(p, t, w)),
    ),
    "binary_accuracy": MetricCase(
        metrics.mean_of(metrics.binary_accuracy(threshold=0.7)),
        "binary",
        lambda p, t, w: sklearn.metrics.accuracy_score(t, p > np.float32(0.7), sample_weight=w),
    ),
    "accuracy_without_a_class": MetricCase(
        metrics.mean_of(fdl.accuracy(ignore_index=1)),
        "classes",
        lambda p, t, w: sklearn.metrics.accuracy_score(t, p.argmax(-1), sample_weight=w * (t != 1)),
    ),
    "average_precision": MetricCase(
        metrics.average_precision(),
        "binary",
        lambda p, t, w: sklearn.metrics.average_precision_score(t, p, sample_weight=w),
    ),
    "auc": MetricCase(
        metrics.auc(),
        "binary",
        lambda p, t, w: sklearn.metrics.roc_auc_score(t, p, sample_weight=w),
    ),
    "r2": MetricCase(
        metrics.r2(),
        "numbers",
        lambda p, t, w: sklearn.metrics.r2_score(t, p, sample_weight=w),
        whole=False,
    ),
    "mse": MetricCase(
        metrics.mean_of(fdl.squared_error),
        "numbers",
        lambda p, t, w: sklearn.metrics.mean_squared_error(t, p, sample_weight=w),
        whole=False,
    ),
    "mae": MetricCase(
        metrics.mean_of(fdl.absolute_error),
        "numbers",
        lambda p, t, w: sklearn.metrics.mean_absolute_error(t, p, sample_weight=w),
        whole=False,
    ),
    "perplexity": MetricCase(
        metrics.perplexity(),
        "classes",
        lambda p, t, w: np.exp(
            sklearn.metrics.log_loss(
                t, scipy.special.softmax(p, -1), labels=range(CLASSES), sample_weight=w
            )
        ),
        whole=False,
    ),
    "bits_per_byte": MetricCase(
        metrics.bits_per_byte(BYTES_OF),
        "classes",
        lambda p, t, w: (w * _nats(p, t)).sum() / np.log(2) / (w * BYTES_OF[t]).sum(),
        whole=False,
    ),
    "calibration_error": MetricCase(
        metrics.calibration_error(7), "classes", _calibration, whole=False
    ),
}
over_cases = pytest.mark.parametrize("name", CASES)


BATCHES = 5


@functools.cache
def accumulated(name):
    """`(predictions, targets, weights [BATCHES, N]) -> (state, value)`: a scan over the batches."""
    metric = CASES[name].metric

    def run(predictions, targets, weights):
        def body(state, weight):
            return metric.update(state, predictions, targets, weight), None

        state, _ = jax.lax.scan(body, metric.init(), weights)
        return state, metric.compute(state)

    return compiled(run)


def alone(weight):
    """One batch with this weight, and others of weight 0, for which the program is the same."""
    return np.float32(np.arange(BATCHES) == 2)[:, None] * np.float32(weight)


@functools.cache
def merged_and_whole(name):
    """(value of two merged states, value of one, values for predictions and for -predictions)."""
    metric = CASES[name].metric

    def state_of(predictions, targets):
        return metric.update(metric.init(), predictions, targets)

    def run(p, t):
        merged = metric.merge(state_of(p[:17], t[:17]), state_of(p[17:], t[17:]))
        both = jax.vmap(lambda p: metric.compute(state_of(p, t)))(jnp.stack([p, -p]))
        return metric.compute(merged), metric.compute(state_of(p, t)), both

    return compiled(run)(*data(CASES[name].kind))


@over_cases
def test_a_metric_matches_scikit_learn(name):
    case = CASES[name]
    predictions, targets = data(case.kind)
    wide = np.asarray(predictions, np.float64), np.asarray(targets)
    _, whole, _ = merged_and_whole(name)
    expected = case.oracle(*wide, np.ones(N))
    assert float(whole) == pytest.approx(expected, rel=1e-5)
    assert expected not in (0, 1)
    weight = np.random.default_rng(1).integers(0, 4, N)
    _, found = accumulated(name)(predictions, targets, alone(weight))
    assert float(found) == pytest.approx(case.oracle(*wide, weight), rel=1e-5)
    assert found != whole


@over_cases
@settings(max_examples=8, deadline=None)
@given(batch_of=st.lists(st.integers(0, 4), min_size=N, max_size=N))
def test_a_metric_is_the_same_for_any_batches(name, batch_of):
    case = CASES[name]
    weight = np.float32(np.random.default_rng(1).integers(0, 4, N))
    mine = np.array(batch_of) == np.arange(BATCHES)[:, None]
    state, value = accumulated(name)(*data(case.kind), weight * np.float32(mine))
    at_once, expected = accumulated(name)(*data(case.kind), alone(weight))
    if case.whole:
        assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(at_once)))
        assert value == expected
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@over_cases
def test_a_metric_merges_and_runs_for_many_models_at_once(name):
    merged, whole, both = merged_and_whole(name)
    np.testing.assert_allclose(merged, whole, rtol=1e-6)
    np.testing.assert_allclose(both[0], whole, rtol=1e-6)
    assert both[1] != both[0]


@over_cases
def test_examples_of_weight_0_are_ignored_even_if_nan(name):
    predictions, targets = data(CASES[name].kind)
    weight = alone(np.arange(N) >= 5)
    _, expected = accumulated(name)(predictions, targets, weight)
    spoilt = np.array(predictions)
    spoilt[:5] = np.nan
    _, found = accumulated(name)(spoilt, targets, weight)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(expected)


# Exact sums.


def test_counts_are_exact_beyond_two_to_the_24():
    metric = metrics.mean_of(fdl.accuracy)
    logits, labels = np.eye(3, dtype=np.float32), np.int32([0, 1, 0])

    @jax.jit
    def run(logits, labels):
        state = metric.update(metric.init(), logits, labels)
        doubled = lambda state, _: (metric.merge(state, state), None)  # noqa: E731
        state, _ = jax.lax.scan(doubled, state, length=30)
        one_more = lambda state, _: (metric.update(state, logits, labels), None)  # noqa: E731
        return jax.lax.scan(one_more, state, length=1001)[0]

    state = run(logits, labels)
    count, total = (
        int(np.float64(state[name].high)) + int(np.float64(state[name].low))
        for name in ("count", "total")
    )
    assert (count, total) == (3 * (2**30 + 1001), 2 * (2**30 + 1001))


@settings(deadline=None)  # its first example compiles
@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=30))
def test_a_sum_of_whole_numbers_is_exact(numbers):
    numbers = [each * 4097 for each in numbers]
    parts = [(np.float32(each), np.float32(each - int(np.float32(each)))) for each in numbers]
    total = functools.reduce(Sum.plus, (Sum(*part) for part in parts))
    assert int(total.high) + int(total.low) == sum(numbers)


def test_statistics_of_numbers_far_from_zero():
    """A difference of sums of squares would lose this variance in float32."""
    metric = metrics.statistics_of(lambda p, t: p - t)
    values = np.asarray(10_000 + 0.1 * np.random.default_rng(0).standard_normal(4096), np.float32)
    batches, zeros = values.reshape(64, 64), np.zeros(64, np.float32)

    @compiled
    def run(batches):
        body = lambda state, x: (metric.update(state, x, zeros), None)  # noqa: E731
        state, _ = jax.lax.scan(body, metric.init(), batches)
        return state, metric.compute(state)

    (state, found), wide = run(batches), values.astype(np.float64)
    assert float(found["variance"]) == pytest.approx(wide.var(), rel=1e-4)
    assert float(state.mean.high) + float(state.mean.low) == pytest.approx(wide.mean(), rel=1e-8)
    weight = np.arange(64, dtype=np.float32)
    found = compiled(metric.__call__)(batches[0], zeros, weight)
    mean = np.average(wide[:64], weights=weight)
    expected = np.average((wide[:64] - mean) ** 2, weights=weight)
    assert float(found["variance"]) == pytest.approx(expected, rel=1e-4)


# Single metrics.


def test_the_accumulated_confusion_matrix():
    logits, labels = data("classes")
    metric = metrics.confusion(CLASSES)
    logits, labels = np.array(logits), np.array(labels)
    value = compiled(metric.__call__)
    expected = np.asarray(fdl.confusion_matrix(logits.argmax(-1), labels, CLASSES))
    np.testing.assert_array_equal(value(logits, labels), expected)
    assert (expected != expected.T).any()
    logits[0, 1], labels[1] = np.nan, -1
    assert value(logits, labels).sum() == N - 2


def test_top_k_of_ties_and_of_nan():
    logits = array([[1.0, 2.0, 2.0], [np.nan, 0.0, 3.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    labels = array([2, 2, 3, 1], np.int32)
    top_k = compiled(metrics.top_k)
    assert top_k(logits, labels, k=1).tolist() == [0, 0, 0, 0]
    assert top_k(logits, labels, k=2).tolist() == [1, 0, 0, 1]
    first = np.int32(np.asarray(logits).argmax(-1))
    np.testing.assert_array_equal(top_k(logits, first, k=1), compiled(fdl.accuracy)(logits, first))
    for k in (0, 4):
        with pytest.raises(
            fdl.PathError,
            match=rf"^top_k: expected k in \[1, 3\], got {k}; pass the number of guesses$",
        ):
            metrics.top_k(logits, labels, k=k)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e30])
def test_the_accumulated_area_is_near_the_exact_one(spread):
    """For scores of any size; two in the same 1/128 count as tied."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 2, 5000)
    scores = np.asarray(spread * (rng.standard_normal(5000) + targets), np.float32)
    targets = targets.astype(np.int32)
    exact = metrics.exact_auc(scores, targets)
    assert exact == pytest.approx(sklearn.metrics.roc_auc_score(targets, scores), rel=1e-12)
    assert abs(float(area(scores, targets)) - exact) < 2e-4
    rounded = scores.astype(jnp.bfloat16).astype(np.float32)
    assert float(area(rounded, targets)) == pytest.approx(
        metrics.exact_auc(rounded, targets), rel=2e-6
    )


area = compiled(metrics.auc().__call__)


def test_auc_without_positives_or_negatives_or_with_nan():
    for scores, targets, expected in [
        ([1.0, 1.0], [1, 1], np.nan),
        ([1.0, 1.0], [0, 0], np.nan),
        ([0.0, np.nan], [0, 1], np.nan),
        ([0.0, -0.0], [0, 1], 0.5),
    ]:
        np.testing.assert_array_equal(area(np.float32(scores), np.int32(targets)), expected)
    for scores, targets, told in [
        (
            [1.0, 2.0],
            [0],
            r"scores \[N\] and targets \[N\], got \[2\] and \[1\]; pass the scores of",
        ),
        (
            [1.0, np.nan],
            [0, 1],
            r"scores that are numbers, got NaN; check whether training diverged$",
        ),
        (
            [1.0, 2.0],
            [1, 1],
            r"the targets 0 and 1, got \[1\]; pass examples of both classes, ",
        ),
        (
            [1.0, 2.0],
            [0, 2],
            r"the targets 0 and 1, got \[0, 2\]; pass examples of both classes, ",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"^exact_auc: expected {told}"):
            metrics.exact_auc(scores, targets)


def test_the_calibration_error_matches_scikit_learn():
    """scikit-learn's curve is of the second class; ours is of the predicted class."""
    rng = np.random.default_rng(5)
    chance = rng.uniform(0.5, 1, 400)
    labels = (rng.random(400) < chance**2).astype(np.int32)
    logits = np.log(np.stack([1 - chance, chance], -1))
    right, sure = sklearn.calibration.calibration_curve(labels, chance, n_bins=10)
    share = np.histogram(chance, np.linspace(0, 1, 11))[0]
    share = share[share > 0] / 400
    found = compiled(metrics.calibration_error(10).__call__)(np.float32(logits), labels)
    expected = (share * np.abs(right - sure)).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_r2_of_targets_that_are_all_equal():
    value, same = compiled(metrics.r2().__call__), np.ones(3, np.float32)
    assert value(same, same) == 1
    assert value(2 * same, same) == 0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: metrics.f1("weighted", 3),
            r"f1: expected average 'binary', 'macro' or 'micro', got 'weighted'; pass 'macro' to "
            r"weight all classes equally, 'micro' to weight all examples equally",
        ),
        (
            lambda: metrics.recall("macro"),
            r"recall: expected classes for 'macro' and 'micro' and none for 'binary', got 0 for "
            r"'macro'; pass classes=2 or more with 'macro' or 'micro'",
        ),
        (
            lambda: metrics.precision("binary", 2),
            r"precision: expected classes for 'macro' and 'micro' and none for 'binary', got 2 for "
            r"'binary'; pass an integer >= 2 with 'macro' or 'micro', or leave classes out with "
            r"'binary'",
        ),
        (
            lambda: metrics.r2()(jnp.ones((3, 1)), jnp.ones(3)),
            r"r2: expected targets with the shape of the predictions, \[3, 1\], got \[3\]; reshape "
            r"one of them",
        ),
        (
            lambda: metrics.auc()(jnp.ones(3), jnp.ones(3), jnp.ones(2)),
            r"auc: expected weights with the shape of the first axes of \[3\], got \[2\]; pass one "
            r"weight for each example",
        ),
        (
            lambda: fdl.supervised(lambda p, x: x, fdl.squared_error, table=metrics.confusion(3)),
            r"supervised: expected metrics whose value is one number, got float32 \[3, 3\] from "
            r"'table'; compute that metric from the outputs of fdl\.predict",
        ),
    ],
)
def test_the_message_for_wrong_options_of_a_metric(call, told):
    with pytest.raises(ValueError, match=rf"^{told}$"):
        call()


# In training and evaluation.


@functools.cache
def objective():
    model = fdl.chain(fdl.dense(5), fdl.tanh, fdl.dense(3))
    return fdl.supervised(
        *(model, fdl.softmax_cross_entropy),
        accuracy=fdl.accuracy,
        f1=metrics.f1("macro", classes=3),
        perplexity=metrics.perplexity(),
    )


def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 101)
    x = rng.standard_normal((101, 4)) + 0.7 * np.eye(4)[labels]
    return np.asarray(x, np.float32), np.asarray(labels, np.int32)


@functools.cache
def scored(model):
    """(params, float64 logits of the examples)."""
    x, _ = examples()

    def run(x):
        params, _ = model.init(jax.random.key(1), x)
        return params, model.apply(params, {}, x)[0]

    params, logits = jax.jit(run)(x)
    return params, np.asarray(logits, np.float64)


@pytest.mark.parametrize("weighs", [False, True])
def test_evaluate_reports_metrics_that_are_not_means_over_examples(weighs):
    score, (x, y) = objective(), examples()
    params, logits = scored(score.model)
    weight = np.arange(101) % 3 if weighs else np.ones(101)
    rows = (x, y, weight.astype(np.float32)) if weighs else (x, y)
    expected = {
        "loss": (weight * _nats(logits, y)).sum() / weight.sum(),
        "accuracy": (weight * (logits.argmax(-1) == y)).sum() / weight.sum(),
        "f1": _sklearn("f1_score", "macro")(logits, y, weight),
        "perplexity": np.exp((weight * _nats(logits, y)).sum() / weight.sum()),
    }
    found = [fdl.evaluate(score, params, rows, batch_size=size) for size in (1, 7, 101, 500)]
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert len({each["f1"] for each in found}) == 1
    assert [each["loss"] for each in found] == pytest.approx([expected["loss"]] * 4)
    assert [each["perplexity"] for each in found] == pytest.approx([expected["perplexity"]] * 4)


@pytest.mark.filterwarnings("ignore:fit. expected parameters that change")
def test_fit_reports_metrics_that_are_not_means_over_steps():
    """The F1 of an epoch is computed from its counts; it is not the mean over batches."""
    score, (x, y) = objective(), examples()
    optimizer = fdl.sgd(0.0)  # so that every step scores the same network
    params, logits = scored(score.model)
    run = fdl.start(params, optimizer)
    result = fdl.fit(
        *(score, optimizer, run, (x, y)),
        batch_size=10,
        steps=25,
        record_every=20,
        validation=(x, y),
    )
    f1 = _sklearn("f1_score", "macro")
    drawn = compiled(lambda step: fdl.draw_batch((np.float32(logits), y), 0, step, 10))
    for record, steps in zip(result.history, (range(20), range(20, 25)), strict=False):
        batches = [drawn(step) for step in steps]
        seen, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
        assert record["f1"] == pytest.approx(f1(seen, labels, np.ones(len(labels))), rel=1e-5)
        assert record["val_f1"] == pytest.approx(f1(logits, y, np.ones(101)), rel=1e-5)

    @compiled
    def of_all(params):
        loss, (_, reported) = score(params, {}, (jnp.asarray(x), jnp.asarray(y)), None)
        return loss, reported["perplexity"].value()

    loss, perplexity = of_all(params)
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (lambda: fdl.metrics.confusion(3), "confusion"),
        (lambda: fdl.metrics.precision("macro", 3), "precision"),
        (lambda: fdl.metrics.recall("micro", 3), "recall"),
        (lambda: fdl.metrics.bits_per_byte(jnp.ones(3)), "bits_per_byte"),
    ],
)
def test_logits_of_other_classes_than_the_metric_knows_are_refused(metric, name):
    metric = metric()
    told = (
        rf"^{name}: expected logits \[..., 3\], got \[2, 5\]; pass the model's number of classes "
    )
    state, logits, labels = metric.init(), np.zeros((2, 5), np.float32), np.int32([4, 1])
    for update in (metric.update, jax.jit(metric.update)):
        with pytest.raises(fdl.PathError, match=told):
            update(state, logits, labels)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fdl.metrics.confusion(0), r"confusion: expected classes >= 1, an integer, got 0"),
        (
            lambda: fdl.metrics.confusion(2.5),
            r"confusion: expected classes >= 1, an integer, got 2",
        ),
        (lambda: fdl.metrics.f1("macro", -1), r"f1: expected classes for 'macro' and 'micro' "),
        (lambda: fdl.metrics.f1("macro", 5.0), r"f1: expected classes for 'macro' and 'micro' "),
        (lambda: fdl.metrics.calibration_error(0), r"calibration_error: expected bins >= 1, an "),
        (
            lambda: fdl.accuracy(np.eye(2, dtype="f"), np.float32([0.5, 1.0])),
            r"accuracy: expected integer labels \[2\] for logits \[2, 2\], got float32 \[2\]; pass",
        ),
        (
            lambda: fdl.accuracy(np.eye(2, dtype="f"), [0, 1]),
            r"accuracy: expected labels to be an array, got a list; convert it with jnp.asarray",
        ),
        (
            lambda: fdl.metrics.top_k(np.eye(4, dtype="f"), np.arange(4), k=2.5),
            r"top_k: expected k in \[1, 4\], got 2.5; pass the number of guesses",
        ),
        (
            lambda: fdl.confusion_matrix([0.5, 1.9], [0, 1], 2),
            r"confusion_matrix: expected integers, got float64 and int64; take the argmax of",
        ),
        (
            lambda: fdl.metrics.mean_of(fdl.accuracy).update(
                None, np.eye(2, dtype="f"), np.arange(2), [1, 0]
            ),
            r"mean_of: expected weights to be an array, got a list; convert it with jnp.asarray",
        ),
    ],
)
def test_the_message_for_wrong_arguments_of_a_metric(call, told):
    with pytest.raises(ValueError, match="^" + told):
        call()


@pytest.mark.parametrize("name", ["confusion", "recall", "auc", "calibration_error", "mean_of"])
def test_counts_of_one_batch_are_exact_beyond_two_to_the_24(name):
    n = 2**24 + 2**23
    logits, labels = jnp.zeros((n, 2), jnp.bfloat16), jnp.zeros(n, jnp.int8)
    metric, predictions, read = {
        "confusion": (fdl.metrics.confusion(2), logits, lambda state: state["cells"].value()[0, 0]),
        "recall": (fdl.metrics.recall("micro", 2), logits, lambda state: state["true"].value()[0]),
        "auc": (fdl.metrics.auc(), logits[:, 0], lambda state: state["false"].value().sum()),
        "calibration_error": (
            fdl.metrics.calibration_error(1),
            logits,
            lambda state: state["count"].value()[0],
        ),
        "mean_of": (
            fdl.metrics.mean_of(fdl.accuracy),
            logits,
            lambda state: state["total"].value(),
        ),
    }[name]
    run = jax.jit(lambda *batch: read(metric.update(metric.init(), *batch)))
    assert run(predictions, labels) == n


def test_an_infinite_loss_makes_an_infinite_mean():
    metric = fdl.metrics.perplexity()

    @compiled
    def values(logits, labels):
        state = metric.update(metric.init(), logits, labels)
        every = (state, metric.merge(state, state), metric.merge(metric.init(), state))
        return [metric.compute(each) for each in every]

    found = values(np.float32([[0.0, -np.inf], [0.0, 0.0]]), np.int32([1, 0]))
    assert found == [np.inf] * 3


def test_auc_resolves_scores_near_1():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 2000)
    scores = np.float32(1 - 10 ** -(rng.uniform(2, 6, 2000) + targets / 2))
    exact = fdl.metrics.exact_auc(scores, targets)
    assert abs(area(scores, np.int32(targets)) - exact) < 1e-3
    for wrong in (0.5, 2.0):
        assert np.isnan(area(np.float32([0.1, 0.9, 0.5]), np.float32([0, 1, wrong])))


def test_the_bins_of_auc_are_in_the_order_of_the_scores():
    rng = np.random.default_rng(0)
    near = 1 - 10 ** -rng.uniform(0, 7, 3000)
    scores = np.sort(np.concatenate([10 * rng.standard_normal(3000), near, rng.random(3000)]))
    edges = np.array([-np.inf, -1, -0.0, 0.0, 0.5, 1 - 2.0**-24, 1, 1 + 2.0**-7, np.inf])
    for each in (np.float32(scores), np.float32(edges)):
        place = compiled(ranking._bin)(each)
        assert (np.diff(place) >= 0).all() and place.min() >= 0 and place.max() < ranking.BINS
    assert (np.diff(place)[[0, 1, 3, 4, 5, 6, 7]] > 0).all()


@pytest.mark.parametrize("size", [1e38, 1e20, 1.0, 1e-25])
def test_r2_of_any_size_and_any_batches(size):
    rng = np.random.default_rng(0)
    targets = np.float32(size * (rng.random(40) + [0.5] * 40))
    predictions = targets * np.float32(1 + 0.1 * rng.standard_normal(40))
    weight = np.float32(rng.integers(0, 3, 40))
    exact, guess, w = (np.float64(each) for each in (targets, predictions, weight))
    apart = exact - (w * exact).sum() / w.sum()
    expected = 1 - (w * (exact - guess) ** 2).sum() / (w * apart**2).sum()
    for batches in (1, 4):
        found = r2_of_batches(
            *(each.reshape(batches, -1) for each in (predictions, targets, weight))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@compiled
def r2_of_batches(*batches):
    """(predictions, targets and perhaps weight [K, B]) -> the value over the K batches."""
    metric = metrics.r2()
    body = lambda state, batch: (metric.update(state, *batch), None)  # noqa: E731
    return metric.compute(jax.lax.scan(body, metric.init(), batches)[0])


def test_r2_of_batches_of_very_different_size():
    targets = np.float32([[size, 2 * size, 3 * size] for size in (1e-25, 1e20, 1.0)])
    missed, whole = 0.25 * 14, 14 - 36 / 9
    found = r2_of_batches(targets * np.float32(1.5), targets)
    np.testing.assert_allclose(found, 1 - missed / whole, rtol=1e-5)


def test_statistics_of_numbers_whose_sums_of_squares_overflow():
    """The variance is 1e36, the sum of squares 1e39."""
    metric = metrics.statistics_of(lambda predictions, targets: predictions)
    values, far = np.float32(1e18 * np.array([1.0, 3.0] * 500)), np.float32([3e38, 3e38, 1e38])

    @compiled
    def run(values, far):
        state = metric.update(metric.init(), values, values)
        state = metric.merge(state, metric.update(metric.init(), values, values))
        return metric.compute(state), metric(far, far)

    found, of_far = run(values, far)
    np.testing.assert_allclose(found["mean"], 2e18, rtol=1e-6)
    np.testing.assert_allclose(found["variance"], 1e36, rtol=1e-5)
    np.testing.assert_allclose(of_far["mean"], 7e38 / 3, rtol=1e-6)


# Thresholds, and one logit per example.


@pytest.mark.parametrize("seed", range(3))
def test_curves_match_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    targets = (rng.random(50) < 0.3).astype(int)
    scores = np.round(rng.standard_normal(50) + targets, 1)  # with ties
    found = metrics.roc_curve(array(scores), targets)
    expected = sklearn.metrics.roc_curve(targets, np.float32(scores), drop_intermediate=False)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    found = metrics.precision_recall_curve(scores, targets)
    expected = sklearn.metrics.precision_recall_curve(targets, scores)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    exact = sklearn.metrics.average_precision_score(targets, scores)
    assert metrics.exact_average_precision(scores, targets) == pytest.approx(exact, rel=1e-12)
    rounded = scores.astype(jnp.bfloat16)
    near = precision_of(rounded, targets.astype(np.int32))
    exact = sklearn.metrics.average_precision_score(targets, rounded.astype(np.float64))
    assert float(near) == pytest.approx(exact, rel=1e-5)


precision_of = compiled(metrics.average_precision().__call__)


def test_average_precision_without_positives_or_with_nan():
    for scores, targets, expected in [
        ([1.0, 1.0], [0, 0], np.nan),
        ([1.0, 1.0], [1, 1], 1),
        ([0.0, np.nan], [0, 1], np.nan),
    ]:
        found = precision_of(np.float32(scores), np.int32(targets))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        ValueError, match=r"^roc_curve: expected scores that are numbers, got <U1; "
    ):
        metrics.roc_curve(["a", "b"], [0, 1])


def test_binary_accuracy_compares_with_the_threshold():
    logits = np.float32([[2.0], [-1.0], [0.0], [np.nan], [1.0]])
    targets = np.int32([[1], [1], [0], [0], [2]])
    accuracy = compiled(metrics.binary_accuracy)
    assert accuracy(logits, targets)[:, 0].tolist() == [1, 0, 1, 0, 0]
    chances = np.float32([0.3, 0.6])
    halved = compiled(metrics.binary_accuracy(threshold=0.5))
    assert halved(chances, np.int32([0, 1])).tolist() == [1, 1]
    with pytest.raises(
        ValueError,
        match=r"^binary_accuracy: expected threshold, a number, got nan; use 0 for logits, 0\.5 "
        r"for probabilities$",
    ):
        metrics.binary_accuracy(chances, chances, threshold=np.nan)
    with pytest.raises(
        ValueError,
        match=r"^f1: expected no threshold for 'macro', where the largest logit is the prediction, "
        r"got 0\.5; leave threshold out$",
    ):
        metrics.f1("macro", 3, threshold=0.5)


@pytest.mark.parametrize(
    "metric",
    [
        fdl.accuracy,
        metrics.top_k(k=1),
        metrics.f1("macro", 2),
        metrics.specificity("micro", 2),
        metrics.confusion(2),
        metrics.perplexity(),
        metrics.calibration_error(),
        metrics.bits_per_byte(np.ones(1)),
    ],
)
def test_one_logit_is_refused_as_classes(metric):
    """Its argmax is always 0."""
    told = (
        r"^\w+: expected logits \[\.\.\., C\] for 2 or more classes, got \[3, 1\]; for one logit "
        r"per example, use fdl\.metrics\.binary_accuracy or average 'binary', or pass "
        r"jnp\.concatenate\(\[0 \* logits, logits\], -1\)$"
    )
    logits, labels = np.float32([[1.0], [-1.0], [2.0]]), np.int32([1, 0, 0])
    with pytest.raises(fdl.PathError, match=told):
        metric(logits, labels)
    two = np.concatenate([0 * logits, logits], -1)
    assert compiled(fdl.accuracy)(two, labels).tolist() == [1, 1, 0]


# How a metric is called.


@over_cases
def test_ranks_are_free_in_a_metric_used_alone(name):
    metric, (predictions, targets) = CASES[name].metric, data(CASES[name].kind)

    def value(predictions, targets, weight):
        state = metric.update(metric.init(), predictions, targets, weight)
        return metric.compute(metric.merge(state, state))

    with jax.numpy_rank_promotion("raise"):
        assert jax.eval_shape(value, predictions, targets, jnp.ones(N)).shape == ()


def test_options_of_metrics_that_set_no_shape_may_be_traced():
    p, t = data("binary")
    logits, labels = data("classes")
    binary = (metrics.precision, metrics.recall, metrics.specificity, metrics.f1)
    calls = [
        lambda v: [f("binary", threshold=v)(p, t) for f in binary],
        lambda v: metrics.binary_accuracy(p, t, threshold=v),
        lambda v: metrics.top_k(logits, labels, k=v.astype(int) + 1),
        lambda v: fdl.accuracy(logits, labels, ignore_index=v.astype(int)),
        lambda v: metrics.bits_per_byte(v + jnp.float32(BYTES_OF))(logits, labels),
    ]
    value = np.float32(1.25)
    found = compiled(lambda v: [call(v) for call in calls])(value)
    known = compiled(lambda: [call(value) for call in calls])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, known)


def test_a_metric_is_passed_by_its_name_or_with_its_options():
    predictions, targets = data("binary")
    given = {
        **{"auc": metrics.auc, "area": metrics.auc(), "f1": metrics.f1("binary")},
        **{"right": metrics.binary_accuracy, "at": metrics.binary_accuracy(threshold=0.7)},
        "later": functools.partial(metrics.f1, "binary"),
    }
    score = fdl.supervised(lambda w, x: w * x, fdl.sigmoid_cross_entropy, **given)
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    found = fdl.evaluate(score, np.float32(1), (predictions, targets), batch_size=7)
    expected = float(area(predictions, targets))
    assert found["auc"] == found["area"] == pytest.approx(expected)
    f1 = compiled(metrics.f1("binary").__call__)
    assert found["f1"] == found["later"] == f1(predictions, targets)
    assert found["right"] == pytest.approx(
        sklearn.metrics.accuracy_score(targets, predictions > 0), rel=1e-6
    )
    assert found["at"] == pytest.approx(
        sklearn.metrics.accuracy_score(targets, predictions > np.float32(0.7)), rel=1e-6
    )
    weight = np.float32(np.arange(N) % 2)
    assert f1(predictions, targets, weight) == f1(predictions[1::2], targets[1::2])


SEEDED_BUGS = {
    "fdl/metrics/metric.py": (
        "metrics/test_metrics.py losses/test_losses.py -k metric_or_another_shape",
        [
            ("self.low + other.low + error", "self.low + other.low"),
            ("jnp.where(jnp.isfinite(low), low, jnp.zeros_like(low))", "low"),
            ("counting(f, targets), values.shape", "None, values.shape"),
            ("if counts is None or shape[: counts.ndim] != counts.shape:", "if counts is None:"),
            (
                "return with_ranks(init, update, merge, computed)",
                "return Metric(init, update, merge, computed)",
            ),
            ("jnp.ones(shape, jnp.int32)", "jnp.ones(shape, jnp.float32)"),
            ("jnp.where(weight == 0, 0, values * weight)", "values * weight"),
        ],
    ),
    "fdl/metrics/regression.py": (
        "metrics/test_metrics.py",
        [
            ("self.squares.plus(other.squares).plus(between)", "self.squares.plus(other.squares)"),
            ("1 - residual.over(total)", "residual.over(total)"),
            ("jnp.maximum(self.unit, other.unit)", "self.unit"),
            (
                "ratio(self.total.value(), other.total.value()) * factor * factor",
                "ratio(self.total.value(), other.total.value())",
            ),
            ("jnp.where(size == 0, smallest, ", "jnp.where(size == 0, 1.0, "),
            ("weighted_sum(values / unit, weight)", "weighted_sum(values, weight) / unit"),
        ],
    ),
    "fdl/metrics/probability.py": (
        "metrics/test_metrics.py",
        [
            ("/ math.log(2)", ""),
            ("jnp.ceil(confidence * bins) - 1", "jnp.round(confidence * bins)"),
            ("jnp.where(right, weight, nothing[0])", "weight"),
            ("weighted_sum(lengths, weight)", "weight.sum()"),
        ],
    ),
    "fdl/metrics/ranking.py": (
        "metrics/test_metrics.py",
        [
            ("jnp.where(bits >= sign, ~bits, bits | sign)", "bits | sign"),
            ("jnp.cumsum(false) - false / 2", "jnp.cumsum(false)"),
            ("jnp.where(scores == 0, 0, scores)", "scores"),
            ("near = HALF + (HALF - _rank(1 - scores))", "near = place"),
            ('sums["invalid"] > 0', "False"),
            ("np.cumsum(false) - false / 2", "np.cumsum(false)"),
            ("ratio(above, above + wrong)", "ratio(above, wrong)"),
            ("jnp.cumsum(false[::-1])", "jnp.cumsum(false)"),
            ("np.concatenate([[np.inf], thresholds])", "np.concatenate([thresholds, [np.inf]])"),
            ("(true / true[-1])[::-1], [0.0]", "(true / true[-1])[::-1], [1.0]"),
        ],
    ),
    "fdl/train/accumulators.py": (
        "metrics/test_metrics.py train/test_step.py train/test_loop.py",
        [
            ("Sum(self.total, self.lost[0])", "Sum(self.total, 0.0)"),
            ("Mean(value * count, jnp.full_like(value, count))", "Mean(value, 1.0)"),
            (
                "return Mean(weighted_sum(values, weight), weight.sum())",
                "return Mean(weighted_sum(values, weight), jnp.float32(values.size))",
            ),
            ("self.metric.merge(self.state, other.state)", "other.state"),
            (
                "self.predictions, self.targets, self.weight)",
                "self.predictions, self.targets, None)",
            ),
        ],
    ),
}
