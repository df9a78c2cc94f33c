"""A hook that writes the records of training for TensorBoard."""

import os
import time
from typing import Any

from fdl.checks import described
from fdl.train.hooks import Observer, Plan, Record


def tensorboard(folder: str | os.PathLike[str]) -> "Events":
    """A hook that writes each value of each record as a curve for TensorBoard.

    Look at the curves with `tensorboard --logdir folder`. Give each run a folder of its own. If a
    run is continued, values that were written after the step at which it continues are discarded.

    Args:
      folder: the folder to write to. If it does not exist, `fit` makes it.

    Returns:
      A hook for `fit(..., watch=[...])`.

    Raises:
      TypeError: folder is not a path.
      ImportError: the package tensorboardX is not installed.
      OSError: `fit` raises it before the first step if the folder cannot be written.

    Example:
      >>> tensorboard("out/curves")
      tensorboard('out/curves')
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"tensorboard: expected the path of a folder, got {described(folder)}; pass "
            "'out/curves', for example"
        )
    _writer()
    return Events(folder)


class Events(Observer):
    """The hook that `tensorboard` returns.

    Args:
      folder: where to write.
    """

    writes = True

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = folder

    def __repr__(self) -> str:
        return f"tensorboard({str(self.folder)!r})"

    def begin(self, plan: Plan) -> None:
        """Opens a file in the folder."""
        # TensorBoard reads the files in the order of their names, which begin with the time in
        # seconds. The suffix orders files that were made in the same second.
        name = {"filename_suffix": f".{time.time_ns()}"}
        self.writer = _writer()(str(self.folder), purge_step=int(plan.run.step) + 1, **name)

    def __call__(self, record: Record, run: Any) -> None:
        """Writes the values of the record."""
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(record["step"]))
        self.writer.flush()

    def end(self) -> None:
        """Closes the file."""
        self.writer.close()


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: expected the package tensorboardX, which writes the files, got none; "
            "pip install 'fdl[tensorboard]'"
        ) from error
    return SummaryWriter
