"""An autoencoder encodes digits in a few numbers, and reconstructs the digits from these numbers.

It gets no labels: the target is the image itself. So it must learn to represent all pixels (784 in
MNIST) by `--code` numbers without losing the important information. The pictures show test images
and their reconstructions, and the two principal components of the codes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import report

import fdl
from fdl.look import draw


def main(arguments=None):
    given = options(arguments)
    out = report.folder(given.out)
    (x, _), (x_test, y_test) = getattr(fdl.data, given.data)()
    x, x_test = (np.asarray(each, np.float32) / np.float32(x.max()) for each in (x, x_test))
    model = fdl.autoencoder(x.shape[1:], given.hidden, given.code)
    params, _ = model.init(jax.random.key(given.seed), x[:1])
    print(fdl.summary(model, x[:1]))

    objective = fdl.supervised(model, fdl.squared_error)
    steps = int(given.epochs * len(x) / given.batch)
    optimizer = fdl.adam(fdl.optim.cosine_decay_schedule(given.rate, steps))
    result = fdl.fit(
        *(objective, optimizer, fdl.start(params, optimizer, seed=given.seed), (x, x)),
        batch_size=given.batch,
        steps=steps,
        record_every=-(-steps // 20),
        watch=[fdl.progress()],
    )
    params = result.run.params
    error = fdl.evaluate(objective, params, (x_test, x_test))["loss"]
    of_mean = float(np.mean((x_test - x.mean(0)) ** 2))
    of_plane = projected(x, x_test, given.code)
    print(f"\nMean squared error of a pixel, on test images that it has never seen: {error:.5f}")
    print(f"  {of_plane:.5f} by {given.code} principal components, {of_mean:.5f} by the mean image")
    names = fdl.data.FASHION_CLASSES if given.data == "fashion_mnist" else None
    pictures(out, model, params, result, x_test, y_test, names)
    print(f"Pictures are in {out}/")


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist", "digits"])
    parser.add_argument("--code", type=int, default=16, help="numbers in the code of an image")
    parser.add_argument(
        "--hidden", type=int, nargs="*", default=[256, 128], help="widths of hidden layers"
    )
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out/autoencoder", help="folder for the pictures")
    return parser.parse_args(arguments)


def projected(x, x_test, count):
    """The error of a linear code: projection on the principal components of <= 10,000 images."""
    flat, flat_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    mean = flat.mean(0)
    _, _, directions = np.linalg.svd(flat[:10000] - mean, full_matrices=False)
    plane = directions[:count]
    rebuilt = (flat_test - mean) @ plane.T @ plane + mean
    return float(np.mean((rebuilt - flat_test) ** 2))


def pictures(out, model, params, result, x_test, y_test, names):
    draw.learning_curves(result.history).savefig(out / "learning_curves.png")
    few = np.stack([x_test[y_test == digit][0] for digit in range(10)])
    rebuilt = np.asarray(fdl.predict(model, params, jnp.asarray(few)))
    fdl.look.image_rows({"given": few, "rebuilt": rebuilt}).savefig(out / "rebuilt.png")
    rows = slice(1000)
    before, _ = model.init(jax.random.key(1), few[:1])
    look = jax.jit(fdl.capture(model, "encode"))
    seen = [{"code": np.asarray(look(p, {}, x_test[rows])["encode"])} for p in (before, params)]
    figure = draw.representations(*seen, y_test[rows], class_names=names)
    figure.savefig(out / "code.png")


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
