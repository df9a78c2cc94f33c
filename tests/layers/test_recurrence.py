"""Recurrent layers against torch, Flax, and float64 NumPy written from the papers."""

import functools
import itertools
import re

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

import fdl
from tests.compilations import Compilations
from tests.entry_types import LayerCase
from tests.programs import array, compiled


def with_lengths(layer):
    """`layer` with lengths 0, 2 or more, from the signs of context."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, lengths=(context > 0).sum(-1) * 2), inner=layer
    )


def _going_on():
    """An LSTM that begins from a carry made of context."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, carry={"h": context, "c": 1 - 2 * context}),
        inner=fdl.lstm(2, forget_bias=1.0, reverse=True),
    )


def _packed():
    """Segments that begin where context is positive."""
    return fdl.network(
        lambda f, x, *, context: f.inner(x, segments=(context > 0).cumsum(-1)), inner=fdl.rg_lru(3)
    )


LAYERS = {
    "recurrent": LayerCase(
        lambda: with_lengths(fdl.recurrent(fdl.gru_cell(3, reset_after=False), reverse=True)),
        (2, 3, 2),
        inputs={"context": (2, 2)},
    ),
    "simple_recurrent": LayerCase(lambda: fdl.simple_recurrent(3), (2, 3, 2)),
    "lstm": LayerCase(_going_on, (2, 3, 3), inputs={"context": (2, 2)}),
    "gru": LayerCase(lambda: fdl.gru(3), (2, 3, 2)),
    "bidirectional": LayerCase(
        lambda: with_lengths(fdl.bidirectional(fdl.simple_cell(3), returns="last")),
        (2, 3, 2),
        inputs={"context": (2, 2)},
    ),
    "rg_lru": LayerCase(_packed, (2, 5, 3), inputs={"context": (2, 5)}),
}


KEY = jax.random.key(0)
B, T, D, H = 3, 6, 4, 5
LENGTHS = np.int32([4, 6, 1])
X = np.float32(np.random.default_rng(0).standard_normal((B, T, D)))
CELLS = {
    "simple": lambda: fdl.simple_cell(H),
    "relu": lambda: fdl.simple_cell(H, activation=fdl.relu),
    "lstm": lambda: fdl.lstm_cell(H, forget_bias=0.7),
    "gru": lambda: fdl.gru_cell(H),
    "gru_reset_before": lambda: fdl.gru_cell(H, reset_after=False),
}


def with_biases(params, seed=1):
    """The same parameters, every bias drawn."""
    rng = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, leaf: (
            array(leaf + rng.standard_normal(leaf.shape), leaf.dtype)
            if path[-1].key == "b"
            else leaf
        ),
        jax.tree.map(np.asarray, params),
    )


@functools.cache
def applying(layer):
    """y alone, by one program for each shape."""
    return compiled(lambda params, x, **inputs: layer.apply(params, {}, x, **inputs)[0])


def assert_near(found, expected, bound=1e-5):
    """The largest difference, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


def weights_of(y):
    return np.cos(np.arange(y.size)).reshape(y.shape)


def with_gradients(layer, params, x, **inputs):
    """(y, gradient by params, gradient by x), every element of y counted differently."""

    @compiled
    def both(params, x, inputs):
        def total(params, x):
            y = layer.apply(params, {}, x, **inputs)[0]
            return (jnp.asarray(weights_of(y), y.dtype) * y).sum(), y

        gradients, y = jax.grad(total, (0, 1), has_aux=True)(params, x)
        return y, *gradients

    return both(params, x, inputs)


# Against torch.


def into_torch(module, params, layer=0, reverse=""):
    """fdl's parameters into a torch module; b' of the GRU is the last part of its second bias."""
    import torch

    ends = f"_l{layer}{reverse}"
    second = np.zeros(params["input"]["b"].shape)
    if "b" in params["hidden"]:
        second[2 * H :] = params["hidden"]["b"]
    values = {
        "weight_ih": np.asarray(params["input"]["w"]).T,
        "weight_hh": np.asarray(params["hidden"]["w"]).T,
        "bias_ih": params["input"]["b"],
        "bias_hh": second,
    }
    for name, value in values.items():
        getattr(module, name + ends).data = torch.tensor(np.array(value), dtype=torch.float64)


def gradients_of_torch(module, like, layer=0, reverse=""):
    ends = f"_l{layer}{reverse}"
    grad = {name: p.grad.numpy() for name, p in module.named_parameters() if name.endswith(ends)}
    found = {
        "input": {"w": grad["weight_ih" + ends].T, "b": grad["bias_ih" + ends]},
        "hidden": {"w": grad["weight_hh" + ends].T},
    }
    if "b" in like["hidden"]:
        found["hidden"]["b"] = grad["bias_hh" + ends][2 * H :]
    return found


def torch_pass(module, x, lengths=None, carry=None):
    """(y, gradient by x) of a torch module, as `with_gradients`; packed where lengths are given."""
    import torch

    x = torch.tensor(np.array(x), dtype=torch.float64, requires_grad=True)
    if lengths is None:
        y, _ = module(x, carry)
    else:
        pack = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(np.array(lengths)), batch_first=True, enforce_sorted=False
        )
        y, _ = module(pack, carry)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
    (torch.tensor(weights_of(y.detach().numpy())) * y).sum().backward()
    return y.detach(), x.grad


def torch_module(kind, layers=1, bidirectional=False):
    torch = pytest.importorskip(
        "torch", reason="torch is not here: recurrent layers were not compared with it"
    )
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    options = {"nonlinearity": "relu"} if kind == "relu" else {}
    module = make(D, H, num_layers=layers, bidirectional=bidirectional, batch_first=True, **options)
    return module.double()


@pytest.mark.parametrize("kind", ["simple", "relu", "lstm", "gru"])
def test_a_recurrent_layer_equals_torch(kind):
    module = torch_module(kind)
    layer = fdl.recurrent(CELLS[kind]())
    params = with_biases(layer.init(KEY, X)[0])
    into_torch(module, params)
    y, by_x = torch_pass(module, X, LENGTHS)
    theirs = (y, gradients_of_torch(module, params), by_x)
    assert_near(with_gradients(layer, params, X, lengths=LENGTHS), theirs)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, X))
        found = with_gradients(layer, *exact, lengths=LENGTHS)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float64")}
        assert_near(found, theirs, 1e-10)


def test_two_bidirectional_layers_equal_torch():
    module = torch_module("lstm", layers=2, bidirectional=True)
    layer = fdl.chain(*[fdl.bidirectional(fdl.lstm_cell(H)) for _ in range(2)])
    params = with_biases(layer.init(KEY, X, lengths=LENGTHS)[0])
    ways = {"forward": "", "backward": "_reverse"}
    for number in range(2):
        for way, ends in ways.items():
            into_torch(module, params[f"bidirectional_{number}"][way], number, ends)
    y, by_x = torch_pass(module, X, LENGTHS)
    by_params = {
        name: {
            way: gradients_of_torch(module, params[name][way], number, ends)
            for way, ends in ways.items()
        }
        for number, name in enumerate(["bidirectional_0", "bidirectional_1"])
    }
    assert_near(with_gradients(layer, params, X, lengths=LENGTHS), (y, by_params, by_x))


def test_a_layer_begins_from_a_carry_as_torch_does():
    torch = pytest.importorskip("torch", reason="torch is not here: carries were not compared")
    module = torch_module("lstm")
    layer = fdl.lstm(H, returns="carry")
    params = with_biases(layer.init(KEY, X)[0])
    into_torch(module, params)
    rng = np.random.default_rng(3)
    carry = {part: array(rng.standard_normal((B, H))) for part in "hc"}
    begin = tuple(torch.tensor(np.array(carry[part]), dtype=torch.float64)[None] for part in "hc")
    y, (h, c) = module(torch.tensor(np.array(X), dtype=torch.float64), begin)
    found = applying(layer)(params, X, carry=carry)
    h, c = h[0].detach(), c[0].detach()
    assert_near(found, (y.detach(), {"h": h, "c": c}))


# Against Flax and NumPy.


def test_gates_equal_flax():
    """Flax names its gates, and has the reset before the product by default."""
    h, x = X[:, 0] @ np.full((D, H), 0.1, np.float32), X[:, 1]
    theirs = flax.linen.OptimizedLSTMCell(H)
    variables = jax.tree.map(np.asarray, jax.jit(theirs.init)(KEY, (h, h + 1), x)["params"])
    cell = fdl.lstm_cell(H)
    params = {
        "input": {
            "w": np.concatenate([variables[f"i{gate}"]["kernel"] for gate in "ifgo"], -1),
            "b": np.arange(4 * H, dtype=np.float32) / 7,
        },
        "hidden": {"w": np.concatenate([variables[f"h{gate}"]["kernel"] for gate in "ifgo"], -1)},
    }
    for number, gate in enumerate("ifgo"):
        own = params["input"]["b"][number * H : (number + 1) * H]
        variables[f"h{gate}"] = {**variables[f"h{gate}"], "bias": own}
    (c, h_new), _ = jax.jit(theirs.apply)({"params": variables}, (h + 1, h), x)
    step = jax.jit(lambda params, carry, x: cell.step(params, carry, cell.drive(params, x)))
    found = step(params, {"h": h, "c": h + 1}, x)
    assert_near(found, {"h": h_new, "c": c})


def by_hand(params, x, lengths, reverse=False):
    """The GRU of Cho et al., one sequence and one step at a time, in float64."""
    w, b, u = params["input"]["w"], params["input"]["b"], params["hidden"]["w"]
    (w_r, w_z, w_n), (u_r, u_z, u_n) = (np.split(np.asarray(m, np.float64), 3, -1) for m in (w, u))
    b_r, b_z, b_n = np.split(np.asarray(b, np.float64), 3)
    y = np.zeros((*x.shape[:2], H))
    for row, length in enumerate(lengths):
        h = np.zeros(H)
        steps = range(length)[::-1] if reverse else range(length)
        for t in steps:
            now = np.asarray(x[row, t], np.float64)
            r = expit(now @ w_r + h @ u_r + b_r)
            z = expit(now @ w_z + h @ u_z + b_z)
            n = np.tanh(now @ w_n + (r * h) @ u_n + b_n)
            h = z * h + (1 - z) * n
            y[row, t] = h
    return y


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gru_of_the_paper_by_hand(reverse):
    layer = fdl.gru(H, reset_after=False, reverse=reverse)
    params = with_biases(layer.init(KEY, X)[0])
    expected = by_hand(params, X, LENGTHS, reverse)
    assert_near(applying(layer)(params, X, lengths=LENGTHS), expected)
    last = fdl.gru(H, reset_after=False, reverse=reverse, returns="last")
    ends = [0 if reverse else length - 1 for length in LENGTHS]
    assert_near(applying(last)(params, X, lengths=LENGTHS), expected[np.arange(B), ends])


# What must hold for every cell.


@functools.cache
def made(kind, **options):
    layer = fdl.recurrent(CELLS[kind](), **options)
    return layer, with_biases(layer.init(KEY, X)[0])


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before"])
def test_steps_beyond_the_end_are_never_read(kind):
    """Even NaN there changes neither y, nor the carry, nor a gradient."""
    layer, params = made(kind, returns="carry")
    past = np.arange(T)[None, :, None] >= LENGTHS[:, None, None]
    y, carry = applying(layer)(params, X, lengths=LENGTHS)
    assert not y[np.broadcast_to(past, y.shape)].any()
    broken = np.where(past, np.float32(np.nan), X)
    again, carry_again = applying(layer)(params, broken, lengths=LENGTHS)
    np.testing.assert_array_equal(y, again)
    jax.tree.map(np.testing.assert_array_equal, carry, carry_again)
    short, _ = applying(layer)(params, X[:1, :4])
    assert_near(y[:1, :4], short)
    plain, _ = made(kind)
    _, by_params, by_x = with_gradients(plain, params, broken, lengths=LENGTHS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_x)))
    assert not np.asarray(by_x)[np.broadcast_to(past, by_x.shape)].any()


def test_narrow_numbers_are_carried_in_float32():
    layer, params = made("lstm", returns="carry")
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), (params, X))
    y, carry = applying(layer)(*narrow)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in carry.values()} == {np.dtype("float32")}


def test_each_gate_is_drawn_separately():
    """Columns of one gate are orthonormal; the four gates together could not be."""
    params, _ = fdl.lstm(H).init(KEY, X)
    for own in np.split(np.asarray(params["hidden"]["w"]), 4, -1):
        np.testing.assert_allclose(own.T @ own, np.eye(H), atol=1e-5)
    gates = np.split(np.asarray(params["hidden"]["w"]), 4, -1)
    assert all((one != other).any() for one, other in itertools.combinations(gates, 2))
    cell = fdl.lstm_cell(H, forget_bias=1.5)
    bias = cell.init(KEY, X)["input"]["b"]
    np.testing.assert_array_equal(bias, np.repeat([0, 1.5, 0, 0], H))


def test_init_compiles_one_program_for_each_kind_of_weights():
    """At most one for each distribution, one for keys, and a few for biases and gates."""
    model = fdl.chain(fdl.embedding(211, 19), fdl.lstm(23), fdl.dense(3))
    with Compilations() as seen:
        model.init(KEY, np.zeros((2, 5), np.int32))
    assert sum("normal" in name or "orthogonal" in name for name in seen.names) <= 2
    assert len(seen.names) <= 11


# Decoding.


def test_decoding_goes_on_from_the_carry():
    model = fdl.chain(fdl.lstm(H), fdl.gru(H), head=fdl.dense(2))
    params, _ = model.init(KEY, X)
    whole = applying(model)(params, X)
    cache = fdl.start_decoding(model, params, X, T)
    assert sorted(fdl.paths.leaves(cache)) == ["gru_0/h", "lstm_0/c", "lstm_0/h"]
    decode, pieces = compiled(functools.partial(fdl.decode, model)), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
        y, cache = decode(params, cache, X[:, part])
        pieces.append(y)
    assert_near(np.concatenate(pieces, 1), whole)


def test_a_decoder_goes_on_from_an_encoder_that_is_its_cache():
    encoder, params = made("gru", returns="carry")
    decoder, _ = made("gru")
    whole = applying(decoder)(params, X)
    _, carry = applying(encoder)(params, X[:, :4])
    y, _ = jax.jit(functools.partial(fdl.decode, decoder))(params, carry, X[:, 4:])
    assert_near(y, whole[:, 4:])


def test_a_backward_layer_cannot_decode():
    told = (
        r"expected a layer with reverse=False in decoding, got reverse=True, whose outputs depend "
        r"on later tokens; use layers that read forward only$"
    )
    model = fdl.chain(both=fdl.bidirectional(fdl.gru_cell(2)))
    params, _ = model.init(KEY, X)
    with pytest.raises(fdl.PathError, match=f"^both/backward: {told}"):
        fdl.start_decoding(model, params, X, T)
    model = fdl.lstm(2, reverse=True)
    with pytest.raises(fdl.PathError, match=f"^lstm: {told}"):
        fdl.start_decoding(model, model.init(KEY, X)[0], X, T)
    model = fdl.lstm(2)
    params, _ = model.init(KEY, X)
    with pytest.raises(
        fdl.PathError,
        match=r"^lstm: expected extra inputs among \[\], got 'lengths', which no layer here takes; "
        r"leave it out, or add an argument of this name to the layer that needs it$",
    ):
        fdl.decode(model, params, fdl.start_decoding(model, params, X, T), X, lengths=LENGTHS)
    with pytest.raises(
        fdl.PathError,
        match=r"^lstm: expected a carry of h and c, each \[2, 2\], got c \[3, 2\], h \[3, 2\]; "
        r"pass the carry from a layer with returns='carry', or leave it out$",
    ):
        fdl.decode(model, params, fdl.start_decoding(model, params, X, T), X[:2])


# Wrong uses.


def test_options_out_of_range_are_refused():
    for cell in (fdl.simple_cell, fdl.lstm_cell, fdl.gru_cell):
        with pytest.raises(
            ValueError,
            match=rf"^{cell.__name__}: expected features >= 1, an integer, got 0; pass the number "
            r"of features of h$",
        ):
            cell(0)
        for what in ("w_init", "hidden_init"):
            message = (
                f"{cell.__name__}: expected {what} to be an initializer (key, shape, dtype) -> "
                "array, got 3; pass fdl.initializers.he_normal"
            )
            with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                cell(2, **{what: 3})
    with pytest.raises(
        ValueError,
        match=r"^gru: expected returns to be one of 'sequence', 'last', 'carry', got 'all'; "
        r"pass 'sequence' for y of every step, 'last' for y of the last step$",
    ):
        fdl.gru(2, returns="all")
    with pytest.raises(
        ValueError,
        match=r"^bidirectional: expected returns 'sequence' or 'last', got 'carry'; to get the "
        r"carries, call two recurrent layers in a network$",
    ):
        fdl.bidirectional(fdl.gru_cell(2), returns="carry")


# A ready network.


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_classifier_reads_no_padding(both_ways):
    model = fdl.lstm_classifier(11, 4, 3, depth=2, both_ways=both_ways, dropout_rate=0.5)
    ids = np.int32(np.random.default_rng(0).integers(0, 11, (B, T)))
    params, _ = model.init(KEY, ids)
    found = applying(model)(params, ids, lengths=LENGTHS)
    padded = np.where(np.arange(T) < LENGTHS[:, None], ids, 0)
    np.testing.assert_array_equal(found, applying(model)(params, padded, lengths=LENGTHS))
    assert_near(found[:1], applying(model)(params, ids[:1, :4]))
    assert sum(name.startswith("dropout") for name in model.children) == 3
    last = [name for name in model.children if name.startswith(("lstm", "bidirectional"))][-1]
    look = compiled(fdl.capture(model, last))
    seen, head = look(params, {}, ids, lengths=LENGTHS)[last], params["dense_0"]
    assert seen.shape == (B, 8 if both_ways else 4)
    assert_near(found, seen @ np.asarray(head["w"]) + np.asarray(head["b"]))


def test_a_classifier_without_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"^lstm_classifier: expected depth >= 1, an integer, got 0; pass"
    ):
        fdl.lstm_classifier(11, 4, 3, depth=0)


def by_scan(cell, params, x, lengths, carry, reverse):
    """The definition: y [B, T, H] and the last carry, by a loop over `cell.step`."""
    driven, steps, ys = cell.drive(params, x), range(x.shape[1]), {}
    for t in reversed(steps) if reverse else steps:
        new = cell.step(params, carry, driven[:, t])
        alive = (t < lengths)[:, None]
        ys[t] = jnp.where(alive, new["h"], 0)
        carry = {part: jnp.where(alive, new[part], carry[part]) for part in new}
    return jnp.stack([ys[t] for t in steps], 1), carry


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_derivatives_of_any_order_are_those_of_the_loop(kind, reverse):
    """In float64: values, jvp, gradient, and the gradient of a directional derivative."""
    with jax.enable_x64(True):
        cell, rng = CELLS[kind](), np.random.default_rng(2)
        layer = fdl.recurrent(cell, reverse=reverse, returns="carry")
        x = rng.standard_normal((B, T, D))
        draw = lambda leaf: rng.standard_normal(leaf.shape)  # noqa: E731
        params = jax.tree.map(draw, jax.eval_shape(layer.init, jax.random.key(0), x)[0])
        carry = {part: rng.standard_normal((B, H)) for part in cell.carried}
        given = (params, x, carry)
        moved = jax.tree.map(draw, given)

        def ours(params, x, carry):
            return layer.apply(params, {}, x, lengths=LENGTHS, carry=carry)[0]

        def theirs(params, x, carry):
            return by_scan(cell, params, x, LENGTHS, carry, reverse)

        def all_of(f, given, moved):
            def total(*given):
                return sum(
                    (jnp.sin(leaf) * weights_of(leaf)).sum() for leaf in jax.tree.leaves(f(*given))
                )

            slope = lambda *given: jax.jvp(total, given, moved)[1]  # noqa: E731
            every = (0, 1, 2)
            return (
                f(*given),
                jax.jvp(f, given, moved)[1],
                jax.grad(total, every)(*given),
                jax.grad(slope, every)(*given),
            )

        both = (jax.jit(functools.partial(all_of, f))(given, moved) for f in (ours, theirs))
        for found, expected in zip(*both, strict=True):
            assert_near(found, expected, 1e-10)


@pytest.mark.parametrize("kind", ["simple", "lstm", "gru"])
def test_the_gradient_of_the_weights_is_no_sum_in_a_loop(kind):
    """No array that the loops carry, and so return, has the shape of the recurrent weights."""
    layer = fdl.recurrent(CELLS[kind]())
    params, _ = layer.init(jax.random.key(0), X)
    loss = lambda params: layer.apply(params, {}, X)[0].sum()  # noqa: E731
    shape = params["hidden"]["w"].shape
    loops = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            for value in equation.params.values():
                if hasattr(getattr(value, "jaxpr", value), "eqns"):
                    look(getattr(value, "jaxpr", value))
            if equation.primitive.name == "scan":
                loops.append([each.aval.shape for each in equation.outvars])

    look(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert len(loops) == 2 and all(shape not in each for each in loops)


def test_an_empty_sequence_leaves_the_carry_as_it_is():
    layer = fdl.recurrent(CELLS["lstm"](), returns="carry")
    params, _ = layer.init(jax.random.key(0), X)
    carry = {"h": np.full((B, H), 1, np.float32), "c": np.full((B, H), 2, np.float32)}
    y, end = applying(layer)(params, X[:, :0], carry=carry)
    assert y.shape == (B, 0, H)
    jax.tree.map(np.testing.assert_array_equal, end, carry)
    pull = jax.jit(
        jax.grad(lambda carry: layer.apply(params, {}, X[:, :0], carry=carry)[0][1]["c"].sum())
    )
    np.testing.assert_array_equal(pull(carry)["c"], 1)


SEEDED_BUGS = {
    "fdl/layers/cells.py": (
        "layers/test_recurrence.py",
        [
            ('f * carry["c"] + i * g', 'i * carry["c"] + f * g'),
            ('"h": o * squashed, "c": c', '"h": o * c, "c": c'),
            ("(1 - z) * n + z * carry", "z * n + (1 - z) * carry"),
            ("(1 - z) * n + z * h", "z * n + (1 - z) * h"),
            ("slice(features, 2 * features)", "slice(0, features)"),
            ("+ r * again)", "+ again)"),
            ("None, r * h)", "None, h)"),
            ("init(subkey(key, gate), shape", "init(key, shape"),
            ("return slope, slope, ()", "return slope, 0 * slope, ()"),
            ('before["c"] * f * (1 - f)', 'before["c"] * f'),
            ("i * (1 - g * g)", "i * (1 - g)"),
            ("again * r * (1 - r)", "r * (1 - r)"),
            ('(before["h"] - n) * z', 'before["h"] * z'),
            ("jnp.concatenate([jnp.zeros(columns - len(b), b.dtype), b])", "jnp.tile(b, 3)"),
        ],
    ),
    "fdl/ops/unrolling.py": (
        "layers/test_recurrence.py",
        [
            ("new = new if alive is None else _where(alive, new, carry)", "pass"),
            ("new = new if alive is None else _where(alive, new, dcarry)", "pass"),
            ("if reverse else [start", "if False else [start"),
            ("known + by_hidden * hidden(w", "by_hidden * hidden(w"),
            ("by_step, reverse=reverse)", "by_step)"),
            ("hidden(dw, db, before", "hidden(dw, None, before"),
        ],
    ),
    "fdl/layers/recurrence.py": (
        "layers/test_recurrence.py",
        [
            ("jnp.where(alive, new[part], carry[part])", "new[part]"),
            ('jnp.where(alive, new["h"], 0)', 'new["h"]'),
            ("jnp.where(alive, x_by_time, 0)", "x_by_time"),
            ("(driven, alive), reverse=reverse)", "(driven, alive))"),
            ("steps < lengths", "steps <= lengths"),
            ("return self.returned(y, carry), carry", "return self.returned(y, carry), state"),
            ("        if self.reverse:", "        if False:"),
            ("wide(x.dtype), self.cell", "x.dtype, self.cell"),
        ],
    ),
    "fdl/models/recurrent.py": (
        "layers/test_recurrence.py -k classifier",
        [
            ('"last" if number == depth - 1 else "sequence"', '"last"'),
            ("bidirectional if both_ways else recurrent", "recurrent"),
        ],
    ),
}
