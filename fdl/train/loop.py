"""The training loop: compiled chunks of steps; between chunks, it records and calls the hooks."""

import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from optax import GradientTransformation

from fdl.checks import check_count
from fdl.core.layer import abstract
from fdl.data import length
from fdl.data.arrays import to_jax
from fdl.data.streaming import Source, mapped
from fdl.ops.sharding import on_host
from fdl.optim.description import rate_of
from fdl.paths import PathError, leaves, tree
from fdl.train.checks import (
    check_objective_given,
    check_opt_state,
    check_optimizer,
    check_run,
    last_step,
)
from fdl.train.chunks import Pace, signals_noted
from fdl.train.evaluation import (
    BATCH_SIZE,
    check_objective,
    mixes_examples,
    params_and_state,
    totals,
    values,
)
from fdl.train.feed import Ahead, InMemory, steps_in_stack
from fdl.train.hooks import Hooks, Plan
from fdl.train.objective import Supervised
from fdl.train.processes import check_same_plan, deaths_explained, of_any, of_the_first
from fdl.train.program import advance, one_step, zero_means
from fdl.train.result import Result, Unfinished
from fdl.train.run import Run, Stacked, beside, copied
from fdl.train.step import check_microbatch
from fdl.typing import Batch, Hook, Objective

BATCH_SIZE_REMEDY = "pass the number of examples in a batch"
NOT_FINITE = "not finite"


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
    microbatch: int | None = None,
    chunk: int | None = None,
    watch: Sequence[Hook] = (),
) -> Result:
    """Trains a run until it has taken a given number of steps, in compiled chunks of steps.

    The same seed gives bit-identical results. They do not depend on the number of steps in a chunk,
    or on whether training is stopped and continued.

    The training code is compiled once for each pair of an objective and an optimizer, and is freed
    when the objective or the optimizer is no longer referenced. `fdl.sgd(0.1)` and `fdl.sgd(0.2)`
    are different optimizers, so the code is compiled for each of them. To compile once for many
    learning rates, use `fdl.optim.inject_hyperparams`, which puts the rate into the optimizer's
    state.

    Args:
      objective: `(params, state, batch, key) -> (loss, (state, metrics))`, for example from
        `supervised`.
      optimizer: from fdl or optax.
      run: a run from `start`. Its arrays are copied and stay valid. To also continue the history
        and the hooks of an earlier `fit`, pass its whole `Result`, or one from a checkpoint.
      data: a pytree of arrays [N, ...], from NumPy or JAX. Memory-mapped arrays, and sources
        (`fdl.data.source(...)`), are read piece by piece. The records that hooks get then also have
        the value "waiting": the share of the time in which training waited for the data.
      batch_size: B, an int >= 1. A source of batches ignores it: there, B is the size of its
        batches. Otherwise each batch has exactly B examples, so a batch may begin in one epoch and
        end in the next.
      epochs: the number of passes over the data, >= 0. Training ends at step ceil(epochs * N / B).
        Steps are counted from the start of the run, including earlier calls of `fit`.
      steps: the step at which training ends, counted in the same way. Pass either epochs or steps.
      validation: data with the structure of `data`, or None. It is evaluated at each record, with
        the parameters that `fdl.optim.eval_params` gives; see `evaluate`.
      record_every: the number of steps from one record of the history to the next. None means one
        epoch; if N is not known, a twentieth of all steps.
      microbatch: a divisor of B. The gradient is then computed for that many examples at a time,
        which needs less memory; see `train_step`. None means all B examples at once.
      chunk: the number of steps in a chunk, which is one call of the compiled code. None chooses a
        number of steps that takes about one second; with a source, it chooses the number of steps
        by the memory of their batches.
      watch: hooks, which are called at each record: `fdl.progress()`, `fdl.log(file)`,
        `fdl.early_stop("val_loss")`, `fdl.keep_best("val_loss")`, `fdl.checkpoints(folder)`, or
        your own. A hook is a function `(record, run)` that returns None, or a text that says why
        training should stop. A hook may keep the run that it gets.

    Returns:
      `Result(run, history, reason, unfinished)`.

      Ctrl-C or SIGTERM ends training after the current chunk, and `fit` returns as usual; a
      Ctrl-C after either of them raises KeyboardInterrupt. Training also ends, with a warning, if
      parameters or state are not finite, or if the data, the evaluation or a hook raises an error
      after the first step. A loss that is not finite does not end training as long as parameters
      and state are finite.

    Raises:
      TypeError: an argument is in the wrong place; or the run is traced, because `fit` is called
        inside `jax.jit`, for example.
      ValueError: an argument is wrong, or the data cannot be trained on. This is raised before the
        first step.
      PathError: the model cannot take the data; the message gives the path of the layer.
      Any error that a hook raises before the first step.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.optim import sgd
      >>> from fdl.train import plain, start
      >>> objective = plain(lambda w, batch: jnp.mean((w - batch) ** 2))
      >>> data = jnp.arange(100.0)
      >>> result = fit(objective, sgd(0.1), start(jnp.array(0.0), sgd(0.1)), data, epochs=60)
      >>> bool(abs(result.run.params - data.mean()) < 5)
      True

    Source: the loop is section 2.4 of Chollet 2021, "Deep Learning with Python".
    """
    first = checked_run("fit", objective, optimizer, run)
    batch_size = check_count("fit", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    data, sample, examples, batch_size = sampled(data, batch_size)
    check_objective(objective, first.params, first.state, sample)
    last = last_step("fit", examples, batch_size, epochs, steps)
    every = _count_or_none("record_every", record_every) or _epoch(examples, batch_size, last)
    chunk, hooks = _count_or_none("chunk", chunk), Hooks(watch)
    sample = beside(to_jax(sample, "fit"), first)
    data = data if isinstance(data, Source) else sample
    if microbatch is not None:
        microbatch = check_microbatch("fit", microbatch, batch_size)
    settings: dict[str, Any] = {"objective": objective, "optimizer": optimizer}
    settings |= {"batch_size": batch_size, "microbatch": microbatch}
    zeros = zero_means(first, *one_step.eval_shape(first, traceable(data, sample), **settings))
    program = functools.partial(advance, **settings)
    if data is sample:
        # The program compiles while the rest is checked.
        advance.compile_ahead(first, beside(zeros, first), data, np.int32(0), **settings)
    validate, validated = _validation(objective, first, validation, batch_size)
    if isinstance(objective, Supervised):
        # This raises if the model's output for an example depends on the other examples.
        mixes_examples(objective, first.params, first.state, sample, batch_size)
    rate: Callable[[Run], Any] = rate_of(optimizer)
    named = {} if rate(first) is None else {"learning_rate": rate}
    epoch = [] if examples is None else ["epoch"]
    names = ("step", *epoch, *named, *zeros, *validated, "seconds")
    until: dict[str, Any] = {"run": first, "last": last, "record_every": every, "names": names}
    plan = Plan(data=data, sample=sample, examples=examples, **until, **settings)
    check_same_plan(plan)
    measure = lambda run: {name: f(run) for name, f in named.items()} | validate(run)  # noqa: E731
    result = _Loop(plan, hooks, program, measure, zeros, run).result(chunk)
    _warn_if_nothing_moved(first, result.run, last)
    return result


class _Loop:
    """What changes while `fit` runs: the run, the means since the last record, and the history."""

    def __init__(
        self,
        plan: Plan,
        hooks: Hooks,
        program: Callable[..., Any],
        measure: Callable[[Run], dict[str, float]],
        zeros: dict[str, Any],
        before: Run | Result,
    ):
        self.plan, self.hooks, self.program, self.measure = plan, hooks, program, measure
        self.history, self.unfinished = _continued(before)
        self.zeros = beside(zeros, plan.run)
        self.means = beside(_means(self.unfinished.means, self.zeros), plan.run)
        self.run, self.step = copied(plan.run), int(plan.run.step)
        seconds = self.history[-1]["seconds"] if self.history else 0.0
        self.begun = time.perf_counter() - seconds

    def result(self, chunk: int | None) -> Result:
        """Takes chunks of steps until the last step, or until there is a reason to stop."""
        plan, hooks = self.plan, self.hooks
        feed, pace = feed_and_pace(plan, chunk, self.unfinished.position)
        self.feed = feed
        watching = hooks.watching(plan, self.unfinished.memories)
        with signals_noted() as signalled, deaths_explained(), watching, feed:
            reason = hooks.reason
            while self.step < plan.last and not reason:
                until = min(plan.last, (self.step // plan.record_every + 1) * plan.record_every)
                with hooks.keeping_the_run(unless=self.step == int(plan.run.step)):
                    data = feed.get()
                if hooks.failed:
                    self.unfinished = self.so_far()
                    break
                pace.length = of_the_first(self.run, pace.length)
                finite = self.take_steps(pace, min(pace.length, until - self.step, 2**31 - 1), data)
                signal = of_any(self.run, signalled())
                recorded = self.step == until or bool(signal)
                if recorded:
                    self.record(feed)
                reason = hooks.failed or _not_finite(self.run, finite) or signal
                reason = reason or self.reason_of_hooks() or ("done" * (self.step == plan.last))
                reason = of_any(self.run, reason)
                if recorded and reason != NOT_FINITE:
                    hooks.save(Result(self.run, list(self.history), reason, self.unfinished))
                if recorded and hooks:
                    # Training continues with a copy, because the next chunk overwrites its run, and
                    # a hook may keep the run that it got.
                    self.run = copied(self.run)
                elif reason and not recorded:
                    self.unfinished = self.so_far()
        reason = hooks.failed or reason or "done"
        return Result(self.run, self.history, reason, self.unfinished)

    def take_steps(self, pace: Pace, count: int, data: Any) -> Any:
        """Takes a chunk of steps; returns whether parameters and state are finite after it."""
        args = (self.run, self.means, data, np.int32(count))
        self.run, self.means, finite = pace.time(count, self.program, *args)
        self.step += count
        self.hooks.advance(self.step, self.means)
        return finite

    def record(self, feed: InMemory | Ahead) -> None:
        """Adds a record to the history, and calls the hooks with it."""
        if not self.due():
            # This record shows where training stopped; a later `fit` drops it.
            self.unfinished = self.so_far()
        with self.hooks.keeping_the_run():
            record = _where(self.plan, self.step) | values(self.means) | self.measure(self.run)
            record |= {"seconds": time.perf_counter() - self.begun}
            self.history.append(record)
            self.hooks.record(record | feed.report(), self.run)
        if self.due():
            self.means = copied(self.zeros)
            self.unfinished = self.after_record()

    def due(self) -> bool:
        """Whether a record is due at this step."""
        return self.step % self.plan.record_every == 0

    def reason_of_hooks(self) -> str:
        """The reason to stop that a hook gave at a record that was due, or ""."""
        return self.hooks.reason if self.due() else ""

    def so_far(self) -> Unfinished:
        """What a later `fit` needs to continue from here."""
        return self.after_record()._replace(means=leaves(copied(self.means)))

    def after_record(self) -> Unfinished:
        """The same as `so_far` just after a due record, when the means are empty."""
        means, memories = leaves(self.zeros), self.hooks.memories()
        return Unfinished(means, len(self.history), memories, self.feed.position)


def sampled(data: Any, batch_size: int) -> tuple[Any, Any, int | None, int]:
    """(the data, a sample of the data, N, B), for arrays or a source."""
    data = mapped(data)
    if not isinstance(data, Source):
        return data, data, length(data), batch_size
    sample = data.first(batch_size)
    return data, sample, data.examples, batch_size if data.examples else length(sample)


def _epoch(examples: int | None, batch_size: int, last: int) -> int:
    """The number of steps in an epoch; if N is not known, a twentieth of all steps."""
    return math.ceil(examples / batch_size if examples else max(last, 1) / 20)


def traceable(data: Any, sample: Any) -> Any:
    """Data for `one_step.eval_shape`: the arrays, or the sample of a source as a stack of one."""
    if not isinstance(data, Source):
        return data
    return Stacked(jax.tree.map(lambda leaf: leaf[None], sample), np.uint32(0))


def feed_and_pace(
    plan: Plan, chunk: int | None, position: dict[str, Any]
) -> tuple[InMemory | Ahead, Pace]:
    """(feed, pace): where the chunks of a plan get their data, and how many steps they take."""
    if not isinstance(plan.data, Source):
        return InMemory(plan.data), Pace(chunk)
    size = min(steps_in_stack(plan.sample, chunk), plan.record_every)
    if chunk is None:
        # All stacks between two records get nearly the same size, because short ones are padded.
        size = math.ceil(plan.record_every / math.ceil(plan.record_every / size))
    return Ahead(plan.data, plan, size, position), Pace(size)


def _where(plan: Plan, step: int) -> dict[str, float]:
    """The step of a record, and its epoch if the number of examples is known."""
    if plan.examples is None:
        return {"step": step}
    return {"step": step, "epoch": step * plan.batch_size / plan.examples}


def checked_run(who: str, objective: Any, optimizer: Any, run: Any) -> Run:
    """Checks the arguments, and returns the Run: `run` itself, or `run.run` if it is a Result.

    Raises:
      TypeError: an argument is in the wrong place, or the run is traced.
      ValueError: the run was started with a different optimizer.
    """
    check_objective_given(who, objective)
    check_optimizer(who, optimizer)
    check_run(who, run)
    now: Run = getattr(run, "run", run)
    check_opt_state(who, optimizer, now.params, now.opt_state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(now)):
        raise TypeError(
            f"{who}: expected a run of known arrays, got traced arrays; inside jax.jit, vmap or "
            "grad, loop over fdl.train_step with jax.lax.fori_loop"
        )
    return now


def _continued(run: Run | Result) -> tuple[list[dict[str, float]], Unfinished]:
    """(history, unfinished) of a Result; for a Run, both are empty."""
    if not isinstance(run, Result):
        return [], Unfinished({}, 0, {})
    return run.history[: run.unfinished.records], run.unfinished


def _means(found: dict[str, Any], zeros: dict[str, Any]) -> dict[str, Any]:
    """The unfinished means of an earlier `fit`; `zeros` if they do not fit this objective."""
    alike = found and abstract(found) == abstract(leaves(zeros))
    return copied(tree(found, zeros) if alike else zeros)


def _not_finite(run: Run, finite: Any) -> str:
    """The reason to stop if a parameter or the state is not finite; warns with its path."""
    if finite:
        return ""
    warnings.warn(
        f"fit: expected finite parameters and state, got {_first_not_finite(run)} by step "
        f"{int(run.step)}; training ended there: try a smaller learning rate, or "
        "fdl.optim.apply_if_finite around the optimizer",
        stacklevel=3,
    )
    return NOT_FINITE


def _first_not_finite(run: Run) -> str:
    """Describes the first parameter or state value that is not finite, with its path."""

    def bad(leaf: Any) -> np.ndarray:
        values = on_host(leaf).astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)
        return values[~np.isfinite(values)]

    both = leaves({"params": run.params, "state": run.state})
    floating = ((path, x) for path, x in both.items() if jax.numpy.issubdtype(x.dtype, np.inexact))
    path, values = next((path, bad(x)) for path, x in floating if bad(x).size)
    return f"{values[0]} at {path!r}"


def _count_or_none(name: str, value: Any) -> int | None:
    return (
        None if value is None else check_count("fit", name, value, "leave it out for the default")
    )


def _validation(
    objective: Objective, run: Run, validation: Any, batch_size: int
) -> tuple[Callable[[Run], dict[str, float]], list[str]]:
    """Checks the validation data, and returns a function that evaluates a run on it.

    Returns:
      A function `run -> {"val_loss": ...}` and the names of its values. The function gives {} if
      there are no validation data.
    """
    if validation is None:
        return lambda run: {}, []
    params, state = params_and_state(run)
    try:
        check_objective(objective, params, state, validation)
    except (ValueError, TypeError) as error:
        _add_to_first_line(error, " (in validation=...)")
        raise
    validation = beside(to_jax(validation, "fit", "validation data"), run)
    whole = mixes_examples(objective, params, state, validation, batch_size)
    size = batch_size if whole else BATCH_SIZE
    settings = {"objective": objective, "batch_size": size, "whole": whole, "layout": run.layout}

    totals.compile_ahead(params, state, validation, **settings)

    def scores(run: Run) -> dict[str, float]:
        means = totals(*params_and_state(run), validation, **settings)
        return {f"val_{name}": value for name, value in values(means).items()}

    known = totals.eval_shape(params, state, validation, **settings)
    return scores, [f"val_{name}" for name in known]


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
            f"fit: expected more steps to take, got a run that has taken {begun} of {last}; epochs "
            "and steps count from the run's step 0: pass more, or begin a new run with fdl.start",
            stacklevel=3,
        )
    pairs = zip(jax.tree.leaves(first.params), jax.tree.leaves(now.params), strict=True)
    if begun == 0 < done and all(np.array_equal(on_host(a), on_host(b)) for a, b in pairs):
        warnings.warn(
            f"fit: expected parameters that change, got the same ones after {done} steps; check "
            "that the loss uses the parameters that it gets, and that the learning rate is not 0",
            stacklevel=3,
        )
