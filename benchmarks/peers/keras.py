"""Keras on JAX, as its guides show: layers, `compile` and `fit`."""

import keras
import numpy as np
from keras import layers

from benchmarks.peers import Block

TITLE = "Keras on JAX"
NEEDS = ("keras", "jax")


def training(work, x, y, form=""):
    keras.utils.set_random_seed(0)
    half = work.dtype == "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16" if half else "float32")
    return _Fit(work, x, y)


class _Fit:
    def __init__(self, work, x, y):
        inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
        output = layers.Activation("linear", dtype="float32")(
            NETWORKS[work.network](inputs, **work.sizes)
        )
        self.model = keras.Model(inputs, output)
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(
            optimizer=_optimizer(work),
            loss="mse" if work.loss == "squares" else entropy,
            metrics=["accuracy"] if work.kind == "start" else None,
        )
        self.x, self.y, self.batch, self.at = x, y, work.batch, 0

    def steps(self, count):
        """Trains with `fit` on the next `count` batches, or for whole passes from one pass on.

        `fit` shuffles the examples.
        """
        every = len(self.x) // self.batch
        passes, count = max(1, round(count / every)), min(count, every)
        if (self.at + count) * self.batch > len(self.x):
            self.at = 0
        part = slice(self.at * self.batch, (self.at + count) * self.batch)
        self.at += count
        history = self.model.fit(
            self.x[part], self.y[part], batch_size=self.batch, epochs=passes, verbose=0
        )
        return Block(float(np.mean(history.history["loss"])), passes * count)

    def accuracy(self, x, y):
        return self.model.evaluate(x, y, batch_size=1000, verbose=0, return_dict=True)["accuracy"]


def _optimizer(work):
    return {
        "sgd": lambda: keras.optimizers.SGD(work.rate),
        "momentum": lambda: keras.optimizers.SGD(work.rate, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(work.rate, epsilon=1e-8),
        "adamw": lambda: keras.optimizers.AdamW(work.rate, weight_decay=0.01, epsilon=1e-8),
    }[work.optimizer]()


def perceptron(x, inputs, hidden, outputs):
    for width in hidden:
        x = layers.Dense(width, activation="relu")(x)
    return layers.Dense(outputs)(x)


def autoencoder(x, inputs, hidden, code):
    return perceptron(perceptron(x, inputs, hidden, code), code, hidden[::-1], inputs)


def lenet(x, image):
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    return layers.Dense(10)(layers.Dense(128, activation="relu")(x))


def conv1d(x, channels):
    for number, (features, size) in enumerate([(32, 5), (64, 5), (128, 3)]):
        x = layers.MaxPooling1D(2)(x) if number else x
        x = layers.Conv1D(features, size, padding="same", activation="relu")(x)
    return layers.Dense(10)(layers.GlobalAveragePooling1D()(x))


def bag(ids, vocabulary, features):
    init = keras.initializers.RandomNormal(stddev=features**-0.5)
    x = layers.Embedding(vocabulary, features, embeddings_initializer=init)(ids)
    return layers.Dense(10)(layers.GlobalAveragePooling1D()(x))


def resnet(x, blocks, width):
    def normed(x, features, size, stride=1):
        x = layers.Conv2D(features, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.ReLU()(normed(x, width, 3))
    for stage in range(3):
        features = width * 2**stage
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            y = normed(layers.ReLU()(normed(x, features, 3, stride)), features, 3)
            x = normed(x, features, 1, stride) if stride > 1 else x
            x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


def block(x, heads, features, causal):
    h = layers.LayerNormalization(epsilon=1e-6)(x)
    attend = layers.MultiHeadAttention(heads, features // heads)
    x = layers.Add()([x, attend(h, h, use_causal_mask=causal)])
    h = layers.LayerNormalization(epsilon=1e-6)(x)
    h = layers.Dense(4 * features, activation=gelu)(h)
    return layers.Add()([x, layers.Dense(features)(h)])


def gelu(x):
    return keras.activations.gelu(x, approximate=True)


@keras.saving.register_keras_serializable()
class Positions(layers.Layer):
    def build(self, shape):
        init = keras.initializers.RandomNormal(stddev=0.02)
        self.w = self.add_weight(shape=shape[1:], initializer=init, name="w")

    def call(self, x):
        return x + keras.ops.cast(self.w, x.dtype)


def gpt(ids, vocabulary, length, layers_, heads, features):
    x = Positions()(layers.Embedding(vocabulary, features)(ids))
    for _ in range(layers_):
        x = block(x, heads, features, True)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return layers.Dense(vocabulary, use_bias=False)(x)


def vit(x, image, patch, layers_, heads, features):
    x = layers.Conv2D(features, patch, patch)(x)
    x = Positions()(layers.Reshape((-1, features))(x))
    for _ in range(layers_):
        x = block(x, heads, features, False)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return layers.Dense(10)(layers.GlobalAveragePooling1D()(x))


def lstm(x, inputs, features):
    return layers.Dense(10)(layers.LSTM(features)(x))


def gru(x, inputs, features):
    return layers.Dense(10)(layers.GRU(features)(x))


def _stack(network):
    """Passes the size `layers` as `layers_`, because `layers` is Keras's module here."""
    return lambda x, layers, **sizes: network(x, layers_=layers, **sizes)


NETWORKS = {
    "perceptron": perceptron,
    "lenet": lenet,
    "resnet": resnet,
    "gpt": _stack(gpt),
    "vit": _stack(vit),
    "lstm": lstm,
    "gru": gru,
    "autoencoder": autoencoder,
    "conv1d": conv1d,
    "bag": bag,
}
