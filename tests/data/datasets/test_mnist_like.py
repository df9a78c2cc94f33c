"""mnist and fashion_mnist: where they look, what they refuse, and the facts of the real files."""

import gzip
import hashlib
import importlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

from fdl.data.datasets.mnist_like import FASHION_CLASSES, fashion_mnist, mnist

module = importlib.import_module("fdl.data.datasets.mnist_like")

TRAIN, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NAMES = (TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)


def real_folder():
    """The folder with the real files, gzipped, or None."""
    candidates = [Path(__file__).resolve().parents[4] / "shared" / "data"]
    if data := os.environ.get("FDL_DATA"):
        candidates.insert(0, Path(data))
    for folder in [path for data in candidates for path in (data, data / "mnist")]:
        if all((folder / f"{name}.gz").is_file() for name in NAMES):
            return folder
    return None


REAL = real_folder()
needs_real_files = pytest.mark.skipif(REAL is None, reason="set FDL_DATA to the files of MNIST")


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def files_of(seed, counts=(5, 3)):
    """The bytes of four small files by name."""
    rng = np.random.default_rng(seed)
    files = {}
    for part, count in zip(("train", "t10k"), counts, strict=True):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, count, np.uint8))
    return files


def write(folder, files, *, spell=lambda name: name, pack=lambda content: content):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / spell(name)).write_bytes(pack(content))
    return folder


def assert_same(split, files):
    for part, (images, labels) in zip(("train", "t10k"), split, strict=True):
        assert images.dtype == np.uint8 and images.shape == (len(labels), 28, 28, 1)
        assert labels.dtype == np.int32 and labels.ndim == 1
        assert idx(images[..., 0]) == files[f"{part}-images-idx3-ubyte"]
        assert idx(labels.astype(np.uint8)) == files[f"{part}-labels-idx1-ubyte"]


@pytest.fixture(autouse=True)
def mirror(monkeypatch, tmp_path):
    """An empty mirror and an empty cache: no test reaches the network or the home folder."""
    for name in "FDL_DATA", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FDL_CACHE", str(tmp_path / "cache"))
    for source in "_MNIST", "_FASHION_MNIST":
        be(monkeypatch, source, mirrors=((tmp_path / "mirror").as_uri() + "/",))
    return tmp_path / "mirror"


def be(monkeypatch, source, **facts):
    monkeypatch.setattr(module, source, getattr(module, source)._replace(**facts))


def as_mnist(monkeypatch, files):
    """From here on these files are MNIST."""
    be(monkeypatch, "_MNIST", **checksums(files))
    return files


def checksums(files):
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"sha256": digests, "sizes": {name: len(files[name]) for name in files}}


def publish(monkeypatch, mirror, files):
    write(mirror, as_mnist(monkeypatch, files), spell="{}.gz".format, pack=gzip.compress)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "spell",
    [
        str,
        "{}.gz".format,
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.replace("-idx", ".idx") + ".gz",
    ],
    ids=["dash", "dash.gz", "dot", "dot.gz"],
)
def test_every_spelling_is_found_gzipped_or_not(tmp_path, spell, pack):
    folder = write(tmp_path / "mine", files_of(1), spell=spell, pack=pack)
    assert_same(mnist(folder), files_of(1))
    assert_same(mnist(str(folder)), files_of(1))


def test_the_result_has_names(tmp_path):
    split = mnist(write(tmp_path / "mine", files_of(1)))
    assert len(split.train[1]) == 5 and len(split.test[1]) == 3
    assert type(split).__name__ == "Split"


def test_the_folder_goes_before_the_environment_and_that_before_the_cache(tmp_path, monkeypatch):
    write(tmp_path / "cache" / "mnist", as_mnist(monkeypatch, files_of(3)))
    assert_same(mnist(), files_of(3))
    data = write(tmp_path / "data", as_mnist(monkeypatch, files_of(2)))
    monkeypatch.setenv("FDL_DATA", str(data))
    assert_same(mnist(), files_of(2))
    assert_same(mnist(write(tmp_path / "mine", files_of(1))), files_of(1))


def test_the_environment_may_name_the_folder_above(tmp_path, monkeypatch):
    write(tmp_path / "data" / "mnist", as_mnist(monkeypatch, files_of(2)))
    monkeypatch.setenv("FDL_DATA", str(tmp_path / "data"))
    assert_same(mnist(), files_of(2))


@pytest.mark.parametrize("missing", NAMES)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, missing):
    folder = write(tmp_path / "mine", files_of(1))
    (folder / missing).unlink()
    message = (
        f"{folder}: expected the four files of MNIST, got a folder without {missing}; put these "
        "files there, gzipped or not, or call mnist() without a folder to download them"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        mnist(folder)


def test_a_folder_that_is_not_there_lacks_all_four(tmp_path):
    message = (
        f"{tmp_path / 'no'}: expected the four files of MNIST, got a folder without "
        f"{', '.join(NAMES)}; "
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        mnist(tmp_path / "no")


def test_an_environment_that_lacks_a_file_gives_way_whole(tmp_path, monkeypatch):
    data = write(tmp_path / "data", files_of(2))
    (data / TEST_LABELS).unlink()
    monkeypatch.setenv("FDL_DATA", str(data))
    write(tmp_path / "cache" / "mnist", as_mnist(monkeypatch, files_of(3)))
    assert_same(mnist(), files_of(3))


@pytest.mark.parametrize(
    ("variables", "cache"),
    [
        ({"FDL_CACHE": "a"}, "a/mnist"),
        ({"FDL_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a/mnist"),
        ({"XDG_CACHE_HOME": "b"}, "b/fdl/mnist"),
        ({"FDL_CACHE": "", "XDG_CACHE_HOME": ""}, "home/.cache/fdl/mnist"),
        ({}, "home/.cache/fdl/mnist"),
    ],
)
def test_where_the_cache_is(tmp_path, monkeypatch, mirror, variables, cache):
    monkeypatch.delenv("FDL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value and str(tmp_path / value))
    publish(monkeypatch, mirror, files_of(4))
    assert_same(mnist(), files_of(4))
    assert sorted(os.listdir(tmp_path / cache)) == sorted(NAMES)


def test_only_what_the_cache_lacks_is_downloaded(tmp_path, monkeypatch, mirror):
    publish(monkeypatch, mirror, files_of(4))
    mnist()
    (tmp_path / "cache" / "mnist" / TEST).unlink()
    for name in TRAIN, TRAIN_LABELS, TEST_LABELS:
        (mirror / f"{name}.gz").unlink()
    assert_same(mnist(), files_of(4))
    (mirror / f"{TEST}.gz").unlink()
    assert_same(mnist(), files_of(4))


def test_a_download_with_the_wrong_checksum_is_refused(tmp_path, monkeypatch, mirror):
    publish(monkeypatch, mirror, files_of(4))
    write(mirror, files_of(5), spell="{}.gz".format, pack=gzip.compress)
    target = tmp_path / "cache" / "mnist" / TRAIN
    message = (
        f"{target}: expected a download from one of 1 mirrors, got none that works; set FDL_DATA "
        "to a "
    )
    with pytest.raises(ConnectionError, match=f"^{re.escape(message)}[^$]*expected SHA-256"):
        mnist()
    assert os.listdir(target.parent) == []


def test_a_failed_download_tells_that_the_environment_was_looked_at(tmp_path, monkeypatch):
    (tmp_path / "wrong").mkdir()
    monkeypatch.setenv("FDL_DATA", str(tmp_path / "wrong"))
    with pytest.raises(
        ConnectionError, match="expected a download from one of 1 mirrors"
    ) as caught:
        mnist()
    note = f"FDL_DATA is {tmp_path / 'wrong'}, which does not contain all of {list(NAMES)}"
    assert caught.value.__notes__ == [note]


@pytest.mark.parametrize("there", [True, False], ids=["file", "nothing"])
def test_an_environment_that_names_no_folder_is_refused(tmp_path, monkeypatch, there):
    write(tmp_path / "cache" / "mnist", as_mnist(monkeypatch, files_of(3)))
    if there:
        (tmp_path / "data").write_text("not a folder")
    monkeypatch.setenv("FDL_DATA", str(tmp_path / "data"))
    message = (
        f"mnist: expected FDL_DATA to be the path of a folder, got {str(tmp_path / 'data')!r}, "
        "which is not a folder; correct it, or unset it to download the files"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        mnist()
    monkeypatch.setenv("FDL_DATA", "")
    assert_same(mnist(), files_of(3))
    assert_same(mnist(write(tmp_path / "mine", files_of(1))), files_of(1))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("place", ["data", "data/mnist", "cache/mnist"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_that_of_mnist_is_named(tmp_path, monkeypatch, name, place, pack):
    """One bit of ink, or one label: nothing that a shape could tell."""
    files = as_mnist(monkeypatch, files_of(3))
    damaged = bytearray(files[name])
    damaged[-1] ^= 1
    folder = write(tmp_path / place, files | {name: bytes(damaged)}, pack=pack)
    if place != "cache/mnist":
        monkeypatch.setenv("FDL_DATA", str(tmp_path / "data"))
    message = (
        f"{folder / name}: expected the file of MNIST, SHA-256 "
        f"{hashlib.sha256(files[name]).hexdigest()}, got {hashlib.sha256(damaged).hexdigest()}: it "
        "is damaged or from another data set; replace it with a complete copy, or read your own "
        f"files with fdl.data.mnist({str(folder)!r})"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mnist()
    assert_same(mnist(folder), files | {name: bytes(damaged)})


def with_file(tmp_path, name, content):
    return write(tmp_path / "mine", files_of(1) | {name: content})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN, files_of(1)[TRAIN][:-1], "expected 3936 bytes for uint8 [5, 28, 28], got 3935: "),
        (TEST, gzip.compress(b"a")[:-1], "expected a valid gzip file, got an invalid one ("),
        (TEST_LABELS, b"<html>", "expected an IDX file, which begins with two zero bytes, got "),
        (
            TRAIN,
            idx(np.zeros((5, 32, 32), np.uint8)),
            "expected images uint8 [N, 28, 28], got uint8 [5, 32, 32]; pass the images of MNIST",
        ),
        (
            TEST,
            idx(np.zeros((5, 28), np.uint8)),
            "expected images uint8 [N, 28, 28], got uint8 [5, 28]; pass the images of MNIST",
        ),
        (
            TEST,
            b"\0\0\x09\3\0\0\0\1\0\0\0\x1c\0\0\0\x1c" + bytes(784),
            "expected images uint8 [N, 28, 28], got int8 [1, 28, 28]; pass the images of MNIST",
        ),
        (
            TRAIN_LABELS,
            idx(np.array([5, 0, 10, 1, 9], np.uint8)),
            "expected labels uint8 [N] from 0 to 9, got uint8 [5] up to 10; pass the labels of ",
        ),
        (
            TEST_LABELS,
            idx(np.ones((3, 1), np.uint8)),
            "expected labels uint8 [N] from 0 to 9, got uint8 [3, 1] up to 1; pass the labels of ",
        ),
        (
            TEST_LABELS,
            b"\0\0\x0c\1\0\0\0\0",
            "expected labels uint8 [N] from 0 to 9, got int32 [0]; pass the labels of MNIST",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    folder = with_file(tmp_path, name, content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{folder / name}: {message}')}"):
        mnist(folder)


def test_a_bad_file_in_the_cache_is_named_too(tmp_path):
    folder = write(tmp_path / "cache" / "mnist", files_of(1) | {TRAIN: b"\0\0"})
    message = f"{folder / TRAIN}: expected an IDX header of 4 bytes, got 2: the file is cut short; "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        mnist()


def test_images_and_labels_of_different_length_are_refused(tmp_path):
    labels = files_of(1, (6, 3))[TRAIN_LABELS]
    folder = with_file(tmp_path, TRAIN_LABELS, labels)
    message = (
        f"{folder / TRAIN_LABELS}: expected 5 labels, one for each image of {folder / TRAIN}, "
        "got 6; take both files from the same data set"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mnist(folder)


@needs_real_files
def test_the_facts_of_the_real_files():
    (images, labels), (test_images, test_labels) = mnist(REAL)
    assert images.shape == (60_000, 28, 28, 1) and images.dtype == np.uint8
    assert test_images.shape == (10_000, 28, 28, 1) and test_images.dtype == np.uint8
    assert labels.dtype == test_labels.dtype == np.int32
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    histogram = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(labels).tolist() == histogram
    histogram = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(test_labels).tolist() == histogram
    # The mean and deviation that everybody normalises by.
    assert round(images.mean() / 255, 4) == 0.1307 and round(images.std() / 255, 4) == 0.3081
    assert images[0, 5, 12:16, 0].tolist() == [3, 18, 18, 18]  # a row, not a column


@needs_real_files
def test_the_real_files_have_the_checksums_and_sizes_that_a_download_must_have(monkeypatch):
    be(monkeypatch, "_MNIST", mirrors=(REAL.as_uri() + "/",))
    (_, labels), (_, test_labels) = mnist()
    assert len(labels) == 60_000 and len(test_labels) == 10_000
    for name, size in module._MNIST.sizes.items():
        assert len(gzip.decompress((REAL / f"{name}.gz").read_bytes())) == size
    monkeypatch.setenv("FDL_DATA", str(REAL))
    assert len(mnist().train[1]) == 60_000


# Fashion-MNIST: the same format, known by the checksums of its gzipped files.


def as_fashion(monkeypatch, files):
    """From here on these files, gzipped, are Fashion-MNIST."""
    packed = {name: gzip.compress(content, mtime=0) for name, content in files.items()}
    be(monkeypatch, "_FASHION_MNIST", **checksums(packed))
    return packed


def test_fashion_is_downloaded_as_it_is_and_kept(tmp_path, monkeypatch, mirror):
    packed = as_fashion(monkeypatch, files_of(6))
    write(mirror, packed, spell="{}.gz".format)
    for _ in range(2):
        assert_same(fashion_mnist(), files_of(6))
        for name in NAMES:  # the second time from the cache alone
            (mirror / f"{name}.gz").unlink(missing_ok=True)
    cache = tmp_path / "cache" / "fashion_mnist"
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        f"{name}.gz": content for name, content in packed.items()
    }


def test_a_download_of_other_clothes_is_refused(tmp_path, monkeypatch, mirror):
    as_fashion(monkeypatch, files_of(6))
    # The same content, packed otherwise: the checksum is of the gzipped file.
    write(mirror, files_of(6), spell="{}.gz".format, pack=lambda each: gzip.compress(each, 1))
    target = tmp_path / "cache" / "fashion_mnist" / f"{TRAIN}.gz"
    message = (
        f"{target}: expected a download from one of 1 mirrors, got none that works; set FDL_DATA "
        "to a "
    )
    with pytest.raises(ConnectionError, match=f"^{re.escape(message)}[^$]*expected "):
        fashion_mnist()
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("place", ["", "fashion_mnist"])
def test_fashion_in_the_environment_and_beside_mnist(tmp_path, monkeypatch, place):
    data = tmp_path / "data"
    write(data / place, as_fashion(monkeypatch, files_of(6)), spell="{}.gz".format)
    write(data / "mnist", as_mnist(monkeypatch, files_of(2)))
    monkeypatch.setenv("FDL_DATA", str(data))
    assert_same(fashion_mnist(), files_of(6))
    assert_same(mnist(), files_of(2))


def test_files_of_mnist_are_never_taken_for_clothes(tmp_path, monkeypatch, mirror):
    """They have the same names: a folder of MNIST's in FDL_DATA is passed over."""
    write(mirror, as_fashion(monkeypatch, files_of(6)), spell="{}.gz".format)
    data = write(tmp_path / "data", as_mnist(monkeypatch, files_of(2)))
    write(data, files_of(2), spell="{}.gz".format, pack=gzip.compress)
    monkeypatch.setenv("FDL_DATA", str(data))
    assert_same(fashion_mnist(), files_of(6))
    assert_same(mnist(), files_of(2))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_that_of_fashion_is_named(tmp_path, monkeypatch, name):
    packed = as_fashion(monkeypatch, files_of(6))
    damaged = bytearray(files_of(6)[name])
    damaged[-1] ^= 1
    other = gzip.compress(bytes(damaged), mtime=0)
    folder = tmp_path / "data" / "fashion_mnist"
    write(folder, packed | {name: other}, spell="{}.gz".format)
    monkeypatch.setenv("FDL_DATA", str(folder.parent))
    message = (
        f"{folder / name}.gz: expected the file of Fashion-MNIST, SHA-256 "
        f"{hashlib.sha256(packed[name]).hexdigest()}, got {hashlib.sha256(other).hexdigest()}: it "
        "is damaged or from another data set; replace it with a complete copy, or read your own "
        f"files with fdl.data.fashion_mnist({str(folder)!r})"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fashion_mnist()
    assert_same(fashion_mnist(folder), files_of(6) | {name: bytes(damaged)})


def test_a_folder_of_clothes_may_be_unpacked_and_its_errors_name_the_data_set(tmp_path):
    folder = write(tmp_path / "mine", files_of(1))
    assert_same(fashion_mnist(folder), files_of(1))
    (folder / TEST).unlink()
    message = (
        f"{folder}: expected the four files of Fashion-MNIST, got a folder without {TEST}; put "
        "these files there, gzipped or not, or call fashion_mnist() without a folder to download "
        "them"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        fashion_mnist(folder)


def test_the_published_facts_of_fashion_are_whole():
    source = module._FASHION_MNIST
    assert set(source.sha256) == set(source.sizes) == set(NAMES) and source.packed
    digests = set(source.sha256.values()) | set(module._MNIST.sha256.values())
    assert len(digests) == 8 and all(re.fullmatch("[0-9a-f]{64}", each) for each in digests)
    assert sum(source.sizes.values()) == 30_878_645  # bytes, as the data set's page lists them
    assert len(set(FASHION_CLASSES)) == 10


SEEDED_BUGS = {
    "fdl/data/datasets/mnist_like.py": (
        "data/datasets/test_mnist_like.py",
        [
            ("if folder is None:\n        for", "if False:\n        for"),
            (" and not _is_known(source, labels)", " and False"),
            ("(above / source.name, above)", "(above, above / source.name)"),
            ("unpack=not source.packed", "unpack=True"),
            ("if not above.is_dir():", "if False:"),
        ],
    ),
}
