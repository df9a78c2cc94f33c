"""network, chain, function, stateless: names, keys, extra inputs, state and messages."""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.core.layer import abstract, as_layer, subkey
from tests.entry_types import LayerCase
from tests.toys import masked, running_mean


def _skip_and_shared():
    return fdl.network(
        lambda f, x: f.head(f.shared(fdl.tanh(f.shared(x))) + x),
        shared=fdl.chain(fdl.dense(5), fdl.dropout(0.25)),
        head=fdl.dense(2, bias=False),
    )


def _with_context():
    def forward(f, x, *, context):
        return f.mix(f.down(x) + f.seen(context), mask=context)

    return fdl.network(
        forward,
        down=fdl.dense(3),
        seen=fdl.dense(3, w_init=fdl.initializers.glorot_uniform),
        mix=fdl.chain(fdl.silu, gate=masked(), name="mix"),
    )


def _nested_chain():
    return fdl.chain(
        fdl.dense(4),
        fdl.gelu,
        fdl.chain(fdl.dense(3), fdl.silu, inner=fdl.dense(4)),
        head=fdl.chain(fdl.tanh, out=fdl.dense(3, name="last"), name="top"),
        name="outer",
    )


LAYERS = {
    "dense": LayerCase(lambda: fdl.dense(3), (4, 5)),
    "dense_options": LayerCase(
        lambda: fdl.dense(
            3,
            w_init=fdl.initializers.he_uniform,
            b_init=fdl.initializers.normal(0.5),
            name="projection",
        ),
        (2, 3, 5),
    ),
    "dense_without_bias": LayerCase(
        lambda: fdl.dense(2, bias=False, w_init=fdl.initializers.uniform(0.4)), (3, 4)
    ),
    "dropout": LayerCase(lambda: fdl.dropout(0.3), (6, 7), random=True),
    "dropout_of_nothing": LayerCase(lambda: fdl.dropout(0.0), (3, 4)),
    "flatten": LayerCase(fdl.flatten, (2, 3, 2, 2)),
    "rescale": LayerCase(lambda: fdl.rescale(1 / 255, -0.5), (2, 3, 2, 1), np.uint8),
    "function": LayerCase(lambda: fdl.function(fdl.softmax, "chances"), (4, 3)),
    "chain_nested": LayerCase(_nested_chain, (3, 5)),
    "network_skip_and_shared_child": LayerCase(_skip_and_shared, (3, 5), random=True),
    "network_with_context": LayerCase(_with_context, (4, 2), inputs={"context": (4, 3)}),
    "stateful": LayerCase(
        lambda: fdl.chain(fdl.dense(3), running_mean(), fdl.tanh, running_mean(0.5)), (4, 2)
    ),
    "mlp": LayerCase(lambda: fdl.mlp([5, 4], 3, activation=fdl.tanh), (3, 2, 3)),
    "mlp_relu_dropout": LayerCase(
        lambda: fdl.mlp([6], 2, activation=fdl.relu, dropout_rate=0.4), (3, 5), random=True
    ),
    "mlp_of_images": LayerCase(
        lambda: fdl.mlp([4], 3, activation=fdl.gelu, scale=1 / 255), (2, 3, 3, 1), np.uint8
    ),
}


KEY = jax.random.key(0)
X = jnp.arange(12.0).reshape(3, 4) / 7 - 0.8


# JAX adds notes below the last line.
END = r"(?:\n|$)"


def told(text):
    """A pattern for a message that begins with `text`."""
    return "^" + re.escape(text)


def noise(name="noise"):
    """A layer that adds one random number to x: shows which key it gets."""

    def apply(params, state, x, *, key=None, train=False):
        return (x + jax.random.normal(key) if train else x), state

    return fdl.Layer(name, lambda key, x: ({}, {}), apply)


def deep(inner):
    """inner at a/b/c."""
    return fdl.chain(a=fdl.chain(b=fdl.network(lambda f, x: f.c(x), c=inner)))


# Names.


def test_unnamed_children_are_called_after_their_kind_and_counted():
    net = fdl.chain(
        fdl.dense(3),
        fdl.relu,
        fdl.dense(4, name="wide"),
        fdl.relu,
        functools.partial(fdl.gelu, approximate=False),
        lambda x: x,
        fdl.chain(fdl.dense(2)),
        fdl.dense(2),
        head=fdl.dense(1),
        tail=fdl.tanh,
    )
    assert list(net.children) == [
        *("dense_0", "relu_0", "wide_0", "relu_1", "gelu_0", "lambda_0", "chain_0", "dense_1"),
        *("head", "tail"),
    ]
    params, state = net.init(KEY, X)
    assert list(fdl.paths.leaves(params)) == [
        *("chain_0/dense_0/b", "chain_0/dense_0/w", "dense_0/b", "dense_0/w", "dense_1/b"),
        *("dense_1/w", "head/b", "head/w", "wide_0/b", "wide_0/w"),
    ]
    assert state == {}
    assert net.name == "chain" and fdl.chain(fdl.relu, name="block").name == "block"


def test_a_chain_is_its_layers_one_after_the_other():
    net = fdl.chain(fdl.dense(3), fdl.tanh, fdl.dense(2))
    params, _ = net.init(KEY, X)
    first, second = params["dense_0"], params["dense_1"]
    y, _ = net.apply(params, {}, X)
    expected = jnp.tanh(X @ first["w"] + first["b"]) @ second["w"] + second["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_rebuild_makes_the_same_layer_of_other_children():
    net = fdl.network(lambda f, x: f.b(f.a(x)) - x, a=fdl.dense(4), b=fdl.tanh)
    double = as_layer(lambda x: 2 * x)
    other = net.rebuild({**net.children, "b": double})
    params, _ = net.init(KEY, X)
    y, _ = other.apply(params, {}, X)
    np.testing.assert_array_equal(y, 2 * (X @ params["a"]["w"] + params["a"]["b"]) - X)
    assert other.name == net.name and list(other.children) == ["a", "b"]


# Keys.


def test_a_key_is_folded_from_the_names_of_the_path():
    net = fdl.chain(outer=fdl.chain(inner=fdl.dense(3)), noise=noise())
    params, _ = net.init(KEY, X)
    key = KEY
    for level in ("outer", "inner", "w"):
        key = jax.random.fold_in(key, zlib.crc32(level.encode()))
    expected = fdl.initializers.lecun_normal(key, (4, 3))
    np.testing.assert_array_equal(params["outer"]["inner"]["w"], expected)
    train = jax.random.key(9)
    y, _ = net.apply(params, {}, X, key=train, train=True)
    plain, _ = net.apply(params, {}, X)
    drawn = jax.random.normal(jax.random.fold_in(train, zlib.crc32(b"noise")))
    np.testing.assert_allclose(y - plain, jnp.full((3, 3), drawn), rtol=1e-5)


def test_subkey_takes_both_kinds_of_key_and_none():
    assert subkey(None, "w") is None
    typed, raw = subkey(jax.random.key(4), "w"), subkey(jax.random.PRNGKey(4), "w")
    np.testing.assert_array_equal(jax.random.key_data(typed), raw)
    assert (jax.random.key_data(subkey(KEY, "v")) != jax.random.key_data(subkey(KEY, "w"))).any()


@pytest.mark.parametrize("key", [0, 1.5, np.int32(7), jnp.zeros(3), "seed"])
def test_a_value_that_is_not_a_key_is_refused(key):
    message = r"^(mlp: )?expected one random key, got .*; make it with jax\.random\.key\(seed\)$"
    for call in (
        lambda: subkey(key, "w"),
        lambda: fdl.dense(2).init(key, X),
        lambda: fdl.mlp([3], 2).init(key, X),
        lambda: fdl.mlp([3], 2, dropout_rate=0.5).apply({}, {}, X, key=key, train=True),
    ):
        with pytest.raises(fdl.PathError, match=message):
            call()


@pytest.mark.parametrize("key", [0, 1.5, jnp.zeros(3)])
def test_dropout_alone_refuses_a_value_that_is_not_a_key(key):
    with pytest.raises(fdl.PathError, match=told("dropout: expected one random key, got ")):
        fdl.dropout(0.5).apply({}, {}, X, key=key, train=True)


def test_a_batch_of_keys_is_refused_in_one_line():
    keys = jax.random.split(KEY, 3)
    with pytest.raises(fdl.PathError, match=told("expected one random key, got ")) as caught:
        fdl.dense(2).init(keys, X)
    assert str(caught.value).splitlines()[0].endswith("make it with jax.random.key(seed)")


def test_no_key_in_init_names_the_layer():
    with pytest.raises(
        fdl.PathError,
        match=told("a/b/c: expected a random key, got None; pass jax.random.key(seed)") + END,
    ):
        deep(fdl.dense(2)).init(None, X)
    assert fdl.chain(fdl.relu).init(None, X) == ({}, {})


def test_a_child_called_twice_shares_its_weights_but_not_its_random_numbers():
    net = fdl.network(
        lambda f, x: jnp.stack([f.drop(x), f.drop(x), f.other(x)]),
        drop=fdl.dropout(0.5),
        other=fdl.dropout(0.5),
    )
    ones = jnp.ones((40, 5))
    y, _ = net.apply({}, {}, ones, key=KEY, train=True)
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert 0.3 < (y[a] != y[b]).mean() < 0.7
    again, _ = net.apply({}, {}, ones, key=KEY, train=True)
    np.testing.assert_array_equal(y, again)
    # The first call's mask is that of a child called once.
    once, _ = fdl.network(lambda f, x: f.drop(x), drop=fdl.dropout(0.5)).apply(
        {}, {}, ones, key=KEY, train=True
    )
    np.testing.assert_array_equal(y[0], once)


def test_a_shared_child_gets_the_sum_of_both_gradients():
    net = fdl.network(lambda f, x: f.shared(jnp.sin(f.shared(x))), shared=fdl.dense(4))
    params, _ = net.init(KEY, X)
    assert list(params) == ["shared"]

    def twice(first, second):
        return (jnp.sin(X @ first["w"] + first["b"]) @ second["w"] + second["b"])[1, 2]

    first, second = jax.grad(twice, (0, 1))(params["shared"], params["shared"])
    both = jax.grad(lambda p: net.apply(p, {}, X)[0][1, 2])(params)["shared"]
    for leaf in ("w", "b"):
        np.testing.assert_allclose(both[leaf], first[leaf] + second[leaf], rtol=1e-5, atol=1e-7)


# Extra inputs.


def recorder(name, **wanted):
    """A layer that adds every extra input, times its weight, to x: shows which inputs arrive."""

    def init(key, x, **given):
        return {}, {}

    def apply(params, state, x, *, key=None, train=False, **given):
        return x + sum(wanted[each] * given[each].sum() for each in wanted if each in given), state

    return fdl.Layer(name, init, apply, tuple(wanted))


def test_a_chain_hands_an_input_to_the_children_that_name_it():
    net = fdl.chain(
        recorder("one", mask=1.0),
        fdl.chain(fdl.dense(4), recorder("two", mask=10.0, context=100.0), recorder("none")),
        last=recorder("last", context=1000.0),
    )
    assert net.inputs == ("mask", "context")
    assert net.children["chain_0"].inputs == ("mask", "context")
    params, _ = net.init(KEY, X, mask=jnp.ones(2), context=jnp.ones(3))
    weights = params["chain_0"]["dense_0"]
    y, _ = net.apply(params, {}, X, mask=jnp.array([2.0, 0.0]), context=jnp.array([3.0]))
    expected = (X + 2) @ weights["w"] + weights["b"] + 20 + 300 + 3000
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    fewer, _ = net.apply(params, {}, X, mask=jnp.array([2.0]))
    np.testing.assert_allclose(fewer, (X + 2) @ weights["w"] + weights["b"] + 20, rtol=1e-6)


def test_the_inputs_of_a_layer_are_the_keyword_arguments_of_apply():
    assert masked().inputs == ("mask",)
    assert fdl.dense(3).inputs == fdl.dropout(0.1).inputs == ()
    net = fdl.network(lambda f, x, *, context, mask=None: x, child=fdl.relu)
    assert net.inputs == ("context", "mask")
    assert net.required == ("context",)
    read = fdl.Layer("own", lambda key, x: ({}, {}), lambda p, s, x, *, seen, other=None: (x, s))
    assert (read.inputs, read.required) == (("seen", "other"), ("seen",))
    with pytest.raises(fdl.PathError, match=told("a: expected the input 'seen', got none; pass")):
        fdl.network(lambda f, x: f.a(x), a=read).init(KEY, X)


def test_a_child_gets_the_inputs_that_forward_passes():
    net = fdl.network(
        lambda f, x, *, mask, scale=None: f.gate(x, mask=mask) * (1 if scale is None else scale),
        gate=masked(),
    )
    mask = jnp.array([1.0, 0.0, 0.0, 2.0])
    params, _ = net.init(KEY, X, mask=mask)
    y, _ = net.apply(params, {}, X, mask=mask)
    np.testing.assert_allclose(y, X * jnp.array([1.5, 1.0, 1.0, 1.5]), rtol=1e-6)
    z, _ = net.apply(params, {}, X, mask=mask, scale=jnp.float32(3))
    np.testing.assert_allclose(z, 3 * y, rtol=1e-6)


def test_a_network_hands_its_inputs_to_the_children_that_name_them():
    net = fdl.network(
        lambda f, x, *, shift: f.both(f.one(f.plain(x) + shift, mask=2 * shift)),
        inputs=("mask", "context"),
        plain=fdl.tanh,
        one=recorder("one", mask=1.0),
        both=recorder("both", mask=10.0, context=100.0),
    )
    assert (net.inputs, net.required) == (("shift", "mask", "context"), ("shift",))
    given = {"shift": jnp.float32(3), "mask": jnp.float32(5)}
    assert net.init(KEY, X, **given) == ({}, {})
    y, _ = net.apply({}, {}, X, **given)
    np.testing.assert_allclose(y, jnp.tanh(X) + 3 + 6 + 50, rtol=1e-6)
    y, _ = net.apply({}, {}, X, **given, context=jnp.float32(7))
    np.testing.assert_allclose(y, jnp.tanh(X) + 3 + 6 + 50 + 700, rtol=1e-6)


def test_a_forward_with_any_arguments_gets_the_inputs_of_its_network():
    def forward(f, x, **given):
        return f.one(x) + sum((i + 2) * value for i, value in enumerate(given.values()))

    net = fdl.network(forward, inputs=("mask", "bias"), one=recorder("one", mask=1.0))
    assert (net.inputs, net.required) == (("mask", "bias"), ())
    y, _ = net.apply({}, {}, X, mask=jnp.float32(5), bias=jnp.float32(100))
    np.testing.assert_allclose(y, X + 5 + 2 * 5 + 3 * 100, rtol=1e-6)
    np.testing.assert_allclose(net.apply({}, {}, X)[0], X)
    y = jax.jit(jax.grad(lambda m: net.apply({}, {}, X, mask=m)[0].sum()))(jnp.float32(5))
    np.testing.assert_allclose(y, X.size * 3)


def test_a_rebuilt_network_takes_the_inputs_of_its_new_children():
    net = fdl.network(lambda f, x: f.one(x), inputs=("mask",), one=recorder("one", mask=1.0))
    other = net.rebuild({"one": as_layer(fdl.tanh)})
    assert other.inputs == ()
    with pytest.raises(
        fdl.PathError,
        match=told(
            "network: expected extra inputs among [], got 'mask', which no layer here takes; leave "
            "it out, or add an argument of this name to the layer that needs it"
        )
        + END,
    ):
        other.apply({}, {}, X, mask=X)


def test_inputs_that_nothing_names_are_refused():
    with pytest.raises(
        ValueError,
        match=told(
            "block: expected inputs that forward or a child takes, got 'mask'; leave it out, or "
            "add an argument of this name to the layer that needs it"
        )
        + END,
    ):
        fdl.network(lambda f, x: f.a(x), inputs=("mask",), name="block", a=fdl.tanh)
    for wrong, got in (("mask", "'mask'"), (fdl.tanh, "the function tanh"), ((1,), "(1,)")):
        with pytest.raises(
            ValueError,
            match=told(
                f"network: expected inputs to be a tuple of names, got {got}; write "
                f"inputs=('mask',); if 'inputs' is a child, give it another name"
            )
            + END,
        ):
            fdl.network(lambda f, x: x, inputs=wrong)


def test_an_input_nobody_takes_is_refused():
    net = fdl.chain(fdl.dense(3), masked(), name="head")
    params, state = net.init(KEY, X, mask=jnp.ones(3))
    message = told(
        "head: expected extra inputs among [mask], got 'context', which no layer here takes; "
        "leave it out, or add an argument of this name to the layer that needs it"
    )
    with pytest.raises(fdl.PathError, match=message + END):
        net.apply(params, state, X, mask=jnp.ones(3), context=jnp.ones(3))
    with pytest.raises(fdl.PathError, match=message + END):
        net.init(KEY, X, mask=jnp.ones(3), context=jnp.ones(3))
    with pytest.raises(fdl.PathError, match=told("chain: expected extra inputs among [], got 'm")):
        fdl.chain(fdl.relu).apply({}, {}, X, m=X)


def test_a_required_input_that_is_missing_is_named():
    net = fdl.network(lambda f, x, *, context: f.a(x) + context, a=fdl.dense(3), name="decoder")
    message = told("decoder: expected the input 'context', got none; pass it by name: context=...")
    with pytest.raises(fdl.PathError, match=message + END):
        net.init(KEY, X)
    params, state = net.init(KEY, X, context=jnp.ones(3))
    with pytest.raises(fdl.PathError, match=message + END):
        net.apply(params, state, X)
    inside = fdl.chain(fdl.tanh, block=net)
    with pytest.raises(fdl.PathError, match=told("block: expected the input 'context', got none")):
        inside.init(KEY, X)


# State.


def test_state_is_threaded_and_moved_in_training_only():
    net = fdl.chain(fdl.dense(2), running_mean(0.75), name="outer")
    params, state = net.init(KEY, X)
    assert list(fdl.paths.leaves(state)) == ["running_mean_0/count", "running_mean_0/mean"]
    h = np.asarray(X @ params["dense_0"]["w"] + params["dense_0"]["b"], np.float64)
    y, one = net.apply(params, state, X, train=True)
    np.testing.assert_allclose(one["running_mean_0"]["mean"], 0.25 * h.mean(0), rtol=1e-5)
    np.testing.assert_allclose(y, h - 0.25 * h.mean(0), rtol=1e-5, atol=1e-6)
    _, two = net.apply(params, one, X, train=True)
    np.testing.assert_allclose(two["running_mean_0"]["mean"], 0.4375 * h.mean(0), rtol=1e-5)
    assert (int(one["running_mean_0"]["count"]), int(two["running_mean_0"]["count"])) == (1, 2)
    _, same = net.apply(params, two, X)
    assert jax.tree.map(float, same["running_mean_0"]["count"]) == 2
    np.testing.assert_array_equal(same["running_mean_0"]["mean"], two["running_mean_0"]["mean"])
    assert int(state["running_mean_0"]["count"]) == 0


def test_a_stateful_child_called_twice_moves_its_state_twice():
    net = fdl.network(lambda f, x: f.norm(f.norm(x)), norm=running_mean())
    params, state = net.init(KEY, X)
    _, moved = net.apply(params, state, X, train=True)
    assert int(moved["norm"]["count"]) == 2


def test_stateless_is_the_evaluation_pass_and_refuses_state():
    model = fdl.chain(fdl.dense(3), fdl.dropout(0.5), masked())
    params, _ = model.init(KEY, X, mask=jnp.ones(3))
    mask = jnp.array([1.0, 0.0, 1.0])
    expected, _ = model.apply(params, {}, X, mask=mask)
    np.testing.assert_array_equal(fdl.stateless(model)(params, X, mask=mask), expected)
    assert jax.grad(lambda p: fdl.stateless(model)(p, X, mask=mask).sum())(params)
    stateful = fdl.chain(fdl.dense(3), norm=running_mean(), again=running_mean())
    with pytest.raises(
        fdl.PathError,
        match=told("stateless: expected a network without state, got state at again, norm; ")
        + re.escape("use model.apply(params, state, x)")
        + END,
    ):
        fdl.stateless(stateful)(params, X)


# Functions and other values as layers.


def test_function_is_a_layer_without_weights():
    layer = fdl.function(lambda x: x * 2, "double")
    assert layer.name == "double"
    assert layer.init(KEY, X) == ({}, {})
    y, state = layer.apply({}, {"kept": 1}, X, key=KEY, train=True)
    np.testing.assert_array_equal(y, 2 * X)
    assert state == {"kept": 1}
    assert as_layer(layer) is layer
    assert fdl.function(functools.partial(fdl.softmax, axis=0)).name == "softmax"


@pytest.mark.parametrize("value", [3, None, "dense", {"w": 1}])
def test_a_value_that_is_not_a_layer_is_refused(value):
    message = f"expected a Layer or a function of one array, got {value!r}; call the "
    message += "layer's factory, for example dense(8), or pass the function itself"
    for who, call in {
        "block": lambda: fdl.chain(fdl.relu, value, name="block"),
        "residual": lambda: fdl.residual(child=value),
        "network": lambda: fdl.network(lambda f, x: x, child=value),
        "remat": lambda: fdl.remat(value),
        "frozen": lambda: fdl.frozen(value),
        "batch_apply": lambda: fdl.batch_apply(value),
        "repeat": lambda: fdl.repeat(value, 2),
    }.items():
        with pytest.raises(TypeError, match=told(f"{who}: {message}") + END):
            call()


@pytest.mark.parametrize("name", ["", "a/b", "a*", "**"])
def test_a_name_that_is_not_one_level_is_refused(name):
    message = f"net: expected a child's name without '/' and '*', got {name!r}; "
    message += "rename the child, because paths and patterns use these characters"
    with pytest.raises(ValueError, match=told(message) + END):
        fdl.network(lambda f, x: x, name="net", **{name: fdl.relu})
    with pytest.raises(ValueError, match=told(message) + END):
        fdl.chain(name="net", **{name: fdl.relu})


def test_two_children_of_one_name_are_refused():
    message = (
        "chain: expected a different name for each layer, got 'dense_0' twice; rename one of the "
        "two"
    )
    with pytest.raises(ValueError, match=told(message) + END):
        fdl.chain(fdl.dense(2), dense_0=fdl.dense(3))


def test_a_child_that_does_not_exist_is_refused():
    net = fdl.network(lambda f, x: f.missing(x), down=fdl.relu, up=fdl.tanh)
    message = told(
        "outer: expected a child among down, up, got f.missing; call one of these, or add a child "
        "of this name to the network"
    )
    message += END
    with pytest.raises(fdl.PathError, match=message):
        fdl.chain(outer=net).init(KEY, X)
    with pytest.raises(fdl.PathError, match=message):
        fdl.chain(outer=net).apply({}, {}, X)


@pytest.mark.parametrize("name", ["_call", "_names"])
def test_any_name_works_for_a_child(name):
    net = fdl.network(lambda f, x: getattr(f, name)(x), **{name: fdl.tanh})
    np.testing.assert_array_equal(net.apply({}, {}, X)[0], jnp.tanh(X))


def test_children_are_found_by_name_and_by_item():
    net = fdl.network(
        lambda f, x: f["two words"](f.one(x)), one=fdl.tanh, **{"two words": fdl.relu}
    )
    np.testing.assert_array_equal(net.apply({}, {}, X)[0], fdl.relu(jnp.tanh(X)))


def test_abstract_is_the_shapes_and_dtypes():
    found = abstract({"a": np.ones((2, 3), np.int8), "k": KEY, "n": 2.0})
    assert (found["a"].shape, found["a"].dtype) == ((2, 3), jnp.int8)
    assert jnp.issubdtype(found["k"].dtype, jax.dtypes.prng_key)
    assert (found["n"].shape, found["n"].dtype) == ((), jnp.float32)


# Errors.

WIDE = jnp.ones((3, 5))
WRONG_WIDTH = "expected x [..., 4], got [3, 5]; give x that width, or make new params with init"


def transformed():
    """A loss of the network with a mistake at a/b/c, under each transformation."""
    net = deep(fdl.dense(2))
    params, state = net.init(KEY, X)

    def loss(params, x):
        return net.apply(params, state, x)[0].sum()

    def scanned(params, x):
        return jax.lax.scan(lambda total, row: (total + loss(params, row), None), 0.0, x[None])[0]

    return params, {
        "eager": loss,
        "jit": jax.jit(loss),
        "grad": jax.grad(loss),
        "jit of grad": jax.jit(jax.grad(loss)),
        "vmap": jax.vmap(lambda params, x: loss(params, x[None]), (None, 0)),
        "scan": scanned,
        "jit of scan": jax.jit(scanned),
        "remat": jax.grad(jax.checkpoint(loss)),
        "jvp": lambda p, x: jax.jvp(lambda p: loss(p, x), (p,), (p,)),
        "eval_shape": lambda p, x: jax.eval_shape(loss, p, x),
        "jit of vmap of grad": jax.jit(jax.vmap(jax.grad(loss), (None, 0))),
    }


@pytest.mark.parametrize("how", list(transformed()[1]))
def test_an_error_arrives_with_its_whole_path(how):
    params, calls = transformed()
    wide = {"vmap": WIDE, "jit of vmap of grad": WIDE[None]}.get(how, WIDE)
    message = WRONG_WIDTH.replace("[3, 5]", "[1, 5]") if how == "vmap" else WRONG_WIDTH
    with pytest.raises(fdl.PathError, match=told(f"a/b/c: {message}") + END):
        calls[how](params, wide)


def test_init_of_a_network_names_the_path_too():
    def forward(f, x):
        return f.up(f.down(x)) + f.down(f.up(x))

    net = fdl.chain(outer=fdl.network(forward, down=fdl.dense(3), up=fdl.dense(2)))
    message = "outer/down: expected x [..., 4], got [3, 3]; give x that width, or make new params "
    with pytest.raises(fdl.PathError, match=told("outer/up: expected x [..., 3], got [3, 4]; ")):
        net.init(KEY, X)
    mended = fdl.chain(
        outer=fdl.network(lambda f, x: f.down(f.down(x)), down=fdl.dense(3), up=fdl.dense(2))
    )
    for key in (KEY, jax.random.PRNGKey(1)):
        with pytest.raises(fdl.PathError, match=told(message)):
            mended.init(key, X)
    with pytest.raises(fdl.PathError, match=told(message)):
        jax.jit(mended.init)(KEY, X)


def test_an_input_with_more_axes_gets_another_remedy():
    layer = fdl.dense(2, name="read")
    params, _ = layer.init(KEY, X)
    remedy = "flatten x, give x that width, or make new params with init"
    with pytest.raises(
        fdl.PathError, match=told(f"read: expected x [..., 4], got [2, 3, 5]; {remedy}") + END
    ):
        layer.apply(params, {}, jnp.ones((2, 3, 5)))
    with pytest.raises(fdl.PathError, match=told("read: expected x [..., 4], got []; ")):
        layer.apply(params, {}, jnp.float32(1))
    with pytest.raises(fdl.PathError, match=told("read: expected x [..., D], got []; ")):
        layer.init(KEY, jnp.float32(1))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_an_integer_image_given_to_a_dense_layer_is_refused(dtype):
    images = jnp.ones((2, 4), dtype)
    message = told(
        f"a/b/c: expected x of a floating dtype, got {dtype} [2, 4]; convert x with "
        f"x.astype(jnp.float32), or use rescale(1 / 255) as the first layer"
    )
    net = deep(fdl.dense(2))
    with pytest.raises(fdl.PathError, match=message + END):
        net.init(KEY, images)
    params, state = net.init(KEY, X)
    with pytest.raises(fdl.PathError, match=message + END):
        jax.jit(net.apply)(params, state, images)


def test_a_key_outside_training_is_refused():
    net = fdl.mlp([3], 2, dropout_rate=0.5)
    params, state = net.init(KEY, X)
    message = told(
        "mlp: expected no random key with train=False, got one; leave the key out, or pass "
        "train=True"
    )
    with pytest.raises(fdl.PathError, match=message + END):
        net.apply(params, state, X, key=KEY)
    with pytest.raises(fdl.PathError, match=message + END):
        jax.jit(lambda key: net.apply(params, state, X, key=key))(KEY)


def test_no_key_in_training_is_refused():
    net = deep(fdl.dropout(0.5))
    message = (
        "expected a random key in training, got none; pass key=jax.random.key(seed), or train=False"
    )
    with pytest.raises(fdl.PathError, match=told(f"a/b/c: {message}") + END):
        net.apply({}, {}, X, train=True)
    with pytest.raises(fdl.PathError, match=told(f"dropout: {message}") + END):
        fdl.dropout(0.5).apply({}, {}, X, train=True)
    with pytest.raises(fdl.PathError, match=told(f"noise: {message}") + END):
        fdl.dropout(0.5, name="noise").apply({}, {}, X, train=True)


def test_parameters_of_another_network_are_refused():
    net = fdl.chain(outer=fdl.chain(fdl.dense(3), fdl.relu, name="block"))
    params, state = net.init(KEY, X)
    message = told(
        "outer: expected parameters of dense_0, relu_0 only, got an entry for 'dense_1'; pass the "
        "parameters of this network, not of another one"
    )
    with pytest.raises(fdl.PathError, match=message + END):
        net.apply({"outer": {**params["outer"], "dense_1": {}}}, state, X)
    with pytest.raises(
        fdl.PathError, match=told("chain: expected parameters of outer only, got an")
    ):
        net.apply({**params, "inner": {}}, state, X)


def test_missing_parameters_are_named():
    net = deep(fdl.dense(2))
    params, state = net.init(KEY, X)
    message = "in the layer's params or state, got [{}]; pass the params and state that init made"
    with pytest.raises(fdl.PathError, match=told(f"a/b/c: expected 'w' {message.format('')}")):
        net.apply({}, state, X)
    with pytest.raises(fdl.PathError, match=told(f"a/b/c: expected 'b' {message.format('w')}")):
        net.apply({"a": {"b": {"c": {"w": params["a"]["b"]["c"]["w"]}}}}, state, X)
    stateful = fdl.chain(norm=running_mean())
    with pytest.raises(fdl.PathError, match=told(f"norm: expected 'mean' {message.format('')}")):
        stateful.apply({}, {}, X)


def test_an_error_of_other_code_keeps_its_type_and_gets_the_path_as_notes():
    def broken(x):
        raise ZeroDivisionError("by nothing")

    with pytest.raises(ZeroDivisionError, match=r"^by nothing") as caught:
        jax.jit(deep(fdl.function(broken)).apply)({}, {}, X)
    assert caught.value.__notes__[:3] == ["in layer 'c'", "in layer 'b'", "in layer 'a'"]

    def other_key(x):
        return {"known": x}[3]

    with pytest.raises(KeyError, match=r"^3(\n|$)"):
        deep(fdl.function(other_key)).apply({}, {}, X)


@pytest.mark.parametrize("features", [0, -3])
def test_dense_refuses_no_features(features):
    message = f"expected features >= 1, an integer, got {features}; pass the number of outputs"
    for who, make in (
        ("dense", lambda: fdl.dense(features)),
        ("mlp", lambda: fdl.mlp([4, features], 3)),
        ("mlp", lambda: fdl.mlp([4], features)),
    ):
        with pytest.raises(ValueError, match=told(f"{who}: {message}") + END):
            make()


@pytest.mark.parametrize("rate", [-0.1, 1.1, 1.5, float("nan")])
def test_dropout_refuses_a_rate_out_of_range(rate):
    message = f"in [0, 1], got {rate}; pass 0.1 to drop 10 %"
    with pytest.raises(ValueError, match=told(f"dropout: expected rate {message}") + END):
        fdl.dropout(rate)
    with pytest.raises(ValueError, match=told(f"mlp: expected dropout_rate {message}") + END):
        fdl.mlp([4], 2, dropout_rate=rate)


# Models.


def test_mlp_is_the_chain_its_docstring_says():
    net = fdl.mlp([5, 4], 3, activation=fdl.tanh, dropout_rate=0.25, scale=0.5)
    assert list(net.children) == [
        *("rescale_0", "flatten_0", "dense_0", "tanh_0", "dropout_0"),
        *("dense_1", "tanh_1", "dropout_1", "dense_2"),
    ]
    x = jnp.arange(12, dtype=jnp.uint8).reshape(2, 3, 2)
    params, _ = net.init(KEY, x)
    h = np.asarray(x, np.float64).reshape(2, 6) * 0.5
    for i in range(3):
        assert not params[f"dense_{i}"]["b"].any()
        h = h @ np.asarray(params[f"dense_{i}"]["w"], np.float64)
        h = np.tanh(h) if i < 2 else h
    np.testing.assert_allclose(net.apply(params, {}, x)[0], h, rtol=1e-5, atol=1e-6)
    assert list(fdl.mlp([], 2).children) == ["flatten_0", "dense_0"]
    assert list(fdl.mlp([3], 2).children) == ["flatten_0", "dense_0", "relu_0", "dense_1"]


def test_mlp_begins_he_normal_and_the_last_layer_lecun_normal():
    params, _ = fdl.mlp([300, 200], 100).init(KEY, jnp.ones((1, 250)))
    for name, fan_in, scale in [("dense_0", 250, 2), ("dense_1", 300, 2), ("dense_2", 200, 1)]:
        w = params[name]["w"]
        variance = scale / fan_in
        assert abs(w.var() - variance) < 3 * variance * (2 / w.size) ** 0.5, name


def test_a_forward_names_its_inputs():
    with pytest.raises(
        ValueError,
        match=told(
            "network: expected a forward that names its extra inputs, such as (f, x, *, mask), got "
            "(f, x, **inputs); name them in forward, or pass inputs=('mask',)"
        )
        + END,
    ):
        fdl.network(lambda f, x, **inputs: f.a(x, **inputs), a=fdl.tanh)


def test_a_child_may_be_called_forward_but_not_name():
    net = fdl.network(lambda f, x: f.forward(x), forward=fdl.tanh)
    np.testing.assert_array_equal(net.apply({}, {}, X)[0], jnp.tanh(X))
    with pytest.raises(
        ValueError, match=r"^network: expected name to be a string, got a Layer; if"
    ):
        fdl.network(lambda f, x: f.name(x), name=fdl.dense(2))


# ------------------------------------------------------------------------- a forward that draws


def vae(forward):
    return fdl.network(
        forward,
        encoder=fdl.chain(fdl.dense(6), fdl.tanh, fdl.dropout(0.25)),
        mean=fdl.dense(2),
        width=fdl.dense(2),
        decoder=fdl.dense(4),
    )


def coded(f, x, noise):
    h = f.encoder(x)
    mean, width = f.mean(h), f.width(h)
    z = mean + jnp.exp(width) * noise(mean)
    return {"x": f.decoder(z), "noise": noise(mean)}


def drawn(key, mean):
    return jnp.zeros_like(mean) if key is None else jax.random.normal(key, mean.shape)


VAES = {
    "key": lambda f, x, *, key: coded(f, x, functools.partial(drawn, key)),
    "key by default": lambda f, x, *, key=None: coded(f, x, functools.partial(drawn, key)),
    "key without a star": lambda f, x, key=None: coded(f, x, functools.partial(drawn, key)),
    "key and train": lambda f, x, *, key, train: coded(
        f, x, lambda mean: drawn(key, mean) if train else jnp.zeros_like(mean)
    ),
}


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("where", ["alone", "called twice"])
def test_a_forward_that_names_key_or_train_is_handed_them(name, where):
    net, x = vae(VAES[name]), jnp.linspace(-1, 1, 12).reshape(3, 4)
    whole = {
        "alone": lambda: net,
        "called twice": lambda: fdl.network(lambda f, x: f.part(x) and f.part(x), part=net),
    }[where]()
    assert whole.inputs == ()
    params, state = whole.init(jax.random.key(0), x)
    plain_params = params if where == "alone" else params["part"]
    quiet = whole.apply(params, state, x)[0]
    np.testing.assert_array_equal(quiet["noise"], np.zeros((3, 2)))
    key = jax.random.key(7)
    training = jax.jit(lambda key: whole.apply(params, state, x, key=key, train=True)[0])
    loud = training(key)
    # The children draw as they would beside a forward that draws nothing.
    own = key if where == "alone" else subkey(key, "part")
    own = jax.random.fold_in(own, 1) if where != "alone" else own
    expected = jax.random.normal(subkey(own, "/forward"), (3, 2))
    np.testing.assert_allclose(loud["noise"], expected, rtol=1e-6)
    given = vae(lambda f, x, *, noise: coded(f, x, lambda mean: noise))
    by_hand = given.apply(plain_params, state, x, key=own, train=True, noise=expected)[0]
    np.testing.assert_allclose(loud["x"], by_hand["x"], rtol=1e-4)
    assert np.abs(training(jax.random.key(8))["noise"] - expected).max() > 0.1


def test_a_forward_that_draws_is_told_of_a_missing_key_in_training():
    net, x = fdl.chain(vae=vae(VAES["key by default"])), jnp.ones((3, 4))
    params, state = net.init(jax.random.key(0), x)
    with pytest.raises(
        fdl.PathError,
        match=r"^vae: expected a random key in training, got none; pass "
        r"key=jax.random.key\(seed\), or train=False$",
    ):
        net.apply(params, state, x, train=True)


def test_an_input_of_forward_needs_no_star():
    net = fdl.network(lambda f, x, mask=None: f.a(x) if mask is None else f.a(x) * mask, a=fdl.tanh)
    x = jnp.ones(2)
    assert (net.inputs, net.required) == (("mask",), ())
    np.testing.assert_array_equal(net.apply({}, {}, x, mask=jnp.zeros(2))[0], jnp.zeros(2))


def test_a_vae_trains_with_noise_and_is_evaluated_without():
    net = vae(VAES["key and train"])
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    squared = lambda y, x: fdl.squared_error(y["x"], x)  # noqa: E731
    score = fdl.supervised(net, squared, noise=lambda y, x: jnp.abs(y["noise"]))
    params, _ = net.init(jax.random.key(0), x)
    run = fdl.start(params, fdl.sgd(0.01), seed=3)
    result = fdl.fit(score, fdl.sgd(0.01), run, (x, x), batch_size=8, steps=4, validation=(x, x))
    assert 0.3 < result.history[-1]["noise"] < 1.5
    assert result.history[-1]["val_noise"] == 0.0


@pytest.mark.parametrize("kind", ["supervised", "plain"])
def test_a_plain_function_that_names_key_or_train_is_handed_them(kind):
    def model(w, x, key=None, train=False):
        return w * x + (jax.random.normal(key, x.shape) if train else 0.0)

    x, key = jnp.ones((3, 1)), jax.random.key(1)
    if kind == "supervised":
        score, batch = fdl.supervised(model, fdl.squared_error), (x, x)
    else:
        score = fdl.plain(
            lambda w, x, *, key, train: fdl.squared_error(model(w, x, key, train), x).mean()
        )
        batch = x
    assert float(score(jnp.float32(1), {}, batch, None)[0]) == 0.0
    noise = jax.random.normal(key, x.shape)
    assert float(score(jnp.float32(1), {}, batch, key)[0]) == pytest.approx(
        float((noise**2).mean()), rel=1e-5
    )


SEEDED_BUGS = {
    "fdl/core/networks.py": (
        "core/test_layer.py look/test_representations.py test_messages.py",
        [
            ('subkey(key, "/forward")', "key"),
            ('"train": train}', '"train": False}'),
            ("check_inputs(child, layer.inputs or (), layer.required, given)", "pass"),
            ("child_key = jax.random.fold_in(child_key, calls[child])", "pass"),
            ("new_state = dict(state)", "new_state = state"),
            ("if each in shared}", "if False}"),
            ("passed_on | given", "given | passed_on"),
            ("children=children, inputs=inputs)", "children=children)"),
            ("if each not in known", "if False"),
            ("for each in inputs if each not in takes)", "for each in ())"),
        ],
    ),
    "fdl/core/inputs.py": (
        "core/test_layer.py test_messages.py layers/test_pooling.py",
        [
            ("if key is not None and not train", "if False"),
            ("if each not in given:", "if False:"),
            ('{"parameters": params, "state": state}', '{"parameters": params}'),
        ],
    ),
    "fdl/core/layer.py": (
        "core/test_layer.py test_laws.py",
        [("zlib.crc32(name.encode())", "0"), ("zlib.crc32(name.encode())", "len(name)")],
    ),
}
