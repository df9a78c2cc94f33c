"""A file that appears whole or not at all, whatever happens while it is written."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_REMEDIES = {
    errno.ENOENT: "make the folder, or choose another",
    errno.EISDIR: "add a file's name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
}


@contextlib.contextmanager
def replacing(file: str | os.PathLike[str], who: str, size: int) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its place when the block ends and vanishes when it fails.

    An older file in this place is kept until then, and its permissions beyond it. A link is
    followed. What was written is on the disk when the block has ended.

    Args:
      file: where to.
      who: the function that the user called, for the message.
      size: how many bytes will be written, for the message.

    Raises:
      OSError: what the disk refuses, and what to do.
    """
    target = Path(os.path.realpath(file))
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise OSError(
            f"{who}: expected the place of a file, got a device or a pipe at {str(file)!r}; choose "
            "another name"
        )
    try:
        with _replacing(target) as out:
            yield out
    except OSError as error:
        raise OSError(
            error.errno,
            f"{who}: expected a file that can be written with {size:,} bytes, got "
            f"{error.strerror}; {_REMEDIES.get(error.errno or 0, 'choose another folder')}",
            str(file),
        ) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    before = _mode(target)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"  # short, whatever the target's name
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(temporary, flags, 0o666 if before is None else 0o600)
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(handle)
        if before is not None:
            os.chmod(temporary, before)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # systems that cannot open a folder, such as Windows
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mode(target: Path) -> int | None:
    """The permissions of the file in the place, if it may be written; None if there is none."""
    try:
        handle = os.open(target, os.O_WRONLY)
    except FileNotFoundError:
        return None
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
