"""MNIST (handwritten digits) and Fashion-MNIST (clothes), which have the same format."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fdl.data.arrays import Split
from fdl.data.cache_folder import cache_folder
from fdl.data.datasets.downloading import download, sha256_of
from fdl.data.datasets.idx import read_idx


class _Files(NamedTuple):
    """The four IDX files of a data set: their mirrors, checksums and sizes."""

    title: str
    name: str  # the function, the folder in FDL_DATA and the folder in the cache have this name
    mirrors: tuple[str, ...]
    sha256: dict[str, str]
    sizes: dict[str, int]  # bytes of the files that have these checksums
    packed: bool  # True if checksums and sizes are those of the gzipped files


_MNIST = _Files(
    "MNIST",
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    {
        "train-images-idx3-ubyte": 47_040_016,
        "train-labels-idx1-ubyte": 60_008,
        "t10k-images-idx3-ubyte": 7_840_016,
        "t10k-labels-idx1-ubyte": 10_008,
    },
    packed=False,
)

_FASHION_MNIST = _Files(
    "Fashion-MNIST",
    "fashion_mnist",
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    {
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
    {
        "train-images-idx3-ubyte": 26_421_880,
        "train-labels-idx1-ubyte": 29_515,
        "t10k-images-idx3-ubyte": 4_422_102,
        "t10k-labels-idx1-ubyte": 5_148,
    },
    packed=True,
)

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """The MNIST digits: 60,000 images for training and 10,000 for testing.

    If `folder` is given, the four IDX files are read from it. Otherwise, fdl looks for the files in
    these folders, in this order:

    1. `$FDL_DATA/mnist`, then `$FDL_DATA` itself, if FDL_DATA is set and all four files are there
    2. the cache folder: `$FDL_CACHE/mnist`, or `$XDG_CACHE_HOME/fdl/mnist`, or `~/.cache/fdl/mnist`

    Files that are missing in the cache folder are downloaded to it (11 MB).

    A file may be gzipped or not. Its name is, for example, `train-images-idx3-ubyte`,
    `train-images-idx3-ubyte.gz` or `train-images.idx3-ubyte`. Files from FDL_DATA and the cache
    folder must have the SHA-256 of MNIST. Files in `folder` may be another data set in the same
    format: only their format, shapes and labels are checked.

    Args:
      folder: path of the folder with the four files. If it is None, they are read from
        FDL_DATA or the cache folder, and missing files are downloaded.

    Returns:
      `Split(train, test)`, each `(images, labels)`. images is uint8 [N, 28, 28, 1], where ink is up
      to 255 and paper is 0; labels is int32 [N] in [0, 10).

    Raises:
      FileNotFoundError: a file is missing in `folder`, or FDL_DATA is not a folder.
      ConnectionError: no mirror worked; run again to resume the download.
      ValueError: a file is damaged, images are not 28 x 28 pixels, labels are not in [0, 10), or
        there is not one label for each image; or `folder` is None, and the SHA-256 of a file is not
        that of MNIST.

    Example:
      >>> import pathlib, tempfile
      >>> image = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(28 * 28)
      >>> label = bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for part in "train", "t10k":
      ...         _ = pathlib.Path(folder, f"{part}-images-idx3-ubyte").write_bytes(image)
      ...         _ = pathlib.Path(folder, f"{part}-labels-idx1-ubyte").write_bytes(label)
      ...     (images, labels), test = mnist(folder)
      >>> images.shape, labels
      ((1, 28, 28, 1), array([7], dtype=int32))

    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits,
    http://yann.lecun.com/exdb/mnist/.
    """
    return _split(_MNIST, folder)


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """Fashion-MNIST: 60,000 images of clothes for training and 10,000 for testing.

    The four files have the same names and the same format as the files of `mnist`. fdl looks for
    them in the same folders, with `fashion_mnist` instead of `mnist` in the paths. The download is
    31 MB. Files in FDL_DATA and in the cache folder must be gzipped, because the published
    checksums are those of the gzipped files. Files in `folder` may be gzipped or not.

    Args:
      folder: path of the folder with the four files. If it is None, they are read from
        FDL_DATA or the cache folder, and missing files are downloaded.

    Returns:
      `Split(train, test)`, each `(images, labels)`. images is uint8 [N, 28, 28, 1], where cloth is
      up to 255 and the background is 0; labels is int32 [N] in [0, 10), and class c is named
      `fdl.data.FASHION_CLASSES[c]`.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: in the same cases as `mnist`.

    Example:
      >>> FASHION_CLASSES[:3]
      ('T-shirt/top', 'trouser', 'pullover')

    Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms", arXiv 1708.07747.
    """
    return _split(_FASHION_MNIST, folder)


def _split(source: _Files, folder: str | os.PathLike[str] | None) -> Split:
    """Reads and checks the data set."""
    if folder is not None:
        files = _from_folder(source, Path(folder))
    else:
        files = _from_environment(source) or _from_cache(source)
    split = Split(train=_read(source, files, "train"), test=_read(source, files, "t10k"))
    if folder is None:
        for (images, labels), part in zip(split, ("train", "t10k"), strict=True):
            _check_sum(source, files, f"{part}-images-idx3-ubyte", images[..., 0])
            _check_sum(source, files, f"{part}-labels-idx1-ubyte", labels)
    return split


def _from_folder(source: _Files, folder: Path) -> dict[str, Path]:
    files = _find(source, folder, ("", ".gz"))
    if missing := [name for name in source.sha256 if name not in files]:
        raise FileNotFoundError(
            f"{folder}: expected the four files of {source.title}, got a folder without "
            f"{', '.join(missing)}; put these files there, gzipped or not, or call {source.name}() "
            "without a folder to download them"
        )
    return files


def _from_environment(source: _Files) -> dict[str, Path] | None:
    if data := os.environ.get("FDL_DATA"):
        above = Path(data).expanduser()
        if not above.is_dir():
            raise FileNotFoundError(
                f"{source.name}: expected FDL_DATA to be the path of a folder, got {data!r}, which "
                "is not a folder; correct it, or unset it to download the files"
            )
        # All four files must be in one folder, so that images and labels belong to the same data
        # set.
        for folder in (above / source.name, above):
            files = _find(source, folder)
            # Gzipped files directly in FDL_DATA are skipped if the labels have another checksum:
            # they may be the files of MNIST, which have the same names.
            labels = files.get("train-labels-idx1-ubyte")
            other = source.packed and folder == above and labels and not _is_known(source, labels)
            if len(files) == len(source.sha256) and not other:
                return files
    return None


def _from_cache(source: _Files) -> dict[str, Path]:
    folder = cache_folder() / source.name
    files = _find(source, folder)
    end = ".gz" if source.packed else ""
    for name in source.sha256:
        if name not in files:
            files[name] = folder / f"{name}{end}"
            try:
                download(
                    [f"{mirror}{name}.gz" for mirror in source.mirrors],
                    files[name],
                    sha256=source.sha256[name],
                    size=source.sizes[name],
                    unpack=not source.packed,
                )
            except OSError as error:
                if data := os.environ.get("FDL_DATA"):
                    names = [f"{each}{end}" for each in source.sha256]
                    error.add_note(f"FDL_DATA is {data}, which does not contain all of {names}")
                raise
    return files


def _find(source: _Files, folder: Path, ends: tuple[str, ...] = ()) -> dict[str, Path]:
    """The files in a folder, by name. Without `ends`, only files that `_check_sum` can check."""
    files = {}
    for name in source.sha256:
        spellings = (name, name.replace("-idx", ".idx"))
        ends = ends or ((".gz",) if source.packed else ("", ".gz"))
        paths = [folder / (spelling + end) for spelling in spellings for end in ends]
        if present := [path for path in paths if path.is_file()]:
            files[name] = present[0]
    return files


def _read(source: _Files, files: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of a part, "train" or "t10k"; raises unless they have the right format."""
    images_path, labels_path = (
        files[f"{part}-images-idx3-ubyte"],
        files[f"{part}-labels-idx1-ubyte"],
    )
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path}: expected images uint8 [N, 28, 28], got {images.dtype} "
            f"{list(images.shape)}; pass the images of {source.title}, or of a data set in the "
            "same format"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1 or (labels > 9).any():
        largest = f" up to {labels.max()}" if labels.size else ""
        raise ValueError(
            f"{labels_path}: expected labels uint8 [N] from 0 to 9, got {labels.dtype} "
            f"{list(labels.shape)}{largest}; pass the labels of {source.title}, or of a data set "
            "in the same format"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one for each image of {images_path}, "
            f"got {len(labels)}; take both files from the same data set"
        )
    return images[..., np.newaxis], labels.astype(np.int32)


def _check_sum(source: _Files, files: dict[str, Path], name: str, array: np.ndarray) -> None:
    """Raises unless the file that the array was read from has the checksum of the data set."""
    if source.packed:
        got = sha256_of(files[name])
    else:
        # An IDX file is a header with the shape, followed by the values. So the checksum of the
        # file can be computed from the array, without reading the file again.
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        digest = hashlib.sha256(bytes([0, 0, 8, array.ndim]) + sizes)
        digest.update(np.ascontiguousarray(array, np.uint8).data)
        got = digest.hexdigest()
    if got != source.sha256[name]:
        raise ValueError(
            f"{files[name]}: expected the file of {source.title}, SHA-256 {source.sha256[name]}, "
            f"got {got}: it is damaged or from another data set; replace it with a complete copy, "
            f"or read your own files with fdl.data.{source.name}({str(files[name].parent)!r})"
        )


def _is_known(source: _Files, path: Path) -> bool:
    return sha256_of(path) in source.sha256.values()
