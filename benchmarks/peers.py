"""A training epoch of a small network: fdl and other libraries, each with the loop of its guide.

The network is 784-H-H-10 with ReLU on MNIST, with batch 128, SGD with momentum 0.9, and float32.
Every library shuffles each epoch, and reports the loss and the accuracy of each epoch. The JAX
libraries compile their step; torch runs eagerly, as for most of its users. Libraries that are not
installed are left out, and their names are printed. All libraries run in turn in one process, and
the best of several epochs is reported.
"""

import importlib
import time

import jax
import jax.numpy as jnp
import measure
import numpy as np

import fdl

BATCH, RATE, MOMENTUM = 128, 0.05, 0.9


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    images, labels = fdl.data.mnist().train
    x = np.ascontiguousarray(images.reshape(len(images), -1))
    rows = []
    for width in options.widths:
        epochs, absent = {}, []
        for name, make in PEERS.items():
            try:
                epochs[name] = make(x, labels, width)
            except ImportError as error:
                absent.append(f"{name} ({error.name})")
        best = dict.fromkeys(epochs, float("inf"))
        loss = {}
        for number in range(options.rounds + 1):  # the first epoch compiles
            for name, epoch in epochs.items():
                begun = time.perf_counter()
                loss[name] = float(epoch(number))
                if number:
                    best[name] = min(best[name], time.perf_counter() - begun)
        steps = len(x) // BATCH
        for name in epochs:
            row = {"library": name, "width": width, "us_per_step": best[name] / steps * 1e6}
            rows.append(row | {"times_fdl": best[name] / best["fdl"], "last_loss": loss[name]})
    versions = {name: version(name) for name in ("flax", "equinox", "torch", "optax")}
    measure.report("peers", rows, batch_size=BATCH, absent=absent, versions=versions)


def version(name):
    try:
        return importlib.import_module(name).__version__
    except ImportError:
        return None


def batches(x, y, number):
    """Batches as most loops draw them: slices of a permutation."""
    order = np.random.default_rng(number).permutation(len(x))
    for step in range(len(x) // BATCH):
        rows = order[step * BATCH : (step + 1) * BATCH]
        yield x[rows], y[rows]


def with_fdl(x, y, width):
    model = fdl.mlp([width, width], 10, scale=1 / 255)
    params, _ = model.init(jax.random.key(0), x[:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.sgd(RATE, MOMENTUM)
    data = jax.tree.map(jnp.asarray, (x, y))
    runs = [fdl.start(params, optimizer)]
    steps = len(x) // BATCH

    def epoch(number):
        result = fdl.fit(
            *(objective, optimizer, runs[-1], data),
            **{"batch_size": BATCH, "steps": (number + 1) * steps, "record_every": steps},
        )
        runs.append(result.run)
        return result.history[-1]["loss"]

    return epoch


def jax_loop(x, y, params, predict):
    """The loop of a JAX user: a compiled step, called from Python."""
    import optax

    optimizer = optax.sgd(RATE, MOMENTUM)
    held = [params, optimizer.init(params)]

    def loss_of(params, x, y):
        logits = predict(params, x.astype(jnp.float32) / 255)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (logits.argmax(-1) == y).mean()

    @jax.jit
    def step(params, state, x, y):
        (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss, right

    def epoch(number):
        losses, hits = [], []
        for some_x, some_y in batches(x, y, number):
            held[0], held[1], loss, right = step(held[0], held[1], some_x, some_y)
            losses.append(loss)
            hits.append(right)
        jnp.stack(hits).mean().block_until_ready()
        return jnp.stack(losses).mean()

    return epoch


def plain_jax(x, y, width):
    sizes = [x.shape[1], width, width, 10]
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        (jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n))
        for key, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]

    def predict(params, h):
        for w, b in params[:-1]:
            h = jax.nn.relu(h @ w + b)
        w, b = params[-1]
        return h @ w + b

    return jax_loop(x, y, params, predict)


def with_linen(x, y, width):
    import flax.linen as nn

    model = nn.Sequential(
        [nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)],
    )
    params = model.init(jax.random.key(0), jnp.ones((1, x.shape[1])))
    return jax_loop(x, y, params, model.apply)


def with_nnx(x, y, width):
    import optax
    from flax import nnx

    model = nnx.Sequential(
        nnx.Linear(x.shape[1], width, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(width, width, rngs=nnx.Rngs(1)),
        nnx.relu,
        nnx.Linear(width, 10, rngs=nnx.Rngs(2)),
    )
    optimizer = nnx.Optimizer(model, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_of(model):
            logits = model(x.astype(jnp.float32) / 255)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, (logits.argmax(-1) == y).mean()

        (loss, right), gradient = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, gradient)
        return loss, right

    def epoch(number):
        seen = [step(model, optimizer, *batch) for batch in batches(x, y, number)]
        jnp.stack([right for _, right in seen]).mean().block_until_ready()
        return jnp.stack([loss for loss, _ in seen]).mean()

    return epoch


def with_equinox(x, y, width):
    import equinox as eqx

    model = eqx.nn.MLP(x.shape[1], 10, width, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return jax_loop(x, y, params, lambda p, h: jax.vmap(eqx.combine(p, static))(h))


def with_torch(x, y, width):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Linear(x.shape[1], width), torch.nn.ReLU()),
        *(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    images, labels = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))

    def epoch(number):
        total, right = 0.0, 0.0
        order = torch.randperm(len(images))
        for step in range(len(images) // BATCH):
            rows = order[step * BATCH : (step + 1) * BATCH]
            logits = model(images[rows].float() / 255)
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            right += (logits.argmax(1) == labels[rows]).float().mean()
        return total / (step + 1)

    return epoch


PEERS = {
    "fdl": with_fdl,
    "plain JAX": plain_jax,
    "Flax Linen": with_linen,
    "Flax NNX": with_nnx,
    "Equinox": with_equinox,
    "torch": with_torch,
}

if __name__ == "__main__":
    main()
