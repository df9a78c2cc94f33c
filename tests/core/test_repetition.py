"""repeat: two forms with the same results, paths without stacked leaves, and messages."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.programs import array
from tests.toys import masked, running_mean

KEY = jax.random.key(0)
X = array(np.random.default_rng(0).standard_normal((3, 4)))
MASK = jnp.array([1.0, -1.0, 2.0, 0.0])
BOTH = pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])


def told(text):
    """A pattern for the whole message `text`."""
    return "^" + re.escape(text) + r"(?:\n|$)"


def block():
    """Weights, state, a random draw and an extra input."""
    inner = fdl.chain(fdl.dense(4), running_mean(), fdl.tanh, fdl.dropout(0.4), name="mix")
    return fdl.chain(fdl.residual(inner=inner), gate=masked())


def by_hand(params, state, x, key):
    """Three blocks one after another, with separate params, state and keys."""
    new = {}
    for i in ("0", "1", "2"):
        x, new[i] = block().apply(
            params[i], state[i], x, key=fdl.subkey(key, i), train=True, mask=MASK
        )
    return x, new


def loss(apply, params, x, state, key):
    y, state = apply(params, state, x, key)
    return (jnp.cos(jnp.arange(12.0)).reshape(3, 4) * y).sum(), (y, state)


@BOTH
def test_repeat_is_a_loop_with_its_gradients_state_and_keys(scan):
    net = fdl.repeat(block(), 3, scan=scan)
    params, state = net.init(KEY, X, mask=MASK)
    key = jax.random.key(4)

    def ours(params, state, x, key):
        return net.apply(params, state, x, key=key, train=True, mask=MASK)

    got, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(loss, apply), (0, 1), has_aux=True))(
            params, X, state, key
        )
        for apply in (ours, by_hand)
    )
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.bits
def test_both_forms_have_the_same_paths_masks_and_bits():
    inner = fdl.chain(fdl.dense(4), norm=running_mean())
    unrolled, scanned = (fdl.repeat(inner, 11, scan=scan) for scan in (False, True))
    one, other = (net.init(KEY, X) for net in (unrolled, scanned))
    paths = list(fdl.paths.leaves(one))
    assert paths == list(fdl.paths.leaves(other))
    numbers = [str(i) for i in range(11)]
    assert list(fdl.paths.leaves(one[0])) == [
        f"{i}/dense_0/{leaf}" for i in numbers for leaf in ("b", "w")
    ]
    assert fdl.select(one[0], "1*/**/w") == fdl.select(other[0], "1*/**/w")
    # Both forms, a chain of the same blocks, and many keys in one program.
    chain = fdl.chain(**dict.fromkeys(numbers, inner))
    keys = jax.random.split(KEY, 2)
    several = jax.jit(jax.vmap(lambda key: scanned.init(key, X)))(keys)
    for a, b in [
        (one, other),
        (one, chain.init(KEY, X)),
        (jax.tree.map(lambda leaf: leaf[1], several), unrolled.init(keys[1], X)),
    ]:
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    weights = [leaf for path, leaf in fdl.paths.leaves(one[0]).items() if path.endswith("w")]
    assert len({float(w[0, 0]) for w in weights}) == 11


@BOTH
def test_every_block_draws_its_own_random_numbers(scan):
    net = fdl.repeat(fdl.dropout(0.5), 2, scan=scan)

    @jax.jit
    def passed(key):
        return net.apply({}, {}, jnp.ones((40, 5)), key=key, train=True)[0]

    assert 0.15 < (passed(KEY) != 0).mean() < 0.35  # two draws, not one
    assert (passed(KEY) != passed(jax.random.key(1))).any()


def traced(n, **options):
    net = fdl.repeat(fdl.residual(fdl.dense(4), fdl.tanh), n, **options)
    params, _ = jax.eval_shape(net.init, KEY, X)
    return jax.make_jaxpr(jax.grad(lambda p, x: net.apply(p, {}, x)[0].sum()))(params, X)


def scans(jaxpr):
    """All scans, also inside a `jit`, which newer versions of JAX inline only after tracing."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation)
        elif equation.primitive.name == "jit":
            found += scans(equation.params["jaxpr"])
    return found


def test_the_body_of_a_scan_is_independent_of_depth():
    def bodies(n):
        return [
            (len(scan.params["jaxpr"].eqns), len(str(scan.params["jaxpr"]).splitlines()))
            for scan in scans(traced(n, scan=True))
        ]

    assert len(bodies(3)) == 2
    assert bodies(3) == bodies(9)


def test_few_blocks_are_unrolled_and_many_scanned():
    assert not scans(traced(2)) and not scans(traced(16))
    assert len(scans(traced(17))) == 2
    assert scans(traced(2, scan=True)) and not scans(traced(17, scan=False))


@BOTH
def test_a_policy_decides_what_is_recomputed(scan):
    keep = jax.checkpoint_policies
    count = {
        policy: str(traced(2, scan=scan, policy=policy)).count("dot_general")
        for policy in (None, keep.everything_saveable, keep.dots_saveable, keep.nothing_saveable)
    }
    assert count[None] == count[keep.dots_saveable] == count[keep.everything_saveable]
    assert count[keep.nothing_saveable] > count[None]
    tanhs = {
        policy: str(traced(2, scan=scan, policy=policy)).count("tanh")
        for policy in (None, keep.everything_saveable, keep.dots_saveable)
    }
    assert tanhs[keep.dots_saveable] > tanhs[keep.everything_saveable]
    assert tanhs[None] == tanhs[keep.dots_saveable if scan else keep.everything_saveable]


@BOTH
def test_capture_and_summary_see_every_block(scan):
    net = fdl.chain(fdl.dense(4), block=fdl.repeat(block(), 3, scan=scan), head=fdl.dense(2))
    params, state = net.init(KEY, X, mask=MASK)
    seen = fdl.capture(net, "block", "block/*/residual_0", "head")(params, state, X, mask=MASK)
    assert list(seen) == ["block", *(f"block/{i}/residual_0" for i in range(3)), "head"]
    gated = (
        block()
        .children["gate"]
        .apply(params["block"]["2"]["gate"], {}, seen["block/2/residual_0"], mask=MASK)
    )
    np.testing.assert_allclose(seen["block"], gated[0], rtol=1e-5, atol=1e-6)
    compiled = jax.jit(fdl.capture(net, "block/1/**"))(params, state, X, mask=MASK)
    np.testing.assert_allclose(
        compiled["block/1/residual_0"], seen["block/1/residual_0"], rtol=1e-5, atol=1e-6
    )
    assert len(compiled) == 8
    table = fdl.summary(net, X, mask=MASK)
    assert len([line for line in table.splitlines() if line.startswith("block/")]) == 3 * 8
    assert fdl.depth(params) == 2 + 2 * 3


def test_capture_of_what_is_outside_leaves_a_scan_alone():
    net = fdl.chain(block=fdl.repeat(fdl.residual(fdl.dense(4)), 3, scan=True), head=fdl.tanh)
    params, state = net.init(KEY, X)
    outside, inside = (
        jax.make_jaxpr(fdl.capture(net, pattern))(params, state, X)
        for pattern in ("block", "block/2")
    )
    assert len(scans(outside)) == 1 and not scans(inside)


@BOTH
def test_repeat_takes_a_remat_and_a_function(scan):
    net = fdl.repeat(fdl.remat(fdl.repeat(jnp.sin, 2, scan=scan)), 3, scan=scan)
    y, _ = net.apply(*net.init(KEY, X), X)
    expected = np.asarray(X, np.float64)
    for _ in range(6):
        expected = np.sin(expected)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert net.apply({}, {}, X.astype(jnp.bfloat16))[0].dtype == jnp.bfloat16


# Messages.

TRANSFORMS = {
    "eager": lambda f, *args: f(*args),
    "jit": lambda f, *args: jax.jit(f)(*args),
    "grad": lambda f, params, x: jax.grad(lambda p: f(p, x).sum())(params),
    "vmap": lambda f, params, x: jax.vmap(lambda x: f(params, x))(jnp.stack([x, x])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@BOTH
def test_an_error_inside_has_the_path_of_the_block(scan, transform):
    inner = fdl.chain(fdl.tanh, attn=fdl.chain(q=fdl.dense(4)))
    net = fdl.chain(block=fdl.repeat(inner, 3, scan=scan))
    params, state = net.init(KEY, X)
    number = "*" if scan else "0"

    def forward(params, x):
        return net.apply(params, state, x)[0]

    with pytest.raises(
        fdl.PathError,
        match=rf"^block/{re.escape(number)}/attn/q: expected x \[\.\.\., 4\], got "
        r"\[3, 5\]; give x that width, or make new params with init(\n|$)",
    ):
        transform(forward, params, jnp.ones((3, 5)))


@BOTH
def test_a_block_that_changes_the_shape_is_refused(scan):
    number = "*" if scan else "0"
    message = (
        f"{number}: expected a block that keeps the shape and dtype of x, float32 [3, 4], got "
        "float32 [3, 5]; give its last layer as many features as x has, and the same dtype"
    )
    net = fdl.repeat(fdl.dense(5), 2, scan=scan)
    with pytest.raises(fdl.PathError, match=told(message)):
        net.init(KEY, X)
    with pytest.raises(fdl.PathError, match=told(f"block/{message}")):
        fdl.chain(block=net).init(KEY, X)
    grown = fdl.repeat(lambda x: jnp.concatenate([x, x], -1), 2, scan=scan)
    message = message.replace("float32 [3, 5]", "float32 [3, 8]")
    with pytest.raises(fdl.PathError, match=told(message)):
        grown.apply({}, {}, X)


def test_blocks_with_params_of_different_shapes_are_refused():
    net = fdl.chain(block=fdl.repeat(fdl.dense(4), 3, scan=True))
    params, _ = net.init(KEY, X)
    rest = "pass the params and state that init made for this network"
    short = {"block": {each: params["block"][each] for each in ("0", "1")}}
    message = f"block/2/b: expected float32 [4], the same as in block 0, got none; {rest}"
    with pytest.raises(fdl.PathError, match=told(message)):
        net.apply(short, {}, X)
    mixed = {**params["block"], "1": {**params["block"]["1"], "w": jnp.ones((4, 3))}}
    message = (
        f"block/1/w: expected float32 [4, 4], the same as in block 0, got float32 [4, 3]; {rest}"
    )
    with pytest.raises(fdl.PathError, match=told(message)):
        net.apply({"block": mixed}, {}, X)
    with pytest.raises(
        fdl.PathError,
        match=told(f"block/*: expected 'w' in the layer's params or state, got []; {rest}"),
    ):
        net.apply({}, {}, X)
    many = {"block": {**params["block"], "3": params["block"]["0"]}}
    message = (
        "block: expected parameters of 0, 1, 2 only, got an entry for '3'; pass the parameters of "
        "this network, not of another one"
    )
    with pytest.raises(fdl.PathError, match=told(message)):
        net.apply(many, {}, X)


@BOTH
def test_an_input_no_block_takes_is_refused(scan):
    net = fdl.repeat(masked(), 2, scan=scan, name="stack")
    params, state = net.init(KEY, X, mask=MASK)
    message = (
        "stack: expected extra inputs among [mask], got 'context', which no layer here takes; "
        "leave it out, or add an argument of this name to the layer that needs it"
    )
    for call in (
        lambda: net.init(KEY, X, context=X),
        lambda: net.apply(params, state, X, mask=MASK, context=X),
    ):
        with pytest.raises(fdl.PathError, match=told(message)):
            call()


@pytest.mark.parametrize("n", [0, -2])
def test_no_blocks_are_refused(n):
    message = f"stack: expected n >= 1, an integer, got {n}; pass the number of blocks"
    with pytest.raises(ValueError, match=told(message)):
        fdl.repeat(fdl.dense(3), n, name="stack")


SEEDED_BUGS = {
    "fdl/core/repetition.py": (
        "core/test_repetition.py",
        [
            ("_keys(key, names, name)", "_keys(key, names[:1] * n, name)"),
            ("FEW = 16", "FEW = 12"),
            ("for child in children:\n", "for child in reversed(children):\n"),
            ('with at("*"):', 'with at("0"):'),
            ("policy=policy, prevent_cse", "policy=None, prevent_cse"),
            ("if policy is None else remat(inner, policy=policy)", ""),
            ("leaf[number], stacked", "leaf[0], stacked"),
            ("return y, new", "return y, state"),
        ],
    ),
}
