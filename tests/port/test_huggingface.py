"""Models from folders of Hugging Face: logits and all gradients are those of transformers.

Where transformers is not installed, GPT-2, Llama and BERT are compared with the same networks
written by hand in torch, under the names of Hugging Face.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fdl
from fdl.port import hugging_face_names, to_torch
from fdl.port.config import read_config
from fdl.port.huggingface import BERT as BERT_FIELDS
from fdl.port.huggingface import GPT2 as GPT2_FIELDS
from fdl.port.huggingface import LLAMA as LLAMA_FIELDS
from fdl.port.huggingface_images import RESNET as RESNET_FIELDS
from fdl.port.huggingface_images import VIT as VIT_FIELDS
from fdl.port.huggingface_images import vit_names
from fdl.port.rotations import rotation

IDS = np.random.default_rng(0).integers(1, 31, (3, 6))
TYPES = (np.arange(6) > np.array([[2], [3], [1]])).astype(int)
SEEN = np.arange(6) < np.array([[6], [4], [3]])
BAR = 1e-5  # relative to the largest number of the array


def channels_last(images):
    return images.transpose(0, 2, 3, 1)


def close(ours, theirs, what, scale=None):
    largest = np.abs(theirs).max() if scale is None else scale
    assert np.abs(ours - theirs).max() <= BAR * largest, what


def assert_same_function(folder, build, x, logits, weights, train=False, **inputs):
    """Logits, and the gradients of all weights of torch, of a sum of logits with random weights.

    Args:
      logits: a tensor of torch; `weights` are the leaf tensors from which it was computed, by name.
    """
    import torch

    model, params, *state = build(folder)
    tree = {"state": state[0]} if state else {}
    random = np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
    (logits * torch.from_numpy(random)).sum().backward()

    def loss(params):
        y, new = model.apply(params, tree.get("state", {}), jnp.asarray(x), train=train, **inputs)
        return (y * random).sum(), (y, new)

    (_, (y, new)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    close(np.asarray(y), logits.detach().numpy(), "logits")
    ours = to_torch(
        {"params": gradients, "state": new} if state else gradients, named(folder, weights)
    )
    theirs = {n: each.grad.numpy() for n, each in weights.items() if each.grad is not None}
    assert set(theirs) <= set(ours) and len(theirs) > 5
    whole = max(np.abs(each).max() for each in theirs.values())
    for name, each in theirs.items():
        # The softmax does not see the bias of the keys, so its gradient is rounding alone. In the
        # gradients of batch norm, large terms cancel.
        blind = train or name.endswith(("key.bias", "k_proj.bias"))
        close(ours[name], each, name, whole if blind else None)
    return ours


def named(folder, weights):
    """The table of a folder, for the names in memory: those of a ViT differ from a file's."""
    if any(name.startswith("vit.layers") for name in weights):
        return vit_names(read_config(folder, VIT_FIELDS), weights)
    return hugging_face_names(folder)


# Against transformers.


def scrambled(torch, module):
    """Random weights, so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in module.named_parameters():
            scale = "norm" in name.lower() and name.endswith("weight")
            each.copy_(torch.randn(each.shape, generator=generator) * 0.3 + float(scale))
        for name, each in module.named_buffers():
            if "running" in name:
                each.copy_(torch.rand(each.shape, generator=generator) + 0.5)
    return module


def compared(folder, build, kind, x, convert=lambda x: x, train=False, given=None, **config):
    transformers = pytest.importorskip("transformers", reason="transformers is not here")
    torch = pytest.importorskip("torch", reason="torch is not here")
    settings = getattr(transformers, f"{kind[0]}Config")(**config)
    module = scrambled(torch, getattr(transformers, kind[0] + kind[1])(settings))
    module.save_pretrained(folder)
    module.train(train)
    given = given or {}
    out = module(torch.from_numpy(x), **{n: torch.from_numpy(v[0]) for n, v in given.items()})
    logits = out.logits if hasattr(out, "logits") else out.last_hidden_state
    inputs = {v[1]: jnp.asarray(v[2]) for v in given.values()}
    weights = dict(module.named_parameters())
    ours = assert_same_function(folder, build, convert(x), logits, weights, train=train, **inputs)
    written = to_torch(read(folder, build), named(folder, weights))
    for name, each in module.state_dict().items():
        if "running" in name:
            close(ours[name], each.numpy(), name)
        elif name in written:
            np.testing.assert_array_equal(written[name], each.numpy())
    return module


def read(folder, build):
    _, params, *state = build(folder)
    return {"params": params, "state": state[0]} if state else params


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("heads", "layers", "features", "hidden"), [(1, 1, 8, None), (3, 2, 15, 7), (4, 17, 32, 64)]
)
def test_gpt2(tmp_path, heads, layers, features, hidden, tied):
    sizes = {"n_head": heads, "n_layer": layers, "n_embd": features, "n_inner": hidden}
    sizes |= {"vocab_size": 31, "n_positions": 9, "bos_token_id": 1, "eos_token_id": 2}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    kind = ("GPT2", "LMHeadModel")
    compared(tmp_path, fdl.port.gpt2, kind, IDS, tie_word_embeddings=tied, **sizes, **off)


LLAMA_3 = {
    **{"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 2, "hidden_act": "gelu"},
        {"num_key_value_heads": 1, "mlp_bias": True, "rms_norm_eps": 1e-3},
        {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
        {"rope_parameters": LLAMA_3},
        {"rope_parameters": LLAMA_3, "max_position_embeddings": 4},
    ],
    ids=str,
)
def test_llama(tmp_path, options):
    sizes = {"hidden_size": 32, "intermediate_size": 23, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "vocab_size": 31, "max_position_embeddings": 64}
    compared(tmp_path, fdl.port.llama, ("Llama", "ForCausalLM"), IDS, **{**sizes, **options})


BERT = {"vocab_size": 31, "hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
BERT |= {"intermediate_size": 20, "max_position_embeddings": 9, "layer_norm_eps": 1e-6}


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForMaskedLM untied", "Model"])
def test_bert(tmp_path, kind):
    kind, _, untied = kind.partition(" ")
    given = {"token_type_ids": (TYPES, "types", TYPES.astype(np.int32))}
    config = {**BERT, "tie_word_embeddings": not untied}
    module = compared(tmp_path, fdl.port.bert, ("Bert", kind), IDS, given=given, **config)
    import torch

    model, params = fdl.port.bert(tmp_path)
    y, _ = model.apply(params, {}, jnp.asarray(IDS), mask=jnp.asarray(SEEN[:, None, None, :]))
    with torch.no_grad():
        out = module(torch.from_numpy(IDS), attention_mask=torch.from_numpy(SEEN.astype(int)))
    logits = (out.logits if kind != "Model" else out.last_hidden_state).numpy()
    close(np.asarray(y)[SEEN], logits[SEEN], "logits with padding")


@pytest.mark.parametrize(("image", "patch"), [([12, 8], 4), (9, 3)])
def test_vit(tmp_path, image, patch):
    size = image if isinstance(image, list) else [image, image]
    images = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
    config = {"hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
    config |= {"intermediate_size": 20, "image_size": image, "patch_size": patch, "num_labels": 5}
    kind = ("ViT", "ForImageClassification")
    compared(tmp_path, fdl.port.vit, kind, images, channels_last, **config)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("kind", "widths"), [("basic", [4, 8, 16]), ("bottleneck", [16, 32])])
def test_resnet(tmp_path, kind, widths, train):
    images = np.random.default_rng(1).normal(size=(3, 3, 33, 40)).astype(np.float32)
    config = {"embedding_size": 4, "hidden_sizes": widths, "depths": [2, 1, 2][: len(widths)]}
    config |= {"layer_type": kind, "num_labels": 5}
    name = ("ResNet", "ForImageClassification")
    compared(tmp_path, fdl.port.resnet, name, images, channels_last, train=train, **config)


def test_shards_and_torch_files_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not here")
    torch = pytest.importorskip("torch", reason="torch is not here")
    config = transformers.GPT2Config(**SMALL, tie_word_embeddings=False)
    module = scrambled(torch, transformers.GPT2LMHeadModel(config))
    module.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = fdl.port.gpt2(tmp_path)[1]
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    for path, leaf in fdl.paths.leaves(fdl.port.gpt2(tmp_path)[1]).items():
        np.testing.assert_array_equal(leaf, fdl.paths.leaves(sharded)[path])


# By hand, in torch. The names and the config are those of files from the hub.

SMALL = {"vocab_size": 31, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3}


def saved(folder, config, shapes):
    """A folder of random weights; returns them as leaf tensors of torch."""
    torch = pytest.importorskip("torch", reason="torch is not here: nothing was compared")
    rng = np.random.default_rng(3)
    arrays = {
        name: (rng.normal(size=shape) * 0.3 + 0.5 * (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return {name: torch.from_numpy(each).requires_grad_() for name, each in arrays.items()}


def attended(q, k, v, heads, causal):
    """softmax(q k^T / sqrt(K)) v; keys and values may have fewer heads."""
    import torch

    b, t, _ = q.shape
    q, k, v = (each.reshape(b, t, -1, q.shape[-1] // heads).transpose(1, 2) for each in (q, k, v))
    k, v = (each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("prefix", "tied"), [("", True), ("transformer.", False)])
def test_gpt2_by_hand(tmp_path, prefix, tied):
    block = {"ln_1.weight": (12,), "ln_1.bias": (12,), "ln_2.weight": (12,), "ln_2.bias": (12,)}
    block |= {"attn.c_attn.weight": (12, 36), "attn.c_attn.bias": (36,), "attn.bias": (1, 1, 9, 9)}
    block |= {"attn.c_proj.weight": (12, 12), "attn.c_proj.bias": (12,)}
    block |= {"mlp.c_fc.weight": (12, 48), "mlp.c_fc.bias": (48,)}
    block |= {"mlp.c_proj.weight": (48, 12), "mlp.c_proj.bias": (12,)}
    shapes = {"wte.weight": (31, 12), "wpe.weight": (9, 12)}
    shapes |= {"ln_f.weight": (12,), "ln_f.bias": (12,)}
    shapes |= {f"h.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    shapes |= {} if tied else {"lm_head.weight": (31, 12)}
    config = {**SMALL, "model_type": "gpt2", "n_ctx": 9, "layer_norm_epsilon": 1e-3}
    weights = saved(tmp_path, {**config, "tie_word_embeddings": tied}, shapes)
    w = {name.removeprefix(prefix): each for name, each in weights.items()}
    import torch
    from torch.nn.functional import gelu, layer_norm

    def norm(h, name):
        return layer_norm(h, (12,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-3)

    h = w["wte.weight"][torch.from_numpy(IDS)] + w["wpe.weight"][:6]
    for n in range(2):
        x = norm(h, f"h.{n}.ln_1") @ w[f"h.{n}.attn.c_attn.weight"] + w[f"h.{n}.attn.c_attn.bias"]
        x = attended(*x.split(12, -1), 3, causal=True)
        h = h + x @ w[f"h.{n}.attn.c_proj.weight"] + w[f"h.{n}.attn.c_proj.bias"]
        x = norm(h, f"h.{n}.ln_2") @ w[f"h.{n}.mlp.c_fc.weight"] + w[f"h.{n}.mlp.c_fc.bias"]
        x = gelu(x, approximate="tanh") @ w[f"h.{n}.mlp.c_proj.weight"]
        h = h + x + w[f"h.{n}.mlp.c_proj.bias"]
    logits = norm(h, "ln_f") @ w["wte.weight" if tied else "lm_head.weight"].T
    assert_same_function(tmp_path, fdl.port.gpt2, IDS, logits, weights)


def test_llama_by_hand(tmp_path):
    block = {"self_attn.q_proj.weight": (12, 12), "self_attn.k_proj.weight": (4, 12)}
    block |= {"self_attn.v_proj.weight": (4, 12), "self_attn.o_proj.weight": (12, 12)}
    block |= {"mlp.gate_proj.weight": (7, 12), "mlp.up_proj.weight": (7, 12)}
    block |= {"mlp.down_proj.weight": (12, 7), "input_layernorm.weight": (12,)}
    block |= {"post_attention_layernorm.weight": (12,), "self_attn.rotary_emb.inv_freq": (2,)}
    shapes = {"model.embed_tokens.weight": (31, 12), "model.norm.weight": (12,)}
    shapes |= {"lm_head.weight": (31, 12)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    config = {"model_type": "llama", "vocab_size": 31, "hidden_size": 12, "intermediate_size": 7}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1}
    config |= {"rope_theta": 500.0, "rms_norm_eps": 1e-3, "torch_dtype": "float32"}
    w = saved(tmp_path, config, shapes)
    import torch
    from torch.nn.functional import silu

    def norm(h, name):
        return h / (h.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * w[f"{name}.weight"]

    def turned(x):
        angles = torch.arange(6)[:, None] * torch.tensor([1.0, 500.0**-0.5])
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        x = x.reshape(3, 6, -1, 4)
        one, two = x[..., :2], x[..., 2:]
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).reshape(3, 6, -1)

    h = w["model.embed_tokens.weight"][torch.from_numpy(IDS)]
    for n in range(2):
        of = f"model.layers.{n}"
        x = norm(h, f"{of}.input_layernorm")
        q, k, v = (x @ w[f"{of}.self_attn.{each}_proj.weight"].T for each in "qkv")
        x = attended(turned(q), turned(k), v, 3, causal=True)
        h = h + x @ w[f"{of}.self_attn.o_proj.weight"].T
        x = norm(h, f"{of}.post_attention_layernorm")
        gate, up = (x @ w[f"{of}.mlp.{each}_proj.weight"].T for each in ("gate", "up"))
        h = h + (silu(gate) * up) @ w[f"{of}.mlp.down_proj.weight"].T
    logits = norm(h, "model.norm") @ w["lm_head.weight"].T
    assert_same_function(tmp_path, fdl.port.llama, IDS, logits, w)


@pytest.mark.slow
def test_bert_by_hand(tmp_path):
    """With the names gamma and beta of old files, and layers that are left out."""
    parts = {"attention.self.query": (15, 15), "attention.self.key": (15, 15)}
    parts |= {"attention.self.value": (15, 15), "attention.output.dense": (15, 15)}
    parts |= {"intermediate.dense": (20, 15), "output.dense": (15, 20)}
    of = [f"bert.encoder.layer.{n}" for n in range(2)]
    shapes = {f"{o}.{name}.weight": shape for o in of for name, shape in parts.items()}
    shapes |= {f"{o}.{name}.bias": shape[:1] for o in of for name, shape in parts.items()}
    norms = [f"{o}.{each}output" for o in of for each in ("attention.", "")]
    norms += ["bert.embeddings", "cls.predictions.transform"]
    shapes |= {f"{n}.LayerNorm.{leaf}": (15,) for n in norms for leaf in ("gamma", "beta")}
    tables = {"word": 31, "position": 9, "token_type": 2}
    shapes |= {f"bert.embeddings.{n}_embeddings.weight": (rows, 15) for n, rows in tables.items()}
    shapes |= {"cls.predictions.transform.dense.weight": (15, 15), "cls.predictions.bias": (31,)}
    shapes |= {"cls.predictions.transform.dense.bias": (15,), "bert.pooler.dense.bias": (15,)}
    shapes |= {"bert.pooler.dense.weight": (15, 15), "cls.seq_relationship.weight": (2, 15)}
    config = {**BERT, "model_type": "bert", "architectures": ["BertForMaskedLM"]}
    w = saved(tmp_path, {**config, "layer_norm_eps": 1e-3}, shapes)
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    def norm(h, name):
        name = f"{name}.LayerNorm"
        return layer_norm(h, (15,), w[f"{name}.gamma"], w[f"{name}.beta"], 1e-3)

    def dense(h, name):
        return linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    tables = {n: w[f"bert.embeddings.{n}_embeddings.weight"] for n in tables}
    h = tables["word"][torch.from_numpy(IDS)] + tables["token_type"][torch.from_numpy(TYPES)]
    h = norm(h + tables["position"][:6], "bert.embeddings")
    for o in of:
        q, k, v = (dense(h, f"{o}.attention.self.{each}") for each in ("query", "key", "value"))
        x = dense(attended(q, k, v, 3, causal=False), f"{o}.attention.output.dense")
        h = norm(h + x, f"{o}.attention.output")
        h = norm(
            h + dense(gelu(dense(h, f"{o}.intermediate.dense")), f"{o}.output.dense"), f"{o}.output"
        )
    h = norm(gelu(dense(h, "cls.predictions.transform.dense")), "cls.predictions.transform")
    logits = h @ tables["word"].T + w["cls.predictions.bias"]
    types = jnp.asarray(TYPES.astype(np.int32))
    assert_same_function(tmp_path, fdl.port.bert, IDS, logits, w, types=types)


def test_weights_in_half_precision_become_float32(tmp_path):
    config = {**SMALL, "model_type": "gpt2"}
    model = fdl.gpt(31, 9, layers=2, heads=3, features=12)
    params, _ = model.init(jax.random.key(0), jnp.asarray(IDS))
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"wte.weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    to_torch(half, hugging_face_names(tmp_path), file=tmp_path / "model.safetensors")
    assert {str(each.dtype) for each in load_file(tmp_path / "model.safetensors").values()} == {
        "bfloat16"
    }
    _, found = fdl.port.gpt2(tmp_path)
    for path, leaf in fdl.paths.leaves(found).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, fdl.paths.leaves(half)[path].astype(jnp.float32))


def transformers_angles(positions, base, width, given):
    """What `LlamaRotaryEmbedding` of transformers computes, in float64; there is no last one."""
    frequencies = base ** (-np.arange(0, width, 2) / width)
    if given["rope_type"] == "linear":
        return positions[:, None] * (frequencies / given["factor"])
    length, factor = given["original_max_position_embeddings"], given["factor"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    waves = 2 * np.pi / frequencies
    slow = np.where(waves > length / low, frequencies / factor, frequencies)
    smooth = (length / waves - low) / (high - low)
    between = (waves <= length / low) & (waves >= length / high)
    mixed = (1 - smooth) * slow / factor + smooth * slow
    return positions[:, None] * np.where(between, mixed, slow)


@pytest.mark.parametrize("given", [LLAMA_3, {"rope_type": "linear", "factor": 3.0}], ids=str)
def test_positions_of_llama_have_no_end(tmp_path, given):
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 7, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 4, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "rope_scaling": given}))
    options = {"hidden": 7, "tied": False, "rotary": True, "norm": fdl.rms_norm()}
    options |= {"gate": True, "bias": False}
    same = fdl.gpt(31, None, layers=1, heads=2, features=32, **options)
    params, _ = same.init(jax.random.key(0), jnp.asarray(IDS))
    to_torch(params, hugging_face_names(tmp_path), file=tmp_path / "model.safetensors")
    model, params = fdl.port.llama(tmp_path)
    whole = np.asarray(fdl.stateless(model)(params, jnp.asarray(IDS)))  # 6 positions
    assert np.isfinite(whole).all()
    part = fdl.stateless(model)(params, jnp.asarray(IDS[:, :4]))
    np.testing.assert_allclose(whole[:, :4], part, rtol=1e-5, atol=1e-5)
    config = read_config(tmp_path, LLAMA_FIELDS)
    positions = np.array([0, 1, 5, 63, 100_003, 2**30 + 1])
    x = np.random.default_rng(0).normal(size=(6, 1, 16)).astype(np.float32)
    found = rotation(config, 16)(jnp.asarray(x), jnp.asarray(positions))
    angles = transformers_angles(positions, given.get("rope_theta", 1e4), 16, given)[:, None]
    one, two = x[..., :8], x[..., 8:]
    turned = [one * np.cos(angles) - two * np.sin(angles)]
    turned += [two * np.cos(angles) + one * np.sin(angles)]
    np.testing.assert_allclose(found, np.concatenate(turned, -1), rtol=0, atol=5e-6)


# Configs and folders that are refused.

AGAIN = "correct this field, or download the file again"
ELSEWHERE = "build this model from fdl's layers, and load it with fdl.port.from_torch"
LLAMA = {"vocab_size": 31, "hidden_size": 12, "intermediate_size": 7, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 3}
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 12, "num_hidden_layers": 1}
VIT |= {"num_attention_heads": 3, "intermediate_size": 7}
RESNET = {"depths": [1], "hidden_sizes": [64], "layer_type": "basic"}
REFUSED = {
    "gpt2": (
        {**SMALL, "scale_attn_by_inverse_layer_idx": True},
        f"scale_attn_by_inverse_layer_idx False in @, got True; {ELSEWHERE}",
    ),
    "gpt2 scale": (
        {**SMALL, "scale_attn_weights": False},
        f"scale_attn_weights True in @, got False; {ELSEWHERE}",
    ),
    "gpt2 activation": (
        {**SMALL, "activation_function": "quick_gelu"},
        "activation_function as one of 'gelu_new', 'gelu_pytorch_tanh', 'gelu', 'relu', 'silu', "
        f"'swish' in @, got 'quick_gelu'; {ELSEWHERE}",
    ),
    "gpt2 class": (
        {**SMALL, "architectures": ["GPT2ForSequenceClassification"]},
        "architectures GPT2LMHeadModel, GPT2Model in @, got ['GPT2ForSequenceClassification']; "
        f"{ELSEWHERE}",
    ),
    "gpt2 quantized": (
        {**SMALL, "quantization_config": {"bits": 4}},
        f"quantization_config None in @, got {{'bits': 4}}; {ELSEWHERE}",
    ),
    "gpt2 unknown": (
        {**SMALL, "logit_scale": 2.0},
        "only fields that it knows in @, got 'logit_scale', which may change the result; if it "
        "does not, remove it from the file",
    ),
    "gpt2 field": (
        {name: value for name, value in SMALL.items() if name != "n_head"},
        "the field 'n_head' in @, got none; download it again",
    ),
    "llama": (
        {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        f"rope_type 'default' or 'linear' or 'llama3' in @, got 'dynamic'; {ELSEWHERE}",
    ),
    "llama field": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0, "beta": 3.0}},
        f"rope_parameters without 'beta' in @, got 3.0; {ELSEWHERE}",
    ),
    "llama twice": (
        {
            **LLAMA,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default"},
        },
        "rope_scaling the same as rope_parameters in @, got {'rope_type': 'linear', 'factor': "
        f"2.0}}; {ELSEWHERE}",
    ),
    "llama parts": ({**LLAMA, "pretraining_tp": 2}, f"pretraining_tp 1 in @, got 2; {ELSEWHERE}"),
    "llama type": (
        {**LLAMA, "model_type": "mistral"},
        f"model_type 'llama' in @, got 'mistral'; {ELSEWHERE}",
    ),
    "bert": (
        {**BERT, "position_embedding_type": "relative_key"},
        f"position_embedding_type 'absolute' in @, got 'relative_key'; {ELSEWHERE}",
    ),
    "bert decoder": ({**BERT, "is_decoder": True}, f"is_decoder False in @, got True; {ELSEWHERE}"),
    "vit": ({**VIT, "qkv_bias": False}, f"qkv_bias True in @, got False; {ELSEWHERE}"),
    "resnet": (
        {**RESNET, "hidden_sizes": [32]},
        f"hidden_sizes [64] in @, got [32]; {ELSEWHERE}",
    ),
    "resnet block": (
        {**RESNET, "layer_type": "wide"},
        f"layer_type 'basic' or 'bottleneck' in @, got 'wide'; {ELSEWHERE}",
    ),
    "gpt2 heads": (
        {**SMALL, "n_head": 5},
        f"n_head as a divisor of n_embd, 12, in @, got 5; {AGAIN}",
    ),
    "gpt2 text": (
        {**SMALL, "n_layer": "2"},
        f"n_layer as an integer in [1, 2**31) in @, got '2'; {AGAIN}",
    ),
    "gpt2 epsilon": (
        {**SMALL, "layer_norm_epsilon": float("nan")},
        f"layer_norm_epsilon as a number in (0, 1e38) in @, got nan; {AGAIN}",
    ),
    "llama heads": (
        {**LLAMA, "num_key_value_heads": 2},
        f"num_key_value_heads as a divisor of num_attention_heads, 3, in @, got 2; {AGAIN}",
    ),
    "llama width": (
        {**LLAMA, "hidden_size": 15},
        f"head_dim as an even number in @, got 5; {ELSEWHERE}",
    ),
    "llama flag": (
        {**LLAMA, "mlp_bias": "no"},
        f"mlp_bias as true or false in @, got 'no'; {AGAIN}",
    ),
    "llama factor": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 0}},
        f"factor as a number in (0, 1e38) in @, got 0; {AGAIN}",
    ),
    "llama no factor": (
        {**LLAMA, "rope_scaling": {"type": "linear"}},
        "the field 'factor' in @, got none; download it again",
    ),
    "llama frequencies": (
        {**LLAMA, "hidden_size": 12, "rope_scaling": {**LLAMA_3, "low_freq_factor": 4.0}},
        f"high_freq_factor as a number above low_freq_factor, 4.0, in @, got 4.0; {AGAIN}",
    ),
    "vit image": (
        {**VIT, "image_size": [8, 10]},
        f"image_size as a multiple of patch_size, 4, in @, got [8, 10]; {ELSEWHERE}",
    ),
    "vit images": (
        {**VIT, "image_size": [8, 8, 8]},
        f"image_size as one or two integers in [1, 2**31) in @, got [8, 8, 8]; {AGAIN}",
    ),
    "vit classes": (
        {**VIT, "id2label": {}},
        f"id2label as a dict with a name for each class in @, got {{}}; {AGAIN}",
    ),
    "resnet depths": (
        {**RESNET, "depths": [1, 0]},
        f"depths as a list of integers in [1, 2**31) in @, got [1, 0]; {AGAIN}",
    ),
    "resnet stride": (
        {**RESNET, "downsample_in_bottleneck": True},
        f"downsample_in_bottleneck False in @, got True; {ELSEWHERE}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_would_change_the_result_is_refused_by_name(tmp_path, name):
    config, message = REFUSED[name]
    kind = name.partition(" ")[0]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    message = f"{kind}: expected {message.replace('@', f'{tmp_path}/config.json')}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(fdl.port, kind)(tmp_path)


ODD = ["12", "", 0, -3, 2.5, True, None, [], {}, [[]], [8, 0], {"type": []}, 10**30]
ODD += [float("nan"), float("inf")]
SMALLEST = {
    "gpt2": (GPT2_FIELDS, SMALL),
    "llama": (LLAMA_FIELDS, LLAMA),
    "bert": (BERT_FIELDS, BERT),
    "vit": (VIT_FIELDS, VIT),
    "resnet": (RESNET_FIELDS, RESNET),
}


@pytest.mark.parametrize("kind", SMALLEST)
def test_an_odd_value_is_used_or_refused_by_the_name_of_its_field(tmp_path, kind):
    """A value that can be used leads to weights that do not fit: the folder has one of them."""
    file, counts = tmp_path / "config.json", {"used": 0, "refused": 0}
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    fields, config = SMALLEST[kind]
    cases = [(name, value) for name in [*fields.used, "architectures"] for value in ODD]
    if kind == "llama":
        cases += [("rope_scaling", {**LLAMA_3, name: odd}) for name in LLAMA_3 for odd in ODD]
    for name, value in cases:
        file.write_text(json.dumps({"model_type": kind, **config, name: value}))
        with pytest.raises(fdl.checks.OptionError, match=f"^{kind}: expected ") as caught:
            getattr(fdl.port, kind)(tmp_path)
        told = str(caught.value)
        of = next((n for n in LLAMA_3 if f" {n} " in told), name) if value else name
        one_line = "\n" not in told and re.search(f"expected {of} .* in {file}, got .*; .", told)
        fits = told.startswith(f"{kind}: expected tensors that fit ")
        assert one_line or fits, (name, value, told)
        counts["used" if fits else "refused"] += 1
    assert counts["refused"] > 4 * counts["used"] > 0


def test_a_kind_of_model_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "config.json"
    for given, got in ((["gpt2"], "['gpt2']"), (None, "None"), ({}, "{}")):
        file.write_text(json.dumps({"model_type": given}))
        message = (
            "hugging_face_names: expected a model_type among gpt2, llama, bert, vit, resnet in "
            f"{file}, got {got}; write the table for fdl.port.from_torch"
        )
        refused(ValueError, lambda: hugging_face_names(tmp_path), message)
    message = "hugging_face_names: expected the path of a folder, got 3; pass a path"
    refused(ValueError, lambda: hugging_face_names(3), message)
    file.write_text("[1]")
    message = f"hugging_face_names: expected a dict in {file}, got [1]; download it again"
    refused(ValueError, lambda: hugging_face_names(tmp_path), message)


def refused(kind, f, message):
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        f()


def test_folders_that_are_not_whole_are_refused(tmp_path):
    gpt2, file = fdl.port.gpt2, tmp_path / "config.json"
    refused(ValueError, lambda: gpt2(3), "gpt2: expected the path of a folder, got 3; pass a path")
    message = (
        f"gpt2: expected config.json in the folder {tmp_path}, got no such file; download the "
        "whole model"
    )
    refused(FileNotFoundError, lambda: gpt2(tmp_path), message)
    file.write_text("[]")
    message = f"gpt2: expected a dict in {file}, got []; download it again"
    refused(ValueError, lambda: gpt2(tmp_path), message)
    file.write_text(json.dumps({**SMALL, "model_type": "gpt2"}))
    with pytest.raises(FileNotFoundError, match=r"in this folder, got none; download the whole mo"):
        gpt2(tmp_path)
    save_file({"wte.weight": np.zeros((31, 11), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^gpt2: expected tensors that fit the 36 paths") as seen:
        gpt2(tmp_path)
    assert "  missing: h.1.mlp.c_fc.bias for block/1/mix/feed_forward_0/up/b float32 [48]" in (
        str(seen.value).splitlines()
    )
    file.write_text(json.dumps({**SMALL, "model_type": "gpt_neo"}))
    message = (
        "hugging_face_names: expected a model_type among gpt2, llama, bert, vit, resnet in "
        f"{file}, got 'gpt_neo'; write the table for fdl.port.from_torch"
    )
    refused(ValueError, lambda: hugging_face_names(tmp_path), message)


SEEDED_BUGS = {
    "fdl/port/huggingface.py": (
        "port/test_huggingface.py -k by_hand_or_refused_or_no_end",
        [
            ("c_attn.weight | split 1", "c_attn.weight: (s o) i -> i (s o), s=3 | split 1"),
            ("norm_first=False", "norm_first=True"),
            ('divided("gpt2", config, "n_embd", "n_head")', "pass"),
            ("{gate_proj,up_proj,down_proj}}.weight", "{up_proj,gate_proj,down_proj}}.weight"),
            ("tied=config", "tied=True or config"),
        ],
    ),
    "fdl/port/rotations.py": (
        "port/test_huggingface.py -k by_hand_or_refused_or_no_end",
        [
            ('POSITIVE.by_default(config["rope_theta"])', "POSITIVE.by_default(10000.0)"),
            ("tuple(frequencies)", "tuple(frequencies[::-1])"),
            ("if low >= high:", "if False:"),
        ],
    ),
    "fdl/port/config.py": (
        "port/test_huggingface.py -k by_hand_or_refused",
        [
            ("if name not in {*used,", "if name in {"),
            ("if not field.fits(value) and", "if value is None and"),
            ("is_count(value) and value < 2**31", "is_count(value, 0)"),
            ("0 < value < 1e38", "value > 0"),
            ("isinstance(value, str) and value in ACTIVATIONS", "value in ACTIVATIONS"),
        ],
    ),
}
