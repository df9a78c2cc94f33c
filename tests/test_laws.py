"""Laws of every layer, loss, activation and initializer."""

import collections
import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads

import fdl
from fdl import initializers, layers, losses
from fdl.debug import layer_laws as laws
from fdl.debug.layer_laws import smooth
from fdl.port.batch_sizes import special_case
from fdl.train import weighted_mean
from tests.options import NOT_TRACED, OPTIONS
from tests.programs import all_in_one_program, array, in_one_program
from tests.registry import ACTIVATIONS, GATES, INITIALIZERS, LAYERS, LOSSES, OPTIMIZERS
from tests.trees import NEAR, assert_equal, kinds, stacked

FLOATS = ["bfloat16", "float32"]
WIDER = ["float32", "int32"]

# Initializers of weights of one kind: tests/initializers/test_initializers.py has them.
OF_ONE_SHAPE = {"delta_orthogonal", "dirac", "identity", "sparse", "need_key"}

# Losses of a region, whose `where` has more elements than the loss.
OF_REGIONS = {"dice"}

over_layers = pytest.mark.parametrize("name", LAYERS)
over_losses = pytest.mark.parametrize("name", LOSSES)
over_activations = pytest.mark.parametrize("name", ACTIVATIONS)
over_initializers = pytest.mark.parametrize("name", INITIALIZERS)
in_training_or_not = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@functools.cache
def layer_of(name):
    return LAYERS[name].make()


@functools.cache
def made(name, dtype=None):
    """(layer, params, state, x, inputs, key or None) of an entry."""
    case = LAYERS[name]
    layer = layer_of(name)
    x, inputs = case.data(1, dtype)
    begin = functools.partial(layer.init, jax.random.key(3), x, **inputs)
    params, state = begin() if dtype is None else begun_as(name, jax.eval_shape(begin))
    return layer, params, state, x, inputs, jax.random.key(5) if case.random else None


def begun_as(name, kinds):
    """The parameters and state of float32 in other dtypes, each of which init would compile."""
    with jax.enable_x64(False):
        begun = made(name)[1:3]
    return jax.tree.map(lambda leaf, kind: array(leaf, kind.dtype), begun, kinds)


@functools.cache
def eager(name, train=True):
    """An entry's pass as `(params, state, x, inputs, key) -> (y, state)`."""
    # Not from `made`, because this may run inside a trace, whose arrays must not be cached.
    layer = layer_of(name)

    def forward(params, state, x, inputs, key):
        return layer.apply(params, state, x, key=key, train=train, **inputs)

    return forward


TRACES = collections.Counter()


@functools.cache
def trial(name):
    """An entry with the programs that its laws share."""
    layer, params, state, _, _, key = made(name)
    three = [LAYERS[name].data(seed) for seed in range(3)]
    half = functools.partial(arguments, name, dtype="bfloat16") if LAYERS[name].floating else None
    return laws.Trial(layer, params, state, three, key, half)


def compiled(name, train=True):
    return trial(name).programs[train]


def arguments(name, train=True, dtype=None):
    _, params, state, x, inputs, key = made(name, dtype)
    return params, state, x, inputs, key if train else None


def members(name):
    """(keys, what init makes of each)."""
    return trial(name).members


def answer(name, train):
    return trial(name).answer(train)


# The registry itself.


def is_known(value, name, module, registry):
    """True if the function is in the registry, under this name or, like swish, another one."""
    return name in registry or any(getattr(module, own, None) is value for own in registry)


def test_every_public_name_is_registered():
    kept = {"Initializer", "variance_scaling", "fans", "PathError", "Params", "Any", *OF_ONE_SHAPE}
    kept |= {
        "dot_product_attention",
        "rotary",
        "rotary_by_tables",
    }  # functions that a layer is made of
    kept |= {"low_rank", "merge_low_rank"}  # functions of parameters
    kept |= {"simple_cell", "lstm_cell", "gru_cell", "linear_recurrence", "load_balance"}
    for module, registry in [(initializers, INITIALIZERS), (losses, LOSSES), (layers, LAYERS)]:
        for name, value in vars(module).items():
            if callable(value) and name[0].islower() and not isinstance(value, type):
                home = getattr(value, "__module__", "")
                if home.startswith("fdl") and name not in {*kept, "check_targets"}:
                    assert is_known(value, name, module, registry), f"{name} is in no registry"
    from fdl import activations

    for name, value in vars(activations).items():
        if getattr(value, "__module__", "").startswith("fdl.activations."):
            known = {*ACTIVATIONS, *GATES}
            assert is_known(value, name, activations, known), f"{name} is in no registry"


def test_every_activation_and_initializer_of_jax_is_here_by_its_name():
    no_activations = {"dot_product_attention", "one_hot", "logsumexp", "logmeanexp", "log1mexp"}
    no_activations |= {"scaled_matmul", "scaled_dot_general", "get_scaled_dot_general_config"}
    for theirs, ours in (jax.nn, fdl.activations), (jax.nn.initializers, initializers):
        names = {name for name in vars(theirs) if name[0].islower()} - no_activations
        names = {name for name in names if callable(getattr(theirs, name))}
        assert len(names) > 15
        assert names <= set(vars(ours))


# Layers.


@pytest.mark.parametrize(
    ("name", "train"),
    [(name, train) for name, case in LAYERS.items() for train in (True, False)[: 1 + case.random]],
)
def test_a_layer_compiled_is_the_layer(name, train):
    laws.compiled_is_eager(trial(name), train)


@over_layers
def test_ranks_are_free_where_the_settings_of_the_user_forbid_promotion(name):
    layer, params, state, x, inputs, key = made(name)

    def loss(params):
        y, _ = layer.apply(params, state, x, key=key, train=True, **inputs)
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(y))

    with jax.numpy_rank_promotion("raise"):
        gradient = jax.eval_shape(jax.grad(loss), params)
        begun = jax.eval_shape(lambda key: layer.init(key, x, **inputs), jax.random.key(0))
        jax.eval_shape(lambda x: layer.apply(params, state, x, **inputs), x)
        if len(x.shape) > 2:
            decoded_once(layer, params, state, x, inputs)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, (params, state))


def decoded_once(layer, params, state, x, inputs):
    def first(x, inputs):
        cache = fdl.start_decoding(layer, params, x, 9, state=state, **inputs)
        return fdl.decode(layer, params, cache, x, **inputs)

    try:
        jax.eval_shape(first, np.asarray(x)[:, :1], inputs)
    except fdl.PathError:
        return


def test_ranks_are_free_in_functions_of_arrays_too():
    x, q, steps = jnp.ones((2, 4, 6)), jnp.ones((2, 5, 4, 8)), jnp.ones((2, 5, 3))
    at = jnp.arange(5)
    functions = [case.f for case in ACTIVATIONS.values()]
    calls = [lambda f=f: jax.vjp(f, x)[1](f(x)) for f in functions]
    calls += [
        lambda init=case.init: init(jax.random.key(0), (4, 6)) for case in INITIALIZERS.values()
    ]
    calls += [
        lambda: initializers.delta_orthogonal()(jax.random.key(0), (3, 4, 4)),
        lambda: fdl.rotary(q, at),
        lambda: fdl.rotary(q, at / 2, interleaved=True),
        lambda: layers.linear_recurrence(steps, steps, start=steps[:, 0]),
        lambda: layers.load_balance(steps),
    ]
    for rules in (
        {},
        {"causal": True, "window": 2, "mask": at < at[:, None], "bias": at * at[:, None] / 9},
    ):
        calls += [
            lambda chunk=chunk, rules=rules: jax.vjp(
                lambda q: fdl.dot_product_attention(
                    q, q[..., :2, :], q[..., :2, :], slopes=(1, 2, 3, 4), chunk=chunk, **rules
                ),
                q,
            )[1](q)
            for chunk in (None, 2)
        ]
    cells = [layers.simple_cell(3), layers.lstm_cell(3), layers.gru_cell(3)]
    for cell in (*cells, layers.gru_cell(3, reset_after=False)):
        params = cell.init(jax.random.key(0), steps)
        carry = dict.fromkeys(cell.carried, steps[:, 0])
        calls += [
            lambda cell=cell: cell.init(jax.random.key(0), steps),
            lambda cell=cell, own=(params, carry): cell.step(*own, cell.drive(own[0], steps[:, 0])),
        ]
    with jax.numpy_rank_promotion("raise"):
        shapes = [jax.eval_shape(call) for call in calls]
    assert shapes == [jax.eval_shape(call) for call in calls]


# Options.


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_traced_is_the_constant(name):
    """Compiled, under vmap and differentiated, for two equal values."""
    made, options = OPTIONS[name]
    key = jax.random.key(5)

    def total(options):
        found = made(key, **options)
        return sum(smooth(jnp.asarray(leaf)) for leaf in jax.tree.leaves(found)), found

    @jax.jit
    def both(twice):
        return jax.vmap(jax.grad(total, has_aux=True))(twice), made(key, **options)

    twice = {option: array(np.full(2, value)) for option, value in options.items()}
    (slopes, found), plain = both(twice)
    assert_equal(row(jax.tree.map(np.asarray, found), 0), plain, **NEAR)
    assert all(np.isfinite(slope).all() for slope in slopes.values())


def test_an_option_that_is_traced_widens_nothing():
    x = jnp.ones((4, 3), jnp.bfloat16)

    def passes(number):
        made = [fdl.dropout(number), fdl.alpha_dropout(number), fdl.gaussian_dropout(number)]
        made += [fdl.batch_norm(momentum=number, epsilon=number), fdl.layer_norm(epsilon=number)]
        made += [fdl.rescale(number, number, dtype=jnp.bfloat16), fdl.rrelu(number, number)]
        for layer in made:
            params, state = layer.init(jax.random.key(0), x)
            yield layer.apply(params, state, x, key=jax.random.key(1), train=True)[0]

    number = jax.ShapeDtypeStruct((), jnp.float32)
    found = jax.eval_shape(lambda number: list(passes(number)), number)
    assert {each.dtype for each in found} == {x.dtype}


@pytest.mark.parametrize("room", [layers, initializers, fdl.activations], ids=str)
def test_every_number_among_the_options_is_traced_somewhere(room):
    for name, value in vars(room).items():
        if not inspect.isfunction(value) or not value.__module__.startswith("fdl."):
            continue
        for option, parameter in inspect.signature(value).parameters.items():
            number = parameter.annotation in (float, float | None, float | jax.Array)
            if number and (name, option) not in NOT_TRACED:
                assert option in OPTIONS.get(name, ({}, {}))[1], f"{name}, {option}"


@over_layers
def test_a_layer_over_a_batch_of_inputs_is_a_loop(name):
    laws.vmap_is_a_loop(trial(name))


@over_layers
def test_weights_made_for_an_ensemble_have_the_bits_of_each_made_alone(name):
    layer, _, _, x, inputs, _ = made(name)
    keys, alone = members(name)
    init = functools.partial(layer.init, x=x, **inputs)
    together = jax.jit(jax.vmap(init, axis_size=3))(keys)
    assert_equal(together, stacked(alone))


@over_layers
def test_an_ensemble_is_a_loop_over_its_members(name):
    laws.ensemble_is_a_loop(trial(name))


@pytest.mark.parametrize("name", [name for name, case in LAYERS.items() if case.floating])
def test_a_layer_keeps_the_dtype_and_the_tree(name):
    args = arguments(name, dtype="bfloat16")
    params, state, x, *_ = args
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} <= {x.dtype}
    # State is accumulated over a whole run and may be wider.
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {x.dtype, *map(jnp.dtype, WIDER)}
    (_, (y, new_state)), gradients = trial(name).gradients["half"]
    assert y.dtype == x.dtype == jnp.bfloat16
    assert kinds((gradients, new_state)) == kinds((params, state))
    near, _ = compiled(name)(*jax.tree.map(_as_float32, args))
    np.testing.assert_allclose(np.asarray(y, np.float32), near, rtol=0.06, atol=0.06)


def _as_float32(leaf):
    return array(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@over_layers
def test_a_layer_is_compiled_once(name):
    params, state, _, _, key = arguments(name)
    compiled(name)(*arguments(name))
    traces, outputs = trial(name).traces[True], []
    for seed in range(3):
        x, inputs = LAYERS[name].data(seed)
        y, state = compiled(name)(params, state, x, inputs, key)
        params = jax.tree.map(lambda p: array(0.9 * np.asarray(p), p.dtype), params)
        key = None if key is None else jax.random.fold_in(key, seed)
        outputs.append(np.asarray(y))
    assert trial(name).traces[True] == traces
    assert not np.array_equal(outputs[0], outputs[1])


@over_layers
def test_a_layer_in_scan_is_a_loop_that_carries_the_state(name):
    laws.scan_is_a_loop(trial(name))


@over_layers
def test_a_layer_recomputed_in_the_backward_pass_has_the_same_gradient(name):
    laws.recomputed_is_the_same(trial(name))


@over_layers
@in_training_or_not
def test_the_shape_of_a_pass_is_known_without_it(name, train):
    laws.shapes_are_known(trial(name), train)


@over_layers
def test_a_layer_does_not_change_its_arguments(name):
    laws.arguments_are_kept(trial(name))


@over_layers
def test_the_gradient_of_a_layer_is_right(name):
    """check_gradient and JAX's own check agree, in float64 wherever the layer computes in it."""
    case = LAYERS[name]
    with jax.enable_x64(True):
        _, params, state, x, inputs, key = made(name, np.float64 if case.floating else None)
        exact = x.dtype != np.uint8  # images of integers are computed in float32
        params = jax.tree.map(np.float64 if exact else np.float32, params)

        @in_one_program
        def loss(moved):
            y, _ = eager(name)(moved["params"], state, moved.get("x", x), inputs, key)
            # Plus 1, because near 0 the rounding of the terms would exceed their sum.
            return 1 + smooth(y)

        moved = {"params": params, "x": x} if case.floating else {"params": params}
        if not jax.tree.leaves(moved):
            assert not params and not case.floating
            return
        moved = jax.tree.map(np.asarray, moved)  # so that check_grads computes in NumPy
        # The directions of the default key would meet a sharp bend in one layer of attention.
        errors = fdl.check_gradient(loss, moved, key=jax.random.key(1), directions=2)
        assert list(errors) == list(fdl.paths.leaves(moved))
        bound = 1e-6 if exact else 2e-2
        # A short step, because a network of relus has a kink nearby.
        step = 1e-6 if exact else None
        check_grads(loss, (moved,), 1, ["rev"], atol=bound, rtol=bound, eps=step)


@over_layers
def test_init_reads_only_shapes(name):
    """A callback counts calls of a layer that the forward pass calls twice: none in init."""
    case = LAYERS[name]
    passes = []

    def counted(x):
        jax.debug.callback(lambda: passes.append(1))
        return x

    def with_context(f, x, *, context):
        return f.counted(f.inner(f.counted(x), context=context))

    def without(f, x):
        return f.counted(f.inner(f.counted(x)))

    inner = case.make()
    net = fdl.network(with_context if case.inputs else without, counted=counted, inner=inner)
    x, inputs = case.data(1)
    x_shape, inputs_shape = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (x, inputs)
    )
    other, other_inputs = case.data(9)
    key = jax.random.key(3)
    from_arrays = net.init(key, x, **inputs)
    from_shapes = net.init(key, x_shape, **inputs_shape)
    from_others = net.init(key, other, **other_inputs)
    jax.effects_barrier()
    assert passes == []
    assert_equal(from_arrays, from_shapes)
    assert_equal(from_arrays, from_others)
    assert_equal(made(name)[1:3], inner.init(key, x_shape, **inputs_shape))
    net.apply(*from_arrays, x, key=jax.random.key(5), train=True, **inputs)
    jax.effects_barrier()
    assert len(passes) == 2


@over_layers
def test_the_key_of_init_decides_the_bits(name):
    layer, params, state, x, inputs, _ = made(name)
    assert_equal(layer.init(jax.random.key(3), x, **inputs), (params, state))
    assert_equal(layer.init(jax.random.PRNGKey(3), x, **inputs), (params, state))
    other, _ = members(name)[1][0]
    for path, leaf in fdl.paths.leaves(other).items():
        if path.endswith("w"):
            assert np.all(np.asarray(leaf) != np.asarray(fdl.paths.leaves(params)[path])), path


@over_layers
def test_no_two_weights_of_a_layer_share_their_bits(name):
    """A forgotten fold of the key would give two leaves of one size the same values."""
    firsts = [
        round(float(leaf.flat[0] / abs(leaf.flat[1])), 4)
        for path, leaf in fdl.paths.leaves(jax.tree.map(np.asarray, made(name)[1])).items()
        if path.endswith("w")
    ]
    assert len(set(firsts)) == len(firsts)


@over_layers
def test_the_key_of_a_pass_decides_what_is_drawn(name):
    params, state, x, inputs, key = arguments(name)
    first = answer(name, True)
    assert_equal(eager(name)(params, state, x, inputs, key), first)
    if LAYERS[name].random:
        other, _ = eager(name)(params, state, x, inputs, jax.random.key(6))
        assert not np.array_equal(other, first[0])
        assert not np.array_equal(answer(name, False)[0], first[0])
        with pytest.raises(fdl.PathError, match=r"expected a random key in training, got none; "):
            eager(name)(params, state, x, inputs, None)


@over_layers
def test_evaluation_moves_no_state(name):
    laws.evaluation_keeps_the_state(trial(name))


@over_layers
def test_a_layer_takes_a_batch_of_nothing(name):
    laws.no_examples_are_a_batch(trial(name))


@over_layers
def test_a_layer_is_exported_once_for_every_batch(name):
    _, params, state, x, inputs, _ = made(name)

    def of_size(size):
        def shape(a):
            return (size, *a.shape[1:]) if len(a) == len(x) else a.shape

        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(shape(a), a.dtype), (x, inputs))

    forward = jax.jit(lambda x, inputs: eager(name, False)(params, state, x, inputs, None)[0])
    program = export.export(forward)(*of_size(*export.symbolic_shape("b")))
    found = [(str(a.shape[0]), *a.shape[1:], a.dtype) for a in program.out_avals]
    y = jax.tree.leaves(answer(name, False)[0])
    assert found == [("b", *each.shape[1:], each.dtype) for each in y]
    assert special_case(forward, [of_size(size) for size in (1, 2, 5)]) == ""


def joined(first, last):
    """Two outputs joined along the axis in which they differ; the last if they do not differ."""
    axes = [axis for axis in range(last.ndim) if first.shape[axis] != last.shape[axis]]
    return np.concatenate([first, last], axes[0]) if axes else last


# In decoding, experts have room for all tokens.
CROWDED = {"mixture_of_experts"}


@pytest.mark.parametrize(
    "name", [n for n, c in LAYERS.items() if len(c.x) > 2 and n not in CROWDED]
)
def test_a_layer_decodes_to_the_full_pass_or_refuses(name):
    """x comes in pieces along its first axis after the batch."""
    layer, params, state, x, inputs, _ = made(name)
    whole = answer(name, False)[0]

    @jax.jit  # tests/core/test_decoding.py decodes outside a program, too
    def decoded(params, state, x, inputs):
        cache = fdl.start_decoding(layer, params, x[:, :1], 9, state=state, **inputs)
        first, cache = fdl.decode(layer, params, cache, x[:, :1], **inputs)
        last, cache = fdl.decode(layer, params, cache, x[:, 1:], **inputs)
        return first, last

    try:
        first, last = decoded(params, state, x, inputs)
    except fdl.PathError:
        return
    assert_equal(jax.tree.map(joined, first, last), whole, rtol=1e-5, atol=1e-5)


@over_layers
def test_a_new_sibling_changes_no_bits_of_a_named_layer(name):
    case = LAYERS[name]
    x, inputs = case.data(1)
    elsewhere = array(POINTS)  # of one shape, for which the siblings are compiled once

    def alone(f, x):
        return f.named(x, **inputs)

    def beside(f, x):
        f.before(elsewhere)
        y = f.named(x, **inputs)
        f.after(elsewhere)
        return y

    siblings = {"before": fdl.chain(fdl.dense(7), fdl.dropout(0.5)), "after": fdl.dense(2)}
    small = fdl.network(alone, named=case.make())
    large = fdl.network(beside, **siblings, named=case.make())
    key = jax.random.key(11)
    few, many = small.init(key, x), large.init(key, x)
    assert "after" in many[0]
    assert_equal(few[0].get("named", {}), many[0].get("named", {}))
    y, _ = small.apply(*few, x, key=key, train=True)
    z, _ = large.apply(*many, x, key=key, train=True)
    assert_equal(y, z)


# Losses.


@functools.cache
def with_slopes(name):
    """`args -> (values, the values of the pass for the gradients, gradients of their sum)`."""
    case = LOSSES[name]

    def total(*args):
        values = case.loss(*args)
        return values.sum(), values

    def both(*args):
        gradients, values = jax.grad(total, case.moved, has_aux=True)(*args)
        return case.loss(*args), values, gradients

    return both


@functools.cache
def with_slopes_compiled(name):
    return jax.jit(with_slopes(name))


@over_losses
def test_a_loss_compiled_is_the_loss(name):
    case = LOSSES[name]
    args = case.data()
    assert_equal(jax.jit(case.loss)(*args), case.loss(*args), **NEAR)


@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if case.alone])
def test_a_loss_is_of_each_example_by_itself(name):
    case = LOSSES[name]
    args = case.data()
    axes = case.axes(args)
    whole = case.loss(*args)

    def one(i):
        return case.loss(*(x if axis is None else x[i] for x, axis in zip(args, axes, strict=True)))

    @jax.jit
    def both(*args):
        return jax.lax.map(one, np.arange(6)), jax.vmap(with_slopes(name), axes)(*args)

    loop, (together, _, gradients) = both(*args)
    assert_equal(loop, whole, **NEAR)
    assert_equal(together, whole, **NEAR)
    assert case.moved[0] == 0
    assert_equal(with_slopes_compiled(name)(*args)[2][0], gradients[0], **NEAR)


@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if not case.alone])
def test_a_loss_of_a_batch_is_the_same_for_many_batches_at_once(name):
    case = LOSSES[name]
    batches = [case.data(seed) for seed in range(3)]
    together = jax.jit(jax.vmap(case.loss))(*stacked(batches))
    assert_equal(together, np.stack([case.loss(*args) for args in batches]), **NEAR)


@over_losses
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_loss_is_in_float32_or_better_and_its_gradients_in_their_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        case = LOSSES[name]
        args = case.data(dtype=dtype)
        value, _, gradients = with_slopes_compiled(name)(*args)
        assert value.dtype == {"bfloat16": jnp.float32, "float64": jnp.float64}[dtype]
        assert all(gradient.dtype == jnp.dtype(dtype) for gradient in gradients)
        eps = float(jnp.finfo(value.dtype).eps)
        np.testing.assert_allclose(value, case.exact(args), rtol=40 * eps, atol=40 * eps)


@over_losses
def test_a_loss_is_compiled_once_and_runs_in_scan(name):
    case = LOSSES[name]
    data = stacked([case.data(seed) for seed in range(4)])
    traces = []

    def body(total, batch):
        traces.append("scan")
        return total + case.loss(*batch).sum(), None

    @jax.jit
    def both(data, batch):
        traces.append("jit")
        return jax.lax.scan(body, jnp.zeros(()), data)[0], case.loss(*batch)

    total, first = both(data, row(data, 0))
    _, second = both(data, row(data, 1))
    assert sorted(traces) == ["jit", "scan"]
    loop = sum(float(np.asarray(case.loss(*row(data, i))).sum()) for i in range(4))
    np.testing.assert_allclose(total, loop, rtol=1e-5)
    assert not np.array_equal(first, second)


@over_losses
def test_the_gradient_of_a_loss_is_right(name):
    with jax.enable_x64(True):
        case = LOSSES[name]
        args = case.data(dtype=np.float64)
        weight = np.random.default_rng(2).random(jax.eval_shape(case.loss, *args).shape)

        def total(moved):
            given = list(args)
            for place, x in zip(case.moved, moved, strict=True):
                given[place] = x
            return (weight * case.loss(*given)).sum()

        moved = tuple(np.asarray(args[place]) for place in case.moved)
        towards = jax.tree.map(np.sin, moved)
        once, along, again = all_in_one_program(
            total,
            lambda moved: jax.jvp(total, (moved,), (towards,))[1],
            jax.checkpoint(total),
        )
        for f in (once, along):
            assert list(fdl.check_gradient(f, moved)) == [str(n) for n in range(len(moved))]
        assert_equal(jax.grad(again)(moved), jax.grad(once)(moved), rtol=1e-12)


@over_losses
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loss_is_finite_at_ten_thousand(name, sign):
    case = LOSSES[name]
    _, *rest = args = case.data()
    shape = args[0].shape
    base = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], shape)
    for predictions in map(array, (sign * 1e4 * base, np.full(shape, sign * 1e4))):
        *both, gradients = with_slopes_compiled(name)(predictions, *rest)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        exact = case.exact((predictions, *rest))
        for value in map(np.asarray, both):
            assert np.isfinite(value).all()
            np.testing.assert_allclose(value, exact, rtol=case.near, atol=case.near)
            assert (value >= case.lowest).all()


@over_losses
def test_rows_of_weight_0_are_ignored(name):
    """A batch of masked rows has the mean 0 and the gradient 0."""
    case = LOSSES[name]
    args = case.data()

    def mean(*args):
        return weighted_mean(case.loss(*args), jnp.zeros(6)).value()

    value, gradients = jax.jit(jax.value_and_grad(mean, case.moved))(*args)
    assert float(value) == 0
    assert not any(np.asarray(gradient).any() for gradient in gradients)


@pytest.mark.parametrize("size", [0.1, 30.0, 1e4])
@pytest.mark.parametrize(
    "name", ["softmax_cross_entropy", "sigmoid_cross_entropy", "soft_cross_entropy"]
)
def test_log_probabilities_agree_with_float64(name, size):
    """To 1e-6 absolute or relative error, whichever is larger."""
    case = LOSSES[name]
    args = case.data(3, rows=50, classes=17, size=size)
    exact = case.exact(args)
    error = np.abs(np.asarray(jax.jit(case.loss)(*args), np.float64) - exact)
    assert (error / np.maximum(1, exact)).max() <= 1e-6


@over_losses
def test_a_loss_refuses_targets_of_another_shape(name):
    case = LOSSES[name]
    *first, last = case.data()
    if not case.refusal():
        return
    told = rf"^{name_of(case.loss)}: {case.refusal()}"
    for call in (case.loss, jax.jit(case.loss), jax.jit(jax.grad(lambda *a: case.loss(*a).sum()))):
        with pytest.raises(fdl.PathError, match=told):
            call(*first, last[:5])
    with pytest.raises(fdl.PathError, match=rf"^{name_of(case.loss)}: expected "):
        case.loss(*first, last[:, None])


@over_losses
def test_ranks_are_free_in_a_loss_called_alone(name):
    case = LOSSES[name]
    with jax.numpy_rank_promotion("raise"):
        values = jax.eval_shape(case.loss, *case.data())
        jax.eval_shape(jax.grad(lambda *args: case.loss(*args).sum(), case.moved), *case.data())
    assert values.shape == case.loss(*case.data()).shape


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OF_REGIONS])
def test_where_gives_0_for_the_other_elements_and_hides_their_nan(name):
    case = LOSSES[name]
    args = case.data()
    shape = jax.eval_shape(case.loss, *args).shape
    mask = np.random.default_rng(5).random(shape) < 0.5
    mask[(0,) * len(shape)] = True
    spoilt = list(args)
    for place, x in enumerate(args):
        if place not in case.shared and jnp.issubdtype(x.dtype, jnp.floating):
            here = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
            spoilt[place] = array(np.where(here, x, np.nan), x.dtype)

    def total(loss, *args):
        values = loss(*args)
        return (jnp.cos(jnp.arange(values.size)).reshape(shape) * values).sum(), values

    def shown(*args):
        return jnp.where(mask, case.loss(*args), 0)

    def kept_rows(*args):
        """Where examples look at each other: the loss of the kept ones as a batch of their own."""
        rows = np.flatnonzero(mask)
        return jnp.zeros(shape).at[rows].set(case.loss(*(x[rows] for x in args)))

    def both(args, spoilt):
        masked = functools.partial(case.loss, where=mask)
        plain = kept_rows if not case.alone else shown
        slopes = [jax.grad(functools.partial(total, f), case.moved, True) for f in (masked, plain)]
        return slopes[0](*spoilt), slopes[1](*args)

    found, expected = jax.jit(both)(args, spoilt)
    assert not np.asarray(found[1])[~mask].any() and not mask.all()
    assert_equal(found, expected, **NEAR)


# Options that set a shape or select elements.
OF_SHAPES = {"axis", "chunk", "w", "where", "ignore_index", "lengths"}
OPTIONS_OF_LOSSES = {
    **{"gamma": 1.5, "alpha": 0.3, "margin": 1.5, "delta": 1.7, "level": 0.85, "smooth": 0.5},
    **{"epsilon": 0.1, "smoothing": 0.2, "temperature": 0.3, "scale": 5.0, "bias": -3.0},
    **{"positive_weight": 2.5, "class_weight": [0.5, 2.0, 1.0, 0.25, 3.0], "blank": 0},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_option_of_a_loss_that_sets_no_shape_may_be_traced(dtype):
    """An option of another dtype does not change the dtype of the loss."""
    seen = set()
    for name, case in LOSSES.items():
        loss = getattr(case.loss, "func", case.loss)
        loss = fdl.ctc if name == "ctc" else loss
        options = inspect.signature(loss).parameters.values()
        options = {each.name for each in options if each.kind is each.KEYWORD_ONLY} - OF_SHAPES
        assert options <= OPTIONS_OF_LOSSES.keys(), name
        if (loss, dtype) in seen:
            continue
        seen.add((loss, dtype))
        with jax.enable_x64(dtype == "float64"):
            args = case.data(dtype=dtype)[: 2 if name == "ctc" else None]
            other = {"float32": np.float64, "float64": np.float32}[dtype]
            values = {
                option: np.asarray(
                    OPTIONS_OF_LOSSES[option], np.int32 if option == "blank" else other
                )
                for option in options
            }
            calls = {o: lambda v, o=o, f=loss, a=args: f(*a, **{o: v}) for o in options}
            every = lambda values, calls=calls: {o: calls[o](v) for o, v in values.items()}  # noqa: E731
            for option, found in jax.eval_shape(every, values).items():
                assert found.dtype == dtype, (name, option)
            if dtype == "float64" and options:
                plain = {o: OPTIONS_OF_LOSSES[o] for o in options}
                both = jax.jit(lambda values, f=every, plain=plain: (f(values), f(plain)))
                assert_equal(*both(values), rtol=1e-5, atol=1e-5)
    assert len(seen) > 23


def name_of(loss):
    while isinstance(loss, functools.partial):
        loss = loss.func
    return "ctc" if loss.__name__ == "<lambda>" else loss.__name__


# Activations.

POINTS = np.concatenate([np.linspace(-9, 9, 47), [-80.0, -1e-3, 0.3, 90.0]]).reshape(3, 17)


@functools.cache
def counted_activation(name):
    def f(x):
        TRACES[name] += 1
        return ACTIVATIONS[name].f(x)

    return f


@over_activations
def test_an_activation_compiled_is_the_activation(name):
    f, x = ACTIVATIONS[name].f, array(POINTS)
    compiled = jax.jit(counted_activation(name))
    assert_equal(compiled(x), f(x), **NEAR)
    assert not np.array_equal(compiled(x), compiled(array(-POINTS)))
    assert TRACES[name] == 1


@over_activations
def test_an_activation_over_a_batch_is_a_loop(name):
    f = ACTIVATIONS[name].f
    xs = array(np.random.default_rng(0).standard_normal((4, *POINTS.shape)))
    one = jax.jit(counted_activation(name))
    scan = lambda xs: jax.lax.scan(lambda none, x: (none, f(x)), None, xs)[1]  # noqa: E731
    together, ys = jax.jit(lambda xs: (jax.vmap(f)(xs), scan(xs)))(xs)
    assert_equal(together, np.stack([one(x) for x in np.asarray(xs)]), **NEAR)
    assert_equal(ys, together, **NEAR)


@over_activations
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_an_activation_keeps_the_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        case = ACTIVATIONS[name]
        x = array(POINTS, dtype)

        @jax.jit
        def both(x):
            y, back = jax.vjp(case.f, x)
            return y, back(jnp.ones_like(y))[0]

        y, gradient = both(x)
        assert (y.dtype, y.shape) == (gradient.dtype, gradient.shape) == (jnp.dtype(dtype), x.shape)
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(y, np.float64),
            case.oracle(np.asarray(x, np.float64)),
            rtol=8 * eps,
            atol=8 * eps,
        )


@over_activations
def test_the_gradient_of_an_activation_is_right(name):
    with jax.enable_x64(True):
        f = ACTIVATIONS[name].f
        x = np.random.default_rng(0).standard_normal((3, 5)) * 2
        along = np.random.default_rng(1).standard_normal((3, 5))

        def total(x):
            return (np.sin(np.arange(15.0)).reshape(3, 5) * f(x)).sum()

        def slope(x):
            return (along * jax.grad(total)(x)).sum()

        once, twice = all_in_one_program(total, slope)
        assert list(fdl.check_gradient(once, x)) == [""]
        for of_order in (once, twice):
            check_grads(of_order, (x,), 1, ["rev"], atol=1e-5, rtol=1e-5)


@over_activations
def test_nan_stays_nan_and_large_stays_finite(name):
    f, over = ACTIVATIONS[name].f, ACTIVATIONS[name].over
    both = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))
    wrong = np.isnan(both(array([[0.5, np.nan, -2.0], [0.5, np.nan, -2.0]]))[0])
    assert wrong[:, 1].all() and not (wrong[:, [0, 2]].any() and over is None)
    for found in both(array([[1e4, -1e4, 0.0], [-1e4, 1e4, 3.0]])):
        assert np.isfinite(found).all()


@over_activations
def test_an_activation_is_a_layer_in_a_chain(name):
    f = ACTIVATIONS[name].f
    net = fdl.chain(f, last=f)
    x = array(POINTS)
    assert net.init(jax.random.key(0), x) == ({}, {})
    assert_equal(net.apply({}, {}, x), (f(f(x)), {}))


# Initializers.


@over_initializers
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_initializer_gives_the_shape_and_dtype_asked_for(name, dtype):
    case = INITIALIZERS[name]
    w = case.init(jax.random.key(0), (16, 24), dtype)
    assert (w.shape, w.dtype) == ((16, 24), jnp.dtype(dtype))
    values = np.asarray(w, np.float64)
    assert np.isfinite(values).all()
    spread = case.variance(16, 24) ** 0.5
    assert abs(values.std() - spread) <= 0.15 * spread
    assert case.init(jax.random.key(0), (16, 24)).dtype == jnp.float32


@over_initializers
def test_the_key_of_an_initializer_decides_the_bits(name):
    case = INITIALIZERS[name]
    one, other = (jax.random.key(seed) for seed in (0, 1))
    first = case.init(one, (5, 7))
    assert_equal(case.init(one, (5, 7)), first)
    assert (np.asarray(case.init(other, (5, 7))) != np.asarray(first)).all() == case.random
    if case.random:
        with pytest.raises(
            fdl.PathError,
            match=r"^\w+: expected a random key, got None; pass jax\.random\.key\(seed\)$",
        ):
            case.init(None, (5, 7))
    else:
        assert_equal(case.init(None, (5, 7)), first)


@over_initializers
def test_an_initializer_gives_the_same_bits_under_every_transformation(name):
    """Eager, compiled, under vmap and in a scan, so that ensembles equal their members."""
    init = INITIALIZERS[name].init
    keys = jax.random.split(jax.random.key(0), 3)
    alone = np.stack([init(key, (5, 7)) for key in keys])
    assert_equal(np.stack([jax.jit(init, static_argnums=1)(k, (5, 7)) for k in keys]), alone)
    assert_equal(jax.vmap(lambda key: init(key, (5, 7)))(keys), alone)
    assert_equal(jax.lax.map(lambda key: init(key, (5, 7)), keys), alone)


@over_initializers
@pytest.mark.parametrize("shape", [(), (4,)])
def test_an_initializer_with_fans_refuses_a_shape_without(name, shape):
    case = INITIALIZERS[name]
    if not case.has_fans:
        assert case.init(jax.random.key(0), shape).shape == shape
        return
    told = rf"^\w+: expected weights \[\.\.\., in, out\], got shape {re.escape(str(shape))}, which "
    with pytest.raises(
        fdl.PathError, match=told + r"has no fan_in and fan_out; use zeros, normal or uniform$"
    ):
        case.init(jax.random.key(0), shape)


def test_registry_names_are_distinct():
    names = [*LAYERS, *LOSSES, *ACTIVATIONS, *INITIALIZERS, *OPTIMIZERS]
    assert not [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1]
