"""A convolutional network learns to read MNIST, on images that are moved slightly each time.

Every training step turns, stretches, shears and shifts each image of its batch at random, inside
the compiled program, so the network never sees the same image twice. Several networks are trained,
each from a different seed; the result is the mean of their test accuracies.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import report

import fdl
from fdl.look import draw


def main(arguments=None):
    given = options(arguments)
    out = report.folder(given.out)
    split = report.mnist(given.data)
    model = network()
    print(fdl.summary(model, split.train[0][:1]))
    accuracies, begun = [], time.perf_counter()
    for seed in range(given.seeds):
        result, objective = learn(model, split, given, seed)
        scores = fdl.evaluate(
            objective, result.run.params, split.test, state=result.run.state, batch_size=500
        )
        accuracies.append(scores["accuracy"])
        print(
            f"seed {seed}: test accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}, "
            f"{time.perf_counter() - begun:.0f} s since the start",
            flush=True,
        )
    print(f"Mean test accuracy of {given.seeds} seeds: {np.mean(accuracies):.4f}")
    pictures(out, model, result, split)
    print(f"Pictures are in {out}/")


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", metavar="FOLDER", help=report.DATA)
    parser.add_argument("--epochs", type=float, default=10, help="passes over the images")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--rate", type=float, default=0.004, help="highest learning rate of Adam")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train")
    parser.add_argument("--out", default="out/mnist_cnn", help="folder for the pictures")
    return parser.parse_args(arguments)


def network():
    """Three convolutions, each with a norm, a relu and a pooling; then two dense layers."""

    def block(features):
        convolution = fdl.conv(features, (3, 3), bias=False, w_init=fdl.initializers.he_normal)
        return fdl.chain(
            convolution, fdl.batch_norm(), fdl.relu, fdl.max_pool((2, 2)), name="block"
        )

    return fdl.chain(
        fdl.rescale(1 / 255),
        moved(),
        *map(block, (32, 64, 128)),
        fdl.flatten(),
        fdl.dropout(0.3),
        fdl.dense(128),
        fdl.relu,
        fdl.dropout(0.3),
        fdl.dense(10),
        name="cnn",
    )


def moved(turn=0.2, stretch=0.12, shift=2.5, name="moved"):
    """A layer that turns, stretches, shears and shifts each image at random, only in training.

    x is [B, H, W, C]. The largest changes are a turn by `turn` radians, a stretch and a shear by
    the fraction `stretch` of the size, and a shift by `shift` pixels.
    """

    def apply(params, state, x, *, key=None, train=False):
        if not train:
            return x, state
        return jax.vmap(one)(x, jax.random.split(key, x.shape[0])), state

    def one(image, key):
        angle, larger, shear, dy, dx = jax.random.uniform(key, (5,), minval=-1.0)
        angle, size = turn * angle, 1 + stretch * larger
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        matrix = size * jnp.array([[cosine, stretch * shear - sine], [sine, cosine]])
        middle = (jnp.array(image.shape[:2], jnp.float32) - 1) / 2
        grid = jnp.stack(jnp.indices(image.shape[:2], jnp.float32), -1) - middle
        places = jnp.moveaxis(grid @ matrix + middle + shift * jnp.array([dy, dx]), -1, 0)
        channel = functools.partial(jax.scipy.ndimage.map_coordinates, order=1)
        return jax.vmap(channel, (-1, None), -1)(image, list(places))

    return fdl.Layer(name, lambda key, x: ({}, {}), apply)


def learn(model, split, given, seed):
    params, state = model.init(jax.random.key(seed), split.train[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    steps = int(given.epochs * len(split.train[0]) / given.batch)
    optimizer = fdl.adamw(
        fdl.optim.cosine_onecycle_schedule(steps, given.rate, pct_start=0.2),
        weight_decay=0.01,
        mask="**/w",
    )
    run = fdl.start(params, optimizer, state=state, seed=seed)
    result = fdl.fit(
        *(objective, optimizer, run, split.train),
        batch_size=given.batch,
        steps=steps,
        record_every=-(-steps // 20),
        watch=[fdl.progress()],
    )
    return result, objective


def pictures(out, model, result, split):
    """Saves pictures of the loss, of the mistakes, and of some moved images."""
    x, y = split.test
    draw.learning_curves(result.history).savefig(out / "learning_curves.png")
    logits = fdl.predict(model, result.run.params, x, state=result.run.state)
    predicted = np.asarray(logits.argmax(-1))
    chances = np.asarray(fdl.softmax(logits))
    draw.mistakes(x, y, predicted, probabilities=chances).savefig(out / "mistakes.png")
    few = jnp.asarray(split.train[0][:10], jnp.float32)
    rows = {"as it is": few}
    for seed in range(3):
        rows[f"moved, {seed}"] = moved().apply({}, {}, few, key=jax.random.key(seed), train=True)[0]
    fdl.look.image_rows(rows).savefig(out / "moved.png")


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
