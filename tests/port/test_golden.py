"""Golden outputs beside weights: found again, or the first layer that differs is named."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import fdl
from fdl.port import load_weights, save_weights
from tests.programs import array

X = array(np.random.default_rng(0).normal(size=(3, 4)))


def block(epsilon=1e-5, activation=fdl.gelu):
    inside = fdl.chain(up=fdl.dense(8), act=activation, down=fdl.dense(4))
    return fdl.residual(fdl.chain(norm=fdl.layer_norm(epsilon=epsilon), inside=inside))


def model(**how):
    return fdl.chain(first=fdl.dense(4), body=fdl.repeat(block(**how), 2), head=fdl.dense(400))


def params():
    return model().init(jax.random.key(0), X)[0]


def test_the_file_has_inputs_outputs_and_samples_of_every_layer(tmp_path):
    save_weights(tmp_path / "w", params(), golden=(model(), X))
    save_weights(tmp_path / "plain", params())
    found, plain = load_file(tmp_path / "w"), load_file(tmp_path / "plain")
    extra = {name: x for name, x in found.items() if name not in plain}
    assert {name.split("/")[0] for name in extra} == {"<golden>"}
    np.testing.assert_array_equal(extra["<golden>/x"], X)
    y = model().apply(params(), {}, X)[0]
    np.testing.assert_allclose(extra["<golden>/y"], y, rtol=1e-5, atol=1e-6)
    # Of 1,200 numbers 256, evenly spaced, the first and the last among them.
    head = extra["<golden>/layers/head"]
    assert head.shape == (256,)
    rows = [round(n * 1199 / 255 - 0.5) if n else 0 for n in (0, 100, 255)]
    np.testing.assert_allclose(head[[0, 255]], np.ravel(y)[[0, 1199]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(head[100], np.ravel(y)[rows[1]], rtol=1e-5, atol=1e-6)
    assert extra["<golden>/layers/first"].shape == (12,)


def test_the_same_model_passes_and_weights_come_back(tmp_path):
    save_weights(tmp_path / "w", params(), golden=(model(), X))
    for checked in (None, model()):
        found = load_weights(tmp_path / "w", params(), golden=checked)
        for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(params()), strict=True):
            np.testing.assert_array_equal(left, right)
    shapes = jax.eval_shape(params)
    load_weights(tmp_path / "w", shapes, golden=model())


def changed(f):
    """The model with f(y) in place of its output y."""
    whole = model()

    def apply(params, state, x, **how):
        return f(whole.apply(params, state, x, **how)[0]), state

    return dataclasses.replace(whole, apply=apply)


OTHER_OUTPUTS = {
    "a dict": (lambda y: {"logits": y}, "y/logits"),
    "a tuple": (lambda y: (y, y), "y/0, y/1"),
    "nothing": (lambda y: (), "none"),
}


@pytest.mark.parametrize("name", OTHER_OUTPUTS)
def test_outputs_of_another_structure_are_refused(tmp_path, name):
    f, got = OTHER_OUTPUTS[name]
    save_weights(tmp_path / "w", params(), golden=(model(), X))
    told = (
        rf"^{tmp_path}/w: expected the outputs y of the model, which were saved beside the "
        rf"weights, got {got}; load the weights into the model that they were saved from$"
    )
    with pytest.raises(ValueError, match=told):
        load_weights(tmp_path / "w", params(), golden=changed(f))


USELESS = {
    "none": (X[:0], lambda y: y, "none"),
    "zeros": (X, lambda y: 0 * y, "0 everywhere"),
    "nan": (X, lambda y: y.at[0, 0].set(jnp.nan), "some that are not finite"),
}


@pytest.mark.parametrize("name", USELESS)
def test_outputs_that_show_no_fault_are_refused(tmp_path, name):
    x, f, got = USELESS[name]
    told = (
        "^save_weights: expected golden outputs that are finite and not all 0, got "
        rf"{got}; pass a few usual inputs$"
    )
    with pytest.raises(ValueError, match=told):
        save_weights(tmp_path / "w", params(), golden=(changed(f), x))
    assert not (tmp_path / "w").exists()


def differs(file, at, found):
    return "^" + re.escape(
        f"{file}: expected the golden outputs that were saved beside the weights, got others. The "
        f"first that differs is the output {at}: {found}"
    )


@pytest.mark.parametrize(
    ("how", "layer"),
    [
        ({"epsilon": 0.1}, "norm"),
        ({"activation": fdl.relu}, "inside/act"),
    ],
)
def test_the_first_layer_that_differs_is_named_innermost_first(tmp_path, how, layer):
    file = tmp_path / "w"
    save_weights(file, params(), golden=(model(), X))
    names = load_file(file)
    paths = [name.removeprefix("<golden>/layers/") for name in names if "layers/" in name]
    where = next(path for path in sorted(paths) if path.endswith(layer))
    assert where.startswith("body/0/")
    with pytest.raises(ValueError, match=differs(file, f"of the layer {where!r}", "relative diff")):
        load_weights(file, params(), golden=model(**how))


def test_weights_of_another_value_are_found(tmp_path):
    """Somebody has replaced one number of one weight in the file."""
    file = tmp_path / "w"
    save_weights(file, params(), golden=(model(), X))
    whole = bytearray(file.read_bytes())
    weight = np.asarray(params()["first"]["w"]).tobytes()
    at = whole.index(weight)
    whole[at : at + 4] = np.float32(9).tobytes()
    file.write_bytes(whole)
    assert float(load_weights(file, params())["first"]["w"][0, 0]) == 9
    told = differs(file, "of the layer 'first'", "relative difference ")
    with pytest.raises(ValueError, match=told + r".*; load the weights into the model that they w"):
        load_weights(file, params(), golden=model())


def test_the_output_of_a_model_without_layers_is_compared(tmp_path):
    file, layer = tmp_path / "w", fdl.layer_norm(epsilon=1e-5)
    weights, _ = layer.init(jax.random.key(0), X)
    save_weights(file, weights, golden=(layer, X))
    load_weights(file, weights, golden=layer)
    with pytest.raises(ValueError, match=differs(file, "of the model", "relative difference")):
        load_weights(file, weights, golden=fdl.layer_norm(epsilon=1.0))


def test_state_comes_from_a_dict_or_a_run(tmp_path):
    normed = fdl.chain(fdl.dense(3), fdl.batch_norm())
    weights, state = normed.init(jax.random.key(0), X)
    state = jax.tree.map(lambda leaf: leaf + 0.5, state)
    run = fdl.start(weights, fdl.adam(0.1), state=state)
    for tree in ({"params": weights, "state": state}, run):
        save_weights(tmp_path / "w", tree, golden=(normed, X))
        expected = normed.apply(weights, state, X)[0]
        kept = load_file(tmp_path / "w")["<golden>/y"]
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-6)
        load_weights(tmp_path / "w", tree, golden=normed)
    with pytest.raises(ValueError, match=r"^batch_norm_0: expected 'mean' in the layer"):
        save_weights(tmp_path / "none", weights, golden=(normed, X))
    assert not (tmp_path / "none").exists()


def test_several_outputs_and_half_precision(tmp_path):
    lstm = fdl.lstm(3, returns="carry")
    x = X[None]
    weights, _ = lstm.init(jax.random.key(0), x)
    save_weights(tmp_path / "w", weights, golden=(lstm, x))
    load_weights(tmp_path / "w", weights, golden=lstm)
    names = {name for name in load_file(tmp_path / "w") if name.startswith("<golden>/y")}
    assert len(names) > 1
    half = fdl.compute_in(model(), "bfloat16")
    save_weights(tmp_path / "w", params(), golden=(half, X))
    load_weights(tmp_path / "w", params(), golden=half)
    told = "is the output of the layer 'first': dtypes bfloat16 and float32; load the weights"
    with pytest.raises(ValueError, match=told):
        load_weights(tmp_path / "w", params(), golden=model())


def test_only_wanted_bytes_are_read(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", params(), golden=(model(), X))
    read = []
    true = fdl.port.weights._read
    monkeypatch.setattr(
        fdl.port.weights, "_read", lambda *args: read.append(args[3]) or true(*args)
    )
    load_weights(tmp_path / "w", params())
    assert len(read) == len(jax.tree.leaves(params()))


def test_wrong_uses_are_named(tmp_path):
    file = tmp_path / "w"
    for given in (model(), (model(),), (X, model()), (model(), "x")):
        told = r"^save_weights: expected golden to be \(model, x\), a layer and an array, got "
        with pytest.raises(TypeError, match=told):
            save_weights(file, params(), golden=given)
    told = "^save_weights: expected a path that does not begin with '<golden>/', which golden outp"
    with pytest.raises(fdl.PathError, match=told):
        save_weights(file, {"<golden>": {"x": jnp.ones(1)}})
    assert not file.exists()
    save_weights(file, params())
    told = (
        f"^{file}: expected golden outputs beside the weights, got none; save the weights with "
        r"save_weights\(..., golden=\(model, x\)\), or load them without golden$"
    )
    with pytest.raises(ValueError, match=told):
        load_weights(file, params(), golden=model())
    told = r"^load_weights: expected golden to be a model, got \(<Layer chain.*\); pass the mo"
    with pytest.raises(TypeError, match=told):
        load_weights(file, params(), golden=(model(), X))


SEEDED_BUGS = {
    "fdl/port/golden.py": (
        "port/test_golden.py",
        [
            ("if apart:", "if False:"),
            ('return ends[path], -path.count("/")', "return order.index(path), 0"),
            ("return tree.params, tree.state", "return tree.params, {}"),
            ('return tree["params"], tree["state"]', 'return tree["params"], {}'),
            ("np.linspace(0, max(flat.size - 1, 0), KEPT)", "np.linspace(0, KEPT, KEPT)"),
            ("if X not in kept:", "if False:"),
            ("for arrays in ({**found, **kept}, found)", "for arrays in (found, found)"),
        ],
    ),
}
