"""A small network learns to tell two classes of points apart, and a page shows how.

There are four sets of points in the plane: circle, xor, gauss and spiral. The page shows each
neuron as a heat map over the plane, the weights as links between neurons, and the decision of the
network, at every step of training. The page is one file that works without the internet. Nothing is
downloaded.
"""

import argparse
import shutil
from pathlib import Path

import jax
import numpy as np

import fdl

ACTIVATIONS = {"tanh": fdl.tanh, "relu": fdl.relu, "sigmoid": fdl.sigmoid}
MOST_LAYERS, MOST_NEURONS = 6, 8


def circle(rng, count):
    """One class in a disc, and the other in a ring around it."""
    labels = np.arange(count) % 2
    radius = np.where(labels == 0, rng.uniform(0, 0.5, count), rng.uniform(0.7, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), labels


def xor(rng, count):
    """The class is whether the signs of the two inputs differ."""
    x = rng.uniform(0.08, 1, (count, 2)) * rng.choice([-1, 1], (count, 2))
    return x, (x[:, 0] * x[:, 1] < 0).astype(int)


def gauss(rng, count):
    """Two normal distributions."""
    labels = np.arange(count) % 2
    return rng.normal(0, 0.22, (count, 2)) + np.where(labels, 0.45, -0.45)[:, None], labels


def spiral(rng, count):
    """Two spirals, each around the other."""
    labels = np.arange(count) % 2
    radius = rng.uniform(0.05, 1, count)
    angle = 1.75 * 2 * np.pi * radius + np.pi * labels
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1), labels


SETS = {each.__name__: each for each in (circle, xor, gauss, spiral)}


def points(name, noise, seed, count=400):
    """A split of (x [N, 2], labels [N]) of one of the four sets."""
    rng = np.random.default_rng(seed)
    x, labels = SETS[name](rng, count)
    x = x + rng.normal(0, 1, x.shape) * noise
    return fdl.data.split((x.astype(np.float32), labels.astype(np.int32)), seed=seed)


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name, text, **how):
        parser.add_argument(name, help=f"{text} (default: %(default)s)", **how)

    add("--data", "the set of points", choices=list(SETS), default="spiral")
    add("--noise", "standard deviation of the noise on the points", type=float, default=0.02)
    add(
        "--hidden",
        f"neurons of each hidden layer, at most {MOST_NEURONS}; at most {MOST_LAYERS} layers",
        type=int,
        nargs="*",
        default=[8, 8, 6],
        metavar="NEURONS",
    )
    add("--activation", "the activation", choices=list(ACTIVATIONS), default="tanh")
    add("--rate", "learning rate of Adam", type=float, default=0.01)
    add("--batch", "examples in a batch", type=int, default=32)
    add("--steps", "steps of training", type=int, default=3000)
    add("--seed", "seed of the points, the weights and the batches", type=int, default=0)
    add("--out", "folder for the recorded run and the page", default="out/playground")
    given = parser.parse_args(arguments)
    if len(given.hidden) > MOST_LAYERS or any(not 1 <= n <= MOST_NEURONS for n in given.hidden):
        parser.error(
            f"--hidden: expected at most {MOST_LAYERS} layers of 1 to {MOST_NEURONS} neurons, got "
            f"{given.hidden}; choose a network within these limits"
        )
    return given


def network(hidden, activation):
    """Dense layers with an activation after each, and two outputs."""
    layers = {}
    for number, neurons in enumerate(hidden, 1):
        layers[f"dense_{number}"] = fdl.dense(neurons)
        layers[f"hidden_{number}"] = ACTIVATIONS[activation]
    return fdl.chain(**layers, output=fdl.dense(2))


def main(arguments=None):
    given = options(arguments)
    out = Path(given.out)
    train, test = points(given.data, given.noise, given.seed)
    model = network(given.hidden, given.activation)
    params, _ = model.init(jax.random.key(given.seed), train[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.adam(given.rate)

    folder = out / given.data
    shutil.rmtree(folder, ignore_errors=True)
    kept = [*(["hidden_*"] if given.hidden else []), "output"]
    result = fdl.fit(
        objective,
        optimizer,
        fdl.start(params, optimizer, seed=given.seed),
        train,
        batch_size=given.batch,
        steps=given.steps,
        record_every=max(given.steps // 100, 1),
        validation=test,
        watch=[
            fdl.progress(),
            fdl.look.record(folder, model, *train, layers=kept, every=1),
        ],
    )
    scores = fdl.evaluate(objective, result, test)
    print(f"\nTest accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}")
    page = fdl.look.replay(folder, out / f"{given.data}.html")
    print(f"Open {page} in a browser.")


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
