"""A small GPT learns a text character by character, and then writes text.

By default, the text is the source code of Python's standard library, which is on every machine. The
network learns from most of its files, and is tested on the other files. The result is the number of
bits that it needs for a character of the test files, compared with gzip, bzip2 and xz. (A language
model is a compressor: with arithmetic coding, its number of bits is the size of the compressed
file.)
"""

import argparse
import bz2
import gzip
import lzma
import math
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import report

import fdl
from fdl.look import draw


def main(arguments=None):
    given = options(arguments)
    out = report.folder(given.out)
    train, test, alphabet = text_of(given.data)
    print(f"{len(train):,} characters for training, {len(test):,} for testing")
    model = fdl.gpt(
        *(len(alphabet), given.context, given.layers, given.heads, given.features),
        dropout_rate=given.dropout,
    )
    x, y = fdl.data.windows(train, given.context, stride=given.stride)
    print(fdl.summary(model, x[:1]))
    result, objective = learn(model, (x, y), given)
    seconds = result.history[-1]["seconds"]
    print(f"Trained {given.steps:,} steps in {seconds:.0f} s")

    plain = fdl.data.windows(test, given.context, given.context)
    loss = fdl.evaluate(objective, result.run.params, plain, batch_size=64)["loss"]
    print(f"\nTest loss {loss:.4f} nats per character, on pieces of {given.context} characters")
    data = fdl.data.scored(test, given.context)
    nats = fdl.evaluate(objective, result.run.params, data, batch_size=64)["loss"]
    print(f"{nats:.4f} if the pieces overlap, so that a character has half a piece before it")
    table(bits(nats), as_bytes(test, alphabet))

    draw.learning_curves(result.history).savefig(out / "learning_curves.png")
    fdl.save_weights(out / "weights.safetensors", result.run.params)
    print("\nIt writes:\n")
    print(written(model, result.run.params, train, alphabet, given))
    print(f"\nThe learning curve and the weights are in {out}/")


def options(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", help="a text file; its last tenth is for testing")
    parser.add_argument("--layers", type=int, default=4, help="number of blocks")
    parser.add_argument("--heads", type=int, default=4, help="heads in each block")
    parser.add_argument("--features", type=int, default=128, help="width of the network")
    parser.add_argument("--context", type=int, default=128, help="characters it sees at once")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=16, help="pieces in a batch")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2e-3, help="AdamW's highest learning rate")
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="Muon's highest rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps until the highest rate")
    parser.add_argument("--stride", type=int, default=16, help="characters between pieces")
    parser.add_argument("--seed", type=int, default=0)
    text = "characters to write, at most 3/4 of the context"
    parser.add_argument("--write", type=int, default=96, help=text)
    parser.add_argument("--out", default="out/char_gpt", help="folder for curve and weights")
    return parser.parse_args(arguments)


def text_of(file):
    """(ids for training, ids for testing, alphabet)."""
    if file is not None:
        split, alphabet = fdl.data.characters(Path(file).read_text())
        return split.train, split.test, alphabet
    train, test = standard_library()
    alphabet = "".join(sorted({*train, *test}))
    place = {character: number for number, character in enumerate(alphabet)}
    return *(np.array([place[c] for c in text], np.uint8) for text in (train, test)), alphabet


def standard_library(held_out=20):
    """The modules of Python's standard library as two texts; every 20th is for testing."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "encodings")
    files = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not any(part in skipped for part in path.relative_to(folder).parts)
    ]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    # Characters that are not ASCII are rare. They become "?".
    texts = [text.encode("ascii", "replace").decode() for text in texts]
    held = "".join(texts[::held_out])
    learned = "".join(text for i, text in enumerate(texts) if i % held_out)
    return learned, held


def learn(model, data, given):
    params, _ = model.init(jax.random.key(given.seed), data[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    optimizer = search(given)
    run = fdl.start(params, optimizer, seed=given.seed)
    result = fdl.fit(
        *(objective, optimizer, run, data),
        batch_size=given.batch,
        steps=given.steps,
        record_every=-(-given.steps // 50),
        watch=[fdl.progress()],
    )
    return result, objective


def search(given):
    """Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all.

    Each rate warms up, then falls.
    """

    def rate(peak):
        return fdl.optim.warmup_cosine_decay_schedule(
            0.0, peak, given.warmup, given.steps, peak / 10
        )

    adamw = fdl.adamw(rate(given.rate), b2=0.99, weight_decay=0.1, mask="**/w")
    if given.optimizer == "adamw":
        chosen = adamw
    else:
        matrices = fdl.muon(rate(given.matrix_rate), weight_decay=0.01)
        # All other parameters have no weight decay: embeddings, norms and biases.
        plain = fdl.adamw(rate(given.rate), b2=0.99, weight_decay=0.0)
        chosen = fdl.optim.partition({"block/**/w": matrices}, rest=plain)
    return fdl.optim.chain(fdl.optim.clip_by_global_norm(1.0), chosen)


def bits(nats):
    return nats / math.log(2)


def as_bytes(ids, alphabet):
    return "".join(alphabet[i] for i in ids).encode()


def table(ours, text):
    """Prints the bits per character of the test text, for the network and three compressors."""
    packed = {
        "gzip -9": gzip.compress(text, 9),
        "bzip2 -9": bz2.compress(text, 9),
        "xz -9e": lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    }
    rows = {name: 8 * len(data) / len(text) for name, data in packed.items()} | {"this GPT": ours}
    print("\nBits per character of the test text (the compressors get the text as one file)")
    for name, needed in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"{name:>10} {needed:6.3f}")


def written(model, params, train, alphabet, given):
    """The beginning of the training text, continued by the network within one context."""
    start = jnp.asarray(train[: given.context // 4][None], jnp.int32)
    room = min(given.write, given.context - start.shape[1])
    made = fdl.generate(
        model, params, start, room, key=jax.random.key(given.seed), temperature=0.8, top_k=40
    )
    return "".join(alphabet[i] for i in np.asarray(made[0]))


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
