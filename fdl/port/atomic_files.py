"""Writes a file, or several, so that they appear either complete or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

_REMEDIES = {
    errno.ENOENT: "create the folder, or choose another one",
    errno.EISDIR: "add the name of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
}


@contextlib.contextmanager
def replacing(file: str | os.PathLike[str], who: str, size: int) -> Iterator[IO[bytes]]:
    """Opens a temporary file; it replaces `file` when the block ends, or is deleted on an error.

    Until the block ends, an existing `file` is unchanged. The new file has the permissions of the
    existing file. Symbolic links are followed. When the block has ended, the bytes are on the disk.

    Args:
      file: path of the file.
      who: the name of the function that the user called, for the error message.
      size: the number of bytes to be written, for the error message.

    Raises:
      OSError: the file cannot be written; the message says what to do.
    """
    target = Path(os.path.realpath(file))
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise OSError(
            f"{who}: expected the path of a file, got a device or a pipe at {str(file)!r}; choose "
            "another name"
        )
    try:
        with _replacing(target) as out:
            yield out
    except OSError as error:
        raise OSError(
            error.errno,
            f"{who}: expected to write a file of {size:,} bytes, got {error.strerror}; "
            f"{_REMEDIES.get(error.errno or 0, 'choose another folder')}",
            str(file),
        ) from error


@contextlib.contextmanager
def replacing_together(folder: Path, who: str, names: Sequence[str]) -> Iterator[Path]:
    """Makes a temporary folder; its files replace those of `folder` when the block ends.

    On an error in the block, the files of `folder` are unchanged. The last of the names is deleted
    before any other file is replaced, and appears after them: if the process is killed between the
    files, the last one does not exist, so a mixture of old and new files cannot be taken for whole.

    Args:
      folder: path of a folder that exists.
      who: the name of the function that the user called, for the error message.
      names: the names of the files, which the block writes.

    Raises:
      OSError: a file cannot be replaced; the message says what to do.
    """
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        _move(temporary, folder, names, who)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path, names: Sequence[str], who: str) -> None:
    """Moves files to a folder, the last one after the others."""
    try:
        modes = {name: _mode(folder / name) for name in names}
        (folder / names[-1]).unlink(missing_ok=True)
        _flush(folder)
        for name, mode in modes.items():
            if mode is not None:
                os.chmod(temporary / name, mode)
            os.replace(temporary / name, folder / name)
        _flush(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{who}: expected to replace {', '.join(names)}, got {error.strerror}; choose another "
            "folder",
            str(folder),
        ) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """Does the work of `replacing`, and raises the errors of the operating system."""
    before = _mode(target)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"  # short even if target.name is long
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
    _flush(target.parent)


def _flush(folder: Path) -> None:
    """Waits until the names of the files in a folder are on the disk."""
    with contextlib.suppress(OSError):  # some systems, such as Windows, cannot open a folder
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _mode(target: Path) -> int | None:
    """The permissions of the file, or None if it does not exist; raises if it is read-only."""
    try:
        handle = os.open(target, os.O_WRONLY)
    except FileNotFoundError:
        return None
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
