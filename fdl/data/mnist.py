"""MNIST, the handwritten digits."""

import hashlib
import os
from pathlib import Path

import numpy as np

from fdl.data.arrays import Split
from fdl.data.idx import read_idx

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_SHA256 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_BYTES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}


def mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """The MNIST digits: 60,000 images to train on and 10,000 to test on.

    Images are uint8 `[N, 28, 28, 1]`, ink 255 on paper 0; labels are int32 `[N]`, 0 to 9.

    The four IDX files, gzipped or not (`train-images-idx3-ubyte`, `train-images-idx3-ubyte.gz` or
    `train-images.idx3-ubyte`, and so on), are taken from the first of these folders that has them:
    `folder`; the environment variable FDL_DATA, or `mnist` in it; the cache, which is `mnist` in
    FDL_CACHE, or else `fdl/mnist` in XDG_CACHE_HOME or ~/.cache. What the cache lacks is
    downloaded (11 MB). Every file is checked by its SHA-256, but those of `folder` for format,
    shapes and labels only, so that another data set in the same files, such as Fashion-MNIST, can
    be read.

    Args:
      folder: where the four files are; nothing is downloaded, and FDL_DATA is not looked at, if it
        is given.

    Returns:
      `Split(train, test)`, each `(images, labels)`.

    Raises:
      FileNotFoundError: `folder` lacks a file, or FDL_DATA names no folder.
      ConnectionError: no mirror delivered; run again to resume.
      ValueError: a file is damaged, or is not of ten classes of 28 by 28 pixels; or it is not that
        of MNIST, and `folder` is not given.

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
    if folder is not None:
        files = _from_folder(Path(folder))
    else:
        files = _from_environment() or _from_cache()
    split = Split(train=_read(files, "train"), test=_read(files, "t10k"))
    if folder is None:
        for (images, labels), part in zip(split, ("train", "t10k"), strict=True):
            _check_sum(files, f"{part}-images-idx3-ubyte", images[..., 0])
            _check_sum(files, f"{part}-labels-idx1-ubyte", labels)
    return split


def _from_folder(folder: Path) -> dict[str, Path]:
    files = _find(folder)
    if missing := [name for name in _SHA256 if name not in files]:
        raise FileNotFoundError(
            f"{folder}: expected the four files of MNIST, got no {', '.join(missing)}; put them "
            "there, gzipped or not, or call mnist() without a folder to download them"
        )
    return files


def _from_environment() -> dict[str, Path] | None:
    if data := os.environ.get("FDL_DATA"):
        above = Path(data).expanduser()
        if not above.is_dir():
            raise FileNotFoundError(
                f"mnist: expected FDL_DATA to name a folder, got {data!r}, where there is none; "
                "correct it, or unset it to download the files"
            )
        # All four of one folder: images of one data set never meet the labels of another.
        for folder in (above, above / "mnist"):
            if len(files := _find(folder)) == len(_SHA256):
                return files
    return None


def _from_cache() -> dict[str, Path]:
    folder = _cache_folder() / "mnist"
    files = _find(folder)
    for name in _SHA256:
        if name not in files:
            files[name] = folder / name
            from fdl.data.download import download

            try:
                download(
                    [f"{mirror}{name}.gz" for mirror in _MIRRORS],
                    files[name],
                    sha256=_SHA256[name],
                    size=_BYTES[name],
                )
            except OSError as error:
                if data := os.environ.get("FDL_DATA"):
                    error.add_note(f"FDL_DATA is {data}: it does not hold all of {list(_SHA256)}")
                raise
    return files


def _cache_folder() -> Path:
    if cache := os.environ.get("FDL_CACHE"):
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fdl"


def _find(folder: Path) -> dict[str, Path]:
    """The files of MNIST that a folder has, by name."""
    files = {}
    for name in _SHA256:
        spellings = (name, name.replace("-idx", ".idx"))
        paths = [folder / (spelling + end) for spelling in spellings for end in ("", ".gz")]
        if present := [path for path in paths if path.is_file()]:
            files[name] = present[0]
    return files


def _read(files: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    images_path, labels_path = (
        files[f"{part}-images-idx3-ubyte"],
        files[f"{part}-labels-idx1-ubyte"],
    )
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path}: expected images uint8 [N, 28, 28], got {images.dtype} "
            f"{list(images.shape)}; give the images of MNIST, or of a data set of the same format"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1 or (labels > 9).any():
        largest = f" up to {labels.max()}" if labels.size else ""
        raise ValueError(
            f"{labels_path}: expected labels uint8 [N] from 0 to 9, got {labels.dtype} "
            f"{list(labels.shape)}{largest}; give the labels of MNIST, or of a data set of the "
            "same format"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one for each image of {images_path}, "
            f"got {len(labels)}; take both files from the same data set"
        )
    return images[..., np.newaxis], labels.astype(np.int32)


def _check_sum(files: dict[str, Path], name: str, array: np.ndarray) -> None:
    """Whether an array, and with it the file, is that of MNIST."""
    # A file of bytes is its shape and its bytes, so it need not be read again.
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    digest = hashlib.sha256(bytes([0, 0, 8, array.ndim]) + sizes)
    digest.update(np.ascontiguousarray(array, np.uint8).data)
    if (got := digest.hexdigest()) != _SHA256[name]:
        raise ValueError(
            f"{files[name]}: expected the file of MNIST, SHA-256 {_SHA256[name]}, got {got}: it is "
            "damaged, or of another data set; replace it by a whole copy, or read your own files "
            f"with fdl.data.mnist({str(files[name].parent)!r})"
        )
