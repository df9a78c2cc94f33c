"""Test accuracy of the networks that the examples train, over several seeds.

python accuracy.py digits     5 seeds, each with its own split, weights, batches and dropout
python accuracy.py mnist      3 seeds; Keras's example of the same network reports 98.40 %
"""

import statistics
import sys
import time
from pathlib import Path

import measure

import fdl

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import digits
import mnist
import report

STATED = {"digits": None, "mnist": 0.9840}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int)
    given = parser.parse_args()
    rows = [
        accuracy_of(given.data, seed)
        for seed in range(given.seeds or {"digits": 5, "mnist": 3}[given.data])
    ]
    mean = statistics.mean(row["accuracy"] for row in rows)
    measure.report(
        f"accuracy_{given.data}", rows, mean_accuracy=mean, stated_elsewhere=STATED[given.data]
    )
    print(f"mean test accuracy {mean:.4f}")


def accuracy_of(name, seed):
    example, scale = {"digits": (digits, 1 / 16), "mnist": (mnist, 1 / 255)}[name]
    options = example.options(["--seed", str(seed)])
    split = fdl.data.digits(seed=seed) if name == "digits" else fdl.data.mnist()
    _, params, objective = digits.network(options, split, scale)
    optimizer = report.optimizer(fdl, options, digits.steps(options, split))
    begun = time.perf_counter()
    result = report.train(objective, optimizer, params, split.train, options)
    seconds = time.perf_counter() - begun
    scores = fdl.evaluate(objective, result.run.params, split.test)
    return {"seed": seed, **scores, "epochs": options.epochs, "seconds": seconds}


if __name__ == "__main__":
    main()
