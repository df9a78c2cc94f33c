"""Bisection over the steps of a saved run: at which step did it go wrong?"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fdl.checks import check_uint32, described
from fdl.train.checkpointing import Checkpoints
from fdl.train.hooks import Plan
from fdl.train.replaying import batch_of_step, replayed
from fdl.train.run import Run
from fdl.typing import Batch


class Found(NamedTuple):
    """What `bisect` finds: a step before which a predicate is False, and after which it is True.

    Args:
      step: the number of steps of the run `after`.
      before: the run one step earlier, for which the predicate is False.
      after: the run for which the predicate is True.
      batch: the batch of the step between them, a pytree of arrays [B, ...].
    """

    step: int
    before: Run
    after: Run
    batch: Batch

    def __repr__(self) -> str:
        return f"<Found: False at step {self.step - 1}, True at step {self.step}>"


def bisect(
    saved: Checkpoints,
    predicate: Callable[[Run], Any],
    *,
    first: int | None = None,
    last: int | None = None,
) -> Found:
    """Finds the step of a saved run at which a predicate turned from False to True.

    `bisect` first calls the predicate on checkpoints, and then on runs between two of them, which
    it computes again as `saved.at(step)` does. For C checkpoints, and at most D steps between two
    of them, it loads at most log2(C) + 3 checkpoints, takes fewer than 3 D steps, and calls the
    predicate at most log2(C) + log2(D) + 4 times.

    If the predicate turns from False to True more than once, one of these steps is found. It may
    not be the first.

    Args:
      saved: the `fdl.checkpoints(...)` that was passed to a `fit` of this process, or
        `saved.replaying(...)`.
      predicate: a function `run -> bool`, False at the step `first` and True at the step `last`,
        such as `fdl.debug.not_finite` or `fdl.debug.loss_above(objective, data, 10.0)`.
      first: the step at which the search begins. None means the earliest step that
        `saved.at` accepts.
      last: the step at which the search ends. None means the last step of training; in a new
        process, it means the step of the newest checkpoint. A run that contains NaN or infinite
        numbers is not saved. To search the steps after the newest checkpoint in a new process, pass
        a later `last`.

    Returns:
      `Found(step, before, after, batch)`.

    Raises:
      TypeError: saved are not checkpoints, or predicate is not a function.
      OptionError: first or last is out of range.
      ValueError: first is not below last; the predicate is True at first or False at last; or
        `saved.at` raises.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> import fdl
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> data, optimizer = np.ones(8, "float32"), fdl.sgd(0.125)
      >>> run = fdl.start(np.float32(0), optimizer)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     saved = fdl.checkpoints(folder)
      ...     _ = fdl.fit(objective, optimizer, run, data, steps=20, watch=[saved])
      ...     found = bisect(saved, lambda run: run.params > 0.6)
      >>> found.step, float(found.before.params), float(found.after.params)
      (4, 0.578125, 0.68359375)

    Source: `git bisect`, which searches the history of a program in the same way.
    """
    plan = _checked("bisect", saved, predicate)
    steps = [int(plan.run.step), *saved.steps()]
    first, last = _range(first, last, min(steps), max(saved.reached, *steps))
    before, after = saved.at(first), saved.at(last)
    if predicate(before):
        raise _never(f"False at step {first}", "True", "an earlier first=...")
    if not predicate(after):
        raise _never(f"True at step {last}", "False", "a later last=...")
    whole = sorted({step for step in steps if first < step < last})
    while whole:
        middle = len(whole) // 2
        run = saved.at(whole[middle])
        turned = bool(predicate(run))
        before, after = (before, run) if turned else (run, after)
        whole = whole[:middle] if turned else whole[middle + 1 :]
    while int(after.step) - int(before.step) > 1:
        run = replayed(plan, before, (int(before.step) + int(after.step)) // 2)
        before, after = (before, run) if predicate(run) else (run, after)
    batch = batch_of_step(plan, int(before.step))
    return Found(int(after.step), before, after, batch)


def _checked(who: str, saved: Any, predicate: Any) -> Plan:
    """The `Plan` of the saved run; raises if an argument has the wrong type."""
    if not isinstance(saved, Checkpoints):
        raise TypeError(
            f"{who}: expected checkpoints, got {described(saved)}; pass the "
            "fdl.checkpoints(folder) that was passed to fit as watch"
        )
    if not callable(predicate):
        raise TypeError(
            f"{who}: expected a predicate, a function run -> bool, got {described(predicate)}; "
            "pass fdl.debug.not_finite, for example"
        )
    return saved.plan_for(who)


def _range(first: Any, last: Any, earliest: int, latest: int) -> tuple[int, int]:
    """(first, last) as ints; raises unless first < last."""
    remedy = "leave it out to search the whole run"
    first = earliest if first is None else int(check_uint32("bisect", "first", first, remedy))
    last = latest if last is None else int(check_uint32("bisect", "last", last, remedy))
    if first >= last:
        raise ValueError(
            f"bisect: expected first < last, got {first} and {last}; the run must have taken steps "
            "in between"
        )
    return first, last


def _never(expected: str, got: str, remedy: str) -> ValueError:
    return ValueError(
        f"bisect: expected a predicate that is {expected}, got {got}; pass {remedy}, or another "
        "predicate"
    )
