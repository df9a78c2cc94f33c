"""look: representations that are taken out, measured and listed, against hand and scikit-learn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fdl
from fdl.look import layer_paths, principal_components
from tests.programs import array


def assert_near(got, wanted, tolerance=1e-6):
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def assert_same(got, wanted):
    """Asserts the same paths in the same order, and the same bits."""
    assert list(got) == list(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def nested():
    """A block inside a chain inside a chain; its parts written out of alphabetical order."""
    block = fdl.network(
        lambda f, x: f.down(fdl.relu(f.up(x))) + x, up=fdl.dense(6), down=fdl.dense(4, bias=False)
    )
    body = fdl.chain(block, fdl.relu, fdl.dropout(0.5))
    return fdl.chain(fdl.rescale(1 / 255), fdl.flatten(), body=body, head=fdl.dense(2))


PATHS = [
    *("rescale_0", "flatten_0", "body", "body/network_0", "body/network_0/up"),
    *("body/network_0/down", "body/relu_0", "body/dropout_0", "head"),
]


@pytest.fixture(scope="module")
def made():
    """The nested network, its parameters and state, and pixels [3, 2, 2, 1]."""
    model = nested()
    x = array(np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)), jnp.uint8)
    return model, *model.init(jax.random.key(1), x), x


# capture


def test_paths_come_in_the_order_in_which_layers_were_given(made):
    assert layer_paths(made[0]) == PATHS
    assert layer_paths(fdl.dense(3)) == []
    assert layer_paths(fdl.network(lambda f, x: x, z=fdl.relu, a=fdl.relu)) == ["z", "a"]


@pytest.mark.parametrize(
    ("patterns", "picked"),
    [
        (["**"], PATHS),
        (["*"], ["rescale_0", "flatten_0", "body", "head"]),
        (["head", "body"], ["body", "head"]),  # the network's order, not the patterns'
        (["body/*"], ["body/network_0", "body/relu_0", "body/dropout_0"]),
        (["**/up"], ["body/network_0/up"]),
        (["body/**", "**/*_0"], [path for path in PATHS if path != "head"]),
        (["head", "head", "h*"], ["head"]),
    ],
)
def test_patterns_pick_layers(made, patterns, picked):
    model, params, state, x = made
    assert list(fdl.capture(model, *patterns)(params, state, x)) == picked


def test_representations_equal_those_computed_by_hand(made):
    model, params, state, x = made
    seen = fdl.capture(model, "**")(params, state, x)
    inner = params["body"]["network_0"]
    pixels = np.asarray(x).reshape(3, 4) / 255
    up = pixels @ np.asarray(inner["up"]["w"]) + np.asarray(inner["up"]["b"])
    down = np.maximum(up, 0) @ np.asarray(inner["down"]["w"])
    body = np.maximum(down + pixels, 0)
    assert_near(seen["rescale_0"], pixels.reshape(3, 2, 2, 1))
    assert_near(seen["flatten_0"], pixels)
    assert_near(seen["body/network_0/up"], up)
    assert_near(seen["body/network_0/down"], down)
    assert_near(seen["body/network_0"], down + pixels)
    for path in ("body/relu_0", "body/dropout_0", "body"):
        assert_near(seen[path], body)
    assert_near(
        seen["head"], body @ np.asarray(params["head"]["w"]) + np.asarray(params["head"]["b"])
    )


def test_the_last_layer_gives_the_output_and_nothing_else_changes(made):
    model, params, state, x = made
    before = jax.tree.map(np.array, params)
    seen = fdl.capture(model, "**")(params, state, x)
    y, after = model.apply(params, state, x)
    np.testing.assert_array_equal(seen["head"], y)
    assert_same(params, before)
    assert state == after == {}


def test_a_child_called_twice_gives_a_path_for_each_call():
    cell = fdl.chain(fdl.dense(4), fdl.tanh)
    model = fdl.network(
        lambda f, x: f.cell(f.cell(f.cell(x))) + f.skip(x), cell=cell, skip=fdl.relu
    )
    x = array(np.random.default_rng(0).normal(size=(2, 4)))
    params, state = model.init(jax.random.key(0), x)
    seen = fdl.capture(model, "**")(params, state, x)
    counted = [f"{path}{call}" for path in ("cell", "cell/dense_0") for call in ("", "#1", "#2")]
    assert list(seen)[:6] == counted
    assert list(seen)[6:] == ["cell/tanh_0", "cell/tanh_0#1", "cell/tanh_0#2", "skip"]
    own, h = params["cell"]["dense_0"], np.asarray(x)
    for call in ("", "#1", "#2"):
        h = h @ np.asarray(own["w"]) + np.asarray(own["b"])
        assert_near(seen[f"cell/dense_0{call}"], h)
        h = np.tanh(h)
        assert_near(seen[f"cell{call}"], h)
    assert list(fdl.capture(model, "cell")(params, state, x)) == ["cell", "cell#1", "cell#2"]


def test_one_layer_under_two_names_is_two_layers():
    layer = fdl.dense(3)
    model = fdl.network(lambda f, x: f.a(x) - f.b(x), a=layer, b=layer)
    x = array(np.ones((2, 3)))
    params, state = model.init(jax.random.key(0), x)
    seen = jax.tree.map(np.asarray, fdl.capture(model, "a", "b")(params, state, x))
    assert_near(seen["a"] - seen["b"], model.apply(params, state, x)[0])
    assert not np.allclose(seen["a"], seen["b"])


def test_state_passes_through_a_tapped_layer():
    """A layer that counts its calls, twice in one pass: the count goes on between the calls."""

    def apply(params, state, x, *, key=None, train=False):
        assert list(state) == ["calls"]  # and nothing that capture keeps there
        return x + state["calls"], {"calls": state["calls"] + 1}

    counter = fdl.Layer("counter", lambda key, x: ({}, {"calls": jnp.float32(1)}), apply)
    model = fdl.network(lambda f, x: f.count(f.count(x)), count=counter)
    params, state = model.init(jax.random.key(0), jnp.zeros(2))
    seen = fdl.capture(model, "count")(params, state, jnp.zeros(2))
    assert_same(seen, {"count": np.float32([1, 1]), "count#1": np.float32([3, 3])})
    assert list(state["count"]) == ["calls"]


def test_extra_inputs_reach_the_layers_that_name_them():
    def apply(params, state, x, *, shift, key=None, train=False):
        return x + shift, state

    model = fdl.chain(fdl.relu, fdl.Layer("add", lambda key, x, shift: ({}, {}), apply))
    seen = fdl.capture(model, "**")({}, {}, jnp.array([-1.0, 2.0]), shift=jnp.float32(10))
    assert_same(seen, {"relu_0": np.float32([0, 2]), "add_0": np.float32([10, 12])})


def test_under_jit_vmap_scan_and_checkpoint_it_is_the_same_function(made):
    model, params, state, x = made
    look = fdl.capture(model, "**")
    plain = look(params, state, x)

    def assert_close(got):
        jax.tree.map(assert_near, got, plain)

    def of_one(carry, one):
        return carry, look(params, state, one[None])

    @jax.jit
    def transformed(params, state, x):
        each = jax.vmap(lambda one: of_one(0, one)[1])(x)
        return jax.checkpoint(look)(params, state, x), each, jax.lax.scan(of_one, 0, x)[1]

    assert_close(jax.jit(look)(params, state, x))
    again, each, scanned = transformed(params, state, x)
    assert_close(again)
    assert_close(jax.tree.map(lambda h: np.asarray(h)[:, 0], each))
    assert_close(jax.tree.map(lambda h: np.asarray(h)[:, 0], scanned))


def test_under_vmap_over_networks_each_gives_its_own(made):
    model, _, state, x = made
    look = fdl.capture(model, "head", "**/up")
    keys = jax.random.split(jax.random.key(5), 3)
    several = jax.vmap(lambda key: model.init(key, x)[0])(keys)
    seen = jax.jit(jax.vmap(look, (0, None, None)))(several, state, x)
    several, seen = jax.tree.map(np.asarray, (several, seen))
    for member in range(3):
        alone = look(jax.tree.map(lambda leaf, m=member: leaf[m], several), state, x)
        jax.tree.map(assert_near, jax.tree.map(lambda h, m=member: h[m], seen), alone)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_the_gradient_of_a_representation(made, wrap):
    model, params, state, x = made
    look = fdl.capture(model, "body/network_0/up")

    def size(params):
        return look(params, state, x)["body/network_0/up"].sum()

    gradient = jax.grad(wrap(size))(params)
    inner = gradient["body"]["network_0"]
    pixels = np.asarray(x).reshape(3, 4) / 255
    assert_near(inner["up"]["w"], np.repeat(pixels.sum(0)[:, None], 6, axis=1))
    assert_near(inner["up"]["b"], np.full(6, 3.0))
    for after in (inner["down"]["w"], gradient["head"]["w"]):
        assert not np.asarray(after).any()


def test_in_training_it_is_the_same_forward_pass(made):
    model, params, state, x = made
    look, key = fdl.capture(model, "**"), jax.random.key(3)
    seen = look(params, state, x, key=key, train=True)
    y, _ = model.apply(params, state, x, key=key, train=True)
    np.testing.assert_array_equal(seen["head"], y)
    # Dropout: what is not 0 is doubled, and something is dropped, by this very key.
    dropped, whole = (np.asarray(seen[path]) for path in ("body/dropout_0", "body/relu_0"))
    kept = dropped != 0
    np.testing.assert_array_equal(dropped, np.where(kept, 2 * whole, 0))
    assert (whole != 0)[~kept].any()
    other = look(params, state, x, key=jax.random.key(4), train=True)
    assert (np.asarray(other["body/dropout_0"]) != dropped).any()
    assert_same(look(params, state, x, key=key, train=True), seen)


def test_a_pattern_that_matches_nothing_names_the_nearest_paths(made):
    said = (
        "pattern 'body/network_0/upp': expected at least one match among 9 paths, got none; "
        "the most similar paths are 'body/network_0/up', 'body/network_0'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        fdl.capture(made[0], "head", "body/network_0/upp")
    with pytest.raises(
        ValueError, match=r"^pattern '\*\*': expected .* the most similar paths are none$"
    ):
        fdl.capture(fdl.dense(3), "**")


def test_an_error_inside_a_tapped_network_has_the_path(made):
    model, params, state, _ = made
    look = fdl.capture(model, "**")
    said = r"^body/network_0/up: expected x \[\.\.\., 4\], got \[3, 5\]"
    with pytest.raises(fdl.PathError, match=said):
        look(params, state, jnp.ones((3, 5)))
    with pytest.raises(fdl.PathError, match=r"^body/dropout_0: expected a random key in training"):
        look(params, state, jnp.ones((3, 4)), train=True)


# linear_readout


@pytest.fixture(scope="module")
def digits():
    return fdl.data.digits()


def readout_of_sklearn(train, test):
    """The same objective: a decay of 1e-3 is C = 1 / (N * decay); the bias is undecayed."""
    regression = LogisticRegression(C=1 / (len(train[1]) * 1e-3), max_iter=2000)
    return make_pipeline(StandardScaler(), regression).fit(*train).score(*test)


@pytest.mark.parametrize("what", ["pixels", "random layer"])
def test_readout_agrees_with_scikit_learn(digits, what):
    (x, y), (x_test, y_test) = digits
    if what == "random layer":
        model = fdl.mlp([48], 10, scale=1 / 16)
        params, state = model.init(jax.random.key(0), x[:1])
        look = fdl.capture(model, "relu_0")
        x, x_test = (jax.jit(look)(params, state, each)["relu_0"] for each in (x, x_test))
    h, h_test = (np.asarray(each, np.float32).reshape(len(each), -1) for each in (x, x_test))
    got = fdl.linear_readout((h, y), (h_test, y_test), 10)
    wanted = readout_of_sklearn((h, y), (h_test, y_test))
    assert 0.85 < wanted < 0.99
    assert abs(got - wanted) < 0.01


def test_classes_that_a_line_separates_are_read_out_whole():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    centres = np.float32([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0]])
    h = centres[y] + rng.normal(size=(300, 4)).astype(np.float32)
    assert fdl.linear_readout((h[:150], y[:150]), (h[150:], y[150:]), 3) == 1.0
    shaped = h.reshape(300, 2, 2)
    assert fdl.linear_readout((shaped[:150], y[:150]), (shaped[150:], y[150:]), 3) == 1.0


@pytest.mark.parametrize("size", [1e25, 3e38, 1e-30])
def test_a_readout_of_any_size_is_that_of_its_features(size):
    rng = np.random.default_rng(3)
    h, y = rng.uniform(-1, 1, (300, 4)), rng.integers(0, 3, 300)
    h[:, 0] = np.clip(h[:, 0] + 0.5 * y - 0.5, -1, 1)
    plain, large = h.astype(np.float32), (size * h).astype(np.float32)
    mixed = np.where(np.arange(4) < 2, large, plain)
    got = [
        fdl.linear_readout((z[:200], y[:200]), (z[200:], y[200:]), 3) for z in (plain, large, mixed)
    ]
    assert 0.4 < got[0] < 1
    np.testing.assert_allclose(got[1:], got[0], atol=0.011)


def test_units_do_not_matter():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 400)
    h = (rng.normal(size=(400, 5)) + y[:, None]).astype(np.float32)
    other = h * np.float32([1e-2, 1e2, -5, 1, 30]) + np.float32([1, -2e2, 7, 0, 1])
    halves = slice(None, 200), slice(200, None)
    a, b = (fdl.linear_readout(*((z[half], y[half]) for half in halves), 3) for z in (h, other))
    assert abs(a - b) <= 0.01 and 0.6 < a < 1


def test_noise_is_read_out_at_chance():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(6000, 8)).astype(np.float32)
    y = rng.integers(0, 4, 6000)
    got = fdl.linear_readout((h[:3000], y[:3000]), (h[3000:], y[3000:]), 4)
    assert abs(got - 0.25) < 0.04  # five standard deviations of a share of 3000


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_features_give_the_frequency_of_the_largest_class(value):
    y, y_test = np.array([0, 1, 1, 2, 1, 0, 1]), np.array([1, 0, 1, 2, 2])
    h, h_test = np.full((7, 3), value, np.float32), np.full((5, 3), value, np.float32)
    got = fdl.linear_readout((h, y), (h_test, y_test), 3)
    assert got == pytest.approx(2 / 5)


def test_a_readout_needs_a_label_for_each_row():
    h, y = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])
    said = r"^linear_readout: expected labels \[N\] for h \[N, \.\.\.\], got \[3\] for 4 rows; pass"
    with pytest.raises(ValueError, match=said):
        fdl.linear_readout((h, y), (h, y[:3]), 2)
    with pytest.raises(ValueError, match=said):
        fdl.linear_readout((h, y[:3]), (h, y), 2)


def test_a_readout_refuses_what_it_cannot_measure():
    h, y = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])
    bad = np.where(np.arange(4)[:, None] == 1, np.nan, h)
    for part, sentence in {
        "nan": r"linear_readout: expected finite numbers, got NaN or infinity in 1 of 4 rows; find",
        "labels": r"linear_readout: expected labels in \[0, 2\), got 0 to 2; pass a larger number",
        "widths": r"linear_readout: expected the same number of features in train and test, got 2",
        "empty": r"linear_readout: expected h \[N, ...\] with N >= 1, got \[0, 2\]; pass one row",
    }.items():
        test = {
            "nan": (bad, y),
            "labels": (h, y * 2),
            "widths": (h[:, :1], y),
            "empty": (h[:0], y[:0]),
        }[part]
        with pytest.raises(ValueError, match="^" + sentence):
            fdl.linear_readout((h, y), test, 2)


def test_a_small_feature_beside_a_large_one_is_read():
    y = np.arange(40) % 2
    h = np.stack([y * 1e-8, np.linspace(-1, 1, 40) * 1e3], 1).astype(np.float32)
    assert fdl.linear_readout((h, y), (h, y), 2) == 1.0


def test_other_dtypes_are_measured_as_float32():
    y = np.arange(12) % 3
    for dtype in (np.uint8, jnp.bfloat16):
        h = np.eye(3)[y].astype(dtype)
        assert fdl.linear_readout((h, y), (h, y), 3) == 1.0
        assert fdl.look.principal_components(h, 2)[0].dtype == jnp.float32


MISUSES = {
    "number": (
        lambda m, x: fdl.capture(m, 3),
        "capture: expected patterns as strings, got 3; pass each pattern as a separate argument, "
        "as in capture(model, ",
    ),
    "list": (
        lambda m, x: fdl.capture(m, ["dense_0"]),
        "capture: expected patterns as strings, got ['dense_0']; pass each pattern as a separate "
        "argument, as in ",
    ),
    "function": (
        lambda m, x: fdl.capture(fdl.relu, "**"),
        "pattern '**': expected at least one match among 0 paths, got none; the most similar paths "
        "are none",
    ),
    "shape": (
        lambda m, x: fdl.summary(m, (2, 4)),
        "summary: expected x as an array or a jax.ShapeDtypeStruct, got (2, 4); pass a shape as ",
    ),
    **{
        f"classes_{classes}": (
            lambda m, x, classes=classes: fdl.linear_readout(
                (x, np.array([0, 1])), (x, np.array([0, 1])), classes
            ),
            f"linear_readout: expected classes >= 1, an integer, got {classes!r}; it is the ",
        )
        for classes in (2.0, "2")
    },
    "table": (
        lambda m, x: fdl.look.comparison_table([1]),
        "comparison_table: expected the result of fdl.compare_optimizers, got [1]; pass a dict, ",
    ),
    "table_of_numbers": (
        lambda m, x: fdl.look.comparison_table({"sgd": 1}),
        "comparison_table: expected the result of fdl.compare_optimizers, got {'sgd': 1}; pass ",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_wrong_arguments_raise(name):
    wrong, said = MISUSES[name]
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        wrong(fdl.models.mlp([5], 3), jnp.ones((2, 4)))


def test_the_summary_of_a_function_has_its_row():
    text = fdl.summary(fdl.relu, jax.ShapeDtypeStruct((2, 4), "float32"))
    assert "relu" in text.splitlines()[1] and text.splitlines()[-1].startswith("0 parameters")


def test_capture_needs_a_pattern():
    with pytest.raises(ValueError, match=r"^capture: expected a pattern, got none; pass '\*\*' to"):
        fdl.capture(fdl.mlp([2], 2))


def test_the_summary_of_a_bare_layer_has_its_row():
    assert fdl.summary(fdl.dense(3), jax.ShapeDtypeStruct((1, 2), "float32")).splitlines() == [
        "path   output  parameters",
        "dense  [1, 3]           9  b [3], w [2, 3]",
        "9 parameters (36 bytes) in 1 layer with weights",
    ]


# principal_components


@pytest.mark.parametrize("shape", [(40, 6), (5, 9), (30, 2, 3, 2)])
def test_components_equal_those_of_scikit_learn(shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(shape[0], np.prod(shape[1:]))) * np.linspace(1, 5, np.prod(shape[1:]))
    rows = (rows + 3).astype(np.float32)
    pca = PCA(3).fit(rows.astype(np.float64))
    wanted = pca.transform(rows.astype(np.float64))
    got, share = principal_components(jnp.asarray(rows).reshape(shape), 3)
    assert got.shape == (shape[0], 3)
    signs = np.sign((np.asarray(got) * wanted).sum(0))
    assert_near(got * signs.astype(np.float32), wanted, 1e-3)
    assert_near(share, pca.explained_variance_ratio_, 1e-5)
    largest = np.abs(pca.components_).argmax(1)
    np.testing.assert_array_equal(signs, np.sign(pca.components_[np.arange(3), largest]))


def test_two_components_by_default_and_all_shares_sum_to_one():
    h = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    assert principal_components(h)[0].shape == (12, 2)
    coordinates, share = principal_components(h, 5)
    assert_near(share.sum(), 1.0)
    assert_near(np.linalg.norm(coordinates[3] - coordinates[7]), np.linalg.norm(h[3] - h[7]), 1e-5)


def test_components_of_a_constant_are_zero():
    coordinates, share = principal_components(np.full((4, 3), 2.0, np.float32))
    assert not coordinates.any() and not share.any()


@pytest.mark.parametrize("size", [1e-25, 1e25, 3e37])
def test_components_do_not_depend_on_the_unit(size):
    h = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    coordinates, share = principal_components(h)
    found, same = principal_components(h * np.float32(size))
    assert_near(same, share, 1e-5)
    np.testing.assert_allclose(found / np.float32(size), coordinates, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((4, 3), 4), ((2, 3), 3), ((4, 3), 0), ((4, 3), 1.5), ((4, 3), "2"), ((4, 3), True)],
)
def test_more_components_than_there_are_is_an_error(shape, count):
    said = rf"^principal_components: expected 1 to {min(shape)} components of h \[{shape[0]}, 3\], "
    with pytest.raises(ValueError, match=f"{said}got {count!r}; pass a smaller"):
        principal_components(np.ones(shape, np.float32), count)


# summary and depth

TABLE = """\
path                 output        parameters
rescale_0            [3, 2, 2, 1]           0
flatten_0            [3, 4]                 0
body                 [3, 4]                54
body/network_0       [3, 4]                54
body/network_0/up    [3, 6]                30  b [6], w [4, 6]
body/network_0/down  [3, 4]                24  w [6, 4]
body/relu_0          [3, 4]                 0
body/dropout_0       [3, 4]                 0
head                 [3, 2]                10  b [2], w [4, 2]
64 parameters (256 bytes) in 3 layers with weights"""


def test_the_table_of_a_nested_network(made):
    model, _, _, x = made
    assert fdl.summary(model, x) == TABLE
    assert fdl.summary(model, jax.ShapeDtypeStruct(x.shape, x.dtype)) == TABLE


def test_counts_equal_the_sizes_of_the_leaves(made):
    model, params, _, x = made
    counts = {}
    for line in fdl.summary(model, x).splitlines()[1:-1]:
        path, count = re.match(r"(\S+)\s+\[.*?\]\s+([\d,]+)", line).groups()
        counts[path] = int(count.replace(",", ""))
    for path, count in counts.items():
        node = params
        for level in path.split("/"):
            node = node.get(level, {})
        assert count == sum(leaf.size for leaf in jax.tree.leaves(node)), path
    assert list(counts) == PATHS
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 64


def test_thousands_and_bytes_of_the_dtype():
    table = fdl.summary(fdl.mlp([1000], 10), jax.ShapeDtypeStruct((1, 784), jnp.bfloat16))
    assert "\ndense_0    [1, 1000]     785,000  b [1000], w [784, 1000]\n" in table
    assert table.endswith("\n795,010 parameters (1,590,020 bytes) in 2 layers with weights")


def test_one_layer_by_itself_and_a_network_without_weights():
    x = jnp.ones((2, 4))
    assert "15 parameters (60 bytes) in 1 layer" in fdl.summary(fdl.dense(3), x)
    assert "0 parameters (0 bytes) in 0 layers" in fdl.summary(fdl.function(jnp.tanh), x)
    lines = fdl.summary(fdl.chain(fdl.relu, fdl.dropout(0.1)), x).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["relu_0", "[2,", "4]", "0"],
        ["dropout_0", "[2,", "4]", "0"],
    ]


def test_a_child_called_twice_is_counted_once():
    model = fdl.network(lambda f, x: f.cell(f.cell(x)), cell=fdl.dense(4))
    lines = fdl.summary(model, jnp.ones((2, 4))).splitlines()
    assert lines[1] == "cell  [2, 4]          20  b [4], w [4, 4]"
    assert lines[2].startswith("20 parameters (80 bytes) in 1 layer")


def test_a_summary_of_an_input_that_does_not_fit_names_the_layer(made):
    with pytest.raises(fdl.PathError, match=r"^dense_1: expected x of a floating dtype, got int32"):
        fdl.summary(
            fdl.chain(fdl.dense(2), lambda x: x.astype(jnp.int32), fdl.dense(2)), jnp.ones((1, 2))
        )


def test_depth_is_the_number_of_layers_that_hold_weights(made):
    assert fdl.depth(made[1]) == 3
    assert fdl.depth({}) == 0
    assert fdl.depth(fdl.mlp([64] * 3, 10).init(jax.random.key(0), jnp.ones((1, 8)))[0]) == 4
    assert fdl.depth({"attend": {"q": {"w": 1.0}, "k": {"w": 1.0}}, "scale": 1.0}) == 3


SEEDED_BUGS = {
    "fdl/look/representations.py": (
        "look/test_representations.py core/test_repetition.py",
        [
            ("if number else path", "if False else path"),
            ("(*state.get(OUTPUTS, ()), y)", "(y,)"),
            ("if name != OUTPUTS}", "}"),
            (" and any(each.startswith(above) for each in changes)", ""),
            ("/ curvature, w", "/ curvature * 1e-3, w"),
            ("return rows - jnp.clip(mean, low, high)", "return rows"),
            ("[:count].T", "[-count:].T"),
            ("_without_mean(rows / unit)", "_without_mean(rows)"),
            ("h, h_test = h / unit, h_test / unit", "h = h"),
            ("* spread * unit", "* unit"),
        ],
    ),
}
