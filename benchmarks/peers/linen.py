"""Flax Linen, as its guides show: modules, optax, and a jitted step."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.peers import jax_loops

TITLE = "Flax Linen"
NEEDS = ("flax", "optax")


def training(work, x, y, form=""):
    model = NETWORKS[work.network](**work.sizes, dtype=jnp.dtype(work.dtype))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x[:1])
    params = variables.pop("params")

    def apply(params, state, x, train):
        mutable = list(state) if train else False
        y = model.apply({"params": params, **state}, x, train=train, mutable=mutable)
        return y if train else (y, state)

    return jax_loops.training(work, x, y, params, variables, apply)


def sweep(work, x, y, form=""):
    model = NETWORKS[work.network](**work.sizes, dtype=jnp.float32)
    init = lambda key: model.init(key, x[:1], train=False)["params"]  # noqa: E731
    apply = lambda p, state, x, train: (model.apply({"params": p}, x, train=train), state)  # noqa: E731
    return jax_loops.sweep(work, x, y, init, apply)


class Perceptron(nn.Module):
    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    inputs: int
    hidden: tuple[int, ...]
    code: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        x = Perceptron(self.inputs, self.hidden, self.code, self.dtype)(x, train)
        return Perceptron(self.code, self.hidden[::-1], self.inputs, self.dtype)(x, train)


class LeNet(nn.Module):
    image: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(32, (3, 3), dtype=self.dtype)(x))
        x = nn.relu(nn.Conv(64, (3, 3), dtype=self.dtype)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(128, dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x)


class ResNet(nn.Module):
    blocks: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        for stage in range(3):
            features = self.width * 2**stage
            for number in range(self.blocks):
                strides = 2 if stage and not number else 1
                y = nn.relu(norm()(conv(features, (3, 3), strides)(x)))
                y = norm()(conv(features, (3, 3))(y))
                if strides > 1:
                    x = norm()(conv(features, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class Block(nn.Module):
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, mask=None):
        features = x.shape[-1]
        h = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(h, mask=mask)
        h = nn.Dense(4 * features, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(features, dtype=self.dtype)(nn.gelu(h))


class GPT(nn.Module):
    vocabulary: int
    length: int
    layers: int
    heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, ids, train):
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (self.length, self.features)
        )
        x = nn.Embed(self.vocabulary, self.features, dtype=self.dtype)(ids)
        x = x + positions.astype(self.dtype)
        mask = nn.make_causal_mask(ids)
        for _ in range(self.layers):
            x = Block(self.heads, self.dtype)(x, mask)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        return nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype)(x)


class ViT(nn.Module):
    image: int
    patch: int
    layers: int
    heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        size = (self.patch, self.patch)
        x = nn.Conv(self.features, size, size, dtype=self.dtype)(x)
        x = x.reshape(len(x), -1, self.features)
        shape = x.shape[1:]
        x = x + self.param("positions", nn.initializers.normal(0.02), shape).astype(self.dtype)
        for _ in range(self.layers):
            x = Block(self.heads, self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        return nn.Dense(10, dtype=self.dtype)(x.mean(1))


class Recurrent(nn.Module):
    inputs: int
    features: int
    dtype: Any
    cell: Any

    @nn.compact
    def __call__(self, x, train):
        x = nn.RNN(self.cell(self.features, dtype=self.dtype))(x)
        return nn.Dense(10, dtype=self.dtype)(x[:, -1])


class Conv1D(nn.Module):
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        for number, (features, size) in enumerate([(32, 5), (64, 5), (128, 3)]):
            x = nn.max_pool(x, (2,), (2,)) if number else x
            x = nn.relu(nn.Conv(features, (size,), dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x.mean(1))


class Bag(nn.Module):
    vocabulary: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, ids, train):
        x = nn.Embed(self.vocabulary, self.features, dtype=self.dtype)(ids).mean(1)
        return nn.Dense(10, dtype=self.dtype)(x)


NETWORKS = {
    "perceptron": Perceptron,
    "lenet": LeNet,
    "resnet": ResNet,
    "gpt": GPT,
    "vit": ViT,
    "lstm": functools.partial(Recurrent, cell=nn.OptimizedLSTMCell),
    "gru": functools.partial(Recurrent, cell=nn.GRUCell),
    "autoencoder": Autoencoder,
    "conv1d": Conv1D,
    "bag": Bag,
}
