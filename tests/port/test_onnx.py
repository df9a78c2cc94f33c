"""Networks as ONNX files: onnxruntime computes what fdl computes.

Most of these tests need the extra `onnx`, in an environment without the extra `checkpoints`.
"""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.port import onnx_files, onnx_operations, save_onnx

TOKENS, IMAGES = (8,), (8, 8, 3)
# Every function of fdl.models; name -> (a network, the shape of one input).
NETWORKS = {
    "mlp": (lambda: fdl.mlp([8], 3, activation=fdl.gelu), (5,)),
    "autoencoder": (lambda: fdl.autoencoder((8, 8), [5], 2), (8, 8)),
    "lenet": (lambda: fdl.lenet(10, scale=0.5), (8, 8, 1)),
    "resnet": (lambda: fdl.resnet(10, (1, 1), width=4), IMAGES),
    "resnet_50": (
        lambda: fdl.resnet(10, (1, 1), width=4, block="bottleneck", stem="large"),
        (32, 32, 3),
    ),
    "lstm_classifier": (lambda: fdl.lstm_classifier(11, 6, 3, depth=2, both_ways=True), TOKENS),
    "gpt": (lambda: fdl.gpt(11, 8, 2, 2, 8), TOKENS),
    "llama": (
        lambda: fdl.gpt(11, None, 1, 2, 8, rotary=True, kv_heads=1, norm=fdl.rms_norm(), gate=True),
        TOKENS,
    ),
    "encoder": (lambda: fdl.encoder(11, 8, 2, 2, 8), TOKENS),
    "encoder_block": (lambda: fdl.models.encoder_block(2, 8, norm_first=False), (5, 8)),
    "vit": (lambda: fdl.vit(10, 8, 4, 1, 2, 8, class_token=True), IMAGES),
}


def inputs(shape, size, seed=0):
    rng = np.random.default_rng(seed)
    if shape == TOKENS:
        return rng.integers(0, 11, (size, *shape)).astype("int32")
    return rng.normal(size=(size, *shape)).astype("float32")


@functools.cache
def made(name):
    make, shape = NETWORKS[name]
    model = make()
    params, state = model.init(jax.random.key(0), inputs(shape, 2))
    return model, params, state, shape


def test_every_network_of_the_room_is_here():
    rest = {"decoder_block"}  # it needs a context, which is an input of its own
    assert set(fdl.models.__all__) - rest <= NETWORKS.keys()


@pytest.fixture
def runtime():
    pytest.importorskip("jax2onnx")
    return pytest.importorskip("onnxruntime")


def run(runtime, file, x):
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_the_outputs_of_every_network(tmp_path, runtime, name):
    model, params, state, shape = made(name)
    save_onnx(tmp_path / "m.onnx", model, params, state, inputs(shape, 2))
    for size in (1, 5):
        x = inputs(shape, size, seed=size)
        y, _ = model.apply(params, state, x)
        np.testing.assert_allclose(run(runtime, tmp_path / "m.onnx", x)["y"], y, rtol=0, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_operations_compute_the_same_without_fdls_own(name):
    """The part that needs no converter is tested everywhere."""
    model, params, state, shape = made(name)
    f = lambda x: model.apply(params, state, x)[0]  # noqa: E731
    (b,) = jax.export.symbolic_shape("b")
    of_any = onnx_operations.in_plain_operations(
        f, jax.ShapeDtypeStruct((b, *shape), inputs(shape, 1).dtype)
    )
    names = {eqn.primitive.name for eqn in of_any.jaxpr.eqns}
    assert names & {"convolve", "fence", "pjit", "jit", "custom_jvp_call", "pad"} == set()
    scans = [eqn for eqn in of_any.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert not any(eqn.params["reverse"] for eqn in scans)
    assert bool(scans) == (name == "lstm_classifier")
    paths = {onnx_operations.layer_of(eqn) for eqn in of_any.jaxpr.eqns}
    assert {path.split("/")[0] for path in paths} <= {"", *model.children}
    x = inputs(shape, 3)
    closed = onnx_operations.in_plain_operations(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    found = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, jnp.asarray(x))[0]
    np.testing.assert_allclose(found, f(x), rtol=1e-5, atol=1e-6)


def test_padding_is_a_concatenation():
    x, value = jnp.arange(6.0).reshape(2, 3), jnp.float32(9)
    for config in (((1, 2, 0), (0, 1, 0)), ((0, 0, 0), (0, 0, 0)), ((-1, 0, 0), (1, 0, 1))):
        found = onnx_operations._pad(x, value, padding_config=config)
        np.testing.assert_array_equal(found, jax.lax.pad(x, value, config))


def test_a_tree_of_outputs_has_a_name_for_each_leaf(tmp_path, runtime):
    model = fdl.network(
        lambda f, x: {"a": f.one(x), "b": [f.two(x)]}, one=fdl.dense(2), two=fdl.relu
    )
    x = inputs((5,), 3)
    params, state = model.init(jax.random.key(0), x)
    save_onnx(tmp_path / "m.onnx", model, params, state, x)
    found = run(runtime, tmp_path / "m.onnx", x)
    y, _ = model.apply(params, state, x)
    assert list(found) == ["y/a", "y/b/0"]
    np.testing.assert_allclose(found["y/a"], y["a"], atol=1e-6)
    np.testing.assert_array_equal(found["y/b/0"], y["b"][0])


@pytest.mark.parametrize(
    ("layer", "shape", "told"),
    [
        (fdl.rg_lru(3), (8, 3), r"body/1/memory: expected operations that ONNX has, got pad \(lax"),
        (
            fdl.mixture_of_experts(fdl.dense(3), 3),
            (8, 3),
            r"body/1: expected operations that ONNX has, got scatter \(scatter pattern not suppor",
        ),
        (
            fdl.function(lambda x: x[: x.shape[0] // 2] if x.shape[0] > 4 else x, name="halved"),
            (8, 3),
            "save_onnx: expected a network that does not depend on the size of the batch, got one "
            "that needs it ",
        ),
    ],
)
def test_what_onnx_cannot_say_is_named_by_path(tmp_path, runtime, layer, shape, told):
    names = {"0": fdl.dense(3), "1": layer}
    model = fdl.chain(first=fdl.dense(3), body=fdl.chain(**names))
    x = inputs(shape, 2)
    params, state = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=f"^{told}"):
        save_onnx(tmp_path / "m.onnx", model, params, state, x)
    assert list(tmp_path.iterdir()) == []


def test_the_first_layer_with_another_output_is_named(tmp_path, runtime, monkeypatch):
    """The converter makes a wrong tanh."""
    model = fdl.chain(a=fdl.dense(3), b=fdl.chain(c=fdl.dense(3), d=fdl.tanh), e=fdl.dense(2))
    x = inputs((5,), 3)
    params, state = model.init(jax.random.key(0), x)
    wrong = lambda x, **how: 1.01 * jnp.tanh(x)  # noqa: E731
    monkeypatch.setitem(onnx_operations._OPERATIONS, "tanh", wrong)
    told = (
        "^b/d: expected the output of fdl in onnxruntime, got relative difference 0.0099, more "
        "than the tolerance 1e-05; save the network with fdl.port.save_program instead, or pass a "
        "larger tolerance$"
    )
    with pytest.raises(ValueError, match=told):
        save_onnx(tmp_path / "m.onnx", model, params, state, x)
    assert list(tmp_path.iterdir()) == []
    save_onnx(tmp_path / "m.onnx", model, params, state, x, tolerance=0.1)


def test_jax_is_as_before(tmp_path, runtime):
    """jax2onnx 0.17 leaves another `jnp.cumsum`, which takes fewer arguments."""
    before = {name: getattr(jnp, name) for name in dir(jnp)}
    model, params, state, shape = made("mlp")
    save_onnx(tmp_path / "m.onnx", model, params, state, inputs(shape, 2))
    assert [name for name in before if getattr(jnp, name) is not before[name]] == []


def test_changes_of_jax_are_undone(monkeypatch):
    cumsum = jnp.cumsum
    with onnx_files._jax_unchanged():
        monkeypatch.setattr(jnp, "cumsum", None)
    assert jnp.cumsum is cumsum


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    model, params, state, shape = made("mlp")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    told = (
        "save_onnx: expected the packages jax2onnx and onnxruntime, which convert a network and "
        "check the result, got none; pip install 'fdl[onnx]'"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(told)}$"):
        save_onnx(tmp_path / "m.onnx", model, params, state, inputs(shape, 2))


def test_wrong_arguments_are_named(tmp_path, monkeypatch):
    model, params, state, shape = made("mlp")
    monkeypatch.setattr(onnx_files, "_packages", lambda: (None, None))
    told = "^save_onnx: expected model to be a layer, got dict; pass the network, then its params"
    with pytest.raises(TypeError, match=told):
        save_onnx(tmp_path / "m", params, model, state, inputs(shape, 2))
    told = "^save_onnx: expected tolerance > 0, got 0; pass 1e-5, for example$"
    with pytest.raises(ValueError, match=told):
        save_onnx(tmp_path / "m", model, params, state, inputs(shape, 2), tolerance=0)
    told = r"^dense_0: expected x \[\.\.\., 5\], got \[2, 6\]; "
    with pytest.raises(fdl.PathError, match=told):
        save_onnx(tmp_path / "m", model, params, state, inputs((6,), 2))


SEEDED_BUGS = {
    "fdl/port/onnx_operations.py": (
        "port/test_onnx.py",
        [
            ("[*before, x, *after], axis", "[*after, x, *before], axis"),
            ('turned = _reversed if params["reverse"] else list', "turned = list"),
            ('    "fence": lambda x: x,\n', ""),
            ("low < 0 or high < 0 or inside", "False"),
            (
                "stack.enter_context(jax.named_scope(scope))",
                'stack.enter_context(jax.named_scope("x"))',
            ),
        ],
    ),
    "fdl/port/onnx_files.py": (
        "port/test_onnx.py",
        [
            ("if vars(module).get(name) is not value:", "if False:"),
            ("    jax.eval_shape(f, x)  # an error", "    # an error"),
        ],
    ),
}
