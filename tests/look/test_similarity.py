"""Measures of representations, gradients and updates, against loops in NumPy float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.look import (
    cka,
    cka_table,
    dead_and_saturated,
    effective_rank,
    gradient_sizes,
    nearest_readout,
    update_sizes,
)
from tests.programs import array
from tests.trees import assert_near


def pair(n, a, b, seed=0):
    """Two representations [n, a] and [n, b] that have something in common."""
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(n, a)) * np.linspace(0.2, 3, a) + 2
    other = np.sin(one @ rng.normal(size=(a, b)) / np.sqrt(a)) + 0.3 * rng.normal(size=(n, b)) - 1
    return one.astype(np.float32), other.astype(np.float32)


def cka_by_loops(a, b):
    """Equation 4 of the paper, with HSIC summed pair by pair over centred Gram matrices."""
    a, b = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (a, b))
    n = len(a)
    centre = np.eye(n) - np.ones((n, n)) / n

    def gram(rows):
        return centre @ np.array([[x @ y for y in rows] for x in rows]) @ centre

    def hsic(k, other):
        pairs = ((i, j) for i in range(n) for j in range(n))
        return sum(k[i, j] * other[j, i] for i, j in pairs) / (n - 1) ** 2

    k, other = gram(a), gram(b)
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


# cka


@pytest.mark.parametrize(("n", "a", "b"), [(7, 90, 60), (40, 3, 5), (12, 2, 80), (9, 6, 20)])
def test_cka_equals_hsic_of_gram_matrices(n, a, b):
    one, other = pair(n, a, b)
    wanted = cka_by_loops(one, other)
    assert 0.1 < wanted < 0.99
    assert_near(cka(one, other), wanted)
    assert_near(cka(other, one), wanted)


def test_cka_flattens_and_takes_other_dtypes():
    one, other = pair(8, 12, 6)
    assert_near(cka(one.reshape(8, 2, 3, 2), other.reshape(8, 3, 2)), cka_by_loops(one, other))
    levels = np.round(40 * one + 100).clip(0, 255).astype(np.uint8)
    half = jnp.asarray(other, jnp.bfloat16)
    assert cka(levels, half).dtype == jnp.float32
    assert_near(cka(levels, half), cka_by_loops(levels, np.asarray(half, np.float32)))


def test_cka_does_not_see_rotations_shifts_and_scales():
    one, other = pair(30, 5, 5)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))
    assert_near(cka(one, (one @ turn.astype(np.float32)) * np.float32(-7) + 2), 1.0)
    assert_near(cka(one @ turn.astype(np.float32), other), cka(one, other))


@pytest.mark.parametrize("size", [1e-30, 1e18, 1e37])
@pytest.mark.parametrize("n", [6, 50])
def test_cka_of_any_size_is_the_same(n, size):
    one, other = pair(n, 12, 9)
    assert_near(cka(one * np.float32(size), other / np.float32(size / 1e7)), cka(one, other))


def test_cka_of_numbers_far_from_zero():
    one, other = pair(500, 4, 3)
    far = one + np.float32(1e5)
    assert_near(cka(far, other), cka_by_loops(far[:500], other[:500]), 1e-4)


def test_cka_of_a_constant_is_zero():
    one, _ = pair(7, 3, 3)
    assert float(cka(np.full((7, 2), 0.1, np.float32), one)) == 0.0
    assert float(cka(one[:1], one[:1])) == 0.0


def test_cka_under_transformations():
    one, other = (np.stack([pair(9, 6, 4, seed)[which] for seed in range(3)]) for which in (0, 1))
    alone = [cka(a, b) for a, b in zip(one, other, strict=True)]
    assert_near(jax.jit(jax.vmap(cka))(one, other), alone)
    assert_near(jax.jit(lambda a: cka(a, np.asarray(other[0])))(one[0]), alone[0])
    slope = jax.jit(jax.grad(cka))(one[0], other[0])
    step = np.zeros((9, 6), np.float32)
    step[4, 2] = 1e-2
    change = cka_by_loops(one[0] + step, other[0]) - cka_by_loops(one[0] - step, other[0])
    assert_near(slope[4, 2], change / 2e-2, 1e-3)


def test_cka_refuses_what_does_not_fit():
    one, other = pair(5, 3, 2)
    said = (
        r"^cka: expected a and b with the same number of examples, got 5 and 4; pass two "
        r"representations of the same examples$"
    )
    with pytest.raises(ValueError, match=said):
        cka(one, other[:4])
    said = (
        r"^cka: expected b \[N, \.\.\.\] with N >= 1, got \[0, 2\]; pass one row for each example$"
    )
    with pytest.raises(ValueError, match=said):
        cka(one, other[:0])
    other[3, 1] = np.nan
    said = (
        r"^cka: expected finite numbers, got NaN or infinity in 1 of 5 rows; find the layer or the "
        r"training step that produced them$"
    )
    with pytest.raises(ValueError, match=said):
        cka(one, other)
    said = (
        r"^cka: expected a of a real dtype, got complex64 \[5, 3\]; pass the real and the "
        r"imaginary parts as separate features$"
    )
    with pytest.raises(ValueError, match=said):
        cka(one.astype(np.complex64), one)


# cka_table


def test_a_table_compares_every_layer_of_two_runs():
    model = fdl.mlp([8, 6], 3, activation=fdl.tanh)
    x = array(np.random.default_rng(0).normal(size=(20, 4)))
    look = fdl.capture(model, "dense_*")
    made = jax.jit(lambda key: look(*model.init(key, x), x))
    runs = [made(jax.random.key(seed)) for seed in (0, 1)]
    runs[1].pop("dense_1")
    table = cka_table(*runs)
    wanted = [[cka_by_loops(a, b) for b in runs[1].values()] for a in runs[0].values()]
    assert table.shape == (3, 2)
    assert_near(table, wanted)
    same = cka_table(runs[0], runs[0])
    assert_near(np.diag(same), 1.0)
    assert_near(same, np.transpose(same))
    assert_near(jax.jit(cka_table)(*runs), wanted)  # dense_0 to dense_2 are sorted


def test_a_table_names_the_layer_that_does_not_fit():
    one, other = pair(5, 3, 2)
    said = (
        r"^cka_table: expected representations of the same number of examples, got 5 and, at "
        r"'head' of other, 4; capture both for the same examples$"
    )
    with pytest.raises(ValueError, match=said):
        cka_table({"up": one}, {"head": other[:4]})
    said = r"^cka_table: one at 'up': expected finite numbers, got NaN or infinity in 5 of 5 rows; "
    with pytest.raises(ValueError, match=said):
        cka_table({"up": one * np.nan}, {"head": other})
    said = (
        r"^cka_table: expected other as a dict, path -> h \[N, \.\.\.\], got float32 \[5, 2\]; "
        r"pass what fdl\.look\.capture\(model, '\*\*'\)\(params, state, x\) returns$"
    )
    with pytest.raises(TypeError, match=said):
        cka_table({"up": one}, other)
    said = r"^cka_table: expected at least one layer in one, got none; pass what fdl\.look\.capture"
    with pytest.raises(ValueError, match=said):
        cka_table({}, {"up": one})


# effective_rank


@pytest.mark.parametrize(("n", "d"), [(30, 5), (6, 20)])
def test_effective_rank_equals_its_formula(n, d):
    h = pair(n, d, 2)[0]
    rows = h.astype(np.float64) - h.astype(np.float64).mean(0)
    share = np.linalg.svd(rows, compute_uv=False)
    share = share[share > 1e-9] / share.sum()
    wanted = np.exp(-sum(p * np.log(p) for p in share))
    assert 1.5 < wanted < min(n, d)
    assert_near(effective_rank(h), wanted)
    for size in (1e-30, 1e30):
        assert_near(effective_rank(h * np.float32(size)), wanted)


def test_effective_rank_of_known_representations():
    axes = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
    assert_near(effective_rank(axes), 6.0)
    assert_near(effective_rank(axes[:, :1] * np.arange(1, 5, dtype=np.float32)), 1.0)
    assert float(effective_rank(np.full((5, 3), 0.1, np.float32))) == 0.0
    several = np.stack([axes, axes * np.float32([1, 1, 0, 0, 0, 0])])
    assert_near(jax.jit(jax.vmap(effective_rank))(several), [6.0, 2.0])
    assert np.isfinite(jax.jit(jax.grad(effective_rank))(pair(9, 4, 2)[0])).all()
    said = r"^effective_rank: expected h \[N, \.\.\.\] with N >= 1, got \[0, 3\]; pass one row for "
    with pytest.raises(ValueError, match=said):
        effective_rank(np.ones((0, 3)))


# nearest_readout


def readout_by_loops(train, test, k):
    (h, labels), (h_test, labels_test) = train, test
    right = 0
    for row, label in zip(h_test.astype(np.float64), labels_test, strict=True):
        distances = [np.square(row - each).sum() for each in h.astype(np.float64)]
        votes = labels[np.argsort(distances, kind="stable")[:k]].tolist()
        right += min(set(votes), key=lambda each: (-votes.count(each), each)) == label
    return right / len(h_test)


@pytest.fixture(scope="module")
def halves():
    """Two halves of noisy points of 4 classes, with strange class numbers."""
    rng = np.random.default_rng(0)
    labels = rng.choice([-3, 0, 7, 2**40], 240)
    places = np.unique(labels, return_inverse=True)[1]
    h = rng.normal(size=(240, 6)) + 1.2 * np.eye(6)[places]
    h = h.astype(np.float32)
    return (h[:150], labels[:150]), (h[150:], labels[150:])


@pytest.mark.parametrize("k", [1, 4, 9, 150])
def test_nearest_neighbours_equal_a_loop(halves, k):
    wanted = readout_by_loops(*halves, k)
    assert 0.15 < wanted < 0.9
    assert nearest_readout(*halves, k) == pytest.approx(wanted, abs=1e-6)


def test_nearest_neighbours_equal_those_of_scikit_learn(halves):
    neighbors = pytest.importorskip("sklearn.neighbors")
    for k in (1, 5):
        wanted = neighbors.KNeighborsClassifier(k).fit(*halves[0]).score(*halves[1])
        assert nearest_readout(*halves, k) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e30, 0), (1e-30, 0), (1e-3, 100)])
def test_nearest_neighbours_do_not_depend_on_units(halves, scale, shift):
    moved = [((h * scale + shift).astype(np.float32), labels) for h, labels in halves]
    found = nearest_readout(*moved, 3)
    # The numbers that were shifted by 100 are rounded to 1 % of their spread.
    assert found == pytest.approx(readout_by_loops(*halves, 3), abs=0.03 if shift else 1e-6)
    if shift:
        assert found == pytest.approx(readout_by_loops(*moved, 3), abs=1e-6)


def test_ties_go_to_the_smallest_class_and_to_the_first_example():
    h = np.float32([[1], [-1], [2], [-2]])
    zero, labels = np.zeros((1, 1, 1), np.float32), np.array([5, 3, 9, 4])
    for k, label in {1: 5, 2: 3, 3: 3, 4: 3}.items():
        assert nearest_readout((h, labels), (zero, np.array([label])), k) == 1.0
    assert nearest_readout((h, np.array([5, 3, 5, 4])), (zero, np.array([5])), 3) == 1.0


def test_nearest_neighbours_refuse_what_does_not_fit(halves):
    (h, labels), test = halves
    for k in (0, 151, 2.0, True):
        said = (
            rf"^nearest_readout: expected k, an int in \[1, 150\], got {k}; pass a smaller k, or "
        )
        with pytest.raises(ValueError, match=said):
            nearest_readout((h, labels), test, k)
    said = (
        r"^nearest_readout: expected labels \[N\] of integers, got float32 \[150\]; pass one class "
        r"number for each row$"
    )
    with pytest.raises(ValueError, match=said):
        nearest_readout((h, labels.astype(np.float32)), test, 1)
    said = (
        r"^nearest_readout: expected labels \[N\] for h \[N, \.\.\.\], got \[9\] for 150 rows; pass"
    )
    with pytest.raises(ValueError, match=said):
        nearest_readout((h, labels[:9]), test, 1)
    said = (
        r"^nearest_readout: expected the same number of features in train and test, got 5 and 6; "
    )
    with pytest.raises(ValueError, match=said):
        nearest_readout((h[:, :5], labels), test, 1)


# dead_and_saturated, gradient_sizes, update_sizes


def test_dead_and_saturated_channels_of_images():
    rng = np.random.default_rng(0)
    h = rng.uniform(-0.5, 0.5, (40, 3, 3, 4)).astype(np.float32)
    h -= h.mean((1, 2), keepdims=True)
    h += rng.uniform(-0.9, 0.9, (40, 1, 1, 4)).astype(np.float32)
    h[..., 1] = 0.25  # dead
    h[..., 2] += np.where(np.arange(40) % 2, 1.0, -1.0)[:, None, None] - h[..., 2].mean(
        (1, 2), keepdims=True
    )  # saturated: its mean over the image is 1 or -1
    assert dead_and_saturated(h) == (0.25, 0.25)
    assert dead_and_saturated(jnp.asarray(h)) == (0.25, 0.25)
    assert dead_and_saturated(jnp.zeros((4, 3), jnp.bfloat16)) == (1.0, 0.0)
    assert dead_and_saturated(np.arange(5)) == (0.0, 0.0)
    said = (
        r"^dead_and_saturated: expected h \[N, \.\.\., U\] with N >= 1, got \[0, 3\]; pass one row "
        r"for each example$"
    )
    with pytest.raises(ValueError, match=said):
        dead_and_saturated(np.ones((0, 3)))


def test_gradient_sizes_are_those_of_the_next_step():
    """With rate 1, the update of the step is the gradient; dropout needs the key of the step."""
    model = fdl.chain(fdl.dense(6), fdl.tanh, fdl.dropout(0.5), fdl.dense(1))
    rng = np.random.default_rng(0)
    data = (array(rng.normal(size=(10, 3))), array(rng.normal(size=(10, 1))))
    params, state = model.init(jax.random.key(0), data[0])
    objective, optimizer = fdl.supervised(model, fdl.squared_error), fdl.sgd(1.0)
    run = fdl.start(params, optimizer, state=state, seed=4)._replace(step=jnp.uint32(7))
    batch = fdl.draw_batch(data, run.seed, run.step, 5)
    after, _ = fdl.train_step(objective, optimizer, run, data, batch_size=5)
    old, new = (fdl.paths.leaves(each.params) for each in (run, after))
    wanted = {
        path: np.linalg.norm(np.asarray(new[path], np.float64) - np.asarray(old[path], np.float64))
        for path in old
    }
    for sizes in (
        gradient_sizes(objective, run, batch),
        jax.jit(lambda run: gradient_sizes(objective, run, batch))(run),
    ):
        assert list(sizes) == list(wanted)
        assert_near(list(sizes.values()), list(wanted.values()))
    assert min(wanted.values()) > 0


def test_gradient_sizes_of_a_loss_of_ones_own_by_hand():
    objective = fdl.plain(lambda p, x: jnp.sum(p["a"] * x[0]) * 1e30 + p["b"][0] * x[1, 0])
    run = fdl.start({"a": jnp.zeros(2), "b": [jnp.array(2.0)]}, fdl.sgd(0.1))
    sizes = gradient_sizes(objective, run, jnp.array([[3.0, 4.0], [-2.0, 0.0]]))
    assert list(sizes) == ["a", "b/0"]
    assert_near(sizes["a"] / 1e30, 5.0)
    assert_near(sizes["b/0"], 2.0)
    with pytest.raises(
        TypeError, match=r"^gradient_sizes: expected a run, or a result of fit, got"
    ):
        gradient_sizes(objective, {"a": jnp.zeros(2)}, jnp.zeros((2, 2)))


def test_update_sizes_are_ratios_of_norms():
    before = {"w": np.float32([[3, 0], [0, 4]]), "b": np.zeros(2, np.float32)}
    after = {"w": np.float32([[3, 0.3], [0.4, 4]]), "b": np.ones(2, np.float32)}
    sizes = update_sizes(before, after)
    assert list(sizes) == ["b", "w"]
    assert np.isnan(sizes["b"]) and sizes["w"] == pytest.approx(0.1, rel=1e-6)
    large = [jax.tree.map(lambda w: w * np.float32(1e37), each) for each in (before, after)]
    assert update_sizes(*large)["w"] == pytest.approx(0.1, rel=1e-5)
    run = fdl.start({"w": jnp.array([3.0, 4.0])}, fdl.sgd(0.5))
    moved = fdl.update_weights(fdl.sgd(0.5), run, {"w": jnp.array([0.0, 2.0])})
    assert update_sizes(run, moved)["w"] == pytest.approx(0.2)
    assert np.isinf(update_sizes(before, after | {"w": after["w"] * np.inf})["w"])


def test_update_sizes_refuse_other_parameters():
    said = (
        "update_sizes: expected the same arrays in both trees, got float32 [2] and float32 [3] at "
        "'w'; compare parameters of the same model"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        update_sizes({"w": np.ones(2, np.float32)}, {"w": np.ones(3, np.float32)})
    with pytest.raises(fdl.PathError, match=r"^update_sizes: expected only operations of jax"):
        jax.jit(lambda w: update_sizes({"w": w}, {"w": w}))(jnp.ones(2))


SEEDED_BUGS = {
    "fdl/look/similarity.py": (
        "look/test_similarity.py",
        [
            ("(gram[0] * gram[1]).sum()", "(gram[0] * gram[1]).trace()"),
            ("jnp.sqrt(_overlap(one, one)) * jnp.sqrt(", "_overlap(one, one) * ("),
            ("centred(one)[0], centred(other)[0]", "one, centred(other)[0]"),
            ("_alignment(a, b) for b", "_alignment(b, b) for b"),
            ("sizes / jnp.where(total > 0, total, 1)", "sizes**2 / (sizes**2).sum()"),
            ("-jnp.square(h - row[None])", "jnp.square(h - row[None])"),
            ("h, h_test = h / unit, h_test / unit", "h = h"),
            ("votes.argmax()", "labels[near[0]]"),
        ],
    ),
    "fdl/look/representations.py": (
        "look/test_similarity.py",
        [
            ("rows - jnp.clip(mean, low, high)", "rows - mean"),
        ],
    ),
    "fdl/look/measurements.py": (
        "look/test_similarity.py",
        [
            (".mean(1)", "[:, 0]"),
            ("jax.random.fold_in(jax.random.key(run.seed), run.step)", "jax.random.key(run.seed)"),
            ("old, now = old / unit, now / unit", "old, now = old, now"),
            ("now - old) / size", "now - old) / np.linalg.norm(now)"),
        ],
    ),
}
