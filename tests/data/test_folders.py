"""Folders of images and texts: the pixels of a plain loop with Pillow, and clear errors."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.data import images, texts

PIL = pytest.importorskip("PIL", reason="Pillow is not installed")
from PIL import Image  # noqa: E402

# Files of class -> (mode, width, height); not in the order of their names.
FILES = {
    "b dog/2.png": ("RGB", 9, 5),
    "b dog/10.JPG": ("RGB", 6, 8),
    "a cat/deep/1.bmp": ("L", 4, 4),
    "a cat/0.png": ("RGBA", 7, 3),
    "a cat/p.gif": ("P", 5, 5),
    "c/1.webp": ("RGB", 8, 8),
    "c/2.tiff": ("CMYK", 3, 9),
    "c/x.png": ("1", 6, 2),
}
ORDER = [
    *["a cat/0.png", "a cat/deep/1.bmp", "a cat/p.gif", "b dog/10.JPG", "b dog/2.png"],
    *["c/1.webp", "c/2.tiff", "c/x.png"],
]


def noise(mode, width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def filled(folder):
    for seed, (name, how) in enumerate(FILES.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(*how, seed).save(file)
    for name in ("notes.txt", "a cat/Thumbs.db", "c/.hidden.png", "top.png"):
        (folder / name).write_text("no image of a class")
    (folder / ".cache").mkdir(exist_ok=True)
    return folder


def expected(folder, size, mode="RGB"):
    """A plain loop."""
    found = []
    for name in ORDER:
        with Image.open(folder / name) as image:
            small = image.convert(mode).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            found.append(np.asarray(small).reshape(*size, -1))
    return np.stack(found)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_images_are_those_of_a_plain_loop(tmp_path, channels, mode):
    source = images(filled(tmp_path), (6, 4), channels=channels)
    assert source.classes == ("a cat", "b dog", "c")
    assert source.files == [tmp_path / name for name in ORDER]
    x, y = source.read()
    assert (x.dtype, y.dtype, x.shape) == (np.uint8, np.int32, (8, 6, 4, channels))
    np.testing.assert_array_equal(x, expected(tmp_path, (6, 4), mode))
    assert y.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    few = source.read([6, 1, 6])
    np.testing.assert_array_equal(few[0], x[[6, 1, 6]])
    assert few[1].tolist() == [2, 0, 2]


def test_batches_are_those_of_the_arrays(tmp_path):
    source = images(filled(tmp_path), (6, 4))
    x, y = source.read()
    found = source.take(jnp.uint32(7), range(3, 6), 3)
    for number, step in enumerate(range(3, 6)):
        batch = fdl.draw_batch((x, y), 7, step, 3)
        np.testing.assert_array_equal(found[0][number], batch[0])
        np.testing.assert_array_equal(found[1][number], batch[1])
    rows = fdl.data.balanced_rows(y, seed=2)
    balanced = fdl.data.source(source, rows=rows).read()
    np.testing.assert_array_equal(balanced[0], x[rows])
    assert np.bincount(balanced[1]).tolist() == [3, 3, 3]


@functools.cache
def learner():
    def loss(params, batch):
        x, y = batch
        x = x.reshape(len(x), -1).astype(jnp.float32) / 255
        return fdl.softmax_cross_entropy(x @ params, y).mean()

    return fdl.plain(loss), fdl.sgd(0.2, momentum=0.9)


def train(source, run=None, steps=12, **more):
    run = run or fdl.start(jnp.zeros((72, 3)), learner()[1])
    return fdl.fit(*learner(), run, source, steps=steps, batch_size=3, record_every=4, **more)


def test_a_run_that_is_stopped_and_goes_on_is_that_of_the_arrays(tmp_path):
    source = images(filled(tmp_path), (6, 4))
    whole = train(source.read())
    first = train(source, chunk=2, watch=[lambda record, run: "enough"])
    assert int(first.run.step) == 4
    found = train(images(tmp_path, (6, 4)), first, chunk=3)
    jax.tree.map(np.testing.assert_array_equal, found.run, whole.run)


def test_an_image_is_upright(tmp_path):
    (tmp_path / "a").mkdir()
    image, about = noise("RGB", 5, 3), Image.Exif()
    about[0x0112] = 6  # it must be turned by a quarter, clockwise
    image.save(tmp_path / "a" / "1.png", exif=about)
    x, _ = images(tmp_path, (5, 3)).read()
    np.testing.assert_array_equal(x[0], np.rot90(np.asarray(image), -1))


def test_the_fingerprint_tells_other_files(tmp_path):
    source = images(filled(tmp_path), (6, 4))
    about = source.fingerprint()
    assert about == images(tmp_path, (6, 4)).fingerprint() and about["examples"] == 8
    assert about != images(tmp_path, (4, 6)).fingerprint()
    noise("RGB", 30, 30).save(tmp_path / "c" / "x.png")
    changed = images(tmp_path, (6, 4)).fingerprint()
    (tmp_path / "c" / "x.png").rename(tmp_path / "c" / "y.png")
    assert (
        len({str(each) for each in (about, changed, images(tmp_path, (6, 4)).fingerprint())}) == 3
    )


def cut(file):
    file.write_bytes(file.read_bytes()[:90])


def deep(file):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file)


DAMAGE = {
    "cut short": (cut, ValueError, r"got \w+: .*; replace or remove it$"),
    "a text": (lambda file: file.write_text("x"), ValueError, r"got UnidentifiedImageError: "),
    "gone": (lambda file: file.unlink(), FileNotFoundError, r"got FileNotFoundError: "),
    "16 bits": (deep, ValueError, r"got one of more than 8 bits \(mode I;16\); "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_image_is_named(tmp_path, kind):
    damage, error, told = DAMAGE[kind]
    source, file = images(filled(tmp_path), (6, 4)), tmp_path / "b dog" / "2.png"
    damage(file)
    begin = r"^images: expected an image of 8 bits that Pillow can read at " + re.escape(
        repr(str(file))
    )
    with pytest.raises(error, match=begin + ", " + told):
        source.read()
    assert source.read([0])[1].tolist() == [0]


def emptied(folder):
    (filled(folder) / "d").mkdir()
    return folder


BAD = {
    "no folder": (
        lambda folder: images(folder / "x", (4, 4)),
        FileNotFoundError,
        r"^images: expected a folder, got none at '.*x'; check the path$",
    ),
    "no sub-folder": (
        lambda folder: images(filled(folder) / "b dog", (4, 4)),
        ValueError,
        r"^images: expected a folder with one sub-folder of images for each class, got no sub-"
        r"folder in '.*b dog'; check the path, or remove empty folders$",
    ),
    "an empty class": (
        lambda folder: images(emptied(folder), (4, 4)),
        ValueError,
        r"for each class, got no images in 'd' in '.*'; check the path, or remove empty folders$",
    ),
    "a size": (
        lambda folder: images(folder, 28),
        ValueError,
        r"^images: expected a size \(H, W\), got 28; all images of a batch have one size$",
    ),
    "no pixels": (
        lambda folder: images(folder, (28, 0)),
        ValueError,
        r"^images: expected H and W >= 1, an integer, got 0; give a size in pixels$",
    ),
    "channels": (
        lambda folder: images(folder, (2, 2), channels=4),
        ValueError,
        r"^images: expected channels 1 \(grey\) or 3 \(red, green, blue\), got 4; choose one of t",
    ),
    "no texts": (
        lambda folder: texts(filled(folder), ".md"),
        ValueError,
        r"^texts: expected files whose names end with '.md' in '.*', got none; check the folder",
    ),
    "no folder of texts": (
        lambda folder: texts(folder / "x"),
        FileNotFoundError,
        r"^texts: expected a folder, got none at '.*x'; check the path$",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_told(tmp_path, kind):
    call, error, told = BAD[kind]
    with pytest.raises(error, match=told):
        call(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(
        ImportError,
        match=r"^images: expected Pillow, which reads images, got none; run pip install "
        r"'fdl\[images\]'$",
    ):
        images(tmp_path, (2, 2))


def test_texts_are_read_in_order(tmp_path):
    for name, text in {"b.txt": "zwei\r\n", "a/2.txt": "é", "a/10.txt": "", "c.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert list(texts(tmp_path).items()) == [
        ("a/10.txt", ""),
        ("a/2.txt", "é"),
        ("b.txt", "zwei\n"),
    ]
    assert texts(tmp_path, ".md") == {"c.md": "no"}
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        ValueError, match=r"^texts: expected text in UTF-8 at '.*b.txt', got utf-8 .*; convert the"
    ):
        texts(tmp_path)


SEEDED_BUGS = {
    "fdl/data/folders.py": (
        "data/test_folders.py",
        [
            ("self.size[::-1]", "self.size"),
            ("Resampling.BILINEAR", "Resampling.NEAREST"),
            ("ImageOps.exif_transpose(image)", "image"),
            ("sorted(each for each in _folder", "list(each for each in _folder"),
            ("{file.stat().st_size}", "0"),
            ("self.labels[rows]", "self.labels[: len(rows)]"),
            ("if not image.mode.startswith(_DEEP):", "if True:"),
            ('.read_text("utf-8")', '.read_text("latin-1")'),
            ("if not found or empty:", "if not found:"),
        ],
    ),
}
