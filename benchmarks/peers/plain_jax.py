"""Plain JAX with optax: a dict of arrays, and functions written by hand."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.peers import jax_loops

TITLE = "plain JAX"
NEEDS = ("jax", "optax")
FORWARD = {"momentum": 0.9, "epsilon": 1e-5}  # of batch norm


def training(work, x, y, form=""):
    init, apply = NETWORKS[work.network](**work.sizes)
    params, state = init(jax.random.key(0))

    def in_dtype(params, state, x, train):
        return apply(*jax_loops.in_dtype(work, (params, state, x)), train)

    return jax_loops.training(work, x, y, params, state, in_dtype)


def sweep(work, x, y, form=""):
    init, apply = NETWORKS[work.network](**work.sizes)
    return jax_loops.sweep(work, x, y, lambda key: init(key)[0], apply)


# Parts.


def weights(key, *shape):
    """Normal, with variance 2 / fan_in."""
    fan_in = functools.reduce(lambda a, b: a * b, shape[:-1])
    return jax.random.normal(key, shape) * (2 / fan_in) ** 0.5


def dense_init(key, inputs, outputs):
    return {"w": weights(key, inputs, outputs) / 2**0.5, "b": jnp.zeros(outputs)}


def dense(p, x):
    return x @ p["w"] + p["b"]


def conv(x, w, stride=1):
    axes = "HW"[: w.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides = (stride,) * len(axes)
    return jax.lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=numbers)


def max_pool(x):
    window = (1, *(2,) * (x.ndim - 2), 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def norm(p, x):
    x = x.astype(jnp.float32)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-6)
    return (x * p["scale"] + p["bias"]).astype(p["scale"].dtype)


def norm_init(features):
    return {"scale": jnp.ones(features), "bias": jnp.zeros(features)}


def block_init(key, features):
    keys = jax.random.split(key, 4)
    return {
        "norm_0": norm_init(features),
        "qkv": dense_init(keys[0], features, 3 * features),
        "out": dense_init(keys[1], features, features),
        "norm_1": norm_init(features),
        "up": dense_init(keys[2], features, 4 * features),
        "down": dense_init(keys[3], 4 * features, features),
    }


def block(p, x, heads, causal):
    h = dense(p["qkv"], norm(p["norm_0"], x))
    q, k, v = jnp.split(h.reshape(*h.shape[:-1], 3 * heads, -1), 3, -2)
    h = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    x = x + dense(p["out"], h.reshape(x.shape))
    return x + dense(p["down"], jax.nn.gelu(dense(p["up"], norm(p["norm_1"], x))))


# Each network is (init(key) -> (params, state), apply(params, state, x, train) -> (y, state)).


def stateless(init, apply):
    return lambda key: (init(key), {}), lambda p, state, x, train: (apply(p, x), state)


def perceptron(inputs, hidden, outputs):
    sizes = (inputs, *hidden, outputs)

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        *before, last = zip(keys, sizes[:-1], sizes[1:], strict=True)
        relus = [{"w": weights(key, m, n), "b": jnp.zeros(n)} for key, m, n in before]
        return [*relus, dense_init(*last)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(params[-1], x)

    return stateless(init, apply)


def autoencoder(inputs, hidden, code):
    to_code, _ = perceptron(inputs, hidden, code)
    _, apply = perceptron(inputs, hidden, code)
    back, _ = perceptron(code, hidden[::-1], inputs)

    def init(key):
        return [to_code(key)[0], back(jax.random.fold_in(key, 1))[0]]

    def both(params, x):
        for part in params:
            x, _ = apply(part, {}, x, True)
        return x

    return stateless(init, both)


def lenet(image):
    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "conv_0": {"w": weights(keys[0], 3, 3, 1, 32), "b": jnp.zeros(32)},
            "conv_1": {"w": weights(keys[1], 3, 3, 32, 64), "b": jnp.zeros(64)},
            "dense_0": dense_init(keys[2], 64 * (image // 2) ** 2, 128),
            "dense_1": dense_init(keys[3], 128, 10),
        }

    def apply(p, x):
        for name in ("conv_0", "conv_1"):
            x = jax.nn.relu(conv(x, p[name]["w"]) + p[name]["b"])
        x = max_pool(x).reshape(len(x), -1)
        return dense(p["dense_1"], jax.nn.relu(dense(p["dense_0"], x)))

    return stateless(init, apply)


def resnet(blocks, width):
    def plan():
        channels = width
        for stage in range(3):
            for number in range(blocks):
                features = width * 2**stage
                yield channels, features, 2 if stage and not number else 1
                channels = features

    def normed(key, size, inputs, outputs):
        p = {"w": weights(key, size, size, inputs, outputs), **norm_init(outputs)}
        return p, {"mean": jnp.zeros(outputs), "variance": jnp.ones(outputs)}

    def init(key):
        keys = iter(jax.random.split(key, 9 * blocks + 2))
        layers = {"stem": normed(next(keys), 3, 3, width)}
        for number, (inputs, outputs, stride) in enumerate(plan()):
            layers[f"{number}/a"] = normed(next(keys), 3, inputs, outputs)
            layers[f"{number}/b"] = normed(next(keys), 3, outputs, outputs)
            if stride > 1:
                layers[f"{number}/shortcut"] = normed(next(keys), 1, inputs, outputs)
        params = {name: p for name, (p, _) in layers.items()}
        params["head"] = dense_init(next(keys), 4 * width, 10)
        return params, {name: state for name, (_, state) in layers.items()}

    def apply(params, state, x, train):
        new = dict(state)

        def layer(name, x, stride=1):
            y, new[name] = batch_norm(
                params[name], state[name], conv(x, params[name]["w"], stride), train
            )
            return y

        x = jax.nn.relu(layer("stem", x))
        for number, (_, _, stride) in enumerate(plan()):
            y = layer(f"{number}/b", jax.nn.relu(layer(f"{number}/a", x, stride)))
            x = jax.nn.relu(y + (layer(f"{number}/shortcut", x, stride) if stride > 1 else x))
        return dense(params["head"], x.mean((1, 2))), new

    return init, apply


def batch_norm(p, state, x, train):
    if train:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        kept = FORWARD["momentum"]
        fresh = {"mean": mean, "variance": variance}
        state = {name: kept * state[name] + (1 - kept) * fresh[name] for name in state}
    else:
        mean, variance = state["mean"], state["variance"]
    factor = p["scale"] * jax.lax.rsqrt(variance + FORWARD["epsilon"])
    return (x - mean) * factor + p["bias"], state


def transformer(layers, heads, features, causal, init_more, before, after):
    """A stack of blocks; `before(p, x)` makes its tokens, `after(p, h)` its output."""

    def init(key):
        keys = jax.random.split(key, layers + 1)
        blocks = [block_init(each, features) for each in keys[1:]]
        return {"blocks": blocks, "norm": norm_init(features), **init_more(keys[0])}

    def apply(p, x):
        h = before(p, x)
        for each in p["blocks"]:
            h = block(each, h, heads, causal)
        return after(p, norm(p["norm"], h))

    return stateless(init, apply)


def gpt(vocabulary, length, layers, heads, features):
    def init_more(key):
        keys = jax.random.split(key, 3)
        return {
            "embed": jax.random.normal(keys[0], (vocabulary, features)) * features**-0.5,
            "positions": jax.random.normal(keys[1], (length, features)) * 0.02,
            "head": jax.random.normal(keys[2], (features, vocabulary)) * features**-0.5,
        }

    before = lambda p, ids: p["embed"][ids] + p["positions"]  # noqa: E731
    after = lambda p, h: h @ p["head"]  # noqa: E731
    return transformer(layers, heads, features, True, init_more, before, after)


def vit(image, patch, layers, heads, features):
    side = image // patch

    def init_more(key):
        keys = jax.random.split(key, 3)
        return {
            "patch": dense_init(keys[0], patch * patch * 3, features),
            "positions": jax.random.normal(keys[1], (side * side, features)) * 0.02,
            "head": dense_init(keys[2], features, 10),
        }

    def before(p, x):
        x = x.reshape(-1, side, patch, side, patch, 3).swapaxes(2, 3)
        return dense(p["patch"], x.reshape(-1, side * side, patch * patch * 3)) + p["positions"]

    after = lambda p, h: dense(p["head"], h.mean(-2))  # noqa: E731
    return transformer(layers, heads, features, False, init_more, before, after)


def recurrent(inputs, features, gates, step, start):
    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "input": dense_init(keys[0], inputs, gates * features),
            "hidden": dense_init(keys[1], features, gates * features),
            "head": dense_init(keys[2], features, 10),
        }

    def apply(p, x):
        driven = dense(p["input"], x).swapaxes(0, 1)
        one_step = lambda carry, driven: (step(p["hidden"], carry, driven), None)  # noqa: E731
        carry, _ = jax.lax.scan(one_step, start(driven[0][:, :features]), driven)
        return dense(p["head"], carry[0])

    return stateless(init, apply)


def lstm(inputs, features):
    def step(p, carry, driven):
        h, c = carry
        i, f, g, o = jnp.split(driven + dense(p, h), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return recurrent(inputs, features, 4, step, lambda like: (like * 0, like * 0))


def gru(inputs, features):
    def step(p, carry, driven):
        (h,) = carry
        (r, z, n), (more_r, more_z, more_n) = (jnp.split(a, 3, -1) for a in (driven, dense(p, h)))
        r, z = jax.nn.sigmoid(r + more_r), jax.nn.sigmoid(z + more_z)
        n = jnp.tanh(n + r * more_n)
        return ((1 - z) * n + z * h,)

    return recurrent(inputs, features, 3, step, lambda like: (like * 0,))


def conv1d(channels):
    plan = [(5, channels, 32), (5, 32, 64), (3, 64, 128)]

    def init(key):
        keys = jax.random.split(key, 4)
        pairs = zip(keys, plan, strict=False)
        convs = [{"w": weights(key, *size), "b": jnp.zeros(size[-1])} for key, size in pairs]
        return {"convs": convs, "head": dense_init(keys[3], 128, 10)}

    def apply(p, x):
        for number, each in enumerate(p["convs"]):
            x = max_pool(x) if number else x
            x = jax.nn.relu(conv(x, each["w"]) + each["b"])
        return dense(p["head"], x.mean(-2))

    return stateless(init, apply)


def bag(vocabulary, features):
    def init(key):
        w = jax.random.normal(key, (vocabulary, features)) * features**-0.5
        return {"embed": w, "head": dense_init(jax.random.fold_in(key, 1), features, 10)}

    return stateless(init, lambda p, ids: dense(p["head"], p["embed"][ids].mean(-2)))


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
