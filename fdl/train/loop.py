"""The training loop: many steps as one compiled program, and what needs a host in between."""

import functools
import math
import os
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import GradientTransformation

from fdl import paths
from fdl.train.evaluate import BATCH_SIZE, check_objective, totals, values
from fdl.train.host import Best, Host, interruptible
from fdl.train.means import added
from fdl.train.objective import Objective
from fdl.train.progress import Progress
from fdl.train.step import Run, own, train_step
from fdl.weak_jit import weak_jit


class Result(NamedTuple):
    """What `fit` returns.

    Args:
      run: where training stands; give it to `fit` again to go on.
      history: one dict for each record: step, epoch, seconds, the training loss and metrics since
        the record before, and those of the validation data under `val_...`.
      best: of the validation data; None without any.
      reason: why training ended: "done", "interrupted", "not finite", or "no better for ...".
    """

    run: Run
    history: list[dict[str, float]]
    best: Best | None
    reason: str


def fit(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run,
    data: Any,
    *,
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    validation: Any = None,
    record_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    patience: int | None = None,
    chunk: int | None = None,
    progress: bool = False,
    log: str | os.PathLike[str] | None = None,
) -> Result:
    """Trains until the run has taken a number of steps, in compiled chunks of them.

    The same seed gives the same bits, whatever the chunks: the length of a chunk is an argument of
    one program. A run that was stopped goes on where it was.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, see `supervised`.
      optimizer: fdl's or optax's.
      run: from `start`, or of an earlier result. Its arrays are copied, and stay alive.
      data: a pytree of arrays [N, ...]; NumPy's or JAX's.
      batch_size: B; a batch may straddle two epochs, and none is ragged.
      epochs: train until every example was seen so often: ceil(epochs * N / B) steps in all.
      steps: or until so many steps were taken in all, counted from the run's step 0.
      validation: data to be evaluated at every record.
      record_every: steps from one entry of the history to the next; by default one epoch's.
      monitor: which validation metric chooses `best` and stops early.
      mode: whether a smaller ("min") or a larger ("max") value of it is better.
      patience: stop after so many records without a better value; by default never.
      chunk: steps in one call of the compiled program; by default about 0.25 seconds of them.
      progress: show a bar in a terminal, or about 20 of the records, as lines, elsewhere.
      log: a file that every record is appended to as a line of JSON.

    Returns:
      Result(run, history, best, reason). Ctrl-C ends training after the chunk and returns as usual
      (a second Ctrl-C raises KeyboardInterrupt); so does a loss that is not finite, with a warning.

    Raises:
      ValueError: arguments or data that cannot be trained on; before the first step.
      PathError: data that the model cannot take, with the path of the layer.
      OSError: a log that cannot be written; before the first step.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain, start
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> data = jnp.arange(100.0)
      >>> result = fit(objective, sgd(0.1), start(jnp.array(0.0), sgd(0.1)), data, epochs=60)
      >>> bool(abs(result.run.params - data.mean()) < 5)
      True

    Source: the loop is section 2.4 of Chollet 2021, "Deep Learning with Python"; early stopping is
    section 7.8 of Goodfellow, Bengio and Courville 2016, "Deep Learning".
    """
    examples = check_objective(objective, run.params, run.state, data)
    if validation is not None:
        check_objective(objective, run.params, run.state, validation)
    last = last_step("fit", examples, batch_size, epochs, steps)
    _check_numbers(record_every, chunk, patience, mode, validation is not None)
    every = record_every or math.ceil(examples / batch_size)
    host = Host(monitor, mode, patience, chunk, log)
    data, validation = jax.tree.map(jnp.asarray, (data, validation))
    run, step = own(run), int(run.step)
    settings = {"objective": objective, "optimizer": optimizer, "batch_size": batch_size}
    evaluation = {"objective": objective, "batch_size": BATCH_SIZE}
    none_yet = zero_means(run, *_step.eval_shape(run, data, **settings))
    means = own(none_yet)
    with interruptible() as interrupted, Progress(progress, step, last) as bar:
        while step < last and not host.reason:
            until = min(last, (step // every + 1) * every)
            length = min(host.pace.length, until - step, 2**31 - 1)
            program = functools.partial(advance, **settings)
            run, means = host.pace.time(length, program, run, means, data, np.int32(length))
            step += length
            bar.show(step, means)
            if step == until or interrupted():
                record = {"step": step, "epoch": step * batch_size / examples} | values(means)
                if validation is not None:
                    scores = totals(run.params, run.state, validation, **evaluation)
                    record |= {f"val_{name}": value for name, value in values(scores).items()}
                bar.record(host.take(record, run))
            host.stop_if_needed(step, float(means["loss"].total), interrupted())
            if step == until:
                means = own(none_yet)
    return Result(run, host.history, host.best, host.reason or "done")


@weak_jit(static=["objective", "optimizer", "batch_size"], donate=["run", "means"])
def advance(
    run: Run,
    means: dict[str, Any],
    data: Any,
    length: Any,
    *,
    objective: Objective,
    optimizer: GradientTransformation,
    batch_size: int,
) -> tuple[Run, dict[str, Any]]:
    """The program behind `fit`: `length` steps, whose loss and metrics are added to `means`.

    `run` and `means` are overwritten; give copies of what is still needed.

    Example:
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain, start
      >>> from fdl.train.means import Mean
      >>> settings = dict(objective=plain(lambda w, batch: jnp.mean(w * batch)),
      ...                 optimizer=sgd(1.0), batch_size=2)
      >>> run, data = start(jnp.array(0.0), sgd(1.0)), jnp.ones(4)
      >>> means = {"loss": Mean(jnp.zeros(()), jnp.zeros(()))}
      >>> run, means = advance(run, means, data, 3, **settings)
      >>> float(run.params), int(run.step)
      (-3.0, 3)
    """

    def body(_: Any, carry: Any) -> Any:
        run, means = carry
        run, new = _step(run, data, objective=objective, optimizer=optimizer, batch_size=batch_size)
        return run, added(means, new)

    return jax.lax.fori_loop(0, length, body, (run, means))


@weak_jit(static=["objective", "optimizer", "batch_size"], inline=True)
def _step(
    run: Run, data: Any, *, objective: Any, optimizer: Any, batch_size: int
) -> tuple[Run, dict[str, Any]]:
    # Compiled only as a part of `advance`; as a jitted function it is traced once for both the
    # shapes of its result and the program.
    return train_step(objective, optimizer, run, data, batch_size)


def zero_means(run: Any, after: Any, means: Any) -> Any:
    """Zeros to add the means of steps to, if a step gives back a run like the one it was given.

    Args:
      run: before a step.
      after: the shapes of the run after it.
      means: the shapes of what it reports.

    Raises:
      PathError: a leaf of another shape or dtype after the step, or none.

    Example:
      >>> from fdl.train.means import Mean
      >>> shape = jax.ShapeDtypeStruct((), jnp.float32)
      >>> zero_means({}, {}, {"loss": Mean(shape, shape)})["loss"].total
      Array(0., dtype=float32)
    """
    given, given_back = paths.leaves(run), paths.leaves(after)
    for path in sorted({*given, *given_back}):
        had, got = given.get(path), given_back.get(path)
        if had is None or got is None or (had.shape, had.dtype) != (got.shape, got.dtype):
            raise paths.PathError(
                f"expected a step to leave {_said(had)}, got {_said(got)}; the objective must give "
                "back the state in the tree, shapes and dtypes in which it came",
                path,
            )
    return {name: mean.nothing() for name, mean in means.items()}


def last_step(
    who: str, examples: int, batch_size: int, epochs: float | None, steps: int | None
) -> int:
    """The number of steps that were asked for.

    Raises:
      ValueError: both or neither of epochs and steps; a number out of range.

    Example:
      >>> last_step("fit", 100, 32, 2, None)
      7
    """
    if batch_size < 1:
        raise ValueError(
            f"{who}: expected batch_size >= 1, got {batch_size}; say how many examples a step sees"
        )
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"{who}: expected either epochs or steps, got {got}; say one of them")
    last = steps if steps is not None else math.ceil((epochs or 0) * examples / batch_size)
    if not 0 <= last < 2**32:
        raise ValueError(
            f"{who}: expected a number of steps in [0, 2**32), got {last}; say how many in all"
        )
    return last


def _check_numbers(
    every: int | None, chunk: int | None, patience: int | None, mode: str, validated: bool
) -> None:
    if patience is not None and not validated:
        raise ValueError(
            "fit: expected validation data for patience, got none; pass validation=..."
        )
    for name, value in (("record_every", every), ("chunk", chunk), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(
                f"fit: expected {name} >= 1, got {value}; leave it out for the default"
            )
    if mode not in ("min", "max"):
        raise ValueError(
            f"fit: expected mode 'min' or 'max', got {mode!r}; a loss wants 'min', an "
            "accuracy 'max'"
        )


def _said(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"
