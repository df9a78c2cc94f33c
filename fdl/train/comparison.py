"""Comparing optimizers: a sweep over learning rates and seeds for each of them."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optax import GradientTransformation

from fdl.checks import described, is_number
from fdl.train.sweep_arguments import Options
from fdl.train.sweeps import Sweep, swept
from fdl.typing import Objective


def compare_optimizers(
    objective: Objective,
    init: Callable[[int], tuple[Any, Any]],
    data: Any,
    optimizers: Mapping[str, Callable[[Any], GradientTransformation]],
    *,
    rates: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    validation: Any = None,
    record_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    target: float | None = None,
) -> dict[str, Sweep]:
    """Trains a network with each optimizer, at each learning rate and with each seed.

    All networks of an optimizer (R learning rates with S seeds each) are trained at once, by one
    compiled function. Each network gets the same final parameters as from `fit`, if `fit` begins
    with the run `start(params, make(rate), seed=seed)`. Here `params` are from `init(seed)`, and
    `make` is the entry in `optimizers`. A network that diverges does not affect the rest.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      init: a function seed -> (params, state), for example
        `lambda seed: model.init(jax.random.key(seed), x)`. With `lambda seed: (params, {})`, all
        seeds begin with the same parameters.
      data: a pytree of arrays [N, ...].
      optimizers: a dict, name -> function that makes an optimizer from a learning rate, for example
        `fdl.adam` or `lambda rate: optax.sgd(rate, momentum=0.9)`. The rate is a
        traced scalar: an array whose value Python code cannot read.
      rates: R learning rates > 0 in increasing order, best with a constant ratio between
        neighbours.
      seeds: S different integers in [0, 2**32). A seed determines the initial parameters, the
        batches and all random numbers.
      batch_size: B, an int >= 1.
      epochs: the number of passes over the data, >= 0, which is ceil(epochs * N / B) steps.
      steps: the number of steps. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. At each record of the history, the
        networks are evaluated on these data, with the parameters that `fdl.optim.eval_params`
        gives.
      record_every: the number of steps from one record of the history to the next. None means one
        epoch.
      monitor: the name of the metric that decides which rate is best: the best rate has the best
        value at the last record, averaged over seeds. The validation metric is used; if there
        are no validation data, the training metric is used.
      mode: "min" if smaller values of the monitored metric are better, "max" if larger values are
        better.
      target: a value of the monitored metric, or None. The results then say how many steps each
        network needed to reach it.

    Returns:
      A dict, name of the optimizer -> `Sweep`, in which each rate is one setting.
      `fdl.look.comparison_table` makes a table of it, and `fdl.look.rate_sensitivity` and
      `fdl.look.best_curves` draw it. `compare_optimizers` warns if the best rate is the smallest or
      the largest one, because a better rate may be outside the grid.

    Raises:
      TypeError: an argument is in the wrong place, or optimizers is not a dict of functions.
      ValueError: an argument is wrong, or the data cannot be trained on.
      PathError: the model cannot take the data; the message gives the path of the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> found = compare_optimizers(
      ...     objective, init=lambda seed: (jnp.array(0.0), {}), data=jnp.ones(8),
      ...     optimizers={"sgd": sgd}, rates=[0.1, 0.5, 2.0], seeds=[0], batch_size=4, steps=4)
      >>> float(found["sgd"].rates[found["sgd"].best]), found["sgd"].diverged().tolist()
      (0.5, [[False], [False], [False]])

    Source: section 11.4 of Goodfellow, Bengio and Courville 2016, "Deep Learning", for the grid;
    Schmidt, Schneider and Hennig 2021, arXiv 2007.01547, for comparing optimizers at their tuned
    rates, over several seeds.
    """
    makers = isinstance(optimizers, Mapping)
    wrong = [make for make in optimizers.values() if not callable(make)] if makers else [optimizers]
    if wrong:
        raise TypeError(
            "compare_optimizers: expected optimizers as a dict, name -> function of the rate, got "
            f"{described(wrong[0])}; pass {{'adam': fdl.adam}}, or {{'sgd': lambda rate: "
            "fdl.sgd(rate, momentum=0.9)}"
        )
    if not optimizers:
        raise ValueError(
            "compare_optimizers: expected at least one optimizer, got none; "
            "pass {'adam': fdl.adam}, for example"
        )
    _check_rates(rates)
    options = Options(
        seeds=seeds,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        validation=validation,
        record_every=record_every,
        monitor=monitor,
        mode=mode,
        target=target,
    )
    by_name, settings = {}, {"learning_rate": rates}
    for name, make in optimizers.items():
        by_rate = functools.partial(_by_rate, make)
        found = swept("compare_optimizers", objective, init, by_rate, settings, data, options)
        by_name[name] = found
        _warn_at_the_edge(name, found)
    return by_name


def _by_rate(make: Callable[[Any], GradientTransformation], learning_rate: Any) -> Any:
    return make(learning_rate)


def _check_rates(rates: Any) -> None:
    listed = isinstance(rates, Iterable) and all(map(is_number, rates))
    grid = np.asarray(rates if listed else [], np.float64)
    fine = grid.ndim == 1 and grid.size and np.isfinite(grid).all() and (grid > 0).all()
    if not fine or not (np.diff(grid) > 0).all():
        raise ValueError(
            f"compare_optimizers: expected rates [R], > 0 and increasing, got {described(rates)}; "
            "start with a wide grid, such as np.geomspace(1e-4, 1, 9)"
        )


def _warn_at_the_edge(name: str, found: Sweep) -> None:
    """Warns if the best rate is the smallest or the largest of the grid."""
    edges = {0: "smallest", len(found.rates) - 1: "largest"}
    if len(found.rates) > 1 and found.best in edges:
        warnings.warn(
            f"compare_optimizers: expected the best rate of {name} inside the grid, got "
            f"{found.rates[found.best]:.3g}, its {edges[found.best]} rate; extend the grid",
            stacklevel=3,
        )
