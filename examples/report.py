"""What the image examples share: options, training, tables, and a folder of pictures."""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import fdl
from fdl.look import difference, draw

CLASSES = 10
DATA = "folder with four IDX files in MNIST's format, gzipped or not, to use instead of MNIST"


def folder(path, first="history.jsonl"):
    """Creates the folder for the results, with an empty first file; exits if it cannot."""
    try:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / first).write_text("")
    except OSError as error:
        raise SystemExit(
            f"--out: expected a folder that can be written, got {path} ({error.strerror}); "
            "choose another"
        ) from None
    return path


def mnist(folder):
    """MNIST, or data in its format from a folder; exits if they cannot be read."""
    try:
        return fdl.data.mnist(folder)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data: {error}" if folder else str(error)) from None


def parser(text, **defaults):
    """The options of an image example; `text`, its docstring, is the help text."""
    options = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.set_defaults(**defaults)

    def add(name, text, **how):
        options.add_argument(name, help=f"{text} (default: %(default)s)", **how)

    add("--hidden", "widths of the hidden layers", type=int, nargs="*", metavar="WIDTH")
    add("--dropout", "probability of dropping a hidden unit", type=float, metavar="RATE")
    add("--optimizer", "the optimizer", choices=["sgd", "momentum", "nesterov"])
    add("--rate", "learning rate at the start; it falls to 0 as half a cosine", type=float)
    add("--batch", "examples in a batch", type=int)
    add("--epochs", "passes over the training data", type=int)
    add("--seed", "seed of the weights, the batches and the dropout", type=int)
    add("--out", "folder for the history and the pictures", metavar="FOLDER")
    options.add_argument("--no-optax", action="store_true", help="do not train again with optax")
    return options


def optimizer(library, options, steps):
    """SGD of fdl or of optax, with the same arguments."""

    def rate(step):
        return options.rate * (1 + jax.numpy.cos(jax.numpy.pi * step / steps)) / 2

    momentum = None if options.optimizer == "sgd" else 0.9
    return library.sgd(rate, momentum, nesterov=options.optimizer == "nesterov")


def train(objective, optimizer, params, data, options, **more):
    """Trains from the seed of the options; `more` is passed to fit."""
    run = fdl.start(params, optimizer, seed=options.seed)
    return fdl.fit(
        objective, optimizer, run, data, batch_size=options.batch, epochs=options.epochs, **more
    )


def paces(objective, rows, params, data, options, steps=500, rounds=5):
    """Steps per second of each optimizer, in its best round. In a round, all run in turn."""
    best = dict.fromkeys(rows, 0.0)
    for _ in range(rounds):
        for name, (optimizer, _) in rows.items():
            run = fdl.start(params, optimizer)
            begun = time.perf_counter()
            fdl.fit(objective, optimizer, run, data, batch_size=options.batch, steps=steps)
            best[name] = max(best[name], steps / (time.perf_counter() - begun))
    return best


def side_by_side(rows, pace, ours, theirs):
    """Prints a table of fdl's SGD and optax's, and the difference between their parameters."""
    print(f"\n{'':12}{'test accuracy':>15}{'test loss':>12}{'steps per second':>19}")
    for name, (_, scores) in rows.items():
        print(f"{name:12}{scores['accuracy']:15.4f}{scores['loss']:12.5f}{pace[name]:19,.0f}")
    apart = difference(ours, theirs)
    if apart.absolute == 0:
        print("Every bit of every parameter is the same.")
    else:
        print(
            f"Largest difference of any parameter: {apart.absolute:.3g} (at {apart.path}), "
            f"{apart.ulps:,} ULPs."
        )


def print_confusion(matrix):
    """Prints the confusion matrix; a row is a true digit, a column is a predicted digit."""
    print("\nConfusion matrix (row: true digit, column: predicted digit; a dot is 0)")
    print("     " + "".join(f"{digit:5d}" for digit in range(CLASSES)))
    for digit, row in enumerate(matrix):
        print(f"{digit:5d}" + "".join(f"{count or '.':>5}" for count in row))


def pictures(out, model, before, result, split, predicted, logits):
    """Saves pictures of training, weights, mistakes and representations as PNG files.

    Prints the accuracy of a linear readout of each layer.
    """
    (x, y), (x_test, y_test) = split.train, split.test
    after = result.run.params
    images = x.shape[1:]
    draw.learning_curves({"fdl": result.history}).savefig(out / "learning_curves.png")
    first = next(value["w"] for name, value in after.items() if "w" in value)
    draw.weight_images(np.asarray(first), images).savefig(out / "first_layer.png")
    draw.mistakes(x_test, y_test, predicted, probabilities=np.asarray(fdl.softmax(logits))).savefig(
        out / "mistakes.png"
    )
    draw.confusion(fdl.confusion_matrix(predicted, y_test, CLASSES)).savefig(out / "confusion.png")

    same = ("rescale", "dropout")  # their outputs look like their inputs
    layers = [path for path in fdl.look.layer_paths(model) if not path.startswith(same)]
    look = jax.jit(fdl.capture(model, *layers))
    rows, rows_test = slice(2000), slice(1000)
    seen, readouts = {}, {}
    for name, params in (("before", before), ("after", after)):
        h, h_test = look(params, {}, x[rows]), look(params, {}, x_test[rows_test])
        readouts[name] = {
            path: fdl.linear_readout((h[path], y[rows]), (h_test[path], y_test[rows_test]), CLASSES)
            for path in layers
        }
        seen[name] = {path: np.asarray(h_test[path]) for path in layers}
    print("\nAccuracy of a linear readout of each layer, before and after training")
    for path in layers:
        print(f"{path:>12} {readouts['before'][path]:8.3f} {readouts['after'][path]:8.3f}")
    draw.representations(
        seen["before"], seen["after"], y_test[rows_test], readouts=readouts
    ).savefig(out / "representations.png")
