"""A tiny transformer learns one task, is adapted to another by low-rank updates, and is exported.

The network learns to count up by 1, modulo the number of tokens (7, 8, 9, 0, 1, ...). Then its
weights stay fixed, and updates of a low rank are learned beside them, until the network counts up
by 3. The updates are added to the weights, and the network is saved as a program, which JAX runs
without fdl. If the extra `onnx` is installed, it is saved as an ONNX file too.
"""

import argparse
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import report

import fdl


def main(arguments=None):
    given = options(arguments)
    out = report.folder(given.out, first="counts.jax")
    model = fdl.gpt(given.tokens, given.length, 2, 2, given.features)
    params, state = model.init(jax.random.key(given.seed), counted(1, given)[0])
    by_1, by_3 = counted(1, given), counted(3, given)
    run = learn(model, params, fdl.adam(given.rate), by_1, given)
    params = run.params
    print(f"Pretrained: {score(model, params, by_1)} right by 1, {score(model, params, by_3)} by 3")

    adapted = fdl.low_rank(model, "block/*/**/w", rank=given.rank)
    updated, _ = adapted.init(jax.random.key(given.seed + 1), by_3[0])
    updated["base"] = params
    optimizer = fdl.optim.chain(fdl.adam(given.rate), fdl.optim.freeze("base/**"))
    updated = learn(adapted, updated, optimizer, by_3, given).params
    sizes = [sum(map(jnp.size, jax.tree.leaves(tree))) for tree in (updated["low_rank"], params)]
    print(f"Adapted {sizes[0]:,} numbers beside {sizes[1]:,} fixed ones")
    merged = fdl.merge_low_rank(updated)
    print(f"Adapted: {score(model, merged, by_1)} right by 1, {score(model, merged, by_3)} by 3")
    export(out, model, merged, state, by_3[0])


def counted(step, given):
    """(x [N, T], y [N, T]): sequences that count up by `step`, and the tokens that come next."""
    rows = np.arange(given.tokens)[:, None] + step * np.arange(given.length + 1)
    rows = (rows % given.tokens).astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def learn(model, params, optimizer, data, given):
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    run = fdl.start(params, optimizer, seed=given.seed)
    return fdl.fit(objective, optimizer, run, data, batch_size=8, steps=given.steps).run


def score(model, params, data):
    """The share of right tokens after the first two of each sequence, which show the step."""
    x, y = data
    found = fdl.predict(model, params, x).argmax(-1)
    return f"{np.mean(np.asarray(found)[:, 1:] == y[:, 1:]):.1%}"


def export(out, model, params, state, x):
    """Saves the network, and prints the outputs of fdl and of the files beside each other."""
    columns = {"fdl": model.apply(params, state, x)[0]}
    fdl.port.save_program(out / "counts.jax", lambda x: model.apply(params, state, x)[0], x)
    columns["program"] = fdl.port.load_program(out / "counts.jax")(x)
    if importlib.util.find_spec("jax2onnx"):
        import onnxruntime

        fdl.port.save_onnx(out / "counts.onnx", model, params, state, x)
        session = onnxruntime.InferenceSession(out / "counts.onnx")
        columns["ONNX"] = session.run(["y"], {"x": x})[0]
    print("\nThe logits of the first tokens after the first sequence:\n")
    print("token  " + "".join(f"{name:>12}" for name in columns))
    for token in range(5):
        row = (f"{float(y[0, -1, token]):12.6f}" for y in columns.values())
        print(f"{token:5}  " + "".join(row))
    apart = max(float(np.max(np.abs(np.asarray(y) - columns["fdl"]))) for y in columns.values())
    print(f"\nThe largest difference of any output is {apart:.1e}. The files are in {out}/")


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=10, help="the number of different tokens")
    parser.add_argument("--length", type=int, default=12, help="tokens in a sequence")
    parser.add_argument("--features", type=int, default=32, help="width of the network")
    parser.add_argument("--rank", type=int, default=4, help="rank of the updates")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of Adam")
    parser.add_argument("--steps", type=int, default=300, help="steps of each of the two trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out/finetune", help="folder for the files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
