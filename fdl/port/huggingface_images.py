"""Models of images from folders that were downloaded from Hugging Face.

B is the batch size, C the number of classes.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fdl import models
from fdl.checks import named_in_errors
from fdl.core.layer import Layer
from fdl.layers import batch_norm, layer_norm
from fdl.port.config import (
    ACTIVATION,
    ACTIVATIONS,
    COUNT,
    COUNTS,
    POSITIVE,
    TRANSFORMER,
    Field,
    Fields,
    Folder,
    Table,
    dense_names,
    divided,
    load,
    one_of,
    read_config,
    refused,
    rooted,
)
from fdl.typing import Params, State

_LABELS = Field(
    "as a dict with a name for each class",
    lambda value: isinstance(value, dict) and value != {},
    {"0": "", "1": ""},
)


def _is_size(value: Any) -> bool:
    return COUNT.fits(value) or (COUNTS.fits(value) and len(value) == 2)


VIT = Fields(
    who="vit",
    classes=("ViTForImageClassification",),
    used={
        **TRANSFORMER,
        "image_size": Field("as one or two integers in [1, 2**31)", _is_size),
        "patch_size": COUNT,
        "num_channels": COUNT.by_default(3),
        "hidden_act": ACTIVATION.by_default("gelu"),
        "layer_norm_eps": POSITIVE.by_default(1e-12),
        "id2label": _LABELS,
        "qkv_bias": one_of(True),
    },
    unused=("encoder_stride", "pooler_act", "pooler_output_size"),
)


@named_in_errors
def vit(folder: Folder) -> tuple[Layer, Params]:
    """A vision transformer with the weights of a folder from Hugging Face.

    Args:
      folder: as in `gpt2`. The class of the config must be `ViTForImageClassification`.

    Returns:
      (model, params). The model is `fdl.vit` with a class token, from images [B, H, W, channels] to
      logits [B, C]; params are float32, as in `gpt2`. Torch has the channels first:
      `images.transpose(0, 2, 3, 1)`.

    Raises:
      FileNotFoundError, ValueError: as in `gpt2`.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from fdl.port import hugging_face_names, to_torch
      >>> config = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 8}
      >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
      >>> images = jnp.ones((1, 8, 8, 3))
      >>> same = models.vit(2, 8, 4, 1, 2, 8, hidden=12, class_token=True)
      >>> params, _ = same.init(jax.random.key(0), images)
      >>> with tempfile.TemporaryDirectory() as folder:  # in place of a download
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     file = f"{folder}/model.safetensors"
      ...     _ = to_torch(params, hugging_face_names(folder), file=file)
      ...     model, params = vit(folder)
      >>> model.apply(params, {}, images)[0].shape
      (1, 2)

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929; `ViTForImageClassification` of transformers.
    """
    config = read_config(folder, VIT)
    size, patch = config["image_size"], config["patch_size"]
    height, width = size if isinstance(size, list) else (size, size)
    if height % patch or width % patch:
        expected = f"as a multiple of patch_size, {patch},"
        raise refused("vit", config["file"], "image_size", size, expected)
    divided("vit", config, "hidden_size", "num_attention_heads")
    model = models.vit(
        len(config["id2label"]),
        (height, width),
        patch,
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        features=config["hidden_size"],
        hidden=config["intermediate_size"],
        class_token=True,
        norm=layer_norm(epsilon=config["layer_norm_eps"]),
        activation=ACTIVATIONS[config["hidden_act"]],
    )
    images = jax.ShapeDtypeStruct((1, height, width, config["num_channels"]), jnp.float32)
    params, _ = load(folder, model, images, vit_names, config)
    return model, params


def vit_names(config: dict[str, Any], found: Iterable[str]) -> Table:
    """The table of the vision transformer, for the names of old and of new files."""
    attend, mix = "block/*/attend/attention_0", "block/*/mix/feed_forward_0"
    patch = config["patch_size"]
    heads, out = "@encoder.layer.*.attention.attention.{query,key,value}", "attention.output.dense"
    layer, wide = "@encoder.layer.*", "@encoder.layer.*.{intermediate,output}.dense"
    if any(name.removeprefix("vit.").startswith("layers.") for name in found):
        layer, heads = "@layers.*", "@layers.*.attention.{q_proj,k_proj,v_proj}"
        out, wide = "attention.o_proj", "@layers.*.mlp.{fc1,fc2}"
    names: Table = {
        "class_token/w": "@embeddings.cls_token: 1 1 d -> 1 d",
        "positions/w": "@embeddings.position_embeddings: 1 n d -> n d",
        "patch/w": "@embeddings.patch_embeddings.projection.weight: o c h w -> (h w c) o, "
        f"h={patch} w={patch}",
        "patch/b": "@embeddings.patch_embeddings.projection.bias",
        "block/*/{attend,mix}/layer_norm_0/{scale,bias}": (
            f"{layer}.{{layernorm_before,layernorm_after}}.{{weight,bias}}"
        ),
        "norm/{scale,bias}": "@layernorm.{weight,bias}",
    }
    dense = {f"{attend}/{{q,k,v}}": heads, f"{attend}/out": f"{layer}.{out}"}
    dense |= {f"{mix}/{{up,down}}": wide, "head": "classifier"}
    return rooted(names | dense_names(dense), "vit.", found)


RESNET = Fields(
    who="resnet",
    classes=("ResNetForImageClassification",),
    used={
        "depths": COUNTS,
        "hidden_sizes": COUNTS,
        "embedding_size": COUNT.by_default(64),
        "layer_type": one_of("basic", "bottleneck").by_default("bottleneck"),
        "num_channels": COUNT.by_default(3),
        "id2label": _LABELS,
        "hidden_act": one_of("relu"),
        "downsample_in_first_stage": one_of(False),
        "downsample_in_bottleneck": one_of(False),
    },
    unused=("out_features", "out_indices", "stage_names"),
)


@named_in_errors
def resnet(folder: Folder) -> tuple[Layer, Params, State]:
    """A residual network with the weights of a folder from Hugging Face.

    Args:
      folder: as in `gpt2`. The class of the config must be `ResNetForImageClassification`.

    Returns:
      (model, params, state). The model is `fdl.resnet`, from images [B, H, W, channels] to logits
      [B, C]; state has the running statistics of the norms. All are float32, as in `gpt2`. Torch
      has the channels first: `images.transpose(0, 2, 3, 1)`.

    Raises:
      FileNotFoundError, ValueError: as in `gpt2`.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from fdl.port import hugging_face_names, to_torch
      >>> config = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [4, 8]}
      >>> config |= {"embedding_size": 4, "layer_type": "basic"}
      >>> images = jnp.ones((1, 32, 32, 3))
      >>> same = models.resnet(2, (1, 1), width=4, stem="large")
      >>> params, state = same.init(jax.random.key(0), images)
      >>> tree = {"params": params, "state": state}
      >>> with tempfile.TemporaryDirectory() as folder:  # in place of a download
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     file = f"{folder}/model.safetensors"
      ...     _ = to_torch(tree, hugging_face_names(folder), file=file)
      ...     model, params, state = resnet(folder)
      >>> model.apply(params, state, images)[0].shape
      (1, 2)

    Source: He et al. 2016, arXiv 1512.03385; `ResNetForImageClassification` of transformers.
    """
    config = read_config(folder, RESNET)
    depths, width, kind = config["depths"], config["embedding_size"], config["layer_type"]
    widths = [width * 2**stage * (4 if kind == "bottleneck" else 1) for stage in range(len(depths))]
    if config["hidden_sizes"] != widths:
        raise refused("resnet", config["file"], "hidden_sizes", config["hidden_sizes"], str(widths))
    model = models.resnet(
        len(config["id2label"]),
        depths,
        width=width,
        block=kind,
        stem="large",
        norm=batch_norm(unbiased=True),
        symmetric_padding=True,
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, config["num_channels"]), jnp.float32)
    params, state = load(folder, model, images, resnet_names, config)
    return model, params, state


def resnet_names(config: dict[str, Any], found: Iterable[str]) -> Table:
    """The table of the residual network, for `{"params": params, "state": state}`."""
    many = 3 if config["layer_type"] == "bottleneck" else 2
    turn = "o i h w -> h w i o"
    stages = "@encoder.stages"
    places = {"": "@embedder.embedder"}  # path of a convolution and its norm -> its name
    names: Table = {**dense_names({"params/dense_0": "classifier.1"}), None: []}
    for stage in range(len(config["depths"])):
        block, layer = f"stage_{stage}/block_*/parallel_0", f"{stages}.{stage}.layers.*"
        if stage or many == 3:
            first = block.replace("*", "0")
            places[f"{first}/shortcut/@0"] = f"{stages}.{stage}.layers.0.shortcut"
        places |= {f"{block}/inside/@{n}": f"{layer}.layer.{n}" for n in range(many)}
    for path, name in places.items():
        of = path or "@0"
        conv, norm = of.replace("@", "conv_"), of.replace("@", "batch_norm_")
        names[f"params/{conv}/w"] = f"{name}.convolution.weight: {turn}"
        names[f"params/{norm}/{{scale,bias}}"] = f"{name}.normalization.{{weight,bias}}"
        names[f"state/{norm}/{{mean,variance}}"] = (
            f"{name}.normalization.{{running_mean,running_var}}"
        )
        names[None].append(f"{name}.normalization.num_batches_tracked")
    return rooted(names, "resnet.", found)
