"""Folders of files as data: images in one sub-folder for each class, and texts.

N is the number of images; H, W and C are their height, width and number of channels.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fdl.checks import check_count, described
from fdl.data.frames import listed, reason
from fdl.data.streaming import ByRow
from fdl.typing import Batch

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MODES = {1: "L", 3: "RGB"}  # number of channels -> mode of Pillow
_DEEP = ("I", "F")  # modes of more than 8 bits begin with one of these


def images(folder: str | os.PathLike[str], size: tuple[int, int], *, channels: int = 3) -> "Images":
    """A source of the images in a folder that has one sub-folder for each class.

    Only the images of each batch are read. The batch of a step depends only on the seed and the
    step, as with arrays. An image is turned as its EXIF orientation says, its colours are converted
    to `channels`, and it is resized to `size` with Pillow's bilinear filter. This may change the
    ratio of height and width.

    Args:
      folder: the path of the folder. Images may also be in sub-folders of the folder of a class.
        Files without an ending of images (.png, .jpg and so on) are ignored.
      size: (H, W), two ints >= 1.
      channels: C, 3 for red, green and blue, or 1 for grey.

    Returns:
      A source for `fit`, of batches (x, y): x is uint8 [B, H, W, C] in [0, 255], y is int32 [B] in
      [0, number of classes). The attribute `classes` of the source has the names of the sub-folders
      in sorted order, so the name of class y is classes[y]. `files` has the paths of the images.
      `read()` gives all images as arrays (x, y), and `read(rows)` gives the images of these rows.

    Raises:
      ImportError: Pillow is not installed.
      FileNotFoundError: there is no such folder.
      ValueError: the folder has no sub-folders, one of them has no images, or size or channels are
        out of range. An image that is damaged, or has more than 8 bits for a channel, raises when
        it is read; the message gives its path.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for name, grey in (("cat", 0), ("dog", 255)):
      ...     (folder / name).mkdir()
      ...     _ = (folder / name / "1.pgm").write_bytes(b"P5 1 1 255 " + bytes([grey]))
      >>> pets = images(folder, (2, 2))
      >>> x, y = pets.read()
      >>> pets.classes, x.shape, y.tolist(), x.max((1, 2, 3)).tolist()
      (('cat', 'dog'), (2, 2, 2, 3), [0, 1], [0, 255])
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(
            "images: expected Pillow, which reads images, got none; run pip install 'fdl[images]'"
        ) from error
    del PIL
    if not (isinstance(size, tuple | list) and len(size) == 2):
        raise ValueError(
            f"images: expected a size (H, W), got {described(size)}; all images of a batch have "
            "one size"
        )
    height, width = (
        check_count("images", "H and W", each, "give a size in pixels") for each in size
    )
    if channels not in _MODES:
        raise ValueError(
            f"images: expected channels 1 (grey) or 3 (red, green, blue), got "
            f"{described(channels)}; choose one of them"
        )
    return Images(_of_classes(Path(folder)), (height, width), channels)


class Images(ByRow):
    """What `images` returns.

    Args:
      files: the paths of the images of each class.
      size: (H, W).
      channels: C.
    """

    def __init__(self, files: dict[str, list[Path]], size: tuple[int, int], channels: int):
        self.classes = tuple(files)
        self.files = [file for here in files.values() for file in here]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int32), [*map(len, files.values())])
        self.size, self.channels, self.examples = size, channels, len(self.files)

    def __repr__(self) -> str:
        return f"source of {self.examples} images of {len(self.classes)} classes"

    def _read(self, rows: np.ndarray) -> Batch:
        with ThreadPoolExecutor() as pool:  # Pillow decodes several images at the same time
            pixels = list(pool.map(self._pixels, rows.tolist()))
        shape = (len(rows), *self.size, self.channels)
        return np.stack(pixels).reshape(shape), self.labels[rows]

    def _pixels(self, row: int) -> np.ndarray:
        from PIL import Image, ImageOps

        file = self.files[row]
        try:
            with Image.open(file) as image:
                if not image.mode.startswith(_DEEP):
                    upright = ImageOps.exif_transpose(image).convert(_MODES[self.channels])
                    return np.asarray(upright.resize(self.size[::-1], Image.Resampling.BILINEAR))
                got = f"one of more than 8 bits (mode {image.mode})"
        except Exception as error:  # a decoder may raise any type of error
            raise _unreadable(file, f"{type(error).__name__}: {reason(error)}", error) from error
        raise _unreadable(file, got)

    def fingerprint(self) -> dict[str, Any]:
        """The names and sizes in bytes of the files, without reading them."""
        found = hashlib.sha256()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            found.update(f"{label} {file.name} {file.stat().st_size}\n".encode())
        return {
            "examples": self.examples,
            "classes": list(self.classes),
            "size": [*self.size, self.channels],
            "sha256_of_names_and_sizes": found.hexdigest(),
        }


def texts(folder: str | os.PathLike[str], ending: str = ".txt") -> dict[str, str]:
    """The texts of the files in a folder and in the folders below it.

    Args:
      folder: the path of the folder.
      ending: the ending of the files to read.

    Returns:
      A dict, path -> text, sorted by path. Paths are relative to the folder, and their levels are
      joined by "/". To get one long text for `characters`, join the values.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: no file has that ending, or a file is not UTF-8.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / "good").mkdir()
      >>> _ = (folder / "good" / "1.txt").write_text("fine")
      >>> texts(folder)
      {'good/1.txt': 'fine'}
    """
    root = _folder("texts", Path(folder))
    files = sorted(path for path in root.rglob(f"*{ending}") if path.is_file())
    if not files:
        raise ValueError(
            f"texts: expected files whose names end with {ending!r} in {str(root)!r}, got none; "
            "check the folder and the ending"
        )
    found = {}
    for file in files:
        try:
            found[file.relative_to(root).as_posix()] = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"texts: expected text in UTF-8 at {str(file)!r}, got {reason(error)}; convert the "
                "file, or give it another ending"
            ) from error
    return found


def _of_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, sorted."""
    classes = sorted(each for each in _folder("images", folder).iterdir() if each.is_dir())
    found = {each.name: _images_below(each) for each in classes if each.name[0] != "."}
    empty = [name for name, files in found.items() if not files]
    if not found or empty:
        got = f"no images in {listed(empty)}" if empty else "no sub-folder"
        raise ValueError(
            f"images: expected a folder with one sub-folder of images for each class, got {got} in "
            f"{str(folder)!r}; check the path, or remove empty folders"
        )
    return found


def _unreadable(file: Path, got: str, error: Exception | None = None) -> Exception:
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(
        f"images: expected an image of 8 bits that Pillow can read at {str(file)!r}, got {got}; "
        "replace or remove it"
    )


def _images_below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.name[0] != ".")
    return sorted(path for path in files if path.name.lower().endswith(ENDINGS) and path.is_file())


def _folder(who: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{who}: expected a folder, got none at {str(folder)!r}; check the path"
        )
    return folder
