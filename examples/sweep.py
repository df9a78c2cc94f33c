"""A tournament of 64 settings: all train at once, and the worse ones stop early.

Each setting has a learning rate, a momentum and a weight decay, drawn at random. After 1/27, 1/9
and 1/3 of the steps, only the best third of the settings continues, and only their networks are
computed. The picture shows the validation loss of each setting until it stops.

  python examples/sweep.py
  python examples/sweep.py --settings 27 --epochs 10
"""

import argparse

import jax
import numpy as np
import report

import fdl
from fdl.look import figure_parts


def make(learning_rate, momentum, weight_decay):
    """The optimizer of a setting."""
    decay = fdl.optim.add_decayed_weights(weight_decay, mask="**/w")
    return fdl.optim.chain(decay, fdl.sgd(learning_rate, momentum=momentum))


def main(given):
    """Runs the tournament on the digits, prints its table, and draws it."""
    train, test = fdl.data.digits()
    model = fdl.chain(fdl.rescale(1 / 16), fdl.flatten(), fdl.mlp([32, 32], 10))
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    rng = np.random.default_rng(given.seed)
    settings = [
        {
            "learning_rate": 10 ** rng.uniform(-4, 0.5),
            "momentum": rng.uniform(0, 0.98),
            "weight_decay": 10 ** rng.uniform(-6, -1),
        }
        for _ in range(given.settings)
    ]
    steps = given.epochs * len(train[0]) // given.batch
    out = report.folder(given.out, "table.txt")
    found = fdl.sweep(
        objective,
        lambda seed: model.init(jax.random.key(seed), train[0][:1]),
        make,
        settings,
        train,
        seeds=range(given.seeds),
        batch_size=given.batch,
        steps=steps,
        validation=test,
        record_every=max(1, steps // 54),
        rungs=[steps // 27, steps // 9, steps // 3],
    )
    order = found.final("val_loss").mean(1).argsort()
    order = sorted(order, key=lambda place: -found.stopped[place])
    lines = [f"{'rate':>9}{'momentum':>10}{'decay':>10}{'stopped':>9}{'loss':>8}{'accuracy':>10}"]
    for place in order[:10]:
        setting = found.settings[place]
        ends = [found.final(name)[place].mean() for name in ("val_loss", "val_accuracy")]
        lines.append(
            f"{setting['learning_rate']:9.4f}{setting['momentum']:10.3f}"
            f"{setting['weight_decay']:10.2g}{found.stopped[place]:9}{ends[0]:8.3f}{ends[1]:10.3f}"
        )
    text = "\n".join(lines)
    print(f"The ten that went furthest, of {len(settings)}:\n\n{text}")
    (out / "table.txt").write_text(text + "\n")
    best = found.member()
    print(f"\nThe best network on the test images: {fdl.evaluate(objective, best, test)}")
    tournament(found).savefig(out / "tournament.png")
    print(f"The table and the picture are in {out}/")


def tournament(found):
    """The validation loss of each setting until it stopped; the winner in colour."""
    figure = figure_parts.blank("tournament", 7.5, 4.5)
    axes = figure.add_subplot()
    curves = found.curves["val_loss"].mean(1)
    for place, curve in enumerate(curves):
        winner = place == found.best
        shade = 0.85 - 0.55 * found.stopped[place] / found.steps[-1]
        style = {"color": "C0" if winner else str(shade), "linewidth": 2.5 if winner else 0.8}
        axes.plot(found.steps, curve, zorder=3 if winner else 2, **style)
    for rung in sorted({*found.stopped.tolist()} - {int(found.steps[-1])}):
        left = (found.stopped > rung).sum()
        axes.axvline(rung, color="0.6", linestyle=":", linewidth=1, zorder=1)
        place = {"transform": axes.get_xaxis_transform(), "fontsize": 9, "color": "0.3"}
        axes.text(rung, 1.01, f"{left} go on", ha="center", **place)
    winner = found.settings[found.best]
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="validation loss (log scale)")
    axes.set_ylim(top=min(np.nanmax(curves[np.isfinite(curves)]), 10))
    title = f"The best of {len(curves)} settings has rate {winner['learning_rate']:.2g}"
    axes.set_title(f"{title}, momentum {winner['momentum']:.2g}", fontsize=11, pad=18)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def options():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    more = {"type": int, "help": "(default: %(default)s)"}
    parser.add_argument("--settings", default=64, **more)
    parser.add_argument("--seeds", default=2, **more)
    parser.add_argument("--epochs", default=20, **more)
    parser.add_argument("--batch", default=32, **more)
    parser.add_argument("--seed", default=0, **more)
    parser.add_argument(
        "--out", default="out/sweep", help="folder of the results (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main(options().parse_args())
