"""A network learns to read handwritten digits, by gradient descent written in fdl.

It is trained on three quarters of scikit-learn's 1,797 real scans, 8 x 8 pixels each, and tested on
the rest. Then it is trained again from the same seed, with optax's SGD. Nothing is downloaded.
"""

import jax
import numpy as np
import optax
import report

import fdl


def main(arguments=None):
    given = options(arguments)
    learn(fdl.data.digits(seed=given.seed), given, scale=1 / 16)


def options(arguments=None):
    return report.parser(
        __doc__,
        hidden=[256, 128],
        dropout=0.3,
        optimizer="momentum",
        rate=0.05,
        batch=32,
        epochs=60,
        seed=0,
        out="out/digits",
    ).parse_args(arguments)


def network(options, split, scale):
    """The model, its initial parameters, and the objective."""
    model = fdl.mlp(options.hidden, report.CLASSES, dropout_rate=options.dropout, scale=scale)
    params, _ = model.init(jax.random.key(options.seed), split.train[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    return model, params, objective


def steps(options, split):
    return -(-options.epochs * len(split.train[0]) // options.batch)


def learn(split, options, scale):
    """Trains on split.train, tests on split.test, and reports."""
    out = report.folder(options.out)
    x_test, y_test = split.test
    model, params, objective = network(options, split, scale)
    print(fdl.summary(model, split.train[0][:1]))
    print(f"\n{len(split.train[0]):,} images for training, {len(x_test):,} for testing\n")

    # Gradient descent, written in fdl.
    optimizer = report.optimizer(fdl, options, steps(options, split))
    result = report.train(
        *(objective, optimizer, params, split.train, options),
        validation=split.test,
        watch=[fdl.progress(), fdl.log(out / "history.jsonl")],
    )
    if result.reason != "done":
        print(f"Training ended early: {result.reason}.")

    scores = fdl.evaluate(objective, result.run.params, split.test)
    logits = fdl.predict(model, result.run.params, x_test)
    predicted = np.asarray(logits.argmax(-1))
    print(f"\nTest accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}")
    report.print_confusion(fdl.confusion_matrix(predicted, y_test, report.CLASSES))

    # The same training with optax: only the optimizer is different.
    if not options.no_optax:
        theirs = report.optimizer(optax, options, steps(options, split))
        other = report.train(objective, theirs, params, split.train, options)
        rows = {
            "fdl.sgd": (optimizer, scores),
            "optax.sgd": (theirs, fdl.evaluate(objective, other.run.params, split.test)),
        }
        pace = report.paces(objective, rows, params, split.train, options)
        report.side_by_side(rows, pace, result.run.params, other.run.params)

    report.pictures(out, model, params, result, split, predicted, logits)
    fdl.save_weights(out / "weights.safetensors", result.run.params)
    print(f"\nHistory, pictures and weights are in {out}/")


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
