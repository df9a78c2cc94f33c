"""Replays: computes the run at a later step, with the compiled steps of `fit`, without hooks."""

import functools
from typing import Any

import jax
import numpy as np
from optax import GradientTransformation

from fdl.checks import check_count
from fdl.data.arrays import to_jax
from fdl.data.streaming import Source
from fdl.train.evaluation import check_objective
from fdl.train.feed import MOST_STEPS
from fdl.train.hooks import Plan
from fdl.train.loop import BATCH_SIZE_REMEDY, checked_run, feed_and_pace, sampled, traceable
from fdl.train.program import advance, one_step, zero_means
from fdl.train.result import Result
from fdl.train.run import Run, beside, copied, draw_batch
from fdl.train.step import check_microbatch
from fdl.typing import Batch, Objective


def plan_of(
    objective: Objective,
    optimizer: GradientTransformation,
    run: Run | Result,
    data: Batch,
    batch_size: int,
    microbatch: int | None,
) -> Plan:
    """The plan of a `fit` that has these arguments and takes no step."""
    first = checked_run("replaying", objective, optimizer, run)
    batch_size = check_count("replaying", "batch_size", batch_size, BATCH_SIZE_REMEDY)
    data, sample, examples, batch_size = sampled(data, batch_size)
    check_objective(objective, first.params, first.state, sample)
    sample = beside(to_jax(sample, "replaying"), first)
    data = data if isinstance(data, Source) else sample
    if microbatch is not None:
        microbatch = check_microbatch("replaying", microbatch, batch_size)
    return Plan(
        objective,
        optimizer,
        data=data,
        sample=sample,
        examples=examples,
        batch_size=batch_size,
        run=owned(first),
        last=int(first.step),
        record_every=MOST_STEPS,
        names=(),
        microbatch=microbatch,
    )


def check_exact(who: str, data: Batch) -> None:
    """Raises if the data are a source whose batches are not a function of the step."""
    if isinstance(data, Source) and (not data.exact or data.position()):
        raise ValueError(
            f"{who}: expected data whose batch is a function of the step, got a {data!r}; its "
            "batches cannot be drawn again: pass fdl.data.source(f) with f(step) -> batch"
        )


def replayed(plan: Plan, run: Run, step: int) -> Run:
    """The run at a later step. The arrays of `run` stay valid.

    Args:
      plan: the objective, optimizer and data with which the steps are taken.
      run: the run at `step`, or at an earlier step.
      step: the step of the run that is returned.
    """
    settings: dict[str, Any] = {"objective": plan.objective, "optimizer": plan.optimizer}
    settings |= {"batch_size": plan.batch_size, "microbatch": plan.microbatch}
    shapes = one_step.eval_shape(run, traceable(plan.data, plan.sample), **settings)
    means = beside(zero_means(run, *shapes), run)
    program = functools.partial(advance, **settings)
    feed, pace = feed_and_pace(plan._replace(run=run, last=step), None, {})
    now, run = int(run.step), copied(run)
    with feed:
        while now < step:
            until = min(step, (now // plan.record_every + 1) * plan.record_every)
            count = min(pace.length, until - now)
            args = (run, means, feed.get(), np.int32(count))
            run, means, _ = pace.time(count, program, *args)
            now += count
    return run


def batch_of_step(plan: Plan, step: int) -> Batch:
    """The batch, a pytree of arrays [B, ...], with which the run at `step` takes the next step."""
    if not isinstance(plan.data, Source):
        return _drawn(plan.data, plan.run.seed, np.uint32(step), batch_size=plan.batch_size)
    batches = plan.data.take(plan.run.seed, range(step, step + 1), plan.batch_size)
    return jax.tree.map(lambda leaf: leaf[0], batches)


_drawn = jax.jit(draw_batch, static_argnames="batch_size")


def owned(run: Run) -> Run:
    """The run as JAX arrays; NumPy arrays, which may be changed in place, are copied."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else copied(leaf), run)
