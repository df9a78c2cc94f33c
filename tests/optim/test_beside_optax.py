"""What users of optax do with an optimizer, tested for every optimizer of fdl."""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import fdl
from fdl import optim
from tests.registry import DEFAULTS, SCHEDULES, TRANSFORMATIONS
from tests.trees import assert_equal, tree

ONLY_W = {"layer": {"w": True}, "b": False}
CLIMB = optim.chain(optim.normalize(), optim.sgd(0.05))


def same(params):
    return params


def is_matrix(params):
    return jax.tree.map(lambda p: len(p.shape) == 2, params)


# name -> (factory of fdl, params -> the parameters that it needs, factory of optax or None).
EVERY = {
    **{name: (case.ours, case.start, None) for name, case in DEFAULTS.items()},
    **{
        f"{name}, wrapped": (lambda case=case: case.both()[0], same, lambda c=case: c.both()[1])
        for name, case in TRANSFORMATIONS.items()
    },
    "adamw of a tree": (
        functools.partial(optim.adamw, 0.1, mask=ONLY_W),
        same,
        functools.partial(optax.adamw, 0.1, mask=ONLY_W),
    ),
    "adamw of a pattern": (functools.partial(optim.adamw, 0.1, mask="**/w"), same, None),
    "masked by a function": (
        lambda: optim.masked(optim.adam(0.1), is_matrix),
        same,
        lambda: optax.masked(optax.adam(0.1), is_matrix),
    ),
    "masked within masked": (
        lambda: optim.masked(optim.masked(optim.adam(0.1), "layer/*"), "**/w"),
        same,
        None,
    ),
    "partition by a tuple": (
        lambda: optim.partition({("**/w", "c*"): optim.adam(0.1)}, rest=optim.sgd(0.1, 0.9)),
        lambda params: params | {"c": jnp.ones(2)},
        None,
    ),
    "lookahead of masked": (
        lambda: optim.lookahead(optim.adamw(0.1, mask="**/w"), 3, 0.5),
        optax.LookaheadParams.init_synced,
        lambda: optax.lookahead(optax.adamw(0.1, mask=ONLY_W), 3, 0.5),
    ),
    "sgd, dampened": (functools.partial(optim.sgd, 0.1, 0.9, dampening=0.5), same, None),
    "nadamw, scheduled": (functools.partial(optim.nadamw, 0.1, momentum_decay=0.004), same, None),
    "sam, opaque": (
        lambda: optim.sam(optim.adam(0.1), CLIMB, opaque_mode=True),
        same,
        lambda: contrib.sam(optax.adam(0.1), CLIMB, opaque_mode=True),
    ),
    "schedule_free": (
        lambda: optim.schedule_free(optim.sgd(0.1), 0.1),
        same,
        lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
    ),
    "lbfgs, searching": (optim.lbfgs, same, optax.lbfgs),
    "params_ema": (lambda: optim.chain(optim.sgd(0.1), optim.params_ema(0.9)), same, None),
    "master_weights": (lambda: optim.master_weights(optim.adam(0.1)), same, None),
    "keep_state_in": (lambda: optim.keep_state_in(optim.adam(0.1), jnp.bfloat16), same, None),
    "injected": (
        lambda: optim.inject_hyperparams(optim.adamw)(0.1, mask=ONLY_W),
        same,
        lambda: optax.inject_hyperparams(optax.adamw)(0.1, mask=ONLY_W),
    ),
    "soap of vectors": (functools.partial(optim.soap, 0.1, precondition_1d=True), same, None),
    "scale_by_param_block_rms": (optim.scale_by_param_block_rms, same, None),
    "scale_by_trust_ratio": (optim.scale_by_trust_ratio, same, optax.scale_by_trust_ratio),
    "a rule of two ranks": (
        lambda: optim.leafwise("centred", lambda: lambda g: (g - g.mean(0),), optax.EmptyState, {}),
        same,
        None,
    ),
    "scale_by_lion": (functools.partial(optim.scale_by_lion, mode="refined"), same, None),
}
for name in ("adafactor", "adam", "lion", "rprop", "radam", "lars", "lamb", "adabelief", "lbfgs"):
    EVERY[name] = (*EVERY[name][:2], functools.partial(getattr(optax, name), 0.1))
over_every = pytest.mark.parametrize("name", EVERY)


def made(name):
    """(optimizer, parameters, gradients, extra arguments of its update)."""
    make, start, _ = EVERY[name]
    params = start(tree(0))
    gradient = getattr(start(tree(1)), "fast", start(tree(1)))
    loss = lambda w: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(w))  # noqa: E731
    value = np.float32(sum(np.sin(leaf).sum() for leaf in jax.tree.leaves(params)))
    more = {"value": value, "grad": gradient, "value_fn": loss}
    return make(), params, gradient, more


def is_masked(node):
    return isinstance(node, optax.MaskedNode)


def shapes(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


# optax.tree_utils.


@over_every
def test_parameters_in_a_state_are_mapped(name):
    """`tree_map_params` with and without a value for every parameter, such as a sharding."""
    optimizer, params, _, _ = made(name)
    state = jax.eval_shape(optimizer.init, params)
    plain = getattr(params, "fast", params)
    names = jax.tree_util.tree_map_with_path(lambda keys, _: fdl.paths.path_of(keys), plain)
    mapped = optax.tree_utils.tree_map_params(
        *(optimizer, lambda leaf, name: leaf if is_masked(leaf) else name, state, names),
        transform_non_params=lambda leaf: None,
        is_leaf=is_masked,
    )
    seen, there = set(jax.tree.leaves(mapped)), set(jax.tree.leaves(names))
    assert seen <= there
    # All arrays of the state with the shape of a parameter are mapped, or those inside the mask.
    arrays = {leaf.shape for leaf in jax.tree.leaves(state)} & {(3, 2), (4,)}
    paths = fdl.paths.leaves(plain)
    assert {paths[path].shape for path in seen} >= arrays
    marked = optax.tree_utils.tree_map_params(optimizer, lambda leaf: "here", state)
    assert (marked == state) == (not seen)


@over_every
def test_states_are_made_from_shapes_alone(name):
    """init works under eval_shape, and with ShapeDtypeStructs where optax's does."""
    optimizer, params, _, _ = made(name)
    struct = jax.eval_shape(lambda: params)
    expected = shapes(optimizer.init(params))
    assert shapes(jax.eval_shape(optimizer.init, struct)) == expected
    # These two keep copies of the parameters.
    copies = {"schedule_free", "schedule_free_sgd", "schedule_free_adamw", "sam"}
    if name not in copies:
        assert shapes(optimizer.init(struct)) == expected
    theirs = EVERY[name][2]
    if theirs is not None and name in copies:
        with pytest.raises(TypeError, match=r"not 'ShapeDtypeStruct'$"):
            jax.tree.map(jnp.zeros_like, theirs().init(struct))


@over_every
def test_it_works_where_rank_promotion_raises(name):
    optimizer, params, gradient, more = made(name)
    with jax.numpy_rank_promotion("raise"):
        state = optimizer.init(params)
        updates, _ = jax.jit(functools.partial(optimizer.update, value_fn=more.pop("value_fn")))(
            gradient, state, params, **more
        )
        fdl.apply_updates(params, updates)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_works_where_rank_promotion_raises(name):
    with jax.numpy_rank_promotion("raise"):
        assert jax.eval_shape(SCHEDULES[name].ours(), np.int32(3)).shape == ()


INJECTED = {
    name: getattr(optim, name)
    for name in [
        *("sgd", "sign_sgd", "lion", "rprop", "adagrad", "adadelta", "rmsprop", "adam", "adamw"),
        *(
            "nadam",
            "nadamw",
            "adafactor",
            "adabelief",
            "adamax",
            "amsgrad",
            "radam",
            "lamb",
            "lars",
        ),
        *("soap", "schedule_free_sgd", "schedule_free_adamw", "clip", "clip_by_global_norm", "ema"),
        *("params_ema", "trace", "add_decayed_weights", "scale_by_learning_rate", "scale_by_lion"),
        *("adaptive_grad_clip", "clip_by_block_rms", "scale_by_belief", "scale_by_rms"),
    ]
}
# A field of the state of optax's Schedule-Free as well.
TWICE = {("schedule_free_sgd", "b1"), ("schedule_free_adamw", "b1")}
STATIC = ("min_dim_size_to_factor", "precondition_frequency", "max_precond_dim", "decay_rate_fn")


@pytest.mark.parametrize("name", INJECTED)
def test_every_hyperparameter_is_found_and_set_by_its_name(name):
    make = INJECTED[name]
    wanted = {
        each.name: 0.5
        for each in inspect.signature(make).parameters.values()
        if each.default is inspect.Parameter.empty
    }
    static = [each for each in STATIC if each in inspect.signature(make).parameters]
    optimizer = optim.inject_hyperparams(make, static_args=static)(**wanted)
    state = jax.eval_shape(optimizer.init, tree(0))
    assert state.hyperparams
    for key, value in state.hyperparams.items():
        if (name, key) in TWICE:
            continue
        assert optax.tree_utils.tree_get(state, key) is value
        new = optax.tree_utils.tree_set(state, **{key: "new"})
        assert new == state._replace(hyperparams=state.hyperparams | {key: "new"})


def test_a_step_uses_the_rate_that_was_set():
    optimizer = optim.inject_hyperparams(fdl.sgd)(0.1)
    state = optimizer.init(jnp.zeros(1))
    np.testing.assert_array_equal(
        optax.tree_utils.tree_get(state, "learning_rate"), jnp.float32(0.1)
    )
    state = optax.tree_utils.tree_set(state, learning_rate=0.25)
    updates, state = optimizer.update(jnp.ones(1), state)
    np.testing.assert_array_equal(updates, [-0.25])
    np.testing.assert_array_equal(optax.tree_utils.tree_get(state, "learning_rate"), 0.25)


# Callable masks and labels.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A network like those of Equinox: a callable pytree."""

    w: object
    b: object

    def __call__(self, x):
        raise AssertionError("a mask was called")


NET = Module(w=np.ones((2, 2), np.float32), b=np.ones(2, np.float32))
KINDS = {
    "masked": lambda: optim.masked(fdl.sgd(2.0), Module(True, False)),
    "adamw": lambda: optim.chain(
        optim.add_decayed_weights(1.0, Module(True, False)), optim.partition({"**": fdl.sgd(1.0)})
    ),
    "labels": lambda: optim.partition({"a": fdl.sgd(2.0), "z": fdl.sgd(1.0)}, Module("a", "z")),
    "patterns": lambda: optim.partition({"w": fdl.sgd(2.0)}, rest=fdl.sgd(1.0)),
    "labels of a function": lambda: optim.partition(
        {"a": fdl.sgd(2.0), "z": fdl.sgd(1.0)}, lambda params: Module("a", "z")
    ),
    "frozen": lambda: optim.chain(fdl.sgd(2.0), optim.freeze(Module(False, True))),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_module_of_bools_or_labels_is_read(name):
    optimizer = KINDS[name]()
    updates, _ = optimizer.update(NET, optimizer.init(NET), NET)
    other = {"masked": 1.0, "frozen": 0.0}.get(name, -1.0)
    whole = lambda shape, value: np.full(shape, value, np.float32)  # noqa: E731
    assert_equal(updates, Module(whole((2, 2), -2.0), whole(2, other)))


def test_the_dimension_numbers_of_a_module_are_read():
    optimizer = optim.muon(
        0.1, muon_weight_dimension_numbers=Module(contrib.MuonDimensionNumbers(), None)
    )
    first = lambda each: each.update(NET, each.init(NET), NET)[0]  # noqa: E731
    assert_equal(*jax.jit(lambda: (first(optimizer), first(optim.muon(0.1))))())


def test_a_partial_is_a_function():
    optimizer = optim.masked(fdl.sgd(2.0), jax.tree_util.Partial(lambda size, p: p > size, 3.0))
    updates, _ = optimizer.update(jnp.float32(4.0), optimizer.init(jnp.float32(4.0)))
    assert float(updates) == -8.0


# Arguments.

# The name in fdl of a class of optax, and why fdl lacks an argument of optax.
NAMES = {"accumulate": optax.MultiSteps}
REASONS = {
    ("chain", "args"): "transforms, in any number",
    ("global_norm", "updates"): "tree, which comes first",
    ("scale_by_zoom_linesearch", "verbose"): "prints from a compiled program; optax's stands in",
}


def test_every_argument_of_optax_is_there():
    shared = {
        name: (value, NAMES.get(name) or getattr(optax, name, None) or getattr(contrib, name, None))
        for name, value in vars(optim).items()
        if inspect.isfunction(value)
    }
    missing, compared = set(), 0
    for name, (ours, theirs) in shared.items():
        if inspect.isfunction(theirs) or name in NAMES:
            compared += 1
            mine = inspect.signature(ours).parameters
            missing |= {
                (name, each) for each in inspect.signature(theirs).parameters if each not in mine
            }
    assert compared > 60
    assert missing == set(REASONS)


@pytest.mark.parametrize("mode", ["hard", "smooth", "refined"])
def test_lion_has_the_signs_of_optax(mode):
    make = {"b1": 0.8, "b2": 0.7, "mode": mode, "smooth_beta": 2.5}
    ours, theirs = optim.scale_by_lion(**make), optax.scale_by_lion(**make)
    state = ours.init(tree(0))
    update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in range(1, 4):
        gradient = jax.tree.map(lambda g: 2 * np.asarray(g), tree(seed))
        updates, mine = update(gradient, state)
        expected, state = their_update(gradient, state)
        assert_equal((updates, mine), (expected, state), rtol=1e-6)


def test_extra_arguments_are_masked_on_request():
    def seen(given):
        taken = optax.GradientTransformationExtraArgs(
            lambda params: (), lambda u, s, p=None, *, tags, n: (given.append((tags, n)), (u, s))[1]
        )
        return taken

    params, tags = {"b": 1.0, "w": 2.0}, {"b": "low", "w": "high"}
    both = {
        "masked": lambda library, inner, on: library.masked(
            inner, {"b": False, "w": True}, mask_compatible_extra_args=on
        ),
        "partition": lambda library, inner, on: library.partition(
            {"x": optax.identity(), "y": inner}, {"b": "x", "w": "y"}, mask_compatible_extra_args=on
        ),
    }
    for make in both.values():
        for on in (False, True):
            given = []
            for library in (optim, optax):
                optimizer = make(library, seen(given), on)
                optimizer.update(params, optimizer.init(params), tags=tags, n=3)
            assert given[0] == given[1]
            assert given[0] == ({"b": optax.MaskedNode(), "w": "high"} if on else tags, 3)


GRADIENTS = np.random.default_rng(0).standard_normal((7, 3))


def run(optimizer):
    with jax.enable_x64(True):
        w, update = np.array([1.0, -2.0, 0.5]), jax.jit(optimizer.update)
        state = jax.jit(optimizer.init)(w)
        for g in GRADIENTS:
            updates, state = update(g, state, w)
            w = w + np.asarray(updates)
        return w


def run_torch(make):
    torch = pytest.importorskip("torch")
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = make(torch.optim, w)
    for g in GRADIENTS:
        w.grad = torch.tensor(g)
        optimizer.step()
    return w.detach().numpy()


def test_dampening_is_that_of_torch():
    expected = run_torch(lambda lib, w: lib.SGD([w], lr=0.3, momentum=0.7, dampening=0.4))
    np.testing.assert_allclose(run(optim.sgd(0.3, 0.7, dampening=0.4)), expected, rtol=1e-13)
    injected = optim.inject_hyperparams(optim.sgd)(0.3, 0.7, dampening=0.4)
    np.testing.assert_allclose(run(injected), expected, rtol=1e-13)
    assert np.abs(run(optim.sgd(0.3, 0.7)) - expected).max() > 0.1


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(None, False), (0.0, False), (0.9, True)], ids=str
)
def test_dampening_needs_a_plain_momentum(momentum, nesterov):
    message = (
        "sgd: expected a momentum other than 0 and nesterov=False with dampening, got momentum "
        f"{momentum} and nesterov {nesterov}; leave dampening out, or pass a momentum and "
        "nesterov=False"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        optim.sgd(0.1, momentum, nesterov, dampening=0.5)
    optim.sgd(0.1, momentum, nesterov, dampening=0)  # torch's default
    with pytest.raises(
        ValueError,
        match=r"^sgd: expected dampening in \[0, 1\), got 1.5; 0 means no dampening$",
    ):
        optim.sgd(0.1, 0.9, dampening=1.5)


def test_an_unknown_mode_of_lion_raises():
    message = (
        "scale_by_lion: expected mode to be one of hard, smooth, refined, got 'soft'; the paper "
        "uses 'hard'"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        optim.scale_by_lion(mode="soft")


def test_nadamw_with_a_scheduled_momentum_is_that_of_torch():
    # torch keeps the product of the momenta in float32.
    betas = {"betas": (0.8, 0.95), "eps": 0.03, "momentum_decay": 0.05}
    expected = run_torch(
        lambda lib, w: lib.NAdam(
            [w], lr=0.2, weight_decay=0.1, decoupled_weight_decay=True, **betas
        )
    )
    ours = {"b1": 0.8, "b2": 0.95, "eps": 0.03, "momentum_decay": 0.05}
    np.testing.assert_allclose(
        run(optim.nadamw(0.2, weight_decay=0.1, **ours)), expected, rtol=1e-8
    )


# Numbers at the ends of their ranges.

EXTREMES = {
    "sums": ("trace", {"decay": 1.0}),
    "negative momentum": ("trace", {"decay": -0.5, "nesterov": True}),
    "negative mean": ("ema", {"decay": -0.3}),
    "negative b1": ("adam", {"learning_rate": 0.1, "b1": -0.4}),
    "negative b1 of nadam": ("nadam", {"learning_rate": 0.1, "b1": -0.4}),
    "negative b2 of lion": ("scale_by_lion", {"b2": -0.4, "mode": "smooth"}),
    "all of x": ("schedule_free_sgd", {"learning_rate": 0.1, "b1": 1.0}),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_numbers_at_the_ends_of_their_ranges_are_accepted(name, standard_promotion):
    which, hyper = EXTREMES[name]
    theirs = getattr(optax, which, None) or getattr(contrib, which)
    np.testing.assert_allclose(run(getattr(optim, which)(**hyper)), run(theirs(**hyper)), rtol=1e-6)


# Tuples of patterns.


def test_a_partition_by_tuples_works_in_compiled_steps():
    params = {name: np.ones(size, np.float32) for name, size in (("a", 2), ("b", 1), ("c", 3))}
    optimizer = optim.partition({("a", "b"): fdl.sgd(1.0, 0.5)}, rest=fdl.sgd(0.25))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return (fdl.apply_updates(params, updates), state), None

    start = params, jax.jit(optimizer.init)(params)
    assert sorted(start[1].inner_states) == ["a, b", "rest"]
    (end, _), _ = jax.lax.scan(step, start, length=2)
    whole = lambda size, value: np.full(size, value, np.float32)  # noqa: E731
    assert_equal(end, {"a": whole(2, -1.5), "b": whole(1, -1.5), "c": whole(3, 0.5)})


def test_labels_of_several_types_work_too():
    optimizer = optim.partition(
        {0: fdl.sgd(1.0), 1: fdl.sgd(2.0)}, {"a": 0, "b": 1, "c": 5}, rest=fdl.sgd(3.0)
    )
    params = {name: np.ones(1, np.float32) for name in "abc"}
    updates, _ = jax.jit(optimizer.update)(params, jax.jit(optimizer.init)(params))
    assert_equal(updates, {"a": -params["a"], "b": -2 * params["b"], "c": -3 * params["c"]})
    message = "^partition: expected keys with different texts, got [1, '1']; rename one of them$"
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        optim.partition({1: fdl.sgd(1.0), "1": fdl.sgd(2.0)}, {"a": 1})


# Messages.


def many(value, name="leaf"):
    return {f"{name}_{number}": value for number in range(5_000)}


LONG = {
    "mask": (
        lambda tree: optim.masked(fdl.sgd(1.0), many(True, "other")).init(tree),
        "masked: expected a mask with the structure of params or of its upper levels, got no "
        "entry for 'leaf_0'; make it with jax.tree.map over params",
    ),
    "mask of too much": (
        lambda tree: optim.masked(fdl.sgd(1.0), many(True) | {"z": True}).init(tree),
        "masked: expected a mask with the structure of params or of its upper levels, got an "
        "entry for 'z', which is not in params; make it with jax.tree.map over params",
    ),
    "mask of lists": (
        lambda tree: optim.masked(fdl.sgd(1.0), [True] * 5_000).init(tuple(tree.values())),
        "masked: expected a mask with the structure of params or of its upper levels, got "
        "containers of other types; make it with jax.tree.map over params",
    ),
    "no mask": (
        lambda tree: optim.masked(fdl.sgd(1.0), many(0.5)),
        "masked: expected a mask of path patterns, a pytree of bool or a function of params, got "
        "{'leaf_0': ",
    ),
    "labels": (
        lambda tree: optim.partition({"a": fdl.sgd(1.0)}, many("a", "other")).init(tree),
        "partition: expected labels with the structure of params or of its upper levels, got no "
        "entry for 'leaf_0'; make it with jax.tree.map over params",
    ),
    "unknown label": (
        lambda tree: optim.partition({"a": fdl.sgd(1.0)}, many("b" * 9_999)).init(tree),
        "partition: expected the label at 'leaf_0' to be a key of transforms, got 'bbb",
    ),
    "no pattern": (
        lambda tree: optim.partition({"leaf_1": fdl.sgd(1.0)}).init({"a" * 9_999: 0.0, **tree}),
        "partition: expected a pattern for every leaf, got none for 'aaaa",
    ),
    "pattern of nothing": (
        lambda tree: optim.masked(fdl.sgd(1.0), "z").init({"a" * 9_999: 0.0, "b": 0.0}),
        "pattern 'z': expected at least one match among 2 paths, got none; the most similar paths "
        "are 'b', ",
    ),
    "updates": (
        lambda tree: fdl.adam(0.1).update(many(jnp.ones(())), fdl.adam(0.1).init(jnp.ones(()))),
        "scale_by_adam: expected the same tree in updates and state.mu, got '' only in state.mu; "
        "make ",
    ),
    "applied": (
        lambda tree: fdl.apply_updates(tree, many(1.0, "other")),
        "apply_updates: expected the same tree in params and updates, got 'leaf_0' only in params",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_message_about_a_large_tree_is_short(name):
    wrong, message = LONG[name]
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        wrong(many(0.0))
    assert len(str(caught.value)) < 2000
    cause = caught.value.__cause__
    assert cause is None or len(str(cause)) < 2000


SEEDED_BUGS = {
    "fdl/optim/protocol.py": (
        "optim/test_beside_optax.py -k rank",
        [("with_free_ranks(update))", "update)")],
    ),
}
