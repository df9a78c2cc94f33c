"""What `record` keeps, against NumPy; and what the page of `replay` does, driven in Chromium."""

import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.data.order import permutation
from fdl.look import recorded_pieces
from fdl.look.chosen_examples import chosen, grey
from fdl.look.measurements import dead_and_saturated, mixing, plane, readout, scaled

OPTIMIZER = fdl.sgd(0.1, momentum=0.5)


def problem(widths=(5, 4)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    layers = {}
    for number, width in enumerate(widths):
        layers |= {f"d{number}": fdl.dense(width), f"t{number}": fdl.tanh}
    model = fdl.chain(fdl.flatten(), **layers, out=fdl.dense(2))
    params, _ = model.init(jax.random.key(0), x)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    return model, objective, params, (x, y)


def train(folder, run=None, steps=6, widths=(5, 4), every=1, stop=None, **more):
    model, objective, params, (x, y) = problem(widths)
    hook = fdl.look.record(folder, model, x, y, every=every, **more)
    run = fdl.start(params, OPTIMIZER) if run is None else run
    halt = [lambda record, run: "halted" if record["step"] == stop else None]
    how = {"batch_size": 16, "record_every": 2, "validation": (x, y)}
    return fdl.fit(objective, OPTIMIZER, run, (x, y), steps=steps, watch=[hook, *halt], **how)


def piece(folder, step, session=0):
    return dict(np.load(folder / f"piece_{session:04d}_{step:010d}.npz"))


def outputs(params, x):
    """The layers of `problem`, in float64 NumPy."""
    w = {
        key: {k: np.asarray(v, np.float64) for k, v in p.items()} for key, p in params.items() if p
    }
    d0 = x @ w["d0"]["w"] + w["d0"]["b"]
    d1 = np.tanh(d0) @ w["d1"]["w"] + w["d1"]["b"]
    out = np.tanh(d1) @ w["out"]["w"] + w["out"]["b"]
    return {"(input)": x, "d0": d0, "t0": np.tanh(d0), "d1": d1, "t1": np.tanh(d1), "out": out}


def test_what_is_kept_is_what_numpy_computes(tmp_path):
    result = train(tmp_path / "run")
    x, y = problem()[3]
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    kept = piece(tmp_path / "run", 6)
    found = outputs(result.run.params, x.astype(np.float64))
    # `flatten` changes nothing, so it is left out.
    assert [layer["path"] for layer in about["layers"]] == list(found)
    np.testing.assert_array_equal(kept["predicted"], found["out"].argmax(1))
    order = permutation(80, 0)
    for number, h in enumerate(found.values()):
        fit, test = h[order[:40]], h[order[40:]]
        a, b = ((rows - fit.mean(0)) / fit.std(0) for rows in (fit, test))
        goal = np.eye(2)[y[order[:40]]]
        more = np.sqrt(0.01 * 40) * np.eye(a.shape[1])  # ridge regression as least squares
        left = np.concatenate([a, more])
        right = np.concatenate([goal - goal.mean(0), np.zeros((a.shape[1], 2))])
        w = np.linalg.lstsq(left, right, rcond=None)[0]
        score = ((b @ w + goal.mean(0)).argmax(1) == y[order[40:]]).mean()
        np.testing.assert_allclose(kept["readout"][number], score, atol=1e-6)
        np.testing.assert_allclose(np.hypot(*kept["points"][number].T).max(), 1, rtol=1e-5)
    w = np.asarray(result.run.params["d1"]["w"])
    start = np.cumsum([0, 2 * 5, 5 * 4])
    image = kept["images"][start[1] : start[2]] * kept["images_scale"][1]
    np.testing.assert_allclose(image.reshape(5, 4), w, atol=np.abs(w).max() / 254 * 1.01)
    assert [weights["path"] for weights in about["weights"]] == ["d0/w", "d1/w", "out/w"]


def test_a_readout_is_standardised_by_the_half_to_which_it_is_fitted():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        h = rng.standard_t(2, (40, 12)) + np.arange(12)
        labels = rng.integers(0, 3, 40)
        order = permutation(40, 0)
        fit, test = h[order[:20]], h[order[20:]]
        a, b = ((rows - fit.mean(0)) / fit.std(0) for rows in (fit, test))
        goal = np.eye(3)[labels[order[:20]]]
        left = np.concatenate([a, np.sqrt(0.01 * 20) * np.eye(12)])
        right = np.concatenate([goal - goal.mean(0), np.zeros((12, 3))])
        w = np.linalg.lstsq(left, right, rcond=None)[0]
        score = ((b @ w + goal.mean(0)).argmax(1) == labels[order[20:]]).mean()
        np.testing.assert_allclose(readout(h, labels, 3), score)


def test_heat_maps_cover_the_plane_from_the_top_left(tmp_path):
    result = train(tmp_path / "run")
    x, _ = problem()[3]
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    kept = piece(tmp_path / "run", 6)
    a, b, half = about["bounds"]
    low, high = x.min(0), x.max(0)
    np.testing.assert_allclose([a, b], (low + high) / 2, rtol=1e-6)
    np.testing.assert_allclose(half, 0.55 * (high - low).max(), rtol=1e-6)
    ticks = (np.arange(32) + 0.5) / 16 - 1
    corner = np.array([[a + half * ticks[0], b - half * ticks[0]]])
    right = np.array([[a + half * ticks[30], b - half * ticks[0]]])
    first = 2  # heat maps of the input come before those of d0
    for place, at in ((0, corner), (15, right)):
        expected = outputs(result.run.params, at)["d0"][0]
        for unit in range(5):
            scale = kept["heat_scale"][first + unit]
            value = kept["heat"][(first + unit) * 256 + place] * scale
            np.testing.assert_allclose(value, expected[unit], atol=scale * 0.51)
    logits = outputs(result.run.params, corner)["out"][0]
    assert round(kept["surface"][0] * kept["surface_scale"][0]) == logits.argmax()
    certainty = kept["surface"][1024] * kept["surface_scale"][1]
    np.testing.assert_allclose(certainty, np.tanh(abs(logits[0] - logits[1]) / 2), atol=0.01)


def test_the_plane_is_that_of_principal_components_and_turns_little():
    rng = np.random.default_rng(1)
    h = (rng.normal(size=(60, 7)) * [5, 3, 1, 0.5, 0.4, 0.3, 0.2] + 2).astype(np.float32)
    flat, basis, share = plane(h, None)
    expected, shares = fdl.look.principal_components(h)
    radius = np.hypot(*np.asarray(expected).T).max()
    np.testing.assert_allclose(flat, expected / radius, atol=1e-5)
    np.testing.assert_allclose(share, float(shares.sum()), rtol=1e-5)
    again, same, _ = plane(h, basis)
    np.testing.assert_allclose(again, flat, atol=1e-4)
    turned = basis @ np.array([[0.0, -1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(plane(h, turned)[1], turned, atol=1e-4)  # no flip, no swap
    moved, orthonormal, _ = plane(h @ np.diag(np.linspace(1, 2, 7)).astype(np.float32), basis)
    np.testing.assert_allclose(orthonormal.T @ orthonormal, np.eye(2), atol=1e-5)
    assert np.abs(moved - flat).max() < 0.5
    assert np.isnan(plane(np.full((4, 3), np.nan), same[:3])[0]).all()
    narrow, _, _ = plane(np.arange(4.0)[:, None], None)
    np.testing.assert_allclose(narrow, [[-1, 0], [-1 / 3, 0], [1 / 3, 0], [1, 0]], atol=1e-6)


def test_dead_and_saturated_units_are_counted():
    h = np.random.default_rng(0).uniform(-0.9, 0.9, (100, 6))
    h[:, 0] = 1.0  # dead
    h[:, 1] = np.where(np.arange(100) < 96, 1.0, h[:, 1])  # saturated
    h[:, 2] = np.where(np.arange(100) % 2, 1.0, -1.0)  # saturated at both ends
    h[:, 3] = np.where(np.arange(100) < 94, 1.0, 0.0)  # not quite
    assert dead_and_saturated(h) == (1 / 6, 2 / 6)
    h[0, 4] = np.inf
    assert np.isnan(dead_and_saturated(h)).all()


def test_wide_layers_are_read_out_through_fixed_combinations():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3
    h = np.eye(100)[labels] * 12 + rng.normal(size=(200, 100))
    assert readout(h, labels, 3) > 0.9
    assert readout(h, labels, 3) == readout(h * 8, labels, 3)
    assert mixing(100).shape == (100, 40) and mixing(100) is mixing(100)


def test_values_are_quantised_to_the_nearest_of_255():
    values = np.array([-2.54, -0.011, 0.0, 0.009, 1.0, np.nan, np.inf])
    found, scale = scaled(values)
    np.testing.assert_allclose(scale, 0.02)
    np.testing.assert_array_equal(found, [-127, -1, 0, 0, 50, -128, -128])


def test_images_become_smaller_by_means():
    x = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    expected = x.mean(-1).reshape(2, 2, 2, 2, 2).mean((2, 4))
    expected = (expected - expected.min()) / np.ptp(expected) * 255
    np.testing.assert_array_equal(grey(x, 2), np.rint(expected))


def test_a_long_and_low_image_keeps_a_row():
    x = np.arange(2 * 2 * 100.0).reshape(2, 2, 100)
    expected = x[:, :, :98].reshape(2, 1, 2, 14, 7).mean((2, 4))
    expected = (expected - expected.min()) / np.ptp(expected) * 255
    np.testing.assert_array_equal(grey(x, 16), np.rint(expected))
    np.testing.assert_array_equal(grey(x.swapaxes(1, 2), 16), np.rint(expected).swapaxes(1, 2))
    about = chosen(x.astype(np.float32), None, 300, None).about()
    assert about["kind"] == "other" and about["pixels"] == [1, 14]


def test_the_speed_is_the_relative_change_by_step(tmp_path):
    before = train(tmp_path / "part", steps=4).run.params["d0"]["w"]
    after = train(tmp_path / "run", steps=6).run.params["d0"]["w"]
    expected = np.linalg.norm(after - before) / np.linalg.norm(before) / 2
    np.testing.assert_allclose(piece(tmp_path / "run", 6)["speed"][0], expected, rtol=1e-4)
    assert np.isnan(piece(tmp_path / "run", 0)["speed"]).all()


def page_data(file):
    text = file.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_a_run_that_goes_on_leaves_the_page_of_an_uninterrupted_one(tmp_path):
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    train(whole, steps=8)
    half = train(parts, steps=8, stop=4)
    train(parts, half, steps=10)  # this call went too far, and is forgotten
    train(parts, half, steps=8)
    pages = [
        fdl.look.replay(each, tmp_path / f"{each.parent.name}.html") for each in (whole, parts)
    ]
    one, other = (page_data(page)["runs"][0] for page in pages)
    assert other["steps"] == [0, 2, 4, 6, 8]
    for run in (one, other):
        run["curves"].pop("seconds")
    assert one["curves"] == other["curves"]
    for key in ("points", "images", "heat", "readout", "predicted"):
        assert one[key] == other[key], key


def test_default_cadence_limits_cost_and_keeps_the_ends(tmp_path):
    train(tmp_path / "run", steps=200, every=None)
    steps = sorted(int(file.stem[-10:]) for file in (tmp_path / "run").glob("piece*"))
    assert steps[0] == 0 and steps[-1] == 200
    model, _, _, (x, y) = problem()
    hook = fdl.look.record(tmp_path / "x", model, x, y)
    hook.first, hook.last, hook.kept, hook.began = 0, 2000, 100, 10.0
    hook.spent, hook.cost = 0.3, 0.1
    assert [hook._due(now, 200) for now in (23.2, 23.5)] == [False, True]
    assert [hook._due(30.0, step) for step in (109, 110)] == [False, True]
    every = fdl.look.record(tmp_path / "x", model, x, y, every=3)
    every.waited = 2
    assert not every._due(1e9, 100)
    every.waited = 3
    assert every._due(0.0, 100)


def test_a_damaged_piece_is_left_out_with_a_warning(tmp_path):
    train(tmp_path / "run")
    last = tmp_path / "run" / "piece_0000_0000000006.npz"
    last.write_bytes(last.read_bytes()[:500])
    with open(tmp_path / "run" / "records.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    with pytest.warns(UserWarning, match=r"^replay: expected a ") as told:
        page = fdl.look.replay(tmp_path / "run", tmp_path / "run.html")
    texts = sorted(str(each.message) for each in told)
    assert "got a damaged line 5 in records.jsonl; it is left out" in texts[1]
    assert "for piece_0000_0000000006.npz; it is left out" in texts[0]
    assert page_data(page)["runs"][0]["steps"] == [0, 2, 4]
    # A run that goes on after it was killed in the middle of a line keeps its own lines whole.
    recorded_pieces.append_line(tmp_path / "run", {"begins": 6})
    recorded_pieces.append_line(tmp_path / "run", {"step": 8, "loss": 0.5})
    assert recorded_pieces.sessions(tmp_path / "run") == 2
    with pytest.warns(UserWarning, match=r"^replay: expected a "):
        records = recorded_pieces.read(tmp_path / "run", "replay").records
    assert [record["step"] for record in records][-2:] == [6, 8]


def test_bad_input_is_named(tmp_path):
    model, _, _, (x, y) = problem()
    for bad, told in {
        lambda: fdl.look.record(
            3, model, x
        ): r"^record: expected the path of a folder, got 3; pass",
        lambda: fdl.look.record("a", fdl.dense, x): r"^record: expected a Layer or a function",
        lambda: fdl.look.record(
            "a", model, x, y[:3]
        ): r"^record: expected y as class numbers \[80\]",
        lambda: fdl.look.record("a", model, x, x[:, 0]): r"got float32 \[80\]; pass y=None if",
        lambda: fdl.look.record("a", model, x, -y): r"^record: expected y as class numbers \[80\], "
        r"integers >= 0, got -1; pass y=None if there are no classes$",
        lambda: fdl.look.record(
            "a", model, x[:1]
        ): r"^record: expected x \[N, \.\.\.\] with N >= 2",
        lambda: fdl.look.record(
            "a", model, x, every=0
        ): r"^record: expected every >= 1, an integer",
        lambda: fdl.look.replay(
            3, "a.html"
        ): r"^replay: expected a folder, or a list of one or two",
        lambda: fdl.look.replay(
            ["a", "b", "c"], "x"
        ): r"^replay: expected a folder, or a list of one",
        lambda: fdl.look.replay(
            tmp_path, "x"
        ): r"^replay: expected the folder of a recorded run, got",
    }.items():
        with pytest.raises((TypeError, ValueError), match=told):
            bad()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"^record: expected an empty folder or the folder of a rec"
    ):
        train(tmp_path / "other")
    train(tmp_path / "run")
    before = sorted((tmp_path / "run").iterdir())
    with pytest.raises(ValueError, match=r"^record: expected the examples of the recording in "):
        train(tmp_path / "run", examples=20)
    with pytest.raises(ValueError, match=r"^record: expected the layers of the recording in "):
        train(tmp_path / "run", widths=(6, 4))
    assert sorted((tmp_path / "run").iterdir()) == before


def test_a_plain_function_is_recorded_by_the_paths_that_it_has(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float32)

    def look(params, state, x):
        hidden = jnp.tanh(x.reshape(len(x), -1) @ params["up"])
        return {"hidden": hidden, "y": hidden @ params["down"]}

    rng = np.random.default_rng(1)
    params = {"up": rng.normal(size=(15, 4)), "down": rng.normal(size=(4, 1))}
    params = {name: w.astype(np.float32) for name, w in params.items()}
    objective = fdl.plain(lambda w, batch: jnp.mean(look(w, {}, batch)["y"] ** 2))
    hook = fdl.look.record(tmp_path / "run", look, x)
    fdl.fit(objective, OPTIMIZER, fdl.start(params, OPTIMIZER), x, steps=3, watch=[hook])
    run = page_data(fdl.look.replay(tmp_path / "run", tmp_path / "run.html"))["runs"][0]
    assert [layer["path"] for layer in run["layers"]] == ["(input)", "hidden", "y"]
    assert [w["path"] for w in run["weights"]] == ["down", "up"]
    assert {score for scores in run["readout"] for score in scores} == {None}


def test_a_run_that_diverges_is_recorded(tmp_path):
    result = train(tmp_path / "run")
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, result.run.params)
    model, _, _, (x, y) = problem()
    hook = fdl.look.record(tmp_path / "nan", model, x, y, every=1)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    with warnings.catch_warnings(action="ignore"):
        fdl.fit(objective, OPTIMIZER, fdl.start(nan, OPTIMIZER), (x, y), steps=2, watch=[hook])
    run = page_data(fdl.look.replay(tmp_path / "nan", tmp_path / "nan.html"))["runs"][0]
    assert run["readout"][0][0] is not None and run["readout"][0][1] is None


@pytest.mark.parametrize("half", ["compute", "parameters"])
def test_a_network_of_bfloat16_is_recorded_and_replayed(half, tmp_path):
    model, _, params, (x, y) = problem()
    if half == "compute":
        model = fdl.compute_in(model, "bfloat16")
    else:
        x, params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (x, params))
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    hook = fdl.look.record(tmp_path / "run", model, x, y, every=1)
    how = {"batch_size": 16, "steps": 2, "record_every": 1, "watch": [hook]}
    result = fdl.fit(objective, OPTIMIZER, fdl.start(params, OPTIMIZER), (x, y), **how)
    logits = np.asarray(jax.jit(model.apply)(result.run.params, {}, x)[0], np.float32)
    kept = piece(tmp_path / "run", 2)
    np.testing.assert_array_equal(kept["predicted"], logits.argmax(1))
    assert len(kept["surface"]) == 2 * 32**2
    run = page_data(fdl.look.replay(tmp_path / "run", tmp_path / "run.html"))["runs"][0]
    names = [layer["path"].rpartition("/")[2] for layer in run["layers"]]
    rounded = ["flatten_0"] if half == "compute" else []  # the first layer rounds its input
    assert names == ["(input)", *rounded, "d0", "t0", "d1", "t1", "out"]
    assert None not in run["readout"][-1]


def of_100_pieces(folder):
    """A recording of a network of four layers with 100 pieces; only the first three are trained."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (300, 28, 28, 1)).astype(np.uint8)
    y = (np.arange(300) % 10).astype(np.int32)
    model = fdl.mlp([128, 128, 64], 10, scale=1 / 255)
    params, _ = model.init(jax.random.key(0), x)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    hook = fdl.look.record(folder, model, x, y, every=1)
    run = fdl.start(params, OPTIMIZER)
    fdl.fit(objective, OPTIMIZER, run, (x, y), steps=2, record_every=1, watch=[hook])
    for step in range(3, 100):
        kept = piece(folder, 2) | {"step": step}
        np.savez(folder / f"piece_0000_{step:010d}.npz", **kept)


def test_a_page_of_100_pieces_is_below_5_mb_and_needs_nothing_else(tmp_path):
    of_100_pieces(tmp_path / "run")
    page = fdl.look.replay(tmp_path / "run", tmp_path / "run.html")
    assert len(page_data(page)["runs"][0]["steps"]) == 100
    assert page.stat().st_size < 5_000_000
    text = re.sub(r'id="data">.*?</script>', "", page.read_text(), flags=re.S)
    assert "default-src 'none'" in text
    assert re.findall(r"https?:|//cdn|\bsrc=|\bhref=|@import|fetch\(|XMLHttp", text) == []
    few = fdl.look.replay(tmp_path / "run", tmp_path / "few.html", pieces=10)
    assert page_data(few)["runs"][0]["steps"][::9] == [0, 99]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    train(folder / "one", steps=8)
    train(folder / "other", steps=12, widths=(5, 4))
    return folder


def opened(chromium, page_file, **how):
    context = chromium.new_context(offline=True, **how)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else 0)
    page.goto(f"file://{page_file}")
    wait_until(page, "replayPage.state.frames > 0")
    return page


def wait_until(page, condition):
    """Waits at most 20 s. The page forbids the evaluation of strings that Playwright waits by."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not become true")


def state(page, name):
    return page.evaluate(f"replayPage.state.{name}")


def pixels(page, number=0):
    """The pixels of a panel of points, without those that are empty."""
    return page.evaluate(
        "n => { const c = document.querySelectorAll('#layers canvas')[n]; "
        "c.scrollIntoView(); replayPage.drawAll(); "
        "const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "const found = []; for (let i = 0; i < all.length; i += 4) "
        "if (all[i + 3]) found.push([i / 4, all[i], all[i + 1], all[i + 2]]); return found; }",
        number,
    )


def test_slider_keyboard_and_play_move_the_points(chromium, folders, tmp_path):
    page = opened(chromium, fdl.look.replay(folders / "one", tmp_path / "one.html"))
    assert page.inner_text("#step") == "step 0"
    assert page.inner_text("#curves-title") == "At step 0: no record yet"
    at_first = pixels(page, 2)
    assert len(at_first) > 80
    page.keyboard.press("ArrowRight")
    wait_until(page, "document.getElementById('step').textContent == 'step 2'")
    page.keyboard.press("End")
    wait_until(page, "document.getElementById('step').textContent == 'step 8'")
    assert pixels(page, 2) != at_first
    assert pixels(page, 0) != [] and "val_accuracy" in page.inner_text("#title")
    page.locator("#slider").fill("1.5")
    wait_until(page, "document.getElementById('step').textContent == 'step 3'")
    assert page.get_attribute("#slider", "aria-valuetext") == "step 3"
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    assert state(page, "playing") and page.get_attribute("#play", "aria-label") == "Pause"
    wait_until(page, "!replayPage.state.playing")
    assert state(page, "position") == 4
    page.keyboard.press("ArrowUp")
    assert state(page, "speed") == 2
    page.keyboard.press("]")
    assert page.inner_text("#inside-title") != "" and state(page, "layer") == 2
    wait_until(page, "document.getElementById('inside-title').textContent == 'Inside t0'")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    assert page.errors == []


def test_hover_shows_the_example_and_dark_mode_changes_the_colours(chromium, folders, tmp_path):
    page = opened(chromium, fdl.look.replay(folders / "one", tmp_path / "one.html"))
    at = page.evaluate(
        "() => { const [run] = replayPage.runs; const c = document.querySelector('#layers canvas');"
        "c.scrollIntoView({block: 'center'}); replayPage.drawAll(); "
        "const b = c.getBoundingClientRect();"
        "let far = 0; for (let n = 0; n < run.count; n++) "
        "if (run.points[2 * n] > run.points[2 * far]) far = n;"
        "const [x, y] = place(run, 0, far, [0, 0, 0], c.width, c.height, 5);"
        "return [b.left + x * b.width / c.width, b.top + y * b.height / c.height, far]; }"
    )
    page.mouse.move(at[0], at[1])
    wait_until(page, "!document.getElementById('tip').hidden")
    x, y = problem()[3]
    place = at[2]
    text = page.inner_text("#tip")
    assert f"example {place}" in text and f"class {y[place]}" in text
    assert f"input {x[place][0]:.2f}, {x[place][1]:.2f}" in text
    page.mouse.move(2, 2)
    wait_until(page, "document.getElementById('tip').hidden")
    light = {tuple(each[1:]) for each in pixels(page)}
    assert light == {(0x33, 0x77, 0xCC), (0xEE, 0x88, 0x11)}
    page.keyboard.press("d")
    dark = {tuple(each[1:]) for each in pixels(page)}
    assert state(page, "dark") and not light & dark
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    dark_page = opened(chromium, tmp_path / "one.html", color_scheme="dark")
    assert state(dark_page, "dark")
    assert page.errors == [] and dark_page.errors == []


def test_two_runs_are_shown_at_the_same_step(chromium, folders, tmp_path):
    page_file = fdl.look.replay([folders / "one", folders / "other"], tmp_path / "two.html")
    page = opened(chromium, page_file, viewport={"width": 390, "height": 844})
    assert page.evaluate("replayPage.steps") == [0, 2, 4, 6, 8, 10, 12]
    assert page.locator("#layers figure").count() == 2 * page.locator("#layers .card").count()
    page.evaluate("replayPage.show(5.5)")
    wait_until(page, "document.getElementById('step').textContent == 'step 11'")
    assert page.evaluate("between(replayPage.runs[0], 11)") == [4, 4, 0]
    assert page.evaluate("between(replayPage.runs[1], 11)") == [5, 6, 0.5]
    assert "one" in page.inner_text("#title") and "other" in page.inner_text("#title")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []


def test_10_000_points_are_drawn_within_a_thirtieth_of_a_second(chromium, tmp_path):
    model, objective, params, _ = problem()
    x = np.random.default_rng(0).normal(size=(10_000, 2)).astype(np.float32)
    y = (np.arange(10_000) % 2).astype(np.int32)
    hook = fdl.look.record(tmp_path / "run", model, x, y, layers=["t1"], examples=10_000)
    run = fdl.start(params, OPTIMIZER)
    fdl.fit(objective, OPTIMIZER, run, (x, y), batch_size=16, steps=4, watch=[hook])
    page = opened(chromium, fdl.look.replay(tmp_path / "run", tmp_path / "run.html"))
    page.evaluate("document.getElementById('layers').scrollIntoView()")
    assert page.evaluate("replayPage.runs[0].count") == 10_000
    times = page.evaluate(
        "() => [...Array(40).keys()].map(n => { replayPage.state.position = n / 40; "
        "const at = performance.now(); replayPage.drawAll(); return performance.now() - at; })"
    )
    assert np.median(times) < 33


SEEDED_BUGS = {
    "fdl/look/measurements.py": (
        "look/test_replay.py -k numpy_or_plane_or_dead_or_quantised_or_standardised",
        [
            ("h[fitted].mean(0), h[fitted].std(0)", "h[tested].mean(0), h[tested].std(0)"),
            ("_nearest_orthonormal(rows.T @ (rows @ basis), basis)", "rows.T @ (rows @ basis)"),
            ("(ends & ~dead)", "ends"),
            (">= MOSTLY", "> 0.5"),
            ("np.rint(values / scale)", "np.floor(values / scale)"),
            ("RIDGE * len(a)", "100 * len(a)"),
            ("vectors[:, ::-1][:, :2]", "vectors[:, :2]"),
        ],
    ),
    "fdl/look/recording.py": (
        "look/test_replay.py -k speed_or_cadence_or_bad_or_numpy",
        [
            ("relative_change(old, now) / steps", "relative_change(old, now)"),
            ("self.kept != int(result.run.step)", "False"),
            ("self.spent + self.cost <=", "0 <="),
            ("if about[key] != before.get(key)", "if key not in before"),
        ],
    ),
    "fdl/look/recorded_pieces.py": (
        "look/test_replay.py -k goes_on_or_damaged",
        [
            ("if at <= step}", "}"),
            ('record["step"] <= line["begins"]', "True"),
            ('b"\\n" * broken + ', ""),
        ],
    ),
    "fdl/look/layer_views.py": (
        "look/test_replay.py -k numpy_or_heat_or_bfloat16",
        [
            ("(is_number(h) or h.dtype == bool)", 'h.dtype.kind in "fiub"'),
            ("maps[:, ::2, ::2]", "maps[:, 1::2, ::2]"),
            ("return {path: outputs[path] for path in order}", "return outputs"),
            ("if not same:", "if True:"),
        ],
    ),
    "fdl/look/chosen_examples.py": (
        "look/test_replay.py -k heat_or_row_or_bfloat16",
        [
            ("np.meshgrid(-ticks, ticks", "np.meshgrid(ticks, ticks"),
            ("(min(step, side) for side", "(step for side"),
            ("points.astype(self.x.dtype)", "points.astype(np.float32)"),
        ],
    ),
    "fdl/look/replay_page/page.js": (
        "look/test_replay.py -k slider_or_hover_or_two",
        [
            ("(step - run.steps[before])", "(run.steps[after] - step)"),
            ("value == null ? ", "value != null ? "),
            ('" ": () => setPlaying(!state.playing)', '" ": () => setPlaying(false)'),
            ("if (distance < least)", "if (distance > least)"),
            ('toggle("dark", dark)', 'toggle("dark", false)'),
        ],
    ),
}
