"""scikit-learn's multilayer perceptrons, for the workloads that they can express."""

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor

from benchmarks.peers import Block, Lacks

TITLE = "scikit-learn"
NEEDS = ("sklearn",)


def training(work, x, y, form=""):
    if work.dtype != "float32":
        raise Lacks("it computes in float32 or float64")
    return _PartialFit(work, x, y)


class _PartialFit:
    def __init__(self, work, x, y):
        self.model = NETWORKS[work.network](work)
        self.x, self.y, self.batch, self.at = x, y, work.batch, 0
        self.labels = {} if work.loss == "squares" else {"classes": np.unique(y)}

    def steps(self, count):
        """One call of `partial_fit` is one pass over the examples that it gets."""
        losses, every, left = [], len(self.x) // self.batch, count
        while left:
            now = min(left, every)
            if (self.at + now) * self.batch > len(self.x):
                self.at = 0
            part = slice(self.at * self.batch, (self.at + now) * self.batch)
            self.model.partial_fit(self.x[part], self.y[part], **self.labels)
            losses.append(self.model.loss_)
            self.at, left = self.at + now, left - now
        # The loss of a regression is half of the mean squared error.
        return Block(float(np.mean(losses)) * (1 if self.labels else 2), count)

    def accuracy(self, x, y):
        return self.model.score(x, y)


def _options(work):
    solver = {"momentum": "sgd", "adam": "adam"}.get(work.optimizer)
    if solver is None:
        raise Lacks(f"it has no optimizer {work.optimizer}")
    return {
        "solver": solver,
        "learning_rate_init": work.rate,
        "momentum": 0.9,
        "nesterovs_momentum": False,
        "batch_size": work.batch,
        "alpha": 0.0,
        "random_state": 0,
    }


def perceptron(work):
    return MLPClassifier(hidden_layer_sizes=work.sizes["hidden"], **_options(work))


def autoencoder(work):
    """scikit-learn has one activation for all hidden layers, so the code has a relu here."""
    hidden = work.sizes["hidden"]
    layers = (*hidden, work.sizes["code"], *hidden[::-1])
    return MLPRegressor(hidden_layer_sizes=layers, **_options(work))


NETWORKS = {"perceptron": perceptron, "autoencoder": autoencoder}
