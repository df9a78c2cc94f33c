"""Which optimizer and which learning rate are best for a problem?

Each optimizer trains the same network with every learning rate and every seed, on scikit-learn's
digits or on MNIST. All runs of an optimizer are one compiled program. --optimizers takes names of
fdl.optim; optax.NAME means the optimizer of optax; momentum and nesterov mean sgd with momentum
0.9. With --against optax, this script instead compares each optimizer of fdl with the same one of
optax, and --optimizers takes names from the tests, such as adam_0.
"""

import argparse
import functools
import math
import warnings

import jax
import optax
import report

import fdl

DATA = {"digits": (fdl.data.digits, 1 / 16), "mnist": (fdl.data.mnist, 1 / 255)}
OPTIMIZERS = [
    *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"),
    *("adamw", "nadam", "radam", "lion", "lamb", "schedule_free_adamw"),
]
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0]
MOMENTUM = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}


def main(arguments=None):
    given = options(arguments)
    if given.against:
        import beside_optax

        beside_optax.show(given.optimizers)
        return
    makes = {name: named(name) for name in given.optimizers or OPTIMIZERS}
    out = report.folder(given.out, "table.txt")
    found = compare(given, makes)
    table = fdl.look.comparison_table(found)
    print(f"\n{table}")
    (out / "table.txt").write_text(table + "\n")
    for draw in (fdl.look.best_curves, fdl.look.rate_sensitivity):
        draw(found).savefig(out / f"{draw.__name__}.png")
    print(f"\nThe table and two pictures are in {out}/")


def compare(given, makes):
    """Trains with one optimizer after the other; prints the time and the warnings of each."""
    load, scale = DATA[given.data]
    split = load()
    model = fdl.mlp(given.hidden, report.CLASSES, scale=scale)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    steps = math.ceil(given.epochs * len(split.train[0]) / given.batch)
    race = functools.partial(
        fdl.compare_optimizers,
        objective,
        lambda seed: model.init(jax.random.key(seed), split.train[0][:1]),
        split.train,
        rates=given.rates,
        seeds=given.seeds,
        batch_size=given.batch,
        steps=steps,
        record_every=math.ceil(steps / 20),
        validation=split.test,
        target=given.target,
    )
    found = {}
    for name, make in makes.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            found |= race({name: make})
        each = found[name]
        seconds = each.seconds_per_step * steps * len(given.rates) * len(given.seeds)
        print(
            f"{name}: {len(given.rates) * len(given.seeds)} runs of {steps} steps in "
            f"{seconds:.1f} s, after {each.compile_seconds:.1f} s of compilation",
            *(str(warning.message) for warning in said),
            sep="\n  ",
            flush=True,
        )
    return found


def named(name):
    """A function rate -> optimizer."""
    library, _, short = name.rpartition(".")
    if short in MOMENTUM:
        return functools.partial((optax if library else fdl).sgd, **MOMENTUM[short])
    places = {"": [fdl.optim], "optax": [optax, optax.contrib]}.get(library, [])
    for place in places:
        if hasattr(place, short):
            return getattr(place, short)
    raise SystemExit(
        f"--optimizers: expected names of fdl.optim, or optax.NAME, got {name!r}; try adam"
    )


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name, text, **how):
        parser.add_argument(name, help=f"{text} (default: %(default)s)", **how)

    add("--data", "what to learn", choices=list(DATA), default="digits")
    parser.add_argument(
        "--optimizers",
        help=f"names of optimizers (default: {' '.join(OPTIMIZERS)}; with --against optax, all)",
        nargs="+",
        metavar="NAME",
    )
    add(
        "--rates",
        "learning rates, in ascending order",
        type=float,
        nargs="+",
        default=RATES,
        metavar="RATE",
    )
    add("--seeds", "seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    add("--hidden", "hidden widths", type=int, nargs="*", default=[128, 64], metavar="WIDTH")
    add("--batch", "examples in a batch", type=int, default=32)
    add("--epochs", "passes over the data", type=float, default=20)
    add(
        "--target",
        "test loss; the table has the steps until it is reached",
        type=float,
        default=0.12,
    )
    add("--out", "folder for the table and the pictures", default="out/optimizers")
    parser.add_argument("--against", choices=["optax"], help="show differences from optax")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
