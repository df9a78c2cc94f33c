"""download, against a server on this machine that fails in every way that servers do."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import inspect
import io
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from fdl.data.datasets import downloading as module
from fdl.data.datasets.downloading import download

DATA = random.Random(0).randbytes(200_000)  # does not compress
PACKED = gzip.compress(DATA, mtime=0)
SHA256 = hashlib.sha256(DATA).hexdigest()
BOMB = gzip.compress(bytes(1 << 20)) * 150  # 157 MB of zeros
MOST = len(DATA) + len(DATA) // 1000 + 1000  # of the packed file, whatever it holds
HALF = 1 << 17  # a whole number of the blocks that are read: a stall may lose less than one


class Mirror(http.server.ThreadingHTTPServer):
    """Answers each request by the next function of `answers`; the last one answers all others."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/data.gz"
        self.answers = [serve]
        self.ranges = []  # the Range header of each request
        self.sent = []  # the bytes of the body of each answer
        self.closing = threading.Event()

    def handle_error(self, request, client_address):
        pass  # a client that has gone away


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self):
        asked = self.headers["Range"]
        self.number = len(self.server.ranges)
        self.server.ranges.append(asked)
        self.server.sent.append(0)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self, int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content):
        # Before the write, because the test goes on as soon as it has the bytes.
        self.server.sent[self.number] += len(content)
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def head_of_rest(request, start, packed=PACKED):
    """The right status and headers for the bytes from start on, and these bytes."""
    rest = packed[start:]
    if not start:
        request.head(200, Content_Length=len(rest))
    elif rest:
        span = f"bytes {start}-{len(packed) - 1}/{len(packed)}"
        request.head(206, Content_Length=len(rest), Content_Range=span)
    else:
        request.head(416, Content_Range=f"bytes */{len(packed)}")
    return rest


def serve(request, start):
    request.body(head_of_rest(request, start))


def ignore_range(request, start):
    serve(request, 0)


def drop(request, start):
    request.body(head_of_rest(request, start)[:HALF])


def reset(request, start):
    drop(request, start)
    time.sleep(0.1)  # what has not been read before a reset may be lost
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()  # before the server ends it in good order


def stall(request, start):
    drop(request, start)
    request.server.closing.wait(10)


def stall_at_once(request, start):
    request.server.closing.wait(10)


def hang_up(request, start):
    pass


def promise_less(request, start):
    request.head(200, Content_Length=HALF)
    request.body(PACKED)


def promise_nothing(request, start):
    request.head(200)
    request.body(PACKED[:HALF])


def cut_chunk(request, start):
    request.protocol_version = "HTTP/1.1"
    request.head(200, Transfer_Encoding="chunked")
    request.body(b"%x\r\n" % len(PACKED) + PACKED[:HALF])


def flip_a_byte(request, start):
    packed = bytearray(PACKED)
    packed[150_000] ^= 1
    request.body(head_of_rest(request, start, bytes(packed)))


def serve_other_file(request, start):
    request.body(head_of_rest(request, start, gzip.compress(DATA[::-1], mtime=0)))


def serve_uncompressed(request, start):
    request.body(head_of_rest(request, start, DATA))


def serve_longer_file(request, start):
    request.body(head_of_rest(request, start, PACKED + b"more"))


def serve_page(request, start):
    request.head(200, Content_Type="text/html")
    request.body(b"<html>Please log in to this network</html>")


def serve_nothing(request, start):
    request.head(200, Content_Length=0)


def wrong_range(request, start):
    first = start + 10
    request.head(206, Content_Range=f"bytes {first}-{len(PACKED) - 1}/{len(PACKED)}")
    request.body(PACKED[first:])


def no_range(request, start):
    request.head(206, Content_Length=len(PACKED) - start)
    request.body(PACKED[start:])


def never_satisfied(request, start):
    request.head(416)


def serve_bomb(request, start):
    request.body(head_of_rest(request, start, BOMB))


def serve_without_end(request, start):
    request.head(200)
    for _ in range(100_000):  # 6.5 GB
        request.body(bytes(1 << 16))


def babble(request, start):
    request.wfile.write(b"220 mail.example.org ESMTP\r\n")


def missing(request, start):
    request.head(404)


def broken(request, start):
    request.head(500)


FAULTS = {  # what the message says of each
    missing: "HTTP Error 404: Not Found",
    broken: "HTTP Error 500: Internal Server Error",
    drop: f"expected {len(PACKED) - HALF} more bytes, got the end of the connection; kept the ",
    reset: f"[Errno {errno.ECONNRESET}] Connection reset by peer",
    stall: "timed out",
    stall_at_once: "timed out",
    hang_up: "Remote end closed connection without response",
    promise_less: "expected a valid gzip file, got an invalid one (Compressed file ended before",
    promise_nothing: "expected a valid gzip file, got an invalid one (Compressed file ended before",
    cut_chunk: "IncompleteRead(",
    flip_a_byte: "expected a valid gzip file, got an invalid one (",
    serve_other_file: f"expected SHA-256 {SHA256}, got {hashlib.sha256(DATA[::-1]).hexdigest()}; ",
    serve_uncompressed: "expected a valid gzip file, got an invalid one (Not a gzipped file",
    serve_longer_file: "expected a valid gzip file, got an invalid one (Not a gzipped file",
    serve_page: "expected a valid gzip file, got an invalid one (Not a gzipped file (b'<h'))",
    serve_nothing: f"expected SHA-256 {SHA256}, got {hashlib.sha256().hexdigest()}; deleted the ",
    wrong_range: f"expected the bytes from 0 to the end, got the range 'bytes 10-{len(PACKED) - 1}",
    no_range: "expected the bytes from 0 to the end, got the range 'none'; deleted the ",
    never_satisfied: "HTTP Error 416: ",
    serve_bomb: f"expected at most {len(DATA)} bytes unpacked, got more; deleted the partial file",
    serve_without_end: f"expected a gzip file of at most {MOST} bytes, got more; deleted the ",
    babble: "220 mail.example.org ESMTP",
}
KEEPS_A_PART = {drop, reset, stall, cut_chunk}

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


@contextlib.contextmanager
def running_mirror():
    mirror = Mirror()
    thread = threading.Thread(target=mirror.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield mirror
    finally:
        mirror.closing.set()
        mirror.shutdown()
        thread.join()
        mirror.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def mirror():
    with running_mirror() as mirror:
        yield mirror


@pytest.fixture
def other_mirror():
    with running_mirror() as mirror:
        yield mirror


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "data"


def fetch(path, *mirrors, timeout=5.0):
    urls = [mirror.url for mirror in mirrors]
    download(urls, path, sha256=SHA256, size=len(DATA), timeout=timeout)


def patience(fault):
    return 0.5 if "stall" in fault.__name__ else 5.0


def assert_fails(path, *mirrors, reason, timeout=5.0):
    message = (
        f"{path}: expected a download from one of {len(mirrors)} mirrors, got none that works; set "
        f"FDL_DATA to a folder that contains the file, or run again to resume\n  {mirrors[0].url}: "
        f"{reason}"
    )
    with pytest.raises(ConnectionError, match=f"^{re.escape(message)}"):
        fetch(path, *mirrors, timeout=timeout)
    assert set(files_beside(path)) <= {"data.part"}


def assert_fetched(path):
    assert path.read_bytes() == DATA
    assert files_beside(path) == ["data"]


def files_beside(path):
    return sorted(os.listdir(path.parent))


def part_of(path):
    return path.with_name("data.part")


def keep_part(path, content):
    path.parent.mkdir()
    part_of(path).write_bytes(content)


def test_a_good_mirror_delivers_in_one_request(mirror, path):
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == [None] and mirror.sent == [len(PACKED)]


def test_a_file_that_is_there_is_not_fetched_again(mirror, path):
    fetch(path, mirror)
    download([mirror.url], str(path), sha256=SHA256.upper())
    assert len(mirror.ranges) == 1


def test_another_file_in_its_place_is_replaced(mirror, path):
    path.parent.mkdir()
    path.write_bytes(DATA[:-1])
    mirror.answers = [missing]
    with pytest.raises(
        ConnectionError, match=f"^{re.escape(str(path))}: expected a download from one of"
    ):
        fetch(path, mirror)
    assert path.read_bytes() == DATA[:-1]
    mirror.answers = [serve]
    fetch(path, mirror)
    assert_fetched(path)


@every_fault
def test_after_a_failure_there_is_no_file_and_the_next_call_succeeds(mirror, path, fault):
    mirror.answers = [fault]
    assert_fails(path, mirror, reason=FAULTS[fault], timeout=patience(fault))
    assert part_of(path).exists() == (fault in KEEPS_A_PART)
    mirror.answers = [serve]
    fetch(path, mirror)
    assert_fetched(path)


@every_fault
def test_the_next_mirror_delivers_where_the_first_fails(mirror, other_mirror, path, fault):
    mirror.answers = [fault]
    fetch(path, mirror, other_mirror, timeout=patience(fault))
    assert_fetched(path)
    resumed = other_mirror.ranges[0] is not None
    assert resumed == (fault in KEEPS_A_PART)


@every_fault
def test_a_part_and_a_faulty_mirror_never_wedge_later_calls(mirror, path, fault):
    keep_part(path, PACKED[:1000])
    mirror.answers = [fault]
    with contextlib.suppress(ConnectionError):  # some serve well if they are asked for the rest
        fetch(path, mirror, timeout=patience(fault))
    assert not path.exists() or path.read_bytes() == DATA
    mirror.answers = [serve]
    fetch(path, mirror)
    assert_fetched(path)


def test_every_mirror_is_listed_with_its_reason(mirror, other_mirror, path):
    mirror.answers, other_mirror.answers = [missing], [broken]
    reasons = f"{FAULTS[missing]}\n  {other_mirror.url}: {FAULTS[broken]}"
    assert_fails(path, mirror, other_mirror, reason=reasons)


def test_an_address_where_nobody_listens_is_a_reason(mirror, path):
    with running_mirror() as gone:
        pass
    assert_fails(
        path, gone, reason=f"<urlopen error [Errno {errno.ECONNREFUSED}] Connection refused>"
    )
    fetch(path, gone, mirror)
    assert_fetched(path)


@pytest.mark.parametrize("fault", [drop, stall], ids=["drop", "stall"])
def test_only_the_rest_is_fetched_after_a_break(mirror, path, fault):
    mirror.answers = [fault, serve]
    assert_fails(path, mirror, reason=FAULTS[fault], timeout=patience(fault))
    assert part_of(path).read_bytes() == PACKED[:HALF]
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == [None, f"bytes={HALF}-"]
    assert mirror.sent == [HALF, len(PACKED) - HALF]


def test_the_next_mirror_fetches_only_the_rest(mirror, other_mirror, path):
    mirror.answers = [drop]
    fetch(path, mirror, other_mirror)
    assert_fetched(path)
    assert other_mirror.ranges == [f"bytes={HALF}-"]
    assert other_mirror.sent == [len(PACKED) - HALF]


def test_a_mirror_that_ignores_the_range_sends_the_whole_once(mirror, path):
    keep_part(path, PACKED[:1000])
    mirror.answers = [ignore_range]
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == ["bytes=1000-"]


def test_a_part_that_is_whole_needs_no_byte(mirror, path):
    keep_part(path, PACKED)
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == [f"bytes={len(PACKED)}-"] and mirror.sent == [0]


@pytest.mark.parametrize(
    "damaged",
    [bytes(1000), bytes(len(PACKED)), PACKED + b"more", PACKED[:-8] + bytes(8), gzip.compress(b"")],
    ids=["short", "whole", "longer", "checksum", "other"],
)
def test_a_damaged_part_is_fetched_again_from_the_start(mirror, path, damaged):
    keep_part(path, damaged)
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == [f"bytes={len(damaged)}-", None]


def test_a_range_that_starts_elsewhere_is_not_appended(mirror, path):
    keep_part(path, PACKED[:1000])
    mirror.answers = [wrong_range, serve]
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == ["bytes=1000-", None]


def test_mirrors_that_compressed_differently_do_not_mix(mirror, other_mirror, path):
    named = io.BytesIO()
    with gzip.GzipFile("a name in the header", "wb", fileobj=named, mtime=0) as file:
        file.write(DATA)
    mirror.answers = [
        lambda request, start: request.body(head_of_rest(request, start, named.getvalue())[:HALF])
    ]
    fetch(path, mirror, other_mirror)
    assert_fetched(path)
    assert other_mirror.ranges == [f"bytes={HALF}-", None]


def test_one_download_does_not_disturb_another(mirror, path):
    halfway, go_on = threading.Event(), threading.Event()

    def pause(request, start):
        rest = head_of_rest(request, start)
        request.body(rest[:HALF])
        halfway.set()
        go_on.wait(10)
        request.body(rest[HALF:])

    mirror.answers = [pause, serve]
    first = threading.Thread(target=fetch, args=(path, mirror))
    first.start()
    assert halfway.wait(10)
    fetch(path, mirror)
    assert path.read_bytes() == DATA
    go_on.set()
    first.join()
    assert_fetched(path)
    assert mirror.ranges == [None, None]


def test_many_downloads_at_once_all_succeed(mirror, path):
    errors = []

    def work():
        try:
            fetch(path, mirror)
            assert path.read_bytes() == DATA
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert_fetched(path)


def test_without_locks_a_private_file_is_used(mirror, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    mirror.answers = [drop]
    assert_fails(path, mirror, reason=FAULTS[drop])
    assert files_beside(path) == []
    mirror.answers = [drop, ignore_range]
    fetch(path, mirror, mirror)
    assert_fetched(path)
    assert mirror.ranges == [None, None, f"bytes={HALF}-"]


def test_a_killed_process_leaves_a_part_that_is_continued(mirror, path):
    mirror.answers = [stall, serve]
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1])['download']"
        "([sys.argv[2]], sys.argv[3], sha256=sys.argv[4])"
    )
    command = [sys.executable, "-c", code, inspect.getfile(download), mirror.url, str(path), SHA256]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if part_of(path).exists() and part_of(path).stat().st_size == HALF:
                break
            time.sleep(0.01)
        process.kill()
    assert files_beside(path) == ["data.part"]
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.ranges == [None, f"bytes={HALF}-"]


def test_an_interrupt_keeps_the_part(mirror, path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            fetch(path, mirror)
    assert files_beside(path) == ["data.part"]
    fetch(path, mirror)
    assert_fetched(path)
    assert mirror.sent == [len(PACKED), 0]


def test_a_folder_that_cannot_be_written_is_reported_before_any_request(mirror, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    message = f"{tmp_path / 'file'}: expected a folder that can be written, got 'File exists'; "
    with pytest.raises(OSError, match=f"^{re.escape(message)}choose another folder .FDL_CACHE"):
        fetch(tmp_path / "file" / "data", mirror)
    assert mirror.ranges == []


def test_a_folder_without_permission_is_reported_before_any_request(mirror, path, monkeypatch):
    def refuse(*args, **kwargs):  # root may write everywhere, so the real thing cannot be set up
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = f"{path.parent}: expected a folder that can be written, got 'Permission denied'; "
    with pytest.raises(OSError, match=f"^{re.escape(message)}"):
        fetch(path, mirror)
    assert mirror.ranges == []


def test_no_more_than_the_known_size_is_written(mirror, path, monkeypatch):
    """No more is downloaded than the compressed form of `size` bytes can take."""
    sizes = []
    unlink, truncate = pathlib.Path.unlink, module._empty

    def note_unlink(self, **kwargs):
        if self.exists():
            sizes.append(self.stat().st_size)
        unlink(self, **kwargs)

    def note_truncate(part):
        sizes.append(part.seek(0, os.SEEK_END))
        truncate(part)

    monkeypatch.setattr(pathlib.Path, "unlink", note_unlink)
    monkeypatch.setattr(module, "_empty", note_truncate)
    for fault in serve_bomb, serve_without_end:
        mirror.answers = [fault]
        assert_fails(path, mirror, reason=FAULTS[fault])
        assert mirror.sent[-1] < MOST + 20e6  # what the kernel holds
    assert len(BOMB) < MOST and max(sizes) <= MOST + (1 << 14)
    assert files_beside(path) == []


def test_what_the_file_may_be_is_bounded_if_its_size_is_not_known(mirror, path):
    mirror.answers = [serve_bomb]
    message = f"{mirror.url}: expected at most {1 << 27} bytes unpacked, got more; deleted the "
    with pytest.raises(ConnectionError, match=re.escape(message)):
        download([mirror.url], path, sha256=SHA256)
    assert files_beside(path) == []


def test_data_that_do_not_compress_pass_the_bound(mirror, path):
    """Every way to pack them; the longest adds five bytes to each block."""
    for level in 0, 1, 9:
        packed = gzip.compress(DATA, level, mtime=0)
        mirror.answers = [
            lambda request, start, packed=packed: request.body(head_of_rest(request, start, packed))
        ]
        fetch(path, mirror)
        assert_fetched(path)
        path.unlink()


def test_a_full_disk_is_not_the_mirrors_fault(mirror, other_mirror, path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    message = (
        f"expected space for the download and a file of {len(DATA):,} bytes, got 'No space left on "
        f"device'; free some space, or choose another cache folder with FDL_CACHE: {str(path)!r}"
    )
    with pytest.raises(OSError, match=f"{re.escape(message)}$"):
        fetch(path, mirror, other_mirror)
    assert other_mirror.ranges == [] and files_beside(path) == ["data.part"]


@pytest.mark.parametrize("urls", ["http://127.0.0.1/data.gz", []], ids=["text", "empty"])
def test_addresses_that_are_no_list_are_refused(urls, path):
    message = f"urls: expected a list of addresses, got {urls!r}; pass [address]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        download(urls, path, sha256=SHA256)


SEEDED_BUGS = {
    "fdl/data/datasets/downloading.py": (
        "data/datasets/test_downloading.py",
        [
            ("if file.tell() + len(block) > size:", "if False:"),
            ("if part.tell() > most:", "if False:"),
            ("size + size // 1000 + 1000", "size"),
        ],
    ),
}
