"""Equinox, as its examples show: modules for one example, vmap, filter_jit and optax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import jax_loops

TITLE = "Equinox"
NEEDS = ("equinox", "optax")


def training(work, x, y, form=""):
    if work.has_channels:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    key = jax.random.key(0)
    model, state = eqx.nn.make_with_state(NETWORKS[work.network])(key=key, **work.sizes)
    update = jax_loops.optimizer(work)

    def output_of(model, state, x):
        model, x = (eqx.combine(jax_loops.in_dtype(work, a), b) for a, b in _arrays(model, x))
        each = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return each(x, state)

    @eqx.filter_value_and_grad(has_aux=True)
    def gradient_of(model, state, x, y):
        output, state = output_of(model, state, x)
        return jax_loops.loss_of(work, output, y), state

    @eqx.filter_jit
    def step(carry, x, y):
        model, state, opt_state = carry
        (loss, state), gradient = gradient_of(model, state, x, y)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = update.update(gradient, opt_state, params)
        return (eqx.apply_updates(model, updates), state, opt_state), loss

    @eqx.filter_jit
    def score(carry, x):
        return output_of(*carry[:2], x)[0]

    opt_state = update.init(eqx.filter(model, eqx.is_inexact_array))
    return jax_loops.Loop(work, x, y, step, (model, state, opt_state), score)


def _arrays(*trees):
    return [eqx.partition(tree, eqx.is_inexact_array) for tree in trees]


def sweep(work, x, y, form=""):
    """An ensemble: `partition` gives the arrays of a model, and `jax.vmap` maps over them."""
    make = lambda key: NETWORKS[work.network](key=key, **work.sizes)  # noqa: E731
    static = eqx.partition(eqx.filter_eval_shape(make, jax.random.key(0)), _is_inexact)[1]

    def init(key):
        return eqx.filter(make(key), eqx.is_inexact_array)

    def apply(params, state, x, train):
        model = eqx.combine(params, static)
        return jax.vmap(lambda x: model(x, None)[0])(x), state

    return jax_loops.sweep(work, x, y, init, apply)


def _is_inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


class Stateless(eqx.Module):
    """A model without state, which is called like a model with state."""

    layers: eqx.nn.Sequential

    def __init__(self, layers):
        self.layers = eqx.nn.Sequential(layers)

    def __call__(self, x, state):
        return self.layers(x), state


def perceptron(inputs, hidden, outputs, key):
    mlp = eqx.nn.MLP(inputs, outputs, hidden[0], len(hidden), key=key)
    return Stateless([mlp])


def autoencoder(inputs, hidden, code, key):
    keys = jax.random.split(key)
    encode = eqx.nn.MLP(inputs, code, hidden[0], len(hidden), key=keys[0])
    return Stateless([encode, eqx.nn.MLP(code, inputs, hidden[0], len(hidden), key=keys[1])])


def lenet(image, key):
    keys = jax.random.split(key, 4)
    relu = eqx.nn.Lambda(jax.nn.relu)
    return Stateless(
        [
            eqx.nn.Conv2d(1, 32, 3, padding=1, key=keys[0]),
            relu,
            eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1]),
            relu,
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(64 * (image // 2) ** 2, 128, key=keys[2]),
            relu,
            eqx.nn.Linear(128, 10, key=keys[3]),
        ]
    )


def conv1d(channels, key):
    keys = jax.random.split(key, 4)
    relu = eqx.nn.Lambda(jax.nn.relu)
    return Stateless(
        [
            eqx.nn.Conv1d(channels, 32, 5, padding=2, key=keys[0]),
            relu,
            eqx.nn.MaxPool1d(2, 2),
            eqx.nn.Conv1d(32, 64, 5, padding=2, key=keys[1]),
            relu,
            eqx.nn.MaxPool1d(2, 2),
            eqx.nn.Conv1d(64, 128, 3, padding=1, key=keys[2]),
            relu,
            eqx.nn.Lambda(lambda x: x.mean(-1)),
            eqx.nn.Linear(128, 10, key=keys[3]),
        ]
    )


def bag(vocabulary, features, key):
    keys = jax.random.split(key)
    w = jax.random.normal(keys[0], (vocabulary, features)) * features**-0.5
    embed = eqx.nn.Embedding(weight=w)
    return Bag(embed, eqx.nn.Linear(features, 10, key=keys[1]))


class Bag(eqx.Module):
    embed: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __call__(self, ids, state):
        return self.head(jax.vmap(self.embed)(ids).mean(0)), state


class Residual(eqx.Module):
    convs: list
    norms: list

    def __init__(self, inputs, outputs, stride, key):
        keys = jax.random.split(key, 3)
        plain = {"use_bias": False}
        self.convs = [
            eqx.nn.Conv2d(inputs, outputs, 3, stride, padding=1, key=keys[0], **plain),
            eqx.nn.Conv2d(outputs, outputs, 3, padding=1, key=keys[1], **plain),
        ]
        if stride > 1:
            self.convs.append(eqx.nn.Conv2d(inputs, outputs, 1, stride, key=keys[2], **plain))
        self.norms = [eqx.nn.BatchNorm(outputs, "batch", mode="batch") for _ in self.convs]

    def __call__(self, x, state):
        y, state = self.norms[0](self.convs[0](x), state)
        y, state = self.norms[1](self.convs[1](jax.nn.relu(y)), state)
        if len(self.convs) > 2:
            x, state = self.norms[2](self.convs[2](x), state)
        return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
    stem: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    members: list
    head: eqx.nn.Linear

    def __init__(self, blocks, width, key):
        keys = iter(jax.random.split(key, 3 * blocks + 2))
        self.stem = eqx.nn.Conv2d(3, width, 3, padding=1, use_bias=False, key=next(keys))
        self.norm = eqx.nn.BatchNorm(width, "batch", mode="batch")
        self.members, channels = [], width
        for stage in range(3):
            for number in range(blocks):
                features, stride = width * 2**stage, 2 if stage and not number else 1
                self.members.append(Residual(channels, features, stride, next(keys)))
                channels = features
        self.head = eqx.nn.Linear(channels, 10, key=next(keys))

    def __call__(self, x, state):
        x, state = self.norm(self.stem(x), state)
        x = jax.nn.relu(x)
        for member in self.members:
            x, state = member(x, state)
        return self.head(x.mean((1, 2))), state


class Block(eqx.Module):
    norms: list
    attend: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, heads, features, key):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(features), eqx.nn.LayerNorm(features)]
        biases = ("query", "key", "value", "output")
        self.attend = eqx.nn.MultiheadAttention(
            heads, features, key=keys[0], **{f"use_{each}_bias": True for each in biases}
        )
        self.up = eqx.nn.Linear(features, 4 * features, key=keys[1])
        self.down = eqx.nn.Linear(4 * features, features, key=keys[2])

    def __call__(self, x, mask=None):
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attend(h, h, h, mask=mask)
        h = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return x + jax.vmap(self.down)(h)


class GPT(eqx.Module):
    embed: eqx.nn.Embedding
    positions: jax.Array
    blocks: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, vocabulary, length, layers, heads, features, key):
        keys = jax.random.split(key, layers + 3)
        w = jax.random.normal(keys[0], (vocabulary, features)) * features**-0.5
        self.embed = eqx.nn.Embedding(weight=w)
        self.positions = jax.random.normal(keys[1], (length, features)) * 0.02
        self.head = eqx.nn.Linear(features, vocabulary, use_bias=False, key=keys[2])
        self.blocks = [Block(heads, features, each) for each in keys[3:]]
        self.norm = eqx.nn.LayerNorm(features)

    def __call__(self, ids, state):
        x = jax.vmap(self.embed)(ids) + self.positions
        mask = jnp.tril(jnp.ones((len(ids), len(ids)), bool))
        for block in self.blocks:
            x = block(x, mask)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x)), state


class ViT(eqx.Module):
    patch: eqx.nn.Conv2d
    positions: jax.Array
    blocks: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, image, patch, layers, heads, features, key):
        keys = jax.random.split(key, layers + 3)
        shape = ((image // patch) ** 2, features)
        self.patch = eqx.nn.Conv2d(3, features, patch, patch, key=keys[0])
        self.positions = jax.random.normal(keys[1], shape) * 0.02
        self.head = eqx.nn.Linear(features, 10, key=keys[2])
        self.blocks = [Block(heads, features, each) for each in keys[3:]]
        self.norm = eqx.nn.LayerNorm(features)

    def __call__(self, x, state):
        x = self.patch(x)
        x = x.reshape(len(x), -1).T + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(jax.vmap(self.norm)(x).mean(0)), state


class Recurrent(eqx.Module):
    cell: eqx.Module
    head: eqx.nn.Linear

    def __init__(self, cell, inputs, features, key):
        keys = jax.random.split(key)
        self.cell = cell(inputs, features, key=keys[0])
        self.head = eqx.nn.Linear(features, 10, key=keys[1])

    def __call__(self, x, state):
        zeros = jnp.zeros(self.cell.hidden_size, x.dtype)
        is_lstm = isinstance(self.cell, eqx.nn.LSTMCell)
        begin = (zeros, zeros) if is_lstm else zeros
        carry, _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), begin, x)
        return self.head(carry[0] if is_lstm else carry), state


NETWORKS = {
    "perceptron": perceptron,
    "lenet": lenet,
    "resnet": ResNet,
    "gpt": GPT,
    "vit": ViT,
    "lstm": lambda **sizes: Recurrent(eqx.nn.LSTMCell, **sizes),
    "gru": lambda **sizes: Recurrent(eqx.nn.GRUCell, **sizes),
    "autoencoder": autoencoder,
    "conv1d": conv1d,
    "bag": bag,
}
