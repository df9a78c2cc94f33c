"""draw: what stands in the figures, read back from them."""

import re
import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from fdl import confusion_matrix, softmax
from fdl.look import (
    draw,
    figure_parts,
    image_rows,
    precision_recall_curves,
    principal_components,
    roc_curves,
)

HISTORY = [
    {"step": 4, "epoch": 0.5, "seconds": 1.0, "accuracy": 0.25, "loss": 2.0, "val_loss": 2.5},
    {"step": 8, "epoch": 1.0, "seconds": 2.0, "accuracy": 0.5, "loss": 1.0, "val_loss": 1.75},
    {"step": 9, "epoch": 1.125, "seconds": 3.0, "accuracy": 0.75, "loss": 0.5, "val_loss": 1.5},
]


def assert_can_be_saved(figure, tmp_path):
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "picture.png", dpi=50)
    content = (tmp_path / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 1000


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def texts(artists):
    return [text.get_text() for text in artists]


def read(figure):
    """The names in the legend, row by row."""
    figure.draw_without_rendering()
    places = [text.get_window_extent() for text in figure.legends[0].texts]
    order = sorted(range(len(places)), key=lambda i: (-round(places[i].y0), places[i].x0))
    return [figure.legends[0].texts[i].get_text() for i in order]


def assert_apart(artists):
    """Asserts that no two of these texts overlap in the figure."""
    boxes = [each.get_window_extent() for each in artists if each.get_text()]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def drawn(axes):
    return np.asarray(axes.images[0].get_array())


# Importing


def test_fdl_does_not_import_matplotlib():
    program = "import sys, fdl, fdl.look.draw; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_drawing_leaves_pyplot_alone():
    program = (
        "import sys, fdl; fdl.look.draw.confusion([[1]]); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("learning_curves", (HISTORY,)),
        ("weight_images", (np.ones((4, 1)), (2, 2))),
        ("representations", ({"a": np.eye(2)}, {"a": np.eye(2)}, np.arange(2))),
        ("mistakes", (np.ones((1, 2, 2)), np.array([0]), np.array([1]))),
        ("mistakes", (np.ones((1, 2, 2)), np.array([0]), np.array([0]))),
        ("confusion", ([[1]],)),
    ],
)
def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, name, given):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = (
        rf"^{name}: expected matplotlib, which draws the pictures, got none; run pip install "
        r"'fdl\[pictures\]'$"
    )
    with pytest.raises(ImportError, match=said):
        getattr(draw, name)(*given)


# Learning curves


def test_the_curves_of_one_run_are_its_history(tmp_path):
    figure = draw.learning_curves(HISTORY)
    loss, accuracy = figure.axes  # the loss first, wherever it stands in the records
    assert lines(loss) == {
        "training": [[0.5, 2.0], [1.0, 1.0]],  # of the last step alone there is no mean
        "validation": [[0.5, 2.5], [1.0, 1.75], [1.125, 1.5]],
    }
    assert lines(accuracy) == {"training": [[0.5, 0.25], [1.0, 0.5]]}
    assert titles(figure) == [
        "loss: 1 in training at step 8, 1.5 in validation at step 9",
        "accuracy at step 8: 0.5 in training",
    ]
    assert loss.get_xlabel() == "epochs" and accuracy.get_ylabel() == "accuracy"
    assert texts(figure.legends[0].texts) == ["training", "validation"]
    assert len({line.get_color() for line in loss.lines}) == 2
    assert_can_be_saved(figure, tmp_path)


def test_several_runs_differ_in_colour_and_training_is_dashed(tmp_path):
    worse = [record | {"loss": 3 * record["loss"]} for record in HISTORY]
    figure = draw.learning_curves({"good": HISTORY, "bad": worse})
    panel = figure.axes[0]
    assert list(lines(panel)) == [
        *("good, training", "good, validation", "bad, training", "bad, validation"),
    ]
    assert lines(panel)["bad, training"] == [[0.5, 6.0], [1.0, 3.0]]
    assert [line.get_linestyle() for line in panel.lines] == ["--", "-", "--", "-"]
    colours = [to_rgba(line.get_color()) for line in panel.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert read(figure) == list(lines(panel))
    assert titles(figure) == ["loss", "accuracy"]
    assert_can_be_saved(figure, tmp_path)


@pytest.mark.parametrize(("last", "scale"), [(0.11, "linear"), (0.1, "log"), (0.0, "linear")])
def test_the_loss_is_on_a_log_scale_if_it_spans_a_factor_of_ten(last, scale):
    history = [{"step": 1, "loss": 1.0, "error": 1.0}, {"step": 2, "loss": last, "error": last}]
    loss, error = draw.learning_curves(history).axes
    assert loss.get_yscale() == scale and error.get_yscale() == "linear"
    assert ("log scale" in loss.get_ylabel()) == (scale == "log")


def test_a_loss_that_was_not_finite_can_be_drawn(tmp_path):
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("inf")}]
    history += [{"step": 3, "loss": float("nan")}]
    figure = draw.learning_curves(history)
    assert figure.axes[0].get_yscale() == "linear"
    assert_can_be_saved(figure, tmp_path)


def test_steps_are_the_axis_where_a_record_has_no_epoch_and_values_may_be_missing():
    history = [{"step": 3, "epoch": 1.0, "val_loss": 2.0}, {"step": 7, "loss": 1.0}]
    panel = draw.learning_curves({"run": history}).axes[0]
    assert panel.get_xlabel() == "steps"
    assert lines(panel) == {"training": [[7.0, 1.0]], "validation": [[3.0, 2.0]]}
    assert all(line.get_marker() == "o" for line in panel.lines)  # a lone point is seen


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([50, 100, 103], 2),
        ([50, 100, 124], 2),
        ([50, 100, 125], 3),
        ([50, 100, 150], 3),
        ([1000, 1050, 1100, 1101], 3),
        ([50, 51], 2),  # where the first began is not known
        ([3], 1),
    ],
)
def test_a_last_record_of_few_steps_has_no_training_value(steps, kept):
    history = [{"step": step, "loss": step / 7, "val_loss": step / 5} for step in steps]
    panel = draw.learning_curves(history).axes[0]
    assert lines(panel) == {
        "training": [[float(step), step / 7] for step in steps[:kept]],
        "validation": [[float(step), step / 5] for step in steps],
    }
    training, validation = steps[kept - 1], steps[-1]
    values = [f"{training / 7:.3g} in training", f"{validation / 5:.3g} in validation"]
    title = panel.get_title().replace(",\n", ", ")
    if kept == len(steps):
        assert title == f"loss at step {validation:,}: {values[0]}, {values[1]}"
    else:
        ends = f"{values[0]} at step {training:,}, {values[1]} at step {validation:,}"
        assert title == f"loss: {ends}"


@pytest.mark.parametrize("across", ["step", "epoch"])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [3e-5, 0.0021, 0.22, 0.9, 1.0, 2.7, 20, 300, 123_456, 9_000_000])
def test_the_labels_of_the_axes_do_not_touch(across, log, size):
    """From a fraction of an epoch to millions of steps."""
    if across == "step" and size < 10:
        size = 10 * max(1, round(size))
    history = [
        {"step": i, across: size * i / 20, "loss": 2.0 * (0.7**i if log else 1 - i / 50)}
        for i in range(1, 21)
    ]
    figure = draw.learning_curves({"a": history})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert 2 <= len(shown) <= 8
    assert_apart(shown)
    numbers = [float(text.replace(",", "").replace("\u2212", "-")) for text in texts(shown)]
    assert len(set(numbers)) == len(numbers)
    assert_apart([*axes.yaxis.get_ticklabels(), *axes.yaxis.get_ticklabels(minor=True)])


def test_many_runs_are_read_row_by_row():
    runs = {f"run {i}": HISTORY[:2] for i in range(5)}
    figure = draw.learning_curves(
        {name: [dict(r, val_accuracy=1) for r in h] for name, h in runs.items()}
    )
    names = [f"{name}, {kind}" for name in runs for kind in ("training", "validation")]
    assert read(figure) == names
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_tightbbox()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({}, "expected at least one history, got none; pass result.history"),
        ([], r"expected the history to be a list of records with step, got \[\]; pass result.hist"),
        ({"a": HISTORY, "b": []}, r"expected the history of 'b' to be a list .*, got \[\];"),
        ({"a": 3}, "expected the history of 'a' to be a list of records with step, got 3; pass"),
        ([{"loss": 1.0}], r"records with step, got \[\{'loss': 1.0\}\]; pass result.history"),
        ([{"step": 1, "epoch": 1.0}], r"a metric such as loss, got \['step', 'epoch'\]; pass"),
    ],
)
def test_what_is_no_history_is_refused(histories, message):
    with pytest.raises(ValueError, match=f"^learning_curves: .*{message}"):
        draw.learning_curves(histories)


# Weights


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_the_images_are_the_weights_of_the_strongest_units(tmp_path, shape):
    w = np.random.default_rng(0).normal(size=(20, 7))
    w *= np.array([1, 6, 2, 9, 3, 7, 4]) / np.linalg.norm(w, axis=0)
    figure = draw.weight_images(jnp.asarray(w), shape, count=4)
    assert titles(figure) == ["3", "5", "1", "6"]
    limit = np.quantile(np.abs(w[:, [3, 5, 1, 6]]), 0.99)
    for axes, unit in zip(figure.axes, (3, 5, 1, 6), strict=False):
        np.testing.assert_allclose(drawn(axes), w[:, unit].reshape(4, 5), rtol=1e-6)
        np.testing.assert_allclose(axes.images[0].get_clim(), (-limit, limit), rtol=1e-6)
    bar = figure.axes[4]
    assert bar.get_ylabel() == "weight"
    np.testing.assert_allclose(bar.get_ylim(), (-limit, limit), rtol=1e-6)
    assert figure.get_suptitle() == "Weights of 4 of 7 units, the strongest first"
    assert_can_be_saved(figure, tmp_path)


def test_three_channels_are_mixed_around_grey(tmp_path):
    w = np.zeros((2 * 1 * 3, 1))
    w[:, 0] = [2.0, -2.0, 0.0, 1.0, 0.0, -1.0]
    figure = draw.weight_images(w, (2, 1, 3))
    red_without_green, half_red_without_blue = drawn(figure.axes[0])[:, 0]
    np.testing.assert_allclose(red_without_green, [1.0, 0.0, 0.5])
    np.testing.assert_allclose(half_red_without_blue, [0.75, 0.5, 0.25], atol=0.02)
    assert figure.get_suptitle() == "Weights of 1 units, the strongest first"
    assert_can_be_saved(figure, tmp_path)


def test_weights_that_are_all_zero_or_bfloat16_can_be_drawn(tmp_path):
    assert_can_be_saved(draw.weight_images(np.zeros((4, 3)), (2, 2)), tmp_path)
    figure = draw.weight_images(jnp.full((4, 3), 0.5, jnp.bfloat16), (2, 2))
    assert drawn(figure.axes[0]).tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("w", "shape", "count", "message"),
    [
        (np.ones((5, 2)), (2, 2), 1, r"expected w \[H \* W \* K, F\] .*, got w \[5, 2\] and \(2, "),
        (np.ones(4), (2, 2), 1, r"got w \[4\] and \(2, 2\); reshape w, or pass the shape of the"),
        (np.ones((4, 0)), (2, 2), 1, r"got w \[4, 0\]"),
        (np.ones((4, 2)), (4,), 1, r"got w \[4, 2\] and \(4,\)"),
        (np.ones((8, 2)), (2, 2, 2), 1, r"with K 1 or 3, got w \[8, 2\] and \(2, 2, 2\)"),
        (np.ones((6, 2)), 6, 1, r"got w \[6, 2\] and \(6,\)"),
        (np.ones((6, 2)), (2.0, 3), 1, r"got w \[6, 2\] and \(2.0, 3\)"),
        (
            np.ones((4, 2)),
            (2, 2),
            2.5,
            "expected count >= 1, an integer, got 2.5; it is the largest number",
        ),
        (
            np.ones((4, 2)),
            (2, 2),
            0,
            "expected count >= 1, an integer, got 0; it is the largest number",
        ),
        (
            np.full((4, 2), np.nan),
            (2, 2),
            1,
            "expected finite w, got NaN or infinity; check whether",
        ),
    ],
)
def test_weights_that_are_no_images_are_refused(w, shape, count, message):
    with pytest.raises(ValueError, match=f"^weight_images: .*{message}"):
        draw.weight_images(w, shape, count=count)


# Representations


@pytest.fixture(scope="module")
def layers():
    """Three layers before and after, and labels of four classes that are not 0 to 3."""
    rng = np.random.default_rng(0)
    before = {
        path: rng.normal(size=(40, *shape)).astype(np.float32)
        for path, shape in {"dense_0": (6,), "block/conv_0": (2, 3, 2), "dense_1": (1,)}.items()
    }
    after = {path: 2 * h + rng.normal(size=h.shape).astype("f") for path, h in before.items()}
    return before, after, np.resize([2, 5, 7, 8], 40)


def test_the_points_are_the_principal_components(layers, tmp_path):
    before, after, labels = layers
    figure = draw.representations(before, after, labels)
    panels = iter(figure.axes)
    for found in (before, after):
        for path, h in found.items():
            panel = next(panels)
            assert panel.get_title() == path
            offsets = panel.collections[0].get_offsets()
            if path == "dense_1":  # one feature: the second component is nothing
                np.testing.assert_array_equal(offsets[:, 1], 0)
                np.testing.assert_allclose(np.abs(offsets[:, 0]), np.abs(h - h.mean())[:, 0], 1e-4)
                assert panel.get_xlabel() == "component 1: 100%"
                continue
            plane, share = principal_components(h)
            np.testing.assert_allclose(offsets, plane, rtol=1e-4, atol=1e-5)
            assert panel.get_xlabel() == f"component 1: {float(share[0]):.0%}"
            assert panel.get_ylabel() == f"component 2: {float(share[1]):.0%}"
    assert not list(panels)
    assert_can_be_saved(figure, tmp_path)


def test_colours_legend_and_names_agree_on_the_classes(layers):
    before, after, labels = layers
    figure = draw.representations(before, after, labels)
    (legend,) = figure.legends
    assert texts(legend.texts) == ["2", "5", "7", "8"] and legend.get_title().get_text() == "class"
    marks = {
        text.get_text(): to_rgba(mark.get_color())
        for mark, text in zip(legend.legend_handles, legend.texts, strict=True)
    }
    assert len(set(marks.values())) == 4
    panel = figure.axes[0]
    points = panel.collections[0]
    for label, colour in zip(labels, points.get_facecolors(), strict=True):
        np.testing.assert_allclose(colour[:3], marks[str(label)][:3])
    assert texts(panel.texts[:4]) == ["2", "5", "7", "8"]


def test_a_name_stands_at_the_median_of_its_class_if_there_is_room():
    rng = np.random.default_rng(0)
    labels = np.resize(np.arange(4), 200)
    h = np.array([[0, 0], [9, 0], [0, 9], [9, 7]])[labels] + rng.normal(size=(200, 2)) / 9
    figure = draw.representations(
        {"h": h}, {"h": np.zeros_like(h) + rng.normal(size=(200, 1))}, labels
    )
    apart, together = figure.axes
    plane = apart.collections[0].get_offsets().data
    for name in apart.texts[:4]:
        own = plane[labels == int(name.get_text())]
        np.testing.assert_allclose(name.get_position(), np.median(own, axis=0), rtol=1e-5)
    figure.draw_without_rendering()
    assert_apart(apart.texts[:4])
    assert_apart(together.texts[:4])


@pytest.mark.parametrize("classes", [2, 10, 12])
@pytest.mark.parametrize("layers", [1, 4])
def test_names_of_classes_that_lie_together_do_not_touch(classes, layers):
    """Before training all medians are nearly the same, or the same."""
    rng = np.random.default_rng(classes)
    labels = np.resize(np.arange(classes), 12 * classes)
    cloud, point = rng.normal(size=(len(labels), 3)), np.zeros((len(labels), 3))
    figure = draw.representations(
        {f"h{i}": cloud for i in range(layers)}, {f"h{i}": point for i in range(layers)}, labels
    )
    figure.draw_without_rendering()
    for axes in figure.axes:
        names = [text for text in axes.texts if "training" not in text.get_text()]
        assert texts(names) == [str(label) for label in range(classes)]
        assert_apart(names)


def test_classes_have_names(layers):
    before, after, labels = layers
    names = ["-", "-", "a", "-", "-", "bb", "-", "c", "d"]
    figure = draw.representations(before, after, labels, class_names=names)
    assert read(figure) == ["a", "bb", "c", "d"]
    assert texts(figure.axes[0].texts[:4]) == ["a", "bb", "c", "d"]
    names = ["-", "-", "T-shirt/top", "-", "-", "ankle boot", "-", "bag", "coat"]
    figure = draw.representations(before, after, labels, class_names=names)
    assert read(figure) == ["T-shirt/top", "ankle boot", "bag", "coat"]
    assert texts(figure.axes[0].texts) == ["before training"]  # long names: in the legend alone


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (["a"] * 8, "8 names"),
        (("a", 3), "\\('a', 3\\)"),
        ("abcdefghi", "'abcdefghi'"),
        ({2: "a", 5: "b", 7: "c", 8: "d"}, r"\{2: 'a', 5: 'b', 7: 'c', 8: 'd'\}"),
    ],
)
def test_a_class_without_a_name_is_refused(layers, names, got):
    said = (
        f"expected class_names to be a list with a string for each class from 0 to 8, got {got} "
        "for labels from 2 to 8; class c has the name class_names\\[c\\]$"
    )
    with pytest.raises(ValueError, match=f"^representations: {said}"):
        draw.representations(*layers, class_names=names)
    images, y = np.zeros((4, 2, 2)), layers[2][:4]
    with pytest.raises(ValueError, match=f"^mistakes: {said}"):
        draw.mistakes(images, y, y, class_names=names)


@pytest.mark.parametrize("classes", [5, 10, 26])
def test_the_legend_of_classes_is_even_and_in_order(classes):
    labels = np.resize(np.arange(classes), 2 * classes)
    h = np.random.default_rng(0).normal(size=(len(labels), 3))
    figure = draw.representations({"code": h}, {"code": h}, labels)
    assert read(figure) == [str(label) for label in range(classes)]
    heights = [round(text.get_window_extent().y0) for text in figure.legends[0].texts]
    rows = [heights.count(height) for height in sorted(set(heights), reverse=True)]
    assert max(rows) - min(rows) <= len(rows) - 1  # the last row may be shorter by as many
    looks = {
        (tuple(colour), marker.get_marker())
        for marker in figure.legends[0].legend_handles
        for colour in [to_rgba(marker.get_color())]
    }
    assert len(looks) == classes


# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color
# vision deficiency", severity 1: what eyes without red, green or blue cones see, in linear RGB.
EYES = np.array(
    [
        np.eye(3),
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    ]
)
# Ottosson 2020, "A perceptual color space for image processing" (OKLab).
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def closest(colours):
    """The smallest distance of two colours, to each of the four kinds of eyes."""
    rgb = np.array([to_rgba(colour)[:3] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("eij,cj->eci", EYES, linear), 0, 1)
    lab = np.cbrt(seen @ CONES.T) @ OKLAB.T
    far = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1)
    return (far + 9 * np.eye(len(rgb))).min((1, 2))


def test_no_two_colours_are_close_to_any_eyes():
    normal, *others = closest(figure_parts.PALETTE)
    assert normal > 0.18 and min(others) > 0.09
    # A palette that was made for this, and has ten: half as far apart.
    assert closest(matplotlib.color_sequences["petroff10"]).min() < 0.065
    white = closest([*figure_parts.PALETTE, "white"])
    assert white[0] > 0.14  # and each can be seen on the page


def test_titles_hold_the_readouts_and_rows_say_when(layers):
    readouts = {"before": {"dense_0": 0.25}, "after": {"dense_0": 0.875, "dense_1": 1.0}}
    figure = draw.representations(*layers, readouts=readouts)
    assert titles(figure) == [
        *("dense_0\nlinear readout 0.250", "block/conv_0", "dense_1"),
        *("dense_0\nlinear readout 0.875", "block/conv_0", "dense_1\nlinear readout 1.000"),
    ]
    rows = [text for axes in figure.axes for text in texts(axes.texts) if "training" in text]
    assert rows == ["before training", "after training"]


def test_a_long_path_keeps_its_end(layers):
    h, labels = layers[0]["dense_0"], layers[2]
    path = "encoder/block/11/attention/q"
    figure = draw.representations({path: h}, {path: h}, labels)
    assert titles(figure) == ["…er/block/11/attention/q"] * 2


def test_eight_layers_and_twelve_classes_do_not_overlap(tmp_path):
    h = {f"dense_{i}": np.random.default_rng(i).normal(size=(24, 3)) for i in range(8)}
    readouts = {"after": dict.fromkeys(h, 0.5)}
    figure = draw.representations(h, h, np.resize(np.arange(12), 24), readouts=readouts)
    assert_can_be_saved(figure, tmp_path)
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_tightbbox()]
    for number, box in enumerate(boxes):
        assert all(not box.overlaps(other) for other in boxes[:number])
    colours = {tuple(colour) for colour in figure.axes[0].collections[0].get_facecolors()}
    assert len(colours) == len(figure.legends[0].texts) == 12


def test_a_projection_of_the_user_draws_the_points(layers, tmp_path):
    before, after, labels = layers
    seen = []

    def projection(h):
        seen.append((h.shape, h.dtype))
        return np.stack([h[:, 0], np.arange(len(h))], 1)

    figure = draw.representations(before, after, labels, projection=projection)
    assert seen == 2 * [((40, size), np.float32) for size in (6, 12, 1)]
    offsets = figure.axes[3].collections[0].get_offsets()
    np.testing.assert_array_equal(offsets[:, 0], after["dense_0"][:, 0])
    assert figure.axes[0].get_xlabel() == ""
    map_of = TSNE(init="random", perplexity=5, max_iter=250, random_state=0).fit_transform
    assert_can_be_saved(draw.representations(before, after, labels, projection=map_of), tmp_path)


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        (lambda h: h, r"expected projection to return floats \[40, 2\], got float32 \[40, 6\];"),
        (lambda h: h[:, :2] * np.nan, "expected finite numbers from projection, got NaN"),
        (lambda h: np.zeros((40, 2), int), r"floats \[40, 2\], got int64 \[40, 2\]; pass sklearn"),
    ],
)
def test_a_projection_to_something_else_is_refused(layers, projection, message):
    with pytest.raises(ValueError, match=f"^representations: .*{message}"):
        draw.representations(*layers, projection=projection)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b, a, y: (b, {"dense_0": a["dense_0"]}, y),
            "expected the same paths in before and af",
        ),
        (
            lambda b, a, y: ({}, {}, y),
            r"expected the same paths .*, got \[\] and \[\]; call capture",
        ),
        (lambda b, a, y: (b, a, y[1:]), r"got \[40, 6\] at 'dense_0' before training and \[39\];"),
        (lambda b, a, y: (b, a, y[:, None]), r"expected h \[N, ...\] and labels \[N\] with N >= 2"),
        (lambda b, a, y: (b, a, y * 1.0), r"expected labels \[N\], integers, got float64 \[40\]"),
        (
            lambda b, a, y: (b, a | {"dense_1": a["dense_1"] * np.nan}, y),
            "expected finite h at 'dense_1' after training, got NaN or infinity",
        ),
    ],
)
def test_representations_that_do_not_fit_are_refused(layers, change, message):
    with pytest.raises(ValueError, match=f"^representations: .*{message}"):
        draw.representations(*change(*layers))


@pytest.mark.parametrize("readouts", [{"after": {"dense_9": 1.0}}, {"later": {"dense_0": 1.0}}])
def test_readouts_of_what_is_not_drawn_are_refused(layers, readouts):
    said = (
        r"^representations: expected readouts for the paths .*, got \['dense_.'\] in "
        r"readouts\['(after|later)'\];"
    )
    with pytest.raises(ValueError, match=said):
        draw.representations(*layers, readouts=readouts)


# Mistakes

IMAGES = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1)
LABELS, PREDICTED = np.array([0, 1, 2, 1, 0]), np.array([0, 2, 0, 0, 1])
PROBABILITIES = np.array([[9, 1, 0], [1, 4, 5], [7, 2, 1], [5, 4, 1], [2, 8, 0]]) / 10


def test_the_most_confident_mistakes_come_first(tmp_path):
    logits = jnp.log(PROBABILITIES + 1e-9)
    figure = draw.mistakes(IMAGES, LABELS, PREDICTED, probabilities=softmax(logits))
    assert titles(figure) == [
        *("true 0\nsaid 1: 80%", "true 2\nsaid 0: 70%"),
        *("true 1\nsaid 2: 50%", "true 1\nsaid 0: 50%"),
    ]
    for axes, row in zip(figure.axes, (4, 2, 1, 3), strict=True):
        np.testing.assert_array_equal(drawn(axes).reshape(2, 3), IMAGES[row, :, :, 0])
        assert axes.images[0].get_clim() == (0, 29)
    assert figure.get_suptitle() == "Mistakes: 4 in 5 predictions, the most confident first"
    assert_can_be_saved(figure, tmp_path)


def test_without_probabilities_mistakes_come_in_the_order_of_the_data():
    figure = draw.mistakes(IMAGES, LABELS, PREDICTED, count=2)
    assert titles(figure) == ["true 1\nsaid 2", "true 2\nsaid 0"]
    assert figure.get_suptitle() == "Mistakes: 2 shown of 4 in 5 predictions"


def test_colours_are_drawn_from_the_smallest_to_the_largest_value(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 2, 3, 3))
    figure = draw.mistakes(images, LABELS, PREDICTED)
    expected = (images[1] - images.min()) / np.ptp(images)
    np.testing.assert_allclose(drawn(figure.axes[0]), expected)
    assert_can_be_saved(figure, tmp_path)


def test_no_mistake_is_said(tmp_path):
    figure = draw.mistakes(IMAGES, LABELS, LABELS, probabilities=PROBABILITIES)
    assert texts(figure.texts) == ["No mistakes: all 5 predictions are right"] and not figure.axes
    assert_can_be_saved(figure, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": IMAGES[1:]},
            r"expected images \[N, H, W\] or .*, got \[4, 2, 3, 1\], \[5\] and",
        ),
        (
            {"images": IMAGES.reshape(5, 6)},
            r"got \[5, 6\], .*; reshape the images, and replace logits",
        ),
        ({"images": np.ones((5, 2, 2, 2))}, r"with K 1 or 3, .*, got \[5, 2, 2, 2\]"),
        ({"images": IMAGES + np.inf}, "expected finite images, got NaN or infinity"),
        ({"labels": LABELS[1:]}, r"got \[5, 2, 3, 1\], \[4\] and \[5\]"),
        (
            {"predicted": PROBABILITIES},
            r"expected predicted \[N\], integers, got float64 \[5, 3\];",
        ),
        (
            {"probabilities": PROBABILITIES[1:]},
            r"probabilities \[5, C\] in \[0, 1\] with C >= 3, got \[",
        ),
        (
            {"probabilities": PROBABILITIES[:, :2]},
            r"with C >= 3, got \[5, 2\] from 0.1 to 0.9; pass",
        ),
        ({"probabilities": np.log(PROBABILITIES + 1)}, None),
        (
            {"probabilities": 3 * PROBABILITIES},
            r"got \[5, 3\] from 0 to 2.7; pass fdl.softmax\(",
        ),
        ({"probabilities": -PROBABILITIES}, r"got \[5, 3\] from -0.9 to"),
        ({"predicted": PREDICTED - 3}, r"labels and predicted >= 0, got -\d; leave out examples"),
        (
            {"labels": LABELS - 3},
            r"expected labels and predicted >= 0, got -\d; leave out examples",
        ),
        ({"count": 0}, "expected count >= 1, an integer, got 0; it is the largest number"),
    ],
)
def test_mistakes_of_wrong_shapes_are_refused(changes, message):
    given = {"images": IMAGES, "labels": LABELS, "predicted": PREDICTED} | changes
    if message is None:
        assert draw.mistakes(**given).axes
        return
    with pytest.raises(ValueError, match=f"^mistakes: .*{message}"):
        draw.mistakes(**given)


# Confusion


def test_the_counts_are_written_in(tmp_path):
    figure = draw.confusion(confusion_matrix(PREDICTED, LABELS, 3), ["cat", "dog", "elephant"])
    (axes,) = figure.axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    # row: the true class, column: the prediction; x is the column
    assert cells == {(0, 0): "1", (1, 0): "1", (0, 1): "1", (2, 1): "1", (0, 2): "1"}
    assert texts(axes.get_yticklabels()) == ["cat", "dog", "elephant"]
    assert texts(axes.get_xticklabels()) == ["cat", "dog", "elephant"]
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    assert_can_be_saved(figure, tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_whole_floats_are_counts(dtype):
    figure = draw.confusion(np.asarray([[5, 1], [0, 4]], dtype), ["cat", "dog"])
    assert texts(figure.axes[0].texts) == ["5", "1", "4"]


def test_mistakes_have_colour_and_right_answers_are_grey():
    matrix = np.array([[900, 1, 0], [7, 800, 0], [0, 3, 700]])
    (axes,) = draw.confusion(matrix).axes
    image = axes.images[0]
    rgb = image.to_rgba(image.get_array())[..., :3]
    saturation = np.ptp(rgb, axis=-1)
    assert (saturation[np.diag_indices(3)] == 0).all() and (saturation[matrix == 0] == 0).all()
    assert saturation[1, 0] > saturation[2, 1] > saturation[0, 1] > 0
    assert titles(axes.figure) == [
        "Mistakes: 11 in 2411 predictions\nmost often 1 is taken for 0: 7 of 807"
    ]
    assert titles(draw.confusion(np.eye(2, dtype=int))) == ["Mistakes: 0 in 2 predictions"]


def test_long_names_are_turned_and_long_numbers_shrink():
    (axes,) = draw.confusion(np.diag([1234567, 1] * 3), ["a long name"] * 6).axes
    assert axes.get_xticklabels()[0].get_rotation() == 90
    assert axes.texts[0].get_fontsize() < 10
    (axes,) = draw.confusion(np.eye(3, dtype=int)).axes
    assert axes.get_xticklabels()[0].get_rotation() == 0 and axes.texts[0].get_fontsize() == 10


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        (
            np.ones((2, 3), int),
            None,
            r"expected a matrix \[C, C\] of counts >= 0, got \[2, 3\] with",
        ),
        (np.ones(2, int), None, r"got \[2\] with 1; use fdl.confusion_matrix"),
        (np.ones((0, 0), int), None, r"got \[0, 0\]; use fdl.confusion_matrix"),
        (3, None, r"got \[\] with 3; use fdl.confusion_matrix"),
        ([[1, -1], [0, 1]], None, r"got \[2, 2\] with -1; use fdl.confusion_matrix"),
        (np.full((2, 2), np.nan), None, r"of counts, integers, got float64 \[2, 2\]"),
        (np.eye(2) / 2, None, r"of counts, integers, got float64 \[2, 2\]"),
        ([[1, 0], [0, 1]], ["a"], "expected 2 class_names, got 1; pass one name for each"),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(matrix, names, message):
    with pytest.raises(ValueError, match=f"^confusion: .*{message}"):
        draw.confusion(matrix, names)


def test_mistakes_have_names_and_the_titles_have_room():
    names = ("T-shirt/top", "trouser", "ankle boot")
    chances = np.full((5, 3), 1 / 3)
    how = {"probabilities": chances, "class_names": names}
    figure = draw.mistakes(np.zeros((5, 8, 8)), np.array([0, 0, 1, 2, 2]), [0, 2, 2, 0, 1], **how)
    assert titles(figure) == [
        *("true T-shirt/top\nsaid ankle boot: 33%", "true trouser\nsaid ankle boot: 33%"),
        *("true ankle boot\nsaid T-shirt/top: 33%", "true ankle boot\nsaid trouser: 33%"),
    ]
    figure.draw_without_rendering()
    assert_apart([axes.title for axes in figure.axes])


# Images in rows.


def test_image_rows_share_the_scale_of_the_first():
    """A reconstruction of half the contrast looks like one, and one beyond leaves the others."""
    given = np.linspace(0, 1, 12).reshape(1, 3, 4)
    figure = image_rows({"given": given, "flat": given / 2 + 0.25, "over": 2 * given - 0.5})
    shown = [np.asarray(axes.images[0].get_array(), float) for axes in figure.axes]
    for picture, row in zip(shown, (given, given / 2 + 0.25, 2 * given - 0.5), strict=True):
        np.testing.assert_allclose(picture, np.clip(row[0], 0, 1))
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 1)}


def test_image_rows_are_shown_from_the_darkest_to_the_brightest_pixel_of_the_first():
    rows = {"given": np.arange(24).reshape(2, 3, 4), "rebuilt": np.ones((2, 3, 4, 1))}
    figure = image_rows(rows)
    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes] == ["given", "", "rebuilt", ""]
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_allclose(shown[0].ravel(), np.arange(12) / 23)
    np.testing.assert_allclose(shown[1].ravel()[-1], 1.0)
    assert shown[3].shape == (3, 4)


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 5, 1), (2, 1, 5, 1), (2, 1, 1, 3)])
def test_an_image_may_be_one_row_high(shape):
    figure = image_rows({"a": np.zeros(shape)})
    sizes = [axes.images[0].get_array().shape[:2] for axes in figure.axes]
    assert sizes == [shape[1:3]] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [np.ones((2, 3, 3))],
            "image_rows: expected a dict name -> images, got a list; pass a dict with a name for "
            "each row",
        ),
        (
            {},
            "image_rows: expected rows of the same length, got none; pass the same number",
        ),
        (
            {"a": np.ones((2, 3, 3)), "b": np.ones((3, 3, 3))},
            "image_rows: expected rows of the same length, got {'a': 2, 'b': 3}; pass the same ",
        ),
        (
            {"a": np.ones((2, 9))},
            "image_rows: expected images [N, H, W] or [N, H, W, 1 or 3] in 'a', got [2, 9]; "
            "reshape",
        ),
    ],
)
def test_image_rows_refuse_what_is_no_image(rows, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        image_rows(rows)


# Curves over thresholds.

SCORES, TARGETS = [0.1, 0.4, 0.35, 0.8, 0.6], [0, 0, 1, 1, 0]


def test_a_roc_curve_is_drawn_with_its_area_and_the_line_of_guessing(tmp_path):
    figure = roc_curves(SCORES, TARGETS)
    curve, guessing = figure.axes[0].lines
    area = [[0, 0], [0, 0.5], [1 / 3, 0.5], [2 / 3, 0.5], [2 / 3, 1], [1, 1]]
    np.testing.assert_allclose(curve.get_xydata(), area)
    assert guessing.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert titles(figure) == ["ROC: area 0.667"] and texts(figure.axes[0].texts) == ["guessing"]
    assert_can_be_saved(figure, tmp_path)


def test_precision_is_drawn_in_steps_whose_area_is_its_average(tmp_path):
    figure = precision_recall_curves({"first": SCORES, "second": SCORES[::-1]}, TARGETS)
    first, second, guessing = figure.axes[0].lines
    recall, precision = first.get_xydata().T
    assert first.get_drawstyle() == "steps-post"
    assert recall.tolist() == [1, 1, 0.5, 0.5, 0.5, 0][-len(recall) :]
    area = -(np.diff(recall) * precision[:-1]).sum()
    assert read(figure)[0] == f"first: average precision {area:.3f}"
    assert precision[-1] == precision[-2] == 1
    assert second.get_ydata()[-1] == 0  # its highest score is a false one's
    assert guessing.get_xydata().tolist() == [[0, 0.4], [1, 0.4]]
    assert_can_be_saved(figure, tmp_path)


@pytest.mark.parametrize("draws", [roc_curves, precision_recall_curves])
def test_long_names_of_models_stay_in_the_picture(draws):
    figure = draws({"a long name " * 20: SCORES}, TARGETS)
    figure.draw_without_rendering()
    title = figure.axes[0].title.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1
    with pytest.raises(ValueError, match=r"_curves: expected scores of at least one model, got no"):
        draws({}, TARGETS)
    with pytest.raises(
        ValueError,
        match=r"_curves: expected names that differ in their last 31 characters, got 2 names that ",
    ):
        draws({"b" + "a" * 50: SCORES, "a" * 60: SCORES}, TARGETS)


def test_guessing_is_named_above_its_line_where_there_is_no_room_below():
    for scores, above in ((np.arange(40.0), True), (np.arange(4.0), False)):
        figure = precision_recall_curves(scores, np.arange(len(scores)) == 1)
        figure.draw_without_rendering()
        line = figure.axes[0].transData.transform((1, 1 / len(scores)))[1]
        box = figure.axes[0].texts[0].get_window_extent()
        assert (box.y0 > line) if above else (box.y1 < line)


# Similarity and losses.


def test_a_table_of_similarities_has_names_and_numbers(tmp_path):
    table = np.array([[1.0, 0.25, 0.0], [0.5, 0.75, 0.125]])
    figure = draw.similarity(table, ["up", "a/long/path/" * 9], ["x", "y", "z"])
    axes = figure.axes[0]
    np.testing.assert_array_equal(drawn(axes), table)
    assert texts(axes.texts) == ["1.00", "0.25", "0.00", "0.50", "0.75", "0.12"]
    assert [text.get_position() for text in axes.texts][1] == (1, 0)
    assert texts(axes.get_xticklabels()) == ["x", "y", "z"]
    assert texts(axes.get_yticklabels()) == ["up", "…g/path/a/long/path/a/long/path/"]
    assert [axes.texts[place].get_color() for place in (0, 1)] == ["white", "black"]
    assert_can_be_saved(figure, tmp_path)
    square = draw.similarity(np.eye(2), ["a", "b"])
    assert texts(square.axes[0].get_xticklabels()) == ["a", "b"]


def test_the_numbers_of_many_layers_stay_in_their_cells():
    names = [f"block/{number}/attend/attention_0" for number in range(60)]
    figure = draw.similarity(np.full((3, 60), 0.88), ["a", "b", "c"], names)
    figure.draw_without_rendering()
    assert_apart(figure.axes[0].texts)
    assert_apart(figure.axes[0].get_xticklabels())


@pytest.mark.parametrize(
    ("table", "got"),
    [
        (np.ones((2, 3)), r"\[2, 3\] from 1 to 1"),
        (np.float64([[0, 2], [0, 0]]), r"\[2, 2\] from 0 to 2"),
        (np.ones(0), r"\[0\]"),
    ],
)
def test_what_is_no_table_of_similarities_is_refused(table, got):
    said = (
        r"^similarity: expected a table \[2, 2\] in \[0, 1\], with a row for each name in one and "
        rf"a column for each name in other, got {got}; pass fdl\.look\.cka_table\(one, other\), "
        r"list\(one\) and list\(other\)$"
    )
    with pytest.raises(ValueError, match=said):
        draw.similarity(table, ["a", "b"])


def test_the_losses_of_a_line_are_a_curve(tmp_path):
    figure = draw.loss_surface(np.float32([0, 0.5, 1]), np.float32([3, np.inf, 4]))
    axes = figure.axes[0]
    (line,) = axes.lines
    np.testing.assert_array_equal(np.asarray(line.get_xdata()), [0, 0.5, 1])
    assert np.ma.getmaskarray(line.get_ydata(orig=True)).tolist() == [False, True, False]
    assert axes.get_title() == "loss from 3 to 4" and axes.get_yscale() == "linear"
    assert_can_be_saved(figure, tmp_path)
    assert draw.loss_surface([0, 1], [1, 20]).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("lowest", [0.01, -1.0])
def test_the_losses_of_a_plane_are_contours(tmp_path, lowest):
    places = np.linspace(-1, 1, 9)
    losses = lowest + 3 * places[:, None] ** 2 + (places[None] - 0.5) ** 2
    losses[0, 0] = np.nan
    figure = draw.loss_surface(places, losses)
    axes = figure.axes[0]
    assert axes.get_title() == f"loss from {lowest:.3g} to {np.nanmax(losses):.3g}"
    filled = axes.collections[0]
    levels = filled.levels
    np.testing.assert_allclose(levels[[0, -1]], [lowest, np.nanmax(losses)])
    apart = np.diff(np.log(levels)) if lowest > 0 else np.diff(levels)
    np.testing.assert_allclose(apart, apart[0])
    # The second direction goes upwards: the lowest band is around (0, 0.5).
    lowest_band = filled.get_paths()[0].vertices
    np.testing.assert_allclose(lowest_band.mean(0), [0, 0.5], atol=0.15)
    assert_can_be_saved(figure, tmp_path)


def test_a_flat_plane_is_drawn(tmp_path):
    assert_can_be_saved(draw.loss_surface([0, 1], np.zeros((2, 2))), tmp_path)


@pytest.mark.parametrize(
    ("places", "losses", "got"),
    [
        ([0, 1], np.ones((2, 3)), r"places \[2\] and losses \[2, 3\]"),
        ([1, 0], np.ones(2), r"places \[2\] and losses \[2\]"),
        ([1], np.ones(1), r"places \[1\] and losses \[1\]"),
        ([0, 1], np.full(2, np.nan), r"places \[2\] and losses \[2\]"),
    ],
)
def test_what_is_no_loss_surface_is_refused(places, losses, got):
    said = (
        r"^loss_surface: expected rising places \[P\] and losses \[P\] or \[P, P\] with P >= 2 and "
        rf"a finite loss, got {got}; pass both results of fdl\.look\.loss_line or loss_plane$"
    )
    with pytest.raises(ValueError, match=said):
        draw.loss_surface(places, losses)


SEEDED_BUGS = {
    "fdl/look/draw.py": (
        "look/test_draw.py",
        [
            ("np.append(curve.precision[:-1], curve.precision[-2])", "curve.precision"),
            ('line.set_drawstyle("steps-post")', 'line.set_drawstyle("steps-pre")'),
            ("<= 32 else", "<= 320 else"),
            ('"bottom" if high < 0.1 else "top"', '"top"'),
        ],
    ),
    "fdl/look/figure_parts.py": (
        "look/test_draw.py",
        [
            ("(last - before) / 2", "(last - before) / 3"),
            ("    if projection is not None:", "    if False:"),
            (
                "order = [name for column in range(ncols) for name in names[column::ncols]]",
                "order = names",
            ),
            ("MaxNLocator(nbins=6, integer=high - low >= 3)", "MaxNLocator(integer=True)"),
            ("_spread(middles / unit, apart) * unit", "middles"),
            ('"#ee0011"', '"#881111"'),
            ("axes.contourf(places, places, heights.T", "axes.contourf(places, places, heights"),
            ("min(9.0, cell / 2.6)", "9.0"),
        ],
    ),
    "fdl/look/checks.py": (
        "look/test_draw.py",
        [
            ("if least < 0", "if False"),
            ("inside = values.size and", "inside = True or"),
            ("== np.rint(array.astype(np.float64))", "== array"),
        ],
    ),
}
