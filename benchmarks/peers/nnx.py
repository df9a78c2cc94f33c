"""Flax NNX, as its guides show: stateful modules, nnx.Optimizer and nnx.jit."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.peers import Block, jax_loops
from benchmarks.work import batches

TITLE = "Flax NNX"
NEEDS = ("flax", "optax")


def training(work, x, y, form=""):
    model = NETWORKS[work.network](
        **work.sizes, dtype=jnp.dtype(work.dtype), rngs=nnx.Rngs(params=0)
    )
    model.train()
    optimizer = nnx.Optimizer(model, jax_loops.optimizer(work), wrt=nnx.Param)
    return _Session(work, x, y, model, optimizer, nnx.jit(_step_of(work)))


def _step_of(work):
    def step(model, optimizer, x, y):
        loss, gradient = nnx.value_and_grad(lambda model: jax_loops.loss_of(work, model(x), y))(
            model
        )
        optimizer.update(model, gradient)
        return loss

    return step


class _Session:
    def __init__(self, work, x, y, model, optimizer, step):
        self.batches, self.model, self.optimizer = batches(x, y, work.batch), model, optimizer
        self.step = step

        @nnx.jit
        def score(model, x):
            return model(x)

        self.score = score

    def steps(self, count):
        losses, every = [], -(-count // jax_loops.SAMPLES)
        for number in range(count):
            loss = self.step(self.model, self.optimizer, *next(self.batches))
            if number % every == 0:
                losses.append(loss)
        jax.block_until_ready((nnx.state(self.model), loss))
        return Block(float(np.mean(jax.device_get(losses))))

    def accuracy(self, x, y):
        return float((jnp.argmax(self.score(self.model, x), -1) == y).mean())


def sweep(work, x, y, form=""):
    """An ensemble by nnx.vmap; its members see the same batches."""
    make = functools.partial(NETWORKS[work.network], **work.sizes, dtype=jnp.float32)
    update = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)

    @nnx.jit
    @nnx.vmap(in_axes=(0, 0), out_axes=(0, 0))
    def begin(key, rate):
        model = make(rngs=nnx.Rngs(params=key))
        optimizer = nnx.Optimizer(model, update, wrt=nnx.Param)
        optimizer.opt_state.hyperparams["learning_rate"][...] = rate
        return model, optimizer

    keys = jax.random.split(jax.random.key(0), work.members)
    model, optimizer = begin(keys, jnp.asarray(work.rates))
    step = nnx.jit(nnx.vmap(_step_of(work), in_axes=(0, 0, None, None), out_axes=0))
    return _Session(work, x, y, model, optimizer, step)


class Perceptron(nnx.Module):
    def __init__(self, inputs, hidden, outputs, dtype, rngs):
        sizes = (inputs, *hidden, outputs)
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(m, n, dtype=dtype, rngs=rngs) for m, n in pairs])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Autoencoder(nnx.Module):
    def __init__(self, inputs, hidden, code, dtype, rngs):
        self.encode = Perceptron(inputs, hidden, code, dtype, rngs)
        self.decode = Perceptron(code, hidden[::-1], inputs, dtype, rngs)

    def __call__(self, x):
        return self.decode(self.encode(x))


class LeNet(nnx.Module):
    def __init__(self, image, dtype, rngs):
        self.conv_0 = nnx.Conv(1, 32, (3, 3), dtype=dtype, rngs=rngs)
        self.conv_1 = nnx.Conv(32, 64, (3, 3), dtype=dtype, rngs=rngs)
        self.dense_0 = nnx.Linear(64 * (image // 2) ** 2, 128, dtype=dtype, rngs=rngs)
        self.dense_1 = nnx.Linear(128, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv_1(nnx.relu(self.conv_0(x))))
        x = nnx.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return self.dense_1(nnx.relu(self.dense_0(x)))


class Residual(nnx.Module):
    def __init__(self, inputs, outputs, strides, dtype, rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, outputs, momentum=0.9, dtype=dtype, rngs=rngs)
        self.conv_0, self.norm_0 = conv(inputs, outputs, (3, 3), strides), norm()
        self.conv_1, self.norm_1 = conv(outputs, outputs, (3, 3)), norm()
        self.changes = strides > 1
        if self.changes:
            self.shortcut, self.norm_2 = conv(inputs, outputs, (1, 1), strides), norm()

    def __call__(self, x):
        y = nnx.relu(self.norm_0(self.conv_0(x)))
        y = self.norm_1(self.conv_1(y))
        return nnx.relu(y + (self.norm_2(self.shortcut(x)) if self.changes else x))


class ResNet(nnx.Module):
    def __init__(self, blocks, width, dtype, rngs):
        self.stem = nnx.Conv(3, width, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)
        members, channels = [], width
        for stage in range(3):
            for number in range(blocks):
                features, strides = width * 2**stage, 2 if stage and not number else 1
                members.append(Residual(channels, features, strides, dtype, rngs))
                channels = features
        self.members = nnx.List(members)
        self.head = nnx.Linear(channels, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        for member in self.members:
            x = member(x)
        return self.head(x.mean((1, 2)))


class TransformerBlock(nnx.Module):
    def __init__(self, heads, features, dtype, rngs):
        self.norm_0 = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(heads, features, dtype=dtype, decode=False, rngs=rngs)
        self.norm_1 = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attend(self.norm_0(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_1(x))))


class GPT(nnx.Module):
    def __init__(self, vocabulary, length, layers, heads, features, dtype, rngs):
        self.embed = nnx.Embed(vocabulary, features, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (length, features)) * 0.02)
        self.blocks = nnx.List(
            [TransformerBlock(heads, features, dtype, rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(features, vocabulary, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        x = x + self.positions[...].astype(x.dtype)
        mask = nnx.make_causal_mask(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class ViT(nnx.Module):
    def __init__(self, image, patch, layers, heads, features, dtype, rngs):
        size = (patch, patch)
        shape = ((image // patch) ** 2, features)
        self.patch = nnx.Conv(3, features, size, size, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)
        self.blocks = nnx.List(
            [TransformerBlock(heads, features, dtype, rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(features, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = self.patch(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Recurrent(nnx.Module):
    def __init__(self, inputs, features, dtype, rngs, cell):
        self.unroll = nnx.RNN(cell(inputs, features, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear(features, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(self.unroll(x)[:, -1])


class Conv1D(nnx.Module):
    def __init__(self, channels, dtype, rngs):
        plan = [(channels, 32, 5), (32, 64, 5), (64, 128, 3)]
        self.convs = nnx.List([nnx.Conv(m, n, (k,), dtype=dtype, rngs=rngs) for m, n, k in plan])
        self.head = nnx.Linear(128, 10, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        for number, conv in enumerate(self.convs):
            x = nnx.max_pool(x, (2,), (2,)) if number else x
            x = nnx.relu(conv(x))
        return self.head(x.mean(1))


class Bag(nnx.Module):
    def __init__(self, vocabulary, features, dtype, rngs):
        self.embed = nnx.Embed(vocabulary, features, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(features, 10, dtype=dtype, rngs=rngs)

    def __call__(self, ids):
        return self.head(self.embed(ids).mean(1))


NETWORKS = {
    "perceptron": Perceptron,
    "lenet": LeNet,
    "resnet": ResNet,
    "gpt": GPT,
    "vit": ViT,
    "lstm": functools.partial(Recurrent, cell=nnx.OptimizedLSTMCell),
    "gru": functools.partial(Recurrent, cell=nnx.GRUCell),
    "autoencoder": Autoencoder,
    "conv1d": Conv1D,
    "bag": Bag,
}
