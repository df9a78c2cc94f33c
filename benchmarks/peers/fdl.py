"""fdl, as its README shows: a model, an objective, an optimizer, and `fit`."""

import jax
import jax.numpy as jnp
import numpy as np

import fdl
from benchmarks.peers import Block

TITLE = "fdl"
NEEDS = ("jax",)

OPTIMIZERS = {
    "sgd": fdl.sgd,
    "momentum": lambda rate: fdl.sgd(rate, momentum=0.9),
    "adam": fdl.adam,
    "adamw": lambda rate: fdl.adamw(rate, weight_decay=0.01),
}
LOSSES = {"classes": fdl.softmax_cross_entropy, "squares": fdl.squared_error}


def training(work, x, y, form=""):
    return _Fit(work, x, y)


class _Fit:
    def __init__(self, work, x, y):
        model, self.batch = _model(work), work.batch
        params, state = model.init(jax.random.key(0), x[:1])
        metrics = {"accuracy": fdl.accuracy} if work.kind == "start" else {}
        self.objective = fdl.supervised(model, LOSSES[work.loss], **metrics)
        self.optimizer = OPTIMIZERS[work.optimizer](work.rate)
        self.run = fdl.start(params, self.optimizer, state=state, seed=0)
        self.data, self.done = (jnp.asarray(x), jnp.asarray(y)), 0

    def steps(self, count):
        self.done += count
        # With this `chunk`, a block is one call of the compiled program. A long run also has many
        # steps in a call.
        # `fit` gets a run, not a result, so that the record is the mean of these steps alone.
        result = fdl.fit(
            self.objective,
            self.optimizer,
            self.run,
            self.data,
            batch_size=self.batch,
            steps=self.done,
            record_every=2**31,
            chunk=count,
        )
        if result.reason != "done":
            raise RuntimeError(f"training ended: {result.reason}")
        self.run = result.run
        # A user calls `fit` once: what the call costs before its loop begins is not part of a step.
        return Block(result.history[-1]["loss"], seconds=result.history[-1]["seconds"])

    def accuracy(self, x, y):
        return float(fdl.evaluate(self.objective, self.run, (x, y))["accuracy"])


def sweep(work, x, y, form=""):
    return _Sweep(work, x, y)


class _Sweep:
    """A sweep starts from step 0 in each call, so its steps are timed by `fdl.sweep` itself."""

    def __init__(self, work, x, y):
        model = _model(work)
        self.work, self.data = work, (jnp.asarray(x), jnp.asarray(y))
        self.init = lambda seed: model.init(jax.random.key(seed), x[:1])
        self.objective = fdl.supervised(model, LOSSES[work.loss])
        self.make = lambda learning_rate: fdl.sgd(learning_rate, momentum=0.9)
        self.rates = np.unique(work.rates).tolist()

    def steps(self, count):
        found = fdl.sweep(
            self.objective,
            self.init,
            self.make,
            {"learning_rate": self.rates},
            self.data,
            seeds=range(self.work.members // len(self.rates)),
            batch_size=self.work.batch,
            steps=count,
            record_every=count,
        )
        seconds = found.seconds_per_step * count * self.work.members
        return Block(float(found.final("loss").mean()), seconds=seconds)


def _model(work):
    model = NETWORKS[work.network](**work.sizes)
    return model if work.dtype == "float32" else fdl.compute_in(model, work.dtype)


# The networks.


def perceptron(inputs, hidden, outputs):
    return fdl.mlp(list(hidden), outputs)


def lenet(image):
    return fdl.lenet(10)


def resnet(blocks, width):
    return fdl.resnet(10, (blocks,) * 3, width=width)


def gpt(vocabulary, length, layers, heads, features):
    return fdl.gpt(vocabulary, length, layers, heads, features, tied=False)


def vit(image, patch, layers, heads, features):
    return fdl.vit(10, image, patch, layers, heads, features)


def lstm(inputs, features):
    return fdl.chain(fdl.lstm(features, returns="last"), fdl.dense(10))


def gru(inputs, features):
    return fdl.chain(fdl.gru(features, returns="last"), fdl.dense(10))


def autoencoder(inputs, hidden, code):
    return fdl.autoencoder((inputs,), list(hidden), code)


def conv1d(channels):
    return fdl.chain(
        fdl.conv(32, (5,)),
        fdl.relu,
        fdl.max_pool((2,)),
        fdl.conv(64, (5,)),
        fdl.relu,
        fdl.max_pool((2,)),
        fdl.conv(128, (3,)),
        fdl.relu,
        fdl.global_average_pool(),
        fdl.dense(10),
    )


def bag(vocabulary, features):
    return fdl.chain(fdl.embedding(vocabulary, features), lambda h: h.mean(-2), fdl.dense(10))


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
