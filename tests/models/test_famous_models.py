"""Llama, BERT, ViT and ResNet-50 made with `fdl.models`, against torch code of the publications.

The torch functions take weights by the names of the published checkpoints, so the tests also check
where every weight goes.
"""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.programs import array, waves

NEAR = 2e-5


def exact_gelu(x):
    return fdl.gelu(x, approximate=False)


def llama(vocabulary=11, layers=2, heads=4, features=16, **options):
    own = {"hidden": 24, "kv_heads": 2, "norm": fdl.rms_norm(epsilon=1e-6), "rotary": True}
    own |= {"activation": fdl.silu, "gate": True, "bias": False, "tied": False}
    return fdl.gpt(vocabulary, None, layers, heads, features, **own | options)


def bert(vocabulary=11, length=8, layers=2, heads=4, features=16, **options):
    own = {"norm": fdl.layer_norm(epsilon=1e-12), "norm_first": False, "activation": exact_gelu}
    own |= {"token_types": 2, "embed_norm": True}
    return fdl.encoder(vocabulary, length, layers, heads, features, **own | options)


def vit(classes=3, image=(4, 6), patch=2, layers=2, heads=4, features=16, **options):
    own = {"norm": fdl.layer_norm(epsilon=1e-6), "activation": exact_gelu, "class_token": True}
    return fdl.vit(classes, image, patch, layers, heads, features, **own | options)


def resnet(classes=3, blocks=(2, 1), width=4, **options):
    own = {"block": "bottleneck", "stem": "large", "symmetric_padding": True}
    own |= {"norm": fdl.batch_norm(unbiased=True)}
    return fdl.resnet(classes, blocks, width=width, **own | options)


def classifier(model, features, classes):
    """BERT's classifier: it pools the output at the first token."""
    first = fdl.function(lambda h: h[..., 0, :], "first")
    return fdl.chain(
        bert=model, first=first, pool=fdl.dense(features), tanh=fdl.tanh, head=fdl.dense(classes)
    )


# Published numbers of weights.

IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
IDS = jax.ShapeDtypeStruct((1, 8), jnp.int32)
PUBLISHED = {
    "GPT-2": (lambda: fdl.gpt(50257, 1024, 12, 12, 768), IDS, 124_439_808),
    "Llama 2 7B": (
        lambda: llama(32000, 32, 32, 4096, hidden=11008, kv_heads=None),
        IDS,
        6_738_415_616,
    ),
    "Llama 3 8B": (
        lambda: llama(128256, 32, 32, 4096, hidden=14336, kv_heads=8),
        IDS,
        8_030_261_248,
    ),
    "BERT base": (lambda: bert(30522, 512, 12, 12, 768), IDS, 108_891_648),
    "BERT base, pooled": (
        lambda: fdl.chain(bert(30522, 512, 12, 12, 768), lambda h: h[:, 0], fdl.dense(768)),
        IDS,
        109_482_240,
    ),
    "ViT-B/16": (lambda: vit(1000, (224, 224), 16, 12, 12, 768), IMAGE, 86_567_656),
    "ResNet-18": (
        lambda: resnet(1000, (2, 2, 2, 2), 64, block="basic"),
        IMAGE,
        11_689_512,
    ),
    "ResNet-50": (lambda: resnet(1000, (3, 4, 6, 3), 64), IMAGE, 25_557_032),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_number_of_weights(name):
    make, x, weights = PUBLISHED[name]
    params, _ = jax.eval_shape(make().init, jax.random.key(0), x)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == weights


# Where every weight goes: fdl's path -> (the published name, a function of the weight).


def same(w):
    return w


def turned(w):
    return w.T


def dense_at(path, name, bias=True):
    found = {f"{path}/w": (f"{name}.weight", turned)}
    return found | ({f"{path}/b": (f"{name}.bias", same)} if bias else {})


def norm_at(path, name):
    return {f"{path}/scale": (f"{name}.weight", same), f"{path}/bias": (f"{name}.bias", same)}


def conv_at(path, name):
    return {f"{path}/w": (f"{name}.weight", lambda w: w.transpose(3, 2, 0, 1))}


def llama_names(layers=2):
    names = {"embed/w": ("model.embed_tokens.weight", same), "head/w": ("lm_head.weight", turned)}
    names["norm/scale"] = ("model.norm.weight", same)
    for i in range(layers):
        block, layer = f"block/{i}", f"model.layers.{i}"
        for ours, theirs in [("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")]:
            path = f"{block}/attend/attention_0/{ours}"
            names |= dense_at(path, f"{layer}.self_attn.{theirs}_proj", bias=False)
        for ours, theirs in [("up/gate", "gate"), ("up/value", "up"), ("down", "down")]:
            path = f"{block}/mix/feed_forward_0/{ours}"
            names |= dense_at(path, f"{layer}.mlp.{theirs}_proj", bias=False)
        for ours, theirs in [("attend", "input"), ("mix", "post_attention")]:
            path = f"{block}/{ours}/rms_norm_0/scale"
            names[path] = (f"{layer}.{theirs}_layernorm.weight", same)
    return names


def encoder_names(block, layer, attend, mix, query):
    """The names of one block that BERT and ViT share."""
    names = {}
    for ours, theirs in [("q", "query"), ("k", "key"), ("v", "value")]:
        names |= dense_at(f"{block}/attend/{attend}/{ours}", f"{layer}.attention.{query}.{theirs}")
    names |= dense_at(f"{block}/attend/{attend}/out", f"{layer}.attention.output.dense")
    names |= dense_at(f"{block}/mix/{mix}/up", f"{layer}.intermediate.dense")
    return names | dense_at(f"{block}/mix/{mix}/down", f"{layer}.output.dense")


def bert_names(layers=2):
    embeddings = "bert.embeddings"
    names = {
        f"bert/{ours}/w": (f"{embeddings}.{theirs}_embeddings.weight", same)
        for ours, theirs in [("embed", "word"), ("positions", "position"), ("types", "token_type")]
    }
    names |= norm_at("bert/embed_norm", f"{embeddings}.LayerNorm")
    for i in range(layers):
        block, layer = f"bert/block/{i}", f"bert.encoder.layer.{i}"
        parts = "residual_0/attention_0", "residual_0/feed_forward_0"
        names |= encoder_names(block, layer, *parts, "self")
        names |= norm_at(f"{block}/attend/layer_norm_0", f"{layer}.attention.output.LayerNorm")
        names |= norm_at(f"{block}/mix/layer_norm_0", f"{layer}.output.LayerNorm")
    return names | dense_at("pool", "bert.pooler.dense") | dense_at("head", "classifier")


def vit_names(layers=2, patch=2):
    def as_kernel(w):
        return w.reshape(patch, patch, -1, w.shape[-1]).transpose(3, 2, 0, 1)

    embeddings = "vit.embeddings"
    names = {"class_token/w": (f"{embeddings}.cls_token", lambda w: w[None])}
    names["positions/w"] = (f"{embeddings}.position_embeddings", lambda w: w[None])
    names["patch/w"] = (f"{embeddings}.patch_embeddings.projection.weight", as_kernel)
    names["patch/b"] = (f"{embeddings}.patch_embeddings.projection.bias", same)
    for i in range(layers):
        block, layer = f"block/{i}", f"vit.encoder.layer.{i}"
        names |= encoder_names(block, layer, "attention_0", "feed_forward_0", "attention")
        names |= norm_at(f"{block}/attend/layer_norm_0", f"{layer}.layernorm_before")
        names |= norm_at(f"{block}/mix/layer_norm_0", f"{layer}.layernorm_after")
    return names | norm_at("norm", "vit.layernorm") | dense_at("head", "classifier")


def resnet_names(blocks=(2, 1)):
    names = conv_at("conv_0", "conv1") | norm_at("batch_norm_0", "bn1")
    for stage, count in enumerate(blocks):
        for i in range(count):
            path, layer = f"stage_{stage}/block_{i}/parallel_0", f"layer{stage + 1}.{i}"
            for n in range(3):
                names |= conv_at(f"{path}/inside/conv_{n}", f"{layer}.conv{n + 1}")
                names |= norm_at(f"{path}/inside/batch_norm_{n}", f"{layer}.bn{n + 1}")
            if i == 0:
                names |= conv_at(f"{path}/shortcut/conv_0", f"{layer}.downsample.0")
                names |= norm_at(f"{path}/shortcut/batch_norm_0", f"{layer}.downsample.1")
    return names | dense_at("dense_0", "fc")


# The published definitions in torch.


class Torch:
    """Functions of torch over weights by name."""

    def __init__(self, torch, weights):
        self.torch, self.f, self.w = torch, torch.nn.functional, weights

    def linear(self, x, name):
        return self.f.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, x, name, epsilon):
        w, b = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return self.f.layer_norm(x, w.shape, w, b, epsilon)

    def rms(self, x, name, epsilon):
        size = self.torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        return self.w[f"{name}.weight"] * (x * size)

    def heads(self, x, count):
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def attend(self, q, k, v, seen=None):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        return (self.torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)

    def encoder_attention(self, x, layer, query, heads, seen=None):
        q, k, v = (
            self.heads(self.linear(x, f"{layer}.attention.{query}.{each}"), heads)
            for each in ("query", "key", "value")
        )
        return self.linear(self.attend(q, k, v, seen), f"{layer}.attention.output.dense")

    def encoder_mix(self, x, layer):
        up = self.f.gelu(self.linear(x, f"{layer}.intermediate.dense"))
        return self.linear(up, f"{layer}.output.dense")


def torch_llama(t, ids, layers=2, heads=4, kv_heads=2, base=10000.0, epsilon=1e-6):
    """Touvron et al. 2023; rotations of halves, as in the published weights."""
    torch = t.torch
    x = t.w["model.embed_tokens.weight"][ids]
    size = x.shape[-1] // heads
    frequencies = base ** -(torch.arange(0, size, 2).float() / size)
    turn = torch.arange(ids.shape[-1]).float()[:, None] * torch.cat([frequencies] * 2)
    seen = torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool).tril()

    def rotated(x):
        first, second = x.chunk(2, -1)
        return x * turn.cos() + torch.cat([-second, first], -1) * turn.sin()

    for i in range(layers):
        layer = f"model.layers.{i}"
        h = t.rms(x, f"{layer}.input_layernorm", epsilon)
        q, k, v = (
            t.heads(t.linear(h, f"{layer}.self_attn.{name}_proj"), count)
            for name, count in [("q", heads), ("k", kv_heads), ("v", kv_heads)]
        )
        k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (rotated(k), v))
        x = x + t.linear(t.attend(rotated(q), k, v, seen), f"{layer}.self_attn.o_proj")
        h = t.rms(x, f"{layer}.post_attention_layernorm", epsilon)
        gate, up = (t.linear(h, f"{layer}.mlp.{name}_proj") for name in ("gate", "up"))
        x = x + t.linear(t.f.silu(gate) * up, f"{layer}.mlp.down_proj")
    return t.linear(t.rms(x, "model.norm", epsilon), "lm_head")


def torch_bert(t, ids, types, mask, layers=2, heads=4, epsilon=1e-12):
    """Devlin et al. 2018, with the pooler and a classifier."""
    words, places, kinds = (
        t.w[f"bert.embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    x = words[ids] + places[: ids.shape[-1]] + kinds[types]
    x = t.norm(x, "bert.embeddings.LayerNorm", epsilon)
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        h = x + t.encoder_attention(x, layer, "self", heads, mask[:, None, None, :])
        x = t.norm(h, f"{layer}.attention.output.LayerNorm", epsilon)
        x = t.norm(x + t.encoder_mix(x, layer), f"{layer}.output.LayerNorm", epsilon)
    return t.linear(t.torch.tanh(t.linear(x[:, 0], "bert.pooler.dense")), "classifier")


def torch_vit(t, images, patch=2, layers=2, heads=4, epsilon=1e-6):
    """Dosovitskiy et al. 2020, with a token for the class; images are NCHW."""
    kernel = "vit.embeddings.patch_embeddings.projection"
    x = t.f.conv2d(images, t.w[f"{kernel}.weight"], t.w[f"{kernel}.bias"], stride=patch)
    first = t.w["vit.embeddings.cls_token"].expand(len(images), -1, -1)
    x = t.torch.cat([first, x.flatten(2).transpose(1, 2)], 1)
    x = x + t.w["vit.embeddings.position_embeddings"]
    for i in range(layers):
        layer = f"vit.encoder.layer.{i}"
        h = t.norm(x, f"{layer}.layernorm_before", epsilon)
        x = x + t.encoder_attention(h, layer, "attention", heads)
        x = x + t.encoder_mix(t.norm(x, f"{layer}.layernorm_after", epsilon), layer)
    return t.linear(t.norm(x, "vit.layernorm", epsilon)[:, 0], "classifier")


def torch_resnet(t, images, running, blocks=(2, 1)):
    """He et al. 2016 as in torchvision, in training; `running` keeps each norm's statistics."""

    def normed(x, conv, bn, stride=1):
        w = t.w[f"{conv}.weight"]
        x = t.f.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)
        mean, variance = t.torch.zeros(len(w)), t.torch.ones(len(w))
        y = t.f.batch_norm(x, mean, variance, t.w[f"{bn}.weight"], t.w[f"{bn}.bias"], True)
        running[bn] = mean, variance
        return y

    relu = t.torch.relu
    x = t.f.max_pool2d(relu(normed(images, "conv1", "bn1", 2)), 3, 2, 1)
    for stage, count in enumerate(blocks):
        for i in range(count):
            layer = f"layer{stage + 1}.{i}"
            stride = 2 if stage and not i else 1
            h = x
            for n, each in enumerate((1, stride, 1)):
                h = normed(h, f"{layer}.conv{n + 1}", f"{layer}.bn{n + 1}", each)
                h = relu(h) if n < 2 else h
            if i == 0:
                x = normed(x, f"{layer}.downsample.0", f"{layer}.downsample.1", stride)
            x = relu(x + h)
    return t.linear(x.mean((2, 3)), "fc")


# The comparison.


def shaken(params, seed=1):
    """Every weight away from its first value, so that no bias is 0 and no scale 1."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    rng = np.random.default_rng(seed)
    return tree.unflatten(
        [array(leaf + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    )


def as_theirs(params, names):
    flat = fdl.paths.leaves(params)
    assert set(flat) == set(names)
    return {name: change(np.asarray(flat[path])) for path, (name, change) in names.items()}


def assert_near(found, expected, least=0.0):
    bound = NEAR * max(np.abs(expected).max(), least)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= bound


def assert_equal_to_torch(model, names, x, inputs, theirs, train=False):
    """Logits and the gradient of every weight; returns the state after the pass."""
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: famous models are not checked against it"
    )
    params, state = model.init(jax.random.key(0), x, **inputs)
    params = shaken(params)

    @jax.jit
    def ours(params):
        def loss(params):
            y, after = model.apply(params, state, x, train=train, **inputs)
            return jnp.vdot(y, waves(y)), (y, after)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (y, after)), slopes = ours(params)
    slopes = as_theirs(slopes, names)
    weights = {
        name: torch.tensor(w.copy(), requires_grad=True)
        for name, w in as_theirs(params, names).items()
    }
    expected = theirs(Torch(torch, weights))
    (expected * torch.arange(expected.numel()).cos().reshape(expected.shape)).sum().backward()
    assert_near(np.asarray(y), expected.detach().numpy())
    largest = max(w.grad.abs().max().item() for w in weights.values())
    for name, w in weights.items():
        # Softmax cancels the bias of keys: its gradient is 0 up to rounding.
        assert_near(slopes[name], w.grad.numpy(), largest if name.endswith("key.bias") else 0.0)
    return after


IDS_OF_TWO = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def test_llama_and_its_gradients_match_torch():
    assert_equal_to_torch(
        llama(rotary=functools.partial(fdl.rotary, base=300.0)),
        llama_names(),
        array(IDS_OF_TWO, np.int32),
        {},
        lambda t: torch_llama(t, t.torch.tensor(IDS_OF_TWO), base=300.0),
    )


def test_bert_and_its_gradients_match_torch():
    types, mask = IDS_OF_TWO > 4, IDS_OF_TWO != 7
    inputs = {"types": array(types, np.int32), "mask": mask[:, None, None]}
    assert_equal_to_torch(
        classifier(bert(), 16, 3),
        bert_names(),
        array(IDS_OF_TWO, np.int32),
        inputs,
        lambda t: torch_bert(
            *(t, t.torch.tensor(IDS_OF_TWO), t.torch.tensor(types).long(), t.torch.tensor(mask))
        ),
    )


def test_vit_and_its_gradients_match_torch():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype("f")
    assert_equal_to_torch(
        vit(),
        vit_names(),
        jnp.asarray(x),
        {},
        lambda t: torch_vit(t, t.torch.tensor(x.transpose(0, 3, 1, 2).copy())),
    )


def test_resnet_its_gradients_and_its_statistics_match_torch():
    x = np.random.default_rng(0).standard_normal((3, 18, 23, 2)).astype("f")
    running = {}
    after = assert_equal_to_torch(
        resnet(),
        resnet_names(),
        jnp.asarray(x),
        {},
        lambda t: torch_resnet(t, t.torch.tensor(x.transpose(0, 3, 1, 2).copy()), running=running),
        train=True,
    )
    for path, (name, _) in resnet_names().items():
        if path.endswith("/scale"):
            own = fdl.paths.leaves(after)
            for what, theirs in zip(("mean", "variance"), running[name[:-7]], strict=True):
                assert_near(np.asarray(own[path[:-5] + what]), theirs.numpy())


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"block": "bottleneck"}, {"conv_0": (5, 7), "conv_1": (3, 4)}),
        ({"block": "bottleneck_v1"}, {"conv_0": (3, 4), "conv_1": (3, 4)}),
        ({"block": "basic"}, {"conv_0": (3, 4), "conv_1": (3, 4)}),
        ({"stem": "small"}, {"conv_0": (19, 26), "conv_1": (10, 13)}),
    ],
)
def test_the_stride_is_in_the_right_convolution(options, sizes):
    model = resnet(blocks=(1, 1), width=2, **options)
    x = jax.ShapeDtypeStruct((1, 19, 26, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    path = "stage_1/block_0/parallel_0/inside"
    seen = fdl.capture(model, f"{path}/conv_0", f"{path}/conv_1")
    found = jax.eval_shape(seen, params, state, x)
    assert {each: found[f"{path}/{each}"].shape[1:3] for each in sizes} == sizes


def test_the_models_share_the_options_of_the_block():
    """Every model has the options and defaults of the block, except those that it sets itself."""

    def options(model):
        given = inspect.signature(model).parameters.values()
        return {each.name: each.default for each in given if each.kind is each.KEYWORD_ONLY}

    block = options(fdl.encoder_block)
    del block["causal"]
    for model in (fdl.gpt, fdl.encoder, fdl.decoder_block):
        assert block.items() <= options(model).items()
    del block["rotary"], block["kv_heads"], block["kernel"]
    assert block.items() <= options(fdl.vit).items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block": "wide"},
            "expected block to be one of 'basic', 'bottleneck', 'bottleneck_v1', got 'wide'; "
            "leave it out for 'basic'",
        ),
        (
            {"stem": "7x7"},
            "expected stem to be one of 'small', 'large', got '7x7'; leave it out for 'small'",
        ),
        (
            {"blocks": 50},
            "expected depth to be the number of blocks of each stage, integers >= 1, got 50; "
            "pass (3, 4, 6, 3) for a ResNet-50, or block='basic' and a depth such as 20",
        ),
        (
            {"blocks": (3, 0)},
            "expected depth to be the number of blocks of each stage, integers >= 1, got (3, 0); "
            "pass (3, 4, 6, 3) for a ResNet-50, or block='basic' and a depth such as 20",
        ),
    ],
)
def test_resnet_refuses_unknown_options(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"resnet: {message}") + "$"):
        resnet(**options)


def test_types_are_refused_by_an_encoder_without_token_types():
    ids = array(IDS_OF_TWO, np.int32)
    message = (
        "encoder: expected extra inputs among [mask], got 'types', which no layer here takes; "
        "leave it out, or add an argument of this name to the layer that needs it"
    )
    with pytest.raises(fdl.PathError, match="^" + re.escape(message) + "$"):
        bert(token_types=None).init(jax.random.key(0), ids, types=ids)


SEEDED_BUGS = {
    "fdl/models/convolutional.py": (
        "models/test_famous_models.py",
        [
            ("size // 2 if symmetric_padding", "size // 2 if False"),
            ("1 if symmetric_padding", "0 if symmetric_padding"),
            ("first=stride)", "first=1)"),
            ("stride > 1 or after != channels", "stride > 1"),
            ("norm or batch_norm()", "batch_norm()"),
        ],
    ),
}
