"""The training loop: compiled chunks of steps; between chunks, it records and validates."""

import functools
import math
import os
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from optax import GradientTransformation

from fdl.checks import as_int, check_count, described, is_count, is_number
from fdl.data.arrays import to_jax
from fdl.paths import PathError, shortened
from fdl.train.checks import (
    check_mode,
    check_objective_given,
    check_opt_state,
    check_optimizer,
    check_run,
)
from fdl.train.evaluation import (
    BATCH_SIZE,
    check_objective,
    mixes_examples,
    params_and_state,
    totals,
    values,
)
from fdl.train.hooks import Best, Pace, Progress, Recorder, Unfinished, interruptible
from fdl.train.objective import Supervised
from fdl.train.program import advance, one_step, zero_means
from fdl.train.run import Run, copied
from fdl.typing import Batch, Objective

BATCH_SIZE_REMEDY = "say how many examples a step sees"


class Result(NamedTuple):
    """What `fit` returns. Pass it to `fit` again to continue as if training had never stopped.

    Args:
      run: the run after the last step.
      history: a list of records. Each record is a dict with step, epoch, seconds, the mean training
        loss and metrics over the steps since the previous record, and the validation loss and
        metrics, whose names begin with `val_`.
      best: the parameters at the record with the best value of the monitored validation metric.
        None if there are no validation data, or if no value was finite.
      reason: why training ended: "done", "interrupted", "not finite", "no better for ..." or
        "failed: ...".
      unfinished: what the next call of `fit` needs besides the run, for example the number of
        records without a better value, for `patience`.
    """

    run: Run
    history: list[dict[str, float]]
    best: Best | None
    reason: str
    unfinished: Unfinished

    def __repr__(self) -> str:
        last = {name: float(f"{x:.4g}") for name, x in (self.history or [{}])[-1].items()}
        return (
            f"<Result {self.reason!r}, {shortened(str(self.run)[1:-1], 200)}; history: "
            f"{len(self.history)} records, the last {shortened(str(last), 300)}; best: {self.best}>"
        )

    @property
    def params(self) -> Any:
        """The parameters that `fdl.optim.eval_params` gives after the last step."""
        return params_and_state(self.run)[0]

    @property
    def state(self) -> Any:
        """The state of the network after the last step."""
        return self.run.state


def fit(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run | Result,
    data: Batch,
    *,
    batch_size: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    validation: Batch | None = None,
    record_every: int | None = None,
    monitor: str = "loss",
    mode: Literal["min", "max"] = "min",
    patience: int | None = None,
    chunk: int | None = None,
    progress: bool = False,
    log: str | os.PathLike[str] | None = None,
) -> Result:
    """Trains a run until it has taken a given number of steps, in compiled chunks of steps.

    The same seed gives bit-identical results. They do not depend on the number of steps in a chunk,
    or on whether training is stopped and continued.

    The training code is compiled once for each pair of an objective and an optimizer, and is freed
    when the objective or the optimizer is no longer referenced. `fdl.sgd(0.1)` and `fdl.sgd(0.2)`
    are different optimizers, so the code is compiled for each of them. To compile once for many
    learning rates, use `fdl.optim.inject_hyperparams`, which makes the rate part of the optimizer's
    state.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      optimizer: from fdl or optax.
      run: a run from `start` or from an earlier result. Its arrays are copied and stay valid. Pass
        the whole earlier `Result` to also continue its history, best and patience.
      data: a pytree of arrays [N, ...], from NumPy or JAX.
      batch_size: B, an int >= 1. Each batch has exactly B examples, so a batch may begin in one
        epoch and end in the next.
      epochs: the number of passes over the data, >= 0. Training ends at step ceil(epochs * N / B).
        Steps are counted from the start of the run, including earlier calls of `fit`.
      steps: the step at which training ends, counted in the same way. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. It is evaluated at each record, with
        the parameters that `fdl.optim.eval_params` gives; see `evaluate`.
      record_every: the number of steps from one record of the history to the next. None means one
        epoch.
      monitor: the name of the validation metric that decides `best` and early stopping.
      mode: "min" if smaller values of the monitored metric are better, "max" if larger values are
        better. NaN is never better.
      patience: training stops after this many records in a row without a better value. None means
        that it never stops early.
      chunk: the number of steps in a chunk, which is one call of the compiled code. None chooses a
        number of steps that takes about one second.
      progress: True shows a progress bar in a terminal; without a terminal, it prints about 20 of
        the records. False shows nothing.
      log: path of a file to which each record is appended as a line of JSON. None writes no file.

    Returns:
      `Result(run, history, best, reason, unfinished)`.

      Ctrl-C ends training after the current chunk, and `fit` returns as usual; a second Ctrl-C
      raises KeyboardInterrupt. Training also ends, with a warning, if parameters or state are not
      finite, or if an error occurs while a record is made. A loss that is not finite does not end
      training as long as parameters and state are finite.

    Raises:
      TypeError: an argument is in the wrong place, or the run is traced.
      ValueError: an argument is wrong, or the data cannot be trained on. This is raised before the
        first step.
      PathError: the model cannot take the data; the message gives the path of the layer.
      OSError: the log cannot be written. This is raised only before the first step; later, `fit`
        warns instead.

    Example:
      >>> import jax.numpy as jnp
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
    first = _checked_run(objective, optimizer, run)
    before = run if isinstance(run, Result) else None
    examples = check_objective(objective, first.params, first.state, data)
    batch_size = check_count("fit", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    last = last_step("fit", examples, batch_size, epochs, steps)
    _check_monitoring(patience, mode, monitor, validation is not None)
    record_every = _count_or_none("record_every", record_every)
    chunk, patience = _count_or_none("chunk", chunk), _count_or_none("patience", patience)
    every = record_every or math.ceil(examples / batch_size)
    recorder, pace = Recorder(monitor, mode, patience, log), Pace(chunk)
    validate = _validation(objective, first, validation, batch_size, monitor)
    now, step, data = copied(first), int(first.step), to_jax(data, "fit")
    if isinstance(objective, Supervised):
        mixes_examples(objective, now.params, now.state, data)  # raises if it does
    settings = {"objective": objective, "optimizer": optimizer, "batch_size": batch_size}
    zeros = zero_means(now, *one_step.eval_shape(now, data, **settings))
    means = recorder.resume(before, copied(zeros))
    program = functools.partial(advance, **settings)
    unfinished = None
    with interruptible() as interrupted, Progress(progress, step, last) as bar:
        while step < last and not recorder.reason:
            until = min(last, (step // every + 1) * every)
            length = min(pace.length, until - step, 2**31 - 1)
            now, means, finite = pace.time(length, program, now, means, data, np.int32(length))
            step, stop = step + length, interrupted()
            due = step % every == 0
            with recorder.keeping_the_run():
                bar.show(step, means)
                if step == until or stop:
                    unfinished = recorder.unfinished(copied(means))
                    record = {"step": step, "epoch": step * batch_size / examples} | values(means)
                    record = recorder.add(record | validate(now), now)
                    # A record that is not due shows where training stopped; a later `fit` drops it.
                    unfinished = None if due else unfinished
                    bar.record(record)
            means = copied(zeros) if due else means
            recorder.stop_if_needed(now, bool(finite), stop, due)
    unfinished = unfinished or recorder.unfinished(means)
    _warn_if_nothing_moved(first, now, last)
    return Result(now, recorder.history, recorder.best, recorder.reason or "done", unfinished)


def last_step(
    who: str, examples: int, batch_size: int, epochs: float | None, steps: int | None
) -> int:
    """The step at which training ends, computed from epochs or steps.

    Raises:
      ValueError: both epochs and steps are given, or neither, or the number is out of range.
    """
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"{who}: expected either epochs or steps, got {got}; say one of them")
    if epochs is not None:
        if not is_number(epochs) or np.ndim(epochs) or not 0 <= float(epochs) < math.inf:
            raise ValueError(
                f"{who}: expected epochs >= 0, a number of passes over the data, got "
                f"{described(epochs)}; say how many"
            )
        # A Fraction is exact for decimals; as a float, 1.1 is slightly more than 1.1.
        steps = math.ceil(Fraction(str(float(epochs))) * examples / batch_size)
    steps = as_int(steps)
    if steps is None or not is_count(steps, least=0) or not int(steps) < 2**32:
        raise ValueError(
            f"{who}: expected a number of steps in [0, 2**32), an integer, got {described(steps)}; "
            "say how many in all"
        )
    return int(steps)


def _checked_run(objective: Any, optimizer: Any, run: Any) -> Run:
    """Checks the arguments, and returns the Run: `run` itself, or `run.run` if it is a Result.

    Raises:
      TypeError: an argument is in the wrong place, or the run is traced.
      ValueError: the run was started with a different optimizer.
    """
    check_objective_given("fit", objective)
    check_optimizer("fit", optimizer)
    check_run("fit", run)
    now: Run = getattr(run, "run", run)
    check_opt_state("fit", optimizer, now.params, now.opt_state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(now)):
        raise TypeError(
            "fit: expected a run of known arrays, got traced ones, as inside jax.jit, vmap or "
            "grad; there, loop over fdl.train_step with jax.lax.fori_loop"
        )
    return now


def _check_monitoring(patience: Any, mode: str, monitor: str, validated: bool) -> None:
    wanted = {"patience": patience is not None, "monitor": monitor != "loss"}
    for name, given in wanted.items():
        if given and not validated:
            raise ValueError(
                f"fit: expected validation data for {name}, got none; pass validation=..."
            )
    check_mode("fit", mode)


def _count_or_none(name: str, value: Any) -> int | None:
    return (
        None if value is None else check_count("fit", name, value, "leave it out for the default")
    )


def _validation(
    objective: Objective, run: Run, validation: Any, batch_size: int, monitor: str
) -> Callable[[Run], dict[str, float]]:
    """Checks the validation data, and returns a function that evaluates a run on it.

    Returns:
      A function `run -> {"val_loss": ...}`; it gives {} if there are no validation data.
    """
    if validation is None:
        return lambda run: {}
    params, state = params_and_state(run)
    try:
        check_objective(objective, params, state, validation)
    except (ValueError, TypeError) as error:
        _add_to_first_line(error, " (in validation=...)")
        raise
    validation = to_jax(validation, "fit", "validation data")
    whole = mixes_examples(objective, params, state, validation)
    size = batch_size if whole else BATCH_SIZE
    settings = {"objective": objective, "batch_size": size, "whole": whole}
    known = totals.eval_shape(params, state, validation, **settings)
    if monitor not in known:
        raise ValueError(
            f"fit: expected monitor among {', '.join(known)}, got {described(monitor)}; "
            "take one of these, or add the metric to the objective"
        )

    def scores(run: Run) -> dict[str, float]:
        means = totals(*params_and_state(run), validation, **settings)
        return {f"val_{name}": value for name, value in values(means).items()}

    return scores


def _add_to_first_line(error: Exception, more: str) -> None:
    """Adds the text `more` to the end of the first line of an error's message."""

    def longer(text: str) -> str:
        first, newline, rest = text.partition("\n")
        return first + more + newline + rest

    if isinstance(error, PathError):
        error.message = longer(error.message)
    elif error.args and isinstance(error.args[0], str):
        error.args = (longer(error.args[0]), *error.args[1:])


def _warn_if_nothing_moved(first: Run, now: Run, last: int) -> None:
    """Warns if no step was taken, or if the first steps changed no parameter."""
    begun, done = int(first.step), int(now.step)
    if begun == done and begun >= last > 0:
        warnings.warn(
            f"fit: expected steps to take, got a run that has taken {begun} of {last}; epochs and "
            "steps count from the run's step 0: ask for more, or begin a new run with fdl.start",
            stacklevel=3,
        )
    pairs = zip(jax.tree.leaves(first.params), jax.tree.leaves(now.params), strict=True)
    if begun == 0 < done and all(np.array_equal(a, b) for a, b in pairs):
        warnings.warn(
            f"fit: expected parameters that move, got the same ones after {done} steps; see that "
            "the loss depends on the parameters it is given, and that the rate is not 0",
            stacklevel=3,
        )
