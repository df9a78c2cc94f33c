"""Haiku, as its examples show: functions transformed to pure ones, optax, and a jitted step."""

import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.peers import jax_loops

TITLE = "Haiku"
NEEDS = ("haiku", "optax")


def training(work, x, y, form=""):
    model = _transformed(work)
    params, state = jax.jit(model.init)(jax.random.key(0), x[:1])

    def apply(params, state, x, train):
        params, x = jax_loops.in_dtype(work, (params, x))
        return model.apply(params, state, None, x, train)

    return jax_loops.training(work, x, y, params, state, apply)


def sweep(work, x, y, form=""):
    model = _transformed(work)
    init = lambda key: model.init(key, x[:1])[0]  # noqa: E731
    return jax_loops.sweep(
        work, x, y, init, lambda params, state, x, train: model.apply(params, state, None, x, train)
    )


def _transformed(work):
    network = NETWORKS[work.network]
    return hk.transform_with_state(lambda x, train=True: network(x, train, **work.sizes))


def perceptron(x, train, inputs, hidden, outputs):
    return hk.nets.MLP([*hidden, outputs])(x)


def autoencoder(x, train, inputs, hidden, code):
    return hk.nets.MLP([*hidden[::-1], inputs])(hk.nets.MLP([*hidden, code])(x))


def lenet(x, train, image):
    return hk.Sequential(
        [
            hk.Conv2D(32, 3),
            jax.nn.relu,
            hk.Conv2D(64, 3),
            jax.nn.relu,
            hk.MaxPool(2, 2, "VALID"),
            hk.Flatten(),
            hk.Linear(128),
            jax.nn.relu,
            hk.Linear(10),
        ]
    )(x)


def conv1d(x, train, channels):
    for number, (features, size) in enumerate([(32, 5), (64, 5), (128, 3)]):
        if number:
            x = hk.max_pool(x, (1, 2, 1), (1, 2, 1), "VALID")
        x = jax.nn.relu(hk.Conv1D(features, size)(x))
    return hk.Linear(10)(x.mean(1))


def bag(ids, train, vocabulary, features):
    init = hk.initializers.RandomNormal(features**-0.5)
    return hk.Linear(10)(hk.Embed(vocabulary, features, w_init=init)(ids).mean(1))


def resnet(x, train, blocks, width):
    def normed(x, features, size, stride=1):
        x = hk.Conv2D(features, size, stride, with_bias=False)(x)
        return hk.BatchNorm(True, True, 0.9)(x, is_training=train)

    x = jax.nn.relu(normed(x, width, 3))
    for stage in range(3):
        features = width * 2**stage
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            y = normed(jax.nn.relu(normed(x, features, 3, stride)), features, 3)
            x = jax.nn.relu(y + (normed(x, features, 1, stride) if stride > 1 else x))
    return hk.Linear(10)(x.mean((1, 2)))


def block(x, heads, mask=None):
    features = x.shape[-1]
    w_init = hk.initializers.VarianceScaling(1.0)
    attend = hk.MultiHeadAttention(heads, features // heads, w_init=w_init, model_size=features)
    h = hk.LayerNorm(-1, True, True)(x)
    x = x + attend(h, h, h, mask=mask)
    h = jax.nn.gelu(hk.Linear(4 * features)(hk.LayerNorm(-1, True, True)(x)))
    return x + hk.Linear(features)(h)


def positions(x):
    init = hk.initializers.RandomNormal(0.02)
    return x + hk.get_parameter("positions", x.shape[1:], init=init).astype(x.dtype)


def gpt(ids, train, vocabulary, length, layers, heads, features):
    x = positions(hk.Embed(vocabulary, features)(ids))
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    for _ in range(layers):
        x = block(x, heads, mask)
    return hk.Linear(vocabulary, with_bias=False)(hk.LayerNorm(-1, True, True)(x))


def vit(x, train, image, patch, layers, heads, features):
    x = hk.Conv2D(features, patch, patch)(x)
    x = positions(x.reshape(len(x), -1, features))
    for _ in range(layers):
        x = block(x, heads)
    return hk.Linear(10)(hk.LayerNorm(-1, True, True)(x).mean(1))


def lstm(x, train, inputs, features):
    return _unrolled(hk.LSTM(features), x)


def gru(x, train, inputs, features):
    return _unrolled(hk.GRU(features), x)


def _unrolled(core, x):
    y, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(len(x)))
    return hk.Linear(10)(y[-1])


NETWORKS = {
    "perceptron": perceptron,
    "lenet": lenet,
    "resnet": resnet,
    "gpt": gpt,
    "vit": vit,
    "lstm": lstm,
    "gru": gru,
    "autoencoder": autoencoder,
    "conv1d": conv1d,
    "bag": bag,
}
