"""Models of text from folders that were downloaded from Hugging Face, built from fdl's layers.

B is the batch size, T the length of a sequence, D the number of features, V the number of different
tokens.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import named_in_errors
from fdl.core.combinators import residual
from fdl.core.layer import Layer
from fdl.core.networks import chain, network
from fdl.core.repetition import repeat
from fdl.layers import (
    attention,
    dense,
    embedding,
    feed_forward,
    layer_norm,
    learned_positions,
    rms_norm,
)
from fdl.models import encoder_block, gpt
from fdl.port.config import (
    ACTIVATION,
    ACTIVATIONS,
    COUNT,
    FLAG,
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
    rooted,
)
from fdl.port.rotations import rotation
from fdl.typing import Params

_DICT = Field("as a dict", lambda value: isinstance(value, dict), None)
_IDS = jax.ShapeDtypeStruct((1, 1), jnp.int32)

GPT2 = Fields(
    who="gpt2",
    classes=("GPT2LMHeadModel", "GPT2Model"),
    used={
        "vocab_size": COUNT,
        "n_positions": COUNT,
        "n_embd": COUNT,
        "n_layer": COUNT,
        "n_head": COUNT,
        "n_inner": COUNT.by_default(None),
        "activation_function": ACTIVATION.by_default("gelu_new"),
        "layer_norm_epsilon": POSITIVE.by_default(1e-5),
        "tie_word_embeddings": FLAG.by_default(True),
        "scale_attn_weights": one_of(True),
        "scale_attn_by_inverse_layer_idx": one_of(False),
        "reorder_and_upcast_attn": one_of(False),
        "add_cross_attention": one_of(False),
    },
)


@named_in_errors
def gpt2(folder: Folder) -> tuple[Layer, Params]:
    """GPT-2 with the weights of a folder from Hugging Face.

    Args:
      folder: a folder with `config.json` and the weights, in safetensors or torch's format, in one
        file or in shards. torch and transformers are not needed, and no code is run.

    Returns:
      (model, params). The model is `fdl.gpt`, from ids [..., T] to logits [..., T, V]; params are
      float32, and those that the file has in half precision are converted. There is no dropout,
      whatever the config says.

    Raises:
      FileNotFoundError: `config.json`, the weights, or a shard are missing.
      ValueError: a field of the config would change the result and is not handled, is missing, or
        has a value that fits no model; or the weights do not fit (the message lists every name); or
        a file is damaged, as in `read_tensors`.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from fdl.port import hugging_face_names, to_torch
      >>> config = {"model_type": "gpt2", "vocab_size": 31, "n_positions": 9}
      >>> config |= {"n_embd": 8, "n_layer": 1, "n_head": 2}
      >>> ids = jnp.array([[3, 1, 4]])
      >>> params, _ = gpt(31, 9, layers=1, heads=2, features=8).init(jax.random.key(0), ids)
      >>> with tempfile.TemporaryDirectory() as folder:  # in place of a download
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     file = f"{folder}/model.safetensors"
      ...     _ = to_torch(params, hugging_face_names(folder), file=file)
      ...     model, params = gpt2(folder)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 3, 31)

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners";
    `GPT2LMHeadModel` of transformers.
    """
    config = read_config(folder, GPT2)
    divided("gpt2", config, "n_embd", "n_head")
    model = gpt(
        config["vocab_size"],
        config["n_positions"],
        layers=config["n_layer"],
        heads=config["n_head"],
        features=config["n_embd"],
        hidden=config["n_inner"],
        norm=layer_norm(epsilon=config["layer_norm_epsilon"]),
        activation=ACTIVATIONS[config["activation_function"]],
        tied=config["tie_word_embeddings"],
    )
    params, _ = load(folder, model, _IDS, gpt2_names, config)
    return model, params


def gpt2_names(config: dict[str, Any], found: Iterable[str]) -> Table:
    """The table of GPT-2."""
    mix = "block/*/mix/feed_forward_0"
    names: Table = {
        "positions/w": "@wpe.weight",
        "block/*/{attend,mix}/layer_norm_0/{scale,bias}": "@h.*.{ln_1,ln_2}.{weight,bias}",
        "block/*/attend/attention_0/{q,k,v}/w": "@h.*.attn.c_attn.weight | split 1",
        "block/*/attend/attention_0/{q,k,v}/b": "@h.*.attn.c_attn.bias | split 0",
        "block/*/attend/attention_0/out/{w,b}": "@h.*.attn.c_proj.{weight,bias}",
        f"{mix}/{{up,down}}/{{w,b}}": "@h.*.mlp.{c_fc,c_proj}.{weight,bias}",
        "norm/{scale,bias}": "@ln_f.{weight,bias}",
        None: ["@h.*.attn.bias", "@h.*.attn.masked_bias"],  # the causal mask, in old files
    }
    return rooted(names | _head(config, "@wte.weight"), "transformer.", found)


def _head(config: dict[str, Any], embedding: str, head: str = "lm_head") -> Table:
    """The rules of the table of embeddings and of the layer that gives logits."""
    if config["tie_word_embeddings"]:
        return {"embed/w": f"{embedding} = {head}.weight"}
    return {"embed/w": embedding, "head/w": f"{head}.weight: o i -> i o"}


LLAMA = Fields(
    who="llama",
    classes=("LlamaForCausalLM",),
    used={
        **TRANSFORMER,
        "vocab_size": COUNT,
        "num_key_value_heads": COUNT.by_default(None),
        "head_dim": COUNT.by_default(None),
        "hidden_act": ACTIVATION.by_default("silu"),
        "rms_norm_eps": POSITIVE.by_default(1e-6),
        "attention_bias": FLAG.by_default(False),
        "mlp_bias": FLAG.by_default(False),
        "tie_word_embeddings": FLAG.by_default(False),
        "rope_theta": POSITIVE.by_default(10000.0),
        "rope_scaling": _DICT,
        "rope_parameters": _DICT,
        "pretraining_tp": one_of(1),
        "partial_rotary_factor": one_of(1.0),
    },
)


@named_in_errors
def llama(folder: Folder) -> tuple[Layer, Params]:
    """Llama with the weights of a folder from Hugging Face.

    Args:
      folder: as in `gpt2`.

    Returns:
      (model, params), from ids [..., T] to logits [..., T, V]; params are float32, as in `gpt2`.

    Raises:
      FileNotFoundError, ValueError: as in `gpt2`.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from fdl.port import hugging_face_names, to_torch
      >>> config = {"model_type": "llama", "vocab_size": 31, "hidden_size": 8}
      >>> config |= {"intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
      >>> ids = jnp.array([[3, 1, 4]])
      >>> same = gpt(
      ...     31, None, layers=1, heads=2, features=8, hidden=12, tied=False, rotary=True,
      ...     norm=rms_norm(), gate=True, bias=False,
      ... )
      >>> params, _ = same.init(jax.random.key(0), ids)
      >>> with tempfile.TemporaryDirectory() as folder:  # in place of a download
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     file = f"{folder}/model.safetensors"
      ...     _ = to_torch(params, hugging_face_names(folder), file=file)
      ...     model, params = llama(folder)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 3, 31)

    Source: Touvron et al. 2023, arXiv 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783;
    `LlamaForCausalLM` of transformers.
    """
    config = read_config(folder, LLAMA)
    features, tied = config["hidden_size"], config["tie_word_embeddings"]
    norm = rms_norm(epsilon=config["rms_norm_eps"])
    width = config["head_dim"] or divided("llama", config, "hidden_size", "num_attention_heads")
    if config["num_key_value_heads"] is not None:
        divided("llama", config, "num_attention_heads", "num_key_value_heads")
    attend = attention(
        config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_features=width,
        causal=True,
        rotary=rotation(config, width),
        bias=config["attention_bias"],
    )
    mix = feed_forward(
        features,
        hidden=config["intermediate_size"],
        activation=ACTIVATIONS[config["hidden_act"]],
        gate=True,
        bias=config["mlp_bias"],
    )
    block = chain(attend=residual(norm, attend), mix=residual(norm, mix), name="block")
    children = {
        "embed": embedding(config["vocab_size"], features),
        "block": repeat(block, config["num_hidden_layers"]),
        "norm": norm,
    }
    if not tied:
        children["head"] = dense(config["vocab_size"], bias=False)

    def forward(f: Any, ids: jax.Array) -> jax.Array:
        h = f.norm(f.block(f.embed(ids)))
        return f.embed(h) if tied else f.head(h)

    model = network(forward, name="llama", **children)
    params, _ = load(folder, model, _IDS, llama_names, config)
    return model, params


def llama_names(config: dict[str, Any], found: Iterable[str]) -> Table:
    """The table of Llama."""
    attend, mix = "block/*/attend/attention_0", "block/*/mix/feed_forward_0"
    heads, turn = "@layers.*.self_attn.{q_proj,k_proj,v_proj,o_proj}", ": o i -> i o"
    names: Table = {
        "block/*/{attend,mix}/rms_norm_0/scale": (
            "@layers.*.{input_layernorm,post_attention_layernorm}.weight"
        ),
        f"{attend}/{{q,k,v,out}}/w": f"{heads}.weight{turn}",
        f"{mix}/{{up/gate,up/value,down}}/w": (
            f"@layers.*.mlp.{{gate_proj,up_proj,down_proj}}.weight{turn}"
        ),
        "norm/scale": "@norm.weight",
        None: ["@layers.*.self_attn.rotary_emb.inv_freq"],  # computed, in old files
    }
    if config["attention_bias"]:
        names[f"{attend}/{{q,k,v,out}}/b"] = f"{heads}.bias"
    if config["mlp_bias"]:
        names[f"{mix}/{{up/gate,up/value,down}}/b"] = (
            "@layers.*.mlp.{gate_proj,up_proj,down_proj}.bias"
        )
    return rooted(names | _head(config, "@embed_tokens.weight"), "model.", found)


BERT = Fields(
    who="bert",
    classes=("BertForMaskedLM", "BertForPreTraining", "BertModel"),
    used={
        **TRANSFORMER,
        "vocab_size": COUNT,
        "max_position_embeddings": COUNT,
        "type_vocab_size": COUNT.by_default(2),
        "hidden_act": ACTIVATION.by_default("gelu"),
        "layer_norm_eps": POSITIVE.by_default(1e-12),
        "tie_word_embeddings": FLAG.by_default(True),
        "is_decoder": one_of(False),
        "add_cross_attention": one_of(False),
        "position_embedding_type": one_of("absolute"),
    },
    unused=(
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ),
)


@named_in_errors
def bert(folder: Folder) -> tuple[Layer, Params]:
    """BERT with the weights of a folder from Hugging Face.

    Args:
      folder: as in `gpt2`. If the config names the class `BertModel`, the model ends with the last
        block. With `BertForMaskedLM` or `BertForPreTraining`, it ends with the logits of the
        tokens. The layers that compare two sentences (`pooler`, `seq_relationship`) are left out.

    Returns:
      (model, params), from ids [..., T] to [..., T, D] or to logits [..., T, V]. Optional extra
      inputs: `types`, integers [..., T], the type of each token, by default 0; and `mask`, bool
      [..., H, T, T], as in `fdl.attention`: `mask[:, None, None, :]` for a mask of padding [B, T].
      In torch, the padding token's row of the embedding gets no gradient; here it does.

    Raises:
      FileNotFoundError, ValueError: as in `gpt2`.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from fdl.port import hugging_face_names, to_torch
      >>> config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 31}
      >>> config |= {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
      >>> config |= {"num_attention_heads": 2, "max_position_embeddings": 9}
      >>> ids = jnp.array([[3, 1, 4]])
      >>> import fdl
      >>> options = {"hidden": 12, "token_types": 2, "embed_norm": True, "norm_first": False}
      >>> same = fdl.encoder(31, 9, layers=1, heads=2, features=8, **options)
      >>> params, _ = same.init(jax.random.key(0), ids)
      >>> with tempfile.TemporaryDirectory() as folder:  # in place of a download
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     file = f"{folder}/model.safetensors"
      ...     _ = to_torch(params, hugging_face_names(folder), file=file)
      ...     model, params = bert(folder)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 3, 8)

    Source: Devlin et al. 2018, arXiv 1810.04805; `BertForMaskedLM` of transformers.
    """
    config = read_config(folder, BERT)
    features = config["hidden_size"]
    divided("bert", config, "hidden_size", "num_attention_heads")
    norm = layer_norm(epsilon=config["layer_norm_eps"])
    act = ACTIVATIONS[config["hidden_act"]]
    block = encoder_block(
        config["num_attention_heads"],
        features,
        hidden=config["intermediate_size"],
        norm=norm,
        norm_first=False,
        activation=act,
    )
    children = {
        "embed": embedding(config["vocab_size"], features),
        "types": embedding(config["type_vocab_size"], features),
        "positions": learned_positions(config["max_position_embeddings"]),
        "embed_norm": norm,
        "block": repeat(block, config["num_hidden_layers"]),
    }
    if config["class"] != "BertModel":
        children["transform"] = chain(dense(features), act, norm)
        children["bias"] = learned_positions(1)
    if not config["tie_word_embeddings"] and "bias" in children:
        children["head"] = dense(config["vocab_size"], bias=False)

    def forward(f: Any, ids: jax.Array, *, mask: Any = None, types: Any = None) -> jax.Array:
        types = jnp.zeros_like(ids) if types is None else types
        h = f.embed_norm(f.positions(f.embed(ids) + f.types(types)))
        h = f.block(h) if mask is None else f.block(h, mask=mask)
        if "bias" not in children:
            return h
        h = f.transform(h)
        logits = f.head(h) if "head" in children else f.embed(h)
        return f.bias(logits[..., None, :])[..., 0, :]

    model = network(forward, name="bert", **children)
    params, _ = load(folder, model, _IDS, bert_names, config)
    return model, params


def bert_names(config: dict[str, Any], found: Iterable[str]) -> Table:
    """The table of BERT."""
    layer, attend = "@encoder.layer.*", "block/*/attend/residual_0/attention_0"
    mix = "block/*/mix/residual_0/feed_forward_0"
    # Files that were converted from TensorFlow call the scale gamma and the bias beta.
    norm = "{gamma,beta}" if any(n.endswith("LayerNorm.gamma") for n in found) else "{weight,bias}"
    norms = f"{layer}.{{attention.output,output}}.LayerNorm.{norm}"
    names: Table = {
        "types/w": "@embeddings.token_type_embeddings.weight",
        "positions/w": "@embeddings.position_embeddings.weight",
        "embed_norm/{scale,bias}": f"@embeddings.LayerNorm.{norm}",
        "block/*/{attend,mix}/layer_norm_0/{scale,bias}": norms,
        None: [
            "@pooler.dense.weight",
            "@pooler.dense.bias",
            "@embeddings.position_ids",
            "cls.seq_relationship.weight",
            "cls.seq_relationship.bias",
        ],
    }
    dense = {
        f"{attend}/{{q,k,v}}": f"{layer}.attention.self.{{query,key,value}}",
        f"{attend}/out": f"{layer}.attention.output.dense",
        f"{mix}/{{up,down}}": f"{layer}.{{intermediate,output}}.dense",
    }
    if config["class"] == "BertModel":
        names["embed/w"] = "@embeddings.word_embeddings.weight"
    else:
        head = "cls.predictions.transform"
        dense["transform/dense_0"] = f"{head}.dense"
        names["transform/layer_norm_0/{scale,bias}"] = f"{head}.LayerNorm.{norm}"
        bias, other = "cls.predictions.decoder.bias", "cls.predictions.bias"
        if config["tie_word_embeddings"] or bias not in found:
            names["bias/w"] = f"{other} = {bias}: v -> 1 v"
        else:  # torch then does not use the other one
            names |= {"bias/w": f"{bias}: v -> 1 v", None: [*names[None], other]}
        names |= _head(config, "@embeddings.word_embeddings.weight", "cls.predictions.decoder")
    return rooted(names | dense_names(dense), "bert.", found)
