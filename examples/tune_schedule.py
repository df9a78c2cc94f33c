"""Tunes a learning-rate schedule by gradient descent, through all steps of training.

The validation loss after training is a function of the learning rates. `fdl.outcome` gives this
function, and `jax.grad` differentiates it. Here a schedule has eight rates, at equal distances over
training; between two of them, the rate is a straight line on a log scale. The schedule begins as
the best constant rate of a grid. Then Adam changes all eight rates at once, to lower the mean
validation loss of a few small networks on the digits. At the end, networks with new weights and new
batches are trained with three schedules: the tuned one, the best constant rate, and the best cosine
of a grid. The test images show which one is best.

  python examples/tune_schedule.py
  python examples/tune_schedule.py --rounds 20 --steps 60
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import report
from matplotlib.ticker import LogLocator, NullLocator

import fdl
from fdl.look import figure_parts

RATES = 8
GRID = np.geomspace(0.003, 1.0, 16)
NEW = 2**20  # the first seed of the networks that are scored in the end
STYLES = {"best constant rate": ("0.45", 1.5), "best cosine": ("C1", 1.5), "tuned": ("C0", 2.5)}


def rates_of(logs, steps):
    """The rate of each step, [steps], from the logarithms of the eight rates."""
    places = jnp.linspace(0, steps - 1, RATES)
    return jnp.exp(jnp.interp(jnp.arange(steps, dtype=places.dtype), places, logs))


def make(rates):
    """SGD with momentum, whose rate at each step is read from a table."""
    return fdl.sgd(lambda count: rates[count], momentum=0.9)


def trained(objective, init, schedules, data, validation, seeds, given):
    """A sweep over R schedules, given by their rates [R, steps], with all seeds."""
    rates = jnp.asarray(np.stack(schedules))
    return fdl.sweep(
        objective,
        init,
        lambda schedule: make(rates[jnp.int32(schedule)]),
        {"schedule": range(len(rates))},
        data,
        seeds=seeds,
        batch_size=given.batch,
        steps=given.steps,
        validation=validation,
        record_every=max(1, given.steps // 30),
    )


def loss_after(objective, init, data, validation, given):
    """A function `(logs, seeds) -> validation loss after training`, the mean over the seeds."""

    def start(seed):
        params, state = init(seed)
        return fdl.start(params, make(jnp.zeros(given.steps)), state=state, seed=seed)

    how = {"steps": given.steps, "batch_size": given.batch}

    def mean(logs, seeds):
        rates = rates_of(logs, given.steps)
        each = lambda run: fdl.outcome(objective, make, run, data, validation, **how)  # noqa: E731
        return jax.vmap(lambda run: each(run)({"rates": rates}))(jax.vmap(start)(seeds)).mean()

    return mean


def tuned(loss, logs, given):
    """Gradient descent on the logarithms of the rates, with new networks in every round."""
    adam = fdl.adam(fdl.optim.cosine_decay_schedule(given.rate, given.rounds))
    state = adam.init(logs)
    both = jax.jit(jax.value_and_grad(loss))
    seeds = jnp.arange(given.networks, dtype=jnp.uint32)
    for number in range(given.rounds):
        value, gradient = both(logs, seeds + np.uint32(number * given.networks))
        if number % 10 == 0:
            print(f"round {number:3}: validation loss {value:.4f}", flush=True)
        updates, state = adam.update(gradient, state, logs)
        logs = fdl.optim.apply_updates(logs, updates)
    return logs


def main(given):
    """Tunes the schedule, prints the test loss of all three schedules, and draws them."""
    rest, test = fdl.data.digits()
    train, validation = fdl.data.split(rest, 0.25, stratify=rest[1])
    model = fdl.chain(fdl.rescale(1 / 16), fdl.flatten(), fdl.mlp([32], 10, activation=fdl.tanh))
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    init = lambda seed: model.init(jax.random.key(seed), train[0][:1])  # noqa: E731
    out, steps = report.folder(given.out, "table.txt"), given.steps

    cosine = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    shapes = {"best constant rate": np.ones(steps), "best cosine": cosine}
    grid = np.float32([[rate * shape for rate in GRID] for shape in shapes.values()])
    seeds = range(4 * given.networks)
    found = trained(objective, init, np.concatenate(grid), train, validation, seeds, given)
    best = np.nanargmin(found.final("val_loss").mean(1).reshape(len(shapes), len(GRID)), axis=1)
    schedules = {name: grid[place, best[place]] for place, name in enumerate(shapes)}
    loss = loss_after(objective, init, train, validation, given)
    logs = jnp.full(RATES, jnp.log(schedules["best constant rate"][0]))
    schedules["tuned"] = np.asarray(rates_of(tuned(loss, logs, given), steps))

    seeds = range(NEW, NEW + 4 * given.networks)
    found = trained(objective, init, [*schedules.values()], train, test, seeds, given)
    text = scores(schedules, found)
    print(f"\n{len(seeds)} new networks after {steps} steps, on images not used so far:\n\n{text}")
    (out / "table.txt").write_text(text + "\n")
    picture(schedules, found).savefig(out / "tuned_schedule.png")
    print(f"\nThe table and the picture are in {out}/")


def scores(schedules, found):
    """A table of the test loss, with its standard error, and the test accuracy."""
    lines = [f"{'schedule':20}{'test loss':>19}{'test accuracy':>16}"]
    ends = zip(schedules, found.final("val_loss"), found.final("val_accuracy"), strict=True)
    for name, losses, accuracies in ends:
        error = losses.std(ddof=1) / np.sqrt(len(losses))
        lines.append(f"{name:20}{losses.mean():9.4f} +- {error:.4f}{accuracies.mean():16.4f}")
    return "\n".join(lines)


def picture(schedules, found):
    """The schedules, and the test loss of the networks that are trained with them."""
    figure = figure_parts.blank("tune_schedule", 10, 4)
    left, right = figure.subplots(1, 2)
    losses = dict(zip(schedules, found.curves["val_loss"].mean(1), strict=True))
    steps = np.arange(int(found.steps[-1]))
    for name, (colour, width) in STYLES.items():
        left.plot(steps, schedules[name], color=colour, linewidth=width)
        right.plot(found.steps, losses[name], color=colour, linewidth=width)
    places = np.linspace(0, steps[-1], RATES).round().astype(int)
    left.plot(places, schedules["tuned"][places], "o", color=STYLES["tuned"][0])
    left.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    left.set_title("Eight rates, moved by the gradient of the loss", fontsize=11)
    right.set(xlabel="step", ylabel="test loss (log scale)", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(NullLocator())
    right.set_title(f"The mean of {len(found.seeds)} new networks", fontsize=11)
    label(left, {name: (name, rates[-1]) for name, rates in schedules.items()})
    label(right, {name: (f"{name}: {loss[-1]:.3f}", loss[-1]) for name, loss in losses.items()})
    return figure


def label(axes, ends):
    """Writes a text at the right end of each curve; no two texts overlap."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    below = 0.0
    for name, (text, end) in sorted(ends.items(), key=lambda pair: pair[1][1]):
        height = axes.transLimits.transform(axes.transScale.transform((0, end)))[1]
        place = {"transform": axes.transAxes, "va": "center", "color": STYLES[name][0]}
        axes.text(1.02, max(height, below), text, **place)
        below = max(height, below) + 0.07


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name, default, text):
        help = f"{text} (default: %(default)s)"
        parser.add_argument(name, default=default, type=type(default), help=help)

    add("--steps", 60, "steps of training")
    add("--batch", 32, "batch size")
    add("--networks", 8, "new networks in each round; four times as many are compared at the end")
    add("--rounds", 80, "steps of gradient descent on the rates")
    add("--rate", 0.1, "learning rate of this gradient descent, for the logarithms of the rates")
    add("--out", "out/tune_schedule", "folder of the table and the picture")
    return parser


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main(options().parse_args())
