"""Mixup and cutmix against NumPy loops, and as objectives for everything that trains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import fdl
from tests.programs import array
from tests.trees import NEAR, assert_equal

KEY = jax.random.key(3)
CLASSES = 4


def identity(params, x):
    """A model whose prediction is the mixed x itself."""
    return x


def first_pixels(params, x):
    return x.reshape(x.shape[0], -1)[:, :CLASSES]


def zero(y_pred, y):
    return y


def mixing(kind, alpha, x, weight=None, key=KEY):
    """x as the model sees it in training."""
    objective = getattr(fdl, kind)(fdl.supervised(identity, zero), alpha)
    batch = (x, np.zeros(x.shape[0], np.float32))
    return objective.report({}, {}, batch if weight is None else (*batch, weight), key)[1]


def mixed_x(kind, alpha, x, weight=None):
    return np.asarray(jax.jit(mixing, static_argnums=(0, 1))(kind, alpha, x, weight))


def rows_and_shares(mixed):
    """(partner, share) of each row, from mixed rows of the identity matrix."""
    n = len(mixed)
    share = np.diag(mixed)
    others = mixed * (1 - np.eye(n))
    assert ((others > 0).sum(1) <= 1).all()
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
    return np.where(others.any(1), others.argmax(1), np.arange(n)), share


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return special.logsumexp(logits, 1) - logits[np.arange(len(labels)), labels]


def batch(rows=12, weighted=False, seed=0):
    """Images whose first numbers are a row of the identity, so that mixed ones tell their parts."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4, rows, 1)).astype(np.float32)
    x[:, 0, :, 0] = np.eye(rows)
    y = rng.integers(0, CLASSES, rows).astype(np.int32)
    weight = rng.uniform(0.5, 2.0, rows).astype(np.float32)
    return (x, y, weight) if weighted else (x, y)


def test_mixup_is_a_loop_over_examples():
    x, y, weight = data = batch(weighted=True)
    y[[2, 5]] = -100  # targets to ignore
    model = lambda w, x: jnp.tanh(x.reshape(len(x), -1)) @ w  # noqa: E731
    w = np.random.default_rng(1).standard_normal((x[0].size, CLASSES)).astype(np.float32)
    objective = fdl.mixup(
        fdl.supervised(
            model,
            fdl.softmax_cross_entropy(ignore_index=-100),
            accuracy=fdl.accuracy,
            f1=fdl.metrics.f1("macro", CLASSES),
        ),
        alpha=0.7,
    )

    @jax.jit
    def both(w, data):
        return objective(w, {}, data, KEY), mixing("mixup", 0.7, x, data[2])

    (loss, (_, metrics)), mixed = both(w, data)
    partner, share = rows_and_shares(np.asarray(mixed)[:, 0, :, 0])
    total, pairs = 0.0, np.zeros((CLASSES, CLASSES))
    for i, j, part in zip(range(len(x)), partner, share.astype(np.float64), strict=True):
        image = part * np.float64(x[i]) + (1 - part) * np.float64(x[j])
        logits = np.tanh(image.reshape(1, -1)) @ np.float64(w)
        for row, of in ((i, part), (j, 1 - part)):
            if y[row] == -100:
                continue
            total += of * weight[row] * cross_entropy(logits, y[[row]])[0]
            pairs[y[row], logits.argmax()] += of * weight[row]
    count, right = pairs.sum(), np.diag(pairs)
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(metrics["loss"].count) == pytest.approx(count, rel=1e-6)
    assert float(metrics["accuracy"].value()) == pytest.approx(right.sum() / count, rel=1e-5)
    f1 = (2 * right / (pairs.sum(0) + pairs.sum(1))).mean()
    assert float(metrics["f1"].value()) == pytest.approx(f1, rel=1e-5)


def test_each_example_is_the_other_one_exactly_once_and_any_other_is_as_likely():
    x, counts = np.eye(5, dtype=np.float32), np.zeros((5, 5))
    mix = jax.jit(jax.vmap(lambda key: mixing("mixup", 3.0, x, key=key)))
    for mixed in np.asarray(mix(jax.random.split(KEY, 300))):
        partner, _ = rows_and_shares(mixed)
        assert sorted(partner) == [0, 1, 2, 3, 4]
        counts[np.arange(5), partner] += 1
    assert (np.diag(counts) == 0).all()
    assert stats.chisquare(counts[~np.eye(5, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.3, 4.0])
def test_each_example_has_a_share_of_the_beta_distribution(alpha):
    _, share = rows_and_shares(mixed_x("mixup", alpha, np.eye(1500, dtype=np.float32)))
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert abs(share.var() * 4 * (2 * alpha + 1) - 1) < 0.1
    assert np.isfinite(share).all()


def test_labels_give_cutmix_the_loss_of_mixed_one_hot_targets():
    x, y = batch()
    one_hot = np.broadcast_to(np.eye(CLASSES, dtype=np.float32)[y][:, None, None], (12, 4, 12, 4))
    objective = fdl.cutmix(fdl.supervised(first_pixels, fdl.softmax_cross_entropy), 0.6)

    @jax.jit
    def both(x):
        pixels_and_classes = jnp.concatenate([x, one_hot], -1)
        return objective({}, {}, (x, y), KEY)[0], mixing("cutmix", 0.6, pixels_and_classes)

    loss, mixed = both(x)
    logits = first_pixels({}, np.float64(mixed[..., 0]))
    # Of a pasted image, the share of a class is the share of its pixels.
    targets = np.float64(mixed[..., 1:]).mean((1, 2))
    expected = (targets * (special.logsumexp(logits, 1, keepdims=True) - logits)).sum(1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_cutmix_pastes_one_rectangle_of_the_other_image():
    """The rectangles have the areas and the places of algorithm A1."""
    n, height, width = 3000, 6, 8
    own = np.arange(n, dtype=np.float32)[:, None, None]
    x = np.broadcast_to(own[..., None], (n, height, width, 1))
    mixed = mixed_x("cutmix", 0.8, x)[..., 0]
    found = []
    for image, mask in zip(mixed, mixed != own, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert mask.sum() == np.ptp([*rows, rows[-1] + 1]) * len(columns) if rows.size else True
        assert len(np.unique(image[mask])) <= 1
        found.append((mask.mean(), *(each.mean() if each.size else -1 for each in (rows, columns))))
    rng = np.random.default_rng(0)
    expected = [algorithm_a1(rng, height, width) for _ in range(n)]
    for ours, theirs in zip(np.array(found).T, np.array(expected).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def algorithm_a1(rng, height, width):
    """(area, middle row, middle column) of what is pasted, from the pseudocode of the paper."""
    share = rng.beta(0.8, 0.8)
    r_x, r_y = rng.uniform(0, width), rng.uniform(0, height)
    r_w, r_h = width * math.sqrt(1 - share), height * math.sqrt(1 - share)
    x1, x2 = round(max(r_x - r_w / 2, 0)), round(min(r_x + r_w / 2, width))
    y1, y2 = round(max(r_y - r_h / 2, 0)), round(min(r_y + r_h / 2, height))
    area = (x2 - x1) * (y2 - y1) / (width * height)
    return (area, (y1 + y2 - 1) / 2, (x1 + x2 - 1) / 2) if area else (0.0, -1, -1)


def test_examples_of_weight_0_reach_nothing():
    x, y, weight = batch(weighted=True)
    out = [1, 4, 11]
    weight[out] = 0
    spoilt, labels = x.copy(), y.copy()
    spoilt[[1, 11]], spoilt[4], labels[out] = np.nan, np.inf, 99
    model = lambda w, x: w * first_pixels(w, x)  # noqa: E731
    objective = fdl.mixup(fdl.supervised(model, fdl.softmax_cross_entropy), 2.0)
    data = {"x": spoilt, "y": labels, "weight": weight}

    @jax.jit
    def both(data, weight):
        slope = jax.value_and_grad(objective, has_aux=True)(1.5, {}, data, KEY)
        return slope, mixing("mixup", 2.0, x[:, 0, :, :1], weight)

    ((loss, _), gradient), mixed = both(data, weight)
    assert np.isfinite(loss) and np.isfinite(gradient) and gradient != 0
    mixed = np.array(mixed[..., 0])
    mixed[out] = np.eye(12)[out]  # examples of weight 0 are zeros, mixed with themselves
    partner, _ = rows_and_shares(mixed)
    others = np.delete(np.arange(12), out)
    assert sorted(partner[others]) == list(others) and (partner[others] != others).all()
    (_, _), alone = both(data, np.eye(12, dtype=np.float32)[3])
    np.testing.assert_allclose(alone[3], x[3, 0, :, :1], rtol=1e-6)


def test_weights_of_parts_of_examples_count_with_their_own_example():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2, 5, 3)).astype(np.float32)
    weight = rng.random((2, 5)) < 0.6
    objective = fdl.mixup(fdl.supervised(identity, fdl.squared_error), alpha=1.0)

    @jax.jit
    def both(data):
        return objective({}, {}, data, KEY)[0], objective.report({}, {}, data, KEY)[1]

    loss, mixed = map(np.asarray, both((x, y, weight)))
    share = [((mixed[i] - x[1 - i]) / (x[i] - x[1 - i])).mean() for i in (0, 1)]
    error = lambda i, j: ((mixed[i] - y[j]) ** 2 * weight[j][:, None]).sum()  # noqa: E731
    total = sum(share[i] * error(i, i) + (1 - share[i]) * error(i, 1 - i) for i in (0, 1))
    count = sum(share[i] * weight[i].sum() + (1 - share[i]) * weight[1 - i].sum() for i in (0, 1))
    assert float(loss) == pytest.approx(float(total / (3 * count)), rel=1e-4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_evaluation_is_that_of_the_objective_itself(kind):
    data = batch(weighted=True)
    scaled = fdl.supervised(lambda p, x, *, scale: x.mean((1, 2, 3)) * scale, fdl.squared_error)
    mixed, inputs = getattr(fdl, kind)(scaled), {"x": data[0], "y": data[2], "scale": data[2]}
    assert_equal(mixed({}, {}, inputs, None), scaled({}, {}, inputs, None))
    assert mixed.model is scaled.model


def test_evaluate_gives_what_it_gives_for_the_objective_itself():
    plain = fdl.supervised(first_pixels, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    data = batch(weighted=True)
    found = fdl.evaluate(fdl.mixup(plain), {}, data, batch_size=5)
    assert found == fdl.evaluate(plain, {}, data, batch_size=5)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("mixup", "uint8"), ("mixup", "bfloat16"), ("cutmix", "uint8")]
)
def test_the_dtype_of_images_is_kept(kind, dtype):
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 1))
    both = jax.jit(lambda x, other: (mixing(kind, 1.0, x), mixing(kind, 1.0, other)))
    exact, found = both(x.astype(np.float32), array(x, dtype))
    assert found.dtype == dtype
    bound = {"atol": 0.501} if dtype == "uint8" else {"rtol": 0.005}
    np.testing.assert_allclose(found.astype(np.float32), exact, **bound)


def test_x_may_be_a_tree_for_mixup():
    x = {"a": np.eye(5, dtype=np.float32), "b": {"c": np.arange(5.0, dtype=np.float32)}}
    objective = fdl.mixup(fdl.supervised(identity, zero), alpha=1.0)
    mixed = jax.jit(objective.report)({}, {}, (x, np.ones(5, np.float32)), KEY)[1]
    partner, share = rows_and_shares(np.asarray(mixed["a"]))
    expected = share * np.arange(5) + (1 - share) * partner
    np.testing.assert_allclose(mixed["b"]["c"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_key_decides_what_is_mixed_and_compiling_changes_nothing(kind):
    data = batch()
    objective = getattr(fdl, kind)(fdl.supervised(first_pixels, fdl.softmax_cross_entropy))
    compiled = jax.jit(objective)
    first = compiled({}, {}, data, KEY)
    assert_equal(compiled({}, {}, data, KEY), first)
    if kind == "cutmix":
        assert_equal(objective({}, {}, data, KEY), first, **NEAR)
    assert compiled({}, {}, data, jax.random.key(4))[0] != first[0]


def test_equal_objectives_are_equal_and_say_what_they_are():
    plain = fdl.supervised(first_pixels, fdl.softmax_cross_entropy)
    assert fdl.mixup(plain, 0.3) == fdl.mixup(plain, 0.3) != fdl.mixup(plain, 0.4)
    assert hash(fdl.mixup(plain, 0.3)) == hash(fdl.mixup(plain, 0.3))
    assert fdl.mixup(plain, 1.0) != fdl.cutmix(plain, 1.0) != plain
    assert repr(fdl.mixup(plain, 0.3)) == (
        "<mixup of alpha 0.3 of <Supervised of the function first_pixels; loss the function "
        "softmax_cross_entropy>>"
    )


def test_microbatches_are_mixed_within_themselves():
    data = batch()[0], np.eye(12, dtype=np.float32)
    objective = fdl.mixup(fdl.supervised(lambda w, x: w * x[:, 0, :, 0], fdl.squared_error), 1.0)
    run = fdl.start(array(0.5), fdl.sgd(0.1))

    @jax.jit
    def both(run):
        _, means = fdl.train_step(objective, fdl.sgd(0.1), run, data, 12, microbatch=4)
        pieces = jax.tree.map(
            lambda x: x.reshape(3, 4, *x.shape[1:]), fdl.draw_batch(data, 0, 0, 12)
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(jax.random.key(0), 0), jnp.arange(3)
        )
        return means["loss"].value(), jax.vmap(objective, (None, None, 0, 0))(
            run.params, {}, pieces, keys
        )[0]

    loss, losses = both(run)
    assert float(loss) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert losses.std() > 0


@pytest.mark.bits
def test_training_with_augmentation_goes_on_bit_for_bit():
    """With another, equal objective, for which nothing is compiled again."""
    traces = []

    def loss(logits, labels):
        traces.append(1)
        return fdl.softmax_cross_entropy(logits, labels)

    net = fdl.chain(
        fdl.random_erasing(0.5), fdl.random_rotation(20.0), fdl.rescale(1 / 255), fdl.flatten(),
        fdl.dense(CLASSES),
    )  # fmt: skip
    objective, optimizer = fdl.supervised(net, loss), fdl.sgd(0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 6, 6, 1)).astype(np.uint8)
    y = rng.integers(0, CLASSES, 40).astype(np.int32)
    params, state = net.init(jax.random.key(0), x[:1])
    run = fdl.start(params, optimizer, state=state, seed=5)

    def trained(run, steps):
        mixed = fdl.cutmix(objective, alpha=0.5)
        return fdl.fit(mixed, optimizer, run, (x, y), batch_size=8, record_every=5, steps=steps)

    whole = trained(run, 30)
    seen = len(traces)
    parts = trained(trained(run, 13), 30)
    assert len(traces) == seen
    assert_equal(parts.run, whole.run)
    losses = [[record["loss"] for record in result.history] for result in (parts, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def own(params, state, batch, key):
    return jnp.mean((params - batch) ** 2), (state, {})


PLAIN = fdl.supervised(identity, fdl.squared_error)
WRONG = {
    "not supervised": (
        lambda: fdl.mixup(own),
        r"^mixup: expected an objective of fdl\.supervised, got the function own; pass "
        r"fdl\.supervised\(model, loss\)$",
    ),
    "plain": (
        lambda: fdl.cutmix(fdl.plain(lambda w, batch: w)),
        r"^cutmix: expected an objective of fdl\.supervised, got Plain.*; pass fdl",
    ),
    "a model": (lambda: fdl.mixup(fdl.dense(2)), r"^mixup: expected an objective of .*Layer dense"),
    "twice": (
        lambda: fdl.cutmix(fdl.mixup(PLAIN)),
        r"^cutmix: expected an objective of fdl\.supervised, got <mixup of alpha 0\.2 of .*>; mix "
        r"the batch in one way only$",
    ),
    "alpha": (
        lambda: fdl.mixup(PLAIN, 0.0),
        r"^mixup: expected alpha > 0, got 0\.0; pass 0\.2 or 1\.0$",
    ),
    "ids": (
        lambda: mixing("mixup", 1.0, np.zeros((3, 4), np.int32)),
        r"^mixup: expected x of a floating dtype or uint8, got int32 \[3, 4\]; numbers of another "
        r"dtype, such as ids, have no weighted mean: leave mixup out$",
    ),
    "vectors": (
        lambda: mixing("cutmix", 1.0, np.zeros((3, 4), np.float32)),
        r"^cutmix: expected x \[B, H, W, C\], got \[3, 4\]; pass images with a channel axis$",
    ),
    "inputs": (
        lambda: fdl.mixup(PLAIN)({}, {}, {"x": np.ones(3), "y": np.ones(3), "mask": 1}, KEY),
        r"^mixup: expected a batch of x, y and perhaps weight, got the extra input 'mask', which "
        r"would belong to one of two mixed examples; leave it out, or use the objective without",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_uses(kind):
    call, message = WRONG[kind]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


SEEDED_BUGS = {
    "fdl/train/mixing.py": (
        "train/test_mixing.py",
        [
            ("_weighted(other_weight, 1 - share)", "_weighted(weight, 1 - share)"),
            ("_weighted(other_weight, 1 - share)", "_weighted(other_weight, share)"),
            ("self.score(y_pred, other_y", "self.score(y_pred, y"),
            ("if key is None:", "if False:"),
            ("x, y, _ = without_ignored(x, y, {}, weight)", "pass"),
            ("jnp.where(used, order, 2)", "order"),
            ("(places + 1 < count, places + 1, 0)", "(places + 1 < rows, places + 1, 0)"),
            (".set(cycle[following])", ".set(following)"),
            ("own * one + (1 - own) * other", "own * other + (1 - own) * one"),
            ("(jnp.round(mean) if leaf.dtype == jnp.uint8 else mean)", "mean"),
            (
                "_beta(keys[1], self.alpha, rows)",
                "jnp.tile(_beta(keys[1], self.alpha, 1), rows)",
            ),
            ("-jnp.log(u) / alpha", "-jnp.log(u) * alpha"),
            ("0.5 * jnp.sign(cosine) / jnp", "0.5 / jnp"),
            ("* cosine**2", "* cosine"),
            ("size = jnp.sqrt(1 - share)", "size = 1 - share"),
            ("return mixed, 1 - (bottom - top)", "return mixed, share + 0 * (bottom - top)"),
            ("ends(keys[1], width)", "ends(keys[0], width)"),
            ("jnp.round(jnp.clip(low, 0, n))", "jnp.floor(jnp.clip(low, 0, n))"),
            ("who=who, alpha=float(alpha)", "who=who, alpha=1.0"),
        ],
    ),
}
