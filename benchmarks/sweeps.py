"""A sweep of 64 networks, 8 rates and 8 seeds, compared with 64 calls of `fit`, one by one.

The 64 solo calls share one program, because the learning rate is a part of the optimizer's state.
The program is compiled before the measurement. `steps_ratio` compares the training steps alone.
`all_ratio` is the time of the first call of the sweep, including compilation and validation,
divided by the time of the 64 solo calls, including validation.
"""

import time

import jax
import measure
import numpy as np

import fdl

RATES, SEEDS = np.geomspace(1e-3, 1e-1, 8).tolist(), range(8)
WORK = {
    "784-32-32-10, MNIST": {"hidden": [32, 32], "batch_size": 128, "scale": 1 / 255},
    "64-32-32-10, digits": {"hidden": [32, 32], "batch_size": 32, "scale": 1 / 16},
}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=938)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name, work in WORK.items():
        data = fdl.data.mnist() if "MNIST" in name else fdl.data.digits()
        train, test = (jax.tree.map(jax.numpy.asarray, part) for part in (data.train, data.test))
        solo, together = runs(work, train, test, options.steps)
        solo(RATES[0], 0, None)  # compiles
        solo(RATES[0], 0, test)
        first = measure.seconds(together)
        found = [one_round(solo, together, test) for _ in range(options.rounds)]
        best = {key: min(each[key] for each in found) for key in found[0]}
        rows.append(
            {
                "network": name,
                "steps_ratio": float(np.median([e["swept"] / e["alone"] for e in found])),
                "all_ratio": first / best["alone_validated"],
                "us_per_member_step": best["swept"] / options.steps / 64 * 1e6,
                "solo_us": best["alone"] / options.steps / 64 * 1e6,
                "first_call_seconds": first,
                "solo_calls_seconds": best["alone_validated"],
            }
        )
    measure.report("sweeps", rows, members=64, steps=options.steps, rounds=options.rounds)


def runs(work, train, test, steps):
    """(one network alone, 64 together), both as functions that wait for their results."""
    model = fdl.mlp(work["hidden"], 10, scale=work["scale"])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.optim.inject_hyperparams(fdl.sgd)(learning_rate=0.0, momentum=0.9)
    init = lambda seed: model.init(jax.random.key(seed), train[0][:1])  # noqa: E731
    given = {"batch_size": work["batch_size"], "steps": steps}

    def solo(rate, seed, validation):
        params, state = init(seed)
        run = fdl.start(params, optimizer, state=state, seed=seed)
        opt_state = fdl.optim.set_hyperparams(run.opt_state, learning_rate=rate)
        run = run._replace(opt_state=opt_state)
        begun = time.perf_counter()
        jax.block_until_ready(
            fdl.fit(
                objective, optimizer, run, train, chunk=steps, validation=validation, **given
            ).run
        )
        return time.perf_counter() - begun

    def make(learning_rate):
        return fdl.sgd(learning_rate, momentum=0.9)

    def together():
        return fdl.sweep(
            objective,
            init,
            make,
            {"learning_rate": RATES},
            train,
            seeds=SEEDS,
            validation=test,
            **given,
        )

    return solo, together


def one_round(solo, together, test):
    grid = [(rate, seed) for rate in RATES for seed in SEEDS]
    found = together()
    return {
        "alone": sum(solo(rate, seed, None) for rate, seed in grid),
        "alone_validated": sum(solo(rate, seed, test) for rate, seed in grid),
        "swept": found.seconds_per_step * found.run.seed.size * len(RATES) * int(found.run.step),
    }


if __name__ == "__main__":
    main()
