"""From a CSV file with missing values and categories to a saved model that predicts elsewhere.

python examples/table.py                                    predicts the rent of made-up flats
python examples/table.py --data my.csv --target colour      learns your own table
python examples/table.py --predict new.csv                  only predicts, with what was saved

The network is trained on four fifths of the rows. Then this script runs again, in a new process
that has only the saved folder, and predicts the rest. The target may be a number or a class.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.csv
import report

import fdl

HIDDEN = [64, 32]
FEATURES = 4  # the length of the vector that is learned for a category


def main(arguments=None):
    given = options(arguments)
    try:
        predict_file(given) if given.predict else learn(given)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="CSV or Parquet file to learn (default: made-up flats)")
    parser.add_argument("--target", default="rent", help="column to predict (default: rent)")
    parser.add_argument("--predict", help="file to predict, without training")
    parser.add_argument("--epochs", type=int, default=60, help="(default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--out", default="out/table", help="folder to save in (default: out/table)")
    return parser.parse_args(arguments)


def flats(file, rows=2000, seed=0):
    """Writes a table of made-up flats, in which some values are missing."""
    rng = np.random.default_rng(seed)
    area = rng.gamma(6, 12, rows).round(1) + 15
    city, heating = (rng.integers(0, count, rows) for count in (4, 3))
    balcony = rng.random(rows) < 0.4
    rent = (6 + 2.5 * city) * area + 60 * balcony * city - 45 * heating + rng.normal(0, 40, rows)

    def with_gaps(values, share):
        return pyarrow.array(values, mask=rng.random(rows) < share)

    columns = {
        "area": with_gaps(area, 0.1),
        "city": with_gaps(np.array(["Bonn", "Lyon", "Oslo", "Rome"])[city], 0.05),
        "heating": np.array(["gas", "district", "oil"])[heating],
        "balcony": with_gaps(balcony, 0.2),
        "rent": rent.round(2),
    }
    pyarrow.csv.write_csv(pyarrow.table(columns), file)
    return file


def network(columns):
    """A perceptron. Its inputs are the numbers, and a learned vector for each category."""
    sizes = [1 + len(column.labels) for column in columns.categories]
    first = np.cumsum([0, *sizes], dtype=np.int32)[:-1]  # the first row of w for each column
    target = columns.target
    outputs = 1 if isinstance(target, fdl.data.Numbers) else len(target.labels)

    def forward(f, x):
        vectors = f.embed(x["codes"] + first)  # [B, C, FEATURES]
        flat = vectors.reshape(*vectors.shape[:-2], -1)
        y = f.body(jnp.concatenate([x["numbers"], flat], axis=-1))
        return y[..., 0] if outputs == 1 else y

    embed = fdl.embedding(max(sum(sizes), 1), FEATURES)
    return fdl.network(forward, embed=embed, body=fdl.mlp(HIDDEN, outputs))


def learn(given):
    out = report.folder(given.out)
    rows = fdl.data.read_table(given.data or flats(out / "flats.csv"))
    train, test = fdl.data.split(rows, test=0.2, seed=given.seed)
    t = fdl.data.table(train, target=given.target)
    exam = t.columns.apply(test)
    print(f"{train.num_rows:,} rows for training, {test.num_rows:,} for testing")

    model = network(t.columns)
    params, _ = model.init(jax.random.key(given.seed), t.x)
    of_numbers = isinstance(t.columns.target, fdl.data.Numbers)
    if of_numbers:
        objective = fdl.supervised(model, fdl.squared_error)
    else:
        objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    steps = -(-given.epochs * len(t.y) // 64)
    optimizer = fdl.adamw(fdl.optim.cosine_decay_schedule(0.01, steps))
    result = fdl.fit(
        *(objective, optimizer, fdl.start(params, optimizer, seed=given.seed), (t.x, t.y)),
        batch_size=64,
        steps=steps,
        validation=(exam.x, exam.y),
        watch=[fdl.progress(), fdl.log(out / "history.jsonl")],
    )
    fdl.save_weights(out / "weights.safetensors", result.run.params)
    (out / "columns.json").write_text(t.columns.to_json())

    # A new process has only the folder. It finds columns by name, so their order does not matter.
    unseen = test.select([name for name in reversed(test.column_names) if name != given.target])
    pyarrow.csv.write_csv(unseen, out / "new.csv")
    command = [sys.executable, __file__, "--predict", out / "new.csv", "--out", out]
    subprocess.run(command, check=True)
    predicted = json.loads((out / "predictions.json").read_text())
    score(predicted, test[given.target].to_pylist(), train[given.target].to_pylist(), of_numbers)


def predict_file(given):
    """Predicts the target for the rows of a file, by the columns and weights in a folder."""
    out = Path(given.out)
    columns = fdl.data.Columns.from_json((out / "columns.json").read_text())
    x = columns.apply(given.predict).x
    model = network(columns)
    like, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    y = fdl.predict(model, fdl.load_weights(out / "weights.safetensors", like), x)
    y = np.asarray(y if isinstance(columns.target, fdl.data.Numbers) else y.argmax(-1))
    (out / "predictions.json").write_text(json.dumps(columns.restore(y).tolist()))
    print(f"A new process predicted {len(y):,} rows: see {out / 'predictions.json'}")


def score(predicted, true, before, of_numbers):
    """Compares predictions with the test rows, and with a guess that reads no columns."""
    if of_numbers:
        error, guess = (
            float(np.abs(np.array(true) - each).mean())
            for each in (np.array(predicted), np.median(before))
        )
        print(f"Mean absolute error {error:.4g}; always predicting the median gives {guess:.4g}.")
    else:
        usual = max(set(before), key=before.count)
        right, guess = (
            float(np.mean([a == b for a, b in zip(true, each, strict=True)]))
            for each in (predicted, [usual] * len(true))
        )
        print(f"Accuracy {right:.1%}; always predicting {usual!r} gives {guess:.1%}.")


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
