"""Weights of Flax, Keras, Haiku and Equinox: the same outputs in fdl, and the same bits back."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.port import from_pytree, to_pytree
from tests.port.test_torch_weights import WITHOUT, assert_bits, refused, shaped

RNG = np.random.default_rng(3)
IMAGES = jnp.asarray(RNG.normal(size=(2, 5, 4, 3)), jnp.float32)
WORDS = jnp.asarray(RNG.integers(0, 7, (2, 5)))

# Two networks in fdl, whose layers have the names of the tables.

CONVOLUTIONAL = fdl.chain(
    conv=fdl.conv(4, (3, 3)),
    norm=fdl.batch_norm(),
    act=fdl.relu,
    flat=fdl.flatten(),
    head=fdl.dense(5),
    last=fdl.layer_norm(),
)
PARTS = {
    "embed": fdl.embedding(7, 6),
    "lstm": fdl.lstm(6),
    "gru": fdl.gru(6),
    "attend": fdl.attention(2),
    "out": fdl.dense(3),
}


def like(model, x):
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    return {"params": params, "state": state}


def recurrent(*names):
    return fdl.chain(**{name: PARTS[name] for name in names})


# For each library, the names and shapes of its arrays, and the table of each network. Where the
# library is installed, these names and shapes are compared with it.

LINEN_IMAGES = {
    "batch_stats.BatchNorm_0.mean": (4,),
    "batch_stats.BatchNorm_0.var": (4,),
    "params.BatchNorm_0.bias": (4,),
    "params.BatchNorm_0.scale": (4,),
    "params.Conv_0.bias": (4,),
    "params.Conv_0.kernel": (3, 3, 3, 4),
    "params.Dense_0.bias": (5,),
    "params.Dense_0.kernel": (80, 5),
    "params.LayerNorm_0.bias": (5,),
    "params.LayerNorm_0.scale": (5,),
}
LINEN_IMAGES_TABLE = {
    "params/conv/{w,b}": "params.Conv_0.{kernel,bias}",
    "params/norm/{scale,bias}": "params.BatchNorm_0.{scale,bias}",
    "state/norm/{mean,variance}": "batch_stats.BatchNorm_0.{mean,var}",
    "params/head/{w,b}": "params.Dense_0.{kernel,bias}",
    "params/last/{scale,bias}": "params.LayerNorm_0.{scale,bias}",
}
HEADS = "h=2"  # of attention in Flax and Keras, whose kernels have an axis for the heads
FLAX_WORDS_TABLE = {
    "params/embed/w": "embed.embedding",
    "params/lstm/input/w": "lstm.{ii,if,ig,io}.kernel | join 1",
    "params/lstm/hidden/w": "lstm.{hi,hf,hg,ho}.kernel | join 1",
    "params/lstm/input/b": "lstm.{hi,hf,hg,ho}.bias | join 0",
    "params/gru/input/w": "gru.{ir,iz,in}.kernel | join 1",
    "params/gru/hidden/w": "gru.{hr,hz,hn}.kernel | join 1",
    "params/gru/input/b": "gru.{ir,iz,in}.bias | join 0",
    "params/gru/hidden/b": "gru.hn.bias",
    "params/attend/{q,k,v}/w": f"attend.{{query,key,value}}.kernel: d h k -> d (h k), {HEADS}",
    "params/attend/{q,k,v}/b": f"attend.{{query,key,value}}.bias: h k -> (h k), {HEADS}",
    "params/attend/out/w": f"attend.out.kernel: h k d -> (h k) d, {HEADS}",
    "params/attend/out/b": "attend.out.bias",
    "params/out/{w,b}": "out.{kernel,bias}",
}
KERAS_IMAGES = {
    "conv2d/kernel": (3, 3, 3, 4),
    "conv2d/bias": (4,),
    "batch_normalization/gamma": (4,),
    "batch_normalization/beta": (4,),
    "batch_normalization/moving_mean": (4,),
    "batch_normalization/moving_variance": (4,),
    "dense/kernel": (80, 5),
    "dense/bias": (5,),
    "layer_normalization/gamma": (5,),
    "layer_normalization/beta": (5,),
}
KERAS_IMAGES_TABLE = {
    "params/conv/{w,b}": "conv2d.{kernel,bias}",
    "params/norm/{scale,bias}": "batch_normalization.{gamma,beta}",
    "state/norm/{mean,variance}": "batch_normalization.{moving_mean,moving_variance}",
    "params/head/{w,b}": "dense.{kernel,bias}",
    "params/last/{scale,bias}": "layer_normalization.{gamma,beta}",
}
KERAS_WORDS_TABLE = {
    "params/embed/w": "embed.embeddings",
    "params/lstm/input/{w,b}": "lstm.lstm_cell.{kernel,bias}",
    "params/lstm/hidden/w": "lstm.lstm_cell.recurrent_kernel",
    "params/attend/{q,k,v}/w": f"attend.{{query,key,value}}.kernel: d h k -> d (h k), {HEADS}",
    "params/attend/{q,k,v}/b": f"attend.{{query,key,value}}.bias: h k -> (h k), {HEADS}",
    "params/attend/out/w": f"attend.attention_output.kernel: h k d -> (h k) d, {HEADS}",
    "params/attend/out/b": "attend.attention_output.bias",
    "params/out/{w,b}": "out.{kernel,bias}",
}
HAIKU_IMAGES = {
    "batch_norm/offset": (1, 1, 1, 4),
    "batch_norm/scale": (1, 1, 1, 4),
    "batch_norm/~/mean_ema/average": (1, 1, 1, 4),
    "batch_norm/~/var_ema/average": (1, 1, 1, 4),
    "conv2_d/b": (4,),
    "conv2_d/w": (3, 3, 3, 4),
    "layer_norm/offset": (5,),
    "layer_norm/scale": (5,),
    "linear/b": (5,),
    "linear/w": (80, 5),
}
HAIKU_IMAGES_TABLE = {
    "params/conv/{w,b}": "0.conv2_d.{w,b}",
    "params/norm/{scale,bias}": "0.batch_norm.{scale,offset}: 1 1 1 c -> c",
    "state/norm/{mean,variance}": "1.batch_norm.~.{mean,var}_ema.average: 1 1 1 c -> c",
    "params/head/{w,b}": "0.linear.{w,b}",
    "params/last/{scale,bias}": "0.layer_norm.{scale,offset}",
    None: ["1.batch_norm.~.*.hidden", "1.batch_norm.~.*.counter"],
}
HAIKU_WORDS_TABLE = {
    "params/embed/w": "embed.embeddings",
    "params/attend/{q,k,v}/{w,b}": "attend.{query,key,value}.{w,b}",
    "params/attend/out/{w,b}": "attend.linear.{w,b}",
    "params/out/{w,b}": "out.{w,b}",
}
EQUINOX_IMAGES_TABLE = {
    "params/conv/w": "0.conv.weight: o i h w -> h w i o",
    "params/conv/b": "0.conv.bias: o 1 1 -> o",
    "params/norm/{scale,bias}": "0.norm.{weight,bias}",
    "state/norm/{mean,variance}": "1.1.{0,1}",
    "params/head/w": "0.head.weight: o (c h w) -> (h w c) o, h=5 w=4",
    "params/head/b": "0.head.bias",
    "params/last/{scale,bias}": "0.last.{weight,bias}",
    None: ["1.0"],  # whether a step was taken
}
EQUINOX_WORDS_TABLE = {
    "params/embed/w": "embed.weight",
    "params/{lstm,gru}/input/w": "{lstm,gru}.weight_ih: o i -> i o",
    "params/{lstm,gru}/hidden/w": "{lstm,gru}.weight_hh: o i -> i o",
    "params/{lstm,gru}/input/b": "{lstm,gru}.bias",
    "params/gru/hidden/b": "gru.bias_n",
    "params/attend/{q,k,v}/w": "attend.{query,key,value}_proj.weight: o i -> i o",
    "params/attend/{q,k,v}/b": "attend.{query,key,value}_proj.bias",
    "params/attend/out/w": "attend.output_proj.weight: o i -> i o",
    "params/attend/out/b": "attend.output_proj.bias",
    "params/out/w": "out.weight: o i -> i o",
    "params/out/b": "out.bias",
}


def drawn(leaf):
    """Other numbers, so that no bias is 0; positive ones for vectors, which may be variances."""
    if not hasattr(leaf, "dtype") or leaf.dtype != np.float32:
        return leaf
    if leaf.size == max(leaf.shape):
        return jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    return jnp.asarray(RNG.normal(size=leaf.shape) / leaf.size**0.3, jnp.float32)


def assert_moves(source, model, x, table, wanted):
    """fdl gives the outputs of the other library, which gets the same bits back."""
    found = from_pytree(source, like(model, x), table)
    y, _ = model.apply(found["params"], found["state"], x)
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-6)

    def zeros(leaf):
        return jnp.zeros_like(leaf) if hasattr(leaf, "dtype") else leaf

    kept = {None: []} | table
    back = to_pytree(found, source, table)
    assert jax.tree.structure(back) == jax.tree.structure(source)
    assert_arrays(back, source)
    if not kept[None]:
        assert_arrays(to_pytree(found, jax.tree.map(zeros, source), table), source)


def assert_arrays(one, other):
    arrays = [
        {path: leaf for path, leaf in fdl.paths.leaves(tree).items() if hasattr(leaf, "dtype")}
        for tree in (one, other)
    ]
    assert arrays[0]
    assert_bits(*({path: np.asarray(leaf) for path, leaf in each.items()} for each in arrays))


def shapes(tree):
    return {path: leaf.shape for path, leaf in fdl.paths.leaves(tree).items()}


# Each library.


def test_flax_linen():
    nn = pytest.importorskip("flax.linen")

    class Images(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
            return nn.LayerNorm(epsilon=1e-5)(nn.Dense(5)(x.reshape(2, -1)))

    class Words(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.OptimizedLSTMCell(6, name="lstm"))(nn.Embed(7, 6, name="embed")(x))
            x = nn.RNN(nn.GRUCell(6, name="gru"))(x)
            x = nn.MultiHeadDotProductAttention(2, name="attend")(x)
            return nn.Dense(3, name="out")(x)

    variables = jax.tree.map(drawn, Images().init(jax.random.key(0), IMAGES))
    assert shapes(variables) == {k.replace(".", "/"): v for k, v in LINEN_IMAGES.items()}
    wanted = Images().apply(variables, IMAGES)
    assert_moves(variables, CONVOLUTIONAL, IMAGES, LINEN_IMAGES_TABLE, wanted)
    variables = jax.tree.map(drawn, Words().init(jax.random.key(0), WORDS))
    wanted, model = Words().apply(variables, WORDS), recurrent(*PARTS)
    assert_moves(variables["params"], model, WORDS, FLAX_WORDS_TABLE, wanted)
    boxed = nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.ones, ("a", "b")))
    variables = boxed.init(jax.random.key(0), jnp.ones((1, 3)))
    found = from_pytree(variables, shaped(w=(3, 2), b=(2,)))
    assert_bits(to_pytree(found, variables), variables)


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Images(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Conv(3, 4, (3, 3), rngs=rngs)])
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.head = nnx.Linear(80, 5, rngs=rngs)
            self.last = nnx.LayerNorm(5, epsilon=1e-5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.layers[0](x)))
            return self.last(self.head(self.drop(x.reshape(2, -1))))

    model = Images(nnx.Rngs(0))
    nnx.update(model, jax.tree.map(drawn, nnx.state(model)))
    table = {
        "params/conv/{w,b}": "layers.0.{kernel,bias}",
        "params/norm/{scale,bias}": "norm.{scale,bias}",
        "state/norm/{mean,variance}": "norm.{mean,var}",
        "params/head/{w,b}": "head.{kernel,bias}",
        "params/last/{scale,bias}": "last.{scale,bias}",
        None: ["drop.rngs.count"],
    }
    fdl_like = like(CONVOLUTIONAL, IMAGES)
    for source in nnx.state(model), model:
        found = from_pytree(source, fdl_like, table)
        y, _ = CONVOLUTIONAL.apply(found["params"], found["state"], IMAGES)
        np.testing.assert_allclose(y, model(IMAGES), rtol=2e-6, atol=1e-6)
    other = Images(nnx.Rngs(1))
    nnx.update(other, to_pytree(found, nnx.state(other), table))
    assert (other(IMAGES) == model(IMAGES)).all()
    assert_bits(from_pytree(nnx.state(other, (nnx.Param, nnx.BatchStat)), fdl_like), found)


def keras_networks():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    x = keras.Input((5, 4, 3))
    y = layers.Conv2D(4, 3, padding="same", name="conv2d")(x)
    y = layers.BatchNormalization(epsilon=1e-5, name="batch_normalization")(y)
    y = layers.Dense(5, name="dense")(layers.Flatten()(layers.ReLU()(y)))
    images = keras.Model(x, layers.LayerNormalization(epsilon=1e-5, name="layer_normalization")(y))
    x = keras.Input((5,), dtype="int32")
    y = layers.Embedding(7, 6, name="embed")(x)
    y = layers.LSTM(6, return_sequences=True, name="lstm")(y)
    y = layers.MultiHeadAttention(2, 3, name="attend")(y, y)
    return images, keras.Model(x, layers.Dense(3, name="out")(y))


@pytest.mark.filterwarnings("ignore")
def test_keras():
    images, words = keras_networks()
    for model, net, x, table in (
        (images, CONVOLUTIONAL, IMAGES, KERAS_IMAGES_TABLE),
        (words, recurrent("embed", "lstm", "attend", "out"), WORDS, KERAS_WORDS_TABLE),
    ):
        for v in model.weights:
            v.assign(drawn(v.value))
        source = {v.path: v.numpy() for v in model.weights}
        assert model is words or {k: v.shape for k, v in source.items()} == KERAS_IMAGES
        wanted = np.asarray(model(x))
        assert_moves(source, net, x, table, wanted)
        new = like(net, x)
        new = jax.tree.map(lambda leaf: drawn(jnp.zeros(leaf.shape)), new)
        for v in model.weights:
            v.assign(to_pytree(new, source, table)[v.path])
        y, _ = net.apply(new["params"], new["state"], x)
        np.testing.assert_allclose(y, np.asarray(model(x)), rtol=2e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_haiku():
    hk = pytest.importorskip("haiku")

    def images(x, training=False):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), training))
        return hk.LayerNorm(-1, True, True)(hk.Linear(5)(hk.Flatten()(x)))

    def words(x):
        x = hk.Embed(7, 6, name="embed")(x)
        init = hk.initializers.RandomNormal()
        x = hk.MultiHeadAttention(2, 3, w_init=init, model_size=6, name="attend")(x, x, x)
        return hk.Linear(3, name="out")(x)

    net = hk.without_apply_rng(hk.transform_with_state(images))
    source = jax.tree.map(drawn, net.init(jax.random.key(0), IMAGES, training=True))
    found = {k: v for tree in source for k, v in shapes(tree).items()}
    assert {k: v for k, v in found.items() if not k.endswith(("hidden", "counter"))} == HAIKU_IMAGES
    wanted, _ = net.apply(*source, IMAGES)
    assert_moves(source, CONVOLUTIONAL, IMAGES, HAIKU_IMAGES_TABLE, wanted)
    net = hk.without_apply_rng(hk.transform(words))
    source = jax.tree.map(drawn, net.init(jax.random.key(0), WORDS))
    model = recurrent("embed", "attend", "out")
    assert_moves(source, model, WORDS, HAIKU_WORDS_TABLE, net.apply(source, WORDS))


@pytest.mark.filterwarnings("ignore")
def test_equinox():
    eqx = pytest.importorskip("equinox")
    nn, key = eqx.nn, jax.random.key(0)

    class Images(eqx.Module):
        conv: nn.Conv2d
        norm: nn.BatchNorm
        act: object
        head: nn.Linear
        last: nn.LayerNorm

        def __call__(self, x, state):
            x, _ = self.norm(self.conv(x), state, inference=True)
            return self.last(self.head(self.act(x).ravel()))

    class Words(eqx.Module):
        embed: nn.Embedding
        lstm: nn.LSTMCell
        gru: nn.GRUCell
        attend: nn.MultiheadAttention
        out: nn.Linear

        def __call__(self, x):
            x = jax.vmap(self.embed)(x)
            zeros = jnp.zeros(6)

            def steps(cell, carry, x):
                def step(carry, each):
                    carry = cell(each, carry)
                    return carry, carry[0] if isinstance(carry, tuple) else carry

                return jax.lax.scan(step, carry, x)[1]

            x = steps(self.gru, zeros, steps(self.lstm, (zeros, zeros), x))
            return jax.vmap(self.out)(self.attend(x, x, x))

    def made():
        norm = nn.BatchNorm(4, "batch", mode="ema")
        conv, head = nn.Conv2d(3, 4, 3, padding=1, key=key), nn.Linear(80, 5, key=key)
        return Images(conv, norm, jax.nn.relu, head, nn.LayerNorm(5))

    source = jax.tree.map(drawn, nn.make_with_state(made)())
    wanted = jax.vmap(source[0], (0, None))(IMAGES.transpose(0, 3, 1, 2), source[1])
    assert_moves(source, CONVOLUTIONAL, IMAGES, EQUINOX_IMAGES_TABLE, wanted)
    biases = {f"use_{each}_bias": True for each in ("query", "key", "value", "output")}
    attend = nn.MultiheadAttention(2, 6, **biases, key=key)
    lstm, gru = nn.LSTMCell(6, 6, key=key), nn.GRUCell(6, 6, key=key)
    source = Words(nn.Embedding(7, 6, key=key), lstm, gru, attend, nn.Linear(6, 3, key=key))
    source = jax.tree.map(drawn, source)
    wanted, model = jax.vmap(source)(WORDS), recurrent(*PARTS)
    assert_moves(source, model, WORDS, EQUINOX_WORDS_TABLE, wanted)
    assert isinstance(
        to_pytree(
            from_pytree(source, like(model, WORDS), EQUINOX_WORDS_TABLE),
            source,
            EQUINOX_WORDS_TABLE,
        ),
        Words,
    )


# The same names and layouts without the libraries.


def arrays(shapes):
    return {name: drawn(jnp.zeros(shape)) for name, shape in shapes.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A layer as in Equinox: its attributes are the keys."""

    weight: object
    bias: object = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Network:
    conv: Module
    norm: Module
    act: object
    head: Module
    last: Module


def plain_equinox():
    w = arrays({"conv": (4, 3, 3, 3), "norm": (4,), "head": (5, 80), "last": (5,)})
    b = arrays({"conv": (4, 1, 1), "norm": (4,), "head": (5,), "last": (5,)})
    layers = {name: Module(w[name], b[name]) for name in w}
    return Network(act=jax.nn.relu, **layers), {
        0: jnp.array(True),
        1: list(arrays({0: 4, 1: 4}).values()),
    }


def plain_haiku():
    found = arrays(HAIKU_IMAGES)
    trees = {}, {}
    for name, array in found.items():
        module, _, leaf = name.rpartition("/")
        trees["~" in name].setdefault(module, {})[leaf] = array
    for module in trees[1].values():
        module |= {"hidden": module["average"] * 2, "counter": jnp.array(3)}
    return trees


def channels_last(kernel):
    return kernel.reshape(5, 4, 5, 4).transpose(2, 3, 1, 0).reshape(80, 5)


PLAIN = {
    "linen": (
        lambda: fdl.paths.tree({k.replace(".", "/"): v for k, v in arrays(LINEN_IMAGES).items()}),
        LINEN_IMAGES_TABLE,
        lambda s: (
            s["params"]["Conv_0"]["kernel"],
            s["params"]["Dense_0"]["kernel"],
            s["batch_stats"]["BatchNorm_0"]["var"],
        ),
    ),
    "keras": (
        lambda: arrays(KERAS_IMAGES),
        KERAS_IMAGES_TABLE,
        lambda s: (
            s["conv2d/kernel"],
            s["dense/kernel"],
            s["batch_normalization/moving_variance"],
        ),
    ),
    "haiku": (
        plain_haiku,
        HAIKU_IMAGES_TABLE,
        lambda s: (
            s[0]["conv2_d"]["w"],
            s[0]["linear"]["w"],
            s[1]["batch_norm/~/var_ema"]["average"].reshape(-1),
        ),
    ),
    "equinox": (
        plain_equinox,
        EQUINOX_IMAGES_TABLE,
        lambda s: (
            s[0].conv.weight.transpose(2, 3, 1, 0),
            channels_last(s[0].head.weight),
            s[1][1][1],
        ),
    ),
}


@pytest.mark.parametrize("library", PLAIN)
def test_names_and_layouts_of_each_library(library):
    make, table, chosen = PLAIN[library]
    source, shape = make(), like(CONVOLUTIONAL, IMAGES)
    found = from_pytree(source, shape, table)
    params, wanted = found["params"], chosen(source)
    got = params["conv"]["w"], params["head"]["w"], found["state"]["norm"]["variance"]
    assert_bits(list(got), list(wanted))
    back = to_pytree(found, source, table)
    assert jax.tree.structure(back) == jax.tree.structure(source)
    assert_arrays(back, source)
    if library in ("linen", "keras"):
        assert_bits(from_pytree(source, shape), found)
        assert_bits(to_pytree(found, source), source)


def test_a_network_of_flax_in_fdl_and_back():
    """The words of Flax, with plain dicts: the parts of each gate are where they were."""
    model = recurrent(*PARTS)
    new = jax.tree.map(lambda leaf: drawn(jnp.zeros(leaf.shape)), like(model, WORDS))
    gates = [f"{a}{b}" for a in "ih" for b in "ifgo"]
    cell = {gate: {"kernel": jnp.zeros((6, 6))} for gate in gates}
    for gate in gates[4:]:
        cell[gate]["bias"] = jnp.zeros(6)
    table = {path: rule for path, rule in FLAX_WORDS_TABLE.items() if "lstm" in path}
    lstm = {"params": {"lstm": new["params"]["lstm"]}}
    made = to_pytree(lstm, {"lstm": cell}, table)["lstm"]
    assert_bits(made["if"]["kernel"], lstm["params"]["lstm"]["input"]["w"][:, 6:12])
    assert_bits(made["ho"]["bias"], lstm["params"]["lstm"]["input"]["b"][18:])
    assert_bits(from_pytree({"lstm": made}, lstm, table), lstm)


# Without a table.


@pytest.mark.parametrize(
    "names",
    [
        ("weight: o i -> i o", "weight: o i h w -> h w i o", "bias: o 1 1 -> o", "weight"),
        ("kernel", "kernel", "bias", "embedding"),
        ("kernel", "kernel", "bias", "embeddings"),
        ("w", "w", "b", "embeddings"),
    ],
)
def test_pairs_that_are_certain_need_no_table(names):
    dense, conv, bias, embedding = names
    params = {
        "conv": {"w": drawn(jnp.zeros((3, 3, 2, 4))), "b": drawn(jnp.zeros(4))},
        "dense": {"w": drawn(jnp.zeros((4, 6)))},
        "embed": {"w": drawn(jnp.zeros((9, 4)))},
    }
    table = {
        "conv/w": f"params.c.{conv}",
        "conv/b": f"params.c.{bias}",
        "dense/w": f"params.d.{dense}",
        "embed/w": f"batch_stats.e.{embedding}",
    }
    tensors = fdl.port.to_torch(params, table)
    source = fdl.paths.tree({name.replace(".", "/"): each for name, each in tensors.items()})
    assert_bits(from_pytree(source, params), params)
    assert_bits(to_pytree(params, source), source)


def test_a_scale_alone_is_a_norm():
    source = {"norm": {"scale": np.ones(3, np.float32)}}
    assert from_pytree(source, {"n": {"scale": jnp.zeros(3)}})["n"]["scale"].sum() == 3


def test_a_flattened_image_of_equinox_is_refused_without_a_table():
    with pytest.raises(ValueError, match=r"^from_pytree: expected dense layers that read channels"):
        from_pytree(plain_equinox()[0], like(CONVOLUTIONAL, IMAGES)["params"])


def test_a_transposed_convolution_is_refused_without_a_table():
    source = {"ConvTranspose_0": {"kernel": np.ones((3, 3, 4, 4), np.float32)}}
    shape = shaped(**{"up/w": (3, 3, 4, 4)})
    refused(
        lambda: from_pytree(source, shape),
        "from_pytree: expected names for a transposed convolution, whose kernel differs between "
        "libraries, got none for 'ConvTranspose_0.kernel'; write names with a rule for each path",
    )
    assert from_pytree(source, shape, {"up/w": "ConvTranspose_0.kernel"})["up"]["w"].sum() == 144


def test_pairs_that_are_not_certain_are_refused():
    source = {"params": {"a": {"kernel": np.ones((3, 3), np.float32)}}}
    refused(
        lambda: to_pytree({"d": {"w": jnp.zeros((3, 4))}}, source),
        f"to_pytree: expected one module for each layer, got 1 layers and 1 modules without a "
        f"certain pair; {WITHOUT}",
        "layer d: w [3, 4]",
        "module a: kernel [3, 3]",
    )


# What is not an array, and what does not fit.


def test_other_leaves_are_ignored_and_kept():
    source = {"w": jnp.ones(2), "rate": 0.5, "act": jax.nn.relu, "key": jax.random.key(0), "n": "x"}
    found = from_pytree(source, {"p": jnp.zeros(2)}, {"p": "w"})
    assert_bits(found, {"p": jnp.ones(2)})
    back = to_pytree({"p": jnp.zeros(2)}, source, {"p": "w"})
    assert_bits(back.pop("w"), jnp.zeros(2))
    assert back == {key: each for key, each in source.items() if key != "w"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    value: object
    query: object = None


def test_only_the_level_of_a_box_with_one_array_is_left_out():
    source = {"a": Box(np.ones(2)), "b": Box(np.ones(2), np.ones(1))}
    with pytest.raises(ValueError, match="a table that differs") as seen:
        from_pytree(source, {"p": jnp.zeros(2)}, {"q": "a"})
    assert "no rule: p" in str(seen.value)
    with pytest.raises(ValueError, match="differs at 2 names") as seen:
        from_pytree(source, {"p": jnp.zeros(2)}, {"p": "a"}, cast=True)
    assert [line.split()[1] for line in str(seen.value).splitlines()[1:]] == ["b.value", "b.query"]


def test_numpy_arrays_stay_numpy_arrays():
    like = {"a": np.ones(2, np.float32), "b": jnp.ones(2)}
    found = to_pytree({"a": jnp.zeros(2), "b": jnp.zeros(2)}, like, {"a": "a", "b": "b"})
    assert isinstance(found["a"], np.ndarray) and isinstance(found["b"], jax.Array)


def test_two_arrays_of_one_name_are_refused():
    source = {"a": {"b": np.ones(1)}, "a/b": np.ones(1)}
    message = (
        "from_pytree: expected a name for each array, got 'a.b' for ['a']['b'] and ['a/b']; rename "
        "one of the two keys"
    )
    refused(lambda: from_pytree(source, {"p": jnp.ones(1)}, {"p": "a.b"}), message)


def test_every_array_that_does_not_fit_is_listed():
    table = {"w": "d.kernel", "b": "d.bias", None: ["old"]}
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    source = {"d": {"kernel": np.ones((2, 3), np.float32), "offset": np.ones(2, np.float32)}}
    refused(
        lambda: from_pytree(source, params, table),
        "from_pytree: expected tensors that fit the 2 paths of like, got a pytree that differs at "
        "3 names; correct names, or pass the params of another model",
        "missing: d.bias for b float32 [2]",
        "unexpected: d.offset float32 [2]",
        "different: w float32 [3, 2], got d.kernel float32 [2, 3] by the rule 'w': 'd.kernel'",
    )
    refused(
        lambda: to_pytree(params, source, table),
        "to_pytree: expected params that fit the 2 arrays of like, got params and a table that "
        "differ at 3 names; correct names, or leave out names with None",
        "missing: d.bias float32 [2]",
        "not written: d.offset float32 [2]",
        "different: d.kernel float32 [2, 3], got float32 [3, 2]",
    )
    half = {"d": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match=re.escape("different: d bfloat16 [2], got float32 [2]")):
        to_pytree({"b": jnp.ones(2)}, half, {"b": "d"})
    assert from_pytree(half, {"b": jnp.zeros(2)}, {"b": "d"}, cast=True)["b"].dtype == jnp.float32


def test_a_tied_array_may_be_there_once():
    table = {"e": "embed.embedding = head.kernel"}
    like = {"embed": {"embedding": np.zeros((7, 3), np.float32)}}
    found = to_pytree({"e": jnp.ones((7, 3))}, like, table)
    assert found["embed"]["embedding"].sum() == 21
    with pytest.raises(ValueError, match=r"missing: embed\.embedding"):
        to_pytree({"e": jnp.ones((7, 3))}, {"other": np.zeros(1)}, table)


SEEDED_BUGS = {
    "fdl/port/pytrees.py": (
        "port/test_pytrees.py",
        [
            ('.replace("/", ".")', ""),
            ("boxed = keys[-1:] == (_VALUE,) and below[keys[:-1]] == 1", "boxed = False"),
            ("and below[keys[:-1]] == 1", ""),
            ("if name in places:", "if False:"),
            ("isinstance(leaf, jax.Array) and jnp", "False and jnp"),
            ("lambda match: whole[match[0]]", "lambda match: match[0]"),
            ("if turned:", "if False:"),
            ("array if isinstance(leaves[at], np.ndarray) else", ""),
            ("if name not in tensors and not table.leaves_out(name)", "if name not in tensors"),
            ("if name not in tensors and not table.leaves_out(name)", "if False"),
            ("if name in arrays and kind(arrays[name]) != kind(array)", "if False"),
            ("if name not in arrays and name not in tied", "if False"),
            ("if name not in arrays and name not in tied", "if name not in arrays"),
            ("and set(pair.names) & set(arrays)", ""),
        ],
    ),
    "fdl/port/default_names.py": (
        "port/test_pytrees.py",
        [
            ('if not any(leaf == "weight"', 'if any(leaf == "weight"'),
            ("list(dict.fromkeys(", "list(("),
            (
                '"mean": "moving_mean", "variance": "moving_variance"',
                '"mean": "moving_variance", "variance": "moving_mean"',
            ),
            ('("embedding", "embeddings")', '("embedding",)'),
        ],
    ),
}
