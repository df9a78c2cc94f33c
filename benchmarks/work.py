"""The workloads for all libraries: networks, sizes, data, batches and optimizers.

A new workload is one entry of WORK. `network` names a function of NETWORKS in each file of
`peers/`, and `sizes` are its arguments; a library whose file lacks the function is left out.
B examples in a batch, N examples in the data.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES = 10
# The share of labels that are random. It keeps losses away from 0, so that they can be compared.
WRONG_LABELS = 0.2
Data = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Work:
    """A workload.

    Args:
      network: the name of the network, the same in each file of peers/.
      sizes: the arguments of the network.
      data: a function of a random generator that returns (x [N, ...], y [N, ...]).
      batch: B.
      optimizer: "sgd", "momentum" (0.9), "adam" or "adamw" (weight decay 0.01).
      rate: the learning rate.
      kind: "training"; "sweep", many networks that differ in rate and seed; or "start", a process
        that begins with imports and ends when the network reaches `target`.
      loss: "classes", the cross-entropy of integer labels; or "squares", the mean squared error.
      dtype: "float32", or "bfloat16" with weights in float32.
      checked: the number of steps after the first one whose mean loss is compared.
      members: the number of networks of a sweep.
      target: the test accuracy at which "start" ends.
    """

    network: str
    sizes: dict[str, Any]
    data: Callable[[np.random.Generator], Data]
    batch: int
    optimizer: str
    rate: float
    kind: str = "training"
    loss: str = "classes"
    dtype: str = "float32"
    checked: int = 100
    members: int = 1
    target: float = 1.0

    @property
    def has_channels(self) -> bool:
        """Whether x is [N, *spatial, C], which some libraries want as [N, C, *spatial]."""
        return self.network in ("lenet", "resnet", "vit", "conv1d")

    @property
    def rates(self) -> np.ndarray:
        """The learning rate of each member of a sweep: 8 rates, each repeated for its seeds."""
        return np.repeat(np.geomspace(1e-3, 1e-1, 8), self.members // 8).astype(np.float32)


def batches(x: np.ndarray, y: np.ndarray, size: int):
    """Batches without end; each pass over the data has a new order."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(x))
        for begin in range(0, len(x) - size + 1, size):
            rows = order[begin : begin + size]
            yield x[rows], y[rows]


def vectors(rng, shape, count=8192) -> Data:
    """Noise around one vector for each class: x [N, *shape], y [N]."""
    y = rng.integers(0, CLASSES, count)
    centers = rng.standard_normal((CLASSES, *shape), np.float32)
    x = rng.standard_normal((count, *shape), np.float32) + 0.3 * centers[y]
    wrong = rng.random(count) < WRONG_LABELS
    return x, np.where(wrong, rng.integers(0, CLASSES, count), y).astype(np.int32)


def to_itself(rng, size) -> Data:
    """Vectors that have 16 hidden causes and are their own targets: x and y [N, size]."""
    causes = rng.standard_normal((8192, 16), np.float32)
    x = np.tanh(causes @ rng.standard_normal((16, size), np.float32) / 4)
    return x, x


def text(rng, vocabulary, length, count=1024) -> Data:
    """Tokens, most of which follow from the one before: x [N, length], y the next tokens."""
    follower = rng.permutation(vocabulary)
    tokens = rng.integers(0, vocabulary, (count, length + 1))
    for t in range(length):
        known = rng.random(count) < 0.7
        tokens[:, t + 1] = np.where(known, follower[tokens[:, t]], tokens[:, t + 1])
    tokens = tokens.astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def words(rng, vocabulary, length, count=8192) -> Data:
    """Words, about half of them typical of the example's class y: x [N, length], y [N]."""
    y = rng.integers(0, CLASSES, count)
    share = vocabulary // CLASSES
    typical = y[:, None] * share + rng.integers(0, share, (count, length))
    anything = rng.integers(0, vocabulary, (count, length))
    x = np.where(rng.random((count, length)) < 0.5, typical, anything)
    return x.astype(np.int32), y.astype(np.int32)


def mnist(rng) -> Data:
    """MNIST's training images as vectors: x [60000, 784] in [0, 1], y [60000]."""
    return _mnist("train")


def mnist_test() -> Data:
    return _mnist("test")


def _mnist(part: str) -> Data:
    import fdl

    images, labels = getattr(fdl.data.mnist(), part)
    x = np.asarray(images).reshape(len(images), -1).astype(np.float32) / 255
    return x, np.asarray(labels).astype(np.int32)


def of(form: Callable[..., Data], *shape: Any, **options: Any) -> Callable[..., Data]:
    """The function `rng -> form(rng, *shape, **options)`."""
    return lambda rng: form(rng, *shape, **options)


def _perceptron(width: int, batch: int, **options: Any) -> Work:
    sizes = {"inputs": 784, "hidden": (width, width), "outputs": CLASSES}
    rate = 0.01 if batch > 1 else 0.001
    given: dict[str, Any] = {"optimizer": "momentum", "rate": rate}
    return Work("perceptron", sizes, of(vectors, (784,)), batch, **given | options)


_image = functools.partial(of, vectors)
_sequence = of(vectors, (64, 64), count=1024)
_gpt = Work(
    "gpt",
    {"vocabulary": 65, "length": 128, "layers": 4, "heads": 4, "features": 128},
    of(text, 65, 128),
    batch=16,
    optimizer="adamw",
    rate=1e-3,
    checked=30,
)
_lenet = Work(
    "lenet", {"image": 28}, _image((28, 28, 1), count=2048), 128, "adam", 1e-3, checked=16
)
_recurrent = {"inputs": 64, "features": 128}
_words = Work(
    "bag", {"vocabulary": 50_000, "features": 64}, of(words, 50_000, 64), 128, "sgd", rate=10.0
)
_start = {"inputs": 784, "hidden": (512,), "outputs": CLASSES}

WORK = {
    "perceptron-32": _perceptron(32, 128),
    "perceptron-512": _perceptron(512, 128),
    "perceptron-32-batch-1": _perceptron(32, 1),
    "perceptron-512-batch-1": _perceptron(512, 1),
    "perceptron-512-batch-32": _perceptron(512, 32),
    "perceptron-512-batch-1024": _perceptron(512, 1024),
    "perceptron-512-bfloat16": _perceptron(512, 128, dtype="bfloat16"),
    "lenet": _lenet,
    "lenet-batch-1": dataclasses.replace(_lenet, batch=1, rate=1e-4),
    "lenet-batch-1024": dataclasses.replace(_lenet, batch=1024, checked=4),
    "lenet-bfloat16": dataclasses.replace(_lenet, dtype="bfloat16"),
    "resnet-20": Work(
        "resnet", {"blocks": 3, "width": 16}, _image((32, 32, 3), count=1024), 64, "momentum", 0.01,
        checked=16,
    ),
    "gpt": _gpt,
    "gpt-bfloat16": dataclasses.replace(_gpt, dtype="bfloat16"),
    "vit": Work(
        "vit",
        {"image": 32, "patch": 4, "layers": 4, "heads": 4, "features": 128},
        _image((32, 32, 3), count=1024),
        batch=64,
        optimizer="adamw",
        rate=1e-3,
        checked=16,
    ),
    "lstm": Work("lstm", _recurrent, _sequence, 32, "adam", 1e-3),
    "gru": Work("gru", _recurrent, _sequence, 32, "adam", 1e-3),
    "autoencoder": Work(
        "autoencoder",
        {"inputs": 784, "hidden": (256,), "code": 32},
        of(to_itself, 784),
        batch=128,
        optimizer="adam",
        rate=1e-3,
        loss="squares",
    ),
    "conv1d": Work(
        "conv1d", {"channels": 16}, of(vectors, (128, 16), count=2048), 64, "adam", 1e-3, checked=50
    ),
    "words-50000": _words,
    "words-50000-adam": dataclasses.replace(_words, optimizer="adam", rate=1e-3),
    "sweep-64": _perceptron(32, 128, kind="sweep", members=64),
    "mnist-start": Work(
        "perceptron", _start, mnist, 128, "momentum", 0.1, kind="start", target=0.97
    ),
}  # fmt: skip
