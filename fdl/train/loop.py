"""The training loop: many steps as one compiled program, and what needs a host in between."""

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

from fdl.checks import check_count, counted, is_count, is_number, said
from fdl.data.arrays import to_jax
from fdl.paths import PathError, shortened
from fdl.train.checks import check_objective_given, check_opt_state, check_optimizer, check_run
from fdl.train.evaluation import (
    BATCH_SIZE,
    check_objective,
    looks_around,
    params_and_state,
    totals,
    values,
)
from fdl.train.hooks import Best, Host, Progress, Unfinished, interruptible
from fdl.train.objective import Supervised
from fdl.train.program import advance, one_step, zero_means
from fdl.train.step import Run, own
from fdl.typing import Objective

A_STEP_SEES = "say how many examples a step sees"


class Result(NamedTuple):
    """What `fit` returns; give it to `fit` again to go on as if it had never stopped.

    Args:
      run: where training stands.
      history: one dict for each record: step, epoch, seconds, the training loss and metrics since
        the record before, and those of the validation data under `val_...`.
      best: of the validation data; None without any, or if none of their values was finite.
      reason: why training ended: "done", "interrupted", "not finite", "no better for ..." or
        "failed: ...".
      unfinished: what is neither in the run nor in the history and yet decides how training goes
        on: the means of the steps since the last record, and what `patience` has counted.
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
        """The parameters to use, at the last step: those that the optimizer wants tested."""
        return params_and_state(self.run)[0]

    @property
    def state(self) -> Any:
        """The state of the network at the last step."""
        return self.run.state


def fit(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run | Result,
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

    A program is compiled once for an objective and an optimizer, and is forgotten with the last
    reference to them (to their models, losses and functions). `fdl.sgd(0.1)` and `fdl.sgd(0.2)` are
    two optimizers, and two programs; to try many rates with one, make the rate a part of the state:
    `fdl.optim.inject_hyperparams`.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, see `supervised`.
      optimizer: fdl's or optax's.
      run: from `start`, or of an earlier result: training goes on, with a new history. Given the
        whole result instead, history, best and patience go on too, and end as if training had never
        stopped. The arrays are copied, and stay alive.
      data: a pytree of arrays [N, ...]; NumPy's or JAX's.
      batch_size: B; a batch may straddle two epochs, and none is ragged.
      epochs: passes over the data: ceil(epochs * N / B) steps, counted from the run's step 0.
      steps: or the number of steps, counted from the run's step 0.
      validation: data to be evaluated at every record, with the parameters that the optimizer wants
        tested (see `fdl.optim.eval_params`); see `evaluate` for objectives whose examples look at
        each other.
      record_every: steps from one entry of the history to the next; by default one epoch's.
      monitor: which validation metric chooses `best` and stops early.
      mode: whether a smaller ("min") or a larger ("max") value of it is better; NaN never is.
      patience: stop after so many records without a better value; by default never.
      chunk: steps in one call of the compiled program; by default about one second of them.
      progress: show a bar in a terminal, or about 20 of the records, as lines, elsewhere.
      log: a file that every record is appended to as a line of JSON.

    Returns:
      Result(run, history, best, reason, unfinished). Ctrl-C ends training after the chunk and
      returns as usual (a second Ctrl-C raises KeyboardInterrupt). So do, with a warning, parameters
      or a state that are not finite, and an error while a record is evaluated or kept. A loss that
      is not finite does not end training as long as the optimizer keeps the parameters finite.

    Raises:
      ValueError: arguments or data that cannot be trained on; before the first step.
      PathError: data that the model cannot take, with the path of the layer.
      OSError: a log that cannot be written; before the first step. Later that is a warning.

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
    now = _run_given(objective, optimizer, run)
    before = run if isinstance(run, Result) else None
    examples = check_objective(objective, now.params, now.state, data)
    batch_size = check_count("fit", "batch_size", batch_size, A_STEP_SEES)
    last = last_step("fit", examples, batch_size, epochs, steps)
    _check_wanted(patience, mode, monitor, validation is not None)
    record_every = _count_or_none("record_every", record_every)
    chunk, patience = _count_or_none("chunk", chunk), _count_or_none("patience", patience)
    every = record_every or math.ceil(examples / batch_size)
    host = Host(monitor, mode, patience, chunk, log)
    evaluation = _evaluation(objective, now, validation, batch_size, monitor)
    first, now, step, data = now, own(now), int(now.step), to_jax(data, "fit")
    if isinstance(objective, Supervised):
        looks_around(objective, now.params, now.state, data)  # raises if the model mixes examples
    settings = {"objective": objective, "optimizer": optimizer, "batch_size": batch_size}
    none_yet = zero_means(now, *one_step.eval_shape(now, data, **settings))
    means = host.go_on(before, own(none_yet))
    program = functools.partial(advance, **settings)
    unfinished = None
    with interruptible() as interrupted, Progress(progress, step, last) as bar:
        while step < last and not host.reason:
            until = min(last, (step // every + 1) * every)
            length = min(host.pace.length, until - step, 2**31 - 1)
            now, means, sound = host.pace.time(length, program, now, means, data, np.int32(length))
            step, stop = step + length, interrupted()
            due = step % every == 0
            with host.keeping_the_run():
                bar.show(step, means)
                if step == until or stop:
                    unfinished = host.unfinished(own(means))
                    record = {"step": step, "epoch": step * batch_size / examples} | values(means)
                    record = host.take(record | evaluation(now), now)
                    # A record that is not due yet shows where training stopped, and no more.
                    unfinished = None if due else unfinished
                    bar.record(record)
            means = own(none_yet) if due else means
            host.stop_if_needed(now, bool(sound), stop, due)
    unfinished = unfinished or host.unfinished(means)
    _warn_if_nothing_moved(first, now, last)
    return Result(now, host.history, host.best, host.reason or "done", unfinished)


def _run_given(objective: Any, optimizer: Any, run: Any) -> Run:
    """The run to go on from, if the arguments are what their places are for.

    Raises:
      TypeError: they are not; or the run is traced, but the loop is on the host.
      ValueError: a run of another optimizer.
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


def _warn_if_nothing_moved(first: Run, now: Run, last: int) -> None:
    """Warns of a `fit` that took no step, or whose first steps changed no parameter at all."""
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


def _evaluation(
    objective: Objective, run: Run, validation: Any, batch_size: int, monitor: str
) -> Callable[[Run], dict[str, float]]:
    """run -> its values for the validation data, under `val_...`; the data are checked first."""
    if validation is None:
        return lambda run: {}
    params, state = params_and_state(run)
    try:
        check_objective(objective, params, state, validation)
    except (ValueError, TypeError) as error:
        _say_where(error, " (in validation=...)")
        raise
    validation = to_jax(validation, "fit", "validation data")
    whole = looks_around(objective, params, state, validation)
    size = batch_size if whole else BATCH_SIZE
    settings = {"objective": objective, "batch_size": size, "whole": whole}
    known = totals.eval_shape(params, state, validation, **settings)
    if monitor not in known:
        raise ValueError(
            f"fit: expected monitor among {', '.join(known)}, got {said(monitor)}; "
            "take one of these, or add the metric to the objective"
        )

    def scores(run: Run) -> dict[str, float]:
        means = totals(*params_and_state(run), validation, **settings)
        return {f"val_{name}": value for name, value in values(means).items()}

    return scores


def _say_where(error: Exception, where: str) -> None:
    """Adds to the first line of an error which argument it is about."""
    if isinstance(error, PathError):
        error.message = _in_first_line(error.message, where)
    elif error.args and isinstance(error.args[0], str):
        error.args = (_in_first_line(error.args[0], where), *error.args[1:])


def _in_first_line(text: str, more: str) -> str:
    first, newline, rest = text.partition("\n")
    return first + more + newline + rest


def last_step(
    who: str, examples: int, batch_size: int, epochs: float | None, steps: int | None
) -> int:
    """The number of steps that were asked for.

    Raises:
      ValueError: both or neither of epochs and steps; a number out of range.
    """
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"{who}: expected either epochs or steps, got {got}; say one of them")
    if epochs is not None:
        if not is_number(epochs) or np.ndim(epochs) or not 0 <= float(epochs) < math.inf:
            raise ValueError(
                f"{who}: expected epochs >= 0, a number of passes over the data, got "
                f"{said(epochs)}; say how many"
            )
        # As a person writes it: the float 1.1 is a little more than 1.1.
        steps = math.ceil(Fraction(str(float(epochs))) * examples / batch_size)
    steps = counted(steps)
    if steps is None or not is_count(steps, least=0) or not int(steps) < 2**32:
        raise ValueError(
            f"{who}: expected a number of steps in [0, 2**32), an integer, got {said(steps)}; "
            "say how many in all"
        )
    return int(steps)


def _count_or_none(name: str, value: Any) -> int | None:
    return (
        None if value is None else check_count("fit", name, value, "leave it out for the default")
    )


def _check_wanted(patience: Any, mode: str, monitor: str, validated: bool) -> None:
    wanted = {"patience": patience is not None, "monitor": monitor != "loss"}
    for name, given in wanted.items():
        if given and not validated:
            raise ValueError(
                f"fit: expected validation data for {name}, got none; pass validation=..."
            )
    if mode not in ("min", "max"):
        raise ValueError(
            f"fit: expected mode 'min' or 'max', got {said(mode)}; a loss wants 'min', an "
            "accuracy 'max'"
        )
