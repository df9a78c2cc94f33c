"""`fit` compared with a loop written by hand: one jit of lax.scan over the same steps.

The hand-written program does not use fdl's layers, loss, optimizer or loop. It draws the same
batches and reports the same mean loss and accuracy, and has no hooks. It is also compared with
itself, which shows the noise of the machine.
"""

import contextlib
import functools
import io
import tempfile

import jax
import jax.numpy as jnp
import measure
import numpy as np

import fdl

BATCH, RATE, CLASSES = 128, 0.1, 10


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--epochs", type=int, default=4, help="epochs in one timed call")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 512])
    options = parser.parse_args()
    x, y = jax.tree.map(jnp.asarray, fdl.data.mnist().train)
    rows = []
    for width in options.widths:
        steps = -(-len(x) // BATCH)
        by_hand = hand_written(x, y, width, steps, options.epochs)
        other = hand_written(x, y, width, steps, options.epochs)
        rows.append(
            row(
                "by hand, against itself",
                width,
                measure.paired(other, by_hand, options.pairs),
                options,
            )
        )
        data = (x, y)
        programs = {
            "fit, an epoch a chunk": with_fdl(data, width, steps, options.epochs, chunk=steps),
            "fit, chunk 10": with_fdl(data, width, steps, options.epochs, chunk=10),
            "fit, progress, log, early stopping and checkpoints": with_fdl(
                data, width, steps, options.epochs, chunk=steps, watch=hooks
            ),
            "fit, the batches from a source": with_fdl(
                fdl.data.source(jax.tree.map(np.asarray, data)), width, steps, options.epochs
            ),
        }
        for what, ours in programs.items():
            assert_same(ours(), by_hand())
            rows.append(row(what, width, measure.paired(ours, by_hand, options.pairs), options))
    measure.report("fit_overhead", rows, batch_size=BATCH, data="MNIST", epochs=options.epochs)


@contextlib.contextmanager
def hooks():
    """The hooks that a person would use for a long run. Each is called after every epoch."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        log, stop = fdl.log(f"{folder}/log.jsonl"), fdl.early_stop("loss", patience=1000)
        yield [fdl.progress(), log, stop, fdl.checkpoints(f"{folder}/saved")]


def row(what, width, timing, options):
    steps = -(-60_000 // BATCH) * options.epochs
    return {
        "program": what,
        "width": width,
        "ratio": timing["ratio"],
        "quartiles": f"{timing['ratio_low']:.3f} to {timing['ratio_high']:.3f}",
        "us_per_step": timing["seconds"] / steps * 1e6,
        "by_hand_us": timing["seconds_other"] / steps * 1e6,
        "pairs": timing["pairs"],
    }


def initial(width):
    keys = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"w": jax.random.normal(keys[0], (784, width)) / 28, "b": jnp.zeros(width)},
        "output": {
            "w": jax.random.normal(keys[1], (width, CLASSES)) / width**0.5,
            "b": jnp.zeros(CLASSES),
        },
    }


def hand_written(x, y, width, steps, epochs):
    def loss_of(params, x, y):
        h = (x.astype(jnp.float32) * (1 / 255)).reshape(len(x), -1)
        h = jax.nn.relu(h @ params["hidden"]["w"] + params["hidden"]["b"])
        logits = h @ params["output"]["w"] + params["output"]["b"]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        return -picked.mean(), (logits.argmax(1) == y).mean()

    def step(params, number, x, y):
        rows = fdl.data.stream(0, number, BATCH, len(x))
        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, x[rows], y[rows]
        )
        return jax.tree.map(lambda w, g: w - RATE * g, params, gradients), (loss, accuracy)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(params, first, x, y):
        numbers = first + jnp.arange(steps, dtype=jnp.uint32)
        params, seen = jax.lax.scan(lambda p, n: step(p, n, x, y), params, numbers)
        return params, jax.tree.map(jnp.mean, seen)

    start = initial(width)

    def run():
        params = jax.tree.map(jnp.copy, start)
        for number in range(epochs):
            params, seen = epoch(params, np.uint32(number * steps), x, y)
            [float(each) for each in seen]
        return params

    return run


def with_fdl(data, width, steps, epochs, chunk=None, watch=contextlib.nullcontext):
    model = fdl.chain(
        fdl.rescale(1 / 255),
        fdl.flatten(),
        hidden=fdl.dense(width),
        activation=fdl.relu,
        output=fdl.dense(CLASSES),
    )
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.sgd(RATE)
    start = initial(width)

    def run():
        with watch() as hooks:
            result = fdl.fit(
                objective,
                optimizer,
                fdl.start(start, optimizer),
                data,
                batch_size=BATCH,
                steps=epochs * steps,
                chunk=chunk,
                record_every=steps,
                watch=hooks or [],
            )
        return result.run.params

    return run


def assert_same(ours, theirs):
    """Raises unless both programs give the same parameters, up to rounding."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # Norms are compared: after thousands of steps, rounding changes single weights by more than
        # the tolerance.
        assert np.linalg.norm(a - b) <= 2e-2 * np.linalg.norm(b)


if __name__ == "__main__":
    main()
