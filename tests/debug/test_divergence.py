"""Where two computations begin to differ: seeded differences, each with its path and direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5, 3)).astype("float32")
Y = RNG.standard_normal((4, 5, 3)).astype("float32")


def own(f):
    """A layer y = f(x, w), with the parameter w [3, 3]."""

    def init(key, x):
        return {"w": fdl.initializers.he_normal(key, (3, 3), jnp.float32)}, {}

    def apply(params, state, x, *, key=None, train=False):
        return f(x, params["w"]), state

    return fdl.Layer("own", init, apply)


def product(x, w):
    return x @ w


def in_bfloat16(x, w):
    return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32)


def backward_in_bfloat16(x, w):
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    def backward(kept, slope):
        return tuple(leaf.astype(jnp.bfloat16).astype(jnp.float32) for leaf in kept(slope))

    f.defvjp(lambda x, w: jax.vjp(product, x, w), backward)
    return f(x, w)


def standard(epsilon):
    """Simple on purpose: the layers of fdl have many operations, which take long to compile."""
    return lambda x: x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def shift():
    """A layer y = x - mean, where the mean is a state."""

    def apply(params, state, x, *, key=None, train=False):
        return x - state["mean"], state

    return fdl.Layer("shift", lambda key, x: ({}, {"mean": jnp.zeros(3)}), apply)


def model_of(first=product, inside=product, last=1e-5, **given):
    block = {"norm": standard(given.get("epsilon", 1e-5)), "own": own(inside)}
    body = fdl.repeat(fdl.residual(**block, act=given.get("act", jnp.tanh)), 3, scan=True)
    conv = fdl.conv(3, (3,), padding=given.get("padding", [(1, 1)]))
    return fdl.chain(conv=conv, own=own(first), body=body, norm=standard(last), shift=shift())


def traced(change=lambda run: run, loss=fdl.squared_error, x=X, rate=None, **options):
    model = model_of(**options)
    params, state = model_of().init(jax.random.key(0), X)
    optimizer = None if rate is None else fdl.sgd(rate)
    run = change(fdl.start(params, fdl.sgd(0.1), state=state))
    return fdl.debug.trace(fdl.supervised(model, loss), run, (x, Y), optimizer=optimizer)


usual = functools.cache(functools.partial(traced, rate=0.1))


def with_leaf(part, path, f):
    """A function that changes one leaf of the params or the state of a run."""

    def change(run):
        leaves = fdl.paths.leaves(getattr(run, part))
        leaves[path] = f(leaves[path])
        return run._replace(**{part: fdl.paths.tree(leaves)})

    return {"change": change}


def one_element(w):
    return w.at[(1,) * w.ndim].multiply(1.001)


DIFFERENCES = {
    "epsilon in a scan": ({"epsilon": 1.2e-5}, "body/0/norm", "forward"),
    "epsilon at the end": ({"last": 1e-3}, "norm", "forward"),
    "transposed kernel": (with_leaf("params", "own/w", jnp.transpose), "own/w", "params"),
    "transposed kernel of a block": (
        with_leaf("params", "body/2/own/w", jnp.transpose),
        "body/2/own/w",
        "params",
    ),
    "transposed in the code": ({"first": lambda x, w: x @ w.T}, "own", "forward"),
    "transposed in the code of a block": (
        {"inside": lambda x, w: x @ w.T},
        "body/0/own",
        "forward",
    ),
    "padding": ({"padding": [(2, 0)]}, "conv", "forward"),
    "padding of the other side": ({"padding": [(0, 2)]}, "conv", "forward"),
    "initial value": (with_leaf("params", "conv/w", one_element), "conv/w", "params"),
    "initial value of a block": (
        with_leaf("params", "body/1/own/w", one_element),
        "body/1/own/w",
        "params",
    ),
    "initial bias": (with_leaf("params", "conv/b", lambda b: b + 1e-4), "conv/b", "params"),
    "initial state": (with_leaf("state", "shift/mean", lambda m: m + 1e-4), "shift/mean", "state"),
    "dtype of a layer": ({"first": in_bfloat16}, "own", "forward"),
    "dtype in a scan": ({"inside": in_bfloat16}, "body/0/own", "forward"),
    "dtype of the backward pass": ({"first": backward_in_bfloat16}, "own", "backward"),
    "dtype of a parameter": (
        with_leaf("params", "body/2/own/w", lambda w: w.astype(jnp.bfloat16).astype(w.dtype)),
        "body/2/own/w",
        "params",
    ),
    "data": ({"x": X[::-1]}, "0", "batch"),
    "activation": ({"act": jnp.sin}, "body/0/act", "forward"),
    "loss": ({"loss": fdl.absolute_error}, "loss", "forward"),
    "learning rate": ({"rate": 0.1001}, "conv/b", "new_params"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_seeded_differences(name):
    options, path, direction = DIFFERENCES[name]
    found = fdl.debug.find_divergence(usual(), traced(**options))
    assert (found.path, found.direction) == (path, direction), found


def test_rounding_is_no_difference():
    assert fdl.debug.find_divergence(usual(), traced(x=X * np.float32(1 + 2e-7), rate=0.1)) is None


def test_two_dtypes_differ_by_the_rounding_of_the_wider_one():
    model = fdl.chain(fdl.dense(4), jnp.tanh, fdl.dense(3))
    params, state = model.init(jax.random.key(0), X)
    one = fdl.look.capture(model, "**")(params, state, X)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (params, state, X))
    other = fdl.look.capture(model, "**")(*half)
    assert fdl.debug.find_divergence(one, other)[:2] == ("dense_0", "forward")
    assert fdl.debug.find_divergence(one, other, tolerance=0.05) is None
    other["tanh_0"] *= 1.1
    assert fdl.debug.find_divergence(one, other, tolerance=0.05).path == "tanh_0"
    assert repr(fdl.debug.find_divergence(one, other)) == (
        "<Divergence: forward, at dense_0: dtypes float32 and bfloat16>"
    )


def test_a_network_of_another_library():
    """As hooks of torch would fill a dict: only some paths, in any order."""
    x = np.float32([[1.0, 2.0], [3.0, 5.0]])
    ours = {"a": x, "b": x @ x, "c": x @ x - 1}
    theirs = {"c": x @ x - 1, "other": x, "a": x * np.float32(1 + 1e-7)}
    assert fdl.debug.find_divergence(ours, theirs) is None
    theirs["a"] = x * np.float32(1 + 1e-5)
    theirs["c"] = x
    assert fdl.debug.find_divergence(ours, theirs).path == "a"
    nan = np.where(x > 4, np.nan, x)
    assert fdl.debug.find_divergence({"a": nan}, {"a": nan}) is None
    assert fdl.debug.find_divergence({"a": nan}, {"a": x}).path == "a"


TORCH_FAULTS = {
    "none": (lambda twin: None, None),
    "transposed kernel": (
        lambda twin: twin["first"].weight.copy_(twin["first"].weight.T.clone()),
        "first",
    ),
    "initial value": (lambda twin: twin["first"].bias[2].add_(1e-3), "first"),
    "another activation": (lambda twin: setattr(twin["gelu"], "approximate", "tanh"), "gelu"),
    "epsilon": (lambda twin: setattr(twin["norm"], "eps", 1e-3), "norm"),
    "dtype": (lambda twin: twin["last"].double(), "last"),
}


@pytest.mark.parametrize("name", TORCH_FAULTS)
def test_the_twin_of_a_network_of_torch(name):
    """Its outputs come from hooks."""
    torch = pytest.importorskip("torch", reason="torch is not here: no network to compare with")
    fault, path = TORCH_FAULTS[name]
    model = fdl.chain(
        first=fdl.dense(6),
        gelu=lambda x: fdl.gelu(x, approximate=False),
        norm=fdl.layer_norm(epsilon=1e-5),
        last=fdl.dense(2),
    )
    x = RNG.standard_normal((5, 6)).astype("float32")
    params, _ = model.init(jax.random.key(0), x)
    parts = {
        "first": torch.nn.Linear(6, 6),
        "gelu": torch.nn.GELU(),
        "norm": torch.nn.LayerNorm(6, eps=1e-5),
        "last": torch.nn.Linear(6, 2),
    }
    theirs, h = {}, torch.tensor(x)
    with torch.no_grad():
        for layer in ("first", "last"):
            parts[layer].weight.copy_(torch.tensor(np.array(params[layer]["w"]).T))
            parts[layer].bias.copy_(torch.tensor(np.array(params[layer]["b"])))
        fault(parts)
        for layer, part in parts.items():
            part.register_forward_hook(
                lambda _, __, y, layer=layer: theirs.update({layer: y.numpy()})
            )
            h = part(h.double() if name == "dtype" and layer == "last" else h)
    ours = fdl.look.capture(model, "**")(params, {}, x)
    found = fdl.debug.find_divergence(ours, theirs)
    assert (found and found.path) == path


def runs_of(tmp_path, name, optimizer, start=0.0, data=X):
    objective = fdl.plain(
        lambda params, x: ((jnp.tanh(x @ params["w"]) - x @ params["v"]) ** 2).mean()
    )
    params = {"w": jnp.eye(3) + start, "v": jnp.ones((3, 3))}
    saved = fdl.checkpoints(tmp_path / name, keep=None)
    run = fdl.start(params, optimizer)
    how = {"steps": 12, "batch_size": 2, "record_every": 4, "watch": [saved]}
    fdl.fit(objective, optimizer, run, data, **how)
    return saved


def test_two_runs(tmp_path):
    """The rates differ from step 7 on, the data from the first batch with row 3 on."""
    usual = runs_of(tmp_path, "one", fdl.sgd(0.1))
    find = fdl.debug.find_divergence
    assert find(usual, usual) is None
    later = fdl.sgd(lambda step: jnp.where(step < 6, 0.1, 0.11).astype(jnp.float32))
    found = find(usual, runs_of(tmp_path, "later", later))
    assert found[:3] == ("v", "new_params", 7)
    found = find(usual, runs_of(tmp_path, "start", fdl.sgd(0.1), start=1e-3))
    assert found[:3] == ("w", "params", 0)
    other = X.copy()
    other[3] += 1
    batches = [np.asarray(fdl.draw_batch(np.arange(4), 0, step, 2)) for step in range(12)]
    first = next(step for step, rows in enumerate(batches) if 3 in rows)
    found = find(usual, runs_of(tmp_path, "data", fdl.sgd(0.1), data=other))
    assert found[:3] == ("", "batch", first + 1)


def test_mistakes_are_told():
    find = fdl.debug.find_divergence
    with pytest.raises(
        TypeError,
        match=r"^find_divergence: expected two traces or two checkpoints, got 3 and dict; pass ",
    ):
        find(3, {"a": X})
    with pytest.raises(
        ValueError,
        match=r"^find_divergence: expected traces with a key in common, got none among 'a', 'b';",
    ):
        find({"a": X}, {"b": X})
    with pytest.raises(
        ValueError,
        match=r"^find_divergence: expected tolerance > 0, got -1; pass 1e-2, or None$",
    ):
        find({"a": X}, {"a": X}, tolerance=-1)
    with pytest.raises(TypeError, match=r"^trace: expected an objective first, got 3; make one"):
        fdl.debug.trace(3, None, X)


SEEDED_BUGS = {
    "fdl/debug/divergence.py": (
        "debug/test_divergence.py",
        [
            ('if group.backward else "forward"', 'if False else "forward"'),
            ("saved.at(step - 1)", "saved.at(step)"),
            ("batch_of_step(plan, step - 1)", "batch_of_step(plan, step)"),
            ("ROUNDINGS = 32", "ROUNDINGS = 32000"),
            ("ROUNDINGS = 32", "ROUNDINGS = 0.01"),
            ("(np.isnan(a) & np.isnan(b))", "np.isnan(a) | np.isnan(b)"),
            ('if part in ("backward", "gradients"):', "if True:"),
            ("[key for key in one if key in other]", "[key for key in other if key in one]"),
            ("if a.dtype != b.dtype and tolerance is None:", "if False:"),
        ],
    ),
}
