"""Mistakes of beginners: the first line of a message is complete, and texts of values are short."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl

X, Y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
DATA = X, Y
SGD = fdl.sgd(0.1)


@functools.cache
def model():
    return fdl.chain(fdl.dense(3), fdl.relu, fdl.dense(2))


@functools.cache
def params():
    return model().init(jax.random.key(0), X)[0]


@functools.cache
def score():
    return fdl.supervised(model(), fdl.softmax_cross_entropy, accuracy=fdl.accuracy)


def run():
    return fdl.start(params(), SGD)


def fit(*, objective=None, optimizer=SGD, run_=None, data=DATA, **how):
    how = {"steps": 1, "batch_size": 4} | how
    return fdl.fit(
        score() if objective is None else objective, optimizer, run_ or run(), data, **how
    )


def compare(*, optimizers=None, **how):
    how = {"rates": [0.1], "seeds": [0], "steps": 1} | how
    init = lambda seed: (params(), {})  # noqa: E731
    return fdl.compare_optimizers(score(), init, DATA, optimizers or {"sgd": fdl.sgd}, **how)


def pair(state=None):
    return params(), state or {}


LAYER = "<Layer chain of dense_0, relu_0, dense_1>"
RUN = (
    "<Run at step 0 of seed 0; params: 23 numbers in 4 arrays, state: nothing, opt_state: nothing>"
)
OBJECTIVE = "objective = fdl.supervised(model, loss)"
OPTIMIZER = "pass fdl.adam(0.001), for example"
INIT = "params, state = model.init(key, x)"
PAIR = f"expected params alone, got the pair that init returns; write {INIT}"
SCORES = "as a function (y_pred, y) -> [B, ...]"
VALUE = (
    "expected only operations of jax.numpy on a traced array, got one that needs the array's "
    "value, such as numpy, if, float() or x[x > 0]; use jax.numpy, jnp.where or jax.lax.cond"
)
STEPS = "fit: expected a number of steps in [0, 2**32), an integer, got"
SEED = "start: expected a seed, an integer in [0, 2**32), got"
OTHERS = (
    "begin with fdl.start(params, optimizer), or pass the optimizer that the run was started with"
)


def network(f):
    return fdl.chain(fdl.dense(3), part=f)


def of_function(f):
    """A plain model of one weight."""
    return lambda w, x: f(w * x)


ASKING = {
    "numpy": lambda x: np.tanh(x),
    "if": lambda x: x if x.sum() > 0 else -x,
    "float": lambda x: x * float(x.sum()),
    "int": lambda x: x * int(x.sum()),
    "a mask": lambda x: x[x > 0],
    "range": lambda x: sum(x for _ in range(jnp.int32(2) * x.astype(int).max())),
}

# name -> (the mistake, the first line of its message)
MISTAKES = {
    "a layer for an objective": (
        lambda: fit(objective=model()),
        f"fit: expected an objective first, got {LAYER}; give it a loss: {OBJECTIVE}",
    ),
    "a layer for an objective of evaluate": (
        lambda: fdl.evaluate(model(), params(), DATA),
        f"evaluate: expected an objective first, got {LAYER}; give it a loss: {OBJECTIVE}",
    ),
    "a layer for an objective of train_step": (
        lambda: fdl.train_step(model(), SGD, run(), DATA, 4),
        f"train_step: expected an objective first, got {LAYER}; give it a loss: {OBJECTIVE}",
    ),
    "params before the objective": (
        lambda: fdl.evaluate(params(), score(), DATA),
        f"evaluate: expected an objective first, got dict; make one: {OBJECTIVE}",
    ),
    "a loss for an objective": (
        lambda: fit(objective=fdl.squared_error),
        "fit: expected an objective (params, state, batch, key), got the function squared_error of "
        "(predictions, targets); fdl.plain makes one from a function (params, batch) -> loss, and "
        "fdl.supervised(model, loss) makes one from a model and a loss",
    ),
    "params for a run": (
        lambda: fit(run_=params()),
        "fit: expected a run, or a result of fit, got dict; begin with "
        "run = fdl.start(params, optimizer, state=state)",
    ),
    "a run for an optimizer": (
        lambda: fit(optimizer=run(), run_=SGD),
        f"fit: expected an optimizer of fdl or optax, got {RUN}; {OPTIMIZER}",
    ),
    "a text for an optimizer": (
        lambda: fit(optimizer="adam"),
        f"fit: expected an optimizer of fdl or optax, got 'adam'; {OPTIMIZER}",
    ),
    "a factory of optax": (
        lambda: fit(optimizer=optax.sgd),
        "fit: expected an optimizer of fdl or optax, got the function sgd; call it: sgd(0.001)",
    ),
    "a layer for params": (
        lambda: fdl.start(model(), SGD),
        f"start: expected params, a pytree of arrays, got {LAYER}; write {INIT}, "
        "then start(params, optimizer)",
    ),
    "the optimizer before params": (
        lambda: fdl.start(SGD, params()),
        "start: expected params, a pytree of arrays, got an optimizer; write "
        f"{INIT}, then start(params, optimizer)",
    ),
    "a text among params": (
        lambda: fdl.start({"w": "a"}, SGD),
        "start: expected params, a pytree of arrays, got 'a' at 'w'; write "
        f"{INIT}, then start(params, optimizer)",
    ),
    "a run for params": (
        lambda: fdl.start(run(), SGD),
        f"start: expected params, a pytree of arrays, got {RUN}; pass its params",
    ),
    "a layer for a state": (
        lambda: fdl.start(params(), SGD, state=model()),
        f"start: expected state, a pytree of arrays, got {LAYER}; write {INIT}",
    ),
    "a model of predict behind params": (
        lambda: fdl.predict(params(), model(), X),
        "predict: expected a model first, a Layer or a function (params, x) -> y, got dict; pass "
        "fdl.mlp([64], 10), for example",
    ),
    "an objective for a model": (
        lambda: fdl.predict(fdl.supervised(model(), fdl.squared_error), params(), X),
        f"predict: expected a model, got an objective, <Supervised of {LAYER}; loss the function "
        "squared_error>; pass objective.model",
    ),
    "a pair of init with a state": (
        lambda: fdl.predict(model(), pair({"a": jnp.ones(1)}), X),
        f"predict: expected the params of {LAYER}, a dict, got (dict, dict); write {INIT}, and "
        "pass params and state separately",
    ),
    "a layer for a loss": (
        lambda: fdl.supervised(fdl.squared_error, model()),
        f"supervised: expected loss {SCORES}, got {LAYER}; pass the model first, then the loss",
    ),
    "a text for a loss": (
        lambda: fdl.supervised(model(), "mse"),
        f"supervised: expected loss {SCORES}, got 'mse'; pass a function, such as "
        "fdl.squared_error",
    ),
    "a text for a metric": (
        lambda: fdl.supervised(model(), fdl.squared_error, right="accuracy"),
        f"supervised: expected right {SCORES}, got 'accuracy'; pass a function, such as "
        "fdl.accuracy",
    ),
    "a metric that was not called": (
        lambda: fdl.supervised(model(), fdl.squared_error, f1=fdl.metrics.f1),
        f"supervised: expected f1 {SCORES}, got the function f1, which makes a metric or a "
        "layer; call it: f1(average=...)",
    ),
    "a Metric for a loss": (
        lambda: fdl.supervised(model(), fdl.metrics.auc()),
        f"supervised: expected loss {SCORES}, got <Metric>; pass a Metric by name, after the "
        "loss: fdl.supervised(model, loss, f1=metric)",
    ),
    "a Metric where a function is made one": (
        lambda: fdl.metrics.mean_of(fdl.metrics.auc()),
        "mean_of: expected a function (predictions, targets) -> [B, ...], got a Metric; pass a "
        "function such as fdl.accuracy, or use the Metric directly",
    ),
    "an option that a loss does not have": (
        lambda: fdl.huber(delat=2.0),
        "huber: expected options among delta, where, got 'delat'; use one of these names, and pass "
        "arrays before options",
    ),
    "a factory for a model": (
        lambda: fdl.supervised(fdl.dense, fdl.squared_error),
        "supervised: expected a model, got the function dense, which makes a layer; call it: "
        "dense(...)",
    ),
    "a text for plain": (
        lambda: fdl.plain("mse"),
        "plain: expected a function (params, batch) -> loss, got 'mse'; fdl.supervised makes an "
        "objective from a model and a loss",
    ),
    "a layer called like a function": (
        lambda: model()(X),
        "chain: expected a call of the layer's init or apply, got a call of the layer itself, with "
        "float32 [8, 4]; write params, state = layer.init(key, x), then y, state = "
        "layer.apply(params, state, x); inside a network, write f.name(x)",
    ),
    "apply without a state": (
        lambda: model().apply(params(), X),
        "chain: expected apply(params, state, x), got 2 arguments by position; pass {} as the "
        "state of a network without state, and pass all other arguments by name",
    ),
    "init without a key": (
        lambda: fdl.dense(3).init(X),
        "dense: expected init(key, x), got 1 arguments by position; pass {} as the state of a "
        "network without state, and pass all other arguments by name",
    ),
    "a key handed to a child by hand": (
        lambda: fdl.network(lambda f, x, *, key=None: f.a(x, key=key), a=fdl.dropout(0.5)).init(
            jax.random.key(0), X
        ),
        "a: expected extra inputs among [], got 'key', which is not an extra input; leave it out, "
        "because a network always passes key and train to its layers",
    ),
    "a width of mlp that is a number": (
        lambda: fdl.mlp(784, 10),
        "mlp: expected hidden to be a list of widths, got 784; write mlp([784], 10) for one hidden "
        "layer, or mlp([], 10) for none; do not pass the width of x, because init reads it from x",
    ),
    "the state of no optimizer for adam": (
        lambda: fit(optimizer=fdl.adam(0.1)),
        "fit: expected the state of this optimizer, with '0/count' [], got one of another "
        f"optimizer, with fewer leaves; {OTHERS}",
    ),
    "the state of adam for sgd": (
        lambda: fit(run_=fdl.start(params(), fdl.adam(0.1))),
        "fit: expected the state of this optimizer, with fewer leaves, got one of another "
        f"optimizer, with '0/count' []; {OTHERS}",
    ),
    "the state of another optimizer in one update": (
        lambda: fdl.update_weights(fdl.adam(0.1), run(), params()),
        "update_weights: expected the state of this optimizer, with '0/count' [], got one of "
        f"another optimizer, with fewer leaves; {OTHERS}",
    ),
    "a function for an optimizer of one update": (
        lambda: fdl.update_weights(fdl.sgd, run(), params()),
        "update_weights: expected an optimizer of fdl or optax, got the function sgd; call it: "
        "sgd(0.001)",
    ),
    "fit inside jit": (
        lambda: jax.jit(lambda run: fit(run_=run))(run()),
        "fit: expected a run of known arrays, got traced arrays; inside jax.jit, vmap or grad, "
        "loop over fdl.train_step with jax.lax.fori_loop",
    ),
    "an optimizer for a function of the rate": (
        lambda: compare(optimizers={"sgd": SGD}),
        "compare_optimizers: expected optimizers as a dict, name -> function of the rate, got "
        "an optimizer; pass {'adam': fdl.adam}, or {'sgd': lambda rate: fdl.sgd(rate, "
        "momentum=0.9)}",
    ),
    "rates as texts": (
        lambda: compare(rates=["0.1"]),
        "compare_optimizers: expected rates [R], > 0 and increasing, got ['0.1']; start with a "
        "wide grid, such as np.geomspace(1e-4, 1, 9)",
    ),
    "seeds as texts": (
        lambda: compare(seeds=["a"]),
        "compare_optimizers: expected different seeds in [0, 2**32), got ['a']; pass range(3), for "
        "example",
    ),
    "one seed for many": (
        lambda: compare(seeds=3),
        "compare_optimizers: expected different seeds in [0, 2**32), got 3; pass range(3), for "
        "example",
    ),
    "a model without params": (
        lambda: fdl.supervised(lambda x: x, fdl.squared_error),
        "supervised: expected a model as a function (params, x) -> y, got the function <lambda> of "
        "(x); write lambda params, x: ..., where params are the arrays to train",
    ),
    "a loss of one argument": (
        lambda: fdl.supervised(model(), lambda y_pred: y_pred),
        f"supervised: expected loss {SCORES}, got the function <lambda> of (y_pred); write lambda "
        "y_pred, y: ...",
    ),
    "an extra input that a layer does not take": (
        lambda: fdl.dense(3).init(jax.random.key(0), X, mask=X),
        "dense: expected extra inputs among [], got 'mask', which no layer here takes; leave it "
        "out, or add an argument of this name to the layer that needs it",
    ),
    "an extra input that a layer's apply does not take": (
        lambda: fdl.layer_norm().apply({}, {}, X, msk=X),
        "layer_norm: expected extra inputs among [], got 'msk', which no layer here takes; leave "
        "it out, or add an argument of this name to the layer that needs it",
    ),
    "train in init": (
        lambda: fdl.dropout(0.1).init(jax.random.key(0), X, train=True),
        "dropout: expected extra inputs among [], got 'train', which is not an extra input; leave "
        "it out, because a network always passes key and train to its layers",
    ),
    "data of predict with their labels": (
        lambda: fdl.predict(model(), params(), DATA),
        "dense_0: expected x to be an array, got a tuple; pass one of its arrays, or convert it "
        "with jnp.asarray",
    ),
    "layers as a list": (
        lambda: fdl.chain([fdl.dense(3), fdl.relu]),
        "chain: expected a Layer or a function of one array, got [<Layer dense>, the function "
        "relu]; unpack it with a star, *layers",
    ),
    "a layer for a cell": (
        lambda: fdl.bidirectional(fdl.lstm(3)),
        "bidirectional: expected a cell, got <Layer lstm>; pass lstm_cell(64) or the like",
    ),
    "a factory of layers for a cell": (
        lambda: fdl.recurrent(fdl.gru),
        "recurrent: expected a cell, got the function gru; pass lstm_cell(64) or the like",
    ),
    "arrays for the average of a metric": (
        lambda: fdl.metrics.f1(X[:, 0], Y),
        "f1: expected average 'binary', 'macro' or 'micro', got float32 [8]; write "
        "f1('binary')(scores, targets)",
    ),
    "validation data of two lengths": (
        lambda: fit(validation=(X, Y[:3])),
        "data: expected arrays of the same length [N, ...], got '0': [8, 4], '1': [3]; every "
        "example needs one row in every array (in validation=...)",
    ),
    "validation data of another width": (
        lambda: fit(validation=(X[:, :2], Y)),
        "dense_0: expected x [..., 4], got [1, 2]; give x that width, or make new params with init "
        "(in validation=...)",
    ),
}
MISTAKES |= {
    f"{what} that was not called": (
        call,
        f"{who}: expected a Layer or a function of one array, got the function {what}, which makes "
        f"a layer; call it: {what}(...)",
    )
    for what, who, call in [
        ("dropout", "chain", lambda: fdl.chain(fdl.dropout, fdl.dense(2))),
        ("batch_norm", "residual", lambda: fdl.residual(fdl.batch_norm)),
        ("dense", "network", lambda: fdl.network(lambda f, x: f.a(x), a=fdl.dense)),
        ("mlp", "repeat", lambda: fdl.repeat(fdl.mlp, 2)),
        ("global_average_pool", "frozen", lambda: fdl.frozen(fdl.global_average_pool)),
    ]
}
DRAW = "to be an initializer (key, shape, dtype) -> array"
MISTAKES |= {
    f"{what} of {who} as a text": (
        functools.partial(getattr(fdl, who), *given, **{what: "he_normal"}),
        f"{told or who}: expected {what} {DRAW}, got 'he_normal'; pass fdl.initializers.he_normal",
    )
    for who, given, what, told in [
        ("dense", [3], "w_init", ""),
        ("dense", [3], "b_init", ""),
        ("conv", [3, (3,)], "w_init", ""),
        ("separable_conv", [3, (3,)], "w_init", "conv"),
        ("conv_transpose", [3, (3,)], "w_init", ""),
        ("einsum_dense", ["td,df->tf", {"f": 2}], "w_init", ""),
        ("bilinear", [2], "w_init", ""),
        ("embedding", [3, 2], "w_init", ""),
        ("learned_positions", [3], "w_init", ""),
        ("gru_cell", [3], "w_init", ""),
        ("lstm_cell", [3], "hidden_init", ""),
        ("attention", [2], "w_init", "q"),
        ("layer_norm", [], "scale_init", ""),
        ("batch_norm", [], "bias_init", ""),
    ]
}
MISTAKES |= {
    "an initializer that was not called": (
        lambda: fdl.dense(3, w_init=fdl.initializers.normal),
        f"dense: expected w_init {DRAW}, got the function normal; call it first: normal(...)",
    ),
    "an initializer of keras": (
        lambda: fdl.dense(3, w_init="RandomNormal"),
        f"dense: expected w_init {DRAW}, got 'RandomNormal'; pass fdl.initializers.he_normal",
    ),
}
MISTAKES |= {
    f"a pair of init for {who}": (call, f"{who}: {PAIR}")
    for who, call in {
        "start": lambda: fdl.start(pair(), SGD),
        "evaluate": lambda: fdl.evaluate(score(), pair(), DATA),
        "predict": lambda: fdl.predict(model(), pair(), X),
    }.items()
}
MISTAKES |= {
    f"{value!r} steps": (
        functools.partial(fit, steps=value),
        f"{STEPS} {said}; pass the total number of steps",
    )
    for value, said in [("ten", "'ten'"), (np.nan, "nan"), (np.inf, "inf"), (2.5, "2.5")]
}
MISTAKES |= {
    "steps of a floating array": (
        lambda: fit(steps=jnp.float32(3)),
        f"{STEPS} float32 []; pass the total number of steps",
    ),
    "steps of many": (
        lambda: fit(steps=jnp.array([3])),
        f"{STEPS} int32 [1]; pass the total number of steps",
    ),
}
MISTAKES |= {
    f"{name}={value!r}": (
        functools.partial(fit, **{name: value}),
        f"fit: expected {name} >= 1, an integer, got {said}; {remedy}",
    )
    for name, remedy in {
        "batch_size": "pass the number of examples in a batch",
        "record_every": "leave it out for the default",
        "chunk": "leave it out for the default",
    }.items()
    for value, said in [("4", "'4'"), (np.nan, "nan"), (0, "0"), (True, "True")]
}
MISTAKES |= {
    f"seed {value!r}": (
        lambda value=value: fdl.start(params(), SGD, seed=value),
        f"{SEED} {said}; take it modulo 2**32",
    )
    for value, said in [("1", "'1'"), (np.inf, "inf"), (np.nan, "nan"), (0.5, "0.5"), (-1, "-1")]
}
MISTAKES |= {
    f"{name} in a part": (
        lambda f=f: jax.jit(network(f).init)(jax.random.key(0), X),
        f"part: {VALUE}",
    )
    for name, f in ASKING.items()
}
MISTAKES |= {
    f"{name} in a forward": (
        lambda f=f: fdl.chain(a=fdl.network(lambda _, x: f(x))).init(jax.random.key(0), X),
        f"a: {VALUE}",
    )
    for name, f in ASKING.items()
}
MISTAKES |= {
    f"{name} in a plain model": (
        lambda f=f: fdl.evaluate(fdl.supervised(of_function(f), fdl.squared_error), 1.0, (X, X)),
        f"supervised: {VALUE}",
    )
    for name, f in ASKING.items()
}
MISTAKES |= {
    "float in a loss of one's own": (
        lambda: fit(objective=fdl.plain(lambda p, batch: float(batch[0].sum()))),
        f"objective: {VALUE}",
    ),
    "if in a forward that is predicted": (
        lambda: fdl.predict(of_function(ASKING["if"]), 1.0, X),
        f"predict: {VALUE}",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_raises_its_message(name):
    call, told = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(told) + r"(\n|$)") as error:
        call()
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_of_a_mistake_has_four_parts(name):
    assert re.match(r"^([\w/*]+: )?expected .+, got .+; \w.+$", MISTAKES[name][1])


def test_counts_may_be_known_scalars_of_numpy_and_jax():
    how = {"batch_size": jnp.int32(4), "record_every": np.int64(2), "chunk": jnp.int8(2)}
    stop = fdl.early_stop(patience=np.array(3))
    found = fit(steps=jnp.int32(4), validation=DATA, watch=[stop], **how)
    assert int(found.run.step) == 4
    assert len(found.history) == 2
    assert fdl.evaluate(score(), found, DATA, batch_size=jnp.uint8(3))["loss"] == pytest.approx(
        found.history[-1]["val_loss"], rel=1e-6
    )


def test_pairs_of_trees_may_be_parameters():
    """Two networks may train at once; only a pair with an empty state is the result of init."""
    for both in ((params(), {"w": jnp.ones(2)}), (jnp.ones(2), jnp.ones(3))):
        assert fdl.start(both, SGD).params is both


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A network like those of Equinox: a callable pytree."""

    w: object

    def __call__(self, x):
        return x @ self.w


def test_a_callable_pytree_may_be_parameters():
    score = fdl.supervised(lambda module, x: module(x), fdl.softmax_cross_entropy)
    module = Module(jnp.ones((4, 2)))
    result = fit(objective=score, run_=fdl.start(module, SGD, state=module))
    assert isinstance(result.params, Module)
    assert fdl.evaluate(score, result.params, DATA) == fdl.evaluate(score, result, DATA)
    assert fdl.predict(score.model, module, X).shape == (8, 2)


def test_torch_optimizers_are_refused():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    told = f"start: expected an optimizer of fdl or optax, got Adam; {OPTIMIZER}"
    with pytest.raises(TypeError, match="^" + re.escape(told) + "$"):
        fdl.start(params(), optimizer)


@pytest.mark.parametrize("make", [fdl.conv, fdl.max_pool, fdl.optim.inject_hyperparams(fdl.sgd)])
def test_arguments_of_torch_are_refused_by_the_name_of_what_was_called(make):
    """A decorator around a factory reads its signature first."""
    name = getattr(make, "__name__", "sgd")
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes .* positional arguments? but \d+ w"):
        make(3, 16, 3, 1, 1)


@pytest.mark.filterwarnings("error")
def test_init_takes_arrays_of_numpy_of_64_bits():
    """NumPy's own dtypes; JAX warns when it is asked for them."""
    net = fdl.network(
        lambda f, x, *, ids: f.norm(f.dense(x)) + f.embed(ids),
        **{"dense": fdl.dense(3), "norm": fdl.batch_norm(), "embed": fdl.embedding(5, 3)},
    )
    x, ids = np.ones((4, 2)), np.arange(4)
    assert (x.dtype, ids.dtype) == (np.float64, np.int64)
    params, state = net.init(jax.random.key(0), x, ids=ids)
    alone, _ = fdl.dense(3).init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, alone))} == {jnp.float32.dtype}
    assert "9" in repr(fdl.look.summary(net, x, ids=ids))
    with jax.enable_x64():
        assert fdl.dense(3).init(jax.random.key(0), x)[0]["w"].dtype == np.float64


def test_draw_batch_takes_arrays_of_numpy():
    x, y = fdl.draw_batch(DATA, 0, 0, 4)
    assert (x.shape, y.shape) == ((4, 4), (4,))


# ------------------------------------------------------------------------------------ short texts


def big():
    """A network of 40 named parts, 200,000 numbers and names of 60 letters."""
    parts = {f"part_{'x' * 50}_{n}": fdl.dense(70) for n in range(40)}
    return fdl.chain(**parts)


@pytest.mark.filterwarnings("ignore:compare_optimizers. expected the best rate of")
def test_texts_of_values_are_short_and_say_what_they_are():
    net = fdl.chain(fdl.dense(8), fdl.relu, fdl.dropout(0.1), fdl.dense(8), head=fdl.dense(2))
    assert repr(net) == "<Layer chain of dense_0, relu_0, dropout_0, dense_1, head=dense>"
    assert repr(fdl.dense(2)) == "<Layer dense>"
    assert repr(run()) == RUN
    best = fdl.keep_best()
    assert repr(best) == "<keep_best('val_loss'): nothing yet>"
    result = fit(steps=4, record_every=1, validation=DATA, watch=[best])
    assert repr(result).startswith("<Result 'done', Run at step 4 of seed 0; params: 23 numbers in")
    assert "history: 4 records, the last {'step': 4.0," in repr(result)
    assert repr(best).startswith("<keep_best('val_loss'): 0.")
    assert repr(best).endswith(" at step 4; params: 23 numbers in 4 arrays>")
    found = compare(rates=[1e-3, 0.01, 0.1], steps=2)["sgd"]
    assert repr(found).startswith("<Sweep of 3 settings and 1 seeds, 2 steps; best: learning_rate ")
    assert repr(score()) == (
        f"<Supervised of {LAYER}; loss the function softmax_cross_entropy, accuracy the function "
        "accuracy>"
    )
    many = fdl.supervised(big(), fdl.squared_error, **{f"m{i}": fdl.accuracy for i in range(50)})
    for value in (net, run(), result, best, result.unfinished, found, big(), many):
        assert len(repr(value)) < 500
    assert len(repr(big())) < 220
    assert repr(fdl.data.digits()) == (
        "<Split of train (uint8 [1348, 8, 8, 1], int32 [1348]), test (uint8 [449, 8, 8, 1], int32 "
        "[449])>"
    )


@pytest.mark.parametrize("of", ["jit", "vmap", "eval_shape"])
def test_runs_have_a_text_under_transformations_too(of):
    texts = []

    def look(run):
        texts.append(repr(run))
        return run

    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run())
    {"jit": jax.jit, "vmap": jax.vmap, "eval_shape": lambda f: lambda x: jax.eval_shape(f, x)}[of](
        look
    )(many if of == "vmap" else run())
    assert texts[0].startswith("<Run at step uint32 [] of seed uint32 []; params: 23 numbers in 4")


@pytest.mark.parametrize("value", [{"a" * 9000: 1}, "b" * 9000, list(range(9000)), np.ones(9000)])
@pytest.mark.parametrize("who", ["count", "layer", "loss", "seed", "objective", "path"])
def test_no_message_is_flooded_by_a_value(who, value):
    calls = {
        "count": lambda: fdl.dense(value),
        "layer": lambda: fdl.chain(value),
        "loss": lambda: fdl.supervised(model(), value),
        "seed": lambda: fdl.start(params(), SGD, seed=value),
        "objective": lambda: fit(objective=value),
        "path": lambda: fdl.paths.PathError(f"expected a, got {value}; b", "a/b"),
    }
    if who == "path":
        assert len(str(calls[who]())) < 2000
        assert str(calls[who]()).endswith("; b")
        return
    with pytest.raises((ValueError, TypeError), match=r"expected .+, got .+; \w") as error:
        calls[who]()
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", ["fit", "evaluate"])
@pytest.mark.parametrize(
    ("x", "got"), [(np.array([object()] * 3), "object"), (np.array(["a", "b", "c"]), "<U1")]
)
def test_arrays_of_objects_and_of_text_are_named_before_anything_is_traced(kind, x, got):
    model, optimizer = fdl.dense(2), fdl.sgd(0.1)
    params, _ = model.init(jax.random.key(0), jnp.ones((3, 1)))
    objective = fdl.supervised(model, fdl.squared_error)
    run, data = fdl.start(params, optimizer), (x, np.ones((3, 2), np.float32))
    call = {
        "fit": lambda: fdl.fit(objective, optimizer, run, data, steps=1),
        "evaluate": lambda: fdl.evaluate(objective, run, data),
    }[kind]
    told = f"data at '0': expected numbers of a dtype that JAX has, got {got} [3]; encode text and "
    with pytest.raises(fdl.PathError, match=f"^{re.escape(told)}categories as integers"):
        call()


def test_a_list_given_to_a_layer_without_weights_is_named():
    told = "flatten: expected x to be an array, got a list; convert it with jnp.asarray"
    with pytest.raises(fdl.PathError, match=f"^{re.escape(told)}$"):
        fdl.flatten().apply({}, {}, [[1.0, 2.0]])


SEEDED_BUGS = {
    "fdl/train/checks.py": (
        "test_first_use.py",
        [
            ("if shapes[0] != shapes[1]:", "if False:"),
            ("isinstance(params[1], dict) and not params[1]", "params[1]"),
            ("callable(tree) and jax.tree_util.all_leaves([tree])", "callable(tree)"),
            ("bind_partial(None, None)", "bind(None, None)"),
            ('getattr(getattr(leaf, "dtype", None), "kind", None)', '"f"'),
        ],
    ),
}
