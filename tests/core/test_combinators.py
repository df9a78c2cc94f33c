"""residual, parallel, remat, frozen and the fence: numbers, paths and messages."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.ops.fence import fence
from tests.entry_types import LayerCase
from tests.programs import array
from tests.toys import masked, running_mean


def gated(name="gated"):
    """`masked` by the extra input `context`."""
    return fdl.network(lambda f, x, *, context: f.gate(x, mask=context), gate=masked(), name=name)


def _side_by_side():
    """Every way to merge, each inside another."""
    pair = fdl.parallel(fdl.dense(2), other=fdl.chain(gated(), fdl.dense(2)), merge="tuple")
    product = fdl.network(
        lambda f, x, *, context: f.pair(x, context=context)[0] * f.pair(x, context=context)[1],
        pair=pair,
    )
    return fdl.parallel(product, fdl.parallel(fdl.dense(4), shortcut=fdl.tanh), merge="concat")


LAYERS = {
    "residual": LayerCase(
        lambda: fdl.residual(gated(), fdl.dense(4), running_mean(), last=fdl.dropout(0.3)),
        (3, 4),
        inputs={"context": (3, 4)},
        random=True,
    ),
    "parallel": LayerCase(_side_by_side, (3, 4), inputs={"context": (3, 4)}),
    "remat": LayerCase(
        lambda: fdl.remat(
            fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.4), running_mean()),
            policy=jax.checkpoint_policies.dots_saveable,
        ),
        (3, 2),
        random=True,
    ),
    "repeat_unrolled": LayerCase(
        lambda: fdl.repeat(fdl.residual(fdl.dense(3), fdl.dropout(0.3)), 2, scan=False),
        (2, 3),
        random=True,
    ),
    "repeat_scanned": LayerCase(
        lambda: fdl.repeat(fdl.chain(gated(), fdl.dense(3), running_mean()), 3, scan=True),
        (2, 3),
        inputs={"context": (2, 3)},
    ),
}


KEY = jax.random.key(0)
X = array(np.arange(12.0).reshape(3, 4) / 7 - 0.8)


def told(text):
    """A pattern for the whole message `text`."""
    return "^" + re.escape(text) + r"(?:\n|$)"


# Numbers.


def test_a_residual_adds_its_input():
    net = fdl.residual(fdl.tanh, fdl.dense(4), gate=fdl.function(lambda h: 3 * h))
    params, state = net.init(KEY, X)
    y, _ = net.apply(params, state, X)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["dense_0"])
    x = np.asarray(X, np.float64)
    np.testing.assert_allclose(
        y, x + 3 * (np.tanh(x) @ weights["w"] + weights["b"]), rtol=1e-5, atol=1e-6
    )


def test_parallel_merges_by_sum_concat_and_tuple():
    children = {"a": fdl.dense(4), "b": fdl.tanh, "c": fdl.function(lambda x: 2 * x)}
    params, _ = fdl.parallel(**children).init(KEY, X)
    w, b = (np.asarray(params["a"][leaf], np.float64) for leaf in "wb")
    x = np.asarray(X, np.float64)
    parts = [x @ w + b, np.tanh(x), 2 * x]
    added, _ = fdl.parallel(**children).apply(params, {}, X)
    np.testing.assert_allclose(added, sum(parts), rtol=1e-5, atol=1e-6)
    joined, _ = fdl.parallel(**children, merge="concat").apply(params, {}, X)
    np.testing.assert_allclose(joined, np.concatenate(parts, -1), rtol=1e-5, atol=1e-6)
    apart, _ = fdl.parallel(**children, merge="tuple").apply(params, {}, X)
    assert isinstance(apart, tuple)
    for part, expected in zip(apart, parts, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
def test_a_residual_network_and_its_gradients_are_torchs(dtype, bound):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: residual and parallel are not checked against it"
    )
    with jax.enable_x64(dtype == "float64"):
        net = fdl.chain(
            fdl.residual(fdl.dense(7), fdl.tanh, fdl.dense(4)),
            fdl.parallel(fdl.dense(3), fdl.chain(fdl.silu, fdl.dense(2)), merge="concat"),
            fdl.parallel(fdl.dense(5), shortcut=fdl.sigmoid),
        )
        x = array(np.random.default_rng(0).standard_normal((6, 4)), dtype)
        params, _ = net.init(KEY, x)
        weight = np.cos(np.arange(30, dtype=x.dtype)).reshape(6, 5)

        @jax.jit
        def both(params, x):
            y, back = jax.vjp(lambda p, x: net.apply(p, {}, x)[0], params, x)
            return y, back(weight)

        y, (gradient, by_x) = both(params, x)
        ours = {"x": by_x, **fdl.paths.leaves(gradient)}
        theirs = {
            path: torch.tensor(np.asarray(leaf), requires_grad=True)
            for path, leaf in {"x": x, **fdl.paths.leaves(params)}.items()
        }

        def dense(path, h):
            return h @ theirs[f"{path}/w"] + theirs[f"{path}/b"]

        h = theirs["x"]
        h = h + dense("residual_0/dense_1", torch.tanh(dense("residual_0/dense_0", h)))
        wide = dense("parallel_0/dense_0", h)
        narrow = dense("parallel_0/chain_0/dense_0", torch.nn.functional.silu(h))
        h = torch.cat([wide, narrow], -1)
        h = dense("parallel_1/dense_0", h) + torch.sigmoid(h)
        h.backward(torch.tensor(np.asarray(weight)))
        pairs = [(y, h.detach()), *((ours[path], leaf.grad) for path, leaf in theirs.items())]
        assert len(pairs) == 12
        for a, b in pairs:
            a, b = np.asarray(a, np.float64), b.numpy().astype(np.float64)
            assert np.abs(a - b).max() <= bound * np.abs(b).max()


# Paths, keys, inputs, state.


def test_a_residual_names_its_children_as_a_chain_does():
    parts = (fdl.dense(3), fdl.relu, fdl.dropout(0.5), fdl.dense(4))
    chain, skip = fdl.chain(*parts, last=fdl.tanh), fdl.residual(*parts, last=fdl.tanh)
    assert list(skip.children) == list(chain.children)
    for a, b in zip(*(jax.tree.leaves(net.init(KEY, X)) for net in (chain, skip)), strict=True):
        np.testing.assert_array_equal(a, b)
    key = jax.random.key(8)
    params, state = chain.init(KEY, X)
    through, _ = chain.apply(params, state, X, key=key, train=True)
    around, _ = skip.apply(params, state, X, key=key, train=True)
    np.testing.assert_array_equal(around, X + through)


def test_combinators_hand_an_input_to_the_children_that_name_it():
    mask = jnp.array([1.0, -1.0, 0.0, 2.0])
    for net in (
        fdl.residual(fdl.tanh, masked()),
        fdl.parallel(masked(), fdl.tanh),
        fdl.remat(fdl.chain(fdl.tanh, masked())),
    ):
        assert net.inputs == ("mask",)
        params, state = net.init(KEY, X, mask=mask)
        given, _ = net.apply(params, state, X, mask=mask)
        other, _ = net.apply(params, state, X, mask=-mask)
        assert (given != other).any()


def test_combinators_thread_state():
    net = fdl.parallel(
        fdl.residual(running_mean()), fdl.remat(running_mean(0.5)), fdl.tanh, merge="sum"
    )
    _, state = net.init(KEY, X)
    _, moved = net.apply({}, state, X, train=True)
    mean = np.asarray(X, np.float64).mean(0)
    np.testing.assert_allclose(
        moved["residual_0"]["running_mean_0"]["mean"], 0.25 * mean, rtol=1e-5
    )
    np.testing.assert_allclose(moved["running_mean_0"]["mean"], 0.5 * mean, rtol=1e-5)


def test_remat_is_the_same_layer_in_all_but_memory():
    inner = fdl.chain(fdl.dense(4), fdl.tanh, fdl.dropout(0.5), name="block")
    outer = fdl.remat(inner)
    assert (outer.name, list(outer.children)) == ("block", list(inner.children))
    params, state = outer.init(KEY, X)
    for a, b in zip(*(jax.tree.leaves(net.init(KEY, X)) for net in (inner, outer)), strict=True):
        np.testing.assert_array_equal(a, b)
    apply = {"key": jax.random.key(2), "train": True}
    np.testing.assert_array_equal(
        outer.apply(params, state, X, **apply)[0], inner.apply(params, state, X, **apply)[0]
    )
    assert fdl.remat(jnp.tanh).name == "tanh"


def residuals(net, params):
    """The shapes of the arrays that the backward pass saves."""
    jaxpr = jax.make_jaxpr(lambda p, x: jax.vjp(lambda p, x: net.apply(p, {}, x)[0], p, x)[1])(
        params, X
    )
    return sorted(str(var.aval) for var in jaxpr.jaxpr.outvars)


def test_remat_keeps_what_its_policy_says():
    inner = fdl.chain(fdl.dense(5), fdl.tanh, fdl.dense(6), fdl.tanh, fdl.dense(4))
    params, _ = inner.init(KEY, X)
    nothing = residuals(fdl.remat(inner), params)
    products = residuals(fdl.remat(inner, policy=jax.checkpoint_policies.dots_saveable), params)
    assert "float32[3,5]" not in nothing and "float32[3,6]" not in nothing
    assert products.count("float32[3,5]") == products.count("float32[3,6]") == 1
    assert "float32[3,5]" in residuals(inner, params)


def test_capture_looks_inside():
    block = fdl.residual(fdl.dense(4), fdl.tanh)
    net = fdl.chain(fdl.remat(block), sides=fdl.parallel(fdl.tanh, fdl.dense(4)))
    params, state = net.init(KEY, X)
    seen = jax.jit(fdl.capture(net, "**"))(params, state, X)
    assert fdl.look.layer_paths(net) == [
        *("residual_0", "residual_0/dense_0", "residual_0/tanh_0"),
        *("sides", "sides/tanh_0", "sides/dense_0"),
    ]
    assert sorted(seen) == sorted(fdl.look.layer_paths(net))
    np.testing.assert_allclose(seen["residual_0"], X + seen["residual_0/tanh_0"], rtol=1e-6)
    np.testing.assert_allclose(
        seen["sides"], seen["sides/tanh_0"] + seen["sides/dense_0"], rtol=1e-6
    )


# The fence.


def cube(x):
    return (fence(x) ** 3).sum()


@pytest.mark.bits
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_fence_changes_no_bits(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = array(np.random.default_rng(0).standard_normal(7), dtype)
        ct = x[::-1]
        for f in (lambda x: x, jax.vmap(lambda x: x), jax.checkpoint(lambda x: x)):
            y, back = jax.vjp(lambda x, f=f: f(fence(x)), x)
            np.testing.assert_array_equal(y, x)
            np.testing.assert_array_equal(jax.jit(back)(ct)[0], ct)
            assert y.dtype == back(ct)[0].dtype == jnp.dtype(dtype)


def test_a_fence_is_linear_under_every_transform():
    x, v = np.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]], np.float32)
    np.testing.assert_array_equal(jax.jvp(fence, (array(x),), (array(v),))[1], v)
    products = [
        lambda x: jax.jvp(jax.grad(cube), (x,), (v,))[1],
        jax.grad(lambda x: jax.grad(cube)(x) @ v),
        jax.grad(lambda x: jax.jvp(cube, (x,), (v,))[1]),
    ]
    counts = {"n": np.arange(3), "x": x}

    @jax.jit
    def transformed(x, counts):
        seconds = [product(x) for product in products]
        batches = jax.vmap(jax.vmap(jax.grad(cube)))(x[:, None, None])
        return jax.grad(cube)(x), batches, jax.hessian(cube)(x), seconds, fence(counts)

    slope, batches, hessian, seconds, same = transformed(x, counts)
    np.testing.assert_allclose(slope, 3 * x**2)
    np.testing.assert_allclose(np.ravel(batches), 3 * x**2)
    np.testing.assert_allclose(hessian, np.diag(6 * x))
    for second in seconds:
        np.testing.assert_allclose(second, 6 * x * v)
    jax.tree.map(np.testing.assert_array_equal, same, counts)


def test_a_fence_is_exported_to_every_platform_and_stands_on_cpu_alone():
    platforms = ["cpu", "cuda", "rocm", "tpu"]
    x = jnp.array([1.0, -2.0])
    exported = jax.export.export(jax.jit(jax.grad(cube)), platforms=platforms)(x)
    assert list(exported.platforms) == platforms
    np.testing.assert_allclose(exported.call(x), [3.0, 12.0])
    for platform in platforms:
        text = jax.export.export(jax.jit(jax.grad(cube)), platforms=[platform])(x).mlir_module()
        assert ('inlineable = "false"' in text) == (platform == "cpu")


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def operations(blocks, around):
    """The operations of a training step of a residual network in a scan, after XLA's fusion."""
    block = fdl.chain(normalized, fdl.dense(8), fdl.gelu, fdl.dense(8))
    net = fdl.chain(*[around(block)] * blocks)
    params, _ = net.init(KEY, jnp.ones((4, 8)))

    def step(params, x):
        gradient = jax.grad(lambda p: (net.apply(p, {}, x)[0] ** 2).sum())(params)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient), None

    compiled = jax.jit(lambda p, xs: jax.lax.scan(step, p, xs)).lower(params, jnp.ones((2, 4, 8)))
    return compiled.compile().cost_analysis()["flops"]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the fence stands on CPU alone")
def test_the_cost_of_a_residual_network_is_linear_in_its_depth():
    """Without the fence it grows faster, so this test can fail."""

    def unfenced(block):
        return fdl.network(lambda f, x: x + f.block(x), block=block, name="residual")

    fenced = [operations(blocks, fdl.residual) for blocks in (2, 4, 6)]
    plain = [operations(blocks, unfenced) for blocks in (2, 4, 6)]
    assert fenced[2] - fenced[1] <= 1.01 * (fenced[1] - fenced[0])
    assert plain[2] - plain[1] > 1.1 * (plain[1] - plain[0])


# Messages.


def test_a_residual_that_changes_the_shape_is_refused():
    net = fdl.chain(block=fdl.residual(fdl.dense(3)))
    message = (
        "block: expected f(x) with the shape and dtype of x, float32 [3, 4], got float32 "
        "[3, 3]; give the last layer as many features as x has, or use parallel(f, shortcut=...)"
    )
    with pytest.raises(fdl.PathError, match=told(message)):
        net.init(KEY, X)
    with pytest.raises(fdl.PathError, match=told(message.replace("block: ", "residual: "))):
        net.children["block"].init(KEY, X)


def test_outputs_that_cannot_be_merged_are_refused():
    children = {"a": fdl.dense(3), "b": fdl.tanh}
    with pytest.raises(
        fdl.PathError,
        match=told(
            "parallel: expected outputs of one shape and dtype, got float32 [3, 3] from a and "
            "float32 [3, 4] from b; give both layers the same number of features, or pass "
            "merge='concat'"
        ),
    ):
        fdl.parallel(**children).init(KEY, X)
    with pytest.raises(
        fdl.PathError,
        match=told(
            "sides: expected outputs that differ only in the last axis, got float32 [3, 3] from a "
            "and float32 [12] from b; give both layers outputs of one shape, or pass merge='tuple'"
        ),
    ):
        fdl.parallel(a=fdl.dense(3), b=jnp.ravel, merge="concat", name="sides").init(KEY, X)


@pytest.mark.parametrize("merge", ["add", None, 0])
def test_an_unknown_merge_is_refused(merge):
    message = f"parallel: expected merge to be one of 'sum', 'concat', 'tuple', got {merge!r}; "
    message += "pass 'tuple', and combine the outputs in a network"
    with pytest.raises(ValueError, match=told(message)):
        fdl.parallel(fdl.tanh, merge=merge)


@pytest.mark.parametrize("combinator", [fdl.residual, fdl.parallel])
def test_a_combinator_of_nothing_is_refused(combinator):
    message = (
        f"{combinator.__name__}: expected at least 1 layer, got 0; pass layers, or plain functions "
        "of one array"
    )
    with pytest.raises(ValueError, match=told(message)):
        combinator()
    with pytest.raises(
        ValueError,
        match=told(
            "mine: expected a different name for each layer, got 'tanh_0' twice; rename one of the "
            "two"
        ),
    ):
        combinator(fdl.tanh, tanh_0=fdl.relu, name="mine")


def test_a_message_from_inside_a_remat_has_its_path():
    net = fdl.chain(outer=fdl.remat(fdl.chain(fdl.tanh, inner=fdl.dense(2))))
    params, state = net.init(KEY, X)
    message = (
        "outer/inner: expected x [..., 4], got [3, 5]; give x that width, or make new params with "
        "init"
    )
    for wrap in (lambda f: f, jax.jit):
        with pytest.raises(fdl.PathError, match=told(message)):
            wrap(net.apply)(params, state, jnp.ones((3, 5)))


# Frozen layers.


def learned():
    return fdl.chain(fdl.dense(4), fdl.batch_norm(momentum=0.5), fdl.dropout(0.5), fdl.tanh)


FROZEN = {
    "chain": lambda part: fdl.chain(fdl.dense(4), part=part, head=fdl.dense(1)),
    "network": lambda part: fdl.network(
        lambda f, x: f.head(f.part(f.dense_0(x))),
        **{"dense_0": fdl.dense(4), "part": part, "head": fdl.dense(1)},
    ),
    "repeat": lambda part: fdl.chain(
        fdl.dense(4), part=fdl.repeat(part, 2, scan=True), head=fdl.dense(1)
    ),
    "residual": lambda part: fdl.chain(
        fdl.dense(4), part=fdl.residual(inner=part), head=fdl.dense(1)
    ),
    "remat": lambda part: fdl.chain(fdl.dense(4), part=fdl.remat(part), head=fdl.dense(1)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_part_stays_as_it_is_through_fit(name):
    net, free = FROZEN[name](fdl.frozen(learned())), FROZEN[name](learned())
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) + 2
    y = x[:, :1]
    params, state = net.init(KEY, x)
    others = free.init(KEY, x)
    assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(jnp.shape, others)
    state = jax.tree.map(lambda leaf: array(np.asarray(leaf) + 0.25, leaf.dtype), state)
    optimizer, score = fdl.sgd(0.01), fdl.supervised(net, fdl.squared_error)
    run = fdl.start(params, optimizer, state=state)
    run = fdl.fit(score, optimizer, run, (x, y), batch_size=8, steps=6).run
    assert list(run.state) == ["part"]
    for before, after in ((state, run.state), (params["part"], run.params["part"])):
        jax.tree.map(np.testing.assert_array_equal, before, after)
    for part in ("dense_0", "head"):  # before it and behind it
        moved = np.asarray(run.params[part]["w"]) - np.asarray(params[part]["w"])
        assert np.abs(moved).max() > 1e-4

    @jax.jit
    def passes(params, state):
        training = net.apply(params, state, x, key=jax.random.key(3), train=True)
        loss = lambda p: score(p, state, (x, y), jax.random.key(1))[0]  # noqa: E731
        return training, free.apply(params, state, x)[0], jax.grad(loss)(params)

    (training, kept), expected, gradient = passes(params, state)
    np.testing.assert_allclose(training, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["part"]))


def test_a_frozen_part_can_be_captured_and_decodes():
    block = fdl.chain(fdl.attention(2, causal=True), fdl.dense(4))
    net = fdl.chain(part=fdl.frozen(block))
    assert fdl.frozen(block).name == "chain"
    x = array(np.random.default_rng(0).standard_normal((2, 5, 4)))
    params, state = net.init(KEY, x)

    @jax.jit
    def passes(params, state, x):
        found = fdl.capture(net, "part/dense_0")(params, state, x)
        cache = fdl.start_decoding(net, params, x, 5)
        first, cache = fdl.decode(net, params, cache, x[:, :3])
        last, cache = fdl.decode(net, params, cache, x[:, 3:])
        return net.apply(params, state, x)[0], found, first, last

    whole, found, first, last = passes(params, state, x)
    np.testing.assert_allclose(found["part/dense_0"], whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([first, last], 1), whole, rtol=1e-4, atol=1e-5)


SEEDED_BUGS = {
    "fdl/core/combinators.py": (
        "core/test_combinators.py layers/test_linear.py core/test_decoding.py",
        [
            ("inner.apply(jax.lax.stop_gradient(params), state", "inner.apply(params, state"),
            (
                "inner.apply(jax.lax.stop_gradient(params), state, x, **given)",
                "inner.apply(params, state, x, key=key, train=train, **given)",
            ),
            ("leaf.reshape(*lead, *leaf.shape[1:])", "leaf"),
            ("batch_apply(rebuild(others), axes=axes)", "rebuild(others)"),
            ("if axes > 1 else same", ""),
            ("return x + y", "return y"),
            ("_MERGES[merge](name", "_MERGES['sum'](name"),
            ("policy=policy)(params", "policy=None)(params"),
            ("jax.checkpoint(again, policy=policy)(", "again("),
            ("if kind(y) != kind(x)", "if False"),
            ("rebuild and (lambda", "None and (lambda"),
        ],
    ),
    "fdl/ops/fence.py": (
        "core/test_combinators.py",
        [
            ('set_xla_metadata(inlineable="false")', "set_xla_metadata()"),
            ('platform="cpu")', 'platform="tpu")'),
            ("[other.bind(ct)]", "[other.bind(2 * ct)]"),
        ],
    ),
}
