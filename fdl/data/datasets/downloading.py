"""Downloads a file, and checks it against a known checksum."""

import contextlib
import errno
import gzip
import hashlib
import http.client
import os
import secrets
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from fdl.checks import described

_BLOCK = 1 << 14


def download(
    urls: Sequence[str],
    path: str | os.PathLike[str],
    *,
    sha256: str,
    size: int = 1 << 27,
    timeout: float = 20.0,
    unpack: bool = True,
) -> None:
    """Downloads a gzipped file from the first mirror that works, and uncompresses it.

    The file appears at `path` complete and with the right checksum, or not at all. If `path`
    already has that checksum, nothing is downloaded. Received bytes are saved in `path` + ".part",
    so that the next mirror, or the next call, requests only the missing bytes. A damaged partial
    file is deleted. If it began with bytes from an earlier call or from another mirror, these may
    be the damaged ones, so the current mirror is tried once more, from the start.

    Several processes may call this function at the same time. One of them uses `path` + ".part".
    The other processes use temporary files, which are deleted after the call. On systems without
    `flock`, such as Windows, all processes use temporary files.

    Args:
      urls: addresses of the gzipped file, tried in this order.
      path: path of the file to be written. Its folder is created if it does not exist.
      sha256: SHA-256 of the file at `path`, in hexadecimal.
      size: the largest allowed size of the file at `path`, in bytes. Unpacking stops at this
        size, and downloading slightly above it, so that a wrong mirror cannot fill the disk.
      timeout: after this many seconds without data, the next mirror is tried.
      unpack: True writes the uncompressed file. False writes the gzipped file, and sha256 and size
        are then those of the gzipped file.

    Raises:
      ConnectionError: no mirror worked; the message lists the reason for each mirror.
      OSError: the folder cannot be written (this is checked before the download), or the disk is
        full.
      ValueError: `urls` is not a list of addresses.

    Source: RFC 9110, section 14 (range requests).
    """
    if isinstance(urls, str) or not urls:
        raise ValueError(
            f"urls: expected a list of addresses, got {described(urls)}; pass [address]"
        )
    path = Path(path)
    if path.exists() and sha256_of(path) == sha256.lower():
        return
    _require_writable(path.parent)
    reasons = []
    with _open_part(path) as part:
        for url in urls:
            try:
                _try_mirror(url, part, path, sha256, size, timeout, unpack)
                return
            except (OSError, http.client.HTTPException, _Damaged) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OSError(
                        error.errno,
                        f"expected space for the download and a file of {size:,} bytes, got "
                        f"'{error.strerror}'; free some space, or choose another cache folder with "
                        "FDL_CACHE",
                        str(path),
                    ) from error
                reasons.append(f"  {url}: {str(error) or type(error).__name__}")
    raise ConnectionError(
        f"{path}: expected a download from one of {len(urls)} mirrors, got none that works; "
        "set FDL_DATA to a folder that contains the file, or run again to resume\n"
        + "\n".join(reasons)
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Damaged(Exception):
    """The bytes in the partial file are not the start of the right file."""


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder}: expected a folder that can be written, got '{error.strerror}'; choose "
            "another folder (FDL_CACHE sets the cache folder), or change its permissions"
        ) from error


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[IO[bytes]]:
    """Opens the partial file for appending; at the end, deletes it if it is empty."""
    named = Path(f"{path}.part")
    part: IO[bytes]
    with contextlib.ExitStack() as stack:
        try:
            import fcntl  # does not exist on Windows

            part = stack.enter_context(named.open("a+b"))
            # If the process dies, the kernel releases the lock.
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owned = True
        except (ImportError, OSError):
            part = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            owned = False
        try:
            yield part
        finally:
            if owned and part.seek(0, os.SEEK_END) == 0:
                named.unlink(missing_ok=True)


def _try_mirror(
    url: str, part: IO[bytes], path: Path, sha256: str, size: int, timeout: float, unpack: bool
) -> None:
    """Tries one mirror: downloads the missing bytes, then unpacks and checks them."""
    while True:
        continued = part.seek(0, os.SEEK_END) > 0
        try:
            _fetch_rest(url, part, size, timeout)
            _unpack(part, path, sha256, size, unpack)
            _empty(part)
            return
        except _Damaged:
            _empty(part)
            # The loop tries this mirror again if the partial file began with bytes from an earlier
            # call or from another mirror, because these bytes may be the damaged ones.
            if not continued:
                raise


def _empty(part: IO[bytes]) -> None:
    part.seek(0)
    part.truncate()


def _fetch_rest(url: str, part: IO[bytes], size: int, timeout: float) -> None:
    """Downloads the missing bytes of the partial file, and appends them."""
    import urllib.error  # imported here so that `import fdl` stays fast
    import urllib.request

    start = part.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the mirror has no more bytes; `_unpack` checks those of the partial file
        raise
    with response:
        if response.status == http.client.PARTIAL_CONTENT:
            span = response.headers.get("Content-Range", "none")
            if not span.startswith(f"bytes {start}-"):
                raise _Damaged(
                    f"expected the bytes from {start} to the end, got the range '{span}'; deleted "
                    "the partial file"
                )
        else:
            _empty(part)
        most = size + size // 1000 + 1000  # gzip makes incompressible data slightly larger
        while block := response.read(_BLOCK):
            part.write(block)
            if part.tell() > most:
                raise _Damaged(
                    f"expected a gzip file of at most {most} bytes, got more; deleted the partial "
                    "file"
                )
        # The length is checked here, because http.client does not raise if the connection closes
        # before all bytes were received.
        if missing := getattr(response, "length", None):
            raise ConnectionError(
                f"expected {missing} more bytes, got the end of the connection; "
                "kept the partial file"
            )


def _unpack(part: IO[bytes], path: Path, sha256: str, size: int, unpack: bool) -> None:
    """Unpacks the partial file to a temporary file, checks it, and renames it to `path`."""
    temporary = Path(f"{path}.{secrets.token_hex(8)}.tmp")
    part.seek(0)
    try:
        with temporary.open("xb") as file, contextlib.ExitStack() as stack:
            source: IO[bytes] | gzip.GzipFile = part
            if unpack:
                source = stack.enter_context(gzip.GzipFile(fileobj=part, mode="rb"))
            while block := source.read(1 << 20):
                if file.tell() + len(block) > size:
                    raise _Damaged(
                        f"expected at most {size} bytes{' unpacked' * unpack}, got more; deleted "
                        "the partial file"
                    )
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if (got := sha256_of(temporary)) != sha256.lower():
            raise _Damaged(f"expected SHA-256 {sha256}, got {got}; deleted the partial file")
        os.replace(temporary, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Damaged(
            f"expected a valid gzip file, got an invalid one ({error}); deleted the partial file"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
