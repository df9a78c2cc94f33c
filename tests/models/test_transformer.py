"""Transformer blocks and the networks made of them, against torch and NumPy."""

import re

import jax
import numpy as np
import pytest

import fdl
from fdl.models.transformer import patches
from tests.programs import array, compiled, waves

KEY = jax.random.key(0)


def normals(*shape, dtype):
    return array(np.random.default_rng(0).standard_normal(shape), dtype)


def shaken(params):
    """Biases and scales away from 0 and 1."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    rng = np.random.default_rng(1)
    return tree.unflatten(
        [array(leaf + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    )


def into_torch(torch, layer, params):
    """Copies the weights of a block into the same layer of torch."""
    params = jax.tree.map(np.asarray, params)
    parts = {
        "self_attn": params["attend"]["attention_0"],
        "norm1": params["attend"]["layer_norm_0"],
    }
    if "read" in params:
        parts["multihead_attn"] = params["read"]["attention_0"]
        parts["norm2"] = params["read"]["layer_norm_0"]
    parts["norm3" if "read" in params else "norm2"] = params["mix"]["layer_norm_0"]
    state = {}
    for name, part in parts.items():
        if "norm" in name:
            state |= {f"{name}.weight": part["scale"], f"{name}.bias": part["bias"]}
            continue
        for leaf, suffix in [("w", "weight"), ("b", "bias")]:
            three = [part[each][leaf].T for each in "qkv"]
            state[f"{name}.in_proj_{suffix}"] = np.concatenate(three)
            state[f"{name}.out_proj.{suffix}"] = part["out"][leaf].T
    inner = params["mix"]["feed_forward_0"]
    for name, (path, suffix) in [(n, (p, s)) for n, p in NAMES for s in ("weight", "bias")]:
        state[f"{name}.{suffix}"] = inner[path]["w" if suffix == "weight" else "b"].T
    layer.load_state_dict({n: torch.tensor(np.array(leaf)) for n, leaf in state.items()})


NAMES = [("linear1", "up"), ("linear2", "down")]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("kind", ["encoder", "causal encoder", "decoder"])
def test_a_block_and_its_gradient_match_torch(kind, dtype, bound):
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: transformer blocks are not checked against it"
    )
    with jax.enable_x64(dtype == "float64"):
        x, context = normals(2, 5, 8, dtype=dtype), np.asarray(normals(2, 3, 8, dtype=dtype))[::-1]
        decoder = kind == "decoder"
        block = (
            fdl.decoder_block(2, 8, hidden=12)
            if decoder
            else fdl.encoder_block(2, 8, hidden=12, causal=" " in kind)
        )
        given = {"context": context} if decoder else {}
        params = shaken(block.init(KEY, x, **given)[0])
        weight = waves(x)

        @jax.jit
        def both(x):
            y, back = jax.vjp(lambda x: block.apply(params, {}, x, **given)[0], x)
            return y, back(weight)[0]

        kinds = torch.nn.TransformerDecoderLayer, torch.nn.TransformerEncoderLayer
        theirs = kinds[not decoder](
            *(8, 2, 12, 0.0),
            activation=lambda h: torch.nn.functional.gelu(h, approximate="tanh"),
            batch_first=True,
            norm_first=True,
            dtype=getattr(torch, dtype),
        )
        into_torch(torch, theirs, params)
        own = torch.tensor(np.array(x), requires_grad=True)
        later = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
        y = (
            theirs(own, torch.tensor(context.copy()), tgt_mask=later)
            if decoder
            else theirs(own, src_mask=later if " " in kind else None)
        )
        y.backward(torch.tensor(np.asarray(weight)))
        for a, b in zip(both(x), (y.detach(), own.grad), strict=True):
            a, b = np.asarray(a, np.float64), b.numpy().astype(np.float64)
            assert np.abs(a - b).max() <= bound * np.abs(b).max()


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_reads_from_left_to_right(tied):
    model = fdl.gpt(11, 6, layers=2, heads=2, features=8, tied=tied)
    ids = np.int32([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    params, _ = model.init(KEY, ids)
    assert ("head" in params) is not tied
    assert params["block"]["1"]["mix"]["feed_forward_0"]["up"]["w"].shape == (8, 32)
    look = fdl.capture(model, "norm")

    @compiled
    def every(params, ids):
        return model.apply(params, {}, ids)[0], look(params, {}, ids)["norm"]

    changed = ids.copy()
    changed[:, 3] = 7
    (y, h), (other, _) = every(params, ids), every(params, changed)
    np.testing.assert_allclose(y[:, :3], other[:, :3], rtol=1e-5, atol=1e-6)
    assert (np.abs(y[:, 3:] - other[:, 3:]) > 1e-4).any(-1).all()
    scores = np.asarray(params["embed"]["w"]).T if tied else np.asarray(params["head"]["w"])
    np.testing.assert_allclose(y, h @ scores, rtol=1e-4, atol=1e-5)


def test_vit_classifies_the_mean_of_its_patches():
    model = fdl.vit(3, (4, 6), 2, layers=1, heads=2, features=8)
    x = normals(2, 4, 6, 1, dtype="float32")
    params = jax.tree.map(np.asarray, model.init(KEY, x)[0])
    look = fdl.capture(model, "patch", "norm")
    every = compiled(lambda x: (model.apply(params, {}, x)[0], look(params, {}, x), patches(x, 2)))
    y, seen, found = every(x)
    tokens = np.stack(
        [np.asarray(x)[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2) for j in (0, 2, 4)],
        1,
    )
    np.testing.assert_array_equal(found, tokens)
    expected = tokens @ params["patch"]["w"] + params["patch"]["b"]
    np.testing.assert_allclose(seen["patch"], expected, rtol=1e-5, atol=1e-6)
    mean = seen["norm"].mean(1)
    np.testing.assert_allclose(
        y, mean @ params["head"]["w"] + params["head"]["b"], rtol=1e-5, atol=1e-6
    )


def test_an_image_of_vit_may_be_one_number():
    one, two = (fdl.vit(3, image, 4, layers=1, heads=2, features=8) for image in (8, (8, 8)))
    x = array(np.ones((2, 8, 8, 3)))
    every = [jax.jit(model.apply)(*model.init(KEY, x), x)[0] for model in (one, two)]
    np.testing.assert_array_equal(*every)


@pytest.mark.parametrize("image", [(8,), (8, 8, 3), "8", 8.0, 0, None])
def test_what_is_no_size_of_an_image_is_told(image):
    told = r"^vit: expected image to be an integer >= 1, or \(H, W\), got .*; pass 224 for square"
    with pytest.raises(ValueError, match=told):
        fdl.vit(3, image, 4, layers=1, heads=2, features=8)


@pytest.mark.parametrize("patch", [0, 4])
def test_vit_refuses_a_patch_that_does_not_divide(patch):
    message = (
        f"vit: expected a patch that divides the image 4 x 6, got {patch}; pass a common divisor "
        f"of height and width"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        fdl.vit(3, (4, 6), patch, layers=1, heads=2, features=8)


SEEDED_BUGS = {
    "fdl/models/transformer.py": (
        "models/test_transformer.py models/test_famous_models.py",
        [
            ("        causal=causal,\n", ""),
            ("        kv_heads=kv_heads,\n        causal=causal,", "        causal=causal,"),
            (".swapaxes(2, 3)", ""),
            ("chain(residual(layer), norm)", "residual(layer, norm)"),
            ("if norm_first else identity", "if True else identity"),
            ("f.embed(ids) + f.types(types)", "f.embed(ids)"),
            ("f.embed_norm(f.positions(h))", "f.positions(f.embed_norm(h))"),
            ("h[:, 0] if class_token", "h[:, -1] if class_token"),
            ("        gate=gate,\n        bias=bias,", "        bias=bias,"),
        ],
    ),
}
