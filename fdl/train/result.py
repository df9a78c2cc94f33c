"""What `fit` returns: the run, the history, and what a later `fit` needs to continue."""

from typing import Any, NamedTuple

from fdl.paths import shortened
from fdl.train.evaluation import params_and_state
from fdl.train.run import Run


class Unfinished(NamedTuple):
    """What `fit` needs, besides the run, to continue as if training had never stopped.

    A record is due if its step is a multiple of `record_every`.

    Args:
      means: the loss and metrics of the steps since the last record that was due, a dict, path ->
        array.
      records: the number of records up to and including the last one that was due.
      memories: what each hook needs to continue, a dict, name -> (path -> array or number).
      position: where a source of data was after the last step, a dict, name -> array; {} if its
        batches depend only on the seed and the step, or if its position cannot be saved.
    """

    means: dict[str, Any]
    records: int
    memories: dict[str, dict[str, Any]]
    position: dict[str, Any] = {}  # noqa: RUF012  # nothing writes to it

    def __repr__(self) -> str:
        names = shortened(", ".join(self.memories), 200) or "none"
        return f"<Unfinished after {self.records} records; hooks with a memory: {names}>"


class Result(NamedTuple):
    """What `fit` returns. Pass it to `fit` again to continue as if training had never stopped.

    Args:
      run: the run after the last step.
      history: a list of records. Each record is a dict with step, epoch (if the number of examples
        is known) and seconds; the mean training loss and metrics over the steps since the previous
        record; and the validation loss and metrics, whose names begin with `val_`. If
        `fdl.optim.rate_of` finds the learning rate of the next step, the record has it too.
        `pandas.DataFrame(result.history)` makes a table of the records.
      reason: why training ended: "done", "interrupted" (Ctrl-C), "terminated" (SIGTERM), "not
        finite", "failed: ...", or the reason that a hook gave.
      unfinished: what the next call of `fit` needs besides the run. For example, `early_stop` needs
        the number of records since the best value.
    """

    run: Run
    history: list[dict[str, float]]
    reason: str
    unfinished: Unfinished

    def __repr__(self) -> str:
        last = {name: float(f"{x:.4g}") for name, x in (self.history or [{}])[-1].items()}
        return (
            f"<Result {self.reason!r}, {shortened(str(self.run)[1:-1], 200)}; history: "
            f"{len(self.history)} records, the last {shortened(str(last), 300)}>"
        )

    @property
    def params(self) -> Any:
        """The parameters that `fdl.optim.eval_params` gives after the last step."""
        return params_and_state(self.run)[0]

    @property
    def state(self) -> Any:
        """The state of the network after the last step."""
        return self.run.state
